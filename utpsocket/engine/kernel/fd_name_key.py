"""The tag in an abstract AF_UNIX name, which shows that a process of this program made the name.

Any local user can read the names in /proc/net/unix and bind one that looks like ours. So a name carries a tag: a keyed
hash of the name and of the effective user id of the process that made it.

The key is made when this module is first imported, which `import utpsocket` does. A fork inherits it with its memory,
an exec'ed child and an engine in a process of its own with the environment variable UTPSOCKET_SECRET, which only the
same user (and root) can read. A process that gets one of our fds from elsewhere, by SCM_RIGHTS, and was not started by
ours, sees a plain AF_UNIX socket unless it is given the same variable.

The user id is compared with the one that the kernel has recorded of the other end (SO_PEERCRED). So a tag that another
user has copied from a name that is no longer in use does not fit a socket of theirs. User ids other than root's, our
own, and the one that the process had when the key was made or read are refused: a child with fewer rights may have
inherited the environment. Credentials alone do not suffice: a worker that has given up root's rights accepts
connections from root's engine.

Any thread may call. Sources: unix(7) SO_PEERCRED, "Abstract sockets"; RFC 7693 §2.9 (keyed BLAKE2).
"""

from __future__ import annotations

from _operator import _compare_digest as compare_digest
from binascii import b2a_base64
from typing import Final

from utpsocket.engine.interpreter.originals import os

try:
    from _blake2 import blake2s  # without OpenSSL's library, which hashlib and hmac load
except ImportError:
    from hashlib import blake2s

NAME_HEAD: Final = b"\0utp"
"""What a name of ours begins with (fd_names.py)."""
VARIABLE: Final = "UTPSOCKET_SECRET"
# Eight bytes in base 64, without padding: names must fit in sun_path (108 bytes).
TAG_BYTES: Final = 11
_DIGEST_BYTES: Final = 8
# 128 bits
_KEY_BYTES: Final = 16
_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")


def _key() -> bytes:
    """The key in the environment, or a new one, which is put there."""
    try:
        key = bytes.fromhex(os.environ.get(VARIABLE, ""))
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        key = os.urandom(_KEY_BYTES)
        os.environ[VARIABLE] = key.hex()
    return key


_secret: Final = _key()
_first_uid: Final = os.geteuid()


def text() -> str:
    """The key as it stands in the environment variable."""
    return _secret.hex()


def tag(name: bytes, uid: int, key: bytes = _secret) -> bytes:
    """The tag of a name made by a process with that effective user id: TAG_BYTES of ASCII."""
    digest = blake2s(b"%d:%s" % (uid, name), key=key, digest_size=_DIGEST_BYTES).digest()
    return b2a_base64(digest, newline=False).translate(_URL_SAFE)[:TAG_BYTES]


def is_valid_tag(given_tag: bytes, name: bytes, uid: int) -> bool:
    """Whether this is the tag of that name made by that user, and the user id is not refused."""
    return uid in (0, os.geteuid(), os.getuid(), _first_uid) and compare_digest(given_tag, tag(name, uid))


def is_valid_tag_for_any_user(given_tag: bytes, name: bytes) -> bool:
    """Whether this is the tag of that name for any user id that is not refused. For callers that know from the kernel
    that a process of ours made the name.
    """
    euid = os.geteuid()
    if compare_digest(given_tag, tag(name, euid)):
        return True
    return any(compare_digest(given_tag, tag(name, uid)) for uid in {0, os.getuid(), _first_uid} - {euid})

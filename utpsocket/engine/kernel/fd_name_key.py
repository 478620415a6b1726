"""What proves that an abstract AF_UNIX name was made by this program, and for whom.

Separate because fd_names.py only says how a name reads. Any local user can read the names in /proc/net/unix and bind
one that looks like ours, so a name carries a tag: a keyed hash of itself and of the user id of the process that made
it.

The key is made when this module is first imported. A fork inherits it with its memory, an exec'ed child and an engine
in a process of its own with the environment variable UTPSOCKET_SECRET, which only the same user (and root) can read.
A process that gets one of our fds from elsewhere, by SCM_RIGHTS, and was not started by ours, sees a plain AF_UNIX
socket unless it is given the same variable.

The user id is compared with the one the kernel remembers of the far end (SO_PEERCRED). So a tag that another user has
copied from a name that is no longer in use proves nothing for a socket of theirs; and ids other than root's, ours, and
the one the key was made under are not believed, in case the environment got into the hands of a child with fewer
rights. Credentials alone would not do: a worker that has given up root's rights accepts what root's engine hands over.

Any thread may call. Sources: unix(7) SO_PEERCRED, "Abstract sockets"; RFC 7693 §2.9 (keyed BLAKE2).
"""

from __future__ import annotations

from binascii import b2a_base64
from hashlib import blake2s
from typing import Final

from utpsocket.engine.interpreter.originals import hmac, os

VARIABLE: Final = "UTPSOCKET_SECRET"
TAG_BYTES: Final = 11  # as text
_KEY_BYTES: Final = 16
_DIGEST_BYTES: Final = 8
_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")


def _key() -> bytes:
    """The parent's key where it left one, or a new one."""
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
    """The key as the environment variable has it."""
    return _secret.hex()


def tag(name: bytes, uid: int) -> bytes:
    """The proof, TAG_BYTES of ASCII, that a process of this program and of that effective user made the name."""
    digest = blake2s(b"%d:%s" % (uid, name), key=_secret, digest_size=_DIGEST_BYTES).digest()
    return b2a_base64(digest, newline=False).translate(_URL_SAFE)[:TAG_BYTES]


def is_proof(proof: bytes, name: bytes, uid: int) -> bool:
    """Whether this is the tag of that name, made by that user, and the user is one to be believed."""
    return uid in (0, os.geteuid(), os.getuid(), _first_uid) and hmac.compare_digest(proof, tag(name, uid))


def is_known_proof(proof: bytes, name: bytes) -> bool:
    """Whether this is the tag of that name for any user that is believed: where the kernel has said otherwise which
    process made it.
    """
    euid = os.geteuid()
    if hmac.compare_digest(proof, tag(name, euid)):
        return True
    return any(hmac.compare_digest(proof, tag(name, uid)) for uid in {0, os.getuid(), _first_uid} - {euid})

"""The abstract AF_UNIX names of socket pairs, from which any process that holds the fd can read the connection.

The engine binds its end of a pair to such a name. getpeername() of the user's end then returns it in a forked process,
in an exec'ed child and to `ss -x` (docs/sockets.md §1). Any thread may call.

A name reads `utp:<cookie>:<engine's pid>:<local>|<peer>#<tag>`, with addresses as 192.0.2.7:6881 and
[fe80::1]:6881[%scope][/flowinfo]. A listening socket's own name has `*` for the peer. Any program can bind such a name;
the tag shows that ours did (fd_name_key.py).
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Final

from utpsocket.engine.interpreter.native import Socket
from utpsocket.engine.interpreter.originals import os, socket, struct
from utpsocket.engine.kernel import fd_name_key
from utpsocket.protocol import Address
from utpsocket.protocol.native import native_or

if TYPE_CHECKING:
    from utpsocket.protocol.layout import Layout

_key: Final = bytes.fromhex(fd_name_key.text())
_HEAD: Final = fd_name_key.NAME_HEAD
_PREFIX: Final = _HEAD + b":"
_MAX_BYTES: Final = 108 - 1 - fd_name_key.TAG_BYTES  # of sun_path, without "#" and the tag
_SHORT: Final[Layout[tuple[bytes, int, int]]] = struct.Struct("!16sHI")
_SCOPE_BYTES: Final = 4
_CREDENTIALS: Final[Layout[tuple[int, int, int]]] = struct.Struct("=iII")  # struct ucred: pid, uid, gid


# Random numbers for the next cookies: one system call for so many, by feel.
_COOKIES: Final[Layout[tuple[int, ...]]] = struct.Struct("=64Q")
_cookies: Final[list[int]] = []


def new_cookie() -> int:
    """A random number of 63 bits that identifies one socket."""
    try:
        return _cookies.pop() >> 1
    except IndexError:
        cookie, *others = _COOKIES.unpack(os.urandom(_COOKIES.size))
        _cookies.extend(others)
        return cookie >> 1


def forget_cookies() -> None:
    """After a fork, in the child: these numbers are the parent's."""
    _cookies.clear()


def tagged_in_python(key: bytes, name: bytes, uid: int) -> bytes:
    """The name with its tag."""
    return b"%b#%b" % (name, fd_name_key.tag(name, uid, key))


_tagged: Final = native_or(tagged_in_python, "tagged")


def encode(cookie: int, local: Address, peer: Address, pid: int) -> bytes:
    """The name of a pair's engine end; `pid`: of the engine's process."""
    uid = os.geteuid()
    if len(local) == len(peer) == 2:  # as to_text() has them
        return _tagged(_key, f"\0utp:{cookie:x}:{pid}:{local[0]}:{local[1]}|{peer[0]}:{peer[1]}".encode(), uid)
    prefix = f"{cookie:x}:{pid}:"
    name = _PREFIX + f"{prefix}{to_text(local)}|{to_text(peer)}".encode()
    if len(name) > _MAX_BYTES:
        name = _PREFIX + f"{prefix}{_short(local)}|{_short(peer)}".encode()
    return _tagged(_key, name, uid)


def encode_listener(cookie: int, local: Address, pid: int) -> bytes:
    """The name of a user's listening socket; `pid`: of the engine's process."""
    uid = os.geteuid()
    if not local[2:]:  # as to_text() has it
        return _tagged(_key, f"\0utp:{cookie:x}:{pid}:{local[0]}:{local[1]}|*".encode(), uid)
    return _tagged(_key, _PREFIX + f"{cookie:x}:{pid}:{to_text(local)}|*".encode(), uid)


def peer_credentials(sock: Socket) -> tuple[int, int]:
    """(process id, effective user id) of the process that connected or listened at the other end of this AF_UNIX
    connection, as they were then; of a listening socket, of the process that called listen(). unix(7) SO_PEERCRED.
    """
    credentials = Socket.getsockopt(sock, socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    return pid, uid


def is_ours(name: bytes, uid: int | None) -> bool:
    """Whether the tag of a name that decode() or decode_listener() understands is right.

    uid    of the process that bound it, from peer_credentials(); None where it is known to be a process of ours
    """
    made, _, given_tag = name.rpartition(b"#")
    return (
        fd_name_key.is_valid_tag_for_any_user(given_tag, made)
        if uid is None
        else fd_name_key.is_valid_tag(given_tag, made, uid)
    )


def cookie_of(name: object) -> int | None:
    """The cookie of a name made by encode() or encode_listener(), None for any other."""
    if type(name) is not bytes:
        return None
    try:
        head, cookie, _ = name.split(b":", 2)
        return int(cookie, 16) if head == _HEAD else None
    except ValueError:
        return None


def decode_listener(name: object) -> tuple[int, int, Address] | None:
    """(cookie, engine's pid, local) of a name made by encode_listener(), None for any other."""
    if not isinstance(name, bytes) or not name.startswith(_PREFIX):
        return None
    text, _, _ = name[len(_PREFIX) :].rpartition(b"#")
    if not text.endswith(b"|*"):
        return None
    try:
        cookie, pid, addresses = text[:-2].decode().split(":", 2)
        return int(cookie, 16), int(pid), from_text(addresses)
    except (ValueError, struct.error):
        return None


def decode(name: object) -> tuple[int, int, Address, Address] | None:
    """(cookie, engine's pid, local, peer) of a name made by encode(), None for any other."""
    if not isinstance(name, bytes) or not name.startswith(_PREFIX):
        return None
    try:
        cookie, pid, addresses = name[len(_PREFIX) :].rpartition(b"#")[0].decode().split(":", 2)
        local, peer = addresses.split("|")
        return int(cookie, 16), int(pid), from_text(local), from_text(peer)
    except (ValueError, struct.error):
        return None


def to_text(address: Address) -> str:
    """An address as it stands in a name."""
    host, port, *rest = address
    if not rest:
        return f"{host}:{port}"
    flowinfo, scope = rest
    return f"[{host}]:{port}" + (f"%{scope}" if scope else "") + (f"/{flowinfo}" if flowinfo else "")


def _short(address: Address) -> str:
    """The same without flowinfo, in base 64 behind "=": two IPv6 addresses of full length do not fit as text."""
    host, port, *rest = address
    if not rest:
        return to_text(address)
    packed = _SHORT.pack(socket.inet_pton(socket.AF_INET6, host), port, rest[1])
    return "=" + base64.urlsafe_b64encode(packed if rest[1] else packed[:-_SCOPE_BYTES]).decode().rstrip("=")


def from_text(text: str) -> Address:
    """The address that to_text() or _short() has written. Raises ValueError."""
    if text.startswith("="):
        packed = base64.urlsafe_b64decode(text[1:] + "==")
        packed_host, port, index = _SHORT.unpack(packed if len(packed) == _SHORT.size else packed + bytes(_SCOPE_BYTES))
        return socket.inet_ntop(socket.AF_INET6, packed_host), port, 0, index
    if not text.startswith("["):
        host, _, number = text.rpartition(":")
        return host, int(number)
    host, _, rest = text[1:].partition("]:")
    rest, _, flowinfo = rest.partition("/")
    number, _, scope = rest.partition("%")
    return host, int(number), int(flowinfo or 0), int(scope or 0)

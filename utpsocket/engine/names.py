"""The abstract AF_UNIX names that tell who is at the other end, in any process that holds the fd.

Separate because both sides read them: the engine binds its end of a pair to such a name, and getpeername() on the
user's end then gives it to a fork, an exec'ed child or `ss -x` alike (SOCKETS.md §1). Any thread may call.

A name reads `utp:<cookie>:<engine's pid>:<local>|<peer>#<tag>`, with addresses as host,port[,flowinfo,scope]. A
listening socket's own name has `*` for the peer. Anybody can make such a name; the tag proves that we did (secret.py).
"""

from __future__ import annotations

import base64
from typing import Any, Final

from utpsocket.engine import secret
from utpsocket.engine.native import Socket
from utpsocket.engine.originals import os, socket, struct

_PREFIX: Final = b"\0utp:"
_MAX_BYTES: Final = 107 - 1 - secret.TAG_BYTES  # sun_path has 108
_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred: pid, uid, gid

Address = tuple[str, int] | tuple[str, int, int, int]
"""As the socket module writes AF_INET and AF_INET6 addresses."""


def encode(cookie: int, local: Address, peer: Address, pid: int) -> bytes:
    """The name of a pair's engine end; `pid`: of the engine's process."""
    who = f"{cookie:x}:{pid:x}:"
    name = _PREFIX + f"{who}{_text(local)}|{_text(peer)}".encode()
    if len(name) > _MAX_BYTES:
        name = _PREFIX + f"{who}{_text(_short(local))}|{_text(_short(peer))}".encode()
    return _tagged(name)


def encode_listener(cookie: int, local: Address, pid: int) -> bytes:
    """The name of a user's listening socket; `pid`: of the engine's process."""
    return _tagged(_PREFIX + f"{cookie:x}:{pid:x}:{_text(local)}|*".encode())


def _tagged(name: bytes) -> bytes:
    return name + b"#" + secret.tag(name, os.geteuid())


def maker(sock: Any) -> tuple[int, int]:
    """(process id, effective user id) of whoever connected or listened at the other end of this AF_UNIX connection,
    then; of a listening socket, at this one. unix(7) SO_PEERCRED.
    """
    credentials = Socket.getsockopt(sock, socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    return pid, uid


def is_ours(name: Any, uid: int | None) -> bool:
    """Whether we made a name that decode() or decode_listener() understands.

    uid    of whoever bound it, as the kernel tells; None where it has told already that one of our processes did
    """
    made, _, proof = name.rpartition(b"#")
    return secret.is_known_proof(proof, made) if uid is None else secret.is_proof(proof, made, uid)


def decode_listener(name: object) -> tuple[int, int, Address] | None:
    """(cookie, engine's pid, local) of a name made by encode_listener(), None for any other."""
    if not isinstance(name, bytes) or not name.startswith(_PREFIX):
        return None
    text, _, _ = name[len(_PREFIX) :].rpartition(b"#")
    if not text.endswith(b"|*"):
        return None
    try:
        cookie, pid, addresses = text[:-2].decode().split(":", 2)
        return int(cookie, 16), int(pid, 16), _address(addresses)
    except ValueError:
        return None


def decode(name: object) -> tuple[int, int, Address, Address] | None:
    """(cookie, engine's pid, local, peer) of a name made by encode(), None for any other."""
    if not isinstance(name, bytes) or not name.startswith(_PREFIX):
        return None
    try:
        cookie, pid, addresses = name[len(_PREFIX) :].rpartition(b"#")[0].decode().split(":", 2)
        local, peer = addresses.split("|")
        return int(cookie, 16), int(pid, 16), _address(local), _address(peer)
    except ValueError:
        return None


def _text(address: Address) -> str:
    if len(address) == 4 and not (address[2] or address[3]):
        return f"{address[0]},{address[1]:x},6"
    return ",".join([address[0], *(f"{number:x}" for number in address[1:])])


def _short(address: Address) -> Address:
    """The same with an IPv6 host in base 64 behind "=": two of full length do not fit as text."""
    host, percent, scope = address[0].partition("%")
    packed = base64.urlsafe_b64encode(socket.inet_pton(socket.AF_INET6, host)).decode().rstrip("=")
    return ("=" + packed + percent + scope, *address[1:])


def _address(text: str) -> Address:
    host, port, *rest = text.split(",")
    if host.startswith("="):
        packed, percent, scope = host[1:].partition("%")
        host = socket.inet_ntop(socket.AF_INET6, base64.urlsafe_b64decode(packed + "==")) + percent + scope
    if not rest:
        return host, int(port, 16)
    if rest == ["6"]:
        return host, int(port, 16), 0, 0
    flowinfo, scope = rest
    return host, int(port, 16), int(flowinfo, 16), int(scope, 16)

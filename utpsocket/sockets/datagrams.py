"""UDP sockets at the address of a uTP socket: as TCP and UDP do, both may have one port number.

The two are the halves of one port. The kernel deals each datagram to one of them (engine/kernel/port_selector.py): uTP
goes to the engine's UDP socket, all others to the program's, which stays a UDP socket like any other. What is done here
is bind(), and to unwrap datagrams that only looked like uTP and that the engine has passed on
(engine/ports/datagram_half.py).

A program asks for it by UTP_SHARE_PORT on the UDP socket. Where a program is patched, which cannot know of that, every
UDP socket is meant.

This module has what UDP sockets need before there is an engine; datagram_pairing.py has the rest. What belongs to a
socket is kept by the object's id, since the standard library's class, where it is patched, has no room for it. Any
thread may call. Sources: docs/sockets.md §3; udp(7), socket(7) SO_REUSEPORT.
"""

from __future__ import annotations

import errno
from _weakref import ref  # a module in C: the one around it takes longer to load
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final

from utpsocket import options
from utpsocket.engine.interpreter.native import Socket, StdlibSocket
from utpsocket.engine.interpreter.originals import os, struct
from utpsocket.engine.interpreter.originals import socket as stdlib

if TYPE_CHECKING:
    from utpsocket.engine.interpreter.arguments import (
        GivenAddress,
        Named,
        OptionValue,
        Positional,
        WriteableBuffer,
    )
    from utpsocket.protocol import Address

_FAMILIES: Final = (stdlib.AF_INET, stdlib.AF_INET6)
_PROTOCOLS: Final = (0, stdlib.IPPROTO_UDP)
_TYPE_MASK: Final = 0xF
# linux/sock_diag.h: nine integers (SK_MEMINFO_VARS), of which the last counts what found no room.
_SO_MEMINFO: Final = 55
_MEMINFO: Final = struct.Struct("=9I")
_TOKEN_BYTES: Final = 16
_MAX_NAME_BYTES: Final = 28  # struct sockaddr_in6
# Before the datagram in an envelope: the token, the length of the sender's address, the address.
_ENVELOPE_BYTES: Final = _TOKEN_BYTES + 1 + _MAX_NAME_BYTES
_NAME_V4: Final = struct.Struct(">2xH4s")
_NAME_V6: Final = struct.Struct(">2xHI16s")
_SCOPE: Final = struct.Struct("=I")
_SCOPE_AT: Final = 24

BindBeside = Callable[[StdlibSocket, "GivenAddress", "DatagramSocket"], bool]


class DatagramSocket:
    """What is known of a UDP socket of the program's.

    reference   to the socket object
    shares      UTP_SHARE_PORT as the program has set it; None: it has not
    token       begins what the engine passes on; empty while the socket is no half of a port
    pid         of the process that has made it one
    key         of the other half, in the engine
    """

    __slots__ = ("key", "pid", "reference", "shares", "token")

    def __init__(self, sock: StdlibSocket) -> None:
        self.reference = ref(sock, partial(_forget, id(sock)))
        self.shares: bool | None = None
        self.token = b""
        self.pid = self.key = 0

    def open_socket(self) -> StdlibSocket | None:
        """The socket; None where it is closed."""
        sock = self.reference()
        return sock if sock is not None and sock.fileno() >= 0 else None


known: Final[dict[int, DatagramSocket]] = {}
"""By the id of the socket object: those that are bound and may be halves, or have set UTP_SHARE_PORT."""
halves: Final[dict[int, DatagramSocket]] = {}
"""Those of `known` that are halves, or were once. Empty where there are none, so that asking costs other sockets next
to nothing."""


def _forget(key: int, reference: ref[StdlibSocket]) -> None:
    for table in (known, halves):
        found = table.get(key)
        if found is not None and found.reference is reference:
            table.pop(key, None)


def _entry(sock: StdlibSocket) -> DatagramSocket:
    return known.get(id(sock)) or known.setdefault(id(sock), DatagramSocket(sock))


def is_datagram(sock: Socket) -> bool:
    """Whether it is a UDP socket."""
    kind: int = Socket.type.__get__(sock)
    return (
        kind & _TYPE_MASK == stdlib.SOCK_DGRAM
        and Socket.family.__get__(sock) in _FAMILIES
        and Socket.proto.__get__(sock) in _PROTOCOLS
    )


def bind(sock: StdlibSocket, address: GivenAddress, *, is_patched: bool, bind_beside: BindBeside | None) -> None:
    """bind() of a socket that is not uTP's. Raises OSError.

    is_patched    it is a program's that does not know of UTP_SHARE_PORT
    bind_beside   as in datagram_pairing.py; None: there can be no uTP socket yet
    """
    found = known.get(id(sock))
    shares = is_patched if found is None or found.shares is None else found.shares
    if not shares or not is_datagram(sock):
        Socket.bind(sock, address)
        return
    entry = _entry(sock)
    try:
        Socket.bind(sock, address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or bind_beside is None or not bind_beside(sock, address, entry):
            raise


def bound(local: Address) -> Iterator[tuple[StdlibSocket, DatagramSocket]]:
    """The sockets of this process that may be a half of the port of this address, or are."""
    for entry in list(known.values()):
        sock = entry.open_socket()
        if sock is not None and Socket.getsockname(sock)[:2] == local[:2] and entry.shares is not False:
            yield sock, entry


def become_half(sock: StdlibSocket, entry: DatagramSocket, token: bytes, key: int) -> None:
    """The engine passes on what begins with this token."""
    entry.token, entry.pid, entry.key = token, os.getpid(), key
    halves[id(sock)] = entry


def new_token() -> bytes:
    """A token: the zero is no first byte of uTP's, the rest no other process can guess."""
    return b"\0" + os.urandom(_TOKEN_BYTES - 1)


def copy(sock: StdlibSocket, made: StdlibSocket) -> None:
    """dup() of a UDP socket: the duplicate is a half as well."""
    entry = halves.get(id(sock))
    if entry is not None:
        become_half(made, _entry(made), entry.token, entry.key)


# ── options ──


def set_option(sock: StdlibSocket, name: int, value: OptionValue) -> None:
    """setsockopt() of the level SOL_UTP. Raises OSError."""
    if name != options.UTP_SHARE_PORT:
        raise _error(errno.ENOPROTOOPT)
    if not isinstance(value, int):
        raise _error(errno.EINVAL)
    entry = _entry(sock)
    if bool(value) != bool(entry.shares) and Socket.getsockname(sock)[1]:
        raise OSError(errno.EINVAL, "UTP_SHARE_PORT is set before bind()")
    entry.shares = bool(value)


def get_option(sock: StdlibSocket, name: int) -> int:
    """getsockopt() of the level SOL_UTP. Raises OSError."""
    if name == options.UTP_DROPS:
        return int(_MEMINFO.unpack(Socket.getsockopt(sock, stdlib.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))[-1])
    if name != options.UTP_SHARE_PORT:
        raise _error(errno.ENOPROTOOPT)
    entry = known.get(id(sock))
    return int(entry is not None and bool(entry.shares))


def check_connect(sock: StdlibSocket) -> None:
    """Refuse connect() of a half: connected to a peer, the kernel would give it that peer's uTP as well."""
    if id(sock) in halves:
        raise OSError(errno.EOPNOTSUPP, "a UDP socket at the address of a uTP socket cannot be connected")


# ── receiving: as the C class's methods of the same names, of a half ──


def _unwrapped(entry: DatagramSocket, data: bytes, address: Address) -> tuple[bytes, Address]:
    if not data.startswith(entry.token):
        return data, address
    start = _TOKEN_BYTES + 1 + data[_TOKEN_BYTES]
    name = data[_TOKEN_BYTES + 1 : start]
    if len(name) == _MAX_NAME_BYTES:
        port, flowinfo, host = _NAME_V6.unpack_from(name)
        scope = _SCOPE.unpack_from(name, _SCOPE_AT)[0]
        text = stdlib.inet_ntop(stdlib.AF_INET6, host)
        return data[start:], (text, port, flowinfo, scope)
    port, host = _NAME_V4.unpack_from(name)
    return data[start:], (stdlib.inet_ntop(stdlib.AF_INET, host), port)


def recvfrom(sock: Socket, entry: DatagramSocket, args: Positional, kwargs: Named) -> tuple[bytes, Address]:
    """recvfrom(), and recv(), with its arguments as the program has written them."""
    return _recvfrom(sock, entry, *args, **kwargs)


def _recvfrom(sock: Socket, entry: DatagramSocket, bufsize: int, flags: int = 0) -> tuple[bytes, Address]:
    data, address = _unwrapped(entry, *Socket.recvfrom(sock, _with_envelope(bufsize), flags))
    return data[:bufsize], address


def recvfrom_into(sock: Socket, entry: DatagramSocket, args: Positional, kwargs: Named) -> tuple[int, Address]:
    """recvfrom_into(), and recv_into()."""
    buffer, nbytes, flags = _into(*args, **kwargs)
    with memoryview(buffer).cast("B") as view:
        if view.readonly or not 0 <= nbytes <= len(view):
            return Socket.recvfrom_into(sock, *args, **kwargs)  # raises with CPython's wording
        data, address = _recvfrom(sock, entry, nbytes or len(view), flags)
        view[: len(data)] = data
    return len(data), address


def _into(buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> tuple[WriteableBuffer, int, int]:
    return buffer, nbytes, flags


def recvmsg(
    sock: Socket, entry: DatagramSocket, args: Positional, kwargs: Named
) -> tuple[bytes, list[tuple[int, int, bytes]], int, Address]:
    """recvmsg()."""
    return _recvmsg(sock, entry, *args, **kwargs)


def _recvmsg(
    sock: Socket, entry: DatagramSocket, bufsize: int, ancbufsize: int = 0, flags: int = 0
) -> tuple[bytes, list[tuple[int, int, bytes]], int, Address]:
    received, ancillary, message_flags, came_from = Socket.recvmsg(sock, _with_envelope(bufsize), ancbufsize, flags)
    data, address = _unwrapped(entry, received, came_from)
    if len(data) > bufsize:
        message_flags |= stdlib.MSG_TRUNC
    return data[:bufsize], ancillary, message_flags, address


def recvmsg_into(
    sock: Socket, entry: DatagramSocket, args: Positional, kwargs: Named
) -> tuple[int, list[tuple[int, int, bytes]], int, Address]:
    """recvmsg_into()."""
    return _recvmsg_into(sock, entry, *args, **kwargs)


def _recvmsg_into(
    sock: Socket, entry: DatagramSocket, buffers: Iterable[WriteableBuffer], ancbufsize: int = 0, flags: int = 0
) -> tuple[int, list[tuple[int, int, bytes]], int, Address]:
    views = [memoryview(buffer).cast("B") for buffer in buffers]
    data, ancillary, message_flags, address = _recvmsg(sock, entry, sum(map(len, views)), ancbufsize, flags)
    count = 0
    for view in views:
        part = data[count : count + len(view)]
        view[: len(part)] = part
        count += len(part)
    return count, ancillary, message_flags, address


def _with_envelope(bufsize: int) -> int:
    return bufsize + _ENVELOPE_BYTES if bufsize >= 0 else bufsize  # which the C class refuses


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))

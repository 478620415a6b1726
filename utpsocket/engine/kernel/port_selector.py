"""A classic BPF program by which the kernel deals the datagrams of one address to two UDP sockets: the engine's, which
has uTP, and the program's, which has all others.

Both sockets are of one group of SO_REUSEPORT. The program returns the index of a member in it. The one that was bound
first has index 0, the one after it 1. Of a group with one member left that one gets everything, whatever the program
returns. It sees the datagram from its first byte after the UDP header. This is uTP:

* of at least 20 bytes, a type and version of uTP in the first one (BEP 29);
* and no STUN: its answers begin with 1 as packets with data do, but have the magic cookie at byte 4, where uTP has a
  timestamp, and a second byte that is not 0 (RFC 8489 §5).

Only lookups for a datagram run the program. The kernel finds the socket for an ICMP error, and whether a network
interface may merge datagrams (GRO), by a hash of the addresses.

Any thread may call. Sources: socket(7) SO_ATTACH_REUSEPORT_CBPF; Linux net/core/sock_reuseport.c
(reuseport_select_sock, reuseport_add_sock, reuseport_detach_sock), net/ipv4/udp.c (udp_reuseport_add_sock).
"""

from __future__ import annotations

import errno
from typing import Final

from utpsocket.engine.interpreter.native import Socket
from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import reraise_handler_error
from utpsocket.engine.kernel import bpf
from utpsocket.engine.kernel.bpf import (
    IF_EQUAL,
    IF_GREATER_EQUAL,
    LOAD_BYTE,
    LOAD_LENGTH,
    LOAD_WORD,
    RETURN,
    Instruction,
)
from utpsocket.protocol.packet import HEADER_BYTES, VERSION, PacketType

REUSEPORT: Final = getattr(stdlib, "SO_REUSEPORT", 15)
_SO_ATTACH_REUSEPORT_CBPF: Final = 51  # asm-generic/socket.h
_SO_BINDTODEVICE: Final = 25
_DEVICE_NAME_BYTES: Final = 16
_STUN_COOKIE: Final = 0x2112A442
_COOKIE_AT: Final = 4
_DATA: Final = PacketType.DATA << 4 | VERSION
_OTHERS: Final = tuple(
    type << 4 | VERSION for type in (PacketType.FIN, PacketType.STATE, PacketType.RESET, PacketType.SYN)
)

Traits = tuple[int, int, str]
"""Address family, IPV6_V6ONLY, and the interface of SO_BINDTODEVICE."""


def traits(sock: Socket, host: object) -> Traits:
    """What two sockets must have in common to be of one group.

    host   the address that it is, or will be, bound to; bind() to a single one sets IPV6_V6ONLY

    Raises OSError.
    """
    family: int = Socket.family.__get__(sock)
    v6_only = sock.getsockopt(stdlib.IPPROTO_IPV6, stdlib.IPV6_V6ONLY) if host == "::" else 1
    device = sock.getsockopt(stdlib.SOL_SOCKET, _SO_BINDTODEVICE, _DEVICE_NAME_BYTES)
    return family, v6_only, device.rstrip(b"\0").decode(errors="replace")


def let_join(sock: Socket, is_allowed: bool) -> None:
    """Set or clear SO_REUSEPORT: whether a socket of the same user may be bound to this one's address, or this one to
    that of another. Raises OSError.
    """
    sock.setsockopt(stdlib.SOL_SOCKET, REUSEPORT, is_allowed)


def bind_beside(sock: Socket, address: object) -> None:
    """Bind a socket to the address of one that it may join. It leaves SO_REUSEPORT cleared. Raises OSError."""
    let_join(sock, True)
    try:
        sock.bind(address)  # type: ignore[arg-type]  # the program's, which the C class checks
    finally:
        let_join(sock, False)


def attach(sock: Socket, *, utp_index: int) -> None:
    """Attach the program to the group of two that this socket is of. Raises OSError.

    utp_index   0 if the engine's socket was bound first, else 1
    """
    try:
        bpf.attach(sock, _SO_ATTACH_REUSEPORT_CBPF, program(utp_index=utp_index))
    except OSError as error:
        reraise_handler_error(error)
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)) from error


def program(*, utp_index: int) -> list[Instruction]:
    """The program's instructions."""
    utp, other = (RETURN, 0, 0, utp_index), (RETURN, 0, 0, 1 - utp_index)
    count = len(_OTHERS)
    return [
        (LOAD_LENGTH, 0, 0, 0),
        (IF_GREATER_EQUAL, 1, 0, HEADER_BYTES),
        other,
        (LOAD_BYTE, 0, 0, 0),
        *((IF_EQUAL, count - index + 1, 0, first) for index, first in enumerate(_OTHERS)),
        (IF_EQUAL, 2, 0, _DATA),
        other,
        utp,
        (LOAD_WORD, 0, 0, _COOKIE_AT),
        (IF_EQUAL, 1, 0, _STUN_COOKIE),
        utp,
        (LOAD_BYTE, 0, 0, 1),
        (IF_EQUAL, 0, 1, 0),
        utp,
        other,
    ]

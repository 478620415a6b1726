"""A SYN that is in a port's receive buffer when the port is closed is refused at once, as one that comes a moment
later.

If a UDP socket is closed with datagrams unread, they are gone without an answer: the kernel sent no ICMP error for
them, as the socket was there. Their senders would repeat their SYN after a second. So the socket is first connected to
itself, which keeps further datagrams out of it, and then each SYN in it is answered by a RESET.

Only the engine's thread calls; where a caller closes a port by itself, nothing is unread (Loop.free_address()).
Sources: udp(7), connect(2).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from utpsocket.engine.interpreter.native import unread_bytes
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.kernel.udp import ANCILLARY_BYTES
from utpsocket.engine.ports import overlapping_ports
from utpsocket.protocol import Run
from utpsocket.protocol.packet import SYN, decode

if TYPE_CHECKING:
    from utpsocket.engine.interpreter.native import Socket
    from utpsocket.engine.ports.endpoint import Endpoint
    from utpsocket.protocol import Address

# Datagrams that are looked at. By feel: with more it is a flood, and the rest of the senders repeat their SYN.
_MAX_DATAGRAMS: Final = 1_000
_MERGED_BYTES: Final = 65_535  # of one datagram, or of several that UDP_GRO has made one of
_LOOPBACK_OF_WILDCARD: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def close_port(endpoint: Endpoint) -> None:
    """Close the port's socket; SYNs in its buffer are answered by RESETs first."""
    # A private port gets no SYNs, and a port whose address was freed has an idle socket.
    if not (endpoint.is_private or endpoint.is_address_freed) and not _is_left_to_others(endpoint):
        _refuse(endpoint)
    endpoint.port.close()


def _is_left_to_others(endpoint: Endpoint) -> bool:
    """Whether other processes have the port as well: one of them answers a SYN that is repeated."""
    sockets = endpoint.reuseport_sockets
    return sockets is not None and not (unread_bytes(endpoint.port.fd) and sockets.is_only_socket())


def _refuse(endpoint: Endpoint) -> None:
    sock, port = endpoint.port.sock, endpoint.port
    _stop_receiving(sock, port.local)
    for _ in range(_MAX_DATAGRAMS):
        try:
            data, ancillary, _, addr = sock.recvmsg(_MERGED_BYTES, ANCILLARY_BYTES, stdlib.MSG_DONTWAIT)
        except OSError as error:
            if error.errno in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH):
                continue  # an ICMP error about an earlier datagram of ours
            return
        stride, local = port.parse_ancillary(ancillary, len(data))
        for start in range(0, len(data), max(1, stride)):
            datagram = memoryview(data)[start : start + stride]
            packet = decode(datagram)
            if packet is None or packet.type != SYN:
                continue
            run = Run(datagram, len(datagram), addr, local)
            if overlapping_ports.forward_datagram(endpoint, packet, run, now=endpoint.loop.now):
                continue
            reset = endpoint.resets.to_stray(addr, packet, now=endpoint.loop.now)
            if reset is None:
                return
            try:
                sock.sendmsg([reset.data], [] if local is None else port.source(local), 0, addr)
            except OSError:
                pass  # its sender repeats the SYN


def _stop_receiving(sock: Socket, local: Address) -> None:
    """Connect the socket to itself: the kernel gives it nothing more from others, and answers them by ICMP."""
    try:
        sock.connect((_LOOPBACK_OF_WILDCARD.get(local[0], local[0]), *local[1:]))
    except OSError:
        pass  # then some may come into it yet

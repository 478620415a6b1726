"""Who asks to come in while the port closes is refused at once, as the kernel refuses whoever comes a moment later.

A UDP socket takes with it what it has received and nobody has read: no ICMP error, for the socket was there, and no
RESET. A SYN among that would be asked again after a second. So the kernel is told first to put nothing more into the
socket, and then what lies there is answered.

Only the engine's thread calls; where a caller closes a port by itself, nothing lies there (Loop.free_address()).
Sources: udp(7), connect(2).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from utpsocket.engine.interpreter.native import unread_bytes
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.kernel.udp import ANCILLARY_BYTES
from utpsocket.engine.ports import overlapping_ports
from utpsocket.protocol import Run
from utpsocket.protocol.packet import SYN, decode

if TYPE_CHECKING:
    from utpsocket.engine.ports.endpoint import Endpoint

_MOST: Final = 1_000  # as many datagrams; then it is a flood, and the rest may ask again
_MERGED_BYTES: Final = 65_535  # of one datagram, or of several that UDP_GRO has made one of
_LOOPBACK_OF_WILDCARD: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def close_port(endpoint: Endpoint) -> None:
    """Give the port back to the kernel, but first refuse whoever it has heard and nobody has read."""
    # To a private port nobody comes in, and under one whose address is free again is an idle socket.
    if not (endpoint.is_private or endpoint.is_address_freed) and not _is_left_to_others(endpoint):
        _refuse(endpoint)
    endpoint.port.close()


def _is_left_to_others(endpoint: Endpoint) -> bool:
    """Whether other processes have the port as well: whoever asks again is served by one of them."""
    peers = endpoint.peers
    return peers is not None and not (unread_bytes(endpoint.port.fd) and peers.is_only_socket())


def _refuse(endpoint: Endpoint) -> None:
    sock, port = endpoint.port.sock, endpoint.port
    _stop_receiving(sock, port.local)
    for _ in range(_MOST):
        try:
            data, ancillary, _, addr = sock.recvmsg(_MERGED_BYTES, ANCILLARY_BYTES, stdlib.MSG_DONTWAIT)
        except OSError as error:
            if error.errno in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH):
                continue  # met by an earlier datagram of ours
            return
        stride, local = port.parse_ancillary(ancillary, len(data))
        for start in range(0, len(data), max(1, stride)):
            datagram = memoryview(data)[start : start + stride]
            packet = decode(datagram)
            if packet is None or packet.type != SYN:
                continue
            run = Run(datagram, len(datagram), addr, local)
            if overlapping_ports.hand_on(endpoint, packet, run, now=endpoint.loop.now):
                continue
            reset = endpoint.resets.to_stray(addr, packet, now=endpoint.loop.now)
            if reset is None:
                return
            try:
                sock.sendmsg([reset.data], [] if local is None else port.source(local), 0, addr)
            except OSError:
                pass  # it may ask again


def _stop_receiving(sock: Any, local: Any) -> None:
    """Connected to itself, it gets nothing from anybody else any more, and the kernel tells them so."""
    try:
        sock.connect((_LOOPBACK_OF_WILDCARD.get(local[0], local[0]), *local[1:]))
    except OSError:
        pass  # then some may come into it yet

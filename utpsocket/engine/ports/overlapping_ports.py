"""Ports at the same number of which one is bound to all addresses of the machine and the other to one of them.

Over TCP a server with SO_REUSEADDR may listen at ("", 80) as soon as one at ("127.0.0.1", 80) has closed its listening
socket, though connections accepted there go on; and the other way round. Sockets that do not listen may be bound to
both, and one of them may listen then. Here connections and bound sockets keep the UDP socket of their port, and the
kernel lets another one overlap it only if both have SO_REUSEADDR set in the moment of bind(). They have it set for that
moment only: longer, and other programs could take our datagrams.

From then on the kernel delivers what is sent to the single address to the port that is bound to it, whichever of the
two the packet is for. So a packet that is not for a port may be for the one it overlaps, and is forwarded. Each sends
by its own socket.

is_unneeded(), allow_overlap(), bind_over() and join(): any thread. The rest: the engine's only. Sources: Linux
net/ipv4/udp.c (udp_lib_get_port, compute_score), net/ipv4/inet_connection_sock.c (inet_csk_bind_conflict).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import suppress_errnos
from utpsocket.protocol import Address, Run
from utpsocket.protocol.packet import RESET, SYN, Packet

if TYPE_CHECKING:
    from utpsocket.engine.interpreter.arguments import GivenAddress
    from utpsocket.engine.interpreter.native import Socket
    from utpsocket.engine.kernel.udp import Port
    from utpsocket.engine.ports.listener import Listener
    from utpsocket.engine.reactor import Reactor

    class OverlappingPort(Protocol):
        """What of a port (endpoint.py) is looked at here."""

        port: Port
        overlapping: tuple[OverlappingPort, ...]
        listener: Listener | None
        is_closed: bool
        reuse_address: bool

        @property
        def loop(self) -> Reactor: ...

        @property
        def bridges(self) -> Mapping[tuple[Address, int], object]: ...

        @property
        def holders(self) -> Mapping[int, object]: ...

        @property
        def reuseport_sockets(self) -> object | None: ...

        @property
        def time_wait_records(self) -> Mapping[tuple[Address, int], object]: ...

        def is_cached(self, run: Run, connection_id: int) -> bool:
            """Whether a SYN that is answered and no connection yet has this id."""

        def handle_run(self, run: Run, *, now: int) -> None:
            """Handle packets of one sender: of one connection, or strays."""

        def handle_datagram(self, run: Run, packet: Packet | None = None, *, now: int) -> None:
            """One datagram; `packet`: what decode() made of it."""


_P = TypeVar("_P", bound="OverlappingPort")
WILDCARDS: Final = ("0.0.0.0", "::")


def at(bound: Mapping[int, Mapping[_P, None]], local: Address, namespace: int) -> list[_P]:
    """The ports that a socket at this address would overlap; not those at the very address."""
    return [endpoint for endpoint in list(bound.get(local[1], ())) if _overlaps(endpoint, local, namespace)]


def _overlaps(endpoint: OverlappingPort, local: Address, namespace: int) -> bool:
    port = endpoint.port
    is_other = port.local[0] != local[0] and (port.local[0] in WILDCARDS or local[0] in WILDCARDS)
    return is_other and len(port.local) == len(local) and port.namespace == namespace


def may_be_overlapped(endpoint: OverlappingPort) -> bool:
    """Whether a port may be overlapped: none listens there, and its sockets had set SO_REUSEADDR."""
    return endpoint.reuse_address and endpoint.reuseport_sockets is None and not listens(endpoint)


def listens(endpoint: OverlappingPort) -> bool:
    """Whether it accepts connections."""
    return endpoint.listener is not None and not endpoint.listener.has_stopped


def is_unneeded(endpoint: OverlappingPort) -> bool:
    """Whether the port is unused, so that the engine is about to close it."""
    return not (endpoint.holders or endpoint.bridges or listens(endpoint))


def allow_overlap(endpoint: OverlappingPort, is_open: bool) -> None:
    """Set or clear SO_REUSEADDR: whether the kernel lets another socket overlap this one's address."""
    with suppress_errnos():  # it may be closed by now, and then is in the way no more
        endpoint.port.sock.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_REUSEADDR, is_open)


def bind_over(udp_sock: Socket, address: GivenAddress) -> None:
    """Bind a UDP socket to an address that overlaps ports, after allow_overlap() of each. Raises OSError."""
    udp_sock.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_REUSEADDR, True)
    udp_sock.bind(address)
    udp_sock.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_REUSEADDR, False)


def join(bound: Mapping[int, Mapping[_P, None]], endpoint: OverlappingPort) -> None:
    """A port was bound to an address that overlaps others: forward packets between them from now on."""
    for other in at(bound, endpoint.port.local, endpoint.port.namespace):
        if other is not endpoint and other not in endpoint.overlapping:
            endpoint.overlapping += (other,)
            other.overlapping += (endpoint,)


def forward_run(endpoint: OverlappingPort, run: Run, *, now: int) -> bool:
    """Forward a run to the overlapping port whose connection it is for. Returns False if there is none."""
    data = run.data
    key = run.addr, data[2] << 8 | data[3]
    for other in endpoint.overlapping:
        if key in other.bridges and _covers(other, run):
            other.handle_run(_readdressed(other, endpoint, run), now=now)
            endpoint.loop.owner = endpoint
            return True
    return False


def forward_datagram(endpoint: OverlappingPort, packet: Packet, run: Run, *, now: int) -> bool:
    """Forward a datagram to the overlapping port that it is for. Returns False if it is this port's."""
    if _is_for(endpoint, packet, run):
        return False
    for other in endpoint.overlapping:
        if _covers(other, run) and _is_for(other, packet, run):
            other.handle_datagram(_readdressed(other, endpoint, run), packet, now=now)
            endpoint.loop.owner = endpoint
            return True
    return False


def _is_for(endpoint: OverlappingPort, packet: Packet, run: Run) -> bool:
    """Whether this is for a connection of this port's, or may begin one."""
    addr, id, bridges = run.addr, packet.connection_id, endpoint.bridges
    if packet.type == SYN:
        return (addr, id + 1 & 0xFFFF) in bridges or listens(endpoint)
    around = (id, id - 1 & 0xFFFF, id + 1 & 0xFFFF) if packet.type == RESET else (id,)
    if any((addr, near) in bridges for near in around) or (addr, id) in endpoint.time_wait_records:
        return True
    return endpoint.is_cached(run, id - 1 & 0xFFFF)


def _covers(other: OverlappingPort, run: Run) -> bool:
    """Whether what came to a port may be for this overlapping one, by the address that it was sent to."""
    return not other.is_closed and (other.port.is_wildcard or run.local == _address_of(other))


def _address_of(endpoint: OverlappingPort) -> str:
    """The address of a port in the form of Run.local."""
    host, *rest = endpoint.port.local
    scope = rest[2] if len(rest) > 2 else 0
    return f"{host}%{scope}" if scope else str(host)


def _readdressed(other: OverlappingPort, endpoint: OverlappingPort, run: Run) -> Run:
    """The run as the other port would have received it: with the local address if that port is bound to a wildcard."""
    local = _address_of(endpoint) if other.port.is_wildcard else None
    handed = Run(run.data, run.stride, run.addr, local, run.datagram_bytes)
    handed.payload_views = run.payload_views
    return handed

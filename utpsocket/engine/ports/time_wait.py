"""Connections that have ended and wait in case the peer repeats its FIN since our last ack was lost (TIME_WAIT).

Such a wait holds an fd where the port is private, and otherwise a port number that the program has closed and that TCP
would give to a socket with SO_REUSEADDR, in whatever process. So only so many private ports wait at a time; and where
the other side of the connection is this engine's too and has all its acks, neither side waits.

Only the engine's thread calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from utpsocket.engine.ports.connect_gate import acceptor_of
from utpsocket.protocol.states import CLOSED, TIME_WAIT

if TYPE_CHECKING:
    from utpsocket.engine.channels.utp import Bridge, BridgePort
    from utpsocket.engine.channels.utp import Engine as BridgesEngine
    from utpsocket.engine.ports.bound_ports import BoundPorts

    class Engine(BridgesEngine, Protocol):
        """With the ports that users have bound."""

        @property
        def bound(self) -> BoundPorts: ...


_MAX_PRIVATE_PORTS: Final = 256  # by feel: a process may usually have 1,024 fds


class TimeWaits:
    """Of one engine."""

    __slots__ = ("_loop", "_private")

    def __init__(self, loop: Engine) -> None:
        self._loop = loop
        self._private: dict[BridgePort, None] = {}  # private ports that wait for a late FIN only, the oldest first

    def on_time_wait(self, bridge: Bridge) -> None:
        """This connection is in TIME_WAIT: end the wait where it is not needed, or where too many ports wait. To be
        called whenever something has happened to the connection; idempotent.
        """
        peer = bridge.identity.peer
        if bridge.connection.is_initiator and bridge.other_side is None and peer and peer[1] in self._loop.bound:
            acceptor = acceptor_of(bridge, self._loop.bound)
            if acceptor is not None:
                bridge.other_side, acceptor.other_side = acceptor, bridge
        other = bridge.other_side
        if other is not None and other.connection.state in (TIME_WAIT, CLOSED):
            self._end(bridge)
            self._end(other)
        if bridge.engine_sock is None:
            if bridge.grant_queue is not None:
                bridge.endpoint.leave_grants(bridge)
            if bridge.endpoint.is_private:
                self._limit_private_ports(bridge.endpoint)

    def _end(self, bridge: Bridge) -> None:
        """The other side needs no ack any more: end the wait, once the program has closed its fd."""
        if bridge.engine_sock is None and bridge.connection.state is TIME_WAIT:
            bridge.other_side = None
            bridge.connection.close_silently()
            self._loop.mark_dirty(bridge)

    def _limit_private_ports(self, endpoint: BridgePort) -> None:
        """Note a private port that waits; each costs an fd, so the oldest may have to go."""
        self._private[endpoint] = None
        if len(self._private) > _MAX_PRIVATE_PORTS:
            oldest = next(iter(self._private))
            del self._private[oldest]
            oldest.end_time_waits()

    def discard(self, endpoint: BridgePort) -> None:
        """The port is closed. Idempotent."""
        self._private.pop(endpoint, None)

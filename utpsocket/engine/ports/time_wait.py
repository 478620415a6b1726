"""Connections that are over and wait in case the peer repeats its FIN, because our last ack was lost (TIME_WAIT).

Separate because of what such a wait holds: a private port's fd, or a port that the program has closed and that TCP
would give to whoever says SO_REUSEADDR, in whatever process. So private ports wait only so many at a time; and where
the other side is this engine's as well and has all the acks that it needs, neither waits.

Only the engine's thread calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from utpsocket.engine.ports.connect_gate import acceptor_of
from utpsocket.protocol.states import CLOSED, TIME_WAIT

if TYPE_CHECKING:
    from utpsocket.engine.channels.utp import Bridge, BridgePort
    from utpsocket.engine.ports.bound_ports import BoundPorts
    from utpsocket.engine.reactor import Reactor

_MOST_PRIVATE_PORTS: Final = 256


class TimeWaits:
    """Of one engine."""

    __slots__ = ("_bound", "_loop", "_private")

    def __init__(self, bound: BoundPorts, loop: Reactor) -> None:
        self._bound = bound
        self._loop = loop
        self._private: dict[BridgePort, None] = {}  # of no use but for a late FIN, oldest first

    def settle(self, bridge: Bridge) -> None:
        """This connection is in TIME_WAIT. As often as anything happens to it."""
        if bridge.connection.is_initiator and bridge.other_side is None:
            acceptor = acceptor_of(bridge, self._bound)
            if acceptor is not None:
                bridge.other_side, acceptor.other_side = acceptor, bridge
        other = bridge.other_side
        if other is not None and other.connection.state in (TIME_WAIT, CLOSED):
            self._end(bridge)
            self._end(other)
        if bridge.engine_sock is None:
            bridge.endpoint.leave_grants(bridge)
            if bridge.endpoint.is_private:
                self._limit_private_ports(bridge.endpoint)

    def _end(self, bridge: Bridge) -> None:
        """The other side has all the acks that it needs: wait no more, once the program has closed this one."""
        if bridge.engine_sock is None and bridge.connection.state is TIME_WAIT:
            bridge.other_side = None
            bridge.connection.close_silently()
            self._loop.mark_dirty(bridge)

    def _limit_private_ports(self, endpoint: BridgePort) -> None:
        """Each costs an fd."""
        self._private[endpoint] = None
        if len(self._private) > _MOST_PRIVATE_PORTS:
            oldest = next(iter(self._private))
            del self._private[oldest]
            oldest.end_time_waits()

    def discard(self, endpoint: BridgePort) -> None:
        """The port is closed. Idempotent."""
        self._private.pop(endpoint, None)

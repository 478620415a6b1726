"""Connects that are complete and not said yet.

Separate because it joins two connections that know nothing of each other: over TCP's loopback a connection can be
accepted before connect() returns. So a connect comes to light at the end of its turn, or, if its acceptor is in this
process, of the one in which that has heard of it too.

Only the engine's thread calls.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from utpsocket.protocol import State

if TYPE_CHECKING:
    from utpsocket.engine.bridge import Bridge
    from utpsocket.engine.listener import Listener
    from utpsocket.engine.loop import Loop

_PATIENCE_US: Final = 2_000  # loopback takes a fraction of it


class Gates:
    """Of one engine.

    held   connects that are complete and not said to be
    """

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held: dict[Bridge, None] = {}

    def hold(self, bridge: Bridge, *, now: int) -> None:
        """This connect is complete. open_due() says so to the user."""
        bridge.gate_until = now + _PATIENCE_US
        self.held[bridge] = None

    def open_due(self, listeners: Iterable[Listener], loop: Loop, *, now: int) -> None:
        """Open every gate whose acceptor, if it is one of these listeners', has its proof, or took too long."""
        for bridge in list(self.held):
            loop.owner = bridge
            if not bridge.is_gone:
                if now < bridge.gate_until and _is_half_known(bridge, listeners):
                    continue
                if not bridge.open_gate():
                    continue
            del self.held[bridge]


def _is_half_known(bridge: Bridge, listeners: Iterable[Listener]) -> bool:
    """Whether the other side of this connection is in this process and has not had its proof yet."""
    connection, local, peer = bridge.connection, bridge.identity.local, bridge.identity.peer
    assert local is not None and peer is not None
    for listener in listeners:
        if listener.endpoint.port.local[1] == peer[1]:
            acceptor = listener.endpoint.bridges.get((local, connection.send_id))
            if acceptor is not None:
                return acceptor.connection.state is State.SYN_RECEIVED
    return False

"""Connects that are complete and not said yet.

Separate because it joins two connections that know nothing of each other. Over TCP's loopback what connect() has made
can be accepted at once, and what accept() gives is connected at the other side too. So where a connect's acceptor is in
this process, both come to light in one step: as the acceptor is handed over to its listener. Nothing hangs on a clock:
an acceptor that has had no proof yet will have it, or end, and any other connect comes to light at the end of its
iteration.

In one step means: without giving the GIL away. Whoever does without (C code, another process that the engine serves)
finds the connect complete first, as TCP's initiator is.

Only the engine's thread calls, may_be_reset() apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from utpsocket.engine.channels.utp import Bridge
from utpsocket.engine.faults import RETRY_US
from utpsocket.engine.kernel.poller import EPOLLERR, EPOLLHUP, EPOLLIN, polls
from utpsocket.protocol import State

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Protocol

    from utpsocket.engine.channels.channel import Channel
    from utpsocket.engine.ports.bound_ports import BoundPorts
    from utpsocket.engine.reactor import Reactor

    class Engine(Protocol):
        """What tells whether a reset may have come. Looked at by any thread."""

        @property
        def channels(self) -> Mapping[int, Channel]: ...
        @property
        def bound(self) -> BoundPorts: ...
        @property
        def owner(self) -> Any: ...


_MAPPED = "::ffff:"


class ConnectGate:
    """Of one engine.

    held       connects that are complete and not said to be
    retry_at   when to ask again for one that the kernel had no memory for, or None
    """

    __slots__ = ("_by_acceptor", "held", "retry_at")

    def __init__(self) -> None:
        self.held: dict[Bridge, None] = {}
        self._by_acceptor: dict[object, Bridge] = {}
        self.retry_at: int | None = None

    def hold(self, bridge: Bridge) -> None:
        """This connect is complete. The hand-over of its acceptor says so to the user, or open_due()."""
        self.held[bridge] = None
        local, peer = bridge.identity.local, bridge.identity.peer
        assert local is not None and peer is not None
        self._by_acceptor[_unmapped(local), bridge.connection.send_id, peer[1]] = bridge

    def initiator_of(self, acceptor: Bridge) -> Bridge | None:
        """The connect that is to come to light with this acceptor's accept()."""
        if not self.held:
            return None
        connection = acceptor.connection
        key = _unmapped(connection.addr), connection.recv_id, acceptor.endpoint.port.local[1]
        return self._by_acceptor.get(key)

    def open_due(self, bound: BoundPorts, loop: Reactor, *, now: int) -> None:
        """Open every gate but those whose acceptor is in this process and has had no proof yet."""
        self.retry_at = None
        self._by_acceptor.clear()
        for bridge in list(self.held):
            loop.owner = bridge
            if not bridge.is_gone:
                if _has_unproven_acceptor(bridge, bound):
                    self.hold(bridge)
                    continue
                if not bridge.open_gate():
                    self.retry_at = now + RETRY_US
                    continue
            del self.held[bridge]


def _unmapped(addr: object) -> object:
    """An address as both sides write it: IPv4's also where one of them is an IPv6 socket."""
    return (addr[0].removeprefix(_MAPPED), addr[1]) if isinstance(addr, tuple) else addr


def acceptor_of(bridge: Bridge, bound: BoundPorts) -> Bridge | None:
    """The other side of this connect, if it is in this process."""
    local, peer = bridge.identity.local, bridge.identity.peer
    if local is None or peer is None:
        return None  # the socket is another connection's by now
    mapped = (_MAPPED + local[0], local[1], 0, 0)
    for endpoint in list(bound.get(peer[1], ())):
        for addr in (local, mapped):
            acceptor = endpoint.bridges.get((addr, bridge.connection.send_id))
            if acceptor is None or acceptor is bridge or acceptor.connection.is_initiator:
                continue
            if endpoint.port.namespace == bridge.endpoint.port.namespace:
                return acceptor
    return None


def may_be_reset(loop: Engine, cookie: int) -> bool:
    """Whether a reset, or an error, may have come for this connection, or may just have been made by this process, that
    its user has not been told of. Any thread.

    Where the other side is in this process and still open, nothing but it could have made one. Where it is not,
    whatever waits in the port may be one, also behind data. An acceptor's initiator cannot be found by its address.
    """
    bridge = loop.channels.get(cookie)
    if not isinstance(bridge, Bridge) or bridge.connection.state is State.CLOSED:
        return True
    endpoint = bridge.endpoint
    if not bridge.connection.is_initiator or endpoint.peers is not None:
        return True
    acceptor = acceptor_of(bridge, loop.bound)
    if acceptor is not None:
        engine_sock = acceptor.engine_sock
        return engine_sock is None or acceptor.connection.state is State.CLOSED or polls(engine_sock, EPOLLHUP)
    is_waiting = polls(endpoint.port.sock, EPOLLIN | EPOLLERR)
    owner = loop.owner  # looked at in this order: the thread takes from a port while it works for it
    return is_waiting or owner is endpoint or owner is bridge or loop.channels.get(cookie) is not bridge


def _has_unproven_acceptor(bridge: Bridge, bound: BoundPorts) -> bool:
    """Whether the other side of this connection is in this process and has not had its proof yet."""
    acceptor = acceptor_of(bridge, bound)
    return acceptor is not None and acceptor.connection.state is State.SYN_RECEIVED

"""Connects that are complete, but whose connect() has not returned yet: they wait for the accept() that belongs to
them.

Over TCP's loopback, what connect() has made can be accepted at once, and what accept() returns is connected at the
other side too. So where the acceptor of a connect() is in this process, both become visible in one step, when the
acceptor is handed over to its listener. That does not depend on a time: an acceptor whose initiator is not verified yet
(it has not acked the SYN-ACK) will be verified, or end. Any other connect() becomes visible at the end of the
iteration.

In one step means without a release of the GIL in between. A program that runs without the GIL (C code, another process
that the engine serves) sees the connect complete first, as with TCP.

Only the engine's thread calls, except for may_be_reset().
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from utpsocket.engine.channels.utp import Bridge
from utpsocket.engine.faults import RETRY_US
from utpsocket.engine.kernel.poller import EPOLLERR, EPOLLHUP, EPOLLIN, polls
from utpsocket.protocol import State

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Protocol

    from utpsocket.engine.channels.channel import Channel
    from utpsocket.engine.ports.bound_ports import BoundPorts
    from utpsocket.engine.reactor import Reactor
    from utpsocket.protocol import Address

    class Engine(Protocol):
        """What may_be_reset() reads, on any thread."""

        @property
        def channels(self) -> Mapping[int, Channel]: ...
        @property
        def bound(self) -> BoundPorts: ...
        @property
        def owner(self) -> object: ...


_MAPPED = "::ffff:"


class ConnectGate:
    """Of one engine.

    held       bridges whose connect is complete and not visible yet
    retry_at   µs: when to try open_due() again, as the kernel lacked memory; None: need not be
    """

    __slots__ = ("_by_acceptor", "held", "retry_at")

    def __init__(self) -> None:
        self.held: dict[Bridge, None] = {}
        self._by_acceptor: dict[tuple[Address, int, int], Bridge] = {}
        self.retry_at: int | None = None

    def hold(self, bridge: Bridge) -> None:
        """This connect is complete. It becomes visible by the hand-over of its acceptor (initiator_of()), or by
        open_due() in the same iteration.
        """
        self.held[bridge] = None
        local, peer = bridge.identity.local, bridge.identity.peer
        assert local is not None and peer is not None
        self._by_acceptor[_unmapped(local), bridge.connection.send_id, peer[1]] = bridge

    def initiator_of(self, acceptor: Bridge) -> Bridge | None:
        """The held connect that has to become visible together with this acceptor, if there is one."""
        if not self.held:
            return None
        connection = acceptor.connection
        key = _unmapped(connection.addr), connection.recv_id, acceptor.endpoint.port.local[1]
        return self._by_acceptor.get(key)

    def open_due(self, bound: BoundPorts, loop: Reactor, *, now: int) -> None:
        """Make every held connect visible, but for those whose acceptor is in this process and not verified yet. At the
        end of an iteration, after the hand-overs.
        """
        self.retry_at = None
        self._by_acceptor.clear()
        for bridge in list(self.held):
            loop.owner = bridge
            if not bridge.is_gone:
                if _has_unverified_acceptor(bridge, bound):
                    self.hold(bridge)
                    continue
                if not bridge.open_gate():
                    self.retry_at = now + RETRY_US
                    continue
            del self.held[bridge]


def _unmapped(addr: Address) -> Address:
    """An address in the form that both sides have in common: IPv4 also if one of them is an IPv6 socket."""
    return addr[0].removeprefix(_MAPPED), addr[1]


def acceptor_of(bridge: Bridge, bound: BoundPorts) -> Bridge | None:
    """The other side of a connection that was dialled, if this engine has it too."""
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
    """Whether there may be a reset or an error of this connection that its fd does not show yet. Any thread.

    If the other side is in this process and still open, there is none, since only it could have sent one. Otherwise
    whatever is unread in the port may be one, also behind data. For an accepted connection the answer is always yes:
    its initiator cannot be found by its address.
    """
    bridge = loop.channels.get(cookie)
    if not isinstance(bridge, Bridge) or bridge.connection.state is State.CLOSED:
        return True
    endpoint = bridge.endpoint
    if not bridge.connection.is_initiator or endpoint.reuseport_sockets is not None:
        return True
    acceptor = acceptor_of(bridge, loop.bound)
    if acceptor is not None:
        engine_sock = acceptor.engine_sock
        return engine_sock is None or acceptor.connection.state is State.CLOSED or polls(engine_sock, EPOLLHUP)
    is_waiting = polls(endpoint.port.sock, EPOLLIN | EPOLLERR)
    owner = loop.owner  # looked at in this order: the thread takes from a port while it works for it
    return is_waiting or owner is endpoint or owner is bridge or loop.channels.get(cookie) is not bridge


def _has_unverified_acceptor(bridge: Bridge, bound: BoundPorts) -> bool:
    """Whether the other side is in this process, and its initiator, this one, is not verified yet."""
    peer = bridge.identity.peer
    if peer is None or peer[1] not in bound:
        return False
    acceptor = acceptor_of(bridge, bound)
    return acceptor is not None and acceptor.connection.state is State.SYN_RECEIVED

"""A listening socket: which connections come in, and how accept() gets them.

The user's fd is a real listening AF_UNIX socket. For each incoming connection the engine connects to it from a socket
whose name contains both addresses, so accept() is the kernel's in any process (docs/sockets.md §1). That is the
hand-over.

A connection is handed over when its initiator is verified: by a packet that acks the SYN-ACK. Since libutp sends no
such packet before its first byte, and a server may be the first to send, it is also handed over a moment after its SYN
without being verified; but not if the SYN announces that an ack will follow (handshake.py).

If many are unverified, a flood of SYNs with false addresses is likely. Then a SYN makes no connection, but an entry of
the cache (syncache.py), until its sender is verified; and a connection that has been unverified for a second becomes
such an entry. So false SYNs cannot take the place of true ones. The cost: while many are unverified, an initiator of
libutp's that waits for the server to send first gets nothing until it sends itself, or until its first keepalive after
29 s; both are acks. No program over libutp waits so, as its acceptors cannot send first either. To ask each initiator
would be a second packet to every false address.

    From SYN to accept(). on_syn() → on_handshake_end(), or 30 ms → prepare(): the engine's end of a pair is made →
    hand_over(): it is connected to the user's fd → watch_handed_over(): it is registered with epoll.

Only the engine's thread calls. Sources: docs/protocol.md §3, §4.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from ctypes import get_errno
from errno import EAGAIN
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from utpsocket.engine.channels.utp import Bridge
from utpsocket.engine.faults import NO_ROOM_ERRNOS
from utpsocket.engine.interpreter.native import SOCK_NONBLOCK, Socket, connecting
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.kernel import fd_names, netns
from utpsocket.engine.kernel.high_fds import move_to_high_fd
from utpsocket.engine.ports.accept_queue import AcceptQueue
from utpsocket.engine.ports.retries import Retries
from utpsocket.engine.ports.syncache import SynCache
from utpsocket.engine.user_fds import reset
from utpsocket.engine.user_fds.socket_state import Identity, Role, half_buffer
from utpsocket.protocol import State

if TYPE_CHECKING:
    from utpsocket.engine.channels.utp import ConnectGate as BridgesConnectGate
    from utpsocket.engine.channels.utp import Engine as BridgesEngine
    from utpsocket.engine.kernel.udp import Port
    from utpsocket.engine.ports.accept_queue import Engine as CountsEngine
    from utpsocket.engine.user_fds.open_fds import Rechecks
    from utpsocket.protocol import Address

    class ConnectGate(BridgesConnectGate, Protocol):
        """Connects that are complete and not visible yet (connect_gate.py)."""

        def initiator_of(self, acceptor: Bridge) -> Bridge | None:
            """The connect that becomes visible together with this acceptor's accept()."""

    class Engine(BridgesEngine, CountsEngine, Protocol):
        """What of it hands connections over."""

        rechecks: Rechecks

        @property
        def connect_gate(self) -> ConnectGate: ...

        def forget_listener(self, listener: Listener) -> None:
            """It listens no more."""

    class ListeningPort(Protocol):
        """What of a port (endpoint.py) is used here."""

        port: Port
        key: int
        listener: Listener | None

        @property
        def loop(self) -> Engine: ...

        @property
        def bridges(self) -> Mapping[tuple[Address, int], Bridge]: ...

        @property
        def is_in_other_namespace(self) -> bool: ...

        def close_if_unused(self) -> None:
            """Close it if it is unused."""

        def return_to_cache(self, bridge: Bridge, *, now: int) -> None:
            """Replace the connection by an entry of the cache of SYNs."""

    class TcpHalf(Protocol):
        """What accepts TCP at the same port number (tcp_listener.py)."""

        @property
        def is_waiting(self) -> bool:
            """Whether it waits for room in the kernel's queue of accepts, or for an fd number."""

        def on_room(self) -> None:
            """The kernel's queue of accepts may have room again."""

        def close(self) -> None:
            """It listens no more: what was not accepted is reset."""

        def close_fds(self) -> None:
            """The engine ends, or is a forked child's copy."""

        def detach_fds(self) -> None:
            """Forget the fds without closing them."""


# How long after its SYN an unverified connection is handed over. The ack of the SYN-ACK takes one round trip; a server
# that sends first can wait this long. By feel.
_VERIFICATION_WAIT_US: Final = 30_000
_MAX_FAULTS: Final = 20  # exceptions in the work for a listener, before it ends
MAX_HALF_OPEN: Final = 256  # unverified connections of one listener; beyond, SYNs go to the cache; by feel
_FEW_HALF_OPEN: Final = 64  # beyond, unverified connections are not handed over; by feel
# SYNs go to the cache for so long after there were MAX_HALF_OPEN, and on, while more than _FEW_HALF_OPEN come in that
# time.
_CACHING_US: Final = 1_000_000


_new_engine_sock: Final = partial(Socket, stdlib.AF_UNIX, stdlib.SOCK_STREAM | SOCK_NONBLOCK, 0)


class Listener:
    """One listening socket of the program.

    commands.listen() makes it and puts it on its port. Endpoint calls on_syn(), the loop prepare(), hand_over() and
    watch_handed_over(); close() ends it.
    """

    __slots__ = (
        "_cached_syns",
        "_caching_until",
        "_ack_announced",
        "_faults",
        "_half_open",
        "_unwatched",
        "_prepared",
        "_ready",
        "_retries",
        "_unverified",
        "accept_queue",
        "backlog",
        "cache",
        "endpoint",
        "identity",
        "inode",
        "is_closed",
        "has_stopped",
        "may_be_closed",
        "name",
        "refused_syns",
        "tcp_listener",
    )

    def __init__(self, endpoint: ListeningPort, identity: Identity, name: bytes, backlog: int) -> None:
        self.endpoint = endpoint  # the port that it listens at
        self.identity = identity  # of the listening socket; its settings are passed on to what it accepts
        self.inode = identity.inode  # as it is now: after an attempt that failed the socket has another
        self.name = name  # the abstract AF_UNIX name that the user's fd listens at
        self.backlog = backlog  # as listen() was given it
        self.is_closed = False  # close() was called, or the user's fd is closed
        self.has_stopped = False  # the program listens no more; any thread may set this
        # No Python object here is over the user's socket: its last fd may be closed elsewhere, without an event.
        self.may_be_closed = False
        self.tcp_listener: TcpHalf | None = None  # accepts TCP connections at the same port number

        # Incoming connections, by how far they have come.
        self.cache = SynCache()  # SYNs that are answered, and no connection yet
        self._half_open = 0  # connections that are not verified
        self._unverified: dict[Bridge, None] = {}  # of these, those that will be handed over all the same, oldest first
        self._ack_announced: dict[Bridge, None] = {}  # of these, those whose SYN announces an ack, oldest first
        self._ready: deque[Bridge] = deque()  # to be handed over
        self._prepared: deque[tuple[Bridge, Socket]] = deque()  # with the engine's end of their pair
        self._unwatched: list[Bridge] = []  # handed over, and not registered with epoll yet
        self.accept_queue = AcceptQueue(endpoint.loop, identity, self._prepared)  # what waits for accept()
        self._retries = Retries()  # when to hand over again, where accept()'s queue is full or there is no fd

        # See register_syns().
        self._caching_until = -_CACHING_US  # µs
        self._cached_syns = 0  # since _caching_until was set

        self.refused_syns = 0  # a figure: the backlog was full
        self._faults = 0  # exceptions so far

    @property
    def is_gone(self) -> bool:
        """Whether no process has the user's socket open any more, as far as that is looked up."""
        return self.may_be_closed and not self.endpoint.loop.holders_watch.is_open(self.inode)

    @property
    def is_full(self) -> bool:
        """Whether no connection may come in: more than `backlog` wait for accept(), or it listens no more."""
        return self.is_closed or self.has_stopped or len(self._ready) + len(self._prepared) > self.backlog

    def register_syns(self, syns: int = 1, *, now: int) -> bool:
        """Count SYNs that have come. Returns whether they have to go to the cache instead of becoming connections.

        syns   how many
        now    µs
        """
        if self._half_open < MAX_HALF_OPEN and now >= self._caching_until:
            if self._cached_syns <= _FEW_HALF_OPEN or now >= self._caching_until + _CACHING_US:
                self._cached_syns = 0
                return False
        if now >= self._caching_until:
            self._caching_until = now + _CACHING_US
            self._cached_syns = 0
        self._cached_syns += syns
        return True

    def on_syn(self, bridge: Bridge, *, announces_ack: bool, now: int) -> bool:
        """A SYN has made a connection, which is half-open until on_handshake_end(). Returns whether there is something
        for prepare() to do before.

        announces_ack   the SYN announces that its sender will ack the SYN-ACK
        """
        self._half_open += 1
        bridge.syn_received_at = now
        if announces_ack:
            self._ack_announced[bridge] = None
        else:
            self._unverified[bridge] = None
        return not announces_ack or now < self._caching_until + _CACHING_US

    def on_handshake_end(self, bridge: Bridge) -> None:
        """The initiator of a half-open connection is verified, or the connection has ended."""
        self._half_open -= 1
        if bridge in self._unverified or bridge in self._ack_announced:
            self._unverified.pop(bridge, None)
            self._ack_announced.pop(bridge, None)
            if bridge.connection.state is State.CLOSED:
                bridge.is_handed_over = True
            else:
                self._ready.append(bridge)

    def prepare(self, *, now: int) -> int | None:
        """Make the engine's ends of pairs for what is to be handed over. Next: hand_over().

        Returns when to be called again, in µs, or None. It is apart from hand_over() so that nothing slow happens
        between the moments in which a connect() and its accept() become visible.
        """
        next_at: int | None = None
        is_caching = now < self._caching_until + _CACHING_US
        while self._unverified and self._half_open <= _FEW_HALF_OPEN and not is_caching:
            bridge = next(iter(self._unverified))
            if now < bridge.syn_received_at + _VERIFICATION_WAIT_US:
                next_at = bridge.syn_received_at + _VERIFICATION_WAIT_US
                break
            del self._unverified[bridge]
            self._ready.append(bridge)
        if is_caching and (self._unverified or self._ack_announced):
            next_at = self._return_to_cache(now=now)
        ready = self._ready
        loop = self.endpoint.loop
        while ready:
            loop.owner = bridge = ready[0]
            if bridge.is_gone or bridge.connection.state is State.CLOSED:
                bridge.is_handed_over = True
            else:
                engine_sock = self.new_engine_sock(bridge.identity)
                if engine_sock is None:
                    loop.owner = self
                    return self._retries.next_at(now=now)
                self._prepared.append((bridge, engine_sock))
            ready.popleft()
        loop.owner = self
        return next_at

    def _return_to_cache(self, *, now: int) -> int:
        """Replace connections that have been unverified for long by entries of the cache. Returns when to look again,
        in µs.
        """
        at = now + _CACHING_US
        for waiting in (self._unverified, self._ack_announced):
            for bridge in list(waiting):
                if now < bridge.syn_received_at + _CACHING_US:
                    at = min(at, bridge.syn_received_at + _CACHING_US)
                    break
                self.endpoint.return_to_cache(bridge, now=now)
        return at

    def hand_over(self, *, now: int) -> int | None:
        """Connect the prepared pairs to the user's fd, so that accept() returns them. Next: watch_handed_over().

        Returns when to try again, in µs, or None. Where the connect() of one is in this process, it becomes visible in
        the same step (connect_gate.py).
        """
        loop = self.endpoint.loop
        while self._prepared:
            loop.owner = bridge = self._prepared[0][0]
            engine_sock = self._prepared[0][1]
            if bridge.is_gone:  # it ended while the application's queue was full
                self._prepared.popleft()
                engine_sock.close()
                continue
            bridge.identity.role = Role.CONNECTED  # before connect: accept() may return at once
            accepts = connecting(engine_sock.fileno(), self.name)
            initiator = loop.connect_gate.initiator_of(bridge)
            error = get_errno() if (accepts() if initiator is None else initiator.open_gate_with(accepts)) else 0
            if error == EAGAIN and not self.identity.is_full:
                # From now on accept() calls commands.on_accept(). It may have made room just before: try again.
                self.identity.is_full = True
                continue
            if error in NO_ROOM_ERRNOS:
                loop.owner = self
                return self._retries.next_at(now=now)
            if error:
                self.is_closed = True
                loop.rechecks.make_due()
                self._prepared.popleft()
                engine_sock.close()
                bridge.reset_unaccepted()
                loop.mark_dirty(bridge)
                return None
            # At once: it is the user's connection now, and only the bridge may close it.
            bridge.engine_sock = engine_sock
            bridge.is_handed_over = True
            self._prepared.popleft()
            self.accept_queue.add(bridge.cookie)
            bridge.attach(engine_sock)
            if self.identity.shut_halves:
                bridge.inherit_shutdown(self.identity.shut_halves, now=now)
            self._unwatched.append(bridge)
            self._retries.on_progress()
        loop.owner = self
        if not self._ready:
            if self.identity.is_full and (self.tcp_listener is None or not self.tcp_listener.is_waiting):
                self.identity.is_full = False
            self._retries.reset()
        return None

    def may_retry(self, *, now: int) -> bool:
        """Whether hand_over() may be tried before its time, now that the engine is awake for something else."""
        return self._retries.is_due(now=now) or self.accept_queue.may_have_number()

    def on_room(self) -> None:
        """The program has accepted a connection while others waited for room: hand over again."""
        self._retries.expect_success()
        if self.tcp_listener is not None:
            self.tcp_listener.on_room()

    def watch_handed_over(self) -> None:
        """Register with epoll what was handed over. Apart from hand_over(), since that call releases the GIL."""
        loop = self.endpoint.loop
        while self._unwatched:
            loop.owner = bridge = self._unwatched.pop()
            if bridge.engine_sock is not None:
                loop.watch_bridge(bridge)

    def new_engine_sock(self, identity: Identity) -> Socket | None:
        """The engine's end of a pair, named after both addresses and not connected yet; None if there is no fd number
        for it now: then accept() calls commands.on_accept().
        """
        assert identity.local is not None and identity.peer is not None
        engine_sock: Socket | None = None
        try:
            make = self.accept_queue.with_number(_new_engine_sock)
            if make is None:
                return None
            if self.endpoint.is_in_other_namespace:
                make = partial(netns.make_in_namespace_of, self.endpoint.port.sock, make)
            engine_sock = move_to_high_fd(make())
            engine_sock.bind(fd_names.encode(identity.cookie, identity.local, identity.peer, self.endpoint.loop.pid))
        except OSError:
            if engine_sock is not None:
                engine_sock.close()
            self.identity.is_full = True
            return None
        if identity.settings.receive_buffer_bytes:
            # The pair's buffer in that direction is the sender's. The kernel doubles what it is given.
            engine_sock.setsockopt(
                stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, half_buffer(identity.settings.receive_buffer_bytes)
            )
        return engine_sock

    def close(self) -> list[Bridge]:
        """Listen no more: every connection that was not accepted is reset. Returns them; Loop.mark_dirty() each."""
        self.is_closed = True
        self.cache.clear()
        if self.tcp_listener is not None:
            self.tcp_listener.close()
        left = [bridge for bridge, _ in self._prepared] + [*self._ready, *self._unverified, *self._ack_announced]
        for _, engine_sock in self._prepared:
            engine_sock.close()
        for bridge in left:
            if not bridge.is_gone:
                bridge.reset_unaccepted()
        # Last: should any of this fail, it is all done again.
        self._prepared.clear()
        self._ready.clear()
        self._unverified.clear()
        self._ack_announced.clear()
        return left

    def forget(self, bridge: Bridge) -> None:
        """An incoming connection has ended by an exception, however far it had come: take it out."""
        if bridge.syn_received_at:
            self.on_handshake_end(bridge)
            bridge.syn_received_at = 0
        self._unverified.pop(bridge, None)
        self._ack_announced.pop(bridge, None)
        if bridge in self._ready:
            self._ready.remove(bridge)
        for prepared in list(self._prepared):
            if prepared[0] is bridge:
                if bridge.engine_sock is not prepared[1]:
                    prepared[1].close()
                self._prepared.remove(prepared)

    def fail(self, error: BaseException) -> None:
        """See faults.py: what was being done is done again. After _MAX_FAULTS the listener ends."""
        self._faults += 1
        if self._faults > _MAX_FAULTS or not self.endpoint.loop.is_alive:
            self.end()

    def end(self) -> None:
        """Listen no more, by the engine's own decision: the program's accept() fails with EINVAL instead of waiting."""
        loop = self.endpoint.loop
        for bridge in self.close():
            loop.mark_dirty(bridge)
        loop.forget_listener(self)
        if self.endpoint.listener is self:
            self.endpoint.listener = None
        if self.identity.inode == self.inode:
            reset.shut_down_as_user(self.identity)

    def close_fds(self) -> None:
        """Close the fds: in a forked child, or at the end of the engine."""
        if self.tcp_listener is not None:
            self.tcp_listener.close_fds()
        for _, engine_sock in self._prepared:
            engine_sock.close()

    def detach_fds(self) -> None:
        """Forget every fd without closing it."""
        if self.tcp_listener is not None:
            self.tcp_listener.detach_fds()
        for _, engine_sock in self._prepared:
            engine_sock.detach()

    def stats(self) -> dict[str, int]:
        """Figures of this instant."""
        return {
            "pending": len(self._ready) + len(self._unverified) + len(self._prepared),
            "prepared": len(self._prepared),
            "half_open": self._half_open,
            "cached_syns": len(self.cache),
            "refused_syns": self.refused_syns,
        }

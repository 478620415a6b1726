"""A listening socket: who may come in, and the hand-over to whoever accepts.

The user's fd is a real listening AF_UNIX socket. For each incoming connection the engine connects to it from a socket
whose name says who is who, so accept() is the kernel's in any process (docs/sockets.md §1). A connection is handed over
when its initiator has proved its address, or, since libutp proves nothing before its first byte and some servers speak
first, a moment after its SYN; but never so where the SYN says that a proof follows (handshake.py). When many are
unproven, SYNs make no connections until they are (syncache.py), and those that wait for it go there, too: nobody can
take the place of those who answer.

Where many are unproven, an initiator of libutp's that waits for the server to speak hears nothing until it speaks
itself, or until its first keepalive after 29 s, which both prove it. No program over libutp waits so, since its
acceptors cannot speak first either; to ask each of them would be a second packet to every false address.

Only the engine's thread calls. Sources: docs/protocol.md §3, §4.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from ctypes import get_errno
from errno import EAGAIN
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from utpsocket.engine.channels.utp import Bridge
from utpsocket.engine.faults import NO_ROOM
from utpsocket.engine.interpreter.native import Socket, connecting
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.kernel import fd_names, netns
from utpsocket.engine.kernel.high_fds import raise_fd, with_room
from utpsocket.engine.ports.retries import Retries
from utpsocket.engine.ports.syncache import SynCache
from utpsocket.engine.user_fds import reset
from utpsocket.engine.user_fds.socket_state import Identity, Role, half_buffer
from utpsocket.protocol import State

if TYPE_CHECKING:
    from utpsocket.engine.channels.utp import ConnectGate as HeldGates
    from utpsocket.engine.channels.utp import Engine as BridgesEngine
    from utpsocket.engine.kernel.udp import Port
    from utpsocket.engine.user_fds.open_fds import Rechecks

    class ConnectGate(HeldGates, Protocol):
        """Connects that are complete and not said yet (connect_gate.py)."""

        def initiator_of(self, acceptor: Bridge) -> Bridge | None:
            """The connect that is to come to light with this acceptor's accept()."""

    class Engine(BridgesEngine, Protocol):
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
        def bridges(self) -> Mapping[tuple[object, int], Bridge]: ...

        @property
        def is_in_other_namespace(self) -> bool: ...

        def close_if_unused(self) -> None:
            """Close it if nobody needs it any more."""

        def return_to_cache(self, bridge: Bridge, *, now: int) -> None:
            """Have the cache of SYNs keep it, and no connection."""

    class TcpHalf(Protocol):
        """What accepts TCP at the same port number (tcp_listener.py)."""

        def on_room(self) -> None:
            """The kernel's queue of accepts may have room again."""

        def close(self) -> None:
            """The listener listens no more: what nobody accepted is reset."""

        def close_fds(self) -> None:
            """The engine ends, or is a forked child's copy."""

        def detach_fds(self) -> None:
            """Forget the fds without closing them."""


_PROOF_WAIT_US: Final = 30_000  # a proof takes one round trip, and a greeting can wait this long
_FAULTS_BORNE: Final = 20
MAX_HALF_OPEN: Final = 256  # connections of one listener that are unproven; beyond, SYNs go to its cache
_FEW_HALF_OPEN: Final = 64  # beyond, unproven connections are not handed over
_CACHING_US: Final = 1_000_000  # for so long after; and on, while more than the calm number come in that time


class Listener:
    """One listening socket of the application.

    identity   the shim's; its settings are passed on to what it accepts
    cache      SYNs that are answered and no connection yet
    name       the abstract name the user's fd listens on
    """

    __slots__ = (
        "_cached_syns",
        "_caching_until",
        "_proof_announced",
        "_faults",
        "_half_open",
        "_handed",
        "_prepared",
        "_ready",
        "_retries",
        "_unproven",
        "backlog",
        "cache",
        "endpoint",
        "identity",
        "inode",
        "is_closed",
        "has_stopped",
        "name",
        "refused_syns",
        "tcp_listener",
    )

    def __init__(self, endpoint: ListeningPort, identity: Identity, name: bytes, backlog: int) -> None:
        self.endpoint = endpoint
        self.identity = identity
        self.inode = identity.inode  # as it is now: after an attempt that failed the socket has another
        self.name = name
        self.backlog = backlog
        self.is_closed = False
        self.has_stopped = False  # the application listens no more; any thread may say so
        self.tcp_listener: TcpHalf | None = None  # a listener of both: its TCP half
        self.refused_syns = 0
        self._proof_announced: dict[Bridge, None] = {}  # whose initiators prove themselves, in order of arrival
        self._unproven: dict[Bridge, None] = {}  # in order of arrival; looked at from its old end only
        self._ready: deque[Bridge] = deque()  # to be handed over
        self._prepared: deque[tuple[Bridge, Any]] = deque()  # with the engine's end of their pair
        self._handed: list[Bridge] = []  # not watched yet
        self._faults = 0
        self._half_open = 0
        self._retries = Retries()
        self.cache = SynCache()
        self._caching_until = -_CACHING_US
        self._cached_syns = 0  # that went to the cache since it was last looked whether there are still many

    @property
    def is_full(self) -> bool:
        """Nobody may come in: as many wait for accept() as may."""
        return self.is_closed or self.has_stopped or len(self._ready) + len(self._prepared) > self.backlog

    def register_syns(self, syns: int = 1, *, now: int) -> bool:
        """Whether so many SYNs must go to the cache instead of becoming connections at once."""
        if self._half_open < MAX_HALF_OPEN and now >= self._caching_until:
            if self._cached_syns <= _FEW_HALF_OPEN or now >= self._caching_until + _CACHING_US:
                self._cached_syns = 0
                return False
        if now >= self._caching_until:
            self._caching_until = now + _CACHING_US
            self._cached_syns = 0
        self._cached_syns += syns
        return True

    def on_syn(self, bridge: Bridge, *, proves_itself: bool, now: int) -> None:
        """A connection was born of a SYN, which may say that its proof follows in any case."""
        self._half_open += 1
        bridge.syn_received_at = now
        if proves_itself:
            self._proof_announced[bridge] = None
        else:
            self._unproven[bridge] = None

    def on_handshake_end(self, bridge: Bridge) -> None:
        """A half-open connection was proven, or ended."""
        self._half_open -= 1
        if bridge in self._unproven or bridge in self._proof_announced:
            self._unproven.pop(bridge, None)
            self._proof_announced.pop(bridge, None)
            if bridge.connection.state is State.CLOSED:
                bridge.is_handed_over = True
            else:
                self._ready.append(bridge)

    def prepare(self, *, now: int) -> int | None:
        """Make the engine's ends for what is ready to be handed over; returns when to be called again, or None.

        Apart from hand_over(), so that nothing slow lies between a connect that completes and its accept.
        """
        next_at: int | None = None
        is_caching = now < self._caching_until + _CACHING_US
        while self._unproven and self._half_open <= _FEW_HALF_OPEN and not is_caching:
            bridge = next(iter(self._unproven))
            if now < bridge.syn_received_at + _PROOF_WAIT_US:
                next_at = bridge.syn_received_at + _PROOF_WAIT_US
                break
            del self._unproven[bridge]
            self._ready.append(bridge)
        if is_caching and (self._unproven or self._proof_announced):
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
                    return self._retries.next_at(now=now)
                self._prepared.append((bridge, engine_sock))
            ready.popleft()
        loop.owner = self
        return next_at

    def _return_to_cache(self, *, now: int) -> int:
        """Have the cache keep what has been unproven for long; returns when to look again."""
        at = now + _CACHING_US
        for waiting in (self._unproven, self._proof_announced):
            for bridge in list(waiting):
                if now < bridge.syn_received_at + _CACHING_US:
                    at = min(at, bridge.syn_received_at + _CACHING_US)
                    break
                self.endpoint.return_to_cache(bridge, now=now)
        return at

    def hand_over(self, *, now: int) -> int | None:
        """Give the application what was prepared, then watch_handed(); returns when to try again, or None."""
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
                self.identity.is_full = True  # from now on accept() tells us; it may have made room just before
                continue
            if error in NO_ROOM:
                loop.owner = self
                return self._retries.next_at(now=now)
            if error:
                self.is_closed = True
                loop.rechecks.hurry()
                self._prepared.popleft()
                engine_sock.close()
                bridge.reset_unaccepted()
                loop.mark_dirty(bridge)
                return None
            bridge.engine_sock = (
                engine_sock  # at once: it is the user's connection now, and has to be closed in the one way
            )
            bridge.is_handed_over = True
            self._prepared.popleft()
            bridge.attach(engine_sock)
            if self.identity.shut_halves:
                bridge.inherit_shutdown(self.identity.shut_halves, now=now)
            self._handed.append(bridge)
            self._retries.reset()
        loop.owner = self
        if self.identity.is_full:
            self.identity.is_full = False
        if not self._ready:
            self._retries.reset()
        return None

    def may_retry(self, *, now: int) -> bool:
        """Whether what waits for room may be tried before its time, now that something has happened."""
        return self._retries.is_due(now=now)

    def on_room(self) -> None:
        """The application has accepted while connections waited for room."""
        self._retries.expect_success()
        if self.tcp_listener is not None:
            self.tcp_listener.on_room()

    def watch_handed(self) -> None:
        """Listen to what was handed over. Apart from hand_over(), since epoll gives the GIL away."""
        loop = self.endpoint.loop
        while self._handed:
            loop.owner = bridge = self._handed.pop()
            if bridge.engine_sock is not None:
                loop.watch_bridge(bridge)

    def new_engine_sock(self, identity: Identity) -> Any:
        """The engine's end of a pair to be, named; None when the process has no fd left."""
        assert identity.local is not None and identity.peer is not None
        engine_sock: Any = None
        try:
            make = partial(with_room, partial(Socket, stdlib.AF_UNIX, stdlib.SOCK_STREAM, 0), is_for_accept=True)
            if self.endpoint.is_in_other_namespace:
                make = partial(netns.beside, self.endpoint.port.sock, make)
            engine_sock = raise_fd(make())
            engine_sock.setblocking(False)
            engine_sock.bind(fd_names.encode(identity.cookie, identity.local, identity.peer, self.endpoint.loop.pid))
        except OSError:
            if engine_sock is not None:
                engine_sock.close()
            return None
        if identity.settings.receive_buffer_bytes:
            # What the user may receive is what we may send. The kernel doubles what it is given.
            engine_sock.setsockopt(
                stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, half_buffer(identity.settings.receive_buffer_bytes)
            )
        return engine_sock

    def close(self) -> list[Bridge]:
        """The application's last copy is closed: what nobody accepted is reset. Returns those connections."""
        self.is_closed = True
        self.cache.clear()
        if self.tcp_listener is not None:
            self.tcp_listener.close()
        left = [bridge for bridge, _ in self._prepared] + [*self._ready, *self._unproven, *self._proof_announced]
        for _, engine_sock in self._prepared:
            engine_sock.close()
        for bridge in left:
            if not bridge.is_gone:
                bridge.reset_unaccepted()
        self._prepared.clear()  # last: should any of this fail, it is all done again
        self._ready.clear()
        self._unproven.clear()
        self._proof_announced.clear()
        return left

    def forget(self, bridge: Bridge) -> None:
        """This incoming connection has ended by a fault, wherever on its way to the application it was."""
        if bridge.syn_received_at:
            self.on_handshake_end(bridge)
            bridge.syn_received_at = 0
        self._unproven.pop(bridge, None)
        self._proof_announced.pop(bridge, None)
        if bridge in self._ready:
            self._ready.remove(bridge)
        for prepared in list(self._prepared):
            if prepared[0] is bridge:
                if bridge.engine_sock is not prepared[1]:
                    prepared[1].close()
                self._prepared.remove(prepared)

    def fail(self, error: BaseException) -> None:
        """See faults.py: what was about to be done is done again. Met again and again, it ends the listener."""
        self._faults += 1
        if self._faults > _FAULTS_BORNE or not self.endpoint.loop.is_alive:
            self.end()

    def end(self) -> None:
        """Listen no more, and tell the application, whose accept() would wait for ever."""
        loop = self.endpoint.loop
        for bridge in self.close():
            loop.mark_dirty(bridge)
        loop.forget_listener(self)
        if self.endpoint.listener is self:
            self.endpoint.listener = None
        if self.identity.inode == self.inode:
            reset.shut_down_as_user(self.identity)

    def close_fds(self) -> None:
        """The engine ends, or was never this process's: close what the listener holds and tell nobody."""
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

    def stats(self) -> dict[str, Any]:
        """Figures of this instant."""
        return {
            "pending": len(self._ready) + len(self._unproven) + len(self._prepared),
            "prepared": len(self._prepared),
            "half_open": self._half_open,
            "cached_syns": len(self.cache),
            "refused_syns": self.refused_syns,
        }

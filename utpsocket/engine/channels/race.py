"""TCP beside uTP: the second attempt of a connect that may go over either.

Happy Eyeballs (RFC 8305) with two transports to one address: uTP is tried alone first; when it is refused, or has had
no answer after a delay, TCP is tried too, while uTP may still answer. The first that connects is used, the other
attempt is dropped. Where TCP connected and uTP had no answer, the next attempts to that address begin with both at once
for a minute, so a path that drops UDP costs its delay once and not for every connection. The user's fd is connecting
all the while: to the program this is one connect().

    Example, with a delay of 250 ms and a peer that listens on TCP only and has no firewall: the SYN of uTP is answered
    by ICMP "port unreachable" after one round trip, and TCP is tried at once. Behind a firewall that drops UDP: TCP is
    tried after 250 ms; the next connect() to the same address within 60 s tries both at once.

Only the engine's thread calls. Sources: RFC 8305 §5; connect(2) on EINPROGRESS.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from utpsocket.engine.channels.gate import drain_filler
from utpsocket.engine.channels.tcp import Relay
from utpsocket.engine.channels.tcp_socket import tcp_socket
from utpsocket.engine.channels.utp import Bridge
from utpsocket.engine.faults import RETRY_US, errno_of
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.kernel.high_fds import move_to_high_fd
from utpsocket.engine.kernel.poller import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLOUT, EPOLLRDHUP
from utpsocket.engine.user_fds.reset import close_engine_sock, record
from utpsocket.engine.user_fds.socket_state import Role
from utpsocket.protocol import ConnectionStats, State
from utpsocket.protocol.report import Figures, fields

if TYPE_CHECKING:
    from utpsocket.engine.channels.channel import Channel
    from utpsocket.engine.channels.tcp import Engine as RelaysEngine
    from utpsocket.engine.channels.utp import Engine as BridgesEngine
    from utpsocket.engine.interpreter.native import Socket
    from utpsocket.protocol import Address

    class Engine(RelaysEngine, BridgesEngine, Protocol):
        """What an attempt over TCP needs of the engine."""

        channels: dict[int, Channel]
        silent_destinations: SilentDestinations
        tcp_initiated: int


# For so long both transports are tried at once where uTP had no answer. RFC 6555 §4.2 suggests up to 10 minutes; a
# minute costs little where uTP is silent for good, and finds soon that it is not.
_SILENCE_US: Final = 60_000_000
_SILENT_REMEMBERED: Final = 1_024  # addresses, the oldest are forgotten; by feel: some 200 KB


class SilentDestinations:
    """Addresses where TCP connected and uTP had no answer, for _SILENCE_US."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until: OrderedDict[Address | None, int] = OrderedDict()

    def note(self, address: Address | None, *, now: int) -> None:
        """TCP has connected there while uTP had no answer yet."""
        self._until[address] = now + _SILENCE_US
        self._until.move_to_end(address)
        if len(self._until) > _SILENT_REMEMBERED:
            self._until.popitem(last=False)

    def forget(self, address: Address | None) -> None:
        """uTP had an answer there."""
        self._until.pop(address, None)

    def is_silent(self, address: Address | None, *, now: int) -> bool:
        """Whether uTP is likely to get no answer there now."""
        return self._until.get(address, 0) > now


class Attempt:
    """The attempt of a connect() over TCP; the Channel of its socket once uTP has failed and before TCP has connected.

    bridge    of the attempt over uTP, which has the engine's end of the pair until it has failed
    wait_us   how long uTP is tried alone

    It begins by a timer after wait_us, or when the bridge calls take_over(). It ends in a Relay, which takes its place
    in Loop.channels, in an error of connect(), or by withdraw().
    """

    __slots__ = (
        "_bridge",
        "_engine_sock",
        "_tcp_errno",
        "_filler_bytes",
        "_is_over",
        "_loop",
        "_relay",
        "_tcp",
        "cookie",
        "identity",
    )

    # See Channel. Nothing can have been written while connecting.
    connection = None
    is_user_fd_open = False
    can_end_unnoticed = False
    is_flushed = True

    def __init__(self, loop: Engine, bridge: Bridge, wait_us: int) -> None:
        self._loop = loop  # the engine
        self._bridge: Bridge | None = bridge  # until the attempt over uTP has ended
        self.identity = bridge.identity  # see Channel
        self.cookie = bridge.cookie  # see Channel
        self._engine_sock: Socket | None = None  # the engine's end of the pair, once uTP has failed
        self._tcp: Socket | None = None  # the TCP socket, while it connects
        self._tcp_errno = 0  # how TCP failed
        self._filler_bytes = 0  # of the gate's, not read yet
        self._relay: Relay | None = None  # what carries the connection, once TCP has connected
        self._is_over = False  # connected, failed or withdrawn
        bridge.tcp_attempt = self
        is_silent = loop.silent_destinations.is_silent(self.identity.peer, now=loop.now)
        loop.call_at(loop.now + (0 if is_silent else wait_us), self._connect_tcp)

    # ── from the attempt over uTP ──

    def on_connected(self) -> None:
        """uTP has connected: TCP is not needed."""
        self._loop.silent_destinations.forget(self.identity.peer)
        self.withdraw()

    def on_closed(self) -> None:
        """The user closed its fd while connecting."""
        self.withdraw()

    def take_over(self, code: int) -> int:
        """uTP failed with this errno. Returns 0 if TCP goes on with the user's fd, else the errno of connect()."""
        bridge = self._bridge
        if self._is_over or bridge is None:
            return code
        if self._tcp_errno:
            self.withdraw()
            return self._tcp_errno
        engine_sock = self._take_engine_sock(bridge)
        self._loop.watch(engine_sock.fileno(), EPOLLRDHUP | EPOLLHUP | EPOLLET, _HangUpWatcher(self))
        owner = self._loop.owner
        self._loop.owner = self
        self._connect_tcp()
        self._loop.owner = owner
        return 0

    # ── the attempt over TCP ──

    def _connect_tcp(self) -> None:
        if self._is_over or self._tcp is not None or self._tcp_errno:
            return
        identity = self.identity
        assert identity.peer is not None
        with self._loop.fd_lock:
            try:
                self._tcp = tcp = move_to_high_fd(tcp_socket(identity))
            except OSError as error:
                self._on_tcp_failed(error.errno or errno.EMFILE)
                return
        tcp.setblocking(False)
        self._bind_tcp(tcp)
        code = tcp.connect_ex(identity.peer)
        if code in (0, errno.EINPROGRESS):
            self._loop.watch(tcp.fileno(), EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLET, self)
        else:
            self._on_tcp_failed(code)

    def _bind_tcp(self, tcp: Socket) -> None:
        """Bind to the address that getsockname() returns, with its port number if that is free for TCP too."""
        local = self.identity.local
        assert local is not None
        for address in (local, (local[0], 0, *local[2:])) if self.identity.endpoint else (local,):
            try:
                tcp.bind(address)
                return
            except OSError:
                continue  # then the kernel chooses

    def on_event(self, mask: int) -> None:
        """epoll: TCP has connected, or has failed."""
        tcp = self._tcp
        if self._is_over or tcp is None:
            return
        code = tcp.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_ERROR)
        if code:
            self._on_tcp_failed(code)
            return
        if mask & EPOLLHUP:
            return  # not connected yet: the kernel reports this of a fresh socket
        self._start_relay(tcp)

    def _start_relay(self, tcp: Socket) -> None:
        bridge, engine_sock, identity, loop = self._bridge, self._engine_sock, self.identity, self._loop
        if bridge is not None:
            loop.silent_destinations.note(identity.peer, now=loop.now)
            engine_sock = self._take_engine_sock(bridge)
            bridge.connection.abort()
            loop.mark_dirty(bridge)
        assert engine_sock is not None
        loop.forget_fd(tcp.fileno())
        loop.forget_fd(engine_sock.fileno())
        identity.transport = "tcp"
        identity.local = tcp.getsockname()
        self._filler_bytes = identity.filler_bytes
        relay = Relay(loop, identity, engine_sock, tcp)
        self._is_over = True
        self._tcp = self._engine_sock = None
        loop.owner = self._relay = loop.channels[relay.cookie] = relay
        loop.tcp_initiated += 1
        identity.role = Role.CONNECTED
        self._open_gate()

    def _take_engine_sock(self, bridge: Bridge) -> Socket:
        """Take the engine's end of the pair from the bridge, which ends; this is the socket's channel from now on."""
        channels, cookie = self._loop.channels, self.cookie
        channels[-cookie] = bridge  # until it is gone, which takes no longer than this iteration
        bridge.cookie = -cookie
        channels[cookie] = self
        engine_sock = bridge.detach_engine_sock()
        bridge.receive_buffer.use_largest(engine_sock)
        self._engine_sock, self._bridge, bridge.tcp_attempt = engine_sock, None, None
        return engine_sock

    def _open_gate(self) -> None:
        relay = self._relay
        if relay is None or relay.is_over:
            return
        assert relay.engine_sock is not None
        self._filler_bytes = drain_filler(relay.engine_sock.fileno(), self._filler_bytes)
        if self._filler_bytes:
            self._loop.call_at(self._loop.now + RETRY_US, self._open_gate)
        else:
            self._loop.owner = relay
            relay.start()

    def fail(self, error: BaseException) -> None:
        """See Channel: TCP is not tried any more; uTP may still be."""
        if self._relay is not None:
            self._relay.fail(error)
        else:
            self.terminate(errno_of(error))

    def terminate(self, code: int) -> None:
        """See Channel."""
        if not self._is_over:
            self._on_tcp_failed(code)

    def _on_tcp_failed(self, code: int) -> None:
        """TCP failed with this errno. If uTP has failed too, connect() does."""
        self._tcp_errno = code
        self._close_tcp()
        if self._engine_sock is None:
            return
        self._loop.forget_fd(self._engine_sock.fileno())
        record(self.identity, code, was_connecting=True)
        close_engine_sock(self._engine_sock, self.identity, code)
        self._engine_sock = None
        self.withdraw()

    def _close_tcp(self) -> None:
        if self._tcp is not None:
            self._loop.forget_fd(self._tcp.fileno())
            self._tcp.close()
            self._tcp = None

    def withdraw(self) -> None:
        """Drop the attempt: uTP has connected, or the user's fd is closed. Idempotent."""
        self._is_over = True
        if self._bridge is not None:
            self._bridge.tcp_attempt = None
        if self._loop.channels.get(self.cookie) is self:
            del self._loop.channels[self.cookie]
        self._close_tcp()
        if self._engine_sock is not None:
            self._loop.forget_fd(self._engine_sock.fileno())
            close_engine_sock(self._engine_sock, self.identity, 0)
            self._engine_sock = None

    # ── commands ──

    def figures(self) -> Figures:
        """See Channel."""
        identity = self.identity
        return fields(ConnectionStats(State.SYN_SENT.value, identity.local, identity.peer, "tcp"))

    def flush_progress(self) -> tuple[bool, int, int, bool]:
        """See Channel."""
        return False, 0, 0, False

    def when_flushed(self, callback: Callable[[], None]) -> None:
        """See Channel."""
        callback()

    def sync_user_side(self) -> None:
        """See Channel. epoll reports a close."""

    def sync_network_side(self) -> None:
        """See Channel. Nothing arrives before the connection is established."""

    def apply_options(self) -> None:
        """See Channel. The TCP socket was made with them."""

    def finish(self) -> None:
        """See Channel. The attempt ends with the process."""

    def abort(self) -> None:
        """See Channel. As finish()."""

    def forget_readiness(self) -> None:
        """See Channel. epoll reports the events to its watchers again."""

    def close_fds(self) -> None:
        """See Channel."""
        for sock in (self._tcp, self._engine_sock):
            if sock is not None:
                sock.close()

    def detach_fds(self) -> None:
        """See Channel."""
        for sock in (self._tcp, self._engine_sock):
            if sock is not None:
                sock.detach()


class _HangUpWatcher:
    """Watches for the close of the user's fd, while only TCP is tried."""

    __slots__ = ("_attempt",)

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    def on_event(self, mask: int) -> None:
        if mask & EPOLLHUP:
            self._attempt.on_closed()

    def fail(self, error: BaseException) -> None:
        """See faults.py."""
        self._attempt.fail(error)

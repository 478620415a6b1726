"""A connection that kernel TCP carries, and the program's fd: moves bytes both ways, and ends.

Read utp.py first: the user's fd is one end of the same kind of AF_UNIX pair, so poll(), dup() and fork() make no
difference. The kernel's TCP makes the bytes reliable; what is left is two flows of bytes, two ends of file, and one
error.

    at the engine's end of the pair      at the TCP socket
    end of file                      →   shutdown(SHUT_WR)
    the last close                   →   close; with a RESET if bytes were left unread, or SO_LINGER asked for one
    shutdown(SHUT_WR)                ←   end of file
    close with an error              ←   an error, after everything that was received before it

A close() with SO_LINGER waits until the kernel has the bytes, not until the peer has. Events of epoll are edges: one is
remembered until a call has returned EAGAIN; a flow that stops before, since it has moved its share, is re-armed.

Only the engine's thread calls. Sources: docs/sockets.md §1, §9.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from utpsocket.engine.channels.tcp_socket import apply_options
from utpsocket.engine.faults import RETRY_US, TRANSIENT_ERRNOS
from utpsocket.engine.interpreter.native import Socket, poll
from utpsocket.engine.interpreter.originals import os, struct
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.kernel import tcp_info
from utpsocket.engine.kernel.poller import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP
from utpsocket.engine.kernel.tcp_info import TcpFigures
from utpsocket.engine.user_fds.reset import close_engine_sock, record
from utpsocket.engine.user_fds.socket_state import Identity
from utpsocket.protocol import ConnectionStats, State
from utpsocket.protocol.report import Figures, fields

if TYPE_CHECKING:
    from utpsocket.engine.channels.channel import Channel
    from utpsocket.engine.reactor import Reactor

    class Engine(Reactor, Protocol):
        """What of it keeps channels."""

        def forget(self, channel: Channel) -> None:
            """The channel is over: take it out of the engine's dict."""


_EVENTS: Final = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLET
_BYTES_PER_PUMP: Final = 1 << 20  # one way, before the loop goes on to other work; by feel: about a millisecond
_READER_GONE: Final = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)
LINGER_ZERO: Final = struct.pack("=ii", 1, 0)
NO_LINGER: Final = struct.pack("=ii", 0, 0)
# Received bytes on their way from one socket to the other. One for all relays: what cannot be written is copied away.
_scratch: Final = memoryview(bytearray(256 << 10))


class _Flow:
    """One direction: bytes read from one socket and written to the other, with what the other did not take yet."""

    __slots__ = (
        "has_ended",
        "is_readable",
        "is_stopped",
        "is_writable",
        "moved_bytes",
        "must_rewatch",
        "must_retry",
        "pending",
        "stop_errno",
    )

    def __init__(self) -> None:
        self.pending = memoryview(b"")  # read from the source, and not written to the sink yet
        self.has_ended = False  # the source's end of file has been read
        self.is_stopped = False  # the sink takes no more: what comes is dropped
        self.stop_errno = 0  # the errno of that call
        self.is_readable = True  # the source, until a call returns EAGAIN
        self.is_writable = True  # the sink, likewise
        # The sink returned EAGAIN, for which TCP may also lack memory and make no event: register it with epoll anew.
        self.must_rewatch = False
        self.must_retry = False  # a call failed for a reason that makes no event
        self.moved_bytes = 0  # read from the source since the beginning

    def pump(self, source: Socket, sink: Socket) -> bool:
        """Move what there is, at most _BYTES_PER_PUMP. Returns whether there may be more. Raises what source raises."""
        budget = _BYTES_PER_PUMP
        while budget > 0:
            if self.pending and not self._push(sink):
                return False
            if self.has_ended or not self.is_readable:
                return False
            try:
                count = source.recv_into(_scratch)
            except BlockingIOError:
                self.is_readable = False
                return False
            except OSError as error:
                if error.errno not in TRANSIENT_ERRNOS:
                    raise
                self.must_retry = True
                return False
            if not count:
                self.has_ended = True
                return False
            budget -= count
            self.moved_bytes += count
            self.pending = _scratch[:count]
            if not self._push(sink):
                self.pending = memoryview(bytes(self.pending))
                return False
        return True

    def _push(self, sink: Socket) -> bool:
        """Write what is pending; whether all of it went."""
        while self.pending:
            if self.is_stopped:
                self.pending = memoryview(b"")
            elif not self.is_writable:
                return False
            else:
                try:
                    count = sink.send(self.pending)
                    self.pending = self.pending[count:]
                except BlockingIOError:
                    self.is_writable = False
                    self.must_rewatch = True
                    return False
                except OSError as error:
                    if error.errno in TRANSIENT_ERRNOS:
                        self.must_retry = True
                        return False
                    self.is_stopped = True
                    self.stop_errno = error.errno or errno.EIO
        return True


class _Watcher:
    """What epoll's events of one of the two fds do."""

    __slots__ = ("_has_hung_up", "_incoming", "_is_user_side", "_outgoing", "_relay")

    def __init__(self, relay: Relay, incoming: _Flow, outgoing: _Flow, *, is_user_side: bool) -> None:
        self._relay = relay
        self._incoming = incoming
        self._outgoing = outgoing
        self._is_user_side = is_user_side
        self._has_hung_up = False

    @property
    def known_events(self) -> int:
        """Events that are remembered, so that LevelPoller need not report them again."""
        incoming, outgoing = self._incoming, self._outgoing
        known = EPOLLIN | EPOLLRDHUP if incoming.is_readable or incoming.has_ended else 0
        if outgoing.is_writable or outgoing.is_stopped:
            known |= EPOLLOUT
        return known | EPOLLHUP if self._has_hung_up else known

    def on_event(self, mask: int) -> None:
        self._has_hung_up = self._has_hung_up or bool(mask & EPOLLHUP)
        if mask & ~EPOLLOUT:
            self._incoming.is_readable = True
        if mask & (EPOLLOUT | EPOLLHUP | EPOLLERR):
            self._outgoing.is_writable = True
        if self._is_user_side:
            self._relay.is_hung_up = self._relay.is_hung_up or bool(mask & EPOLLHUP)
        elif mask & EPOLLERR:
            self._relay.has_tcp_error = True
        self._relay.pump()

    def fail(self, error: BaseException) -> None:
        """See faults.py."""
        self._relay.fail(error)


class Relay:
    """A connection that kernel TCP carries, and the engine's end of its pair: the Channel over TCP.

    identity      what the class socket knows of the socket
    engine_sock   the engine's end of the pair; None before the hand-over to a listener, and once it is closed
    tcp           the TCP socket, connected and non-blocking; None once it is closed

    start() once it has both. Then pump(), after every event, until is_over.
    """

    __slots__ = (
        "_closed_with_unread",
        "_error",
        "_finish_when_drained",
        "_from_peer",
        "_from_user",
        "_sent_eof",
        "_has_shut_down",
        "_loop",
        "cookie",
        "engine_sock",
        "flush_waiters",
        "has_tcp_error",
        "identity",
        "is_hung_up",
        "tcp",
    )

    connection = None
    can_end_unnoticed = False

    def __init__(self, loop: Engine, identity: Identity, engine_sock: Socket | None, tcp: Socket) -> None:
        self._loop = loop  # the engine
        self.identity = identity
        self.cookie = identity.cookie  # see Channel
        self.engine_sock = engine_sock
        self.tcp: Socket | None = tcp
        self.is_hung_up = False  # EPOLLHUP at the pair: no process has the user's fd
        self.has_tcp_error = False  # EPOLLERR at the TCP socket, whose SO_ERROR has not been read yet
        self._finish_when_drained = False  # the process ends: a FIN follows what was written, though the fd stays open
        self.flush_waiters: list[Callable[[], None]] = []  # called once is_flushed
        self._from_user = _Flow()  # from the pair to TCP
        self._from_peer = _Flow()  # from TCP to the pair
        self._closed_with_unread = False  # the program closed with bytes unread
        self._has_shut_down = False  # TCP's FIN follows what was written
        self._sent_eof = False  # the program reads the end of file after what came before
        self._error = 0  # errno that TCP ended with

    def start(self) -> None:
        """Both sockets are there: carry bytes from now on."""
        user, peer = self._from_user, self._from_peer
        assert self.engine_sock is not None and self.tcp is not None
        self._loop.watch(self.engine_sock.fileno(), _EVENTS, _Watcher(self, user, peer, is_user_side=True))
        self._loop.watch(self.tcp.fileno(), _EVENTS, _Watcher(self, peer, user, is_user_side=False))

    @property
    def is_over(self) -> bool:
        """Nothing is left to do."""
        return self.tcp is None

    def pump(self) -> None:
        """Move what there is, both ways, and pass on what has ended."""
        engine_sock, tcp = self.engine_sock, self.tcp
        if engine_sock is None or tcp is None:
            return
        if self._pump_from_user(engine_sock, tcp) and not self.is_over:
            self._loop.rewatch(engine_sock.fileno(), _EVENTS)
        if not self.is_over and self._pump_from_peer(engine_sock, tcp):
            self._loop.rewatch(tcp.fileno(), _EVENTS)
        if not self.is_over:
            self._propagate_ends(engine_sock, tcp)
        user, peer = self._from_user, self._from_peer
        for flow, sink in ((user, tcp), (peer, engine_sock)):
            if flow.must_rewatch and not self.is_over:
                flow.must_rewatch = False
                self._loop.rewatch(sink.fileno(), _EVENTS)
        if (user.must_retry or peer.must_retry) and not self.is_over:
            user.must_retry = peer.must_retry = False
            self._loop.call_at(self._loop.now + RETRY_US, self.pump)

    def _pump_from_user(self, engine_sock: Socket, tcp: Socket) -> bool:
        flow = self._from_user
        had_ended = flow.has_ended
        while True:
            try:
                more = flow.pump(engine_sock, tcp)
            except OSError as error:
                if error.errno != errno.ECONNRESET:
                    raise  # an error of ours, and no end of file: it must not look like a close by the user
                # Once: the user closed with bytes unread; what it wrote still follows.
                flow.has_ended = self._closed_with_unread
                self._closed_with_unread = True
                continue
            break
        if flow.has_ended and not had_ended:
            self._check_hang_up(
                engine_sock
            )  # a close makes both events at once, and one that resets must not send a FIN
        if flow.is_stopped and not self._error:
            # TCP takes no more. SO_ERROR gives the reason once. What arrived before is still to be delivered.
            pending = 0 if flow.stop_errno != errno.EPIPE else tcp.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_ERROR)
            self._error = pending or flow.stop_errno
            self._from_peer.is_readable = True
        return more

    def _pump_from_peer(self, engine_sock: Socket, tcp: Socket) -> bool:
        flow = self._from_peer
        try:
            more = flow.pump(tcp, engine_sock)
        except OSError as error:
            self._error = self._error or error.errno or errno.ECONNRESET
            flow.has_ended = True
            return False
        if flow.is_stopped and flow.stop_errno not in _READER_GONE:
            raise OSError(flow.stop_errno, os.strerror(flow.stop_errno))  # received bytes would be missing silently
        return more

    def _propagate_ends(self, engine_sock: Socket, tcp: Socket) -> None:
        """Ends of file, errors and closes, once the bytes before them are through."""
        user, peer = self._from_user, self._from_peer
        if user.is_stopped and not (peer.is_readable or peer.pending or peer.must_retry):
            self._report_error()
            return
        if user.has_ended and not user.pending:
            if self.is_hung_up:
                self._close(reset=self._closed_with_unread or self.identity.settings.linger_seconds == 0)
                return
            if not self._has_shut_down:
                self._has_shut_down = self._try_shutdown(tcp)
        elif self._finish_when_drained and not user.is_readable and not user.pending and not self._has_shut_down:
            self._has_shut_down = self._try_shutdown(tcp)
        if peer.has_ended and not peer.pending:
            if self.has_tcp_error and not self._error:
                self._error = tcp.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_ERROR)
            if self._error:
                self._report_error()
                return
            if not self._sent_eof:
                self._sent_eof = self._try_shutdown(engine_sock)
            if user.has_ended and not user.pending and self._sent_eof:
                self._close(reset=False)
                return
        if self.flush_waiters and self.is_flushed:
            self._release_waiters()

    def _try_shutdown(self, sock: Socket) -> bool:
        """shutdown(SHUT_WR). Returns False if it must be tried again."""
        try:
            sock.shutdown(stdlib.SHUT_WR)
        except OSError as error:
            if error.errno in TRANSIENT_ERRNOS:
                self._from_user.must_retry = True
                return False
            if error.errno != errno.ENOTCONN:
                raise
            # else the other side has ended already, and its event follows
        return True

    def _report_error(self) -> None:
        """The connection broke, and what was received before is delivered: report the errno at the user's fd."""
        error = self._error
        if self._sent_eof:
            if error == errno.ECONNRESET:
                error = errno.EPIPE  # of a send(); a recv() has its end of file
            record(self.identity, error, was_connecting=False, is_after_eof=True)
        self._close(reset=False, code=error)

    def _close(self, *, reset: bool, code: int = 0) -> None:
        """Close both sockets: TCP's with a RESET if so wanted, the pair so that the program's calls fail with `code`;
        that is 0 only where it has read the end of file, or its fd is closed.
        """
        if not (code or self._sent_eof or self.is_hung_up):
            code = errno.ECONNABORTED
        user = self._from_user
        if not user.has_ended or user.pending or user.is_stopped:
            reset = True  # not all that the user wrote is in TCP's buffer: a FIN would make it look complete
        tcp, engine_sock = self.tcp, self.engine_sock
        if engine_sock is not None:
            self._loop.forget_fd(engine_sock.fileno())
            close_engine_sock(engine_sock, self.identity, code)
            self.engine_sock = None
        self.identity.is_over = True
        if tcp is not None:
            self._loop.forget_fd(tcp.fileno())
            if reset:
                tcp.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_LINGER, LINGER_ZERO)
            tcp.close()
            self.tcp = None
        self._loop.forget(self)
        self._release_waiters()

    def _release_waiters(self) -> None:
        while self.flush_waiters:
            self.flush_waiters.pop()()

    def fail(self, error: BaseException) -> None:
        """See Channel."""
        self.terminate(errno.ECONNABORTED)

    def terminate(self, code: int) -> None:
        """See Channel."""
        self._close(reset=True, code=code)

    def forget_readiness(self) -> None:
        """See Channel. epoll reports the events to its watchers again."""

    # ── commands ──

    def figures(self) -> Figures:
        """See Channel. From TCP_INFO."""
        identity, tcp = self.identity, self.tcp
        figures: TcpFigures = {"state": State.CLOSED.value} if tcp is None else tcp_info.read(tcp)
        return fields(ConnectionStats(local=identity.local, peer=identity.peer, transport="tcp", **figures))

    def abort(self) -> None:
        """See Channel. Also where the listener ends before accept() has returned the connection."""
        self.terminate(errno.ECONNRESET)

    def when_flushed(self, callback: Callable[[], None]) -> None:
        """See Channel."""
        self.flush_waiters.append(callback)
        self._sync()

    def apply_options(self) -> None:
        """See Channel."""
        if self.tcp is not None:
            apply_options(self.tcp, self.identity)

    def finish(self) -> None:
        """See Channel."""
        self._finish_when_drained = True
        self._sync()

    def sync_user_side(self) -> None:
        """See Channel."""
        self._sync()

    def sync_network_side(self) -> None:
        """See Channel."""
        self._sync()

    def _sync(self) -> None:
        for flow in (self._from_user, self._from_peer):
            flow.is_readable = flow.is_writable = True
        self.pump()

    def _check_hang_up(self, engine_sock: Socket) -> None:
        poller = poll()
        poller.register(engine_sock.fileno(), EPOLLRDHUP)
        self.is_hung_up = self.is_hung_up or any(mask & EPOLLHUP for _, mask in poller.poll(0))

    @property
    def is_user_fd_open(self) -> bool:
        """See Channel."""
        return self.engine_sock is not None and not self.is_hung_up

    @property
    def is_flushed(self) -> bool:
        """See Channel. What is with the kernel is delivered whatever becomes of this process."""
        flow = self._from_user
        return self.is_over or (not flow.pending and not (flow.is_readable and not flow.has_ended))

    def flush_progress(self) -> tuple[bool, int, int, bool]:
        """See Channel. Bytes read from the user count as taken."""
        flow = self._from_user
        if self.is_flushed:
            return False, 0, flow.moved_bytes, False
        return True, len(flow.pending), flow.moved_bytes, False

    def close_fds(self) -> None:
        """See Channel."""
        for sock in (self.engine_sock, self.tcp):
            if sock is not None:
                sock.close()

    def detach_fds(self) -> None:
        """See Channel."""
        for sock in (self.engine_sock, self.tcp):
            if sock is not None:
                sock.detach()

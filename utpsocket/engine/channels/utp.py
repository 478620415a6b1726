"""A uTP connection and the program's fd: moves bytes both ways, and ends.

Read this first. The program's fd ("the user's fd") is one end of an AF_UNIX stream pair; `engine_sock` is the other.
What the program writes is read here, what is written here the program reads, and the kernel does blocking, polling, dup
and fork. So each event of the connection becomes an operation on the pair, and the reverse (docs/sockets.md §1):

    connecting                  the user's fd is unwritable: its send buffer is full of filler ("the gate")
    the peer's FIN              shutdown(SHUT_WR)
    the peer's RESET, timeout   close with a byte unread, after the errno has been recorded
    end of file read here       the program has shut down writing, or closed
    hang-up                     the last close of the user's fd, in whatever process
    ECONNRESET read here        the program has closed with bytes unread

Events of epoll are edges (docs/design.md §9): is_readable and is_writable remember them until a call has returned
EAGAIN.

Only the engine's thread calls.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from utpsocket.engine.channels.gate import drain_filler
from utpsocket.engine.channels.receive_buffer import FIRST_WINDOW_BYTES, ReceiveBuffer
from utpsocket.engine.faults import RETRY_US, TRANSIENT_ERRNOS, errno_of
from utpsocket.engine.interpreter import native
from utpsocket.engine.interpreter.native import Socket
from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.kernel.native_calls import NativeStream, Stream
from utpsocket.engine.kernel.poller import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP, polled
from utpsocket.engine.timers import Deadline
from utpsocket.engine.user_fds import reset, shared_errnos
from utpsocket.engine.user_fds.open_fds import socket_exists
from utpsocket.engine.user_fds.reset import close_engine_sock, record, refuse_sends
from utpsocket.engine.user_fds.socket_state import Identity, Role, window_bytes
from utpsocket.protocol import Connection, EventKind
from utpsocket.protocol.build import IS_COMPILED
from utpsocket.protocol.config import GRANT_BYTES
from utpsocket.protocol.sendbuffer import BLOCK_BYTES
from utpsocket.protocol.states import CLOSED, CONNECTED, SYN_RECEIVED, SYN_SENT, TIME_WAIT

if TYPE_CHECKING:
    from utpsocket.engine.channels.channel import Channel
    from utpsocket.engine.channels.receive_buffer import Shares
    from utpsocket.engine.kernel.native_calls import AnyStream
    from utpsocket.engine.kernel.syscalls import Ancillary
    from utpsocket.engine.kernel.udp import Port
    from utpsocket.engine.reactor import Reactor
    from utpsocket.engine.user_fds.open_fds import HoldersWatch
    from utpsocket.protocol import Address, Transmit
    from utpsocket.protocol.report import Figures

    class ConnectGate(Protocol):
        """Connects that are complete and not visible yet (ports/connect_gate.py)."""

        def hold(self, bridge: Bridge) -> None:
            """This connect is complete: make it visible."""

    class Engine(Reactor, Protocol):
        """What bridges use of their engine (loop.py) beside what Reactor declares."""

        holders_watch: HoldersWatch

        @property
        def connect_gate(self) -> ConnectGate: ...

        def mark_dirty(self, bridge: Bridge) -> None:
            """Something has happened to the connection: it delivers and sends in this iteration."""

        def wake_bridge(self, bridge: Bridge) -> None:
            """Have the bridge read its pair again in this iteration, or the next."""

        def watch_bridge(self, bridge: Bridge) -> None:
            """The bridge has got the engine's end of its pair: register it with epoll."""

        def watch_room(self, bridge: Bridge, *, wanted: bool) -> None:
            """Whether epoll is to report when the pair has room again (EPOLLOUT)."""

        def flush_now(self, bridge: Bridge) -> None:
            """Deliver and send what a command has caused, before the command is answered."""

        def forget(self, channel: Channel) -> None:
            """The channel is over: take it out of the engine's dict."""

    class Acceptor(Protocol):
        """What connections that were not accepted yet ask of their listener (ports/listener.py)."""

        def on_handshake_end(self, bridge: Bridge) -> None:
            """The peer is verified, or the connection has ended before."""

        def forget(self, bridge: Bridge) -> None:
            """The connection has ended by an exception."""

    class StatelessResets(Protocol):
        """RESETs beside any connection (ports/stateless_resets.py)."""

        def for_connection(self, connection: Connection, *, now: int) -> Transmit | None:
            """The RESET for a connection that cannot send it itself; None if its peer cannot know of it."""

    class GrantQueue(Protocol):
        """The order among connections to one peer's port (ports/send_grants.py)."""

        is_ordered: bool
        waiting: dict[Bridge, None]

        @property
        def has_members(self) -> bool:
            """Whether any connection to that port is not over."""

        def packets(self, bridge: Bridge) -> int:
            """How many packets of new data this connection may send now."""

        def after_transmit(self, bridge: Bridge) -> list[Bridge]:
            """Count what has left. Returns the connections that may send now."""

        def leave(self, bridge: Bridge) -> Bridge | None:
            """The connection has no more data to send. Returns the first one that waits."""

    class BridgePort(Protocol):
        """The port that a connection's datagrams leave by (ports/endpoint.py)."""

        port: Port
        key: int
        is_private: bool

        @property
        def bridges(self) -> Mapping[tuple[Address, int], Bridge]: ...

        @property
        def loop(self) -> Engine: ...

        @property
        def listener(self) -> Acceptor | None: ...

        @property
        def resets(self) -> StatelessResets: ...

        @property
        def shares(self) -> Shares: ...

        @property
        def reuseport_sockets(self) -> object | None:
            """A UDP socket for each peer, where processes share the port (ports/reuseport.py)."""

        def transmit(self, bridge: Bridge, *, now: int) -> None:
            """Send all packets of the connection that may leave now."""

        def forget(self, bridge: Bridge) -> None:
            """The connection is over: take it out."""

        def leave_grants(self, bridge: Bridge) -> None:
            """The connection has no more data to send."""

        def drop_spare_ids(self, bridge: Bridge) -> None:
            """The peer has answered a SYN: the ids of SYNs that have not left are free again."""

        def receive_for(self, bridge: Bridge, *, now: int) -> None:
            """Receive what has come by now."""

        def apply_settings(self, bridge: Bridge, *, now: int) -> None:
            """Have the connection follow the socket options of its identity."""

        def end_time_waits(self) -> None:
            """End connections that are in TIME_WAIT."""

    class TcpAttempt(Protocol):
        """The attempt of a connect over TCP, beside uTP's or after it (race.py)."""

        def on_connected(self) -> None:
            """uTP has connected: TCP is not needed."""

        def on_closed(self) -> None:
            """The user closed its fd while connecting."""

        def take_over(self, code: int) -> int:
            """uTP failed with this errno. Returns 0 if TCP goes on with the user's fd, else the errno of connect()."""

        def withdraw(self) -> None:
            """Drop the attempt."""


# What epoll reports of a pair, and of one whose gate is closed: all that can be read there is filler.
BRIDGE_EVENTS: Final = EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLET
GATED_EVENTS: Final = BRIDGE_EVENTS & ~EPOLLIN
# With so much unsent, reading more from the program can wait: it would leave the processor's cache before it is sent.
# By feel: about what a core has for itself.
_ENOUGH_UNSENT_BYTES: Final = 512 << 10
# How often a socket that was shut down is checked for a close, which makes no event then. By feel.
_RECHECK_US: Final = 1_000_000


class Bridge:
    """A uTP connection and the engine's end of its pair: the Channel over uTP.

    Created by Endpoint; attach() gives it the engine's end, at once where the program dials and at the hand-over where
    it accepts. Then, in each iteration of the loop in which something has happened to it: on_event(), read_user(),
    handle_events(), deliver(); Endpoint.transmit() sends what may leave. It ends with remove().
    """

    __slots__ = (
        "_closed_with_unread",
        "_discards_received",
        "_filler_bytes",
        "_has_finished_input",
        "_has_read_all",
        "_has_recheck",
        "_sent_reset",
        "_has_unread_event",
        "_is_hup_from_shutdown",
        "_is_hung_up",
        "_is_retrying",
        "_may_have_ended",
        "_refuses_sends",
        "_sent_eof",
        "bulk_until",
        "close_errno",
        "connection",
        "cookie",
        "deadline",
        "endpoint",
        "engine_fd",
        "engine_sock",
        "finish_when_drained",
        "flush_waiters",
        "grant_queue",
        "identity",
        "is_gated",
        "is_gone",
        "is_handed_over",
        "is_idle_only",
        "is_readable",
        "is_writable",
        "other_side",
        "receive_buffer",
        "recv_ids",
        "source",
        "stream",
        "syn_received_at",
        "tcp_attempt",
    )

    def __init__(self, connection: Connection, endpoint: BridgePort, identity: Identity, source: Ancillary) -> None:
        # What it joins.
        self.connection = connection
        self.endpoint = endpoint  # the port that its datagrams leave by
        self.identity = identity  # what the class socket knows of the socket
        self.cookie = identity.cookie  # see Channel
        self.source = source  # ancillary data of each datagram: source address (wildcard ports), TOS and the like
        self.recv_ids: tuple[int, ...] = ()  # the ids that Endpoint.bridges has it under
        self.tcp_attempt: TcpAttempt | None = None  # of a connect() that may go over TCP as well
        # The other end of the same connection, where it is of this engine too; known once one of them is in TIME_WAIT.
        self.other_side: Bridge | None = None

        # The engine's end of the pair: None before the hand-over to a listener, and once it is closed.
        self.engine_sock: Socket | None = None
        self.engine_fd = -1  # its number
        self.stream: AnyStream  # its system calls (kernel/syscalls.py), once there has been one
        self.receive_buffer = ReceiveBuffer()  # how much it may hold for a program that does not read

        # What is kept for it by the loop's other parts.
        self.deadline = Deadline()  # timers.py
        self.grant_queue: GrantQueue | None = None  # of a connection that was dialled: ports/send_grants.py
        self.flush_waiters: tuple[Callable[[], None], ...] = ()  # called once is_flushed
        self.bulk_until = 0  # it counts as bulk until this time, µs (turns.py)

        # How far it has come.
        self.syn_received_at = 0  # µs; 0 once the peer is verified
        self.is_handed_over = False  # accept() can return it, or has; of a connect(): from the beginning
        self.is_gated = False  # connect() has not succeeded: the user's fd is unwritable, and what is read is filler
        self._filler_bytes = -1  # of that filler, not read yet; -1: all of it
        self.is_gone = False  # over; lists and timers that still have it must skip it
        self.close_errno: int | None = None  # what the connection ended with, 0 for an orderly end; None: it goes on
        self.finish_when_drained = False  # the process ends: a FIN follows what was written, though the fd stays open

        # What epoll has reported; remembered until a call returns EAGAIN.
        self.is_readable = False  # there is something to read, or the end
        self.is_writable = True  # there is room
        self._has_unread_event = False  # an event has come since the last read
        self._may_have_ended = False  # EPOLLRDHUP: what is read may be followed by the end of file
        self._is_hung_up = False  # EPOLLHUP: no process has the user's fd
        # EPOLLHUP comes from inherit_shutdown(), which has shut both directions down.
        self._is_hup_from_shutdown = False
        # More is unsent than can leave soon: it is read in an iteration without other events (Turns.idle_only).
        self.is_idle_only = False

        # What the program has done.
        self._has_finished_input = False  # its end of file has been read
        # The end of file was read after the hang-up: a close with bytes unread would have been an error before that.
        self._has_read_all = False
        self._closed_with_unread = False  # it closed with bytes unread: the peer gets a RESET after what was written
        self._discards_received = False  # it reads no more (EPIPE): shut down, or closed
        self._has_recheck = False  # after shutdown(), when a close makes no event: a timer will look for it

        # What has been passed on.
        self._sent_eof = False  # the end of file, to the user's fd
        self._refuses_sends = False  # the user's send() fails already, while there is still something to receive
        self._sent_reset = False  # a RESET to the peer, outside of the connection, in terminate()

        self._is_retrying = False  # a call that failed for lack of memory (TRANSIENT_ERRNOS) is made again by a timer

    def attach(self, engine_sock: Socket) -> None:
        """Give it the engine's end of the pair, non-blocking; this object closes it from now on.

        Then Loop.watch_bridge().
        """
        self.engine_sock = engine_sock
        self.engine_fd = engine_sock.fileno()
        self.stream = Stream(engine_sock)
        self.is_readable = True
        self.receive_buffer.apply_option(engine_sock, self.identity.settings.receive_buffer_bytes)

    def inherit_shutdown(self, halves: int, *, now: int) -> None:
        """The listening socket had been shut down before listen(): what it accepts is shut down as well, as with TCP.

        halves   1: it receives no more, 2: it sends no more, 3: both
        """
        engine_sock = self.engine_sock
        assert engine_sock is not None
        self.identity.shut_halves = halves
        if halves & 1:
            engine_sock.shutdown(stdlib.SHUT_WR)
        if halves & 2:
            engine_sock.shutdown(stdlib.SHUT_RD)
            self._has_finished_input = True
            self._is_hup_from_shutdown = halves == 3
            self.connection.finish(now=now)
            self.endpoint.loop.mark_dirty(self)

    # ── from the program ──

    def on_event(self, mask: int) -> None:
        """What epoll has found at engine_sock. read_user() and deliver() follow in the same iteration."""
        if self.engine_sock is None:
            return  # closed by a command of this same wake-up
        if mask & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
            self.is_readable = self._has_unread_event = True
            if mask & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
                self._may_have_ended = True
        if mask & EPOLLOUT and not self.is_writable:
            self.is_writable = True
            self.endpoint.loop.watch_room(self, wanted=False)
        if mask & EPOLLHUP:
            self._is_hung_up = True
            if self.connection.state in (SYN_SENT, SYN_RECEIVED) and self.is_gated:
                self.connection.abort()  # closed while connecting
                self._close_engine_sock()

    @property
    def known_events(self) -> int:
        """Events that are remembered, so that LevelPoller need not report them again."""
        known = EPOLLIN if self.is_readable or self._has_finished_input else 0
        if self.is_writable:
            known |= EPOLLOUT
        if self._may_have_ended:
            known |= EPOLLRDHUP
        return known | EPOLLHUP if self._is_hung_up else known

    def poll_engine_sock(self) -> None:
        """Take in now what epoll would report in the next iteration."""
        mask = polled(self.engine_fd, EPOLLIN | EPOLLRDHUP)
        if mask > 0:
            self.on_event(mask)

    def read_user(self, *, now: int, is_due: bool) -> None:  # noqa: C901  # its parts would be calls
        """Move what the program wrote into the connection's send buffer, as far as there is room.

        now      µs
        is_due   also if _ENOUGH_UNSENT_BYTES are waiting to be sent. If not, is_idle_only is set then

        Raises OSError if engine_sock is no socket any more. Next: handle_events() and Endpoint.transmit().
        """
        connection = self.connection
        if self.is_gated or self.engine_sock is None or connection.state not in (CONNECTED, SYN_RECEIVED):
            self.is_readable = self.is_readable and self.engine_sock is not None
            return
        send = connection.send
        budget = 0
        is_flowing = is_counting = False
        while self.is_readable:
            unsent_bytes = send.buffer.end_offset - send.sent_offset
            if unsent_bytes > _ENOUGH_UNSENT_BYTES and not is_due:
                self.is_idle_only = True
                return
            if unsent_bytes >= GRANT_BYTES and send.awaits_grant and not is_flowing:
                return  # enough for its next grant
            if self._has_finished_input:
                self._check_hang_up(now=now)
                return
            span = None if send.is_finishing else send.buffer.free_span()  # as connection.free_span(), without a call
            if not span and not (span := self._free_span_at_end(now=now)):
                return
            spans = connection.free_spans(budget) if is_flowing else [span]
            stream = self.stream
            if IS_COMPILED and isinstance(stream, NativeStream):  # then it is called without looking it up
                count = stream.receive(spans)
            else:
                count = stream.receive(spans)
            if count <= 0:
                send.buffer.commit(0)
                send.has_more = False
                if count and not self._on_read_error(-count, now=now):
                    return
                if not count:
                    self._on_user_eof(now=now)
                continue
            self._has_unread_event = False
            is_flowing = count >= len(span) and count == sum(map(len, spans))
            send.buffer.commit(count)  # as connection.commit(), without a call
            send.has_more = is_flowing
            if not is_flowing and not self._may_have_ended:
                # What comes next makes a new edge: no need to ask the kernel again.
                self.is_readable = False
                if self.finish_when_drained:
                    connection.finish(now=now)
                return
            if not is_flowing:
                continue  # behind it there is the end
            if not is_counting:
                is_counting = True
                # Whole bursts: the few packets of a rest would cost iterations of both engines as well.
                budget = send.burst_bytes - unsent_bytes % send.burst_bytes
            budget -= count
            # While it waits for a grant one block more is read: if the program wrote no more than that, the last packet
            # is a short one, which need not wait.
            if budget <= (-BLOCK_BYTES if send.awaits_grant else 0):
                return

    def _free_span_at_end(self, *, now: int) -> memoryview | None:
        """Make room in a full send buffer once the user has shut down writing or closed. A send() in another thread or
        process that waits for room in the pair must then return with an error, for which the pair must be drained. So
        everything that the pair holds is read, beyond the buffer's capacity.
        """
        connection = self.connection
        if self._may_have_ended:
            connection.send.buffer.make_room(max(1, reset.unread_bytes(self.engine_fd)))
            span = connection.free_span()
            if span:
                return span
        if self._is_hung_up:
            self._on_close_before_drained(now=now)
        return None

    def _on_read_error(self, code: int, *, now: int) -> bool:
        """Reading from the pair has failed with this errno. Returns whether to read on."""
        if code == errno.ECONNRESET:
            self._closed_with_unread = True  # the user closed with bytes unread; what it wrote still follows
            return True
        if code == errno.EAGAIN:
            if self._has_unread_event:
                self._has_unread_event = False
                self.endpoint.loop.watch_room(self, wanted=not self.is_writable)  # re-arms: an event since is reported
            self._on_drained(now=now)
        elif code in TRANSIENT_ERRNOS:
            self._try_again_soon()
        else:
            raise OSError(code, os.strerror(code))  # EBADF: the program has closed every fd that it found
        return False

    def _on_user_eof(self, *, now: int) -> None:
        """The user has shut down writing, or has closed its fd."""
        self._has_unread_event = False
        self._has_finished_input = True
        self._has_read_all = self._is_hung_up
        if not self._is_hung_up:
            self.poll_engine_sock()  # a close makes EPOLLHUP as well, and with SO_LINGER 0 must not send a FIN
        if self._is_hung_up and self.identity.settings.linger_seconds == 0 and not self._is_shut_down():
            return
        if not self._closed_with_unread:
            self.connection.finish(now=now)

    def _try_again_soon(self) -> None:
        """A call at engine_sock failed with one of TRANSIENT_ERRNOS: no event will follow, so a timer repeats it."""
        if not self._is_retrying:
            self._is_retrying = True
            loop = self.endpoint.loop
            loop.call_at(loop.now + RETRY_US, self._try_again)

    def _try_again(self) -> None:
        self._is_retrying = False
        if not self.is_gone:
            self.is_readable = self.engine_sock is not None
            self.endpoint.loop.wake_bridge(self)

    def _on_drained(self, *, now: int) -> None:
        self.is_readable = False
        if self.finish_when_drained:
            self.connection.finish(now=now)

    def _on_close_before_drained(self, *, now: int) -> None:
        """The user's fd is closed, and what was written to it cannot all be read yet since the peer takes too little.

        So what its close means for the peer is done before the end of file is read: a FIN after what was written, or a
        RESET if the program left bytes unread.
        """
        self._check_unread_at_close()
        if self.identity.settings.linger_seconds == 0:
            self.connection.abort()
        if self._closed_with_unread:
            self.connection.reset_after_flush(now=now)
        self.connection.discard(now=now)

    def _check_unread_at_close(self) -> None:
        """After a hang-up, if no read has shown it: find out whether the user closed with bytes unread."""
        assert self.engine_sock is not None
        if self.engine_sock.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_ERROR):
            self._closed_with_unread = True

    def _recheck(self) -> None:
        self._has_recheck = False
        self.check_user_side(now=self.endpoint.loop.now)

    def check_user_side(self, *, now: int) -> None:
        """Take in whatever the user has done by now."""
        if not self.is_gone and self.engine_sock is not None:
            self.poll_engine_sock()
            self.read_user(now=now, is_due=True)
            self.endpoint.loop.mark_dirty(self)

    def _is_shut_down(self) -> bool:
        """Whether EPOLLHUP does not mean a close: the kernel reports it also after the program's shutdown(SHUT_RDWR),
        or shutdown(SHUT_WR) after the peer's end of file. The close itself makes no event then.
        """
        identity = self.identity
        if not identity.is_shut_down:
            # is_shut_down is False after a shutdown() by a program that was started, or by C code. It matters where a
            # close sends a RESET: the socket still exists then.
            return identity.settings.linger_seconds == 0 and identity.inode > 0 and socket_exists(identity.inode)
        if identity.record is not None and socket_exists(identity.inode):
            return True  # another process may have called shutdown(), and its fd is not in holders_watch
        return self.endpoint.loop.holders_watch.is_open(identity.inode)

    def _check_hang_up(self, *, now: int) -> None:
        """After the program's end of file: if the user's fd is closed too, the connection ends."""
        self.is_readable = False
        if not self._is_hung_up:
            return
        connection = self.connection
        identity = self.identity
        if self._is_shut_down():
            self._is_hung_up = self._has_read_all = False
            if not self._closed_with_unread:
                connection.finish(now=now)
            if not self._has_recheck:
                self._has_recheck = True
                self.endpoint.loop.call_at(now + _RECHECK_US, self._recheck)
            return
        if not self._has_read_all:
            self._check_unread_at_close()
        if self._is_hup_from_shutdown and not self._closed_with_unread:
            # The next event is the user's close() or shutdown(), or the end of the accept queue, which sets ECONNRESET.
            self._is_hup_from_shutdown = False
            return
        if self._closed_with_unread or identity.received_after_shutdown:
            connection.reset_after_flush(now=now)
        linger = self.identity.settings.linger_seconds
        if linger == 0:
            self.endpoint.transmit(self, now=now)  # what TCP would have sent before the close
            connection.abort()
        connection.discard(now=now)
        self._close_engine_sock()

    @property
    def has_enough_unsent(self) -> bool:
        """Whether so much is unsent that reading more from the program can wait for an idle iteration."""
        return self.connection.send.unsent_bytes > _ENOUGH_UNSENT_BYTES

    @property
    def wants_read(self) -> bool:
        """Whether read_user() would do something without a new event."""
        if not self.is_readable or self.is_gated or self.engine_sock is None or self._is_retrying:
            return False
        connection = self.connection
        if connection.state not in (CONNECTED, SYN_RECEIVED):
            return False
        if self._has_finished_input:
            return True
        send = connection.send
        return (send.buffer.free_bytes > 0 or self._may_have_ended) and not (
            send.awaits_grant and send.unsent_bytes >= GRANT_BYTES
        )

    # ── from the connection ──

    def handle_events(self) -> None:
        """Take the connection's events: that it is established, or how it ended. deliver() passes the end on to the
        program.
        """
        connection = self.connection
        while connection.events:
            event, connection.events = connection.events[0], connection.events[1:]  # as poll_event()
            if event.kind is EventKind.CONNECTED:
                if connection.is_initiator:
                    self.endpoint.drop_spare_ids(self)
                if self.tcp_attempt is not None:
                    self.tcp_attempt.on_connected()
                if self.is_gated:
                    self.endpoint.loop.connect_gate.hold(self)
            elif self.close_errno is None:
                self.close_errno = event.errno if self.tcp_attempt is None else self.tcp_attempt.take_over(event.errno)

    def open_gate(self) -> bool:
        """The connection is established: read the filler, and the user's fd becomes writable, by which connect()
        succeeds.

        Returns False if not all could be read (the kernel lacks memory): call again after RETRY_US.
        """
        if self.engine_sock is None:
            self.is_gated = False
            return True
        identity = self.identity
        identity.role = Role.CONNECTED
        if self._filler_bytes < 0:
            self._filler_bytes = identity.filler_bytes
        self._filler_bytes = drain_filler(self.engine_fd, self._filler_bytes)
        if self._filler_bytes:
            return False
        self.is_gated = False
        self.endpoint.loop.watch_room(self, wanted=not self.is_writable)  # and from now on what there is to be read
        self.is_readable = self._may_have_ended or self.finish_when_drained  # what is written from now on makes an edge
        if self.is_readable:
            self.endpoint.loop.wake_bridge(self)
        return True

    def open_gate_with(self, accepts: partial[int]) -> int:
        """As open_gate(), and without a release of the GIL in between also call `accepts`, the C function by which the
        accepted side becomes visible. Returns what that returns. open_gate() must follow.
        """
        identity = self.identity
        if self.engine_sock is None:
            return accepts()
        if self._filler_bytes < 0:
            self._filler_bytes = identity.filler_bytes
        is_connected = partial(setattr, identity, "role", Role.CONNECTED)
        drains = native.receiving(self.engine_fd, self._filler_bytes)
        count: int
        code: int
        _, count, code = native.call_uninterrupted(is_connected, drains, accepts)
        if count > 0:
            self._filler_bytes -= count
        return code

    def deliver(self, *, now: int) -> None:
        """Move what has arrived in order to the user's fd as far as the kernel takes it, then the end of file or the
        error that follows it. Raises OSError if engine_sock is no socket any more.
        """
        connection = self.connection
        if self.engine_sock is None:
            self._deliver_without_pair(now=now)
            return
        receive_buffer, reassembly = self.receive_buffer, connection.receive.reassembly
        while reassembly.ready_bytes:
            views = reassembly.ready  # as poll_delivery()
            if self._discards_received:
                self._keep_after_shutdown(views, now=now)
                break
            if not self.is_writable:
                connection.finish_delivery(0, now=now)
                self._refuse_sends()
                return
            stream = self.stream
            count = stream.send(views) if IS_COMPILED and isinstance(stream, NativeStream) else stream.send(views)  # noqa: RUF034
            if count >= 0:
                if receive_buffer.is_growing:
                    receive_buffer.on_delivered(
                        count, self.engine_sock, connection.receive, self.endpoint.shares, now=now
                    )
                connection.receive.finish_delivery(count, now=now)  # as connection's, without a call
            elif not self._on_write_error(-count, now=now):
                return
        if reassembly.is_fin_reached:
            if not self._sent_eof and not reassembly.ready_bytes:
                if not self._send_eof():
                    return
            elif self._discards_received:
                self._sent_eof = True  # not sent: after shutdown(SHUT_RD) the program reads one anyway
        if self.close_errno is not None:
            self._propagate_close()

    def _deliver_without_pair(self, *, now: int) -> None:
        """Without a pair: what arrived waits if the hand-over is still to come, and is dropped if the fd is closed."""
        connection = self.connection
        if self.is_handed_over or connection.state is CLOSED:
            views = connection.poll_delivery()
            if views:
                connection.finish_delivery(sum(map(len, views)), now=now)
        else:
            connection.finish_delivery(0, now=now)
        if connection.state is TIME_WAIT:
            # Both FINs are acked, which they were not yet when the program sent its own.
            self.identity.is_over = True

    def _on_write_error(self, code: int, *, now: int) -> bool:
        """Writing to the pair has failed with this errno. Returns whether to go on."""
        if code == errno.EAGAIN:
            self.is_writable = False
            self.connection.finish_delivery(0, now=now)
            self.endpoint.loop.watch_room(self, wanted=True)
            self._refuse_sends()
            return False
        if code == errno.ECONNRESET:  # the user closed with bytes unread
            self._closed_with_unread = True
            self.is_readable = True
        elif code in TRANSIENT_ERRNOS:
            self.connection.finish_delivery(0, now=now)
            self._try_again_soon()
            return False
        elif code == errno.EPIPE:  # the user reads no more
            self._discards_received = True
        else:
            raise OSError(code, os.strerror(code))
        return True

    def _send_eof(self) -> bool:
        """Let the program read the end of file after what came before. Returns False if it has to be tried again."""
        assert self.engine_sock is not None
        try:
            self.engine_sock.shutdown(stdlib.SHUT_WR)
        except OSError as error:
            if error.errno in TRANSIENT_ERRNOS:
                self._try_again_soon()
                return False
            if error.errno != errno.ENOTCONN:
                raise
            self._discards_received = True  # the user's fd is closed
        self._sent_eof = True
        return True

    def _keep_after_shutdown(self, views: list[memoryview], *, now: int) -> None:
        """Bytes have come after shutdown(SHUT_RD). As with TCP a recv() still returns them, and if none is called they
        fill the buffers. After SHUT_RDWR they are answered by a RESET.
        """
        connection = self.connection
        count = sum(map(len, views))
        if self._has_finished_input and self.identity.shut_halves & 1:
            connection.finish_delivery(count, now=now)
            connection.reset_after_flush(errno.ECONNRESET, now=now)
            return
        if self._is_hung_up or self.identity.shut_halves & 1 == 0:
            connection.finish_delivery(count, now=now)  # no process can receive them
            return
        kept = self.identity.received_after_shutdown
        if kept is None:
            kept = self.identity.received_after_shutdown = deque()
        room_bytes = (window_bytes(self.identity.settings.receive_buffer_bytes) or FIRST_WINDOW_BYTES) - sum(
            map(len, list(kept))
        )
        data = b"".join(views)[: max(0, room_bytes)]
        if data:
            kept.append(data)
        connection.finish_delivery(len(data), now=now)

    def _refuse_sends(self) -> None:
        """The connection has ended by an error, but there is still something to receive: a send() must fail already."""
        if not self.close_errno or self._refuses_sends or self._sent_eof:
            return
        self._refuses_sends = True
        # If the peer's FIN came before its RESET, a send() raises EPIPE.
        if self.close_errno != errno.ECONNRESET or not self.connection.receive.reassembly.is_fin_reached:
            shared_errnos.write(self.cookie, self.close_errno)
            self.identity.error = self.close_errno
        assert self.engine_sock is not None
        refuse_sends(self.engine_sock, self.identity)

    def _propagate_close(self) -> None:
        """The connection is over and everything received has been delivered: make the user's fd report its end."""
        error = self.close_errno or 0
        identity = self.identity
        if identity.ending is None and not self._is_hung_up:
            identity.ending = self.figures()
        if self._refuses_sends and shared_errnos.is_taken(self.cookie):
            # A send() has reported the errno: as with TCP only the end of file is left to receive.
            self._sent_eof = True
            is_reported = True
        else:
            is_reported = error == errno.ECONNRESET and self._sent_eof and self._has_finished_input
        if error and not is_reported:
            if error == errno.ECONNRESET and self._sent_eof:
                error = errno.EPIPE  # of a send(); a recv() has its end of file. As over TCP
            if error == errno.EPIPE or not self._refuses_sends:
                record(identity, error, was_connecting=self.is_gated, is_after_eof=self._sent_eof)
            self._close_engine_sock(error)
            return
        if not identity.is_over:
            identity.is_over = True
            identity.is_reset = bool(error)
        if error or self._has_finished_input or self._is_hung_up:
            self._drain()
            self._close_engine_sock()
        elif self._sent_eof:
            # Both FINs: what the user still writes would go nowhere, so its next send must fail with EPIPE.
            self._drain()
        else:  # the user's fd may be closed, with bytes that have not been read from the pair
            self._drain()
            self._close_engine_sock()

    def _drain(self) -> None:
        """Read what is left, which would make the close a reset, and let no send() write more."""
        assert self.engine_sock is not None
        try:
            self.engine_sock.shutdown(stdlib.SHUT_RD)
            while self.engine_sock.recv(65_536):
                pass
        except OSError:
            pass

    def _close_engine_sock(self, code: int = 0) -> None:
        """Close engine_sock so that the program's calls fail with this errno; 0 only where it has read the end of file,
        or its fd is closed.
        """
        if not (code or self._sent_eof or self._is_hung_up):
            code = errno.ECONNABORTED
        # If the close fails, engine_sock is still set, so that it is closed again.
        engine_sock = self.engine_sock
        assert engine_sock is not None
        self.endpoint.loop.forget_fd(engine_sock.fileno())
        close_engine_sock(engine_sock, self.identity, code)
        self._let_go_of_engine_sock()
        if self.tcp_attempt is not None:
            self.tcp_attempt.on_closed()

    def detach_engine_sock(self) -> Socket:
        """Return engine_sock, still open, to a new owner. To the bridge it counts as closed."""
        engine_sock = self.engine_sock
        assert engine_sock is not None
        # Not engine_fd: if the socket is closed already, that number may be another's.
        self.endpoint.loop.forget_fd(engine_sock.fileno())
        self._let_go_of_engine_sock()
        return engine_sock

    def _let_go_of_engine_sock(self) -> None:
        self.engine_sock = None
        self.is_handed_over = True
        self.is_readable = False
        self.engine_fd = -1

    def close_fds(self) -> None:
        """See Channel."""
        if self.engine_sock is not None:
            self.engine_sock.close()

    def detach_fds(self) -> None:
        """See Channel. The program's calls fail with ECONNABORTED."""
        if self.engine_sock is not None:
            self.engine_sock.detach()
            record(self.identity, errno.ECONNABORTED, was_connecting=self.is_gated)

    # ── faults.py ──

    def forget_readiness(self) -> None:
        """See Channel."""
        self.deadline = Deadline()
        self.is_idle_only = False
        self.is_readable = self.engine_sock is not None
        self.endpoint.loop.wake_bridge(self)

    def fail(self, error: BaseException) -> None:
        """See Channel."""
        self.terminate(errno_of(error) if self.is_gated else errno.ECONNABORTED)

    def terminate(self, code: int) -> None:
        """See Channel. Nothing is left of the connection afterwards."""
        self.is_gone = True
        loop = self.endpoint.loop
        tcp_attempt = self.tcp_attempt
        if tcp_attempt is not None and self.engine_sock is not None:
            code = tcp_attempt.take_over(code)  # TCP may still have the user's fd
        self.tcp_attempt = None
        if not self._sent_reset:
            packet = self.endpoint.resets.for_connection(self.connection, now=loop.now)
            if packet is not None:
                self.endpoint.port.send(packet, self.source)
            self._sent_reset = True
        if self.engine_sock is not None:
            self._close_engine_sock(code)
        listener = self.endpoint.listener
        if listener is not None:
            listener.forget(self)
        self.remove()
        self.release_waiters()

    def remove(self) -> None:
        """The connection is over and the user's fd is closed: leave the port, and the engine's dict."""
        identity = self.identity
        # Not if TCP has taken the socket over, nor if terminate() ended an established connection.
        if identity.ending is None and self.cookie >= 0 and self.connection.state in (CLOSED, TIME_WAIT):
            identity.ending = self.figures()  # before the engine forgets it, so that info() always finds one
        self.other_side = None
        self.endpoint.forget(self)
        self.endpoint.loop.forget(self)  # last: should any of this fail, the bridge is still found and removed again

    def release_waiters(self) -> None:
        """Call when_flushed()'s callbacks."""
        while self.flush_waiters:
            callback, self.flush_waiters = self.flush_waiters[-1], self.flush_waiters[:-1]
            callback()

    # ── commands ──

    def figures(self) -> Figures:
        """See Channel."""
        return self.connection.figures(self.identity.local)

    def reset_unaccepted(self) -> None:
        """The listener has ended before accept() returned this connection: reset it, as TCP does."""
        self.connection.abort()
        if self.engine_sock is not None:
            self._close_engine_sock(errno.ECONNRESET)
        self.is_handed_over = True

    def abort(self) -> None:
        """See Channel."""
        if not self.is_gone:
            self.connection.abort()
            self.endpoint.loop.mark_dirty(self)

    def finish(self) -> None:
        """See Channel."""
        self.finish_when_drained = True
        self._read_again()

    def when_flushed(self, callback: Callable[[], None]) -> None:
        """See Channel."""
        if self.is_gone:
            callback()
            return
        self.flush_waiters += (callback,)
        self._read_again()

    def _read_again(self) -> None:
        self.is_readable = self.engine_sock is not None
        self.endpoint.loop.wake_bridge(self)

    def sync_user_side(self) -> None:
        """See Channel."""
        loop = self.endpoint.loop
        if self.engine_sock is not None:
            self.check_user_side(now=loop.now)
            loop.flush_now(self)
        elif self.identity.settings.linger_seconds == 0 and self.connection.state in (CONNECTED, SYN_RECEIVED):
            # After shutdown(SHUT_RDWR), which the kernel reports at our end as it reports the last close.
            self.connection.abort()
            loop.flush_now(self)

    def sync_network_side(self) -> None:
        """See Channel."""
        loop = self.endpoint.loop
        self.endpoint.receive_for(self, now=loop.now)
        loop.flush_now(self)

    def apply_options(self) -> None:
        """See Channel."""
        loop = self.endpoint.loop
        self.endpoint.apply_settings(self, now=loop.now)
        loop.mark_dirty(self)

    @property
    def is_user_fd_open(self) -> bool:
        """See Channel."""
        return self.engine_sock is not None and not self._is_hung_up

    @property
    def can_end_unnoticed(self) -> bool:
        """See Channel."""
        return self.engine_sock is None and (self.is_handed_over or self.connection.is_over)

    @property
    def may_step(self) -> bool:
        """Whether a step on a thread of the program may serve it (engine/steps.py): it is established, and nothing of
        it waits for the engine's thread.
        """
        is_open = self.engine_sock is not None and self.connection.state is CONNECTED and self.close_errno is None
        return is_open and not (self.is_readable or self.is_gated or self._may_have_ended or self.finish_when_drained)

    @property
    def is_flushed(self) -> bool:
        """See Channel."""
        if self.connection.state in (CLOSED, TIME_WAIT):
            return True
        if self.engine_sock is not None and self.is_readable and not self.connection.send.is_finishing:
            return False
        return self.connection.is_flushed

    def flush_progress(self) -> tuple[bool, int, int, bool]:
        """See Channel."""
        send = self.connection.send
        acked_bytes = send.buffer.acked_offset
        if self.connection.state not in (CONNECTED, SYN_RECEIVED) or self.is_flushed:
            return False, 0, acked_bytes, False
        return True, send.buffer.end_offset - acked_bytes, acked_bytes, send.waits_for_reader

"""The pump between a Connection and the user's fd.

Read this first. The user's fd is one end of an AF_UNIX stream pair, `end` is the other. What the user writes, we read;
what we write, the user reads; the kernel does blocking, polling, dup and fork. So a uTP connection must be told to the
kernel in its own terms (docs/sockets.md §1): a gate of filler while connecting, shutdown(SHUT_WR) for the peer's FIN, a
close with an unread byte for its RESET. And the kernel tells us: end of file is the user's shutdown, a hang-up its
last close, ECONNRESET a close that left bytes unread.

Only the engine's thread calls.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Mapping
from ctypes import get_errno
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from utpsocket.engine.channels.receive_buffer import FIRST_WINDOW_BYTES, ReceiveBuffer
from utpsocket.engine.faults import NO_ROOM, RETRY_US, TRANSIENT, errno_of
from utpsocket.engine.interpreter import native
from utpsocket.engine.interpreter.native import poll
from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.kernel.poller import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP
from utpsocket.engine.kernel.syscalls import Stream
from utpsocket.engine.timers import Deadline
from utpsocket.engine.user_fds import reset, shared_errnos
from utpsocket.engine.user_fds.open_fds import is_known
from utpsocket.engine.user_fds.reset import close_engine_sock, record, refuse_sends
from utpsocket.engine.user_fds.socket_state import Identity, Role, window_bytes
from utpsocket.protocol import Connection, EventKind
from utpsocket.protocol.config import GRANT_BYTES
from utpsocket.protocol.sendbuffer import BLOCK_BYTES
from utpsocket.protocol.states import CLOSED, CONNECTED, SYN_RECEIVED, SYN_SENT, TIME_WAIT

if TYPE_CHECKING:
    from utpsocket.engine.channels.channel import Channel
    from utpsocket.engine.kernel.udp import Port
    from utpsocket.engine.reactor import Reactor
    from utpsocket.engine.user_fds.open_fds import HoldersWatch
    from utpsocket.protocol import Transmit

    class ConnectGate(Protocol):
        """Connects that are complete and not said yet (ports/connect_gate.py)."""

        def hold(self, bridge: Bridge) -> None:
            """This connect is complete."""

    class Engine(Reactor, Protocol):
        """What of it keeps connections."""

        holders_watch: HoldersWatch

        @property
        def connect_gate(self) -> ConnectGate: ...

        def wake_bridge(self, bridge: Bridge) -> None:
            """Have the bridge look at its end again."""

        def watch_bridge(self, bridge: Bridge) -> None:
            """The bridge has its end: listen to it."""

        def watch_room(self, bridge: Bridge, *, wanted: bool) -> None:
            """Whether to be told when the user has read."""

        def flush_now(self, bridge: Bridge) -> None:
            """Carry out what was just decided for this connection before the command is answered."""

        def forget(self, channel: Channel) -> None:
            """The channel is over: take it out of the engine's dict."""

    class Acceptor(Protocol):
        """A listener, as the connections know it that wait for its accept()."""

        def on_handshake_end(self, bridge: Bridge) -> None:
            """The peer has proved its address, or never will."""

        def forget(self, bridge: Bridge) -> None:
            """It is over."""

    class StatelessResets(Protocol):
        """RESETs beside any connection (ports/stateless_resets.py)."""

        def for_connection(self, connection: Connection, *, now: int) -> Transmit | None:
            """What its peer has to be told where it cannot speak for itself."""

    class ReceiveShares(Protocol):
        """Of the port's receive buffer (ports/receive_shares.py)."""

        single_share_bytes: int

    class GrantQueue(Protocol):
        """Connections to one peer's port that take turns (ports/send_grants.py)."""

        is_ordered: bool

        @property
        def has_members(self) -> bool:
            """Whether any connection to that port is not over."""

        def packets(self, bridge: Bridge) -> int:
            """How many packets of new data this connection may send now."""

        def after_transmit(self, bridge: Bridge) -> list[Bridge]:
            """Count what has left; returns the connections that may send now."""

        def leave(self, bridge: Bridge) -> Bridge | None:
            """The connection is over. Returns the first that waits."""

    class BridgePort(Protocol):
        """The port that a connection's datagrams go out of (ports/endpoint.py)."""

        port: Port
        key: int
        is_private: bool

        @property
        def bridges(self) -> Mapping[Any, Bridge]: ...

        @property
        def loop(self) -> Engine: ...

        @property
        def listener(self) -> Acceptor | None: ...

        @property
        def resets(self) -> StatelessResets: ...

        @property
        def shares(self) -> ReceiveShares: ...

        @property
        def peers(self) -> object | None:
            """A UDP socket for each peer, where processes share the port (ports/reuseport.py)."""

        def transmit(self, bridge: Bridge, *, now: int) -> None:
            """Send what the connection may send now."""

        def forget(self, bridge: Bridge) -> None:
            """The connection is over."""

        def leave_grants(self, bridge: Bridge) -> None:
            """It has no more data to send."""

        def receive_for(self, bridge: Bridge, *, now: int) -> None:
            """Take in whatever has come for this connection by now."""

        def apply_settings(self, bridge: Bridge, *, now: int) -> None:
            """Have the connection follow its identity's settings."""

        def end_time_waits(self) -> None:
            """End what is only there in case a last ack was lost."""

    class TcpAttempt(Protocol):
        """A connect's try at TCP, beside uTP's or after it (race.py)."""

        def on_connected(self) -> None:
            """uTP was first."""

        def on_closed(self) -> None:
            """The user closed its fd while connecting."""

        def take_over(self, code: int) -> int:
            """uTP failed with this errno: 0 if TCP goes on with the user's fd, else what connect() must say."""

        def withdraw(self) -> None:
            """It is not wanted any more."""


_ENOUGH_UNSENT_BYTES: Final = 512 << 10  # unsent beyond this can wait: it would only leave the cache before it is sent
_RECHECK_US: Final = 1_000_000  # whether a socket that was shut down is closed, where nobody says so


class Bridge:
    """A connection and the engine's end of its pair.

    connection   the core's
    endpoint     where its datagrams go out
    source       ancillary data for them (wildcard ports)
    end          the engine's end of the pair; None before the hand-over to a listener and after its end
    """

    __slots__ = (
        "_closed_with_unread",
        "_discards_received",
        "_filler_bytes",
        "_has_finished_input",
        "_has_recheck",
        "_sent_reset",
        "_has_unread_event",
        "_hung_up_by_us",
        "_is_hung_up",
        "_is_retrying",
        "_may_have_ended",
        "_refuses_sends",
        "_sent_eof",
        "_stream",
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
        "syn_received_at",
        "tcp_attempt",
    )

    def __init__(self, connection: Connection, endpoint: BridgePort, identity: Identity, source: list[Any]) -> None:
        self.connection = connection
        self.endpoint = endpoint
        self.identity = identity
        self.cookie = identity.cookie  # which the identity changes if the program connects its socket again
        self.source = source
        self.recv_ids: tuple[int, ...] = ()
        self.engine_sock: Any = None
        self._stream: Any = None
        self.engine_fd = -1
        self.is_readable = False
        self.is_writable = True
        self.is_idle_only = False
        self.is_handed_over = False
        self.is_gone = False
        self.other_side: Bridge | None = None  # where it is this engine's too, once one of them is in TIME_WAIT
        self.is_gated = False  # the user's fd is held unwritable: what is at our end is filler
        self.syn_received_at = 0
        self.deadline = Deadline()
        self.tcp_attempt: TcpAttempt | None = None  # a connect that may go over TCP as well
        self.grant_queue: GrantQueue | None = None
        self.flush_waiters: list[Any] = []
        self.finish_when_drained = False  # the process ends, and nobody will close the user's fd
        self._filler_bytes = -1  # of the gate's, left to drain; -1: all
        self._sent_reset = False  # after a fault
        self.receive_buffer = ReceiveBuffer()
        self._is_retrying = False  # a call that the kernel had no memory for is made again soon
        self._has_finished_input = False  # the user's end of file has been read
        self._sent_eof = False
        self._has_recheck = False  # whether a socket that was shut down is closed will be asked again
        self._discards_received = False  # the kernel takes nothing more for the user: it is held, or dropped
        self._is_hung_up = False
        self._hung_up_by_us = False  # a hang-up is not the user's, so far: our end was shut down at birth
        self._has_unread_event = False  # the kernel has said that there is something, and it has not been read yet
        self._may_have_ended = False  # the kernel has said so: what is read may be followed by the end of file
        self._closed_with_unread = False  # the user closed with bytes unread
        self._refuses_sends = False
        self.close_errno: int | None = None  # how the connection ended, once it did

    def attach(self, engine_sock: Any) -> None:
        """The engine's end of the pair; takes ownership."""
        self.engine_sock = engine_sock
        self.engine_fd = engine_sock.fileno()
        self._stream = Stream(engine_sock)
        self.is_readable = True
        self.receive_buffer.apply_option(engine_sock, self.identity.settings.receive_buffer_bytes)

    def inherit_shutdown(self, halves: int, *, now: int) -> None:
        """Whoever listens had shut its socket down before it listened: what it accepts is shut down as well."""
        self.identity.shut_halves = halves
        if halves & 1:
            self.engine_sock.shutdown(stdlib.SHUT_WR)
        if halves & 2:
            self.engine_sock.shutdown(stdlib.SHUT_RD)
            self._has_finished_input = True
            self._hung_up_by_us = halves == 3
            self.connection.finish(now=now)
            self.endpoint.loop.mark_dirty(self)

    # ── the kernel speaks ──

    def on_event(self, mask: int) -> None:
        """Edges from epoll: remembered until the pump finds their end."""
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
        """What need not be told again (poller.py)."""
        known = EPOLLIN if self.is_readable or self._has_finished_input else 0
        if self.is_writable:
            known |= EPOLLOUT
        if self._may_have_ended:
            known |= EPOLLRDHUP
        return known | EPOLLHUP if self._is_hung_up else known

    def poll_engine_sock(self) -> None:
        """Ask the kernel now what epoll would say later."""
        poller = poll()
        poller.register(self.engine_fd, EPOLLIN | EPOLLRDHUP)
        for _, mask in poller.poll(0):
            self.on_event(mask)

    def read_user(self, *, now: int, is_due: bool) -> None:
        """Move what the user wrote into the connection's send buffer, as far as it takes it; more than is
        enough for now only if that `is_due`.
        """
        connection = self.connection
        if self.is_gated or self.engine_sock is None or connection.state not in (CONNECTED, SYN_RECEIVED):
            self.is_readable = self.is_readable and self.engine_sock is not None
            return
        # Whole bursts: the few packets of a rest would cost iterations of both engines as well.
        burst_bytes = connection.send.burst_bytes
        budget = burst_bytes - connection.send.unsent_bytes % burst_bytes
        is_flowing = False
        while self.is_readable:
            unsent_bytes = connection.send.unsent_bytes
            if unsent_bytes > _ENOUGH_UNSENT_BYTES and not is_due:
                self.is_idle_only = True
                return
            if unsent_bytes >= GRANT_BYTES and connection.send.awaits_grant and not is_flowing:
                return  # enough for its next turn
            if self._has_finished_input:
                self._check_hang_up(now=now)
                return
            span = connection.free_span() or self._free_span_at_end(now=now)
            if not span:
                return
            spans = connection.free_spans(budget) if is_flowing else [span]
            count = self._stream.receive(spans)
            if count <= 0:
                connection.commit(0)
                if count and not self._on_read_error(-count, now=now):
                    return
                if not count:
                    self._on_user_eof(now=now)
                continue
            self._has_unread_event = False
            is_flowing = count >= len(span) and count == sum(map(len, spans))
            connection.commit(count, more=is_flowing)
            if not is_flowing and not self._may_have_ended:
                self._on_drained(now=now)  # what comes next makes a new edge: no need to ask the kernel again
                return
            budget -= count
            # Who waits for a turn is asked once more: what it wrote may end here, in a packet that need not wait then.
            if budget <= (-BLOCK_BYTES if is_flowing and connection.send.awaits_grant else 0):
                return

    def _free_span_at_end(self, *, now: int) -> memoryview | None:
        """Room for more in a full send buffer, where the user writes no more. A send() of its that waits for room must
        return: there is room then, and what it wants to write is refused. So all is taken that it wrote before, which
        is what the pair holds.
        """
        connection = self.connection
        if self._may_have_ended:
            connection.send.buffer.make_room(max(1, reset.unread_bytes(self.engine_fd)))
            span = connection.free_span()
            if span:
                return span
        if self._is_hung_up:
            self._hang_up_early(now=now)
        return None

    def _on_read_error(self, code: int, *, now: int) -> bool:
        """Reading from the pair has failed with this errno. Returns whether to read on."""
        if code == errno.ECONNRESET:
            self._closed_with_unread = True  # the user closed with bytes unread; what it wrote still follows
            return True
        if code == errno.EAGAIN:
            if self._has_unread_event:
                self._has_unread_event = False
                self.endpoint.loop.watch_room(self, wanted=not self.is_writable)  # then let it say so again
            self._on_drained(now=now)
        elif code in TRANSIENT:
            self._try_again_soon()
        else:
            raise OSError(code, os.strerror(code))  # EBADF: the program has closed every fd that it found
        return False

    def _on_user_eof(self, *, now: int) -> None:
        """The user has shut down writing, or has closed its fd."""
        self._has_unread_event = False
        self._has_finished_input = True
        self.poll_engine_sock()  # a close says end of file and hang-up at once, and with linger must not send a FIN
        if self._is_hung_up and self.identity.settings.linger_seconds == 0 and not self._is_shut_down():
            return
        if not self._closed_with_unread:
            self.connection.finish(now=now)

    def _try_again_soon(self) -> None:
        """The kernel had no memory, say, for a call at our end: that makes no event, and says nothing of the user."""
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

    def _hang_up_early(self, *, now: int) -> None:
        """Nobody holds the other end, but what was written is not all read yet: the peer takes too little. Whether
        anything was left unread is all there is to know, and the peer may be waiting for just that.
        """
        self._check_unread_at_close()
        if self.identity.settings.linger_seconds == 0:
            self.connection.abort()
        if self._closed_with_unread:
            self.connection.reset_after_flush(now=now)
        self.connection.discard(now=now)

    def _check_unread_at_close(self) -> None:
        """After a hang-up, where reading has not told: whether the user closed with bytes unread."""
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
        """Whether what looks like a last close is none: to the kernel our end has hung up as well where the user said
        SHUT_RDWR, or SHUT_WR after the peer's end of file. Of the close itself nothing will tell then.
        """
        identity = self.identity
        if not identity.is_shut_down:
            return False
        if identity.record is not None and is_known(identity.inode):
            return True  # another process may have said so, which cannot have its fd watched
        return self.endpoint.loop.holders_watch.is_open(identity.inode)

    def _check_hang_up(self, *, now: int) -> None:
        """After the user's end of file: a hang-up says that nobody holds the other end any more."""
        self.is_readable = False
        if not self._is_hung_up:
            return
        connection = self.connection
        identity = self.identity
        if self._is_shut_down():
            self._is_hung_up = False
            if not self._closed_with_unread:
                connection.finish(now=now)
            if not self._has_recheck:
                self._has_recheck = True
                self.endpoint.loop.call_at(now + _RECHECK_US, self._recheck)
            return
        self._check_unread_at_close()
        if self._hung_up_by_us and not self._closed_with_unread:
            # The next event is the user's close() or shutdown(), or the end of the accept queue, which sets ECONNRESET.
            self._hung_up_by_us = False
            return
        if self._closed_with_unread or identity.held:
            connection.reset_after_flush(now=now)
        linger = self.identity.settings.linger_seconds
        if linger == 0:
            self.endpoint.transmit(self, now=now)  # what TCP would have sent before the close
            connection.abort()
        connection.discard(now=now)
        self._close_engine_sock()

    @property
    def has_enough_unsent(self) -> bool:
        """Whether there is so much to send that reading on can wait."""
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

    # ── the connection speaks ──

    def handle_events(self) -> None:
        """What became of the connection, told to the user's fd."""
        connection = self.connection
        while (event := connection.poll_event()) is not None:
            if event.kind is EventKind.CONNECTED:
                if self.tcp_attempt is not None:
                    self.tcp_attempt.on_connected()
                if self.is_gated:
                    self.endpoint.loop.connect_gate.hold(self)
            elif self.close_errno is None:
                self.close_errno = event.errno if self.tcp_attempt is None else self.tcp_attempt.take_over(event.errno)

    def open_gate(self) -> bool:
        """The connection stands: drain the filler, and the user's fd is writable. False: not all of it; ask again."""
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
        self.is_readable = self._may_have_ended or self.finish_when_drained  # what is written from now on makes an edge
        if self.is_readable:
            self.endpoint.loop.wake_bridge(self)
        return True

    def open_gate_with(self, accepts: Callable[[], int]) -> int:
        """As open_gate(), and in one step with it the call of C by which the acceptor comes to light; what that
        returns. open_gate() is still to be asked.
        """
        identity = self.identity
        if self.engine_sock is None:
            return accepts()
        if self._filler_bytes < 0:
            self._filler_bytes = identity.filler_bytes
        is_connected = partial(setattr, identity, "role", Role.CONNECTED)
        drains = native.receiving(self.engine_fd, self._filler_bytes)
        _, count, code = native.in_one_step(is_connected, drains, accepts)
        if count > 0:
            self._filler_bytes -= count
        return int(code)

    def deliver(self, *, now: int) -> None:
        """Move what arrived in order to the user's end, as far as the kernel takes it."""
        connection = self.connection
        if self.engine_sock is None:
            self._deliver_to_nobody(now=now)
            return
        room = self.receive_buffer
        while True:
            views = connection.poll_delivery()
            if not views:
                break
            if self._discards_received:
                self._hold_unreceived(views, now=now)
                break
            if not self.is_writable:
                connection.delivered(0, now=now)
                self._refuse_sends()
                return
            count = self._stream.send(views)
            if count >= 0:
                if room.is_growing:
                    room.on_delivered(
                        count, self.engine_sock, connection.receive, self.endpoint.shares.single_share_bytes, now=now
                    )
                connection.delivered(count, now=now)
                if not connection.receive.reassembly.ready_bytes:
                    break
            elif not self._on_write_error(-count, now=now):
                return
        if connection.has_eof and not self._sent_eof:
            if not self._send_eof():
                return
        elif self._discards_received and connection.receive.reassembly.is_finished:
            self._sent_eof = True  # shutdown(SHUT_RD) was as good
        if self.close_errno is not None:
            self._propagate_close()

    def _deliver_to_nobody(self, *, now: int) -> None:
        """What arrived is dropped where the user's fd is closed, and waits where it is not there yet (hand-over)."""
        connection = self.connection
        if self.is_handed_over or connection.state is CLOSED:
            views = connection.poll_delivery()
            if views:
                connection.delivered(sum(map(len, views)), now=now)
        else:
            connection.delivered(0, now=now)
        if connection.state is TIME_WAIT:
            self.identity.is_over = True  # both FINs are acked, which they were not when the user said its own

    def _on_write_error(self, code: int, *, now: int) -> bool:
        """Writing to the pair has failed with this errno. Returns whether to go on."""
        if code == errno.EAGAIN:
            self.is_writable = False
            self.connection.delivered(0, now=now)
            self.endpoint.loop.watch_room(self, wanted=True)
            self._refuse_sends()
            return False
        if code == errno.ECONNRESET:  # the user closed with bytes unread
            self._closed_with_unread = True
            self.is_readable = True
        elif code in TRANSIENT:
            self.connection.delivered(0, now=now)
            self._try_again_soon()
            return False
        elif code == errno.EPIPE:  # the user reads no more
            self._discards_received = True
        else:
            raise OSError(code, os.strerror(code))
        return True

    def _send_eof(self) -> bool:
        """The user reads the end of file once it has read what came before. False: not now, it is tried again."""
        try:
            self.engine_sock.shutdown(stdlib.SHUT_WR)
        except OSError as error:
            if error.errno in TRANSIENT:
                self._try_again_soon()
                return False
            if error.errno != errno.ENOTCONN:
                raise
            self._discards_received = True  # nobody is there any more
        self._sent_eof = True
        return True

    def _hold_unreceived(self, views: list[memoryview], *, now: int) -> None:
        """Bytes for a user that has said that it receives no more. As with TCP they can be received all the same, and
        what nobody receives fills the buffers; once nothing is sent either, they are answered by a reset.
        """
        connection = self.connection
        count = sum(map(len, views))
        if self._has_finished_input and self.identity.shut_halves & 1:
            connection.delivered(count, now=now)
            connection.reset_after_flush(errno.ECONNRESET, now=now)
            return
        if self._is_hung_up or self.identity.shut_halves & 1 == 0:
            connection.delivered(count, now=now)  # nobody can
            return
        held = self.identity.held
        if held is None:
            held = self.identity.held = deque()
        room_bytes = (window_bytes(self.identity.settings.receive_buffer_bytes) or FIRST_WINDOW_BYTES) - sum(
            map(len, list(held))
        )
        data = b"".join(views)[: max(0, room_bytes)]
        if data:
            held.append(data)
        connection.delivered(len(data), now=now)

    def _refuse_sends(self) -> None:
        """If the connection broke, a blocked send must fail now, though the user has still to read what came before."""
        if not self.close_errno or self._refuses_sends or self._sent_eof:
            return
        self._refuses_sends = True
        # Where the user's end of file has come before the RESET, a send says EPIPE.
        if self.close_errno != errno.ECONNRESET or not self.connection.receive.reassembly.is_finished:
            shared_errnos.write(self.cookie, self.close_errno)
            self.identity.error = self.close_errno
        refuse_sends(self.engine_sock, self.identity)

    def _propagate_close(self) -> None:
        """The connection is over and everything that came has been delivered: say it by the fd."""
        error = self.close_errno or 0
        identity = self.identity
        if identity.ending is None and not self._is_hung_up:
            identity.ending = self.figures()
        if self._refuses_sends and shared_errnos.is_taken(self.cookie):
            self._sent_eof = True  # a send, say, has told the errno: as with TCP nothing but the end is left to receive
            is_quiet = True
        else:
            is_quiet = error == errno.ECONNRESET and self._sent_eof and self._has_finished_input
        if error and not is_quiet:
            if error == errno.ECONNRESET and self._sent_eof:
                error = errno.EPIPE  # to whoever still sends; a receiver has its end of file. As over TCP
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
        else:  # be it that nobody has the user's fd any more, and what was written to it is not even read
            self._drain()
            self._close_engine_sock()

    def _drain(self) -> None:
        """Leave nothing unread that would make the close a reset; nor let a user who is writing right now go on."""
        try:
            self.engine_sock.shutdown(stdlib.SHUT_RD)
            while self.engine_sock.recv(65_536):
                pass
        except OSError:
            pass

    def _close_engine_sock(self, code: int = 0) -> None:
        """Close our end; without an errno only where the user has its end of file, or nobody holds its fd."""
        if not (code or self._sent_eof or self._is_hung_up):
            code = errno.ECONNABORTED
        # Closed while epoll still knows it: should that fail, it is ours to close again.
        engine_sock = self.engine_sock
        self.endpoint.loop.forget_fd(engine_sock.fileno())
        close_engine_sock(engine_sock, self.identity, code)
        self.detach_engine_sock()
        if self.tcp_attempt is not None:
            self.tcp_attempt.on_closed()

    def detach_engine_sock(self) -> Any:
        """Our end of the pair, which is no business of this bridge's any more."""
        # not its number, which may be another's where it is closed
        self.endpoint.loop.forget_fd(self.engine_sock.fileno())
        engine_sock, self.engine_sock = self.engine_sock, None
        self.is_handed_over = True
        self.is_readable = False
        self.engine_fd = -1
        return engine_sock

    def close_fds(self) -> None:
        """After a fork, in the child: close our copy and touch nothing else."""
        if self.engine_sock is not None:
            self.engine_sock.close()

    def detach_fds(self) -> None:
        """Forget the fd, whose number is somebody else's by now: nobody will ever serve the user's."""
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
        self.is_gone = True  # whoever remembers it passes over it
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
        # not of one whose socket TCP has taken over, nor of one that was given up while it stood
        if identity.ending is None and self.cookie >= 0 and self.connection.state in (CLOSED, TIME_WAIT):
            identity.keep_ending(self.figures())
        self.other_side = None
        self.endpoint.forget(self)
        self.endpoint.loop.forget(self)  # last: should any of this fail, it can still be found, and is done again

    def release_waiters(self) -> None:
        """What the user wrote is acked, or never will be."""
        while self.flush_waiters:
            self.flush_waiters.pop()()

    # ── commands ──

    def figures(self) -> tuple[Any, ...]:
        """See Channel."""
        return self.connection.figures(self.identity.local)

    def reset_unaccepted(self) -> None:
        """Nobody will ever accept this connection: reset it."""
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
        self.flush_waiters.append(callback)
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
            # After shutdown(SHUT_RDWR), which the kernel tells our end as it tells the last close.
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
    def needs_no_notice(self) -> bool:
        """See Channel."""
        return self.engine_sock is None and (self.is_handed_over or self.connection.is_over)

    @property
    def is_finished(self) -> bool:
        """Nothing is left to do: the loop may forget it."""
        return self.connection.is_over and self.engine_sock is None

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


def drain_filler(engine_fd: int, remaining_bytes: int) -> int:
    """Open the gate: with the filler read, the user's fd is writable. Returns how much is still there: all of it goes
    before a byte of the user's is taken for its own, so ask again soon.

    Keeping the GIL: whoever waits for this fd must not run before the accept that belongs to it is there.
    """
    while remaining_bytes > 0:
        count = native.receiving(engine_fd, remaining_bytes)()
        if count < 0 and get_errno() in NO_ROOM:
            return remaining_bytes
        if count <= 0:
            return 0  # the user has closed it
        remaining_bytes -= count
    return 0

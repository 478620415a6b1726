"""The TCP half of a listener that accepts both: its connections come out of the same accept() as uTP's.

The kernel does handshakes and backlog; only the hand-over is done here. A Relay carries each connection.

Only the engine's thread calls, but any may make one. Sources: docs/sockets.md §1, §8; listen(2), accept(2).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, Protocol

from utpsocket.engine.channels.tcp import LINGER_ZERO, NO_LINGER, Relay
from utpsocket.engine.faults import NO_ROOM_ERRNOS
from utpsocket.engine.interpreter.native import Socket
from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.kernel.high_fds import move_to_high_fd, taken_over
from utpsocket.engine.kernel.poller import EPOLLET, EPOLLIN
from utpsocket.engine.ports.retries import Retries
from utpsocket.engine.user_fds.socket_state import Role

if TYPE_CHECKING:
    from utpsocket.engine.channels.race import Engine as RacesEngine
    from utpsocket.engine.kernel.high_fds import HighSocket
    from utpsocket.engine.reactor import Watcher
    from utpsocket.protocol import Address

    class Engine(RacesEngine, Protocol):
        """What of it accepts TCP."""

        tcp_accepted: int

        def watch_from_anywhere(self, fd: int, events: int, watcher: Watcher) -> None:
            """As watch(), of an fd that is not watched yet. Any thread."""

    from utpsocket.engine.ports.listener import Listener

_EVENTS: Final = EPOLLIN | EPOLLET
_NO_FD: Final = (errno.EMFILE, errno.ENFILE)
_ACCEPTS_PER_ITERATION: Final = 64  # then other work is done; by feel


class TcpListener:
    """A listening TCP socket at the port number of a listener, once listen() has been called.

    listener   the uTP half, which has the backlog and the settings
    """

    __slots__ = ("_due_at", "_lacks_number", "_listener", "_loop", "_retries", "_tcp", "_waiting")

    def __init__(self, loop: Engine, listener: Listener) -> None:
        self._loop = loop
        self._listener = listener
        self._tcp: HighSocket | None = None
        self._waiting: Relay | None = None  # a connection that was accepted from TCP and not handed over yet
        self._lacks_number = False  # the next connection waits for fd numbers in the kernel's queue
        self._retries = Retries()  # when to try again
        self._due_at: int | None = None  # µs: when _accept_due() is to be called; None: it need not be

    def listen(self, tcp: Socket) -> None:
        """Listen with a bound TCP socket. This object takes it over in one step: to the caller it is closed from then
        on, and where something fails later, the engine's thread closes it with the listener. Any thread.

        Raises OSError, EADDRINUSE for example.
        """
        # An accepted socket inherits this: if anything fails before the hand-over, it is reset and not closed by a FIN.
        tcp.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_LINGER, LINGER_ZERO)
        tcp.listen(self._listener.backlog)
        tcp.setblocking(False)
        family, proto = tcp.family, tcp.proto
        self._tcp = taken = next(taken_over(move_to_high_fd(tcp)))
        Socket.__init__(taken, family, stdlib.SOCK_STREAM, proto, taken.fileno())
        self._loop.watch_from_anywhere(taken.fileno(), _EVENTS, self)

    @property
    def known_events(self) -> int:
        """Events that are remembered, so that LevelPoller need not report them again."""
        return EPOLLIN if self._waiting is not None or self._due_at is not None else 0

    def on_event(self, mask: int) -> None:
        """A connection came in. It is accepted by a timer, later in this iteration: if its connect() was called in this
        process, that is complete by then.
        """
        self._schedule_accept(self._loop.now)

    @property
    def is_waiting(self) -> bool:
        """Whether a connection waits for room in the kernel's queue of accepts, or for an fd number."""
        return self._waiting is not None or self._lacks_number

    def on_room(self) -> None:
        """The program has accepted a connection: hand over the one that waits."""
        if self.is_waiting:
            self._schedule_accept(self._loop.now)

    def _schedule_accept(self, at: int) -> None:
        if self._due_at is None or at < self._due_at:
            self._loop.call_at(at, self._accept_due)
            self._due_at = at

    def _accept_due(self) -> None:
        if self._due_at is None or self._loop.now < self._due_at:
            return  # a timer that was set for a later time, and _accept_due() was called before
        self._due_at = None
        for _ in range(_ACCEPTS_PER_ITERATION):
            listening = self._tcp
            if listening is None:
                return
            try:
                if self._waiting is None:
                    self._lacks_number = False
                    with self._loop.fd_lock:
                        self._waiting = self._accept(listening)
                if self._waiting is None:
                    self._lacks_number = True
                    break
                if not self._hand_over(self._waiting):
                    break
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _NO_FD and error.errno not in NO_ROOM_ERRNOS:
                    continue  # the peer has reset it already
                self._lacks_number = self._waiting is None
                break
        else:
            self._schedule_accept(self._loop.now + 1)  # in the next iteration
            return
        self._schedule_accept(self._retries.next_at(now=self._loop.now))

    def fail(self, error: BaseException) -> None:
        """See faults.py: one connection is reset, and the listener goes on."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.is_over:
            waiting.fail(error)
        if self._tcp is not None:
            self._due_at = None
            self._schedule_accept(self._retries.next_at(now=self._loop.now))

    def _accept(self, listening: HighSocket) -> Relay | None:
        # One for the TCP connection, one for the engine's end of the pair.
        accept = self._listener.accept_queue.with_number(listening._accept, count=2)
        if accept is None:
            return None
        fd, peer = accept()
        try:
            tcp = Socket(fileno=fd)
        except BaseException:
            os.close(fd)
            raise
        try:
            tcp = move_to_high_fd(tcp)
            relay = self._relay(tcp, peer)
            tcp.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_LINGER, NO_LINGER)
            return relay
        except BaseException:
            tcp.close()
            raise

    def _relay(self, tcp: Socket, peer: Address) -> Relay:
        listening = self._listener.identity
        tcp.setblocking(False)
        identity = listening.kind(listening.family)
        identity.cookie = int.from_bytes(os.urandom(8), "big") >> 1
        identity.settings = listening.settings.copy()
        identity.options = dict(listening.options)
        identity.local, identity.peer = tcp.getsockname(), peer
        identity.is_connect_reported = True
        identity.owner_pid = self._loop.pid
        identity.transport = "tcp"
        return Relay(self._loop, identity, None, tcp)

    def _hand_over(self, relay: Relay) -> bool:
        """Hand a connection over to accept(). Returns False if its queue is full, or no fd is left."""
        if relay.engine_sock is None:
            relay.engine_sock = self._listener.new_engine_sock(relay.identity)
            if relay.engine_sock is None:
                return False
        relay.identity.role = Role.CONNECTED  # before connect(): accept() may return at once
        self._loop.channels[relay.cookie] = relay
        code = relay.engine_sock.connect_ex(self._listener.name)
        if code == errno.EAGAIN and not self._listener.identity.is_full:
            # From now on accept() calls commands.on_accept(). It may have made room just before: try again.
            self._listener.identity.is_full = True
            code = relay.engine_sock.connect_ex(self._listener.name)
        if code in NO_ROOM_ERRNOS:
            return False
        if code:
            self.close()  # the user's fd is closed
            return True
        self._retries.reset()
        self._listener.accept_queue.add(relay.cookie)
        self._loop.tcp_accepted += 1
        # From here on an exception is the relay's own; there is no call between these two lines that could raise one.
        self._waiting = None
        self._loop.owner = relay
        try:
            relay.start()
        except OSError as error:  # not the listener's: _accept_due() would go on with the next connection
            relay.fail(error)
        self._loop.owner = self
        return True

    def close(self) -> None:
        """Listen no more: the connection that was not handed over is reset. Idempotent."""
        if self._tcp is not None:
            self._loop.forget_fd(self._tcp.fileno())
            self._tcp.close()
            self._tcp = None
        if self._waiting is not None:
            self._waiting.abort()
            self._waiting = None

    def close_fds(self) -> None:
        """Close the fds: in a forked child, or at the end of the engine."""
        if self._waiting is not None:
            self._waiting.close_fds()
        if self._tcp is not None:
            self._tcp.close()

    def detach_fds(self) -> None:
        """Forget the fds without closing them: they are closed, and their numbers may be reused."""
        if self._waiting is not None:
            self._waiting.detach_fds()
        if self._tcp is not None:
            self._tcp.detach()

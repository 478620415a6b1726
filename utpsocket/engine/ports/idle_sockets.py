"""UDP sockets of connections that are over, kept for the next connect() or bind().

A connection that was dialled without bind() has a UDP socket of its own. To make one takes twelve system calls, a third
of what connect() and the end of the connection need: socket(2), a high number, five options, epoll. So the socket of a
connection that has ended in order is kept for a while, and the next connect() takes it.

No program can tell it from a new one. It is unconnected, bound to nothing, has nothing unread and no error pending; all
of that is asked of the kernel (Port.become_unconnected()). Only sockets that had no option of the program's, and of
which the engine has changed no option since, are kept (kernel/high_fds.py, UdpSocket). It is given to a connect() or
bind() only if a new one would be in the same network namespace and have the same owner, which firewalls and routes may
depend on.

A socket of IPv6 that was connected receives from that peer alone when it is bound: Linux forgets the peer's port, and
not its address. So bind() takes one that was never connected.

A port that bind() has taken is never unbound again, so its socket does not come back. In the place of each that a
bind() has taken the engine's thread makes a new one, at the end of an iteration. bind() of the pure build takes none
(sockets/binding.py).

Sources: connect(2) AF_UNSPEC; udp(7); socket(7) SO_NETNS_COOKIE.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from utpsocket.engine.interpreter.native import SOCK_NONBLOCK, Socket
from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import reraise_handler_error
from utpsocket.engine.kernel.high_fds import UdpSocket, is_far_from_limit, move_to_high_fd
from utpsocket.engine.kernel.udp import prepare

if TYPE_CHECKING:
    from typing import Protocol

    from utpsocket.engine.interpreter.fork_lock import ForkLock
    from utpsocket.engine.kernel.udp import Port
    from utpsocket.engine.reactor import Reactor

    class Engine(Reactor, Protocol):
        """What is used of the engine."""

        fd_lock: ForkLock
        owner: object
        namespace: int
        offload: bool
        udp_buffer_bytes: int


_UDP: Final = int(stdlib.SOCK_DGRAM) | SOCK_NONBLOCK
# The ends of TIME_WAIT come in batches, one in 50 ms (loop.py): enough for 1,280 connections in a second.
_MAX_SOCKETS: Final = 64
# New ones are made only where fewer are kept. By feel: a program that binds more sockets in a row makes some itself.
_MAX_NEW: Final = 8
# A socket that was not used for so long is closed, so that a program that does not connect any more has its descriptors
# back. By feel.
_KEPT_US: Final = 1_000_000


def _kind(family: int, *, to_bind: bool) -> int:
    """What is kept apart: the family, and for IPv6 what was never connected."""
    return -family if to_bind and family == stdlib.AF_INET6 else family


class IdleSockets:
    """Of one engine. take() and replace() may be called by any thread, the rest by the engine's alone.

    kept_us   how long an unused socket is kept
    wanted    families of sockets that make_wanted() is to make
    """

    __slots__ = ("_expired_at", "_loop", "_sockets", "kept_us", "wanted")

    def __init__(self, loop: Engine) -> None:
        self._loop = loop
        # With the time from which on each is unused; the one that was used last is taken first.
        # By _kind().
        self._sockets: dict[int, deque[tuple[int, UdpSocket]]] = {}
        self.kept_us = _KEPT_US
        self._expired_at = 0  # when expire() is called next; 0: never
        self.wanted: deque[int] = deque()

    def __len__(self) -> int:
        return sum(map(len, self._sockets.values()))

    def take(self, family: int, namespace: int, *, to_bind: bool = False) -> UdpSocket | None:
        """A socket of this family in this network namespace, as the calling thread would make it, to be connected or to
        be bound; None if there is none. It belongs to the caller.
        """
        sockets, loop = self._sockets.get(_kind(family, to_bind=to_bind)), self._loop
        if not sockets or namespace != loop.namespace:
            return None
        try:
            _, sock = sockets.pop()
        except IndexError:
            return None  # another thread was first
        wanted = loop.offload, loop.udp_buffer_bytes
        if sock.prepared is not None and sock.prepared[0] == wanted and sock.owner == (os.geteuid(), os.getegid()):
            return sock
        sock.close()
        return None

    def replace(self, family: int) -> None:
        """A bind() has used a socket of this family: have one made for the next."""
        if len(self.wanted) < _MAX_NEW:
            self.wanted.append(family)

    def make_wanted(self) -> None:
        """Make one of the sockets that are wanted. An OSError is passed over."""
        family, loop = self.wanted.popleft(), self._loop
        loop.owner = self
        sockets = self._sockets.setdefault(_kind(family, to_bind=True), deque())
        if len(sockets) >= _MAX_NEW or not loop.namespace or not loop.is_alive:
            return
        with loop.fd_lock:
            try:
                sock = move_to_high_fd(Socket(family, _UDP), UdpSocket)
            except OSError as error:
                reraise_handler_error(error)
                return
            try:
                if isinstance(sock, UdpSocket) and is_far_from_limit(sock.fileno()):
                    found = os.fstat(sock.fileno())
                    sock.owner, sock.prepared = (found.st_uid, found.st_gid), None
                    prepare(sock, offload=loop.offload, buffer_bytes=loop.udp_buffer_bytes)
                    self._keep(sockets, sock)
                    return
            except BaseException:
                sock.close()
                raise
            sock.close()

    def may_keep(self, port: Port) -> bool:
        """Whether put() is likely to keep the socket of this port, which was a connection's own."""
        loop = self._loop
        if not isinstance(port.sock, UdpSocket) or not loop.is_alive:
            return False
        return port.namespace != 0 and port.namespace == loop.namespace and is_far_from_limit(port.fd)

    def put(self, port: Port) -> None:
        """Keep the socket of a port that is closed but for that, or close it."""
        sock = port.sock
        assert isinstance(sock, UdpSocket)
        sockets = self._sockets.setdefault(_kind(port.family, to_bind=False), deque())
        if len(sockets) >= _MAX_SOCKETS or not port.become_unconnected():
            port.close()
            return
        if sock.owner is None:
            found = os.fstat(port.fd)
            sock.owner = found.st_uid, found.st_gid
        self._keep(sockets, sock)

    def _keep(self, sockets: deque[tuple[int, UdpSocket]], sock: UdpSocket) -> None:
        sockets.append((self._loop.now, sock))
        if not self._expired_at:
            self._expire_at(self._loop.now + self.kept_us)

    def _expire_at(self, at: int) -> None:
        self._expired_at = at
        self._loop.call_at(at, self.expire)

    def expire(self) -> None:
        """Close what has been unused for kept_us."""
        self._expired_at = 0
        until = self._loop.now - self.kept_us
        oldest = 0
        for sockets in self._sockets.values():
            while sockets:
                try:
                    entry = sockets.popleft()
                except IndexError:
                    break  # another thread has taken the last one
                if entry[0] > until:
                    sockets.appendleft(entry)
                    oldest = min(oldest or entry[0], entry[0])
                    break
                entry[1].close()
        if oldest:
            self._expire_at(oldest + self.kept_us)

    def fail(self, error: BaseException) -> None:
        """See faults.py."""
        self.close_fds()

    def close_fds(self) -> None:
        """Close all of them."""
        for sockets in self._sockets.values():
            while sockets:
                try:
                    sockets.pop()[1].close()
                except IndexError:
                    break  # as above

    def detach_fds(self) -> None:
        """Forget all of them without closing them."""
        for sockets in self._sockets.values():
            while sockets:
                try:
                    sockets.pop()[1].detach()
                except IndexError:
                    break  # as above

"""What waits for accept() in the kernel's queue of a listener, and which fd number the next connection gets.

Each connection that is served takes two numbers: one that the engine takes at the hand-over, and one that the program
takes by accept(). A program at its limit (RLIMIT_NOFILE) may have a single fd that it closes in order to accept one
more connection and to close it at once. It does so when the listener is readable. So there has to be a connection in
the queue then, and a number for the next one afterwards:

    A number of the program's is taken, but never the last one. For a connection behind others in the queue it is taken
    only if, afterwards, each connection that waits for accept() still finds one.
    Else a kept fd's (kernel/high_fds.py), but only if nothing waits at this listener. So no listener uses up what the
    others need.
    Else it waits until accept() is called, or until the engine's end of another connection is closed.

    Example: 3 numbers left, 2 kept fds, 4 connections come. The first takes one of the 3. The second one would be
    behind it, and waits. The program accepts the first, and has 1 number left. That is not taken: the second connection
    takes a kept fd's, the program accepts it with its last number, and the third one takes the second kept fd's. Now
    accept() fails with EMFILE; the program closes the fd that it has for this, accepts, and closes the connection. The
    engine's end of that is closed as well, and its number is for the fourth connection.

If the program closes other fds than sockets of ours, one at a time, and accepts with each, the kept fds are used up.
Then a number that has been free for _PATIENCE_US is taken, even if it is the last one.

Only the engine's thread calls. Sources: accept(2), getrlimit(2) RLIMIT_NOFILE; poll(2).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sized
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from utpsocket.engine.interpreter.native import poll
from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.interpreter.signal_errors import or_none
from utpsocket.engine.kernel import high_fds

if TYPE_CHECKING:
    from utpsocket.engine.channels.channel import Channel
    from utpsocket.engine.user_fds.socket_state import Identity

    class Engine(Protocol):
        """What of it is asked."""

        now: int
        channels: dict[int, Channel]

        def accept_queues(self) -> Iterable[AcceptQueue]:
            """Those of all listeners."""


_T = TypeVar("_T")
# Connections of which it is remembered that they were handed over; more are counted as so many. By feel.
_MAX_COUNTED: Final = 1_024
# A program that hangs up closes and opens the fd that it has for that within microseconds, unless it is interrupted. By
# feel: the longest that a thread waits for a processor on a busy machine.
_PATIENCE_US: Final = 200_000
_POLLIN: Final = 0x001


class AcceptQueue:
    """Of one listening socket of the program's."""

    __slots__ = ("_cookies", "_free_since", "_identity", "_lacks_number", "_loop", "_prepared")

    def __init__(self, loop: Engine, identity: Identity, prepared: Sized) -> None:
        self._loop = loop
        self._identity = identity  # of the listening socket
        self._prepared = prepared  # connections that have their number and are not handed over yet
        self._cookies: deque[int] = deque(maxlen=_MAX_COUNTED)  # of connections handed over; some were accepted since
        self._free_since: int | None = None  # µs: since when a number has been free that may not be taken at once
        self._lacks_number = False  # the next connection waits for a kept fd

    def add(self, cookie: int) -> None:
        """A connection was handed over."""
        self._cookies.append(cookie)

    def may_have_number(self) -> bool:
        """Whether there may be a number now, where with_number() has found no kept fd."""
        return self._lacks_number and high_fds.kept_count() > 0

    def with_number(self, make: Callable[[], _T], *, count: int = 1) -> Callable[[], _T] | None:
        """make() with a number for the next connection that is to be handed over. None: it has to wait, and from now on
        accept() calls commands.on_accept().

        make    opens one fd
        count   numbers that the connection takes until it is handed over, that one included
        """
        found = self._with_number(make, count)
        if found is None and not self._identity.is_full:
            self._identity.is_full = True
            found = self._with_number(make, count)  # accept() may have been called just before
        if found is not None:
            self._free_since = None
            self._lacks_number = False
        return found

    def _with_number(self, make: Callable[[], _T], count: int) -> Callable[[], _T] | None:
        free_count = high_fds.free_count()
        if free_count is None:
            return partial(high_fds.with_room, make, is_for_accept=True)
        waiting = {queue: queue._waiting_count() for queue in self._loop.accept_queues()}
        missing = high_fds.missing_for_accept(len(waiting))
        needed = sum(waiting.values()) if waiting.get(self) else 0
        if free_count >= needed + 1 + count + missing:
            if missing:
                high_fds.keep_for_accept()
            return make
        self._lacks_number = False
        if waiting.get(self):
            return None
        if high_fds.kept_count() >= count or not missing:
            return partial(high_fds.with_room, make, is_for_accept=True, takes_programs=False)
        self._lacks_number = True
        if free_count + high_fds.kept_count() < count:
            self._free_since = None
        elif self._free_since is None:
            self._free_since = self._loop.now
        elif self._loop.now >= self._free_since + _PATIENCE_US:
            return make
        return None

    def _waiting_count(self) -> int:
        """How many connections wait for accept(); more than there are, where they were accepted otherwise than by our
        accept() in this process. Where the program's fd is not known: those that are not in the queue yet.
        """
        if self._cookies:
            if self._is_readable():
                channels = self._loop.channels
                found = map(channels.get, self._cookies)
                unaccepted = sum(channel is not None and channel.identity.user_fd < 0 for channel in found)
                return max(1, unaccepted) + len(self._prepared)
            self._cookies.clear()
        return len(self._prepared)

    def _is_readable(self) -> bool:
        identity = self._identity
        found = or_none(os.fstat, identity.user_fd) if identity.user_fd >= 0 else None
        if found is None or found.st_ino != identity.inode:
            return False
        poller = poll()
        poller.register(identity.user_fd, _POLLIN)
        return bool(poller.poll(0))

"""What channels and ports use of the engine's thread: the time, events and timers.

Types alone. Loop (loop.py) is the one Reactor of the library; tests make others, without a thread or with a clock of
their own. A module that needs more of its engine than this declares a Protocol of its own that extends this one (the
classes Engine in channels/ and ports/).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from utpsocket.engine.interpreter.fork_lock import ForkLock


class Watcher(Protocol):
    """Handles the events of an fd. Where epoll is replaced by poll(), `known_events` is asked for as well, if there is
    such an attribute: events that need not be reported again.
    """

    def on_event(self, mask: int) -> None:
        """epoll has reported these events."""

    def fail(self, error: BaseException) -> None:
        """The fd cannot be watched any more. See faults.py."""


class Reactor(Protocol):
    """The engine's thread, which alone calls this. Times are µs of the monotonic clock.

    Source: docs/design.md §2.
    """

    now: int
    """When this iteration began, µs."""
    owner: object
    """The object for which the thread works at present: an exception ends it (faults.py). Code that goes on to work for
    another object sets it, and sets it back.
    """
    pid: int
    """The id of the process in which the engine runs."""
    is_alive: bool
    """False once the engine is ending."""
    fd_lock: ForkLock
    """Held while descriptors are made that a fork must not copy half made."""

    @property
    def call_at(self) -> Callable[[int, Callable[[], None]], None]:
        """call_at(at, call): call once, in the first iteration that begins at `at` µs or later.

        It cannot be cancelled: `call` checks whether it is still wanted. If it is a bound method, its object is the
        owner.

        Returns: the function call_at, which returns nothing.
        Source: docs/design.md §2; docs/performance.md §10.
        """

    @property
    def watch(self) -> Callable[[int, int, Watcher], None]:
        """watch(fd, events, watcher): have watcher.on_event(mask) called for these events of epoll.

        Returns: the function watch, which returns nothing, and raises OSError if epoll takes no more descriptors.
        Next: rewatch(), forget_fd().
        Source: epoll_ctl(2) EPOLL_CTL_ADD.
        """

    @property
    def rewatch(self) -> Callable[[int, int], None]:
        """rewatch(fd, events): watch the same descriptor for other events. States that last are reported anew.

        Returns: the function rewatch, which returns nothing.
        Source: epoll_ctl(2) EPOLL_CTL_MOD.
        """

    @property
    def forget_fd(self) -> Callable[[int], None]:
        """forget_fd(fd): report no more events of it. To be called before it is closed; a second call does nothing.

        Returns: the function forget_fd, which returns nothing.
        Source: epoll_ctl(2) EPOLL_CTL_DEL.
        """

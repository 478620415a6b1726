"""What channels and ports may ask of the engine's thread: the time, events, timers, and to be worked on.

Types alone. Loop (loop.py) is the one Reactor of the library; tests make others, without a thread or with a clock of
their own. A module that needs more of its engine than this declares a Protocol of its own that extends this one (the
classes Engine in channels/ and ports/).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from utpsocket.engine.interpreter.fork_lock import ForkLock


class Reactor(Protocol):
    """The engine's thread, which alone calls this. Times are µs of the monotonic clock.

    now        when this iteration began
    owner      what the thread works for just now: an exception costs it (faults.py). Code that goes on to work for
               another object sets it, and sets it back
    pid        of the process that the engine runs in
    is_alive   False once it is ending
    fd_lock    held while fds are made that a fork must not copy half made
    """

    now: int
    owner: Any
    pid: int
    is_alive: bool
    fd_lock: ForkLock

    @property
    def call_at(self) -> Callable[[int, Callable[[], None]], None]:
        """call_at(at, call): call once, in the first iteration that begins at `at` or later; at once if that is past.

        It cannot be cancelled: `call` looks whether it is still wanted. If it is a bound method, its object is the
        owner.
        """

    @property
    def watch(self) -> Callable[[int, int, Any], None]:
        """watch(fd, events, watcher): have watcher.on_event(mask) called for these events of epoll.

        The watcher may have known_events: those need not be told again where epoll is replaced by poll(). Raises
        OSError if epoll takes no more.
        """

    @property
    def rewatch(self) -> Callable[[int, int], None]:
        """rewatch(fd, events): the same fd for other events. Edges that last are told anew."""

    @property
    def forget_fd(self) -> Callable[[int], None]:
        """forget_fd(fd): no events of it any more. Call it before the fd is closed; idempotent."""

    def mark_dirty(self, bridge: Any) -> None:
        """Something has happened to this connection: deliver and send in this iteration."""

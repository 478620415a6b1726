"""What everything on the engine's thread may ask of it: time, events, and to be looked at before it sleeps.

Types alone: Loop is the one Reactor of the library, tests make others. Who needs more than this names it as a Protocol
of its own that extends this one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from utpsocket.engine.interpreter.fork_lock import ForkLock


class Reactor(Protocol):
    """The engine's thread. Times µs, of the monotonic clock.

    now       of this iteration
    owner     for whom the thread works just now: who pays for a fault, see faults.py
    pid       of the process that the engine runs in
    fd_lock   held while fds are made that a fork must not see half made
    """

    now: int
    owner: Any
    pid: int
    is_alive: bool
    fd_lock: ForkLock

    @property
    def call_at(self) -> Callable[[int, Callable[[], None]], None]:
        """Have this called at this time or soon after."""

    @property
    def watch(self) -> Callable[[int, int, Any], None]:
        """Have epoll's events of this fd told to a watcher's on_event()."""

    @property
    def rewatch(self) -> Callable[[int, int], None]:
        """The same, for other events; what is ready is told anew."""

    @property
    def forget_fd(self) -> Callable[[int], None]:
        """Watch it no more. Before it is closed."""

    def mark_dirty(self, bridge: Any) -> None:
        """Something happened to this connection: flush it before sleeping."""

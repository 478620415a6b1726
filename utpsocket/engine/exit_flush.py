"""Deliver what was written before an engine ends, as the kernel does after the end of a process.

Called by the application at its exit, and by an engine in a process of its own when its application has ended. Any
thread but the engine's may call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from utpsocket.engine import commands, environment
from utpsocket.engine.interpreter.native import sleep
from utpsocket.engine.interpreter.originals import time

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from utpsocket.engine.loop import Loop

    _T = TypeVar("_T")

    class Engine(Protocol):
        """In a thread of this process, or in a process of its own."""

        def call(self, command: Callable[[Loop], _T]) -> _T:
            """Have it carry out a command; wait for what it returns."""


# The longest wait without any progress; by feel. UTPSOCKET_EXIT_FLUSH sets another, 0 turns the flush off.
DEFAULT_FLUSH_SECONDS: Final = 5.0
# The longest wait in all; by feel. UTPSOCKET_EXIT_TIMEOUT sets another.
DEFAULT_TOTAL_SECONDS: Final = 30.0
# Between looks at the connections; by feel.
_POLL_SECONDS: Final = 0.002


def flush(loop: Engine, seconds: float | None = None) -> tuple[int, int]:
    """End every connection with a FIN behind what was written, and wait while peers ack.

    The wait ends after `seconds` without progress, and after UTPSOCKET_EXIT_TIMEOUT in any case, since a peer that acks
    a packet now and then could delay the exit without end. A peer that answers but does not read (its window is full)
    is waited for as well, since it may read later, and the kernel would go on over TCP; but not if `seconds` or
    UTPSOCKET_EXIT_FLUSH is given. Connections that are not flushed by then are reset.

    Returns (connections not flushed, bytes lost).
    """
    waits_for_readers = seconds is None and environment.value_if_any("UTPSOCKET_EXIT_FLUSH", None) is None
    if seconds is None:
        seconds = environment.value_if_any("UTPSOCKET_EXIT_FLUSH", DEFAULT_FLUSH_SECONDS)
    if seconds <= 0:
        return 0, 0
    ends_at = time.monotonic() + environment.value_if_any("UTPSOCKET_EXIT_TIMEOUT", DEFAULT_TOTAL_SECONDS)
    loop.call(commands.finish_all)
    last_acked = -1
    deadline = 0.0
    while True:
        waiting, lost_bytes, acked_bytes, unread = loop.call(commands.unflushed)
        if not waiting:
            break
        now = time.monotonic()
        if acked_bytes != last_acked or (unread and waits_for_readers):
            last_acked, deadline = acked_bytes, min(ends_at, now + seconds)
        if now > deadline:
            loop.call(commands.abort_unflushed)
            break
        sleep(_POLL_SECONDS)
    loop.call(commands.repeat_last_acks)
    return waiting, lost_bytes

"""The end of an engine's life: what was written is delivered, as a kernel does after a process's end.

Separate because two may end an engine: the application at its exit, and an engine of its own process that has lost its
application. Any thread but the engine's may call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from utpsocket.engine import commands, environment
from utpsocket.engine.interpreter.native import sleep
from utpsocket.engine.interpreter.originals import time

if TYPE_CHECKING:
    from collections.abc import Callable

    class Engine(Protocol):
        """In a thread of this process, or in a process of its own."""

        def call(self, command: Callable[..., Any], *arguments: Any) -> Any:
            """Have it carry out a command; wait for what it returns."""


# Without any progress, and without an answer; UTPSOCKET_EXIT_FLUSH sets another, 0 turns the flush off.
DEFAULT_FLUSH_SECONDS: Final = 5.0
DEFAULT_TOTAL_SECONDS: Final = 30.0  # however much progress there is; UTPSOCKET_EXIT_TIMEOUT sets another
_POLL_SECONDS: Final = 0.002


def flush(loop: Engine, seconds: float | None = None) -> tuple[int, int]:
    """End every connection with a FIN after what was written, and wait as long as peers make progress: at most
    `seconds` without any, and at most UTPSOCKET_EXIT_TIMEOUT altogether, or a peer that acks a packet now and then
    could keep the process for as long as it likes. A peer that answers and does not read is waited for as well, for it
    may read yet and TCP's kernel would go on, unless somebody has said how long to wait without progress. What has not
    arrived by then is reset, so that no peer waits for it. Returns (connections not flushed, bytes lost).
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

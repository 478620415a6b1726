"""The end of an engine's life: what was written is delivered, as a kernel does after a process's end.

Separate because two may end an engine: the application at its exit, and an engine of its own process that has lost its
application. Any thread but the engine's may call.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from utpsocket.engine import verbs
from utpsocket.engine.native import sleep

if TYPE_CHECKING:
    from utpsocket.engine.loop import Loop
    from utpsocket.engine.remote import RemoteLoop

DEFAULT_FLUSH_SECONDS: Final = 5.0  # without any progress; UTPSOCKET_EXIT_FLUSH sets another, 0 turns the flush off
_POLL_SECONDS: Final = 0.002


def flush(loop: Loop | RemoteLoop, seconds: float | None = None) -> tuple[int, int]:
    """End every connection with a FIN after what was written, and wait as long as peers make progress and at most
    `seconds` without any. Returns (connections not flushed, bytes lost).
    """
    if seconds is None:
        seconds = float(os.environ.get("UTPSOCKET_EXIT_FLUSH", DEFAULT_FLUSH_SECONDS))
    if seconds <= 0:
        return 0, 0
    loop.call(verbs.finish_all)
    last_acked = -1
    deadline = 0.0
    while True:
        waiting, lost_bytes, acked_bytes = loop.call(verbs.unflushed)
        if not waiting:
            loop.call(verbs.repeat_last_acks)
            return 0, 0
        now = time.monotonic()
        if acked_bytes != last_acked:
            last_acked, deadline = acked_bytes, now + seconds
        elif now > deadline:
            return waiting, lost_bytes
        sleep(_POLL_SECONDS)

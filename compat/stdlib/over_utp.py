"""The one place that knows how a process is put over uTP, and how it is taken off again."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Final

# In looks, not by the clock: a machine that stood still for some seconds has not looked.
LOOKS: Final = 2_000
LOOK_S: Final = 0.02  # TIME_WAIT takes 0.6 s, and many seconds where a packet was repeated on a busy machine
THREAD_LOOKS: Final = 500
THREAD_LOOK_S: Final = 0.002


def patch() -> None:
    """Put uTP in place of TCP. The engine, a thread, starts when the first socket needs it."""
    from utpsocket import monkey

    monkey.patch_from_environment()


def start() -> None:
    """Patch, with the engine started: every test then finds its thread when it begins."""
    patch()
    import utpsocket.engine

    utpsocket.engine.engine()


def left_over() -> dict[str, int]:
    """The engine's connections and ports, once what is closed has had its time to end: FINs, TIME_WAIT."""
    from utpsocket.stats import engine_stats

    stats = engine_stats()
    for _ in range(LOOKS):
        if not stats.connections_open and not stats.ports_open:
            break
        time.sleep(LOOK_S)
        stats = engine_stats()
    return {"connections": stats.connections_open, "ports": stats.ports_open}


def shut_down() -> None:
    """End the engine: what it leaves behind after that is a leak."""
    import utpsocket.engine

    utpsocket.engine.shutdown()
    # Its thread has done its last; the kernel may take a moment to strike it off the list.
    tasks = Path("/proc/self/task")
    for _ in range(THREAD_LOOKS):
        if not tasks.is_dir() or len(os.listdir(tasks)) <= threading.active_count():
            break
        time.sleep(THREAD_LOOK_S)

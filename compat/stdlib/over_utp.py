"""The one place that knows how a process is put over uTP, and how it is taken off again."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Final

PATIENCE_S: Final = 3.0  # TIME_WAIT takes 0.6 s
THREAD_PATIENCE_S: Final = 1.0


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

    deadline = time.monotonic() + PATIENCE_S
    while (stats := engine_stats()).connections_open or stats.ports_open:
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    return {"connections": stats.connections_open, "ports": stats.ports_open}


def shut_down() -> None:
    """End the engine: what it leaves behind after that is a leak."""
    import utpsocket.engine

    utpsocket.engine.shutdown()
    # Its thread has done its last; the kernel may take a moment to strike it off the list.
    tasks = Path("/proc/self/task")
    deadline = time.monotonic() + THREAD_PATIENCE_S
    while tasks.is_dir() and len(os.listdir(tasks)) > threading.active_count() and time.monotonic() < deadline:
        time.sleep(0.002)

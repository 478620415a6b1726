"""How a side of a measurement and compat.bench.pair talk: JSON lines on standard output, words on standard input.

    {"port": P}        it listens
    {"ready": true}    connected; waits for "go"
    {"report": ...}    done: `started` and `ended` (time.monotonic(), one clock for all processes), `cpu_seconds`
                       between them, and what the kind of measurement adds
    "stop"             said to a side that cannot know by itself when its last client has gone
    end of input       the sign to end, whatever is going on

Only the standard library: some sides run in an environment that has nothing of this project. utp_native_side.cjs does
the same in JavaScript.
"""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any


def emit(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


class Orders:
    """Standard input, read by a thread of its own, which costs nothing while nobody speaks."""

    def __init__(self) -> None:
        self._heard = {"go": threading.Event(), "stop": threading.Event()}
        self._is_reported = False
        self._is_over = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        # The descriptor: the lock of a Python file would be held when the interpreter exits.
        while text := os.read(0, 100):
            for word in text.decode().split():
                self._heard[word].set()
        if not self._is_reported:
            os._exit(2)
        self._is_over.set()

    def wait_for(self, word: str) -> None:
        self._heard[word].wait()

    def report(self, report: dict[str, Any]) -> None:
        """Say it, then stay until the end of input: the other side may still need this one."""
        self._is_reported = True
        emit({"report": report})
        self._is_over.wait()


class Watch:
    """Time and CPU of this process, from its making to stop()."""

    def __init__(self) -> None:
        self._cpu = time.process_time()
        self.started = time.monotonic()

    def stop(self) -> dict[str, float]:
        ended = time.monotonic()
        return {"started": self.started, "ended": ended, "cpu_seconds": time.process_time() - self._cpu}

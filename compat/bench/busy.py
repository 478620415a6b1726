"""A busy machine: processes that compute for as long as a sample is taken."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

BUSY_PER_CPU: Final = 10
# Ends with its standard input, should whoever started it be killed.
_BUSY: Final = """
import os, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(0)), daemon=True).start()
print(flush=True)
while True:
    pass
"""


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[list[int]]:
    """`count` processes that are busy when this is entered and gone when it is left; their ids."""
    with contextlib.ExitStack() as stack:
        started = []
        for _ in range(count):
            command = [sys.executable, "-I", "-S", "-c", _BUSY]
            process = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
            )
            stack.callback(process.kill)
            started.append(process)
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        yield [process.pid for process in started]


def as_many_as_usual() -> int:
    return BUSY_PER_CPU * (os.cpu_count() or 1)

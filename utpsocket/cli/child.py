"""A command's server in a child process of its own, and how such a server ends: by a signal, or when its stdin does.

demo and perf use it: both measure two processes, and must not leave one behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

# A server that was asked to end and takes longer is killed; by feel.
CHILD_ENDS_SECONDS: Final = 10


class Interrupts:
    """SIGINT and SIGTERM raise KeyboardInterrupt within `allowed()` only; one that comes before waits until then.

    So neither the making nor the removal of a temporary directory is cut short.
    """

    def __init__(self) -> None:
        """Take over both signals; call it in the main thread."""
        self._allowed = self._pending = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, *signal_and_frame: object) -> None:
        self._pending = True
        if self._allowed:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def allowed(self) -> Iterator[None]:
        """Let them interrupt what is done here."""
        try:
            self._allowed = True
            if self._pending:
                raise KeyboardInterrupt
            yield
        finally:
            self._allowed = False


def terminate_at_eof() -> None:
    """Wait for stdin's end, then end this process as SIGTERM does, even while it is still making its file."""
    # Reads the descriptor: the lock of a Python file would be held when the interpreter exits.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


class ServerFailed(Exception):
    """The child process could not serve, or did not end as it should."""


@contextlib.contextmanager
def server_process(*command: str) -> Iterator[int]:
    """`python3 -m utpsocket COMMAND` in a child process; the port in the JSON line that it prints when it is ready.

    The child must end when its stdin does, with status 0; it has ended when this is left.
    """
    # The child must find this package where this process found it, which need not be site-packages.
    package_parent = str(Path(__file__).resolve().parents[2])
    search_path = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH")]))
    # A session of its own: Ctrl-C goes to this process only, and the child ends when its stdin does.
    child = subprocess.Popen(
        [sys.executable, "-m", "utpsocket", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": search_path},
        start_new_session=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        ready = child.stdout.readline()
        if not ready:
            raise ServerFailed("the server did not start")
        yield json.loads(ready)["port"]
    finally:
        child.stdin.close()
        try:
            child.wait(CHILD_ENDS_SECONDS)
        except BaseException as error:
            # Too slow, or a second Ctrl-C: the child must not be left behind.
            child.kill()
            child.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
        finally:
            child.stdout.close()
    if child.returncode:
        raise ServerFailed(f"the server ended with status {child.returncode}")

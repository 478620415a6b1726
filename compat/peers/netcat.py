"""`python3 -m utpsocket nc` in a process of its own, with the few methods of a connected socket that stream.py uses."""

from __future__ import annotations

import re
import subprocess
import sys
from types import TracebackType


class Netcat:
    """What is written to it goes to the program's stdin, and what is read comes from its stdout."""

    def __init__(self, *arguments: str) -> None:
        """Start `nc -v ARGUMENTS`, and read from its stderr where it listens or is connected to.

        Raises OSError if it is neither.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-m", "utpsocket", "nc", "-v", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        assert self._process.stderr is not None
        said = self._process.stderr.readline().decode()
        found = re.fullmatch(r"(?:listening on|connected to) \S+ port (\d+)\n", said)
        if found is None:
            self._process.wait()
            raise OSError(said)
        self.port = int(found[1])

    def wait_for_connection(self) -> None:
        """Of one that listens: until it has a connection. Raises OSError."""
        assert self._process.stderr is not None
        said = self._process.stderr.readline().decode()
        if not said.startswith("connection from "):
            raise OSError(said)

    def recv(self, size_bytes: int) -> bytes:
        """As a socket's. Raises OSError if the program has failed."""
        assert self._process.stdout is not None
        data: bytes = self._process.stdout.read(size_bytes)
        return data

    def sendall(self, data: bytes | memoryview) -> None:
        """As a socket's."""
        assert self._process.stdin is not None
        view = memoryview(data)
        while view:
            view = view[self._process.stdin.write(view) :]

    def shutdown(self, _: int) -> None:
        """End its stdin."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def settimeout(self, _: float | None) -> None:
        """Ignored: the case has a deadline."""

    def setsockopt(self, *_: object) -> None:
        """Ignored: the program sets its options itself."""

    def __enter__(self) -> Netcat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for its end. Raises OSError with what it says if its exit status is not 0."""
        if error is not None:
            self._process.kill()
        self.shutdown(1)
        assert self._process.stderr is not None
        said = self._process.stderr.read().decode()
        if self._process.wait() and error is None:
            raise OSError(said)

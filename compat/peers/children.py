"""Processes that a case starts, and that never outlive it.

Every child prints JSON lines and ends when its standard input does: if this process is killed, the kernel closes the
pipe and the children go by themselves. In the ordinary case `Children.__exit__` ends them by their process id.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]
STOP_SECONDS: Final = 5.0
_END: Final = {"end of output": True}


class Failed(Exception):
    """A case went wrong. The text is fit for a report's `cause`."""

    written = ""
    """what its children had written to standard error when they were ended"""


class ChildFailed(Failed):
    """A child said nothing, said it failed, or ended early."""


class _Living:
    """Every child of this process, so that one call ends all of them whatever thread started them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._children: set[Child] = set()
        self._closed = False

    def add(self, child: Child) -> None:
        with self._lock:
            self._children.add(child)
            closed = self._closed
        if closed:
            child.process.kill()

    def discard(self, child: Child) -> None:
        with self._lock:
            self._children.discard(child)

    def end_all(self) -> None:
        with self._lock:
            self._closed = True
            children = list(self._children)
        for child in children:
            child.process.kill()


_living = _Living()


def end_all() -> None:
    """Kill every child, and every later one at its start: the run is being given up. Callable from any thread."""
    _living.end_all()


class Child:
    """A running process whose JSON lines can be waited for."""

    def __init__(
        self, name: str, command: list[str], *, environment: dict[str, str] | None = None, cwd: Path = REPOSITORY
    ) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile()
        self._messages: queue.Queue[dict[str, Any]] = queue.Queue()
        self._seen: list[dict[str, Any]] = []
        # A session of its own: Ctrl-C reaches the runner alone, which ends its children and says so once.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            start_new_session=True,
        )
        _living.add(self)
        self._reader = threading.Thread(target=self._read, name=f"{name} output", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                message = {"text": line.decode(errors="replace").rstrip()}
            self._messages.put(message if isinstance(message, dict) else {"text": message})
        self._messages.put(_END)

    def expect(self, key: str, *, deadline: float) -> Any:
        """The value of the first message with this key. Raises ChildFailed at the deadline (time.monotonic())."""
        for message in self._seen:
            if key in message:
                return message[key]
        while True:
            try:
                message = self._messages.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise ChildFailed(f"{self.name}: no {key!r} in time{self._last_words()}") from None
            if message is _END:
                self._messages.put(_END)
                self.process.wait()
                raise ChildFailed(f"{self.name}: ended ({self.process.returncode}) without {key!r}{self._last_words()}")
            self._seen.append(message)
            if key in message:
                return message[key]

    def wait(self, *, deadline: float) -> int:
        """Its exit status. Raises ChildFailed at the deadline."""
        try:
            return self.process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise ChildFailed(f"{self.name}: does not end{self._last_words()}") from None

    def story(self) -> str:
        """For a cause: everything it has said so far."""
        with contextlib.suppress(queue.Empty):
            while (message := self._messages.get_nowait()) is not _END:
                self._seen.append(message)
            self._messages.put(_END)
        return f"{self.name} said {self._seen}"

    def tell(self, message: dict[str, Any]) -> None:
        """A line of JSON to its standard input; nothing happens when it has ended."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def finish(self) -> None:
        """Close its standard input: the sign to end."""
        if self.process.stdin and not self.process.stdin.closed:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it, gently if it listens. Harmless when it has ended."""
        self.finish()
        try:
            self.process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self._reader.join(timeout=STOP_SECONDS)
        if self.process.stdout:
            self.process.stdout.close()
        self._errors.close()
        _living.discard(self)

    def errors(self) -> str:
        """The end of what it wrote to standard error."""
        if self._errors.closed:
            return ""
        size = os.fstat(self._errors.fileno()).st_size
        return os.pread(self._errors.fileno(), 2000, max(0, size - 2000)).decode(errors="replace").strip()

    def last_words(self) -> str:
        """The last line of it."""
        lines = [line for line in self.errors().splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""

    def _last_words(self) -> str:
        words = self.last_words()
        return f" ({words})" if words else ""


class Children:
    """Starts processes; ends all of them when the `with` block is left, however it is left."""

    def __init__(self) -> None:
        self._children: list[Child] = []

    def start(
        self, name: str, command: list[str], *, environment: dict[str, str] | None = None, cwd: Path = REPOSITORY
    ) -> Child:
        child = Child(name, command, environment=environment, cwd=cwd)
        self._children.append(child)
        return child

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for child in self._children:
            if error is not None and child.process.poll() is None:
                child.process.kill()
            child.finish()
        for child in self._children:
            if isinstance(error, Failed) and (words := child.last_words()) and words not in str(error):
                error.written += f"; {child.name} wrote: {words}"
            child.stop()

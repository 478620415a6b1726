"""One fault at each call that the engine's thread makes: MemoryError everywhere, errnos at each system call, and the
exceptions that nobody expects (SystemExit, KeyboardInterrupt) in turns.

Separate from worker.py, in which they are injected, because that process may end badly: this one starts another, and
says which point it was. A point reads `engine:<file>:<line>:<what is called>#<occurrence>:<error>`.
"""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.faults.injector import errors_for, is_error
from tests.faults.report import Failure, Note, Report

ROOT = Path(__file__).resolve().parents[2]
NAME = "engine"
_QUICK_POINTS = 120
_SEED = int(os.environ.get("FAULT_SEED", "1"))
_START_S = 150
_POINT_S = 450
_RECORDED_ROUNDS = 3
_LAST_WORDS_BYTES = 3_000
_WORKERS = int(os.environ.get("FAULT_WORKERS", "2"))


class Worker:
    """A process to inject in. What it writes on stderr is kept: how it ended stands there."""

    def __init__(self) -> None:
        self._stderr = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("FAULT_STDERR") else self._stderr,
            cwd=ROOT,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self.answer(_START_S)
        except RuntimeError:
            self.close()
            raise

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def answer(self, seconds: float) -> Any:
        """The next answer. Raises RuntimeError where none comes."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            self._process.send_signal(signal.SIGUSR1)  # it says where its threads are, and ends
            self._process.wait()
            raise RuntimeError(f"the process hangs{self._last_words()}") from None
        if not line:
            raise RuntimeError(f"the process ended with status {self._process.wait()}{self._last_words()}")
        return json.loads(line)

    def ask(self, question: Any, seconds: float) -> Any:
        assert self._process.stdin is not None
        try:
            print(json.dumps(question), file=self._process.stdin, flush=True)
        except OSError:
            pass  # it has ended, and answer() says so
        return self.answer(seconds)

    def _last_words(self) -> str:
        """The end of what it wrote on stderr."""
        self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
        words = self._stderr.read().decode(errors="replace").strip()
        return f": {words}" if words else ""

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except OSError:
                pass
        self._stderr.close()


def points(*, quick: bool) -> list[str]:
    worker = Worker()
    try:
        sites = worker.ask({"record": _RECORDED_ROUNDS}, _POINT_S)["sites"]
    finally:
        worker.close()
    found: list[str] = []
    classes: dict[str, tuple[str, str]] = {}  # what a point is like: its file, and the way in which it fails
    for number, (path, line, name, kind, count) in enumerate(sites):
        usual = max(1, count // _RECORDED_ROUNDS // 2)  # in the middle of things
        for turn, error in enumerate(errors_for(kind, number)):
            occurrence = 1 if turn % 2 == 0 else usual
            found.append(f"{NAME}:{path}:{line}:{name}#{occurrence}:{error}")
            classes[found[-1]] = path, f"{kind} {error}"
    return sample(classes, _QUICK_POINTS) if quick else found


def sample(classes: dict[str, tuple[str, str]], count: int) -> list[str]:
    """So many of the points by the seed's chance, among them one of each file, and one of each way to fail."""
    shuffled = list(classes)
    random.Random(_SEED).shuffle(shuffled)
    met: set[str] = set()
    first: list[str] = []
    others: list[str] = []
    for point in shuffled:
        (others if met.issuperset(classes[point]) else first).append(point)
        met.update(classes[point])
    return [*first, *others][:count]


def parsed(point: str) -> dict[str, Any]:
    _, path, line, rest = point.split(":", 3)
    called, _, error = rest.rpartition(":")
    name, _, occurrence = called.rpartition("#")
    if not is_error(error):
        raise ValueError(f"{error} is no exception and no errno that this tool knows")
    return {"site": (path, int(line), name), "occurrence": int(occurrence), "error": error}


def inject(points: Sequence[str], note: Note) -> Report:
    return run(points, parsed, note)


def run(points: Sequence[str], read: Callable[[str], dict[str, Any]], note: Note) -> Report:
    """All of these points in workers, which understand what `read` makes of each."""
    report = Report()
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for point in points:
        waiting.put(point)
    lock = threading.Lock()

    def work() -> None:
        for point, answer in _answers(waiting, read):
            with lock:
                report.points += 1
                report.injected += bool(answer.get("has_fired"))
                cause = "; ".join(answer["wrong"])
                note(point, bool(answer.get("has_fired")), cause)
                if cause:
                    report.failures.append(Failure(point, point.rpartition(":")[2], cause))
                    print(f"{point}: {cause}", file=sys.stderr, flush=True)
                elif os.environ.get("FAULT_VERBOSE"):
                    print(f"{point}: {answer}", file=sys.stderr, flush=True)
                if report.points % 100 == 0:
                    print(f"{report.points} of {len(points)}", file=sys.stderr, flush=True)

    threads = [threading.Thread(target=work) for _ in range(min(_WORKERS, len(points)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return report


def _answers(waiting: queue.SimpleQueue[str], read: Callable[[str], dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    worker: Worker | None = None
    try:
        while True:
            try:
                point = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                if worker is None:
                    worker = Worker()
                answer = worker.ask(read(point), _POINT_S)
                if answer.get("is_late_only"):  # and not because this machine was away for a second?
                    worker.close()
                    worker = Worker()
                    answer = worker.ask(read(point), _POINT_S)
            except RuntimeError as problem:
                answer = {"wrong": [str(problem)], "is_lost": True, "has_fired": True}
            yield point, answer
            if answer.get("is_lost") and worker is not None:
                worker.close()  # the next point must not pay for this one
                worker = None
    finally:
        if worker is not None:
            worker.close()

"""How many uTP connections this process made, and the same for the processes it starts.

Descendants write their totals to one file, a line each, when they end: a forked one through os._exit (that is how
multiprocessing's children leave), an exec'ed one through atexit. One that is killed is not counted.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_open, _write, _close, _exit = os.open, os.write, os.close, os._exit  # tests replace these now and then


def connections_made() -> int:
    """uTP connections opened and accepted by this process since it started; 0 when it never met utpsocket."""
    if "utpsocket" not in sys.modules:
        return 0
    from utpsocket.stats import engine_stats

    stats = engine_stats()
    return int(stats.connections_initiated + stats.connections_accepted)


def append_line(path: str, line: str) -> None:
    """Add one line to a file in a single write, holding no descriptor between calls."""
    fd = _open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        _write(fd, line.encode() + b"\n")
    finally:
        _close(fd)


def report_at_exit_of_forks(path: str) -> None:
    """From now on, a forked child that leaves through os._exit writes its total to `path` first."""
    os.register_at_fork(after_in_child=lambda: _replace_exit(path))


def report(path: str) -> None:
    """Write this process's total to `path`, if it made any connection."""
    made = connections_made()
    if made:
        append_line(path, str(made))


def total(path: Path) -> int:
    """The sum of what was written to `path`."""
    return sum(map(int, path.read_text(encoding="utf-8").split())) if path.exists() else 0


def _replace_exit(path: str) -> None:
    def exit_after_report(status: int) -> None:
        try:
            report(path)
        finally:
            _exit(status)

    os._exit = exit_after_report  # type: ignore[assignment]

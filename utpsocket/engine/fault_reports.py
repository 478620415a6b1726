"""Faults of the engine are reported to sys.excepthook on a thread of their own.

A program may set sys.excepthook to any function. On the engine's thread that would delay all connections of the
process, and without end if it waits for one of them, or for a lock of a thread that does. So the engine queues the
exception here and goes on. The thread is started when there is something to report, and ends after that.

Any thread may call.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import Final

from utpsocket.engine.interpreter.native import allocate_lock, start_thread

# Reports that wait, by feel; further ones are dropped, so that a hook that blocks does not use up the memory.
_MAX_REPORTS: Final = 64
# At the exit, for a hook that is running; by feel.
_FINISH_SECONDS: Final = 1.0

_reports: deque[BaseException] = deque()
# Held by the thread that reports, or is about to.
_busy = allocate_lock()


def report(error: BaseException) -> None:
    """Have sys.excepthook called with an exception. Does not wait. Raises nothing. Any thread."""
    if len(_reports) < _MAX_REPORTS:
        _reports.append(error)
    _start()


def _start() -> None:
    if _busy.acquire(False):
        try:
            start_thread(_run, b"utpsocket-faults")
        except Exception:
            _busy.release()  # there can be no thread now: the next call tries again, or finish() reports


def _run() -> None:
    while True:
        try:
            _report_all()
        finally:
            _busy.release()
        if not _reports or not _busy.acquire(False):
            return


def finish() -> None:
    """The process ends: report what waits before this returns. A thread of the program's, not the engine's."""
    if _busy.acquire(True, _FINISH_SECONDS):
        try:
            _report_all()
        finally:
            _busy.release()


def _report_all() -> None:
    while _reports:
        _call_excepthook(_reports.popleft())


def _call_excepthook(error: BaseException) -> None:
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except BaseException as worse:  # SystemExit included, which must not end a thread of ours
        try:
            sys.__excepthook__(type(worse), worse, worse.__traceback__)
        except BaseException:
            pass  # there is no further way to report it


def forget() -> None:
    """After a fork, in the child: the parent makes the reports that wait, and its thread does not exist here."""
    global _busy
    _busy = allocate_lock()
    _reports.clear()

"""Reports of the engine's faults are made by a thread of their own.

A program may put anything in place of sys.excepthook. On the engine's thread that code would hold up every connection
of the process, for ever if it waits for one of them or for a lock whose owner does. So the engine hands the exception
over and goes on. The thread is started when there is something to report, and ends when there is not.

Any thread may call.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import Final

from utpsocket.engine.interpreter.native import allocate_lock, start_thread
from utpsocket.engine.interpreter.originals import signal

_MOST_REPORTS: Final = 64  # that wait: a hook that blocks must not make a fault that repeats eat the memory
_FINISH_SECONDS: Final = 1.0  # for a hook that is at work already

_reports: deque[BaseException] = deque()
_busy = allocate_lock()  # held by the thread that works them off, or is about to


def report(error: BaseException) -> None:
    """Have sys.excepthook told of an exception. Never blocks, never raises."""
    if len(_reports) < _MOST_REPORTS:
        _reports.append(error)
    _start()


def _start() -> None:
    if _busy.acquire(False):
        try:
            start_thread(_run, b"utpsocket-faults")
        except Exception:
            _busy.release()  # no thread to be had now: the next call tries again, or finish() does it


def _run() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are for the program's own threads
    while True:
        try:
            _work_off()
        finally:
            _busy.release()
        if not _reports or not _busy.acquire(False):
            return


def finish() -> None:
    """The process ends: what waits is done before this returns. A thread of the program's, never the engine's."""
    if _busy.acquire(True, _FINISH_SECONDS):
        try:
            _work_off()
        finally:
            _busy.release()


def _work_off() -> None:
    while _reports:
        _tell(_reports.popleft())


def _tell(error: BaseException) -> None:
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except BaseException as worse:  # whatever the hook does, SystemExit included, it is no business of a thread of ours
        try:
            sys.__excepthook__(type(worse), worse, worse.__traceback__)
        except BaseException:
            pass  # there is nobody left to tell


def forget() -> None:
    """After a fork, in the child: what waits is the parent's to do, and its thread is not here."""
    global _busy
    _busy = allocate_lock()
    _reports.clear()

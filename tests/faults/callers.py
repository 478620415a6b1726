"""Exceptions in the thread that calls: at each line and instruction, and what is true afterwards.

A signal's handler may raise between any two lines of Python, those of `finally` and `except` included. sys.settrace()
stands for it here: it raises at the n-th line (or instruction, which comes closer to what a signal does within a line,
and is beside the truth between two lines) that runs within utpsocket/ during a call, for each n that there is.
TCP's calls have no such lines: they do their work or they do not, and so must ours.

A point is named callers:CALL:line:N:ERROR or callers:CALL:opcode:N:ERROR. At each line come KeyboardInterrupt, and a
TimeoutError, which is an OSError and must not be taken for a system call's; and in turns whatever else a handler may
raise, its own, SystemExit, a timeout as gevent's, which is no Exception, and MemoryError, which needs no handler. What
must hold after each:

    the call raised what was raised in it, or an errno
    the socket is as it was, or did what it was asked for, or failed with an errno; it says the same of itself in every
    way; the call made once more works, or says what TCP says
    after its close no fd, UDP port or connection of the engine's is left, and its address can be bound

    the engine is the same, and serves

Lines that run in other threads (the engine's) are not counted: exceptions of signals' handlers come to the main thread
alone. tests.faults.engine has those of the engine's.
"""

from __future__ import annotations

import contextlib
import dis
import errno
import gc
import linecache
import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import utpsocket
from tests.faults import cases, inside
from tests.faults.cases import Accept, Case, Connect, CreateBoth, CreateConnection, CreateServer
from tests.faults.drops import DROPS, Drop, DropConnected
from tests.faults.report import Failure, Note, Report
from utpsocket.engine import running_engine
from utpsocket.engine.loop import Loop

NAME = "callers"
CASES = {**cases.CASES, **DROPS}
PACKAGE = str(Path(utpsocket.__file__).parent)
_SEED = int(os.environ.get("FAULT_SEED", "1"))
_QUICK_POINTS = 350
MAX_LINES = 5_000
LEAK_S = 20.0
MAX_LEAK_S = 120.0  # while the last of a connection is being repeated, as Linux gives a FIN 60 s
SOME_OF = 7  # --quick takes each so many-th line
TOGETHER = 40  # points between two looks at what is left over


class Alarm(Exception):
    """What a program's own handler raises."""


class GreenTimeout(BaseException):
    """As gevent.Timeout and eventlet.Timeout are."""


ERRORS: dict[str, Callable[[], BaseException]] = {
    "KeyboardInterrupt": KeyboardInterrupt,
    "MemoryError": MemoryError,
    "TimeoutError": lambda: TimeoutError("by a handler"),
    "Alarm": lambda: Alarm("by a handler"),
    "SystemExit": lambda: SystemExit(3),
    "GreenTimeout": lambda: GreenTimeout("by a handler"),
}
USUAL = "KeyboardInterrupt"
LIKE_AN_ERRNO = "TimeoutError"
OTHERS = [name for name in ERRORS if name not in (USUAL, LIKE_AN_ERRNO)]


class Injection:
    """Raises an exception at the n-th line, or instruction, within the package; n = 0 only counts."""

    def __init__(self, number: int, *, with_opcodes: bool = False, error: str = USUAL) -> None:
        self.number = number
        self.error = ERRORS[error]()
        self.with_opcodes = with_opcodes
        self.lines = 0
        self.at = ""
        self._returning: FrameType | None = None

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        before, hook = sys.gettrace(), sys.unraisablehook
        sys.unraisablehook = lambda _: None  # what is raised in a finalizer
        sys.settrace(self._on_call)
        try:
            yield
        finally:
            sys.settrace(before)
            sys.unraisablehook = hook

    def _on_call(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = self.with_opcodes
        return self._on_line

    def _on_line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event in ("line", "opcode") and not leaves_with(frame):
            self.lines += 1
            if self.lines == self.number:
                sys.settrace(None)
                self.at = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
                if event == "opcode" and dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith("RETURN"):
                    self._returning = frame
                raise self.error
        return self._on_line

    def leave(self) -> None:
        """Where it was raised as a function returned, that function's frame is gone, with all that it held: a handler
        runs after a return, not within. Unlike any other frame, which lives on in the exception's traceback.
        """
        frame, self._returning = self._returning, None
        if frame is not None:
            frame.clear()


def leaves_with(frame: FrameType) -> bool:
    """Whether the next instruction is one of those with which a `with` statement calls __exit__(). CPython shows their
    line once more, and runs no handler between the block's last call and that one.
    """
    if not linecache.getline(frame.f_code.co_filename, frame.f_lineno or 0).lstrip().startswith("with "):
        return False
    _, entered, _ = next(lines for lines in frame.f_code.co_lines() if lines[2] == frame.f_lineno)
    return frame.f_lasti >= entered


def may_lose(case: Case, injection: Injection) -> bool:
    """Whether an exception may go unheard: a finalizer's, or one that the stdlib's Python takes for an errno."""
    is_stdlibs = isinstance(case, (CreateServer, CreateBoth)) and isinstance(injection.error, OSError)
    return isinstance(case, (Drop, DropConnected)) or "__del__" in injection.at or is_stdlibs


def fds() -> tuple[int, int]:
    """How many fds there are, without those that are kept in advance, of which there may be fewer at first, and without
    ports that only wait; and how many connections are at their end, but not over.
    """
    loop = running_engine()
    if isinstance(loop, Loop):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            others, ports, waiting, closing = loop.call(inside.census)
            return others + ports - waiting, closing
    return sum(inside.fds()), 0


def warm_up() -> None:
    """What is made once in a process: the engine, and what it keeps."""
    for case in (Connect, Accept):
        run_once(case, utpsocket, 0)


def run_once(
    case_class: Callable[[Any], Case], module: Any, number: int, *, with_opcodes: bool = False, error: str = USUAL
) -> tuple[Injection, str]:
    """What came of one injection: the injection, and what was wrong. Once more where another program had taken the
    port that the case had chosen.
    """
    while True:
        injection, wrong, is_disturbed = _run(case_class, module, number, with_opcodes=with_opcodes, error=error)
        if not is_disturbed:
            return injection, wrong


def _run(
    case_class: Callable[[Any], Case], module: Any, number: int, *, with_opcodes: bool, error: str
) -> tuple[Injection, str, bool]:
    """Also whether the case could not be carried out, since its port was another program's."""
    is_disturbed = False
    injection = Injection(number, with_opcodes=with_opcodes, error=error)
    case = case_class(module)
    wrong = ""
    raised: BaseException | None = None
    try:
        case.prepare()
        try:
            with injection.active():
                case.call()
        except BaseException as problem:
            raised = problem
        injection.leave()
        if raised is None and injection.at and not may_lose(case, injection):
            wrong = f"{injection.at}: {type(injection.error).__name__} is lost"
        elif raised is not None and raised is not injection.error and not isinstance(raised, OSError):
            wrong = f"{injection.at}: {raised!r} came of it"
        elif raised is not None and not injection.at:
            wrong = f"{raised!r} without any injection"
        if isinstance(case, (CreateServer, CreateBoth, CreateConnection)):
            raised = injection.error.__traceback__ = None  # the stdlib's own functions leave it to that to close
        case.check()
        loop = running_engine()
        assert loop is None or loop.is_alive, "the engine has ended"
    except BaseException as problem:
        wrong = wrong or f"{injection.at}: {type(problem).__name__}: {problem}"
        if isinstance(problem, OSError) and problem.errno == errno.EADDRINUSE:
            engine_pid = getattr(running_engine(), "pid", None) or os.getpid()
            is_disturbed = inside.is_another_programs(getattr(case, "address", ("", 0))[1], {os.getpid(), engine_pid})
    finally:
        raised = injection.error.__traceback__ = None  # until now held, as by a program that catches and tries again
        try:
            case.close()
        except BaseException as problem:
            wrong = wrong or f"{injection.at}: {type(problem).__name__} in close(): {problem}"
    return injection, wrong, is_disturbed


def at_rest() -> int:
    """How many fds there are when every connection that was closed is over, ten times on end."""
    deadline = time.monotonic() + MAX_LEAK_S
    found, calm = fds(), 0
    while calm < 10 and time.monotonic() < deadline:
        time.sleep(0.002)
        before, found = found, fds()
        calm = calm + 1 if found == before and not found[1] else 0
    return found[0]


def left_over(before: int) -> int:
    """How many fds more there are than before, once what is on its way out is gone."""
    start = time.monotonic()
    while True:
        gc.collect()
        now, closing = fds()
        if now <= before or time.monotonic() - start > (MAX_LEAK_S if closing else LEAK_S):
            return max(0, now - before)
        time.sleep(0.005)


def count(name: str, *, with_opcodes: bool, module: Any = utpsocket) -> int:
    """How many lines, or lines and instructions, there are in this call."""
    injection, wrong = run_once(CASES[name], module, 0, with_opcodes=with_opcodes)
    if wrong:
        raise RuntimeError(f"{name} fails without any injection: {wrong}")
    return min(injection.lines, MAX_LINES)


def points(*, quick: bool) -> list[str]:
    """KeyboardInterrupt and what looks like an errno at each line of each call, the others in turns; KeyboardInterrupt
    at instructions as well.
    """
    warm_up()
    found = []
    for name in CASES:
        step = SOME_OF if quick else 1
        for number in range(1, count(name, with_opcodes=False) + 1, step):
            others: tuple[str, ...] = LIKE_AN_ERRNO, OTHERS[number // step % len(OTHERS)]
            if name == "create_both":  # the stdlib takes it for a lack of IPv6
                others = others[1:]
            found += [f"{NAME}:{name}:line:{number}:{error}" for error in (USUAL, *others)]
        step = SOME_OF * 10 if quick else 1
        numbers = range(1, count(name, with_opcodes=True) + 1, step)
        found += [f"{NAME}:{name}:opcode:{number}:{USUAL}" for number in numbers]
    return sample(found) if quick else found


def sample(found: list[str]) -> list[str]:
    """As many of them as a minute has time for, whichever the seed says."""
    return sorted(random.Random(_SEED).sample(found, min(_QUICK_POINTS, len(found))))


def inject(points: Sequence[str], note: Note) -> Report:
    """Raise at each of these points, one after the other."""
    report = Report()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of what an interrupted call had made
        warm_up()
        for start in range(0, len(points), TOGETHER):
            group = points[start : start + TOGETHER]
            found = _inject(group)
            report.add(found)
            causes = {failure.point: failure.cause for failure in found.failures}
            for point in group:
                note(point, True, causes.get(point, ""))
                if point in causes:
                    print(f"{point}: {causes[point]}", file=sys.stderr, flush=True)
    return report


def _inject(points: Sequence[str]) -> Report:
    """A few points, and whether they leave anything; if so, one by one."""
    report = Report()
    before = at_rest()
    for point in points:
        _, name, kind, number, error, *_ = f"{point}:{USUAL}".split(":")
        injection, wrong = run_once(CASES[name], utpsocket, int(number), with_opcodes=kind == "opcode", error=error)
        report.points += 1
        report.injected += bool(injection.at)
        if wrong:
            report.failures.append(Failure(point, error, wrong))
    if left := left_over(before):
        if len(points) == 1:
            report.failures.append(Failure(points[0], points[0].rpartition(":")[2], f"{left} fds left over"))
        else:
            report = Report()
            for point in points:
                report.add(_inject([point]))
    return report

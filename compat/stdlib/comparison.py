"""Modules over both transports, several at a time: as they run beside each other, then what differed again alone.

Used by the commands stdlib and gevent.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from compat.stdlib import alone, baseline
from compat.stdlib.expectations import EXPECTED, Expectation
from compat.stdlib.supervisor import STOP, ModuleRun, Task, run_module
from compat.stdlib.verdict import Verdict, judge

UTP_LIMIT_S: Final = 30.0  # per test, on top of…
UTP_LIMIT_RATIO: Final = 5.0  # …so many times what it took over TCP


@dataclass(frozen=True)
class Package:
    """Test modules of one origin, and the interpreter that runs them.

    info          the interpreter's version
    folder        where the runs over TCP are kept
    tcp_limit_s   seconds that a test may take over TCP
    task          what runs a module: its name, the transport, globs of tests, and each test's time limit
    expected      what must differ
    """

    info: tuple[int, ...]
    folder: Path
    tcp_limit_s: float
    task: Callable[[str, str, alone.Match, Callable[[str], float]], Task]
    expected: tuple[Expectation, ...] = EXPECTED


def add_options(parser: argparse.ArgumentParser) -> None:
    """What compare() is asked, and how much is told."""
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="modules at a time (default 1: tests have time limits)"
    )
    parser.add_argument(
        "--runs", type=int, default=1, metavar="N", help="runs over uTP; a test counts if it passes in every one"
    )
    parser.add_argument("--match", action="append", default=[], metavar="GLOB", help="only tests of such ids")
    parser.add_argument("--fresh", action="store_true", help="measure TCP again instead of trusting the cache")
    parser.add_argument("--brief", action="store_true", help="no causes of unexpected differences")


def compare(
    package: Package, names: Sequence[str], options: argparse.Namespace
) -> tuple[list[Verdict], dict[str, str]] | None:
    """Run these modules, and print a line for each when it is done.

    -> the verdicts in the order of the names, and what was different under load only, as alone.settle(); None if
       interrupted
    """
    verdicts: dict[str, Verdict] = {}
    differing: dict[str, _Comparison] = {}
    only_under_load: dict[str, str] = {}

    def run(name: str) -> None:
        comparison = _Comparison(package, name, options)
        verdicts[name] = verdict = comparison.verdict()
        if not verdict.good:
            differing[name] = comparison
        note = "ok" if verdict.good else f"{len(verdict.unexpected)} unexpected, {len(verdict.stale)} stale"
        pace = f"{verdict.seconds:.0f} s, TCP {verdict.tcp_seconds:.0f} s"
        print(
            f"[{len(verdicts)}/{len(names)}] {name}: {note} ({pace})",
            *verdict.unexpected,
            *verdict.stale,
            *verdict.leftovers,
            *verdict.troubles,
            sep="\n    ",
            file=sys.stderr,
        )

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # an ended CI job leaves no process under test behind
    with ThreadPoolExecutor(options.jobs) as pool:
        try:
            list(pool.map(run, names))
            for name in filter(differing.__contains__, names):
                verdicts[name], under_load = differing[name].settled()
                only_under_load |= under_load
        except KeyboardInterrupt:
            STOP.set()
            pool.shutdown(cancel_futures=True)
            print("interrupted", file=sys.stderr)
            return None
    return [verdicts[name] for name in names], only_under_load


class _Comparison:
    """One module over both transports."""

    def __init__(self, package: Package, name: str, options: argparse.Namespace) -> None:
        self._package = package
        self._name = name
        self._match = tuple(options.match)
        self._tcp = self._over_tcp(fresh=options.fresh)
        self._utp = [self._run("utp", self._match) for _ in range(options.runs)]

    def verdict(self) -> Verdict:
        """As they ran, beside others."""
        return self._judge(self._tcp, self._utp)

    def settled(self) -> tuple[Verdict, dict[str, str]]:
        """After what differed has been run again alone, which must be now."""
        subject = alone.Subject(self._name, self._run, self._judge)
        return alone.settle(subject, self._tcp, self._utp, self._match)

    def _over_tcp(self, *, fresh: bool) -> ModuleRun:
        package, match = self._package, self._match
        task = self._task("tcp", match)
        kept = None if fresh else baseline.load(package.folder, task.module)
        if kept and match:
            kept.tests = {
                identity: record
                for identity, record in kept.tests.items()
                if any(fnmatchcase(identity.partition("#")[0], pattern) for pattern in match)
            }
        if kept:
            return kept
        run = run_module(task)
        if not match and not run.troubles and not STOP.is_set():
            baseline.keep(package.folder, run)
        return run

    def _run(self, transport: str, match: alone.Match) -> ModuleRun:
        return run_module(self._task(transport, match))

    def _task(self, transport: str, match: alone.Match) -> Task:
        limit_s = self._utp_limit_s if transport == "utp" else lambda _: self._package.tcp_limit_s
        return self._package.task(self._name, transport, match, limit_s)

    def _utp_limit_s(self, identity: str) -> float:
        known = self._tcp.tests.get(identity)
        return UTP_LIMIT_S + UTP_LIMIT_RATIO * (known.seconds if known else 0.0)

    def _judge(self, tcp: ModuleRun, utp: list[ModuleRun]) -> Verdict:
        is_stand_in = bool(os.environ.get("COMPAT_STDLIB_STAND_IN"))
        package = self._package
        verdict = judge(tcp, utp, package.info, stand_in=is_stand_in, expected=package.expected)
        verdict.name = self._name
        return verdict

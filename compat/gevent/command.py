"""The command line of python3 -m compat gevent."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from compat.gevent.expectations import EXPECTED
from compat.gevent.fetches import FETCH_BYTES, LATE_MS
from compat.gevent.modules import EXCLUDED, MODULES, PACKAGE, QUICK, select
from compat.peers.provision import Unavailable, environment_with
from compat.stdlib import alone, baseline, report
from compat.stdlib.supervisor import ROOT, STOP, ModuleRun, Task, run_module
from compat.stdlib.verdict import Verdict, judge

FETCHES: Final = "fetches"  # not a module of gevent's: fetches.py
ATTEMPTS: Final = 3
GEVENT_VERSION: Final = "26.9.0"
TCP_LIMIT_S: Final = 60.0  # per test; gevent's own tests give up after a few seconds
UTP_LIMIT_S: Final = 30.0  # per test, on top of…
UTP_LIMIT_RATIO: Final = 5.0  # …so many times what it took over TCP

_QUESTION: Final = """\
import gevent, gevent.tests, json, pkgutil, sys
names = [module.name for module in pkgutil.iter_modules(gevent.tests.__path__) if module.name.startswith("test_")]
print(json.dumps([sys.version, sys.version_info[:3], gevent.__version__, names]))
"""


@dataclass(frozen=True)
class Subject:
    """The interpreter under test and the gevent in it."""

    path: str
    version: str
    info: tuple[int, ...]
    gevent_version: str
    modules: list[str]


def main(argv: list[str]) -> int:
    """Run the command; 0 all as it should be, 1 something is not, 2 wrong usage."""
    options = _parser().parse_args(argv)
    try:
        subject = _ask(str(environment_with("gevent", GEVENT_VERSION)))
    except (OSError, subprocess.CalledProcessError, ValueError, Unavailable) as failure:
        print(f"gevent {GEVENT_VERSION} cannot be had: {failure}", file=sys.stderr)
        return 2
    wanted = tuple(options.files) or (QUICK if options.quick else (*MODULES, FETCHES))
    names = select(wanted, subject.modules)
    if not names and FETCHES not in wanted:
        print(f"gevent {subject.gevent_version} has none of: {' '.join(wanted)}", file=sys.stderr)
        return 2

    verdicts: dict[str, Verdict] = {}
    differing: dict[str, _Comparison] = {}
    only_under_load: dict[str, str] = {}

    def run(name: str) -> None:
        comparison = _Comparison(subject, name, options)
        verdicts[name] = verdict = comparison.verdict()
        if not verdict.good:
            differing[name] = comparison
        note = "ok" if verdict.good else f"{len(verdict.unexpected)} unexpected, {len(verdict.stale)} stale"
        pace = f"{verdict.seconds:.0f} s, TCP {verdict.tcp_seconds:.0f} s"
        print(f"[{len(verdicts)}/{len(names)}] {name}: {note} ({pace})", file=sys.stderr)

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
            return 1
    ordered = [verdicts[name] for name in names]
    if ordered:
        print(report.as_text(ordered, causes=not options.brief), file=sys.stderr)
    print(*report.only_under_load(only_under_load), sep="", end="", file=sys.stderr)
    figures = _fetch(subject) if FETCHES in wanted else {}
    if options.json:
        answer = report.as_json(subject.version, ordered) | {"only_under_load": only_under_load}
        print(json.dumps({**answer, "gevent": subject.gevent_version, FETCHES: figures}, indent=1))
    return 0 if all(verdict.good for verdict in ordered) and figures.get("good", True) else 1


def _fetch(subject: Subject) -> dict[str, Any]:
    """A thousand fetches while a greenlet ticks. Of up to ATTEMPTS the best counts: what else the machine does makes
    ticks late too.
    """
    best: dict[str, Any] = {}
    for _ in range(ATTEMPTS):
        command = [subject.path, "-m", "compat.gevent.fetches"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if ran.returncode:
            return {"good": False, "cause": ran.stderr[-2_000:]}
        figures = json.loads(ran.stdout)
        worst_ms = max(figures[side]["worst_late_ms"] for side in ("client", "server"))
        is_whole = figures["whole"] == figures["fetches"] == figures["utp_connections"]
        figures |= {"worst_late_ms": worst_ms, "good": is_whole and worst_ms <= LATE_MS}
        print(
            f"{figures['whole']} of {figures['fetches']} greenlets fetched {FETCH_BYTES:,} bytes in "
            f"{figures['seconds']} s; a tick was late by {worst_ms} ms at worst (bound {LATE_MS:.0f} ms)",
            file=sys.stderr,
        )
        if not best or (figures["good"], -worst_ms) > (best["good"], -best["worst_late_ms"]):
            best = figures
        if figures["good"] or not is_whole:
            break
    return best


class _Comparison:
    """One module over both transports."""

    def __init__(self, subject: Subject, name: str, options: argparse.Namespace) -> None:
        self._subject = subject
        self._name = name
        self._match = tuple(options.match)
        self._tcp = _over_tcp(subject, name, self._match, fresh=options.fresh)
        self._utp = [self._run("utp", self._match) for _ in range(options.runs)]

    def verdict(self) -> Verdict:
        """As they ran, beside others."""
        return self._judge(self._tcp, self._utp)

    def settled(self) -> tuple[Verdict, dict[str, str]]:
        """After what differed has been run again alone, which must be now."""
        again = alone.Subject(self._name, self._run, self._judge)
        return alone.settle(again, self._tcp, self._utp, self._match)

    def _run(self, transport: str, match: tuple[str, ...]) -> ModuleRun:
        limit_s = self._limit_s if transport == "utp" else lambda _: TCP_LIMIT_S
        name = f"{PACKAGE}.{self._name}"
        return run_module(Task(self._subject.path, name, transport, match, limit_s, exclude=tuple(EXCLUDED)))

    def _limit_s(self, identity: str) -> float:
        known = self._tcp.tests.get(identity)
        return UTP_LIMIT_S + UTP_LIMIT_RATIO * (known.seconds if known else 0.0)

    def _judge(self, tcp: ModuleRun, utp: list[ModuleRun]) -> Verdict:
        is_stand_in = bool(os.environ.get("COMPAT_STDLIB_STAND_IN"))
        verdict = judge(tcp, utp, self._subject.info, stand_in=is_stand_in, expected=EXPECTED)
        verdict.name = self._name
        return verdict


def _over_tcp(subject: Subject, name: str, match: tuple[str, ...], *, fresh: bool) -> ModuleRun:
    full_name = f"{PACKAGE}.{name}"
    folder = _cache_folder(subject)
    kept = None if fresh or match else baseline.load(folder, full_name)
    if kept:
        return kept
    task = Task(subject.path, full_name, "tcp", match, lambda _: TCP_LIMIT_S, exclude=tuple(EXCLUDED))
    run = run_module(task)
    if not match and not run.troubles and not STOP.is_set():
        baseline.keep(folder, run)
    return run


def _cache_folder(subject: Subject) -> Path:
    return baseline.cache_folder(f"{subject.version} gevent {subject.gevent_version} {_digest()}")


def _digest() -> str:
    return hashlib.sha256(repr(EXCLUDED).encode()).hexdigest()


def _ask(python: str) -> Subject:
    answer = subprocess.run([python, "-c", _QUESTION], capture_output=True, check=True, text=True)
    known: list[Any] = json.loads(answer.stdout)
    return Subject(python, known[0], tuple(known[1]), known[2], known[3])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m compat gevent",
        description="gevent's own test modules, unedited, over uTP beside TCP.",
        epilog="Files are names or globs: test__socket, 'test__server*'. `fetches` is a thousand greenlets that fetch"
        " while one ticks. Without: all that matter.",
    )
    parser.add_argument("files", nargs="*", metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="the subset for continuous integration")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="modules at a time")
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="runs over uTP; a test must pass in each")
    parser.add_argument("--match", action="append", default=[], metavar="GLOB", help="only tests of such ids")
    parser.add_argument("--fresh", action="store_true", help="measure TCP again instead of trusting the cache")
    parser.add_argument("--brief", action="store_true", help="no causes of unexpected differences")
    return parser

"""The command line of python3 -m compat stdlib."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from compat.stdlib import alone, baseline, report, table
from compat.stdlib.expectations import expectation
from compat.stdlib.modules import MODULES, QUICK, START_METHOD_MODULE, START_METHODS, select
from compat.stdlib.supervisor import ROOT, STOP, ModuleRun, Task, run_module
from compat.stdlib.verdict import Verdict, judge

TCP_LIMIT_S: Final = 90.0  # per test; the longest that ends over TCP takes about a third of it
UTP_LIMIT_S: Final = 30.0  # per test, on top of…
UTP_LIMIT_RATIO: Final = 5.0  # …so many times what it took over TCP


@dataclass(frozen=True)
class Interpreter:
    """The Python under test."""

    path: str
    version: str
    info: tuple[int, ...]
    modules: list[str]
    sources: dict[str, str]  # of modules it does not ship


def main(argv: list[str]) -> int:
    """Run the command; 0 all as it should be, 1 something is not, 2 wrong usage."""
    options = _parser().parse_args(argv)
    try:
        interpreter = _ask(options.python)
    except (OSError, subprocess.CalledProcessError, ValueError) as failure:
        print(f"{options.python} ships no test package, or does not run: {failure}", file=sys.stderr)
        return 2
    wanted = tuple(options.modules) or (QUICK if options.quick else MODULES)
    names = select(wanted, interpreter.modules)
    if not names:
        print(f"{options.python} has none of: {' '.join(wanted)}", file=sys.stderr)
        return 2

    verdicts: dict[str, Verdict] = {}
    differing: dict[str, _Comparison] = {}

    def run(name: str) -> None:
        comparison = _Comparison(interpreter, name, options)
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

    only_under_load: dict[str, str] = {}
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
    print(report.as_text(ordered, causes=not options.brief), file=sys.stderr)
    print(*report.only_under_load(only_under_load), sep="", end="", file=sys.stderr)
    found = report.as_json(interpreter.version, ordered) | {"only_under_load": only_under_load}
    if options.json:
        print(json.dumps(found, indent=1))
    unknown = _compare_with_table(options.check_table, found, interpreter.info) if options.check_table else []
    print(*unknown, sep="\n", end="\n" if unknown else "", file=sys.stderr)
    if options.table:
        feature = table.feature_version(interpreter.version)
        written = table.read(options.table, feature) or table.Table()
        table.write(options.table, feature, written.updated(table.seen(found)))
    return 0 if all(verdict.good for verdict in ordered) and not unknown else 1


def _compare_with_table(path: Path, found: dict[str, Any], version: tuple[int, ...]) -> list[str]:
    feature = table.feature_version(found["python"])
    written = table.read(path, feature)
    if written is None:
        return [f"{path} has no table of CPython {feature}"]
    races = {test for test in found["expected"] if (entry := expectation(test, version)) and entry.sometimes}
    return [f"{path}: {line}" for line in table.disagreements(written, table.seen(found), races)]


class _Comparison:
    """One module over both transports."""

    def __init__(self, interpreter: Interpreter, name: str, options: argparse.Namespace) -> None:
        self._interpreter = interpreter
        self._name = name
        self._match = tuple(options.match)
        self._tcp = _over_tcp(interpreter, name, self._match, fresh=options.fresh)
        self._utp = [self._run("utp", self._match) for _ in range(options.runs)]

    def verdict(self) -> Verdict:
        """As they ran, beside others."""
        return self._judge(self._tcp, self._utp)

    def settled(self) -> tuple[Verdict, dict[str, str]]:
        """After what differed has been run again alone, which must be now."""
        subject = alone.Subject(self._name, self._run, self._judge)
        return alone.settle(subject, self._tcp, self._utp, self._match)

    def _run(self, transport: str, match: tuple[str, ...]) -> ModuleRun:
        limit_s = self._limit_s if transport == "utp" else lambda _: TCP_LIMIT_S
        source = self._interpreter.sources.get(self._name, "")
        return run_module(Task(self._interpreter.path, self._name, transport, match, limit_s, source))

    def _limit_s(self, identity: str) -> float:
        known = self._tcp.tests.get(identity)
        return UTP_LIMIT_S + UTP_LIMIT_RATIO * (known.seconds if known else 0.0)

    def _judge(self, tcp: ModuleRun, utp: list[ModuleRun]) -> Verdict:
        is_stand_in = bool(os.environ.get("COMPAT_STDLIB_STAND_IN"))
        return judge(tcp, utp, self._interpreter.info, stand_in=is_stand_in)


def _over_tcp(interpreter: Interpreter, name: str, match: tuple[str, ...], *, fresh: bool) -> ModuleRun:
    folder = baseline.cache_folder(interpreter.version)
    kept = None if fresh else baseline.load(folder, name)
    if kept and match:
        kept.tests = {
            identity: record
            for identity, record in kept.tests.items()
            if any(fnmatchcase(identity.partition("#")[0], pattern) for pattern in match)
        }
    if kept:
        return kept
    source = interpreter.sources.get(name, "")
    run = run_module(Task(interpreter.path, name, "tcp", match, lambda _: TCP_LIMIT_S, source))
    if not match and not run.troubles and not STOP.is_set():
        baseline.keep(folder, run)
    return run


def _ask(python: str) -> Interpreter:
    answer = subprocess.run(
        [python, "-m", "compat.stdlib.child", "--list"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
        text=True,
    )
    known: dict[str, Any] = json.loads(answer.stdout)
    modules = list(known["modules"])
    sources = {}
    if "_test_multiprocessing" in modules:
        missing = [name for name in START_METHODS if not select((name,), modules)]
        sources = {name: START_METHOD_MODULE.format(method=START_METHODS[name]) for name in missing}
    return Interpreter(python, known["version"], tuple(known["info"]), [*modules, *sources], sources)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m compat stdlib",
        description="The interpreter's own test modules, unedited, over uTP beside TCP.",
        epilog="Modules are names or globs: test_socket, 'test_urllib*', 'test_asyncio.*'. Without: all that matter.",
    )
    parser.add_argument("modules", nargs="*", metavar="MODULE")
    parser.add_argument("--quick", action="store_true", help="the subset for continuous integration")
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="the interpreter under test")
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
    parser.add_argument("--table", type=Path, metavar="FILE", help="write these modules' rows of the table there")
    parser.add_argument(
        "--check-table", type=Path, metavar="FILE", help="fail if the table does not know what was seen"
    )
    return parser

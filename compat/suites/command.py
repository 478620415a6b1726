"""The command line of python3 -m compat suites."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from compat.peers.provision import Unavailable
from compat.stdlib import alone, report, table
from compat.stdlib.supervisor import STOP, ModuleRun, Task, run_module
from compat.stdlib.verdict import Verdict, judge
from compat.suites.expectations import EXPECTED
from compat.suites.libraries import LIBRARIES, QUICK, Library, select
from compat.suites.provision import Provided, provide

TEST_LIMIT_S: Final = 150.0  # per test, over either transport; aiohttp's own limit is 120
BEGIN_LIMIT_S: Final = 180.0  # imports and collection: thousands of tests
ALONE_ROUNDS: Final = 3  # of a test that differed
VERSION: Final = sys.version_info[:3]

LAYOUT: Final = table.Layout(
    markers=("<!-- compat suites {feature}: begin -->", "<!-- compat suites {feature}: end -->"),
    introduction=(
        "CPython {feature}: tests passing over TCP, and these over uTP in every run. Relevant are those that make"
        " internet stream sockets."
    ),
    first="suite",
    columns=("version", "over_tcp", "same", "relevant", "relevant_same", "expected", "utp_connections", "runs"),
    headings=(
        "version",
        "pass over TCP",
        "same over uTP",
        "relevant",
        "same",
        "expected differences",
        "uTP connections",
        "runs",
    ),
)


def main(argv: list[str]) -> int:
    """Run the command; 0 all as it should be, 1 something is not, 2 wrong usage."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.table and options.match:
        parser.error("--table wants whole suites, not those of --match")
    libraries = select(tuple(options.suites) or (QUICK if options.quick else ("*",)))
    if not libraries:
        print(f"no such suite; there are: {' '.join(library.name for library in LIBRARIES)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # an ended CI job leaves no process under test behind
    verdicts: list[Verdict] = []
    only_under_load: dict[str, str] = {}
    unavailable: dict[str, str] = {}
    try:
        for library in libraries:
            try:
                provided = provide(library)
            except Unavailable as failure:
                unavailable[library.name] = str(failure)
                print(f"{library.name} {library.version} cannot be had: {failure}", file=sys.stderr)
                continue
            walk = _Walk(library, provided, options)
            verdict = walk.verdict()
            verdicts.append(verdict)
            only_under_load |= walk.only_under_load
            note = "ok" if verdict.good else f"{len(verdict.unexpected)} unexpected, {len(verdict.stale)} stale"
            pace = f"{verdict.seconds:.0f} s, TCP {verdict.tcp_seconds:.0f} s"
            print(f"[{len(verdicts)}/{len(libraries)}] {library.name}: {note} ({pace})", file=sys.stderr)
    except KeyboardInterrupt:
        STOP.set()
        print("interrupted", file=sys.stderr)
        return 1
    if verdicts:
        print(report.as_text(verdicts, causes=not options.brief), file=sys.stderr)
    print(*report.only_under_load(only_under_load), sep="", end="", file=sys.stderr)
    found = _as_json(libraries, verdicts) | {"only_under_load": only_under_load, "unavailable": unavailable}
    if options.json:
        print(json.dumps(found, indent=1))
    if options.table:
        feature = table.feature_version(found["python"])
        written = table.read(options.table, feature, LAYOUT) or table.Table()
        # Not which tests were slow: a suite is run once, and what else the machine did decides about single tests.
        seen = table.seen(found | {"modules": found["suites"], "slow": {}}, LAYOUT)
        table.write(options.table, feature, written.updated(seen), LAYOUT)
    return 0 if verdicts and all(verdict.good for verdict in verdicts) and not unavailable else 1


class _Walk:
    """One suite over both transports, as often as asked for, and what differed alone."""

    def __init__(self, library: Library, provided: Provided, options: argparse.Namespace) -> None:
        self._library = library
        self._provided = provided
        self._match = tuple(options.match)
        self._rounds = options.runs
        self.only_under_load: dict[str, str] = {}  # id: how it differed when the others ran too

    def verdict(self) -> Verdict:
        """Run it. An interrupted run's verdict is not to be used."""
        tcp, utp = self._alternately(self._match, self._rounds)
        # A suite takes too long to be run again as a whole.
        subject = alone.Subject(self._library.name, self._run, self._judge, ALONE_ROUNDS, module_rounds=0)
        verdict, self.only_under_load = alone.settle(subject, alone.worst_of(tcp), utp)
        return verdict

    def _judge(self, tcp: ModuleRun, utp: list[ModuleRun]) -> Verdict:
        is_stand_in = bool(os.environ.get("COMPAT_STDLIB_STAND_IN"))
        return judge(tcp, utp, VERSION, stand_in=is_stand_in, expected=EXPECTED)

    def _alternately(self, match: tuple[str, ...], rounds: int) -> tuple[list[ModuleRun], list[ModuleRun]]:
        runs: dict[str, list[ModuleRun]] = {"tcp": [], "utp": []}
        for _ in range(rounds):
            for transport, done in runs.items():
                done.append(self._run(transport, match))
        return runs["tcp"], runs["utp"]

    def _run(self, transport: str, match: tuple[str, ...]) -> ModuleRun:
        return run_module(self._task(transport, match))

    def _task(self, transport: str, match: tuple[str, ...]) -> Task:
        return Task(
            self._provided.python,
            self._library.name,
            transport,
            match,
            lambda _: TEST_LIMIT_S,
            exclude=tuple(pattern for pattern, _ in self._library.excluded),
            child="compat.suites.child",
            files=self._provided.files,
            arguments=self._library.arguments,
            begin_limit_s=BEGIN_LIMIT_S,
        )


def _as_json(libraries: Iterable[Library], verdicts: list[Verdict]) -> dict[str, Any]:
    """The object of docs/commands.md, and beside its keys what compat stdlib says too."""
    versions = {library.name: library.version for library in libraries}
    found = report.as_json(sys.version, verdicts)
    suites = [{"name": suite["name"], "version": versions[suite["name"]], **suite} for suite in found.pop("modules")]
    return {"suites": suites, **found}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m compat suites",
        description="Libraries' own test suites, unedited, over uTP beside TCP.",
        epilog=f"Suites: {', '.join(library.name for library in LIBRARIES)}; globs too. Without: all of them.",
    )
    parser.add_argument("suites", nargs="*", metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="the subset for continuous integration")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument(
        "--runs", type=int, default=1, metavar="N", help="rounds over TCP and uTP; a test counts if it passes in each"
    )
    parser.add_argument("--match", action="append", default=[], metavar="GLOB", help="only tests of such ids")
    parser.add_argument("--brief", action="store_true", help="no causes of unexpected differences")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write these suites' rows of the table there")
    return parser

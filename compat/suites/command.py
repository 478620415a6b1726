"""The command line of python3 -m compat suites."""

from __future__ import annotations

import argparse
import glob
import json
import os
import signal
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from compat.peers.provision import Unavailable
from compat.stdlib import report, table
from compat.stdlib.child import SEVERITY
from compat.stdlib.supervisor import STOP, ModuleRun, Outcome, Task, run_module
from compat.stdlib.verdict import Verdict, judge
from compat.suites.expectations import EXPECTED
from compat.suites.libraries import LIBRARIES, QUICK, Library, select
from compat.suites.provision import Provided, provide

TEST_LIMIT_S: Final = 150.0  # per test, over either transport; aiohttp's own limit is 120
BEGIN_LIMIT_S: Final = 180.0  # imports and collection: thousands of tests
ALONE_ROUNDS: Final = 3  # of a test that differed
ALONE_AT_MOST: Final = 40  # more than that differ for one reason, which load is not
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
    for identity, cause in only_under_load.items():
        print(f"alone it is the same: {identity}: {cause.splitlines()[0]}", file=sys.stderr)
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
        baseline = _worst_of(tcp)
        verdict = self._judge(baseline, utp)
        if verdict.unexpected and not STOP.is_set():
            self._repeat_alone(baseline, utp, verdict.unexpected)
            verdict = self._judge(baseline, utp)
        return verdict

    def _judge(self, tcp: ModuleRun, utp: list[ModuleRun]) -> Verdict:
        is_stand_in = bool(os.environ.get("COMPAT_STDLIB_STAND_IN"))
        return judge(tcp, utp, VERSION, stand_in=is_stand_in, expected=EXPECTED)

    def _alternately(self, match: tuple[str, ...], rounds: int) -> tuple[list[ModuleRun], list[ModuleRun]]:
        runs: dict[str, list[ModuleRun]] = {"tcp": [], "utp": []}
        for _ in range(rounds):
            for transport, done in runs.items():
                done.append(run_module(self._task(transport, match)))
        return runs["tcp"], runs["utp"]

    def _repeat_alone(self, tcp: ModuleRun, utp: list[ModuleRun], unexpected: dict[str, str]) -> None:
        """What differed is run in processes of its own; what it does there counts, over TCP too."""
        for identity in list(unexpected)[:ALONE_AT_MOST]:
            match = (glob.escape(identity.partition("#")[0]),)
            alone_tcp, alone_utp = self._alternately(match, ALONE_ROUNDS)
            over_tcp = _worst_of(alone_tcp).tests.get(identity)
            over_utp = _worst_of(alone_utp).tests.get(identity)
            print(
                f"alone: {identity}: {over_utp.status if over_utp else 'missing'},"
                f" over TCP {over_tcp.status if over_tcp else 'missing'}",
                file=sys.stderr,
            )
            if over_tcp and over_utp:
                if over_utp.status == over_tcp.status:
                    self.only_under_load[identity] = unexpected[identity]
                tcp.tests[identity] = over_tcp
                for run in utp:
                    run.tests[identity] = over_utp

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


def _worst_of(runs: list[ModuleRun]) -> ModuleRun:
    """One run in which every test has the worst outcome of these. What it leaves is the most of what they left."""
    first = runs[0]
    tests: dict[str, Outcome] = {}
    for run in runs:
        for identity, outcome in run.tests.items():
            known = tests.get(identity)
            if known is None or _severity(outcome) > _severity(known):
                tests[identity] = outcome
    seconds = sum(run.seconds for run in runs)
    troubles = [trouble for run in runs for trouble in run.troubles]
    return replace(first, tests=tests, seconds=seconds, leftovers=_most(runs), troubles=troubles)


def _severity(outcome: Outcome) -> int:
    return SEVERITY.index(outcome.status) if outcome.status in SEVERITY else len(SEVERITY)


def _most(runs: list[ModuleRun]) -> dict[str, Any]:
    left = [run.leftovers for run in runs if run.leftovers]
    if not left:
        return {}
    kinds = {kind for held in left for kind in held["fds"]}
    return {
        "fds": {kind: max(held["fds"].get(kind, 0) for held in left) for kind in kinds},
        "threads": max(held["threads"] for held in left),
        "udp_ports": max(held["udp_ports"] for held in left),
    }


def _as_json(libraries: Iterable[Library], verdicts: list[Verdict]) -> dict[str, Any]:
    """The object of COMMANDS.md, and beside its keys what compat stdlib says too."""
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

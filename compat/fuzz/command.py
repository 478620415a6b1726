"""The command line of python3 -m compat fuzz: many sequences at a time, each in one of a few processes."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from compat.fuzz.compare import Difference, Finding, Kind, examine, shorten
from compat.fuzz.machine import run

_PROGRESS_S: Final = 10.0
_JOBS: Final = 6  # mostly they wait
_SHORTENED_PER_KIND: Final = 2
_SLOWLY_S: Final = 0.05


def main(argv: list[str]) -> int:
    """Run the command; 0 nothing differs but what must, 1 something does, 2 wrong usage."""
    options = _parser().parse_args(argv)
    if options.replay is not None:
        return _replay(options.replay)
    with _pool(options.jobs) as each:
        findings = []
        told_at = time.monotonic()
        chosen = range(options.first, options.first + options.runs)
        for finding in each(examine, [(options.seed, number) for number in chosen]):
            findings.append(finding)
            if finding.difference is not None:
                print(_describe(finding), file=sys.stderr)
            if time.monotonic() > told_at + _PROGRESS_S:
                told_at = time.monotonic()
                print(f"[{len(findings)}/{options.runs}]", file=sys.stderr)
        found = _kinds(findings, each)
    expected = Counter(reason for finding in findings for reason in finding.reasons)
    report: dict[str, Any] = {
        "sequences": options.runs,
        "differ": sum(len(numbers) for _, numbers in found.values()),
        "expected": sum(bool(finding.reasons) for finding in findings),
        "kinds": [
            {"call": kind.call, "tcp": kind.tcp, "utp": kind.utp, "count": len(numbers), "script": script}
            for kind, (script, numbers) in found.items()
        ],
    }
    for reason, count in expected.most_common():
        print(f"{count:5} must differ: {reason}", file=sys.stderr)
    for kind, (script, numbers) in found.items():
        which = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
        print(f"\n{len(numbers):5} {kind.call}: TCP {kind.tcp}, uTP {kind.utp}   (sequences {which})", file=sys.stderr)
        print("".join(f"        {line}\n" for line in script), end="", file=sys.stderr)
    summary = f"{report['differ']} differ, {report['expected']} as they must"
    print(f"{options.runs} sequences of seed {options.seed}: {summary}", file=sys.stderr)
    if options.json:
        print(json.dumps(report, indent=1))
    return 1 if found else 0


def _describe(finding: Finding) -> str:
    assert finding.difference is not None
    kind = finding.difference.kind
    return f"sequence {finding.number}: {kind.call}: TCP {kind.tcp}, uTP {kind.utp}"


_Each = Callable[[Callable[..., Any], list[tuple[Any, ...]]], Iterator[Any]]


@contextmanager
def _pool(jobs: int) -> Iterator[_Each]:
    """Calls a function with each of many arguments, in other processes; the results come in order."""
    # Spawned: each has an engine of its own, and a fork of this process's threads would have none.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:

        def each(function: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> Iterator[Any]:
            return pool.map(function, *zip(*arguments, strict=True)) if arguments else iter(())

        yield each


def _kinds(findings: list[Finding], each: _Each) -> dict[Kind, tuple[list[str], list[int]]]:
    """The kinds of difference, the most frequent first: a script of a few lines, and the sequences."""
    groups: dict[Kind, list[Finding]] = {}
    for finding in findings:
        if finding.difference is not None:
            groups.setdefault(finding.difference.kind, []).append(finding)
    tried = [
        (finding.lines, finding.difference) for group in groups.values() for finding in group[:_SHORTENED_PER_KIND]
    ]
    scripts: dict[Kind, list[str]] = {}
    shortened: tuple[list[str], Difference]
    for shortened in each(shorten, tried):
        lines, difference = shortened
        if difference.kind not in scripts or len(lines) < len(scripts[difference.kind]):
            scripts[difference.kind] = lines
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return {kind: (scripts[kind], [finding.number for finding in group]) for kind, group in ordered}


def _replay(path: str) -> int:
    """Run the lines of a file over both networks, slowly, and print the results beside each other."""
    text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    tcp, utp = run(lines, "tcp", slowly=_SLOWLY_S), run(lines, "utp", slowly=_SLOWLY_S)
    same = True
    for index, line in enumerate(lines):
        print(line)
        for name, trace in (("TCP", tcp), ("uTP", utp)):
            if index < len(trace.results):
                print(f"    {name} {trace.results[index]!r}   {trace.looks[index]}")
        at = slice(index, index + 1)
        if (tcp.results[at], tcp.looks[at]) != (utp.results[at], utp.looks[at]):
            print("    ^ differ")
            same = False
    return 0 if same else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m compat fuzz",
        description="Random sequences of socket calls over TCP and over uTP; every difference is shrunk and printed.",
    )
    parser.add_argument("--runs", type=int, default=300, metavar="N", help="so many sequences (default 300)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="of the sequences (default 1)")
    parser.add_argument("--first", type=int, default=0, metavar="K", help="begin with this one of the seed's sequences")
    parser.add_argument("--jobs", type=int, default=_JOBS, metavar="J", help=f"at a time (default {_JOBS})")
    parser.add_argument("--replay", metavar="FILE", help="run one script over both, and show every line's results")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser

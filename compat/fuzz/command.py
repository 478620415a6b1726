"""The command line of python3 -m compat fuzz."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from compat.fuzz.compare import Kind, compare, compare_slowly, shorten
from compat.fuzz.expected import expectation
from compat.fuzz.machine import run
from compat.fuzz.sequences import sequence

_PROGRESS_S = 10.0


def main(argv: list[str]) -> int:
    """Run the command; 0 nothing differs but what must, 1 something does, 2 wrong usage."""
    options = _parser().parse_args(argv)
    if options.replay is not None:
        return _replay(options.replay)
    counts: Counter[Kind] = Counter()
    scripts: dict[Kind, list[str]] = {}
    where: dict[Kind, int] = {}
    expected: Counter[str] = Counter()
    numbers = range(options.first, options.first + options.runs)
    told_at = time.monotonic()
    for done, number in enumerate(numbers, 1):
        lines = sequence(options.seed, number)
        found = compare(lines)
        if found is not None and found.kind not in counts:
            lines, found = shorten(lines, found)
            slow = compare_slowly(lines)  # what is found in haste only is the haste's
            found = slow and type(found)(slow.kind, slow.line)
        if found is not None:
            entry = expectation(lines, found.kind)
            if entry is not None:
                expected[entry.reason] += 1
            else:
                counts[found.kind] += 1
                if found.kind not in scripts:
                    print(
                        f"sequence {number}: {found.kind.call}: TCP {found.kind.tcp}, uTP {found.kind.utp}",
                        file=sys.stderr,
                    )
                    scripts[found.kind], where[found.kind] = lines, number
        if time.monotonic() > told_at + _PROGRESS_S:
            told_at = time.monotonic()
            print(f"[{done}/{options.runs}] {sum(counts.values())} differ", file=sys.stderr)
    report: dict[str, Any] = {
        "sequences": options.runs,
        "differ": sum(counts.values()),
        "expected": sum(expected.values()),
        "kinds": [
            {"call": kind.call, "tcp": kind.tcp, "utp": kind.utp, "count": count, "script": scripts[kind]}
            for kind, count in counts.most_common()
        ],
    }
    for reason, count in expected.most_common():
        print(f"{count:5} must differ: {reason}", file=sys.stderr)
    for kind, count in counts.most_common():
        print(f"\n{count:5} {kind.call}: TCP {kind.tcp}, uTP {kind.utp}   (sequence {where[kind]})", file=sys.stderr)
        print("".join(f"        {line}\n" for line in scripts[kind]), end="", file=sys.stderr)
    print(f"{options.runs} sequences, {report['differ']} differ, {report['expected']} as they must", file=sys.stderr)
    if options.json:
        print(json.dumps(report, indent=1))
    return 1 if counts else 0


def _replay(path: str) -> int:
    """Run the lines of a file over both networks, slowly, and print the results beside each other."""
    text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    tcp, utp = run(lines, "tcp", slowly=0.05), run(lines, "utp", slowly=0.05)
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
    parser.add_argument("--replay", metavar="FILE", help="run one script over both, and show every line's results")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser

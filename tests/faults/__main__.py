"""python3 -m tests.faults [--quick | --all] [--list] [CASE…]: one exception or errno at each call, one after the other.

    --engine process, --poller poll, --plain-calls    the same with UTPSOCKET_ENGINE, _POLLER and _KEEP_GIL=0
    --journal FILE    what is done is written there, and is not done again: --all can be ended, and go on

Prints one JSON object on stdout: `points, injected, failures: [{point, error, cause}]`; notes go to stderr. The status
is 0 if nothing failed, 1 if something did, 2 for wrong usage.

CASE is a family (`engine`, `callers`), the beginning of points' names, or one point as a failure names it: that replays
it. Without any, all families are tried.

    engine    exceptions and errnos on the engine's thread, with twenty connections that nothing may happen to
    kernel    system calls of that thread that fail, the next of a kind or all for a second
    callers   exceptions at every line of connect(), bind(), accept() and others, in the thread that calls them
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from typing import cast

from tests.faults.report import Family, Journal, Report

FAMILIES = ("engine", "kernel", "callers")


def family(name: str) -> Family | None:
    """The module of that name in this package, if there is one."""
    module = f"tests.faults.{name}"
    if importlib.util.find_spec(module) is None:
        return None
    return cast(Family, importlib.import_module(module))


def chosen(family_points: Sequence[str], name: str, cases: Sequence[str]) -> list[str]:
    """The points that the cases name."""
    if not cases or name in cases:
        return list(family_points)
    found = [point for point in family_points if any(point.startswith(case) for case in cases)]
    # Named in full, a point need not be among those that were found this time.
    whole = [case for case in cases if case.startswith(f"{name}:") and case.count(":") > 2 and case not in found]
    return found + whole


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        "python3 -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    how_many = parser.add_mutually_exclusive_group()
    how_many.add_argument(
        "--quick",
        action="store_true",
        help="a sample by seed, of every file and every way to fail, that takes about two minutes",
    )
    how_many.add_argument("--all", action="store_true", help="every point (the default)")
    parser.add_argument("--list", action="store_true", help="print the points' names and inject nothing")
    parser.add_argument("--engine", choices=("thread", "process"), default="thread", help="where the engine is")
    parser.add_argument("--poller", choices=("epoll", "poll"), default="epoll", help="what it waits with")
    parser.add_argument("--plain-calls", action="store_true", help="the socket module's calls instead of ctypes'")
    parser.add_argument(
        "--journal", default="", metavar="FILE", help="what is done is written there, and not done again"
    )
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parsed = parser.parse_args(arguments)
    # Before anything of utpsocket's is imported, and for the processes that are started.
    for variable in [name for name in os.environ if name.startswith("UTPSOCKET_")]:
        del os.environ[variable]
    os.environ["UTPSOCKET_ENGINE"] = parsed.engine
    os.environ["UTPSOCKET_POLLER"] = parsed.poller
    os.environ["UTPSOCKET_KEEP_GIL"] = "0" if parsed.plain_calls else "1"
    report = Report()
    journal = Journal(parsed.journal)
    found = 0
    for name in FAMILIES:
        if parsed.cases and not any(case.split(":")[0] == name for case in parsed.cases):
            continue
        module = family(name)
        if module is None:
            continue
        points = chosen(module.points(quick=parsed.quick), name, parsed.cases)
        found += len(points)
        if parsed.list:
            print(*points, sep="\n")
        elif points:
            left = journal.left(points, report)
            print(f"{name}: {len(left)} points", file=sys.stderr, flush=True)
            if left:
                report.add(module.inject(left, journal.note))
    if not found:
        print(f"python3 -m tests.faults: no point is named {' or '.join(parsed.cases)}", file=sys.stderr)
        return 2
    if not parsed.list:
        print(json.dumps(report.plain(), indent=1))
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

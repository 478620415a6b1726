"""The command: which scenarios, the lines while they run, the JSON and the table at the end."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import NoReturn

from compat.peers import children
from compat.peers.provision import Unavailable
from compat.programs import provision
from compat.programs.runner import Row, run_scenario
from compat.programs.scenario import Scenario, every_scenario


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    table = every_scenario()
    unknown = [name for name in options.names if name not in table]
    if unknown:
        print(f"no such program: {', '.join(unknown)} (--list names them)", file=sys.stderr)
        return 2
    chosen = [
        scenario
        for scenario in table.values()
        if (scenario.patched or not options.control)
        and (scenario.name in options.names if options.names else scenario.quick or not options.quick)
    ]
    if options.list:
        print("\n".join(f"{each.name:24}{' '.join(each.packages)}" for each in chosen), file=sys.stderr)
        return 0
    try:
        rows = _run(chosen, options.jobs, control=options.control)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1
    except Unavailable as error:
        print(f"no environment for the programs: {error}", file=sys.stderr)
        return 1
    counts = {status: sum(row.status == status for row in rows) for status in ("pass", "fail", "skip")}
    print(f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped", file=sys.stderr)
    if options.json:
        print(json.dumps({"programs": [row.json() for row in rows]}))
    if options.table:
        options.table.write_text(as_markdown(rows), encoding="utf-8")
    return 0 if all(row.status == "pass" for row in rows) else 1


def as_markdown(rows: list[Row]) -> str:
    """The table for README's readers."""
    passed = sum(row.status == "pass" for row in rows)
    lines = [
        "# Programs over uTP",
        "",
        f"{passed} of {len(rows)} scenarios passed. Both sides of each are the programs' own, unmodified, and over",
        "uTP; the counts are uTP connections accepted. Written by `python3 -m compat programs --table FILE`.",
        "",
        "| scenario | version | status | connections | cause |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cause = row.cause.replace("|", "\\|")
        lines.append(f"| {row.name} | {row.version} | {row.status} | {row.utp_connections} | {cause} |")
    return "\n".join(lines) + "\n"


def _run(chosen: list[Scenario], jobs: int, *, control: bool) -> list[Row]:
    """All rows, in the table's order, each shown as it comes."""
    environment = provision.environment()
    environment.install({package for scenario in chosen for package in scenario.packages})

    def run(scenario: Scenario) -> Row:
        row = run_scenario(scenario, environment, control=control)
        _show(row)
        return row

    previous = signal.signal(signal.SIGTERM, _interrupt)  # an ended CI job leaves no program behind
    with ThreadPoolExecutor(jobs) as pool:
        try:
            return list(pool.map(run, chosen))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            children.end_all()
            raise
        finally:
            signal.signal(signal.SIGTERM, previous)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _show(row: Row) -> None:
    print(
        f"{row.status:5}{row.name:26}{row.version:16}{row.utp_connections:4} connections {row.seconds:6.2f} s"
        + (f"\n     {row.cause}" if row.cause else ""),
        file=sys.stderr,
        flush=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m compat programs",
        description="Programs that were never written for uTP, each a small scenario with both sides over it.",
        epilog="Exit status 0: everything passed. A program that cannot be installed is a skip with its cause.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="scenarios; all unless said")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument("--quick", action="store_true", help="those that CI runs")
    parser.add_argument("--list", action="store_true", help="name the scenarios and run none")
    parser.add_argument("--control", action="store_true", help="both sides over TCP: a test of the scenarios")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="scenarios at a time (default 2)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the results there as a markdown table")
    return parser

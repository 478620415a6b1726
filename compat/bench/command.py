"""The command: which cases and subjects, how many rounds, and what is printed at the end."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

from compat.bench import cases, chart, goals, rounds, subjects, table
from compat.peers import children

DEFAULT_ROUNDS: Final = 5
DEFAULT_SECONDS: Final = 1.0
QUICK_ROUNDS: Final = 2
QUICK_SECONDS: Final = 0.3


def main(argv: list[str]) -> int:
    parser = _parser()
    options = parser.parse_args(argv)
    if options.against and not (options.against / "utpsocket" / "__init__.py").is_file():
        parser.error(f"no utpsocket in {options.against}")
    if subjects.EARLIER in (options.subjects or ()) and not options.against:
        parser.error(f"{subjects.EARLIER} needs --against")
    if options.earlier and not options.chart:
        parser.error("--from has no use without --chart")
    unknown = [name for name in options.cases if name not in cases.BY_NAME]
    unknown += [name for name in options.subjects or () if name not in subjects.SUBJECTS]
    if unknown:
        there = f"cases: {', '.join(cases.BY_NAME)}; subjects: {', '.join(subjects.SUBJECTS)}"
        print(f"no such case or subject: {', '.join(unknown)} ({there})", file=sys.stderr)
        return 2
    if options.list:
        for case in cases.ALL:
            print(f"{case.name:24}{case.about} ({case.unit}): {', '.join(case.subjects)}", file=sys.stderr)
        return 0
    names = options.cases or (cases.QUICK if options.quick else tuple(cases.BY_NAME))
    wanted = options.subjects or (rounds.QUICK_SUBJECTS if options.quick else _usual_subjects(options.against))
    count = options.rounds or (QUICK_ROUNDS if options.quick else DEFAULT_ROUNDS)
    seconds = options.seconds or (QUICK_SECONDS if options.quick else DEFAULT_SECONDS)

    if options.earlier:
        return _draw(json.loads(options.earlier.read_text(encoding="utf-8")), options.chart)
    machine = table.machine()
    if options.against:
        subjects.measure_against(options.against)
        machine["against"] = table.commit(options.against)
    compared = goals.keys(table.build(), is_beside_earlier=bool(options.against)) if options.goals_only else None
    rows = rounds.planned(names, wanted, compared)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        rounds.prepare(rows)
        rounds.run(rows, count=count, seconds=seconds)
    except KeyboardInterrupt:
        children.end_all()
        print("interrupted", file=sys.stderr)
        return 1
    status = 0 if rows and all(row.samples and not row.causes for row in rows) else 1

    text = table.markdown(rows, machine, count)
    if options.table:
        options.table.write_text(text, encoding="utf-8")
    result = {
        "machine": machine,
        "build": table.build(),
        "rows": [row.json(table.tcps(row, rows)) for row in rows],
    }
    if options.chart:
        status = _draw(result, options.chart) or status
    if options.json:
        print(json.dumps(result))
    people = sys.stderr if options.json else sys.stdout
    print(text, file=people)
    if options.goals or options.goals_only:
        print(goals.table(rows, table.build()), file=people)
    return status


def _usual_subjects(against: Path | None) -> list[str]:
    """All that differ from one another here."""
    left_out = {subjects.PURE if table.build() == "pure" else "", "" if against else subjects.EARLIER}
    return [subject for subject in subjects.SUBJECTS if subject not in left_out]


def _draw(result: dict[str, Any], path: Path) -> int:
    """Write the chart; the exit status."""
    try:
        path.write_text(chart.draw(result), encoding="utf-8")
    except chart.ChartFailed as error:
        print(f"no chart: {error}", file=sys.stderr)
        return 1
    return 0


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m compat bench",
        description="How fast and at what cost, side by side with kernel TCP and with others, alternating, in one run.",
        epilog="Exit status 0: every measurement was taken. How fast anything was does not matter to it.",
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(cases.BY_NAME)}; all unless said")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument("--rounds", type=_positive(int), metavar="N", help=f"default: {DEFAULT_ROUNDS}")
    parser.add_argument("--seconds", type=_positive(float), metavar="S", help="of each measurement (default: 1)")
    parser.add_argument("--subjects", nargs="+", metavar="NAME", help=f"of {', '.join(subjects.SUBJECTS)}")
    parser.add_argument("--quick", action="store_true", help="a few cases against TCP only, in half a minute")
    parser.add_argument("--goals", action="store_true", help="print the project's goals and what this run obtained")
    parser.add_argument(
        "--goals-only", action="store_true", help="the same, and measure nothing but what the goals compare"
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="TREE",
        help=f"a checkout of an earlier commit, measured in the same rounds as {subjects.EARLIER}",
    )
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the result there, in Markdown")
    parser.add_argument("--chart", type=Path, metavar="FILE.svg", help="draw it there")
    parser.add_argument(
        "--from", dest="earlier", type=Path, metavar="FILE.json", help="draw what --json printed then, measure nothing"
    )
    parser.add_argument("--list", action="store_true", help="name the cases and measure none")
    return parser


def _positive(kind: type[int | float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        found = kind(text)
        if found <= 0:
            raise ValueError(text)
        return found

    return number  # argparse says "invalid number value"

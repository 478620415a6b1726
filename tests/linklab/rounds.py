"""Cases run for subjects, their figures as JSON and as a table.

A row is what one run of one case with one subject gave. It is written as soon as it is there, so that a table can be
made of several commands' rows, of interrupted ones too: `--rows FILE` appends them, `--from FILE …` reads them.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from tests.linklab.cases import EVERY, Case
from tests.linklab.flows import ONE_STREAM, ROOT, Flow
from tests.linklab.lab import Lab, LabFailed, available_tcp
from tests.linklab.measured import Measured

Row = dict[str, Any]
UNKNOWN: Final = "unknown"
MARKS: Final = {"met": " ✓", "missed": " ✗", "": ""}


class CannotRun(Exception):
    """The case cannot be run here, or not with this subject; the text says why."""


def run_case(case: Case, subject: str, tree: str, seen: Callable[[Measured], None] = lambda measured: None) -> Row:
    """Run it once. Raises CannotRun; Unavailable where the subject is not to be had; LabFailed.

    seen  is called with the run
    """
    for name in case.tcp:
        if name not in available_tcp():
            raise CannotRun(f"this kernel's TCP has no {name}")
    if case.streams > 1 and Flow(subject).transport in ONE_STREAM:
        raise CannotRun(f"{subject} has one connection for each process")
    flows = [replace(flow, tree=tree) for flow in case.flows(subject)]
    with Lab(replace(case.forward), replace(case.back or case.forward)) as lab:
        measured = lab.run(flows, seconds=case.seconds, changes=case.changes)
    seen(measured)
    figures = [figure.as_json() | {"shown": figure.shown} for figure in case.figures(measured)]
    statuses = {figure["status"] for figure in figures}
    return {
        "name": case.name,
        "subject": subject,
        "commit": commit_of(tree) if Flow(subject).transport == "utp" else "",
        "status": "missed" if "missed" in statuses else "met" if "met" in statuses else "",
        "figures": figures,
        "doubtful": measured.doubt,
        "emulator": measured.report,
        "machine": machine(),
    }


def run_rows(
    cases: Sequence[Case], subjects: Sequence[str], rounds: int, tree: str, note: Callable[[str], None]
) -> Iterator[Row]:
    """Each case with each subject, then all of it again. What cannot be run is noted, and is no row.

    A run that is in doubt and misses a goal is repeated once, and the second one counts.
    """
    for _ in range(rounds):
        for case in cases:
            for subject in subjects:
                try:
                    row = run_case(case, subject, tree)
                    if row["doubtful"] and row["status"] == "missed":
                        note(f"{as_text(row)}\n    it is run again")
                        row = run_case(case, subject, tree)
                except CannotRun as problem:
                    note(f"{case.name}, {subject}: not run: {problem}")
                    continue
                except LabFailed as failure:
                    row = {"name": case.name, "subject": subject, "status": "failed", "cause": str(failure)}
                    row |= {"figures": [], "doubtful": "", "commit": "", "machine": machine()}
                note(as_text(row))
                yield row


def as_text(row: Row) -> str:
    """One row, for people."""
    lines = [f"{row['name']}, {row['subject']}: {row['status'] or 'measured'}{': ' if 'cause' in row else ''}"]
    lines[0] += row.get("cause", "")
    for figure in row["figures"]:
        goal = f" (goal {figure['goal']}: {figure['status']})" if figure["goal"] else ""
        lines.append(f"    {figure['name']}: {figure['shown']}{goal}")
    if row["doubtful"]:
        lines.append(f"    DOUBTFUL: {row['doubtful']}")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Where and when."""
    cpu = UNKNOWN
    for line in Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {
        "cpus": os.cpu_count(),
        "cpu": cpu,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def commit_of(tree: str) -> str:
    """The commit that is measured, with "+" where the package differs from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", tree, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", "utpsocket") else "")
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN


def read_rows(files: Iterable[Path]) -> list[Row]:
    """What `--rows` has written. Raises ValueError, OSError."""
    return [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines() if line]


def as_table(rows: Sequence[Row]) -> str:
    """RESULTS.md: a line for each figure, a column for each subject; medians where there are several runs."""
    subjects = list(dict.fromkeys(row["subject"] for row in rows))
    names = [name for name in EVERY if any(row["name"] == name for row in rows)]
    lines = [*_head(rows), f"| case | figure | goal | {' | '.join(subjects)} |", "|---" * (3 + len(subjects)) + "|"]
    for name in names:
        of_case = [row for row in rows if row["name"] == name and row["figures"]]
        if not of_case:
            continue
        for number, figure in enumerate(of_case[0]["figures"]):
            cells = [_cell([row for row in of_case if row["subject"] == subject], number) for subject in subjects]
            case = f"**{name}**: {EVERY[name].what}" if number == 0 else ""
            lines.append(f"| {case} | {figure['name']} | {figure['goal']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_doubts(rows)]).rstrip() + "\n"


def _cell(rows: Sequence[Row], number: int) -> str:
    if not rows:
        return ""
    figures = [row["figures"][number] for row in rows]
    doubt = " ?" if any(row["doubtful"] for row in rows) else ""
    if len(figures) == 1 or any(figure["value"] is None for figure in figures):
        worst = next((figure for figure in figures if figure["value"] is None), figures[0])
        return (
            f"{worst['shown'] if worst['goal'] or worst['value'] is not None else '–'}{MARKS[worst['status']]}{doubt}"
        )
    middle = statistics.median_low(figure["value"] for figure in figures)
    shown = next(figure for figure in figures if figure["value"] == middle)
    low, high = (choose(figures, key=lambda figure: figure["value"])["shown"].split()[0] for choose in (min, max))
    between = f" ({low} to {high})" if low != high else ""
    return f"{shown['shown']}{between}{MARKS[shown['status']]}{doubt}"


def _head(rows: Sequence[Row]) -> Iterator[str]:
    commits = list(_commits(rows))
    places = sorted({f"{row['machine']['cpus']} CPUs ({row['machine']['cpu']})" for row in rows})
    kernels = sorted({f"Linux {row['machine']['kernel']}, Python {row['machine']['python']}" for row in rows})
    loads = [row["machine"]["load"] for row in rows]
    dates = sorted({row["machine"]["date"] for row in rows})
    yield "# The link lab's cases"
    yield ""
    yield "`python3 -m tests.linklab --cases --subjects … --rows FILE`, and `--from FILE --table` writes this file:"
    yield "*we* are the subject of the column. ✓ is a goal that is met, ✗ one that is missed; several runs are shown as"
    yield "median and range, and ? is a run in which too many packets were late for the figure to be relied on."
    yield ""
    yield f"Measured {', '.join(dates)} on {'; '.join(places)}, {'; '.join(kernels)}: {'; '.join(commits) or 'no utp'}."
    yield f"The machine did other work too: its load was {min(loads):g} to {max(loads):g}."
    yield ""


def _commits(rows: Sequence[Row]) -> Iterator[str]:
    """Each subject's commit; where it has several, with the cases of all but the first."""
    for subject in dict.fromkeys(row["subject"] for row in rows if row["commit"]):
        cases: dict[str, list[str]] = {}
        for row in rows:
            if row["subject"] == subject:
                cases.setdefault(row["commit"], []).append(row["name"])
        first, *others = cases
        of_others = [f"{commit} ({', '.join(dict.fromkeys(cases[commit]))})" for commit in others]
        yield " and ".join([f"{subject} at {first}", *of_others])


def _doubts(rows: Sequence[Row]) -> Iterator[str]:
    failed = [f"* {row['name']}, {row['subject']}: {row['cause']}" for row in rows if row["status"] == "failed"]
    doubted = [f"* {row['name']}, {row['subject']}: {row['doubtful']}" for row in rows if row["doubtful"]]
    if failed:
        yield from ("Runs that failed:", "", *failed, "")
    if doubted:
        yield from ("Runs in doubt:", "", *doubted, "")
    late = [row["emulator"]["late_over_5ms"] for row in rows if "emulator" in row]
    if late:
        yield f"Packets that the link delivered over 5 ms late: {100 * max(late):.2f} % in the worst run,"
        yield f"{100 * statistics.median(late):.2f} % in the median one."


RESULTS: Final = ROOT / "tests" / "linklab" / "RESULTS.md"

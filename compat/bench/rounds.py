"""The rounds: every pair of case and subject once in each, the order reversed in every other one.

So whatever else the machine does, and whatever the one before leaves behind, is shared out fairly.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Sequence
from typing import Final

from compat.bench import cases, subjects
from compat.bench.sample import Row, Sample
from compat.peers import provision
from compat.peers.children import Failed

QUICK_SUBJECTS: Final = ("utpsocket", "tcp")


def planned(names: Sequence[str], wanted: Sequence[str], only: Collection[tuple[str, str]] | None = None) -> list[Row]:
    """The rows to measure: these cases for these subjects, and the rows that ours are compared with.

    only   no others than these, as case and subject
    """
    keys: dict[tuple[str, str], None] = {}
    for name in names:
        case = cases.BY_NAME[name]
        mine = [subject for subject in case.subjects if subject in wanted]
        if mine and case.reference and "utpsocket" in mine:
            keys[case.reference] = None
        keys.update(((name, subject), None) for subject in mine)
    if only is not None:
        keys = {key: None for key in keys if key in only}
    order = {case.name: place for place, case in enumerate(cases.ALL)}
    found = sorted(keys, key=lambda key: (order[key[0]], cases.BY_NAME[key[0]].subjects.index(key[1])))
    return [Row(name, subject, cases.BY_NAME[name].unit) for name, subject in found]


def prepare(rows: list[Row]) -> None:
    """Set every subject up; the rows of one that cannot be say why."""
    for subject in dict.fromkeys(row.subject for row in rows):
        try:
            subjects.prepare(subject)
            if any((row.case, row.subject) == ("to_libutp", subject) for row in rows):
                subjects.prepare("utp-native")
        except provision.Unavailable as error:
            for row in rows:
                if row.subject == subject:
                    row.causes.append(f"cannot be set up: {error}")


def run(rows: list[Row], *, count: int, seconds: float) -> None:
    """Measure the rows that can be, `count` times, `seconds` each time."""
    ready = [row for row in rows if not row.causes]
    for number in range(count):
        print(f"round {number + 1} of {count}", file=sys.stderr, flush=True)
        for row in reversed(ready) if number % 2 else ready:
            if number < cases.BY_NAME[row.case].most_rounds:
                _measure(row, seconds)


def _measure(row: Row, seconds: float) -> None:
    began = time.monotonic()
    try:
        sample = cases.BY_NAME[row.case].take(row.subject, seconds)
    except (Failed, OSError) as error:
        cause = (str(error) or type(error).__name__) + getattr(error, "written", "")
        row.causes.append(cause)
        shown = f"FAILED: {cause}"
    else:
        row.samples.append(sample)
        shown = _figures(sample, row.unit)
    print(f"  {row.case:23}{row.subject:18}{shown}   [{time.monotonic() - began:.1f} s]", file=sys.stderr, flush=True)


def _figures(sample: Sample, unit: str) -> str:
    figures = [f"{sample.value:12,.{1 if sample.value >= 100 else 3}f} {unit}"]
    if sample.cpu_seconds_per_gb is not None:
        figures.append(f"{sample.cpu_seconds_per_gb:.2f} CPU s/GB")
    figures += [f"{name} {value:,.4g}" for name, value in sample.more.items()]
    return "  ".join(figures)

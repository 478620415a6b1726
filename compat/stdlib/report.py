"""What the command prints: a table for people, JSON for programs, markdown for the manual."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from compat.stdlib.verdict import Verdict

HEADINGS: Final = (
    "module",
    "tests",
    "TCP",
    "same",
    "relevant",
    "exp.",
    "UNEXP.",
    "stale",
    "slow",
    "uTP conn.",
    "s",
    "TCP s",
)
WHY_LINES: Final = 6  # of each unexpected difference's cause
TABLE_MARKERS: Final = ("<!-- compat stdlib {feature}: begin -->", "<!-- compat stdlib {feature}: end -->")


def as_json(version: str, verdicts: list[Verdict]) -> dict[str, Any]:
    """The object of COMMANDS.md, and beside its keys what else was found."""
    return {
        "python": version.split()[0],
        "modules": [
            {
                "name": verdict.name,
                "tests": verdict.tests,
                "over_tcp": verdict.over_tcp,
                "same": verdict.same,
                "expected": len(verdict.expected),
                "unexpected": len(verdict.unexpected),
                "utp_connections": verdict.utp_connections,
                "seconds": verdict.seconds,
                "tcp_seconds": verdict.tcp_seconds,
                "relevant": verdict.relevant,
                "relevant_same": verdict.relevant_same,
                "kernel_tcp_calls": verdict.kernel_tcp_calls,
                "leftovers": verdict.leftovers,
                "troubles": verdict.troubles,
            }
            for verdict in verdicts
        ],
        "relevant": sum(verdict.relevant for verdict in verdicts),
        "relevant_same": sum(verdict.relevant_same for verdict in verdicts),
        "unexpected": [identity for verdict in verdicts for identity in verdict.unexpected],
        "causes": {identity: why for verdict in verdicts for identity, why in verdict.unexpected.items()},
        "expected": {identity: why for verdict in verdicts for identity, why in verdict.expected.items()},
        "stale": [identity for verdict in verdicts for identity in verdict.stale],
        "slow": {identity: how for verdict in verdicts for identity, how in verdict.slow.items()},
    }


def as_text(verdicts: list[Verdict], *, causes: bool) -> str:
    """The table, then what is not as it should be."""
    rows = [HEADINGS, *(_row(verdict) for verdict in verdicts), _sum(verdicts)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    for verdict in verdicts:
        lines += [f"{verdict.name}: {what}" for what in (*verdict.leftovers, *verdict.troubles)]
        lines += [f"STALE       {identity}: listed as different, but passes" for identity in verdict.stale]
        lines += [f"slow        {identity}: {how}" for identity, how in verdict.slow.items()]
        missing = [identity for identity, why in verdict.unexpected.items() if why.startswith("missing")]
        if missing:
            lines.append(f"UNEXPECTED  {verdict.name}: {len(missing)} tests did not run, the first {missing[0]}")
        for identity, why in verdict.unexpected.items():
            if identity in missing:
                continue
            first, *rest = why.rstrip().splitlines()
            lines.append(f"UNEXPECTED  {identity}: {first}")
            lines += [f"            | {line}" for line in rest[-WHY_LINES:] if causes]
    return "\n".join(lines)


def as_markdown(version: str, verdicts: list[Verdict]) -> str:
    """The table for the manual. No times and no counts of connections: it changes only when a result does."""
    feature = feature_version(version)
    lines = [
        f"CPython {feature}: tests passing over TCP, and these over uTP. Relevant ones use internet stream sockets.",
        "",
        "| module | pass over TCP | same over uTP | relevant | same | expected differences |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    shown = [verdict for verdict in verdicts if verdict.relevant]
    rest = [verdict for verdict in verdicts if verdict.over_tcp and not verdict.relevant]
    lines += [_markdown_row(verdict.name, [verdict]) for verdict in shown]
    if rest:
        lines.append(_markdown_row(f"{len(rest)} modules without relevant tests", rest))
    lines.append(_markdown_row("**sum**", verdicts))
    expected: dict[str, list[str]] = {}
    for verdict in verdicts:
        for identity, reason in verdict.expected.items():
            expected.setdefault(reason, []).append(identity)
    if expected:
        lines += ["", "Expected differences:", ""]
        lines += [f"* {reason}: {', '.join(f'`{name}`' for name in names)}" for reason, names in expected.items()]
    return "\n".join(lines) + "\n"


def write_table(path: Path, version: str, table: str) -> None:
    """Put the markdown between this interpreter's markers in the file; without them, at its end."""
    text = path.read_text() if path.exists() else ""
    begin, end = (marker.format(feature=feature_version(version)) for marker in TABLE_MARKERS)
    marked = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    block = f"{begin}\n{table}{end}"
    path.write_text(marked.sub(lambda _: block, text, count=1) if marked.search(text) else f"{text}{block}\n")


def feature_version(version: str) -> str:
    """`3.11` of `3.11.7 (main, …)`."""
    return ".".join(version.split(".")[:2])


def _row(verdict: Verdict) -> tuple[str, ...]:
    if verdict.skipped and not verdict.tests:
        return (f"{verdict.name} (skips itself)", *[""] * (len(HEADINGS) - 1))
    numbers = (
        verdict.tests,
        verdict.over_tcp,
        verdict.same,
        f"{verdict.relevant_same}/{verdict.relevant}",
        len(verdict.expected),
        len(verdict.unexpected),
        len(verdict.stale),
        len(verdict.slow),
        verdict.utp_connections,
        verdict.seconds,
        verdict.tcp_seconds,
    )
    return (verdict.name, *map(str, numbers))


def _sum(verdicts: list[Verdict]) -> tuple[str, ...]:
    total = Verdict("sum")
    for verdict in verdicts:
        for name in ("tests", "over_tcp", "same", "relevant", "relevant_same", "utp_connections"):
            setattr(total, name, getattr(total, name) + getattr(verdict, name))
        total.seconds = round(total.seconds + verdict.seconds, 1)
        total.tcp_seconds = round(total.tcp_seconds + verdict.tcp_seconds, 1)
        total.expected |= verdict.expected
        total.unexpected |= verdict.unexpected
        total.stale += verdict.stale
        total.slow |= verdict.slow
    return _row(total)


def _markdown_row(name: str, verdicts: list[Verdict]) -> str:
    numbers = (
        sum(verdict.over_tcp for verdict in verdicts),
        sum(verdict.same for verdict in verdicts),
        sum(verdict.relevant for verdict in verdicts),
        sum(verdict.relevant_same for verdict in verdicts),
        sum(len(verdict.expected) for verdict in verdicts),
    )
    return f"| {name} | {' | '.join(map(str, numbers))} |"

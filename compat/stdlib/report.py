"""What the command prints: a table for people, JSON for programs."""

from __future__ import annotations

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


def as_json(version: str, verdicts: list[Verdict]) -> dict[str, Any]:
    """The object of docs/commands.md, and beside its keys what else was found."""
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
                "runs": verdict.runs,
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
        "slow_without_reason": [identity for verdict in verdicts for identity in verdict.slow_without_reason],
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
        lines += [f"slow        {identity}: {verdict.slow[identity]}" for identity in verdict.slow_without_reason]
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


def only_under_load(tests: dict[str, str]) -> list[str]:
    """A line for each test or module that differed once and is the same alone."""
    return [f"ONLY UNDER LOAD  {name}: {(how.splitlines() or [''])[0]}\n" for name, how in tests.items()]


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
        len(verdict.slow_without_reason),
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
        total.slow_without_reason += verdict.slow_without_reason
    return _row(total)

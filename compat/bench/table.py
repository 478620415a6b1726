"""The result as a Markdown table, for a terminal and for README."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compat.bench import cases, costs
from compat.bench.sample import Row, ratio
from compat.bench.stream_side import CALLS
from compat.peers.children import REPOSITORY
from utpsocket.protocol import connection


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": commit(REPOSITORY),
        "load_before": round(os.getloadavg()[0], 2),
    }


def build() -> str:
    """Which build of the library is measured."""
    return "pure" if (connection.__file__ or "").endswith(".py") else "compiled"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def commit(tree: Path) -> str:
    """The commit that a tree is of, with a + where the library's files differ from it; "" outside of a clone."""
    git = ["git", "-C", str(tree)]
    try:
        name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--", "utpsocket"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return name.strip() + ("+" if changes.strip() else "")


def tcps(row: Row, rows: Sequence[Row]) -> Row | None:
    """TCP's row of the same case."""
    for other in rows:
        if (other.case, other.subject) == (row.case, "tcp"):
            return other
    return None


def markdown(rows: Sequence[Row], machine: dict[str, Any], rounds: int) -> str:
    """One line per row that has a figure or a cause."""
    lines = [
        "| case | | median | range | vs TCP | CPU s/GB | |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    previous = ""
    for row in rows:
        about = "" if row.case == previous else f"`{row.case}`: {cases.BY_NAME[row.case].about}"
        previous = row.case
        if row.median is None:
            lines.append(f"| {about} | {row.subject} | – | | | | {row.causes[0] if row.causes else ''} |")
            continue
        values = [sample.value for sample in row.samples]
        share = None if row.subject == "tcp" else ratio(row, tcps(row, rows))
        cells = [
            about,
            row.subject,
            f"{_number(row.median)} {row.unit}",
            f"{_number(min(values))}–{_number(max(values))}",
            "" if share is None else f"{share:.3g}",
            "" if row.cpu_seconds_per_gb is None else f"{row.cpu_seconds_per_gb:.2f}",
            _remarks(row),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    where = f"{machine['cpu']}, {machine['cpus']} CPUs, Linux {machine['kernel']}, CPython {machine['python']}"
    lines += ["", f"Medians of {rounds} alternating rounds at commit {machine['commit'] or 'unknown'}; {where}."]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _remarks(row: Row) -> str:
    """The further figures that say something at a glance."""
    parts = []
    jain, p50_us, timeouts = row.more("jain"), row.more("p50_us"), row.more("timeouts")
    if jain is not None:
        parts.append(f"Jain {jain:.3f}")
    if p50_us is not None:
        parts.append(f"p50 {p50_us:.0f} µs")
    if row.case.startswith("paused"):
        parts.append(f"p99 {_number(row.more('p99_ms') or 0)} ms")
        if (rate := row.more("bulk_mb_per_second")) is not None:
            parts.append(f"bulk {_number(rate)} MB/s")
    if (cpu_us := row.more("cpu_us")) is not None:
        parts.append(f"CPU {_number(cpu_us)} µs each")
    if timeouts:
        parts.append(f"{timeouts:.0f} timeouts")
    if row.case.startswith("idle") and row.samples:
        parts.append(
            f"{row.more('connections'):,.0f} connections; fds {row.more('fds_listener'):.2g} and "
            f"{row.more('fds_dialer'):.2g} (dialer)"
        )
    if row.case.startswith("nonblocking_calls"):
        figures = ((name, row.more(f"{name}_us") or 0, row.more(f"{name}_worst_us") or 0) for name in CALLS)
        parts += [f"{name} {_number(median)} (worst {_number(worst)})" for name, median, worst in figures]
    if row.case.endswith("_cost"):
        names = sorted({name for sample in row.samples for name in sample.more})
        parts += costs.remarks({name: row.more(name) for name in names})
        if row.case == "run_cost" and row.subject != "tcp":
            parts += [f"prototype {costs.PROTOTYPE_US:.3g}", *costs.remarks(dict(costs.PROTOTYPE))]
    if row.causes:
        parts.append(f"{len(row.causes)} of {len(row.causes) + len(row.samples)} failed: {row.causes[0]}")
    return ", ".join(parts)

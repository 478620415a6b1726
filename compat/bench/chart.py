"""The result as an SVG chart: what is drawn is chosen here, plot.py draws it in an environment that has matplotlib."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from compat.bench import cases
from compat.bench.sample import Row
from compat.peers import provision

MATPLOTLIB_VERSION: Final = "3.10.8"
DRAWN: Final = ("bulk", "to_libutp", "pingpong_1", "setup", "parallel_1000")
DRAW_SECONDS: Final = 120


class ChartFailed(Exception):
    """The chart could not be drawn; the text says why."""


def draw(rows: Sequence[Row], machine: dict[str, Any], path: Path) -> None:
    """Write the chart to `path`. Raises ChartFailed and provision.Unavailable."""
    bars = [
        {
            "group": f"{cases.BY_NAME[row.case].about} ({row.unit})",
            "label": row.subject,
            "value": row.median,
            "least": min(sample.value for sample in row.samples),
            "most": max(sample.value for sample in row.samples),
            "text": f"{row.median:,.0f}",
        }
        for row in rows
        if row.case in DRAWN and row.median is not None
    ]
    if not bars:
        raise ChartFailed(f"none of {', '.join(DRAWN)} was measured")
    title = f"two processes over loopback, {machine['cpus']} CPUs ({machine['cpu']}); bars are medians, lines the range"
    drawn = subprocess.run(
        [provision.environment_with("matplotlib", MATPLOTLIB_VERSION), str(Path(__file__).with_name("plot.py")), path],
        input=json.dumps({"bars": bars, "title": title}),
        capture_output=True,
        text=True,
        timeout=DRAW_SECONDS,
        check=False,
    )
    if drawn.returncode:
        raise ChartFailed(f"plot.py: {drawn.stderr.strip().splitlines()[-1] if drawn.stderr else drawn.returncode}")

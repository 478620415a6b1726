"""The result as an SVG chart: four panels with the same five subjects, ours first, readable on light and dark pages.

Reads what `python3 -m compat bench --json` prints, so that a chart can be drawn again without measuring again:

    python3 -m compat bench --from compat/bench/results.json --chart compat/bench/chart.svg

One panel for each case, each with a scale of its own, since the units differ. Where other implementations were
measured, the longest bar among those that are not kernel TCP's decides the scale. A TCP bar that is much longer is cut,
with a gap that shows it; its figure stands beside it like the others'. The colours follow `prefers-color-scheme` and
lie on a background of the chart's own, so that the chart can also be read where a viewer does not know the page's
colours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from xml.sax.saxutils import escape

DRAWN: Final = {
    "bulk": "Bulk on one connection",
    "parallel_1000": "Bulk on 1,000 connections",
    "pingpong_1": "One byte there and back",
    "setup": "Connect, echo, close",
}
SUBJECTS: Final = {
    "utpsocket": "utpsocket",
    "utp-native": "libutp (utp-native)",
    "libtorrent": "libtorrent (uTP)",
    "aioquic": "aioquic (QUIC)",
    "tcp": "kernel TCP",
}

# Everything below is in pixels of the chart's own size and was chosen by eye.
_WIDTH: Final = 880
_MARGIN: Final = 20
_HEAD: Final = 68  # above the first panels: the title and the line below it
_PANEL_WIDTH: Final = 410
_GAP: Final = 20  # between panels, and below the last ones
_TITLE: Final = 30  # from a panel's top to its first bar
_ROW: Final = 24
_BAR: Final = 15
_LABELS: Final = 132  # what the subjects' names take
_FIGURES: Final = 64  # what the figures beside the bars take
_BARS: Final = _PANEL_WIDTH - _LABELS - _FIGURES
_CUT_AT: Final = 0.80  # of the bars' width: where the longest bar ends beside a TCP bar that is cut
_CUT_FROM: Final = 1.5  # times the longest other bar: what is not longer is drawn whole

_STYLE: Final = """
text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328 }
.head { font-size: 16px; font-weight: 600 }
.title { font-weight: 600 }
.faint { fill: #59636e; font-size: 12px }
.ours { font-weight: 600 }
.figure { font-variant-numeric: tabular-nums }
.page { fill: #ffffff; stroke: #d1d9e0 }
.cut { fill: none; stroke: #ffffff; stroke-width: 4 }
.bar { fill: #848e9c }
.bar.ours { fill: #cf3f5b }
.range { stroke: #1f2328; stroke-width: 1 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.faint { fill: #9198a1 }
.page { fill: #0d1117; stroke: #3d444d }
.cut { stroke: #0d1117 }
.bar { fill: #656d78 }
.bar.ours { fill: #f0647e }
.range { stroke: #e6edf3 }
}
"""


class ChartFailed(Exception):
    """The chart could not be drawn; the text says why."""


def draw(result: dict[str, Any]) -> str:
    """The chart of what --json prints, as a text. The same result gives the same text. Raises ChartFailed."""
    measured = {
        (row["case"], row["subject"]): row
        for row in result["rows"]
        if row["case"] in DRAWN and row["subject"] in SUBJECTS and row["median"] is not None
    }
    drawn = [case for case in DRAWN if any(case == name for name, _ in measured)]
    if not drawn:
        raise ChartFailed(f"none of {', '.join(DRAWN)} was measured")
    panel_height = _TITLE + _ROW * len(SUBJECTS) + _GAP
    height = _HEAD + panel_height * ((len(drawn) + 1) // 2)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img">',
        "<title>utpsocket beside other implementations and kernel TCP</title>",
        f"<desc>{escape(_in_words(drawn, measured))}</desc>",
        f"<style>{_STYLE}</style>",
        f'<rect class="page" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="8"/>',
        _text(_MARGIN, 30, "utpsocket beside other implementations and kernel TCP", "head"),
        _text(_MARGIN, 49, _origin(result["machine"], measured), "faint"),
    ]
    for place, case in enumerate(drawn):
        x = _MARGIN + (_PANEL_WIDTH + _GAP) * (place % 2)
        lines += _panel(x, _HEAD + panel_height * (place // 2), case, measured)
    return "\n".join([*lines, "</svg>", ""])


def _panel(x: int, y: int, case: str, measured: dict[tuple[str, str], dict[str, Any]]) -> Iterator[str]:
    rows = {subject: measured[case, subject] for subject in SUBJECTS if (case, subject) in measured}
    unit = next(iter(rows.values()))["unit"]
    yield (
        f'<text x="{x}" y="{y + 16}"><tspan class="title">{escape(DRAWN[case])}</tspan>'
        f'<tspan class="faint" dx="6">{escape(unit)}, higher is better</tspan></text>'
    )
    others = max((row["max"] for subject, row in rows.items() if subject not in ("tcp", "utpsocket")), default=None)
    longest = max(row["max"] for subject, row in rows.items() if subject != "tcp" or others is None)
    is_cut = others is not None and "tcp" in rows and rows["tcp"]["median"] > _CUT_FROM * longest
    if not is_cut:
        longest = max(row["max"] for row in rows.values())
    scale = _BARS * (_CUT_AT if is_cut else 1) / longest
    for place, (subject, name) in enumerate(SUBJECTS.items()):
        top = y + _TITLE + _ROW * place
        ours = " ours" if subject == "utpsocket" else ""
        yield _text(x, top + 12, name, f"name{ours}")
        left = x + _LABELS
        if subject not in rows:
            yield _text(left, top + 12, "not measured", "faint")
        elif subject == "tcp" and is_cut:
            yield _rect(left, top, _BARS, "bar")
            gap = left + _BARS * (_CUT_AT + 1) / 2
            yield f'<path class="cut" d="M{gap - 4:.1f} {top + _BAR + 2} L{gap + 4:.1f} {top - 2}"/>'
            yield _text(left + _BARS + 6, top + 12, f"{rows[subject]['median']:,.0f}", "figure")
        else:
            row = rows[subject]
            yield _rect(left, top, row["median"] * scale, f"bar{ours}")
            middle = top + _BAR / 2
            yield (
                f'<line class="range" x1="{left + row["min"] * scale:.1f}" y1="{middle}"'
                f' x2="{left + row["max"] * scale:.1f}" y2="{middle}"/>'
            )
            yield _text(left + row["max"] * scale + 6, top + 12, f"{row['median']:,.0f}", f"figure{ours}")


def _rect(x: float, y: float, width: float, kind: str) -> str:
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2"/>'


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(text)}</text>'


def _in_words(drawn: list[str], measured: dict[tuple[str, str], dict[str, Any]]) -> str:
    """For those to whom the picture is read."""
    panels = []
    for case in drawn:
        rows = [(name, measured[case, subject]) for subject, name in SUBJECTS.items() if (case, subject) in measured]
        figures = ", ".join(f"{name} {row['median']:,.0f}" for name, row in rows)
        panels.append(f"{DRAWN[case]}, {rows[0][1]['unit']}: {figures}.")
    return " ".join(panels)


def _origin(machine: dict[str, Any], measured: dict[tuple[str, str], dict[str, Any]]) -> str:
    rounds = max(row["rounds"] for row in measured.values())
    return (
        f"Two processes over loopback, {machine['cpus']} CPUs ({machine['cpu']}). Bars: medians of {rounds} alternating"
        " rounds; lines: the range. A bar with a gap is cut."
    )

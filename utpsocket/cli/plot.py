"""Flows over time as an SVG: rate, congestion window, queueing delay and losses, one below the other.

Whoever measures flows makes a Trace of each and calls draw(): `tests.linklab --plot`, for example. It is text made with
the standard library, for three reasons. One file has to follow the page's light or dark colours by
`prefers-color-scheme`, which a plotting library that writes colours into each element cannot do. utpsocket depends on
nothing. And the same data gives the same bytes, so that a plot can stand in git.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

Points = Sequence[tuple[float, float | None]]
"""(second, value) in the order of time; a value of None is a gap."""


@dataclass(frozen=True)
class Trace:
    """One flow.

    rate              bits per second
    cwnd              congestion window, bytes
    queueing_delay    as the flow itself estimates it, µs
    losses            packets lost since the point before
    """

    name: str
    rate: Points = ()
    cwnd: Points = ()
    queueing_delay: Points = ()
    losses: Points = ()


@dataclass(frozen=True)
class _Panel:
    title: str
    series: list[tuple[int, Points]]
    ground: Points = ()
    is_counts: bool = False


# Everything below is in pixels of the plot's own size and was chosen by eye.
_WIDTH: Final = 880
_LEFT: Final = 64  # the figures of the axis
_RIGHT: Final = 20
_INNER: Final = _WIDTH - _LEFT - _RIGHT
_HEAD: Final = 58  # title and note
_LEGEND_ROW: Final = 20
_LEGEND_STEP: Final = 7.4  # of a character
_PANEL: Final = 118
_SMALL_PANEL: Final = 60  # of losses
_PANEL_HEAD: Final = 32
_FOOT: Final = 44
_COLUMN: Final = 1.5  # of what lies within so much the smallest and largest value are drawn
_COLOURS: Final = 8  # of the style; later flows have them again, dashed

_LIGHT: Final = ("#cf3f5b", "#2463b8", "#00806a", "#b3620e", "#7d4cc2", "#5f6f12", "#8a5440", "#0e7490")
_DARK: Final = ("#f0647e", "#6aa5ff", "#35c2a2", "#f0a04b", "#b794f6", "#b5c24c", "#d0a08a", "#4fc3e0")


def _colours(colours: Sequence[str]) -> str:
    return "\n".join(
        f".s{number} {{ stroke: {colour} }} .t{number} {{ fill: {colour} }}" for number, colour in enumerate(colours)
    )


_STYLE: Final = f"""
text {{ font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328 }}
.head {{ font-size: 16px; font-weight: 600 }}
.title {{ font-weight: 600 }}
.faint {{ fill: #59636e; font-size: 12px }}
.right {{ text-anchor: end }}
.middle {{ text-anchor: middle }}
.page {{ fill: #ffffff; stroke: #d1d9e0 }}
.grid {{ stroke: #d1d9e0; stroke-width: 1 }}
.ground {{ fill: #d8dee4; stroke: none }}
.line {{ fill: none; stroke-width: 1.6; stroke-linejoin: round }}
.bar {{ fill: none; stroke-width: 2 }}
.again {{ stroke-dasharray: 5 3 }}
{_colours(_LIGHT)}
@media (prefers-color-scheme: dark) {{
text {{ fill: #e6edf3 }}
.faint {{ fill: #9198a1 }}
.page {{ fill: #0d1117; stroke: #3d444d }}
.grid {{ stroke: #30363d }}
.ground {{ fill: #30363d }}
{_colours(_DARK)}
}}
"""


def draw(
    traces: Sequence[Trace],
    *,
    title: str,
    note: str = "",
    seconds: float | None = None,
    link_delay: Points = (),
    link_name: str = "the link's queue",
) -> str:
    """The plot, as a text. The same data gives the same text.

    note        a line below the title: which link, which machine
    seconds     where the time ends; None is the last point
    link_delay  the queueing delay that the link itself saw, µs: a grey area behind that of the flows
    Raises ValueError where there is nothing to draw.
    """
    panels = _panels(traces, link_delay)
    if seconds is None:
        ends = [points[-1][0] for panel in panels for _, points in panel.series if points]
        seconds = max(ends, default=0.0)
    if not panels or not seconds > 0:
        raise ValueError("there are no points to draw")
    names = [trace.name for trace in traces] + [link_name] * bool(link_delay)
    legend = list(_legend(names, len(traces)))
    top = _HEAD + _LEGEND_ROW * len(legend)
    height = top + sum(_PANEL_HEAD + _height(panel) for panel in panels) + _FOOT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(_in_words(traces, panels, seconds))}</desc>",
        f"<style>{_STYLE}</style>",
        f'<rect class="page" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="8"/>',
        _text(20, 30, title, "head"),
        _text(20, 49, note, "faint"),
    ]
    for number, row in enumerate(legend):
        lines += [piece.replace("{y}", f"{_HEAD + _LEGEND_ROW * number + 10}") for piece in row]
    for panel in panels:
        lines += _draw_panel(panel, top + _PANEL_HEAD, seconds)
        top += _PANEL_HEAD + _height(panel)
    for second in _ticks(seconds, 10):
        x = _LEFT + _INNER * second / seconds
        lines.append(_text(x, top + 18, f"{second:g}", "faint middle"))
    lines.append(_text(_LEFT + _INNER, top + 36, "seconds", "faint right"))
    return "\n".join([*lines, "</svg>", ""])


def _panels(traces: Sequence[Trace], link_delay: Points) -> list[_Panel]:
    def scaled(points: Points, factor: float) -> Points:
        return [(second, None if value is None else value * factor) for second, value in points]

    ground = scaled(link_delay, 1e-3)
    wanted = [
        _Panel("Rate, Mbit/s", [(n, scaled(trace.rate, 1e-6)) for n, trace in enumerate(traces)]),
        _Panel("Congestion window, kB", [(n, scaled(trace.cwnd, 1e-3)) for n, trace in enumerate(traces)]),
        _Panel(
            "Queueing delay, ms", [(n, scaled(trace.queueing_delay, 1e-3)) for n, trace in enumerate(traces)], ground
        ),
        _Panel("Packets lost", [(n, trace.losses) for n, trace in enumerate(traces)], is_counts=True),
    ]
    return [panel for panel in wanted if panel.ground or any(points for _, points in panel.series)]


def _height(panel: _Panel) -> int:
    return _SMALL_PANEL if panel.is_counts else _PANEL


def _draw_panel(panel: _Panel, top: float, seconds: float) -> Iterator[str]:
    height = _height(panel)
    values = [value for _, points in panel.series for _, value in points if value is not None]
    values += [value for _, value in panel.ground if value is not None]
    # An axis of counts that are all 0 goes to 1.
    largest = max(values, default=0.0) * 1.04 or 1.0
    yield _text(_LEFT, top - 7, panel.title, "title")
    for value in _ticks(largest, 2 if panel.is_counts else 5):
        if panel.is_counts and value != int(value):
            continue
        y = top + height - height * value / largest
        yield f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_LEFT + _INNER}" y2="{y:.1f}"/>'
        yield _text(_LEFT - 8, round(y + 4, 1), f"{value:g}", "faint right")

    def place(point: tuple[float, float]) -> str:
        return f"{_LEFT + _INNER * point[0] / seconds:.1f} {top + height - height * point[1] / largest:.1f}"

    for piece in _pieces(panel.ground, seconds):
        floor = [place((piece[-1][0], 0)), place((piece[0][0], 0))]
        yield f'<path class="ground" d="M{" L".join([*map(place, piece), *floor])} Z"/>'
    # The first flow is the one that is looked at, and lies above the others.
    for number, points in reversed(panel.series):
        if panel.is_counts:
            shift = 2.0 * number - (len(panel.series) - 1)
            bars = "".join(
                f"M{_LEFT + _INNER * second / seconds + shift:.1f} {top + height}"
                f"V{top + height - height * value / largest:.1f}"
                for second, value in points
                if value and second <= seconds
            )
            if bars:
                yield f'<path class="bar s{number % _COLOURS}" d="{bars}"/>'
            continue
        for piece in _pieces(points, seconds):
            again = " again" if number >= _COLOURS else ""
            yield f'<path class="line s{number % _COLOURS}{again}" d="M{" L".join(map(place, piece))}"/>'


def _pieces(points: Points, seconds: float) -> Iterator[list[tuple[float, float]]]:
    """What lies between gaps, with two points for each column of the picture at most."""
    columns = max(1, int(_INNER / _COLUMN))
    piece: list[tuple[float, float]] = []
    column: list[tuple[float, float]] = []
    for second, value in points:
        if second > seconds:
            break
        if value is None:
            piece += _extremes(column)
            column = []
            if len(piece) > 1:
                yield piece
            piece = []
            continue
        if column and int(column[0][0] / seconds * columns) != int(second / seconds * columns):
            piece += _extremes(column)
            column = []
        column.append((second, value))
    piece += _extremes(column)
    if len(piece) > 1:
        yield piece


def _extremes(column: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(column) < 3:
        return column
    low, high = min(column, key=lambda point: point[1]), max(column, key=lambda point: point[1])
    return sorted({low, high})


def _ticks(largest: float, count: int) -> list[float]:
    """0 and about so many round figures up to the largest."""
    rough = largest / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [round(number * step, 10) for number in range(int(largest / step * 1.0001) + 1)]


def _legend(names: Sequence[str], flow_count: int) -> Iterator[list[str]]:
    """Rows of marks and names, with {y} for where the row is."""
    row: list[str] = []
    x = float(_LEFT)
    for number, name in enumerate(names):
        width = 34 + _LEGEND_STEP * len(name) + 18
        if row and x + width > _LEFT + _INNER:
            yield row
            row, x = [], float(_LEFT)
        if number < flow_count:
            again = " again" if number >= _COLOURS else ""
            row.append(f'<path class="line s{number % _COLOURS}{again}" d="M{x:.1f} {{y}} h26"/>')
        else:
            row.append(f'<path class="ground" d="M{x:.1f} {{y}} m0 -5 h26 v10 h-26 Z"/>')
        row.append(f'<text x="{x + 34:.1f}" y="{{y}}" dy="4">{escape(name)}</text>')
        x += width
    if row:
        yield row


def _in_words(traces: Sequence[Trace], panels: Sequence[_Panel], seconds: float) -> str:
    """For those to whom the picture is read."""
    flows = []
    for trace in traces:
        rates = [value for _, value in trace.rate if value]
        mean = f", {sum(rates) / len(rates) / 1e6:.1f} Mbit/s while it runs" if rates else ""
        flows.append(f"{trace.name}{mean}")
    return f"{seconds:g} seconds of: {'; '.join(flows)}. Panels: {'; '.join(panel.title for panel in panels)}."


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'

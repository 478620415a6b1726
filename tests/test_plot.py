"""The plot of flows over time: what is drawn is what was given, in either of the page's colours."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from utpsocket.cli import plot

SVG = "{http://www.w3.org/2000/svg}"
FIRST = plot.Trace(
    "utp & more",
    rate=[(0.0, 0.0), (5.0, 20e6), (10.0, 10e6)],
    cwnd=[(0.0, 1e5), (10.0, 2e5)],
    queueing_delay=[(0.0, 0.0), (4.0, 80e3), (5.0, None), (6.0, 40e3), (10.0, 50e3)],
    losses=[(1.0, 0), (2.0, 3)],
)
SECOND = plot.Trace("tcp", rate=[(5.0, 0.0), (10.0, 10e6)], losses=[(6.0, 1)])


def drawn(*traces: plot.Trace, **more: object) -> ElementTree.Element:
    return ElementTree.fromstring(plot.draw(traces, title="A <title>", **more))  # type: ignore[arg-type]


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def paths(root: ElementTree.Element, kind: str) -> list[str]:
    return [path.attrib["d"] for path in root.iter(f"{SVG}path") if path.attrib["class"].split()[0] == kind]


def test_each_quantity_has_a_panel_and_each_flow_a_line_in_it() -> None:
    root = drawn(FIRST, SECOND, note="a link", link_delay=[(0.0, 0.0), (10.0, 90e3)])
    shown = texts(root)
    panels = ["Rate, Mbit/s", "Congestion window, kB", "Queueing delay, ms", "Packets lost"]
    assert [text for text in shown if text in panels] == panels
    assert {"A <title>", "a link", "utp & more", "tcp", "the link's queue", "seconds"} <= {*shown}
    # In the legend each flow once; the rates of both; one window; one delay with a gap in it.
    assert len(paths(root, "line")) == 2 + 2 + 1 + 2
    assert len(paths(root, "ground")) == 2
    assert len(paths(root, "bar")) == 2


def test_points_are_where_their_values_are() -> None:
    root = drawn(plot.Trace("one", rate=[(0.0, 0.0), (5.0, 20e6), (10.0, 10e6)]))
    (line,) = paths(root, "line")[1:]
    points = [tuple(map(float, pair.split())) for pair in line[1:].split(" L")]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(2 * (y0 - y2), abs=0.3)
    grid = [float(element.attrib["y1"]) for element in root.iter(f"{SVG}line")]
    assert max(grid) == pytest.approx(y0, abs=0.1)


def test_many_points_are_thinned_and_keep_their_extremes() -> None:
    many = [(number / 1000, 5.0) for number in range(100_000)]
    many[77_777] = (77.777, 1000.0)
    (line,) = paths(drawn(plot.Trace("one", cwnd=many)), "line")[1:]
    points = line[1:].split(" L")
    assert len(points) < 3_000
    heights = [float(point.split()[1]) for point in points]
    assert heights.count(min(heights)) == 1
    assert min(heights) < max(heights) - 50


def test_later_flows_have_the_colours_again_and_are_dashed() -> None:
    root = drawn(*(plot.Trace(f"flow {number}", rate=[(0.0, 1.0), (1.0, 2.0)]) for number in range(10)))
    classes = [path.attrib["class"] for path in root.iter(f"{SVG}path")]
    assert len({kind for kind in classes if "again" not in kind}) == 8
    assert {kind for kind in classes if "again" in kind} == {"line s0 again", "line s1 again"}
    assert len({element.attrib["y"] for element in root.iter(f"{SVG}text") if (element.text or "")[:4] == "flow"}) > 1


def test_it_follows_the_pages_colours() -> None:
    text = plot.draw([FIRST], title="t")
    style = text.partition("<style>")[2].partition("</style>")[0]
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    assert re.findall(r"[.](s\d) [{] stroke", light) == re.findall(r"[.](s\d) [{] stroke", dark)
    assert 'stroke="' not in text
    assert 'fill="' not in text


def test_the_same_data_gives_the_same_bytes() -> None:
    assert plot.draw([FIRST, SECOND], title="t") == plot.draw([FIRST, SECOND], title="t")


def test_what_is_read_to_a_person_names_flows_and_rates() -> None:
    described = drawn(FIRST, SECOND).findtext(f"{SVG}desc") or ""
    assert "utp & more, 15.0 Mbit/s while it runs" in described
    assert described.startswith("10 seconds")


def test_nothing_to_draw_is_refused() -> None:
    for traces in ([], [plot.Trace("a")], [plot.Trace("a", rate=[(0.0, 1.0)])]):
        with pytest.raises(ValueError, match="no points"):
            plot.draw(traces, title="t")


def test_no_losses_are_drawn_as_an_empty_panel() -> None:
    assert "Packets lost" in texts(drawn(plot.Trace("a", losses=[(0.0, 0), (1.0, 0)])))

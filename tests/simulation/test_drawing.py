"""A scene as a plot: each flow's rate, window and losses where they were."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from tests.simulation import drawing
from tests.simulation.links import Way
from tests.simulation.scene import Flow, Scene


def test_a_scene_is_drawn() -> None:
    scene = Scene(Way(2, 10, 50), None, [Flow("utp"), Flow("cubic", 1)], seconds=3).run()
    trace = drawing._trace(scene, 0, scene.flows[0])
    seconds, rates = zip(*trace.rate, strict=True)
    assert seconds == pytest.approx([0.25, 0.75, 1.25, 1.75, 2.25, 2.75])
    assert sum(rates) / 2 / 8 == pytest.approx(scene.received[0][30])
    assert sum(count or 0 for _, count in trace.losses) == scene.figures[0][30][2]
    text = drawing.draw(scene, title="the scene")
    names = [element.text for element in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text")]
    assert {"the scene", f"utpsocket, {scene.config.congestion} (1)", "TCP, cubic (2)", "Packets lost"} <= {*names}

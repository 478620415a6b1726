"""The light model of our connection does what the connection does."""

from __future__ import annotations

import pytest

from tests.simulation.links import Way
from tests.simulation.scene import Flow, Scene


def scene(kind: str, controller: str) -> Scene:
    flows = [Flow(kind), Flow("cubic", 8, 16)]
    return Scene(Way(10, 25, 500), None, flows, seconds=24, controller=controller).run()


@pytest.mark.parametrize("controller", ["ledbat"])
def test_it_agrees_with_the_connection(controller: str) -> None:
    """Alone, beside a TCP, and after it: rates within 3 % of the link's, delays within 5 ms."""
    ours, light = scene("utp", controller), scene("light", controller)
    for flow, start, end in ((0, 2, 8), (0, 9, 16), (1, 9, 16), (0, 18, 24)):
        assert abs(ours.goodput(flow, start, end) - light.goodput(flow, start, end)) <= 0.3
    for start, end in ((0, 2), (2, 8), (9, 16), (18, 24)):
        assert abs(ours.delay(start, end)[0] - light.delay(start, end)[0]) <= 5

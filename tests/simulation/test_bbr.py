"""The model of BBR does what is known of BBRv1."""

from __future__ import annotations

import pytest

from tests.simulation.links import Way
from tests.simulation.scene import Flow, Scene


def test_alone_it_fills_the_path_and_no_queue() -> None:
    scene = Scene(Way(20, 25, 500), None, [Flow("bbr")], seconds=20).run()
    assert scene.goodput(0, 2, 10) >= 19
    assert scene.delay(2, 10)[0] <= 5
    assert scene.goodput(0, 12, 20) >= 19, "after four packets were in flight for 0.2 s"


def test_every_ten_seconds_it_looks_for_a_shorter_path() -> None:
    scene = Scene(Way(20, 25, 500), None, [Flow("bbr")], seconds=20).run()
    windows = [window for window, _, _ in scene.figures[0]]
    assert [second for second in range(20) if min(windows[10 * second : 10 * second + 10]) <= 4 * 1_448][1:] == [10]


@pytest.mark.parametrize("loss", [0.01, 0.05])
def test_losses_do_not_slow_it_down(loss: float) -> None:
    there = Way(20, 25, 500, loss)
    bbr = Scene(there, Way(20, 25, 500), [Flow("bbr")], seconds=20).run()
    cubic = Scene(there, Way(20, 25, 500), [Flow("cubic")], seconds=20).run()
    assert bbr.goodput(0, 5, 20) >= 15
    assert cubic.goodput(0, 5, 20) <= 4


def test_two_of_them_share_with_a_queue_of_a_round_trip_at_most() -> None:
    scene = Scene(Way(20, 25, 500), None, [Flow("bbr"), Flow("bbr", 2)], seconds=40).run()
    rates = [scene.goodput(flow, 20, 40) for flow in (0, 1)]
    assert sum(rates) >= 18.5
    assert min(rates) >= 5
    assert scene.delay(20, 40)[0] <= 60

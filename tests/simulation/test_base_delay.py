"""The queue stays at the target, and the link in use, where the lowest delay of the last minutes is not the path's."""

from __future__ import annotations

import pytest

from tests.simulation.links import Way
from tests.simulation.scene import UTP_SHARE, Change, Flow, Scene

TARGET_MS = {"ledbat": 100, "ledbat++": 60}


@pytest.mark.parametrize("controller", TARGET_MS)
def test_a_route_that_becomes_longer_is_used_again_within_15_seconds(controller: str) -> None:
    changes = [Change(20, "delay_ms", 150)]
    scene = Scene(Way(20, 20, 500), None, [Flow("light")], seconds=40, changes=changes, controller=controller).run()
    after = scene.reaches(0, 0.9 * 20 * UTP_SHARE, 21)
    assert after is not None and after <= 15


@pytest.mark.parametrize("controller", TARGET_MS)
def test_a_way_back_that_was_full_and_drains_leaves_the_estimate_right(controller: str) -> None:
    flows = [Flow("light", 5), Flow("cubic", 0, 20, is_back=True)]
    scene = Scene(Way(20, 25, 500), None, flows, seconds=45, controller=controller).run()
    assert abs(scene.estimate_error(0, 35, 45)) <= 10


def test_its_queue_is_at_the_target_15_seconds_later() -> None:
    flows = [Flow("light", 5), Flow("cubic", 0, 20, is_back=True)]
    scene = Scene(Way(20, 25, 500), None, flows, seconds=45, controller="ledbat++").run()
    assert scene.delay(35, 45)[1] <= 70


@pytest.mark.parametrize("ppm", [500, -500])
def test_clocks_that_run_apart_change_nothing(ppm: int) -> None:
    scene = Scene(Way(2, 25, 1000), None, [Flow("utp", ppm=ppm)], seconds=240, controller="ledbat++").run()
    assert scene.goodput(0, 10, 240) >= 0.93 * 2 * UTP_SHARE
    assert scene.delay(200, 240)[0] <= 75


@pytest.mark.parametrize("controller", TARGET_MS)
def test_a_peer_that_measures_no_delay_gets_no_longer_queue(controller: str) -> None:
    flows = [Flow("utp", reports_delay=False)]
    scene = Scene(Way(5, 25, 500), None, flows, seconds=20, controller=controller).run()
    assert scene.goodput(0, 5, 20) >= 0.95 * 5 * UTP_SHARE
    assert scene.delay(5, 20)[0] <= TARGET_MS[controller] + 10

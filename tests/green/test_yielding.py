"""How long connects and accepts may take in one iteration of a hub: tried with a loop and a clock of ours."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from utpsocket.green import yielding
from utpsocket.green.yielding import BURST_SECONDS, HubIteration, begin_iteration


class Timer:
    callback: Callable[[], None] | None = None

    def start(self, callback: Callable[[], None]) -> None:
        self.callback = callback


class Hub:
    """A hub whose loop comes round when the test says so."""

    def __init__(self) -> None:
        self.loop = self
        self.made = Timer()

    def timer(self, after: float, ref: bool) -> Timer:
        assert (after, ref) == (0, False)  # it must not keep a hub alive that has nothing else to do
        return self.made

    def come_round(self) -> None:
        assert self.made.callback is not None
        self.made.callback()


def test_an_iteration_is_used_up_after_its_time_and_begins_anew_when_the_loop_comes_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(vars(yielding)["time"], "monotonic", lambda: now)
    hub = Hub()
    iteration = HubIteration(hub)
    assert not iteration.is_used_up
    iteration.begin()
    assert not iteration.is_used_up
    now += BURST_SECONDS * 0.9
    iteration.begin()
    assert not iteration.is_used_up
    now += BURST_SECONDS * 0.2
    assert iteration.is_used_up
    iteration.begin()
    assert iteration.is_used_up
    hub.come_round()
    assert not iteration.is_used_up
    iteration.begin()
    now += BURST_SECONDS * 0.9
    assert not iteration.is_used_up


def test_each_hub_has_an_iteration_of_its_own() -> None:
    one, other = Hub(), Hub()
    assert begin_iteration(one) is begin_iteration(one)
    assert begin_iteration(one) is not begin_iteration(other)

"""What one turn of a hub may take: tried with a loop and a clock of ours."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from utpsocket.green import yielding
from utpsocket.green.yielding import BURST_SECONDS, Turn, turn_of


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


def test_a_turn_is_over_when_its_time_is_used_up_and_begins_anew_when_the_loop_comes_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(yielding.time, "monotonic", lambda: now)
    hub = Hub()
    turn = Turn(hub)
    assert not turn.is_over()
    now += BURST_SECONDS * 0.9
    assert not turn.is_over()
    now += BURST_SECONDS * 0.2
    assert turn.is_over()
    assert turn.is_over()
    hub.come_round()
    assert not turn.is_over()
    now += BURST_SECONDS * 0.9
    assert not turn.is_over()


def test_each_hub_has_a_turn_of_its_own() -> None:
    one, other = Hub(), Hub()
    assert turn_of(one) is turn_of(one)
    assert turn_of(one) is not turn_of(other)

"""The switch interval while the engine works: short where somebody asked for it, and nobody's business afterwards."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from utpsocket.engine import engine
from utpsocket.engine.interpreter import switch_interval
from utpsocket.engine.interpreter.switch_interval import SWITCH_SECONDS
from utpsocket.engine.loop import Loop

pytestmark = pytest.mark.usefixtures("leaves_nothing_behind")


@pytest.fixture
def usual_seconds() -> Iterator[float]:
    usual = sys.getswitchinterval()
    yield usual
    switch_interval.withdraw("a test")
    sys.setswitchinterval(usual)


def interval_at_work() -> float:
    seconds: float = engine().call(lambda loop: sys.getswitchinterval())
    return seconds


def settled_interval() -> float:
    """The interval outside of the engine's turns: in the moment before the next one, which a call begins."""
    seen: list[float] = []

    class Spy(set[str]):
        def __bool__(self) -> bool:
            seen.append(sys.getswitchinterval())
            return super().__len__() > 0

    requesters, switch_interval.requesters = switch_interval.requesters, Spy(switch_interval.requesters)
    try:
        interval_at_work()
        interval_at_work()
    finally:
        switch_interval.requesters = requesters
    return max(seen)


def test_without_an_asker_the_interval_is_the_programs(usual_seconds: float) -> None:
    assert interval_at_work() == usual_seconds


def test_it_is_short_during_a_turn_and_no_longer(usual_seconds: float) -> None:
    switch_interval.request("a test")
    assert interval_at_work() == pytest.approx(SWITCH_SECONDS)
    assert settled_interval() == usual_seconds
    switch_interval.withdraw("a test")
    assert interval_at_work() == usual_seconds


def test_what_the_program_sets_stays(usual_seconds: float) -> None:
    switch_interval.request("a test")

    def set_it(loop: Loop) -> None:
        sys.setswitchinterval(0.003)  # as another thread may in the middle of a turn

    engine().call(set_it)
    assert settled_interval() == pytest.approx(0.003)
    sys.setswitchinterval(SWITCH_SECONDS / 2)
    assert interval_at_work() == pytest.approx(SWITCH_SECONDS / 2)


def test_a_child_forked_in_the_middle_of_a_turn_has_the_usual_interval(usual_seconds: float) -> None:
    switch_interval.request("a test")
    engine().call(lambda loop: None)
    switch_interval.begin()  # as the engine's thread, which the child will not have
    try:
        child = os.fork()
        if not child:
            os._exit(0 if sys.getswitchinterval() == usual_seconds else 1)
    finally:
        switch_interval.end()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_turn_ends_while_the_last_asker_withdraws(usual_seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would set the interval back: the second found 0 to set, which is refused."""
    switch_interval._usual_seconds = usual_seconds
    sys.setswitchinterval(SWITCH_SECONDS)

    def interval_seen_as_another_thread_ends_it() -> float:
        seen = real()
        monkeypatch.setattr(sys, "getswitchinterval", real)
        switch_interval.end()
        return seen

    real = sys.getswitchinterval
    monkeypatch.setattr(sys, "getswitchinterval", interval_seen_as_another_thread_ends_it)
    switch_interval.end()
    assert real() == usual_seconds

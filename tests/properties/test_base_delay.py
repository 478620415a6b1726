"""DelayController.on_peer_delay() returns early where a sample changes nothing: it must do the same as without that."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from utpsocket.protocol.congestion import queueing_delay
from utpsocket.protocol.congestion.ledbat import Ledbat
from utpsocket.protocol.times import TIMESTAMP_MASK

MINUTE_US = 60_000_000
# How a sample differs from the one before: mostly by little, sometimes by about half the range of the times.
steps = st.one_of(
    st.integers(-300, 300),
    st.integers(-20_000, 20_000),
    st.sampled_from([0, 1 << 30, (1 << 31) - 1, 1 << 31, (1 << 31) + 1, -(1 << 31)]),
)
waits = st.one_of(st.integers(0, 1_000), st.sampled_from([5_000_000, MINUTE_US - 1, MINUTE_US, 14 * MINUTE_US]))


def on_peer_delay(controller: Ledbat, delay_us: int, *, now: int) -> None:
    """Without the early return."""
    base, own = controller._peer_base_delay, controller._base
    before_us = base.value_us
    base.add(delay_us, now=now)
    if before_us < 0:
        controller._drift_ends_at = now + queueing_delay.DRIFT_PERIOD_US
        return
    if base.value_us != before_us:
        fall_us = (before_us - base.value_us) & TIMESTAMP_MASK
        if fall_us <= 10_000 and own.value_us >= 0:
            own.shift(fall_us)
            controller._drift_us += fall_us
    if now >= controller._drift_ends_at:
        controller._drift_ends_at = now + queueing_delay.DRIFT_PERIOD_US
        controller._drift_penalty_us = max(0, controller._drift_us - queueing_delay.MAX_DRIFT_US) // 7
        controller._drift_us = 0


def state(controller: Ledbat) -> Any:
    bases = [
        (each.value_us, each.lowest_us, each.minima, each.minute_ends_at)
        for each in (controller._base, controller._peer_base_delay)
    ]
    return bases, controller._drift_us, controller._drift_ends_at, controller._drift_penalty_us


@given(
    first_us=st.integers(0, TIMESTAMP_MASK),
    samples=st.lists(st.tuples(steps, waits, st.booleans()), min_size=1, max_size=60),
)
def test_a_sample_that_changes_nothing_is_passed_over(first_us: int, samples: list[tuple[int, int, bool]]) -> None:
    fast, slow = Ledbat(1_400), Ledbat(1_400)
    delay_us, now = first_us, 1_000
    for step_us, wait_us, has_own_sample in samples:
        delay_us, now = (delay_us + step_us) & TIMESTAMP_MASK, now + wait_us
        if has_own_sample:
            fast.on_delay(delay_us, now=now)
            slow.on_delay(delay_us, now=now)
        fast.on_peer_delay(delay_us, now=now)
        on_peer_delay(slow, delay_us, now=now)
        assert state(fast) == state(slow)

"""Whatever waits in queues, in either direction: the base delay is no queue's, and no queue is taken for a clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from utpsocket.protocol.congestion.base_delay import SLICE_US, BaseDelay
from utpsocket.protocol.congestion.clock_skew import MAX_SKEW_PPB, ClockSkew
from utpsocket.protocol.times import TIMESTAMP_MASK

PERIOD_US = 10_000_000
delays = st.integers(0, TIMESTAMP_MASK)


@given(
    offset_us=delays,
    ppb=st.integers(-MAX_SKEW_PPB, MAX_SKEW_PPB),
    queues=st.lists(st.tuples(st.integers(0, 1_000_000), st.integers(0, 1_000_000)), max_size=200),
)
def test_the_estimate_of_the_clocks_only_comes_nearer(offset_us: int, ppb: int, queues: list[tuple[int, int]]) -> None:
    """Once both queues have been empty, what they do later makes the estimate no worse."""
    skew = ClockSkew()
    error_ppb = abs(ppb)
    for period, (ours_us, peers_us) in enumerate([(0, 0), *queues]):
        now = period * PERIOD_US
        drift_us = now * ppb // 1_000_000_000
        delay_us = 20_000 + ours_us + drift_us
        peer_delay_us = 30_000 + peers_us - drift_us
        skew.add(now, delay_us + peer_delay_us, (delay_us - peer_delay_us + 2 * offset_us) & TIMESTAMP_MASK)
        if period % 60 == 59:
            return  # then the sample of the empty path is forgotten
        assert abs(skew.rate_ppb - ppb) <= error_ppb
        error_ppb = abs(skew.rate_ppb - ppb)


@given(ppb=st.integers(-MAX_SKEW_PPB, MAX_SKEW_PPB), count=st.integers(12, 500), offset_us=delays)
def test_an_empty_path_shows_the_clocks(ppb: int, count: int, offset_us: int) -> None:
    skew = ClockSkew()
    for period in range(count):
        drift_us = period * PERIOD_US * ppb // 1_000_000_000
        skew.add(period * PERIOD_US, 50_000, (offset_us + 2 * drift_us) & TIMESTAMP_MASK)
    assert abs(skew.rate_ppb - ppb) <= 2_000


@given(
    offset_us=delays,
    queues=st.lists(st.integers(0, 900_000), min_size=1, max_size=300),
    target_us=st.sampled_from([60_000, 100_000]),
)
def test_a_base_that_rises_for_a_queue_is_found_again(offset_us: int, queues: list[int], target_us: int) -> None:
    """However queues rise and stand: while less than two levels have been the path's, the base is that of the path."""
    base = BaseDelay()
    now = 0
    base.add(offset_us, now=now)
    assert base.value_us == offset_us
    for queue_us in [*queues, 0]:
        now += SLICE_US
        above_us = base.add((offset_us + queue_us) & TIMESTAMP_MASK, now=now)
        base.end_slice(10_000, target_us, now=now)
        assert 0 <= above_us <= queue_us
        assert 0 <= (base.value_us - offset_us) & TIMESTAMP_MASK <= max(queues)
    assert base.value_us == offset_us

"""Congestion controllers on random acks, losses and timeouts: what must hold whatever comes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from utpsocket.protocol.congestion import CONTROLLERS, Controller

SEGMENT = 1_380
Event = tuple[str, int, int, int, bool]
"""What happens, µs later, with this queueing delay in µs, of so many packets; whether the window is used up."""

events = st.lists(
    st.tuples(
        st.sampled_from(["ack"] * 12 + ["loss", "timeout", "spurious", "smaller", "larger"]),
        st.one_of(st.integers(0, 3_000), st.integers(0, 400_000), st.just(70_000_000)),
        st.one_of(st.just(0), st.integers(0, 20_000), st.integers(0, 500_000), st.just(1 << 31)),
        st.integers(1, 200),
        st.booleans(),
    ),
    min_size=1,
    max_size=150,
)
names = st.sampled_from([*CONTROLLERS])


def play(controller: Controller, event: Event, now: int) -> None:
    kind, _, queueing_us, packets, is_limited = event
    if kind == "loss":
        controller.on_loss(now=now)
    elif kind == "timeout":
        controller.on_timeout(now=now)
    elif kind == "spurious":
        controller.on_spurious_loss(now=now)
    elif kind in ("smaller", "larger"):
        controller.on_segment_size(500 if kind == "smaller" else 1_452)
    else:
        rtt_us = min(40_000 + queueing_us, 1 << 30)
        controller.on_peer_delay(5_000)
        controller.on_delay((7_000 + queueing_us) & 0xFFFFFFFF, now=now)
        controller.on_ack(
            packets * SEGMENT,
            in_flight_bytes=controller.window_bytes,
            is_limited=is_limited,
            rtt_us=rtt_us,
            sent_us=max(0, now - rtt_us),
            now=now,
        )


@given(names, st.sampled_from([0, 1_000, 20_000, 100_000]), events)
def test_the_window_keeps_its_bounds(name: str, target_us: int, script: list[Event]) -> None:
    controller, now = CONTROLLERS[name](SEGMENT, target_us), 2_000_000_000
    for event in script:
        now += event[1]
        before = controller.window_bytes
        play(controller, event, now)
        window = controller.window_bytes
        assert window >= controller.segment_bytes
        if event[0] == "loss":
            assert window >= 2 * controller.segment_bytes or window == before
        if event[0] == "ack":
            assert window <= before + event[3] * SEGMENT, "it at most doubles in a round trip"
        if event[0] == "loss":
            assert window <= max(before, 2 * controller.segment_bytes)
        if event[0] == "timeout":
            assert window == controller.segment_bytes
        assert 0 <= controller.queueing_delay_us < 1 << 32


@given(names, events, st.sampled_from(sorted(CONTROLLERS)))
def test_a_controller_that_takes_over_keeps_the_window(name: str, script: list[Event], other: str) -> None:
    controller, now = CONTROLLERS[name](SEGMENT), 2_000_000_000
    for event in script:
        now += event[1]
        play(controller, event, now)
    next_one = CONTROLLERS[other](controller.segment_bytes)
    next_one.take_over(controller)
    assert next_one.window_bytes == controller.window_bytes
    assert next_one.queueing_delay_us == controller.queueing_delay_us
    for event in script:
        now += event[1]
        play(next_one, event, now)
        assert next_one.window_bytes >= next_one.segment_bytes


@given(st.sampled_from(["cubic", "reno"]), st.lists(st.integers(1, 100), min_size=1, max_size=100))
def test_without_losses_the_window_of_tcps_controllers_never_shrinks(name: str, acked: list[int]) -> None:
    """RFC 5681 §3.1, RFC 9438 §4.2."""
    controller, now = CONTROLLERS[name](SEGMENT), 2_000_000_000
    controller.on_loss(now=now)
    for packets in acked:
        before, now = controller.window_bytes, now + 20_000
        play(controller, ("ack", 0, 0, packets, True), now)
        assert controller.window_bytes >= before


@given(st.sampled_from(["ledbat", "ledbat++"]), st.integers(0, 200_000), st.integers(0, 200_000))
def test_a_longer_queue_never_makes_the_window_larger(name: str, one_us: int, other_us: int) -> None:
    """RFC 6817 §2.4.2."""
    windows = []
    for queueing_us in sorted((one_us, other_us)):
        controller, now = CONTROLLERS[name](SEGMENT), 2_000_000_000
        play(controller, ("ack", 0, 0, 1, False), now)
        controller.is_slow_start, controller.window_bytes = False, 200_000
        for _ in range(3):
            now += 10_000
            play(controller, ("ack", 0, queueing_us, 20, True), now)
        windows.append(controller.window_bytes)
    assert windows[0] >= windows[1]

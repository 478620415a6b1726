"""A window spread over its round trip, by a clock that may come late."""

from __future__ import annotations

import pytest

from utpsocket.protocol.pacing import Pacer

from .wire import RTT_US, Wire

WINDOW_BYTES = 400_000
ROUND_BYTES = 1_000_000  # in each round trip
LONG_RTT_US = 100_000
SIZE = 1_400


def paced(base: int) -> Wire:
    """More to send than may leave at once, on a path where that is spread."""
    wire = Wire.initiator(base)
    wire.receive("STATE seq=1 ack=0 wnd=1000000")
    controller = wire.connection.send.controller
    controller.window_bytes, controller.is_slow_start = WINDOW_BYTES, False
    wire.write_bytes(WINDOW_BYTES)
    wire.send()
    return wire


def sent_bytes(wire: Wire) -> int:
    return wire.connection.send.sent_offset


@pytest.mark.parametrize("late_us", [5_000, 8_000])
def test_what_was_due_while_the_thread_was_kept_waiting_leaves_when_it_runs(base: int, late_us: int) -> None:
    """As much as would have left in time: the path is no fuller than it would be."""
    punctual, late = paced(base), paced(base)
    assert sent_bytes(late) == sent_bytes(punctual) < WINDOW_BYTES // 2
    punctual.wait(late_us)
    late.now += late_us
    late.connection.handle_timeout(now=late.at)
    late.send()
    assert sent_bytes(late) >= sent_bytes(punctual) * 9 // 10
    assert sent_bytes(late) <= WINDOW_BYTES


def pace(pacer: Pacer, now: int, *, late_us: int = 0) -> int:
    """All that may leave at this instant."""
    if late_us:
        pacer.on_late_timer(late_us, LONG_RTT_US)
    sent = 0
    while packets := pacer.packets(SIZE, ROUND_BYTES, LONG_RTT_US, now=now):
        pacer.on_sent(packets, packets * SIZE, ROUND_BYTES, LONG_RTT_US, now=now)
        sent += packets * SIZE
    return sent


@pytest.mark.parametrize("every_us", [1_000, 10_000, 30_000, 45_000])
def test_the_pace_is_kept_however_seldom_the_thread_runs(every_us: int) -> None:
    pacer, now, sent = Pacer(), 1_000_000, 0
    for _ in range(100):
        sent += pace(pacer, now, late_us=max(0, now - pacer.ready_at) if sent else 0)
        now += every_us
    assert 0.9 <= sent / (ROUND_BYTES * 100 * every_us / LONG_RTT_US) <= 1.1


def test_time_without_data_to_send_earns_no_burst() -> None:
    pacer = Pacer()
    pace(pacer, 1_000_000)
    assert pace(pacer, 9_000_000) <= ROUND_BYTES * 6_000 // LONG_RTT_US


def test_no_more_than_half_a_round_trip_is_made_up_for() -> None:
    pacer = Pacer()
    pace(pacer, 1_000_000)
    assert pace(pacer, 9_000_000, late_us=7_000_000) <= ROUND_BYTES * 6 // 10
    assert pace(pacer, 18_000_000) <= ROUND_BYTES * 6_000 // LONG_RTT_US, "what was late once is late no more"


def test_a_path_too_short_is_not_paced() -> None:
    assert Pacer().packets(SIZE, ROUND_BYTES, RTT_US // 4, now=1) > 100

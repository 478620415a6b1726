"""Congestion controllers one by one: acks and losses go in, the window comes out. No connection, no network."""

from __future__ import annotations

from itertools import pairwise

import pytest

from utpsocket.engine import environment
from utpsocket.protocol import Config, Workspace
from utpsocket.protocol.congestion import CONTROLLERS, DEFAULT_CONTROLLER, Controller

SEGMENT = 1_000
RTT_US = 50_000
BASE_US = 5_000


class Path:
    """Acks of a path, for one controller. The window is always used up."""

    def __init__(self, controller: Controller, rtt_us: int = RTT_US) -> None:
        self.controller = controller
        self.rtt_us = rtt_us
        self.now = 1_000_000

    def round_trip(self, queueing_us: int = 0, *, acks: int = 10, is_limited: bool = True) -> int:
        """The acks of one window, over one round trip. Returns by how much the window has changed."""
        controller = self.controller
        before = controller.window_bytes
        rtt_us = self.rtt_us + queueing_us
        for _ in range(acks):
            self.now += rtt_us // acks
            controller.on_delay(BASE_US + queueing_us, now=self.now)
            controller.on_ack(
                before // acks,
                in_flight_bytes=before,
                is_limited=is_limited,
                rtt_us=rtt_us,
                sent_us=self.now - rtt_us,
                now=self.now,
            )
        return controller.window_bytes - before

    def leave_slow_start(self, window_bytes: int) -> None:
        self.controller.on_loss(now=self.now)
        self.controller.window_bytes = window_bytes


def path(name: str, window_bytes: int = 0, rtt_us: int = RTT_US) -> Path:
    made = Path(CONTROLLERS[name](SEGMENT), rtt_us)
    made.round_trip(acks=3)
    if window_bytes:
        made.leave_slow_start(window_bytes)
    return made


@pytest.mark.parametrize("name", CONTROLLERS)
class TestAny:
    def test_slow_start_doubles_the_window(self, name: str) -> None:
        made = Path(CONTROLLERS[name](SEGMENT))
        first = made.controller.window_bytes
        assert first == 13_800
        assert made.round_trip() == first
        assert made.round_trip() == 2 * first

    def test_a_window_that_is_not_used_up_does_not_grow(self, name: str) -> None:
        for made in (path(name), path(name, 50_000)):
            assert made.round_trip(is_limited=False) == 0

    def test_a_loss_ends_slow_start_and_leaves_two_packets_at_least(self, name: str) -> None:
        made = path(name)
        before = made.controller.window_bytes
        made.controller.on_loss(now=made.now)
        assert before // 2 <= made.controller.window_bytes <= before * 7 // 10
        assert not made.controller.is_slow_start
        for _ in range(20):
            made.controller.on_loss(now=made.now)
        assert made.controller.window_bytes == 2 * SEGMENT

    def test_a_timeout_leaves_one_packet_and_begins_slow_start(self, name: str) -> None:
        made = path(name, 50_000)
        made.controller.on_timeout(now=made.now)
        assert made.controller.window_bytes == SEGMENT and made.controller.is_slow_start
        made.controller.on_timeout(now=made.now)
        for _ in range(4):
            made.round_trip(acks=2)
        assert made.controller.window_bytes == 16 * SEGMENT
        for _ in range(6):
            made.round_trip()
        assert not made.controller.is_slow_start, "it ends at the window to which the loss would have reduced it"

    def test_a_loss_that_was_none_is_undone(self, name: str) -> None:
        for loses in ("on_loss", "on_timeout"):
            made = path(name)
            before = made.controller.window_bytes, made.controller.is_slow_start
            getattr(made.controller, loses)(now=made.now)
            made.controller.on_spurious_loss(now=made.now)
            assert (made.controller.window_bytes, made.controller.is_slow_start) == before
            made.controller.on_spurious_loss(now=made.now)
            assert made.controller.window_bytes == before[0]

    def test_another_one_goes_on_where_it_was(self, name: str) -> None:
        made = path(DEFAULT_CONTROLLER, 50_000)
        made.round_trip(20_000)
        window_bytes = made.controller.window_bytes
        controller = CONTROLLERS[name](SEGMENT)
        controller.take_over(made.controller)
        assert controller.window_bytes == window_bytes and not controller.is_slow_start
        assert controller.queueing_delay_us == 20_000
        made.controller = controller
        made.round_trip(20_000)
        assert abs(controller.window_bytes - window_bytes) < 5_000


def test_a_connection_is_made_with_the_controller_and_changes_it() -> None:
    send = Config(congestion="reno").new_send_half(Workspace(), 1)
    assert send.controller.NAME == "reno"
    reno = send.controller
    send.control_congestion("reno", 0)
    assert send.controller is reno
    send.controller.window_bytes = 77_777
    send.control_congestion("ledbat", 0)
    assert (send.controller.NAME, send.controller.window_bytes) == ("ledbat", 77_777)
    assert send.controller.target_delay_us == 100_000
    send.control_congestion("ledbat", 20_000)
    assert (send.controller.window_bytes, send.controller.target_delay_us) == (77_777, 20_000)


def test_the_environment_knows_the_same_names() -> None:
    assert set(environment._CONTROLLERS) == set(CONTROLLERS)
    assert all(name == controller.NAME and len(name) < 16 for name, controller in CONTROLLERS.items())


# ── LEDBAT: RFC 6817 ──


@pytest.mark.parametrize(("queueing_us", "change"), [(0, 3_000), (40_000, 1_800), (100_000, 0), (130_000, -900)])
def test_ledbat_follows_the_queueing_delay(queueing_us: int, change: int) -> None:
    """docs/protocol.md §11, and the example of ledbat.py."""
    made = path("ledbat", 100_000)
    made.round_trip(0)
    made.round_trip(queueing_us)
    made.controller.window_bytes = 100_000
    assert made.round_trip(queueing_us) == pytest.approx(change, abs=60)


def test_ledbat_keeps_to_the_target_that_is_set() -> None:
    made = Path(CONTROLLERS["ledbat"](SEGMENT, 20_000))
    made.round_trip()
    made.leave_slow_start(100_000)
    assert made.round_trip(15_000) > 0
    assert made.round_trip(30_000) < 0


# ── Reno: RFC 5681 ──


def test_reno_grows_by_one_packet_per_round_trip_and_halves() -> None:
    made = path("reno", 100_000)
    assert made.round_trip() == pytest.approx(SEGMENT, abs=20)
    made.controller.window_bytes = 100_000
    made.controller.on_loss(now=made.now)
    assert made.controller.window_bytes == 50_000


def test_reno_does_not_heed_queues_once_slow_start_is_over() -> None:
    made = path("reno", 100_000)
    assert made.round_trip(300_000) == pytest.approx(SEGMENT, abs=20)


# ── HyStart++: RFC 9406 ──


@pytest.mark.parametrize("name", ["reno", "cubic"])
def test_hystart_grows_by_a_quarter_where_round_trips_grow_and_ends_after_five_rounds(name: str) -> None:
    made = path(name)
    for _ in range(2):
        made.round_trip()
    before = made.controller.window_bytes
    made.round_trip(10_000)
    rounds = 0
    while made.controller.is_slow_start and rounds < 10:
        made.round_trip(10_000 + 1_000 * rounds)
        rounds += 1
    assert 4 <= rounds <= 7
    assert made.controller.window_bytes < 2 * before * 1.25**7


def test_hystart_goes_on_doubling_where_it_was_noise() -> None:
    made = path("reno")
    for queueing_us in (0, 0, 10_000, 0, 0):
        made.round_trip(queueing_us)
    before = made.controller.window_bytes
    assert made.round_trip() == pytest.approx(before, rel=0.01)


# ── CUBIC: RFC 9438 ──


def test_cubic_leaves_seven_tenths_and_is_back_after_k_seconds() -> None:
    """The example of cubic.py: ∛(30 / 0.4) = 4.2 s."""
    made = path("cubic", 100_000, 200_000)
    made.controller.on_loss(now=made.now)
    assert made.controller.window_bytes == 70_000
    began = made.now
    windows = []
    while made.now - began < 8_400_000:
        made.round_trip()
        windows.append(made.controller.window_bytes)
    assert windows == sorted(windows), "it never shrinks without a loss"
    at_k = windows[len(windows) // 2]
    assert at_k == pytest.approx(100_000, rel=0.04)
    growth = [after - before for before, after in pairwise(windows)]
    middle = sum(growth[len(growth) // 2 - 3 : len(growth) // 2 + 3])
    assert sum(growth[:6]) > middle < sum(growth[-6:]), "concave, flat, convex"


def test_cubic_grows_as_reno_where_that_is_faster() -> None:
    """RFC 9438 §4.3: a small window."""
    made = path("cubic", 10_000)
    made.controller.on_loss(now=made.now)
    before = made.controller.window_bytes
    for _ in range(10):
        made.round_trip()
    assert made.controller.window_bytes - before >= 10 * SEGMENT * 9 // 17 - 500


def test_cubic_does_not_count_time_in_which_the_window_was_not_used_up() -> None:
    """RFC 9438 §4.2: otherwise it would jump after a pause."""
    made = path("cubic", 100_000)
    made.controller.on_loss(now=made.now)
    made.round_trip()
    before = made.controller.window_bytes
    made.now += 60_000_000
    assert made.round_trip() < 0.1 * before


def test_cubic_makes_room_for_others() -> None:
    """RFC 9438 §4.7: it lost something before it was back, so it aims lower, at 70,000 × 17 / 20 bytes."""
    made = path("cubic", 100_000, 200_000)
    made.controller.on_loss(now=made.now)
    made.controller.on_loss(now=made.now)
    assert made.controller.window_bytes == 49_000
    windows = []
    for _ in range(30):
        made.round_trip()
        windows.append(made.controller.window_bytes)
    growth = [after - before for before, after in pairwise(windows)]
    slowest = growth.index(min(growth))
    assert windows[slowest] == pytest.approx(59_500, rel=0.05)


# ── LEDBAT++: draft-irtf-iccrg-ledbat-plus-plus ──


def plus_plus(window_bytes: int) -> Path:
    """One that has left slow start without a loss."""
    made = path("ledbat++")
    made.controller.is_slow_start = False
    made.controller.window_bytes = window_bytes
    return made


def standing(made: Path, queueing_us: int, seconds: float) -> list[int]:
    """The window at the end of each of these round trips, with a queue of that length whatever the window is."""
    ends_at, windows = made.now + int(seconds * 1_000_000), []
    while made.now < ends_at:
        made.round_trip(queueing_us)
        windows.append(made.controller.window_bytes)
    return windows


@pytest.mark.parametrize(("queueing_us", "share"), [(90_000, 0.5), (120_000, 0.5), (66_000, 0.9)])
def test_ledbat_plus_plus_shrinks_in_proportion_by_half_at_most(queueing_us: int, share: float) -> None:
    """The draft's "Multiplicative decrease": window × (delay / target − 1)."""
    made = plus_plus(200_000)
    made.round_trip(queueing_us)
    made.controller.window_bytes = 200_000
    made.round_trip(queueing_us, acks=20)
    assert made.controller.window_bytes == pytest.approx(200_000 * share + 3_000, rel=0.1)


def test_ledbat_plus_plus_gives_way_within_some_round_trips() -> None:
    made = plus_plus(200_000)
    for _ in range(12):
        made.round_trip(300_000)
    assert made.controller.window_bytes <= 3 * SEGMENT


def test_ledbat_plus_plus_slows_down_after_slow_start_and_goes_back() -> None:
    """The draft's "Initial and periodic slowdown": two packets, then doubling up to what it was."""
    made = path("ledbat++")
    while made.controller.is_slow_start:
        made.round_trip(50_000)
    windows = standing(made, 50_000, 1.5)
    lowest = windows.index(2 * SEGMENT)
    assert lowest <= 4, "two round trips after the end of slow start"
    before = max(windows[:lowest], default=13_800)
    assert max(windows[lowest:]) >= before
    grown = windows[lowest : windows.index(max(windows))]
    assert grown == sorted(grown)


def slowdowns(windows: list[int]) -> int:
    return sum(after == 2 * SEGMENT < before for before, after in pairwise(windows))


def test_ledbat_plus_plus_slows_down_again_as_long_as_the_queue_does_not_drain() -> None:
    made = plus_plus(100_000)
    windows = standing(made, 50_000, 60)
    assert 6 <= slowdowns(windows) <= 16


def test_ledbat_plus_plus_does_not_slow_down_where_queues_drain_by_themselves() -> None:
    """So it costs nothing over loopback, and on a path that it does not fill."""
    made = plus_plus(100_000)
    windows = []
    for _ in range(300):
        windows += standing(made, 50_000, 0.2)
        made.round_trip(0)
    assert slowdowns(windows) == 0
    silent = plus_plus(100_000)
    assert slowdowns(standing(silent, 0, 60)) == 0


@pytest.mark.parametrize(
    ("queueing_us", "change"), [(10_000, 3_000), (45_000, 3_000), (52_500, 1_500), (58_000, 500), (60_000, 500)]
)
def test_ledbat_plus_plus_grows_less_near_the_target(queueing_us: int, change: int) -> None:
    made = plus_plus(200_000)
    made.round_trip(queueing_us)
    made.controller.window_bytes = 200_000
    assert made.round_trip(queueing_us) == pytest.approx(change, abs=60)


def test_ledbat_plus_plus_grows_by_a_quarter_where_the_queue_stays_empty() -> None:
    """After a TCP has left, and where round trips are long because the way back is full."""
    for rtt_us in (RTT_US, 600_000):
        made = path("ledbat++", rtt_us=rtt_us)
        made.controller.is_slow_start = False
        made.controller.window_bytes = 100_000
        made.round_trip(30_000)
        for _ in range(3):
            made.round_trip(0)
        before = made.controller.window_bytes
        assert made.round_trip(0) == pytest.approx(before / 4 + 3_000, rel=0.1)
        made.round_trip(8_000)
        assert made.round_trip(8_000) == pytest.approx(3_000, abs=60)


def test_ledbat_plus_plus_does_not_take_one_gap_for_an_empty_path() -> None:
    """It may be another flow's slowdown."""
    made = plus_plus(100_000)
    for _ in range(10):
        for _ in range(3):
            made.round_trip(30_000)
        assert made.round_trip(0) < 3_100


def test_ledbat_plus_plus_does_not_hurry_where_something_is_lost_without_a_queue() -> None:
    """Random losses, a policer, or a buffer that is too short for a queue."""
    made = plus_plus(100_000)
    made.round_trip(0)
    made.controller.on_loss(now=made.now)
    for _ in range(10):
        assert made.round_trip(0) < 3_100


@pytest.mark.parametrize(
    ("buffer_us", "limit_us"), [(31_000, 15_500), (100_000, 50_000), (300_000, 60_000), (0, 4_000)]
)
def test_ledbat_plus_plus_keeps_to_half_of_a_short_buffer(buffer_us: int, limit_us: int) -> None:
    """Otherwise losses alone would decide, as between TCPs."""
    made = plus_plus(100_000)
    made.round_trip(buffer_us)
    made.controller.on_loss(now=made.now)
    made.controller.window_bytes = 100_000
    assert made.controller._limit_us == limit_us  # type: ignore[attr-defined]
    if limit_us > 10_000:
        assert made.round_trip(limit_us * 2 // 3) > 0
        assert made.round_trip(limit_us * 4 // 3) < 0
    standing(made, 1_000, 10 * 5)
    assert made.controller._limit_us == 60_000  # type: ignore[attr-defined]


def test_a_loss_while_ledbat_plus_plus_is_slowed_down_halves_what_it_goes_back_to() -> None:
    for loses in ("on_loss", "on_timeout"):
        made = plus_plus(100_000)
        while made.controller.window_bytes > 2 * SEGMENT:
            made.round_trip(50_000, acks=50)
        before = made.controller._resume_bytes  # type: ignore[attr-defined]
        getattr(made.controller, loses)(now=made.now)
        # A queue of others, so that the window does not go on growing by a quarter.
        windows = standing(made, 5_000, 0.5)
        assert before * 0.4 <= max(windows) <= before * 0.7


# ── RFC 6817 and the draft: what has no test above; docs/congestion.md ──


@pytest.mark.parametrize("name", ["ledbat", "ledbat++"])
def test_the_queueing_delay_is_the_least_of_the_last_three_samples(name: str) -> None:
    """RFC 6817's FILTER() and CURRENT_FILTER."""
    made = path(name, 50_000)
    estimates = []
    for queueing_us in (30_000, 30_000, 30_000, 10_000, 40_000, 40_000, 40_000):
        made.controller.on_delay(BASE_US + queueing_us, now=made.now)
        estimates.append(made.controller.queueing_delay_us)
    assert estimates[2:] == [30_000, 10_000, 10_000, 10_000, 40_000]


@pytest.mark.parametrize(("name", "target_us"), [("ledbat", 100_000), ("ledbat++", 60_000)])
def test_slow_start_goes_back_at_the_first_queue_and_ends_below_the_target(name: str, target_us: int) -> None:
    """RFC 9406 in place of what RFC 6817 leaves open; the draft ends slow start at three quarters of the target."""
    made = path(name, rtt_us=200_000)
    for _ in range(3):
        made.round_trip()
    doubled = made.controller.window_bytes
    made.round_trip(20_000, acks=4)
    assert doubled // 2 <= made.controller.window_bytes < doubled, "a queue of an eighth of the round trip, or 16 ms"
    assert made.controller.is_slow_start
    before = made.controller.window_bytes
    made.round_trip(10_000)
    assert made.controller.window_bytes <= before * 3 // 2, (
        "by a quarter in a round trip, and some acks of the one before"
    )
    made.round_trip(target_us * 4 // 5)
    assert not made.controller.is_slow_start


def test_a_queue_of_three_quarters_of_the_target_ends_slow_start_at_once() -> None:
    for name, target_us in (("ledbat", 100_000), ("ledbat++", 60_000)):
        made = path(name)
        made.round_trip()
        made.round_trip(target_us * 3 // 4, acks=4)
        assert not made.controller.is_slow_start


@pytest.mark.parametrize("queueing_us", [10_000, 30_000, 44_000])
def test_well_below_the_target_ledbat_plus_plus_grows_by_as_much_whatever_the_queue(queueing_us: int) -> None:
    """The draft: W += GAIN, and not RFC 6817's part of it."""
    made = plus_plus(100_000)
    made.round_trip(queueing_us)
    before = made.controller.window_bytes
    made.round_trip(queueing_us)
    assert made.controller.window_bytes - before == pytest.approx(3_000, abs=120)


def test_ledbat_plus_plus_waits_nine_times_as_long_as_its_last_slowdown_took() -> None:
    """So that slowdowns cost a tenth of the path at most."""
    made = plus_plus(200_000)
    made.rtt_us = 300_000
    begins: list[int] = []
    ends: list[int] = []
    was_slow = False
    for _ in range(400):
        made.round_trip(30_000, acks=1)
        is_slow = made.controller._slowdown_began_at >= 0  # type: ignore[attr-defined]
        if is_slow != was_slow:
            (begins if is_slow else ends).append(made.now)
        was_slow = is_slow
    assert len(ends) >= 2
    for begin, end, following in zip(begins, ends, begins[1:], strict=False):
        assert following - end >= 9 * (end - begin) - 2 * made.rtt_us

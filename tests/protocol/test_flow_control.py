"""docs/protocol.md §7: windows, closed windows, and peers that mistreat them."""

from __future__ import annotations

import errno
from itertools import pairwise

import pytest

from tests.protocol.wire import RTT_US, Wire
from utpsocket.protocol import Config, State
from utpsocket.protocol.outstanding import GIVE_UP_AFTER_US, ORPHAN_CLOSED_WINDOW_US, ORPHAN_GIVE_UP_AFTER_US


def small(base: int, capacity: int) -> Wire:
    return Wire.initiator(base, config=Config(receive_buffer_bytes=capacity))


def full(base: int) -> Wire:
    """With a buffer of ten packets, which have come."""
    wire = small(base, 14_000)
    for number in range(1, 11):
        wire.receive(f"DATA seq={number} ack=0 len=1400")
    wire.send()
    return wire


def test_the_window_is_what_is_free_with_held_bytes_subtracted(base: int) -> None:
    wire = small(base, 100_000)
    wire.receive("DATA seq=1 ack=0 len=1000", "DATA seq=3 ack=0 len=500")
    wire.send()
    assert wire.last_window == 98_500
    wire.read_bytes()
    wire.receive("DATA seq=4 ack=0 len=500")
    wire.send()
    assert wire.last_window == 99_000


def test_a_peer_that_ignores_our_window_fills_no_memory(base: int) -> None:
    wire = small(base, 10_000)
    for number in range(1, 100):
        wire.receive(f"DATA seq={number} ack=0 len=1400")
    wire.send()
    assert wire.last_window == 0
    assert 10_000 <= len(wire.read_bytes()) <= 10_000 + 4_096
    assert wire.connection.stats().dropped_packets > 80


def test_tiny_packets_cost_no_more_than_they_hold(base: int) -> None:
    wire = small(base, 50_000)
    for number in range(1, 5_001):
        wire.receive(f"DATA seq={number} ack=0 len=1")
        wire.connection.finish_delivery(0, now=wire.at)
    assert len(wire.connection.poll_delivery()) <= 2
    assert len(wire.read_bytes()) == 5_000


def test_a_hole_is_filled_though_the_buffer_has_become_smaller_than_what_is_held(base: int) -> None:
    """What was promised is taken: were the hole refused, what is held behind it would keep the window closed."""
    wire = small(base, 100_000)
    wire.send()
    wire.receive(*(f"DATA seq={number} ack=0 len=1000" for number in range(2, 31)))
    wire.connection.receive.reassembly.resize(8_192)
    wire.send()
    assert wire.last_window == 0
    wire.receive("DATA seq=1 ack=0 len=1000", "DATA seq=31 ack=0 len=1000")
    assert len(wire.read_bytes()) == 31_000
    wire.send()
    assert wire.last_window == 8_192
    wire.receive(*(f"DATA seq={number} ack=0 len=1000" for number in range(33, 101)))
    wire.receive("DATA seq=32 ack=0 len=1000")
    assert len(wire.read_bytes()) == 69_000, "up to the edge that was promised at first"
    wire.receive(*(f"DATA seq={number} ack=0 len=1000" for number in range(101, 121)))
    assert 8_192 <= len(wire.read_bytes()) <= 8_192 + 4_096, "and from there on what the small one takes"


def test_a_closed_window_that_opens_is_said_at_once(base: int) -> None:
    wire = full(base)
    assert wire.last_window == 0
    wire.read_bytes(1_000)
    assert wire.send() == [], "a silly little window"
    wire.read_bytes(1_000)
    assert wire.send() == []
    wire.read_bytes(1_000)
    assert wire.send() == ["STATE seq=1 ack=10"]
    assert wire.last_window == 3_000


def test_an_opened_window_is_said_again_until_data_comes(base: int) -> None:
    """Only libutp and we probe a closed window: a lost update would leave the others waiting for ever."""
    wire = full(base)
    wire.read_bytes()
    assert wire.send() == ["STATE seq=1 ack=10"]
    assert [line.split()[0] for line in wire.wait(5_000_000)] == ["1020", "3020"]
    wire.receive("DATA seq=11 ack=0 len=1400", "DATA seq=12 ack=0 len=1400")
    wire.send()
    assert wire.wait(100_000_000) == []


def test_a_small_buffer_advertises_from_half_of_it_on(base: int) -> None:
    wire = small(base, 2_000)
    wire.receive("DATA seq=1 ack=0 len=1900")
    assert wire.wait(20_000) == ["30 STATE seq=1 ack=1"]
    assert wire.last_window == 0
    wire.read_bytes(900)
    assert wire.send() == ["STATE seq=1 ack=1"]
    assert wire.last_window == 1_000


def test_a_window_that_grew_by_half_is_said(base: int) -> None:
    wire = small(base, 100_000)
    for number in range(1, 61):
        wire.receive(f"DATA seq={number} ack=0 len=1000")
    wire.send()
    assert wire.last_window == 40_000
    wire.read_bytes()
    assert wire.send() == ["STATE seq=1 ack=60"]
    assert wire.last_window == 100_000


def test_a_closed_window_is_probed_with_backoff_up_to_15_seconds(base: int) -> None:
    """RFC 9293 §3.8.6.1; starts at the RTO and never gives up while the peer lives."""
    wire = Wire.initiator(base)
    wire.receive("STATE seq=1 ack=0 wnd=0")
    wire.send()
    wire.write_bytes(5_000)
    assert wire.send() == []
    times = []
    for _ in range(12):
        sent: list[str] = []
        while not sent:
            sent = wire.wait(50_000)
        assert sent[0].endswith("DATA seq=1 ack=0 len=1")
        times.append(wire.now)
        wire.receive("STATE seq=1 ack=0 wnd=0")
    gaps = [after - before for before, after in pairwise(times)]
    assert gaps[0] <= 500_000
    assert all(after >= before for before, after in pairwise(gaps))
    assert 14_900_000 <= gaps[-1] <= 15_100_000
    assert wire.connection.stats().cwnd_bytes > 1_380, "a closed window is no congestion"
    wire.receive("STATE seq=1 ack=1 wnd=100000")
    assert wire.send()[0].startswith("DATA seq=2..")


@pytest.mark.parametrize("takes", [False, True])
def test_a_user_timeout_counts_a_closed_window(base: int, *, takes: bool) -> None:
    """TCP_USER_TIMEOUT, as Linux since 5.11: whatever the peer answers to probes, and whether it takes their byte."""
    wire = Wire.initiator(base)
    wire.connection.send.user_timeout_us = 4_000_000
    wire.receive("STATE seq=1 ack=0 wnd=0")
    wire.write_bytes(5_000)
    wire.send()
    began = wire.now
    taken = 0
    while wire.state is State.CONNECTED:
        if wire.wait(50_000):
            taken += takes
            wire.receive(f"STATE seq=1 ack={taken} wnd=0")
            wire.send()
    assert wire.events() == [f"CLOSED {errno.ETIMEDOUT}"]
    assert wire.now - began <= 4_100_000


def test_a_window_that_opens_now_and_then_is_within_the_user_timeout(base: int) -> None:
    wire = Wire.initiator(base)
    wire.connection.send.user_timeout_us = 4_000_000
    wire.receive("STATE seq=1 ack=0 wnd=0")
    wire.write_bytes(100_000)
    wire.send()
    acked = 0
    for _ in range(5):
        closed_at = wire.now
        while wire.now < closed_at + 3_000_000:
            if wire.wait(50_000):
                acked += 1
                wire.receive(f"STATE seq=1 ack={acked} wnd=0")
                wire.send()
        wire.receive(f"STATE seq=1 ack={acked} wnd=1500")
        assert len(wire.send()) == 1
        acked += 1
        wire.receive(f"STATE seq=1 ack={acked} wnd=0")
        wire.send()
    assert wire.state is State.CONNECTED


def closed_with_data_unsent(base: int, *, sent_bytes: int = 0) -> Wire:
    """The application has written more than the peer takes, and closed."""
    wire = Wire.initiator(base)
    wire.receive(f"STATE seq=1 ack=0 wnd={sent_bytes}")
    wire.write_bytes(50_000)
    wire.send()
    wire.connection.finish(now=wire.at)
    wire.connection.discard(now=wire.at)
    wire.send()
    return wire


@pytest.mark.parametrize("takes", [False, True])
def test_what_was_closed_does_not_wait_for_a_closed_window_for_ever(base: int, *, takes: bool) -> None:
    """As Linux's orphans: though the peer answers each probe, and takes the byte of it. The peer gets a RESET."""
    wire = closed_with_data_unsent(base)
    began, taken = wire.now, 0
    sent: list[str] = []
    while wire.state is State.CONNECTED:
        sent = wire.wait(50_000)
        if sent and wire.state is State.CONNECTED:
            taken += takes
            wire.receive(f"STATE seq=1 ack={taken} wnd=0")
            wire.send()
    assert wire.events() == [f"CLOSED {errno.ETIMEDOUT}"]
    assert "RESET" in sent[-1]
    assert ORPHAN_CLOSED_WINDOW_US <= wire.now - began < ORPHAN_CLOSED_WINDOW_US + 1_000_000


@pytest.mark.parametrize("window", ["closes", "opens and closes"])
def test_nor_for_what_is_under_way_behind_one(base: int, window: str) -> None:
    """The window closed over packets that had left, or opens only to lure more of them: none is ever acked."""
    wire = closed_with_data_unsent(base, sent_bytes=20_000)
    assert wire.connection.send.flights.packets
    began, answers = wire.now, 0
    while wire.state is State.CONNECTED:
        if wire.wait(50_000) and wire.state is State.CONNECTED:
            answers += 1
            is_open = window == "opens and closes" and answers % 2
            wire.receive(f"STATE seq=1 ack=0 wnd={20_000 if is_open else 0}")
            wire.send()
        assert wire.now - began < 300_000_000
    assert wire.events() == [f"CLOSED {errno.ETIMEDOUT}"]
    assert wire.now - began >= ORPHAN_GIVE_UP_AFTER_US


def test_what_is_closed_and_goes_on_slowly_arrives(base: int) -> None:
    """A packet now and then is progress: it takes as long as it takes. And what is not closed waits for a day."""
    wire = closed_with_data_unsent(base)
    acked = 0
    while wire.connection.send.unsent_bytes:
        for _ in range(10):
            wire.wait(9_000_000)
            wire.receive(f"STATE seq=1 ack={wire.connection.send.flights.una_seq - wire.our_base - 1} wnd=0")
            wire.send()
        wire.receive(f"STATE seq=1 ack={acked} wnd=3000")
        wire.send()
        acked = wire.connection.send.flights.next_seq - wire.our_base - 1
        wire.receive(f"STATE seq=1 ack={acked} wnd=0")
        wire.send()
        assert wire.state is State.CONNECTED
    other = Wire.initiator(base)
    other.receive("STATE seq=1 ack=0 wnd=0")
    other.write_bytes(5_000)
    for _ in range(24 * 360):
        other.wait(10_000_000)
        other.receive("STATE seq=1 ack=0 wnd=0")
        other.send()
    assert other.state is State.CONNECTED


def test_a_dead_peer_with_a_closed_window_is_given_up(base: int) -> None:
    wire = Wire.initiator(base)
    wire.receive("STATE seq=1 ack=0 wnd=0")
    wire.write_bytes(5_000)
    wire.send()
    wire.wait(GIVE_UP_AFTER_US)
    assert wire.state is State.CONNECTED
    wire.wait(60_000_000)
    assert wire.state is State.CLOSED


def test_a_window_hardly_larger_than_a_segment_is_used(base: int) -> None:
    """RFC 9293 §3.8.6.2.1: half of the largest window ever seen is worth a packet."""
    wire = Wire.initiator(base)
    tiny = Wire(base)
    tiny.connect()
    tiny.send()
    tiny.wait(RTT_US)
    tiny.receive("STATE seq=1 ack=0 wnd=500")
    tiny.send()
    tiny.write_bytes(2_000)
    assert tiny.send() == ["DATA seq=1 ack=0 len=500"]
    tiny.receive("STATE seq=1 ack=1 wnd=500")
    assert tiny.send() == ["DATA seq=2 ack=0 len=500"]
    wire.receive("STATE seq=1 ack=0 wnd=500")
    wire.send()
    wire.write_bytes(2_000)
    assert wire.send() == [], "a large buffer that is nearly full is waited for"


def test_a_window_that_never_changes_counts_anew_with_each_ack(base: int) -> None:
    """§7: some peers advertise a constant."""
    wire = Wire.initiator(base)
    wire.receive("STATE seq=1 ack=0 wnd=2760")
    wire.write_bytes(13_800)
    assert wire.send() == ["DATA seq=1..2 ack=0 len=1380"]
    wire.wait(RTT_US)
    wire.receive("STATE seq=1 ack=2 wnd=2760")
    assert wire.send() == ["DATA seq=3..4 ack=0 len=1380"]


def test_at_most_900_packets_are_under_way_to_a_foreign_peer(base: int) -> None:
    wire = Wire.initiator(base)
    wire.connection.send.controller.window_bytes = 10_000_000
    wire.receive("STATE seq=1 ack=0 wnd=9000000")
    wire.write_bytes(2_000_000)
    wire.wait(RTT_US)
    assert wire.connection.stats().sent_packets == 900
    wire.receive("STATE seq=1 ack=0 wnd=9000000 sack=" + "00" * 252)
    wire.send()
    wire.wait(5_000)
    assert wire.connection.stats().sent_packets > 1_000, "a selective ack of full length proves more"


def test_we_prove_ourselves_in_the_same_way(base: int) -> None:
    wire = Wire.initiator(base)
    for number in range(1, 20):
        wire.receive(f"DATA seq={number} ack=0 len=10")
    (line,) = wire.send()
    assert line == "STATE seq=1 ack=19 sack=" + "00" * 252


def test_a_probe_that_is_taken_opens_nothing(base: int) -> None:
    """A peer that says 0 and takes the probe's byte all the same is asked ever more seldom, like any other."""
    wire = Wire.initiator(base)
    wire.receive("STATE seq=1 ack=0 wnd=0")
    wire.send()
    wire.write_bytes(5_000)
    assert wire.send() == []
    times = []
    for probe in range(1, 13):
        sent: list[str] = []
        while not sent:
            sent = wire.wait(50_000)
        assert sent[0].endswith(f"DATA seq={probe} ack=0 len=1")
        times.append(wire.now)
        wire.wait(RTT_US)
        wire.receive(f"STATE seq=1 ack={probe} wnd=0")
        assert wire.send() == []
    gaps = [after - before for before, after in pairwise(times)]
    assert all(after >= before for before, after in pairwise(gaps))
    assert 14_900_000 <= gaps[-1] <= 15_200_000
    wire.receive("STATE seq=1 ack=12 wnd=100000")
    assert wire.send()[0].startswith("DATA seq=13..")
    assert wire.connection.send.recovery.rto_us < 500_000, "nor does what follows wait so long when it is lost"

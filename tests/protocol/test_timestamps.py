"""docs/protocol.md §6 and §11: what timestamps mean, also false ones."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol.wire import RTT_US, Wire
from tests.simulator import WRAP_SEQ, Application, Pair, Simulator, path
from utpsocket.protocol.congestion.ledbat import Ledbat


def stamps(datagram: bytes) -> tuple[int, int]:
    timestamp, difference = struct.unpack(">II", datagram[4:12])
    return timestamp, difference


def test_timestamps_are_the_clocks_lowest_32_bits(base: int) -> None:
    wire = Wire.initiator(base, first_now=(7 << 32) + 5)
    wire.write_bytes(10)
    wire.send()
    assert stamps(wire.last)[0] == RTT_US + 5


def test_a_retransmission_is_stamped_anew(base: int) -> None:
    wire = Wire.initiator(base)
    wire.write_bytes(10)
    wire.send()
    first = stamps(wire.last)[0]
    wire.wait(100_000)
    assert stamps(wire.last)[0] > first + 40_000


def test_the_difference_is_frozen_at_receipt(base: int) -> None:
    wire = Wire.initiator(base)
    wire.receive(f"DATA seq=1 ack=0 len=9 ts={wire.at - 12_345}")
    wire.wait(9_000)
    wire.receive("DATA seq=2 ack=0 len=9 ts=0")  # a zero is no timestamp
    wire.send()
    assert stamps(wire.last)[1] == 12_345


def test_the_difference_is_modular(base: int) -> None:
    wire = Wire.initiator(base)
    wire.receive(f"DATA seq=1 ack=0 len=9 ts={wire.at + 1}", "DATA seq=2 ack=0 len=9 ts=" + str(wire.at + 1))
    wire.send()
    assert stamps(wire.last)[1] == 0xFFFFFFFF


@pytest.mark.parametrize("difference", [0, 0x7FFFFFFF])
def test_where_the_peer_gives_no_delay_round_trips_stand_for_it(base: int, difference: int) -> None:
    wire = Wire.initiator(base)
    wire.write_bytes(400_000)
    wire.send()
    for _ in range(5):
        wire.wait(RTT_US)
        ack = wire.connection.send.flights.next_seq - 1 - wire.base
        wire.receive(f"STATE seq=1 ack={ack} diff={difference}")
        wire.send()
    stats = wire.connection.stats()
    assert stats.queueing_delay_us < 1_000  # the first packets were smaller, and their acks came together
    assert stats.cwnd_bytes > 100_000
    for _ in range(4):
        wire.write_bytes(4_000)
        wire.send()
        wire.wait(RTT_US + 50_000)
        ack = wire.connection.send.flights.next_seq - 1 - wire.base
        wire.receive(f"STATE seq=1 ack={ack} diff={difference}")
        wire.send()
    assert 45_000 <= wire.connection.stats().queueing_delay_us <= 60_000


@pytest.mark.parametrize("crafted", [1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1])
def test_a_crafted_difference_harms_only_its_sender(base: int, crafted: int) -> None:
    """§4: libutp's HEAD aborts on one that is 2**31 from the base."""
    wire = Wire.initiator(base)
    wire.write_bytes(100_000)
    wire.send()
    for number in range(1, 12):
        wire.wait(RTT_US)
        ack = min(number, wire.connection.stats().sent_packets)
        wire.receive(f"STATE seq=1 ack={ack} diff={crafted if number % 2 else 5_000} ts={crafted}")
        wire.send()
    assert wire.connection.stats().cwnd_bytes >= 1_380


@given(st.lists(st.tuples(st.integers(1, 2**32 - 1), st.integers(1, 2**32 - 1), st.integers(0, 10**8)), max_size=60))
def test_any_samples_leave_a_sane_window(samples: list[tuple[int, int, int]]) -> None:
    controller = Ledbat(1_380)
    now = 0
    for delay, peer_delay, step in samples:
        now += step
        controller.on_peer_delay(peer_delay)
        controller.on_delay(delay, now=now)
        before = controller.window_bytes
        controller.on_ack(10_000, in_flight_bytes=20_000, is_limited=True, rtt_us=step + 1, sent_us=now - 1, now=now)
        assert 2 * 1_380 <= controller.window_bytes <= before + 10_000
        assert 0 <= controller.queueing_delay_us < 2**32


@pytest.mark.parametrize("first_seq", [1, WRAP_SEQ])
def test_the_clock_wraps_every_71_minutes_unnoticed(first_seq: int) -> None:
    def run(start_us: int) -> tuple[int, int, int]:
        simulator = Simulator(5, checks=False, start_us=start_us)
        link = {"delay_us": 20_000, "rate_bits": 20_000_000}
        pair = Pair(
            simulator,
            path(simulator, **link),  # type: ignore[arg-type]
            path(simulator, **link),  # type: ignore[arg-type]
            a=Application(6_000_000, writes=1, expects=2),
            b=Application(0, writes=2, expects=1),
            first_seq=first_seq,
        )
        pair.finish()
        stats = pair.a.connection.stats()
        return simulator.elapsed_us, stats.retransmitted_packets, stats.cwnd_bytes

    assert run((1 << 32) - 1_000_000) == run(1 << 32)


def test_ninety_megabytes_wrap_the_numbers() -> None:
    simulator = Simulator(6, checks=False)
    link = {"delay_us": 5_000, "loss": 0.0005}
    pair = Pair(
        simulator,
        path(simulator, **link),  # type: ignore[arg-type]
        path(simulator, **link),  # type: ignore[arg-type]
        a=Application(100_000_000, writes=1, expects=2),
        b=Application(0, writes=2, expects=1),
        first_seq=WRAP_SEQ,
    )
    pair.finish()
    assert pair.a.connection.stats().sent_packets > 0x10000


def test_a_window_known_from_another_connection_is_where_slow_start_begins() -> None:
    controller = Ledbat(1_380)
    controller.seed_window(100_000)
    assert controller.window_bytes == 100_000
    controller.seed_window(50_000)
    assert controller.window_bytes == 100_000
    controller.on_timeout(now=1)
    controller.seed_window(100_000)
    assert controller.window_bytes == 1_380, "what it met itself counts more"
    lossy = Ledbat(1_380)
    lossy.on_loss(now=1)
    lossy.seed_window(100_000)
    assert lossy.window_bytes == 5 * 1_380

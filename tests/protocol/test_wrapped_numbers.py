"""RFC 7323 §5: a datagram that is 65,536 packets late has the number of a new one, and only its time is older."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.protocol.wire import PEER, RTT_US, Wire
from utpsocket.protocol import Run
from utpsocket.protocol.fragmentation import compose_pieces

TURN = 0x10000
STEP_US = 10  # between packets: 65,536 of them take two thirds of a second
RUN = 64
LATE = "late"


def clock(wire: Wire) -> int:
    return (wire.at - RTT_US // 2) & 0xFFFFFFFF


def receive_many(wire: Wire, first: int, count: int, timestamp_of: Callable[[Wire], int] = clock) -> None:
    """So many packets of the peer in their order, each run with a time of its own; all must be taken."""
    before = wire.connection.receive.received_packets
    template = wire.write("DATA seq=0 ack=0 data=data")
    seq0 = int.from_bytes(template[16:18], "big")
    for start in range(first, first + count, RUN):
        seqs = range(start, min(start + RUN, first + count))
        wire.now += STEP_US * len(seqs)
        head = template[:4] + timestamp_of(wire).to_bytes(4, "big") + template[8:16]
        data = b"".join(head + (seq0 + seq & 0xFFFF).to_bytes(2, "big") + template[18:] for seq in seqs)
        wire.connection.handle_run(Run(memoryview(data), len(template), PEER), now=wire.at)
        assert wire.read_bytes() == b"data" * len(seqs)
        wire.connection.poll_transmit(now=wire.at, max_segments=1)
    assert wire.connection.receive.received_packets == before + count
    wire.send()


def receive_late(wire: Wire, seq: int, sent_us: int, *, data: str = LATE) -> bytes:
    wire.receive(f"DATA seq={seq & 0xFFFF} ack=0 data={data} ts={sent_us}")
    return wire.read_bytes()


@pytest.mark.parametrize("first_now", [10_000_000, (1 << 32) - 300_000])
@pytest.mark.parametrize("ahead", [0, 1, 8_000])
def test_a_datagram_a_turn_late_is_refused_and_counted(base: int, first_now: int, ahead: int) -> None:
    """At the gap it would be delivered at once, beyond it when its turn comes."""
    wire = Wire.initiator(base, first_now=first_now)
    sent_us = clock(wire) + 5
    receive_many(wire, 1, TURN)
    assert receive_late(wire, 1 + ahead, sent_us + ahead * STEP_US) == b""
    assert wire.send() == ["STATE seq=1 ack=0"], "acked, as any that is not taken"
    assert wire.connection.stats().late_packets == 1
    receive_many(wire, 1 + TURN, 9_000)


def test_what_follows_in_the_same_run_is_judged_alike(base: int) -> None:
    wire = Wire.initiator(base)
    sent_us = clock(wire) + 5
    receive_many(wire, 1, TURN)
    late = [f"DATA seq={1 + index} ack=0 data=late ts={sent_us}" for index in range(8)]
    wire.receive_run(*late)
    assert wire.read_bytes() == b""
    assert wire.connection.stats().late_packets == 8
    receive_many(wire, 1 + TURN, 100)


def test_a_fin_of_that_age_ends_nothing(base: int) -> None:
    wire = Wire.initiator(base)
    receive_many(wire, 1, TURN)
    wire.receive(f"FIN seq=1 ack=0 ts={10_000_000}")
    assert not wire.connection.has_eof
    receive_many(wire, 1 + TURN, 100)


def test_reordering_is_no_age(base: int) -> None:
    """As far as any packet may be ahead of a gap that is filled late: it was not sent before the marks."""
    wire = Wire.initiator(base)
    receive_many(wire, 1, TURN)
    sent_us = clock(wire)
    gap = 1 + TURN
    for seq in range(gap + 1, gap + 8_000):
        wire.now += STEP_US
        held = memoryview(wire.write(f"DATA seq={seq & 0xFFFF} ack=0 data=held ts={clock(wire)}"))
        wire.connection.handle_run(Run(held, len(held), PEER), now=wire.at)
    wire.send()
    assert receive_late(wire, gap, sent_us, data="gaps") == b"gaps" + b"held" * 7_999
    receive_many(wire, gap + 8_000, 100)


@pytest.mark.parametrize("pause_minutes", [1, 9, 20, 36, 50, 71, 100])
def test_however_long_nothing_came(pause_minutes: int) -> None:
    """Beyond half of the clock's 71.6 minutes, later looks like earlier."""
    wire = Wire.initiator(20_000)
    receive_many(wire, 1, TURN)
    wire.now += pause_minutes * 60_000_000
    receive_many(wire, 1 + TURN, 20_000)
    assert wire.connection.stats().late_packets == 0


@pytest.mark.parametrize("back_seconds", [1, 60, 2_000])
def test_a_clock_that_was_set_back_costs_a_second(base: int, back_seconds: int) -> None:
    wire = Wire.initiator(base)
    receive_many(wire, 1, TURN)
    offset_us = 0
    while receive_late(wire, 1, (clock(wire) - back_seconds * 1_000_000) & 0xFFFFFFFF, data="data") == b"":
        wire.now += 250_000
        offset_us += 250_000
        wire.send()
    assert offset_us <= 1_000_000
    receive_many(wire, 2 + TURN, 2 * TURN, lambda wire: (clock(wire) - back_seconds * 1_000_000) & 0xFFFFFFFF)


CLOCKS: dict[str, Callable[[Wire], int]] = {
    "none": lambda wire: 0,
    "stopped": lambda wire: 12_345,
    "milliseconds": lambda wire: clock(wire) // 1_000,
    "nanoseconds": lambda wire: clock(wire) * 1_000 & 0xFFFFFFFF,
    "backwards": lambda wire: -clock(wire) & 0xFFFFFFFF,
    "any": lambda wire: random.Random(wire.now).getrandbits(32),
}


@pytest.mark.parametrize("name", CLOCKS)
def test_whatever_the_peers_clock_shows_its_data_is_taken(name: str) -> None:
    """Refused is only what might be of another age; other clocks' times are given up before they refuse anything."""
    wire = Wire.initiator(20_000)
    receive_many(wire, 1, 16_000, CLOCKS[name])
    wire.now += 5_000_000
    receive_many(wire, 16_001, TURN, CLOCKS[name])
    assert wire.connection.stats().late_packets == 0


# ── acks ──


def send_many(wire: Wire, count: int, timestamp_of: Callable[[Wire], int] = clock) -> None:
    """At least so many packets to the peer, who acks them by and by; all acks must be taken."""
    flights = wire.connection.send.flights
    end_seq = flights.next_seq + count
    while flights.next_seq < end_seq:
        under_way(wire)
        wire.now += RUN * STEP_US
        receive_ack(wire, flights.next_seq - 1, timestamp_of(wire))
        assert not flights.packets


def under_way(wire: Wire) -> int:
    """Some 60 packets leave; how many."""
    wire.connection.send.controller.window_bytes = 1 << 30
    wire.write_bytes(90_000)
    while wire.connection.poll_transmit(now=wire.at, max_segments=64) is not None:
        pass
    return wire.connection.send.flights.packets


def receive_ack(wire: Wire, seq: int, sent_us: int, kind: str = "STATE", more: str = "") -> None:
    """The peer has our packet of this number and all before it."""
    ack = seq - wire.our_base & 0xFFFF
    packet = memoryview(wire.write(f"{kind} seq=2 ack={ack} ts={sent_us & 0xFFFFFFFF} {more}"))
    wire.connection.handle_run(Run(packet, len(packet), PEER), now=wire.at)


def sender(base: int, **options: Any) -> Wire:
    wire = Wire.initiator(base, **options)
    wire.connection.send.recovery.min_rtt_us = 1_000  # not paced
    wire.receive("DATA seq=1 ack=0 data=data")  # from now on a lone STATE takes the short way
    wire.send()
    return wire


@pytest.mark.parametrize("first_now", [10_000_000, (1 << 32) - 300_000])
@pytest.mark.parametrize("late", ["STATE", "STATE sack=ffffffff", "DATA data=late"])
def test_an_ack_a_turn_late_acks_nothing(base: int, first_now: int, late: str) -> None:
    """It would free what is still on its way, which could never be sent again."""
    wire = sender(base, first_now=first_now)
    sent_us = clock(wire) + 5
    send_many(wire, TURN)
    flights = wire.connection.send.flights
    packets = under_way(wire)
    kind, _, more = late.partition(" ")
    receive_ack(wire, flights.una_seq + 40, sent_us, kind, more)
    assert flights.packets == packets > 50 and not flights.sacked_packets
    assert wire.connection.stats().late_packets == 1
    receive_ack(wire, flights.next_seq - 1, clock(wire))
    assert not flights.packets
    send_many(wire, 20_000)


@pytest.mark.parametrize("back_seconds", [1, 60, 2_000])
def test_acks_by_a_clock_that_was_set_back_count_after_a_second(base: int, back_seconds: int) -> None:
    wire = sender(base)
    send_many(wire, 40_000)
    flights = wire.connection.send.flights
    under_way(wire)
    offset_us = 0
    while flights.packets:
        receive_ack(wire, flights.next_seq - 1, clock(wire) - back_seconds * 1_000_000)
        wire.now += 250_000
        offset_us += 250_000
    assert 250_000 < offset_us <= 1_250_000
    send_many(wire, 40_000, lambda wire: clock(wire) - back_seconds * 1_000_000)


@pytest.mark.parametrize("name", CLOCKS)
def test_whatever_the_peers_clock_shows_its_acks_are_taken(name: str) -> None:
    wire = sender(20_000)
    send_many(wire, 16_000, CLOCKS[name])
    wire.now += 5_000_000
    send_many(wire, 40_000, CLOCKS[name])
    assert wire.connection.stats().late_packets == 0


def test_a_packet_in_pieces_moves_the_marks_as_any_other(base: int) -> None:
    """What it fills may reach beyond where the next mark was to be, and the run that follows begins there."""
    wire = Wire.initiator(base)
    receive_many(wire, 1, 16_300)
    assert wire.connection.receive.paws.mark_seq - wire.connection.receive.reassembly.next_seq == 84
    for seq in range(16_302, 16_500):
        wire.receive(f"DATA seq={seq} ack=0 data=held")
    piece = wire.peer_base + 16_301 & 0xFFFF
    header = wire.write("STATE seq=1 ack=0")
    datagrams, _, count = compose_pieces(header, piece, b"gaps", 1_000)
    assert count == 1
    wire.receive_bytes(datagrams)
    assert wire.read_bytes() == b"gaps" + b"held" * 198
    wire.send()
    lines = [f"DATA seq={16_500 + index} ack=0 data=more ts={clock(wire) + index}" for index in range(8)]
    wire.receive_run(*lines)
    assert wire.read_bytes() == b"more" * 8

"""RFC 7323 §5: a datagram that is 65,536 packets late has the number of a new one, and is told from it by its time."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.protocol.wire import RTT_US, Wire
from utpsocket.protocol import Run

TURN = 0x10000
STEP_US = 10  # between packets: 65,536 of them take two thirds of a second
RUN = 64
LATE = "late"


def clock(wire: Wire) -> int:
    return (wire.at - RTT_US // 2) & 0xFFFFFFFF


def hear_many(wire: Wire, first: int, count: int, told: Callable[[Wire], int] = clock) -> None:
    """So many packets of the peer in their order, each run with a time of its own; all must be taken."""
    before = wire.connection.receive.received_packets
    template = wire.write("DATA seq=0 ack=0 data=data")
    seq0 = int.from_bytes(template[16:18], "big")
    for start in range(first, first + count, RUN):
        seqs = range(start, min(start + RUN, first + count))
        wire.now += STEP_US * len(seqs)
        head = template[:4] + told(wire).to_bytes(4, "big") + template[8:16]
        data = b"".join(head + (seq0 + seq & 0xFFFF).to_bytes(2, "big") + template[18:] for seq in seqs)
        wire.connection.handle_run(Run(memoryview(data), len(template), "peer"), now=wire.at)
        assert wire.read_bytes() == b"data" * len(seqs)
        wire.connection.poll_transmit(now=wire.at, max_segments=1)
    assert wire.connection.receive.received_packets == before + count
    wire.say()


def hear_late(wire: Wire, seq: int, sent_us: int, *, data: str = LATE) -> bytes:
    wire.hear(f"DATA seq={seq & 0xFFFF} ack=0 data={data} ts={sent_us}")
    return wire.read_bytes()


@pytest.mark.parametrize("first_now", [10_000_000, (1 << 32) - 300_000])
@pytest.mark.parametrize("ahead", [0, 1, 8_000])
def test_a_datagram_a_turn_late_is_refused_and_counted(base: int, first_now: int, ahead: int) -> None:
    """At the gap it would be delivered at once, beyond it when its turn comes."""
    wire = Wire.initiator(base, first_now=first_now)
    sent_us = clock(wire) + 5
    hear_many(wire, 1, TURN)
    assert hear_late(wire, 1 + ahead, sent_us + ahead * STEP_US) == b""
    assert wire.say() == ["STATE seq=1 ack=0"], "acked, as any that is not taken"
    assert wire.connection.stats().late_packets == 1
    hear_many(wire, 1 + TURN, 9_000)


def test_what_follows_in_the_same_run_is_judged_alike(base: int) -> None:
    wire = Wire.initiator(base)
    sent_us = clock(wire) + 5
    hear_many(wire, 1, TURN)
    late = [f"DATA seq={1 + index} ack=0 data=late ts={sent_us}" for index in range(8)]
    wire.hear_run(*late)
    assert wire.read_bytes() == b""
    assert wire.connection.stats().late_packets == 8
    hear_many(wire, 1 + TURN, 100)


def test_a_fin_of_that_age_ends_nothing(base: int) -> None:
    wire = Wire.initiator(base)
    hear_many(wire, 1, TURN)
    wire.hear(f"FIN seq=1 ack=0 ts={10_000_000}")
    assert not wire.connection.has_eof
    hear_many(wire, 1 + TURN, 100)


def test_reordering_is_no_age(base: int) -> None:
    """As far as any packet may be ahead of a gap that is filled late: it was not sent before the marks."""
    wire = Wire.initiator(base)
    hear_many(wire, 1, TURN)
    sent_us = clock(wire)
    gap = 1 + TURN
    for seq in range(gap + 1, gap + 8_000):
        wire.now += STEP_US
        held = memoryview(wire.write(f"DATA seq={seq & 0xFFFF} ack=0 data=held ts={clock(wire)}"))
        wire.connection.handle_run(Run(held, len(held), "peer"), now=wire.at)
    wire.say()
    assert hear_late(wire, gap, sent_us, data="gaps") == b"gaps" + b"held" * 7_999
    hear_many(wire, gap + 8_000, 100)


@pytest.mark.parametrize("pause_minutes", [1, 9, 20, 36, 50, 71, 100])
def test_however_long_nothing_came(pause_minutes: int) -> None:
    """Beyond half of the clock's 71.6 minutes, later looks like earlier."""
    wire = Wire.initiator(20_000)
    hear_many(wire, 1, TURN)
    wire.now += pause_minutes * 60_000_000
    hear_many(wire, 1 + TURN, 20_000)
    assert wire.connection.stats().late_packets == 0


@pytest.mark.parametrize("back_seconds", [1, 60, 2_000])
def test_a_clock_that_was_set_back_costs_a_second(base: int, back_seconds: int) -> None:
    wire = Wire.initiator(base)
    hear_many(wire, 1, TURN)
    offset_us = 0
    while hear_late(wire, 1, (clock(wire) - back_seconds * 1_000_000) & 0xFFFFFFFF, data="data") == b"":
        wire.now += 250_000
        offset_us += 250_000
        wire.say()
    assert offset_us <= 1_000_000
    hear_many(wire, 2 + TURN, 2 * TURN, lambda wire: (clock(wire) - back_seconds * 1_000_000) & 0xFFFFFFFF)


CLOCKS: dict[str, Callable[[Wire], int]] = {
    "none": lambda wire: 0,
    "stopped": lambda wire: 12_345,
    "milliseconds": lambda wire: clock(wire) // 1_000,
    "nanoseconds": lambda wire: clock(wire) * 1_000 & 0xFFFFFFFF,
    "backwards": lambda wire: -clock(wire) & 0xFFFFFFFF,
    "any": lambda wire: random.Random(wire.now).getrandbits(32),
}


@pytest.mark.parametrize("name", CLOCKS)
def test_whatever_the_peers_clock_tells_its_data_is_taken(name: str) -> None:
    """Refused is only what might be of another age; other clocks' times are given up before they refuse anything."""
    wire = Wire.initiator(20_000)
    hear_many(wire, 1, 16_000, CLOCKS[name])
    wire.now += 5_000_000
    hear_many(wire, 16_001, TURN, CLOCKS[name])
    assert wire.connection.stats().late_packets == 0

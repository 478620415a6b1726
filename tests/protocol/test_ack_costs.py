"""An ack costs what it says that is new: counted in lines of code run, which is the same on every machine.

4,000 packets are under way, each a flight of its own: the most that a peer, or who speaks for it, can have us look at.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import pytest

from tests.hostile import acks
from tests.protocol.wire import PEER, Wire
from tests.requirements import replaces
from utpsocket.protocol import Config, Run
from utpsocket.protocol.flights import MAX_NEWLY_SACKED_FLIGHTS, Acknowledged, Flight, Flights, FlightState
from utpsocket.protocol.packet import MAX_EXTENSIONS, decode

PACKETS = 4_000
ACKNOWLEDGED = ("packets", "total_bytes", "sent_us", "seq", "sends", "sent_through_bytes", "reordered_seq")
SACK_BITS = 2_016
REPEATED_LINES = 400  # an ack that says nothing new, and what leaves upon it
NEWS_LINES = 3_000  # one that acks as much as one may
LINES_PER_PACKET = 150  # of whatever becomes of it until it is acked


def lines_run(action: Callable[[], Any]) -> int:
    """How many lines of the protocol's code this takes."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if "protocol" not in frame.f_code.co_filename or "tests" in frame.f_code.co_filename:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


class Sender:
    """Everything is under way, and the window so large that what is lost leaves at once."""

    def __init__(self, base: int, sizes: tuple[int, ...] = (1_000,)) -> None:
        self.wire = wire = Wire.initiator(base, config=Config(send_buffer_bytes=8 << 20))
        self.connection = wire.connection
        self.send = wire.connection.send
        self.send.recovery.min_rtt_us = 1_000  # not paced
        self.send.nodelay = True
        self.ack(0, 0, full=True)
        for size in sizes * (PACKETS // len(sizes)):
            self.send.controller.window_bytes = 1 << 30
            wire.write_bytes(size)
            assert wire.connection.poll_transmit(now=wire.at, max_segments=64) is not None
        wire.send()
        assert len(self.send.flights.queue) == PACKETS
        wire.wait(1_000)

    def packet(self, ack: int, bits: int, *, full: bool = False) -> bytes:
        sack = bits.to_bytes(252, "little") if bits or full else b""
        return self.wire.write(f"STATE seq=1 ack={ack} wnd=100000000" + (f" sack={sack.hex()}" if sack else ""))

    def ack(self, ack: int, bits: int, *, full: bool = False) -> int:
        """The peer says this; how many lines it takes, with what leaves upon it."""
        datagram = self.packet(ack, bits, full=full)
        return lines_run(lambda: self._take(datagram))

    def receive(self, line: str) -> int:
        """The same of any packet."""
        datagram = self.wire.write(line)
        return lines_run(lambda: self._take(datagram))

    def _take(self, datagram: bytes) -> None:
        wire, connection = self.wire, self.wire.connection
        connection.handle_run(Run(memoryview(datagram), len(datagram), PEER), now=wire.at)
        connection.poll_transmit(now=wire.at, max_segments=64)  # one of what is lost
        connection.timeout_at()

    def _take_time(self) -> None:
        connection = self.wire.connection
        connection.handle_timeout(now=self.wire.at)
        connection.poll_transmit(now=self.wire.at, max_segments=64)
        connection.timeout_at()

    def follow_ups(self) -> list[int]:
        """Whatever is left to do at this instant, turn by turn of an engine: how many lines each takes."""
        lines = []
        while (at := self.wire.connection.timeout_at()) is not None and at <= self.wire.at:
            lines.append(lines_run(self._take_time))
            assert len(lines) < 10 * PACKETS
        return lines


@pytest.fixture
def sender(base: int) -> Sender:
    return Sender(base)


EVEN = sum(1 << bit for bit in range(0, SACK_BITS, 2))
ODD = EVEN << 1


def test_alternating_sacks_cost_what_is_new_in_them(sender: Sender) -> None:
    """300 of them a second brought a neighbour from 1,283 round trips a second to 95."""
    lines = [sender.ack(0, EVEN if turn % 2 else ODD & ((1 << SACK_BITS) - 1)) for turn in range(200)]
    assert max(lines) < NEWS_LINES
    assert sum(lines) < SACK_BITS * LINES_PER_PACKET
    assert max(lines[150:]) < REPEATED_LINES, "by then nothing is new"
    sender.send._check()


def test_what_was_said_before_costs_nothing(sender: Sender) -> None:
    for _ in range(SACK_BITS):
        sender.ack(0, EVEN)
    assert sender.send.flights.sacked_packets == SACK_BITS // 2
    assert max(sender.ack(0, EVEN) for _ in range(50)) < REPEATED_LINES
    assert max(sender.ack(0, EVEN & ~(7 << 2 * turn)) for turn in range(50)) < REPEATED_LINES, "nor does less"


def test_each_loss_and_each_resend_is_found_at_once(sender: Sender) -> None:
    """A hole of 1,900 packets: each leaves again on its own, and finding the next one does not walk past the others."""
    first = sender.ack(0, ((1 << 100) - 1) << 1_900)
    assert first < NEWS_LINES + 100 * LINES_PER_PACKET
    while sender.connection.timeout_at() == sender.wire.at:
        assert lines_run(lambda: sender.connection.handle_timeout(now=sender.wire.at)) < NEWS_LINES
    assert sender.send.flights.lost_packets >= 1_900
    lines = [
        lines_run(lambda: sender.connection.poll_transmit(now=sender.wire.at, max_segments=1)) for _ in range(1_500)
    ]
    assert max(lines) < REPEATED_LINES
    sender.send._check()


def test_acks_of_one_packet_each_and_a_sack_that_moves_with_them(sender: Sender) -> None:
    lines = [sender.ack(ack, EVEN if ack % 2 else ODD) for ack in range(1, 600)]
    assert max(lines) < NEWS_LINES
    assert sum(lines[300:]) / 299 < 2 * REPEATED_LINES
    sender.send._check()


def test_one_ack_of_all_and_one_sack_of_as_many_as_it_can_name(sender: Sender) -> None:
    """Each was a loop over 4,000 and 2,016 flights: 2.8 and 2.0 ms."""
    times = SACK_BITS // MAX_NEWLY_SACKED_FLIGHTS + 1
    assert max(sender.ack(0, (1 << SACK_BITS) - 1) for _ in range(times)) < NEWS_LINES
    assert sender.send.flights.sacked_packets == SACK_BITS
    sender.send._check()
    other = Sender(sender.wire.base)
    assert other.ack(1_900, 0) < NEWS_LINES
    other.send._check()
    assert other.ack(PACKETS, 0) < NEWS_LINES
    assert max(other.follow_ups()) < NEWS_LINES
    other.send._check()
    assert not other.send.flights.queue and not other.send.flights.small_packets


def sack(sender: Sender, bits: int) -> None:
    for _ in range(SACK_BITS // 16 + 1):
        sender.wire.receive_bytes_unchecked(sender.packet(0, bits))


def time_out(sender: Sender) -> None:
    lines = []
    while not sender.send.timeouts:  # the last packet is sent again before that
        sender.wire.now += 70_000_000
        lines += sender.follow_ups()
    assert max(lines) < NEWS_LINES
    assert sender.send.flights.lost_packets > 1_000 and not sender.send.flights.sacked_packets


def lose_and_send_again(sender: Sender) -> None:
    sack(sender, EVEN)
    for _ in range(1_500):
        sender.connection.poll_transmit(now=sender.wire.at, max_segments=1)
    assert sender.send.flights._resent


BEFORE: dict[str, Callable[[Sender], None]] = {
    "all in flight": lambda sender: None,
    "all sacked": lambda sender: sack(sender, (1 << SACK_BITS) - 1),
    "every other one sacked": lambda sender: sack(sender, EVEN),
    "sent again": lose_and_send_again,
    "timed out": time_out,
}


@pytest.mark.parametrize("sizes", [(1_000,), (900, 1_000, 700, 1, 1_200)], ids=["equal", "odd"])
@pytest.mark.parametrize("before", BEFORE)
def test_one_ack_of_all_whatever_became_of_them(base: int, before: str, sizes: tuple[int, ...]) -> None:
    """1.1 ms where all were sacked, 1.7 ms where every other one was, 2.4 ms with packets sent again among them. What
    is too much for one turn of the engine waits for the next, and others have theirs between.
    """
    sender = Sender(base, sizes)
    BEFORE[before](sender)
    sender.wire.now += 2_000
    lines = [sender.ack(PACKETS, 0), *sender.follow_ups()]
    assert max(lines) < NEWS_LINES
    assert sum(lines) < PACKETS * LINES_PER_PACKET // 4
    sender.send._check()
    assert not sender.send.flights.queue and not sender.send.flights.in_flight_bytes
    assert sender.send.is_idle


@replaces("MAX_ACKED_FLIGHTS")
def test_an_ack_that_is_worked_through_in_parts_means_the_same(base: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing leaves again meanwhile, though much of what it acks is as good as lost."""

    def outcome(most: int, *, is_overtaken: bool) -> list[object]:
        monkeypatch.setattr("utpsocket.protocol.flights.MAX_ACKED_FLIGHTS", most)
        monkeypatch.setattr("utpsocket.protocol.flights.MAX_ACKED_ALIKE", most)
        sender = Sender(base)
        sack(sender, ((1 << 500) - 1) << 1_000)
        sender.wire.now += 5_000
        resent, lost = sender.send.resent_packets, sender.send.lost_packets
        sender.wire.receive_bytes(sender.packet(1_700, 0b1011))
        sender.wire.receive_bytes(sender.packet(1_690, 0))  # it was overtaken
        if is_overtaken:
            sender.wire.receive_bytes(sender.packet(1_800, 0b1011))
        sender.follow_ups()
        send = sender.send
        send._check()
        return [
            send.flights.una_seq,
            bin(send.flights.sacked_mask),
            send.flights.in_flight_bytes,
            send.flights.lost_bytes,
            send.buffer.acked_offset,
            send.recovery.rack_seq,
            send.resent_packets - resent,
            send.lost_packets - lost,
            is_overtaken or (send.recovery.srtt_us, send.controller.window_bytes),  # of one ack instead of two
        ]

    assert outcome(1 << 30, is_overtaken=False) == outcome(100, is_overtaken=False)
    assert outcome(1 << 30, is_overtaken=True) == outcome(100, is_overtaken=True)


def test_a_fin_acked_by_an_ack_of_very_many_ends_the_connection(base: int) -> None:
    sender = Sender(base)
    sender.connection.finish(now=sender.wire.at)
    sender.wire.send()
    sender.wire.receive("FIN seq=1 ack=0")
    sender.wire.send()
    sender.ack(PACKETS + 1, 0)
    assert sender.wire.events() == []
    sender.follow_ups()
    assert sender.send.is_fin_acked and sender.wire.events() == ["CLOSED 0"]


def test_an_acker_that_dropped_what_it_had_said_it_holds(base: int) -> None:
    """All of it is forgotten at the next timeout: 2.3 ms in one go."""
    sender = Sender(base)
    sack(sender, (1 << SACK_BITS) - 1)
    sender.ack(1, 0)
    sender.follow_ups()
    assert sender.send.flights.queue[0].state is FlightState.SACKED
    time_out(sender)
    sender.send._check()


def test_whatever_a_peer_sends_a_thousand_times_a_second(base: int) -> None:
    """All that a peer can send, at random: no packet costs more than what an ack may, and the mean is a fifth of it."""
    sender = Sender(base)
    chance = random.Random(7)
    acked = received = 0
    lines, follow_ups = [], []
    for _ in range(3_000):
        sender.wire.now += chance.choice((0, 0, 1_000, 1_000, 1_000, 30_000))
        follow_ups += sender.follow_ups()
        acked = min(PACKETS - 1, acked + chance.choice((0, 0, 0, 0, 1, 3)))
        ack = max(0, acked + chance.choice((0, 0, 0, -1, -3, -5, 1, 2)))
        bits = chance.choice((0, EVEN, ODD & ((1 << SACK_BITS) - 1), chance.getrandbits(SACK_BITS), 1 << SACK_BITS - 1))
        words = f"ack={ack} wnd={chance.choice((0, 1, 2_000, 100_000_000))}"
        if not chance.randrange(3):
            words += f" ts={chance.getrandbits(32)} diff={chance.getrandbits(32)}"
        sack_word = f" sack={bits.to_bytes(252, 'little')[: chance.choice((0, 1, 4, 252))].hex()}"
        kind = chance.choice(("STATE", "STATE", "STATE", "DATA", "DATA", "FIN", "SYN", "RESET"))
        if kind == "DATA":
            seq = max(1, received + chance.choice((-3, 0, 1, 2, 3, 50, 8_000, chance.randrange(9_000))))
            received += seq == received + 1
            line = f"DATA seq={seq} {words} len={chance.choice((0, 1, 1, 1_400))}"
        elif kind == "FIN":
            line = f"FIN seq={received + chance.randrange(9_000, 20_000)} {words}"
        elif kind == "RESET":
            line = f"RESET seq={chance.getrandbits(16)} ack={PACKETS + 100 + chance.getrandbits(14)} wnd=0"
        else:
            line = f"{kind} seq={1 + chance.randrange(3)} {words}{sack_word}"
        lines.append(sender.receive(line))
        sender.connection.finish_delivery(sender.connection.receive.reassembly.ready_bytes, now=sender.wire.at)
        follow_ups += sender.follow_ups()
        acked = max(acked, sender.send.flights.una_seq - sender.send.flights.next_seq + PACKETS)
    assert max(lines + follow_ups) < NEWS_LINES
    assert sum(lines + follow_ups) / len(lines) < NEWS_LINES / 5
    sender.connection._check()


def test_tiny_packets_behind_a_hole_cost_little_when_it_is_filled(base: int) -> None:
    """8,000 of a byte each, which 3.4 ms were not enough for; what they held is one piece then, and not 8,000."""
    wire = Wire.initiator(base)
    for seq in range(2, 8_002):
        wire.receive_bytes_unchecked(wire.write(f"DATA seq={seq} ack=0 len=1"))
    last = wire.write("DATA seq=1 ack=0 len=1")
    assert lines_run(lambda: wire.receive_bytes_unchecked(last)) < REPEATED_LINES
    assert len(wire.connection.poll_delivery()) == 2
    assert wire.connection.receive.reassembly.next_seq == wire.connection.receive.ack + 1
    assert wire.connection.receive.reassembly.ready_bytes == 8_001
    wire.connection._check()


@replaces("_MANY_FLIGHTS")
def test_many_flights_acked_at_once_are_as_many_acked_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of random flights, with probes and short packets among them: the same figures, whichever way is taken."""

    def sums(least: int, seed: int) -> list[tuple[int, ...]]:
        monkeypatch.setattr("utpsocket.protocol.flights._MANY_FLIGHTS", least)
        chance = random.Random(seed)
        flights, offset, results = Flights(7), 0, []
        for at in range(400):
            count, size = chance.choice((1, 1, 1, 2, 40)), 1_000
            last_size = chance.choice((size, size, 1 + chance.randrange(size)))
            flight = Flight(flights.next_seq, count, size if count > 1 else last_size, last_size, offset, at)
            flight.is_small = last_size < size
            if count == 1 and not chance.randrange(60) and flights._probe_seq < flights.una_seq:  # one at a time
                flight.probe_bytes = 1_200 + at
            offset += flight.total_bytes
            flights.add(flight)
            if not chance.randrange(12):
                result = Acknowledged()
                flights.acknowledge(chance.randint(flights.una_seq, flights.next_seq), result)
                flights._check()
                results.append(tuple(getattr(result, name) for name in (*ACKNOWLEDGED, "probe_bytes")))
                results.append((flights.in_flight_bytes, flights.small_packets, len(flights.queue)))
        return results

    for seed in range(30):
        assert sums(8, seed) == sums(1 << 30, seed)


@pytest.mark.parametrize(
    "bits",
    [0, 1, EVEN, 1 << 2_015, (1 << 2_016) - 1],
    ids=["none", "the first", "every other one", "the last", "all"],
)
def test_older_acks_duplicates_and_empty_sacks_are_cheap(sender: Sender, bits: int) -> None:
    sender.ack(10, 0)
    for ack in (10, 9, 8):
        for _ in range(70):
            sender.ack(ack, bits, full=True)
        assert max(sender.ack(ack, bits, full=True) for _ in range(10)) < REPEATED_LINES


def test_resends_that_are_lost_again_and_again(sender: Sender) -> None:
    """Time passes, one more packet arrives, and all that was sent again counts as lost once more."""
    total = 0
    for turn in range(60):
        sender.wire.now += 50_000
        total += sender.ack(0, ((1 << 3 + turn) - 1) << 200)
        for _ in range(30):
            total += lines_run(lambda: sender.connection.poll_transmit(now=sender.wire.at, max_segments=1))
    assert total < 60 * 30 * LINES_PER_PACKET + 200 * LINES_PER_PACKET
    sender.send._check()


def test_a_chain_of_extensions_is_read_for_a_few_links(base: int) -> None:
    """65 kB of them took 5.6 ms, from anybody."""
    wire = Wire.initiator(base)
    few = wire.write("DATA seq=1 ack=0 ext=2:0000000000000000 sack=00 data=x")
    packet = decode(memoryview(few))
    assert packet is not None and bytes(packet.payload) == b"x"
    header = bytearray(wire.write("DATA seq=1 ack=0"))
    header[1] = 2
    for links in (MAX_EXTENSIONS, MAX_EXTENSIONS + 1, 30_000):
        chain = bytes((2, 0)) * (links - 1) + bytes((0, 0))
        datagram = bytes(header) + chain + b"x"
        assert (decode(memoryview(datagram)) is not None) == (links <= MAX_EXTENSIONS)
        assert lines_run(partial(decode, memoryview(datagram))) < 120


@pytest.mark.parametrize("trace", [acks.timeouts, acks.reneging], ids=["timeouts", "reneging"])
def test_timeouts_and_reneging_in_turn(trace: Callable[[], acks.Victim], monkeypatch: pytest.MonkeyPatch) -> None:
    """Flights judged before the peer reneged (RFC 2018 §8) are not all visited again."""
    lines: list[int] = []
    step = acks.Victim._step
    monkeypatch.setattr(
        acks.Victim, "_step", lambda victim, action: lines.append(lines_run(lambda: step(victim, action)))
    )
    victim = trace()
    assert max(lines) < NEWS_LINES
    victim.connection._check()

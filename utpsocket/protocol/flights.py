"""What was sent and is not acknowledged: flights, and the scoreboard of selective acks kept on them.

Separate because it is bookkeeping alone: it decides neither what is lost (recovery.py) nor what may leave
(sendhalf.py). A flight stands for consecutive packets that left together, so a window of a thousand packets is a
few dozen objects; a partial ack, a SACK or a loss cuts a flight in two and never touches the rest.

Read this first: the queue covers every packet in [una_seq, next_seq) exactly once, in order. Each flight is in
flight, sacked (arrived, not yet acked) or lost (to be sent again).

Sources: RFC 6675 §2 (scoreboard, pipe); BEP 29 "selective ack", and "overview": packets are
numbered, not bytes, so what was sent once is sent again in the same pieces.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum


class Fate(Enum):
    """What we believe of a flight."""

    IN_FLIGHT = 0
    SACKED = 1
    LOST = 2


class Flight:
    """Consecutive packets of equal size sent together.

    seq          of the first packet; `count` packets
    size         bytes of payload of each but the last, which has `last_size`
    total_bytes  payload of all packets together
    offset       of the first byte in the stream
    sent_us      when they last left
    sends        how often they left
    is_small     whether the last packet is shorter than the packets of its time (Nagle)
    probe_bytes  size of the datagram where this is a path MTU probe, which is padded; else 0
    is_whole     whether IP may not fragment them
    """

    __slots__ = (
        "count",
        "fate",
        "is_small",
        "is_whole",
        "last_size",
        "offset",
        "probe_bytes",
        "sends",
        "sent_us",
        "seq",
        "size",
        "total_bytes",
    )

    def __init__(self, seq: int, count: int, size: int, last_size: int, offset: int, sent_us: int) -> None:
        self.seq = seq
        self.count = count
        self.size = size
        self.last_size = last_size
        self.total_bytes = (count - 1) * size + last_size
        self.offset = offset
        self.sent_us = sent_us
        self.sends = 1
        self.fate = Fate.IN_FLIGHT
        self.is_small = False
        self.probe_bytes = 0
        self.is_whole = False

    @property
    def end_seq(self) -> int:
        """One past the last packet."""
        return self.seq + self.count

    def cut(self, count: int) -> Flight:
        """Cut off and return the first `count` packets (fewer than all); self keeps the rest."""
        front = Flight(self.seq, count, self.size, self.size, self.offset, self.sent_us)
        front.sends = self.sends
        front.fate = self.fate
        front.is_whole = self.is_whole
        self.seq += count
        self.count -= count
        self.offset += front.total_bytes
        self.total_bytes -= front.total_bytes
        return front

    def __repr__(self) -> str:
        return f"<Flight {self.seq}+{self.count} {self.fate.name} sends={self.sends} size={self.size}>"


class Acknowledged:
    """What one ack told: the sum over the packets it newly acked or sacked.

    packets, total_bytes   newly acked or sacked
    sent_us, seq, sends    of the packet among them that was sent last, -1 when there is none
    refilled_seq           the lowest packet, sent once only, that arrived after a later one; -1 when none
    probe_bytes            datagram bytes of a path MTU probe among them, else 0
    """

    __slots__ = ("packets", "probe_bytes", "refilled_seq", "sends", "sent_us", "seq", "total_bytes")

    def __init__(self) -> None:
        self.packets = 0
        self.total_bytes = 0
        self.sent_us = -1
        self.seq = -1
        self.sends = 0
        self.refilled_seq = -1
        self.probe_bytes = 0

    def _add(self, flight: Flight, highest_seq: int) -> None:
        self.packets += flight.count
        self.total_bytes += flight.total_bytes
        last_seq = flight.seq + flight.count - 1
        if (flight.sent_us, last_seq) > (self.sent_us, self.seq):
            self.sent_us, self.seq, self.sends = flight.sent_us, last_seq, flight.sends
        if flight.sends == 1 and last_seq < highest_seq:
            if self.refilled_seq < 0 or flight.seq < self.refilled_seq:
                self.refilled_seq = flight.seq
        if flight.probe_bytes:
            self.probe_bytes = flight.probe_bytes


class Flights:
    """Everything sent and not acked, in order."""

    __slots__ = (
        "highest_sacked_seq",
        "in_flight_bytes",
        "lost_bytes",
        "lost_packets",
        "most_packets",
        "next_seq",
        "queue",
        "sacked_bytes",
        "sacked_packets",
        "small_packets",
        "una_seq",
    )

    def __init__(self, next_seq: int) -> None:
        self.queue: deque[Flight] = deque()
        self.una_seq = next_seq
        self.next_seq = next_seq
        self.in_flight_bytes = 0
        self.lost_bytes = 0
        self.lost_packets = 0
        self.sacked_bytes = 0
        self.sacked_packets = 0
        self.small_packets = 0
        self.highest_sacked_seq = -1
        self.most_packets = 0  # that were ever under way at a time: how far behind an ack may truthfully be

    @property
    def packets(self) -> int:
        """How many packets the queue covers."""
        return self.next_seq - self.una_seq

    @property
    def unacked_bytes(self) -> int:
        """In flight or lost: what the peer's window must still hold."""
        return self.in_flight_bytes + self.lost_bytes

    def add(self, flight: Flight) -> None:
        """A new flight left; its first packet is next_seq."""
        self.queue.append(flight)
        self.next_seq += flight.count
        self.in_flight_bytes += flight.total_bytes
        if self.next_seq - self.una_seq > self.most_packets:
            self.most_packets = self.next_seq - self.una_seq
        if flight.is_small:
            self.small_packets += 1

    def acknowledge(self, ack_next_seq: int, result: Acknowledged) -> None:
        """The peer has everything before `ack_next_seq`, which lies in [una_seq, next_seq]."""
        queue = self.queue
        highest = max(self.highest_sacked_seq, self.una_seq - 1)
        while queue and queue[0].seq < ack_next_seq:
            flight = queue[0]
            if flight.end_seq > ack_next_seq:
                flight = flight.cut(ack_next_seq - flight.seq)
            else:
                queue.popleft()
                if flight.is_small:
                    self.small_packets -= 1
            if flight.fate is Fate.SACKED:
                self.sacked_bytes -= flight.total_bytes
                self.sacked_packets -= flight.count
                continue
            if flight.fate is Fate.LOST:
                self.lost_bytes -= flight.total_bytes
                self.lost_packets -= flight.count
            else:
                self.in_flight_bytes -= flight.total_bytes
            result._add(flight, highest)
        self.una_seq = ack_next_seq

    def sack(self, ranges: list[tuple[int, int]], result: Acknowledged) -> None:
        """The peer has the packets of `ranges` (half-open, ascending, all above una_seq) as well.

        What lies outside of [una_seq, next_seq) was never sent and is passed over.
        """
        if not ranges:
            return
        queue = self.queue
        end_seq = min(ranges[-1][1], self.next_seq)
        seen: list[Flight] = []
        position = 0
        before_highest = self.highest_sacked_seq
        while queue and queue[0].seq < end_seq:
            flight = queue.popleft()
            while position < len(ranges) and ranges[position][1] <= flight.seq:
                position += 1
            if position == len(ranges):
                queue.appendleft(flight)
                break
            first, last = ranges[position]
            if flight.fate is Fate.SACKED or flight.end_seq <= first:
                seen.append(flight)
                continue
            if flight.seq < first:
                seen.append(flight.cut(first - flight.seq))
            if flight.end_seq > last:
                rest = flight
                flight = flight.cut(last - flight.seq)
                queue.appendleft(rest)
            elif flight.is_small:
                flight.is_small = False
                self.small_packets -= 1
            total_bytes = flight.total_bytes
            if flight.fate is Fate.LOST:
                self.lost_bytes -= total_bytes
                self.lost_packets -= flight.count
            else:
                self.in_flight_bytes -= total_bytes
            self.sacked_bytes += total_bytes
            self.sacked_packets += flight.count
            flight.fate = Fate.SACKED
            result._add(flight, before_highest)
            self.highest_sacked_seq = max(self.highest_sacked_seq, flight.end_seq - 1)
            seen.append(flight)
        queue.extendleft(reversed(seen))

    def lose(self, is_lost: Callable[[Flight, int], bool]) -> int:
        """Mark lost every flight in flight of which `is_lost(flight, sacked_above)` says so.

        sacked_above is how many packets above the flight are sacked. Returns the packets newly lost.
        """
        lost_bytes = 0
        lost_packets = 0
        sacked_above = self.sacked_packets
        for flight in self.queue:
            if flight.fate is Fate.SACKED:
                sacked_above -= flight.count
            elif flight.fate is Fate.IN_FLIGHT and is_lost(flight, sacked_above):
                flight.fate = Fate.LOST
                lost_bytes += flight.total_bytes
                lost_packets += flight.count
        self.in_flight_bytes -= lost_bytes
        self.lost_bytes += lost_bytes
        self.lost_packets += lost_packets
        return lost_packets

    def split_at(self, seq: int) -> None:
        """Let no flight lie across this number, so that what is before it can be judged apart."""
        for index, flight in enumerate(self.queue):
            if flight.end_seq > seq:
                if flight.seq < seq:
                    self.queue.insert(index, flight.cut(seq - flight.seq))
                return

    def forget_sacks(self) -> None:
        """The peer has dropped what it had sacked: all of it is in flight again. RFC 2018 §8."""
        for flight in self.queue:
            if flight.fate is Fate.SACKED:
                flight.fate = Fate.IN_FLIGHT
        self.in_flight_bytes += self.sacked_bytes
        self.sacked_bytes = 0
        self.sacked_packets = 0
        self.highest_sacked_seq = -1

    def first_lost(self) -> Flight | None:
        """The flight to send again first, or None."""
        if self.lost_packets:
            for flight in self.queue:
                if flight.fate is Fate.LOST:
                    return flight
        return None

    def resent(self, flight: Flight, count: int, *, now: int) -> Flight:
        """The first `count` packets of a lost flight leave again; returns the flight that stands for them."""
        if count < flight.count:
            index = self.queue.index(flight)
            flight = flight.cut(count)
            self.queue.insert(index, flight)
        if flight.fate is Fate.LOST:
            self.lost_bytes -= flight.total_bytes
            self.lost_packets -= flight.count
            self.in_flight_bytes += flight.total_bytes
            flight.fate = Fate.IN_FLIGHT
        flight.sent_us = now
        flight.sends += 1
        return flight

    def last_in_flight(self) -> Flight | None:
        """The last packet of the queue as a flight of its own, or None when it is not in flight."""
        if not self.queue or self.queue[-1].fate is not Fate.IN_FLIGHT:
            return None
        flight = self.queue[-1]
        if flight.count > 1:
            front = flight.cut(flight.count - 1)
            flight.size = flight.last_size
            self.queue.insert(len(self.queue) - 1, front)
        return flight

    def _check(self) -> None:
        """Invariants, for tests and the simulator."""
        seq = self.una_seq
        sums = dict.fromkeys(Fate, 0)
        packets = dict.fromkeys(Fate, 0)
        for flight in self.queue:
            assert flight.seq == seq and flight.count > 0
            assert flight.total_bytes == (flight.count - 1) * flight.size + flight.last_size
            seq = flight.end_seq
            sums[flight.fate] += flight.total_bytes
            packets[flight.fate] += flight.count
        assert seq == self.next_seq
        assert sums[Fate.IN_FLIGHT] == self.in_flight_bytes
        assert sums[Fate.LOST] == self.lost_bytes
        assert sums[Fate.SACKED] == self.sacked_bytes
        assert packets[Fate.SACKED] == self.sacked_packets and packets[Fate.LOST] == self.lost_packets
        assert self.small_packets == sum(1 for flight in self.queue if flight.is_small)

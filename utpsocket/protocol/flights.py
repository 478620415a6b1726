"""What was sent and is not acked: flights, and which of their packets were sacked or are lost.

A flight stands for consecutive packets that left together, so a window of a thousand packets is a few dozen objects. A
partial ack, a selective ack or a loss cuts a flight in two and leaves the rest alone. recovery.py decides what is lost,
sendhalf.py what may leave; this module only records it.

The queue covers every packet in [una_seq, next_seq) exactly once, in order. Each flight is in flight, sacked (arrived,
not yet acked) or lost (to be sent again).

Example: 40 packets left together, numbers 100 to 139. An ack of everything before 110 takes ten packets off; a
selective ack of 112 to 119 then makes three flights: 110 to 111 in flight, 112 to 119 sacked, 120 to 139 in flight.

Sources: RFC 6675 §2 (scoreboard, pipe); BEP 29 "selective ack", and "overview": packets are numbered, not bytes, so
what was sent once is sent again in packets of the same size.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable
from enum import Enum
from heapq import heappop, heappush
from operator import attrgetter
from typing import Final

# What one ack may cost, whatever is in it: so many flights are handled at once, the others in the next iterations or
# when the peer reports them again. Chosen so that no ack runs more than 3,000 lines of this package; a test counts them
# (tests/protocol/test_ack_costs.py).
MAX_ACKED_FLIGHTS: Final = 96
# The same for flights that were all sent once and in their order, which cost less.
MAX_ACKED_ALIKE: Final = 256
MAX_NEWLY_SACKED_RANGES: Final = 16
MAX_NEWLY_SACKED_FLIGHTS: Final = 48
MAX_LOST_FLIGHTS: Final = 16
_MAX_FORGOTTEN_FLIGHTS: Final = 128
_MAX_CHECKED_FLIGHTS: Final = 256
_MAX_SKIPPED_FLIGHTS: Final = 64
# Fewer flights that are acked at once are summed up one by one as quickly. By feel.
_MANY_FLIGHTS: Final = 8
_is_small: Final[Callable[[Flight], bool]] = attrgetter("is_small")


class FlightState(Enum):
    """What is known of the packets of a flight."""

    IN_FLIGHT = 0
    SACKED = 1
    LOST = 2


# Module-level names, as in states.py: they are compared for each flight.
IN_FLIGHT: Final = FlightState.IN_FLIGHT
SACKED: Final = FlightState.SACKED
LOST: Final = FlightState.LOST


class Flight:
    """Consecutive packets of equal size sent together.

    seq                 of the first packet
    count               how many packets
    state               in flight, sacked or lost; all packets of a flight are alike
    payload_bytes       of each packet but the last, which has `last_payload_bytes`
    total_bytes         payload of all packets together
    offset              of the first byte in the stream
    sent_us             when they last left
    sent_before_bytes   payload of all packets, old and new, that left before them
    sends               how often they left
    is_small            whether the last packet is shorter than the packets of its time (Nagle)
    probe_bytes         size of the datagram where this is a path MTU probe, which is padded; else 0
    dont_fragment       whether IP must not fragment them
    """

    __slots__ = (
        "count",
        "is_small",
        "dont_fragment",
        "last_payload_bytes",
        "offset",
        "payload_bytes",
        "probe_bytes",
        "sends",
        "sent_before_bytes",
        "sent_us",
        "seq",
        "state",
        "total_bytes",
    )

    def __init__(
        self, seq: int, count: int, payload_bytes: int, last_payload_bytes: int, offset: int, sent_us: int
    ) -> None:
        self.seq = seq
        self.count = count
        self.payload_bytes = payload_bytes
        self.last_payload_bytes = last_payload_bytes
        self.total_bytes = (count - 1) * payload_bytes + last_payload_bytes
        self.offset = offset
        self.sent_us = sent_us
        self.sends = 1
        self.sent_before_bytes = 0
        self.state = IN_FLIGHT
        self.is_small = False
        self.probe_bytes = 0
        self.dont_fragment = False

    @property
    def end_seq(self) -> int:
        """One past the last packet."""
        return self.seq + self.count

    @property
    def largest_payload_bytes(self) -> int:
        """Bytes of payload of the largest packet."""
        return self.payload_bytes if self.count > 1 else self.last_payload_bytes

    def cut(self, count: int) -> Flight:
        """Cut off and return the first `count` packets (fewer than all); self keeps the rest."""
        front = Flight(self.seq, count, self.payload_bytes, self.payload_bytes, self.offset, self.sent_us)
        front.sends = self.sends
        front.sent_before_bytes = self.sent_before_bytes
        self.sent_before_bytes += front.total_bytes
        front.state = self.state
        front.dont_fragment = self.dont_fragment
        self.seq += count
        self.count -= count
        self.offset += front.total_bytes
        self.total_bytes -= front.total_bytes
        return front

    def __repr__(self) -> str:
        return f"<Flight {self.seq}+{self.count} {self.state.name} sends={self.sends} size={self.payload_bytes}>"


class Acknowledged:
    """What one ack newly acked or sacked.

    packets, total_bytes   how much
    sent_us, seq, sends    of the packet among them that left last; -1 and 0 if there is none
    sent_through_bytes     payload of all that had left when that packet had
    reordered_seq          the lowest packet, sent once only, that arrived after a later one; -1 if none did
    probe_bytes            size of the datagram of a path MTU probe among them, else 0
    """

    __slots__ = (
        "packets",
        "probe_bytes",
        "reordered_seq",
        "sends",
        "sent_through_bytes",
        "sent_us",
        "seq",
        "total_bytes",
    )

    def __init__(self) -> None:
        self.packets = 0
        self.total_bytes = 0
        self.sent_us = -1
        self.seq = -1
        self.sends = 0
        self.sent_through_bytes = 0
        self.reordered_seq = -1
        self.probe_bytes = 0

    def _add(self, flight: Flight, highest_seq: int) -> None:
        self.packets += flight.count
        self.total_bytes += flight.total_bytes
        last_seq = flight.seq + flight.count - 1
        if (flight.sent_us, last_seq) > (self.sent_us, self.seq):
            self.sent_us, self.seq, self.sends = flight.sent_us, last_seq, flight.sends
            self.sent_through_bytes = flight.sent_before_bytes + flight.total_bytes
        if flight.sends == 1 and last_seq < highest_seq:
            if self.reordered_seq < 0 or flight.seq < self.reordered_seq:
                self.reordered_seq = flight.seq
        if flight.probe_bytes:
            self.probe_bytes = flight.probe_bytes


class Flights:
    """Everything sent and not acked, in order.

    An ack costs what is new in it: a packet is sacked once, is lost once per transmission and sent again once per loss,
    and each of these finds its flight by bisection. What was reported before is found by one comparison of bit masks.

    queue                the flights in order of sequence numbers
    una_seq              the first packet that is not acked
    next_seq             the next new packet
    sacked_mask          the packets that are sacked; bit 0 stands for una_seq
    highest_sacked_seq   the highest packet that was ever sacked, -1 for none
    in_flight_bytes, sacked_bytes, lost_bytes   payload of the flights of each state
    sacked_packets, lost_packets   packets of the flights of these states
    small_packets        packets in the queue that are not full (Nagle)
    sent_bytes           payload of all packets that ever left, retransmissions too
    max_outstanding      most packets that were in the queue at a time: so far behind may a valid ack be

    _starts            the first numbers of the flights in the queue, for bisection
    _loss_checked_seq  in the queue's order the first packet that left once only and is not known to be lost
    _resent            (sent_us, seq, end_seq) of what was sent again, in the order in which it left. An entry is out of
                       date once its packets have left again or arrived. None where there is none, since an empty deque
                       takes 600 bytes
    _lost_seqs         a heap of the first numbers of lost flights, some out of date; None while nothing is lost
    _probe_seq         the last path MTU probe, -1 for none
    """

    __slots__ = (
        "_loss_checked_seq",
        "_lost_seqs",
        "_probe_seq",
        "_resent",
        "_starts",
        "highest_sacked_seq",
        "in_flight_bytes",
        "lost_bytes",
        "lost_packets",
        "max_outstanding",
        "next_seq",
        "queue",
        "sacked_bytes",
        "sacked_mask",
        "sacked_packets",
        "sent_bytes",
        "small_packets",
        "una_seq",
    )

    def __init__(self, next_seq: int) -> None:
        self.queue: list[Flight] = []
        self._starts: list[int] = []
        self._loss_checked_seq = next_seq
        self._resent: deque[tuple[int, int, int]] | None = None
        self._lost_seqs: list[int] | None = None
        self._probe_seq = -1
        self.una_seq = next_seq
        self.next_seq = next_seq
        self.sent_bytes = 0
        self.in_flight_bytes = 0
        self.lost_bytes = 0
        self.lost_packets = 0
        self.sacked_mask = 0
        self.sacked_bytes = 0
        self.sacked_packets = 0
        self.small_packets = 0
        self.highest_sacked_seq = -1
        self.max_outstanding = 0

    def start(self, next_seq: int) -> None:
        """Have the first packet carry this sequence number. Nothing may have been sent yet."""
        self._loss_checked_seq = self.una_seq = self.next_seq = next_seq

    @property
    def packets(self) -> int:
        """How many packets the queue covers."""
        return self.next_seq - self.una_seq

    def add(self, flight: Flight) -> None:
        """A flight of new packets left; the first one is next_seq."""
        self.queue.append(flight)
        self._starts.append(flight.seq)
        self.next_seq += flight.count
        flight.sent_before_bytes = self.sent_bytes
        self.sent_bytes += flight.total_bytes
        self.in_flight_bytes += flight.total_bytes
        if self.next_seq - self.una_seq > self.max_outstanding:
            self.max_outstanding = self.next_seq - self.una_seq
        if flight.is_small:
            self.small_packets += 1
        if flight.probe_bytes:
            self._probe_seq = flight.seq

    def _index(self, seq: int) -> int:
        """Index in the queue of the flight with this packet, which lies in [una_seq, next_seq)."""
        return bisect_right(self._starts, seq) - 1

    def find(self, seq: int) -> Flight:
        """The flight with this packet, which lies in [una_seq, next_seq)."""
        return self.queue[self._index(seq)]

    def _cut(self, index: int, count: int) -> Flight:
        """Cut the flight at this index in two; returns the first part, of `count` packets, fewer than all."""
        flight = self.queue[index]
        front = flight.cut(count)
        self.queue.insert(index, front)
        self._starts.insert(index + 1, flight.seq)
        if flight.state is LOST:
            self._push_lost(flight.seq)
        return front

    def _push_lost(self, seq: int) -> None:
        if self._lost_seqs is None:
            self._lost_seqs = []
        heappush(self._lost_seqs, seq)

    def _append_resent(self, flight: Flight) -> None:
        if self._resent is None:
            self._resent = deque()
        self._resent.append((flight.sent_us, flight.seq, flight.end_seq))

    def acknowledge(self, ack_next_seq: int, result: Acknowledged) -> None:
        """The peer has everything before `ack_next_seq`, which lies in [una_seq, next_seq]. Adds to `result` what is
        newly acked. Of very many flights only the first are taken off: if una_seq is less than ack_next_seq afterwards,
        call again with the same result.
        """
        queue = self.queue
        highest = max(self.highest_sacked_seq, self.una_seq - 1)
        last = bisect_left(self._starts, ack_next_seq)
        is_alike = last > _MANY_FLIGHTS and not self.sacked_packets and not self.lost_packets and not self._resent
        max_flights = MAX_ACKED_ALIKE if is_alike else MAX_ACKED_FLIGHTS
        if last > max_flights:
            last = max_flights
            ack_next_seq = self._starts[last]
        elif last and queue[last - 1].end_seq > ack_next_seq:
            self._cut(last - 1, ack_next_seq - queue[last - 1].seq)
        gone = queue[:last]
        if is_alike:
            self._acknowledge_many(gone, ack_next_seq, result)
            gone = []
        for flight in gone:
            if flight.is_small:
                self.small_packets -= 1
            if flight.state is SACKED:
                self.sacked_bytes -= flight.total_bytes
                self.sacked_packets -= flight.count
                continue
            if flight.state is LOST:
                self.lost_bytes -= flight.total_bytes
                self.lost_packets -= flight.count
            else:
                self.in_flight_bytes -= flight.total_bytes
            result._add(flight, highest)
        del queue[:last], self._starts[:last]
        self.sacked_mask >>= ack_next_seq - self.una_seq
        self.una_seq = ack_next_seq
        again = self._resent
        if again is not None:
            for _ in range(min(len(again), MAX_ACKED_FLIGHTS)):
                if again[0][2] > ack_next_seq:
                    break
                again.popleft()
            if not again:
                self._resent = None

    def acknowledge_lone(self, flight: Flight) -> None:
        """acknowledge() of `flight`, where it is all that the queue holds, and left once."""
        if flight.is_small:
            self.small_packets -= 1
        self.in_flight_bytes -= flight.total_bytes
        self.queue.clear()
        self._starts.clear()
        self.una_seq = self.next_seq

    def _acknowledge_many(self, gone: list[Flight], ack_next_seq: int, result: Acknowledged) -> None:
        """acknowledge() for flights that were all sent once and in their order: each sum is the difference of two
        ends.
        """
        last = gone[-1]
        total_bytes = last.offset + last.total_bytes - gone[0].offset
        result.packets += ack_next_seq - self.una_seq
        result.total_bytes += total_bytes
        result.sent_us, result.seq, result.sends = last.sent_us, ack_next_seq - 1, last.sends
        result.sent_through_bytes = last.sent_before_bytes + last.total_bytes
        if self.una_seq <= self._probe_seq < ack_next_seq:
            result.probe_bytes = self.find(self._probe_seq).probe_bytes
        self.in_flight_bytes -= total_bytes
        if ack_next_seq == self.next_seq:
            self.small_packets = 0
        elif self.small_packets:
            self.small_packets -= sum(map(_is_small, gone))

    def sack(self, first_seq: int, bits: int, result: Acknowledged) -> None:
        """The peer has these packets as well; bit 0 of `bits` stands for first_seq, which is above una_seq. Adds to
        `result` what is newly sacked.

        Bits beyond next_seq stand for packets that were never sent, and are ignored. Of many new ranges or flights only
        the lowest are taken: the peer reports the others again with its next ack.
        """
        una_seq = self.una_seq
        sent = (1 << (self.next_seq - una_seq)) - 1
        new_bits = bits << (first_seq - una_seq) & sent & ~self.sacked_mask
        if not new_bits:
            return
        before_highest = self.highest_sacked_seq
        # The lowest bit first. Of all ways from one range of bits to the next str.find() is the fastest.
        digits = bin(new_bits)[:1:-1]
        last = 0
        left = MAX_NEWLY_SACKED_FLIGHTS
        for _ in range(MAX_NEWLY_SACKED_RANGES):
            first = digits.find("1", last)
            if first < 0:
                break
            last = digits.find("0", first)
            if last < 0:
                last = len(digits)
            taken, end_seq = self._sack(una_seq + first, una_seq + last, before_highest, left, result)
            left -= taken
            if not left:
                last = end_seq - una_seq
                break
        self.sacked_mask |= new_bits & ((1 << last) - 1)

    def _sack(
        self, seq: int, end_seq: int, before_highest: int, max_flights: int, result: Acknowledged
    ) -> tuple[int, int]:
        """Mark the packets from seq to end_seq as sacked, but no more than `max_flights` flights of them. Returns how
        many flights they were, and the number behind the last.
        """
        queue = self.queue
        index = self._index(seq)
        if queue[index].seq < seq:
            self._cut(index, seq - queue[index].seq)
            index += 1
        first = index
        while index < len(queue) and queue[index].seq < end_seq and index - first < max_flights:
            flight = queue[index]
            if flight.end_seq > end_seq:
                flight = self._cut(index, end_seq - flight.seq)
            elif flight.is_small:
                flight.is_small = False
                self.small_packets -= 1
            total_bytes = flight.total_bytes
            if flight.state is LOST:
                self.lost_bytes -= total_bytes
                self.lost_packets -= flight.count
            else:
                self.in_flight_bytes -= total_bytes
            self.sacked_bytes += total_bytes
            self.sacked_packets += flight.count
            flight.state = SACKED
            result._add(flight, before_highest)
            index += 1
        end_seq = queue[index - 1].end_seq
        if end_seq - 1 > self.highest_sacked_seq:
            self.highest_sacked_seq = end_seq - 1
        return index - first, end_seq

    def _lose(self, flight: Flight) -> None:
        """Mark a flight that is in flight as lost."""
        if not self.lost_packets:
            self._lost_seqs = None
        flight.state = LOST
        self.in_flight_bytes -= flight.total_bytes
        self.lost_bytes += flight.total_bytes
        self.lost_packets += flight.count
        self._push_lost(flight.seq)

    def lose(self, lost_at: Callable[[Flight], int | None], *, now: int) -> tuple[list[Flight], int | None]:
        """Mark as lost every flight in flight for which lost_at() returns a time that has come; None stands for never.
        Returns what was marked, and the time at which the next one will be lost, or None. It goes through the whole
        queue, so it is not for every ack.
        """
        lost = []
        next_at: int | None = None
        for flight in self.queue:
            if flight.state is IN_FLIGHT:
                at = lost_at(flight)
                if at is not None and at <= now:
                    self._lose(flight)
                    lost.append(flight)
                elif at is not None and (next_at is None or at < next_at):
                    next_at = at
        return lost, next_at

    def lose_first(self) -> list[Flight]:
        """Mark the first packet as lost, if it has left once only. Returns what was marked."""
        if self.queue[0].count > 1:
            self._cut(0, 1)
        first = self.queue[0]
        if first.state is not IN_FLIGHT or first.sends > 1:
            return []
        self._lose(first)
        return [first]

    def lose_oldest(self) -> list[Flight]:
        """Mark the first flight as lost, if it is in flight. Returns what was marked."""
        first = self.queue[0]
        if first.state is not IN_FLIGHT:
            return []
        self._lose(first)
        return [first]

    def lose_lone_probe(self) -> list[Flight] | None:
        """If nothing is in flight but a path MTU probe, mark that as lost. Returns what was marked, an empty list if
        nothing is in flight; None if other packets are.
        """
        in_flight = self.packets - self.sacked_packets - self.lost_packets
        if in_flight > 1:
            return None
        if not in_flight:
            return []
        probe = self.find(self._probe_seq) if self.una_seq <= self._probe_seq < self.next_seq else None
        if probe is None or not probe.probe_bytes or probe.state is not IN_FLIGHT:
            return None
        self._lose(probe)
        return [probe]

    def lose_overdue(self, lost_at: LostAt, reported_seq: int, *, now: int) -> tuple[list[Flight], int | None]:
        """lose() where what left later is lost later: it begins with what left first and stops at the first flight that
        is not lost. Nothing beyond reported_seq is marked. If it stops because there is very much to do, the time
        returned is `now`.
        """
        lost: list[Flight] = []
        queue = self.queue
        next_at: int | None = None
        index = bisect_left(self._starts, self._loss_checked_seq)
        last = index + _MAX_CHECKED_FLIGHTS
        while index < len(queue) and (flight := queue[index]).seq <= reported_seq:
            if index == last:
                next_at = now
                break
            if flight.state is IN_FLIGHT and flight.sends == 1:
                if len(lost) >= MAX_LOST_FLIGHTS:
                    next_at = now
                    break
                at = self._overdue_at(flight, reported_seq, lost_at)
                if at is None or at > now:
                    next_at = at
                    break
                if flight.end_seq - 1 > reported_seq:
                    flight = self._cut(index, reported_seq + 1 - flight.seq)
                self._lose(flight)
                lost.append(flight)
            index += 1
        self._loss_checked_seq = self._starts[index] if index < len(queue) else self.next_seq
        if next_at == now or not self._resent:
            return lost, next_at
        at = self._lose_resent(lost_at, reported_seq, lost, now=now)
        return lost, at if next_at is None or (at is not None and at < next_at) else next_at

    def _lose_resent(self, lost_at: LostAt, reported_seq: int, lost: list[Flight], *, now: int) -> int | None:
        """lose_overdue() for what was sent again."""
        queue, again = self.queue, self._resent
        assert again is not None
        beyond: list[tuple[int, int, int]] = []  # entries beyond reported_seq: they stay, and the next is looked at
        while again and len(beyond) < _MAX_SKIPPED_FLIGHTS:
            sent_us, seq, end_seq = again.popleft()
            seq = max(seq, self.una_seq)
            index = self._index(seq) if seq < end_seq else len(queue)
            while index < len(queue) and (flight := queue[index]).seq < end_seq:
                if flight.state is IN_FLIGHT and flight.sends > 1 and flight.sent_us == sent_us:
                    if flight.seq > reported_seq:
                        beyond.append((sent_us, flight.seq, end_seq))
                        break
                    at = (
                        now + 1
                        if len(lost) >= 2 * MAX_LOST_FLIGHTS
                        else self._overdue_at(flight, reported_seq, lost_at)
                    )
                    if at is None or at > now:
                        again.appendleft((sent_us, flight.seq, end_seq))
                        again.extendleft(reversed(beyond))
                        return at
                    if flight.end_seq - 1 > reported_seq:
                        flight = self._cut(index, reported_seq + 1 - flight.seq)
                    self._lose(flight)
                    lost.append(flight)
                index += 1
        again.extendleft(reversed(beyond))
        return None

    def _overdue_at(self, flight: Flight, reported_seq: int, lost_at: LostAt) -> int | None:
        """When the flight, as far as reported_seq, counts as lost."""
        last_seq = min(flight.end_seq - 1, reported_seq)
        above = 0 if flight.sends > 1 else (self.sacked_mask >> (flight.end_seq - self.una_seq)).bit_count()
        return lost_at(flight, last_seq, above)

    def forget_sacks(self) -> bool:
        """The peer has dropped what it had sacked: all of it is in flight again. RFC 2018 §8. Returns False if not all
        is done yet: call again.
        """
        una_seq, mask = self.una_seq, self.sacked_mask
        if mask:
            index = self._index(una_seq + (mask & -mask).bit_length() - 1)
            self._loss_checked_seq = min(self._loss_checked_seq, self._starts[index])
            for flight in self.queue[index : index + _MAX_FORGOTTEN_FLIGHTS]:
                if flight.state is SACKED:
                    flight.state = IN_FLIGHT
                    self.sacked_bytes -= flight.total_bytes
                    self.sacked_packets -= flight.count
                    self.in_flight_bytes += flight.total_bytes
                    if flight.sends > 1:
                        self._append_resent(flight)
                looked_at = flight.end_seq - una_seq
            self.sacked_mask = mask >> looked_at << looked_at
        if self.sacked_mask:
            return False
        if self._resent is not None:
            self._resent = deque(sorted(self._resent))
        self.highest_sacked_seq = -1
        return True

    def first_lost(self) -> Flight | None:
        """The lost flight with the lowest number, or None."""
        seqs = self._lost_seqs
        if seqs is None:
            return None
        while seqs:
            seq = seqs[0]
            if self.una_seq <= seq < self.next_seq:
                flight = self.queue[self._index(seq)]
                if flight.state is LOST and flight.seq == seq:
                    return flight
            heappop(seqs)
        self._lost_seqs = None
        return None

    def resent(self, flight: Flight, count: int, *, now: int) -> Flight:
        """The first `count` packets of a flight, a lost one or the last, leave again. Returns the flight that stands
        for them.
        """
        if count < flight.count:
            flight = self._cut(self._index(flight.seq), count)
        if flight.state is LOST:
            self.lost_bytes -= flight.total_bytes
            self.lost_packets -= flight.count
            self.in_flight_bytes += flight.total_bytes
            flight.state = IN_FLIGHT
        flight.sent_us = now
        flight.sends += 1
        flight.sent_before_bytes = self.sent_bytes
        self.sent_bytes += flight.total_bytes
        self._append_resent(flight)
        return flight

    def last_in_flight(self) -> Flight | None:
        """The last packet of the queue as a flight of its own, or None when it is not in flight."""
        if not self.queue or self.queue[-1].state is not IN_FLIGHT:
            return None
        flight = self.queue[-1]
        if flight.count > 1:
            self._cut(len(self.queue) - 1, flight.count - 1)
            flight.payload_bytes = flight.last_payload_bytes
        return flight

    def _check(self) -> None:
        """Invariants, for tests and the simulator."""
        seq = self.una_seq
        sums = dict.fromkeys(FlightState, 0)
        packets = dict.fromkeys(FlightState, 0)
        mask = 0
        for flight in self.queue:
            assert flight.seq == seq and flight.count > 0
            assert flight.total_bytes == (flight.count - 1) * flight.payload_bytes + flight.last_payload_bytes
            seq = flight.end_seq
            sums[flight.state] += flight.total_bytes
            packets[flight.state] += flight.count
            if flight.state is SACKED:
                mask |= ((1 << flight.count) - 1) << (flight.seq - self.una_seq)
            elif flight.state is LOST:
                assert self._lost_seqs is not None and flight.seq in self._lost_seqs
            elif flight.sends == 1:
                assert flight.seq >= self._loss_checked_seq
            else:
                assert any(
                    first <= flight.seq and flight.end_seq <= end and sent_us == flight.sent_us
                    for sent_us, first, end in self._resent or ()
                )
        assert seq == self.next_seq
        assert self._starts == [flight.seq for flight in self.queue]
        assert mask == self.sacked_mask
        assert sums[IN_FLIGHT] == self.in_flight_bytes
        assert sums[LOST] == self.lost_bytes
        assert sums[SACKED] == self.sacked_bytes
        assert packets[SACKED] == self.sacked_packets and packets[LOST] == self.lost_packets
        assert self.small_packets == sum(1 for flight in self.queue if flight.is_small)


# When a flight counts as lost, None for never: see Recovery.lost_at().
LostAt = Callable[[Flight, int, int], "int | None"]

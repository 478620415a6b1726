"""The sending half: what may leave now, and what an ack means for it.

It joins the pieces that never call each other: bytes (sendbuffer.py), packets under way (flights.py), judgement of
loss (recovery.py), the congestion window (congestion/) and the packet size (pathmtu.py).

What may leave, in this order: packets lost, one packet to probe a silent tail, then new data as far as the congestion
window, the peer's window, the peer's reorder buffer and pacing allow, then our FIN. A burst is at most about one
millisecond of the current rate, because a bottleneck must not see 64 KiB at once.

Sources: RFC 6675 §5 (recovery with a pipe), RFC 8985 §7 (tail-loss probe), RFC 9293 §3.8.6.1 (zero-window probes),
RFC 896 (small packets); PROTOCOL.md §7, §9.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from utpsocket.protocol.congestion import Controller
from utpsocket.protocol.flights import Acknowledged, Fate, Flight, Flights
from utpsocket.protocol.packet import HEADER_BYTES, MAX_RUN_PACKETS
from utpsocket.protocol.pathmtu import PathMtu
from utpsocket.protocol.receivehalf import NEVER
from utpsocket.protocol.recovery import DUPLICATE_THRESHOLD, Recovery
from utpsocket.protocol.sendbuffer import SendBuffer

MAX_TIMEOUTS: Final = 6  # consecutive retransmission timeouts before giving up: PROTOCOL.md §9
MAX_PERSIST_US: Final = 15_000_000  # PROTOCOL.md §7: libutp probes a closed window once after 15 s
FOREIGN_REORDER_PACKETS: Final = 900  # libtorrent holds about 950, libutp 1,024: PROTOCOL.md §7
PROVEN_REORDER_PACKETS: Final = 8_000  # reassembly.MAX_HELD_PACKETS, less what is on its way
_SMALL_PACKETS: Final = 4  # so a write, write, read exchange never waits for an ack, and a flood of bytes does
_PACING_FROM_RTT_US: Final = 4_000  # below, a window is less than what the credit allows anyway
_BURST_US: Final = 1_000  # DESIGN.md §4: "about 1 ms of the current rate"
_CREDIT_US: Final = 4_000  # timers come up to a few ms late; what was due meanwhile may follow
_MIN_BURST_PACKETS: Final = 2
_BLACK_HOLE_TIMEOUTS: Final = 2
_MAX_UNPROVEN_SENDS: Final = 3  # one packet, retransmitted at most twice: PROTOCOL.md §3


class SendHalf:
    """Everything about the direction from us to the peer. All times µs."""

    __slots__ = (
        "_duplicate_acks",
        "_is_persisting",
        "_last_progress_at",
        "_last_sent_us",
        "_limited_at",
        "_pace_at",
        "_paced_until",
        "_persist_due",
        "_recovery_seq",
        "_reorder_at",
        "_resend_at_once",
        "_rto_from_us",
        "_silent_timeouts",
        "_tail_probe_due",
        "_tail_probed",
        "buffer",
        "controller",
        "fin_seq",
        "flights",
        "has_more",
        "is_finishing",
        "is_proven",
        "lost_packets",
        "mtu",
        "nodelay",
        "peer_reorder_packets",
        "peer_window_bytes",
        "recovery",
        "resent_packets",
        "sent_offset",
        "sent_packets",
        "tail_probes",
        "timeouts",
        "user_timeout_us",
    )

    def __init__(self, first_seq: int, buffer: SendBuffer, controller: Controller, mtu: PathMtu) -> None:
        self.buffer = buffer
        self.flights = Flights(first_seq)
        self.recovery = Recovery()
        self.controller = controller
        self.mtu = mtu
        self.peer_window_bytes = 0
        self.peer_reorder_packets = FOREIGN_REORDER_PACKETS
        self.sent_offset = 0
        self.has_more = False  # the application has written more than we have read: a short packet can wait for it
        self.nodelay = False
        self.is_finishing = False
        self.is_proven = True  # False: an address that may be spoofed. PROTOCOL.md §3
        self.fin_seq: int | None = None
        self.user_timeout_us = 0  # TCP_USER_TIMEOUT; 0: MAX_TIMEOUTS decides
        self._duplicate_acks = 0
        self._recovery_seq = -1  # losses of packets sent before this one have been answered by a smaller window
        self._limited_at = -1
        self._last_sent_us = 0
        self._last_progress_at = 0
        self._rto_from_us = 0
        self._silent_timeouts = 0
        self._resend_at_once = False  # the first retransmission of a recovery does not wait for the window
        self._is_persisting = False  # nothing under way, the peer's window closed
        self._persist_due = False
        self._paced_until = NEVER
        self._reorder_at = NEVER
        self._tail_probe_due = False
        self._tail_probed = False
        self._pace_at = 0
        self.sent_packets = 0
        self.resent_packets = 0
        self.lost_packets = 0
        self.timeouts = 0
        self.tail_probes = 0

    @property
    def unsent_bytes(self) -> int:
        """Written by the application and never sent."""
        return self.buffer.end_offset - self.sent_offset

    @property
    def is_finished(self) -> bool:
        """Our FIN is acked, and so everything before it."""
        return self.fin_seq is not None and self.flights.una_seq > self.fin_seq

    @property
    def is_idle(self) -> bool:
        """Everything written is acked."""
        return self.buffer.acked_offset == self.buffer.end_offset

    def start(self, first_seq: int) -> None:
        """Our first DATA will have this sequence number; nothing has been sent."""
        self.flights = Flights(first_seq)

    # ── what an ack means ──

    def on_ack(
        self,
        ack_next_seq: int,
        window_bytes: int,
        sack_ranges: list[tuple[int, int]],
        delay_us: int,
        *,
        is_state: bool,
        now: int,
    ) -> bool:
        """An acceptable ack arrived: all before `ack_next_seq` and in `sack_ranges` is there. The caller has
        checked its range. `delay_us`: the peer's measurement, 0 for none. Returns whether it was news.
        """
        flights = self.flights
        if self.peer_window_bytes < self.mtu.size:
            self._silent_timeouts = 0  # it holds us back, so it lives
        acknowledged = Acknowledged()
        in_flight_bytes = flights.in_flight_bytes
        is_plain_duplicate = (
            is_state
            and not sack_ranges
            and ack_next_seq == flights.una_seq
            and window_bytes == self.peer_window_bytes
            and bool(flights.packets)
        )
        if ack_next_seq >= flights.una_seq:  # an older one was overtaken: its window is no news
            self.peer_window_bytes = window_bytes
        if ack_next_seq > flights.una_seq:
            flights.acknowledge(ack_next_seq, acknowledged)
            self._duplicate_acks = 0
            self._release()
        if sack_ranges:
            flights.sack(sack_ranges, acknowledged)
        if acknowledged.packets:
            self._on_news(acknowledged, in_flight_bytes, delay_us, now=now)
        elif is_plain_duplicate:
            self._duplicate_acks += 1
            if self._duplicate_acks == DUPLICATE_THRESHOLD:
                self._lose(lambda flight, above: 0 if flight.seq == flights.una_seq and flight.sends == 1 else None, now)
        return acknowledged.packets > 0

    def _on_news(self, acknowledged: Acknowledged, in_flight_bytes: int, delay_us: int, *, now: int) -> None:
        recovery = self.recovery
        recovery.on_progress()
        self._silent_timeouts = 0
        recovery.on_delivered(acknowledged, now=now)
        self._rto_from_us = now
        self._last_progress_at = now
        self._tail_probed = False
        controller = self.controller
        if delay_us:
            controller.on_delay(delay_us, now=now)
        if acknowledged.total_bytes:
            controller.on_ack(
                acknowledged.total_bytes,
                in_flight_bytes=in_flight_bytes,
                is_limited=self._limited_at >= acknowledged.sent_us,
                rtt_us=recovery.latest_rtt_us,
                now=now,
            )
        mtu = self.mtu
        if acknowledged.probe_bytes:
            mtu.on_acked(acknowledged.probe_bytes + HEADER_BYTES)
            controller.on_segment_size(mtu.size - HEADER_BYTES)
        elif not mtu.is_proven and acknowledged.total_bytes >= mtu.size - HEADER_BYTES:
            mtu.on_acked(mtu.size)
        flights = self.flights
        self._reorder_at = NEVER
        if flights.sacked_packets or (
            flights.queue and flights.queue[0].sent_us < recovery.rack_sent_us and recovery.has_reordered
        ):
            self._detect_losses(now=now)

    def _release(self) -> None:
        """Free the bytes before the first packet that is not acked."""
        queue = self.flights.queue
        self.buffer.release(queue[0].offset if queue else self.sent_offset)

    def _detect_losses(self, *, now: int) -> None:
        self._reorder_at = NEVER
        self._lose(self.recovery.lost_at, now)

    def _lose(
        self, lost_at: Callable[[Flight, int], int | None], now: int, *, is_congestion: bool = True
    ) -> None:
        """Mark lost what counts as lost by now; remember when the next one will."""
        reduces = False
        lost_probe = False

        def is_lost(flight: Flight, sacked_above: int) -> bool:
            nonlocal reduces, lost_probe
            at = lost_at(flight, sacked_above)
            if at is None:
                return False
            if at > now:
                self._reorder_at = min(self._reorder_at, at)
                return False
            if flight.is_probe:
                flight.is_probe = False
                lost_probe = True
            elif flight.seq >= self._recovery_seq:
                reduces = is_congestion
            return True

        self.lost_packets += self.flights.lose(is_lost)
        if lost_probe:
            self.mtu.on_probe_lost(now=now)
        if reduces:
            self._recovery_seq = self.flights.next_seq
            self._resend_at_once = True
            self.controller.on_loss(now=now)

    # ── what time means ──

    def deadline(self) -> int:
        """When on_timeout() wants to be called, or NEVER."""
        flights = self.flights
        at = self._paced_until
        if flights.packets:
            at = min(at, self._rto_from_us + self._rto_us(), self._reorder_at)
            if self._may_probe_tail():
                at = min(at, self._last_sent_us + self.recovery.probe_timeout_us(flights.packets))
        elif self._is_persisting:
            at = min(at, self._rto_from_us + self._rto_us())
        return at

    def on_timeout(self, *, now: int) -> bool:
        """Time passed; whatever is due by now happens. False: the peer is given up (ETIMEDOUT)."""
        flights = self.flights
        if not flights.packets:
            if self._is_persisting and now >= self._rto_from_us + self._rto_us():
                self._persist_due = True
                self._rto_from_us = now
                self.recovery.on_timeout()
            return True
        if now >= self._reorder_at:
            self._detect_losses(now=now)
        if self.user_timeout_us and now >= self._last_progress_at + self.user_timeout_us:
            return False
        if now >= self._rto_from_us + self._rto_us():
            return self._on_retransmission_timeout(now=now)
        if self._may_probe_tail() and now >= self._last_sent_us + self.recovery.probe_timeout_us(flights.packets):
            self._tail_probe_due = self._tail_probed = True
        return True

    def _on_retransmission_timeout(self, *, now: int) -> bool:
        flights = self.flights
        self._rto_from_us = now
        if all(flight.is_probe or flight.fate is not Fate.IN_FLIGHT for flight in flights.queue):
            self._lose(lambda flight, _: 0, now)  # PROTOCOL.md §9: a lone MTU probe's timeout is not a loss
            return True
        self.timeouts += 1
        self._silent_timeouts += 1
        self.recovery.on_timeout()
        if self._silent_timeouts > MAX_TIMEOUTS and not self.user_timeout_us:
            return False
        if self.peer_window_bytes >= self.mtu.size:
            # Behind a closed window the packet is a probe, and its silence says nothing about the path.
            self._recovery_seq = flights.next_seq
            self.controller.on_timeout(now=now)
        if self.recovery.backoff >= _BLACK_HOLE_TIMEOUTS and flights.queue[0].size + HEADER_BYTES > self.mtu.floor:
            self.mtu.on_black_hole(now=now)
            self.controller.on_segment_size(self.mtu.size - HEADER_BYTES)
        self._lose(lambda flight, _: 0, now)
        return True

    def _rto_us(self) -> int:
        rto_us = self.recovery.rto_us
        return min(rto_us, MAX_PERSIST_US) if self.peer_window_bytes < self.mtu.size else rto_us

    def _may_probe_tail(self) -> bool:
        flights = self.flights
        return (
            not self._tail_probed
            and self.is_proven
            and flights.packets > 0
            and self.recovery.srtt_us > 0
            and not self.recovery.backoff
            and not flights.lost_packets
            and not flights.sacked_packets
        )

    # ── what may leave ──

    def next_flight(self, *, now: int, max_segments: int) -> Flight | None:
        """The next packets to put on the wire, already booked as sent, or None when nothing may leave now."""
        self._paced_until = NEVER
        flights = self.flights
        if flights.lost_packets:
            return self._resend(now=now, max_segments=max_segments)
        if self._tail_probe_due:
            return self._probe_tail(now=now)
        unsent = self.buffer.end_offset - self.sent_offset
        if not self.is_proven and self.sent_packets:
            return None
        if not unsent:
            return self._finish(now=now)
        if not self.is_proven:
            max_segments = 1
        mtu = self.mtu
        size = mtu.size - HEADER_BYTES
        peer_room = self.peer_window_bytes - flights.in_flight_bytes - flights.lost_bytes
        room = max(self.controller.window_bytes, size) - flights.in_flight_bytes
        smallest = min(size, unsent)
        if peer_room < smallest and not flights.packets:
            return self._probe_window(peer_room, smallest, now=now)
        self._is_persisting = False
        if peer_room < room:
            room = peer_room
        elif room < unsent:
            self._limited_at = now
        if room < smallest:
            return None
        burst = self._burst_packets(size, now=now)
        packets = min(max_segments, burst, self.peer_reorder_packets - flights.packets)
        if packets <= 0:
            return None
        full = unsent // size
        if full >= packets or full * size > room:
            count = min(packets, room // size)
            last_size = size
        else:
            count = full
            last_size = size
            tail = unsent - full * size
            if tail and full * size + tail <= room and self._may_send_small():
                count += 1
                last_size = tail
        if not count:
            return None
        probe_size = mtu.next_probe(now=now)
        if probe_size and flights.packets and probe_size - HEADER_BYTES <= min(unsent, room):
            count, size = 1, probe_size - HEADER_BYTES
            last_size = size
            mtu.on_probe_sent(probe_size)
        else:
            probe_size = 0
            mtu.on_sent(count)
        flight = Flight(flights.next_seq, count, size, last_size, self.sent_offset, now)
        if probe_size:
            flight.is_probe = True
        elif last_size < size:
            flight.is_small = True
        self._add(flight, now=now)
        return flight

    def _add(self, flight: Flight, *, now: int) -> None:
        """Book a flight of new packets."""
        if not self.flights.packets:
            self._rto_from_us = now
            self._last_progress_at = now
        self._tail_probed = False
        total_bytes = flight.total_bytes
        self.flights.add(flight)
        self.sent_offset += total_bytes
        self._on_sent(flight.count, total_bytes, now=now)

    def _on_sent(self, count: int, total_bytes: int, *, now: int) -> None:
        self._last_sent_us = now
        self.sent_packets += count
        srtt_us = self.recovery.srtt_us
        if srtt_us > _PACING_FROM_RTT_US:
            self._pace_at = max(self._pace_at, now - _CREDIT_US) + total_bytes * srtt_us // self._paced_bytes()

    def _paced_bytes(self) -> int:
        """What pacing lets out in one round trip: more than the window, so that the window stays the limit."""
        window = self.controller.window_bytes
        return 2 * window if self.controller.is_slow_start else window + window // 4

    def _burst_packets(self, size: int, *, now: int) -> int:
        """How many packets of `size` may leave at this instant; 0: not before _paced_until."""
        srtt_us = self.recovery.srtt_us
        if srtt_us <= _PACING_FROM_RTT_US:
            return MAX_RUN_PACKETS
        if now < self._pace_at:
            self._paced_until = self._pace_at
            self._limited_at = now
            return 0
        return max(_MIN_BURST_PACKETS, self._paced_bytes() * _BURST_US // (srtt_us * max(1, size)))

    def _may_send_small(self) -> bool:
        """Whether a packet shorter than full may leave. RFC 896, loosened: a few may be under way at a time."""
        if self.is_finishing:
            return True
        if self.has_more:
            return False
        return self.nodelay or self.flights.small_packets < _SMALL_PACKETS

    def _finish(self, *, now: int) -> Flight | None:
        """Our FIN, once everything before it has been sent."""
        if not self.is_finishing or self.fin_seq is not None:
            return None
        self.fin_seq = self.flights.next_seq
        flight = Flight(self.fin_seq, 1, 0, 0, self.sent_offset, now)
        self._add(flight, now=now)
        return flight

    def _probe_window(self, peer_room: int, smallest: int, *, now: int) -> Flight | None:
        """Nothing is under way and the peer's window is closed: wait, then try a little. RFC 9293 §3.8.6.1."""
        if not self._is_persisting:
            self._is_persisting = True
            self._rto_from_us = now
        if not self._persist_due:
            return None
        self._persist_due = self._is_persisting = False
        size = max(1, min(peer_room, smallest))
        flight = Flight(self.flights.next_seq, 1, size, size, self.sent_offset, now)
        self._add(flight, now=now)
        return flight

    def _resend(self, *, now: int, max_segments: int) -> Flight | None:
        flights = self.flights
        flight = flights.first_lost()
        assert flight is not None
        if not self.is_proven and flight.sends >= _MAX_UNPROVEN_SENDS:
            return None
        size = flight.size
        count = min(flight.count, max_segments, self._burst_packets(size, now=now))
        if not count:
            return None
        if size and not self._resend_at_once:
            fit = (self.controller.window_bytes - flights.in_flight_bytes) // size
            if fit < count:
                self._limited_at = now
            count = min(count, max(fit, 0 if flights.in_flight_bytes else 1))
            if not count:
                return None
        elif size:
            count = 1
        self._resend_at_once = False
        flight = flights.resent(flight, count, now=now)
        self.resent_packets += count
        self._rto_from_us = now
        self._on_sent(count, flight.total_bytes, now=now)
        return flight

    def _probe_tail(self, *, now: int) -> Flight | None:
        """The last packet again, so that its ack tells whether the tail arrived. RFC 8985 §7.3."""
        self._tail_probe_due = False
        flights = self.flights
        flight = flights.last_in_flight()
        if flight is None:
            return None
        flight.sent_us = now
        flight.sends += 1
        self.resent_packets += 1
        self.tail_probes += 1
        self._rto_from_us = now
        self._on_sent(1, flight.total_bytes, now=now)
        return flight

    def on_too_big(self, datagram_bytes: int, carries_bytes: int, *, now: int) -> None:
        """A datagram of this size does not pass (EMSGSIZE, ICMP); see PathMtu.on_too_big()."""
        self.mtu.on_too_big(datagram_bytes, carries_bytes, now=now)
        self.controller.on_segment_size(self.mtu.size - HEADER_BYTES)
        limit = self.mtu.size - HEADER_BYTES
        self._lose(lambda flight, _: 0 if flight.size > limit else None, now, is_congestion=False)

    def clear(self) -> None:
        """The connection is over."""
        self.flights = Flights(self.flights.next_seq)
        self.buffer.clear()
        self.sent_offset = self.buffer.end_offset
        self._paced_until = self._reorder_at = NEVER
        self._is_persisting = False

    def _check(self) -> None:
        """Invariants, for tests and the simulator."""
        self.flights._check()
        self.buffer._check()
        self.recovery._check()
        self.mtu._check()
        assert self.buffer.acked_offset <= self.sent_offset <= self.buffer.end_offset
        assert not self.flights.queue or self.flights.queue[0].offset >= self.buffer.acked_offset

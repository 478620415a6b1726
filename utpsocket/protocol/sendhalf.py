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
from utpsocket.protocol.pacing import Pacer
from utpsocket.protocol.packet import HEADER_BYTES
from utpsocket.protocol.pathmtu import PathMtu
from utpsocket.protocol.peerlimits import PeerLimits
from utpsocket.protocol.receivehalf import NEVER
from utpsocket.protocol.recovery import DUPLICATE_THRESHOLD, Recovery
from utpsocket.protocol.sendbuffer import SendBuffer

MAX_TIMEOUTS: Final = 6  # consecutive retransmission timeouts before giving up: PROTOCOL.md §9
MAX_PERSIST_US: Final = 15_000_000  # PROTOCOL.md §7: libutp probes a closed window once after 15 s
_SMALL_PACKETS: Final = 4  # so a write, write, read exchange never waits for an ack, and a flood of bytes does
_BLACK_HOLE_TIMEOUTS: Final = 2
_MAX_TRANSMIT_BYTES: Final = 65_507  # what one UDP send takes, segmented by the kernel or not
# PROTOCOL.md §3: one packet, retransmitted at most twice, to an address that may be spoofed. So small that it and the
# STATE before it are no more than three times the SYN, with IP's and UDP's 28 bytes: 48 + 48 + 48.
_UNPROVEN_BYTES: Final = 48
_MAX_UNPROVEN_SENDS: Final = 3


class SendHalf:
    """Everything about the direction from us to the peer. All times µs."""

    __slots__ = (
        "_burst_at",
        "_duplicate_acks",
        "_is_persisting",
        "_last_progress_at",
        "_last_sent_us",
        "_limited_at",
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
        "pacer",
        "peer",
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
        self.pacer = Pacer()
        self.peer = PeerLimits()
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
        self._burst_at = -1  # when new data last left: what the window still holds may follow in the same instant
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
        peer = self.peer
        if peer.window_bytes < self.mtu.size:
            self._silent_timeouts = 0  # it holds us back, so it lives
        acknowledged = Acknowledged()
        in_flight_bytes = flights.in_flight_bytes
        is_plain_duplicate = (
            is_state
            and not sack_ranges
            and ack_next_seq == flights.una_seq
            and window_bytes <= peer.window_bytes  # less: what it held ahead of the hole takes its room
            and bool(flights.packets)
        )
        if ack_next_seq >= flights.una_seq:  # an older one was overtaken: its window is no news
            peer.on_window(window_bytes)
        repaired_span = 0
        if ack_next_seq > flights.una_seq:
            if flights.sacked_packets and flights.queue[0].sends > 1:
                repaired_span = ack_next_seq - flights.una_seq
            flights.acknowledge(ack_next_seq, acknowledged)
            self._duplicate_acks = 0
            self._release()
        if sack_ranges:
            flights.sack(sack_ranges, acknowledged)
        if acknowledged.packets:
            lost = self._on_news(acknowledged, in_flight_bytes, delay_us, now=now)
            if repaired_span and lost and not flights.sacked_packets:
                peer.on_hole_repaired(repaired_span, lost)
        elif is_plain_duplicate:
            self._duplicate_acks += 1
            if self._duplicate_acks == DUPLICATE_THRESHOLD:
                flights.split_at(flights.una_seq + 1)
                self._lose(lambda flight, _: 0 if flight.seq == flights.una_seq and flight.sends == 1 else None, now)
        return acknowledged.packets > 0

    def _on_news(self, acknowledged: Acknowledged, in_flight_bytes: int, delay_us: int, *, now: int) -> int:
        """Something newly arrived. Returns how many packets that proves lost."""
        recovery = self.recovery
        controller = self.controller
        recovery.on_progress()
        self._silent_timeouts = 0
        if recovery.on_delivered(acknowledged, now=now):
            controller.on_needless(now=now)
        self._rto_from_us = now
        self._last_progress_at = now
        self._tail_probed = False
        flights = self.flights
        lost = 0
        self._reorder_at = NEVER
        if flights.sacked_packets or (flights.queue and flights.queue[0].sent_us < recovery.rack_sent_us):
            lost = self._detect_losses(now=now)
        if delay_us:
            controller.on_delay(delay_us, now=now)
        if acknowledged.total_bytes and not lost:
            controller.on_ack(
                acknowledged.total_bytes,
                in_flight_bytes=in_flight_bytes,
                is_limited=self._limited_at >= acknowledged.sent_us,
                rtt_us=recovery.latest_rtt_us,
                sent_us=acknowledged.sent_us,
                now=now,
            )
        if acknowledged.probe_bytes:
            self.mtu.on_probe_acked(acknowledged.probe_bytes + HEADER_BYTES)
            controller.on_segment_size(self.mtu.size - HEADER_BYTES)
        return lost

    def _release(self) -> None:
        """Free the bytes before the first packet that is not acked."""
        queue = self.flights.queue
        self.buffer.release(queue[0].offset if queue else self.sent_offset)

    def _detect_losses(self, *, now: int) -> int:
        """Ask about each flight of which a selective ack could have told. libutp's reach 30 packets beyond the hole,
        and some peers send none: what lies further may have arrived, unsaid.
        """
        self._reorder_at = NEVER
        flights = self.flights
        said_seq = max(flights.highest_sacked_seq, flights.una_seq + self.peer.sack_packets)
        if said_seq + 1 < flights.next_seq:
            flights.split_at(said_seq + 1)
        lost_at = self.recovery.lost_at
        return self._lose(lambda flight, above: lost_at(flight, above) if flight.seq <= said_seq else None, now)

    def _lose(self, lost_at: Callable[[Flight, int], int | None], now: int, *, is_congestion: bool = True) -> int:
        """Mark lost what counts as lost by now; remember when the next one will. Returns how many packets."""
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

        lost = self.flights.lose(is_lost)
        self.lost_packets += lost
        if lost_probe:
            self.mtu.on_probe_lost(now=now)
        if reduces:
            self._recovery_seq = self.flights.next_seq
            self._resend_at_once = True
            self.controller.on_loss(now=now)
        return lost

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
        is_out_of_time = now >= self._rto_from_us + self._rto_us()
        if self._may_probe_tail() and (
            is_out_of_time or now >= self._last_sent_us + self.recovery.probe_timeout_us(flights.packets)
        ):
            self._tail_probe_due = self._tail_probed = True
            self._rto_from_us = now  # RFC 8985 §7.3: the timeout counts from the probe
        elif is_out_of_time:
            return self._on_retransmission_timeout(now=now)
        return True

    def _on_retransmission_timeout(self, *, now: int) -> bool:
        flights = self.flights
        recovery = self.recovery
        self._rto_from_us = now
        if flights.queue[0].fate is Fate.SACKED:
            flights.forget_sacks()  # the first packet not acked cannot have arrived, whatever was said
        if all(flight.is_probe or flight.fate is not Fate.IN_FLIGHT for flight in flights.queue):
            self._lose(lambda flight, _: 0, now)  # PROTOCOL.md §9: a lone MTU probe's timeout is not a loss
            return True
        self.timeouts += 1
        self._silent_timeouts += 1
        recovery.on_timeout()
        if self._silent_timeouts > MAX_TIMEOUTS and not self.user_timeout_us:
            return False
        if self.peer.window_bytes >= self.mtu.size:
            # Behind a closed window the packet is a probe, and its silence says nothing about the path.
            self._recovery_seq = flights.next_seq
            self.controller.on_timeout(now=now)
        if recovery.backoff >= _BLACK_HOLE_TIMEOUTS and flights.queue[0].size + HEADER_BYTES > self.mtu.floor:
            self.mtu.on_black_hole(now=now)
            self.controller.on_segment_size(self.mtu.size - HEADER_BYTES)
        # RFC 8985 §6.3: what left a moment ago may still arrive.
        patience_us = recovery.srtt_us + recovery.reorder_window_us
        first_seq = flights.una_seq
        self._lose(lambda flight, _: 0 if flight.seq == first_seq else flight.sent_us + patience_us, now)
        self._resend_at_once = True
        return True

    def _rto_us(self) -> int:
        rto_us = self.recovery.rto_us
        return min(rto_us, MAX_PERSIST_US) if self.peer.window_bytes < self.mtu.size else rto_us

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
        if not self.is_proven and self.sent_packets:
            return None
        unsent = self.buffer.end_offset - self.sent_offset
        if not unsent:
            return self._finish(now=now)
        mtu, peer = self.mtu, self.peer
        size = mtu.size - HEADER_BYTES
        if not self.is_proven:
            max_segments, size = 1, _UNPROVEN_BYTES
        peer_room = peer.window_bytes - flights.in_flight_bytes - flights.lost_bytes
        worthwhile = min(unsent, peer.worthwhile_bytes(size))
        if peer_room < worthwhile and not flights.packets:
            return self._probe_window(peer_room, worthwhile, now=now)
        self._is_persisting = False
        window = self.controller.window_bytes
        room = max(window, size) - flights.in_flight_bytes
        is_peer_limited = peer_room < room
        if is_peer_limited:
            room = peer_room
        elif room < unsent:
            self._limited_at = now
        room = min(room, (peer.reorder_packets - flights.packets) * size)
        if room < worthwhile:
            return None
        burst = min(_MAX_TRANSMIT_BYTES // mtu.size, self._burst_packets(size, now=now))
        if not burst:
            return None
        if self._burst_at != now:
            if room < unsent and room < min(burst * size, window // 4) and flights.in_flight_bytes:
                # Each ack would free room for as little as it acked, and so small bursts would stay small for ever:
                # three quarters of the window are under way, so wait for a burst's worth (Linux: tcp_tso_win_divisor).
                return None
            self._burst_at = now
        before_probe = mtu.packets_before_probe(now=now)
        if not before_probe:
            probe = mtu.probe_size() - HEADER_BYTES
            if flights.packets and probe <= min(unsent, room):
                return self._probe_mtu(probe, now=now)
            before_probe = 1
        most = min(burst, max_segments, before_probe)
        full = min(unsent, room) // size
        count, last_size = min(most, full), size
        if full < most:
            rest = unsent - full * size
            if full * size + rest <= room:
                if rest and self._may_send_small():
                    count, last_size = full + 1, rest
            elif is_peer_limited and not full:
                count, last_size = 1, room  # a peer whose whole window is hardly a segment
        if not count:
            return None
        mtu.on_sent(count)
        flight = Flight(flights.next_seq, count, size, last_size, self.sent_offset, now)
        flight.is_small = last_size < size
        flight.is_whole = mtu.size <= mtu.proven
        self._add(flight, now=now)
        return flight

    def _probe_mtu(self, size: int, *, now: int) -> Flight:
        """A packet larger than is proven, with data as any other. PROTOCOL.md §10."""
        self.mtu.on_probe_sent(size + HEADER_BYTES)
        flight = Flight(self.flights.next_seq, 1, size, size, self.sent_offset, now)
        flight.is_probe = flight.is_whole = True
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
        self.pacer.on_sent(count, total_bytes, self._paced_bytes(), self.recovery.srtt_us, now=now)

    def _paced_bytes(self) -> int:
        """What pacing lets out in one round trip: more than the window, so that the window stays the limit."""
        window = self.controller.window_bytes
        return 2 * window if self.controller.is_slow_start else window + window // 4

    def _burst_packets(self, size: int, *, now: int) -> int:
        """How many packets of `size` may leave at this instant; 0: not before _paced_until."""
        packets = self.pacer.packets(size, self._paced_bytes(), self.recovery.srtt_us, now=now)
        if not packets:
            self._paced_until = self.pacer.ready_at
            self._limited_at = now
        return packets

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

    def _probe_window(self, peer_room: int, worthwhile: int, *, now: int) -> Flight | None:
        """Nothing is under way and the peer's window is closed: wait, then try a little. RFC 9293 §3.8.6.1."""
        if not self._is_persisting:
            self._is_persisting = True
            self._rto_from_us = now
        if not self._persist_due:
            return None
        self._persist_due = self._is_persisting = False
        size = max(1, min(peer_room, worthwhile))
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
        most = _MAX_TRANSMIT_BYTES // (size + HEADER_BYTES)
        count = min(flight.count, max_segments, most, self._burst_packets(size, now=now))
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
        flight.is_whole = size + HEADER_BYTES <= self.mtu.proven
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
        if flight.is_probe:
            # It was silent for two round trips, and nothing else can tell why: its size is to blame.
            flight.is_probe = flight.is_whole = False
            self.mtu.on_probe_lost(now=now)
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
        # What IP may fragment travels on; the rest is gone, and congestion had no part in it.
        self._lose(lambda flight, _: 0 if flight.is_whole and flight.size > limit else None, now, is_congestion=False)

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

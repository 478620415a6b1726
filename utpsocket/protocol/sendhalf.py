"""The direction from us to the peer: what may leave now.

In this order: lost packets; the last packet again, as a tail-loss probe; new data, as far as the congestion window, the
peer's window, the peer's reorder buffer and pacing allow; then our FIN. A burst is at most about one millisecond of the
current rate, so that a bottleneck's queue does not get 64 KiB at once. outstanding.py is the base class, which keeps
what has left until it is acked; docs/design.md §3 says why it is one.

Sources: BEP 29 "overview" (window rule), "packet sizes"; RFC 6675 §5 (recovery with a pipe), RFC 8985 §7 (tail-loss
probe), RFC 9293 §3.8.6.1 (zero-window probes), RFC 896 (small packets); docs/protocol.md §3, §7, §9.
"""

from __future__ import annotations

from typing import Final

from utpsocket.protocol.congestion import Controller
from utpsocket.protocol.flights import Flight, Flights
from utpsocket.protocol.outstanding import Outstanding
from utpsocket.protocol.pacing import PACED_FROM_RTT_US, Pacer
from utpsocket.protocol.packet import HEADER_BYTES, MIN_PADDING_BYTES
from utpsocket.protocol.pathmtu import PathMtu
from utpsocket.protocol.runs import MAX_RUN_PACKETS, MAX_SEND_BYTES, MAX_SEND_PACKETS, packets_per_send
from utpsocket.protocol.sendbuffer import SendBuffer
from utpsocket.protocol.times import NEVER

# How many packets that are not full may be in flight (RFC 896 allows one). By feel: with four a program that writes
# twice and then reads never waits for an ack, and one that writes single bytes in a loop does.
_SMALL_PACKETS: Final = 4
# System calls that a flight takes at most.
_SENDS_PER_BURST: Final = MAX_RUN_PACKETS // MAX_SEND_PACKETS
# A packet without payload, with IPv4's and UDP's headers. An IPv6 header is 20 bytes longer, but so is a SYN's, and no
# more than three packets leave for one SYN.
EMPTY_PACKET_BYTES: Final = HEADER_BYTES + 28
# Payload of the one packet of data that may leave to an address that is not verified: with the SYN-ACK before it, it is
# three times the SYN: 48 + 48 + 48 bytes. docs/protocol.md §3.
_UNVERIFIED_BYTES: Final = 48


class SendHalf(Outstanding):
    """The direction from us to the peer. Times µs. Its slots, beside those of Outstanding:

    has_more                     the application has written more than has been read from it, so a packet that is not
                                 full may wait
    nodelay                      TCP_NODELAY: packets that are not full never wait
    is_finishing                 finish() was called: our FIN follows the last byte
    fin_seq                      sequence number of our FIN, None before it is sent
    amplification_credit_bytes   of IP packets that may leave before the peer is verified. docs/protocol.md §3
    must_open_with_data          the peer, a libutp, ignores everything, a FIN too, before a first DATA, which may be
                                 empty
    is_opening_due               that DATA must leave now, although nothing was written
    awaits_grant                 new data must wait: too many connections send to this peer
                                 (engine/ports/send_grants.py)
    flight_to_split              a packet that has just left and must be followed by its pieces, see poll_pieces(); else
                                 None
    _burst_at                    when new data last left, -1 never. More may leave at that time even if the window is
                                 nearly full
    _pacer                       when the next burst may leave; None until that is asked, on a path that is paced
    sent_packets                 DATA and FIN packets that left, for figures; with retransmissions
    resent_packets               retransmissions among them
    tail_probes                  tail-loss probes among those
    """

    __slots__ = (
        "_burst_at",
        "_pacer",
        "amplification_credit_bytes",
        "awaits_grant",
        "fin_seq",
        "flight_to_split",
        "has_more",
        "is_finishing",
        "is_opening_due",
        "must_open_with_data",
        "nodelay",
        "resent_packets",
        "sent_packets",
        "tail_probes",
    )

    def __init__(self, first_seq: int, buffer: SendBuffer, controller: Controller, mtu: PathMtu) -> None:
        super().__init__(first_seq, buffer, controller, mtu)
        self._pacer: Pacer | None = None
        self.has_more = False
        self.nodelay = False
        self.is_finishing = False
        self.amplification_credit_bytes = 0
        self.must_open_with_data = False
        self.is_opening_due = False
        self.awaits_grant = False
        self.fin_seq: int | None = None
        self.flight_to_split: Flight | None = None
        self._burst_at = -1
        self.sent_packets = 0
        self.resent_packets = 0
        self.tail_probes = 0

    @property
    def unsent_bytes(self) -> int:
        """Bytes that the application has written and that were never sent."""
        return self.buffer.end_offset - self.sent_offset

    @property
    def burst_bytes(self) -> int:
        """Bytes of payload that the largest possible flight carries: all packets of _SENDS_PER_BURST system calls."""
        size = self.mtu.datagram_bytes
        return _SENDS_PER_BURST * packets_per_send(size) * (size - HEADER_BYTES)

    @property
    def is_fin_acked(self) -> bool:
        """Whether our FIN is acked, and so everything before it."""
        return self.fin_seq is not None and self.flights.una_seq > self.fin_seq

    @property
    def has_nothing_to_send(self) -> bool:
        """Whether next_flight() and poll_pieces() would return None, whatever the time is, and change nothing. May be
        False all the same.
        """
        return (
            self.sent_offset == self.buffer.end_offset
            and not self.flights.lost_packets
            and not self.tail_probe_due
            and (not self.is_finishing or self.fin_seq is not None)
            and not self.is_opening_due
            and self.flight_to_split is None
            and self.paced_until == NEVER
            and self.closed_since == NEVER
        )

    @property
    def is_peer_window_limited(self) -> bool:
        """Whether bytes wait because the peer's window has no room for a packet."""
        return self.unsent_bytes > 0 and self.peer.window_bytes < self.mtu.datagram_bytes

    @property
    def has_room(self) -> bool:
        """Whether bytes are unsent and both windows have room for a packet: most likely one may leave."""
        room_bytes = min(self.peer.window_bytes, self.controller.window_bytes) - self.flights.in_flight_bytes
        return self.sent_offset < self.buffer.end_offset and room_bytes >= self.mtu.datagram_bytes

    @property
    def is_idle(self) -> bool:
        """Whether all bytes written are acked."""
        return self.buffer.acked_offset == self.buffer.end_offset

    @property
    def is_all_acked(self) -> bool:
        """Whether all packets sent are acked, the FIN too."""
        return self.flights.una_seq == self.flights.next_seq

    def start(self, first_seq: int) -> None:
        """Have the first DATA carry this sequence number. Nothing may have been sent yet."""
        self.flights.start(first_seq)
        self.paws.start(first_seq)

    # ── what may leave ──

    def next_flight(self, *, now: int, max_segments: int) -> Flight | None:
        """The next packets to send, or None when nothing may leave now. They count as sent when this returns.

        now            µs
        max_segments   how many packets at most
        Next: Composer.flight(), then call again until None.
        """
        flights, unsent = self.flights, self.buffer.end_offset - self.sent_offset
        if (
            self.paced_until != NEVER
            or flights.lost_packets
            or self.tail_probe_due
            or self._unfinished_ack is not None
            or not self.is_peer_verified
        ):
            return self._next_flight(now=now, max_segments=max_segments)
        if not unsent:
            if self.is_finishing or self.is_opening_due:
                return self._next_flight(now=now, max_segments=max_segments)
            self.closed_since = NEVER
            return None
        mtu = self.mtu
        size = mtu.datagram_bytes - HEADER_BYTES
        if unsent > size or self.awaits_grant or self.recovery.min_rtt_us > PACED_FROM_RTT_US:
            return self._next_flight(now=now, max_segments=max_segments)
        # A lone message. Where every limit has room for it, the limits need not be known more exactly; where packets
        # that are not full must wait (Nagle), or a larger size is known, it is not decided here.
        in_flight_bytes, peer, window = flights.in_flight_bytes, self.peer, self.controller.window_bytes
        is_small = unsent < size
        if (
            unsent > peer.window_bytes - in_flight_bytes
            or (unsent > window - in_flight_bytes and in_flight_bytes)
            or (peer.reorder_packets - flights.next_seq + flights.una_seq) * size < unsent
            or (is_small and (self.has_more or not (self.nodelay or flights.small_packets < _SMALL_PACKETS)))
            or (mtu.known is not None and mtu.known.confirmed_bytes > mtu.confirmed_bytes)
        ):
            return self._next_flight(now=now, max_segments=max_segments)
        self.is_persisting = False
        self.closed_since = NEVER  # as the call after this one, which finds nothing unsent
        self._burst_at = now
        mtu.packets_since_probe += 1
        flight = Flight(flights.next_seq, 1, size, unsent, self.sent_offset, now)
        flight.is_small = is_small
        flight.dont_fragment = mtu.floor_bytes < mtu.datagram_bytes <= mtu.confirmed_bytes
        if flights.next_seq == flights.una_seq:
            self._rto_from_us = self._last_progress_at = now
        self._tail_probed = False
        flights.add(flight)
        self.sent_offset += unsent
        self._last_sent_us = now
        self.sent_packets += 1
        return flight

    def _next_flight(self, *, now: int, max_segments: int) -> Flight | None:
        """next_flight(), for whatever may leave: its specification."""
        if self.paced_until < now:
            self._paced().on_late_timer(now - self.paced_until, self.recovery.srtt_us)
        self.paced_until = NEVER
        flights = self.flights
        if self._unfinished_ack is not None:
            return None  # what counts as lost may be acked by the rest of that ack
        if flights.lost_packets:
            return self._next_retransmission(now=now, max_segments=max_segments)
        if self.tail_probe_due:
            return self._next_tail_probe(now=now)
        if not self.is_peer_verified and self.sent_packets:
            return None
        unsent = self.buffer.end_offset - self.sent_offset
        if not unsent:
            self.closed_since = NEVER
            return self._next_fin(now=now) if self.is_finishing or self.is_opening_due else None
        if self.awaits_grant:
            return None
        return self._next_new_data(unsent, now=now, max_segments=max_segments)

    def _next_new_data(self, unsent: int, *, now: int, max_segments: int) -> Flight | None:
        """The next packets of new data, as far as the congestion window, the peer's window, its reorder buffer, pacing
        and Nagle's algorithm allow; or in their place a probe of the path's MTU or of the peer's window; None for
        neither.

        Example: 64 KiB are unsent, packets carry 1,452 bytes, the congestion window is 30,000 bytes and 12,000 are in
        flight: 18,000 bytes of room, so 12 full packets. The rest waits for acks.

        unsent   bytes written and never sent, at least 1
        """
        flights, mtu, peer = self.flights, self.mtu, self.peer
        if mtu.known is not None and mtu.known.confirmed_bytes > mtu.confirmed_bytes and mtu.adopt_known():
            self.controller.on_segment_size(mtu.datagram_bytes - HEADER_BYTES)
        size = mtu.datagram_bytes - HEADER_BYTES
        if not self.is_peer_verified:
            max_segments, size = 1, min(_UNVERIFIED_BYTES, self.amplification_credit_bytes - EMPTY_PACKET_BYTES)
            if size <= 0:
                return None
        peer_room = peer.window_bytes - flights.in_flight_bytes - flights.lost_bytes
        threshold_bytes = min(unsent, peer.sws_threshold_bytes(size))
        if peer_room < threshold_bytes and not flights.packets:
            return self._next_window_probe(peer_room, threshold_bytes, now=now)
        self.is_persisting = False
        window = self.controller.window_bytes
        room = max(window, size) - flights.in_flight_bytes
        is_peer_limited = peer_room < room
        if is_peer_limited:
            room = peer_room
        elif room < unsent:
            self._window_limited_at = now
        room = min(room, (peer.reorder_packets - flights.packets) * size)
        if room < threshold_bytes:
            return None
        burst = min(_SENDS_PER_BURST * packets_per_send(mtu.datagram_bytes), self._burst_packets(size, now=now))
        if not burst:
            return None
        is_new_burst = self._burst_at != now
        if is_new_burst and room < unsent and room < min(burst * size, window // 4) and flights.in_flight_bytes:
            # If each ack let out as much as it acked, small bursts would stay small. Three quarters of the window are
            # in flight, so there is time to wait until a whole burst fits. Linux does the same: tcp_tso_win_divisor.
            return None
        self._burst_at = now
        max_packets = min(max_segments, burst)
        # A probe is a full packet, and another packet follows it, so that its loss is seen.
        if unsent > size and peer.reports_delay and self.is_peer_verified:
            before_probe = mtu.packets_before_probe(now=now)
            if not before_probe and size <= room:
                return self._next_mtu_probe(size, now=now)
            max_packets = min(max_packets, before_probe or 1)
        full = min(unsent, room) // size
        count, last_size = min(max_packets, full), size
        if full < max_packets and full * size < unsent <= room and self._may_send_small():
            count, last_size = full + 1, unsent - full * size
        elif is_peer_limited and not full and unsent > room:
            count, last_size = 1, room  # the peer's whole window is smaller than a segment
        if not count:
            return None
        mtu.packets_since_probe += count
        flight = Flight(flights.next_seq, count, size, last_size, self.sent_offset, now)
        flight.is_small = last_size < size
        flight.dont_fragment = mtu.is_confirmed(mtu.datagram_bytes)
        self._add(flight, now=now)
        return flight

    def _next_mtu_probe(self, size: int, *, now: int) -> Flight:
        """A path MTU probe: a packet of data, padded beyond the size that is confirmed. If it is lost, its data is sent
        again without the padding. uTP does not re-segment, so data in a packet that is too large could never be sent
        again. docs/protocol.md §10.
        """
        probe_bytes = self.mtu.probe_size()
        self.mtu.on_probe_sent(probe_bytes)
        size = min(size, probe_bytes - HEADER_BYTES - MIN_PADDING_BYTES)
        flight = Flight(self.flights.next_seq, 1, size, size, self.sent_offset, now)
        flight.probe_bytes = probe_bytes
        flight.dont_fragment = True
        self._add(flight, now=now)
        return flight

    def _add(self, flight: Flight, *, now: int) -> None:
        """Record a flight of new packets as sent."""
        if not self.flights.packets:
            self._rto_from_us = now
            self._last_progress_at = now
        self._tail_probed = False
        total_bytes = flight.total_bytes
        self.flights.add(flight)
        self.sent_offset += total_bytes
        self._on_sent(flight.count, total_bytes, now=now)

    def _on_sent(self, count: int, total_bytes: int, *, now: int) -> None:
        """Packets left, new or again: the timers and pacing count from now."""
        self._last_sent_us = now
        self.sent_packets += count
        if self.recovery.min_rtt_us > PACED_FROM_RTT_US:
            self._paced().on_sent(count, total_bytes, self._paced_bytes(), self.recovery.srtt_us, now=now)

    def _paced(self) -> Pacer:
        if self._pacer is None:
            self._pacer = Pacer()
        return self._pacer

    def _paced_bytes(self) -> int:
        """Bytes that pacing lets out in one round trip: more than the congestion window, so that the window is what
        limits. RFC 9002 §7.7: 1.25 times; twice in slow start, as Linux.
        """
        window = self.controller.window_bytes
        return 2 * window if self.controller.is_slow_start else window + window // 4

    def _burst_packets(self, size: int, *, now: int) -> int:
        """How many packets of `size` bytes of payload pacing lets out now; 0: none before paced_until.

        A path whose shortest round trip is below PACED_FROM_RTT_US is not paced: there many small bursts cost more time
        than they save.
        """
        if self.recovery.min_rtt_us <= PACED_FROM_RTT_US:
            return MAX_RUN_PACKETS
        pacer = self._paced()
        packets = pacer.packets(size, self._paced_bytes(), self.recovery.srtt_us, now=now)
        if not packets:
            self.paced_until = pacer.ready_at
            self._window_limited_at = now
        return packets

    def _may_send_small(self) -> bool:
        """Whether a packet that is not full may leave: Nagle's algorithm (RFC 896), which here allows a few in
        flight.
        """
        if self.is_finishing:
            return True
        if self.has_more:
            return False
        return self.nodelay or self.flights.small_packets < _SMALL_PACKETS

    def _next_fin(self, *, now: int) -> Flight | None:
        """Our FIN, once everything before it has been sent; or an empty DATA where the peer needs one first, see
        must_open_with_data and is_opening_due. None for neither.
        """
        is_opening_due = (self.is_opening_due or self.must_open_with_data) and not self.sent_packets
        self.is_opening_due = False
        if is_opening_due:
            flight = Flight(self.flights.next_seq, 1, 0, 0, self.sent_offset, now)
            self._add(flight, now=now)
            return flight
        if not self.is_finishing or self.fin_seq is not None:
            return None
        if not self.is_peer_verified and self.amplification_credit_bytes < EMPTY_PACKET_BYTES:
            return None
        self.fin_seq = self.flights.next_seq
        flight = Flight(self.fin_seq, 1, 0, 0, self.sent_offset, now)
        self._add(flight, now=now)
        return flight

    def _next_window_probe(self, peer_room: int, threshold_bytes: int, *, now: int) -> Flight | None:
        """Nothing is in flight and the peer's window is closed: a zero-window probe if one is due, else wait for the
        persist timer. RFC 9293 §3.8.6.1.

        peer_room         bytes that the peer's window holds, less than the next
        threshold_bytes   as many bytes are worth a packet (PeerLimits.sws_threshold_bytes)
        """
        if not self.is_persisting:
            self.is_persisting = True
            self._rto_from_us = now
            self.closed_since = min(self.closed_since, now)
        if not self._persist_due:
            return None
        self._persist_due = self.is_persisting = False
        size = max(1, min(peer_room, threshold_bytes))
        flight = Flight(self.flights.next_seq, 1, size, size, self.sent_offset, now)
        self._add(flight, now=now)
        return flight

    def _next_retransmission(self, *, now: int, max_segments: int) -> Flight | None:
        """The first lost packets, as far as the congestion window and pacing allow. RFC 6675 §5."""
        flights = self.flights
        flight = flights.first_lost()
        assert flight is not None
        size = flight.payload_bytes
        if (
            not self.is_peer_verified
            and self.amplification_credit_bytes < EMPTY_PACKET_BYTES + flight.last_payload_bytes
        ):
            return None
        max_packets = MAX_SEND_BYTES // (size + HEADER_BYTES)
        count = min(flight.count, max_segments, max_packets, self._burst_packets(size, now=now))
        if not count:
            return None
        if size and not self._resend_at_once:
            # RFC 6675's pipe. What left before a packet that has arrived is not on the path any more, also where a
            # peer's selective acks do not reach far enough to report it: the path keeps the order, or nearly.
            sent_since_bytes = flights.sent_bytes - self.recovery.rack_sent_through_bytes
            pipe_bytes = min(flights.in_flight_bytes, sent_since_bytes)
            fit = (self.controller.window_bytes - pipe_bytes) // size
            if fit < count:
                self._window_limited_at = now
            count = min(count, max(fit, 0 if pipe_bytes else 1))
            if not count:
                return None
        elif size:
            count = 1
        self._resend_at_once = False
        if self._drops_fragments and flight.largest_payload_bytes + HEADER_BYTES > self.mtu.datagram_bytes:
            count = 1
        flight = flights.resent(flight, count, now=now)
        self._add_pieces(flight)
        flight.dont_fragment = self.mtu.is_confirmed(size + HEADER_BYTES)
        self.resent_packets += count
        self._rto_from_us = now
        self._on_sent(count, flight.total_bytes, now=now)
        return flight

    def _add_pieces(self, flight: Flight) -> None:
        """If this packet first left when the path's MTU was larger, and the path drops fragments, have its pieces
        follow.
        """
        if self._drops_fragments and flight.largest_payload_bytes + HEADER_BYTES > self.mtu.datagram_bytes:
            self.flight_to_split = flight

    def poll_pieces(self) -> Flight | None:
        """A packet that has just left and must also be sent in pieces (fragmentation.py), or None. Each is returned
        once.
        """
        flight, self.flight_to_split = self.flight_to_split, None
        return flight if flight is not None and flight.seq >= self.flights.una_seq else None

    def _next_tail_probe(self, *, now: int) -> Flight | None:
        """The last packet again as a tail-loss probe: its ack shows whether the packets before it have arrived. RFC
        8985 §7.3.
        """
        self.tail_probe_due = False
        flights = self.flights
        flight = flights.last_in_flight()
        if flight is None:
            return None
        if flight.probe_bytes:
            # A path MTU probe without an ack for two round trips, and no later packet to show a loss: it was too large.
            flight.probe_bytes = 0
            flight.dont_fragment = self.mtu.is_confirmed(flight.payload_bytes + HEADER_BYTES)
            self.mtu.on_probe_lost(now=now)
        flights.resent(flight, 1, now=now)
        self._add_pieces(flight)
        self.resent_packets += 1
        self.tail_probes += 1
        self.recovery.on_tail_probe()
        self._rto_from_us = now
        self._on_sent(1, flight.total_bytes, now=now)
        return flight

    def clear(self) -> None:
        """The connection is over: drop what was written, and have no more deadlines."""
        if self.flights.queue:
            self.flights = Flights(self.flights.next_seq)
        self.buffer.clear()
        self.sent_offset = self.buffer.end_offset
        self.paced_until = self._loss_check_at = self.closed_since = NEVER
        self.is_persisting = self._is_forgetting_sacks = False
        self._unfinished_ack = None
        self._lost_through_us = -1
        self.flight_to_split = None

    def _check(self) -> None:
        """Invariants, for tests and the simulator."""
        self.flights._check()
        self.buffer._check()
        self.recovery._check()
        self.mtu._check()
        assert self.buffer.acked_offset <= self.sent_offset <= self.buffer.end_offset
        assert not self.flights.queue or self.flights.queue[0].offset >= self.buffer.acked_offset

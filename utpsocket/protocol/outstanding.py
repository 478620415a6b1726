"""What is in flight to the peer, and what acks, losses and time mean for it.

The base class of SendHalf (sendhalf.py), which decides what may leave; this one sends nothing. It joins pieces that do
not know each other: bytes (sendbuffer.py), packets in flight (flights.py), when a packet is lost (recovery.py), the
congestion window (congestion/), the size of packets (pathmtu.py) and what the peer has room for (peerlimits.py).

Sources: BEP 29 "packet loss", "timeouts"; RFC 6675 §5 (recovery with a pipe), RFC 8985 §7 (tail-loss probe),
RFC 9293 §3.8.6.1 (zero-window probes); docs/protocol.md §7, §9.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from utpsocket.protocol.congestion import CONTROLLERS, Controller
from utpsocket.protocol.flights import IN_FLIGHT, SACKED, Acknowledged, Flight, Flights, LostAt
from utpsocket.protocol.pacing import PACED_FROM_RTT_US
from utpsocket.protocol.packet import HEADER_BYTES, MAX_SACK_BYTES
from utpsocket.protocol.pathmtu import PathMtu
from utpsocket.protocol.paws import Paws
from utpsocket.protocol.peerlimits import PeerLimits
from utpsocket.protocol.recovery import DUPLICATE_THRESHOLD, Recovery
from utpsocket.protocol.sendbuffer import SendBuffer
from utpsocket.protocol.times import NEVER

# The peer is given up at the retransmission timeout after so many without an ack in between. By feel; docs/protocol.md
# §9.
MAX_TIMEOUTS: Final = 6
# But not before so much time without progress, since on a short path six timeouts are over in 13 s. As long as Linux
# repeats a packet: tcp_retries2 = 15 makes 924 s; RFC 1122 §4.2.3.5 demands 100 s. So the connection survives a peer
# that is suspended, or a path that is down, for some minutes.
GIVE_UP_AFTER_US: Final = 924_000_000
# The same where the application has closed its last descriptor. Linux (tcp_orphan_retries(), tcp_probe_timer()) then
# gives up 100 s after the last progress; and behind a closed window, whatever the peer answers, when the time between
# probes has grown to two minutes, which at its shortest timeout is after 204 s.
ORPHAN_GIVE_UP_AFTER_US: Final = 100_000_000
ORPHAN_CLOSED_WINDOW_US: Final = 205_000_000
# The longest time between zero-window probes: libutp's, which probes once. docs/protocol.md §7.
MAX_PERSIST_US: Final = 15_000_000
# Timeouts in a row after which large packets may be what is lost. By feel: one is common; RFC 8899 §4.3 leaves it open.
_BLACK_HOLE_TIMEOUTS: Final = 2
# Timeouts in a row after which a peer with a closed window may be gone. By feel: one may be a lost probe.
_MAX_UNANSWERED_TIMEOUTS: Final = 1


class _UnfinishedAck:
    """An ack of more flights than are taken off the queue at once (Flights.acknowledge). What it means for the window
    and for losses is decided when all are taken off.

    acknowledged      the sum so far
    in_flight_bytes   before the ack
    repaired_span, ack_next_seq, sacked_bits, delay_us, echo_us   see Outstanding.on_ack() and _on_newly_acked()
    """

    __slots__ = (
        "ack_next_seq",
        "acknowledged",
        "delay_us",
        "echo_us",
        "in_flight_bytes",
        "repaired_span",
        "sacked_bits",
    )

    def __init__(self, acknowledged: Acknowledged, in_flight_bytes: int, repaired_span: int) -> None:
        self.acknowledged = acknowledged
        self.in_flight_bytes = in_flight_bytes
        self.repaired_span = repaired_span
        self.ack_next_seq = -1

    def on_ack(self, ack_next_seq: int, sacked_bits: int, delay_us: int, echo_us: int) -> None:
        """This ack, or a later one that takes its place."""
        if ack_next_seq >= self.ack_next_seq:
            self.ack_next_seq, self.sacked_bits = ack_next_seq, sacked_bits
            self.delay_us, self.echo_us = delay_us, echo_us


class Outstanding:
    """What has left and is not acked. Times µs; a time `_at` is NEVER, and a time of sending -1, while there is none.

    What it is made of:
    buffer        bytes written and not acked
    flights       packets sent and not acked
    recovery      round trips, timeouts, when a packet counts as lost
    controller    the congestion window
    mtu           the size of packets
    paws          refuses acks from 65,536 packets ago, which would free what is in flight now
    peer          what the peer has room for

    Counted and set from outside:
    sent_offset        offset in the stream of the first byte that was never sent
    is_peer_verified   whether the peer has acked a number of ours; else its address may be forged. docs/protocol.md §3
    user_timeout_us    TCP_USER_TIMEOUT; 0: MAX_TIMEOUTS and give_up_after_us decide
    give_up_after_us   how long without progress before the peer is given up
    lost_packets, timeouts   for figures

    What may be due:
    is_persisting     nothing is in flight and the peer's window is closed: the persist timer runs
    tail_probe_due    a tail-loss probe is
    paced_until       when pacing lets out the next burst
    closed_since      since when nothing but the peer's closed window has kept data back

    Acks:
    _duplicate_acks       plain duplicate acks in a row
    _is_sack_complete     what the last ack did not report as arrived has not arrived
    _unfinished_ack       an ack of very many flights that is not yet completely processed; else None

    Loss and congestion:
    _recovery_seq         losses of packets sent before this number have already reduced the window
    _resend_at_once       the first retransmission of a recovery does not wait for the window
    _window_limited_at    when the congestion window or pacing last kept data back
    _drops_fragments      the path seems to drop fragments: a packet that is too large for it is also sent in pieces
    _is_forgetting_sacks  the peer has dropped what it had sacked, and not all flights are marked yet
    _lost_through_us      a timeout has found all that left by then lost, and not all flights are marked yet; else -1

    Timers:
    _rto_from_us          when the retransmission timeout or the persist timer began
    _loss_check_at        when the next packet counts as lost
    _last_sent_us         when the last packet left
    _last_progress_at     when something was last newly acked
    _unanswered_timeouts  timeouts in a row without an ack
    _tail_probed          a tail-loss probe has left, or is due, since the last progress
    _persist_due          a zero-window probe is due
    _orphaned_at          when the application closed its last descriptor
    """

    __slots__ = (
        "_drops_fragments",
        "_duplicate_acks",
        "_is_forgetting_sacks",
        "_is_sack_complete",
        "_last_progress_at",
        "_last_sent_us",
        "_loss_check_at",
        "_lost_through_us",
        "_orphaned_at",
        "_persist_due",
        "_recovery_seq",
        "_resend_at_once",
        "_rto_from_us",
        "_tail_probed",
        "_unanswered_timeouts",
        "_unfinished_ack",
        "_window_limited_at",
        "buffer",
        "closed_since",
        "controller",
        "flights",
        "give_up_after_us",
        "is_peer_verified",
        "is_persisting",
        "lost_packets",
        "mtu",
        "paced_until",
        "paws",
        "peer",
        "recovery",
        "sent_offset",
        "tail_probe_due",
        "timeouts",
        "user_timeout_us",
    )

    def __init__(self, first_seq: int, buffer: SendBuffer, controller: Controller, mtu: PathMtu) -> None:
        self.buffer = buffer
        self.flights = Flights(first_seq)
        self.recovery = Recovery()
        self.controller = controller
        self.mtu = mtu
        self.paws = Paws()
        self.peer = PeerLimits()
        self.sent_offset = 0
        self.is_peer_verified = True
        self.user_timeout_us = 0
        self.give_up_after_us = GIVE_UP_AFTER_US
        self._duplicate_acks = 0
        self._drops_fragments = False
        self._is_sack_complete = False
        self._recovery_seq = -1
        self._window_limited_at = -1
        self._last_sent_us = 0
        self._last_progress_at = 0
        self._rto_from_us = 0
        self._unanswered_timeouts = 0
        self._resend_at_once = False
        self.is_persisting = False
        self._persist_due = False
        self._orphaned_at = NEVER
        self.closed_since = NEVER
        self.paced_until = NEVER
        self._loss_check_at = NEVER
        self.tail_probe_due = False
        self._tail_probed = False
        self._lost_through_us = -1
        self._is_forgetting_sacks = False
        self._unfinished_ack: _UnfinishedAck | None = None
        self.lost_packets = 0
        self.timeouts = 0

    @property
    def has_unfinished_ack(self) -> bool:
        """Whether an ack of very many flights is not yet completely processed: on_timeout() is due, and nothing may
        leave before.
        """
        return self._unfinished_ack is not None

    def orphan(self, *, now: int) -> None:
        """The application has closed its last descriptor: what is left must be sent in bounded time."""
        self.give_up_after_us = ORPHAN_GIVE_UP_AFTER_US
        self._orphaned_at = now

    def control_congestion(self, name: str, target_delay_us: int) -> None:
        """Have another congestion controller go on where the present one is, or the same one with another target.

        name              of CONTROLLERS
        target_delay_us   0: the controller's own
        """
        kind, old = CONTROLLERS[name], self.controller
        new = kind(old.segment_bytes, target_delay_us)
        if new.NAME != old.NAME or new.target_delay_us != old.target_delay_us:
            new.take_over(old)
            self.controller = new

    def on_late_verification(self) -> None:
        """The peer is verified only now, after timeouts. Before, packets may have stayed without an ack for want of
        amplification credit, so neither the backoff nor the round trips of these packets say anything of the path.
        """
        self.recovery.on_progress()
        for flight in self.flights.queue:
            flight.sends += 1  # Karn's algorithm: no round trip is taken from them

    # ── acks ──

    def on_ack(
        self,
        ack_next_seq: int,
        window_bytes: int,
        sack: memoryview | None,
        delay_us: int,
        echo_us: int,
        *,
        is_state: bool,
        now: int,
    ) -> bool:
        """An acceptable ack arrived; the caller has checked its range.

        ack_next_seq   the peer has every packet before this one. BEP 29 "ack_nr" + 1
        window_bytes   the peer's window
        sack           the selective ack extension, None without one
        delay_us       the peer's timestamp difference, 0 for none
        echo_us        the peer's timestamp by our clock, see Recovery.on_delivered(); -1 if unknown
        is_state       a STATE without pieces: it may be a duplicate ack
        now            µs
        -> bool        whether it acked or sacked anything new
        Sources: RFC 9293 §3.10.7.4 (ack processing), RFC 6675 §3, RFC 5681 §3.2.
        """
        flights = self.flights
        peer = self.peer
        # A peer that sends selective acks has nothing out of order when it sends none.
        self._is_sack_complete = is_state and sack is None and peer.sack_packets > 0
        sacked_bits = 0
        if sack is not None:
            peer.on_sack(len(sack))
            if ack_next_seq >= flights.una_seq:
                sacked_bits = int.from_bytes(sack, "little")
        was_closed = peer.window_bytes < self.mtu.datagram_bytes
        if was_closed and self._orphaned_at == NEVER:
            self._unanswered_timeouts = 0  # the peer keeps its window closed, so it is alive
        acknowledged = Acknowledged()
        in_flight_bytes = flights.in_flight_bytes
        is_plain_duplicate = (
            is_state
            and not sacked_bits
            and ack_next_seq == flights.una_seq
            and window_bytes <= peer.window_bytes  # less, where it keeps what arrived out of order
            and bool(flights.packets)
        )
        if ack_next_seq >= flights.una_seq:  # the window of an ack that was overtaken is out of date
            peer.on_window(window_bytes)
            if was_closed or self.closed_since != NEVER:
                self._on_window_after_closed(window_bytes, was_closed=was_closed)
        if self._unfinished_ack is not None:
            self._unfinished_ack.on_ack(ack_next_seq, sacked_bits, delay_us, echo_us)
            return self._finish_ack(self._unfinished_ack, now=now)
        repaired_span = 0
        if ack_next_seq > flights.una_seq:
            if flights.sacked_packets and flights.queue[0].sends > 1:
                repaired_span = ack_next_seq - flights.una_seq
            flights.acknowledge(ack_next_seq, acknowledged)
            self._duplicate_acks = 0
            self._release()
            if flights.una_seq < ack_next_seq:
                self._unfinished_ack = _UnfinishedAck(acknowledged, in_flight_bytes, repaired_span)
                self._unfinished_ack.on_ack(ack_next_seq, sacked_bits, delay_us, echo_us)
                return True
        if sacked_bits:
            flights.sack(ack_next_seq + 1, sacked_bits, acknowledged)
        elif sack and self._is_hole_wider(len(sack), ack_next_seq, now=now):
            is_plain_duplicate = False
        if acknowledged.packets:
            self._on_newly_acked(acknowledged, in_flight_bytes, repaired_span, delay_us, echo_us, now=now)
        elif is_plain_duplicate:
            self._on_duplicate_ack(now=now)
        return acknowledged.packets > 0

    def on_ack_of_lone(self, ack_next_seq: int, window_bytes: int, delay_us: int, *, is_state: bool, now: int) -> bool:
        """on_ack() of an ack, without a selective ack, of the one packet that is in flight. Returns False if anything
        about that is special; then nothing has been done.
        """
        flights, recovery, peer, queue = self.flights, self.recovery, self.peer, self.flights.queue
        if len(queue) != 1 or ack_next_seq != flights.next_seq:
            return False
        flight, datagram_bytes = queue[0], self.mtu.datagram_bytes
        if (
            flight.count > 1
            or flight.sends > 1
            or flight.state is not IN_FLIGHT
            or flight.probe_bytes
            or flights.highest_sacked_seq >= flights.una_seq
            or recovery.backoff
            or peer.window_bytes < datagram_bytes
            or window_bytes < datagram_bytes
            or self.closed_since != NEVER
            or self._lost_through_us >= 0
            or self._unfinished_ack is not None
        ):
            return False
        self._is_sack_complete = is_state and peer.sack_packets > 0
        peer.window_bytes = window_bytes
        if window_bytes > peer.largest_window_bytes:
            peer.largest_window_bytes = window_bytes
        in_flight_bytes, sent_us = flights.in_flight_bytes, flight.sent_us
        flights.acknowledge_lone(flight)
        self.buffer.release(self.sent_offset)
        self._duplicate_acks = self._unanswered_timeouts = 0
        rtt_us = now - sent_us
        recovery.on_rtt(rtt_us)
        if sent_us > recovery.rack_sent_us or (sent_us == recovery.rack_sent_us and flight.seq > recovery.rack_seq):
            recovery.rack_sent_us, recovery.rack_seq, recovery.rack_rtt_us = sent_us, flight.seq, rtt_us
            recovery.rack_sent_through_bytes = flight.sent_before_bytes + flight.total_bytes
        self._rto_from_us = self._last_progress_at = now
        self._tail_probed = False
        self._loss_check_at = NEVER
        controller = self.controller
        if delay_us:
            peer.reports_delay = True
            controller.on_delay(delay_us, now=now)
        elif not peer.reports_delay:
            controller.on_round_trip(rtt_us, now=now)
        if flight.total_bytes:
            controller.on_ack(
                flight.total_bytes,
                in_flight_bytes=in_flight_bytes,
                is_limited=self._window_limited_at >= sent_us,
                rtt_us=recovery.latest_rtt_us,
                sent_us=sent_us,
                now=now,
            )
        return True

    def _on_window_after_closed(self, window_bytes: int, *, was_closed: bool) -> None:
        """The peer advertised this window; it was closed by the last ack, or has been since closed_since."""
        if was_closed and window_bytes >= self.mtu.datagram_bytes:
            self.recovery.on_window_open()
        if self.closed_since != NEVER and not self._is_window_closed:
            self.closed_since = NEVER

    def _on_duplicate_ack(self, *, now: int) -> None:
        """A duplicate ack without a selective ack: the third in a row means that the first packet is lost. RFC 5681
        §3.2.
        """
        self._duplicate_acks += 1
        if self._duplicate_acks == DUPLICATE_THRESHOLD:
            self._on_lost(self.flights.lose_first(), now=now)

    def _finish_ack(self, unfinished: _UnfinishedAck, *, now: int) -> bool:
        """Take off the next flights of an ack of very many. With the last one it counts as if it had come now."""
        flights, acknowledged = self.flights, unfinished.acknowledged
        flights.acknowledge(unfinished.ack_next_seq, acknowledged)
        self._release()
        if flights.una_seq < unfinished.ack_next_seq:
            return True
        self._unfinished_ack = None
        if unfinished.sacked_bits:
            flights.sack(unfinished.ack_next_seq + 1, unfinished.sacked_bits, acknowledged)
        if acknowledged.packets:
            before_bytes, span = unfinished.in_flight_bytes, unfinished.repaired_span
            self._on_newly_acked(acknowledged, before_bytes, span, unfinished.delay_us, unfinished.echo_us, now=now)
        return True

    def _is_hole_wider(self, sack_bytes: int, ack_next_seq: int, *, now: int) -> bool:
        """Whether this is a selective ack in which no bit is set, of a peer that has a packet beyond what its selective
        acks can reach; otherwise it would not send one. So the packets within that reach are lost, or where the path
        reorders they are when their time has come. A selective ack of full length means something else
        (ReceiveHalf.sack).
        """
        flights = self.flights
        recovery = self.recovery
        reach_seq = ack_next_seq + self.peer.sack_packets
        if sack_bytes >= MAX_SACK_BYTES or ack_next_seq != flights.una_seq or reach_seq + 1 >= flights.next_seq:
            return False
        beyond = flights.find(reach_seq + 1)
        if beyond.sends == 1:
            recovery.on_later_arrival(beyond.sent_us, reach_seq + 1, now=now)

        def lost_at(flight: Flight, last_seq: int, above: int) -> int | None:
            return recovery.lost_at(flight, last_seq, DUPLICATE_THRESHOLD if last_seq <= reach_seq else above)

        self._lose_overdue(lost_at, max(flights.highest_sacked_seq, reach_seq), now)
        return True

    def _on_newly_acked(
        self,
        acknowledged: Acknowledged,
        in_flight_bytes: int,
        repaired_span: int,
        delay_us: int,
        echo_us: int,
        *,
        now: int,
    ) -> None:
        """Something newly arrived.

        in_flight_bytes   before that
        repaired_span     packets that it acked with a hole which a retransmission has filled, 0 if none has
        """
        recovery = self.recovery
        controller = self.controller
        if not self._is_window_closed:
            recovery.on_progress()
        self._unanswered_timeouts = 0
        if recovery.on_delivered(acknowledged, echo_us, now=now):
            controller.on_spurious_loss(now=now)
        self._rto_from_us = now
        self._last_progress_at = now
        self._tail_probed = False
        flights = self.flights
        lost = 0
        self._loss_check_at = NEVER
        if (
            flights.sacked_packets
            or (flights.queue and flights.queue[0].sent_us < recovery.rack_sent_us)
            or self._lost_through_us >= 0
        ):
            lost = self._detect_losses(now=now)
        if delay_us:
            self.peer.reports_delay = True
            controller.on_delay(delay_us, now=now)
        elif not self.peer.reports_delay and acknowledged.sends == 1:
            controller.on_round_trip(recovery.latest_rtt_us, now=now)
        if acknowledged.total_bytes and not lost:
            is_limited = self._window_limited_at >= acknowledged.sent_us
            controller.on_ack(
                acknowledged.total_bytes,
                in_flight_bytes=in_flight_bytes,
                is_limited=is_limited,
                rtt_us=recovery.latest_rtt_us,
                sent_us=acknowledged.sent_us,
                now=now,
            )
            # Over a short path the send buffer is large enough as it is, and a larger one only memory.
            if is_limited and recovery.min_rtt_us > PACED_FROM_RTT_US:
                self.buffer.follow_window(controller.window_bytes)
        if acknowledged.probe_bytes:
            self.mtu.on_probe_acked(acknowledged.probe_bytes)
            controller.on_segment_size(self.mtu.datagram_bytes - HEADER_BYTES)
        if repaired_span and lost and not flights.sacked_packets:
            self.peer.on_hole_repaired(repaired_span, lost)

    @property
    def _is_window_closed(self) -> bool:
        """Whether the peer's window has no room worth a packet. That the peer acks a zero-window probe does not make
        the next one leave sooner: RFC 9293 §3.8.6.1 backs off until the window opens.
        """
        peer, segment_bytes = self.peer, self.mtu.datagram_bytes - HEADER_BYTES
        return peer.window_bytes < segment_bytes and peer.window_bytes < peer.sws_threshold_bytes(segment_bytes)

    @property
    def waits_for_reader(self) -> bool:
        """Whether data waits only for the peer's program to read: the window is closed, and the peer answers probes."""
        is_waiting = self.buffer.end_offset > self.buffer.acked_offset
        return is_waiting and self._is_window_closed and self._unanswered_timeouts <= _MAX_UNANSWERED_TIMEOUTS

    def _release(self) -> None:
        """Free the bytes before the first packet that is not acked: they are not needed any more."""
        queue = self.flights.queue
        self.buffer.release(queue[0].offset if queue else self.sent_offset)

    def _detect_losses(self, *, now: int) -> int:
        """Find losses among the packets that selective acks can report. libutp's reach 30 packets beyond the hole, and
        some peers send none; a packet further on may have arrived without being reported. Returns how many are lost.
        """
        flights = self.flights
        lost = 0
        if self._lost_through_us >= 0:
            lost = self._lose_timed_out(now=now)
            if self._lost_through_us >= 0:
                return lost
        reported_seq = max(flights.highest_sacked_seq, flights.una_seq + self.peer.sack_packets)
        if self._is_sack_complete:
            reported_seq = flights.next_seq - 1
        return lost + self._lose_overdue(self.recovery.lost_at, reported_seq, now)

    def _lose_timed_out(self, *, now: int) -> int:
        """Mark as lost what left by _lost_through_us, or as much of it as is done at once. Returns how many packets."""
        through_us = self._lost_through_us

        def lost_at(flight: Flight, last_seq: int, above: int) -> int | None:
            return 0 if flight.sent_us <= through_us else None

        lost = self._lose_overdue(lost_at, self.flights.next_seq - 1, now)
        if self._loss_check_at == NEVER:
            self._lost_through_us = -1
        return lost

    def _lose_overdue(self, lost_at: LostAt, reported_seq: int, now: int) -> int:
        """See Flights.lose_overdue(). Returns how many packets are lost."""
        lost, next_at = self.flights.lose_overdue(lost_at, reported_seq, now=now)
        self._loss_check_at = NEVER if next_at is None else next_at
        return self._on_lost(lost, now=now) if lost else 0

    def _lose(self, lost_at: Callable[[Flight], int | None], now: int, *, is_congestion: bool = True) -> int:
        """Mark as lost what counts as lost now, and note when the next one will. Returns how many packets."""
        lost, next_at = self.flights.lose(lost_at, now=now)
        if next_at is not None and next_at < self._loss_check_at:
            self._loss_check_at = next_at
        return self._on_lost(lost, now=now, is_congestion=is_congestion)

    def _on_lost(self, flights: list[Flight], *, now: int, is_congestion: bool = True) -> int:
        """These flights have been marked as lost: reduce the window, once per round trip. Returns how many packets."""
        reduces = False
        lost_probe = False
        lost = 0
        for flight in flights:
            lost += flight.count
            if flight.probe_bytes:
                flight.probe_bytes = 0
                lost_probe = True
            elif flight.seq >= self._recovery_seq:
                reduces = is_congestion
            if (
                flight.sends > 1
                and not flight.dont_fragment
                and flight.largest_payload_bytes + HEADER_BYTES > self.mtu.datagram_bytes
            ):
                self._drops_fragments = True  # possibly
        self.lost_packets += lost
        if lost_probe:
            self.mtu.on_probe_lost(now=now)
        if reduces:
            self._recovery_seq = self.flights.next_seq
            self._resend_at_once = True
            self.controller.on_loss(now=now)
        return lost

    # ── timers ──

    def deadline(self) -> int:
        """When to call on_timeout(), perhaps in the past, or NEVER. Of all timers the earliest."""
        if self._unfinished_ack is not None:
            return self._last_progress_at  # in the past: at once
        at = self.paced_until
        flights, recovery = self.flights, self.recovery
        if flights.queue or self.is_persisting:
            # As _rto_us(), without a call.
            rto_us = recovery.rto_us
            if rto_us > MAX_PERSIST_US and self.peer.window_bytes < self.mtu.datagram_bytes:
                rto_us = MAX_PERSIST_US
            if self._rto_from_us + rto_us < at:
                at = self._rto_from_us + rto_us
        if flights.queue:
            if self._loss_check_at < at:
                at = self._loss_check_at
            if self.user_timeout_us and self._last_progress_at + self.user_timeout_us < at:
                at = self._last_progress_at + self.user_timeout_us
            probe_at = self._last_sent_us + recovery.probe_timeout_us
            # As _may_probe_tail(), without a call.
            if probe_at < at and not (
                self._tail_probed
                or not self.is_peer_verified
                or recovery.srtt_us <= 0
                or recovery.timeouts_since_rtt
                or flights.lost_packets
                or flights.sacked_packets
            ):
                at = probe_at
        if self.closed_since != NEVER:
            at = min(at, self._closed_for_too_long_at())
        return at

    def _closed_for_too_long_at(self) -> int:
        """When the peer is given up because its window has been closed since closed_since, though it answers
        probes.
        """
        at = NEVER
        if self.user_timeout_us:
            at = self.closed_since + self.user_timeout_us  # as Linux does since 5.11: tcp_probe_timer()
        if self._orphaned_at != NEVER:
            at = min(at, max(self.closed_since, self._orphaned_at) + ORPHAN_CLOSED_WINDOW_US)
        return at

    def on_timeout(self, *, now: int) -> bool:
        """Do what is due. Returns False if the peer is given up (ETIMEDOUT). Next: SendHalf.next_flight()."""
        flights = self.flights
        if self._unfinished_ack is not None:
            self._finish_ack(self._unfinished_ack, now=now)
            return True
        if self.closed_since != NEVER and now >= self._closed_for_too_long_at():
            return False
        if not flights.packets:
            if self.is_persisting and now >= self._rto_from_us + self._rto_us():
                self._persist_due = True
                self._rto_from_us = now
                self.recovery.on_timeout()
            return True
        if now >= self._loss_check_at:
            self._detect_losses(now=now)
        if self.user_timeout_us and now >= self._last_progress_at + self.user_timeout_us:
            return False
        is_out_of_time = now >= self._rto_from_us + self._rto_us()
        if self._may_probe_tail() and (is_out_of_time or now >= self._last_sent_us + self.recovery.probe_timeout_us):
            self.tail_probe_due = self._tail_probed = True
            self._rto_from_us = now  # RFC 8985 §7.3: the timeout counts from the probe
        elif is_out_of_time:
            return self._on_retransmission_timeout(now=now)
        return True

    def _on_retransmission_timeout(self, *, now: int) -> bool:
        """The retransmission timeout ran out. Returns False if the peer is given up. RFC 6298 §5, RFC 8985 §6.3."""
        flights = self.flights
        recovery = self.recovery
        if self._is_forgetting_sacks or flights.queue[0].state is SACKED:
            # The first packet is not acked, so it has not arrived, although it was sacked: the peer has dropped it.
            self._is_forgetting_sacks = not flights.forget_sacks()
            if self._is_forgetting_sacks:
                return True
        self._rto_from_us = now
        lost = flights.lose_lone_probe()
        if lost is not None:
            self._on_lost(lost, now=now)  # docs/protocol.md §9: a lone MTU probe's timeout is not a loss
            return True
        self.timeouts += 1
        self._unanswered_timeouts += 1
        recovery.on_timeout()
        give_up_after_us = self.give_up_after_us
        if self._orphaned_at != NEVER and self.peer.window_bytes < self.mtu.datagram_bytes:
            give_up_after_us = ORPHAN_CLOSED_WINDOW_US
        is_given_up = self._unanswered_timeouts > MAX_TIMEOUTS and now - self._last_progress_at >= give_up_after_us
        if is_given_up and not self.user_timeout_us:
            return False
        if self.peer.window_bytes >= self.mtu.datagram_bytes:
            # Otherwise the packet is a zero-window probe, and a missing ack is no sign of congestion.
            self._recovery_seq = flights.next_seq
            self.controller.on_timeout(now=now)
        if recovery.backoff >= _BLACK_HOLE_TIMEOUTS and (
            self.mtu.floor_bytes < flights.queue[0].largest_payload_bytes + HEADER_BYTES <= self.mtu.datagram_bytes
        ):
            self.mtu.on_black_hole(now=now)
            self._drops_fragments = True  # possibly
            self.controller.on_segment_size(self.mtu.datagram_bytes - HEADER_BYTES)
        # RFC 8985 §6.3: what left less than a round trip ago may still arrive.
        self._on_lost(flights.lose_oldest(), now=now)
        self._lost_through_us = now - recovery.srtt_us - recovery.reorder_window_us
        self._lose_timed_out(now=now)
        self._resend_at_once = True
        return True

    def _rto_us(self) -> int:
        """The retransmission timeout, or behind a closed window the persist timer's, which grows no further."""
        rto_us = self.recovery.rto_us
        return min(rto_us, MAX_PERSIST_US) if self.peer.window_bytes < self.mtu.datagram_bytes else rto_us

    def _may_probe_tail(self) -> bool:
        """Whether a tail-loss probe is of use: everything is in flight, and none has left since the last progress."""
        flights, recovery = self.flights, self.recovery
        return not (
            self._tail_probed
            or not self.is_peer_verified
            or not flights.queue
            or recovery.srtt_us <= 0
            or recovery.timeouts_since_rtt
            or flights.lost_packets
            or flights.sacked_packets
        )

    def on_too_big(self, datagram_bytes: int, carries_bytes: int, *, now: int) -> None:
        """A datagram of this size does not pass (EMSGSIZE, ICMP): have smaller packets, and send again what is lost.

        datagram_bytes, carries_bytes   see PathMtu.on_too_big(); a datagram_bytes of 0: not known
        """
        mtu = self.mtu
        if not mtu.on_too_big(datagram_bytes or max(mtu.datagram_bytes, mtu.probe_bytes), carries_bytes, now=now):
            return
        self.controller.on_segment_size(mtu.datagram_bytes - HEADER_BYTES)
        limit, highest = mtu.datagram_bytes - HEADER_BYTES, mtu.highest_bytes

        def is_gone(flight: Flight) -> int | None:
            # What IP may fragment passes all the same. The rest is lost, and not because of congestion.
            return (
                0
                if flight.dont_fragment and (flight.largest_payload_bytes > limit or flight.probe_bytes > highest)
                else None
            )

        self._lose(is_gone, now, is_congestion=False)

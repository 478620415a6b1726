"""The direction from the peer to us: what arrived, when an ack is due, and the window that we advertise.

The engine handles all packets that have come before it asks for an ack (docs/design.md §2), so one ack covers a batch.
It is due at once where the sender waits for it: after a packet behind a hole, a hole that is filled, a duplicate, a
FIN after ours, or the second packet in order. The ack of a lone packet waits for ACK_DELAY_US, since a program's answer
carries it without a packet of its own; that of a FIN for FIN_ACK_DELAY_US, since our FIN does.

So does the ack of a whole message where the program answers each, as a client sends its next request. A message is a
burst whose last packet is shorter than the others: the sender had no more to send, so it does not wait for the ack. Its
ack waits only after a number of messages in a row were answered within ACK_DELAY_US before anything else came; once one
waits in vain, twice as many must be. TCP's interactive mode (Linux: inet_csk_enter_pingpong_mode) is the same.

Sources: docs/protocol.md §7, §8, §12; RFC 9293 §3.8.6.2.2 (silly windows), RFC 5681 §4.2 (when to ack).
"""

from __future__ import annotations

from typing import Final

from utpsocket.protocol.packet import MAX_SACK_BYTES, sack_bytes
from utpsocket.protocol.paws import Paws
from utpsocket.protocol.reassembly import DUPLICATE, IN_ORDER, OUT_OF_ORDER, OUT_OF_WINDOW, Reassembly
from utpsocket.protocol.times import ACK_DELAY_US, NEVER, TIMESTAMP_MASK

_ACK_EVERY_PACKETS: Final = 2  # RFC 5681 §4.2
# As many messages in a row must have been answered at once before the ack of one waits for its answer; at first, and at
# most. By feel: an ack that waits in vain costs 10 ms, so those must be rare.
_ANSWERS_WANTED: Final = 8
_MOST_ANSWERS_WANTED: Final = 4_096
# How long the ack of a FIN waits for our own FIN. By feel: a program that reads the end of file closes within some ten
# µs, and a program that waits for the end of its connection (SO_LINGER, the end of a process) waits for this.
FIN_ACK_DELAY_US: Final = 1_000
# A full packet's payload on Ethernet. Less room than this, or than half of a small buffer, is advertised as 0: RFC 9293
# §3.8.6.2.2.
_SEGMENT_BYTES: Final = 1_452
# By how much a closed window must open before it is announced: two segments, for the sender fills at least one.
_WINDOW_UPDATE_BYTES: Final = 2 * _SEGMENT_BYTES
# The announcement is repeated after this time, then after twice as long, and so on, _WINDOW_UPDATES times: if it were
# lost, a sender that never probes would wait for ever. By feel.
_WINDOW_UPDATE_AGAIN_US: Final = 1_000_000
_WINDOW_UPDATES: Final = 5
# The value of a timestamp difference that means "none" (docs/protocol.md §6).
_NO_SAMPLE: Final = 0
# Wireshark's dissector does not take a packet that advertises more for uTP. So no more is advertised until so much has
# been received that a larger window may be of use: by then a sender in slow start has half of that in flight, and the
# next round trip will have all of it.
WIRESHARK_WINDOW_BYTES: Final = 0x380000
_LARGE_WINDOW_AFTER_BYTES: Final = 2 << 20
# The most that an ack waits for a program that is known to answer late: libutp's delay of all acks, for which every
# implementation's retransmission timeout has room.
_LONGEST_ACK_DELAY_US: Final = 100_000
# After how many received packets a selective ack without a bit is sent, see sack(). By feel: early enough for a short
# transfer, and thrice, since each may be lost.
CAPABILITY_SACK_FROM_PACKETS: Final = 16
_CAPABILITY_SACK_AT_PACKETS: Final = (CAPABILITY_SACK_FROM_PACKETS, 256, 4_096)


class ReceiveHalf:
    """The direction from the peer to us. Times µs; a time `_at` is NEVER while there is none.

    reassembly           bytes received, in order or not
    paws                 refuses packets from 65,536 packets ago
    received_at          when the last acceptable packet came
    is_discarding        the application has closed its socket and will not read again
    ack_at               when an ack must leave
    ack_delay_us         how long the ack of a lone packet waits for data that can carry it
    unanswered_at        when a lone packet came whose ack has left without data, until data leaves; 0: none
    unacked_packets      packets received since the last ack left
    message_at           when a message's last packet came, until data leaves or anything comes; 0: none
    answered_messages    messages in a row that were answered at once
    difference_us        our clock less the timestamp of the last packet, at its receipt; sent back to the peer. 0: none
                         yet
    peer_difference_us   the same as measured by the peer, from its last packet; 0: none
    share_bytes          this connection's share of the UDP socket's buffer (engine/ports/receive_shares.py): no more is
                         advertised
    window_update_at     when the announcement of an opened window is repeated, unless data comes before
    received_packets, received_bytes, duplicate_packets, out_of_window_packets   for figures

    _advertised_bytes        the window in the last packet that left
    _answers_wanted          so many answered_messages have the ack of the next one wait
    _burst_at, _burst_bytes  when the first packet came since the last ack left, and its payload; 0 bytes: no message
                             can end here, since other packets came later, or something else wants an ack
    _packets_at_last_state   received_packets when the last STATE left
    _window_updates_left     how often that announcement is still repeated
    """

    __slots__ = (
        "_advertised_bytes",
        "_answers_wanted",
        "_burst_at",
        "_burst_bytes",
        "_packets_at_last_state",
        "_window_updates_left",
        "ack_at",
        "ack_delay_us",
        "answered_messages",
        "difference_us",
        "duplicate_packets",
        "is_discarding",
        "message_at",
        "out_of_window_packets",
        "paws",
        "peer_difference_us",
        "reassembly",
        "received_at",
        "received_bytes",
        "received_packets",
        "share_bytes",
        "unacked_packets",
        "unanswered_at",
        "window_update_at",
    )

    def __init__(self, capacity_bytes: int) -> None:
        self.reassembly = Reassembly(0, capacity_bytes)
        self.paws = Paws()
        self.is_discarding = False
        self.received_at = 0
        self.ack_at = NEVER
        self.ack_delay_us = ACK_DELAY_US
        self.unanswered_at = 0
        self.difference_us = _NO_SAMPLE
        self.peer_difference_us = _NO_SAMPLE
        self.share_bytes = capacity_bytes
        self.unacked_packets = 0
        self.message_at = 0
        self.answered_messages = 0
        self._answers_wanted = _ANSWERS_WANTED
        self._burst_at = self._burst_bytes = 0
        self._advertised_bytes = capacity_bytes
        self._packets_at_last_state = 0
        self.window_update_at = NEVER
        self._window_updates_left = 0
        self.received_packets = 0
        self.received_bytes = 0
        self.duplicate_packets = 0
        self.out_of_window_packets = 0

    @property
    def ack(self) -> int:
        """The last sequence number received in order. BEP 29 "ack_nr"."""
        return self.reassembly.next_seq - 1

    @property
    def window_bytes(self) -> int:
        """The window to advertise now. BEP 29 "wnd_size"; RFC 9293 §3.8.6.2.2."""
        reassembly = self.reassembly
        window = reassembly.capacity_bytes - reassembly.ready_bytes - reassembly.out_of_order_bytes
        if window < _SEGMENT_BYTES and (window <= 0 or window < reassembly.capacity_bytes // 2):
            return 0
        if window > self.share_bytes:
            window = self.share_bytes
        return self._limit_window(window) if window > WIRESHARK_WINDOW_BYTES else window

    @property
    def round_trip_us(self) -> int:
        """The last packets' delays in both directions together: the difference of the clocks cancels out. 0 if
        unknown.
        """
        return (
            (self.difference_us + self.peer_difference_us) & TIMESTAMP_MASK
            if self.difference_us and self.peer_difference_us
            else 0
        )

    def _limit_window(self, window: int) -> int:
        """The window, but no more than this connection's share and Wireshark's limit."""
        if window > self.share_bytes:
            window = self.share_bytes
        if window > WIRESHARK_WINDOW_BYTES and self.received_bytes < _LARGE_WINDOW_AFTER_BYTES:
            return WIRESHARK_WINDOW_BYTES
        return window

    def start(self, next_seq: int) -> None:
        """Have the stream begin with this sequence number: the peer's first one is known now."""
        self.reassembly.next_seq = next_seq
        self.paws.start(next_seq)

    def drop_if_wrapped(self, seq: int, timestamp_us: int, *, now: int) -> bool:
        """Whether a DATA or FIN that would be new is from 65,536 packets ago; then an ack of it is due."""
        if seq < self.reassembly.next_seq or not self.paws.drop_if_wrapped(timestamp_us, now=now):
            return False
        self._ack_at_once(now=now)
        return True

    def on_run(self, count: int, payloads: list[memoryview], total_bytes: int, *, now: int) -> None:
        """A clean run arrived in order. The same as a call of on_packet() for each of its `count` packets."""
        self.received_packets += count
        self.received_bytes += total_bytes
        self.window_update_at = NEVER
        if self.message_at:
            self._on_unanswered()
        self.reassembly.append_run(count, payloads, total_bytes)
        first_bytes, last_bytes = len(payloads[0]), len(payloads[-1])
        if first_bytes == last_bytes:
            self._in_order(count, first_bytes, now=now)
        else:
            self._in_order(count - 1, first_bytes, now=now)
            self._in_order(1, last_bytes, now=now)

    def on_lone(self, payload: memoryview, payload_bytes: int, *, now: int) -> None:
        """on_run() of one packet."""
        reassembly = self.reassembly
        self.received_packets += 1
        self.received_bytes += payload_bytes
        self.window_update_at = NEVER
        reassembly.next_seq += 1
        reassembly.ready.append(payload)
        reassembly.ready_bytes += payload_bytes
        if self.message_at:
            self._on_unanswered()
        if self.unacked_packets or self.ack_at != NEVER:
            self._in_order(1, payload_bytes, now=now)
        else:
            self.unacked_packets = 1
            self._burst_at, self._burst_bytes = now, payload_bytes
            self.ack_at = now + self.ack_delay_us

    def on_packet(
        self, seq: int, payload: memoryview, timestamp_us: int, *, is_fin: bool, is_finishing: bool = True, now: int
    ) -> None:
        """A DATA or FIN packet arrived.

        is_finishing   the application has finished its direction: no FIN of ours is to come that could carry the ack
        """
        reassembly = self.reassembly
        had_out_of_order = reassembly.sack_bits != 0
        insertion = reassembly.insert(seq, payload, is_fin=is_fin)
        if self.message_at:
            self._on_unanswered()
        if insertion is DUPLICATE:
            self.duplicate_packets += 1
            self._ack_at_once(now=now)
            return
        if insertion is OUT_OF_WINDOW:
            self.out_of_window_packets += 1
            self._ack_at_once(now=now)
            return
        self.received_packets += 1
        self.received_bytes += len(payload)
        self.window_update_at = NEVER
        if insertion is OUT_OF_ORDER or had_out_of_order or (is_fin and is_finishing):
            self.unacked_packets += 1
            self._ack_at_once(now=now)
        elif is_fin:
            self._burst_bytes = 0
            self._in_order(1, 0, now=now)
            self.ack_at = min(self.ack_at, now + FIN_ACK_DELAY_US)
        else:
            self._in_order(1, len(payload), now=now)
        if insertion is IN_ORDER:
            self.paws.on_in_order(reassembly.next_seq, timestamp_us, now=now)

    def _in_order(self, count: int, payload_bytes: int, *, now: int) -> None:
        """Packets of one size in order: an ack is due now for two of them, or in ack_delay_us for one, or in
        ACK_DELAY_US for a message that will be answered.
        """
        unacked_packets = self.unacked_packets
        self.unacked_packets = unacked_packets + count
        if not unacked_packets:
            is_first = self.ack_at == NEVER
            self._burst_at, self._burst_bytes = now, payload_bytes if is_first else 0
            if count >= _ACK_EVERY_PACKETS:
                self.ack_at = now
            elif is_first:
                self.ack_at = now + self.ack_delay_us
            return
        self.ack_at = now
        burst_bytes = self._burst_bytes
        if burst_bytes and (payload_bytes != burst_bytes or self._burst_at != now):
            self._burst_bytes = 0
            if payload_bytes < burst_bytes and self._burst_at == now:
                if count > 1:
                    self.answered_messages = 0
                    return
                self.message_at = now
                if self.answered_messages >= self._answers_wanted:
                    self.ack_at = now + ACK_DELAY_US

    def _ack_at_once(self, *, now: int) -> None:
        """Have an ack leave now, whatever else comes."""
        self.ack_at = now
        self._burst_bytes = 0

    def _on_unanswered(self) -> None:
        """Something came after a message before data has left."""
        self.message_at = self.answered_messages = 0

    def on_answer(self, *, now: int) -> None:
        """Data leaves that answers a message."""
        if now - self.message_at <= ACK_DELAY_US:
            self.answered_messages += 1
        else:
            self.answered_messages = 0
        self.message_at = 0

    def finish_delivery(self, count: int, *, now: int) -> None:
        """The application took `count` bytes. An ack is due at once if a closed window has opened, or if the window has
        grown by half the buffer: a sender that knows only of a little room sends in small steps.
        """
        reassembly, share_bytes = self.reassembly, self.share_bytes
        reassembly.finish_delivery(count)
        capacity_bytes = reassembly.capacity_bytes
        window = capacity_bytes - reassembly.ready_bytes - reassembly.out_of_order_bytes
        if window < 0:
            window = 0
        if window > share_bytes or window > WIRESHARK_WINDOW_BYTES:
            window = self._limit_window(window)
        advertised = self._advertised_bytes
        grown = window - advertised
        half = (capacity_bytes if capacity_bytes < share_bytes else share_bytes) // 2
        was_closed = advertised < _WINDOW_UPDATE_BYTES and grown >= min(half, _WINDOW_UPDATE_BYTES)
        if grown >= half or was_closed:
            self._ack_at_once(now=now)
        if was_closed:
            self._window_updates_left = _WINDOW_UPDATES
            self.window_update_at = now + _WINDOW_UPDATE_AGAIN_US

    def on_time(self, *, now: int) -> None:
        """Repeat the announcement of an opened window if it is time. docs/protocol.md §7."""
        if now >= self.window_update_at:
            self._ack_at_once(now=now)
            self._window_updates_left -= 1
            wait_us = _WINDOW_UPDATE_AGAIN_US << (_WINDOW_UPDATES - self._window_updates_left)
            self.window_update_at = now + wait_us if self._window_updates_left else NEVER

    def sack(self) -> bytes:
        """The selective ack to put on a STATE; empty if nothing is out of order.

        After 16, 256 and 4,096 packets it is one of full length in which no bit is set. Other implementations ignore
        it; an utpsocket at the other side learns that we hold many packets out of order. docs/protocol.md §5, §7.
        """
        bits = self.reassembly.sack_bits
        if bits:
            return sack_bytes(bits)
        for packets in _CAPABILITY_SACK_AT_PACKETS:
            if self._packets_at_last_state < packets <= self.received_packets:
                return bytes(MAX_SACK_BYTES)
        return b""

    def take_ack(self, *, is_state: bool = False) -> int:
        """A packet with our latest ack leaves: returns the window in it. As window_bytes and on_ack_sent().

        is_state   it is a STATE with our sack()
        """
        if is_state:
            self._packets_at_last_state = self.received_packets
            if self.unacked_packets == 1:
                self.unanswered_at = self.received_at
                self.ack_delay_us = ACK_DELAY_US  # if it was longer, it was too short all the same
            elif self.message_at and self.answered_messages >= self._answers_wanted:
                # It has waited in vain.
                self._on_unanswered()
                self._answers_wanted = min(2 * self._answers_wanted, _MOST_ANSWERS_WANTED)
        reassembly = self.reassembly
        window = reassembly.capacity_bytes - reassembly.ready_bytes - reassembly.out_of_order_bytes
        if window < _SEGMENT_BYTES or window > WIRESHARK_WINDOW_BYTES:
            window = self.window_bytes
        elif window > self.share_bytes:
            window = self.share_bytes
        self.ack_at = NEVER
        self.unacked_packets = 0
        self._advertised_bytes = window
        return window

    def on_late_answer(self, *, now: int) -> None:
        """Data leaves, too late to carry the ack of a lone packet: the next one's waits for longer if data that takes
        as long can then carry it.
        """
        took_us = now - self.unanswered_at
        self.unanswered_at = 0
        if took_us <= _LONGEST_ACK_DELAY_US:
            self.ack_delay_us = min(max(2 * took_us, ACK_DELAY_US), _LONGEST_ACK_DELAY_US)

    def on_ack_sent(self, window_bytes: int) -> None:
        """A packet with our latest ack and this window leaves."""
        self.ack_at = NEVER
        self.unacked_packets = 0
        self._advertised_bytes = window_bytes

    def discard(self) -> None:
        """The application will not read again: forget what it has not read."""
        self.is_discarding = True
        self.window_update_at = NEVER
        self.reassembly.clear()

    def _check(self) -> None:
        """Invariants, for tests and the simulator."""
        self.reassembly._check()
        assert self.unacked_packets == 0 or self.ack_at != NEVER

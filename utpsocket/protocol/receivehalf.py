"""The receiving half: what arrived, which acknowledgement is due, and the window we advertise.

It answers the connection's question "must an ack leave, and when?" Facts: acks are one per drained batch because
the engine handles a whole batch before it asks (docs/design.md §2). At once for whatever tells the sender news it waits
for: a packet ahead of a hole, a filled hole, a duplicate, a FIN, two packets or more. A lone packet's ack waits a
little, since the answer to it carries the ack for free.

Sources: docs/protocol.md §7, §8, §12; RFC 9293 §3.8.6.2.2 (silly windows), RFC 5681 §4.2 (when to ack).
"""

from __future__ import annotations

from typing import Final

from utpsocket.protocol.packet import MAX_SACK_BYTES, sack_bytes
from utpsocket.protocol.paws import Paws
from utpsocket.protocol.reassembly import DUPLICATE, IN_ORDER, OUT_OF_ORDER, OUT_OF_WINDOW, Reassembly
from utpsocket.protocol.times import MAX_ACK_DELAY_US, NEVER, TIMESTAMP_MASK

_ACK_EVERY_PACKETS: Final = 2  # RFC 5681 §4.2
_WINDOW_UPDATE_BYTES: Final = 2 * 1_452  # two segments: RFC 9293 §3.8.6.2.2's "Fr * RCV.BUFF" for large buffers
_SEGMENT_BYTES: Final = 1_452  # less room than this, or than half of a small buffer, is none: silly windows
_WINDOW_UPDATE_AGAIN_US: Final = 1_000_000  # then doubled: a lost update would hang a sender that never probes
_WINDOW_UPDATES: Final = 5
_NO_SAMPLE: Final = 0
# Wireshark takes a packet that advertises more for none of uTP's. Only what receives much can need more.
WIRESHARK_WINDOW_BYTES: Final = 0x380000
_LARGE_WINDOW_AFTER_BYTES: Final = 16 << 20
_CAPABILITY_SACK_AT_PACKETS: Final = (16, 256, 4_096)


class ReceiveHalf:
    """Everything about the direction from the peer to us. All times µs."""

    __slots__ = (
        "_advertised_bytes",
        "_packets_at_last_state",
        "_window_updates_left",
        "ack_at",
        "difference_us",
        "duplicate_packets",
        "is_discarding",
        "out_of_window_packets",
        "paws",
        "peer_difference_us",
        "reassembly",
        "received_at",
        "received_bytes",
        "received_packets",
        "share_bytes",
        "unacked_packets",
        "window_update_at",
    )

    def __init__(self, capacity_bytes: int) -> None:
        self.reassembly = Reassembly(0, capacity_bytes)
        self.paws = Paws()
        self.is_discarding = False  # the application will never read again
        self.received_at = 0  # when the last packet of the peer's came that was acceptable
        self.ack_at = NEVER
        self.difference_us = _NO_SAMPLE  # docs/protocol.md §6: frozen at receipt
        self.peer_difference_us = _NO_SAMPLE  # what the peer measured the same way
        self.share_bytes = capacity_bytes  # of memory shared with other connections: no more is advertised
        self.unacked_packets = 0
        self._advertised_bytes = capacity_bytes
        self._packets_at_last_state = 0
        self.window_update_at = NEVER  # when a window that opened is said once more, unless data has come
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
        """What to advertise now. BEP 29 "wnd_size"; RFC 9293 §3.8.6.2.2."""
        reassembly = self.reassembly
        window = reassembly.window_bytes
        if window < _SEGMENT_BYTES and window < reassembly.capacity_bytes // 2:
            return 0
        return self._bounded(window)

    @property
    def round_trip_us(self) -> int:
        """What the last packets of both sides took together: their clocks cancel out. 0 if unknown."""
        return (
            (self.difference_us + self.peer_difference_us) & TIMESTAMP_MASK
            if self.difference_us and self.peer_difference_us
            else 0
        )

    def _bounded(self, window: int) -> int:
        if window > self.share_bytes:
            window = self.share_bytes
        if window > WIRESHARK_WINDOW_BYTES and self.received_bytes < _LARGE_WINDOW_AFTER_BYTES:
            return WIRESHARK_WINDOW_BYTES
        return window

    def start(self, next_seq: int) -> None:
        """The peer's first sequence number is known."""
        self.reassembly.next_seq = next_seq
        self.paws.start(next_seq)

    def drop_if_wrapped(self, seq: int, timestamp_us: int, *, now: int) -> bool:
        """Whether a DATA or FIN packet that would be new is of another age, when the 16 bits meant another number."""
        if seq < self.reassembly.next_seq or not self.paws.drop_if_wrapped(timestamp_us, now=now):
            return False
        self.ack_at = now
        return True

    def on_run(self, count: int, payloads: list[memoryview], total_bytes: int, *, now: int) -> None:
        """A clean run arrived exactly in order; the same as `count` calls of on_packet()."""
        self.received_packets += count
        self.received_bytes += total_bytes
        self.window_update_at = NEVER
        self.reassembly.append_run(count, payloads, total_bytes)
        self._in_order(count, now=now)

    def on_packet(self, seq: int, payload: memoryview, timestamp_us: int, *, is_fin: bool, now: int) -> None:
        """A DATA or FIN packet arrived."""
        reassembly = self.reassembly
        had_out_of_order = reassembly.has_out_of_order
        insertion = reassembly.insert(seq, payload, is_fin=is_fin)
        if insertion is DUPLICATE:
            self.duplicate_packets += 1
            self.ack_at = now
            return
        if insertion is OUT_OF_WINDOW:
            self.out_of_window_packets += 1
            self.ack_at = now
            return
        self.received_packets += 1
        self.received_bytes += len(payload)
        self.window_update_at = NEVER
        if insertion is OUT_OF_ORDER or had_out_of_order or is_fin:
            self.unacked_packets += 1
            self.ack_at = now
        else:
            self._in_order(1, now=now)
        if insertion is IN_ORDER:
            self.paws.on_in_order(reassembly.next_seq, timestamp_us, now=now)

    def _in_order(self, count: int, *, now: int) -> None:
        self.unacked_packets += count
        if self.unacked_packets >= _ACK_EVERY_PACKETS:
            self.ack_at = now
        elif self.ack_at == NEVER:
            self.ack_at = now + MAX_ACK_DELAY_US

    def delivered(self, count: int, *, now: int) -> None:
        """The application took `count` bytes. A window that was all but closed and opened is said at once; one
        that grew by half the buffer too, or a sender that saw little would go on in small steps.
        """
        reassembly = self.reassembly
        reassembly.delivered(count)
        advertised, window = self._advertised_bytes, self._bounded(reassembly.window_bytes)
        grown = window - advertised
        half = min(reassembly.capacity_bytes, self.share_bytes) // 2
        was_closed = advertised < _WINDOW_UPDATE_BYTES and grown >= min(half, _WINDOW_UPDATE_BYTES)
        if grown >= half or was_closed:
            self.ack_at = now
        if was_closed:
            self._window_updates_left = _WINDOW_UPDATES
            self.window_update_at = now + _WINDOW_UPDATE_AGAIN_US

    def on_time(self, *, now: int) -> None:
        """It may be time to say again that the window is open. docs/protocol.md §7."""
        if now >= self.window_update_at:
            self.ack_at = now
            self._window_updates_left -= 1
            wait_us = _WINDOW_UPDATE_AGAIN_US << (_WINDOW_UPDATES - self._window_updates_left)
            self.window_update_at = now + wait_us if self._window_updates_left else NEVER

    def sack(self) -> bytes:
        """The selective ack to put on a STATE, empty when there is nothing ahead of a hole.

        Once in a while all zeros in full length: harmless to every implementation, and it proves to one like
        ourselves that this receiver can hold as many packets as it has room for (docs/protocol.md §5, §7).
        """
        bits = self.reassembly.sack_bits
        if bits:
            return sack_bytes(bits)
        for packets in _CAPABILITY_SACK_AT_PACKETS:
            if self._packets_at_last_state < packets <= self.received_packets:
                return bytes(MAX_SACK_BYTES)
        return b""

    def on_ack_sent(self, window_bytes: int) -> None:
        """A packet with our current ack and this window leaves."""
        self.ack_at = NEVER
        self.unacked_packets = 0
        self._advertised_bytes = window_bytes

    def on_state_sent(self) -> None:
        """That packet was a bare STATE, with our sack()."""
        self._packets_at_last_state = self.received_packets

    def discard(self) -> None:
        """The application will never read again."""
        self.is_discarding = True
        self.window_update_at = NEVER
        self.reassembly.clear()

    def _check(self) -> None:
        """Invariants, for tests and the simulator."""
        self.reassembly._check()
        assert self.unacked_packets == 0 or self.ack_at != NEVER

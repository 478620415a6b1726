"""What the peer has room for: its window, and how many packets it keeps out of order.

The window is in every packet. How many packets the peer keeps behind a hole is in none: it is assumed from what
implementations are known to do, and learned from what the peer drops.

Sources: RFC 9293 §3.8.6.2.1 (no silly windows), docs/protocol.md §7.
"""

from __future__ import annotations

from typing import Final

from utpsocket.protocol.packet import MAX_SACK_BYTES

DEFAULT_REORDER_PACKETS: Final = 900  # libtorrent holds about 950, libutp 1,024: docs/protocol.md §4, §7
# For a peer that has shown that it is an utpsocket: reassembly.MAX_OUT_OF_ORDER_PACKETS, less some for what it has not
# acked yet.
LARGE_REORDER_PACKETS: Final = 8_000
_MIN_REORDER_PACKETS: Final = 128  # half of the smallest buffer known, anacrolix' 256
_LIBUTP_SACK_BYTES: Final = 4
_LIBUTP_SACK_PACKETS: Final = 30  # its last two bits are never set
# So many packets lost in one piece behind a hole, twice at the same distance, mean that the peer's buffer ends there.
# By feel: a queue on the path drops fewer in one piece, or at another distance.
_STALL_PACKETS: Final = 32


class PeerLimits:
    """What the peer can take.

    window_bytes               the window that it last advertised
    largest_window_bytes       the largest that it ever advertised
    reorder_packets            most packets that may be in flight, since it keeps no more behind a hole
    has_large_reorder_buffer   it has shown that it keeps LARGE_REORDER_PACKETS
    sack_packets               how many packets beyond a hole its selective acks reach, as far as seen; 0: it sends none
    reports_delay              it has sent a timestamp difference. The JS utp never does, and takes extensions of DATA
                               for payload (docs/protocol.md §5, §6)
    _stall_span                the last distance seen, see on_hole_repaired(); 0: none
    """

    __slots__ = (
        "_stall_span",
        "has_large_reorder_buffer",
        "largest_window_bytes",
        "reorder_packets",
        "reports_delay",
        "sack_packets",
        "window_bytes",
    )

    def __init__(self) -> None:
        self.window_bytes = 0
        self.largest_window_bytes = 0
        self.reorder_packets = DEFAULT_REORDER_PACKETS
        self.sack_packets = 0
        self.reports_delay = False
        self.has_large_reorder_buffer = False
        self._stall_span = 0

    def on_window(self, window_bytes: int) -> None:
        """The peer advertised this window."""
        self.window_bytes = window_bytes
        if window_bytes > self.largest_window_bytes:
            self.largest_window_bytes = window_bytes

    def sws_threshold_bytes(self, segment_bytes: int) -> int:
        """The least room that is filled: a full segment, or half of the largest window if that is less."""
        half = self.largest_window_bytes // 2
        return segment_bytes if half >= segment_bytes else max(1, half)

    def on_sack(self, sack_bytes: int) -> None:
        """A selective ack of this length came. One of full length means that the peer keeps LARGE_REORDER_PACKETS."""
        packets = _LIBUTP_SACK_PACKETS if sack_bytes == _LIBUTP_SACK_BYTES else sack_bytes * 8
        if packets > self.sack_packets:
            self.sack_packets = packets
            if sack_bytes >= MAX_SACK_BYTES:
                self.has_large_reorder_buffer = True
                self.reorder_packets = LARGE_REORDER_PACKETS

    def on_hole_repaired(self, span: int, lost_packets: int) -> None:
        """A retransmission has filled a hole, the ack has moved by `span` packets, and `lost_packets` behind them are
        lost.

        A full queue on the path drops packets at any distance from the hole, a full reorder buffer always at the same.
        So the limit is set when the same distance is seen twice.
        """
        if self.has_large_reorder_buffer or lost_packets < _STALL_PACKETS or span < _MIN_REORDER_PACKETS:
            return
        if abs(span - self._stall_span) <= 2:
            self.reorder_packets = min(self.reorder_packets, span - 1)
        self._stall_span = span

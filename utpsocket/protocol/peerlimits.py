"""How much the peer can take: its window, and how many packets ahead of a hole it can hold.

Separate because it is what we believe about somebody else's memory. The window is told in every packet; the depth of
the reorder buffer never is, and has to be guessed from who the peer may be, or learned from what it dropped.

Sources: RFC 9293 §3.8.6.2.1 (no silly windows), docs/protocol.md §7.
"""

from __future__ import annotations

from typing import Final

from utpsocket.protocol.packet import MAX_SACK_BYTES

FOREIGN_REORDER_PACKETS: Final = 900  # libtorrent holds about 950, libutp 1,024: docs/protocol.md §4, §7
PROVEN_REORDER_PACKETS: Final = 8_000  # reassembly.MAX_OUT_OF_ORDER_PACKETS, less what is on its way
_MIN_REORDER_PACKETS: Final = 128  # half of the smallest buffer known, anacrolix' 256
_LIBUTP_SACK_BYTES: Final = 4
_LIBUTP_SACK_PACKETS: Final = 30  # its last two bits are never set
_STALL_PACKETS: Final = 32  # so many lost in one piece behind a repaired hole are no accident, if it happens again


class PeerLimits:
    """What the peer can take.

    window_bytes            as it last said
    largest_window_bytes    it ever said
    reorder_packets         most packets that may be under way: so far ahead of a hole they are kept
    sack_packets            how far ahead of a hole its selective acks reach, as far as seen; 0: it sends none
    reports_delay           it has sent a timestamp difference. The one implementation that takes extensions of DATA for
                            payload never does (JS utp: docs/protocol.md §5, §6)
    """

    __slots__ = (
        "_stall_span",
        "is_reorder_proven",
        "largest_window_bytes",
        "reorder_packets",
        "reports_delay",
        "sack_packets",
        "window_bytes",
    )

    def __init__(self) -> None:
        self.window_bytes = 0
        self.largest_window_bytes = 0
        self.reorder_packets = FOREIGN_REORDER_PACKETS
        self.sack_packets = 0
        self.reports_delay = False
        self.is_reorder_proven = False
        self._stall_span = 0

    def on_window(self, window_bytes: int) -> None:
        """The peer advertised this much."""
        self.window_bytes = window_bytes
        if window_bytes > self.largest_window_bytes:
            self.largest_window_bytes = window_bytes

    def sws_threshold_bytes(self, segment_bytes: int) -> int:
        """The least room worth filling: a segment, or half of the largest window of a peer that holds little more."""
        half = self.largest_window_bytes // 2
        return segment_bytes if half >= segment_bytes else max(1, half)

    def on_sack(self, sack_bytes: int) -> None:
        """A selective ack of this length came. One of full length says that the peer is one that holds many."""
        packets = _LIBUTP_SACK_PACKETS if sack_bytes == _LIBUTP_SACK_BYTES else sack_bytes * 8
        if packets > self.sack_packets:
            self.sack_packets = packets
            if sack_bytes >= MAX_SACK_BYTES:
                self.is_reorder_proven = True
                self.reorder_packets = PROVEN_REORDER_PACKETS

    def on_hole_repaired(self, span: int, lost_packets: int) -> None:
        """A retransmission filled the hole, the ack jumped by `span` packets, and all that follow were lost.

        A full queue on the path ends where it likes; a full reorder buffer always at the same distance. Seen twice,
        it is believed.
        """
        if self.is_reorder_proven or lost_packets < _STALL_PACKETS or span < _MIN_REORDER_PACKETS:
            return
        if abs(span - self._stall_span) <= 2:
            self.reorder_packets = min(self.reorder_packets, span - 1)
        self._stall_span = span

"""The size of packets: a search for the largest datagram that the path carries, by probes that carry data.

All sizes are datagrams (UDP payload) in bytes, and multiples of eight, so that the headers of a run can be read and
written a column at a time (docs/performance.md §5).

A datagram that arrives shows that the path carries its size only if IP must not fragment it. So confirmed_bytes grows
by probes alone, and until then packets of the starting size may be fragmented, so that any path carries them.

A packet's boundaries are fixed once it is sent: uTP does not re-segment. Many paths drop fragments (RFC 8900 §3), so
data in a packet that is too large for such a path could never be sent again. So the starting size is one that every
path carries, and a probe is a packet of the size in use with padding: if it is lost, its data is sent again without.
Where the first hop is the whole path, the starting size may be larger.

Example, Ethernet: 544 bytes at first; probes of 1,232, 1,400 and 1,472 bytes arrive; 1,472 is the ceiling.

Sources: RFC 4821 and RFC 8899 (search by padded probe packets), BEP 29 "packet sizes", docs/protocol.md §10.
"""

from __future__ import annotations

from typing import Final

from utpsocket.protocol.known_path import KnownPath
from utpsocket.protocol.packet import MAX_PADDING_BYTES

FLOOR_BYTES: Final = 544  # 576, which every IPv4 host takes (RFC 791), less 28 of headers, down to a multiple of eight
START_IPV4_BYTES: Final = 1_400  # where the path is this machine; libutp's largest is 1,402
FLOOR_IPV6_BYTES: Final = 1_232  # 1,280, the least every IPv6 link carries, less 48 of headers
CEILING_IPV4_BYTES: Final = 1_472  # Ethernet's 1,500 less 28 of headers; other implementations may read no more at once
CEILING_IPV6_BYTES: Final = 1_448  # 1,500 less 48 of headers, down to a multiple of eight
SEARCH_AGAIN_US: Final = 600_000_000  # ten minutes: RFC 8899 PMTU_RAISE_TIMER
_DONE_WITHIN_BYTES: Final = 16  # the search ends when so few bytes are between what passes and what does not; by feel
_MAX_PROBES: Final = 3  # RFC 8899 MAX_PROBES
# A probe leaves after so many full packets: among others, so that its loss is seen and is a small part. By feel.
_WAIT_FOR_PACKETS: Final = 16
_NO_PROBE_SOON: Final = 1 << 30  # more packets than one flight has
# Sizes that are tried before the ceiling: most tunnels carry them.
_SEARCH_STEPS: Final = (FLOOR_IPV6_BYTES, START_IPV4_BYTES)


class PathMtu:
    """The datagram size in use, and the search for a larger one.

    datagram_bytes        the size to send now
    confirmed_bytes       the largest that has arrived unfragmentable
    probe_bytes           the size of the probe in flight, 0 for none
    floor_bytes           what every path is taken to carry
    highest_bytes         the largest size that is not known to be too large
    known                 what other connections to the same peer have confirmed; None: there are none
    packets_since_probe   packets of the size in use that left since the last probe; written by SendHalf

    _ceiling_bytes    what is never exceeded
    _likely_bytes     a size worth a probe before halving, 0 for none
    _failed_probes    how many of the present size were lost
    _search_at        when the search begins again from the ceiling
    """

    __slots__ = (
        "_ceiling_bytes",
        "_failed_probes",
        "_likely_bytes",
        "_search_at",
        "confirmed_bytes",
        "datagram_bytes",
        "floor_bytes",
        "highest_bytes",
        "known",
        "packets_since_probe",
        "probe_bytes",
    )

    def __init__(
        self, start_bytes: int, ceiling_bytes: int, known: KnownPath | None = None, *, floor_bytes: int = FLOOR_BYTES
    ) -> None:
        self.known = known
        self._ceiling_bytes = max(FLOOR_BYTES, ceiling_bytes) & ~7
        self.floor_bytes = self.confirmed_bytes = min(floor_bytes & ~7, self._ceiling_bytes)
        self.datagram_bytes = max(self.floor_bytes, min(start_bytes & ~7, self._ceiling_bytes))
        self.probe_bytes = 0
        self.highest_bytes = self._ceiling_bytes
        self._likely_bytes = self.datagram_bytes
        self._failed_probes = 0
        self._search_at = 0
        self.packets_since_probe = 0
        self.adopt_known()

    def adopt_known(self) -> bool:
        """Use the size that another connection has confirmed, unless this one has found that it is too large. Returns
        whether datagram_bytes has changed.
        """
        known = self.known
        if (
            known is None
            or known.confirmed_bytes <= self.confirmed_bytes
            or not self.datagram_bytes <= known.confirmed_bytes <= self.highest_bytes
        ):
            return False
        self.confirmed_bytes = self.datagram_bytes = known.confirmed_bytes
        return True

    def is_confirmed(self, datagram_bytes: int) -> bool:
        """Whether a datagram of this size may leave with don't-fragment. One of the floor's size is still sent
        fragmentable: it does no harm, and some path may carry less.
        """
        return self.floor_bytes < datagram_bytes <= self.confirmed_bytes

    def packets_before_probe(self, *, now: int) -> int:
        """How many full packets to send before the next probe; 0: the next packet should be one, of probe_size()."""
        if self.probe_bytes or not self._is_search_due(now=now):
            return _NO_PROBE_SOON
        return max(0, _WAIT_FOR_PACKETS - self.packets_since_probe)

    def _is_search_due(self, *, now: int) -> bool:
        """Whether there is a size worth a probe now."""
        if self.highest_bytes - self.confirmed_bytes >= _DONE_WITHIN_BYTES:
            return True
        return self.highest_bytes < self._ceiling_bytes and now >= self._search_at

    def probe_size(self) -> int:
        """The size to probe now: first what tunnels carry, then the ceiling, which most paths carry; then the starting
        size or what an ICMP message said; then by halves. It is no more than padding can add.
        """
        return min(self._next_size(), self.datagram_bytes + MAX_PADDING_BYTES & ~7)

    def _next_size(self) -> int:
        if self.highest_bytes - self.confirmed_bytes < _DONE_WITHIN_BYTES:
            self.highest_bytes = self._ceiling_bytes  # the path may have changed: the search begins again
        if self.datagram_bytes <= self.confirmed_bytes:
            for step in _SEARCH_STEPS:
                if self.confirmed_bytes < step < self.highest_bytes:
                    return step
        if self.highest_bytes == self._ceiling_bytes:
            return self._ceiling_bytes
        if self.confirmed_bytes < self._likely_bytes <= self.highest_bytes:
            return self._likely_bytes
        return (self.confirmed_bytes + self.highest_bytes + 8) // 2 & ~7

    def on_probe_sent(self, size: int) -> None:
        """A probe of `size` bytes left."""
        self.probe_bytes = size
        self.packets_since_probe = 0

    def on_probe_acked(self, size: int) -> None:
        """A probe of this size arrived."""
        self.probe_bytes = 0
        self._failed_probes = 0
        if size > self.confirmed_bytes and size <= self.highest_bytes:
            self.confirmed_bytes = self.datagram_bytes = size
            if self.known is not None:
                self.known.confirmed_bytes = max(size, self.known.confirmed_bytes)

    def on_probe_lost(self, *, now: int) -> None:
        """The probe in flight was lost, perhaps for another reason than its size: after three the size is too large."""
        size, self.probe_bytes = self.probe_bytes, 0
        if size:
            self._failed_probes += 1
            if self._failed_probes >= _MAX_PROBES:
                if size == self._likely_bytes:
                    self._likely_bytes = 0
                self._lower_highest(size - 8, now=now)

    def on_too_big(self, datagram_bytes: int, carries_bytes: int, *, now: int) -> bool:
        """The kernel, or a router by ICMP, says that a datagram does not pass. Returns whether a size has changed.

        datagram_bytes   its size
        carries_bytes    the largest size that passes, 0 if not known. RFC 1191 §6: one below the floor is ignored
        """
        if datagram_bytes <= self.floor_bytes or datagram_bytes > self._ceiling_bytes:
            return False
        limit = datagram_bytes - 8
        if self.floor_bytes <= carries_bytes < datagram_bytes:
            limit = carries_bytes
            self._likely_bytes = limit & ~7
        if limit >= self.highest_bytes:
            return False
        if self.probe_bytes > limit:
            self.probe_bytes = 0
        self._lower_highest(limit, now=now)
        return True

    def on_black_hole(self, *, now: int) -> None:
        """Packets of the size in use are lost again and again: back to the floor. RFC 8899 §4.3."""
        if self.datagram_bytes > self.floor_bytes:
            self._lower_highest(self.datagram_bytes - 8, now=now)
            self.datagram_bytes = self.confirmed_bytes = self.floor_bytes
            self.probe_bytes = 0

    def _lower_highest(self, highest: int, *, now: int) -> None:
        """No size above `highest` passes."""
        self._failed_probes = 0
        self.highest_bytes = max(self.floor_bytes, highest & ~7)
        if self.known is not None and self.known.confirmed_bytes > self.highest_bytes:
            self.known.confirmed_bytes = 0
        self._search_at = now + SEARCH_AGAIN_US
        if self.confirmed_bytes > self.highest_bytes:
            self.confirmed_bytes = self.floor_bytes
        self.datagram_bytes = min(self.datagram_bytes, self.highest_bytes)

    def _check(self) -> None:
        """Invariants, for tests and the simulator."""
        assert (
            self.floor_bytes <= self.confirmed_bytes <= self.datagram_bytes <= self.highest_bytes <= self._ceiling_bytes
        )
        assert self.datagram_bytes % 8 == 0 and self.highest_bytes % 8 == 0

"""How large a packet this path carries: a search by probes, beside the data and never in its way.

Separate because it only knows sizes: it says which size to use and which to try, and is told what became of it.
All sizes are datagrams (UDP payload) in bytes and multiples of eight, so that runs of them can be read and written a
column at a time (PERFORMANCE.md, trick 4).

Sources: RFC 4821 and RFC 8899 (search by probe packets), PROTOCOL.md §10.
"""

from __future__ import annotations

from typing import Final

FLOOR_BYTES: Final = 544  # BEP 29 / libtorrent's 548, down to a multiple of eight
START_IPV4_BYTES: Final = 1_400  # libutp's ceiling is 1,402
START_IPV6_BYTES: Final = 1_232  # 1,280, the least every IPv6 link carries, less 48 of headers
CEILING_IPV4_BYTES: Final = 1_472  # Ethernet's 1,500 less 28 of headers; foreign receive buffers may hold no more
CEILING_IPV6_BYTES: Final = 1_448  # 1,452, down to a multiple of eight
_DONE_WITHIN_BYTES: Final = 16  # PROTOCOL.md §10
_MAX_PROBES: Final = 3  # RFC 8899 MAX_PROBES
SEARCH_AGAIN_US: Final = 600_000_000  # ten minutes: RFC 8899 PMTU_RAISE_TIMER
_WAIT_FOR_PACKETS: Final = 16  # a probe travels surrounded by other packets, or its loss would tell nothing


class PathMtu:
    """The datagram size in use, and the search for a larger one.

    size        bytes of a datagram to send now
    is_proven   whether a datagram of this size has been acked: then it may travel unfragmentable
    """

    __slots__ = (
        "_ceiling",
        "_failed",
        "_highest",
        "_packets",
        "_search_at",
        "floor",
        "is_proven",
        "probe",
        "size",
    )

    def __init__(self, start_bytes: int, ceiling_bytes: int) -> None:
        self._ceiling = max(FLOOR_BYTES, ceiling_bytes) & ~7
        self.size = min(start_bytes & ~7, self._ceiling)
        self.floor = min(FLOOR_BYTES, self.size)
        self.is_proven = False
        self.probe = 0  # bytes of the probe under way, 0 when none is
        self._highest = self._ceiling  # the largest size not known to be too large
        self._failed = 0
        self._search_at = 0
        self._packets = 0

    def on_sent(self, packets: int) -> None:
        """Ordinary full packets left."""
        self._packets += packets

    def next_probe(self, *, now: int) -> int:
        """The size of a probe that may leave now, or 0."""
        if self.probe or not self.is_proven or self._packets < _WAIT_FOR_PACKETS:
            return 0
        if self._highest - self.size < _DONE_WITHIN_BYTES:
            if self._highest == self._ceiling or now < self._search_at:
                return 0
            self._highest = self._ceiling
        if self._highest == self._ceiling:
            return self._ceiling  # most paths carry the ceiling: one probe instead of a search
        return (self.size + self._highest + 8) // 2 & ~7

    def on_probe_sent(self, size: int) -> None:
        """A probe of `size` left."""
        self.probe = size
        self._packets = 0

    def on_acked(self, datagram_bytes: int) -> None:
        """A datagram of this size arrived."""
        if datagram_bytes >= self.size:
            self.is_proven = True
        if datagram_bytes > self.size:
            self.size = datagram_bytes
            self._highest = max(self._highest, datagram_bytes)
        if self.probe and datagram_bytes >= self.probe:
            self.probe = 0
            self._failed = 0

    def on_probe_lost(self, *, now: int) -> None:
        """The probe under way did not arrive, perhaps for another reason than its size."""
        size, self.probe = self.probe, 0
        self._failed += 1
        if self._failed >= _MAX_PROBES:
            self._lower(size, now=now)

    def on_too_big(self, datagram_bytes: int, carries_bytes: int, *, now: int) -> None:
        """The kernel or a router says a datagram of this size does not pass; one of `carries_bytes` does (0:
        it did not say). RFC 1191 §6: a claim below the floor is ignored.
        """
        if datagram_bytes <= self.floor or datagram_bytes > self._ceiling:
            return
        self.probe = 0
        limit = datagram_bytes - 8
        if self.floor <= carries_bytes < datagram_bytes:
            limit = carries_bytes
        self._lower(limit + 8 & ~7, now=now)

    def on_black_hole(self, *, now: int) -> None:
        """Packets of the size in use vanish, again and again. RFC 8899 §4.3."""
        if self.size > self.floor:
            self._highest = max(self.floor, self.size - 8)
            self.size = self.floor
            self.is_proven = False
            self._search_at = now + SEARCH_AGAIN_US

    def _lower(self, too_large: int, *, now: int) -> None:
        self._failed = 0
        self._highest = max(self.floor, too_large - 8)
        self._search_at = now + SEARCH_AGAIN_US
        if self.size > self._highest:
            self.size = self._highest
            self.is_proven = False

    def _check(self) -> None:
        """Invariants, for tests and the simulator."""
        assert self.floor <= self.size <= self._ceiling
        assert self.size <= self._highest <= self._ceiling
        assert self.size % 8 == 0

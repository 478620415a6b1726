"""How large a packet this path carries: a search by probes, beside the data and never in its way.

Separate because it only knows sizes: it says which size to use and which to try, and is told what became of it.
All sizes are datagrams (UDP payload) in bytes and multiples of eight, so that runs of them can be read and written a
column at a time (docs/performance.md §5).

Read this first. Only a datagram that IP must not fragment proves its size by arriving: `proven` grows by probes alone.
Until then packets of the starting size travel fragmentable, so that any path carries them.

A packet's boundary is fixed once it is sent: uTP does not re-segment. Many paths drop fragments (RFC 8900 §3), so what
left in a packet too large for such a path would be stuck there. Hence the starting size is one that every path
carries, and a probe is a packet of the proven size with padding: if it is lost, its data leaves without. Where
the first hop is the whole path, the start may be larger.

Sources: RFC 4821 and RFC 8899 (search by padded probe packets), BEP 29 "packet sizes", docs/protocol.md §10.
"""

from __future__ import annotations

from typing import Final

from utpsocket.protocol.packet import MAX_PADDING_BYTES

FLOOR_BYTES: Final = 544  # BEP 29 / libtorrent's 548, down to a multiple of eight
START_IPV4_BYTES: Final = 1_400  # where the path is this machine; libutp's ceiling is 1,402
FLOOR_IPV6_BYTES: Final = 1_232  # 1,280, the least every IPv6 link carries, less 48 of headers
CEILING_IPV4_BYTES: Final = 1_472  # Ethernet's 1,500 less 28 of headers; foreign receive buffers may hold no more
CEILING_IPV6_BYTES: Final = 1_448  # 1,452, down to a multiple of eight
SEARCH_AGAIN_US: Final = 600_000_000  # ten minutes: RFC 8899 PMTU_RAISE_TIMER
_DONE_WITHIN_BYTES: Final = 16  # docs/protocol.md §10
_MAX_PROBES: Final = 3  # RFC 8899 MAX_PROBES
_WAIT_FOR_PACKETS: Final = 16  # a probe travels surrounded by other packets, or its loss would tell nothing
_NO_PROBE_SOON: Final = 1 << 30
_SEARCH_STEPS: Final = (
    FLOOR_IPV6_BYTES,
    START_IPV4_BYTES,
)  # sizes worth a try before the ceiling: most tunnels carry them


class KnownPath:
    """What the connections to one peer have found out together. RFC 8899 §3 (9): a size proven is told to all.

    confirmed_bytes   the largest that travelled unfragmentable, 0: none yet
    """

    __slots__ = ("__weakref__", "confirmed_bytes")

    def __init__(self) -> None:
        self.confirmed_bytes = 0


class PathMtu:
    """The datagram size in use, and the search for a larger one.

    datagram_bytes   of a datagram to send now
    confirmed_bytes   the largest that is known to travel unfragmentable
    probe_bytes   of the probe under way, 0 when none is
    floor_bytes   what every path is taken to carry
    highest_bytes   the largest size not known to be too large
    known     what other connections have proven, for adopt_known(); None where there are none
    packets_since_probe   packets of the size in use that left since the last probe; written by the sending half
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
        self._likely_bytes = self.datagram_bytes  # a size worth trying before halving; 0: none
        self._failed_probes = 0
        self._search_at = 0
        self.packets_since_probe = 0
        self.adopt_known()

    def adopt_known(self) -> bool:
        """Use what another connection has proven, unless this one has found out otherwise. True: size is another."""
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
        """Whether IP need not fragment a datagram of this size. What every path carries may be fragmented all the
        same: it does no harm, and there are stranger paths.
        """
        return self.floor_bytes < datagram_bytes <= self.confirmed_bytes

    def packets_before_probe(self, *, now: int) -> int:
        """How many ordinary packets leave before the next probe: 0 when it is its turn. Then see probe_size()."""
        if self.probe_bytes or not self._is_search_due(now=now):
            return _NO_PROBE_SOON
        return max(0, _WAIT_FOR_PACKETS - self.packets_since_probe)

    def _is_search_due(self, *, now: int) -> bool:
        if self.highest_bytes - self.confirmed_bytes >= _DONE_WITHIN_BYTES:
            return True
        return self.highest_bytes < self._ceiling_bytes and now >= self._search_at

    def probe_size(self) -> int:
        """The size to probe now: what tunnels carry, then the ceiling, which most paths carry; or where we began or
        what a router said; then by halves. No more than padding can add.
        """
        return min(self._next_size(), self.datagram_bytes + MAX_PADDING_BYTES & ~7)

    def _next_size(self) -> int:
        if self.highest_bytes - self.confirmed_bytes < _DONE_WITHIN_BYTES:
            self.highest_bytes = self._ceiling_bytes  # paths change: the search begins again
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
        """A probe of `size` left."""
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
        """The probe under way did not arrive, perhaps for another reason than its size."""
        size, self.probe_bytes = self.probe_bytes, 0
        if size:
            self._failed_probes += 1
            if self._failed_probes >= _MAX_PROBES:
                if size == self._likely_bytes:
                    self._likely_bytes = 0
                self._lower(size - 8, now=now)

    def on_too_big(self, datagram_bytes: int, carries_bytes: int, *, now: int) -> bool:
        """The kernel or a router says a datagram of this size does not pass; one of `carries_bytes` does (0:
        it did not say). RFC 1191 §6: a claim below the floor is ignored. Returns whether it was news.
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
        self._lower(limit, now=now)
        return True

    def on_black_hole(self, *, now: int) -> None:
        """Packets of the size in use vanish, again and again. RFC 8899 §4.3."""
        if self.datagram_bytes > self.floor_bytes:
            self._lower(self.datagram_bytes - 8, now=now)
            self.datagram_bytes = self.confirmed_bytes = self.floor_bytes
            self.probe_bytes = 0

    def _lower(self, highest: int, *, now: int) -> None:
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

"""What the connections to one host share: how large a datagram its path has carried.

Separate because it outlives any port: a dialer has one of its own. Kept while a connection to the host lives.

Only the engine's thread calls. Source: RFC 8899 §3 (10).
"""

from __future__ import annotations

from weakref import WeakValueDictionary

from utpsocket.protocol.pathmtu import KnownPath


class Paths:
    """Of one engine, by the peer's IP address."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: WeakValueDictionary[str, KnownPath] = WeakValueDictionary()

    def to(self, host: str) -> KnownPath:
        """What is known of the path to this host; for a new connection's Config."""
        known = self._known.get(host)
        if known is None:
            known = self._known[host] = KnownPath()
        return known

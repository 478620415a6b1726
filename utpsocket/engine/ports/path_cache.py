"""How large a datagram has reached a peer's address, for the next connections to it.

It outlives any port of ours, since each connection that is dialled has a port of its own; it is kept as long as one
connection to the address exists. The address includes the port number: at another one there may be another program,
which receives into a smaller buffer, so that large datagrams are truncated.

Only the engine's thread calls. Source: RFC 8899 §3 (9).
"""

from __future__ import annotations

from weakref import WeakValueDictionary

from utpsocket.protocol import Address
from utpsocket.protocol.known_path import KnownPath


class PathCache:
    """Of one engine, by the peer's address."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: WeakValueDictionary[Address, KnownPath] = WeakValueDictionary()

    def for_peer(self, addr: Address) -> KnownPath:
        """What is known of the path to this peer; for a new connection's Config."""
        known = self._known.get(addr)
        if known is None:
            known = self._known[addr] = KnownPath()
        return known

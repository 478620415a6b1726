"""SYNs that have been answered and are no connection yet: a few bytes each instead of objects ("SYN cache").

A listener makes a connection of a SYN at once as long as few are unverified, since some servers send first. Beyond that
a SYN is answered and noted here, and becomes a connection when a packet acks the SYN-ACK. A flood of SYNs from false
addresses fills this cache only.

Read this first. There are two generations. The young one takes what comes; when it is full, or 20 s old, it becomes the
old one, and the old one is dropped as a whole. So nothing is ever sorted, and an entry is kept at least as long as one
generation takes to fill. Example: 32,768 entries at 90,000 SYNs a second, 0.36 s, which is more than the round trip
until the ack of the SYN-ACK arrives.

Keys are bytes: the peer's address as the kernel writes it, and the connection id as the SYN has it, so nothing has to
be converted. A SYN that is repeated gets the same answer.

Only the engine's thread calls. Sources: docs/protocol.md §2, §3; RFC 4987 §3.5 ("SYN Cache").
"""

from __future__ import annotations

from typing import Final

from utpsocket.engine.interpreter.originals import os
from utpsocket.protocol.packet import PacketType, encode

GENERATION_ENTRIES: Final = 32_768  # by feel: two generations are 12 MB at most, and empty without a flood
GENERATION_US: Final = 20_000_000  # by feel: an initiator that has sent no ack for so long repeats its SYN
_ACK_SLACK: Final = 2  # our number less one, or less two: libutp's first keepalive (validation.py)


class SynCache:
    """Of one listener.

    rotates_at   when on_time() is due; 0: nothing is kept
    """

    __slots__ = ("_old", "_young", "rotates_at")

    def __init__(self) -> None:
        self._young: dict[bytes, bytes] = {}  # the SYN's number and ours, as on the wire
        self._old: dict[bytes, bytes] = {}
        self.rotates_at = 0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def answer(self, names: list[bytes], headers: list[bytes], window_bytes: int, *, now: int) -> bytearray:
        """Note SYNs, and return the answers to them, one after the other, 20 bytes each.

        names, headers   their senders' addresses as the kernel writes them, and their headers
        window_bytes   to be advertised
        now            µs
        """
        if len(self._young) + len(names) > GENERATION_ENTRIES:
            self._rotate(now=now)
        elif not self.rotates_at:
            self.rotates_at = now + GENERATION_US
        young, old = self._young, self._old
        draws = os.urandom(2 * len(names))
        # The timestamp difference is 0, "not known": libktorrent misreads a true one here (docs/protocol.md §6).
        template = encode(
            PacketType.STATE, 0, timestamp_us=now, difference_us=0, window_bytes=window_bytes, seq=0, ack=0
        )
        kind, middle = template[:2], template[4:16]
        answers: list[bytes] = []
        at = 0
        for name, header in zip(names, headers, strict=True):
            connection_id, seq = header[2:4], header[16:18]
            key = name + connection_id
            entry = young.get(key) or old.get(key)
            if entry is None or entry[:2] != seq:
                entry = young[key] = seq + draws[at : at + 2]
            at += 2
            answers += (kind, connection_id, middle, entry[2:4], seq)
        return bytearray().join(answers)

    def keep(self, name: bytes, connection_id: int, syn_seq16: int, our_seq16: int, *, now: int) -> None:
        """Note a SYN that was answered already: by a connection that is none any more (Endpoint.return_to_cache())."""
        if len(self._young) >= GENERATION_ENTRIES:
            self._rotate(now=now)
        elif not self.rotates_at:
            self.rotates_at = now + GENERATION_US
        key = name + connection_id.to_bytes(2, "big")
        self._young[key] = syn_seq16.to_bytes(2, "big") + our_seq16.to_bytes(2, "big")

    def check_ack(self, name: bytes, connection_id: int, ack16: int) -> tuple[int, int] | None:
        """Whether a packet with this ack_nr acks our SYN-ACK to the SYN that had this id, which verifies its sender.

        Returns the SYN's sequence number and ours, or None. Next, once there is a connection: use().
        """
        key = name + connection_id.to_bytes(2, "big")
        entry = self._young.get(key) or self._old.get(key)
        if entry is None or entry[4:]:
            return None
        our_seq16 = entry[2] << 8 | entry[3]
        # Implementations that follow BEP 29's diagram ack our number itself (connection.py).
        if not 0 <= (our_seq16 - ack16) & 0xFFFF <= _ACK_SLACK:
            return None
        return entry[0] << 8 | entry[1], our_seq16

    def use(self, name: bytes, connection_id: int) -> None:
        """The SYN has become a connection. Its entry still answers a repetition that is on its way, but check_ack()
        finds it no more: a late packet must not make a second connection.
        """
        key = name + connection_id.to_bytes(2, "big")
        self._young[key] = (self._young.get(key) or self._old[key]) + b"\x01"

    def contains(self, name: bytes, connection_id: int) -> bool:
        """Whether a SYN with this id is kept."""
        key = name + connection_id.to_bytes(2, "big")
        return key in self._young or key in self._old

    def on_time(self, *, now: int) -> None:
        """Drop what is too old. To be called at rotates_at."""
        if self.rotates_at and now >= self.rotates_at:
            self._rotate(now=now)

    def clear(self) -> None:
        """Drop everything: the listener has ended."""
        self._young, self._old = {}, {}
        self.rotates_at = 0

    def _rotate(self, *, now: int) -> None:
        self._old, self._young = self._young, {}
        self.rotates_at = now + GENERATION_US if self._old else 0


def syn_of(connection_id: int, syn_seq16: int, window_bytes: int) -> bytes:
    """The SYN that an entry was made of, as far as a connection looks at it."""
    return encode(
        PacketType.SYN, connection_id, timestamp_us=0, difference_us=0, window_bytes=window_bytes, seq=syn_seq16, ack=0
    )

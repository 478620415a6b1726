"""A packet that has become too large for its path, sent in pieces.

A packet's boundaries are fixed once it is sent: uTP does not re-segment. If a path's MTU becomes smaller while packets
are in flight, only IP's fragments can carry them; where those are dropped (RFC 8900 §3), nothing can, and the
connection would be stuck. So the payload then also travels in extensions of STATE packets. Every implementation takes
these for acks and skips the unknown extension; an utpsocket puts the payload together. The packet itself leaves before
its pieces, so that IP may fragment it, and it need not be known whether the peer understands pieces.

Towards other implementations there is no remedy: what is in flight when a path becomes narrower and drops fragments
cannot arrive, nor can anything behind it, until the path is wide again or the connection is given up. Other, smaller
packets under the same numbers would be wrong as soon as one of the first packets still arrives, late or over another
path: the receiver counts packets and takes of each number what comes first, so bytes would be repeated or missing
unnoticed. What can be done is done before: pathmtu.py begins with a size that every path carries and tries larger ones
by padding. libutp only lets IP fragment, too.

A piece holds the packet's sequence number, the offset of the piece in its payload, the length of the payload (16 bits
each), and the bytes. Sources: BEP 29 "extension"; docs/protocol.md §5, §10.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from utpsocket.protocol.packet import EXTENSION_PIECE, HEADER_BYTES, MAX_EXTENSIONS, unwrap, with_bits_extension

if TYPE_CHECKING:
    from utpsocket.protocol.layout import Layout

_HEAD: Final[Layout[tuple[int, int, int]]] = struct.Struct(">HHH")
PIECE_BYTES: Final = 249  # what the one-byte length of an extension leaves
_LINK_BYTES: Final = 2 + _HEAD.size + PIECE_BYTES
_FIRST_LINK_BYTES: Final = 10
# How many packets are put together at a time: they are sent one after the other. By feel.
_MAX_PARTIAL_PACKETS: Final = 8


def compose_pieces(header: bytes, seq: int, payload: bytes, datagram_bytes: int) -> tuple[bytes, int, int]:
    """The datagrams that carry this payload, back to back; the size of all but the last, and how many they are.

    header           of a STATE without extensions
    datagram_bytes   as large as they may be
    """
    room = (datagram_bytes - HEADER_BYTES - _FIRST_LINK_BYTES) // _LINK_BYTES
    pieces_per_datagram = max(1, min(MAX_EXTENSIONS - 1, room))
    total = len(payload)
    offsets = range(0, total, PIECE_BYTES)
    start = with_bits_extension(header, EXTENSION_PIECE)
    datagrams = []
    for first in range(0, len(offsets), pieces_per_datagram):
        links = [start]
        group = offsets[first : first + pieces_per_datagram]
        for offset in group:
            piece = payload[offset : offset + PIECE_BYTES]
            following = 0 if offset == group[-1] else EXTENSION_PIECE
            links.append(bytes((following, _HEAD.size + len(piece))) + _HEAD.pack(seq & 0xFFFF, offset, total) + piece)
        datagrams.append(b"".join(links))
    return b"".join(datagrams), len(datagrams[0]), len(datagrams)


class PieceAssembly:
    """Packets that are being put together from their pieces."""

    __slots__ = ("_partial",)

    def __init__(self) -> None:
        self._partial: dict[int, tuple[bytearray, set[int]]] = {}  # payload, and offsets of the pieces that are there

    def add(self, link: memoryview, next_seq: int, max_payload_bytes: int) -> tuple[int, bytes] | None:
        """A piece arrived. Returns sequence number and payload of the packet that it completes; of a packet that has
        been received before, the number and no payload; else None.

        link                the content of the extension
        next_seq            the first number that is not yet received in order
        max_payload_bytes   how long a payload may be
        """
        if len(link) <= _HEAD.size:
            return None
        seq16, offset, total = _HEAD.unpack_from(link)
        seq, piece = unwrap(seq16, next_seq), link[_HEAD.size :]
        if offset % PIECE_BYTES or len(piece) != min(PIECE_BYTES, total - offset):
            return None
        if seq < next_seq:
            return seq, b""
        if total > max_payload_bytes:
            return None
        partial = self._partial.get(seq)
        if partial is None or len(partial[0]) != total:
            for old in [old for old in self._partial if old < next_seq]:
                del self._partial[old]
            if len(self._partial) >= _MAX_PARTIAL_PACKETS:
                del self._partial[max(self._partial)]
            partial = self._partial[seq] = bytearray(total), set()
        payload, there = partial
        payload[offset : offset + len(piece)] = piece
        there.add(offset)
        if len(there) * PIECE_BYTES < total:
            return None
        del self._partial[seq]
        return seq, bytes(payload)

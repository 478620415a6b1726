"""The wire format: BEP 29's header, its extensions, selective acks, 16-bit sequence numbers.

This module and runs.py, which reads and writes many packets at once, are the only ones that know bytes on the wire; the
others use unbounded sequence numbers. `decode()` is the specification of what a datagram means. Nothing here raises on
input from the network: what cannot be read is None.

Sources: BEP 29 "header format", "extension", "selective ack"; docs/protocol.md §1, §5.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

HEADER_BYTES: Final = 20  # BEP 29 "header format"
VERSION: Final = 1  # BEP 29 "version"
EXTENSION_SACK: Final = 1
MAX_EXTENSIONS: Final = 8  # links of a chain that are read. Foreign packets have one or two, our padding six at most
EXTENSION_PIECE: Final = 126  # fragmentation.py; a number that nobody else uses, as the next
_EXTENSION_BITS: Final = 2  # obsolete, eight bytes that mean nothing: see with_bits_extension()
_EXTENSION_PADDING: Final = 127
_MAX_PADDING_LINKS: Final = 5
MIN_PADDING_BYTES: Final = 12
MAX_PADDING_BYTES: Final = 10 + 257 * _MAX_PADDING_LINKS
# A SYN that is repeated is padded to this (pad()). Where SYNs come in floods, a small one in many can be looked at; but
# who sends large ones needs fifty times the bandwidth, so those are let through as long as they are few (flood.py).
LARGE_SYN_BYTES: Final = 1_000
MAX_SACK_BYTES: Final = 252  # the largest multiple of 4 that the one-byte length of an extension can say

_HEADER: Final = struct.Struct(">BBHIIIHH")
HEADER_FIELDS: Final = struct.Struct(">2xHIIIHH")  # from the connection id on: the first header of a clean run
SEQ_MASK: Final = 0xFFFF


class PacketType(IntEnum):
    """BEP 29 "type": the upper four bits of a packet's first byte."""

    DATA = 0
    FIN = 1
    STATE = 2
    RESET = 3
    SYN = 4


DATA, FIN, STATE, RESET, SYN = map(int, PacketType)
"""The same numbers under names that are found, and compared, in a fraction of the time."""
SYN_BYTE: Final = SYN << 4 | VERSION  # a SYN's first


class Packet:
    """One packet as read from the wire; `payload`, `sack` and `pieces` are views of the datagram it came in."""

    __slots__ = (
        "ack16",
        "connection_id",
        "difference_us",
        "payload",
        "pieces",
        "sack",
        "seq16",
        "timestamp_us",
        "type",
        "window_bytes",
    )

    def __init__(
        self,
        type: int,
        connection_id: int,
        timestamp_us: int,
        difference_us: int,
        window_bytes: int,
        seq16: int,
        ack16: int,
        sack: memoryview | None,
        pieces: list[memoryview] | None,
        payload: memoryview,
    ) -> None:
        self.type = type
        self.connection_id = connection_id
        self.timestamp_us = timestamp_us
        self.difference_us = difference_us
        self.window_bytes = window_bytes
        self.seq16 = seq16
        self.ack16 = ack16
        self.sack = sack
        self.pieces = pieces
        self.payload = payload


def decode(datagram: memoryview) -> Packet | None:
    """The packet a datagram holds, or None when it is not uTP: too short, another version, a type of five or more, or
    an extension chain that runs past its end or has no end in sight. docs/protocol.md §1: such a datagram has no side
    effect.
    """
    length = len(datagram)
    if length < HEADER_BYTES:
        return None
    first, extension, connection_id, timestamp, difference, window, seq16, ack16 = _HEADER.unpack_from(datagram)
    if first & 0x0F != VERSION or first >> 4 > SYN:
        return None
    sack = pieces = None
    start = HEADER_BYTES
    links = 0
    while extension:
        links += 1
        if links > MAX_EXTENSIONS or start + 2 > length:
            return None
        following, size = datagram[start], datagram[start + 1]
        start += 2
        if start + size > length:
            return None
        if extension == EXTENSION_SACK:
            sack = datagram[start : start + size]
        elif extension == EXTENSION_PIECE:
            pieces = [*(pieces or ()), datagram[start : start + size]]
        extension = following
        start += size
    payload = datagram[start:length]
    return Packet(first >> 4, connection_id, timestamp, difference, window, seq16, ack16, sack, pieces, payload)


def encode(
    type: int,
    connection_id: int,
    *,
    timestamp_us: int,
    difference_us: int,
    window_bytes: int,
    seq: int,
    ack: int,
    sack: bytes = b"",
) -> bytes:
    """A packet without payload, or the header of one with. `seq` and `ack` may be unbounded: the wire takes
    their lowest 16 bits, and the lowest 32 of the times. BEP 29 "header format", "timestamp_microseconds".
    """
    header = _HEADER.pack(
        type << 4 | VERSION,
        EXTENSION_SACK if sack else 0,
        connection_id,
        timestamp_us & 0xFFFFFFFF,
        difference_us & 0xFFFFFFFF,
        min(window_bytes, 0xFFFFFFFF),
        seq & SEQ_MASK,
        ack & SEQ_MASK,
    )
    if not sack:
        return header
    return header + bytes((0, len(sack))) + sack


def with_bits_extension(header: bytes, following: int) -> bytes:
    """`header`, which has no extension, with one of ten bytes that everybody knows and nobody heeds, to be followed by
    one that nobody knows. docs/protocol.md §5: those are skipped by their length, but libutp drops what begins with
    one.
    """
    return b"".join((header[:1], bytes((_EXTENSION_BITS,)), header[2:], bytes((following, 8)), bytes(8)))


def pad(header: bytes, padding_bytes: int) -> bytes:
    """`header`, which has no extension, with extensions that mean nothing and take MIN_PADDING_BYTES to
    MAX_PADDING_BYTES.
    """
    rest = padding_bytes - 10
    links = -(-rest // 257)
    chain = [with_bits_extension(header, _EXTENSION_PADDING)]
    for link in range(links):
        size = rest // (links - link)
        rest -= size
        chain.append(bytes((_EXTENSION_PADDING if rest else 0, size - 2)) + bytes(size - 2))
    return b"".join(chain)


def unwrap(seq16: int, near: int) -> int:
    """The unbounded sequence number closest to `near` whose lowest 16 bits are `seq16`. BEP 29 "seq_nr"."""
    return near + ((seq16 - near + 0x8000) & SEQ_MASK) - 0x8000


def sack_bytes(bits: int) -> bytes:
    """A selective ack's bitmask from an integer whose bit 0 stands for ack + 2. A multiple of four bytes (BEP 29),
    cut at MAX_SACK_BYTES; empty when no bit is set.
    """
    length = min((bits.bit_length() + 31) // 32 * 4, MAX_SACK_BYTES)
    return (bits & ((1 << length * 8) - 1)).to_bytes(length, "little")

"""The wire format: BEP 29's header, its extensions, selective acks, 16-bit sequence numbers.

This module and runs.py, which reads and writes many packets at once, are the only ones that know bytes on the wire; the
others use unbounded sequence numbers. `decode()` is the specification of what a datagram means. Nothing here raises on
input from the network: what cannot be read is None.

Sources: BEP 29 "header format", "extension", "selective ack"; docs/protocol.md §1, §5.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Final, TypeAlias

from utpsocket.protocol.native import native_or

if TYPE_CHECKING:
    from utpsocket.protocol.layout import Layout

HEADER_BYTES: Final = 20  # BEP 29 "header format"
VERSION: Final = 1  # BEP 29 "version"
EXTENSION_SACK: Final = 1
# How many extensions of a packet are read. Other implementations send one or two, our padding takes six at most.
MAX_EXTENSIONS: Final = 8
EXTENSION_PIECE: Final = 126  # fragmentation.py. Like the padding's a number that no other implementation uses
_EXTENSION_BITS: Final = 2  # "extension bits", obsolete: eight bytes without meaning, see with_bits_extension()
_EXTENSION_PADDING: Final = 127
_MAX_PADDING_LINKS: Final = 5
MIN_PADDING_BYTES: Final = 12
MAX_PADDING_BYTES: Final = 10 + 257 * _MAX_PADDING_LINKS
# A repeated SYN is padded to this. In a flood of SYNs only one small one in many can be looked at, but a flood of large
# ones takes fifty times the bandwidth, so those are let through as long as they are few (engine/ports/flood.py). By
# feel: any path carries it.
LARGE_SYN_BYTES: Final = 1_000
MAX_SACK_BYTES: Final = 252  # the largest multiple of four that an extension's length, one byte, can be

_HEADER: Final[Layout[tuple[int, int, int, int, int, int, int, int]]] = struct.Struct(">BBHIIIHH")
# From the connection id on.
_HEADER_FIELDS: Final[Layout[tuple[int, int, int, int, int, int]]] = struct.Struct(">2xHIIIHH")
SEQ_MASK: Final = 0xFFFF

HeaderFields: TypeAlias = tuple[int, int, int, int, int, int]
"""Of a header the connection id, timestamp_us, difference_us, window_bytes, seq16 and ack16, as Packet has them."""
read_fields_in_python: Final[Callable[[memoryview], HeaderFields]] = _HEADER_FIELDS.unpack_from
"""The fields of the header that a datagram of at least HEADER_BYTES begins with."""
read_fields: Final[Callable[[memoryview], HeaderFields]] = native_or(read_fields_in_python, "read_fields")
"""The same; in the compiled build by C."""
_pack_header: Final = _HEADER.pack


class PacketType(IntEnum):
    """BEP 29 "type": the upper four bits of a packet's first byte."""

    DATA = 0
    FIN = 1
    STATE = 2
    RESET = 3
    SYN = 4


# The same as plain integers: looked up and compared several times faster than members of an Enum.
DATA, FIN, STATE, RESET, SYN = map(int, PacketType)
# The first byte of each.
DATA_BYTE: Final = DATA << 4 | VERSION
STATE_BYTE: Final = STATE << 4 | VERSION
SYN_BYTE: Final = SYN << 4 | VERSION


class Packet:
    """One packet as read from the wire. BEP 29 "header format".

    type            DATA, FIN, STATE, RESET or SYN
    connection_id   16 bits
    timestamp_us, difference_us   32 bits: when it was sent, and the peer's measurement of our last packet
    window_bytes    what the sender has room for
    seq16, ack16    16 bits of its sequence number, and of the last one that the sender has received in order
    sack            the selective ack, None without one
    pieces          pieces of larger packets (fragmentation.py), None without any
    payload         the rest of the datagram

    sack, pieces and payload are views of the datagram.
    """

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
    """The packet in a datagram, or None if it is not uTP: too short, of another version, of type five or more, with an
    extension that goes beyond its end, or with more than MAX_EXTENSIONS. Such a datagram has no effect.
    docs/protocol.md §1.
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
    """A packet without payload, or the header of a packet with payload. Of `seq` and `ack`, which may be unbounded, the
    lowest 16 bits are written, of the times the lowest 32. BEP 29 "header format", "timestamp_microseconds".
    """
    header = _pack_header(
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


def compose_lone_in_python(
    connection_id: int,
    timestamp_us: int,
    difference_us: int,
    window_bytes: int,
    seq: int,
    ack: int,
    memory: memoryview,
    start: int,
    stop: int,
) -> bytes:
    """A DATA packet: what encode() makes, then memory[start:stop]."""
    header = _pack_header(
        VERSION,
        0,
        connection_id,
        timestamp_us & 0xFFFFFFFF,
        difference_us & 0xFFFFFFFF,
        window_bytes if window_bytes < 0xFFFFFFFF else 0xFFFFFFFF,
        seq & SEQ_MASK,
        ack & SEQ_MASK,
    )
    return header + memory[start:stop]


compose_lone: Final[Callable[[int, int, int, int, int, int, memoryview, int, int], bytes]] = native_or(
    compose_lone_in_python, "compose_lone"
)
"""The same; in the compiled build by C."""


def with_bits_extension(header: bytes, following: int) -> bytes:
    """`header`, which has no extension, with the obsolete extension 2, to be followed by extension `following`. Unknown
    extensions are skipped by all implementations, but libutp drops a packet whose first extension is unknown.
    docs/protocol.md §5.
    """
    return b"".join((header[:1], bytes((_EXTENSION_BITS,)), header[2:], bytes((following, 8)), bytes(8)))


def pad(header: bytes, padding_bytes: int) -> bytes:
    """`header`, which has no extension, with extensions without meaning.

    padding_bytes   how long they are together, MIN_PADDING_BYTES to MAX_PADDING_BYTES
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
    """The bytes of a selective ack. BEP 29 "selective ack": a multiple of four bytes.

    bits       the packets received; bit 0 stands for ack + 2
    -> bytes   at most MAX_SACK_BYTES; what does not fit is left out. Empty if no bit is set
    """
    length = min((bits.bit_length() + 31) // 32 * 4, MAX_SACK_BYTES)
    return (bits & ((1 << length * 8) - 1)).to_bytes(length, "little")

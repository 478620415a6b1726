"""The wire: BEP 29's header, its extensions, selective acks, 16-bit sequence numbers, and whole runs of packets.

Separate because it is the only room that knows bytes on the wire: everything above it speaks of unbounded
sequence numbers and of segments. Nothing here raises on any input from the network: what cannot be read is None.

Read this first: `decode()` is the specification of what a datagram means. `Run.is_clean()` and
`compose()` are shortcuts for many equal packets at once and mean exactly the same.

Sources: BEP 29 "header format", "extension", "selective ack"; docs/protocol.md §1, §5.
"""

from __future__ import annotations

import struct
from array import array
from enum import IntEnum
from typing import Final

HEADER_BYTES: Final = 20  # BEP 29 "header format"
VERSION: Final = 1  # BEP 29 "version"
EXTENSION_SACK: Final = 1
MAX_EXTENSIONS: Final = 8  # links of a chain that are read. Foreign packets have one or two, our padding six at most
EXTENSION_PIECE: Final = 126  # fragmentation.py; a number that nobody else uses, as the next
_EXTENSION_BITS: Final = 2  # obsolete, eight bytes that mean nothing: see with_known_extension()
_EXTENSION_PADDING: Final = 127
_MAX_PADDING_LINKS: Final = 5
LEAST_PADDING_BYTES: Final = 12
MAX_PADDING_BYTES: Final = 10 + 257 * _MAX_PADDING_LINKS
# A SYN that is repeated is padded to this (pad()). Where SYNs come in floods, a small one in many can be looked at; but
# who sends large ones needs fifty times the bandwidth, so those are let through as long as they are few (flood.py).
LARGE_SYN_BYTES: Final = 1_000
MAX_SACK_BYTES: Final = 252  # the largest multiple of 4 that the one-byte length of an extension can say
MAX_SEND_BYTES: Final = 65_507  # what one UDP send takes, segmented by the kernel or not
MAX_SEND_PACKETS: Final = 64  # and so many segments: UDP_MAX_SEGMENTS before 6.9
MAX_RUN_PACKETS: Final = 256  # four of the kernel's largest batches: what is done once per run costs a quarter

_HEADER: Final = struct.Struct(">BBHIIIHH")
HEADER_FIELDS: Final = struct.Struct(">2xHIIIHH")  # from the connection id on: the first header of a clean run
_SEQ: Final = struct.Struct(">H")
_SEQ_MASK: Final = 0xFFFF


class PacketType(IntEnum):
    """BEP 29 "type": the upper four bits of a packet's first byte."""

    DATA = 0
    FIN = 1
    STATE = 2
    RESET = 3
    SYN = 4


DATA, FIN, STATE, RESET, SYN = map(int, PacketType)
"""The same numbers under names that are found, and compared, in a fraction of the time."""


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


def packets_per_send(size: int) -> int:
    """How many datagrams of `size` bytes one UDP send takes."""
    return min(MAX_SEND_PACKETS, MAX_SEND_BYTES // size)


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
        seq & _SEQ_MASK,
        ack & _SEQ_MASK,
    )
    if not sack:
        return header
    return header + bytes((0, len(sack))) + sack


def with_known_extension(header: bytes, following: int) -> bytes:
    """`header`, which has no extension, with one of ten bytes that everybody knows and nobody heeds, to be followed by
    one that nobody knows. docs/protocol.md §5: those are skipped by their length, but libutp drops what begins with
    one.
    """
    return b"".join((header[:1], bytes((_EXTENSION_BITS,)), header[2:], bytes((following, 8)), bytes(8)))


def pad(header: bytes, padding_bytes: int) -> bytes:
    """`header`, which has no extension, with extensions that mean nothing and take LEAST_PADDING_BYTES to
    MAX_PADDING_BYTES.
    """
    rest = padding_bytes - 10
    links = -(-rest // 257)
    chain = [with_known_extension(header, _EXTENSION_PADDING)]
    for link in range(links):
        size = rest // (links - link)
        rest -= size
        chain.append(bytes((_EXTENSION_PADDING if rest else 0, size - 2)) + bytes(size - 2))
    return b"".join(chain)


def unwrap(seq16: int, near: int) -> int:
    """The unbounded sequence number closest to `near` whose lowest 16 bits are `seq16`. BEP 29 "seq_nr"."""
    return near + ((seq16 - near + 0x8000) & _SEQ_MASK) - 0x8000


def sack_bytes(bits: int) -> bytes:
    """A selective ack's bitmask from an integer whose bit 0 stands for ack + 2. A multiple of four bytes (BEP 29),
    cut at MAX_SACK_BYTES; empty when no bit is set.
    """
    length = min((bits.bit_length() + 31) // 32 * 4, MAX_SACK_BYTES)
    return (bits & ((1 << length * 8) - 1)).to_bytes(length, "little")


def _big_endian_sequence_numbers() -> array[int]:
    """Every 16-bit number in order as it stands on the wire, and once more the first ones: a run may wrap."""
    numbers = array("H", range(0x10000))
    numbers.extend(range(MAX_RUN_PACKETS))
    if struct.pack("=H", 1) != struct.pack(">H", 1):
        numbers.byteswap()
    return numbers


_STATE: Final = PacketType.STATE << 4 | VERSION
SYN_BYTE: Final = PacketType.SYN << 4 | VERSION  # a SYN's first
_SEQ_COLUMN: Final = memoryview(_big_endian_sequence_numbers())
_SEQ_COLUMN_BYTES: Final = _SEQ_COLUMN.tobytes()


def compose(header: bytes, seq: int, payloads: list[memoryview]) -> bytes | bytearray:
    """DATA packets back to back: each payload behind a copy of `header`, with consecutive sequence numbers from `seq`
    on. All payloads but the last are of one size. What encode() and a payload give for each, written a column at a
    time.
    """
    count = len(payloads)
    if count == 1:
        return b"".join((header, payloads[0]))
    datagrams = bytearray(header).join([b"", *payloads])
    stride = HEADER_BYTES + len(payloads[0])
    if stride % 2:
        for index in range(count):
            _SEQ.pack_into(datagrams, index * stride + 16, (seq + index) & _SEQ_MASK)
    else:
        seq16 = seq & _SEQ_MASK
        halves = memoryview(datagrams)[: len(datagrams) & ~1].cast("H")
        halves[8 :: stride // 2][:count] = _SEQ_COLUMN[seq16 : seq16 + count]
    return datagrams


class Run:
    """Datagrams of one sender that arrived together, one behind the other: what one recvmsg gave, or one recvmmsg.

    data     whole datagrams, one every `stride` bytes
    stride   from the start of one datagram to the start of the next
    addr     the sender's address, as the socket module writes it
    local    the address it was sent to where the kernel told (wildcard ports), else None
    size     bytes of each datagram but the last, which may be shorter and ends the data; what is left of each stride
             is nobody's. Unless said: `stride`, and they lie back to back
    slots    views of the payloads of full datagrams, where whoever owns the memory has them at hand
    """

    __slots__ = ("_clean", "_uniform", "addr", "data", "local", "size", "slots", "stride")

    def __init__(self, data: memoryview, stride: int, addr: object, local: object = None, size: int = 0) -> None:
        self.data = data
        self.stride = stride
        self.addr = addr
        self.local = local
        self.size = size or stride
        self._uniform: bool | None = None
        self._clean: bool | None = None
        self.slots: list[memoryview] | None = None

    def continues(self, previous: Run) -> bool:
        """Whether this run looks like more of the same flight: then both together may be one run, if its memory
        follows. Only likely: is_clean() of the whole decides.
        """
        before, data = previous.data, self.data
        length, stride = len(before), self.stride
        if stride != previous.stride or length % stride or len(data) < HEADER_BYTES or self.addr != previous.addr:
            return False
        count = length // stride
        return (
            data[:4] == before[:4]
            and data[8:16] == before[8:16]
            and (data[16] << 8 | data[17]) == ((before[16] << 8 | before[17]) + count) & _SEQ_MASK
            and count - (-len(data) // stride) <= MAX_RUN_PACKETS
            and self.local == previous.local
        )

    @property
    def count(self) -> int:
        """How many datagrams the run holds; at least one unless data is empty."""
        return -(-len(self.data) // self.stride)

    @property
    def last_bytes(self) -> int:
        """The size of the last datagram."""
        return (len(self.data) - 1) % self.stride + 1

    def parts(self) -> list[Run]:
        """The same datagrams in runs that may be clean: cut where a sender's delay, window or connection changed, as
        they do between two of its bursts. This run alone where it is in order, or odd.
        """
        data, stride = self.data, self.stride
        length = len(data)
        if length <= 2 * stride or stride % 8 or self.last_bytes < HEADER_BYTES:
            return [self]
        longs = data[: length & ~7].cast("Q")[1 :: stride // 8].tolist()
        if longs.count(longs[0]) == len(longs):
            return [self]
        starts = [index for index in range(1, len(longs)) if longs[index] != longs[index - 1]]
        if len(starts) > len(longs) // 4:
            return [self]
        parts = []
        for start, stop in zip([0, *starts], [*starts, len(longs)], strict=True):
            end = length if stop == len(longs) else (stop - 1) * stride + self.size
            part = Run(data[start * stride : end], stride, self.addr, self.local, self.size)
            if stop - start == 1:
                part.stride = part.size = len(part.data)
            elif self.slots is not None:
                part.slots = self.slots[start:stop]
            parts.append(part)
        return parts

    def datagrams(self) -> list[memoryview]:
        """The datagrams one by one."""
        return [self.data[i : i + self.size] for i in range(0, len(self.data), self.stride)]

    def is_uniform(self) -> bool:
        """Whether all headers agree in type, version, extension and connection id, so that one look tells
        whose they are. False may also mean "not looked at": a stride that does not divide into words.
        """
        uniform = self._uniform
        if uniform is None:
            count = self.count
            if count == 1:
                uniform = len(self.data) >= HEADER_BYTES
            elif self.stride % 8 or len(self.data) - (count - 1) * self.stride < HEADER_BYTES:
                uniform = False
            else:
                words = self.data[: len(self.data) & ~7].cast("I")[0 :: self.stride // 4]
                uniform = words.tobytes() == bytes(self.data[0:4]) * count
            self._uniform = uniform
        return uniform

    def is_clean(self) -> bool:
        """Whether these are DATA packets without extensions whose headers differ in nothing but consecutive
        sequence numbers and the times they were sent at. Then the first header, `count` and timestamps() say all
        there is to say. One alone has a payload.
        """
        clean = self._clean
        if clean is None:
            clean = self._clean = self._looks_clean()
        return clean

    def is_bare_ack(self) -> bool:
        """Whether this is one STATE without extension."""
        data = self.data
        return len(data) == HEADER_BYTES and data[0] == _STATE and not data[1]

    def _looks_clean(self) -> bool:
        data = self.data
        length, stride = len(data), self.stride
        if length <= HEADER_BYTES or data[0] != VERSION or data[1]:
            return False
        if length <= stride:
            return True
        if stride % 8:
            return False
        count = -(-length // stride)
        if length - (count - 1) * stride < HEADER_BYTES or count > MAX_RUN_PACKETS:
            return False
        header = data[:HEADER_BYTES].tobytes()
        words = data[: length & ~7]
        longs = words.cast("Q")
        if longs[0 :: stride // 8].tobytes() != header[:8] * count:
            if words.cast("I")[0 :: stride // 4].tobytes() != header[:4] * count:
                return False
            if 0 in words.cast("I")[1 :: stride // 4]:  # no time: not all can be treated alike
                return False
        self._uniform = True
        if longs[1 :: stride // 8].tobytes() != header[8:16] * count:
            return False
        halves = data[: length & ~1].cast("H")
        seq16 = header[16] << 8 | header[17]
        if halves[8 :: stride // 2].tobytes() != _SEQ_COLUMN_BYTES[2 * seq16 : 2 * (seq16 + count)]:
            return False
        return halves[9 :: stride // 2].tobytes() == header[18:] * count

    def timestamps(self) -> array[int] | None:
        """When each packet of a clean run was sent, by the sender's clock; None: all at once, as the first one says."""
        stride = self.stride
        if len(self.data) <= stride:
            return None
        words = self.data[: len(self.data) & ~3].cast("I")
        column = words[1 :: stride // 4].tobytes()
        if column == column[:4] * (len(column) // 4):
            return None
        stamps = array("I", column)
        if struct.pack("=H", 1) != struct.pack(">H", 1):
            stamps.byteswap()
        return stamps

    def payloads(self) -> list[memoryview]:
        """The payloads of a clean run."""
        data, stride, size = self.data, self.stride, self.size
        full = len(data) // stride if size == stride else (len(data) + stride - size) // stride
        payloads = self.slots or [data[i + HEADER_BYTES : i + size] for i in range(0, full * stride, stride)]
        if full * stride < len(data):
            payloads.append(data[full * stride + HEADER_BYTES :])
        return payloads


class Transmit:
    """Datagrams on their way out, back to back.

    addr           where to, as the socket module writes it
    data           their bytes
    segment        bytes of each datagram but the last, which may be shorter
    count          how many datagrams
    may_fragment   whether IP may fragment them (don't-fragment off): sizes this path has not proven
    is_probe       whether this is a path MTU probe: EMSGSIZE is then its result, not an error
    """

    __slots__ = ("addr", "count", "data", "is_probe", "may_fragment", "segment")

    def __init__(
        self,
        addr: object,
        data: bytes | bytearray,
        *,
        segment: int = 0,
        count: int = 1,
        may_fragment: bool = False,
        is_probe: bool = False,
    ) -> None:
        self.addr = addr
        self.data = data
        self.segment = segment
        self.count = count
        self.may_fragment = may_fragment
        self.is_probe = is_probe

    def datagrams(self) -> list[bytes]:
        """The datagrams one by one, copied: the way of senders that cannot send them all at once."""
        whole = bytes(self.data)
        if self.count == 1:
            return [whole]
        return [whole[i : i + self.segment] for i in range(0, len(whole), self.segment)]

"""Many packets at once: runs on their way in, transmits on their way out.

`Run.is_clean()` and `compose()` do for many equal packets what `decode()` and `encode()` of packet.py do for one, a
column of headers at a time, and mean the same.

Sources: BEP 29 "header format"; docs/design.md §4, docs/performance.md §5.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable
from typing import Final, TypeAlias

from utpsocket.protocol.packet import DATA_BYTE, HEADER_BYTES, SEQ_MASK, VERSION

MAX_SEND_BYTES: Final = 65_507  # what one system call sends over UDP: 65,535 less 28 of headers, with GSO too
MAX_SEND_PACKETS: Final = 64  # datagrams of one system call with GSO: UDP_MAX_SEGMENTS of Linux before 6.9
# Datagrams in one run: what four system calls receive with GRO, so that what is done per run is done a quarter as
# often.
MAX_RUN_PACKETS: Final = 256

# What check_run() finds in the headers of a run.
UNIFORM: Final = 1  # they agree in type, version, extension and connection id
CLEAN: Final = 2  # and are DATA without extensions that differ in nothing but timestamps and consecutive numbers
ONE_TIME: Final = 4  # UNIFORM, and the timestamps are equal

_SEQ: Final = struct.Struct(">H")

Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int]
"""An IPv4 or IPv6 address with its port, as the socket module has them. The protocol only compares it."""


def packets_per_send(size: int) -> int:
    """How many datagrams of `size` bytes one system call sends."""
    return min(MAX_SEND_PACKETS, MAX_SEND_BYTES // size)


def _big_endian_sequence_numbers() -> array[int]:
    """Every 16-bit number in order as it stands on the wire, and once more the first ones: a run may wrap."""
    numbers = bytearray(2 * 0x10000)
    numbers[0::2] = b"".join([bytes((high,)) * 256 for high in range(256)])
    numbers[1::2] = bytes(range(256)) * 256
    return array("H", bytes(numbers + numbers[: 2 * MAX_RUN_PACKETS]))


_SEQ_COLUMN: Final = memoryview(_big_endian_sequence_numbers())
_SEQ_COLUMN_BYTES: Final = _SEQ_COLUMN.tobytes()


def compose(header: bytes, seq: int, payloads: list[memoryview]) -> bytes | bytearray:
    """DATA packets back to back: each is a copy of `header` with its sequence number and a payload. The same as
    encode() and the payload for each, but written a column at a time.

    header     of the first packet
    seq        its sequence number; the others have the following ones
    payloads   all but the last are of one size
    """
    count = len(payloads)
    if count == 1:
        return b"".join((header, payloads[0]))
    datagrams = bytearray(header).join([b"", *payloads])
    stride = HEADER_BYTES + len(payloads[0])
    if stride % 2:
        for index in range(count):
            _SEQ.pack_into(datagrams, index * stride + 16, (seq + index) & SEQ_MASK)
    else:
        seq16 = seq & SEQ_MASK
        halves = memoryview(datagrams)[: len(datagrams) & ~1].cast("H")
        halves[8 :: stride // 2][:count] = _SEQ_COLUMN[seq16 : seq16 + count]
    return datagrams


def check_run_in_python(data: memoryview, stride: int) -> int:
    """What the headers of two or more datagrams have in common, one every `stride` bytes: some of UNIFORM, CLEAN and
    ONE_TIME. A run may be found to have less in common than it has: if the stride is not a multiple of eight, or if a
    timestamp is 0 and others are not.
    """
    length = len(data)
    count = -(-length // stride)
    if stride % 8 or length - (count - 1) * stride < HEADER_BYTES or stride < HEADER_BYTES:
        return 0
    header = data[:HEADER_BYTES].tobytes()
    words = data[: length & ~7]
    longs = words.cast("Q")
    found = UNIFORM | ONE_TIME
    if longs[0 :: stride // 8].tobytes() != header[:8] * count:
        found = UNIFORM
        halves_of_longs = words.cast("I")
        if halves_of_longs[0 :: stride // 4].tobytes() != header[:4] * count:
            return 0
        if 0 in halves_of_longs[1 :: stride // 4]:  # no time: not all can be treated alike
            return found
    if header[0] != VERSION or header[1] or count > MAX_RUN_PACKETS:
        return found
    if longs[1 :: stride // 8].tobytes() != header[8:16] * count:
        return found
    halves = data[: length & ~1].cast("H")
    seq16 = header[16] << 8 | header[17]
    if halves[8 :: stride // 2].tobytes() != _SEQ_COLUMN_BYTES[2 * seq16 : 2 * (seq16 + count)]:
        return found
    if halves[9 :: stride // 2].tobytes() != header[18:] * count:
        return found
    return found | CLEAN


check_run: Callable[[memoryview, int], int]
SENDS_SPANS: bool
"""Whether flights of several packets leave as Transmit.spans: the compiled build's C code sends them so."""
try:
    from utpsocket import _native

    check_run = _native.check_run
    SENDS_SPANS = True
except ImportError:
    check_run = check_run_in_python
    SENDS_SPANS = False


class Run:
    """Datagrams of one sender that arrived together, one behind the other: of one recvmsg(2) with GRO, or recvmmsg(2).

    data             whole datagrams, one every `stride` bytes
    stride           bytes from the start of one datagram to the start of the next
    addr             the sender's address, as the socket module has it
    local            the address that it was sent to, if the port is bound to a wildcard; else None
    datagram_bytes   size of each datagram but the last, which may be shorter and ends the data; the rest of each stride
                     is not used. `stride` unless given: they lie back to back
    payload_views    views of the payloads of full datagrams, if the owner of the memory has them; else None
    _found           what check_run() has found, -1 before it is asked
    """

    __slots__ = ("_found", "addr", "data", "datagram_bytes", "local", "payload_views", "stride")

    def __init__(
        self, data: memoryview, stride: int, addr: Address, local: str | None = None, datagram_bytes: int = 0
    ) -> None:
        self.data = data
        self.stride = stride
        self.addr = addr
        self.local = local
        self.datagram_bytes = datagram_bytes or stride
        self._found = -1
        self.payload_views: list[memoryview] | None = None

    def continues(self, previous: Run) -> bool:
        """Whether this run looks like the continuation of the previous one, so that both may be joined to one run if
        their memory is adjacent. It looks at the ends only: is_clean() of the joined run decides.
        """
        before, data = previous.data, self.data
        length, stride = len(before), self.stride
        if stride != previous.stride or length % stride or len(data) < HEADER_BYTES or self.addr != previous.addr:
            return False
        count = length // stride
        return (
            data[:4] == before[:4]
            and data[8:16] == before[8:16]
            and (data[16] << 8 | data[17]) == ((before[16] << 8 | before[17]) + count) & SEQ_MASK
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
        """The same datagrams in runs that may be clean: cut where window or timestamp difference change, as they do
        between two bursts of a sender. This run alone if there is nothing to cut, or too much.
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
            end = length if stop == len(longs) else (stop - 1) * stride + self.datagram_bytes
            part = Run(data[start * stride : end], stride, self.addr, self.local, self.datagram_bytes)
            if stop - start == 1:
                part.stride = part.datagram_bytes = len(part.data)
            elif self.payload_views is not None:
                part.payload_views = self.payload_views[start:stop]
            parts.append(part)
        return parts

    def datagrams(self) -> list[memoryview]:
        """The datagrams one by one."""
        return [self.data[i : i + self.datagram_bytes] for i in range(0, len(self.data), self.stride)]

    def _in_common(self) -> int:
        """What check_run() finds, asked once."""
        found = self._found
        if found < 0:
            found = self._found = check_run(self.data, self.stride)
        return found

    def is_uniform(self) -> bool:
        """Whether all headers agree in type, version, extension and connection id, so that all are for the connection
        of the first. May be False although they do: if the stride is not a multiple of eight.
        """
        length = len(self.data)
        return length >= HEADER_BYTES if length <= self.stride else self._in_common() & UNIFORM != 0

    def is_clean(self) -> bool:
        """Whether these are DATA packets without extensions whose headers differ in nothing but timestamps and
        consecutive sequence numbers, so that the first header, count and timestamps() are all that is to know. A single
        one must have a payload. May be False although they are: if the stride is not a multiple of eight.
        """
        data = self.data
        length = len(data)
        if length > self.stride:
            return self._in_common() & CLEAN != 0
        return length > HEADER_BYTES and data[0] == DATA_BYTE and not data[1]

    def timestamps(self) -> array[int] | None:
        """The timestamps of a clean run's packets; None if all are equal to the first header's."""
        stride = self.stride
        if len(self.data) <= stride or self._in_common() & ONE_TIME:
            return None
        words = self.data[: len(self.data) & ~3].cast("I")
        stamps = array("I", words[1 :: stride // 4].tobytes())
        if struct.pack("=H", 1) != struct.pack(">H", 1):
            stamps.byteswap()
        return stamps

    def payloads(self) -> list[memoryview]:
        """The payloads of a clean run."""
        data, stride, size = self.data, self.stride, self.datagram_bytes
        full = len(data) // stride if size == stride else (len(data) + stride - size) // stride
        payloads = self.payload_views or [data[i + HEADER_BYTES : i + size] for i in range(0, full * stride, stride)]
        if full * stride < len(data):
            payloads.append(data[full * stride + HEADER_BYTES :])
        return payloads


class Transmit:
    """Datagrams on their way out, back to back.

    addr             where to send them, as the socket module has it
    data             their bytes; empty while `spans` has the payload and compose() has not been called
    datagram_bytes   size of each datagram but the last, which may be shorter; 0 if there is only one
    count            how many datagrams
    may_fragment     whether IP may fragment them: don't-fragment is off for sizes that are not confirmed for the path
    is_mtu_probe     whether this is a path MTU probe: then EMSGSIZE is its result and no error
    is_last          nothing else may leave now: the next poll_transmit() would return None. May be False all the same
    spans            the send buffer's memory that has the payloads, one behind the other, if it was not copied; else
                     None. Then also:
    header           of the first packet
    seq              its sequence number; the others have the following ones
    last_bytes       size of the last datagram
    """

    __slots__ = (
        "addr",
        "count",
        "data",
        "datagram_bytes",
        "header",
        "is_last",
        "is_mtu_probe",
        "last_bytes",
        "may_fragment",
        "seq",
        "spans",
    )

    def __init__(
        self,
        addr: Address,
        data: bytes | bytearray,
        *,
        datagram_bytes: int = 0,
        count: int = 1,
        may_fragment: bool = False,
        is_mtu_probe: bool = False,
    ) -> None:
        self.addr = addr
        self.data = data
        self.datagram_bytes = datagram_bytes
        self.count = count
        self.may_fragment = may_fragment
        self.is_mtu_probe = is_mtu_probe
        self.is_last = False
        self.spans: list[memoryview] | None = None

    def lend(self, header: bytes, seq: int, spans: list[memoryview], last_bytes: int) -> None:
        """Have the payloads stay where they are. The parameters are the attributes of these names."""
        self.header = header
        self.seq = seq
        self.spans = spans
        self.last_bytes = last_bytes

    def compose(self) -> bytes | bytearray:
        """`data`, copied from the spans if that has not been done."""
        if not self.data and self.spans is not None:
            whole = memoryview(b"".join(self.spans))
            size = self.datagram_bytes - HEADER_BYTES
            payloads = [whole[start : start + size] for start in range(0, self.count * size, size)]
            payloads[-1] = payloads[-1][: self.last_bytes - HEADER_BYTES]
            self.data = compose(self.header, self.seq, payloads)
        return self.data

    def datagrams(self) -> list[bytes]:
        """The datagrams one by one, copied, for a port that cannot send them with one system call."""
        whole = bytes(self.compose())
        if self.count == 1:
            return [whole]
        return [whole[i : i + self.datagram_bytes] for i in range(0, len(whole), self.datagram_bytes)]

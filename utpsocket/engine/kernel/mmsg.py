"""recvmmsg(2) and sendmmsg(2) with the GIL held: many datagrams per system call, without UDP_SEGMENT and UDP_GRO.

Such a call needs an array of headers in memory. Each datagram has a struct mmsghdr, two pieces of memory to receive
into, and room for its source address and its ancillary data. All of it is written once and reused; before a call only a
few columns of it are set.

The compiled build receives by receive_datagrams() of _native.c, of which Inbound.receive() and groups() are the twin.

Datagrams are received into slots at equal distances, so that equal ones of one source are a Run without copying. What
is longer than its slot goes on in a second piece of memory (overflow()), so that no datagram is truncated.

Only the engine's thread calls. Sources: recvmmsg(2), sendmmsg(2); docs/performance.md §6.
"""

from __future__ import annotations

import errno
from array import array
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import TYPE_CHECKING, Final, TypeAlias

from utpsocket.engine.interpreter import libc
from utpsocket.engine.interpreter.originals import ctypes, struct
from utpsocket.protocol.packet import HEADER_BYTES, SYN_BYTE
from utpsocket.protocol.runs import MAX_RUN_PACKETS

if TYPE_CHECKING:
    from utpsocket.protocol.layout import Layout

# As many datagrams as one run may have.
MAX_DATAGRAMS_IN: Final = MAX_RUN_PACKETS
# As many datagrams as a Transmit may have.
MAX_DATAGRAMS_OUT: Final = 64
# A datagram, or several merged by UDP_GRO, is not longer.
ROOM_BYTES: Final = 65_536
# sizeof(struct sockaddr_in6) is 28; a multiple of 8 keeps what follows aligned.
NAME_BYTES: Final = 32
# Ancillary data of IPV6_PKTINFO (40) and UDP_GRO (24).
CONTROL_BYTES: Final = 64
_RECORD_BYTES: Final = NAME_BYTES + CONTROL_BYTES
_HEADER: Final = struct.Struct("@QI4xQQQQi4xI4x")  # struct mmsghdr: name, iovecs, control, flags; its datagram's size
_HEADER_BYTES: Final = 64
_IOVEC: Final = struct.Struct("@QQ")
# What receive_datagrams() of _native.c needs for each datagram: its header, two pieces of memory, and a record.
NATIVE_RECORD_BYTES: Final = _HEADER_BYTES + 2 * _IOVEC.size + _RECORD_BYTES
_NAMELEN: Final[Layout[tuple[int]]] = struct.Struct("@8xI")
_CONTROLLEN: Final[Layout[tuple[int]]] = struct.Struct("@40xQ")
_SIZE_WORD: Final = 14  # of a header's sixteen: msg_len
_CONTROL_WORD: Final = 5  # of its eight long ones: msg_controllen
_NAMELEN_AT: Final = 8
_PKTINFO_INTERFACE_AT: Final = {32: 16, 40: 32}  # by the size of the ancillary data: in_pktinfo, in6_pktinfo
# Addresses that may be refused in one call of Answers.send(), and column contents that are kept; both by feel.
_MAX_REFUSED: Final = 8
_LAYOUTS_KEPT: Final = 64
_MSG_DONTWAIT: Final = 0x40
_MSG_NOSIGNAL: Final = 0x4000

Raw: TypeAlias = tuple[int, int, int, int, bytes, bytes]
"""Datagrams of equal size and source, in slots that follow each other: the first index, the count, the size of each but
the last, the size of the last (which may be shorter); the source address and the ancillary data that they share."""


def _address(buffer: bytearray | mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


class Inbound:
    """The memory of recvmmsg(2). All ports share one, since it is used up before another call is made."""

    __slots__ = (
        "_address",
        "_bases",
        "_control_at",
        "_control_sizes",
        "_headers",
        "_iovecs",
        "_layout",
        "_layouts",
        "_memory",
        "_placed",
        "_records",
        "_recvmmsg",
        "_sizes",
        "_slot_bases",
        "_slot_bytes",
        "_used",
        "overflow_memory",
    )

    def __init__(self) -> None:
        self._recvmmsg = libc.recvmmsg
        records = bytearray(MAX_DATAGRAMS_IN * _RECORD_BYTES)
        # Not a bytearray, all of whose 16 MiB would be written to. Of this the kernel gives as much as is used.
        self.overflow_memory = mmap(-1, MAX_DATAGRAMS_IN * ROOM_BYTES, MAP_PRIVATE | MAP_ANONYMOUS)
        iovecs = bytearray(MAX_DATAGRAMS_IN * 2 * _IOVEC.size)
        headers = bytearray(MAX_DATAGRAMS_IN * _HEADER_BYTES)
        overflow_at = _address(self.overflow_memory)
        for index in range(MAX_DATAGRAMS_IN):
            _IOVEC.pack_into(iovecs, 32 * index + 16, overflow_at + index * ROOM_BYTES, ROOM_BYTES)
        self._memory = records, iovecs, headers
        self._address = _address(headers)
        self._records, self._headers = memoryview(records), memoryview(headers)
        self._iovecs = _address(iovecs)
        self._sizes = self._headers.cast("I")[_SIZE_WORD::16]
        self._control_sizes = self._headers.cast("Q")[_CONTROL_WORD::8]
        words = memoryview(iovecs).cast("Q")
        self._slot_bases, self._slot_bytes = words[0::4], words[1::4]
        self._bases: dict[tuple[int, int, int], array[int]] = {}  # where slots are, by first address, stride and count
        self._layouts: dict[tuple[int, int], bytes] = {}  # all headers, as they must be before a call
        self._layout = -1, -1, 0
        self._placed = -1, 0, 0
        self._control_at = _address(records) + NAME_BYTES
        self._used = 0

    def _headers_for(self, name_bytes: int, control_bytes: int) -> bytes:
        """Headers that ask for so much of a name, and of ancillary data."""
        name_at = self._control_at - NAME_BYTES
        return b"".join(
            _HEADER.pack(
                name_at + index * _RECORD_BYTES if name_bytes else 0,
                name_bytes,
                self._iovecs + 32 * index,
                2,
                self._control_at + index * _RECORD_BYTES if control_bytes else 0,
                control_bytes,
                0,
                0,
            )
            for index in range(MAX_DATAGRAMS_IN)
        )

    def receive(
        self, fd: int, room_at: int, stride: int, max_datagrams: int, name_bytes: int, control_bytes: int
    ) -> int:
        """Receive up to `max_datagrams` into slots of `stride` bytes; how many, or -1 with ctypes' errno set."""
        layout = self._layouts.get((name_bytes, control_bytes))
        if layout is None:
            layout = self._layouts[name_bytes, control_bytes] = self._headers_for(name_bytes, control_bytes)
        # Undo what the last call wrote: the sizes of names and of ancillary data are results as well.
        if self._layout[:2] != (name_bytes, control_bytes):
            self._headers[:] = layout
            self._records[:] = bytes(MAX_DATAGRAMS_IN * _RECORD_BYTES)
        elif self._used and (name_bytes or control_bytes):
            used = self._used * _HEADER_BYTES
            self._headers[:used] = layout[:used]
            used = self._used * _RECORD_BYTES
            self._records[:used] = bytes(used)
        if self._layout[2] != stride:
            self._slot_bytes[:] = array("Q", [stride]) * MAX_DATAGRAMS_IN
        self._layout = name_bytes, control_bytes, stride
        place = room_at, stride, max_datagrams
        if place != self._placed:
            self._placed = place
            bases = self._bases.get(place)
            if bases is None:
                if len(self._bases) >= _LAYOUTS_KEPT:
                    self._bases.clear()
                bases = self._bases[place] = array("Q", range(room_at, room_at + max_datagrams * stride, stride))
            self._slot_bases[:max_datagrams] = bases
        count = self._recvmmsg(fd, self._address, max_datagrams, _MSG_DONTWAIT, None)
        self._used = max(0, count)
        return count

    def groups(self, count: int, first: int = 0) -> list[Raw]:
        """What the datagrams received last are, those from `first` to `count`."""
        sizes = self._sizes[:count].tolist()
        name_bytes, control_bytes, _ = self._layout
        has_records = bool(name_bytes or control_bytes)
        records = self._records[: count * _RECORD_BYTES].tobytes() if has_records else b""
        size, last = sizes[first], sizes[-1]
        is_even = 0 < last <= size and sizes[first:-1] == [size] * (count - first - 1)
        if is_even and (not records or self._are_alike(records, first, count)):
            return [self._group(first, count - first, size, last, records)]
        groups = []
        for index in range(first + 1, count + 1):
            at = index * _RECORD_BYTES
            if (
                index == count
                or sizes[index] > sizes[first]
                or sizes[index - 1] < sizes[first]
                or not sizes[index]
                or (records and records[at : at + _RECORD_BYTES] != records[at - _RECORD_BYTES : at])
            ):
                groups.append(self._group(first, index - first, sizes[first], sizes[index - 1], records))
                first = index
        return groups

    @staticmethod
    def _are_alike(records: bytes, first: int, count: int) -> bool:
        start, stop = first * _RECORD_BYTES, count * _RECORD_BYTES
        return records[start:stop] == records[start : start + _RECORD_BYTES] * (count - first)

    def unmatched(
        self, count: int, room: memoryview, stride: int, ids: set[int], plain_control_bytes: int
    ) -> tuple[list[int], list[int]]:
        """Of the datagrams received last, the indices of those that belong to no established connection: SYNs, and
        all others that carry none of these ids. Merged datagrams, and those longer than a slot, are in neither list.

        ids                   their two bytes in network order, read in the machine's
        plain_control_bytes   of ancillary data that comes with every datagram; one that was merged has more
        """
        sizes = self._sizes[:count].tolist()
        firsts = room[: count * stride : stride].tobytes()
        carried = room[: count * stride].cast("H")[1 :: stride // 2].tolist()
        controls = self._control_sizes[:count].tolist() if self._layout[1] else ()
        syns: list[int] = []
        others: list[int] = []
        for index in range(count):
            size = sizes[index]
            if not size or size > stride or (controls and controls[index] != plain_control_bytes):
                continue
            if size < HEADER_BYTES:
                others.append(index)
            elif firsts[index] == SYN_BYTE:
                syns.append(index)
            elif carried[index] not in ids:
                others.append(index)
        return syns, others

    def names(self, indices: list[int]) -> list[bytes]:
        """The source addresses of these, as the kernel writes them."""
        records, size = self._records, self._headers[_NAMELEN_AT]
        return [records[index * _RECORD_BYTES : index * _RECORD_BYTES + size].tobytes() for index in indices]

    def answer(self, answers: Answers, fd: int, indices: list[int], data: bytearray) -> int:
        """Send to the source of each of these datagrams HEADER_BYTES of `data`, in the same order. Returns how many
        were sent.
        """
        records_at = self._control_at - NAME_BYTES
        control_bytes = 0
        if self._layout[1] and indices:
            control_bytes = self._control_sizes[indices[0]]
            self._clear_interfaces(control_bytes)
        places = array("Q", [records_at + index * _RECORD_BYTES for index in indices])
        return answers.send(
            fd, places, self._headers[_NAMELEN_AT], NAME_BYTES if control_bytes else 0, control_bytes, data
        )

    def _clear_interfaces(self, control_bytes: int) -> None:
        """The IP_PKTINFO with which a datagram arrived is sent with its answer, to set the source address. The number
        of the interface is cleared in it, so that the routing table chooses the interface.
        """
        at = _PKTINFO_INTERFACE_AT.get(control_bytes)
        if at is not None:
            words = self._records.cast("I")[(NAME_BYTES + at) // 4 :: _RECORD_BYTES // 4]
            words[:] = array("I", [0]) * len(words)

    def _group(self, first: int, count: int, size: int, last: int, records: bytes) -> Raw:
        if not records:
            return first, count, size, last, b"", b""
        at = first * _RECORD_BYTES
        header = self._headers[first * _HEADER_BYTES : (first + 1) * _HEADER_BYTES]
        name = records[at : at + _NAMELEN.unpack_from(header)[0]] if self._layout[0] else b""
        at += NAME_BYTES
        return first, count, size, last, name, records[at : at + _CONTROLLEN.unpack_from(header)[0]]

    def overflow(self, index: int, count: int) -> memoryview:
        """The last `count` bytes of a datagram, those that its slot had no room for."""
        return memoryview(self.overflow_memory)[index * ROOM_BYTES : index * ROOM_BYTES + count]


class Answers:
    """The memory of sendmmsg(2) for answers of HEADER_BYTES to many addresses."""

    __slots__ = ("_address", "_columns", "_data", "_iovecs", "_memory", "_sendmmsg")

    def __init__(self) -> None:
        self._sendmmsg = libc.sendmmsg
        self._data = bytearray(MAX_DATAGRAMS_IN * HEADER_BYTES)
        data_at = _address(self._data)
        self._iovecs = bytearray(
            b"".join(_IOVEC.pack(data_at + at, HEADER_BYTES) for at in range(0, len(self._data), 20))
        )
        iovecs_at = _address(self._iovecs)
        self._memory = bytearray(
            b"".join(_HEADER.pack(0, 0, iovecs_at + 16 * index, 1, 0, 0, 0, 0) for index in range(MAX_DATAGRAMS_IN))
        )
        self._address = _address(self._memory)
        words = memoryview(self._memory).cast("Q")
        self._columns = words[0::8], words[1::8], words[4::8], words[5::8]

    def send(
        self, fd: int, names: array[int], name_bytes: int, control_offset: int, control_bytes: int, data: bytearray
    ) -> int:
        """Send 20 bytes of `data` to each of `names`; returns how many were sent. A datagram that the kernel refuses is
        skipped. When its buffer is full the rest is dropped: a peer that needs one of these repeats its packet.

        names            pointers to socket addresses
        control_offset   from an address to the ancillary data of its answer, bytes
        """
        count = len(names)
        self._data[: len(data)] = data
        name_column, name_sizes, controls, control_sizes = self._columns
        name_column[:count] = names
        name_sizes[:count] = array("Q", [name_bytes]) * count
        controls[:count] = (
            array("Q", [name + control_offset for name in names]) if control_bytes else array("Q", [0]) * count
        )
        control_sizes[:count] = array("Q", [control_bytes]) * count
        done = sent = refused = 0
        while done < count and refused < _MAX_REFUSED:
            sent_now = self._sendmmsg(
                fd, self._address + done * _HEADER_BYTES, count - done, _MSG_DONTWAIT | _MSG_NOSIGNAL
            )
            if sent_now > 0:
                done += sent_now
                sent += sent_now
            else:
                if ctypes.get_errno() in (errno.EAGAIN, errno.ENOBUFS):
                    break
                done += 1
                refused += 1
        return sent


class Outbound:
    """The memory of sendmmsg(2) for datagrams to one address. All ports share one."""

    __slots__ = (
        "_address",
        "_bases",
        "_headers",
        "_iovecs",
        "_layout",
        "_lengths",
        "_memory",
        "_segment",
        "_sendmmsg",
    )

    def __init__(self) -> None:
        self._sendmmsg = libc.sendmmsg
        iovecs, headers = bytearray(MAX_DATAGRAMS_OUT * _IOVEC.size), bytearray(MAX_DATAGRAMS_OUT * _HEADER_BYTES)
        self._memory = iovecs, headers
        self._headers = memoryview(headers)
        self._address, self._iovecs = _address(headers), _address(iovecs)
        words = memoryview(iovecs).cast("Q")
        self._bases, self._lengths = words[0::2], words[1::2]
        self._layout = -1, 0, 0, 0
        self._segment = 0

    def send(
        self,
        fd: int,
        data_at: int,
        size: int,
        segment: int,
        name_at: int,
        name_bytes: int,
        control_at: int,
        control_bytes: int,
    ) -> int:
        """Send `size` bytes to one address, in datagrams of `segment` bytes. Returns how many datagrams were sent, at
        most MAX_DATAGRAMS_OUT; or -1 if the first one failed, with its errno in ctypes.get_errno().
        """
        layout = name_at, name_bytes, control_at, control_bytes
        if layout != self._layout:
            self._layout = layout
            self._headers[:] = b"".join(
                _HEADER.pack(name_at, name_bytes, self._iovecs + 16 * index, 1, control_at, control_bytes, 0, 0)
                for index in range(MAX_DATAGRAMS_OUT)
            )
        if segment != self._segment:
            self._segment = segment
            self._lengths[:] = array("Q", [segment]) * MAX_DATAGRAMS_OUT
        count = min(-(-size // segment), MAX_DATAGRAMS_OUT)
        self._bases[:count] = array("Q", range(data_at, data_at + count * segment, segment))
        last = size - (count - 1) * segment
        if last < segment:
            self._lengths[count - 1] = last
            sent = self._sendmmsg(fd, self._address, count, _MSG_DONTWAIT | _MSG_NOSIGNAL)
            self._lengths[count - 1] = segment
        else:
            sent = self._sendmmsg(fd, self._address, count, _MSG_DONTWAIT | _MSG_NOSIGNAL)
        return sent

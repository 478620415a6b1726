"""recv(2), send(2), recvmsg(2) and sendmsg(2) of the data path, with the GIL held.

The socket module releases the GIL around every system call. To get it back, the engine's thread waits for a thread of
the program that computes, up to one switch interval (5 ms) for each call. The calls here do not block, so nothing is
gained by a release. With the GIL held, a thread that computes delays the engine once per wake-up instead of three times
per batch (docs/performance.md §9). The calls are made by ctypes, on 64-bit Linux with a GIL; elsewhere, or with
UTPSOCKET_KEEP_GIL=0, by the socket module. Both kinds return a negative errno where the socket module raises.

The compiled build calls utpsocket/_native.c in place of ctypes (native_calls.py).

Only the engine's thread calls. Sources: recvmsg(2), sendmsg(2), cmsg(3), Doc/library/ctypes.rst (PyDLL).
"""

from __future__ import annotations

import errno
import functools
import sys
from collections.abc import Sequence
from mmap import mmap
from typing import TYPE_CHECKING, ClassVar, Final, Literal, TypeAlias

from utpsocket.engine import environment
from utpsocket.engine.interpreter import libc
from utpsocket.engine.interpreter.native import Socket
from utpsocket.engine.interpreter.originals import ctypes, struct
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.kernel.mmsg import CONTROL_BYTES, NAME_BYTES, ROOM_BYTES, Answers, Inbound, Outbound
from utpsocket.protocol import Address

if TYPE_CHECKING:
    from utpsocket.protocol.layout import Layout

_MSG_DONTWAIT: Final = 0x40
_MSG_NOSIGNAL: Final = 0x4000
# linux/uio.h UIO_MAXIOV
_MAX_IOVECS: Final = 1_024
# Buffers that are joined for one send(); copying them costs no more than an iovec for each.
_JOINED: Final = 256
# A first buffer of so many bytes is sent alone, without copying it; by feel.
_LARGE_BYTES: Final = 65_536
# sizeof(struct sockaddr_storage)
_NAME_BYTES: Final = 128
# Of ancillary data, more than any port asks for (udp.ANCILLARY_BYTES); by feel.
_CONTROL_BYTES: Final = 256
# Addresses, and sets of ancillary data, that are kept converted for each socket; by feel.
MAX_NAMES: Final = 4_096
_CMSG: Final[Layout[tuple[int, int, int]]] = struct.Struct("@Nii")
_IPV4: Final[Layout[tuple[int, bytes, bytes]]] = struct.Struct("=H2s4s8x")
_IPV6: Final[Layout[tuple[int, bytes, bytes, bytes, int]]] = struct.Struct("=H2s4s16sI")
_plain_overflow: Final = memoryview(bytearray(ROOM_BYTES))
# Where nothing was received.
NO_ADDRESS: Final[Address] = ("", 0)

Ancillary: TypeAlias = list[tuple[int, int, bytes]]
"""Ancillary data as the socket module has it: level, type and data of each."""
ReceivedAncillary: TypeAlias = Sequence[tuple[int, int, bytes]]
Received: TypeAlias = tuple[int, ReceivedAncillary, int, Address]
"""Of one datagram: its size or a negative errno, ancillary data, flags, address."""
Group: TypeAlias = tuple[int, int, int, int, ReceivedAncillary, Address]
"""Datagrams of equal size and source, in slots that follow each other: the first index, the count, the size of each but
the last, the size of the last; their ancillary data and source address."""


class PlainStream:
    """The engine's end of a socket pair, through the socket module. Does not own it."""

    __slots__ = ("_sock",)

    def __init__(self, sock: Socket) -> None:
        self._sock = sock

    def receive(self, spans: list[memoryview]) -> int:
        """Read into `spans`, one after the other; how many bytes, 0 at the end of file, or a negative errno."""
        try:
            if len(spans) == 1:
                return self._sock.recv_into(spans[0])
            return self._sock.recvmsg_into(spans)[0]
        except OSError as error:
            return -(error.errno or errno.EIO)

    def send(self, views: list[memoryview]) -> int:
        """Write as much of `views` as there is room for; how many bytes, or a negative errno."""
        try:
            return self._sock.sendmsg(views if len(views) <= _MAX_IOVECS else views[:_MAX_IOVECS])
        except OSError as error:
            return -(error.errno or errno.EIO)


class PlainDatagrams:
    """A UDP socket, through the socket module. Does not own it."""

    __slots__ = ("_ancillary_bytes", "_overflow", "_peer", "_sock")
    can_send_many: ClassVar[Literal[False]] = False
    can_classify: ClassVar[Literal[False]] = False

    def __init__(self, sock: Socket, ancillary_bytes: int, peer: Address | None) -> None:
        self._sock = sock
        self._ancillary_bytes = ancillary_bytes
        # The address of a connected socket's peer as the program wrote it; None: the socket is not connected.
        self._peer = peer
        self._overflow: dict[int, bytes] = {}

    def receive(self, room: memoryview) -> Received:
        """As socket.recvmsg_into(), with a negative errno for the size where that raises."""
        addr: Address
        try:
            size, ancillary, flags, addr = self._sock.recvmsg_into((room,), self._ancillary_bytes)
        except OSError as error:
            return -(error.errno or errno.EIO), (), 0, NO_ADDRESS
        return size, ancillary, flags, addr if self._peer is None else self._peer

    def receive_many(self, room: memoryview, stride: int, max_datagrams: int) -> int | list[Group]:
        """Receive up to `max_datagrams` into slots of `stride` bytes. Returns their groups, or a negative errno. Of a
        datagram longer than its slot, overflow() has the rest.
        """
        addr: Address
        groups: list[Group] = []
        self._overflow.clear()
        for index in range(max_datagrams):
            spans = room[index * stride : (index + 1) * stride], _plain_overflow
            try:
                size, ancillary, _, addr = self._sock.recvmsg_into(spans, self._ancillary_bytes)
            except OSError as error:
                return groups or -(error.errno or errno.EIO)
            if self._peer is not None:
                addr = self._peer
            if size > stride:
                self._overflow[index] = bytes(_plain_overflow[: size - stride])
            if groups:
                first, count, usual, last, its_ancillary, its_addr = groups[-1]
                if 0 < size <= usual == last and addr == its_addr and ancillary == its_ancillary:
                    groups[-1] = first, count + 1, usual, size, its_ancillary, its_addr
                    continue
            groups.append((index, 1, size, size, ancillary, addr))
        return groups

    def overflow(self, index: int, count: int) -> bytes:
        """The last `count` bytes of a datagram just received, which its slot had no room for."""
        return self._overflow[index]

    def send(self, data: bytes | bytearray, start: int, stop: int, ancillary: Ancillary, addr: Address | None) -> int:
        """Send data[start:stop]. Returns 0 or the errno."""
        piece: bytes | bytearray | memoryview = data if stop - start == len(data) else memoryview(data)[start:stop]
        try:
            if addr is None:
                self._sock.sendmsg((piece,), ancillary)
            else:
                self._sock.sendmsg((piece,), ancillary, 0, addr)
        except OSError as error:
            return error.errno or errno.EIO
        return 0


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))
    base: int | None
    length: int


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.c_void_p),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )
    name: int | None
    namelen: int
    iov: int | None
    iovlen: int
    control: int | None
    controllen: int
    flags: int


def keeps_gil() -> bool:
    """Whether the calls can be made by ctypes: Linux's 64-bit layout of struct msghdr, and a GIL."""
    if sys.platform != "linux" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return False
    return environment.value_if_any("UTPSOCKET_KEEP_GIL", True)


_c_char = ctypes.c_char
_addressof = ctypes.addressof
_get_errno = ctypes.get_errno
_recv, _send, _recvmsg, _sendmsg = libc.recv, libc.send, libc.recvmsg, libc.sendmsg
_bytes_address, _bytearray_address = libc.bytes_address, libc.bytearray_address
_Buffer: TypeAlias = ctypes.Array[ctypes.c_char]


@functools.cache
def _array_type(length: int) -> type[_Buffer]:
    """A ctypes array type. Kept, since it is slow to make, and refers to itself: only the collector could free it."""
    return ctypes.c_char * length


def _address(data: bytes | bytearray) -> int:
    return _bytes_address(data) if isinstance(data, bytes) else _bytearray_address(data)


class KeepingStream:
    """As PlainStream, with the GIL held."""

    __slots__ = ("_fd",)

    def __init__(self, sock: Socket) -> None:
        self._fd = sock.fileno()

    def receive(self, spans: list[memoryview]) -> int:
        """See PlainStream.receive()."""
        total = 0
        for span in spans:
            length = len(span)
            count = _recv(self._fd, _addressof(_c_char.from_buffer(span)), length, _MSG_DONTWAIT)
            if count < 0:
                return total or -_get_errno()
            total += count
            if count < length:
                break
        return total

    def send(self, views: list[memoryview]) -> int:
        """See PlainStream.send()."""
        first = views[0]
        if len(views) == 1 or len(first) >= _LARGE_BYTES:
            if first.readonly:
                data: bytes = (
                    first.obj if isinstance(first.obj, bytes) and first.nbytes == len(first.obj) else bytes(first)
                )
                count = _send(self._fd, _bytes_address(data), len(data), _MSG_DONTWAIT | _MSG_NOSIGNAL)
            else:
                at = _addressof(_c_char.from_buffer(first))
                count = _send(self._fd, at, len(first), _MSG_DONTWAIT | _MSG_NOSIGNAL)
        else:
            data = b"".join(views if len(views) <= _JOINED else views[:_JOINED])
            count = _send(self._fd, _bytes_address(data), len(data), _MSG_DONTWAIT | _MSG_NOSIGNAL)
        return count if count >= 0 else -_get_errno()


class KeepingDatagrams:
    """As PlainDatagrams, with the GIL held."""

    __slots__ = ("_ancillary_bytes", "_fd", "_peer")
    can_send_many: ClassVar[Literal[True]] = True
    can_classify: ClassVar[Literal[True]] = True

    def __init__(self, sock: Socket, ancillary_bytes: int, peer: Address | None) -> None:
        self._fd = sock.fileno()
        self._ancillary_bytes = min(ancillary_bytes, _CONTROL_BYTES)
        self._peer = peer

    def receive(self, room: memoryview) -> Received:
        """See PlainDatagrams.receive()."""
        _in_iovec.base = _addressof(_c_char.from_buffer(room))
        _in_iovec.length = len(room)
        _in_header.namelen = 0 if self._peer is not None else _NAME_BYTES
        _in_header.controllen = self._ancillary_bytes
        size = _recvmsg(self._fd, _in_header_at, _MSG_DONTWAIT)
        if size < 0:
            return -_get_errno(), (), 0, NO_ADDRESS
        addr = self._peer
        if addr is None:
            name = _in_name.raw[: _in_header.namelen]
            addr = known_addresses.get(name) or self.parse_name(name)
        length = _in_header.controllen
        if not length:
            return size, (), _in_header.flags, addr
        control: bytes = _in_control[:length]  # type: ignore[assignment]  # bytes, of an array of char
        return size, known_controls.get(control) or keep_parsed(control), _in_header.flags, addr

    def receive_many(self, room: memoryview, stride: int, max_datagrams: int) -> int | list[Group]:
        """See PlainDatagrams.receive_many()."""
        room_at = _addressof(_c_char.from_buffer(room))
        name_bytes = 0 if self._peer is not None else NAME_BYTES
        count = _inbound.receive(
            self._fd, room_at, stride, max_datagrams, name_bytes, min(self._ancillary_bytes, CONTROL_BYTES)
        )
        if count < 0:
            return -_get_errno()
        return self._groups(0, count)

    def _groups(self, start: int, stop: int) -> list[Group]:
        addresses, peer = known_addresses, self._peer
        return [
            (
                first,
                count,
                size,
                last,
                _parsed(control) if control else (),
                peer if peer is not None else addresses.get(name) or self.parse_name(name),
            )
            for first, count, size, last, name, control in _inbound.groups(stop, start)
        ]

    def receive_classified(
        self, room: memoryview, stride: int, max_datagrams: int, ids: set[int], plain_control_bytes: int
    ) -> int | tuple[int, list[Group], list[int], list[int]]:
        """As receive_many(), without groups of datagrams that belong to no established connection. Returns how many
        were received, the groups, the indices of SYNs, and those of the other datagrams without a group
        (Inbound.unmatched()); or a negative errno.
        """
        room_at = _addressof(_c_char.from_buffer(room))
        control_bytes = min(self._ancillary_bytes, CONTROL_BYTES)
        count = _inbound.receive(self._fd, room_at, stride, max_datagrams, NAME_BYTES, control_bytes)
        if count < 0:
            return -_get_errno()
        syns, others = _inbound.unmatched(count, room, stride, ids, plain_control_bytes)
        if not syns and not others:
            return count, self._groups(0, count), syns, others
        groups: list[Group] = []
        unmatched = {*syns, *others}
        start = -1
        for index in range(count + 1):
            if index == count or index in unmatched:
                if start >= 0:
                    groups += self._groups(start, index)
                    start = -1
            elif start < 0:
                start = index
        return count, groups, syns, others

    def names(self, indices: list[int]) -> list[bytes]:
        """The source addresses of these datagrams that were just received, as the kernel writes them."""
        return _inbound.names(indices)

    def group(self, index: int) -> Group:
        """One of the datagrams that were just received."""
        return self._groups(index, index + 1)[0]

    def answer(self, indices: list[int], data: bytearray) -> int:
        """Send HEADER_BYTES of `data` to the source of each of these that were just received. Returns how many were
        sent.
        """
        return _inbound.answer(_answers, self._fd, indices, data)

    def overflow(self, index: int, count: int) -> memoryview:
        """See PlainDatagrams.overflow()."""
        return _inbound.overflow(index, count)

    @property
    def overflow_memory(self) -> mmap:
        """What overflow() looks into. All sockets share it."""
        return _inbound.overflow_memory

    def parse_name(self, name: bytes) -> Address:
        """An address as the socket module writes it, of the kernel's struct sockaddr. It is kept in known_addresses."""
        family = int.from_bytes(name[:2], sys.byteorder)
        addr: Address
        if family == stdlib.AF_INET:
            _, port, host = _IPV4.unpack_from(name)
            addr = (stdlib.inet_ntop(stdlib.AF_INET, host), int.from_bytes(port, "big"))
        else:
            _, port, flow, host, scope = _IPV6.unpack_from(name)
            text = stdlib.inet_ntop(stdlib.AF_INET6, host)
            addr = (text, int.from_bytes(port, "big"), int.from_bytes(flow, "big"), scope)
        if len(known_addresses) >= MAX_NAMES:
            known_addresses.clear()
        known_addresses[name] = addr
        return addr

    def _name(self, addr: Address) -> _Buffer:
        """An address as the kernel reads it."""
        name = packed_name(addr)
        kept = _array_type(len(name)).from_buffer_copy(name)
        if len(_names) >= MAX_NAMES:
            _names.clear()
        _names[addr] = kept
        return kept

    def _control(self, ancillary: Ancillary) -> _Buffer:
        key = tuple(ancillary)
        control = _controls.get(key)
        if control is None:
            raw = packed_control(ancillary)
            if len(_controls) >= MAX_NAMES:
                _controls.clear()
            control = _controls[key] = _array_type(len(raw)).from_buffer_copy(raw)
        return control

    def send(self, data: bytes | bytearray, start: int, stop: int, ancillary: Ancillary, addr: Address | None) -> int:
        """See PlainDatagrams.send()."""
        at = (_bytes_address(data) if isinstance(data, bytes) else _bytearray_address(data)) + start
        if addr is None and not ancillary:
            return 0 if _send(self._fd, at, stop - start, _MSG_DONTWAIT | _MSG_NOSIGNAL) >= 0 else _get_errno()
        _out_iovec.base = at
        _out_iovec.length = stop - start
        if addr is None:
            _out_header.name = None
            _out_header.namelen = 0
        else:
            name = _names.get(addr) or self._name(addr)
            _out_header.name = _addressof(name)
            _out_header.namelen = len(name)
        if ancillary:
            control = self._control(ancillary)
            _out_header.control = _addressof(control)
            _out_header.controllen = len(control)
        else:
            _out_header.control = None
            _out_header.controllen = 0
        return 0 if _sendmsg(self._fd, _out_header_at, _MSG_DONTWAIT | _MSG_NOSIGNAL) >= 0 else _get_errno()

    def send_many(
        self, data: bytes | bytearray, start: int, segment: int, ancillary: Ancillary, addr: Address | None
    ) -> int:
        """Send data[start:] in datagrams of `segment` bytes. Returns how many were sent, or the negative errno of the
        first.
        """
        name = None if addr is None else _names.get(addr) or self._name(addr)
        control = self._control(ancillary) if ancillary else None
        count = _outbound.send(
            self._fd,
            _address(data) + start,
            len(data) - start,
            segment,
            0 if name is None else _addressof(name),
            0 if name is None else len(name),
            0 if control is None else _addressof(control),
            0 if control is None else len(control),
        )
        return count if count >= 0 else -_get_errno()


def packed_control(ancillary: Ancillary) -> bytes:
    """Ancillary data as the kernel reads it: cmsg(3)."""
    return b"".join(
        (_CMSG.pack(_CMSG.size + len(data), level, kind) + data).ljust((_CMSG.size + len(data) + 7) & ~7, b"\0")
        for level, kind, data in ancillary
    )


def packed_name(addr: Address) -> bytes:
    """An address as the kernel writes it, struct sockaddr_in or sockaddr_in6."""
    port = int(addr[1]).to_bytes(2, "big")
    if len(addr) == 2:
        return _IPV4.pack(stdlib.AF_INET, port, stdlib.inet_pton(stdlib.AF_INET, addr[0]))
    host = stdlib.inet_pton(stdlib.AF_INET6, addr[0].partition("%")[0])
    return _IPV6.pack(stdlib.AF_INET6, port, int(addr[2]).to_bytes(4, "big"), host, addr[3])


def _parsed(control: bytes) -> Ancillary:
    """Ancillary data as the socket module gives it."""
    ancillary: Ancillary = []
    at = 0
    while at + _CMSG.size <= len(control):
        whole, level, kind = _CMSG.unpack_from(control, at)
        ancillary.append((level, kind, control[at + _CMSG.size : at + whole]))
        at += whole + 7 & ~7
    return ancillary


known_addresses: Final[dict[bytes, Address]] = {}
"""Addresses as the socket module has them, by struct sockaddr."""
_names: Final[dict[Address, _Buffer]] = {}
"""The reverse."""
_controls: Final[dict[tuple[tuple[int, int, bytes], ...], _Buffer]] = {}
"""Ancillary data as the kernel reads it."""
known_controls: Final[dict[bytes, Ancillary]] = {}
"""Ancillary data that has been received, by what the kernel wrote."""


def keep_parsed(control: bytes) -> Ancillary:
    """known_controls[control], made first. It is kept: the same comes with nearly every datagram."""
    if len(known_controls) >= MAX_NAMES:
        known_controls.clear()
    ancillary = known_controls[control] = _parsed(control)
    return ancillary


# All sockets share these: while the GIL is held no other thread can make a call.
_in_name = ctypes.create_string_buffer(_NAME_BYTES)
_in_control = ctypes.create_string_buffer(_CONTROL_BYTES)
_in_iovec, _out_iovec = _Iovec(), _Iovec()
_in_header = _Msghdr(_addressof(_in_name), 0, _addressof(_in_iovec), 1, _addressof(_in_control), 0, 0)
_out_header = _Msghdr(None, 0, _addressof(_out_iovec), 1, None, 0, 0)
_in_header_at, _out_header_at = _addressof(_in_header), _addressof(_out_header)
if keeps_gil():
    _inbound, _outbound, _answers = Inbound(), Outbound(), Answers()

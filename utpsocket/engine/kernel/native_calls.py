"""The calls of syscalls.py by utpsocket/_native.c, where that is installed: in the compiled build. And which kind of
calls is used: these, those by ctypes, or those of the socket module.

Only the engine's thread calls. Sources: recvmsg(2), sendmsg(2), sendmmsg(2), cmsg(3).
"""

from __future__ import annotations

from collections.abc import Callable
from mmap import mmap
from typing import ClassVar, Final, Literal, TypeAlias, final

from utpsocket.engine.interpreter.native import Socket
from utpsocket.engine.kernel.mmsg import MAX_DATAGRAMS_IN, NATIVE_RECORD_BYTES, Raw
from utpsocket.engine.kernel.syscalls import (
    MAX_NAMES,
    NO_ADDRESS,
    Ancillary,
    Group,
    KeepingDatagrams,
    KeepingStream,
    PlainDatagrams,
    PlainStream,
    Received,
    keep_parsed,
    keeps_gil,
    known_addresses,
    known_controls,
    packed_control,
    packed_name,
)
from utpsocket.protocol import Address, Transmit
from utpsocket.protocol.build import IS_COMPILED
from utpsocket.protocol.packet import HEADER_BYTES

if IS_COMPILED:
    from utpsocket import _native


@final
class NativeStream:
    """As KeepingStream, by _native.c."""

    __slots__ = ("_fd", "_receive", "_send")

    def __init__(self, sock: Socket) -> None:
        self._fd = sock.fileno()
        # Attributes, so that a measurement may put its own in their place (compat/bench/meter.py).
        self._receive: Callable[[int, list[memoryview]], int] = _native.receive
        self._send: Callable[[int, list[memoryview]], int] = _native.send

    def receive(self, spans: list[memoryview]) -> int:
        """See PlainStream.receive()."""
        return self._receive(self._fd, spans)

    def send(self, views: list[memoryview]) -> int:
        """See PlainStream.send()."""
        return self._send(self._fd, views)


@final
class NativeDatagrams:
    """As KeepingDatagrams, by _native.c where it is called for each run. It leaves the rest to the same socket's
    KeepingDatagrams: a compiled class has no interpreted one as its base.
    """

    __slots__ = (
        "_ancillary_bytes",
        "_fd",
        "_keeping",
        "_overflow_memory",
        "_peer",
        "_receive",
        "_receive_many",
        "_send",
    )
    can_send_many: ClassVar[Literal[True]] = True
    can_classify: ClassVar[Literal[True]] = True

    def __init__(self, sock: Socket, ancillary_bytes: int, peer: Address | None) -> None:
        self._keeping = KeepingDatagrams(sock, ancillary_bytes, peer)
        self._overflow_memory = self._keeping.overflow_memory
        self._fd = sock.fileno()
        self._ancillary_bytes = ancillary_bytes
        self._peer = peer
        # Attributes, as NativeStream's.
        self._receive: Callable[[int, memoryview, int, bool], tuple[int, bytes, int, bytes]] = _native.receive_datagram
        self._receive_many: Callable[[int, memoryview, int, int, bool, int, bytearray, mmap], int | list[Raw]] = (
            _native.receive_datagrams
        )
        self._send: Callable[[int, bytes | bytearray, int, int, bytes | None, bytes | None], int] = (
            _native.send_datagram
        )

    def receive(self, room: memoryview) -> Received:
        """See PlainDatagrams.receive()."""
        peer = self._peer
        size, control, flags, name = self._receive(self._fd, room, self._ancillary_bytes, peer is None)
        if size < 0:
            return size, (), 0, NO_ADDRESS
        if peer is None:
            peer = known_addresses.get(name) or self._keeping.parse_name(name)
        return size, (known_controls.get(control) or keep_parsed(control)) if control else (), flags, peer

    def send(self, data: bytes | bytearray, start: int, stop: int, ancillary: Ancillary, addr: Address | None) -> int:
        """See PlainDatagrams.send()."""
        control = self._packed_control(ancillary) if ancillary else None
        name = None if addr is None else _packed_names.get(addr) or self._packed_name(addr)
        return self._send(self._fd, data, start, stop, control, name)

    def send_spans(
        self,
        transmit: Transmit,
        spans: list[memoryview],
        first: int,
        count: int,
        ancillary: Ancillary,
        addr: Address | None,
    ) -> int:
        """Send `count` datagrams of a run whose payload lies in spans, from the one at index `first` on: by UDP_SEGMENT
        if `ancillary` has it, else by sendmmsg(2). Returns how many were sent, or a negative errno.
        """
        size = transmit.datagram_bytes - HEADER_BYTES
        last = transmit.last_bytes - HEADER_BYTES if first + count == transmit.count else size
        return _native.send_run(
            self._fd,
            transmit.header,
            transmit.seq + first,
            spans,
            first * size,
            size,
            count,
            last,
            self._packed_control(ancillary) if ancillary else None,
            None if addr is None else _packed_names.get(addr) or self._packed_name(addr),
            bool(ancillary) and ancillary[0][0] == _IPPROTO_UDP,
        )

    def receive_many(self, room: memoryview, stride: int, max_datagrams: int) -> int | list[Group]:
        """See PlainDatagrams.receive_many()."""
        peer = self._peer
        found = self._receive_many(
            self._fd,
            room,
            stride,
            max_datagrams,
            peer is None,
            self._ancillary_bytes,
            _records,
            self._overflow_memory,
        )
        if isinstance(found, int):
            return found
        return [
            (
                first,
                count,
                size,
                last,
                (known_controls.get(control) or keep_parsed(control)) if control else (),
                peer if peer is not None else known_addresses.get(name) or self._keeping.parse_name(name),
            )
            for first, count, size, last, name, control in found
        ]

    def receive_classified(
        self, room: memoryview, stride: int, max_datagrams: int, ids: set[int], plain_control_bytes: int
    ) -> int | tuple[int, list[Group], list[int], list[int]]:
        """See KeepingDatagrams.receive_classified()."""
        return self._keeping.receive_classified(room, stride, max_datagrams, ids, plain_control_bytes)

    def names(self, indices: list[int]) -> list[bytes]:
        """See KeepingDatagrams.names()."""
        return self._keeping.names(indices)

    def group(self, index: int) -> Group:
        """See KeepingDatagrams.group()."""
        return self._keeping.group(index)

    def answer(self, indices: list[int], data: bytearray) -> int:
        """See KeepingDatagrams.answer()."""
        return self._keeping.answer(indices, data)

    def overflow(self, index: int, count: int) -> memoryview:
        """See PlainDatagrams.overflow()."""
        return self._keeping.overflow(index, count)

    def send_many(
        self, data: bytes | bytearray, start: int, segment: int, ancillary: Ancillary, addr: Address | None
    ) -> int:
        """See KeepingDatagrams.send_many()."""
        return self._keeping.send_many(data, start, segment, ancillary, addr)

    def _packed_name(self, addr: Address) -> bytes:
        if len(_packed_names) >= MAX_NAMES:
            _packed_names.clear()
        name = _packed_names[addr] = packed_name(addr)
        return name

    def _packed_control(self, ancillary: Ancillary) -> bytes:
        key = tuple(ancillary)
        control = _packed_controls.get(key)
        if control is None:
            if len(_packed_controls) >= MAX_NAMES:
                _packed_controls.clear()
            control = _packed_controls[key] = packed_control(ancillary)
        return control


_packed_names: Final[dict[Address, bytes]] = {}
"""Addresses as the kernel reads them."""
_packed_controls: Final[dict[tuple[tuple[int, int, bytes], ...], bytes]] = {}
"""Ancillary data as the kernel reads it."""
_records: Final = bytearray(MAX_DATAGRAMS_IN * NATIVE_RECORD_BYTES if IS_COMPILED else 0)
"""The memory of recvmmsg(2). All ports share it, as Inbound's."""
_IPPROTO_UDP: Final = 17

AnyStream: TypeAlias = NativeStream | KeepingStream | PlainStream
GatheringDatagrams: TypeAlias = NativeDatagrams | KeepingDatagrams
"""Those that receive, and send, many datagrams by one call."""
AnyDatagrams: TypeAlias = GatheringDatagrams | PlainDatagrams
Stream: Final[type[AnyStream]] = PlainStream if not keeps_gil() else NativeStream if IS_COMPILED else KeepingStream
Datagrams: Final[type[AnyDatagrams]] = (
    PlainDatagrams if not keeps_gil() else NativeDatagrams if IS_COMPILED else KeepingDatagrams
)

"""The calls of syscalls.py by utpsocket/_native.c, where that is installed: in the compiled build. And which kind of
calls is used: these, those by ctypes, or those of the socket module.

Only the engine's thread calls. Sources: recvmsg(2), sendmsg(2), sendmmsg(2), cmsg(3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final, Literal, TypeAlias

from utpsocket.engine.interpreter.native import Socket
from utpsocket.engine.kernel.syscalls import (
    MAX_NAMES,
    NO_ADDRESS,
    Ancillary,
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

if TYPE_CHECKING or IS_COMPILED:
    from utpsocket import _native


class NativeStream:
    """As KeepingStream, by _native.c."""

    __slots__ = ("_fd",)

    def __init__(self, sock: Socket) -> None:
        self._fd = sock.fileno()

    def receive(self, spans: list[memoryview]) -> int:
        """See PlainStream.receive()."""
        return _native.receive(self._fd, spans)

    def send(self, views: list[memoryview]) -> int:
        """See PlainStream.send()."""
        return _native.send(self._fd, views)


class NativeDatagrams(KeepingDatagrams):
    """As KeepingDatagrams, by _native.c where it is called for each run."""

    __slots__ = ()
    can_send_many: ClassVar[Literal[True]] = True

    def receive(self, room: memoryview) -> Received:
        """See PlainDatagrams.receive()."""
        peer = self._peer
        size, control, flags, name = _native.receive_datagram(self._fd, room, self._ancillary_bytes, peer is None)
        if size < 0:
            return size, (), 0, NO_ADDRESS
        if peer is None:
            peer = known_addresses.get(name) or self._parse_name(name)
        return size, (known_controls.get(control) or keep_parsed(control)) if control else (), flags, peer

    def send(self, data: bytes | bytearray, start: int, stop: int, ancillary: Ancillary, addr: Address | None) -> int:
        """See PlainDatagrams.send()."""
        control = self._packed_control(ancillary) if ancillary else None
        name = None if addr is None else _packed_names.get(addr) or self._packed_name(addr)
        return _native.send_datagram(self._fd, data, start, stop, control, name)

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
_IPPROTO_UDP: Final = 17

AnyStream: TypeAlias = NativeStream | KeepingStream | PlainStream
AnyDatagrams: TypeAlias = KeepingDatagrams | PlainDatagrams
Stream: Final[type[AnyStream]] = PlainStream if not keeps_gil() else NativeStream if IS_COMPILED else KeepingStream
Datagrams: Final[type[AnyDatagrams]] = (
    PlainDatagrams if not keeps_gil() else NativeDatagrams if IS_COMPILED else KeepingDatagrams
)

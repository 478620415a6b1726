"""UTPSOCKET_PCAP: each datagram that the engine sends or receives is written to a file that Wireshark reads.

The engine sees no IP headers. They are made up from the addresses, as are UDP's: time to live 64, one packet for each
datagram, however the kernel fragments or merges them, at the time at which the engine has received or sent it. What
the kernel drops is not there.

The file is opened for each write and closed again, so that no descriptor is kept that a fork would copy or a program
could close, and processes may write to one file: each write is appended whole. A write that fails is left out.

While there is a file, ports use the socket module instead of ctypes or C, since there each datagram passes here.

Only the engine's thread, but begin(). Sources: draft-ietf-opsawg-pcapng (blocks), LINKTYPE_RAW; RFC 791, RFC 8200,
RFC 768, RFC 1071; udp(7) UDP_SEGMENT, UDP_GRO.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Final

from utpsocket.engine import environment
from utpsocket.engine.interpreter.native import Socket
from utpsocket.engine.interpreter.originals import os, socket, struct, time
from utpsocket.engine.interpreter.signal_errors import reraise_handler_error
from utpsocket.engine.kernel.syscalls import Ancillary, Group, PlainDatagrams, Received
from utpsocket.protocol import Address

_SECTION: Final = struct.pack("=IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28)
_LINKTYPE_RAW: Final = 101
_INTERFACE: Final = struct.pack("=IIHHII", 1, 20, _LINKTYPE_RAW, 0, 0, 20)  # times are µs unless an option says else
_PACKET: Final = struct.Struct("=IIIIIII")  # type, length, interface, time (high, low), captured and original length
_PACKET_BLOCK: Final = 6
_FLAGS: Final = struct.Struct("=HHIHHI")  # the option epb_flags, the end of the options, the length again
_EPB_FLAGS, _INBOUND, _OUTBOUND = 2, 1, 2
_IPV4: Final = struct.Struct(">BBHHHBBH4s4s")
_IPV6: Final = struct.Struct(">IHBB16s16s")
_UDP: Final = struct.Struct(">HHHH")
_UDP_SEGMENT, _UDP_GRO = 103, 104
_IP_PKTINFO, _IPV6_PKTINFO = 8, 50

# The value of the variable, and the path that it had in the folder of that moment.
_name = _path = ""


def begin() -> None:
    """An engine begins: read the variable. Raises ValueError, OSError where the file cannot be written."""
    global _name, _path
    name = environment.value("UTPSOCKET_PCAP", "")
    if name != _name:  # else the program may have changed its folder since
        _name, _path = name, os.path.abspath(name) if name else ""
    if _path:
        _append([])


def new_datagrams(sock: Socket, ancillary_bytes: int, peer: Address | None) -> PlainDatagrams | None:
    """What a port is to call for this socket, if there is a capture."""
    return CapturedDatagrams(sock, ancillary_bytes, peer) if _path else None


class CapturedDatagrams(PlainDatagrams):
    """Captures what passes."""

    __slots__ = ()

    def receive(self, room: memoryview) -> Received:
        """See PlainDatagrams.receive()."""
        received = super().receive(room)
        size, ancillary, _, addr = received
        if size > 0:
            self._capture(_INBOUND, bytes(room[:size]), ancillary, addr)
        return received

    def receive_many(self, room: memoryview, stride: int, max_datagrams: int) -> int | list[Group]:
        """See PlainDatagrams.receive_many()."""
        groups = super().receive_many(room, stride, max_datagrams)
        if not isinstance(groups, int):
            for first, count, size, last, ancillary, addr in groups:
                for index in range(first, first + count):
                    length = last if index == first + count - 1 else size
                    data = bytes(room[index * stride : index * stride + min(length, stride)])
                    self._capture(_INBOUND, data + self._overflow.get(index, b""), ancillary, addr)
        return groups

    def send(self, data: bytes | bytearray, start: int, stop: int, ancillary: Ancillary, addr: Address | None) -> int:
        """See PlainDatagrams.send()."""
        error = super().send(data, start, stop, ancillary, addr)
        if not error:
            self._capture(_OUTBOUND, bytes(data[start:stop]), ancillary, self._peer if addr is None else addr)
        return error

    def _capture(
        self, direction: int, data: bytes, ancillary: Iterable[tuple[int, int, bytes]], peer: Address | None
    ) -> None:
        try:
            local: Address = self._sock.getsockname()
            stride = len(data) or 1
            for level, kind, value in ancillary:
                if level == socket.IPPROTO_UDP and kind in (_UDP_SEGMENT, _UDP_GRO):
                    stride = int.from_bytes(value[:2], "little" if struct.pack("=H", 1)[0] else "big")
                elif level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                    local = (socket.inet_ntop(socket.AF_INET, value[4:8]), local[1])
                elif level == socket.IPPROTO_IPV6 and kind == _IPV6_PKTINFO:
                    local = (socket.inet_ntop(socket.AF_INET6, value[:16]), local[1])
            source, target = (peer or local, local) if direction == _INBOUND else (local, peer or local)
            datagrams = [data[at : at + stride] for at in range(0, len(data), stride)]
            _append([block(direction, packet(source, target, each)) for each in datagrams])
        except OSError as error:
            reraise_handler_error(error)


def _append(blocks: list[bytes]) -> None:
    fd = os.open(_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        begun = [] if os.fstat(fd).st_size else [_SECTION, _INTERFACE]
        if begun or blocks:
            os.write(fd, b"".join([*begun, *blocks]))
    finally:
        os.close(fd)


def block(direction: int, data: bytes) -> bytes:
    """A packet's block in the file: draft-ietf-opsawg-pcapng, "Enhanced Packet Block"."""
    now_us = time.time_ns() // 1_000
    padded = data + bytes(-len(data) % 4)
    length = _PACKET.size + len(padded) + _FLAGS.size
    head = _PACKET.pack(_PACKET_BLOCK, length, 0, now_us >> 32, now_us & 0xFFFF_FFFF, len(data), len(data))
    return head + padded + _FLAGS.pack(_EPB_FLAGS, 4, direction, 0, 0, length)


def packet(source: Address, target: Address, data: bytes) -> bytes:
    """A UDP datagram with the IP and UDP headers that go with its addresses."""
    length = _UDP.size + len(data)
    source_host, target_host = source[0].partition("%")[0], target[0].partition("%")[0]
    if ":" not in source_host:
        hosts = socket.inet_aton(source_host), socket.inet_aton(target_host)
        header = 0x45, 0, 20 + length, 0, 0x4000, 64, socket.IPPROTO_UDP
        checksum = _checksum(_IPV4.pack(*header, 0, *hosts))
        return _IPV4.pack(*header, checksum, *hosts) + _UDP.pack(source[1], target[1], length, 0) + data
    hosts = socket.inet_pton(socket.AF_INET6, source_host), socket.inet_pton(socket.AF_INET6, target_host)
    pseudo = b"".join(hosts) + struct.pack(">II", length, socket.IPPROTO_UDP)
    checksum = _checksum(pseudo + _UDP.pack(source[1], target[1], length, 0) + data) or 0xFFFF
    header6 = _IPV6.pack(6 << 28, length, socket.IPPROTO_UDP, 64, *hosts)
    return header6 + _UDP.pack(source[1], target[1], length, checksum) + data


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    words = array("H", data + bytes(len(data) % 2))
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    folded = ~total & 0xFFFF
    return int.from_bytes(struct.pack("=H", folded), "big")

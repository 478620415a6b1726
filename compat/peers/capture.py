"""Captures without privileges: pcap files (written by the relay, read by tshark) and one-line traces.

The IP and UDP headers are made up from the addresses the relay saw; checksums are left 0, which for UDP over IPv4
means "none". Format: https://wiki.wireshark.org/Development/LibpcapFileFormat, link type 101 (raw IP).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

MAX_CAPTURED_PACKETS: Final = 300_000  # about 450 MB of full packets: a capture is bounded, the transfer is not
LINKTYPE_RAW: Final = 101
TYPE_NAMES: Final = ("DATA", "FIN", "STATE", "RESET", "SYN")

Address = tuple[str, int]


class PcapWriter:
    """Writes datagrams as raw IP packets, with whole payloads."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("wb", buffering=1 << 20)
        self._file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 0x40000, LINKTYPE_RAW))
        self._left = MAX_CAPTURED_PACKETS

    def write(self, time_us: int, source: Address, target: Address, payload: bytes) -> None:
        if self._left <= 0:
            return
        self._left -= 1
        packet = ip_packet(source, target, payload)
        self._file.write(struct.pack("<IIII", time_us // 1_000_000, time_us % 1_000_000, len(packet), len(packet)))
        self._file.write(packet)

    def close(self) -> None:
        self._file.close()


def ip_packet(source: Address, target: Address, payload: bytes) -> bytes:
    """A UDP datagram with the IP header that goes with its addresses."""
    udp = struct.pack(">HHHH", source[1], target[1], 8 + len(payload), 0) + payload
    if ":" in source[0]:
        header = struct.pack(">IHBB", 6 << 28, len(udp), socket.IPPROTO_UDP, 64)
        return (
            header + socket.inet_pton(socket.AF_INET6, source[0]) + socket.inet_pton(socket.AF_INET6, target[0]) + udp
        )
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0x4000, 64, socket.IPPROTO_UDP, 0)
    return header + socket.inet_aton(source[0]) + socket.inet_aton(target[0]) + udp


def describe(datagram: bytes) -> str:
    """A uTP packet in one line: type, id, seq, ack, window, clocks, SACKed sequence numbers, payload length.

    A reading of its own, on purpose: it stands beside the implementations' and tshark's, and shares no code with them.
    """
    if len(datagram) < 20 or datagram[0] & 15 != 1 or datagram[0] >> 4 > 4:
        return f"not uTP, {len(datagram)} bytes: {datagram[:24].hex()}"
    kind, extension, conn_id, stamp, difference, window, seq, ack = struct.unpack_from(">BBHIIIHH", datagram)
    offset, extensions = 20, ""
    while extension:
        if offset + 2 > len(datagram) or offset + 2 + datagram[offset + 1] > len(datagram):
            return f"broken extension chain, {len(datagram)} bytes: {datagram[:40].hex()}"
        following, length = datagram[offset], datagram[offset + 1]
        body = datagram[offset + 2 : offset + 2 + length]
        if extension == 1:
            extensions += f" sack{length}={','.join(map(str, sacked(ack, body)))}"
        else:
            extensions += f" ext{extension}={body.hex()}"
        extension = following
        offset += 2 + length
    return (
        f"{TYPE_NAMES[kind >> 4]:5} id={conn_id} seq={seq} ack={ack} wnd={window} t={stamp} d={difference}"
        f"{extensions} len={len(datagram) - offset}"
    )


def sacked(ack: int, bits: bytes) -> list[int]:
    """The sequence numbers that a SACK's bits acknowledge: bit 0 is ack + 2 (BEP 29, "Selective ACK")."""
    return [
        (ack + 2 + 8 * index + bit) & 0xFFFF for index, byte in enumerate(bits) for bit in range(8) if byte >> bit & 1
    ]


def read_pcap(path: Path) -> Iterator[tuple[Address, Address, bytes]]:
    """(source, target, payload) of every datagram in a file that PcapWriter wrote."""
    data = path.read_bytes()
    offset = 24
    while offset + 16 <= len(data):
        (length,) = struct.unpack_from("<I", data, offset + 8)
        packet = data[offset + 16 : offset + 16 + length]
        offset += 16 + length
        if packet[0] >> 4 == 6:
            family, addresses, udp_at = socket.AF_INET6, (packet[8:24], packet[24:40]), 40
        else:
            family, addresses, udp_at = socket.AF_INET, (packet[12:16], packet[16:20]), 20
        source_port, target_port = struct.unpack_from(">HH", packet, udp_at)
        source, target = (socket.inet_ntop(family, address) for address in addresses)
        yield (source, source_port), (target, target_port), packet[udp_at + 8 :]

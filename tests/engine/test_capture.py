"""UTPSOCKET_PCAP: what is in the file is what was sent and received, in a form that any reader of pcapng takes."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from utpsocket.engine.kernel import capture
from utpsocket.protocol.packet import decode

ROOT = Path(__file__).resolve().parents[2]
CONVERSATION = """
import os, sys, utpsocket
family = utpsocket.AF_INET6 if ":" in sys.argv[1] else utpsocket.AF_INET
listener = utpsocket.create_server(("", 0) if len(sys.argv) > 2 else (sys.argv[1], 0), family=family)
os.chdir("/")
client = utpsocket.create_connection((sys.argv[1], listener.getsockname()[1]))
server, _ = listener.accept()
client.sendall(bytes(100_000))
client.shutdown(utpsocket.SHUT_WR)
while server.recv(1 << 16):
    pass
print(client.getsockname()[1], listener.getsockname()[1])
server.close()
client.recv(1)
"""


class Packet(NamedTuple):
    """A packet of the file: 1 is inbound, 2 outbound."""

    direction: int
    time_us: int
    data: bytes


def packets(file: bytes) -> Iterator[Packet]:
    """Read by draft-ietf-opsawg-pcapng; one section, one interface."""
    offset, kinds = 0, []
    while offset < len(file):
        kind, length = struct.unpack_from("=II", file, offset)
        assert length % 4 == 0
        assert struct.unpack_from("=I", file, offset + length - 4) == (length,)
        body = file[offset + 8 : offset + length - 4]
        if kind == 6:
            interface, high, low, captured, original = struct.unpack_from("=IIIII", body)
            assert (interface, captured) == (0, original)
            option, option_length, direction = struct.unpack_from("=HHI", body, 20 + captured + -captured % 4)
            assert (option, option_length) == (2, 4)
            yield Packet(direction, high << 32 | low, body[20 : 20 + captured])
        kinds.append(kind)
        offset += length
    assert kinds[:2] == [0x0A0D0D0A, 1]
    assert set(kinds[2:]) == {6}


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data[: len(data) & ~1])) + (data[-1] << 8 if len(data) % 2 else 0)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def unwrapped(data: bytes) -> tuple[tuple[str, int], tuple[str, int], bytes]:
    """Source, target and payload of an IP packet, whose lengths and checksums are right."""
    if data[0] >> 4 == 4:
        assert checksum(data[:20]) == 0xFFFF
        assert struct.unpack_from(">H", data, 2) == (len(data),)
        family, hosts, udp = socket.AF_INET, data[12:20], data[20:]
    else:
        assert struct.unpack_from(">H", data, 4) == (len(data) - 40,)
        family, hosts, udp = socket.AF_INET6, data[8:40], data[40:]
        assert checksum(hosts + struct.pack(">II", len(udp), socket.IPPROTO_UDP) + udp) == 0xFFFF
    source, target, length, _ = struct.unpack_from(">HHHH", udp)
    assert length == len(udp)
    half = len(hosts) // 2
    return (
        (socket.inet_ntop(family, hosts[:half]), source),
        (socket.inet_ntop(family, hosts[half:]), target),
        udp[8:],
    )


@pytest.mark.parametrize("where", [["127.0.0.1"], ["127.0.0.1", "any"], ["::1"]])
@pytest.mark.parametrize("variables", [{}, {"UTPSOCKET_OFFLOAD": "0"}, {"UTPSOCKET_ENGINE": "process"}])
def test_a_conversation(where: list[str], variables: dict[str, str], tmp_path: Path) -> None:
    if where == ["::1"] and not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 here")
    ran = subprocess.run(
        [sys.executable, "-c", CONVERSATION, *where],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "UTPSOCKET_PCAP": "seen.pcapng", **variables},
        capture_output=True,
        text=True,
        timeout=150,
        check=True,
    )
    client, listener = ((where[0], int(port)) for port in ran.stdout.split())
    found = list(packets((tmp_path / "seen.pcapng").read_bytes()))
    conversation = [(each.direction, *unwrapped(each.data)) for each in found]
    assert {(source, target) for _, source, target, _ in conversation} == {(client, listener), (listener, client)}
    outbound = [each[1:] for each in conversation if each[0] == 2]
    inbound = [each[1:] for each in conversation if each[0] == 1]
    assert outbound[0][0] == client
    assert {*inbound} <= {*outbound}  # both ends are here
    assert all(decode(memoryview(payload)) is not None for _, _, payload in outbound)
    assert sum(len(payload) - 20 for source, _, payload in {*inbound} if source == client) >= 100_000
    assert all(abs(each.time_us / 1e6 - time.time()) < 3_600 for each in found)


def test_several_engines_append_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "seen.pcapng"
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "UTPSOCKET_PCAP": str(path)}
    command = [sys.executable, "-c", CONVERSATION, "127.0.0.1"]
    for _ in range(2):
        before = path.stat().st_size if path.exists() else 0
        subprocess.run(command, env=variables, timeout=150, check=True, stdout=subprocess.DEVNULL)
        assert path.stat().st_size > before
    assert len({unwrapped(each.data)[0] for each in packets(path.read_bytes())}) == 4


def test_a_file_that_cannot_be_written_is_an_error_of_the_first_call(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", CONVERSATION, "127.0.0.1"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "UTPSOCKET_PCAP": str(tmp_path / "no" / "folder")},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert ran.returncode == 1
    assert "create_server" in ran.stderr
    assert "FileNotFoundError" in ran.stderr.splitlines()[-1]


@pytest.mark.parametrize("length", [0, 1, 2, 3, 1_400])
@pytest.mark.parametrize("addresses", [(("192.0.2.1", 1), ("192.0.2.2", 65_535)), (("fe80::1%lo", 7), ("fe80::2", 8))])
def test_packets_have_right_lengths_and_checksums(
    addresses: tuple[tuple[str, int], tuple[str, int]], length: int
) -> None:
    payload = os.urandom(length)
    source, target, data = unwrapped(capture.packet(*addresses, payload))
    assert (source, target) == tuple((host.partition("%")[0], port) for host, port in addresses)
    assert data == payload

"""Which half of a port gets what: uTP, what only looks so, and what else is special about a UDP socket there."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import utpsocket
from utpsocket import monkey
from utpsocket.engine.kernel import port_selector
from utpsocket.protocol.packet import PacketType, encode

from .network import PATIENCE_S, REPOSITORY

UDP_SEGMENT = 103  # linux/udp.h
STUN_ANSWER = bytes.fromhex("0101 000c 2112a442") + bytes(range(12)) + bytes.fromhex("0020 0008 0001 a147 e112a643")
STUN_REQUEST = bytes.fromhex("0001 0000 2112a442") + bytes(range(12))
DHT_QUERY = b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe"
WIREGUARD_INITIATION = b"\x01\0\0\0" + bytes(144)
NOT_UTP = {
    "a_stun_request": STUN_REQUEST,
    "a_stun_answer": STUN_ANSWER,
    "a_dht_query": DHT_QUERY,
    "dtls": bytes.fromhex("16 fefd 0000") + bytes(30),
    "another_version": b"\x02" + bytes(30),
    "another_type": b"\x51" + bytes(30),
    "short": b"\x01" * 19,
    "one_byte": b"\x21",
    "empty": b"",
}


def packet(type: PacketType, connection_id: int) -> bytes:
    return encode(type, connection_id, timestamp_us=1, difference_us=0, window_bytes=1 << 20, seq=1, ack=0)


LOOKS_LIKE_UTP = {
    "wireguard": WIREGUARD_INITIATION,
    "data_of_no_connection": packet(PacketType.DATA, 77) + b"payload",
    "fin_of_no_connection": packet(PacketType.FIN, 77),
    "reset_of_no_connection": packet(PacketType.RESET, 77),
    "an_extension_that_is_too_long": b"\x01\x05" + bytes(18) + b"\x00\xff",
}


@pytest.fixture
def halves() -> Iterator[tuple[Any, Any]]:
    with utpsocket.create_server(("127.0.0.1", 0)) as listener:
        with utpsocket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.setsockopt(utpsocket.SOL_UTP, utpsocket.UTP_SHARE_PORT, 1)
            udp.bind(listener.getsockname())
            udp.settimeout(PATIENCE_S)
            yield listener, udp


@pytest.fixture
def other() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(PATIENCE_S)
        yield sock


def transfer(listener: Any) -> None:
    with utpsocket.create_connection(listener.getsockname()) as client, listener.accept()[0] as server:
        client.sendall(b"x" * 100_000)
        assert len(server.recv(100_000, socket.MSG_WAITALL)) == 100_000


@pytest.mark.parametrize("name", NOT_UTP)
def test_what_is_not_utp_goes_to_the_program(halves: Any, other: socket.socket, name: str) -> None:
    _, udp = halves
    other.sendto(NOT_UTP[name], udp.getsockname())
    assert udp.recvfrom(2_000) == (NOT_UTP[name], other.getsockname())


@pytest.mark.parametrize("name", LOOKS_LIKE_UTP)
def test_what_looks_like_utp_is_passed_on(halves: Any, other: socket.socket, name: str) -> None:
    listener, udp = halves
    data = LOOKS_LIKE_UTP[name]
    room = bytearray(len(data))
    many = [bytearray(10), bytearray(len(data))]
    calls: list[Callable[[], object]] = [
        lambda: udp.recvfrom(2_000),
        lambda: (udp.recv(2_000), other.getsockname()),
        lambda: (udp.recv(len(data)), other.getsockname()),
        lambda: (room[: udp.recv_into(room)], other.getsockname()),
        lambda: (lambda count, address: (room[:count], address))(*udp.recvfrom_into(room)),
        lambda: udp.recvmsg(2_000, 100)[::3],
        lambda: (lambda count, _, flags, address: (b"".join(many)[:count], address))(*udp.recvmsg_into(many)),
    ]
    for call in calls:
        other.sendto(data, udp.getsockname())
        assert call() == (data, other.getsockname())
    other.sendto(data, udp.getsockname())
    assert udp.recvmsg(5) == (data[:5], [], socket.MSG_TRUNC, other.getsockname())
    transfer(listener)


def test_a_packet_of_no_connection_is_reset_all_the_same(halves: Any, other: socket.socket) -> None:
    _, udp = halves
    other.sendto(LOOKS_LIKE_UTP["data_of_no_connection"], udp.getsockname())
    assert other.recv(100)[0] >> 4 == PacketType.RESET
    assert udp.recv(100) == LOOKS_LIKE_UTP["data_of_no_connection"]


def test_what_was_merged_with_utp_is_passed_on(halves: Any, other: socket.socket) -> None:
    """As a network interface merges datagrams of one sender (GRO): the first one decides where all go."""
    listener, udp = halves
    transfer(listener)  # the engine has asked for merged datagrams by then
    utp = packet(PacketType.DATA, 5) + bytes(60)
    segment = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", len(utp)))]
    other.sendmsg([utp, DHT_QUERY], segment, 0, udp.getsockname())
    assert [udp.recvfrom(1_000) for _ in range(2)] == [(each, other.getsockname()) for each in (utp, DHT_QUERY)]


def test_a_broadcast_arrives_once() -> None:
    with utpsocket.create_server(("0.0.0.0", 0)) as listener, socket.socket(type=socket.SOCK_DGRAM) as other:
        with utpsocket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.setsockopt(utpsocket.SOL_UTP, utpsocket.UTP_SHARE_PORT, 1)
            udp.bind(listener.getsockname())
            udp.settimeout(PATIENCE_S)
            other.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            other.bind(("127.0.0.1", 0))
            _, port = udp.getsockname()
            other.sendto(DHT_QUERY, ("127.255.255.255", port))
            assert udp.recv(1_000) == DHT_QUERY
            with utpsocket.create_connection(("127.0.0.1", port)), listener.accept()[0]:
                pass  # the engine has received everything before
            other.sendto(b"to it alone", ("127.0.0.1", port))
            assert udp.recv(1_000) == b"to it alone"


def test_what_was_passed_on_has_no_room_after_the_close(halves: Any, other: socket.socket) -> None:
    listener, udp = halves
    address = udp.getsockname()
    other.sendto(WIREGUARD_INITIATION, address)
    assert udp.recv(1_000) == WIREGUARD_INITIATION
    udp.close()
    for connection_id in range(10):
        other.sendto(packet(PacketType.DATA, connection_id), address)
        other.recv(100)  # a RESET
    transfer(listener)


def test_a_duplicate_unwraps_too(halves: Any, other: socket.socket) -> None:
    _, udp = halves
    with udp.dup() as copied:
        udp.close()
        copied.settimeout(PATIENCE_S)
        other.sendto(WIREGUARD_INITIATION, copied.getsockname())
        assert copied.recvfrom(1_000) == (WIREGUARD_INITIATION, other.getsockname())


def test_datagrams_beside_a_transfer(halves: Any, other: socket.socket) -> None:
    listener, udp = halves
    with utpsocket.create_connection(listener.getsockname()) as client, listener.accept()[0] as server:
        for number in range(200):
            client.sendall(bytes([number]) * 5_000)
            question = b"%d" % number + DHT_QUERY
            other.sendto(question, udp.getsockname())
            assert udp.recvfrom(1_000) == (question, other.getsockname())
            assert server.recv(5_000, socket.MSG_WAITALL) == bytes([number]) * 5_000


def test_dialing_from_the_port(halves: Any, other: socket.socket) -> None:
    listener, udp = halves
    with utpsocket.create_server(("127.0.0.1", 0)) as remote, utpsocket.socket() as dialed:
        listener.close()
        dialed.bind(udp.getsockname())
        dialed.connect(remote.getsockname())
        accepted, peer = remote.accept()
        with accepted:
            assert peer == udp.getsockname()
            accepted.sendall(b"over uTP")
            other.sendto(DHT_QUERY, udp.getsockname())
            assert (dialed.recv(100), udp.recv(100)) == (b"over uTP", DHT_QUERY)


def refusal(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:
        call()
    return caught.value.errno


def test_the_option_is_needed() -> None:
    with utpsocket.create_server(("127.0.0.1", 0)) as listener:
        with utpsocket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            assert refusal(lambda: udp.bind(listener.getsockname())) == errno.EADDRINUSE
            assert udp.getsockopt(utpsocket.SOL_UTP, utpsocket.UTP_SHARE_PORT) == 0
            udp.setsockopt(utpsocket.SOL_UTP, utpsocket.UTP_SHARE_PORT, 1)
            udp.bind(listener.getsockname())
            assert udp.getsockopt(utpsocket.SOL_UTP, utpsocket.UTP_SHARE_PORT) == 1
            change = lambda: udp.setsockopt(utpsocket.SOL_UTP, utpsocket.UTP_SHARE_PORT, 0)  # noqa: E731
            assert refusal(change) == errno.EINVAL


def test_options_that_a_udp_socket_has_not() -> None:
    with utpsocket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        for name in (utpsocket.UTP_INFO, utpsocket.UTP_MAX_MTU):
            assert refusal(lambda: udp.getsockopt(utpsocket.SOL_UTP, name)) == errno.ENOPROTOOPT  # noqa: B023
            assert refusal(lambda: udp.setsockopt(utpsocket.SOL_UTP, name, 1)) == errno.ENOPROTOOPT  # noqa: B023
        assert udp.getsockopt(utpsocket.SOL_UTP, utpsocket.UTP_DROPS) == 0
    with utpsocket.socket() as stream:
        assert refusal(lambda: stream.getsockopt(utpsocket.SOL_UTP, utpsocket.UTP_DROPS)) == errno.ENOPROTOOPT


def test_connect_is_refused(halves: Any, other: socket.socket) -> None:
    listener, udp = halves
    assert refusal(lambda: udp.connect(other.getsockname())) == errno.EOPNOTSUPP
    assert udp.connect_ex(other.getsockname()) == errno.EOPNOTSUPP
    transfer(listener)


def test_a_connected_udp_socket_is_no_half(other: socket.socket) -> None:
    with utpsocket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, utpsocket.socket() as stream:
        udp.setsockopt(utpsocket.SOL_UTP, utpsocket.UTP_SHARE_PORT, 1)
        udp.bind(("127.0.0.1", 0))
        udp.connect(other.getsockname())
        assert refusal(lambda: stream.bind(udp.getsockname())) == errno.EADDRINUSE


@pytest.mark.parametrize("is_udp_first", [False, True])
def test_a_port_that_processes_share_has_no_half(is_udp_first: bool) -> None:
    with utpsocket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, utpsocket.socket() as stream:
        udp.setsockopt(utpsocket.SOL_UTP, utpsocket.UTP_SHARE_PORT, 1)
        first, second = (udp, stream) if is_udp_first else (stream, udp)
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        first.bind(("127.0.0.1", 0))
        assert refusal(lambda: second.bind(first.getsockname())) == errno.EADDRINUSE


def test_another_program_gets_nothing(halves: Any, other: socket.socket) -> None:
    """One of the same user, with SO_REUSEPORT, may bind: the kernel has no way to refuse only that."""
    listener, udp = halves
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as third:
        third.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        third.bind(udp.getsockname())
        third.setblocking(False)
        for number in range(50):
            question = b"%d" % number + DHT_QUERY
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asks:
                asks.sendto(question, udp.getsockname())
            assert udp.recv(1_000) == question
        transfer(listener)
        assert refusal(lambda: third.recv(100)) == errno.EAGAIN


# ── the program that the kernel runs ──


def run_program(data: bytes, utp_index: int) -> int:
    """What the classic BPF program returns for a datagram."""
    program = port_selector.program(utp_index=utp_index)
    at, value = 0, 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        if code == 0x80:
            value = len(data)
        elif code == 0x30:
            value = data[operand]
        elif code == 0x20:
            value = int.from_bytes(data[operand : operand + 4], "big")
        elif code == 0x15:
            at += if_true if value == operand else if_false
        elif code == 0x35:
            at += if_true if value >= operand else if_false
        else:
            assert code == 0x06
            return operand


@pytest.mark.parametrize("utp_index", [0, 1])
def test_the_kernels_program(utp_index: int) -> None:
    for data in NOT_UTP.values():
        assert run_program(data, utp_index) == 1 - utp_index
    for data in LOOKS_LIKE_UTP.values():
        assert run_program(data, utp_index) == utp_index
    for type in PacketType:
        assert run_program(packet(type, 1), utp_index) == utp_index
    generator = random.Random(5)
    for first in range(256):
        data = bytes([first]) + generator.randbytes(generator.randrange(100))
        is_utp = len(data) >= 20 and first & 15 == 1 and first >> 4 <= 4
        assert run_program(data, utp_index) == (utp_index if is_utp else 1 - utp_index)


def test_data_that_was_sent_when_the_clock_showed_the_cookie() -> None:
    data = packet(PacketType.DATA, 1)[:4] + bytes.fromhex("2112a442") + bytes(20)
    assert run_program(data, 0) == 0


# ── programs that know nothing of it ──


@pytest.mark.parametrize("is_udp_first", [False, True])
def test_a_patched_program_has_both(is_udp_first: bool, other: socket.socket) -> None:
    with monkey.patched():
        with socket.socket() as listener, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            first, second = (udp, listener) if is_udp_first else (listener, udp)
            first.bind(("127.0.0.1", 0))
            second.bind(first.getsockname())
            listener.listen()
            assert (monkey.transport(listener), udp.getsockname()) == ("utp", listener.getsockname())
            udp.settimeout(PATIENCE_S)
            for data in (DHT_QUERY, WIREGUARD_INITIATION):
                other.sendto(data, udp.getsockname())
                assert udp.recvfrom(1_000) == (data, other.getsockname())
            transfer(listener)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
                assert refusal(lambda: again.bind(udp.getsockname())) == errno.EADDRINUSE


def test_a_patched_program_may_say_no() -> None:
    with monkey.patched(), socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.setsockopt(utpsocket.SOL_UTP, utpsocket.UTP_SHARE_PORT, 0)
            assert refusal(lambda: udp.bind(listener.getsockname())) == errno.EADDRINUSE


A_SERVER = """
import socketserver, threading, socket

class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        if isinstance(self.request, tuple):
            data, sock = self.request
            sock.sendto(data, self.client_address)
        else:
            self.request.sendall(self.request.recv(100))

with socketserver.{first}(("127.0.0.1", 0), Echo) as first:
    with socketserver.{second}(first.server_address, Echo) as second:
        for server in (first, second):
            threading.Thread(target=server.serve_forever).start()
        with socket.create_connection(first.server_address) as stream:
            stream.sendall(b"stream")
            print(stream.recv(100))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.settimeout(60)
            udp.sendto(b"datagram", first.server_address)
            print(udp.recv(100))
        for server in (first, second):
            server.shutdown()
"""


@pytest.mark.parametrize("engine", ["thread", "process"])
@pytest.mark.parametrize(("first", "second"), [("TCPServer", "UDPServer"), ("UDPServer", "TCPServer")])
def test_a_server_of_both(first: str, second: str, engine: str) -> None:
    """As DNS, SIP and syslog servers are."""
    code = "import utpsocket.monkey; utpsocket.monkey.patch_all()" + A_SERVER.format(first=first, second=second)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "UTPSOCKET_ENGINE": engine}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (ran.stdout, ran.stderr) == ("b'stream'\nb'datagram'\n", "")

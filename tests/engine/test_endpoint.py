"""One UDP port under strangers: strays, floods, and RESETs that are never answered."""

from __future__ import annotations

import hashlib
import os
import resource
import select
import socket
import threading

import pytest

import utpsocket
from utpsocket.engine import running_engine
from utpsocket.engine.listener import MAX_HALF_OPEN
from utpsocket.protocol.packet import PacketType, decode, encode
from utpsocket.stats import engine_stats

pytestmark = pytest.mark.usefixtures("leaves_nothing_behind")


def packet(type: PacketType, connection_id: int, *, seq: int, ack: int) -> bytes:
    return encode(type, connection_id, timestamp_us=1, difference_us=0, window_bytes=1 << 20, seq=seq, ack=ack)


def answers(udp: socket.socket, seconds: float = 0.2) -> list[bytes]:
    """Everything that comes within `seconds` of silence."""
    found = []
    while select.select([udp], [], [], seconds)[0]:
        found.append(udp.recv(2_000))
    return found


def test_a_stray_packet_is_answered_by_one_reset() -> None:
    with utpsocket.create_server(("127.0.0.1", 0)) as listener, socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.connect(listener.getsockname())
        for _ in range(5):
            udp.send(packet(PacketType.DATA, 77, seq=1_000, ack=2_000))
        (answer,) = answers(udp)
        reset = decode(memoryview(answer))
        assert reset is not None
        assert (reset.type, reset.connection_id, reset.ack16, reset.seq16) == (PacketType.RESET, 77, 1_000, 2_001)


def test_a_reset_is_never_answered() -> None:
    with utpsocket.create_server(("127.0.0.1", 0)) as listener, socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.connect(listener.getsockname())
        udp.send(packet(PacketType.RESET, 77, seq=1_000, ack=2_000))
        assert answers(udp) == []


def test_what_is_not_utp_is_counted_and_nothing_else() -> None:
    with utpsocket.create_server(("127.0.0.1", 0)) as listener, socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.connect(listener.getsockname())
        for datagram in (b"x", bytes(19), bytes(20), b"\x51" + bytes(19), b"\x01\x01" + bytes(18) + b"\0\xff"):
            udp.send(datagram)
        assert answers(udp) == []
        (port,) = engine_stats().ports
        assert port.dropped_datagrams == 5


def test_a_flood_of_spoofed_syns_leaves_transfers_running_and_memory_bounded() -> None:
    """Issue: 100,000 SYNs from many addresses of 127/8 while 32 MiB are on their way through the same port."""
    payload = os.urandom(1 << 20)
    rounds = 32
    with utpsocket.create_server(("127.0.0.1", 0)) as listener:
        client = utpsocket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        digest = hashlib.sha256()

        def receive() -> None:
            while data := server.recv(1 << 18):
                digest.update(data)

        def flood() -> None:
            for host in range(1, 101):
                with socket.socket(type=socket.SOCK_DGRAM) as udp:
                    udp.bind((f"127.0.{host}.7", 0))
                    udp.connect(listener.getsockname())
                    for number in range(1_000):
                        udp.send(packet(PacketType.SYN, number * 3 & 0xFFFF, seq=number, ack=0))

        receiver, attacker = threading.Thread(target=receive), threading.Thread(target=flood)
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        receiver.start()
        attacker.start()
        for _ in range(rounds):
            client.sendall(payload)
        attacker.join()
        client.close()
        receiver.join()
        server.close()
        assert digest.digest() == hashlib.sha256(payload * rounds).digest()
        loop = running_engine()
        assert loop is not None
        assert engine_stats().faults == 0
        assert len(loop.bridges) <= MAX_HALF_OPEN + 8
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 200_000
        # Who comes honestly gets in, flood or not.
        with utpsocket.create_connection(listener.getsockname(), timeout=10) as honest:
            listener.settimeout(10)
            conn, addr = listener.accept()
            while addr != honest.getsockname():
                conn.close()
                conn, addr = listener.accept()
            conn.close()

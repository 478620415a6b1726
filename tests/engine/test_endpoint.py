"""One UDP port under strangers: strays, floods, and RESETs that are never answered."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import utpsocket
from tests.requirements import replaces
from utpsocket.engine import running_engine, shutdown
from utpsocket.engine.loop import Loop
from utpsocket.engine.ports.connection_config import fresh_ids
from utpsocket.engine.ports.listener import MAX_HALF_OPEN
from utpsocket.protocol import Address, close_timers
from utpsocket.protocol.packet import Packet, PacketType, decode, encode
from utpsocket.stats import engine_stats

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("leaves_nothing_behind")


def packet(type: PacketType, connection_id: int, *, seq: int, ack: int) -> bytes:
    return encode(type, connection_id, timestamp_us=1, difference_us=0, window_bytes=1 << 20, seq=seq, ack=ack)


def answers(udp: socket.socket, seconds: float = 0.2) -> list[bytes]:
    """Everything that comes until `seconds` of silence, in which the engine has read what was sent to it: a busy
    machine may leave its thread without a turn for longer than that.
    """
    found: list[bytes] = []
    loop = running_engine()
    while True:
        while select.select([udp], [], [], seconds)[0]:
            found.append(udp.recv(2_000))
        if loop is not None and loop.is_alive:
            for _ in range(3):  # turns
                loop.call(lambda _: None)
        if not select.select([udp], [], [], 0)[0]:
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


def test_ids_of_a_connect_and_those_beside_them_are_in_no_use() -> None:
    """Each id's neighbour is the other direction's. Nearly all are used here, and the first and the last are neighbours
    too.
    """
    peer: Address = ("127.0.0.1", 9)
    used: dict[tuple[Address, int], object] = dict.fromkeys((peer, each) for each in range(40, 65_500))
    for _ in range(20):
        ids, _ = fresh_ids(used, peer)
        assert len(ids) == 4
        taken = {*ids, *range(40, 65_500)}
        for one in ids:
            assert taken.isdisjoint({(one + 1) & 0xFFFF, (one - 1) & 0xFFFF}), ids
            assert not 40 <= one < 65_500


def wait_until_all_ended() -> None:
    deadline = time.monotonic() + 100  # TIME_WAIT lasts longer where a packet was repeated
    while engine_stats().connections_open:
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)


@pytest.mark.parametrize("says", [b"", b"hi", b"x" * 5_000])
def test_one_syn_is_answered_by_three_times_as_much_and_no_more(says: bytes) -> None:
    """Its source address may be forged. The server sends first, and closes."""
    with utpsocket.create_server(("127.0.0.1", 0)) as listener, socket.socket(type=socket.SOCK_DGRAM) as udp:
        listener.settimeout(30)
        udp.connect(listener.getsockname())
        udp.send(packet(PacketType.SYN, 77, seq=1_000, ack=0))
        server, _ = listener.accept()
        server.sendall(says)
        server.close()
        received = answers(udp, 4.0)  # longer than the first repetitions of whatever is repeated
        assert received
        assert sum(len(datagram) + 28 for datagram in received) <= 3 * (20 + 28)
        udp.send(packet(PacketType.RESET, 78, seq=1_001, ack=0))  # the SYN is withdrawn
        wait_until_all_ended()


def test_what_is_repeated_after_an_orderly_end_is_acked_again() -> None:
    """Our last ack may have been lost, and a RESET would look to the peer as if its data were."""
    with utpsocket.create_server(("127.0.0.1", 0)) as listener, socket.socket(type=socket.SOCK_DGRAM) as udp:
        listener.settimeout(30)
        udp.connect(listener.getsockname())
        udp.send(packet(PacketType.SYN, 77, seq=1_000, ack=0))
        syn_ack = decode(memoryview(udp.recv(100)))
        assert syn_ack is not None
        our_seq = syn_ack.seq16
        udp.send(packet(PacketType.DATA, 78, seq=1_001, ack=our_seq - 1 & 0xFFFF) + b"last words")
        udp.send(packet(PacketType.FIN, 78, seq=1_002, ack=our_seq - 1 & 0xFFFF))
        server, _ = listener.accept()
        assert server.recv(100) == b"last words"
        assert server.recv(100) == b""
        server.close()
        while (fin := decode(memoryview(udp.recv(100)))) is not None and fin.type != PacketType.FIN:
            pass
        assert fin is not None
        udp.send(packet(PacketType.STATE, 78, seq=1_003, ack=fin.seq16))
        wait_until_all_ended()  # and TIME_WAIT is over
        answers(udp)
        udp.send(packet(PacketType.DATA, 78, seq=1_001, ack=our_seq - 1 & 0xFFFF) + b"last words")
        (again,) = (decode(memoryview(each)) for each in answers(udp))
        assert again is not None
        assert (again.type, again.connection_id, again.ack16) == (PacketType.STATE, 77, 1_002)
        udp.send(packet(PacketType.DATA, 78, seq=1_003, ack=fin.seq16) + b"what never was")
        (reset,) = (decode(memoryview(each)) for each in answers(udp))
        assert reset is not None
        assert reset.type == PacketType.RESET


def test_what_is_not_utp_is_counted_and_nothing_else() -> None:
    with utpsocket.create_server(("127.0.0.1", 0)) as listener, socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.connect(listener.getsockname())
        for datagram in (b"x", bytes(19), bytes(20), b"\x51" + bytes(19), b"\x01\x01" + bytes(18) + b"\0\xff"):
            udp.send(datagram)
        assert answers(udp) == []
        (port,) = engine_stats().ports
        assert port.dropped_datagrams == 5


def flood(address: tuple[str, int]) -> None:
    """What the attacker does."""
    for host in range(1, 101):
        with socket.socket(type=socket.SOCK_DGRAM) as udp:
            udp.bind((f"127.0.{host}.7", 0))
            udp.connect(address)
            for number in range(1_000):
                udp.send(packet(PacketType.SYN, number * 3 & 0xFFFF, seq=number, ack=0))


def test_a_flood_of_spoofed_syns_leaves_transfers_running_and_memory_bounded() -> None:
    """Issue: 100,000 SYNs from many addresses of 127/8, and all the while a transfer through the same port."""
    payload = os.urandom(1 << 20)
    rounds = 0
    with utpsocket.create_server(("127.0.0.1", 0)) as listener:
        client = utpsocket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        digest = hashlib.sha256()

        def receive() -> None:
            while data := server.recv(1 << 18):
                digest.update(data)

        receiver = threading.Thread(target=receive)
        # A process of its own, as attackers are: a thread would wait for the engine's.
        attack = f"from tests.engine.test_endpoint import flood; flood({listener.getsockname()!r})"
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        receiver.start()
        while rounds <= 4:  # one attack is enough, unless this process had no turn meanwhile
            with subprocess.Popen([sys.executable, "-c", attack], cwd=ROOT) as attacker:
                while attacker.poll() is None:
                    client.sendall(payload)
                    rounds += 1
            assert attacker.returncode == 0
        client.close()
        receiver.join()
        server.close()
        expected = hashlib.sha256()
        for _ in range(rounds):
            expected.update(payload)
        assert digest.digest() == expected.digest()
        loop = running_engine()
        assert isinstance(loop, Loop)
        assert engine_stats().faults == 0
        assert len(loop.channels) <= MAX_HALF_OPEN + 8
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 200_000
        # Who comes honestly gets in, flood or not.
        with utpsocket.create_connection(listener.getsockname(), timeout=60) as honest:
            listener.settimeout(60)
            conn, addr = listener.accept()
            while addr != honest.getsockname():
                conn.close()
                conn, addr = listener.accept()
            conn.close()


def test_a_connection_that_ends_while_the_accept_queue_is_full_is_not_handed_over_as_open() -> None:
    """The application would never learn of such a connection's end."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(utpsocket.create_server(("127.0.0.1", 0), backlog=2))
        peers = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(6)]
        for number, udp in enumerate(peers):
            udp.connect(listener.getsockname())
            udp.settimeout(60)
            udp.send(packet(PacketType.SYN, number * 10, seq=1, ack=0))
            udp.recv(2_000)
        loop = running_engine()
        assert isinstance(loop, Loop)
        (inside,) = (endpoint.listener for endpoint in loop.endpoints.values())
        assert inside is not None
        wait_for(lambda: inside.stats()["prepared"] > 0)
        for number, udp in enumerate(peers):
            udp.send(packet(PacketType.RESET, number * 10 + 1, seq=2, ack=0))
        wait_for(lambda: inside.stats()["half_open"] == 0)
        while select.select([listener], [], [], 1)[0]:
            conn, _ = listener.accept()
            with conn:
                conn.settimeout(60)
                with contextlib.suppress(ConnectionResetError):
                    assert conn.recv(1) == b""


@replaces("TIME_WAIT_US")
def test_the_last_ack_is_said_again_at_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing answers a repeated FIN when the process has ended."""
    monkeypatch.setattr(close_timers, "TIME_WAIT_US", 3_600_000_000)
    with utpsocket.create_server(("127.0.0.1", 0)) as listener, socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.connect(listener.getsockname())
        udp.send(packet(PacketType.SYN, 10, seq=1, ack=0))
        conn, _ = listener.accept()
        conn.close()
        fin = next(found for found in map(decoded, answers(udp)) if found.type == PacketType.FIN)
        udp.send(packet(PacketType.FIN, 11, seq=2, ack=fin.seq16))
        # Its FIN may have been repeated before ours came.
        assert [last.ack16 for last in map(decoded, answers(udp)) if last.type == PacketType.STATE] == [2]
        shutdown()
        assert [(last.type, last.ack16) for last in map(decoded, answers(udp))] == [(PacketType.STATE, 2)] * 2


def decoded(datagram: bytes) -> Packet:
    found = decode(memoryview(datagram))
    assert found is not None
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    """Raises AssertionError after a minute. The condition is the engine's, which has no event for it."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)

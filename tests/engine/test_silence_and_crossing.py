"""A peer that vanishes without a word, and two that dial each other at once: what a wire must be held for."""

from __future__ import annotations

import errno
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import utpsocket
from utpsocket.protocol.packet import Packet, PacketType, decode
from utpsocket.stats import engine_stats

pytestmark = pytest.mark.usefixtures("leaves_nothing_behind")

SECONDS = 60.0


class Switch:
    """Two faces: what comes in at one leaves at the other, to the address that sent there last. May be held or cut."""

    def __init__(self) -> None:
        self.faces = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(2)]
        self.peers: list[Any] = [None, None]
        for face in self.faces:
            face.bind(("127.0.0.1", 0))
        self.addresses = [face.getsockname() for face in self.faces]
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="switch")

    def take(self, side: int) -> bytes:
        """The next datagram that comes in at a face, not passed on."""
        assert select.select([self.faces[side]], [], [], SECONDS)[0], "nothing came"
        datagram, self.peers[side] = self.faces[side].recvfrom(2_000)
        return datagram

    def take_but(self, side: int, repeated: PacketType) -> Packet:
        """The next one that is not of this type, of which any number may have been repeated."""
        while True:
            packet = decode(memoryview(self.take(side)))
            assert packet is not None
            if packet.type != repeated:
                return packet

    def put(self, side: int, datagram: bytes) -> None:
        """Send to the address that sent to this face last."""
        self.faces[side].sendto(datagram, self.peers[side])

    def pass_on(self) -> None:
        """From now on by itself, until cut()."""
        self._thread.start()

    def _run(self) -> None:
        while True:
            readable, _, _ = select.select([*self.faces, self._stopped], [], [])
            if self._stopped in readable:
                return
            for face in readable:
                side = self.faces.index(face)
                datagram, self.peers[side] = face.recvfrom(2_000)
                if self.peers[1 - side] is not None:
                    self.put(1 - side, datagram)

    def cut(self) -> None:
        """Nothing passes any more, without an ICMP error."""
        if self._thread.is_alive():
            self._stop.send(b"x")
            self._thread.join()

    def close(self) -> None:
        self.cut()
        for sock in (*self.faces, self._stop, self._stopped):
            sock.close()


@pytest.fixture
def switch() -> Iterator[Switch]:
    made = Switch()
    yield made
    made.close()


def connected(switch: Switch, listener: Any) -> tuple[Any, Any]:
    switch.peers[1] = listener.getsockname()
    switch.pass_on()
    client = utpsocket.create_connection(switch.addresses[0], timeout=SECONDS)
    server, _ = listener.accept()
    server.settimeout(SECONDS)
    client.sendall(b"a")
    server.sendall(server.recv(10))
    assert client.recv(10) == b"a"
    return client, server


def wait_until_acked(*socks: Any) -> None:
    """A packet under way finds out about the peer by itself, and slower."""
    deadline = time.monotonic() + SECONDS
    while any(sock.getsockopt(utpsocket.SOL_UTP, utpsocket.UTP_INFO).in_flight_bytes for sock in socks):
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


@pytest.mark.parametrize("side", ["initiator", "acceptor"])
def test_keepalive_finds_a_vanished_peer(switch: Switch, side: str) -> None:
    with utpsocket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SECONDS)
        client, server = connected(switch, listener)
        with client, server:
            sock = client if side == "initiator" else server
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            wait_until_acked(client, server)
            switch.cut()
            with pytest.raises(TimeoutError) as caught:
                sock.recv(10)
            assert caught.value.errno == errno.ETIMEDOUT


def test_keepalive_does_not_end_a_peer_that_answers(switch: Switch) -> None:
    """Both sides ask; several rounds of questions pass and the connection still carries bytes. An answer may
    be two seconds late, as where the machine stands still.
    """
    with utpsocket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SECONDS)
        client, server = connected(switch, listener)
        with client, server:
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            client.settimeout(5.5)  # longer than any silence would be borne
            with pytest.raises(TimeoutError) as caught:
                client.recv(10)
            assert caught.value.errno is None
            server.sendall(b"still here")
            assert client.recv(100) == b"still here"


def dial(address: Any) -> Any:
    sock = utpsocket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    assert sock.connect_ex(address) == errno.EINPROGRESS
    return sock


def test_two_that_dial_each_other_at_once_have_one_connection(switch: Switch) -> None:
    with dial(switch.addresses[0]) as one, dial(switch.addresses[1]) as other:
        syns = [switch.take(side) for side in (0, 1)]  # both are out before either arrives
        for syn in syns:
            packet = decode(memoryview(syn))
            assert packet is not None and packet.type == PacketType.SYN
        switch.put(1, syns[0])
        switch.put(0, syns[1])
        switch.pass_on()
        for sock in (one, other):
            assert select.select([], [sock], [], SECONDS)[1]
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            sock.settimeout(SECONDS)
        assert engine_stats().connections_open == 2, "one connection, both ends of which are here"
        assert (one.getpeername(), other.getpeername()) == (switch.addresses[0], switch.addresses[1])
        one.sendall(b"from one")
        other.sendall(b"from the other")
        assert (other.recv(100), one.recv(100)) == (b"from one", b"from the other")
        one.shutdown(socket.SHUT_WR)
        assert other.recv(1) == b""
        other.sendall(b"and still")
        assert one.recv(100) == b"and still"


def test_where_one_listens_too_there_are_two_connections(switch: Switch) -> None:
    """As between other implementations: each SYN that finds a listener makes a connection."""
    pairs = []
    for side in (0, 1):
        listener = utpsocket.socket()
        listener.setsockopt(utpsocket.SOL_UTP, utpsocket.UTP_SHARE_PORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        dialler = utpsocket.socket()
        dialler.setsockopt(utpsocket.SOL_UTP, utpsocket.UTP_SHARE_PORT, 1)
        dialler.bind(listener.getsockname())
        dialler.setblocking(False)
        assert dialler.connect_ex(switch.addresses[side]) == errno.EINPROGRESS
        pairs.append((listener, dialler))
    syns = [switch.take(side) for side in (0, 1)]
    switch.put(1, syns[0])
    switch.put(0, syns[1])
    switch.pass_on()
    for listener, dialler in pairs:
        listener.settimeout(SECONDS)
        with listener, dialler:
            assert select.select([], [dialler], [], SECONDS)[1]
            assert dialler.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            accepted, _ = listener.accept()
            accepted.close()


def test_a_bound_port_that_neither_listens_nor_dials_refuses(switch: Switch) -> None:
    with utpsocket.socket() as bound, utpsocket.socket() as dialler:
        bound.bind(("127.0.0.1", 0))
        dialler.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            dialler.connect(bound.getsockname())


def test_a_close_while_the_crossing_is_undecided_leaves_nothing(switch: Switch) -> None:
    """The side that yielded has answered and is closed before it is verified: the other gets a RESET."""
    one, other = dial(switch.addresses[0]), dial(switch.addresses[1])
    with other:
        syns = [switch.take(side) for side in (0, 1)]
        packets = [decode(memoryview(syn)) for syn in syns]
        numbers = [packet.seq16 for packet in packets if packet is not None]
        loser, winner = (0, 1) if numbers[0] < numbers[1] else (1, 0)
        sockets = [one, other]
        switch.put(loser, syns[winner])
        assert switch.take_but(loser, PacketType.SYN).type == PacketType.STATE
        sockets[loser].close()
        assert switch.take_but(loser, PacketType.STATE).type == PacketType.RESET
        sockets[winner].close()
    one.close()


KILLED = """
import sys, utpsocket
client = utpsocket.create_connection(("127.0.0.1", int(sys.argv[1])))
client.sendall(b"x")
sys.stdin.read()
"""


@pytest.mark.parametrize("shares", [False, True], ids=["its only connection", "others live"])
def test_a_killed_peer_is_noticed_by_a_program_that_only_reads(shares: bool) -> None:
    """Its kernel says so when our sign of life comes: after 29 s, or what the option says."""
    with utpsocket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:
        assert listener.getsockopt(utpsocket.SOL_UTP, utpsocket.UTP_KEEPALIVE) == 29
        listener.setsockopt(utpsocket.SOL_UTP, utpsocket.UTP_KEEPALIVE, 1)
        port = str(listener.getsockname()[1])
        if shares:
            stack.enter_context(utpsocket.create_connection(listener.getsockname()))
            stack.enter_context(listener.accept()[0])
        process = subprocess.Popen([sys.executable, "-c", KILLED, port], stdin=subprocess.PIPE)
        stack.callback(process.wait)
        stack.callback(process.kill)
        assert process.stdin is not None
        stack.callback(process.stdin.close)
        server = stack.enter_context(listener.accept()[0])
        assert server.getsockopt(utpsocket.SOL_UTP, utpsocket.UTP_KEEPALIVE) == 1
        server.settimeout(SECONDS)
        assert server.recv(10) == b"x"
        process.kill()
        with pytest.raises(ConnectionResetError):
            server.recv(10)


@pytest.mark.parametrize("side", [0, 1])
def test_a_sign_of_life_leaves_an_idle_connection_by_default(switch: Switch, side: int) -> None:
    """Whichever end the socket is: seen on the wire, with a shorter interval set on the living connection."""
    with utpsocket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(utpsocket.SOL_UTP, utpsocket.UTP_KEEPALIVE, 0)
        client, server = connected(switch, listener)
        with client, server:
            client.setsockopt(utpsocket.SOL_UTP, utpsocket.UTP_KEEPALIVE, 0)
            wait_until_acked(client, server)
            switch.cut()
            (client, server)[side].setsockopt(utpsocket.SOL_UTP, utpsocket.UTP_KEEPALIVE, 1)
            sign = decode(memoryview(switch.take(side)))
            assert sign is not None and sign.type == PacketType.STATE
            # When the other one has given no sign for twice as long, since a little after our last one perhaps.
            assert switch.take_but(side, PacketType.STATE).type == PacketType.DATA
            for sock in (client, server):
                sock.setsockopt(utpsocket.SOL_UTP, utpsocket.UTP_KEEPALIVE, 0)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))

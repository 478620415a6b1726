"""IP_TOS, IP_TTL and their like, set after connect() or on an accepted socket: seen on the wire."""

from __future__ import annotations

import select
import socket
import threading
import time
from typing import Any

import pytest

import utpsocket

from ..requirements import requires_ipv6

pytestmark = pytest.mark.usefixtures("leaves_nothing_behind")

SECONDS = 60.0
V4 = (socket.IPPROTO_IP, socket.IP_TTL, socket.IP_TOS, 12, 13)  # IP_RECVTTL, IP_RECVTOS
V6 = (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, socket.IPV6_TCLASS, 51, 66)
FAMILIES = [
    pytest.param(socket.AF_INET, "127.0.0.1", V4, id="IPv4"),
    pytest.param(socket.AF_INET6, "::1", V6, id="IPv6", marks=requires_ipv6),
]


class Onlooker:
    """A relay that remembers the TTL and TOS of the last datagram of either direction."""

    def __init__(self, family: int, host: str, options: tuple[int, ...], server: Any) -> None:
        level, _, _, *following = options
        self.faces = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(2)]
        for face in self.faces:
            face.bind((host, 0))
            for option in following:
                face.setsockopt(level, option, 1)
        self.seen: list[list[int]] = [[], []]
        self._peers = [None, server]
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="onlooker")
        self._thread.start()

    def _run(self) -> None:
        while True:
            readable, _, _ = select.select([*self.faces, self._stopped], [], [])
            if self._stopped in readable:
                return
            for face in readable:
                side = self.faces.index(face)
                data, ancillary, _, self._peers[side] = face.recvmsg(65_536, 256)
                self.seen[side] = [value[0] for _, _, value in sorted(ancillary, key=lambda each: each[1] in (1, 67))]
                self.faces[1 - side].sendto(data, self._peers[1 - side])

    def until(self, *wanted: list[int]) -> None:
        deadline = time.monotonic() + SECONDS
        while self.seen != list(wanted):
            assert time.monotonic() < deadline, f"{self.seen}, not {wanted}"
            time.sleep(0.005)

    def close(self) -> None:
        self._stop.send(b"x")
        self._thread.join()
        for sock in (*self.faces, self._stop, self._stopped):
            sock.close()


@pytest.mark.parametrize(("family", "host", "options"), FAMILIES)
@pytest.mark.parametrize("is_bound", [False, True], ids=["from a port of its own", "from a bound port"])
def test_each_packet_carries_what_was_set_last(
    family: int, host: str, options: tuple[int, ...], is_bound: bool
) -> None:
    level, ttl, tos, *_ = options
    with utpsocket.socket(family) as listener, utpsocket.socket(family) as client:
        listener.bind((host, 0))
        listener.listen()
        listener.settimeout(SECONDS)
        onlooker = Onlooker(family, host, options, listener.getsockname())
        try:
            if is_bound:
                client.bind((host, 0))
            client.connect(onlooker.faces[0].getsockname())
            server, _ = listener.accept()
            with server:
                for sock, other in ((client, server), (server, client)):
                    sock.settimeout(SECONDS)
                    sock.sendall(b"x")
                    assert other.recv(1) == b"x"
                onlooker.until([64, 0], [64, 0])
                for mine, its in (([7, 0x20], [9, 0x40]), ([7, 0x20], [64, 0]), ([64, 0], [33, 0x88])):
                    for sock, other, values in ((client, server, mine), (server, client, its)):
                        sock.setsockopt(level, ttl, values[0])
                        sock.setsockopt(level, tos, values[1])
                        sock.sendall(b"x")
                        assert other.recv(1) == b"x"
                    onlooker.until(mine, its)
        finally:
            client.close()
            onlooker.close()


def test_of_two_connections_over_one_port_each_has_its_own() -> None:
    with utpsocket.create_server(("127.0.0.1", 0)) as listener:
        onlookers = [Onlooker(socket.AF_INET, "127.0.0.1", V4, listener.getsockname()) for _ in range(2)]
        made = []
        try:
            for onlooker, values in zip(onlookers, ([5, 0x10], [6, 0x08]), strict=True):
                client = utpsocket.create_connection(onlooker.faces[0].getsockname(), timeout=SECONDS)
                server, _ = listener.accept()
                made += [client, server]
                server.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, values[0])
                server.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, values[1])
            for server in made[1::2]:
                server.sendall(b"x" * 100_000)
            for client in made[::2]:
                rest = 100_000
                while rest:
                    rest -= len(client.recv(rest))
            assert [onlooker.seen[1] for onlooker in onlookers] == [[5, 0x10], [6, 0x08]]
        finally:
            for sock in made:
                sock.close()
            for onlooker in onlookers:
                onlooker.close()

"""Where nothing happens the engine sleeps: its turns are counted, and what it waits for is an event."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

import utpsocket
from tests.engine.test_faults import OfBoth
from tests.requirements import replaces
from utpsocket.engine import engine
from utpsocket.engine.interpreter.garbage_collector import CollectorPause
from utpsocket.engine.kernel import poller
from utpsocket.engine.loop import Loop
from utpsocket.engine.ports.retries import Retries

pytestmark = pytest.mark.usefixtures("leaves_nothing_behind")

WAIT_S = 60
WATCHED_S = 0.5
MAX_TURNS = 25  # of some hundred that a retry each 2 ms would take; what is repeated after half a second is among them
BACKLOG = 2
CLIENTS = 3 * BACKLOG


def the_loop() -> Loop:
    loop = engine()
    assert isinstance(loop, Loop)
    return loop


def turns_while_nothing_happens() -> int:
    loop = the_loop()
    before = loop.wakeups
    time.sleep(WATCHED_S)
    return loop.wakeups - before


def becomes_quiet(sleeps: list[float]) -> bool:
    """Whether the engine does nothing any more, once what has been sent is acked and the rest has settled."""
    for _ in range(40):
        before = len(sleeps)
        if turns_while_nothing_happens() <= MAX_TURNS and len(sleeps) - before <= MAX_TURNS:
            return True
    return False


class Crowd:
    """A listener that accepts nothing yet, and as many clients as fill its backlog and the kernel's queue."""

    def __init__(self, kind: str) -> None:
        self.listener: Any = (utpsocket.socket if kind == "utp" else OfBoth)()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(BACKLOG)
        self.listener.settimeout(WAIT_S)
        make: Any = socket.socket if kind == "tcp" else utpsocket.socket
        self.clients = [make() for _ in range(CLIENTS)]
        for client in self.clients:
            client.setblocking(False)
            client.connect_ex(self.listener.getsockname())
        deadline = time.monotonic() + WAIT_S
        while not cast("Any", self.listener)._utp.is_full:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def connected(self) -> int:
        return len(select.select([], self.clients, [], WAIT_S)[1])

    def close(self) -> None:
        for sock in (self.listener, *self.clients):
            sock.close()


@pytest.mark.parametrize("kind", ["utp", "tcp"])
def test_a_full_backlog_costs_nothing(kind: str) -> None:
    crowd = Crowd(kind)
    assert becomes_quiet([])
    crowd.close()


@replaces("Retries.next_at()")
@pytest.mark.parametrize("kind", ["utp", "tcp"])
def test_accept_makes_room_for_the_next_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any clock: nothing is tried again of itself."""
    monkeypatch.setattr(Retries, "next_at", lambda retries, *, now: now + 3_600_000_000)
    monkeypatch.setattr(Retries, "is_due", lambda retries, *, now: retries._allowed_at == 0)
    monkeypatch.setattr(Retries, "expect_success", lambda retries: setattr(retries, "_allowed_at", 0))
    crowd = Crowd(kind)
    for _ in range(BACKLOG + 2):  # one more than the kernel's queue takes
        server, _ = crowd.listener.accept()
        server.close()
    crowd.close()


# ── what goes on for long while the program does nothing ──


def connection() -> tuple[Any, Any]:
    with utpsocket.create_server(("127.0.0.1", 0)) as listener:
        client = utpsocket.create_connection(listener.getsockname(), timeout=WAIT_S)
        server, _ = listener.accept()
    return client, server


def fill(sock: Any) -> None:
    """Send until nothing more is taken."""
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(bytes(1 << 16))
            select.select([], [sock], [], 0.2)


def connecting_to_silence() -> list[Any]:
    silent = socket.socket(type=socket.SOCK_DGRAM)
    silent.bind(("127.0.0.1", 0))
    client = utpsocket.socket()
    client.setblocking(False)
    client.connect_ex(silent.getsockname())
    return [silent, client]


def connected() -> list[Any]:
    return [sock for _ in range(20) for sock in connection()]


def half_closed() -> list[Any]:
    client, server = connection()
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    return [client, server]


def closed_by_one_side() -> list[Any]:
    client, server = connection()
    client.close()
    assert server.recv(1) == b""
    return [server]


def closed_by_one_side_and_not_read() -> list[Any]:
    client, server = connection()
    client.send(b"nobody reads this")
    client.close()
    select.select([server], [], [], WAIT_S)
    return [server]


def nobody_reads() -> list[Any]:
    client, server = connection()
    fill(client)
    return [client, server]


def listening() -> list[Any]:
    return [utpsocket.create_server(("127.0.0.1", 0)), utpsocket.socket()]


def relayed_and_nobody_reads() -> list[Any]:
    listener = OfBoth()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    client.connect(listener.getsockname())
    listener.settimeout(WAIT_S)
    server, _ = listener.accept()
    fill(client)
    return [listener, client, server]


STATES: list[Callable[[], list[Any]]] = [
    connecting_to_silence,
    connected,
    half_closed,
    closed_by_one_side,
    closed_by_one_side_and_not_read,
    nobody_reads,
    listening,
    relayed_and_nobody_reads,
]


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
@pytest.mark.parametrize("kind", ["epoll", "poll"])
def test_while_nothing_happens_the_engine_sleeps(
    kind: str, state: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "poll":
        monkeypatch.setenv("UTPSOCKET_POLLER", "poll")
    sleeps: list[float] = []
    original = poller.sleep_until_ready

    def sleep_until_ready(pause: CollectorPause, fds: list[tuple[int, int]], timeout: float) -> None:
        sleeps.append(timeout)
        original(pause, fds, timeout)

    monkeypatch.setattr(poller, "sleep_until_ready", sleep_until_ready)
    socks = state()
    assert isinstance(the_loop()._epoll, poller.LevelPoller) is (kind == "poll")
    assert becomes_quiet(sleeps)
    for sock in socks:
        sock.close()

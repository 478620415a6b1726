"""Where nothing happens the engine sleeps: its turns are counted, and what it waits for is an event."""

from __future__ import annotations

import select
import socket
import time
from typing import Any

import pytest

import utpsocket
from tests.engine.test_faults import OfBoth
from utpsocket.engine import engine
from utpsocket.engine.loop import Loop
from utpsocket.engine.retries import Retries

pytestmark = pytest.mark.usefixtures("leaves_nothing_behind")

WAIT_S = 20
WATCHED_S = 0.5
MOST_TURNS = 25  # of some hundred that a retry each 2 ms would take; what is repeated after half a second is among them
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
        while not self.listener._utp.is_full:
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
    assert turns_while_nothing_happens() <= MOST_TURNS
    crowd.close()


@pytest.mark.parametrize("kind", ["utp", "tcp"])
def test_accept_makes_room_for_the_next_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any clock: nothing is tried again of itself."""
    monkeypatch.setattr(Retries, "next_at", lambda retries, *, now: now + 3_600_000_000)
    monkeypatch.setattr(Retries, "is_due", lambda retries, *, now: retries._may_at == 0)
    monkeypatch.setattr(Retries, "hurry", lambda retries: setattr(retries, "_may_at", 0))
    crowd = Crowd(kind)
    for _ in range(BACKLOG + 2):  # one more than the kernel's queue takes
        server, _ = crowd.listener.accept()
        server.close()
    crowd.close()

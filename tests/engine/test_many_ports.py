"""What a call or a turn of the engine costs must not grow with the ports and listeners that have no part in it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import utpsocket
from tests.requirements import replaces
from utpsocket.engine import commands, engine
from utpsocket.engine.loop import Loop
from utpsocket.engine.ports.endpoint import Endpoint
from utpsocket.engine.ports.listener import Listener
from utpsocket.engine.user_fds.open_fds import HoldersWatch

pytestmark = pytest.mark.usefixtures("leaves_nothing_behind")

MANY = 40


def bound(stack: ExitStack) -> Any:
    sock = stack.enter_context(utpsocket.socket())
    sock.bind(("127.0.0.1", 0))
    return sock


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


class Calls:
    """How often each of these is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks = self.asked = self.prepared = 0
        is_unused, is_open, prepare = Endpoint.is_unused, HoldersWatch.is_open, Listener.prepare

        def counted_is_unused(endpoint: Endpoint) -> bool:
            self.looks += 1
            return bool(is_unused.fget(endpoint))  # type: ignore[attr-defined]

        def counted_is_open(watch: HoldersWatch, inode: int) -> bool:
            self.asked += 1
            return is_open(watch, inode)

        def counted_prepare(listener: Listener, *, now: int) -> int | None:
            self.prepared += 1
            return prepare(listener, now=now)

        monkeypatch.setattr(Endpoint, "is_unused", property(counted_is_unused))
        monkeypatch.setattr(HoldersWatch, "is_open", counted_is_open)
        monkeypatch.setattr(Listener, "prepare", counted_prepare)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def loop_of_this_process() -> Loop:
    loop = engine()
    assert isinstance(loop, Loop)
    return loop


def test_bind_and_close_look_at_their_own_port(stack: ExitStack, calls: Calls) -> None:
    for _ in range(MANY):
        bound(stack)
    calls.looks = calls.asked = 0
    with ExitStack() as own:
        bound(own)
    assert calls.asked == 1
    assert calls.looks <= 2


def test_a_failed_connect_looks_at_its_own_port(
    stack: ExitStack, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise OSError(errno.ENOBUFS, "No buffer space available")

    for _ in range(MANY):
        bound(stack)
    loop = loop_of_this_process()
    ports = len(loop.endpoints)
    monkeypatch.setattr(commands, "_dial", fails)
    calls.looks = calls.asked = 0
    with utpsocket.socket() as sock, pytest.raises(OSError, match="buffer space"):
        sock.connect(("127.0.0.1", 9))
    left = loop.call(lambda loop: len(loop.endpoints))  # after all of it
    assert calls.looks <= 2 and not calls.asked
    assert left == ports, "the port that it had opened is closed"


@replaces("Listener.prepare()")
def test_idle_listeners_cost_nothing_in_an_iteration(stack: ExitStack, calls: Calls) -> None:
    listeners = [bound(stack) for _ in range(MANY)]
    for listener in listeners:
        listener.listen()
    loop = loop_of_this_process()
    assert not loop.call(lambda loop: dict(loop._listeners))
    calls.prepared = 0
    client = stack.enter_context(utpsocket.socket())
    client.connect(listeners[0].getsockname())
    server, _ = listeners[0].accept()
    stack.enter_context(server)
    client.sendall(b"question")
    assert server.recv(8) == b"question"
    assert 0 < calls.prepared < MANY
    first = next(iter(loop.bound[listeners[0].getsockname()[1]])).listener
    assert first is not None
    loop.call(lambda loop: loop.wake_listener(first))
    assert not loop.call(lambda loop: dict(loop._listeners))

"""What connect() has made can be accepted, and what accept() gives may be written at its other side: never one alone.

The engine's thread is looked at between its steps, and its packets are held back: no clock decides.
"""

from __future__ import annotations

import errno
import select
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

import utpsocket
from tests.requirements import replaces, requires_ipv6, requires_pure
from utpsocket.engine import engine
from utpsocket.engine.loop import Loop
from utpsocket.engine.ports.connect_gate import ConnectGate
from utpsocket.engine.ports.endpoint import Endpoint
from utpsocket.engine.ports.listener import Listener

pytestmark = pytest.mark.usefixtures("leaves_nothing_behind")

WAIT_S = 60
CONNECTIONS = 20
LONG_US = 40_000  # ten times what any clock of a connect's was


def has(sock: Any, event: int) -> bool:
    poller = select.poll()
    poller.register(sock, event)
    return any(mask & event for _, mask in poller.poll(0))


@requires_pure
@pytest.mark.parametrize(
    ("family", "host", "to"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET, "", "127.0.0.3"),
        pytest.param(socket.AF_INET6, "::1", "::1", marks=requires_ipv6),
        pytest.param(socket.AF_INET6, "::", "::1", marks=requires_ipv6),
        pytest.param(socket.AF_INET6, "::", "127.0.0.1", marks=requires_ipv6),
    ],
)
@pytest.mark.parametrize("is_bound", [False, True])
def test_both_sides_come_to_light_in_one_step(
    family: int, host: str, to: str, is_bound: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_dual = family == socket.AF_INET6 and host == "::"
    listener = utpsocket.create_server((host, 0), family=family, dualstack_ipv6=is_dual)
    number = listener.getsockname()[1]
    connecting: Any = None
    seen: list[tuple[bool, bool]] = []
    is_looking = threading.Lock()

    def looking(owner: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def look_before(*arguments: Any, **named: Any) -> Any:
            with is_looking:
                if connecting is not None:
                    seen.append((has(connecting, select.POLLOUT), has(listener, select.POLLIN)))
            return original(*arguments, **named)

        monkeypatch.setattr(owner, name, look_before)

    for owner, name in (
        (Listener, "hand_over"),
        (ConnectGate, "open_due"),
        (Listener, "watch_handed_over"),
        (Loop, "_wait"),
    ):
        looking(owner, name)
    with listener:
        listener.settimeout(WAIT_S)
        for _ in range(CONNECTIONS):
            with utpsocket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET) as client:
                client.setblocking(False)
                if is_bound:
                    client.bind((to, 0))
                assert client.connect_ex((to, number)) == errno.EINPROGRESS
                connecting = client
                assert select.select([listener], [], [], WAIT_S)[0]
                with is_looking:
                    connecting = None
                assert client.send(b"at once") == 7
                server, _ = listener.accept()
                with server:
                    server.settimeout(WAIT_S)
                    assert server.recv(7) == b"at once"
    assert {connected == acceptable for connected, acceptable in seen} == {True}
    assert len(set(seen)) == 2


class Held:
    """The datagrams of a listening port are not read from the moment on in which it has a connection without proof."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, listener: Any) -> None:
        self.turns = 0
        self.is_long = threading.Event()
        self.may_go_on = threading.Event()
        self._began_us = 0
        self._number = listener.getsockname()[1]
        self._original = Endpoint.receive
        held = self

        def receive(endpoint: Endpoint, *, now: int) -> None:
            if endpoint.port.local[1] == held._number and endpoint.bridges and not held.may_go_on.is_set():
                held._hold(now)
            else:
                held._original(endpoint, now=now)

        monkeypatch.setattr(Endpoint, "receive", receive)

    def _hold(self, now: int) -> None:
        self.turns += 1
        self._began_us = self._began_us or now
        if self.turns > 10 and now > self._began_us + LONG_US:
            self.is_long.set()


@replaces("Endpoint.receive()")
@pytest.mark.parametrize("timeout", [None, WAIT_S])
def test_a_connect_is_complete_when_it_can_be_accepted_however_long_that_takes(
    timeout: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with utpsocket.create_server(("127.0.0.1", 0)) as listener, utpsocket.socket() as client:
        listener.setblocking(False)
        client.settimeout(timeout)
        held = Held(monkeypatch, listener)
        accepted: list[Any] = []

        def connect_and_accept() -> None:
            client.connect(listener.getsockname())
            accepted.append(listener.accept()[0])

        caller = threading.Thread(target=connect_and_accept)
        caller.start()
        assert held.is_long.wait(WAIT_S)
        assert not has(client, select.POLLOUT)
        held.may_go_on.set()
        caller.join(WAIT_S)
        assert len(accepted) == 1
        accepted[0].close()


@replaces("Endpoint.handle_run()")
def test_a_connect_that_waits_for_its_acceptor_needs_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine sleeps until the proof comes."""
    with utpsocket.create_server(("127.0.0.1", 0)) as listener, utpsocket.socket() as client:
        loop = engine()
        assert isinstance(loop, Loop)
        may_go_on = threading.Event()
        turns: list[int] = []
        original = Endpoint.handle_run
        kept: list[tuple[Endpoint, Any]] = []
        number = listener.getsockname()[1]

        def handle_run(endpoint: Endpoint, run: Any, *, now: int) -> None:
            if endpoint.port.local[1] == number and endpoint.bridges and not may_go_on.is_set():
                kept.append((endpoint, type(run)(memoryview(bytes(run.data)), run.stride, run.addr, run.local)))
                turns.append(loop.wakeups)
            else:
                original(endpoint, run, now=now)

        monkeypatch.setattr(Endpoint, "handle_run", handle_run)
        client.setblocking(False)
        assert client.connect_ex(listener.getsockname()) == errno.EINPROGRESS
        assert not select.select([], [client], [], 0.3)[1]
        assert len(kept) >= 1
        assert loop.wakeups - turns[0] <= 20  # at most the proof is repeated
        may_go_on.set()

        def forward_datagram(loop: Loop) -> None:
            for endpoint, run in kept:
                original(endpoint, run, now=loop.now)

        loop.call(forward_datagram)
        assert select.select([], [client], [], WAIT_S)[1]
        listener.setblocking(False)
        listener.accept()[0].close()


@replaces("Endpoint.receive()")
def test_a_connect_is_complete_though_its_acceptor_is_gone_before_its_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    with utpsocket.create_server(("127.0.0.1", 0)) as listener, utpsocket.socket() as client:
        held = Held(monkeypatch, listener)
        client.setblocking(False)
        client.connect_ex(listener.getsockname())
        assert held.is_long.wait(WAIT_S)
        listener.close()
        assert select.select([], [client], [], WAIT_S)[1]
        held.may_go_on.set()
        client.settimeout(WAIT_S)
        with pytest.raises(ConnectionResetError):
            client.recv(1)

"""What carries a socket's bytes: one channel for each socket at any time, whichever transport it is."""

from __future__ import annotations

import socket

import pytest

import utpsocket
from tests.requirements import replaces
from tests.sockets.network import eventually
from utpsocket.engine import engine, running_engine, shutdown
from utpsocket.engine.channels.race import Attempt
from utpsocket.engine.channels.utp import Bridge
from utpsocket.engine.loop import Loop
from utpsocket.engine.ports.bound_ports import BoundPorts
from utpsocket.protocol import Connection, State
from utpsocket.sockets.rules import Routes

pytestmark = pytest.mark.usefixtures("leaves_nothing_behind")
PATIENCE_S = 60


class FallingBack(utpsocket.socket):
    _routes = Routes(fallback="tcp", fallback_seconds=0.02)


def kinds(loop: Loop) -> list[str]:
    return sorted(type(channel).__name__ for channel in loop.channels.values())


def test_a_socket_that_falls_back_to_tcp_has_one_channel_under_its_cookie() -> None:
    """The attempt over uTP is gone, and what took its place is found where it was."""
    seen: list[tuple[bool, str]] = []
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener, FallingBack() as client:
            client.settimeout(PATIENCE_S)
            client.connect(listener.getsockname())
            loop = running_engine()
            assert isinstance(loop, Loop)
            loop.call(
                lambda loop: seen.extend(
                    (key == each.identity.cookie, type(each).__name__) for key, each in loop.channels.items()
                )
            )
            assert seen == [(True, "Relay")]
        assert eventually(lambda: kinds(loop), []) == []
    finally:
        shutdown()


@replaces("Attempt._take_engine_sock()")
def test_what_a_connect_leaves_over_utp_is_found_beside_the_attempt_over_tcp() -> None:
    """Until it is over it has to be served, though its socket is TCP's: by the negative of the cookie."""
    at_take_over: list[list[tuple[int, str]]] = []
    original = Attempt._take_engine_sock

    def take_end(self: Attempt, bridge: Bridge) -> None:
        original(self, bridge)
        channels = self._loop.channels
        at_take_over.append([(key // self.cookie, type(each).__name__) for key, each in channels.items()])

    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as listener:
        patch.setattr(Attempt, "_take_engine_sock", take_end)
        try:
            with FallingBack() as client:
                client.settimeout(PATIENCE_S)
                client.connect(listener.getsockname())
        finally:
            shutdown()
    assert [sorted(each) for each in at_take_over] == [[(-1, "Bridge"), (1, "Attempt")]]


@replaces("Connection.handle_timeout()")
def test_neither_side_waits_for_a_late_fin_where_an_engine_has_both_whichever_ports_it_announces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An engine in a process of its own has other BoundPorts than the thread begins with: helper/server.py."""
    timeouts: list[State] = []
    original = Connection.handle_timeout

    def handle_timeout(self: Connection, *, now: int) -> None:
        timeouts.append(self.state)
        original(self, now=now)

    def announce(loop: Loop) -> None:
        loop.bound = BoundPorts()

    monkeypatch.setattr(Connection, "handle_timeout", handle_timeout)
    shutdown()
    try:
        loop = engine()
        assert isinstance(loop, Loop)
        loop.call(announce)  # before there is any port
        with utpsocket.create_server(("127.0.0.1", 0)) as listener:
            client = utpsocket.create_connection(listener.getsockname(), PATIENCE_S)
            server, _ = listener.accept()
        client.close()
        server.close()
        assert eventually(lambda: kinds(loop), []) == []
    finally:
        shutdown()
    assert State.TIME_WAIT not in timeouts

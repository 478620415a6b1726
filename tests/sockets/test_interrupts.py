"""A signal's handler that raises, at any line of any call: `python3 -m tests.faults callers` tries them all."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.faults import callers, scenes
from utpsocket.engine import engine
from utpsocket.engine.kernel import netns
from utpsocket.engine.loop import Loop

from .network import PATIENCE_S, Net

ONE_OF = 5
# A TimeoutError in create_server(dualstack_ipv6=True) the stdlib's own has_dualstack_ipv6() takes for a lack of IPv6.
LIKE_AN_ERRNO = [name for name in callers.CASES if name != "create_both"]


@pytest.mark.parametrize(
    ("name", "error"),
    [(name, callers.USUAL) for name in callers.CASES] + [(name, callers.LIKE_AN_ERRNO) for name in LIKE_AN_ERRNO],
)
def test_an_exception_at_some_lines(name: str, error: str) -> None:
    callers.warm_up()
    first, last = 1 + len(name) % ONE_OF, callers.count(name, with_opcodes=False)
    report = callers.inject(
        [f"callers:{name}:line:{number}:{error}" for number in range(first, last + 1, ONE_OF)], _ignore
    )
    assert not report.failures
    assert last < ONE_OF or report.injected


@pytest.mark.parametrize("kind", ["line", "opcode"])
def test_an_exception_as_a_socket_is_dropped(kind: str) -> None:
    """Where CPython runs handlers first, and the first finalizer that is written in Python would end: at its start."""
    callers.warm_up()
    report = callers.inject([f"callers:drop:{kind}:{number}:{callers.USUAL}" for number in range(1, 20)], _ignore)
    assert not report.failures
    assert report.injected == 19


def _ignore(*_: object) -> None:
    """No journal is kept."""


class Stop(Exception):
    """What the handler raises."""


@pytest.fixture
def ring() -> Iterator[Any]:
    """Send this thread a signal, whose handler raises, after so many seconds."""

    def on_signal(number: int, frame: object) -> None:
        raise Stop

    before = signal.signal(signal.SIGUSR1, on_signal)
    main = threading.get_ident()
    timers = []

    def later(seconds: float) -> None:
        timers.append(threading.Timer(seconds, signal.pthread_kill, (main, signal.SIGUSR1)))
        timers[-1].start()

    yield later
    for timer in timers:
        timer.join()
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_ends_the_calls_that_wait(net: Net, ring: Any) -> None:
    """connect() goes on without its caller; accept() and recv() have taken nothing."""
    listener = net.listener()
    with pytest.raises(Stop):
        ring(0.1)  # in here, since it may come early
        listener.accept()
    client = net.fresh()
    client.connect(listener.getsockname())
    server = net.accept(listener)
    with pytest.raises(Stop):
        ring(0.1)
        server.recv(1)
    client.sendall(b"x")
    assert server.recv(1) == b"x"


def test_a_handlers_timeout_is_not_taken_for_an_old_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket's network namespace is asked for, and the answer kept."""

    def interrupted(*_: Any) -> bytes:
        raise TimeoutError("of a signal's handler")

    monkeypatch.setattr(netns, "Socket", SimpleNamespace(getsockopt=interrupted))
    with socket.socket() as sock, pytest.raises(TimeoutError, match="handler"):
        netns.cookie_in_python(sock)


class SlowEpoll:
    """Registers nothing the first time, and keeps the engine's thread waiting once that has unregistered an fd."""

    def __init__(self, epoll: Any, error: BaseException) -> None:
        self._epoll = epoll
        self._error: BaseException | None = error
        self.fd = -1
        self.has_unregistered, self.may_go_on = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)

    def register(self, fd: int, events: int) -> None:
        error, self._error = self._error, None
        if error is not None:
            self.fd = fd
            raise error
        self._epoll.register(fd, events)

    def unregister(self, fd: int) -> None:
        try:
            self._epoll.unregister(fd)
        finally:
            if fd == self.fd:
                self.has_unregistered.set()
                assert self.may_go_on.wait(PATIENCE_S)


@pytest.mark.parametrize("net", ["utp"], indirect=True)
@pytest.mark.parametrize("error", [Stop(), OSError(errno.ENOSPC, "no room for another watch")], ids=["Stop", "ENOSPC"])
def test_the_fd_of_a_bind_that_failed_is_not_reused_until_the_engine_has_forgotten_it(
    error: Exception, net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next port gets its number, and is forgotten in its place."""
    net.listener()
    loop = engine()
    if not isinstance(loop, Loop) or not loop.frees_ports_at_once:
        pytest.skip("bind() hands its port to another thread or process, which alone closes it")
    epoll = SlowEpoll(loop._watches._epoll, error)
    for name in ("_epoll", "plain"):
        monkeypatch.setattr(loop._watches, name, epoll)
    try:
        with pytest.raises(type(error)):
            net.fresh().bind(("127.0.0.1", 0))
        assert epoll.has_unregistered.wait(PATIENCE_S)
        assert os.path.exists(f"/proc/self/fd/{epoll.fd}")
        listener = net.listener()
    finally:
        epoll.may_go_on.set()
    client = net.fresh()
    client.connect(listener.getsockname())
    assert net.accept(listener).getpeername() == client.getsockname()


@pytest.mark.parametrize("net", ["utp"], indirect=True)
def test_a_listener_of_both_may_listen_after_a_listen_that_failed(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over TCP too, whose socket went with the listener that never was."""
    net.listener()
    loop = engine()
    if not isinstance(loop, Loop) or not loop.frees_ports_at_once:
        pytest.skip("the engine is the only one that watches a socket")
    sock = net.own(scenes.OfBoth())
    sock.bind(("127.0.0.1", 0))
    name = sock.getsockname()
    with monkeypatch.context() as patch:
        epoll = SlowEpoll(loop._watches._epoll, OSError(errno.ENOSPC, "no room for another watch"))
        epoll.may_go_on.set()
        patch.setattr(loop._watches, "_epoll", epoll)
        patch.setattr(loop._watches, "plain", epoll)
        with pytest.raises(OSError, match="no room for another watch"):
            sock.listen()
    sock.listen()
    assert sock.getsockname() == name
    for client in (net.fresh(), net.own(socket.socket())):
        client.connect(name)
        assert net.accept(sock).getpeername() == client.getsockname()

"""Steps of the engine on threads of the program (engine/steps.py, engine/inline_io.py): that there are some, and that
nothing is different by them. What is said of a program's calls is tested in both builds; the pure one has no steps.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

import utpsocket
from tests.requirements import requires_compiled
from utpsocket.engine.current import running_engine
from utpsocket.engine.inline_io import IS_ON, MAX_BYTES, MAX_CONNECTIONS
from utpsocket.engine.loop import Loop
from utpsocket.engine.steps import Work
from utpsocket.sockets import shim

PATIENCE_S = 60
ROUNDS = 200

requires_steps = pytest.mark.skipif(
    not IS_ON,
    reason="needs the compiled build and UTPSOCKET_INLINE=1, which is off by default",
)


@pytest.fixture(params=[True, False], ids=["steps", "no_steps"])
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With steps, and as with UTPSOCKET_INLINE=0."""
    is_wanted = bool(request.param)
    monkeypatch.setattr(shim, "_works_inline", IS_ON and is_wanted)
    return is_wanted


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    shim.load()  # which the first uTP socket does, and sets what the environment says
    monkeypatch.setattr(shim, "_works_inline", IS_ON)


@pytest.fixture
def ends() -> Iterator[tuple[Any, Any]]:
    client, server = pair()
    with client, server:
        yield client, server


def pair() -> tuple[Any, Any]:
    with utpsocket.create_server(("127.0.0.1", 0)) as listener:
        client = utpsocket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    for sock in (client, server):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client, server


def loop() -> Loop:
    found = running_engine()
    assert isinstance(found, Loop)
    return found


def exactly(sock: Any, count: int) -> bytes:
    got = b""
    while len(got) < count:
        data = sock.recv(count - len(got))
        if not data:
            break
        got += data
    return got


def echo(sock: Any, rounds: int, size: int = 1) -> threading.Thread:
    def answer() -> None:
        for _ in range(rounds):
            sock.sendall(exactly(sock, size))

    thread = threading.Thread(target=answer)
    thread.start()
    return thread


@requires_steps
@pytest.mark.parametrize("timeout", [None, PATIENCE_S])
def test_messages_go_there_and_back_by_steps(ends: tuple[Any, Any], timeout: float | None) -> None:
    client, server = ends
    client.settimeout(timeout)
    thread = echo(server, ROUNDS)
    before, iterations = loop().steps, loop().wakeups
    for index in range(ROUNDS):
        client.sendall(b"%c" % (index % 256))
        assert client.recv(1) == b"%c" % (index % 256)
    thread.join()
    # Four in each round at most: two messages are sent and received. Many are the engine's thread's on a busy machine.
    assert loop().steps - before > ROUNDS // 10, (loop().steps - before, loop().wakeups - iterations)


@requires_steps
def test_recv_into_and_files_wait_likewise(ends: tuple[Any, Any]) -> None:
    client, server = ends
    thread = echo(server, ROUNDS, 5)
    before = loop().steps
    with client.makefile("rb") as file:
        for _ in range(ROUNDS):
            client.send(bytearray(b"line\n"))
            assert file.readline() == b"line\n"
    thread.join()
    assert loop().steps - before > ROUNDS // 10


@requires_compiled
def test_without_the_variable_there_are_no_steps(ends: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shim, "_works_inline", False)
    client, server = ends
    thread = echo(server, 5)
    before = loop().steps
    for _ in range(5):
        client.sendall(b"x")
        client.recv(1)
    thread.join()
    assert loop().steps == before


@pytest.mark.parametrize("seed", range(6))
def test_a_stream_is_the_same_with_steps_and_without(seed: int, steps: bool) -> None:
    """Both sides write and read by chance, by the class and by the descriptor, pieces that a step takes and others."""
    chance = random.Random(seed)
    ends = pair()
    streams = [chance.randbytes(chance.choice((2_000, 60_000, 600_000))) for _ in ends]

    def write(sock: Any, data: bytes, dice: random.Random) -> None:
        at = 0
        while at < len(data):
            piece = data[at : at + dice.choice((1, 10, 500, 2_000, MAX_BYTES, MAX_BYTES + 1, 100_000))]
            if dice.random() < 0.25:
                at += os.write(sock.fileno(), piece)
            else:
                at += sock.send(piece if dice.random() < 0.5 else bytearray(piece))
            if dice.random() < 0.1:
                time.sleep(0.001)  # so that all is acknowledged, and the engine's thread sleeps

    def read(sock: Any, data: bytes, dice: random.Random, got: list[bytes]) -> None:
        while sum(map(len, got)) < len(data):
            size = dice.choice((1, 100, 10_000, 1 << 20))
            got.append(os.read(sock.fileno(), size) if dice.random() < 0.1 else sock.recv(size))

    received: list[list[bytes]] = [[], []]
    threads = [
        threading.Thread(target=write, args=(sock, data, random.Random(chance.random())))
        for sock, data in zip(ends, streams, strict=True)
    ]
    threads += [
        threading.Thread(target=read, args=(sock, data, random.Random(chance.random()), got))
        for sock, data, got in zip(ends, reversed(streams), received, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [b"".join(got) for got in received] == streams[::-1]
    for sock in ends:
        sock.close()


def test_what_was_written_to_the_descriptor_comes_first(ends: tuple[Any, Any], steps: bool) -> None:
    client, server = ends
    for index in range(ROUNDS):
        os.write(client.fileno(), b"%3d" % index)
        client.send(b"%3d" % index)
        assert exactly(server, 6) == b"%3d%3d" % (index, index)


def test_after_a_shutdown_by_another_process_send_fails(ends: tuple[Any, Any], steps: bool) -> None:
    client, server = ends
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            client.shutdown(socket.SHUT_WR)
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(BrokenPipeError):
        client.send(b"late")
    assert server.recv(10) == b""


def test_a_closed_socket_sends_and_receives_nothing(ends: tuple[Any, Any], steps: bool) -> None:
    client, _ = ends
    client.close()
    for method, argument in (("send", b"x"), ("recv", 1)):
        with pytest.raises(OSError) as caught:
            getattr(client, method)(argument)
        assert caught.value.errno == errno.EBADF


def test_a_timeout_ends_a_recv_and_no_other(ends: tuple[Any, Any], steps: bool) -> None:
    client, server = ends
    server.settimeout(0.05)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="timed out"):
        server.recv(1)
    assert time.monotonic() - began >= 0.05
    client.send(b"x")
    server.settimeout(PATIENCE_S)
    assert server.recv(1) == b"x"
    server.settimeout(0)
    with pytest.raises(BlockingIOError):
        server.recv(1)


def test_the_kernels_own_timeout_is_kept(ends: tuple[Any, Any], steps: bool) -> None:
    _, server = ends
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, bytes(8) + (50_000).to_bytes(8, "little"))
    with pytest.raises(BlockingIOError):
        server.recv(1)


class Raised(Exception):
    pass


@contextlib.contextmanager
def on_alarm(handler: Callable[[], object]) -> Iterator[None]:
    def called(_number: int, _frame: FrameType | None) -> None:
        handler()

    before = signal.signal(signal.SIGALRM, called)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("timeout", [None, PATIENCE_S])
def test_a_signals_handler_runs_while_recv_waits(ends: tuple[Any, Any], steps: bool, timeout: float | None) -> None:
    client, server = ends
    server.settimeout(timeout)
    calls = itertools.count()
    within: list[bytes] = []

    def handler() -> None:  # on the thread that waits
        call = next(calls)
        if call == 2:
            client.send(b"for the handler")
            within.append(server.recv(100))
        elif call == 3:
            client.send(b"by the handler")

    with on_alarm(handler):
        assert server.recv(100) == b"by the handler"
    assert within == [b"for the handler"]


def test_what_a_handler_raises_ends_recv_and_nothing_else(ends: tuple[Any, Any], steps: bool) -> None:
    client, server = ends

    def handler() -> None:
        raise Raised

    with pytest.raises(Raised), on_alarm(handler):
        server.recv(100)
    client.send(b"later")  # the engine's thread receives it: epoll reports the port again
    poller = select.poll()
    poller.register(server.fileno(), select.POLLIN)
    assert poller.poll(PATIENCE_S * 1_000)
    assert server.recv(100) == b"later"


def test_a_handler_that_forks_leaves_recv_as_it_was(ends: tuple[Any, Any], steps: bool) -> None:
    client, server = ends
    children = []

    def handler() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        child = os.fork()
        if not child:
            time.sleep(10 * PATIENCE_S)  # until it is killed: its recv() would take the bytes, as over TCP
            os._exit(0)
        children.append(child)
        client.send(b"to the parent")

    parent = os.getpid()
    try:
        with on_alarm(handler):
            got = server.recv(100)
    finally:
        if os.getpid() != parent:
            os._exit(0)
    os.kill(children[0], signal.SIGKILL)
    os.waitpid(children[0], 0)
    assert got == b"to the parent"
    client.send(b"more")
    assert server.recv(100) == b"more"


@pytest.mark.parametrize("how", ["fin", "reset"])
def test_the_end_of_the_connection_ends_recv(ends: tuple[Any, Any], steps: bool, how: str) -> None:
    client, server = ends
    found: list[object] = []

    def receive() -> None:
        try:
            found.append(server.recv(10))
        except OSError as error:
            found.append(error.errno)

    thread = threading.Thread(target=receive)
    thread.start()
    time.sleep(0.05)  # it may wait by then; the result is the same if it does not
    if how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    thread.join()
    assert found == [b"" if how == "fin" else errno.ECONNRESET]


def test_others_at_the_port_are_served_while_recv_waits(steps: bool) -> None:
    with utpsocket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        clients, servers = [], []
        threads = []
        stranger = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        for _ in range(4):
            clients.append(stack.enter_context(utpsocket.create_connection(listener.getsockname())))
            servers.append(stack.enter_context(listener.accept()[0]))
            threads.append(echo(servers[-1], 20))
            stranger.sendto(b"no packet of uTP's", listener.getsockname())
            for client in clients:
                client.send(b"x")
                assert client.recv(1) == b"x"
        for index, client in enumerate(clients):
            for _ in range(20 - (len(clients) - index)):
                client.send(b"x")
                assert client.recv(1) == b"x"
        for thread in threads:
            thread.join()


def test_several_connections_in_threads(steps: bool) -> None:
    ends = [pair() for _ in range(4)]
    threads = [echo(server, 50, 3) for _, server in ends]

    def ask(client: Any) -> None:
        for index in range(50):
            client.sendall(b"%3d" % index)
            assert exactly(client, 3) == b"%3d" % index

    threads += [threading.Thread(target=ask, args=(client,)) for client, _ in ends]
    for thread in threads[4:]:
        thread.start()
    for thread in threads:
        thread.join()
    for sock in itertools.chain(*ends):
        sock.close()


@requires_steps
def test_with_more_connections_the_engines_thread_works(ends: tuple[Any, Any]) -> None:
    """Until there are few again."""
    client, server = ends
    engine = loop()
    others = pair()
    assert len(engine.channels) > MAX_CONNECTIONS
    before = engine.steps
    for _ in range(ROUNDS):
        client.send(b"x")
        server.sendall(server.recv(1))
        assert client.recv(1) == b"x"
    assert engine.steps == before
    for other in others:
        other.close()
    deadline = time.monotonic() + PATIENCE_S
    while engine.steps == before:
        assert time.monotonic() < deadline
        client.send(b"x")
        assert server.recv(1) == b"x"


@requires_steps
def test_a_message_within_a_step_is_left_to_the_engines_thread(ends: tuple[Any, Any]) -> None:
    """As a finalizer would send it."""
    client, server = ends
    engine = loop()
    deadline = time.monotonic() + PATIENCE_S
    while not Work.begin_step(engine):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    try:
        assert client.send(b"x") == 1
        assert not Work.begin_step(engine)
    finally:
        Work.end_step(engine)
    assert server.recv(1) == b"x"


@requires_steps
def test_the_ack_of_what_a_step_has_received_is_not_late(ends: tuple[Any, Any]) -> None:
    """The engine's thread slept without a deadline: it learns of the one that the step has made. Once in ten times is
    enough: on a busy machine a packet may be sent again all the same.
    """
    client, server = ends

    def resent() -> int:
        return sum(utpsocket.info(sock).retransmitted_packets for sock in ends)

    def is_in_time() -> bool:
        before = resent()
        thread = echo(server, 1)
        client.send(b"x")
        assert client.recv(1) == b"x"
        thread.join()
        deadline = time.monotonic() + PATIENCE_S
        while any(utpsocket.info(sock).in_flight_bytes for sock in ends):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return resent() == before

    assert any(is_in_time() for _ in range(10))

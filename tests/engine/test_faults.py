"""A fault ends its owner and nothing else, and calls that wait for it raise: engine/faults.py. The tool that tries
every call is tests/faults; here is a sample of it, and what the tool does not cover.
"""

from __future__ import annotations

import errno
import inspect
import marshal
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest

import utpsocket
from tests.faults import callers, cases, kernel, scenes
from tests.faults import engine as faults
from tests.requirements import replaces
from tests.sockets.network import eventually
from utpsocket.engine import command_queue, commands, fault_reports, flush, running_engine, shutdown
from utpsocket.engine import loop as loop_module
from utpsocket.engine.channels.tcp import Relay
from utpsocket.engine.channels.utp import Bridge
from utpsocket.engine.helper import client as engine_client
from utpsocket.engine.helper import messages
from utpsocket.engine.helper.client import RemoteLoop
from utpsocket.engine.interpreter import native
from utpsocket.engine.interpreter.fork_lock import ForkLock
from utpsocket.engine.kernel.high_fds import HighSocket
from utpsocket.engine.kernel.native_calls import Stream
from utpsocket.engine.loop import Loop
from utpsocket.engine.ports import tcp_listener
from utpsocket.engine.ports.endpoint import Endpoint
from utpsocket.engine.user_fds import forked_copies, shared_errnos
from utpsocket.protocol.build import IS_COMPILED
from utpsocket.sockets import shim
from utpsocket.sockets.rules import Routes

pytestmark = pytest.mark.usefixtures("leaves_nothing_behind")
PATIENCE_S = 60
RESET_ON_CLOSE = struct.pack("=ii", 1, 0)


class OfBoth(utpsocket.socket):
    _routes = Routes(listen="both")


class FallingBack(utpsocket.socket):
    _routes = Routes(fallback="tcp", fallback_seconds=0.02)


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[BaseException]]:
    """What the engine says that it met, instead of telling sys.excepthook."""
    found: list[BaseException] = []
    monkeypatch.setattr(fault_reports, "report", found.append)
    monkeypatch.setattr(shim, "_works_inline", False)  # the engine's thread does it all
    yield found
    shutdown()


def failing(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: BaseException, times: int = 1) -> None:
    """Have a method raise for so many calls."""
    original: Callable[..., Any] = getattr(owner, name)
    left = [error] * times

    def call(*arguments: Any, **named: Any) -> Any:
        if left:
            raise left.pop()
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, call)


def pair() -> tuple[Any, Any]:
    with utpsocket.create_server(("127.0.0.1", 0)) as listener:
        client = utpsocket.create_connection(listener.getsockname(), timeout=PATIENCE_S)
        server, _ = listener.accept()
        server.settimeout(PATIENCE_S)
        return client, server


def closed(*socks: Any) -> None:
    for sock in socks:
        sock.close()


SENDS: Any = Stream
if IS_COMPILED:
    from utpsocket import _native

    SENDS = _native


@pytest.mark.parametrize("error", [MemoryError(), SystemExit(3), KeyboardInterrupt(), RuntimeError("a defect")])
def test_a_fault_costs_one_connection(
    error: BaseException, reported: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, SENDS, "send", error)  # a stream of the compiled build looks it up when it is made
    pairs = [pair() for _ in range(6)]
    problems = []
    for client, _ in pairs:
        client.send(b"hello")
    for client, server in pairs:
        try:
            assert server.recv(5) == b"hello"
        except OSError as problem:
            problems.append(problem.errno)
            with pytest.raises(ConnectionResetError):
                client.recv(1)
    assert problems == [errno.ECONNABORTED]
    assert reported == [error]
    for sockets in pairs:
        closed(*sockets)


@pytest.mark.parametrize("code", [errno.EINTR, errno.ENOBUFS, errno.ENOMEM])
def test_no_memory_in_the_kernel_is_no_end_of_file(
    code: int, reported: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each call on the pair in turn: both ways, several times on end."""
    client, server = pair()
    loop = running_engine()
    assert isinstance(loop, Loop)
    left = dict.fromkeys(("send", "receive"), 3)
    for bridge in loop.channels.values():
        assert isinstance(bridge, Bridge)
        forgetful: Any = Forgetful(bridge.stream, code, left)
        bridge.stream = forgetful
    payload = bytes(range(256)) * 8_000
    sender = threading.Thread(target=lambda: (client.sendall(payload), client.shutdown(socket.SHUT_WR)))
    sender.start()
    got = b"".join(iter(lambda: server.recv(65_536), b""))
    sender.join()
    assert (got == payload, left, reported) == (True, {"send": 0, "receive": 0}, [])
    closed(client, server)


class Forgetful:
    """A bridge's stream whose calls fail now and then."""

    def __init__(self, stream: Any, code: int, left: dict[str, int]) -> None:
        self._stream = stream
        self._code = code
        self._left = left
        self._calls = 0

    def _call(self, name: str, views: list[memoryview]) -> int:
        self._calls += 1
        if self._left[name] and self._calls % 3:
            self._left[name] -= 1
            return -self._code
        return int(getattr(self._stream, name)(views))

    def send(self, views: list[memoryview]) -> int:
        return self._call("send", views)

    def receive(self, spans: list[memoryview]) -> int:
        return self._call("receive", spans)


@pytest.mark.parametrize("timeout", [PATIENCE_S, None])
@pytest.mark.parametrize(
    ("owner", "name"), [(Loop, "open_endpoint"), (Endpoint, "dial"), (Bridge, "attach"), (Loop, "watch_bridge")]
)
def test_a_connect_whose_command_fails_raises(
    owner: Any, name: str, timeout: float | None, reported: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    with utpsocket.create_server(("127.0.0.1", 0)) as listener:
        failing(monkeypatch, owner, name, MemoryError())
        with utpsocket.socket() as client:
            client.settimeout(timeout)
            with pytest.raises(OSError, match="Cannot allocate") as caught:
                client.connect(listener.getsockname())
            assert caught.value.errno == errno.ENOMEM
            if timeout is not None:  # the kernel's connect() has not said yet how the attempt ended
                with pytest.raises(ConnectionAbortedError):
                    client.connect(listener.getsockname())
            client.connect(listener.getsockname())  # as after any attempt that failed
            listener.settimeout(PATIENCE_S)
            server, _ = listener.accept()
            server.close()


@pytest.mark.parametrize("kind", [MemoryError, OSError])
@pytest.mark.parametrize("name", ["new_endpoint", "publish", "watch_port"])
def test_a_bind_that_fails_raises_and_leaves_no_port(
    name: str, kind: type[Exception], reported: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    with utpsocket.socket() as sock:
        failing(monkeypatch, Loop, name, kind(errno.ENOSPC, "of what epoll may watch"))
        with pytest.raises(kind):  # on the program's own thread
            sock.bind(("127.0.0.1", 0))
        sock.bind(("127.0.0.1", 0))
        loop = running_engine()
        assert isinstance(loop, Loop)
        loop.call(commands.barrier)
        assert len(loop.endpoints) == 1


@replaces("Loop._forget_readiness()")
def test_if_the_thread_ends_every_socket_gets_an_errno(
    reported: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, server = pair()
    listener = utpsocket.create_server(("127.0.0.1", 0))
    connecting = utpsocket.socket()
    connecting.setblocking(False)
    with socket.socket(type=socket.SOCK_DGRAM) as mute:
        mute.bind(("127.0.0.1", 0))
        assert connecting.connect_ex(mute.getsockname()) == errno.EINPROGRESS
        loop = running_engine()
        assert isinstance(loop, Loop)
        failing(monkeypatch, loop, "_forget_readiness", MemoryError(), times=100)
        with pytest.raises(OSError, match="Software caused"):
            loop.call(_fail)
        for sock in (client, server):
            with pytest.raises(ConnectionAbortedError):
                sock.recv(1)
        assert select.select([], [connecting], [], PATIENCE_S)[1]
        assert connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNABORTED
        with pytest.raises(OSError, match="Invalid argument"):
            listener.accept()
    assert not loop.is_alive
    with pytest.raises(OSError, match="the engine has ended"):
        loop.call(lambda _: None)
    closed(client, server, listener, connecting)
    closed(*pair())  # by another engine
    assert running_engine() is not loop


def test_a_connection_whose_last_step_fails_leaves_no_port(
    reported: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where that step is taken for a command, as a close that resets is."""
    client, server = pair()
    loop = running_engine()
    assert isinstance(loop, Loop)
    failing(monkeypatch, Endpoint, "forget", MemoryError())
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    client.close()  # which cannot fail
    assert client.fileno() == -1
    closed(server)
    assert eventually(lambda: len(loop.endpoints), 0) == 0
    assert len(reported) == 1
    assert not loop.channels


def test_a_tcp_connection_that_cannot_be_accepted_is_reset(
    reported: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An end of file would say that there is nothing to read."""
    with OfBoth() as listener, socket.socket() as refused, socket.socket() as client:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        failing(monkeypatch, tcp_listener, "move_to_high_fd", MemoryError())
        for sock in (refused, client, listener):
            sock.settimeout(PATIENCE_S)
        with pytest.raises(ConnectionResetError):  # connect() says so itself where the reset is there first
            refused.connect(listener.getsockname())
            refused.recv(1)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        server.send(b"x")
        server.close()  # once it is let in its close is one like any other
        assert client.recv(2) == b"x"
        assert client.recv(2) == b""


@pytest.mark.parametrize("linger_seconds", [0, PATIENCE_S])
@pytest.mark.parametrize("verb", ["look", "when_flushed"])
def test_a_close_that_lingers_cannot_fail(
    linger_seconds: int, verb: str, reported: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, server = pair()
    failing(monkeypatch, Bridge, {"look": "poll_engine_sock", "when_flushed": "release_waiters"}[verb], MemoryError())
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, linger_seconds))
    started_at = time.monotonic()
    client.close()
    assert client.fileno() == -1
    assert time.monotonic() - started_at < PATIENCE_S / 2  # nor wait for who has gone
    closed(server)


def test_a_listener_whose_close_fails_leaves_no_port(
    reported: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the program's own thread that has no memory then, and its call raises."""
    listener = utpsocket.create_server(("127.0.0.1", 0))
    loop = running_engine()
    assert isinstance(loop, Loop)
    failing(monkeypatch, commands, "_drop_holder", MemoryError())
    with pytest.raises(MemoryError):
        listener.close()
    assert listener.fileno() == -1
    assert eventually(lambda: len(loop.endpoints), 0) == 0


def test_a_port_is_left_although_the_command_fails(
    reported: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No call waits for it, least of all one of a program whose engine is another process."""
    with utpsocket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        error = RuntimeError("a defect")
        failing(monkeypatch, commands, "_drop_holder", error)
        loop, key = running_engine(), cast("Any", sock)._utp.endpoint
        assert isinstance(loop, Loop)
        loop.post(commands.leave_port, key, cast("Any", sock)._utp.inode)
        loop.call(commands.barrier)
        assert reported == [error]
        assert eventually(lambda: key in loop.endpoints, False) is False


CHANGE_NOTHING = {commands.has_port, commands.has_nothing_unsent, commands.answer_outside}
UNDO_THEMSELVES = {commands.allow_overlap}
NO_COMMANDS = {commands.recheck_holders}  # called by the loop, at the end of an iteration


def test_each_command_that_fails_half_way_is_done_again_or_undone() -> None:
    """Or else an engine in another process, where no call waits for a command's outcome, keeps what it half did."""
    functions = {
        function
        for name, function in vars(commands).items()
        if inspect.isfunction(function) and function.__module__ == commands.__name__ and not name.startswith("_")
    }
    known = {*command_queue.UNDO, *command_queue.REPEATABLE} | CHANGE_NOTHING | UNDO_THEMSELVES | NO_COMMANDS
    assert functions <= known, sorted(function.__name__ for function in functions - known)


@pytest.mark.parametrize("number", [0, 1])
def test_ports_that_cannot_all_be_overlapped_are_not(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel would let any program of this machine bind a UDP socket over one of them."""
    said: list[tuple[int, bool]] = []
    error = KeyboardInterrupt()

    def allow(endpoint: Any, is_open: bool) -> None:
        if is_open and endpoint.key == number:
            raise error
        said.append((endpoint.key, is_open))

    ports = [SimpleNamespace(key=key, holders={}, closing_claim={}) for key in range(2)]
    fake = SimpleNamespace(at=lambda *_: ports, may_be_overlapped=lambda _: True, allow_overlap=allow)
    monkeypatch.setattr(commands, "overlapping_ports", fake)
    with pytest.raises(KeyboardInterrupt):
        commands.allow_overlap(SimpleNamespace(bound=None), ("", 1))  # type: ignore[arg-type]
    assert said[-2:] == [(0, False), (1, False)]


@replaces("Loop.carry_out()")
@pytest.mark.parametrize("error", [MemoryError(), SystemExit(3)])
def test_a_command_that_is_just_being_taken_is_answered(
    error: BaseException, reported: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    with utpsocket.create_server(("127.0.0.1", 0)) as listener, utpsocket.socket() as client:
        failing(monkeypatch, Loop, "carry_out", error)
        assert client.connect_ex(listener.getsockname()) in (errno.ENOMEM, errno.ECONNABORTED)
        assert client.connect_ex(listener.getsockname()) == 0


@pytest.mark.parametrize("code", [errno.EINTR, errno.ENOMEM])
def test_an_engine_that_sleeps_is_woken_in_the_end(
    code: int, reported: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where writing to its eventfd fails at first, and nothing else would wake it."""
    closed(*pair())
    loop = running_engine()
    assert isinstance(loop, Loop)
    left = [OSError(code, "injected")] * 3
    wake_up: Any = loop._wake_up
    wake = wake_up.wake

    def failing_wake() -> None:
        if left:
            raise left.pop()
        wake()

    wake_up.wake = partial(failing_wake)
    assert loop.call(lambda _: "awake") == "awake"
    assert not left


@replaces("Endpoint.apply_settings()")
def test_a_connection_that_is_half_made_leaves_nothing(
    reported: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a port that is closed while the engine still asks for it."""
    with utpsocket.create_server(("127.0.0.1", 0)) as listener, utpsocket.socket() as client:
        loop = running_engine()
        assert isinstance(loop, Loop)
        failing(monkeypatch, Endpoint, "apply_settings", MemoryError())
        assert client.connect_ex(listener.getsockname()) == errno.ENOMEM
        assert loop.is_alive
        assert (len(loop.endpoints), len(loop.channels)) == (1, 0)


def test_a_fork_lock_that_a_fault_kept_can_be_acquired() -> None:
    """Else each connection to come would wait for it in vain, for half a second at a time."""
    lock = ForkLock()
    assert lock._lock.acquire(False)  # and whoever did was not to say so any more
    assert lock.acquire()
    lock.release()
    assert lock.acquire(wait=False)
    assert lock.acquire(wait=False)  # ours by a fault that kept us from releasing it
    lock.release()
    assert not lock._lock.locked()


def test_what_tcp_did_not_take_ends_in_a_reset(reported: list[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a connection that fell back to TCP: a FIN would say that it was all."""
    with socket.create_server(("127.0.0.1", 0)) as listener, FallingBack() as client:
        client.settimeout(PATIENCE_S)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        server.settimeout(PATIENCE_S)
        loop = running_engine()
        assert isinstance(loop, Loop)
        relay = next(each for each in loop.channels.values() if isinstance(each, Relay))
        failing(monkeypatch, HighSocket, "send", OSError(errno.EIO, "injected"))
        client.sendall(b"x" * 1_000)
        with pytest.raises(ConnectionResetError):
            server.recv(1)
        with pytest.raises(OSError, match="Input/output"):
            client.recv(1)
        assert eventually(lambda: relay.is_over, True)
        server.close()


def _fail(loop: Loop) -> None:
    raise RuntimeError("a defect")


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_without_a_thread_there_is_an_errno_and_an_end(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No call, nor the program's exit, may wait for an engine that never came to be."""
    shutdown()
    monkeypatch.setenv("UTPSOCKET_ENGINE", kind)

    def no_thread(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    for module in (loop_module, engine_client):
        monkeypatch.setattr(module, "start_thread", no_thread)
    with utpsocket.socket() as sock:
        for _ in range(2):
            with pytest.raises(OSError, match="Cannot allocate"):
                sock.connect(("127.0.0.1", 9))
            assert sock.connect_ex(("127.0.0.1", 9)) == errno.ENOMEM
            with pytest.raises(OSError, match="Cannot allocate"):
                sock.bind(("127.0.0.1", 0))
        assert running_engine() is None
        assert flush() == 0
    shutdown()
    monkeypatch.undo()
    closed(*pair())


@pytest.mark.parametrize("text", ["4M", "4Mi", "4194304", "0"])
def test_a_udp_buffer_is_a_size(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UTPSOCKET_UDP_BUFFER", text)
    closed(*pair())


@pytest.mark.parametrize(("text", "window_bytes"), [("", 16 << 20), ("1Mi", 1 << 20), ("0", 96 << 10)])
def test_a_window_grows_no_further_than_the_environment_says(
    text: str, window_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a send buffer; a limit of less than what it begins with keeps it at that."""
    shutdown()
    monkeypatch.setenv("UTPSOCKET_MAX_WINDOW", text)
    client, server = pair()
    loop = running_engine()
    assert isinstance(loop, Loop)
    bridges = [each for each in loop.channels.values() if isinstance(each, Bridge)]
    assert len(bridges) == 2
    for bridge in bridges:
        assert bridge.endpoint.shares.grown_window_bytes(1_000_000) == window_bytes
        assert bridge.connection.send.buffer.max_bytes == window_bytes
    closed(client, server)
    shutdown()


@pytest.mark.parametrize("name", ["UTPSOCKET_UDP_BUFFER", "UTPSOCKET_MAX_MTU", "UTPSOCKET_MAX_WINDOW"])
@pytest.mark.parametrize("engine", ["thread", "process"])
def test_a_size_that_is_none_is_an_error_of_the_first_call(
    name: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutdown()
    monkeypatch.setenv("UTPSOCKET_ENGINE", engine)
    monkeypatch.setenv(name, "4 apples")
    with utpsocket.socket() as sock, pytest.raises(ValueError, match=f"{name} is '4 apples'"):
        sock.connect(("127.0.0.1", 9))
    monkeypatch.undo()
    closed(*pair())


@pytest.mark.parametrize("name", ["send", "close"])
def test_a_fault_beside_the_copy_of_a_users_fd_leaves_none(
    name: str, reported: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By which a reset is reported: what the fixture counts is the test."""
    client, server = pair()
    failing(monkeypatch, native.Copy, name, MemoryError())
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    server.close()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    eventually(lambda: len(reported), 1)
    reported.clear()  # its traceback holds what the fault was met with
    monkeypatch.undo()
    closed(client)


PARTS = ["engine/channels/", "engine/kernel/", "engine/ports/", "protocol/"]
CALLS = ["ctypes_recv", "ctypes_send", "ctypes_recvmsg"]
OWNERS = ["Bridge.deliver", "Endpoint.receive", "Listener.hand_over", "TcpListener._hand_over", "Retries.reset"]
OWNERS += ["Relay.pump", "_dial"]
if IS_COMPILED:  # no hook sees what compiled code calls but for what is interpreted
    PARTS = ["engine/interpreter/", "engine/kernel/", "engine/commands"]
    CALLS = ["Endpoint.dial", "Loop.open_endpoint", "Bridge.attach"]
    OWNERS = [
        *CALLS,
        "Identity.__init__",
        "move_to_high_fd",
        "Watches.watch",
        "Totals.add",
        "close_engine_sock",
        "_dial",
    ]


def test_a_fault_at_some_calls_of_the_engine_costs_one_connection() -> None:
    """A handful of tests.faults' points: one for each kind of owner."""
    found = faults.points(quick=False)
    for part in PARTS:
        assert any(point.startswith(f"engine:{part}") for point in found), f"no point is in {part}"
    for name in CALLS:
        assert any(f":{name}#" in point for point in found), f"{name} is no point"
    wanted = [next(point for point in found if f":{name}#" in point) for name in OWNERS]
    report = faults.inject(wanted, lambda *_: None)
    assert (report.points, report.failures) == (len(wanted), [])


def two_listeners_at_one_port() -> tuple[socket.socket, utpsocket.socket]:
    """Of TCP and of uTP. Other programs have ports, too."""
    while True:
        taken = socket.create_server(("127.0.0.1", 0))
        try:
            return taken, utpsocket.create_server(taken.getsockname())
        except OSError as problem:
            taken.close()
            assert problem.errno == errno.EADDRINUSE


def test_a_scene_of_tcp_alone_meets_no_other_listener() -> None:
    """Else a client that may fall back connects to another listener at that UDP port, and the scene waits for ever."""
    opened: list[Any] = []
    taken, stranger = two_listeners_at_one_port()
    with stranger:
        made = [taken]
        listener = scenes.only_for_tcp(lambda: made.pop() if made else socket.create_server(("127.0.0.1", 0)), opened)
        assert not made
        assert listener.getsockname() != stranger.getsockname()
        for address in (listener.getsockname(), scenes.nobody(opened)):
            with utpsocket.socket() as client, pytest.raises(ConnectionRefusedError):
                client.connect(address)
            with utpsocket.socket() as sock, pytest.raises(OSError, match="in use"):
                sock.bind(address)
    closed(*opened)


@pytest.fixture
def helper() -> Iterator[RemoteLoop]:
    """An engine's process with a notice that has arrived, and no thread here."""
    loop = RemoteLoop()
    loop._pending.append(marshal.dumps((1, messages.RELEASED, None)))
    yield loop
    loop.discard()


@pytest.mark.parametrize("with_opcodes", [False, True])
def test_an_exception_while_notices_are_taken_leaves_their_lock_free(helper: RemoteLoop, with_opcodes: bool) -> None:
    """Or every other thread that asks a socket of it anything waits for ever."""
    number, is_over = 0, False
    found: list[bool] = []

    def take_the_lock() -> None:
        is_free = helper._taking.acquire(False)
        if is_free:
            helper._taking.release()
        found.append(is_free)

    while not is_over:
        number += 1
        injection = callers.Injection(number, with_opcodes=with_opcodes)
        with suppress(KeyboardInterrupt), injection.active():
            helper.take_notices()
        is_over = not injection.at
        other = threading.Thread(target=take_the_lock)
        other.start()
        other.join()
        assert found.pop(), f"{number}: {injection.at}"
    assert number > 10
    assert not helper._pending


@pytest.mark.parametrize("make", [shared_errnos.new_file, engine_client._socket_pair])
def test_an_exception_while_a_helpers_fds_are_made_leaves_none(make: Callable[[], Any]) -> None:
    number, is_over = 0, False
    before = set(os.listdir("/proc/self/fd"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        while not is_over:
            number += 1
            injection = callers.Injection(number)
            with suppress(KeyboardInterrupt), injection.active():
                made = make()
                for each in made if isinstance(made, tuple) else (made,):
                    each.close()
            is_over, at = not injection.at, injection.at
            injection.error.__traceback__ = None  # with what the frames held
            assert set(os.listdir("/proc/self/fd")) == before, at
    assert number > 3


def test_an_engines_process_that_is_not_wanted_any_more_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Its stderr is the program's, which was interrupted while it began."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, messages.TYPE)
    silent, ended = socket.socketpair()
    ours.shutdown(socket.SHUT_RD)  # as if closed, but for its POLLHUP when the process has ended
    ended.close()
    with ours, theirs, silent:
        with pytest.raises(OSError, match="did not start"):
            engine_client._spawn(silent, theirs)
        poll = select.poll()
        poll.register(ours, 0)
        assert poll.poll(PATIENCE_S * 1_000)
    assert capfd.readouterr() == ("", "")


def test_the_end_of_the_engines_process_waits_for_no_thread_that_takes_notices(
    helper: RemoteLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may itself wait for an answer, which only the end gives."""
    monkeypatch.setattr(forked_copies, "take_notices", helper.take_notices)
    monkeypatch.setattr(engine_client, "_END_SECONDS", 0.01)
    identity = engine_client.RemoteIdentity(socket.AF_INET)
    helper._served[1] = identity
    with helper._taking:
        ending = threading.Thread(target=helper._on_end, daemon=True)
        ending.start()
        ending.join(10)
        assert not ending.is_alive()
    assert (identity.is_over, identity.error) == (True, errno.ECONNRESET)


def test_system_calls_that_fail_for_a_second() -> None:
    """A handful of tests.faults' points: no route, no memory, none for the pair."""
    wanted = [
        "udp.send:second:ENETUNREACH",
        "udp.send:second:EPERM",
        "pair.send:second:ENOBUFS",
        "epoll_ctl:once:ENOMEM",
    ]
    report = kernel.inject([f"kernel:{each}" for each in wanted], lambda *_: None)
    assert (report.points, report.failures) == (len(wanted), [])


def test_a_signal_handlers_timeout_is_no_sign_that_the_engines_fds_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an OSError too, raised in the thread that asks: the engine goes on, and so do its connections."""
    client, server = pair()
    engine = running_engine()
    assert isinstance(engine, Loop)

    here, fstat = threading.get_ident(), vars(loop_module)["os"].fstat

    def interrupted(fd: int) -> object:
        if threading.get_ident() != here:
            return fstat(fd)
        raise TimeoutError("of a signal's handler")

    with client, server:
        with monkeypatch.context() as patched, pytest.raises(TimeoutError, match="handler"):
            patched.setattr(type(engine._watches), "has", lambda *_: False)  # what is looked at first raises none
            patched.setattr(vars(loop_module)["os"], "fstat", interrupted)
            engine.check_fds()
        client.sendall(b"still there")
        assert server.recv(100) == b"still there"
        assert running_engine() is engine


class Taken(cases.Bind):
    """Whose port is taken, the first time, by the program that is given."""

    made: int
    take: Callable[[Any], object]
    leave: Callable[[], object]

    def prepare(self) -> None:
        super().prepare()
        Taken.made += 1
        if Taken.made == 1:
            Taken.take(self.address)

    def close(self) -> None:
        Taken.leave()
        super().close()


def test_a_case_whose_port_another_program_took_is_made_again() -> None:
    """Bind releases a port that the kernel has chosen and binds it again."""
    program = "import socket; sock = socket.socket(type=socket.SOCK_DGRAM); sock.bind({}); print(); input()"
    takers = []

    def take(address: Any) -> None:
        command = [sys.executable, "-c", program.format(address)]
        takers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert cast(Any, takers[0].stdout).readline() == "\n"

    def leave() -> None:
        while takers:
            takers.pop().communicate("\n", timeout=PATIENCE_S)

    Taken.made, Taken.take, Taken.leave = 0, staticmethod(take), staticmethod(leave)
    assert callers.run_once(Taken, utpsocket, 0)[1] == ""
    assert Taken.made == 2


def test_a_case_whose_port_this_program_has_fails() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as other:
        Taken.made, Taken.take, Taken.leave = 0, staticmethod(other.bind), staticmethod(other.close)
        assert "Address already in use" in callers.run_once(Taken, utpsocket, 0)[1]
    assert Taken.made == 1

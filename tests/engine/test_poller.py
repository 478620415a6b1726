"""The engine on poll() instead of epoll: the same conversations."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from typing import Any, cast

import pytest

from utpsocket.engine.interpreter.garbage_collector import CollectorPause
from utpsocket.engine.kernel import poller
from utpsocket.engine.kernel.epoll_sleep import EpollSleep
from utpsocket.engine.kernel.poller import LevelPoller, WakeUp, Watches

TALK = """
import hashlib, threading, utpsocket
listener = utpsocket.create_server(("127.0.0.1", 0))
payload = bytes(range(256)) * 40_000
def echo():
    conn, _ = listener.accept()
    with conn:
        while data := conn.recv(1 << 16):
            conn.sendall(data)
thread = threading.Thread(target=echo)
thread.start()
client = utpsocket.create_connection(listener.getsockname())
def send():
    client.sendall(payload)
    client.shutdown(utpsocket.SHUT_WR)
sender = threading.Thread(target=send)
sender.start()
received = bytearray()
while data := client.recv(1 << 16):
    received += data
assert received == payload
sender.join()
thread.join()
client.close()
listener.close()
from utpsocket.engine import running_engine, shutdown
print(type(running_engine()._epoll).__name__)
shutdown()
"""


@pytest.mark.parametrize(("poller", "name"), [("poll", "LevelPoller"), ("", "epoll")])
def test_a_conversation(poller: str, name: str) -> None:
    environment = {**os.environ, "UTPSOCKET_POLLER": poller}
    done = subprocess.run([sys.executable, "-c", TALK], env=environment, capture_output=True, text=True, timeout=150)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{name}\n", "")


# A connection that TCP carries, to a listener of both: 8 MB either way are many turns' share.
RELAYED = """
import threading, utpsocket.monkey
plain = utpsocket.monkey.get_original("socket", "socket")
utpsocket.monkey.patch_all(fallback="tcp", listen="both")
import socket
payload = bytes(range(256)) * 32_000
def echo(listener):
    conn, _ = listener.accept()
    with conn:
        received = bytearray()
        while len(received) < len(payload):
            received += conn.recv(1 << 16)
        conn.sendall(received)
def talk(client, listener):
    thread = threading.Thread(target=echo, args=(listener,))
    thread.start()
    client.settimeout(60)
    client.connect(listener.getsockname())
    client.sendall(payload)
    received = bytearray()
    while len(received) < len(payload):
        received += client.recv(1 << 16)
    assert received == payload
    assert client.recv(1) == b""
    client.close()
    thread.join()
    listener.close()
talk(plain(), socket.create_server(("127.0.0.1", 0)))
listener = plain()
listener.bind(("127.0.0.1", 0))
listener.listen()
talk(socket.socket(), listener)
print("carried")
"""


@pytest.mark.parametrize("poller", ["poll", "epoll"])
def test_connections_that_tcp_carries(poller: str) -> None:
    environment = {**os.environ, "UTPSOCKET_POLLER": poller}
    done = subprocess.run([sys.executable, "-c", RELAYED], env=environment, capture_output=True, text=True, timeout=150)
    assert (done.returncode, done.stdout, done.stderr) == (0, "carried\n", "")


# Of each kind so many times, while the engine sleeps on the port that is closed: who comes next finds its address free.
REBOUND = """
import socket, sys, time, utpsocket
from tests.sockets.network import quiet_port
from utpsocket.engine import running_engine, shutdown
TIMES = 40
def closed(is_blocking, listens):
    sock = utpsocket.socket()
    sock.bind(("127.0.0.1", quiet_port()))  # which no other program is given meanwhile
    if listens:
        sock.listen()
    sock.setblocking(is_blocking)
    address = sock.getsockname()
    until = time.monotonic() + 10
    while not running_engine()._is_asleep and time.monotonic() < until:
        time.sleep(0.001)
    sock.close()
    return address
refused = {}
for name, is_blocking, make, over in (
    ("the address", True, utpsocket.socket, False),
    ("the address of one that does not block", False, utpsocket.socket, False),
    ("all addresses", True, utpsocket.socket, True),
    ("all addresses after one that does not block", False, utpsocket.socket, True),
    ("a UDP socket's", True, lambda: socket.socket(type=socket.SOCK_DGRAM), False),
):
    for number in range(TIMES):
        host, port = closed(is_blocking, number % 2)
        with make() as sock:
            try:
                sock.bind(("" if over else host, port))
            except OSError as error:
                refused[name] = refused.get(name, 0) + 1
print(refused)
shutdown()
"""


@pytest.mark.parametrize("poller", ["poll", "epoll"])
def test_an_address_is_free_after_its_close(poller: str) -> None:
    """Though poll(), unlike epoll, keeps the files on which it sleeps open."""
    environment = {**os.environ, "UTPSOCKET_POLLER": poller}
    done = subprocess.run([sys.executable, "-c", REBOUND], env=environment, capture_output=True, text=True, timeout=150)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{}\n", "")


class Clock:
    """Time that passes by a tenth of a millisecond with each look: a sleep of one returns at the tenth."""

    def __init__(self) -> None:
        self._now = 100.0

    def monotonic(self) -> float:
        self._now += 0.000_1
        return self._now


@pytest.fixture
def own_time(leaves_nothing_behind: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For pollers, while no engine has one: a busy machine may let a millisecond pass between any two lines."""
    monkeypatch.setattr(poller, "time", Clock())


class Knowing:
    """A watcher that claims to remember every event."""

    known_events = select.EPOLLIN


def test_a_rearmed_level_is_reported_once_whatever_is_known() -> None:
    left, right = socket.socketpair()
    poller = LevelPoller()
    poller.watchers = {left.fileno(): cast("Any", Knowing())}
    right.send(b"x")
    poller.register(left.fileno(), select.EPOLLIN)
    for _ in range(2):
        assert poller.poll(1, 10) == [(left.fileno(), select.EPOLLIN)]
        assert poller.poll(0.01, 10) == []
        poller.modify(left.fileno(), select.EPOLLIN)
    poller.unregister(left.fileno())
    left.close()
    right.close()


def test_a_reported_level_is_reported_again_after_a_pause(own_time: None) -> None:
    left, right = socket.socketpair()
    poller = LevelPoller()
    poller.register(left.fileno(), 1)
    assert poller.poll(0, 10) == []
    right.send(b"x")
    assert poller.poll(1, 10) == [(left.fileno(), 1)]
    assert poller.poll(0, 10) == []
    assert poller.poll(1, 10) == [(left.fileno(), 1)]
    poller.unregister(left.fileno())
    assert poller.poll(0, 10) == []
    left.close()
    right.close()


def test_a_wake_up_is_seen_once() -> None:
    wake_up = WakeUp()
    poller = LevelPoller()
    poller.register(wake_up.fd, 1)
    wake_up.wake()
    wake_up.wake()
    assert poller.poll(1, 10) == [(wake_up.fd, 1)]
    wake_up.reset()
    assert poller.poll(0.01, 10) == []
    wake_up.close()


def test_what_failed_half_way_is_done_again(own_time: None) -> None:
    """poll()'s register() has failed when the sleeper was to be woken; then its owner closes it."""
    left, right = socket.socketpair()
    right.send(b"x")
    poller = LevelPoller()
    poller.register(left.fileno(), 1)
    assert poller.poll(1, 10) == [(left.fileno(), 1)]
    real = poller._poll
    failing: Any = Failing(real)
    poller._poll = failing
    with pytest.raises(MemoryError):
        poller.poll(1, 10)
    with pytest.raises(MemoryError):
        poller.modify(left.fileno(), 1)
    poller._poll = real
    poller.unregister(left.fileno())
    poller.register(left.fileno(), 1)
    assert poller.poll(1, 10) == [(left.fileno(), 1)]
    poller.unregister(left.fileno())
    assert poller.poll(0, 10) == []
    left.close()
    right.close()


def test_an_fd_that_was_closed_meanwhile_is_reported_without_an_exception() -> None:
    """Which would end the engine: it asks anew after a fault, and would meet it again each time."""
    poller = select.epoll()
    watches: Watches[Any] = Watches(poller)
    pairs = [socket.socketpair() for _ in range(3)]
    for each, _ in pairs:
        watches.watch(each.fileno(), select.EPOLLIN, cast("Any", each))
    gone = pairs[1][0]
    gone.close()
    assert watches.rearm_all() == [gone]
    assert watches.rearm_all() == []
    poller.close()
    for pair in pairs:
        for end in pair:
            end.close()


def test_a_watch_that_was_interrupted_is_forgotten() -> None:
    """By a signal's handler, after its first line."""
    watches: Watches[Any] = Watches(select.epoll())
    watches.by_fd[7] = cast("Any", "whoever")
    watches.forget_fd(7)
    assert not watches.by_fd
    watches._epoll.close()


def test_what_is_watched_while_the_engine_asks_anew_is_watched() -> None:
    """Another thread's bind() or connect() has noted its port, and not registered it, when a fault has the engine's
    thread register all that is noted.
    """

    class Epoll:
        def register(self, fd: int, events: int) -> None:
            if not asked:
                asked.append(True)
                watches.rearm_all()
            poller.register(fd, events)

        modify = staticmethod(lambda fd, events: poller.modify(fd, events))

    asked: list[bool] = []
    poller = select.epoll()
    asking: Any = Epoll()
    watches: Watches[Any] = Watches(asking)
    one, other = socket.socketpair()
    with poller, one, other:
        watches.watch(one.fileno(), select.EPOLLIN, cast("Any", "whoever"))
        assert asked
        other.send(b"x")
        assert poller.poll(10) == [(one.fileno(), select.EPOLLIN)]


RESET_BEHIND_DATA = """
import errno, socket, struct, utpsocket
listener = utpsocket.create_server(("127.0.0.1", 0))
for _ in range(200):
    client = utpsocket.create_connection(listener.getsockname())
    client.sendall(b"x")
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    with listener.accept()[0] as server:
        try:
            print(server.getpeername())
        except OSError as error:
            assert error.errno == errno.ENOTCONN
"""


def test_getpeername_notices_a_reset_behind_data() -> None:
    """Of one in ten, both were unread, and of the port's two datagrams one was taken."""
    environment = {**os.environ, "UTPSOCKET_POLLER": "poll"}
    command = [sys.executable, "-c", RESET_BEHIND_DATA]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class Failing:
    """A poll object that has no memory left to register anything."""

    def __init__(self, poller: Any) -> None:
        self.unregister, self.poll = poller.unregister, poller.poll

    def register(self, *_: object) -> None:
        raise MemoryError


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="Linux")
def test_an_interrupted_wait_loses_no_edge() -> None:
    """EINTR as epoll_wait(2) has it: what is found when it is asked why is as good as what it finds itself."""
    reader, writer = os.pipe()
    with select.epoll() as epoll:
        epoll.register(reader, select.EPOLLIN | select.EPOLLET)
        pause = CollectorPause()
        sleep = EpollSleep(epoll, pause)
        os.write(writer, b"x")
        sleep.call = lambda *_: -1
        try:
            assert sleep.wait(0) == [(select.EPOLLIN, reader)]
        finally:
            pause.end()
    os.close(reader)
    os.close(writer)

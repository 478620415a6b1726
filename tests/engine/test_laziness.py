"""What a user wrote is read in the end, however busy the engine is with others."""

from __future__ import annotations

import os
import select
import selectors
import time
from typing import Any

import pytest

import utpsocket
from tests.requirements import requires_pure
from utpsocket.engine import engine
from utpsocket.engine.kernel.poller import EPOLLIN
from utpsocket.engine.loop import Loop
from utpsocket.engine.turns import IDLE_ONLY_US, Turns

pytestmark = pytest.mark.usefixtures("leaves_nothing_behind")

BUSY, PAUSING = 30, 5
BURST_BYTES = 2 << 20
BURSTS = 3  # of each that pauses
PAUSE_BYTES = 10 << 20  # of the others' traffic
CHUNK = bytes(1 << 16)


class FakeBridge:
    """A bridge with more to send than it needs for now; or, `is_enough` taken back, with less."""

    def __init__(self) -> None:
        self.is_idle_only = True
        self.is_enough = True
        self.is_readable = self.wants_read = False
        self.reads: list[int] = []

    def read_user(self, *, now: int, is_due: bool) -> None:
        self.is_idle_only = self.is_enough and not is_due
        self.reads.append(now)


def loop_with(*bridges: Any) -> Loop:
    loop = object.__new__(Loop)
    loop.turns = Turns(loop)
    loop.turns.idle_only = dict.fromkeys(bridges, IDLE_ONLY_US)
    loop._readable_bridges, loop._dirty = {}, {}
    return loop


class Restless:
    """Of an fd that always has an event."""

    def on_event(self, mask: int) -> None:
        """Nothing is to be done."""

    def fail(self, error: BaseException) -> None:
        """It cannot be watched any more."""


def test_what_was_left_for_a_quiet_moment_is_read_where_none_comes() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"!")
    with utpsocket.create_server(("127.0.0.1", 0)) as listener:
        client = utpsocket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    loop = engine()
    with client, server:
        client.setblocking(False)
        written = 0
        while select.select([], [client], [], 0.3)[1]:
            written += client.send(CHUNK)
        loop.call(lambda loop: loop.watch(reading, EPOLLIN, Restless()))
        try:
            server.settimeout(20)
            while written:
                written -= len(server.recv(1 << 16))
        finally:
            loop.call(lambda loop: loop.forget_fd(reading))
    os.close(reading)
    os.close(writing)


@requires_pure
def test_an_engine_without_a_moment_to_itself_reads_one_after_the_other() -> None:
    first, second = FakeBridge(), FakeBridge()
    loop = loop_with(first, second)
    for now in range(0, 3 * IDLE_ONLY_US, IDLE_ONLY_US // 2):
        loop.turns.read_idle_only(now=now, is_idle=False)
    assert (first.reads, second.reads) == ([IDLE_ONLY_US], [IDLE_ONLY_US + IDLE_ONLY_US // 2])
    assert set(loop._dirty) == {first, second}


@requires_pure
def test_an_idle_engine_reads_one_after_the_other_at_once() -> None:
    first, second = FakeBridge(), FakeBridge()
    loop = loop_with(first, second)
    for now in (7, 8):
        loop.turns.read_idle_only(now=now, is_idle=True)
    assert (first.reads, second.reads) == ([7], [8])


class Traffic:
    """Connections whose accepting ends write, 30 of them without a pause, 5 with pauses, in one process and one thread;
    time is what the 30 have moved meanwhile.
    """

    def __init__(self) -> None:
        self.moved_bytes = 0
        self.waits: list[int] = []
        self._began: dict[int, int] = {}
        self._resumes: dict[int, int] = {}
        self._left: dict[int, int] = {}
        self._missing: dict[int, int] = {}
        self._bursts = dict.fromkeys(range(BUSY, BUSY + PAUSING), 0)
        self._sockets: list[Any] = []
        self._writers: list[Any] = []
        self._selector = selectors.DefaultSelector()
        with utpsocket.create_server(("127.0.0.1", 0), backlog=BUSY + PAUSING) as listener:
            for number in range(BUSY + PAUSING):
                reader = utpsocket.create_connection(listener.getsockname())
                writer, _ = listener.accept()
                for sock in (reader, writer):
                    sock.setblocking(False)
                    self._sockets.append(sock)
                self._writers.append(writer)
                self._selector.register(reader, selectors.EVENT_READ, number)
                if number < BUSY:
                    self._selector.register(writer, selectors.EVENT_WRITE, number)
                else:
                    self._begin(number)

    def close(self) -> None:
        self._selector.close()
        for sock in self._sockets:
            sock.close()

    @property
    def is_over(self) -> bool:
        return all(bursts == BURSTS for bursts in self._bursts.values())

    @property
    def open_waits(self) -> list[int]:
        return [self.moved_bytes - at for at in self._began.values()]

    def step(self) -> None:
        for key, mask in self._selector.select(10):
            try:
                if mask & selectors.EVENT_WRITE:
                    self._write(key.data, key.fileobj)
                else:
                    self._read(key.data, len(key.fileobj.recv(1 << 18)))  # type: ignore[union-attr]
            except BlockingIOError:
                pass
        for number, at in list(self._resumes.items()):
            if self.moved_bytes >= at:
                del self._resumes[number]
                self._begin(number)

    def _begin(self, number: int) -> None:
        self._left[number] = self._missing[number] = BURST_BYTES
        self._began[number] = self.moved_bytes
        self._selector.register(self._writers[number], selectors.EVENT_WRITE, number)

    def _write(self, number: int, sock: Any) -> None:
        if number < BUSY:
            sock.send(CHUNK)
            return
        self._left[number] -= sock.send(CHUNK[: self._left[number]])
        if not self._left[number]:
            self._selector.unregister(sock)

    def _read(self, number: int, count: int) -> None:
        if number < BUSY:
            self.moved_bytes += count
            return
        self._missing[number] -= count
        if not self._missing[number]:
            self.waits.append(self.moved_bytes - self._began.pop(number))
            self._bursts[number] += 1
            if self._bursts[number] < BURSTS:
                self._resumes[number] = self.moved_bytes + PAUSE_BYTES


def test_a_sender_that_pauses_has_its_share_beside_those_that_never_do() -> None:
    """Where it has the share of any, a burst takes as long as the other 30 take for one each."""
    traffic = Traffic()
    try:
        ends_at = time.monotonic() + 270  # less than any test may take
        while not traffic.is_over and time.monotonic() < ends_at:
            traffic.step()
            assert max(traffic.open_waits, default=0) < 10 * BUSY * BURST_BYTES
        assert traffic.is_over
        assert max(traffic.waits) <= 10 * sum(traffic.waits) / len(traffic.waits)
    finally:
        traffic.close()

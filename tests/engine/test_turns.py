"""Small beside large: how much others move before a message's turn comes. Bytes and order, never time."""

from __future__ import annotations

import contextlib
import select
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import utpsocket
from tests.engine.test_work_per_batch import engine_held
from tests.requirements import requires_pure
from utpsocket.engine import engine, turns
from utpsocket.engine.channels.utp import Bridge
from utpsocket.engine.kernel.arena import Arena
from utpsocket.engine.kernel.udp import Port
from utpsocket.engine.loop import Loop
from utpsocket.engine.ports.endpoint import Endpoint
from utpsocket.engine.turns import BULK_BYTES, BULK_US, QUIET_TURN_BYTES, TURN_BYTES, Turns
from utpsocket.protocol import Run, Transmit
from utpsocket.protocol.states import CONNECTED

pytestmark = [pytest.mark.usefixtures("leaves_nothing_behind"), requires_pure]

LARGE = 8  # connections with bulk
# What is read from a program, or sent, at a time; and what is received from a port. The one that uses up a turn may
# exceed it by so much.
BURST_BYTES = 256 << 10
RECEIVED_BYTES = 512 << 10
CHUNK = bytes(1 << 16)
FOR_EVER = 1 << 60


class Crowd:
    """Connections of this process to itself: LARGE ones with bulk, and one for messages; and what is moved meanwhile.

    asker, answerer   the ends of the one for messages
    moved             what has been done since watch(), in order: what it was, and how many bytes
    """

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.loop: Loop = engine()  # type: ignore[assignment]
        with utpsocket.create_server(("127.0.0.1", 0), backlog=2 * LARGE) as listener:
            ends = [
                (utpsocket.create_connection(listener.getsockname()), listener.accept()[0]) for _ in range(LARGE + 1)
            ]
        for end in [end for both in ends for end in both]:
            stack.enter_context(end)
            end.setblocking(False)
        (self.asker, self.answerer), *self.large = ends
        self.moved: list[tuple[str, int]] = []

    def bridge_of(self, end: Any) -> Bridge:
        bridge = self.loop.channels[end._utp.cookie]
        assert isinstance(bridge, Bridge)
        return bridge

    def mark(self) -> None:
        """LARGE and their ports are bulk from now on, however long this machine takes."""
        ends = [end for both in self.large for end in both]
        self.loop.turns.bulk_until = self.loop.turns.small_until = FOR_EVER
        for bridge in map(self.bridge_of, ends):
            bridge.bulk_until = bridge.endpoint.bulk_until = FOR_EVER  # type: ignore[attr-defined]

    def watch(self, monkeypatch: pytest.MonkeyPatch, on_bulk: Any = lambda: None) -> None:
        """Record what is moved. on_bulk() is called once, when bulk is sent."""
        send, read_user, handle_run = Port.send, Bridge.read_user, Endpoint.handle_run
        moved, calls = self.moved, [on_bulk]

        def watched_send(port: Port, transmit: Transmit, source: Any) -> None:
            send(port, transmit, source)
            if transmit.count == 1:
                moved.append(("message sent" if len(transmit.data) == 21 else "packet sent", 0))
            else:
                moved.append(("sent", transmit.count * transmit.datagram_bytes))
                while calls:
                    calls.pop()()

        def watched_read(bridge: Bridge, *, now: int, is_due: bool) -> None:
            before = bridge.connection.send.buffer.end_offset
            read_user(bridge, now=now, is_due=is_due)
            count = bridge.connection.send.buffer.end_offset - before
            if count > 1:
                moved.append(("read", count))

        def watched_run(endpoint: Endpoint, run: Run, *, now: int) -> None:
            handle_run(endpoint, run, now=now)
            if len(run.data) > BULK_BYTES:
                moved.append(("received", len(run.data)))

        monkeypatch.setattr(Port, "send", watched_send)
        monkeypatch.setattr(Bridge, "read_user", watched_read)
        monkeypatch.setattr(Endpoint, "handle_run", watched_run)

    def moved_bytes(self, kind: str) -> int:
        return sum(count for each, count in self.moved if each == kind)


def fill(sock: Any) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(CHUNK)


def drain(sock: Any) -> None:
    with contextlib.suppress(BlockingIOError):
        while sock.recv(1 << 20):
            pass


def wait_readable(sock: Any) -> None:
    assert select.select([sock], [], [], 60)[0]


@pytest.fixture
def crowd(monkeypatch: pytest.MonkeyPatch) -> Iterator[Crowd]:
    monkeypatch.setattr(turns, "BULK_US", FOR_EVER)
    monkeypatch.setattr(turns, "SMALL_US", FOR_EVER)
    with contextlib.ExitStack() as stack:
        yield Crowd(stack)


def test_a_message_written_with_bulk_leaves_before_it(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_held():
        crowd.mark()
        for dialer, _ in crowd.large:
            fill(dialer)
        crowd.asker.send(b"?")
        crowd.watch(monkeypatch)
    wait_readable(crowd.answerer)
    before = crowd.moved[: crowd.moved.index(("message sent", 0))]
    assert not [each for each in before if each[1]]


def test_a_message_written_while_bulk_is_sent_waits_for_the_rest_of_one_turn(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight connections have as much to send as a turn allows. One of them has begun when the message is written."""

    def write() -> None:
        crowd.moved.clear()
        crowd.asker.send(b"?")

    with engine_held():
        crowd.mark()
        for dialer, _ in crowd.large:
            fill(dialer)
        crowd.watch(monkeypatch, write)
    wait_readable(crowd.answerer)
    del crowd.moved[crowd.moved.index(("message sent", 0)) :]
    assert crowd.moved_bytes("sent") <= TURN_BYTES + BURST_BYTES
    assert not crowd.moved_bytes("read")
    assert not crowd.moved_bytes("received")


def test_an_answer_that_comes_while_bulk_is_received_waits_for_one_iteration(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is at a port of its own, as those of eight other connections are, which all have bulk."""
    read_at: list[int] = []
    deliver = Bridge.deliver

    def watched_deliver(bridge: Bridge, *, now: int) -> None:
        deliver(bridge, now=now)
        if bridge is asker and not read_at:
            read_at.append(len(crowd.moved))

    with engine_held():
        crowd.mark()
        for _, accepted in crowd.large:
            fill(accepted)
        asker = crowd.bridge_of(crowd.asker)
        crowd.watch(monkeypatch, lambda: crowd.answerer.send(b"!"))
        monkeypatch.setattr(Bridge, "deliver", watched_deliver)
    while not read_at:
        select.select([crowd.asker], [], [], 0.01)
        for dialer, _ in crowd.large:
            drain(dialer)
    sent_at = crowd.moved.index(("message sent", 0))
    crowd.moved[:] = crowd.moved[sent_at : read_at[0]]
    assert crowd.moved_bytes("received") <= TURN_BYTES + RECEIVED_BYTES
    assert crowd.moved_bytes("read") <= TURN_BYTES + BURST_BYTES
    assert crowd.moved_bytes("sent") <= TURN_BYTES + BURST_BYTES


class Flow:
    """Stands for a bridge or a port that always has more."""

    is_gone = is_closed = is_address_freed = is_idle_only = False
    is_readable = wants_read = True

    def __init__(self, loop: Scheduled, name: str, size_bytes: int) -> None:
        self._loop, self.name, self.size_bytes = loop, name, size_bytes
        self.bulk_until = FOR_EVER if size_bytes >= BULK_BYTES else 0
        self.end_offset = 0
        self.close_errno = None
        reassembly = SimpleNamespace(ready_bytes=0, is_fin_reached=False)
        half = SimpleNamespace(reassembly=reassembly, ack_at=FOR_EVER)
        self.connection = SimpleNamespace(
            state=CONNECTED,
            events=(),
            send=SimpleNamespace(buffer=self),
            receive=half,
        )

    def move(self) -> None:
        self._loop.served.append(self.name)
        self._loop.turns.left_bytes -= self.size_bytes
        self.end_offset += self.size_bytes

    def receive(self, *, now: int) -> None:
        self.move()

    def note_backlog(self, *, now: int) -> None:
        self._loop.backlogs.append(self.name)

    def deliver(self, *, now: int) -> None:
        """To a program that waits for it."""

    def read_user(self, *, now: int, is_due: bool) -> None:
        self.move()


class Scheduled(Loop):
    """A loop that does nothing but serve flows."""

    def __init__(self, *sizes: int) -> None:
        self.served: list[str] = []
        self.backlogs: list[str] = []  # ports that were not emptied
        flows: Any = [
            Flow(self, f"{'large' if size >= BULK_BYTES else 'small'} {i}", size) for i, size in enumerate(sizes)
        ]
        self.flows = flows
        self.turns, self.owner = Turns(self), None
        self.turns.bulk_until = self.turns.small_until = FOR_EVER
        self._dirty, self._readable_endpoints, self._readable_bridges = {}, {}, {}
        self._deferred_delivery = []
        self._listeners, self.channels = {}, dict.fromkeys(range(len(flows)))  # type: ignore[assignment]
        self.connect_gate = self.arena = self  # type: ignore[assignment]
        self.epoll_fd, self._is_stepping = -1, False
        self.held = self.used = 0
        self.pid, self.caller_pid = 1, 1
        self.delivers = False  # what is small has come from the network

    def _flush_channel(self, flow: Any, now: int) -> None:
        flow.move()
        if flow.bulk_until and self.turns.small_until:  # it always has more than its turn allows
            self.turns.put_off(flow)
        elif self.delivers:
            self._deferred_delivery.append(flow)

    def receive(self) -> list[str]:
        self._readable_endpoints = dict.fromkeys(self.flows)
        self._read_ports(1)
        return self._bulk()

    def read(self) -> list[str]:
        self._readable_bridges = dict.fromkeys(self.flows)
        self._read_bridges(1)
        self._flush_small = lambda now: self._dirty.clear()  # type: ignore[method-assign]
        return self._bulk()

    def send(self) -> list[str]:
        self._dirty = dict.fromkeys(self.flows)
        self._flush_dirty(1)
        return self._take()

    def iterate(self) -> list[str]:
        """All steps, up to the next iteration."""
        self._dirty = dict.fromkeys(self.flows)
        self._readable_bridges = dict.fromkeys(self.flows)
        self._read_bridges(1)
        self._read_bulk(1, is_idle=False)
        self._flush_dirty(1)
        self._wait()
        return self._take()

    def _bulk(self) -> list[str]:
        self._read_bulk(1, is_idle=False)
        return self._take()

    def _take(self) -> list[str]:
        served, self.served = self.served, []
        return served


@pytest.mark.parametrize("step", ["receive", "read", "send"])
def test_small_ones_come_first_and_large_ones_take_turns(step: str) -> None:
    loop = Scheduled(TURN_BYTES, 1, TURN_BYTES // 2, TURN_BYTES, 1)
    iterations = [getattr(loop, step)() for _ in range(6)]
    assert [served[:2] for served in iterations] == 6 * [["small 1", "small 4"]]
    assert [served[2:] for served in iterations] == 3 * [["large 0"], ["large 2", "large 3"]]
    assert loop.backlogs == (3 * ["large 0", "large 2", "large 3"] if step == "receive" else [])


@pytest.mark.parametrize("is_own_process", [True, False])
def test_bulk_waits_every_other_time_for_a_program_that_has_got_a_message(
    is_own_process: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message comes in each iteration. The program needs the GIL of its own process alone."""
    loop = Scheduled(TURN_BYTES, 1)
    loop._fds_lost, loop._wake_event = False, (0, -1)
    loop._sleep = SimpleNamespace(wait=lambda at: [])  # type: ignore[assignment]
    loop.caller_pid = 1 if is_own_process else 2
    loop.delivers = True
    monkeypatch.setattr("utpsocket.engine.loop.sleep", lambda seconds: loop.served.append("sleep"))
    iterations = [loop.iterate() for _ in range(6)]
    bulk_moves = ["large 0" in served for served in iterations]
    assert bulk_moves == ([False, True] * 3 if is_own_process else [True] * 6)
    assert [served[-1] == "sleep" for served in iterations] == 6 * [is_own_process]


@pytest.mark.parametrize("step", ["receive", "read", "send"])
def test_turns_are_longer_where_nothing_small_is_served(step: str) -> None:
    loop = Scheduled(*5 * [QUIET_TURN_BYTES // 4])
    loop.turns.small_until = 0
    served = getattr(loop, step)()
    assert served == [f"large {number}" for number in range(5 if step == "send" else 4)]
    assert getattr(loop, step)()[0] == ("large 0" if step == "send" else "large 4")


@pytest.mark.parametrize("waiting", [0, 200])
def test_what_waits_for_many_grants_is_bulk_until_its_own_comes(waiting: int) -> None:
    """As long as grants take half a millisecond each. Else each of a thousand would count as small then."""
    loop = Scheduled(TURN_BYTES)
    loop.turns.small_until = 0
    (flow,) = loop.flows
    loop.turns.on_bulk(flow, now=0, waiting=waiting)
    granted_at = BULK_US + waiting * 500
    assert loop.turns.small_of([flow], now=granted_at) == ([] if waiting else [flow])
    assert bool(loop.turns.small_until) is not bool(waiting)


def test_the_engine_knows_how_many_wait_for_grants(monkeypatch: pytest.MonkeyPatch) -> None:
    many = 24  # more than go without grants
    on_bulk, told = Turns.on_bulk, []

    def watched(self: Any, bridge: Any, *, now: int, waiting: int = 0) -> None:
        told.append(waiting)
        on_bulk(self, bridge, now=now, waiting=waiting)

    monkeypatch.setattr(Turns, "on_bulk", watched)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(utpsocket.create_server(("127.0.0.1", 0), backlog=many))
        dialers, accepted = [], []
        for _ in range(many):
            dialers.append(stack.enter_context(utpsocket.create_connection(listener.getsockname())))
            accepted.append(stack.enter_context(listener.accept()[0]))
        with engine_held():
            for end in dialers:
                end.setblocking(False)
                fill(end)
        for end in accepted:
            end.setblocking(False)
        while max(told, default=0) <= many // 2:  # slow start comes first
            select.select(accepted, [], [], 60)
            for end in accepted:
                drain(end)
            for end in dialers:
                fill(end)
    assert max(told) < many


def test_payloads_of_bulk_are_not_sliced_though_acks_lie_before_them(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ends are this engine's, so what it receives for them lies in one arena."""
    slots = Arena.slots
    found: list[bool] = []

    def watched(arena: Arena, run: Run, start: int) -> list[memoryview] | None:
        views = slots(arena, run, start)
        if arena.chunk is arena._first:  # slices are kept of no other memory
            found.append(views is not None)
        return views

    monkeypatch.setattr(Arena, "slots", watched)

    def sliced_of_the_next(count: int) -> int:
        found.clear()
        while len(found) < count:
            for dialer, accepted in crowd.large:
                fill(dialer)
                drain(accepted)
        return found[:count].count(False)

    sliced_of_the_next(20)
    # A few are sliced where datagrams come singly, as on a busy machine: once in eight times none is enough.
    assert any(not sliced_of_the_next(20) for _ in range(8))

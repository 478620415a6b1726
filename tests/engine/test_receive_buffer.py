"""How much is held for a user who does not read."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from utpsocket.engine.channels.receive_buffer import FIRST_WINDOW_BYTES, ReceiveBuffer
from utpsocket.engine.interpreter import native
from utpsocket.engine.ports.receive_shares import MAX_WINDOW_BYTES, SHORT_PATH_WINDOW_BYTES, ReceiveShares
from utpsocket.protocol.receivehalf import ReceiveHalf

BUFFER_BYTES = 4 << 20  # of the UDP socket
MAX_BYTES = 3_774_873  # what it is good for over a short path
STOCK_BYTES = 212_992  # what Linux gives unasked
ROUND_US = 100_000
INITIAL_BYTES = 14_000  # a sender's first window


class Reader:
    """A user whose end takes bytes for it, on a path of a known length."""

    def __init__(self, end: Any, user: Any) -> None:
        self.end, self.user = end, user
        self.receive = ReceiveHalf(FIRST_WINDOW_BYTES)
        self.room = ReceiveBuffer()
        self.room.apply_option(end, 0)
        self.shares = ReceiveShares(BUFFER_BYTES)
        self.now = 1_000_000
        self.told_us = ROUND_US

    def take(self, count: int, *, after_us: int, is_read: bool = True) -> int:
        """So much comes; how much of it the pair took."""
        self.now += after_us
        self.receive.difference_us, self.receive.peer_difference_us = 1, self.told_us - 1
        taken = 0
        while taken < count:
            try:
                taken += self.end.send(bytes(min(count - taken, 8_192)), socket.MSG_DONTWAIT)
            except BlockingIOError:
                if not is_read:
                    break
            if is_read:
                self.user.recv(1 << 16)
        if self.room.is_growing:
            self.room.on_delivered(taken, self.end, self.receive, self.shares, now=self.now)
        return taken

    def take_more_and_more(self) -> None:
        """A sender in slow start, until it has sent 64 MB in a round trip."""
        sent_bytes = INITIAL_BYTES
        while sent_bytes < 64_000_000:
            self.take(sent_bytes, after_us=max(self.told_us, 1_000))
            sent_bytes *= 2

    @property
    def window_bytes(self) -> int:
        return self.receive.reassembly.capacity_bytes


@pytest.fixture
def reader() -> Iterator[Reader]:
    end, user = socket.socketpair()
    with end, user:
        yield Reader(end, user)


class Forgetful:
    """An end of a pair whose kernel has no memory for so many calls of setsockopt()."""

    def __init__(self, end: Any, code: int, times: int) -> None:
        self._end = end
        self._failures = [OSError(code, "injected")] * times

    def setsockopt(self, *arguments: Any) -> None:
        if self._failures:
            raise self._failures.pop()
        self._end.setsockopt(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._end, name)


@pytest.mark.parametrize("code", [errno.EINTR, errno.ENOBUFS, errno.ENOMEM])
def test_a_kernel_without_memory_for_a_larger_buffer_costs_no_connection(reader: Reader, code: int) -> None:
    """The window does not grow then, and does as soon as there is memory."""
    reader.end = Forgetful(reader.end, code, 2)
    reader.take(100_000, after_us=ROUND_US)
    reader.take(100_000, after_us=ROUND_US)
    assert (reader.window_bytes, reader.room.is_growing) == (FIRST_WINDOW_BYTES, True)
    reader.take(100_000, after_us=ROUND_US)
    assert reader.window_bytes > FIRST_WINDOW_BYTES


def test_an_end_that_is_no_socket_any_more_is_not_taken_for_that(reader: Reader) -> None:
    reader.end = Forgetful(reader.end, errno.EBADF, 1)
    with pytest.raises(OSError, match="injected"):
        reader.take(100_000, after_us=ROUND_US)


def test_unread_bytes_open_no_window(reader: Reader) -> None:
    held_bytes = 0
    for _ in range(100):
        held_bytes += reader.take(8_192, after_us=ROUND_US // 10, is_read=False)
    assert reader.window_bytes == FIRST_WINDOW_BYTES
    assert held_bytes + reader.window_bytes <= 200_000


@pytest.mark.parametrize("parts", [1, 3, 10])
def test_a_sender_that_doubles_its_pace_is_never_held_back(reader: Reader, parts: int) -> None:
    """Slow start on a long path: whatever has come in a round trip comes twice in the next."""
    sent_bytes = INITIAL_BYTES
    most_bytes = 4 * MAX_BYTES  # over 100 ms
    while sent_bytes < reader.window_bytes < most_bytes:
        for _ in range(parts):
            reader.take(sent_bytes // parts, after_us=ROUND_US // parts)
        sent_bytes *= 2
    assert reader.window_bytes == most_bytes
    assert not reader.room.is_growing


@pytest.mark.parametrize(
    ("buffer_bytes", "path_us", "most_bytes"),
    [
        (8 << 20, 1_000, SHORT_PATH_WINDOW_BYTES),
        (8 << 20, 25_000, SHORT_PATH_WINDOW_BYTES),
        (8 << 20, 50_000, 2 * SHORT_PATH_WINDOW_BYTES),
        (8 << 20, 600_000, MAX_WINDOW_BYTES),
        (BUFFER_BYTES, 1_000, MAX_BYTES),
        (STOCK_BYTES, 1_000, STOCK_BYTES * 9 // 10),
        (STOCK_BYTES, 100_000, 4 * (STOCK_BYTES * 9 // 10)),
    ],
)
def test_the_window_grows_to_what_the_path_and_the_port_can_use(
    reader: Reader, buffer_bytes: int, path_us: int, most_bytes: int
) -> None:
    """In 25 ms no more than the port's buffer holds may arrive, nor more than 4 MiB."""
    reader.shares = ReceiveShares(buffer_bytes)
    reader.told_us = path_us
    reader.take_more_and_more()
    assert reader.window_bytes == most_bytes


def test_a_queue_is_no_longer_path(reader: Reader) -> None:
    """Where this engine is what is slow, round trips become long, and a larger window would make them longer."""
    reader.told_us = 1_000
    reader.take(INITIAL_BYTES, after_us=ROUND_US)
    reader.told_us = 200_000
    reader.take_more_and_more()
    assert reader.window_bytes == MAX_BYTES


def test_a_limit_that_is_set_holds_over_any_path(reader: Reader) -> None:
    reader.shares = ReceiveShares(8 << 20, 1_000_000)
    reader.told_us = 600_000
    reader.take_more_and_more()
    assert reader.window_bytes == 1_000_000


def test_a_path_without_measured_round_trips_is_taken_for_short(reader: Reader) -> None:
    """A peer that measures no delays."""
    reader.shares = ReceiveShares(8 << 20)
    reader.told_us = 1
    reader.take_more_and_more()
    assert reader.window_bytes == SHORT_PATH_WINDOW_BYTES


def test_a_slow_sender_gets_a_small_window(reader: Reader) -> None:
    """However much it becomes in the long run."""
    for _ in range(1_000):
        reader.take(8_192, after_us=ROUND_US // 2)
    assert reader.window_bytes < 2 * FIRST_WINDOW_BYTES


def test_one_long_round_trip_changes_little(reader: Reader) -> None:
    """It looks like that where a thread of this machine's was kept waiting."""
    reader.told_us = 1_000
    for count in range(500):
        reader.told_us = 500_000 if count == 100 else 1_000
        reader.take(8_192, after_us=500)
    assert reader.window_bytes < 2 * FIRST_WINDOW_BYTES


def test_a_path_that_becomes_longer_is_adopted(reader: Reader) -> None:
    for told_us in (1_000, ROUND_US):
        reader.told_us = told_us
        for _ in range(100):
            reader.take(100_000, after_us=told_us // 2)
    assert reader.window_bytes >= 2 * 200_000


def test_a_pair_with_an_unknown_number_of_unread_bytes_is_taken_for_full(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "unread_by_peer_bytes", lambda fd: -1)
    for _ in range(3):
        reader.take(24_000, after_us=ROUND_US)
    assert reader.window_bytes == FIRST_WINDOW_BYTES
    for _ in range(10):
        reader.take(200_000, after_us=ROUND_US)
    assert reader.window_bytes > 2 * FIRST_WINDOW_BYTES


def test_what_a_program_asks_for_it_gets_and_keeps(reader: Reader) -> None:
    reader.room.apply_option(reader.end, 16_384)
    assert reader.end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 8_192
    assert not reader.room.is_growing

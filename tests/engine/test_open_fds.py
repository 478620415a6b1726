"""Which sockets are still open somewhere, at a cost that does not grow with their number."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

import utpsocket
from utpsocket.engine import engine
from utpsocket.engine.loop import Loop
from utpsocket.engine.user_fds import open_fds
from utpsocket.engine.user_fds.open_fds import HoldersWatch, Rechecks

from ..sockets.network import own_loopback

pytestmark = [
    pytest.mark.usefixtures("leaves_nothing_behind"),
    pytest.mark.skipif(not os.path.isdir("/proc/self/fdinfo"), reason="epoll's registrations are read from /proc"),
]

MANY = 200


class Watched:
    """Sockets, and what watches them."""

    def __init__(self) -> None:
        self.watch = HoldersWatch()
        self.sockets: list[socket.socket] = []

    def add(self, count: int) -> None:
        for _ in range(count):
            self.sockets.append(socket.socket(socket.AF_UNIX))
            self.watch.watch(self.sockets[-1].fileno())

    def inodes(self) -> list[int]:
        return [os.fstat(each.fileno()).st_ino for each in self.sockets]

    def close(self) -> list[int]:
        """All are closed; what their inodes were."""
        inodes = self.inodes()
        for each in self.sockets:
            each.close()
        self.sockets = []
        return inodes


@pytest.fixture
def watched() -> Iterator[Watched]:
    made = Watched()
    yield made
    made.close()
    made.watch.close()


def lines_of(fd: int) -> int:
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as registrations:
        return sum("tfd:" in line for line in registrations)


def test_a_look_reads_a_few_lines_however_many_there_are(watched: Watched) -> None:
    watched.add(MANY)
    assert all(map(watched.watch.is_open, watched.inodes()))
    counts = [lines_of(fd) for fd in watched.watch.fds]
    assert sum(counts) == MANY
    assert max(counts) <= open_fds._SOCKETS_PER_EPOLL
    assert not any(map(watched.watch.is_open, watched.close()))


def test_room_is_used_again(watched: Watched) -> None:
    watched.add(MANY)
    epolls = len(watched.watch.fds)
    for _ in range(3):
        assert not any(map(watched.watch.is_open, watched.close()))
        watched.add(MANY)
        assert all(map(watched.watch.is_open, watched.inodes()))
    assert len(watched.watch.fds) == epolls


def test_closed_sockets_that_are_not_asked_for_make_room(watched: Watched) -> None:
    """Sockets that are bound, and then connect: they have the port no more, and are not looked up."""
    for _ in range(10):
        watched.add(open_fds._SOCKETS_PER_EPOLL)
        watched.close()
    assert len(watched.watch.fds) == 1
    watched.add(1)
    assert all(map(watched.watch.is_open, watched.inodes()))


def test_a_copy_counts(watched: Watched) -> None:
    watched.add(1)
    (copy,) = [each.dup() for each in watched.sockets]
    (inode,) = watched.close()
    assert watched.watch.is_open(inode)
    copy.close()
    assert not watched.watch.is_open(inode)


def test_without_a_free_fd_it_goes_on_with_what_it_has(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left() -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(open_fds, "new_epoll", none_left)
    watched.add(MANY)
    assert all(map(watched.watch.is_open, watched.inodes()))
    assert not any(map(watched.watch.is_open, watched.close()))


class Elsewhere:
    """UTPSOCKET_ENGINE=process: the application registers, the engine looks."""

    def __init__(self, watched: Watched) -> None:
        watched.watch.close()
        watched.watch = HoldersWatch(announce=self._warned)
        self.watch = HoldersWatch(os.dup(watched.watch.fds[0]))
        self.messages = self.gone = 0

    def _warned(self, inode: int, index: int, gone: list[int], fds: list[int]) -> None:
        self.messages += 1
        self.gone += len(gone)
        copies = [os.dup(fd) for fd in fds]
        self.watch.on_announced(inode, index, gone, copies)
        assert not copies, "each is in a place where it will be closed"


@pytest.fixture
def elsewhere(watched: Watched) -> Iterator[Elsewhere]:
    made = Elsewhere(watched)
    yield made
    made.watch.close()


def test_another_process_knows_where_to_look(watched: Watched, elsewhere: Elsewhere) -> None:
    watched.add(MANY)
    assert elsewhere.messages == MANY
    assert max(lines_of(fd) for fd in elsewhere.watch.fds) <= open_fds._SOCKETS_PER_EPOLL
    listings = 0
    listing = HoldersWatch._listing

    def counted(self: HoldersWatch, group: Any) -> bytes:
        nonlocal listings
        listings += 1
        return listing(self, group)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HoldersWatch, "_listing", counted)
        assert all(map(elsewhere.watch.is_open, watched.inodes()))
        inodes = watched.close()
        assert not any(map(elsewhere.watch.is_open, inodes))
    assert listings == 2 * MANY


def test_room_is_used_again_that_another_process_asks_about(watched: Watched, elsewhere: Elsewhere) -> None:
    """No event reports that a registered socket is closed; it is looked up when room is needed: a few for each 32."""
    for _ in range(10):
        watched.add(MANY)
        inodes = watched.close()
        assert not any(map(elsewhere.watch.is_open, inodes))
    assert len(watched.watch.fds) <= 2 * MANY // open_fds._SOCKETS_PER_EPOLL
    assert len(elsewhere.watch.fds) <= len(watched.watch.fds)
    assert len(watched.watch._group_by_inode) <= len(watched.watch.fds) * open_fds._SOCKETS_PER_EPOLL


def test_another_process_is_sent_the_closed_sockets(watched: Watched, elsewhere: Elsewhere) -> None:
    """Sockets that are bound, and then connect: they are never looked up."""
    for _ in range(20):
        watched.add(open_fds._SOCKETS_PER_EPOLL)
        watched.close()
    assert len(watched.watch.fds) == 1
    assert len(elsewhere.watch._group_by_inode) <= 3 * open_fds._SOCKETS_PER_EPOLL


def test_an_announcement_that_failed_is_repeated_the_next_time(watched: Watched) -> None:
    reported = []

    def announce(inode: int, index: int, gone: list[int], fds: list[int]) -> None:
        reported.append((index, len(fds)))
        if len(reported) == open_fds._SOCKETS_PER_EPOLL + 1:
            raise OSError(12, "Cannot allocate memory")

    watched.watch.close()
    watched.watch = HoldersWatch(announce=announce)
    watched.add(open_fds._SOCKETS_PER_EPOLL)
    with pytest.raises(OSError, match="memory"):
        watched.add(1)
    watched.watch.watch(watched.sockets[-1].fileno())
    assert reported == [(0, 0)] * open_fds._SOCKETS_PER_EPOLL + [(1, 1)] * 2


def test_an_address_in_use_is_found_by_its_number() -> None:
    with utpsocket.socket() as first, utpsocket.socket() as second:
        host = own_loopback()
        first.bind((host, 0))
        loop = engine()
        assert isinstance(loop, Loop)
        assert [len(at_number) for at_number in loop.bound.values()] == [1]
        with pytest.raises(OSError, match="in use"):
            second.bind(first.getsockname())
        number = first.getsockname()[1]
    with utpsocket.socket() as again:
        again.bind((host, number))
        assert list(loop.bound) == [number]
    assert not loop.bound


def test_sockets_open_in_other_processes_are_rechecked_ever_more_rarely() -> None:
    second = 1_000_000
    rechecks, now, looks = Rechecks(), 0, 0
    rechecks.add(1, 2, now=now)
    while now < 3_600 * second:
        assert rechecks.at is not None
        now = max(now + 1, rechecks.at)  # nothing else wakes it
        if rechecks.due(now) == [(1, 2)]:
            looks += 1
            rechecks.add(1, 2, now=now)  # still open: that is no news
    assert looks < 70
    before = looks
    for _ in range(1_000):  # awake for something else, again and again
        now += second // 100
        looks += len(rechecks.due(now))
    assert looks - before in (9, 10)
    rechecks.make_due()
    assert rechecks.due(now) == [(1, 2)]
    rechecks.forget(1, 2)
    assert rechecks.at is None


def test_only_a_socket_that_cannot_be_made_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of a call on it is no lack of file descriptors, whatever its number: nobody has that socket any more."""

    class Failing(socket.socket):
        def send(self, *_: Any) -> int:
            raise OSError(errno.EMFILE, "injected")

    def none_left(*_: Any) -> None:
        raise OSError(errno.EMFILE, "injected")

    ours, theirs = socket.socketpair()
    inode = os.fstat(ours.fileno()).st_ino
    with ours, theirs:
        assert open_fds.socket_exists(inode)
        monkeypatch.setattr(open_fds, "Socket", none_left)
        assert open_fds.socket_exists(inode)
    assert open_fds.socket_exists(inode)
    monkeypatch.setattr(open_fds, "Socket", Failing)
    assert not open_fds.socket_exists(inode)

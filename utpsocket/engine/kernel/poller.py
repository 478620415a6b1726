"""epoll where the system has it, and the part of it that the engine uses, made of poll(), where it has not; and the
sleep in either, during which the collector is the program's (garbage_collector.py).

Separate because the loop speaks epoll: edges, remembered by who asked for them. poll() tells levels. As with epoll
they are told once whenever they are asked for anew; from then on poll() is not asked for what its watcher says that it
remembers (`known_events`). What is told to a watcher that says nothing of the kind sleeps for a millisecond before it
is looked at again: long enough that a full buffer does not keep the thread spinning, short enough for a fallback.

Only the engine's thread calls poll(); the rest as epoll's; polls() may be called by any. Sources: epoll(7), poll(2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fcntl import F_DUPFD_CLOEXEC, fcntl
from functools import partial
from io import FileIO
from typing import Any, Final

from utpsocket.engine import environment
from utpsocket.engine.interpreter import native
from utpsocket.engine.interpreter.garbage_collector import Hold
from utpsocket.engine.interpreter.originals import ctypes, os, platform, struct, time
from utpsocket.engine.interpreter.signal_errors import let_pass
from utpsocket.engine.kernel.high_fds import new_epoll, raised_duplicate
from utpsocket.protocol.times import NEVER

_SLEEP_SECONDS: Final = 0.001
_ONE: Final = struct.pack("=Q", 1)  # what an eventfd is written
# As poll()'s, and EPOLLET; numbers, since select has them only where the system has epoll.
EPOLLIN: Final = 0x001
EPOLLOUT: Final = 0x004
EPOLLERR: Final = 0x008
EPOLLHUP: Final = 0x010
EPOLLRDHUP: Final = 0x2000
EPOLLET: Final = 1 << 31
_UNASKED: Final = 0x018  # EPOLLERR, HUP: poll() says them in any case
_LEVEL_EVENTS: Final = 0x201F  # EPOLLIN, PRI, OUT, ERR, HUP, RDHUP: poll()'s numbers are the same
MOST_EVENTS: Final = 256  # that are told at once
_LONGEST_MS: Final = 0x7FFFFFFF
# struct epoll_event as (events, fd): packed on x86-64 only. epoll_ctl(2), linux/eventpoll.h
_EVENT: Final = struct.Struct("=Ii4x" if platform.machine() in ("x86_64", "AMD64") else "=I4xi4x")
_POLLFD: Final = struct.Struct("=ihh")
_occupants: list[Any] = []
_libc: Final = ctypes.CDLL(None)
_epoll_wait: Final[Any] = getattr(_libc, "epoll_wait", None)


class LevelPoller:
    """select.epoll's interface over select.poll.

    watchers   to whom what is told of an fd is told
    """

    def __init__(self) -> None:
        self._poll = native.poll()
        self.watchers: Mapping[int, Any] = {}
        self._events: dict[int, int] = {}
        self._asked: dict[int, int] = {}  # of which poll() is asked what, now
        self._is_due: dict[int, None] = {}  # whose levels are told once whatever is known of them, as epoll's are
        self._asleep: dict[int, float] = {}  # fd: when to look again
        self.hold: Hold | None = None  # of the thread that polls, if it is ours

    def register(self, fd: int, events: int) -> None:
        """As epoll.register()."""
        if fd in self._events:
            raise FileExistsError(fd)
        self.modify(fd, events)

    def modify(self, fd: int, events: int) -> None:
        """As epoll.modify(): wakes the fd."""
        self._events[fd] = events & _LEVEL_EVENTS
        self._asleep.pop(fd, None)
        self._asked.pop(fd, None)
        self._poll.register(fd, self._events[fd])
        self._asked[fd] = self._events[fd]
        self._is_due[fd] = None

    def unregister(self, fd: int) -> None:
        """As epoll.unregister(); and done again where it, or register(), has failed half way."""
        try:
            self._poll.unregister(fd)
        except KeyError:
            pass  # asleep
        self._asleep.pop(fd, None)
        self._asked.pop(fd, None)
        self._is_due.pop(fd, None)
        self._events.pop(fd, None)

    def _ask(self, now: float) -> None:
        """Have poll() told of what each watcher does not know."""
        for fd, at in list(self._asleep.items()):
            if at <= now:
                del self._asleep[fd]
        for fd, events in self._events.items():
            known = 0 if fd in self._is_due else getattr(self.watchers.get(fd), "known_events", 0)
            if fd in self._asleep or known & EPOLLHUP:  # which poll() says whether it is asked or not
                if self._asked.pop(fd, None) is not None:
                    self._poll.unregister(fd)
            elif self._asked.get(fd) != events & ~known:
                self._poll.register(fd, events & ~known)
                self._asked[fd] = events & ~known

    def poll(self, timeout: float, limit: int) -> list[tuple[int, int]]:
        """As epoll.poll(): `timeout` in seconds, negative for ever; at most `limit` events."""
        until = time.monotonic() + timeout if timeout >= 0 else float("inf")
        while True:
            now = time.monotonic()
            self._ask(now)
            wait = min(until - now, _SLEEP_SECONDS) if self._asleep else until - now
            if self.hold is not None:
                levels = list(self._asked.items())
                sleep_until_ready(self.hold, levels, -1.0 if wait == float("inf") else max(0.0, wait))
                wait = 0.0
            found: list[tuple[int, int]] = self._poll.poll(None if wait == float("inf") else max(0.0, wait) * 1_000)
            if found or time.monotonic() >= until:
                break
        for fd, mask in found[:limit]:
            self._is_due.pop(fd, None)
            if mask & _UNASKED or not hasattr(self.watchers.get(fd), "known_events"):
                self._asleep[fd] = time.monotonic() + _SLEEP_SECONDS
        return found[:limit]

    def wait(self, at: int) -> list[tuple[int, int]]:
        """See EpollSleep.wait()."""
        seconds = -1.0 if at == NEVER else max(0.0, at / 1_000_000 - time.monotonic())
        return [(mask, fd) for fd, mask in self.poll(seconds, MOST_EVENTS)]

    def close(self) -> None:
        """As epoll.close()."""
        self._events.clear()


class EpollSleep:
    """The sleep of our thread in an epoll."""

    __slots__ = ("_buffer", "_epoll", "_epoll_fd", "_events", "_sleep")

    def __init__(self, epoll: Any, hold: Hold) -> None:
        self._epoll = epoll
        self._epoll_fd = epoll.fileno()
        self._sleep = hold.sleep
        self._buffer = ctypes.create_string_buffer(_EVENT.size * MOST_EVENTS)
        self._events = ctypes.byref(self._buffer)

    def wait(self, at: int) -> list[tuple[int, int]]:
        """What there is by now, or until then, µs of the monotonic clock or NEVER, as (events, fd): up to MOST_EVENTS
        of them.
        """
        most_ms = 0
        if at == NEVER:
            most_ms = -1
        elif at:
            left_us = at - time.monotonic_ns() // 1_000
            if left_us > 0:
                most_ms = min(-(-left_us // 1_000), _LONGEST_MS)
        count = self._sleep(_epoll_wait, (self._epoll_fd, self._events, MOST_EVENTS, most_ms))
        if count == 1:
            return [_EVENT.unpack_from(self._buffer)]
        if count > 1:
            return list(_EVENT.iter_unpack(memoryview(self._buffer)[: count * _EVENT.size]))
        if count < 0:  # poll() raises why, but for EINTR; what it finds then is an edge, and told once
            return [(events, fd) for fd, events in self._epoll.poll(0, 1)]
        return []


def _ms(timeout: float) -> int:
    return -1 if timeout < 0 else min(_LONGEST_MS, math.ceil(timeout * 1_000))


def sleep_until_ready(hold: Hold, fds: list[tuple[int, int]], timeout: float) -> None:
    """Sleep until poll() would say something of one of these (fd, events), or `timeout` seconds; negative: for ever. It
    may be for nothing.
    """
    # As one char: every length of a ctypes array is a type, which is made, and left to the collector, each time.
    levels = ctypes.c_char.from_buffer(bytearray(b"".join(_POLLFD.pack(fd, events, 0) for fd, events in fds) + b"\0"))
    hold.sleep(_libc.poll, (ctypes.byref(levels), len(fds), _ms(timeout)))


def polls(sock: Any, events: int) -> bool:
    """Whether the kernel has one of these to say of this socket, or it was closed just now. Any thread."""
    fd = sock.fileno()
    if fd < 0:
        return True
    poller = native.poll()
    poller.register(fd, events)
    return bool(poller.poll(0))


class WakeUp:
    """What other threads pull to end the engine's sleep: an eventfd, or a pipe where there is none.

    pull   wakes the engine: any thread. A partial() of a function in C, for native.in_one_step(); it raises
           BlockingIOError where the pipe is full of wake-ups that nobody has read yet
    """

    __slots__ = ("_owners", "fd", "pull")

    def __init__(self) -> None:
        # Objects own the fds from their first moment: an exception between two lines leaks none.
        if hasattr(os, "eventfd"):
            fds: Any = iter(partial(os.eventfd, 0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), None)
            own = partial(FileIO, mode="r+")
            with next(map(own, fds)) as low:
                self._owners = [next(map(own, raised_duplicate(low.fileno())))]
            word = _ONE
        else:
            reader, writer = os.pipe()
            with FileIO(reader, "r") as low, FileIO(writer, "w") as low_writer:
                self._owners = [
                    FileIO(next(iter(raised_duplicate(low.fileno()))), "r"),
                    FileIO(next(iter(raised_duplicate(low_writer.fileno()))), "w"),
                ]
            for owner in self._owners:
                os.set_blocking(owner.fileno(), False)
            word = b"\0"
        self.fd = self._owners[0].fileno()
        self.pull = partial(native.write, self._owners[-1].fileno(), word)

    def reset(self) -> None:
        """The engine is awake."""
        try:
            native.read(self.fd, 4_096)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Nobody will wake it any more."""
        for owner in self._owners:
            owner.close()


def new_sleep(poller: Any, hold: Hold) -> Any:
    """What the thread of this hold polls such a poller with."""
    if isinstance(poller, LevelPoller):
        poller.hold = hold
        return poller
    return EpollSleep(poller, hold)


class Watches:
    """What epoll tells of which fd, and to whom.

    is_for_any_thread   watch() need not be called by the engine's thread: the kernel looks after a sleeping epoll
    """

    __slots__ = ("_epoll", "_events", "by_fd", "is_for_any_thread")

    def __init__(self, epoll: Any) -> None:
        self._epoll = epoll
        self.is_for_any_thread = not isinstance(epoll, LevelPoller)
        self._events: dict[int, int] = {}
        self.by_fd: dict[int, Any] = {}
        if isinstance(epoll, LevelPoller):
            epoll.watchers = self.by_fd

    def watch(self, fd: int, events: int, watcher: Any) -> None:
        """Have epoll's events of an fd told to `watcher.on_event(mask)`."""
        self.by_fd[fd] = watcher
        self._events[fd] = events
        try:
            self._epoll.register(fd, events)
        except FileExistsError:  # the engine's thread, in ask_anew(), was faster than this one
            self._epoll.modify(fd, events)

    def rewatch(self, fd: int, events: int) -> None:
        """Have epoll look at a watched fd anew: what it has said already it says again."""
        self._events[fd] = events
        self._epoll.modify(fd, events)

    def has(self, fd: int, events: int) -> bool:
        """Whether epoll says that it watches this fd for these events, both being what they were. False: it cannot
        tell. Any thread; not for edges, which it would tell again.
        """
        if not self.is_for_any_thread:
            return False
        try:
            self._epoll.modify(fd, events)
        except ValueError:
            return False
        except OSError as error:
            let_pass(error)
            return False
        return True

    def forget_fd(self, fd: int) -> None:
        """The fd is about to be closed, and this is the last moment to call: then any thread may have its number."""
        if fd in self.by_fd:
            try:
                self._epoll.unregister(fd)
            except OSError as error:
                let_pass(error)
            self.by_fd.pop(fd, None)
            self._events.pop(fd, None)  # not there where a signal's handler has interrupted watch()

    def ask_anew(self) -> list[Any]:
        """Have epoll say again whatever it has said, edges too. Returns the watchers of whom it will say nothing, as
        their fds are not open any more, or it has no memory for them: they are forgotten here.
        """
        lost = []
        for fd, events in list(self._events.items()):
            try:
                try:
                    self._epoll.modify(fd, events)
                except FileNotFoundError:
                    self._epoll.register(fd, events)
            except OSError as error:
                let_pass(error)
                lost.append(self.by_fd.get(fd))
                self.forget_fd(fd)
        return [watcher for watcher in lost if watcher is not None]


def new_poller() -> Any:
    """epoll; or its stand-in where there is none, or where UTPSOCKET_POLLER=poll asks for it."""
    if native.epoll is None or environment.value_if_any("UTPSOCKET_POLLER", "epoll") == "poll":
        return LevelPoller()
    return new_epoll()


def occupy(robbed: Any) -> None:
    """Put an epoll of nothing at the number of one that somebody else closed, if the number is free.

    A thread that was about to sleep on it may still do so, and would take the events of the next with that number.
    """
    if native.epoll is None or not isinstance(robbed, native.epoll):
        return
    number = robbed.fileno()
    empty = native.epoll()
    if empty.fileno() == number:
        _occupants.append(empty)
        return
    found = fcntl(empty.fileno(), F_DUPFD_CLOEXEC, number)
    if found != number:
        os.close(found)
    empty.close()

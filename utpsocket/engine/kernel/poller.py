"""What the engine sleeps in: epoll, or where the system has none, the part of it that the engine uses, made of poll().

The loop relies on edges: epoll reports a change once (EPOLLET), and the watcher remembers it. poll() reports levels,
again at each call. LevelPoller makes edges of levels: after register() and modify() it reports each level once, as
epoll does. Later it does not ask for events that the watcher remembers (`known_events`). A watcher without
`known_events` is not looked at for _SLEEP_SECONDS after each event: otherwise a level that stays, such as a writable
socket, would keep the thread busy.

While the engine sleeps, the garbage collector's thresholds are the program's (garbage_collector.py).

Only the engine's thread calls poll() and wait(); polls() and WakeUp.wake() any thread; the rest as with epoll. Sources:
epoll(7), poll(2), eventfd(2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Final, Generic, TypeAlias, TypeVar

from utpsocket.engine import environment
from utpsocket.engine.interpreter import libc, native
from utpsocket.engine.interpreter.garbage_collector import CollectorPause
from utpsocket.engine.interpreter.originals import ctypes, fcntl, io, os, struct, time
from utpsocket.engine.interpreter.signal_errors import reraise_handler_error
from utpsocket.engine.kernel.epoll_sleep import EVENT, MAX_EVENTS, MAX_TIMEOUT_MS, EpollSleep
from utpsocket.engine.kernel.high_fds import high_duplicate, new_epoll
from utpsocket.protocol.build import IS_COMPILED
from utpsocket.protocol.native import native_or
from utpsocket.protocol.times import NEVER

if TYPE_CHECKING:
    from utpsocket.engine.interpreter.originals import select

    Epoll: TypeAlias = select.epoll
    Poller: TypeAlias = "Epoll | LevelPoller"
    """What new_poller() makes."""

_W = TypeVar("_W")

# By feel: long enough not to occupy the processor, short enough not to delay a transfer much.
_SLEEP_SECONDS: Final = 0.001
# eventfd(2): this number is added to its counter.
_ONE: Final = struct.pack("=Q", 1)
# poll()'s numbers, and EPOLLET. Not taken from select, which has them only where the system has epoll.
EPOLLIN: Final = 0x001
EPOLLOUT: Final = 0x004
EPOLLERR: Final = 0x008
EPOLLHUP: Final = 0x010
EPOLLRDHUP: Final = 0x2000
EPOLLET: Final = 1 << 31
PORT_EVENTS: Final = EPOLLIN | EPOLLERR
"""What epoll is asked for of a port: levels, not edges, since a port need not be emptied in one iteration."""
# EPOLLERR and EPOLLHUP, which poll() reports whether they are asked for or not
_ALWAYS_REPORTED: Final = 0x018
# EPOLLIN, PRI, OUT, ERR, HUP, RDHUP
_LEVEL_EVENTS: Final = 0x201F
_POLLFD: Final = struct.Struct("=ihh")
# sys/epoll.h
_EPOLL_CTL_ADD: Final = 1
_EPOLL_CTL_DEL: Final = 2
_EPOLL_CTL_MOD: Final = 3
_occupants: list[Epoll] = []


class LevelPoller:
    """select.epoll's interface over select.poll."""

    def __init__(self) -> None:
        self._poll = native.poll()
        self.watchers: Mapping[int, object] = {}  # the object that handles an fd's events, by fd
        self._events: dict[int, int] = {}  # registered by fd
        self._registered_events: dict[int, int] = {}  # events registered with poll() at present, by fd
        self._is_due: dict[int, None] = {}  # fds of which each level is to be reported once more, whatever is known
        self._asleep: dict[int, float] = {}  # by fd: when to ask for it again, seconds of time.monotonic()
        self.pause: CollectorPause | None = None  # the polling thread's, if the engine has a thread of its own

    def register(self, fd: int, events: int) -> None:
        """As epoll.register()."""
        if fd in self._events:
            raise FileExistsError(fd)
        self.modify(fd, events)

    def modify(self, fd: int, events: int) -> None:
        """As epoll.modify(): each level is reported once more."""
        self._events[fd] = events & _LEVEL_EVENTS
        self._asleep.pop(fd, None)
        self._registered_events.pop(fd, None)
        self._poll.register(fd, self._events[fd])
        self._registered_events[fd] = self._events[fd]
        self._is_due[fd] = None

    def unregister(self, fd: int) -> None:
        """As epoll.unregister(). It may be repeated where it, or register(), has failed half way."""
        try:
            self._poll.unregister(fd)
        except KeyError:
            pass  # poll() is not asked for it at present
        self._asleep.pop(fd, None)
        self._registered_events.pop(fd, None)
        self._is_due.pop(fd, None)
        self._events.pop(fd, None)

    def _update_events(self, now: float) -> None:
        """Have poll() ask for the events that each watcher does not remember."""
        for fd, at in list(self._asleep.items()):
            if at <= now:
                del self._asleep[fd]
        for fd, events in self._events.items():
            known = 0 if fd in self._is_due else getattr(self.watchers.get(fd), "known_events", 0)
            # EPOLLHUP cannot be masked: once it is known, the fd is not asked for at all.
            if fd in self._asleep or known & EPOLLHUP:
                if self._registered_events.pop(fd, None) is not None:
                    self._poll.unregister(fd)
            elif self._registered_events.get(fd) != events & ~known:
                self._poll.register(fd, events & ~known)
                self._registered_events[fd] = events & ~known

    def poll(self, timeout: float, limit: int) -> list[tuple[int, int]]:
        """As epoll.poll(): `timeout` in seconds, negative for ever; at most `limit` events."""
        until = time.monotonic() + timeout if timeout >= 0 else float("inf")
        while True:
            now = time.monotonic()
            self._update_events(now)
            wait = min(until - now, _SLEEP_SECONDS) if self._asleep else until - now
            if self.pause is not None:
                levels = list(self._registered_events.items())
                sleep_until_ready(self.pause, levels, -1.0 if wait == float("inf") else max(0.0, wait))
                wait = 0.0
            found: list[tuple[int, int]] = self._poll.poll(None if wait == float("inf") else max(0.0, wait) * 1_000)
            if found or time.monotonic() >= until:
                break
        for fd, mask in found[:limit]:
            self._is_due.pop(fd, None)
            if mask & _ALWAYS_REPORTED or not hasattr(self.watchers.get(fd), "known_events"):
                self._asleep[fd] = time.monotonic() + _SLEEP_SECONDS
        return found[:limit]

    def wait(self, at: int) -> list[tuple[int, int]]:
        """See EpollSleep.wait()."""
        seconds = -1.0 if at == NEVER else max(0.0, at / 1_000_000 - time.monotonic())
        return [(mask, fd) for fd, mask in self.poll(seconds, MAX_EVENTS)]

    def close(self) -> None:
        """As epoll.close()."""
        self._events.clear()


def _ms(timeout: float) -> int:
    return -1 if timeout < 0 else min(MAX_TIMEOUT_MS, math.ceil(timeout * 1_000))


def sleep_until_ready(pause: CollectorPause, fds: list[tuple[int, int]], timeout: float) -> None:
    """Sleep in poll(2) until one of these (fd, events) is ready, or for `timeout` seconds; negative: without a limit.
    It may also return early.
    """
    # As one char: an array type of each length would be made each time, and be garbage for the collector.
    levels = ctypes.c_char.from_buffer(bytearray(b"".join(_POLLFD.pack(fd, events, 0) for fd, events in fds) + b"\0"))
    pause.sleep(libc.poll, (ctypes.byref(levels), len(fds), _ms(timeout)))


def polled_in_python(fd: int, events: int) -> int:
    """Those of these events, and of POLLERR, POLLHUP and POLLNVAL, that poll(2) finds at an fd, without releasing the
    GIL; a negative errno where it fails.
    """
    entry = bytearray(_POLLFD.pack(fd, events, 0))
    if libc.poll_at_once(ctypes.byref(ctypes.c_char.from_buffer(entry)), 1, 0) < 0:
        return -ctypes.get_errno()
    found: int = _POLLFD.unpack(entry)[2]
    return found & 0xFFFF


polled: Final = native_or(polled_in_python, "poll_one")
"""The same; in the compiled build by C."""


def polls(sock: native.Socket, events: int) -> bool:
    """Whether poll(2) reports one of these events of the socket, or it has been closed. Any thread."""
    fd = sock.fileno()
    return fd < 0 or polled(fd, events) != 0


class WakeUp:
    """What other threads end the engine's sleep with: an eventfd, or a pipe where there is none.

    fd     becomes readable
    wake   wakes the engine. Any thread. A partial() of a function in C, for native.call_uninterrupted(); it raises
           BlockingIOError where the pipe is full of wake-ups that the engine has not read yet
    """

    __slots__ = ("_owners", "fd", "wake")

    def __init__(self) -> None:
        # An object owns each fd as soon as it is open, so that an exception of a signal handler leaks none.
        if hasattr(os, "eventfd"):
            fds = iter(partial(os.eventfd, 0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), None)
            own = partial(io.FileIO, mode="r+")
            with next(map(own, fds)) as low:
                self._owners = [next(map(own, high_duplicate(low.fileno())))]
            fcntl.fcntl(self._owners[0].fileno(), fcntl.F_SETFL, os.O_NONBLOCK | os.O_APPEND)  # a mark: outside.py
            word = _ONE
        else:
            reader, writer = os.pipe()
            with io.FileIO(reader, "r") as low, io.FileIO(writer, "w") as low_writer:
                self._owners = [
                    io.FileIO(next(iter(high_duplicate(low.fileno()))), "r"),
                    io.FileIO(next(iter(high_duplicate(low_writer.fileno()))), "w"),
                ]
            for owner in self._owners:
                os.set_blocking(owner.fileno(), False)
            word = b"\0"
        self.fd = self._owners[0].fileno()
        self.wake = partial(native_or(native.write, "write"), self._owners[-1].fileno(), word)

    def reset(self) -> int:
        """Make `fd` unreadable again. The engine's thread, once it is awake.

        Returns the number with which another process asks for the engine's figures (outside.py); mostly 0.
        """
        try:
            return native.read_word(self.fd) >> 32
        except BlockingIOError:
            return 0

    def close(self) -> None:
        """Close the fds. `wake` must not be called any more."""
        for owner in self._owners:
            owner.close()


def epoll_ctl_in_python(epoll_fd: int, operation: int, fd: int, events: int) -> int:
    """epoll_ctl(2) with the fd as its data, without releasing the GIL. Returns the errno, or 0."""
    return ctypes.get_errno() if libc.epoll_ctl(epoll_fd, operation, fd, EVENT.pack(events, fd)) else 0


_epoll_ctl: Final = native_or(epoll_ctl_in_python, "epoll_ctl")


class KeepingEpoll:
    """An epoll's registrations without a release of the GIL.

    select.epoll releases it around each call, which takes half a microsecond. If a thread of the program waits for the
    GIL, the engine's then has to wait in its turn, until that thread calls something that blocks (docs/performance.md
    §9).
    """

    __slots__ = ("close", "fileno")

    def __init__(self, epoll: Epoll) -> None:
        self.fileno = epoll.fileno  # raises ValueError once it is closed
        self.close = epoll.close

    def register(self, fd: int, events: int) -> None:
        """As epoll.register()."""
        if code := _epoll_ctl(self.fileno(), _EPOLL_CTL_ADD, fd, events):
            raise OSError(code, os.strerror(code))

    def modify(self, fd: int, events: int) -> None:
        """As epoll.modify()."""
        if code := _epoll_ctl(self.fileno(), _EPOLL_CTL_MOD, fd, events):
            raise OSError(code, os.strerror(code))

    def unregister(self, fd: int) -> None:
        """As epoll.unregister()."""
        if code := _epoll_ctl(self.fileno(), _EPOLL_CTL_DEL, fd, 0):
            raise OSError(code, os.strerror(code))


def new_sleep(poller: Poller, pause: CollectorPause) -> LevelPoller | EpollSleep:
    """An object with wait(), for the thread of this pause and a poller that new_poller() has made."""
    if isinstance(poller, LevelPoller):
        poller.pause = pause
        return poller
    return EpollSleep(poller, pause)


class Watches(Generic[_W]):
    """The fds that are registered with epoll, with the objects that handle their events.

    by_fd               the handling object, by fd
    is_for_any_thread   watch() may be called while the engine's thread sleeps: so it is with epoll, not with poll()
    plain               for threads of the program. In the pure build select.epoll, or its stand-in: there it takes more
                        calls to keep the GIL
    """

    __slots__ = ("_epoll", "_events", "by_fd", "is_for_any_thread", "plain")

    def __init__(self, epoll: Poller) -> None:
        self.plain: Poller | KeepingEpoll = epoll
        self._epoll: Poller | KeepingEpoll = epoll
        if native.epoll is not None and isinstance(epoll, native.epoll):
            self._epoll = KeepingEpoll(epoll)
            if IS_COMPILED:
                self.plain = self._epoll
        self.is_for_any_thread = not isinstance(epoll, LevelPoller)
        self._events: dict[int, int] = {}
        self.by_fd: dict[int, _W] = {}
        if isinstance(epoll, LevelPoller):
            epoll.watchers = self.by_fd

    def watch(self, fd: int, events: int, watcher: _W, plain: Poller | KeepingEpoll | None = None) -> None:
        """Register an fd; its events are given to `watcher.on_event(mask)`. `plain`: by that. Raises OSError."""
        epoll = plain or self._epoll
        self.by_fd[fd] = watcher
        self._events[fd] = events
        try:
            epoll.register(fd, events)
        except FileExistsError:  # the engine's thread has registered it meanwhile, in rearm_all()
            epoll.modify(fd, events)

    def rewatch(self, fd: int, events: int) -> None:
        """Change the events of a registered fd. What epoll has reported already it reports once more."""
        self._events[fd] = events
        self._epoll.modify(fd, events)

    def has(self, fd: int, events: int) -> bool:
        """Whether this fd is registered and open, as far as epoll knows. Any thread. Not for EPOLLET: the events
        would be reported again.

        events   those that it was registered for
        """
        if not self.is_for_any_thread:
            return False
        plain = self.plain
        try:
            if type(plain) is KeepingEpoll:  # a call less: every bind(), listen() and connect() asks
                return not _epoll_ctl(plain.fileno(), _EPOLL_CTL_MOD, fd, events)
            plain.modify(fd, events)
        except ValueError:
            return False
        except OSError as error:
            reraise_handler_error(error)
            return False
        return True

    def forget_fd(self, fd: int) -> None:
        """Unregister an fd. To be called before it is closed: after that another thread may have the number."""
        if fd in self.by_fd:
            try:
                self._epoll.unregister(fd)
            except OSError as error:
                reraise_handler_error(error)
            self.by_fd.pop(fd, None)
            self._events.pop(fd, None)  # not there where a signal's handler has interrupted watch()

    def rearm_all(self) -> list[_W]:
        """Re-arm every registration: epoll reports all events once more, edges too. Returns the watchers whose fds
        cannot be registered any more, since they are not open or the kernel has no memory; those are unregistered here.
        """
        lost = []
        for fd, events in list(self._events.items()):
            try:
                try:
                    self._epoll.modify(fd, events)
                except FileNotFoundError:
                    self._epoll.register(fd, events)
            except OSError as error:
                reraise_handler_error(error)
                lost.append(self.by_fd.get(fd))
                self.forget_fd(fd)
        return [watcher for watcher in lost if watcher is not None]


def new_poller() -> Poller:
    """epoll; or its stand-in where there is none, or where UTPSOCKET_POLLER=poll asks for it."""
    if native.epoll is None or environment.value_if_any("UTPSOCKET_POLLER", "epoll") == "poll":
        return LevelPoller()
    return new_epoll()


def occupy(closed_epoll: Poller) -> None:
    """Put an empty epoll under the number of one that the program has closed, if the number is free.

    A thread that was about to sleep in the closed one may still do so, by its number. If that were the next engine's
    epoll, the thread would take events away from it.
    """
    if native.epoll is None or not isinstance(closed_epoll, native.epoll):
        return
    number = closed_epoll.fileno()
    empty = native.epoll()
    if empty.fileno() == number:
        _occupants.append(empty)
        return
    found = fcntl.fcntl(empty.fileno(), fcntl.F_DUPFD_CLOEXEC, number)
    if found != number:
        os.close(found)
    empty.close()

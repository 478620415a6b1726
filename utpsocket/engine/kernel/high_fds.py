"""The numbers of the engine's fds: above those that select() can watch, and available when the program has used up its
own.

Over TCP connect() opens no fd and accept() one. Over uTP they also open a UDP socket, the engine's ends of pairs, and
some fds for a moment. So a few fds are kept open in advance, duplicates of one socket that is not used:

    move_to_high_fd()   moves a socket to a high number, or if the limit allows none, to the number of a kept fd (dup2).
                        The program's low number is free again, and the program has as many left as over TCP
    with_room()         opens something when no number is left, after closing a kept fd
    close()             of a moved socket leaves a kept fd under its number, until there are enough again

New ones are made only while the program is far from its limit (RLIMIT_NOFILE); if that is low, a few just below it.
Where no kept fd can be used, because the limit was lowered below their numbers or they are used up, the limit is raised
during the call, if the hard limit or CAP_SYS_RESOURCE allows it.

The last ones are for connections that wait for accept(): over TCP a program at its limit can close an fd and then
accept a connection, and so it must be here. Such a connection takes two numbers for good, one for the program and one
for the engine, and where the program closes it at once, since it can serve no more, both are free again. So that there
always is one to be accepted (ports/accept_queue.py):

    The program's last number is not taken, and others only as long as each connection that waits finds one.
    A kept fd is taken only if no connection waits at that listener.
    A number that becomes free again is kept, until there is one for each listener, and one more.

A signal handler may raise between any two lines. So an object owns each fd from the call that opens it on.

Any thread may call. Sources: select(2) FD_SETSIZE; dup(2), fcntl(2); getrlimit(2) RLIMIT_NOFILE.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from utpsocket.engine.interpreter import libc
from utpsocket.engine.interpreter.native import (
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    Socket,
    allocate_lock,
    epoll,
    poll,
    replace_socket,
)
from utpsocket.engine.interpreter.originals import ctypes, fcntl, os, resource
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import or_none, reraise_handler_error

if TYPE_CHECKING:
    from utpsocket.engine.interpreter.originals import select
    from utpsocket.protocol import Address

_T = TypeVar("_T")
HIGH_FD: Final = 1_024
"""FD_SETSIZE: select() cannot watch this number and those above."""
# 0 to 2 are for the standard streams, also where the program was started without them.
_AFTER_STREAMS: Final = 3
# Fds kept: two for each of eight connect(), one for each of eight accept(), and eight that are open for a moment.
_KEPT: Final = 32
# Kept fds begin so far above the lowest free number; by feel.
_KEPT_DISTANCE_FDS: Final = 64
# Under a limit of less than this, _KEPT would be too large a share: then fewer are kept, and the program has at least
# so many numbers below them. All by feel.
_LOW_LIMIT: Final = 128
_KEPT_BELOW_LOW_LIMIT: Final = 4
_LEFT_BELOW_LOW_LIMIT: Final = 16
# Kept fds that are for connections that wait for accept() alone, at least; by feel.
_MIN_FOR_ACCEPT: Final = 2
# Up to the first limit all fd numbers are looked at before each accept(); up to the second only while kept fds are
# missing; above it never, as it takes too long. Both by feel.
_ALWAYS_COUNTED: Final = 256
_MAX_COUNTED: Final = 4_096
_POLLNVAL: Final = 0x020
# For the lock around a raised limit, which is held for one system call; by feel.
_LOCK_SECONDS: Final = 1.0


class HighSocket(Socket):
    """A socket under one of the engine's numbers."""

    __slots__ = ()

    if TYPE_CHECKING:

        def _accept(self) -> tuple[int, Address]:
            """The C class's, of which typeshed does not know."""

    def close(self) -> None:
        """Close it; if there are too few kept fds, its number becomes one of them."""
        model = _model
        most = _for_accept if type(self) is _UnmovedSocket else max(_for_accept, _max_kept)
        if len(_kept) < most and model is not None and self.fileno() >= 0 and _is_kept(model):
            try:
                os.dup2(model.fileno(), self.fileno(), inheritable=False)
            except OSError as error:
                reraise_handler_error(error)  # the limit is lower than the number by now
            else:
                _kept.append(_owner(iter(self.detach, -1)))
                return
        # Without releasing the GIL, and without a line of Python in between. close(2): the fd is closed, whatever the
        # error.
        next(map(libc.close, iter(self.detach, -1)), None)

    def shutdown(self, how: int) -> None:
        """As socket.shutdown(), without releasing the GIL."""
        if libc.shutdown(self.fileno(), how):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    # In place of the C class's finalizer, which would issue a ResourceWarning about a socket that is not the program's.
    # A function in C, so that no signal handler runs within it.
    __del__ = Socket.close


class _UnmovedSocket(HighSocket):
    """A socket that could not be moved: its number is the program's again when it is closed, unless kept fds for
    accept() are missing.
    """

    __slots__ = ()


class UdpSocket(HighSocket):
    """A UDP socket without options of the program's, which after its connection may be another's
    (ports/idle_sockets.py). Whoever makes one sets the attributes.

    owner      the user and group that made it, as the kernel knows them; None: not asked yet
    prepared   what kernel/udp.py has found and set; None: nothing yet
    """

    __slots__ = ("owner", "prepared")

    owner: tuple[int, int] | None
    prepared: tuple[tuple[bool, int], bool, int] | None


_kept: deque[HighSocket] = deque()
_model: HighSocket | None = None  # what the kept fds are duplicates of
_model_file: tuple[int, int] = (0, 0)
_max_kept = _KEPT
_for_accept = _MIN_FOR_ACCEPT  # kept fds that are for connections that wait for accept() alone
_owed = 0  # kept fds that were closed for something else than a socket
_raising = allocate_lock()
_new: Final = partial(HighSocket, stdlib.AF_UNIX, stdlib.SOCK_DGRAM, 0)


def _owner(fds: Iterable[int]) -> HighSocket:
    """Take the first fd of an iterator in C that opens it. There is no line of Python between the call that opens the
    fd and the object that owns it.
    """
    return next(map(_new, fds))


def _duplicate(fd: int, floor: int) -> HighSocket:
    return _owner(map(partial(fcntl.fcntl, fd, fcntl.F_DUPFD_CLOEXEC), (floor,)))


def _limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 30 if soft == resource.RLIM_INFINITY else soft


def is_prepared() -> bool:
    """Whether prepare() has been called."""
    return _model is not None


def prepare() -> None:
    """Keep fds, if the program is far from its limit. To be called early, before it may have used them up."""
    global _model, _model_file
    gone = _model
    if gone is not None:
        if _is_kept(gone):
            return
        gone.detach()  # the program has closed every fd (os.closerange), and the numbers may have been used again
        while _kept:
            _kept.pop().detach()
    try:
        model = Socket(stdlib.AF_UNIX, stdlib.SOCK_DGRAM)
    except OSError as error:
        reraise_handler_error(error)
        return
    with closing(model):
        found = os.fstat(model.fileno())
        try:
            high = _duplicate(model.fileno(), _floor(model.fileno()))
        except OSError as error:
            reraise_handler_error(error)
            return
        high.setblocking(False)  # a thread that uses a duplicate in the place of a closed socket must not block in it
        _model_file = found.st_dev, found.st_ino
        _model = high
        _keep_more(high, model.fileno())


def release() -> None:
    """Close all kept fds. The next engine, or socket, calls prepare() again."""
    global _model
    model, _model = _model, None
    for sock in (*_kept, *filter(None, (model,))):
        if _is_kept(sock):
            Socket.close(sock)
        else:
            sock.detach()
    _kept.clear()


def _floor(lowest_fd: int) -> int:
    """The lowest number for kept fds, where this is the lowest free number. It may be above the limit: then fcntl()
    fails, and none are kept.
    """
    limit = _limit()
    if limit >= HIGH_FD + 4 * _KEPT:
        return HIGH_FD
    if limit >= _LOW_LIMIT:
        return lowest_fd + _KEPT_DISTANCE_FDS
    return max(limit - _KEPT_BELOW_LOW_LIMIT - 1, lowest_fd + _LEFT_BELOW_LOW_LIMIT)


def _keep_more(model: HighSocket, lowest_fd: int) -> None:
    global _max_kept
    floor = _floor(lowest_fd)
    _max_kept = _KEPT if _limit() >= _LOW_LIMIT else _KEPT_BELOW_LOW_LIMIT
    try:
        while len(_kept) < _max_kept:
            _kept.append(_duplicate(model.fileno(), floor))
    except OSError as error:
        reraise_handler_error(error)


def _keep_usable(model: HighSocket, lowest_fd: int) -> None:
    """Close the kept fds above a limit that was lowered, and keep others."""
    limit = _limit()
    while _kept and _kept[0].fileno() >= limit:
        try:
            kept = _kept.popleft()
        except IndexError:
            break  # another thread was first
        if _is_kept(kept):
            Socket.close(kept)
        else:
            kept.detach()
    _keep_more(model, lowest_fd)


def _is_kept(sock: HighSocket) -> bool:
    """Whether the number still is a duplicate of the model."""
    found = or_none(os.fstat, sock.fileno())
    return found is not None and (found.st_dev, found.st_ino) == _model_file


def _take_kept(*, is_for_accept: bool = False) -> HighSocket | None:
    """Take a kept fd out; only for accept() one of the last."""
    while len(_kept) > (0 if is_for_accept else _for_accept):
        try:
            kept = _kept.pop()
        except IndexError:
            break  # another thread was first
        if _is_kept(kept):
            return kept
        kept.detach()
    return None


def high_duplicate(fd: int) -> Iterable[int]:
    """An iterator over one duplicate: above select()'s range where the limit allows that, and never under the number of
    a standard stream, where a daemon may put its log. The duplicate is made when the iterator is asked for it, so that
    an object can own it at once (_owner()).
    """
    floor = HIGH_FD if _limit() >= HIGH_FD + 4 * _KEPT else _AFTER_STREAMS
    return map(partial(fcntl.fcntl, fd, fcntl.F_DUPFD_CLOEXEC), (floor,))


def new_epoll() -> select.epoll:
    """An epoll with a high number."""
    assert epoll is not None
    with epoll() as low:
        return next(map(epoll.fromfd, high_duplicate(low.fileno())))


def is_far_from_limit(fd: int) -> bool:
    """Whether this number, which the kernel has chosen as the lowest free one in its range, is in the lower half: the
    program has many left.
    """
    return fd < _limit() // 2


def move_to_high_fd(sock: Socket, kind: type[HighSocket] = HighSocket) -> Socket:
    """Move a socket to a high number and make it non-blocking.

    kind   the class of the new object, if there is such a number

    Returns a new object that owns it; `sock` is closed. Where there is no such number, the new object has the same one.
    Raises OSError.
    """
    if isinstance(sock, HighSocket):
        return sock
    fd = sock.fileno()
    is_nonblocking = sock.gettimeout() == 0
    try:
        # Family, type and protocol are known, so that no system calls are made to find them.
        own = partial(kind, sock.family, sock.type | SOCK_NONBLOCK if is_nonblocking else sock.type, sock.proto)
        moved: HighSocket | None = next(map(own, map(partial(fcntl.fcntl, fd, fcntl.F_DUPFD_CLOEXEC), (HIGH_FD,))))
    except OSError as error:
        reraise_handler_error(error)
        moved = _moved_to_kept_fd(sock)
        is_nonblocking = False
    if moved is None:
        model = _model
        if model is not None and _is_kept(model):
            _keep_usable(model, fd)
        return _as_high_socket(sock, _UnmovedSocket)  # under the same number
    if not is_nonblocking:
        try:
            moved.setblocking(False)
        except BaseException:
            Socket.close(moved)
            raise
    sock.close()
    if len(_kept) < _max_kept:
        model = _model
        if model is not None and _is_kept(model):
            _keep_more(model, fd)
    return moved


def replace_with_idle(sock: Socket) -> bool:
    """Replace the open file under the socket's number by an unused socket, in one step (dup2): another thread may be
    about to use the number. False where that is not possible.
    """
    model = _model
    if model is None or sock.fileno() < 0 or not _is_kept(model):
        return False
    try:
        os.dup2(model.fileno(), sock.fileno(), inheritable=False)
    except OSError as error:
        reraise_handler_error(error)
        return False  # the limit is lower than the number by now
    return True


def _moved_to_kept_fd(sock: Socket) -> HighSocket | None:
    """Move the socket to the number of a kept fd; None if there is none."""
    fd = sock.fileno()
    moved = _take_kept()
    if moved is None or not _dup_onto(fd, moved):
        if moved is not None:
            _kept.appendleft(moved)
        return None
    try:
        Socket.__init__(moved, fileno=moved.fileno())  # it is of another family now
    except BaseException:
        Socket.close(moved)
        raise
    return moved


def _dup_onto(fd: int, kept: HighSocket) -> bool:
    """Duplicate an fd to the number of a kept one (dup2). False: the limit is lower than that by now."""
    duplicate = partial(os.dup2, fd, kept.fileno(), False)
    try:
        try:
            duplicate()
        except OSError as error:
            reraise_handler_error(error)
            _with_raised_limit(duplicate, kept.fileno() + 1)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno is not None:
            return False  # and the number is still a kept one's
        Socket.close(kept)
        raise
    return True


def with_room(make: Callable[[], _T], *, is_for_accept: bool = False, takes_programs: bool = True) -> _T:
    """Call make(); if it fails with EMFILE, close a kept fd and call it again.

    make             a call that opens one fd, perhaps only while it runs, and leaves none open where it fails
    is_for_accept    the fd is for a connection that waits for accept(): it may have any kept fd, and stays open
    takes_programs   the fd may have a number that the program has left; False: only a kept fd's

    Returns what make() returns; a socket that was made with a kept fd's number does not block. Raises what make()
    raises. Once the fd is closed, and was no socket: give_back().
    """
    global _owed
    if takes_programs:
        try:
            return make()
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
    limit = _limit()
    for _ in range(_KEPT):
        kept = _take_kept(is_for_accept=is_for_accept)
        if kept is None:
            break
        if kept.fileno() >= limit:
            _kept.appendleft(kept)
            continue
        try:
            made = _make_in_place_of(kept, make)
        except BaseException as error:
            _owed += 1
            give_back()
            if isinstance(error, OSError) and error.errno == errno.EMFILE:
                continue  # another thread has taken the number
            raise
        if not isinstance(made, Socket):
            _owed += not is_for_accept
            return made
        return _as_high_socket(made)  # type: ignore[return-value]  # of a socket: a socket
    above = _with_raised_limit(make, limit + 1)
    return _as_high_socket(above) if isinstance(above, Socket) else above  # type: ignore[return-value]


def _make_in_place_of(kept: HighSocket, make: Callable[[], _T]) -> _T:
    """Close a kept fd and call make(). Another thread may get the number in between, and the kept fd would be lost for
    good. So a plain socket is made without a release of the GIL in between.
    """
    if isinstance(make, partial) and make.func is Socket and not make.keywords and SOCK_CLOEXEC:
        return replace_socket(kept, *make.args)  # type: ignore[return-value]
    Socket.close(kept)
    return make()


def free_count() -> int | None:
    """How many numbers the program has left; None where these are many, or too many would have to be looked at."""
    limit = _limit()
    if limit > _MAX_COUNTED or (limit > _ALWAYS_COUNTED and len(_kept) >= _max_kept):
        return None
    if _kept and _kept[0].fileno() >= limit:
        return None  # lowered by now: move_to_high_fd() raises the limit for a moment, or keeps others
    numbers = poll()
    for number in range(limit):
        numbers.register(number, 0)
    return len([number for number, mask in numbers.poll(0) if mask == _POLLNVAL])


def kept_count() -> int:
    """How many kept fds there are."""
    return len(_kept)


def missing_for_accept(listener_count: int) -> int:
    """How many kept fds are missing for accept(): each listener needs one, and one goes with the program's last number.
    0 where the limit may be raised in place of them.
    """
    global _for_accept
    _for_accept = max(_MIN_FOR_ACCEPT, min(listener_count + 1, _KEPT))
    missing = _for_accept - len(_kept)
    if missing <= 0:
        return 0
    try:
        _with_raised_limit(_nothing, _limit() + 1)
    except OSError as error:
        reraise_handler_error(error)
        return missing
    return 0


def _nothing() -> None:
    """What is done under a raised limit to find out whether it may be raised."""


def keep_for_accept() -> None:
    """Keep fds under numbers of the program's until there are those for accept()."""
    model = _model
    try:
        while len(_kept) < _for_accept and model is not None and _is_kept(model):
            _kept.append(_duplicate(model.fileno(), _AFTER_STREAMS))
    except OSError as error:
        reraise_handler_error(error)


def taken_over(sock: Socket, kind: type[HighSocket] | None = None) -> Iterator[HighSocket]:
    """An iterator over one object, which owns the same socket under the same number from then on; the old object is
    closed. If that was closed already, the iterator is empty.
    """
    kind = kind or (type(sock) if isinstance(sock, HighSocket) else HighSocket)
    return map(partial(kind, stdlib.AF_UNIX, stdlib.SOCK_DGRAM, 0), iter(sock.detach, -1))


def _as_high_socket(made: Socket, kind: type[HighSocket] = HighSocket) -> HighSocket:
    moved = next(taken_over(made, kind))
    Socket.__init__(moved, fileno=moved.fileno())  # it is of another family
    moved.setblocking(False)
    return moved


def give_back() -> None:
    """Keep a fd again, in place of one that with_room() has closed for something else than a socket. To be called when
    that is closed.
    """
    global _owed
    model = _model
    while _owed > 0 and model is not None and _is_kept(model):
        _owed -= 1
        if len(_kept) >= _max_kept:
            continue  # close() has kept others
        try:
            _kept.append(_duplicate(model.fileno(), 0))
        except OSError as error:
            reraise_handler_error(error)
            return


def _with_raised_limit(call: Callable[[], _T], min_fds: int) -> _T:
    """call() under a soft limit of at least `min_fds`. Raises EMFILE where the limit may not be raised."""
    if not _raising.acquire(True, _LOCK_SECONDS):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    try:
        soft, hard = before = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        wanted = max(min_fds, soft + _KEPT)
        if hard != resource.RLIM_INFINITY:
            hard = max(hard, wanted)  # which only root may do
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from None
        try:
            return call()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
    finally:
        _raising.release()


def forget_in_child() -> None:
    """After a fork, in the child: a thread of the parent may have held the lock. The copies of kept fds are the
    child's.
    """
    global _raising
    _raising = allocate_lock()

"""The engine's fds: out of the numbers that select() can watch, and there when the program has used up its own.

Separate because every part of the engine that opens a socket needs it. TCP's connect() needs no fd, and its accept()
one; ours need a UDP socket, the engine's ends of pairs, and some for a moment. So a few fds are kept open in advance,
duplicates of one socket that does nothing:

    raise_fd()    puts a socket under a high number, or where there is none under that of a kept fd, in one step (dup2),
                  so that the program's low number is free again, and the program has as many left as with TCP
    with_room()   opens something when no number is left, after closing a kept fd
    close()       of a raised socket leaves a kept fd under its number, until there are enough again

New ones are made only while the program is far from its limit; below a low one, a few at its end. The last two are for
connections that wait for accept(): as with TCP there is always one to be accepted, with an fd that the program has
closed for that, and which is not taken from it meanwhile. Where none can be used, because the limit was lowered
below their numbers or they have been used up, the limit is raised for the moment of the call, if the hard limit, or
root's rights, allow it.

A signal's handler may raise between any two lines: so at every moment an object owns each fd.

Any thread may call. Sources: select(2) FD_SETSIZE; dup(2), fcntl(2); getrlimit(2) RLIMIT_NOFILE.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from fcntl import F_DUPFD_CLOEXEC, fcntl
from functools import partial
from typing import Any, Final, TypeVar

from utpsocket.engine.interpreter.native import (
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    Socket,
    allocate_lock,
    epoll,
    made_instead,
    poll,
)
from utpsocket.engine.interpreter.originals import os, resource
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import let_pass, or_none

_T = TypeVar("_T")
_HIGH_FD: Final = 1_024  # FD_SETSIZE
_AFTER_STREAMS: Final = 3  # 0 to 2 are the standard streams', also where the program was started without them
_KEPT: Final = 32  # two for each of eight connects, one for each of eight accepts, and some for a moment
_FAR: Final = 64  # numbers above the lowest free one that must be free before more are kept
_LOW_LIMIT: Final = 128  # numbers, of which so many more are too many
_KEPT_BELOW_LOW_LIMIT: Final = 4
_LEFT_BELOW_LOW_LIMIT: Final = 16  # numbers that the program then has at least
_FOR_ACCEPT: Final = 2  # kept fds that are for nothing else
_FEW: Final = 256  # numbers, which can be looked at each time
_MOST_COUNTED: Final = 4_096
_POLLNVAL: Final = 0x020
_LOCK_SECONDS: Final = 1.0


class HighSocket(Socket):  # type: ignore[misc]  # native's is Any
    """A socket under one of the engine's own numbers."""

    __slots__ = ()

    def close(self) -> None:
        """Closes it, and keeps the number if there are too few."""
        model = _model
        if len(_kept) < _most_kept and model is not None and self.fileno() >= 0 and _is_kept(model):
            try:
                os.dup2(model.fileno(), self.fileno(), inheritable=False)
            except OSError as error:
                let_pass(error)  # the limit is lower than the number by now
            else:
                _kept.append(_owner(iter(self.detach, -1)))
                return
        try:
            Socket.close(self)
        except OSError as error:
            let_pass(error)  # it is closed all the same, whatever close(2) has to say of what was written

    # As the C class's finalizer, but without its ResourceWarning: the program, which would be told, has nothing to
    # close, and at exit what is kept in advance is simply there. In C, so that no signal's handler runs within it.
    __del__ = Socket.close


_kept: deque[HighSocket] = deque()
_model: HighSocket | None = None  # what the kept fds are duplicates of
_model_file: tuple[int, int] = (0, 0)
_most_kept = _KEPT
_owed = 0  # kept fds that were closed for something else than a socket
_raising = allocate_lock()
_new: Final = partial(HighSocket, stdlib.AF_UNIX, stdlib.SOCK_DGRAM, 0)


def _owner(fds: Iterable[int]) -> HighSocket:
    """The object that owns the first of these fds, from the moment on in which it comes to be."""
    return next(map(_new, fds))


def _duplicate(fd: int, floor: int) -> HighSocket:
    return _owner(map(partial(fcntl, fd, F_DUPFD_CLOEXEC), (floor,)))


def _limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 30 if soft == resource.RLIM_INFINITY else soft


def is_prepared() -> bool:
    """Whether prepare() has been called."""
    return _model is not None


def prepare() -> None:
    """Keep fds, if the program is far from its limit: before it may have used them up."""
    global _model, _model_file
    gone = _model
    if gone is not None:
        if _is_kept(gone):
            return
        gone.detach()  # the program has closed every fd that it found: the numbers are somebody else's
        while _kept:
            _kept.pop().detach()
    try:
        model = Socket(stdlib.AF_UNIX, stdlib.SOCK_DGRAM)
    except OSError as error:
        let_pass(error)
        return
    with closing(model):
        found = os.fstat(model.fileno())
        try:
            high = _duplicate(model.fileno(), _floor(model.fileno()))
        except OSError as error:
            let_pass(error)
            return
        high.setblocking(False)  # whoever finds it in the place of something else must not wait
        _model_file = found.st_dev, found.st_ino
        _model = high
        _keep_more(high, model.fileno())


def release() -> None:
    """Keep nothing. The next engine, or socket, prepares anew."""
    global _model
    model, _model = _model, None
    for sock in (*_kept, *filter(None, (model,))):
        if _is_kept(sock):
            Socket.close(sock)
        else:
            sock.detach()
    _kept.clear()


def _floor(lowest_fd: int) -> int:
    """Where kept fds begin while this is the lowest free number: none are, where the limit is near."""
    limit = _limit()
    if limit >= _HIGH_FD + 4 * _KEPT:
        return _HIGH_FD
    if limit >= _LOW_LIMIT:
        return lowest_fd + _FAR
    return max(limit - _KEPT_BELOW_LOW_LIMIT - 1, lowest_fd + _LEFT_BELOW_LOW_LIMIT)


def _keep_more(model: HighSocket, lowest_fd: int) -> None:
    global _most_kept
    floor = _floor(lowest_fd)
    _most_kept = _KEPT if _limit() >= _LOW_LIMIT else _KEPT_BELOW_LOW_LIMIT
    try:
        while len(_kept) < _most_kept:
            _kept.append(_duplicate(model.fileno(), floor))
    except OSError as error:
        let_pass(error)


def _keep_usable(model: HighSocket, lowest_fd: int) -> None:
    """Instead of those beyond a limit that was lowered, and that nobody can raise, keep others."""
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
    """Whether its number still means what we keep."""
    found = or_none(os.fstat, sock.fileno())
    return found is not None and (found.st_dev, found.st_ino) == _model_file


def _take_kept(left: int = _FOR_ACCEPT) -> HighSocket | None:
    """A kept fd, which is the caller's now. So many are not for it."""
    while len(_kept) > left:
        try:
            kept = _kept.pop()
        except IndexError:
            break  # another thread was first
        if _is_kept(kept):
            return kept
        kept.detach()
    return None


def raised_duplicate(fd: int) -> Iterable[int]:
    """A duplicate, on a number that no program takes for its own: out of select()'s range where the limit allows that,
    and never a standard stream's, under which a daemon puts its log. Made when it is asked for, so that an object may
    own it from its first moment.
    """
    floor = _HIGH_FD if _limit() >= _HIGH_FD + 4 * _KEPT else _AFTER_STREAMS
    return map(partial(fcntl, fd, F_DUPFD_CLOEXEC), (floor,))


def new_epoll() -> Any:
    """An epoll on a raised number."""
    assert epoll is not None
    with epoll() as low:
        return next(map(epoll.fromfd, raised_duplicate(low.fileno())))


def raise_fd(sock: Any) -> Any:
    """The same socket on a high fd number, non-blocking; itself where the process may have no such number."""
    if isinstance(sock, HighSocket):
        return sock
    fd = sock.fileno()
    is_quiet = sock.gettimeout() == 0
    try:
        # What is known of it already is not asked of the kernel again, nor told it.
        own = partial(HighSocket, sock.family, sock.type | SOCK_NONBLOCK if is_quiet else sock.type, sock.proto)
        raised: Any = next(map(own, map(partial(fcntl, fd, F_DUPFD_CLOEXEC), (_HIGH_FD,))))
    except OSError as error:
        let_pass(error)
        raised = _raised_to_kept(sock)
        is_quiet = False
    if raised is None:
        model = _model
        if model is not None and _is_kept(model):
            _keep_usable(model, fd)
        if len(_kept) < _FOR_ACCEPT:
            return _raised_already(sock)  # where it is: its number is kept when it is closed
        sock.setblocking(False)
        return sock
    if not is_quiet:
        try:
            raised.setblocking(False)
        except BaseException:
            Socket.close(raised)
            raise
    sock.close()
    if len(_kept) < _most_kept:
        model = _model
        if model is not None and _is_kept(model):
            _keep_more(model, fd)
    return raised


def idle_instead(sock: Any) -> bool:
    """Close what is under the socket's number, in one step with putting an idle socket there: another thread may be
    about to use the number. False: there is no idle one.
    """
    model = _model
    if model is None or sock.fileno() < 0 or not _is_kept(model):
        return False
    try:
        os.dup2(model.fileno(), sock.fileno(), inheritable=False)
    except OSError as error:
        let_pass(error)
        return False  # the limit is lower than the number by now
    return True


def _raised_to_kept(sock: Any) -> HighSocket | None:
    """The socket under the number of a kept fd, where it can have no other high one; None where there is none kept."""
    fd = sock.fileno()
    raised = _take_kept()
    if raised is None or not _put(fd, raised):
        if raised is not None:
            _kept.appendleft(raised)
        return None
    try:
        raised.__init__(fileno=raised.fileno())  # type: ignore[misc]  # it is of another family now
    except BaseException:
        Socket.close(raised)
        raise
    return raised


def _put(fd: int, kept: HighSocket) -> bool:
    """Put an open file under the number of a kept one. False: the limit is lower by now."""
    put = partial(os.dup2, fd, kept.fileno(), False)
    try:
        try:
            put()
        except OSError as error:
            let_pass(error)
            _beyond_limit(put, kept.fileno() + 1)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno is not None:
            return False  # and the number is still a kept one's
        Socket.close(kept)
        raise
    return True


def with_room(make: Callable[[], _T], *, is_for_accept: bool = False) -> _T:
    """make(), which opens one fd, and leaves none where it fails; if there is no number left, with a kept one's help.
    A socket is then given as one that does not block.

    is_for_accept   a connection that waits for accept(): it may have every kept fd, and not the program's last number
    """
    global _owed
    if not is_for_accept or not _is_last_number(_limit()):
        try:
            return make()
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
    limit = _limit()
    left = 0 if is_for_accept else _FOR_ACCEPT
    for _ in range(_KEPT):
        kept = _take_kept(left)
        if kept is None:
            break
        if kept.fileno() >= limit:
            _kept.appendleft(kept)
            continue
        try:
            made = _made_instead(kept, make)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            continue  # another thread has taken the number
        if not isinstance(made, Socket):
            _owed += 1
            return made
        return _raised_already(made)  # type: ignore[no-any-return]
    beyond: Any = _beyond_limit(make, limit + 1)
    return _raised_already(beyond) if isinstance(beyond, Socket) else beyond  # type: ignore[no-any-return]


def _made_instead(kept: HighSocket, make: Callable[[], _T]) -> _T:
    """make() after closing a kept fd. A number that the program takes in between, as accept() and open() may, is lost
    for good, and without any no connection can be handed over: so a plain socket is made in one step.
    """
    if isinstance(make, partial) and make.func is Socket and not make.keywords and SOCK_CLOEXEC:
        return made_instead(kept, *make.args)  # type: ignore[no-any-return]
    Socket.close(kept)
    return make()


def _is_last_number(limit: int) -> bool:
    """Whether the program has one number left at most: it may just have closed an fd in order to accept."""
    if limit > _MOST_COUNTED or (limit > _FEW and len(_kept) >= _most_kept):
        return False  # far from the limit, or there are too many to look at
    if _kept and _kept[0].fileno() >= limit:
        return False  # lowered by now: raise_fd() takes the limit out of the way, or keeps others
    numbers = poll()
    for number in range(limit):
        numbers.register(number, 0)
    return len([number for number, mask in numbers.poll(0) if mask == _POLLNVAL]) < 2


def taken_over(sock: Any) -> Iterator[HighSocket]:
    """The same socket, under its number, owned by a new object from the moment on in which that is asked for: to who
    has the old one it is closed. Nothing of one that is closed.
    """
    return map(_new, iter(sock.detach, -1))


def _raised_already(made: Any) -> Any:
    raised = next(taken_over(made))
    raised.__init__(fileno=raised.fileno())  # type: ignore[misc]  # it is of another family
    raised.setblocking(False)
    return raised


def give_back() -> None:
    """What with_room() opened, and is no socket, has been closed."""
    global _owed
    model = _model
    while _owed > 0 and model is not None and _is_kept(model):
        _owed -= 1
        try:
            _kept.append(_duplicate(model.fileno(), 0))
        except OSError as error:
            let_pass(error)
            return


def _beyond_limit(call: Callable[[], _T], least: int) -> _T:
    """call() with a soft limit of at least so many. Raises EMFILE where we may not have it."""
    if not _raising.acquire(True, _LOCK_SECONDS):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    try:
        soft, hard = before = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        wanted = max(least, soft + _KEPT)
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
    """After a fork, in the child, whose copies of what is kept are its own: a lock may be held by a thread that is not
    there.
    """
    global _raising
    _raising = allocate_lock()

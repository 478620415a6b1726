"""CPython's own threads, locks, polling and socket class, also where gevent or eventlet have replaced them.

The engine runs on a thread of the operating system, in whatever order a program is patched (docs/sockets.md §5). So all
modules of the engine take what blocks from here. Any thread may import this.
"""

from __future__ import annotations

import _thread
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fcntl import F_GETFL, F_SETFL, fcntl
from functools import partial
from io import FileIO
from operator import itemgetter
from signal import SIG_BLOCK, SIG_SETMASK
from termios import FIONREAD, TIOCOUTQ
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from utpsocket.engine.interpreter import libc
from utpsocket.engine.interpreter.originals import _socket, ctypes, os, posix

_T = TypeVar("_T")
_MODULES = {"_thread": _thread, "select": select, "socket": socket, "time": time}


def original(module: str, name: str) -> Any:
    """The attribute as CPython made it: gevent's and eventlet's records first, since they replace it in place.

    Raises AttributeError where this interpreter has no such name.
    """
    get_original = getattr(sys.modules.get("gevent.monkey"), "get_original", None)  # absent while it is being imported
    if get_original is not None:
        return get_original(module, name)
    patcher = sys.modules.get("eventlet.patcher")
    if module.lstrip("_") in getattr(patcher, "already_patched", ()):
        return getattr(patcher.original(module), name)  # type: ignore[union-attr]
    return getattr(_MODULES[module], name)


def class_made_by(module: ModuleType, name: str, base: type[_T]) -> type[_T] | None:
    """The subclass of `base` of that name that a stdlib module made itself, whatever the name refers to by now; None
    where there is none.

    eventlet imports stdlib modules a second time: the copy's functions have other globals.
    """
    for made in base.__subclasses__():
        if made.__module__ == module.__name__ and made.__name__ == name:
            if any(
                type(member) is FunctionType and member.__globals__ is vars(module) for member in vars(made).values()
            ):
                return made
    return None


Socket: TypeAlias = _socket.socket
"""The C class that socket.socket derives from. gevent and eventlet do not replace it."""

if TYPE_CHECKING:
    StdlibSocket = socket.socket
else:
    StdlibSocket = class_made_by(socket, "socket", Socket)
    """The stdlib's class socket.socket, also where gevent or eventlet have put theirs under that name."""

start_new_thread: Callable[[Callable[..., object], tuple[object, ...]], int] = original("_thread", "start_new_thread")
get_ident: Callable[[], int] = original("_thread", "get_ident")
allocate_lock: Callable[[], _thread.LockType] = original("_thread", "allocate_lock")
new_reentrant_lock: Callable[[], _thread.RLock] = original("_thread", "RLock")
write = posix.write  # below os, where eventlet puts its own
sleep: Callable[[float], None] = original("time", "sleep")
epoll: type[select.epoll] | None
try:
    epoll = original("select", "epoll")  # gevent and eventlet delete it from the module
except AttributeError:
    epoll = None
poll: Callable[[], select.poll] = original("select", "poll")

_MSG_DONTWAIT = 0x40
_O_NONBLOCK = os.O_NONBLOCK
_AF_UNIX, _SOCK_STREAM = socket.AF_UNIX, socket.SOCK_STREAM
SOCK_CLOEXEC = int(getattr(socket, "SOCK_CLOEXEC", 0))
SOCK_NONBLOCK = int(socket.SOCK_NONBLOCK)
accept_fd: Callable[[Socket], tuple[int, object]] = vars(Socket)["_accept"]
"""The C class's _accept(), of which typeshed does not know: returns the new fd, and the peer's address."""
_dropped = ctypes.create_string_buffer(1 << 16)
_WORD_BYTES = 4_096  # an eventfd's word, or a pipe's bytes
_word = ctypes.create_string_buffer(_WORD_BYTES)
_count = ctypes.c_uint64.from_buffer(_word)


def read_word(fd: int) -> int:
    """Read what an eventfd holds, or a pipe's bytes, without releasing the GIL. Raises OSError.

    Returns the eventfd's count; of a pipe the first bytes as a number.
    """
    if libc.read(fd, _word, _WORD_BYTES) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return _count.value


def receiving(fd: int, count: int) -> partial[int]:
    """A call for call_uninterrupted(): receives and drops up to `count` bytes and keeps the GIL. Returns how many, 0 or
    less for none.
    """
    return partial(libc.recv, fd, _dropped, min(count, len(_dropped)), _MSG_DONTWAIT)


def connecting(fd: int, name: bytes) -> partial[int]:
    """A call that connects a non-blocking AF_UNIX socket to an abstract name without releasing the GIL, for
    call_uninterrupted(). It returns -1 where it fails, with the errno in ctypes.get_errno(). unix(7).
    """
    address = int(_AF_UNIX).to_bytes(2, sys.byteorder) + name
    return partial(libc.connect, fd, address, len(address))


_PR_SET_NAME = 15
_SIGSET_BYTES = 128
_all_signals = ctypes.create_string_buffer(_SIGSET_BYTES)
libc.sigfillset(_all_signals)
_THREADS_REMEMBERED = 64
try:
    _start_joinable = original("_thread", "start_joinable_thread")  # 3.13
except AttributeError:
    _start_joinable = None
    _set_sentinel = original("_thread", "_set_sentinel")
_threads: deque[Callable[[], object]] = deque(maxlen=_THREADS_REMEMBERED)  # each waits for the end of one of ours


def start_thread(run: Callable[[], object], name: bytes) -> None:
    """Start a thread of ours, in which every signal is blocked: they are for the program's own threads. Here they would
    interrupt calls (EINTR), or end the process (SIGPIPE, by a byte that is written as the user).

    name   at most 15 bytes, which ps -L and top -H show

    Raises RuntimeError where there can be no thread.

    A new thread has the signal mask of the one that starts it, and the kernel may choose it for a signal as long as it
    has blocked none. CPython's main thread looks for a signal that another thread has received when it next takes the
    GIL, and never does if its next system call sleeps. So they are blocked before there is a thread, which cannot do so
    itself in time. Source: pthread_create(3), signal(7).
    """
    begin = partial(_begin, run, name)
    before = ctypes.create_string_buffer(_SIGSET_BYTES)
    libc.pthread_sigmask(SIG_BLOCK, None, before)
    block, unblock = (partial(libc.pthread_sigmask, SIG_SETMASK, mask, None) for mask in (_all_signals, before))
    if _start_joinable is None:
        start = partial(start_new_thread, begin, ())
    else:
        start = partial(_start_joinable, begin, daemon=True)
    try:
        _, started, _ = call_uninterrupted(block, start, unblock)
    except BaseException:
        unblock()
        raise
    if _start_joinable is not None:
        _threads.append(started.join)


def _begin(run: Callable[[], object], name: bytes) -> None:
    try:
        libc.prctl(_PR_SET_NAME, name, 0, 0, 0)
        if _start_joinable is None:
            forgotten = _set_sentinel()  # a lock that is released when the interpreter has removed the thread's state
            forgotten.acquire()
            _threads.append(forgotten.acquire)
    except BaseException:
        pass  # the thread works without its name, and without being waited for at the end
    run()


def join_threads() -> None:
    """Wait until the interpreter has removed our threads' states. All of them must be about to end."""
    while _threads:
        _threads.popleft()()


def forget_threads() -> None:
    """After a fork, in the child: the threads are the parent's."""
    _threads.clear()


def is_main_interpreter() -> bool:
    """Whether this is the process's main interpreter, and not a subinterpreter, such as mod_wsgi makes."""
    try:
        return libc.this_interpreter() == libc.main_interpreter()
    except OSError:  # its symbols are not among the global ones
        return True


def unread_by_peer_bytes(fd: int) -> int:
    """Bytes that were written to an AF_UNIX socket and its peer has not read, with the kernel's overhead (TIOCOUTQ); -1
    if ioctl() fails. Without releasing the GIL.
    """
    answer = ctypes.c_int(0)
    return -1 if libc.ioctl(fd, TIOCOUTQ, ctypes.byref(answer)) else answer.value


def unread_bytes(fd: int) -> int:
    """The bytes of a UDP socket's next datagram (FIONREAD), 0 where there is none. Without releasing the GIL."""
    answer = ctypes.c_int(0)
    return 0 if libc.ioctl(fd, FIONREAD, ctypes.byref(answer)) else answer.value


# Of calls that return whatever they return.
_call: Callable[[partial[Any]], Any] = partial.__call__
_first: Callable[[tuple[int, object]], int] = itemgetter(0)


def call_uninterrupted(*calls: partial[Any]) -> list[Any]:
    """What these calls return, made one after the other in C: no signal's handler runs between two of them, as it may
    between any two lines, and an exception of one leaves out the rest. The calls must be partial() of functions in C.
    """
    return list(map(_call, calls))


def replace_socket(old: Socket, family: int, kind: int, protocol: int = 0) -> Socket:
    """Close an old socket and open a new one, which gets the same fd number, without a release of the GIL in between.
    Only a thread that is within a system call already could get the number first. Raises OSError.
    """
    opened = iter(partial(libc.socket, family, kind | SOCK_CLOEXEC, protocol), -1)
    owned = map(partial(Socket, family, kind, protocol), opened)
    steps = partial(old.detach), partial(libc.close, old.fileno()), partial(next, owned, None)
    made: Socket | None = call_uninterrupted(*steps)[2]
    if made is None:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return made


def connect_at_once(fd: int, name: bytes) -> int:
    """Connect an AF_UNIX socket, which may block, to an abstract name without waiting for room in the listener's queue;
    the errno, or 0. unix(7).
    """
    address = int(_AF_UNIX).to_bytes(2, sys.byteorder) + name
    connect = partial(libc.connect, fd, address, len(address))
    flags = fcntl(fd, F_GETFL)
    if flags & _O_NONBLOCK:
        return ctypes.get_errno() if connect() else 0
    _, failed, _ = call_uninterrupted(
        partial(fcntl, fd, F_SETFL, flags | _O_NONBLOCK), connect, partial(fcntl, fd, F_SETFL, flags)
    )
    return ctypes.get_errno() if failed else 0


def accepted(listener: Socket, made: Socket | None = None) -> Socket:
    """Accept a connection of a listening AF_UNIX socket. There is no line of Python between accept4(2) and the object
    that owns the fd, so that an exception of a signal handler loses none. Raises OSError.

    made   a socket object without an fd, which is to own it; None: a new one
    """
    return _owning(map(_first, iter(partial(accept_fd, listener), None)), made)


def accept_keeping_gil(fd: int, flags: int = 0) -> Socket | None:
    """Accept a connection of a listening AF_UNIX socket without releasing the GIL. The listener must be non-blocking,
    or shut down. None where there is no connection, with the errno in ctypes.get_errno(). `flags`: SOCK_NONBLOCK.
    """
    made = Socket.__new__(Socket)
    fds = iter(partial(libc.accept4, fd, None, None, SOCK_CLOEXEC | flags), -1)
    own = partial(Socket.__init__, made, _AF_UNIX, _SOCK_STREAM | flags, 0)
    return made if next(map(own, fds), False) is None else None


class Copy(FileIO):
    """A duplicate of a program's fd, for a short time. Not of class socket: where the program has called
    setdefaulttimeout(), that sets O_NONBLOCK, which is common to all duplicates.
    """

    def send(self, data: bytes, flags: int) -> int:
        """As send(2), without releasing the GIL; less than 0 where it fails."""
        return libc.send(self.fileno(), data, len(data), flags)

    def shutdown(self, how: int) -> int:
        """As shutdown(2); less than 0 where it fails."""
        return libc.shutdown(self.fileno(), how)

    def set_option(self, level: int, name: int, value: int) -> int:
        """As setsockopt(2) of an int; less than 0 where it fails."""
        number = ctypes.c_int(value)
        return libc.setsockopt(self.fileno(), level, name, ctypes.byref(number), ctypes.sizeof(number))

    # In place of the C class's finalizer, which would issue a ResourceWarning where an exception has prevented close().
    __del__ = FileIO.close


_new_copy: partial[Copy] = partial(Copy, mode="r+")


def copied(fds: Iterable[int]) -> Copy | None:
    """A Copy that owns the first fd of an iterator in C that opens it; None if the iterator is empty."""
    return next(map(_new_copy, fds), None)


def copy_of(fds: Iterable[int]) -> Copy:
    """The same of an iterator that is not empty."""
    return next(map(_new_copy, fds))


def duplicated(fd: int, made: Socket | None = None) -> Socket:
    """A duplicate of an AF_UNIX socket's fd, owned as accepted() says."""
    return _owning(map(_socket.dup, (fd,)), made)


def _owning(fds: Iterator[int], made: Socket | None) -> Socket:
    if made is None:
        made = Socket.__new__(Socket)
    next(map(partial(Socket.__init__, made, _AF_UNIX, _SOCK_STREAM, 0), fds))
    return made

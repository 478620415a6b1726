"""A user's fd that only other processes hold: those that this one was forked into, or has started and given it to; and
where this one was forked off, those that it was forked off by, and their others.

Separate because another process's fds are the kernel's affair. A program in C, or a Python without this library, that
was handed a connection (a CGI script's standard input, a forked worker's epoll) knows of a reset only what the kernel
says, and that takes one byte written through the fd itself (reset.py). pidfd_getfd(2) lends it to whoever may trace
the holder: the same user, and where Yama restricts that (ptrace_scope 1) an ancestor; root in any case. So only these
are looked at, and none that has nothing to do with this one. Where it is not to be had, processes that know the library
still find the errno in their table (shared_errnos.py).

To look through the fds of many processes takes time, and whoever makes connections end could make us look again and
again: a bounded part of the time is spent on it.

Any thread may call. Sources: pidfd_getfd(2), ptrace(2) "/proc/sys/kernel/yama/ptrace_scope"; proc(5)
/proc/pid/task/tid/children; sock_diag(7), linux/unix_diag.h.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Final

from utpsocket.engine.interpreter.native import Copy, Socket, copied
from utpsocket.engine.interpreter.originals import ctypes, io, os, struct, time
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import let_pass
from utpsocket.engine.kernel.high_fds import give_back, with_room

_NETLINK_SOCK_DIAG: Final = 4  # linux/netlink.h
_NLM_F_REQUEST: Final = 1
_SOCK_DIAG_BY_FAMILY: Final = 20  # linux/sock_diag.h
_NETLINK_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_REQUEST: Final = struct.Struct("=BBHIIIII")  # linux/unix_diag.h struct unix_diag_req
_ANSWER_BYTES: Final = 16  # struct unix_diag_msg
_ATTRIBUTE: Final = struct.Struct("=HH")  # struct nlattr: length, type
_SHOW_PEER: Final = 4
_PEER: Final = 2
_ANY: Final = 0xFFFF_FFFF
_PIDFD_GETFD: Final = 438  # on every architecture
_MOST_PROCESSES: Final = 1_024
_SHARE: Final = 10  # one part in so many of the time is for looking
_SAVED_NS: Final = 200_000_000  # of it, at most
_libc: Final = ctypes.CDLL(None, use_errno=True)


class _Budget:
    """Time for looking: what is not used is saved, up to a bound."""

    def __init__(self) -> None:
        self._left_ns = _SAVED_NS
        self._at_ns = 0

    def is_left(self) -> bool:
        """Whether there is some now."""
        now = time.monotonic_ns()
        self._left_ns = min(_SAVED_NS, self._left_ns + (now - self._at_ns) // _SHARE)
        self._at_ns = now
        return self._left_ns > 0

    def spend(self, since_ns: int) -> None:
        """It was spent from that moment until now."""
        self._left_ns -= time.monotonic_ns() - since_ns


_budget: Final = _Budget()
_parent_pid = 0  # of the process that this one was forked off by


def _after_fork_in_child() -> None:
    global _parent_pid
    _parent_pid = os.getppid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def peer_inode(fd: int) -> int:
    """The inode of the socket at the other end of this AF_UNIX connection; 0 where the kernel does not say."""
    inode = os.fstat(fd).st_ino
    request = _REQUEST.pack(stdlib.AF_UNIX, 0, 0, _ANY, inode, _SHOW_PEER, _ANY, _ANY)
    header = _NETLINK_HEADER.pack(_NETLINK_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0)
    try:
        with closing(with_room(partial(Socket, stdlib.AF_NETLINK, stdlib.SOCK_RAW, _NETLINK_SOCK_DIAG))) as kernel:
            kernel.settimeout(0)
            kernel.send(header + request)  # it answers before this returns
            answer = kernel.recv(4_096)
    except OSError as error:
        let_pass(error)
        return 0
    if len(answer) < _NETLINK_HEADER.size or _NETLINK_HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return 0
    at = _NETLINK_HEADER.size + _ANSWER_BYTES
    while at + _ATTRIBUTE.size <= len(answer):
        length, kind = _ATTRIBUTE.unpack_from(answer, at)
        if kind == _PEER:
            return int.from_bytes(answer[at + _ATTRIBUTE.size : at + _ATTRIBUTE.size + 4], "little")
        at += max(_ATTRIBUTE.size, length + 3 & ~3)
    return 0


def borrowed(inode: int) -> Copy | None:
    """A duplicate of the fd of another process that means the socket `inode`; None where none can be had. To be closed
    at once, and then give_back() called.
    """
    if not inode or not _budget.is_left():
        return None
    since_ns = time.monotonic_ns()
    try:
        wanted = f"socket:[{inode}]"
        for pid in _relatives():
            for number in _fds(pid, wanted):
                sock = _duplicate(pid, number, inode)
                if sock is not None:
                    return sock
        return None
    finally:
        _budget.spend(since_ns)


def _relatives() -> Iterator[int]:
    """The processes that this one has started, and theirs, as far as their parents live; the same of the process that
    this one was forked off by, and that one.
    """
    waiting = [_parent_pid if _parent_pid and _parent_pid == os.getppid() else os.getpid()]
    for _ in range(_MOST_PROCESSES):
        if not waiting:
            return
        pid = waiting.pop()
        if pid != os.getpid():
            yield pid
        try:
            for thread in with_room(partial(os.listdir, f"/proc/{pid}/task")):
                with with_room(partial(io.FileIO, f"/proc/{pid}/task/{thread}/children")) as children:
                    waiting += map(int, children.readall().split())
        except OSError as error:
            let_pass(error)
            continue  # it has ended, or there is no /proc
        finally:
            give_back()


def _fds(pid: int, wanted: str) -> Iterator[int]:
    """This process's fds of which /proc says this."""
    try:
        names = with_room(partial(os.listdir, f"/proc/{pid}/fd"))
    except OSError as error:
        let_pass(error)
        return
    for name in names:
        try:
            if os.readlink(f"/proc/{pid}/fd/{name}") == wanted:
                yield int(name)
        except OSError as error:
            let_pass(error)
            continue


def _duplicate(pid: int, number: int, inode: int) -> Copy | None:
    """The socket `inode` as that process has it under this number; None if it has it no more, or does not lend it."""
    try:
        with with_room(lambda: copied(map(os.pidfd_open, (pid,)))) as process:
            lent: Copy | None = copied(iter(partial(_libc.syscall, _PIDFD_GETFD, process.fileno(), number, 0), -1))
        if lent is None or os.fstat(lent.fileno()).st_ino == inode:
            return lent
    except AttributeError:  # no pidfd_open()
        return None
    except OSError as error:
        let_pass(error)
        return None
    lent.close()
    return None

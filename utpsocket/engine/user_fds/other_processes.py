"""Duplicates of a user's fd that only other processes have: children of this one, or relatives of a process that was
forked off.

A program in C, or a Python without this library, may have inherited a connection (a CGI script's standard input, a
forked worker's epoll). It sees a reset only if the kernel returns ECONNRESET for the fd, for which a byte must be
written through that fd (reset.py). pidfd_getfd(2) duplicates the fd of another process for a caller that may trace it:
the same user; where Yama restricts that (ptrace_scope 1) only an ancestor; root in any case. So only these processes
are searched. Where no duplicate can be had, processes with this library still find the errno in their table
(shared_errnos.py).

To search the fds of many processes takes time, and a peer that resets many connections could cause one search after the
other. So at most a tenth of the time is spent on it.

Any thread may call. Sources: pidfd_getfd(2), ptrace(2) "/proc/sys/kernel/yama/ptrace_scope"; proc(5)
/proc/pid/task/tid/children; sock_diag(7), linux/unix_diag.h.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Final

from utpsocket.engine.interpreter import libc
from utpsocket.engine.interpreter.native import Copy, Socket, copied, copy_of
from utpsocket.engine.interpreter.originals import io, os, struct, time
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import reraise_handler_error
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
# Processes that one search visits; searches may take a tenth of the time, and unused time is saved up to _MAX_SAVED_NS.
# All by feel.
_MAX_PROCESSES: Final = 1_024
_TIME_DIVISOR: Final = 10
_MAX_SAVED_NS: Final = 200_000_000


class _Budget:
    """The time for searches, as in a token bucket."""

    def __init__(self) -> None:
        self._left_ns = _MAX_SAVED_NS
        self._at_ns = 0

    def has_time_left(self) -> bool:
        """Whether there is some now."""
        now = time.monotonic_ns()
        self._left_ns = min(_MAX_SAVED_NS, self._left_ns + (now - self._at_ns) // _TIME_DIVISOR)
        self._at_ns = now
        return self._left_ns > 0

    def spend(self, since_ns: int) -> None:
        """A search has taken the time from `since_ns` (time.monotonic_ns()) until now."""
        self._left_ns -= time.monotonic_ns() - since_ns


_budget: Final = _Budget()
# The process that this one was forked off by; 0: it was not forked since this module was imported.
_parent_pid = 0


def _after_fork_in_child() -> None:
    global _parent_pid
    _parent_pid = os.getppid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def peer_inode(fd: int) -> int:
    """The inode of the socket at the other end of this AF_UNIX connection; 0 where the kernel does not answer."""
    inode = os.fstat(fd).st_ino
    request = _REQUEST.pack(stdlib.AF_UNIX, 0, 0, _ANY, inode, _SHOW_PEER, _ANY, _ANY)
    header = _NETLINK_HEADER.pack(_NETLINK_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0)
    try:
        with closing(with_room(partial(Socket, stdlib.AF_NETLINK, stdlib.SOCK_RAW, _NETLINK_SOCK_DIAG))) as kernel:
            kernel.settimeout(0)
            kernel.send(header + request)  # it answers before this returns
            answer = kernel.recv(4_096)
    except OSError as error:
        reraise_handler_error(error)
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


def duplicate_from_other_process(inode: int) -> Copy | None:
    """A duplicate of another process's fd of the socket `inode`; None where none can be had. The caller closes it soon,
    and then calls high_fds.give_back().
    """
    if not inode or not _budget.has_time_left():
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
    """The process ids of this process's descendants whose parents exist; if this process was forked off and its parent
    exists, those of the parent and of its descendants.
    """
    waiting = [_parent_pid if _parent_pid and _parent_pid == os.getppid() else os.getpid()]
    for _ in range(_MAX_PROCESSES):
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
            reraise_handler_error(error)
            continue  # it has ended, or there is no /proc
        finally:
            give_back()


def _fds(pid: int, wanted: str) -> Iterator[int]:
    """The fds of this process whose link in /proc reads `wanted`."""
    try:
        names = with_room(partial(os.listdir, f"/proc/{pid}/fd"))
    except OSError as error:
        reraise_handler_error(error)
        return
    for name in names:
        try:
            if os.readlink(f"/proc/{pid}/fd/{name}") == wanted:
                yield int(name)
        except OSError as error:
            reraise_handler_error(error)
            continue


def _duplicate(pid: int, number: int, inode: int) -> Copy | None:
    """A duplicate of that process's fd, if it still is the socket `inode`; None if not, or if it may not be had."""
    try:
        with with_room(lambda: copy_of(map(os.pidfd_open, (pid,)))) as process:
            duplicate = copied(iter(partial(libc.pidfd_getfd, process.fileno(), number, 0), -1))
        if duplicate is None or os.fstat(duplicate.fileno()).st_ino == inode:
            return duplicate
    except AttributeError:  # no pidfd_open()
        return None
    except OSError as error:
        reraise_handler_error(error)
        return None
    duplicate.close()
    return None

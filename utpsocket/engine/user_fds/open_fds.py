"""Which of the user's bound and listening sockets are still open, in any process.

Separate because it is one trick: the last close of a listening AF_UNIX socket makes no event at the other side, for
there is none. But an epoll registration ends exactly when the last copy of the fd is closed, in whatever process, and
/proc shows the registrations (docs/sockets.md §10, T10). Where /proc is not mounted, as in a chroot, or not
this process's to read, the kernel is asked by netlink, which takes longer. Where it does not answer that either, a
close() in this process is believed.

Any thread may call a HoldersWatch: what two may do at once are single operations of dicts, sets and lists.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import count
from typing import Any, Final

from utpsocket.engine.interpreter.native import Socket, epoll
from utpsocket.engine.interpreter.originals import io, os, struct
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import let_pass
from utpsocket.engine.kernel.high_fds import give_back, new_epoll, with_room

_SOCKETS_PER_EPOLL: Final = 32
_LOOKS_FOR_ROOM: Final = 2  # at full epolls, before there is another one
_NETLINK_SOCK_DIAG: Final = 4  # linux/netlink.h
_NLM_F_REQUEST: Final = 1
_SOCK_DIAG_BY_FAMILY: Final = 20  # linux/sock_diag.h
_NETLINK_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_DIAG_REQUEST: Final = struct.Struct("=BBHIIIII")  # linux/unix_diag.h struct unix_diag_req
_ANY: Final = 0xFFFF_FFFF  # state, cookie
_DIAG_BYTES: Final = 4_096
_RECHECK_US: Final = 1_000_000  # the kernel is asked this often, while a listener lives on in others only, at most
_RAREST_US: Final = 64_000_000  # and by an engine that nothing else wakes at least


Announce = Callable[[int, int, "list[int]", "list[int]"], None]
"""Have another process learn() this."""


class _Group:
    """An epoll, and the inodes of the sockets in it."""

    __slots__ = ("epoll", "index", "inodes", "is_announced", "is_full")

    def __init__(self, made: Any, index: int) -> None:
        self.epoll = made
        self.index = index
        self.inodes: set[int] = set()
        self.is_full = False  # and so not among those that are filled
        self.is_announced = not index


class HoldersWatch:
    """Epolls that nobody waits for. /proc shows one as a whole, so each has a few sockets only: then a look costs the
    same however many there are.

    Where the application registers and an engine in another process looks, each has one of these, over the same epolls:
    the first is handed over at the start, each other one with the first socket that is in it.
    """

    __slots__ = ("_announce", "_full", "_gone", "_groups", "_indices", "_roomy", "_where")

    def __init__(self, fd: int = -1, *, announce: Announce | None = None) -> None:
        """`fd`: of the first epoll, that another process fills, and tells by learn(). `announce`: so does this one."""
        self._announce = announce
        self._groups: dict[int, _Group] = {}  # by index
        self._indices = count()
        if epoll is not None:
            index = next(self._indices)
            self._groups[index] = _Group(new_epoll() if fd < 0 else epoll.fromfd(fd), index)
        self._roomy = list(self._groups.values())  # the last is filled
        self._full: deque[_Group] = deque()  # those that were full when last looked at, and some that are no more
        self._where: dict[int, _Group] = {}  # by inode
        self._gone: list[int] = []  # inodes of closed ones that the other process may remember

    @property
    def fds(self) -> list[int]:
        """The epolls' own."""
        return [int(group.epoll.fileno()) for group in list(self._groups.values()) if not group.epoll.closed]

    def watch(self, fd: int, inode: int = 0) -> None:
        """Remember the socket behind this fd of the user's, and of this inode, if the caller knows it."""
        if not self._groups:
            return
        inode = inode or os.fstat(fd).st_ino
        group = self._where.get(inode)
        if group is None:
            group = self._with_room()
            if self._announce is not None:
                gone = self._gone[:_SOCKETS_PER_EPOLL]
                self._announce(inode, group.index, gone, [] if group.is_announced else [group.epoll.fileno()])
                group.is_announced = True
                self._gone = self._gone[len(gone) :]
            group.inodes.add(inode)
            self._where[inode] = group
        try:
            group.epoll.register(fd, 0)
        except FileExistsError:
            pass

    def learn(self, inode: int, index: int, gone: list[int], fds: list[int]) -> None:
        """This one is in that epoll, whose fd comes with the first, and those nobody will ask for. What is taken of
        the fds is taken out of the list.
        """
        while fds:
            if index not in self._groups:
                self._groups[index] = _Group(epoll.fromfd(fds[0]), index)
            else:
                os.close(fds[0])
            del fds[0]
        for other in gone:
            self._where.pop(other, None)
        if index in self._groups:
            self._where[inode] = self._groups[index]

    def _with_room(self) -> _Group:
        looks = _LOOKS_FOR_ROOM
        while True:
            filled = self._roomy[-1:]
            if not filled and looks and self._full:
                # What was full for longest may have lost most.
                looks -= 1
                try:
                    group = self._full.popleft()
                except IndexError:
                    continue  # another thread has taken it
                if group.is_full and self._has_room(group):
                    group.is_full = False
                    self._roomy.append(group)
                elif group.is_full:
                    self._full.append(group)
            elif not filled:
                try:
                    group = _Group(new_epoll(), next(self._indices))
                except OSError as error:
                    let_pass(error)
                    return self._groups[0]  # no fd left: slower is better than not at all
                self._groups[group.index] = group
                self._roomy.append(group)
            elif self._has_room(filled[0]):
                return filled[0]
            else:
                filled[0].is_full = True
                self._full.append(filled[0])
                try:
                    self._roomy.remove(filled[0])
                except ValueError:
                    pass  # another thread has

    def _has_room(self, group: _Group) -> bool:
        """Nobody asks for some of its sockets any more: those that were bound, and then connected."""
        if len(group.inodes) < _SOCKETS_PER_EPOLL:
            return True
        try:
            listing = self._listing(group)
        except OSError as error:
            let_pass(error)
            return False
        for inode in list(group.inodes):
            if b"ino:%x " % inode not in listing:
                group.inodes.discard(inode)
                self._where.pop(inode, None)
                if self._announce is not None:
                    self._gone.append(inode)
        return len(group.inodes) < _SOCKETS_PER_EPOLL

    def _listing(self, group: _Group) -> bytes:
        """What /proc says of an epoll's registrations. Raises OSError."""
        try:
            with with_room(partial(io.FileIO, f"/proc/self/fdinfo/{group.epoll.fileno()}")) as registrations:
                return bytes(registrations.readall())
        finally:
            give_back()

    def is_open(self, inode: int) -> bool:
        """Whether any copy of a watched socket is open anywhere."""
        found = self._where.get(inode)
        wanted = b"ino:%x " % inode
        for group in list(self._groups.values()) if found is None else (found,):
            try:
                if wanted in self._listing(group):
                    return True
            except OSError as error:
                let_pass(error)
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    return True  # nobody can tell now: whoever asks will ask again
                if is_known(inode):
                    return True
                break  # the other epolls would say as little
            except ValueError:
                return False  # closed: the engine has ended
        if found is not None and self._where.pop(inode, None) is not None:
            found.inodes.discard(inode)
            if found.is_full:
                found.is_full = False
                self._roomy.insert(0, found)
        return False

    def close(self) -> None:
        """Nobody will ask again."""
        for group in list(self._groups.values()):
            group.epoll.close()


def is_known(inode: int) -> bool:
    """Whether the kernel knows an AF_UNIX socket of that inode, in whatever process. sock_diag(7)"""
    request = _DIAG_REQUEST.pack(stdlib.AF_UNIX, 0, 0, _ANY, inode, 0, _ANY, _ANY)
    header = _NETLINK_HEADER.pack(_NETLINK_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0)
    try:
        with closing(with_room(partial(Socket, stdlib.AF_NETLINK, stdlib.SOCK_RAW, _NETLINK_SOCK_DIAG))) as kernel:
            kernel.settimeout(0)
            kernel.send(header + request)  # it answers before this returns
            answer = kernel.recv(_DIAG_BYTES)
    except OSError as error:
        let_pass(error)
        return error.errno in (errno.EMFILE, errno.ENFILE)
    return bool(_NETLINK_HEADER.unpack_from(answer)[1] == _SOCK_DIAG_BY_FAMILY)  # else an error: ENOENT


class Rechecks:
    """Sockets that were closed here and live on elsewhere, by the port's key and their inode.

    at   when to look again at the latest: after as long again as they have lived on. Whoever holds them may die unseen,
         but mostly with connections, whose end wakes the engine, and then it looks sooner
    """

    __slots__ = ("_may_at", "_since", "_waiting", "at")

    def __init__(self) -> None:
        self._waiting: set[tuple[int, int]] = set()
        self._may_at = self._since = 0
        self.at: int | None = None

    def add(self, key: int, inode: int, *, now: int) -> None:
        """Look at this one now and then."""
        if (key, inode) not in self._waiting:
            self._waiting.add((key, inode))
            self._since = now
            self.at = self._may_at = now + _RECHECK_US

    def hurry(self) -> None:
        """One of them is closed, says the kernel: look at once."""
        self._may_at = 0

    def due(self, now: int) -> list[tuple[int, int]]:
        """Those to look at, now that the engine is awake; forget() what needs no further look."""
        if self.at is None or now < self._may_at:
            return []
        self._may_at = now + _RECHECK_US
        self.at = now + max(_RECHECK_US, min(now - self._since, _RAREST_US))
        return list(self._waiting)

    def forget(self, key: int, inode: int) -> None:
        """It is closed everywhere."""
        self._waiting.discard((key, inode))
        if not self._waiting:
            self.at = None

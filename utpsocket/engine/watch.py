"""Which of the user's bound and listening sockets are still open, in any process.

Separate because it is one trick: the last close of a listening AF_UNIX socket makes no event at the other side, for
there is none. But an epoll registration ends exactly when the last copy of the fd is closed, in whatever process, and
/proc shows the registrations (SOCKETS-EVIDENCE.md, T10). Where /proc is not mounted, as in a chroot, or not
this process's to read, the kernel is asked by netlink, which takes longer. Where it does not answer that either, a
close() in this process is believed.

Any thread may call a HoldersWatch: what two may do at once are single operations of dicts, sets and lists.
"""

from __future__ import annotations

import errno
from contextlib import closing
from functools import partial
from typing import Any, Final

from utpsocket.engine.highfd import give_back, new_epoll, with_room
from utpsocket.engine.native import Socket, epoll
from utpsocket.engine.originals import io, os, struct
from utpsocket.engine.originals import socket as stdlib

_SOCKETS_PER_EPOLL: Final = 32
_NETLINK_SOCK_DIAG: Final = 4  # linux/netlink.h
_NLM_F_REQUEST: Final = 1
_SOCK_DIAG_BY_FAMILY: Final = 20  # linux/sock_diag.h
_NETLINK_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_DIAG_REQUEST: Final = struct.Struct("=BBHIIIII")  # linux/unix_diag.h struct unix_diag_req
_ANY: Final = 0xFFFF_FFFF  # state, cookie
_DIAG_BYTES: Final = 4_096
_RECHECK_US: Final = 1_000_000  # the kernel is asked this often while a listener lives on in other processes only


class HoldersWatch:
    """Epolls that nobody waits for. /proc shows one as a whole, so each has a few sockets only: then a look costs the
    same however many there are.
    """

    __slots__ = ("_epolls", "_is_anothers", "_registered", "_roomy", "_where")

    def __init__(self, fd: int = -1, *, is_shared: bool = False) -> None:
        """`fd`: of an epoll that another process fills. `is_shared`: that one, which must be the only one."""
        self._is_anothers = fd >= 0 or is_shared
        self._epolls: list[Any] = [] if epoll is None else [new_epoll() if fd < 0 else epoll.fromfd(fd)]
        self._registered: dict[int, set[int]] = {}  # by epoll's fd: the inodes of its sockets
        self._roomy = self._epolls[:]  # the last is filled
        self._where: dict[int, Any] = {}  # by inode

    @property
    def fds(self) -> list[int]:
        """The epolls' own."""
        return [int(each.fileno()) for each in self._epolls if not each.closed]

    def watch(self, fd: int) -> None:
        """Remember the socket behind this fd of the user's."""
        if not self._epolls:
            return
        inode = os.fstat(fd).st_ino
        found = self._where.get(inode)
        if found is None:
            found = self._with_room()
            self._registered.setdefault(found.fileno(), set()).add(inode)
            self._where[inode] = found
        try:
            found.register(fd, 0)
        except FileExistsError:
            pass

    def _with_room(self) -> Any:
        while not self._is_anothers:
            roomy = self._roomy[-1:]
            if not roomy:
                try:
                    roomy.append(new_epoll())
                except OSError:
                    break  # no fd left: slower is better than not at all
                self._epolls += roomy
                self._roomy += roomy
            last = roomy[0]
            inodes = self._registered.get(last.fileno(), set())
            if len(inodes) >= _SOCKETS_PER_EPOLL:
                self._forget_closed(last, inodes)
            if len(inodes) < _SOCKETS_PER_EPOLL:
                return last
            try:
                self._roomy.remove(last)
            except ValueError:
                pass  # another thread has
        return self._epolls[-1]

    def _forget_closed(self, full: Any, inodes: set[int]) -> None:
        """Make room. Nobody asks for some of these sockets any more: those that were bound, and then connected."""
        try:
            listing = self._listing(full)
        except OSError:
            return
        for inode in list(inodes):
            if b"ino:%x " % inode not in listing:
                inodes.discard(inode)
                self._where.pop(inode, None)

    def _listing(self, each: Any) -> bytes:
        """What /proc says of an epoll's registrations. Raises OSError."""
        try:
            with with_room(partial(io.FileIO, f"/proc/self/fdinfo/{each.fileno()}")) as registrations:
                return bytes(registrations.readall())
        finally:
            give_back()

    def is_open(self, inode: int) -> bool:
        """Whether any copy of a watched socket is open anywhere."""
        found = self._where.get(inode)
        wanted = b"ino:%x " % inode
        for each in self._epolls if found is None else (found,):
            try:
                if wanted in self._listing(each):
                    return True
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    return True  # nobody can tell now: whoever asks will ask again
                if _is_known(inode):
                    return True
            except ValueError:
                return False  # closed: the engine has ended
        if found is not None and self._where.pop(inode, None) is not None:
            self._registered[found.fileno()].discard(inode)
            if found not in self._roomy:
                self._roomy.insert(0, found)
        return False

    def close(self) -> None:
        """Nobody will ask again."""
        for each in self._epolls:
            each.close()


def _is_known(inode: int) -> bool:
    """Whether the kernel knows an AF_UNIX socket of that inode, in whatever process. sock_diag(7)"""
    request = _DIAG_REQUEST.pack(stdlib.AF_UNIX, 0, 0, _ANY, inode, 0, _ANY, _ANY)
    header = _NETLINK_HEADER.pack(_NETLINK_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0)
    try:
        with closing(with_room(partial(Socket, stdlib.AF_NETLINK, stdlib.SOCK_RAW, _NETLINK_SOCK_DIAG))) as kernel:
            kernel.settimeout(0)
            kernel.send(header + request)  # it answers before this returns
            answer = kernel.recv(_DIAG_BYTES)
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)
    return bool(_NETLINK_HEADER.unpack_from(answer)[1] == _SOCK_DIAG_BY_FAMILY)  # else an error: ENOENT


class Rechecks:
    """Sockets that were closed here and live on elsewhere, by the port's key and their inode."""

    __slots__ = ("_waiting", "at")

    def __init__(self) -> None:
        self._waiting: set[tuple[int, int]] = set()
        self.at: int | None = None  # when to look again

    def add(self, key: int, inode: int, *, now: int) -> None:
        """Look at this one now and then."""
        self._waiting.add((key, inode))
        self.at = now + _RECHECK_US

    def due(self, now: int) -> list[tuple[int, int]]:
        """Those to look at now; forget() what needs no further look."""
        if self.at is None or now < self.at:
            return []
        self.at = now + _RECHECK_US
        return list(self._waiting)

    def forget(self, key: int, inode: int) -> None:
        """It is closed everywhere."""
        self._waiting.discard((key, inode))
        if not self._waiting:
            self.at = None

"""Which of the user's bound and listening sockets are still open, in any process.

The close of a listening AF_UNIX socket makes no event, since there is no other end. But an epoll registration ends when
the last duplicate of the fd is closed, in whatever process, and /proc/self/fdinfo shows the registrations of an epoll
(docs/sockets.md §10, T10). Where /proc is not mounted, as in a chroot, or may not be read, the kernel is asked by
sock_diag(7), which takes longer. Where that is not answered either, a close() in this process counts as the last.

Any thread may call a HoldersWatch: two threads at once do only single operations of dicts, sets and lists.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Final

from utpsocket.engine.interpreter.native import Socket, epoll
from utpsocket.engine.interpreter.originals import io, os, struct
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import reraise_handler_error
from utpsocket.engine.kernel.caller_calls import register
from utpsocket.engine.kernel.high_fds import give_back, high_duplicate, new_epoll, with_room
from utpsocket.protocol.build import IS_COMPILED

if TYPE_CHECKING:
    from utpsocket.engine.interpreter.originals import select

# A look at one socket reads the registrations of its whole epoll; by feel.
_SOCKETS_PER_EPOLL: Final = 32
# Of a list of registrations that are read at once; a socket's line takes about 80 bytes.
_LISTING_BYTES: Final = 16_384
# Full epolls that are searched for closed sockets before another epoll is made; by feel.
_LOOKS_FOR_ROOM: Final = 2
_NETLINK_SOCK_DIAG: Final = 4  # linux/netlink.h
_NLM_F_REQUEST: Final = 1
_SOCK_DIAG_BY_FAMILY: Final = 20  # linux/sock_diag.h
_NETLINK_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_DIAG_REQUEST: Final = struct.Struct("=BBHIIIII")  # linux/unix_diag.h struct unix_diag_req
# Of udiag_states and the cookie: all.
_ANY: Final = 0xFFFF_FFFF
_DIAG_BYTES: Final = 4_096
# While a listener is open in other processes only: looks are no closer together, and an engine that nothing else wakes
# up looks at least so often. By feel.
_RECHECK_US: Final = 1_000_000
_MAX_RECHECK_US: Final = 64_000_000


Announce = Callable[[int, int, "list[int]", "list[int]"], None]
"""Called with the arguments that on_announced() is to be called with in the engine's process."""


class _Group:
    """An epoll, and the inodes of the sockets that are registered in it."""

    __slots__ = ("epoll", "index", "inodes", "is_announced", "is_full", "listing")

    def __init__(self, made: select.epoll, index: int) -> None:
        self.epoll = made
        self.index = index
        self.inodes: set[int] = set()
        self.is_full = False  # in HoldersWatch._full, not in _not_full
        self.is_announced = not index  # the other process has its fd; the first one's from the start
        self.listing = self._opened_listing()  # its registrations, which the kernel lists anew for each read at 0

    def _opened_listing(self) -> io.FileIO | None:
        """Opened once, so that no fd number is needed to look: a program at its limit may have none left, and that may
        be because of sockets that it has closed. None where it cannot be opened now.
        """
        try:
            with io.FileIO(f"/proc/self/fdinfo/{self.epoll.fileno()}") as low:
                return next(map(io.FileIO, high_duplicate(low.fileno())))
        except OSError as error:
            reraise_handler_error(error)
            return None

    def close(self) -> None:
        """Close the epoll."""
        self.epoll.close()
        if self.listing is not None:
            self.listing.close()


class HoldersWatch:
    """Epolls whose registrations are read from /proc; no thread waits for their events. Each has at most
    _SOCKETS_PER_EPOLL sockets, so that a look at one socket takes the same time however many there are.

    With an engine in another process the application registers sockets, and the engine looks at them. Each of the two
    has a HoldersWatch, over the same epolls: the first epoll's fd is sent at the start, each other one's together with
    the first socket in it.
    """

    __slots__ = ("_announce", "_full", "_gone", "_groups", "_indices", "_not_full", "_group_by_inode")

    def __init__(self, fd: int = -1, *, announce: Announce | None = None) -> None:
        """fd         of the first epoll, if another process registers the sockets and announces them; -1: this one does
        announce   sends what is registered here to the engine's process; None: the engine is in this process
        """
        self._announce = announce
        self._groups: dict[int, _Group] = {}  # by index
        self._indices = count()
        if epoll is not None:
            index = next(self._indices)
            self._groups[index] = _Group(new_epoll() if fd < 0 else epoll.fromfd(fd), index)
        self._not_full = list(self._groups.values())  # not full; the next socket is put into the last
        self._full: deque[_Group] = deque()  # full when last looked at; some have room again (is_full is False)
        self._group_by_inode: dict[int, _Group] = {}  # the epoll that a socket is in
        self._gone: list[int] = []  # inodes of closed sockets that the other process may still have in _group_by_inode

    @property
    def fds(self) -> list[int]:
        """The epolls' fds."""
        return [group.epoll.fileno() for group in list(self._groups.values()) if not group.epoll.closed]

    def watch(self, fd: int, inode: int = 0) -> None:
        """Register the user's socket of this fd, and of this inode, if the caller knows it. Raises OSError."""
        if not self._groups:
            return
        inode = inode or os.fstat(fd).st_ino
        group = self._group_by_inode.get(inode)
        if group is None:
            filled = self._not_full[-1:]
            is_usual = bool(filled) and len(filled[0].inodes) < _SOCKETS_PER_EPOLL
            group = filled[0] if is_usual else self._with_room()
            if self._announce is not None:
                gone = self._gone[:_SOCKETS_PER_EPOLL]
                self._announce(inode, group.index, gone, [] if group.is_announced else [group.epoll.fileno()])
                group.is_announced = True
                self._gone = self._gone[len(gone) :]
            group.inodes.add(inode)
            self._group_by_inode[inode] = group
        try:
            if IS_COMPILED:
                register(group.epoll, fd, 0)
            else:
                group.epoll.register(fd, 0)
        except FileExistsError:
            pass

    def on_announced(self, inode: int, index: int, gone: list[int], fds: list[int]) -> None:
        """Another process has registered a socket.

        inode   the socket's
        index   of the epoll that it is in
        gone    inodes of sockets that are closed, and will not be asked for
        fds     the epoll's, if this is its first socket; each is removed from the list once it is owned here
        """
        while fds:
            if index not in self._groups:
                assert epoll is not None
                self._groups[index] = _Group(epoll.fromfd(fds[0]), index)
            else:
                os.close(fds[0])
            del fds[0]
        for other in gone:
            self._group_by_inode.pop(other, None)
        if index in self._groups:
            self._group_by_inode[inode] = self._groups[index]

    def _with_room(self) -> _Group:
        looks = _LOOKS_FOR_ROOM
        while True:
            filled = self._not_full[-1:]
            if not filled and looks and self._full:
                # Of the epoll that has been full for longest most sockets may be closed by now.
                looks -= 1
                try:
                    group = self._full.popleft()
                except IndexError:
                    continue  # another thread has taken it
                if group.is_full and self._has_room(group):
                    group.is_full = False
                    self._not_full.append(group)
                elif group.is_full:
                    self._full.append(group)
            elif not filled:
                try:
                    group = _Group(new_epoll(), next(self._indices))
                except OSError as error:
                    reraise_handler_error(error)
                    return self._groups[0]  # no fd left: more than _SOCKETS_PER_EPOLL, and a look takes longer
                self._groups[group.index] = group
                self._not_full.append(group)
            elif self._has_room(filled[0]):
                return filled[0]
            else:
                filled[0].is_full = True
                self._full.append(filled[0])
                try:
                    self._not_full.remove(filled[0])
                except ValueError:
                    pass  # another thread has

    def _has_room(self, group: _Group) -> bool:
        """Whether the epoll has room, once closed sockets that were not asked for are removed, such as those that were
        bound and then connected.
        """
        if len(group.inodes) < _SOCKETS_PER_EPOLL:
            return True
        try:
            listing = self._listing(group)
        except OSError as error:
            reraise_handler_error(error)
            return False
        for inode in list(group.inodes):
            if b"ino:%x " % inode not in listing:
                group.inodes.discard(inode)
                self._group_by_inode.pop(inode, None)
                if self._announce is not None:
                    self._gone.append(inode)
        return len(group.inodes) < _SOCKETS_PER_EPOLL

    def _listing(self, group: _Group) -> bytes:
        """The registrations of an epoll as /proc shows them. Raises OSError. proc(5) fdinfo"""
        path = f"/proc/self/fdinfo/{group.epoll.fileno()}"
        if group.listing is not None:
            parts = [b""]
            while part := os.pread(group.listing.fileno(), _LISTING_BYTES, sum(map(len, parts))):
                parts.append(part)
            return b"".join(parts)
        try:
            with with_room(partial(io.FileIO, path)) as registrations:
                return bytes(registrations.readall())
        finally:
            give_back()

    def is_open(self, inode: int) -> bool:
        """Whether any duplicate of a registered socket is open in any process. True if there is no fd to find out."""
        found = self._group_by_inode.get(inode)
        wanted = b"ino:%x " % inode
        for group in list(self._groups.values()) if found is None else (found,):
            try:
                if wanted in self._listing(group):
                    return True
            except OSError as error:
                reraise_handler_error(error)
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    return True  # not known now: the caller asks again
                if socket_exists(inode):
                    return True
                break  # the other epolls cannot be read either
            except ValueError:
                return False  # closed: the engine has ended
        if found is not None and self._group_by_inode.pop(inode, None) is not None:
            found.inodes.discard(inode)
            if found.is_full:
                found.is_full = False
                self._not_full.insert(0, found)
        return False

    def close(self) -> None:
        """Close the epolls."""
        for group in list(self._groups.values()):
            group.close()


def socket_exists(inode: int) -> bool:
    """Whether there is an AF_UNIX socket of that inode in any process. True if there is no fd to ask. sock_diag(7)"""
    request = _DIAG_REQUEST.pack(stdlib.AF_UNIX, 0, 0, _ANY, inode, 0, _ANY, _ANY)
    header = _NETLINK_HEADER.pack(_NETLINK_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0)
    try:
        kernel = with_room(partial(Socket, stdlib.AF_NETLINK, stdlib.SOCK_RAW, _NETLINK_SOCK_DIAG))
    except OSError as error:
        reraise_handler_error(error)
        return error.errno in (errno.EMFILE, errno.ENFILE)
    try:
        with closing(kernel):
            kernel.settimeout(0)
            kernel.send(header + request)  # it answers before this returns
            answer = kernel.recv(_DIAG_BYTES)
    except OSError as error:
        reraise_handler_error(error)
        return False
    return bool(_NETLINK_HEADER.unpack_from(answer)[1] == _SOCK_DIAG_BY_FAMILY)  # else an error: ENOENT


class Rechecks:
    """Sockets that were closed in this process and are open in others, by the port's key and their inode.

    at   when to look again at the latest, µs; None: there are none. The wait doubles, up to _MAX_RECHECK_US: another
         process mostly ends together with connections, and their end wakes the engine, which then looks earlier
    """

    __slots__ = ("_allowed_at", "_since", "_waiting", "at")

    def __init__(self) -> None:
        self._waiting: set[tuple[int, int]] = set()
        self._allowed_at = self._since = 0
        self.at: int | None = None

    def add(self, key: int, inode: int, *, now: int) -> None:
        """Look at this socket from now on, first after _RECHECK_US."""
        if (key, inode) not in self._waiting:
            self._waiting.add((key, inode))
            self._since = now
            self.at = self._allowed_at = now + _RECHECK_US

    def make_due(self) -> None:
        """The kernel has reported that one of them may be closed: due() returns them at once."""
        self._allowed_at = 0

    def due(self, now: int) -> list[tuple[int, int]]:
        """The sockets to look at now, as (key, inode); none if the last look was less than _RECHECK_US ago. forget()
        those that are closed.
        """
        if self.at is None or now < self._allowed_at:
            return []
        self._allowed_at = now + _RECHECK_US
        self.at = now + max(_RECHECK_US, min(now - self._since, _MAX_RECHECK_US))
        return list(self._waiting)

    def forget(self, key: int, inode: int) -> None:
        """Look at it no more: it is closed everywhere."""
        self._waiting.discard((key, inode))
        if not self._waiting:
            self.at = None

"""Which of the user's bound and listening sockets are still open, in any process.

Separate because it is one trick: the last close of a listening AF_UNIX socket makes no event at the other side, for
there is none. But an epoll registration ends exactly when the last copy of the fd is closed, in whatever process, and
/proc shows the registrations (SOCKETS-EVIDENCE.md, T10). Without /proc, close() in this process is believed.

watch() may be called by any thread, the rest by the engine's.
"""

from __future__ import annotations

from typing import Final

from utpsocket.engine.native import epoll

_RECHECK_US: Final = 1_000_000  # /proc is read this often while a listener lives on in other processes only


class HoldersWatch:
    """An epoll that nobody waits for."""

    __slots__ = ("_epoll", "_path")

    def __init__(self, fd: int = -1) -> None:
        """`fd`: of an epoll that another process fills."""
        self._epoll = None if epoll is None else epoll() if fd < 0 else epoll.fromfd(fd)
        self._path = "" if self._epoll is None else f"/proc/self/fdinfo/{self._epoll.fileno()}"

    @property
    def fd(self) -> int:
        """The epoll's own; -1 where there is none."""
        return -1 if self._epoll is None or self._epoll.closed else int(self._epoll.fileno())

    def watch(self, fd: int) -> None:
        """Remember the socket behind this fd of the user's."""
        if self._epoll is None:
            return
        try:
            self._epoll.register(fd, 0)
        except FileExistsError:
            pass

    def is_open(self, inode: int) -> bool:
        """Whether any copy of a watched socket is open anywhere."""
        try:
            with open(self._path, encoding="ascii") as registrations:
                return any(f"ino:{inode:x} " in line for line in registrations)
        except OSError:
            return False

    def close(self) -> None:
        """Nobody will ask again."""
        if self._epoll is not None:
            self._epoll.close()


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

"""Another socket under the user's fd number, of which whoever watches that number need not know.

Separate because dup2() alone loses what belongs to the open file and not to the number: the blocking mode, and every
epoll registration. An event loop may have registered a socket before it connects, or between two attempts, and TCP's
would still be registered. So the registrations are read from /proc and made again, with the same events and the same
data, libev's generation numbers included. Looked for only where event loops keep their sockets, non-blocking, and their
epoll: among the first fds.

Any thread may call. Sources: dup(2); epoll(7), questions 1 and 6; proc(5) on fdinfo of epoll.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterator
from typing import Any, Final

from utpsocket.engine import running_engine

_EPOLL_CTL_ADD: Final = 1
_FIRST_FDS: Final = 128
_EVENTPOLL: Final = "anon_inode:[eventpoll]"
_EVENT: Final = struct.Struct("=IQ" if platform.machine() == "x86_64" else "@IQ")  # packed on x86-64 alone
_libc: Final = ctypes.CDLL(None)


def put(fresh: Any, fd: int) -> None:
    """Have `fd` mean this socket, inheritable, blocking and registered with epolls as it was. Closes `fresh`."""
    is_blocking = os.get_blocking(fd)
    registrations = [] if is_blocking else list(_registrations(fd))
    try:
        os.dup2(fresh.fileno(), fd, inheritable=os.get_inheritable(fd))
    finally:
        fresh.close()
    os.set_blocking(fd, is_blocking)
    for epoll_fd, events, data in registrations:
        _libc.epoll_ctl(epoll_fd, _EPOLL_CTL_ADD, fd, _EVENT.pack(events, data))


def _registrations(fd: int) -> Iterator[tuple[int, int, int]]:
    """(epoll's fd, events, data) of this number's socket in each epoll of the program's."""
    loop = running_engine()
    ours = -1 if loop is None else loop.holders_watch.fd
    inode = f"ino:{os.fstat(fd).st_ino:x}"
    for epoll_fd in range(_FIRST_FDS):
        try:
            if epoll_fd == ours or os.readlink(f"/proc/self/fd/{epoll_fd}") != _EVENTPOLL:
                continue
            with open(f"/proc/self/fdinfo/{epoll_fd}", encoding="ascii") as lines:
                for line in lines:
                    fields = line.split()  # tfd: FD events: HEX data: HEX pos:… ino:HEX sdev:…
                    if fields[:2] == ["tfd:", str(fd)] and inode in fields:
                        yield epoll_fd, int(fields[3], 16), int(fields[5], 16)
        except OSError:
            continue

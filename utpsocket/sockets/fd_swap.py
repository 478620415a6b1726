"""Another socket under the user's fd number, of which whoever watches that number need not know.

Separate because dup2() alone loses what belongs to the open file and not to the number: the blocking mode, and every
epoll registration. An event loop may have registered a socket before it connects, or between two attempts, and TCP's
would still be registered. So the registrations are read from /proc and made again, with the same events and the same
data, libev's generation numbers included. Looked for only as event loops keep things, the socket non-blocking and the
epoll among the first fds; that costs 2 µs for each socket registered there.

Any thread may call. Sources: dup(2); epoll(7), questions 1 and 6; proc(5) on fdinfo of epoll.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from utpsocket.engine import running_engine
from utpsocket.engine.interpreter.native import Socket
from utpsocket.engine.interpreter.originals import ctypes, io, os, platform, struct
from utpsocket.engine.interpreter.signal_errors import let_pass
from utpsocket.engine.kernel.high_fds import give_back, with_room

_EPOLL_CTL_ADD: Final = 1
_FIRST_FDS: Final = 128
_EVENTPOLL: Final = "anon_inode:[eventpoll]"
_EVENT: Final = struct.Struct("=IQ" if platform.machine() == "x86_64" else "@IQ")  # packed on x86-64 alone
_libc: Final = ctypes.CDLL(None)


def put(fresh: Any, sock: Any) -> None:
    """Have the fd of `sock` mean `fresh`, inheritable, blocking and registered with epolls as it was. Closes `fresh`,
    and leaves what the Python object knows of itself to the caller.
    """
    fd = sock.fileno()
    is_blocking = os.get_blocking(fd)
    registrations = list(_registrations(fd)) if Socket.gettimeout(sock) == 0 else []
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
    ours = [] if loop is None else loop.holders_watch.fds
    line = re.compile(rb"^tfd: +%d events: +(\w+) data: +(\w+) .*ino:%x " % (fd, os.fstat(fd).st_ino), re.MULTILINE)
    for epoll_fd in range(_FIRST_FDS):
        try:
            if epoll_fd in ours or os.readlink(f"/proc/self/fd/{epoll_fd}") != _EVENTPOLL:
                continue
            with with_room(partial(io.FileIO, f"/proc/self/fdinfo/{epoll_fd}")) as file:
                found = line.search(file.readall())
            give_back()
            if found is not None:
                yield epoll_fd, int(found[1], 16), int(found[2], 16)
        except OSError as error:
            let_pass(error)
            continue

"""Another socket under the number of the user's descriptor, with its blocking mode and epoll registrations.

dup2() alone loses what belongs to the open file and not to the number. An event loop may have registered a socket
before it connects, or between two attempts, and a TCP socket would stay registered. So the registrations are read from
/proc and made again, with the same events and the same data (libev has generation numbers in it). They are looked for
only where an event loop may have made them: the socket does not block and the epoll is among the first descriptors.
That costs 2 µs for each socket that is registered there.

Any thread may call. Sources: dup(2); epoll(7), questions 1 and 6; proc(5) on fdinfo of epoll.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Final

from utpsocket.engine.current import running_engine
from utpsocket.engine.interpreter import libc
from utpsocket.engine.interpreter.native import Socket
from utpsocket.engine.interpreter.originals import io, os, struct
from utpsocket.engine.interpreter.signal_errors import reraise_handler_error
from utpsocket.engine.kernel.high_fds import give_back, with_room

_EPOLL_CTL_ADD: Final = 1
# Event loops open their epoll early; by feel.
_FIRST_FDS: Final = 128
_EVENTPOLL: Final = "anon_inode:[eventpoll]"
_EVENT: Final = struct.Struct("=IQ" if os.uname().machine == "x86_64" else "@IQ")  # packed on x86-64 alone


def replace(fresh: Socket, sock: Socket) -> None:
    """Make the descriptor of `sock` refer to `fresh`, inheritable, blocking and registered with epolls as it was, and
    close `fresh`. The caller must change what the Python object knows.
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
        libc.epoll_ctl(epoll_fd, _EPOLL_CTL_ADD, fd, _EVENT.pack(events, data))


def _registrations(fd: int) -> Iterator[tuple[int, int, int]]:
    """(epoll's descriptor, events, data) of this descriptor in each epoll of the program."""
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
            reraise_handler_error(error)
            continue

"""How the kernel is made to say ECONNRESET at the user's end of a pair.

Separate because it is one trick, and whoever pumps a pair needs it: the kernel answers a close over unread bytes with
ECONNRESET at the other end. Only the engine's thread calls. Sources: unix(7); SOCKETS-EVIDENCE.md 1b.
"""

from __future__ import annotations

import os
from fcntl import ioctl
from struct import pack, unpack
from termios import FIONREAD

from utpsocket.engine import native
from utpsocket.engine.identity import Identity


def leave_unread_byte(end_fd: int, identity: Identity) -> None:
    """Make sure that our end holds a byte that we have not read, before it is closed.

    Where the user left none, write one as the user: through a duplicate of its fd, after making sure that the
    number still means the same socket.
    """
    if unpack("=i", ioctl(end_fd, FIONREAD, pack("=i", 0)))[0]:
        return
    if not _write_as_user(identity.user_fd, identity.inode):
        # The number is another socket's by now; a dup may live on under one nobody told us.
        _write_as_user(_fd_of(identity.inode), identity.inode)


def _write_as_user(fd: int, inode: int) -> bool:
    """Write one byte into the socket `inode`, if `fd` still means it."""
    if fd < 0:
        return False
    try:
        duplicate = os.dup(fd)
    except OSError:
        return False
    try:
        if os.fstat(duplicate).st_ino != inode:
            return False
        native.write(duplicate, b"!")
    except OSError:
        pass  # the user has shut down writing: only the recorded errno can tell it
    finally:
        os.close(duplicate)
    return True


def _fd_of(inode: int) -> int:
    """An fd of this process that means the socket `inode`, or -1."""
    wanted = f"socket:[{inode}]"
    try:
        for name in os.listdir("/proc/self/fd"):
            try:
                if os.readlink(f"/proc/self/fd/{name}") == wanted:
                    return int(name)
            except OSError:
                continue
    except OSError:
        pass
    return -1

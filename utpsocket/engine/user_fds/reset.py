"""How the kernel is made to say ECONNRESET at the user's end of a pair.

Separate because it is one trick, and whoever pumps a pair needs it: the kernel answers a close over unread bytes with
ECONNRESET at the other end. Only the engine's thread calls. Sources: unix(7); docs/sockets.md §9.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fcntl import ioctl
from functools import partial
from stat import S_ISSOCK
from struct import pack, unpack
from termios import FIONREAD
from typing import Any, Final

from utpsocket.engine.interpreter import native
from utpsocket.engine.interpreter.native import Copy
from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import let_pass
from utpsocket.engine.kernel.high_fds import give_back, with_room
from utpsocket.engine.user_fds import other_processes, shared_errnos
from utpsocket.engine.user_fds.socket_state import Identity, Role

_MOST_FDS_TRIED: Final = 4_096
_POLLOUT: Final = 0x004
_POLLHUP: Final = 0x010
_READ_BYTES: Final = 65_536
_ROOMY_BYTES: Final = 1 << 20  # of SO_SNDBUF: four times what the kernel counts for the largest part of one send
deputy: Callable[[int, Identity, bool], bool] | None = None
"""Where the user is another process, who does there what can be done only there: leave the byte at this end, perhaps
refuse sends, and close a copy of it, which keeps the end open until then. It returns whether that process could be
asked."""


def record(identity: Identity, code: int, *, was_connecting: bool, is_after_eof: bool = False) -> None:
    """Write down how the connection ended, for Python's calls: before the kernel says anything by the fd.

    is_after_eof   the user has been told of the peer's end of file: that is what it receives, whatever came later
    """
    if not identity.is_over:
        identity.is_after_eof = is_after_eof
        identity.is_over = identity.is_reset = True
        shared_errnos.write(identity.cookie, code, is_after_eof=is_after_eof)
        identity.error = code
        if was_connecting:
            identity.role = Role.FAILED  # last: who sees this looks for the error


def close_engine_sock(end: Any, identity: Identity, code: int) -> None:
    """Close the engine's end of a user's pair. Nothing else does, but for an engine in a forked child.

    code   the errno that the connection ended with. 0 only where the user has nothing more to learn: it has been told
           of the peer's end of file after everything before it, or nobody holds its fd any more
    """
    if code and end.fileno() >= 0:
        record(identity, code, was_connecting=identity.role is Role.CONNECTING)
        try:
            leave_unread_byte(end.fileno(), identity)
        except OSError as error:
            let_pass(error)  # no fd for it, say: Python's calls find the errno all the same
    end.close()


def leave_unread_byte(engine_fd: int, identity: Identity) -> None:
    """Make sure that our end holds a byte that we have not read, before it is closed.

    Where the user left none, write one as the user: through a duplicate of its fd, after making sure that the
    number still means the same socket; or through one that a process lends which has it from this one
    (other_processes.py).
    """
    if unread_bytes(engine_fd):
        return
    if deputy is not None:
        deputy(engine_fd, identity, False)
    else:
        write_as_user(identity, engine_fd)


def refuse_sends(end: Any, identity: Identity) -> None:
    """A send of the user's fails from now on, while it has still to receive: whoever waits to send is woken."""
    if unread_bytes(end.fileno()):
        deafen(end)
        _take_all_but_one(end)
    if deputy is None:
        refuse_as_user(identity, end)
    elif not deputy(end.fileno(), identity, True):
        deafen(end)


def refuse_as_user(identity: Identity | None, end: Any) -> None:
    """As refuse_sends(), with what can be done only in the user's process, or one that the user's was forked off or
    started by.

    A send that waits in the kernel fails once our end is deaf. But poll() says that the user's fd is writable only
    while what it wrote, and we have not read, takes at most a quarter of its send buffer. So all of it is read but the
    last byte, which stays for the close. The kernel counts that one with whatever was written at one go, which is more
    than the quarter of a small buffer: the user, who sends nothing more, gets a large one.
    """
    if not unread_bytes(end.fileno()):
        write_as_user(identity, end.fileno())
    deafen(end)
    _take_all_but_one(end)
    _with_user(identity, end.fileno(), _make_writable)


def _make_writable(user: Copy) -> None:
    poller = native.poll()
    poller.register(user.fileno(), _POLLOUT)
    if not poller.poll(0):
        user.set_option(stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, _ROOMY_BYTES)


def _take_all_but_one(end: Any) -> None:
    """Read what the user wrote before our end was deaf, but for the last byte."""
    left = unread_bytes(end.fileno()) - 1
    try:
        while left > 0 and (data := end.recv(min(left, _READ_BYTES), stdlib.MSG_DONTWAIT)):
            left -= len(data)
    except OSError as error:
        let_pass(error)


def deafen(end: Any) -> None:
    """Read no more of what the user writes."""
    try:
        end.shutdown(stdlib.SHUT_RD)
    except OSError as error:
        let_pass(error)


def unread_bytes(fd: int) -> int:
    """How much has come to this end of a pair and has not been read."""
    return int(unpack("=i", ioctl(fd, FIONREAD, pack("=i", 0)))[0])


def write_as_user(identity: Identity | None, engine_fd: int) -> None:
    """Write one byte into the user's fd, at the other end of this one. In the user's process, or one that the user's
    was forked off or started by; the identity is this process's, if it has one.
    """
    _with_user(identity, engine_fd, _send_byte)


def _with_user(identity: Identity | None, engine_fd: int, act: Callable[[Copy], None]) -> None:
    """Do this to a duplicate of the user's fd, or to one that is borrowed, if there is any."""
    inode = 0 if identity is None else identity.inode
    if identity is not None and inode and _has_acted(identity.user_fd, inode, act):
        return
    # The number is another socket's by now; a dup may live on under one nobody told us.
    if (inode and _has_acted(_fd_of(inode), inode, act)) or _is_hung_up(engine_fd):
        return
    lent = other_processes.borrowed(inode or other_processes.peer_inode(engine_fd))
    if lent is not None:
        try:
            act(lent)
        finally:
            lent.close()
            give_back()


def _is_hung_up(engine_fd: int) -> bool:
    """Whether nobody holds the other end."""
    poller = native.poll()
    poller.register(engine_fd, 0)
    return any(mask & _POLLHUP for _, mask in poller.poll(0))


def _has_acted(fd: int, inode: int, act: Callable[[Copy], None]) -> bool:
    """Do this to a duplicate of the socket `inode`, if `fd` still means it."""
    if fd < 0:
        return False
    try:
        if os.fstat(fd).st_ino != inode:
            return False
        user = _duplicate(fd)
    except OSError as error:
        let_pass(error)
        return False
    try:
        try:
            if os.fstat(user.fileno()).st_ino != inode:  # the number has come to mean another meanwhile
                return False
        except OSError as error:
            let_pass(error)
            return False
        act(user)
    finally:
        user.close()
        give_back()
    return True


def _send_byte(user: Copy) -> None:
    # Where the user has shut down writing this fails: only the recorded errno can tell it.
    user.send(b"!", stdlib.MSG_DONTWAIT | stdlib.MSG_NOSIGNAL)


def _duplicate(fd: int) -> Copy:
    """A duplicate, even if the program has used up its fds."""
    return with_room(lambda: native.copied(map(os.dup, (fd,))))  # type: ignore[no-any-return]


def shut_down_as_user(identity: Identity) -> None:
    """Shut down the user's listening fd, so that nobody waits in accept() for what will never come: it says EINVAL."""
    for fd in (identity.user_fd, _fd_of(identity.inode)):
        try:
            if fd < 0 or os.fstat(fd).st_ino != identity.inode:
                continue
            user = _duplicate(fd)
        except OSError as error:
            let_pass(error)
            continue
        try:
            if os.fstat(user.fileno()).st_ino == identity.inode and user.shutdown(stdlib.SHUT_RDWR) >= 0:
                return
        except OSError as error:
            let_pass(error)
        finally:
            user.close()
            give_back()


def _fd_of(inode: int) -> int:
    return next(fds_of(inode), -1)


def fds_of(inode: int) -> Iterator[int]:
    """This process's fds that mean the socket `inode`. Any thread may call."""
    wanted = f"socket:[{inode}]"
    try:
        names = with_room(partial(os.listdir, "/proc/self/fd"))
    except OSError as error:  # no /proc
        let_pass(error)
        for number in range(_MOST_FDS_TRIED):
            try:
                found = os.fstat(number)
                if found.st_ino == inode and S_ISSOCK(found.st_mode):
                    yield number
            except OSError as error:
                let_pass(error)
                continue
        return
    for name in names:
        try:
            if os.readlink(f"/proc/self/fd/{name}") == wanted:
                yield int(name)
        except OSError as error:
            let_pass(error)
            continue

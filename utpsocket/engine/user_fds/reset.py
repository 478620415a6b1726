"""Make the kernel return ECONNRESET at the user's end of a pair.

The kernel does so at one end of an AF_UNIX connection if the other end is closed while it holds unread bytes. So
a channel closes the engine's end with an unread byte in it. Only the engine's thread calls, but for
fds_of() and, with an engine in another process, write_as_user() and refuse_as_user(). Sources: unix(7);
docs/sockets.md §9.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from stat import S_ISSOCK
from termios import FIONREAD
from typing import Final

from utpsocket.engine.interpreter import native
from utpsocket.engine.interpreter.native import Copy, Socket
from utpsocket.engine.interpreter.originals import fcntl, os, struct
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import reraise_handler_error
from utpsocket.engine.kernel.high_fds import give_back, with_room
from utpsocket.engine.user_fds import other_processes, shared_errnos
from utpsocket.engine.user_fds.socket_state import Identity, Role

# Numbers that fds_of() tries where there is no /proc; by feel.
_MAX_FDS_TRIED: Final = 4_096
_POLLOUT: Final = 0x004
_POLLHUP: Final = 0x010
_READ_BYTES: Final = 65_536
# SO_SNDBUF: four times what the kernel counts for the largest part of one send.
_ENLARGED_SNDBUF_BYTES: Final = 1 << 20
delegate: Callable[[int, Identity, bool], bool] | None = None
"""Set in an engine in a process of its own: asks the application's process to write the byte, and with True to refuse
sends. That process gets a duplicate of the engine's end, which keeps the connection open until the byte is there, and
closes it then. Called with the engine's fd, the identity and whether sends are refused; returns whether the process
could be asked."""


def record(identity: Identity, code: int, *, was_connecting: bool, is_after_eof: bool = False) -> None:
    """Record how the connection ended, for the methods of class socket. Before the fd shows anything of it.

    code             the errno
    was_connecting   connect() has not succeeded yet
    is_after_eof     the peer's end of file has been delivered: recv() goes on to return b"" in spite of the error
    """
    if not identity.is_over:
        identity.is_after_eof = is_after_eof
        identity.is_over = identity.is_reset = True
        shared_errnos.write(identity.cookie, code, is_after_eof=is_after_eof)
        identity.error = code
        if was_connecting:
            identity.role = Role.FAILED  # last: a thread that sees this reads the error


def close_engine_sock(end: Socket, identity: Identity, code: int) -> None:
    """Close the engine's end of a user's pair. Every end is closed here, but for those that a forked child inherits.

    code   the errno that the connection ended with. 0 only if no errno is to be reported: the end of file has been
           delivered after all data, or the user's fd is closed in all processes
    """
    if code and end.fileno() >= 0:
        record(identity, code, was_connecting=identity.role is Role.CONNECTING)
        try:
            leave_unread_byte(end.fileno(), identity)
        except OSError as error:
            # There is no fd for it, say: the methods of class socket find the errno in the identity
            reraise_handler_error(error)
    end.close()


def leave_unread_byte(engine_fd: int, identity: Identity) -> None:
    """Make sure that the engine's end holds an unread byte before it is closed.

    If the user has not left one there, one is written through a duplicate of the user's fd, after a check that the
    number still is the same socket; or through a duplicate from another process that has inherited it
    (other_processes.py).
    """
    if unread_bytes(engine_fd):
        return
    if delegate is not None:
        delegate(engine_fd, identity, False)
    else:
        write_as_user(identity, engine_fd)


def refuse_sends(end: Socket, identity: Identity) -> None:
    """Have the user's sends fail from now on, also one that waits, while the user may still receive."""
    if unread_bytes(end.fileno()):
        shut_down_reading(end)
        _take_all_but_one(end)
    if delegate is None:
        refuse_as_user(identity, end)
    elif not delegate(end.fileno(), identity, True):
        shut_down_reading(end)


def refuse_as_user(identity: Identity | None, end: Socket) -> None:
    """As refuse_sends(). In the user's process, or an ancestor of it.

    A send that waits in the kernel fails once the engine's end is shut down for reading. But poll() reports the user's
    fd as writable only while the unread bytes take at most a quarter of its send buffer. So all of them are read but
    the last byte, which stays for the close. The kernel counts the whole piece that this byte was written with, which
    may be more than a quarter of a small buffer. So the send buffer is enlarged, which has no other effect, as nothing
    more is sent.
    """
    if not unread_bytes(end.fileno()):
        write_as_user(identity, end.fileno())
    shut_down_reading(end)
    _take_all_but_one(end)
    _with_user(identity, end.fileno(), _make_writable)


def _make_writable(user: Copy) -> None:
    poller = native.poll()
    poller.register(user.fileno(), _POLLOUT)
    if not poller.poll(0):
        user.set_option(stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, _ENLARGED_SNDBUF_BYTES)


def _take_all_but_one(end: Socket) -> None:
    """Read what the user has written, but for the last byte."""
    left = unread_bytes(end.fileno()) - 1
    try:
        while left > 0 and (data := end.recv(min(left, _READ_BYTES), stdlib.MSG_DONTWAIT)):
            left -= len(data)
    except OSError as error:
        reraise_handler_error(error)


def shut_down_reading(end: Socket) -> None:
    """Shut the engine's end down for reading: the user's sends fail with EPIPE. unix(7)"""
    try:
        end.shutdown(stdlib.SHUT_RD)
    except OSError as error:
        reraise_handler_error(error)


def unread_bytes(fd: int) -> int:
    """Unread bytes at this end of a pair. FIONREAD"""
    return int(struct.unpack("=i", fcntl.ioctl(fd, FIONREAD, struct.pack("=i", 0)))[0])


def write_as_user(identity: Identity | None, engine_fd: int) -> None:
    """Write one byte into the user's fd, the other end of `engine_fd`. In the user's process, or an ancestor of it.

    identity   this process's, if it has one
    """
    _with_user(identity, engine_fd, _send_byte)


def _with_user(identity: Identity | None, engine_fd: int, act: Callable[[Copy], None]) -> None:
    """Call act() with a duplicate of the user's fd, from this process or another, if there is one."""
    inode = 0 if identity is None else identity.inode
    if identity is not None and inode and _act_as_user(identity.user_fd, inode, act):
        return
    if _is_hung_up(engine_fd):
        return
    # The number is another socket's by now, or it is not known: after os.dup(), or accept() in C.
    inode = inode or other_processes.peer_inode(engine_fd)
    if inode and _act_as_user(_fd_of(inode), inode, act):
        return
    duplicate = other_processes.duplicate_from_other_process(inode)
    if duplicate is not None:
        try:
            act(duplicate)
        finally:
            duplicate.close()
            give_back()


def _is_hung_up(engine_fd: int) -> bool:
    """Whether the other end is closed in all processes."""
    poller = native.poll()
    poller.register(engine_fd, 0)
    return any(mask & _POLLHUP for _, mask in poller.poll(0))


def _act_as_user(fd: int, inode: int, act: Callable[[Copy], None]) -> bool:
    """Call act() with a duplicate of `fd`, if that is the socket `inode`; whether it was."""
    if fd < 0:
        return False
    try:
        if os.fstat(fd).st_ino != inode:
            return False
        user = _duplicate(fd)
    except OSError as error:
        reraise_handler_error(error)
        return False
    try:
        try:
            if os.fstat(user.fileno()).st_ino != inode:  # the number was used again between fstat() and dup()
                return False
        except OSError as error:
            reraise_handler_error(error)
            return False
        act(user)
    finally:
        user.close()
        give_back()
    return True


def _send_byte(user: Copy) -> None:
    # This fails if the user has shut down writing. Then only the errno in the identity is left.
    user.send(b"!", stdlib.MSG_DONTWAIT | stdlib.MSG_NOSIGNAL)


def _duplicate(fd: int) -> Copy:
    """A duplicate, even if the program has used up its fds."""
    return with_room(lambda: native.copy_of(map(os.dup, (fd,))))


def shut_down_as_user(identity: Identity) -> None:
    """Shut down the user's listening fd: accept() that waits, and later ones, fail with EINVAL."""
    for fd in (identity.user_fd, _fd_of(identity.inode)):
        try:
            if fd < 0 or os.fstat(fd).st_ino != identity.inode:
                continue
            user = _duplicate(fd)
        except OSError as error:
            reraise_handler_error(error)
            continue
        try:
            if os.fstat(user.fileno()).st_ino == identity.inode and user.shutdown(stdlib.SHUT_RDWR) >= 0:
                return
        except OSError as error:
            reraise_handler_error(error)
        finally:
            user.close()
            give_back()


def _fd_of(inode: int) -> int:
    return next(fds_of(inode), -1)


def fds_of(inode: int) -> Iterator[int]:
    """This process's fds of the socket `inode`. Any thread may call."""
    wanted = f"socket:[{inode}]"
    try:
        names = with_room(partial(os.listdir, "/proc/self/fd"))
    except OSError as error:  # no /proc
        reraise_handler_error(error)
        for number in range(_MAX_FDS_TRIED):
            try:
                found = os.fstat(number)
                if found.st_ino == inode and S_ISSOCK(found.st_mode):
                    yield number
            except OSError as error:
                reraise_handler_error(error)
                continue
        return
    for name in names:
        try:
            if os.readlink(f"/proc/self/fd/{name}") == wanted:
                yield int(name)
        except OSError as error:
            reraise_handler_error(error)
            continue

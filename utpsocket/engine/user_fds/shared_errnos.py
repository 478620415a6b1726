"""The errnos that connections ended with, in memory that the engine's process shares with forked ones.

A worker that was forked may have accepted, or inherited, a connection that its parent's engine serves. Where the engine
may not trace the worker, it cannot make the kernel return ECONNRESET there (reset.py, other_processes.py), and the
worker would read an end of file. So each engine has a table in shared memory, with a slot for each connection, chosen
by its cookie. The slot is written before the user's fd shows the end. The first process that reads the errno clears
it, as getsockopt(SO_ERROR) does. If two connections have the same slot, the later one overwrites the earlier.

A program that was exec'ed, or received its fd by SCM_RIGHTS, has no such table: it sees what the kernel returns.

Any thread may call. Sources: mmap(2) MAP_SHARED; memfd_create(2).
"""

from __future__ import annotations

import mmap
from functools import partial
from itertools import repeat
from typing import Final

from utpsocket.engine.interpreter import libc
from utpsocket.engine.interpreter.originals import ctypes, io, os, struct

# Connections that end before an errno is read; by feel.
_SLOTS: Final = 1 << 14
# Cookie, errno, whether an end of file was delivered before.
_SLOT: Final = struct.Struct("=QIB3x")
AFTER_EOF: Final = 12
"""The offset of the last of these in a slot: while the byte is 0, is_after_eof() is False."""
TABLE_BYTES: Final = _SLOTS * _SLOT.size

_tables: dict[int, memoryview] = {}  # by the process id of the engine that writes it
# The process id of the engine that serves this process, and so writes into its identities as well.
_serving_pid = 0


def begin(pid: int, fd: int = -1) -> None:
    """An engine is about to serve this process.

    pid   of the engine's process
    fd    of a file from new_file(), which that process has as well; -1: the engine is in this process
    """
    global _serving_pid
    if pid not in _tables:
        _tables[pid] = memoryview(mmap.mmap(-1, TABLE_BYTES)) if fd < 0 else _mapped(fd)
    _serving_pid = pid


def _mapped(fd: int) -> memoryview:
    """Map the file. Not by class mmap, which keeps a duplicate of the fd, under one of the program's low numbers."""
    address = libc.mmap(None, TABLE_BYTES, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return memoryview((ctypes.c_char * TABLE_BYTES).from_address(address)).cast("B")


def forget_in_child() -> None:
    """After a fork, in the child, which is not served any more: it reads the errnos from the tables."""
    global _serving_pid
    _serving_pid = 0


def new_file() -> io.FileIO:
    """A file for a table that is shared with an engine in another process; the caller closes it. Raises OSError."""
    # In one expression of C, after which the object owns the fd: a signal handler may raise between any two lines.
    made = iter(partial(os.memfd_create, "utpsocket-outcomes", os.MFD_CLOEXEC), -1)
    file = next(map(io.FileIO, made, repeat("r+")))
    try:
        file.truncate(TABLE_BYTES)
    except BaseException:
        file.close()
        raise
    return file


def write(cookie: int, code: int, *, is_after_eof: bool = False) -> None:
    """Record that the connection has ended with this errno. In the engine's process, before the identity is written."""
    table = _tables.get(os.getpid())
    if table is not None and cookie:
        start = cookie % _SLOTS * _SLOT.size
        table[start : start + _SLOT.size] = _SLOT.pack(cookie, code, is_after_eof)


def is_taken(cookie: int) -> bool:
    """Whether the errno that was written for this connection has been read. In the engine's process."""
    table = _tables.get(os.getpid())
    if table is None:
        return False
    found, code, _ = _SLOT.unpack_from(table, cookie % _SLOTS * _SLOT.size)
    return bool(found == cookie and not code)


def is_after_eof(pid: int, cookie: int) -> bool:
    """Whether a connection that engine `pid` served ended with an error after the peer's end of file."""
    table = _tables.get(pid)
    if table is None or not cookie:
        return False
    found, _, after_eof = _SLOT.unpack_from(table, cookie % _SLOTS * _SLOT.size)
    return found == cookie and bool(after_eof)


def slot_of(pid: int, cookie: int) -> memoryview | None:
    """The connection's slot, which may have been overwritten by another's; None if this process lacks the table."""
    table = _tables.get(pid)
    if table is None or not cookie:
        return None
    start = cookie % _SLOTS * _SLOT.size
    return table[start : start + _SLOT.size]


def peek(pid: int, cookie: int) -> int:
    """The errno that take() would return and clear; 0: none."""
    table = _tables.get(pid)
    if table is None or not cookie:
        return 0
    found, code, _ = _SLOT.unpack_from(table, cookie % _SLOTS * _SLOT.size)
    return int(code) if found == cookie else 0


def take(pid: int, cookie: int) -> int:
    """Read and clear the errno that a connection ended with. Returns 0 if there is none; also if the engine `pid`
    serves this process, as the errno is in the identity then, and the slot is only cleared for other processes.
    """
    table = _tables.get(pid)
    if table is None or not cookie:
        return 0
    start = cookie % _SLOTS * _SLOT.size
    found, code, after_eof = _SLOT.unpack_from(table, start)
    if found != cookie:
        return 0
    table[start : start + _SLOT.size] = _SLOT.pack(cookie, 0, after_eof)
    return int(code) if pid != _serving_pid else 0

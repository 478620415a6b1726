"""The errnos that connections ended with, where processes that were forked off can read them.

Separate because three sides meet here: the engine writes, the process that it serves reads, and so does a worker that
was forked and has accepted, or inherited, a connection. There the engine cannot make the kernel say ECONNRESET where it
has no rights over the worker (reset.py, other_processes.py), and an end of file would be a lie. So each engine has a
table in memory that its forks share, with a place for each connection by its cookie; a place is written before the
user's fd is told, and the first who reads it takes the errno out, as SO_ERROR's. Two connections may want one place:
then the later one has it.

A program that was exec'ed, or was sent its fd, has no such table, and believes the kernel.

Any thread may call. Sources: mmap(2) MAP_SHARED; memfd_create(2).
"""

from __future__ import annotations

import mmap
from struct import Struct
from typing import Final

from utpsocket.engine.interpreter.originals import ctypes, os

_PLACES: Final = 1 << 14
_PLACE: Final = Struct("=QIB3x")  # cookie, errno, whether an end of file had come before
AFTER_EOF: Final = 12
"""Where in a place that is: what is 0 there need not be asked further."""
TABLE_BYTES: Final = _PLACES * _PLACE.size

_tables: dict[int, memoryview] = {}  # by the process id of the engine that writes it
_serving_pid = 0  # of the engine that writes into this process's identities as well


def begin(pid: int, fd: int = -1) -> None:
    """An engine is about to serve this process, from here or, with the fd of a file of TABLE_BYTES, from that one."""
    global _serving_pid
    if pid not in _tables:
        _tables[pid] = memoryview(mmap.mmap(-1, TABLE_BYTES)) if fd < 0 else _mapped(fd)
    _serving_pid = pid


def _mapped(fd: int) -> memoryview:
    """The file's bytes. Not by class mmap, which keeps an fd of its own, one of the program's low numbers."""
    map_file = ctypes.CDLL(None, use_errno=True).mmap
    map_file.restype = ctypes.c_void_p
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    address = map_file(None, ctypes.c_size_t(TABLE_BYTES), protection, mmap.MAP_SHARED, fd, ctypes.c_long(0))
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return memoryview((ctypes.c_char * TABLE_BYTES).from_address(address)).cast("B")


def forget_in_child() -> None:
    """After a fork, in the child: what the parent's engine says is read here from now on."""
    global _serving_pid
    _serving_pid = 0


def new_file() -> int:
    """An fd for a table that an engine in another process is to share. Raises OSError."""
    fd = os.memfd_create("utpsocket-outcomes", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, TABLE_BYTES)
    except BaseException:
        os.close(fd)
        raise
    return fd


def write(cookie: int, code: int, *, is_after_eof: bool = False) -> None:
    """The connection has ended with this errno. In the engine's process, before it writes so into the identity."""
    table = _tables.get(os.getpid())
    if table is not None and cookie:
        start = cookie % _PLACES * _PLACE.size
        table[start : start + _PLACE.size] = _PLACE.pack(cookie, code, is_after_eof)


def is_taken(cookie: int) -> bool:
    """Whether the errno that was written for this connection has been read. In the engine's process."""
    table = _tables.get(os.getpid())
    if table is None:
        return False
    found, code, _ = _PLACE.unpack_from(table, cookie % _PLACES * _PLACE.size)
    return bool(found == cookie and not code)


def is_after_eof(pid: int, cookie: int) -> bool:
    """Whether a connection of that engine's ended by an error after the peer's end of file."""
    table = _tables.get(pid)
    if table is None or not cookie:
        return False
    found, _, after_eof = _PLACE.unpack_from(table, cookie % _PLACES * _PLACE.size)
    return found == cookie and bool(after_eof)


def place_of(pid: int, cookie: int) -> memoryview | None:
    """The connection's, or another one's; None where this process has no table of that engine's."""
    table = _tables.get(pid)
    if table is None or not cookie:
        return None
    start = cookie % _PLACES * _PLACE.size
    return table[start : start + _PLACE.size]


def untold(pid: int, cookie: int) -> int:
    """The errno that take() would find."""
    table = _tables.get(pid)
    if table is None or not cookie:
        return 0
    found, code, _ = _PLACE.unpack_from(table, cookie % _PLACES * _PLACE.size)
    return int(code) if found == cookie else 0


def take(pid: int, cookie: int) -> int:
    """The errno that a connection of another process's engine ended with, once; 0: none that is known. Of this
    process's engine it is only made known to all that it has been told.
    """
    table = _tables.get(pid)
    if table is None or not cookie:
        return 0
    start = cookie % _PLACES * _PLACE.size
    found, code, after_eof = _PLACE.unpack_from(table, start)
    if found != cookie:
        return 0
    table[start : start + _PLACE.size] = _PLACE.pack(cookie, 0, after_eof)
    return int(code) if pid != _serving_pid else 0

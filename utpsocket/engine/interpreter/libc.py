"""Functions of the C library and of CPython's C API that are called by ctypes: each is declared here, and nowhere else.

Three libraries, since ctypes decides by the library what surrounds a call:

    _keeping      the GIL is not released, and errno is kept for ctypes.get_errno(). For calls that do not block
    _releasing    the GIL is released, and errno is kept
    _sleeping     the GIL is released, and errno is not kept: one call less before and after a sleep

A function that this system does not have raises ENOSYS when it is called. Any thread may call. Sources:
Doc/library/ctypes.rst (PyDLL, use_errno); the manual page of each function.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from utpsocket.engine.interpreter.originals import ctypes, os

if TYPE_CHECKING:
    from _ctypes import _CArgObject

    Pointer: TypeAlias = int | bytes | ctypes.Array[ctypes.c_char] | _CArgObject | None
    """What ctypes passes as a pointer: an address, a buffer, the result of byref(), NULL."""
    ByFd: TypeAlias = Callable[[int, Pointer, int, int], int]
    Messages: TypeAlias = Callable[[int, Pointer, int], int]

try:
    # glibc loads it when a thread ends, and aborts where it is not found, as after a chroot(), or has no fd for that.
    ctypes.CDLL("libgcc_s.so.1")
except OSError:
    pass

_keeping = ctypes.PyDLL(None, use_errno=True)
_interpreter = ctypes.PyDLL(None)  # likewise, of functions that do not set errno
_releasing = ctypes.CDLL(None, use_errno=True)
_sleeping = ctypes.CDLL(None)

_int, _uint, _ulong, _size = ctypes.c_int, ctypes.c_uint, ctypes.c_ulong, ctypes.c_size_t
_pointer, _ssize = ctypes.c_void_p, ctypes.c_ssize_t


def _missing(name: str, *_: object) -> NoReturn:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), name)


def _declared(
    library: ctypes.CDLL, name: str, *arguments: type[ctypes._CDataType], result: type[ctypes._CDataType] = _int
) -> Callable[..., int]:
    """A function of a library. Without `arguments` ctypes converts what it is given: ints to int, bytes to pointers."""
    function = getattr(library, name, None)
    if function is None:
        return partial(_missing, name)
    if arguments:
        function.argtypes = arguments
    function.restype = result
    return function  # type: ignore[no-any-return]  # ctypes finds the functions of a library at run time


# ── with the GIL kept ──

recv: ByFd = _declared(_keeping, "recv", _int, _pointer, _size, _int, result=_ssize)
send: ByFd = _declared(_keeping, "send", _int, _pointer, _size, _int, result=_ssize)
recvmsg: Messages = _declared(_keeping, "recvmsg", _int, _pointer, _int, result=_ssize)
sendmsg: Messages = _declared(_keeping, "sendmsg", _int, _pointer, _int, result=_ssize)
recvmmsg: Callable[[int, Pointer, int, int, Pointer], int] = _declared(
    _keeping, "recvmmsg", _int, _pointer, _uint, _int, _pointer
)
sendmmsg: ByFd = _declared(_keeping, "sendmmsg", _int, _pointer, _uint, _int)
socket: Callable[[int, int, int], int] = _declared(_keeping, "socket", _int, _int, _int)
connect: Messages = _declared(_keeping, "connect", _int, _pointer, _uint)
accept4: Callable[[int, Pointer, Pointer, int], int] = _declared(_keeping, "accept4", _int, _pointer, _pointer, _int)
shutdown: Callable[[int, int], int] = _declared(_keeping, "shutdown", _int, _int)
close: Callable[[int], int] = _declared(_keeping, "close", _int)
read: Messages = _declared(_keeping, "read", _int, _pointer, _size, result=_ssize)
epoll_ctl: Callable[[int, int, int, Pointer], int] = _declared(_keeping, "epoll_ctl", _int, _int, _int, _pointer)
poll_at_once: Callable[[Pointer, int, int], int] = _declared(_keeping, "poll", _pointer, _ulong, _int)
"""poll(2) with a timeout of 0."""
setsockopt: Callable[[int, int, int, Pointer, int], int] = _declared(
    _keeping, "setsockopt", _int, _int, _int, _pointer, _uint
)
ioctl: Callable[[int, int, Pointer], int] = _declared(_keeping, "ioctl", _int, _ulong, _pointer)
prctl: Callable[[int, Pointer, int, int, int], int] = _declared(
    _keeping, "prctl", _int, _pointer, _ulong, _ulong, _ulong
)

sigfillset: Callable[[Pointer], int] = _declared(_keeping, "sigfillset", _pointer)
pthread_sigmask: Callable[[int, Pointer, Pointer], int] = _declared(
    _keeping, "pthread_sigmask", _int, _pointer, _pointer
)

bytes_address: Callable[[bytes], int] = _declared(_interpreter, "PyBytes_AsString", ctypes.py_object, result=_pointer)
bytearray_address: Callable[[bytearray], int] = _declared(
    _interpreter, "PyByteArray_AsString", ctypes.py_object, result=_pointer
)
this_interpreter: Callable[[], int] = _declared(_interpreter, "PyInterpreterState_Get", result=_pointer)
main_interpreter: Callable[[], int] = _declared(_interpreter, "PyInterpreterState_Main", result=_pointer)

# ── with the GIL released ──

setns: Callable[[int, int], int] = _declared(_releasing, "setns", _int, _int)
mmap: Callable[[Pointer, int, int, int, int, int], int | None] = _declared(
    _releasing, "mmap", _pointer, _size, _int, _int, _int, ctypes.c_long, result=_pointer
)
pidfd_getfd: Callable[[int, int, int], int] = partial(
    _declared(_releasing, "syscall", ctypes.c_long, _int, _int, _uint, result=ctypes.c_long), 438
)
"""pidfd_getfd(2) by its number, the same on every architecture."""

# Without the types of the arguments: nothing is allocated for such a call (garbage_collector.py).
epoll_wait: Callable[[int, Pointer, int, int], int] = _declared(_sleeping, "epoll_wait")
poll: Callable[[Pointer, int, int], int] = _declared(_sleeping, "poll")

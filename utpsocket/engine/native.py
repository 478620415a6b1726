"""The interpreter's own threads and polling, whatever gevent or eventlet put in their place.

Separate because the engine must stay on a real operating-system thread in any order of patching (SOCKETS.md §5):
every module of this room takes what blocks from here. Any thread may import it.
"""

from __future__ import annotations

import _socket
import _thread
import ctypes
import select
import sys
from typing import Any

_MODULES = {"_thread": _thread, "select": select}


def original(module: str, name: str) -> Any:
    """The attribute as CPython made it: gevent's and eventlet's records first, since they replace it in place."""
    gevent_monkey = sys.modules.get("gevent.monkey")
    if gevent_monkey is not None:
        return gevent_monkey.get_original(module, name)
    eventlet_patcher = sys.modules.get("eventlet.patcher")
    if eventlet_patcher is not None:
        return getattr(eventlet_patcher.original(module), name)
    return getattr(_MODULES[module], name)


Socket: Any = _socket.socket
"""The C class below socket.socket, which nobody patches."""

start_new_thread = original("_thread", "start_new_thread")
get_ident = original("_thread", "get_ident")
allocate_lock = original("_thread", "allocate_lock")
epoll = original("select", "epoll") if hasattr(select, "epoll") else None
poll = original("select", "poll")

_libc = ctypes.PyDLL(None)
_libc.recv.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.recv.restype = ctypes.c_ssize_t
_MSG_DONTWAIT = 0x40


def recv_keeping_gil(fd: int, count: int) -> int:
    """Receive and drop up to `count` bytes without giving other threads a turn; how many, 0 or less for none."""
    buffer = ctypes.create_string_buffer(count)
    return int(_libc.recv(fd, buffer, count, _MSG_DONTWAIT))

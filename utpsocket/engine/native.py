"""The interpreter's own threads and polling, whatever gevent or eventlet put in their place.

Separate because the engine must stay on a real operating-system thread in any order of patching (SOCKETS.md §5):
every module of this room takes what blocks from here. Any thread may import it.
"""

from __future__ import annotations

import _socket
import _thread
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
epoll = original("select", "epoll")
poll = original("select", "poll")

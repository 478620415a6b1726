"""The same socket for green threads; the engine stays on a real thread of the operating system.

Two ways, of which a program needs one:

    from utpsocket import green
    green.hook_gevent()                     # gevent itself speaks uTP from now on: gevent.socket, gevent.server,
                                            # gevent.pywsgi, gevent.ssl and what gevent.monkey put in place of socket
    green.hook_eventlet()                   # the same for eventlet

    from utpsocket.green import socket      # or a cooperative socket beside gevent's own, which stay TCP's;
    import utpsocket.green as socket        # all of gevent.socket, with uTP where utpsocket has it

utpsocket.monkey.patch_all() hooks both by itself, when they are imported, in whatever order patching is done, and
its rules (only=, fallback=, ...) hold for what it hooks. A hook changes what new sockets are; those that exist go on as
they are, also after unhook_gevent() and unhook_eventlet(). gevent.server.StreamServer makes its connections with
gevent's own class, so a server needs the hook.

A hub that waits for the interpreter's lock runs late. So while a hook is set, or the cooperative socket is imported,
the switch interval is 0.1 ms whenever the engine works (utpsocket.engine.interpreter.switch_interval), and the
program's own at all other times.

What differs from TCP: close() with SO_LINGER and a time waits in the greenlet that closes, while TCP's blocks the hub;
where gevent closes in the hub itself (another greenlet was waiting on the socket) it does not wait at all.

Out of reach: `utpsocket.socket` in a greenlet blocks the hub as any socket that gevent does not know; use this one.
TLS under eventlet needs utpsocket.monkey.patch_all(): with the hook alone eventlet's SSL sockets, which are subclasses
of the standard library's, would return AF_UNIX names as addresses.

The names that need gevent are loaded when they are asked for. Sources: docs/sockets.md §5; gevent's _socket3.py and
_socketcommon.py; eventlet's greenio/base.py.
"""

from __future__ import annotations

import importlib
from typing import Any

from utpsocket.green.hooks import hook_eventlet, hook_gevent, unhook_eventlet, unhook_gevent

__all__ = ["hook_eventlet", "hook_gevent", "unhook_eventlet", "unhook_gevent"]


def __getattr__(name: str) -> Any:
    """The cooperative names: ours, else gevent.socket's."""
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(importlib.import_module("utpsocket.green.cooperative"), name)

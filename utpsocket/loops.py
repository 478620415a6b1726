"""uvloop over uTP: its loop makes and drives sockets in C, where nothing of ours is seen.

libuv knows a TCP handle by its address family, and a uTP socket's fd is AF_UNIX; so what asyncio's own loops get from
the class socket.socket alone, uvloop silently takes to kernel TCP. But its pipe handles read, write and accept on any
AF_UNIX stream: libuv.py says how they are used, and here is how a loop comes by that.

    install_uvloop()    uvloop.Loop is changed in place, as utpsocket.monkey changes socket.socket, whose patch it
                        follows: without that patch nothing changes
    new_event_loop()    needs no patch: a uvloop loop whose own connections and servers are uTP's

uvloop is optional: it is imported here only when the program asks for a loop. Any thread may call.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any


def new_event_loop() -> Any:
    """A uvloop loop whose connections and servers are uTP's, for asyncio.Runner(loop_factory=…) and uvloop.run()."""
    return loop_class()()


_made_class: list[Any] = []


def loop_class() -> Any:
    """The class of new_event_loop(): a uvloop.Loop. Raises ImportError where there is no uvloop."""
    if not _made_class:
        from utpsocket.integrations.uvloop import libuv
        from utpsocket.sockets import shim

        bases = (libuv.Methods, importlib.import_module("uvloop").Loop)
        _made_class.append(type("Loop", bases, {"_utp_class": shim.socket, "__module__": __name__}))
    return _made_class[0]


def install_uvloop() -> None:
    """From now on uvloop's loops, those that run already too, make what the class socket.socket makes. Idempotent.

    utpsocket.monkey calls this as soon as uvloop has been imported. Raises ImportError where there is no uvloop.
    """
    from utpsocket.integrations.uvloop.libuv import Methods

    cls = importlib.import_module("uvloop").Loop
    for name in _method_names():
        setattr(cls, name, vars(Methods)[name])


def uninstall_uvloop() -> None:
    """Take back install_uvloop(). Transports made meanwhile keep working."""
    cls = getattr(sys.modules.get("uvloop"), "Loop", None)
    if cls is not None and "_utp_class" in vars(cls):
        for name in _method_names():
            delattr(cls, name)


def _method_names() -> list[str]:
    from utpsocket.integrations.uvloop.libuv import Methods

    return [name for name in vars(Methods) if not name.startswith("__")]

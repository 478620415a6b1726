"""uvloop over uTP.

uvloop makes its sockets in C, where a Python class in place of socket.socket is not seen, so that its connections would
be TCP's. libuv's pipe handles, however, read, write and accept on any AF_UNIX stream, and the descriptor of a uTP
socket is one (utpsocket/integrations/uvloop/libuv.py). Two ways to use them:

    install_uvloop()    changes uvloop.Loop in place. It follows the patch of utpsocket.monkey, which calls it: without
                        that patch nothing changes
    new_event_loop()    needs no patch: a uvloop loop whose own connections and servers are uTP's

uvloop is optional and is imported when one of these is called. Any thread may call.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

__all__ = ["install_uvloop", "loop_class", "new_event_loop", "uninstall_uvloop"]


def new_event_loop() -> AbstractEventLoop:
    """Make a uvloop event loop whose connections and servers are uTP's. The process need not be patched.

    Returns: the loop, of the class that loop_class() returns.
    Raises: ImportError where uvloop is not installed.
    Next: loop.run_until_complete(), or asyncio.run(main(), loop_factory=new_event_loop) on Python 3.12 and later.
    Source: docs/guide/asyncio.md §2.
    """
    return loop_class()()


_made_class: list[type[AbstractEventLoop]] = []


def loop_class() -> type[AbstractEventLoop]:
    """Get the class of which new_event_loop() makes its loops.

    Returns: a subclass of uvloop.Loop, always the same.
    Raises: ImportError where uvloop is not installed.
    Source: docs/guide/asyncio.md §2.
    """
    if not _made_class:
        from utpsocket.integrations.uvloop import libuv
        from utpsocket.sockets import shim

        bases = (libuv.Methods, importlib.import_module("uvloop").Loop)
        _made_class.append(type("Loop", bases, {"_utp_class": shim.socket, "__module__": __name__}))
    return _made_class[0]


def install_uvloop() -> None:
    """Have all loops of uvloop, those that run already included, make what the class socket.socket makes.

    utpsocket.monkey calls this when uvloop is imported. Without its patch the loops still make TCP sockets. A second
    call changes nothing.

    Raises: ImportError where uvloop is not installed.
    Next: utpsocket.monkey.patch_all(), where it was not called; uninstall_uvloop() to undo.
    Source: docs/guide/asyncio.md §2.
    """
    from utpsocket.integrations.uvloop.libuv import Methods

    cls = importlib.import_module("uvloop").Loop
    for name in _method_names():
        setattr(cls, name, vars(Methods)[name])


def uninstall_uvloop() -> None:
    """Undo install_uvloop(). Transports that exist go on as they are. Without install_uvloop() it does nothing.

    Raises: nothing.
    Source: docs/guide/asyncio.md §2.
    """
    cls = getattr(sys.modules.get("uvloop"), "Loop", None)
    if cls is not None and "_utp_class" in vars(cls):
        for name in _method_names():
            delattr(cls, name)


def _method_names() -> list[str]:
    from utpsocket.integrations.uvloop.libuv import Methods

    return [name for name in vars(Methods) if not name.startswith("__")]

"""Copies of stdlib modules, as they were when utpsocket was imported.

A program may replace os.close, time.monotonic or io.FileIO at any time; tests of programs often do. Sockets over the
kernel's TCP are not affected by that, and ours must not be. So the modules that run while sockets are in use import
these copies: a name that is replaced in `os` is unchanged in the copy.

Only the names are copied, not the objects: os.environ is the program's. The modules that patch the stdlib (monkey/,
green/) need the modules themselves. Any thread may import this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import _socket as _socket
    import ctypes as ctypes
    import fcntl as fcntl
    import io as io
    import marshal as marshal
    import os as os
    import posix as posix
    import resource as resource
    import select as select
    import signal as signal
    import socket as socket
    import struct as struct
    import time as time
else:
    from importlib import import_module
    from types import ModuleType

    def _copy(name):
        module = import_module(name)
        copy = ModuleType(name)
        vars(copy).update(vars(module))
        return copy

    _socket = _copy("_socket")
    ctypes = _copy("ctypes")
    fcntl = _copy("fcntl")
    io = _copy("io")
    marshal = _copy("marshal")
    os = _copy("os")
    posix = _copy("posix")
    resource = _copy("resource")
    select = _copy("select")
    signal = _copy("signal")
    socket = _copy("socket")
    struct = _copy("struct")
    time = _copy("time")

COPIED = (
    "_socket",
    "ctypes",
    "fcntl",
    "io",
    "marshal",
    "os",
    "posix",
    "resource",
    "select",
    "signal",
    "socket",
    "struct",
    "time",
)
"""The names of the modules that stand here as copies."""

__all__ = ["COPIED", *COPIED]

"""The stdlib modules that are needed while sockets are in use, as they were when utpsocket was imported.

A program may put something else in the place of os.close, time.monotonic or io.FileIO at any time, as the tests of
many do for a while. The kernel's TCP takes no notice, and neither must we. So the modules that run while sockets are in
use import these copies instead of the modules: a name that is replaced in `os` stays what it was in the copy.

What is an object of its own is not copied: os.environ is the program's. The modules that exist to patch the stdlib
(monkey, green, dropin) need the modules themselves. Any thread may import this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import _socket as _socket
    import ctypes as ctypes
    import hmac as hmac
    import io as io
    import marshal as marshal
    import os as os
    import platform as platform
    import posix as posix
    import random as random
    import resource as resource
    import secrets as secrets
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
    hmac = _copy("hmac")
    io = _copy("io")
    marshal = _copy("marshal")
    os = _copy("os")
    platform = _copy("platform")
    posix = _copy("posix")
    random = _copy("random")
    resource = _copy("resource")
    secrets = _copy("secrets")
    select = _copy("select")
    signal = _copy("signal")
    socket = _copy("socket")
    struct = _copy("struct")
    time = _copy("time")

COPIED = (
    "_socket",
    "ctypes",
    "hmac",
    "io",
    "marshal",
    "os",
    "platform",
    "posix",
    "random",
    "resource",
    "secrets",
    "select",
    "signal",
    "socket",
    "struct",
    "time",
)
"""The names of the modules that stand here as copies."""

__all__ = ["COPIED", *COPIED]

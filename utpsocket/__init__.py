"""utpsocket: the standard library's `socket` module with uTP (BEP 29) in place of TCP.

`import utpsocket as socket` replaces the module: every public name of the running interpreter's socket module is here.
The class `socket` and the functions that make stream sockets use uTP; all other names are the standard library's.

    socket, create_connection(), create_server(), fromfd(), …    as in the standard library, over uTP
    incoming(listener)    the incoming connections one by one
    info(sock)            state, addresses and figures of a connection, and how it ended
    SOL_UTP, UTP_…        socket options of uTP

Beside it: utpsocket.monkey patches a process, utpsocket.green is for gevent and eventlet, utpsocket.loops for uvloop,
utpsocket.stats has statistics, and utpsocket.options a table of what each socket option does.
"""

from __future__ import annotations

import socket as _stdlib
import sys as _sys
from importlib import import_module as _import_module
from socket import *  # noqa: F403  # a drop-in namespace: whatever this interpreter's module offers
from typing import TYPE_CHECKING, Any

# Checked before any of our modules is imported, whose syntax an older Python could not read. The name is for runpy:
# `python3 -m utpsocket` makes one line without a traceback of an ImportError with the name of the package it was given.
if _sys.version_info < (3, 10):
    raise ImportError(f"utpsocket needs Python 3.10 or later; this is {_sys.version.split()[0]}", name="utpsocket")
if not _sys.platform.startswith(("linux", "android")):
    raise ImportError(
        f"utpsocket needs Linux so far: {_sys.platform} has no abstract AF_UNIX names, by which any process knows which"
        " uTP socket a file descriptor is",
        name="utpsocket",
    )
try:
    # An interpreter may be built without it, or refuse it to its subinterpreters.
    import ctypes as _ctypes  # noqa: F401
except ImportError as _error:
    raise ImportError(f"utpsocket needs ctypes: {_error}", name="utpsocket") from None

from utpsocket import _pure as _pure  # first: it decides which build the modules after it are imported from
from utpsocket.integrations import pickling as _pickling
from utpsocket.integrations import tls_hook as _tls_hook
from utpsocket.options import (
    SOL_UTP,
    UTP_CONGESTION,
    UTP_DROPS,
    UTP_INFO,
    UTP_KEEPALIVE,
    UTP_MAX_MTU,
    UTP_SHARE_PORT,
    UTP_TARGET_DELAY,
)
from utpsocket.sockets.functions import REPLACEMENTS as _REPLACEMENTS
from utpsocket.sockets.functions import incoming

if TYPE_CHECKING:
    # To a type checker the class and its functions are the standard library's own, as are their arguments and results:
    # `import utpsocket as socket` changes no type of a program.
    from socket import socket as socket

    from utpsocket.stats import ConnectionStats, info
else:
    from utpsocket.sockets.shim import socket

globals().update(_REPLACEMENTS)
_tls_hook.install()
_pickling.install()

__version__ = "0.1.0"
__all__ = [
    *_stdlib.__all__,
    "ConnectionStats",
    "SOL_UTP",
    "UTP_CONGESTION",
    "UTP_DROPS",
    "UTP_INFO",
    "UTP_KEEPALIVE",
    "UTP_MAX_MTU",
    "UTP_SHARE_PORT",
    "UTP_TARGET_DELAY",
    "incoming",
    "info",
    "socket",
]
# Loaded when they are used, as they need the engine (docs/design.md §15).
_OF_STATS = ("ConnectionStats", "info")


if not TYPE_CHECKING:  # which shall see a name that is misspelled

    def __getattr__(name: str) -> Any:
        """utpsocket.stats and its names, which are loaded when they are used; and names that the standard library's
        module has beside its __all__, also private ones, which programs use.
        """
        if name == "stats" or name in _OF_STATS:
            stats = _import_module("utpsocket.stats")
            return stats if name == "stats" else getattr(stats, name)
        return getattr(_stdlib, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_OF_STATS, *dir(_stdlib)})

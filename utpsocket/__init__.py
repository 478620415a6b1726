"""utpsocket: the stdlib's `socket` with uTP (BEP 29) in place of TCP.

`import utpsocket as socket` works: every public name of the running interpreter's socket module is here, `socket` and
what makes stream sockets speak uTP, and all else is the stdlib's own.
"""

from __future__ import annotations

import socket as _stdlib
from socket import *  # noqa: F403  # a drop-in namespace: whatever this interpreter's module offers
from typing import Any

from utpsocket import passing as _passing
from utpsocket import teachssl as _teachssl
from utpsocket.dropin import REPLACEMENTS as _REPLACEMENTS
from utpsocket.dropin import incoming
from utpsocket.options import SOL_UTP, UTP_CONGESTION, UTP_INFO, UTP_MAX_MTU, UTP_SHARE_PORT
from utpsocket.shim import socket

globals().update(_REPLACEMENTS)
_teachssl.install()
_passing.install()

__version__ = "0.1.0"
__all__ = [
    *_stdlib.__all__,
    "SOL_UTP",
    "UTP_CONGESTION",
    "UTP_INFO",
    "UTP_MAX_MTU",
    "UTP_SHARE_PORT",
    "incoming",
    "socket",
]


def __getattr__(name: str) -> Any:
    """Names the stdlib's module has beside its __all__: private ones too, since programs use them."""
    return getattr(_stdlib, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_stdlib)})

"""Sockets on their way to other processes: what multiprocessing needs to know to send one of ours.

Separate because it is multiprocessing's own protocol. A plain pickle of a socket is a TypeError, as the stdlib's; only
its ForkingPickler, which passes the fd along, may. In the other process the names in the kernel tell who is who.

Sources: CPython's Lib/multiprocessing/reduction.py; SOCKETS.md §5.
"""

from __future__ import annotations

from multiprocessing import reduction
from typing import Any

from utpsocket import shim


def _rebuild(duplicate: Any) -> shim.socket:
    return shim.socket(fileno=duplicate.detach())


def _reduce(sock: shim.socket) -> tuple[Any, tuple[Any]]:
    return _rebuild, (reduction.DupFd(sock.fileno()),)


def install() -> None:
    """Tell multiprocessing. Idempotent. A module patched while it is being imported registers its own class later."""
    if hasattr(reduction, "register"):
        reduction.register(shim.socket, _reduce)

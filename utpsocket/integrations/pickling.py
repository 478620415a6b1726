"""Sockets on their way to other processes: what multiprocessing needs to know to send one of ours.

Separate because it is multiprocessing's own protocol. A plain pickle of a socket is a TypeError, as the stdlib's; only
its ForkingPickler, which passes the fd along, may. In the other process the names in the kernel tell who is who.

Sources: CPython's Lib/multiprocessing/reduction.py; docs/sockets.md §5.
"""

from __future__ import annotations

from multiprocessing import reduction
from typing import Any

from utpsocket.sockets import shim


def _rebuild(duplicate: Any) -> shim.socket:
    return shim.socket(fileno=duplicate.detach())


def _reduce(sock: Any) -> tuple[Any, tuple[Any]]:
    return _rebuild, (reduction.DupFd(sock.fileno()),)


def _reduce_patched(sock: Any) -> tuple[Any, tuple[Any, ...]]:
    if sock._utp is None:
        reduced: tuple[Any, tuple[Any, ...]] = _stdlib_reduce(sock)
        return reduced
    return _reduce(sock)


_stdlib_reduce: Any = getattr(reduction, "_reduce_socket", None)


def register_patched(cls: Any) -> None:
    """Tell multiprocessing of a class, not shim.socket's kin, whose sockets may be uTP's."""
    if hasattr(reduction, "register"):
        reduction.register(cls, _reduce_patched)


def unregister_patched(cls: Any) -> None:
    """The stdlib's class is only the stdlib's again."""
    if hasattr(reduction, "register"):
        reduction.register(cls, _stdlib_reduce)


def install() -> None:
    """Tell multiprocessing. Idempotent. A module patched while it is being imported registers its own class later."""
    if hasattr(reduction, "register"):
        reduction.register(shim.socket, _reduce)

"""uTP sockets passed to other processes by multiprocessing.

To pickle a socket is a TypeError, as for the standard library's. Only multiprocessing's ForkingPickler, which passes
the descriptor along, may do it. In the other process the kernel's names show which uTP socket the descriptor is.

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
    """Register a class that is no subclass of shim.socket and whose sockets may be uTP's."""
    if hasattr(reduction, "register"):
        reduction.register(cls, _reduce_patched)


def unregister_patched(cls: Any) -> None:
    """Register the standard library's function for its class again."""
    if hasattr(reduction, "register"):
        reduction.register(cls, _stdlib_reduce)


def install() -> None:
    """Register our class with multiprocessing, if its module is complete: one that is being imported while the process
    is patched registers its own class later. A second call does nothing.
    """
    if hasattr(reduction, "register"):
        reduction.register(shim.socket, _reduce)

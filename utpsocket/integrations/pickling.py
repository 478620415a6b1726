"""uTP sockets passed to other processes by multiprocessing.

To pickle a socket is a TypeError, as for the standard library's. Only multiprocessing's ForkingPickler, which passes
the descriptor along, may do it. In the other process the kernel's names show which uTP socket the descriptor is.

Sources: CPython's Lib/multiprocessing/reduction.py; docs/sockets.md §5.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import reduction
from typing import Protocol

from utpsocket.engine.interpreter.native import StdlibSocket
from utpsocket.sockets import shim

# A function that makes the socket in the other process, and its arguments.
Reduced = tuple[Callable[..., StdlibSocket], tuple[object, ...]]


class _Duplicate(Protocol):
    """What reduction.DupFd() returns: an object that can be pickled and has the descriptor in the other process."""

    def detach(self) -> int: ...


def _rebuild(duplicate: _Duplicate) -> shim.socket:
    return shim.socket(fileno=duplicate.detach())


def _reduce(sock: StdlibSocket) -> Reduced:
    return _rebuild, (reduction.DupFd(sock.fileno()),)


def _reduce_patched(sock: StdlibSocket) -> Reduced:
    if getattr(sock, "_utp", None) is None:
        return _stdlib_reduce(sock)
    return _reduce(sock)


# None while the module is being imported; then nothing is registered.
_stdlib_reduce: Callable[[StdlibSocket], Reduced] = getattr(reduction, "_reduce_socket", None)  # type: ignore[assignment]


def register_patched(cls: type[StdlibSocket]) -> None:
    """Register a class that is no subclass of shim.socket and whose sockets may be uTP's."""
    if hasattr(reduction, "register"):
        reduction.register(cls, _reduce_patched)


def unregister_patched(cls: type[StdlibSocket]) -> None:
    """Register the standard library's function for its class again."""
    if hasattr(reduction, "register"):
        reduction.register(cls, _stdlib_reduce)


def install() -> None:
    """Register our class with multiprocessing, if its module is complete: one that is being imported while the process
    is patched registers its own class later. A second call does nothing.
    """
    if hasattr(reduction, "register"):
        reduction.register(shim.socket, _reduce)

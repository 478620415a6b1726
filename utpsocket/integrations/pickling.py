"""uTP sockets passed to other processes by multiprocessing.

To pickle a socket is a TypeError, as for the standard library's. Only multiprocessing's ForkingPickler, which passes
the descriptor along, may do it. In the other process the kernel's names show which uTP socket the descriptor is.

multiprocessing takes as long to import as a part of ours and is seldom used, so our classes are registered with it when
the program imports it, and not before.

Sources: CPython's Lib/multiprocessing/reduction.py; docs/sockets.md §5.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final, Protocol

from utpsocket.engine.interpreter.native import StdlibSocket
from utpsocket.integrations.import_hook import AfterImport, is_being_imported
from utpsocket.sockets import shim

# A function that makes the socket in the other process, and its arguments.
Reduced = tuple[Callable[..., StdlibSocket], tuple[object, ...]]

_MODULE: Final = "multiprocessing.reduction"
_reducers: Final[dict[type, Callable[[StdlibSocket], Reduced]]] = {}  # of what is registered, or will be
_watch: Final = AfterImport({})


class _Duplicate(Protocol):
    """What reduction.DupFd() returns: an object that can be pickled and has the descriptor in the other process."""

    def detach(self) -> int: ...


def _rebuild(duplicate: _Duplicate) -> shim.socket:
    return shim.socket(fileno=duplicate.detach())


def _reduce(sock: StdlibSocket) -> Reduced:
    return _rebuild, (sys.modules[_MODULE].DupFd(sock.fileno()),)


def _reduce_patched(sock: StdlibSocket) -> Reduced:
    if getattr(sock, "_utp", None) is None:
        reduced: Reduced = sys.modules[_MODULE]._reduce_socket(sock)
        return reduced
    return _reduce(sock)


def _register(cls: type, reducer: Callable[[StdlibSocket], Reduced]) -> None:
    _reducers[cls] = reducer
    if _is_complete():
        _register_all()
    elif _MODULE not in _watch.calls:
        _watch.calls[_MODULE] = _register_all
        _watch.install()


def _is_complete() -> bool:
    return _MODULE in sys.modules and not is_being_imported(_MODULE)


def _register_all() -> None:
    from multiprocessing import reduction

    for cls, reducer in _reducers.items():
        reduction.register(cls, reducer)


def register_patched(cls: type[StdlibSocket]) -> None:
    """Register a class that is no subclass of shim.socket and whose sockets may be uTP's."""
    _register(cls, _reduce_patched)


def unregister_patched(cls: type[StdlibSocket]) -> None:
    """Register the standard library's function for its class again."""
    _reducers.pop(cls, None)
    if _is_complete():
        from multiprocessing import reduction

        reduction.register(cls, reduction._reduce_socket)  # type: ignore[attr-defined]


def install() -> None:
    """Register our class with multiprocessing, at once or when it is imported. A second call does nothing."""
    _register(shim.socket, _reduce)

"""Put utpsocket in place of `socket`, for programs that never heard of it.

    import utpsocket.monkey
    utpsocket.monkey.patch_all()

Every AF_INET and AF_INET6 stream socket that the process makes from then on speaks uTP: those of modules imported
earlier too, because the class socket.socket is changed in place and keeps its identity. Sockets that exist already go
on as they are. patch_* may be called twice; unpatch() restores the class, and sockets made meanwhile keep working.

Out of reach: programs that connect in C (libpq, gRPC, libcurl's own connect), and child processes that do not call
patch_all() themselves.

Sources: SOCKETS.md §5, §8; gevent.monkey, whose names are kept where they mean the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from weakref import WeakKeyDictionary

from utpsocket import shim
from utpsocket.engine import engine
from utpsocket.engine.native import StdlibSocket

_MISSING: Final = object()
_NOT_METHODS: Final = {
    "__module__",
    "__doc__",
    "__slots__",
    "__dict__",
    "__weakref__",
    "__annotations__",
    "_utp",
    "__static_attributes__",
    "__firstlineno__",
}
_saved: dict[str, Any] = {}
_identities: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


class _IdentityAttribute:
    """The attribute `_utp` of a class that has no room for one: the stdlib's socket has slots."""

    def __get__(self, sock: Any, owner: Any = None) -> Any:
        return self if sock is None else _identities.get(sock)

    def __set__(self, sock: Any, identity: Any) -> None:
        if identity is None:
            _identities.pop(sock, None)
        else:
            _identities[sock] = identity


def patch_all() -> None:
    """Patch all there is to patch: today, socket (and with it ssl, whose sockets are socket.sockets)."""
    patch_socket()


def patch_socket() -> None:
    """Change the class socket.socket in place: its AF_INET and AF_INET6 streams speak uTP from now on. Idempotent.

    Starts the engine, since no thread can be started while the interpreter ends.
    """
    if _saved:
        return
    cls: Any = StdlibSocket
    _saved["_utp"] = _MISSING
    cls._utp = _IdentityAttribute()
    for name, member in vars(shim.socket).items():
        if name not in _NOT_METHODS:
            _saved[name] = vars(cls).get(name, _MISSING)
            setattr(cls, name, member)
    engine()


def unpatch() -> None:
    """Restore the class. uTP sockets made meanwhile keep working: their class becomes utpsocket.socket's kin."""
    if not _saved:
        return
    cls: Any = StdlibSocket
    for name, member in _saved.items():
        if member is _MISSING:
            delattr(cls, name)
        else:
            setattr(cls, name, member)
    _saved.clear()


def is_patched() -> bool:
    """Whether socket.socket speaks uTP now."""
    return bool(_saved)


def get_original(name: str) -> Any:
    """What the class socket.socket had under this name before it was patched."""
    member = _saved.get(name, _MISSING)
    return getattr(StdlibSocket, name) if member is _MISSING else member


@contextmanager
def patched() -> Iterator[None]:
    """`with patched(): …`: patched inside, as before outside."""
    was_patched = is_patched()
    patch_all()
    try:
        yield
    finally:
        if not was_patched:
            unpatch()

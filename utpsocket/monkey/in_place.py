"""The class socket.socket changed in place, and changed back.

The class object stays the same and gets other methods, so the order of imports does not matter: names that were
imported earlier, subclasses (ssl.SSLSocket among them) and objects that exist already have the new methods
(docs/sockets.md §5). The standard library's class has slots and no room for another attribute. So what belongs to a
patched socket is kept in tables by the object's id, with a weak reference that removes the entry.

Any thread may call. Sources: CPython's Lib/socket.py; the data model's "__class__ assignment".
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any, Final
from weakref import KeyedRef

from utpsocket.engine.interpreter.native import Socket, StdlibSocket
from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.interpreter.signal_errors import reraise_handler_error
from utpsocket.integrations import pickling
from utpsocket.sockets import shim

if TYPE_CHECKING:
    from utpsocket.engine.user_fds.socket_state import Identity
    from utpsocket.sockets.closing import AtEnd
    from utpsocket.sockets.rules import Routes

# The class as an object that gets attributes, of which type checkers do not know.
_changed: Final[Any] = StdlibSocket
_MISSING: Final = object()
_NOT_METHODS: Final = {
    "__module__",
    "__doc__",
    "__slots__",
    "__dict__",
    "__weakref__",
    "__annotate__",
    "__annotate_func__",
    "__annotations__",
    "__annotations_cache__",
    "__static_attributes__",
    "__firstlineno__",
    "_at_end",
    "_pairs_datagrams",
    "_routes",
    "_utp",
}
_MEMBERS: Final = {name: member for name, member in vars(shim.socket).items() if name not in _NOT_METHODS}

Reference = KeyedRef[int, StdlibSocket]

_saved: dict[str, object] = {}
_identities: dict[int, Identity] = {}
_at_ends: dict[int, AtEnd] = {}
_references: dict[int, Reference] = {}
_collected: list[Reference] = []  # cleared, of sockets whose finalizers have not run yet


class _IdentityAttribute:
    """The attribute `_utp` of a class that has no slot for it."""

    def __get__(self, sock: StdlibSocket | None, owner: type | None = None) -> _IdentityAttribute | Identity | None:
        return self if sock is None else _identities.get(id(sock))

    def __set__(self, sock: StdlibSocket, identity: Identity | None) -> None:
        key = id(sock)
        if identity is None:
            _identities.pop(key, None)
            _references.pop(key, None)
            _at_ends.pop(key, None)
        else:
            _identities[key] = identity
            _references[key] = KeyedRef(sock, _forget, key)


class _AtEndAttribute:
    """The attribute `_at_end` of a class that has no slot for it."""

    def __get__(self, sock: StdlibSocket | None, owner: type | None = None) -> _AtEndAttribute | AtEnd:
        if sock is None:
            return self
        try:
            return _at_ends[id(sock)]
        except KeyError:  # a socket that is not uTP's: as an attribute that was never set
            raise AttributeError("_at_end") from None

    def __set__(self, sock: StdlibSocket, at_end: AtEnd) -> None:
        _at_ends[id(sock)] = at_end


def _forget(reference: Reference) -> None:
    """The weak reference to a socket is cleared: remove the entry. Of garbage in a cycle the collector clears the
    references before it runs the finalizers, which use the socket and close it: then the entry stays until they are
    done.
    """
    if _is_open(reference.key):
        if _after_collection not in gc.callbacks:
            gc.callbacks.append(_after_collection)
        _collected.append(reference)
    else:
        _remove(reference)


def _is_open(key: int) -> bool:
    identity = getattr(_at_ends.get(key), "identity", None)
    if identity is None:  # after close() or detach()
        return False
    try:
        return bool(os.fstat(identity.user_fd).st_ino == identity.inode)
    except OSError as error:  # closed
        reraise_handler_error(error)
        return False


def _remove(reference: Reference) -> None:
    key = reference.key
    if _references.get(key) is reference:  # else another socket has this id by now
        _identities.pop(key, None)
        _references.pop(key, None)
        _at_ends.pop(key, None)


def _after_collection(phase: str, _: dict[str, int]) -> None:
    if phase != "stop":
        return
    for reference in [_collected.pop() for _ in range(len(_collected))]:
        if _references.get(reference.key) is reference and _is_open(reference.key):
            _collected.append(reference)  # a finalizer has stored a reference to the socket, which goes on
        else:
            _remove(reference)


def is_applied() -> bool:
    """Whether the class is changed at present."""
    return bool(_saved)


def apply() -> None:
    """Change the class: its AF_INET and AF_INET6 streams speak uTP from now on. Idempotent."""
    if _saved:
        return
    for name in (*_MEMBERS, "_utp", "_at_end", "_pairs_datagrams", "_routes"):
        _saved[name] = vars(StdlibSocket).get(name, _MISSING)
    _changed._utp = _IdentityAttribute()
    _changed._at_end = _AtEndAttribute()
    _changed._routes = None
    _changed._pairs_datagrams = True
    for name, member in _MEMBERS.items():
        setattr(StdlibSocket, name, member)
    pickling.register_patched(StdlibSocket)


def route(routes: Routes | None) -> None:
    """Set the rules for sockets that are made from now on; None: all are uTP's."""
    if _saved:
        _changed._routes = routes


def restore() -> None:
    """Change the class back. uTP sockets that exist get a class of their own and go on."""
    if not _saved:
        return
    if _after_collection in gc.callbacks and not _collected:
        gc.callbacks.remove(_after_collection)
    known = [reference() for reference in list(_references.values())]
    survivors = [sock for sock in known if sock is not None and sock.fileno() >= 0]
    for name, member in _saved.items():
        if member is _MISSING:
            delattr(StdlibSocket, name)
        else:
            setattr(StdlibSocket, name, member)
    _saved.clear()
    pickling.unregister_patched(StdlibSocket)
    for sock in survivors:
        kind = type(sock)
        if not isinstance(vars(kind).get("_utp"), _IdentityAttribute):
            try:
                sock.__class__ = _class_after_patch(kind)
            except TypeError:
                pass  # the class allows no such change: data still flows, addresses are AF_UNIX names


_classes_after_patch: dict[type[StdlibSocket], type[StdlibSocket]] = {}


def _class_after_patch(cls: type[StdlibSocket]) -> type[StdlibSocket]:
    """The class for a uTP socket that goes on after the patch: the memory layout of `cls`, and our methods."""
    made = _classes_after_patch.get(cls)
    if made is None:
        space = {
            "__slots__": (),
            "__module__": cls.__module__,
            "__doc__": cls.__doc__,
            "_utp": _IdentityAttribute(),
            "_at_end": _AtEndAttribute(),
        }
        if cls is StdlibSocket:
            made = type("socket", (StdlibSocket,), {**_MEMBERS, **space, "_pairs_datagrams": False, "_routes": None})
        else:
            metaclass: type[type] = type(cls)
            made = metaclass(cls.__name__, (cls, _class_after_patch(StdlibSocket)), space)
        _classes_after_patch[cls] = made
        pickling.register_patched(made)
    return made


_original: type[StdlibSocket] | None = None


def original_class() -> type[StdlibSocket]:
    """A class whose sockets are the standard library's, patched or not: a stream is TCP's."""
    global _original
    if not _saved:
        return StdlibSocket
    if _original is None:
        space: dict[str, object] = {"__slots__": (), "__module__": "socket", "__doc__": StdlibSocket.__doc__}
        for name in _MEMBERS:
            member = _saved[name]
            space[name] = getattr(Socket, name, None) if member is _MISSING else member
        space = {name: member for name, member in space.items() if member}
        _original = type("socket", (StdlibSocket,), {**space, "_utp": None})
    return _original

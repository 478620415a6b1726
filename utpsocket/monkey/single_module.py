"""One module's view of `socket` changed, and no other's.

Only global names of that one module are bound to other objects; nothing that other modules see is changed. Sources:
docs/sockets.md §8 (PySocks' wrapmodule(), which changes the socket module for all).
"""

from __future__ import annotations

import socket as stdlib
from types import ModuleType
from typing import Any

from utpsocket.engine.interpreter.native import StdlibSocket
from utpsocket.sockets import functions, shim
from utpsocket.sockets.rules import Routes


class Wrapped:
    """The change of one module by utpsocket.monkey.wrap_module(). As a context manager it is undone at the end.

    Source: docs/guide/patching.md §2.
    """

    def __init__(self, module: ModuleType, names: dict[str, tuple[object, object]]) -> None:
        self.module = module
        self._names = names

    def undo(self) -> None:
        """Bind the module's names as before. A name that the module itself has bound to something else stays so.

        Sockets that exist go on as they are. A second call does nothing.

        Raises: nothing.
        Source: docs/guide/patching.md §2.
        """
        for name, (before, ours) in self._names.items():
            if vars(self.module).get(name) is ours:
                setattr(self.module, name, before)
        self._names = {}

    def __enter__(self) -> Wrapped:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


class _View(ModuleType):
    """The module socket with some names replaced. All other names are looked up there each time."""

    def __getattr__(self, name: str) -> Any:
        return getattr(stdlib, name)

    def __dir__(self) -> list[str]:
        return sorted({*vars(self), *dir(stdlib)})


def _view_of(cls: type[shim.socket]) -> ModuleType:
    view = _View("socket", stdlib.__doc__)
    vars(view).update(functions.rebound(cls), socket=cls)
    return view


def wrap(module: ModuleType, routes: Routes | None) -> Wrapped:
    """Bind the module's own names for the module socket, its class and its functions to uTP's. `routes`: the rules."""
    cls: type[shim.socket] = shim.socket
    if routes is not None:
        cls = type("socket", (shim.socket,), {"__slots__": (), "__module__": "utpsocket", "_routes": routes})
    view = _view_of(cls)
    ours: dict[int, object] = {id(stdlib): view, id(StdlibSocket): cls, id(stdlib.socket): cls}
    for name in functions.REBOUND:
        if hasattr(stdlib, name) and name in vars(view):
            ours[id(getattr(stdlib, name))] = vars(view)[name]
    changed = {name: (value, ours[id(value)]) for name, value in vars(module).items() if id(value) in ours}
    if not changed:
        raise ValueError(f"module {module.__name__!r} has no name for the socket module, its class or its functions")
    for name, (_, replacement) in changed.items():
        setattr(module, name, replacement)
    return Wrapped(module, changed)

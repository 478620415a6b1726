"""Call a function right after a module has been imported.

This file imports no other of ours, and of the standard library only what every interpreter has loaded, since
utpsocket/startup/sitecustomize.py loads it by its path in interpreters that may never need the package. Any thread may
call. Sources: CPython's Doc/library/importlib.rst.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec

TYPE_CHECKING = False  # type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType
    from typing import Any


class AfterImport:
    """A finder of importlib's that has modules imported as before and then calls a function, once for each.

    calls   the module's name, and the function
    """

    def __init__(self, calls: dict[str, Callable[[], object]]) -> None:
        self.calls = dict(calls)
        self._finding: set[str] = set()

    def install(self) -> None:
        """Begin to watch imports."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)
            for name in self.calls:
                if is_being_imported(name):
                    self._follow(name)

    def remove(self) -> None:
        """End watching."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As importlib.abc.MetaPathFinder: the spec that the other finders return, with a loader that calls back."""
        if name not in self.calls or name in self._finding:
            return None
        import importlib.util  # here, since many interpreters never import what is watched

        self._finding.add(name)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._finding.discard(name)
        # Another finder's object, whose method is hidden for a time by an attribute of the same name.
        loader: Any = None if spec is None else spec.loader
        if not hasattr(loader, "exec_module"):
            return spec
        load = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            loader.exec_module = load
            load(module)
            self._call(name)

        loader.exec_module = exec_module
        return spec

    def _call(self, name: str) -> None:
        call = self.calls.pop(name, None) if self in sys.meta_path else None
        if not self.calls:
            self.remove()
        if call is not None:
            call()

    def _follow(self, name: str) -> None:
        """Call back at the end of an import that is under way: importlib clears `_initializing` of the spec then."""
        spec = sys.modules[name].__spec__
        assert spec is not None

        class _Followed(ModuleSpec):
            def __setattr__(followed, attribute: str, value: object) -> None:
                super().__setattr__(attribute, value)
                if attribute == "_initializing" and not value:
                    spec.__class__ = ModuleSpec
                    self._call(name)

        spec.__class__ = _Followed


def is_being_imported(name: str) -> bool:
    """Whether the module is being imported at present."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))

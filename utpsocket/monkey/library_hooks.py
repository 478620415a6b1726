"""Libraries that make sockets without socket.socket, and their hooks: gevent, eventlet and uvloop.

Each is hooked now if it has been imported, or else as soon as it is imported, so that the order of patching does not
matter (docs/sockets.md §5). Where the hook cannot be set, a RuntimeWarning says that these sockets will be TCP's, since
they bypass the patch without a sign.

gevent    its socket object holds another, of `gevent.socket.socket._gevent_sock_class`: utpsocket.green
eventlet  the same with `eventlet.greenio.base._original_socket`: utpsocket.green
uvloop    makes its sockets in C: utpsocket.loops
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Final

from utpsocket.integrations.import_hook import AfterImport, is_being_imported

# The module that bypasses the patch: our module, its function that hooks, its function that unhooks; no arguments.
HOOKS: Final = {
    "gevent.socket": ("utpsocket.green", "hook_gevent", "unhook_gevent"),
    "eventlet.greenio.base": ("utpsocket.green", "hook_eventlet", "unhook_eventlet"),
    "uvloop": ("utpsocket.loops", "install_uvloop", "uninstall_uvloop"),
}

_hooked: list[str] = []
_watch: AfterImport | None = None


def apply() -> None:
    """Hook what has been imported, and later what is imported then. A second call does nothing."""
    global _watch
    if _watch is not None:
        return
    later: dict[str, Callable[[], object]] = {}
    for name in HOOKS:
        if name in sys.modules and not is_being_imported(name):
            _hook(name)
        else:
            later[name] = partial(_hook, name)
    _watch = AfterImport(later)
    _watch.install()


def restore() -> None:
    """Undo every hook."""
    global _watch
    if _watch is not None:
        _watch.remove()
        _watch = None
    for name in _hooked:
        module, _, undo = HOOKS[name]
        function = getattr(sys.modules.get(module), undo, None)
        if function is not None:
            function()
    _hooked.clear()


def _hook(name: str) -> None:
    module, function, _ = HOOKS[name]
    try:
        hook = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError):
        warnings.warn(
            f"{name.partition('.')[0]} makes sockets that utpsocket.monkey cannot reach: they will be plain TCP",
            RuntimeWarning,
            stacklevel=3,
        )
        return
    hook()
    _hooked.append(name)

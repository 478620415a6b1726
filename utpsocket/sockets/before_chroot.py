"""The package is loaded to its end before the process can lose sight of its files.

The first uTP socket loads what only uTP sockets need (shim.load()). After a chroot(), in another mount namespace, or as
another user, the files may not be there or may not be read. So these functions of `os` are replaced by ones that load
first, until all is loaded. One that was imported earlier by its name (`from os import chroot`) is not replaced.

Any thread may call. Sources: chroot(2), setns(2), setuid(2).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

_NAMES: Final = ("chroot", "setns", "seteuid", "setresuid", "setreuid", "setuid")
# By name: the function that was there, and ours.
_replaced: Final[dict[str, tuple[Callable[..., object], Callable[..., object]]]] = {}


def replace(load: Callable[[], None]) -> None:
    """Replace the functions by ones that call load() first."""
    for name in _NAMES:
        function = getattr(os, name, None)
        if function is not None:
            _replaced[name] = function, _loading_first(load, function)
            setattr(os, name, _replaced[name][1])


def _loading_first(load: Callable[[], None], function: Callable[..., object]) -> Callable[..., object]:
    @wraps(function)
    def loading_first(*args: Any, **kwargs: Any) -> object:  # Any: whatever the function takes
        load()
        return function(*args, **kwargs)

    return loading_first


def restore() -> None:
    """Put the functions back, unless others have been put in their place since."""
    for name, (function, ours) in _replaced.items():
        if getattr(os, name, None) is ours:
            setattr(os, name, function)
    _replaced.clear()

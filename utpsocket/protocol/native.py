"""Functions of utpsocket/_native.c in place of their twins, where that is installed: in the compiled build."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


def native_or(twin: Callable[_P, _T], name: str) -> Callable[_P, _T]:
    """The function of this name of _native.c; else its twin, which is its specification."""
    try:
        from utpsocket import _native
    except ImportError:
        return twin
    function: Callable[_P, _T] = getattr(_native, name)
    return function

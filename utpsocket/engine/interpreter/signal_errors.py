"""Exceptions of signals' handlers, which are no errnos.

A handler runs between two lines of whatever Python code is under way, and what it raises comes out of there. It may be
an OSError, TimeoutError above all: who deals with a system call's errno must let it pass. It is told by its lack of an
errno, which no system call's lacks.

Any thread may call.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

_T = TypeVar("_T")


def let_pass(error: OSError) -> None:
    """Raise it if it is no system call's. First in each `except OSError` that does not raise in any case."""
    if error.errno is None:
        raise error


def or_none(call: Callable[..., _T], *arguments: object) -> _T | None:
    """What the system call returns; None where it fails."""
    try:
        return call(*arguments)
    except OSError as error:
        let_pass(error)
        return None


class suppress_errnos:  # as contextlib.suppress
    """Suppresses the OSErrors of system calls."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        return isinstance(error, OSError) and error.errno is not None

"""Distinguish the OSError of a system call from one that a signal handler has raised.

A signal handler runs between two lines of any Python code, and what it raises appears there. It may be an OSError, most
often a TimeoutError. Code that handles the errno of a system call must let it pass. An OSError of a system call always
has an errno; one that a handler has raised without one is recognized by that.

Any thread may call.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

_T = TypeVar("_T")


def reraise_handler_error(error: OSError) -> None:
    """Raise the error again if it is not a system call's. To be called first in each `except OSError` that does not
    raise in any case.
    """
    if error.errno is None:
        raise error


def or_none(call: Callable[..., _T], *arguments: object) -> _T | None:
    """What the system call returns; None where it fails."""
    try:
        return call(*arguments)
    except OSError as error:
        reraise_handler_error(error)
        return None


class suppress_errnos:  # as contextlib.suppress
    """Suppresses the OSErrors of system calls."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        return isinstance(error, OSError) and error.errno is not None

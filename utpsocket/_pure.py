"""Has the pure build run where the compiled one is installed: with UTPSOCKET_PURE=1, and in subinterpreters.

The .py files lie beside the compiled modules, which import prefers. Here the import system gets finders for the folders
of this package that know no compiled modules (importlib, "path entry finders"). Child processes decide for themselves.

Compiled modules keep what is global in static variables, which all interpreters of a process would share.

Imported before any other module of the package, so it imports none, and does its work when it is imported. Source:
Doc/reference/import.rst.
"""

from __future__ import annotations

import _imp
import ctypes
import os
import sys
from typing import Final

_NO: Final = ("", "0", "no", "false", "off")  # as engine/environment.py has it, which cannot be imported yet
_PACKAGE: Final = os.path.dirname(os.path.abspath(__file__))


def _is_compiled() -> bool:
    return any(os.path.exists(os.path.join(_PACKAGE, "_native" + suffix)) for suffix in _imp.extension_suffixes())


def _is_wanted() -> bool:
    return os.environ.get("UTPSOCKET_PURE", "").strip().lower() not in _NO or not _is_main()


def _is_main() -> bool:
    """As native.is_main_interpreter()."""
    try:
        library = ctypes.PyDLL(None)
        here, main = library.PyInterpreterState_Get, library.PyInterpreterState_Main
    except AttributeError:
        return True
    here.restype = main.restype = ctypes.c_void_p
    return bool(here() == main())


def _force() -> None:
    from importlib.machinery import (
        BYTECODE_SUFFIXES,
        SOURCE_SUFFIXES,
        FileFinder,
        SourceFileLoader,
        SourcelessFileLoader,
    )

    finder = FileFinder.path_hook((SourceFileLoader, SOURCE_SUFFIXES), (SourcelessFileLoader, BYTECODE_SUFFIXES))
    for folder, _, _ in os.walk(_PACKAGE):
        sys.path_importer_cache[folder] = finder(folder)


if _is_compiled() and _is_wanted():
    _force()

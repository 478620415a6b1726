"""The environment by which interpreters that a patched program starts patch themselves.

It has UTPSOCKET_PATCH=1, the rules, and this folder on PYTHONPATH, where a Python interpreter finds sitecustomize.py at
its start (multiprocessing's spawn and forkserver, subprocess with sys.executable). Where the package is installed no
PYTHONPATH is needed: the interpreter reads utpsocket.pth, which the wheel puts beside the package. With -S it reads
neither, with -E and -I only utpsocket.pth.

Sources: CPython's Doc/library/site.rst; docs/sockets.md §8.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Final

from utpsocket.sockets.rules import VARIABLES

FOLDER: Final = os.path.dirname(os.path.realpath(__file__))


def environment(rules: Mapping[str, object]) -> dict[str, str]:
    """The variables that make a child interpreter patch itself; merge them into its environment.

    rules   as patch_all() takes them; one that is None leaves its variable as it is
    """
    before = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != FOLDER]
    made = {"UTPSOCKET_PATCH": "1", "PYTHONPATH": os.pathsep.join([FOLDER, *before])}
    for name, variable in VARIABLES.items():
        rule = rules.get(name)
        if isinstance(rule, Iterable) and not isinstance(rule, str):
            made[variable] = ",".join(map(str, rule))
        elif rule is not None:
            made[variable] = str(rule)
    return made


_before: dict[str, str | None] = {}


def export_environment(rules: Mapping[str, object]) -> None:
    """Put the variables into this process's environment, which its children inherit."""
    for name, value in environment(rules).items():
        _before.setdefault(name, os.environ.get(name))
        os.environ[name] = value


def restore_environment() -> None:
    """Undo export_environment()."""
    for name, value in _before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    _before.clear()

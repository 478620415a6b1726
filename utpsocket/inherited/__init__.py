"""What the interpreters started by a patched program inherit: an environment in which they patch themselves.

Separate because it acts at the other end of an exec. The environment holds UTPSOCKET_PATCH=1, the rules, and this
folder on PYTHONPATH, where every Python finds sitecustomize.py at its start (multiprocessing's spawn and forkserver,
subprocess running sys.executable). Interpreters started with -E, -I or -S look at none of it.

Sources: CPython's Doc/library/site.rst; SOCKETS-EVIDENCE.md §4.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

FOLDER: Final = str(Path(__file__).resolve().parent)


def environment() -> dict[str, str]:
    """The variables that make a child interpreter patch itself; merge them into its environment."""
    before = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != FOLDER]
    return {"UTPSOCKET_PATCH": "1", "PYTHONPATH": os.pathsep.join([FOLDER, *before])}

"""Sizes from the environment, read when an engine is made: whoever made it is told what is wrong with them.

Separate because a value that cannot be read must be an error of the program's first call, and never one on the engine's
thread. Any thread may call.
"""

from __future__ import annotations

import re
from typing import Final

from utpsocket.engine.originals import os

_MULTIPLES: Final[dict[str, int]] = {
    "": 1,
    **{letter: 1000**power for power, letter in enumerate("KMG", start=1)},
    **{letter + "i": 1024**power for power, letter in enumerate("KMG", start=1)},
}


def size(name: str, default: int) -> int:
    """The variable's value in bytes: 4194304, 4M (powers of 1,000) or 4Mi (of 1,024). Raises ValueError, which names
    both.
    """
    text = os.environ.get(name) or str(default)
    found = re.fullmatch(r"([0-9]+)([KMG]i?|)", text.strip())
    if found is None:
        raise ValueError(f"{name} is {text!r}, not a size in bytes such as 4194304, 4M or 4Mi")
    return int(found[1]) * _MULTIPLES[found[2]]


def check() -> None:
    """Read them all, where the engine is made in another process."""
    for name in ("UTPSOCKET_MAX_MTU", "UTPSOCKET_UDP_BUFFER"):
        size(name, 0)

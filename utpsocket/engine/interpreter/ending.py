"""The end of the interpreter: what is called then, after all that the program has registered.

atexit calls last what was registered first. So one function is registered when utpsocket is imported, and not with the
first socket, when the engine is loaded: functions that the program registers in between can still send.

Any thread may call.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable
from typing import Final

calls: Final[list[Callable[[], object]]] = []
"""What is called at the end; each module adds its own when it is loaded."""
has_begun = False
"""Whether that has been done: what is added now is not called."""


def _at_exit() -> None:
    global has_begun
    has_begun = True
    for call in calls:
        call()


atexit.register(_at_exit)

"""How soon the program's threads may have the interpreter's lock back while the engine works.

The engine's calls keep the GIL (syscalls.py), so a thread that lets go of it, as every socket call of the program's
does, gets it back when it has asked for one switch interval, 5 ms. Fifty such calls in a row, a hub's with fifty
sockets that are ready, are a quarter of a second, though the hub itself computes for a few milliseconds. Where
somebody must never be late, the engine therefore works under a shorter interval: it is the process's, so it is set
when an iteration's work begins and set back when it ends, before the engine sleeps.

ask() and withdraw() may be called by any thread, the rest by the engine's. Sources: sys.setswitchinterval();
CPython's Python/ceval_gil.c, take_gil(), which reads the interval anew for each time it waits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

# A thread that gave the GIL away gets it back in about twice this. Each exchange costs some 20 µs of it.
SWITCH_SECONDS: Final = 0.0001

askers: set[str] = set()  # who wants the short interval; only ask() and withdraw() write it
_usual_seconds = 0.0  # what begin() found; 0 between iterations


def ask(asker: str) -> None:
    """Have the engine give way soon, until every asker has withdrawn."""
    askers.add(asker)


def withdraw(asker: str) -> None:
    """This asker does not need it any more. Idempotent. After the last one the interval is the program's at once."""
    askers.discard(asker)
    if not askers:
        end()


def during(work: Callable[[Any], None], argument: Any) -> None:
    """Do an iteration's work under the short interval; where nobody asks for it, it is not worth the call."""
    begin()
    try:
        work(argument)
    finally:
        end()


def begin() -> None:
    """An iteration's work begins."""
    global _usual_seconds
    if askers:
        usual_seconds = sys.getswitchinterval()
        if usual_seconds > SWITCH_SECONDS:
            _usual_seconds = usual_seconds
            sys.setswitchinterval(SWITCH_SECONDS)


def end() -> None:
    """An iteration's work has ended; or, in a forked child, will never end. What the program has set meanwhile
    stays.
    """
    global _usual_seconds
    usual_seconds, _usual_seconds = _usual_seconds, 0.0  # at once: withdraw() may be here in another thread
    if usual_seconds and sys.getswitchinterval() <= SWITCH_SECONDS:
        sys.setswitchinterval(usual_seconds)

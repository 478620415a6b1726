"""A shorter switch interval while the engine works: how soon the program's threads get the GIL back.

The engine's system calls hold the GIL (syscalls.py). A thread of the program that releases it, as every socket call
does, gets it back after one switch interval, 5 ms by default. Example: a hub of gevent with fifty sockets that are
ready makes fifty such calls in a row, and needs 250 ms for work of a few milliseconds. Where a program cannot afford
that, it asks for a shorter interval. The switch interval belongs to the whole process, so it is set when the work of an
iteration begins, and set back when it ends, before the engine sleeps.

request() and withdraw() may be called by any thread, the rest by the engine's. Sources: sys.setswitchinterval();
CPython's Python/ceval_gil.c, take_gil(), which reads the interval anew for each time it waits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final, TypeVar

# A thread that has released the GIL gets it back in about twice this time. Each exchange takes some 20 µs of it, so a
# much shorter interval would leave the engine little.
SWITCH_SECONDS: Final = 0.0001

# Names of the modules that want the short interval. Written by request() and withdraw() alone.
requesters: set[str] = set()
# The program's interval, as begin() found it; 0 between iterations.
_usual_seconds = 0.0


def request(requester: str) -> None:
    """Have the engine work under the short interval, until every requester has withdrawn."""
    requesters.add(requester)


def withdraw(requester: str) -> None:
    """This requester needs it no more. May be repeated. After the last one the program's interval is set at once."""
    requesters.discard(requester)
    if not requesters:
        end()


_T = TypeVar("_T")


def run_with_short_interval(work: Callable[[_T], None], argument: _T) -> None:
    """Do the work of an iteration under the short interval. To be called only if there are requesters."""
    begin()
    try:
        work(argument)
    finally:
        end()


def begin() -> None:
    """An iteration's work begins."""
    global _usual_seconds
    if requesters:
        usual_seconds = sys.getswitchinterval()
        if usual_seconds > SWITCH_SECONDS:
            _usual_seconds = usual_seconds
            sys.setswitchinterval(SWITCH_SECONDS)


def end() -> None:
    """An iteration's work has ended; in a forked child, it will never end. An interval that the program has set
    meanwhile stays.
    """
    global _usual_seconds
    usual_seconds, _usual_seconds = _usual_seconds, 0.0  # at once: withdraw() may be here in another thread
    if usual_seconds and sys.getswitchinterval() <= SWITCH_SECONDS:
        sys.setswitchinterval(usual_seconds)

"""The cyclic garbage collector never runs on the engine's thread.

CPython collects in whatever thread allocates one object too many, and the finalizers of what it finds run there: an
object's __del__, a weakref's callback, gc.callbacks. One that talks to a peer over a socket of ours, as rpyc's proxies
do, would wait on the engine's thread for the engine; one that takes a lock, as any logging call does, for a thread that
waits for the engine. So while the engine's thread works, the collector's thresholds are out of reach, and they are the
program's again while it sleeps. What is due meanwhile is collected by the next of the program's threads that allocates:
the count goes on. No thread of the program's runs in between unless the interpreter takes the GIL away from the engine.

The thresholds and not gc.disable(), because they can be told apart: at _OUT_OF_REACH they are ours. What the program
enables, disables or sets meanwhile is thus seen and left alone, and if it puts back a threshold of ours that it has
read, the next iteration repairs that.

The rest is about the few instructions between the end of the sleep and the moment at which the thresholds are out of
reach again. They allocate nothing that the collector counts: no list of events, no tuple of arguments. That is why the
sleep is a C function called through ctypes, with arguments that are made before, and why the collector is off for the
four calls that read and set the thresholds, none of which lets go of the GIL. On CPython 3.12 that does not suffice:
another thread may have crossed the threshold there and left the collection to whichever thread runs bytecode next. So
there the sleep and the setting are one call in C, without bytecode in between; the collection then finds the thresholds
out of reach.

Only the thread that holds the collector off calls, except end_in_child(). Sources: CPython's Modules/gcmodule.c and
Python/gc.c, _PyObject_GC_Link(), _Py_RunGC(); Python/ceval_gil.c; Modules/_ctypes/callproc.c, ConvParam().
"""

from __future__ import annotations

import gc
import operator
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from utpsocket.engine.interpreter.originals import ctypes

_OUT_OF_REACH: Final = 2_011_983_647  # fits a C int, and no program's own
_NEVER: Final = (_OUT_OF_REACH, _OUT_OF_REACH, _OUT_OF_REACH)
_IS_ANY_THREADS: Final = sys.version_info[:2] == (3, 12)  # a collection that is due is whichever thread's comes first
_call: Final[Any] = getattr(operator, "call", None)  # 3.11
_CAN_BE_TRACED: Final = sys.version_info >= (3, 12)  # threading.settrace_all_threads()

_get_threshold, _set_threshold = gc.get_threshold, gc.set_threshold
_is_enabled, _enable, _disable = gc.isenabled, gc.enable, gc.disable

_holding: set[Hold] = set()
_programs: tuple[int, int, int] = gc.get_threshold()


class Hold:
    """Of one thread of ours."""

    __slots__ = ()

    def begin(self) -> None:
        """From now on nothing is collected of itself. Whoever starts the thread calls, so that its first steps are
        covered.
        """
        _take(self, _get_threshold())

    def enter(self) -> None:
        """The thread has started."""
        ctypes.get_errno()  # makes what ctypes keeps for each thread
        if _CAN_BE_TRACED:
            _end_tracing()

    def end(self) -> None:
        """The thread has nothing more to do."""
        _set_threshold(*self._let_go())

    def _let_go(self) -> tuple[int, int, int]:
        """What the thresholds must be without this one."""
        _holding.discard(self)
        found = _get_threshold()  # not ours: the program has set them meanwhile
        return _programs if found[0] == _OUT_OF_REACH and not _holding else found

    def sleep(self, wait: Callable[..., int], arguments: tuple[Any, ...]) -> int:
        """wait(*arguments), during which the thresholds are the program's. `wait` is a function of ctypes.CDLL without
        argtypes, and the arguments are ints and byref() objects: so nothing is allocated for the call.
        """
        global _programs
        _holding.discard(self)  # as _let_go(), without a call: this is done in every iteration
        found = _get_threshold()
        if found[0] == _OUT_OF_REACH and not _holding:
            found = _programs
        result: int
        if _IS_ANY_THREADS:
            steps = (partial(_set_threshold, *found), partial(wait, *arguments), _get_threshold, _set_never)
            _, result, found, _ = map(_call, steps)
            _take(self, found)
        else:
            _set_threshold(*found)
            result = wait(*arguments)  # from here…
            was_enabled = _is_enabled()
            _disable()  # …to here nothing is allocated
            found = _get_threshold()  # from here on as _take(), without a call
            _holding.add(self)
            if found[0] != _OUT_OF_REACH:
                _programs = found
            _set_threshold(_OUT_OF_REACH, _OUT_OF_REACH, _OUT_OF_REACH)
            if was_enabled:
                _enable()
        if _CAN_BE_TRACED:
            _end_tracing()
        return result


_set_never: Final = partial(_set_threshold, *_NEVER)


def _take(hold: Hold, found: tuple[int, int, int]) -> None:
    """The thresholds that were found are the program's, if they are not ours; they are out of reach from now on."""
    global _programs
    _holding.add(hold)
    if found[0] != _OUT_OF_REACH:
        _programs = found
    _set_threshold(*_NEVER)


def _end_tracing() -> None:
    """A trace or profile function that the program has put on all threads is code of the program's as well."""
    if sys.gettrace() is not None:
        sys.settrace(None)
    if sys.getprofile() is not None:
        sys.setprofile(None)


def end_in_child() -> None:
    """After a fork, in the child, where no thread of ours goes on."""
    _holding.clear()
    if _get_threshold()[0] == _OUT_OF_REACH:
        _set_threshold(*_programs)

"""The cyclic garbage collector never runs on the engine's thread.

CPython collects in the thread that allocates the object which exceeds the threshold, and runs finalizers there: an
object's __del__, a weakref's callback, gc.callbacks. A finalizer that uses a socket of ours, as rpyc's proxies do,
would wait on the engine's thread for the engine. One that takes a lock, as any logging call does, may wait for a thread
that waits for the engine. So while the engine's thread works, the collector's thresholds are set to _NEVER_REACHED, and
while it sleeps they have the program's values. The count of objects goes on: what is due meanwhile is collected by the
next thread of the program that allocates.

Thresholds are used and not gc.disable(), because they can be distinguished: at _NEVER_REACHED they are ours. What the
program enables, disables or sets meanwhile is thus noticed and left as it is. If the program sets a threshold of ours
that it has read before, the next iteration corrects that.

The rest is about the few instructions between the end of the sleep and the moment at which the thresholds are out of
reach again. They allocate nothing that the collector counts: no list of events, no tuple of arguments. That is why the
sleep is a C function called through ctypes, with arguments that are made before, and why the collector is off for the
four calls that read and set the thresholds, none of which releases the GIL. On CPython 3.12 that does not suffice:
another thread may have crossed the threshold there and left the collection to whichever thread runs bytecode next. So
there the sleep and the setting are one call in C, without bytecode in between; the collection then finds the thresholds
out of reach.

Only the thread that pauses the collector calls, except call_locked() and end_in_child(). Sources: CPython's
Modules/gcmodule.c and Python/gc.c, _PyObject_GC_Link(), _Py_RunGC(); Python/ceval_gil.c; Modules/_ctypes/callproc.c,
ConvParam().
"""

from __future__ import annotations

import gc
import operator
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from utpsocket.engine.interpreter.originals import ctypes

if TYPE_CHECKING:
    from _thread import RLock

_T = TypeVar("_T")
# Fits a C int; an arbitrary number that no program would choose.
_NEVER_REACHED: Final = 2_011_983_647
_NEVER: Final = (_NEVER_REACHED, _NEVER_REACHED, _NEVER_REACHED)
# On 3.12 a collection that is due runs in the next thread that executes bytecode.
_IS_ANY_THREADS: Final = sys.version_info[:2] == (3, 12)
_call: Final[Any] = getattr(operator, "call", None)  # 3.11; returns what the function that it calls returns
_CAN_BE_TRACED: Final = sys.version_info >= (3, 12)  # threading.settrace_all_threads()

_get_threshold: Final = gc.get_threshold
_set_threshold: Final = gc.set_threshold
_is_enabled: Final = gc.isenabled
_enable: Final = gc.enable
_disable: Final = gc.disable
_set_never: Final = partial(_set_threshold, *_NEVER)

_pausing: Final[set[CollectorPause]] = set()
_programs: tuple[int, int, int] = gc.get_threshold()
_locked: Final[list[RLock]] = []  # one for each call of call_locked() that runs
_is_enabling_due = False  # the last of them enables the collector, which it was when they began


class CollectorPause:
    """Pauses the collector while one thread of ours works."""

    __slots__ = ()

    def begin(self) -> None:
        """From now on there are no automatic collections. Called by the thread that starts ours, so that its first
        steps are covered.
        """
        _pause(self, _get_threshold())

    def enter(self) -> None:
        """To be called first on the thread itself."""
        ctypes.get_errno()  # allocates what ctypes keeps for each thread
        if _CAN_BE_TRACED:
            _end_tracing()

    def end(self) -> None:
        """The thread ends: the thresholds are the program's again, unless another thread of ours works."""
        _set_threshold(*self._resume())

    def _resume(self) -> tuple[int, int, int]:
        """End this pause. Returns what the thresholds must be without it."""
        _pausing.discard(self)
        found = _get_threshold()  # not ours: the program has set them meanwhile
        return _programs if found[0] == _NEVER_REACHED and not _pausing else found

    def sleep(self, wait: Callable[..., int], arguments: tuple[object, ...]) -> int:
        """wait(*arguments), during which the thresholds are the program's. `wait` is a function of ctypes.CDLL without
        argtypes, and the arguments are ints and byref() objects: so nothing is allocated for the call.
        """
        global _programs, _is_enabling_due
        _pausing.discard(self)  # as _resume(), inlined, since this is done in every iteration
        found = _get_threshold()
        if found[0] == _NEVER_REACHED and not _pausing:
            found = _programs
        result: int
        if _IS_ANY_THREADS:
            steps = (partial(_set_threshold, *found), partial(wait, *arguments), _get_threshold, _set_never)
            _, result, found, _ = map(_call, steps)
            _pause(self, found)
        else:
            _set_threshold(*found)
            result = wait(*arguments)  # from here…
            was_enabled = _is_enabled()
            _disable()  # …to here nothing is allocated
            found = _get_threshold()  # from here on as _pause(), without a call
            _pausing.add(self)
            if found[0] != _NEVER_REACHED:
                _programs = found
            _set_threshold(_NEVER_REACHED, _NEVER_REACHED, _NEVER_REACHED)
            if was_enabled:
                if _locked:
                    _is_enabling_due = True
                else:
                    _enable()
        if _CAN_BE_TRACED:
            _end_tracing()
        return result


def call_locked(lock: RLock, function: Callable[[], _T]) -> _T:
    """function() with the lock, and without automatic collections until the lock is released: a finalizer might wait
    for a thread that waits for this lock. Any thread. Returns what the function returns; raises what it raises.

    Disabled before the lock is acquired, as a collection that is due runs a few instructions later on CPython 3.12, and
    until it is released, as lock.__exit__() gets a tuple of arguments. The last thread that leaves enables the
    collector again: neither another thread nor a signal handler gets in between its last three lines. If the program
    calls gc.disable() in another thread meanwhile, that is without effect.
    """
    global _is_enabling_due
    try:
        _locked.append(lock)
        if _is_enabled():
            _is_enabling_due = True
            _disable()
        with lock:
            return function()
    finally:
        del _locked[-1:]  # it may be empty in a process that a signal handler has forked meanwhile
        if _is_enabling_due and not _locked:
            _is_enabling_due = False
            _enable()


def _pause(pause: CollectorPause, found: tuple[int, int, int]) -> None:
    """Begin a pause: remember the thresholds that were found, if they are the program's, and set ours."""
    global _programs
    _pausing.add(pause)
    if found[0] != _NEVER_REACHED:
        _programs = found
    _set_threshold(*_NEVER)


def _end_tracing() -> None:
    """Remove a trace or profile function that the program has set for all threads: it would run on the engine's."""
    if sys.gettrace() is not None:
        sys.settrace(None)
    if sys.getprofile() is not None:
        sys.setprofile(None)


def end_in_child() -> None:
    """After a fork, in the child, where no thread of ours goes on."""
    global _is_enabling_due
    _pausing.clear()
    _locked.clear()
    if _is_enabling_due:
        _is_enabling_due = False
        _enable()
    if _get_threshold()[0] == _NEVER_REACHED:
        _set_threshold(*_programs)

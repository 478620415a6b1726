"""The lock between a fork and the engine's thread: a child must not inherit an fd that the engine is just opening.

During a fork the program's own hooks run (os.register_at_fork()). Such a hook may close connections, or wait for a
thread that does, and for that the engine must go on. So a thread waits for the lock for at most _PATIENCE_SECONDS, and
then goes on without it. Without such hooks it is held for microseconds. With one that waits, a child may inherit an fd
that was just being opened; the alternative would be a deadlock.

Any thread may call. Sources: CPython's Doc/library/os.rst, register_at_fork(): the order of the hooks.
"""

from __future__ import annotations

from typing import Final

from utpsocket.engine.interpreter.native import allocate_lock, get_ident

# By feel: much longer than the lock is held without hooks, short enough for a program that forks.
_PATIENCE_SECONDS: Final = 0.5


class ForkLock:
    """Held while fds come and go, by the engine's thread in a with statement, and by a thread that forks."""

    __slots__ = ("_lock", "_owner", "_patience_seconds")

    def __init__(self, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        self._lock = allocate_lock()
        self._patience_seconds = patience_seconds
        self._owner: int = 0  # the identifier of the thread that holds it; 0: none

    def acquire(self, *, wait: bool = True) -> bool:
        """Take the lock; returns whether this thread has it. Called by a thread that forks, and by the engine's.

        wait   for at most `patience_seconds`; False: not at all
        """
        me = get_ident()
        if self._owner == me:
            return True  # an exception has kept this thread from releasing it
        if self._lock.acquire(wait, self._patience_seconds if wait else -1):
            self._owner = me
        elif wait and not self._owner:
            self._owner = me  # an exception between acquire() and the assignment: the lock has no owner
        return bool(self._owner == me)

    def release(self, *_: object) -> None:
        """Release the lock, if this thread has it."""
        me = get_ident()
        if self._owner == me:
            self._owner = 0
            try:
                self._lock.release()
            except RuntimeError:
                pass  # it was taken for a lock without owner, and its owner has released it meanwhile
            except BaseException:
                self._owner = me
                raise

    __enter__, __exit__ = acquire, release

"""The lock that lets a fork see no fd of the engine's half made, and that nobody waits for in vain.

Separate because the program runs code of its own while a fork is under way: what it has given os.register_at_fork().
Such a hook may close connections politely, or wait for a lock whose owner does, which needs an engine that goes on. So
whoever wants the lock waits for a while only. Without such hooks it is held for microseconds; with them a child may
inherit an fd that was just being made, and that is the lesser evil.

Any thread may call. Sources: CPython's Doc/library/os.rst, register_at_fork(): the order of the hooks.
"""

from __future__ import annotations

from typing import Final

from utpsocket.engine.interpreter.native import allocate_lock, get_ident

_PATIENCE_SECONDS: Final = 0.5


class ForkLock:
    """Held while fds come and go, by the engine's thread in a with statement, and by a thread that forks."""

    __slots__ = ("_lock", "_owner")

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._owner: int = 0  # its thread's identifier; 0: none

    def acquire(self, *, wait: bool = True) -> bool:
        """Whether this thread has it now. One that forks, or the engine's."""
        me = get_ident()
        if self._owner == me:
            return True  # a fault has kept it from being released
        if self._lock.acquire(wait, _PATIENCE_SECONDS if wait else -1):
            self._owner = me
        elif wait and not self._owner:
            self._owner = me  # and has kept whoever took it from saying so: it is nobody's
        return bool(self._owner == me)

    def release(self) -> None:
        """Where this thread has it, it has it no more."""
        me = get_ident()
        if self._owner == me:
            self._owner = 0
            try:
                self._lock.release()
            except RuntimeError:
                pass  # it was believed to be nobody's, and has been released by who had it
            except BaseException:
                self._owner = me
                raise

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

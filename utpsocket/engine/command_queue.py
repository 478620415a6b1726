"""A command of another thread to the engine's, and the answer to it.

Separate from loop.py because it is the one thing that two threads share: the one that asks makes it, the engine's
carries it out, and whatever becomes of the engine it is answered once.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from utpsocket.engine import faults
from utpsocket.engine.interpreter.native import Socket, allocate_lock, in_one_step, sleep
from utpsocket.engine.interpreter.signal_errors import let_pass

if TYPE_CHECKING:
    from utpsocket.engine.kernel.poller import WakeUp

_MOST_ASIDE: Final = 64  # commands for which the engine need not wake up
_MOST_PULLS: Final = 3_000
_PULL_AGAIN_SECONDS: Final = 0.001

UNDO: Final[dict[Callable[..., Any], Callable[..., None]]] = {}
"""What has to be done where one of these has failed: called with the loop, an errno, and the same arguments.
commands.py says so of its own.
"""
REPEATABLE: Final[set[Callable[..., Any]]] = set()
"""What is simply done again where it has failed half way, as close() and its like must not fail. Likewise."""


class Answer:
    """What a command returned or raised, for the thread that waits for it."""

    __slots__ = ("_error", "_given", "_value")

    def __init__(self) -> None:
        self._error: BaseException | None = None
        self._value: Any = None
        self._given = allocate_lock()
        self._given.acquire()

    def give(self, value: Any, error: BaseException | None) -> None:
        """Answer. Only the first one counts."""
        if self._given.locked():
            self._value, self._error = value, None if error is None else error.with_traceback(None)
            self._given.release()

    def wait(self) -> Any:
        """Block until answered; return or raise what was given. The thread that asked."""
        self._given.acquire()
        if self._error is not None:
            raise _anew(self._error)
        return self._value


def _anew(error: BaseException) -> BaseException:
    """The same exception without a reference to it in the engine's thread, nor from it into that: what is raised takes
    the program's frames along, and whoever lets go of it last lets go of all that is in them.
    """
    try:
        return type(error)(*error.args)
    except Exception:
        return error


class Command:
    """A function of commands.py and its arguments.

    arguments   sockets among them are the engine's from now on: each is closed once, by whoever has it when something
                fails
    answer      None: nobody waits
    """

    __slots__ = ("_is_done", "_is_refused", "_value", "answer", "arguments", "function", "loop", "named")

    def __init__(
        self,
        loop: object,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        named: dict[str, Any],
        answer: Any,
    ) -> None:
        self.loop = loop
        self.function = function
        self.arguments = arguments
        self.named = named
        self.answer = answer
        self._is_done = False
        self._is_refused = False
        self._value: Any = None

    def carry_out(self) -> None:
        """Do it and answer. An OSError is an answer; whatever else is raised is the loop's to contain."""
        if self._is_refused:
            return  # by a fault that was met while it was still in the inbox
        try:
            self._value = self.function(self.loop, *self.arguments, **self.named)
        except OSError as error:
            self.refuse(error)
        else:
            self._is_done = True
            if self.answer is not None:
                self.answer.give(self._value, None)

    def refuse(self, error: BaseException) -> None:
        """It was not carried out, or not to its end: undo what was, and tell whoever asked. Idempotent."""
        self._is_refused = True
        error_told: OSError | None = None
        if not self._is_done and self.function in REPEATABLE:
            try:
                self._value = self.function(self.loop, *self.arguments, **self.named)
                self._is_done = True
            except BaseException as again:
                error = again
        if not self._is_done:
            error_told = faults.told(error)
            undo = UNDO.get(self.function)
            if undo is not None:
                undo(self.loop, error_told.errno or 0, *self.arguments)
            for argument in self.arguments:
                if isinstance(argument, Socket):
                    argument.close()
        if self.answer is not None:
            self.answer.give(self._value, error_told)

    def fail(self, error: BaseException) -> None:
        """See faults.py."""
        self.refuse(error)


class Inbox:
    """Commands on their way to the engine's thread.

    commands   the oldest first; the engine's thread takes them from here
    """

    __slots__ = ("_has_ended", "_wake_up", "commands")

    def __init__(self, wake_up: WakeUp) -> None:
        self.commands: deque[Command] = deque()
        self._wake_up = wake_up
        self._has_ended = False

    def put_aside(self, command: Command) -> None:
        """Hand over, to be carried out when the engine's thread next wakes up, whatever for. Any thread."""
        if len(self.commands) >= _MOST_ASIDE:
            self.put(command)
            return
        self.commands.append(command)
        if self._has_ended:
            self.end()

    def put(self, command: Command) -> None:
        """Hand over. Any thread."""
        try:
            in_one_step(partial(self.commands.append, command), self._wake_up.pull)
        except OSError as error:
            let_pass(error)
            if error.errno in faults.TRANSIENT:
                self._wake()
            # else it has been woken often enough, or sleeps no more
        if self._has_ended:  # asked again: either we see that the thread has ended, or it sees the command
            self.end()

    def _wake(self) -> None:
        """Wake the engine where that has failed for no reason of its own: nobody else might for hours."""
        for _ in range(_MOST_PULLS):
            try:
                self._wake_up.pull()
            except OSError as error:
                let_pass(error)
                if error.errno in faults.TRANSIENT:
                    sleep(_PULL_AGAIN_SECONDS)
                    continue
            return

    def end(self) -> None:
        """The engine's thread has ended, and nobody else answers what is left. Any thread."""
        self._has_ended = True
        while True:
            try:
                command = self.commands.popleft()
            except IndexError:
                return
            command.refuse(OSError(errno.ECONNABORTED, "the engine has ended"))

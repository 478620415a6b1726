"""Commands from other threads to the engine's thread, and their answers.

A command is made by the thread that calls Loop.call() or Loop.post(), and carried out by the engine's thread. It is
answered exactly once, also if the engine fails or ends.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from utpsocket.engine import faults
from utpsocket.engine.interpreter.native import Socket, allocate_lock, call_uninterrupted, sleep
from utpsocket.engine.interpreter.signal_errors import reraise_handler_error
from utpsocket.protocol.build import IS_COMPILED

if TYPE_CHECKING:
    from typing import Protocol

    from utpsocket.engine.kernel.poller import WakeUp

    class Receiver(Protocol):
        """What an answer is given to: an Answer, or what stands in its place (helper/)."""

        def give(self, value: object, error: BaseException | None) -> None:
            """Give what the command returned, or raised."""


_T = TypeVar("_T")
# Commands that may wait for the engine to wake up by itself; one more wakes it. By feel.
_MAX_POSTED_WITHOUT_WAKING: Final = 64
# Tries to wake the engine while the kernel is short of memory, three seconds in all; by feel.
_MAX_WAKE_TRIES: Final = 3_000
_WAKE_AGAIN_SECONDS: Final = 0.001

UNDO: Final[dict[Callable[..., object], Callable[..., None]]] = {}
"""By command, what undoes it where it has failed: called with the loop, an errno, and the command's arguments. Filled
by commands.py and helper/port_commands.py.
"""
REPEATABLE: Final[set[Callable[..., object]]] = set()
"""Commands that are carried out once more where they have failed half way, since close() must not fail. Filled by
commands.py."""
FROM_OUTSIDE: Final[list[Callable[..., object]]] = []
"""The command that answers another process: called with the loop and the number that it has asked with. Put here by
commands.py.
"""


class Answer(Generic[_T]):
    """What a command returned or raised, for the thread that waits for it."""

    __slots__ = ("_error", "_given", "_value")

    def __init__(self) -> None:
        self._error: BaseException | None = None
        self._value: object = None
        self._given = allocate_lock()
        self._given.acquire()

    def give(self, value: object, error: BaseException | None) -> None:
        """Give the answer. If there is one already, this one is ignored."""
        if self._given.locked():
            self._value, self._error = value, None if error is None else error.with_traceback(None)
            self._given.release()

    def wait(self) -> _T:
        """Wait for the answer; return or raise it. Called by the thread that made the command."""
        self._given.acquire()
        if self._error is not None:
            raise _copy_of(self._error)
        return self._value  # type: ignore[return-value]  # what the command returns: Loop.call()


def _copy_of(error: BaseException) -> BaseException:
    """A new exception of the same type and arguments. One that is raised refers to frames of the program, and the last
    thread to drop it frees all objects in them; that must not be the engine's.
    """
    try:
        return type(error)(*error.args)
    except Exception:
        return error


class Command:
    """A function of commands.py and its arguments.

    arguments   sockets among them belong to the command from now on, and are closed if it fails
    answer      None: no thread waits
    """

    __slots__ = ("_is_done", "_is_refused", "_value", "answer", "arguments", "function", "loop", "named")

    def __init__(
        self,
        loop: object,
        function: Callable[..., object],
        arguments: tuple[object, ...],
        named: dict[str, object],
        answer: Receiver | None,
    ) -> None:
        self.loop = loop
        self.function = function
        self.arguments = arguments
        self.named = named
        self.answer = answer
        self._is_done = False
        self._is_refused = False
        self._value: object = None

    def carry_out(self) -> None:
        """Carry it out and give the answer. An OSError is an answer; other exceptions are raised, for the loop."""
        if self._is_refused:
            return  # after a fault of the engine while the command was in the inbox
        try:
            self._value = self.function(self.loop, *self.arguments, **self.named)
        except OSError as error:
            self.refuse(error)
        else:
            self._is_done = True
            if self.answer is not None:
                self.answer.give(self._value, None)

    def refuse(self, error: BaseException) -> None:
        """It was not carried out, or not to its end: undo it, or carry it out again if it is REPEATABLE, and give the
        answer. May be repeated.
        """
        self._is_refused = True
        os_error: OSError | None = None
        if not self._is_done and self.function in REPEATABLE:
            try:
                self._value = self.function(self.loop, *self.arguments, **self.named)
                self._is_done = True
            except BaseException as again:
                error = again
        if not self._is_done:
            os_error = faults.to_os_error(error)
            undo = UNDO.get(self.function)
            if undo is not None:
                undo(self.loop, os_error.errno or 0, *self.arguments)
            for argument in self.arguments:
                if isinstance(argument, Socket):
                    argument.close()
        if self.answer is not None:
            self.answer.give(self._value, os_error)

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

    def put_without_waking(self, command: Command) -> None:
        """Queue a command for when the engine's thread wakes up next, for any reason, without waking it. Any thread."""
        if len(self.commands) >= _MAX_POSTED_WITHOUT_WAKING:
            self.put(command)
            return
        self.commands.append(command)
        if self._has_ended:
            self.end()

    def put(self, command: Command) -> None:
        """Queue a command, and wake the engine's thread. Any thread."""
        try:
            if IS_COMPILED:  # no signal's handler runs between these two lines
                self.commands.append(command)
                self._wake_up.wake()
            else:
                call_uninterrupted(partial(self.commands.append, command), self._wake_up.wake)
        except OSError as error:
            reraise_handler_error(error)
            if error.errno in faults.TRANSIENT_ERRNOS:
                self.wake()
            # else the pipe is full of wake-ups that it has not read yet, or it has ended
        if self._has_ended:  # read after the append: either this thread sees the end, or the engine's sees the command
            self.end()

    def wake(self) -> None:
        """Wake the engine, by trying again where the kernel is short of memory: else it might sleep for hours. Any
        thread.
        """
        for _ in range(_MAX_WAKE_TRIES):
            try:
                self._wake_up.wake()
            except OSError as error:
                reraise_handler_error(error)
                if error.errno in faults.TRANSIENT_ERRNOS:
                    sleep(_WAKE_AGAIN_SECONDS)
                    continue
            return

    def end(self) -> None:
        """The engine's thread has ended: refuse the commands that are left. Any thread."""
        self._has_ended = True
        while True:
            try:
                command = self.commands.popleft()
            except IndexError:
                return
            command.refuse(OSError(errno.ECONNABORTED, "the engine has ended"))

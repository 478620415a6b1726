"""What an engine has to do, when, and who may do it.

The engine's thread works, except while it sleeps in epoll_wait(2). Then a thread of the program may do one step in its
place: send what it has just written, or receive the datagram that it waits for (inline_io.py). That spares the
wake-ups of the engine's thread, which cost more than such a step.

There is no lock. From Work.begin_step() to end_step() there is compiled code, and there are calls that keep the GIL; so
no other thread runs meanwhile, and no signal's handler. Whoever cannot begin a step does not wait, but leaves the work
to the engine's thread: that one works, or has something to do, or this same thread is in a step (as a finalizer may
find). The garbage collector is off during a step, as on the engine's thread (interpreter/garbage_collector.py).

Some rare calls in a step are interpreted, or give up the GIL. The engine's thread, where it wakes up then, waits until
the step is over, but no longer than _PATIENCE_SECONDS: a signal's handler that runs in such a call may wait for the
engine.

After a step the engine's thread is woken only if there is something to do before it wakes up by itself.

In the pure build there are no steps: between any two lines it may give up the GIL, and run a handler.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Final

from utpsocket.engine.command_queue import Inbox
from utpsocket.engine.interpreter.native import sleep
from utpsocket.engine.interpreter.originals import time
from utpsocket.engine.kernel.poller import LevelPoller, WakeUp
from utpsocket.engine.ports.connect_gate import ConnectGate
from utpsocket.engine.timers import Timers
from utpsocket.engine.user_fds.open_fds import Rechecks

if TYPE_CHECKING:
    from utpsocket.engine.channels.utp import Bridge, BridgePort
    from utpsocket.engine.kernel.poller import Poller
    from utpsocket.engine.ports.endpoint import Endpoint
    from utpsocket.engine.ports.listener import Listener
    from utpsocket.engine.turns import Turns

# After ENOBUFS, which makes no event, a port sends again after so long. By feel: a queue of the kernel's drains in it.
_BLOCKED_US: Final = 1_000
_LOOK_SECONDS: Final = 0.000_1
_PATIENCE_SECONDS: Final = 0.5  # as fork_lock.py's
_LOOKS: Final = round(_PATIENCE_SECONDS / _LOOK_SECONDS)
_monotonic_ns: Final = time.monotonic_ns
_is_collecting: Final = gc.isenabled
_collect: Final = gc.enable
_do_not_collect: Final = gc.disable


class Work:
    """The base class of Loop."""

    turns: Turns[Endpoint, Bridge]
    """What has a lot to move, and how much of it in one iteration."""

    def __init__(self, poller: Poller, wake_up: WakeUp) -> None:
        # The work in progress.
        self.now = _monotonic_ns() // 1_000  # µs, of this iteration or step
        self.owner: object = None  # what it is done for: an exception ends it, faults.py

        # What is to be done: in this iteration, or at a time.
        self.timers: Timers[Bridge] = Timers()  # deadlines of connections, and calls
        self.call_at = self.timers.call_at  # see Reactor
        self.connect_gate = ConnectGate()  # connects that are complete and not visible yet
        self.rechecks = Rechecks()  # sockets that were closed here and may be open elsewhere, and when to look again
        self._dirty: dict[Bridge, None] = {}  # connections that something has happened to
        self._readable_endpoints: dict[Endpoint, None] = {}  # ports to receive from in this iteration
        self._readable_bridges: dict[Bridge, None] = {}  # pairs to read from
        self._deferred_delivery: list[Bridge] = []  # delivered last, see Loop._deliver_deferred()
        self._blocked: dict[BridgePort, None] = {}  # ports that could not send all
        self._listeners: dict[Listener, int] = {}  # those with something to do, and when; no others
        self._inbox = Inbox(wake_up)  # commands of other threads

        # Who may do it.
        self._wake_up = wake_up  # an fd that other threads make readable
        self._fds_lost = False  # the program has closed our fds: none may be used any more
        self.epoll_fd = -1 if isinstance(poller, LevelPoller) else poller.fileno()  # -1: there are no steps
        self.sleeps_until = 0  # when the engine's thread wakes up by itself, µs, or NEVER; 0 while it works
        self.steps = 0  # how many there were
        self._is_stepping = False  # a thread of the program is in a step
        self._was_collecting = False  # the garbage collector was on before that

    # ── for channels and ports: see Reactor and the Engine protocols beside them ──

    def mark_dirty(self, bridge: Bridge) -> None:
        """Something has happened to this connection: deliver and send in this iteration."""
        self._dirty[bridge] = None

    def wake_listener(self, listener: Listener) -> None:
        """A connection of this listener waits for the hand-over: try it in this iteration."""
        self._listeners.setdefault(listener, self.now)

    def forget_listener(self, listener: Listener) -> None:
        """The listener has ended: drop what was to be done for it."""
        self._listeners.pop(listener, None)

    def wake_bridge(self, bridge: Bridge) -> None:
        """Have the bridge read its pair again in this iteration, or the next."""
        self._dirty[bridge] = None
        if bridge.engine_sock is not None:
            self._readable_bridges[bridge] = None

    # ── the engine's thread ──

    def work_at(self) -> int:
        """When there is something to do: µs, 0 for at once, NEVER. At the end of an iteration, or of a step."""
        turns = self.turns
        if (
            self._readable_endpoints
            or self._readable_bridges
            or turns.idle_only
            or turns.endpoints
            or turns.readable
            or turns.dirty
            or self._inbox.commands
        ):
            return 0
        at = self.timers.next_at
        if self.connect_gate.retry_at is not None and self.connect_gate.retry_at < at:
            at = self.connect_gate.retry_at
        if self.rechecks.at is not None and self.rechecks.at < at:
            at = self.rechecks.at
        if self._blocked and self.now + _BLOCKED_US < at:
            at = self.now + _BLOCKED_US
        for when in self._listeners.values():
            if when < at:
                at = when
        return at

    def on_sleep(self, at: int) -> None:
        """The thread is about to sleep until this time, µs; 0: it does not."""
        self.sleeps_until = at if self.epoll_fd >= 0 else 0

    def on_awake(self) -> None:
        """The thread is awake, and takes the engine again."""
        self.sleeps_until = looks = 0
        while self._is_stepping and looks < _LOOKS:
            looks += 1
            sleep(_LOOK_SECONDS)

    # ── other threads ──

    def begin_step(self) -> bool:
        """Take the engine for one step on the calling thread. Returns False if the engine's thread works, or has
        something to do. In the compiled build; the caller must not wait for anything until end_step().
        """
        if (
            self._is_stepping
            or not self.sleeps_until
            or self._dirty
            or self._blocked
            or self._listeners
            or self.connect_gate.held
            or self._inbox.commands
            or self._fds_lost
        ):
            return False
        self._is_stepping = True
        self.steps += 1
        self._was_collecting = _is_collecting()
        if self._was_collecting:
            _do_not_collect()
        self.now = _monotonic_ns() // 1_000
        return True

    def end_step(self) -> None:
        """The step is over. The engine's thread is woken if there is something to do before it wakes up by itself."""
        self.owner = None
        if self._was_collecting:
            _collect()
        at = 0 if self._dirty else self.work_at()
        is_late = at < self.sleeps_until
        if is_late:
            self.sleeps_until = at  # it is woken once
        self._is_stepping = False
        if is_late:
            self._inbox.wake()

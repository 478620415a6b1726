"""What the engine of this process costs, part by part: CPU time of its thread, and calls of Python's and C's functions.

Nothing of this is in the library: the engine's thread is asked to go through other steps, which do the same between
two looks at a clock. While no meter is attached it costs nothing.

    meter = Meter("time")    or "parts", or "calls"
    meter.attach()
    …
    figures = meter.detach()

time    µs of CPU in Loop._work and in Loop._wait
parts   the same, and of _work what is in PARTS. The clock is read some hundred thousand times a second then, so the
        parts are reckoned without what that takes, and what is left of _work is not to be trusted: take "time" for that
calls   calls in Loop._work, of Python's functions and of C's; with the interpreter's profile function, so a compiled
        module's own calls are not seen
"""

from __future__ import annotations

import functools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

from utpsocket.engine import engine
from utpsocket.engine.channels.utp import Bridge
from utpsocket.engine.loop import Loop
from utpsocket.protocol import composer, runs
from utpsocket.protocol.sendbuffer import SendBuffer

KINDS: Final = ("time", "parts", "calls")
PARTS: Final = ("pair_read", "compose", "send", "receive", "check", "pair_write")
_STREAM: Final = {"receive": "pair_read", "send": "pair_write"}  # the calls at a pair
_DATAGRAMS: Final = {"send": "send", "send_many": "send", "receive": "receive", "receive_many": "receive"}
_CALIBRATION: Final = 20_000
_thread_ns: Final = time.thread_time_ns


class Meter:
    """Of the engine of this process; one at a time."""

    def __init__(self, kind: str) -> None:
        if kind not in KINDS:
            raise ValueError(kind)
        self._kind = kind
        self.iterations = 0
        self.work_ns = 0
        self.wait_ns = 0
        self.part_ns: Counter[str] = Counter()
        self.part_calls: Counter[str] = Counter()
        self.python_calls: Counter[str] = Counter()  # by function
        self.c_calls: Counter[str] = Counter()
        self._undo: list[Callable[[], object]] = []

    def attach(self) -> None:
        """From the engine's next iteration on."""
        engine().call(self._begin)

    def detach(self) -> dict[str, float]:
        """All that was counted: iterations, work_us, wait_us, and by kind parts or calls."""
        engine().call(self._end)
        figures: dict[str, float] = {
            "iterations": self.iterations,
            "work_us": self.work_ns / 1_000,
            "wait_us": self.wait_ns / 1_000,
        }
        if self._kind == "parts":
            once_ns = _clock_ns()
            for part in PARTS:
                spent_ns = self.part_ns[part] - self.part_calls[part] * once_ns
                figures[f"{part}_us"] = max(0.0, spent_ns / 1_000)
        elif self._kind == "calls":
            figures["python_calls"] = self.python_calls.total()
            figures["c_calls"] = self.c_calls.total()
        return figures

    # ── on the engine's thread ──

    def _begin(self, loop: Loop) -> None:
        work = self._profiled(loop._work) if self._kind == "calls" else loop._work
        loop.iteration = functools.partial(self._iteration, loop, work)
        self._undo.append(functools.partial(setattr, loop, "iteration", loop._iterate))
        if self._kind == "parts":
            for owner, name, part in _places(loop):
                self._time_calls(owner, name, part)

    def _end(self, loop: Loop) -> None:
        while self._undo:
            self._undo.pop()()

    def _iteration(self, loop: Loop, work: Callable[[Any], None]) -> None:
        """As Loop._iterate."""
        loop.owner = None
        began = _thread_ns()
        events = loop._wait()
        woke = _thread_ns()
        work(events)
        self.work_ns += _thread_ns() - woke
        self.wait_ns += woke - began
        self.iterations += 1

    def _profiled(self, work: Callable[[Any], None]) -> Callable[[Any], None]:
        python_calls, c_calls = self.python_calls, self.c_calls

        def count(frame: Any, event: str, argument: Any) -> None:
            if event == "call":
                python_calls[frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name] += 1
            elif event == "c_call":
                c_calls[getattr(argument, "__qualname__", "?")] += 1

        def profiled(events: Any) -> None:
            sys.setprofile(count)
            try:
                work(events)
            finally:
                sys.setprofile(None)
                c_calls["setprofile"] -= 1

        return profiled

    def _time_calls(self, owner: Any, name: str, part: str) -> None:
        """Have the calls of a function timed. A compiled class or module allows no other function: then the part is
        not told.
        """
        made: Callable[..., Any] = getattr(owner, name)
        ns, calls = self.part_ns, self.part_calls

        def timed(*arguments: Any) -> Any:
            began = _thread_ns()
            result = made(*arguments)
            ns[part] += _thread_ns() - began
            calls[part] += 1
            return result

        try:
            setattr(owner, name, timed)
        except (AttributeError, TypeError):
            return
        self._undo.append(functools.partial(setattr, owner, name, made))


def _places(loop: Loop) -> Iterator[tuple[Any, str, str]]:
    """Functions whose calls make up a part, where they are looked up."""
    yield SendBuffer, "segments", "compose"
    yield composer, "compose", "compose"
    yield composer, "compose_lone", "compose"
    yield runs.Run, "is_clean", "check"
    for channel in loop.channels.values():
        if isinstance(channel, Bridge) and channel.stream is not None:
            for name, part in _STREAM.items():
                yield *_place(channel.stream, name), part
            break
    for endpoint in loop.endpoints.values():
        calls = endpoint.port._calls
        for name, part in _DATAGRAMS.items():
            if hasattr(calls, name):
                yield *_place(calls, name), part
        break


def _place(calls: Any, name: str) -> tuple[Any, str]:
    """Where a method of this object is looked up: in its class, or in the compiled build the C function in it."""
    return (calls, f"_{name}") if hasattr(calls, f"_{name}") else (type(calls), name)


@functools.cache
def _clock_ns() -> float:
    """What timing adds to one timed call."""
    inside_ns = 0
    for _ in range(_CALIBRATION):
        began = _thread_ns()
        inside_ns += _thread_ns() - began
    return inside_ns / _CALIBRATION

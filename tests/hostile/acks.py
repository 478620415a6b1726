"""What a packet of a connected peer costs, in processor time: it says what it likes, a thousand times a second.

4,000 packets are under way, each by itself. Each trace is run a few times, and of what a step took the least counts,
since the machine has other things to do; the value is the step that took longest. What a step leaves to the engine's
next turns, when others have had theirs, is a step too.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from tests.hostile.registry import Case, Measured, case
from tests.protocol.wire import PEER, Wire
from utpsocket.protocol import Config, Run

PACKETS: Final = 4_000
SACK_BITS: Final = 2_016
BUDGET_US: Final = 200.0
_ALL: Final = (1 << SACK_BITS) - 1
_EVEN: Final = sum(1 << bit for bit in range(0, SACK_BITS, 2))
_ODD: Final = _EVEN << 1 & _ALL
_SIZES: Final = tuple(range(700, 1_200, 7))
_RUNS: Final = 5
_ROOM: Final = 100_000_000


class Victim:
    """A connection with 4,000 packets under way, and what each step took so far, in µs."""

    def __init__(self, sizes: tuple[int, ...] = (1_000,)) -> None:
        self.wire = wire = Wire.initiator(100, config=Config(send_buffer_bytes=8 << 20, receive_buffer_bytes=8 << 20))
        self.connection = connection = wire.connection
        send = connection.send
        send.recovery.min_rtt_us = 1_000  # not paced
        send.nodelay = True
        self.steps: list[float] = []
        self.ack(0, 0, is_full=True)
        for index in range(PACKETS):
            send.controller.window_bytes = 1 << 30
            wire.write_bytes(sizes[index % len(sizes)])
            connection.poll_transmit(now=wire.at, max_segments=64)
        wire.send()
        wire.wait(1_000)
        self.steps.clear()

    def receive(self, line: str) -> None:
        """A packet arrives; and the engine's turns that it makes necessary."""
        datagram = memoryview(self.wire.write(line))
        run = Run(datagram, len(datagram), PEER)
        self._step(lambda: self.connection.handle_run(run, now=self.wire.at))
        self.follow_ups()
        if ready_bytes := self.connection.receive.reassembly.ready_bytes:
            self.connection.finish_delivery(ready_bytes, now=self.wire.at)

    def follow_ups(self) -> None:
        """Whatever is due now."""
        while (at := self.connection.timeout_at()) is not None and at <= self.wire.at:
            self._step(lambda: self.connection.handle_timeout(now=self.wire.at))

    def _step(self, action: Callable[[], None]) -> None:
        started = time.thread_time_ns()
        action()
        self.connection.poll_transmit(now=self.wire.at, max_segments=64)
        self.connection.timeout_at()
        self.steps.append((time.thread_time_ns() - started) / 1_000)

    def ack(self, ack: int, bits: int, *, is_full: bool = False, window: int = _ROOM, words: str = "") -> None:
        """A STATE, a millisecond after the last packet."""
        self.wire.now += 1_000
        sack = f" sack={bits.to_bytes(252, 'little').hex()}" if bits or is_full else ""
        self.receive(f"STATE seq=1 ack={ack} wnd={window} {words}{sack}")

    def pass_time(self, microseconds: int) -> None:
        """Nothing arrives for so long."""
        self.wire.now += microseconds
        self.follow_ups()


def ack_of_all() -> Victim:
    victim = Victim()
    victim.ack(PACKETS, 0)
    return victim


def ack_of_all_odd_sizes() -> Victim:
    victim = Victim(_SIZES)
    for _ in range(30):
        victim.ack(0, _EVEN)
    victim.ack(PACKETS, 0)
    return victim


def ack_after_sacks() -> Victim:
    victim = Victim()
    for _ in range(60):
        victim.ack(0, _ALL)
    victim.ack(PACKETS, 0)
    return victim


def ack_after_resends() -> Victim:
    victim = Victim()
    for turn in range(300):
        victim.ack(0, _EVEN if turn % 3 else _ODD >> 900 << 900)
    victim.ack(PACKETS, 0)
    return victim


def sack_alternating() -> Victim:
    victim = Victim()
    for turn in range(600):
        victim.ack(0, _EVEN if turn % 2 else _ODD)
    return victim


def sack_random() -> Victim:
    victim, chance = Victim(), random.Random(1)
    for _ in range(600):
        victim.ack(0, chance.getrandbits(SACK_BITS))
    return victim


def sack_above_a_hole() -> Victim:
    victim = Victim()
    for turn in range(200):
        victim.ack(0, ((1 << 100 + turn) - 1) << 1_700)
    return victim


def sack_sawtooth() -> Victim:
    victim = Victim()
    for turn in range(600):
        victim.ack(turn * 3 - 3 * (turn % 2), _ODD if turn % 3 else _EVEN)
    return victim


def timeouts() -> Victim:
    victim = Victim()
    for turn in range(6):
        victim.pass_time(30_000_000)
        victim.ack(turn, _EVEN if turn % 2 else 0)
    victim.ack(PACKETS, 0)
    return victim


def reneging() -> Victim:
    victim = Victim()
    for turn in range(3):
        for _ in range(50):
            victim.ack(turn, _ALL)
        victim.ack(turn + 1, 0)
        victim.pass_time(70_000_000)
    return victim


def windows_and_times() -> Victim:
    victim, chance = Victim(), random.Random(2)
    for turn in range(600):
        words = f"ts={chance.getrandbits(32)} diff={chance.getrandbits(32)}"
        victim.ack(turn // 2, chance.choice((0, _EVEN)), window=chance.choice((0, 1, 3_000, _ROOM)), words=words)
    return victim


def strays() -> Victim:
    victim, chance = Victim(), random.Random(3)
    for turn in range(600):
        victim.wire.now += 1_000
        seq = chance.randrange(1, 9_000)
        victim.receive(
            (
                f"SYN seq={turn % 3} wnd=0",
                f"RESET seq={seq} ack={9_000 + turn} wnd=0",
                f"FIN seq={9_000 + seq} ack=0 wnd={_ROOM}",
                f"DATA seq={seq + 1} ack={-turn} wnd={_ROOM} len={1 + turn % 2 * 1_000}",
            )[turn % 4]
        )
    return victim


TRACES: Final = (
    ack_of_all,
    ack_of_all_odd_sizes,
    ack_after_sacks,
    ack_after_resends,
    sack_alternating,
    sack_random,
    sack_above_a_hole,
    sack_sawtooth,
    timeouts,
    reneging,
    windows_and_times,
    strays,
)


def costliest(trace: Callable[[], Victim]) -> Measured:
    """The step of this trace that took longest."""
    gc.disable()  # the engine's thread collects nothing (garbage_collector.py)
    try:
        runs = [trace().steps for _ in range(_RUNS)]
    finally:
        gc.enable()
    least = [min(steps) for steps in zip(*runs, strict=True)]
    return Measured(max(least), f"{len(least)} steps, {statistics.mean(least):.1f} in the mean")


def register() -> None:
    """Make the cases known."""
    for trace in TRACES:
        case(Case(f"packet_{trace.__name__}", BUDGET_US, "µs", partial(costliest, trace)))

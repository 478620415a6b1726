"""What the link is like: rate, delay, queue, loss and jitter of each direction, and how they change."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from utpsocket.cli.quantities import read_rate, read_size, read_time


@dataclass
class Way:
    """One direction of the link. It can be changed while packets are under way.

    A delay that becomes smaller lets later packets overtake, as a new route does; jitter keeps the order.
    """

    rate_bps: int = 20_000_000
    """Bits of IP per second; 0: no limit."""
    delay_us: int = 25_000
    """Propagation, µs."""
    queue_us: int = 500_000
    """Room of the queue, which drops what does not fit, as the time that the rate takes for it, µs."""
    queue_bytes: int = 0
    """The same in bytes; it counts where it is not 0."""
    loss: float = 0.0
    """The share of packets that are dropped by chance."""
    jitter_us: int = 0
    """A packet's delay is longer by up to this, evenly distributed, µs."""

    def order(self, number: int) -> str:
        """What the emulator is sent about this direction."""
        queue_bytes = self.queue_bytes or self.rate_bps * self.queue_us / 8e6
        return f"{number} {self.rate_bps} {self.delay_us} {queue_bytes} {self.loss} {self.jitter_us}\n"

    def set(self, **fields: Any) -> None:
        """Change some of it."""
        for name, value in fields.items():
            setattr(self, name, value)


@dataclass(frozen=True)
class Change:
    """What becomes of the link at one time.

    at      seconds since the start
    way     ">" from left to right, "<" back, "" both
    fields  of Way
    """

    at: float
    way: str
    fields: dict[str, Any]


def read_share(text: str) -> float:
    """0.01 or 1%."""
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ArgumentTypeError(f"{text!r} is not a share such as 0.01 or 1%")
    return share


def read_queue(text: str) -> dict[str, int]:
    """A time at the way's rate, or a number of bytes."""
    try:
        return {"queue_us": read_time(text), "queue_bytes": 0}
    except ArgumentTypeError:
        try:
            return {"queue_bytes": read_size(text)}
        except ArgumentTypeError:
            raise ArgumentTypeError(f"{text!r} is neither a time such as 500ms nor a size such as 64K") from None


READERS: Final[dict[str, Callable[[str], dict[str, Any]]]] = {
    "rate": lambda text: {"rate_bps": read_rate(text)},
    "delay": lambda text: {"delay_us": read_time(text)},
    "queue": read_queue,
    "loss": lambda text: {"loss": read_share(text)},
    "jitter": lambda text: {"jitter_us": read_time(text)},
}
"""How the value of each property is read: the fields of Way that it means."""


def read_both(name: str) -> Callable[[str], tuple[dict[str, Any], dict[str, Any]]]:
    """A reader of VALUE, or FORWARD/BACK, for this property."""

    def read(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
        forward, _, back = text.partition("/")
        return READERS[name](forward), READERS[name](back or forward)

    return read


def read_change(text: str) -> Change:
    """T:NAME=VALUE, T:>NAME=VALUE or T:<NAME=VALUE."""
    match = re.fullmatch(r"([\d.]+):([<>]?)(\w+)=(.+)", text)
    if match is None or match[3] not in READERS:
        raise ArgumentTypeError(f"{text!r} is not a change such as 30:delay=80ms, one of {', '.join(READERS)}")
    return Change(float(match[1]), match[2], READERS[match[3]](match[4]))

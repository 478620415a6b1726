"""What a run of injected faults came to. Separate because every family of cases gives one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Failure:
    """A point at which something that must not happen did.

    point   names it, and replays it: `python3 -m tests.faults POINT`
    error   what was injected
    cause   what then was wrong
    """

    point: str
    error: str
    cause: str


@dataclass
class Report:
    """points: places that were tried; injected: those at which the fault was really raised."""

    points: int = 0
    injected: int = 0
    failures: list[Failure] = field(default_factory=list)

    def add(self, other: Report) -> None:
        self.points += other.points
        self.injected += other.injected
        self.failures += other.failures

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "points": self.points,
            "injected": self.injected,
            "failures": [vars(failure) for failure in self.failures],
        }


class Family(Protocol):
    """A module of cases."""

    def points(self, *, quick: bool) -> list[str]:
        """The names of all points, or of a sample that takes half a minute. Each begins with the family's name."""

    def inject(self, points: Sequence[str]) -> Report:
        """Inject at each of these points, one after the other. Never raises for what it finds."""

"""The result of a run of injected faults, which every family of cases returns."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias


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


Note: TypeAlias = "Callable[[str, bool, str], None]"
"""Told of each point that is done: whether the fault was raised, and what was wrong, or nothing."""


class Journal:
    """What is done, in a file, so that a run may be ended and go on later."""

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None
        self._done: dict[str, tuple[bool, str]] = {}
        if self._path is not None and self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                point, has_fired, cause = json.loads(line)
                self._done[point] = has_fired, cause

    def note(self, point: str, has_fired: bool, cause: str) -> None:
        if self._path is not None:
            with self._path.open("a") as file:
                print(json.dumps([point, has_fired, cause]), file=file)

    def left(self, points: Sequence[str], report: Report) -> list[str]:
        """Those that are not done. The report takes in the others."""
        for point in points:
            if point in self._done:
                has_fired, cause = self._done[point]
                report.points += 1
                report.injected += has_fired
                if cause:
                    report.failures.append(Failure(point, point.rpartition(":")[2], cause))
        return [point for point in points if point not in self._done]


class Family(Protocol):
    """A module of cases."""

    def points(self, *, quick: bool) -> list[str]:
        """The names of all points, or of a sample that takes half a minute. Each begins with the family's name."""

    def inject(self, points: Sequence[str], note: Note) -> Report:
        """Inject at each of these points, one after the other. Never raises for what it finds."""

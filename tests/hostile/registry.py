"""The cases by name. A module of cases calls case() for each; __main__.py imports them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Measured(NamedTuple):
    """value: to be compared with the budget; note: how it came about."""

    value: float
    note: str


class Case(NamedTuple):
    """An attack whose damage is measured.

    budget     the most that the measured value may be, or the least, as `at_least` says
    unit       of both
    """

    name: str
    budget: float
    unit: str
    measure: Callable[[], Measured]
    at_least: bool = False

    def is_kept(self, value: float) -> bool:
        """Whether the budget is."""
        return value >= self.budget if self.at_least else value <= self.budget


CASES: dict[str, Case] = {}


def case(one: Case) -> None:
    """Make a case known."""
    if one.name in CASES:
        raise ValueError(f"two cases are called {one.name}")
    CASES[one.name] = one

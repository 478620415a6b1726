"""The tables of the lab are what its cases give."""

from __future__ import annotations

import pytest

from tests.simulation.lab import CASES, read, row, run, snapshot
from tests.simulation.scene import Scene

TABLES = [("ledbat", False), ("ledbat++", True)]
QUICK = ("uplink", "on-and-off")  # a second or two each


@pytest.mark.parametrize(("controller", "is_light"), TABLES)
@pytest.mark.parametrize("case", QUICK)
def test_a_case_gives_what_its_table_says(
    case: str, controller: str, is_light: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python3 -m tests.simulation.lab --controller NAME --write` renews a table."""
    monkeypatch.setattr(Scene, "is_light", is_light)
    assert [row(case, figure) for figure in run(case, controller)] == read(snapshot(controller, is_light))[case]


@pytest.mark.parametrize(("controller", "is_light"), TABLES)
def test_a_table_has_no_case_that_is_not(controller: str, is_light: bool) -> None:
    cases = list(read(snapshot(controller, is_light)))
    assert cases == [case for case in CASES if case in cases]


def test_the_simulation_agrees_with_what_was_measured_over_a_link() -> None:
    """Linux's own TCP and `ledbat` over an emulated link: wherever one number was measured, the simulation's is within
    a fifth, or 1.5 Mbit/s, of it. What the base delay has changed since is left out.
    """
    compared = 0
    for case, rows in read(snapshot("ledbat")).items():
        for line in rows:
            value, measured = line[52:59].strip(), line[88:].strip()
            if case != "back-drains" and measured.lstrip("-").replace(".", "").isdigit():
                compared += 1
                slack = max(0.2 * abs(float(measured)), 1.5 if line[61:67] == "Mbit/s" else 0.1)
                assert abs(float(value) - float(measured)) <= slack, line
    assert compared >= 20

"""The tables of the lab are what its cases give."""

from __future__ import annotations

import pytest

from tests.simulation.lab import CASES, read, row, run, snapshot

QUICK = ("uplink",)  # a second each


@pytest.mark.parametrize("controller", [None, "ledbat"])
@pytest.mark.parametrize("case", QUICK)
def test_a_case_gives_what_its_table_says(case: str, controller: str | None) -> None:
    """`python3 -m tests.simulation.lab --write` renews the tables."""
    assert [row(case, figure) for figure in run(case, controller)] == read(snapshot(controller))[case]


@pytest.mark.parametrize("controller", [None, "ledbat"])
def test_the_tables_have_every_case(controller: str | None) -> None:
    assert list(read(snapshot(controller))) == list(CASES)


def test_the_simulation_agrees_with_what_was_measured_over_a_link() -> None:
    """Linux's own TCP and `ledbat` over an emulated link: wherever one number was measured, the simulation's is within
    a fifth, or 1.5 Mbit/s, of it.
    """
    compared = 0
    for rows in read(snapshot("ledbat")).values():
        for line in rows:
            value, measured = line[52:59].strip(), line[88:].strip()
            if measured.lstrip("-").replace(".", "").isdigit():
                compared += 1
                slack = max(0.2 * abs(float(measured)), 1.5 if line[61:67] == "Mbit/s" else 0.1)
                assert abs(float(value) - float(measured)) <= slack, line
    assert compared >= 25

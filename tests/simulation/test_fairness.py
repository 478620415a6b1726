"""The table of shared bottlenecks is what it was, and LEDBAT is what it promises to be: full, quiet, yielding."""

from __future__ import annotations

import pytest

from tests.simulation.fairness import HEADING, SCENES, SNAPSHOT, row


@pytest.mark.parametrize("index", range(len(SCENES)))
def test_every_scene_is_as_reviewed(index: int) -> None:
    """`python -m tests.simulation.fairness --write` renews the table."""
    lines = SNAPSHOT.read_text(encoding="utf-8").splitlines()
    assert lines[0] == HEADING.rstrip("\n")
    assert len(lines) == 1 + len(SCENES)
    assert row(*SCENES[index]) == lines[1 + index]


def test_the_table_agrees_with_the_aims_of_ledbat() -> None:
    rows = SNAPSHOT.read_text(encoding="utf-8").splitlines()[1:]
    alone = rows[0].split()
    assert int(alone[-2]) >= 95, "it fills what no other flow uses"
    assert int(alone[-6]) <= 110, "with no more delay than its target"
    yielding = next(line for line in rows if line.startswith("utp (0), reno"))
    assert float(yielding.split()[7]) < 10, "and steps back from a TCP that comes later"

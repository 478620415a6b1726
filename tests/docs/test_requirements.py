"""What the tables of requirements name is there: attributes of modules, tests, cases of the lab."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator

import pytest

from tests.docs.documents import DOCS, ROOT, rows
from tests.simulation.lab import CASES

COLUMNS = {1: 6, 2: 5}  # of each section's table


def table(section: int) -> list[list[str]]:
    text = (DOCS / "congestion.md").read_text("utf-8").partition(f"## {section}. ")[2].partition("\n## ")[0]
    return list(rows("\n".join(line for line in text.splitlines() if line.startswith("|"))))


def quoted(cell: str) -> list[str]:
    return [name.strip(" `") for name in cell.split("`, `")]


def is_attribute(name: str) -> bool:
    """Of a module below utpsocket.protocol, as congestion.ledbat.Ledbat.on_ack."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(("utpsocket.protocol", *parts[:count])))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def names_in(path: str) -> Iterator[str]:
    for node in ast.parse((ROOT / "tests" / path).read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef))


def is_test(name: str) -> bool:
    if name.startswith("lab: "):
        return name.removeprefix("lab: ") in CASES
    path, _, test = name.partition("::")
    return (ROOT / "tests" / path).is_file() and (not test or test in names_in(path))


@pytest.mark.parametrize("section", COLUMNS)
def test_what_a_row_names_is_there(section: int) -> None:
    found = table(section)
    assert len(found) >= 12
    missing = []
    for row in found:
        assert len(row) == COLUMNS[section], row
        where, tests = row[-3:-1]
        missing += [name for name in quoted(where) if not is_attribute(name)]
        missing += [name for name in quoted(tests) if not is_test(name)]
        assert row[-1], row
    assert missing == []


@pytest.mark.parametrize(
    ("name", "is_there"),
    [
        ("congestion.ledbat.Ledbat.on_ack", True),
        ("congestion.ledbat.Ledbat.on_nothing", False),
        ("congestion.nothing", False),
        ("recovery", True),
    ],
)
def test_the_test_sees_attributes(name: str, is_there: bool) -> None:
    assert is_attribute(name) is is_there


@pytest.mark.parametrize(
    ("name", "is_there"),
    [
        ("docs/test_requirements.py::test_the_test_sees_tests", True),
        ("docs/test_requirements.py::test_nothing", False),
        ("docs/test_nothing.py", False),
        ("protocol/test_congestion.py::TestAny.test_slow_start_doubles_the_window", True),
        ("lab: alone", True),
        ("lab: nothing", False),
    ],
)
def test_the_test_sees_tests(name: str, is_there: bool) -> None:
    assert is_test(name) is is_there


def test_every_level_is_one_of_rfc_2119() -> None:
    assert {row[1] for row in table(1)} <= {"must", "should", "may", "–"}
    assert all(re.fullmatch(r"[A-Z0-9.]+", row[0]) for section in COLUMNS for row in table(section))

"""The markdown table of RESULTS.md: one section per interpreter, written by runs and checked by CI.

A run of some modules replaces their rows and keeps the others', and CI asks whether what it has seen agrees with what
is written. Counts of tests differ between releases and machines and times between any two runs, so only names are
compared: which modules there are, and which tests are different.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final


@dataclass(frozen=True)
class Layout:
    """What differs between the tables of several commands."""

    markers: tuple[str, str]
    introduction: str
    first: str
    """the heading above the rows' names"""

    columns: tuple[str, ...]
    """keys of the rows in the object that the command prints as JSON; the last one is not summed"""

    headings: tuple[str, ...]


STDLIB: Final = Layout(
    markers=("<!-- compat stdlib {feature}: begin -->", "<!-- compat stdlib {feature}: end -->"),
    introduction=(
        "CPython {feature}: tests passing over TCP, and these over uTP in every run. Relevant are those that make"
        " internet stream sockets."
    ),
    first="module",
    columns=("over_tcp", "same", "relevant", "relevant_same", "expected", "runs"),
    headings=("pass over TCP", "same over uTP", "relevant", "same", "expected differences", "runs"),
)
DIFFERENCES: Final = "Expected differences"
SLOWER: Final = "Slower than three times TCP, in the runs above"


@dataclass
class Table:
    """One interpreter's section. The keys of `rows` are modules, of the others ids of tests."""

    rows: dict[str, tuple[int | str, ...]] = field(default_factory=dict)
    expected: dict[str, str] = field(default_factory=dict)
    slow: dict[str, str] = field(default_factory=dict)

    def updated(self, newer: Table) -> Table:
        """This table with what `newer` says about its modules."""

        def kept(tests: dict[str, str]) -> dict[str, str]:
            return {test: why for test, why in tests.items() if module_of(test, newer.rows) is None}

        return Table(self.rows | newer.rows, kept(self.expected) | newer.expected, kept(self.slow) | newer.slow)


def seen(found: dict[str, Any], layout: Layout = STDLIB) -> Table:
    """What a run has found, from the object it prints as JSON."""
    rows = {module["name"]: tuple(module.get(name, 1) for name in layout.columns) for module in found["modules"]}
    passing = layout.columns.index("over_tcp")
    return Table(
        {name: row for name, row in rows.items() if row[passing]}, dict(found["expected"]), dict(found["slow"])
    )


def disagreements(written: Table, found: Table, races: set[str] | frozenset[str] = frozenset()) -> list[str]:
    """What a run has found that the written table does not know; of `races` it need not."""
    lines = [f"{name} is not in the table" for name in found.rows if name not in written.rows]
    unknown = found.expected.keys() - written.expected.keys() - races
    return lines + [f"{test} differs, which the table does not say" for test in sorted(unknown)]


def module_of(test: str, modules: dict[str, Any]) -> str | None:
    """Which of `modules` this test's id belongs to."""
    return next((name for name in modules if test.startswith(f"{name}.") or f"({name}." in test), None)


def render(feature: str, table: Table, layout: Layout = STDLIB) -> str:
    """The section's text."""
    rows = dict(sorted(table.rows.items()))
    counts = layout.columns.index("relevant")
    relevant = {name: row for name, row in rows.items() if row[counts]}
    rest = {name: row for name, row in rows.items() if not row[counts]}
    lines = [
        layout.introduction.format(feature=feature),
        "",
        f"| {layout.first} | {' | '.join(layout.headings)} |",
        f"|---|{'--:|' * len(layout.headings)}",
        *(f"| `{name}` | {' | '.join(map(str, row))} |" for name, row in relevant.items()),
        *(f"| `{name}` | {' | '.join(map(str, row))} |" for name, row in rest.items()),
        f"| **sum** | {' | '.join(map(_sum, list(zip(*rows.values(), strict=True))[:-1]))} | |",
    ]
    for title, tests in ((DIFFERENCES, table.expected), (SLOWER, table.slow)):
        if tests:
            lines += ["", f"{title}:", "", *(f"* `{test}`: {why}" for test, why in sorted(tests.items()))]
    return "\n".join(lines) + "\n"


def parse(text: str) -> Table:
    """The table that render() wrote."""
    table = Table()
    tests: dict[str, str] = {}
    for line in text.splitlines():
        row = re.match(r"\| `([\w.-]+)` \|(.*)\|$", line)
        listed = re.match(r"\* `(.+?)`: (.*)$", line)
        if row:
            table.rows[row[1]] = tuple(map(_cell, row[2].split("|")))
        elif listed:
            tests[listed[1]] = listed[2]
        elif line == f"{DIFFERENCES}:":
            tests = table.expected
        elif line == f"{SLOWER}:":
            tests = table.slow
    return table


def read(path: Path, feature: str, layout: Layout = STDLIB) -> Table | None:
    """This interpreter's table in the file, None where it has none."""
    found = _section(feature, layout).search(path.read_text(encoding="utf-8") if path.exists() else "")
    return parse(found[0]) if found else None


def write(path: Path, feature: str, table: Table, layout: Layout = STDLIB) -> None:
    """Put the table between this interpreter's markers in the file; without them, at its end."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    begin, end = (marker.format(feature=feature) for marker in layout.markers)
    block = f"{begin}\n{render(feature, table, layout)}{end}"
    if _section(feature, layout).search(text):
        path.write_text(_section(feature, layout).sub(lambda _: block, text, count=1), encoding="utf-8")
    else:
        path.write_text(f"{text}\n{block}\n" if text else f"{block}\n", encoding="utf-8")


def feature_version(version: str) -> str:
    """`3.11` of `3.11.7 (main, …)`."""
    return ".".join(version.split(".")[:2])


def _sum(column: tuple[int | str, ...]) -> str:
    return str(sum(cell for cell in column if isinstance(cell, int))) if isinstance(column[0], int) else ""


def _cell(text: str) -> int | str:
    text = text.strip()
    return int(text) if text.isdigit() else text


def _section(feature: str, layout: Layout) -> re.Pattern[str]:
    begin, end = (re.escape(marker.format(feature=feature)) for marker in layout.markers)
    return re.compile(f"{begin}.*?{end}", re.DOTALL)

"""No line of prose in the documents and README is longer than a line of code may be."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.docs.documents import README, ROOT, documents, without_code

LONGEST = 120
# What cannot be broken: a row of a table, and a link, which counts as what is read of it.
_LINK = re.compile(r"\[(?P<text>[^]]*)\]\([^)]*\)")


def too_long(text: str) -> Iterator[str]:
    for line in without_code(text).splitlines():
        if not line.startswith("|") and len(line) > LONGEST and len(_LINK.sub(r"\g<text>", line)) > LONGEST:
            yield line


def test_lines_are_short_enough() -> None:
    found = [
        f"{document.relative_to(ROOT)}: {line}"
        for document in [README, *documents()]
        for line in too_long(document.read_text("utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("µ" * LONGEST, 0),
        ("µ" * (LONGEST + 1), 1),
        ("* " + "word " * 30, 1),
        ("| " + "word " * 30 + "|", 0),
        (f"* see [use]({'x' * LONGEST}) §5", 0),
        (f"* see [use]({'x' * LONGEST}) " + "word " * 30, 1),
        (f"```text\n{'x ' * LONGEST}\n```", 0),
    ],
)
def test_a_line_that_is_too_long_is_seen(line: str, count: int) -> None:
    assert len(list(too_long(f"# Heading\n\n{line}\n"))) == count

"""The documents as the tests see them: files, numbered sections, code blocks, tables.

A block of Python in the guide or in README is run as a program of its own. In the document a comment before it may
say otherwise:

    <!-- not run: REASON -->      it is not
    <!-- needs: NAME -->          it is where that module or program is there

and a block of text behind it is what it prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "utpsocket" / "docs"
README = ROOT / "README.md"

_BLOCK = re.compile(
    r"(?:^<!-- (?P<how>[^\n]*?) -->\n)?^```python\n(?P<code>.*?)^```\n"
    r"(?:\n(?:It prints:\n\n)?^```text\n(?P<output>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A program in a document."""

    name: str
    code: str
    output: str
    not_run: bool
    needs: str


def documents() -> list[Path]:
    return sorted(DOCS.rglob("*.md"))


def sections(document: Path) -> list[int]:
    """The numbers of its headings, in their order."""
    return [
        int(number) for number in re.findall(r"^## (\d+)\. ", without_code(document.read_text("utf-8")), re.MULTILINE)
    ]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def blocks(document: Path) -> list[Block]:
    """Its blocks of Python."""
    text = document.read_text("utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        how = match["how"] or ""
        line = text.count("\n", 0, match.start("code"))
        needs = how.removeprefix("needs: ") if how.startswith("needs: ") else ""
        name = f"{document.relative_to(ROOT if document == README else DOCS).as_posix()}:{line}"
        found.append(Block(name, match["code"], match["output"] or "", how.startswith("not run: "), needs))
    return found


def rows(table: str) -> Iterator[list[str]]:
    """The cells of a table's rows, without its head; code without its backquotes."""
    for line in table.strip().splitlines()[2:]:
        yield [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]

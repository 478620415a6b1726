"""Every citation of a document, `docs/NAME.md §N`, in code, tests and documents leads to a section that is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.documents import DOCS, README, ROOT, documents, sections, without_code

FOLDERS = ("utpsocket", "tests", "compat", "examples", ".ci")
SUFFIXES = (".py", ".cjs", ".md", ".toml", ".sh", "")

_SECTIONS = r"§\d+(?:(?:,| to| and|, and) §\d+)*"
_CITATION = re.compile(rf"\bdocs/(?P<name>[a-z/-]+)\.md(?:,? (?P<sections>{_SECTIONS}))?")
_LINK = re.compile(rf"\]\((?P<path>[^)#:]+\.md)\)(?: (?P<sections>{_SECTIONS}))?")
# What follows a citation that reads like more sections, in a form that is not resolved: §1-4, §§ 2, §1/§2.
_UNREAD = re.compile(r",? ?(?:§|[-–/] ?§?\d)")
_LOST = re.compile(r"\b[A-Z][A-Z-]+\.md\b")
_OURS = frozenset({"README.md", "RESULTS.md"})


def files() -> Iterator[Path]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and path.suffix in SUFFIXES and "__pycache__" not in path.parts:
                yield path
    yield from (ROOT / name for name in ("README.md", "pyproject.toml"))


def joined(path: Path) -> str:
    """The text with its lines joined, so that a citation may lie across two of them, of a comment too."""
    return re.sub(r"\s*\n\s*(?:(?:#|//) )?", " ", path.read_text("utf-8"))


def numbers(cited: str | None) -> list[int]:
    """§2 to §4, §12: 2, 3, 4, 12."""
    found: list[int] = []
    for is_range, number in re.findall(r"( to )?§(\d+)", cited or ""):
        found += range(found[-1] + 1, int(number) + 1) if is_range else [int(number)]
    return found


def unresolved(document: Path, cited: str | None) -> Iterator[str]:
    if not document.is_file():
        yield f"there is no {document}"
        return
    missing = set(numbers(cited)) - set(sections(document))
    if missing:
        yield f"{document.name} has no section {sorted(missing)}"


def broken(path: Path) -> list[str]:
    found: list[str] = []
    text = joined(path)
    for match in _CITATION.finditer(text):
        found += unresolved(DOCS / f"{match['name']}.md", match["sections"])
        if _UNREAD.match(text, match.end()):
            found.append(f"{match[0]} goes on in a form that is not read: {text[match.end() :][:10]!r}")
    return [f"{path.relative_to(ROOT)}: {why}" for why in found]


def test_every_citation_leads_to_a_section() -> None:
    assert [why for path in files() if path != Path(__file__) for why in broken(path)] == []


def test_every_link_between_documents_leads_to_a_section() -> None:
    found = [
        f"{document.name}: {why}"
        for document in [README, *documents()]
        for match in _LINK.finditer(re.sub(r"\s+", " ", without_code(document.read_text("utf-8"))))
        for why in unresolved((document.parent / match["path"]).resolve(), match["sections"])
    ]
    assert found == []


def test_sections_are_numbered_from_one() -> None:
    for document in documents():
        found = sections(document)
        assert found == list(range(1, len(found) + 1)), document


def test_no_document_is_cited_that_is_not_here() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in files()
        if path != Path(__file__)
        for name in _LOST.findall(path.read_text("utf-8"))
        if name not in _OURS
    }
    assert found == set()


@pytest.mark.parametrize(
    ("text", "is_broken"),
    [
        ("see docs/protocol.md §1 to §4, §12.", False),
        ("see docs/protocol.md", False),
        ("see docs/guide/use.md §1 and §2; RFC 9293 §99", False),
        ("see docs/protocol.md §99", True),
        ("see docs/protocol.md\n    # §1, §99.", True),
        ("see docs/nothing.md §1", True),
        ("see docs/protocol.md §1, §2, RFC 9293 §99", False),
        ("see docs/protocol.md §1-99", True),
        ("see docs/protocol.md §1–99", True),
        ("see docs/protocol.md §§ 99", True),
        ("see docs/protocol.md §1/§99", True),
    ],
)
def test_the_test_sees(text: str, is_broken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.docs.test_citations.ROOT", tmp_path)
    (tmp_path / "cites.py").write_text(text, "utf-8")
    assert bool(broken(tmp_path / "cites.py")) is is_broken

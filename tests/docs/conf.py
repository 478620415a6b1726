"""How Sphinx makes a site of utpsocket/docs: `python3 -m tests.docs` calls it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import utpsocket
from tests.public_names import SECTIONS

project = "utpsocket"
author = "the authors of utpsocket"
version = release = utpsocket.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinxcontrib.mermaid"]
source_suffix = {".md": "markdown"}
root_doc = "index"
html_theme = "furo"
html_title = f"utpsocket {version}"
html_copy_source = False

myst_fence_as_directive = {"mermaid"}
myst_heading_anchors = 2

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

_UNDERLINE = re.compile(r"-{3,}")


def as_rest(text: str) -> str:
    """Plain text in which code stands in single backquotes, as reStructuredText."""
    text = re.sub(r"([\\*|])", r"\\\1", text)
    text = re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", text)
    return re.sub(r"`([^`]+)`", lambda code: f"``{code[1].replace(chr(92), '')}``", text)


def paragraphs(lines: list[str]) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [each for each in found if each]


def rest_of(paragraph: list[str]) -> list[str]:
    """One paragraph of a docstring: a heading, a list, prose, or what is set out in columns, which stays as it is."""
    if len(paragraph) > 1 and _UNDERLINE.fullmatch(paragraph[1].strip()):
        return [f".. rubric:: {paragraph[0]}", "", *(rest_of(paragraph[2:]) if paragraph[2:] else [])]
    if re.match(rf"({'|'.join(SECTIONS)}):(?: |$)", paragraph[0]):
        return fields_of(paragraph)
    if paragraph[0].startswith("* "):
        return [*("* " + as_rest(line[2:]) if line.startswith("* ") else as_rest(line) for line in paragraph), ""]
    if any(line.startswith(" ") or re.search(r"\S {2,}\S", line) for line in paragraph):
        return [".. code-block:: text", "", *(f"   {line}" for line in paragraph), ""]
    return [*map(as_rest, paragraph), ""]


def fields_of(paragraph: list[str]) -> list[str]:
    """The sections of a docstring (docs/style.md §4) as a list of fields."""
    found: list[str] = []
    indent = 4
    for line in paragraph:
        section = re.match(rf"({'|'.join(SECTIONS)}):(?: |$)(.*)", line)
        parameter = re.match(r" {4}(\w[\w, ]*): (.*)", line)
        if section:
            found.append(f":{section[1]}: {as_rest(section[2])}".rstrip())
            indent = 4
        elif parameter:
            names = ", ".join(f"``{name}``" for name in parameter[1].split(", "))
            found.append(f"    * {names}: {as_rest(parameter[2])}")
            indent = 6
        else:
            found.append(" " * indent + as_rest(line.strip()))
    return [*found, ""]


def convert(_app: Any, _what: str, _name: str, _about: Any, _options: Any, lines: list[str]) -> None:
    """Our docstrings are plain text."""
    lines[:] = [line for paragraph in paragraphs(lines) for line in rest_of(paragraph)]


def add_contents(_app: Any, name: str, source: list[str]) -> None:
    """Sphinx needs a list of the pages: those that the first one links to, in its order."""
    if name == root_doc:
        pages = re.findall(r"\]\(([\w/-]+)\.md\)", source[0])
        source[0] += "\n".join(["", "```{toctree}", ":hidden:", "", *pages, "```", ""])


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", convert)
    app.connect("source-read", add_contents)

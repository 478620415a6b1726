"""Every heading of BEP 29 that rules anything is cited where the code obeys it, and no citation names another."""

from __future__ import annotations

import re
from pathlib import Path

import utpsocket.protocol

HEADINGS = (
    "overview",
    "header format",
    "version",
    "connection_id",
    "timestamp_microseconds",
    "timestamp_difference_microseconds",
    "wnd_size",
    "extension",
    "selective ack",
    "type",
    "seq_nr",
    "ack_nr",
    "connection setup",
    "packet loss",
    "timeouts",
    "packet sizes",
    "congestion control",
)


def cited() -> set[str]:
    """What stands in quotes after "BEP 29", up to the end of the sentence or the next source."""
    found = set()
    for path in Path(utpsocket.protocol.__file__).parent.rglob("*.py"):
        text = re.sub(r"\s+", " ", path.read_text(encoding="utf-8"))
        for citation in re.findall(r'BEP 29 ((?:"[^"]+"(?:, and |, | and )?)+)', text):
            found |= set(re.findall(r'"([^"]+)"', citation))
    return found


PARTS_OF_LEDBAT = ("ledbat", "queueing_delay", "base_delay")


def test_no_heading_is_without_a_citation() -> None:
    assert set(HEADINGS) - cited() == set()


def test_no_citation_is_without_a_heading() -> None:
    assert cited() - set(HEADINGS) == set()


def test_rfc_6817_is_cited_for_each_part_of_the_controller() -> None:
    folder = Path(utpsocket.protocol.__file__).parent / "congestion"
    text = "\n".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in PARTS_OF_LEDBAT)
    for section in ("§2.4.2", "§2.5", "§3.1.1", "appendix A.2"):
        assert f"RFC 6817 {section}" in text or re.search(rf"RFC 6817 [^;]*{re.escape(section)}", text), section

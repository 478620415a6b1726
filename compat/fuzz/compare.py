"""One sequence over both networks: the first thing that differs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from compat.fuzz.machine import Trace, run

_SLOW_S: Final = 0.03
_CALL: Final = re.compile(r"(?:^|[ (\"'])(?:[a-h]\.)?(\w+)\(")


@dataclass(frozen=True)
class Kind:
    """A way to differ: which call, or poll() after which call, and what the two networks say."""

    call: str
    tcp: str
    utp: str


@dataclass
class Difference:
    """Where two runs part."""

    kind: Kind
    line: int  # the index of the line at which it shows


def call_of(line: str) -> str:
    """The name of the method or helper that a line calls."""
    _, _, expression = line.rpartition(" = ") if re.match(r"^\w+(, _)? = ", line) else ("", "", line)
    found = re.match(r"(?:[a-h]\.)?([\w.]+)\(", expression)
    name = found[1] if found else expression
    if name == "meanwhile":
        inner = re.findall(r"[\"']\w\.(\w+)\(", expression)
        return f"meanwhile({', '.join(inner)})"
    if name == "do":
        inner = re.findall(r"[\"']\w\.(\w+)\(", expression)
        return f"in a child: {', '.join(inner)}"
    if name == "getsockopt":
        option = re.search(r"socket\.\w+, (?:socket\.)?(\w+)", expression)
        return f"getsockopt({option[1] if option else '?'})"
    return name


def first_difference(lines: list[str], tcp: Trace, utp: Trace) -> Difference | None:
    """The first line whose result differs, or after which some socket looks different."""
    for index, line in enumerate(lines):
        if index >= len(tcp.results) or index >= len(utp.results):
            return None
        ours, theirs = utp.results[index], tcp.results[index]
        if ours != theirs:
            return Difference(Kind(call_of(line), _text(theirs), _text(ours)), index)
        if tcp.looks[index] != utp.looks[index]:
            names = sorted(set(tcp.looks[index]) | set(utp.looks[index]))
            for name in names:
                a, b = tcp.looks[index].get(name, "closed"), utp.looks[index].get(name, "closed")
                if a != b:
                    return Difference(Kind(f"poll after {call_of(line)}", a, b), index)
    return None


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return re.sub(r"port\d+", "port", text)[:200]


def compare(lines: list[str]) -> Difference | None:
    """How the sequence differs, None if it does not. What is only seen in haste is no difference: it is run again with
    long waits, and over TCP twice, since what TCP says only sometimes proves nothing.
    """
    tcp = run(lines, "tcp")
    if first_difference(lines, tcp, run(lines, "utp", like=tcp)) is None:
        return None
    return compare_slowly(lines)


def compare_slowly(lines: list[str]) -> Difference | None:
    """The same with long waits only."""
    tcp = run(lines, "tcp", slowly=_SLOW_S)
    found = first_difference(lines, tcp, run(lines, "utp", like=tcp, slowly=_SLOW_S))
    if found is None:
        return None
    again = run(lines, "tcp", slowly=_SLOW_S)
    unstable = first_difference(lines, tcp, again)
    return None if unstable is not None and unstable.line <= found.line else found


def shorten(lines: list[str], found: Difference) -> tuple[list[str], Difference]:
    """Fewer lines that differ in the same way: those after the difference go, then ever smaller pieces."""
    lines = lines[: found.line + 1]
    size = max(1, len(lines) // 2)
    while size:
        start = len(lines) - size - 1
        while start > -size:
            begin = max(0, start)
            fewer = lines[:begin] + lines[start + size :]
            if fewer and len(fewer) < len(lines):
                tried = _differs_likewise(fewer, found.kind)
                if tried is not None:
                    lines, found = fewer[: tried.line + 1], tried
            start = min(start, len(lines) - 1) - size
        size //= 2
    return lines, found


def _differs_likewise(lines: list[str], kind: Kind) -> Difference | None:
    tcp = run(lines, "tcp")
    found = first_difference(lines, tcp, run(lines, "utp", like=tcp))
    return found if found is not None and found.kind == kind else None

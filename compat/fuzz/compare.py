"""One sequence over both networks: the first thing that differs, and what is left when all that must differ is gone."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

from compat.fuzz.machine import Trace, run
from compat.fuzz.sequences import sequence

_SLOW_S: Final = 0.03
_CONFIRMATIONS: Final = 2
_ASSIGNED: Final = re.compile(r"^\w+(, _)? = ")
_MEANWHILE: Final = re.compile(r"meanwhile\(\"(.*)\", \"(.*)\"\)$")
_RESULT_OF_MEANWHILE: Final = (1, 3)  # the thread's, and that of the call here


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
    socket: str = ""  # the name of the socket at which it shows


@dataclass
class Finding:
    """What became of one sequence.

    lines     those that were left when what must differ had been taken out
    reasons   of what was taken out
    """

    number: int
    lines: list[str]
    difference: Difference | None
    reasons: list[str] = field(default_factory=list)


def call_of(line: str) -> str:
    """The name of the method or helper that a line calls."""
    _, _, expression = line.partition(" = ") if _ASSIGNED.match(line) else ("", "", line)
    found = re.match(r"(?:[a-h]\.)?([\w.]+)\(", expression)
    name = found[1] if found else expression
    if name == "meanwhile":
        inner = re.findall(r"[\"']\w\.(\w+)\(", expression)
        return f"meanwhile({', '.join(inner)})"
    if re.match(r"h\d\.do\(", expression):
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
            expression, theirs, ours = _of_two(line, theirs, ours)
            return Difference(Kind(call_of(expression), _text(theirs), _text(ours)), index, _socket_of(expression))
        if tcp.looks[index] != utp.looks[index]:
            names = sorted(set(tcp.looks[index]) | set(utp.looks[index]))
            for name in names:
                a, b = tcp.looks[index].get(name, "closed"), utp.looks[index].get(name, "closed")
                if a != b:
                    return Difference(Kind(f"poll after {call_of(line)}", a, b), index, name)
    return None


def _of_two(line: str, tcp: Any, utp: Any) -> tuple[str, Any, Any]:
    """Of two calls at the same time the one that differs, the call here if both do; and what it says. Other lines stay
    as they are.
    """
    both = _MEANWHILE.match(line)
    if both is not None and isinstance(tcp, tuple) and isinstance(utp, tuple):
        for number in (1, 0):
            at = _RESULT_OF_MEANWHILE[number]
            if tcp[at] != utp[at]:
                return both[number + 1], tcp[at], utp[at]
    return line, tcp, utp


def _socket_of(line: str) -> str:
    """The name of the socket that a line is about, in whichever process."""
    _, _, expression = line.partition(" = ") if _ASSIGNED.match(line) else ("", "", line)
    found = re.match(r"(?:h\d\.do\(\"|\w+\()?([a-f])\b", expression)
    return found[1] if found else ""


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return re.sub(r"port\d+", "port", text)[:200]


def compare(lines: list[str]) -> Difference | None:
    """How the sequence differs, None if it does not. What is only seen in haste is no difference."""
    found = compare_in_haste(lines)
    return None if found is None else confirm(lines, found)


def compare_in_haste(lines: list[str]) -> Difference | None:
    """How the sequence seems to differ, with short waits and timeouts: on a busy machine it may not."""
    tcp = run(lines, "tcp")
    return first_difference(lines, tcp, run(lines, "utp", like=tcp))


def confirm(lines: list[str], found: Difference) -> Difference | None:
    """What was seen in haste is seen again with long waits, up to there; if it is not, all lines are."""
    return compare_slowly(lines[: found.line + 1]) or compare_slowly(lines)


def compare_slowly(lines: list[str]) -> Difference | None:
    """With long waits only; a difference is there every time, and TCP agrees with itself up to it, since what TCP says
    only sometimes proves nothing.
    """
    found: Difference | None = None
    for _ in range(_CONFIRMATIONS):
        tcp = run(lines, "tcp", slowly=_SLOW_S)
        again = first_difference(lines, tcp, run(lines, "utp", like=tcp, slowly=_SLOW_S))
        if again is None or (found is not None and again != found):
            return None
        found = again
    assert found is not None
    fewer = lines[: found.line + 1]
    unstable = first_difference(fewer, tcp, run(fewer, "tcp", slowly=_SLOW_S))
    return None if unstable is not None else found


def examine(seed: int, number: int) -> Finding:
    """Run one sequence. Where something differs that must, the lines that are the cause are taken out, so that the rest
    is compared as well: at once, without a second look, since nothing is reported of it.
    """
    from compat.fuzz.expected import without_expected

    lines = sequence(seed, number)
    reasons: list[str] = []
    while (found := compare_in_haste(lines)) is not None:
        fewer = without_expected(lines, found)
        if fewer is None:
            found = confirm(lines, found)
            fewer = None if found is None else without_expected(lines, found)
            if fewer is None:
                break
        lines = fewer.lines
        reasons.append(fewer.reason)
    return Finding(number, lines, found, reasons)


def shorten(lines: list[str], found: Difference) -> tuple[list[str], Difference]:
    """Fewer lines that differ in the same way, and as little as they must: those after the difference go, then ever
    smaller pieces.
    """
    is_expected = _is_expected(lines, found)
    lines = lines[: found.line + 1]
    size = max(1, len(lines) // 2)
    while size:
        start = len(lines) - size - 1
        while start > -size:
            begin = max(0, start)
            fewer = lines[:begin] + lines[start + size :]
            if fewer and len(fewer) < len(lines):
                tried = _differs_likewise(fewer, found.kind)
                if tried is not None and _is_expected(fewer, tried) == is_expected:
                    lines, found = fewer[: tried.line + 1], tried
            start = min(start, len(lines) - 1) - size
        size //= 2
    return lines, found


def _is_expected(lines: list[str], found: Difference) -> bool:
    from compat.fuzz.expected import without_expected

    return without_expected(lines, found) is not None


def _differs_likewise(lines: list[str], kind: Kind) -> Difference | None:
    tcp = run(lines, "tcp")
    found = first_difference(lines, tcp, run(lines, "utp", like=tcp))
    return found if found is not None and found.kind == kind else None

"""What must differ between TCP and uTP, and why. An entry names what is found in the shortened sequence.

What is merely not done yet does not belong here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from compat.fuzz.compare import Kind


@dataclass(frozen=True)
class Expected:
    """Sequences with these words in one of their lines may differ.

    words    a regular expression, searched in the lines of the shortened sequence
    call     a regular expression that the differing call matches
    """

    words: str
    reason: str
    call: str = ""

    def covers(self, lines: list[str], kind: Kind) -> bool:
        """Whether the difference is this one."""
        return any(re.search(self.words, line) for line in lines) and bool(re.search(self.call, kind.call))


EXPECTED: Final = (
    Expected(r"MSG_OOB", "uTP has no urgent data: EOPNOTSUPP"),
    Expected(r"MSG_MORE", "the kernel corks TCP's bytes by itself; an AF_UNIX pair passes them on at once"),
)


def expectation(lines: list[str], kind: Kind) -> Expected | None:
    """The entry that says why these lines differ, if there is one."""
    return next((entry for entry in EXPECTED if entry.covers(lines, kind)), None)

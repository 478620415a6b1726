"""The tests that pass over TCP and cannot pass over uTP, each with the reason in the protocol or the platform.

A listed test that passes is an error (stale), unless `sometimes` says that it is a race. What is missing work does not
belong here.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final


@dataclass(frozen=True)
class Expectation:
    """One glob over test ids, and why they differ."""

    tests: str
    reason: str
    since: tuple[int, int] = (3, 0)  # of the interpreters it holds for
    before: tuple[int, int] = (4, 0)
    sometimes: bool = False  # a race: it may pass as well

    def covers(self, identity: str, version: tuple[int, ...]) -> bool:
        """Whether this entry is about the test, under an interpreter of this version."""
        return self.since <= version[:2] < self.before and fnmatchcase(identity.partition("#")[0], self.tests)


NO_URGENT_DATA: Final = "MSG_OOB: uTP has no urgent data"

EXPECTED: Final = (
    Expectation("test_asyncore.*.test_handle_expt", NO_URGENT_DATA),
    Expectation("test_ftplib.TestFTPClass.test_abort", NO_URGENT_DATA),
    Expectation(
        "test_epoll.TestEPoll.test_control_and_wait",
        "expects both ends' data in the first epoll_wait: kernel TCP delivers within send(), a thread a moment later",
    ),
)

# Slower than three times TCP and by more than a second, with the reason.
SLOWER: Final[tuple[Expectation, ...]] = ()


def expectation(entries: tuple[Expectation, ...], identity: str, version: tuple[int, ...]) -> Expectation | None:
    """The first entry about this test, if any."""
    return next((entry for entry in entries if entry.covers(identity, version)), None)

"""What must differ between TCP and uTP, and why: the one table.

An entry names lines. Where a sequence differs and has such lines, they are taken out, and the rest is run again: so an
entry explains what those lines cause, and hides nothing beside them. What is merely not done yet does not belong here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from compat.fuzz.compare import Kind


@dataclass(frozen=True)
class Expected:
    """Lines with these words may make a sequence differ, at that line or later.

    words    a regular expression, searched in each line
    is_it    whether a kind is what the reason speaks of
    after    a regular expression that an earlier line must match: {} is the first group of `words`
    """

    words: str
    reason: str
    is_it: Callable[[Kind], bool] = lambda kind: True
    after: str = ""

    def causes(self, lines: list[str]) -> list[int]:
        """The numbers of the lines that this speaks of."""
        found = []
        for index, line in enumerate(lines):
            match = re.search(self.words, line)
            if match is not None:
                before = self.after.format(*match.groups())
                if not before or any(re.search(before, earlier) for earlier in lines[:index]):
                    found.append(index)
        return found


@dataclass(frozen=True)
class Fewer:
    """A sequence without the lines that must make it differ."""

    lines: list[str]
    reason: str


_AF_UNIX_SAYS: Final = ("raises OSError ENOTCONN", "raises OSError EINVAL", "raises TypeError")


def _is_unread(kind: Kind) -> bool:
    """Whether only FIONREAD differs, and uTP's is less."""
    if kind.call == "unread":
        return True
    (tcp, _, tcp_unread), (utp, _, utp_unread) = kind.tcp.partition(", "), kind.utp.partition(", ")
    return kind.call.startswith("poll after ") and tcp == utp and tcp_unread != utp_unread


def _is_room(kind: Kind) -> bool:
    """Whether the one has room, and the other has not."""
    if kind.call.startswith(("poll", "epoll")):
        return kind.tcp.replace("OUT", "0") == kind.utp.replace("OUT", "0")
    refusals = "raises BlockingIOError EAGAIN", "raises TimeoutError"
    return kind.call.startswith("send") and (kind.tcp in refusals) != (kind.utp in refusals)


def _is_late_reset(kind: Kind) -> bool:
    """Whether TCP says that the connection is over, and uTP that there is much to receive."""
    return "many unread" in kind.utp and "HUP" in kind.tcp and "|HUP" not in kind.utp


def _is_error_flag(kind: Kind) -> bool:
    """Whether poll() says ERR over TCP, and all else over uTP."""
    return kind.call.startswith(("poll", "epoll")) and "ERR" in kind.tcp and kind.tcp.replace("|ERR", "") == kind.utp


EXPECTED: Final = (
    Expected(r"MSG_OOB", "uTP has no urgent data: EOPNOTSUPP"),
    Expected(r"MSG_MORE", "the kernel corks TCP's bytes by itself; an AF_UNIX pair passes them on at once"),
    Expected(
        r"(\w)\.connect(_ex)?\(\1\.getsockname",
        "a TCP socket may be connected to itself: both SYNs are the one. uTP's two directions have different ids",
        lambda kind: "connect" in kind.call,
    ),
    Expected(
        r"h\d\.do\(\"(\w)\.shutdown",
        "an AF_UNIX socket that has listened can do nothing else; whoever shuts it down has another one put in its "
        "place, which cannot be done in other processes",
        after=r"\b{}\.listen\(",
    ),
    Expected(
        r"= start\(\)",
        "a socket that is neither connected nor listening has no name in the kernel, so a program that was started "
        "finds an AF_UNIX socket",
        lambda kind: kind.call.startswith("in a child") and kind.utp.startswith(_AF_UNIX_SAYS),
    ),
    Expected(
        r"unsent\(",
        "TIOCOUTQ is the kernel's word on the user's fd, an AF_UNIX socket: bytes that the engine has not read yet, "
        "also of a listener",
        lambda kind: kind.call == "unsent",
    ),
    Expected(
        r"fill\(",
        "how much fits into buffers that are full is no promise: TCP's take more after a while",
        _is_room,
    ),
    Expected(
        r"fill\(",
        "a reset is told when what came before it has been given to the kernel for the user, and what is more than the "
        "pair holds cannot be given yet",
        _is_late_reset,
    ),
    Expected(
        r"SHUT_RD\b",
        "an AF_UNIX socket that was shut down for receiving takes nothing more: what comes then is held for recv(), "
        "and FIONREAD does not count it",
        _is_unread,
    ),
    Expected(
        r"SHUT_(WR|RDWR)",
        "the kernel says ERR of an AF_UNIX socket whose other end was closed over a byte that it sent and nobody read: "
        "none can be left by one that sends no more (SO_ERROR, recv() and send() say what TCP's do)",
        _is_error_flag,
    ),
)


def without_expected(lines: list[str], kind: Kind, line: int) -> Fewer | None:
    """The sequence without the lines that an entry says may have led to the difference at `line`; None: nothing says
    so.
    """
    for entry in EXPECTED:
        if not entry.is_it(kind):
            continue
        causes = entry.causes(lines)
        if causes and causes[0] <= line:
            return Fewer([text for index, text in enumerate(lines) if index not in causes], entry.reason)
    return None

"""What one case is, what it is run with, and the row it leaves behind."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from compat.peers import relay
from compat.peers.children import Child, ChildFailed, Children, Failed
from compat.peers.impairment import Impairment

LOOPBACK: Final = "127.0.0.1"
LOOPBACK_IPV6: Final = "::1"


@dataclass(frozen=True)
class Row:
    """One line of the result, with the keys docs/commands.md's JSON has."""

    name: str
    version: str
    case: str
    role: str
    status: str  # pass, fail, skip
    bytes: int
    seconds: float
    cause: str | None

    def json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "seconds": round(self.seconds, 3)}


@dataclass(frozen=True)
class Circumstances:
    """What the whole run shares."""

    control: bool = False
    """the peer plays both sides: what fails then is the peer, or this harness"""
    keep: Path | None = None
    """where captures and traces of every case go"""
    seed: int = 1
    """of the roads' faults"""


@dataclass(frozen=True)
class Case:
    """One conversation with one peer; `role` is utpsocket's."""

    peer: str
    title: str
    role: str
    bytes: int
    run: Callable[[Case, Circumstances, float], float]
    """(case, circumstances, deadline) -> seconds of the transfer. Raises CaseFailed or ChildFailed."""
    impairment: Impairment | None = None
    seconds_allowed: float = 60.0
    waits: bool = False
    """mostly sleeps (a delay, a loss, an idle minute), so others may run beside it"""
    kind: str = ""
    """for the runner of this peer"""
    host: str = LOOPBACK
    has_control: bool = True
    """the peer can play our side too"""

    @property
    def slug(self) -> str:
        text = f"{self.peer} {self.title} {self.role}"
        return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in text)


class CaseFailed(Failed):
    """The conversation ended, and not as it should."""


def run_case(case: Case, version: str, circumstances: Circumstances) -> Row:
    """Run it and say how it went; never raises for what a case can do."""
    started = time.monotonic()
    cause = None
    try:
        seconds = case.run(case, circumstances, started + case.seconds_allowed)
    except (Failed, OSError) as error:
        seconds = time.monotonic() - started
        cause = (str(error) or type(error).__name__) + getattr(error, "written", "")
    return Row(case.peer, version, case.title, case.role, "fail" if cause else "pass", case.bytes, seconds, cause)


class Road:
    """The way to a server: straight, or through a relay of its own. Gives the port to dial."""

    def __init__(
        self, children: Children, case: Case, circumstances: Circumstances, server_port: int, *, deadline: float
    ) -> None:
        self.port = server_port
        self._child: Child | None = None
        self._deadline = deadline
        if case.impairment is None and circumstances.keep is None:
            return
        command = [
            sys.executable,
            "-m",
            "compat.peers.relay",
            f"--server={case.host}:{server_port}",
            f"--seed={circumstances.seed}",
            *relay.arguments_for(case.impairment or Impairment()),
        ]
        if circumstances.keep:
            stem = circumstances.keep / case.slug
            command += [f"--pcap={stem}.pcap", f"--trace={stem}.txt"]
        self._child = children.start("relay", command)
        self.port = self._child.expect("port", deadline=deadline)

    def counters(self) -> dict[str, Any] | None:
        """Stop the relay and ask what it did; None without one."""
        if self._child is None:
            return None
        self._child.finish()
        counters: dict[str, Any] = self._child.expect("relay", deadline=time.monotonic() + 10)
        return counters

    def story(self) -> str:
        """For a cause: what passed the relay."""
        try:
            counters = self.counters()
        except ChildFailed as error:
            return f"; {error}"
        if counters is None:
            return ""
        parts = [
            f"{way}: {counters[way]['datagrams']} datagrams, {counters[way]['lost']} lost" for way in ("up", "down")
        ]
        if counters["kernel_drops"]:
            parts.append(f"{counters['kernel_drops']} dropped by the kernel")
        return f"; relay {', '.join(parts)}"


def python_module(module: str, *arguments: str) -> list[str]:
    """The command for one of this package's scripts."""
    return [sys.executable, "-X", "faulthandler", "-m", f"compat.peers.{module}", *arguments]


def size_text(size_bytes: int) -> str:
    if size_bytes % 1_000_000 == 0:
        return f"{size_bytes // 1_000_000} MB"
    return f"{size_bytes // 1000} kB" if size_bytes % 1000 == 0 else f"{size_bytes} B"


def title(what: str, size_bytes: int, impairment: Impairment | None) -> str:
    """A case's stable name."""
    return f"{what} {size_text(size_bytes)}" + (f", {impairment}" if impairment else "")


def header_text(header: dict[str, Any]) -> str:
    return json.dumps(header, separators=(",", ":"))

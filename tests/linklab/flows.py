"""The flows: how they are written on a command line, and which programs carry each kind.

[COUNT*]KIND[xSTREAMS][<][@START[+STEP][-END]]

KIND      utp                    utpsocket with its default congestion control; utp:NAME with that one
          tcp, tcp:NAME          kernel TCP, cubic where no congestion control is named; cubic, bbr and reno alone
                                 mean the same
          libutp                 libutp through utp-native (npm), which needs node
          libtorrent             a seed and a leech of libtorrent (PyPI), whose uTP is another implementation
COUNT*    as many processes on either side
xSTREAMS  as many connections of one process (not libtorrent)
<         the data goes from right to left; otherwise from left to right
@         seconds since the start; each of COUNT begins STEP after the one before. At its end a flow is reset.
"""

from __future__ import annotations

import re
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
SIDES: Final = Path(__file__).resolve().parent / "sides"
CONGESTION_VARIABLE: Final = "UTPSOCKET_CONGESTION"
TCP_DEFAULT: Final = "cubic"
TCP_NAMES: Final = ("cubic", "bbr", "reno")
ONE_STREAM: Final = ("libtorrent",)

_KIND: Final = r"(?:utp|tcp)(?::[a-z0-9+_-]+?)?|cubic|bbr|reno|libutp|libtorrent"
_FLOW: Final = re.compile(rf"(?:(\d+)\*)?({_KIND})(?:x(\d+))?(<)?(?:@([\d.]+)(?:\+([\d.]+))?(?:-([\d.]+))?)?")


@dataclass(frozen=True)
class Flow:
    """Data from one process to another.

    kind     as written above
    start    seconds since the start of the experiment
    end      the same; None is the end of the experiment
    streams  connections of the one process
    is_back  it goes from right to left
    ppm      by how much the clock of the sender runs too fast, millionths; utp only
    tree     the folder that holds the utpsocket package; utp only
    """

    kind: str
    start: float = 0.0
    end: float | None = None
    streams: int = 1
    is_back: bool = False
    ppm: float = 0.0
    tree: str = str(ROOT)

    def until(self, seconds: float) -> float:
        """When it ends in an experiment that takes so long."""
        return seconds if self.end is None else min(self.end, seconds)

    @property
    def name(self) -> str:
        """As it is written on a command line."""
        streams = f"x{self.streams}" if self.streams > 1 else ""
        end = "" if self.end is None else f"-{self.end:g}"
        when = f"@{self.start:g}{end}" if self.start or end else ""
        return f"{self.kind}{streams}{'<' if self.is_back else ''}{when}"

    @property
    def transport(self) -> str:
        """utp, tcp, libutp or libtorrent."""
        return "tcp" if self.kind in TCP_NAMES else self.kind.partition(":")[0]

    @property
    def congestion(self) -> str:
        """The congestion control that is asked for; empty for the default of utp."""
        if self.kind in TCP_NAMES:
            return self.kind
        return self.kind.partition(":")[2] or (TCP_DEFAULT if self.transport == "tcp" else "")


@dataclass(frozen=True)
class Program:
    """How both sides of a kind of flow are started: with one of the words "sink" and "source", and settings as JSON.

    environment  variables beside those of this process
    """

    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)


def read_flows(text: str) -> list[Flow]:
    """Flows, separated by commas."""
    flows = []
    for one in text.split(","):
        match = _FLOW.fullmatch(one.strip())
        if match is None:
            raise ArgumentTypeError(f"{one!r} is not a flow such as utp, 8*utp@0+0.1, tcp:bbr@30-70 or cubic<@5")
        count, kind, streams, back, start, step, end = match.groups()
        if step and not count:
            raise ArgumentTypeError(f"{one!r}: a step needs a count, as in 8*utp@0+0.1")
        first = Flow(kind, float(start or 0), float(end) if end else None, int(streams or 1), bool(back))
        if first.streams > 1 and kind in ONE_STREAM:
            raise ArgumentTypeError(f"{one!r}: {kind} has one connection for each process")
        if not first.streams or count == "0":
            raise ArgumentTypeError(f"{one!r} is no flow at all")
        for number in range(int(count or 1)):
            begin = first.start + number * float(step or 0)
            if first.end is not None and begin >= first.end:
                raise ArgumentTypeError(f"{one!r} ends before it begins")
            flows.append(Flow(kind, round(begin, 6), first.end, first.streams, first.is_back))
    return flows


def program_of(flow: Flow) -> Program:
    """What runs on both sides of this flow. libutp and libtorrent are set up first where they are not yet.

    Raises Unavailable where they cannot be.
    """
    return _PROGRAMS[flow.transport](flow)


def _stream(flow: Flow) -> Program:
    environment = {}
    if flow.transport == "utp":
        environment["PYTHONPATH"] = flow.tree
        if flow.congestion:
            environment[CONGESTION_VARIABLE] = flow.congestion
    return Program([sys.executable, str(SIDES / "stream_side.py")], environment)


def _libutp(flow: Flow) -> Program:
    from compat.peers import provision  # with what installs the other implementations, which most runs do not need

    modules = provision.utp_native()
    return Program([provision.node(), str(SIDES / "libutp_side.cjs")], {"NODE_PATH": str(modules)})


def _libtorrent(flow: Flow) -> Program:
    from compat.peers import provision

    return Program([str(provision.libtorrent()), str(SIDES / "torrent_side.py")], {})


_PROGRAMS: Final[dict[str, Callable[[Flow], Program]]] = {
    "utp": _stream,
    "tcp": _stream,
    "libutp": _libutp,
    "libtorrent": _libtorrent,
}

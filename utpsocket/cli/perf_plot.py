"""`perf --plot`: the client's connections looked at ten times a second, and drawn."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final

from utpsocket.cli.plot import Trace, draw
from utpsocket.protocol import ConnectionStats
from utpsocket.stats import info

SAMPLE_SECONDS: Final = 0.1
# More connections are drawn as their sum: more lines cannot be told apart.
MOST_LINES: Final = 8


@dataclass
class _Line:
    rate: list[tuple[float, float | None]] = field(default_factory=list)
    cwnd: list[tuple[float, float | None]] = field(default_factory=list)
    delay: list[tuple[float, float | None]] = field(default_factory=list)
    losses: list[tuple[float, float | None]] = field(default_factory=list)
    carried_bytes: int = 0
    lost_packets: int = 0


class Samples:
    """What was seen of a measurement's connections, from start() until stop() or until they are closed.

    is_receiving  the bytes come here: their rate is all that is known on this side
    """

    def __init__(self, *, is_receiving: bool) -> None:
        self._is_receiving = is_receiving
        self._streams: Sequence[socket.socket] = ()
        self._lines: list[_Line] = []
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._started = self._earlier = 0.0

    def of(self, streams: Sequence[socket.socket]) -> Samples:
        """Look at these, as a context manager."""
        self._streams = tuple(streams)
        self._lines = [_Line() for _ in range(len(streams) if len(streams) <= MOST_LINES else 1)]
        return self

    def __enter__(self) -> Samples:
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="perf-plot", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(SAMPLE_SECONDS):
            try:
                figures = [info(stream) for stream in self._streams]
            except OSError:  # closed: the measurement is over
                return
            self.add(time.monotonic() - self._started, figures)

    def add(self, second: float, figures: Sequence[ConnectionStats]) -> None:
        """What was seen of each connection at this second since the start."""
        if second <= self._earlier:
            return
        together = len(figures) > MOST_LINES
        for line, of_line in zip(self._lines, [figures] if together else [[one] for one in figures], strict=True):
            carried_bytes = sum(one.received_bytes if self._is_receiving else one.acked_bytes for one in of_line)
            rate = 8 * (carried_bytes - line.carried_bytes) / (second - self._earlier)
            line.rate.append((second, rate))
            line.carried_bytes = carried_bytes
            if self._is_receiving:
                continue
            # TCP's lost_packets are those that are lost now; sent again is what it counts.
            lost_packets = sum(one.retransmitted_packets for one in of_line)
            line.losses.append((second, lost_packets - line.lost_packets))
            line.lost_packets = lost_packets
            line.cwnd.append((second, sum(one.cwnd_bytes for one in of_line)))
            line.delay.append((second, sum(map(_queueing_delay_us, of_line)) / len(of_line)))
        self._earlier = second

    def draw(self, *, title: str, note: str) -> str:
        """The plot. Raises ValueError if the measurement was too short for it."""
        count = len(self._streams)
        names = [f"connection {number + 1}" for number in range(count)]
        if count > MOST_LINES:
            names = [f"{count:,} connections together"]
        traces = [
            Trace(name, line.rate, line.cwnd, line.delay, line.losses)
            for name, line in zip(names, self._lines, strict=True)
        ]
        return draw(traces, title=title, note=note)


def _queueing_delay_us(figures: ConnectionStats) -> int:
    """TCP estimates none: by how much the round trip is longer than the shortest one."""
    if figures.transport == "tcp":
        return max(0, figures.rtt_us - figures.min_rtt_us)
    return figures.queueing_delay_us

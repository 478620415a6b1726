"""How far a transfer has got: on a terminal one line that is drawn again, elsewhere a plain line from time to time."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Final, TextIO

from utpsocket.cli.quantities import show_clock, show_rate, show_size

# By feel: it moves, and drawing it costs nothing that can be measured.
LIVE_INTERVAL_SECONDS: Final = 0.1
# By feel.
PLAIN_INTERVAL_SECONDS: Final = 1.0
# The rate shown is that of so many seconds: it follows a change and does not flicker; by feel.
RATE_WINDOW_SECONDS: Final = 2.0


class Progress:
    """Reports on a transfer of `total_bytes` while update() is called with how far it is.

    A context manager: leaving it ends the live line, so that what is printed next starts on one of its own.
    """

    def __init__(
        self,
        total_bytes: int,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """stream: where to (default: stderr); clock: seconds, monotonic."""
        self._total_bytes = total_bytes
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._live = self._stream.isatty()
        self._interval = LIVE_INTERVAL_SECONDS if self._live else PLAIN_INTERVAL_SECONDS
        started = clock()
        self._samples: deque[tuple[float, int]] = deque([(started, 0)])
        self._due_at = started + self._interval
        self._done_bytes = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._show(self._clock())
            self._stream.write("\n")
            self._stream.flush()

    def update(self, done_bytes: int) -> None:
        """`done_bytes` in all have been transferred. Cheap: most calls read the clock and return."""
        self._done_bytes = done_bytes
        now = self._clock()
        if now >= self._due_at:
            self._due_at = now + self._interval
            self._show(now)

    def _show(self, now: float) -> None:
        while len(self._samples) > 1 and self._samples[1][0] <= now - RATE_WINDOW_SECONDS:
            self._samples.popleft()
        since, before_bytes = self._samples[0]
        self._samples.append((now, self._done_bytes))
        rate = (self._done_bytes - before_bytes) / (now - since) if now > since else 0.0
        percent = 100 * self._done_bytes / self._total_bytes if self._total_bytes else 100.0
        # An ETA is a guess from the rate just now; while nothing moves there is none to make.
        eta = show_clock((self._total_bytes - self._done_bytes) / rate) if rate else "-:--"
        line = (
            f"{percent:5.1f} %  {show_size(self._done_bytes)} of {show_size(self._total_bytes)}"
            f"  {show_rate(rate)}  ETA {eta}"
        )
        # \x1b[K clears what a longer line before left on the right.
        self._stream.write(f"\r{line}\x1b[K" if self._live else f"{line}\n")
        self._stream.flush()

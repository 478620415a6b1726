"""CUBIC: what most of the internet's TCP does. It takes an equal share beside TCP, for foreground use.

The window is a cubic function of the time since the last loss: it grows fast, then hardly where it was when something
was lost, then fast again. Where Reno would grow faster, on short paths, it grows as Reno does. Slow start is
HyStart++'s (hystart.py).

Example: something was lost at 100 packets. The window is 70 packets; K = ∛(30 / 0.4) = 4.2 s later it is 100 again.

Sources: RFC 9438 §4.2 to §4.10; RFC 9406.
"""

from __future__ import annotations

from typing import ClassVar, Final

from utpsocket.protocol.congestion.controller import Controller
from utpsocket.protocol.congestion.reno import Reno

_C: Final = 0.4  # packets per s³: RFC 9438 §5.1
_BETA_TENTHS: Final = 7  # what is left of the window after a loss: RFC 9438 §4.6
_FAST_CONVERGENCE_TWENTIETHS: Final = 17  # (1 + β) / 2: RFC 9438 §4.7
_ALPHA: Final = 9.0 / 17.0  # 3 (1 − β) / (1 + β), growth of Reno's window with β of 0.7: RFC 9438 §4.3


class Cubic(Reno):
    """See Controller for its methods, Reno for the rest. Times µs, but where the name says seconds.

    _max_bytes         W_max: the window when something was last lost, or a little less
    _prior_bytes       cwnd_prior: the window when something was last lost
    _epoch_at          when congestion avoidance began; -1: it begins with the next ack
    _k_seconds         K: how long the window takes to W_max
    _estimate_bytes    W_est: what Reno's window would be
    _limited_at        when an ack last found the window used up
    _cubic_before      _max_bytes, _prior_bytes before the last reduction
    """

    __slots__ = (
        "_cubic_before",
        "_epoch_at",
        "_estimate_bytes",
        "_k_seconds",
        "_limited_at",
        "_max_bytes",
        "_prior_bytes",
    )

    NAME: ClassVar[str] = "cubic"

    def __init__(self, segment_bytes: int, target_delay_us: int = 0) -> None:
        super().__init__(segment_bytes, target_delay_us)
        self._max_bytes = self._prior_bytes = 0
        self._epoch_at = self._limited_at = -1
        self._k_seconds = 0.0
        self._estimate_bytes = 0.0
        self._cubic_before = (0, 0)

    def _begin_avoidance(self, *, now: int) -> None:
        """RFC 9438 §4.8, §4.10: slow start has ended without a loss, so W_max is the window, and K is 0."""
        self._max_bytes = self.window_bytes
        self._epoch_at = -1

    def _avoid_congestion(self, acked_bytes: int, *, is_limited: bool, rtt_us: int, now: int) -> None:
        """RFC 9438 §4.2 to §4.5."""
        window = self.window_bytes
        if self._epoch_at < 0:
            self._epoch_at = self._limited_at = now
            self._estimate_bytes = float(window)
            packets = (self._max_bytes - window) / self.segment_bytes
            self._k_seconds = (packets / _C) ** (1.0 / 3.0) if packets > 0.0 else 0.0
            if packets < 0.0:
                self._max_bytes = window
        if not is_limited:
            return
        if self._limited_at < now - 2 * rtt_us:
            self._epoch_at += now - self._limited_at  # RFC 9438 §4.2: time in which the window was not used up
        self._limited_at = now
        since_seconds = (now + rtt_us - self._epoch_at) / 1_000_000.0 - self._k_seconds
        wanted = self._max_bytes + _C * since_seconds * since_seconds * since_seconds * self.segment_bytes
        wanted = min(max(wanted, float(window)), 1.5 * window)
        # RFC 9438 §4.3: as Reno does with this β; once its window is what it was, by a packet per round trip.
        alpha = _ALPHA if self._estimate_bytes < self._prior_bytes else 1.0
        self._estimate_bytes += alpha * self.segment_bytes * acked_bytes / window
        growth = (wanted - window) * acked_bytes / window
        if window + growth < self._estimate_bytes:
            growth = self._estimate_bytes - window
        self._grow(growth, acked_bytes)

    def _grow(self, growth: float, acked_bytes: int) -> None:
        """Add this many bytes; the fraction is kept for the next ack, in 1,024ths."""
        parts = int(min(growth, float(acked_bytes)) * 1_024.0) + self._remainder
        self.window_bytes += parts >> 10
        self._remainder = parts & 1_023

    def _reduced_bytes(self) -> int:
        """RFC 9438 §4.6."""
        return max(self.window_bytes * _BETA_TENTHS // 10, self._min_window_bytes())

    def _note_reduction(self) -> None:
        """W_max and cwnd_prior, before the window is reduced: RFC 9438 §4.6, §4.7 (fast convergence)."""
        window = self.window_bytes
        self._cubic_before = (self._max_bytes, self._prior_bytes)
        self._max_bytes = window * _FAST_CONVERGENCE_TWENTIETHS // 20 if window < self._max_bytes else window
        self._prior_bytes = window
        self._epoch_at = -1
        self._remainder = 0

    def on_loss(self, *, now: int) -> None:
        """See Controller.on_loss. RFC 9438 §4.6."""
        self._note_reduction()
        super().on_loss(now=now)

    def on_timeout(self, *, now: int) -> None:
        """See Controller.on_timeout. RFC 9438 §4.8."""
        if self.window_bytes > self.segment_bytes:
            self._note_reduction()
        super().on_timeout(now=now)

    def on_spurious_loss(self, *, now: int) -> None:
        """See Controller.on_spurious_loss. RFC 9438 §4.9."""
        if self._before_reduction is not None:
            self._max_bytes, self._prior_bytes = self._cubic_before
            self._epoch_at = -1
        super().on_spurious_loss(now=now)

    def take_over(self, other: Controller) -> None:
        """See Controller.take_over."""
        super().take_over(other)
        self._max_bytes = self.window_bytes

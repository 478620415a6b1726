"""HyStart++: slow start that ends before the queue is full, by the round trips of the packets. For Reno and CUBIC.

Slow start doubles the window in each round trip until something is lost, which on a path with a long queue is more than
half of everything. HyStart++ compares the shortest round trip of this round with that of the round before. If it has
grown by an eighth, slow start is conservative: the window grows by a quarter per round trip. If it shrinks again there,
it was noise, and the doubling goes on; else slow start ends after five rounds.

A round ends when a packet is acked that left after the round had begun.

Source: RFC 9406 §4.2, §4.3.
"""

from __future__ import annotations

from typing import Final

CSS_GROWTH_DIVISOR: Final = 4
_MIN_RTT_THRESHOLD_US: Final = 4_000
_MAX_RTT_THRESHOLD_US: Final = 16_000
_RTT_DIVISOR: Final = 8
_RTT_SAMPLES: Final = 8
_CSS_ROUNDS: Final = 5
_NO_RTT: Final = 1 << 60


class HyStart:
    """The rounds of one slow start. Times µs.

    is_conservative       in conservative slow start (CSS)
    _round_began_at       when the first packet of this round left, at the earliest
    _rtt_us               the shortest round trip of this round, _NO_RTT before the first
    _previous_rtt_us      that of the round before
    _samples              round trips in this round
    _baseline_rtt_us      _rtt_us when CSS began
    _css_rounds           rounds since
    """

    __slots__ = (
        "_baseline_rtt_us",
        "_css_rounds",
        "_previous_rtt_us",
        "_round_began_at",
        "_rtt_us",
        "_samples",
        "is_conservative",
    )

    def __init__(self) -> None:
        self.is_conservative = False
        self._round_began_at = -1
        self._rtt_us = self._previous_rtt_us = self._baseline_rtt_us = _NO_RTT
        self._samples = self._css_rounds = 0

    def is_over(self, rtt_us: int, sent_us: int, *, now: int) -> bool:
        """Take in an ack. Returns whether slow start ends with it.

        rtt_us    its round trip, 0 for none
        sent_us   when the newest packet that it acks left
        """
        if sent_us >= self._round_began_at:
            self._round_began_at = now
            self._previous_rtt_us, self._rtt_us, self._samples = self._rtt_us, _NO_RTT, 0
            if self.is_conservative:
                self._css_rounds += 1
                if self._css_rounds >= _CSS_ROUNDS:
                    return True
        if not rtt_us:
            return False
        self._samples += 1
        self._rtt_us = min(self._rtt_us, rtt_us)
        if self._samples < _RTT_SAMPLES:
            return False
        if self.is_conservative:
            if self._rtt_us < self._baseline_rtt_us:
                self.is_conservative = False
                self._baseline_rtt_us = _NO_RTT
        elif self._previous_rtt_us < _NO_RTT:
            threshold_us = min(max(_MIN_RTT_THRESHOLD_US, self._previous_rtt_us // _RTT_DIVISOR), _MAX_RTT_THRESHOLD_US)
            if self._rtt_us >= self._previous_rtt_us + threshold_us:
                self.is_conservative = True
                self._baseline_rtt_us = self._rtt_us
                self._css_rounds = 0
        return False

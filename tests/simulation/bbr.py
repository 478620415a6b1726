"""A model of BBRv1, as Linux's tcp_bbr.c has it: it sends at the rate that the path has delivered, whatever is lost.

The rate is the largest delivery rate of ten round trips, the path the shortest round trip of 10 s. Slow start (startup)
ends when three rounds have not raised the rate by a quarter; drain empties the queue that it has made; then eight
phases of a path each follow one another, in which it sends 1.25, 0.75 and six times 1 of the rate. If no shorter round
trip was seen for 10 s, four packets are in flight for 0.2 s. In flight are at most twice rate × path.

Left out: long-term rates (policers), quantization, ack aggregation.

Source: draft-cardwell-iccrg-bbr-congestion-control-00 §4.
"""

from __future__ import annotations

from collections import deque
from math import log
from typing import Final

from tests.simulation.tcp import _DATA_WIRE_BYTES, _DUPLICATE_THRESHOLD, MSS_BYTES, Receiver, Sender
from tests.simulator import Node, Simulator

_HIGH_GAIN: Final = 2 / log(2)
_CYCLE: Final = (1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
_RATE_ROUNDS: Final = 10
_PATH_US: Final = 10_000_000
_PROBE_RTT_US: Final = 200_000
_MIN_PACKETS: Final = 4
_INITIAL_PACKETS: Final = 10
_QUANTUM_US: Final = 1_000  # of its rate, in one burst
_MARGIN: Final = 0.99  # paced so much slower than the rate: bbr_pacing_margin_percent


class BbrSender(Sender):
    """See Sender. Rates are packets per µs."""

    def __init__(
        self,
        simulator: Simulator,
        there: Node,
        receiver: Receiver,
        *,
        total_bytes: int = 0,
        window_limit_bytes: int = 4 << 20,
    ) -> None:
        super().__init__(simulator, there, receiver, total_bytes=total_bytes, window_limit_bytes=window_limit_bytes)
        self._window = float(_INITIAL_PACKETS)
        self._delivered = self._delivered_at = self._first_sent_at = 0
        self._when_sent: dict[int, tuple[int, int, int]] = {}
        self._rates: deque[tuple[int, float]] = deque()  # (round, rate), falling
        self._round = 0
        self._round_ends = 0  # at so many delivered
        self._path_us = self._path_at = 0
        self._mode = "startup"
        self._full_rate = 0.0
        self._full_rounds = 0
        self._phase = 0
        self._phase_at = 0
        self._probe_ends_at = 0
        self._before_window = 0.0
        self._conserves_until = -1
        self._ready_at = 0

    @property
    def window_bytes(self) -> int:
        """The congestion window."""
        return int(self._window) * MSS_BYTES

    @property
    def _rate(self) -> float:
        return self._rates[0][1] if self._rates else 0.0

    def _path_packets(self, gain: float) -> float:
        """Rate × path, times a gain."""
        if not self._rates or not self._path_us:
            return gain * _INITIAL_PACKETS
        return gain * self._rate * self._path_us

    @property
    def _pacing_gain(self) -> float:
        if self._mode == "probe rate":
            return _CYCLE[self._phase]
        return {"startup": _HIGH_GAIN, "drain": 1 / _HIGH_GAIN, "probe path": 1.0}[self._mode]

    def _on_ack(self, end: int, now: int) -> None:
        if end <= self._taken:
            return
        sent = self._sent
        acked, newest, newest_us = 0, -1, -1
        for number in self._receiver.arrivals[self._taken : end]:
            at = sent.pop(number, -1)
            if at >= 0:
                acked += 1
                newest, newest_us = max((newest, newest_us), (number, at))
            self._largest = max(self._largest, number)
        self._taken = end
        self._backoff = 0
        self._delivered += acked
        self._delivered_at = now
        lost = self._lose(self._largest - _DUPLICATE_THRESHOLD)
        if newest >= 0:
            self._on_rtt(now - newest_us)
            self._sample(newest, newest_us, now=now)
        self._set_window(acked, lost, now=now)
        for number in [number for number in self._when_sent if number <= newest and number not in sent]:
            del self._when_sent[number]
        if sent:
            self._set_timeout(now)
        else:
            self._timeout_at = -1

    def _sample(self, newest: int, newest_us: int, *, now: int) -> None:
        """Take the delivery rate and the round trip of the newest packet that was acked."""
        delivered, delivered_at, first_sent_at = self._when_sent[newest]
        self._first_sent_at = newest_us
        took_us = max(now - delivered_at, newest_us - first_sent_at)
        is_new_round = delivered >= self._round_ends
        if is_new_round:
            self._round += 1
            self._round_ends = self._delivered
        if took_us > 0:
            rate = (self._delivered - delivered) / took_us
            rates = self._rates
            while rates and rates[-1][1] <= rate:
                rates.pop()
            rates.append((self._round, rate))
            while rates[0][0] <= self._round - _RATE_ROUNDS:
                rates.popleft()
        rtt_us = now - newest_us
        is_old = self._path_us and now > self._path_at + _PATH_US
        if not self._path_us or rtt_us <= self._path_us or is_old:
            self._path_us, self._path_at = rtt_us, now
        self._change_mode(is_new_round=is_new_round, is_old=bool(is_old), now=now)

    def _change_mode(self, *, is_new_round: bool, is_old: bool, now: int) -> None:
        in_flight = len(self._sent)
        if self._mode == "startup" and is_new_round:
            if self._rate >= 1.25 * self._full_rate:
                self._full_rate, self._full_rounds = self._rate, 0
            else:
                self._full_rounds += 1
                if self._full_rounds >= 3:
                    self._mode = "drain"
        if self._mode == "drain" and in_flight <= self._path_packets(1):
            self._begin_cycle(now)
        elif self._mode == "probe rate":
            has_lasted = now - self._phase_at > self._path_us
            gain = _CYCLE[self._phase]
            if (
                (gain == 1 and has_lasted)
                or (gain > 1 and has_lasted and in_flight >= self._path_packets(gain))
                or (gain < 1 and (has_lasted or in_flight <= self._path_packets(1)))
            ):
                self._phase, self._phase_at = (self._phase + 1) % len(_CYCLE), now
        if is_old and self._mode != "probe path":
            self._mode, self._before_window, self._probe_ends_at = "probe path", self._window, 0
        if self._mode == "probe path":
            if not self._probe_ends_at and in_flight <= _MIN_PACKETS:
                self._probe_ends_at = now + max(_PROBE_RTT_US, self._path_us)
            elif 0 < self._probe_ends_at <= now:
                self._path_at = now
                self._window = max(self._window, self._before_window)
                if self._full_rounds >= 3:
                    self._begin_cycle(now)
                else:
                    self._mode = "startup"

    def _begin_cycle(self, now: int) -> None:
        self._mode, self._phase, self._phase_at = "probe rate", 2 + self._simulator.random.randrange(6), now

    def _set_window(self, acked: int, lost: int, *, now: int) -> None:
        if lost and self._largest >= self._recovery_number:
            self._recovery_number = self._next_number
            self._before_window = max(self._before_window, self._window)
            self._window = float(max(len(self._sent) + acked, _MIN_PACKETS))
            self._conserves_until = self._round + 1
        elif self._conserves_until >= 0 and self._round >= self._conserves_until:
            self._conserves_until = -1
            self._window = max(self._window, self._before_window)
            self._before_window = 0.0
        target = self._path_packets(_HIGH_GAIN if self._mode in ("startup", "drain") else 2) + 3
        if self._conserves_until >= 0:
            self._window = max(self._window, float(len(self._sent) + acked))
        elif self._full_rounds >= 3:
            self._window = min(self._window + acked, target)
        elif self._window < target or self._delivered < _INITIAL_PACKETS:
            self._window += acked
        self._window = max(self._window, float(_MIN_PACKETS))
        if self._mode == "probe path":
            self._window = min(self._window, float(_MIN_PACKETS))

    def _reduce_for_timeout(self, now: int) -> None:
        self._before_window = max(self._before_window, self._window)
        self._window = 1.0
        self._conserves_until = self._round + 1

    def _send(self, now: int) -> None:
        room = min(int(self._window), self._window_limit) - len(self._sent)
        if room <= 0 or not self._left:
            return
        if now < self._ready_at:
            self._wake_at(self._ready_at, now)
            return
        rate = self._pacing_gain * self._rate * _MARGIN
        if not rate:
            rate = _HIGH_GAIN * _INITIAL_PACKETS / (self._srtt_us or 1_000)
        count = min(room, self._left, max(2, int(rate * _QUANTUM_US)))
        if not self._sent:
            self._first_sent_at = self._delivered_at = now
        first = self._next_number
        for number in range(first, first + count):
            self._when_sent[number] = self._delivered, self._delivered_at, self._first_sent_at
        self._send_packets(count, _DATA_WIRE_BYTES, now)
        self._ready_at = now + int(count / rate)
        if room > count and self._left:
            self._wake_at(self._ready_at, now)

    def _wake_at(self, at: int, now: int) -> None:
        if self._pace_at < 0:
            self._pace_at = max(at, now + 1)
            self._simulator.later(self._pace_at, self)

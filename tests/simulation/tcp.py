"""A model of Linux's TCP: window, acks, losses, timeouts; NewReno and CUBIC with HyStart. No bytes, only packets.

Each transmission has a number of its own, and the receiver's list of arrivals stands for cumulative and selective acks:
an ack says how many arrivals it covers, so a lost ack costs nothing but time (RFC 2018 and Linux's RACK come to the
same). A packet is lost when one that left three or more packets later has arrived (RFC 6675). The receiver acks every
second packet, the first sixteen and those after a gap at once, a lone one after 40 ms (tcp_delack_min). Bursts leave as
acks come: without the qdisc fq Linux does not pace Reno and CUBIC.

Sources: RFC 5681, RFC 6675, RFC 6298, RFC 6928; RFC 9438 and Linux's tcp_cubic.c for CUBIC and HyStart.
"""

from __future__ import annotations

from collections import deque

from tests.links import Burst
from tests.simulation.links import Packet
from tests.simulator import Node, Simulator

MSS_BYTES = 1_448
_DATA_WIRE_BYTES = 1_500
_ACK_WIRE_BYTES = 52  # IPv4, TCP, timestamps
_QUICK_ACKS = 16
_MIN_RTO_US = 200_000
_INITIAL_RTO_US = 1_000_000
_DUPLICATE_THRESHOLD = 3


class Reno:
    """RFC 5681: slow start, a packet per round trip, half at a loss. Windows are packets."""

    def __init__(self) -> None:
        self.window = 10.0
        self.threshold = float(1 << 40)

    def on_ack(self, packets: int, rtt_us: int, *, is_limited: bool, is_new_round: bool, now: int) -> None:
        """So many packets were newly acked."""
        if not is_limited:
            return
        if self.window < self.threshold:
            self.window = min(self.window + packets, max(self.window, self.threshold))
        else:
            self._avoid_congestion(packets, now=now)

    def _avoid_congestion(self, packets: int, *, now: int) -> None:
        self.window += packets / self.window

    def on_loss(self) -> None:
        """Once per window."""
        self.threshold = max(self.window / 2, 2.0)
        self.window = self.threshold

    def on_timeout(self) -> None:
        """All that was in flight is lost."""
        self.on_loss()
        self.window = 1.0


class Cubic(Reno):
    """RFC 9438 as Linux does it, and HyStart (tcp_cubic.c): slow start ends when acks of one round come closely for
    half of the shortest round trip, or when the shortest of eight round trips is longer by an eighth (4 to 16 ms).
    """

    BETA = 717 / 1024
    C = 0.4  # packets per second cubed

    def __init__(self) -> None:
        super().__init__()
        self._last_max = 0.0
        self._epoch_at = -1
        self._k_s = 0.0
        self._origin = 0.0
        self._reno_window = 0.0
        self._min_rtt_us = 0
        self._round_at = self._train_at = 0
        self._round_rtt_us = 0
        self._round_samples = 0

    def on_ack(self, packets: int, rtt_us: int, *, is_limited: bool, is_new_round: bool, now: int) -> None:
        if rtt_us and (not self._min_rtt_us or rtt_us < self._min_rtt_us):
            self._min_rtt_us = rtt_us
        if self.window < self.threshold and rtt_us:
            self._detect_queue(rtt_us, is_new_round=is_new_round, now=now)
        super().on_ack(packets, rtt_us, is_limited=is_limited, is_new_round=is_new_round, now=now)

    def _detect_queue(self, rtt_us: int, *, is_new_round: bool, now: int) -> None:
        if is_new_round:
            self._round_at = self._train_at = now
            self._round_rtt_us = rtt_us
            self._round_samples = 0
        if self.window < 16:
            return
        found = False
        if now - self._train_at <= 2_000:
            self._train_at = now
            found = now - self._round_at > self._min_rtt_us // 2
        self._round_rtt_us = min(self._round_rtt_us, rtt_us)
        if self._round_samples < 8:
            self._round_samples += 1
        elif self._round_rtt_us > self._min_rtt_us + min(max(self._min_rtt_us >> 3, 4_000), 16_000):
            found = True
        if found:
            self.threshold = self.window

    def _avoid_congestion(self, packets: int, *, now: int) -> None:
        window = self.window
        if self._epoch_at < 0:
            self._epoch_at = now
            self._reno_window = window
            self._origin = max(self._last_max, window)
            self._k_s = ((self._origin - window) / self.C) ** (1 / 3)
        t_s = (now - self._epoch_at + self._min_rtt_us) / 1e6
        target = self._origin + self.C * (t_s - self._k_s) ** 3
        count = window / (target - window) if target > window else 100 * window
        if not self._last_max:
            count = min(count, 20.0)
        self._reno_window += packets * 8 / (15 * window)
        if self._reno_window > window:
            count = min(count, window / (self._reno_window - window))
        self.window += packets / max(count, 2.0)

    def on_loss(self) -> None:
        self._epoch_at = -1
        window = self.window
        self._last_max = window * (1 + self.BETA) / 2 if window < self._last_max else window
        self.threshold = max(window * self.BETA, 2.0)
        self.window = self.threshold


TCPS: dict[str, type[Reno]] = {"reno": Reno, "cubic": Cubic}


class Receiver:
    """Counts what arrives and acks it over `back`."""

    _DELAYED_ACK_US = 40_000
    _PAYLOAD_BYTES = MSS_BYTES

    def __init__(self, simulator: Simulator, back: Node) -> None:
        self._simulator = simulator
        self._back = back
        self.sender: Sender
        self.arrivals: list[int] = []
        self.bytes = 0
        self._acked = 0
        self._quick_acks = _QUICK_ACKS
        self._ack_at = -1
        self._timer_at = -1

    def put(self, burst: Burst | None, *, now: int) -> None:
        if burst is None:
            self._timer_at = -1
            if self._ack_at >= 0:
                if now >= self._ack_at:
                    self._ack(now)
                else:
                    self._set_timer()
            return
        assert isinstance(burst, Packet)
        number = burst.number
        if number < 0:  # SYN
            self._ack(now)
            return
        arrivals = self.arrivals
        has_gap = number != (arrivals[-1] + 1 if arrivals else 0)
        arrivals.append(number)
        self.bytes += self._PAYLOAD_BYTES
        if has_gap or self._quick_acks or len(arrivals) - self._acked >= 2:
            if self._quick_acks:
                self._quick_acks -= 1
            self._ack(now)
        elif self._ack_at < 0:
            self._ack_at = now + self._DELAYED_ACK_US
            if self._timer_at < 0:
                self._set_timer()

    def _set_timer(self) -> None:
        self._timer_at = self._ack_at
        self._simulator.later(self._ack_at, self)

    def _ack(self, now: int) -> None:
        self._ack_at = -1
        self._acked = len(self.arrivals)
        self._back.put(self._make_ack(now), now=now)

    def _make_ack(self, now: int) -> Packet:
        return Packet(self, self.sender, self._acked, _ACK_WIRE_BYTES, now)

    def dropped(self, datagram: bytes) -> None:
        """The network drops a packet of ours: nothing is counted."""


class Sender:
    """Sends total_bytes, or without end, over `there`.

    window_limit    packets: the receive window or the send buffer, whichever is smaller
    finished_at     when all of total_bytes was acked, -1 before
    """

    def __init__(
        self,
        simulator: Simulator,
        there: Node,
        receiver: Receiver,
        control: Reno | None = None,
        *,
        total_bytes: int = 0,
        window_limit_bytes: int = 4 << 20,
    ) -> None:
        self._simulator = simulator
        self._there = there
        self._receiver = receiver
        receiver.sender = self
        self.control = control or Reno()
        self._left = -(-total_bytes // MSS_BYTES) if total_bytes else 1 << 60
        self._window_limit = window_limit_bytes // MSS_BYTES
        self._is_open = False
        self._is_stopped = False
        self._next_number = 0
        self._sent: dict[int, int] = {}
        self._order: deque[int] = deque()
        self._taken = 0
        self._largest = -1
        self._recovery_number = 0
        self._round_number = 0
        self._srtt_us = self._var_us = 0
        self._rto_us = _INITIAL_RTO_US
        self._backoff = 0
        self._timeout_at = -1
        self._timer_at = -1
        self._was_limited = False
        self._pace_at = -1  # when more is sent that pacing holds back; -1: nothing is
        self.lost = 0
        self.timeouts = 0

    @property
    def window_bytes(self) -> int:
        """The congestion window."""
        return int(self.control.window) * MSS_BYTES

    def start(self, now: int) -> None:
        """Send the SYN."""
        self._there.put(Packet(self, self._receiver, -1, 60, now), now=now)
        self._set_timeout(now)

    def stop(self) -> None:
        """Send and take in nothing more."""
        self._is_stopped = True

    def put(self, burst: Burst | None, *, now: int) -> None:
        if self._is_stopped:
            return
        if burst is None and 0 <= self._pace_at <= now:
            self._pace_at = -1
            self._send(now)
            return
        if burst is None:
            self._timer_at = -1
            if self._timeout_at < 0:
                return
            if now >= self._timeout_at:
                self._on_timeout(now)
            else:
                self._timer_at = self._timeout_at
                self._simulator.later(self._timeout_at, self)
            return
        assert isinstance(burst, Packet)
        if not self._is_open:
            self._is_open = True
            self._timeout_at = -1
        self._on_ack(burst.number, now)
        self._send(now)

    def _on_ack(self, end: int, now: int) -> None:
        if end <= self._taken:
            return
        sent = self._sent
        acked = 0
        newest_us = -1
        for number in self._receiver.arrivals[self._taken : end]:
            at = sent.pop(number, -1)
            if at >= 0:
                acked += 1
                newest_us = max(newest_us, at)
            if number > self._largest:
                self._largest = number
        self._taken = end
        self._backoff = 0
        rtt_us = now - newest_us if newest_us >= 0 else 0
        if rtt_us:
            self._on_rtt(rtt_us)
        is_new_round = self._largest >= self._round_number
        if is_new_round:
            self._round_number = self._next_number
        lost = self._lose(self._largest - _DUPLICATE_THRESHOLD)
        if lost and self._largest >= self._recovery_number:
            self._recovery_number = self._next_number
            self.control.on_loss()
        elif acked and self._largest >= self._recovery_number:
            self.control.on_ack(acked, rtt_us, is_limited=self._was_limited, is_new_round=is_new_round, now=now)
        if sent:
            self._set_timeout(now)
        else:
            self._timeout_at = -1

    def _lose(self, through: int) -> int:
        """Everything in flight up to this number is lost, and will be sent again."""
        order, sent = self._order, self._sent
        lost = 0
        while order and (order[0] <= through or order[0] not in sent):
            if sent.pop(order.popleft(), -1) >= 0:
                lost += 1
        self._left += lost
        self.lost += lost
        return lost

    def _on_rtt(self, rtt_us: int) -> None:
        if not self._srtt_us:
            self._srtt_us, self._var_us = rtt_us, rtt_us // 2
        else:
            self._var_us += (abs(rtt_us - self._srtt_us) - self._var_us) // 4
            self._srtt_us += (rtt_us - self._srtt_us) // 8
        # Linux: the variance term is at least TCP_RTO_MIN.
        self._rto_us = self._srtt_us + max(_MIN_RTO_US, 4 * self._var_us)

    def _set_timeout(self, now: int) -> None:
        self._timeout_at = now + min(self._rto_us << self._backoff, 120_000_000)
        if self._timer_at < 0:
            self._timer_at = self._timeout_at
            self._simulator.later(self._timeout_at, self)

    def _on_timeout(self, now: int) -> None:
        self._backoff = min(self._backoff + 1, 16)
        if not self._is_open:
            self.start(now)
            return
        self.timeouts += 1
        self._lose(1 << 62)
        self._reduce_for_timeout(now)
        self._recovery_number = self._next_number
        self._set_timeout(now)
        self._send(now)

    def _reduce_for_timeout(self, now: int) -> None:
        self.control.on_timeout()

    def _send(self, now: int) -> None:
        window = min(int(self.control.window), self._window_limit)
        count = min(window - len(self._sent), self._left)
        if count > 0:
            self._send_packets(count, _DATA_WIRE_BYTES, now)
        self._was_limited = len(self._sent) >= window and window <= self._window_limit

    def _send_packets(self, count: int, wire_bytes: int, now: int) -> None:
        sent = self._sent
        if not sent:
            self._set_timeout(now)
        there, receiver = self._there, self._receiver
        first = self._next_number
        for number in range(first, first + count):
            sent[number] = now
            self._order.append(number)
            there.put(Packet(self, receiver, number, wire_bytes, now), now=now)
        self._next_number = first + count
        self._left -= count

    def dropped(self, datagram: bytes) -> None:
        """The network drops a packet of ours: nothing is counted."""

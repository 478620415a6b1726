"""A light model of our connection: the real controller and the real pacer, and packets that are only numbers.

A third of the time of a Connection on both sides. It leaves out what does not matter for a long transfer over a path
that keeps the order: the handshake's data, path MTU probes, tail-loss probes, advertised windows, grants.
tests/simulation/test_light.py compares the two.
"""

from __future__ import annotations

from tests.links import Burst
from tests.simulation.links import Packet
from tests.simulation.tcp import Receiver, Sender
from tests.simulator import Node, Simulator
from utpsocket.protocol.congestion.controller import Controller
from utpsocket.protocol.pacing import PACED_FROM_RTT_US, Pacer
from utpsocket.protocol.times import ACK_DELAY_US, TIMESTAMP_MASK

SEGMENT_BYTES = 1_452
_DATA_WIRE_BYTES = 1_500
_ACK_WIRE_BYTES = 48  # IPv4, UDP, uTP
_DUPLICATE_THRESHOLD = 3
_TIMER_US = 1_000  # timers come late, up to the next multiple of this


class LightReceiver(Receiver):
    """Acks every second packet at once, a lone one after 10 ms, with the delay that it has measured."""

    def __init__(self, simulator: Simulator, back: Node) -> None:
        super().__init__(simulator, back)
        self._delay_us = 0
        self._quick_acks = 0

    _DELAYED_ACK_US = ACK_DELAY_US
    _PAYLOAD_BYTES = SEGMENT_BYTES

    def put(self, burst: Burst | None, *, now: int) -> None:
        if burst is not None:
            assert isinstance(burst, Packet)
            self._delay_us = now - burst.sent_us
        super().put(burst, now=now)

    def _make_ack(self, now: int) -> Packet:
        return Packet(self, self.sender, self._acked, _ACK_WIRE_BYTES, now, self._delay_us)


class LightSender(Sender):
    """See Sender. `controller` is one of CONTROLLERS."""

    def __init__(
        self,
        simulator: Simulator,
        there: Node,
        receiver: LightReceiver,
        controller: Controller,
        *,
        window_limit_bytes: int = 16 << 20,
    ) -> None:
        super().__init__(simulator, there, receiver, window_limit_bytes=window_limit_bytes)
        self.controller = controller
        self._pacer = Pacer()
        self._limited_at = -1
        self._delay_us = 0
        self._rtt_us = 0

    @property
    def window_bytes(self) -> int:
        """The congestion window."""
        return self.controller.window_bytes

    def put(self, burst: Burst | None, *, now: int) -> None:
        if burst is not None:
            assert isinstance(burst, Packet)
            if burst.number:  # not the answer to the SYN
                self.controller.on_peer_delay((now - burst.sent_us) & TIMESTAMP_MASK)
                self._delay_us = burst.delay_us
        super().put(burst, now=now)

    def _on_ack(self, end: int, now: int) -> None:
        if end <= self._taken:
            return
        sent, controller = self._sent, self.controller
        in_flight = len(sent)
        newest_us = -1
        for number in self._receiver.arrivals[self._taken : end]:
            at = sent.pop(number, -1)
            if at > newest_us:
                newest_us = at
            if number > self._largest:
                self._largest = number
        acked = in_flight - len(sent)
        self._taken = end
        self._backoff = 0
        if newest_us >= 0:
            self._rtt_us = now - newest_us
            self._on_rtt(self._rtt_us)
        is_old_loss = self._largest - _DUPLICATE_THRESHOLD < self._recovery_number
        lost = self._lose(self._largest - _DUPLICATE_THRESHOLD)
        if lost and not is_old_loss:
            self._recovery_number = self._next_number
            controller.on_loss(now=now)
        controller.on_delay(self._delay_us & TIMESTAMP_MASK, now=now)
        if acked and not lost:
            controller.on_ack(
                acked * SEGMENT_BYTES,
                in_flight_bytes=in_flight * SEGMENT_BYTES,
                is_limited=self._limited_at >= newest_us,
                rtt_us=self._rtt_us,
                sent_us=newest_us,
                now=now,
            )
        if sent:
            self._set_timeout(now)
        else:
            self._timeout_at = -1

    def _reduce_for_timeout(self, now: int) -> None:
        self.controller.on_timeout(now=now)

    def _send(self, now: int) -> None:
        sent, pacer, controller = self._sent, self._pacer, self.controller
        rtt_us = self._srtt_us
        while True:
            window = max(1, controller.window_bytes // SEGMENT_BYTES)
            room = min(window, self._window_limit) - len(sent)
            if room < self._left and window <= self._window_limit:
                self._limited_at = now
            if room <= 0:
                return
            rate_bytes = controller.window_bytes * (8 if controller.is_slow_start else 5) // 4
            burst = pacer.packets(SEGMENT_BYTES, rate_bytes, rtt_us, now=now)
            if not burst:
                self._limited_at = now
                if self._pace_at < 0:
                    self._pace_at = -(-max(pacer.ready_at, now + 1) // _TIMER_US) * _TIMER_US
                    self._simulator.later(self._pace_at, self)
                return
            if rtt_us > PACED_FROM_RTT_US and room < min(burst, window // 4) and sent:
                return  # a whole burst will fit later
            count = min(burst, room, self._left)
            if not count:
                return
            self._send_packets(count, _DATA_WIRE_BYTES, now)
            pacer.on_sent(count, count * SEGMENT_BYTES, rate_bytes, rtt_us, now=now)

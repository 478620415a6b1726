"""The bottleneck of the lab: a rate, a queue of bytes and a propagation delay, any of which may change.

Departures are computed as a packet enters, as the emulator of the link lab does: the wait of each packet is known then.
Links carry the bursts of tests/simulator.py and the single packets of the light flows (tests/simulation/light.py).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from math import sqrt
from typing import Final

from tests.links import IP_UDP_BYTES, Burst
from tests.simulator import Simulator

# RFC 8289 §4.2, §4.3
_CODEL_TARGET_NS: Final = 5_000_000
_CODEL_INTERVAL_NS: Final = 100_000_000


class Packet(Burst):
    """One packet of a light flow: no bytes, but a size on the wire.

    number       of this transmission; acks: how many arrivals they cover
    sent_us      when it left, by the sender's clock
    delay_us     acks: the one-way delay that was measured last
    """

    __slots__ = ("delay_us", "number", "sent_us", "wire_bytes")

    def __init__(self, source: object, to: object, number: int, wire_bytes: int, sent_us: int, delay_us: int = 0):
        self.source = source  # type: ignore[assignment]
        self.to = to  # type: ignore[assignment]
        self.number = number
        self.wire_bytes = wire_bytes
        self.sent_us = sent_us
        self.delay_us = delay_us


class Way:
    """One direction of a path, as it begins. queue_ms counts at this rate; loss is a share.

    aqm            "" drop-tail; "codel" RFC 8289; "policer" a token bucket of queue_ms without a queue
    jitter_ms      up to so much more delay, in order
    """

    def __init__(
        self,
        rate_mbit: float,
        delay_ms: float,
        queue_ms: float,
        loss: float = 0.0,
        aqm: str = "",
        jitter_ms: float = 0.0,
    ) -> None:
        self.rate_mbit = rate_mbit
        self.delay_ms = delay_ms
        self.queue_ms = queue_ms
        self.loss = loss
        self.aqm = aqm
        self.jitter_ms = jitter_ms


class _Codel:
    """Controlled delay: whether a packet that leaves the queue now is dropped. RFC 8289 §5."""

    def __init__(self) -> None:
        self._above_at = 0
        self._next_at = 0
        self._count = self._last_count = 0
        self._is_dropping = False

    def drops(self, wait_ns: int, backlog_bytes: float, now_ns: int) -> bool:
        """wait_ns is how long it was in the queue, backlog_bytes how much still is."""
        may_drop = False
        if wait_ns < _CODEL_TARGET_NS or backlog_bytes <= 1_500:
            self._above_at = 0
        elif not self._above_at:
            self._above_at = now_ns + _CODEL_INTERVAL_NS
        else:
            may_drop = now_ns >= self._above_at
        if self._is_dropping:
            if not may_drop:
                self._is_dropping = False
            elif now_ns >= self._next_at:
                self._count += 1
                self._next_at += int(_CODEL_INTERVAL_NS / sqrt(self._count))
                return True
            return False
        if not may_drop:
            return False
        self._is_dropping = True
        delta = self._count - self._last_count
        is_recent = now_ns - self._next_at < 16 * _CODEL_INTERVAL_NS
        self._count = self._last_count = delta if delta > 1 and is_recent else 1
        self._next_at = now_ns + int(_CODEL_INTERVAL_NS / sqrt(self._count))
        return True


class Link:
    """A way in a simulation.

    passed_at, waits_us   of each packet that was not dropped: when it came, how long it waited
    passed_bytes          of all of them, on the wire
    dropped               by the queue; dropped_by_chance apart
    """

    def __init__(self, simulator: Simulator, way: Way, *, coalesce_us: int = 1_000) -> None:
        self._simulator = simulator
        self._random = simulator.random
        self._coalesce_ns = coalesce_us * 1_000
        self.delay_us = round(way.delay_ms * 1_000)
        self.jitter_us = round(way.jitter_ms * 1_000)
        self.loss = way.loss
        self._free_at_ns = 0
        self._last_at = 0
        self._codel = _Codel() if way.aqm == "codel" else None
        self._is_policer = way.aqm == "policer"
        self.set_rate(way.rate_mbit, way.queue_ms)
        self.passed_at: array[int] = array("q")
        self.waits_us: array[int] = array("q")
        self.sizes: array[int] = array("i")
        self.dropped_at: list[int] = []
        self.dropped_by_chance = 0

    def set_rate(self, rate_mbit: float, queue_ms: float) -> None:
        """From now on."""
        self.rate_mbit = rate_mbit
        self._ns_per_byte = 8_000 / rate_mbit
        self._most_ns = round(queue_ms * 1_000_000)

    def queue_us(self, now: int) -> int:
        """How long a packet that came now would wait."""
        return max(0, self._free_at_ns // 1_000 - now)

    def put(self, burst: Burst | None, *, now: int) -> None:
        if isinstance(burst, Packet):
            at = self._enqueue(burst.wire_bytes, now)
            if at >= 0:
                self._simulator.later(at // 1_000 + self.delay_us, burst.to, burst)
            return
        assert burst is not None
        together: list[bytes] = []
        opened_ns = last_ns = 0
        for datagram in burst.datagrams:
            leaves_ns = self._enqueue(len(datagram) + IP_UDP_BYTES, now)
            if leaves_ns < 0:
                burst.source.dropped(datagram)
                continue
            if together and leaves_ns - opened_ns > self._coalesce_ns:
                self._deliver(burst.of(together), last_ns)
                together = []
            if not together:
                opened_ns = leaves_ns
            together.append(datagram)
            last_ns = leaves_ns
        if together:
            self._deliver(burst.of(together), last_ns)

    def _deliver(self, burst: Burst, leaves_ns: int) -> None:
        at = -(-leaves_ns // 1_000) + self.delay_us
        if self.jitter_us:
            at = self._last_at = max(self._last_at, at + self._random.randrange(self.jitter_us + 1))
        self._simulator.later(at, burst.to, burst)

    def _enqueue(self, wire_bytes: int, now: int) -> int:
        """When this packet's last bit leaves, in ns; -1 if it is dropped."""
        if self.loss and self._random.random() < self.loss:
            self.dropped_by_chance += 1
            return -1
        now_ns = now * 1_000
        free_ns = self._free_at_ns
        if free_ns < now_ns:
            free_ns = now_ns
        wait_ns = free_ns - now_ns
        takes_ns = int(wire_bytes * self._ns_per_byte)
        if wait_ns + takes_ns > self._most_ns and wait_ns:
            self.dropped_at.append(now)
            return -1
        if self._codel is not None and self._codel.drops(wait_ns, wait_ns / self._ns_per_byte, free_ns):
            self.dropped_at.append(now)
            return -1
        self._free_at_ns = free_ns + takes_ns
        if self._is_policer:  # the bucket is what the queue would have been, and nothing waits
            free_ns, wait_ns, takes_ns = now_ns, 0, 0
        self.passed_at.append(now)
        self.waits_us.append(wait_ns // 1_000)
        self.sizes.append(wire_bytes)
        return free_ns + takes_ns

    def waits_between(self, start_us: int, end_us: int) -> list[int]:
        """The waits of the packets that came in this time, sorted."""
        return sorted(self.waits_us[bisect_left(self.passed_at, start_us) : bisect_left(self.passed_at, end_us)])

    def bytes_between(self, start_us: int, end_us: int) -> int:
        """What was taken in in this time."""
        return sum(self.sizes[bisect_left(self.passed_at, start_us) : bisect_left(self.passed_at, end_us)])

"""What a datagram passes on its way: links, wrapped by links. See simulator.py, which is to be read first.

Each takes what follows it as `then`, and reports every datagram that it drops to the sending host, which so can tell a
retransmission with a cause from one without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tests.simulator import Host, Simulator

IP_UDP_BYTES = 28


class Burst:
    """Datagrams that left at one instant, from one host to another."""

    __slots__ = ("datagrams", "may_fragment", "source", "to")

    def __init__(self, source: Host, to: Host, datagrams: list[bytes], may_fragment: bool) -> None:
        self.source = source
        self.to = to
        self.datagrams = datagrams
        self.may_fragment = may_fragment

    def of(self, datagrams: list[bytes]) -> Burst:
        """The same journey for these datagrams."""
        return Burst(self.source, self.to, datagrams, self.may_fragment)


class Node(Protocol):
    """What a datagram passes."""

    def put(self, burst: Burst | None, *, now: int) -> None:
        """A burst arrives; None: the moment this node had asked for."""
        ...


class Arrival:
    """The end of every path: the burst's destination."""

    def put(self, burst: Burst | None, *, now: int) -> None:
        assert burst is not None
        burst.to.put(burst, now=now)


class Delay:
    """Constant delay, plus jitter that keeps the order."""

    def __init__(self, simulator: Simulator, delay_us: int, *, jitter_us: int = 0, then: Node | None = None) -> None:
        self._simulator = simulator
        self._then = then or Arrival()
        self.delay_us = delay_us
        self.jitter_us = jitter_us
        self._last_at = 0

    def put(self, burst: Burst | None, *, now: int) -> None:
        at = now + self.delay_us
        if self.jitter_us:
            at = self._last_at = max(self._last_at, at + self._simulator.random.randrange(self.jitter_us + 1))
        self._simulator.later(at, self._then, burst)


class Loss:
    """Drops datagrams by chance, by number (the first that passes is 0), or by what they are."""

    def __init__(
        self,
        simulator: Simulator,
        then: Node,
        probability: float = 0.0,
        *,
        mask: Iterable[int] = (),
        where: Callable[[bytes], bool] | None = None,
    ) -> None:
        self._random = simulator.random.random
        self._then = then
        self.probability = probability
        self.where = where
        self._mask = frozenset(mask)
        self._passed = 0

    def put(self, burst: Burst | None, *, now: int) -> None:
        assert burst is not None
        kept = []
        for datagram in burst.datagrams:
            is_chosen = self._passed in self._mask or (self.where is not None and self.where(datagram))
            if is_chosen or (self.probability and self._random() < self.probability):
                burst.source.dropped(datagram)
            else:
                kept.append(datagram)
            self._passed += 1
        if kept:
            self._then.put(burst.of(kept) if len(kept) < len(burst.datagrams) else burst, now=now)


class Reorder:
    """Some datagrams take up to `by_us` longer, and so come after those that left later."""

    def __init__(self, simulator: Simulator, then: Node, probability: float, by_us: int) -> None:
        self._simulator = simulator
        self._then = then
        self.probability = probability
        self.by_us = by_us

    def put(self, burst: Burst | None, *, now: int) -> None:
        assert burst is not None
        chance = self._simulator.random
        kept = []
        for datagram in burst.datagrams:
            if chance.random() < self.probability:
                self._simulator.later(now + chance.randrange(1, self.by_us + 1), self._then, burst.of([datagram]))
            else:
                kept.append(datagram)
        if kept:
            self._then.put(burst.of(kept), now=now)


class Duplicate:
    """Some datagrams arrive twice."""

    def __init__(self, simulator: Simulator, then: Node, probability: float) -> None:
        self._random = simulator.random.random
        self._then = then
        self.probability = probability

    def put(self, burst: Burst | None, *, now: int) -> None:
        assert burst is not None
        twice = []
        for datagram in burst.datagrams:
            twice.append(datagram)
            if self._random() < self.probability:
                twice.append(datagram)
        self._then.put(burst.of(twice), now=now)


class Corrupt:
    """Some datagrams have a byte changed or their end cut off; `where` limits the damage to these positions."""

    def __init__(self, simulator: Simulator, then: Node, probability: float, where: range | None = None) -> None:
        self._random = simulator.random
        self._then = then
        self.probability = probability
        self.where = where

    def put(self, burst: Burst | None, *, now: int) -> None:
        assert burst is not None
        chance = self._random
        arriving = []
        for datagram in burst.datagrams:
            if chance.random() < self.probability:
                burst.source.dropped(datagram)
                damaged = bytearray(datagram)
                if self.where is None and chance.random() < 0.3:
                    del damaged[chance.randrange(len(damaged)) :]
                else:
                    index = chance.choice(self.where) if self.where is not None else chance.randrange(len(damaged))
                    damaged[index] ^= 1 << chance.randrange(8)
                datagram = bytes(damaged)
            arriving.append(datagram)
        self._then.put(burst.of(arriving), now=now)


class Bottleneck:
    """A rate and the queue before it; what the queue has no room for is dropped.

    coalesce_us   datagrams that leave the queue within this time arrive together, as network cards do it
    """

    def __init__(
        self, simulator: Simulator, then: Node, rate_bits: int, *, queue_bytes: int, coalesce_us: int = 1_000
    ) -> None:
        self._simulator = simulator
        self._then = then
        self.rate_bits = rate_bits
        self.queue_bytes = queue_bytes
        self.coalesce_us = coalesce_us
        self._free_at_ns = 0
        self.dropped = 0
        self.carried_bytes = 0
        self.busy_ns = 0
        self.delays: list[tuple[int, int]] = []  # (when, queueing delay µs) of each burst

    def put(self, burst: Burst | None, *, now: int) -> None:
        assert burst is not None
        now_ns = now * 1_000
        free_at = max(self._free_at_ns, now_ns)
        self.delays.append((now, (free_at - now_ns) // 1_000))
        most_ns = self.queue_bytes * 8_000_000_000 // self.rate_bits
        together: list[bytes] = []
        opened_at = leaves_at = free_at
        for datagram in burst.datagrams:
            takes_ns = (len(datagram) + IP_UDP_BYTES) * 8_000_000_000 // self.rate_bits
            if free_at + takes_ns - now_ns > most_ns + takes_ns:
                self.dropped += 1
                burst.source.dropped(datagram)
                continue
            free_at += takes_ns
            self.busy_ns += takes_ns
            self.carried_bytes += len(datagram)
            if together and free_at - opened_at > self.coalesce_us * 1_000:
                self._simulator.later(-(-leaves_at // 1_000), self._then, burst.of(together))
                together = []
            if not together:
                opened_at = free_at
            together.append(datagram)
            leaves_at = free_at
        self._free_at_ns = free_at
        if together:
            self._simulator.later(-(-leaves_at // 1_000), self._then, burst.of(together))


class Mtu:
    """Carries datagrams of at most `size` bytes of UDP payload. Larger ones are fragmented where they may be; else
    they vanish, and with `reports` the sender learns of it as from its own kernel.
    """

    def __init__(self, then: Node, size: int, *, reports: bool = False, fragments: bool = True) -> None:
        self._then = then
        self.size = size
        self.reports = reports
        self.fragments = fragments
        self.too_large = 0

    def put(self, burst: Burst | None, *, now: int) -> None:
        assert burst is not None
        if burst.may_fragment and self.fragments:
            self._then.put(burst, now=now)
            return
        kept = []
        for datagram in burst.datagrams:
            if len(datagram) <= self.size:
                kept.append(datagram)
                continue
            self.too_large += 1
            burst.source.dropped(datagram)
            if self.reports:
                burst.source.too_big(datagram, self.size, now=now)
        if kept:
            self._then.put(burst.of(kept), now=now)


class Tap:
    """Writes down what passes: (time, datagram)."""

    def __init__(self, then: Node) -> None:
        self._then = then
        self.seen: list[tuple[int, bytes]] = []

    def put(self, burst: Burst | None, *, now: int) -> None:
        assert burst is not None
        self.seen += [(now, datagram) for datagram in burst.datagrams]
        self._then.put(burst, now=now)


def path(
    simulator: Simulator,
    *,
    delay_us: int,
    jitter_us: int = 0,
    rate_bits: int = 0,
    queue_us: int = 300_000,
    loss: float = 0.0,
    mask: Iterable[int] = (),
    where: Callable[[bytes], bool] | None = None,
    reorder: float = 0.0,
    reorder_us: int = 0,
    duplicate: float = 0.0,
    coalesce_us: int = 1_000,
) -> Node:
    """One direction: loss, then the bottleneck's queue, then what happens on the way."""
    node: Node = Delay(simulator, delay_us, jitter_us=jitter_us)
    if reorder:
        node = Reorder(simulator, node, reorder, reorder_us or max(2_000, delay_us // 2))
    if duplicate:
        node = Duplicate(simulator, node, duplicate)
    if rate_bits:
        queue_bytes = max(3_000, rate_bits * queue_us // 8_000_000)
        node = Bottleneck(simulator, node, rate_bits, queue_bytes=queue_bytes, coalesce_us=coalesce_us)
    if loss or mask or where:
        node = Loss(simulator, node, loss, mask=mask, where=where)
    return node


class SocketBuffer:
    """A receiver's socket buffer of so many datagrams, which it empties every so often: what overflows is lost, what
    was in it arrives, and is acked, together.
    """

    def __init__(self, simulator: Simulator, then: Node, datagrams: int, *, every_us: int) -> None:
        self._simulator = simulator
        self._then = then
        self.capacity = datagrams
        self.every_us = every_us
        self._held: list[bytes] = []
        self._of: Burst | None = None

    def put(self, burst: Burst | None, *, now: int) -> None:
        if burst is None:
            held, self._held = self._held, []
            assert self._of is not None
            self._then.put(self._of.of(held), now=now)
            return
        if not self._held:
            self._simulator.later(now + self.every_us, self)
        room = self.capacity - len(self._held)
        self._of = burst
        self._held += burst.datagrams[:room]
        for datagram in burst.datagrams[room:]:
            burst.source.dropped(datagram)


class ShortSacks:
    """Makes selective acks those of libutp: 30 packets in four bytes, whatever lies beyond, and none where nothing is
    held.
    """

    def __init__(self, then: Node) -> None:
        self._then = then

    def put(self, burst: Burst | None, *, now: int) -> None:
        assert burst is not None
        self._then.put(burst.of([self._short(datagram) for datagram in burst.datagrams]), now=now)

    def _short(self, datagram: bytes) -> bytes:
        if datagram[1] != 1 or datagram[20]:
            return datagram
        bits = int.from_bytes(datagram[22:], "little")
        if not bits:
            return datagram[:1] + b"\0" + datagram[2:20]
        return datagram[:20] + b"\0\4" + (bits & (1 << 30) - 1).to_bytes(4, "little")

"""A world for the pure core: a virtual clock, hosts with connections, and the network between them.

Read this first. Everything that a datagram passes is a Node with one method, `put(burst, now=)`: hosts and links alike,
so links are wrapped by links: `Loss(Bottleneck(Delay(simulator, …), …), …)`. A Burst is datagrams of one instant; they
stay together where the link allows it, so a run that left as one arrives as one. A node that wants to be called later
asks the simulator; `put(None)` is that call. Nothing here draws from anything but the simulator's seed, which is
printed when a simulation fails.

`Host.spurious` counts retransmissions of packets of which no copy had been dropped: needless ones. Tail-loss probes
are counted there too when nothing was lost, and apart in the connection's own stats.
"""

from __future__ import annotations

import errno
import heapq
import random
import sys
from collections.abc import Callable

from tests.links import (
    Arrival,
    Bottleneck,
    Burst,
    Corrupt,
    Delay,
    Duplicate,
    Loss,
    Mtu,
    Node,
    Reorder,
    Tap,
    path,
)
from utpsocket.protocol import Config, Connection, EventKind, PacketType, Run, State, Transmit, Workspace
from utpsocket.protocol.packet import decode, encode, unwrap
from utpsocket.protocol.runs import MAX_RUN_PACKETS

__all__ = [
    "WRAP_SEQ",
    "Application",
    "Arrival",
    "Bottleneck",
    "Burst",
    "Corrupt",
    "Delay",
    "Duplicate",
    "Host",
    "Loss",
    "Mtu",
    "Node",
    "Pair",
    "Reorder",
    "Simulator",
    "Tap",
    "path",
    "transfer",
]

PEER = ("192.0.2.1", 9)
START_US = 1_000_000
WRAP_SEQ = 65_500  # every simulation also runs from here: a few packets later the 16 bits wrap


class Simulator:
    """Clock, events, and the one source of chance. `checks`: verify every connection's invariants at each step."""

    def __init__(self, seed: int = 1, *, checks: bool = True, start_us: int = START_US) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = start_us
        self.start_us = start_us
        self.checks = checks
        self._events: list[tuple[int, int, Node, Burst | None]] = []
        self._order = 0

    @property
    def elapsed_us(self) -> int:
        return self.now - self.start_us

    def later(self, at: int, node: Node, burst: Burst | None = None) -> None:
        """Call node.put(burst) at that time."""
        self._order += 1
        heapq.heappush(self._events, (at, self._order, node, burst))

    def run(self, until: Callable[[], bool] = lambda: False, *, limit_us: int = 3_600_000_000) -> bool:
        """Let time pass until `until()`, or until nothing happens any more; returns until().

        A simulation that stands still or passes limit_us (from now) is an error.
        """
        end = self.now + limit_us
        events = self._events
        same_instant = 0
        try:
            while not until() and events:
                at, _, node, burst = heapq.heappop(events)
                same_instant = same_instant + 1 if at <= self.now else 0
                assert same_instant < 20_000, "time stands still"
                self.now = max(at, self.now)
                assert self.now <= end, "simulation takes too long"
                node.put(burst, now=self.now)
        except BaseException:
            print(f"simulation failed at {self.elapsed_us} µs, seed {self.seed}", file=sys.stderr)
            raise
        return until()

    def run_for(self, duration_us: int) -> None:
        """Let this much time pass."""
        end = self.now + duration_us
        self.run(lambda: not self._events or self._events[0][0] > end)
        self.now = end


# ── hosts ──


class Pattern:
    """A byte stream without end that repeats too late to hide a misplaced piece."""

    LENGTH = 1_048_573  # a prime

    def __init__(self, seed: int) -> None:
        once = random.Random(seed).randbytes(self.LENGTH)
        self._bytes = memoryview(once + once[: 1 << 17])

    def at(self, offset: int, count: int) -> memoryview:
        """Up to `count` bytes from there, at most 128 KiB."""
        start = offset % self.LENGTH
        return self._bytes[start : start + min(count, 1 << 17)]


_PATTERNS: dict[int, Pattern] = {}


class Application:
    """Writes `total` bytes of a pattern, reads and compares whatever comes, finishes when both is done.

    total           bytes to write
    hold_open       do not finish after writing, nor at the peer's EOF
    read_at_most    bytes taken at a time; 0 for all
    """

    def __init__(
        self, total: int = 0, *, writes: int = 1, expects: int = 2, hold_open: bool = False, read_at_most: int = 0
    ) -> None:
        self.total = total
        self.hold_open = hold_open
        self.read_at_most = read_at_most
        self.reads = True
        self._writes = _PATTERNS.setdefault(writes, Pattern(writes))
        self._expects = _PATTERNS.setdefault(expects, Pattern(expects))
        self.written = 0
        self.received = 0
        self.connected_at = -1
        self.eof_at = -1
        self.last_received_at = -1
        self.closed_errno: int | None = None

    def step(self, connection: Connection, *, now: int) -> None:
        """All that can be done now."""
        while (event := connection.poll_event()) is not None:
            if event.kind is EventKind.CONNECTED:
                self.connected_at = now
            else:
                self.closed_errno = event.errno
        if self.reads and (views := connection.poll_delivery()):
            taken = 0
            for view in views:
                if self.read_at_most and taken + len(view) > self.read_at_most:
                    view = view[: self.read_at_most - taken]
                offset = self.received + taken
                for start in range(0, len(view), 1 << 17):
                    piece = view[start : start + (1 << 17)]
                    assert bytes(piece) == self._expects.at(offset + start, len(piece)), f"wrong bytes at {offset}"
                taken += len(view)
                if self.read_at_most and taken == self.read_at_most:
                    break
            connection.finish_delivery(taken, now=now)
            self.received += taken
            self.last_received_at = now
        while self.written < self.total:
            span = connection.free_span()
            if not len(span):
                break
            piece = self._writes.at(self.written, min(len(span), self.total - self.written))
            span[: len(piece)] = piece
            connection.commit(len(piece))
            self.written += len(piece)
        if connection.has_eof and self.eof_at < 0:
            self.eof_at = now
        may_finish = self.written == self.total and not self.hold_open
        if (
            may_finish
            and connection.state in (State.CONNECTED, State.SYN_RECEIVED)
            and (self.total or self.eof_at >= 0)
        ):
            connection.finish(now=now)


class Host:
    """One machine with one connection; `to_peer` is its path to `peer`.

    max_segments   most datagrams per Transmit; 1 turns batching off, there and on arrival
    timer_us       timers come late, up to the next multiple of this
    """

    def __init__(
        self,
        simulator: Simulator,
        application: Application | None = None,
        *,
        recv_id: int,
        first_seq: int,
        config: Config | None = None,
        max_segments: int = MAX_RUN_PACKETS,
        timer_us: int = 1,
        workspace: Workspace | None = None,
    ) -> None:
        self._simulator = simulator
        self.application = application or Application()
        self.max_segments = max_segments
        self.timer_us = timer_us
        self.connection = Connection(
            config or Config(), workspace or Workspace(), PEER, recv_id=recv_id, first_seq=first_seq
        )
        self.peer: Host
        self.to_peer: Node
        self._alarm_at = 1 << 62
        self._highest_seq = -1
        self._lost: set[int] = set()
        self.sent_datagrams = 0
        self.dropped_datagrams = 0
        self.retransmitted = 0
        self.spurious = 0

    def put(self, burst: Burst | None, *, now: int) -> None:
        if burst is not None:
            self.arrive(burst.datagrams, now=now)
        elif now < self._alarm_at:
            return  # an alarm that was set before the present, earlier one
        if now >= self._alarm_at:
            self._alarm_at = 1 << 62
        deadline = self.connection.timeout_at()
        if deadline is not None and deadline <= now:
            self.connection.handle_timeout(now=now)
        self.step(now=now)

    def arrive(self, datagrams: list[bytes], *, now: int) -> None:
        """Hand datagrams over in runs: equal ones, the last of which may be shorter."""
        if self.connection.is_over:
            for datagram in datagrams:
                self._reset_stray(datagram, now=now)
            return
        start = 0
        count = len(datagrams)
        while start < count:
            size = len(datagrams[start])
            end = start + 1
            most = min(count, start + self.max_segments)
            while end < most and len(datagrams[end]) == size:
                end += 1
            if end < most and 0 < len(datagrams[end]) < size:
                end += 1
            whole = b"".join(datagrams[start:end]) if end - start > 1 else datagrams[start]
            if size:
                # Writable and then wiped, as the engine's receive buffer is: a view kept too long would show it.
                self.connection.handle_run(Run(memoryview(whole), size, PEER), now=now)
            start = end

    def step(self, *, now: int) -> None:
        """The application, then the wire, then the clock."""
        connection = self.connection
        self.application.step(connection, now=now)
        while True:
            transmit = connection.poll_transmit(now=now, max_segments=self.max_segments)
            if transmit is None:
                break
            self._send(transmit, now=now)
        if self._simulator.checks:
            connection._check()
        deadline = connection.timeout_at()
        if deadline is not None:
            if self.timer_us > 1:
                deadline = -(-deadline // self.timer_us) * self.timer_us
            if deadline < self._alarm_at:
                self._alarm_at = max(deadline, now)
                self._simulator.later(self._alarm_at, self)

    def _reset_stray(self, datagram: bytes, *, now: int) -> None:
        """As an endpoint answers for connections it has forgotten. docs/protocol.md §4."""
        packet = decode(memoryview(datagram))
        if packet is None or packet.type in (PacketType.SYN, PacketType.RESET):
            return
        record = self.connection.time_wait_record()
        answer = None if record is None else record.ack_repeated(packet, now=now)
        if answer is not None:
            self.to_peer.put(Burst(self, self.peer, [answer], may_fragment=False), now=now)
            return
        reset = encode(
            PacketType.RESET,
            packet.connection_id,
            timestamp_us=now,
            difference_us=0,
            window_bytes=0,
            seq=packet.ack16 + 1,
            ack=packet.seq16,
        )
        self.to_peer.put(Burst(self, self.peer, [reset], may_fragment=False), now=now)

    def _send(self, transmit: Transmit, *, now: int) -> None:
        datagrams = transmit.datagrams()
        is_state = datagrams[0][0] >> 4 == PacketType.STATE  # pieces of one packet
        assert len(datagrams) == transmit.count <= self.max_segments or transmit.count == 1 or is_state
        self.sent_datagrams += transmit.count
        first = datagrams[0]
        if first[0] >> 4 <= PacketType.FIN:
            seq16 = int.from_bytes(first[16:18], "big")
            seq = unwrap(seq16, self._highest_seq) if self._highest_seq >= 0 else seq16
            if seq <= self._highest_seq:
                for again in range(seq, seq + transmit.count):
                    self.retransmitted += 1
                    if again & 0xFFFF in self._lost:
                        self._lost.discard(again & 0xFFFF)
                    else:
                        self.spurious += 1
            else:
                self._highest_seq = seq + transmit.count - 1
        self.to_peer.put(Burst(self, self.peer, datagrams, transmit.may_fragment), now=now)

    def dropped(self, datagram: bytes) -> None:
        """The network lost a datagram of ours."""
        self.dropped_datagrams += 1
        if datagram[0] >> 4 <= PacketType.FIN:
            self._lost.add(int.from_bytes(datagram[16:18], "big"))

    def too_big(self, datagram: bytes, carries_bytes: int, *, now: int) -> None:
        """The kernel says so."""
        self.connection.handle_icmp(
            errno.EMSGSIZE,
            quoted_seq16=int.from_bytes(datagram[16:18], "big"),
            mtu_bytes=carries_bytes,
            datagram_bytes=len(datagram),
            now=now,
        )


class Pair:
    """Two hosts, `a` connecting to `b`, and a path each way."""

    def __init__(
        self,
        simulator: Simulator,
        there: Node,
        back: Node,
        *,
        a: Application | None = None,
        b: Application | None = None,
        first_seq: int | None = None,
        config: Config | None = None,
        max_segments: int = MAX_RUN_PACKETS,
        timer_us: int = 1,
        host: type[Host] = Host,
    ) -> None:
        if first_seq is None:
            first_seq = WRAP_SEQ
        chance = simulator.random
        recv_id = chance.randrange(0x10000)
        self.simulator = simulator
        self.a = host(
            simulator,
            a,
            recv_id=recv_id,
            first_seq=first_seq,
            config=config,
            max_segments=max_segments,
            timer_us=timer_us,
        )
        self.b = host(
            simulator,
            b,
            recv_id=(recv_id + 1) & 0xFFFF,
            first_seq=(first_seq + 20) & 0xFFFF,
            config=config,
            max_segments=max_segments,
            timer_us=timer_us,
        )
        self.a.peer, self.b.peer = self.b, self.a
        self.a.to_peer, self.b.to_peer = there, back
        self.hosts = (self.a, self.b)

    def connect(self) -> None:
        """Let `a` connect."""
        self.a.connection.connect(now=self.simulator.now)
        self.a.step(now=self.simulator.now)

    @property
    def is_over(self) -> bool:
        """Both connections are closed or lingering."""
        return all(host.connection.state in (State.TIME_WAIT, State.CLOSED) for host in self.hosts)

    def finish(self, *, limit_us: int = 3_600_000_000) -> None:
        """Connect and run until both sides have sent and received everything; assert that they have."""
        self.connect()
        assert self.simulator.run(lambda: self.is_over, limit_us=limit_us), "nothing happens any more"
        for host in self.hosts:
            assert host.connection.errno == 0, f"errno {host.connection.errno}, seed {self.simulator.seed}"
            assert host.application.received == host.peer.application.total
            assert host.application.written == host.application.total


def transfer(
    seed: int,
    total: int,
    *,
    first_seq: int = WRAP_SEQ,
    checks: bool = False,
    config: Config | None = None,
    max_segments: int = MAX_RUN_PACKETS,
    timer_us: int = 1,
    back_total: int = 0,
    limit_us: int = 3_600_000_000,
    **link: object,
) -> Pair:
    """`total` bytes from a to b (and `back_total` the other way) over two equal paths (see path()), byte-exact."""
    simulator = Simulator(seed, checks=checks)
    pair = Pair(
        simulator,
        path(simulator, **link),  # type: ignore[arg-type]
        path(simulator, **link),  # type: ignore[arg-type]
        a=Application(total, writes=1, expects=2),
        b=Application(back_total, writes=2, expects=1),
        first_seq=first_seq,
        config=config,
        max_segments=max_segments,
        timer_us=timer_us,
    )
    pair.finish(limit_us=limit_us)
    return pair

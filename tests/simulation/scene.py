"""A bottleneck with flows that come and go, in virtual time, and what is asked of it afterwards.

Kinds of flow: `utp`, our Connection on both sides, byte for byte; `light`, a model of it (light.py); `cubic`,
`reno` and `bbr`, models of Linux's TCP (tcp.py, bbr.py).
Times are seconds since the start, rates Mbit/s, delays ms. Goodput and windows are sampled every 0.1 s.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tests.links import Burst
from tests.simulation.bbr import BbrSender
from tests.simulation.light import SEGMENT_BYTES, LightReceiver, LightSender
from tests.simulation.links import Link, Way
from tests.simulation.tcp import TCPS, Receiver, Sender
from tests.simulator import Application, Host, Node, Pair, Simulator
from utpsocket.engine.channels.receive_buffer import FIRST_WINDOW_BYTES, ReceiveBuffer
from utpsocket.engine.kernel.udp import WANTED_BUFFER_BYTES
from utpsocket.engine.ports.connection_config import _SEND_BYTES
from utpsocket.engine.ports.receive_shares import MAX_WINDOW_BYTES, ReceiveShares
from utpsocket.protocol import Config, Connection
from utpsocket.protocol.congestion import CONTROLLERS

SAMPLE_US = 100_000
# Of an IP packet's 1,500 bytes these are the program's, over uTP: the most that goodput can be of a rate.
UTP_SHARE = 1_452 / 1_500


@dataclass
class Flow:
    """kind           utp, light, bbr, or a name of TCPS
    start, end     seconds; it ends abruptly
    is_back        sends against the direction of the others
    total_bytes    ends after so much; 0: never
    ppm            the sender's clock runs faster than the receiver's by so much
    drift          further [(second, ppm)], from when on it does
    reports_delay  the peer measures one-way delays (utp)
    """

    kind: str
    start: float = 0.0
    end: float = 1e9
    is_back: bool = False
    total_bytes: int = 0
    ppm: float = 0.0
    drift: Sequence[tuple[float, float]] = ()
    reports_delay: bool = True


@dataclass
class Change:
    """At that second: rate_mbit, delay_ms, queue_ms or loss of a way; `way` 0 there, 1 back, -1 both."""

    second: float
    name: str
    value: float
    way: int = -1


class _Endless(Application):
    """Writes without end, or total bytes, of which nobody looks at the contents; takes what comes."""

    windows: _EngineWindows | None = None

    def __init__(self, total: int = 0) -> None:
        super().__init__(total, hold_open=True)

    def step(self, connection: Connection, *, now: int) -> None:
        while (event := connection.poll_event()) is not None:
            del event
        if views := connection.poll_delivery():
            taken = sum(map(len, views))
            if self.windows is not None:
                self.windows.on_delivered(taken, now=now)
            connection.finish_delivery(taken, now=now)
            self.received += taken
        while self.written < self.total:
            count = min(len(connection.free_span()), self.total - self.written)
            if not count:
                break
            connection.commit(count)
            self.written += count


class _EngineWindows:
    """The window of a connection as the engine has it grow, for a program that reads at once."""

    cookie = 1

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.receive_buffer = ReceiveBuffer()
        self._shares = ReceiveShares(2 * WANTED_BUFFER_BYTES)  # the kernel doubles it
        self._pair = socket.socketpair()  # nothing is ever written to it, so all has been read
        self.receive_buffer.apply_option(self._pair[0], 0)
        connection.receive.share_bytes = self._shares.initial_share_bytes(1)

    def on_delivered(self, count: int, *, now: int) -> None:
        """The program has read so much."""
        receive = self.connection.receive
        self._shares.on_data(self, count, now=now)  # type: ignore[arg-type]
        if self.receive_buffer.is_growing:
            self.receive_buffer.on_delivered(count, self._pair[0], receive, self._shares, now=now)

    def close(self) -> None:
        """No more will come."""
        for end in self._pair:
            end.close()


class _Clock:
    """Stands between a host and the simulator: the host's clock runs faster by ppm."""

    def __init__(self, simulator: Simulator, ppm: float, drift: Sequence[tuple[float, float]]) -> None:
        self._simulator = simulator
        self.checks = simulator.checks
        # (true time, clock then, rate) of each stretch
        self._stretches = [(simulator.start_us, simulator.start_us, 1 + ppm / 1e6)]
        for second, then_ppm in drift:
            at = simulator.start_us + round(second * 1e6)
            self._stretches.append((at, self.read(at), 1 + then_ppm / 1e6))

    def read(self, at: int) -> int:
        """What it shows at that time."""
        for since, showed, rate in reversed(self._stretches):
            if at >= since:
                return showed + int((at - since) * rate)
        return at

    def later(self, at: int, node: Node, burst: Burst | None = None) -> None:
        """The simulator's, by this clock."""
        now = self._simulator.now
        wait_us = at - self.read(now)
        rate = next(rate for since, _, rate in reversed(self._stretches) if now >= since)
        self._simulator.later(now + max(0, int(wait_us / rate)) + (1 if wait_us > 0 else 0), node, burst)


class _SceneHost(Host):
    """A host that can be switched off, and may have a clock of its own."""

    is_off = False
    clock: _Clock | None = None

    def put(self, burst: Burst | None, *, now: int) -> None:
        if not self.is_off:
            super().put(burst, now=now if self.clock is None else self.clock.read(now))


class _TrueTime:
    """The way out of a host with a clock of its own."""

    def __init__(self, simulator: Simulator, then: Node) -> None:
        self._simulator = simulator
        self._then = then

    def put(self, burst: Burst | None, *, now: int) -> None:
        self._then.put(burst, now=self._simulator.now)


class _NoDifference:
    """A peer that measures no delay: its packets carry no timestamp difference (BEP 29)."""

    def __init__(self, then: Node) -> None:
        self._then = then

    def put(self, burst: Burst | None, *, now: int) -> None:
        assert burst is not None
        plain = [datagram[:8] + b"\0\0\0\0" + datagram[12:] for datagram in burst.datagrams]
        self._then.put(burst.of(plain), now=now)


class _UtpFlow:
    """Our connection, both sides of it."""

    def __init__(self, scene: Scene, flow: Flow, there: Node, back: Node) -> None:
        simulator = scene.simulator
        self._simulator = simulator
        self.pair = pair = Pair(
            simulator,
            there,
            back if flow.reports_delay else _NoDifference(back),
            a=_Endless(flow.total_bytes or 1 << 50),
            b=_Endless(),
            first_seq=simulator.random.randrange(0x10000),
            config=scene.config,
            timer_us=1_000,
            host=_SceneHost,
        )
        self._windows = None
        if scene.has_engine_windows:
            receiver = pair.b.application
            assert isinstance(receiver, _Endless)
            self._windows = receiver.windows = _EngineWindows(pair.b.connection)
        self._clock = None
        if flow.ppm or flow.drift:
            assert isinstance(pair.a, _SceneHost)
            self._clock = pair.a.clock = clock = _Clock(simulator, flow.ppm, flow.drift)
            pair.a._simulator = clock  # type: ignore[assignment]
            pair.a.to_peer = _TrueTime(simulator, there)

    def start(self) -> None:
        """Connect."""
        host = self.pair.a
        now = self._simulator.now if self._clock is None else self._clock.read(self._simulator.now)
        host.connection.connect(now=now)
        host.step(now=now)

    def stop(self) -> None:
        """As if both machines were switched off."""
        for host in self.pair.hosts:
            assert isinstance(host, _SceneHost)
            host.is_off = True

    def close(self) -> None:
        """The scene is over."""
        if self._windows is not None:
            self._windows.close()

    @property
    def received_bytes(self) -> int:
        """So far."""
        return self.pair.b.application.received

    def figures(self) -> tuple[int, int, int]:
        """Window, own estimate of the queueing delay in µs, packets lost."""
        connection = self.pair.a.connection
        controller = connection.send.controller
        return controller.window_bytes, controller.queueing_delay_us, connection.send.lost_packets


class _TcpFlow:
    """A model of TCP."""

    def __init__(self, scene: Scene, flow: Flow, there: Node, back: Node) -> None:
        self._simulator = scene.simulator
        self.receiver = Receiver(scene.simulator, back)
        simulator, total_bytes = scene.simulator, flow.total_bytes
        self.sender: Sender
        if flow.kind == "bbr":
            self.sender = BbrSender(simulator, there, self.receiver, total_bytes=total_bytes)
        else:
            self.sender = Sender(simulator, there, self.receiver, TCPS[flow.kind](), total_bytes=total_bytes)

    def start(self) -> None:
        """Connect."""
        self.sender.start(self._simulator.now)

    def stop(self) -> None:
        """Send nothing more."""
        self.sender.stop()

    @property
    def received_bytes(self) -> int:
        """So far."""
        return self.receiver.bytes

    def figures(self) -> tuple[int, int, int]:
        """Window, nothing, packets lost."""
        return self.sender.window_bytes, 0, self.sender.lost


class _LightFlow:
    """A model of our connection."""

    def __init__(self, scene: Scene, flow: Flow, there: Node, back: Node) -> None:
        self._simulator = scene.simulator
        self.receiver = LightReceiver(scene.simulator, back)
        self.sender = LightSender(
            scene.simulator,
            there,
            self.receiver,
            CONTROLLERS[scene.config.congestion](SEGMENT_BYTES),
            window_limit_bytes=MAX_WINDOW_BYTES if scene.has_engine_windows else scene.config.receive_buffer_bytes,
        )

    def start(self) -> None:
        """Connect."""
        self.sender.start(self._simulator.now)

    def stop(self) -> None:
        """Send nothing more."""
        self.sender.stop()

    @property
    def received_bytes(self) -> int:
        """So far."""
        return self.receiver.bytes

    def figures(self) -> tuple[int, int, int]:
        """Window, own estimate of the queueing delay in µs, packets lost."""
        controller = self.sender.controller
        return controller.window_bytes, controller.queueing_delay_us, self.sender.lost


_FLOWS: dict[str, type[_UtpFlow | _TcpFlow | _LightFlow]] = {"utp": _UtpFlow, "light": _LightFlow}

WHEN_RUN: list[Callable[[Scene], None]] = []
"""Each is called with every scene when that has run."""


class Scene:
    """Make it, then run() once.

    controller      of every uTP flow: a name of CONTROLLERS; None: the default
    buffer_bytes    send and receive buffer of every uTP flow; None: as the engine has them, they grow
    is_light        the model stands for every uTP flow, where it can: five times as fast
    """

    is_light: ClassVar[bool] = False

    def __init__(
        self,
        there: Way,
        back: Way | None,
        flows: Sequence[Flow],
        *,
        seconds: float,
        changes: Sequence[Change] = (),
        controller: str | None = None,
        seed: int = 1,
        buffer_bytes: int | None = 4 << 20,
    ) -> None:
        self.simulator = Simulator(seed, checks=False)
        self.seconds = seconds
        if back is None:
            back = Way(there.rate_mbit, there.delay_ms, there.queue_ms, there.loss)
        self.has_engine_windows = buffer_bytes is None
        self.config = Config(
            receive_buffer_bytes=buffer_bytes or FIRST_WINDOW_BYTES,
            send_buffer_bytes=buffer_bytes or _SEND_BYTES,
            max_send_buffer_bytes=0 if buffer_bytes else MAX_WINDOW_BYTES,
        )
        if controller is not None:
            self.config.congestion = controller
        self.links = (Link(self.simulator, there), Link(self.simulator, back))
        self.flows = list(flows)
        self._changes = sorted(changes, key=lambda change: change.second)
        self._running: list[_UtpFlow | _TcpFlow | _LightFlow | None] = [None] * len(self.flows)
        self.received: list[list[int]] = [[0] for _ in self.flows]
        self.figures: list[list[tuple[int, int, int]]] = [[(0, 0, 0)] for _ in self.flows]
        self.queues_us: tuple[list[int], list[int]] = ([0], [0])

    def run(self) -> Scene:
        """Let all of its time pass."""
        simulator, flows = self.simulator, self.flows
        steps: list[tuple[float, int, Any]] = []
        for index, flow in enumerate(flows):
            steps.append((flow.start, 1, index))
            if flow.end < self.seconds:
                steps.append((flow.end, 0, index))
        steps += [(change.second, 2, change) for change in self._changes]
        steps += [(tick * SAMPLE_US / 1e6, 3, None) for tick in range(1, round(self.seconds * 1e6) // SAMPLE_US + 1)]
        for second, what, which in sorted(steps, key=lambda step: step[:2]):
            wait_us = simulator.start_us + round(second * 1e6) - simulator.now
            if wait_us > 0:
                simulator.run_for(wait_us)
            if what == 3:
                self._sample()
            elif what == 2:
                self._change(which)
            elif what == 0:
                running = self._running[which]
                assert running is not None
                running.stop()
            else:
                flow = flows[which]
                there, back = self.links[::-1] if flow.is_back else self.links
                make = _FLOWS.get(self._kind(flow), _TcpFlow)
                self._running[which] = running = make(self, flow, there, back)
                running.start()
        for look in WHEN_RUN:
            look(self)
        for flow_run in self._running:
            if isinstance(flow_run, _UtpFlow):
                flow_run.close()
        return self

    def _kind(self, flow: Flow) -> str:
        needs_all = self.has_engine_windows or flow.ppm or flow.drift or flow.total_bytes
        can_be_light = flow.kind == "utp" and flow.reports_delay and not needs_all
        return "light" if self.is_light and can_be_light else flow.kind

    def _change(self, change: Change) -> None:
        for way, link in enumerate(self.links):
            if change.way in (-1, way):
                if change.name == "delay_ms":
                    link.delay_us = round(change.value * 1_000)
                elif change.name == "rate_mbit":
                    link.set_rate(change.value, link._most_ns / 1e6)
                elif change.name == "queue_ms":
                    link.set_rate(link.rate_mbit, change.value)
                else:
                    assert change.name == "loss"
                    link.loss = change.value

    def _sample(self) -> None:
        for index, running in enumerate(self._running):
            self.received[index].append(running.received_bytes if running else 0)
            self.figures[index].append(running.figures() if running else (0, 0, 0))
        for queue, link in zip(self.queues_us, self.links, strict=True):
            queue.append(link.queue_us(self.simulator.now))

    # ── afterwards ──

    def bytes_at(self, flow: int, second: float) -> float:
        """Received by then."""
        samples = self.received[flow]
        at = second * 1e6 / SAMPLE_US
        index = min(int(at + 1e-6), len(samples) - 1)
        if index == len(samples) - 1:
            return samples[index]
        return samples[index] + (samples[index + 1] - samples[index]) * max(0.0, at - index)

    def goodput(self, flow: int, start: float, end: float) -> float:
        """Mbit/s of the program's bytes."""
        return (self.bytes_at(flow, end) - self.bytes_at(flow, start)) * 8e-6 / (end - start)

    def reaches(
        self, flow: int, rate_mbit: float, start: float, end: float = 1e9, *, window: float = 1.0
    ) -> float | None:
        """How many seconds after `start` until goodput over the `window` that ends then was as much; None: not by the
        end.
        """
        second = start + window
        while second <= min(end, self.seconds) + 1e-6:
            if self.goodput(flow, second - window, second) >= rate_mbit:
                return second - start
            second += SAMPLE_US / 1e6
        return None

    def takes(self, flow: int, total: int) -> float | None:
        """How many seconds after its start until it had received so much."""
        start = self.flows[flow].start
        first = round(start * 1e6) // SAMPLE_US
        for index in range(first, len(self.received[flow])):
            if self.received[flow][index] >= total:
                before, after = self.received[flow][index - 1 : index + 1]
                part = (total - before) / (after - before)
                return (index - 1 + part) * SAMPLE_US / 1e6 - start
        return None

    def _span(self, start: float, end: float) -> tuple[int, int]:
        base = self.simulator.start_us
        return base + round(start * 1e6), base + round(end * 1e6)

    def delay(self, start: float, end: float, way: int = 0) -> tuple[float, float, float]:
        """Mean, 95th percentile and maximum of the packets' waits."""
        waits = self.links[way].waits_between(*self._span(start, end))
        if not waits:
            return 0.0, 0.0, 0.0
        return sum(waits) / len(waits) / 1e3, waits[len(waits) * 95 // 100] / 1e3, waits[-1] / 1e3

    def ping(self, start: float, end: float) -> tuple[float, float]:
        """Mean and 95th percentile of the round trip that a small packet has."""
        base = 2 * self.links[0].delay_us / 1e3
        first, last = round(start * 1e6) // SAMPLE_US, round(end * 1e6) // SAMPLE_US
        trips = sorted(
            base + (self.queues_us[0][tick] + self.queues_us[1][tick]) / 1e3 for tick in range(first, last + 1)
        )
        return sum(trips) / len(trips), trips[len(trips) * 95 // 100]

    def utilisation(self, start: float, end: float, way: int = 0) -> float:
        """The share of the rate that was carried, on the wire."""
        carried = self.links[way].bytes_between(*self._span(start, end))
        return carried * 8e-6 / (end - start) / self.links[way].rate_mbit

    def estimate_error(self, flow: int, start: float, end: float) -> float:
        """Median of a uTP flow's estimate of the queueing delay less the queue's."""
        first, last = round(start * 1e6) // SAMPLE_US, round(end * 1e6) // SAMPLE_US
        errors = sorted(self.figures[flow][tick][1] - self.queues_us[0][tick] for tick in range(first, last + 1))
        return errors[len(errors) // 2] / 1e3


def jain(rates: Sequence[float]) -> float:
    """Jain's index of fairness: 1 for equal shares, 1/n where one has all."""
    squares = sum(rate * rate for rate in rates)
    return sum(rates) ** 2 / (len(rates) * squares) if squares else 0.0

"""What was seen of one run: by the link, by the sinks, by the sources and by the echoes.

Times are seconds since the start of the experiment, rates bits per second, delays µs. A span of time is [start, end).
"""

from __future__ import annotations

import bisect
import contextlib
import json
import statistics
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.linklab.flows import Flow
from tests.linklab.link import Way

FIRST_PORT: Final = 6001
"""What the first flow's sink listens at; the next one's is one more."""
RECORD: Final = struct.Struct("<QIHHBB6x")  # struct record of emulator.c
PASSED, TAIL_DROPPED, LOST = range(3)
UDP, TCP = 17, 6
STEP_SECONDS: Final = 0.05
UNDER_WAY_SECONDS: Final = 1.0

LARGEST_LATE_SHARE: Final = 0.01
LARGEST_LATE_MEAN_US: Final = 1_000
"""By feel: a packet that is 5 ms late is a queue for LEDBAT, whose target is 60 to 100 ms; one in a hundred of them
changes no figure by what matters."""


class Packet(NamedTuple):
    """One packet as the link saw it: when it came, how long it waited for the transmitter, which flow's it was (an
    index; -1 for another's), and what became of it.
    """

    at: float
    wait_us: int
    size_bytes: int
    flow: int
    fate: int


@dataclass(frozen=True)
class Delay:
    """Of a number of waits or round trips, µs."""

    min_us: float = 0.0
    mean_us: float = 0.0
    p95_us: float = 0.0
    max_us: float = 0.0
    lost: int = 0

    @staticmethod
    def of(values: Sequence[float], lost: int = 0) -> Delay:
        """Of these."""
        if not values:
            return Delay(lost=lost)
        ordered = sorted(values)
        return Delay(ordered[0], sum(ordered) / len(ordered), percentile(ordered, 0.95), ordered[-1], lost)


def percentile(ordered: Sequence[float], share: float) -> float:
    """What this share of the values is not larger than; they are in order."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness: 1 where all are equal, 1/n where one has everything."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 0.0


@dataclass(frozen=True)
class Measured:
    """One run.

    ways      the link as it was at the start: forward, back
    received  of each flow: (second, bytes received by each connection)
    sources   of each flow: what its source has printed, with "t" in seconds since the start
    packets   of each way
    pings     (second, µs or None where it was lost)
    report    of the emulator, about itself
    """

    seconds: float
    ways: tuple[Way, Way]
    flows: list[Flow]
    received: list[list[tuple[float, list[int]]]]
    sink_cpu: list[list[tuple[float, float]]]
    sources: list[list[dict[str, Any]]]
    packets: tuple[list[Packet], list[Packet]]
    pings: list[tuple[float, int | None]]
    report: dict[str, float]

    @staticmethod
    def read(
        origin: float,
        seconds: float,
        ways: tuple[Way, Way],
        flows: list[Flow],
        folder: Path,
        outputs: Sequence[tuple[Path, Path]],
        ping: Path,
        report: dict[str, float],
    ) -> Measured:
        """From the files that the emulator and the programs (sink and source of each flow) have written."""
        sinks = [[line for line in _json_lines(sink) if "bytes" in line] for sink, _ in outputs]
        flow_of_key = []
        for line in (folder / "flows").read_text("ascii").splitlines():
            _, left, right = map(int, line.split())
            found = (left if 0 <= left - FIRST_PORT < len(flows) else right) - FIRST_PORT
            flow_of_key.append(found if 0 <= found < len(flows) else -1)
        packets: tuple[list[Packet], list[Packet]] = ([], [])
        for at_ns, wait_us, size, key, way, fate in RECORD.iter_unpack((folder / "log").read_bytes()):
            packets[way].append(Packet(at_ns / 1e9 - origin, wait_us, size, flow_of_key[key], fate))
        return Measured(
            seconds,
            ways,
            flows,
            [[(line["t"] - origin, line["bytes"]) for line in lines] for lines in sinks],
            [[(line["t"] - origin, line["cpu_seconds"]) for line in lines] for lines in sinks],
            [
                [{**line, "t": line["t"] - origin} for line in _json_lines(source) if "t" in line]
                for _, source in outputs
            ],
            packets,
            _pings(ping, origin, seconds),
            report,
        )

    # what was received

    def bytes_at(self, flow: int, second: float, stream: int | None = None) -> float:
        """Received by then; between two samples in proportion."""
        samples = self.received[flow]
        place = bisect.bisect_left(samples, second, key=lambda sample: sample[0])
        earlier_t, earlier = (samples[place - 1][0], _sum(samples[place - 1][1], stream)) if place else (0.0, 0)
        if place == len(samples):
            return earlier
        t, counts = samples[place]
        return earlier + (_sum(counts, stream) - earlier) * max(0.0, second - earlier_t) / max(1e-9, t - earlier_t)

    def goodput(self, flow: int, start: float, end: float, stream: int | None = None) -> float:
        """Bits per second of payload."""
        return (self.bytes_at(flow, end, stream) - self.bytes_at(flow, start, stream)) * 8 / (end - start)

    def reaches(self, flow: int, rate_bps: float, start: float, until: float | None = None) -> float | None:
        """Seconds after `start` until goodput over the second that ends then was as much.

        None if it was not before `until`, which is the end of the run unless it is given.
        """
        window = 1.0
        second = start + window
        while second <= (self.seconds if until is None else until):
            if self.goodput(flow, second - window, second) >= rate_bps:
                return second - start
            second += STEP_SECONDS
        return None

    def time_for(self, flow: int, size_bytes: int) -> float | None:
        """Seconds after its start in which so many bytes had arrived."""
        start = self.flows[flow].start
        for second, counts in self.received[flow]:
            if sum(counts) >= size_bytes:
                low, high = second - 2 * STEP_SECONDS, second
                for _ in range(20):
                    middle = (low + high) / 2
                    low, high = (middle, high) if self.bytes_at(flow, middle) < size_bytes else (low, middle)
                return high - start
        return None

    # what the link saw

    def waits(self, start: float, end: float, way: int = 0, flow: int | None = None) -> Delay:
        """How long the packets that passed had waited for the transmitter."""
        return Delay.of(
            [
                packet.wait_us
                for packet in self._between(start, end, way)
                if packet.fate == PASSED and flow in (None, packet.flow)
            ]
        )

    def drops(self, start: float, end: float, way: int = 0, flow: int | None = None) -> tuple[int, int]:
        """(by the full queue, by chance)"""
        fates = [packet.fate for packet in self._between(start, end, way) if flow in (None, packet.flow)]
        return fates.count(TAIL_DROPPED), fates.count(LOST)

    def utilisation(self, start: float, end: float, way: int = 0) -> float:
        """The share of the rate at the start of the run: bytes of IP whose transmission began then."""
        carried = sum(
            packet.size_bytes
            for packet in self.packets[way]
            if packet.fate == PASSED and start <= packet.at + packet.wait_us / 1e6 < end
        )
        rate_bps = self.ways[way].rate_bps
        return carried * 8 / (end - start) / rate_bps if rate_bps else 0.0

    def ping(self, start: float, end: float) -> Delay:
        """Round trips of ICMP echoes."""
        trips = [rtt_us for second, rtt_us in self.pings if start <= second < end]
        return Delay.of([rtt_us for rtt_us in trips if rtt_us is not None], trips.count(None))

    # what the sources said

    def source(self, flow: int, second: float, stream: int = 0) -> dict[str, Any]:
        """The last figures of this connection before then."""
        lines = self.sources[flow]
        for line in reversed(lines[: bisect.bisect_right(lines, second, key=lambda line: line["t"])]):
            if line["stream"] == stream and "error" not in line:
                return line
        return {}

    def cpu_shares(self, flow: int, start: float, end: float) -> tuple[float, float]:
        """Shares of one CPU that its source and its sink used."""
        source = [(line["t"], line["cpu_seconds"]) for line in self.sources[flow] if "cpu_seconds" in line]
        shares = []
        for samples in (source, self.sink_cpu[flow]):
            used = [cpu for second, cpu in samples if start <= second < end]
            shares.append((used[-1] - used[0]) / (end - start) if used else 0.0)
        return shares[0], shares[1]

    def estimate_error_us(self, flow: int, start: float, end: float) -> float | None:
        """Median of the source's own estimate of the queueing delay less what the link saw half a round trip before."""
        passed = [packet for packet in self.packets[self.flows[flow].is_back] if packet.fate == PASSED]
        errors = []
        for line in self.sources[flow]:
            if start <= line["t"] < end and "queueing_delay_us" in line:
                place = bisect.bisect_left(passed, line["t"] - line["rtt_us"] / 1e6, key=lambda packet: packet.at)
                near = passed[max(0, place - 10) : place + 10]
                if near:
                    errors.append(line["queueing_delay_us"] - statistics.median(packet.wait_us for packet in near))
        return statistics.median(errors) if errors else None

    # about the run

    @property
    def doubt(self) -> str:
        """Why these figures may be this machine's and not the flows'; empty where they need not be doubted."""
        reasons = []
        if self.report["late_over_5ms"] > LARGEST_LATE_SHARE:
            reasons.append(f"{100 * self.report['late_over_5ms']:.1f} % of the packets were over 5 ms late")
        if self.report["late_mean_us"] > LARGEST_LATE_MEAN_US:
            reasons.append(f"packets were {self.report['late_mean_us'] / 1e3:.1f} ms late on average")
        if self.report["device_drops"]:
            reasons.append(f"the devices refused {self.report['device_drops']:.0f} packets")
        return "; ".join(reasons)

    def _between(self, start: float, end: float, way: int) -> list[Packet]:
        first, last = (bisect.bisect_left(self._arrivals[way], second) for second in (start, end))
        return self.packets[way][first:last]

    @cached_property
    def _arrivals(self) -> tuple[list[float], list[float]]:
        return [packet.at for packet in self.packets[0]], [packet.at for packet in self.packets[1]]


def _sum(counts: list[int], stream: int | None) -> int:
    if stream is None:
        return sum(counts)
    return counts[stream] if stream < len(counts) else 0


def _pings(path: Path, origin: float, seconds: float) -> list[tuple[float, int | None]]:
    lines = list(_json_lines(path))
    answers = {line["t"]: line["rtt_us"] for line in lines if "t" in line}
    trips = [(line["sent"] - origin, answers.get(line["sent"])) for line in lines if "sent" in line]
    # One that was sent just before the end may have been on its way.
    return [(sent, rtt_us) for sent, rtt_us in trips if rtt_us is not None or sent < seconds - UNDER_WAY_SECONDS]


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text("utf-8", errors="replace").splitlines():
        # The last one may be half a line: the program was killed.
        with contextlib.suppress(ValueError):
            if isinstance(read := json.loads(line), dict):
                yield read

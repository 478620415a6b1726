"""A bad path: a UDP relay that stands in front of one server and loses, delays, reorders and duplicates.

`python3 -m compat.peers.relay --server 127.0.0.1:7000 --loss 0.02 --delay-ms 20` prints `{"port": …}`, relays until its
standard input ends, and prints its counters. Clients talk to the relay's address as if it were the server. Each
client address gets a UDP socket of its own towards the server, so the server sees as many addresses as there are.

One process, one thread, no busy waiting: datagrams that are due now leave at once, others wait in a heap, and epoll
sleeps until the first is due (to the millisecond). On one core of a small machine it passes 87 MB/s of 1,400-byte
datagrams without faults, and 56 MB/s with a delay and reordering.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import select
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final, TextIO

from compat.peers.capture import Address, PcapWriter, describe
from compat.peers.impairment import Impairment, Lane

BATCH: Final = 64  # datagrams read from one socket before the others and the heap have their turn
MAX_CLIENTS: Final = 256
BUFFER_BYTES: Final = 8 << 20  # asked of the kernel: a loss that nobody drew would spoil the experiment
SO_RCVBUFFORCE: Final = getattr(socket, "SO_RCVBUFFORCE", 33)  # Linux; missing from the socket module


class _Direction:
    """One way through the relay for one client: where from, where to, and which lane."""

    def __init__(
        self, label: str, lane: Lane, out: socket.socket, target: Address | None, ends: tuple[Address, Address]
    ):
        self.label = label
        self.lane = lane
        self.out = out
        self.target = target  # None: `out` is connected
        self.ends = ends  # as shown in captures: always the client's address and the relay's
        self.datagrams = 0
        self.bytes = 0

    def deliver(self, data: bytes) -> bool:
        """Best effort: a datagram the kernel does not take, or that a closed port refuses, is gone."""
        try:
            if self.target is None:
                self.out.send(data)
            else:
                self.out.sendto(data, self.target)
        except OSError:
            return False
        return True


class Relay:
    """Relays until told to stop. `run` and all else belong to one thread; `port` and `address` never change."""

    def __init__(
        self,
        server: Address,
        impairment: Impairment,
        *,
        seed: int = 1,
        pcap: Path | None = None,
        trace: Path | None = None,
    ) -> None:
        self._server = server
        self._family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
        self._front = _udp_socket(self._family)
        self._front.bind(("::1" if self._family == socket.AF_INET6 else "127.0.0.1", 0))
        self.address: Address = self._front.getsockname()[:2]
        self._up = Lane(impairment, seed=seed)
        self._down = Lane(impairment, seed=seed + 1)
        self._clean = impairment == Impairment()
        self._heap: list[tuple[int, int, _Direction, bytes]] = []
        self._order = 0
        self._upward: dict[Address, _Direction] = {}
        self._downward: dict[int, tuple[socket.socket, _Direction]] = {}
        self._refused = 0
        self._strangers = 0
        self._pcap = PcapWriter(pcap) if pcap else None
        self._trace: TextIO | None = trace.open("w", encoding="ascii") if trace else None
        self._epoll = select.epoll()
        self._epoll.register(self._front.fileno(), select.EPOLLIN)

    def run(self, stop_fd: int) -> None:
        """Relay until `stop_fd` is at its end (or readable at all)."""
        self._epoll.register(stop_fd, select.EPOLLIN)
        front_fd = self._front.fileno()
        while True:
            timeout = -1.0
            if self._heap:
                timeout = max(0.0, (self._heap[0][0] - _now_us()) / 1e6)
            for fd, _ in self._epoll.poll(timeout):
                if fd == stop_fd:
                    return
                if fd == front_fd:
                    self._read_front()
                else:
                    self._read_server(*self._downward[fd])
            self._release(_now_us())

    def _read_front(self) -> None:
        for _ in range(BATCH):
            try:
                data, address = self._front.recvfrom(65535)
            except BlockingIOError:
                return
            except OSError:
                self._refused += 1  # ICMP for something sent earlier to a client that is gone
                continue
            direction = self._upward.get(address[:2])
            if direction is None:
                direction = self._admit(address[:2])
                if direction is None:
                    self._strangers += 1
                    continue
            self._forward(direction, data)

    def _read_server(self, upstream: socket.socket, direction: _Direction) -> None:
        for _ in range(BATCH):
            try:
                data = upstream.recv(65535)
            except BlockingIOError:
                return
            except OSError:
                self._refused += 1  # ICMP: the server's port is closed, for the moment or for good
                continue
            self._forward(direction, data)

    def _admit(self, client: Address) -> _Direction | None:
        if len(self._upward) >= MAX_CLIENTS:
            return None
        upstream = _udp_socket(self._family)
        upstream.connect(self._server)
        upward = _Direction("->", self._up, upstream, None, (client, self.address))
        downward = _Direction("<-", self._down, self._front, client, (self.address, client))
        self._upward[client] = upward
        self._downward[upstream.fileno()] = (upstream, downward)
        self._epoll.register(upstream.fileno(), select.EPOLLIN)
        return upward

    def _forward(self, direction: _Direction, data: bytes) -> None:
        direction.datagrams += 1
        direction.bytes += len(data)
        if self._clean and not self._trace and not self._pcap:
            direction.deliver(data)
            return
        now = _now_us()
        lane = direction.lane
        due_times = lane.due_times(len(data), now=now)
        if self._pcap:
            self._pcap.write(now, *direction.ends, data)
        if self._trace:
            fate = "" if due_times else "  LOST"
            if len(due_times) == 2:
                fate = "  TWICE"
            self._trace.write(f"{now / 1e6:.6f} {direction.label} {describe(data)}{fate}\n")
        for due_at in due_times:
            if due_at <= now and not self._heap:
                lane.left(len(data))
                direction.deliver(data)
            else:
                self._order += 1
                heapq.heappush(self._heap, (due_at, self._order, direction, data))

    def _release(self, now: int) -> None:
        heap = self._heap
        while heap and heap[0][0] <= now:
            _, _, direction, data = heapq.heappop(heap)
            direction.lane.left(len(data))
            direction.deliver(data)

    def counters(self) -> dict[str, Any]:
        """What passed, what was done to it, and what the kernel dropped behind our back."""
        ports = {self.address[1], *(up.getsockname()[1] for up, _ in self._downward.values())}
        upward, downward = self._upward.values(), [direction for _, direction in self._downward.values()]
        return {
            "clients": len(self._upward),
            "up": {
                "datagrams": sum(d.datagrams for d in upward),
                "bytes": sum(d.bytes for d in upward),
                **self._up.counters(),
            },
            "down": {
                "datagrams": sum(d.datagrams for d in downward),
                "bytes": sum(d.bytes for d in downward),
                **self._down.counters(),
            },
            "refused": self._refused,
            "strangers": self._strangers,
            "kernel_drops": kernel_drops(ports),
        }

    def close(self) -> None:
        self._epoll.close()
        self._front.close()
        for upstream, _ in self._downward.values():
            upstream.close()
        self.close_captures()

    def close_captures(self) -> None:
        """Complete the pcap and the trace on disk; what comes later is not in them."""
        pcap, self._pcap = self._pcap, None
        trace, self._trace = self._trace, None
        if pcap:
            pcap.close()
        if trace:
            trace.close()


def kernel_drops(ports: set[int]) -> int:
    """Datagrams that the kernel dropped because one of these local UDP ports' buffers was full; 0 where unknown."""
    drops = 0
    for table in ("/proc/net/udp", "/proc/net/udp6"):
        with contextlib.suppress(OSError), open(table, encoding="ascii") as lines:
            next(lines)
            for line in lines:
                columns = line.split()
                if int(columns[1].rpartition(":")[2], 16) in ports:
                    drops += int(columns[-1])
    return drops


def _udp_socket(family: socket.AddressFamily) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    for option in (SO_RCVBUFFORCE, socket.SO_RCVBUF):
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
            break
        except OSError:  # FORCE is for administrators
            continue
    return sock


def _now_us() -> int:
    return time.monotonic_ns() // 1000


def arguments_for(impairment: Impairment) -> list[str]:
    """The command line that makes `main` build an equal Impairment."""
    return [
        f"--loss={impairment.loss}",
        f"--duplicate={impairment.duplicate}",
        f"--reorder={impairment.reorder}",
        f"--reorder-ms={impairment.reorder_us / 1000}",
        f"--delay-ms={impairment.delay_us / 1000}",
        f"--jitter-ms={impairment.jitter_us / 1000}",
        f"--rate={impairment.rate_bytes_per_second}",
        f"--queue={impairment.queue_bytes}",
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="compat.peers.relay", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--server", required=True, metavar="HOST:PORT")
    parser.add_argument("--loss", type=float, default=0.0, help="share, 0..1")
    parser.add_argument("--duplicate", type=float, default=0.0, help="share, 0..1")
    parser.add_argument("--reorder", type=float, default=0.0, help="share, 0..1")
    parser.add_argument("--reorder-ms", type=float, default=4.0, help="how long a reordered datagram is held back")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="one way")
    parser.add_argument("--jitter-ms", type=float, default=0.0)
    parser.add_argument("--rate", type=int, default=0, help="bytes per second, 0: unlimited")
    parser.add_argument("--queue", type=int, default=16 << 20, help="bytes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pcap", type=Path, help="write what arrives, before any fault")
    parser.add_argument("--trace", type=Path, help="write a line for each datagram, with its fate")
    options = parser.parse_args(argv)
    host, _, port = options.server.rpartition(":")
    impairment = Impairment(
        loss=options.loss,
        duplicate=options.duplicate,
        reorder=options.reorder,
        reorder_us=int(options.reorder_ms * 1000),
        delay_us=int(options.delay_ms * 1000),
        jitter_us=int(options.jitter_ms * 1000),
        rate_bytes_per_second=options.rate,
        queue_bytes=options.queue,
    )
    relay = Relay((host.strip("[]"), int(port)), impairment, seed=options.seed, pcap=options.pcap, trace=options.trace)
    try:
        print(json.dumps({"port": relay.address[1]}), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            relay.run(sys.stdin.fileno())
        print(json.dumps({"relay": relay.counters()}), flush=True)
    finally:
        relay.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

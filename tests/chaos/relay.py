"""The path between the two processes: a NAT that delays, loses, repeats, reorders and forgets as the plan says.

A *front* stands for one listener of the server's; each client address at a front is a *flow* with an outer port of its
own, from which it sends to the server. Decisions come from the run's seed, one generator per flow and direction.

A NAT passes on what ICMP says. The relay can only say it itself, by a port that refuses: where the client's is closed
the flow's outer port is made to, and where the server's is, the front. Such a socket is not closed but connected to
itself: the kernel then refuses what anybody else sends there, and gives the number to nobody else.
"""

from __future__ import annotations

import errno
import heapq
import random
import select
import socket
import sys
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from tests.chaos.plan import RESET, STATE, Direction, Plan

_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
_SOL_UDP: Final = 17
_RECVERR: Final = {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}
_TRACED: Final = 20_000
_NAMES: Final = ("DATA", "FIN", "STATE", "RESET", "SYN")
_MAX_GARBAGE: Final = 60
_REMEMBERED: Final = 40  # packets of each flow


@dataclass(eq=False)
class Flow:
    """One client address at one front.

    outers   addresses of its outer ports, first to last
    passed   how many packets of each type were sent on, by direction
    last     packets of late: when, which way, the header, bytes, what became of it
    """

    front: Any
    server: Any
    client: Any
    outer: Any
    number: int
    began_at: float
    outers: list[Any] = field(default_factory=list)
    passed: dict[tuple[str, int], int] = field(default_factory=dict)
    last: deque[Any] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    dice: dict[str, random.Random] = field(default_factory=dict)
    seen: dict[tuple[str, int], int] = field(default_factory=dict)
    bad_until: dict[str, float] = field(default_factory=dict)
    free_at: dict[str, float] = field(default_factory=dict)
    cut_at: float | None = None
    answered_at: float = float("inf")  # when the client first got an answer to its SYN
    resets: dict[str, list[float]] = field(default_factory=lambda: {"to_server": [], "to_client": []})
    lost_resets: dict[str, int] = field(default_factory=lambda: {"to_server": 0, "to_client": 0})
    pending: int = 0
    is_closing: bool = False


class Relay:
    """`now` is time.monotonic()'s."""

    def __init__(self, plan: Plan, servers: list[Any], *, now: float, traces: bool) -> None:
        self.plan = plan
        self.path = plan.path
        self.began_at = now
        self.family = socket.AF_INET if plan.family == "IPv4" else socket.AF_INET6
        self.host = "127.0.0.1" if plan.family == "IPv4" else "::1"
        self.poller = select.poll()
        self.flows: list[Flow] = []
        self.trace: list[str] = []
        self.traces = traces
        self._by_client: dict[tuple[int, Any], Flow] = {}
        self._by_fd: dict[int, tuple[str, Any]] = {}
        self._heap: list[tuple[float, int, Flow, str, bytes]] = []
        self._order = 0
        self._rebinds = sorted(plan.path.rebinds)
        self._outages = [(outage, outage.at if outage.after_type < 0 else None) for outage in plan.path.outages]
        self._awaited = [outage.after_count for outage in plan.path.outages]
        self._old: list[Any] = []
        self._closing: list[Flow] = []  # whose clients' ports are closed
        self._closing_fronts: list[Any] = []  # whose servers' ports are
        self.fronts = []
        for i, server in enumerate(servers):
            front = self._socket()
            self.fronts.append(front)
            self._by_fd[front.fileno()] = ("front", (i, front, tuple(server)))
        self.addresses = [front.getsockname() for front in self.fronts]

    def _socket(self) -> Any:
        sock = socket.socket(self.family, socket.SOCK_DGRAM)
        sock.bind((self.host, 0))
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.setsockopt(*_RECVERR[self.family], 1)
        if self.path.is_batching:
            sock.setsockopt(_SOL_UDP, _UDP_GRO, 1)
        self.poller.register(sock.fileno(), select.POLLIN)
        return sock

    def _retire(self, sock: Any, *, sends_icmp: bool) -> None:
        """Nothing is taken there any more; a sender gets an ICMP error, or nothing."""
        if self._by_fd.pop(sock.fileno(), None) is not None:
            self.poller.unregister(sock.fileno())
            self._old.append(sock)
        if sends_icmp:
            _refuse(sock)

    def end_silence(self) -> None:
        """A NAT that has dropped a mapping in silence sends ICMP errors from now on: no end must wait for a timeout."""
        for sock in self._old:
            _refuse(sock)

    def close(self) -> None:
        for sock in [*self.fronts, *(flow.outer for flow in self.flows), *self._old]:
            sock.close()

    def wait_seconds(self, now: float) -> float:
        """How long it may be until something is due by itself."""
        due = [self._heap[0][0]] if self._heap else []
        due += [self.began_at + at for at in self._rebinds[:1]]
        return max(0.0, min(due) - now) if due else 1.0

    def is_healed(self, now: float) -> bool:
        return now >= self.began_at + self.path.heals_at

    def on_readable(self, fd: int, now: float) -> None:
        kind, what = self._by_fd.get(fd, ("", None))
        if not kind:
            return
        sock = what[1] if kind == "front" else what.outer
        for _ in range(64):
            try:
                data, ancillary, _, sender = sock.recvmsg(65_535, 64)
            except ConnectionError:
                continue
            except BlockingIOError:
                # Not before: what was sent first goes first.
                if kind == "front":
                    self._hear_clients(what)
                else:
                    self._hear_server(what)
                return
            size = next((int.from_bytes(raw[:4], "little") for _, k, raw in ancillary if k == _UDP_GRO), len(data))
            flow = self._flow(what, sender, now) if kind == "front" else what
            if kind == "outer" and sender[:2] != flow.server[:2]:
                continue
            way = "to_server" if kind == "front" else "to_client"
            for at in range(0, len(data), size or 1):
                self._handle(flow, way, data[at : at + size], now)

    def _hear_clients(self, front: Any) -> None:
        """A client's port is closed: once all that it sent has left, its outer port is closed towards the server."""
        number, sock, _ = front
        while (client := _refused(sock)) is not None:
            flow = self._by_client.pop((number, client), None)
            if flow is not None:
                flow.is_closing = True
                self._closing.append(flow)

    def _hear_server(self, flow: Flow) -> None:
        """The server's port is closed: once all that it sent has left, the front is closed towards every client."""
        while (server := _refused(flow.outer)) is not None:
            if server[:2] == flow.server[:2] and flow.front not in self._closing_fronts:
                self._closing_fronts.append(flow.front)

    def _refuse_closed(self, now: float) -> None:
        for flow in [flow for flow in self._closing if not flow.pending]:
            self._closing.remove(flow)
            self._retire(flow.outer, sends_icmp=True)
            self._remark(f"flow {flow.number}: the client's port is closed", now)
        for front in list(self._closing_fronts):
            if front.fileno() in self._by_fd and not any(flow.pending for flow in self.flows if flow.front is front):
                self._retire(front, sends_icmp=True)
                self._remark("the server's port is closed", now)

    def _remark(self, text: str, now: float) -> None:
        if self.traces:
            self.trace.append(f"{now - self.began_at:.4f} {text}")

    def _flow(self, front: Any, client: Any, now: float) -> Flow:
        number, sock, server = front
        flow = self._by_client.get((number, client))
        if flow is None:
            flow = Flow(sock, server, client, self._socket(), len(self.flows), now)
            flow.outers.append(flow.outer.getsockname())
            for way in ("to_server", "to_client"):
                flow.dice[way] = random.Random(f"{self.plan.seed}/{flow.number}/{way}")
            self._by_client[number, client] = flow
            self._by_fd[flow.outer.fileno()] = ("outer", flow)
            self.flows.append(flow)
        return flow

    def _is_out(self, way: str, kind: int, now: float) -> bool:
        is_out = False
        for i, (outage, at) in enumerate(self._outages):
            if at is None:
                self._awaited[i] -= kind == outage.after_type
                if not self._awaited[i]:
                    self._outages[i] = (outage, now - self.began_at + 1e-9)  # the next one is the first that is lost
                continue
            if outage.directions in ("both", way) and at <= now - self.began_at < at + outage.seconds:
                is_out = True
        return is_out

    def _handle(self, flow: Flow, way: str, data: bytes, now: float) -> None:
        kind = data[0] >> 4 if data else 15
        verdict, due = self._judge(flow, way, kind, data, now)
        flow.last.append((now, way, data[:20], len(data), verdict))
        if self.traces and len(self.trace) < _TRACED:
            outcome = verdict or str([f"{(at - now) * 1e3:.0f}ms" for at, _ in due])
            self.trace.append(self._note(flow, way, data[:20], len(data), now, outcome))
        if kind == RESET and verdict:
            flow.lost_resets[way] += 1
        for at, what in due:
            self._order += 1
            heapq.heappush(self._heap, (at, self._order, flow, way, what))
            flow.pending += 1

    def _judge(self, flow: Flow, way: str, kind: int, data: bytes, now: float) -> tuple[str, list[tuple[float, bytes]]]:
        dice = flow.dice[way]
        count = flow.seen[way, kind] = flow.seen.get((way, kind), 0) + 1
        if self.is_healed(now):
            return "", [(now, data)]
        if self._is_out(way, kind, now):
            return "outage", []
        for direction, dropped, first in self.path.drops:
            if direction == way and dropped == kind and count <= first:
                return "drop", []
        one: Direction = getattr(self.path, way)
        if one.loss and dice.random() < one.loss:
            return "loss", []
        if one.burst_loss:
            if now < flow.bad_until.get(way, 0):
                return "burst", []
            if dice.random() < one.burst_loss:
                flow.bad_until[way] = now + dice.uniform(0, 0.3)
                return "burst", []
        if one.mtu_bytes and len(data) > one.mtu_bytes:
            return "size", []
        at = now + one.delay
        if one.rate_bytes:
            free_at = max(now, flow.free_at.get(way, 0))
            if (free_at - now) * one.rate_bytes > one.queue_bytes:
                return "queue", []
            free_at += len(data) / one.rate_bytes
            flow.free_at[way] = free_at
            at += free_at - now
        if one.reorder and dice.random() < one.reorder:
            at += dice.uniform(0, one.jitter)
        due = [(at, data)]
        if one.truncate and dice.random() < one.truncate:
            return "truncated", [(at, data[: dice.randint(0, 19)])]
        if one.garbage and dice.random() < one.garbage:
            due.append((at, self._garbage(dice, data)))
        if one.duplicate and dice.random() < one.duplicate:
            due.append((at + dice.choice((0, 0.001, 0.05)), data))
        if one.late_duplicate and dice.random() < one.late_duplicate:
            due.append((at + dice.uniform(0.3, 3), data))
        return "", due

    def _garbage(self, dice: random.Random, data: bytes) -> bytes:
        """What no implementation may take for a part of a connection: another version or type, or noise."""
        sort = dice.randrange(3)
        if sort == 0:
            return bytes([data[0] & 0xF0 | dice.choice((0, 2, 7, 15))]) + data[1:]
        if sort == 1:
            return bytes([dice.randint(5, 15) << 4 | 1]) + data[1:]
        return bytes([dice.randint(0, 255) & 0xFE]) + dice.randbytes(dice.randint(0, _MAX_GARBAGE))

    def step(self, now: float) -> None:
        """Send what is due; change the outer ports when it is time."""
        while self._rebinds and now >= self.began_at + self._rebinds[0]:
            self._rebinds.pop(0)
            self._rebind(now)
        batch: list[bytes] = []
        to: tuple[Flow, str] | None = None
        while self._heap and self._heap[0][0] <= now:
            _, _, flow, way, data = heapq.heappop(self._heap)
            flow.pending -= 1
            if to is not None and (to != (flow, way) or not self._fits(batch, data)):
                self._send(*to, batch, now)
                batch = []
            to = (flow, way)
            batch.append(data)
        if to is not None:
            self._send(*to, batch, now)
        if self._closing or self._closing_fronts:
            self._refuse_closed(now)

    def _fits(self, batch: list[bytes], data: bytes) -> bool:
        size = len(batch[0])
        return (
            self.path.is_batching
            and len(batch) < 40
            and 20 <= len(data) <= size
            and len(batch[-1]) == size
            and size * len(batch) < 60_000
        )

    def _send(self, flow: Flow, way: str, batch: list[bytes], now: float) -> None:
        sock, address = (flow.outer, flow.server) if way == "to_server" else (flow.front, flow.client)
        for data in batch:
            kind = data[0] >> 4 if len(data) >= 20 and data[0] & 0xF == 1 else 15
            flow.passed[way, kind] = flow.passed.get((way, kind), 0) + 1
            if kind == RESET:
                flow.resets[way].append(now)
            elif kind == STATE and way == "to_client":
                flow.answered_at = min(flow.answered_at, now)
        ancillary = [(_SOL_UDP, _UDP_SEGMENT, len(batch[0]).to_bytes(2, "little"))] if len(batch) > 1 else []
        if sock.fileno() not in self._by_fd:
            return  # it refuses, as does whoever it was for
        for _ in range(2):  # the first may only say what became of another one
            try:
                sock.sendmsg([b"".join(batch)], ancillary, 0, address)
            except ConnectionError:
                continue
            except OSError:
                pass
            return

    def _rebind(self, now: float) -> None:
        for flow in self.flows:
            if flow.outer.fileno() not in self._by_fd:
                continue
            self._retire(flow.outer, sends_icmp=self.path.rebind_sends_icmp)
            flow.outer = self._socket()
            flow.outers.append(flow.outer.getsockname())
            flow.cut_at = now
            self._by_fd[flow.outer.fileno()] = ("outer", flow)
        self._remark("outer ports changed", now)

    def recent(self) -> list[str]:
        """The last packets of each flow, and where it goes."""
        lines = []
        for flow in self.flows:
            lines.append(f"flow {flow.number}: client {flow.client}, outer {flow.outers}, server {flow.server}")
            lines += [self._note(flow, way, head, size, at, verdict) for at, way, head, size, verdict in flow.last]
        return lines

    def _note(self, flow: Flow, way: str, head: bytes, size: int, at: float, verdict: str) -> str:
        kind = head[0] >> 4 if head else 15
        name = _NAMES[kind] if kind < len(_NAMES) else str(kind)
        numbers = ""
        if len(head) >= 20:
            numbers = " ".join(
                f"{label}={int.from_bytes(head[start : start + 2], 'big')}"
                for label, start in (("id", 2), ("seq", 16), ("ack", 18))
            )
            numbers += f" ext={head[1]} window={int.from_bytes(head[12:16], 'big')}"
        return f"{at - self.began_at:.4f} flow {flow.number} {way} {name} {numbers} payload={size - 20} {verdict}"


def _refuse(sock: Any) -> None:
    try:
        sock.connect(sock.getsockname())
    except OSError:
        pass  # an error of an earlier datagram's
    else:
        return
    sock.connect(sock.getsockname())


def _refused(sock: Any) -> Any:
    """To whom a datagram of this socket's could not be delivered, since nobody is there; None where no more is said."""
    while True:
        try:
            _, ancillary, _, address = sock.recvmsg(1, 512, socket.MSG_ERRQUEUE)
        except OSError:
            return None
        codes = [int.from_bytes(data[:4], sys.byteorder) for _, _, data in ancillary]  # sock_extended_err.ee_errno
        if address and errno.ECONNREFUSED in codes:
            return address

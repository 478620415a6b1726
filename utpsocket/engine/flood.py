"""A port that is flooded: noticing it, and working through what nobody here can want at the price of its first bytes.

Separate because none of it happens in calm. Useless datagrams are SYNs that find no room, strays, and what is not uTP.
When many come, the port is read in batches that are sifted before any object is made (gather.py): first come the
packets of established connections, then those that may prove a SYN, then SYNs, which are answered together. ICMP
errors are not asked for meanwhile: an answer to a false address may make one each.

Everything means the same as outside a flood, but for two things: of strays only a few are answered, and SYNs where
nobody listens likewise.

Only the engine's thread calls.
"""

from __future__ import annotations

from socket import htons
from typing import TYPE_CHECKING, Final

from utpsocket.engine.syscalls import packed_name
from utpsocket.protocol import Run, Transmit
from utpsocket.protocol.packet import HEADER_BYTES, SYN_BYTE, decode

if TYPE_CHECKING:
    from utpsocket.engine.endpoint import Endpoint
    from utpsocket.engine.udp import Noise

_WINDOW_US: Final = 100_000
_NOISE_PER_WINDOW: Final = 200  # more is a flood: 2,000 a second cost a tenth of the thread
_LOOK_AGAIN_US: Final = 500_000
_NOISE_AT_THE_END: Final = 250  # in that time: fewer, and it is over
_DATAGRAMS_PER_ITERATION: Final = 512
_STRAYS_PER_BATCH: Final = 4  # that are looked at more closely, and perhaps answered by a RESET


class Flood:
    """Of one port. It does not keep the endpoint, which keeps it: a closed one is no work for the collector.

    noise   useless datagrams, ever
    is_on   whether it is flooded
    """

    __slots__ = ("_ids", "_noise_before", "_since", "is_on", "noise")

    def __init__(self) -> None:
        self.noise = 0
        self.is_on = False
        self._since = 0
        self._noise_before = 0
        self._ids: set[int] | None = None

    def on_connections_changed(self) -> None:
        """The port has other connections than before."""
        self._ids = None

    def look(self, endpoint: Endpoint, *, now: int) -> None:
        """After a port was read: is this a flood?"""
        if self.is_on:
            return
        if now - self._since > _WINDOW_US:
            self._since = now
            self._noise_before = self.noise
        elif self.noise - self._noise_before > _NOISE_PER_WINDOW:
            self.is_on = True
            self._noise_before = self.noise
            endpoint.port.tell_icmp(wanted=False)
            endpoint.loop.call_at(now + _LOOK_AGAIN_US, lambda: self._look_again(endpoint))

    def _look_again(self, endpoint: Endpoint) -> None:
        if endpoint.is_closed:
            return
        now = endpoint.loop.now
        if self.noise - self._noise_before > _NOISE_AT_THE_END:
            self._noise_before = self.noise
            endpoint.loop.call_at(now + _LOOK_AGAIN_US, lambda: self._look_again(endpoint))
            return
        self.is_on = False
        self._since = now
        self._noise_before = self.noise
        self._ids = None
        endpoint.port.tell_icmp(wanted=True)

    def _wanted_ids(self, endpoint: Endpoint) -> set[int]:
        """What packets of connections may carry: their ids, and their neighbours in a RESET."""
        ids = self._ids
        if ids is None:
            ids = self._ids = {htons(recv_id + near & 0xFFFF) for _, recv_id in endpoint.bridges for near in (-1, 0, 1)}
        return ids

    def receive(self, endpoint: Endpoint, *, now: int) -> None:
        """Take what the port has, bounded."""
        port = endpoint.port
        datagrams = 0
        while datagrams < _DATAGRAMS_PER_ITERATION:
            runs, noise = port.receive_sifted(endpoint.loop.arena, self._wanted_ids(endpoint))
            for run in runs:
                datagrams += run.count
                for part in run.parts():
                    endpoint.handle_run(part, now=now)
            if noise.others:
                self._take_strays(endpoint, noise, now=now)
            if noise.syns:
                self._take_syns(endpoint, noise, now=now)
            datagrams += len(noise.syns) + len(noise.others)
            if port.is_drained or not (runs or noise.syns or noise.others):
                endpoint.is_readable = not port.is_drained
                return

    def _take_strays(self, endpoint: Endpoint, noise: Noise, *, now: int) -> None:
        cache = endpoint.listener.cache if endpoint.listener is not None else None
        left = _STRAYS_PER_BATCH
        indices = noise.others
        if cache is not None and cache.rotates_at:
            names, heads = noise.names(indices), noise.heads(indices)
            for index, name, head in zip(indices, names, heads, strict=True):
                if cache.knows(name, (head[2] << 8 | head[3]) - 1 & 0xFFFF):
                    endpoint.handle_run(noise.run(index), now=now)
                elif left:
                    left -= 1
                    endpoint.handle_run(noise.run(index), now=now)
                else:
                    self.noise += 1
                    endpoint.dropped_datagrams += 1
            return
        for index in indices[:left]:
            endpoint.handle_run(noise.run(index), now=now)
        dropped = len(indices[left:])
        self.noise += dropped
        endpoint.dropped_datagrams += dropped

    def _take_syns(self, endpoint: Endpoint, noise: Noise, *, now: int) -> None:
        indices = noise.syns
        listener = endpoint.listener
        if listener is None:
            dials = endpoint.dialed_names()
            left = _STRAYS_PER_BATCH
            for index, name in zip(indices, noise.names(indices), strict=True):
                if left or name in dials:
                    left = max(0, left - 1)
                    endpoint.handle_run(noise.run(index), now=now)
                else:
                    self.noise += 1
                    endpoint.dropped_datagrams += 1
        elif listener.is_full:
            listener.refused += len(indices)
            self.noise += len(indices)
        elif not listener.is_crowded(len(indices), now=now):
            for index in indices:
                endpoint.handle_run(noise.run(index), now=now)
        else:
            self.noise += len(indices)
            heads = noise.heads(indices)
            if any(head[1] for head in heads):  # an extension: whether it is whole must be looked at
                indices = [index for index in indices if decode(noise.run(index).data) is not None]
                heads = noise.heads(indices)
            answers = endpoint.cached_answers(noise.names(indices), heads, now=now)
            if not endpoint.port.pending:
                noise.answer(indices, answers)

    def take_merged(self, endpoint: Endpoint, run: Run, *, now: int) -> None:
        """Datagrams of one sender that the kernel has merged, and that are not all of one connection."""
        addr = run.addr
        listener = endpoint.listener
        name = packed_name(addr)
        cache = listener.cache if listener is not None and listener.cache.rotates_at else None
        left = _STRAYS_PER_BATCH
        syns: list[bytes] = []
        for datagram in run.datagrams():
            if len(datagram) >= HEADER_BYTES:
                head = datagram[:HEADER_BYTES].tobytes()
                carried = head[2] << 8 | head[3]
                is_syn = head[0] == SYN_BYTE
                if (
                    is_syn
                    and not head[1]
                    and listener is not None
                    and (addr, carried + 1 & 0xFFFF) not in endpoint.bridges
                ):
                    syns.append(head)
                    continue
                if htons(carried) not in self._wanted_ids(endpoint) and (
                    cache is None or not cache.knows(name, carried - 1 & 0xFFFF)
                ):
                    if not left:
                        self.noise += 1
                        endpoint.dropped_datagrams += 1
                        continue
                    left -= 1
            endpoint.handle_datagram(Run(datagram, len(datagram), addr, run.local), now=now)
        if not syns or listener is None:
            return
        if listener.is_full:
            listener.refused += len(syns)
            self.noise += len(syns)
        elif listener.is_crowded(len(syns), now=now):
            self.noise += len(syns)
            answers = endpoint.cached_answers([name] * len(syns), syns, now=now)
            if not endpoint.port.pending:
                transmit = Transmit(addr, answers, segment=HEADER_BYTES, count=len(syns))
                endpoint.port.send(transmit, endpoint.source(run))
        else:
            for head in syns:
                endpoint.handle_datagram(Run(memoryview(head), HEADER_BYTES, addr, run.local), now=now)

"""A port that is flooded: noticing it, and working through what nobody here can want at the price of its first bytes.

Separate because none of it happens in calm. Useless datagrams are SYNs that find no room, strays, and what is not uTP.
When many come, the port is read in batches that are sifted before any object is made (mmsg.py): first come the
packets of established connections, then those that may prove a SYN, then SYNs, which are answered together. ICMP
errors are not asked for meanwhile: an answer to a false address may make one each.

The kernel drops what it can tell (socket_filter.py), and most SYNs of a source that sends many. When the port is behind
all the same, it lets fewer SYNs through, until established connections get what they are sent and whoever proves itself
is heard: small ones first, and large ones only where that is not enough. Our initiators repeat their SYN as a large
one, so the second one comes in, unless the flood is of large ones; others' come in with a luck that is the same for
each. And so with strays, of which more than a few thousand a second serve nobody.

Everything means the same as outside a flood, but for two things: of strays only a few are answered, and SYNs where
nobody listens likewise.

Only the engine's thread calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from socket import htons
from typing import TYPE_CHECKING, Any, Final, Protocol

from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.kernel.socket_filter import EVERY, SOURCES, Heavy, source_hash
from utpsocket.engine.kernel.syscalls import packed_name
from utpsocket.protocol import Run, Transmit
from utpsocket.protocol.packet import HEADER_BYTES, SYN_BYTE, decode

if TYPE_CHECKING:
    from utpsocket.engine.kernel.arena import Arena
    from utpsocket.engine.kernel.udp import Noise, Port
    from utpsocket.engine.ports.listener import Listener
    from utpsocket.engine.ports.reuseport import ReuseportSockets
    from utpsocket.engine.ports.stateless_resets import StatelessResets
    from utpsocket.engine.reactor import Reactor

    class Engine(Reactor, Protocol):
        """With memory to receive into."""

        arena: Arena

    class FloodedPort(Protocol):
        """What of a port (endpoint.py) is used here."""

        port: Port
        listener: Listener | None
        peers: ReuseportSockets | None
        resets: StatelessResets
        dropped_datagrams: int
        is_closed: bool
        is_readable: bool

        @property
        def loop(self) -> Engine: ...

        @property
        def bridges(self) -> Mapping[tuple[object, int], object]: ...

        def handle_run(self, run: Run, *, now: int) -> None:
            """Packets of one connection's, or of a stranger's."""

        def handle_datagram(self, run: Run, *, now: int) -> None:
            """One packet."""

        def cached_answers(self, names: list[bytes], heads: list[bytes], *, now: int) -> bytearray:
            """Answers to SYNs that become no connection yet."""

        def source(self, run: Run) -> list[Any]:
            """Ancillary data for an answer to this run."""

        def dialed_names(self) -> set[bytes]:
            """Peers that this port dials, whose SYN may cross ours."""


_WINDOW_US: Final = 100_000
_NOISE_PER_WINDOW: Final = 200  # more is a flood: 2,000 a second cost a tenth of the thread
_NOISE_WHEN_BEHIND: Final = 50  # a thread that gets little of the processor sees no more, and the rest waits
_TICK_US: Final = 50_000
_TICKS_TO_THE_END: Final = 10  # so many on end that were quiet, and it is over
_QUIET_NOISE: Final = 25  # in one tick
_STRAYS_PER_TICK: Final = 250
_MANY_RUNS: Final = 4  # of connections, in one tick: worth keeping SYNs out for, which are all as good otherwise
_BUSY_TICKS: Final = 100  # so long after such a tick: a connection that is starved is not heard
_LEAST_PART: Final = EVERY >> 10
_HEAVY_SYNS: Final = 6  # of one source in one tick: 120 a second, or more where only a part is looked at
_HEAVY_MEANS: Final = 5  # and so many times as many as of all sources in the mean: chance does not do that
_HEAVY_PART: Final = EVERY >> 7
_HASHED_TICKS: Final = 40  # with one multiplier
_SYNS_BESIDE_DATA: Final = 256  # that are answered in an iteration in which connections have been heard
_LOOKED_AT: Final = 32  # of a batch, for heavy sources
_DATAGRAMS_PER_ITERATION: Final = 512
_STRAYS_PER_BATCH: Final = 4  # that are looked at more closely, and perhaps answered by a RESET


class Flood:
    """Of one port.

    noise   useless datagrams, ever
    is_on   whether it is flooded
    """

    __slots__ = (
        "_busy_until",
        "_dropped_before",
        "_heard",
        "_heavy",
        "_ids",
        "_iterations",
        "_iterations_behind",
        "_large_of_every",
        "_multiplier",
        "_names",
        "_noise_before",
        "_quiet_ticks",
        "_seen",
        "_sieve",
        "_since",
        "_sources",
        "_strays",
        "_strays_of_every",
        "_syns_of_every",
        "_ticks",
        "is_on",
        "noise",
    )

    def __init__(self) -> None:
        self.noise = 0
        self.is_on = False
        self._since = 0
        self._noise_before = 0
        self._ids: set[int] | None = None
        self._sieve: tuple[frozenset[int], int, int, Heavy, int] | None = None  # what the kernel was told
        self._multiplier = 1
        self._sources: dict[int, int] = {}  # SYNs by the hash of their source, in this tick
        self._names: dict[int, bytes] = {}  # one of each hash
        self._heavy: dict[int, bytes] = {}  # heavy sources' hashes and names
        self._seen: set[int] = set()  # hashes, since the multiplier was drawn
        self._ticks = self._busy_until = 0
        self._syns_of_every = self._large_of_every = self._strays_of_every = EVERY
        self._dropped_before = 0
        self._quiet_ticks = 0
        self._iterations = self._iterations_behind = self._strays = self._heard = 0  # in this tick

    def on_connections_changed(self) -> None:
        """The port has other connections than before."""
        self._ids = None

    def check(self, endpoint: FloodedPort, *, now: int) -> None:
        """After a port was read: is this a flood?"""
        if self.is_on:
            return
        noise, is_window_over = self.noise - self._noise_before, now - self._since > _WINDOW_US
        if noise > _NOISE_PER_WINDOW or (is_window_over and noise > _NOISE_WHEN_BEHIND and endpoint.is_readable):
            self._start(endpoint, now=now)
        elif is_window_over:
            self._since = now
            self._noise_before = self.noise

    def _start(self, endpoint: FloodedPort, *, now: int) -> None:
        port = endpoint.port
        self.is_on = True
        self._noise_before = self.noise
        self._quiet_ticks = self._iterations = self._iterations_behind = self._strays = 0
        self._syns_of_every = self._large_of_every = self._strays_of_every = EVERY
        self._draw_multiplier()
        self._busy_until = self._ticks + _BUSY_TICKS
        port.tell_icmp(wanted=False)
        self._dropped_before = port.kernel_drops
        self._set_sieve(endpoint)
        endpoint.loop.call_at(now + _TICK_US, lambda: self._tick(endpoint))

    def _draw_multiplier(self) -> None:
        self._multiplier = int.from_bytes(os.urandom(4), "big") | 1
        self._sources = {}
        self._names = {}
        self._heavy = {}
        self._seen = set()

    def _tick(self, endpoint: FloodedPort) -> None:
        if endpoint.is_closed:
            return
        port = endpoint.port
        dropped = port.kernel_drops
        noise = self.noise - self._noise_before + (dropped - self._dropped_before & 0xFFFFFFFF)
        self._noise_before, self._dropped_before = self.noise, dropped
        self._quiet_ticks = self._quiet_ticks + 1 if noise < _QUIET_NOISE else 0
        if self._quiet_ticks >= _TICKS_TO_THE_END:
            self.is_on = False
            self._since = endpoint.loop.now
            self._ids = self._sieve = None
            self._draw_multiplier()
            port.detach_sieve()
            port.tell_icmp(wanted=True)
            return
        self._ticks = ticks = self._ticks + 1
        known = len(self._heavy)
        least = max(_HEAVY_SYNS, _HEAVY_MEANS * sum(self._sources.values()) / SOURCES)
        heavy = [source for source, count in self._sources.items() if count >= least]
        self._seen.update(self._sources)
        self._heavy.update((source, self._names[source]) for source in heavy)
        self._sources = {}
        self._names = {}
        if not ticks % _HASHED_TICKS:
            # Who shares a hash with a heavy source does so for a while only; one that is heavy no more is let go.
            heavy_names = [name for source, name in self._heavy.items() if source in self._seen]
            self._draw_multiplier()
            self._heavy = {source_hash(name, self._multiplier): name for name in heavy_names}
            known = len(self._heavy)
        if self._heard >= _MANY_RUNS:
            self._busy_until = ticks + _BUSY_TICKS
        if len(self._heavy) > known:
            pass  # that may be enough
        elif self._iterations_behind * 2 > self._iterations:
            if self._syns_of_every > _LEAST_PART:
                self._syns_of_every = max(_LEAST_PART, self._syns_of_every // 2)
            else:
                self._large_of_every = max(_LEAST_PART, self._large_of_every // 2)
        elif not self._iterations_behind:
            more = 16 if ticks >= self._busy_until else 9
            self._syns_of_every = min(EVERY, self._syns_of_every * more // 8)
            self._large_of_every = min(EVERY, self._large_of_every * more // 8)
        if self._strays > _STRAYS_PER_TICK:
            self._strays_of_every = max(_LEAST_PART, self._strays_of_every * _STRAYS_PER_TICK // self._strays)
        else:
            self._strays_of_every = min(EVERY, self._strays_of_every * 5 // 4)
        self._iterations = self._iterations_behind = self._strays = self._heard = 0
        self._set_sieve(endpoint)
        endpoint.loop.call_at(endpoint.loop.now + _TICK_US, lambda: self._tick(endpoint))

    def _set_sieve(self, endpoint: FloodedPort) -> None:
        """Have the kernel drop what is wanted now, if that is not what it does."""
        ids = frozenset(recv_id + near & 0xFFFF for _, recv_id in endpoint.bridges for near in (-1, 0, 1))
        listener = endpoint.listener
        syns, large = self._syns_of_every, self._large_of_every
        if listener is None:
            syns = large = self._strays_of_every  # where nobody listens they are that
        elif listener.is_full:
            syns = large = _LEAST_PART  # none could come in
        heavy = Heavy(self._multiplier, frozenset(self._heavy), _HEAVY_PART)
        wanted = ids, syns, self._strays_of_every, heavy, large
        if wanted != self._sieve:
            self._sieve = wanted
            endpoint.port.attach_sieve(*wanted)

    def _wanted_ids(self, endpoint: FloodedPort) -> set[int]:
        """What packets of connections may carry: their ids, and their neighbours in a RESET."""
        ids = self._ids
        if ids is None:
            ids = self._ids = {htons(recv_id + near & 0xFFFF) for _, recv_id in endpoint.bridges for near in (-1, 0, 1)}
        return ids

    def receive(self, endpoint: FloodedPort, *, now: int) -> None:
        """Take what the port has, bounded."""
        port = endpoint.port
        datagrams = syns = heard = 0
        self._iterations += 1
        while datagrams < _DATAGRAMS_PER_ITERATION:
            runs, noise = port.receive_sifted(endpoint.loop.arena, self._wanted_ids(endpoint))
            for run in runs:
                datagrams += run.count
                for part in run.parts():
                    endpoint.handle_run(part, now=now)
            if noise.others:
                self._take_strays(endpoint, noise, now=now)
            heard += len(runs)
            self._heard += len(runs)
            syns += len(noise.syns)
            if heard and syns > _SYNS_BESIDE_DATA:
                self.noise += len(noise.syns)
                endpoint.dropped_datagrams += len(noise.syns)
            elif noise.syns:
                self._take_syns(endpoint, noise, now=now)
            datagrams += len(noise.syns) + len(noise.others)
            if port.is_drained or not (runs or noise.syns or noise.others):
                endpoint.is_readable = not port.is_drained
                return
        self._iterations_behind += 1

    def _take_strays(self, endpoint: FloodedPort, noise: Noise, *, now: int) -> None:
        cache = endpoint.listener.cache if endpoint.listener is not None else None
        left = _STRAYS_PER_BATCH
        indices = noise.others
        self._strays += len(indices)
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
        self._take_few(endpoint, indices, noise, now=now)

    def _take_few(self, endpoint: FloodedPort, indices: list[int], noise: Noise, *, now: int) -> None:
        for index in indices[:_STRAYS_PER_BATCH]:
            endpoint.handle_run(noise.run(index), now=now)
        dropped = len(indices[_STRAYS_PER_BATCH:])
        self.noise += dropped
        endpoint.dropped_datagrams += dropped

    def _take_syns(self, endpoint: FloodedPort, noise: Noise, *, now: int) -> None:
        indices = noise.syns
        heads = noise.heads(indices)
        # Of a connection that there is: repeated because its answer was lost, or by somebody who repeats all he can.
        known = [htons(head[2] << 8 | head[3]) in self._wanted_ids(endpoint) for head in heads]
        if True in known:
            self._take_few(
                endpoint, [index for index, is_known in zip(indices, known, strict=True) if is_known], noise, now=now
            )
            indices = [index for index, is_known in zip(indices, known, strict=True) if not is_known]
            heads = [head for head, is_known in zip(heads, known, strict=True) if not is_known]
        listener = endpoint.listener
        if listener is None:
            self._strays += len(indices)
            self._refuse(endpoint, indices, heads, noise, now=now)
        elif listener.is_full:
            listener.refused_syns += len(indices)
            self.noise += len(indices)
        elif not listener.register_syns(len(indices), now=now):
            for index in indices:
                endpoint.handle_run(noise.run(index), now=now)
        else:
            self.noise += len(indices)
            if any(head[1] for head in heads):  # an extension: whether it is whole must be looked at
                indices = [
                    index
                    for index, head in zip(indices, heads, strict=True)
                    if not head[1] or decode(noise.run(index).data) is not None
                ]
                heads = noise.heads(indices)
            names = noise.names(indices)
            self._count_sources(names)
            answers = endpoint.cached_answers(names, heads, now=now)
            if not endpoint.port.pending:
                noise.answer(indices, answers)

    def _refuse(self, endpoint: FloodedPort, indices: list[int], heads: list[bytes], noise: Noise, *, now: int) -> None:
        """SYNs where nobody listens; whether somebody dials their sender must be looked at."""
        dials = endpoint.dialed_names()
        names = noise.names(indices)
        strangers = []
        left = _STRAYS_PER_BATCH
        for at, (index, name) in enumerate(zip(indices, names, strict=True)):
            if name in dials:
                endpoint.handle_run(noise.run(index), now=now)
            elif not heads[at][1]:
                strangers.append(at)
            elif left:  # an extension: whether it is whole must be looked at, too
                left -= 1
                endpoint.handle_run(noise.run(index), now=now)
            else:
                self.noise += 1
                endpoint.dropped_datagrams += 1
        self.noise += len(strangers)
        if endpoint.peers is not None and not endpoint.peers.may_reset(is_syn=True):
            return
        answered, resets = endpoint.resets.to_syns(
            [indices[at] for at in strangers], [names[at] for at in strangers], [heads[at] for at in strangers], now=now
        )
        endpoint.dropped_datagrams += len(strangers) - len(answered)
        if answered and not endpoint.port.pending:
            noise.answer(answered, resets)

    def _count_sources(self, names: list[bytes]) -> None:
        sources, known_names, multiplier = self._sources, self._names, self._multiplier
        for name in names[:_LOOKED_AT]:
            source = source_hash(name, multiplier)
            sources[source] = sources.get(source, 0) + 1
            known_names[source] = name

    def take_merged(self, endpoint: FloodedPort, run: Run, *, now: int) -> None:
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
                is_known = htons(carried) in self._wanted_ids(endpoint)
                if is_syn and not head[1] and listener is not None and not is_known:
                    syns.append(head)
                    continue
                if is_syn or not (is_known or (cache is not None and cache.knows(name, carried - 1 & 0xFFFF))):
                    if not left:
                        self.noise += 1
                        endpoint.dropped_datagrams += 1
                        continue
                    left -= 1
            endpoint.handle_datagram(Run(datagram, len(datagram), addr, run.local), now=now)
        if not syns or listener is None:
            return
        if listener.is_full:
            listener.refused_syns += len(syns)
            self.noise += len(syns)
        elif listener.register_syns(len(syns), now=now):
            self.noise += len(syns)
            source = source_hash(name, self._multiplier)
            self._sources[source] = self._sources.get(source, 0) + len(syns)
            self._names[source] = name
            answers = endpoint.cached_answers([name] * len(syns), syns, now=now)
            if not endpoint.port.pending:
                transmit = Transmit(addr, answers, datagram_bytes=HEADER_BYTES, count=len(syns))
                endpoint.port.send(transmit, endpoint.source(run))
        else:
            for head in syns:
                endpoint.handle_datagram(Run(memoryview(head), HEADER_BYTES, addr, run.local), now=now)

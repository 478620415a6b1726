"""A port that is flooded: noticing it, and handling useless datagrams at the price of their first bytes.

Useless are SYNs that find no room, strays (packets of no connection), and what is not uTP. None of what is here happens
without a flood.

While there is one, the port is read in batches that are classified before any object is made (kernel/mmsg.py): packets
of established connections first, then those that may ack a SYN-ACK, then SYNs, which are answered together. ICMP errors
are turned off: an answer to a false address may cause one each.

The kernel drops what it can recognise (kernel/socket_filter.py), and most SYNs of a source that sends many of them. If
the engine cannot keep up all the same, the filter lets fewer SYNs through, until established connections get what they
are sent and acks of SYN-ACKs arrive: first fewer small SYNs, then, if that is not enough, fewer large ones. Our own
initiators repeat their SYN as a large one, so their second one gets in, unless the flood is of large ones. Those of
other implementations get in by chance, with the same probability each. Strays are limited likewise: answers to more
than a few thousand a second help no peer.

    Example. 100,000 SYNs a second from as many false addresses. After 200 useless datagrams within 100 ms the port is
    in a flood. Every 50 ms the filter is adjusted: as long as most iterations end with datagrams left, the share of
    SYNs that it lets through is halved, down to 1 in 1,024; once none does, it grows by an eighth, or doubles if no
    connection receives much. After 500 ms with fewer than 25 useless datagrams in 50 ms the flood is over, and the
    filter is removed.

Everything means the same as outside of a flood, with two exceptions: only a few strays are answered, and only a few
SYNs without a listener.

Only the engine's thread calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Protocol

from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.kernel.socket_filter import PROBABILITY_ONE, SOURCES, HeavySources, source_hash
from utpsocket.engine.kernel.syscalls import packed_name
from utpsocket.protocol import Run, Transmit
from utpsocket.protocol.packet import HEADER_BYTES, SYN_BYTE, decode

if TYPE_CHECKING:
    from utpsocket.engine.kernel.syscalls import Ancillary
    from utpsocket.engine.kernel.udp import Port, UnmatchedDatagrams
    from utpsocket.engine.ports.listener import Listener
    from utpsocket.engine.ports.reuseport import Engine, ReuseportSockets
    from utpsocket.engine.ports.stateless_resets import StatelessResets
    from utpsocket.protocol import Address

    class FloodedPort(Protocol):
        """What of a port (endpoint.py) is used here."""

        port: Port
        listener: Listener | None
        reuseport_sockets: ReuseportSockets | None
        dropped_datagrams: int
        is_closed: bool
        is_readable: bool

        @property
        def loop(self) -> Engine: ...

        @property
        def resets(self) -> StatelessResets: ...

        @property
        def bridges(self) -> Mapping[tuple[Address, int], object]: ...

        def handle_run(self, run: Run, *, now: int) -> None:
            """Handle packets of one sender: of one connection, or strays."""

        def handle_datagram(self, run: Run, *, now: int) -> None:
            """One packet."""

        def cached_answers(self, names: list[bytes], headers: list[bytes], *, now: int) -> bytearray:
            """Answers to SYNs that become no connection yet."""

        def source(self, run: Run) -> Ancillary:
            """Ancillary data for an answer to this run."""

        def dialed_names(self) -> set[bytes]:
            """Peers that this port dials, whose SYN may cross ours."""


# All by feel where nothing else is said; tests/hostile and tests/engine/test_floods.py show what they achieve.
_htons: Final = stdlib.htons
_WINDOW_US: Final = 100_000  # useless datagrams are counted over so long
_USELESS_PER_WINDOW: Final = 200  # more is a flood: 2,000 a second cost a tenth of the thread
_USELESS_WHEN_BEHIND: Final = 50  # the same if the port still has more: a thread without processor time sees no more
_TICK_US: Final = 50_000  # how often the filter is adjusted
_TICKS_TO_THE_END: Final = 10  # so many quiet ones in a row, and the flood is over
_QUIET_USELESS: Final = 25  # a tick with fewer useless datagrams is quiet
_STRAYS_PER_TICK: Final = 250
# With so many runs of connections in a tick there are data to protect: SYNs are let in again more slowly.
_MANY_RUNS: Final = 4
_BUSY_TICKS: Final = 100  # and for so long afterwards, since a connection that gets nothing through is not seen
_MIN_PROBABILITY: Final = PROBABILITY_ONE >> 10
# A source is heavy if it sends so many SYNs in one tick (120 a second, or more where only a part gets in), …
_HEAVY_SYNS: Final = 6
_HEAVY_MEANS: Final = 5  # … and so many times the mean of all sources, which does not happen by chance
_HEAVY_PROBABILITY: Final = PROBABILITY_ONE >> 7  # of a heavy source's SYNs are let in
_HASHED_TICKS: Final = 40  # then another multiplier is drawn for the sources' hashes
_SYNS_BESIDE_DATA: Final = 256  # are answered in an iteration in which connections have received
_LOOKED_AT: Final = 32  # SYNs of a batch, for heavy sources
_DATAGRAMS_PER_ITERATION: Final = 512
_STRAYS_PER_BATCH: Final = 4  # are handled like any datagram, and perhaps answered by a RESET


class Flood:
    """Of one port.

    useless_datagrams   since the beginning
    is_on               whether the port is flooded
    """

    __slots__ = (
        "_busy_until",
        "_dropped_before",
        "_received_runs",
        "_heavy",
        "_ids",
        "_iterations",
        "_iterations_behind",
        "_large_syn_probability",
        "_multiplier",
        "_names",
        "_useless_before",
        "_quiet_ticks",
        "_seen",
        "_filter",
        "_since",
        "_sources",
        "_strays",
        "_stray_probability",
        "_syn_probability",
        "_ticks",
        "is_on",
        "useless_datagrams",
    )

    def __init__(self) -> None:
        self.useless_datagrams = 0
        self.is_on = False
        self._since = 0  # µs: when the window began that useless datagrams are counted over
        self._useless_before = 0  # their number at its beginning, or at the last tick
        self._ids: set[int] | None = None  # see _wanted_ids(); None: to be made anew

        # The filter: its parameters, as the kernel has them.
        self._filter: tuple[frozenset[int], int, int, HeavySources, int] | None = None
        # With these probabilities, in parts of PROBABILITY_ONE, a datagram is let in.
        self._syn_probability = self._large_syn_probability = self._stray_probability = PROBABILITY_ONE
        self._dropped_before = 0  # the kernel's count at the last tick

        # Sources of many SYNs, by a hash of their address.
        self._multiplier = 1  # of the hash
        self._sources: dict[int, int] = {}  # how many SYNs each sent in this tick
        self._names: dict[int, bytes] = {}  # an address of each
        self._heavy: dict[int, bytes] = {}  # those that are heavy, and an address of each
        self._seen: set[int] = set()  # those that have sent any since the multiplier was drawn

        # Ticks.
        self._ticks = 0  # since the flood began
        self._busy_until = 0  # until this tick SYNs are let in again more slowly
        self._quiet_ticks = 0  # in a row
        self._iterations = self._iterations_behind = 0  # in this tick; and those that ended with datagrams left
        self._strays = self._received_runs = 0  # in this tick: strays, runs of connections

    def on_connections_changed(self) -> None:
        """A connection of the port was added or has ended."""
        self._ids = None

    def check(self, endpoint: FloodedPort, *, now: int) -> None:
        """After useless datagrams were received: begin the other way to receive if there were too many."""
        if self.is_on:
            return
        useless, is_window_over = self.useless_datagrams - self._useless_before, now - self._since > _WINDOW_US
        if useless > _USELESS_PER_WINDOW or (
            is_window_over and useless > _USELESS_WHEN_BEHIND and endpoint.is_readable
        ):
            self._start(endpoint, now=now)
        elif is_window_over:
            self._since = now
            self._useless_before = self.useless_datagrams

    def _start(self, endpoint: FloodedPort, *, now: int) -> None:
        port = endpoint.port
        self.is_on = True
        self._useless_before = self.useless_datagrams
        self._quiet_ticks = self._iterations = self._iterations_behind = self._strays = 0
        self._syn_probability = self._large_syn_probability = self._stray_probability = PROBABILITY_ONE
        self._draw_multiplier()
        self._busy_until = self._ticks + _BUSY_TICKS
        port.report_icmp(wanted=False)
        self._dropped_before = port.kernel_drops
        self._set_filter(endpoint)
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
        useless = self.useless_datagrams - self._useless_before + (dropped - self._dropped_before & 0xFFFFFFFF)
        self._useless_before, self._dropped_before = self.useless_datagrams, dropped
        self._quiet_ticks = self._quiet_ticks + 1 if useless < _QUIET_USELESS else 0
        if self._quiet_ticks >= _TICKS_TO_THE_END:
            self.is_on = False
            self._since = endpoint.loop.now
            self._ids = self._filter = None
            self._draw_multiplier()
            port.detach_filter()
            port.report_icmp(wanted=True)
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
            # A source that shares its hash with a heavy one does so only until here; one that is heavy no more is
            # dropped.
            heavy_names = [name for source, name in self._heavy.items() if source in self._seen]
            self._draw_multiplier()
            self._heavy = {source_hash(name, self._multiplier): name for name in heavy_names}
            known = len(self._heavy)
        if self._received_runs >= _MANY_RUNS:
            self._busy_until = ticks + _BUSY_TICKS
        if len(self._heavy) > known:
            pass  # that may be enough
        elif self._iterations_behind * 2 > self._iterations:
            if self._syn_probability > _MIN_PROBABILITY:
                self._syn_probability = max(_MIN_PROBABILITY, self._syn_probability // 2)
            else:
                self._large_syn_probability = max(_MIN_PROBABILITY, self._large_syn_probability // 2)
        elif not self._iterations_behind:
            more = 16 if ticks >= self._busy_until else 9
            self._syn_probability = min(PROBABILITY_ONE, self._syn_probability * more // 8)
            self._large_syn_probability = min(PROBABILITY_ONE, self._large_syn_probability * more // 8)
        if self._strays > _STRAYS_PER_TICK:
            self._stray_probability = max(_MIN_PROBABILITY, self._stray_probability * _STRAYS_PER_TICK // self._strays)
        else:
            self._stray_probability = min(PROBABILITY_ONE, self._stray_probability * 5 // 4)
        self._iterations = self._iterations_behind = self._strays = self._received_runs = 0
        self._set_filter(endpoint)
        endpoint.loop.call_at(endpoint.loop.now + _TICK_US, lambda: self._tick(endpoint))

    def _set_filter(self, endpoint: FloodedPort) -> None:
        """Give the kernel the filter that is wanted now, unless it has it."""
        ids = frozenset(recv_id + near & 0xFFFF for _, recv_id in endpoint.bridges for near in (-1, 0, 1))
        listener = endpoint.listener
        syns, large = self._syn_probability, self._large_syn_probability
        if listener is None:
            syns = large = self._stray_probability  # without a listener SYNs are strays
        elif listener.is_full:
            syns = large = _MIN_PROBABILITY  # none could come in
        heavy = HeavySources(self._multiplier, frozenset(self._heavy), _HEAVY_PROBABILITY)
        wanted = ids, syns, self._stray_probability, heavy, large
        if wanted != self._filter:
            self._filter = wanted
            endpoint.port.attach_filter(*wanted)

    def _wanted_ids(self, endpoint: FloodedPort) -> set[int]:
        """What packets of connections may carry: their ids, and those beside them in a RESET."""
        ids = self._ids
        if ids is None:
            ids = self._ids = {
                _htons(recv_id + near & 0xFFFF) for _, recv_id in endpoint.bridges for near in (-1, 0, 1)
            }
        return ids

    def receive(self, endpoint: FloodedPort, *, now: int) -> None:
        """Receive what there is, a bounded amount: Endpoint.receive() while is_on."""
        port = endpoint.port
        datagrams = syns = received = 0
        self._iterations += 1
        while datagrams < _DATAGRAMS_PER_ITERATION:
            runs, unmatched = port.receive_classified(endpoint.loop.arena, self._wanted_ids(endpoint))
            for run in runs:
                datagrams += run.count
                for part in run.parts():
                    endpoint.handle_run(part, now=now)
            if unmatched.others:
                self._take_strays(endpoint, unmatched, now=now)
            received += len(runs)
            self._received_runs += len(runs)
            syns += len(unmatched.syns)
            if received and syns > _SYNS_BESIDE_DATA:
                self.useless_datagrams += len(unmatched.syns)
                endpoint.dropped_datagrams += len(unmatched.syns)
            elif unmatched.syns:
                self._take_syns(endpoint, unmatched, now=now)
            datagrams += len(unmatched.syns) + len(unmatched.others)
            if port.is_drained or not (runs or unmatched.syns or unmatched.others):
                endpoint.is_readable = not port.is_drained
                return
        self._iterations_behind += 1

    def _take_strays(self, endpoint: FloodedPort, unmatched: UnmatchedDatagrams, *, now: int) -> None:
        cache = endpoint.listener.cache if endpoint.listener is not None else None
        left = _STRAYS_PER_BATCH
        indices = unmatched.others
        self._strays += len(indices)
        if cache is not None and cache.rotates_at:
            names, headers = unmatched.names(indices), unmatched.headers(indices)
            for index, name, header in zip(indices, names, headers, strict=True):
                if cache.contains(name, (header[2] << 8 | header[3]) - 1 & 0xFFFF):
                    endpoint.handle_run(unmatched.run(index), now=now)
                elif left:
                    left -= 1
                    endpoint.handle_run(unmatched.run(index), now=now)
                else:
                    self.useless_datagrams += 1
                    endpoint.dropped_datagrams += 1
            return
        self._take_few(endpoint, indices, unmatched, now=now)

    def _take_few(self, endpoint: FloodedPort, indices: list[int], unmatched: UnmatchedDatagrams, *, now: int) -> None:
        for index in indices[:_STRAYS_PER_BATCH]:
            endpoint.handle_run(unmatched.run(index), now=now)
        dropped = len(indices[_STRAYS_PER_BATCH:])
        self.useless_datagrams += dropped
        endpoint.dropped_datagrams += dropped

    def _take_syns(self, endpoint: FloodedPort, unmatched: UnmatchedDatagrams, *, now: int) -> None:
        indices = unmatched.syns
        headers = unmatched.headers(indices)
        # SYNs of connections that there are: repeated since our answer was lost, or by an attacker.
        known = [_htons(header[2] << 8 | header[3]) in self._wanted_ids(endpoint) for header in headers]
        if True in known:
            self._take_few(
                endpoint,
                [index for index, is_known in zip(indices, known, strict=True) if is_known],
                unmatched,
                now=now,
            )
            indices = [index for index, is_known in zip(indices, known, strict=True) if not is_known]
            headers = [header for header, is_known in zip(headers, known, strict=True) if not is_known]
        listener = endpoint.listener
        if listener is None:
            self._strays += len(indices)
            self._refuse(endpoint, indices, headers, unmatched, now=now)
        elif listener.is_full:
            listener.refused_syns += len(indices)
            self.useless_datagrams += len(indices)
        elif not listener.register_syns(len(indices), now=now):
            for index in indices:
                endpoint.handle_run(unmatched.run(index), now=now)
        else:
            self.useless_datagrams += len(indices)
            if any(header[1] for header in headers):  # an extension: whether it is whole must be looked at
                indices = [
                    index
                    for index, header in zip(indices, headers, strict=True)
                    if not header[1] or decode(unmatched.run(index).data) is not None
                ]
                headers = unmatched.headers(indices)
            names = unmatched.names(indices)
            self._count_sources(names)
            answers = endpoint.cached_answers(names, headers, now=now)
            if not endpoint.port.pending:
                unmatched.answer(indices, answers)

    def _refuse(
        self,
        endpoint: FloodedPort,
        indices: list[int],
        headers: list[bytes],
        unmatched: UnmatchedDatagrams,
        *,
        now: int,
    ) -> None:
        """SYNs without a listener, all but those of peers that are just being dialled (simultaneous open)."""
        dialed = endpoint.dialed_names()
        names = unmatched.names(indices)
        strays = []
        left = _STRAYS_PER_BATCH
        for at, (index, name) in enumerate(zip(indices, names, strict=True)):
            if name in dialed:
                endpoint.handle_run(unmatched.run(index), now=now)
            elif not headers[at][1]:
                strays.append(at)
            elif left:  # an extension: whether it is whole must be looked at, too
                left -= 1
                endpoint.handle_run(unmatched.run(index), now=now)
            else:
                self.useless_datagrams += 1
                endpoint.dropped_datagrams += 1
        self.useless_datagrams += len(strays)
        if endpoint.reuseport_sockets is not None and not endpoint.reuseport_sockets.may_reset(is_syn=True):
            return
        answered, resets = endpoint.resets.to_syns(
            [indices[at] for at in strays], [names[at] for at in strays], [headers[at] for at in strays], now=now
        )
        endpoint.dropped_datagrams += len(strays) - len(answered)
        if answered and not endpoint.port.pending:
            unmatched.answer(answered, resets)

    def _count_sources(self, names: list[bytes]) -> None:
        sources, known_names, multiplier = self._sources, self._names, self._multiplier
        for name in names[:_LOOKED_AT]:
            source = source_hash(name, multiplier)
            sources[source] = sources.get(source, 0) + 1
            known_names[source] = name

    def take_merged(self, endpoint: FloodedPort, run: Run, *, now: int) -> None:
        """Handle datagrams of one sender that the kernel has merged and that are not all of one connection."""
        addr = run.addr
        listener = endpoint.listener
        name = packed_name(addr)
        cache = listener.cache if listener is not None and listener.cache.rotates_at else None
        left = _STRAYS_PER_BATCH
        syns: list[bytes] = []
        for datagram in run.datagrams():
            if len(datagram) >= HEADER_BYTES:
                header = datagram[:HEADER_BYTES].tobytes()
                carried = header[2] << 8 | header[3]
                is_syn = header[0] == SYN_BYTE
                is_known = _htons(carried) in self._wanted_ids(endpoint)
                if is_syn and not header[1] and listener is not None and not is_known:
                    syns.append(header)
                    continue
                if is_syn or not (is_known or (cache is not None and cache.contains(name, carried - 1 & 0xFFFF))):
                    if not left:
                        self.useless_datagrams += 1
                        endpoint.dropped_datagrams += 1
                        continue
                    left -= 1
            endpoint.handle_datagram(Run(datagram, len(datagram), addr, run.local), now=now)
        if not syns or listener is None:
            return
        if listener.is_full:
            listener.refused_syns += len(syns)
            self.useless_datagrams += len(syns)
        elif listener.register_syns(len(syns), now=now):
            self.useless_datagrams += len(syns)
            source = source_hash(name, self._multiplier)
            self._sources[source] = self._sources.get(source, 0) + len(syns)
            self._names[source] = name
            answers = endpoint.cached_answers([name] * len(syns), syns, now=now)
            if not endpoint.port.pending:
                transmit = Transmit(addr, answers, datagram_bytes=HEADER_BYTES, count=len(syns))
                endpoint.port.send(transmit, endpoint.source(run))
        else:
            for header in syns:
                endpoint.handle_datagram(Run(memoryview(header), HEADER_BYTES, addr, run.local), now=now)

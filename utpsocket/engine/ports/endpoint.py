"""One UDP port and its connections: which connection a packet is for, which SYN makes a new one, how a stray is
answered.

A connection is found by the peer's address and the receiving id that its packets carry. A RESET may carry either of the
connection's two ids. A SYN is the listener's, if there is one. Any other packet of no connection is a stray: it is
answered by a RESET, but not too often, and never if it is a RESET itself.

Only the engine's thread calls, except for what says that any thread may. Sources: BEP 29 "connection_id";
docs/protocol.md §2, §4.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, final

from utpsocket.engine.channels.receive_buffer import FIRST_WINDOW_BYTES
from utpsocket.engine.channels.utp import Bridge
from utpsocket.engine.interpreter.native import unread_bytes
from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.kernel.poller import EPOLLIN, polls
from utpsocket.engine.kernel.syscalls import packed_name
from utpsocket.engine.kernel.udp import IcmpError, Port, split_scope
from utpsocket.engine.ports import overlapping_ports
from utpsocket.engine.ports.connection_config import (
    MIN_BUFFER_BYTES,
    connection_config,
    control_congestion,
    fresh_ids,
    set_buffers,
)
from utpsocket.engine.ports.datagram_half import DatagramHalf
from utpsocket.engine.ports.flood import Flood
from utpsocket.engine.ports.listener import Listener
from utpsocket.engine.ports.packet_options import apply_packet_options
from utpsocket.engine.ports.receive_shares import ReceiveShares
from utpsocket.engine.ports.reuseport import ReuseportSockets
from utpsocket.engine.ports.send_grants import GrantQueue
from utpsocket.engine.ports.stateless_resets import StatelessResets
from utpsocket.engine.ports.syncache import syn_of
from utpsocket.engine.turns import BULK_BYTES
from utpsocket.engine.user_fds.socket_state import Identity, Role, window_bytes
from utpsocket.protocol import Address, Connection, Run, Transmit
from utpsocket.protocol.build import IS_COMPILED
from utpsocket.protocol.close_timers import TimeWaitRecord
from utpsocket.protocol.handshake import ACKS_SYN_ACK
from utpsocket.protocol.keepalive import Probing, default_probing
from utpsocket.protocol.packet import HEADER_BYTES, RESET, SYN, Packet, decode
from utpsocket.protocol.receivehalf import WIRESHARK_WINDOW_BYTES
from utpsocket.protocol.states import CLOSED, TIME_WAIT
from utpsocket.protocol.times import NEVER

if TYPE_CHECKING:
    from utpsocket.engine.channels.channel import Channel
    from utpsocket.engine.kernel.syscalls import Ancillary
    from utpsocket.engine.ports.listener import Engine as ListenersEngine
    from utpsocket.engine.ports.overlapping_ports import OverlappingPort
    from utpsocket.engine.ports.path_cache import PathCache
    from utpsocket.engine.ports.reuseport import Engine as PeersEngine
    from utpsocket.engine.ports.send_grants import SendGrants
    from utpsocket.engine.turns import Turns
    from utpsocket.protocol import Workspace

    class Engine(ListenersEngine, PeersEngine, Protocol):
        """What a port's parts and connections use of their engine, which has many ports."""

        channels: dict[int, Channel]
        send_grants: SendGrants
        paths: PathCache
        turns: Turns[Endpoint, Bridge]
        workspace: Workspace
        max_datagram_bytes: int
        congestion: str
        target_delay_us: int
        max_window_bytes: int
        max_segments: int
        namespace: int
        wakeups: int
        initiated: int
        accepted: int

        def close_endpoint(self, endpoint: Endpoint) -> None:
            """Close a port that is unused."""

        def wake_listener(self, listener: Listener) -> None:
            """A connection of the listener's waits for the hand-over."""


CLAIM_KEY: Final = "by"  # of Endpoint.closing_claim
BY_ENGINE: Final = object()  # the claim of the engine's thread
_MAX_TIME_WAIT_RECORDS: Final = 8_192  # connections that ended in order; some 300 bytes each
_TIME_WAIT_RECORD_US: Final = 60_000_000  # as long as Linux's TIME_WAIT
_DATA_BYTES: Final = 512  # smaller datagrams are messages: they need no share of the receive buffer
# A second run is asked for in so many iterations after one in which there was one; by feel.
_EXPECTED_RUNS: Final = 16
# So many iterations in a row with one small datagram each, and a second one is asked for; by feel.
_MANY_SINGLE_DATAGRAM_ITERATIONS: Final = 8
_MAX_RECEIVES: Final = 16  # of receive_for(): a flooded port always has more
# In a row: a single datagram that causes an exception is met once, a port that is broken again and again.
_MAX_FAULTS_IN_ROW: Final = 20
# Then other ports are read: half a megabyte in merged datagrams, or so many small ones.
_BYTES_PER_ITERATION: Final = 450_000
_RUNS_PER_ITERATION: Final = 64
_DATAGRAMS_PER_ITERATION: Final = 512  # the same, where they come one by one
_MADE_ON_DEMAND: Final = ("shares",)
_NO_SOURCE: Final[Ancillary] = []
_TimeWaitRecords: TypeAlias = OrderedDict[tuple[Address, int], tuple[int, TimeWaitRecord]]
_cached_default_probing: Final = functools.lru_cache(16)(default_probing)


@final
class Endpoint:
    """A UDP port of ours and its connections.

    Loop.new_endpoint() makes it. The loop calls receive() when the port is readable and transmit() for each connection
    that may have something to send; dial() opens a connection, a listener takes incoming ones.

    What only the engine's thread needs is made when that thread first uses it (_MADE_ON_DEMAND), since any thread may
    make an endpoint. In the compiled build it is made at once: that takes little there, and compiled code does not ask
    __getattr__(). What a port for one connection hardly ever needs is None until it is used, in both builds.

    Source: docs/design.md §6.
    """

    __slots__ = (
        "_expected_runs",
        "_flood",
        "_is_cache_watched",
        "_is_receiving",
        "_outgoing",
        "_resets",
        "_single_datagram_iteration",
        "_single_datagram_iterations",
        "_time_wait_records",
        "bridges",
        "bulk_until",
        "closing_claim",
        "datagram_half",
        "dropped_datagrams",
        "faults",
        "has_ended_in_order",
        "holders",
        "is_closed",
        "shares_port",
        "is_address_freed",
        "is_private",
        "is_readable",
        "key",
        "listener",
        "loop",
        "may_receive_at",
        "overlapping",
        "reuseport_sockets",
        "port",
        "reuse_address",
        "shares",
    )

    def __init__(self, loop: Engine, key: int, port: Port, *, is_private: bool) -> None:
        self.loop = loop
        self.key = key  # in Loop.endpoints
        self.port = port  # the UDP socket (kernel/udp.py)
        self.is_private = is_private  # it is for one connection, of a socket that bind() was not called on
        self.bridges: dict[tuple[Address, int], Bridge] = {}  # connections by the peer's address and our receiving id
        self.listener: Listener | None = None  # takes incoming connections; None: they are refused

        # The program's sockets that are bound to the port or listen at it, by inode. It is closed when none is left,
        # nor any connection.
        self.holders: dict[int, Identity] = {}
        self.reuse_address = False  # every one of them has set SO_REUSEADDR
        self.shares_port = False  # every one of them has set UTP_SHARE_PORT
        # A UDP socket for each peer, where processes share the port.
        self.reuseport_sockets: ReuseportSockets | None = None
        self.overlapping: tuple[OverlappingPort, ...] = ()  # at the same number and another address
        self.datagram_half: DatagramHalf | None = None  # a UDP socket of the program's at the same address

        # Its end.
        self.closing_claim: dict[str, object] = {}  # under CLAIM_KEY what closes the port: claim_closing()
        self.is_address_freed = False  # Loop.free_address(): an idle socket has taken the place of ours
        self.is_closed = False  # by Loop.close_claimed()
        self.has_ended_in_order = False  # it was a connection's own, and that did not end with an error

        # Receiving.
        self.is_readable = True  # there may be more to receive
        self.bulk_until = 0  # it counts as bulk until this time, µs (turns.py)
        self.may_receive_at = 0  # when a recv() of the program may receive here, µs; NEVER: one does (inline_io.py)
        self._is_receiving = False  # something was read and not handled yet; also after an exception meanwhile
        self._expected_runs = 0  # in so many iterations more a second run is asked for
        self._single_datagram_iteration = 0  # the last iteration that found one small datagram (Loop.wakeups)
        self._single_datagram_iterations = 0  # how many in a row have
        self._is_cache_watched = False  # a timer will drop old entries of the listener's cache of SYNs
        self.dropped_datagrams = 0  # a figure: what was of no use, here and to a datagram half
        self.faults = 0  # exceptions since it last received without one
        # Notices useless datagrams, and is another way to receive while there are many.
        self._flood: Flood | None = None
        # By address the connection that was dialled last, until it is over; not of a private port.
        self._outgoing: dict[Address, Bridge] | None = None if is_private else {}
        self._resets: StatelessResets | None = None  # answers to strays
        # When a connection ended and what is needed to ack its peer's FIN again, by address and receiving id.
        self._time_wait_records: _TimeWaitRecords | None = None if is_private else OrderedDict()
        if IS_COMPILED or is_private:  # the engine's thread makes a private one
            self._prepare()

    def __getattr__(self, name: str) -> object:
        if name not in _MADE_ON_DEMAND:
            raise AttributeError(name)
        self._prepare()
        return getattr(self, name)

    def _prepare(self) -> None:
        # How much each connection may advertise of the socket's receive buffer.
        self.shares = ReceiveShares(self.port.receive_buffer_bytes, self.loop.max_window_bytes)

    @property
    def flood(self) -> Flood:
        """What notices useless datagrams, and is another way to receive while there are many.

        Returns: the same one each time.
        Source: docs/protocol.md §3; engine/ports/flood.py.
        """
        if self._flood is None:
            self._flood = Flood()
        return self._flood

    @property
    def resets(self) -> StatelessResets:
        """The answers to strays.

        Returns: the same object each time.
        Source: docs/protocol.md §4; engine/ports/stateless_resets.py.
        """
        if self._resets is None:
            self._resets = StatelessResets()
        return self._resets

    @property
    def sent_resets(self) -> int:
        """How many RESETs have left beside any connection.

        Returns: a figure.
        Source: docs/protocol.md §4.
        """
        return 0 if self._resets is None else self._resets.sent

    @property
    def time_wait_records(self) -> _TimeWaitRecords:
        """When a connection ended and what is needed to ack its peer's FIN again, by address and receiving id.

        Returns: what there is of the last minute.
        Source: docs/protocol.md §12.
        """
        return self._time_wait_records or OrderedDict()

    @property
    def is_unused(self) -> bool:
        """Whether no connection, holder or listener needs the port. Any thread.

        Returns: True or False.
        Source: docs/design.md §6.
        """
        return not self.bridges and not self.holders and self.listener is None

    @property
    def is_all_answered(self) -> bool:
        """Whether no datagram at the port is unanswered. Any thread.

        Returns: True or False.
        Source: docs/sockets.md §3.
        """
        # In this order, as the engine's thread works on.
        return not (unread_bytes(self.port.fd) or self._is_receiving or self.bridges)

    def claim_closing(self, claim: object) -> bool:
        """Take the right to close the port. Any thread.

        A thread that adds a holder looks at closing_claim afterwards, as this looks at the holders after the claim: one
        of the two sees the other.

        Parameters:
            claim: an object of the caller's alone, BY_ENGINE for the engine's thread.
        Returns: False if another claim has it, or there are holders.
        Raises: nothing.
        Next: Loop.close_claimed().
        Source: docs/sockets.md §3.
        """
        if self.closing_claim.setdefault(CLAIM_KEY, claim) is not claim:
            return False
        if self.holders:
            self.closing_claim.clear()
            return False
        return True

    @property
    def is_in_other_namespace(self) -> bool:
        """Whether the port is in another network namespace than the engine's thread. Any thread.

        Returns: True or False.
        Source: network_namespaces(7).
        """
        return self.port.namespace != self.loop.namespace

    # ── connections ──

    def _new_bridge(
        self,
        addr: Address,
        recv_id: int,
        identity: Identity,
        source: Ancillary,
        first_seq: int,
        spare_ids: tuple[int, ...] = (),
    ) -> Bridge:
        config = connection_config(self, identity.settings, addr)
        if spare_ids:
            # Not an acceptor's: each of its peers has a port of its own, so the next connection is to another address.
            config.known_path = self.loop.paths.for_peer(addr)
        connection = Connection(
            config,
            self.loop.workspace,
            addr,
            recv_id=recv_id,
            first_seq=first_seq,
            spare_ids=spare_ids,
        )
        bridge = Bridge(connection, self, identity, source)
        if not spare_ids:
            self.loop.owner = bridge  # of a connection that a SYN makes: no command is its owner
        connection.receive.share_bytes = self.shares.initial_share_bytes(len(self.bridges))
        bridge.recv_ids = (recv_id, *spare_ids)  # the connection's own list shrinks once it has chosen
        self.loop.channels[bridge.cookie] = bridge  # first: should the rest fail, it is found there and forgotten
        for any_id in bridge.recv_ids:
            self.bridges[addr, any_id] = bridge
        if self._flood is not None:
            self._flood.on_connections_changed()
        self.apply_settings(bridge, now=self.loop.now)
        return bridge

    def drop_spare_ids(self, bridge: Bridge) -> None:
        """The peer has answered a SYN of this connection: no packet can carry the ids of SYNs that have not left.

        Parameters:
            bridge: a connection of this port, which was dialled.
        Raises: nothing.
        Source: docs/protocol.md §2.
        """
        kept, addr = bridge.connection.recv_ids, bridge.connection.addr
        for any_id in bridge.recv_ids:
            if any_id not in kept and self.bridges.get((addr, any_id)) is bridge:
                del self.bridges[addr, any_id]
        bridge.recv_ids = kept
        if self._flood is not None:
            self._flood.on_connections_changed()

    def apply_settings(self, bridge: Bridge, *, now: int) -> None:
        """Have a connection follow the socket options of its identity: at its beginning, and whenever one is set.

        Parameters:
            bridge: a connection of this port.
            now: µs.
        Raises: OSError where the kernel refuses an option of IP.
        Source: socket(7); tcp(7); ip(7).
        """
        settings, connection = bridge.identity.settings, bridge.connection
        connection.send.nodelay = settings.nodelay
        connection.send.user_timeout_us = settings.user_timeout_ms * 1_000
        nat_keepalive_us = settings.nat_keepalive_seconds * 1_000_000
        probing = _cached_default_probing(nat_keepalive_us) if nat_keepalive_us else None
        if settings.keepalive:
            asked = Probing(
                settings.keepalive_idle_seconds * 1_000_000,
                settings.keepalive_interval_seconds * 1_000_000,
                settings.keepalive_count,
                settings.user_timeout_ms * 1_000,
            )
            if probing is None or asked.max_silence_us < probing.max_silence_us:
                probing = asked
        connection.set_keepalive(nat_keepalive_us, probing, now=now)
        if settings.congestion or settings.target_delay_us:
            control_congestion(self, settings, connection)
        if settings.syn_retries:
            connection.set_syn_retries(settings.syn_retries)
        if bridge.identity.options:
            apply_packet_options(bridge)
        set_buffers(self, settings, bridge)

    def dial(self, addr: Address, identity: Identity) -> Bridge:
        """Open a connection from this port. Its SYN leaves in this iteration.

        Parameters:
            addr: the peer's address, as the kernel would report it.
            identity: of the socket that connects.
        Returns: the connection.
        Raises: OSError where the kernel refuses an option of IP.
        Next: Bridge.attach().
        Source: BEP 29 "connection setup"; docs/protocol.md §2.
        """
        (recv_id, *spare_ids), first_seq = fresh_ids(self.bridges, addr)
        bridge = self._new_bridge(addr, recv_id, identity, _NO_SOURCE, first_seq, tuple(spare_ids))
        self.loop.send_grants.join(bridge)
        if self._outgoing is not None:
            self._outgoing[addr] = bridge
        if self.reuseport_sockets is not None:
            self._share(self.reuseport_sockets, bridge)
        bridge.connection.connect(now=self.loop.now, user_timeout_us=identity.settings.user_timeout_ms * 1_000)
        self.loop.initiated += 1
        return bridge

    def _share(self, sockets: ReuseportSockets, bridge: Bridge) -> None:
        """A connection is dialed from a port that processes share."""
        port, addr = self.port, bridge.connection.addr
        sockets.prepare_to_send()
        sockets.join(bridge, port.local[0])
        if not overlapping_ports.listens(self):
            sockets.leave_group(will_rejoin=len(self.holders) > 1)
        local = sockets.local_of(addr)
        if port.is_wildcard and local is not None:
            bridge.source = port.source(local) + bridge.source

    def forget(self, bridge: Bridge) -> None:
        """The connection is over: take it out. See Bridge.remove(). Idempotent.

        Parameters:
            bridge: a connection of this port. If it was the last that needed the port, the port closes.
        Raises: nothing.
        Source: docs/design.md §6; docs/protocol.md §12.
        """
        connection = bridge.connection
        for any_id in bridge.recv_ids:
            self.bridges.pop((connection.addr, any_id), None)
        if self._flood is not None:
            self._flood.on_connections_changed()
        if self._outgoing is not None and self._outgoing.get(connection.addr) is bridge:
            del self._outgoing[connection.addr]
        records = self._time_wait_records
        if self.is_private:
            is_in_order = connection.state is CLOSED and not connection.errno
            # An identity of another class is one that processes share, or of a program in another process.
            self.has_ended_in_order = is_in_order and type(bridge.identity) is Identity
        elif records is not None and (record := connection.time_wait_record()) is not None:
            key = connection.addr, connection.recv_id
            records.pop(key, None)
            records[key] = self.loop.now, record
            oldest_at = self.loop.now - _TIME_WAIT_RECORD_US
            while len(records) > _MAX_TIME_WAIT_RECORDS or next(iter(records.values()))[0] < oldest_at:
                records.popitem(last=False)
        if bridge.grant_queue is not None:
            self.leave_grants(bridge)
        if self.reuseport_sockets is not None:
            self.reuseport_sockets.leave(bridge)
        self.close_if_unused()

    def close_if_unused(self) -> None:
        """Close the port if it is unused. Another thread may have done so.

        Raises: nothing.
        Source: docs/design.md §6.
        """
        if self.is_unused:
            self.loop.close_endpoint(self)

    def leave_grants(self, bridge: Bridge) -> None:
        """The connection has no more data to send: another one may get a grant. Idempotent.

        Parameters:
            bridge: a connection of this port.
        Raises: nothing.
        Source: engine/ports/send_grants.py.
        """
        following = self.loop.send_grants.leave(bridge)
        if following is not None:
            self.loop.mark_dirty(following)

    # ── from the network ──

    def receive(self, *, now: int) -> None:  # noqa: C901  # its parts would be calls
        """Receive what there is, a bounded amount, and hand it to the connections. What they answer leaves later in the
        iteration. Afterwards is_readable is True if there may be more.

        Parameters:
            now: µs.
        Raises: nothing for what the network sends.
        Next: transmit() for each connection that has been marked dirty.
        Source: docs/design.md §4, §11.
        """
        port, arena, flood = self.port, self.loop.arena, self._flood
        self._is_receiving = True
        if flood is not None and flood.is_on and port.can_classify:
            self._receive_flood(flood, now=now)
            return
        useless_before = 0 if flood is None else flood.useless_datagrams
        before: Run | None = None  # not handled yet: if what follows continues it, they are handled as one run
        runs = datagrams = before_start = received_bytes = 0
        for runs in range(_RUNS_PER_ITERATION):
            if port.uses_recvmmsg:
                if before is not None:
                    self._handle_received(before, before_start, now=now)
                    before = None
                datagrams += self._receive_many(now=now)
                if not self.is_readable or datagrams >= _DATAGRAMS_PER_ITERATION:
                    break
                continue
            if (
                runs == 1
                and not self._expected_runs
                and (before is None or len(before.data) < _DATA_BYTES or before.last_bytes < before.datagram_bytes)
                and not port.pending
            ):
                # A message, or the end of one: most likely there is no more, and a call to find that out costs as much
                # as a datagram. If there is, epoll reports it again: this fd is level-triggered, except while the port
                # is blocked.
                self.is_readable = False
                # Small datagrams come in many iterations in a row, as in a flood of SYNs: then more are asked for at
                # once.
                iteration, in_a_row = self.loop.wakeups, self._single_datagram_iterations + 1
                if iteration != self._single_datagram_iteration + 1:
                    in_a_row = 0
                elif in_a_row >= _MANY_SINGLE_DATAGRAM_ITERATIONS:
                    in_a_row, self._expected_runs = 0, 2  # in the next iteration, and on only if there is a second run
                self._single_datagram_iteration, self._single_datagram_iterations = iteration, in_a_row
                break
            run = port.receive(arena.room_behind(before, self.bulk_until > now) if arena.used else arena.chunk)
            if run is None:
                self.is_readable = False
                break
            if not run.data:
                continue
            start = arena.used  # where it lies
            size = len(run.data)
            arena.used += size
            received_bytes += size
            if before is not None:
                data = arena.last(len(before.data) + len(run.data)) if run.continues(before) else None
                if data is not None:
                    run = Run(data, run.stride, run.addr, run.local)
                    start = before_start
                else:
                    self._handle_received(before, before_start, now=now)
            before, before_start = run, start
            if received_bytes >= _BYTES_PER_ITERATION:
                break
        self._expected_runs = _EXPECTED_RUNS if runs > 1 else (self._expected_runs or 1) - 1
        if before is not None:
            if len(before.data) > before.stride:  # as _handle_received(), without a call
                before.payload_views = arena.slots(before, before_start)
            self.handle_run(before, now=now)
        self._is_receiving = False
        if port.errors:
            self.handle_errors(now=now)
        self.faults = 0
        if self._flood is not None and self._flood.useless_datagrams != useless_before:
            self._flood.check(self, now=now)

    def note_backlog(self, *, now: int) -> None:
        """After receive(), where bulk comes. If there is more each time, less is advertised, so that the packets of
        other connections need not wait behind it in the kernel's queue.

        Parameters:
            now: µs.
        Raises: nothing.
        Source: engine/ports/receive_shares.py.
        """
        if not self.is_readable:
            self.shares.on_drained(now=now)
        elif len(self.bridges) > 1:
            self.shares.on_backlog(self.port.queued_bytes, now=now)

    def _handle_received(self, run: Run, start: int, *, now: int) -> None:
        """handle_run() of what lies at byte `start` of the arena."""
        if len(run.data) > run.stride:
            run.payload_views = self.loop.arena.slots(run, start)
        self.handle_run(run, now=now)

    def _receive_flood(self, flood: Flood, *, now: int) -> None:
        flood.receive(self, now=now)
        if self.port.errors:
            self.handle_errors(now=now)
        self._is_receiving = False

    def _receive_many(self, *, now: int) -> int:
        """Receive datagrams that the kernel does not merge. Returns how many there were."""
        port = self.port
        count = 0
        for run in port.receive_many(self.loop.arena):
            count += run.count
            for part in run.parts():
                self.handle_run(part, now=now)
        self.is_readable = not port.is_drained
        return count

    def handle_run(self, run: Run, *, now: int) -> None:
        """Hand a run to its connection. GRO merges by addresses: a run of several connections is split first.

        Parameters:
            run: datagrams of one sender.
            now: µs.
        Raises: nothing for what is in it.
        Source: docs/design.md §4; docs/performance.md §5.
        """
        data = run.data
        if HEADER_BYTES <= len(data) <= run.stride or run.is_clean() or run.is_uniform():
            bridge = self.bridges.get((run.addr, data[2] << 8 | data[3]))
            if bridge is not None:
                self.loop.owner = bridge
                bridge.connection.handle_run(run, now=now)
                self.loop.owner = self
                if run.datagram_bytes >= _DATA_BYTES:
                    run_bytes = len(run.data)
                    turns = self.loop.turns
                    turns.left_bytes -= run_bytes
                    if run_bytes >= BULK_BYTES:
                        turns.on_bulk(bridge, now=now)
                        self.bulk_until = bridge.bulk_until
                    self.shares.on_data(bridge, run_bytes, now=now)
                self.loop.mark_dirty(bridge)
                return
            if self.overlapping and overlapping_ports.forward_run(self, run, now=now):
                return
        if self._flood is not None and self._flood.is_on and len(run.data) > run.datagram_bytes:
            self._flood.take_merged(self, run, now=now)
            return
        if self.datagram_half is not None:
            self.datagram_half.is_merged = len(run.data) > run.stride
        for datagram in run.datagrams():
            self.handle_datagram(Run(datagram, len(datagram), run.addr, run.local), now=now)

    def handle_datagram(self, run: Run, packet: Packet | None = None, *, now: int) -> None:
        """As handle_run(), of a run of one datagram: any packet, or none of uTP's.

        Parameters:
            run: the datagram.
            packet: what decode() made of it, if the caller had to decode it.
            now: µs.
        Raises: nothing for what is in it.
        Source: BEP 29 "connection_id"; docs/protocol.md §2, §4.
        """
        if packet is None:
            packet = decode(run.data)
            if packet is None:
                self._offer_or_drop(run)
                return
        if self.overlapping and overlapping_ports.forward_datagram(self, packet, run, now=now):
            return
        addr, connection_id = run.addr, packet.connection_id
        if packet.type == SYN:
            bridge = self._bridge_of_syn(packet, run, now=now)
            if bridge is None:
                return
        else:
            bridge = self.bridges.get((addr, connection_id))
            if bridge is None and packet.type == RESET:
                bridge = self._bridge_of_reset(addr, connection_id)
            elif bridge is None and self.is_cached(run, connection_id - 1 & 0xFFFF):
                bridge = self._accept_verified(packet, run, now=now)
                if bridge is None:
                    self.dropped_datagrams += 1
                    return
        if bridge is not None:
            self.loop.owner = bridge
            bridge.connection.handle_run(run, packet=packet, now=now)
            self.loop.mark_dirty(bridge)
            self.loop.owner = self
        elif packet.type != RESET:
            ended_at, record = self.time_wait_records.get((addr, connection_id), (0, None))
            if record is not None and now < ended_at + _TIME_WAIT_RECORD_US:
                answer = record.ack_repeated(packet, now=now)
                if answer is not None:
                    self.port.send(Transmit(addr, answer), self.source(run))
                    return
            self._reset_stray(packet, run, now=now)
        else:
            self._offer_or_drop(run)

    def _offer_or_drop(self, run: Run) -> None:
        self.flood.useless_datagrams += 1
        if self.datagram_half is None or not self._offer(self.datagram_half, run):
            self.dropped_datagrams += 1

    def _offer(self, half: DatagramHalf, run: Run) -> bool:
        """Offer the program's UDP socket at this address a datagram that is of no use here. Returns False if it was not
        taken.
        """
        if half.is_envelope(run):  # the program's socket is closed
            self.datagram_half = None
            return False
        return half.offer(self.port, run)

    def _bridge_of_reset(self, addr: Address, connection_id: int) -> Bridge | None:
        """A RESET may carry the id that we send with instead of the one that we receive with."""
        found = None
        for near in (-1, 1):
            other = self.bridges.get((addr, connection_id + near & 0xFFFF))
            if other is not None and other.connection.send_id == connection_id:
                found = other
        return found

    def _bridge_of_syn(self, packet: Packet, run: Run, *, now: int) -> Bridge | None:
        """The connection that a SYN is for, perhaps a new one. None: it was answered, or dropped and counted."""
        addr, recv_id = run.addr, packet.connection_id + 1 & 0xFFFF
        bridge = self.bridges.get((addr, recv_id))
        if bridge is not None:
            self.flood.useless_datagrams += 1
            if not bridge.connection.is_initiator:
                return bridge
        listener = self.listener
        if listener is None and self._handle_simultaneous_open(addr, packet, now=now):
            return None
        is_full = listener is not None and listener.is_full  # first: closed by a caller, it is full as well
        if listener is None or listener.has_stopped or listener.is_gone:
            # The one RESET in answer to a SYN, as small as the SYN: a port that is ours but listens no more must refuse
            # as TCP's does, where a closed one would by ICMP (docs/sockets.md §3).
            self._reset_stray(packet, run, now=now)
            return None
        if is_full or bridge is not None:
            listener.refused_syns += 1
            self.flood.useless_datagrams += 1
            if bridge is None:
                self.flood.useless_datagrams += 1
                self.dropped_datagrams += 1
            return bridge
        if self.is_cached(run, packet.connection_id) or listener.register_syns(now=now):
            self._answer_from_cache(run, now=now)
            return None
        return self._accept_syn(run, recv_id, announces_ack=packet.ack16 == ACKS_SYN_ACK, now=now)

    def _handle_simultaneous_open(self, addr: Address, packet: Packet, *, now: int) -> bool:
        """A SYN from an address that is just being dialled: simultaneous open (handshake.py). Returns False if it is
        none.

        Only without a listener: that makes a connection of each SYN, as other implementations do, and then there are
        two connections. And only at a port that bind() was called for, whose number the peer can know: at another one
        the SYN is forged, and its sender would never ack our SYN-ACK.
        """
        recv_id = packet.connection_id + 1 & 0xFFFF
        bridge = None if self._outgoing is None else self._outgoing.get(addr)
        if bridge is None or self.bridges.get((addr, recv_id), bridge) is not bridge:
            return False
        connection = bridge.connection
        self.loop.owner = bridge
        is_crossing = connection.handle_simultaneous_open(packet, now=now)
        self.loop.owner = self
        if not is_crossing:
            return False
        if connection.recv_id not in bridge.recv_ids:
            bridge.recv_ids = (*bridge.recv_ids, connection.recv_id)
            self.bridges[addr, connection.recv_id] = bridge
            if self._flood is not None:
                self._flood.on_connections_changed()
        self.loop.mark_dirty(bridge)
        return True

    def _accept_syn(
        self, run: Run, recv_id: int, first_seq: int = -1, *, announces_ack: bool = False, now: int
    ) -> Bridge | None:
        listener, addr = self.listener, run.addr
        assert listener is not None
        identity = listener.identity.kind(listener.identity.family, listener.identity.settings.copy())
        random = os.urandom(10)  # 63 bits of cookie, 16 of a sequence number
        identity.cookie = int.from_bytes(random[2:], "big") >> 1
        first_seq = int.from_bytes(random[:2], "big") if first_seq < 0 else first_seq
        identity.options = dict(listener.identity.options)
        identity.peer = addr
        identity.role = Role.CONNECTING
        identity.is_connect_reported = True
        identity.owner_pid = listener.identity.owner_pid
        identity.local = self.port.local
        if run.local is not None:
            host, scope = split_scope(run.local)
            identity.local = (host, *self.port.local[1:])
            if scope and len(addr) == 4 and addr[3]:
                identity.local = (host, self.port.local[1], 0, scope)  # with a global peer Linux's TCP returns no scope
        bridge = self._new_bridge(addr, recv_id, identity, self.source(run), first_seq)
        if self.reuseport_sockets is not None:
            with self.loop.fd_lock:
                self.reuseport_sockets.join(bridge, run.local or self.port.local[0])
        self.loop.accepted += 1
        if listener.on_syn(bridge, announces_ack=announces_ack, now=now):
            self.loop.wake_listener(listener)
        self.loop.owner = self
        return bridge

    def source(self, run: Run) -> Ancillary:
        """The source address of an answer.

        Parameters:
            run: what is answered: the answer leaves with the address that it came to.
        Returns: ancillary data for Port.send(); empty where the port is bound to one address.
        Raises: nothing.
        Source: ip(7) IP_PKTINFO; ipv6(7).
        """
        return _NO_SOURCE if run.local is None else self.port.source(run.local)

    def _answer_from_cache(self, run: Run, *, now: int) -> None:
        """Answer a SYN from the listener's cache: it makes a connection once its sender has acked the SYN-ACK."""
        self.flood.useless_datagrams += 1
        answer = self.cached_answers([packed_name(run.addr)], [bytes(run.data[:HEADER_BYTES])], now=now)
        if not self.port.pending:
            self.port.send(Transmit(run.addr, answer), self.source(run))

    def cached_answers(self, names: list[bytes], headers: list[bytes], *, now: int) -> bytearray:
        """Put SYNs into the listener's cache.

        Parameters:
            names: their senders' addresses, as the kernel writes them.
            headers: their headers, in the same order.
            now: µs.
        Returns: the answers, one after the other.
        Raises: nothing.
        Source: docs/protocol.md §3; engine/ports/syncache.py.
        """
        listener = self.listener
        assert listener is not None
        answers = listener.cache.answer(names, headers, self._window_bytes(listener), now=now)
        self._watch_cache(listener)
        return answers

    def dialed_names(self) -> set[bytes]:
        """The addresses that are dialled from this port.

        Returns: addresses as the kernel writes them.
        Raises: nothing.
        Source: docs/protocol.md §14.
        """
        return {packed_name(addr) for addr in self._outgoing or ()}

    def _window_bytes(self, listener: Listener) -> int:
        """What a new connection of the listener's would advertise."""
        receive_bytes = window_bytes(listener.identity.settings.receive_buffer_bytes) or FIRST_WINDOW_BYTES
        bytes_at_first = min(self.shares.initial_share_bytes(len(self.bridges)), WIRESHARK_WINDOW_BYTES)
        return min(max(MIN_BUFFER_BYTES, receive_bytes), bytes_at_first)

    def is_cached(self, run: Run, syn_id: int) -> bool:
        """Whether a SYN is in the listener's cache.

        Parameters:
            run: a datagram of its sender.
            syn_id: the number that the SYN has as its connection id.
        Returns: True or False; False without a listener.
        Raises: nothing.
        Source: engine/ports/syncache.py.
        """
        cache = self.listener.cache if self.listener is not None else None
        return cache is not None and cache.rotates_at > 0 and cache.contains(packed_name(run.addr), syn_id)

    def _accept_verified(self, packet: Packet, run: Run, *, now: int) -> Bridge | None:
        """The connection of a SYN that was answered from the cache, if this packet acks that SYN-ACK."""
        listener = self.listener
        assert listener is not None
        name, syn_id = packed_name(run.addr), packet.connection_id - 1 & 0xFFFF
        numbers = listener.cache.check_ack(name, syn_id, packet.ack16)
        if numbers is None:
            return None
        if listener.is_full:
            listener.refused_syns += 1
            return None
        syn_seq16, our_seq16 = numbers
        bridge = self._accept_syn(run, packet.connection_id, our_seq16, now=now)
        if bridge is not None:
            listener.cache.use(name, syn_id)
            syn = memoryview(syn_of(syn_id, syn_seq16, packet.window_bytes))
            bridge.connection.handle_run(Run(syn, len(syn), run.addr, run.local), now=now)
            bridge.connection.receive.ack_at = NEVER  # it is answered
        return bridge

    def return_to_cache(self, bridge: Bridge, *, now: int) -> None:
        """Make an entry of the listener's cache of a half-open connection that was not handed over yet.

        Parameters:
            bridge: the connection, which ends without a RESET.
            now: µs.
        Raises: nothing.
        Source: docs/protocol.md §3; engine/ports/syncache.py.
        """
        listener, connection = self.listener, bridge.connection
        if listener is not None:
            syn_seq, our_seq = connection.receive.ack, connection.send.flights.una_seq
            name = packed_name(connection.addr)
            listener.cache.keep(name, connection.send_id, syn_seq & 0xFFFF, our_seq & 0xFFFF, now=now)
            self._watch_cache(listener)
        connection.close_silently()
        self.loop.mark_dirty(bridge)

    def _watch_cache(self, listener: Listener) -> None:
        if not self._is_cache_watched:
            self._is_cache_watched = True
            self.loop.call_at(listener.cache.rotates_at, self._on_cache_time)

    def _on_cache_time(self) -> None:
        self._is_cache_watched = False
        listener = self.listener
        if listener is not None and not self.is_closed:
            listener.cache.on_time(now=self.loop.now)
            if listener.cache.rotates_at:
                self._watch_cache(listener)

    def _reset_stray(self, packet: Packet, run: Run, *, now: int) -> None:
        if self.datagram_half is not None:
            self._offer(self.datagram_half, run)  # and a RESET as well: it may be uTP of a connection that is over
        self.flood.useless_datagrams += 1
        if self.reuseport_sockets is not None and not self.reuseport_sockets.may_reset(is_syn=packet.type == SYN):
            return
        reset = self.resets.to_stray(run.addr, packet, now=now)
        if reset is not None:
            self.port.send(reset, self.source(run))

    def fail(self, error: BaseException) -> None:
        """See faults.py: what was being received is lost, as any packet may be. After _MAX_FAULTS_IN_ROW the port ends.

        Parameters:
            error: the exception that came out of the work for this port.
        Raises: as end().
        Source: docs/design.md §2.
        """
        self.faults += 1
        if self.faults > _MAX_FAULTS_IN_ROW:
            self.end(error)

    def end(self, error: BaseException) -> None:
        """The port ends, and its connections with it. May be called again where it has failed itself.

        Parameters:
            error: why. Each connection fails with it.
        Raises: OSError where a system call of the end fails; then call it again.
        Source: docs/design.md §2.
        """
        if self.listener is not None:
            self.listener.end()
        for bridge in list(self.bridges.values()):
            bridge.fail(error)
        self.holders.clear()
        self.loop.close_endpoint(self)

    def handle_errors(self, *, now: int) -> None:
        """Hand ICMP errors and failed sends to the connections, by the packet that each quotes.

        Parameters:
            now: µs.
        Raises: nothing.
        Source: ip(7) IP_RECVERR; RFC 1122 §4.2.3.9; docs/protocol.md §10.
        """
        loop = self.loop
        owner = loop.owner
        port = self.port
        while port.errors:
            error, port.errors = port.errors[0], port.errors[1:]
            bridge, seq16 = self._quoted(error)
            if bridge is None:
                continue
            loop.owner = bridge
            bridge.connection.handle_icmp(
                error.errno,
                quoted_seq16=seq16,
                mtu_bytes=error.mtu_bytes,
                datagram_bytes=error.datagram_bytes,
                now=now,
            )
            loop.mark_dirty(bridge)
            loop.owner = owner

    def _quoted(self, error: IcmpError) -> tuple[Bridge | None, int | None]:
        packet = decode(memoryview(error.quoted[:20]).toreadonly()) if len(error.quoted) >= 20 else None
        if packet is None:
            if self.is_private and self.bridges:
                return next(iter(self.bridges.values())), None
            return None, None
        if error.addr is None:
            return None, None
        candidates = (packet.connection_id - 1, packet.connection_id + 1, packet.connection_id)
        for recv_id in candidates:
            bridge = self.bridges.get((error.addr, recv_id & 0xFFFF))
            if bridge is None:
                continue
            sent_id = bridge.connection.recv_id if packet.type == SYN else bridge.connection.send_id
            if sent_id == packet.connection_id:
                return bridge, packet.seq16
        return None, None

    # ── to the network ──

    def transmit(self, bridge: Bridge, *, now: int) -> None:
        """Send all packets of a connection that may leave now, in as few system calls as possible.

        While the port is blocked (port.pending) nothing is sent.

        Parameters:
            bridge: a connection of this port.
            now: µs.
        Raises: nothing for what the network does: a failed send is an error that the connection gets (handle_errors()).
        Next: the connection's timeout_at().
        Source: docs/design.md §3, §4; docs/performance.md §2.
        """
        port, connection, source, loop = self.port, bridge.connection, bridge.source, self.loop
        send, grant_queue = connection.send, bridge.grant_queue
        assert grant_queue is None or isinstance(grant_queue, GrantQueue)  # the compiled build looks no name up
        if grant_queue is not None and not grant_queue.is_ordered:
            # It may have been stopped when there were more connections, without anything to send, and so is not queued
            # for a grant that would let it go on.
            grant_queue, send.awaits_grant = None, False
        max_segments = loop.max_segments if grant_queue is None else 1  # of what is to be sent again, as packets()
        sent_offset = send.sent_offset
        while not port.pending:
            if grant_queue is not None and send.sent_offset != send.buffer.end_offset:
                max_segments = min(grant_queue.packets(bridge), loop.max_segments)
                if send.awaits_grant and send.unsent_bytes and send.sent_offset != sent_offset:
                    break  # what needs no grant has left, and new data must wait
            transmit = connection.poll_transmit(now=now, max_segments=max_segments)
            if transmit is None:
                break
            port.send(transmit, source)
            if transmit.count > 1:
                sent_bytes = transmit.count * transmit.datagram_bytes
                turns = loop.turns
                turns.left_bytes -= sent_bytes
                if sent_bytes >= BULK_BYTES:
                    turns.on_bulk(bridge, now=now, waiting=0 if grant_queue is None else len(grant_queue.waiting))
                    if turns.left_bytes <= 0 and not transmit.is_last and send.has_room:
                        turns.dirty[bridge] = None
                        break
            if transmit.is_last:
                break
        if port.errors:
            self.handle_errors(now=now)

    def receive_for(self, bridge: Bridge, *, now: int) -> None:
        """Receive what has come by now, for a command that must know it.

        Parameters:
            bridge: the connection that the command is about.
            now: µs.
        Raises: nothing for what the network sends.
        Source: docs/sockets.md §3.
        """
        for _ in range(_MAX_RECEIVES):  # each may leave off after the first small datagram
            self.receive(now=now)
            if not polls(self.port.sock, EPOLLIN):
                break
        if self.reuseport_sockets is not None:
            self.reuseport_sockets.receive(bridge.connection.addr)

    def end_time_waits(self) -> None:
        """Too many private ports are in TIME_WAIT: end this one's.

        Raises: nothing.
        Source: docs/protocol.md §12; engine/ports/time_wait.py.
        """
        for bridge in list(self.bridges.values()):
            if bridge.connection.state is TIME_WAIT:
                bridge.connection.end_time_wait(now=self.loop.now)
                self.loop.mark_dirty(bridge)

"""The engine's thread: epoll, timers, and the queue of commands from other threads.

Everything is done for an owner, and an exception ends that owner only: faults.py has the rule.

One iteration, always in this order (docs/design.md §2): read the clock once · commands of other threads, as many as
there are · UDP ports that are readable, a bounded amount each · bridges that are readable · timers that are due · every
dirty connection: deliver, transmit until None, read its next deadline · hand over incoming connections · sleep until
the earliest deadline. In each of these steps bulk comes last, and does no more than its turn allows (turns.py). It
follows from the order that one ack covers a batch of packets, and that a connect() becomes visible together with the
accept() that belongs to it.

Everything here is called by the engine's thread alone, except what says that any thread may call it.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

from utpsocket.engine import environment, fault_reports, outside
from utpsocket.engine.channels.race import SilentDestinations
from utpsocket.engine.channels.receive_buffer import FIRST_WINDOW_BYTES
from utpsocket.engine.channels.utp import BRIDGE_EVENTS, GATED_EVENTS, Bridge
from utpsocket.engine.command_queue import FROM_OUTSIDE, Answer, Command
from utpsocket.engine.ended_totals import Totals
from utpsocket.engine.faults import Containment, retry_call
from utpsocket.engine.fd_owners import fd_owners, listeners
from utpsocket.engine.interpreter import garbage_collector, switch_interval
from utpsocket.engine.interpreter.fork_lock import ForkLock
from utpsocket.engine.interpreter.native import allocate_lock, get_ident, sleep, start_thread
from utpsocket.engine.interpreter.originals import os, time
from utpsocket.engine.interpreter.signal_errors import or_none
from utpsocket.engine.kernel import capture, netns
from utpsocket.engine.kernel.arena import Arena
from utpsocket.engine.kernel.high_fds import move_to_high_fd
from utpsocket.engine.kernel.poller import (
    EPOLLERR,
    EPOLLET,
    EPOLLIN,
    EPOLLOUT,
    PORT_EVENTS,
    WakeUp,
    Watches,
    new_poller,
    new_sleep,
    occupy,
)
from utpsocket.engine.kernel.udp import WANTED_BUFFER_BYTES, Port
from utpsocket.engine.ports import unread_syns
from utpsocket.engine.ports.accept_queue import AcceptQueue
from utpsocket.engine.ports.bound_ports import BoundPorts
from utpsocket.engine.ports.endpoint import BY_ENGINE, Endpoint
from utpsocket.engine.ports.idle_sockets import IdleSockets
from utpsocket.engine.ports.listener import Listener
from utpsocket.engine.ports.path_cache import PathCache
from utpsocket.engine.ports.receive_shares import MAX_WINDOW_BYTES
from utpsocket.engine.ports.send_grants import GrantQueue, SendGrants
from utpsocket.engine.ports.time_wait import TimeWaits
from utpsocket.engine.steps import Work
from utpsocket.engine.turns import IDLE_ONLY_US, TURN_BYTES, UNLIMITED_BYTES, YIELD_SECONDS, Turns
from utpsocket.engine.user_fds import shared_errnos
from utpsocket.engine.user_fds.open_fds import HoldersWatch
from utpsocket.engine.user_fds.socket_state import Identity
from utpsocket.engine.user_fds.unaccepted import ResetUnaccepted
from utpsocket.protocol import Workspace
from utpsocket.protocol.congestion import DEFAULT_CONTROLLER
from utpsocket.protocol.runs import MAX_RUN_PACKETS
from utpsocket.protocol.states import CLOSED, SYN_RECEIVED, TIME_WAIT
from utpsocket.protocol.times import NEVER

if TYPE_CHECKING:
    from collections import deque

    from utpsocket.engine.channels.channel import Channel
    from utpsocket.engine.channels.utp import BridgePort
    from utpsocket.engine.interpreter.native import Socket
    from utpsocket.engine.reactor import Watcher
    from utpsocket.protocol import Address


_P = ParamSpec("_P")
_T = TypeVar("_T")
# How long check_fds() waits for the thread to be asleep, where it uses no fd number: a second in all, by feel.
_SLEEP_CHECKS: Final = 2_000
_SLEEP_CHECK_SECONDS: Final = 0.000_5

# What waits for nothing but the end of TIME_WAIT ends together with others, in one iteration; by feel.
_ENDS_EVERY_US: Final = 50_000
_monotonic_ns: Final = time.monotonic_ns


class Loop(Work):
    """One engine: the thread, its ports and its channels. It is the Reactor that channels and ports are given.

    start() once; then post(), call() and the like, from any thread; stop() ends it. utpsocket.engine.engine() makes it.
    """

    def __init__(self) -> None:
        epoll = new_poller()
        wake_up = WakeUp()
        Work.__init__(self, epoll, wake_up)

        # The process that the engine runs in, and the one whose sockets it serves (another, in helper/client.py).
        self.pid = self.caller_pid = os.getpid()
        # Cookie of the thread's network namespace; sockets of others are reached beside them (kernel/netns.py).
        self.namespace = 0

        # What the environment sets (docs/guide/tuning.md).
        capture.begin()
        self.max_datagram_bytes = environment.value("UTPSOCKET_MAX_MTU", 0)  # 0: no limit but the path's
        self.congestion = environment.value("UTPSOCKET_CONGESTION", DEFAULT_CONTROLLER)  # of sockets with none set
        # Of sockets without UTP_TARGET_DELAY, µs; 0: the congestion controller's own.
        self.target_delay_us = round(environment.value("UTPSOCKET_TARGET_DELAY", 0.0) * 1_000_000)
        # What the window, and the send buffer, of a connection may grow to.
        self.max_window_bytes = max(FIRST_WINDOW_BYTES, environment.value("UTPSOCKET_MAX_WINDOW", MAX_WINDOW_BYTES))
        self.udp_buffer_bytes = environment.value("UTPSOCKET_UDP_BUFFER", WANTED_BUFFER_BYTES)  # of each UDP socket
        self.offload = environment.value("UTPSOCKET_OFFLOAD", True)  # many datagrams in one call: UDP GSO and GRO

        # What it serves.
        self.endpoints: dict[int, Endpoint] = {}  # ports by key
        self.channels: dict[int, Channel] = {}  # by cookie: what carries each socket's bytes
        self.bound = BoundPorts()  # by number: the ports that users have bound
        self._last_opened: Endpoint | None = None  # the port that a command in progress has opened
        self._reset_unaccepted = ResetUnaccepted()  # identities of connections that were reset in an accept queue
        # Random, so that a key of an earlier engine does not fit a port of this one.
        self._keys = count(int.from_bytes(os.urandom(6), "big") + 1)

        # What connections share.
        self.workspace = Workspace()  # memory that packets are composed in
        self.arena = Arena()  # memory that datagrams are received into; emptied at the end of each iteration
        self.max_segments = MAX_RUN_PACKETS  # packets for one system call
        self.send_grants = SendGrants()  # order among many connections to one peer
        self.paths = PathCache()  # datagram sizes known to reach a peer
        self.silent_destinations = SilentDestinations()  # where uTP had no answer and TCP had
        self.idle_sockets = IdleSockets(self)  # UDP sockets for the next connects
        self._time_waits = TimeWaits(self)  # ports that wait for a late FIN

        # Figures (statistics.py), of the engine's whole life.
        self.initiated = self.accepted = 0  # connections over uTP
        self.tcp_initiated = self.tcp_accepted = 0  # over TCP
        self.wakeups = 0  # iterations
        self.faults = 0  # exceptions that were contained
        self.totals = Totals()  # bytes and packets of connections that are over

        # Users' fds in other processes.
        shared_errnos.begin(self.pid)
        self.fd_lock = ForkLock()  # held while fds are made that a fork must not copy half made
        self.holders_watch = HoldersWatch()  # finds out whether any process has a socket open
        self.recheck_holders: Callable[[Loop], None] = lambda _: None  # does so; commands.watch_holder() sets it

        # epoll, and how other threads interrupt it.
        self._collector_pause = garbage_collector.CollectorPause()  # none on this thread while it works
        self._epoll = epoll  # or what replaces it
        self._sleep = new_sleep(epoll, self._collector_pause)  # waits for its events
        self._wake_fd = wake_up.fd  # its number
        self._wake_file = os.fstat(self._wake_fd)  # to find out whether the program has closed it: check_fds()
        # What epoll reports then. Any: as two ints the compiled build would make a tuple of them for each comparison.
        self._wake_event: Any = EPOLLIN, self._wake_fd
        self._epoll.register(self._wake_fd, EPOLLIN)
        watches: Watches[Watcher | Endpoint] = Watches(self._epoll)
        self._watches = watches  # what on_event() is called of
        # The same by fd: Endpoint, Bridge, or whatever has on_event().
        self._by_fd: dict[int, Watcher | Endpoint] = watches.by_fd
        # See Reactor.
        self.watch, self.rewatch, self.forget_fd = watches.watch, watches.rewatch, watches.forget_fd
        self.frees_ports_at_once = watches.is_for_any_thread  # poll() holds the files it sleeps on until it wakes up

        # Does one iteration. A measurement may put its own steps here (compat/bench/meter.py).
        self.iteration: Callable[[], None] = self._iterate

        # The work in progress.
        self.command: Command | None = None  # the command that is carried out: an exception is its answer
        self._containment = Containment()  # ends owners, and counts exceptions in a row
        self._fault: BaseException | None = None  # an exception that is not contained yet

        self.turns = Turns(self)  # what has a lot to move, and how much of it in one iteration

        # The thread's life.
        self._thread_id = 0
        self._starting = allocate_lock()  # locked once a thread has begun: a second one ends at once
        self.is_begun = False  # start() has returned
        self.is_alive = True  # False once the thread ends: then nothing is answered any more
        self._is_stopping = False  # the thread ends after this iteration
        self._is_asleep = False  # in the poller, or over: the thread uses no fd number
        self._has_ended = allocate_lock()  # unlocked when the thread ends
        self._has_ended.acquire()
        # Under "": the engine that took this one's place, a Loop or what helper/client.py has instead.
        self.successor: dict[str, Any] = {}

    def start(self) -> None:
        """Start the thread, unless there is one. Any thread, and again after an exception has interrupted it.

        Raises RuntimeError if the interpreter cannot start a thread.
        """
        if not self.has_started:
            try:
                self.namespace = netns.cookie_here()  # the thread's
                if environment.value("UTPSOCKET_STAT", False):
                    outside.allow()
                self._collector_pause.begin()
                start_thread(self._run, b"utpsocket")
                self.is_begun = True
            except BaseException:
                if not self._starting.locked():
                    self._collector_pause.end()
                raise

    @property
    def has_started(self) -> bool:
        """Whether there is, or was, a thread that answers. Any thread."""
        return self.is_begun or self._starting.locked()

    def discard(self) -> None:
        """Close the fds of an engine that was never started."""
        self._close_fds()

    # ── commands of other threads ──

    def post(self, command: Callable[..., object], *arguments: object) -> None:
        """Have the engine's thread carry out a command soon, without waiting for it. Any thread.

        command     a function of commands.py; called with the loop and the arguments
        arguments   sockets among them belong to the engine from now on: it closes them if the command fails
        """
        self._inbox.put(Command(self, command, arguments, {}, None))

    def post_without_waking(self, command: Callable[..., object], *arguments: object) -> None:
        """As post(), but the thread is not woken: it carries the command out when it next wakes up. Any thread."""
        self._inbox.put_without_waking(Command(self, command, arguments, {}, None))

    def call(self, command: Callable[Concatenate[Loop, _P], _T], *arguments: _P.args, **named: _P.kwargs) -> _T:
        """Have the engine's thread carry out a command, and wait for it. Any other thread.

        Returns what the command returns. Raises its OSError; ECONNABORTED if the engine ends first; the OSError that an
        exception of the engine's own amounts to (faults.to_os_error()); RuntimeError if the interpreter is ending.
        """
        if sys.is_finalizing():
            raise RuntimeError("the interpreter is ending, and the engine's thread with it")
        if get_ident() == self._thread_id:
            # The caller is an audit hook, the only code of the program's on this thread, which cannot wait for itself.
            self.post(lambda loop: command(loop, *arguments, **named))
            return None  # type: ignore[return-value]
        answer: Answer[_T] = Answer()
        self._inbox.put(Command(self, command, arguments, named, answer))
        return answer.wait()

    def perform(self, command: Callable[Concatenate[Loop, _P], _T], *arguments: _P.args, **named: _P.kwargs) -> _T:
        """Carry out a command about ports on the calling thread, which so does not wait for the engine's. Any thread.

        Only commands that say so: they use single operations of dicts and leave the rest to run_or_post().
        """
        return command(self, *arguments, **named)

    def perform_or_post(self, command: Callable[..., object], *arguments: object) -> None:
        """As perform(), where the result is not needed: an engine in another process is then not waited for
        (helper/client.py). Any thread.
        """
        command(self, *arguments)

    def run_or_post(self, command: Callable[..., object], *arguments: object) -> None:
        """As post(); the engine's own thread does it at once. Any thread."""
        if get_ident() == self._thread_id:
            command(self, *arguments)
        else:
            self.post(command, *arguments)

    # ── the thread ──

    def _run(self) -> None:
        if not self._starting.acquire(False):
            return  # another call of start() has done it
        self._thread_id = get_ident()
        try:
            self._collector_pause.enter()
            while not self._is_stopping:
                try:
                    self._run_iterations()
                except BaseException as error:
                    self._fault = error  # and nothing more: here, whatever fails ends the thread
        finally:
            self._end()

    def _run_iterations(self) -> None:
        while not self._is_stopping:
            if self._fault is not None:
                self._contain(self._fault)
            else:
                self.iteration()

    def _contain(self, error: BaseException) -> None:
        """An exception came out of the last iteration: its owner ends (faults.py). Called again if it fails itself."""
        if self._fds_lost or not self.check_fds():
            return
        self._containment.begin()
        self.faults += 1
        fault_reports.report(error)
        if not self._containment.end_owners({self.owner, self.command}, error):
            self._is_stopping = True  # _end() ends every socket with an errno
            return
        lost = self._watches.rearm_all()
        self._forget_readiness()
        for watcher in lost:
            retry_call(watcher.end if isinstance(watcher, Endpoint) else watcher.fail, error)
        self.owner = self.command = self._fault = None
        self._containment.end()

    def _forget_readiness(self) -> None:
        """After an exception: events may have been lost, and lists may have been processed half way. So every fd counts
        as ready, and every connection, port and listener is worked on in the next iteration.
        """
        self._deferred_delivery = []
        self.timers.clear()
        for channel in list(self.channels.values()):
            channel.forget_readiness()
        for endpoint in list(self.endpoints.values()):
            self._readable_endpoints[endpoint] = None
            if endpoint.port.pending:
                self._blocked[endpoint] = None
            if endpoint.listener is not None and not endpoint.listener.is_closed:
                self._listeners[endpoint.listener] = self.now
        for endpoint in [each for each in list(self.endpoints.values()) if each.is_unused]:
            self.close_endpoint(endpoint)

    def check_fds(self) -> bool:
        """Whether the engine's fds are still its own: False if the program has closed all that it did not know, as
        daemons do with os.closerange(). Any thread.

        The thread then uses no fd any more, since the numbers may be reused, and the engine ends.
        """
        if self._watches.has(self._wake_fd, EPOLLIN):
            return True
        found = or_none(os.fstat, self._wake_fd)
        if found is not None and (found.st_dev, found.st_ino) == (self._wake_file.st_dev, self._wake_file.st_ino):
            return True
        self._is_stopping = True
        self._fds_lost = True
        self._detach_fds()
        if get_ident() != self._thread_id:
            for _ in range(_SLEEP_CHECKS):  # the next engine's fds may get the same numbers
                if self._is_asleep:
                    break
                sleep(_SLEEP_CHECK_SECONDS)
            occupy(self._epoll)
        self.is_alive = False
        return False

    def _iterate(self) -> None:
        self.owner = None
        events = self._wait()
        if not self._fds_lost:
            if switch_interval.requesters:
                switch_interval.run_with_short_interval(self._work, events)
            else:
                self._work(events)
            self._containment.in_row = 0

    def _work(self, events: list[tuple[int, int]]) -> None:  # noqa: C901  # its parts would be calls
        self.now = now = _monotonic_ns() // 1_000
        self.wakeups += 1
        by_fd = self._by_fd
        queue = self._inbox.commands
        if queue or len(events) > 1:
            by_fd = {}
            for _, fd in events:  # before one is closed and its number is used again
                if fd in self._by_fd:
                    by_fd[fd] = self._by_fd[fd]
            if queue:
                self._carry_out(queue)
        for mask, fd in events:
            source = by_fd.get(fd)
            self.owner = source
            if type(source) is Endpoint:
                if mask & (EPOLLIN | EPOLLERR):
                    self._readable_endpoints[source] = None
                if mask & (EPOLLERR | EPOLLOUT):
                    self._on_port_event(source, mask, now)
            elif type(source) is Bridge:
                source.on_event(mask)
                if source.is_readable and not source.is_gated:
                    self._readable_bridges[source] = None
                if mask & EPOLLOUT or source.engine_sock is None:
                    self._dirty[source] = None
            elif source is not None:
                source.on_event(mask)
        if self._readable_endpoints:
            self._read_ports(now)
        if self._readable_bridges:
            self._read_bridges(now)
        if self.turns.endpoints or self.turns.readable or self.turns.idle_only:
            self._read_bulk(now, is_idle=not events)
        if self._blocked:
            self._flush_ports()
        if self.timers.next_at <= now or self.rechecks.at is not None:
            self._fire_timers(now)
        self.owner = None
        self._flush_dirty(now)
        if self.idle_sockets.wanted and not self.turns.dirty:
            self.idle_sockets.make_wanted()

    def _carry_out(self, queue: deque[Command]) -> None:
        """As many commands as there are now."""
        for _ in range(len(queue)):
            self.command = queue[0]  # before it is taken out: from here on an exception is its answer
            queue.popleft()
            self.carry_out()

    def carry_out(self) -> None:
        """Carry out self.command. It is answered also if something fails meanwhile, for this owner or another."""
        self.owner = command = self.command
        assert command is not None
        command.carry_out()
        self.command = None

    def _wait(self) -> list[tuple[int, int]]:
        turns = self.turns
        at = self.work_at()
        if turns.has_delivered:
            turns.has_delivered = turns.is_yielding = False
            if not at:
                sleep(YIELD_SECONDS)
        self._is_asleep = True
        if self._fds_lost:  # read after the line above: check_fds() may have seen _is_asleep and closed the fds
            return []
        self.on_sleep(at)
        try:
            events = self._sleep.wait(at)
        finally:
            self.on_awake()
        self._is_asleep = False
        if self._wake_event in events:
            events.remove(self._wake_event)
            number = self._wake_up.reset()
            if number:
                for answer in FROM_OUTSIDE:
                    self._inbox.commands.append(Command(self, answer, (number,), {}, None))
        return events

    def serve(self, bridge: Bridge) -> None:
        """Deliver and send, as step 6 of an iteration. After begin_step()."""
        self.owner = bridge
        self._dirty[bridge] = None
        self._flush_dirty(self.now)

    def _read_ports(self, now: int) -> None:
        endpoints, self._readable_endpoints = self._readable_endpoints, {}
        for endpoint in endpoints:
            if endpoint.is_closed or endpoint.is_address_freed:
                continue
            if endpoint.bulk_until > now:
                self.turns.endpoints[endpoint] = None
                continue
            self.owner = endpoint  # as receive_from()
            endpoint.is_readable = True
            endpoint.receive(now=now)
            if endpoint.is_readable:
                self._readable_endpoints[endpoint] = None

    def receive_from(self, endpoint: Endpoint, now: int) -> None:
        """See turns.Engine."""
        self.owner = endpoint
        endpoint.is_readable = True
        endpoint.receive(now=now)
        if endpoint.is_readable:
            self._readable_endpoints[endpoint] = None
        endpoint.note_backlog(now=now)

    def _read_bridges(self, now: int) -> None:
        bridges, self._readable_bridges = self._readable_bridges, {}
        for bridge in bridges:
            if bridge.bulk_until > now:
                self.turns.readable[bridge] = None
                continue
            self.owner = bridge  # as read_from()
            bridge.is_idle_only = False
            bridge.read_user(now=now, is_due=False)
            self._dirty[bridge] = None
            if bridge.is_idle_only:
                self.turns.idle_only.setdefault(bridge, now + IDLE_ONLY_US)
            elif bridge.is_readable and bridge.wants_read:
                self._readable_bridges[bridge] = None

    def read_from(self, bridge: Bridge, now: int, *, is_due: bool) -> None:
        """See turns.Engine."""
        self.owner = bridge
        bridge.is_idle_only = False
        bridge.read_user(now=now, is_due=is_due)
        self._dirty[bridge] = None
        if bridge.is_idle_only:
            self.turns.idle_only.setdefault(bridge, now + IDLE_ONLY_US)
        elif bridge.is_readable and bridge.wants_read:
            self._readable_bridges[bridge] = None

    def _read_bulk(self, now: int, *, is_idle: bool) -> None:
        """What is small has been received and read: it is delivered and sent before bulk is received and read."""
        if self._dirty:
            self._flush_small(now)
        self.turns.receive_and_read(now=now, is_idle=is_idle)

    def _fire_timers(self, now: int) -> None:
        for bridge in self.timers.due(now):
            self.owner = bridge
            bridge.connection.handle_timeout(now=now)
            self._dirty[bridge] = None
        if self.timers.next_call_at <= now:
            while (due_call := self.timers.due_call(now)) is not None:
                call, self.owner = due_call
                call()
        if self.rechecks.at is not None:
            self.owner = None
            self.recheck_holders(self)

    def _flush_dirty(self, now: int) -> None:
        """Every dirty connection delivers and sends, bulk last and no more than its turn allows (turns.py); then
        accepted connections are handed over and connects complete, both sides of a connection without a release of the
        GIL in between.
        """
        turns = self.turns
        is_shared = turns.small_until > now and turns.bulk_until > now and len(self.channels) > 1
        turns.left_bytes = TURN_BYTES if is_shared else UNLIMITED_BYTES
        while True:
            while self._dirty:
                if turns.bulk_until > now:
                    self._flush_small(now)
                dirty, self._dirty = self._dirty, {}
                for bridge in dirty:
                    if not (bridge.is_gone or (is_shared and bridge.bulk_until > now and turns.put_off(bridge))):
                        self.owner = bridge
                        self._flush_channel(bridge, now)
                self.owner = None
            if turns.dirty and not turns.is_yielding:
                turns.send(now=now)
                self.owner = None
            if self._listeners or self.connect_gate.held:
                self._hand_over_due(now)
            if not self._dirty:
                if self._deferred_delivery:
                    self._deliver_deferred(now)
                if not self._dirty:
                    break
        turns.left_bytes = UNLIMITED_BYTES
        if self.arena.used:
            self.arena.reset()

    def _flush_small(self, now: int) -> None:
        """Dirty connections that are not bulk deliver and send, before others are read from."""
        for bridge in self.turns.small_of(self._dirty, now=now):
            self._dirty.pop(bridge, None)
            if not bridge.is_gone:
                self.owner = bridge
                self._flush_channel(bridge, now)
        if self._deferred_delivery:
            self._deliver_deferred(now)

    def flush(self, bridge: Bridge, now: int) -> None:
        """See turns.Engine."""
        self.owner = bridge
        self._flush_channel(bridge, now)

    def _hand_over_due(self, now: int) -> None:
        due = [one for one, when in self._listeners.items() if when <= now or one.may_retry(now=now)]
        if due:
            with self.fd_lock:
                for listener in due:
                    self.owner = listener
                    again_at = listener.prepare(now=now)
                    self._listeners.pop(listener, None)
                    if again_at is not None:
                        self._listeners[listener] = again_at
            for listener in due:
                self.owner = listener
                self._hand_over(listener, now)
        if self.connect_gate.held:
            self.connect_gate.open_due(self.bound, self, now=now)
        for listener in due:
            listener.watch_handed_over()

    def _deliver_deferred(self, now: int) -> None:
        """Deliver what needs no ack now, last: the program's thread waits for the GIL as soon as it has its bytes, and
        the engine releases it right after this, when it sleeps.
        """
        deferred, self._deferred_delivery = self._deferred_delivery, []
        if self.turns.bulk_until > now and self.pid == self.caller_pid:
            self.turns.has_delivered = True
        for bridge in deferred:
            if bridge.is_gone:
                continue
            self.owner = bridge
            bridge.deliver(now=now)
            if bridge.connection.receive.ack_at <= now:
                self._dirty[bridge] = None

    def _flush_channel(self, bridge: Bridge, now: int) -> None:  # noqa: C901  # each of its parts would be one call more
        connection = bridge.connection
        if bridge.syn_received_at and connection.state is not SYN_RECEIVED:
            self._on_handshake_end(bridge, now)
        if connection.events:
            bridge.handle_events()
        receive = connection.receive
        reassembly = receive.reassembly
        is_delivered = bridge.is_handed_over and bridge.engine_sock is None and not reassembly.ready_bytes
        if is_delivered:  # the program's fd is closed
            pass
        elif reassembly.ready_bytes and not reassembly.is_fin_reached and receive.ack_at > now:
            self._deferred_delivery.append(bridge)
        elif reassembly.ready_bytes or reassembly.is_fin_reached or bridge.close_errno is not None:
            bridge.deliver(now=now)
            is_delivered = True
        if bridge.is_readable and not (bridge.is_idle_only or bridge.is_gated) and bridge.wants_read:
            self._readable_bridges[bridge] = None
        endpoint = bridge.endpoint
        assert type(endpoint) is Endpoint  # so the compiled build calls it without looking it up
        endpoint.transmit(bridge, now=now)
        if bridge.is_idle_only and not bridge.has_enough_unsent:
            bridge.is_idle_only = False
            self.turns.idle_only.pop(bridge, None)
            self._readable_bridges[bridge] = None
        grant_queue = bridge.grant_queue
        assert grant_queue is None or isinstance(grant_queue, GrantQueue)  # as above
        if grant_queue is not None and (grant_queue.is_ordered or grant_queue.waiting):
            for granted in grant_queue.after_transmit(bridge):
                self._dirty[granted] = None
        if endpoint.port.pending and endpoint not in self._blocked:
            self._blocked[endpoint] = None
            # Only while blocked: otherwise every datagram that has left would wake us. EPOLLET: after ENOBUFS, which
            # comes from elsewhere than the socket's buffer, the socket is writable all the time.
            self.rewatch(endpoint.port.fd, PORT_EVENTS | EPOLLOUT | EPOLLET)
        if connection.events:
            bridge.handle_events()
            is_delivered = False
        if bridge.close_errno is not None and not is_delivered:
            bridge.deliver(now=now)
        if bridge.flush_waiters and bridge.is_flushed:
            bridge.release_waiters()
        at, deadline = connection.next_timeout_at(), bridge.deadline
        if connection.state in (TIME_WAIT, CLOSED):
            if self._end_channel(bridge):
                return
            if at != NEVER and at != receive.ack_at:
                at = -(-at // _ENDS_EVERY_US) * _ENDS_EVERY_US
        if at >= deadline.queued_at:
            deadline.at = at  # as schedule() would: nearly always it is later than the one before
        else:
            self.timers.schedule(bridge, at, now)

    def _end_channel(self, bridge: Bridge) -> bool:
        """Both FINs are acked, or the connection is closed. Returns whether nothing of it is left."""
        connection = bridge.connection
        if bridge.engine_sock is None and connection.state is CLOSED and connection.is_over:
            bridge.is_gone = True
            self.totals.add(connection)
            bridge.remove()
            return True
        if connection.state is TIME_WAIT:
            if bridge.engine_sock is None:
                bridge.identity.is_over = True
            self._time_waits.on_time_wait(bridge)
        return False

    def _on_handshake_end(self, bridge: Bridge, now: int) -> None:
        """The initiator of a half-open connection is verified, or the connection has ended."""
        bridge.syn_received_at = 0
        acceptors = self.endpoints.get(bridge.endpoint.key)
        listener = None if acceptors is None else acceptors.listener
        if listener is not None:
            listener.on_handshake_end(bridge)
            self._listeners[listener] = now

    def _hand_over(self, listener: Listener, now: int) -> None:
        again_at = listener.hand_over(now=now)
        if again_at is not None:
            at = self._listeners.get(listener)
            self._listeners[listener] = again_at if at is None else min(at, again_at)
        if listener.is_closed:
            listener.end()
            listener.endpoint.close_if_unused()

    def _on_port_event(self, endpoint: Endpoint, mask: int, now: int) -> None:
        """epoll reports that a port has errors to be read (EPOLLERR), or may send again (EPOLLOUT)."""
        if mask & EPOLLERR:
            endpoint.port.read_errors()
            endpoint.handle_errors(now=now)
        if mask & EPOLLOUT:
            self._flush_port(endpoint)

    def _flush_ports(self) -> None:
        for endpoint in list(self._blocked):
            self.owner = endpoint
            self._flush_port(endpoint)

    def _flush_port(self, endpoint: BridgePort) -> None:
        if endpoint.port.is_blocked and endpoint.port.flush():
            if endpoint in self._blocked:
                del self._blocked[endpoint]
                self.rewatch(endpoint.port.fd, PORT_EVENTS)
            for bridge in endpoint.bridges.values():
                self._dirty[bridge] = None

    # ── for channels and ports: see Reactor and the Engine protocols beside them ──

    def flush_now(self, bridge: Bridge) -> None:
        """Deliver and send what a command has caused, before the command is answered."""
        if not bridge.is_gone:
            before, self.owner = self.owner, bridge
            self._flush_channel(bridge, self.now)
            if self._deferred_delivery:
                self._deliver_deferred(self.now)
            self.owner = before

    def watch_bridge(self, bridge: Bridge) -> None:
        """The bridge has got the engine's end of its pair: register it with epoll."""
        self.watch(bridge.engine_fd, GATED_EVENTS if bridge.is_gated else BRIDGE_EVENTS, bridge)
        if not bridge.is_gated:
            bridge.is_readable = False  # epoll reports what is there already
        if bridge.is_gated or bridge.connection.has_arrivals:
            self._dirty[bridge] = None

    def watch_room(self, bridge: Bridge, *, wanted: bool) -> None:
        """Whether epoll is to report when the pair has room again (EPOLLOUT). Only while the bridge waits for it:
        otherwise every recv() of the program would wake the engine.
        """
        self.rewatch(bridge.engine_fd, BRIDGE_EVENTS | EPOLLOUT if wanted else BRIDGE_EVENTS)

    def forget(self, channel: Channel) -> None:
        """The channel is over: take it out of `channels`. Idempotent."""
        self._reset_unaccepted.remember(channel.identity.cookie, channel.identity)
        if self.channels.get(channel.cookie) is channel:
            del self.channels[channel.cookie]

    def open_endpoint(
        self, sock: Socket, *, is_private: bool, connected: tuple[Address, Address, int] | None = None
    ) -> Endpoint:
        """Make a port of a UDP socket, bound or connected, and receive from it. Raises OSError.

        is_private   it is for one connection of a socket that was not bound
        connected    its address, its peer's and its network namespace, if they are known and it does not block
        """
        endpoint = self._last_opened = self.new_endpoint(sock, is_private=is_private, connected=connected)
        self.publish(endpoint)
        self.watch(endpoint.port.fd, PORT_EVENTS, endpoint)
        return endpoint

    def new_endpoint(
        self,
        sock: Socket,
        *,
        is_private: bool,
        key: int = 0,
        bound: tuple[Address, int] | None = None,
        connected: tuple[Address, Address, int] | None = None,
    ) -> Endpoint:
        """Make a port of a UDP socket. Next: publish(), then watch_port(). Any thread. Raises OSError.

        key         to be known by; 0: a new one
        bound       its address and network namespace, if they are known; they need not be asked for then
        connected   see open_endpoint()
        """
        moved = move_to_high_fd(sock)
        try:
            port = Port(
                moved, offload=self.offload, buffer_bytes=self.udp_buffer_bytes, bound=bound, connected=connected
            )
            endpoint = Endpoint(self, key or next(self._keys), port, is_private=is_private)
        except BaseException:
            moved.close()
            raise
        return endpoint

    def publish(self, endpoint: Endpoint) -> None:
        """Enter the port in the tables, by its key and, if a user has bound it, by its number. Any thread."""
        self.endpoints[endpoint.key] = endpoint
        if not endpoint.is_private:
            self.bound.add(endpoint)

    def watch_port(self, endpoint: Endpoint) -> None:
        """Receive from the port. Any thread."""
        self.watch_from_anywhere(endpoint.port.fd, PORT_EVENTS, endpoint)

    def watch_from_anywhere(self, fd: int, events: int, watcher: Watcher | Endpoint) -> None:
        """As watch(), of an fd that is not watched yet. Any thread; raises ECONNABORTED if the engine has ended."""
        if self._watches.is_for_any_thread or get_ident() == self._thread_id:
            try:
                self.watch(fd, events, watcher, self._watches.plain)
            except ValueError:
                raise OSError(errno.ECONNABORTED, "the engine has ended") from None
        else:
            self.post(lambda loop: loop.watch(fd, events, watcher))

    def free_address(self, endpoint: Endpoint) -> bool:
        """See BoundPorts.free_address(). Any thread."""
        return self.frees_ports_at_once and self.bound.free_address(endpoint)

    def close_opened(self) -> None:
        """A command has failed half way: close the port that it opened, if it did and it is unused."""
        opened, self._last_opened = self._last_opened, None
        if opened is not None and opened.is_unused:
            self.close_endpoint(opened)

    def close_endpoint(self, endpoint: Endpoint) -> None:
        """Close a port, unless another thread has claimed that."""
        if not endpoint.is_closed and endpoint.claim_closing(BY_ENGINE):
            self.close_claimed(endpoint)

    def close_claimed(self, endpoint: Endpoint) -> None:
        """Close a port whose closing is claimed."""
        self._readable_endpoints.pop(endpoint, None)
        self.turns.endpoints.pop(endpoint, None)
        self._time_waits.discard(endpoint)
        self._blocked.pop(endpoint, None)
        self.forget_fd(endpoint.port.sock.fileno())
        is_kept = endpoint.has_ended_in_order and self.idle_sockets.may_keep(endpoint.port)
        if not is_kept:
            unread_syns.close_port(endpoint)
        if endpoint.reuseport_sockets is not None:
            endpoint.reuseport_sockets.close()
        self.bound.discard(endpoint)
        self.endpoints.pop(endpoint.key, None)
        endpoint.is_closed = True  # should any of this fail, it is all done again
        if is_kept:
            self.idle_sockets.put(endpoint.port)  # after that, since a connect() may take it at once

    # ── endings ──

    def stop(self) -> None:
        """End the thread and close everything it owns. Any other thread."""
        self._is_stopping = True
        self.post(lambda loop: None)
        self._has_ended.acquire()
        self._has_ended.release()

    def _end(self) -> None:
        """The end of the thread, whatever ended it: sockets that it served fail, and commands are answered."""
        self.is_alive = False
        if not self._fds_lost:
            ended = RuntimeError("the engine has ended")
            for listener in listeners(self.endpoints):
                retry_call(listener.fail, ended)
            for channel in list(self.channels.values()):
                if not channel.can_end_unnoticed:
                    retry_call(channel.fail, ended)
            retry_call(self._close_fds)
        self._is_asleep = True
        for last in (self.channels.clear, self.endpoints.clear, self._inbox.end, self._collector_pause.end):
            retry_call(last)
        self._has_ended.release()

    def _close_fds(self) -> None:
        for owner in (*fd_owners(self.channels, self.endpoints), self.idle_sockets):
            owner.close_fds()
        self._epoll.close()
        self.holders_watch.close()
        self._wake_up.close()

    def accept_queues(self) -> list[AcceptQueue]:
        """Those of all listeners."""
        return [listener.accept_queue for listener in listeners(self.endpoints)]

    def identity_of(self, cookie: int) -> Identity | None:
        """The identity with this cookie, if the engine serves it or has reset it before it was accepted. Any thread."""
        found = self.channels.get(cookie)
        return self._reset_unaccepted.pop(cookie, None) if found is None else found.identity

    def _detach_fds(self) -> None:
        """Forget every fd without closing it: they are closed."""
        for owner in (*fd_owners(self.channels, self.endpoints), self.idle_sockets):
            owner.detach_fds()

    def abandon_in_child(self) -> None:
        """After a fork, in the child: close our copies of the parent's fds and touch nothing else."""
        switch_interval.end()
        garbage_collector.end_in_child()
        self._close_fds()

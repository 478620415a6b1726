"""How much those connections that have a lot may do in one iteration.

A message must not wait until other connections have moved megabytes. So a connection or a port that has just moved
BULK_BYTES at once counts as bulk for BULK_US (its `bulk_until`), and longer if others' grants come before its next one
(ports/send_grants.py). In each step of an iteration bulk comes last. All of bulk together may move TURN_BYTES there, in
the order in which they have waited; the others' turn comes in the next iterations, before each of which the engine
looks for what has come meanwhile. Where nothing else was served for SMALL_US turns are longer (QUIET_TURN_BYTES).

    Example. Four connections have 700 kB each to send. The first sends 256 kB in this iteration, and comes last then.
    Meanwhile the program writes one byte on a fifth connection. In the next iteration that byte is read and sent, then
    256 kB of the second one.

A program's thread that has got a message needs the GIL, and an engine that goes from one iteration to the next without
sleeping gives it none: it takes the GIL again before the thread has woken up. So once a message was delivered beside
bulk, the iteration ends without bulk, and the engine sleeps for YIELD_SECONDS.

What is small may become bulk in the middle of an iteration: so a connection that was quiet may move as much as it has
before its turn is counted. Linux's fq schedules likewise: a flow that was empty comes before the others, each of which
may send a quantum in its turn (tc-fq(8), RFC 8290 §4.2).

Only the engine's thread calls.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from utpsocket.protocol.states import CONNECTED

if TYPE_CHECKING:
    from typing import Protocol

    from utpsocket.protocol import Connection

    class Port(Protocol):
        """A port (ports/endpoint.py)."""

        bulk_until: int
        """It counts as bulk until this time, µs."""

        @property
        def is_closed(self) -> bool: ...

        @property
        def is_address_freed(self) -> bool: ...

    class Channel(Protocol):
        """A connection (channels/utp.py)."""

        bulk_until: int
        """As a port's."""

        @property
        def connection(self) -> Connection: ...

        @property
        def close_errno(self) -> int | None: ...

        @property
        def is_gone(self) -> bool: ...


_P = TypeVar("_P", bound="Port")
_C = TypeVar("_C", bound="Channel")

if TYPE_CHECKING:
    _Served = TypeVar("_Served", bound=Port, contravariant=True)
    _Flushed = TypeVar("_Flushed", bound=Channel, contravariant=True)

    class Engine(Protocol[_Served, _Flushed]):
        """What serves them (loop.py)."""

        def receive_from(self, endpoint: _Served, now: int) -> None:
            """Receive what has come to a port."""

        def read_from(self, bridge: _Flushed, now: int, *, is_due: bool) -> None:
            """Read what a program has written."""

        def flush(self, bridge: _Flushed, now: int) -> None:
            """Deliver and send."""


# In one step of an iteration: what a connection reads and sends there if it is the only one (SendHalf.burst_bytes).
TURN_BYTES: Final = 256 << 10
# Where nothing small was served for SMALL_US so much is received and read, and sending has no bound: short iterations
# cost bulk more acks. Both by feel.
QUIET_TURN_BYTES: Final = 4 << 20
SMALL_US: Final = 200_000
# Received from the ports that carry bulk: so much for each that waits, if that is more. Each is reported again by every
# epoll_wait(2), which must cost little beside the work; by feel.
PORT_TURN_BYTES: Final = 16 << 10
UNLIMITED_BYTES: Final = 1 << 62
# In one call. By feel: more than most programs write as one message.
BULK_BYTES: Final = 32 << 10
# How long the engine lets go of the GIL then. A thread that was waiting for it needs some 20 µs to wake up, and the
# kernel makes at least 50 µs of this (prctl(2) PR_SET_TIMERSLACK).
YIELD_SECONDS: Final = 0.000_02
# By feel. Without it the short breaks in which bulk waits for acks would bring it to the front.
BULK_US: Final = 10_000
# Longer for each connection that gets a grant before it does: a grant takes 0.2 to 1 ms on loopback. Without it each of
# a thousand connections with bulk would count as small when its grant comes, and have turns shortened.
GRANT_US: Final = 1_000
# A bridge with enough unsent is read after so long even if the engine is never idle: one burst in 10 ms is far slower
# than any program writes, so what was read before has left by then.
IDLE_ONLY_US: Final = 10_000


class Turns(Generic[_P, _C]):
    """Bulk of one engine that waits for its turn, and how much it may still do.

    bulk_until      the latest of all ports' and connections'; after that nothing is bulk
    small_until     something small was served beside bulk, so turns are short until this time
    left_bytes      what may still be moved in this step; whatever moves many bytes subtracts them
    endpoints       ports to receive from, in order
    readable        pairs to read from
    dirty           connections that may send
    idle_only       bridges with enough unsent: they are read when nothing else is to do, or at this time; the earliest
                    first
    has_delivered   a program of this process has got a message in this iteration, beside bulk
    is_yielding     bulk waits in this iteration, so that this program gets the GIL
    _has_yielded    so it was when bulk's turn came last
    """

    __slots__ = (
        "_engine",
        "_has_yielded",
        "bulk_until",
        "dirty",
        "endpoints",
        "has_delivered",
        "idle_only",
        "is_yielding",
        "left_bytes",
        "readable",
        "small_until",
    )

    def __init__(self, engine: Engine[_P, _C]) -> None:
        self._engine = engine
        self.bulk_until = 0
        self.small_until = 0
        self.left_bytes = UNLIMITED_BYTES
        self.has_delivered = False
        self.is_yielding = False
        self._has_yielded = False
        self.endpoints: dict[_P, None] = {}
        self.readable: dict[_C, None] = {}
        self.dirty: dict[_C, None] = {}
        self.idle_only: dict[_C, int] = {}

    def on_bulk(self, bridge: _C, *, now: int, waiting: int = 0) -> None:
        """This connection has moved BULK_BYTES at once.

        now       µs
        waiting   so many others have to send before it does again
        """
        bridge.bulk_until = until = now + BULK_US + waiting * GRANT_US
        if until > self.bulk_until:
            self.bulk_until = until

    def small_of(self, bridges: Iterable[_C], *, now: int) -> list[_C]:
        """Those that are not bulk, which are served now."""
        small = [bridge for bridge in bridges if bridge.bulk_until <= now]
        if small:
            self.small_until = now + SMALL_US
        return small

    def turn_bytes(self, *, now: int) -> int:
        """How much bulk is received or read in a step."""
        return TURN_BYTES if self.small_until > now else QUIET_TURN_BYTES

    def begin_yield(self) -> bool:
        """Bulk's turn has come. Returns whether it waits for one iteration more, for a program that has just got a
        message; not twice in a row.
        """
        self.is_yielding = self._has_yielded = self.has_delivered and not self._has_yielded
        return self.is_yielding

    def put_off(self, bridge: _C) -> bool:
        """Have a connection that is bulk wait for its turn. False if it must not wait: more has happened to it than
        that it may send, or what it has received lies in memory that is used again after the iteration.
        """
        connection = bridge.connection
        reassembly = connection.receive.reassembly
        if (
            connection.state is not CONNECTED
            or reassembly.ready_bytes
            or reassembly.is_fin_reached
            or connection.events
            or bridge.close_errno is not None
        ):
            return False
        self.dirty[bridge] = None
        return True

    def receive_and_read(self, *, now: int, is_idle: bool) -> None:
        """What comes after all that is small."""
        if self.begin_yield():
            return
        self.receive(now=now)
        self.read(now=now)
        if self.idle_only:
            self.read_idle_only(now=now, is_idle=is_idle)

    def receive(self, *, now: int) -> None:
        """From ports, a turn."""
        waiting = self.endpoints
        self.left_bytes = max(self.turn_bytes(now=now), len(waiting) * PORT_TURN_BYTES)
        while waiting and self.left_bytes > 0:
            endpoint = next(iter(waiting))
            del waiting[endpoint]
            if not (endpoint.is_closed or endpoint.is_address_freed):
                self._engine.receive_from(endpoint, now)
        self.left_bytes = UNLIMITED_BYTES

    def read(self, *, now: int) -> None:
        """From programs, a turn."""
        waiting, left_bytes = self.readable, self.turn_bytes(now=now)
        while waiting and left_bytes > 0:
            bridge = next(iter(waiting))
            del waiting[bridge]
            buffer = bridge.connection.send.buffer
            left_bytes += buffer.end_offset
            self._engine.read_from(bridge, now, is_due=False)
            left_bytes -= buffer.end_offset

    def read_idle_only(self, *, now: int, is_idle: bool) -> None:
        """Read the first of those that have enough unsent, if the engine is idle or its time has come. Without that a
        program that writes before it reads, like its peer, would wait for ever on a busy engine.
        """
        waiting = self.idle_only
        for bridge in [each for each in islice(waiting, 1) if is_idle or waiting[each] <= now]:
            del waiting[bridge]
            self._engine.read_from(bridge, now, is_due=True)

    def send(self, *, now: int) -> None:
        """What is left of left_bytes."""
        waiting = self.dirty
        while waiting and self.left_bytes > 0:
            bridge = next(iter(waiting))
            del waiting[bridge]
            if not bridge.is_gone:
                self._engine.flush(bridge, now)

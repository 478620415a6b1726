"""When the engine has to wake up by itself: the connections' deadlines, and calls at a time.

A deadline moves with nearly every packet, and almost always to a later time. So a connection has one entry
(docs/performance.md §10): a later deadline is only noted, and when the entry's time comes, the connection is queued
again for the later one. An earlier deadline makes another entry, and the old one is stale from then on. Entries are
kept by ticks of TICK_US, and the heap has the ticks.

    Example, in ms. A packet leaves at 0, to be repeated at 1,000: the connection is queued at 1,000. Acks move the
    deadline to 1,050, 1,100, … 1,900, and no entry is touched. At 1,000 the entry is taken out, and one for 1,900 is
    made. If a delayed ack is due at 1,020 then, another entry is made, and the one of 1,900 is skipped later.

Stale entries, and those of connections that are over, are dropped when they are more than half: a handshake may take
half a minute, and a connection that ended long before would be kept for so long, and visited by every garbage
collection.

Only the engine's thread calls. Times: µs of the monotonic clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from utpsocket.protocol.times import NEVER

if TYPE_CHECKING:
    from typing import Protocol

    class Timed(Protocol):
        """What has a deadline: a connection's bridge."""

        deadline: Deadline
        is_gone: bool


_T = TypeVar("_T", bound="Timed")

# Entries of so long are one in the heap, and one end of the engine's sleep, which epoll_wait(2) rounds to ms anyhow.
TICK_US: Final = 256
# The first entry of a connection comes at the latest so long after its beginning, by feel: a connection that is over by
# then needs one entry, where its handshake, its data, their acks and its end each had an earlier deadline than the one
# before.
FIRST_ENTRY_US: Final = 16_000
_KEPT_ENTRIES: Final = 64  # so many are never searched for stale ones; by feel: some 10 KB


class Deadline:
    """The deadline of one connection. Only Timers writes here, and the loop where schedule() would do no more.

    at          when handle_timeout() is to be called, or NEVER
    queued_at   the time of its entry, which is not later; NEVER: it has none
    """

    __slots__ = ("at", "queued_at")

    def __init__(self) -> None:
        self.at = NEVER
        self.queued_at = NEVER


class Timers(Generic[_T]):
    """Of one engine.

    next_at        when something may be due, NEVER for nothing. Perhaps too early, never too late: it is lowered before
                   an entry is added, and computed anew by due(), and by due_call() when that returns None
    next_call_at   when due_call() returns something, NEVER for never
    """

    __slots__ = ("_buckets", "_calls", "_entry_count", "_max_entries", "_order", "_ticks", "next_at", "next_call_at")

    def __init__(self) -> None:
        self._buckets: dict[int, list[_T]] = {}  # entries by tick
        self._ticks: list[int] = []  # a heap of the ticks that have a bucket
        self._entry_count = 0
        self._max_entries = _KEPT_ENTRIES  # entries before stale ones are dropped
        self._calls: list[tuple[int, int, tuple[Callable[[], None], object]]] = []
        self._order = 0  # of two calls at the same time, the one that came first
        self.next_at = NEVER
        self.next_call_at = NEVER

    def schedule(self, timed: _T, at: int, now: int) -> None:
        """Its deadline is `at`, or NEVER, whatever it was before. due() returns it then, or up to TICK_US later."""
        deadline = timed.deadline
        if deadline.at == NEVER and deadline.queued_at == NEVER and at > now + FIRST_ENTRY_US:
            if at == NEVER:
                return
            self._put(timed, now + FIRST_ENTRY_US)
        elif at < deadline.queued_at:
            self._put(timed, at)
        deadline.at = at

    def _put(self, timed: _T, at: int) -> None:
        """Make an entry for this time."""
        tick = (at + TICK_US - 1) // TICK_US
        if tick * TICK_US < self.next_at:
            self.next_at = tick * TICK_US
        timed.deadline.queued_at = at
        bucket = self._buckets.get(tick)
        if bucket is None:
            self._buckets[tick] = [timed]
            heapq.heappush(self._ticks, tick)
        else:
            bucket.append(timed)
        self._entry_count += 1
        if self._entry_count > self._max_entries:
            self._drop_stale_entries()

    def _drop_stale_entries(self) -> None:
        kept: dict[_T, int] = {}
        for tick, bucket in self._buckets.items():
            for timed in bucket:
                if not timed.is_gone and (timed.deadline.queued_at + TICK_US - 1) // TICK_US == tick:
                    kept[timed] = tick
        self._buckets = {}
        for timed, tick in kept.items():
            self._buckets.setdefault(tick, []).append(timed)
        self._ticks = list(self._buckets)
        heapq.heapify(self._ticks)
        self._entry_count = len(kept)
        self._max_entries = 2 * len(kept) + _KEPT_ENTRIES

    def call_at(self, at: int, call: Callable[[], None]) -> None:
        """Have due_call() return `call` at this time or soon after. Its owner (faults.py) is the object whose method
        it is.
        """
        if at < self.next_at:
            self.next_at = at
        if at < self.next_call_at:
            self.next_call_at = at
        self._order += 1
        heapq.heappush(self._calls, (at, self._order, (call, getattr(call, "__self__", None))))

    def due(self, now: int) -> list[_T]:
        """What has reached its deadline, each once; schedule() it again afterwards."""
        due: list[_T] = []
        while self._ticks and self._ticks[0] * TICK_US <= now:
            tick = heapq.heappop(self._ticks)
            bucket = self._buckets.pop(tick)
            self._entry_count -= len(bucket)
            for timed in bucket:
                deadline = timed.deadline
                if timed.is_gone or (deadline.queued_at + TICK_US - 1) // TICK_US != tick:
                    continue
                deadline.queued_at = NEVER
                if deadline.at <= now:
                    due.append(timed)
                elif deadline.at < NEVER:
                    self._put(timed, deadline.at)
        tick_at = self._ticks[0] * TICK_US if self._ticks else NEVER
        self.next_at = tick_at if tick_at < self.next_call_at else self.next_call_at
        return due

    def due_call(self, now: int) -> tuple[Callable[[], None], object] | None:
        """The next call whose time has come and its owner, or None. One by one, so that an exception of one does not
        lose others; and nothing can fail between here and the owner's being known.
        """
        found = None
        if self._calls and self._calls[0][0] <= now:
            found = heapq.heappop(self._calls)[2]
        self.next_call_at = self._calls[0][0] if self._calls else NEVER
        if found is None:
            at = self._ticks[0] * TICK_US if self._ticks else NEVER
            self.next_at = min(at, self.next_call_at)
        return found

    def clear(self) -> None:
        """Forget all deadlines: each connection gets a new Deadline, and is scheduled anew. Calls are kept."""
        self._buckets.clear()
        self._ticks.clear()
        self._entry_count = 0

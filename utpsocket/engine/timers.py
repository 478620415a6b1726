"""When the engine has to wake up by itself: the connections' deadlines, and calls at a time.

A deadline moves with nearly every packet, and almost always to a later time. So a connection has one entry in the heap
(docs/performance.md §10): a later deadline is only noted, and when the entry's time comes, the connection is queued
again for the later one. An earlier deadline makes another entry, and the old one is stale from then on.

    Example, in ms. A packet leaves at 0, to be repeated at 1,000: the connection is queued at 1,000. Acks move the
    deadline to 1,050, 1,100, … 1,900, and the heap is not touched. At 1,000 the entry is popped, and one for 1,900 is
    pushed. If a delayed ack is due at 1,020 then, another entry is pushed, and the one of 1,900 is skipped later.

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

_KEPT_ENTRIES: Final = 64  # so many are never searched for stale ones; by feel: some 10 KB


class Deadline:
    """The deadline of one connection. Only Timers writes here, and the loop where schedule() would do no more.

    at          when handle_timeout() is to be called, or NEVER
    queued_at   the time of its entry in the heap, which is not later; NEVER: it has none
    """

    __slots__ = ("at", "queued_at")

    def __init__(self) -> None:
        self.at = NEVER
        self.queued_at = NEVER


class Timers(Generic[_T]):
    """Of one engine.

    next_at   when something may be due, NEVER for nothing. Perhaps too early, never too late: it is lowered before an
              entry is added, and computed anew when due_call() returns None
    """

    __slots__ = ("_calls", "_heap", "_max_entries", "_order", "next_at")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, _T]] = []
        self._calls: list[tuple[int, int, tuple[Callable[[], None], object]]] = []
        self._max_entries = _KEPT_ENTRIES  # entries in the heap before stale ones are dropped
        self._order = 0  # of two at the same time, the one that came first
        self.next_at = NEVER

    def schedule(self, timed: _T, at: int) -> None:
        """Its deadline is `at`, or NEVER, whatever it was before. due() returns it then."""
        deadline = timed.deadline
        deadline.at = at
        if at < deadline.queued_at:
            if at < self.next_at:
                self.next_at = at
            deadline.queued_at = at
            self._order += 1
            heapq.heappush(self._heap, (at, self._order, timed))
            if len(self._heap) > self._max_entries:
                self._drop_stale_entries()

    def _drop_stale_entries(self) -> None:
        kept: dict[_T, tuple[int, int, _T]] = {}
        for entry in self._heap:
            at, _, timed = entry
            if timed.deadline.queued_at == at and not timed.is_gone:
                kept[timed] = entry
        heap = list(kept.values())
        heapq.heapify(heap)
        self._heap = heap
        self._max_entries = 2 * len(heap) + _KEPT_ENTRIES

    def call_at(self, at: int, call: Callable[[], None]) -> None:
        """Have due_call() return `call` at this time or soon after. Its owner (faults.py) is the object whose method
        it is.
        """
        if at < self.next_at:
            self.next_at = at
        self._order += 1
        heapq.heappush(self._calls, (at, self._order, (call, getattr(call, "__self__", None))))

    def due(self, now: int) -> list[_T]:
        """What has reached its deadline, each once; schedule() it again afterwards."""
        due: list[_T] = []
        heap = self._heap
        while heap and heap[0][0] <= now:
            entry_at, _, timed = heapq.heappop(heap)
            deadline = timed.deadline
            if deadline.queued_at != entry_at:
                continue
            deadline.queued_at = NEVER
            at = deadline.at
            if timed.is_gone:
                continue
            if at <= now:
                due.append(timed)
            else:
                self.schedule(timed, at)
                heap = self._heap  # which may be another now
        return due

    def due_call(self, now: int) -> tuple[Callable[[], None], object] | None:
        """The next call whose time has come and its owner, or None. One by one, so that an exception of one does not
        lose others; and nothing can fail between here and the owner's being known.
        """
        if self._calls and self._calls[0][0] <= now:
            return heapq.heappop(self._calls)[2]
        at = self._heap[0][0] if self._heap else NEVER
        self.next_at = min(at, self._calls[0][0]) if self._calls else at
        return None

    def clear(self) -> None:
        """Forget all deadlines: each connection gets a new Deadline, and is scheduled anew. Calls are kept."""
        self._heap.clear()

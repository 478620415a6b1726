"""When the engine has to wake up by itself: the connections' deadlines, and calls at a time.

Separate because it is a structure and no policy. docs/performance.md §10: one heap entry per connection. A later
deadline is only noted; when the old one comes, the connection is put back. An earlier one makes another entry, and the
old one means nothing; nor does that of a connection that is over. Such entries are thrown out when they are more than
the others: a handshake may take half a minute, and what ended long before would be kept so long, and looked at by every
collection.

Only the engine's thread calls. Times µs.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from utpsocket.protocol.times import NEVER

if TYPE_CHECKING:
    from utpsocket.engine.channels.utp import Bridge

_FEW: Final = 64  # entries that are not worth a look


class Timers:
    """Of one engine.

    next_at   when something may be due, NEVER for nothing. Perhaps too early, never too late: it is set before what it
              stands for is kept, and found anew by the due_call() that has nothing to give.
    """

    __slots__ = ("_alarms", "_heap", "_most", "_order", "next_at")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Bridge]] = []
        self._alarms: list[tuple[int, int, Callable[[], None]]] = []
        self._most = _FEW  # entries in the heap before those that mean nothing are thrown out
        self._order = 0  # of two at the same time, the one that came first
        self.next_at = NEVER

    def schedule(self, bridge: Bridge, at: int | None) -> None:
        """The connection's time comes at `at`, whatever was said before; None: never."""
        bridge.wakes_at = at
        if at is not None:
            heap_at = bridge.heap_at
            if heap_at is None or at < heap_at:
                if at < self.next_at:
                    self.next_at = at
                bridge.heap_at = at
                self._order += 1
                heapq.heappush(self._heap, (at, self._order, bridge))
                if len(self._heap) > self._most:
                    self._throw_out()

    def _throw_out(self) -> None:
        kept: dict[Bridge, tuple[int, int, Bridge]] = {}
        for entry in self._heap:
            at, _, bridge = entry
            if bridge.heap_at == at and not bridge.is_gone:
                kept[bridge] = entry
        heap = list(kept.values())
        heapq.heapify(heap)
        self._heap = heap
        self._most = 2 * len(heap) + _FEW

    def call_at(self, at: int, call: Callable[[], None]) -> None:
        """Have due_call() give `call` at this time or soon after."""
        if at < self.next_at:
            self.next_at = at
        self._order += 1
        heapq.heappush(self._alarms, (at, self._order, call))

    def due_bridges(self, now: int) -> list[Bridge]:
        """The connections whose time has come; each is told once."""
        due: list[Bridge] = []
        heap = self._heap
        while heap and heap[0][0] <= now:
            at, _, bridge = heapq.heappop(heap)
            if bridge.heap_at != at:
                continue
            bridge.heap_at = None
            wakes_at = bridge.wakes_at
            if wakes_at is None or bridge.is_gone:
                continue
            if wakes_at <= now:
                due.append(bridge)
            else:
                self.schedule(bridge, wakes_at)
                heap = self._heap  # which may be another now
        return due

    def due_call(self, now: int) -> Callable[[], None] | None:
        """The next call whose time has come, or None. One by one: what fails must not take others with it."""
        if self._alarms and self._alarms[0][0] <= now:
            return heapq.heappop(self._alarms)[2]
        at = self._heap[0][0] if self._heap else NEVER
        self.next_at = min(at, self._alarms[0][0]) if self._alarms else at
        return None

    def forget_bridges(self) -> None:
        """Every connection will be scheduled anew."""
        self._heap.clear()

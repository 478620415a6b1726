"""How large a window each connection of a port may advertise, so that the port's receive buffer holds it all.

All datagrams of a listener's connections arrive at one UDP socket. Its buffer holds about what one of them may
advertise; if a thousand each advertised that, they would lose whole bursts and wait for their timeouts
(docs/performance.md §7). So those that move data share the buffer in equal parts. Those that have been idle may
advertise what each has if all became active at the same time; with its first burst such a one counts as active.

    Example. The kernel gave 8 MiB (it doubles the 4 MiB that were asked for). Half of it, 4 MiB, is advertised: a
    datagram takes up to twice its payload with the kernel's bookkeeping. 10 connections have moved data in the last 50
    to 100 ms: 419,430 bytes each. 1,000 have: 4,194 bytes would be each one's part, but the least is 147,456 (144 KiB).
    A single one: 4 MiB, or 7.2 MiB after eight large merged datagrams in a row, which take hardly more than their
    payload.

    Over a path with a round trip of 100 ms that one may advertise 16 MiB, if its program reads as fast: no more than a
    quarter, 4 MiB, arrives in the 25 ms that the buffer has to bridge.

Where this engine limits the rate, and not the path, all that is advertised waits in that buffer, and a message of
another connection behind it. So if there is more than was received for BACKLOG_US, a quarter less is advertised, and
again after the same time, until the queue is short; and a quarter more in each epoch in which there was none.

Only the engine's thread calls. Times: µs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from utpsocket.protocol.config import GRANT_BYTES

if TYPE_CHECKING:
    from utpsocket.engine.channels.utp import Bridge

# A connection that has moved data in this epoch or the one before is active. By feel: some round trips of a local
# network.
_EPOCH_US: Final = 50_000
_MIN_SHARE_BYTES: Final = (
    64 << 10
)  # with less, more iterations are needed than losses are saved: docs/performance.md §7
_MIN_BUFFER_BYTES: Final = 8_192  # of the UDP socket, whatever the kernel says: some large packets
_MERGED_BYTES: Final = 32 << 10  # a run of at least this size was merged by the kernel (GRO)
_SURE_RUNS: Final = 8  # so many in a row, and the peer's datagrams come merged; by feel
# More than this waits in the kernel's queue although as much was received as may be in an iteration: a backlog. It is
# about half a millisecond's work.
BACKLOG_BYTES: Final = 512 << 10
# If a backlog lasts so long, this engine is what limits the rate; by feel: after a pause of some ms it has worked off
# what came meanwhile.
BACKLOG_US: Final = 5_000
# Between two signs of one backlog; by feel: some iterations.
_SAME_BACKLOG_US: Final = 2_000
_CHANGE: Final = 4  # each time what is advertised in all falls, or rises, by this part of it (a quarter)
MIN_ADVERTISED_BYTES: Final = 1 << 20
# What is advertised comes spread over a round trip, and the buffer has to hold what comes while this engine waits for
# the CPU or the GIL. By feel: some switch intervals of 5 ms. In shorter round trips all of it may come meanwhile.
SHORT_PATH_US: Final = 25_000
# What a window grows to over such a path: 1.3 Gbit/s in 25 ms. With the pair's buffer less than tcp_rmem[2], 6 MiB.
SHORT_PATH_WINDOW_BYTES: Final = 4 << 20
MAX_WINDOW_BYTES: Final = 16 << 20  # what it grows to over a longer one, unless UTPSOCKET_MAX_WINDOW is set


class ReceiveShares:
    """Of one port.

    budget_bytes         what its connections should advertise together at most: half of the buffer, since payload takes
                         up to twice its size there (docs/performance.md §7)
    single_share_bytes   what a single connection may advertise over a short path if its peer's datagrams come merged,
                         which take hardly more than their payload
    max_window_bytes     what the window of a connection grows to at most, whatever its path
    """

    __slots__ = (
        "_active",
        "_active_alone",
        "_active_before",
        "_backlog_at",
        "_backlog_since",
        "_ends_at",
        "_limit_bytes",
        "_min_share_bytes",
        "_merged_runs",
        "max_window_bytes",
        "single_share_bytes",
        "budget_bytes",
    )

    def __init__(self, buffer_bytes: int, max_window_bytes: int = MAX_WINDOW_BYTES) -> None:
        self.max_window_bytes = max_window_bytes
        buffer_bytes = max(_MIN_BUFFER_BYTES, buffer_bytes)
        self.budget_bytes = budget_bytes = buffer_bytes // 2
        self.single_share_bytes = buffer_bytes * 9 // 10
        self._merged_runs = 0  # in a row, up to _SURE_RUNS
        self._min_share_bytes = max(_MIN_SHARE_BYTES, min(GRANT_BYTES, budget_bytes // 8))  # each one's
        self._ends_at = 0  # of the current epoch
        self._active: set[int] | None = None  # cookies of the connections that moved data in this epoch; None for one
        self._active_alone: int | None = None  # or none: then this is its cookie, None for none
        self._active_before = 0  # how many did in the one before
        self._limit_bytes = buffer_bytes  # what they may advertise together, less if there is a backlog
        self._backlog_at = self._backlog_since = (
            0  # its last sign; since when it lasts, or when less was advertised last
        )

    def initial_share_bytes(self, connections: int) -> int:
        """What a connection may advertise that has received nothing yet, with so many connections on this port."""
        return max(self._min_share_bytes, self.budget_bytes // max(1, connections))

    def grown_window_bytes(self, path_us: int) -> int:
        """What the window of a connection may grow to.

        path_us   its path's round trip without queues, 0 if unknown
        """
        window_bytes = min(SHORT_PATH_WINDOW_BYTES, self.single_share_bytes)
        if path_us > SHORT_PATH_US:
            window_bytes = window_bytes * path_us // SHORT_PATH_US
        return min(window_bytes, self.max_window_bytes)

    def on_data(self, bridge: Bridge, run_bytes: int, *, now: int) -> None:
        """A run came for this connection: it is active, and may advertise what an active one may (receive.share_bytes).

        run_bytes   of the whole run
        now         µs
        """
        self._merged_runs = min(_SURE_RUNS, self._merged_runs + 1) if run_bytes >= _MERGED_BYTES else 0
        if now >= self._ends_at:
            active = len(self._active) if self._active is not None else int(self._active_alone is not None)
            self._active_before = active if now < self._ends_at + _EPOCH_US else 0
            self._active = self._active_alone = None
            self._ends_at = now + _EPOCH_US
            if now > self._backlog_at + _EPOCH_US:
                self._limit_bytes = min(self._limit_bytes + self._limit_bytes // _CHANGE, 2 * self.budget_bytes)
        active = self._active_before
        if self._active is not None:
            self._active.add(bridge.cookie)
            active = max(len(self._active), active)
        elif self._active_alone is None or self._active_alone == bridge.cookie:
            self._active_alone = bridge.cookie
            active = active or 1
        else:
            self._active = {self._active_alone, bridge.cookie}
            active = max(2, active)
        if active == 1 and self._merged_runs == _SURE_RUNS:
            share_bytes = min(self.single_share_bytes, self._limit_bytes)
        else:
            share_bytes = min(self.budget_bytes, self._limit_bytes) // active
        if share_bytes < self._min_share_bytes:
            share_bytes = self._min_share_bytes
        path_us = bridge.receive_buffer.path_us
        if path_us > SHORT_PATH_US:
            share_bytes = share_bytes * path_us // SHORT_PATH_US
        bridge.connection.receive.share_bytes = share_bytes

    def on_drained(self, *, now: int) -> None:
        """All was received."""
        self._backlog_since = now

    def on_backlog(self, queued_bytes: int, *, now: int) -> None:
        """As much was received as may be in an iteration, and so many bytes are left.

        now   µs
        """
        if queued_bytes < BACKLOG_BYTES:
            return
        if now > self._backlog_at + _SAME_BACKLOG_US:
            self._backlog_since = now
        self._backlog_at = now
        if now >= self._backlog_since + BACKLOG_US:
            self._backlog_since = now
            fewer_bytes = min(self._limit_bytes, self.budget_bytes) * (_CHANGE - 1) // _CHANGE
            self._limit_bytes = max(min(MIN_ADVERTISED_BYTES, self.budget_bytes), fewer_bytes)

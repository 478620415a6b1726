"""The table that a process with UTPSOCKET_STATS prints on stderr at its end, as with `python3 -m utpsocket run
--stats`.

A process that has made no connection prints none, apart from the one that `run` has started, whose number is the value
of the variable. SIGTERM ends a process without its atexit functions: the table is printed before, where the program has
no handler for that signal of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from typing import Final

from utpsocket.stats import EngineStats, engine_stats

# The interrupted code may hold what the engine, or stderr, waits for: then there is no table. By feel.
_AT_SIGTERM_SECONDS: Final = 2.0


def register() -> None:
    """Have the table printed at this process's end, after what was written is delivered. A second call does nothing."""
    atexit.unregister(_print)
    atexit.register(_print)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        with contextlib.suppress(ValueError):  # not the main thread, which alone may set handlers
            signal.signal(signal.SIGTERM, _print_and_end)


def _print_and_end(*signal_and_frame: object) -> None:
    """SIGTERM's handler: end as without it, once the table is printed."""
    printing = threading.Thread(target=_print, daemon=True)
    printing.start()
    printing.join(_AT_SIGTERM_SECONDS)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def _print() -> None:
    stats = engine_stats()
    is_asked = os.environ.get("UTPSOCKET_STATS") == str(os.getpid())
    if not is_asked and not stats.connections_initiated and not stats.connections_accepted and not stats.tcp_accepted:
        return
    print("\n".join([f"utpsocket: process {os.getpid()}", *table(stats)]), file=sys.stderr, flush=True)


def table(stats: EngineStats) -> list[str]:
    """The lines of the table."""
    opened, accepted = stats.connections_initiated - stats.tcp_initiated, stats.connections_accepted
    again = stats.retransmitted_packets
    share = again / (stats.sent_packets or 1)
    return [
        f"  over uTP     {opened:,} opened, {accepted:,} accepted, {stats.connections_open:,} open",
        f"  over TCP     {stats.tcp_initiated:,} opened, {stats.tcp_accepted:,} accepted",
        f"  sent         {stats.sent_bytes:,} bytes, {stats.sent_packets:,} packets, {again:,} again ({share:.2%})",
        f"  received     {stats.received_bytes:,} bytes, {stats.received_packets:,} packets",
    ]

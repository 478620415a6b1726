"""One side of message_cost or run_cost: as stream_side.py, with a meter at the engine and a clock at the caller.

    python3 -m compat.bench.cost_side listen|connect SETTINGS

SETTINGS as in stream_side.py, and `meter`: a kind of meter.py's.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from compat.bench.meter import Meter
from compat.bench.stream_side import Side, receive_exactly

_CALL_BYTES: Final = 256 << 10
# Before anything is measured: past slow start and past the search for the packet size.
_WARM_UP_TRIPS: Final = 300
_WARM_UP_CALLS: Final = 256


class Caller:
    """CPU time of the calling thread, and beside it the engine's, from the making of this to stop()."""

    def __init__(self, side: Side) -> None:
        is_ours = side.settings["module"] == "utpsocket"
        self._meter = Meter(side.settings["meter"]) if is_ours else None
        if self._meter is not None:
            self._meter.attach()
        self._began_ns = time.thread_time_ns()

    def stop(self) -> dict[str, float]:
        """`caller_us`, and what the meter has."""
        caller_us = (time.thread_time_ns() - self._began_ns) / 1_000
        return {"caller_us": caller_us, **(self._meter.detach() if self._meter is not None else {})}


def message_connect(side: Side) -> dict[str, Any]:
    stream = side.dial()
    watch = side.start()
    for _ in range(_WARM_UP_TRIPS):
        _trip(stream)
    caller = Caller(side)
    trips = 0
    ends_at = time.monotonic() + side.seconds
    while time.monotonic() < ends_at:
        _trip(stream)
        trips += 1
    costs = caller.stop()
    stream.sendall(b".")  # the other side's sign to stop counting
    return {**watch.stop(), "count": trips, "costs": costs}


def _trip(stream: Any) -> None:
    stream.sendall(b"?")
    if stream.recv(1) != b"!":
        raise ValueError("no answer")


def message_listen(side: Side) -> dict[str, Any]:
    with side.listen() as listener:
        stream = side.accept(listener)
    watch = side.start()
    for _ in range(_WARM_UP_TRIPS):
        _answer(stream)
    caller = Caller(side)
    trips = 0
    while _answer(stream):
        trips += 1
    return {**watch.stop(), "count": trips, "costs": caller.stop()}


def _answer(stream: Any) -> bool:
    """Answer the next message; False for the last."""
    if stream.recv(1) != b"?":
        return False
    stream.sendall(b"!")
    return True


def run_connect(side: Side) -> dict[str, Any]:
    stream = side.dial()
    watch = side.start()
    block = memoryview(bytes(_CALL_BYTES))
    for _ in range(_WARM_UP_CALLS):
        stream.sendall(block)
    receive_exactly(stream, 1)  # the other side has it all, and counts from now on
    caller = Caller(side)
    sent_bytes = 0
    ends_at = time.monotonic() + side.seconds
    while time.monotonic() < ends_at:
        stream.sendall(block)
        sent_bytes += len(block)
    costs = caller.stop()
    stream.shutdown(socket.SHUT_WR)
    return {**watch.stop(), "bytes": sent_bytes, "costs": costs}


def run_listen(side: Side) -> dict[str, Any]:
    with side.listen() as listener:
        stream = side.accept(listener)
    watch = side.start()
    memory = bytearray(_CALL_BYTES)
    left_bytes = _WARM_UP_CALLS * _CALL_BYTES
    while left_bytes:
        left_bytes -= stream.recv_into(memory, min(left_bytes, len(memory)))
    caller = Caller(side)
    stream.sendall(b".")
    received_bytes = 0
    while count := stream.recv_into(memory):
        received_bytes += count
    return {**watch.stop(), "bytes": received_bytes, "costs": caller.stop()}


KINDS: Final[dict[str, tuple[Callable[[Side], dict[str, Any]], Callable[[Side], dict[str, Any]]]]] = {
    "message": (message_listen, message_connect),
    "run": (run_listen, run_connect),
}


def main(role: str, settings_text: str) -> None:
    side = Side(json.loads(settings_text))
    listen, connect = KINDS[side.settings["kind"]]
    side.orders.report((listen if role == "listen" else connect)(side))


if __name__ == "__main__":
    main(*sys.argv[1:])

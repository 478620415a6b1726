"""One side of a talk in messages of 1 byte with pauses between them, alone or beside bulk of the same two processes.

    python3 -m compat.bench.paused_side listen|connect SETTINGS

SETTINGS as in stream_side.py. `kind` says which way the bulk goes: "sent" by the process that dials and asks, or
"received" by it. `parallel` connections carry it, none for a talk alone, and one thread moves all of them. A thread of
its own asks, waits for the answer, and pauses.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any, Final

from compat.bench.stream_side import Side
from utpsocket.cli.perf_streams import Limit, receive_all, send_all

PAUSE_SECONDS: Final = 0.002
# Of bulk before the first question: past slow start and past the search for the packet size.
_WARM_UP_SECONDS: Final = 0.3


class Bulk:
    """Moves bytes on the connections beside the talk, in a thread of its own. There may be none."""

    def __init__(self, side: Side, streams: list[Any], *, is_sender: bool) -> None:
        self._counts: list[int] = []
        # The sender ends the bulk, a little after the talk, and so the receiver as well.
        limit = Limit(None, side.seconds + 2 * _WARM_UP_SECONDS)

        def move() -> None:
            moved = send_all(streams, limit, _ignore) if is_sender else receive_all(streams, _ignore)
            self._counts.extend(moved)

        self._thread = threading.Thread(target=move) if streams else None
        if self._thread is not None:
            self._thread.start()

    def wait(self) -> int:
        """Wait for its end. Returns the bytes that were moved."""
        if self._thread is not None:
            self._thread.join()
        return sum(self._counts)


def _ignore(_: object) -> None:
    pass


def connect(side: Side) -> dict[str, Any]:
    talk = side.dial()
    streams = [side.dial() for _ in range(side.parallel)]
    watch = side.start()
    bulk = Bulk(side, streams, is_sender=side.settings["kind"] == "sent")
    time.sleep(_WARM_UP_SECONDS)
    trips: list[float] = []
    ends_at = time.monotonic() + side.seconds
    while time.monotonic() < ends_at:
        began = time.monotonic()
        talk.sendall(b"?")
        if talk.recv(1) != b"!":
            raise ValueError("no answer")
        trips.append(time.monotonic() - began)
        time.sleep(PAUSE_SECONDS)
    talk.shutdown(1)
    return {**watch.stop(), "trips": trips, "bytes": bulk.wait()}


def listen(side: Side) -> dict[str, Any]:
    with side.listen() as listener:
        talk = side.accept(listener)
        streams = [side.accept(listener) for _ in range(side.parallel)]
    watch = side.start()
    bulk = Bulk(side, streams, is_sender=side.settings["kind"] == "received")
    while talk.recv(1):
        talk.sendall(b"!")
    return {"bytes": bulk.wait(), **watch.stop()}


def main(role: str, settings_text: str) -> None:
    side = Side(json.loads(settings_text))
    side.orders.report((listen if role == "listen" else connect)(side))


if __name__ == "__main__":
    main(*sys.argv[1:])

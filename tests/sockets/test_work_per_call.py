"""Work counted, not timed: which functions each call on a socket that does not block makes on the caller's thread.

Each system call beside a busy engine may cost a wait for the interpreter's lock, if it releases that. What ctypes and
compiled code call is not seen here; tests/engine/test_work_per_batch.py counts the engine's work.
"""

from __future__ import annotations

import multiprocessing.util  # a program that has imported it pays no more  # noqa: F401
import select
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

import utpsocket
from tests.requirements import requires_fds
from utpsocket.engine import engine, shutdown
from utpsocket.engine.loop import Loop
from utpsocket.protocol.build import IS_COMPILED

from .network import wait_for_spare_sockets

pytestmark = [pytest.mark.usefixtures("leaves_nothing_behind"), requires_fds(2_048)]

LOCALHOST = ("127.0.0.1", 0)
# Of the modules socket, select and os, all that a call here may use and that make a system call. Of these the first
# release the interpreter's lock around it, and the others do not.
RELEASING = {
    "accept", "_accept", "bind", "close", "connect", "connect_ex", "fcntl", "fstat", "getpeername", "getsockname",
    "listen", "modify", "poll", "read", "recv", "register", "send", "shutdown", "unregister", "urandom", "write",
}  # fmt: skip
KEEPING = {"getegid", "geteuid", "getpid", "getsockopt", "setsockopt"}
# By call: functions in Python, system calls of RELEASING and of KEEPING; a little above what there are.
LIMITS = {
    True: {"bind": (19, 0, 0), "listen": (12, 0, 1), "connect": (16, 0, 3), "accept": (17, 0, 2)},
    False: {"bind": (30, 6, 3), "listen": (19, 3, 1), "connect": (35, 10, 8), "accept": (20, 2, 4)},
}[IS_COMPILED]


class Calls:
    """What was called on this thread."""

    def __init__(self) -> None:
        self.python = 0
        self.c: Counter[str] = Counter()

    def _note(self, frame: FrameType, kind: str, called: Any) -> None:
        if kind == "call":
            self.python += 1
        elif kind == "c_call":
            self.c[getattr(called, "__name__", "")] += 1

    def during(self, call: Callable[..., Any], *arguments: Any) -> Any:
        sys.setprofile(self._note)
        try:
            return call(*arguments)
        finally:
            sys.setprofile(None)


@pytest.fixture
def listener() -> Iterator[Any]:
    shutdown()  # an engine that has served other tests may have more to look after
    with utpsocket.create_server(LOCALHOST) as made:
        made.setblocking(False)
        yield made


def round_of(listener: Any) -> dict[str, Calls]:
    """Each call once, with all that the engine keeps ready for it."""
    found = {name: Calls() for name in LIMITS}
    with utpsocket.socket() as bound, utpsocket.socket() as client:
        for sock in (bound, client):
            sock.setblocking(False)
        found["bind"].during(bound.bind, LOCALHOST)
        found["listen"].during(bound.listen)
        wait_for_spare_sockets()
        found["connect"].during(client.connect_ex, listener.getsockname())
        select.select([listener], [], [])
        server, _ = found["accept"].during(listener.accept)
        server.close()
    wait_for_spare_sockets()
    return found


def test_no_call_makes_more_system_calls_than_it_needs(listener: Any) -> None:
    loop = engine()
    assert isinstance(loop, Loop)
    for _ in range(3):
        round_of(listener)  # what is loaded, or kept, from the first use on
    loop.idle_sockets.kept_us = 3_600_000_000
    # Of several: now and then there is something to be put in order, or made for many calls to come.
    rounds = [round_of(listener) for _ in range(5)]
    for name, limits in LIMITS.items():
        calls = min((found[name] for found in rounds), key=lambda calls: (calls.python, calls.c.total()))
        releasing = {each: count for each, count in calls.c.items() if each in RELEASING}
        keeping = {each: count for each, count in calls.c.items() if each in KEEPING}
        counts = calls.python, sum(releasing.values()), sum(keeping.values())
        assert all(count <= limit for count, limit in zip(counts, limits, strict=True)), (
            name,
            counts,
            releasing,
            keeping,
        )

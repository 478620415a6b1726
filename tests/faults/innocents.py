"""Twenty connections that no fault may touch, and how long they wait.

The issue says 1 s. A busy machine may itself keep them waiting for longer than that, and what it is answerable for is
granted on top of the second, with what follows of it, since a timeout grows with the round trips that were measured:

    what our threads waited for a processor when they could have run, as the scheduler counts it
    what a sibling waits: a kernel TCP connection, driven by the same thread and echoed by another. It shows when the
    machine as a whole stands still, and what the scheduler does not tell. Alone it is not enough: a round trip over it
    takes two threads a few µs, one over uTP the engine some ms while it is profiled, and so its turn again and again

On a machine with time to spare both are next to nothing.
"""

from __future__ import annotations

import contextlib
import glob
import os
import select
import socket as stdlib
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from tests.faults.scenes import LOCAL, PATIENCE_S, Wrong, accepted, made

INNOCENTS = 20
MAX_WAIT_S = 1.0
MACHINES_SHARE = 2.0  # a second that the machine kept us waiting may cost so many
MAX_PATIENCE_S = 8 * PATIENCE_S
PAUSE_S = 0.03
RESTS = 5  # round trips' time to pause for: where the machine is busy they leave the play its part
MAX_PAUSE_S = 0.3
SIBLING_PAUSE_S = 0.005


class Speaker:
    """One end that says something, again and again, when the last has come back.

    worst_wait_s   between a word and its echo, since begin()
    """

    def __init__(self) -> None:
        self.rounds = 0
        self.sent_at = 0.0
        self.next_at = 0.0
        self.worst_wait_s = 0.0

    def begin(self) -> None:
        self.worst_wait_s = 0.0

    def wait_s(self, now: float) -> float:
        """The worst by now, what is under way included."""
        return max(self.worst_wait_s, now - self.sent_at if self.sent_at else 0.0)

    def on_round(self, now: float, pause_s: float) -> None:
        took_s = now - self.sent_at
        self.worst_wait_s = max(self.worst_wait_s, took_s)
        self.rounds += 1
        self.sent_at = 0.0
        self.next_at = now + max(pause_s, min(RESTS * took_s, MAX_PAUSE_S))


class Sibling(Speaker):
    """A TCP connection, echoed by a thread of its own."""

    def __init__(self) -> None:
        super().__init__()
        with stdlib.create_server(LOCAL) as listener:
            self.client = stdlib.create_connection(listener.getsockname())
            self._server = listener.accept()[0]
        self.client.setblocking(False)
        for sock in (self.client, self._server):
            sock.setsockopt(stdlib.IPPROTO_TCP, stdlib.TCP_NODELAY, 1)
        threading.Thread(target=self._echo, daemon=True).start()

    def _echo(self) -> None:
        while data := self._server.recv(100):
            self._server.send(data)

    def speak(self, now: float) -> None:
        self.client.send(b"m")
        self.sent_at = now

    def on_client(self) -> None:
        self.client.recv(100)
        self.on_round(time.monotonic(), SIBLING_PAUSE_S)


class Innocent(Speaker):
    """A connection that echoes a few bytes, again and again."""

    def __init__(self, listener: Any) -> None:
        super().__init__()
        self.opened: list[Any] = []
        self.client, self.server = accepted(self.opened, listener, made())
        for sock in (self.client, self.server):
            sock.setblocking(False)
        self.error: str | None = None
        self.error_end = ""  # "client" or "server": the end that raised `error`
        self._awaited = 0

    def close(self) -> None:
        for sock in self.opened:
            with contextlib.suppress(OSError):
                sock.close()

    def speak(self, now: float) -> None:
        size = 10 if self.rounds % 8 else 9_000
        self._awaited = self.client.send(b"m" * size)
        self.sent_at = now

    def on_server(self) -> None:
        data = self.server.recv(65_536)
        if not data:
            raise Wrong("a false end of file")
        self.server.send(data)

    def on_client(self) -> None:
        data = self.client.recv(65_536)
        if not data:
            raise Wrong("a false end of file")
        self._awaited -= len(data)
        if not self._awaited:
            self.on_round(time.monotonic(), PAUSE_S)


class Machine:
    """What it owes the threads of these processes: how long they waited for a processor, and what its host took from
    all. proc(5): schedstat, and steal in /proc/stat, neither of which every kernel has. Of threads that have ended
    nothing is known.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = pids
        self._begin: dict[str, float] = {}

    def begin(self) -> None:
        """From now on it counts."""
        self._begin = self._counts()

    def owes_s(self) -> float:
        """So many seconds since begin(), of all threads together."""
        return sum(max(0.0, waited_s - self._begin.get(name, 0.0)) for name, waited_s in self._counts().items())

    def _counts(self) -> dict[str, float]:
        found = {}
        for pid in self._pids:
            for name in glob.glob(f"/proc/{pid}/task/*/schedstat"):
                with contextlib.suppress(OSError, IndexError), open(name, encoding="utf-8") as file:
                    found[name] = int(file.read().split()[1]) / 1e9
        with contextlib.suppress(OSError, IndexError), open("/proc/stat", encoding="utf-8") as file:
            found["steal"] = int(file.readline().split()[8]) / os.sysconf("SC_CLK_TCK")
        return found


class Innocents:
    """All of them, and the thread that has them speak."""

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        """`pids`: whose the engine's threads and ours are, once there is an engine."""
        self.listener = made()
        self.listener.bind(LOCAL)
        self.listener.listen(64)
        self.lock = threading.Lock()
        self.sibling = Sibling()
        self._max_wait_s = MAX_WAIT_S
        self._machine = Machine(pids())
        self.all = [Innocent(self.listener) for _ in range(INNOCENTS)]
        self.wrong: list[str] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            with self.lock:
                now = time.monotonic()
                poller = select.poll()
                poller.register(self.sibling.client, select.POLLIN)
                if not self.sibling.sent_at and now >= self.sibling.next_at:
                    self.sibling.speak(now)
                by_fd: dict[int, tuple[Innocent, bool]] = {}
                for one in self.all:
                    if one.error is None:
                        if not one.sent_at and now >= one.next_at:
                            self._guard(one, one.speak, now)
                        by_fd[one.server.fileno()] = one, True
                        by_fd[one.client.fileno()] = one, False
                for fd in by_fd:
                    poller.register(fd, select.POLLIN)
                for fd, _ in poller.poll(5):
                    if fd not in by_fd:
                        self.sibling.on_client()
                        continue
                    one, is_server = by_fd[fd]
                    if one.error is None:
                        self._guard(one, one.on_server if is_server else one.on_client)
            time.sleep(0.001)

    def _guard(self, one: Innocent, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except BlockingIOError:
            pass
        except OSError as problem:
            one.error, one.error_end = repr(problem), "server" if call == one.on_server else "client"
        except Wrong as problem:
            one.error, one.error_end = str(problem), "server" if call == one.on_server else "client"
            self.wrong.append(f"innocent: {problem}")

    def heal(self) -> list[str]:
        """What broke; and new ones in their place."""
        with self.lock:
            broken = [one for one in self.all if one.error is not None]
            for one in broken:
                # Both ends must raise, and each of them once.
                self.wrong += other_end_is_wrong(one)
                one.close()
                self.all.remove(one)
        fresh = []
        for _ in broken:
            try:
                fresh.append(Innocent(self.listener))
            except OSError as problem:
                self.wrong.append(f"no new connection after the fault: {problem!r}")
        with self.lock:
            self.all += fresh
        return [f"innocent: {one.error}" for one in broken]

    def begin(self, max_wait_s: float = MAX_WAIT_S) -> None:
        """What they wait is counted from here on, and must not be more than this and what the machine owes."""
        with self.lock:
            self._max_wait_s = max_wait_s
            self._machine.begin()
            for speaker in (self.sibling, *self.all):
                speaker.begin()

    def late(self) -> str:
        """ "" or who has waited, since begin(), for longer than a second and what the machine is answerable for."""
        with self.lock:
            now = time.monotonic()
            sibling_s = self.sibling.wait_s(now)
            longest_s = max((one.wait_s(now) for one in self.all if one.error is None), default=0.0)
            if longest_s <= self._max_wait_s + sibling_s:
                return ""
            owed_s = self._machine.owes_s()
            most_s = self._max_wait_s + MACHINES_SHARE * (sibling_s + owed_s)
            waits = [wait_s for one in self.all if one.error is None and (wait_s := one.wait_s(now)) > most_s]
        if not waits:
            return ""
        return (
            f"{len(waits)} of {len(self.all)} innocent connections waited for up to {max(waits):.2f} s,"
            f" the sibling {sibling_s:.2f} s, all threads for a processor {owed_s:.2f} s"
        )

    def is_over(self, patience_s: float, *, since: float) -> bool:
        """Whether somebody has waited for so long, and the machine cannot be why."""
        passed_s = time.monotonic() - since
        return passed_s > patience_s and passed_s > min(MAX_PATIENCE_S, MACHINES_SHARE * self._machine.owes_s())

    def stuck(self) -> str:
        """Wait until each has completed a round trip that began after this; "" or who did not, or was late."""
        with self.lock:
            # The one under way counts only for those that were not waiting.
            goals = {one: one.rounds + (2 if one.sent_at else 1) for one in self.all if one.error is None}
        start = time.monotonic()
        while any(one.error is None and one.rounds < goal for one, goal in goals.items()):
            if self.is_over(PATIENCE_S, since=start):
                return self.late() or "innocent connections wait for ever"
            if late := self.late():
                return late
            time.sleep(0.002)
        return self.late()


def other_end_is_wrong(one: Innocent) -> list[str]:
    """What is wrong with the end that has not raised yet: it must raise too."""
    for name, sock in (("client", one.client), ("server", one.server)):
        if name == one.error_end:
            continue
        sock.settimeout(PATIENCE_S)
        try:
            while sock.recv(65_536):
                pass
            if one.error != "a false end of file":
                return [f"innocent: the {name}'s end got a false end of file ({one.error})"]
        except TimeoutError:
            return [f"innocent: the {name}'s end got no error ({one.error})"]
        except OSError:
            pass
    return []

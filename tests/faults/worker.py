"""The process in which faults are injected: an engine, twenty connections that nothing may happen to, and a play.

Speaks JSON lines with engine.py. `{"record": rounds}` answers with the sites; `{"point": …}` with what went wrong.
After each fault: nobody hangs; every connection but one still carries bytes, both ways; no end of file comes before
its bytes; the thread is the same; and what was closed leaves no fd.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import gc
import json
import os
import select
import socket as stdlib
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import utpsocket
from tests.faults.injector import Injector
from utpsocket import stats
from utpsocket.engine import highfd, running_engine
from utpsocket.protocol import State
from utpsocket.routes import Routes

INNOCENTS = 20
PATIENCE_S = 12.0  # the machine may be busy; a connection that lost its wake-up waits for ever
SETTLE_S = 8.0
USUAL_WAIT_S = 2.0  # ports in TIME_WAIT are gone by then, unless packets were lost
MOST_KEPT_FDS = highfd._KEPT + 3  # and what they are duplicates of; two threads may add one at a time
LIBC = ctypes.CDLL(None)
PAUSE_S = 0.03
BULK_BYTES = 300_000
LOCAL = ("127.0.0.1", 0)
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class FallingBack(utpsocket.socket):
    _routes = Routes(fallback="tcp", fallback_seconds=0.02)


class OfBoth(utpsocket.socket):
    _routes = Routes(listen="both")


class Wrong(Exception):
    """Something that must never happen."""


class Lost(Exception):
    """Several connections of one scene, or one of several, with what each was told."""

    def __init__(self, errors: list[OSError]) -> None:
        super().__init__(*errors)
        self.errors = errors


def made(kind: type[utpsocket.socket] = utpsocket.socket) -> utpsocket.socket:
    sock = kind()
    sock.settimeout(PATIENCE_S)
    return sock


@contextlib.contextmanager
def closing_all() -> Iterator[list[Any]]:
    opened: list[Any] = []
    try:
        yield opened
    finally:
        for sock in opened:
            with contextlib.suppress(OSError):
                sock.close()


def pair(opened: list[Any], client: utpsocket.socket | None = None) -> tuple[Any, Any]:
    listener = made()
    opened.append(listener)
    listener.bind(LOCAL)
    listener.listen(8)
    return accepted(opened, listener, client or made())


def accepted(opened: list[Any], listener: Any, client: Any) -> tuple[Any, Any]:
    opened.append(client)
    client.connect(listener.getsockname())
    server = accept(listener, client)
    opened.append(server)
    return client, server


def accept(listener: Any, client: Any) -> Any:
    """The connection of this client; or the client's error, where it was reset before anybody could accept it."""
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    poller.register(client, select.POLLIN)
    deadline = time.monotonic() + PATIENCE_S
    while found := poller.poll(max(0, deadline - time.monotonic()) * 1_000):
        if any(fd == listener.fileno() for fd, _ in found):
            server, _ = listener.accept()
            server.settimeout(PATIENCE_S)
            return server
        if not client.recv(1):
            raise Wrong("a false end of file instead of a connection")
    raise TimeoutError("a connection that stands is never accepted")


def carry(sender: Any, receiver: Any, count: int) -> None:
    """Send so many bytes and end; the receiver must see all of them before an end of file, or an errno."""
    payload = memoryview(os.urandom(1024) * (count // 1024 + 1))[:count]
    got = bytearray()
    error: list[OSError] = []

    def send() -> None:
        try:
            sender.sendall(payload)
            sender.shutdown(stdlib.SHUT_WR)
        except OSError as problem:
            error.append(problem)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        while data := receiver.recv(65_536):
            got += data
    finally:
        thread.join()
    if bytes(got) != payload[: len(got)]:
        raise Wrong("bytes arrived that were never sent, or in another order")
    if len(got) != count and not error:
        raise Wrong(f"a false end of file: {len(got)} of {count} bytes, and the sender knows nothing")
    if len(got) != count:
        raise Wrong(f"a false end of file: {len(got)} of {count} bytes; the sender was told {error[0]!r}")
    if error:
        raise error[0]


# ── the play: each scene is one connection, or one socket, and may end in an OSError ──


def scene_bulk(opened: list[Any]) -> None:
    client, server = pair(opened)
    carry(client, server, BULK_BYTES)
    carry(server, client, 20_000)


def scene_bound(opened: list[Any]) -> None:
    client = made()
    client.bind(LOCAL)
    client, server = pair(opened, client)
    client.setsockopt(stdlib.IPPROTO_TCP, stdlib.TCP_NODELAY, 1)
    carry(server, client, 5_000)
    server.close()
    client.getpeername()


def scene_reset(opened: list[Any]) -> None:
    client, server = pair(opened)
    client.sendall(b"x" * 1_000)
    client.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_LINGER, RESET_ON_CLOSE)
    client.close()
    try:
        while server.recv(1_000):
            pass
    except ConnectionResetError:
        return
    raise Wrong("a reset was told as an end of file")


def scene_unread(opened: list[Any]) -> None:
    """A close that leaves bytes unread resets."""
    client, server = pair(opened)
    server.sendall(b"x" * 10_000)
    client.recv(1)
    client.close()
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        server.recv(1)
        server.send(b"y")


def scene_refused(opened: list[Any]) -> None:
    with stdlib.socket(type=stdlib.SOCK_DGRAM) as udp:
        udp.bind(LOCAL)
        nobody = udp.getsockname()
    client = made()
    opened.append(client)
    try:
        client.connect(nobody)
    except ConnectionRefusedError:
        return
    raise Wrong("connected to nobody")


def scene_nonblocking(opened: list[Any]) -> None:
    listener = made()
    opened.append(listener)
    listener.bind(LOCAL)
    listener.listen(8)
    client = utpsocket.socket()
    opened.append(client)
    client.setblocking(False)
    code = client.connect_ex(listener.getsockname())
    if code not in (0, errno.EINPROGRESS):
        raise OSError(code, os.strerror(code))
    poller = select.poll()
    poller.register(client, select.POLLOUT)
    if not poller.poll(PATIENCE_S * 1_000):
        raise TimeoutError("a connect that does not block never ends")
    code = client.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))
    client.settimeout(PATIENCE_S)
    server = accept(listener, client)
    opened.append(server)
    carry(client, server, 10)


def scene_lingering(opened: list[Any]) -> None:
    client, server = pair(opened)
    client.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_LINGER, struct.pack("ii", 1, 5))
    client.sendall(b"x" * 50_000)
    reader = threading.Thread(target=lambda: drained(server))
    reader.start()
    client.close()
    reader.join()


def drained(sock: Any) -> None:
    with contextlib.suppress(OSError):
        while sock.recv(65_536):
            pass


def scene_backlog(opened: list[Any]) -> None:
    """Several at once, one of them never accepted: each of the others that is lost counts."""
    listener = made()
    opened.append(listener)
    listener.bind(LOCAL)
    listener.listen(8)
    lost: list[OSError] = []
    waiting: dict[Any, Any] = {}
    for _ in range(4):
        client = made()
        opened.append(client)
        try:
            client.connect(listener.getsockname())
            client.send(b"hello")
            waiting[client.getsockname()] = client
        except TimeoutError:
            raise
        except OSError as problem:
            lost.append(problem)
    pairs: list[tuple[Any, Any]] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(waiting) > 1:
        poller = select.poll()
        for sock in (listener, *waiting.values()):
            poller.register(sock, select.POLLIN)
        ready = {fd for fd, _ in poller.poll(max(0, deadline - time.monotonic()) * 1_000)}
        if not ready:
            raise TimeoutError("a connection that stands is never accepted")
        if listener.fileno() in ready:
            server, name = listener.accept()
            opened.append(server)
            server.settimeout(PATIENCE_S)
            if name in waiting:  # else its client has heard of its end before
                pairs.append((waiting.pop(name), server))
        for name, client in list(waiting.items()):
            if client.fileno() in ready:
                lost += losses(client.recv, 1)
                del waiting[name]
    for client, server in pairs:
        lost += losses(hello, client, server)
    listener.shutdown(stdlib.SHUT_RD)
    if lost:
        raise Lost(lost)


def hello(client: Any, server: Any) -> None:
    """What was sent before the accept arrives, and an answer to it."""
    if (found := server.recv(5)) != b"hello":
        raise Wrong(f"a false end of file: {found!r} for a hello")
    server.send(b"x")
    if client.recv(1) != b"x":
        raise Wrong("a false end of file for an answer")


def losses(call: Callable[..., Any], *arguments: Any) -> list[OSError]:
    """The errno that a connection was told, if it was."""
    try:
        if call(*arguments) == b"":
            raise Wrong("a false end of file")
    except TimeoutError:
        raise
    except OSError as problem:
        return [problem]
    return []


def scene_fallback(opened: list[Any]) -> None:
    with stdlib.create_server(LOCAL) as listener:
        listener.settimeout(PATIENCE_S)
        client = made(FallingBack)
        opened.append(client)
        client.connect(listener.getsockname())
        server = accept(listener, client)
        opened.append(server)
        carry(client, server, BULK_BYTES)
        carry(server, client, 50_000)


def scene_both(opened: list[Any]) -> None:
    listener = made(OfBoth)
    opened.append(listener)
    listener.bind(LOCAL)
    listener.listen(8)
    client = stdlib.socket()
    client.settimeout(PATIENCE_S)
    client, server = accepted(opened, listener, client)
    carry(client, server, 50_000)
    server.send(b"x")
    server.close()
    drained(client)


SCENES: list[Callable[[list[Any]], None]] = [
    scene_bulk,
    scene_bound,
    scene_reset,
    scene_unread,
    scene_refused,
    scene_nonblocking,
    scene_lingering,
    scene_backlog,
    scene_fallback,
    scene_both,
]


class Play:
    """All scenes, one after the other in a thread of its own."""

    def __init__(self) -> None:
        self.victims: list[str] = []
        self.wrong: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for scene in SCENES:
            try:
                with closing_all() as opened:
                    scene(opened)
            except TimeoutError as problem:
                self.wrong.append(f"{scene.__name__} waits for ever: {problem!r}")
            except OSError as problem:
                self.victims.append(f"{scene.__name__}: {problem!r}")
            except Lost as problem:
                self.victims += [f"{scene.__name__}: {error!r}" for error in problem.errors]
            except Wrong as problem:
                self.wrong.append(f"{scene.__name__}: {problem}")
            except BaseException as problem:
                self.wrong.append(f"{scene.__name__} was told {problem!r}, which is no OSError")

    def ended(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()


class Innocent:
    """A connection that echoes a few bytes, again and again."""

    def __init__(self, listener: Any) -> None:
        self.opened: list[Any] = []
        self.client, self.server = accepted(self.opened, listener, made())
        for sock in (self.client, self.server):
            sock.setblocking(False)
        self.rounds = 0
        self.sent_at = 0.0
        self.next_at = 0.0
        self.error: str | None = None
        self.told = ""  # which of the ends was
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
            self.rounds += 1
            self.sent_at = 0.0
            self.next_at = time.monotonic() + PAUSE_S


class Innocents:
    """All of them, and the thread that has them speak."""

    def __init__(self) -> None:
        self.listener = made()
        self.listener.bind(LOCAL)
        self.listener.listen(64)
        self.lock = threading.Lock()
        self.all = [Innocent(self.listener) for _ in range(INNOCENTS)]
        self.wrong: list[str] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            with self.lock:
                now = time.monotonic()
                poller = select.poll()
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
            one.error, one.told = repr(problem), "server" if call == one.on_server else "client"
        except Wrong as problem:
            one.error, one.told = str(problem), "server" if call == one.on_server else "client"
            self.wrong.append(f"innocent: {problem}")

    def heal(self) -> list[str]:
        """What broke; and new ones in their place."""
        with self.lock:
            broken = [one for one in self.all if one.error is not None]
            for one in broken:
                # Both ends must be told, and each of them once.
                self.wrong += told(one)
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

    def stuck(self, seconds: float) -> str:
        """Wait until each has completed a round trip that began after this; "" or who did not."""
        with self.lock:
            # The one under way counts only for those that were not waiting.
            goals = {one: one.rounds + (2 if one.sent_at else 1) for one in self.all if one.error is None}
        deadline = time.monotonic() + seconds
        while True:
            left = [one for one, goal in goals.items() if one.error is None and one.rounds < goal]
            if not left:
                return ""
            if time.monotonic() > deadline:
                return f"{len(left)} of {len(goals)} innocent connections wait for ever"
            time.sleep(0.002)


def told(one: Innocent) -> list[str]:
    for name, sock in (("client", one.client), ("server", one.server)):
        if name == one.told:
            continue
        sock.settimeout(PATIENCE_S)
        try:
            while sock.recv(65_536):
                pass
            if one.error != "a false end of file":
                return [f"innocent: the {name}'s end was told a false end of file ({one.error})"]
        except TimeoutError:
            return [f"innocent: the {name}'s end was told nothing ({one.error})"]
        except OSError:
            pass
    return []


def fds() -> tuple[int, int]:
    """(fds that are no UDP ports, UDP ports), without those that the engine keeps in reserve: highfd.py has now more
    and now fewer of them, all duplicates of one socket.

    The kernel is asked for each fd what it is: a table of all ports, as /proc/net/udp is, may lack some while others
    come and go.
    """
    kept_target = f"socket:[{highfd._model_file[1]}]"
    ports = others = kept = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target == kept_target:
            kept += 1
        elif socket_type(int(name)) == stdlib.SOCK_DGRAM:
            ports += 1
        else:
            others += 1
    return others + max(0, kept - MOST_KEPT_FDS), ports


def socket_type(fd: int) -> int:
    """SO_TYPE of whatever this is, without an fd for it."""
    value, size = ctypes.c_int(-1), ctypes.c_uint(4)
    LIBC.getsockopt(fd, stdlib.SOL_SOCKET, stdlib.SO_TYPE, ctypes.byref(value), ctypes.byref(size))
    return value.value


def waiting_ports(loop: Any) -> int:
    """How many ports are left only to connections in TIME_WAIT, for a late FIN of the peer's, and will be closed at a
    time that is set: where packets were lost that may be a minute, as with TCP. On the engine's thread.
    """
    return sum(
        bool(endpoint.bridges)
        and not endpoint.holders
        and endpoint.listener is None
        and all(
            bridge.connection.state is State.TIME_WAIT and bridge.end is None and bridge.heap_at is not None
            for bridge in endpoint.bridges.values()
        )
        for endpoint in loop.endpoints.values()
    )


class Stage:
    """What stays from point to point."""

    def __init__(self) -> None:
        self.innocents = Innocents()
        self.injector = Injector()
        self.loop: Any = running_engine()
        play = Play()
        if not play.ended(60) or play.victims or play.wrong:
            raise SystemExit(f"the play fails without any fault: {play.victims} {play.wrong}")
        self.fds = self._at_rest()

    def _fds(self) -> tuple[tuple[int, int], int]:
        """fds(), and how many of the ports are no more than waiting, at one moment of the engine's."""
        found: tuple[tuple[int, int], int] = self.loop.call(lambda loop: (fds(), waiting_ports(loop)))
        return found

    def _at_rest(self) -> tuple[int, int]:
        """The fds that there are when no port waits any more, twenty times on end."""
        deadline = time.monotonic() + PATIENCE_S
        found, calm = None, 0
        while calm < 20:
            if time.monotonic() > deadline:
                raise SystemExit("the fds come and go without any fault")
            time.sleep(0.01)
            before, (found, waiting) = found, self._fds()
            calm = calm + 1 if found == before and not waiting else 0
        assert found is not None
        return found

    def _left_over(self) -> tuple[int, int]:
        """How many fds, and ports, there are more than at first, once what is on its way out has had its time. The
        ports that still wait then are counted out; before, the next fault should not meet them.
        """
        start = time.monotonic()
        while True:
            (others, ports), waiting = self._fds()
            passed_s = time.monotonic() - start
            if passed_s > USUAL_WAIT_S:
                ports -= waiting
            left = max(0, others - self.fds[0]), max(0, ports - self.fds[1])
            if left == (0, 0) or passed_s > SETTLE_S:
                return left
            if passed_s > USUAL_WAIT_S:
                gc.collect()
            time.sleep(0.01)

    def record(self, rounds: int) -> list[Any]:
        self.injector.record(self.loop)
        for _ in range(rounds):
            Play().ended(60)
        self.injector.disarm(self.loop)
        return [(*site, self.injector.kinds[site], count) for site, count in sorted(self.injector.seen.items())]

    def inject(self, site: Any, occurrence: int, error: str) -> dict[str, Any]:
        loop, innocents = self.loop, self.innocents
        wrong: list[str] = []
        innocents.wrong.clear()
        self.injector.arm(loop, tuple(site), occurrence, error)
        play = Play()
        if not play.ended(4 * PATIENCE_S):
            return {"has_fired": self.injector.has_fired, "wrong": ["the play hangs", *play.wrong], "is_lost": True}
        has_fired = self.injector.has_fired
        stuck = innocents.stuck(PATIENCE_S)
        if stuck:
            wrong.append(stuck)
        if not loop.is_alive or running_engine() is not loop:
            return {"has_fired": has_fired, "wrong": [*wrong, "the engine's thread ended"], "is_lost": True}
        self.injector.disarm(loop)
        victims = play.victims + innocents.heal()
        wrong += play.wrong + innocents.wrong
        if len(victims) > 1:
            wrong.append(f"{len(victims)} connections paid for one fault: {victims}")
        if len(innocents.all) == INNOCENTS:
            others, ports = self._left_over()
            if others or ports:
                wrong.append(f"fds leaked: {others} and {ports} UDP ports")
        return {
            "has_fired": has_fired,
            "wrong": wrong,
            "victims": victims,
            "faults": stats.engine_stats().faults,
            "is_lost": bool(wrong),
        }


def main() -> None:
    faulthandler.enable()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.excepthook = lambda _: None
    stage = Stage()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "record" in asked:
            answer: Any = {"sites": stage.record(asked["record"])}
        else:
            answer = stage.inject(asked["site"], asked["occurrence"], asked["error"])
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()

"""What a test may ask of a network, the same for stdlib TCP and for utpsocket.

`Net` owns every socket and thread it made and closes them when the test ends. Nothing here decides how a
socket must behave: that is said in the tests only.

Two habits keep the cases valid for both: kernel TCP acts inside the system call, a thread engine some time
later, so a test waits for the state it wants to look at (`eventually`, `readable`); and ports are always the
kernel's choice.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib
import os
import random
import select
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from utpsocket.engine import commands, engine
from utpsocket.engine.loop import Loop

T = TypeVar("T")

MODULES = {"tcp": "socket", "utp": "utpsocket"}
PATIENCE_S = 60.0  # how long a state may take to come about; only a failing test waits this long
AT_ONCE_S = 30.0  # what need not wait takes less, on the busiest machine too: the test lets it wait for much longer
LONG_S = 120.0  # that much longer
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
REPOSITORY = Path(__file__).resolve().parents[2]

IN, OUT, ERR, HUP, RDHUP = (
    select.POLLIN,
    select.POLLOUT,
    select.POLLERR,
    select.POLLHUP,
    getattr(select, "POLLRDHUP", 0),
)


class Task:
    """A function running in its own thread; result() gives its value or raises what it raised."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._function, self._args = function, args
        self._value: Any = None
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True, name=f"test-{function.__name__}")
        self.thread.start()

    def _run(self) -> None:
        try:
            self._value = self._function(*self._args)
        except BaseException as error:
            self._error = error

    def done(self) -> bool:
        return not self.thread.is_alive()

    def result(self, timeout_s: float = PATIENCE_S) -> Any:
        self.thread.join(timeout_s)
        assert self.done(), f"{self.thread.name} still runs after {timeout_s} s"
        if self._error is not None:
            raise self._error
        return self._value


class Net:
    """One of the two networks under test. Attributes: name ("tcp" or "utp"), module (`socket` or `utpsocket`)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.module: Any = importlib.import_module(MODULES[name])
        self._owned = contextlib.ExitStack()
        self._tasks: list[Task] = []

    def close(self) -> None:
        """Close all sockets handed out and wait for the threads."""
        self._owned.close()
        for task in self._tasks:
            task.thread.join(PATIENCE_S)

    # -- sockets ------------------------------------------------------------------------------------------

    def own(self, closable: T) -> T:
        self._owned.callback(closable.close)  # type: ignore[attr-defined]
        return closable

    def fresh(self, family: int = socket.AF_INET, *, timeout: float | None = None) -> Any:
        made = self.own(self.module.socket(family, socket.SOCK_STREAM))
        if timeout is not None:
            made.settimeout(timeout)
        return made

    def listener(self, family: int = socket.AF_INET, *, backlog: int = 128, host: str | None = None) -> Any:
        made = self.fresh(family)
        made.bind((host or loopback(family), 0))
        made.listen(backlog)
        return made

    def accept(self, listener: Any) -> Any:
        return self.own(listener.accept()[0])

    def pair(self, family: int = socket.AF_INET) -> tuple[Any, Any]:
        """-> (client, server_conn), connected to each other and blocking."""
        listener = self.listener(family)
        client = self.fresh(family)
        client.connect(listener.getsockname())
        server = self.accept(listener)
        listener.close()
        return client, server

    def reset(self, sock: Any) -> None:
        """Close so that the peer sees a reset, not an end of file."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        sock.close()

    # -- addresses ----------------------------------------------------------------------------------------

    def refused_address(self, family: int = socket.AF_INET) -> Any:
        """An address of this machine where no socket listens until the test ends: its port is held by a TCP socket that
        does not listen, or by a UDP socket that is connected to itself and so takes nothing from others.
        """
        if self.name == "tcp":
            holder = self.own(socket.socket(family))
            holder.bind((loopback(family), 0))
        else:
            holder = self.own(socket.socket(family, socket.SOCK_DGRAM))
            holder.bind((loopback(family), 0))
            holder.connect(holder.getsockname())
        return holder.getsockname()

    def silent_address(self) -> Any:
        """An address that swallows every attempt to connect, until the test ends."""
        if self.name == "utp":
            mute = self.own(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            mute.bind(("127.0.0.1", 0))
            return mute.getsockname()
        # Linux drops a SYN while the accept queue is full.
        full = self.own(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):
            filler = self.own(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        return full.getsockname()

    def flush(self) -> None:
        """What exit does and os._exit does not: send what is left, FINs included. Kernel TCP needs no such thing."""
        if self.name == "utp":
            importlib.import_module("utpsocket.engine").shutdown()

    # -- threads and processes ------------------------------------------------------------------------------

    def spawn(self, function: Callable[..., Any], *args: Any) -> Task:
        task = Task(function, *args)
        self._tasks.append(task)
        return task

    def python(self, code: str, *args: object, **popen: Any) -> subprocess.Popen[bytes]:
        """A new interpreter that runs `code`, in which `socket` is the module under test."""
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **popen.pop("env", {})}
        command = [sys.executable, "-c", f"import {MODULES[self.name]} as socket\n{code}", *map(str, args)]
        process = subprocess.Popen(command, env=environment, **popen)
        self._owned.callback(end_process, process)
        return process


def loopback(family: int) -> str:
    return "::1" if family == socket.AF_INET6 else "127.0.0.1"


def own_loopback() -> str:
    """A loopback address of this process alone. A port that was closed there stays free, while one of 127.0.0.1 may be
    given to any client on the machine; and a number that is free for UDP is free for TCP.
    """
    pid = os.getpid()
    return f"127.{1 + pid // 65536 % 254}.{pid // 256 % 256}.{1 + pid % 256 % 254}"


def quiet_port() -> int:
    """A port number that is free at every address, and that the kernel does not choose by itself."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="utf-8").split()[0])
    while True:
        port = random.randrange(lowest // 2, lowest)
        try:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                for family in (socket.AF_INET, socket.AF_INET6) if socket.has_ipv6 else (socket.AF_INET,):
                    with contextlib.closing(socket.socket(family, kind)) as sock:
                        sock.bind(("", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            if family == socket.AF_INET:
                raise
        return port


def end_process(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def fork(function: Callable[[], object]) -> int:
    """Run `function` in a forked child that leaves through os._exit: 0 if it returned, 1 if it raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork with threads alive, which is the point here
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        import signal

        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(PATIENCE_S))
        function()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def wait_child(pid: int, timeout_s: float = PATIENCE_S) -> int:
    """The exit code of a forked child (negative: a signal), which is killed when it takes too long."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    raise AssertionError(f"child {pid} still ran after {timeout_s} s")


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run `main` in an event loop, and what it started for its connections to the end (Server.wait_closed() before
    3.12 does not wait for them).
    """

    async def to_the_end() -> None:
        await asyncio.wait_for(main, PATIENCE_S)
        if handlers := asyncio.all_tasks() - {asyncio.current_task()}:
            _, unfinished = await asyncio.wait(handlers, timeout=PATIENCE_S)
            assert not unfinished, f"did not see the end: {unfinished}"

    asyncio.run(to_the_end())


# -- looking at sockets ---------------------------------------------------------------------------------------


def poll_mask(sock: Any) -> int:
    poller = select.poll()
    poller.register(sock, IN | OUT | RDHUP)
    return dict(poller.poll(0)).get(sock.fileno(), 0)


def describe(mask: int) -> str:
    names = {"IN": IN, "OUT": OUT, "ERR": ERR, "HUP": HUP, "RDHUP": RDHUP, "PRI": select.POLLPRI}
    return "|".join(name for name, bit in names.items() if mask & bit) or "nothing"


def eventually(look: Callable[[], T], expected: object, timeout_s: float = PATIENCE_S) -> T:
    """Look until it gives `expected` or the time is over; return what was seen last."""
    deadline = time.monotonic() + timeout_s
    while (seen := look()) != expected and time.monotonic() < deadline:
        time.sleep(0.001)
    return seen


def eventually_polls(sock: Any, mask: int) -> str:
    return eventually(lambda: describe(poll_mask(sock)), describe(mask))


def fill(sock: Any, piece_bytes: int = 65_536) -> int:
    """Send until the socket takes no more: how much that was."""
    sent = 0
    while True:
        try:
            sent += sock.send(bytes(piece_bytes))
        except (BlockingIOError, TimeoutError):
            return sent


def fill_for_good(sock: Any, piece_bytes: int = 65_536) -> int:
    """Fill, until nothing has moved on for a while, in which the engine had its turn twenty times: a busy machine may
    leave it without one for longer than that.
    """
    engine = importlib.import_module("utpsocket.engine").running_engine()
    sent, calm_since, turns = fill(sock, piece_bytes), time.monotonic(), 0
    while time.monotonic() - calm_since < 0.25 or turns < 20:  # TCP may delay an acknowledgement for 0.2 s
        if isinstance(engine, Loop):
            engine.call(lambda loop: None)
        turns += 1
        if more := fill(sock, piece_bytes):
            sent, calm_since, turns = sent + more, time.monotonic(), 0
        select.select([], [sock], [], 0.01)
    return sent


def readable(*socks: Any, timeout_s: float = PATIENCE_S) -> None:
    """Return when every one of them is readable."""
    deadline = time.monotonic() + timeout_s
    for sock in socks:
        left_s = max(0.0, deadline - time.monotonic())
        assert select.select([sock], [], [], left_s)[0], f"{sock!r} not readable within {timeout_s} s"


def wait_for_spare_sockets() -> None:
    """Until the engine has made all that the next calls of bind() may take."""
    loop = engine()
    assert isinstance(loop, Loop)
    while loop.idle_sockets.wanted:
        loop.call(commands.barrier)
    loop.call(commands.barrier)  # the iteration is over in which the last one was made


def receive_exactly(sock: Any, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        part = sock.recv(min(1 << 18, size - len(received)))
        assert part, f"end of file after {len(received)} of {size} bytes"
        received += part
    return bytes(received)


def receive_all(sock: Any) -> bytes:
    return b"".join(iter(lambda: sock.recv(1 << 18), b""))


@contextlib.contextmanager
def raises_errno(*codes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        seen = errno.errorcode.get(error.errno or 0, repr(error))
        assert error.errno in codes, f"{seen} instead of {[errno.errorcode[code] for code in codes]}: {error!r}"
        assert isinstance(error, type(OSError(error.errno, ""))), f"{seen} raised as {type(error)}"
    else:
        raise AssertionError(f"nothing raised, expected {[errno.errorcode[code] for code in codes]}")


def outcome(operation: Callable[[], object]) -> tuple[str, object]:
    """What a call does, in a form in which two calls can be compared: its value, or the kind and words of its error."""
    try:
        return "returned", operation()
    except Exception as error:
        code = getattr(error, "errno", None)
        return type(error).__name__, (code, str(error))

"""The names that a sequence's lines may use beside the sockets `a` to `f`: what takes more than one expression."""

from __future__ import annotations

import fcntl
import os
import pickle
import select
import socket as stdlib
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from typing import Any, Final

RESET: Final = struct.pack("ii", 1, 0)  # for SO_LINGER: close() resets
SLOTS: Final = ("a", "b", "c", "d", "e", "f")
FLAGS: Final = {name: getattr(select, "POLL" + name) for name in ("IN", "PRI", "OUT", "ERR", "HUP", "RDHUP", "NVAL")}
_ALL_EVENTS: Final = sum(FLAGS.values())
_TIMEVAL: Final = struct.Struct("@ll")
_HOLDER_LIMIT_S: Final = 60.0  # a program starts so slowly on a busy machine
FILLING_BYTES: Final = 20_000
_STATES: Final = {1: "established", 2: "connecting", 4: "we ended", 5: "we ended", 8: "peer ended", 10: "listening"}


def describe(mask: int) -> str:
    """A poll mask by its flags' names."""
    return "|".join(name for name, flag in FLAGS.items() if mask & flag) or "0"


def polled(sock: Any) -> str:
    """What poll() says of the socket now, whatever it is asked for."""
    poller = select.poll()
    poller.register(sock, _ALL_EVENTS)
    found = poller.poll(0)
    return describe(found[0][1]) if found else "0"


def epolled(sock: Any) -> str:
    """What epoll says of the socket now: level-triggered, registered a moment ago."""
    with select.epoll() as poller:
        poller.register(sock, select.EPOLLIN | select.EPOLLPRI | select.EPOLLOUT | select.EPOLLRDHUP)
        found = poller.poll(0)
    return describe(found[0][1]) if found else "0"


def selected(sock: Any) -> str:
    """What select() says of the socket now."""
    found = select.select([sock], [sock], [sock], 0)
    return "".join(letter for letter, part in zip("rwx", found, strict=True) if part)


def ioctl(sock: Any, request: int) -> int:
    """The int that an ioctl answers with."""
    return int(struct.unpack("=i", fcntl.ioctl(sock, request, struct.pack("=i", 0)))[0])


def unread(sock: Any) -> int | str:
    """FIONREAD: how many bytes have arrived and are not received; where fill() ends is no promise."""
    count = ioctl(sock, termios.FIONREAD)
    return count if count < FILLING_BYTES else "many"


def unsent(sock: Any) -> int:
    """TIOCOUTQ: how many bytes were sent and are not acknowledged."""
    return ioctl(sock, termios.TIOCOUTQ)


def state(sock: Any) -> str:
    """TCP_INFO's state. Whether a FIN is acknowledged yet depends on the moment."""
    return _STATES.get(sock.getsockopt(stdlib.IPPROTO_TCP, stdlib.TCP_INFO, 1)[0], "closed")


def thrown_away(sock: Any, *flags: int) -> tuple[int, bytes]:
    """MSG_TRUNC: how many bytes were taken, and what is in the buffer that they were not put into. What recv() returns
    of them is whatever the memory held.
    """
    buffer = bytearray(b".....")
    return sock.recv_into(buffer, 0, sum(flags, stdlib.MSG_TRUNC)), bytes(buffer)


class Names:
    """What a sequence's lines see: the sockets and these helpers, over one network.

    settle    waits until what was done has had its effect
    seconds   the timeout T
    """

    def __init__(self, module: Any, nowhere: Any, seconds: float, settle: Callable[[], None]) -> None:
        self._settle = settle
        self._seconds = seconds
        self._holders: list[Holder] = []
        self.scope: dict[str, Any] = dict.fromkeys(SLOTS)
        self.scope |= values(module)
        self.scope |= {
            "NOWHERE": nowhere,
            "T": seconds,
            "fill": self.fill,
            "drain": self.drain,
            "patient": self.patient,
            "meanwhile": self.meanwhile,
            "fork": self.fork,
            "start": self.start,
        }

    def fill(self, sock: Any) -> str:
        """Send until nothing more is taken, also after a while."""
        timeout = sock.gettimeout()
        sock.settimeout(0)
        refused = 0
        block = bytes(65_536)
        try:
            while refused < 4:
                try:
                    sock.send(block)
                    refused = 0
                except BlockingIOError:
                    refused += 1
                    self._settle()
        finally:
            sock.settimeout(timeout)
        return "full"

    def drain(self, sock: Any) -> str:
        """Receive until nothing more comes; what stopped it."""
        timeout = sock.gettimeout()
        sock.settimeout(0)
        nothing = 0
        try:
            while nothing < 4:
                try:
                    if not sock.recv(1 << 20):
                        return "end of file"
                    nothing = 0
                except BlockingIOError:
                    nothing += 1
                    self._settle()
        finally:
            sock.settimeout(timeout)
        return "empty"

    def meanwhile(self, waits: str, then: str) -> Any:
        """One expression in a second thread, and once it waits another one here; the results of both."""
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(evaluate(waits, self.scope)), daemon=True)
        thread.start()
        time.sleep(self._seconds / 10)
        here = evaluate(then, self.scope)
        thread.join(_HOLDER_LIMIT_S)
        return ("thread", plain(found[0]) if found else "hangs", "here", plain(here))

    def patient(self, sock: Any) -> None:
        """Have the socket block in the kernel, which gives up after a while."""
        for option in (stdlib.SO_RCVTIMEO, stdlib.SO_SNDTIMEO):
            sock.setsockopt(stdlib.SOL_SOCKET, option, _TIMEVAL.pack(0, int(self._seconds * 1_000_000)))
        sock.settimeout(None)

    def fork(self) -> Holder:
        """A forked process that holds every socket, does what it is told, and dies."""
        return self._holder(forked)

    def start(self) -> Holder:
        """The same, but a program that was started and found the fds."""
        return self._holder(started)

    def _holder(self, make: Callable[[dict[str, Any], stdlib.socket], int]) -> Holder:
        holder = Holder(self.scope, make)
        self._holders.append(holder)
        return holder

    def close(self) -> None:
        """End the holders and close the sockets."""
        for holder in self._holders:
            holder.kill()
        for name in SLOTS:
            sock = self.scope[name]
            if isinstance(sock, stdlib.socket):
                try:
                    sock.close()
                except OSError:
                    pass


def values(module: Any) -> dict[str, Any]:
    """What a line may use in any process."""
    return {
        "socket": module,
        "RESET": RESET,
        "polled": polled,
        "epolled": epolled,
        "selected": selected,
        "unread": unread,
        "unsent": unsent,
        "state": state,
        "thrown_away": thrown_away,
        "select": select,
        "os": os,
        "struct": struct,
    }


def forked(scope: dict[str, Any], control: stdlib.socket) -> int:
    """A forked process that serves; its id."""
    pid = os.fork()
    if not pid:
        try:
            serve(control, scope)
        finally:
            os._exit(0)
    return pid


def started(scope: dict[str, Any], control: stdlib.socket) -> int:
    """Another program that serves; its process's id."""
    network = "tcp" if scope["socket"] is stdlib else "utp"
    held, fds = [], [control.fileno()]
    for name in SLOTS:
        sock = scope[name]
        if isinstance(sock, stdlib.socket) and sock.fileno() >= 0:
            held.append(f"{name}={sock.fileno()}={sock.gettimeout()}")
            fds.append(sock.fileno())
    command = [sys.executable, "-S", "-B", "-m", "compat.fuzz.holder", network, str(control.fileno()), *held]
    path = os.pathsep.join(filter(None, (os.getcwd(), *sys.path)))
    process = subprocess.Popen(command, pass_fds=fds, env={**os.environ, "PYTHONPATH": path})
    process.returncode = 0  # waited for by Holder.kill()
    return process.pid


def serve(control: stdlib.socket, scope: dict[str, Any]) -> None:
    """Evaluate what comes, and answer with the result."""
    control.settimeout(None)
    control.send(b"ready")
    while line := control.recv(65_536):
        control.send(pickle.dumps(plain(evaluate(line.decode(), scope))))


class Holder:
    """A process that has all the sockets there were."""

    def __init__(self, scope: dict[str, Any], make: Callable[[dict[str, Any], stdlib.socket], int]) -> None:
        self._control, theirs = stdlib.socketpair()
        self._control.settimeout(_HOLDER_LIMIT_S)
        with theirs:
            self.pid = make(scope, theirs)
        self._control.recv(65_536)

    def do(self, line: str) -> Any:
        """Have the child evaluate an expression; its result."""
        self._control.send(line.encode())
        answer = self._control.recv(65_536)
        return pickle.loads(answer) if answer else "died"

    def kill(self) -> str:
        """End the child by SIGKILL."""
        if self.pid:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
            self.pid = 0
            self._control.close()
        return "killed"


class Raised:
    """An exception as a result."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def evaluate(line: str, scope: dict[str, Any]) -> Any:
    """The value of an expression, or what it raised."""
    try:
        return eval(line, scope)
    except Exception as error:
        error.__context__ = None  # whose frames, like its own, would keep sockets that the sequence drops
        return Raised(error.with_traceback(None))


def plain(value: Any) -> Any:
    """A result without what differs between any two runs: objects, numbers of fds."""
    if isinstance(value, Raised):
        error = value.error
        if isinstance(error, OSError) and type(error) is not stdlib.timeout:
            code = error.errno
            name = "timed out" if code is None else stdlib.errno.errorcode.get(code, str(code))  # type: ignore[attr-defined]
            return f"raises {type(error).__name__} {name}"
        return f"raises {type(error).__name__}" + (f": {error}" if isinstance(error, (TypeError, ValueError)) else "")
    if isinstance(value, stdlib.socket):
        return f"socket({int(value.family)}, {int(value.type)}, {value.proto}, timeout={value.gettimeout()})"
    if isinstance(value, Holder):
        return "holder"
    if isinstance(value, (list, tuple)):
        return tuple(plain(part) for part in value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, int):
        return int(value)
    if value is None or isinstance(value, (str, float)):
        return value
    return type(value).__name__

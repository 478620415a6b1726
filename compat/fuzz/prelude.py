"""The names that a sequence's lines may use beside the sockets `a` to `f`: what takes more than one expression."""

from __future__ import annotations

import fcntl
import os
import pickle
import select
import socket as stdlib
import struct
import termios
import threading
import time
from collections.abc import Callable
from typing import Any, Final

RESET: Final = struct.pack("ii", 1, 0)  # for SO_LINGER: close() resets
SLOTS: Final = ("a", "b", "c", "d", "e", "f")
FLAGS: Final = {name: getattr(select, "POLL" + name) for name in ("IN", "PRI", "OUT", "ERR", "HUP", "RDHUP", "NVAL")}
_ALL_EVENTS: Final = sum(FLAGS.values())
_HOLDER_LIMIT_S: Final = 20.0


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


def unread(sock: Any) -> int:
    """FIONREAD: how many bytes have arrived and are not received."""
    return ioctl(sock, termios.FIONREAD)


def unsent(sock: Any) -> int:
    """TIOCOUTQ: how many bytes were sent and are not acknowledged."""
    return ioctl(sock, termios.TIOCOUTQ)


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
        self.scope |= {
            "socket": module,
            "NOWHERE": nowhere,
            "T": seconds,
            "RESET": RESET,
            "fill": self.fill,
            "drain": self.drain,
            "meanwhile": self.meanwhile,
            "fork": self.fork,
            "polled": polled,
            "epolled": epolled,
            "selected": selected,
            "unread": unread,
            "unsent": unsent,
            "select": select,
            "os": os,
            "struct": struct,
        }

    def fill(self, sock: Any) -> str:
        """Send until nothing more is taken, also after a while."""
        refused = 0
        block = bytes(65_536)
        while refused < 4:
            try:
                sock.send(block, stdlib.MSG_DONTWAIT)
                refused = 0
            except BlockingIOError:
                refused += 1
                self._settle()
        return "full"

    def drain(self, sock: Any) -> str:
        """Receive until nothing more comes; what stopped it."""
        nothing = 0
        while nothing < 4:
            try:
                if not sock.recv(1 << 20, stdlib.MSG_DONTWAIT):
                    return "end of file"
                nothing = 0
            except BlockingIOError:
                nothing += 1
                self._settle()
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

    def fork(self) -> Holder:
        """A forked process that holds every socket, does what it is told, and dies."""
        holder = Holder(self.scope)
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


class Holder:
    """A forked child with copies of all the sockets there were."""

    def __init__(self, scope: dict[str, Any]) -> None:
        ours, theirs = stdlib.socketpair()
        self.pid = os.fork()
        if not self.pid:
            status = 1
            try:
                ours.close()
                self._serve(theirs, scope)
                status = 0
            finally:
                os._exit(status)
        theirs.close()
        self._control = ours

    @staticmethod
    def _serve(control: stdlib.socket, scope: dict[str, Any]) -> None:
        while line := control.recv(65_536):
            control.send(pickle.dumps(plain(evaluate(line.decode(), scope))))

    def do(self, line: str) -> Any:
        """Have the child evaluate an expression; its result."""
        self._control.settimeout(_HOLDER_LIMIT_S)
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
        return Raised(error)


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

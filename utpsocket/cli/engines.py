"""The engines of other processes: where they are, and what they say of themselves.

engine/outside.py is the other side, and says how it is asked and who may.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import os
import secrets
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from utpsocket.engine.interpreter import libc
from utpsocket.engine.interpreter.originals import ctypes
from utpsocket.engine.outside import name

_PROC: Final = Path("/proc")
_THREAD_NAME: Final = "utpsocket\n"  # of the engine's thread, as Loop.start() gives it
_EVENTFD: Final = "anon_inode:[eventfd]"
_HELPER: Final = "utpsocket engine of "  # helper/client.py: the last argument of an engine in a process of its own
_CLONE_NEWNET: Final = 0x4000_0000
_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred
# A process that holds the GIL, or waits for a processor, answers late; one that is stopped never. By feel.
_ANSWER_SECONDS: Final = 20.0
# Once the engine has woken up it answers at once, unless two processes have asked at the same moment. By feel.
_ASK_AGAIN_SECONDS: Final = 2.0
_LOOK_SECONDS: Final = 0.1

Figures = dict[str, Any]
"""Of a process: pid, command, build, engine, ports and connections, as --json prints them; or of a connection."""


class NotAnswered(Exception):
    """A process could not be asked, or did not answer; the text says why."""


def find() -> list[int]:
    """The ids of all processes of this user that have an engine; for root of all users."""
    user = os.geteuid()
    found = []
    for entry in _PROC.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if entry.name.isdecimal() and user in (0, entry.stat().st_uid) and _has_engine(int(entry.name)):
                found.append(int(entry.name))
    return sorted(found)


def serving(pid: int) -> int | None:
    """The process that the engine of this process runs in: mostly the same. None if it has none."""
    if _has_engine(pid):
        return pid
    return next((other for other in find() if _last_argument(other) == f"{_HELPER}{pid}"), None)


def ask(pid: int) -> Figures:
    """What the engine in this process says of itself. Raises NotAnswered."""
    thread = _thread_of(pid)
    try:
        if thread is None:
            raise NotAnswered(f"process {pid} has no engine")
        with _waker(pid) as waker:
            _enter_network_namespace(thread)
            text = _answer(pid, waker)
    except (FileNotFoundError, ProcessLookupError):
        raise NotAnswered(f"process {pid} has ended") from None
    answered = ast.literal_eval(text)
    fields = answered["fields"]
    return {
        "pid": pid,
        "command": _command(pid),
        "build": answered["build"],
        "engine": answered["engine"],
        "ports": answered["ports"],
        "connections": [dict(zip(fields, each, strict=True)) for each in answered["connections"]],
    }


def _has_engine(pid: int) -> bool:
    """With UTPSOCKET_ENGINE=process the application has a thread of that name too, which is no engine's."""
    try:
        return _thread_of(pid) is not None and _waker_number(pid) is not None
    except PermissionError:
        return True  # it may have one
    except (FileNotFoundError, ProcessLookupError):
        return False  # it has ended


def _thread_of(pid: int) -> Path | None:
    """The folder of the engine's thread in /proc."""
    try:
        threads = list((_PROC / str(pid) / "task").iterdir())
    except OSError:
        return None
    for thread in threads:
        with contextlib.suppress(OSError):
            if (thread / "comm").read_text(encoding="utf-8", errors="replace") == _THREAD_NAME:
                return thread
    return None


@contextlib.contextmanager
def _waker(pid: int) -> Iterator[int]:
    """A duplicate of the eventfd that wakes the engine of this process. Raises NotAnswered, ProcessLookupError."""
    try:
        pidfd = os.pidfd_open(pid)
    except AttributeError:
        raise NotAnswered("this Python was built for a kernel without pidfd_open()") from None
    try:
        number = _waker_number(pid)
        if number is None:
            raise NotAnswered(f"process {pid} has no engine that can be asked")
        duplicate = libc.pidfd_getfd(pidfd, number, 0)
        code = ctypes.get_errno()
    except PermissionError:
        duplicate, code = -1, errno.EPERM
    finally:
        os.close(pidfd)
    if duplicate < 0:
        raise NotAnswered(f"process {pid} may not be asked: {_reason(code)}")
    try:
        yield duplicate
    finally:
        os.close(duplicate)


def _waker_number(pid: int) -> int | None:
    """Of the eventfd that wakes the engine, which has O_APPEND. None where there is none. Raises OSError."""
    folder = _PROC / str(pid)
    for entry in os.listdir(folder / "fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(folder / "fd" / entry) == _EVENTFD:
                lines = (folder / "fdinfo" / entry).read_text(encoding="ascii").splitlines()
                flags = next((line.split()[1] for line in lines if line.startswith("flags:")), "0")
                if int(flags, 8) & os.O_APPEND:
                    return int(entry)
    return None


def _reason(code: int) -> str:
    if code == errno.EPERM:
        with contextlib.suppress(OSError):
            scope = Path("/proc/sys/kernel/yama/ptrace_scope").read_text(encoding="ascii").strip()
            if scope != "0":
                return f"kernel.yama.ptrace_scope is {scope}; be root, or start it with UTPSOCKET_STAT=1"
        return "it is another user's, has changed its user, or this is a container that forbids it"
    return os.strerror(code)


def _enter_network_namespace(thread: Path) -> None:
    """Abstract names exist in one network namespace each. Where this may not be entered, no answer comes."""
    with contextlib.suppress(OSError):
        if os.stat(thread / "ns/net").st_ino != os.stat("/proc/thread-self/ns/net").st_ino:
            with open(thread / "ns/net", "rb") as namespace:
                libc.setns(namespace.fileno(), _CLONE_NEWNET)


def _answer(pid: int, waker: int) -> str:
    until = time.monotonic() + _ANSWER_SECONDS
    while time.monotonic() < until:
        number = 1 + secrets.randbelow(0x7FFF_FFFF)  # two of them at once still fit
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(name(number))
            listener.listen(1)
            # Numbers that come before the engine has read the one before are added up, and neither is answered then.
            is_asked = not _is_unread(waker)
            if is_asked:
                with contextlib.suppress(BlockingIOError):  # several others, at this moment
                    os.eventfd_write(waker, number << 32)
            ask_again_at = until
            while time.monotonic() < ask_again_at:
                listener.settimeout(_LOOK_SECONDS)
                with contextlib.suppress(OSError):
                    text = _received(listener, pid)
                    if text is not None:
                        return text
                if ask_again_at == until and not _is_unread(waker):
                    ask_again_at = min(until, time.monotonic() + (_ASK_AGAIN_SECONDS if is_asked else 0))
    raise NotAnswered(f"process {pid} does not answer")


def _is_unread(waker: int) -> bool:
    """Whether a process has asked, and the engine has not woken up since. proc(5) fdinfo"""
    lines = (_PROC / f"self/fdinfo/{waker}").read_text(encoding="ascii").splitlines()
    count = next((line.split()[1] for line in lines if line.startswith("eventfd-count:")), "0")
    return int(count, 16) >> 32 != 0


def _received(listener: socket.socket, pid: int) -> str | None:
    """The text in the file that the process has sent; None if another process has connected. Raises OSError."""
    conn, _ = listener.accept()
    with conn:
        conn.settimeout(_ASK_AGAIN_SECONDS)
        credentials = conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(credentials)[0] not in (pid, 0):  # 0: in a PID namespace that is not seen from here
            return None
        _, fds, _, _ = socket.recv_fds(conn, 1, 1)
        if not fds:
            return None
        with open(fds[0], encoding="utf-8") as file:
            file.seek(0)
            return file.read()


def _command(pid: int) -> str:
    return " ".join(_arguments(pid))


def _last_argument(pid: int) -> str:
    return (_arguments(pid) or [""])[-1]


def _arguments(pid: int) -> list[str]:
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return []
    return [word.decode(errors="replace") for word in words]

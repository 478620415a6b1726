"""System calls of the engine's thread that fail: the next one of a kind, or every one for a second.

Separate from injector.py, which raises at one line's call once: here a kind of call fails wherever it is made, and may
go on to fail, as the kernel's do while there is no memory, no route, or no fd. The calls go through ctypes, through
sockets under high fd numbers, and through a few names of the engine's modules: those are replaced, and ask this.

Only calls of the engine's thread fail, eventfd's writes apart, which are made to wake it. listen() is made by whoever
calls it, and dup2() only where no number is left: neither is here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket as stdlib
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

from utpsocket.engine.interpreter import libc, native
from utpsocket.engine.interpreter.originals import fcntl
from utpsocket.engine.interpreter.originals import os as engines_os
from utpsocket.engine.kernel import high_fds, syscalls
from utpsocket.engine.kernel.epoll_sleep import EpollSleep
from utpsocket.engine.user_fds import reset

LIBC = ctypes.CDLL(None)
SOL_SOCKET, SO_DOMAIN = 1, 39

_SOFT = ("EPERM", "EACCES", "ENETUNREACH", "EHOSTUNREACH", "ENETDOWN", "ECONNREFUSED", "EMSGSIZE", "EIO", "EINVAL")
_SCARCE = ("EINTR", "ENOBUFS", "ENOMEM")
_NO_FD = ("EMFILE", "ENFILE")
CALLS: dict[str, tuple[str, ...]] = {
    "udp.send": (*_SCARCE, "EAGAIN", *_SOFT),
    "udp.receive": (*_SCARCE, "EAGAIN", "ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH", "ENETDOWN", "EIO"),
    "pair.send": (*_SCARCE, "EAGAIN", "EIO"),
    "pair.receive": (*_SCARCE, "EAGAIN", "EIO"),
    "pair.drain": (*_SCARCE, "EAGAIN"),  # the gate's filler
    "pair.connect": (*_SCARCE, "EAGAIN"),  # a connection is handed over
    "epoll_ctl": ("ENOMEM", "ENOSPC"),
    "epoll_wait": ("EINTR",),
    "eventfd.read": ("EINTR", "EAGAIN", "ENOMEM"),
    "eventfd.write": ("EINTR", "EAGAIN", "ENOMEM"),
    "setsockopt": ("ENOMEM", "ENOBUFS", "EPERM"),
    "getsockopt": ("ENOMEM", "ENOBUFS"),
    "shutdown": ("ENOMEM", "EIO"),
    "bind": ("ENOMEM", "EADDRINUSE"),
    "getsockname": ("ENOBUFS",),
    "accept": (*_SCARCE, *_NO_FD, "ECONNABORTED", "EPERM"),
    "connect": (*_SCARCE, "EADDRNOTAVAIL", "ENETUNREACH", "EHOSTUNREACH", "EACCES", "EPERM"),
    "socket.send": (*_SCARCE, "EAGAIN", "EIO"),  # TCP's, and what a plain socket module sends
    "socket.receive": (*_SCARCE, "EAGAIN", "EIO"),
    "dup": _NO_FD,
    "fstat": ("ENOMEM", "EIO"),
    "ioctl": ("ENOMEM",),
}
_METHODS = {
    "setsockopt": "setsockopt",
    "getsockopt": "getsockopt",
    "shutdown": "shutdown",
    "bind": "bind",
    "getsockname": "getsockname",
    "_accept": "accept",
    "connect": "connect",
    "connect_ex": "connect",  # TCP's beside uTP; and as AF_UNIX what TCP has accepted is handed over
    "send": "socket.send",
    "sendmsg": "socket.send",
    "recv": "socket.receive",
    "recv_into": "socket.receive",
    "recvmsg": "socket.receive",
    "recvmsg_into": "socket.receive",
}


class Calls:
    """In the process of this engine."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._call = ""
        self._errno = 0
        self._until = 0.0
        self._is_once = False
        self.fired = 0
        self._domains: dict[int, int] = {}
        self._wrap_ctypes()
        self._wrap_sockets()
        self._wrap_names()
        self._wrap_poller()

    # ── the tester ──

    def arm(self, call: str, name: str, seconds: float) -> None:
        """From now on this call fails: once, or for so many seconds."""
        self.fired = 0
        self._errno = getattr(errno, name)
        self._is_once = not seconds
        self._until = time.monotonic() + (seconds or 3_600)
        self._call = call  # last

    def disarm(self) -> None:
        self._call = ""

    # ── the engine's thread ──

    def _error(self, call: str, *, any_thread: bool = False) -> int:
        """The errno that this call must fail with, or 0."""
        if call != self._call or not (any_thread or native.get_ident() == self._loop._thread_id):
            return 0
        if time.monotonic() > self._until:
            self._call = ""
            return 0
        if self._is_once:
            self._call = ""
        self.fired += 1
        return self._errno

    def _raise(self, call: str, *, any_thread: bool = False) -> None:
        if error := self._error(call, any_thread=any_thread):
            raise OSError(error, os.strerror(error))

    def _is_pair(self, fd: int) -> bool:
        value, size = ctypes.c_int(-1), ctypes.c_uint(4)
        LIBC.getsockopt(fd, SOL_SOCKET, SO_DOMAIN, ctypes.byref(value), ctypes.byref(size))
        return value.value == stdlib.AF_UNIX

    def _wrap_ctypes(self) -> None:
        def wrapped(original: Any, udp: str, pair: str = "") -> Any:
            def call(fd: int, *arguments: Any) -> Any:
                if self._call in (udp, pair):
                    error = self._error(pair if pair and (not udp or self._is_pair(fd)) else udp)
                    if error:
                        ctypes.set_errno(error)
                        return -1
                return original(fd, *arguments)

            return call

        syscalls._recv = wrapped(syscalls._recv, "udp.receive", "pair.receive")
        syscalls._send = wrapped(syscalls._send, "udp.send", "pair.send")
        syscalls._recvmsg = wrapped(syscalls._recvmsg, "udp.receive")
        syscalls._sendmsg = wrapped(syscalls._sendmsg, "udp.send")
        for memory, name, kind in (
            ("_inbound", "_recvmmsg", "udp.receive"),
            ("_outbound", "_sendmmsg", "udp.send"),
            ("_answers", "_sendmmsg", "udp.send"),
        ):
            owner = getattr(syscalls, memory, None)
            if owner is not None and hasattr(owner, name):
                setattr(owner, name, wrapped(getattr(owner, name), kind))
        libc.recv = wrapped(libc.recv, "", "pair.drain")
        libc.connect = wrapped(libc.connect, "", "pair.connect")

    def _wrap_sockets(self) -> None:
        def wrapped(name: str, kind: str) -> Callable[..., Any]:
            original = getattr(native.Socket, name)

            def call(sock: Any, *arguments: Any, **named: Any) -> Any:
                if self._call and name.endswith("_ex"):
                    if error := self._error(self._kind_of(sock, kind)):
                        return error
                elif self._call:
                    self._raise(self._kind_of(sock, kind))
                return original(sock, *arguments, **named)

            return call

        for name, kind in _METHODS.items():
            setattr(high_fds.HighSocket, name, wrapped(name, kind))

    def _kind_of(self, sock: Any, kind: str) -> str:
        """Where the socket module's calls carry the bytes, they are the same calls by another way."""
        if kind == "connect" and sock.family == stdlib.AF_UNIX:
            return "pair.connect"
        if kind not in ("socket.send", "socket.receive") or kind == self._call:
            return kind
        what = kind.partition(".")[2]
        return f"pair.{what}" if sock.family == stdlib.AF_UNIX else f"udp.{what}"

    def _wrap_names(self) -> None:
        def wrapped(original: Any, kind: str, *, any_thread: bool = False) -> Any:
            def call(*arguments: Any, **named: Any) -> Any:
                if self._call == kind:
                    self._raise(kind, any_thread=any_thread)
                return original(*arguments, **named)

            return call

        native.read_word = wrapped(native.read_word, "eventfd.read")
        wake = self._loop._wake_up.wake
        self._loop._wake_up.wake = partial(wrapped(wake, "eventfd.write", any_thread=True))
        engines_os.fstat = wrapped(engines_os.fstat, "fstat")
        for module, name, kind in ((high_fds, "fcntl", "dup"), (reset, "ioctl", "ioctl")):  # in these modules alone
            replaced = {**vars(fcntl), name: wrapped(getattr(fcntl, name), kind)}
            vars(module)["fcntl"] = SimpleNamespace(**replaced)

    def _wrap_poller(self) -> None:
        calls, original = self, self._loop._watches._epoll

        class Faulty:
            """epoll, or its stand-in."""

            def __getattr__(self, name: str) -> Any:
                if name == "register":  # the others need no memory
                    calls._raise("epoll_ctl")
                return getattr(original, name)

        self._loop._watches._epoll = self._loop._watches.plain = Faulty()
        sleep = self._loop._sleep
        if not isinstance(sleep, EpollSleep):
            return
        wait = sleep.call

        def epoll_wait(*arguments: Any) -> Any:
            return -1 if calls._call == "epoll_wait" and calls._error("epoll_wait") else wait(*arguments)

        sleep.call = epoll_wait

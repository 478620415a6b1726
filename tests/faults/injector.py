"""Raises one exception, or answers one system call with an errno, at a chosen call on the engine's thread.

A site is a call as the interpreter sees it: the file and line that calls, and what is called. sys.setprofile() tells of
each one before it happens, and an exception raised there comes out of that very call, as if the called function had
raised it at once; the profile function is then gone by itself. What ctypes calls is unknown to it, so the system calls
that the engine makes that way go through functions of ours.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from utpsocket.engine.channels import utp
from utpsocket.engine.interpreter import garbage_collector, libc, native
from utpsocket.engine.kernel import syscalls

PACKAGE = str(Path(syscalls.__file__).parents[2]) + os.sep  # utpsocket/
Site = tuple[str, int, str]  # file below the package, line, what is called there
SYSTEM_CALLS = ("socket", "epoll", "poll", "posix", "fcntl")
EXCEPTIONS: dict[str, Callable[[], BaseException]] = {
    "MemoryError": MemoryError,
    "RuntimeError": lambda: RuntimeError("injected"),
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
}
ERRNOS = ("EINTR", "ENOBUFS", "ENOMEM", "EMFILE")
WRAPPED_ERRNOS = ("EINTR", "ENOBUFS", "ENOMEM", "EAGAIN")


def is_error(name: str) -> bool:
    return name in EXCEPTIONS or hasattr(errno, name)


class Injector:
    """Armed for one point at a time. The engine's thread runs profile(); the tester's arms and looks.

    To be made after calls.Calls: a call that ctypes makes is a site if it is the package that calls what stands here.
    """

    def __init__(self) -> None:
        self.seen: Counter[Site] = Counter()
        self.kinds: dict[Site, str] = {}
        self.has_fired = False
        self._site: Site | None = None
        self._left = 0
        self._error = ""
        self._code_names: dict[Any, str] = {}
        self._wrapped: set[str] = set()
        self._pending_errno = 0
        garbage_collector._CAN_BE_TRACED = False  # type: ignore[misc]  # from 3.12 on the engine ends what traces its thread
        self._wrap_calls_of_ctypes()

    # ── the tester ──

    def record(self, loop: Any) -> None:
        """Note every site from now on."""
        loop.call(lambda _: sys.setprofile(self._record))

    def arm(self, loop: Any, site: Site, occurrence: int, error: str) -> None:
        """Inject at the n-th call of this site that is made from now on."""
        self._site, self._left, self._error = site, occurrence, error
        self.has_fired = False
        loop.call(lambda _: sys.setprofile(self._inject))

    def disarm(self, loop: Any) -> None:
        """Whatever was armed is over."""
        self._site = None
        self._pending_errno = 0
        loop.call(lambda _: sys.setprofile(None))

    # ── the engine's thread ──

    def _site_of(self, frame: FrameType, event: str, arg: Any) -> tuple[Site, str] | None:
        if event == "call":
            caller = frame.f_back
            code = frame.f_code
            if caller is None or not code.co_filename.startswith((PACKAGE, __file__)):
                return None
            name = _qualname(frame)
            kind = "wrapped" if name in self._wrapped else "call"
        elif event == "c_call":
            caller = frame
            name = getattr(arg, "__qualname__", None) or type(arg).__name__
            owner = getattr(arg, "__module__", None) or type(getattr(arg, "__self__", None)).__name__
            kind = "system" if owner in SYSTEM_CALLS or name.split(".")[0] in SYSTEM_CALLS else "c_call"
        else:
            return None
        path = caller.f_code.co_filename
        if not path.startswith(PACKAGE):
            return None
        return (path[len(PACKAGE) :], caller.f_lineno, name), kind

    def _record(self, frame: FrameType, event: str, arg: Any) -> None:
        found = self._site_of(frame, event, arg)
        if found is not None:
            self.seen[found[0]] += 1
            self.kinds[found[0]] = found[1]

    def _inject(self, frame: FrameType, event: str, arg: Any) -> None:
        site = self._site
        if site is None or not event.endswith("call"):
            return
        caller = frame if event == "c_call" else frame.f_back
        if caller is None or caller.f_lineno != site[1]:
            return
        found = self._site_of(frame, event, arg)
        if found is None or found[0] != site:
            return
        self._left -= 1
        if self._left > 0:
            return
        self.has_fired = True
        self._site = None
        if self._error in EXCEPTIONS:
            raise EXCEPTIONS[self._error]()
        number = getattr(errno, self._error)
        if found[1] == "wrapped":
            self._pending_errno = number
        else:
            raise OSError(number, os.strerror(number))

    def _wrap_calls_of_ctypes(self) -> None:
        def wrapped(name: str, original: Any) -> Any:
            def call(*arguments: Any) -> Any:
                number, self._pending_errno = self._pending_errno, 0
                if number:
                    ctypes.set_errno(number)
                    return -1
                return original(*arguments)

            call.__qualname__ = call.__name__ = name
            call.__code__ = call.__code__.replace(co_name=name, **_qualified(name))
            self._wrapped.add(name)
            return call

        for name in ("_recv", "_send", "_recvmsg", "_sendmsg"):
            setattr(syscalls, name, wrapped(f"ctypes{name}", getattr(syscalls, name)))
        for memory, name in (("_inbound", "_recvmmsg"), ("_outbound", "_sendmmsg")):
            if hasattr(syscalls, memory):
                owner = getattr(syscalls, memory)
                setattr(owner, name, wrapped(f"ctypes{name}", getattr(owner, name)))
        libc.recv = wrapped("ctypes_drain", libc.recv)
        libc.connect = wrapped("ctypes_connect", libc.connect)
        assert vars(utp)["native"] is native


def _qualname(frame: FrameType) -> str:
    """co_qualname of what this frame runs; before Python 3.11, which has none, of a method alone."""
    code = frame.f_code
    if hasattr(code, "co_qualname"):
        return str(code.co_qualname)
    if code.co_argcount and code.co_varnames[0] == "self":
        for owner in type(frame.f_locals["self"]).__mro__:
            if getattr(vars(owner).get(code.co_name), "__code__", None) is code:
                return f"{owner.__qualname__}.{code.co_name}"
    return code.co_name


def _qualified(name: str) -> dict[str, Any]:
    return {"co_qualname": name} if sys.version_info >= (3, 11) else {}


def errors_for(kind: str, number: int) -> list[str]:
    """What is worth injecting at a site: the `number`-th, so that the rarer exceptions take turns."""
    rare = ("RuntimeError", "SystemExit", "KeyboardInterrupt")[number % 3]
    if kind == "system":
        return ["MemoryError", *ERRNOS]
    if kind == "wrapped":
        return ["MemoryError", *WRAPPED_ERRNOS]
    return ["MemoryError", rare] if kind == "call" else ["MemoryError"]

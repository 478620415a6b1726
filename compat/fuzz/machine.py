"""Runs a sequence's lines over one network."""

from __future__ import annotations

import gc
import re
import signal
import socket as stdlib
import time
import warnings
from dataclasses import dataclass, field
from typing import Any, Final

import utpsocket
from compat.fuzz.prelude import SLOTS, Names, Raised, evaluate, plain, polled, unread
from utpsocket.engine import commands, running_engine

_ASSIGNMENT: Final = re.compile(r"^(\w+)(, _)? = (.*)$")
_TURNS: Final = 3  # of the engine: what one does is in the kernel for the next
_LOOK_LIMIT_S: Final = 0.15
_SLOW_LOOK_LIMIT_S: Final = 1.0
_HANG_S: Final = 100
HANGS: Final = "hangs"


@dataclass
class Trace:
    """What one run showed: per line the result, and what every open socket's poll() said afterwards."""

    results: list[Any] = field(default_factory=list)
    looks: list[dict[str, str]] = field(default_factory=list)


class _Hangs(BaseException):
    pass


def run(lines: list[str], network: str, *, like: Trace | None = None, slowly: float = 0.0) -> Trace:
    """The lines' results over "tcp" or "utp".

    like     a run over TCP: wait until every socket looks as there, but not for long, and end where something differs
    slowly   wait so many seconds after each line, whatever is seen, and let timeouts be longer
    """
    return _Run(network, like, slowly).all(lines)


class _Run:
    def __init__(self, network: str, like: Trace | None, slowly: float) -> None:
        self._is_utp = network == "utp"
        self._like = like
        self._slowly = slowly
        self._ports: dict[int, str] = {}
        self._trace = Trace()
        self._seconds = 0.4 if slowly else 0.06
        # A port where nobody listens: of a TCP socket that does not listen; of a UDP socket connected to itself.
        self._nobody = stdlib.socket(type=stdlib.SOCK_DGRAM if self._is_utp else stdlib.SOCK_STREAM)
        self._nobody.bind(("127.0.0.1", 0))
        if self._is_utp:
            self._nobody.connect(self._nobody.getsockname())
        module = utpsocket if self._is_utp else stdlib
        self._names = Names(module, self._nobody.getsockname(), self._seconds, self._settle)

    def all(self, lines: list[str]) -> Trace:
        default = stdlib.getdefaulttimeout()
        stdlib.setdefaulttimeout(self._seconds)
        before = signal.signal(signal.SIGALRM, self._on_alarm)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for line in lines:
                    self._step(line)
                    if self._trace.results[-1] == HANGS or self._differs():
                        break
        finally:
            stdlib.setdefaulttimeout(None)
            self._names.close()
            self._nobody.close()
            signal.signal(signal.SIGALRM, before)
            stdlib.setdefaulttimeout(default)
            self._names.scope.clear()
            gc.collect(0)
        return self._trace

    def _differs(self) -> bool:
        if self._like is None:
            return False
        at = slice(len(self._trace.results) - 1, len(self._trace.results))
        return (self._trace.results[at], self._trace.looks[at]) != (self._like.results[at], self._like.looks[at])

    def _on_alarm(self, *_: Any) -> None:
        raise _Hangs

    def _step(self, line: str) -> None:
        match = _ASSIGNMENT.match(line)
        target, unpacks, expression = match.groups() if match else (None, None, line)
        scope = self._names.scope
        signal.alarm(_HANG_S)
        try:
            value = evaluate(expression, scope)
        except _Hangs:
            self._trace.results.append(HANGS)
            self._trace.looks.append({})
            return
        finally:
            signal.alarm(0)
        if target is not None:
            made = value[0] if unpacks and isinstance(value, tuple) else value
            scope[target] = None if isinstance(made, Raised) else made
        self._trace.results.append(self._normal(plain(value)))
        self._trace.looks.append(self._look_when_settled())

    def _normal(self, value: Any) -> Any:
        """Ports by the order in which they were first seen."""
        if isinstance(value, tuple):
            if value[:1] == ("thread",):
                return ("thread", *(self._normal(part) for part in value[1:]))
            if len(value) in (2, 4) and isinstance(value[0], str) and isinstance(value[1], int) and value[1]:
                number = self._ports.setdefault(value[1], f"port{len(self._ports) + 1}")
                return (value[0], number, *value[2:])
            return tuple(self._normal(part) for part in value)
        return value

    # ── what is seen from outside ──

    def _look(self) -> dict[str, str]:
        found = {}
        for name in SLOTS:
            sock = self._names.scope[name]
            if isinstance(sock, stdlib.socket) and sock.fileno() >= 0:
                try:
                    count = str(unread(sock))
                except OSError as error:
                    count = str(error.strerror)
                found[name] = f"{polled(sock)}, {count} unread"
        return found

    def _settle(self) -> None:
        if not self._is_utp:
            time.sleep(0.002)
            return
        loop = running_engine()
        if loop is not None:
            for _ in range(_TURNS):
                loop.call(commands.unflushed)

    def _look_when_settled(self) -> dict[str, str]:
        self._settle_after_step()
        look = self._look()
        if self._like is not None:
            wanted = self._like.looks[len(self._trace.looks)] if len(self._trace.looks) < len(self._like.looks) else {}
            deadline = time.monotonic() + (_SLOW_LOOK_LIMIT_S if self._slowly else _LOOK_LIMIT_S)
            while look != wanted and time.monotonic() < deadline:
                self._settle()
                time.sleep(0.001)
                look = self._look()
        return look

    def _settle_after_step(self) -> None:
        if self._is_utp:
            self._settle()
        if self._slowly:
            time.sleep(self._slowly)

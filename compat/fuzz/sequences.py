"""Sequences at random: what a program might do with six sockets, in any order."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from compat.fuzz.prelude import SLOTS

_FAMILIES: Final = (*("",) * 12, "socket.AF_INET6")
_BACKLOGS: Final = ("", "1", "0", "5", "-1")
_STRANGE_ADDRESSES: Final = (
    '("203.0.113.7", 0)',  # of nobody here: to bind to
    '("127.0.0.1",)',
    '("127.0.0.1", 70000)',
    '("::1", 0)',
    '"nonsense"',
    "None",
    '("127.0.0.1", "x")',
    '("127.0.0.1", -1)',
)
_SEND_FLAGS: Final = (
    "",
    "",
    "",
    ", socket.MSG_DONTWAIT",
    ", socket.MSG_NOSIGNAL",
    ", socket.MSG_EOR",
    ", socket.MSG_DONTROUTE",
    ", socket.MSG_CONFIRM",
    ", socket.MSG_MORE",
    ", socket.MSG_OOB",
)
_RECEIVE_FLAGS: Final = (
    *("",) * 4,
    ", socket.MSG_PEEK",
    ", socket.MSG_DONTWAIT",
    ", socket.MSG_WAITALL",
    ", socket.MSG_OOB",
    ", socket.MSG_ERRQUEUE",
)
_HALVES: Final = ("socket.SHUT_WR", "socket.SHUT_WR", "socket.SHUT_RD", "socket.SHUT_RDWR")
_READ_OPTIONS: Final = (
    "socket.SOL_SOCKET, socket.SO_ERROR",
    "socket.SOL_SOCKET, socket.SO_ERROR",
    "socket.SOL_SOCKET, socket.SO_ACCEPTCONN",
    "socket.SOL_SOCKET, socket.SO_TYPE",
    "socket.SOL_SOCKET, socket.SO_DOMAIN",
    "socket.SOL_SOCKET, socket.SO_PROTOCOL",
    "socket.SOL_SOCKET, socket.SO_REUSEADDR",
    "socket.SOL_SOCKET, socket.SO_KEEPALIVE",
    "socket.SOL_SOCKET, socket.SO_LINGER, 8",
    "socket.SOL_SOCKET, socket.SO_RCVLOWAT",
    "socket.SOL_SOCKET, socket.SO_OOBINLINE",
    "socket.SOL_SOCKET, socket.SO_BROADCAST",
    "socket.SOL_SOCKET, socket.SO_DONTROUTE",
    "socket.SOL_SOCKET, socket.SO_PRIORITY",
    "socket.SOL_SOCKET, socket.SO_REUSEPORT",
    "socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16",
    "socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16",
    "socket.SOL_SOCKET, 9999",
    "socket.IPPROTO_TCP, socket.TCP_KEEPINTVL",
    "socket.IPPROTO_TCP, socket.TCP_KEEPCNT",
    "socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT",
    "socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT",
    "socket.IPPROTO_TCP, 9999",
    "socket.IPPROTO_IPV6, socket.IPV6_V6ONLY",
    "9999, 1",
    "socket.IPPROTO_TCP, socket.TCP_NODELAY",
    "socket.IPPROTO_TCP, socket.TCP_KEEPIDLE",
    "socket.IPPROTO_TCP, socket.TCP_SYNCNT",
    "socket.IPPROTO_IP, socket.IP_TOS",
    "socket.IPPROTO_IP, socket.IP_TTL",
    "socket.SOL_SOCKET, socket.SO_SNDBUF",
    "socket.SOL_SOCKET, socket.SO_RCVBUF",
)
_SET_OPTIONS: Final = (
    "socket.SOL_SOCKET, socket.SO_REUSEADDR, 1",
    "socket.SOL_SOCKET, socket.SO_REUSEADDR, 0",
    "socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1",
    "socket.SOL_SOCKET, socket.SO_LINGER, RESET",
    "socket.SOL_SOCKET, socket.SO_LINGER, RESET",
    'socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0)',
    "socket.SOL_SOCKET, socket.SO_SNDBUF, 20000",
    "socket.SOL_SOCKET, socket.SO_RCVBUF, 20000",
    "socket.IPPROTO_TCP, socket.TCP_NODELAY, 1",
    "socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30",
    "socket.SOL_SOCKET, socket.SO_BROADCAST, 1",
    "socket.SOL_SOCKET, socket.SO_PRIORITY, 3",
    "socket.SOL_SOCKET, socket.SO_TYPE, 1",
    'socket.SOL_SOCKET, socket.SO_KEEPALIVE, b""',
    "socket.SOL_SOCKET, 9999, 1",
    "socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 200",
    "socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 9000",
    "socket.IPPROTO_TCP, socket.TCP_SYNCNT, 3",
    "socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1",
    "9999, 1, 1",
    "socket.IPPROTO_IP, socket.IP_TOS, 8",
    "socket.IPPROTO_IP, socket.IP_TTL, 40",
)


class Author:
    """Writes one sequence."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        self._lines: list[str] = []
        self._holders = 0
        self._used: list[str] = []
        self._same: dict[str, str] = {}  # a duplicate's name: that of the socket

    def sequence(self) -> list[str]:
        """5 to 30 lines, and a look at everything."""
        count = self._random.randint(5, 30)
        self._random.choice((self._nothing, self._listener, self._pair, self._pair, self._pair))()
        while len(self._lines) < count:
            self._random.choices(_CALLS, _WEIGHTS)[0](self)
        self._lines = self._lines[:30]
        self._look_at_everything()
        return self._lines

    def _add(self, line: str) -> None:
        self._lines.append(line)

    def _some(self) -> str:
        """A variable, preferably one that has held a socket."""
        if self._used and self._random.random() < 0.95:
            return self._random.choice(self._used)
        return self._random.choice(SLOTS)

    def _new_name(self) -> str:
        free = [name for name in SLOTS if name not in self._used]
        name = free[0] if free and self._random.random() < 0.8 else self._random.choice(SLOTS)
        self._same.pop(name, None)
        if name not in self._used:
            self._used.append(name)
        return name

    # ── beginnings ──

    def _nothing(self) -> None:
        self._fresh()

    def _listener(self) -> None:
        name = self._new_name()
        self._add(f"{name} = socket.socket()")
        self._add(f'{name}.bind(("127.0.0.1", 0))')
        self._add(f"{name}.listen({self._random.choice(_BACKLOGS)})")

    def _pair(self) -> None:
        self._listener()
        listener = self._used[-1]
        client, server = self._new_name(), self._new_name()
        self._add(f"{client} = socket.socket()")
        self._add(f"{client}.connect({listener}.getsockname())")
        self._add(f"{server}, _ = {listener}.accept()")
        if self._random.random() < 0.4:
            self._add(f"{listener}.close()")

    # ── calls ──

    def _fresh(self) -> None:
        self._add(f"{self._new_name()} = socket.socket({self._random.choice(_FAMILIES)})")

    def _bind(self) -> None:
        pick = self._random.random()
        if pick < 0.6:
            address = '("127.0.0.1", 0)'
        elif pick < 0.8:
            address = f"{self._some()}.getsockname()"
        else:
            address = self._random.choice(_STRANGE_ADDRESSES)
        self._add(f"{self._some()}.bind({address})")

    def _listen(self) -> None:
        self._add(f"{self._some()}.listen({self._random.choice(_BACKLOGS)})")

    def _connect(self) -> None:
        pick = self._random.random()
        caller = self._some()
        if pick < 0.75:
            target = self._some()
            # By its own name, so that expected.py sees it.
            target = caller if self._same.get(target, target) == self._same.get(caller, caller) else target
            address = f"{target}.getsockname()"
        elif pick < 0.9:
            address = "NOWHERE"
        else:
            address = self._random.choice(_STRANGE_ADDRESSES[1:])
        self._add(f"{caller}.{self._random.choice(('connect', 'connect', 'connect_ex'))}({address})")

    def _accept(self) -> None:
        self._add(f"{self._new_name()}, _ = {self._some()}.accept()")

    def _timeout(self) -> None:
        name = self._some()
        self._add(
            self._random.choice(
                (
                    f"{name}.settimeout(0)",
                    f"{name}.settimeout(0)",
                    f"{name}.settimeout(T)",
                    f"{name}.settimeout(T)",
                    f"{name}.setblocking(False)",
                    f"patient({name})",
                    f"patient({name})",
                )
            )
        )

    def _send(self, name: str | None = None) -> None:
        name = name or self._some()
        data = self._random.choice(('b"x"', 'b"hello"', 'b""', "bytes(1000)"))
        flags = self._random.choice(_SEND_FLAGS)
        call = self._random.choice(
            (
                f"send({data}{flags})",
                f"send({data}{flags})",
                f"sendall({data}{flags})",
                f"sendmsg([{data}, b'!'])",
                f"sendmsg([{data}], []{flags})",
                "sendmsg([])",
                f'sendto({data}, ("127.0.0.1", 9))',
            )
        )
        self._add(f"{name}.{call}")

    def _receive(self) -> None:
        flags = self._random.choice(_RECEIVE_FLAGS)
        call = self._random.choice(
            (
                f"recv(100{flags})",
                f"recv(100{flags})",
                f"recv(3{flags})",
                f"recv(0{flags})",
                f"recvfrom(100{flags})",
                f"recvmsg(100, 0{flags})",
                f"recv_into(bytearray(100), 5{flags})",
                f"recvfrom_into(bytearray(100), 0{flags})",
                f"recvmsg_into([bytearray(3), bytearray(3)], 0{flags})",
                "recv(-1)",
                "recv_into(bytearray(0))",
            )
        )
        self._add(f"{self._some()}.{call}" if self._random.random() < 0.93 else f"thrown_away({self._some()})")

    def _shutdown(self) -> None:
        self._add(f"{self._some()}.shutdown({self._random.choice(_HALVES)})")

    def _close(self) -> None:
        self._add(f"{self._some()}.close()")

    def _reset(self) -> None:
        name = self._some()
        self._add(f"{name}.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)")
        self._add(f"{name}.close()")

    def _duplicate(self) -> None:
        name, old = self._new_name(), self._some()
        self._add(f"{name} = {old}.dup()")
        self._same[name] = self._same.get(old, old)

    def _detach(self) -> None:
        old = self._some()
        self._add(f"{old} = socket.socket(fileno={old}.detach())")

    def _get_option(self) -> None:
        self._add(f"{self._some()}.getsockopt({self._random.choice(_READ_OPTIONS)})")

    def _set_option(self) -> None:
        self._add(f"{self._some()}.setsockopt({self._random.choice(_SET_OPTIONS)})")

    def _ask(self) -> None:
        name = self._some()
        self._add(
            self._random.choice(
                (
                    f"{name}.getsockname()",
                    f"{name}.getpeername()",
                    f"{name}.gettimeout()",
                    f"{name}.getblocking()",
                    f"({name}.family, {name}.type, {name}.proto)",
                    f"polled({name})",
                    f"epolled({name})",
                    f"selected({name})",
                    f"unread({name})",
                    f"unsent({name})",
                    f"state({name})",  # of TCP_INFO: the rest is of TCP's machinery
                )
            )
        )

    def _fill(self) -> None:
        self._add(f"fill({self._some()})")

    def _drain(self) -> None:
        self._add(f"drain({self._some()})")

    def _blocking(self) -> str:
        name = self._some()
        return self._random.choice(
            (
                f"{name}.recv(100)",
                f"{name}.send(b'x')",
                f"{name}.sendall(bytes(10000))",
                f"{name}.accept()",
            )
        )

    def _simple(self) -> str:
        name = self._some()
        return self._random.choice(
            (
                f"{name}.send(b'y')",
                f"{name}.shutdown({self._random.choice(_HALVES)})",
                f"{name}.close()",
                f"{name}.recv(10)",
                f"{name}.connect({self._some()}.getsockname())",
            )
        )

    def _in_thread(self) -> None:
        self._add(f'meanwhile("{self._blocking()}", "{self._simple()}")')

    def _in_child(self) -> None:
        if not self._holders or self._random.random() < 0.15:
            if self._holders < 2:
                self._holders += 1
                self._add(f"h{self._holders} = {self._random.choice(('fork', 'fork', 'start'))}()")
            return
        holder = f"h{self._random.randint(1, self._holders)}"
        if self._random.random() < 0.15:
            self._add(f"{holder}.kill()")
            return
        expression = self._random.choice((self._simple, self._blocking))()
        self._add(f'{holder}.do("{expression}")')

    # ── the end ──

    def _look_at_everything(self) -> None:
        for name in sorted(self._used):
            for look in ("getsockname()", "getpeername()", "getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)"):
                self._add(f"{name}.{look}")
        for name in sorted(self._used):
            self._add(f"epolled({name})")
            self._add(f"{name}.settimeout(0)")
            self._add(f"{name}.recv(5000)")
            self._add(f'{name}.send(b"last")')
            self._add(f"{name}.recv(5000)")
        for name in sorted(self._used):
            self._add(f"{name}.accept()")
            self._add(f"{name}.close()")


_WEIGHTED: Final[tuple[tuple[Callable[[Author], None], int], ...]] = (
    (Author._fresh, 6),
    (Author._bind, 5),
    (Author._listen, 5),
    (Author._connect, 12),
    (Author._accept, 9),
    (Author._timeout, 4),
    (Author._send, 14),
    (Author._receive, 14),
    (Author._shutdown, 10),
    (Author._close, 6),
    (Author._reset, 4),
    (Author._duplicate, 3),
    (Author._detach, 2),
    (Author._get_option, 6),
    (Author._set_option, 5),
    (Author._ask, 7),
    (Author._fill, 2),
    (Author._drain, 2),
    (Author._in_thread, 3),
    (Author._in_child, 3),
    (Author._pair, 2),
)
_CALLS: Final = tuple(call for call, _ in _WEIGHTED)
_WEIGHTS: Final = tuple(weight for _, weight in _WEIGHTED)


def sequence(seed: int, number: int) -> list[str]:
    """The sequence of that number, the same whenever it is asked for."""
    return Author(f"{seed}/{number}").sequence()

"""The engine's process from inside, as the tester needs it: injecting, and what is open there.

With an engine in a thread that is the tester's own process, and Inside is used as it is. With one in a process of its
own, begin() runs there and answers over a socket; Outside has the same methods on the tester's side.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import socket as stdlib
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from tests.faults.calls import Calls
from tests.faults.injector import Injector
from utpsocket.engine.helper import client, server
from utpsocket.engine.kernel import high_fds
from utpsocket.protocol import State
from utpsocket.protocol.times import NEVER

MAX_KEPT_FDS = high_fds._KEPT + 3  # and what they are duplicates of; two threads may add one at a time
LIBC = ctypes.CDLL(None)
ROOT = Path(__file__).resolve().parents[2]
Census: TypeAlias = "tuple[int, int, int, int]"
"""How many fds there are that are no UDP ports; UDP ports; those of them that are no more than waiting; and connections
that are closed and have not ended yet."""


class Inside:
    """Of the process in which this loop's thread runs."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._calls = Calls(loop)
        self._injector = Injector()

    def record(self) -> None:
        """Note every site from now on."""
        self._injector.record(self._loop)

    def sites(self) -> list[Any]:
        """What was noted."""
        self._injector.disarm(self._loop)
        seen, kinds = self._injector.seen, self._injector.kinds
        return [(*site, kinds[site], count) for site, count in sorted(seen.items())]

    def arm(self, site: Any, occurrence: int, error: str) -> None:
        """Inject at the n-th call of this site that is made from now on."""
        self._injector.arm(self._loop, tuple(site), occurrence, error)

    def disarm(self) -> bool:
        """Whatever was armed is over. Whether it has fired."""
        self._injector.disarm(self._loop)
        return self._injector.has_fired

    def has_fired(self) -> bool:
        return self._injector.has_fired

    def arm_call(self, call: str, error: str, seconds: float) -> None:
        """From now on this system call fails: once, or for so many seconds."""
        self._calls.arm(call, error, seconds)

    def disarm_call(self) -> int:
        """It fails no more. How often it has."""
        self._calls.disarm()
        return self._calls.fired

    def kinds(self) -> dict[str, int]:
        """How many fds there are of each kind, and connections in each state."""
        return dict(self._loop.call(kinds))

    def census(self) -> Census:
        """At one moment of the engine's."""
        return tuple(self._loop.call(census))


class Outside:
    """Inside, over a socket to the engine's own process. To be made before the first uTP socket."""

    def __init__(self) -> None:
        self._listener = stdlib.socket(stdlib.AF_UNIX)
        self._listener.bind("")
        self._listener.listen(1)
        name = self._listener.getsockname()
        end = "from utpsocket.engine.helper.server import main"
        assert end in client._BOOT_SCRIPT
        boot = client._BOOT_SCRIPT.replace(
            end, f"sys.path.insert(0, {str(ROOT)!r})\nfrom tests.faults.inside import main"
        )
        client._BOOT_SCRIPT = boot.replace("main(3)", f"main(3, {name!r})")  # type: ignore[misc]
        self._lines: Any = None

    def __getattr__(self, name: str) -> Any:
        if name not in vars(Inside):
            raise AttributeError(name)
        return lambda *arguments: self._ask(name, arguments)

    def _ask(self, name: str, arguments: Any) -> Any:
        if self._lines is None:
            self._lines = self._listener.accept()[0].makefile("rw")
        print(json.dumps([name, arguments]), file=self._lines, flush=True)
        line = self._lines.readline()
        if not line:
            raise RuntimeError("the engine's process has ended")
        return json.loads(line)


def main(control_fd: int, name: bytes) -> None:
    """In the place of process.main(), in the engine's own process."""
    service_class: Any = server.Service
    original = service_class.begin

    def begin(service: Any) -> None:
        threading.Thread(target=serve, args=(service._loop, name), daemon=True).start()
        original(service)

    service_class.begin = begin
    server.main(control_fd)


def serve(loop: Any, name: bytes) -> None:
    inside = Inside(loop)
    with stdlib.socket(stdlib.AF_UNIX) as sock:
        sock.connect(name)
        lines = sock.makefile("rw")
        for line in lines:
            wanted, arguments = json.loads(line)
            print(json.dumps(getattr(inside, wanted)(*arguments)), file=lines, flush=True)


def fds() -> tuple[int, int]:
    """(fds that are no UDP ports, UDP ports), without those that the engine keeps in reserve: high_fds.py has now more
    and now fewer of them, all duplicates of one socket.

    The kernel is asked for each fd what it is: a table of all ports, as /proc/net/udp is, may lack some while others
    come and go.
    """
    kept_target = f"socket:[{high_fds._model_file[1]}]"
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
    return others + max(0, kept - MAX_KEPT_FDS), ports


def kinds(loop: Any) -> Counter[str]:
    """By kind, the open fds, and by state, what the engine has: to say what it is that is left over. On the engine's
    thread.
    """
    found = Counter(each for name in os.listdir("/proc/self/fd") if (each := kind_of(name)))
    for channel in list(loop.channels.values()):
        state = "TCP" if channel.connection is None else channel.connection.state.name
        ends = "pair closed" if channel.engine_sock is None else "pair open"
        closed = ", closed by the program" if getattr(channel, "_is_hung_up", False) else ""
        found[f"{type(channel).__name__} {state}, {ends}{closed}"] += 1
    return found


def kind_of(fd: str) -> str:
    """What the fd is, as /proc and the kernel tell: an epoll, or a socket of some family and type. "": it is closed."""
    try:
        target = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""
    if not target.startswith("socket:"):
        return re.sub(r"\d+", "N", target)
    if target == f"socket:[{high_fds._model_file[1]}]":
        return "kept"
    value, size = ctypes.c_int(-1), ctypes.c_uint(4)
    LIBC.getsockopt(int(fd), stdlib.SOL_SOCKET, stdlib.SO_DOMAIN, ctypes.byref(value), ctypes.byref(size))
    return f"socket of family {value.value} and type {socket_type(int(fd))}"


def is_another_programs(port: int, pids: Iterable[int]) -> bool:
    """Whether this port, over UDP or TCP, has sockets and none of them is of these processes'.

    A case that releases a port which the kernel has chosen, to take it again, may find that the kernel has given it to
    another program meanwhile.
    """
    held = _inodes_at(port)
    return bool(held) and not any(held & _socket_inodes(pid) for pid in pids)


def _inodes_at(port: int) -> set[str]:
    found = set()
    for table in ("udp", "udp6", "tcp", "tcp6"):
        path = Path("/proc/net", table)
        for line in path.read_text(encoding="utf-8").splitlines()[1:] if path.exists() else ():
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port and fields[9] != "0":
                found.add(fields[9])
    return found


def _socket_inodes(pid: int) -> set[str]:
    found = set()
    for link in Path("/proc", str(pid), "fd").iterdir():
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith("socket:["):
            found.add(target[len("socket:[") : -1])
    return found


def socket_type(fd: int) -> int:
    """SO_TYPE of whatever this is, without an fd for it."""
    value, size = ctypes.c_int(-1), ctypes.c_uint(4)
    LIBC.getsockopt(fd, stdlib.SOL_SOCKET, stdlib.SO_TYPE, ctypes.byref(value), ctypes.byref(size))
    return value.value


def census(loop: Any) -> Census:
    """On the engine's thread."""
    return (*fds(), waiting_ports(loop), closing_connections(loop))


def closing_connections(loop: Any) -> int:
    """How many connections nobody has any more, though their last bytes or FIN are not acked: where packets are lost
    they are repeated at times that double. On the engine's thread.
    """
    return sum(
        bridge.engine_sock is None and not bridge.is_gone and bridge.connection.state is not State.TIME_WAIT
        for bridge in loop.channels.values()
        if bridge.connection is not None
    )


def waiting_ports(loop: Any) -> int:
    """How many ports are left only to connections in TIME_WAIT, for a late FIN of the peer's, and will be closed at a
    time that is set: where packets were lost that may be a minute, as with TCP. And the UDP sockets that are kept for
    the next connects. On the engine's thread.
    """
    return len(loop.idle_sockets) + sum(
        1
        + (
            0 if endpoint.reuseport_sockets is None else len(endpoint.reuseport_sockets.by_addr)
        )  # a connection's own beside a shared port
        for endpoint in loop.endpoints.values()
        if endpoint.bridges
        and not endpoint.holders
        and endpoint.listener is None
        and all(
            bridge.connection.state is State.TIME_WAIT
            and bridge.engine_sock is None
            and bridge.deadline.queued_at != NEVER
            for bridge in endpoint.bridges.values()
        )
    )

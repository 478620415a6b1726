"""The fixture `net`, the expectations and the leak check of the socket conformance suite."""

from __future__ import annotations

import ast
import collections
import gc
import importlib
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from utpsocket.engine import running_engine
from utpsocket.engine.kernel import high_fds
from utpsocket.engine.loop import Loop

from .expectations import EXPECTED_OVER_UTP
from .network import MODULES, Net

T = TypeVar("T")

HERE = Path(__file__).parent
LEAK_LIMIT_S = 120.0  # usually milliseconds; a port may stay for TIME_WAIT, at most 60 s after repeated packets


# -- collection -----------------------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    stale = [key for key in EXPECTED_OVER_UTP if not _names_a_test(key)]
    if stale:
        raise pytest.UsageError(f"expectations.py names tests that do not exist: {stale}")


def _names_a_test(key: str) -> bool:
    file, _, test = key.partition("::")
    tree = ast.parse((HERE / file).read_text(encoding="utf-8")) if (HERE / file).exists() else ast.Module([], [])
    return test.partition("[")[0] in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent != HERE or not isinstance(item, pytest.Function):
            continue
        if not hasattr(item, "callspec") or item.callspec.params.get("net") != "utp":
            continue
        parameters = "-".join(part for part in item.callspec.id.split("-") if part != "over_utp")
        for key in (f"{item.path.name}::{item.originalname}", f"{item.path.name}::{item.originalname}[{parameters}]"):
            if key in EXPECTED_OVER_UTP:
                item.add_marker(pytest.mark.xfail(reason=EXPECTED_OVER_UTP[key], strict=True))


# -- the network ----------------------------------------------------------------------------------------------


class Warm:
    """Networks whose engine runs. Its thread and its own fds are born on first use and stay: not a test's leak. Tests
    of the engine shut it down, and the first test after them is its first use again.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()

    def up(self, name: str) -> None:
        if name not in self.names or (name == "utp" and running_engine() is None):
            self.names.add(name)
            first = Net(name)
            first.pair()
            first.close()
            _settle()


@pytest.fixture(scope="session")
def warm() -> Warm:
    return Warm()


@pytest.fixture(scope="module", autouse=True)
def no_port_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """At a module's end no UDP port may be left. Not after each test: a connection that is over keeps its port for
    some tenths of a second, as TCP's TIME_WAIT does, to answer a FIN that is repeated.
    """
    before = _udp_ports()
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed == failed:
        left = _until_none(lambda: max(0, _udp_ports() - before))
        assert not left, f"{left} UDP ports left over after the module"


@pytest.fixture(params=list(MODULES), ids=[f"over_{name}" for name in MODULES])
def net(request: pytest.FixtureRequest, warm: Warm) -> Iterator[Net]:
    """Stdlib TCP, then utpsocket. After a test that passed, no fd and no thread may be left of it."""
    network = Net(request.param)
    warm.up(request.param)
    before = _resources()
    yield network
    network.close()
    if getattr(request.node, "passed", False):
        left = _until_none(lambda: dict(_resources() - before))
        assert not left, f"left over after the test: {left}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    report = (yield).get_result()
    if call.when == "call":
        item.passed = report.passed  # type: ignore[attr-defined]


# -- what is left ---------------------------------------------------------------------------------------------


def _targets() -> Iterator[str]:
    for number in os.listdir("/proc/self/fd"):
        try:
            yield os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the one that listed the directory
            continue


def _udp_inodes() -> set[str]:
    inodes = set()
    for table in ("/proc/net/udp", "/proc/net/udp6"):
        if os.path.exists(table):
            with open(table, encoding="utf-8") as lines:
                inodes |= {line.split()[9] for line in lines}
    return inodes


def _udp_ports() -> int:
    inodes = _udp_inodes()
    return sum(target[len("socket:[") : -1] in inodes for target in _targets())


def _close_idle_sockets() -> None:
    """Have the engine close, soon, the UDP sockets that it keeps for a second for those that may want them."""
    loop = running_engine()
    if isinstance(loop, Loop) and loop.is_alive:
        loop.post(lambda loop: loop.idle_sockets.close_fds())


def _resources() -> collections.Counter[str]:
    """How many fds of each kind there are, and which threads. Apart from UDP ports, and from fds kept in advance, of
    which there may be fewer at first.
    """
    _close_idle_sockets()
    apart = _udp_inodes() | {str(high_fds._model_file[1])}
    found: collections.Counter[str] = collections.Counter()
    for target in _targets():
        kind, _, inode = target.partition(":")
        if inode[1:-1] not in apart:
            found["fd " + kind] += 1
    for thread in threading.enumerate():
        found[f"thread {thread.name}"] += 1
    return found


def _until_none(look: Callable[[], T]) -> T:
    """Look until nothing is seen or the time is over; what was seen last."""
    deadline = time.monotonic() + LEAK_LIMIT_S
    left = look()
    if left:
        gc.collect()
    while (left := look()) and time.monotonic() < deadline:
        time.sleep(0.002)
    return left


def _settle() -> None:
    """Wait until the number of fds and threads has stopped falling."""
    gc.collect()
    calm, last = 0, _resources()
    deadline = time.monotonic() + LEAK_LIMIT_S
    while calm < 20 and time.monotonic() < deadline:
        time.sleep(0.005)
        now = _resources()
        calm = calm + 1 if now == last else 0
        last = now


@pytest.fixture
def patch_stdlib(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the stdlib's servers and clients the network's module for `socket`, as one replaced name would."""
    for name in (
        "socketserver",
        "http.client",
        "http.server",
        "smtplib",
        "asyncio.base_events",
        "asyncio.selector_events",
    ):
        module = importlib.import_module(name)
        if "socket" in vars(module):
            monkeypatch.setattr(module, "socket", net.module)

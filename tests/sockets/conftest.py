"""The fixture `net`, the expectations, the time limit and the leak check of the socket conformance suite."""

from __future__ import annotations

import ast
import collections
import gc
import importlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .expectations import EXPECTED_OVER_UTP
from .network import MODULES, Net

HERE = Path(__file__).parent
TEST_LIMIT_S = 20
LEAK_LIMIT_S = 5.0  # FINs to be acknowledged, ports to be closed: milliseconds; longer is a leak


# -- collection -----------------------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    stale = [key for key in EXPECTED_OVER_UTP if not _names_a_test(key)]
    if stale:
        raise pytest.UsageError(f"expectations.py names tests that do not exist: {stale}")


def _names_a_test(key: str) -> bool:
    file, _, test = key.partition("::")
    tree = ast.parse((HERE / file).read_text()) if (HERE / file).exists() else ast.Module([], [])
    return test.partition("[")[0] in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent != HERE or not isinstance(item, pytest.Function):
            continue
        if not any(item.iter_markers("timeout")) and config.getoption("timeout", None) is None:
            item.add_marker(pytest.mark.timeout(TEST_LIMIT_S))
        if not hasattr(item, "callspec") or item.callspec.params.get("net") != "utp":
            continue
        parameters = "-".join(part for part in item.callspec.id.split("-") if part != "over_utp")
        for key in (f"{item.path.name}::{item.originalname}", f"{item.path.name}::{item.originalname}[{parameters}]"):
            if key in EXPECTED_OVER_UTP:
                item.add_marker(pytest.mark.xfail(reason=EXPECTED_OVER_UTP[key], strict=True))


# -- the network ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def engine_running() -> dict[str, bool]:
    return {}


@pytest.fixture(params=list(MODULES), ids=[f"over_{name}" for name in MODULES])
def net(request: pytest.FixtureRequest, engine_running: dict[str, bool]) -> Iterator[Net]:
    """Stdlib TCP, then utpsocket. After a test that passed, no fd and no thread may be left of it."""
    network = Net(request.param)
    if not engine_running.get(request.param):
        # The engine's thread and its own fds are born on first use and stay: not the first test's leak.
        warm = Net(request.param)
        warm.pair()
        warm.close()
        engine_running[request.param] = True
        _settle()
    before = _resources()
    yield network
    network.close()
    if getattr(request.node, "passed", False):
        left = _left_over(before)
        assert not left, f"left over after the test: {left}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = (yield).get_result()  # type: ignore[misc]
    if call.when == "call":
        item.passed = report.passed  # type: ignore[attr-defined]


def _resources() -> collections.Counter[str]:
    found: collections.Counter[str] = collections.Counter()
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        # Two sockets are told apart by fd number, not by inode: what counts is how many there are.
        found["fd " + target.partition(":")[0]] += 1
    for thread in threading.enumerate():
        found[f"thread {thread.name}"] += 1
    return found


def _left_over(before: collections.Counter[str]) -> dict[str, int]:
    deadline = time.monotonic() + LEAK_LIMIT_S
    collected = False
    while left := dict(_resources() - before):
        if not collected:
            gc.collect()
            collected = True
        if time.monotonic() > deadline:
            break
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

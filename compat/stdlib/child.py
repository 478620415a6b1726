"""One test module in the interpreter under test: private network, patch, import, run, look for what was left over.

Started by supervisor.py, once per module and again after each test that hung. It says what happens as JSON lines
appended to the request's `events` file, so that nothing is lost when it has to be killed:

    {"network": "private" | "shared"}      before anything is imported
    {"start": id}                          a test begins
    {"end": id, "status": …, "seconds": s, "why": text, …    …and ends, with what the process did meanwhile:
     "tcp": kernel stream sockets made, "tcp_calls": bind and connect on such, "utp": uTP connections since its start}
    {"skipped_module": reason}             the module has nothing to say on this machine
    {"finished": {"fds": {kind: n}, "threads": n, "udp_ports": n,
                  "utp": {"connections": n, "ports": n}}, "utp": connections}  held by the engine, then after its end

Ids are the tests' own without `test.`, with `#2`, `#3`… when one occurs again. A test's status is its worst: error,
fail, skip, pass; hang and crash are the supervisor's to say.
"""

from __future__ import annotations

import _socket
import faulthandler
import gc
import importlib.util
import json
import os
import sys
import threading
import time
import traceback
import unittest
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from compat.stdlib import over_utp, tally
from compat.stdlib.private_network import enter_private_network

DUMP_SIGNAL: Final = 50  # a real-time signal no test uses: the supervisor asks where a hung test stands
SEVERITY: Final = ("pass", "skip", "fail", "error")
WHY_BYTES: Final = 4000  # of a traceback, its end

AF_INET, AF_INET6, SOCK_STREAM, SOCK_TYPE_MASK = 2, 10, 1, 0xF

_perf_counter = time.perf_counter


class Journal:
    """Says each test's beginning and end, with the number of stream sockets the process made meanwhile."""

    def __init__(self, events: str) -> None:
        self._events = events
        self._seen: Counter[str] = Counter()
        self._current: dict[str, Any] = {}
        self._tcp_sockets = 0
        self._tcp_calls = 0
        sys.addaudithook(self._count)

    def write(self, **event: Any) -> None:
        tally.append_line(self._events, json.dumps(event))

    def begin(self, name: str) -> None:
        """A test begins."""
        self._seen[name] += 1
        number = self._seen[name]
        identity = name if number == 1 else f"{name}#{number}"
        self._current = {"end": identity, "status": None, "why": "", "seconds": 0.0}
        self._current |= {"tcp": self._tcp_sockets, "tcp_calls": self._tcp_calls}
        self.write(start=identity)
        self._current["seconds"] = _perf_counter()

    def end(self) -> None:
        """The test that began has ended. Does nothing when none has begun."""
        if not self._current:
            return
        seconds = _perf_counter() - self._current["seconds"]
        ended = {
            "seconds": round(seconds, 4),
            "status": self._current["status"] or "pass",  # only expected failures of subtests say nothing
            "tcp": self._tcp_sockets - self._current["tcp"],
            "tcp_calls": self._tcp_calls - self._current["tcp_calls"],
            "utp": tally.connections_made(),
        }
        self.write(**self._current | ended)
        self._current = {}

    def note(self, name: str, status: str, text: str) -> None:
        """A result of the test that began or, when none has, of a fixture outside of tests."""
        fixture = not self._current
        if fixture:
            self.begin(name)
        before = self._current["status"]
        if before is None or SEVERITY.index(status) > SEVERITY.index(before):
            self._current |= {"status": status, "why": text[-WHY_BYTES:]}
        if fixture:
            self.end()

    def _count(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.__new__":
            _, family, kind, _ = arguments
            self._tcp_sockets += is_tcp(family, kind)
        elif event in ("socket.bind", "socket.connect"):
            # What the kernel has, whatever a subclass says it is.
            sock = arguments[0]
            kernel = _socket.socket
            self._tcp_calls += is_tcp(kernel.family.__get__(sock), kernel.type.__get__(sock))


class Recorder(unittest.TestResult):
    """unittest's results, written in a journal."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._journal.begin(test_name(test))

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        self._journal.end()  # 3.12.1 stops tests of a skipped class without having started them

    def addSuccess(self, test: unittest.TestCase) -> None:
        self._worsen(test, "pass", "")

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        self._worsen(test, "error", err)

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        self._worsen(test, "fail", err)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self._worsen(test, "skip", reason)

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:
        self._worsen(test, "pass", "")

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        self._worsen(test, "fail", "unexpected success")

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        if err is not None:
            failed = issubclass(err[0], test.failureException)
            self._worsen(test, "fail" if failed else "error", err)

    def _worsen(self, test: unittest.TestCase, status: str, err: Any) -> None:
        # A class's or module's fixture that fails or skips has no startTest of its own.
        text = err if isinstance(err, str) else "".join(traceback.format_exception(*err))
        self._journal.note(test_name(test), status, text)


def is_tcp(family: int, kind: int) -> bool:
    """Whether a socket of the kernel's is an internet stream."""
    return family in (AF_INET, AF_INET6) and kind & SOCK_TYPE_MASK == SOCK_STREAM


def test_name(test: Any) -> str:
    """The test's id without `test.`: some modules are ours to instantiate and live at the top level."""
    identity: str = test.id()
    return identity.removeprefix("test.").replace("(test.", "(")


def flatten(suite: Any) -> Iterator[Any]:
    """The tests of a nested suite, in order."""
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from flatten(item)
        else:
            yield item


class Choice:
    """What is to be run: matching, not excluded, and not done by a process before this one."""

    def __init__(self, request: dict[str, Any]) -> None:
        self._request = request
        self._done = Counter(request["done"])

    def takes(self, name: str) -> bool:
        """Whether this test is run. To be asked once about each, in their order."""
        if self._done[name] > 0:
            self._done[name] -= 1
            return False
        if any(fnmatchcase(name, pattern) for pattern in self._request["exclude"]):
            return False
        match = self._request["match"]
        return not match or any(fnmatchcase(name, pattern) for pattern in match)


def chosen(suite: unittest.TestSuite, request: dict[str, Any]) -> unittest.TestSuite:
    """What is to be run of `suite`."""
    choice = Choice(request)
    return unittest.TestSuite(test for test in flatten(suite) if choice.takes(test_name(test)))


def load(name: str) -> unittest.TestSuite:
    """The module's tests. A module that this machine cannot run raises SkipTest."""
    full_name = name  # another package's, or the supervisor put it on the path
    with suppress(ModuleNotFoundError):
        if importlib.util.find_spec(f"test.{name}") is not None:
            full_name = f"test.{name}"
    return unittest.defaultTestLoader.loadTestsFromModule(importlib.import_module(full_name))


def leftovers() -> dict[str, Any]:
    """What this process still holds: descriptors by kind, threads, and UDP ports."""
    gc.collect()
    fds = Path("/proc/self/fd")
    if not fds.is_dir():
        return {"fds": {}, "threads": threading.active_count(), "udp_ports": 0}
    kinds: Counter[str] = Counter()
    inodes = set()
    for entry in fds.iterdir():
        try:
            target = os.readlink(entry)
        except OSError:  # the directory's own
            continue
        kind, _, inode = target.partition(":[")
        kinds[kind if inode else target.removeprefix("anon_inode:") if target.startswith("anon_inode") else "file"] += 1
        if kind == "socket":
            inodes.add(inode.rstrip("]"))
    udp_ports = 0
    for table in ("udp", "udp6"):
        path = Path("/proc/self/net", table)
        if path.exists():
            udp_ports += sum(row.split()[9] in inodes for row in path.read_text(encoding="utf-8").splitlines()[1:])
    threads = len(os.listdir("/proc/self/task")) - _gevent_pool_threads()
    return {"fds": dict(kinds), "threads": threads, "udp_ports": udp_ports}


def _gevent_pool_threads() -> int:
    """Threads of the hub's own pool, which resolves names: it grows to ten as names happen to be asked for together."""
    gevent = sys.modules.get("gevent")
    hub = gevent.get_hub() if gevent else None
    pool = getattr(hub, "_threadpool", None)
    return pool.size if pool is not None else 0


def is_over_utp(request: dict[str, Any]) -> bool:
    """Whether uTP is to be in place of TCP in this process."""
    return bool(request["transport"] == "utp" and not os.environ.get("COMPAT_STDLIB_STAND_IN"))


def begin(request: dict[str, Any]) -> tuple[Journal, str]:
    """Before any test is imported: the network, what is asked of a hung process, the patch.

    -> the journal, and whether the network is "private" or "shared"
    """
    network = "private" if request["private_network"] and enter_private_network() else "shared"
    journal = Journal(request["events"])
    journal.write(network=network)
    # A copy of stderr: tests and their runners put other files in its place.
    log = os.fdopen(os.dup(2), "w")
    faulthandler.enable(log)
    faulthandler.register(DUMP_SIGNAL, log, all_threads=True)
    if is_over_utp(request):
        over_utp.start()
        tally.report_at_exit_of_forks(request["tally"])
    return journal, network


def finish(request: dict[str, Any], journal: Journal) -> None:
    """After the last test: say what was left over."""
    made = tally.connections_made()
    held: dict[str, Any] = {}
    if is_over_utp(request):
        gc.collect()
        held["utp"] = over_utp.left_over()
        over_utp.shut_down()
    journal.write(finished=leftovers() | held, utp=made)


def main(request: dict[str, Any]) -> None:
    """Run the request: see supervisor.py, which writes it."""
    journal, network = begin(request)
    with suppress(ImportError):  # an interpreter may come without its tests; other packages' are run all the same
        from test import support

        support.use_resources = list(request["resources"][network])
    try:
        suite = chosen(load(request["module"]), request)
    except unittest.SkipTest as reason:
        journal.write(skipped_module=str(reason))
        suite = unittest.TestSuite()
    suite.run(Recorder(journal))
    finish(request, journal)


def available_modules() -> list[str]:
    """The test modules this interpreter ships; of a package, its submodules instead of itself."""
    from pkgutil import iter_modules

    import test

    names = []
    for module in iter_modules(test.__path__):
        if module.ispkg:
            folders = [str(Path(folder, module.name)) for folder in test.__path__]
            names += [f"{module.name}.{inner.name}" for inner in iter_modules(folders)]
        else:
            names.append(module.name)
    return [name for name in names if name.rpartition(".")[2].startswith(("test_", "_test_"))]


if __name__ == "__main__":
    os.environ.pop("COMPAT_STDLIB_CHILD", None)
    if sys.argv[1] == "--list":
        print(json.dumps({"version": sys.version, "info": sys.version_info[:3], "modules": available_modules()}))
    else:
        main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))

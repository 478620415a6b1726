"""One module over one transport: start child.py, listen, end what hangs, resume after it.

A child that says nothing for as long as its current test may take is asked where it stands (its threads' stacks become
the test's cause), ended with its whole process group, and followed by another that leaves out what was done. The same
after a crash.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from compat.stdlib import tally
from compat.stdlib.child import DUMP_SIGNAL
from compat.stdlib.modules import (
    EXCLUDED,
    NETWORK_MEANS_LOOPBACK,
    RESOURCES,
    RESOURCES_IN_PRIVATE_NETWORK,
)

ROOT: Final = Path(__file__).resolve().parents[2]  # what holds compat/ and utpsocket/
POLL_S: Final = 0.05
FIXTURE_LIMIT_S: Final = 60.0  # imports, class and module fixtures, the engine's shutdown
EXIT_LIMIT_S: Final = 20.0  # after `finished`: exit handlers
DUMP_S: Final = 0.5  # for the stacks of a hung process to reach its log, once they begin to…
DUMP_LIMIT_S: Final = 10.0  # …which takes a moment where the machine is busy
RESTARTS: Final = 12  # per module: when so many tests hang, the rest is left unknown
LOG_TAIL_BYTES: Final = 6000

STOP: Final = threading.Event()  # set when the whole command is to end: every run gives up at once


@dataclass(frozen=True)
class Outcome:
    """What one test did over one transport."""

    status: str  # pass, skip, fail, error, hang, crash
    seconds: float
    tcp_sockets: int  # AF_INET and AF_INET6 stream sockets of the kernel's own, made while it ran
    utp_connections: int
    why: str = ""
    tcp_calls: int = 0  # bind() and connect() on such sockets


@dataclass
class ModuleRun:
    """What one module did over one transport."""

    module: str
    tests: dict[str, Outcome] = field(default_factory=dict)
    skipped: str = ""
    seconds: float = 0.0
    network: str = ""
    utp_connections: int = 0
    leftovers: dict[str, Any] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Task:
    """What to run, in which interpreter."""

    python: str
    module: str
    transport: str  # tcp, utp
    match: tuple[str, ...]
    limit_s: Callable[[str], float]
    source: str = ""  # of a module the interpreter does not ship
    exclude: tuple[str, ...] = tuple(EXCLUDED)  # globs of tests that are not run
    child: str = "compat.stdlib.child"  # the module that runs them
    files: Path | None = None  # a folder, of which the process gets a copy to work in
    arguments: tuple[str, ...] = ()  # for the child
    begin_limit_s: float = FIXTURE_LIMIT_S


def run_module(task: Task) -> ModuleRun:
    """Run one module to its end, over as many processes as it takes."""
    run = ModuleRun(task.module)
    begun_at = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="compat-stdlib-", ignore_cleanup_errors=True) as folder:
        done: list[str] = []
        for restart in range(RESTARTS + 1):
            attempt = _Attempt(task, run, Path(folder, str(restart)), done)
            if attempt.finished() or attempt.gained == 0 or STOP.is_set():
                break
            done = attempt.done
        else:
            run.troubles.append(f"given up after {RESTARTS} restarts: tests after the last one are unknown")
    run.seconds = round(time.monotonic() - begun_at, 3)
    return run


class _Attempt:
    """One process of a module's run."""

    def __init__(self, task: Task, run: ModuleRun, folder: Path, done: list[str]) -> None:
        self._task = task
        self._run = run
        self.done = list(done)
        self.gained = 0  # tests this process got done, the hung one included
        self._current: tuple[str, float] | None = None
        self._over = False
        self._made = 0  # uTP connections of this process so far

        folder.mkdir()
        self._events = folder / "events"
        self._log = folder / "log"
        self._tally = folder / "tally"
        work = folder / "work"
        if task.files:
            shutil.copytree(task.files, work, symlinks=True)
        else:
            work.mkdir()
        temporary = folder / "tmp" if task.files else work
        temporary.mkdir(exist_ok=True)
        modules = folder / "modules"
        modules.mkdir()
        if task.source:
            (modules / f"{task.module}.py").write_text(task.source, encoding="utf-8")
        (folder / "request").write_text(json.dumps(self._request()), encoding="utf-8")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [task.python, "-m", task.child, str(folder / "request")],
                cwd=work,
                env=self._environment(temporary, modules),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._heard_at = time.monotonic()
        self._offset = 0

    def finished(self) -> bool:
        """Listen until the process is gone. False when it has to be followed by another."""
        try:
            while self._process.poll() is None:
                self._listen()
                if STOP.is_set() or time.monotonic() > self._deadline():
                    self._give_up()
                    return self._over
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(POLL_S)
            self._listen()
            if not self._over:
                self._record_lost("crash", f"exit status {self._process.returncode}\n{self._log_tail()}")
            return self._over
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # the process, or children it left behind
            self._process.wait()
            self._run.utp_connections += self._made + tally.total(self._tally)

    def _request(self) -> dict[str, Any]:
        network = self._task.module in NETWORK_MEANS_LOOPBACK
        return {
            "module": self._task.module,
            "transport": self._task.transport,
            "events": str(self._events),
            "tally": str(self._tally),
            "done": [identity.partition("#")[0] for identity in self.done],
            "match": self._task.match,
            "exclude": self._task.exclude,
            "arguments": self._task.arguments,
            "private_network": True,
            "resources": {
                "private": RESOURCES_IN_PRIVATE_NETWORK,
                "shared": RESOURCES_IN_PRIVATE_NETWORK if network else RESOURCES,
            },
        }

    def _environment(self, temporary: Path, modules: Path) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("PYTHON") and not name.lower().endswith("_proxy")
        }
        inherited = Path(__file__).with_name("inherited")
        kept["PYTHONPATH"] = os.pathsep.join(map(str, (inherited, ROOT, modules)))
        kept["TMPDIR"] = str(temporary)
        kept["COMPAT_STDLIB_CHILD"] = "1"
        if self._task.transport == "utp" and not kept.get("COMPAT_STDLIB_STAND_IN"):
            kept["COMPAT_STDLIB_TALLY"] = str(self._tally)
            kept["COMPAT_STDLIB_PATH"] = os.pathsep.join(map(str, (inherited, ROOT)))  # where PYTHONPATH is replaced
        return kept

    def _deadline(self) -> float:
        if self._over:
            return self._heard_at + EXIT_LIMIT_S
        return self._heard_at + (self._task.limit_s(self._current[0]) if self._current else self._task.begin_limit_s)

    def _listen(self) -> None:
        if not self._events.exists():
            return
        with self._events.open("rb") as events:
            events.seek(self._offset)
            news = events.read()
        complete = news[: news.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.splitlines():
            self._heard_at = time.monotonic()
            self._hear(json.loads(line))

    def _hear(self, event: dict[str, Any]) -> None:
        if "start" in event:
            self._current = (event["start"], time.monotonic())
        elif "end" in event:
            self._current = None
            fixture = " (" in event["end"]  # setUpClass (module.Class): said again by every process that resumes
            identity = event["end"] if fixture else self._identity(event["end"])
            made = event["utp"] - self._made
            self._made = event["utp"]
            self._run.tests[identity] = Outcome(
                event["status"], event["seconds"], event["tcp"], made, event["why"], event["tcp_calls"]
            )
            if not fixture:
                self._count_done(identity)
        elif "network" in event:
            self._run.network = event["network"]
        elif "skipped_module" in event:
            self._run.skipped = event["skipped_module"]
        elif "finished" in event:
            self._over = True
            self._made = event["utp"]
            self._run.leftovers = event["finished"]

    def _identity(self, said: str) -> str:
        # A process that resumes numbers repeated ids from 1 again.
        name = said.partition("#")[0]
        if said not in self._run.tests:
            return said
        number = 2
        while f"{name}#{number}" in self._run.tests:
            number += 1
        return f"{name}#{number}"

    def _count_done(self, identity: str) -> None:
        self.done.append(identity)
        self.gained += 1

    def _give_up(self) -> None:
        if self._over:
            self._run.troubles.append(f"did not exit within {EXIT_LIMIT_S:.0f} s of its last test")
            return
        size, until = self._log.stat().st_size, time.monotonic() + DUMP_LIMIT_S
        with suppress(ProcessLookupError):
            self._process.send_signal(DUMP_SIGNAL)
        while self._log.stat().st_size == size and self._process.poll() is None and time.monotonic() < until:
            time.sleep(POLL_S)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(DUMP_S)
        self._record_lost("hang", self._log_tail())

    def _record_lost(self, status: str, why: str) -> None:
        if self._current is None:
            if not any("outside of tests" in trouble for trouble in self._run.troubles):
                self._run.troubles.append(f"{status} outside of tests, after {self.done[-1:]}: {why[-1500:]}")
            return
        said, begun_at = self._current
        identity = self._identity(said)
        self._run.tests[identity] = Outcome(status, round(time.monotonic() - begun_at, 3), 0, 0, why)
        self._current = None
        self._count_done(identity)

    def _log_tail(self) -> str:
        return self._log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")

"""The link made, flows run over it, and all of it gone afterwards.

    with Lab(Way(), Way()) as lab:
        measured = lab.run([Flow("utp"), Flow("tcp", 30, 70)], seconds=100)

Nothing has a name on this machine: the namespaces are held by the emulator's descriptors, and the programs are killed
by the kernel when this process ends, whatever ends it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

from tests.linklab.flows import SIDES, Flow, program_of
from tests.linklab.link import Change, Way
from tests.linklab.measured import FIRST_PORT, Measured

LEFT, RIGHT = "10.77.0.1", "10.77.0.2"
READY_SECONDS: Final = 60.0
LEAD_SECONDS: Final = 0.2  # from the line that says when it begins to the beginning
LOOK_SECONDS: Final = 0.05
EMULATOR_PRIORITY, PROGRAM_PRIORITY = 10, 1
PRIORITY_VARIABLE: Final = "LINKLAB_PRIORITY"
"""Where it is 0, nothing runs at real-time priority."""
SOURCE: Final = Path(__file__).resolve().parent / "emulator.c"
MEMORY_FOLDER: Final = Path("/dev/shm")


MARK_VARIABLE: Final = "LINKLAB_MARK"
"""In the environment of each process of a lab, by which remaining_processes() finds them."""


class LabUnavailable(Exception):
    """The lab needs what this machine lacks; the text says what."""


class LabFailed(Exception):
    """A run did not come to its end; the text says why."""


def emulator() -> str:
    """The compiled emulator: made when it is needed first, and again when its source has changed.

    Raises LabUnavailable.
    """
    text = SOURCE.read_bytes()
    folder = Path(tempfile.gettempdir()) / f"linklab-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise LabUnavailable(f"{folder} is another user's")
    program = folder / hashlib.sha256(text).hexdigest()[:16]
    if not program.exists():
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise LabUnavailable("needs a C compiler")
        unfinished = program.with_suffix(f".{os.getpid()}")
        done = subprocess.run(
            [compiler, "-O2", "-o", str(unfinished), str(SOURCE)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise LabUnavailable(f"the emulator does not compile here: {done.stderr.strip()}")
        unfinished.rename(program)
    return str(program)


def reason_to_skip() -> str:
    """Why there can be no lab here; empty where there can be one."""
    if os.geteuid() != 0:
        return "needs root: network namespaces and TUN devices"
    if not os.path.exists("/dev/net/tun"):
        return "needs /dev/net/tun"
    try:
        with Lab(Way(), Way()):
            return ""
    except LabUnavailable as problem:
        return str(problem)


def remaining_processes(mark: str | None = None) -> set[int]:
    """Those that this process's labs, or those of this mark, have started and that still run.

    Nothing else can remain of a lab: only they hold its namespaces, and with these its devices.
    """
    wanted = f"{MARK_VARIABLE}={mark or _MARK}".encode()
    found = set()
    for folder in Path("/proc").iterdir():
        # It may have ended, or be another user's.
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
    return found - {os.getpid()}


def available_tcp() -> frozenset[str]:
    """The congestion controls that this kernel's TCP has at hand."""
    try:
        text = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text("ascii")
    except OSError:
        return frozenset()
    return frozenset(text.split())


_MARK: Final = os.environ.get(MARK_VARIABLE) or uuid.uuid4().hex


class Lab:
    """Two namespaces and the link between them, while the context lasts.

    forward   the direction from left to right
    back      the other
    priority  whether the link and the programs run at real-time priority
    seed      of what the link does by chance; None: another one each time
    """

    def __init__(self, forward: Way, back: Way, *, priority: bool | None = None, seed: int | None = None) -> None:
        self.forward, self.back = forward, back
        self._has_priority = os.environ.get(PRIORITY_VARIABLE) != "0" if priority is None else priority
        self._seed = random.SystemRandom().getrandbits(31) if seed is None else seed
        self._stack = contextlib.ExitStack()
        self._programs: list[subprocess.Popen[bytes]] = []
        self._namespaces = ("", "")
        self._made = False

    def __enter__(self) -> Lab:
        program = emulator()
        with contextlib.ExitStack() as stack:
            memory = MEMORY_FOLDER if os.access(MEMORY_FOLDER, os.W_OK) else None
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="linklab-", dir=memory)))
            priority = str(EMULATOR_PRIORITY if self._has_priority else 0)
            names = [str(self.folder / name) for name in ("log", "flows")]
            self._emulator = subprocess.Popen(
                [program, "link", *names, LEFT, RIGHT, priority, str(self._seed)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, MARK_VARIABLE: _MARK},
                # Ctrl-C is this process's affair.
                start_new_session=True,
            )
            stack.callback(self._stop_emulator)
            ready = _pipe(self._emulator.stdout).readline().split()
            if ready[:1] != [b"ready"]:
                raise LabUnavailable(_pipe(self._emulator.stderr).read().decode(errors="replace").strip())
            pid, left, right = map(int, ready[1:])
            self._namespaces = f"/proc/{pid}/fd/{left}", f"/proc/{pid}/fd/{right}"
            self._order()
            stack.callback(self._stop_programs)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start(
        self, *, is_right: bool, command: Sequence[str], name: str, environment: Mapping[str, str] | None = None
    ) -> tuple[subprocess.Popen[bytes], Path]:
        """Run a command at one side of the link. Returns it, with the file that takes what it prints."""
        output = self.folder / name
        priority = str(PROGRAM_PRIORITY if self._has_priority else 0)
        enter = [emulator(), "enter", self._namespaces[is_right], str(os.getpid()), priority]
        with output.open("wb") as stdout, output.with_suffix(".errors").open("wb") as stderr:
            program = subprocess.Popen(
                [*enter, *command],
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                env={**os.environ, **(environment or {}), MARK_VARIABLE: _MARK},
                start_new_session=True,
            )
        self._programs.append(program)
        return program, output

    def set(self, way: str, **fields: Any) -> None:
        """Change the link now: fields of Way, of way ">", "<" or "" for both."""
        for sign, one in ((">", self.forward), ("<", self.back)):
            if way in ("", sign):
                one.set(**fields)
        self._order()

    def run(
        self,
        flows: Sequence[Flow],
        *,
        seconds: float,
        changes: Sequence[Change] = (),
        progress: Callable[[float], None] = lambda second: None,
    ) -> Measured:
        """Run the flows, once for each lab. Raises LabFailed, and Unavailable where a flow's program is not to be had.

        progress  is called about once a second, with the second
        """
        if self._made:
            raise LabFailed("a lab runs once")
        self._made = True
        programs = [program_of(flow) for flow in flows]
        ways = replace(self.forward), replace(self.back)

        def start(number: int, role: str) -> tuple[subprocess.Popen[bytes], Path]:
            flow = flows[number]
            settings = {
                "host": LEFT if flow.is_back else RIGHT,
                "port": FIRST_PORT + number,
                "streams": flow.streams,
                "start": flow.start,
                "end": flow.until(seconds),
                "folder": str(self.folder),
                "transport": flow.transport,
                "congestion": flow.congestion,
                "ppm": flow.ppm,
            }
            return self.start(
                is_right=(role == "sink") != flow.is_back,
                command=[*programs[number].command, role, json.dumps(settings)],
                environment=programs[number].environment,
                name=f"{role}{number}",
            )

        sinks = [start(number, "sink") for number in range(len(flows))]
        _wait_until_ready(sinks)
        sources = [start(number, "source") for number in range(len(flows))]
        ping = self.start(
            is_right=False,
            command=[sys.executable, str(SIDES / "ping_side.py"), "source", json.dumps({"host": RIGHT})],
            name="ping",
        )
        _wait_until_ready([*sources, ping])
        origin = time.monotonic() + LEAD_SECONDS
        for source, _ in [*sources, ping]:
            _pipe(source.stdin).write(json.dumps({"origin": origin}).encode() + b"\n")
            _pipe(source.stdin).flush()
        for change in sorted(changes, key=lambda change: change.at):
            _sleep_until(origin, change.at, progress)
            self.set(change.way, **change.fields)
        _sleep_until(origin, seconds, progress)
        broken = [f"{flow.name}: {_errors(out)}" for flow, (sink, out) in zip(flows, sinks, strict=True) if sink.poll()]
        if broken:
            raise LabFailed("; ".join(broken))
        self._stop_programs()
        report = json.loads(self._stop_emulator())
        outputs = [(sink, source) for (_, sink), (_, source) in zip(sinks, sources, strict=True)]
        return Measured.read(origin, seconds, ways, list(flows), self.folder, outputs, ping[1], report)

    def _order(self) -> None:
        _pipe(self._emulator.stdin).write((self.forward.order(0) + self.back.order(1)).encode())
        _pipe(self._emulator.stdin).flush()

    def _stop_emulator(self) -> bytes:
        """End it, if it still runs; what it has printed at its end."""
        if self._emulator.returncode is not None:
            return b""
        output, _ = self._emulator.communicate()
        return output

    def _stop_programs(self) -> None:
        for program in self._programs:
            program.kill()
        for program in self._programs:
            program.communicate()
        self._programs.clear()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _wait_until_ready(programs: Sequence[tuple[subprocess.Popen[bytes], Path]]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while waiting := [(program, output) for program, output in programs if not output.stat().st_size]:
        program, output = waiting[0]
        if program.poll() is not None:
            raise LabFailed(f"{output.name} has ended: {_errors(output)}")
        if time.monotonic() > deadline:
            raise LabFailed(f"{output.name} is not ready after {READY_SECONDS:g} s: {_errors(output)}")
        time.sleep(LOOK_SECONDS)


def _errors(output: Path) -> str:
    text = output.with_suffix(".errors").read_text("utf-8", errors="replace").strip()
    return text.splitlines()[-1] if text else "it has printed nothing"


def _sleep_until(origin: float, second: float, progress: Callable[[float], None]) -> None:
    while (left := origin + second - time.monotonic()) > 0:
        progress(second - left)
        time.sleep(min(left, 1.0))

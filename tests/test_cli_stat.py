"""`python3 -m utpsocket stat`: another process's engine from outside, which runs on as if it had not been asked."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import utpsocket
from tests.conversation import until
from utpsocket.cli import engines, stat
from utpsocket.engine import commands, outside
from utpsocket.engine.current import engine
from utpsocket.engine.loop import Loop

ROOT = Path(__file__).resolve().parent.parent
WAIT_S = 150
NOBODY = 65_534
OBSERVED = """
import os, sys, utpsocket
listener = utpsocket.create_server(("127.0.0.1", 0))
client = utpsocket.create_connection(listener.getsockname())
server, _ = listener.accept()
client.sendall(bytes(100_000))
for _ in range(100_000 // 10_000):
    server.recv(10_000, utpsocket.MSG_WAITALL)
print(listener.getsockname()[1], client.getsockname()[1], flush=True)
for line in sys.stdin:
    exec(line)
"""


@contextmanager
def observed(*before: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """A process with a connection to itself; its listener's port and its client's."""
    with subprocess.Popen(
        [sys.executable, "-c", "\n".join([OBSERVED.replace("print(", "\n".join([*before, "print("]), 1)])],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            listening, client = map(int, process.stdout.readline().split())
            yield process, listening, client
        finally:
            process.kill()


@pytest.fixture(scope="module", autouse=True)
def _may_ask() -> None:
    with observed() as (process, _, _):
        try:
            engines.ask(process.pid)
        except engines.NotAnswered as error:
            if "may not be asked" not in str(error):
                raise
            pytest.skip(f"needs the right to trace processes of the same user: {error}")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "utpsocket", "stat", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )


def tell(process: subprocess.Popen[str], line: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return process.stdout.readline()


def test_the_figures_of_another_process() -> None:
    with observed() as (process, listening, client):
        ran = run(str(process.pid), "--json")
        assert (ran.returncode, ran.stderr) == (0, "")
        seen = json.loads(ran.stdout)
        assert list(seen) == ["pid", "command", "build", "engine", "ports", "connections"]
        assert seen["pid"] == process.pid
        assert seen["engine"]["connections_open"] == 2
        assert [port["local"][1] for port in seen["ports"] if port["is_listening"]] == [listening]
        (sender,) = (each for each in seen["connections"] if each["peer"] == ["127.0.0.1", listening])
        assert (sender["local"], sender["state"]) == (["127.0.0.1", client], "connected")
        assert (sender["sent_bytes"], sender["acked_bytes"]) == (100_000, 100_000)
        assert set(sender) == {*utpsocket.ConnectionStats._fields} - {"build"}
        (receiver,) = (each for each in seen["connections"] if each is not sender)
        assert receiver["delivered_bytes"] == 100_000


def test_the_table_and_its_filters() -> None:
    with observed() as (process, listening, client):
        pid = str(process.pid)
        shown = run(pid).stdout
        assert shown.startswith(f"process {pid} (")
        assert re.search(rf"\n  listening +127.0.0.1:{listening}\n", shown)
        line = rf"\n  connected +127.0.0.1:{client} +127.0.0.1:{listening}\n      \S+ rtt "
        assert re.search(line, shown)
        assert re.search(line, run(pid, "--peer", f"127.0.0.0/8:{listening}", "--state", "connected").stdout)
        for filtered in (["--local", f"*:{listening}"], ["--peer", "192.0.2.0/24"], ["--state", "syn_sent"]):
            ran = run(pid, *filtered)
            assert ran.returncode == 0
            assert not re.search(line, ran.stdout)


def test_all_processes_and_several_that_ask_at_once() -> None:
    with observed() as (first, _, _), observed() as (second, _, _):
        asking = [
            subprocess.Popen(
                [sys.executable, "-m", "utpsocket", "stat", "--json"], cwd=ROOT, stdout=subprocess.PIPE, text=True
            )
            for _ in range(3)
        ]
        for each in asking:
            output, _ = each.communicate(timeout=WAIT_S)
            assert {first.pid, second.pid} <= {process["pid"] for process in json.loads(output)["processes"]}


def test_an_engine_that_is_slow_is_asked_once_and_answers_when_it_can() -> None:
    with observed() as (process, _, _), engines._waker(process.pid) as waker, ThreadPoolExecutor(2) as pool:
        process.send_signal(signal.SIGSTOP)
        first = pool.submit(engines.ask, process.pid)
        until(lambda: engines._is_unread(waker))
        # It sees that the first one has asked, and waits: it has a listener of its own, and adds no second number.
        second = pool.submit(engines.ask, process.pid)
        until(lambda: listeners() >= 2)
        process.send_signal(signal.SIGCONT)
        assert [asked.result(WAIT_S)["pid"] for asked in (first, second)] == [process.pid] * 2


def listeners() -> int:
    return Path("/proc/net/unix").read_text(encoding="utf-8", errors="replace").count("@utpsocket-stat:")


def test_again_and_again_with_rates() -> None:
    with observed() as (process, listening, _):
        command = [sys.executable, "-m", "utpsocket", "stat", str(process.pid), "--json", "--every", "0.1"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asking:
            assert asking.stdout is not None
            (first,) = (
                each
                for each in json.loads(asking.stdout.readline())["connections"]
                if each["peer"] == ["127.0.0.1", listening]
            )
            assert first["sent_bytes_per_second"] is None
            assert tell(process, "client.sendall(bytes(50_000)); print('sent', flush=True)") == "sent\n"
            sent = 0
            while sent < 150_000:
                (again,) = (
                    each
                    for each in json.loads(asking.stdout.readline())["connections"]
                    if each["peer"] == ["127.0.0.1", listening]
                )
                assert (again["sent_bytes_per_second"] > 0) == (again["sent_bytes"] > max(sent, 100_000))
                sent = again["sent_bytes"]
            asking.send_signal(signal.SIGINT)
            _, said = asking.communicate(timeout=WAIT_S)
            assert (asking.returncode, said) == (128 + signal.SIGINT, "utpsocket: interrupted\n")


def test_nothing_is_left_in_the_process_that_was_asked() -> None:
    """Neither a descriptor nor a thread; its engine wakes up once for each question."""
    with observed() as (process, _, _):

        def open_now() -> list[str]:
            folder = Path(f"/proc/{process.pid}")
            return [*sorted(os.listdir(folder / "fd")), *sorted(os.listdir(folder / "task"))]

        before = open_now()
        wakeups = [engines.ask(process.pid)["engine"]["wakeups"] for _ in range(4)]
        assert open_now() == before
        assert tell(process, "client.sendall(b'on'); print(server.recv(2), flush=True)") == "b'on'\n"
        assert wakeups == sorted(set(wakeups))


def test_an_engine_in_a_process_of_its_own() -> None:
    with observed(UTPSOCKET_ENGINE="process") as (process, _, _):
        ran = run(str(process.pid), "--json")
        assert (ran.returncode, ran.stderr) == (0, "")
        seen = json.loads(ran.stdout)
        assert seen["pid"] != process.pid
        assert len(seen["connections"]) == 2


def test_a_process_without_an_engine_is_status_1() -> None:
    ran = run(str(os.getppid()))
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", f"utpsocket: process {os.getppid()} has no engine\n")


@pytest.mark.parametrize("wrong", [["me"], ["--peer", "localhost"], ["--every", "0"], ["--state", "open"]])
def test_wrong_usage_is_status_2(wrong: list[str]) -> None:
    ran = run(*wrong)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.splitlines()[-1].startswith("utpsocket: ")


def asked_as_nobody(pid: int) -> str:
    program = f"""
import os, utpsocket.cli.engines as engines
os.setgid({NOBODY}); os.setuid({NOBODY})
try:
    engines.ask({pid})
except engines.NotAnswered as error:
    print(error)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S, check=True
    )
    return ran.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_another_users_process_may_not_be_asked_nor_one_that_has_changed_its_user() -> None:
    with observed() as (process, _, _):
        assert asked_as_nobody(process.pid).startswith(f"process {process.pid} may not be asked: ")
    with observed(f"os.setgid({NOBODY}); os.setuid({NOBODY})") as (process, _, _):
        assert asked_as_nobody(process.pid).startswith(f"process {process.pid} may not be asked: ")
        assert engines.ask(process.pid)["engine"]["connections_open"] == 2  # by root


@pytest.mark.parametrize("uid", [NOBODY, None])
def test_the_engine_answers_its_own_user_alone(uid: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = engine()
    if not isinstance(loop, Loop):
        pytest.skip("the engine is in another process")
    if uid is not None:
        monkeypatch.setattr(outside, "peer_credentials", lambda _: (os.getpid(), uid))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(outside.name(7))
        listener.listen()
        loop.call(commands.answer_outside, 7)
        conn, _ = listener.accept()
        with conn:
            data, fds, _, _ = socket.recv_fds(conn, 1, 1)
        for fd in fds:
            os.close(fd)
    assert bool(data) == bool(fds) == (uid is None)


def test_a_question_without_a_listener_is_ignored() -> None:
    loop = engine()
    if not isinstance(loop, Loop):
        pytest.skip("the engine is in another process")
    faults = loop.faults
    loop.call(commands.answer_outside, 8)
    assert loop.faults == faults


def test_rates_are_of_the_time_in_between() -> None:
    rates = stat.Rates()
    for at, sent, rate in ((10.0, 500, None), (12.0, 2_500, 1_000), (12.5, 2_500, 0), (13.0, 100, None)):
        connection = {"local": ("a", 1), "peer": ("b", 2), "sent_bytes": sent, "received_bytes": 0}
        rates.add_to([{"pid": 1, "connections": [connection]}], at)
        assert connection["sent_bytes_per_second"] == rate

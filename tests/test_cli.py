"""The commands from outside: what they print, how they exit, and that they leave no process and no file."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import utpsocket
from utpsocket.cli import COMMANDS, INTERRUPTED, demo, main, quantities
from utpsocket.cli.demo_server import BLOCK_BYTES, Server, make_file
from utpsocket.cli.progress import Progress
from utpsocket.protocol.build import BUILD

ROOT = Path(__file__).resolve().parent.parent
MARK = "UTPSOCKET_TEST_MARK"  # an environment variable by which a test finds the processes it caused
DEMO_KEYS = [
    "bytes",
    "seconds",
    "goodput_bytes_per_second",
    "sha256_ok",
    "retransmitted_packets",
    "packet_bytes",
    "rtt_us",
    "build",
    "cpu_seconds",
]
TRANSPORTS = ["tcp", "utp"]


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("1500", 1_500),
        ("64Ki", 65_536),
        ("256M", 256_000_000),
        ("256MB", 256_000_000),
        ("256 MiB", 268_435_456),
        ("1.5G", 1_500_000_000),
        ("2Ti", 2 * 1024**4),
    ],
)
def test_sizes_are_read(text: str, size_bytes: int) -> None:
    assert quantities.read_size(text) == size_bytes


@pytest.mark.parametrize(("text", "rate"), [("800", 800), ("10M", 10**7), ("10Mbit/s", 10**7), ("1.5Gbps", 15 * 10**8)])
def test_rates_are_read_in_bits_per_second(text: str, rate: int) -> None:
    assert quantities.read_rate(text) == rate


@pytest.mark.parametrize(("text", "time_us"), [("500us", 500), ("20ms", 20_000), ("1.5s", 1_500_000), ("0.5 µs", 0)])
def test_times_are_read_in_microseconds(text: str, time_us: int) -> None:
    assert quantities.read_time(text) == time_us


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (quantities.read_size, "-1"),
        (quantities.read_size, "M"),
        (quantities.read_size, "10m"),
        (quantities.read_size, "10 apples"),
        (quantities.read_rate, "10MB"),
        (quantities.read_time, "20"),
        (quantities.read_time, "20 minutes"),
    ],
)
def test_what_is_no_quantity_is_refused_with_an_example(read: Callable[[str], int], text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not a .* such as"):
        read(text)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (quantities.show_size(0), "0 B"),
        (quantities.show_size(999), "999 B"),
        (quantities.show_size(999_499), "999 KB"),
        (quantities.show_size(999_500), "1.00 MB"),
        (quantities.show_size(12_345_678), "12.3 MB"),
        (quantities.show_rate(1_260_000_000), "1.26 GB/s"),
        (quantities.show_time(72), "72 µs"),
        (quantities.show_time(20_480), "20.5 ms"),
        (quantities.show_time(1_000_000), "1.00 s"),
        (quantities.show_clock(7.4), "0:07"),
        (quantities.show_clock(3_723), "1:02:03"),
    ],
)
def test_quantities_are_shown_with_three_digits(shown: str, text: str) -> None:
    assert shown == text


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1", "koi8-r"])
def test_what_is_shown_can_be_written_on_any_terminal(encoding: str) -> None:
    shown = quantities.printable(f"round trip {quantities.show_time(72)}", encoding)
    assert shown.encode(encoding).decode(encoding) in ("round trip 72 us", "round trip 72 µs")
    assert ("µ" in shown) == (encoding in ("utf-8", "latin-1"))


def test_a_table_on_a_terminal_that_knows_ascii_only(marked: dict[str, str]) -> None:
    ran = run("demo", "--size", "1M", environment={**marked, "PYTHONIOENCODING": "ascii"})
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"\d (us|ms)", ran.stdout)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_progress_in_a_log_is_a_line_a_second() -> None:
    log, clock = io.StringIO(), Clock()
    with Progress(10_000_000, stream=log, clock=clock) as progress:
        for step in range(1, 31):
            clock.seconds += 0.1
            progress.update(step * 100_000)
    assert log.getvalue().splitlines() == [
        " 10.0 %  1.00 MB of 10.0 MB  1.00 MB/s  ETA 0:09",
        " 20.0 %  2.00 MB of 10.0 MB  1.00 MB/s  ETA 0:08",
        " 30.0 %  3.00 MB of 10.0 MB  1.00 MB/s  ETA 0:07",
    ]


def test_progress_on_a_terminal_rewrites_one_line_and_ends_it() -> None:
    terminal, clock = Terminal(), Clock()
    with Progress(1_000_000, stream=terminal, clock=clock) as progress:
        for done_bytes in (100_000, 500_000, 1_000_000):
            clock.seconds += 0.5
            progress.update(done_bytes)
    written = terminal.getvalue()
    assert written.count("\n") == 1
    assert written.endswith("\n")
    assert [line[:7] for line in written.split("\r")[1:]] == [" 10.0 %", " 50.0 %", "100.0 %", "100.0 %"]


def test_progress_rate_is_recent_and_a_standstill_has_no_eta() -> None:
    log, clock = io.StringIO(), Clock()
    with Progress(100_000_000, stream=log, clock=clock) as progress:
        for done_bytes in (10_000_000, 20_000_000, 20_000_000, 20_000_000):
            clock.seconds += 1
            progress.update(done_bytes)
    rates = [line.split("MB  ")[-1] for line in log.getvalue().splitlines()]
    assert rates == ["10.0 MB/s  ETA 0:09", "10.0 MB/s  ETA 0:08", "5.00 MB/s  ETA 0:16", "0 B/s  ETA -:--"]


def test_the_served_file_repeats_its_block_and_is_the_same_every_time(tmp_path: Path) -> None:
    served = make_file(tmp_path, BLOCK_BYTES + 10)
    content = (tmp_path / "file").read_bytes()
    assert len(content) == served.size_bytes == BLOCK_BYTES + 10
    assert content[:10] == content[-10:]
    assert make_file(tmp_path, BLOCK_BYTES + 10) == served


@pytest.fixture
def marked() -> Iterator[dict[str, str]]:
    """An environment for a command; nothing started with it may be left when the test ends."""
    environment = {**os.environ, MARK: uuid.uuid4().hex}
    yield environment
    with contextlib.suppress(AssertionError):
        eventually(lambda: processes_with(environment) == [])  # one that was killed may have to wait for its end
    assert processes_with(environment) == []


def processes_with(environment: dict[str, str]) -> list[str]:
    wanted = f"{MARK}={environment[MARK]}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def eventually(holds: Callable[[], bool], seconds: float = 100) -> None:
    """Another process's doing has no event to wait on, so look until it has happened."""
    give_up_at = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "utpsocket", *arguments]


@contextlib.contextmanager
def running(environment: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command in a process of its own, which is ended in any case."""
    with subprocess.Popen(
        command(*arguments), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()  # does nothing to one that has ended and been waited for


def run(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=150, check=False
    )


def test_help_lists_every_command_and_imports_none() -> None:
    program = (
        "import contextlib, sys\nfrom utpsocket.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
        "shared = 'utpsocket.cli.messages'\n"
        "print([name for name in sys.modules if name.startswith('utpsocket.cli.') and name != shared])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=150, check=True
    )
    assert "\n  demo  " in ran.stdout
    assert ran.stdout.endswith("[]\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_two_examples_and_the_exit_status(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([name, "--help"])
    assert exit_.value.code == 0
    said = capsys.readouterr().out
    examples = said[said.index("\nexamples:\n") : said.index("\nexit status: ")]
    assert len(re.findall(rf"\n  \S.* {name}", examples)) >= 2


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["demo", "--size", "big"],
        ["demo", "--transport", "pigeon"],
        ["demo", "fetch"],
        ["demo", "fetch", "127.0.0.1", "http"],
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert "usage:" in said
    assert said.splitlines()[-1].startswith("utpsocket: ")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_demo_prints_one_json_object(transport: str, marked: dict[str, str]) -> None:
    ran = run("demo", "--json", "--size", "3M", "--transport", transport, environment=marked)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert list(result) == DEMO_KEYS
    assert (result["bytes"], result["sha256_ok"]) == (3_000_000, True)
    assert result["goodput_bytes_per_second"] == pytest.approx(3_000_000 / result["seconds"], rel=0.01)
    assert result["rtt_us"] > 0
    assert result["packet_bytes"] > 0
    assert result["retransmitted_packets"] >= 0
    assert sorted(result["cpu_seconds"]) == ["client", "server"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_demo_shows_a_table(transport: str, marked: dict[str, str]) -> None:
    ran = run("demo", "--size", "1M", "--transport", transport, environment=marked)
    assert ran.returncode == 0, ran.stderr
    table = dict(line.split(None, 1) for line in ran.stdout.splitlines())
    assert (table["transport"], table["bytes"]) == (transport, "1,000,000")
    assert table["sha256"] == "the same on both sides"
    assert "serving 1.00 MB" in ran.stderr


@pytest.mark.parametrize("size", ["0", "1", "70000"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_demo_of_a_small_file(size: str, transport: str, marked: dict[str, str]) -> None:
    ran = run("demo", "--json", "--size", size, "--transport", transport, environment=marked)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["bytes"] == int(size)


def test_demo_runs_from_anywhere_and_with_nothing_installed(tmp_path: Path, marked: dict[str, str]) -> None:
    """The child finds the package where the parent did: with -I neither an installed copy nor the folder helps."""
    program = f"import sys; sys.path.insert(0, {os.fspath(ROOT)!r}); from utpsocket.cli import main; sys.exit(main())"
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, "demo", "--size", "1M", "--transport", "tcp", "--json"],
        cwd=tmp_path,
        env=marked,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["sha256_ok"] is True


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_serve_and_fetch_in_two_processes(transport: str, tmp_path: Path, marked: dict[str, str]) -> None:
    marked["TMPDIR"] = os.fspath(tmp_path)
    arguments = ["demo", "serve", "--host", "127.0.0.1", "--port", "0", "--size", "2M", "--json"]
    with running(marked, *arguments, "--transport", transport) as server:
        assert server.stdout is not None
        ready = json.loads(server.stdout.readline())
        for _ in range(2):
            ran = run("demo", "fetch", "127.0.0.1", str(ready["port"]), "--transport", transport, "--json")
            assert ran.returncode == 0, ran.stderr
            assert json.loads(ran.stdout)["bytes"] == ready["bytes"] == 2_000_000
        server.send_signal(signal.SIGINT)
        assert server.wait(100) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_fetch_from_a_closed_port_is_status_1(transport: str) -> None:
    with socket.socket(type=socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ran = run("demo", "fetch", "127.0.0.1", str(port), "--transport", transport, "--json")
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert f"port {port}" in ran.stderr
    assert "refused" in ran.stderr


@contextlib.contextmanager
def serving(directory: Path, change: Callable[[Any], Any]) -> Iterator[int]:
    """A demo server over TCP in a thread, of a file whose description `change` has falsified; its port."""
    served = change(make_file(directory, 100_000))
    with Server(("127.0.0.1", 0), socket, served) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_a_different_hash_is_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path, lambda served: replace(served, sha256=bytes(32))) as port:
        status = main(["demo", "fetch", "127.0.0.1", str(port), "--transport", "tcp", "--json"])
    said = capsys.readouterr()
    assert status == 1
    assert json.loads(said.out)["sha256_ok"] is False
    assert "not what was sent" in said.err


def test_another_size_than_announced_is_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path, lambda served: replace(served, size_bytes=served.size_bytes + 1)) as port:
        status = main(["demo", "fetch", "127.0.0.1", str(port), "--transport", "tcp"])
    assert (status, capsys.readouterr().out) == (1, "")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"bytes":1',
    ],
)
def test_a_server_that_is_no_demo_is_status_1(answer: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    def serve_once(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve_once, args=(listener,))
        thread.start()
        port = listener.getsockname()[1]
        status = main(["demo", "fetch", "127.0.0.1", str(port), "--transport", "tcp"])
        thread.join()
    said = capsys.readouterr()
    assert (status, said.out) == (1, "")
    assert said.err.startswith(f"utpsocket: 127.0.0.1 port {port} over tcp: ")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_ctrl_c_ends_both_processes(transport: str, tmp_path: Path, marked: dict[str, str]) -> None:
    marked["TMPDIR"] = os.fspath(tmp_path)
    with running(marked, "demo", "--size", "8G", "--transport", transport) as parent:
        assert parent.stderr is not None
        assert "serving" in parent.stderr.readline()
        eventually(lambda: list(tmp_path.iterdir()) != [])  # the child is making its file
        parent.send_signal(signal.SIGINT)
        out, err = parent.communicate(timeout=100)
    assert (parent.returncode, out, err) == (INTERRUPTED, "", "utpsocket: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_the_server_does_not_outlive_a_killed_parent(tmp_path: Path, marked: dict[str, str]) -> None:
    marked["TMPDIR"] = os.fspath(tmp_path)
    with running(marked, "demo", "--size", "8G", "--transport", "tcp") as parent:
        eventually(lambda: list(tmp_path.iterdir()) != [])
        parent.kill()
        parent.communicate(timeout=100)
    eventually(lambda: processes_with(marked) == [])
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_cannot_start_is_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    arguments = argparse.Namespace(size=1, transport="tcp", json=False)
    assert demo.run_both(arguments) == 1


def test_version_says_which_build_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"utpsocket {utpsocket.__version__} ({BUILD}; CPython 3.")

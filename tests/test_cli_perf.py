"""`perf` from outside: what it prints and how it exits; from inside: that no wrong byte passes for a right one."""

from __future__ import annotations

import argparse
import json
import signal
import socket
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.test_cli import TRANSPORTS, eventually, marked, processes_with, run, running
from utpsocket.cli import main, perf, perf_plot
from utpsocket.cli.perf_server import PerfError, Plan, Server
from utpsocket.cli.perf_streams import CALL_BYTES, PATTERN, PATTERN_BYTES, DataMismatch, Limit, receive_all, send_all
from utpsocket.protocol import ConnectionStats

__all__ = ["marked"]  # a fixture

KEYS = ["transport", "bytes", "seconds", "goodput_bytes_per_second", "cpu_seconds", "connections"]


@pytest.mark.parametrize("direction", [[], ["--reverse"]])
@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_loopback_prints_one_json_object(
    transport: str, parallel: int, direction: list[str], marked: dict[str, str]
) -> None:
    options = ["--transport", transport, "--bytes", "2000001", "--parallel", str(parallel), *direction]
    ran = run("perf", "loopback", "--json", *options, environment=marked)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert list(result) == KEYS
    assert (result["transport"], result["bytes"]) == (transport, 2_000_001)
    assert result["goodput_bytes_per_second"] == pytest.approx(2_000_001 / result["seconds"], rel=0.01)
    assert sorted(result["cpu_seconds"]) == ["receiver", "sender"]
    assert min(result["cpu_seconds"].values()) > 0
    assert sorted(figures["bytes"] for figures in result["connections"]) == sorted(
        Limit(2_000_001, None).share(index, parallel) or 0 for index in range(parallel)
    )
    for figures in result["connections"]:
        assert figures["packet_bytes"] > 0
        assert figures["retransmitted_packets"] >= 0
        if transport == "utp":
            # The report comes by another connection: acks may be behind it.
            assert figures["sent_bytes"] >= figures["bytes"]
            assert 0 < figures["acked_bytes"] <= figures["sent_bytes"]


@pytest.mark.parametrize("direction", [[], ["--reverse"]])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_measurement_is_drawn(transport: str, direction: list[str], marked: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "out.svg"
    options = ["--transport", transport, "--seconds", "1", "--parallel", "2", "--plot", str(file), *direction]
    ran = run("perf", "loopback", *options, environment=marked)
    assert ran.returncode == 0, ran.stderr
    texts = [element.text for element in ElementTree.parse(file).iter("{http://www.w3.org/2000/svg}text")]
    assert {"connection 1", "connection 2", "Rate, Mbit/s"} <= {*texts}
    assert ("Congestion window, kB" in texts) == (not direction)
    assert any(str(text).startswith("uTP, " if transport == "utp" else "TCP, ") for text in texts)


def test_a_plot_that_cannot_be_written_is_status_1(marked: dict[str, str], tmp_path: Path) -> None:
    options = ["--transport", "tcp", "--seconds", "0.5", "--plot", str(tmp_path / "none" / "out.svg")]
    ran = run("perf", "loopback", *options, environment=marked)
    assert ran.returncode == 1
    assert "no plot" in ran.stderr
    assert "goodput" in ran.stdout


def test_samples_are_differences_and_many_connections_are_one_line() -> None:
    def at(count: int) -> ConnectionStats:
        figures = {"acked_bytes": 1_000 * count, "cwnd_bytes": 10, "retransmitted_packets": count}
        return ConnectionStats(**figures, queueing_delay_us=5, received_bytes=count)  # type: ignore[arg-type]

    with socket.socket() as one:
        samples = perf_plot.Samples(is_receiving=False).of([one] * 9)
    samples.add(1.0, [at(1)] * 9)
    samples.add(3.0, [at(2)] * 9)
    samples.add(3.0, [at(3)] * 9)  # no time has passed
    (line,) = samples._lines
    assert line.rate == [(1.0, 72_000.0), (3.0, 36_000.0)]
    assert line.cwnd == [(1.0, 90), (3.0, 90)]
    assert line.losses == [(1.0, 9), (3.0, 9)]
    assert line.delay == [(1.0, 5.0), (3.0, 5.0)]
    assert "9 connections together" in samples.draw(title="t", note="n")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_time_instead_of_a_size(transport: str, marked: dict[str, str]) -> None:
    ran = run(
        "perf",
        "loopback",
        "--json",
        "--transport",
        transport,
        "--seconds",
        "0.2",
        "--parallel",
        "2",
        environment=marked,
    )
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["seconds"] >= 0.2
    assert result["bytes"] > 0
    assert all(figures["bytes"] > 0 for figures in result["connections"])


def test_a_table_for_people(marked: dict[str, str]) -> None:
    ran = run("perf", "loopback", "--bytes", "1M", "--transport", "tcp", environment=marked)
    assert ran.returncode == 0, ran.stderr
    table = dict(line.split("  ", 1) for line in ran.stdout.splitlines())
    assert table["transport"].strip() == "tcp"
    assert table["bytes"].strip() == "1,000,000, compared one by one"
    assert table["retransmissions"].strip().isdecimal()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_server_and_client_in_two_processes(transport: str, marked: dict[str, str]) -> None:
    with running(marked, "perf", "server", "127.0.0.1:0", "--json", "--transport", transport) as server:
        assert server.stdout is not None
        port = json.loads(server.stdout.readline())["port"]
        for options in (["--bytes", "300K"], ["--bytes", "0"], ["--bytes", "300K", "--reverse", "--parallel", "2"]):
            ran = run("perf", "client", "127.0.0.1", str(port), "--transport", transport, "--json", *options)
            assert ran.returncode == 0, ran.stderr
            assert json.loads(ran.stdout)["transport"] == transport
        server.send_signal(signal.SIGINT)
        assert server.wait(100) == 0


def test_the_server_does_not_outlive_a_killed_parent(marked: dict[str, str]) -> None:
    with running(marked, "perf", "loopback", "--seconds", "30", "--transport", "tcp") as parent:
        assert parent.stderr is not None
        assert "30 s" in parent.stderr.readline()
        parent.kill()
        parent.communicate(timeout=100)
    eventually(lambda: processes_with(marked) == [])


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["loopback", "--bytes", "1M", "--seconds", "1"],
        ["loopback", "--seconds", "0"],
        ["loopback", "--parallel", "0"],
        ["server", "host:port"],
        ["server", "127.0.0.1:70000"],
        ["client", "127.0.0.1"],
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["perf", *arguments])
    assert exit_.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "address"),
    [("5201", ("", 5201)), ("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:7", ("::1", 7)), ("::1:7", ("::1", 7))],
)
def test_addresses_are_read(text: str, address: tuple[str, int]) -> None:
    assert perf.read_address(text) == address


def test_a_bad_address_shows_what_one_looks_like() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="HOST:PORT"):
        perf.read_address("localhost")


def test_a_closed_port_is_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert main(["perf", "client", "127.0.0.1", str(port), "--transport", "tcp", "--json"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert f"port {port}" in said.err


def against(server: Callable[[Any], None]) -> int:
    """The exit status of a client whose server is `server`, called with the control connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            control, _ = listener.accept()
            with control:
                server(control)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            return main(["perf", "client", "127.0.0.1", str(listener.getsockname()[1]), "--transport", "tcp"])
        finally:
            thread.join()


def test_a_server_that_is_no_perf_is_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert against(lambda control: control.sendall(b"220 mail.example ESMTP\r\n")) == 1
    assert "not a perf" in capsys.readouterr().err


def test_a_server_that_goes_away_is_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert against(lambda control: control.recv(4096)) == 1
    assert "ended" in capsys.readouterr().err


def test_a_stream_that_does_not_come_is_reported_by_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utpsocket.cli.perf_server.OPEN_SECONDS", 0.05)
    server = Server(("127.0.0.1", 0), socket)
    with server.listener, socket.create_connection(("127.0.0.1", server.port)) as control:
        control.sendall(json.dumps(Plan("x", 1, False, Limit(1, None)).line()).encode() + b"\n")
        accepted, _ = server.listener.accept()
        server._handle_connection(accepted)
        with control.makefile("rb") as answers:
            assert [json.loads(line) for line in answers] == [{"ready": True}, {"error": "0 of 1 streams arrived"}]


@pytest.mark.parametrize(
    "line", [{}, {"perf": 2}, {"perf": 1, "plan": "x", "parallel": 0, "bytes": 1}, {"perf": 1, "parallel": 1}]
)
def test_what_is_no_plan_is_refused(line: dict[str, Any]) -> None:
    with pytest.raises(PerfError, match="not a plan"):
        Plan.read(line)


def test_a_plan_survives_the_wire() -> None:
    plan = Plan("name", 3, True, Limit(None, 1.5))
    assert Plan.read(json.loads(json.dumps(plan.line()))) == plan


def test_shares_add_up() -> None:
    assert [Limit(10, None).share(index, 4) for index in range(4)] == [3, 3, 2, 2]
    assert Limit(None, 1.0).share(0, 4) is None


@pytest.mark.parametrize("parallel", [1, 2])
def test_what_is_sent_is_what_is_expected(parallel: int) -> None:
    total_bytes = parallel * (2 * PATTERN_BYTES + 5)
    pairs = [socket.socketpair() for _ in range(parallel)]
    counts: list[list[int]] = []
    sender = threading.Thread(
        target=lambda: counts.append(send_all([ours for ours, _ in pairs], Limit(total_bytes, None), lambda _: None))
    )
    sender.start()
    totals: list[int] = []
    counts.append(receive_all([theirs for _, theirs in pairs], lambda counts: totals.append(sum(counts))))
    sender.join()
    for ours, theirs in pairs:
        ours.close()
        theirs.close()
    assert counts == [[total_bytes // parallel] * parallel] * 2
    assert totals[-1] == total_bytes


@pytest.mark.parametrize("parallel", [1, 2])
@pytest.mark.parametrize(
    "wrong",
    [
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[1:] + data[:1],
        lambda data: data[:100] + data[101:],
        lambda data: data[:100] + data[99:],
    ],
    ids=["flipped", "rotated", "lost", "doubled"],
)
def test_a_wrong_byte_is_seen(wrong: Callable[[bytes], bytes], parallel: int) -> None:
    pairs = [socket.socketpair() for _ in range(parallel)]
    try:
        for ours, _ in pairs:
            ours.sendall(wrong(PATTERN[:1000]))
            ours.shutdown(socket.SHUT_WR)
        with pytest.raises(DataMismatch):
            receive_all([theirs for _, theirs in pairs], lambda _: None)
    finally:
        for ours, theirs in pairs:
            ours.close()
            theirs.close()


def test_a_call_never_reaches_past_the_pattern() -> None:
    assert len(PATTERN) >= PATTERN_BYTES - 1 + CALL_BYTES

"""The link lab: what is written on its command line, what it makes of what it has seen, and that nothing stays."""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import uuid
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from tests.linklab import __main__ as command
from tests.linklab import cases, drawing, link, report, rounds
from tests.linklab.flows import ROOT, Flow, program_of, read_flows
from tests.linklab.lab import MARK_VARIABLE, Lab, LabFailed, reason_to_skip, remaining_processes
from tests.linklab.link import Change, Way
from tests.linklab.measured import LOST, PASSED, TAIL_DROPPED, Delay, Measured, Packet, jain

LATE = {"packets": 3.0, "late_mean_us": 40.0, "late_max_us": 900.0, "late_over_1ms": 0.0, "late_over_5ms": 0.0}


def two_flows(**report_changes: float) -> Measured:
    """Ten seconds at 8 Mbit/s: the first flow alone for five of them, with a packet of another program's between."""
    seconds = [second / 10 for second in range(101)]
    first = [(second, [int(1_000_000 * min(second, 5) + 500_000 * max(0, second - 5))]) for second in seconds]
    second_flow = [(second, [int(500_000 * max(0, second - 5))]) for second in seconds]
    packets = [
        Packet(1.0, 1_000, 1_500, 0, PASSED),
        Packet(2.0, 3_000, 1_500, 0, PASSED),
        Packet(6.0, 9_000, 1_500, 1, PASSED),
        Packet(6.5, 9_000, 1_500, 1, TAIL_DROPPED),
        Packet(6.6, 9_000, 1_500, 0, LOST),
        Packet(7.0, 0, 84, -1, PASSED),
    ]
    return Measured(
        10.0,
        (Way(rate_bps=8_000_000), Way()),
        [Flow("utp"), Flow("tcp", 5)],
        [first, second_flow],
        [[], []],
        [[{"t": 4.0, "stream": 0, "cwnd_bytes": 7}], []],
        (packets, []),
        [(1.0, 50_000), (2.0, None), (3.0, 70_000)],
        {**LATE, "device_drops": 0.0, **report_changes},
    )


@pytest.mark.parametrize(
    ("text", "flow"),
    [
        ("utp", Flow("utp")),
        ("utp:ledbat++", Flow("utp:ledbat++")),
        ("utp:ledbat++x8<@3-9", Flow("utp:ledbat++", 3, 9, 8, True)),
        ("tcp@30-70", Flow("tcp", 30, 70)),
        ("tcp:bbr@0.5", Flow("tcp:bbr", 0.5)),
        ("renox2", Flow("reno", streams=2)),
        ("libutp", Flow("libutp")),
        ("libtorrent<", Flow("libtorrent", is_back=True)),
    ],
)
def test_a_flow_is_read_as_it_is_written(text: str, flow: Flow) -> None:
    assert read_flows(text) == [flow]


def test_several_flows_and_a_flow_begun_several_times_are_read() -> None:
    assert read_flows("utp, 3*cubic@1+0.1-9") == [
        Flow("utp"),
        Flow("cubic", 1, 9),
        Flow("cubic", 1.1, 9),
        Flow("cubic", 1.2, 9),
    ]


@pytest.mark.parametrize(
    "text", ["", "udp", "utp,", "utp@9-3", "0*utp", "utpx0", "utp@1+1", "libtorrentx2", "utp:", "tcp@-3"]
)
def test_what_is_no_flow_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        read_flows(text)


def test_the_congestion_control_follows_from_the_kind() -> None:
    kinds = ["utp", "utp:ledbat++", "tcp", "tcp:reno", "bbr"]
    assert [Flow(kind).congestion for kind in kinds] == ["", "ledbat++", "cubic", "reno", "bbr"]
    assert [Flow(kind).transport for kind in kinds] == ["utp", "utp", "tcp", "tcp", "tcp"]


def test_a_flow_of_ours_is_told_its_congestion_control_and_its_tree() -> None:
    assert program_of(Flow("utp:ledbat++")).environment == {
        "PYTHONPATH": str(ROOT),
        "UTPSOCKET_CONGESTION": "ledbat++",
    }
    assert program_of(Flow("utp", tree="/elsewhere")).environment == {"PYTHONPATH": "/elsewhere"}
    assert program_of(Flow("tcp")).environment == {}


def test_the_link_is_read_for_both_ways_or_each() -> None:
    assert link.read_both("rate")("20M") == ({"rate_bps": 20_000_000}, {"rate_bps": 20_000_000})
    assert link.read_both("delay")("25ms/1s") == ({"delay_us": 25_000}, {"delay_us": 1_000_000})
    assert link.read_both("queue")("500ms/64Ki") == ({"queue_us": 500_000, "queue_bytes": 0}, {"queue_bytes": 65_536})
    assert link.read_both("loss")("1%/0.5") == ({"loss": 0.01}, {"loss": 0.5})


@pytest.mark.parametrize(
    ("name", "text"), [("loss", "2"), ("loss", "x"), ("queue", "12"), ("queue", "x"), ("delay", "5"), ("rate", "x")]
)
def test_what_the_link_cannot_be_like_is_refused(name: str, text: str) -> None:
    if (name, text) == ("queue", "12"):
        assert link.read_queue(text) == {"queue_bytes": 12}
        return
    with pytest.raises(argparse.ArgumentTypeError):
        link.read_both(name)(text)


def test_changes_are_read() -> None:
    assert link.read_change("30:delay=80ms") == Change(30.0, "", {"delay_us": 80_000})
    assert link.read_change("1.5:<loss=1%") == Change(1.5, "<", {"loss": 0.01})
    for text in ("delay=80ms", "30:colour=red", "30:delay=red", "30"):
        with pytest.raises(argparse.ArgumentTypeError):
            link.read_change(text)


def test_a_queue_is_a_time_at_its_rate_unless_it_is_bytes() -> None:
    assert Way(8_000_000, 1, 500_000).order(1) == "1 8000000 1 500000.0 0.0 0\n"
    assert Way(8_000_000, 1, 500_000, 1234).order(0) == "0 8000000 1 1234 0.0 0\n"


def test_rates_and_delays_are_those_of_the_span_asked_about() -> None:
    measured = two_flows()
    assert measured.goodput(0, 0, 5) == pytest.approx(8e6)
    assert measured.goodput(0, 4, 6) == pytest.approx(6e6)
    assert measured.waits(0, 5) == Delay(1_000, 2_000, 3_000, 3_000)
    assert measured.waits(0, 10, flow=1).mean_us == 9_000
    assert measured.drops(0, 10) == (1, 1)
    assert measured.drops(0, 10, flow=0) == (0, 1)
    assert measured.ping(0, 10) == Delay(50_000, 60_000, 70_000, 70_000, lost=1)
    assert measured.reaches(1, 3.9e6, 5) == pytest.approx(1.0, abs=0.06)
    assert measured.reaches(1, 5e6, 5) is None
    assert measured.reaches(1, 3.9e6, 0, 4) is None
    assert measured.time_for(1, 500_000) == pytest.approx(1.0, abs=0.01)
    assert measured.source(0, 5)["cwnd_bytes"] == 7
    assert measured.source(0, 3) == {}


def test_jain_is_one_for_equals_and_a_part_for_one_that_has_all() -> None:
    assert jain([5, 5, 5]) == pytest.approx(1)
    assert jain([5, 0, 0]) == pytest.approx(1 / 3)
    assert jain([]) == 0


def test_the_json_has_the_keys_that_are_documented() -> None:
    shown = report.as_json(two_flows())
    assert shown["flows"][0] == {
        "kind": "utp",
        "name": "utp",
        "goodput_bits_per_second": 6_000_000,
        "alone_bits_per_second": 8_000_000,
        "mean_queueing_delay_us": 2_000,
        "p95_queueing_delay_us": 3_000,
        "losses": 1,
    }
    assert shown["flows"][1]["alone_bits_per_second"] is None
    assert shown["jain"] == 1.0
    assert shown["utilisation"] == pytest.approx(4_584 * 8 / 80e6, abs=1e-4)
    assert shown["doubtful"] == ""
    json.dumps(shown)


def test_a_run_in_which_packets_were_late_is_doubtful() -> None:
    assert "over 5 ms late" in two_flows(late_over_5ms=0.02).doubt
    assert "on average" in two_flows(late_mean_us=2_000.0).doubt
    assert "refused 3 packets" in two_flows(device_drops=3.0).doubt
    assert "DOUBTFUL" in report.as_text(two_flows(device_drops=3.0))


def test_a_run_is_drawn() -> None:
    trace = drawing.trace_of(two_flows(), 0, "a")
    # 1,500 bytes in half a second; what was lost at 6.6 s; the window that was printed at 4 s.
    assert dict(trace.rate)[1.25] == 24_000
    assert dict(trace.losses)[6.75] == 1
    assert list(trace.cwnd) == [(4.0, 7.0)]
    assert drawing.trace_of(two_flows(), 1, "b").rate[0][0] == 5.25
    text = drawing.draw(two_flows(), title="the run")
    assert "8 Mbit/s, 25 ms each way, a queue of 500 ms" in text
    names = [element.text for element in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text")]
    assert {"the run", "utpsocket", "TCP, cubic", "the link's queue", "Packets lost"} <= {*names}


def test_flows_of_a_plot_are_told_apart() -> None:
    flows = read_flows("utp,utp@3,utp:ledbat++x8,tcp:bbr<,libutp")
    assert drawing.label_all(flows) == [
        "utpsocket (1)",
        "utpsocket (2)",
        "utpsocket, ledbat++, 8 connections",
        "TCP, bbr, the other way",
        "libutp",
    ]


def test_a_figure_meets_its_goal_as_it_is_shown() -> None:
    def status(value: float | None, at_least: float | None, at_most: float | None) -> str:
        return cases.Figure("a", value, "ms", at_least, at_most, 1).status

    assert [status(*one) for one in ((0.96, 1, None), (0.94, 1, None), (None, 1, None))] == ["met", "missed", "missed"]
    assert [status(*one) for one in ((1.04, None, 1), (1.06, None, 1), (0, None, 0))] == ["met", "missed", "met"]
    assert [status(*one) for one in ((49, 50, 51), (50, 50, 51), (52, 50, 51))] == ["missed", "met", "missed"]
    assert [status(7, None, None), status(None, None, None)] == ["", ""]
    assert cases.Figure("a", 1, "ms", 50, 51).goal == "50 to 51"


def test_every_case_can_be_judged() -> None:
    for case in cases.EVERY.values():
        flows = case.flows("utp")
        assert all(flow.until(case.seconds) <= case.seconds for flow in flows)
        empty = Measured(
            case.seconds,
            (case.forward, case.back or case.forward),
            flows,
            [[] for _ in flows],
            [[] for _ in flows],
            [[] for _ in flows],
            ([], []),
            [],
            {**LATE, "device_drops": 0.0},
        )
        figures = [figure.as_json() for figure in case.figures(empty)]
        assert any(figure["goal"] for figure in figures), case.name
        json.dumps(figures)


def row(subject: str, value: float | None, **changes: Any) -> rounds.Row:
    figure = cases.Figure("utilisation", value, "%", 99)
    return {
        "name": "alone",
        "subject": subject,
        "commit": "abc1234" if subject == "utp" else "",
        "status": figure.status,
        "figures": [figure.as_json() | {"shown": figure.shown}],
        "doubtful": "",
        "emulator": {"late_over_5ms": 0.001},
        "machine": {"cpus": 2, "cpu": "a CPU", "kernel": "6", "python": "3.11", "load": 1.5, "date": "2026-11-29"},
        **changes,
    }


def test_the_table_has_a_column_for_each_subject_and_the_median_of_several_runs() -> None:
    failed = row("libutp", None, figures=[], status="failed", cause="it broke")
    rows = [
        row("utp", 100),
        row("utp", 90),
        row("utp", 98.5),
        row("libutp", None),
        row("tcp", 99, doubtful="late"),
        failed,
    ]
    table = rounds.as_table(rows)
    assert "| utilisation | ≥ 99 | 98.5 % (90.0 to 100.0) ✗ | never ✗ | 99.0 % ✓ ? |" in table
    assert "utp at abc1234" in table
    assert "* libutp: it broke" in table.replace("alone, ", "")
    assert "0.10 % in the worst run" in table
    assert ": utp at abc1234 and def5678 (alone)." in rounds.as_table(
        [row("utp", 100), row("utp", 99, commit="def5678")]
    )


def test_rows_that_were_written_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / name for name in ("one", "two")]
    files[0].write_text(json.dumps(row("utp", 100)) + "\n", "utf-8")
    files[1].write_text(json.dumps(row("libutp", 90)) + "\n", "utf-8")
    table = tmp_path / "table"
    arguments = ["--from", *map(str, files), "--table", str(table), "--json"]
    assert command.main(arguments) == 1  # libutp has missed it
    assert [found["subject"] for found in json.loads(capsys.readouterr().out)["cases"]] == ["utp", "libutp"]
    assert "| utp | libutp |" in table.read_text("utf-8")
    assert command.main(["--from", str(files[0])]) == 0
    assert "utilisation: 100.0 % (goal ≥ 99: met)" in capsys.readouterr().out


def test_a_run_in_doubt_that_misses_a_goal_is_repeated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    results = [row("utp", 90, doubtful="late"), row("utp", 91, doubtful="late"), row("utp", 92)]
    monkeypatch.setattr(rounds, "run_case", lambda *_: results.pop(0))
    found = list(rounds.run_rows([cases.CASES["alone"]], ["utp"], 2, "", lambda text: None))
    assert [one["figures"][0]["value"] for one in found] == [91, 92]


def test_what_cannot_be_run_is_said_and_what_fails_is_a_row() -> None:
    notes: list[str] = []
    assert list(rounds.run_rows([cases.CASES["eight-of-one"]], ["libtorrent"], 1, "", notes.append)) == []
    assert "one connection for each process" in notes[0]


def test_wrong_usage_ends_with_2() -> None:
    for arguments in (
        ["--case", "no-such-case"],
        ["--quick", "--flows", "utp"],
        ["--quick", "--plot", "out.svg"],
        ["--cases", "--subjects", "udp"],
        ["--cases", "--subjects", "utp@3"],
        [],
        ["--flows", "udp"],
        ["--flows", "utp", "--rate", "x"],
        ["--flows", "utp", "--seconds", "0"],
    ):
        with pytest.raises(SystemExit) as ended:
            command.main(arguments)
        assert ended.value.code == 2


def test_where_there_can_be_no_lab_the_reason_is_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert command.main(["--flows", "utp", "--json"]) == 0
    shown = capsys.readouterr()
    assert "needs root" in json.loads(shown.out)["skipped"]
    assert "needs root" in shown.err


# What follows needs a lab.


@pytest.fixture(scope="module")
def has_lab() -> None:
    reason = reason_to_skip()
    if reason:
        pytest.skip(reason)


@pytest.mark.usefixtures("has_lab")
def test_five_seconds_of_tcp_and_utp_on_a_real_link(tmp_path: Path) -> None:
    arguments = ["--flows", "utp@0-2.5,tcp@2.5", "--seconds", "5", "--rate", "10M", "--queue", "200ms", "--json"]
    arguments += ["--plot", str(tmp_path / "out.svg")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.linklab", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert [flow["kind"] for flow in shown["flows"]] == ["utp", "tcp"]
    # No more than the link's rate; how much of it depends on the machine too.
    assert all(0 < flow["goodput_bits_per_second"] < 10_000_000 for flow in shown["flows"])
    assert 0 < shown["utilisation"] <= 1.01
    assert shown["ping_us"]["min_us"] >= 50_000
    ElementTree.parse(tmp_path / "out.svg")


@pytest.mark.usefixtures("has_lab")
def test_loss_and_a_change_are_carried_out() -> None:
    lossy = Way(rate_bps=5_000_000, delay_us=5_000, loss=0.5)
    with Lab(lossy, Way(delay_us=5_000), seed=1) as lab:
        measured = lab.run([], seconds=5, changes=[Change(2, ">", {"loss": 0.0, "delay_us": 45_000})])
    first, second = measured.ping(0, 1.9), measured.ping(3, 4)
    assert first.lost > 0
    assert second.lost == 0
    assert first.min_us >= 10_000
    assert second.min_us >= 50_000
    assert measured.drops(0, 4)[1] == measured.ping(0, 3).lost


@pytest.mark.usefixtures("has_lab")
def test_a_program_that_fails_is_named_and_nothing_of_the_lab_stays(tmp_path: Path) -> None:
    (tmp_path / "utpsocket").mkdir()
    (tmp_path / "utpsocket" / "__init__.py").write_text("raise ImportError('not today')", "utf-8")
    with pytest.raises(LabFailed, match="not today"), Lab(Way(), Way()) as lab:
        lab.run([Flow("utp", tree=str(tmp_path))], seconds=1)
    assert not lab.folder.exists()
    assert not remaining_processes()


@pytest.mark.usefixtures("has_lab")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_behind_after_a_signal(number: signal.Signals) -> None:
    mark = uuid.uuid4().hex
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.linklab", "--flows", "utp,tcp", "--seconds", "60"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        env={**os.environ, MARK_VARIABLE: mark},
        text=True,
    )
    assert program.stderr is not None
    assert "it runs" in program.stderr.readline()
    running = remaining_processes(mark) - {program.pid}
    assert len(running) >= 6  # the link, two flows with two sides each, the echoes
    words = [word for pid in running for word in Path(f"/proc/{pid}/cmdline").read_text("utf-8").split("\0")]
    (folder,) = {Path(word).parent for word in words if word.startswith("/") and word.endswith("/log")}
    program.send_signal(number)
    program.communicate(timeout=60)
    assert program.returncode == (-number if number == signal.SIGKILL else 128 + number)
    if number == signal.SIGKILL:
        # The kernel ends them, and has not done so by the time that their parent has been waited for.
        for pid in running:
            _wait_for_end(pid)
        shutil.rmtree(folder)  # which nobody else does then
    assert not folder.exists()
    assert not remaining_processes(mark)


def _wait_for_end(pid: int) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], 30)[0], f"{pid} still runs"
    finally:
        os.close(fd)

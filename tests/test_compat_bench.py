"""The form of what `compat bench` prints, its arithmetic and its rounds. Never how fast anything is."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import utpsocket
from compat.bench import cases, chart, command, costs, goals, imports, meter, rounds, subjects, table
from compat.bench.busy import busy_processes
from compat.bench.sample import Row, Sample, ratio
from compat.bench.stream_side import jain
from compat.peers import provision
from compat.peers.children import ChildFailed, Failed
from utpsocket import startup
from utpsocket.engine import engine

ROOT = Path(__file__).resolve().parent.parent
ROW_KEYS = ["case", "subject", "median", "min", "max", "unit", "ratio_to_tcp", "cpu_seconds_per_gb"]
ROW_KEYS += ["cpu_ratio_to_tcp", "rounds", "causes"]


def row(case: str, subject: str, *values: float, cpu: float | None = None, **more: float) -> Row:
    return Row(case, subject, "MB/s", [Sample(value, cpu, more) for value in values])


def test_the_quick_run(tmp_path: Path) -> None:
    """The command as a user gives it, every process of it included."""
    options = [
        "--quick",
        "--rounds",
        "2",
        "--seconds",
        "0.1",
        "--json",
        "--goals",
        "--table",
        str(tmp_path / "table.md"),
    ]
    ran = subprocess.run(
        [sys.executable, "-m", "compat", "bench", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert list(result) == ["machine", "build", "rows"]
    assert result["build"] in ("pure", "compiled")
    assert {"cpus", "kernel", "python", "commit"} <= result["machine"].keys()
    measured = [(found["case"], found["subject"]) for found in result["rows"]]
    assert measured == [(case, subject) for case in cases.QUICK for subject in rounds.QUICK_SUBJECTS]
    for found in result["rows"]:
        assert list(found)[: len(ROW_KEYS)] == ROW_KEYS
        assert found["rounds"] == 2
        assert found["causes"] == []
        assert 0 < found["min"] <= found["median"] <= found["max"]
        assert found["ratio_to_tcp"] > 0
        assert (found["cpu_seconds_per_gb"] is not None) == (found["case"] == "bulk")
        assert (found["cpu_ratio_to_tcp"] is not None) == (found["case"] == "bulk")
    written = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert written.count("| utpsocket |") == len(cases.QUICK)
    assert "| bulk vs kernel TCP | ≥ 0.4 |" in ran.stderr
    assert "round 2 of 2" in ran.stderr


@pytest.mark.parametrize(
    ("case", "subject"),
    [
        ("bulk_both", "utpsocket"),
        ("parallel_10", "utpsocket"),
        ("parallel_10", "tcp"),
        ("no_offload", "utpsocket"),
        ("hog", "tcp"),
    ],
)
def test_one_sample_of_a_transfer(case: str, subject: str) -> None:
    sample = cases.BY_NAME[case].take(subject, 0.1)
    assert sample.value > 0
    assert (sample.cpu_seconds_per_gb is None) == (case == "hog")
    assert ("jain" in sample.more) == case.startswith("parallel")
    assert ("timeouts" in sample.more) == (subject == "utpsocket" and case != "bulk_both")


@pytest.mark.parametrize("subject", ["utpsocket", "tcp"])
@pytest.mark.parametrize(("connections", "answer"), [(1, 100), (3, 20_000)])
def test_requests_over_open_connections(subject: str, connections: int, answer: int) -> None:
    sample = cases.keepalive(subject, 0.1, parallel=connections, answer=answer)
    assert sample.value > 0 and sample.more["cpu_us"] > 0
    assert 0 < sample.more["p50_us"] <= sample.more["p99_us"]
    told = table.markdown([Row("keepalive_1", subject, "requests/s", [sample])], table.machine(), 1)
    assert f"CPU {table._number(sample.more['cpu_us'])} µs each" in told


@pytest.mark.parametrize("subject", cases.OURS)
@pytest.mark.parametrize("case", ["import", "patched_child"])
def test_an_import_costs_what_it_takes_beyond_an_interpreter_without(
    monkeypatch: pytest.MonkeyPatch, case: str, subject: str
) -> None:
    """The first of each kind compiles and does not count; of the others the median does."""
    taken_ms = {"import asyncio": [90.0, 60.0, 50.0, 10.0], "": [80.0, 20.0, 30.0, 40.0]}
    taken_ms["import utpsocket"] = taken_ms["import asyncio"]
    patched, plain = iter(taken_ms["import asyncio"]), iter(taken_ms[""])

    def cpu_ms(of: str, program: str, variables: dict[str, str], bytecode_folder: str) -> float:
        assert of == subject and Path(bytecode_folder).is_dir()
        if program == "import socket":
            return next(patched if variables else plain)
        return taken_ms[program].pop(0)

    monkeypatch.setattr(imports, "INTERPRETERS", 3)
    monkeypatch.setattr(imports, "_cpu_ms", cpu_ms)
    assert cases.BY_NAME[case].take(subject, 1).value == 50 - 30


def test_an_interpreter_measures_itself(tmp_path: Path) -> None:
    folder = str(tmp_path)
    is_patched = "import socket, sys; assert 'utpsocket' in sys.modules"
    assert imports._cpu_ms("utpsocket", is_patched, startup.environment({}), folder) > 0
    assert imports._cpu_ms(subjects.PURE, "import utpsocket", {}, folder) > 0
    with pytest.raises(Failed, match="AssertionError"):
        imports._cpu_ms("utpsocket", is_patched, {}, folder)


def test_an_earlier_tree_is_measured_by_this_trees_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(subjects, "_trees", {})
    (tmp_path / "utpsocket").symlink_to(ROOT / "utpsocket")
    subjects.measure_against(tmp_path)
    assert cases.transfer(subjects.EARLIER, 0.1).value > 0
    assert cases.keepalive(subjects.EARLIER, 0.1, parallel=2, answer=100).value > 0
    (tmp_path / "utpsocket").unlink()
    (tmp_path / "utpsocket").mkdir()
    (tmp_path / "utpsocket" / "__init__.py").write_text("raise ImportError('of the earlier tree')", encoding="utf-8")
    with pytest.raises(ChildFailed, match="of the earlier tree"):
        cases.transfer(subjects.EARLIER, 0.1)
    with pytest.raises(Failed, match="of the earlier tree"):
        imports.import_cost(subjects.EARLIER, 1)


@pytest.mark.parametrize("arguments", [["--against", "/"], ["--subjects", "utpsocket-earlier"]])
def test_an_earlier_tree_has_to_be_there(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        command.main(arguments)
    assert exit_.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_each_subject_runs_the_build_that_it_names() -> None:
    assert subjects.variables(subjects.PURE) == {"UTPSOCKET_ENGINE": "thread", "UTPSOCKET_PURE": "1"}
    assert subjects.variables(subjects.UTPSOCKET) == {"UTPSOCKET_ENGINE": "thread"}
    assert cases.BY_NAME["bulk"].take(subjects.PURE, 0.1).value > 0


def test_by_itself_no_subject_is_measured_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "build", lambda: "pure")
    assert not {subjects.PURE, subjects.EARLIER} & set(command._usual_subjects(None))
    assert subjects.EARLIER in command._usual_subjects(Path("/"))
    monkeypatch.setattr(table, "build", lambda: "compiled")
    assert subjects.PURE in command._usual_subjects(None)


def test_nothing_but_what_the_goals_compare(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = taking(monkeypatch, {("setup", "utpsocket"): 2.0, ("setup", "tcp"): 4.0, ("bulk_both", "tcp"): 1.0})
    monkeypatch.setattr(table, "build", lambda: "pure")
    assert command.main(["setup", "bulk_both", "--goals-only", "--rounds", "1"]) == 0
    assert asked == [("setup", "utpsocket"), ("setup", "tcp")]
    assert "| connect + echo + close vs TCP | ≥ 0.3 | 0.5 | met |" in capsys.readouterr().out


def test_busy_processes_are_gone_when_the_sample_is_taken() -> None:
    with busy_processes(2) as pids:
        assert len(pids) == 2
        assert [Path(f"/proc/{pid}/cmdline").read_bytes().count(b"while True") for pid in pids] == [1, 1]
        assert cases.transfer("tcp", 0.1).value > 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert cases.transfer("utpsocket", 0.1, busy=1).value > 0


@pytest.mark.parametrize(
    ("case", "sides"), [("message_cost", ("dialer", "listener")), ("run_cost", ("sender", "receiver"))]
)
def test_costs_are_measured_by_part(case: str, sides: tuple[str, str]) -> None:
    ours, tcps = (cases.BY_NAME[case].take(subject, 0.1) for subject in ("utpsocket", "tcp"))
    for side in sides:
        figures = {name.removeprefix(f"{side}_"): value for name, value in ours.more.items() if name.startswith(side)}
        parts = {"receive_us", "send_us", "bookkeeping_us"} | ({"pair_read_us"} if side != "receiver" else {"check_us"})
        assert parts | {"work_us", "wait_us", "caller_us", "iterations", "python_calls", "c_calls"} <= figures.keys()
        assert min(figures[name] for name in ("work_us", "wait_us", "caller_us", "python_calls")) > 0
        assert sum(figures[name] for name in figures if name in costs.PART_NAMES) == pytest.approx(figures["work_us"])
        assert tcps.more[f"{side}_caller_us"] > 0
    told = table.markdown([Row(case, "utpsocket", "µs", [ours]), Row(case, "tcp", "µs", [tcps])], table.machine(), 1)
    assert told.count("bookkeeping") == (4 if case == "run_cost" else 2)  # the prototype's as well


@pytest.mark.parametrize("subject", ["utpsocket", "tcp"])
@pytest.mark.parametrize("case", ["paused_alone", "paused_beside_bulk", "paused_against_bulk"])
def test_messages_with_pauses_are_timed_alone_and_beside_bulk(case: str, subject: str) -> None:
    sample = cases.BY_NAME[case].take(subject, 0.1)
    assert 0 < sample.value <= sample.more["p99_ms"]
    assert ("bulk_mb_per_second" in sample.more) == (case != "paused_alone")
    told = table.markdown([Row(case, subject, "ms", [sample])], table.machine(), 1)
    assert "p99" in told
    assert ("MB/s" in told) == (case != "paused_alone")


def test_a_meter_leaves_nothing_behind() -> None:
    """What it put in place of the library's functions is taken out again, and the engine goes its usual way."""
    with utpsocket.create_server(("127.0.0.1", 0)) as listener:
        with utpsocket.create_connection(listener.getsockname()) as client, listener.accept()[0] as server:
            for kind in meter.KINDS:
                before = [getattr(owner, name) for owner, name, _ in engine().call(lambda loop: [*meter._places(loop)])]
                measured = meter.Meter(kind)
                measured.attach()
                client.sendall(b"?")
                assert server.recv(1) == b"?"
                figures = measured.detach()
                assert figures["work_us"] > 0 and figures["iterations"] > 0
                assert [
                    getattr(owner, name) for owner, name, _ in engine().call(lambda loop: [*meter._places(loop)])
                ] == before
                assert engine().call(lambda loop: loop.iteration) == engine().call(lambda loop: loop._iterate)


@pytest.mark.parametrize(("subject", "fds"), [("utpsocket", (2.0, 3.0)), ("tcp", (1.0, 1.0))])
def test_idle_connections_are_counted_in_both_processes(subject: str, fds: tuple[float, float]) -> None:
    sample = cases.idle(subject, 0.1, connections=20)
    assert sample.more["connections"] == 20
    assert (sample.more["fds_listener"], sample.more["fds_dialer"]) <= fds


def test_a_side_that_fails_is_a_cause_and_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(subjects.MODULES, "tcp", "no_such_module")
    broken = row("bulk", "tcp")
    rounds.run([broken], count=1, seconds=0.1)
    assert broken.samples == []
    assert "no_such_module" in broken.causes[0]


def taking(monkeypatch: pytest.MonkeyPatch, values: dict[tuple[str, str], float | str]) -> list[tuple[str, str]]:
    """Cases that take nothing but these values, and fail for a text; the order in which they were asked."""
    asked: list[tuple[str, str]] = []

    def take(name: str) -> Any:
        def answer(subject: str, seconds: float) -> Sample:
            asked.append((name, subject))
            value = values[name, subject]
            if isinstance(value, str):
                raise ChildFailed(value)
            return Sample(value)

        return answer

    for name in {name for name, _ in values}:
        case = cases.BY_NAME[name]
        monkeypatch.setitem(cases.BY_NAME, name, dataclasses.replace(case, take=take(name)))
    monkeypatch.setattr(subjects, "prepare", lambda subject: None)
    return asked


def test_every_other_round_is_reversed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = taking(monkeypatch, {("bulk", "utpsocket"): 2.0, ("bulk", "tcp"): 4.0})
    rows = rounds.planned(["bulk"], ["utpsocket", "tcp"])
    rounds.run(rows, count=3, seconds=1)
    assert [subject for _, subject in asked] == ["utpsocket", "tcp", "tcp", "utpsocket", "utpsocket", "tcp"]
    assert [len(found.samples) for found in rows] == [3, 3]


def test_a_long_case_has_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = taking(monkeypatch, {("idle", "tcp"): 2.0, ("bulk", "tcp"): 4.0})
    monkeypatch.setitem(cases.BY_NAME, "idle", dataclasses.replace(cases.BY_NAME["idle"], most_rounds=1))
    rounds.run(rounds.planned(["idle", "bulk"], ["tcp"]), count=3, seconds=1)
    assert [name for name, _ in asked] == ["bulk", "idle", "bulk", "bulk"]


def test_what_ours_is_compared_with_is_measured_too() -> None:
    planned = [(found.case, found.subject) for found in rounds.planned(["stock_buffer"], ["utpsocket", "tcp"])]
    assert planned == [("bulk", "utpsocket"), ("stock_buffer", "utpsocket")]
    planned = [(found.case, found.subject) for found in rounds.planned(["to_libutp"], ["utpsocket"])]
    assert planned == [("to_libutp", "utpsocket"), ("to_libutp", "utp-native")]
    assert [found.subject for found in rounds.planned(["bulk"], ["tcp"])] == ["tcp"]


def test_a_failed_measurement_is_status_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    taking(monkeypatch, {("bulk", "utpsocket"): 2.0, ("bulk", "tcp"): "it fell over"})
    assert command.main(["bulk", "--subjects", "utpsocket", "tcp", "--rounds", "1", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(found["median"], found["causes"]) for found in rows] == [(2.0, []), (None, ["it fell over"])]


def test_a_peer_that_cannot_be_set_up_reports_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(subject: str) -> None:
        if subject == "aioquic":
            raise provision.Unavailable("no network")

    taking(monkeypatch, {("bulk", "utpsocket"): 2.0, ("bulk", "aioquic"): 1.0})
    monkeypatch.setattr(subjects, "prepare", unavailable)
    rows = rounds.planned(["bulk"], ["utpsocket", "aioquic"])
    rounds.prepare(rows)
    rounds.run(rows, count=1, seconds=1)
    assert [(found.median, found.causes) for found in rows] == [(2.0, []), (None, ["cannot be set up: no network"])]


@pytest.mark.parametrize("arguments", [["flying"], ["bulk", "--subjects", "pigeon"]])
def test_an_unknown_name_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == 2
    assert "to_libutp" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--seconds", "-1"], ["--rounds", "x"]])
def test_wrong_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        command.main(arguments)
    assert exit_.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_the_list_names_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == list(cases.BY_NAME)


def test_ratios_are_of_medians() -> None:
    rows = [row("bulk", "utpsocket", 1, 2, 9), row("bulk", "tcp", 3, 4, 5), row("setup", "tcp", 1)]
    assert table.tcps(rows[0], rows) is rows[1]
    assert table.tcps(row("idle", "utpsocket", 1), rows) is None
    assert ratio(rows[0], None) is None
    assert ratio(row("bulk", "tcp"), rows[0]) is None
    assert rows[0].json(rows[1])["ratio_to_tcp"] == 0.5
    assert rows[0].json(None)["ratio_to_tcp"] is None


def test_the_ratio_of_the_cpu_time_is_of_medians_per_gb() -> None:
    ours, tcps = row("bulk", "utpsocket", 1, cpu=3.0), row("bulk", "tcp", 1, cpu=1.5)
    assert ours.json(tcps)["cpu_ratio_to_tcp"] == 2.0
    assert ours.json(row("bulk", "tcp", 1))["cpu_ratio_to_tcp"] is None
    assert row("hog", "utpsocket", 1).json(tcps)["cpu_ratio_to_tcp"] is None


def test_further_figures_are_medians_but_timeouts_add_up() -> None:
    found = Row(
        "bulk", "utpsocket", "MB/s", [Sample(1, 2.0, {"jain": 0.5, "timeouts": 1}), Sample(1, 4.0, {"timeouts": 2})]
    )
    assert (found.more("jain"), found.more("timeouts"), found.more("p50_us")) == (0.5, 3, None)
    assert found.cpu_seconds_per_gb == 3.0


@pytest.mark.parametrize(("shares", "index"), [([5, 5, 5], 1.0), ([1, 0, 0, 0], 0.25), ([0, 0], 0.0)])
def test_jain(shares: list[int], index: float) -> None:
    assert jain(shares) == pytest.approx(index)


def goal_lines(rows: list[Row], build: str) -> dict[str, str]:
    lines = {line.split("|")[1].strip(): line for line in goals.table(rows, build).splitlines()}
    assert len(lines) == len(goals.ALL) + 2
    return lines


def test_goals_are_met_missed_or_not_measured() -> None:
    rows = [
        row("bulk", "utpsocket", 41, cpu=1.7),
        row("bulk", "tcp", 100, cpu=0.5),
        row("bulk", "aioquic", 1),
        row("bulk", "utp-native", 4),
        row("stock_buffer", "utpsocket", 40, timeouts=1),
        row("parallel_1", "utpsocket", 50),
        row("parallel_1000", "utpsocket", 40, jain=0.95),
        row("no_offload", "utpsocket", 7),
        row("bulk_busy", "utpsocket", 8.2),
        row("bulk_busy", "tcp", 16),
        row("keepalive_20_20k", "utpsocket", 3),
        row("keepalive_20_20k", "tcp", 10),
        row("import", "utpsocket", 3),
        row("import", "tcp", 6),
        row("hog", "utpsocket", 1),
        row("hog", "utpsocket-process", 10),
        row("hog", "tcp", 5),
    ]
    lines = goal_lines(rows, "pure")
    assert "| ≥ 0.4 | 0.41 | met |" in lines["bulk vs kernel TCP"]
    assert "| ≤ 3 | 3.4 | **not met** |" in lines["bulk, CPU per GB vs TCP"]
    assert "| 41 | met |" in lines["bulk vs aioquic"]
    assert "not measured" in lines["bulk vs libtorrent"]
    assert "| 0.976 | met |" in lines["stock UDP buffer vs 4 MB"]
    assert "| 1 | **not met** |" in lines["stock UDP buffer, timeouts"]
    assert "| 1.75 | **not met** |" in lines["bulk without GSO/GRO vs utp-native"]
    assert "| 1.25 | met |" in lines["what a busy machine leaves of bulk vs what it leaves of TCP"]
    assert "| 0.8 | met |" in lines["1,000 connections together vs one"]
    assert "| 0.95 | met |" in lines["1,000 connections, Jain index"]
    assert "| 0.3 | **not met** |" in lines["keep-alive requests over 20, answers of 20 kB, vs TCP"]
    assert "| 0.5 | met |" in lines["import utpsocket vs import asyncio"]
    assert "| 2 | met |" in lines["CPU hog in the sender's process vs TCP with one, the engine in a process of its own"]


def test_each_build_has_its_own_goals_and_the_pure_one_stands_beside_the_compiled_one() -> None:
    cost, earlier = "CPU µs of both engines for a run of 41 packets", "bulk vs the earlier tree, pure"
    ours = [row("run_cost", "utpsocket", 60), row("bulk", "utpsocket", 26)]
    others = [row("bulk", "tcp", 50), row("bulk", "utpsocket-earlier", 13)]
    pures = [row("run_cost", "utpsocket-pure", 90), row("bulk", "utpsocket-pure", 14)]
    lines = goal_lines(ours + others + pures, "compiled")
    assert lines[f"{cost}, compiled"].endswith("| ≤ 50 | 60 | **not met** |  |")
    assert lines[f"{cost}, pure"].endswith("| ≤ 100 | 90 | met |  |")
    assert lines["bulk vs kernel TCP"].endswith("| ≥ 0.4 | 0.52 | met | 0.28 |")
    assert lines[earlier].endswith("| ≥ 1.3 | 1.08 | **not met** |  |")
    lines = goal_lines(ours + others, "pure")
    assert lines[f"{cost}, compiled"].endswith("| not measured |  |  |")
    assert lines[f"{cost}, pure"].endswith("| ≤ 100 | 60 | met |  |")
    assert lines["bulk vs kernel TCP"].endswith("| ≥ 0.4 | 0.52 | met |  |")
    assert lines[earlier].endswith("| ≥ 1.3 | 2 | met |  |")


def test_the_table_shows_what_failed() -> None:
    rows = [row("bulk", "utpsocket", 1, 3, cpu=1.5, timeouts=2), row("bulk", "tcp", 4), row("bulk", "aioquic")]
    rows[2].causes.append("cannot be set up: no network")
    machine = {"cpu": "abacus", "cpus": 2, "kernel": "6", "python": "3.11", "commit": "abc"}
    lines = table.markdown(rows, machine, 2).splitlines()
    assert lines[2].endswith("| utpsocket | 2 MB/s | 1–3 | 0.5 | 1.50 | 4 timeouts |")
    assert lines[3].endswith("| tcp | 4 MB/s | 4–4 |  |  |  |")
    assert lines[4].endswith("| aioquic | – | | | | cannot be set up: no network |")
    assert lines[-1] == "Medians of 2 alternating rounds at commit abc; abacus, 2 CPUs, Linux 6, CPython 3.11."


MACHINE = {"cpu": "abacus", "cpus": 2}
BENCH = ROOT / "compat" / "bench"
RESULT = json.loads((BENCH / "results.json").read_text("utf-8"))


def drawn(*rows: Row) -> str:
    return chart.draw({"machine": MACHINE, "rows": [found.json(None) for found in rows]})


def test_a_chart_of_nothing_is_refused() -> None:
    with pytest.raises(chart.ChartFailed, match="measured"):
        drawn(row("idle", "tcp", 1))


def test_every_panel_has_the_same_subjects_ours_first() -> None:
    svg = drawn(row("bulk", "utpsocket", 600), row("bulk", "libtorrent", 200), row("setup", "tcp", 5))
    found = [element.text for element in ElementTree.fromstring(svg).iter() if element.get("class", "")[:4] == "name"]
    assert found == [*chart.SUBJECTS.values()] * 2
    assert found[0] == "utpsocket"
    assert svg.count("higher is better") == 2
    assert svg.count("not measured") == 7


def test_others_are_not_dwarfed_by_tcp() -> None:
    """A TCP bar that is much longer than theirs is cut, and has its figure all the same."""
    others = [row("bulk", "utpsocket", 600), row("bulk", "utp-native", 150)]
    svg = drawn(*others, row("bulk", "tcp", 60_000))
    lengths = [float(found) for found in re.findall(r'<rect class="bar[^"]*"[^>]* width="([\d.]+)"', svg)]
    assert lengths[0] == pytest.approx(4 * lengths[1], rel=0.01)
    assert lengths[0] > 0.7 * lengths[2]
    assert 'class="cut"' in svg
    assert ">60,000</text>" in svg
    assert 'class="cut"' not in drawn(*others, row("bulk", "tcp", 700))
    assert 'class="cut"' not in drawn(others[0], row("bulk", "tcp", 60_000))


def test_the_chart_can_be_read_in_light_and_dark() -> None:
    light, _, dark = drawn(row("bulk", "utpsocket", 600)).partition("@media (prefers-color-scheme: dark) {")
    colours = [dict(re.findall(r"^(\.?[a-z.]+) \{.*?(#[0-9a-f]{6})", text, re.MULTILINE)) for text in (light, dark)]
    assert colours[0].keys() == colours[1].keys() >= {"text", ".faint", ".page", ".bar", ".bar.ours", ".range", ".cut"}
    for scheme in colours:
        assert contrast(scheme["text"], scheme[".page"]) > 7  # WCAG 2.1, 1.4.6
        assert contrast(scheme[".faint"], scheme[".page"]) > 4.5  # 1.4.3
        assert min(contrast(scheme[name], scheme[".page"]) for name in (".bar", ".bar.ours")) > 3  # 1.4.11
        assert scheme[".cut"] == scheme[".page"]


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2.1."""
    lights = sorted(map(luminance, (one, other)))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def luminance(colour: str) -> float:
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_chart_is_that_of_its_data(tmp_path: Path) -> None:
    assert command.main(["--from", str(BENCH / "results.json"), "--chart", str(tmp_path / "chart.svg")]) == 0
    assert (tmp_path / "chart.svg").read_text("utf-8") == (BENCH / "chart.svg").read_text("utf-8")


def test_the_table_beside_it_is_that_of_its_data() -> None:
    text = (BENCH / "RESULTS.md").read_text("utf-8")
    lines = [[cell.strip() for cell in line.split("|")[2:5]] for line in text.splitlines() if line.count("|") == 8]
    rows_shown = [cells for cells in lines if cells[0] in subjects.SUBJECTS]
    assert rows_shown == [
        [each["subject"], f"{table._number(each['median'])} {each['unit']}", "–".join(map(table._number, span(each)))]
        for each in RESULT["rows"]
    ]


def span(found: dict[str, Any]) -> tuple[float, float]:
    return found["min"], found["max"]


# A row of README's table and docs/performance.md's, as far as a case has it.
TOLD = {
    "bulk, one connection, MB/s": "bulk",
    "bulk to a libutp receiver, MB/s": "to_libutp",
    "bulk without GSO and GRO, MB/s": "no_offload",
    "bulk on 1,000 connections, MB/s": "parallel_1000",
    "1-byte round trips per second": "pingpong_1",
    "connect, echo, close per second": "setup",
    "bulk beside a busy Python thread, MB/s": "hog",
}


@pytest.mark.parametrize(("document", "count"), [("README.md", 6), ("utpsocket/docs/performance.md", 7)])
def test_the_figures_in_the_documents_are_those_of_the_data(document: str, count: int) -> None:
    medians = {(each["case"], each["subject"]): f"{each['median']:,.0f}" for each in RESULT["rows"]}
    rows_shown = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / document).read_text("utf-8").splitlines()
        if line.startswith("| ") and line.split("|")[1].strip() in TOLD
    ]
    assert len(rows_shown) == count
    for name, *cells in rows_shown:
        wanted = [
            medians.get((TOLD[name], who), "") for who in ("utpsocket", "tcp", "utp-native", "libtorrent", "aioquic")
        ]
        assert cells == wanted, name


def test_from_without_a_chart_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        command.main(["--from", "results.json"])
    assert exit_.value.code == 2
    assert "--chart" in capsys.readouterr().err


def test_every_goal_and_reference_is_a_row_that_exists() -> None:
    measurable = {(case.name, subject) for case in cases.ALL for subject in case.subjects}
    assert {case.reference for case in cases.ALL if case.reference} <= measurable
    for build, earlier in (("compiled", True), ("compiled", False), ("pure", True), ("pure", False)):
        asked = goals.keys(build, is_beside_earlier=earlier)
        compared = asked & measurable
        assert {subject for _, subject in asked - measurable} <= {subjects.PURE}
        assert {"tcp", "utp-native", "libtorrent"} < {subject for _, subject in compared}
        assert (subjects.EARLIER in {subject for _, subject in compared}) == earlier
        assert (subjects.PURE in {subject for _, subject in compared}) == (build == "compiled")
        rows = [
            row(case, subject, 1, cpu=1, jain=1, timeouts=0, fds_listener=2, fds_dialer=2) for case, subject in compared
        ]
        not_measured = [line for line in goals.table(rows, build).splitlines() if "not measured" in line]
        assert all(("earlier tree" in line and not earlier) or "compiled" in line for line in not_measured)
        assert not (build == "compiled" and earlier and not_measured)
        planned = rounds.planned(list(cases.BY_NAME), subjects.SUBJECTS, asked)
        assert {(found.case, found.subject) for found in planned} == compared

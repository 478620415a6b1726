"""The runner of the interpreter's own tests, tried on small modules of ours: both sides go over TCP here."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from compat import __main__ as compat
from compat.stdlib import baseline, modules, report
from compat.stdlib.command import main
from compat.stdlib.expectations import Expectation, explains
from compat.stdlib.supervisor import ModuleRun, Outcome, Task, run_module
from compat.stdlib.verdict import Verdict, judge

TROUBLED = """
import os, socket, threading, unittest

class Troubled(unittest.TestCase):
    def test_a_makes_two_sockets(self):
        with socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.bind(("127.0.0.1", 0))
        socket.socket(socket.AF_UNIX).close()
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()

    def test_b_fails_in_a_subtest(self):
        with self.subTest("one"):
            self.assertEqual(1, 2)

    def test_c_hangs(self):
        threading.Event().wait()

    def test_d_comes_after(self):
        self.skipTest("no reason")

    def test_e_crashes(self):
        os._exit(3)

    @unittest.expectedFailure
    def test_f_fails_as_it_should(self):
        self.assertEqual(1, 2)

    def test_g_runs_last(self):
        pass

class BrokenFixture(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        raise OSError("no fixture")

    def test_never_runs(self):
        pass
"""
PASSES = Outcome("pass", 0.1, 2, 0, tcp_calls=2)
FAILS = Outcome("fail", 0.1, 2, 0, "AssertionError")
VERSION = (3, 11, 7)


def test_hung_and_crashed_tests_are_recorded_and_the_rest_still_runs() -> None:
    run = run_module(task("test_troubled", TROUBLED, limit_s=1.0))
    statuses = {identity.rpartition(".")[2]: record.status for identity, record in run.tests.items()}
    assert statuses == {
        "BrokenFixture)": "error",
        "test_a_makes_two_sockets": "pass",
        "test_b_fails_in_a_subtest": "fail",
        "test_c_hangs": "hang",
        "test_d_comes_after": "skip",
        "test_e_crashes": "crash",
        "test_f_fails_as_it_should": "pass",
        "test_g_runs_last": "pass",
    }
    records = {identity.rpartition(".")[2]: record for identity, record in run.tests.items()}
    first = records["test_a_makes_two_sockets"]
    assert (first.tcp_sockets, first.tcp_calls) == (2, 1)
    assert "test_c_hangs" in records["test_c_hangs"].why
    assert "exit status 3" in records["test_e_crashes"].why
    assert run.troubles == []
    assert run.leftovers["udp_ports"] == 0


def test_a_test_that_occurs_twice_keeps_both_results() -> None:
    twice = """
import unittest
class T(unittest.TestCase):
    def test_it(self): pass
def load_tests(loader, tests, pattern):
    return unittest.TestSuite([T("test_it"), T("test_it")])
"""
    assert list(run_module(task("test_twice", twice)).tests) == ["test_twice.T.test_it", "test_twice.T.test_it#2"]


def test_a_module_that_does_not_load_is_a_trouble() -> None:
    run = run_module(task("test_broken", "raise OSError('cannot be loaded')"))
    assert run.tests == {}
    assert "cannot be loaded" in run.troubles[0]


def test_a_module_that_skips_itself_says_why() -> None:
    run = run_module(task("test_elsewhere", "import unittest; raise unittest.SkipTest('only elsewhere')"))
    assert (run.tests, run.skipped, run.troubles) == ({}, "only elsewhere", [])


def test_only_matching_tests_run() -> None:
    run = run_module(task("test_troubled", TROUBLED, match=("*test_g*",)))
    assert list(run.tests) == ["test_troubled.Troubled.test_g_runs_last"]


def test_what_passes_over_tcp_is_the_same_or_expected_or_unexpected() -> None:
    tcp = ModuleRun(
        "test_ftplib", {f"test_ftplib.TestFTPClass.test_{name}": PASSES for name in ("abort", "acct", "dir")}
    )
    first = replace(tcp, tests=tcp.tests | {"test_ftplib.TestFTPClass.test_abort": FAILS})
    second = replace(first, tests=first.tests | {"test_ftplib.TestFTPClass.test_dir": FAILS})
    verdict = judge(tcp, [first, second], VERSION, stand_in=True)
    assert (verdict.over_tcp, verdict.same, verdict.relevant, verdict.relevant_same) == (3, 1, 3, 1)
    assert list(verdict.expected) == ["test_ftplib.TestFTPClass.test_abort"]
    assert list(verdict.unexpected) == ["test_ftplib.TestFTPClass.test_dir"]
    assert verdict.unexpected["test_ftplib.TestFTPClass.test_dir"].startswith("pass/fail")
    assert not verdict.good


def test_a_listed_test_that_passes_is_stale() -> None:
    tcp = ModuleRun("test_ftplib", {"test_ftplib.TestFTPClass.test_abort": PASSES})
    verdict = judge(tcp, [tcp], VERSION, stand_in=True)
    assert verdict.stale == ["test_ftplib.TestFTPClass.test_abort"]
    assert not verdict.good


@pytest.mark.parametrize(
    ("tcp_status", "found", "good"),
    [
        ("fail", "fail", True),  # not our fault
        ("fail", "pass", True),
        ("skip", "skip", True),
        ("skip", "error", False),
        ("pass", "skip", False),  # a skip would hide what passes over TCP
        ("pass", "hang", False),
        ("pass", None, False),  # not run at all
    ],
)
def test_statuses_that_differ(tcp_status: str, found: str | None, good: bool) -> None:
    tcp = ModuleRun("test_x", {"test_x.T.test": replace(PASSES, status=tcp_status)})
    utp = ModuleRun("test_x", {"test_x.T.test": replace(PASSES, status=found)} if found else {})
    assert judge(tcp, [utp], VERSION, stand_in=True).good == good


def test_a_failing_fixture_not_seen_over_tcp_is_unexpected() -> None:
    tcp = ModuleRun("test_x", {"test_x.T.test": PASSES})
    utp = ModuleRun("test_x", {"test_x.T.test": PASSES, "setUpClass (test_x.T)": FAILS})
    assert list(judge(tcp, [utp], VERSION, stand_in=True).unexpected) == ["setUpClass (test_x.T)"]


def test_a_pass_over_tcp_by_accident_is_a_trouble() -> None:
    tcp = ModuleRun("test_x", {"test_x.T.test": PASSES})
    connects_to_nobody = replace(tcp, tests={"test_x.T.test": replace(PASSES, tcp_calls=0)})
    assert len(judge(tcp, [tcp], VERSION, stand_in=False).troubles) == 1
    assert judge(tcp, [replace(tcp, utp_connections=2)], VERSION, stand_in=False).good
    assert judge(tcp, [connects_to_nobody], VERSION, stand_in=False).good


def test_a_baseline_in_trouble_is_a_trouble() -> None:
    tcp = ModuleRun("test_x", {"test_x.T.test": PASSES}, troubles=["crash"])
    assert judge(tcp, [replace(tcp, troubles=[])], VERSION, stand_in=True).troubles == ["over TCP: crash"]


def test_what_is_left_over_beyond_tcp_is_reported() -> None:
    left = {"fds": {"file": 3, "socket": 1}, "threads": 1, "udp_ports": 0}
    more = {"fds": {"file": 9, "socket": 3, "[eventfd]": 1}, "threads": 2, "udp_ports": 2}
    tcp = ModuleRun("test_x", {"test_x.T.test": PASSES}, leftovers=left)
    assert judge(tcp, [tcp], VERSION, stand_in=True).good
    assert judge(tcp, [replace(tcp, leftovers=more)], VERSION, stand_in=True).leftovers == [
        "3 socket left over, 1 over TCP",
        "1 [eventfd] left over, 0 over TCP",
        "2 threads left over, 1 over TCP",
        "2 UDP ports left over, 0 over TCP",
    ]


@pytest.mark.parametrize(("seconds", "slow"), [(0.3, False), (1.0, False), (1.2, True)])
def test_slow_is_three_times_tcp_and_a_second_more(seconds: float, slow: bool) -> None:
    tcp = ModuleRun("test_x", {"test_x.T.test": PASSES})
    utp = ModuleRun("test_x", {"test_x.T.test": replace(PASSES, seconds=seconds)})
    assert bool(judge(tcp, [utp], VERSION, stand_in=True).slow) == slow


def test_a_slow_test_is_explained_up_to_a_bound() -> None:
    assert explains("test_ssl.ThreadedTests.test_x", VERSION, 1.1)
    assert not explains("test_ssl.ThreadedTests.test_x", VERSION, 2.1)
    assert not explains("test_x.T.test_x", VERSION, 1.1)


def test_an_expectation_holds_for_its_versions() -> None:
    entry = Expectation("test_x.*.test_y", "because", since=(3, 12), before=(3, 14))
    assert [entry.covers("test_x.T.test_y#2", (3, minor)) for minor in (11, 12, 13, 14)] == [False, True, True, False]
    assert not entry.covers("test_x.T.test_z", (3, 12))


def test_modules_are_chosen_by_name_glob_or_package() -> None:
    available = ["test_socket", "test_ssl", "test_asyncio.test_events", "test_asyncio.test_ssl", "test_urllib"]
    assert modules.select(("test.test_ssl",), available) == ["test_ssl"]
    assert modules.select(("asyncio.test_ssl", "test_s*"), available) == [
        "test_asyncio.test_ssl",
        "test_socket",
        "test_ssl",
    ]
    assert modules.select(("test_asyncio",), available) == ["test_asyncio.test_events", "test_asyncio.test_ssl"]
    assert modules.select(("test_nntplib",), available) == []


def test_a_kept_baseline_comes_back_equal(tmp_path: Path) -> None:
    run = ModuleRun("test_x", {"test_x.T.test": PASSES}, seconds=1.5, leftovers={"threads": 1})
    assert baseline.load(tmp_path / "cache", "test_x") is None
    baseline.keep(tmp_path / "cache", run)
    assert baseline.load(tmp_path / "cache", "test_x") == run


def test_the_table_replaces_what_is_between_the_markers(tmp_path: Path) -> None:
    manual = tmp_path / "README.md"
    verdict = Verdict("test_x", over_tcp=3, same=2, relevant=2, relevant_same=1, expected={"test_x.T.test": "because"})
    table = report.as_markdown("3.11.7 (main)", [verdict])
    manual.write_text("before\n")
    report.write_table(manual, "3.11.7 (main)", table)
    report.write_table(manual, "3.13.0 (main)", "other\n")
    assert table in manual.read_text()
    report.write_table(manual, "3.11.7 (main)", "new\n")
    assert manual.read_text() == (
        "before\n"
        "<!-- compat stdlib 3.11: begin -->\nnew\n<!-- compat stdlib 3.11: end -->\n"
        "<!-- compat stdlib 3.13: begin -->\nother\n<!-- compat stdlib 3.13: end -->\n"
    )
    assert "| test_x | 3 | 2 | 2 | 1 | 1 |" in table
    assert "* because: `test_x.T.test`" in table


def test_the_command_prints_one_json_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMPAT_STDLIB_STAND_IN", "tcp")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    status = main(["test_epoll", "--match", "*test_create", "--match", "*test_unregister_closed", "--json"])
    printed = capfd.readouterr()
    if status == 2:
        pytest.skip(printed.err)
    answer = json.loads(printed.out)
    assert status == 0
    assert answer["python"] == sys.version.split()[0]
    (module,) = answer["modules"]
    assert (module["name"], module["tests"], module["over_tcp"], module["same"], module["unexpected"]) == (
        "test_epoll",
        2,
        2,
        2,
        0,
    )
    assert (answer["unexpected"], answer["stale"]) == ([], [])


def test_an_unknown_module_and_a_command_that_is_not_there_are_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["test_of_another_age"]) == 2
    monkeypatch.setitem(compat.COMMANDS, "nothing_of_this_name", "")
    assert compat.main(["nothing_of_this_name"]) == 2
    assert "not there yet" in capfd.readouterr().err


def task(module: str, source: str, *, match: tuple[str, ...] = (), limit_s: float = 20.0) -> Task:
    return Task(sys.executable, module, "tcp", match, lambda _: limit_s, source)

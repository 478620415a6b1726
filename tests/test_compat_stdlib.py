"""The runner of the interpreter's own tests, tried on small modules of ours: both sides go over TCP here."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from compat import __main__ as compat
from compat.stdlib import baseline, modules, report, table
from compat.stdlib.command import main
from compat.stdlib.expectations import EXPECTED, Expectation, expectation, explanation
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
    limits_s = defaultdict(lambda: 60.0, {"test_troubled.Troubled.test_c_hangs": 1.0})
    run = run_module(replace(task("test_troubled", TROUBLED), limit_s=limits_s.__getitem__))
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
    ("status", "why", "good"),
    [
        ("fail", "Traceback: in connect", True),
        ("fail", "Traceback: in accept", False),
        ("skip", "in connect", False),
        (None, "", False),  # not run at all
    ],
)
def test_a_failure_of_another_cause_is_unexpected(status: str | None, why: str, good: bool) -> None:
    entry = Expectation("test_x.T.*", "its neighbour's failure, told late", sometimes=True, cause="in connect")
    tcp = ModuleRun("test_x", {"test_x.T.test": PASSES})
    utp = ModuleRun("test_x", {"test_x.T.test": replace(FAILS, status=status, why=why)} if status else {})
    assert judge(tcp, [utp, tcp], VERSION, stand_in=True, expected=(entry,)).good == good


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


def test_what_the_engine_still_holds_is_reported() -> None:
    """Unless as many sockets stay open over TCP as well."""
    tcp = ModuleRun("test_x", {"test_x.T.test": PASSES}, leftovers={"fds": {}, "threads": 1, "udp_ports": 0})
    held = tcp.leftovers | {"utp": {"connections": 2, "ports": 1}}
    assert judge(tcp, [replace(tcp, leftovers=held)], VERSION, stand_in=True).leftovers == [
        "2 uTP connections left over, 0 over TCP",
        "1 uTP ports left over, 0 over TCP",
    ]
    open_too = replace(tcp, leftovers=tcp.leftovers | {"fds": {"socket": 2}})
    assert judge(open_too, [replace(tcp, leftovers=held)], VERSION, stand_in=True).good


LEAKING = """
import os, socket, unittest

class T(unittest.TestCase):
    def test_leaks(self):
        global kept
        listener = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(listener.getsockname())
        kept = listener, client, listener.accept()[0], os.dup(client.fileno())

    def test_does_not(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            with socket.create_connection(listener.getsockname()), listener.accept()[0]:
                pass
"""


@pytest.mark.parametrize(("name", "leaks"), [("leaks", True), ("does_not", False)])
def test_sockets_left_open_over_utp_are_seen(name: str, leaks: bool) -> None:
    run = run_module(task("test_leaking", LEAKING, match=(f"*test_{name}",), transport="utp"))
    assert [record.status for record in run.tests.values()] == ["pass"]
    assert run.utp_connections == 2
    tcp = replace(run, leftovers={"fds": {}, "threads": 1, "udp_ports": 0})
    found = judge(tcp, [run], VERSION, stand_in=False).leftovers
    held = ["2 uTP connections left over, 0 over TCP", "2 uTP ports left over, 0 over TCP"]
    assert found == (["4 socket left over, 0 over TCP", *held] if leaks else [])


@pytest.mark.parametrize(("seconds", "slow"), [(0.3, False), (0.5, False), (0.6, True)])
def test_slow_is_three_times_tcp_and_half_a_second(seconds: float, slow: bool) -> None:
    tcp = ModuleRun("test_x", {"test_x.T.test": PASSES})
    utp = ModuleRun("test_x", {"test_x.T.test": replace(PASSES, seconds=seconds)})
    verdict = judge(tcp, [utp], VERSION, stand_in=True)
    assert verdict.slow_without_reason == (["test_x.T.test"] if slow else [])
    assert list(verdict.slow.values()) == (["0.10 s over TCP, 0.60 s over uTP: no reason is stated"] if slow else [])
    assert verdict.good


def test_a_slow_test_is_explained_up_to_a_bound() -> None:
    reason = explanation("test_ssl.ThreadedTests.test_x", VERSION, 1.1)
    assert reason is not None and "stop flag" in reason
    assert explanation("test_ssl.ThreadedTests.test_x", VERSION, 2.1) is None
    assert explanation("test_x.T.test_x", VERSION, 1.1) is None
    tcp = ModuleRun("test_ssl", {"test_ssl.ThreadedTests.test_x": PASSES})
    utp = ModuleRun("test_ssl", {"test_ssl.ThreadedTests.test_x": replace(PASSES, seconds=1.2)})
    verdict = judge(tcp, [utp], VERSION, stand_in=True)
    assert verdict.slow == {"test_ssl.ThreadedTests.test_x": f"0.10 s over TCP, 1.20 s over uTP: {reason}"}
    assert verdict.slow_without_reason == []


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


def found(*verdicts: Verdict) -> table.Table:
    return table.seen(report.as_json("3.11.7 (main)", list(verdicts)))


DIFFERS = Verdict(
    "test_x", over_tcp=3, same=2, relevant=2, relevant_same=1, expected={"test_x.T.test": "because"}, runs=3
)
SAME = Verdict("test_y", over_tcp=5, same=5, slow={"test_y.T.test": "1 s: so what"}, runs=1)


def test_the_table_stands_between_its_interpreters_markers(tmp_path: Path) -> None:
    manual = tmp_path / "RESULTS.md"
    manual.write_text("before\n", encoding="utf-8")
    for feature in ("3.11", "3.13", "3.11"):
        table.write(manual, feature, found(DIFFERS, SAME))
    text = manual.read_text(encoding="utf-8")
    assert text.startswith("before\n\n<!-- compat stdlib 3.11: begin -->\n")
    assert text.count("compat stdlib 3.11: begin") == text.count("compat stdlib 3.13: end") == 1
    assert "| `test_x` | 3 | 2 | 2 | 1 | 1 | 3 |" in text
    assert "| **sum** | 8 | 7 | 2 | 1 | 1 | |" in text
    assert "* `test_x.T.test`: because" in text


def test_a_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = found(DIFFERS, SAME)
    table.write(tmp_path / "RESULTS.md", "3.11", written)
    assert table.read(tmp_path / "RESULTS.md", "3.11") == written
    assert table.read(tmp_path / "RESULTS.md", "3.12") is None
    assert table.read(tmp_path / "none.md", "3.11") is None


def test_a_run_replaces_the_rows_of_its_modules_only() -> None:
    again = replace(DIFFERS, same=3, relevant_same=2, expected={})
    updated = found(DIFFERS, SAME).updated(found(again))
    assert updated.rows == found(again, SAME).rows
    assert updated.expected == {}
    assert updated.slow == {"test_y.T.test": "1 s: so what"}


def test_the_table_must_know_what_was_seen() -> None:
    written = found(DIFFERS)
    assert table.disagreements(written, found(DIFFERS)) == []
    assert table.disagreements(written, found(replace(DIFFERS, over_tcp=2, expected={}))) == []  # a race, another patch
    assert table.disagreements(written, found(SAME)) == ["test_y is not in the table"]
    other = replace(DIFFERS, expected={"test_x.T.other": "because"})
    assert table.disagreements(written, found(other)) == ["test_x.T.other differs, which the table does not say"]
    assert table.disagreements(written, found(other), {"test_x.T.other"}) == []


def test_the_table_in_the_tree_lists_what_is_expected() -> None:
    """Each difference that the tables list is one of expectations.py, and every such entry is listed somewhere."""
    results = Path(modules.__file__).with_name("RESULTS.md")
    listed: set[str] = set()
    for minor in range(10, 20):
        written = table.read(results, f"3.{minor}") or table.Table()
        assert [test for test in written.expected if expectation(test, (3, minor)) is None] == []
        listed |= set(written.expected)
    steady = [entry for entry in EXPECTED if not entry.sometimes]
    assert steady
    assert [entry.tests for entry in steady if not any(fnmatchcase(test, entry.tests) for test in listed)] == []


def test_the_command_prints_one_json_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMPAT_STDLIB_STAND_IN", "tcp")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    status = main(["test_epoll", "--match", "*test_create", "--match", "*test_unregister_closed", "--json"])
    printed = capfd.readouterr()
    if status == 2:
        pytest.skip(f"needs the interpreter's own tests: {printed.err}")
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


def task(module: str, source: str, *, match: tuple[str, ...] = (), transport: str = "tcp") -> Task:
    return Task(sys.executable, module, transport, match, lambda _: 60.0, source)

"""What differed once is run again alone: fakes that differ so many times, and one module of the command's."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from compat.stdlib import alone, command
from compat.stdlib.command import main
from compat.stdlib.supervisor import ModuleRun, Outcome
from compat.stdlib.verdict import Verdict, judge

VERSION = (3, 11, 7)
PASSES = Outcome("pass", 0.1, 2, 0, tcp_calls=2)
FAILS = Outcome("fail", 0.1, 2, 0, "AssertionError")
SKIPS = Outcome("skip", 0.1, 0, 0, "not here")
HANGS = Outcome("hang", 30.0, 0, 0, "where it stands")
LEFT = {"fds": {"socket": 1}, "threads": 1, "udp_ports": 0}
CLEAN = {"fds": {"socket": 0}, "threads": 1, "udp_ports": 0}
DIFFERS_ONCE = """
import os, unittest
from pathlib import Path

class It(unittest.TestCase):
    def test_same(self):
        pass

    def test_differs(self):
        runs = Path({runs!r})
        number = len(runs.read_text()) if runs.exists() else 0
        runs.write_text("x" * (number + 1))
        self.assertNotIn(number, {fails_in})
"""


def run_of(outcome: Outcome | None, *, leftovers: dict[str, object] = CLEAN) -> ModuleRun:
    tests = {"m.T.test_other": PASSES} | ({} if outcome is None else {"m.T.test_it": outcome})
    return ModuleRun("m", tests, leftovers=dict(leftovers), utp_connections=1)


class Fake:
    """A module whose one test has these outcomes alone, one after the other."""

    def __init__(self, tcp: list[Outcome | None], utp: list[Outcome | None]) -> None:
        self.left = {"tcp": tcp, "utp": utp}
        self.ran: Counter[str] = Counter()
        self.asked: set[tuple[str, ...]] = set()

    def run(self, transport: str, match: tuple[str, ...]) -> ModuleRun:
        outcome = self.left[transport][self.ran[transport]]
        self.ran[transport] += 1
        self.asked.add(match)
        return run_of(outcome)

    def settle(self, tcp: ModuleRun, utp: ModuleRun) -> tuple[Verdict, dict[str, str]]:
        return alone.settle(alone.Subject("m", self.run, judged), tcp, [utp])


def judged(tcp: ModuleRun, utp: list[ModuleRun]) -> Verdict:
    return judge(tcp, utp, VERSION, stand_in=True, expected=())


@pytest.mark.parametrize(
    ("tcp", "utp", "is_same"),
    [
        ([PASSES] * 5, [PASSES] * 5, True),
        ([PASSES] * 5, [*[PASSES] * 4, FAILS], False),
        ([PASSES, FAILS, *[PASSES] * 3], [*[PASSES] * 4, HANGS], True),
        ([PASSES, FAILS, *[PASSES] * 3], [HANGS, *[PASSES] * 3, FAILS], False),
        ([FAILS] * 5, [HANGS] * 5, True),
        ([PASSES] * 5, [SKIPS] * 5, False),
        ([PASSES] * 5, [None] * 5, False),
    ],
)
def test_a_test_is_the_same_that_is_as_often_as_over_tcp(
    tcp: list[Outcome | None], utp: list[Outcome | None], is_same: bool
) -> None:
    fake = Fake(tcp, utp)
    verdict, only_under_load = fake.settle(run_of(PASSES), run_of(FAILS))
    assert verdict.good is is_same
    assert list(verdict.unexpected) == ([] if is_same else ["m.T.test_it"])
    assert list(only_under_load) == (["m.T.test_it"] if is_same else [])
    assert fake.asked == {("m.T.test_it",)}
    if is_same:
        assert fake.ran == {"tcp": 5, "utp": 5}
        assert only_under_load["m.T.test_it"].startswith("fail, over TCP pass")


def test_what_clearly_differs_is_not_run_on() -> None:
    fake = Fake([PASSES] * 5, [HANGS] * 5)
    verdict, _ = fake.settle(run_of(PASSES), run_of(HANGS))
    assert fake.ran == {"tcp": 2, "utp": 2}
    assert verdict.unexpected["m.T.test_it"].startswith("hang, over TCP pass")


def test_what_did_not_differ_is_not_run_again() -> None:
    fake = Fake([], [])
    verdict, only_under_load = fake.settle(run_of(PASSES), run_of(PASSES))
    assert (verdict.good, only_under_load, fake.ran) == (True, {}, {})


def test_nor_is_what_differs_everywhere() -> None:
    tests = {f"m.T.test_{number}": PASSES for number in range(alone.AT_MOST + 1)}
    fake = Fake([], [])
    verdict, _ = fake.settle(ModuleRun("m", tests), ModuleRun("m", dict.fromkeys(tests, FAILS)))
    assert len(verdict.unexpected) == alone.AT_MOST + 1
    assert not fake.ran


def test_a_test_skipped_over_tcp_may_skip_or_pass() -> None:
    verdict, only_under_load = Fake([SKIPS] * 5, [PASSES, *[SKIPS] * 4]).settle(run_of(SKIPS), run_of(FAILS))
    assert verdict.good
    assert list(only_under_load) == ["m.T.test_it"]


def test_a_fixture_is_run_again_with_the_tests_it_is_for() -> None:
    broken = ModuleRun("m", {"setUpClass (m.T)": FAILS})
    fake = Fake([PASSES] * 10, [PASSES] * 10)
    verdict, only_under_load = alone.settle(
        alone.Subject("m", fake.run, judged), ModuleRun("m", {"m.T.test_it": PASSES}), [broken]
    )
    assert verdict.good
    assert set(only_under_load) == {"setUpClass (m.T)", "m.T.test_it"}
    assert fake.asked == {("m.T.*",), ("m.T.test_it",)}


@pytest.mark.parametrize("leaves", [False, True])
def test_a_module_that_left_something_behind_is_run_again_as_a_whole(leaves: bool) -> None:
    ran: Counter[str] = Counter()

    def run(transport: str, match: tuple[str, ...]) -> ModuleRun:
        assert match == ("m.*",)
        ran[transport] += 1
        return run_of(PASSES, leftovers=LEFT if leaves and ran["utp"] == 3 else CLEAN)

    left = run_of(PASSES, leftovers=LEFT)
    verdict, only_under_load = alone.settle(alone.Subject("m", run, judged), run_of(PASSES), [left], ("m.*",))
    assert ran == {"tcp": 3, "utp": 3}
    assert verdict.good is not leaves
    assert verdict.leftovers == (["1 socket left over, 0 over TCP"] if leaves else [])
    assert only_under_load == ({} if leaves else {"m": "1 socket left over, 0 over TCP"})


def test_a_suite_may_be_too_long_to_be_run_again() -> None:
    fake = Fake([], [])
    subject = alone.Subject("m", fake.run, judged, module_rounds=0)
    verdict, _ = alone.settle(subject, run_of(PASSES), [run_of(PASSES, leftovers=LEFT)])
    assert verdict.leftovers
    assert not fake.ran


@pytest.mark.parametrize(("fails_in", "status"), [({1}, 0), ({1, 7}, 1)])
def test_the_command_reports_what_was_only_under_load(
    fails_in: set[int],
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Over TCP both times: the second run is the one that stands for uTP."""
    source = DIFFERS_ONCE.format(runs=str(tmp_path / "runs"), fails_in=fails_in)
    interpreter = command.Interpreter(sys.executable, sys.version, VERSION, ["test_once"], {"test_once": source})
    monkeypatch.setattr(command, "_ask", lambda python: interpreter)
    monkeypatch.setenv("COMPAT_STDLIB_STAND_IN", "tcp")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["test_once", "--json", "--match", "test_once.*"]) == status
    printed = capfd.readouterr()
    answer = json.loads(printed.out)
    differs = "test_once.It.test_differs"
    assert answer["unexpected"] == ([differs] if status else [])
    assert list(answer["only_under_load"]) == ([] if status else [differs])
    assert (f"ONLY UNDER LOAD  {differs}: fail, over TCP pass" in printed.err) == (not status)
    assert f"alone: {differs}: {4 if status else 5} times of 5, over TCP 5" in printed.err

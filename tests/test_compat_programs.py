"""The runner of real programs, tried on scenarios of ours: no package is installed here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from compat import __main__ as compat
from compat.peers.provision import Unavailable
from compat.programs import command, provision
from compat.programs.provision import Environment
from compat.programs.runner import Row, run_scenario
from compat.programs.scenario import Scenario, every_scenario, scenarios_of
from tests.sockets.network import eventually

TROUBLED = {scenario.name: scenario for scenario in scenarios_of("tests.troubled_programs")}


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    made = Environment(tmp_path)
    made.python = sys.executable
    made.versions = dict  # type: ignore[method-assign]
    made.missing = {"no-such-package": "pip install no-such-package failed: no matching distribution"}
    return made


def test_a_scenario_passes_with_its_connections_counted(environment: Environment) -> None:
    row = run_scenario(TROUBLED["good"], environment)
    python = ".".join(map(str, sys.version_info[:3]))
    assert row == Row("good", f"Python {python}", "pass", 1, row.seconds, "")


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("wrong answer", "AssertionError: assert connection.recv(100) == wanted (troubled_programs.py:"),
        ("over TCP", "no uTP connection: client {'initiated': 0"),
        ("no connection", "no uTP connection"),
        ("too few", "1 uTP connections, 2 expected"),
        ("server dies", "server: ended (7) without 'port'"),
        ("hangs", "client: no 'report' in time"),
    ],
)
def test_a_failure_has_its_cause(environment: Environment, name: str, cause: str) -> None:
    row = run_scenario(TROUBLED[name], environment)
    assert row.status == "fail"
    assert cause in row.cause


def test_the_control_goes_over_tcp(environment: Environment) -> None:
    row = run_scenario(TROUBLED["good"], environment, control=True)
    assert (row.status, row.utp_connections) == ("pass", 0)


def test_what_a_server_forked_ends_with_it(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TROUBLED_PROGRAMS_PID", str(tmp_path / "pid"))
    assert run_scenario(TROUBLED["leaves a child"], environment).status == "pass"
    pid = int((tmp_path / "pid").read_text(encoding="utf-8"))
    # It is killed; a busy machine may take its time to let it end.
    assert eventually(lambda: state_of(pid) in ("gone", "Z", "X"), True)


def state_of(pid: int) -> str:
    """A process's, as /proc has it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2][0]
    except OSError:
        return "gone"


def test_what_cannot_be_installed_is_a_skip(environment: Environment) -> None:
    row = run_scenario(TROUBLED["cannot be had"], environment)
    assert row == Row("cannot be had", "", "skip", 0, 0.0, environment.missing["no-such-package"])


class TestProvision:
    def test_one_package_that_fails_costs_no_other(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("UTPSOCKET_COMPAT_CACHE", str(tmp_path))
        asked: list[tuple[list[str], bool]] = []

        def pip(self: Environment, packages: list[str], *, pinned: bool) -> None:
            asked.append((packages, pinned))
            if "bad" in packages:
                raise Unavailable("no bad today")

        monkeypatch.setattr(Environment, "_pip", pip)
        made = Environment(tmp_path)
        made.install({"one", "bad", "two"})
        together = ["bad", "one", "two"]
        assert asked == [(together, True), (together, False), (["bad"], False), (["one"], False), (["two"], False)]
        assert made.missing == {"bad": "no bad today"}
        del asked[:]
        Environment(tmp_path).install({"one", "two"})
        assert asked == []

    def test_names_of_packages_are_compared_as_pip_does(self) -> None:
        assert provision.normal("Zope.Interface") == provision.normal("zope_interface") == "zope-interface"

    def test_every_package_of_a_scenario_is_pinned(self) -> None:
        pinned = {
            provision.normal(line.partition("==")[0])
            for line in provision.PINS.read_text(encoding="utf-8").splitlines()
        }
        wanted = {provision.normal(package) for each in every_scenario().values() for package in each.packages}
        assert wanted - pinned == set()


class TestCommand:
    def test_the_table_is_imported_without_any_program(self) -> None:
        """With the interpreter alone, as it is where the command itself runs."""
        asked = subprocess.run(
            [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {os.getcwd()!r})\n" + LISTING],
            capture_output=True,
            text=True,
            timeout=150,
            check=True,
        )
        assert int(asked.stdout) >= 60

    def test_there_are_enough_and_half_of_them_are_quick(self) -> None:
        table = list(every_scenario().values())
        assert len(table) >= 60
        assert 0.3 <= sum(scenario.quick for scenario in table) / len(table) <= 0.6

    def test_json_and_table(
        self,
        environment: Environment,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
    ) -> None:
        chosen = {name: TROUBLED[name] for name in ("good", "cannot be had")}
        monkeypatch.setattr(command, "every_scenario", lambda: chosen)
        monkeypatch.setattr(provision, "environment", lambda: environment)
        monkeypatch.setattr(Environment, "install", lambda self, packages: None)
        table = tmp_path / "table.md"
        assert compat.main(["programs", "--json", "--table", str(table), "--jobs", "1"]) == 1
        printed = capsys.readouterr()
        rows = json.loads(printed.out)["programs"]
        assert [row["status"] for row in rows] == ["pass", "skip"]
        assert set(rows[0]) == {"name", "version", "status", "utp_connections", "seconds", "cause"}
        assert "1 passed, 0 failed, 1 skipped" in printed.err
        assert f"| cannot be had |  | skip | 0 | {rows[1]['cause']} |" in table.read_text(encoding="utf-8")
        assert compat.main(["programs", "good"]) == 0

    def test_list_and_wrong_names(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert compat.main(["programs", "--list", "--quick"]) == 0
        listed = capsys.readouterr().err
        assert "requests " in listed
        assert "scrapy" not in listed
        assert compat.main(["programs", "no-such-program"]) == 2

    def test_two_of_the_same_name_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        one = TROUBLED["good"]
        monkeypatch.setattr("compat.programs.scenario.scenarios_of", lambda module: [one, Scenario(**vars(one))])
        with pytest.raises(ValueError, match="two scenarios are called good"):
            every_scenario()


LISTING = """
from compat.programs.scenario import every_scenario
print(len(every_scenario()))
"""

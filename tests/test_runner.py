"""`python3 -m tests` itself: which environment it uses, and what it says when it cannot make one.

That it runs the tests needs no test: it is running this one.
"""

from __future__ import annotations

import ast
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests import __main__ as runner


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of next to nothing, which the runner takes for its own."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "nothing"\nversion = "1"\n', encoding="utf-8")
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "CACHE", tmp_path / ".cache" / "tests")
    return tmp_path


def test_another_pyproject_is_another_environment(checkout: Path) -> None:
    before = runner.environment_name()
    assert runner.environment_name() == before
    (checkout / "pyproject.toml").write_text('[project]\nname = "nothing"\nversion = "2"\n', encoding="utf-8")
    assert runner.environment_name() != before


def test_another_interpreter_of_the_version_keeps_its_environment(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.CACHE.mkdir(parents=True)
    distributions = runner.CACHE / runner.environment_name()
    distributions.mkdir()
    runner.lock_of(distributions).touch()
    monkeypatch.setattr(sys, "base_exec_prefix", "/opt/another")
    runner.remove_superseded(runner.CACHE / runner.environment_name())
    assert distributions.exists()


def test_an_earlier_environment_of_this_interpreter_is_removed(checkout: Path) -> None:
    runner.CACHE.mkdir(parents=True)
    earlier = runner.CACHE / runner.environment_name()
    earlier.mkdir()
    runner.lock_of(earlier).touch()
    (checkout / "pyproject.toml").write_text('[project]\nname = "nothing"\nversion = "2"\n', encoding="utf-8")
    runner.remove_superseded(runner.CACHE / runner.environment_name())
    assert not earlier.exists()


def script(path: Path, *lines: str) -> str:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]), encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_without_venv_it_says_how_to_get_it(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", script(checkout / "python3", "echo No module named ensurepip", "exit 1"))
    assert runner.main([]) == 2
    said = capsys.readouterr().err
    assert "No module named ensurepip" in said
    assert "apt-get install python3-venv" in said


def test_without_network_it_says_so_and_tries_again_next_time(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python3 -m venv DIRECTORY` makes an environment here whose pip reaches no server."""
    pip = script(checkout / "pip", "echo Could not find a version that satisfies the requirement hatchling", "exit 1")
    venv = script(checkout / "python3", 'mkdir -p "$3/bin"', f'cp {shlex.quote(pip)} "$3/bin/python"')
    monkeypatch.setattr(sys, "executable", venv)
    for _ in range(2):
        assert runner.main([]) == 2
        said = capsys.readouterr().err
        assert "making the test environment" in said
        assert "satisfies the requirement hatchling" in said
        assert "the first run needs the network" in said


def test_a_tool_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(["--tool"]) == 2
    assert "--tool ruff check" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_says_how_long_it_takes_and_what_it_needs(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main([option]) == 0
    said = capsys.readouterr().out
    assert "20 minutes" in said
    assert "package index" in said
    assert "--quick" in said


@pytest.mark.parametrize(
    ("given", "run"),
    [
        ([], ["-m", "pytest"]),
        (["--quick", "-x"], ["-m", "pytest", "-x", *runner.QUICK]),
        (["--tool", "ruff", "--quick"], ["-m", "ruff", "--quick"]),
    ],
)
def test_what_is_run(given: list[str], run: list[str], monkeypatch: pytest.MonkeyPatch, checkout: Path) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(runner, "hold", lambda environment: None)
    monkeypatch.setattr(runner, "become", commands.append)
    runner.main(given)
    assert [command[1:] for command in commands] == [run]


# -- an older Python ----------------------------------------------------------------------------------------------

OLDER = "import runpy, sys; sys.version_info = (3, 9, 18); sys.version = '3.9.18 (main)'; "
SENTENCE = "utpsocket needs Python 3.10 or later; this is 3.9.18"


@pytest.mark.parametrize(
    "path", ["tests/__init__.py", "tests/__main__.py", "compat/__main__.py", "utpsocket/__init__.py"]
)
def test_an_older_python_can_read_what_it_is_given_first(path: str) -> None:
    ast.parse((runner.ROOT / path).read_text(encoding="utf-8"), feature_version=(3, 7))


@pytest.mark.parametrize("module", ["tests", "tests.machines", "tests.chaos", "utpsocket", "compat"])
def test_an_older_python_gets_a_sentence(module: str) -> None:
    """What `python3 -m` does with the name of a package, on a Python that claims to be 3.9."""
    ran = subprocess.run(
        [sys.executable, "-c", f"{OLDER}runpy._run_module_as_main({module!r})"],
        cwd=runner.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode
    assert SENTENCE in ran.stderr
    assert "Traceback" not in ran.stderr


def test_importing_it_in_an_older_python_says_what_it_needs() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", f"{OLDER}import utpsocket"], cwd=runner.ROOT, capture_output=True, text=True, check=False
    )
    assert ran.stderr.splitlines()[-1] == f"ImportError: {SENTENCE}"


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ("sys.platform = 'darwin'", "utpsocket needs Linux so far: darwin has no abstract AF_UNIX names, "),
        ("sys.modules['_ctypes'] = None", "utpsocket needs ctypes: "),
    ],
)
def test_importing_it_where_something_is_missing_says_what(lacking: str, said: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys; {lacking}; import utpsocket"],
        cwd=runner.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stderr.splitlines()[-1].startswith(f"ImportError: {said}")

"""`python3 -m tests` itself: which environment it uses, and what it says when it cannot make one.

That it runs the tests needs no test: it is running this one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests import __main__ as runner


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of next to nothing, which the runner takes for its own."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "nothing"\nversion = "1"\n')
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "CACHE", tmp_path / ".cache" / "tests")
    return tmp_path


def test_another_pyproject_is_another_environment(checkout: Path) -> None:
    before = runner.environment_name()
    assert runner.environment_name() == before
    (checkout / "pyproject.toml").write_text('[project]\nname = "nothing"\nversion = "2"\n')
    assert runner.environment_name() != before


def script(path: Path, *lines: str) -> str:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
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
    """`python3 -m venv DIRECTORY` makes an environment here whose pip reaches nobody."""
    pip = script(checkout / "pip", "echo Could not find a version that satisfies the requirement hatchling", "exit 1")
    venv = script(checkout / "python3", 'mkdir -p "$3/bin"', f'cp {pip} "$3/bin/python"')
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

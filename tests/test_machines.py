"""tests/machines.py: what a machine lacks, which skips are accepted there, and that the parts of the suite exist."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests import __main__ as runner
from tests import machines

PROBE = """
import errno, socket
socket.socket(socket.AF_INET).close()
try:
    socket.socket(socket.AF_INET6)
except OSError as error:
    print(errno.errorcode[error.errno])
"""
OUTPUT = """
=========================== short test summary info ============================
SKIPPED [2] tests/sockets/test_options.py:323: no IPv6: the address ::1 is not there
SKIPPED [1] tests/test_run.py:176: no pip
SKIPPED [1] tests/test_run.py:9: the moon is full
12 passed, 4 skipped in 1.00s
"""


def without(what: str) -> machines.Machine:
    return machines.Machine("", [], lambda options, cleanup: machines.Surrounding(), what)


@pytest.mark.skipif(platform.machine() not in machines.SOCKET_CALL, reason="not in this architecture")
def test_a_kernel_without_ipv6() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROBE],
        preexec_fn=machines.refuse_ipv6_sockets,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "EAFNOSUPPORT\n"


def test_only_what_the_machine_lacks_excuses_a_skip() -> None:
    assert len(list(machines.unexpected_skips(OUTPUT, without(machines.NO_IPV6)))) == 1
    assert len(list(machines.unexpected_skips(OUTPUT, without(machines.NEEDS_FDS)))) == 2
    assert machines.last_line(OUTPUT) == "12 passed, 4 skipped in 1.00s"


def test_a_machine_that_cannot_be_had_is_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    assert machines.main(["no-ipv6"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split(maxsplit=2) == ["skipped", "no-ipv6", "needs root"]


def test_every_machine_is_listed_and_its_part_of_the_suite_exists(capsys: pytest.CaptureFixture[str]) -> None:
    assert machines.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(machines.MACHINES)
    parts = {path.partition("::")[0] for machine in machines.MACHINES.values() for path in machine.part}
    assert [path for path in [*parts, *runner.QUICK] if not (machines.ROOT / path).exists()] == []


def test_an_unknown_machine_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        machines.main(["abacus"])
    assert ended.value.code == 2
    assert "no such machine: abacus" in capsys.readouterr().err


def test_the_copy_has_what_is_new_and_no_caches(tmp_path: Path) -> None:
    machines.copy_of_tree(tmp_path / "copy")
    assert (tmp_path / "copy" / "tests" / "machines.py").exists()
    assert not (tmp_path / "copy" / ".cache").exists()


def test_the_seed_of_the_order_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.ExitStack() as cleanup:
        made = machines.random_order(argparse.Namespace(seed=77), cleanup)
    assert "--seed 77" in capsys.readouterr().out
    assert "--randomly-seed=77" in made.arguments

"""UTPSOCKET_PATCH=1 in an environment into which utpsocket was installed: no PYTHONPATH, no `run`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PTH = "utpsocket/startup/utpsocket.pth"
TRANSPORT = "import socket; from utpsocket import monkey; s = socket.socket(); print(monkey.transport(s)); s.close()"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter whose site-packages hold what the wheel puts there."""
    folder = tmp_path_factory.mktemp("installed") / "environment"
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for path in [ROOT / "utpsocket", *ROOT.glob("utpsocket__mypyc.*.so")]:  # the latter with the compiled build
        (packages / path.name).symlink_to(path)
    (packages / "utpsocket.pth").write_bytes((ROOT / PTH).read_bytes())
    return folder / "bin" / "python"


def output_of(python: Path, *command: str, **variables: str) -> str:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("UTPSOCKET_") and name not in ("PYTHONPATH", "PYTHONWARNINGS")
    }
    ran = subprocess.run(
        [str(python), "-W", "error", *command],
        env={**inherited, **variables},
        cwd=python.parent,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def test_the_wheel_has_the_file_beside_the_package() -> None:
    assert re.search(
        rf'force-include\]\n"{PTH}" = "utpsocket.pth"\n', (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    )


@pytest.mark.parametrize("flags", [[], ["-E"], ["-I"]])
def test_the_variable_alone_patches(python: Path, flags: list[str]) -> None:
    assert output_of(python, *flags, "-c", TRANSPORT, UTPSOCKET_PATCH="1") == "utp\n"
    assert output_of(python, *flags, "-c", TRANSPORT) == "tcp\n"


@pytest.mark.parametrize("value", ["", "0"])
def test_any_other_value_does_not(python: Path, value: str) -> None:
    assert output_of(python, "-c", TRANSPORT, UTPSOCKET_PATCH=value) == "tcp\n"


def test_rules_come_along(python: Path) -> None:
    program = """
import socket
from utpsocket import monkey
for host in "127.0.0.1", "127.0.0.2":
    with socket.create_server((host, 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        print(monkey.transport(client))
"""
    assert output_of(python, "-c", program, UTPSOCKET_PATCH="1", UTPSOCKET_EXCEPT="127.0.0.2") == "utp\ntcp\n"


def test_nothing_is_loaded_until_a_socket_is_needed(python: Path) -> None:
    """Neither ours nor of the standard library's: each child of a patched program pays for it. importlib is there in
    any interpreter, and its package has warnings.
    """
    program = "import sys; print(*sys.modules)"
    plain = set(output_of(python, "-c", program).split())
    for variables in ({}, {"PYTHONPATH": str(ROOT / "utpsocket" / "startup")}):
        loaded = set(output_of(python, "-c", program, UTPSOCKET_PATCH="1", **variables).split()) - plain
        assert {name for name in loaded if name.split(".")[0] != "importlib"} <= {
            *("__future__", "_warnings", "sitecustomize", "warnings"),
        }


def test_it_reaches_whatever_the_program_starts(python: Path, tmp_path: Path) -> None:
    """spawn, forkserver, a process pool, subprocess: all find the variable in their environment."""
    path = tmp_path / "script.py"
    path.write_text(
        f"""
import concurrent.futures, json, multiprocessing, subprocess, sys

def ask(_=None):
    import socket
    from utpsocket import monkey
    with socket.socket() as sock:
        return monkey.transport(sock)

def tell(pipe):
    pipe.send(ask())

if __name__ == "__main__":
    found = {{"itself": ask()}}
    for method in ("spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        ours, theirs = context.Pipe()
        child = context.Process(target=tell, args=(theirs,))
        child.start()
        found[method] = ours.recv()
        child.join()
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            found[f"pool of {{method}}"] = list(pool.map(ask, range(4)))
    command = [sys.executable, "-c", {TRANSPORT!r}]
    found["subprocess"] = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    print(json.dumps(found))
""",
        encoding="utf-8",
    )
    found = json.loads(output_of(python, str(path), UTPSOCKET_PATCH="1"))
    assert found == {
        "itself": "utp",
        "spawn": "utp",
        "pool of spawn": ["utp"] * 4,
        "forkserver": "utp",
        "pool of forkserver": ["utp"] * 4,
        "subprocess": "utp",
    }


def test_beside_run_the_table_is_printed_once(python: Path) -> None:
    """`run` sets a PYTHONPATH besides, which leads to the same file a second time."""
    folder = ROOT / "utpsocket" / "startup"
    program = "import socket, subprocess, sys; print(socket.socket().fileno() > 0)"
    ran = subprocess.run(
        [str(python), "-m", "utpsocket", "run", "--stats", "-c", program],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=150,
        check=True,
    )
    assert ran.stdout == "True\n"
    assert ran.stderr.count("over uTP") == 1

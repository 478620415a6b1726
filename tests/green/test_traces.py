"""unpatch() leaves no trace: no name of socket, ssl, asyncio, gevent, eventlet or uvloop is other than it was."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("order", ["-", "s", "a", "g", "n", "sg", "gs", "v", "av", "e", "se"])
def test_nothing_is_other_than_it_was(order: str) -> None:
    for library, letters in (("gevent", "gn"), ("eventlet", "e"), ("uvloop", "v")):
        if (
            set(order) & set(letters) and importlib.util.find_spec(library) is None
        ):  # not imported: eventlet warns of forks
            pytest.skip(f"no {library}")
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.green.traces", order],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert json.loads(ran.stdout) == []

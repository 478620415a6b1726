"""The compiled build does what the pure one does, its specification: the same scripts in both, and what came of them.

The scripts are made here and go to another process, in which UTPSOCKET_PURE=1 has the pure build run.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.properties.test_batches import Instant, connected, conversations, instants, live
from tests.requirements import requires_compiled
from utpsocket.protocol.build import IS_COMPILED
from utpsocket.protocol.congestion import CONTROLLERS

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 240
Script = tuple[list[Instant], dict[str, Any], bool, int, int]
"""The instants, what the connection is made with, whether it has TCP_NODELAY, the most packets of a run and a burst."""


def outcome(script: Script) -> str:
    instants, made_with, nodelay, longest, max_segments = script
    connection = connected(**made_with)
    connection.send.nodelay = nodelay
    return repr(live(connection, instants, longest, max_segments))


def outcomes_of_pure(scripts: list[Script], folder: Path) -> list[str]:
    given, answered = folder / "scripts", folder / "outcomes"
    given.write_bytes(pickle.dumps(scripts))
    command = [
        sys.executable,
        "-c",
        "from tests.properties.test_builds import answer; answer()",
        str(given),
        str(answered),
    ]
    environment = {**os.environ, "UTPSOCKET_PURE": "1"}
    ran = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert ran.returncode == 0, ran.stderr
    result: list[str] = pickle.loads(answered.read_bytes())
    return result


def answer() -> None:
    """What the other process runs."""
    assert not IS_COMPILED
    scripts = pickle.loads(Path(sys.argv[1]).read_bytes())
    Path(sys.argv[2]).write_bytes(pickle.dumps([outcome(script) for script in scripts]))


@requires_compiled
def test_scripts_have_the_same_outcome_in_both_builds(tmp_path: Path) -> None:
    scripts: list[Script] = []
    found: list[str] = []
    quietly = settings(max_examples=250, suppress_health_check=[*HealthCheck])

    def live_here(*script: Any) -> None:
        scripts.append(script)
        found.append(outcome(script))

    @quietly
    @given(
        instants(),
        st.sampled_from([2_000, 200_000]),
        st.integers(1, 64),
        st.sampled_from([1, 2, 9, 64]),
        st.sampled_from(sorted(CONTROLLERS)),
    )
    def in_runs(script: list[Instant], buffer_bytes: int, longest: int, max_segments: int, congestion: str) -> None:
        made_with = {"buffer_bytes": buffer_bytes, "congestion": congestion}
        live_here(script, made_with, False, longest, max_segments)

    @quietly
    @given(conversations(), st.booleans(), st.sampled_from([50, 50, 20_000]))
    def in_messages(script: list[Instant], nodelay: bool, rtt_us: int) -> None:
        live_here(script, {"rtt_us": rtt_us}, nodelay, 1, 64)

    in_runs()
    in_messages()
    assert len(scripts) >= 300
    for script, here, pure in zip(scripts, found, outcomes_of_pure(scripts, tmp_path), strict=True):
        assert here == pure, script

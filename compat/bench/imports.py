"""import and patched_child: what an interpreter pays, in CPU time from its start, measured by itself."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from typing import Final

from compat.bench import subjects
from compat.bench.sample import Sample
from compat.peers.children import Failed
from utpsocket import startup

INTERPRETERS: Final = 9
"""of each kind for one sample"""
_START_SECONDS: Final = 60.0
_MEASURED: Final = "\nimport time; print(time.process_time())"
_MODULES: Final = {"tcp": "asyncio"}


def import_cost(subject: str, seconds: float) -> Sample:
    """ms of `import utpsocket`, for "tcp" of `import asyncio`: over an interpreter that imports nothing."""
    del seconds
    return Sample(_over(subject, f"import {_MODULES.get(subject, 'utpsocket')}", "", {}))


def patched_child(subject: str, seconds: float) -> Sample:
    """ms that a child of a patched program pays by the time it has imported socket, over one that only imports it; for
    "tcp" those of `import asyncio`.
    """
    if subject == "tcp":
        return import_cost(subject, seconds)
    return Sample(_over(subject, "import socket", "import socket", startup.environment({})))


def _over(subject: str, costly: str, plain: str, costly_variables: dict[str, str]) -> float:
    """The median of one over that of the other; they are started in turns."""
    taken_ms: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory() as folder:
        for number in range(INTERPRETERS + 1):
            for these, program, variables in zip(taken_ms, (costly, plain), (costly_variables, {}), strict=True):
                spent_ms = _cpu_ms(subject, program, variables, folder)
                if number:  # the first ones compile what the others load
                    these.append(spent_ms)
    return statistics.median(taken_ms[0]) - statistics.median(taken_ms[1])


def _cpu_ms(subject: str, program: str, variables: dict[str, str], bytecode_folder: str) -> float:
    """Of an interpreter that runs this program. An installed package has its bytecode beside it; that of a checkout is
    kept in `bytecode_folder`.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= subjects.variables(subject) | variables
    environment["PYTHONPYCACHEPREFIX"] = bytecode_folder
    paths = [variables.get("PYTHONPATH", ""), str(subjects.tree(subject))]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    ran = subprocess.run(
        [sys.executable, "-c", program + _MEASURED],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=_START_SECONDS,
        check=False,
    )
    if ran.returncode:
        raise Failed(f"{program}: {ran.stderr.strip()[-2000:]}")
    return float(ran.stdout) * 1_000

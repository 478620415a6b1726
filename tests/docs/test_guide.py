"""Every program in the documents runs as it stands, prints what stands behind it, and warns of nothing."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys

import pytest

from tests.docs.documents import ROOT, Block, blocks, documents

# Python 3.12 and later say so of every fork in a process that has an engine; utpsocket's fork handlers are for that.
FORK_WARNING = "This process:DeprecationWarning"

PROGRAMS = [block for document in documents() for block in blocks(document)]


@pytest.mark.parametrize("block", PROGRAMS, ids=[block.name for block in PROGRAMS])
def test_program(block: Block) -> None:
    if block.not_run:
        pytest.skip("the document says that it is not run")
    if block.needs and importlib.util.find_spec(block.needs) is None and shutil.which(block.needs) is None:
        pytest.skip(f"needs {block.needs}")
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-W", f"ignore:{FORK_WARNING}", "-c", block.code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, block.output, "")


def test_no_block_of_python_is_left_out() -> None:
    fences = sum(document.read_text("utf-8").count("\n```python\n") for document in documents())
    assert fences == len(PROGRAMS) > 15

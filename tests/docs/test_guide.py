"""Every program in the documents and README runs as it stands, prints what stands behind it, and warns of nothing."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys

import pytest

from tests.docs.documents import README, ROOT, Block, blocks, documents, rows

# Python 3.12 and later say so of every fork in a process that has an engine; utpsocket's fork handlers are for that.
FORK_WARNING = "This process:DeprecationWarning"

TEXTS = [README, *documents()]
PROGRAMS = [block for text in TEXTS for block in blocks(text)]


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
    fences = sum(document.read_text("utf-8").count("\n```python\n") for document in TEXTS)
    assert fences == len(PROGRAMS) > 15


def test_readme_has_no_program_that_is_not_run() -> None:
    found = blocks(README)
    assert len(found) > 5
    assert [block.name for block in found if block.not_run] == []


def test_each_test_that_readme_names_as_proof_is_there() -> None:
    table = README.read_text("utf-8").partition("| | plan | test |")[2]
    proofs = [proof for row in rows("head" + table.partition("\n## ")[0]) for proof in row[2].split(", ")]
    assert len(proofs) > 20
    for proof in proofs:
        path, _, name = proof.strip("`").partition("::")
        found = ROOT / "tests" / path
        assert found.exists(), proof
        assert not name or f"def {name}(" in found.read_text("utf-8"), proof

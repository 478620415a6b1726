"""One suite under pytest, in the interpreter under test. Started by compat.stdlib.supervisor; see compat.stdlib.child.

A test's id is the library's name, its module's without `tests.`, and what pytest calls it there, with dots.
"""

from __future__ import annotations

import gc
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from compat.stdlib import child
from compat.stdlib.child import Choice, Journal

ARGUMENTS: Final = (
    "-q",
    "--rootdir=.",
    "--continue-on-collection-errors",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:randomly",
    "-o",
    "addopts=",  # coverage, several processes: the suite's own are given by libraries.py where they matter
)


class Reporter:
    """The plugin: what pytest finds out, written in a journal."""

    def __init__(self, request: dict[str, Any], journal: Journal) -> None:
        self._library: str = request["module"]
        self._choice = Choice(request)
        self._match: list[str] = request["match"]
        self._journal = journal
        self._names: dict[str, str] = {}  # by pytest's node id

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        # One test that is run again alone: pytest would compile every module of the suite first.
        may = not self._match or any(may_hold(collection_path, pattern) for pattern in self._match)
        return None if may else True

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        for item in items:
            module = getattr(item, "module", None)
            self._names[item.nodeid] = test_name(self._library, item.nodeid, getattr(module, "__name__", ""))
        items[:] = [item for item in items if self._choice.takes(self._names[item.nodeid])]
        # Suites collect garbage after each test (aiohttp's fixtures do). Thousands of tests are a large heap to look
        # through: that took longer than the tests.
        gc.collect()
        gc.freeze()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        self._journal.begin(self._names[item.nodeid])
        result = yield  # what pytest itself fails with, its report of this test say, ends the process: a crash in it
        self._journal.end()
        return result

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._journal.note(self._names[report.nodeid], status(report), str(report.longrepr or ""))

    def pytest_collectreport(self, report: Any) -> None:
        if report.outcome != "passed":
            name = f"{self._library} ({escaped(report.nodeid)})"  # in brackets: a fixture to the supervisor
            self._journal.note(name, "skip" if report.skipped else "error", str(report.longrepr or ""))


def status(report: Any) -> str:
    """In the words of compat.stdlib.child."""
    if hasattr(report, "wasxfail"):
        return "pass"  # fails as it should, or may pass
    if report.skipped:
        return "skip"
    if report.passed:
        return "pass"
    return "fail" if report.when == "call" else "error"


def test_name(library: str, node: str, module: str) -> str:
    """The test's id: `tornado.test.iostream_test.TestIOStream.test_x`, `aiohttp.test_run_app.test_y[1]`."""
    path, _, rest = node.partition("::")
    module = module or path.removesuffix(".py").replace("/", ".")
    module = re.sub(rf"^(tests?\.)?({library}\.)?", "", module)
    test, bracket, parameters = rest.partition("[")
    parameters = parameters.replace(os.getcwd(), ".")  # each run has a folder of its own
    return escaped(f"{library}.{module}.{test.replace('::', '.')}{bracket}{parameters}")


def may_hold(path: Path, pattern: str) -> bool:
    """Whether a file may hold tests whose ids match, as far as its name and what precedes the first wildcard tell."""
    if path.suffix != ".py" or path.stem == "__init__":
        return True
    *complete, begun = re.split(r"[*?[]", pattern, maxsplit=1)[0].split(".")
    return path.stem in complete or path.stem.startswith(begun)


def escaped(name: str) -> str:
    """Without what has a meaning in ids: a number's `#`, a fixture's ` (`, and what a table in markdown ends at."""
    return name.replace("#", "%23").replace(" ", "_").replace("`", "'").replace("\n", "_")


def main(request: dict[str, Any]) -> None:
    """Run the request: see compat.stdlib.supervisor, which writes it."""
    journal, _ = child.begin(request)
    arguments = [*ARGUMENTS, f"--basetemp={os.environ['TMPDIR']}/pytest", *request["arguments"]]
    ended = pytest.main(arguments, plugins=[Reporter(request, journal)])
    if ended in (pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERRUPTED):
        sys.exit(f"pytest ended with {ended!r}")
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        vars(sys).pop(name, None)  # pytest's last failure, with all that its frames held
    gc.unfreeze()
    child.finish(request, journal)


if __name__ == "__main__":
    os.environ.pop("COMPAT_STDLIB_CHILD", None)
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))

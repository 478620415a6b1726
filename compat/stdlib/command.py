"""The command line of python3 -m compat stdlib."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from compat.stdlib import alone, baseline, comparison, report, table
from compat.stdlib.expectations import expectation
from compat.stdlib.modules import MODULES, QUICK, START_METHOD_MODULE, START_METHODS, select
from compat.stdlib.supervisor import ROOT, Task

TCP_LIMIT_S: Final = 90.0  # per test; the longest that ends over TCP takes about a third of it


@dataclass(frozen=True)
class Interpreter:
    """The Python under test."""

    path: str
    version: str
    info: tuple[int, ...]
    modules: list[str]
    sources: dict[str, str]  # of modules it does not ship


def main(argv: list[str]) -> int:
    """Run the command; 0 all as it should be, 1 something is not, 2 wrong usage."""
    options = _parser().parse_args(argv)
    try:
        interpreter = _ask(options.python)
    except (OSError, subprocess.CalledProcessError, ValueError) as failure:
        print(f"{options.python} ships no test package, or does not run: {failure}", file=sys.stderr)
        return 2
    wanted = tuple(options.modules) or (QUICK if options.quick else MODULES)
    names = select(wanted, interpreter.modules)
    if not names:
        print(f"{options.python} has none of: {' '.join(wanted)}", file=sys.stderr)
        return 2

    def task(name: str, transport: str, match: alone.Match, limit_s: Callable[[str], float]) -> Task:
        return Task(interpreter.path, name, transport, match, limit_s, interpreter.sources.get(name, ""))

    folder = baseline.cache_folder(interpreter.version)
    compared = comparison.compare(comparison.Package(interpreter.info, folder, TCP_LIMIT_S, task), names, options)
    if compared is None:
        return 1
    ordered, only_under_load = compared
    print(report.as_text(ordered, causes=not options.brief), file=sys.stderr)
    print(*report.only_under_load(only_under_load), sep="", end="", file=sys.stderr)
    found = report.as_json(interpreter.version, ordered) | {"only_under_load": only_under_load}
    if options.json:
        print(json.dumps(found, indent=1))
    unknown = _compare_with_table(options.check_table, found, interpreter.info) if options.check_table else []
    print(*unknown, sep="\n", end="\n" if unknown else "", file=sys.stderr)
    if options.table:
        feature = table.feature_version(interpreter.version)
        written = table.read(options.table, feature) or table.Table()
        table.write(options.table, feature, written.updated(table.seen(found)))
    return 0 if all(verdict.good for verdict in ordered) and not unknown else 1


def _compare_with_table(path: Path, found: dict[str, Any], version: tuple[int, ...]) -> list[str]:
    feature = table.feature_version(found["python"])
    written = table.read(path, feature)
    if written is None:
        return [f"{path} has no table of CPython {feature}"]
    races = {test for test in found["expected"] if (entry := expectation(test, version)) and entry.sometimes}
    return [f"{path}: {line}" for line in table.disagreements(written, table.seen(found), races)]


def _ask(python: str) -> Interpreter:
    answer = subprocess.run(
        [python, "-m", "compat.stdlib.child", "--list"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
        text=True,
    )
    known: dict[str, Any] = json.loads(answer.stdout)
    modules = list(known["modules"])
    sources = {}
    if "_test_multiprocessing" in modules:
        missing = [name for name in START_METHODS if not select((name,), modules)]
        sources = {name: START_METHOD_MODULE.format(method=START_METHODS[name]) for name in missing}
    return Interpreter(python, known["version"], tuple(known["info"]), [*modules, *sources], sources)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m compat stdlib",
        description="The interpreter's own test modules, unedited, over uTP beside TCP.",
        epilog="Modules are names or globs: test_socket, 'test_urllib*', 'test_asyncio.*'. Without: all that matter.",
    )
    parser.add_argument("modules", nargs="*", metavar="MODULE")
    parser.add_argument("--quick", action="store_true", help="the subset for continuous integration")
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="the interpreter under test")
    comparison.add_options(parser)
    parser.add_argument("--table", type=Path, metavar="FILE", help="write these modules' rows of the table there")
    parser.add_argument(
        "--check-table", type=Path, metavar="FILE", help="fail if the table does not know what was seen"
    )
    return parser

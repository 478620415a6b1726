"""The command line of python3 -m compat gevent."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from compat.gevent.expectations import EXPECTED
from compat.gevent.fetches import FETCH_BYTES, LATE_MS
from compat.gevent.modules import EXCLUDED, MODULES, PACKAGE, QUICK, select
from compat.peers.provision import Unavailable, environment_with
from compat.stdlib import alone, baseline, comparison, report
from compat.stdlib.supervisor import ROOT, Task

FETCHES: Final = "fetches"  # not a module of gevent's: fetches.py
ATTEMPTS: Final = 3
GEVENT_VERSION: Final = "26.9.0"
TCP_LIMIT_S: Final = 60.0  # per test; gevent's own tests give up after a few seconds

_QUESTION: Final = """\
import gevent, gevent.tests, json, pkgutil, sys
names = [module.name for module in pkgutil.iter_modules(gevent.tests.__path__) if module.name.startswith("test_")]
print(json.dumps([sys.version, sys.version_info[:3], gevent.__version__, names]))
"""


@dataclass(frozen=True)
class Subject:
    """The interpreter under test and the gevent in it."""

    path: str
    version: str
    info: tuple[int, ...]
    gevent_version: str
    modules: list[str]


def main(argv: list[str]) -> int:
    """Run the command; 0 all as it should be, 1 something is not, 2 wrong usage."""
    options = _parser().parse_args(argv)
    try:
        subject = _ask(str(environment_with("gevent", GEVENT_VERSION)))
    except (OSError, subprocess.CalledProcessError, ValueError, Unavailable) as failure:
        print(f"gevent {GEVENT_VERSION} cannot be had: {failure}", file=sys.stderr)
        return 2
    wanted = tuple(options.files) or (QUICK if options.quick else (*MODULES, FETCHES))
    names = select(wanted, subject.modules)
    if not names and FETCHES not in wanted:
        print(f"gevent {subject.gevent_version} has none of: {' '.join(wanted)}", file=sys.stderr)
        return 2

    def task(name: str, transport: str, match: alone.Match, limit_s: Callable[[str], float]) -> Task:
        return Task(subject.path, f"{PACKAGE}.{name}", transport, match, limit_s, exclude=tuple(EXCLUDED))

    package = comparison.Package(subject.info, _cache_folder(subject), TCP_LIMIT_S, task, EXPECTED)
    compared = comparison.compare(package, names, options)
    if compared is None:
        return 1
    ordered, only_under_load = compared
    if ordered:
        print(report.as_text(ordered, causes=not options.brief), file=sys.stderr)
    print(*report.only_under_load(only_under_load), sep="", end="", file=sys.stderr)
    figures = _fetch(subject) if FETCHES in wanted else {}
    if options.json:
        answer = report.as_json(subject.version, ordered) | {"only_under_load": only_under_load}
        print(json.dumps({**answer, "gevent": subject.gevent_version, FETCHES: figures}, indent=1))
    return 0 if all(verdict.good for verdict in ordered) and figures.get("good", True) else 1


def _fetch(subject: Subject) -> dict[str, Any]:
    """A thousand fetches while a greenlet ticks. Of up to ATTEMPTS the best counts: what else the machine does makes
    ticks late too.
    """
    best: dict[str, Any] = {}
    for _ in range(ATTEMPTS):
        command = [subject.path, "-m", "compat.gevent.fetches"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if ran.returncode:
            return {"good": False, "cause": ran.stderr[-2_000:]}
        figures = json.loads(ran.stdout)
        worst_ms = max(figures[side]["worst_late_ms"] for side in ("client", "server"))
        is_whole = figures["whole"] == figures["fetches"] == figures["utp_connections"]
        figures |= {"worst_late_ms": worst_ms, "good": is_whole and worst_ms <= LATE_MS}
        print(
            f"{figures['whole']} of {figures['fetches']} greenlets fetched {FETCH_BYTES:,} bytes in "
            f"{figures['seconds']} s; a tick was late by {worst_ms} ms at worst (bound {LATE_MS:.0f} ms)",
            file=sys.stderr,
        )
        if not best or (figures["good"], -worst_ms) > (best["good"], -best["worst_late_ms"]):
            best = figures
        if figures["good"] or not is_whole:
            break
    return best


def _cache_folder(subject: Subject) -> Path:
    return baseline.cache_folder(f"{subject.version} gevent {subject.gevent_version} {_digest()}")


def _digest() -> str:
    return hashlib.sha256(repr(EXCLUDED).encode()).hexdigest()


def _ask(python: str) -> Subject:
    answer = subprocess.run([python, "-c", _QUESTION], capture_output=True, check=True, text=True)
    known: list[Any] = json.loads(answer.stdout)
    return Subject(python, known[0], tuple(known[1]), known[2], known[3])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m compat gevent",
        description="gevent's own test modules, unedited, over uTP beside TCP.",
        epilog="Files are names or globs: test__socket, 'test__server*'. `fetches` is a thousand greenlets that fetch"
        " while one ticks. Without: all that matter.",
    )
    parser.add_argument("files", nargs="*", metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="the subset for continuous integration")
    comparison.add_options(parser)
    return parser

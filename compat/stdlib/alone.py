"""Runs again, in processes of their own, the tests that differed when everything ran at once; that result counts.

Tests have time limits, and sleep until "it must have happened by now": on a busy machine some differ once, as others do
over TCP. So each that differed gets some rounds in processes of its own, over both transports alternately. It is the
same after all if it is as it should be over uTP as often as over TCP; once less often, and it is different. Likewise a
module that left something behind, or got into trouble outside of its tests, is run again as a whole: it is good after
all if it is in every round.

Used by the commands stdlib, gevent and suites.
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from compat.stdlib.child import SEVERITY
from compat.stdlib.supervisor import STOP, ModuleRun, Outcome
from compat.stdlib.verdict import OK_STATUSES, Verdict

TEST_ROUNDS: Final = 5
MODULE_ROUNDS: Final = 3
AT_MOST: Final = 40  # more tests than that differ for one reason, which load is not
CLEARLY: Final = 2  # rounds that fail more often over uTP than over TCP: more of them would change nothing
IN_ORDER: Final = Outcome("pass", 0.0, 0, 0)  # a fixture that nobody tells of

Match: TypeAlias = "tuple[str, ...]"


@dataclass(frozen=True)
class Subject:
    """A module, or another package's suite.

    run             runs it over "tcp" or "utp", or only the tests of these globs
    judge           compares a run over TCP with those over uTP
    test_rounds     of a test that differed
    module_rounds   of the whole; 0: what it left behind counts at once
    """

    name: str
    run: Callable[[str, Match], ModuleRun]
    judge: Callable[[ModuleRun, list[ModuleRun]], Verdict]
    test_rounds: int = TEST_ROUNDS
    module_rounds: int = MODULE_ROUNDS


def settle(subject: Subject, tcp: ModuleRun, utp: list[ModuleRun], match: Match = ()) -> tuple[Verdict, dict[str, str]]:
    """The verdict about these runs, which are changed, once what differed has been run again. Nothing else of ours may
    run beside it.

    -> the verdict, and what was different under load only: by test's id or module's name, how
    """
    verdict = subject.judge(tcp, utp)
    only_under_load: dict[str, str] = {}
    if 0 < len(verdict.unexpected) <= AT_MOST:
        only_under_load |= {
            identity: how
            for identity, how in verdict.unexpected.items()
            if not STOP.is_set() and _is_same_alone(subject, identity, tcp, utp)
        }
        verdict = subject.judge(tcp, utp)
    before = [*verdict.leftovers, *verdict.troubles]
    if before and subject.module_rounds and not STOP.is_set():
        after = _faults_alone(subject, match)
        _say(subject.name, after[0] if after else "nothing left over")
        if not after:
            only_under_load[subject.name] = "; ".join(before)
            verdict = replace(verdict, leftovers=[], troubles=[])
    return verdict, only_under_load


def _is_same_alone(subject: Subject, identity: str, tcp: ModuleRun, utp: list[ModuleRun]) -> bool:
    """Run it again, and have the runs say what it did there."""
    usual = tcp.tests.get(identity)
    good = OK_STATUSES if usual is None or usual.status == "skip" else frozenset({"pass"})
    counts = {"tcp": 0, "utp": 0}
    found: dict[str, list[ModuleRun]] = {"tcp": [], "utp": []}
    for transport, run in _rounds(subject, (_glob(identity),), subject.test_rounds):
        outcome = _outcome(run, identity)
        counts[transport] += outcome is not None and outcome.status in good
        found[transport].append(run)
        if transport == "utp" and counts["tcp"] - counts["utp"] >= CLEARLY:
            break
    _say(identity, f"{counts['utp']} times of {len(found['utp'])}, over TCP {counts['tcp']}")
    over_tcp, over_utp = (_outcome(worst_of(runs), identity) for runs in found.values())
    is_same = over_tcp is not None and over_utp is not None and counts["utp"] >= counts["tcp"]
    for run in utp:
        if over_utp is IN_ORDER:
            run.tests.pop(identity, None)
        elif over_utp is not None:
            run.tests[identity] = over_utp
    if is_same and over_tcp is not None and over_tcp is not IN_ORDER:
        tcp.tests[identity] = over_tcp
    return is_same


def _faults_alone(subject: Subject, match: Match) -> list[str]:
    found: dict[str, list[ModuleRun]] = {"tcp": [], "utp": []}
    for transport, run in _rounds(subject, match, subject.module_rounds):
        found[transport].append(run)
    verdict = subject.judge(worst_of(found["tcp"]), found["utp"])
    return [*verdict.leftovers, *verdict.troubles]


def _rounds(subject: Subject, match: Match, rounds: int) -> Iterator[tuple[str, ModuleRun]]:
    for _ in range(rounds):
        for transport in ("tcp", "utp"):
            if STOP.is_set():
                return
            yield transport, subject.run(transport, match)


def _glob(identity: str) -> str:
    """Of a test, or of what a fixture is for: `setUpClass (module.Class)`."""
    if " (" in identity:
        return glob.escape(identity.partition(" (")[2].rstrip(")")) + ".*"
    return glob.escape(identity.partition("#")[0])


def _outcome(run: ModuleRun, identity: str) -> Outcome | None:
    found = run.tests.get(identity)
    return IN_ORDER if found is None and " (" in identity and run.tests else found


def _say(name: str, what: str) -> None:
    print(f"alone: {name}: {what}", file=sys.stderr)


def worst_of(runs: list[ModuleRun]) -> ModuleRun:
    """One run in which every test has the worst outcome of these. What it leaves is the most of what they left."""
    tests: dict[str, Outcome] = {}
    for run in runs:
        for identity, outcome in run.tests.items():
            known = tests.get(identity)
            if known is None or _severity(outcome) > _severity(known):
                tests[identity] = outcome
    seconds = sum(run.seconds for run in runs)
    troubles = [trouble for run in runs for trouble in run.troubles]
    return replace(runs[0], tests=tests, seconds=seconds, leftovers=_most(runs), troubles=troubles)


def _severity(outcome: Outcome) -> int:
    return SEVERITY.index(outcome.status) if outcome.status in SEVERITY else len(SEVERITY)


def _most(runs: list[ModuleRun]) -> dict[str, Any]:
    left = [run.leftovers for run in runs if run.leftovers]
    if not left:
        return {}
    kinds = {kind for held in left for kind in held["fds"]}
    return {
        "fds": {kind: max(held["fds"].get(kind, 0) for held in left) for kind in kinds},
        "threads": max(held["threads"] for held in left),
        "udp_ports": max(held["udp_ports"] for held in left),
    }

"""A module over TCP beside the same module over uTP: what is the same, and what is not.

Only what passes over TCP counts: over_tcp = same + expected + unexpected. `same` means passed in every run over uTP.
Relevant tests are those that made an internet stream socket over TCP; the others show that the patch harms nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from compat.stdlib.expectations import EXPECTED, Expectation, expectation, explanation
from compat.stdlib.supervisor import ModuleRun, Outcome

SLOW_RATIO: Final = 3.0  # no test is to be slower than three times TCP without a stated reason…
SLOW_S: Final = 0.5  # …and what takes less than this is fast enough: such ratios are noise
NO_REASON: Final = "no reason is stated"
OK_STATUSES: Final = frozenset({"pass", "skip"})
WATCHED_FDS: Final = ("socket", "[eventpoll]", "[eventfd]")


@dataclass
class Verdict:
    """One module's comparison; the ids say which tests."""

    name: str
    skipped: str = ""
    tests: int = 0
    over_tcp: int = 0
    relevant: int = 0
    relevant_same: int = 0
    same: int = 0
    expected: dict[str, str] = field(default_factory=dict)  # id: reason
    unexpected: dict[str, str] = field(default_factory=dict)  # id: statuses, then the first cause
    stale: list[str] = field(default_factory=list)
    slow: dict[str, str] = field(default_factory=dict)  # id: seconds over TCP and over uTP, and the reason
    slow_without_reason: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    runs: int = 0
    utp_connections: int = 0
    kernel_tcp_calls: int = 0  # bind() and connect() on TCP sockets while the patch was in place
    seconds: float = 0.0
    tcp_seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether the module is as it should be. Slowness is reported, not judged: machines differ."""
        return not (self.unexpected or self.stale or self.leftovers or self.troubles)


def judge(
    tcp: ModuleRun,
    runs: list[ModuleRun],
    version: tuple[int, ...],
    *,
    stand_in: bool,
    expected: tuple[Expectation, ...] = EXPECTED,
) -> Verdict:
    """Compare one baseline with one or more runs over uTP.

    stand_in    the "uTP" runs went over TCP, to try the machinery: no uTP connections are asked for
    """
    verdict = Verdict(tcp.module, tcp.skipped, len(tcp.tests))
    verdict.runs = len(runs)
    verdict.utp_connections = sum(run.utp_connections for run in runs)
    verdict.kernel_tcp_calls = sum(record.tcp_calls for run in runs for record in run.tests.values())
    verdict.seconds = round(sum(run.seconds for run in runs), 1)
    verdict.tcp_seconds = round(tcp.seconds, 1)
    for identity, record in tcp.tests.items():
        _judge_test(verdict, identity, record, [run.tests.get(identity) for run in runs], version, expected)
    for run in runs:
        for identity, record in run.tests.items():
            if identity not in tcp.tests and record.status not in OK_STATUSES:
                verdict.unexpected[identity] = f"{record.status}, not seen over TCP\n{record.why}"
        verdict.leftovers += _leftovers(tcp.leftovers, run.leftovers)
        verdict.troubles += run.troubles
    verdict.troubles += [f"over TCP: {trouble}" for trouble in tcp.troubles]
    # Some relevant modules connect to nobody; that nothing was done with TCP is then the proof.
    if not verdict.utp_connections and verdict.kernel_tcp_calls and not stand_in:
        calls = verdict.kernel_tcp_calls
        verdict.troubles.append(f"no uTP connection, but {calls} times bind or connect over TCP: the patch did nothing")
    return verdict


def _judge_test(
    verdict: Verdict,
    identity: str,
    tcp: Outcome,
    found: list[Outcome | None],
    version: tuple[int, ...],
    expected: tuple[Expectation, ...],
) -> None:
    statuses = [record.status if record else "missing" for record in found]
    entry = expectation(identity, version, expected)
    passes = all(status == "pass" for status in statuses)
    if entry and entry.cause and not all(record and _is_due_to(entry.cause, record) for record in found):
        entry = None
    if tcp.status == "pass":
        verdict.over_tcp += 1
        verdict.relevant += tcp.tcp_sockets > 0
        if passes:
            verdict.same += 1
            verdict.relevant_same += tcp.tcp_sockets > 0
            if entry and not entry.sometimes:
                verdict.stale.append(identity)
            _judge_pace(verdict, identity, tcp, [record for record in found if record], version)
        elif entry:
            verdict.expected[identity] = entry.reason
    harmed = tcp.status == "skip" and not all(status in OK_STATUSES for status in statuses)
    if harmed or (tcp.status == "pass" and not passes and not entry):
        why = next((record.why for record in found if record and record.status not in OK_STATUSES), "")
        if not why:
            why = next((record.why for record in found if record and record.status != "pass"), "")
        verdict.unexpected[identity] = f"{'/'.join(statuses)}, over TCP {tcp.status}\n{why}"


def _is_due_to(cause: str, record: Outcome) -> bool:
    return record.status == "pass" or (record.status not in OK_STATUSES and cause in record.why)


def _judge_pace(verdict: Verdict, identity: str, tcp: Outcome, found: list[Outcome], version: tuple[int, ...]) -> None:
    fastest = min(record.seconds for record in found)
    if fastest > SLOW_S and fastest > SLOW_RATIO * tcp.seconds:
        reason = explanation(identity, version, fastest - tcp.seconds)
        verdict.slow[identity] = f"{tcp.seconds:.2f} s over TCP, {fastest:.2f} s over uTP: {reason or NO_REASON}"
        if reason is None:
            verdict.slow_without_reason.append(identity)


def _leftovers(tcp: dict[str, Any], utp: dict[str, Any]) -> list[str]:
    """What the module leaves behind over uTP, beyond what it leaves over TCP."""
    if not tcp or not utp:
        return []  # the process was ended by force: its troubles say so
    pairs = [(kind, tcp["fds"].get(kind, 0), utp["fds"].get(kind, 0)) for kind in WATCHED_FDS]
    pairs += [("threads", tcp["threads"], utp["threads"]), ("UDP ports", tcp["udp_ports"], utp["udp_ports"])]
    # The engine's own view, before it was ended: whoever keeps a socket open keeps a connection and a port, and those
    # of its peer in the same process, which was closed and waits for a FIN.
    pairs += [(f"uTP {kind}", 2 * tcp["fds"].get("socket", 0), now) for kind, now in utp.get("utp", {}).items()]
    return [f"{now} {kind} left over, {before} over TCP" for kind, before, now in pairs if now > before]

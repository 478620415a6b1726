"""What may have happened, and what must not: the judgement over a run's outcomes.

A connection may end in an error only for a reason: an end that broke it off (close() with bytes unread, SO_LINGER 0), a
NAT that forgot it, or the conductor's giving up. The error may not come before its reason. Without one, both directions
are complete and end in the peer's FIN.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from tests.chaos.plan import DATA, FIN, STATE, Connection, Plan
from tests.chaos.relay import Flow, Relay
from tests.chaos.streams import HEADER

_CLOCKS_AGREE: Final = 0.02  # the same clock, read before a call and after another
_CLOSE_NOTICED: Final = 1.0  # by an engine that a busy machine keeps waiting


@dataclass
class Evidence:
    plan: Plan
    client: dict[str, Any]
    server: dict[str, Any]
    relay: Relay
    hangs: list[str]
    phantoms: int = 0
    causes: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)

    def total_bytes(self) -> int:
        return sum(outcome["received"] for end in (self.client, self.server) for outcome in end["outcomes"])


def judge(evidence: Evidence) -> list[str]:
    """Everything that was wrong; empty where all was right."""
    causes = evidence.causes
    causes += evidence.hangs
    for role, end in (("client", evidence.client), ("server", evidence.server)):
        causes += [f"{role}: {fault}" for fault in end["faults"]]
        causes += [
            f"{role} of connection {outcome['connection']}: {outcome['fault']}"
            for outcome in end["outcomes"]
            if outcome["fault"]
        ]
        _judge_left(role, end, causes)
    for number, connection in enumerate(evidence.plan.connections):
        known = len(causes)
        _judge_connection(evidence, number, connection)
        if len(causes) > known:
            evidence.details += _outcomes(evidence, number)
    if not evidence.hangs:
        _judge_ghosts(evidence)
    return causes


def _outcomes(evidence: Evidence, number: int) -> list[str]:
    """Both ends' outcomes, times from the beginning of the run."""
    lines = []
    for role, end in (("client", evidence.client), ("server", evidence.server)):
        for outcome in end["outcomes"]:
            if outcome["connection"] == number:
                fields = {
                    key: round(value - evidence.relay.began_at, 4) if key.endswith("_at") else value
                    for key, value in outcome.items()
                    if value
                }
                lines.append(f"{role}: {fields}")
    cuts = [round(flow.cut_at - evidence.relay.began_at, 4) for flow in evidence.relay.flows if flow.cut_at is not None]
    return [*lines, f"plan: {evidence.plan.connections[number]}"[:1_500], f"outer ports changed: {sorted(set(cuts))}"]


def _judge_left(role: str, end: dict[str, Any], causes: list[str]) -> None:
    held, baseline = end["held"], end["baseline"]
    if end["threads_alive"]:
        causes.append(f"{role}: {end['threads_alive']} threads wait though their connections were given up")
        return
    for key in ("connections", "ports", "fds", "threads", "faults"):
        if held[key] > baseline[key]:
            left = f": {end['left']}" if key == "connections" and "left" in end else ""
            causes.append(f"{role}: {key} {baseline[key]} at first, {held[key]} in the end{left}")


def _judge_connection(evidence: Evidence, number: int, connection: Connection) -> None:
    causes = evidence.causes
    mine = [outcome for outcome in evidence.client["outcomes"] if outcome["connection"] == number]
    if not mine:
        if not evidence.hangs:
            causes.append(f"connection {number}: never tried")
        return
    client = mine[-1]
    servers = [outcome for outcome in evidence.server["outcomes"] if outcome["connection"] == number]
    seen = [outcome["attempt"] for outcome in servers]
    if len(seen) != len(set(seen)):
        causes.append(f"connection {number}: accepted more than once: attempts {seen}")
        return
    server = next((outcome for outcome in servers if outcome["attempt"] == client["attempt"]), None)
    reasons = _reasons(evidence, client, server)
    for outcome in mine:
        if outcome["connect_error"] and outcome["connect_error"] != "TimeoutError" and not reasons:
            causes.append(f"connection {number}: connect(): {outcome['connect_error']}")
    if client["connect_error"] or evidence.hangs:
        return
    if connection.is_mute:
        if not reasons and client["end"] != "eof":
            causes.append(f"connection {number}: a mute client ended {client['end']} {client['read_error']}")
        return
    if server is None:
        if not reasons:
            causes.append(f"connection {number}: no server ever had it, and the client got no error")
        if not (reasons and client["write_error"]):
            _judge_false_end(number, "client", client, None, causes)
        return
    if evidence.plan.listeners[connection.listener].server_first:
        server = {**server, "received": max(0, server["received"] - HEADER.size)}
    for role, reader, writer, side in (
        ("client", client, server, connection.server),
        ("server", server, client, connection.client),
    ):
        _judge_direction(number, role, reader, writer, side.total, reasons, causes)


def _reasons(evidence: Evidence, client: dict[str, Any], server: dict[str, Any] | None) -> list[float]:
    """When each thing happened that a connection may break of."""
    reasons = [outcome[key] for outcome in (client, server) if outcome for key in ("break_at", "abandoned_at")]
    reasons = [at for at in reasons if at and not _follows_error(at, client, server)]
    began = client["connect_at"]
    ended = max(client["closed_at"], server["closed_at"] if server else 0) or float("inf")
    reasons += [
        flow.cut_at for flow in evidence.relay.flows if flow.cut_at is not None and began <= flow.cut_at <= ended
    ]
    return reasons


def _follows_error(at: float, client: dict[str, Any], server: dict[str, Any] | None) -> bool:
    """Whether an end broke off only because it had seen an error itself: no reason for that error."""
    for outcome in (client, server):
        if outcome and at == outcome["break_at"] and not outcome["abandoned_at"]:
            if outcome["read_error"] or outcome["write_error"]:
                return True
    return False


def _judge_false_end(
    number: int, role: str, reader: dict[str, Any], writer: dict[str, Any] | None, causes: list[str]
) -> None:
    """An end of file only after the peer's FIN, with everything before it."""
    if reader["end"] != "eof":
        return
    if writer is None or not writer["finish_at"] or reader["end_at"] < writer["finish_at"] - _CLOCKS_AGREE:
        causes.append(f"connection {number}: {role} read an end of file that was not sent")
    elif reader["received"] != writer["sent"]:
        causes.append(
            f"connection {number}: {role} read an end of file after {reader['received']} of {writer['sent']} bytes"
        )


def _judge_direction(
    number: int,
    role: str,
    reader: dict[str, Any],
    writer: dict[str, Any],
    total: int,
    reasons: list[float],
    causes: list[str],
) -> None:
    if reader["received"] > writer["sent"]:
        causes.append(f"connection {number}: {role} read {reader['received']}, but only {writer['sent']} were sent")
    # As over TCP an error is raised once: where send() has raised it, recv() only returns the end of file.
    was_told = bool(reader["write_error"]) and bool(reasons)
    if not reader["abandoned_at"] and not was_told:
        _judge_false_end(number, role, reader, writer, causes)
    first = min(reasons, default=float("inf")) - _CLOCKS_AGREE
    peer = "server" if role == "client" else "client"
    if reader["end"] == "error" and reader["end_at"] < first:
        causes.append(f"connection {number}: {role} recv(): {reader['read_error']} for no reason")
    if writer["write_error"] and writer["write_error_at"] < first:
        causes.append(f"connection {number}: {peer} send(): {writer['write_error']} for no reason")
    if reasons:
        return
    if not writer["wrote_all"] or writer["sent"] != total:
        causes.append(f"connection {number}: {peer} sent {writer['sent']} of {total} and knows no reason")
    if reader["end"] not in ("eof", "error"):
        causes.append(f"connection {number}: {role} ended {reader['end']!r}")


def _judge_ghosts(evidence: Evidence) -> None:
    """accept() may give only what a client's connect() made: its initiator's address was verified, and it has sent its
    number, or has a reason for sending nothing.
    """
    for flow in evidence.relay.flows:
        mine = [outcome for outcome in evidence.client["outcomes"] if _is_at(outcome["local"], flow.client)]
        theirs = [
            outcome
            for outcome in evidence.server["outcomes"]
            if any(_is_at(outcome["peer"], outer) for outer in flow.outers)
        ]
        nameless = [outcome for outcome in theirs if outcome["connection"] < 0]
        where = f"flow {flow.number}"
        if len(theirs) > len(mine):
            evidence.causes.append(f"{where}: {len(theirs)} connections were accepted of {len(mine)} that were tried")
        if theirs and not any(flow.passed.get(("to_server", kind)) for kind in (DATA, FIN, STATE)):
            evidence.causes.append(f"{where}: a connection was accepted from an unverified address")
        reasons = [outcome for outcome in mine if _may_be_nameless(evidence, flow, outcome)]
        if len(nameless) > len(reasons):
            evidence.causes.append(f"{where}: {len(nameless)} connections without a name, {len(reasons)} with a reason")
        evidence.phantoms += sum(bool(outcome["connect_error"]) for outcome in reasons[: len(nameless)])
    known = [outer for flow in evidence.relay.flows for outer in flow.outers]
    for outcome in evidence.server["outcomes"]:
        if not any(_is_at(outcome["peer"], outer) for outer in known):
            evidence.causes.append(f"a connection was accepted from {outcome['peer']}, where no client is")
        if outcome["connection"] < 0 and outcome["received"]:
            evidence.causes.append(f"a connection without a name brought {outcome['received']} bytes")


def _is_at(address: Any, other: Any) -> bool:
    return bool(address) and tuple(address[:2]) == tuple(other[:2])


def _may_be_nameless(evidence: Evidence, flow: Flow, outcome: dict[str, Any]) -> bool:
    """Whether this attempt may have connected and its first bytes have been lost, or never said.

    One that was given up may have connected in the meantime, as over TCP: if its SYN's answer came before the close.
    """
    if flow.cut_at is not None:
        return True
    if outcome["connect_error"]:
        return bool(flow.answered_at < outcome["closed_at"] + _CLOSE_NOTICED)
    is_over = outcome["break_at"] or outcome["abandoned_at"] or outcome["write_error"]
    return evidence.plan.connections[outcome["connection"]].is_mute or bool(is_over)

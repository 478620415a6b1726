"""One run from begin to end: two processes, the relay between them, a watch over progress, the oracle's verdict.

Processes are kept for further runs of their kind, since to start one costs more than most runs; one that had a part in
a failure is not.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.chaos.oracle import Evidence, judge
from tests.chaos.plan import BREAKS_OFF, KINDS, Connection, Plan, draw
from tests.chaos.relay import Relay

ROOT: Final = Path(__file__).resolve().parent.parent.parent
_STATUS_EVERY: Final = 0.25
_PATIENCE: Final = 15.0  # without any progress on a path that is good again, beside twice its longest outage
_PATIENCE_FOR_EXCUSED: Final = 1.5  # where the plan explains why an end may receive nothing more
_DRAIN_SECONDS: Final = 75.0  # TIME_WAIT after repeated FINs, and FIN_WAIT where a NAT has cut the connection off
_ANSWER_SECONDS: Final = 120.0
_STACKS_SECONDS: Final = 1.0  # until they are written
_MAX_NOISE: Final = 6_000
_MAX_RUNS: Final = 60  # of one process


@dataclass
class Result:
    """What became of a run."""

    seed: int
    bytes: int = 0
    seconds: float = 0.0
    causes: list[str] = field(default_factory=list)
    phantoms: int = 0
    leaves_connections: bool = False
    details: list[str] = field(default_factory=list)


class PartyProcess:
    """A process at one end, and the talk with it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.runs = 0
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("UTPSOCKET_")},
            **KINDS[kind],
            "PYTHONPATH": str(ROOT),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-W", "default", "-W", "ignore::ResourceWarning", "-m", "tests.chaos.party"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.out, self.noise_fd = self.process.stdout.fileno(), self.process.stderr.fileno()
        os.set_blocking(self.out, False)
        os.set_blocking(self.noise_fd, False)
        self._partial = b""
        self.answers: list[Any] = []
        self.noise = b""

    def ask(self, **command: Any) -> None:
        """Send a command; its answer comes into `answers`."""
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(command).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it is dead, which read() finds out

    def read(self) -> None:
        """Take in what it has said. Raises RuntimeError if it is dead."""
        try:
            while noise := os.read(self.noise_fd, 65_536):
                self.noise += noise
        except BlockingIOError:
            pass
        try:
            while True:
                data = os.read(self.out, 1 << 20)
                if not data:
                    raise RuntimeError(f"the process ended: {self.process.wait(5)} {self.noise.decode()[-2_000:]}")
                self._partial += data
        except BlockingIOError:
            pass
        *lines, self._partial = self._partial.split(b"\n")
        self.answers += [json.loads(line) for line in lines]

    def stacks(self) -> str:
        """Where its threads are, though it answers nothing."""
        self.process.send_signal(signal.SIGUSR1)
        time.sleep(_STACKS_SECONDS)
        self.read()
        return self.noise.decode(errors="replace")[-_MAX_NOISE:]

    def wait_ready(self) -> None:
        """Its first word says that it is ready."""
        until = time.monotonic() + _ANSWER_SECONDS
        while not self.answers:
            self._poll(until)
        self.answers.clear()

    def _poll(self, until: float) -> None:
        poller = select.poll()
        poller.register(self.out, select.POLLIN)
        if not poller.poll(1_000) and time.monotonic() > until:
            raise RuntimeError("the process gives no answer")
        self.read()

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout and self.process.stderr
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()

    def kill(self) -> None:
        self.process.kill()
        self.close()


class Parties:
    """Processes at rest, by kind."""

    def __init__(self) -> None:
        self._idle: dict[str, list[PartyProcess]] = {}

    def take(self, kind: str) -> PartyProcess:
        idle = self._idle.get(kind)
        if idle:
            return idle.pop()
        party = PartyProcess(kind)
        party.wait_ready()
        return party

    def give_back(self, party: PartyProcess) -> None:
        party.runs += 1
        if party.runs >= _MAX_RUNS:
            party.close()
        else:
            self._idle.setdefault(party.kind, []).append(party)

    def close(self) -> None:
        for idle in self._idle.values():
            for party in idle:
                party.close()
        self._idle.clear()


class Run:
    """Conducts one plan."""

    def __init__(self, plan: Plan, client: PartyProcess, server: PartyProcess, *, verbose: bool) -> None:
        self.plan = plan
        self.client, self.server = client, server
        self.verbose = verbose
        self.relay: Relay | None = None
        self.poller = select.poll()
        self.hangs: list[str] = []
        self.excuses_used: list[int] = []
        self.dumps: list[str] = []

    # ── the loop ──

    def _turn(self, seconds: float) -> None:
        """The relay's work, and whatever the processes say, for about so long."""
        until = time.monotonic() + seconds
        relay = self.relay
        poller = relay.poller if relay is not None else self.poller
        while True:
            now = time.monotonic()
            wait = min(until - now, relay.wait_seconds(now) if relay is not None else 1.0)
            has_answers = bool(self.client.answers or self.server.answers)
            for fd, _ in poller.poll(0 if has_answers else max(0, wait) * 1_000):
                if fd in (self.client.out, self.client.noise_fd):
                    self.client.read()
                elif fd in (self.server.out, self.server.noise_fd):
                    self.server.read()
                elif relay is not None:
                    relay.on_readable(fd, time.monotonic())
            now = time.monotonic()
            if relay is not None:
                relay.step(now)
            if now >= until or self.client.answers or self.server.answers:
                return

    def _ask(self, party: PartyProcess, **command: Any) -> Any:
        """A command's answer; the relay works on meanwhile."""
        return self._ask_both(((party, command),))[0]

    def _ask_both(self, commands: Any) -> list[Any]:
        for party, command in commands:
            party.ask(**command)
        until = time.monotonic() + _ANSWER_SECONDS
        answers: dict[int, Any] = {}
        while len(answers) < len(commands):
            self._turn(0.5)
            for i, (party, command) in enumerate(commands):
                if i not in answers and party.answers:
                    answers[i] = party.answers.pop(0)
                    if "exception" in answers[i]:
                        raise RuntimeError(f"{command['command']}: {answers[i]['exception']}")
            if time.monotonic() > until:
                raise RuntimeError(
                    f"no answer to {[command['command'] for _, command in commands]}; "
                    + "; ".join(party.stacks() for i, (party, _) in enumerate(commands) if i not in answers)
                )
        return [answers[i] for i in range(len(commands))]

    def _register(self, poller: Any) -> None:
        for party in (self.client, self.server):
            poller.register(party.out, select.POLLIN)
            poller.register(party.noise_fd, select.POLLIN)

    # ── a run ──

    def play(self) -> Result:
        plan = self.plan
        fields = plan.as_dict()
        began = time.monotonic()
        self._register(self.poller)
        common = {"seed": plan.seed, "family": plan.family, "connections": fields["connections"]}
        begun = self._ask(self.server, command="begin", role="server", listeners=fields["listeners"], **common)
        self.relay = relay = Relay(plan, begun["addresses"], now=time.monotonic(), traces=self.verbose)
        self._register(relay.poller)
        try:
            addresses = relay.addresses
            self._ask(self.client, command="begin", role="client", addresses=addresses, **common)
            self._watch()
            relay.end_silence()
            finish = {"command": "finish", "drain_seconds": _DRAIN_SECONDS}
            ends = self._ask_both(((self.client, finish), (self.server, finish)))
        finally:
            relay.close()
        evidence = Evidence(plan, ends[0], ends[1], relay, self.hangs)
        causes = judge(evidence)
        for role, party in (("client", self.client), ("server", self.server)):
            party.read()
            if party.noise:
                causes.append(f"{role}: stderr: {party.noise.decode(errors='replace')[-_MAX_NOISE:]}")
        result = Result(plan.seed, evidence.total_bytes(), time.monotonic() - began, causes, evidence.phantoms)
        result.details = evidence.details
        if causes:
            result.details += [*relay.recent(), *self.dumps]
        result.leaves_connections = any(end["held"]["connections"] for end in ends)
        if self.verbose:
            result.details += [
                json.dumps(fields, indent=1),
                *relay.trace,
                *(json.dumps(outcome) for end in ends for outcome in end["outcomes"]),
            ]
        return result

    def _watch(self) -> None:
        """Until both sides are done. On a good path nothing may stand still but what the plan excuses."""
        plan, relay = self.plan, self.relay
        assert relay is not None
        count, moved_at = -1, time.monotonic()
        client_done_at = 0.0
        patience = _PATIENCE + 2 * plan.path.longest_outage
        while True:
            client, server = self._ask_both(
                ((self.client, {"command": "status"}), (self.server, {"command": "status"}))
            )
            now = time.monotonic()
            if client["progress"] + server["progress"] != count or not relay.is_healed(now):
                count, moved_at = client["progress"] + server["progress"], now
            if client["is_done"]:
                client_done_at = client_done_at or now
                waits = [entry for entry in server["stuck"] if entry[0] >= 0]
                unheard = self._unheard(server)
                settled = now - max(client_done_at, moved_at)
                if not waits and (not unheard or settled > (patience if self._must_be_heard(unheard) else 1.0)):
                    return
            still = now - moved_at
            if still > patience:
                self._report_hang(client, server, still)
                return
            if still > _PATIENCE_FOR_EXCUSED:
                self._abandon_excused(client, server)
            self._turn(_STATUS_EVERY)

    def _unheard(self, server: Any) -> list[Connection]:
        """Connections that the server's program has not got to know."""
        known = {entry[0] for entry in server["stuck"]} | set(server["closed"])
        return [one for i, one in enumerate(self.plan.connections) if not one.is_mute and i not in known]

    def _must_be_heard(self, unheard: list[Connection]) -> bool:
        """Whether one of these was not broken off, so that its first bytes must come in the end."""
        return not self.plan.path.forgets and any(one.client.ending not in BREAKS_OFF for one in unheard)

    def _abandon_excused(self, client: Any, server: Any) -> None:
        """Give up what a NAT has cut off, and who waits for a word that a lost RESET would have been."""
        plan, relay = self.plan, self.relay
        assert relay is not None
        stuck_client = {number for number, _ in client["stuck"]}
        stuck_server = {number for number, _ in server["stuck"]}
        excused = []
        for number, connection in enumerate(plan.connections):
            breaks_off = {connection.client.ending, connection.server.ending} & {"rude", "reset"}
            is_alone = (number in stuck_client) != (number in stuck_server)
            is_cut = any(flow.cut_at is not None for flow in relay.flows)
            is_lost = is_alone and breaks_off and any(sum(flow.lost_resets.values()) for flow in relay.flows)
            if number in stuck_client | stuck_server and (is_cut or is_lost):
                excused.append(number)
        is_nameless = any(number < 0 for number in stuck_server)
        if is_nameless and not stuck_client and not self._must_be_heard(self._unheard(server)):
            excused.append(-1)  # an acceptor of nothing: the oracle counts those
        if excused:
            self.excuses_used += excused
            command = {"command": "abandon", "connections": excused}
            self._ask_both(((self.client, command), (self.server, command)))

    def _report_hang(self, client: Any, server: Any, still: float) -> None:
        for role, status in (("client", client), ("server", server)):
            for number, doing in status["stuck"]:
                if number >= 0 or role == "client":
                    self.hangs.append(f"{role} of connection {number} hangs for {still:.0f} s: {doing}")
        self.hangs = self.hangs or [f"hangs for {still:.0f} s, nothing open"]
        dumps = self._ask_both(((self.client, {"command": "dump"}), (self.server, {"command": "dump"})))
        self.dumps += [json.dumps(dump, indent=1, default=str).replace("\\n", "\n") for dump in dumps]


def run_seed(seed: int, parties: Parties, *, verbose: bool = False) -> Result:
    """Play one seed."""
    return play(draw(seed), parties, verbose=verbose)


def play(plan: Plan, parties: Parties, *, verbose: bool = False) -> Result:
    """Play one plan."""
    taken: list[PartyProcess] = []
    try:
        taken.append(parties.take(plan.client_kind))
        taken.append(parties.take(plan.server_kind))
        result = Run(plan, *taken, verbose=verbose).play()
    except Exception as error:
        for party in taken:
            party.kill()
        return Result(plan.seed, causes=[f"{type(error).__name__}: {error}"])
    for party in taken:
        if result.causes or result.leaves_connections:
            party.kill()
        else:
            parties.give_back(party)
    return result

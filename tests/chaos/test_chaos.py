"""The chaos runs keep their promises: a seed is a run, the oracle notices, and a few runs find nothing wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.chaos import __main__, party, run
from tests.chaos.__main__ import play_all
from tests.chaos.oracle import Evidence, judge
from tests.chaos.plan import DATA, FIN, SYN, Connection, Direction, Listener, Outage, Path, Plan, Side, draw
from tests.chaos.relay import Flow, Relay
from tests.chaos.run import ROOT, Parties
from tests.chaos.sides import End, Outcome, Progress
from tests.chaos.streams import Stream
from utpsocket.protocol.build import IS_COMPILED


def test_a_seed_is_a_run() -> None:
    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


def test_no_plan_waits_for_itself() -> None:
    for seed in range(500):
        for one in draw(seed).connections:
            starts, ends = (one.client.starts, one.server.starts), (one.client.ending, one.server.ending)
            assert starts != ("eof", "eof")
            assert not set(ends) <= {"close", "rdwr"}
            if one.server.starts == "eof":
                assert one.client.starts == "now" and one.client.ending in ("fin", "drop", "linger")
            if one.client.starts == "eof":
                assert one.server.ending in ("fin", "drop", "linger")


def test_a_wrong_byte_is_noticed_and_where_it_belongs() -> None:
    stream = Stream(1, 0, "c2s")
    right = bytes(stream.piece(1_000, 5_000))
    assert stream.fault(1_000, right) is None
    assert stream.fault(1_001, right) == "wrong bytes at offset 1001; they are from offset 1000 of the same block"
    assert "offset 3000" in str(stream.fault(1_000, right[:2_000] + right[2_001:]))


class OneFlow:
    number = 0
    client = ("127.0.0.1", 40_000)
    outers = (("127.0.0.1", 50_000),)
    passed = {("to_server", DATA): 1}
    cut_at = None
    answered_at = 2.0


CLIENT = {"sent": 10, "wrote_all": True, "received": 20, "end": "eof", "end_at": 5.0, "finish_at": 3.0}
SERVER = {"sent": 20, "wrote_all": True, "received": 10, "end": "eof", "end_at": 4.0, "finish_at": 4.5}
NOTHING = {
    "connection": 0,
    "attempt": 0,
    "local": OneFlow.client,
    "peer": OneFlow.outers[0],
    "connect_error": "",
    "connect_at": 1.0,
    "closed_at": 6.0,
    "write_error": "",
    "write_error_at": 0.0,
    "read_error": "",
    "break_at": 0.0,
    "abandoned_at": 0.0,
    "fault": "",
}


class CalmRelay:
    flows = [OneFlow()]
    began_at = 0.0


CALM = Path(1, Direction(), Direction(), [], [], [], False, False)


def plan_of(client: Side, server: Side, path: Path) -> Plan:
    one = Connection(0, 0, "blocking", 1, False, False, client, server)
    return Plan(1, "IPv4", "thread", "thread", [Listener(1, "blocking", 0, False)], [one], path)


def verdict(client: dict[str, object], *servers: dict[str, object], flow: type[OneFlow] = OneFlow) -> list[str]:
    plan = plan_of(Side(chunks=[10]), Side(chunks=[20]), CALM)
    held = {"connections": 0, "ports": 0, "fds": 5, "threads": 2, "faults": 0}
    rest = {"faults": [], "held": held, "baseline": held, "threads_alive": 0}
    ends = [{"outcomes": [{**NOTHING, **outcome} for outcome in end], **rest} for end in ([client], servers)]
    relay = CalmRelay()
    relay.flows = [flow()]
    of_client, of_server = ends
    return judge(Evidence(plan, of_client, of_server, relay, []))  # type: ignore[arg-type]


def test_the_oracle_accepts_what_is_right() -> None:
    assert verdict(CLIENT, SERVER) == []


@pytest.mark.parametrize(
    ("client", "server", "words"),
    [
        ({}, {"received": 9}, "end of file after 9 of 10"),
        ({}, {"received": 11}, "read 11, but only 10 were sent"),
        ({}, {"end_at": 2.0}, "an end of file that was not sent"),
        ({"finish_at": 0.0}, {}, "an end of file that was not sent"),
        ({}, {"end": "error", "read_error": "ECONNRESET"}, "recv(): ECONNRESET for no reason"),
        ({"break_at": 5.5}, {"end": "error", "read_error": "ECONNRESET"}, "recv(): ECONNRESET for no reason"),
        ({"sent": 8, "wrote_all": False}, {"received": 8}, "sent 8 of 10"),
        ({"write_error": "EPIPE", "write_error_at": 2.0}, {}, "send(): EPIPE for no reason"),
        ({}, {"end": ""}, "ended ''"),
        ({"connect_error": "ECONNREFUSED"}, {}, "connect(): ECONNREFUSED"),
    ],
)
def test_the_oracle_notices(client: dict[str, object], server: dict[str, object], words: str) -> None:
    assert words in "; ".join(verdict({**CLIENT, **client}, {**SERVER, **server}))


def test_the_oracle_takes_a_reason() -> None:
    assert verdict({**CLIENT, "break_at": 3.5}, {**SERVER, "end": "error", "read_error": "ECONNRESET"}) == []


GHOST = {"connection": -1, "received": 0, "end": "eof", "end_at": 4.0}
GAVE_UP = {"connect_error": "TimeoutError"}


class UnprovenFlow(OneFlow):
    passed = {("to_server", SYN): 3}


class LateFlow(OneFlow):
    answered_at = 7.0


@pytest.mark.parametrize(
    ("client", "servers", "flow", "words"),
    [
        (CLIENT, [SERVER, GHOST], OneFlow, "2 connections were accepted of 1"),
        (CLIENT, [GHOST], OneFlow, "1 connections without a name, 0 with a reason"),
        (GAVE_UP, [GHOST], OneFlow, ""),
        (GAVE_UP, [GHOST], LateFlow, "1 connections without a name, 0 with a reason"),
        (GAVE_UP, [GHOST], UnprovenFlow, "from an unverified address"),
        (GAVE_UP, [{**GHOST, "peer": ("127.0.0.1", 1)}], OneFlow, "where no client is"),
        (GAVE_UP, [{**GHOST, "received": 3}], OneFlow, "brought 3 bytes"),
    ],
)
def test_the_oracle_knows_ghosts(
    client: dict[str, object], servers: list[dict[str, object]], flow: type[OneFlow], words: str
) -> None:
    found = "; ".join(verdict(client, *servers, flow=flow))
    assert words in found
    assert words or not found


def test_the_relay_passes_on_that_a_port_is_closed() -> None:
    """The client's FIN arrives, and nothing more until the server has ended: then only ICMP can say that it is over.
    A relay that swallows it leaves the client repeating its FIN for as long as an orphan may.
    """
    client = Side(chunks=[1_000], ending="close")
    server = Side(chunks=[50], starts="first")
    path = Path(3, Direction(), Direction(), [Outage(0, 2.5, "both", FIN, 2)], [], [], False, False)
    parties = Parties()
    try:
        result = run.play(plan_of(client, server, path), parties)
    finally:
        parties.close()
    assert (result.causes, result.bytes) == ([], 1_050)


class Stub:
    """What a test's sockets have in common."""

    def _nothing(self, *args: object) -> None:
        pass

    bind = listen = settimeout = setsockopt = close = _nothing

    def fileno(self) -> int:
        return 0

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", 1)


class Joins:
    """Who has been joined, for threads that go on only when they are."""

    def __init__(self) -> None:
        self.known: set[threading.Thread] = set()
        self.changed = threading.Condition()
        self.is_over = False
        self._join = threading.Thread.join

    def join(self, thread: threading.Thread, timeout: float | None = None) -> None:
        with self.changed:
            self.known.add(thread)
            self.changed.notify_all()
        self._join(thread, timeout)

    def wait(self) -> None:
        """Until the thread that calls is joined."""
        with self.changed:
            self.changed.wait_for(lambda: self.is_over or threading.current_thread() in self.known)

    def end(self) -> None:
        with self.changed:
            self.is_over = True
            self.changed.notify_all()


class Silent(Stub):
    """An accepted connection that reports nothing until it is shut down."""

    def __init__(self, close: Callable[[], None]) -> None:
        self.is_read, self.is_shut = threading.Event(), threading.Event()
        vars(self)["close"] = close

    def recv(self, count: int) -> bytes:
        self.is_read.set()
        self.is_shut.wait()
        return b""

    def shutdown(self, how: int) -> None:
        self.is_shut.set()


class Witness(Stub):
    """A socket that looks at what is known of its end when that is shut down."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.seen: list[Outcome] = []

    def shutdown(self, how: int) -> None:
        self.seen.append(replace(self.outcome))


def test_giving_up_a_connection_resets_it_at_the_peer() -> None:
    """The conductor may give up one end alone, where the other one's program does not know yet who has come: that one
    reads what there was, and the end of file. Not before, though, and not without the rest.
    """
    outcome = Outcome(0, 0, sent=10)
    witness = Witness(outcome)
    End(witness, Side(), Progress(), outcome).abandon()
    (known,) = witness.seen
    assert known.finish_at == known.abandoned_at > 0
    client = {**CLIENT, "wrote_all": False, "received": 0, "end": "", "abandoned_at": known.abandoned_at}
    client = {**client, "finish_at": known.finish_at, "closed_at": known.abandoned_at + 1}
    server = {**SERVER, "end_at": known.abandoned_at + 0.1, "finish_at": 0.0}
    assert verdict(client, server) == []
    assert "was not sent" in verdict(client, {**server, "end_at": known.abandoned_at - 0.1})[0]
    assert "after 9 of 10" in verdict(client, {**server, "received": 9})[0]


class AcceptsAtTheLast(Stub):
    """A listener with a first connection, and with a second one as soon as its thread is joined."""

    def __init__(self, joins: Joins) -> None:
        self.joins = joins
        self.is_at_second = threading.Event()
        self.first, self.second = Silent(self._nothing), Silent(joins.wait)
        self.waiting = [self.second, self.first]

    def accept(self) -> tuple[Silent, tuple[str, int]]:
        if len(self.waiting) == 1:
            self.is_at_second.set()
            self.joins.wait()
        return self.waiting.pop(), ("127.0.0.1", 2)


def test_a_connection_accepted_while_the_run_ends_is_given_up_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    joins = Joins()
    listener = AcceptsAtTheLast(joins)
    monkeypatch.setattr(party, "utpsocket", SimpleNamespace(socket=lambda family: listener))
    monkeypatch.setattr(threading.Thread, "join", lambda thread, timeout=None: joins.join(thread, timeout))
    server = party.Server(1, "IPv4", [])
    server.begin([Listener(1, "blocking", 0, False)])
    try:
        assert listener.first.is_read.wait(30) and listener.is_at_second.wait(30)
        answer = party.Party().finish(server, 5)
    finally:
        joins.end()
        listener.first.is_shut.set()
        listener.second.is_shut.set()
    assert (answer["threads_alive"], answer["faults"]) == (0, [])
    assert [outcome["end"] for outcome in answer["outcomes"]] == ["eof", "eof"]
    assert all(outcome["abandoned_at"] and outcome["closed_at"] for outcome in answer["outcomes"])


def test_a_hang_explains_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was last on the wire, what both sides were doing, and where the threads of an engine's process are."""

    def hold_back(relay: Relay, flow: Flow, way: str, kind: int, data: bytes, now: float) -> tuple[str, list[Any]]:
        return ("held back", []) if (way, kind) == ("to_client", DATA) else ("", [(now, data)])

    monkeypatch.setattr(run, "_PATIENCE", 4.0)
    monkeypatch.setattr(Relay, "_judge", hold_back)
    plan = plan_of(Side(chunks=[10]), Side(chunks=[10], starts="first"), CALM)
    plan.server_kind = "process"
    parties = Parties()
    try:
        result = run.play(plan, parties)
    finally:
        parties.close()
    assert "client of connection 0 hangs" in result.causes[0]
    # Compiled functions are not in a thread's list of calls: the first of that thread is interpreted.
    assert ("engine/interpreter/native.py" if IS_COMPILED else "engine/loop.py") in result.causes[-1]
    details = "\n".join(result.details)
    assert "payload=10 held back" in details
    assert '"connections_open": 1' in details


@pytest.mark.parametrize("failure", [["recv(): wrong bytes"], RuntimeError("the conductor's own")])
def test_the_command_fails_where_anything_did(
    failure: list[str] | Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def play_badly(seed: int, parties: Parties, *, verbose: bool) -> run.Result:
        if seed != 3:
            return run.Result(seed, bytes=10)
        if isinstance(failure, Exception):
            raise failure
        return run.Result(seed, causes=failure)

    monkeypatch.setattr(__main__, "run_seed", play_badly)
    assert __main__.main(["--runs", "2", "--seed", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"runs": 2, "bytes": 20, "failures": []}
    assert __main__.main(["--runs", "3", "--seed", "1", "--jobs", "1", "--json"]) == 1
    (failed,) = json.loads(capsys.readouterr().out)["failures"]
    assert str(failure if isinstance(failure, Exception) else failure[0]) in failed["cause"]
    assert __main__.main(["--runs", "3", "--seed", "1"]) == 1


def test_a_few_runs() -> None:
    seeds = (5, 7, 11, 12, 13, 17)  # short ones
    tally = play_all(iter(seeds), jobs=3, until=time.monotonic() + 270, verbose=False, quiet=True)
    for failure in tally.failures:
        print("\n".join(failure.details))  # what pytest shows of a failure
    assert [(failure.seed, failure.causes) for failure in tally.failures] == []
    assert tally.runs == len(seeds) and tally.bytes


def test_the_command_prints_one_object() -> None:
    command = [sys.executable, "-m", "tests.chaos", "--runs", "1", "--seed", "13", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    found = json.loads(done.stdout)
    assert (done.returncode, found["runs"], found["failures"]) == (0, 1, [])

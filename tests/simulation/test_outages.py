"""The path carries nothing for a while, wherever in a connection's life: it heals when the path does.

TCP's handshake outlives 31 s of silence and more (tcp_synack_retries 5); what is repeated with doubled waits comes
through at the latest after as long again as the outage lasted.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.simulator import WRAP_SEQ, Application, Burst, Node, Pair, Simulator, path
from utpsocket.protocol import Connection
from utpsocket.protocol.recovery import MAX_RTO_US

DELAY_US = 20_000
SLACK_US = 4_000_000  # first repetitions where no round trip is known, and what is left to do then
# Before anything; the SYN; its answer; the proof or the client's first words; the first ack; FINs; a pause.
STARTS_US = (0, 10_000, 21_000, 30_000, 41_000, 50_000, 61_000, 81_000, 101_000, 121_000, 300_000)
LENGTHS_US = (500_000, 1_000_000, 2_500_000, 3_500_000, 7_000_000, 15_000_000, 30_000_000)


class Outage:
    """Drops all that passes in this time."""

    def __init__(self, then: Node, start_us: int, end_us: int) -> None:
        self._then = then
        self._start_us = start_us
        self._end_us = end_us

    def put(self, burst: Burst | None, *, now: int) -> None:
        assert burst is not None
        if self._start_us <= now < self._end_us:
            for datagram in burst.datagrams:
                burst.source.dropped(datagram)
        else:
            self._then.put(burst, now=now)


class Closer(Application):
    """Closes as soon as it is connected."""

    def step(self, connection: Connection, *, now: int) -> None:
        super().step(connection, now=now)
        if self.connected_at >= 0:
            connection.finish(now=now)


CONVERSATIONS: dict[str, tuple[Callable[[], Application], Callable[[], Application]]] = {
    "client first": (lambda: Application(3_000), lambda: Application(0, writes=2, expects=1)),
    "server first": (lambda: Application(0), lambda: Application(3_000, writes=2, expects=1)),
    "a word from the server": (lambda: Application(0), lambda: Application(20, writes=2, expects=1)),
    "both": (lambda: Application(3_000), lambda: Application(3_000, writes=2, expects=1)),
    "much": (lambda: Application(300_000), lambda: Application(300_000, writes=2, expects=1)),
    "the client closes": (Closer, lambda: Application(0, writes=2, expects=1)),
    "the client closes, the server speaks": (Closer, lambda: Application(3_000, writes=2, expects=1)),
}


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("direction", ["both", "there", "back"])
@pytest.mark.parametrize("length_us", LENGTHS_US)
def test_an_outage_is_survived(length_us: int, direction: str, conversation: str) -> None:
    for number, start_us in enumerate(STARTS_US):
        simulator = Simulator(number)
        there, back = path(simulator, delay_us=DELAY_US), path(simulator, delay_us=DELAY_US)
        first, last = simulator.start_us + start_us, simulator.start_us + start_us + length_us
        if direction != "back":
            there = Outage(there, first, last)
        if direction != "there":
            back = Outage(back, first, last)
        a, b = (make() for make in CONVERSATIONS[conversation])
        pair = Pair(simulator, there, back, a=a, b=b, first_seq=1 if number % 2 else WRAP_SEQ)
        pair.finish(limit_us=600_000_000)
        said_at = max(a.last_received_at, a.eof_at, b.last_received_at, b.eof_at)
        assert said_at - simulator.start_us <= start_us + 2 * length_us + SLACK_US, f"outage from {start_us} µs"


@pytest.mark.parametrize("direction", ["both", "there", "back"])
@pytest.mark.parametrize("length_us", [35_000_000, 101_000_000, 600_000_000])
def test_an_outage_of_minutes_with_data_under_way_is_survived(length_us: int, direction: str) -> None:
    """RFC 1122 §4.2.3.5: 100 s; Linux, 15 minutes. A peer that is stopped is no other case."""
    simulator = Simulator(length_us)
    there, back = path(simulator, delay_us=DELAY_US), path(simulator, delay_us=DELAY_US)
    first = simulator.start_us + 101_000
    if direction != "back":
        there = Outage(there, first, first + length_us)
    if direction != "there":
        back = Outage(back, first, first + length_us)
    a, b = Application(3_000_000), Application(3_000_000, writes=2, expects=1)
    pair = Pair(simulator, there, back, a=a, b=b)
    pair.finish(limit_us=1_200_000_000)
    said_at = max(a.last_received_at, a.eof_at, b.last_received_at, b.eof_at)
    assert said_at > first + length_us, "nothing was under way"
    assert said_at <= first + length_us + MAX_RTO_US + SLACK_US

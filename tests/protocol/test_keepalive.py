"""PROTOCOL.md §7: a sign of life that means nothing else."""

from __future__ import annotations

from tests.protocol.wire import Wire

EVERY_US = 29_000_000


def test_an_idle_connection_says_a_state_with_an_ack_one_too_low(base: int) -> None:
    wire = Wire.initiator(base)
    wire.connection.keepalive(EVERY_US, now=wire.at)
    said = wire.wait(90_000_000)
    assert [line.split(" ", 1)[1] for line in said] == ["STATE seq=1 ack=-1"] * 3


def test_what_is_heard_or_said_puts_it_off(base: int) -> None:
    wire = Wire.initiator(base)
    wire.connection.keepalive(EVERY_US, now=wire.at)
    wire.wait(20_000_000)
    wire.hear("STATE seq=1 ack=-1")
    assert wire.wait(28_000_000) == []
    wire.write_bytes(5)
    wire.say()
    wire.hear("STATE seq=1 ack=1")
    assert wire.wait(28_000_000) == []
    assert len(wire.wait(2_000_000)) == 1


def test_it_never_hides_an_ack_or_a_hole(base: int) -> None:
    """One too low, a selective ack would name the wrong packets."""
    wire = Wire.initiator(base)
    wire.connection.keepalive(EVERY_US, now=wire.at)
    wire.hear("DATA seq=2 ack=0 len=9")
    wire.say()
    said = wire.wait(30_000_000)
    assert [line.split(" ", 1)[1] for line in said] == ["STATE seq=1 ack=0 sack=01000000"]


def test_it_can_be_turned_off(base: int) -> None:
    wire = Wire.initiator(base)
    wire.connection.keepalive(EVERY_US, now=wire.at)
    wire.connection.keepalive(0, now=wire.at)
    assert wire.wait(100_000_000) == []
    assert wire.connection.timeout_at() is None


def test_a_peers_keepalive_means_nothing_to_the_sender(base: int) -> None:
    wire = Wire.initiator(base)
    wire.write_bytes(5)
    wire.say()
    for _ in range(5):
        wire.hear("STATE seq=1 ack=-1")
    assert wire.connection.stats().lost_packets == 0
    assert wire.say() == []

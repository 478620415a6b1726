"""docs/protocol.md §8: the ack of a message, several packets of which the last is short, may wait for its answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.protocol.wire import Wire

WANTED = 8  # answered messages before the ack of one waits
FULL, SHORT = 1_004, 300
AT_ONCE, AFTER_DELAY = ["0"], ["10"]


class Talk:
    """The peer sends messages, and our program answers after a while."""

    def __init__(self, base: int, arrive: Callable[..., None] = Wire.receive_run) -> None:
        self.wire = Wire.initiator(base)
        self.arrive = arrive
        self.received = self.answered = 0

    def line(self, size: int) -> str:
        self.received += 1
        return f"DATA seq={self.received} ack={self.answered} len={size}"

    def acks(self, *sizes: int, answer_ms: float = 1) -> list[str]:
        """Packets of these sizes come at once, and an answer leaves. After how many ms an ack left without it."""
        began = self.wire.now
        self.arrive(self.wire, *[self.line(size) for size in sizes])
        sent = [f"0 {line}" for line in self.wire.send()]
        self.wire.read_bytes()
        sent += self.wire.wait(int(answer_ms * 1_000))
        times = [line.split()[0] for line in sent if f" STATE seq={self.answered + 1} ack={self.received}" in line]
        assert len(times) == len(sent)
        self.answered += 1
        self.wire.write_bytes(50)
        assert self.wire.send() == [f"DATA seq={self.answered} ack={self.received} len=50"]
        return [time if time == "0" else f"{float(time) - began / 1_000:g}" for time in times]

    def message(self, answer_ms: float = 1) -> list[str]:
        return self.acks(FULL, FULL, SHORT, answer_ms=answer_ms)

    def become_answered(self) -> None:
        assert [self.message() for _ in range(WANTED)] == [AT_ONCE] * WANTED
        assert self.message() == []


ARRIVALS = pytest.mark.parametrize("arrive", [Wire.receive_run, Wire.receive])


@ARRIVALS
def test_the_answer_carries_the_ack_where_answers_are_usual(base: int, arrive: Callable[..., None]) -> None:
    talk = Talk(base, arrive)
    talk.become_answered()
    assert [talk.message(answer_ms) for answer_ms in (0, 5, 9, 1)] == [[]] * 4


@ARRIVALS
def test_after_a_wait_in_vain_twice_as_many_answers_are_needed(base: int, arrive: Callable[..., None]) -> None:
    talk = Talk(base, arrive)
    talk.become_answered()
    for wanted in (2 * WANTED, 4 * WANTED):
        assert talk.message(50) == AFTER_DELAY
        assert [talk.message() for _ in range(wanted)] == [AT_ONCE] * wanted
        assert talk.message() == []


@pytest.mark.parametrize("answer_ms", [11, 200])
def test_a_late_answer_is_none(base: int, answer_ms: float) -> None:
    talk = Talk(base)
    for _ in range(3):
        assert [talk.message() for _ in range(WANTED - 1)] == [AT_ONCE] * (WANTED - 1)
        assert talk.message(answer_ms) == AT_ONCE


@ARRIVALS
def test_packets_that_all_are_full_are_acked_at_once(base: int, arrive: Callable[..., None]) -> None:
    """The sender may have more, and wait for the ack."""
    talk = Talk(base, arrive)
    assert [talk.acks(FULL, FULL, FULL) for _ in range(2 * WANTED)] == [AT_ONCE] * 2 * WANTED
    talk.become_answered()
    assert talk.acks(FULL, FULL, FULL) == AT_ONCE
    assert talk.message() == []


@pytest.mark.parametrize("sizes", [(SHORT,), (FULL, FULL), (FULL, SHORT)])
def test_what_follows_a_message_has_it_acked_at_once(base: int, sizes: tuple[int, ...]) -> None:
    talk = Talk(base)
    talk.become_answered()
    for _ in range(2):
        Wire.receive_run(talk.wire, *[talk.line(size) for size in (FULL, SHORT)])
        Wire.receive_run(talk.wire, *[talk.line(size) for size in sizes])
        assert len(talk.wire.send()) == 1
    # And a program that sends on before the answer is none that waits for it.
    assert talk.message() == AT_ONCE


def test_later_packets_have_the_message_acked_at_once(base: int) -> None:
    talk = Talk(base)
    talk.become_answered()
    Wire.receive_run(talk.wire, *[talk.line(size) for size in (FULL, FULL, SHORT)])
    assert talk.wire.send() == []
    assert talk.wire.wait(2_000) == []
    talk.wire.receive(talk.line(SHORT))
    assert len(talk.wire.send()) == 1


def test_a_message_in_two_parts_at_different_times_is_acked_at_once(base: int) -> None:
    """Its first part was sent without the second, so its sender may have waited for an ack."""
    talk = Talk(base)
    talk.become_answered()
    talk.wire.receive(talk.line(FULL))
    assert talk.wire.wait(1_000) == []
    talk.wire.receive(talk.line(SHORT))
    assert len(talk.wire.send()) == 1


@pytest.mark.parametrize("is_before", [True, False])
def test_a_packet_seen_before_is_acked_at_once_all_the_same(base: int, is_before: bool) -> None:
    talk = Talk(base)
    talk.become_answered()
    again = f"DATA seq={talk.received} ack={talk.answered} len={SHORT}"
    message = [talk.line(size) for size in (FULL, FULL, SHORT)]
    if is_before:
        talk.wire.receive(again)
    Wire.receive_run(talk.wire, *message)
    if not is_before:
        talk.wire.receive(again)
    assert len(talk.wire.send()) == 1


def test_a_hole_is_reported_at_once_all_the_same(base: int) -> None:
    talk = Talk(base)
    talk.become_answered()
    lost = talk.line(FULL)
    talk.wire.receive(talk.line(SHORT))
    assert " sack=" in talk.wire.send()[0]
    talk.wire.receive(lost)
    assert len(talk.wire.send()) == 1


def test_the_end_of_the_stream_is_acked_at_once_behind_a_message(base: int) -> None:
    talk = Talk(base)
    talk.become_answered()
    message = [talk.line(size) for size in (FULL, FULL, SHORT)]
    talk.wire.receive(*message, f"FIN seq={talk.received + 1} ack={talk.answered}")
    assert len(talk.wire.send()) == 1

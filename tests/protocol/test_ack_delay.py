"""docs/protocol.md §8: how long the ack of a lone packet waits for data that can carry it."""

from __future__ import annotations

import pytest

from tests.protocol.wire import Wire

USUAL_MS = 10.0
LONGEST_MS = 100.0


class Talk:
    """The peer asks, and our program answers after a while."""

    def __init__(self, base: int) -> None:
        self.wire = Wire.initiator(base)
        self.asked = self.answered = 0

    def ask(self) -> None:
        self.asked += 1
        self.wire.receive(f"DATA seq={self.asked} ack={self.answered} len=100")
        self.wire.connection.finish_delivery(100, now=self.wire.at)

    def bare_acks(self, answer_ms: float) -> list[float]:
        """A question and its answer; after how many ms an ack left without it."""
        began = self.wire.now
        self.ask()
        sent = self.wire.send() + self.wire.wait(int(answer_ms * 1_000))
        assert all(line.endswith(f"STATE seq={self.answered + 1} ack={self.asked}") for line in sent)
        self.answered += 1
        self.wire.write_bytes(50)
        assert self.wire.send() == [f"DATA seq={self.answered} ack={self.asked} len=50"]
        return [float(line.split()[0]) - began / 1_000 for line in sent]


@pytest.mark.parametrize("answer_ms", [1, 9.9])
def test_a_quick_answer_carries_the_ack(base: int, answer_ms: float) -> None:
    talk = Talk(base)
    assert [talk.bare_acks(answer_ms) for _ in range(5)] == [[]] * 5


@pytest.mark.parametrize("answer_ms", [12, 40, 60, 99])
def test_an_answer_that_is_usually_late_carries_it_from_the_second_time_on(base: int, answer_ms: float) -> None:
    talk = Talk(base)
    assert [talk.bare_acks(answer_ms) for _ in range(5)] == [[USUAL_MS], [], [], [], []]


def test_an_answer_that_is_too_late_leaves_the_delay_as_it_is(base: int) -> None:
    talk = Talk(base)
    assert [talk.bare_acks(LONGEST_MS + 1) for _ in range(4)] == [[USUAL_MS]] * 4


def test_after_a_wait_in_vain_it_is_the_usual_delay_again(base: int) -> None:
    talk = Talk(base)
    assert [talk.bare_acks(answer_ms) for answer_ms in (30, 30, 500, 500)] == [[USUAL_MS], [], [60.0], [USUAL_MS]]


def test_two_packets_are_acked_at_once_all_the_same(base: int) -> None:
    talk = Talk(base)
    assert (talk.bare_acks(60), talk.bare_acks(60)) == ([USUAL_MS], [])
    talk.ask()
    assert talk.wire.send() == []
    talk.ask()
    assert talk.wire.send() == ["STATE seq=3 ack=4"]

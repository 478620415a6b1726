"""docs/protocol.md §7: a sign of life that means nothing else, and the question whether a silent peer still lives."""

from __future__ import annotations

import errno

from tests.protocol.wire import Wire
from utpsocket.protocol.keepalive import Probing, default_probing

EVERY_US = 29_000_000


def texts(sent: list[str]) -> list[str]:
    return [line.split(" ", 1)[1] for line in sent]


def test_an_idle_connection_sends_a_state_with_an_ack_one_too_low(base: int) -> None:
    wire = Wire.initiator(base)
    wire.connection.set_keepalive(EVERY_US, now=wire.at)
    sent = wire.wait(90_000_000)
    assert [line.split(" ", 1)[1] for line in sent] == ["STATE seq=1 ack=-1"] * 3


def test_only_what_is_said_puts_it_off(base: int) -> None:
    wire = Wire.initiator(base)
    wire.connection.set_keepalive(EVERY_US, now=wire.at)
    wire.wait(20_000_000)
    wire.receive("STATE seq=1 ack=-1")  # which a NAT may not count: RFC 4787 REQ-6
    assert texts(wire.wait(9_000_000)) == ["STATE seq=1 ack=-1"]
    wire.write_bytes(5)
    wire.send()
    wire.receive("STATE seq=1 ack=1")
    assert wire.wait(28_000_000) == []
    assert texts(wire.wait(2_000_000)) == ["STATE seq=2 ack=-1"]
    wire.wait(20_000_000)
    wire.receive("DATA seq=1 ack=1 len=9")
    assert texts(wire.wait(28_000_000)) == ["STATE seq=2 ack=1"]
    assert texts(wire.wait(2_000_000)) == ["STATE seq=2 ack=0"]


def test_it_never_hides_an_ack_or_a_hole(base: int) -> None:
    """One too low, a selective ack would name the wrong packets."""
    wire = Wire.initiator(base)
    wire.connection.set_keepalive(EVERY_US, now=wire.at)
    wire.receive("DATA seq=2 ack=0 len=9")
    wire.send()
    sent = wire.wait(30_000_000)
    assert [line.split(" ", 1)[1] for line in sent] == ["STATE seq=1 ack=0 sack=01000000"]


def test_it_can_be_turned_off(base: int) -> None:
    wire = Wire.initiator(base)
    wire.connection.set_keepalive(EVERY_US, now=wire.at)
    wire.connection.set_keepalive(0, now=wire.at)
    assert wire.wait(100_000_000) == []
    assert wire.connection.timeout_at() is None


def test_a_peers_keepalive_means_nothing_to_the_sender(base: int) -> None:
    wire = Wire.initiator(base)
    wire.write_bytes(5)
    wire.send()
    for _ in range(5):
        wire.receive("STATE seq=1 ack=-1")
    assert wire.connection.stats().lost_packets == 0
    assert wire.send() == []


def test_by_default_a_silent_peer_is_probed_and_given_up_after_minutes(base: int) -> None:
    wire = Wire.initiator(base)
    start_s = wire.now // 1_000_000
    wire.connection.set_keepalive(EVERY_US, default_probing(EVERY_US), now=wire.at)
    sent = [line.split(" ", 1) for line in wire.wait(600_000_000)]
    asked = [int(time) // 1_000 - start_s for time, text in sent if text.startswith("DATA")]
    assert asked == [58 + 29 * number for number in range(9)]
    assert sent[-1][1] == "RESET seq=1 ack=0"
    assert wire.events() == [f"CLOSED {errno.ETIMEDOUT}"]


def test_a_peer_that_gives_signs_of_life_is_not_asked(base: int) -> None:
    wire = Wire.initiator(base)
    wire.connection.set_keepalive(EVERY_US, default_probing(EVERY_US), now=wire.at)
    for _ in range(100):
        assert questions(wire.wait(EVERY_US)) == []
        wire.receive("STATE seq=1 ack=-1")
    for _ in range(100):  # libtorrent gives none, and answers
        wire.receive("STATE seq=1 ack=0") if questions(wire.wait(EVERY_US)) else None
    assert wire.events() == []


def test_the_same_settings_again_do_not_begin_anew(base: int) -> None:
    """Every option that a program sets says them all again."""
    wire = Wire.initiator(base)
    sent = []
    for _ in range(20):
        wire.connection.set_keepalive(EVERY_US, default_probing(EVERY_US), now=wire.at)
        sent += wire.wait(5_000_000)
    assert len(questions(sent)) == 2
    assert len(sent) >= 3


IDLE_US, INTERVAL_US, COUNT = 10_000_000, 2_000_000, 3
PROBING = Probing(IDLE_US, INTERVAL_US, COUNT)


def questions(sent: list[str]) -> list[str]:
    return [line for line in sent if "DATA" in line]


def test_a_peer_that_does_not_answer_is_probed_so_often_and_then_given_up(base: int) -> None:
    """tcp(7): TCP_KEEPIDLE of silence, TCP_KEEPCNT questions, TCP_KEEPINTVL apart; then ETIMEDOUT, and a RESET."""
    wire = Wire.initiator(base)
    start_ms = wire.now // 1_000
    wire.connection.set_keepalive(0, PROBING, now=wire.at)
    assert wire.wait(60_000_000) == [
        f"{start_ms + 10_000} DATA seq=0 ack=0 len=1",
        f"{start_ms + 12_000} DATA seq=0 ack=0 len=1",
        f"{start_ms + 14_000} DATA seq=0 ack=0 len=1",
        f"{start_ms + 16_000} RESET seq=1 ack=0",
    ]
    assert wire.events() == [f"CLOSED {errno.ETIMEDOUT}"]
    assert wire.connection.timeout_at() is None


def test_a_question_carries_the_number_of_what_was_acked_last(base: int) -> None:
    """So it is old to the peer, whose ack of it says nothing new: our next byte is not that packet's."""
    wire = Wire.initiator(base)
    wire.connection.set_keepalive(0, PROBING, now=wire.at)
    wire.write_bytes(5)
    assert wire.send() == ["DATA seq=1 ack=0 len=5"]
    wire.receive("STATE seq=1 ack=1")
    (question,) = questions(wire.wait(11_000_000))
    assert question.endswith("DATA seq=1 ack=0 len=1")
    wire.receive("STATE seq=1 ack=1")
    wire.write_bytes(7)
    assert wire.send() == ["DATA seq=2 ack=0 len=7"]
    assert wire.connection.stats().sent_bytes == 12
    assert wire.connection.stats().retransmitted_packets == 0


def test_an_answer_starts_the_count_and_the_silence_anew(base: int) -> None:
    wire = Wire.initiator(base)
    wire.connection.set_keepalive(0, PROBING, now=wire.at)
    for _ in range(10):
        assert len(wire.wait(14_500_000)) == COUNT, "one more and it would be over"
        wire.receive("STATE seq=1 ack=0")
        wire.send()
    assert wire.events() == []
    assert wire.wait(IDLE_US - 1) == []
    assert len(wire.wait(1)) == 1


def test_any_packet_of_the_peer_shows_that_it_is_alive(base: int) -> None:
    wire = Wire.initiator(base)
    wire.connection.set_keepalive(0, PROBING, now=wire.at)
    for _ in range(5):
        assert wire.wait(9_000_000) == []
        wire.receive("STATE seq=1 ack=-1")


def test_bytes_under_way_ask_by_themselves(base: int) -> None:
    """As TCP: while something waits for its ack there is no question, and its number is never a question's."""
    wire = Wire.initiator(base)
    wire.connection.set_keepalive(0, Probing(1_000_000, 1_000_000, 1), now=wire.at)
    wire.write_bytes(5)
    sent = wire.send() + wire.wait(15_000_000)
    assert len(sent) > 2
    assert all(line.endswith("DATA seq=1 ack=0 len=5") for line in sent)


def test_a_question_that_is_due_yields_to_bytes_of_the_same_instant(base: int) -> None:
    wire = Wire.initiator(base)
    wire.connection.set_keepalive(0, PROBING, now=wire.at)
    wire.wait(IDLE_US - 1)
    wire.now += 1
    wire.connection.handle_timeout(now=wire.at)
    wire.write_bytes(5)
    assert wire.send() == ["DATA seq=1 ack=0 len=5"]


def test_a_user_timeout_takes_the_place_of_the_count(base: int) -> None:
    wire = Wire.initiator(base)
    wire.connection.set_keepalive(0, Probing(IDLE_US, INTERVAL_US, COUNT, user_timeout_us=11_000_000), now=wire.at)
    assert len(questions(wire.wait(IDLE_US + INTERVAL_US))) == 1
    assert wire.events() == [f"CLOSED {errno.ETIMEDOUT}"]


def test_without_probes_silence_ends_no_connection(base: int) -> None:
    wire = Wire.initiator(base)
    wire.connection.set_keepalive(0, None, now=wire.at)
    assert wire.wait(86_400_000_000) == []
    assert wire.events() == []


def test_an_acceptor_that_never_spoke_asks_with_the_number_before_its_first(base: int) -> None:
    wire = Wire.acceptor(base)
    wire.connection.set_keepalive(0, PROBING, now=wire.at)
    assert [line.split(" ", 1)[1] for line in questions(wire.wait(11_000_000))] == ["DATA seq=0 ack=0 len=1"]


def test_we_answer_a_question_and_read_nothing_from_it(base: int) -> None:
    wire = Wire.initiator(base)
    wire.receive("DATA seq=1 ack=0 data=hello")
    wire.wait(20_000)
    assert wire.read_bytes() == b"hello"
    for _ in range(3):
        wire.wait(10_000_000)
        wire.receive("DATA seq=1 ack=0 len=1")
        assert wire.send() == ["STATE seq=1 ack=1"]
    assert wire.read_bytes() == b""


def test_after_our_fin_the_question_is_its_number(base: int) -> None:
    wire = Wire.initiator(base)
    wire.connection.set_keepalive(0, PROBING, now=wire.at)
    wire.finish()
    assert wire.send() == ["FIN seq=1 ack=0"]
    wire.receive("STATE seq=1 ack=1")
    asked = questions(wire.wait(11_000_000))  # also as one that waits for the peer's FIN
    assert asked
    assert all(question.endswith("DATA seq=1 ack=0 len=1") for question in asked)

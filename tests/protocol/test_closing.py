"""docs/protocol.md §12: FIN, half-close, RESET, and what lingers."""

from __future__ import annotations

import errno

import pytest

from tests.protocol.wire import RECV_ID, RTT_US, Wire
from utpsocket.protocol import Config, State
from utpsocket.protocol.receivehalf import FIN_ACK_DELAY_US


def test_fin_follows_all_data_and_consumes_a_number(base: int) -> None:
    wire = Wire.initiator(base)
    wire.write_bytes(1_480)
    wire.finish()
    assert wire.send() == ["DATA seq=1..2 ack=0 len=1380+100", "FIN seq=3 ack=0"]
    wire.receive("STATE seq=1 ack=3")
    assert wire.connection.is_flushed
    assert wire.state is State.CONNECTED, "half-closed: the peer may still speak"
    wire.receive("DATA seq=1 ack=3 data=answer")
    assert wire.read_bytes() == b"answer"
    wire.receive("FIN seq=2 ack=3")
    assert wire.send() == ["STATE seq=4 ack=2"], "after our FIN, our STATEs carry its number plus one"
    assert wire.connection.has_eof
    assert wire.events() == ["CLOSED 0"]


def test_the_peer_may_finish_first_and_still_listen(base: int) -> None:
    wire = Wire.initiator(base)
    wire.receive("FIN seq=1 ack=0")
    assert wire.send() == [], "our own FIN may follow at once, with the ack"
    assert wire.wait(FIN_ACK_DELAY_US - 1) == []
    assert wire.wait(1) == ["21 STATE seq=1 ack=1"]
    assert wire.connection.has_eof
    wire.write_bytes(100)
    assert wire.send() == ["DATA seq=1 ack=1 len=100"]
    wire.receive("STATE seq=2 ack=1")  # libutp: FIN's number plus one
    wire.receive("STATE seq=1 ack=1")  # libtorrent: FIN's number
    wire.finish()
    assert wire.send() == ["FIN seq=2 ack=1"]
    wire.receive("STATE seq=2 ack=2", "STATE seq=2 ack=2")
    assert wire.events() == ["CLOSED 0"]


def test_a_fin_in_answer_to_a_fin_is_one_packet(base: int) -> None:
    """What a program sends that closes when it has read the end of file."""
    wire = Wire.initiator(base)
    wire.receive("FIN seq=1 ack=0")
    assert wire.send() == []
    wire.finish()
    assert wire.send() == ["FIN seq=1 ack=1"]
    wire.receive("STATE seq=2 ack=1")
    assert wire.events() == ["CLOSED 0"]
    assert wire.state is State.TIME_WAIT


@pytest.mark.parametrize("has_discarded", [False, True])
def test_a_fin_after_ours_is_acked_at_once(base: int, has_discarded: bool) -> None:
    """No packet of ours is to come that could carry the ack."""
    wire = Wire.initiator(base)
    if has_discarded:
        wire.connection.discard(now=wire.first_now + wire.now)
    wire.finish()
    assert wire.send() == ["FIN seq=1 ack=0"]
    wire.receive("FIN seq=1 ack=1")
    assert wire.send() == ["STATE seq=2 ack=1"]


def test_a_fin_that_is_a_second_packet_is_acked_at_once(base: int) -> None:
    wire = Wire.initiator(base)
    wire.receive("DATA seq=1 ack=0 data=a", "FIN seq=2 ack=0")
    assert wire.send() == ["STATE seq=1 ack=2"]


def in_time_wait(base: int) -> Wire:
    wire = Wire.initiator(base)
    wire.finish()
    wire.send()
    wire.receive("FIN seq=1 ack=1")
    assert wire.send() == ["STATE seq=2 ack=1"]
    assert wire.state is State.TIME_WAIT
    return wire


def test_time_wait_that_must_end_early_ends_without_a_reset_where_the_peer_has_our_last_ack(base: int) -> None:
    wire = in_time_wait(base)
    wire.wait(4 * RTT_US)
    wire.connection.end_time_wait(now=wire.first_now + wire.now)
    assert wire.state is State.CLOSED
    assert wire.send() == []


@pytest.mark.parametrize("is_ack_lost", [False, True])
def test_time_wait_that_must_end_early_ends_with_a_reset_where_the_last_ack_may_be_lost(
    base: int, is_ack_lost: bool
) -> None:
    wire = in_time_wait(base)
    wire.wait(RTT_US)
    if is_ack_lost:
        wire.wait(200_000)
        wire.receive("FIN seq=1 ack=1")
        wire.send()
        wire.wait(4 * RTT_US)
    wire.connection.end_time_wait(now=wire.first_now + wire.now)
    assert wire.state is State.CLOSED
    assert [line.split()[0] for line in wire.send()] == ["RESET"]


def test_fin_is_repeated_until_acked(base: int) -> None:
    wire = Wire.initiator(base)
    wire.write_bytes(10)
    wire.finish()
    wire.send()
    wire.receive("STATE seq=1 ack=1")
    sent = wire.wait(1_000_000)
    assert len(sent) >= 3
    assert {line.split(" ", 1)[1] for line in sent} == {"FIN seq=2 ack=0"}
    wire.receive("STATE seq=1 ack=2")
    assert wire.wait(4_900_000) == []


def test_fin_ahead_of_data_is_kept_sacked_and_delivered_in_order(base: int) -> None:
    wire = Wire.initiator(base)
    wire.receive("FIN seq=3 ack=0", "DATA seq=2 ack=0 data=b")
    assert wire.send() == ["STATE seq=1 ack=0 sack=03000000"]
    assert not wire.connection.has_eof
    wire.receive("DATA seq=1 ack=0 data=a")
    assert not wire.connection.has_eof, "there is something left to read"
    assert wire.read_bytes() == b"ab"
    assert wire.connection.has_eof
    assert wire.send() == ["STATE seq=1 ack=3"]


def test_data_beyond_a_fin_is_dropped(base: int) -> None:
    wire = Wire.initiator(base)
    wire.receive("DATA seq=5 ack=0 data=no", "FIN seq=2 ack=0", "DATA seq=3 ack=0 data=no", "DATA seq=1 ack=0 data=yes")
    assert wire.read_bytes() == b"yes"
    assert wire.connection.has_eof
    wire.send()
    wire.receive("DATA seq=3 ack=0 data=no", "FIN seq=4 ack=0")
    assert wire.read_bytes() == b""


def test_fin_with_payload_delivers_it(base: int) -> None:
    """libutp does, libtorrent ignores it; we never send it."""
    wire = Wire.initiator(base)
    wire.receive("FIN seq=1 ack=0 data=last")
    assert wire.read_bytes() == b"last"
    assert wire.connection.has_eof


def test_a_late_fin_is_acked_again_for_a_while(base: int) -> None:
    wire = Wire.initiator(base)
    wire.finish()
    wire.send()
    wire.receive("FIN seq=1 ack=1")
    assert wire.send() == ["STATE seq=2 ack=1"]
    assert wire.state is State.TIME_WAIT
    wire.wait(400_000)
    wire.receive("FIN seq=1 ack=1")
    assert wire.send() == ["STATE seq=2 ack=1"]
    wire.wait(4_000_000)
    assert wire.state is State.CLOSED
    assert wire.connection.errno == 0
    assert wire.connection.is_over


def test_while_the_peer_repeats_itself_it_is_waited_for(base: int) -> None:
    """Its timeout doubles; forgotten, we would answer DATA by a RESET that looks as if bytes had been lost."""
    wire = Wire.initiator(base)
    wire.receive("DATA seq=1 ack=0 data=last")
    wire.read_bytes()
    wire.finish()
    wire.send()
    wire.receive("FIN seq=2 ack=1")
    wire.send()
    for wait_us in (200_000, 400_000, 800_000, 1_600_000):
        wire.wait(wait_us)
        wire.receive("DATA seq=1 ack=1 data=last")
        assert wire.send() == ["STATE seq=2 ack=2"]
    wire.wait(10_000_000)
    assert wire.connection.is_over
    assert wire.connection.errno == 0


@pytest.mark.parametrize("ack", [1, 2])
def test_a_reset_that_acks_our_fin_is_a_clean_close(base: int, ack: int) -> None:
    """libutp answers late FINs of connections it has forgotten so; to our STATE it acks one more."""
    wire = Wire.initiator(base)
    wire.connection.discard(now=wire.at)
    wire.finish()
    assert wire.send() == ["FIN seq=1 ack=0"]
    wire.receive(f"RESET seq=5 ack={ack}")
    assert wire.events() == ["CLOSED 0"]


def test_a_reset_is_no_clean_close_while_the_application_waits_for_data(base: int) -> None:
    """A request was written and half-closed; what would have been the answer is cut off."""
    wire = Wire.initiator(base)
    wire.write_bytes(10)
    wire.finish()
    wire.send()
    wire.receive("STATE seq=1 ack=2", "DATA seq=1 ack=2 data=half", "RESET seq=2 ack=2")
    assert wire.events() == [f"CLOSED {errno.ECONNRESET}"]
    assert wire.read_bytes() == b"half", "what came before is still there"


def test_a_reset_that_does_not_ack_our_fin_is_a_loss(base: int) -> None:
    wire = Wire.initiator(base)
    wire.write_bytes(10)
    wire.connection.discard(now=wire.at)
    wire.finish()
    wire.send()
    wire.receive("RESET seq=2 ack=1")
    assert wire.events() == [f"CLOSED {errno.ECONNRESET}"]


def test_a_fin_that_is_never_acked_is_given_up_quietly(base: int) -> None:
    """§3: some ignore a FIN that no data came before. Not too soon, or an outage costs the peer its end of file."""
    wire = Wire.initiator(base)
    wire.connection.discard(now=wire.at)
    wire.finish()
    assert wire.send() == ["FIN seq=1 ack=0"]
    sent = wire.wait(30_000_000)
    assert 5 <= len(sent) <= 9
    assert wire.state is State.CONNECTED
    wire.wait(30_000_000)
    assert wire.events() == ["CLOSED 0"]


def test_before_a_fin_libutp_must_receive_data(base: int) -> None:
    """§3: its acceptor drops a FIN that no DATA came before, an empty one will do."""
    for answer_first in (True, False):
        wire = Wire(base)
        wire.connect()
        if not answer_first:
            wire.finish()
        wire.send()
        wire.wait(RTT_US)
        wire.receive("STATE seq=1 ack=0 diff=0")
        wire.finish()
        assert [line for line in wire.send() if not line.startswith("STATE")] == ["DATA seq=1 ack=0", "FIN seq=2 ack=0"]
        wire.receive("STATE seq=1 ack=2")
        assert wire.connection.is_flushed


def test_data_after_a_close_is_answered_by_reset_after_what_we_wrote_has_arrived(base: int) -> None:
    """As TCP after close(), but nothing written is lost by it."""
    wire = Wire.initiator(base)
    wire.write_bytes(10)
    wire.connection.discard(now=wire.at)
    wire.finish()
    assert wire.send() == ["DATA seq=1 ack=0 len=10", "FIN seq=2 ack=0"]
    wire.receive("DATA seq=1 ack=0 data=unwanted")
    assert wire.state is State.CONNECTED
    wire.receive("STATE seq=2 ack=1")
    assert wire.send()[-1].startswith("RESET")
    assert wire.connection.is_over


def test_data_after_a_close_fills_the_window_meanwhile(base: int) -> None:
    """Or a fast sender gets rid of everything before it learns that nothing is read."""
    wire = Wire.initiator(base, config=Config(receive_buffer_bytes=1 << 20))
    wire.write_bytes(10)
    wire.connection.discard(now=wire.at)
    wire.finish()
    wire.send()
    before_bytes = wire.last_window
    wire.receive("DATA seq=1 ack=0 data=unwanted")
    wire.wait(200_000)
    assert wire.last_window == before_bytes - len("unwanted")


def test_a_fin_held_when_reading_ended_still_counts(base: int) -> None:
    wire = Wire.initiator(base)
    wire.receive("FIN seq=2 ack=0")
    wire.send()
    wire.finish()
    wire.send()
    wire.connection.receive.discard()
    wire.receive("DATA seq=1 ack=1", "FIN seq=2 ack=1")
    assert wire.connection.receive.reassembly.is_fin_reached


def test_a_closed_half_open_peer_is_waited_for_a_minute(base: int) -> None:
    """As Linux' tcp_fin_timeout: the socket is closed here, and the peer never finishes."""
    wire = Wire.initiator(base)
    wire.write_bytes(10)
    wire.connection.discard(now=wire.at)
    wire.finish()
    wire.send()
    wire.receive("STATE seq=1 ack=2")
    wire.wait(59_000_000)
    assert wire.state is State.CONNECTED
    assert [line.split()[1] for line in wire.wait(2_000_000)] == ["RESET"]
    assert wire.connection.is_over


def test_connect_then_close_before_the_answer(base: int) -> None:
    wire = Wire(base)
    wire.connect()
    wire.write_bytes(10)
    wire.finish()
    assert wire.send() == ["SYN seq=0 ack=0"]
    wire.wait(RTT_US)
    wire.receive("STATE seq=1 ack=0")
    assert wire.send() == ["DATA seq=1 ack=0 len=10", "FIN seq=2 ack=0"]


def test_giving_up_before_the_answer_withdraws_every_syn(base: int) -> None:
    """The acceptor may have answered, and would keep a connection that does not exist here."""
    wire = Wire(base, spare_ids=(RECV_ID + 100, RECV_ID + 200))
    wire.connect()
    wire.send()
    wire.wait(2_000_000)  # repeated, and again under a fresh id
    wire.connection.abort()
    assert not wire.connection.is_over
    sent = wire.send()
    assert [line.split()[:2] for line in sent] == [["RESET", "seq=1"]] * 2
    ids = [transmit.data[2] << 8 | transmit.data[3] for transmit in wire.transmits[-2:]]
    assert ids == [RECV_ID + 1, RECV_ID + 101]
    assert wire.connection.is_over


def test_giving_up_before_the_first_syn_has_left_sends_nothing(base: int) -> None:
    wire = Wire(base)
    wire.connect()
    wire.connection.abort()
    assert wire.send() == []
    assert wire.connection.is_over

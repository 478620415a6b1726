"""docs/protocol.md §5: selective acks, sent and received."""

from __future__ import annotations

import pytest

from tests.protocol.wire import RTT_US, Wire


def test_bit_0_stands_for_ack_plus_2_least_significant_first(base: int) -> None:
    wire = Wire.initiator(base)
    wire.receive("DATA seq=2 ack=0 data=b")
    assert wire.send() == ["STATE seq=1 ack=0 sack=01000000"]
    wire.receive("DATA seq=5 ack=0 data=e")
    assert wire.send() == ["STATE seq=1 ack=0 sack=09000000"]
    wire.receive("DATA seq=10 ack=0 data=j")
    assert wire.send() == ["STATE seq=1 ack=0 sack=09010000"]


def test_it_is_as_long_as_needed_in_words_of_four_bytes(base: int) -> None:
    wire = Wire.initiator(base)
    wire.receive("DATA seq=34 ack=0 data=x")
    assert wire.send() == ["STATE seq=1 ack=0 sack=0000000001000000"]
    wire.receive("DATA seq=2017 ack=0 data=x")
    (line,) = wire.send()
    assert len(line.split("sack=")[1]) == 2 * 252
    wire.receive("DATA seq=3000 ack=0 data=x")
    (line,) = wire.send()
    assert len(line.split("sack=")[1]) == 2 * 252, "what no bit can report is kept all the same"
    assert wire.connection.stats().received_packets == 3


def test_it_travels_on_state_alone(base: int) -> None:
    """The JS utp takes extension bytes of DATA for payload."""
    wire = Wire.initiator(base)
    wire.receive("DATA seq=2 ack=0 data=b")
    wire.write_bytes(10)
    assert wire.send() == ["STATE seq=1 ack=0 sack=01000000", "DATA seq=1 ack=0 len=10"]


def test_a_filled_hole_is_acked_at_once(base: int) -> None:
    wire = Wire.initiator(base)
    wire.receive("DATA seq=2 ack=0 data=b", "DATA seq=3 ack=0 data=c")
    assert wire.send() == ["STATE seq=1 ack=0 sack=03000000"]
    wire.receive("DATA seq=1 ack=0 data=a")
    assert wire.send() == ["STATE seq=1 ack=3"]
    assert wire.read_bytes() == b"abc"


@pytest.mark.parametrize("sack", ["07", "0700", "070000", "07000000", "0700000000000000"])
def test_any_length_is_read(base: int, sack: str) -> None:
    """libtorrent sends ceil(span / 8) bytes. Three packets above the hole: it is lost."""
    wire = Wire.initiator(base)
    wire.write_bytes(13_800)
    wire.send()
    wire.wait(RTT_US)
    wire.receive(f"STATE seq=1 ack=0 sack={sack}")
    assert wire.send()[0] == "DATA seq=1 ack=0 len=1380"


def test_no_bytes_at_all_say_nothing(base: int) -> None:
    wire = Wire.initiator(base)
    wire.write_bytes(13_800)
    wire.send()
    wire.wait(RTT_US)
    wire.receive("STATE seq=1 ack=0 sack=", "STATE seq=1 ack=0 sack=00000000")
    assert wire.send() == []


def test_it_may_come_on_data_and_behind_other_extensions(base: int) -> None:
    wire = Wire.initiator(base)
    wire.write_bytes(13_800)
    wire.send()
    wire.wait(RTT_US)
    wire.receive("DATA seq=1 ack=0 ext=3:0102 sack=07 data=hello")
    assert wire.send() == ["DATA seq=1 ack=1 len=1380"]
    assert wire.read_bytes() == b"hello"


def test_bits_for_what_was_never_sent_are_passed_over(base: int) -> None:
    wire = Wire.initiator(base)
    wire.write_bytes(2_760)
    wire.send()
    wire.receive("STATE seq=1 ack=0 sack=ffffffff", "STATE seq=1 ack=2 sack=ffffffff")
    assert wire.connection.stats().acked_bytes == 2_760


def test_a_receiver_that_forgets_what_it_sacked_gets_it_again(base: int) -> None:
    """RFC 2018 §8: the bytes are kept until they are acked, and a timeout forgets the scoreboard."""
    wire = Wire.initiator(base)
    wire.write_bytes(4_140)
    assert wire.send() == ["DATA seq=1..3 ack=0 len=1380"]
    wire.receive("STATE seq=1 ack=0 sack=03", "STATE seq=1 ack=1")
    sent = [line.split(" ", 1)[1] for line in wire.wait(3_000_000)]
    assert sent[0] == "DATA seq=2 ack=0 len=1380"
    wire.receive("STATE seq=1 ack=2")
    assert wire.send()[0] == "DATA seq=3 ack=0 len=1380"  # and its pieces: after two timeouts its size may be to blame

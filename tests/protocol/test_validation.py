"""docs/protocol.md §1 and §4: which packets are accepted, and from which peer."""

from __future__ import annotations

import errno
import struct

import pytest

from tests.protocol.wire import RTT_US, Wire
from utpsocket.protocol import State


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"\x01" * 19,
        struct.pack(">BBHIIIHH", 0x31, 1, 4_000, 0, 0, 0, 1, 0) + b"\0\x04\0\0",  # the chain runs past the end
        struct.pack(">BBHIIIHH", 0x31, 1, 4_000, 0, 0, 0, 1, 0) + b"\0",
        struct.pack(">BBHIIIHH", 0x51, 0, 4_000, 0, 0, 0, 1, 0),  # type 5
        struct.pack(">BBHIIIHH", 0x32, 0, 4_000, 0, 0, 0, 1, 0),  # version 2
        struct.pack(">BBHIIIHH", 0x30, 0, 4_000, 0, 0, 0, 1, 0) + b"abc",  # Transmission's version-0 reset
    ],
)
def test_what_is_not_utp_has_no_side_effect(base: int, datagram: bytes) -> None:
    wire = Wire.initiator(base)
    before = wire.connection.timeout_at()
    if datagram:
        wire.receive_bytes(datagram)
        assert wire.connection.stats().dropped_packets == 1
    assert wire.send() == []
    assert wire.connection.timeout_at() == before
    assert wire.state is State.CONNECTED


@pytest.mark.parametrize(("ack", "is_believed"), [(2, True), (1, True), (-2, True), (-3, False), (3, False)])
def test_ack_is_within_three_of_what_is_under_way(base: int, ack: int, is_believed: bool) -> None:
    """Oldest unacked is 2 (1 was acked), newest sent is 2: [2 - 1 - 3, 2]."""
    wire = Wire.initiator(base)
    for _ in range(2):
        wire.write_bytes(10)
        wire.send()
    wire.receive("STATE seq=1 ack=1", f"STATE seq=1 ack={ack} wnd=77")
    assert wire.connection.stats().dropped_packets == (not is_believed)


def test_data_may_be_overtaken_by_as_many_acks_as_packets_were_under_way(base: int) -> None:
    """RFC 5961 §5.2: or reordering in two directions at once would lose what arrived."""
    wire = Wire.initiator(base)
    wire.write_bytes(13_800)
    wire.send()
    wire.wait(RTT_US)
    assert wire.connection.stats().sent_packets == 10
    wire.receive("STATE seq=1 ack=10", "DATA seq=1 ack=0 data=late")
    assert wire.read_bytes() == b"late"
    wire.receive("DATA seq=2 ack=-5 data=spoof", "DATA seq=2 ack=11 data=spoof")
    assert wire.read_bytes() == b""


def test_old_data_is_acked_again_once_per_batch(base: int) -> None:
    wire = Wire.initiator(base)
    wire.receive("DATA seq=1 ack=0 data=one", "DATA seq=2 ack=0 data=two")
    assert wire.send() == ["STATE seq=1 ack=2"]
    wire.receive("DATA seq=1 ack=0 data=one", "DATA seq=2 ack=0 data=two", "DATA seq=1 ack=0 data=one")
    assert wire.send() == ["STATE seq=1 ack=2"]
    assert wire.read_bytes() == b"onetwo"


def test_what_lies_beyond_the_reorder_window_is_dropped(base: int) -> None:
    wire = Wire.initiator(base)
    wire.receive("DATA seq=8194 ack=0 data=far", "DATA seq=30000 ack=0 data=far")
    assert wire.send() == ["STATE seq=1 ack=0"]
    assert wire.connection.stats().dropped_packets == 2


def test_another_connection_id_is_not_for_us(base: int) -> None:
    wire = Wire.initiator(base)
    wire.receive("DATA seq=1 ack=0 data=no id=send", "DATA seq=1 ack=0 data=no id=-1", "STATE seq=1 ack=0 id=9")
    assert wire.read_bytes() == b""
    assert wire.connection.stats().dropped_packets == 3


@pytest.mark.parametrize("words", ["id=recv", "id=send"])
@pytest.mark.parametrize("ack", [0, -1, 1, 2, 3])
def test_a_reset_is_accepted_by_its_id_and_its_ack(base: int, words: str, ack: int) -> None:
    """Its seq is random in libutp and libtorrent. 3 is the number our STATEs carry: a RESET acks what offended."""
    wire = Wire.initiator(base)
    wire.write_bytes(2_760)
    assert wire.send() == ["DATA seq=1..2 ack=0 len=1380"]
    wire.receive(f"RESET seq=31000 ack={ack} {words}")
    assert wire.events() == [f"CLOSED {errno.ECONNRESET}"]
    assert wire.send() == [], "a RESET is never answered"


@pytest.mark.parametrize("blind", ["ack=4", "ack=-5", "ack=20000", "ack=0 id=9", "ack=0 id=-1"])
def test_a_guessed_reset_is_dropped(base: int, blind: str) -> None:
    wire = Wire.initiator(base)
    wire.write_bytes(2_760)
    wire.send()
    wire.receive(f"RESET seq=1 {blind}")
    assert wire.state is State.CONNECTED
    assert wire.connection.stats().dropped_packets == 1


def test_the_reset_of_a_peer_that_forgot_the_connection_is_accepted(base: int) -> None:
    """Half-open: the peer was restarted; our keepalive is answered by a RESET that acks its number."""
    wire = Wire.initiator(base)
    wire.connection.set_keepalive(29_000_000, now=wire.at)
    assert wire.wait(30_000_000) == ["29020 STATE seq=1 ack=-1"]
    wire.receive("RESET seq=0 ack=1 id=send")
    assert wire.events() == [f"CLOSED {errno.ECONNRESET}"]


def test_our_reset_has_the_numbers_that_the_peer_expects(base: int) -> None:
    """libtorrent checks its seq."""
    wire = Wire.initiator(base)
    wire.write_bytes(10)
    wire.send()
    wire.receive("DATA seq=1 ack=0 data=x")
    wire.connection.abort()
    assert wire.send() == ["RESET seq=2 ack=1"]
    assert wire.connection.is_over
    wire.receive("DATA seq=2 ack=0 data=x", "RESET seq=1 ack=1")
    assert wire.send() == []


def test_nothing_is_reneged_on_by_old_acks(base: int) -> None:
    """An ack that was overtaken changes neither what is acked nor the window."""
    wire = Wire.initiator(base)
    wire.write_bytes(2_760)
    wire.send()
    wire.receive("STATE seq=1 ack=2 wnd=500000", "STATE seq=1 ack=1 wnd=7")
    stats = wire.connection.stats()
    assert (stats.acked_bytes, stats.peer_window_bytes) == (2_760, 500_000)

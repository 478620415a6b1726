"""docs/protocol.md §14: two SYNs cross and neither side listens. One connection, that of the higher number."""

from __future__ import annotations

import errno

from tests.protocol.wire import RECV_ID, Wire
from utpsocket.protocol import State
from utpsocket.protocol.packet import decode


def dialling(base: int) -> Wire:
    """Our SYN is out; the peer's numbers are relative to it too, so that a line says which is higher."""
    wire = Wire(base)
    wire.peer_base = base
    wire.connect()
    assert wire.send() == ["SYN seq=0 ack=0"]
    return wire


def cross(wire: Wire, line: str) -> bool:
    """The peer's SYN, as the endpoint hands it over where no socket listens."""
    packet = decode(memoryview(wire.write(line)))
    assert packet is not None
    is_taken = wire.connection.handle_simultaneous_open(packet, now=wire.at)
    wire.connection._check()
    return is_taken


def test_the_lower_number_answers_as_an_acceptor() -> None:
    wire = dialling(20_000)
    cross(wire, "SYN seq=1 id=500")
    assert wire.state is State.SYN_RECEIVED
    assert wire.connection.recv_id == RECV_ID + 501
    assert wire.send() == ["STATE seq=1 ack=1"]
    wire.receive("STATE seq=2 ack=0")
    assert wire.events() == ["CONNECTED"]
    assert wire.state is State.CONNECTED
    wire.write_bytes(5)
    assert wire.send() == ["DATA seq=1 ack=1 len=5"]
    wire.receive("DATA seq=2 ack=1 data=hello")
    assert wire.read_bytes() == b"hello"


def test_the_higher_number_waits_for_its_answer() -> None:
    wire = dialling(20_000)
    cross(wire, "SYN seq=-1 id=500")
    assert wire.state is State.SYN_SENT
    assert wire.send() == []
    wire.receive("STATE seq=0 ack=0")
    assert wire.events() == ["CONNECTED"]
    assert wire.send() == ["STATE seq=1 ack=-1"]


def test_the_comparison_is_the_same_on_both_sides_across_the_wrap() -> None:
    """No modular arithmetic: of 65,535 and 0 the first is higher, to both."""
    high, low = dialling(65_535), dialling(0)
    cross(high, "SYN seq=1 id=500")
    cross(low, "SYN seq=-1 id=500")
    assert (high.state, low.state) == (State.SYN_SENT, State.SYN_RECEIVED)


def test_an_answer_that_was_lost_is_said_again_and_no_other_syn_is_let_in() -> None:
    wire = dialling(20_000)
    cross(wire, "SYN seq=1 id=500")
    wire.send()
    wire.wait(1_000_000)
    cross(wire, "SYN seq=1 id=-1")
    assert wire.send() == ["STATE seq=1 ack=1"]
    wire.wait(500_000)
    cross(wire, "SYN seq=1 id=399")  # the same peer, which has begun again under another id
    assert wire.send() == ["STATE seq=1 ack=1"]
    assert not cross(wire, "SYN seq=2 id=5")
    wire.receive("STATE seq=2 ack=0")
    assert wire.events() == ["CONNECTED"]
    assert wire.connection.recv_id == RECV_ID + 901


def test_of_two_answers_the_peer_takes_either() -> None:
    for taken, other in ((501, 901), (901, 501)):
        for is_withdrawn in (True, False):
            wire = dialling(20_000)
            cross(wire, "SYN seq=1 id=500")
            wire.send()
            wire.wait(500_000)
            cross(wire, "SYN seq=1 id=399")
            wire.send()
            assert wire.connection.recv_id == RECV_ID + 901
            if is_withdrawn:  # a RESET withdraws its other SYN
                wire.receive(f"RESET seq=2 ack=999 id={other - 901}")
            wire.receive(f"STATE seq=2 ack=0 id={RECV_ID + taken - wire.connection.recv_id}")
            assert wire.events() == ["CONNECTED"]
            assert wire.connection.recv_id == RECV_ID + taken
            wire.receive("DATA seq=2 ack=0 data=hello")
            assert wire.read_bytes() == b"hello"


def test_a_peer_that_is_never_verified_is_given_up() -> None:
    wire = dialling(20_000)
    cross(wire, "SYN seq=1 id=500")
    wire.send()
    wire.wait(64_000_000)
    assert wire.events() == [f"CLOSED {errno.ETIMEDOUT}"]


def test_a_simultaneous_open_does_not_extend_the_time_limit_of_connect() -> None:
    wire = Wire(20_000)
    wire.connection.connect(now=wire.at, user_timeout_us=2_000_000)
    wire.send()
    cross(wire, f"SYN seq={1 - 7} id=500")
    assert wire.state is State.SYN_RECEIVED
    wire.wait(2_000_000)
    assert wire.events() == [f"CLOSED {errno.ETIMEDOUT}"]


def test_what_does_not_cross_is_left_to_others() -> None:
    wire = dialling(20_000)
    assert not cross(wire, "SYN seq=0 id=500"), "our own, or a draw"
    assert cross(wire, "SYN seq=1 id=500")
    assert not cross(wire, "SYN seq=2 id=900"), "another dialling of the same peer's"
    wire.receive("STATE seq=2 ack=0")
    assert not cross(wire, "SYN seq=1 id=500"), "settled"
    assert wire.state is State.CONNECTED

"""PROTOCOL.md §3: before the initiator has proved that it is where it says, next to nothing leaves."""

from __future__ import annotations

from tests.protocol.wire import RTT_US, Wire
from utpsocket.protocol import State

ON_THE_WIRE = 28  # IPv4's and UDP's headers


def test_one_small_packet_retransmitted_twice(base: int) -> None:
    wire = Wire.acceptor(base, is_proven=False)
    wire.write_bytes(5_000)
    wire.finish()
    assert wire.say() == ["DATA seq=1 ack=0 len=48"]
    at_once = sum(len(transmit.data) + ON_THE_WIRE for transmit in wire.transmits)
    assert at_once <= 3 * (20 + ON_THE_WIRE), "no more than three times what a SYN takes"
    said = [line.split(" ", 1)[1] for line in wire.wait(34_000_000)]
    assert said.count("DATA seq=1 ack=0 len=48") == 2
    assert said.count("STATE seq=1 ack=0") == 2
    assert len(said) == 4


def test_the_proof_lets_the_rest_go(base: int) -> None:
    wire = Wire.acceptor(base, is_proven=False)
    wire.write_bytes(48 + 3 * 1_380)
    assert wire.say() == ["DATA seq=1 ack=0 len=48"]
    wire.wait(RTT_US)
    wire.hear("STATE seq=1 ack=0")
    assert wire.say() == ["DATA seq=2..4 ack=0 len=1380"]
    wire.finish()
    assert wire.say() == ["FIN seq=5 ack=0"]


def test_a_server_that_greets_first_reaches_an_initiator_that_never_speaks(base: int) -> None:
    """libutp's initiator sends nothing after the SYN-ACK until its application does, but it acks."""
    wire = Wire.acceptor(base, is_proven=False)
    wire.write_bytes(30)
    assert wire.say() == ["DATA seq=1 ack=0 len=30"]
    wire.wait(RTT_US)
    wire.hear("STATE seq=1 ack=1")
    assert wire.state is State.CONNECTED


def test_a_guessed_ack_proves_nothing(base: int) -> None:
    wire = Wire.acceptor(base, is_proven=False)
    for ack in (-2, -3, 1, 2, 100, -30_000):
        wire.hear(f"DATA seq=1 ack={ack} data=spoof")
    assert wire.state is State.SYN_RECEIVED
    assert wire.say() == []
    assert wire.read_bytes() == b""


def test_empty_data_promotes_an_acceptor(base: int) -> None:
    """§3: what an initiator sends to libutp, where nothing else would let it speak."""
    wire = Wire.acceptor(base, is_proven=False)
    wire.hear("DATA seq=1 ack=0")
    assert wire.state is State.CONNECTED
    assert wire.wait(20_000) == ["10 STATE seq=1 ack=1"]

"""docs/protocol.md §3: before the initiator has proved that it is where it says, next to nothing leaves."""

from __future__ import annotations

import pytest

from tests.protocol.wire import RTT_US, Wire
from utpsocket.protocol import State

ON_THE_WIRE = 28  # IPv4's and UDP's headers


def sent_bytes(wire: Wire) -> int:
    """All that ever left, with IP's headers."""
    return sum(len(transmit.data) + ON_THE_WIRE for transmit in wire.transmits)


SYN_BYTES = 20 + ON_THE_WIRE


def test_one_small_packet(base: int) -> None:
    wire = Wire.acceptor(base, is_peer_verified=False)
    wire.write_bytes(5_000)
    wire.finish()
    assert wire.send() == ["DATA seq=1 ack=0 len=48"]
    assert wire.wait(70_000_000) == []
    wire.connection.abort()
    assert wire.send() == []
    assert sent_bytes(wire) <= 3 * SYN_BYTES


@pytest.mark.parametrize("written", [0, 1, 20, 47, 5_000])
@pytest.mark.parametrize("ending", ["", "finish", "abort", "discard", "finish abort"])
@pytest.mark.parametrize("syns", [1, 2, 5])
def test_never_more_than_three_times_what_was_received(base: int, written: int, ending: str, syns: int) -> None:
    """RFC 9000 §8.1, as IP counts: answers, greeting, its repetitions, FIN and RESET together."""
    wire = Wire.acceptor(base, is_peer_verified=False)
    wire.write_bytes(written)
    for syn_count in range(1, syns + 1):
        if syn_count > 1:
            wire.receive("SYN seq=0")
        wire.send()
        assert sent_bytes(wire) <= 3 * SYN_BYTES * syn_count
        wire.wait(5_000_000)
        assert sent_bytes(wire) <= 3 * SYN_BYTES * syn_count
        wire.receive("DATA seq=1 ack=77 data=guessed", "RESET seq=9 ack=9")
    for verb in ending.split():
        getattr(wire.connection, verb)(**({} if verb == "abort" else {"now": wire.at}))
        wire.send()
        wire.wait(1_000_000)
    wire.wait(70_000_000)
    assert sent_bytes(wire) <= 3 * SYN_BYTES * syns


def test_a_repeated_syn_pays_for_the_greeting_again(base: int) -> None:
    wire = Wire.acceptor(base, is_peer_verified=False)
    wire.write_bytes(30)
    assert wire.send() == ["DATA seq=1 ack=0 len=30"]
    assert wire.wait(3_000_000) == []
    wire.receive("SYN seq=0")
    assert wire.send() == ["STATE seq=1 ack=0", "DATA seq=1 ack=0 len=30"]


def test_the_proof_lets_the_rest_go(base: int) -> None:
    wire = Wire.acceptor(base, is_peer_verified=False)
    wire.write_bytes(48 + 3 * 1_380)
    assert wire.send() == ["DATA seq=1 ack=0 len=48"]
    wire.wait(RTT_US)
    wire.receive("STATE seq=1 ack=0")
    assert wire.send() == ["DATA seq=2..4 ack=0 len=1380"]
    wire.finish()
    assert wire.send() == ["FIN seq=5 ack=0"]


def test_a_server_that_sends_first_reaches_an_initiator_that_sends_nothing(base: int) -> None:
    """libutp's initiator sends nothing after the SYN-ACK until its application does, but it acks."""
    wire = Wire.acceptor(base, is_peer_verified=False)
    wire.write_bytes(30)
    assert wire.send() == ["DATA seq=1 ack=0 len=30"]
    wire.wait(RTT_US)
    wire.receive("STATE seq=1 ack=1")
    assert wire.state is State.CONNECTED


def test_a_guessed_ack_verifies_nothing(base: int) -> None:
    wire = Wire.acceptor(base, is_peer_verified=False)
    for ack in (-2, -3, 2, 3, 100, -30_000):
        wire.receive(f"DATA seq=1 ack={ack} data=spoof")
    assert wire.state is State.SYN_RECEIVED
    assert wire.send() == []
    assert wire.read_bytes() == b""


def test_empty_data_promotes_an_acceptor(base: int) -> None:
    """§3: what an initiator sends to libutp, where nothing else would let it speak."""
    wire = Wire.acceptor(base, is_peer_verified=False)
    wire.receive("DATA seq=1 ack=0")
    assert wire.state is State.CONNECTED
    assert wire.wait(20_000) == ["10 STATE seq=1 ack=1"]

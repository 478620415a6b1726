"""docs/protocol.md §2: ids, numbers, and what becomes of lost, repeated and overtaken parts of a handshake."""

from __future__ import annotations

import errno

import pytest

from tests.protocol.wire import RECV_ID, RTT_US, Wire
from utpsocket.protocol import PacketType, State
from utpsocket.protocol.handshake import SYN_TRIES
from utpsocket.protocol.packet import HEADER_BYTES, LARGE_SYN_BYTES, decode


def test_initiator_sends_one_bare_state_on_the_answer(base: int) -> None:
    """§3: it verifies our address for acceptors of our kind and is harmless to others."""
    wire = Wire(base)
    wire.connect()
    assert wire.send() == ["SYN seq=0 ack=0"]
    assert int.from_bytes(wire.last[2:4], "big") == RECV_ID
    assert wire.last_window == 0x380000, "a SYN carries our window, up to what Wireshark accepts"
    wire.wait(RTT_US)
    wire.receive("STATE seq=1 ack=0")
    assert wire.events() == ["CONNECTED"]
    assert wire.send() == ["STATE seq=1 ack=0"]
    assert int.from_bytes(wire.last[2:4], "big") == RECV_ID + 1
    assert wire.send() == []


def test_state_never_consumes_a_number(base: int) -> None:
    """§2: the SYN-ACK's seq is the acceptor's next DATA, so its DATA has the same one."""
    wire = Wire.initiator(base)
    wire.receive("DATA seq=1 ack=0 data=hello", "DATA seq=2 ack=0 data=,you")
    assert wire.read_bytes() == b"hello,you"
    assert wire.send() == ["STATE seq=1 ack=2"]
    wire.write_bytes(10)
    assert wire.send() == ["DATA seq=1 ack=2 len=10"]


def test_acceptor_answers_with_a_bare_state_and_is_connected_by_proof(base: int) -> None:
    wire = Wire.acceptor(base, is_peer_verified=False)
    assert wire.state is State.SYN_RECEIVED
    assert wire.events() == []
    assert int.from_bytes(wire.last[2:4], "big") == RECV_ID - 1
    wire.wait(RTT_US)
    wire.receive("DATA seq=1 ack=0 data=hi")
    assert wire.events() == ["CONNECTED"]
    assert wire.read_bytes() == b"hi"


def test_the_round_trip_is_measured_by_the_handshake(base: int) -> None:
    assert Wire.initiator(base).connection.stats().rtt_us == RTT_US
    assert Wire.acceptor(base).connection.stats().rtt_us == RTT_US


def test_a_repeated_syn_leaves_the_round_trip_unknown(base: int) -> None:
    """Karn: it is unknown which one was answered."""
    wire = Wire(base)
    wire.connect()
    wire.send()
    assert wire.wait(1_100_000) == ["1000 SYN seq=0 ack=0"]
    wire.receive("STATE seq=1 ack=0")
    assert wire.connection.stats().rtt_us == 0


def test_syn_is_repeated_and_given_up(base: int) -> None:
    """§9: first after 1 s, doubled, six tries; in the end a RESET ends what an acceptor may have made of them."""
    wire = Wire(base)
    wire.connect()
    assert wire.send() == ["SYN seq=0 ack=0"]
    sent = [line.split()[:2] for line in wire.wait(64_000_000)]
    assert sent == [[time, "SYN"] for time in ("1000", "3000", "7000", "15000", "31000")] + [["63000", "RESET"]]
    assert wire.events() == [f"CLOSED {errno.ETIMEDOUT}"]
    assert wire.connection.timeout_at() is None


@pytest.mark.parametrize(("retries", "seconds"), [(1, 3), (2, 7), (7, 247), (127, 247 + 120 * 120)])
def test_syns_are_repeated_as_often_as_is_said(base: int, retries: int, seconds: int) -> None:
    """TCP_SYNCNT, with Linux's waits: doubled, up to two minutes."""
    wire = Wire(base)
    wire.connection.set_syn_retries(retries)
    wire.connect()
    wire.send()
    sent = wire.wait(seconds * 1_000_000 - 1)
    assert len(sent) == retries
    assert wire.events() == []
    wire.wait(1)
    assert wire.events() == [f"CLOSED {errno.ETIMEDOUT}"]


def test_a_lost_answer_of_a_silent_acceptor_costs_a_second_and_a_half(base: int) -> None:
    """§2: libutp ignores a SYN it has seen; a fresh id gets a fresh answer, and the other connection a RESET."""
    wire = Wire(base, spare_ids=(RECV_ID + 100, RECV_ID + 200))
    assert wire.connection.recv_ids == (RECV_ID, RECV_ID + 100, RECV_ID + 200)
    wire.connect()
    assert wire.send() == ["SYN seq=0 ack=0"]
    assert wire.wait(1_400_000) == ["1000 SYN seq=0 ack=0"]
    assert wire.connection.recv_id == RECV_ID
    assert wire.wait(200_000) == ["1500 SYN seq=0 ack=0"]
    assert wire.connection.recv_id == RECV_ID + 100
    wire.receive("STATE seq=500 ack=0")
    assert wire.events() == ["CONNECTED"]
    reset, state = wire.send()
    assert reset.startswith("RESET seq=1 ") and reset.endswith(" id=+1")
    assert state == "STATE seq=1 ack=499"
    assert set(wire.connection.recv_ids) == {RECV_ID, RECV_ID + 100}
    # Its late answer, or its keepalives, are answered by RESET: a few times.
    for _ in range(5):
        wire.receive("STATE seq=30 ack=0 id=-100")
    assert wire.send() == ["RESET seq=1 ack=30 id=+0"] * 3
    assert wire.state is State.CONNECTED


def test_the_answer_of_an_earlier_syn_is_as_good(base: int) -> None:
    """§2: whichever answer comes first is taken, what the other SYN made gets a RESET."""
    wire = Wire(base, spare_ids=(RECV_ID + 100,))
    wire.connect()
    wire.send()
    wire.wait(1_600_000)
    assert wire.connection.recv_id == RECV_ID + 100
    wire.receive("STATE seq=1 ack=0 id=-100")
    assert wire.connection.recv_id == RECV_ID
    sent = wire.send()
    assert sent[0].startswith("RESET seq=1 ") and sent[0].endswith(" id=+101")
    assert sent[1:] == ["STATE seq=1 ack=0"]
    wire.receive("DATA seq=1 ack=0 data=ok")
    assert wire.read_bytes() == b"ok"


def test_a_syn_that_is_repeated_is_large_and_means_the_same(base: int) -> None:
    """In a flood of small ones it comes in (flood.py). Under a fresh id it is small, for acceptors that take no
    extensions and paths that take nothing large, and where there is no fresh id it is never large.
    """
    wire = Wire(base, spare_ids=(RECV_ID + 100,))
    wire.connect()
    assert wire.send() == ["SYN seq=0 ack=0"]
    first = wire.last
    assert wire.wait(1_400_000) == ["1000 SYN seq=0 ack=0"]
    second, transmit = wire.last, wire.transmits[-1]
    assert wire.wait(200_000) == ["1500 SYN seq=0 ack=0"]
    assert (len(first), len(second), len(wire.last)) == (HEADER_BYTES, LARGE_SYN_BYTES, HEADER_BYTES)
    assert transmit.may_fragment
    packet = decode(memoryview(second))
    assert packet is not None and not packet.payload and packet.sack is None
    while wire.connection.state is State.SYN_SENT:
        wire.wait(10_000_000)
    sizes = [len(transmit.data) for transmit in wire.transmits if transmit.data[0] >> 4 == PacketType.SYN]
    assert sizes == [HEADER_BYTES, LARGE_SYN_BYTES] + [HEADER_BYTES] * (SYN_TRIES - 1)
    assert (first[0], first[2:4], first[16:]) == (second[0], second[2:4], second[16:HEADER_BYTES])
    other = Wire(base)
    other.receive_bytes(second)
    assert other.connection.state is State.SYN_RECEIVED


def test_without_spare_ids_the_same_syn_is_repeated(base: int) -> None:
    wire = Wire(base)
    wire.connect()
    wire.send()
    assert [line.split()[0] for line in wire.wait(4_000_000)] == ["1000", "3000"]
    assert wire.connection.recv_id == RECV_ID


def test_a_withdrawn_syn_ends_the_half_open_connection_it_made(base: int) -> None:
    """The RESET of an initiator that never saw our answer cannot ack our number; it knows its own."""
    wire = Wire.acceptor(base, is_peer_verified=False)
    wire.receive("RESET seq=1 ack=777 id=recv")
    assert wire.events() == [f"CLOSED {errno.ECONNRESET}"]
    blind = Wire.acceptor(base, is_peer_verified=False)
    blind.receive("RESET seq=3 ack=777 id=recv")
    assert blind.state is State.SYN_RECEIVED


def test_a_second_answer_with_another_number_replaces_the_first(base: int) -> None:
    """§2: libtorrent then made a second connection and forgot the first."""
    wire = Wire(base)
    wire.connect()
    wire.send()
    wire.wait(1_100_000)
    wire.receive("STATE seq=1 ack=0", "STATE seq=20001 ack=0")
    assert wire.send()[-1] == "STATE seq=1 ack=20000"
    wire.receive("DATA seq=20001 ack=0 data=second")
    assert wire.read_bytes() == b"second"


def test_a_second_answer_is_no_news_once_data_came_or_when_the_syn_was_not_repeated(base: int) -> None:
    wire = Wire.initiator(base)
    wire.receive("STATE seq=20001 ack=0", "DATA seq=1 ack=0 data=first")
    assert wire.read_bytes() == b"first"
    again = Wire(base)
    again.connect()
    again.send()
    again.wait(1_100_000)
    again.receive(
        "STATE seq=1 ack=0", "DATA seq=1 ack=0 data=first", "STATE seq=20001 ack=0", "DATA seq=2 ack=0 data=+"
    )
    assert again.read_bytes() == b"first+"


def test_a_state_after_data_on_its_way_is_no_second_answer(base: int) -> None:
    wire = Wire(base)
    wire.connect()
    wire.send()
    wire.wait(1_100_000)
    wire.receive("STATE seq=1 ack=0", "STATE seq=12 ack=0", "DATA seq=1 ack=0 data=first")
    assert wire.read_bytes() == b"first"


def test_a_repeated_syn_is_answered_identically_but_not_at_any_rate(base: int) -> None:
    """§2: the same STATE, even when DATA has gone out since, or the initiator would skip that DATA."""
    wire = Wire.acceptor(base, is_peer_verified=False)
    wire.write_bytes(5)
    assert wire.send() == ["DATA seq=1 ack=0 len=5"]
    wire.receive("SYN seq=0")
    assert wire.send() == [], "too soon after the answer"
    wire.wait(150_000)
    wire.receive("SYN seq=0", "SYN seq=0", "SYN seq=0")
    assert wire.send() == ["STATE seq=1 ack=0"]


def test_another_syn_under_the_same_id_is_dropped(base: int) -> None:
    """Ids repeat (libutp's rand() is unseeded): a stranger's SYN must not disturb a connection."""
    wire = Wire.acceptor(base)
    wire.wait(1_000_000)
    wire.receive("SYN seq=900")
    assert wire.send() == []
    assert wire.connection.stats().dropped_packets == 1


def test_the_proof_is_repeated_until_the_acceptor_shows_that_it_has_it(base: int) -> None:
    """A lost bare STATE must not leave both sides silent. The acceptor does not ask: that would amplify."""
    acceptor = Wire.acceptor(base, is_peer_verified=False)
    assert acceptor.wait(30_000_000) == []
    wire = Wire.initiator(base, is_known=False)
    sent = wire.wait(60_000_000)
    assert [line.split()[0] for line in sent] == ["220", "620", "1420", "3020", "6220", "12620", "25420"]
    assert {line.split(" ", 1)[1] for line in sent} == {"STATE seq=1 ack=0"}
    again = Wire.initiator(base, is_known=False)
    again.receive("STATE seq=1 ack=0")  # as an acceptor of an older kind asks
    assert again.send() == ["STATE seq=1 ack=0"]


def test_what_an_acceptor_sends_only_when_verified_ends_the_repeated_acks(base: int) -> None:
    """A second packet, or an ack. The first packet may come before the proof."""
    wire = Wire.initiator(base, is_known=False)
    wire.receive("DATA seq=1 ack=0 data=hello")
    assert wire.wait(300_000) == ["30 STATE seq=1 ack=1", "220 STATE seq=1 ack=1"]
    wire.receive("DATA seq=2 ack=0 data=again")
    assert wire.wait(30_000_000) == ["330 STATE seq=1 ack=2"]
    writer = Wire.initiator(base, is_known=False)
    writer.write_bytes(10)
    writer.send()
    writer.receive("STATE seq=1 ack=1")
    assert writer.wait(30_000_000) == []


def test_to_the_family_of_libutp_the_repeated_proof_is_empty_data(base: int) -> None:
    """§3: libutp's acceptor can neither send nor take a FIN before a first DATA; its answer reports no delay."""
    wire = Wire(base)
    wire.connect()
    wire.send()
    wire.wait(RTT_US)
    wire.receive("STATE seq=1 ack=0 diff=0")
    assert wire.send() == ["STATE seq=1 ack=0"]
    sent = wire.wait(1_000_000)
    assert sent[0] == "220 DATA seq=1 ack=0"
    assert {line.split(" ", 1)[1] for line in sent} == {"DATA seq=1 ack=0"}
    wire.receive("STATE seq=1 ack=1")
    assert wire.wait(30_000_000) == []
    wire.write_bytes(5)
    assert wire.send() == ["DATA seq=2 ack=0 len=5"]


def test_the_syn_ack_reports_no_delay(base: int) -> None:
    """libktorrent takes a true one for the delay of a packet of its own, and waits for hours on the first loss."""
    wire = Wire.acceptor(base, is_peer_verified=False)
    assert wire.last[8:12] == bytes(4)
    wire.write_bytes(5)
    wire.send()
    assert wire.last[8:12] == bytes(4)


def test_a_half_open_connection_times_out(base: int) -> None:
    """§3: libutp's never does, and 3,000 spoofed SYNs fill it."""
    wire = Wire.acceptor(base, is_peer_verified=False)
    wire.wait(62_999_000)
    assert wire.state is State.SYN_RECEIVED
    wire.wait(2_000)
    assert wire.events() == [f"CLOSED {errno.ETIMEDOUT}"]
    assert wire.send() == []


def test_a_silent_initiators_first_keepalive_verifies_it(base: int) -> None:
    """§7: its ack is one too low, and still only a peer that has seen our number can send it."""
    wire = Wire.acceptor(base, is_peer_verified=False)
    wire.wait(29_000_000)
    wire.receive("STATE seq=1 ack=-1")
    assert wire.events() == ["CONNECTED"]


@pytest.mark.parametrize("first", ["STATE seq=1 ack=5", "STATE seq=1 ack=-1", "STATE seq=1 ack=0 id=+1", "SYN seq=4"])
def test_only_an_ack_of_our_syn_under_our_id_answers_it(base: int, first: str) -> None:
    wire = Wire(base)
    wire.connect()
    wire.send()
    wire.receive(first)
    assert wire.state is State.SYN_SENT
    assert wire.send() == []
    wire.receive("STATE seq=1 ack=0")
    assert wire.state is State.CONNECTED


def test_data_that_overtook_the_answer_waits_for_it(base: int) -> None:
    """Only the STATE says where the stream begins: DATA 2 alone would hide DATA 1 for ever."""
    wire = Wire(base)
    wire.connect()
    wire.send()
    wire.receive("DATA seq=2 ack=0 data=two", "DATA seq=1 ack=0 data=one")
    assert wire.state is State.SYN_SENT
    wire.receive("STATE seq=1 ack=0")
    assert wire.read_bytes() == b"onetwo"
    assert wire.send() == ["STATE seq=1 ack=2"]


def test_data_that_comes_again_is_an_answer(base: int) -> None:
    """§2: any type that acks our SYN is accepted (libtorrent); what is sent again first is the oldest."""
    wire = Wire(base)
    wire.connect()
    wire.send()
    wire.receive("DATA seq=1 ack=0 data=one", "DATA seq=2 ack=0 data=two", "DATA seq=1 ack=0 data=one")
    assert wire.state is State.SYN_SENT, "the network may have doubled it"
    wire.wait(500_000)
    wire.receive("DATA seq=1 ack=0 data=one")
    assert wire.events() == ["CONNECTED"]
    assert wire.read_bytes() == b"onetwo"


def test_early_data_is_held_in_bounds(base: int) -> None:
    wire = Wire(base)
    wire.connect()
    wire.send()
    for number in range(1, 200):
        wire.receive(f"DATA seq={number} ack=0 len=1000")
    wire.receive("STATE seq=1 ack=0")
    assert len(wire.read_bytes()) == 8_000


def test_a_reset_refuses(base: int) -> None:
    for words in ("id=recv", "id=send"):
        wire = Wire(base)
        wire.connect()
        wire.send()
        wire.receive(f"RESET seq=99 ack=0 {words}")
        assert wire.events() == [f"CLOSED {errno.ECONNREFUSED}"]
        assert wire.send() == []


@pytest.mark.parametrize("blind", ["RESET seq=0 ack=1", "RESET seq=0 ack=-1", "RESET seq=0 ack=0 id=+7"])
def test_a_guessed_reset_refuses_nothing(base: int, blind: str) -> None:
    wire = Wire(base)
    wire.connect()
    wire.send()
    wire.receive(blind)
    assert wire.state is State.SYN_SENT


def test_extension_2_on_the_answer_is_skipped(base: int) -> None:
    """§5: Transmission's SYN-ACKs carry it."""
    wire = Wire(base)
    wire.connect()
    wire.send()
    wire.receive("STATE seq=1 ack=0 ext=2:0000000000000000")
    assert wire.state is State.CONNECTED


def test_a_syn_with_window_0_does_not_close_the_window(base: int) -> None:
    """§2: libtorrent and librqbit send 0."""
    wire = Wire(base)
    wire.our_base = (base - 1) & 0xFFFF
    wire.receive("SYN seq=0 wnd=0")
    assert wire.send() == ["STATE seq=1 ack=0"]
    wire.write_bytes(10)
    assert wire.send() == ["DATA seq=1 ack=0 len=10"]


def test_an_icmp_error_is_the_errno_where_no_answer_comes(base: int) -> None:
    for error in (errno.ECONNREFUSED, errno.EHOSTUNREACH):
        wire = Wire(base)
        wire.connect()
        wire.send()
        wire.connection.handle_icmp(
            error, quoted_seq16=(base + 1) & 0xFFFF, mtu_bytes=0, datagram_bytes=20, now=wire.at
        )
        assert wire.state is State.SYN_SENT, "it quotes something else"
        wire.connection.handle_icmp(error, quoted_seq16=base, mtu_bytes=0, datagram_bytes=20, now=wire.at)
        assert wire.events() == [f"CLOSED {error}"]

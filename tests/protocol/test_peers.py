"""Scripted peers with the quirks of real ones, over a simulated path: everything arrives all the same."""

from __future__ import annotations

import errno

import pytest

from tests.protocol.wire import RTT_US, Wire
from tests.simulator import WRAP_SEQ, Application, Burst, Host, Node, Pair, Simulator, path
from utpsocket.protocol import State
from utpsocket.protocol.packet import HEADER_BYTES, MAX_SACK_BYTES, PacketType, decode, encode


class Rewrite:
    """Changes each datagram on its way; None drops it."""

    def __init__(self, then: Node, change: object) -> None:
        self._then = then
        self._change = change

    def put(self, burst: Burst | None, *, now: int) -> None:
        assert burst is not None
        changed = [self._change(datagram) for datagram in burst.datagrams]  # type: ignore[operator]
        self._then.put(burst.of([datagram for datagram in changed if datagram is not None]), now=now)


def with_sack(datagram: bytes, sack: bytes) -> bytes:
    """The same STATE with another selective ack, or none."""
    packet = decode(memoryview(datagram))
    assert packet is not None
    if packet.type != PacketType.STATE:
        return datagram
    return encode(
        PacketType.STATE,
        packet.connection_id,
        timestamp_us=packet.timestamp_us,
        difference_us=packet.difference_us,
        window_bytes=packet.window_bytes,
        seq=packet.seq16,
        ack=packet.ack16,
        sack=sack,
    )


def sack_of(datagram: bytes) -> bytes:
    packet = decode(memoryview(datagram))
    assert packet is not None
    return b"" if packet.sack is None else bytes(packet.sack)


def no_sack(datagram: bytes) -> bytes:
    return with_sack(datagram, b"")


def libutps_sack(datagram: bytes) -> bytes:
    """Thirty packets and no more."""
    sack = sack_of(datagram)
    if not any(sack):
        return with_sack(datagram, b"")
    first = int.from_bytes(sack[:4], "little") & (1 << 30) - 1
    return with_sack(datagram, first.to_bytes(4, "little"))


def libtorrents_sack(datagram: bytes) -> bytes:
    """As many bytes as the span takes."""
    sack = sack_of(datagram).rstrip(b"\0")
    return with_sack(datagram, sack)


def no_delay(datagram: bytes) -> bytes:
    return datagram[:8] + bytes(4) + datagram[12:]


def never_a_delay(datagram: bytes) -> bytes:
    return datagram[:8] + b"\x7f\xff\xff\xff" + datagram[12:]


def constant_window(datagram: bytes) -> bytes:
    return datagram[:12] + (300_000).to_bytes(4, "big") + datagram[16:]


CHANGES = [no_sack, libutps_sack, libtorrents_sack, no_delay, never_a_delay, constant_window]


@pytest.mark.parametrize("first_seq", [1, WRAP_SEQ])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_peers_way_of_acking(change: object, first_seq: int) -> None:
    simulator = Simulator(8)
    link = {"delay_us": 10_000, "rate_bits": 20_000_000, "loss": 0.01}
    pair = Pair(
        simulator,
        path(simulator, **link),  # type: ignore[arg-type]
        Rewrite(path(simulator, delay_us=10_000), change),
        a=Application(1_500_000, writes=1, expects=2),
        b=Application(0, writes=2, expects=1),
        first_seq=first_seq,
    )
    pair.finish()
    stats = pair.a.connection.stats()
    assert pair.a.dropped_datagrams > 5
    # Without any selective ack one hole is repaired in each round trip, and some are found by time alone.
    assert pair.a.spurious <= (40 if change is no_sack else 5)
    assert stats.timeouts <= (4 if change is no_sack else 1)
    assert simulator.elapsed_us < 6_000_000


class ShallowHost(Host):
    """Keeps only what is less than `depth` packets ahead of a hole, and never says how much that is."""

    depth = 256

    def arrive(self, datagrams: list[bytes], *, now: int) -> None:
        reassembly = self.connection.receive.reassembly
        for datagram in datagrams:
            ahead = (int.from_bytes(datagram[16:18], "big") - reassembly.next_seq) & 0xFFFF
            if datagram[0] >> 4 <= PacketType.FIN and len(datagram) > HEADER_BYTES and self.depth <= ahead < 0x8000:
                self.peer.dropped(datagram)
                continue
            super().arrive([datagram], now=now)


def test_a_peer_with_a_small_reorder_buffer_is_found_out() -> None:
    """§7: less in flight if loss far beyond the ack shows a smaller reorder buffer (anacrolix 256, JS 512)."""
    simulator = Simulator(9)

    def short_sack(datagram: bytes) -> bytes:
        return with_sack(datagram, sack_of(datagram)[: MAX_SACK_BYTES - 4])  # never proves more than 900

    lost = {600, 1_400, 2_200, 3_000, 3_800}
    pair = Pair(
        simulator,
        path(simulator, delay_us=100_000, mask=lost),
        Rewrite(path(simulator, delay_us=100_000), short_sack),
        a=Application(12_000_000, writes=1, expects=2),
        b=Application(0, writes=2, expects=1),
    )
    shallow = ShallowHost(
        simulator,
        pair.b.application,
        recv_id=pair.b.connection.recv_id,
        first_seq=pair.b.connection.send.flights.una_seq,
    )
    shallow.peer, shallow.to_peer = pair.a, pair.b.to_peer
    pair.a.peer = pair.b = shallow
    pair.hosts = (pair.a, shallow)
    pair.a.connection.send.controller.window_bytes = 900 * 1_452
    pair.finish()
    assert pair.a.connection.send.peer.reorder_packets <= 257


@pytest.mark.parametrize("first_seq", [1, WRAP_SEQ])
def test_a_lost_syn_ack_costs_a_second(first_seq: int) -> None:
    simulator = Simulator(10)
    pair = Pair(
        simulator,
        path(simulator, delay_us=10_000),
        path(simulator, delay_us=10_000, mask=(0,)),
        a=Application(10_000, writes=1, expects=2),
        b=Application(0, writes=2, expects=1),
        first_seq=first_seq,
    )
    pair.finish()
    assert 1_000_000 <= pair.a.application.connected_at - simulator.start_us <= 1_100_000


# ── habits: each test names the implementations that have them ──


def test_a_first_data_that_acks_the_answers_own_number(base: int) -> None:
    """rust-utp and the first implementation of all read BEP 29's diagram: the SYN-ACK has a number of its own."""
    wire = Wire.acceptor(base, is_peer_verified=False)
    wire.wait(RTT_US)
    wire.receive("DATA seq=1 ack=1 data=hello")
    assert wire.events() == ["CONNECTED"]
    assert wire.read_bytes() == b"hello"
    wire.write_bytes(10)
    assert wire.send() == ["DATA seq=2 ack=1 len=10"]
    wire.receive("STATE seq=2 ack=2")
    assert wire.connection.is_flushed


def test_an_ack_of_our_greeting_is_not_taken_for_that_habit(base: int) -> None:
    wire = Wire.acceptor(base, is_peer_verified=False)
    wire.write_bytes(5)
    assert wire.send() == ["DATA seq=1 ack=0 len=5"]
    wire.receive("DATA seq=1 ack=1 data=hello")
    assert wire.connection.is_flushed
    wire.write_bytes(10)
    assert wire.send() == ["DATA seq=2 ack=1 len=10"]


@pytest.mark.parametrize("words", ["id=recv", "id=send"])
def test_resets_that_ack_nothing_end_a_connection_that_is_silent(base: int, words: str) -> None:
    """ethereum/utp sends ack 0 and any seq, in answer to each packet of ours: one half a second later counts."""
    wire = Wire.initiator(base)
    wire.write_bytes(100)
    wire.send()
    started = wire.now
    for _ in range(40):
        wire.receive(f"RESET seq=31000 ack=20000 {words}")
        if wire.state is not State.CONNECTED:
            break
        while not wire.wait(50_000):
            pass
    assert wire.events() == [f"CLOSED {errno.ECONNRESET}"]
    assert wire.now - started < 2_000_000


def test_an_idle_connection_is_asked_whether_such_a_reset_was_its_peers(base: int) -> None:
    wire = Wire.initiator(base)
    wire.write_bytes(10)
    wire.send()
    wire.receive("STATE seq=1 ack=1")
    wire.wait(20_000_000)
    wire.receive("RESET seq=31000 ack=20000")
    assert wire.send() == ["DATA seq=1 ack=0 len=1"]
    wire.wait(RTT_US)
    wire.receive("RESET seq=31001 ack=20000")
    assert [line.split(" ", 1)[1] for line in wire.wait(1_000_000)] == ["DATA seq=1 ack=0 len=1"]
    wire.receive("RESET seq=31002 ack=20000")
    assert wire.events() == [f"CLOSED {errno.ECONNRESET}"]


def test_such_resets_end_no_connection_whose_peer_answers(base: int) -> None:
    """An attacker that tries all 65,536 ids causes two small probes a second, and no more."""
    wire = Wire.initiator(base)
    wire.write_bytes(10)
    wire.send()
    wire.receive("STATE seq=1 ack=1")
    asked = 0
    for _ in range(200):
        wire.receive("RESET seq=31000 ack=20000")
        sent = wire.wait(RTT_US)
        sent += wire.send()
        asked += len(sent)
        if sent:
            wire.receive("STATE seq=1 ack=1")
        wire.wait(30_000)
    assert wire.state is State.CONNECTED
    assert 10 <= asked <= 20


def test_a_refusal_that_acks_nothing_must_come_twice(base: int) -> None:
    wire = Wire(base)
    wire.connect()
    wire.send()
    wire.receive("RESET seq=31000 ack=20000", "RESET seq=31001 ack=20000")
    assert wire.state is State.SYN_SENT
    wire.wait(1_000_000)
    wire.receive("RESET seq=31002 ack=20000")
    assert wire.events() == [f"CLOSED {errno.ECONNREFUSED}"]


def half_closed(base: int) -> Wire:
    wire = Wire.initiator(base)
    wire.write_bytes(10)
    wire.finish()
    assert wire.send() == ["DATA seq=1 ack=0 len=10", "FIN seq=2 ack=0"]
    wire.wait(RTT_US)
    wire.receive("STATE seq=1 ack=2")
    return wire


def test_a_peer_that_forgot_us_with_our_fin_is_found_out(base: int) -> None:
    """Transmission 3.00, ethereum/utp and rust-utp never send their own FIN: recv() would wait for ever. That is no end
    of file: no FIN has come.
    """
    wire = half_closed(base)
    (question,) = wire.wait(5_000_000)
    assert question.endswith("DATA seq=2 ack=0 len=1")
    wire.receive("RESET seq=9 ack=2 id=send")
    assert wire.events() == [f"CLOSED {errno.ECONNRESET}"]
    assert not wire.connection.has_eof


def test_a_peer_that_is_gone_without_a_word_is_given_up(base: int) -> None:
    wire = half_closed(base)
    asked = wire.wait(1_500_000_000)
    assert len(asked) == 10, "nine questions, and a RESET"
    assert wire.events() == [f"CLOSED {errno.ETIMEDOUT}"]
    assert wire.now > 900_000_000


def test_a_peer_that_answers_is_waited_for_as_long_as_it_takes(base: int) -> None:
    wire = half_closed(base)
    asked = 0
    for _ in range(3_600):
        asked += (sent := len(wire.wait(1_000_000)))
        if sent:
            wire.receive("STATE seq=1 ack=2")
    assert wire.state is State.CONNECTED
    assert asked < 40
    wire.receive("DATA seq=1 ack=2 data=answer", "FIN seq=2 ack=2")
    assert wire.read_bytes() == b"answer"
    assert wire.events() == ["CLOSED 0"]


class LibutpAcceptor:
    """What of libutp's acceptor differs: it takes a FIN and sends data only after a first DATA. Just enough of it."""

    def __init__(self, wire: Wire, greeting: str = "") -> None:
        self.wire = wire
        self.greeting = greeting
        self.is_promoted = False
        self.acked = 0
        self.got_fin = False

    def receive(self, lines: list[str]) -> None:
        for line in lines:
            kind, *words = line[line.index(" ") + 1 :].split() if line[0].isdigit() else line.split()
            seq = int(words[0].split("=")[1].split("..")[0])
            if kind == "DATA":
                self.is_promoted = True
            if kind == "STATE" or not self.is_promoted or seq != self.acked + 1:
                continue
            self.acked = seq
            self.got_fin = kind == "FIN"
            self.wire.receive(f"STATE seq=1 ack={seq}")
            if self.greeting:
                self.wire.receive(f"DATA seq=1 ack={seq} data={self.greeting}")
                self.greeting = ""


def to_libutp(base: int) -> Wire:
    wire = Wire(base)
    wire.connect()
    wire.send()
    wire.wait(RTT_US)
    wire.receive("STATE seq=1 ack=0 diff=0")
    return wire


def test_libutps_acceptor_may_send_first(base: int) -> None:
    wire = to_libutp(base)
    peer = LibutpAcceptor(wire, greeting="welcome")
    peer.receive(wire.send() + wire.wait(1_000_000))
    assert wire.read_bytes() == b"welcome"


def test_libutps_acceptor_receives_a_close_without_data(base: int) -> None:
    wire = to_libutp(base)
    peer = LibutpAcceptor(wire)
    wire.finish()
    peer.receive(wire.send())
    assert peer.got_fin
    assert wire.connection.is_flushed


def test_librqbit_never_gets_empty_data(base: int) -> None:
    """It drops them unacked, and would wait for their number for ever. Its answer reports a delay."""
    wire = Wire.initiator(base, is_known=False)
    sent = wire.wait(70_000_000)
    assert sent
    assert all("STATE" in line for line in sent)
    wire.finish()
    assert wire.send() == ["FIN seq=1 ack=0"]


def test_wireshark_takes_all_of_a_short_connection_for_utp(base: int) -> None:
    """Its dissector's bt-utp.max_window_size is 0x380000 by default."""
    wire = Wire.initiator(base)
    for seq in range(1, 200):
        wire.receive(f"DATA seq={seq} ack=0 len=1000")
        wire.read_bytes()
        wire.send()
    assert all(int.from_bytes(transmit.data[12:16], "big") <= 0x380000 for transmit in wire.transmits)
    wire.connection.receive.received_bytes = 17 << 20
    wire.receive("DATA seq=200 ack=0 len=1000", "DATA seq=201 ack=0 len=1000")
    wire.read_bytes()
    wire.send()
    assert wire.last_window > 0x380000, "who receives much may need more"

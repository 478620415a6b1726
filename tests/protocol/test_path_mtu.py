"""docs/protocol.md §10: how large a packet this path carries, and what a wrong guess costs."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from tests.protocol.wire import RTT_US, Wire
from tests.simulator import WRAP_SEQ, Application, Delay, Mtu, Pair, Simulator, path
from utpsocket.protocol import Config
from utpsocket.protocol.fragmentation import PieceAssembly, compose_pieces
from utpsocket.protocol.known_path import KnownPath
from utpsocket.protocol.packet import MAX_PADDING_BYTES, MIN_PADDING_BYTES, decode, encode, pad
from utpsocket.protocol.pathmtu import FLOOR_BYTES, FLOOR_IPV6_BYTES, SEARCH_AGAIN_US, PathMtu


def ack_everything(wire: Wire) -> None:
    """The peer has all that was sent."""
    wire.wait(RTT_US)
    wire.receive(f"STATE seq=1 ack={wire.connection.send.flights.next_seq - 1 - wire.base}")
    wire.send()


def bulk(base: int, **options: Any) -> Wire:
    """An initiator with much to send, at the moment its first probe has left."""
    wire = Wire.initiator(base, config=Config(**options))
    wire.write_bytes(200_000)
    wire.send()
    for _ in range(4):
        if any(transmit.is_mtu_probe for transmit in wire.transmits):
            break
        ack_everything(wire)
    return wire


def test_the_first_probe_is_the_ceiling_and_follows_sixteen_packets(base: int) -> None:
    wire = bulk(base)
    data = [transmit for transmit in wire.transmits if len(transmit.data) > 20]
    probe = next(index for index, transmit in enumerate(data) if transmit.is_mtu_probe)
    assert sum(transmit.count for transmit in data[:probe]) == 16
    assert [len(datagram) for datagram in data[probe].datagrams()] == [1_472]
    assert not data[probe].may_fragment
    assert all(transmit.may_fragment for transmit in data[:probe]), "unproven sizes may be fragmented"
    ack_everything(wire)
    assert wire.connection.stats().packet_bytes == 1_472
    assert not wire.transmits[-1].may_fragment, "a proven size need not be"


def test_a_probe_is_surrounded_by_other_packets(base: int) -> None:
    """Its loss would show nothing, and cost a timeout."""
    wire = Wire.initiator(base)
    for _ in range(40):
        wire.write_bytes(1_380)
        wire.send()
        ack_everything(wire)
    assert not any(transmit.is_mtu_probe for transmit in wire.transmits)


def test_small_packets_prove_nothing(base: int) -> None:
    wire = Wire.initiator(base)
    for _ in range(40):
        wire.write_bytes(700)
        wire.send()
        ack_everything(wire)
    wire.write_bytes(1_380)
    wire.send()
    assert wire.transmits[-1].may_fragment


def test_emsgsize_is_a_probes_result_and_its_data_leaves_at_once(base: int) -> None:
    wire = bulk(base)
    probe = next(transmit for transmit in wire.transmits if transmit.is_mtu_probe)
    seq16 = int.from_bytes(probe.data[16:18], "big")
    before = wire.connection.stats().cwnd_bytes
    wire.connection.handle_icmp(errno.EMSGSIZE, quoted_seq16=seq16, mtu_bytes=1_420, datagram_bytes=1_472, now=wire.at)
    sent = wire.wait(5_000)
    seq = (seq16 - base) & 0xFFFF
    assert f"DATA seq={seq} ack=0 len={1_400 - 20}" in sent[0], "the same payload, without the padding"
    again = next(transmit for transmit in wire.transmits[::-1] if transmit.data[16:18] == probe.data[16:18])
    assert not again.is_mtu_probe and again.data[20:] == probe.data[-len(again.data) + 20 :]
    assert wire.connection.stats().cwnd_bytes == before, "no congestion"
    assert wire.connection.send.mtu.datagram_bytes == 1_400


def test_icmp_that_quotes_nothing_of_ours_is_ignored(base: int) -> None:
    """RFC 5927 §4, and RFC 1191 §6: no claim below the floor."""
    wire = bulk(base)
    for seq16, mtu in (((base + 30_000) & 0xFFFF, 600), ((base + 20) & 0xFFFF, 0)):
        wire.connection.handle_icmp(errno.EMSGSIZE, quoted_seq16=seq16, mtu_bytes=mtu, datagram_bytes=500, now=wire.at)
    assert wire.connection.send.mtu.datagram_bytes == 1_400


@pytest.mark.parametrize("first_seq", [1, WRAP_SEQ])
@pytest.mark.parametrize("reports", [False, True])
@pytest.mark.parametrize("carries", [1_472, 1_430, 1_280, 900, 576])
def test_the_search_ends_within_sixteen_bytes(carries: int, reports: bool, first_seq: int) -> None:
    simulator = Simulator(3)

    def direction() -> Mtu:
        return Mtu(Delay(simulator, 5_000), carries, reports=reports)

    there = direction()
    pair = Pair(
        simulator,
        there,
        direction(),
        a=Application(3_000_000, writes=1, expects=2),
        b=Application(0, writes=2, expects=1),
        first_seq=first_seq,
        config=Config(receive_buffer_bytes=40_000),  # many round trips, a probe in each
    )
    pair.finish()
    stats = pair.a.connection.stats()
    assert carries - 24 <= stats.packet_bytes <= carries
    assert stats.timeouts == 0
    assert stats.cwnd_bytes > 20_000, "lost probes are no congestion"
    assert there.too_large <= 30


@pytest.mark.parametrize("first_seq", [1, WRAP_SEQ])
@pytest.mark.parametrize("reports", [False, True])
@pytest.mark.parametrize("carries", [1_472, 1_464, 1_372, 1_232, 972, 548])
def test_where_fragments_are_dropped_nothing_is_stuck_for_its_size(carries: int, reports: bool, first_seq: int) -> None:
    """RFC 8900 §3. What is too large for the path and sent once could never be sent again."""
    simulator = Simulator(3)

    def direction() -> Mtu:
        return Mtu(Delay(simulator, 5_000), carries, reports=reports, fragments=False)

    there = direction()
    pair = Pair(
        simulator,
        there,
        direction(),
        a=Application(1_000_000, writes=1, expects=2),
        b=Application(0, writes=2, expects=1),
        first_seq=first_seq,
        config=Config(start_datagram_bytes=FLOOR_BYTES, receive_buffer_bytes=40_000),
    )
    pair.finish()
    stats = pair.a.connection.stats()
    assert carries - 24 <= stats.packet_bytes <= carries
    assert stats.timeouts == 0
    assert there.too_large <= 30 and stats.cwnd_bytes > 20_000
    assert pair.a.spurious == 0


def test_full_size_is_reached_within_a_few_round_trips(base: int) -> None:
    """A start at the floor costs no more than that, and the first flight has as many bytes as it ever had."""
    wire = Wire.initiator(base, config=Config(start_datagram_bytes=FLOOR_BYTES))
    wire.write_bytes(200_000)
    assert wire.connection.stats().cwnd_bytes == 13_800
    wire.send()
    assert not any(transmit.is_mtu_probe for transmit in wire.transmits), "the peer may be one that takes it for data"
    for _ in range(4):
        ack_everything(wire)
    assert [len(transmit.data) for transmit in wire.transmits if transmit.is_mtu_probe] == [1_232, 1_400, 1_472]
    assert wire.connection.stats().packet_bytes == 1_472


def test_a_peer_that_reports_no_delay_is_sent_no_extension(base: int) -> None:
    """docs/protocol.md §5: the JS utp takes extensions of DATA for payload; §6: and never measures a delay."""
    wire = Wire.initiator(base, config=Config(start_datagram_bytes=FLOOR_BYTES))
    wire.write_bytes(200_000)
    wire.send()
    for _ in range(6):
        wire.wait(RTT_US)
        wire.receive(f"STATE seq=1 ack={wire.connection.send.flights.next_seq - 1 - wire.base} diff=0")
        wire.send()
    assert not any(transmit.is_mtu_probe for transmit in wire.transmits)


@pytest.mark.parametrize(
    "padding", [MIN_PADDING_BYTES, 13, 266, 267, 268, 269, 524, 525, 526, 1_000, MAX_PADDING_BYTES]
)
def test_padding_means_nothing(padding: int) -> None:
    header = encode(0, 5, timestamp_us=1, difference_us=2, window_bytes=3, seq=4, ack=6)
    datagram = pad(header, padding) + b"payload"
    assert len(datagram) == 20 + padding + 7
    assert datagram[1] == 2, "libutp drops a packet whose first extension is 3 or more"
    packet = decode(memoryview(datagram))
    assert packet is not None and bytes(packet.payload) == b"payload" and packet.sack is None


def test_every_ipv6_link_carries_the_floor() -> None:
    mtu = PathMtu(FLOOR_IPV6_BYTES, 1_448, floor_bytes=FLOOR_IPV6_BYTES)
    assert mtu.datagram_bytes == 1_232
    assert not mtu.on_too_big(1_232, 600, now=0), "RFC 8200 §5"
    mtu.on_black_hole(now=0)
    assert mtu.datagram_bytes == 1_232
    mtu._check()


def test_a_black_hole_is_found_and_left() -> None:
    """The path begins to swallow large packets in silence: repeated timeouts of them alone."""
    simulator = Simulator(4)
    link = path(simulator, delay_us=5_000, rate_bits=30_000_000)
    pair = Pair(
        simulator,
        link,
        Delay(simulator, 5_000),
        a=Application(6_000_000, writes=1, expects=2),
        b=Application(0, writes=2, expects=1),
    )
    pair.connect()
    simulator.run(lambda: pair.b.application.received > 1_000_000)
    assert pair.a.connection.stats().packet_bytes == 1_472
    pair.a.to_peer = Mtu(link, 1_200)
    simulator.run(lambda: pair.is_over)
    assert pair.b.application.received == 6_000_000
    assert 1_176 <= pair.a.connection.stats().packet_bytes <= 1_200


@pytest.mark.parametrize("first_seq", [1, WRAP_SEQ])
@pytest.mark.parametrize("reports", [False, True])
@pytest.mark.parametrize("carries", [1_464, 1_372, 972, 548])
def test_what_left_before_the_path_became_narrower_arrives_in_pieces(
    carries: int, reports: bool, first_seq: int
) -> None:
    """Its boundaries are fixed, the path carries no such packet, and drops fragments."""
    simulator = Simulator(4)
    link = path(simulator, delay_us=5_000, rate_bits=30_000_000)
    pair = Pair(
        simulator,
        link,
        Delay(simulator, 5_000),
        a=Application(3_000_000, writes=1, expects=2),
        b=Application(0, writes=2, expects=1),
        first_seq=first_seq,
    )
    pair.connect()
    simulator.run(lambda: pair.b.application.received > 1_000_000)
    assert pair.a.connection.stats().packet_bytes == 1_472
    narrowed_at = simulator.now
    pair.a.to_peer = Mtu(link, carries, reports=reports, fragments=False)
    assert simulator.run(lambda: pair.b.application.received > 1_500_000)
    assert simulator.now - narrowed_at < 3_500_000, "as long as TCP takes to find a black hole, and less than giving up"
    assert simulator.run(lambda: pair.is_over)
    assert pair.b.application.received == 3_000_000
    assert carries - 24 <= pair.a.connection.stats().packet_bytes <= carries


@pytest.mark.parametrize("datagram_bytes", [544, 1_232, 1_472])
@pytest.mark.parametrize("size", [1, 248, 249, 250, 498, 499, 1_380, 1_452, 9_000])
def test_pieces_are_the_packet(size: int, datagram_bytes: int) -> None:
    payload = bytes(index * 7 & 0xFF for index in range(size))
    header = encode(2, 5, timestamp_us=1, difference_us=2, window_bytes=3, seq=4, ack=6)
    data, segment, count = compose_pieces(header, 65_540, payload, datagram_bytes)
    datagrams = [data[start : start + segment] for start in range(0, len(data), segment)]
    assert len(datagrams) == count and max(map(len, datagrams)) <= datagram_bytes
    assembly = PieceAssembly()
    links = []
    for datagram in datagrams:
        assert datagram[:1] + datagram[2:20] == header[:1] + header[2:20] and datagram[1] == 2
        packet = decode(memoryview(datagram))
        assert packet is not None and packet.pieces is not None and not packet.payload
        links += packet.pieces
    whole = [assembly.add(link, 65_530, 10_000) for link in links[1:] + links[:2]]  # in any order, and twice
    assert next(joined for joined in whole if joined is not None) == (65_540, payload)
    assert assembly.add(links[0], 65_541, 10_000) == (65_540, b""), "long here: it wants an ack"
    assert PieceAssembly().add(links[0], 65_530, size - 1) is None, "more than there is room for"


def test_pieces_that_are_none_are_passed_over(base: int) -> None:
    wire = Wire.initiator(base)
    for link in (
        "",
        "0001",
        "000100000001",
        "00010000000261",
        "0001000100026161",
        "000100f900016161",
        "00010000000061",
    ):
        wire.receive(f"STATE seq=1 ack=0 ext=126:{link}")
    for seq in range(40):
        wire.receive(f"STATE seq=1 ack=0 ext=126:{(wire.peer_base + 1 + seq) & 0xFFFF:04x}0000ffff" + "61" * 249)
    assert wire.read_bytes() == b""
    first = (wire.peer_base + 1) & 0xFFFF
    wire.receive(f"STATE seq=1 ack=0 ext=126:{first:04x}0000000568656c6c6f")
    assert wire.read_bytes() == b"hello"
    assert wire.send() == ["STATE seq=1 ack=1"]
    wire.receive(f"STATE seq=1 ack=0 ext=126:{first:04x}0000000568656c6c6f")
    assert wire.send() == ["STATE seq=1 ack=1"], "a duplicate is acked again"


def test_the_packet_itself_leaves_with_its_pieces(base: int) -> None:
    """The peer may be another implementation, and IP's fragments may pass after all."""
    wire = bulk(base)
    ack_everything(wire)
    wire.write_bytes(3_000)
    wire.send()
    sent = len(wire.transmits)
    wire.wait(20_000_000)
    again = wire.transmits[sent:]
    assert {len(transmit.data) for transmit in again if transmit.data[0] >> 4 == 0} >= {1_472}
    pieces = [transmit for transmit in again if transmit.data[0] >> 4 == 2]
    assert pieces and all(len(datagram) <= FLOOR_BYTES for transmit in pieces for datagram in transmit.datagrams())
    kinds = "".join(str(transmit.data[0] >> 4) for transmit in again)
    assert "02" in kinds and "22" not in kinds


def test_a_lone_probes_silence_is_no_timeout(base: int) -> None:
    """§9: an RTO whose only outstanding packet is an MTU probe is not a loss."""
    wire = bulk(base)
    probe = next(transmit for transmit in wire.transmits if transmit.is_mtu_probe)
    seq = int.from_bytes(probe.data[16:18], "big")
    before_probe = (seq - wire.base - 1) & 0xFFFF
    ahead = wire.connection.send.flights.next_seq - 1 - wire.base - before_probe - 1
    wire.wait(RTT_US)
    if ahead:
        bits = (1 << ahead) - 1
        wire.receive(f"STATE seq=1 ack={before_probe} sack=" + bits.to_bytes((ahead + 31) // 32 * 4, "little").hex())
    else:
        wire.receive(f"STATE seq=1 ack={before_probe}")
    cwnd = wire.connection.stats().cwnd_bytes
    wire.wait(100_000)
    assert wire.connection.stats().timeouts == 0
    assert wire.connection.stats().cwnd_bytes >= cwnd


class TestSizes:
    """The search alone."""

    def test_three_lost_probes_lower_the_ceiling(self) -> None:
        mtu = PathMtu(1_400, 1_472)
        for _ in range(3):
            mtu.packets_since_probe += 16
            assert mtu.packets_before_probe(now=0) == 0
            assert mtu.probe_size() == 1_472
            mtu.on_probe_sent(1_472)
            mtu.on_probe_lost(now=0)
        mtu.packets_since_probe += 16
        assert mtu.probe_size() == 1_400, "then what is in use wants its proof"
        mtu._check()

    def test_the_search_begins_again_after_ten_minutes(self) -> None:
        mtu = PathMtu(1_400, 1_472)
        mtu.packets_since_probe += 16
        mtu.on_probe_sent(1_472)
        mtu.on_too_big(1_472, 1_400, now=0)
        mtu.on_probe_sent(1_400)
        mtu.on_probe_acked(1_400)
        mtu.packets_since_probe += 100
        assert mtu.packets_before_probe(now=SEARCH_AGAIN_US - 1) > 0
        assert mtu.packets_before_probe(now=SEARCH_AGAIN_US) == 0
        assert mtu.probe_size() == 1_472

    def test_a_range_that_inverts_is_repaired(self) -> None:
        """§4: libutp's HEAD aborts on one."""
        mtu = PathMtu(1_400, 600)
        assert mtu.datagram_bytes == 600
        for claim in (0, 1, 20, 544, 599, 600, 601, 1_472, 70_000):
            mtu.on_too_big(claim, 30, now=0)
            mtu.on_too_big(claim, 70_000, now=0)
            mtu.on_black_hole(now=0)
            mtu.on_probe_acked(claim)
            mtu._check()
        assert mtu.datagram_bytes >= FLOOR_BYTES

    def test_a_user_may_raise_the_ceiling(self) -> None:
        """UTP_MAX_MTU."""
        mtu = PathMtu(1_400, 65_507)
        steps = 0
        while mtu.datagram_bytes < 65_504:
            steps += 1
            mtu.packets_since_probe += 16
            assert not mtu.packets_before_probe(now=0)
            size = mtu.probe_size()
            assert mtu.datagram_bytes < size <= mtu.datagram_bytes + MAX_PADDING_BYTES, "as far as padding reaches"
            mtu.on_probe_sent(size)
            mtu.on_probe_acked(size)
            assert mtu.datagram_bytes == size
        assert steps == 50
        mtu.packets_since_probe += 16
        assert mtu.packets_before_probe(now=0)


def test_what_one_connection_has_proven_another_to_the_same_peer_uses(base: int) -> None:
    """RFC 8899 §3 (9)."""
    known = KnownPath()
    late = Wire.initiator(base, config=Config(known_path=known))
    first = bulk(base, known_path=known)
    ack_everything(first)
    assert known.confirmed_bytes == first.connection.stats().packet_bytes == 1_472
    late.write_bytes(200_000)
    late.send()
    assert len(late.transmits[-1].datagrams()[0]) == 1_472
    assert not late.transmits[-1].may_fragment
    for _ in range(4):
        ack_everything(late)
    assert not any(transmit.is_mtu_probe for transmit in late.transmits)
    assert Wire.initiator(base, config=Config(known_path=known)).connection.stats().packet_bytes == 1_472


def test_a_known_size_is_not_used_where_it_was_found_too_large() -> None:
    known = KnownPath()
    known.confirmed_bytes = 1_472
    assert PathMtu(1_400, 1_440, known).datagram_bytes == 1_400, "this one may not send so much"
    mtu, other = PathMtu(1_400, 1_472, known), PathMtu(1_400, 1_472, known)
    assert mtu.datagram_bytes == other.datagram_bytes == 1_472
    mtu.on_black_hole(now=1)
    assert (mtu.datagram_bytes, known.confirmed_bytes) == (FLOOR_BYTES, 0)
    assert other.datagram_bytes == 1_472, "its own packets will show it"
    known.confirmed_bytes = 1_472
    mtu.adopt_known()
    assert mtu.datagram_bytes == FLOOR_BYTES, "no second time"
    mtu.on_probe_sent(1_000)
    mtu.on_probe_acked(1_000)
    assert known.confirmed_bytes == 1_472, "a smaller size says nothing about a larger one"
    for checked in (mtu, other):
        checked._check()

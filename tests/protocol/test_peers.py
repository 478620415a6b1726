"""Scripted peers with the quirks of real ones, over a simulated path: everything arrives all the same."""

from __future__ import annotations

import pytest

from tests.simulator import WRAP_SEQ, Application, Burst, Host, Node, Pair, Simulator, path
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

"""RESETs for packets of no connection: one for each, until there are too many of them."""

from __future__ import annotations

from utpsocket.engine.kernel.syscalls import packed_name
from utpsocket.engine.ports.stateless_resets import PER_SECOND, PER_SOURCE_AND_SECOND, StatelessResets
from utpsocket.protocol.packet import Packet, PacketType, decode, encode

SECOND_US = 1_000_000


def datagram(type: PacketType, connection_id: int) -> bytes:
    return encode(type, connection_id, timestamp_us=1, difference_us=0, window_bytes=0, seq=1_000, ack=2_000)


def packet(type: PacketType, connection_id: int) -> Packet:
    found = decode(memoryview(datagram(type, connection_id)))
    assert found is not None
    return found


def refused(resets: StatelessResets, host: str, count: int, *, now: int) -> int:
    """How many of so many SYNs of one host, a port each, are answered, one by one and as a batch alike."""
    half = count // 2
    sent_count = sum(
        resets.to_stray((host, 1_000 + number), packet(PacketType.SYN, number), now=now) is not None
        for number in range(half)
    )
    numbers = list(range(half, count))
    names = [packed_name((host, 1_000 + number)) for number in numbers]
    answered, data = resets.to_syns(numbers, names, [datagram(PacketType.SYN, number) for number in numbers], now=now)
    assert len(data) == 20 * len(answered)
    return sent_count + len(answered)


def test_hundreds_are_refused_at_the_same_instant() -> None:
    resets = StatelessResets()
    assert refused(resets, "127.0.0.1", 600, now=SECOND_US) == 600


def test_one_source_cannot_use_up_what_others_need() -> None:
    resets = StatelessResets()
    assert refused(resets, "127.0.0.2", 20_000, now=SECOND_US) <= 2 * PER_SOURCE_AND_SECOND
    assert refused(resets, "127.0.0.1", 300, now=SECOND_US) == 300
    assert refused(resets, "127.0.0.2", 300, now=2 * SECOND_US) == 300, "in the next second"


def test_all_sources_together_have_a_limit() -> None:
    resets = StatelessResets()
    assert sum(refused(resets, f"127.0.1.{host}", 400, now=SECOND_US) for host in range(100)) == PER_SECOND


def test_a_repeated_syn_is_refused_again_and_a_flight_once() -> None:
    resets = StatelessResets()
    addr = ("127.0.0.1", 7)
    for _ in range(3):
        assert resets.to_stray(addr, packet(PacketType.SYN, 5), now=SECOND_US) is not None
    assert resets.to_stray(addr, packet(PacketType.DATA, 6), now=SECOND_US) is not None
    assert resets.to_stray(addr, packet(PacketType.DATA, 6), now=SECOND_US) is None


def test_a_batch_is_answered_as_single_ones_are() -> None:
    now, addr = SECOND_US, ("127.0.0.1", 7)
    alone = StatelessResets().to_stray(addr, packet(PacketType.SYN, 5), now=now)
    assert alone is not None
    head = datagram(PacketType.SYN, 5)
    assert StatelessResets().to_syns([3], [packed_name(addr)], [head], now=now) == ([3], bytearray(alone.data))

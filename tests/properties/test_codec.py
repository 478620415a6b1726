"""The wire: what is written is read, whatever is read raises nothing, and shortcuts mean what the long way means."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from utpsocket.protocol.packet import HEADER_BYTES, PacketType, decode, encode, sack_bytes, unwrap
from utpsocket.protocol.runs import MAX_RUN_PACKETS, Run, compose

uint16 = st.integers(0, 0xFFFF)
uint32 = st.integers(0, 0xFFFFFFFF)
types = st.sampled_from(list(PacketType))


@given(types, uint16, uint32, uint32, uint32, uint16, uint16, st.binary(max_size=64), st.binary(max_size=50))
def test_what_is_encoded_is_decoded(
    kind: PacketType,
    connection_id: int,
    timestamp: int,
    difference: int,
    window: int,
    seq: int,
    ack: int,
    sack: bytes,
    payload: bytes,
) -> None:
    datagram = encode(
        kind,
        connection_id,
        timestamp_us=timestamp,
        difference_us=difference,
        window_bytes=window,
        seq=seq,
        ack=ack,
        sack=sack,
    )
    packet = decode(memoryview(datagram + payload))
    assert packet is not None
    assert (packet.type, packet.connection_id, packet.timestamp_us) == (kind, connection_id, timestamp)
    assert (packet.difference_us, packet.window_bytes) == (difference, window)
    assert (packet.seq16, packet.ack16, bytes(packet.payload)) == (seq, ack, payload)
    assert (bytes(packet.sack) if packet.sack is not None else b"") == sack


@given(st.binary(max_size=80))
def test_any_bytes_are_a_packet_or_none(datagram: bytes) -> None:
    packet = decode(memoryview(datagram))
    if packet is not None:
        assert datagram[0] & 15 == 1
        assert datagram[0] >> 4 <= 4
        assert len(datagram) >= HEADER_BYTES + len(packet.payload)
        assert datagram.endswith(bytes(packet.payload))


@given(types, st.lists(st.tuples(st.integers(1, 255), st.binary(max_size=20)), max_size=6), st.binary(max_size=9))
def test_unknown_extensions_are_skipped_by_their_length(
    kind: PacketType, extensions: list[tuple[int, bytes]], payload: bytes
) -> None:
    ids = [identifier for identifier, _ in extensions]
    header = struct.pack(">BBHIIIHH", kind << 4 | 1, (ids or [0])[0], 7, 1, 2, 3, 4, 5)
    chain = b"".join(
        bytes((following, len(content))) + content
        for following, (_, content) in zip([*ids[1:], 0], extensions, strict=False)
    )
    packet = decode(memoryview(header + chain + payload))
    assert packet is not None
    assert bytes(packet.payload) == payload
    sacks = [content for identifier, content in extensions if identifier == 1]
    assert (bytes(packet.sack) if packet.sack is not None else None) == (sacks[-1] if sacks else None)
    for cut in range(HEADER_BYTES, HEADER_BYTES + len(chain)):
        assert decode(memoryview((header + chain)[:cut])) is None


@given(uint16, st.integers(0, 1 << 40))
def test_unwrap_is_the_nearest(seq16: int, near: int) -> None:
    seq = unwrap(seq16, near)
    assert seq & 0xFFFF == seq16
    assert -0x8000 <= seq - near < 0x8000


@given(st.sets(st.integers(2, 2017)))
def test_a_sack_is_its_bits(ahead: set[int]) -> None:
    bits = sum(1 << (seq - 2) for seq in ahead)
    wire = sack_bytes(bits)
    assert len(wire) % 4 == 0
    assert len(wire) <= 252
    assert int.from_bytes(wire, "little") == bits


@given(uint16, st.integers(1, MAX_RUN_PACKETS), uint16, st.integers(1, 60), st.integers(1, 60))
def test_composed_packets_are_encode_and_payload_for_each(seq: int, count: int, ack: int, size: int, last: int) -> None:
    def header(at: int) -> bytes:
        return encode(PacketType.DATA, 9, timestamp_us=1, difference_us=2, window_bytes=3, seq=at, ack=ack)

    payloads = [bytes([index % 251]) * (size if index < count - 1 else min(last, size)) for index in range(count)]
    datagrams = compose(header(seq), seq, [memoryview(payload) for payload in payloads])
    assert datagrams == b"".join(header(seq + index) + payload for index, payload in enumerate(payloads))


def _headers_differ_in_seq_alone(datagrams: list[bytes]) -> bool:
    first = datagrams[0]
    return (len(datagrams) >= 2 or len(first) > HEADER_BYTES) and all(
        len(datagram) >= HEADER_BYTES
        and datagram[:2] == b"\x01\x00"
        and datagram[:16] == first[:16]
        and datagram[18:20] == first[18:20]
        and int.from_bytes(datagram[16:18], "big") == (int.from_bytes(first[16:18], "big") + index) & 0xFFFF
        for index, datagram in enumerate(datagrams)
    )


@given(st.data(), st.integers(1, 12), uint16, st.integers(20, 72), st.integers(0, 72))
def test_a_run_is_clean_only_if_its_headers_differ_in_nothing_but_seq(
    data: st.DataObject, count: int, seq: int, stride: int, last: int
) -> None:
    sizes = [stride] * (count - 1) + [max(1, min(last, stride))]
    datagrams = []
    for index, size in enumerate(sizes):
        header = encode(PacketType.DATA, 9, timestamp_us=77, difference_us=2, window_bytes=3, seq=seq + index, ack=5)
        datagrams.append((header + bytes(52))[:size])
    joined = bytearray(b"".join(datagrams))
    for _ in range(data.draw(st.integers(0, 2))):
        joined[data.draw(st.integers(0, len(joined) - 1))] ^= data.draw(st.sampled_from([0, 1, 16, 255]))
    run = Run(memoryview(bytes(joined)), stride, ("192.0.2.1", 9))
    assert run.count == count
    cut = [bytes(datagram) for datagram in run.datagrams()]
    assert [len(datagram) for datagram in cut] == sizes
    if run.is_clean():
        assert _headers_differ_in_seq_alone(cut)
        assert [bytes(payload) for payload in run.payloads()] == [datagram[HEADER_BYTES:] for datagram in cut]
    elif stride % 8 == 0 or count == 1:
        assert not _headers_differ_in_seq_alone(cut), "the shortcut was missed"

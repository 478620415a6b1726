"""Reassembly against a dict of packets and a bytearray: any order, any duplicates, any pace of reading."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from utpsocket.protocol.reassembly import MAX_OUT_OF_ORDER_PACKETS, Insertion, Reassembly

FIRST = 65_530


class Model:
    """The same stream, kept the naive way."""

    def __init__(self) -> None:
        self.packets: dict[int, bytes] = {}
        self.delivered = bytearray()

    def stream(self) -> bytes:
        whole = bytearray()
        seq = FIRST
        while seq in self.packets:
            whole += self.packets[seq]
            seq += 1
        return bytes(whole)

    @property
    def next_seq(self) -> int:
        seq = FIRST
        while seq in self.packets:
            seq += 1
        return seq


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("packet"), st.integers(0, 30), st.integers(0, 20)),
            st.tuples(st.just("read"), st.integers(0, 60), st.just(0)),
            st.tuples(st.just("resize"), st.integers(40, 400), st.just(0)),
        ),
        max_size=80,
    ),
    st.integers(40, 400),
)
def test_reassembly_is_the_naive_stream(steps: list[tuple[str, int, int]], capacity: int) -> None:
    reassembly, model = Reassembly(FIRST, capacity), Model()
    sizes: dict[int, int] = {}
    received = bytearray(64)  # as the engine's buffer: reused for every arrival
    for what, number, size in steps:
        if what == "packet":
            seq = FIRST + number
            size = sizes.setdefault(seq, size)
            received[:size] = bytes([number + 1]) * size
            payload = bytes([number + 1]) * size
            offer = reassembly.insert(seq, memoryview(received)[:size], is_fin=False)
            assert (offer is Insertion.DUPLICATE) == (seq in model.packets)
            if offer in (Insertion.IN_ORDER, Insertion.OUT_OF_ORDER):
                model.packets[seq] = payload
            assert (offer is Insertion.IN_ORDER) == (offer is not Insertion.DUPLICATE and seq < model.next_seq)
            taken = 0
        elif what == "resize":
            reassembly.resize(number)
            taken = 0
        else:
            taken = min(number, reassembly.ready_bytes)
        model.delivered += b"".join(map(bytes, reassembly.ready))[:taken]
        reassembly.finish_delivery(taken)
        received[:] = bytes(64)
        reassembly._check()
        assert reassembly.next_seq == model.next_seq
        held = [seq for seq in model.packets if seq > model.next_seq]
        assert reassembly.sack_bits == sum(1 << (seq - model.next_seq - 1) for seq in held)
        assert model.stream().startswith(bytes(model.delivered))
        assert bytes(model.delivered) + b"".join(map(bytes, reassembly.ready)) == model.stream()


@given(st.lists(st.tuples(st.integers(0, 3 * MAX_OUT_OF_ORDER_PACKETS), st.integers(0, 3_000)), max_size=200))
def test_memory_stays_within_the_window(packets: list[tuple[int, int]]) -> None:
    reassembly = Reassembly(FIRST, 10_000)
    for ahead, size in packets:
        reassembly.insert(reassembly.next_seq + ahead, memoryview(bytes(size)), is_fin=False)
        reassembly._check()


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20_000))
def test_what_was_advertised_is_taken_however_small_the_buffer_becomes(
    missing: int, behind: int, capacity: int
) -> None:
    reassembly = Reassembly(FIRST, 1_000 * (missing + behind))
    packets = [memoryview(bytes([number]) * 1_000) for number in range(missing + behind)]
    for number in range(missing, missing + behind):
        assert reassembly.insert(FIRST + number, packets[number], is_fin=False) is Insertion.OUT_OF_ORDER
    reassembly.resize(capacity)
    for number in range(missing):
        assert reassembly.insert(FIRST + number, packets[number], is_fin=False) is Insertion.IN_ORDER
        reassembly._check()
    assert reassembly.ready_bytes == sum(map(len, packets))


@given(st.permutations(range(8)), st.integers(0, 7), st.integers(0, 3))
def test_fin_anywhere_ends_the_stream_once(order: list[int], fin: int, payload: int) -> None:
    reassembly = Reassembly(FIRST, 1_000)
    for _ in range(3):  # what a FIN ahead of data made of no account comes again
        for number in order:
            size = payload if number == fin else 5
            reassembly.insert(FIRST + number, memoryview(bytes([number]) * size), is_fin=number == fin)
            reassembly._check()
    assert reassembly.is_fin_reached
    assert reassembly.next_seq == FIRST + fin + 1
    expected = b"".join(bytes([number]) * 5 for number in range(fin)) + bytes([fin]) * payload
    assert b"".join(map(bytes, reassembly.ready)) == expected

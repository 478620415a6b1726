"""Whatever arrives: nothing is raised, and no more is kept than was advertised."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.properties.test_batches import ADDR, OUR_SEQ, PEER_SEQ, connected, packet
from tests.simulator import WRAP_SEQ, Application, Corrupt, Pair, Simulator, path
from utpsocket.protocol import Config, Connection, PacketType, Run, State, Workspace

RECEIVE_BYTES = 20_000


def receive(connection: Connection, datagrams: bytes, stride: int, now: int) -> None:
    connection.handle_run(Run(memoryview(bytearray(datagrams)), stride, ADDR), now=now)


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.integers(1, 300)), max_size=12))
def test_any_bytes_in_any_state(runs: list[tuple[bytes, int]]) -> None:
    idle = Connection(Config(), Workspace(), ADDR, recv_id=100, first_seq=1)
    waiting = Connection(Config(), Workspace(), ADDR, recv_id=100, first_seq=1)
    waiting.connect(now=0)
    waiting.poll_transmit(now=0, max_segments=1)
    for connection in (idle, waiting, connected(buffer_bytes=RECEIVE_BYTES)):
        for number, (content, stride) in enumerate(runs):
            receive(connection, content, stride, 30_000 + number)
            connection._check()
        while connection.poll_transmit(now=40_000, max_segments=64) is not None:
            pass


@given(
    st.lists(
        st.tuples(st.integers(-3, 40), st.sampled_from([0, 1, 700, 1_400, 9_000]), st.booleans(), st.booleans()),
        max_size=120,
    )
)
def test_a_peer_that_is_never_read_fills_no_more_than_the_window(packets: list[tuple[int, int, bool, bool]]) -> None:
    connection = connected(buffer_bytes=RECEIVE_BYTES)
    for ahead, size, is_fin, is_polled in packets:
        reassembly = connection.receive.reassembly
        kind = PacketType.FIN if is_fin and ahead > 30 else PacketType.DATA
        datagram = packet(kind, seq=reassembly.next_seq + ahead, ack=OUR_SEQ, payload=bytes(size))
        receive(connection, datagram, len(datagram), 30_000)
        if is_polled:
            connection.poll_delivery()
            connection.finish_delivery(0, now=30_000)
        connection._check()
        assert reassembly.ready_bytes + reassembly.out_of_order_bytes <= RECEIVE_BYTES + 4_096


def test_tiny_packets_in_any_order_cost_bounded_memory() -> None:
    """A window of one-byte packets, half of them ahead of holes, never read."""
    connection = connected(buffer_bytes=1 << 20)
    tracemalloc.start()
    try:
        for number in range(12_000):
            ahead = 2 * (number % 2_000) + 1 if number % 2 else 0
            seq = connection.receive.reassembly.next_seq + ahead
            datagram = packet(PacketType.DATA, seq=seq, ack=OUR_SEQ, payload=b"x")
            receive(connection, datagram, len(datagram), 30_000 + number)
            connection.poll_delivery()
            connection.finish_delivery(0, now=30_000 + number)
        current, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert current < 3 << 20


def test_a_flood_of_syns_costs_nothing_but_their_connections() -> None:
    """What an endpoint may keep of them is its own limit; here: each is small, and ends by itself."""
    workspace = Workspace()
    config = Config()
    tracemalloc.start()
    try:
        half_open = []
        for number in range(500):
            connection = Connection(config, workspace, ADDR, recv_id=100, first_seq=number)
            syn = bytearray(packet(PacketType.SYN, seq=PEER_SEQ, ack=0))
            syn[2:4] = (99).to_bytes(2, "big")
            receive(connection, bytes(syn), len(syn), 1_000)
            assert connection.poll_transmit(now=1_000, max_segments=64) is not None
            half_open.append(connection)
        current, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert current / len(half_open) < 12_000
    for connection in half_open:
        connection.handle_timeout(now=64_001_000)
        assert connection.state is State.CLOSED


@pytest.mark.parametrize("first_seq", [1, WRAP_SEQ])
def test_a_path_that_garbles_headers_raises_nothing(first_seq: int) -> None:
    """UDP's checksum would catch it; what comes through it must do no more than spoil the bytes it carries."""
    simulator = Simulator(first_seq)

    def direction() -> Corrupt:
        return Corrupt(simulator, path(simulator, delay_us=10_000), 0.02, where=range(2))

    pair = Pair(
        simulator,
        direction(),
        direction(),
        a=Application(300_000, writes=1, expects=2),
        b=Application(0, writes=2, expects=1),
        first_seq=first_seq,
    )
    pair.connect()
    simulator.run(lambda: pair.is_over, limit_us=400_000_000)
    assert pair.a.dropped_datagrams > 0

"""How much is taken from a program that has more than fits into the path."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.simulation.links import Link, Way
from tests.simulator import Application, Pair, Simulator
from utpsocket.protocol import Config
from utpsocket.protocol.sendbuffer import BLOCK_BYTES, BlockPool, SendBuffer

FIRST_BYTES = 200_000
MAX_BYTES = 2_000_000


def test_it_holds_two_congestion_windows_up_to_its_limit() -> None:
    buffer = SendBuffer(BlockPool(), FIRST_BYTES, MAX_BYTES)
    for window_bytes, capacity_bytes in ((50_000, FIRST_BYTES), (300_000, 600_000), (100_000, 600_000)):
        buffer.follow_window(window_bytes)
        assert buffer.capacity_bytes == capacity_bytes
    buffer.follow_window(MAX_BYTES)
    assert buffer.capacity_bytes == MAX_BYTES


def test_a_size_that_the_program_has_set_stays() -> None:
    """SO_SNDBUF."""
    buffer = SendBuffer(BlockPool(), FIRST_BYTES, MAX_BYTES)
    buffer.set_capacity(3 * BLOCK_BYTES)
    buffer.follow_window(MAX_BYTES)
    assert buffer.capacity_bytes == 3 * BLOCK_BYTES


class Transfer:
    """A program that writes without end, over 20 Mbit/s."""

    def __init__(self, rtt_ms: float, *, reads: bool = True, max_bytes: int = MAX_BYTES) -> None:
        self.simulator = simulator = Simulator(1, checks=False)
        way = Way(20, rtt_ms / 2, 300)
        config = Config(
            receive_buffer_bytes=2 * MAX_BYTES if reads else FIRST_BYTES // 4,
            send_buffer_bytes=FIRST_BYTES,
            max_send_buffer_bytes=max_bytes,
        )
        self.pair = Pair(
            simulator,
            Link(simulator, way),
            Link(simulator, way),
            a=Application(1 << 40, writes=1),
            b=Application(expects=1, hold_open=True),
            config=config,
        )
        self.pair.b.application.reads = reads
        self.pair.connect()

    def capacities(self, seconds: int) -> list[int]:
        """Of the send buffer, after each second."""
        found = []
        for _ in range(seconds):
            self.simulator.run_for(1_000_000)
            found.append(self.pair.a.connection.send.buffer.capacity_bytes)
        return found


def test_over_a_long_path_it_grows_with_the_congestion_window() -> None:
    """20 Mbit/s in 400 ms are 1 MB, so twice the window may be a little more than the limit."""
    transfer = Transfer(400)
    capacities = transfer.capacities(8)
    assert all(before <= after for before, after in pairwise(capacities))
    window_bytes = transfer.pair.a.connection.send.controller.window_bytes
    assert min(2 * window_bytes, MAX_BYTES) <= capacities[-1] <= MAX_BYTES
    assert window_bytes > 2 * FIRST_BYTES


@pytest.mark.parametrize(
    "transfer",
    [Transfer(4), Transfer(400, reads=False), Transfer(400, max_bytes=0)],
    ids=["a short path", "a peer that reads nothing", "a size that is set"],
)
def test_it_stays_as_it_is_where_a_larger_one_is_of_no_use(transfer: Transfer) -> None:
    assert set(transfer.capacities(8)) == {FIRST_BYTES}

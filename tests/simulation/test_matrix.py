"""The table of bad paths is what it was, and what it says is good enough."""

from __future__ import annotations

import math

import pytest

from tests.simulation.matrix import CELLS, HEADING, RTTS_US, SNAPSHOT, Cell
from tests.simulator import WRAP_SEQ, Application, Pair, Simulator, path, transfer
from utpsocket.protocol import Config


@pytest.mark.parametrize("rtt_us", RTTS_US)
def test_every_cell_is_as_reviewed(rtt_us: int) -> None:
    """`python -m tests.simulation.matrix --write` renews the table; every cell is byte-exact or fails."""
    lines = SNAPSHOT.read_text(encoding="utf-8").splitlines()
    heading = HEADING.splitlines()
    assert lines[: len(heading)] == heading
    expected = dict(zip(CELLS, lines[len(heading) :], strict=True))
    cells = [cell for cell in CELLS if cell.rtt_us == rtt_us]
    assert [cell.row() for cell in cells] == [expected[cell] for cell in cells]


@pytest.mark.parametrize("seed", [2, 3])
@pytest.mark.parametrize("cell", [Cell(1_000, 0.1, 0.05), Cell(20_000, 0.05, 0.05), Cell(350_000, 0.02, 0.0)])
def test_other_seeds_are_exact_too(cell: Cell, seed: int) -> None:
    assert cell.row(seed)


@pytest.mark.parametrize("first_seq", [1, WRAP_SEQ])
def test_at_one_percent_loss_and_20_ms_it_carries_what_a_tcp_could(first_seq: int) -> None:
    """Mathis: MSS / RTT * sqrt(3/2) / sqrt(p); at least 80 % of it."""
    pair = transfer(4, 8_000_000, delay_us=10_000, rate_bits=20_000_000, loss=0.01, first_seq=first_seq, timer_us=1_000)
    seconds = pair.simulator.elapsed_us / 1e6
    mathis = (1_472 - 20) / 0.020 * math.sqrt(1.5) / math.sqrt(0.01)
    assert 8_000_000 / seconds >= 0.8 * mathis


@pytest.mark.parametrize("first_seq", [1, WRAP_SEQ])
def test_a_long_fat_path_is_full_within_nine_seconds(first_seq: int) -> None:
    """350 ms, 100 Mbit/s: libutp, which adds a packet per round trip, needs minutes. LEDBAT++ first slows down in the
    tenth second.
    """
    simulator = Simulator(1, checks=False)
    buffers = Config(receive_buffer_bytes=8 << 20, send_buffer_bytes=8 << 20)
    link = {"delay_us": 175_000, "rate_bits": 100_000_000}
    pair = Pair(
        simulator,
        path(simulator, **link),  # type: ignore[arg-type]
        path(simulator, **link),  # type: ignore[arg-type]
        a=Application(1 << 30, writes=1, expects=2),
        b=Application(0, writes=2, expects=1),
        first_seq=first_seq,
        config=buffers,
        timer_us=1_000,
    )
    pair.connect()
    simulator.run_for(8_000_000)
    before = pair.b.application.received
    simulator.run_for(1_000_000)
    assert (pair.b.application.received - before) * 8 >= 0.9 * 100_000_000
    assert pair.a.retransmitted == 0
    assert pair.a.connection.stats().queueing_delay_us <= 100_000

"""Ten megabytes over a path that loses, reorders and duplicates: every byte, from a hundred seeds."""

from __future__ import annotations

import pytest

from tests.simulator import WRAP_SEQ, transfer

SEEDS_PER_BATCH = 5


@pytest.mark.parametrize("batch", range(20))
def test_ten_megabytes_arrive_exactly(batch: int) -> None:
    for seed in range(batch * SEEDS_PER_BATCH, (batch + 1) * SEEDS_PER_BATCH):
        pair = transfer(
            seed,
            10_000_000,
            delay_us=50_000,
            loss=0.05,
            reorder=0.05,
            reorder_us=25_000,
            duplicate=0.02,
            first_seq=WRAP_SEQ if seed % 2 else seed * 655,
            timer_us=1_000,
        )
        stats = pair.a.connection.stats()
        assert pair.a.dropped_datagrams > 250, "the path was too good to show anything"
        assert pair.a.spurious <= 20 + stats.tail_probes
        assert stats.timeouts <= 3


@pytest.mark.parametrize("first_seq", [1, WRAP_SEQ])
def test_both_directions_at_once(first_seq: int) -> None:
    pair = transfer(
        first_seq,
        1_000_000,
        back_total=1_000_000,
        delay_us=20_000,
        loss=0.02,
        reorder=0.05,
        reorder_us=10_000,
        duplicate=0.02,
        first_seq=first_seq,
        checks=True,
    )
    assert pair.a.dropped_datagrams
    assert pair.a.spurious + pair.b.spurious <= 20

"""Goodput, completion time and needless retransmissions for every kind of bad path: the table in matrix.txt.

python -m tests.simulation.matrix            print what the table would be now
python -m tests.simulation.matrix --write    and put it in its place: a changed number is a reviewed number
python -m tests.simulation.matrix --seeds 20 let every cell complete byte-exact from so many seeds
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from tests.simulator import WRAP_SEQ, transfer
from utpsocket.protocol import Config

RATE_BITS = 20_000_000
TOTAL_BYTES = 2_000_000
LOSSES = (0.0, 0.001, 0.01, 0.02, 0.05, 0.10)
RTTS_US = (1_000, 20_000, 100_000, 350_000)
REORDERS = (0.0, 0.05)
SNAPSHOT = Path(__file__).with_name("matrix.txt")
HEADING = (
    f"{TOTAL_BYTES / 1e6:g} MB at {RATE_BITS / 1e6:g} Mbit/s, a queue of 300 ms, one seed\n"
    "rtt ms  loss %  reorder %   Mbit/s  seconds  lost  resent  needless  timeouts  tail probes\n"
)


@dataclass(frozen=True)
class Cell:
    """One path."""

    rtt_us: int
    loss: float
    reorder: float

    def row(self, seed: int = 1) -> str:
        """Transfer over it; the line of the table."""
        pair = transfer(
            seed,
            TOTAL_BYTES,
            config=Config(congestion="ledbat"),
            delay_us=self.rtt_us // 2,
            rate_bits=RATE_BITS,
            loss=self.loss,
            reorder=self.reorder,
            reorder_us=max(1_000, self.rtt_us // 4),
            timer_us=1_000,
            first_seq=WRAP_SEQ if seed % 2 else 1,
        )
        host = pair.a
        stats = host.connection.stats()
        seconds = (pair.b.application.last_received_at - pair.simulator.start_us) / 1e6
        return (
            f"{self.rtt_us / 1000:6g}  {self.loss * 100:6g}  {self.reorder * 100:9g}  "
            f"{TOTAL_BYTES * 8e-6 / seconds:7.2f}  {seconds:7.2f}  {host.dropped_datagrams:4}  {host.retransmitted:6}  "
            f"{host.spurious:8}  {stats.timeouts:8}  {stats.tail_probes:11}"
        )


CELLS = [Cell(rtt, loss, reorder) for rtt, reorder, loss in product(RTTS_US, REORDERS, LOSSES)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    print(HEADING, end="")
    rows = []
    for cell in CELLS:
        rows.append(cell.row())
        print(rows[-1], flush=True)
        for seed in range(2, arguments.seeds + 1):
            cell.row(seed)
    if arguments.write:
        SNAPSHOT.write_text(HEADING + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""`python3 -m compat bench`: how fast, side by side with kernel TCP and with others, alternating, in one run.

    command.py      arguments, rounds, what is printed
    cases.py        what is measured, and how one sample is taken
    subjects.py     who is measured, and how their processes are started
    pair.py         a listener and its dialers, set off together
    agreement.py    the messages of those processes
    costs.py, cost_side.py, meter.py   what a message and a run cost, part by part
    imports.py      what an import costs
    stream_side.py, keepalive_side.py, paused_side.py, paused.py   a side's process over sockets
    quic_side.py, libtorrent_side.py, utp_native_side.cjs   and over other implementations
    goals.py        what the project wants to reach
    table.py, chart.py   the result for README; results.json is the run that chart.svg and RESULTS.md show

Figures of different runs, or of different machines, say nothing about each other: compare within one run.
"""

from __future__ import annotations

__all__ = ["main"]


def main(argv: list[str]) -> int:
    # Here, so that the processes of a measurement, which are modules of this package, do not load all of it.
    from compat.bench.command import main as run

    return run(argv)

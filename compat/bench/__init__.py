"""`python3 -m compat bench`: how fast, side by side with kernel TCP and with others, alternating, in one run.

    command.py      arguments, rounds, what is printed
    cases.py        what is measured, and how one sample is taken
    subjects.py     who is measured, and how their processes are started
    pair.py         a listener and its dialers, set off together
    agreement.py    the messages of those processes
    costs.py, cost_side.py, meter.py   what a message and a run cost, part by part
    stream_side.py, quic_side.py, libtorrent_side.py, utp_native_side.cjs   the processes themselves
    goals.py        what the project wants to reach
    table.py, chart.py   the result for README; results.json is the run that chart.svg and RESULTS.md show

Figures of different runs, or of different machines, say nothing about each other: compare within one run.
"""

from compat.bench.command import main

__all__ = ["main"]

"""python3 -m compat fuzz: random sequences of socket calls, each run over TCP and over uTP and compared call by call.

A sequence is a list of lines of Python over six variables `a` to `f` and the names of prelude.py, so what is shrunk and
printed can be read, and run again with --replay. A sequence is known by its seed and number: `--seed 31 --first 2402
--runs 1` is one of them alone, and what takes long can be run in pieces. Mostly a sequence waits, so several are run at
a time, --jobs of them. The walk of one sequence:

    sequences.py   5 to 30 lines at random, by seed
    machine.py     runs the lines over one network: a result per line, and after it what poll() says of every socket
    compare.py     over TCP, then over uTP; the first line that differs, seen again with long waits before it is
                   believed; fewer lines that differ in the same way
    expected.py    the one table of what must differ, and why
    command.py     the command line, the report, the JSON
"""

from __future__ import annotations


def main(argv: list[str]) -> int:
    """The command's entry point."""
    from compat.fuzz.command import main as run

    return run(argv)

"""python3 -m compat stdlib: the interpreter's own test modules, unedited, with uTP in place of TCP.

The walk of one module:

    command.py    which modules, in which order, how often; what the exit status is
    baseline.py   the module over TCP, from the user's cache when this interpreter was measured before
    supervisor.py starts child.py, listens to its events, ends what hangs, resumes after it
    child.py      in the interpreter under test: private network, patch, import the module, run, look for leftovers
    verdict.py    over TCP beside over uTP: the same, an expected difference, an unexpected one, a stale expectation
    report.py     the table on stderr, the JSON on stdout
    table.py      the markdown table of RESULTS.md: rows replaced by runs, compared by CI

modules.py says what is run and expectations.py which differences are the protocol's or the platform's fault, and why.
"""

from __future__ import annotations


def main(argv: list[str]) -> int:
    """The command's entry point. Imported late: child.py lives in this package and must import little."""
    from compat.stdlib.command import main as run

    return run(argv)

"""python3 -m compat suites: the own test suites of libraries that many people trust, unedited, over uTP beside TCP.

Each library is installed in an environment of its own, at a pinned version; its tests come from its source
distribution and are run by pytest, over TCP and over uTP alternately. All else is compat.stdlib's machinery.

    command.py       the command line; one suite's walk through its rounds; what differs once is run again alone
    libraries.py     which suites, at which versions, with which arguments; what is left out and why
    provision.py     environment and tests, in the cache folder
    child.py         in the interpreter under test: pytest, with a plugin that reports as compat.stdlib.child does
    expectations.py  the differences that are the protocol's, the platform's or the test's, and why
"""

from __future__ import annotations


def main(argv: list[str]) -> int:
    """The command's entry point. Imported late: child.py lives in this package and must import little."""
    from compat.suites.command import main as run

    return run(argv)

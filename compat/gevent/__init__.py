"""python3 -m compat gevent: gevent's own tests, unedited, as its wheel ships them, over uTP beside TCP.

gevent is installed in an environment of its own. All else is compat.stdlib's machinery: a module over TCP, kept in
the user's cache; the same module in a process where utpsocket.monkey came first and gevent after it; the two compared,
test by test. modules.py says what is run and expectations.py which differences are the protocol's fault.

    command.py    the command line, and one module's walk through baseline, runs and verdict
    fetches.py    a thousand greenlets fetch 100 KB each while another one ticks: is it ever late?
"""

from __future__ import annotations


def main(argv: list[str]) -> int:
    """The command's entry point. Imported late: the child under test lives in a package that must import little."""
    from compat.gevent.command import main as run

    return run(argv)

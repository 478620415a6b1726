"""Programs that were never written for uTP, both sides over it: servers, clients, frameworks, protocols.

`python3 -m compat programs [NAME…] [--json] [--quick]`. scenarios/ says what is run, one small file per program or
family; scenario.py is the form such a file fills in; provision.py makes the environment with the programs in it;
child.py is a process under test, patched before it imports anything; runner.py plays one scenario and judges it;
command.py is the command line.
"""

from __future__ import annotations


def main(argv: list[str]) -> int:
    """Run the command. Imported late: the processes under test import this package too, and start faster without it."""
    from compat.programs import command

    return command.main(argv)

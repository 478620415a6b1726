"""python3 -m compat COMMAND [options]: one package per command, imported only when it is asked for.

Every command prints one JSON object on stdout with --json, and keeps progress and notes on stderr.
Exit status: 0 all as it should be, 1 something failed, 2 wrong usage (or a command that is not there yet).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from typing import Final

COMMANDS: Final = {
    "stdlib": "the interpreter's own test modules, unedited, over uTP beside TCP",
    "peers": "bytes exchanged with other uTP implementations",
    "programs": "programs that were never written for uTP, both sides over it",
    "suites": "libraries' own test suites, unedited, over uTP beside TCP",
    "gevent": "gevent's own tests over uTP beside TCP",
    "fuzz": "random sequences of socket calls over uTP beside TCP",
    "bench": "how fast, against TCP and others",
}


def main(argv: list[str] | None = None) -> int:
    """Hand the arguments after the command's name to its package and return its exit status."""
    if sys.version_info < (3, 10):
        print(
            f"python3 -m compat: utpsocket needs Python 3.10 or later; this is {sys.version.split()[0]}",
            file=sys.stderr,
        )
        return 2
    lines = "\n".join(f"  {name:10}{what}" for name, what in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python3 -m compat",
        description=f"commands:\n{lines}\n\nEach has its own --help.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    package = f"compat.{options.command}"
    if importlib.util.find_spec(package) is None:
        print(f"python3 -m compat {options.command}: not there yet", file=sys.stderr)
        return 2
    status: int = importlib.import_module(package).main(options.arguments)
    return status


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # tables have characters that not every terminal has
    sys.exit(main())

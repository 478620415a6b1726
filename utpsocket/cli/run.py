"""`run`: a Python program, unmodified, with uTP in place of TCP.

    run [options] script.py arguments ...
    run [options] -m module arguments ...
    run [options] -c code arguments ...

The program is run by the interpreter itself: this process replaces itself with `python3 script.py arguments ...`, in an
environment in which Python patches `socket` when it is imported (utpsocket.startup). So sys.argv, sys.path, __main__,
tracebacks, signals and the exit status are Python's own, and the interpreters that the program starts are patched too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from utpsocket import startup
from utpsocket.cli.messages import WRONG_USAGE, complain
from utpsocket.sockets.rules import VARIABLES, make_routes

EXAMPLES: Final = (
    "run --stats -m http.server 8000",
    "run --fallback tcp --exclude 127.0.0.1 script.py its arguments",
)
EXIT_STATUS: Final = "the program's own; 2 wrong usage"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add run's arguments to `parser`."""
    parser.usage = f"{parser.prog} [options] (script.py | -m module | -c code) [arguments ...]"
    parser.add_argument("--only", metavar="HOSTS", help="uTP carries these alone (NO_PROXY's grammar); $UTPSOCKET_ONLY")
    parser.add_argument("--exclude", metavar="HOSTS", help="these stay on TCP; $UTPSOCKET_EXCEPT")
    parser.add_argument(
        "--fallback", choices=["tcp"], help="a connect that finds no uTP listener goes to TCP; $UTPSOCKET_FALLBACK"
    )
    parser.add_argument(
        "--fallback-delay",
        type=float,
        metavar="SECONDS",
        help="how long uTP is tried alone (default: 0.3); $UTPSOCKET_FALLBACK_DELAY",
    )
    parser.add_argument(
        "--listen", choices=["utp", "both"], help="what listeners accept, at one port number; $UTPSOCKET_LISTEN"
    )
    parser.add_argument("--stats", action="store_true", help="a table on stderr at exit; $UTPSOCKET_STATS=1")
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help="run a module, as python3 -m does")
    parser.add_argument("-c", dest="code", nargs=argparse.REMAINDER, help="run code, as python3 -c does")
    parser.add_argument("program", nargs=argparse.REMAINDER, help="a script (or folder, or archive) and its arguments")


def run(arguments: argparse.Namespace) -> int:
    """Become the program. Returns only when that cannot be: 2."""
    command = _command(arguments)
    if command is None:
        return _refuse("what shall be run? A script, -m module or -c code")
    rules = {name: getattr(arguments, name) for name in VARIABLES}
    try:
        make_routes(**rules)
    except ValueError as error:
        return _refuse(str(error))
    if sys.flags.ignore_environment or sys.flags.no_site:
        return _refuse("an interpreter started with -E, -I or -S cannot be patched from outside: call patch_all()")
    environment = {**os.environ, **startup.environment(rules)}
    if arguments.stats:
        environment["UTPSOCKET_STATS"] = str(os.getpid())  # which exec keeps
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *_interpreter_options(), *command], environment)


def _command(arguments: argparse.Namespace) -> Sequence[str] | None:
    for option, value in (("-m", arguments.module), ("-c", arguments.code)):
        if value is not None:
            return [option, *value] if value else None
    program: list[str] = arguments.program
    return program or None


def _interpreter_options() -> list[str]:
    options: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # -W, -X, -O, …
    return options


def _refuse(why: str) -> int:
    complain(why)
    return WRONG_USAGE

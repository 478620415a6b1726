"""The commands of `python3 -m utpsocket`, one module each, imported when it is called and not before.

A command's module has `configure(parser)`, which adds its arguments, `EXAMPLES`, command lines that its --help shows,
and `run(arguments)`, which returns the exit status: 0 all as it should be, 1 something failed, 2 wrong usage; a module
with others has them in `EXIT_STATUS`. With --json a command prints one JSON object on stdout and nothing else there;
progress and notes go to stderr.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import signal
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Final

import utpsocket
from utpsocket.cli.messages import Parser, complain
from utpsocket.protocol.build import BUILD

COMMANDS: Final = {
    "demo": "download a file with http.client from http.server in another process, both over uTP",
    "run": "a Python program, unmodified, with uTP in place of TCP",
    "perf": "how fast bytes go from one process or machine to another, and what it costs",
    "stat": "the engines of running processes: state, round-trip time, windows, losses of each connection, like ss -ti",
    "nc": "stdin to a peer and the peer to stdout, like Ncat; or a program for each connection",
}

EXIT_STATUS: Final = "0 all as it should be, 1 something failed, 2 wrong usage"
INTERRUPTED: Final = 128 + signal.SIGINT  # what a shell reports for a program that Ctrl-C ended


def _version() -> str:
    return (
        f"utpsocket {utpsocket.__version__} ({BUILD}; {platform.python_implementation()} {platform.python_version()})"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` names (default: the process's own arguments) and return its exit status."""
    program = "utpsocket" if os.path.basename(sys.argv[0]) == "utpsocket" else "python3 -m utpsocket"
    chooser = Parser(
        prog=program,
        description="Commands around utpsocket, a socket.socket whose bytes travel over uTP (BEP 29).",
        epilog="\n".join(
            [
                "commands:",
                *(f"  {name:<10}{about}" for name, about in COMMANDS.items()),
                "",
                f"exit status: {EXIT_STATUS}",
            ]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    chooser.add_argument("--version", action="version", version=_version(), help="version, build and interpreter")
    chooser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="one of those below")
    chooser.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER, help="COMMAND --help lists them")
    chosen = chooser.parse_args(argv)

    module = importlib.import_module(f"{__name__}.{chosen.command}")
    parser = Parser(
        prog=f"{program} {chosen.command}",
        description=COMMANDS[chosen.command],
        epilog=_epilog(module, program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.configure(parser)
    try:
        status: int = module.run(parser.parse_args(chosen.arguments))
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    return status


def _epilog(module: ModuleType, program: str) -> str:
    examples = "\n".join(f"  {program} {example}" for example in module.EXAMPLES)
    return f"examples:\n{examples}\n\nexit status: {getattr(module, 'EXIT_STATUS', EXIT_STATUS)}"

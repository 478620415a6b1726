"""`run`: a Python program, unmodified, with uTP in place of TCP.

    run [options] script.py arguments ...
    run [options] -m module arguments ...
    run [options] -c code arguments ...
    run [options] name arguments ...          a console script on PATH, such as gunicorn

Options of the interpreter, such as -u, -X dev and -W error, are passed on. The program is run by the interpreter
itself: this process replaces itself with `python3 script.py arguments ...`, in an environment in which Python patches
`socket` when it is imported (utpsocket.startup). So sys.argv, sys.path, __main__, tracebacks, signals and the exit
status are Python's own, and the interpreters that the program starts are patched too.

-E and -I would keep the interpreter from finding utpsocket.startup. What they do is done in another way: by -s and -P,
and by an environment without Python's own variables.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
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
    "run -X dev gunicorn --workers 2 shop:app",
)
# Those without a value that a program may want; -S would keep it from being patched.
_FLAGS: Final = {
    "b": "warn of str(bytes)",
    "B": "write no .pyc files",
    "i": "stay interactive",
    "O": "no asserts",
    "OO": "no asserts, no docstrings",
    "P": "no unsafe path on sys.path",
    "q": "no version at an interactive start",
    "s": "no user's site-packages",
    "u": "unbuffered stdout and stderr",
    "v": "say what is imported",
}
_HEAD_BYTES: Final = 4_096  # of a script: its first two lines; by feel
EXIT_STATUS: Final = "the program's own; 2 wrong usage"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add run's arguments to `parser`."""
    parser.usage = f"{parser.prog} [options] (script.py | name | -m module | -c code) [arguments ...]"
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
    interpreter = parser.add_argument_group("options of the interpreter (python3 --help)")
    for flag in _FLAGS:
        interpreter.add_argument(f"-{flag}", dest="flags", action="append_const", const=f"-{flag}", help=_FLAGS[flag])
    interpreter.add_argument("-I", dest="is_isolated", action="store_true", help="-E, -s and -P")
    interpreter.add_argument("-E", dest="ignores_environment", action="store_true", help="no variable PYTHON…")
    for flag in ("W", "X"):
        interpreter.add_argument(f"-{flag}", dest="flags", action="append", type=f"-{flag}{{}}".format, metavar="OPT")
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help="run a module, as python3 -m does")
    parser.add_argument("-c", dest="code", nargs=argparse.REMAINDER, help="run code, as python3 -c does")
    parser.add_argument("program", nargs=argparse.REMAINDER, help="a script (or folder, or archive) and its arguments")


def run(arguments: argparse.Namespace) -> int:
    """Become the program. Returns only when that cannot be: 2."""
    command = _command(arguments)
    if command is None:
        return _refuse("what shall be run? A script, a console script's name, -m module or -c code")
    rules = {name: getattr(arguments, name) for name in VARIABLES}
    try:
        make_routes(**rules)
        interpreter = _interpreter_of(command)
    except ValueError as error:
        return _refuse(str(error))
    if sys.flags.ignore_environment or sys.flags.no_site:
        return _refuse("an interpreter started with -E, -I or -S cannot be patched from outside: call patch_all()")
    flags = [*_interpreter_options(), *(arguments.flags or [])]
    environment = {**os.environ, **startup.environment(rules)}
    if arguments.is_isolated:
        if not hasattr(sys.flags, "safe_path"):
            return _refuse("-I needs Python 3.11 here, which has -P")
        flags += ["-s", "-P"]
    if arguments.is_isolated or arguments.ignores_environment:
        environment = {name: value for name, value in environment.items() if not name.startswith("PYTHON")}
        environment["PYTHONPATH"] = startup.FOLDER
    if arguments.stats:
        environment["UTPSOCKET_STATS"] = str(os.getpid())  # which exec keeps
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execve(interpreter, [interpreter, *flags, *command], environment)
    except OSError as error:
        return _refuse(f"{interpreter}: {error.strerror}")


def _command(arguments: argparse.Namespace) -> list[str] | None:
    for option, value in (("-m", arguments.module), ("-c", arguments.code)):
        if value is not None:
            return [option, *value] if value else None
    program: list[str] = arguments.program
    return program or None


def _interpreter_of(command: list[str]) -> str:
    """The interpreter to run the command by. A console script's name in it is replaced by its path.

    Raises ValueError for what is no Python program.
    """
    program = command[0]
    if program in ("-m", "-c"):
        return sys.executable
    is_script = os.sep in program or os.path.exists(program)
    path = program if is_script else shutil.which(program)
    if path is None or os.path.isdir(path):
        return sys.executable  # which says that there is no such file
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return sys.executable  # as above
    command[0] = path
    if head.startswith(b"\x7fELF"):
        raise ValueError(f"{path} is no Python program but a binary, whose sockets cannot be replaced")
    if not head.startswith(b"#!"):
        return sys.executable
    named = _interpreter_named(head.decode(errors="replace").splitlines())
    if "python" not in os.path.basename(named):
        raise ValueError(f"{path} is no Python program: {named} runs it")
    # A script that is given by its path is run by this interpreter, as python3 SCRIPT would.
    return sys.executable if is_script or os.sep not in named else named


def _interpreter_named(lines: Sequence[str]) -> str:
    """In a script's first line; in its second where pip has found the interpreter's path too long for the kernel."""
    words = lines[0][2:].split()
    if len(lines) > 1 and lines[1].startswith("'''exec' "):
        words = shlex.split(lines[1].removeprefix("'''exec' "))
    elif words and os.path.basename(words[0]) == "env":
        words = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
    return words[0] if words else "nothing"


def _interpreter_options() -> list[str]:
    options: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # -W, -X, -O, …
    return options


def _refuse(why: str) -> int:
    complain(why)
    return WRONG_USAGE

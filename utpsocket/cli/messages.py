"""What commands say to people, on stderr: stdout is kept for the result.

What is wrong begins with "utpsocket: " in every command, so that it can be told from what a program says that a command
runs; notes on the way have no prefix.
"""

from __future__ import annotations

import argparse
import sys
from typing import Final, NoReturn

WRONG_USAGE: Final = 2
"""The exit status for arguments that cannot be followed."""


def note(text: str) -> None:
    """Say how things are going."""
    print(text, file=sys.stderr, flush=True)


def complain(text: str) -> None:
    """Say what is wrong."""
    note(f"utpsocket: {text}")


class Parser(argparse.ArgumentParser):
    """argparse's, with the prefix of every command where it complains."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and what is wrong with the arguments; exit with status 2."""
        self.print_usage(sys.stderr)
        self.exit(WRONG_USAGE, f"utpsocket: {message}\n")

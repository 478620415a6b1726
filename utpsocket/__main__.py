"""`python3 -m utpsocket COMMAND`: the same as the console script `utpsocket`."""

from __future__ import annotations

import sys

from utpsocket.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""The tests. `python3 -m tests` runs them: see __main__.py."""

import sys

# Here, since whatever runs below `tests` imports this first, and an older Python could not even read the rest.
if sys.version_info < (3, 10):  # noqa: UP036  # what says so
    sys.exit("utpsocket needs Python 3.10 or later; this is " + sys.version.split()[0])

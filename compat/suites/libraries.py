"""The libraries, each with the version it is pinned to and how its suite is run.

A suite's pins are `pins/NAME.txt`: all that its environment holds, at the versions of the runs in RESULTS.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final


@dataclass(frozen=True)
class Library:
    """One library and its suite."""

    name: str
    version: str
    requirements: tuple[str, ...]
    """what the suite needs beside the library itself"""

    arguments: tuple[str, ...]
    """of pytest"""

    files: tuple[str, ...] = ()
    """of the source distribution, to work in: tests and what they read, not the library, which is installed"""

    excluded: tuple[tuple[str, str], ...] = ()
    """globs of tests that are run on neither side, each with the reason"""


LIBRARIES: Final = (
    Library(
        "tornado",
        "6.6.1",
        ("pytest",),  # without pycurl: libcurl makes its own sockets
        ("--pyargs", "tornado.test", "-o", "python_files=*_test.py", "-p", "compat.suites.quiet_tornado"),
    ),
    Library(
        "trio",
        "0.35.0",
        ("pytest", "pyOpenSSL", "trustme", "cryptography", "async_generator"),
        ("--pyargs", "trio", "-p", "trio._tests.pytest_plugin"),
        ("pyproject.toml",),
    ),
    Library(
        "urllib3",
        "2.8.0",
        (
            "anyio[trio]",
            "brotli",
            "cryptography",
            "h2",
            "httpx",
            "hypercorn",
            "idna",
            "pyopenssl",
            "pysocks",
            "pytest",
            "pytest-socket",
            "pytest-timeout",
            "quart",
            "quart-trio",
            "trio",
            "trustme",
        ),
        ("test",),
        ("pyproject.toml", "dummyserver", "test"),
    ),
    Library(
        "aiohttp",
        "3.14.5",
        (
            "aiodns",
            "blockbuster",
            "brotli",
            "freezegun",
            "isal",
            "pkgconfig",
            "proxy.py",
            "pytest",
            "pytest-cov",
            "pytest-mock",
            "pytest-timeout",
            "pytest-xdist",
            "pytest_codspeed",
            "python-on-whales",
            "re-assert",
            "trustme",
            "zlib_ng",
        ),
        ("tests", "-m", "not dev_mode and not autobahn and not internal", "--ignore-glob=*/test_benchmarks*"),
        ("pytest.ini", "README.rst", "tests", "examples", "requirements"),
    ),
    Library(
        "paramiko",
        "5.1.0",
        ("icecream", "invoke", "pytest", "pytest-relaxed"),
        ("tests", "-o", "python_files=test_*.py"),
        ("pytest.ini", "tests"),
    ),
    Library(
        "anyio",
        "4.16.0",
        (
            "anyio[trio]",
            "blockbuster",
            "hypothesis",
            "psutil",
            "pytest",
            "pytest-mock",
            "pytest-timeout",
            "trustme",
            "truststore",
            "uvloop",
        ),
        ("tests",),
        ("pyproject.toml", "tests"),
    ),
    Library("waitress", "3.0.2", ("pytest",), ("tests",), ("tests",)),
)

# Where sockets are exercised hardest for the two minutes that they take.
QUICK: Final = ("tornado", "trio")


def select(patterns: tuple[str, ...]) -> list[Library]:
    """The libraries that these names or globs take, each once, in the table's order."""
    return [library for library in LIBRARIES if any(fnmatchcase(library.name, pattern) for pattern in patterns)]

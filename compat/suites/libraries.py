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

    debian: str = ""
    """Debian's source package of that version, for a source distribution that has no network tests"""


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
            "gunicorn",
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
            "uvloop",
            "zlib_ng",
        ),
        ("tests", "-m", "not dev_mode and not autobahn and not internal"),
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
        ("tests", "-W", "ignore::hypothesis.errors.HypothesisWarning"),
        ("pyproject.toml", "tests"),
    ),
    Library("waitress", "3.0.2", ("pytest",), ("tests",), ("tests",)),
    Library(
        "websockets",
        "15.0.1",
        # Without mitmproxy, a proxy for which its tests otherwise wait.
        ("pytest", "python-socks[asyncio]", "werkzeug"),
        ("tests",),
        ("tests",),
        debian="python-websockets=15.0.1-1",
    ),
    Library(
        "uvicorn",
        "0.54.0",
        (
            "uvicorn[standard]",
            "a2wsgi",
            "cryptography",
            "httpx2",
            "pytest",
            "pytest-codspeed",
            "pytest-mock",
            "trustme",
            "wsproto",
            "zttp",
        ),
        ("tests", "--ignore=tests/benchmarks"),
        ("pyproject.toml", "tests"),
    ),
    Library(
        "cheroot",
        "11.1.2",
        (
            "jaraco.context",
            "jaraco.text",
            "portend",
            "pyopenssl",
            "pypytools",
            "pytest",
            "pytest-mock",
            "requests-unixsocket",
            "requests[use_chardet_on_py3]",
            "requests_toolbelt",
            "trustme",
        ),
        (
            "--pyargs",
            "cheroot.test",
            "-p",
            "cheroot.test._pytest_plugin",
            "-W",
            "ignore::pytest.PytestUnknownMarkWarning",  # of flaky tests, which are run once as the others are
            "-W",
            "ignore::DeprecationWarning",  # pyOpenSSL's of a key's password
        ),
        ("pytest.ini",),
    ),
    Library(
        "pyftpdlib",
        "2.2.0",
        ("psutil", "pyopenssl", "pytest", "pytest-instafail", "pytest-xdist", "setuptools"),
        ("tests",),
        ("pyproject.toml", "tests"),
    ),
    Library(
        "requests",
        "2.34.2",
        ("httpbin", "pytest", "pytest-httpbin", "pytest-mock", "requests[socks]", "trustme"),
        ("tests",),
        ("pyproject.toml", "tests"),
    ),
    Library(
        "httpx",
        "0.28.1",
        (
            "httpx[brotli,cli,http2,socks,zstd]",
            "chardet",
            "cryptography",
            "pytest",
            "trio",
            "trustme",
            "uvicorn",
        ),
        ("tests",),
        ("pyproject.toml", "tests"),
    ),
    Library(
        "httpcore",
        "1.0.9",
        ("httpcore[asyncio,http2,socks,trio]", "httpbin", "pytest", "pytest-httpbin", "pytest-trio", "trustme"),
        ("tests",),
        ("pyproject.toml", "tests"),
    ),
    Library(
        "aiosmtpd",
        "1.4.6",
        ("pytest", "pytest-asyncio", "pytest-mock", "setuptools<81"),
        (
            "--pyargs",
            "aiosmtpd.tests",
            "-o",
            "asyncio_default_fixture_loop_scope=function",
            "-W",
            "ignore::pytest.PytestUnknownMarkWarning",
        ),
        ("pytest.ini",),
    ),
    Library(
        "asyncssh",
        "2.24.1",
        ("asyncssh[bcrypt,fido2,ifaddr,pyOpenSSL]", "aiofiles", "pytest", "setuptools"),
        ("tests",),
        ("tests",),
    ),
    Library(
        "websocket-client",
        "1.9.2",
        ("pytest", "python-socks", "websockets", "wsaccel"),
        ("--pyargs", "websocket.tests"),
    ),
    Library(
        "gunicorn",
        "27.0.1",
        ("gevent", "gunicorn[http2,setproctitle,tornado]", "httpx[http2]", "pytest", "pytest-asyncio", "uvloop"),
        ("tests",),
        ("pyproject.toml", "tests"),
    ),
    Library(
        "eventlet",
        "0.41.3",
        ("pytest", "pyopenssl", "pyzmq", "dnspython"),
        ("tests", "-o", "python_files=*_test.py test_*.py test__*.py"),
        ("tests",),
    ),
    Library(
        "twisted",
        "26.10.0",
        ("twisted[tls,conch,http2]", "hypothesis", "pytest"),
        (
            "--pyargs",
            "twisted.internet.test.test_tcp",
            "twisted.internet.test.test_tls",
            "twisted.internet.test.test_endpoints",
            "twisted.internet.test.test_socket",
            "twisted.test.test_tcp",
            "twisted.test.test_ftp",
            "twisted.test.test_ssl",
            "twisted.test.test_sslverify",
            "twisted.test.test_policies",
            "twisted.protocols.test.test_tls",
            "twisted.web.test",
        ),
    ),
)

# Where sockets are exercised hardest for the two minutes that they take.
QUICK: Final = ("tornado", "trio")


def select(patterns: tuple[str, ...]) -> list[Library]:
    """The libraries that these names or globs take, each once, in the table's order."""
    return [library for library in LIBRARIES if any(fnmatchcase(library.name, pattern) for pattern in patterns)]

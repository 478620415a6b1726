"""The tests that pass over TCP and cannot pass over uTP, each with the reason in the protocol or the platform.

A listed test that passes is an error (stale), unless `sometimes` says that it is a race. What is missing work does not
belong here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final


@dataclass(frozen=True)
class Expectation:
    """One glob over test ids, and why they differ."""

    tests: str
    reason: str
    since: tuple[int, int] = (3, 0)  # of the interpreters it holds for
    before: tuple[int, int] = (4, 0)
    sometimes: bool = False  # a race: it may pass as well
    cause: str = ""  # in every failure's report, or it is another failure; a skip or a test not run has none

    def covers(self, identity: str, version: tuple[int, ...]) -> bool:
        """Whether this entry is about the test, under an interpreter of this version."""
        return self.since <= version[:2] < self.before and fnmatchcase(identity.partition("#")[0], self.tests)


@dataclass(frozen=True)
class Slower(Expectation):
    """A glob over tests that take more than three times as long as over TCP, and long enough to be noticed."""

    by_up_to_seconds: float = math.inf  # more than that is unexplained


NO_URGENT_DATA: Final = "MSG_OOB: uTP has no urgent data"

EXPECTED: Final = (
    Expectation("test_asyncore.*.test_handle_expt", NO_URGENT_DATA),
    Expectation("test_ftplib.TestFTPClass.test_abort", NO_URGENT_DATA),
    Expectation(
        "test_asyncio.test_ssl.TestSSL.test_remote_shutdown_receives_trailing_data*",
        "gh-115514: an asyncio transport of 3.12, and of 3.13 at first, loses what is still buffered when it is closed",
        since=(3, 12),
        before=(3, 14),
        sometimes=True,
    ),
    Expectation(
        "test_asyncio.test_streams.StreamTests.test_unclosed_resource_warnings",
        "counts all garbage: test_start_tls, which went before, ended its loop before the server in it had heard of the"
        " client's close; kernel TCP tells within close(), a thread a moment later",
        since=(3, 11),
        sometimes=True,
    ),
    Expectation(
        "test_socket.*.testWriteNonBlocking",
        "fills every buffer with eleven writes, or skips itself: 4 MiB at each end, emptied by the engine meanwhile,"
        " take about one time in a hundred more than that",
        sometimes=True,
    ),
    Expectation(
        "test_epoll.TestEPoll.test_control_and_wait",
        "expects both ends' data in the first epoll_wait: kernel TCP delivers within send(), a thread a moment later,"
        " unless the test's own has been kept waiting meanwhile",
        sometimes=True,
    ),
)

SLOWER: Final = (
    Slower(
        "test_ssl.*",
        "the test's server looks at its stop flag once a second: whether it gets there in time is a race over TCP too",
        by_up_to_seconds=1.5,
    ),
    Slower(
        "test_logging.*.test_listen_config_*",
        "as test_ssl's: the listening thread looks at its stop flag once a second",
        by_up_to_seconds=1.5,
    ),
    Slower(
        "test_docxmlrpc.*",
        "serve_forever() looks at its stop flag every half second: so do these tests over TCP now and then",
        by_up_to_seconds=0.7,
    ),
    Slower(
        "test_socket.*.testSmallReadNonBlocking",
        "reads within microseconds of the write; where there is nothing yet, the test itself sleeps for half a second",
        by_up_to_seconds=0.7,
    ),
    Slower(
        "test_socket.InterruptedSendTimeoutTest.*",
        "sends until no buffer takes any more, 512 bytes at a time: 4 MiB at each end, twice of what TCP takes here",
        by_up_to_seconds=4.0,
    ),
    Slower(
        "test_socket.SendmsgTCPTest.testSendmsg*",
        "the same: it sends until no buffer takes any more",
        by_up_to_seconds=4.0,
    ),
    Slower("test_signal.*", "makes no connection: the machine was busier in that run"),
    Slower(
        "test_largefile.TestSocketSendfile.test_it",
        "2.5 GB within one process: the engine moves some hundred MB/s where the kernel's TCP moves a GB/s",
    ),
    Slower(
        "test_asyncio.test_ssl.TestSSL.test_create_*_ssl_*",
        "25 threads at their TLS handshakes hold the interpreter's lock: round trips of more than 10 ms are measured,"
        " and on such paths bursts are small",
    ),
    Slower(
        "test_multiprocessing_*",
        "each process that is started imports utpsocket before it begins",
        by_up_to_seconds=4.0,
    ),
    Slower(
        "test_asyncio.test_streams.StreamTests.test_drain_raises",
        "four-byte writes fill an AF_UNIX socket before any other thread runs; asyncio then gathers 64 KB"
        " of them, counting all again at each write, before it looks at the socket",
        since=(3, 12),
    ),
)


def expectation(
    identity: str, version: tuple[int, ...], expected: tuple[Expectation, ...] = EXPECTED
) -> Expectation | None:
    """The first entry about this test's result, if any."""
    return next((entry for entry in expected if entry.covers(identity, version)), None)


def explanation(identity: str, version: tuple[int, ...], seconds_more: float) -> str | None:
    """The stated reason, if any, why this test took so much longer than over TCP."""
    entries = (entry for entry in SLOWER if entry.covers(identity, version) and seconds_more <= entry.by_up_to_seconds)
    return next((entry.reason for entry in entries), None)

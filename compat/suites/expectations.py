"""The tests that pass over TCP and cannot pass over uTP, each with the reason. See compat.stdlib's."""

from __future__ import annotations

from typing import Final

from compat.stdlib.expectations import NO_URGENT_DATA, Expectation

EXPECTED: Final = (
    Expectation("waitress.test_wasyncore.*.test_handle_expt", NO_URGENT_DATA),
    Expectation(
        "tornado.test.iostream_test.TestIOStreamSSL.test_inline_read_error",
        "closes the server's descriptor once the client's TLS handshake is done and expects the server's to be over:"
        " kernel TCP delivers the last message within send(), a thread a moment later",
        sometimes=True,
        cause="AssertionError: OSError not raised",
    ),
)

"""The tests that pass over TCP and cannot pass over uTP, each with the reason. See compat.stdlib's."""

from __future__ import annotations

from typing import Final

from compat.stdlib.expectations import NO_URGENT_DATA, Expectation

EXPECTED: Final = (
    Expectation("waitress.test_wasyncore.*.test_handle_expt", NO_URGENT_DATA),
    Expectation("pyftpdlib.test_*.TestFtpAbort*.test_oob_abor", NO_URGENT_DATA),
    Expectation(
        "cheroot.test.test_conn.test_broken_connection_during_tcp_fin?real_socket.error(ENOTCONN)?",
        "the server answers a client that has closed, and shuts down at once: kernel TCP has the RESET that follows"
        " within send(), a thread a moment later",
        sometimes=True,
    ),
    Expectation(
        "websockets.legacy.test_client_server.*.test_server_shuts_down_*during_connection_handling",
        "the client's end closes, and a few turns of the same event loop later the server's must have seen it: kernel"
        " TCP delivers the FIN within close(), a thread a moment later",
        sometimes=True,
        cause="AssertionError: None != <CloseCode.",
    ),
    Expectation(
        "websockets.legacy.test_client_server.*",
        "counts warnings while a transport is collected that a test before it left behind: that one ended its event"
        " loop once the client had closed, before the server's end had seen it. Kernel TCP delivers the FIN within"
        " close(), a thread a moment later",
        sometimes=True,
        cause="<class 'ResourceWarning'> is not <class 'DeprecationWarning'>",
    ),
    Expectation(
        "websockets.sync.test_connection.*.test_writing_in_*_fails",
        "opens no internet socket, and races with the thread at the other end of its pair, which closes at once: on a"
        " busy machine it fails over TCP as often, 7 times of 32 beside 3 of 32",
        sometimes=True,
    ),
    Expectation(
        "eventlet.wsgi_test.TestHttpd.test_do_not_close_non_idle_connections",
        "the server has closed, and the client writes twice without a pause: kernel TCP has the RESET in answer to the"
        " first within send(), a thread a moment later",
        sometimes=True,
        cause="AssertionError: OSError not raised",
    ),
    Expectation(
        "eventlet.wsgi_test.*",
        "the client's end has closed, and one turn of the hub later the server's green thread must have seen it: kernel"
        " TCP delivers the FIN within close(), a thread a moment later",
        sometimes=True,
        cause="AssertionError: Readers: Listener FdListener('read'",
    ),
    Expectation(
        "anyio.test_sockets.test_wait_socket?*-writable-*",
        "waits until it may write, and reads without blocking what was sent before accept(): kernel TCP delivers data"
        " within send(), a thread a moment later",
        sometimes=True,
        cause="BlockingIOError",
    ),
    Expectation(
        "anyio.test_sockets.TestTCPStream.test_send_after_peer_closed?*",
        "the peer has closed; three bytes are sent a thousand times, during which kernel TCP has the RESET in answer to"
        " the first, a thread a moment later",
        sometimes=True,
        cause="DID NOT RAISE",
    ),
    Expectation(
        "asyncssh.test_stream._TestStream.test_async_iterator",
        "the echoed lines and the end of the channel must have come before the last line is asked for: over kernel TCP"
        " they are there within send(), a thread delivers the one before the other is written",
        sometimes=True,
        cause="IndexError: pop from empty list",
    ),
    Expectation(
        "tornado.test.iostream_test.TestIOStreamSSL*.test_inline_read_error",
        "closes the server's descriptor once the client's TLS handshake is done and expects the server's to be over:"
        " kernel TCP delivers the last message within send(), a thread a moment later",
        sometimes=True,
        cause="AssertionError: OSError not raised",
    ),
    Expectation(
        "twisted.test.test_policies.ThrottlingTests.test_limit",
        "flaky by its own words: when it ends the server must have seen the clients close: kernel TCP delivers the FIN"
        " within close(), a thread a moment later",
        sometimes=True,
        cause="Reactor was unclean.",
    ),
    Expectation(
        "gunicorn.test_http2_h2c.TestH2CASGIContract.test_a_paused_transport_stops_reading_too",
        "opens no socket, and counts what was written by when its application has been called, which may not have"
        " answered yet: alone it fails over TCP as well, one time of three",
        sometimes=True,
        cause="assert len(transport.written) == queued",
    ),
    Expectation(
        "urllib3.*.TestSocketClosing.test_recovery_when_server_closes_connection",
        "the server closes, then sets an Event, and the pool's connection must be at end of file by then:"
        " kernel TCP delivers the FIN within close(), a thread a moment later",
        sometimes=True,
    ),
    Expectation(
        "urllib3.*.TestSocketClosing.test_connection_refused",
        "its teardown waits for the server's thread of the test before it, which is that one",
        sometimes=True,
        cause="server_thread did not exit",
    ),
    Expectation(
        "urllib3.*",
        "connects with a timeout of one millisecond: the kernel shakes hands within connect(), the engine's thread may"
        " have to wait longer than that for a processor",
        sometimes=True,
        cause="(connect timeout=0.001)",
    ),
)

"""Half-close, close, reset, linger, and who keeps a connection open."""

from __future__ import annotations

import errno
import gc
import os
import re
import select
import socket
import struct
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from .network import (
    AT_ONCE_S,
    LONG_S,
    PATIENCE_S,
    RESET_ON_CLOSE,
    Net,
    eventually,
    fill_for_good,
    outcome,
    own_loopback,
    raises_errno,
    readable,
    receive_all,
    receive_exactly,
)

# -- half-close -----------------------------------------------------------------------------------------------


def kind_of_outcome(operation: Callable[[], object]) -> str:
    return outcome(operation)[0]


def test_half_close_in_one_direction_then_the_other(net: Net) -> None:
    client, server = net.pair()
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert receive_all(server) == b"question"
    server.sendall(b"answer" * 50_000)
    server.shutdown(socket.SHUT_WR)
    assert receive_all(client) == b"answer" * 50_000


def test_half_close_by_the_server_first(net: Net) -> None:
    client, server = net.pair()
    server.sendall(b"hello")
    server.shutdown(socket.SHUT_WR)
    assert receive_all(client) == b"hello"
    client.sendall(b"thanks")
    client.close()
    assert receive_all(server) == b"thanks"


def test_half_close_at_the_same_time(net: Net) -> None:
    client, server = net.pair()
    client.sendall(b"up")
    server.sendall(b"down")
    client.shutdown(socket.SHUT_WR)
    server.shutdown(socket.SHUT_WR)
    assert (receive_all(client), receive_all(server)) == (b"down", b"up")


def test_fin_comes_after_all_the_data(net: Net) -> None:
    client, server = net.pair()
    payload = os.urandom(2 << 20)
    sender = net.spawn(lambda: (client.sendall(payload), client.shutdown(socket.SHUT_WR)))
    assert receive_all(server) == payload
    sender.result()


def test_sending_after_shut_wr(net: Net) -> None:
    client, _ = net.pair()
    client.shutdown(socket.SHUT_WR)
    for send in (client.send, client.sendall):
        with raises_errno(errno.EPIPE):
            send(b"x")
    with raises_errno(errno.EPIPE):
        client.sendmsg([b"x"])


def test_receiving_after_shut_rd(net: Net) -> None:
    client, server = net.pair()
    client.shutdown(socket.SHUT_RD)
    assert client.recv(10) == b""
    client.sendall(b"writing goes on")
    assert receive_exactly(server, 15) == b"writing goes on"


def test_shut_rd_keeps_what_had_arrived(net: Net) -> None:
    client, server = net.pair()
    server.sendall(b"abc")
    readable(client)
    client.shutdown(socket.SHUT_RD)
    assert client.recv(10) == b"abc"
    assert client.recv(10) == b""


def test_the_peer_may_go_on_sending_after_shut_rd(net: Net) -> None:
    client, server = net.pair()
    client.shutdown(socket.SHUT_RD)
    server.sendall(b"nobody reads this")
    client.sendall(b"ok")
    assert receive_exactly(server, 2) == b"ok"


def test_shutdown_both(net: Net) -> None:
    client, server = net.pair()
    client.sendall(b"last words")
    client.shutdown(socket.SHUT_RDWR)
    assert receive_all(server) == b"last words"
    assert client.recv(1) == b""
    with raises_errno(errno.EPIPE):
        client.send(b"x")


def test_shutdown_twice(net: Net) -> None:
    client, _ = net.pair()
    client.shutdown(socket.SHUT_WR)
    client.shutdown(socket.SHUT_WR)
    client.shutdown(socket.SHUT_RD)


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR])
def test_shutdown_of_a_connection_the_peer_reset(net: Net, how: int) -> None:
    client, server = net.pair()
    net.reset(server)
    readable(client)
    with raises_errno(errno.ENOTCONN):
        client.shutdown(how)


@pytest.mark.parametrize("first", ["client", "server"])
def test_names_end_with_both_halves(net: Net, first: str) -> None:
    """Whichever side ends first, and although both fds are open still: the connection is over, for both sides."""
    client, server = net.pair()
    one, other = (client, server) if first == "client" else (server, client)
    one.shutdown(socket.SHUT_WR)
    assert other.recv(1) == b""
    other.shutdown(socket.SHUT_WR)
    assert one.recv(1) == b""
    for sock in (one, other):
        assert eventually(partial(kind_of_outcome, sock.getpeername), "OSError") == "OSError"
        with raises_errno(errno.ENOTCONN):
            sock.getpeername()
        with raises_errno(errno.ENOTCONN):
            sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""


def test_shutdown_when_both_sides_have_closed(net: Net) -> None:
    client, server = net.pair()
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    server.close()
    assert client.recv(1) == b""

    def shutdown() -> int:
        try:
            client.shutdown(socket.SHUT_WR)
        except OSError as error:
            return error.errno or 0
        return 0

    assert eventually(shutdown, errno.ENOTCONN) == errno.ENOTCONN


# -- close ----------------------------------------------------------------------------------------------------


def test_peer_reads_everything_then_end_of_file(net: Net) -> None:
    client, server = net.pair()
    client.sendall(b"x" * 100_000)
    client.close()
    assert receive_all(server) == b"x" * 100_000
    assert server.recv(1) == b""


def test_close_delivers_in_the_background(net: Net) -> None:
    """close() returns at once although the peer has not read a byte yet, and nothing is lost."""
    client, server = net.pair()
    payload = os.urandom(200_000)
    client.sendall(payload)
    began = time.monotonic()
    client.close()
    assert time.monotonic() - began < AT_ONCE_S
    assert receive_all(server) == payload


def test_close_with_unread_data_resets_the_peer(net: Net) -> None:
    client, server = net.pair()
    client.sendall(b"never read")
    readable(server)
    server.close()
    with raises_errno(errno.ECONNRESET):
        client.recv(10)
    assert client.recv(10) == b""


def test_data_for_a_closed_socket_resets_the_sender(net: Net) -> None:
    client, server = net.pair()
    server.close()
    assert client.recv(1) == b""
    client.send(b"nobody there")

    def send() -> int:
        try:
            client.send(b"x")
        except OSError as error:
            return error.errno or 0
        return 0

    assert eventually(send, errno.EPIPE) == errno.EPIPE


def test_last_bytes_before_closing_with_unread_data_may_be_read_or_reset(net: Net) -> None:
    client, server = net.pair()
    client.sendall(b"unread")
    readable(server)
    server.sendall(b"goodbye")
    readable(client)
    server.close()
    assert client.recv(100) == b"goodbye"
    with raises_errno(errno.ECONNRESET):
        client.recv(100)


@pytest.mark.parametrize("shuts_down", [False, True])
@pytest.mark.parametrize("how", ["unread", "linger", "both"])
def test_breaking_off_where_what_was_written_is_not_read(net: Net, how: str, shuts_down: bool) -> None:
    """All buffers are full, so much of it never left: it goes, the peer is reset at once, and nothing stays behind."""
    listener, client = net.listener(), net.fresh()
    for sock, option in ((listener, socket.SO_RCVBUF), (client, socket.SO_SNDBUF)):
        sock.setsockopt(socket.SOL_SOCKET, option, 4_096)
    client.connect(listener.getsockname())
    server = net.accept(listener)
    if how != "linger":
        server.sendall(b"unread")
        readable(client)
    client.setblocking(False)
    fill_for_good(client)
    if shuts_down:
        client.shutdown(socket.SHUT_RDWR)
    if how != "unread":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    client.close()
    with raises_errno(errno.ECONNRESET):
        receive_all(server)
    server.close()


def test_close_is_idempotent_and_final(net: Net) -> None:
    client, _ = net.pair()
    client.close()
    client.close()
    assert client.fileno() == -1
    for call in (lambda: client.recv(1), lambda: client.send(b"x"), client.getpeername, client.getsockname):
        with raises_errno(errno.EBADF):
            call()
    assert "[closed]" in repr(client)


def test_module_close_closes_the_fd(net: Net) -> None:
    client, server = net.pair()
    net.module.close(client.detach())
    assert server.recv(1) == b""


def test_os_close_closes_the_connection(net: Net) -> None:
    client, server = net.pair()
    os.close(client.detach())
    assert server.recv(1) == b""


def test_with_statement_closes(net: Net) -> None:
    client, server = net.pair()
    with client as entered:
        assert entered is client
        client.sendall(b"x")
    assert client.fileno() == -1
    assert receive_all(server) == b"x"


def test_with_statement_closes_after_an_error(net: Net) -> None:
    client, server = net.pair()
    with pytest.raises(ZeroDivisionError), client:
        1 / 0  # noqa: B018
    assert server.recv(1) == b""


def test_unclosed_socket_warns_with_the_words_of_the_stdlib(net: Net) -> None:
    listener = net.listener()
    client = net.module.socket(socket.AF_INET, socket.SOCK_STREAM)
    client.connect(listener.getsockname())
    server = net.accept(listener)
    described = repr(client)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del client
        gc.collect()
    assert [(str(each.message), each.category) for each in caught] == [(f"unclosed {described}", ResourceWarning)]
    assert server.recv(1) == b""


def test_closed_socket_does_not_warn(net: Net) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        closed, detached, fresh = *net.pair(), net.fresh()
        closed.close()
        fresh.close()
        os.close(detached.detach())
        net.close()  # lets go of them
        del closed, detached, fresh
        gc.collect()
    assert [str(each.message) for each in caught] == []


def test_close_of_a_fresh_a_bound_and_a_listening_socket(net: Net) -> None:
    fresh, bound, listener = net.fresh(), net.fresh(), net.listener()
    bound.bind(("127.0.0.1", 0))
    for sock in (fresh, bound, listener):
        sock.close()
        assert sock.fileno() == -1


def test_getpeername_notices_a_reset(net: Net) -> None:
    """Also of one that was made just now by close() in this process, of a connection not yet accepted."""
    for _ in range(10):
        client, server = net.pair()
        net.reset(client)
        with raises_errno(errno.ENOTCONN):
            server.getpeername()
        client, server = net.pair()
        net.reset(server)
        with raises_errno(errno.ENOTCONN):
            client.getpeername()
    listener = net.listener()
    for _ in range(10):
        client = net.fresh()
        client.connect(listener.getsockname())
        client.sendall(b"x")
        net.reset(client)
        with raises_errno(errno.ENOTCONN):
            net.accept(listener).getpeername()
    client = net.fresh()
    client.connect(listener.getsockname())
    client.getpeername()
    listener.close()
    with raises_errno(errno.ENOTCONN):
        client.getpeername()


# -- copies ---------------------------------------------------------------------------------------------------


def test_duplicate_keeps_the_connection_open(net: Net) -> None:
    client, server = net.pair()
    copy = net.own(client.dup())
    client.close()
    server.settimeout(0.05)
    with pytest.raises(TimeoutError):
        server.recv(1)
    copy.sendall(b"from the copy")
    server.settimeout(PATIENCE_S)
    assert receive_exactly(server, 13) == b"from the copy"
    copy.close()
    assert server.recv(1) == b""


def test_raw_duplicate_keeps_the_connection_open(net: Net) -> None:
    client, server = net.pair()
    copy = os.dup(client.fileno())
    client.close()
    os.write(copy, b"raw")
    assert receive_exactly(server, 3) == b"raw"
    os.close(copy)
    assert server.recv(1) == b""


def test_duplicate_of_a_listener_goes_on_listening(net: Net) -> None:
    listener = net.listener(host=own_loopback())
    address = listener.getsockname()
    copy = net.own(listener.dup())
    listener.close()
    client = net.fresh()
    client.connect(address)
    assert net.accept(copy).getpeername() == client.getsockname()
    copy.close()
    assert net.fresh().connect_ex(address) == errno.ECONNREFUSED


def test_shutdown_reaches_all_copies(net: Net) -> None:
    client, server = net.pair()
    copy = net.own(client.dup())
    copy.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    with raises_errno(errno.EPIPE):
        client.send(b"x")


def test_detach_leaves_the_connection_alone(net: Net) -> None:
    client, server = net.pair()
    fd = client.detach()
    assert client.fileno() == -1
    client.close()
    os.write(fd, b"alive")
    assert receive_exactly(server, 5) == b"alive"
    again = net.own(net.module.socket(fileno=fd))
    again.sendall(b"again")
    assert receive_exactly(server, 5) == b"again"


def test_replacing_the_fd_closes_the_connection(net: Net) -> None:
    """dup2 over the fd is a close too: the kernel counts, not the object."""
    client, server = net.pair()
    with open(os.devnull, encoding="utf-8") as null:
        os.dup2(null.fileno(), client.fileno())
    assert server.recv(1) == b""
    os.close(client.detach())


# -- linger ---------------------------------------------------------------------------------------------------


def test_linger_zero_resets(net: Net) -> None:
    client, server = net.pair()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    client.close()
    with raises_errno(errno.ECONNRESET):
        server.recv(1)


def test_linger_zero_throws_away_what_was_not_sent(net: Net) -> None:
    client, server = net.pair()
    client.setblocking(False)
    try:
        while True:
            client.send(bytes(1 << 16))
    except BlockingIOError:
        pass
    net.reset(client)
    with raises_errno(errno.ECONNRESET):
        while server.recv(1 << 16):
            pass


@pytest.mark.parametrize("size", [0, 5_000])
def test_what_was_reset_before_it_was_accepted_has_no_end_of_file(net: Net, size: int) -> None:
    from utpsocket.stats import engine_stats

    others = engine_stats().connections_open
    listener = net.listener()
    client = net.fresh()
    client.connect(listener.getsockname())
    client.sendall(bytes(size))
    poller = select.poll()
    poller.register(listener.fileno(), select.POLLIN)
    assert poller.poll(PATIENCE_S * 1_000)
    net.reset(client)
    assert eventually(lambda: engine_stats().connections_open <= others, True)
    server = net.accept(listener)
    with raises_errno(errno.ECONNRESET):
        while server.recv(10_000):
            pass


@pytest.mark.parametrize("is_dropped", [False, True])
def test_linger_zero_resets_after_both_halves_were_shut_down(net: Net, is_dropped: bool) -> None:
    """A connection that only waits for the peer's end is reset too, closed or left to the collector."""
    with net.module.create_server(("127.0.0.1", 0)) as listener:
        client = net.module.create_connection(listener.getsockname())
        server = net.accept(listener)
    client.shutdown(socket.SHUT_RDWR)
    assert receive_all(server) == b""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    poller = select.poll()
    poller.register(server.fileno(), 0)
    assert not poller.poll(100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        if not is_dropped:
            client.close()
        del client
        gc.collect()
    assert [mask & select.POLLHUP for _, mask in poller.poll(PATIENCE_S * 1_000)] == [select.POLLHUP]


def test_linger_off_is_an_ordinary_close(net: Net) -> None:
    client, server = net.pair()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
    client.sendall(b"x")
    client.close()
    assert receive_all(server) == b"x"


def test_linger_time_waits_for_delivery(net: Net) -> None:
    client, server = net.pair()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, int(LONG_S)))
    client.sendall(b"x" * 1000)
    began = time.monotonic()
    client.close()
    assert time.monotonic() - began < AT_ONCE_S
    server.setblocking(False)
    assert eventually(lambda: len(server.recv(2000, socket.MSG_PEEK)), 1000) == 1000
    assert receive_exactly(server, 1000) == b"x" * 1000


def test_linger_time_ends(net: Net) -> None:
    """The peer does not read: close() gives up after the time it was given."""
    client, server = net.pair()
    client.setblocking(False)
    fill_for_good(client)
    client.setblocking(True)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1))
    began = time.monotonic()
    client.close()
    assert 0.7 < time.monotonic() - began < AT_ONCE_S
    server.close()


def test_a_file_sent_to_a_peer_that_has_closed_goes_nowhere(net: Net, tmp_path: Path) -> None:
    """Several times: the kernel may be writing, and quickly, just when the peer's reset comes."""
    (tmp_path / "file").write_bytes(b"")
    os.truncate(tmp_path / "file", 64 << 20)
    with (tmp_path / "file").open("rb") as file:
        for _ in range(25):
            client, server = net.pair()
            client.sendall(b"?")
            assert server.recv(10) == b"?"
            server.close()
            assert client.recv(10) == b""
            sent = 0
            with raises_errno(errno.EPIPE, errno.ECONNRESET):
                while sent < 64 << 20:
                    sent += os.sendfile(client.fileno(), file.fileno(), sent, 1 << 20)
            assert sent < 6 << 20
            client.close()


# -- listeners ------------------------------------------------------------------------------------------------


def test_closing_a_listener_leaves_its_connections_alone(net: Net) -> None:
    client, server = net.pair()  # pair() closes its listener
    client.sendall(b"ping")
    assert server.recv(10) == b"ping"


def test_closing_a_listener_resets_what_was_not_accepted(net: Net) -> None:
    """Many times: the close may meet a connection on its way to the listener's queue."""
    for _ in range(40):
        listener = net.listener()
        client = net.fresh(timeout=PATIENCE_S)
        client.connect(listener.getsockname())
        listener.close()
        with raises_errno(errno.ECONNRESET):
            client.recv(1)
        client.close()


@pytest.mark.parametrize("timeout", [0, LONG_S])
@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_RDWR])
def test_accept_of_a_listener_that_was_shut_down(net: Net, how: int, timeout: float) -> None:
    """EINVAL at once, or a server's loop would spin: poll() says for ever that there is something."""
    listener = net.listener()
    listener.settimeout(timeout)
    listener.shutdown(how)
    began = time.monotonic()
    for _ in range(2):
        with raises_errno(errno.EINVAL):
            listener.accept()
    assert time.monotonic() - began < AT_ONCE_S


def test_accept_with_a_timeout_is_woken_by_shutdown(net: Net) -> None:
    listener = net.listener()
    listener.settimeout(LONG_S)
    waiting = net.spawn(listener.accept)
    time.sleep(0.05)  # until it waits, most likely: the other order is the case above
    listener.shutdown(socket.SHUT_RDWR)
    with raises_errno(errno.EINVAL):
        waiting.result()


def test_shutdown_of_a_listener_ends_listening(net: Net) -> None:
    listener = net.listener(host=own_loopback())
    address = listener.getsockname()
    listener.shutdown(socket.SHUT_RDWR)
    with raises_errno(errno.EINVAL):
        listener.accept()
    assert net.fresh().connect_ex(address) == errno.ECONNREFUSED


def test_what_was_closed_leaves_nothing_to_the_collector(net: Net) -> None:
    """Tornado's tests, for one, hunt for references that go round in circles."""

    def exchange() -> None:
        with net.listener() as listener, net.fresh() as client:
            client.connect(listener.getsockname())
            with net.accept(listener) as server:
                client.sendall(b"a few words")
                assert receive_exactly(server, 11) == b"a few words"
            assert client.recv(1) == b""

    exchange()
    gc.collect()
    gc.disable()
    try:
        found: list[int] = []
        while not found or (found[-1] and len(found) < 5):  # what a test before this one has left to a thread may come
            exchange()
            found.append(gc.collect())
        assert found[-1] == 0, found
    finally:
        gc.enable()


@pytest.mark.parametrize("size", [1, 6_000])
def test_a_reset_after_the_end_of_file_is_no_error_of_what_came_before(net: Net, size: int) -> None:
    """Though the program has not read it yet, nor room for all of it in its kernel's buffer."""
    listener = net.fresh()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    client = net.fresh()
    client.connect(listener.getsockname())
    server = net.accept(listener)
    client.sendall(b"m" * size)
    client.shutdown(socket.SHUT_WR)
    server.sendall(b"?")
    assert receive_exactly(client, 1) == b"?"
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    client.close()

    def sends() -> bool:
        try:
            server.send(b"x")
        except BrokenPipeError:
            return False
        return True

    assert not eventually(sends, False)
    assert receive_all(server) == b"m" * size
    assert server.recv(1) == b""


@pytest.mark.parametrize("made", ["fresh", "listener", "accepted"])
def test_a_socket_left_open_is_warned_of_where_it_was_dropped(net: Net, made: str) -> None:
    if made == "accepted":
        listener = net.listener()
        net.fresh().connect(listener.getsockname())
        sock = listener.accept()[0]
    else:
        sock = net.module.socket()
        if made == "listener":
            sock.bind(("127.0.0.1", 0))
            sock.listen()
    name, fd = repr(sock), sock.fileno()
    line = sys._getframe().f_lineno + 2
    with pytest.warns(ResourceWarning) as reported:
        del sock
    assert [(str(each.message), each.filename, each.lineno) for each in reported] == [
        (f"unclosed {name}", __file__, line)
    ]
    with pytest.raises(OSError):
        os.fstat(fd)


def test_where_warnings_are_errors_what_is_left_open_is_closed_all_the_same(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda hook: reported.append((repr(hook.exc_value), type(hook.object))))
    sock = net.module.socket()
    name, fd = repr(sock), sock.fileno()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del sock
    # From Python 3.14 on the object that was finalized is not named.
    finalized = type(None) if sys.version_info >= (3, 14) else net.module.socket
    assert reported == [(f"ResourceWarning({f'unclosed {name}'!r})", finalized)]
    with pytest.raises(OSError):
        os.fstat(fd)


def test_a_socket_left_open_at_the_end_of_the_program_is_warned_of_too(net: Net) -> None:
    code = "import warnings; warnings.simplefilter('always'); sock = socket.socket(); print(repr(sock), flush=True)"
    process = net.python(code, stdout=-1, stderr=-1)
    name, reported = process.communicate(timeout=PATIENCE_S)
    assert re.match(rf"<?sys>?:\d: ResourceWarning: unclosed {re.escape(name.decode().strip())}\n", reported.decode())

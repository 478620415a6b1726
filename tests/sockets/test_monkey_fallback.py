"""fallback="tcp" and listen="both": a connection over whichever of the two there is, behind the same kind of fd."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from utpsocket import SOL_UTP, UTP_INFO, monkey, stats
from utpsocket.engine import running_engine
from utpsocket.engine.channels.tcp import Relay
from utpsocket.engine.loop import Loop
from utpsocket.sockets import shim
from utpsocket.sockets.rules import Rules

from ..requirements import requires_ipv6
from .network import (
    ERR,
    HUP,
    IN,
    OUT,
    PATIENCE_S,
    RDHUP,
    REPOSITORY,
    RESET_ON_CLOSE,
    describe,
    eventually,
    eventually_polls,
    fork,
    own_loopback,
    raises_errno,
    receive_all,
    run,
    wait_child,
    wait_for_spare_sockets,
)

DELAY_S = 0.05
MODES = ["blocking", "timeout", "non-blocking"]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No defect was met on the engine's thread, and no TCP connection is left with it."""
    before = stats.engine_stats().faults
    yield
    assert stats.engine_stats().faults == before
    assert eventually(lambda: stats.engine_stats().tcp_open, 0) == 0


@contextlib.contextmanager
def one_number() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A UDP and a TCP socket of the kernel's at one port number, which is free for both: it is chosen for TCP, and
    another one is tried when somebody has it for UDP. The UDP socket swallows what comes; connected to itself it takes
    nothing, and whoever sends there is refused.
    """
    while True:
        with socket.socket(type=socket.SOCK_DGRAM) as udp, monkey.get_original("socket", "socket")() as tcp:
            tcp.bind(("127.0.0.1", 0))
            try:
                udp.bind(tcp.getsockname())
            except OSError as error:
                assert error.errno == errno.EADDRINUSE
                continue
            yield udp, tcp
            return


@pytest.fixture(params=["refused", "silent"])
def tcp_listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """A TCP listener whose UDP port refuses, or swallows everything."""
    with one_number() as (mute, listener):
        listener.listen()
        if request.param == "refused":
            mute.connect(mute.getsockname())
        yield listener


@pytest.fixture
def falling_back() -> Iterator[None]:
    with monkey.patched(fallback="tcp", fallback_delay=DELAY_S):
        yield


def connected(mode: str, address: Any, family: int = socket.AF_INET) -> socket.socket:
    client = socket.socket(family)
    if mode == "non-blocking":
        client.setblocking(False)
        code = client.connect_ex(address)
        if code == errno.EINPROGRESS:
            with select.epoll() as poller:  # registered before the connection stands, as event loops do
                poller.register(client.fileno(), select.EPOLLOUT | select.EPOLLET)
                assert poller.poll(PATIENCE_S)
            code = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        client.setblocking(True)
        if code:
            client.close()
            raise OSError(code, os.strerror(code))
    else:
        client.settimeout(PATIENCE_S if mode == "timeout" else None)
        try:
            client.connect(address)
        except OSError:
            client.close()
            raise
    return client


@pytest.mark.parametrize("mode", MODES)
def test_where_no_peer_speaks_utp_it_is_tcp(mode: str, tcp_listener: socket.socket, falling_back: None) -> None:
    before = stats.engine_stats()
    client = connected(mode, tcp_listener.getsockname())
    server, peer = tcp_listener.accept()
    with client, server:
        assert monkey.transport(client) == "tcp"
        assert peer == client.getsockname()
        assert client.getpeername() == tcp_listener.getsockname() == server.getsockname()
        with raises_errno(errno.ENOTCONN):
            client.getsockopt(SOL_UTP, UTP_INFO)
        client.sendall(b"question")
        assert server.recv(100) == b"question"
        server.sendall(b"answer")
        assert client.recv(100) == b"answer"
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        server.sendall(b"after the FIN")
        assert client.recv(100) == b"after the FIN"
        server.close()
        assert client.recv(1) == b""
    assert stats.engine_stats().tcp_initiated == before.tcp_initiated + 1


@pytest.mark.parametrize("mode", MODES)
def test_where_a_peer_speaks_utp_it_is_utp(mode: str, falling_back: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with connected(mode, listener.getsockname()) as client:
            server, _ = listener.accept()
            with server:
                assert monkey.transport(client) == monkey.transport(server) == "utp"
                server.sendall(b"x")
                assert client.recv(1) == b"x"


@pytest.mark.parametrize("mode", MODES)
def test_where_nothing_listens_at_all_it_is_refused(mode: str, falling_back: None) -> None:
    with one_number() as (udp, _):
        udp.connect(udp.getsockname())
        with raises_errno(errno.ECONNREFUSED):
            connected(mode, udp.getsockname())


def test_utp_has_its_moment_first() -> None:
    delay_s = 1.0
    with monkey.patched(fallback="tcp", fallback_delay=delay_s), one_number() as (_, listener):
        listener.listen()
        took: list[float] = []
        while len(took) < 4 or (min(took) >= delay_s / 2 and len(took) < 20):  # as where the machine stands still
            started = time.monotonic()
            with socket.create_connection(listener.getsockname()) as client:
                assert monkey.transport(client) == "tcp"
            took.append(time.monotonic() - started)
            listener.accept()[0].close()
        assert took[0] >= delay_s
        assert min(took) < delay_s / 2, "a destination that was silent a moment ago need not be waited for again"


def test_a_uTP_answer_after_tcps_refusal_still_counts(falling_back: None) -> None:
    """TCP is refused, uTP has not answered yet: the one that answers has the connection."""
    with socket.create_server(("127.0.0.1", 0)) as target:
        with socket.socket(type=socket.SOCK_DGRAM) as relay, socket.socket() as client:
            relay.bind(("127.0.0.1", 0))
            client.setblocking(False)
            assert client.connect_ex(relay.getsockname()) == errno.EINPROGRESS
            syn, origin = relay.recvfrom(2_000)
            with socket.socket() as probe:  # TCP's turn comes, and is refused
                assert not select.select([], [client], [], 4 * DELAY_S)[1]
                assert probe.fileno() >= 0
            relay.sendto(syn, target.getsockname())
            came_from = origin
            while came_from == origin:  # the SYN is repeated after a second
                answer, came_from = relay.recvfrom(2_000)
            relay.sendto(answer, origin)
            assert select.select([], [client], [], PATIENCE_S)[1]
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            assert monkey.transport(client) == "utp"


def test_closed_while_connecting(falling_back: None) -> None:
    with one_number() as (_, listener):
        listener.listen()
        listener.settimeout(2 * DELAY_S)
        is_in_time = False
        while not is_in_time:
            began = time.monotonic()
            client = socket.socket()
            client.setblocking(False)
            assert client.connect_ex(listener.getsockname()) == errno.EINPROGRESS
            client.close()
            for _ in range(2):
                stats.engine_stats()  # a turn of the engine's: it knows of the close
            is_in_time = time.monotonic() - began < DELAY_S  # or else TCP's turn had come, on a busy machine
            try:
                listener.accept()[0].close()
            except TimeoutError:
                pass
            else:
                assert not is_in_time


def bound_where_tcp_is_free() -> socket.socket:
    """A client at a port number that no TCP socket has, and gets none: the kernel chooses among UDP's only."""
    while True:
        client = socket.socket()
        client.bind((own_loopback(), 0))
        with monkey.get_original("socket", "socket")() as probe:
            try:
                probe.bind(client.getsockname())
                return client
            except OSError:
                client.close()


def test_bound_to_a_port(tcp_listener: socket.socket, falling_back: None) -> None:
    with bound_where_tcp_is_free() as client:
        bound = client.getsockname()
        client.connect(tcp_listener.getsockname())
        server, peer = tcp_listener.accept()
        server.close()
        assert peer == client.getsockname() == bound


def test_options_come_along(tcp_listener: socket.socket, falling_back: None) -> None:
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.connect(tcp_listener.getsockname())
        server, _ = tcp_listener.accept()
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        client.close()
        with server, raises_errno(errno.ECONNRESET):
            server.recv(1)


def test_a_second_attempt_after_a_refusal(falling_back: None) -> None:
    with monkey.get_original("socket", "socket")() as probe, socket.socket() as client:
        probe.bind((own_loopback(), 0))
        with raises_errno(errno.ECONNREFUSED):
            client.connect(probe.getsockname())
        probe.listen()
        client.connect(probe.getsockname())
        assert monkey.transport(client) == "tcp"
        probe.accept()[0].close()


@requires_ipv6
def test_ipv6(falling_back: None) -> None:
    with monkey.get_original("socket", "create_server")(("::1", 0), family=socket.AF_INET6) as listener:
        with connected("blocking", listener.getsockname(), socket.AF_INET6) as client:
            server, peer = listener.accept()
            server.close()
            assert peer == client.getsockname()
            assert client.recv(1) == b""


# -- the relay ------------------------------------------------------------------------------------------------


@pytest.fixture
def relayed(falling_back: None) -> Iterator[tuple[socket.socket, socket.socket]]:
    """-> (a connection of ours over TCP, its kernel TCP peer)"""
    original = monkey.get_original("socket", "create_server")
    with original(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        server, _ = listener.accept()
        with server:
            client.settimeout(PATIENCE_S)
            server.settimeout(PATIENCE_S)
            yield client, server


def test_megabytes_both_ways_at_once(relayed: tuple[socket.socket, socket.socket]) -> None:
    data = {sock: os.urandom(1 << 20) * 8 for sock in relayed}
    received: dict[socket.socket, bytes] = {}

    def send(sock: socket.socket) -> None:
        sock.sendall(data[sock])
        sock.shutdown(socket.SHUT_WR)

    def receive(sock: socket.socket) -> None:
        received[sock] = receive_all(sock)

    threads = [threading.Thread(target=what, args=(sock,)) for sock in relayed for what in (send, receive)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    ours, theirs = relayed
    assert received[ours] == data[theirs]
    assert received[theirs] == data[ours]


def test_a_reader_that_waits_holds_the_writer_back(relayed: tuple[socket.socket, socket.socket]) -> None:
    for sender, receiver in (relayed, relayed[::-1]):
        sender.setblocking(False)
        sent = 0
        while select.select([], [sender], [], 0.2)[1]:
            sent += sender.send(bytes(1 << 16))
        assert sent < 64 << 20
        left = sent
        while left:
            left -= len(receiver.recv(1 << 18))
        sender.settimeout(PATIENCE_S)


def test_many_small_writes_before_a_read(relayed: tuple[socket.socket, socket.socket]) -> None:
    client, server = relayed
    for _ in range(5_000):
        client.send(b"x")
    client.shutdown(socket.SHUT_WR)
    assert receive_all(server) == b"x" * 5_000


def test_a_reset_from_there(relayed: tuple[socket.socket, socket.socket]) -> None:
    client, server = relayed
    server.sendall(b"last words")
    assert select.select([client], [], [], PATIENCE_S)[0]
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    server.close()
    assert eventually_polls(client, IN | OUT | ERR | HUP | RDHUP) == describe(IN | OUT | ERR | HUP | RDHUP)
    assert client.recv(100) == b"last words"
    with raises_errno(errno.ECONNRESET):
        client.recv(1)
    with raises_errno(errno.ENOTCONN):
        client.getpeername()


def test_a_reset_wakes_a_blocked_recv(relayed: tuple[socket.socket, socket.socket]) -> None:
    client, server = relayed
    timer = threading.Timer(0.05, server.close)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    timer.start()
    with raises_errno(errno.ECONNRESET):
        client.recv(1)
    timer.join()


def test_writing_to_a_peer_that_has_gone(relayed: tuple[socket.socket, socket.socket]) -> None:
    client, server = relayed
    server.close()
    assert client.recv(1) == b""
    with raises_errno(errno.EPIPE, errno.ECONNRESET):
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            client.send(b"nobody reads this")
            time.sleep(0.002)


def test_close_with_bytes_unread_resets(relayed: tuple[socket.socket, socket.socket]) -> None:
    client, server = relayed
    server.sendall(b"unread")
    assert select.select([client], [], [], PATIENCE_S)[0]
    client.close()
    with raises_errno(errno.ECONNRESET):
        server.recv(1)


def test_close_delivers_what_was_written(relayed: tuple[socket.socket, socket.socket]) -> None:
    client, server = relayed
    data = os.urandom(3 << 20)
    reader: list[bytes] = []
    thread = threading.Thread(target=lambda: reader.append(receive_all(server)))
    thread.start()
    client.sendall(data)
    client.close()
    thread.join(PATIENCE_S)
    assert reader == [data]


def test_options_reach_a_living_connection(relayed: tuple[socket.socket, socket.socket]) -> None:
    client, _ = relayed
    loop = running_engine()
    if not isinstance(loop, Loop):
        pytest.skip("needs the engine in this process: the TCP socket is there")
    [relay] = [each for each in loop.channels.values() if each.identity.local == client.getsockname()]
    assert isinstance(relay, Relay)
    carried = relay.tcp
    assert carried is not None
    for option in (socket.TCP_NODELAY, socket.TCP_KEEPINTVL):
        client.setsockopt(socket.IPPROTO_TCP, option, 7)
        expected = client.getsockopt(socket.IPPROTO_TCP, option)
        assert eventually(partial(carried.getsockopt, socket.IPPROTO_TCP, option), expected) == expected


def test_a_forked_child_goes_on(relayed: tuple[socket.socket, socket.socket]) -> None:
    client, server = relayed

    def child() -> None:
        assert client.getpeername() == server.getsockname()
        client.sendall(b"from the child")

    pid = fork(child)
    client.close()
    assert receive_all(server) == b"from the child"
    assert wait_child(pid) == 0


def test_detached_and_taken_up_again(relayed: tuple[socket.socket, socket.socket]) -> None:
    client, server = relayed
    with socket.socket(fileno=client.detach()) as again:
        assert monkey.transport(again) == "tcp"
        assert again.getpeername() == server.getsockname()
        again.sendall(b"x")
        assert server.recv(1) == b"x"


# -- event loops ----------------------------------------------------------------------------------------------


RULES: list[tuple[Rules, str, str]] = [  # the rules, how a client of theirs gets there, and a plain one
    ({"exclude": "127.0.0.1"}, "tcp", "tcp"),
    ({"listen": "both"}, "utp", "tcp"),
    ({"listen": "both", "only": "10.0.0.0/8"}, "tcp", "tcp"),
]


@pytest.mark.parametrize("library", ["asyncio", "uvloop"])
@pytest.mark.parametrize(("rules", "ours", "plain"), RULES)
def test_an_event_loop_serves_by_the_rules(library: str, rules: Rules, ours: str, plain: str) -> None:
    seen: list[str | None] = []
    new_event_loop = pytest.importorskip(library).new_event_loop

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(monkey.transport(writer.get_extra_info("socket")))
        assert writer.get_extra_info("peername")[0] == "127.0.0.1"
        writer.write(await reader.read())
        writer.write_eof()
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        over_tcp = monkey.get_original("socket", "create_connection")
        async with server:
            for is_plain in (False, True):
                where: Any = {"sock": over_tcp(address)} if is_plain else {"host": address[0], "port": address[1]}
                reader, writer = await asyncio.open_connection(**where)
                writer.write(b"x" * 200_000)
                writer.write_eof()
                assert await reader.read() == b"x" * 200_000
                writer.close()
                await writer.wait_closed()

    with monkey.patched(**rules), contextlib.closing(new_event_loop()) as loop:
        before = stats.engine_stats().connections_accepted
        loop.run_until_complete(asyncio.wait_for(main(), PATIENCE_S))
        accepted = stats.engine_stats().connections_accepted - before
    assert accepted == [ours, plain].count("utp")
    if library == "asyncio":  # uvloop's transports show sockets of their own making
        assert seen == [ours, plain]


def test_asyncio_falls_back(tcp_listener: socket.socket, falling_back: None) -> None:
    async def main() -> None:
        reader, writer = await asyncio.open_connection(*tcp_listener.getsockname())
        server, peer = tcp_listener.accept()
        with server:
            assert writer.get_extra_info("sockname") == peer
            assert monkey.transport(writer.get_extra_info("socket")) == "tcp"
            server.sendall(b"x" * 10)
            assert await reader.readexactly(10) == b"x" * 10
            writer.write(b"y")
            await writer.drain()
            assert server.recv(1) == b"y"
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

    run(main())


# -- listeners of both ------------------------------------------------------------------------------------------


@pytest.fixture
def both() -> Iterator[None]:
    with monkey.patched(listen="both"):
        yield


@pytest.mark.parametrize("size", [0, 5_000])
def test_what_was_reset_over_tcp_before_it_was_accepted_has_no_end_of_file(size: int, both: None) -> None:
    over_tcp = monkey.get_original("socket", "create_connection")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = over_tcp(listener.getsockname())
        client.sendall(bytes(size))
        assert select.select([listener], [], [], PATIENCE_S)[0]
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        client.close()
        assert eventually(lambda: stats.engine_stats().tcp_open, 0) == 0
        server, _ = listener.accept()
        with server, raises_errno(errno.ECONNRESET):
            while server.recv(10_000):
                pass


@pytest.mark.parametrize(
    ("host", "family"),
    [("127.0.0.1", socket.AF_INET), ("", socket.AF_INET), pytest.param("::1", socket.AF_INET6, marks=requires_ipv6)],
)
def test_one_port_number_for_both(host: str, family: int, both: None) -> None:
    over_tcp = monkey.get_original("socket", "create_connection")
    with socket.create_server((host, 0), family=family) as listener:
        port = listener.getsockname()[1]
        target = (host or "127.0.0.1", port)
        for connect, transport in ((over_tcp, "tcp"), (socket.create_connection, "utp"), (over_tcp, "tcp")):
            with connect(target) as client:
                assert select.select([listener], [], [], PATIENCE_S)[0]
                server, peer = listener.accept()
                with server:
                    assert monkey.transport(server) == monkey.transport(client) == transport
                    assert peer == server.getpeername() == client.getsockname()
                    assert server.getsockname() == client.getpeername()
                    client.sendall(b"question")
                    assert server.recv(100) == b"question"
                    server.sendall(b"answer")
                    assert client.recv(100) == b"answer"
                    client.shutdown(socket.SHUT_WR)
                    assert server.recv(1) == b""


def test_both_ports_are_free_after_close(both: None) -> None:
    with socket.create_server((own_loopback(), 0)) as listener:
        address = listener.getsockname()
        with raises_errno(errno.EADDRINUSE):
            socket.create_server(address).close()
    for transport in ("tcp", "utp"):
        connect = monkey.get_original("socket", "create_connection") if transport == "tcp" else socket.create_connection
        with raises_errno(errno.ECONNREFUSED):
            connect(address)
    socket.create_server(address).close()
    with monkey.get_original("socket", "create_server")(address):
        pass


def test_bound_and_closed_without_listening(both: None) -> None:
    with socket.socket() as bound:
        bound.bind((own_loopback(), 0))
        address = bound.getsockname()
    with monkey.get_original("socket", "create_server")(address):
        pass


def test_a_full_backlog_keeps_the_rest_waiting(both: None) -> None:
    over_tcp = monkey.get_original("socket", "create_connection")
    with socket.create_server(("127.0.0.1", 0), backlog=2) as listener:
        clients = [over_tcp(listener.getsockname()) for _ in range(4)]
        peers = set()
        for _ in clients:
            server, peer = listener.accept()
            server.close()
            peers.add(peer)
        assert peers == {client.getsockname() for client in clients}
        for client in clients:
            assert client.recv(1) == b""
            client.close()


def test_nothing_is_accepted_and_the_listener_closes(both: None) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with monkey.get_original("socket", "create_connection")(listener.getsockname()) as client:
        client.settimeout(PATIENCE_S)
        listener.close()
        try:
            assert client.recv(1) == b""  # it had been handed over
        except ConnectionResetError:
            pass


def test_a_forked_worker_accepts_both(both: None) -> None:
    over_tcp = monkey.get_original("socket", "create_connection")
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()

    def worker() -> None:
        for _ in range(2):
            server, peer = listener.accept()
            server.sendall(repr(peer).encode())
            server.close()

    with listener:
        pid = fork(worker)
        for connect in (over_tcp, socket.create_connection):
            with connect(address) as client:
                assert receive_all(client) == repr(client.getsockname()).encode()
        assert wait_child(pid) == 0


def test_both_and_fallback_by_the_class_alone() -> None:
    """The rules are the patched class's: utpsocket.socket knows none."""
    with monkey.patched(listen="both", fallback="tcp"), shim.socket() as plain:
        plain.bind((own_loopback(), 0))
        plain.listen()
        with raises_errno(errno.ECONNREFUSED):
            monkey.get_original("socket", "create_connection")(plain.getsockname())


def test_one_of_two_that_share_a_port_listens(both: None) -> None:
    """A listen() that fails leaves nothing behind, and the port goes on."""
    with socket.socket() as first, socket.socket() as second:
        for sock in (first, second):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.bind(("127.0.0.1", 0))
        second.bind(first.getsockname())
        first.listen()
        wait_for_spare_sockets()
        fds = set(os.listdir("/proc/self/fd"))
        with raises_errno(errno.EADDRINUSE):
            second.listen()
        wait_for_spare_sockets()
        assert set(os.listdir("/proc/self/fd")) < fds
        for connect in (monkey.get_original("socket", "create_connection"), socket.create_connection):
            with connect(first.getsockname()):
                first.accept()[0].close()


LEAVES = """
import sys, time
import utpsocket
from utpsocket.sockets.rules import Routes

class FallingBack(utpsocket.socket):
    _routes = Routes(fallback="tcp", fallback_seconds=0.02)

sock = FallingBack()
sock.connect(("127.0.0.1", int(sys.argv[1])))
sock.setblocking(False)
sent = in_vain = 0
while in_vain < 200:  # till everything is full
    try:
        sent += sock.send(bytes(65536))
        in_vain = 0
    except BlockingIOError:
        in_vain += 1
        time.sleep(0.01)
print(sent)
"""


def test_what_an_exit_did_not_deliver_over_tcp_is_no_end_of_file() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        environment = {**os.environ, "UTPSOCKET_EXIT_FLUSH": "0.2", "PYTHONPATH": str(REPOSITORY)}
        process = subprocess.Popen(
            [sys.executable, "-c", LEAVES, str(listener.getsockname()[1])], env=environment, stdout=subprocess.PIPE
        )
        with process, listener.accept()[0] as server:
            assert process.stdout is not None
            sent = int(process.stdout.readline())
            assert process.wait(60) == 0
            received = 0
            with pytest.raises(ConnectionResetError):
                while data := server.recv(1 << 20):
                    received += len(data)
            assert received < sent

"""What only a socket over uTP can be asked: that it is one, and that strangers stay out."""

from __future__ import annotations

import errno
import os
import pickle
import socket
from pathlib import Path

import pytest

import utpsocket

from ..conftest import open_descriptors
from .network import Net, fork, raises_errno, wait_child

pytestmark = pytest.mark.parametrize("net", ["utp"], indirect=True)


def raw(sock: object) -> socket.socket:
    """The fd as the kernel sees it."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=os.dup(sock.fileno()))  # type: ignore[attr-defined]


def test_the_fd_is_a_local_stream(net: Net) -> None:
    for sock in (net.fresh(), *net.pair(), net.listener()):
        with raw(sock) as plain:
            assert plain.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_UNIX


def test_the_engines_thread_has_a_name(net: Net) -> None:
    net.pair()
    assert "utpsocket\n" in [comm.read_text(encoding="utf-8") for comm in Path("/proc/self/task").glob("*/comm")]


def test_no_tcp_socket_is_involved(net: Net) -> None:
    client, server = net.pair()
    ports = {f":{sock.getsockname()[1]:04X} " for sock in (client, server)}
    # By inode: another's TCP port, or one that lingers in TIME_WAIT (inode 0), may have the same number.
    ours = {target[len("socket:[") : -1] for target in open_descriptors().values() if target.startswith("socket:[")}
    with open("/proc/net/udp", encoding="utf-8") as udp, open("/proc/net/tcp", encoding="utf-8") as tcp:
        assert any(port in line for line in udp for port in ports)
        assert not any(port in line and line.split()[9] in ours for line in tcp for port in ports)


def test_connections_are_counted(net: Net) -> None:
    from utpsocket.stats import engine_stats

    before = engine_stats()
    client, server = net.pair()
    after = engine_stats()
    assert after.connections_initiated == before.connections_initiated + 1
    assert after.connections_accepted == before.connections_accepted + 1
    assert after.connections_open >= 2
    client.sendall(b"x" * 1000)
    assert len(server.recv(2000)) <= 1000
    info = client.getsockopt(net.module.SOL_UTP, net.module.UTP_INFO)
    assert info.sent_bytes >= 1000


def test_a_strangers_connection_to_the_listener_is_dropped(net: Net) -> None:
    """Any process may connect to an abstract name; accept() lets in what our engine sent only."""
    listener = net.listener()
    with raw(listener) as plain:
        name = plain.getsockname()

    connected_fd, signal_fd = os.pipe()

    def intrude() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
            stranger.connect(name)
            os.write(signal_fd, b"connected")
            assert stranger.recv(1) == b""

    pid = fork(intrude)
    os.close(signal_fd)
    with open(connected_fd, "rb") as word:
        assert word.read(9) == b"connected"
    client = net.fresh()

    def dial() -> None:
        client.connect(listener.getsockname())
        client.sendall(b"invited")

    dialling = net.spawn(dial)
    server = net.accept(listener)
    dialling.result()
    assert server.getpeername() == client.getsockname()
    assert server.recv(10) == b"invited"
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()
    assert wait_child(pid) == 0


def test_incoming_connections_as_an_iterator(net: Net) -> None:
    listener = net.listener()
    clients = [net.own(utpsocket.create_connection(listener.getsockname())) for _ in range(3)]
    seen = []
    for conn, addr in utpsocket.incoming(listener):
        net.own(conn)
        assert conn.getpeername() == addr
        seen.append(addr)
        if len(seen) == len(clients):
            listener.shutdown(socket.SHUT_RDWR)
    assert seen == [client.getsockname() for client in clients]


def test_incoming_connections_of_what_does_not_listen(net: Net) -> None:
    listener, fresh = net.listener(), net.fresh()
    listener.close()
    with raises_errno(errno.EBADF):
        utpsocket.incoming(listener)
    with raises_errno(errno.EINVAL):
        utpsocket.incoming(fresh)


def test_the_class_and_its_functions_are_where_programs_find_them(net: Net) -> None:
    for found in (utpsocket.socket, utpsocket.create_server, utpsocket.incoming):
        assert found.__module__ == "utpsocket"
        assert pickle.loads(pickle.dumps(found)) is found
    assert repr(net.fresh()).startswith("<utpsocket.socket fd=")


def test_a_socket_dropped_unclosed_sends_fin(net: Net) -> None:
    import utpsocket

    listener = net.listener()
    client = utpsocket.create_connection(listener.getsockname())
    server = net.accept(listener)
    client.sendall(b"last words")
    with pytest.warns(ResourceWarning, match="unclosed"):
        del client
    assert server.recv(100) == b"last words"
    assert server.recv(100) == b""


def test_options_of_our_own_work_or_say_why_not(net: Net) -> None:
    module = net.module

    def refusal(sock: socket.socket, name: str, value: object) -> tuple[int | None, str | None]:
        before = sock.getsockopt(module.SOL_UTP, getattr(module, name), 16)
        with pytest.raises(OSError) as caught:
            sock.setsockopt(module.SOL_UTP, getattr(module, name), value)  # type: ignore[call-overload]
        assert sock.getsockopt(module.SOL_UTP, getattr(module, name), 16) == before
        return caught.value.errno, caught.value.strerror

    bound = net.fresh()
    bound.bind(("127.0.0.1", 0))
    for sock in (bound, *net.pair(), net.listener()):
        code, reason = refusal(sock, "UTP_SHARE_PORT", 1)
        assert code == errno.EINVAL and reason == "UTP_SHARE_PORT is set before bind()"
        sock.setsockopt(module.SOL_UTP, module.UTP_SHARE_PORT, 0)
    for sock in net.pair():
        code, reason = refusal(sock, "UTP_MAX_MTU", 1_000)
        assert code == errno.EISCONN and reason == "UTP_MAX_MTU is set before connect() or listen()"
    for sock in (net.fresh(), *net.pair()):
        code, reason = refusal(sock, "UTP_CONGESTION", b"bbr")
        assert code == errno.ENOENT and reason is not None and "'bbr'" in reason and "ledbat" in reason
        for outside in (999, 100_001, -1):
            code, reason = refusal(sock, "UTP_TARGET_DELAY", outside)
            assert code == errno.EINVAL and reason is not None and str(outside) in reason
        sock.setsockopt(module.SOL_UTP, module.UTP_CONGESTION, b"ledbat\0")
        assert refusal(sock, "UTP_CONGESTION", 5)[0] == errno.ENOENT
        assert refusal(sock, "UTP_KEEPALIVE", -1)[0] == errno.EINVAL
        assert refusal(sock, "UTP_KEEPALIVE", b"\1")[0] == errno.EINVAL
        assert refusal(sock, "UTP_MAX_MTU", b"\1")[0] == errno.EINVAL
        with pytest.raises(TypeError):
            sock.setsockopt(module.SOL_UTP, module.UTP_CONGESTION, "ledbat")
        with pytest.raises(TypeError):
            sock.setsockopt(module.SOL_UTP, module.UTP_KEEPALIVE, None)


def test_the_congestion_controller_is_chosen_at_any_time(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    module = net.module
    level, name, target = module.SOL_UTP, module.UTP_CONGESTION, module.UTP_TARGET_DELAY
    default = net.fresh().getsockopt(level, name, 16).decode()
    client, server = net.pair()
    assert module.info(client).congestion == module.info(server).congestion == default
    client.setsockopt(level, name, b"cubic")
    client.setsockopt(level, target, 20_000)
    client.sendall(b"x")
    assert server.recv(1) == b"x"
    assert client.getsockopt(level, name, 16) == b"cubic"
    assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"cubic"
    assert client.getsockopt(level, target) == 20_000
    assert module.info(client).congestion == "cubic"
    assert module.info(server).congestion == default
    listener = net.listener()
    listener.setsockopt(level, name, b"reno")
    net.fresh().connect(listener.getsockname())
    with listener.accept()[0] as accepted:
        assert module.info(accepted).congestion == "reno"
    assert module.info(net.fresh()).congestion == ""
    monkeypatch.setenv("UTPSOCKET_CONGESTION", "reno")
    assert net.fresh().getsockopt(level, name, 16) == b"reno"


def test_nothing_is_taken_once_the_end_has_been_reported(net: Net) -> None:
    """The engine reports an end, and a moment later closes its end of the pair: here that moment lasts."""
    client, server = net.pair()
    client._utp.error = errno.ECONNRESET
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
    for send in (client.send, client.sendall):
        with raises_errno(errno.EPIPE):
            send(b"x")
    with raises_errno(errno.EPIPE):
        client.sendmsg([b"x"])
    client.close()
    with raises_errno(errno.EBADF):
        client.send(b"x")
    assert server.recv(1) == b""

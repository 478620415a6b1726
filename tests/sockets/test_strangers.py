"""Other programs and users on the same machine: what they can find and imitate, and what it does not get them."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from utpsocket.engine.kernel import fd_names
from utpsocket.sockets import fd_pair, shim

from .network import PATIENCE_S, Net, eventually, fork, raises_errno, receive_all, wait_child

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")
pytestmark = needs_linux

CONNECT = """
import os, socket, sys
os.setuid(int(sys.argv[1]))
with socket.socket(socket.AF_UNIX) as sock:
    sock.bind(os.fsencode(sys.argv[2]).replace(b"@", b"\\0"))
    sock.connect(b"\\0" + sys.argv[3].encode())
    sock.recv(1)
"""


def accepted_from(name: bytes, user: int) -> Any:
    """What a program of ours takes a connection for that another program made from a socket of that name."""
    path = f"utpsocket-test-{os.getpid()}"
    with shim.socket(socket.AF_UNIX) as server:
        server.bind(b"\0" + path.encode())
        server.listen()
        server.settimeout(PATIENCE_S)
        arguments = [str(user), os.fsdecode(name.replace(b"\0", b"@")), path]
        with subprocess.Popen([sys.executable, "-I", "-S", "-c", CONNECT, *arguments], env={}) as process:
            sock, address = server.accept()
            with sock:
                found = sock.family, sock.getpeername(), address
            assert process.wait(PATIENCE_S) == 0
    return found


def raw_name(sock: Any, which: str) -> bytes:
    """What the kernel says of the fd."""
    with socket.socket(fileno=os.dup(sock.fileno())) as raw:
        name: bytes = getattr(raw, which)()
        return name


def test_a_name_that_looks_like_ours_proves_nothing() -> None:
    for name in (b"\0utp:1:2:127.0.0.1,16|127.0.0.1,16", b"\0utp:1:2:127.0.0.1,16|127.0.0.1,16#AAAAAAAAAAA"):
        assert accepted_from(name, os.geteuid()) == (socket.AF_UNIX, name, name)


def test_a_tag_holds_for_its_name_only() -> None:
    name = fd_names.encode(1, ("127.0.0.1", 16), ("127.0.0.1", 17), os.getpid())
    assert fd_names.is_ours(name, os.geteuid())
    assert not fd_names.is_ours(name, os.geteuid() + 1)
    other = name.replace(b":17#", b":22#")
    assert other != name and fd_names.decode(other) is not None
    assert not fd_names.is_ours(other, os.geteuid())


@needs_root
def test_a_true_name_proves_nothing_in_another_users_hands() -> None:
    """Anybody can read it in /proc/net/unix, and bind it once it is free."""
    net = Net("utp")
    client, _ = net.pair()
    name = raw_name(client, "getpeername")
    net.close()
    assert fd_names.decode(name) is not None
    eventually(lambda: os.fsdecode(name[1:]) in Path("/proc/net/unix").read_text(encoding="utf-8"), False)
    assert accepted_from(name, NOBODY) == (socket.AF_UNIX, name, name)


def test_a_stranger_that_connects_to_a_listener_of_ours_is_not_accepted() -> None:
    net = Net("utp")
    listener = net.listener()
    name = raw_name(listener, "getsockname")
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(fd_names.encode(1, listener.getsockname(), ("127.0.0.1", 22), 1))
        process = fork(lambda: stranger.connect(name))
        assert wait_child(process) == 0
        client = net.fresh()
        client.connect(listener.getsockname())
        assert net.accept(listener).getpeername() == client.getsockname()
    net.close()


@pytest.mark.parametrize("timeout", [None, PATIENCE_S, 0.0])
def test_strangers_in_the_way_of_a_connect_cost_a_retry(timeout: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """They connect to the momentary listening socket as soon as it is there, and twice fill its queue."""
    net = Net("utp")
    listener = net.listener()
    strangers: list[Any] = []
    counts = [1_000, 1_000, 3]
    connect_at_once = vars(fd_pair)["connect_at_once"]

    def after_strangers(fd: int, name: bytes) -> int:
        for _ in range(counts.pop(0) if counts else 0):
            stranger = socket.socket(socket.AF_UNIX)
            strangers.append(stranger)
            stranger.setblocking(False)
            try:
                stranger.connect(name)
            except BlockingIOError:
                break
        return connect_at_once(fd, name)

    are_ours = iter([False, False, False])  # the next time there is room: three strangers, then our own
    peer_credentials = fd_names.peer_credentials
    monkeypatch.setattr(fd_pair, "_pair_in_c", lambda *_: None)  # whose calls cannot be replaced; this is what follows
    monkeypatch.setattr(fd_pair, "connect_at_once", after_strangers)
    monkeypatch.setattr(
        fd_names, "peer_credentials", lambda sock: peer_credentials(sock) if next(are_ours, True) else (0, 0)
    )
    client = net.fresh(timeout=timeout)
    if timeout == 0:
        with raises_errno(errno.EINPROGRESS):
            client.connect(listener.getsockname())
    else:
        client.connect(listener.getsockname())
    assert not counts
    server = net.accept(listener)
    assert server.getpeername() == client.getsockname()
    server.sendall(b"hello")
    assert client.getblocking() is (timeout != 0)
    client.setblocking(True)
    assert client.recv(5) == b"hello"
    for stranger in strangers:
        stranger.close()
    net.close()


@needs_root
def test_a_worker_without_roots_rights_serves_what_roots_listener_accepts(net: Net) -> None:
    """As gunicorn -u nobody, pyftpdlib and postfix do it."""
    listener = net.listener()

    def serve() -> None:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        for _ in range(3):
            sock, address = listener.accept()
            with sock:
                sock.sendall(repr((address, sock.getpeername(), int(sock.family))).encode())

    process = fork(serve)
    for _ in range(3):
        client = net.fresh(timeout=PATIENCE_S)
        client.connect(listener.getsockname())
        name = client.getsockname()
        assert receive_all(client) == repr((name, name, int(socket.AF_INET))).encode()
        client.close()
    assert wait_child(process) == 0


@needs_root
def test_another_effective_user_connects_and_accepts(net: Net) -> None:
    listener = net.listener()
    client = net.fresh(timeout=PATIENCE_S)
    os.seteuid(NOBODY)
    try:
        client.connect(listener.getsockname())
        server = net.accept(listener)
        server.sendall(b"hello")
        assert (client.recv(5), server.getpeername()) == (b"hello", client.getsockname())
    finally:
        os.seteuid(0)


def test_an_engine_in_its_own_process_has_the_same_secret() -> None:
    """What a child adopts by its name was named by that process."""
    script = """
import os, subprocess, sys, utpsocket
os.environ.pop("UTPSOCKET_SECRET")
listener = utpsocket.create_server(("127.0.0.1", 0))
client = utpsocket.create_connection(listener.getsockname())
server, peer = listener.accept()
assert peer == client.getsockname() == server.getpeername()
again = utpsocket.socket(fileno=os.dup(server.fileno()))
assert again.getpeername() == peer
"""
    environment = {**os.environ, "UTPSOCKET_ENGINE": "process"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0

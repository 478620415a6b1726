"""The module as a whole: every name of `socket` is there, and what is no stream stays what it was."""

from __future__ import annotations

import errno
import os
import select
import socket
import types
from pathlib import Path
from typing import Any

import pytest

from .network import PATIENCE_S, Net, raises_errno

# What may differ from the stdlib: it makes or looks at stream sockets.
REPLACED = {
    "socket",
    "create_connection",
    "create_server",
    "fromfd",
    "has_dualstack_ipv6",
    "socketpair",
    "fromshare",
    "dup",
    "close",
}


def public(module: types.ModuleType) -> set[str]:
    return {
        name
        for name in dir(module)
        if not name.startswith("_") and not isinstance(getattr(module, name), types.ModuleType)
    }


def test_every_public_name_is_there(net: Net) -> None:
    assert public(socket) - public(net.module) == set()
    assert set(socket.__all__) - set(net.module.__all__) == set()


def test_everything_else_is_the_stdlib_object_itself(net: Net) -> None:
    different = {name for name in public(socket) if getattr(net.module, name) is not getattr(socket, name)}
    assert different <= REPLACED


def test_exceptions_are_the_same_classes(net: Net) -> None:
    for name in ("error", "timeout", "gaierror", "herror"):
        assert getattr(net.module, name) is getattr(socket, name)


def test_star_import(net: Net) -> None:
    names: dict[str, object] = {}
    exec(f"from {net.module.__name__} import *", names)
    assert names["socket"] is net.module.socket
    assert names["AF_INET"] is socket.AF_INET


def test_unknown_name(net: Net) -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        net.module.no_such_name  # noqa: B018


def test_lookups(net: Net) -> None:
    listener = net.listener()
    infos = net.module.getaddrinfo("127.0.0.1", listener.getsockname()[1], type=socket.SOCK_STREAM)
    assert infos[0][4] == listener.getsockname()
    family, kind, proto = infos[0][:3]
    client = net.own(net.module.socket(family, kind, proto))
    client.connect(infos[0][4])
    assert net.accept(listener).getpeername() == client.getsockname()


# -- sockets that are no streams ------------------------------------------------------------------------------


def test_datagram_sockets_are_plain(net: Net) -> None:
    one, two = (net.own(net.module.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2))
    for sock in (one, two):
        sock.bind(("127.0.0.1", 0))
    one.sendto(b"datagram", two.getsockname())
    assert two.recvfrom(100) == (b"datagram", one.getsockname())
    one.connect(two.getsockname())
    assert one.getpeername() == two.getsockname()
    one.send(b"")
    assert two.recvfrom(100) == (b"", one.getsockname())
    assert one.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_DGRAM
    assert one.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == socket.IPPROTO_UDP
    with raises_errno(errno.EOPNOTSUPP):
        one.listen()


def test_datagram_port_may_be_bound_twice_with_reuseaddr(net: Net) -> None:
    one, two = (net.own(net.module.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2))
    for sock in (one, two):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind(("127.0.0.1", 0))
    two.bind(one.getsockname())


def test_unix_sockets_are_plain(net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # such a path may have 107 bytes, and a temporary directory's may be longer
    listener = net.own(net.module.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    path = "listener"
    listener.bind(path)
    listener.listen()
    client = net.own(net.module.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    client.connect(path)
    server, address = listener.accept()
    net.own(server)
    assert (address, client.getpeername(), server.getsockname()) == ("", path, path)
    assert server.family == socket.AF_UNIX
    client.sendall(b"unix")
    assert server.recv(10) == b"unix"
    with pytest.raises(FileNotFoundError):
        net.own(net.module.socket(socket.AF_UNIX)).connect("nothing")


def test_socketpair(net: Net) -> None:
    left, right = (net.own(sock) for sock in net.module.socketpair())
    assert left.family == right.family == socket.AF_UNIX
    left.sendall(b"x")
    assert right.recv(1) == b"x"
    left.close()
    assert right.recv(1) == b""
    dgram = [net.own(sock) for sock in net.module.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)]
    dgram[0].send(b"")
    assert dgram[1].recv(10) == b""


def test_fds_travel_over_a_plain_socketpair(net: Net) -> None:
    left, right = (net.own(sock) for sock in net.module.socketpair())
    client, server = net.pair()
    net.module.send_fds(left, [b"here"], [client.fileno()])
    data, fds, _, _ = net.module.recv_fds(right, 100, 4)
    assert data == b"here"
    received = net.own(net.module.socket(fileno=fds[0]))
    client.close()
    assert received.getpeername() == server.getsockname()
    received.sendall(b"travelled")
    assert server.recv(100) == b"travelled"


def test_fds_do_not_travel_over_a_network(net: Net) -> None:
    """TCP ignores or refuses SCM_RIGHTS; in no case may an fd arrive at the other end."""
    client, server = net.pair()
    reading, writing = os.pipe()
    try:
        import array

        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [reading]))]
        try:
            client.sendmsg([b"x"], rights)
        except OSError:
            client.sendall(b"x")
        assert server.recvmsg(10, socket.CMSG_SPACE(4))[:2] == (b"x", [])
    finally:
        os.close(reading)
        os.close(writing)


def test_datagrams_and_streams_in_one_select(net: Net) -> None:
    client, server = net.pair()
    datagram = net.own(net.module.socket(socket.AF_INET, socket.SOCK_DGRAM))
    datagram.bind(("127.0.0.1", 0))
    datagram.sendto(b"x", datagram.getsockname())
    server.sendall(b"y")
    ready: set[Any] = set()
    while len(ready) < 2:
        ready |= set(select.select([client, datagram], [], [], PATIENCE_S)[0])
    assert ready == {client, datagram}

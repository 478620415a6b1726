"""Rules: which connections and listeners of a patched program are uTP's, and what becomes of those that are not."""

from __future__ import annotations

import errno
import inspect
import os
import select
import socket
import ssl
import struct
from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import pytest

from utpsocket import monkey
from utpsocket.sockets import rules as rules_module
from utpsocket.sockets.host_lists import Hosts
from utpsocket.sockets.rules import VARIABLES, Rules, make_routes

from ..requirements import localhost_families
from .network import PATIENCE_S, own_loopback, raises_errno

TIMED = struct.pack("ll", 7, 0)


@pytest.fixture
def tcp_listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


# -- the grammar ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "address", "expected"),
    [
        ("*", ("anything.example", 1), True),
        ("example.com", ("example.com", 80), True),
        ("example.com", ("www.example.com", 80), True),
        (".example.com", ("example.com", 80), True),
        ("*.example.com", ("a.b.example.com", 80), True),
        ("example.com", ("badexample.com", 80), False),
        ("EXAMPLE.com", ("Example.COM.", 80), True),
        ("example.com:443", ("example.com", 443), True),
        ("example.com:443", ("example.com", 80), False),
        ("*:6881", ("10.1.2.3", 6881), True),
        ("*:6881", ("10.1.2.3", 6882), False),
        ("10.1.2.3", ("10.1.2.3", 1), True),
        ("10.1.2.3", ("10.1.2.30", 1), False),
        ("10.1.2.3:5", ("10.1.2.3", 6), False),
        ("10.0.0.0/8", ("10.200.1.1", 1), True),
        ("10.0.0.0/8", ("11.0.0.1", 1), False),
        ("10.0.0.0/8", ("::ffff:10.0.0.1", 1, 0, 0), True),
        ("10.0.0.0/8", ("name.example", 1), False),
        ("::1", ("::1", 1, 0, 0), True),
        ("[::1]", ("::1", 1, 0, 0), True),
        ("[::1]:80", ("::1", 80, 0, 0), True),
        ("[::1]:80", ("::1", 81, 0, 0), False),
        ("2001:db8::/32", ("2001:db8:1::1", 1, 0, 0), True),
        ("fe80::/10", ("fe80::1%lo", 1, 0, 1), True),
        ("a.example, b.example c.example", ("b.example", 1), True),
        (["a.example", "10.0.0.0/8"], ("10.0.0.1", 1), True),
        ("", ("a.example", 1), False),
    ],
)
def test_the_grammar_is_no_proxys(patterns: Any, address: Any, expected: bool) -> None:
    assert Hosts(patterns).matches(address) is expected


@pytest.mark.parametrize(
    "wrong", ["10.0.0.0/33", "a.example:http", "a.example:0", "a.example:65536", "[nonsense]", "a/b"]
)
def test_what_the_grammar_refuses(wrong: str) -> None:
    with pytest.raises(ValueError):
        Hosts(wrong)


def test_lists_and_function_must_all_agree() -> None:
    asked: list[tuple[int, Any, str]] = []

    def where(family: int, address: Any, role: str) -> bool:
        asked.append((family, address, role))
        return role == "connect"

    rules = make_routes(where=where, only="10.0.0.0/8", exclude="10.9.0.0/16")
    assert rules is not None
    assert rules.chooses_utp(2, ("10.1.1.1", 5), "connect")
    assert not rules.chooses_utp(2, ("10.1.1.1", 5), "listen")
    assert not rules.chooses_utp(2, ("10.9.1.1", 5), "connect")
    assert not rules.chooses_utp(2, ("11.1.1.1", 5), "connect")
    assert asked == [(2, ("10.1.1.1", 5), "connect"), (2, ("10.1.1.1", 5), "listen")]
    assert rules.chooses_utp(2, "no address", "connect")  # the kernel has the words for that


def test_rules_that_say_nothing_are_none() -> None:
    assert make_routes() is None
    assert make_routes(only="", listen="utp") is None
    wrongs: tuple[dict[str, Any], ...] = ({"fallback": "udp"}, {"listen": "tcp"})
    for wrong in wrongs:
        with pytest.raises(ValueError):
            make_routes(**wrong)


def test_the_rules_are_named_once_and_for_all() -> None:
    """patch_all() shows them to help(); what else takes rules has their names and types from there."""
    shown = {name: note for name, note in monkey.patch_all.__annotations__.items() if name != "return"}
    assert shown.pop("children") == "bool | None"
    assert shown == {name: note.__forward_arg__ for name, note in Rules.__annotations__.items()}
    assert all(each.default is None for each in inspect.signature(monkey.patch_all).parameters.values())
    assert VARIABLES.keys() == Rules.__annotations__.keys() - {"where"}


@pytest.mark.parametrize("rules", [{"onyl": "x"}, {"only": "10.0.0.0/8", "onyl": None}])
def test_a_rule_of_another_name_is_a_type_error(rules: dict[str, Any]) -> None:
    module = ModuleType("program")
    vars(module)["socket"] = socket
    for call in (monkey.patch_all, monkey.patch_socket, partial(monkey.wrap_module, module), make_routes):
        with pytest.raises(TypeError, match="onyl"):
            call(**rules)
    with pytest.raises(TypeError, match="onyl"), monkey.patched(**rules):
        pass
    with pytest.raises(TypeError, match="children"):
        monkey.wrap_module(module, children=True)  # type: ignore[call-arg]
    assert not monkey.is_patched()
    assert vars(module)["socket"] is socket


def test_wrong_rules_change_nothing() -> None:
    with pytest.raises(ValueError):
        monkey.patch_all(only="10.0.0.0/33")
    assert not monkey.is_patched()
    with pytest.raises(TypeError):
        monkey.patch_all(onyl="x")  # type: ignore[call-arg]


def test_the_environment_is_read_where_nothing_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UTPSOCKET_ONLY", "10.0.0.0/8")
    monkeypatch.setenv("UTPSOCKET_EXCEPT", "10.9.0.0/16")
    monkeypatch.setenv("UTPSOCKET_FALLBACK", "tcp")
    monkeypatch.setenv("UTPSOCKET_FALLBACK_DELAY", "0.05")
    monkeypatch.setenv("UTPSOCKET_LISTEN", "both")
    with monkey.patched(exclude="10.8.0.0/16"):
        rules = monkey.routes_in_force()
        assert rules is not None
        assert (rules.fallback, rules.fallback_seconds, rules.listen) == ("tcp", 0.05, "both")
        assert [
            rules.chooses_utp(2, (host, 1), "connect") for host in ("10.1.0.1", "10.8.0.1", "10.9.0.1", "11.0.0.1")
        ] == [
            True,
            False,
            True,
            False,
        ]
    assert monkey.routes_in_force() is None


# -- connecting -----------------------------------------------------------------------------------------------


def test_a_connection_that_the_rules_send_to_tcp(tcp_listener: socket.socket) -> None:
    with monkey.patched(exclude="127.0.0.1"):
        client = socket.socket()
        assert monkey.transport(client) == "utp"  # an address is not known yet
        fd = client.fileno()
        client.settimeout(4.5)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50_000)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, TIMED)
        asked = client.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        client.set_inheritable(True)
        client.connect(tcp_listener.getsockname())
        with client:
            assert monkey.transport(client) == "tcp"
            assert (client.fileno(), client.gettimeout(), client.get_inheritable()) == (fd, 4.5, True)
            assert not os.get_blocking(fd)  # as the stdlib has it with a timeout
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == asked
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16) == TIMED
            assert (client.family, client.type, client.proto) == (socket.AF_INET, socket.SOCK_STREAM, 0)
            server, peer = tcp_listener.accept()
            with server:
                assert peer == client.getsockname()
                assert client.getpeername() == tcp_listener.getsockname()
                server.sendall(b"plain")
                assert client.recv(10) == b"plain"
                with client.dup() as twin, client.makefile("rb") as file:
                    twin.sendall(b"dup")
                    assert server.recv(10) == b"dup"
                    server.sendall(b"line\n")
                    assert file.readline() == b"line\n"


def test_it_stays_non_blocking(tcp_listener: socket.socket) -> None:
    with monkey.patched(exclude="127.0.0.1"), socket.socket() as client:
        client.setblocking(False)
        assert client.connect_ex(tcp_listener.getsockname()) in (0, errno.EINPROGRESS)
        assert client.gettimeout() == 0
        assert not os.get_blocking(client.fileno())
        assert select.select([], [client], [], PATIENCE_S)[1]
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        with raises_errno(errno.EAGAIN):
            client.recv(1)
        tcp_listener.accept()[0].close()


@pytest.mark.parametrize("edge", [0, select.EPOLLET], ids=["level", "edge"])
def test_what_polled_it_before_still_does(tcp_listener: socket.socket, edge: int) -> None:
    events = select.EPOLLIN | select.EPOLLOUT | edge
    with monkey.patched(exclude="127.0.0.1"), select.epoll() as first, select.epoll() as second:
        with socket.socket() as client, socket.socket() as bystander:
            client.setblocking(False)
            for poller in (first, second):
                poller.register(client, events)
                poller.register(bystander, 0)
            assert client.connect_ex(tcp_listener.getsockname()) in (0, errno.EINPROGRESS)
            server, _ = tcp_listener.accept()
            with server:
                server.sendall(b"x")
                assert select.select([client], [], [], PATIENCE_S)[0]
                for poller in (first, second):
                    assert dict(poller.poll(PATIENCE_S))[client.fileno()] & events == select.EPOLLIN | select.EPOLLOUT
                    poller.modify(client, select.EPOLLIN)
                    poller.unregister(client)


def test_a_file_made_before_still_works(tcp_listener: socket.socket) -> None:
    with monkey.patched(exclude="127.0.0.1"):
        client = socket.socket()
        file = client.makefile("rwb")
        client.connect(tcp_listener.getsockname())
        server, _ = tcp_listener.accept()
        client.close()
        with server, file:
            server.sendall(b"line\n")
            assert file.readline() == b"line\n"
        assert client.fileno() == -1


def test_a_refusal_is_tcps() -> None:
    with monkey.patched(exclude="127.0.0.1"), socket.socket() as probe, socket.socket() as client:
        probe.bind(("127.0.0.1", 0))
        with raises_errno(errno.ECONNREFUSED):
            client.connect(probe.getsockname())


def test_bound_first(tcp_listener: socket.socket) -> None:
    for rules in ({"exclude": "127.0.0.1"}, {"where": lambda family, address, role: role == "listen"}):
        with monkey.patched(**rules), socket.socket() as client:
            client.bind(("127.0.0.1", 0))
            bound = client.getsockname()
            assert bound[1]
            with raises_errno(errno.EINVAL):
                client.bind(("127.0.0.1", 0))
            client.connect(tcp_listener.getsockname())
            assert monkey.transport(client) == "tcp"
            server, peer = tcp_listener.accept()
            server.close()
            assert peer == bound == client.getsockname()


def test_bound_where_listeners_are_tcps_and_connected_over_utp() -> None:
    with monkey.patched(), socket.create_server(("127.0.0.1", 0)) as listener:
        with monkey.patched(where=lambda family, address, role: role == "connect"), socket.socket() as client:
            client.bind(("127.0.0.1", 0))
            bound = client.getsockname()
            client.connect(listener.getsockname())
            server, peer = listener.accept()
            with server:
                assert monkey.transport(client) == monkey.transport(server) == "utp"
                assert peer == bound == client.getsockname()


def test_tls_over_what_became_tcp(tcp_listener: socket.socket) -> None:
    """wrap_socket() first and connect() later: the SSLSocket itself changes its kind."""
    with monkey.patched(exclude="127.0.0.1"):
        context = ssl.create_default_context()
        with context.wrap_socket(socket.socket(), server_hostname="x", do_handshake_on_connect=False) as client:
            client.connect(tcp_listener.getsockname())
            assert monkey.transport(client) == "tcp"
            server, peer = tcp_listener.accept()
            server.close()
            assert peer == client.getsockname()
            with pytest.raises(OSError):
                client.do_handshake()


def test_host_names_count_by_what_was_looked_up() -> None:
    family = localhost_families()[-1]
    address = ("::1" if family == socket.AF_INET6 else "127.0.0.1", 0)
    with socket.create_server(address, family=family) as tcp_listener, monkey.patched(exclude="localhost"):
        port = tcp_listener.getsockname()[1]
        with socket.create_connection(("localhost", port)) as client:  # which connects to a number
            assert monkey.transport(client) == "tcp"
        tcp_listener.accept()[0].close()
        assert rules_module.make_routes(exclude="other.example").chooses_utp(2, ("127.0.0.1", port), "connect")  # type: ignore[union-attr]
    assert "utpsocket" not in socket.getaddrinfo.__module__


def test_only_one_port() -> None:
    with monkey.patched(), socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with monkey.patched(only=f"*:{port}"):
            with socket.create_connection(listener.getsockname()) as client:
                assert monkey.transport(client) == "utp"
            with socket.create_server(("127.0.0.1", 0)) as other:
                assert monkey.transport(other) == "tcp"


# -- listening ------------------------------------------------------------------------------------------------


def test_a_listener_that_the_rules_send_to_tcp() -> None:
    with monkey.patched(exclude="127.0.0.1"):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        address = listener.getsockname()
        fd = listener.fileno()
        listener.listen(5)
        with listener, monkey.get_original("socket", "create_connection")(address) as client:
            assert (monkey.transport(listener), listener.fileno()) == ("tcp", fd)
            assert listener.getsockname() == address
            assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
            server, peer = listener.accept()
            with server:
                assert monkey.transport(server) == "tcp"
                assert peer == client.getsockname()


def test_a_tcp_port_in_use_is_known_at_bind(tcp_listener: socket.socket) -> None:
    with monkey.patched(exclude="127.0.0.0/8"), socket.socket() as second:
        with raises_errno(errno.EADDRINUSE):
            second.bind(tcp_listener.getsockname())
        second.bind((own_loopback(), 0))
        free = second.getsockname()
    with socket.socket() as third:  # nothing holds the port after close()
        third.bind(free)


def test_listen_without_bind_is_a_listener_of_any_address() -> None:
    for pattern, transport in (("0.0.0.0", "tcp"), ("127.0.0.1", "utp")):
        with monkey.patched(exclude=pattern), socket.socket() as listener:
            listener.listen()
            assert monkey.transport(listener) == transport
            assert listener.getsockname()[0] == "0.0.0.0"


def test_one_module_with_rules_of_its_own(tcp_listener: socket.socket) -> None:
    import types

    module = types.ModuleType("wrapped_by_a_test")
    module.socket = socket  # type: ignore[attr-defined]
    with monkey.wrap_module(module, exclude="127.0.0.1"):
        with module.socket.create_connection(tcp_listener.getsockname()) as client:
            assert monkey.transport(client) == "tcp"
        with module.socket.create_server(("127.0.0.2", 0)) as listener:
            assert monkey.transport(listener) == "utp"

"""Of the sockets that share a port by SO_REUSEPORT only those that listen get connections, as over TCP."""

from __future__ import annotations

import errno
import importlib
import os
import socket as stdlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.requirements import requires_ipv6
from tests.sockets.network import MODULES, PATIENCE_S, Net
from tests.sockets.reuseport import ROOT, family_of

CONNECTS = 12  # by chance all of them come to one of two sockets once in 4,096 times
PLACES = [
    ("127.0.0.1", "127.0.0.1"),
    ("0.0.0.0", "127.0.0.1"),
    ("0.0.0.0", "127.0.0.5"),
    pytest.param("::1", "::1", marks=requires_ipv6),
    pytest.param("::", "::1", marks=requires_ipv6),
    pytest.param("::", "127.0.0.1", marks=requires_ipv6),
]
places = pytest.mark.parametrize(("bound", "host"), PLACES)


class Site:
    """Sockets at one port, with SO_REUSEPORT, which are closed in the end."""

    def __init__(self, net: Net, bound: str, host: str, stack: ExitStack) -> None:
        self.module = importlib.import_module(MODULES[net.name])
        self.bound, self.host, self.port = bound, host, 0
        self.stack = stack

    def bind(self) -> Any:
        sock = self.stack.enter_context(self.module.socket(family_of(self.bound)))
        sock.settimeout(PATIENCE_S)
        sock.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_REUSEPORT, 1)
        sock.bind((self.bound, self.port))
        self.port = sock.getsockname()[1]
        return sock

    def listen(self) -> Any:
        sock = self.bind()
        sock.listen(4 * CONNECTS)
        return sock

    def connect(self) -> Any:
        return self.stack.enter_context(self.module.create_connection((self.host, self.port), timeout=PATIENCE_S))

    def check_all_come_to(self, listener: Any) -> None:
        clients = {self.connect().getsockname()[1] for _ in range(CONNECTS)}
        while clients:
            with listener.accept()[0] as server:
                clients.discard(server.getpeername()[1])


@pytest.fixture
def make_site(net: Net) -> Iterator[Any]:
    with ExitStack() as stack:
        yield lambda bound, host: Site(net, bound, host, stack)


def check_talk(one: Any, other: Any) -> None:
    for sender, receiver in ((one, other), (other, one)):
        receiver.settimeout(PATIENCE_S)
        sender.sendall(b"x" * 30_000)
        missing = 30_000
        while missing:
            received = receiver.recv(missing)
            assert received
            missing -= len(received)


@contextmanager
def holder(site: Site, program: str, *arguments: str, **variables: str) -> Iterator[Any]:
    """Another process that runs this program with a socket of the port, until the context ends."""
    command = [sys.executable, "-c", HOLDER + program, site.module.__name__, site.bound, str(site.port), *arguments]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
        env={**os.environ, **variables},
    ) as process:
        assert process.stdout is not None
        site.port = int(process.stdout.readline())
        yield process


HOLDER = """
import importlib, socket, sys
module, bound, port = importlib.import_module(sys.argv[1]), sys.argv[2], int(sys.argv[3])
sock = module.socket(socket.AF_INET6 if ":" in bound else socket.AF_INET)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
sock.bind((bound, port))
print(sock.getsockname()[1], flush=True)
"""
WAIT = "sys.stdin.readline()"
IS_REFUSED = """
import errno, select
address = (sys.argv[4], int(sys.argv[5]))
sock.setblocking(False)
assert sock.connect_ex(address) in (errno.EINPROGRESS, errno.ECONNREFUSED)
select.select([], [sock], [])
assert sock.connect_ex(address) in (errno.ECONNREFUSED, errno.EINPROGRESS)
assert sock.getsockname()[1] == port
print("refused", flush=True)
sys.stdin.readline()
sock.setblocking(True)
sock.listen(50)
print("listens", flush=True)
"""
BESIDE_A_LISTENER = """
listener = module.socket(sock.family)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
listener.bind((bound, port))
listener.listen(1)
"""


@places
@pytest.mark.parametrize("is_first", [True, False])
def test_a_socket_that_is_only_bound_gets_none(make_site: Any, bound: str, host: str, is_first: bool) -> None:
    site = make_site(bound, host)
    if is_first:
        site.bind()
    listener = site.listen()
    if not is_first:
        site.bind()
    site.check_all_come_to(listener)


@places
def test_nor_one_of_another_process(make_site: Any, bound: str, host: str) -> None:
    site = make_site(bound, host)
    with holder(site, WAIT):
        site.check_all_come_to(site.listen())


@places
@pytest.mark.parametrize("engine", ["thread", "process"])
def test_nor_one_whose_connect_was_refused(net: Net, make_site: Any, bound: str, host: str, engine: str) -> None:
    """A non-blocking one is bound again without waiting for the engine."""
    site = make_site(bound, host)
    listener = site.listen()
    refused = net.refused_address(family_of(host))
    is_mapped = ":" in bound and ":" not in host
    refused_host = "::ffff:" + refused[0] if is_mapped else refused[0]
    with holder(site, IS_REFUSED + WAIT, refused_host, str(refused[1]), UTPSOCKET_ENGINE=engine) as process:
        assert process.stdout.readline() == "refused\n"
        site.check_all_come_to(listener)
        listener.close()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "listens\n"
        for _ in range(CONNECTS):
            site.connect()


@pytest.mark.parametrize("engine", ["thread", "process"])
def test_one_whose_connect_was_refused_stays_bound_beside_a_listener(net: Net, make_site: Any, engine: str) -> None:
    site = make_site("127.0.0.1", "127.0.0.1")
    site.bind()
    refused = map(str, net.refused_address())
    with holder(site, BESIDE_A_LISTENER + IS_REFUSED, *refused, UTPSOCKET_ENGINE=engine) as process:
        assert process.stdout.readline() == "refused\n"
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "listens\n"


def test_nor_one_that_a_forked_child_holds(make_site: Any) -> None:
    site = make_site("127.0.0.1", "127.0.0.1")
    reserved = site.bind()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    try:
        os.close(reading)
        reserved.close()
        site.check_all_come_to(site.listen())
    finally:
        os.close(writing)
        os.waitpid(child, 0)


@places
def test_those_that_were_only_bound_share_the_connections_once_they_listen(
    make_site: Any, bound: str, host: str
) -> None:
    site = make_site(bound, host)
    listeners = [site.bind(), site.bind()]
    for listener in listeners:
        listener.listen(8 * CONNECTS)
    for _ in range(4 * CONNECTS):
        site.connect()
    for listener in listeners:  # by chance one gets none once in 2**47 times
        listener.accept()[0].close()


@places
def test_a_socket_that_dials_gets_none(make_site: Any, bound: str, host: str) -> None:
    site, elsewhere = make_site(bound, host), make_site(host, host)
    server, dialing = elsewhere.listen(), site.bind()
    is_mapped = ":" in bound and ":" not in host
    dialing.connect(("::ffff:" + host if is_mapped else host, elsewhere.port))
    accepted = site.stack.enter_context(server.accept()[0])
    assert accepted.getpeername()[1] == site.port
    check_talk(dialing, accepted)
    site.check_all_come_to(site.listen())
    check_talk(dialing, accepted)


@places
def test_a_closed_listener_gets_none_while_its_connections_are_open(make_site: Any, bound: str, host: str) -> None:
    site = make_site(bound, host)
    closed = site.listen()
    pairs = [(site.connect(), site.stack.enter_context(closed.accept()[0])) for _ in range(2)]
    other = site.listen()
    closed.close()
    site.check_all_come_to(other)
    for client, server in pairs:
        check_talk(client, server)


@places
def test_nor_one_that_is_shut_down_until_it_listens_again(make_site: Any, bound: str, host: str) -> None:
    site = make_site(bound, host)
    site.bind().close()  # over TCP, shutdown() gives a number back that the kernel has chosen
    shut, other = site.listen(), site.listen()
    shut.shutdown(stdlib.SHUT_RDWR)
    site.check_all_come_to(other)
    shut.listen(4 * CONNECTS)
    other.close()
    site.check_all_come_to(shut)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_socket_that_is_only_bound_gets_none_at_a_privileged_port(make_site: Any, is_first: bool) -> None:
    site = make_site("127.0.0.6", "127.0.0.6")
    for site.port in range(1_023, 1_000, -1):
        try:
            reserved = site.bind()
        except PermissionError:
            pytest.skip("needs CAP_NET_BIND_SERVICE")
        except OSError as error:
            assert error.errno == errno.EADDRINUSE
            continue
        break
    listener = site.listen()
    if not is_first:
        reserved, listener = listener, reserved
        reserved.close()
        site.bind()
        listener.listen(4 * CONNECTS)
    site.check_all_come_to(listener)


@places
@pytest.mark.parametrize("reuse", [False, True])
def test_the_address_of_one_that_is_only_bound_is_taken(make_site: Any, bound: str, host: str, reuse: bool) -> None:
    site = make_site(bound, host)
    reserved = site.bind()
    with pytest.raises(ConnectionRefusedError):
        site.connect()
    for address in {bound, host} if family_of(bound) == family_of(host) else {bound}:
        with site.module.socket(family_of(bound)) as other:
            other.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_REUSEADDR, reuse)
            with pytest.raises(OSError) as caught:
                other.bind((address, site.port))
            assert caught.value.errno == errno.EADDRINUSE
    reserved.close()
    with site.module.socket(family_of(bound)) as other:
        other.bind((bound, site.port))

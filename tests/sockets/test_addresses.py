"""Addresses that need more than a host and a port: link-local ones with their scope, and sources that are none.

What TCP and uTP return in each case is compared, in a network namespace with two devices.
"""

from __future__ import annotations

import ast
import errno
import socket
from functools import cache
from typing import Any

import pytest

import utpsocket
from tests.namespaces import LEFT, LEFT_GLOBAL, LEFT_V4, RIGHT, run_in_a_network
from tests.requirements import requires_ipv6

from .network import MODULES, PATIENCE_S, Net

FIND_OUT = """
import ast, errno, importlib, socket as stdlib, sys
module = importlib.import_module(sys.argv[1])

def full(name, port):  # (host,) or (host, flow label, device)
    return (name[0], port, name[1], stdlib.if_nametoindex(name[2])) if len(name) > 1 else (name[0], port)

def address(name):
    return (name[0], "port" if name[1] else 0, *name[2:])

def bound(family, name):
    sock = module.socket(family)
    sock.bind(full(name, 0))
    return sock

def case(listen, dial, source):
    family = stdlib.AF_INET6 if ":" in listen[0] else stdlib.AF_INET
    results = []
    listener = bound(family, listen)
    listener.listen()
    listener.settimeout(30)
    results.append(address(listener.getsockname()))
    client = bound(family, source) if source else module.socket(family)
    client.settimeout(30)
    if source:
        results.append(address(client.getsockname()))
    client.connect(full(dial, listener.getsockname()[1]))
    server, peer = listener.accept()
    server.settimeout(30)
    client.sendall(b"ping")
    server.sendall(server.recv(4))
    results.append(client.recv(4))
    for each in (client.getsockname(), client.getpeername(), server.getsockname(), server.getpeername(), peer):
        results.append(address(each))
    assert client.getsockname()[1] == peer[1]
    for sock in (client, server):
        results.append(sock.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_BINDTODEVICE, 16))
    where = server.getsockname()
    for sock in (client, server):
        sock.close()
    try:
        another = module.socket(family)
        another.bind((where[0], 0, *where[2:]))
        results.append(address(another.getsockname()))
    finally:
        another.close()
        listener.close()
    return results

for one in ast.literal_eval(sys.argv[2]):
    try:
        print(repr((one, case(*one))))
    except OSError as error:
        print(repr((one, errno.errorcode.get(error.errno, str(error)))))
"""
ROUTES = """
ip route add prohibit 10.1.0.0/16
ip route add unreachable 10.2.0.0/16
ip route add blackhole 10.3.0.0/16
ip -6 route add prohibit 2001:db8:1::/48
"""
ON_LEFT, ON_RIGHT, FLOW = (0, "left"), (0, "right"), (5, "left")
ANY, ANY_V4 = ("::",), ("0.0.0.0",)
Name = tuple[str] | tuple[str, int, str]
Case = tuple[Name, Name, Name | None]
CASES: dict[str, Case] = {  # where the listener is, what is dialed, where the client is bound
    "a scope": (ANY, (LEFT, *ON_LEFT), None),
    "a scope in the name": (ANY, (f"{LEFT}%left",), None),
    "the other device": (ANY, (RIGHT, *ON_RIGHT), None),
    "a flow label": (ANY, (LEFT, *FLOW), None),
    "a listener with a scope": ((LEFT, *ON_LEFT), (LEFT, *ON_LEFT), None),
    "a listener without the scope it needs": ((LEFT,), (LEFT, *ON_LEFT), None),
    "a client bound anywhere": (ANY, (LEFT, *ON_LEFT), ANY),
    "a client with a scope": (ANY, (LEFT, *ON_LEFT), (LEFT, *ON_LEFT)),
    "a client with a global address": (ANY, (LEFT, *ON_LEFT), (LEFT_GLOBAL,)),
    "a server with a global address": (ANY, (LEFT_GLOBAL,), (LEFT, *ON_LEFT)),
    "global addresses": (ANY, (LEFT_GLOBAL,), None),
    "a scope for a global address": (ANY, (LEFT_GLOBAL, *ON_LEFT), None),
    "no scope": (ANY, (LEFT,), None),
    "the scope is the client's": (ANY, (LEFT,), (LEFT, *ON_LEFT)),
    "the scope is not the client's": (ANY, (LEFT, *ON_LEFT), (RIGHT, *ON_RIGHT)),
    "IPv4 mapped": (ANY, ("::ffff:127.0.0.1",), None),
    "IPv4 mapped from any": (ANY, ("::ffff:127.0.0.1",), ("::ffff:0.0.0.0",)),
    "IPv6 from IPv4": (ANY, ("::1",), ("::ffff:127.0.0.1",)),
    "no address from IPv4": (ANY, ("::",), ("::ffff:127.0.0.1",)),
    "multicast": (ANY, ("ff02::1",), None),
    "multicast with a scope": (ANY, ("ff02::1", *ON_LEFT), None),
    "multicast IPv4 mapped": (ANY, ("::ffff:224.0.0.1",), ("::ffff:127.0.0.1",)),
    "from IPv6 multicast": (ANY, ("::1",), ("ff02::1", *ON_LEFT)),
    "from mapped multicast": (ANY, ("::ffff:127.0.0.1",), ("::ffff:224.0.0.1",)),
    "from multicast": (ANY_V4, ("127.0.0.1",), ("224.0.0.1",)),
    "from broadcast": (ANY_V4, ("127.0.0.1",), ("255.255.255.255",)),
    "from loopback's broadcast": (ANY_V4, ("127.0.0.3",), ("127.255.255.255",)),
    "from a device's broadcast": (ANY_V4, ("127.0.0.1",), ("10.0.5.255",)),
    "from broadcast to a device": (ANY_V4, (LEFT_V4,), ("255.255.255.255",)),
    "from another loopback address": (ANY_V4, ("127.0.0.1",), ("127.0.0.2",)),
    "from loopback to a device": (ANY_V4, (LEFT_V4,), ("127.0.0.1",)),
    "from loopback to the cable": (ANY_V4, ("10.0.5.77",), ("127.0.0.1",)),
    "from a device to no address": (ANY_V4, ("0.0.0.0",), (LEFT_V4,)),
    "to no address": (ANY_V4, ("0.0.0.0",), None),
    "to broadcast": (ANY_V4, ("255.255.255.255",), None),
    "to loopback's broadcast": (ANY_V4, ("127.255.255.255",), ("127.0.0.1",)),
    "to multicast": (ANY_V4, ("224.0.0.1",), None),
    "to a device's broadcast from loopback": (ANY_V4, ("10.0.5.255",), ("127.0.0.1",)),
    "prohibited": (ANY_V4, ("10.1.0.1",), None),
    "prohibited, bound": (ANY_V4, ("10.1.0.1",), ANY_V4),
    "prohibited IPv6": (ANY, ("2001:db8:1::1",), None),
    "unreachable": (ANY_V4, ("10.2.0.1",), (LEFT_V4,)),
    "into a black hole": (ANY_V4, ("10.3.0.1",), None),
}


@cache
def results(module: str) -> dict[Case, Any]:
    """What each case comes to, in a program that plays them all."""
    output = run_in_a_network(FIND_OUT, module, repr(list(CASES.values())), setup=ROUTES, timeout_s=150)
    return dict(map(ast.literal_eval, output.splitlines()))


@requires_ipv6
@pytest.mark.parametrize("name", CASES)
def test_the_addresses_of_both_ends(name: str) -> None:
    case = CASES[name]
    assert results(MODULES["utp"])[case] == results(MODULES["tcp"])[case]


@pytest.mark.parametrize("host", ["127.255.255.255", "255.255.255.255", "224.0.0.1"])
def test_a_socket_bound_to_an_address_of_many_connects_from_one(net: Net, host: str) -> None:
    listener = net.listener()
    for _ in range(5):
        client = net.fresh(timeout=PATIENCE_S)
        client.bind((host, 0))
        port = client.getsockname()[1]
        client.connect(listener.getsockname())
        if client.getsockname()[1] == port:
            break
        net.accept(listener)  # another process has that port of 127.0.0.1
    assert client.getsockname() == ("127.0.0.1", port)
    server, peer = listener.accept()
    net.own(server)
    assert peer == ("127.0.0.1", port)
    client.sendall(b"from one")
    assert server.recv(10) == b"from one"


def test_a_port_of_one_that_is_taken_is_replaced() -> None:
    with utpsocket.create_server(("127.0.0.1", 0)) as listener, utpsocket.socket() as client:
        client.bind(("127.255.255.255", listener.getsockname()[1]))
        client.connect(listener.getsockname())
        server, peer = listener.accept()
        server.close()
        assert client.getsockname() == peer
        assert peer[1] != listener.getsockname()[1]


def test_a_socket_bound_to_an_address_of_many_connects_after_a_failed_attempt(net: Net) -> None:
    client = net.fresh()
    client.bind(("127.255.255.255", 0))
    assert client.connect_ex(net.refused_address()) == errno.ECONNREFUSED
    client.connect(net.listener().getsockname())
    assert client.getsockname()[0] == "127.0.0.1"


def test_ipv6_multicast_is_no_address_to_bind_to(net: Net) -> None:
    with net.fresh(socket.AF_INET6) as sock, pytest.raises(OSError) as refused:
        sock.bind(("ff01::1", 0))
    assert refused.value.errno == errno.EINVAL

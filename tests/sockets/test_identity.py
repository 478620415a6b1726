"""Who a socket says it is: class, family, names, repr, and the same through every kind of copy."""

from __future__ import annotations

import copy
import errno
import inspect
import os
import pickle
import re
import socket
import weakref
from functools import partial
from typing import Any

import pytest

from ..conftest import open_descriptors
from ..requirements import IPV6, requires_fds
from .network import Net, outcome, raises_errno, receive_exactly


def facts(sock: Any) -> dict[str, object]:
    """Everything that must be the same on both networks, ports and fds apart."""
    names: list[Any] = [outcome(sock.getsockname), outcome(sock.getpeername)]
    for index, (kind, value) in enumerate(names):
        if kind == "returned":
            names[index] = (value[0], bool(value[1]), *value[2:])
    return {
        "family": sock.family,
        "type": sock.type,
        "proto": sock.proto,
        "timeout": sock.gettimeout(),
        "blocking": sock.getblocking(),
        "inheritable": outcome(sock.get_inheritable),
        "names": names,
        "repr": re.sub(r"fd=\d+|\b\d{4,5}\b", "#", re.sub(r"^<[\w.]+", "<", repr(sock))),
    }


def states(net: Net, family: int) -> dict[str, Any]:
    client, server = net.pair(family)
    bound = net.fresh(family)
    bound.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
    closed = net.fresh(family)
    closed.close()
    detached = net.fresh(family)
    os.close(detached.detach())
    return {
        "fresh": net.fresh(family),
        "bound": bound,
        "listening": net.listener(family),
        "connected": client,
        "accepted": server,
        "closed": closed,
        "detached": detached,
        "duplicate": net.own(client.dup()),
    }


@pytest.mark.parametrize("family", [socket.AF_INET, IPV6])
def test_every_state_looks_the_same(net: Net, family: int) -> None:
    reference = Net("tcp")
    try:
        expected = {state: facts(sock) for state, sock in states(reference, family).items()}
    finally:
        reference.close()
    assert {state: facts(sock) for state, sock in states(net, family).items()} == expected


def test_explicit_protocol(net: Net) -> None:
    sock = net.own(net.module.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP))
    assert sock.proto == socket.IPPROTO_TCP
    assert "proto=6" in repr(sock)


def test_default_arguments(net: Net) -> None:
    sock = net.own(net.module.socket())
    assert (sock.family, sock.type, sock.proto) == (socket.AF_INET, socket.SOCK_STREAM, 0)
    keyword = net.own(net.module.socket(family=socket.AF_INET, type=socket.SOCK_STREAM, proto=0, fileno=None))
    assert facts(keyword) == facts(sock)


def test_type_flags_in_the_constructor(net: Net) -> None:
    flags = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM | flags) as plain:
        expected = (plain.gettimeout(), plain.type, os.get_blocking(plain.fileno()))
    sock = net.own(net.module.socket(socket.AF_INET, socket.SOCK_STREAM | flags))
    assert (sock.gettimeout(), sock.type, os.get_blocking(sock.fileno())) == expected


def test_family_and_type_are_enumerations(net: Net) -> None:
    for sock in (net.fresh(), *net.pair()):
        assert sock.family is socket.AddressFamily.AF_INET
        assert sock.type is socket.SocketKind.SOCK_STREAM


def test_is_a_stdlib_socket(net: Net) -> None:
    client, server = net.pair()
    for sock in (client, server, net.fresh(), client.dup()):
        net.own(sock)
        assert isinstance(sock, socket.socket)
        assert type(sock) is net.module.socket
    assert inspect.isclass(net.module.socket)
    assert issubclass(net.module.socket, socket.socket)
    assert net.module.SocketType is socket.SocketType


def test_fd_is_not_inheritable_and_can_be_made_so(net: Net) -> None:
    for sock in (net.fresh(), *net.pair(), net.listener()):
        assert sock.get_inheritable() is False
        assert os.get_inheritable(sock.fileno()) is False
        sock.set_inheritable(True)
        assert os.get_inheritable(sock.fileno()) is True


def test_fileno_stays_the_same_for_life(net: Net) -> None:
    """Selectors, pollers and user tables are keyed by it."""
    listener = net.listener()
    client = net.fresh()
    fd, inode = client.fileno(), os.fstat(client.fileno()).st_ino
    client.connect(listener.getsockname())
    client.sendall(b"x")
    client.shutdown(socket.SHUT_WR)
    assert (client.fileno(), os.fstat(fd).st_ino) == (fd, inode)


def test_hash_equality_and_weak_reference(net: Net) -> None:
    sock, other = net.fresh(), net.fresh()
    assert sock == sock and sock != other
    assert len({sock, other, sock}) == 2
    assert weakref.ref(sock)() is sock


def test_no_instance_dictionary(net: Net) -> None:
    sock = net.fresh()
    assert not hasattr(sock, "__dict__")
    with pytest.raises(AttributeError):
        sock.anything = 1


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_cannot_be_pickled(net: Net, duplicate: Any) -> None:
    with socket.socket() as plain:
        expected = outcome(lambda: duplicate(plain))
    assert expected[0] == "TypeError"
    assert outcome(lambda: duplicate(net.fresh())) == expected


def test_family_type_proto_timeout_are_read_only(net: Net) -> None:
    sock = net.fresh()
    for name in ("family", "type", "proto", "timeout"):
        with pytest.raises(AttributeError):
            setattr(sock, name, 1)
    assert sock.timeout is None


def test_same_attributes_as_a_stdlib_socket(net: Net) -> None:
    assert {name for name in dir(socket.socket) if not name.startswith("_")} <= set(dir(net.module.socket))


def test_methods_have_documentation_and_the_stdlib_signature(net: Net) -> None:
    for name, method in vars(socket.socket).items():
        if inspect.isfunction(method) and not name.startswith("_"):
            ours = getattr(net.module.socket, name)
            assert list(inspect.signature(ours).parameters) == list(inspect.signature(method).parameters), name


# -- copies that know who they are ----------------------------------------------------------------------------


def copies(net: Net, sock: Any) -> dict[str, Any]:
    return {
        "dup": net.own(sock.dup()),
        "module_dup": net.own(net.module.socket(fileno=net.module.dup(sock.fileno()))),
        "os_dup": net.own(net.module.socket(fileno=os.dup(sock.fileno()))),
        "family_given": net.own(net.module.socket(sock.family, sock.type, fileno=os.dup(sock.fileno()))),
        "fromfd": net.own(net.module.fromfd(sock.fileno(), sock.family, sock.type)),
        "fromfd_proto": net.own(net.module.fromfd(sock.fileno(), sock.family, sock.type, sock.proto)),
    }


@pytest.mark.parametrize("family", [socket.AF_INET, IPV6])
def test_copies_of_a_connection(net: Net, family: int) -> None:
    client, server = net.pair(family)
    for kind, other in copies(net, client).items():
        assert type(other) is net.module.socket, kind
        assert (other.family, other.type) == (family, socket.SOCK_STREAM), kind
        assert (other.getsockname(), other.getpeername()) == (client.getsockname(), client.getpeername()), kind
        assert other.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == socket.IPPROTO_TCP, kind
        other.sendall(kind.encode())
        assert receive_exactly(server, len(kind)) == kind.encode()


def test_copies_of_a_listener(net: Net) -> None:
    listener = net.listener()
    for kind, other in copies(net, listener).items():
        assert other.getsockname() == listener.getsockname(), kind
        client = net.fresh()
        client.connect(listener.getsockname())
        accepted = net.accept(other)
        assert type(accepted) is net.module.socket, kind
        assert accepted.getpeername() == client.getsockname(), kind


def test_copies_of_a_fresh_socket_share_what_happens_to_it(net: Net) -> None:
    listener = net.listener()
    sock = net.fresh()
    duplicates = copies(net, sock)
    sock.connect(listener.getsockname())
    accepted = net.accept(listener)
    for kind, other in duplicates.items():
        assert (other.getsockname(), other.getpeername()) == (sock.getsockname(), sock.getpeername()), kind
        other.sendall(kind.encode())
        assert receive_exactly(accepted, len(kind)) == kind.encode()


def test_a_copy_may_connect(net: Net) -> None:
    listener = net.listener()
    sock = net.fresh()
    other = net.own(sock.dup())
    other.connect(listener.getsockname())
    assert sock.getpeername() == listener.getsockname()
    sock.sendall(b"x")
    assert net.accept(listener).recv(1) == b"x"


def test_protocol_of_an_adopted_fd(net: Net) -> None:
    client, _ = net.pair()
    assert net.own(net.module.socket(fileno=os.dup(client.fileno()))).proto == socket.IPPROTO_TCP
    assert net.own(client.dup()).proto == 0


def test_adopting_something_that_is_no_socket(net: Net) -> None:
    with open(os.devnull, encoding="utf-8") as null:
        for fd in (null.fileno(), -1, 1 << 20):
            expected = outcome(partial(socket.socket, fileno=fd))
            assert expected[0] in ("OSError", "ValueError")
            assert outcome(partial(net.module.socket, fileno=fd)) == expected
    for wrong in ("3", 3.0):
        with pytest.raises(TypeError):
            net.module.socket(fileno=wrong)


def test_adopting_a_plain_socket_gives_a_plain_socket(net: Net) -> None:
    """What is not ours behaves as the stdlib class does, TCP and AF_UNIX alike."""
    tcp = Net("tcp")
    try:
        client, server = tcp.pair()
        adopted = net.own(net.module.socket(fileno=os.dup(client.fileno())))
        assert (adopted.getsockname(), adopted.getpeername()) == (client.getsockname(), client.getpeername())
        adopted.sendall(b"x")
        assert server.recv(1) == b"x"
        left, right = (net.own(each) for each in socket.socketpair())
        unix = net.own(net.module.socket(fileno=left.detach()))
        assert unix.family == socket.AF_UNIX
        unix.sendall(b"y")
        assert right.recv(1) == b"y"
    finally:
        tcp.close()


# -- subclasses -----------------------------------------------------------------------------------------------


def test_subclass(net: Net) -> None:
    class Counting(net.module.socket):  # type: ignore[misc, name-defined]  # of either module
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            self.sent = 0
            super().__init__(*arguments, **keywords)

        def send(self, data: bytes, flags: int = 0) -> int:
            self.sent += len(data)
            return super().send(data, flags)

    listener = net.listener()
    client = net.own(Counting())
    client.connect(listener.getsockname())
    client.send(b"abc")
    assert client.sent == 3
    assert "Counting" in repr(client)
    copy_of_it = net.own(client.dup())
    assert type(copy_of_it) is Counting
    assert receive_exactly(net.accept(listener), 3) == b"abc"


def test_subclass_of_a_listener_accepts_the_module_class(net: Net) -> None:
    class Listening(net.module.socket):  # type: ignore[misc, name-defined]  # of either module
        pass

    listener = net.own(Listening())
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    net.fresh().connect(listener.getsockname())
    assert type(net.accept(listener)) is net.module.socket


def test_subclass_that_overrides_close(net: Net) -> None:
    closed = []

    class Telling(net.module.socket):  # type: ignore[misc, name-defined]  # of either module
        def close(self) -> None:
            closed.append(self.fileno())
            super().close()

    listener = net.listener()
    with Telling() as client:
        client.connect(listener.getsockname())
        fd = client.fileno()
    assert closed == [fd]
    assert net.accept(listener).recv(1) == b""


def test_raw_accept(net: Net) -> None:
    listener = net.listener()
    client = net.fresh()
    client.connect(listener.getsockname())
    fd, _ = listener._accept()
    accepted = net.own(net.module.socket(listener.family, listener.type, listener.proto, fileno=fd))
    assert accepted.getpeername() == client.getsockname()


def test_getpeername_after_the_peer_has_gone(net: Net) -> None:
    client, server = net.pair()
    names = client.getsockname(), client.getpeername()
    server.close()
    assert client.recv(1) == b""
    assert (client.getsockname(), client.getpeername()) == names
    client, server = net.pair()
    net.reset(server)
    with raises_errno(errno.ECONNRESET):
        client.recv(1)
    with raises_errno(errno.ENOTCONN):
        client.getpeername()


@requires_fds(2_000)
def test_fds_are_small_numbers(net: Net) -> None:
    """select() ends at 1,024: what serves the connections must not use up the numbers below it, where there are more.

    Of the numbers that were free the program's 80 sockets and its listener get the lowest.
    """
    taken = open_descriptors()
    free = [number for number in range(1_024) if number not in taken]
    pairs = [net.pair() for _ in range(40)]
    assert max(sock.fileno() for pair in pairs for sock in pair) <= free[90]

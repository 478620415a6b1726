"""Wrong addresses, wrong arguments, wrong states: the same exception with the same words as kernel TCP.

The expected outcome is not written down here but asked of the stdlib, on this machine and this interpreter;
only its type is, so that a case that stopped raising shows.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from ..requirements import requires_ipv6_sockets
from .network import Net, outcome

Operation = Callable[[Any], object]

ADDRESSES: list[tuple[str, object, type[BaseException]]] = [
    ("none", None, TypeError),
    ("text", "127.0.0.1", TypeError),
    ("list", ["127.0.0.1", 80], TypeError),
    ("empty_tuple", (), TypeError),
    ("host_only", ("127.0.0.1",), TypeError),
    ("three_parts", ("127.0.0.1", 80, 0), TypeError),
    ("port_text", ("127.0.0.1", "80"), TypeError),
    ("port_none", ("127.0.0.1", None), TypeError),
    ("port_float", ("127.0.0.1", 80.5), TypeError),
    ("host_number", (1, 80), TypeError),
    ("host_none", (None, 80), TypeError),
    ("port_too_large", ("127.0.0.1", 65536), OverflowError),
    ("port_negative", ("127.0.0.1", -1), OverflowError),
    ("port_huge", ("127.0.0.1", 1 << 80), OverflowError),
    ("host_with_nul", ("127.0.0.1\0", 80), TypeError),
    ("host_not_encodable", ("ü" * 64, 80), TypeError),
    ("host_malformed", ("1.2.3.4.5", 80), socket.gaierror),
    ("host_of_other_family", ("::1", 80), socket.gaierror),
    ("host_is_a_number_too_large", ("256.256.256.256", 80), socket.gaierror),
]
CALLS: dict[str, Callable[[Any, Any], object]] = {
    "bind": lambda sock, address: sock.bind(address),
    "connect": lambda sock, address: sock.connect(address),
    "connect_ex": lambda sock, address: sock.connect_ex(address),
}


def compare(
    net: Net, operation: Operation, error: type[BaseException] | None = None, *, family: int = socket.AF_INET
) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as plain:
        expected = in_essence(outcome(lambda: operation(plain)))
    if error is not None:
        assert expected[0] != "returned", "the case itself is wrong: TCP takes this"
        assert issubclass(error, BaseException) and expected[0] in {each.__name__ for each in _and_below(error)}
    sock = net.fresh(family)
    assert in_essence(outcome(lambda: operation(sock))) == expected


def in_essence(result: tuple[str, object]) -> tuple[str, object]:
    """Without the words for a wrong number of arguments: a method in Python counts them otherwise than one in C."""
    return (
        ("TypeError", "arguments")
        if re.search(r"argument.* (given|missing)|missing .* argument", str(result[1]))
        else result
    )


def _and_below(kind: type[BaseException]) -> list[type[BaseException]]:
    return [kind, *(below for each in kind.__subclasses__() for below in _and_below(each))]


@pytest.mark.parametrize(("address", "error"), [case[1:] for case in ADDRESSES], ids=[case[0] for case in ADDRESSES])
@pytest.mark.parametrize("call", CALLS)
def test_bad_ipv4_address(net: Net, call: str, address: object, error: type[BaseException]) -> None:
    compare(net, lambda sock: CALLS[call](sock, address), error)


@requires_ipv6_sockets
@pytest.mark.parametrize(
    ("address", "error"),
    [
        (("::1",), TypeError),
        (("::1", 80, 0, 0, 0), TypeError),
        (("::1", 65536), OverflowError),
        (("::1", 80, 1 << 20), OverflowError),
        (("::1", 80, -1), OverflowError),
        (("::1", "80", 0, 0), TypeError),
        (("::1", 80, 0, "eth0"), TypeError),
        (("127.0.0.1", 80), socket.gaierror),
        (("::g", 80), socket.gaierror),
    ],
    ids=str,
)
@pytest.mark.parametrize("call", CALLS)
def test_bad_ipv6_address(net: Net, call: str, address: object, error: type[BaseException]) -> None:
    compare(net, lambda sock: CALLS[call](sock, address), error, family=socket.AF_INET6)


@pytest.mark.parametrize("call", ["bind", "connect"])
def test_host_may_be_bytes_or_bytearray(net: Net, call: str) -> None:
    listener = net.listener()
    for host in (b"127.0.0.1", bytearray(b"127.0.0.1")):
        sock = net.fresh()
        CALLS[call](sock, (host, listener.getsockname()[1] if call == "connect" else 0))
        assert sock.getsockname()[0] == "127.0.0.1"


def test_port_may_be_any_index(net: Net) -> None:
    class Port:
        def __index__(self) -> int:
            return listener.getsockname()[1]

    listener = net.listener()
    client = net.fresh()
    client.connect(("127.0.0.1", Port()))
    assert client.getpeername() == listener.getsockname()


def test_empty_host_means_this_machine(net: Net) -> None:
    listener = net.listener()
    client = net.fresh()
    client.connect(("", listener.getsockname()[1]))
    assert client.getpeername() == listener.getsockname()


def test_connecting_to_port_zero(net: Net) -> None:
    compare(net, lambda sock: sock.connect(("127.0.0.1", 0)), ConnectionRefusedError)


def test_binding_an_address_of_another_machine(net: Net) -> None:
    compare(net, lambda sock: sock.bind(("192.0.2.1", 0)), OSError)


def test_binding_twice(net: Net) -> None:
    def twice(sock: Any) -> None:
        sock.bind(("127.0.0.1", 0))
        sock.bind(("127.0.0.1", 0))

    compare(net, twice, OSError)


def test_binding_after_connect(net: Net) -> None:
    client, _ = net.pair()
    with pytest.raises(OSError, match="Invalid argument"):
        client.bind(("127.0.0.1", 0))


OPERATIONS: list[tuple[str, Operation, type[BaseException] | None]] = [
    ("getpeername", lambda s: s.getpeername(), OSError),
    ("getsockname", lambda s: s.getsockname(), None),
    ("recv", lambda s: s.recv(1), OSError),
    ("recv_nothing", lambda s: s.recv(0), None),
    ("recv_negative", lambda s: s.recv(-1), ValueError),
    ("recv_text", lambda s: s.recv("1"), TypeError),
    ("recv_no_argument", lambda s: s.recv(), TypeError),
    ("recv_into_readonly", lambda s: s.recv_into(b"abc"), TypeError),
    ("recv_into_too_small", lambda s: s.recv_into(bytearray(3), 4), ValueError),
    ("recv_into_negative", lambda s: s.recv_into(bytearray(3), -1), ValueError),
    ("recvfrom", lambda s: s.recvfrom(1), OSError),
    ("recvfrom_negative", lambda s: s.recvfrom(-1), ValueError),
    ("recvfrom_into", lambda s: s.recvfrom_into(bytearray(1)), OSError),
    ("recvfrom_into_too_small", lambda s: s.recvfrom_into(bytearray(3), 4), ValueError),
    ("recvmsg", lambda s: s.recvmsg(1), OSError),
    ("recvmsg_negative", lambda s: s.recvmsg(-1), ValueError),
    ("recvmsg_negative_ancillary", lambda s: s.recvmsg(1, -1), ValueError),
    ("recvmsg_into", lambda s: s.recvmsg_into([bytearray(1)]), OSError),
    ("recvmsg_into_not_iterable", lambda s: s.recvmsg_into(3), TypeError),
    ("recvmsg_into_readonly", lambda s: s.recvmsg_into([b"abc"]), TypeError),
    ("send", lambda s: s.send(b"x"), OSError),
    ("send_nothing", lambda s: s.send(b""), OSError),
    ("send_text", lambda s: s.send("x"), TypeError),
    ("send_number", lambda s: s.send(1), TypeError),
    ("send_no_argument", lambda s: s.send(), TypeError),
    ("sendall", lambda s: s.sendall(b"x"), OSError),
    ("sendall_text", lambda s: s.sendall("x"), TypeError),
    ("sendto", lambda s: s.sendto(b"x", ("127.0.0.1", 9)), OSError),
    ("sendto_text", lambda s: s.sendto("x", ("127.0.0.1", 9)), TypeError),
    ("sendto_no_address", lambda s: s.sendto(b"x"), TypeError),
    ("sendto_bad_address", lambda s: s.sendto(b"x", ("127.0.0.1",)), TypeError),
    ("sendto_four", lambda s: s.sendto(b"x", 0, ("127.0.0.1", 9), 4), TypeError),
    ("sendmsg", lambda s: s.sendmsg([b"x"]), OSError),
    ("sendmsg_text", lambda s: s.sendmsg("x"), TypeError),
    ("sendmsg_list_of_text", lambda s: s.sendmsg(["x"]), TypeError),
    ("sendmsg_not_iterable", lambda s: s.sendmsg(3), TypeError),
    ("sendmsg_bad_ancillary", lambda s: s.sendmsg([b"x"], [object()]), TypeError),
    ("sendmsg_short_ancillary", lambda s: s.sendmsg([b"x"], [(1, 2)]), TypeError),
    ("sendmsg_unknown_ancillary", lambda s: s.sendmsg([b"x"], [(socket.SOL_SOCKET, 99, b"data")]), OSError),
    ("sendmsg_ancillary_of_others", lambda s: s.sendmsg([b"x"], [(99, 99, b"data")]), OSError),
    ("sendmsg_bad_flags", lambda s: s.sendmsg([b"x"], [], "flags"), TypeError),
    ("shutdown_unconnected_rd", lambda s: s.shutdown(socket.SHUT_RD), OSError),
    ("shutdown_unconnected_wr", lambda s: s.shutdown(socket.SHUT_WR), OSError),
    ("shutdown_unconnected_both", lambda s: s.shutdown(socket.SHUT_RDWR), OSError),
    ("shutdown_bad_how", lambda s: s.shutdown(3), OSError),
    ("shutdown_text", lambda s: s.shutdown("all"), TypeError),
    ("accept_not_listening", lambda s: s.accept(), OSError),
    ("listen_text", lambda s: s.listen("many"), TypeError),
    ("listen_huge", lambda s: s.listen(1 << 40), OverflowError),
    ("listen_negative", lambda s: s.listen(-1), None),
    ("settimeout_negative", lambda s: s.settimeout(-0.1), ValueError),
    ("settimeout_text", lambda s: s.settimeout("1"), TypeError),
    ("settimeout_nan", lambda s: s.settimeout(float("nan")), ValueError),
    ("settimeout_huge", lambda s: s.settimeout(1e400), OverflowError),
    ("connect_two_arguments", lambda s: s.connect("127.0.0.1", 80), TypeError),
    ("bind_no_argument", lambda s: s.bind(), TypeError),
    ("sendfile_text_mode", lambda s: s.sendfile(open(__file__, encoding="utf-8")), ValueError),
    ("makefile_bad_mode", lambda s: s.makefile("x"), ValueError),
    ("makefile_unbuffered_text", lambda s: s.makefile("r", buffering=0), ValueError),
    ("setsockopt_text", lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, "1"), TypeError),
    ("setsockopt_two_arguments", lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), TypeError),
    ("getsockopt_one_argument", lambda s: s.getsockopt(socket.SOL_SOCKET), TypeError),
    ("getsockopt_buffer_too_large", lambda s: s.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1025), OSError),
    ("getsockopt_negative_buffer", lambda s: s.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, -1), OSError),
]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize(
    ("operation", "error"), [case[1:] for case in OPERATIONS], ids=[case[0] for case in OPERATIONS]
)
def test_on_a_fresh_socket(net: Net, operation: Operation, error: type[BaseException] | None) -> None:
    compare(net, operation, error)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize(
    "operation",
    [case[1] for case in OPERATIONS if case[2] in (OSError, None)],
    ids=[case[0] for case in OPERATIONS if case[2] in (OSError, None)],
)
def test_on_a_closed_socket(net: Net, operation: Operation) -> None:
    """Only calls whose arguments are right: which of two mistakes is reported first is not compared."""
    plain, sock = socket.socket(), net.fresh()
    plain.close()
    sock.close()
    assert outcome(lambda: operation(sock)) == outcome(lambda: operation(plain)) != ("returned", None)


@pytest.mark.parametrize(
    "operation",
    [case[1] for case in OPERATIONS if case[2] is not OSError or case[0].startswith(("getsockopt", "sendmsg"))],
    ids=[case[0] for case in OPERATIONS if case[2] is not OSError or case[0].startswith(("getsockopt", "sendmsg"))],
)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_on_a_connected_socket(net: Net, operation: Operation) -> None:
    """Only the calls whose arguments are wrong in themselves: the others are the rest of this suite."""
    reference = Net("tcp")
    try:
        expected = in_essence(outcome(lambda: operation(reference.pair()[0])))
    finally:
        reference.close()
    seen = in_essence(outcome(lambda: operation(net.pair()[0])))
    if expected[0] == "returned":
        assert seen[0] == "returned"
    else:
        assert seen == expected


def test_unknown_families_and_types_are_refused_as_by_the_stdlib(net: Net) -> None:
    wrong: tuple[tuple[int, ...], ...] = (
        (99, socket.SOCK_STREAM),
        (socket.AF_INET, 99),
        (socket.AF_INET, socket.SOCK_STREAM, 99),
    )
    for arguments in wrong:
        expected = outcome(partial(socket.socket, *arguments))
        assert expected[0] == "OSError"
        assert outcome(partial(net.module.socket, *arguments)) == expected


@pytest.mark.parametrize("arguments", [(2.0,), (2, 1.0), (2, 1, 0.0), ("2",), (None,)])
def test_numbers_of_a_family_and_type_are_integers(net: Net, arguments: tuple[Any, ...]) -> None:
    expected = outcome(lambda: socket.socket(*arguments))
    assert expected[0] == "TypeError"
    assert outcome(lambda: net.module.socket(*arguments)) == expected

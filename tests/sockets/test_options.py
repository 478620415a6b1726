"""getsockopt and setsockopt: defaults, values that come back, forms, errors, what accept() inherits."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Any

import pytest

from utpsocket import options
from utpsocket.engine.user_fds.socket_state import Settings

from ..requirements import requires_ipv6
from .network import Net, eventually, outcome, raises_errno, receive_all

SOL, TCP, IP = socket.SOL_SOCKET, socket.IPPROTO_TCP, socket.IPPROTO_IP


def named(*names: str) -> list[Any]:
    """(level, option) of those names that this interpreter has."""
    levels = {"SO": SOL, "TCP": TCP, "IP": IP, "IPV6": socket.IPPROTO_IPV6}
    return [
        pytest.param((levels[name.partition("_")[0]], getattr(socket, name)), id=name)
        for name in names
        if hasattr(socket, name)
    ]


FIXED = named("SO_TYPE", "SO_DOMAIN", "SO_PROTOCOL", "SO_ERROR", "SO_ACCEPTCONN")
SWITCHES = named(
    "SO_KEEPALIVE", "SO_REUSEADDR", "SO_REUSEPORT", "SO_BROADCAST", "SO_DONTROUTE", "TCP_NODELAY", "TCP_CORK"
)
NUMBERS = [
    pytest.param(*param.values, value, id=str(param.id))
    for value, params in {
        30: named("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_LINGER2"),
        3: named("TCP_SYNCNT", "SO_PRIORITY"),
        1500: named("TCP_USER_TIMEOUT", "TCP_NOTSENT_LOWAT"),
        44: named("IP_TTL"),
        0x10: named("IP_TOS"),
    }.items()
    for param in params
]


def default_of(option: tuple[int, int], family: int = socket.AF_INET) -> object:
    with socket.socket(family, socket.SOCK_STREAM) as plain:
        return outcome(lambda: plain.getsockopt(*option))


# -- values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    FIXED
    + SWITCHES
    + [pytest.param(each.values[0], id=each.id) for each in NUMBERS]
    + named("TCP_MAXSEG", "TCP_DEFER_ACCEPT", "SO_RCVLOWAT"),
)
def test_defaults_are_those_of_tcp(net: Net, option: tuple[int, int]) -> None:
    assert outcome(lambda: net.fresh().getsockopt(*option)) == default_of(option)


@pytest.mark.parametrize("option", FIXED)
def test_fixed_options_of_connections_and_listeners(net: Net, option: tuple[int, int]) -> None:
    reference = Net("tcp")
    try:
        expected = [sock.getsockopt(*option) for sock in (*reference.pair(), reference.listener())]
    finally:
        reference.close()
    assert [sock.getsockopt(*option) for sock in (*net.pair(), net.listener())] == expected


@pytest.mark.parametrize("option", FIXED)
def test_fixed_options_cannot_be_set(net: Net, option: tuple[int, int]) -> None:
    with raises_errno(errno.ENOPROTOOPT):
        net.fresh().setsockopt(*option, 1)


@pytest.mark.parametrize("state", ["fresh", "connected"])
@pytest.mark.parametrize("option", SWITCHES)
def test_switches(net: Net, option: tuple[int, int], state: str) -> None:
    sock = net.fresh() if state == "fresh" else net.pair()[0]
    for value, expected in ((1, 1), (0, 0), (7, 1), (True, 1), (False, 0)):
        sock.setsockopt(*option, value)
        assert bool(sock.getsockopt(*option)) == bool(expected)


@pytest.mark.parametrize("state", ["fresh", "connected"])
@pytest.mark.parametrize(("option", "value"), NUMBERS)
def test_numbers(net: Net, option: tuple[int, int], value: int, state: str) -> None:
    sock = net.fresh() if state == "fresh" else net.pair()[0]
    sock.setsockopt(*option, value)
    assert sock.getsockopt(*option) == value


@pytest.mark.parametrize(
    ("option", "value"),
    [
        pytest.param((TCP, 4), 0, id="keepidle_zero"),
        pytest.param((TCP, 4), 1 << 20, id="keepidle_huge"),
        pytest.param((TCP, 5), 0, id="keepintvl_zero"),
        pytest.param((TCP, 6), 0, id="keepcnt_zero"),
        pytest.param((TCP, 6), 200, id="keepcnt_huge"),
        pytest.param((TCP, 18), -1, id="user_timeout_negative"),
        pytest.param((TCP, 2), 1 << 20, id="maxseg_huge"),
        pytest.param((IP, 2), 256, id="ttl_huge"),
        pytest.param((IP, 2), 0, id="ttl_zero"),
        pytest.param((SOL, 9999), 1, id="unknown_socket_option"),
        pytest.param((TCP, 9999), 1, id="unknown_tcp_option"),
        pytest.param((IP, 9999), 1, id="unknown_ip_option"),
        pytest.param((12345, 1), 1, id="unknown_level"),
        pytest.param((-1, 1), 1, id="negative_level"),
    ],
)
def test_values_that_tcp_refuses(net: Net, option: tuple[int, int], value: int) -> None:
    sock = net.fresh()
    with socket.socket() as plain:
        refused = outcome(lambda: plain.setsockopt(*option, value))
        unreadable = outcome(lambda: plain.getsockopt(*option))
    assert refused[0] == "OSError"
    assert outcome(lambda: sock.setsockopt(*option, value)) == refused
    assert outcome(lambda: sock.getsockopt(*option)) == unreadable


def test_unknown_tcp_option(net: Net) -> None:
    for sock in (net.fresh(), net.pair()[0]):
        with raises_errno(errno.ENOPROTOOPT):
            sock.setsockopt(TCP, 9999, 1)
        with raises_errno(errno.ENOPROTOOPT):
            sock.getsockopt(TCP, 9999)


# -- buffers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["fresh", "connected", "accepted"])
@pytest.mark.parametrize("option", named("SO_RCVBUF", "SO_SNDBUF"))
def test_buffer_sizes_are_doubled_as_linux_does(net: Net, option: tuple[int, int], state: str) -> None:
    sock = net.fresh() if state == "fresh" else net.pair()[state == "accepted"]
    for value in (16_384, 65_536):
        sock.setsockopt(*option, value)
        assert sock.getsockopt(*option) == 2 * value


@pytest.mark.parametrize("option", named("SO_RCVBUF", "SO_SNDBUF"))
def test_tiny_buffers_are_rounded_up_and_still_work(net: Net, option: tuple[int, int]) -> None:
    client, server = net.pair()
    for sock in (client, server):
        sock.setsockopt(*option, 1)
        assert sock.getsockopt(*option) > 1000
    payload = bytes(range(256)) * 60
    reader = net.spawn(receive_all, server)
    client.sendall(payload)
    client.close()
    assert reader.result() == payload


def test_small_receive_buffer_holds_the_sender_back(net: Net) -> None:
    listener = net.fresh()
    listener.setsockopt(SOL, socket.SO_RCVBUF, 8192)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    client = net.fresh()
    client.setsockopt(SOL, socket.SO_SNDBUF, 8192)
    client.connect(listener.getsockname())
    server = net.accept(listener)
    client.settimeout(0.1)
    sent = 0
    with pytest.raises(TimeoutError):
        while sent < 8 << 20:
            sent += client.send(bytes(4096))
    assert sent < 1 << 20
    client.close()
    assert len(receive_all(server)) == sent


def test_a_smaller_send_buffer_holds_for_the_next_send(net: Net) -> None:
    """Of a connection that is just being made: several times, since the engine may be busy with it."""
    for _ in range(10):
        listener = net.fresh()
        listener.setsockopt(SOL, socket.SO_RCVBUF, 8192)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client = net.fresh()
        client.connect(listener.getsockname())
        client.setblocking(False)
        client.setsockopt(SOL, socket.SO_SNDBUF, 8192)
        sent = 0
        with pytest.raises(BlockingIOError):
            while sent < 8 << 20:
                sent += client.send(bytes(4096))
        assert sent < 1 << 17
        client.close()
        listener.close()


# -- forms ----------------------------------------------------------------------------------------------------


def test_bytes_form(net: Net) -> None:
    for sock in (net.fresh(), net.pair()[0]):
        sock.setsockopt(TCP, socket.TCP_NODELAY, struct.pack("i", 1))
        assert sock.getsockopt(TCP, socket.TCP_NODELAY, 4) == struct.pack("i", 1)
        sock.setsockopt(SOL, socket.SO_KEEPALIVE, bytearray(struct.pack("i", 1)))
        assert sock.getsockopt(SOL, socket.SO_KEEPALIVE, 4) == struct.pack("i", 1)
        assert sock.getsockopt(SOL, socket.SO_TYPE, 4) == struct.pack("i", socket.SOCK_STREAM)
        assert sock.getsockopt(SOL, socket.SO_ERROR, 4) == bytes(4)


@pytest.mark.parametrize(
    "option", named("SO_KEEPALIVE", "SO_TYPE", "SO_ERROR", "TCP_NODELAY", "SO_REUSEPORT", "IP_TTL")
)
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_length_of_the_answer(net: Net, option: tuple[int, int], size: int) -> None:
    with socket.socket() as plain:
        expected = outcome(lambda: plain.getsockopt(*option, size))
    assert outcome(lambda: net.fresh().getsockopt(*option, size)) == expected


@pytest.mark.parametrize(
    "option", named("SO_KEEPALIVE", "SO_LINGER", "TCP_NODELAY", "SO_REUSEPORT", "TCP_USER_TIMEOUT")
)
@pytest.mark.parametrize("value", [b"", b"\1", b"\1\0"], ids=len)
def test_value_too_short(net: Net, option: tuple[int, int], value: bytes) -> None:
    with socket.socket() as plain:
        expected = outcome(lambda: plain.setsockopt(*option, value))
    assert expected[0] == "OSError"
    assert outcome(lambda: net.fresh().setsockopt(*option, value)) == expected


def test_none_with_a_length(net: Net) -> None:
    with socket.socket() as plain:
        expected = outcome(lambda: plain.setsockopt(SOL, socket.SO_BINDTODEVICE, None, 0))
    assert outcome(lambda: net.fresh().setsockopt(SOL, socket.SO_BINDTODEVICE, None, 0)) == expected


def test_linger(net: Net) -> None:
    for sock in (net.fresh(), net.pair()[0]):
        assert sock.getsockopt(SOL, socket.SO_LINGER, 8) == struct.pack("ii", 0, 0)
        sock.setsockopt(SOL, socket.SO_LINGER, struct.pack("ii", 1, 7))
        assert sock.getsockopt(SOL, socket.SO_LINGER, 8) == struct.pack("ii", 1, 7)
        sock.setsockopt(SOL, socket.SO_LINGER, struct.pack("ii", 0, 7))
        assert sock.getsockopt(SOL, socket.SO_LINGER, 8)[:4] == bytes(4)


@pytest.mark.parametrize("option", named("SO_RCVTIMEO", "SO_SNDTIMEO") or [(SOL, 20), (SOL, 21)])
def test_kernel_timeouts(net: Net, option: tuple[int, int]) -> None:
    sock = net.fresh()
    assert sock.getsockopt(*option, 16) == bytes(16)
    sock.setsockopt(*option, struct.pack("ll", 3, 0))
    assert sock.getsockopt(*option, 16) == struct.pack("ll", 3, 0)


# -- options with a meaning of their own ----------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [-1, -(1 << 31), (1 << 31) - 1])
def test_a_linger_time_without_an_end(net: Net, seconds: int) -> None:
    """It reads back as what an int has room for, as over TCP, and close() takes it."""
    client, server = net.pair()
    with socket.socket() as plain:
        for sock in (plain, client):
            sock.setsockopt(SOL, socket.SO_LINGER, struct.pack("ii", 1, seconds))
        assert client.getsockopt(SOL, socket.SO_LINGER, 8) == plain.getsockopt(SOL, socket.SO_LINGER, 8)
    client.sendall(b"x")
    client.close()
    assert receive_all(server) == b"x"


SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_CNX_ADVICE = 32, 33, 53  # asm-generic/socket.h


@pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_NET_ADMIN")
@pytest.mark.parametrize(("forced", "option"), [(SO_SNDBUFFORCE, socket.SO_SNDBUF), (SO_RCVBUFFORCE, socket.SO_RCVBUF)])
@pytest.mark.parametrize("state", ["fresh", "connected"])
def test_forced_buffer_sizes(net: Net, forced: int, option: int, state: str) -> None:
    sock = net.fresh() if state == "fresh" else net.pair()[0]
    for size in (20_000, 1 << 28):
        sock.setsockopt(SOL, forced, size)
        assert sock.getsockopt(SOL, option) == 2 * size
    with raises_errno(errno.ENOPROTOOPT):
        sock.getsockopt(SOL, forced)


def test_an_option_that_can_only_be_set(net: Net) -> None:
    sock = net.pair()[0]
    assert outcome(lambda: sock.setsockopt(SOL, SO_CNX_ADVICE, 1)) == ("returned", None)
    with raises_errno(errno.ENOPROTOOPT):
        sock.getsockopt(SOL, SO_CNX_ADVICE)


def test_an_option_without_a_value_reads_as_zero(net: Net) -> None:
    sock = net.fresh()
    sock.setsockopt(IP, socket.IP_OPTIONS, b"")
    assert sock.getsockopt(IP, socket.IP_OPTIONS) == 0
    assert sock.getsockopt(IP, socket.IP_OPTIONS, 40) == b""


@pytest.mark.parametrize("option", [23, 30, 34])  # TCP_FASTOPEN, TCP_FASTOPEN_CONNECT, TCP_FASTOPEN_NO_COOKIE
def test_tcp_fast_open_comes_too_late(net: Net, option: int) -> None:
    sock, listener = net.pair()[0], net.listener()
    fresh = net.fresh()
    assert outcome(lambda: fresh.setsockopt(TCP, option, 1)) == ("returned", None)
    with raises_errno(errno.EINVAL):
        sock.setsockopt(TCP, option, 1)
    if option == 30:
        with raises_errno(errno.EINVAL):
            listener.setsockopt(TCP, option, 1)
    else:
        listener.setsockopt(TCP, option, 1)


@pytest.mark.parametrize(
    ("family", "option"),
    [
        pytest.param(socket.AF_INET, (IP, 14), id="IP_MTU"),
        pytest.param(socket.AF_INET6, (socket.IPPROTO_IPV6, 24), id="IPV6_MTU", marks=requires_ipv6),
    ],
)
def test_the_mtu_of_a_connections_route(net: Net, family: int, option: tuple[int, int]) -> None:
    with raises_errno(errno.ENOTCONN):
        net.fresh(family).getsockopt(*option)
    client, server = net.pair(family)
    with socket.socket(family, socket.SOCK_DGRAM) as plain:
        plain.connect(client.getpeername())
        mtu = plain.getsockopt(*option)
    assert client.getsockopt(*option) == server.getsockopt(*option) == mtu


def test_so_acceptconn(net: Net) -> None:
    sock = net.fresh()
    assert sock.getsockopt(SOL, socket.SO_ACCEPTCONN) == 0
    sock.bind(("127.0.0.1", 0))
    assert sock.getsockopt(SOL, socket.SO_ACCEPTCONN) == 0
    sock.listen()
    assert sock.getsockopt(SOL, socket.SO_ACCEPTCONN) == 1


def test_tcp_info(net: Net) -> None:
    client, _ = net.pair()
    info = client.getsockopt(TCP, socket.TCP_INFO, 104)
    assert len(info) == 104
    assert info[0] == 1  # TCP_ESTABLISHED
    assert net.listener().getsockopt(TCP, socket.TCP_INFO, 104)[0] == 10  # TCP_LISTEN
    assert net.fresh().getsockopt(TCP, socket.TCP_INFO, 104)[0] == 7  # TCP_CLOSE


def test_tcp_maxseg_of_a_connection(net: Net) -> None:
    for sock in net.pair():
        assert 500 <= sock.getsockopt(TCP, socket.TCP_MAXSEG) <= 65_535


def test_tcp_congestion(net: Net) -> None:
    for sock in (net.fresh(), net.pair()[0]):
        padded = sock.getsockopt(TCP, socket.TCP_CONGESTION, 100)
        assert len(padded) == 16 and padded[-1] == 0  # TCP_CA_NAME_MAX
        name = padded.rstrip(b"\0")
        assert name and sock.getsockopt(TCP, socket.TCP_CONGESTION, 3) == name[:3]
        sock.setsockopt(TCP, socket.TCP_CONGESTION, name)
        assert sock.getsockopt(TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == name
        with raises_errno(errno.ENOENT):
            sock.setsockopt(TCP, socket.TCP_CONGESTION, b"no such thing")
        with raises_errno(errno.EINVAL):
            sock.setsockopt(TCP, socket.TCP_CONGESTION, b"")
        with raises_errno(errno.ENOENT):
            sock.setsockopt(TCP, socket.TCP_CONGESTION, 5)
        with pytest.raises(TypeError):
            sock.setsockopt(TCP, socket.TCP_CONGESTION, "reno")
        assert sock.getsockopt(TCP, socket.TCP_CONGESTION, 16) == padded


def test_tcp_congestion_takes_effect_at_any_time(net: Net) -> None:
    """Reno is in every kernel, and any process may choose it."""
    listener = net.listener()
    listener.setsockopt(TCP, socket.TCP_CONGESTION, b"reno\0 and what follows")
    early = net.fresh()
    early.setsockopt(TCP, socket.TCP_CONGESTION, b"reno")
    early.connect(listener.getsockname())
    accepted = listener.accept()[0]
    late, _ = net.pair()
    late.setsockopt(TCP, socket.TCP_CONGESTION, b"reno")
    with accepted:
        for sock in (listener, early, accepted, late):
            assert sock.getsockopt(TCP, socket.TCP_CONGESTION, 16) == b"reno".ljust(16, b"\0")
        early.sendall(b"x")
        assert accepted.recv(1) == b"x"
    late.sendall(b"x" * 100_000)


@pytest.mark.parametrize(
    "option", named("TCP_QUICKACK", "TCP_WINDOW_CLAMP", "TCP_DEFER_ACCEPT", "TCP_FASTOPEN", "IP_RECVTOS")
)
def test_other_options_are_taken(net: Net, option: tuple[int, int]) -> None:
    sock = net.fresh()
    with socket.socket() as plain:
        expected = outcome(lambda: plain.setsockopt(*option, 5))
    assert outcome(lambda: sock.setsockopt(*option, 5)) == expected == ("returned", None)


def test_tcp_nodelay_and_cork_do_not_lose_data(net: Net) -> None:
    client, server = net.pair()
    client.setsockopt(TCP, socket.TCP_NODELAY, 1)
    client.sendall(b"a")
    client.setsockopt(TCP, socket.TCP_CORK, 1)
    client.sendall(b"b")
    client.setsockopt(TCP, socket.TCP_CORK, 0)
    assert eventually(lambda: server.recv(10, socket.MSG_PEEK), b"ab") == b"ab"


def test_keepalive_of_a_peer_that_answers_disturbs_nothing(net: Net) -> None:
    client, server = net.pair()
    client.setsockopt(SOL, socket.SO_KEEPALIVE, 1)
    client.setsockopt(TCP, socket.TCP_KEEPIDLE, 1)
    client.setsockopt(TCP, socket.TCP_KEEPINTVL, 1)
    client.settimeout(1.3)
    with pytest.raises(TimeoutError):
        client.recv(1)
    server.sendall(b"alive")
    assert client.recv(10) == b"alive"


@requires_ipv6
def test_ipv6_options(net: Net) -> None:
    sock = net.fresh(socket.AF_INET6)
    v6only = (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    assert ("returned", sock.getsockopt(*v6only)) == default_of(v6only, socket.AF_INET6)
    for value in (1, 0):
        sock.setsockopt(*v6only, value)
        assert sock.getsockopt(*v6only) == value
    hops = (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)
    sock.setsockopt(*hops, 33)
    assert sock.getsockopt(*hops) == 33
    sock.bind(("::1", 0))
    with raises_errno(errno.EINVAL):
        sock.setsockopt(*v6only, 1)


def test_ipv6_options_on_ipv4(net: Net) -> None:
    with socket.socket() as plain:
        expected = outcome(lambda: plain.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1))
    assert outcome(lambda: net.fresh().setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)) == expected


def test_ip_options_stay_when_connected(net: Net) -> None:
    client, server = net.pair()
    client.setsockopt(IP, socket.IP_TTL, 9)
    client.setsockopt(IP, socket.IP_TOS, 0x20)
    client.sendall(b"x")
    assert server.recv(1) == b"x"
    assert (client.getsockopt(IP, socket.IP_TTL), client.getsockopt(IP, socket.IP_TOS)) == (9, 0x20)


def test_bind_to_device(net: Net) -> None:
    sock = net.fresh()
    with raises_errno(errno.ENODEV):
        sock.setsockopt(SOL, socket.SO_BINDTODEVICE, b"nosuchdevice\0")


# -- inheritance ----------------------------------------------------------------------------------------------


INHERITED = [
    *[
        pytest.param(each.values[0], 1, id=each.id)
        for each in named("SO_KEEPALIVE", "TCP_NODELAY", "SO_REUSEADDR", "SO_REUSEPORT")
    ],
    *[
        pytest.param(each.values[0], 40, id=each.id)
        for each in named("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "IP_TTL")
    ],
    *[pytest.param(each.values[0], 900, id=each.id) for each in named("TCP_USER_TIMEOUT")],
    *[pytest.param(each.values[0], 30_000, id=each.id) for each in named("SO_RCVBUF", "SO_SNDBUF")],
]


@pytest.mark.parametrize(("option", "value"), INHERITED)
def test_accepted_sockets_inherit(net: Net, option: tuple[int, int], value: int) -> None:
    listener = net.fresh()
    listener.setsockopt(*option, value)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    net.fresh().connect(listener.getsockname())
    accepted = net.accept(listener)
    assert accepted.getsockopt(*option) == listener.getsockopt(*option)
    assert accepted.getsockopt(*option) in (value, 2 * value)


@pytest.mark.parametrize("option", named("SO_RCVTIMEO", "SO_SNDTIMEO") or [(SOL, 20), (SOL, 21)])
def test_accepted_sockets_inherit_kernel_timeouts(net: Net, option: tuple[int, int]) -> None:
    listener = net.listener()
    listener.setsockopt(*option, struct.pack("ll", 3, 0))
    client = net.fresh()
    client.connect(listener.getsockname())
    assert net.accept(listener).getsockopt(*option, 16) == struct.pack("ll", 3, 0)
    assert client.getsockopt(*option, 16) == bytes(16)


def test_accepted_sockets_inherit_low_water_mark(net: Net) -> None:
    listener = net.listener()
    listener.setsockopt(SOL, socket.SO_RCVLOWAT, 3)
    client = net.fresh()
    client.connect(listener.getsockname())
    assert net.accept(listener).getsockopt(SOL, socket.SO_RCVLOWAT) == 3


def test_accepted_sockets_inherit_linger(net: Net) -> None:
    listener = net.listener()
    listener.setsockopt(SOL, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client = net.fresh()
    client.connect(listener.getsockname())
    accepted = net.accept(listener)
    assert accepted.getsockopt(SOL, socket.SO_LINGER, 8) == struct.pack("ii", 1, 0)
    accepted.close()
    with raises_errno(errno.ECONNRESET):
        client.recv(1)


def test_listener_options_set_later_reach_later_connections(net: Net) -> None:
    listener = net.listener()
    listener.setsockopt(TCP, socket.TCP_NODELAY, 1)
    net.fresh().connect(listener.getsockname())
    assert net.accept(listener).getsockopt(TCP, socket.TCP_NODELAY) == 1


def test_options_set_before_connect_stay(net: Net) -> None:
    client = net.fresh()
    client.setsockopt(SOL, socket.SO_KEEPALIVE, 1)
    client.setsockopt(TCP, socket.TCP_NODELAY, 1)
    client.setsockopt(SOL, socket.SO_SNDBUF, 20_000)
    client.setsockopt(SOL, socket.SO_LINGER, struct.pack("ii", 1, 3))
    client.connect(net.listener().getsockname())
    assert client.getsockopt(SOL, socket.SO_KEEPALIVE) == 1
    assert client.getsockopt(TCP, socket.TCP_NODELAY) == 1
    assert client.getsockopt(SOL, socket.SO_SNDBUF) == 40_000
    assert client.getsockopt(SOL, socket.SO_LINGER, 8) == struct.pack("ii", 1, 3)


def test_options_are_seen_by_duplicates(net: Net) -> None:
    client, _ = net.pair()
    client.setsockopt(TCP, socket.TCP_NODELAY, 1)
    copy = net.own(client.dup())
    assert copy.getsockopt(TCP, socket.TCP_NODELAY) == 1
    copy.setsockopt(TCP, socket.TCP_NODELAY, 0)
    assert client.getsockopt(TCP, socket.TCP_NODELAY) == 0


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="of Linux")
def test_user_timeout_counts_a_reader_that_does_not_read(net: Net) -> None:
    """The peer lives and answers every probe of its closed window."""
    client, _server = net.pair()
    client.setsockopt(TCP, socket.TCP_USER_TIMEOUT, 1_000)
    client.settimeout(60)
    with raises_errno(errno.ETIMEDOUT):
        while True:
            client.send(bytes(1 << 16))


# -- which have an effect -------------------------------------------------------------------------------------


NO_OPTIONS = {"IP_DEFAULT_MULTICAST_LOOP", "IP_DEFAULT_MULTICAST_TTL", "IP_MAX_MEMBERSHIPS", "IPV6_RTHDR_TYPE_0"}
LEVELS = {"SO": SOL, "TCP": TCP, "IP": IP, "IPV6": socket.IPPROTO_IPV6}


def test_every_option_is_in_the_table() -> None:
    listed = [name for names in options.EFFECTS.values() for name in names.split()]
    assert len(listed) == len(set(listed))
    known = [name for name in dir(socket) if name.partition("_")[0] in LEVELS and name.isupper()]
    assert len(known) > 40
    ours = [name for name in dir(options) if name.startswith("UTP_")]
    assert {*known, *ours} - NO_OPTIONS <= set(listed)


@pytest.mark.parametrize("effect", options.Effect)
@pytest.mark.parametrize("state", ["fresh", "connected", "accepted"])
def test_every_option_is_set_and_read_as_tcps(net: Net, effect: options.Effect, state: str) -> None:
    """Whatever it does: the same errors, and what was set is what is read."""
    sock = net.fresh() if state == "fresh" else net.pair()[state == "accepted"]
    for name in options.EFFECTS[effect].split():
        level, number = LEVELS.get(name.partition("_")[0]), getattr(socket, name, None)
        if level is None or number is None or name in DIFFERENT.split():
            continue
        option = level, int(number)
        with socket.socket() as plain:
            for value in (1, 5):
                said = [outcome(lambda: one.setsockopt(*option, value)) for one in (plain, sock)]  # noqa: B023
                read = [outcome(lambda: one.getsockopt(*option)) for one in (plain, sock)]  # noqa: B023
                assert said[0] == said[1], name
                assert said[0] != ("returned", None) or read[0] == read[1], name


# Of the address family (the user's fd is AF_UNIX to the kernel), of a state, or needs what a test has not.
DIFFERENT = """SO_ERROR SO_RCVTIMEO SO_SNDTIMEO SO_PEEK_OFF SO_PEERCRED SO_PEERSEC SO_PASSCRED SO_PASSSEC SO_ACCEPTCONN
    TCP_INFO TCP_FASTOPEN TCP_CONGESTION TCP_ULP TCP_DEFER_ACCEPT SO_BINDTODEVICE SO_INCOMING_CPU TCP_QUICKACK
    TCP_MAXSEG TCP_WINDOW_CLAMP IP_BIND_ADDRESS_NO_PORT SO_RCVLOWAT IP_TRANSPARENT SO_REUSEPORT TCP_REPAIR
    TCP_REPAIR_OPTIONS TCP_REPAIR_QUEUE TCP_REPAIR_WINDOW TCP_QUEUE_SEQ TCP_FASTOPEN_CONNECT
    TCP_FASTOPEN_NO_COOKIE"""


def test_a_connect_without_a_timeout_heeds_that_of_the_kernel(net: Net) -> None:
    """connect(2): SO_SNDTIMEO runs out as if the socket did not block, and the attempt goes on."""
    address = net.silent_address()
    client = net.fresh()
    client.setsockopt(SOL, socket.SO_SNDTIMEO, struct.pack("ll", 0, 100_000))
    with raises_errno(errno.EINPROGRESS):
        client.connect(address)
    with raises_errno(errno.EALREADY):
        client.connect(address)
    assert client.connect_ex(address) == errno.EALREADY
    patient = net.fresh(timeout=0.1)  # which is Python's own, and goes before
    patient.setsockopt(SOL, socket.SO_SNDTIMEO, struct.pack("ll", 30, 0))
    with pytest.raises(TimeoutError):
        patient.connect(address)


def test_so_many_syns_are_repeated(net: Net) -> None:
    client = net.fresh()
    client.setsockopt(TCP, socket.TCP_SYNCNT, 1)
    assert net.spawn(client.connect_ex, net.silent_address()).result() == errno.ETIMEDOUT


def test_a_connection_is_born_with_every_setting_of_its_listener() -> None:
    settings = Settings()
    for number, name in enumerate(Settings.__slots__):
        setattr(settings, name, number)
    copy = settings.copy()
    assert [getattr(copy, name) for name in Settings.__slots__] == list(range(len(Settings.__slots__)))

"""A UDP socket at the address of a listener: over TCP any, over uTP the other half of the port."""

from __future__ import annotations

import asyncio
import errno
import select
import socket
import struct
from typing import Any

import pytest

from ..requirements import IPV6
from .network import PATIENCE_S, Net, loopback, own_loopback, quiet_port, run

BOTH_ORDERS = pytest.mark.parametrize("is_udp_first", [False, True], ids=["udp_second", "udp_first"])
FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, IPV6], ids=["v4", "v6"])
IP_PKTINFO = 8
IPV6_RECVPKTINFO, IPV6_PKTINFO = 49, 50


def udp_socket(net: Net, family: int = socket.AF_INET) -> Any:
    """One that may have the address of a stream socket."""
    sock = net.own(net.module.socket(family, socket.SOCK_DGRAM))
    if net.name == "utp":
        sock.setsockopt(net.module.SOL_UTP, net.module.UTP_SHARE_PORT, 1)
    sock.settimeout(PATIENCE_S)
    return sock


def stranger(net: Net, family: int = socket.AF_INET) -> Any:
    """A UDP socket of some other program."""
    sock = net.own(socket.socket(family, socket.SOCK_DGRAM))
    sock.bind((loopback(family), 0))
    sock.settimeout(PATIENCE_S)
    return sock


def halves(net: Net, family: int = socket.AF_INET, *, host: str | None = None, is_udp_first: bool = False) -> Any:
    """-> (listener, UDP socket), at one address."""
    address = (host or loopback(family), quiet_port()) if family == socket.AF_INET6 or host else (own_loopback(), 0)
    listener, udp = net.fresh(family), udp_socket(net, family)
    first, second = (udp, listener) if is_udp_first else (listener, udp)
    first.bind(address)
    second.bind(first.getsockname())
    listener.listen()
    assert udp.getsockname() == listener.getsockname()
    return listener, udp


def check_stream(net: Net, listener: Any, address: Any = None) -> None:
    """Connections are accepted, and carry bytes."""
    client = net.fresh(listener.family, timeout=PATIENCE_S)
    client.connect(address or listener.getsockname())
    server = net.accept(listener)
    for sender, receiver in ((client, server), (server, client)):
        sender.sendall(b"by stream")
        assert receiver.recv(100) == b"by stream"
    client.close()
    server.close()


def check_datagrams(udp: Any, other: Any, address: Any = None) -> None:
    """Datagrams arrive in both directions, with the sender's address."""
    address = address or udp.getsockname()
    other.sendto(b"a question", address)
    data, came_from = udp.recvfrom(100)
    assert (data, came_from[:2]) == (b"a question", other.getsockname()[:2])
    udp.sendto(b"an answer", came_from)
    data, came_from = other.recvfrom(100)
    assert (data, came_from[:2]) == (b"an answer", address[:2])


@BOTH_ORDERS
@FAMILIES
def test_one_address_for_both(net: Net, family: int, is_udp_first: bool) -> None:
    listener, udp = halves(net, family, is_udp_first=is_udp_first)
    other = stranger(net, family)
    for _ in range(3):
        check_datagrams(udp, other)
        check_stream(net, listener)


@BOTH_ORDERS
def test_at_all_addresses(net: Net, is_udp_first: bool) -> None:
    listener, udp = halves(net, host="0.0.0.0", is_udp_first=is_udp_first)
    address = "127.0.0.1", udp.getsockname()[1]
    other = stranger(net)
    check_datagrams(udp, other, address)
    check_stream(net, listener, address)


@BOTH_ORDERS
def test_a_second_udp_socket_is_refused(net: Net, is_udp_first: bool) -> None:
    listener, udp = halves(net, is_udp_first=is_udp_first)
    second = udp_socket(net)
    with pytest.raises(OSError) as caught:
        second.bind(udp.getsockname())
    assert caught.value.errno == errno.EADDRINUSE
    assert second.getsockname() == ("0.0.0.0", 0)
    check_datagrams(udp, stranger(net))
    check_stream(net, listener)


@BOTH_ORDERS
def test_a_second_listener_is_refused(net: Net, is_udp_first: bool) -> None:
    listener, udp = halves(net, is_udp_first=is_udp_first)
    with pytest.raises(OSError) as caught:
        net.fresh().bind(udp.getsockname())
    assert caught.value.errno == errno.EADDRINUSE
    check_datagrams(udp, stranger(net))
    check_stream(net, listener)


@BOTH_ORDERS
def test_the_udp_socket_is_closed_and_another_one_bound(net: Net, is_udp_first: bool) -> None:
    listener, udp = halves(net, is_udp_first=is_udp_first)
    for _ in range(3):
        udp.close()
        check_stream(net, listener)
        udp = udp_socket(net)
        udp.bind(listener.getsockname())
        check_datagrams(udp, stranger(net))
    check_stream(net, listener)


@BOTH_ORDERS
def test_the_listener_is_closed_and_another_one_bound(net: Net, is_udp_first: bool) -> None:
    listener, udp = halves(net, is_udp_first=is_udp_first)
    for _ in range(3):
        listener.close()
        check_datagrams(udp, stranger(net))
        listener = net.fresh()
        listener.bind(udp.getsockname())
        listener.listen()
        check_stream(net, listener)
    check_datagrams(udp, stranger(net))


def test_a_connection_goes_on_as_the_udp_socket_comes_and_goes(net: Net) -> None:
    listener, udp = halves(net)
    client = net.fresh(timeout=PATIENCE_S)
    client.connect(listener.getsockname())
    server = net.accept(listener)
    listener.close()
    for _ in range(3):
        client.sendall(b"x" * 10_000)
        assert len(server.recv(10_000, socket.MSG_WAITALL)) == 10_000
        udp.close()
        server.sendall(b"y" * 10_000)
        assert len(client.recv(10_000, socket.MSG_WAITALL)) == 10_000
        udp = udp_socket(net)
        udp.bind(server.getsockname())
        check_datagrams(udp, stranger(net))


def test_every_call_that_receives(net: Net) -> None:
    _, udp = halves(net)
    other = stranger(net)
    room = bytearray(8)
    came_from = other.getsockname()

    def arrived(data: bytes = b"datagram") -> None:
        other.sendto(data, udp.getsockname())
        assert select.select([udp], [], [], PATIENCE_S)[0] == [udp]

    arrived()
    assert udp.recv(100, socket.MSG_PEEK) == b"datagram"
    assert udp.recv(100) == b"datagram"
    arrived()
    assert udp.recvfrom(3) == (b"dat", came_from)  # the rest is lost
    arrived()
    assert udp.recv_into(room) == 8 and room == b"datagram"
    arrived(b"DATAGRAM")
    assert udp.recvfrom_into(room, 4) == (4, came_from) and room == b"DATAgram"
    arrived()
    assert udp.recvmsg(100) == (b"datagram", [], 0, came_from)
    arrived()
    assert udp.recvmsg(4) == (b"data", [], socket.MSG_TRUNC, came_from)
    arrived()
    first, second = bytearray(5), bytearray(5)
    assert udp.recvmsg_into([first, second]) == (8, [], 0, came_from)
    assert (first, second) == (b"datag", b"ram\0\0")
    arrived(b"")
    assert udp.recvfrom(100) == (b"", came_from)
    udp.settimeout(None)
    with pytest.raises(BlockingIOError):
        udp.recv(100, socket.MSG_DONTWAIT)
    udp.settimeout(0)
    with pytest.raises(BlockingIOError):
        udp.recvfrom_into(room)


def test_every_call_that_sends(net: Net) -> None:
    _, udp = halves(net)
    other = stranger(net)
    assert udp.sendto(b"one", other.getsockname()) == 3
    assert udp.sendto(b"two", socket.MSG_DONTWAIT, other.getsockname()) == 3
    assert udp.sendmsg([b"thr", b"ee"], [], 0, other.getsockname()) == 5
    assert [other.recvfrom(100) for _ in range(3)] == [(each, udp.getsockname()) for each in (b"one", b"two", b"three")]
    with pytest.raises(OSError) as caught:
        udp.send(b"to whom?")
    assert caught.value.errno == errno.EDESTADDRREQ


def test_poll_and_epoll(net: Net) -> None:
    _, udp = halves(net)
    other = stranger(net)
    poller = select.poll()
    poller.register(udp, select.POLLIN | select.POLLOUT)
    with select.epoll() as epoll:
        epoll.register(udp, select.EPOLLIN)
        assert (poller.poll(0), epoll.poll(0)) == ([(udp.fileno(), select.POLLOUT)], [])
        other.sendto(b"x", udp.getsockname())
        assert epoll.poll(PATIENCE_S) == [(udp.fileno(), select.EPOLLIN)]
        assert poller.poll(0) == [(udp.fileno(), select.POLLIN | select.POLLOUT)]
        assert udp.recv(1) == b"x"
        assert epoll.poll(0) == []


def test_a_duplicate(net: Net) -> None:
    listener, udp = halves(net)
    copied = net.own(udp.dup())
    udp.close()
    check_datagrams(copied, stranger(net))
    check_stream(net, listener)


@FAMILIES
def test_the_local_address_at_all_addresses(net: Net, family: int) -> None:
    host = "::" if family == socket.AF_INET6 else "0.0.0.0"
    _, udp = halves(net, family, host=host)
    other = stranger(net, family)
    if family == socket.AF_INET6:
        level, option, kind = socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, IPV6_PKTINFO
        expected = socket.inet_pton(family, "::1")
    else:
        level, option, kind = socket.IPPROTO_IP, IP_PKTINFO, IP_PKTINFO
        expected = socket.inet_aton("127.0.0.1")
    udp.setsockopt(level, option, 1)
    other.sendto(b"where to?", (loopback(family), *udp.getsockname()[1:]))
    data, [(got_level, got_kind, info)], flags, came_from = udp.recvmsg(100, 100)
    assert (data, got_level, got_kind, flags) == (b"where to?", level, kind, 0)
    assert came_from[:2] == other.getsockname()[:2]
    assert expected in info
    source = struct.pack("=I4s4s", 0, expected, bytes(4)) if family == socket.AF_INET else expected + bytes(4)
    udp.sendmsg([b"there"], [(level, kind, source)], 0, came_from)
    assert other.recvfrom(100)[1][:2] == (loopback(family), udp.getsockname()[1])


def test_an_asyncio_endpoint(net: Net) -> None:
    listener, udp = halves(net)
    udp.setblocking(False)

    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.transport.sendto(data, addr)

    async def main() -> None:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Echo, sock=udp)
        other = stranger(net)
        other.sendto(b"echo", transport.get_extra_info("sockname"))
        answer = await asyncio.to_thread(other.recvfrom, 100)
        assert answer == (b"echo", listener.getsockname())
        transport.close()

    run(main())
    check_stream(net, listener)


def test_a_multicast_group_is_the_udp_sockets(net: Net) -> None:
    listener, udp = halves(net, host="0.0.0.0")
    group, own = "239.255.71.82", "127.0.0.1"
    udp.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(group) + socket.inet_aton(own))
    other = stranger(net)
    other.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(own))
    looks_like_utp = b"\x01\0\0\0" + bytes(30)
    messages = [b"to the group", looks_like_utp, b"to the group again"]
    for message in messages:
        other.sendto(message, (group, udp.getsockname()[1]))
    other.sendto(b"to it alone", (own, udp.getsockname()[1]))
    assert [udp.recv(100) for _ in range(4)] == [*messages, b"to it alone"]
    check_stream(net, listener, (own, udp.getsockname()[1]))


def test_the_queue_is_bounded(net: Net) -> None:
    listener, udp = halves(net)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the kernel's least
    other = stranger(net)
    for _ in range(200):
        other.sendto(b"x" * 100, udp.getsockname())
    udp.settimeout(0)
    count = 0
    with pytest.raises(BlockingIOError):
        while udp.recv(200):
            count += 1
    assert 0 < count < 200
    if net.name == "utp":
        assert udp.getsockopt(net.module.SOL_UTP, net.module.UTP_DROPS) == 200 - count
    check_stream(net, listener)

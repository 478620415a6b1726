"""System calls counted: a regression shows without a clock."""

from __future__ import annotations

import errno
import socket

import pytest

from utpsocket.engine.syscalls import PlainDatagrams
from utpsocket.engine.udp import Port
from utpsocket.protocol import Transmit

BUFFER = memoryview(bytearray(1 << 16))


def ports(*, offload: bool) -> tuple[Port, Port]:
    """A connected port and the one it sends to."""
    receiver = socket.socket(type=socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    sender = socket.socket(type=socket.SOCK_DGRAM)
    sender.connect(receiver.getsockname())
    raw = [socket.SocketType(fileno=sock.detach()) for sock in (sender, receiver)]
    return Port(raw[0], offload=offload), Port(raw[1], offload=offload)


def transmit(count: int, segment: int = 1_400, last: int = 1_400) -> Transmit:
    sizes = [segment] * (count - 1) + [last]
    return Transmit(
        None, b"".join(bytes([number]) * size for number, size in enumerate(sizes)), segment=segment, count=count
    )


@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize(("count", "last"), [(1, 1_400), (2, 1_400), (46, 1_400), (46, 21), (3, 700)])
def test_what_is_sent_arrives_in_runs(offload: bool, count: int, last: int) -> None:
    sender, receiver = ports(offload=offload)
    sent = transmit(count, last=last)
    sender.send(sent, [])
    received: list[bytes] = []
    while (run := receiver.receive(BUFFER)) is not None:
        received += [bytes(datagram) for datagram in run.datagrams()]
    assert received == sent.datagrams()
    assert sender.sent_calls == (1 if offload else count)
    if offload:
        assert receiver.received_runs == 1
    sender.close()
    receiver.close()


def test_64_kb_leave_in_one_call() -> None:
    sender, receiver = ports(offload=True)
    sender.send(transmit(46), [])
    assert (sender.sent_calls, sender.sent_datagrams) == (1, 46)
    sender.close()
    receiver.close()


def test_a_kernel_that_refuses_offload_is_asked_once() -> None:
    sender, receiver = ports(offload=True)

    class Refusing:
        """The port's socket, on a path that does not segment."""

        def __init__(self, sock: socket.SocketType) -> None:
            self.sock = sock
            self.refusals = 0

        def sendmsg(self, buffers: object, ancillary: object = (), *rest: object) -> int:
            if ancillary:
                self.refusals += 1
                raise OSError(errno.EIO, "no")
            return self.sock.sendmsg(buffers, ancillary, *rest)  # type: ignore[arg-type]

        def __getattr__(self, name: str) -> object:
            return getattr(self.sock, name)

    refusing = Refusing(sender.sock)
    sender._calls = PlainDatagrams(refusing, 0, sender.peer)
    for _ in range(3):
        sender.send(transmit(4), [])
    assert refusing.refusals == 1
    count = 0
    while (run := receiver.receive(BUFFER)) is not None:
        count += run.count
    assert count == 12
    sender.close()
    receiver.close()


def test_a_full_kernel_keeps_datagrams_for_later() -> None:
    sender, receiver = ports(offload=False)

    class Full:
        """The port's socket, its send buffer full."""

        def __init__(self, sock: socket.SocketType) -> None:
            self.sock = sock
            self.is_full = True

        def sendmsg(self, *arguments: object) -> int:
            if self.is_full:
                raise BlockingIOError(errno.EAGAIN, "full")
            return self.sock.sendmsg(*arguments)  # type: ignore[arg-type]

        def __getattr__(self, name: str) -> object:
            return getattr(self.sock, name)

    full = Full(sender.sock)
    sender._calls = PlainDatagrams(full, 0, sender.peer)
    sent = transmit(3)
    sender.send(sent, [])
    assert sender.is_blocked
    assert not sender.flush()
    full.is_full = False
    assert sender.flush()
    assert not sender.is_blocked
    received = []
    while (run := receiver.receive(BUFFER)) is not None:
        received += [bytes(datagram) for datagram in run.datagrams()]
    assert received == sent.datagrams()
    sender.close()
    receiver.close()


def test_nobody_there_is_an_icmp_error() -> None:
    sender, receiver = ports(offload=True)
    receiver.close()
    sender.send(transmit(1), [])
    sender.read_errors()
    assert [error.errno for error in sender.errors] == [errno.ECONNREFUSED]
    assert sender.errors[0].quoted[:20] == bytes(20)
    sender.close()

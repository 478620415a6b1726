"""System calls counted: a regression shows without a clock."""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import Any

import pytest

from tests.requirements import requires_pure
from utpsocket.engine.kernel import udp
from utpsocket.engine.kernel.arena import Arena
from utpsocket.engine.kernel.syscalls import PlainDatagrams
from utpsocket.engine.kernel.udp import Port
from utpsocket.protocol import Run, Transmit

ANYWHERE = ("192.0.2.1", 9)  # of a connected socket: not used


def ports(*, offload: bool) -> tuple[Port, Port]:
    """A connected port and the one it sends to."""
    receiver = socket.socket(type=socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    sender = socket.socket(type=socket.SOCK_DGRAM)
    sender.connect(receiver.getsockname())
    raw = [socket.SocketType(fileno=sock.detach()) for sock in (sender, receiver)]
    return Port(raw[0], offload=offload), Port(raw[1], offload=offload)


def drain(port: Port) -> list[Run]:
    """All runs that wait, received as the endpoint does."""
    arena = Arena()
    runs = []
    while True:
        if port.uses_recvmmsg:
            runs += port.receive_many(arena)
            if port.is_drained:
                return runs
        else:
            run = port.receive(arena.room())
            if run is None:
                return runs
            arena.take(len(run.data))
            runs.append(run)


def content(runs: list[Run]) -> list[bytes]:
    return [bytes(datagram) for run in runs for datagram in run.datagrams()]


def transmit(count: int, segment: int = 1_400, last: int = 1_400) -> Transmit:
    sizes = [segment] * (count - 1) + [last]
    return Transmit(
        ANYWHERE,
        b"".join(bytes([number]) * size for number, size in enumerate(sizes)),
        datagram_bytes=segment,
        count=count,
    )


@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize(("count", "last"), [(1, 1_400), (2, 1_400), (46, 1_400), (46, 21), (3, 700)])
def test_what_is_sent_arrives_in_runs(offload: bool, count: int, last: int) -> None:
    sender, receiver = ports(offload=offload)
    sent = transmit(count, last=last)
    sender.send(sent, [])
    runs = drain(receiver)
    assert content(runs) == sent.datagrams()
    assert len(runs) == receiver.received_runs == 1
    assert receiver.received_datagrams == count
    assert sender.sent_calls == (1 if offload or sender._calls.can_send_many else count)
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

    refusing: Any = Refusing(sender.sock)
    sender._calls = PlainDatagrams(refusing, 0, sender.peer)
    for _ in range(3):
        sender.send(transmit(4), [])
    assert refusing.refusals == 1
    assert sum(run.count for run in drain(receiver)) == 12
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

    full: Any = Full(sender.sock)
    sender._calls = PlainDatagrams(full, 0, sender.peer)
    sent = transmit(3)
    sender.send(sent, [])
    assert sender.is_blocked
    assert not sender.flush()
    full.is_full = False
    assert sender.flush()
    assert not sender.is_blocked
    assert content(drain(receiver)) == sent.datagrams()
    sender.close()
    receiver.close()


@pytest.fixture(params=["one by one", "many at once"])
def plain_or_many(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without calls for many datagrams."""
    if request.param == "one by one":
        monkeypatch.setattr(udp, "Datagrams", PlainDatagrams)


@pytest.mark.usefixtures("plain_or_many")
@pytest.mark.parametrize("offload", [True, False])
def test_datagrams_of_other_senders_and_lengths_are_runs_of_their_own(offload: bool) -> None:
    with contextlib.ExitStack() as stack:
        raw = socket.SocketType(socket.AF_INET, socket.SOCK_DGRAM)
        raw.bind(("", 0))  # a wildcard port: the kernel says where each was sent to
        receiver = Port(raw, offload=offload)
        stack.callback(receiver.close)
        one, other = (stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(2))
        script = [(one, 1_400)] * 3 + [(one, 30), (one, 1_400), (other, 1_400), (other, 1_400), (one, 0), (one, 1_472)]
        script += [(other, 1_472), (other, 9_000), (other, 60_000), (other, 1_200), (other, 1_300)]
        if offload:
            script = [(one, 1_400)] * 2 + script
        sent = [(sender, bytes([index]) * size) for index, (sender, size) in enumerate(script)]
        for sender, data in sent:
            sender.sendto(data, ("127.0.0.1", raw.getsockname()[1]))
        runs = drain(receiver)
        assert content(runs) == [data for _, data in sent if data]
        assert receiver.truncated_datagrams == 1
        assert {run.local for run in runs} == {"127.0.0.1"}
        ports = {one.getsockname()[1], other.getsockname()[1]}
        assert {run.addr for run in runs} == {("127.0.0.1", port) for port in ports}
        came_from = [run.addr[1] for run in runs for _ in range(run.count)]
        assert came_from == [sender.getsockname()[1] for sender, data in sent if data]
        # The first two tell a port with GRO that they come one by one.
        expected = [4, 1, 2, 1, 1, 1, 1, 1, 1]
        assert [run.count for run in runs] == ([1, 1, *expected] if offload else expected)


@pytest.mark.usefixtures("plain_or_many")
def test_what_was_too_long_for_a_slot_gets_longer_slots() -> None:
    sender, receiver = ports(offload=False)
    for expected in (5, 1):
        sent = transmit(5, segment=8_000, last=8_000)
        sender.send(sent, [])
        runs = drain(receiver)
        assert content(runs) == sent.datagrams()
        assert len(runs) == expected
    sender.close()
    receiver.close()


def test_a_port_with_gro_finds_out_how_datagrams_come() -> None:
    """Merged ones, as long as they come merged; else one by one, and many of those at once."""
    plain, receiver = ports(offload=False)
    receiver.close()
    merging, receiver = ports(offload=True)
    plain.sock.connect(receiver.local)
    assert not receiver.uses_recvmmsg
    for _ in range(3):
        plain.send(transmit(40), [])
        runs = drain(receiver)
        assert content(runs) == transmit(40).datagrams()
        assert len(runs) <= 3  # two alone, then all
        assert receiver.uses_recvmmsg
        merging.send(transmit(40), [])
        runs = drain(receiver)
        assert content(runs) == transmit(40).datagrams()
        assert [run.count for run in runs] == [40]
        assert not receiver.uses_recvmmsg
        plain.send(transmit(1), [])
        merging.send(transmit(40), [])
        plain.send(transmit(1), [])
        assert content(drain(receiver)) == transmit(1).datagrams() + transmit(40).datagrams() + transmit(1).datagrams()
        assert not receiver.uses_recvmmsg
    for port in (plain, merging, receiver):
        port.close()


def test_a_kernel_that_takes_a_part_keeps_the_rest_for_later() -> None:
    sender, receiver = ports(offload=False)
    taken = iter([5, 0, 0, 3])

    class Narrow:
        """The port's calls, with little room."""

        can_send_many = True

        def __init__(self, calls: Any) -> None:
            self.calls = calls
            self.is_full = False

        def send_many(self, data: bytes, start: int, segment: int, ancillary: Any, addr: Any) -> int:
            count = next(taken, 0)
            for index in range(count):
                at = start + index * segment
                assert self.calls.send(data, at, min(at + segment, len(data)), ancillary, addr) == 0
            self.is_full = not count
            return count or -errno.EAGAIN

        def send(self, *arguments: Any) -> int:
            return errno.EAGAIN if self.is_full else self.calls.send(*arguments)

    narrow: Any = Narrow(sender._calls)
    sender._calls = narrow
    sent = transmit(12, last=300)
    sender.send(sent, [])
    assert sender.is_blocked
    assert sum(run.count for run in drain(receiver)) == 5
    sender.send(transmit(2), [])  # behind what waits
    assert not sender.flush()
    narrow.is_full = False
    assert sender.flush()
    assert not sender.is_blocked
    assert content(drain(receiver)) == sent.datagrams()[5:] + transmit(2).datagrams()
    sender.close()
    receiver.close()


@pytest.mark.usefixtures("plain_or_many")
def test_one_that_is_too_long_fails_alone() -> None:
    """EMSGSIZE is a result of that datagram, not of those behind it."""
    sender, receiver = ports(offload=False)
    whole = Transmit(ANYWHERE, bytes(65_508 + 10), datagram_bytes=65_508, count=2)
    sender.send(whole, [])
    assert [(error.errno, error.datagram_bytes) for error in sender.errors] == [(errno.EMSGSIZE, 65_508)]
    assert content(drain(receiver)) == [bytes(10)]
    sender.close()
    receiver.close()


def test_an_icmp_error_of_an_earlier_datagram_is_not_the_next_ones() -> None:
    """The kernel returns it from the first call after the ICMP message, which may be before the error queue is read."""
    sender, receiver = ports(offload=False)

    class WithPendingError:
        """The port's socket, when a message has just come that a datagram was too large."""

        def __init__(self, sock: socket.SocketType) -> None:
            self.sock = sock
            self.pending = [OSError(errno.EMSGSIZE, "Message too long")]

        def sendmsg(self, *arguments: object) -> int:
            if self.pending:
                raise self.pending.pop()
            return self.sock.sendmsg(*arguments)  # type: ignore[arg-type]

        def __getattr__(self, name: str) -> object:
            return getattr(self.sock, name)

    pending: Any = WithPendingError(sender.sock)
    sender._calls = PlainDatagrams(pending, 0, sender.peer)
    sender.send(transmit(1), [])
    assert content(drain(receiver)) == transmit(1).datagrams()
    assert not sender.errors
    sender.close()
    receiver.close()


def test_many_datagrams_to_a_closed_port_are_icmp_errors() -> None:
    sender, receiver = ports(offload=False)
    receiver.close()
    sender.send(transmit(5), [])
    sender.read_errors()
    assert {error.errno for error in sender.errors} == {errno.ECONNREFUSED}
    assert not sender.is_blocked
    sender.close()


def test_a_closed_port_is_an_icmp_error() -> None:
    sender, receiver = ports(offload=True)
    receiver.close()
    sender.send(transmit(1), [])
    sender.read_errors()
    assert [error.errno for error in sender.errors] == [errno.ECONNREFUSED]
    assert sender.errors[0].quoted[:20] == bytes(20)
    sender.close()


@requires_pure
def test_whatever_a_port_is_asked_for_first_it_has() -> None:
    """What only the engine's thread needs is made when that thread first uses any of it."""
    names = [name for name in Port.__slots__ if name != "_wanted"]
    for name in names:
        sock = socket.SocketType(type=socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        port = Port(sock, bound=(sock.getsockname(), 0))
        try:
            getattr(port, name)
        finally:
            port.close()


def test_what_waits_to_be_received_is_known() -> None:
    sender, receiver = ports(offload=True)
    with contextlib.closing(sender), contextlib.closing(receiver):
        assert receiver.queued_bytes == 0
        sender.send(transmit(40), [])
        assert receiver.queued_bytes >= 40 * 1_400
        drain(receiver)
        assert receiver.queued_bytes == 0

"""engine/ports/idle_sockets.py: the UDP socket of a connection that is over serves the next one, and no program can
tell.
"""

from __future__ import annotations

import os
import socket as stdlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from types import SimpleNamespace
from typing import Any

import pytest

import utpsocket
from tests.requirements import requires_fds, requires_ipv6
from utpsocket.engine import commands, engine
from utpsocket.engine.interpreter.fork_lock import ForkLock
from utpsocket.engine.kernel import netns
from utpsocket.engine.kernel.high_fds import HIGH_FD, UdpSocket
from utpsocket.engine.kernel.udp import Port
from utpsocket.engine.loop import Loop
from utpsocket.engine.ports import idle_sockets
from utpsocket.engine.ports.idle_sockets import IdleSockets
from utpsocket.protocol.build import IS_COMPILED

pytestmark = [pytest.mark.usefixtures("leaves_nothing_behind"), requires_fds(2_048)]

LOOPBACK: dict[int, str] = {stdlib.AF_INET: "127.0.0.1", stdlib.AF_INET6: "::1"}
FAMILIES = pytest.mark.parametrize("family", LOOPBACK)
# Of both families, all that a UDP socket reads as a number; the rest of sockets.c and ip_sockglue.c in Linux.
OPTIONS = [(stdlib.SOL_SOCKET, name) for name in range(1, 84)] + [
    (level, name) for level in (stdlib.IPPROTO_IP, stdlib.IPPROTO_IPV6, stdlib.IPPROTO_UDP) for name in range(1, 110)
]
# SO_INCOMING_CPU, SO_MEMINFO, SO_INCOMING_NAPI_ID, SO_COOKIE; IP_PROTOCOL, which is the port number.
CHANGING = [(stdlib.SOL_SOCKET, name) for name in (49, 55, 56, 57)] + [(stdlib.IPPROTO_IP, 52)]


def udp_numbers(loop: Any) -> list[int]:
    """The fd numbers of the ports that are connections' own."""
    return [each.port.fd for each in loop.endpoints.values() if each.is_private]


def idle(family: int) -> list[UdpSocket]:
    loop = engine()
    assert isinstance(loop, Loop)
    return [sock for _, sock in loop.idle_sockets._sockets.get(family, ())]


def bind_once(listener: Any) -> None:
    with utpsocket.socket(listener.family) as sock:
        sock.bind((LOOPBACK[listener.family], 0))


def for_binds(listener: Any) -> list[UdpSocket]:
    """What the next bind() may take."""
    wait_for_made()
    loop = engine()
    assert isinstance(loop, Loop)
    kind = idle_sockets._kind(listener.family, to_bind=True)
    return [sock for _, sock in loop.idle_sockets._sockets.get(kind, ())]


def keep_for(microseconds: int) -> None:
    loop = engine()
    assert isinstance(loop, Loop)
    loop.idle_sockets.kept_us = microseconds


def wait_until(is_so: Callable[[], bool]) -> None:
    """Each question is an iteration of the engine."""
    for _ in range(100_000):
        if is_so():
            return
        engine().call(commands.barrier)
    raise AssertionError("it did not happen")


def wait_for_made() -> None:
    """Until the engine has made what it was to make."""
    loop = engine()
    assert isinstance(loop, Loop)
    wait_until(lambda: not loop.idle_sockets.wanted)
    loop.call(commands.barrier)  # the iteration is over in which it took the last one


@pytest.fixture(params=LOOPBACK)
def listener(request: pytest.FixtureRequest) -> Iterator[Any]:
    with utpsocket.create_server((LOOPBACK[request.param], 0), family=request.param) as made:
        wait_for_made()
        engine().call(lambda loop: loop.idle_sockets.close_fds())  # what was made in the place of its own
        keep_for(3_600_000_000)  # however long a busy machine takes from one connection to the next
        yield made


def talk(listener: Any, prepare: Callable[[Any], object] = lambda client: None) -> int:
    """A connection from its beginning to its end. Returns the number of its UDP socket."""
    with utpsocket.socket(listener.family) as client:
        prepare(client)
        client.connect(listener.getsockname()[:2])
        with listener.accept()[0] as server:
            client.sendall(b"?")
            assert server.recv(1) == b"?"
            server.sendall(b"!")
            assert client.recv(1) == b"!"
            assert client.getsockname() == server.getpeername()
            numbers: list[int] = engine().call(udp_numbers)
    assert len(numbers) == 1
    wait_until(lambda: not engine().call(udp_numbers))
    return numbers[0]


def test_the_next_connect_takes_the_socket(listener: Any) -> None:
    first = talk(listener)
    assert [sock.fileno() for sock in idle(listener.family)] == [first]
    assert talk(listener) == first
    assert len(idle(listener.family)) == 1


def test_a_kept_socket_has_no_port(listener: Any) -> None:
    talk(listener)
    (kept,) = idle(listener.family)
    assert kept.getsockname()[:2] == ({stdlib.AF_INET: "0.0.0.0", stdlib.AF_INET6: "::"}[listener.family], 0)
    with pytest.raises(OSError, match="not connected"):
        kept.getpeername()


@pytest.mark.parametrize(
    "prepare",
    [
        lambda client: client.setsockopt(stdlib.IPPROTO_IP, stdlib.IP_TTL, 3),
        lambda client: client.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_PRIORITY, 2),
        lambda client: client.bind((LOOPBACK[client.family], 0)),
    ],
    ids=["ttl", "priority", "bound"],
)
def test_a_socket_of_which_the_program_has_asked_for_something_is_not_kept(
    prepare: Callable[[Any], object], listener: Any
) -> None:
    with utpsocket.socket(listener.family) as client:
        prepare(client)
        wait_for_made()
        made = len(idle(listener.family))  # one in the place of what bind() has taken
        client.connect(listener.getsockname()[:2])
        with listener.accept()[0] as server:
            client.close()
            assert server.recv(1) == b""
    wait_until(lambda: len(engine().call(lambda loop: loop.endpoints)) == 1)
    assert len(idle(listener.family)) == made
    talk(listener)
    assert len(idle(listener.family)) == 1


def test_an_option_that_is_set_on_the_connection_is_not_passed_on(listener: Any) -> None:
    """The engine sets it on the UDP socket."""
    with utpsocket.create_connection(listener.getsockname()[:2]) as client, listener.accept()[0] as server:
        client.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_PRIORITY, 2)
        engine().call(commands.barrier)
        client.close()
        assert server.recv(1) == b""
    wait_until(lambda: not engine().call(udp_numbers))
    assert idle(listener.family) == []


def test_a_forked_child_has_no_kept_socket(listener: Any) -> None:
    number = talk(listener)
    child = os.fork()
    if not child:
        try:
            os.fstat(number)
        except OSError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_kept_sockets_are_closed_after_a_while(listener: Any) -> None:
    keep_for(1_000)
    talk(listener)
    wait_until(lambda: not idle(listener.family))


@pytest.mark.skipif(not IS_COMPILED, reason="needs the compiled build")
@pytest.mark.parametrize("address", ["own", "any"])
def test_the_next_bind_takes_a_socket_and_has_another_one_made(address: str, listener: Any) -> None:
    host = LOOPBACK[listener.family] if address == "own" else ""
    bind_once(listener)
    (taken,) = for_binds(listener)
    number = taken.fileno()
    with utpsocket.socket(listener.family) as client:
        client.bind((host, 0))
        with stdlib.socket(fileno=os.dup(number)) as udp:
            assert udp.getsockname() == client.getsockname()
        (made,) = for_binds(listener)
        assert made.fileno() != number
        client.connect(listener.getsockname()[:2])
        with listener.accept()[0] as server:
            assert client.getsockname()[1] == server.getpeername()[1]
            client.sendall(b"?")
            assert server.recv(1) == b"?"
    assert number not in [sock.fileno() for sock in (*idle(listener.family), *for_binds(listener))]


def test_a_bind_that_is_refused_leaves_nothing(listener: Any) -> None:
    talk(listener)
    bind_once(listener)
    wait_for_made()
    before = len(os.listdir("/proc/self/fd"))
    with utpsocket.socket(listener.family) as other:
        with pytest.raises(OSError, match="in use"):
            other.bind(listener.getsockname()[:2])
        assert other.getsockname()[1] == 0
    wait_for_made()
    assert len(os.listdir("/proc/self/fd")) <= before


@FAMILIES
def test_a_socket_that_the_engine_has_made_is_as_one_that_a_bind_makes(family: int, stack: ExitStack) -> None:
    loop: Any = FakeLoop()
    if not loop.namespace:
        pytest.skip("needs SO_NETNS_COOKIE")
    sockets = IdleSockets(loop)
    stack.callback(sockets.close_fds)
    sockets.replace(family)
    sockets.make_wanted()
    made = sockets.take(family, loop.namespace, to_bind=True)
    assert made is not None
    stack.callback(made.close)
    assert made.fileno() >= HIGH_FD
    assert not os.get_inheritable(made.fileno())
    assert not os.get_blocking(made.fileno())
    made.bind((LOOPBACK[family], 0))
    usual = Port(bound(stack, family))
    assert usual.receive_buffer_bytes  # what only the engine's thread needs is set when it is first asked for
    assert options_of(made) == options_of(usual.sock)


def test_no_more_are_made_than_are_wanted_at_once(stack: ExitStack) -> None:
    loop, sockets, _ = kept_one(stack)
    for _ in range(2 * idle_sockets._MAX_NEW):
        sockets.replace(stdlib.AF_INET)
    while sockets.wanted:
        sockets.make_wanted()
    assert len(sockets) == idle_sockets._MAX_NEW
    loop.is_alive = False
    sockets.replace(stdlib.AF_INET6)
    sockets.make_wanted()
    assert len(sockets) == idle_sockets._MAX_NEW


# ── one port ──


def new_port(family: int, peer: Any) -> Port:
    sock = UdpSocket(family, stdlib.SOCK_DGRAM)
    sock.setblocking(False)
    sock.owner = sock.prepared = None
    sock.connect(peer.getsockname())
    return Port(sock)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def bound(stack: ExitStack, family: int) -> Any:
    sock = stack.enter_context(stdlib.socket(family, stdlib.SOCK_DGRAM))
    sock.bind((LOOPBACK[family], 0))
    return sock


def options_of(sock: Any) -> dict[tuple[int, int], bytes]:
    found = {}
    for level, name in OPTIONS:
        if (level, name) not in CHANGING:
            try:
                found[level, name] = sock.getsockopt(level, name, 64)
            except OSError:
                continue
    return found


@FAMILIES
def test_a_kept_socket_is_as_a_new_one_whatever_was_left_in_it(family: int, stack: ExitStack) -> None:
    peer = bound(stack, family)
    port, fresh = new_port(family, peer), new_port(family, peer)
    stack.callback(port.close)
    stack.callback(fresh.close)
    for _ in range(3):
        peer.sendto(b"late", port.sock.getsockname())
    peer.close()
    for _ in range(2):  # two ICMP errors: one is pending for the next call, one waits in the error queue
        try:
            port.sock.send(b"?")
        except ConnectionRefusedError:
            pass
    assert port.become_unconnected()

    other = bound(stack, family)
    fresh.sock.connect(other.getsockname())
    port.sock.connect(other.getsockname())
    assert options_of(port.sock) == options_of(fresh.sock)
    for flags in (0, 0x2000):  # MSG_ERRQUEUE
        with pytest.raises(BlockingIOError):
            port.sock.recvmsg(64, 512, flags)
    other.sendto(b"!", port.sock.getsockname())
    assert port.sock.recv(64) == b"!"


@FAMILIES
def test_a_port_of_which_an_option_was_changed_is_not_reused(family: int, stack: ExitStack) -> None:
    def change(port: Port, how: str) -> None:
        if how == "icmp":
            port.report_icmp(wanted=False)
        elif how == "option":
            port.set_option(stdlib.IPPROTO_IP, stdlib.IP_TOS, (8).to_bytes(4, "little"))
        else:
            port._fragment(True)

    peer = bound(stack, family)
    for how in ("icmp", "option", "fragments"):
        with closing(new_port(family, peer)) as port:
            change(port, how)
            assert not port.become_unconnected()


class FakeLoop(SimpleNamespace):
    def __init__(self) -> None:
        super().__init__(is_alive=True, offload=True, udp_buffer_bytes=4 << 20, now=5, fd_lock=ForkLock())
        self.namespace = netns.cookie_here()
        self.calls: list[int] = []

    def call_at(self, at: int, call: Callable[[], None]) -> None:
        self.calls.append(at)


def kept_one(stack: ExitStack, family: int = stdlib.AF_INET) -> tuple[Any, IdleSockets, UdpSocket]:
    loop: Any = FakeLoop()
    if not loop.namespace:
        pytest.skip("needs SO_NETNS_COOKIE")
    sockets = IdleSockets(loop)
    stack.callback(sockets.close_fds)
    port = new_port(family, bound(stack, family))
    assert sockets.may_keep(port)
    sockets.put(port)
    assert isinstance(port.sock, UdpSocket)
    return loop, sockets, port.sock


def test_only_a_connect_that_would_make_the_same_socket_gets_it(stack: ExitStack) -> None:
    loop, sockets, sock = kept_one(stack)
    assert sockets.take(stdlib.AF_INET6, loop.namespace) is None
    assert sockets.take(stdlib.AF_INET, loop.namespace + 1) is None
    assert sockets.take(stdlib.AF_INET, loop.namespace) is sock
    assert sockets.take(stdlib.AF_INET, loop.namespace) is None
    sock.close()


@requires_ipv6
def test_a_bind_takes_no_socket_of_ipv6_that_was_connected(stack: ExitStack) -> None:
    """Linux would go on taking datagrams from that peer's address alone."""
    loop, sockets, sock = kept_one(stack, stdlib.AF_INET6)
    assert sockets.take(stdlib.AF_INET6, loop.namespace, to_bind=True) is None
    assert sockets.take(stdlib.AF_INET6, loop.namespace) is sock
    sock.close()


@pytest.mark.parametrize("change", ["owner", "offload", "udp_buffer_bytes"])
def test_a_socket_that_would_be_another_now_is_closed(stack: ExitStack, change: str) -> None:
    loop, sockets, sock = kept_one(stack)
    if change == "owner":
        sock.owner = os.geteuid() + 1, os.getegid()
    else:
        setattr(loop, change, False if change == "offload" else 1)
    assert sockets.take(stdlib.AF_INET, loop.namespace) is None
    assert sock.fileno() < 0


def test_no_more_are_kept_than_a_burst_needs(stack: ExitStack) -> None:
    _, sockets, _ = kept_one(stack)
    peer = bound(stack, stdlib.AF_INET)
    others = idle_sockets._MAX_SOCKETS - 1
    ports = [new_port(stdlib.AF_INET, peer) for _ in range(others + 2)]
    for port in ports:
        sockets.put(port)
    assert [port.sock.fileno() >= 0 for port in ports] == [True] * others + [False] * 2


def test_the_time_of_each_is_counted_from_its_own_end(stack: ExitStack) -> None:
    loop, sockets, first = kept_one(stack)
    assert loop.calls == [5 + idle_sockets._KEPT_US]
    loop.now += idle_sockets._KEPT_US // 2
    second = new_port(stdlib.AF_INET, bound(stack, stdlib.AF_INET))
    sockets.put(second)
    loop.now = loop.calls.pop()
    sockets.expire()
    assert first.fileno() < 0 <= second.sock.fileno()
    assert loop.calls == [5 + idle_sockets._KEPT_US // 2 + idle_sockets._KEPT_US]
    loop.now = loop.calls.pop()
    sockets.expire()
    assert second.sock.fileno() < 0
    assert loop.calls == []

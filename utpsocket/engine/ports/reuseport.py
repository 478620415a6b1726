"""A UDP socket for each peer of a port that processes share by SO_REUSEPORT.

The kernel spreads a shared port's datagrams over the sockets of the group as it is now; whenever a process joins or
leaves, what belongs to one may go to another. A socket that is connected to the peer wins the kernel's lookup over the
group. So each peer gets one when its first connection begins, and what arrives there is handled as if it had arrived at
the port itself. What is sent leaves by the port's own socket: the addresses are equal.

Read this first. Such a socket must not become a member of the group, nor found another one. Linux puts a socket that is
bound into the group of the first one it finds at the same port, of the same family and the same IPV6_V6ONLY; if it
finds a connected one, which has none, it founds a new one, and the members of the old one get nothing any more. So
these sockets differ from the group in one of the two: an IPv4 peer's is an AF_INET6 socket at mapped addresses (or
AF_INET, where the port itself is AF_INET6), an IPv6 peer's has the other IPV6_V6ONLY. Before Linux 6.13 a group that
has never had a connected member is not compared with connected sockets at all, so each group is given one for a moment.

A port that does not listen takes no SYNs from those that do, as over TCP: it is no member that the kernel chooses.

* Bound only: its UDP socket is not bound yet. Another one is, which keeps others from the address and is bound to an
  interface that does not exist, so nothing comes to it (reserve()). listen() binds the first and closes the second.
  Below port 1024, where that bind() may fail, it is bound at once, and connected to itself until it listens; not at a
  wildcard address.
* Dialing, or with connections of a listener that is closed: its UDP socket is connected to itself: the kernel
  gives it no SYNs, and it still sends (leave_group()). Of a wildcard address it is the loopback address, so each
  datagram has to carry its source; and once it listens again, it is no member, and gets the others' SYNs as well.

Only the engine's thread calls, except for what says that any thread may. Sources: Linux net/ipv4/udp.c
(udp4_lib_lookup2, udp_reuseport_add_sock, udp_lib_rehash), net/core/sock_reuseport.c (reuseport_has_conns,
reuseport_select_sock), net/core/sock.c (sock_bindtoindex_locked); socket(7) SO_REUSEPORT; connect(2).
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from utpsocket.engine.interpreter.native import Socket
from utpsocket.engine.interpreter.originals import io, os
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import or_none, reraise_handler_error, suppress_errnos
from utpsocket.engine.kernel import netns
from utpsocket.engine.kernel.high_fds import move_to_high_fd, with_room
from utpsocket.engine.kernel.poller import EPOLLERR, EPOLLIN
from utpsocket.engine.kernel.udp import Port, split_scope
from utpsocket.protocol import Run

if TYPE_CHECKING:
    from utpsocket.engine.channels.utp import Bridge
    from utpsocket.engine.interpreter.arguments import GivenAddress
    from utpsocket.engine.kernel.arena import Arena
    from utpsocket.engine.reactor import Reactor
    from utpsocket.protocol import Address

    class Engine(Reactor, Protocol):
        """With memory to receive into, and the environment variables about UDP sockets."""

        arena: Arena
        offload: bool
        udp_buffer_bytes: int

    class SharedPort(Protocol):
        """What of a port (endpoint.py) is used here."""

        port: Port
        is_closed: bool
        reuseport_sockets: ReuseportSockets | None

        @property
        def loop(self) -> Engine: ...

        @property
        def bridges(self) -> Mapping[tuple[Address, int], Bridge]: ...

        @property
        def is_in_other_namespace(self) -> bool: ...

        def handle_run(self, run: Run, *, now: int) -> None:
            """Handle packets of one sender: of one connection, or strays."""

        def handle_errors(self, *, now: int) -> None:
            """Hand ICMP errors about our datagrams to the connections."""


_RUNS_PER_ITERATION: Final = 8  # then other sockets are read
_MAX_EARLY_DATAGRAMS: Final = 64  # that came between bind() and connect(), by feel
# Sockets that are kept without a connection, so that what a peer repeats after the end comes to the process that had
# the connection; by feel.
_MAX_UNUSED: Final = 64
_MAPPED: Final = "::ffff:"
_TABLES: Final = ("/proc/net/udp", "/proc/net/udp6")
_LOCAL, _REMOTE, _INODE = 1, 2, 9  # their columns
_CHECK_AGAIN_US: Final = 50_000  # how long what was read in /proc about other processes is used; by feel
_SO_BINDTOIFINDEX: Final = 62  # asm-generic/socket.h
_NO_INTERFACE: Final = 2**31 - 1  # Linux numbers interfaces from 1 on
_FIRST_UNPRIVILEGED: Final = 1_024  # ip(7); below, a process that gives its rights up after bind() could not bind again
_LOOPBACK_OF_WILDCARD: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def is_shared(sock: Socket) -> bool:
    """Whether other processes may bind the same address."""
    try:
        return bool(sock.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_REUSEPORT))
    except AttributeError:
        return False
    except OSError as error:
        reraise_handler_error(error)
        return False


def reserve(make: Callable[[], Socket], address: GivenAddress) -> Socket | None:
    """Keep an address for a socket with SO_REUSEPORT that is bound and does not listen: no other may have it that may
    not share it, and nothing that is sent there comes to this one. Any thread.

    Parameters:
        make: makes a UDP socket with the options of the one that it is kept for.
        address: as bind() is given it.
    Returns: a bound socket; None where the kernel cannot do that, or the address is one that a later bind() could fail
        at.
    Raises: OSError as bind().
    """
    for is_first in (True, False):  # before bind() no SYN can come; but there IPv6 wants to find the interface
        sock = make()
        try:
            if is_first and not _leave_interfaces(sock):
                break
            try:
                sock.bind(address)
            except OSError as error:
                if is_first and error.errno == errno.ENODEV:
                    sock.close()
                    continue
                raise
            if sock.getsockname()[1] < _FIRST_UNPRIVILEGED or not (is_first or _leave_interfaces(sock)):
                break
        except BaseException:
            sock.close()
            raise
        return sock
    sock.close()
    return None


def _leave_interfaces(sock: Socket) -> bool:
    try:
        if _interface(sock):
            return False
        sock.setsockopt(stdlib.SOL_SOCKET, _SO_BINDTOIFINDEX, _NO_INTERFACE)
    except OSError as error:
        reraise_handler_error(error)
        return False
    return True


def _interface(sock: Socket) -> int:
    """The number of the interface that a socket is bound to, by SO_BINDTODEVICE or by a link-local address; 0: none.
    Raises OSError.
    """
    return int(sock.getsockopt(stdlib.SOL_SOCKET, _SO_BINDTOIFINDEX))


class ReuseportSocket:
    """The socket of one peer."""

    __slots__ = ("_endpoint", "_local", "bridges", "port")

    def __init__(self, endpoint: SharedPort, sock: Socket, addr: Address, local: str | None) -> None:
        self._endpoint = endpoint
        self._local = local  # at a wildcard port: the local address, as IP_PKTINFO would give it for each datagram
        loop = endpoint.loop
        self.port = Port(sock, offload=loop.offload, buffer_bytes=loop.udp_buffer_bytes, peer=addr)
        self.bridges: set[Bridge] = set()

    def on_event(self, mask: int) -> None:
        """epoll: something came."""
        if mask & EPOLLERR:
            self.port.read_errors()
        self.receive()

    def receive(self) -> None:
        """Receive what there is, a bounded amount, and hand it to the port. epoll reports the rest again."""
        endpoint, port, local = self._endpoint, self.port, self._local
        loop = endpoint.loop
        arena, now = loop.arena, loop.now
        for _ in range(_RUNS_PER_ITERATION):
            runs: list[Run]
            if port.uses_recvmmsg:
                runs = [part for run in port.receive_many(arena) for part in run.parts()]
                is_drained = port.is_drained
            else:
                run = port.receive(arena.room())
                if run is None:
                    break
                is_drained = False
                if not run.data:
                    continue
                arena.take(len(run.data))
                if len(run.data) > run.stride:
                    run.payload_views = arena.slots(run, arena.used - len(run.data))
                runs = [run]
            for run in runs:
                run.local = local
                endpoint.handle_run(run, now=now)
            if is_drained:
                break
        if port.errors:
            for error in port.errors:
                error.addr = port.peer
            endpoint.port.errors += port.errors
            port.errors = ()
            endpoint.handle_errors(now=now)

    def fail(self, error: BaseException) -> None:
        """See faults.py: the socket is closed, and the kernel delivers what comes to the group."""
        sockets = self._endpoint.reuseport_sockets
        if sockets is not None and self.port.peer is not None:
            sockets.drop(self.port.peer)


class ReuseportSockets:
    """Of one port.

    by_addr        the sockets, by their peer's address
    is_supported   whether the last one could be made: the kernel, or the limit of fds, may not let us
    """

    __slots__ = (
        "_can_rejoin",
        "_checked_at",
        "_endpoint",
        "_has_left",
        "_is_alone",
        "_unused",
        "_reservation",
        "by_addr",
        "is_supported",
    )

    def __init__(self, endpoint: SharedPort, reservation: Socket | None = None) -> None:
        self._endpoint = endpoint  # the port
        self._reservation = reservation  # of reserve(): the port's own socket is not bound until it is needed
        self._has_left = False  # the port's socket is connected to itself
        self._can_rejoin = reservation is not None  # the kernel knows that bind() has chosen the number: disconnect()
        self.by_addr: dict[Address, ReuseportSocket] = {}
        self._unused: OrderedDict[Address, None] = OrderedDict()  # of these, peers without a connection, oldest first
        self.is_supported = True
        self._is_alone = False  # what is_only_socket() last returned
        self._checked_at = 0  # and when, µs
        if reservation is None:
            self._mark_group_connected()
            local = endpoint.port.local
            if (
                local[1] < _FIRST_UNPRIVILEGED
                and not endpoint.port.is_wildcard
                and or_none(_interface, endpoint.port.sock) == 0
            ):
                self._can_rejoin = True
                self.leave_group(will_rejoin=True)

    # ── the group ──

    def join_group(self) -> None:
        """The port listens: become a member of the group, which gets its share of the SYNs. Idempotent; any thread.
        Raises OSError.
        """
        if self._reservation is not None and not self._has_left:
            self._bind()
            self.close_reservation()
            self._mark_group_connected()
        elif self._has_left:
            self._endpoint.port.disconnect()
            self._has_left = False
            self.close_reservation()

    def leave_group(self, *, will_rejoin: bool = False) -> None:
        """The port does not listen, and has connections: get no share of the SYNs any more. Where that is not possible
        the port stays a member. Idempotent; any thread.

        will_rejoin   the program may have it listen again
        """
        by_addr, port = self.by_addr, self._endpoint.port
        if self._has_left or (will_rejoin and not self._can_rejoin):
            return
        if not all(addr in by_addr for addr, _ in list(self._endpoint.bridges)):
            return  # what is sent to these has to come to the port's own socket
        host = port.local[0]
        with suppress_errnos():
            port.sock.connect((_LOOPBACK_OF_WILDCARD.get(host, host), *port.local[1:]))
            self._has_left = True

    def prepare_to_send(self) -> None:
        """The port dials: bind its own socket. Idempotent. Raises OSError."""
        if self._reservation is not None:
            self._bind()
            if not self._endpoint.port.is_wildcard:  # otherwise it keeps what leave_group() gives up
                self.close_reservation()

    def _bind(self) -> None:
        port = self._endpoint.port
        try:
            port.sock.bind(port.local)
        except OSError as error:
            if error.errno != errno.EINVAL or not port.sock.getsockname()[1]:
                raise  # else it is bound: this was interrupted

    def close_reservation(self) -> None:
        """The address is kept for the port no more, or by its own socket. Idempotent; any thread."""
        reservation, self._reservation = self._reservation, None
        if reservation is not None:
            reservation.close()

    def close_fds(self) -> None:
        """As close_reservation()."""
        self.close_reservation()

    def detach_fds(self) -> None:
        """Forget the reservation's fd without closing it: the number belongs to something else by now."""
        if self._reservation is not None:
            self._reservation.detach()
            self._reservation = None

    def local_of(self, addr: Address) -> str | None:
        """The local address towards a peer that has a socket, in the form of Run.local."""
        found = self.by_addr.get(addr)
        return None if found is None else _local_host(found.port.local, self._endpoint.port.family)

    def _mark_group_connected(self) -> None:
        """Make the kernel note that there are connected sockets at the group's address (before Linux 6.13)."""
        port = self._endpoint.port
        try:
            member = with_room(partial(Socket, port.family, stdlib.SOCK_DGRAM, 0))
        except OSError as error:
            reraise_handler_error(error)
            return
        try:
            member.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_REUSEPORT, 1)
            if port.family == stdlib.AF_INET6:
                only = port.sock.getsockopt(stdlib.IPPROTO_IPV6, stdlib.IPV6_V6ONLY)
                member.setsockopt(stdlib.IPPROTO_IPV6, stdlib.IPV6_V6ONLY, only)
            member.bind(port.local)
            member.connect(port.local)
        except OSError as error:
            reraise_handler_error(error)
        finally:
            member.close()

    def join(self, bridge: Bridge, host: str) -> None:
        """A connection begins. host: the local address that its packets are sent to, in the form of Run.local."""
        addr = bridge.connection.addr
        found = self.by_addr.get(addr)
        if found is None:
            found = self._open(addr, host)
            if found is None:
                return
        self._unused.pop(addr, None)
        found.bridges.add(bridge)

    def leave(self, bridge: Bridge) -> None:
        """The connection is over. Idempotent."""
        addr = bridge.connection.addr
        found = self.by_addr.get(addr)
        if found is not None and bridge in found.bridges:
            found.bridges.discard(bridge)
            if not found.bridges:
                self._unused[addr] = None
                if len(self._unused) > _MAX_UNUSED:
                    self.drop(next(iter(self._unused)))

    def receive(self, addr: Address) -> None:
        """Receive what has come from this peer by now."""
        found = self.by_addr.get(addr)
        if found is not None:
            found.receive()

    def drop(self, addr: Address) -> None:
        """Close this peer's socket."""
        self._unused.pop(addr, None)
        found = self.by_addr.pop(addr, None)
        if found is not None:
            self._endpoint.loop.forget_fd(found.port.sock.fileno())
            found.port.close()

    def close(self) -> None:
        """The port is closed."""
        self.close_reservation()
        for addr in list(self.by_addr):
            self.drop(addr)

    def _open(self, addr: Address, host: str) -> ReuseportSocket | None:
        endpoint = self._endpoint
        loop, port = endpoint.loop, endpoint.port
        early_datagrams: list[tuple[bytes, Address]] = []
        try:
            make = partial(with_room, partial(self._connected, addr, host, early_datagrams))
            if endpoint.is_in_other_namespace:
                make = partial(netns.make_in_namespace_of, port.sock, make)
            sock = move_to_high_fd(make())
        except OSError as error:
            reraise_handler_error(error)
            self.is_supported = False
            return None
        try:
            if host in _LOOPBACK_OF_WILDCARD:  # a dialed one
                host = _local_host(sock.getsockname(), port.family)
            found = ReuseportSocket(endpoint, sock, addr, host if port.is_wildcard else None)
        except BaseException:
            sock.close()
            raise
        self.by_addr[addr] = found
        loop.watch(found.port.fd, EPOLLIN | EPOLLERR, found)
        self.is_supported = True
        if early_datagrams:
            loop.call_at(loop.now, partial(self._take, early_datagrams, host if port.is_wildcard else None))
        return found

    def _connected(self, addr: Address, host: str, early_datagrams: list[tuple[bytes, Address]]) -> Socket:
        """A socket at the port's address, connected to the peer. What came to it before goes to early_datagrams."""
        port = self._endpoint.port
        is_v4 = port.family == stdlib.AF_INET
        is_mapped = not is_v4 and addr[0].startswith(_MAPPED)
        family, only, prefix = stdlib.AF_INET6, 0, _MAPPED if is_v4 else ""
        if is_mapped:
            family = stdlib.AF_INET
        elif not is_v4:
            only = 1 - port.sock.getsockopt(stdlib.IPPROTO_IPV6, stdlib.IPV6_V6ONLY)
        if is_v4 and not stdlib.has_ipv6:
            family, prefix = stdlib.AF_INET, ""
        sock = Socket(family, stdlib.SOCK_DGRAM, 0)
        try:
            sock.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_REUSEPORT, 1)
            if family == stdlib.AF_INET6:
                sock.setsockopt(stdlib.IPPROTO_IPV6, stdlib.IPV6_V6ONLY, only)
            sock.setblocking(False)
            ours: Address
            theirs: Address
            if is_mapped:
                ours = ("0.0.0.0" if host == "::" else host.removeprefix(_MAPPED), port.local[1])
                theirs = (addr[0].removeprefix(_MAPPED), addr[1])
            else:
                name, scope = split_scope(host)
                ours = (prefix + name, port.local[1], 0, scope) if scope else (prefix + name, *port.local[1:])
                theirs = (prefix + addr[0], *addr[1:])
            sock.bind(ours)
            sock.connect(theirs)
            while len(early_datagrams) < _MAX_EARLY_DATAGRAMS:
                try:
                    early_datagrams.append(sock.recvfrom(0xFFFF))
                except BlockingIOError:
                    break
        except BaseException:
            sock.close()
            raise
        return sock

    def _take(self, early_datagrams: list[tuple[bytes, Address]], local: str | None) -> None:
        """Handle what came to a socket, from any address, between its bind() and connect()."""
        endpoint = self._endpoint
        for datagram, addr in early_datagrams:
            if endpoint.is_closed or not datagram:
                continue
            if endpoint.port.family == stdlib.AF_INET:
                came_from: Address = (addr[0].removeprefix(_MAPPED), addr[1])
            else:
                came_from = addr if len(addr) == 4 else (_MAPPED + addr[0], addr[1], 0, 0)
            endpoint.handle_run(Run(memoryview(datagram), len(datagram), came_from, local), now=endpoint.loop.now)

    def may_reset(self, *, is_syn: bool) -> bool:
        """Whether a stray may be answered by a RESET: not if it may be for another process that shares the port. That
        may be so where peers have no sockets of their own; and for a SYN without a listener, if there is another
        process.
        """
        if self.is_supported and not is_syn:
            return True
        now = self._endpoint.loop.now
        if not self._checked_at or now >= self._checked_at + _CHECK_AGAIN_US:
            self._checked_at = now
            self._is_alone = self.is_only_socket()
        return self._is_alone

    def is_only_socket(self) -> bool:
        """Whether no other socket is bound to the port now, by /proc/net/udp; False if that cannot be read. Those that
        are connected do not count.
        """
        own_socks = [sock for sock in (self._endpoint.port.sock, self._reservation) if sock is not None]
        try:
            own = {b"%d" % os.fstat(sock.fileno()).st_ino for sock in own_socks}
        except OSError as error:
            reraise_handler_error(error)
            return False
        number = b":%04X" % self._endpoint.port.local[1]
        bound: set[bytes] = set()
        for path in _TABLES:
            try:
                with with_room(partial(io.FileIO, path)) as table:
                    for line in table.readall().splitlines():
                        columns = line.split()
                        if columns[_LOCAL].endswith(number) and columns[_REMOTE].endswith(b":0000"):
                            bound.add(columns[_INODE])
            except OSError as error:
                reraise_handler_error(error)
                if path == _TABLES[0]:
                    return False
        return bound <= own


def _local_host(local: Address, family: int) -> str:
    """The address of a peer's socket, in the form of Run.local of a port of this family."""
    host = str(local[0])
    if family == stdlib.AF_INET:
        return host.removeprefix(_MAPPED)
    if len(local) == 2:
        return _MAPPED + host
    return f"{host}%{local[3]}" if local[3] else host

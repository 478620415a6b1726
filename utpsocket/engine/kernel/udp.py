"""A UDP socket: sends and receives runs of datagrams, sets don't-fragment and collects ICMP errors.

What a kernel can do with UDP is known here alone. With UDP_SEGMENT (GSO) one call sends a whole Transmit, with UDP_GRO
one call receives a whole Run (docs/performance.md §2). Where the kernel or the interface refuses UDP_SEGMENT, the same
bytes are sent as single datagrams, and the port does not use UDP_SEGMENT any more.

Only the engine's thread calls. Sources: udp(7), ip(7) IP_RECVERR, IP_MTU_DISCOVER, IP_PKTINFO; docs/protocol.md §10.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, Final

from utpsocket.engine.faults import NO_ROOM_ERRNOS
from utpsocket.engine.interpreter import libc
from utpsocket.engine.interpreter.native import Socket, receiving
from utpsocket.engine.interpreter.originals import ctypes, os, struct
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import reraise_handler_error
from utpsocket.engine.kernel import capture, socket_filter
from utpsocket.engine.kernel.arena import ROOM_BYTES, Arena
from utpsocket.engine.kernel.high_fds import UdpSocket
from utpsocket.engine.kernel.mmsg import MAX_DATAGRAMS_IN
from utpsocket.engine.kernel.native_calls import AnyDatagrams, Datagrams, GatheringDatagrams, NativeDatagrams
from utpsocket.engine.kernel.netns import cookie
from utpsocket.engine.kernel.poller import EPOLLERR, EPOLLIN, polls
from utpsocket.engine.kernel.syscalls import NO_ADDRESS, Ancillary, Group, ReceivedAncillary
from utpsocket.protocol import Address, Run, Transmit
from utpsocket.protocol.build import IS_COMPILED
from utpsocket.protocol.packet import HEADER_BYTES
from utpsocket.protocol.pathmtu import FLOOR_BYTES
from utpsocket.protocol.runs import MAX_SEND_PACKETS, packets_per_send

if TYPE_CHECKING:
    from utpsocket.protocol.layout import Layout

_UDP_SEGMENT: Final = 103  # linux/udp.h
_UDP_GRO: Final = 104
_IP_MTU_DISCOVER: Final = 10  # linux/in.h
_IPV6_MTU_DISCOVER: Final = 23
# ip(7) IP_MTU_DISCOVER: DF is clear, the packet may be fragmented; DF is set, whatever path MTU the kernel knows.
_PMTUDISC_DONT: Final = 0
_PMTUDISC_PROBE: Final = 3
_IP_RECVERR: Final = 11
_IPV6_RECVERR: Final = 25
_IP_PKTINFO: Final = 8
_IPV6_RECVPKTINFO: Final = 49
_IPV6_PKTINFO: Final = 50
PACKET_OPTIONS: Final[dict[tuple[int, int], int | None]] = {
    (stdlib.IPPROTO_IP, stdlib.IP_TOS): 1,
    (stdlib.IPPROTO_IP, stdlib.IP_TTL): 2,
    (stdlib.IPPROTO_IPV6, 67): 67,  # IPV6_TCLASS
    (stdlib.IPPROTO_IPV6, 16): 52,  # IPV6_UNICAST_HOPS, IPV6_HOPLIMIT
    (stdlib.SOL_SOCKET, 12): None,  # SO_PRIORITY
    (stdlib.SOL_SOCKET, 36): None,  # SO_MARK
    (stdlib.SOL_SOCKET, stdlib.SO_DONTROUTE): None,
}
"""Socket options about each packet that is sent, with the type of the ancillary data that sets one for a single packet;
None: there is no such type, so the option is set for the whole port."""
_MSG_ERRQUEUE: Final = 0x2000
_SO_EE_ORIGIN_ICMP: Final = 2
_SO_EE_ORIGIN_ICMP6: Final = 3
_EXTENDED_ERROR: Final[Layout[tuple[int, int, int, int, int, int, int]]] = struct.Struct(
    "=IBBBBII"
)  # linux/errqueue.h struct sock_extended_err
ANCILLARY_BYTES: Final = stdlib.CMSG_SPACE(4) + stdlib.CMSG_SPACE(20)
# SO_RCVBUF and SO_SNDBUF that are asked for; the kernel may give less. docs/performance.md §7.
WANTED_BUFFER_BYTES: Final = 4 << 20
_INT_MAX: Final = 2**31 - 1
_INT_BYTES: Final = 4
_WILDCARDS: Final = ("0.0.0.0", "::")
_SOURCE_V4: Final = struct.Struct("=I4s4s")  # struct in_pktinfo
_SOURCE_V6: Final = struct.Struct("=16sI")  # struct in6_pktinfo
# What a packet of 1,500 bytes carries over IPv4. A longer datagram makes the slots longer, up to ROOM_BYTES.
_SLOT_BYTES: Final = 1_472
# With UDP_GRO each slot may receive 64 KiB; by feel.
_MAX_GRO_SLOTS: Final = 64
# linux/sock_diag.h: SK_MEMINFO_VARS integers, and their indices
_SO_MEMINFO: Final = 55
_MEMINFO_WORDS: Final = 9
_MEMINFO_RMEM_ALLOC: Final = 0
_MEMINFO_DROPS: Final = 8
# Datagrams for each receive of a flooded port; by feel.
_MAX_CLASSIFIED_SLOTS: Final = 128
# A datagram of so many bytes that was received unmerged, and so many in a row, mean that the peer sends without GSO;
# both by feel. Smaller ones are acks or interactive data, which nothing could be merged with.
_LARGE_BYTES: Final = 1_000
_UNMERGED_BEFORE_RECVMMSG: Final = 2
# Datagrams that are left when a connection is over, at most; by feel.
_MAX_DROPPED: Final = 64
# A plain int: `&` of an IntFlag takes 2 µs.
_MSG_TRUNC: Final = int(stdlib.MSG_TRUNC)
# With IP_RECVERR a call may fail with these for an error of an earlier datagram. ip(7)
_STALE_ERRNOS: Final = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EMSGSIZE)
# The fd number is not ours any more: the program has closed every fd that it found (os.closerange).
_FD_LOST: Final = (errno.EBADF, errno.ENOTSOCK)
_AF_UNSPEC_NAME: Final = bytes(16)  # struct sockaddr
_OFFLOAD_REFUSED: Final = (errno.EIO, errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP)


_NOWHERE: Final[tuple[Address, Address, int]] = ("0.0.0.0", 0), ("0.0.0.0", 0), 0


class IcmpError:
    """An error that an ICMP message, or the kernel itself, reported of a datagram that this port has sent.

    errno            as ip(7) IP_RECVERR or the failed call reports it
    addr             where the datagram was sent; None: not known
    quoted           the first bytes of the datagram, at most 64
    mtu_bytes        the largest UDP payload that fits, where EMSGSIZE came with an MTU; else 0
    datagram_bytes   its size, where the call that sent it failed; 0 if that is not known
    """

    __slots__ = ("addr", "datagram_bytes", "errno", "mtu_bytes", "quoted")

    def __init__(self, error: int, addr: Address | None, quoted: bytes, mtu_bytes: int, datagram_bytes: int) -> None:
        self.errno = error
        self.addr = addr
        self.quoted = quoted
        self.mtu_bytes = mtu_bytes
        self.datagram_bytes = datagram_bytes


class UnmatchedDatagrams:
    """Datagrams of one receive_classified() that belong to no established connection, in the slots that they were
    received into. Valid until any port receives again.

    syns     the slots' indices of SYNs
    others   the indices of all others
    """

    __slots__ = ("_calls", "_port", "_room", "others", "syns")

    def __init__(
        self, port: Port, calls: GatheringDatagrams, room: memoryview, syns: list[int], others: list[int]
    ) -> None:
        self._port = port
        self._calls = calls
        self._room = room
        self.syns = syns
        self.others = others

    def names(self, indices: list[int]) -> list[bytes]:
        """The source addresses of these, as the kernel writes them (struct sockaddr_in, sockaddr_in6)."""
        return self._calls.names(indices)

    def headers(self, indices: list[int]) -> list[bytes]:
        """The first HEADER_BYTES of these slots. After a shorter datagram come bytes that were in the slot before."""
        room, stride = self._room, self._port._slot_bytes
        return [room[index * stride : index * stride + HEADER_BYTES].tobytes() for index in indices]

    def run(self, index: int) -> Run:
        """One of them as a run."""
        port = self._port
        _, _, size, _, ancillary, addr = self._calls.group(index)
        _, local = port.parse_ancillary(ancillary, 0) if ancillary else (0, None)
        start = index * port._slot_bytes
        return Run(self._room[start : start + size], size, addr, local)

    def answer(self, indices: list[int], data: bytearray) -> None:
        """Send to the source of each of these datagrams 20 bytes of `data`, in the same order."""
        port = self._port
        port.sent_calls += 1
        port.sent_datagrams += self._calls.answer(indices, data)


class Port:
    """One UDP socket. It owns `sock`, which is bound or connected, and closes it.

    Parameters of Port():
        sock: a UDP socket, AF_INET or AF_INET6.
        offload: use UDP_SEGMENT and UDP_GRO where the kernel has them.
        buffer_bytes: SO_RCVBUF and SO_SNDBUF to ask for; 0: leave the kernel's defaults.
        peer: the peer's address as the program wrote it, of a connected socket; None: as getpeername() says.
        connected: (own address, peer's, cookie of the network namespace), of a connected socket, where the caller knows
            them. The socket does not block then.
        bound: (address, cookie of the network namespace), where the caller knows them. A bind() is then waiting, so
            what only the engine's thread needs (_LATE) is made when that thread first uses it. In the compiled build it
            is made at once: that takes little there, and compiled code does not ask __getattr__().

    Public attributes:
        sock, fd, family: the socket, its number and its address family.
        local: its own address as getsockname() gives it.
        namespace: the cookie of its network namespace (netns.py).
        peer: the address that it is connected to, or None.
        is_connected: it has a peer, and the kernel drops datagrams of all others.
        is_wildcard: it is bound to 0.0.0.0 or ::, and each datagram is received with its destination address.
        uses_recvmmsg: datagrams arrive unmerged, so receive_many() (recvmmsg) is to be used instead of receive().
        is_drained: the last receive_many() or receive_classified() left nothing in the kernel's queue.
        errors: ICMP and send errors since the owner last emptied the list.
        pending: (datagram, ancillary data, address) that the kernel had no room for; flush() sends them. None: there
            are none.
        receive_buffer_bytes: SO_RCVBUF as the kernel set it.
        sent_calls, sent_datagrams, received_runs, received_datagrams, truncated_datagrams: counters.

    Private attributes:
        _calls: the system calls (syscalls.py).
        _wanted: offload and buffer_bytes, for _prepare().
        _is_altered: an option was changed after _prepare().
        _has_gso, _has_gro: UDP_SEGMENT and UDP_GRO are in use.
        _unmerged_in_a_row: large unmerged datagrams in a row, as receive() counts them.
        _may_fragment: what IP_MTU_DISCOVER was last set for; None: not set yet. What every path carries leaves without
            asking, so that acks between data do not set it to and fro.
        _overhead: bytes of the IP and UDP headers, 28 or 48.
        _plain_control_bytes: of the ancillary data that comes with each datagram that was not merged.
        _ancillary, _told: the ancillary data that receive() last had, and what is in it.
        _slot_bytes: distance of the slots of receive_many().
    """

    __slots__ = (
        "_ancillary",
        "_calls",
        "_has_gro",
        "_has_gso",
        "_is_altered",
        "_unmerged_in_a_row",
        "_may_fragment",
        "_overhead",
        "_plain_control_bytes",
        "_slot_bytes",
        "_told",
        "_wanted",
        "errors",
        "family",
        "fd",
        "is_connected",
        "is_drained",
        "uses_recvmmsg",
        "is_wildcard",
        "local",
        "namespace",
        "peer",
        "pending",
        "receive_buffer_bytes",
        "received_datagrams",
        "received_runs",
        "sent_calls",
        "sent_datagrams",
        "sock",
        "truncated_datagrams",
    )
    _knows_gso: ClassVar = False  # the kernel has shown that it knows UDP_SEGMENT
    _disconnecting_unbinds: ClassVar = False  # the kernel has shown that what connect() bound is unbound by AF_UNSPEC

    def __init__(
        self,
        sock: Socket,
        *,
        offload: bool = True,
        buffer_bytes: int = WANTED_BUFFER_BYTES,
        peer: Address | None = None,
        connected: tuple[Address, Address, int] | None = None,
        bound: tuple[Address, int] | None = None,
    ) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.family = sock.family
        self._wanted = offload, buffer_bytes
        self._is_altered = False
        self.local: Address
        self.peer: Address | None
        if bound is not None:
            self.local, self.namespace = bound
            self.peer = None
        elif connected is not None:
            self.local, self.peer, self.namespace = connected
        else:
            self.local, self.namespace = sock.getsockname(), cookie(sock)
            try:
                self.peer = peer or sock.getpeername()
            except OSError as error:
                reraise_handler_error(error)
                self.peer = None
        self.is_connected = self.peer is not None
        self.is_wildcard = not self.is_connected and self.local[0] in _WILDCARDS
        if self.is_wildcard:
            # Set now and not in _prepare(): the kernel notes the destination address when a datagram arrives.
            if self.family == stdlib.AF_INET6:
                self._option(stdlib.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
            else:
                self._option(stdlib.IPPROTO_IP, _IP_PKTINFO, 1)
        if bound is None and connected is None:
            sock.setblocking(False)
        if bound is None or IS_COMPILED:
            self._prepare()

    def __getattr__(self, name: str) -> object:
        if name not in _LATE:
            raise AttributeError(name)
        self._prepare()
        found: object = getattr(self, name)
        return found

    def _prepare(self) -> None:
        offload, buffer_bytes = self._wanted
        self._overhead = 48 if self.family == stdlib.AF_INET6 else 28
        self.pending: list[tuple[bytes | bytearray, Ancillary, Address | None]] | None = None
        self._may_fragment: bool | None = None
        self._ancillary: Sequence[tuple[int, int, bytes]] = ()
        self._told: tuple[int, str | None] = 0, None
        self.errors: tuple[IcmpError, ...] = ()
        self.sent_calls = self.sent_datagrams = 0
        self.received_runs = self.received_datagrams = self.truncated_datagrams = 0
        self._has_gso = offload and (Port._knows_gso or self._kernel_has_gso())
        sock = self.sock
        if isinstance(sock, UdpSocket) and sock.prepared is not None:
            _, self._has_gro, self.receive_buffer_bytes = sock.prepared
        else:
            self._has_gro = offload and self._option(stdlib.IPPROTO_UDP, _UDP_GRO, 1)
            self._configure(buffer_bytes)
            if isinstance(sock, UdpSocket):
                sock.prepared = self._wanted, self._has_gro, self.receive_buffer_bytes
        self.uses_recvmmsg = not self._has_gro
        self.is_drained = False
        self._unmerged_in_a_row = 0
        self._slot_bytes = _SLOT_BYTES
        ancillary_bytes = ANCILLARY_BYTES if self._has_gro or self.is_wildcard else 0
        pktinfo_bytes = _SOURCE_V6.size if self.family == stdlib.AF_INET6 else _SOURCE_V4.size
        self._plain_control_bytes = stdlib.CMSG_SPACE(pktinfo_bytes) if self.is_wildcard else 0
        captured = capture.new_datagrams(self.sock, ancillary_bytes, self.peer)
        self._calls: AnyDatagrams = captured or Datagrams(self.sock, ancillary_bytes, self.peer)

    def _option(self, level: int, name: int, value: int) -> bool:
        try:
            self.sock.setsockopt(level, name, value)
        except OSError as error:
            reraise_handler_error(error)
            return False
        return True

    def _kernel_has_gso(self) -> bool:
        """Whether the kernel knows UDP_SEGMENT. It is not asked again once it does."""
        if not Port._knows_gso and self._option(stdlib.IPPROTO_UDP, _UDP_SEGMENT, 0):
            Port._knows_gso = True
        return Port._knows_gso

    def _configure(self, buffer_bytes: int) -> None:
        options = [(stdlib.IPPROTO_IP, _IP_RECVERR, 1)]
        if self.family == stdlib.AF_INET6:
            options.append((stdlib.IPPROTO_IPV6, _IPV6_RECVERR, 1))
        if buffer_bytes:
            wanted = min(buffer_bytes, _INT_MAX)
            options.append((stdlib.SOL_SOCKET, stdlib.SO_RCVBUF, wanted))
            options.append((stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, wanted))
        for level, name, value in options:
            try:
                self.sock.setsockopt(level, name, value)
            except OSError as error:
                reraise_handler_error(error)
        self.receive_buffer_bytes = self.sock.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_RCVBUF)

    # ── receiving ──

    def receive(self, buffer: memoryview) -> Run | None:
        """Receive the next run by one recvmsg(2).

        Parameters:
            buffer: writable, at least 64 KiB; the run's data is a part of it.
        Returns: the run; an empty one if an error or a truncated datagram was read instead; None if there is none.
        Raises: OSError where the fd is not this socket's any more. Other errors go to `errors`.
        Source: udp(7) UDP_GRO.
        """
        calls = self._calls
        if IS_COMPILED and isinstance(calls, NativeDatagrams):  # then it is called without looking it up
            size, ancillary, flags, addr = calls.receive(buffer)
        else:
            size, ancillary, flags, addr = calls.receive(buffer)
        if size <= 0 or flags & _MSG_TRUNC:
            if size == -errno.EAGAIN:
                self._unmerged_in_a_row = 0
                return None
            if size < 0:
                self._on_receive_error(-size)
            else:
                self.truncated_datagrams += 1
            return self._empty(buffer)
        stride, local = size, None
        if ancillary:
            if ancillary is not self._ancillary:  # nearly always the same as before, and then the same object
                self._ancillary, self._told = ancillary, self.parse_ancillary(ancillary, 0)
            stride, local = self._told
            if not stride:
                stride = size
        if self._has_gro:
            # What is not merged comes from a peer without offload, or is small and rare: two in a row are the former.
            self._unmerged_in_a_row = self._unmerged_in_a_row + 1 if stride == size >= _LARGE_BYTES else 0
            self.uses_recvmmsg = self._unmerged_in_a_row >= _UNMERGED_BEFORE_RECVMMSG
        self.received_runs += 1
        self.received_datagrams += -(-size // stride) if stride != size else 1
        return Run(buffer[:size], stride, addr, local)

    def parse_ancillary(self, ancillary: ReceivedAncillary, size: int) -> tuple[int, str | None]:
        """Read the ancillary data of a datagram.

        Parameters:
            ancillary: as socket.recvmsg() returns it.
            size: bytes received.
        Returns: the bytes of each datagram that was merged (UDP_GRO; `size` if none was), and the destination address
            (IP_PKTINFO), with "%" and the interface's number if that is link-local; None: not in the data.
        Raises: nothing.
        Source: udp(7) UDP_GRO, ip(7) IP_PKTINFO, ipv6(7) IPV6_PKTINFO.
        """
        stride, local = size, None
        for level, kind, data in ancillary:
            if kind == _UDP_GRO and level == stdlib.IPPROTO_UDP:
                stride = int.from_bytes(data[:2], "little") if len(data) < 4 else _INT.unpack_from(data)[0]
            elif kind == _IP_PKTINFO and level == stdlib.IPPROTO_IP:
                local = stdlib.inet_ntop(stdlib.AF_INET, data[4:8])
            elif kind == _IPV6_PKTINFO and level == stdlib.IPPROTO_IPV6:
                local = stdlib.inet_ntop(stdlib.AF_INET6, data[:16])
                if data[0] == 0xFE and data[1] & 0xC0 == 0x80:  # link-local: many interfaces may have this address
                    local = f"{local}%{_INT.unpack_from(data, 16)[0]}"
        return stride, local

    def receive_many(self, arena: Arena) -> list[Run]:
        """Receive what waits by one recvmmsg(2), each datagram into a slot of its own.

        Parameters:
            arena: the slots are taken from it.
        Returns: the runs, at most MAX_DATAGRAMS_IN datagrams (64 with UDP_GRO); none where nothing waits.
        Raises: OSError where the fd is not this socket's any more. Other errors go to `errors`.
        Next: is_drained is False if more may wait.
        Source: recvmmsg(2).
        """
        stride = self._slot_bytes
        room = arena.room(stride)
        max_datagrams = min(_MAX_GRO_SLOTS if self._has_gro else MAX_DATAGRAMS_IN, len(room) // stride)
        groups = self._calls.receive_many(room, stride, max_datagrams)
        if isinstance(groups, int):
            self.is_drained = groups == -errno.EAGAIN
            if not self.is_drained:
                self._on_receive_error(-groups)
            return []
        runs, longest, is_merged = self._runs(groups, room, arena)
        received = groups[-1][0] + groups[-1][1]
        arena.take(received * stride)
        # Fewer than there are slots: the queue was empty. If an error ended the call, epoll reports it (EPOLLERR).
        self.is_drained = received < max_datagrams
        if is_merged or (self._has_gro and received == 1):
            self.uses_recvmmsg = False
            self._unmerged_in_a_row = 0
        elif longest > stride:
            self._slot_bytes = min(longest + 7 & ~7, ROOM_BYTES)
        return runs

    def receive_classified(self, arena: Arena, ids: set[int]) -> tuple[list[Run], UnmatchedDatagrams]:
        """As receive_many(), for a port that is flooded: datagrams of no established connection are left in their
        slots, and only their first bytes are looked at.

        Parameters:
            arena: the slots are taken from it.
            ids: receiving ids of established connections: their two bytes in network order, read in the machine's.
        Returns: the runs of established connections, and the other datagrams.
        Raises: as receive_many().
        Next: as receive_many(). To be called only if can_classify.
        """
        calls = self._calls
        assert calls.can_classify
        stride = self._slot_bytes
        room = arena.room(stride)
        max_datagrams = min(_MAX_CLASSIFIED_SLOTS, len(room) // stride)
        found = calls.receive_classified(room, stride, max_datagrams, ids, self._plain_control_bytes)
        if isinstance(found, int):
            self.is_drained = found == -errno.EAGAIN
            if not self.is_drained:
                self._on_receive_error(-found)
            return [], UnmatchedDatagrams(self, calls, room, [], [])
        received, groups, syns, others = found
        runs, _, _ = self._runs(groups, room, arena)
        arena.take(received * stride)
        self.is_drained = received < max_datagrams
        return runs, UnmatchedDatagrams(self, calls, room, syns, others)

    def _runs(self, groups: list[Group], room: memoryview, arena: Arena) -> tuple[list[Run], int, bool]:
        """The runs among what was received into slots; the size of the longest datagram; whether any were merged."""
        stride = self._slot_bytes
        runs = []
        longest = 0
        is_merged = False
        for first, count, size, last, ancillary, addr in groups:
            longest = max(longest, size)
            gso_size, local = self.parse_ancillary(ancillary, 0) if ancillary else (0, None)
            if gso_size or size > stride:
                for index in range(first, first + count):
                    whole = last if index == first + count - 1 else size
                    runs.append(Run(self._joined(room, index, whole), gso_size or whole, addr, local))
                if gso_size:
                    is_merged = True
            elif size:
                run = Run(room[first * stride : (first + count - 1) * stride + last], stride, addr, local, size)
                if count > 1:
                    run.payload_views = arena.slots(run, arena.used + first * stride)
                runs.append(run)
            else:
                self.truncated_datagrams += 1
        self.received_runs += len(runs)
        self.received_datagrams += sum(run.count for run in runs)
        return runs, longest, is_merged

    @property
    def can_classify(self) -> bool:
        """Whether receive_classified() works here."""
        return self._calls.can_classify and not self.is_connected

    def report_icmp(self, *, wanted: bool) -> None:
        """Turn IP_RECVERR on or off. Under a flood from false addresses each answer may cause an ICMP error."""
        self._is_altered = True
        self._option(stdlib.IPPROTO_IP, _IP_RECVERR, int(wanted))
        if self.family == stdlib.AF_INET6:
            self._option(stdlib.IPPROTO_IPV6, _IPV6_RECVERR, int(wanted))

    def attach_filter(
        self,
        ids: Iterable[int],
        syn_probability: int,
        stray_probability: int,
        heavy: socket_filter.HeavySources,
        large_syn_probability: int,
    ) -> None:
        """Have the kernel drop datagrams before they are queued; without effect where it cannot.

        Parameters:
            ids: receiving ids of connections here; if the kernel has no memory for so many, all ids pass.
            syn_probability, stray_probability, heavy, large_syn_probability: as socket_filter.attach() has them.
        Raises: nothing.
        """
        self._is_altered = True
        wanted = syn_probability, stray_probability, heavy, large_syn_probability
        if not socket_filter.attach(self.sock, ids, *wanted):
            socket_filter.attach(self.sock, None, *wanted)

    def detach_filter(self) -> None:
        """Let everything through again."""
        socket_filter.detach(self.sock)

    @property
    def kernel_drops(self) -> int:
        """Datagrams that the kernel has dropped, by the filter or because the buffer was full, modulo 2³²."""
        return self._memory_figure(_MEMINFO_DROPS)

    @property
    def queued_bytes(self) -> int:
        """What waits to be received, with the kernel's bookkeeping; 0 where the kernel does not say."""
        return self._memory_figure(_MEMINFO_RMEM_ALLOC)

    def _memory_figure(self, index: int) -> int:
        try:
            figures = self.sock.getsockopt(stdlib.SOL_SOCKET, _SO_MEMINFO, 4 * _MEMINFO_WORDS)
        except OSError as error:
            reraise_handler_error(error)
            return 0
        return _INT.unpack_from(figures, 4 * index)[0] & 0xFFFFFFFF if len(figures) == 4 * _MEMINFO_WORDS else 0

    def _joined(self, room: memoryview, index: int, size: int) -> memoryview:
        """A datagram, or several merged ones, copied together if it is longer than its slot."""
        stride = self._slot_bytes
        slot = room[index * stride : index * stride + min(size, stride)]
        if size <= stride:
            return slot
        return memoryview(bytearray().join((slot, self._calls.overflow(index, size - stride))))

    def _empty(self, buffer: memoryview) -> Run:
        """An empty run, returned where an error was read: the caller is to receive again."""
        return Run(buffer[:0], 1, NO_ADDRESS)

    def _on_receive_error(self, error: int) -> None:
        """A receiving call failed: with the error of a datagram sent earlier, unless the fd is not ours any more."""
        if error in _FD_LOST:
            raise OSError(error, os.strerror(error))
        self.read_errors()

    def read_errors(self) -> None:
        """Move what the kernel's error queue holds to `errors`.

        Raises: nothing.
        Source: ip(7) IP_RECVERR, MSG_ERRQUEUE.
        """
        addr: Address | None
        while True:
            try:
                quoted, ancillary, _, addr = self.sock.recvmsg(64, 512, _MSG_ERRQUEUE)
            except OSError as error:
                reraise_handler_error(error)
                return
            for _, kind, data in ancillary:
                if kind in (_IP_RECVERR, _IPV6_RECVERR) and len(data) >= _EXTENDED_ERROR.size:
                    code, origin, _, _, _, info, _ = _EXTENDED_ERROR.unpack_from(data)
                    mtu_bytes = max(0, info - self._overhead) if code == errno.EMSGSIZE else 0
                    if origin in (_SO_EE_ORIGIN_ICMP, _SO_EE_ORIGIN_ICMP6) or code == errno.EMSGSIZE:
                        self.errors += (IcmpError(code, addr or self.peer, quoted, mtu_bytes, 0),)

    # ── sending ──

    def option(self, level: int, name: int) -> bytes:
        """An option's value, the bytes of an int. Raises OSError. getsockopt(2)"""
        return self.sock.getsockopt(level, name, _INT_BYTES)

    def set_option(self, level: int, name: int, value: bytes) -> None:
        """Set an option that the kernel has accepted from the same program on another socket. If the program has given
        up the right to set it meanwhile, nothing is changed. Raises other OSErrors. setsockopt(2)
        """
        self._is_altered = True
        try:
            self.sock.setsockopt(level, name, value)
        except PermissionError:
            pass  # the program has given up the right

    def source(self, local_ip: str) -> Ancillary:
        """Ancillary data that makes the datagrams of a wildcard port leave with this source address.

        Parameters:
            local_ip: as in Run.local.
        Returns: ancillary data for send().
        Raises: OSError where that is no address of the port's family.
        Source: ip(7) IP_PKTINFO, ipv6(7) IPV6_PKTINFO.
        """
        if self.family == stdlib.AF_INET6:
            host, scope = split_scope(local_ip)
            packed = _SOURCE_V6.pack(stdlib.inet_pton(stdlib.AF_INET6, host), scope)
            return [(stdlib.IPPROTO_IPV6, _IPV6_PKTINFO, packed)]
        packed = _SOURCE_V4.pack(0, stdlib.inet_pton(stdlib.AF_INET, local_ip), bytes(4))
        return [(stdlib.IPPROTO_IP, _IP_PKTINFO, packed)]

    @property
    def is_blocked(self) -> bool:
        """Whether the kernel's send buffer was full, so that send() only queues until flush() returns True."""
        return bool(self.pending)

    def send(self, transmit: Transmit, source: Ancillary) -> None:  # noqa: C901  # a lone datagram's part would be a call
        """Send a run of datagrams. What the kernel has no room for is copied to `pending`.

        Parameters:
            transmit: datagrams of equal size (the last may be shorter), their address, and whether DF is to be set.
            source: ancillary data of source(), or an empty list.
        Raises: nothing; errors go to `errors`.
        Next: flush() when epoll reports EPOLLOUT, if is_blocked.
        Source: udp(7) UDP_SEGMENT; sendmmsg(2).
        """
        count = transmit.count
        self.sent_datagrams += count
        if transmit.may_fragment is not self._may_fragment and len(transmit.data) > FLOOR_BYTES:
            self._fragment(transmit.may_fragment)
        addr = None if self.is_connected else transmit.addr
        if count == 1:
            data = transmit.data
            if self.pending:
                self._wait_for_room([data], source, addr)
                return
            self.sent_calls += 1
            calls = self._calls
            if IS_COMPILED and isinstance(calls, NativeDatagrams):  # as in receive()
                error = calls.send(data, 0, len(data), source, addr)
            else:
                error = calls.send(data, 0, len(data), source, addr)
            if error:
                self._on_send_error(error, data, source, addr)
            return
        sent = self._send_spans(transmit, source, addr)
        if sent >= count:
            return
        if self._has_gso:
            segment = transmit.datagram_bytes
            ancillary = self._gso_ancillary(segment, source)
            packets_per_call = packets_per_send(segment)
            while sent < count:
                stop = min((sent + packets_per_call) * segment, len(transmit.data))
                error = self._sendmsg(transmit.data, sent * segment, stop, ancillary, addr)
                if error:
                    break
                sent += packets_per_call
            if sent >= count:
                return
            if error in NO_ROOM_ERRNOS:
                self._wait_for_room(transmit.datagrams()[sent:], source, addr)
                return
            if error in _OFFLOAD_REFUSED:
                self._has_gso = False
            elif error != errno.EMSGSIZE:
                self._record_send_error(error, transmit.datagrams()[sent], addr)
                return
        calls = self._calls
        if calls.can_send_many:
            self._send_many(calls, transmit, sent, source, addr)
        else:
            for datagram in transmit.datagrams()[sent:]:
                self._send_one(datagram, source, addr)

    def _gso_ancillary(self, segment: int, source: Ancillary) -> Ancillary:
        """Ancillary data of a UDP_SEGMENT run."""
        cmsg = _segment_cmsg.get(segment)
        if cmsg is None:
            cmsg = [(stdlib.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("=H", segment))]
            _segment_cmsg[segment] = cmsg
        return cmsg + source if source else cmsg

    def _send_spans(self, transmit: Transmit, source: Ancillary, addr: Address | None) -> int:
        """Send a run whose payload was not copied, if it is one. Returns how many datagrams have left: what fails is
        copied, to be sent again, and the error is looked at then.
        """
        spans, calls = transmit.spans, self._calls
        if spans is None:
            return 0
        segment, count = transmit.datagram_bytes, transmit.count
        has_gso = self._has_gso
        sent = 0
        if not self.pending and isinstance(calls, NativeDatagrams):
            ancillary = self._gso_ancillary(segment, source) if has_gso else source
            packets_per_call = packets_per_send(segment) if has_gso else MAX_SEND_PACKETS
            while sent < count:
                self.sent_calls += 1
                code = calls.send_spans(transmit, spans, sent, min(packets_per_call, count - sent), ancillary, addr)
                if code <= 0:
                    break
                sent += code
        if sent < count:
            transmit.compose()
        return sent

    def _send_many(
        self, calls: GatheringDatagrams, transmit: Transmit, sent: int, source: Ancillary, addr: Address | None
    ) -> None:
        """Send all but the first `sent` datagrams by sendmmsg(2)."""
        data, segment = transmit.data, transmit.datagram_bytes
        while sent < transmit.count:
            count = 0
            if not self.pending:
                self.sent_calls += 1
                count = calls.send_many(data, sent * segment, segment, source, addr)
            if count <= 0:
                # The next datagram failed: _send_one() finds the error, and deals with it.
                self._send_one(bytes(data[sent * segment : (sent + 1) * segment]), source, addr)
                count = 1
            sent += count

    def _wait_for_room(self, datagrams: Sequence[bytes | bytearray], source: Ancillary, addr: Address | None) -> None:
        if self.pending is None:
            self.pending = []
        self.pending += [(datagram, source, addr) for datagram in datagrams]

    def _send_one(self, datagram: bytes | bytearray, source: Ancillary, addr: Address | None) -> None:
        if self.pending:
            self._wait_for_room([datagram], source, addr)
            return
        self.sent_calls += 1
        error = self._calls.send(datagram, 0, len(datagram), source, addr)
        if error:
            self._on_send_error(error, datagram, source, addr)

    def _on_send_error(self, error: int, datagram: bytes | bytearray, source: Ancillary, addr: Address | None) -> None:
        """Sending this datagram has failed with this errno."""
        if error in _STALE_ERRNOS:
            error = self._send_again(error, datagram, 0, len(datagram), source, addr)
        if error in NO_ROOM_ERRNOS:
            self._wait_for_room([datagram], source, addr)
        elif error:
            self._record_send_error(error, datagram, addr)

    def _sendmsg(
        self, data: bytes | bytearray, start: int, stop: int, ancillary: Ancillary, addr: Address | None
    ) -> int:
        """Send one datagram, or one UDP_SEGMENT run; return the errno, 0 for none."""
        self.sent_calls += 1
        code = self._calls.send(data, start, stop, ancillary, addr)
        return self._send_again(code, data, start, stop, ancillary, addr) if code in _STALE_ERRNOS else code

    def _send_again(
        self, code: int, data: bytes | bytearray, start: int, stop: int, ancillary: Ancillary, addr: Address | None
    ) -> int:
        """_sendmsg() after the call has failed with this errno, perhaps an error of an earlier datagram: that is
        collected, and the call is made again.
        """
        for attempt in range(3):
            if attempt:
                self.sent_calls += 1
                code = self._calls.send(data, start, stop, ancillary, addr)
                if code not in _STALE_ERRNOS:
                    return code
            if code == errno.EMSGSIZE:
                if attempt:
                    return code
                # It may be an ICMP error about an earlier datagram, which the call has taken: then the next passes.
                continue
            known = len(self.errors)
            self.read_errors()
            if len(self.errors) == known and code != errno.ECONNREFUSED:
                return code
        # Three errors of earlier datagrams in a row: this one counts as lost, and `errors` has the reasons.
        return 0

    def _record_send_error(self, error: int, datagram: bytes | bytearray, addr: Address | None) -> None:
        if error == errno.EMSGSIZE:
            # With IP_RECVERR the kernel reports it a second time, to the next call, unless it is read here.
            self.sock.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_ERROR)
        mtu_bytes = 0
        self.errors += (IcmpError(error, addr or self.peer, bytes(datagram[:64]), mtu_bytes, len(datagram)),)

    def flush(self) -> bool:
        """Send what `pending` holds.

        Returns: True if nothing is left, and send() sends at once again; False if the kernel's buffer is still full.
        Raises: nothing; errors go to `errors`.
        """
        while self.pending:
            datagram, source, addr = self.pending[0]
            error = self._sendmsg(datagram, 0, len(datagram), source, addr)
            if error in NO_ROOM_ERRNOS:
                return False
            del self.pending[0]
            if not self.pending:
                self.pending = None
            if error:
                self._record_send_error(error, datagram, addr)
        return True

    def _fragment(self, may_fragment: bool) -> None:
        self._may_fragment = may_fragment
        self._is_altered = True
        mode = _PMTUDISC_DONT if may_fragment else _PMTUDISC_PROBE
        self._option(stdlib.IPPROTO_IP, _IP_MTU_DISCOVER, mode)
        if self.family == stdlib.AF_INET6:
            self._option(stdlib.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, mode)

    def become_unconnected(self) -> bool:
        """Make the socket of a connection that is over as a new one is, but for the options that _prepare() has set:
        unconnected, bound to nothing, nothing unread, no error pending.

        Returns: False if it cannot be made so, or if another option was changed: then close().
        Raises: nothing.
        Source: connect(2) AF_UNSPEC.
        """
        sock = self.sock
        if self._is_altered or self.pending or libc.connect(self.fd, _AF_UNSPEC_NAME, len(_AF_UNSPEC_NAME)):
            return False
        if polls(sock, EPOLLIN | EPOLLERR):
            drop = receiving(self.fd, 1)
            for _ in range(_MAX_DROPPED):
                if drop() < 0 and ctypes.get_errno() == errno.EAGAIN:
                    break
            self.read_errors()
            if polls(sock, EPOLLIN | EPOLLERR):
                return False
        if not Port._disconnecting_unbinds:  # where it did once, it always does
            host, number = sock.getsockname()[:2]
            Port._disconnecting_unbinds = host in _WILDCARDS and not number
        return Port._disconnecting_unbinds

    def disconnect(self) -> None:
        """Dissolve the association of a socket that the owner has connected after bind(). It keeps the port of bind(),
        and the address if that is no wildcard; if it is one, the socket is in no group of SO_REUSEPORT afterwards, and
        the kernel prefers it to the others.

        Raises: OSError.
        Source: connect(2) AF_UNSPEC.
        """
        if libc.connect(self.fd, _AF_UNSPEC_NAME, len(_AF_UNSPEC_NAME)):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()

    def close_fds(self) -> None:
        """As close()."""
        self.close()

    def detach_fds(self) -> None:
        """Forget the fd without closing it: the number belongs to something else by now."""
        self.sock.detach()


_segment_cmsg: Final[dict[int, Ancillary]] = {}
"""Ancillary data of UDP_SEGMENT, by segment size."""
_INT: Final[Layout[tuple[int]]] = struct.Struct("=i")
_LATE: Final = frozenset(
    {
        "_ancillary",
        "_calls",
        "_has_gro",
        "_has_gso",
        "_may_fragment",
        "_overhead",
        "_plain_control_bytes",
        "_slot_bytes",
        "_told",
        "_unmerged_in_a_row",
        "errors",
        "is_drained",
        "pending",
        "receive_buffer_bytes",
        "received_datagrams",
        "received_runs",
        "sent_calls",
        "sent_datagrams",
        "truncated_datagrams",
        "uses_recvmmsg",
    }
)
"""What _prepare() makes."""


def prepare(sock: UdpSocket, *, offload: bool, buffer_bytes: int) -> None:
    """Set the options of a port on a UDP socket that is not one yet. Parameters as Port()'s."""
    Port(sock, offload=offload, buffer_bytes=buffer_bytes, connected=_NOWHERE)


def split_scope(local_ip: str) -> tuple[str, int]:
    """The two parts of Run.local: the address, and the interface's number if the address is link-local, else 0."""
    host, _, scope = local_ip.partition("%")
    return host, int(scope or 0)

"""The kernel's UDP socket: runs in, runs out, don't-fragment, ICMP errors; and plain datagrams where it lacks those.

Separate because it is the only place that knows what a kernel can do. UDP_SEGMENT sends a whole Transmit in one call
and UDP_GRO receives a whole Run (docs/performance.md §2); a kernel or a path that refuses gets the same bytes in
pieces, and is not asked again.

Only the engine's thread calls. Sources: udp(7), ip(7) IP_RECVERR, IP_MTU_DISCOVER, IP_PKTINFO; docs/protocol.md §10.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Any, Final

from utpsocket.engine.faults import NO_ROOM
from utpsocket.engine.interpreter.originals import os, struct
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import let_pass
from utpsocket.engine.kernel import socket_filter
from utpsocket.engine.kernel.arena import ROOM_BYTES, Arena
from utpsocket.engine.kernel.fd_names import Address
from utpsocket.engine.kernel.mmsg import MOST_IN
from utpsocket.engine.kernel.netns import cookie
from utpsocket.engine.kernel.syscalls import Datagrams
from utpsocket.protocol import Run, Transmit
from utpsocket.protocol.packet import HEADER_BYTES
from utpsocket.protocol.runs import packets_per_send

_UDP_SEGMENT: Final = 103  # linux/udp.h
_UDP_GRO: Final = 104
_IP_MTU_DISCOVER: Final = 10  # linux/in.h
_IPV6_MTU_DISCOVER: Final = 23
_PMTUDISC_DONT: Final = 0  # may be fragmented on the way
_PMTUDISC_PROBE: Final = 3  # don't-fragment set, and the kernel's own idea of the path ignored
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
"""What is said of each packet, and by which kind of ancillary data for one packet alone; None: for all of a port."""
_MSG_ERRQUEUE: Final = 0x2000
_SO_EE_ORIGIN_ICMP: Final = 2
_SO_EE_ORIGIN_ICMP6: Final = 3
_EXTENDED_ERROR: Final = struct.Struct("=IBBBBII")  # linux/errqueue.h struct sock_extended_err
ANCILLARY_BYTES: Final = stdlib.CMSG_SPACE(4) + stdlib.CMSG_SPACE(20)
WANTED_BUFFER_BYTES: Final = 4 << 20  # docs/performance.md §7: ask for 4 MiB, then look what was given
_INT_MAX: Final = 2**31 - 1
_INT_BYTES: Final = 4
_WILDCARDS: Final = ("0.0.0.0", "::")
_SOURCE_V4: Final = struct.Struct("=I4s4s")  # struct in_pktinfo
_SOURCE_V6: Final = struct.Struct("=16sI")  # struct in6_pktinfo
_SLOT_BYTES: Final = 1_472  # what an Ethernet's packet carries; a path that proves larger ones gets larger slots
_MOST_GRO_SLOTS: Final = 64  # each may turn out to hold 64 KiB after all
_SO_MEMINFO: Final = 55  # linux/sock_diag.h: SK_MEMINFO_VARS words, of which SK_MEMINFO_DROPS
_MEMINFO_WORDS: Final = 9
_MEMINFO_DROPS: Final = 8
_MOST_SIFTED_SLOTS: Final = 128
_LARGE_BYTES: Final = 1_000
_LONE_IN_A_ROW: Final = 2
_MSG_TRUNC: Final = int(stdlib.MSG_TRUNC)  # an IntFlag's & costs two microseconds
# Met by an earlier datagram, all of them perhaps.
_STALE: Final = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EMSGSIZE)
_ROBBED: Final = (errno.EBADF, errno.ENOTSOCK)  # the program has closed every fd that it found
_OFFLOAD_REFUSED: Final = (errno.EIO, errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP)


class IcmpError:
    """What an ICMP message, or the kernel itself, said about one datagram of ours."""

    __slots__ = ("addr", "datagram_bytes", "errno", "mtu_bytes", "quoted")

    def __init__(self, error: int, addr: object, quoted: bytes, mtu_bytes: int, datagram_bytes: int) -> None:
        self.errno = error
        self.addr = addr
        self.quoted = quoted
        self.mtu_bytes = mtu_bytes
        self.datagram_bytes = datagram_bytes


class Noise:
    """Datagrams that no established connection can want, where they lie: valid until any port receives again.

    syns, others   their indices
    """

    __slots__ = ("_port", "_room", "others", "syns")

    def __init__(self, port: Port, room: memoryview, syns: list[int], others: list[int]) -> None:
        self._port = port
        self._room = room
        self.syns = syns
        self.others = others

    def names(self, indices: list[int]) -> list[bytes]:
        """Who sent these, as the kernel writes it."""
        names: list[bytes] = self._port._calls.names(indices)
        return names

    def heads(self, indices: list[int]) -> list[bytes]:
        """The headers of these; of a shorter datagram, what happened to be behind it, too."""
        room, stride = self._room, self._port._slot_bytes
        return [room[index * stride : index * stride + HEADER_BYTES].tobytes() for index in indices]

    def run(self, index: int) -> Run:
        """One of them as a run."""
        port = self._port
        _, _, size, _, ancillary, addr = port._calls.group(index)
        _, local = port.parse_ancillary(ancillary, 0) if ancillary else (0, None)
        start = index * port._slot_bytes
        return Run(self._room[start : start + size], size, addr, local)

    def answer(self, indices: list[int], data: bytearray) -> None:
        """Send each piece of 20 bytes to the sender of one of these."""
        port = self._port
        port.sent_calls += 1
        port.sent_datagrams += port._calls.answer(indices, data)


class Port:
    """One UDP socket. Takes ownership of `sock`, which is bound or connected.

    Where `bound`, its address and namespace, is given, the caller waits in bind(): what only the engine's thread needs
    is made and set when that thread first asks for any of it (_LATE).

    local           its own address as the kernel gives it
    namespace       the network namespace it is in, see netns.py
    peer            to whom it is connected; may be given in the words of another family's sockets
    is_connected    to one peer: the kernel then filters strangers
    is_gathering    datagrams come one by one, so use receive_many() instead of receive()
    is_drained      nothing was left after the last receive_many()
    errors          ICMP errors met while sending, for whoever owns the port to collect
    pending         datagrams that the kernel would not take yet
    """

    __slots__ = (
        "_calls",
        "_has_gro",
        "_has_gso",
        "_lone",
        "_may_fragment",
        "_overhead",
        "_plain_control_bytes",
        "_segment_cmsg",
        "_slot_bytes",
        "_wanted",
        "errors",
        "family",
        "fd",
        "is_connected",
        "is_drained",
        "is_gathering",
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

    def __init__(
        self,
        sock: Any,
        *,
        offload: bool = True,
        buffer_bytes: int = WANTED_BUFFER_BYTES,
        peer: Any = None,
        bound: tuple[Address, int] | None = None,
    ) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.family = sock.family
        self._wanted = offload, buffer_bytes
        self.local: Address
        self.peer: Any
        if bound is not None:
            self.local, self.namespace = bound
            self.peer = None
        else:
            self.local, self.namespace = sock.getsockname(), cookie(sock)
            try:
                self.peer = peer or sock.getpeername()
            except OSError as error:
                let_pass(error)
                self.peer = None
        self.is_connected = self.peer is not None
        self.is_wildcard = not self.is_connected and self.local[0] in _WILDCARDS
        if self.is_wildcard:
            # The kernel notes where a datagram was sent to as it arrives.
            if self.family == stdlib.AF_INET6:
                self._option(stdlib.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
            else:
                self._option(stdlib.IPPROTO_IP, _IP_PKTINFO, 1)
        if bound is None:
            sock.setblocking(False)
            self._prepare()

    def __getattr__(self, name: str) -> Any:
        if name not in _LATE:
            raise AttributeError(name)
        self._prepare()
        return getattr(self, name)

    def _prepare(self) -> None:
        offload, buffer_bytes = self._wanted
        self._overhead = 48 if self.family == stdlib.AF_INET6 else 28
        self.pending: list[tuple[bytes | bytearray, list[Any], object]] = []
        self._may_fragment: bool | None = None
        self._segment_cmsg: dict[int, list[Any]] = {}
        self.errors: list[IcmpError] = []
        self.sent_calls = self.sent_datagrams = 0
        self.received_runs = self.received_datagrams = self.truncated_datagrams = 0
        self._has_gso = offload and self._option(stdlib.IPPROTO_UDP, _UDP_SEGMENT, 0)
        self._has_gro = offload and self._option(stdlib.IPPROTO_UDP, _UDP_GRO, 1)
        self.is_gathering = not self._has_gro
        self.is_drained = False
        self._lone = 0
        self._slot_bytes = _SLOT_BYTES
        self._configure(buffer_bytes)
        ancillary_bytes = ANCILLARY_BYTES if self._has_gro or self.is_wildcard else 0
        pktinfo_bytes = _SOURCE_V6.size if self.family == stdlib.AF_INET6 else _SOURCE_V4.size
        self._plain_control_bytes = stdlib.CMSG_SPACE(pktinfo_bytes) if self.is_wildcard else 0
        self._calls = Datagrams(self.sock, ancillary_bytes, self.peer)

    def _option(self, level: int, name: int, value: int) -> bool:
        try:
            self.sock.setsockopt(level, name, value)
        except OSError as error:
            let_pass(error)
            return False
        return True

    def _configure(self, buffer_bytes: int) -> None:
        if buffer_bytes:
            wanted = min(buffer_bytes, _INT_MAX)
            self._option(stdlib.SOL_SOCKET, stdlib.SO_RCVBUF, wanted)
            self._option(stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, wanted)
        self.receive_buffer_bytes = self.sock.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_RCVBUF)
        self._option(stdlib.IPPROTO_IP, _IP_RECVERR, 1)
        if self.family == stdlib.AF_INET6:
            self._option(stdlib.IPPROTO_IPV6, _IPV6_RECVERR, 1)

    # ── in ──

    def receive(self, buffer: memoryview) -> Run | None:
        """The next run, in `buffer` (at least 64 KiB), or None when there is none. Errors go to `errors`."""
        size, ancillary, flags, addr = self._calls.receive(buffer)
        if size < 0:
            if size == -errno.EAGAIN:
                self._lone = 0
                return None
            self._on_receive_error(-size)
            return self._empty(buffer)
        if flags & _MSG_TRUNC or not size:
            self.truncated_datagrams += 1
            return self._empty(buffer)
        stride, local = self.parse_ancillary(ancillary, size)
        if self._has_gro:
            # What is not merged comes from a peer without offload, or is small and rare: two in a row tell which.
            self._lone = self._lone + 1 if stride == size >= _LARGE_BYTES else 0
            self.is_gathering = self._lone >= _LONE_IN_A_ROW
        self.received_runs += 1
        self.received_datagrams += -(-size // stride) if stride != size else 1
        return Run(buffer[:size], stride, addr, local)

    def parse_ancillary(self, ancillary: Any, size: int) -> tuple[int, str | None]:
        """From ancillary data: the size of each datagram in what was received, and the address it was sent to."""
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
        """What waits, up to an iteration's worth, each datagram in a slot of its own; then look at is_drained. Errors
        go to `errors`. Memory is taken from the arena.
        """
        stride = self._slot_bytes
        room = arena.room(stride)
        most = min(_MOST_GRO_SLOTS if self._has_gro else MOST_IN, len(room) // stride)
        groups = self._calls.receive_many(room, stride, most)
        if isinstance(groups, int):
            self.is_drained = groups == -errno.EAGAIN
            if not self.is_drained:
                self._on_receive_error(-groups)
            return []
        runs, longest, is_merged = self._runs(groups, room, arena)
        received = groups[-1][0] + groups[-1][1]
        arena.take(received * stride)
        # Fewer than there was room for: the queue was empty. An error that cut it short comes with an event of its own.
        self.is_drained = received < most
        if is_merged or (self._has_gro and received == 1):
            self.is_gathering = False
            self._lone = 0
        elif longest > stride:
            self._slot_bytes = min(longest + 7 & ~7, ROOM_BYTES)
        return runs

    def receive_sifted(self, arena: Arena, ids: set[int]) -> tuple[list[Run], Noise]:
        """As receive_many(), for a port that is flooded: what no established connection can want is kept apart, and
        no more is done with it than to look at its first bytes. Only where can_sift.

        ids   of established connections, in the byte order of the wire read in the machine's
        """
        stride = self._slot_bytes
        room = arena.room(stride)
        most = min(_MOST_SIFTED_SLOTS, len(room) // stride)
        found = self._calls.receive_sifted(room, stride, most, ids, self._plain_control_bytes)
        if isinstance(found, int):
            self.is_drained = found == -errno.EAGAIN
            if not self.is_drained:
                self._on_receive_error(-found)
            return [], Noise(self, room, [], [])
        received, groups, syns, others = found
        runs, _, _ = self._runs(groups, room, arena)
        arena.take(received * stride)
        self.is_drained = received < most
        return runs, Noise(self, room, syns, others)

    def _runs(self, groups: list[Any], room: memoryview, arena: Arena) -> tuple[list[Run], int, bool]:
        """What was received into slots; the longest datagram, and whether the kernel has merged any."""
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
                    run.payload_views = arena.slots(run, first * stride)
                runs.append(run)
            else:
                self.truncated_datagrams += 1
        self.received_runs += len(runs)
        self.received_datagrams += sum(run.count for run in runs)
        return runs, longest, is_merged

    @property
    def can_sift(self) -> bool:
        """Whether receive_sifted() works here."""
        return bool(self._calls.can_sift) and not self.is_connected

    def tell_icmp(self, *, wanted: bool) -> None:
        """Whether to be told of ICMP errors. Under a flood with false addresses each answer may make one."""
        self._option(stdlib.IPPROTO_IP, _IP_RECVERR, int(wanted))
        if self.family == stdlib.AF_INET6:
            self._option(stdlib.IPPROTO_IPV6, _IPV6_RECVERR, int(wanted))

    def attach_sieve(self, ids: Iterable[int], *wanted: Any) -> None:
        """Have the kernel drop datagrams before they are queued, as sieve.attach() says; nothing where it cannot."""
        if not socket_filter.attach(self.sock, ids, *wanted):
            socket_filter.attach(self.sock, None, *wanted)

    def detach_sieve(self) -> None:
        """Let everything through again."""
        socket_filter.detach(self.sock)

    @property
    def kernel_drops(self) -> int:
        """How many datagrams the kernel has dropped, by the sieve or for want of room, modulo 2³²."""
        try:
            figures = self.sock.getsockopt(stdlib.SOL_SOCKET, _SO_MEMINFO, 4 * _MEMINFO_WORDS)
        except OSError as error:
            let_pass(error)
            return 0
        return (
            _INT.unpack_from(figures, 4 * _MEMINFO_DROPS)[0] & 0xFFFFFFFF if len(figures) == 4 * _MEMINFO_WORDS else 0
        )

    def _joined(self, room: memoryview, index: int, size: int) -> memoryview:
        """A datagram, or several merged into one, that may be longer than its slot."""
        stride = self._slot_bytes
        slot = room[index * stride : index * stride + min(size, stride)]
        if size <= stride:
            return slot
        return memoryview(bytearray().join((slot, self._calls.overflow(index, size - stride))))

    def _empty(self, buffer: memoryview) -> Run:
        """Something was read that is no datagram: ask again."""
        return Run(buffer[:0], 1, None)

    def _on_receive_error(self, error: int) -> None:
        """A call that receives said this: an error of an earlier datagram's, unless the fd is not ours any more."""
        if error in _ROBBED:
            raise OSError(error, os.strerror(error))
        self.read_errors()

    def read_errors(self) -> None:
        """Move what the kernel's error queue holds to `errors`. ip(7) IP_RECVERR."""
        while True:
            try:
                quoted, ancillary, _, addr = self.sock.recvmsg(64, 512, _MSG_ERRQUEUE)
            except OSError as error:
                let_pass(error)
                return
            for _, kind, data in ancillary:
                if kind in (_IP_RECVERR, _IPV6_RECVERR) and len(data) >= _EXTENDED_ERROR.size:
                    code, origin, _, _, _, info, _ = _EXTENDED_ERROR.unpack_from(data)
                    mtu_bytes = max(0, info - self._overhead) if code == errno.EMSGSIZE else 0
                    if origin in (_SO_EE_ORIGIN_ICMP, _SO_EE_ORIGIN_ICMP6) or code == errno.EMSGSIZE:
                        self.errors.append(IcmpError(code, addr or self.peer, quoted, mtu_bytes, 0))

    # ── out ──

    def option(self, level: int, name: int) -> bytes:
        """An option as the kernel has it, an int."""
        value: bytes = self.sock.getsockopt(level, name, _INT_BYTES)
        return value

    def set_option(self, level: int, name: int, value: bytes) -> None:
        """Set one that the kernel has found no fault with on another socket, nor does here but for lack of rights."""
        try:
            self.sock.setsockopt(level, name, value)
        except PermissionError:
            pass  # the program may have given them up

    def source(self, local_ip: str) -> list[Any]:
        """Ancillary data that makes a wildcard port's datagrams leave from `local_ip`, told as Run.local is."""
        if self.family == stdlib.AF_INET6:
            host, scope = parted(local_ip)
            packed = _SOURCE_V6.pack(stdlib.inet_pton(stdlib.AF_INET6, host), scope)
            return [(stdlib.IPPROTO_IPV6, _IPV6_PKTINFO, packed)]
        packed = _SOURCE_V4.pack(0, stdlib.inet_pton(stdlib.AF_INET, local_ip), bytes(4))
        return [(stdlib.IPPROTO_IP, _IP_PKTINFO, packed)]

    @property
    def is_blocked(self) -> bool:
        """The kernel's send buffer is full: nothing may be sent until flush() says True."""
        return bool(self.pending)

    def send(self, transmit: Transmit, source: list[Any]) -> None:
        """Put it on the wire, or keep a copy for flush() while the kernel takes no more: never lost here.

        What the network says about it goes to `errors`.
        """
        count = transmit.count
        self.sent_datagrams += count
        if transmit.may_fragment is not self._may_fragment:
            self._fragment(transmit.may_fragment)
        addr = None if self.is_connected else transmit.addr
        if count == 1:
            self._send_one(transmit.data, source, addr)
            return
        sent = 0
        if self._has_gso:
            segment = transmit.datagram_bytes
            cmsg = self._segment_cmsg.get(segment)
            if cmsg is None:
                cmsg = [(stdlib.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("=H", segment))]
                self._segment_cmsg[segment] = cmsg
            ancillary = cmsg + source if source else cmsg
            most = packets_per_send(segment)
            while sent < count:
                stop = min((sent + most) * segment, len(transmit.data))
                error = self._sendmsg(transmit.data, sent * segment, stop, ancillary, addr)
                if error:
                    break
                sent += most
            if sent >= count:
                return
            if error in NO_ROOM:
                self.pending += [(datagram, source, addr) for datagram in transmit.datagrams()[sent:]]
                return
            if error in _OFFLOAD_REFUSED:
                self._has_gso = False
            elif error != errno.EMSGSIZE:
                self._record_send_error(error, transmit.datagrams()[sent], addr)
                return
        if self._calls.can_send_many:
            self._send_many(transmit, sent, source, addr)
        else:
            for datagram in transmit.datagrams()[sent:]:
                self._send_one(datagram, source, addr)

    def _send_many(self, transmit: Transmit, sent: int, source: list[Any], addr: object) -> None:
        """All but the first `sent` datagrams, in as few calls as it takes."""
        data, segment = transmit.data, transmit.datagram_bytes
        while sent < transmit.count:
            count = 0
            if not self.pending:
                self.sent_calls += 1
                count = self._calls.send_many(data, sent * segment, segment, source, addr)
            if count <= 0:
                # The next one failed, and alone it fares as any other.
                self._send_one(bytes(data[sent * segment : (sent + 1) * segment]), source, addr)
                count = 1
            sent += count

    def _send_one(self, datagram: bytes | bytearray, source: list[Any], addr: object) -> None:
        if self.pending:
            self.pending.append((datagram, source, addr))
            return
        error = self._sendmsg(datagram, 0, len(datagram), source, addr)
        if error in NO_ROOM:
            self.pending.append((datagram, source, addr))
        elif error:
            self._record_send_error(error, datagram, addr)

    def _sendmsg(self, data: bytes | bytearray, start: int, stop: int, ancillary: list[Any], addr: object) -> int:
        """One system call; the errno, 0 for none. An error an earlier datagram met is collected and passed over."""
        for attempt in range(3):
            self.sent_calls += 1
            code: int = self._calls.send(data, start, stop, ancillary, addr)
            if code not in _STALE:
                return code
            if code == errno.EMSGSIZE:
                if attempt:
                    return code
                continue  # a router may have said so of an earlier one, which stays in the error queue: then it passes
            known = len(self.errors)
            self.read_errors()
            if len(self.errors) == known and code != errno.ECONNREFUSED:
                return code
        return 0  # three stale errors in a row: this datagram is as good as lost, and the errors tell why

    def _record_send_error(self, error: int, datagram: bytes | bytearray, addr: object) -> None:
        if error == errno.EMSGSIZE:
            # With IP_RECVERR the kernel would say so once more, of the next datagram, whatever its size.
            self.sock.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_ERROR)
        mtu_bytes = 0
        self.errors.append(IcmpError(error, addr or self.peer, bytes(datagram[:64]), mtu_bytes, len(datagram)))

    def flush(self) -> bool:
        """Send what was kept; True when the port takes new datagrams again."""
        while self.pending:
            datagram, source, addr = self.pending[0]
            error = self._sendmsg(datagram, 0, len(datagram), source, addr)
            if error in NO_ROOM:
                return False
            del self.pending[0]
            if error:
                self._record_send_error(error, datagram, addr)
        return True

    def _fragment(self, may_fragment: bool) -> None:
        self._may_fragment = may_fragment
        mode = _PMTUDISC_DONT if may_fragment else _PMTUDISC_PROBE
        self._option(stdlib.IPPROTO_IP, _IP_MTU_DISCOVER, mode)
        if self.family == stdlib.AF_INET6:
            self._option(stdlib.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, mode)

    def close(self) -> None:
        """Give the port back to the kernel."""
        self.sock.close()

    close_fds = close

    def detach_fds(self) -> None:
        """Forget the fd, whose number is somebody else's by now."""
        self.sock.detach()


_INT: Final = struct.Struct("=i")
_LATE: Final = frozenset(Port.__slots__) - {
    "_wanted",
    "family",
    "fd",
    "is_connected",
    "is_wildcard",
    "local",
    "namespace",
    "peer",
    "sock",
}


def parted(local_ip: str) -> tuple[str, int]:
    """What Run.local says: the address, and the number of the interface where it is a link-local one, else 0."""
    host, _, scope = local_ip.partition("%")
    return host, int(scope or 0)

"""Socket options: what the kernel thinks of them, and what uTP makes of them.

Separate because it is a table. Which options a stream has, which values they take, what they read back and what they
are at birth is known to the kernel's own TCP: each setsockopt() is first done to a real TCP socket that goes nowhere,
so errors and answers are TCP's to the letter. Then uTP does what it has the thing for, the UDP port gets what belongs
to IP, and the rest is remembered. SOL_UTP is our own level, far from any protocol's number.

Sources: socket(7), tcp(7), ip(7), ipv6(7); docs/protocol.md §7, §11; docs/sockets.md §2.
"""

from __future__ import annotations

import errno
from contextlib import closing
from enum import Enum
from functools import partial
from typing import Any, Final

from utpsocket.engine.interpreter.native import SOCK_NONBLOCK, Socket, poll
from utpsocket.engine.interpreter.originals import os, struct
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import let_pass
from utpsocket.engine.kernel.high_fds import with_room
from utpsocket.engine.kernel.udp import PACKET_OPTIONS
from utpsocket.engine.user_fds.socket_state import Identity, Role, half_buffer
from utpsocket.protocol.congestion import CONTROLLERS
from utpsocket.sockets import fd_pair

SOL_UTP: Final = 0x757470
"""The level of the options below ("utp" in ASCII)."""
UTP_INFO: Final = 1
"""getsockopt only: a ConnectionStats of this instant (utpsocket.stats)."""
UTP_MAX_MTU: Final = 2
"""Bytes of UDP payload never exceeded, before connect() or listen(), or EISCONN; 0: the default (1,472 or 1,448)."""
UTP_CONGESTION: Final = 3
"""Name of the congestion controller, as bytes, before connect() or listen(). Like TCP_CONGESTION."""

UTP_SHARE_PORT: Final = 4
"""Before bind(), or EINVAL: sockets of one process that all say so share a port, even with a listener: a node dials
from where it listens. TCP takes SO_REUSEPORT for that, by which the kernel would spread a port's datagrams over several
sockets.
"""

UTP_KEEPALIVE: Final = 5
"""Seconds of saying nothing after which a sign of life leaves, 0 for none; 29 at birth. It keeps NATs' mappings open; a
peer that has gone is noticed by what comes back (ICMP, RESET), or because it stays silent for ten times as long though
it is asked. SO_KEEPALIVE with shorter times makes that sooner, and asks as well where this is 0.
"""
_BIND_ADDRESS_NO_PORT: Final = (stdlib.IPPROTO_IP, 24)  # of linux/in.h: a UDP port must be there when bind() returns
_SOCKET: Final = stdlib.SOL_SOCKET
_TCP: Final = stdlib.IPPROTO_TCP
_INT: Final = struct.Struct("=i")
_LINGER: Final = struct.Struct("=ii")
_TIMEVAL: Final = struct.Struct("@ll")
_SO_SNDTIMEO: Final = getattr(stdlib, "SO_SNDTIMEO", 21)
_SEGMENT_BYTES: Final = 1_380
_MIN_MTU: Final = 576
_MAX_UDP_PAYLOAD: Final = 65_507
_MOST_KEEPALIVE_SECONDS: Final = 32_767  # as TCP_KEEPIDLE
MAX_OPTION_BYTES: Final = 1_024  # CPython's limit for getsockopt's buflen

_UDP: Final[dict[int, Any]] = {
    family: partial(Socket, family, stdlib.SOCK_DGRAM | SOCK_NONBLOCK, 0)
    for family in (stdlib.AF_INET, stdlib.AF_INET6)
}
_UDP_LEVELS: Final = (stdlib.IPPROTO_IP, stdlib.IPPROTO_IPV6)
_UDP_SOCKET_OPTIONS: Final = {
    stdlib.SO_BINDTODEVICE,
    stdlib.SO_MARK,
    stdlib.SO_PRIORITY,
    stdlib.SO_DONTROUTE,
    stdlib.SO_REUSEPORT,
}
_TOS: Final = (stdlib.IPPROTO_IP, stdlib.IP_TOS)
_PRIORITY: Final = (_SOCKET, stdlib.SO_PRIORITY)
_PAIR_OPTIONS: Final = {
    getattr(stdlib, "SO_RCVTIMEO", 20),
    _SO_SNDTIMEO,
    stdlib.SO_RCVLOWAT,
    getattr(stdlib, "SO_PEEK_OFF", 42),
    stdlib.SO_TYPE,
    stdlib.SO_ACCEPTCONN,
}
"""What the AF_UNIX pair does itself, for C code too."""


class Effect(Enum):
    """What an option does to a uTP socket; each is set and read as TCP's, and refused where TCP refuses it."""

    PAIR = "the kernel does it on the user's fd, for C code too"
    UTP = "uTP does what TCP does, on a living connection from then on"
    PACKETS = "in each packet from then on, on an accepted socket too"
    PORT = "of the UDP port: before bind() or connect(); later only where the port is the connection's own"
    BIRTH = "of the UDP port: before bind() or connect(), later without effect"
    ANSWER = "only read"
    NONE = "remembered, without effect"


EFFECTS: Final[dict[Effect, str]] = {
    Effect.PAIR: "SO_RCVTIMEO SO_SNDTIMEO SO_RCVLOWAT SO_PEEK_OFF",
    Effect.UTP: """SO_KEEPALIVE SO_LINGER SO_RCVBUF SO_SNDBUF SO_REUSEADDR TCP_NODELAY TCP_KEEPIDLE TCP_KEEPINTVL
        TCP_KEEPCNT TCP_USER_TIMEOUT TCP_SYNCNT UTP_KEEPALIVE UTP_MAX_MTU UTP_CONGESTION UTP_SHARE_PORT""",
    Effect.PACKETS: "IP_TOS IP_TTL IPV6_TCLASS IPV6_UNICAST_HOPS",
    Effect.PORT: "SO_PRIORITY SO_MARK SO_DONTROUTE",
    Effect.BIRTH: """SO_BINDTODEVICE SO_REUSEPORT IPV6_V6ONLY IP_TRANSPARENT IP_FREEBIND IP_OPTIONS IP_UNICAST_IF
        IP_LOCAL_PORT_RANGE IP_MULTICAST_IF IP_MULTICAST_LOOP IP_MULTICAST_TTL IP_ADD_MEMBERSHIP IP_DROP_MEMBERSHIP
        IP_ADD_SOURCE_MEMBERSHIP IP_DROP_SOURCE_MEMBERSHIP IP_BLOCK_SOURCE IP_UNBLOCK_SOURCE IP_HDRINCL IP_RECVERR
        IP_RECVOPTS IP_RETOPTS IP_RECVRETOPTS IP_RECVTOS IP_RECVTTL IP_PKTINFO IP_RECVORIGDSTADDR IPV6_DONTFRAG
        IPV6_DSTOPTS IPV6_HOPLIMIT IPV6_HOPOPTS IPV6_JOIN_GROUP IPV6_LEAVE_GROUP IPV6_MULTICAST_HOPS IPV6_MULTICAST_IF
        IPV6_MULTICAST_LOOP IPV6_NEXTHOP IPV6_PKTINFO IPV6_RECVDSTOPTS IPV6_RECVHOPLIMIT IPV6_RECVHOPOPTS
        IPV6_RECVPATHMTU IPV6_RECVPKTINFO IPV6_RECVRTHDR IPV6_RECVTCLASS IPV6_RECVERR IPV6_RTHDR IPV6_RTHDRDSTOPTS
        IPV6_CHECKSUM""",
    Effect.ANSWER: """SO_ACCEPTCONN SO_DOMAIN SO_ERROR SO_PROTOCOL SO_TYPE SO_SNDLOWAT SO_PEERCRED SO_PEERSEC TCP_INFO
        TCP_MAXSEG IPV6_PATHMTU UTP_INFO""",
    # A UDP socket has nothing of the kind, or the engine has its own way (MTU, checksums, the pace of acks).
    Effect.NONE: """SO_BROADCAST SO_DEBUG SO_OOBINLINE SO_INCOMING_CPU SO_PASSCRED SO_PASSSEC SO_PASSPIDFD
        SO_BINDTOIFINDEX SO_ORIGINAL_DST SO_USELOOPBACK SO_SETFIB SO_EXCLUSIVEADDRUSE SO_RTABLE SO_USER_COOKIE
        SO_HA_EMU SO_J1939_ERRQUEUE SO_J1939_FILTER SO_J1939_PROMISC SO_J1939_SEND_PRIO SO_VM_SOCKETS_BUFFER_MAX_SIZE
        SO_VM_SOCKETS_BUFFER_MIN_SIZE SO_VM_SOCKETS_BUFFER_SIZE TCP_CONGESTION TCP_CORK TCP_DEFER_ACCEPT TCP_FASTOPEN
        TCP_LINGER2 TCP_NOTSENT_LOWAT TCP_QUICKACK TCP_WINDOW_CLAMP TCP_MD5SIG TCP_MD5SIG_EXT TCP_THIN_LINEAR_TIMEOUTS
        TCP_THIN_DUPACK TCP_REPAIR TCP_REPAIR_QUEUE TCP_QUEUE_SEQ TCP_REPAIR_OPTIONS TCP_TIMESTAMP TCP_CC_INFO
        TCP_SAVE_SYN TCP_SAVED_SYN TCP_REPAIR_WINDOW TCP_FASTOPEN_CONNECT TCP_ULP TCP_FASTOPEN_KEY
        TCP_FASTOPEN_NO_COOKIE TCP_ZEROCOPY_RECEIVE TCP_INQ TCP_TX_DELAY TCP_KEEPALIVE TCP_CONNECTION_INFO
        IP_BIND_ADDRESS_NO_PORT""",
}
"""Every option by name, of whatever system CPython knows. What has no effect is no promise: TCP_MD5SIG signs nothing,
IP_HDRINCL and the multicast ones mean nothing to a stream over TCP either.
"""

_nodelay: dict[tuple[int, int], bytes] = {}  # what a TCP socket says, once asked: most connections set it
_TCP_STATES: Final = {Role.CONNECTING: 2, Role.LISTENING: 10}
_TCP_CLOSED: Final = 7
_TCP_ENDINGS: Final = {(False, False): 1, (True, False): 5, (False, True): 8, (True, True): 9}
"""By whether we, and the peer, have said that nothing more follows: ESTABLISHED, FIN_WAIT2, CLOSE_WAIT, LAST_ACK."""
_POLLRDHUP: Final = 0x2000


def _fail(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def udp_socket(identity: Identity) -> Any:
    """A UDP socket with the options this uTP socket was given, which does not block: for a bind, a connection."""
    udp = with_room(_UDP[identity.family])
    if not identity.options:
        return udp
    try:
        for (level, name), value in identity.options.items():
            if (level, name) == _BIND_ADDRESS_NO_PORT:
                continue
            if level in _UDP_LEVELS or (level == _SOCKET and name in _UDP_SOCKET_OPTIONS):
                udp.setsockopt(level, name, value)
    except BaseException:
        udp.close()
        raise
    return udp


def set_option(sock: Any, identity: Identity, level: int, name: int, value: Any, *optlen: Any) -> bool:
    """setsockopt() of a uTP socket. Returns whether a living connection's engine must hear of it.

    Raises what TCP's setsockopt() raises for this level, name and value.
    """
    if level == SOL_UTP:
        return _set_utp(identity, name, value)
    if level == _SOCKET and name in _PAIR_OPTIONS:
        Socket.setsockopt(sock, level, name, value, *optlen)
        identity.options[level, name] = Socket.getsockopt(sock, level, name, MAX_OPTION_BYTES)  # for inherit()
        return False
    is_v6 = identity.family == stdlib.AF_INET6
    if is_v6 and (level, name) == (stdlib.IPPROTO_IPV6, stdlib.IPV6_V6ONLY) and identity.has_port:
        raise _fail(errno.EINVAL)  # it is the port's by now. ipv6(7)
    is_flag = level == _TCP and name == stdlib.TCP_NODELAY and type(value) is int and not optlen
    said = _nodelay.get((identity.family, value)) if is_flag else None
    if said is None:
        with closing(with_room(partial(Socket, identity.family, stdlib.SOCK_STREAM, 0))) as reference_tcp:
            if (level, name) == _TOS:
                for key in (_TOS, _PRIORITY):
                    if key in identity.options:
                        reference_tcp.setsockopt(*key, identity.options[key])
            reference_tcp.setsockopt(level, name, value, *optlen)
            if (level, name) == _TOS:
                identity.options.pop(_PRIORITY, None)  # which follows from this; later in order: udp_socket()
                identity.options |= {_TOS: b"", _PRIORITY: reference_tcp.getsockopt(*_PRIORITY, MAX_OPTION_BYTES)}
            said = reference_tcp.getsockopt(level, name, MAX_OPTION_BYTES)
        if is_flag and value in (0, 1):
            _nodelay[identity.family, value] = said
    identity.options[level, name] = said
    return _apply(sock, identity, level, name)


def _apply(sock: Any, identity: Identity, level: int, name: int) -> bool:
    """Do what the option means to uTP; whether the engine must hear of it."""
    settings = identity.settings
    value = identity.options[level, name]
    number = _INT.unpack_from(value)[0] if len(value) >= _INT.size else 0
    if level == _SOCKET and name == stdlib.SO_LINGER:
        is_on, seconds = _LINGER.unpack_from(value)
        settings.linger_seconds = seconds if is_on else None
        return False
    if level == _SOCKET and name == stdlib.SO_RCVBUF:
        settings.receive_buffer_bytes = number
    elif level == _SOCKET and name == stdlib.SO_SNDBUF:
        settings.send_buffer_bytes = number
        apply_send_buffer(sock, identity)
    elif level == _SOCKET and name == stdlib.SO_KEEPALIVE:
        settings.keepalive = number != 0
    elif level == _TCP and name == stdlib.TCP_NODELAY:
        settings.nodelay = number != 0
    elif level == _TCP and name == stdlib.TCP_KEEPIDLE:
        settings.keepalive_idle_seconds = number
    elif level == _TCP and name == stdlib.TCP_KEEPINTVL:
        settings.keepalive_interval_seconds = number
    elif level == _TCP and name == stdlib.TCP_KEEPCNT:
        settings.keepalive_count = number
    elif level == _TCP and name == stdlib.TCP_USER_TIMEOUT:
        settings.user_timeout_ms = number
    elif level == _TCP and name == stdlib.TCP_SYNCNT:
        settings.syn_retries = number
    else:
        return (level, name) in PACKET_OPTIONS
    return True


def inherit(raw: Any, identity: Identity) -> None:
    """Give an accepted fd what its listener was told and the kernel does not pass on from one AF_UNIX fd to another."""
    apply_send_buffer(raw, identity)
    restore(raw, identity)


def restore(raw: Any, identity: Identity) -> None:
    """Give a new AF_UNIX fd what is the kernel's to do and was asked for before."""
    for (level, name), value in identity.options.items():
        if level == _SOCKET and name in _PAIR_OPTIONS:
            Socket.setsockopt(raw, level, name, value)


def apply_send_buffer(sock: Any, identity: Identity) -> None:
    """SO_SNDBUF for the user's fd: now, or when the gate opens, which a larger buffer would do too early."""
    half = half_buffer(identity.settings.send_buffer_bytes) or fd_pair.user_buffer_bytes(identity)
    if identity.is_gated:
        identity.send_buffer_bytes = half
    else:
        Socket.setsockopt(sock, _SOCKET, stdlib.SO_SNDBUF, half)


def _set_utp(identity: Identity, name: int, value: Any) -> bool:
    """Whether a living connection's engine must hear of it. Raises with the reason where it would have no effect."""
    settings = identity.settings
    is_connected = identity.role in (Role.CONNECTING, Role.CONNECTED)
    if name == UTP_MAX_MTU:
        number = _number(value)
        if number and not _MIN_MTU <= number <= _MAX_UDP_PAYLOAD:
            raise OSError(errno.EINVAL, f"UTP_MAX_MTU is 0 or from {_MIN_MTU} to {_MAX_UDP_PAYLOAD}, not {number}")
        if is_connected and number != settings.max_datagram_bytes:
            raise OSError(errno.EISCONN, "UTP_MAX_MTU is set before connect() or listen()")
        settings.max_datagram_bytes = number
    elif name == UTP_CONGESTION:
        congestion = bytes(memoryview(_INT.pack(value) if isinstance(value, int) else value))
        text = congestion.partition(b"\0")[0].decode("ascii", "replace")
        if text not in CONTROLLERS:  # ENOENT: as TCP_CONGESTION says
            raise OSError(errno.ENOENT, f"no congestion control is named {text!r}; there is {', '.join(CONTROLLERS)}")
        if is_connected and text != settings.congestion:
            raise OSError(errno.EISCONN, "UTP_CONGESTION is set before connect() or listen()")
        settings.congestion = text
    elif name == UTP_SHARE_PORT:
        shares = _number(value) != 0
        if shares != settings.shares_port and (identity.endpoint or identity.role is not Role.UNCONNECTED):
            raise OSError(errno.EINVAL, "UTP_SHARE_PORT is set before bind()")
        settings.shares_port = shares
    elif name == UTP_KEEPALIVE:
        seconds = _number(value)
        if not 0 <= seconds <= _MOST_KEEPALIVE_SECONDS:
            raise OSError(errno.EINVAL, f"UTP_KEEPALIVE is from 0 to {_MOST_KEEPALIVE_SECONDS} seconds, not {seconds}")
        settings.sign_of_life_seconds = seconds
        return True
    else:
        raise _fail(errno.ENOPROTOOPT)
    return False


def _number(value: Any) -> int:
    """An option's int, in either of the forms that setsockopt() takes."""
    if isinstance(value, int):
        return int(value)
    data = memoryview(value)
    if data.nbytes < _INT.size:
        raise _fail(errno.EINVAL)
    return int(_INT.unpack_from(data)[0])


def connect_seconds(sock: Any) -> float | None:
    """SO_SNDTIMEO: how long a connect() without a timeout waits, None for ever."""
    value = Socket.getsockopt(sock, _SOCKET, _SO_SNDTIMEO, _TIMEVAL.size)
    seconds, microseconds = _TIMEVAL.unpack(value)
    return seconds + microseconds / 1_000_000 if seconds or microseconds else None


def get_option(sock: Any, identity: Identity, level: int, name: int, *buflen: int) -> Any:
    """getsockopt() of a uTP socket: an int, or bytes where `buflen` is given and not 0. Raises what TCP's raises."""
    if level == _SOCKET and name in _PAIR_OPTIONS:
        return Socket.getsockopt(sock, level, name, *buflen)
    length = buflen[0] if buflen else 0
    with closing(with_room(partial(Socket, identity.family, stdlib.SOCK_STREAM, 0))) as reference_tcp:
        value = _value(sock, identity, level, name)
        if value is None:
            if (level, name) == (_SOCKET, stdlib.SO_BINDTODEVICE):
                _bind_to_scope(reference_tcp, identity)
            return reference_tcp.getsockopt(level, name, *buflen)
    if length:
        return value[:length]
    if len(value) < _INT.size:
        raise _fail(errno.EINVAL)
    return _INT.unpack_from(value)[0]


def _bind_to_scope(reference_tcp: Any, identity: Identity) -> None:
    """A TCP socket with a link-local address at either end is bound to that interface."""
    for address in (identity.peer, identity.local):
        if address is not None and len(address) == 4 and address[3]:
            try:
                reference_tcp.setsockopt(_SOCKET, stdlib.SO_BINDTODEVICE, stdlib.if_indextoname(address[3]).encode())
            except OSError as error:
                let_pass(error)  # it is gone
            return


def _tcp_state(sock: Any, identity: Identity) -> int:
    """What TCP_INFO says first: the state that a TCP socket would be in. After shutdown(SHUT_RD) the kernel tells no
    more whether the peer has come to its end.
    """
    if identity.role is not Role.CONNECTED or identity.is_over:
        return _TCP_CLOSED if identity.is_over else _TCP_STATES.get(identity.role, _TCP_CLOSED)
    poller = poll()
    poller.register(sock.fileno(), _POLLRDHUP)
    is_at_end = any(mask & _POLLRDHUP for _, mask in poller.poll(0)) and not identity.shut_halves & 1
    return _TCP_ENDINGS[identity.shut_halves & 2 > 0, is_at_end]


def _value(sock: Any, identity: Identity, level: int, name: int) -> bytes | None:
    """What uTP itself knows of an option; None leaves the answer to a fresh TCP socket."""
    if level == SOL_UTP:
        if name == UTP_CONGESTION:
            return identity.settings.congestion.encode()
        if name == UTP_MAX_MTU:
            return _INT.pack(identity.settings.max_datagram_bytes)
        if name == UTP_SHARE_PORT:
            return _INT.pack(identity.settings.shares_port)
        if name == UTP_KEEPALIVE:
            return _INT.pack(identity.settings.sign_of_life_seconds)
        raise _fail(errno.ENOPROTOOPT)
    if level == _TCP and name == stdlib.TCP_INFO:
        return bytes([_tcp_state(sock, identity)]) + bytes(231)  # struct tcp_info: only the state has a meaning here
    if level == _TCP and name == stdlib.TCP_MAXSEG and identity.role is Role.CONNECTED:
        return _INT.pack(_SEGMENT_BYTES)
    value = identity.options.get((level, name))
    return value if value is None else bytes(value)

"""Socket options: which go to the kernel's UDP socket, which to the AF_UNIX pair, and which the uTP engine means.

Separate because it is a table. TCP's options are accepted and mapped where uTP has the thing, remembered where only the
answer matters, and ENOPROTOOPT where Linux would say so. SOL_UTP is our own level, far from any protocol's number.

Sources: socket(7), tcp(7), ip(7), ipv6(7); PROTOCOL.md §7, §11; SOCKETS.md §2.
"""

from __future__ import annotations

import errno
import os
import socket as stdlib
import struct
from contextlib import closing
from typing import Any, Final

from utpsocket.engine.identity import Identity, Role
from utpsocket.engine.native import Socket

SOL_UTP: Final = 0x757470
"""The level of the options below ("utp" in ASCII)."""
UTP_INFO: Final = 1
"""getsockopt only: a ConnectionStats of this instant (utpsocket.stats)."""
UTP_MAX_MTU: Final = 2
"""Bytes of UDP payload never exceeded, before connect() or listen(); 0: the default (1,472 or 1,448)."""
UTP_CONGESTION: Final = 3
"""Name of the congestion controller, as bytes, before connect() or listen(). Like TCP_CONGESTION."""

_SOL_SOCKET: Final = stdlib.SOL_SOCKET
_TCP: Final = stdlib.IPPROTO_TCP
_INT: Final = struct.Struct("=i")
_LINGER: Final = struct.Struct("=ii")
_DEFAULT_SEGMENT_BYTES: Final = 1_380
_TCP_DEFAULT_MSS: Final = 536
_MAX_UDP_PAYLOAD: Final = 65_507

_DEFAULTS: Final[dict[tuple[int, int], int]] = {
    (_SOL_SOCKET, stdlib.SO_REUSEADDR): 0,
    (_SOL_SOCKET, stdlib.SO_REUSEPORT): 0,
    (_SOL_SOCKET, stdlib.SO_KEEPALIVE): 0,
    (_SOL_SOCKET, stdlib.SO_BROADCAST): 0,
    (_SOL_SOCKET, stdlib.SO_DONTROUTE): 0,
    (_SOL_SOCKET, stdlib.SO_OOBINLINE): 0,
    (_SOL_SOCKET, stdlib.SO_PRIORITY): 0,
    (_SOL_SOCKET, stdlib.SO_MARK): 0,
    (_TCP, stdlib.TCP_NODELAY): 0,
    (_TCP, stdlib.TCP_CORK): 0,
    (_TCP, stdlib.TCP_KEEPIDLE): 7_200,
    (_TCP, stdlib.TCP_KEEPINTVL): 75,
    (_TCP, stdlib.TCP_KEEPCNT): 9,
    (_TCP, stdlib.TCP_SYNCNT): 6,
    (_TCP, stdlib.TCP_LINGER2): 60,
    (_TCP, stdlib.TCP_DEFER_ACCEPT): 0,
    (_TCP, stdlib.TCP_WINDOW_CLAMP): 0,
    (_TCP, stdlib.TCP_QUICKACK): 1,
    (_TCP, stdlib.TCP_USER_TIMEOUT): 0,
    (_TCP, stdlib.TCP_FASTOPEN): 0,
    (_TCP, getattr(stdlib, "TCP_NOTSENT_LOWAT", 25)): 0,
}
"""Options that are remembered, with the value Linux's TCP has at birth."""

_BOOLEANS: Final = {
    (_SOL_SOCKET, stdlib.SO_REUSEADDR),
    (_SOL_SOCKET, stdlib.SO_REUSEPORT),
    (_SOL_SOCKET, stdlib.SO_KEEPALIVE),
    (_SOL_SOCKET, stdlib.SO_BROADCAST),
    (_SOL_SOCKET, stdlib.SO_DONTROUTE),
    (_SOL_SOCKET, stdlib.SO_OOBINLINE),
    (_TCP, stdlib.TCP_NODELAY),
    (_TCP, stdlib.TCP_CORK),
}
_RANGES: Final = {
    (_TCP, stdlib.TCP_KEEPIDLE): (1, 32_767),
    (_TCP, stdlib.TCP_KEEPINTVL): (1, 32_767),
    (_TCP, stdlib.TCP_KEEPCNT): (1, 127),
    (_TCP, stdlib.TCP_SYNCNT): (1, 127),
    (_TCP, stdlib.TCP_USER_TIMEOUT): (0, 1 << 31),
}
_UDP_LEVELS: Final = (stdlib.IPPROTO_IP, stdlib.IPPROTO_IPV6)
_UDP_SOCKET_OPTIONS: Final = {
    getattr(stdlib, "SO_BINDTODEVICE", 25),
    stdlib.SO_MARK,
    stdlib.SO_PRIORITY,
    stdlib.SO_DONTROUTE,
    stdlib.SO_REUSEPORT,
}
_PAIR_OPTIONS: Final = {
    getattr(stdlib, "SO_RCVTIMEO", 20),
    getattr(stdlib, "SO_SNDTIMEO", 21),
    stdlib.SO_RCVLOWAT,
    getattr(stdlib, "SO_PEEK_OFF", 42),
    getattr(stdlib, "SO_TIMESTAMP", 29),
    getattr(stdlib, "SO_INCOMING_CPU", 49),
    stdlib.SO_TYPE,
    stdlib.SO_ACCEPTCONN,
    getattr(stdlib, "SO_PEERCRED", 17),
}


def _fail(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def udp_socket(identity: Identity) -> Any:
    """A UDP socket with the options this uTP socket was given: for a probe, a bind, a connection."""
    udp = Socket(identity.family, stdlib.SOCK_DGRAM, 0)
    try:
        for (level, name), value in identity.options.items():
            if level in _UDP_LEVELS or (level == _SOL_SOCKET and name in _UDP_SOCKET_OPTIONS and value):
                udp.setsockopt(level, name, value)
    except BaseException:
        udp.close()
        raise
    return udp


def set_option(sock: Any, identity: Identity, level: int, name: int, value: Any) -> bool:
    """setsockopt() of a uTP socket. Returns whether a living connection's engine must hear of it.

    Raises OSError with Linux's errno: ENOPROTOOPT for an option TCP does not know, EINVAL for a value out of range.
    """
    key = (level, name)
    settings = identity.settings
    if level == SOL_UTP:
        return _set_utp(identity, name, value)
    if level == _SOL_SOCKET and name in _PAIR_OPTIONS:
        Socket.setsockopt(sock, level, name, value)
        return False
    if level in _UDP_LEVELS:
        _check_udp(identity, level, name, value)
        identity.options[key] = value
        return False
    if key == (_SOL_SOCKET, stdlib.SO_LINGER):
        if not isinstance(value, (bytes, bytearray, memoryview)) or len(value) < _LINGER.size:
            raise _fail(errno.EINVAL)
        is_on, seconds = _LINGER.unpack_from(value)
        settings.linger_seconds = seconds if is_on else None
        return False
    if key == (_TCP, stdlib.TCP_CONGESTION):
        identity.options[key] = bytes(value).rstrip(b"\0")
        return False
    number = _integer(value)
    if key == (_SOL_SOCKET, stdlib.SO_RCVBUF):
        settings.receive_buffer_bytes = max(number, 1_152)
        Socket.setsockopt(sock, level, name, number)
        return True
    if key == (_SOL_SOCKET, stdlib.SO_SNDBUF):
        settings.send_buffer_bytes = max(number, 2_304)
        if identity.is_gated and identity.role is Role.CONNECTING:
            identity.send_buffer_bytes = number
        else:
            Socket.setsockopt(sock, level, name, number)
        return True
    if key == (_TCP, stdlib.TCP_MAXSEG):
        if not 88 <= number <= 32_767:
            raise _fail(errno.EINVAL)
        identity.options[key] = number
        return False
    if key not in _DEFAULTS:
        if level == _SOL_SOCKET:
            _check_udp(identity, level, name, value)
            identity.options[key] = value
            return False
        raise _fail(errno.ENOPROTOOPT)
    if key in _RANGES and not _RANGES[key][0] <= number <= _RANGES[key][1]:
        raise _fail(errno.EINVAL)
    identity.options[key] = int(number != 0) if key in _BOOLEANS else number
    return _apply(identity, key, number)


def _apply(identity: Identity, key: tuple[int, int], number: int) -> bool:
    settings = identity.settings
    if key == (_TCP, stdlib.TCP_NODELAY):
        settings.nodelay = number != 0
    elif key == (_SOL_SOCKET, stdlib.SO_KEEPALIVE):
        settings.keepalive = number != 0
    elif key == (_TCP, stdlib.TCP_KEEPIDLE):
        settings.keepalive_idle_seconds = number
    elif key == (_TCP, stdlib.TCP_USER_TIMEOUT):
        settings.user_timeout_ms = number
    else:
        return False
    return True


def _set_utp(identity: Identity, name: int, value: Any) -> bool:
    from utpsocket.protocol.congestion import CONTROLLERS

    if name == UTP_MAX_MTU:
        number = _integer(value)
        if number and not 576 <= number <= _MAX_UDP_PAYLOAD:
            raise _fail(errno.EINVAL)
        identity.settings.max_datagram_bytes = number
    elif name == UTP_CONGESTION:
        congestion = bytes(value).rstrip(b"\0").decode("ascii", "replace")
        if congestion not in CONTROLLERS:
            raise _fail(errno.ENOENT)  # as TCP_CONGESTION says
        identity.settings.congestion = congestion
    else:
        raise _fail(errno.ENOPROTOOPT)
    return False


def get_option(sock: Any, identity: Identity, level: int, name: int, buflen: int) -> Any:
    """getsockopt() of a uTP socket: an int, or bytes where `buflen` is given. Raises OSError with Linux's errno."""
    if level == SOL_UTP and name == UTP_CONGESTION:
        return identity.settings.congestion.encode()
    if (level, name) == (_TCP, stdlib.TCP_CONGESTION):
        return identity.options.get((level, name), b"ledbat")[:buflen] if buflen else 0
    if (level, name) == (_TCP, stdlib.TCP_INFO):
        return _tcp_info(identity)[:buflen] if buflen else 0
    if (level, name) == (_SOL_SOCKET, stdlib.SO_LINGER):
        seconds = identity.settings.linger_seconds
        packed = _LINGER.pack(seconds is not None, seconds or 0)
        return packed[:buflen] if buflen else int(seconds is not None)
    if level == _SOL_SOCKET and name in _PAIR_OPTIONS:
        return Socket.getsockopt(sock, level, name, buflen) if buflen else Socket.getsockopt(sock, level, name)
    if level in _UDP_LEVELS:
        with closing(udp_socket(identity)) as udp:
            return udp.getsockopt(level, name, buflen) if buflen else udp.getsockopt(level, name)
    number = _number(sock, identity, level, name)
    return _INT.pack(number)[:buflen] if buflen else number


def _number(sock: Any, identity: Identity, level: int, name: int) -> int:
    key = (level, name)
    if key == (_SOL_SOCKET, stdlib.SO_DOMAIN):
        return int(identity.family)
    if key == (_SOL_SOCKET, stdlib.SO_PROTOCOL):
        return int(stdlib.IPPROTO_TCP)
    if key == (_SOL_SOCKET, stdlib.SO_SNDBUF) and identity.is_gated:
        return identity.send_buffer_bytes * 2
    if key in ((_SOL_SOCKET, stdlib.SO_RCVBUF), (_SOL_SOCKET, stdlib.SO_SNDBUF)):
        return int(Socket.getsockopt(sock, level, name))
    if key == (_TCP, stdlib.TCP_MAXSEG):
        return _DEFAULT_SEGMENT_BYTES if identity.role is Role.CONNECTED else _TCP_DEFAULT_MSS
    if key == (SOL_UTP, UTP_MAX_MTU):
        return identity.settings.max_datagram_bytes
    if key in identity.options and isinstance(identity.options[key], int):
        return int(identity.options[key])
    if key in _DEFAULTS:
        return _DEFAULTS[key]
    if level == _SOL_SOCKET:
        return int(Socket.getsockopt(sock, level, name))
    raise _fail(errno.ENOPROTOOPT if level in (_TCP, SOL_UTP) else errno.EOPNOTSUPP)


def _tcp_info(identity: Identity) -> bytes:
    """struct tcp_info's first bytes: tcpi_state alone has a meaning here. tcp(7)."""
    established, syn_sent, listening, closed = 1, 2, 10, 7
    states = {
        Role.CONNECTED: closed if identity.is_over else established,
        Role.CONNECTING: syn_sent,
        Role.LISTENING: listening,
    }
    return bytes([states.get(identity.role, closed)]) + bytes(103)


def _check_udp(identity: Identity, level: int, name: int, value: Any) -> None:
    """Have the kernel judge the option, on a UDP socket that is thrown away."""
    with closing(udp_socket(identity)) as udp:
        udp.setsockopt(level, name, value)


def _integer(value: Any) -> int:
    if isinstance(value, (bytes, bytearray, memoryview)):
        if len(value) < _INT.size:
            raise _fail(errno.EINVAL)
        return int(_INT.unpack_from(value)[0])
    return int(value)

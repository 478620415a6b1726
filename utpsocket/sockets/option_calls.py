"""setsockopt() and getsockopt() of a uTP socket.

Which options a stream has, which values they take, what they read back and what they are at first is decided by the
kernel's TCP: each setsockopt() is first done to a TCP socket that is never connected, so errors and values are TCP's.
Then the option is applied to the pair, to uTP or to the UDP port, or only remembered: utpsocket.options.EFFECTS.

Sources: socket(7), tcp(7), ip(7), ipv6(7); docs/protocol.md §7, §11; docs/sockets.md §2.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Final

from utpsocket.engine.environment import MAX_TARGET_DELAY_US, MIN_TARGET_DELAY_US, value_if_any
from utpsocket.engine.interpreter.native import SOCK_NONBLOCK, Socket, poll
from utpsocket.engine.interpreter.originals import os, struct
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import reraise_handler_error
from utpsocket.engine.kernel import netns
from utpsocket.engine.kernel.high_fds import with_room
from utpsocket.engine.kernel.udp import PACKET_OPTIONS
from utpsocket.engine.user_fds.socket_state import Identity, Role, half_buffer
from utpsocket.options import SOL_UTP, UTP_CONGESTION, UTP_KEEPALIVE, UTP_MAX_MTU, UTP_SHARE_PORT, UTP_TARGET_DELAY
from utpsocket.protocol.congestion import CONTROLLERS, DEFAULT_CONTROLLER
from utpsocket.sockets import fd_pair

if TYPE_CHECKING:
    from utpsocket.engine.interpreter.arguments import OptionValue, ReadableBuffer

# IP_BIND_ADDRESS_NO_PORT of linux/in.h, which is left out: a UDP port must be there when bind() returns.
_BIND_ADDRESS_NO_PORT: Final = (stdlib.IPPROTO_IP, 24)
_SOCKET: Final = stdlib.SOL_SOCKET
_TCP: Final = stdlib.IPPROTO_TCP
_INT: Final = struct.Struct("=i")
_LINGER: Final = struct.Struct("=ii")
_TIMEVAL: Final = struct.Struct("@ll")
_SO_SNDTIMEO: Final = getattr(stdlib, "SO_SNDTIMEO", 21)
# SO_SNDBUFFORCE and SO_RCVBUFFORCE of asm-generic/socket.h, which set what these read, beyond the system's limit.
_FORCED: Final = {32: stdlib.SO_SNDBUF, 33: stdlib.SO_RCVBUF}
# SO_ATTACH_BPF, SO_ATTACH_REUSEPORT_CBPF and _EBPF of the same file: filters, which cannot be read back, nor followed.
_FILTERS: Final = (50, 51, 52)
# TCP_FASTOPEN, TCP_FASTOPEN_CONNECT, TCP_FASTOPEN_NO_COOKIE of linux/tcp.h: EINVAL on a connection.
_FASTOPEN: Final = (23, 30, 34)
_FASTOPEN_CONNECT: Final = 30  # on a listener as well
# IP_MTU of linux/in.h, IPV6_MTU of linux/in6.h: the route's to the peer.
_ROUTE_MTU: Final = {(stdlib.IPPROTO_IP, 14), (stdlib.IPPROTO_IPV6, 24)}
_NO_END_SECONDS: Final = (1 << 31) - 1
# What TCP_MAXSEG reads on a connection: what a datagram of 1,400 bytes carries, less uTP's header of 20. By feel.
_SEGMENT_BYTES: Final = 1_380
# RFC 791: each host takes a datagram of 576 bytes.
_MIN_MTU: Final = 576
# 65,535 bytes of an IPv4 packet less the headers of IPv4 (20) and UDP (8).
_MAX_UDP_PAYLOAD: Final = 65_507
# As TCP_KEEPIDLE: MAX_TCP_KEEPIDLE of linux/tcp.h.
_MAX_KEEPALIVE_SECONDS: Final = 32_767
# TCP_CA_NAME_MAX of linux/tcp.h: a name with at least one NUL.
_NAME_BYTES: Final = 16
# CPython's limit for getsockopt()'s buflen.
MAX_OPTION_BYTES: Final = 1_024

_UDP: Final[dict[int, Callable[[], Socket]]] = {
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
# What the AF_UNIX pair does itself, for C code too.
_PAIR_OPTIONS: Final = {
    getattr(stdlib, "SO_RCVTIMEO", 20),
    _SO_SNDTIMEO,
    stdlib.SO_RCVLOWAT,
    getattr(stdlib, "SO_PEEK_OFF", 42),
    stdlib.SO_TYPE,
    stdlib.SO_ACCEPTCONN,
}

# What a TCP socket reads back for TCP_NODELAY, by family and value: most connections set it, so it is asked once.
_nodelay: dict[tuple[int, int], bytes] = {}
# enum in net/tcp_states.h: SYN_SENT, LISTEN; CLOSE.
_TCP_STATES: Final = {Role.CONNECTING: 2, Role.LISTENING: 10}
_TCP_CLOSED: Final = 7
_TCP_ENDINGS: Final = {(False, False): 1, (True, False): 5, (False, True): 8, (True, True): 9}
"""By whether this end, and whether the peer, has sent its FIN: ESTABLISHED, FIN_WAIT2, CLOSE_WAIT, LAST_ACK."""
_POLLRDHUP: Final = 0x2000


def _fail(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def udp_socket(identity: Identity) -> Socket:
    """A new non-blocking UDP socket with those options of this uTP socket that are the UDP port's."""
    udp = with_room(_UDP[identity.family])
    if not identity.options:
        return udp
    try:
        for (level, name), value in identity.options.items():
            if _is_of_port(level, name):
                udp.setsockopt(level, name, value)
    except BaseException:
        udp.close()
        raise
    return udp


def _is_of_port(level: int, name: int) -> bool:
    if level == _SOCKET:
        return name in _UDP_SOCKET_OPTIONS
    return level in _UDP_LEVELS and (level, name) != _BIND_ADDRESS_NO_PORT


def has_options_of_port(identity: Identity) -> bool:
    """Whether the program has set an option that udp_socket() sets on the UDP socket."""
    return bool(identity.options) and any(_is_of_port(level, name) for level, name in identity.options)


def set_option(sock: Socket, identity: Identity, level: int, name: int, value: OptionValue, *optlen: int) -> bool:
    """setsockopt() of a uTP socket. Returns whether the engine must apply the option, where there is a connection.

    Raises what TCP's setsockopt() raises for this level, name and value.
    """
    if level == SOL_UTP:
        return _set_utp(identity, name, value)
    if level == _SOCKET and name in _PAIR_OPTIONS:
        Socket.setsockopt(sock, level, name, value, *optlen)
        identity.options[level, name] = Socket.getsockopt(sock, level, name, MAX_OPTION_BYTES)  # for restore()
        return False
    if level == _TCP and name == stdlib.TCP_CONGESTION and isinstance(value, (int, bytes, bytearray, memoryview)):
        return _set_congestion(identity, value)
    is_v6 = identity.family == stdlib.AF_INET6
    if is_v6 and (level, name) == (stdlib.IPPROTO_IPV6, stdlib.IPV6_V6ONLY) and identity.has_port:
        raise _fail(errno.EINVAL)  # too late once a port is bound: ipv6(7)
    if level == _TCP and name in _FASTOPEN and _is_too_late(identity, name):
        raise _fail(errno.EINVAL)
    nodelay = value if level == _TCP and name == stdlib.TCP_NODELAY and type(value) is int and not optlen else None
    read_back = None if nodelay is None else _nodelay.get((identity.family, nodelay))
    if read_back is None:
        with closing(with_room(partial(Socket, identity.family, stdlib.SOCK_STREAM, 0))) as reference_tcp:
            if (level, name) == _TOS:
                for key in (_TOS, _PRIORITY):
                    if key in identity.options:
                        reference_tcp.setsockopt(*key, identity.options[key])
            reference_tcp.setsockopt(level, name, value, *optlen)
            if (level, name) == _TOS:
                # The priority follows from the type of service. It must come after it in udp_socket().
                identity.options.pop(_PRIORITY, None)
                identity.options |= {_TOS: b"", _PRIORITY: reference_tcp.getsockopt(*_PRIORITY, MAX_OPTION_BYTES)}
            if level == _SOCKET:
                name = _FORCED.get(name, name)
            try:
                read_back = reference_tcp.getsockopt(level, name, MAX_OPTION_BYTES)
            except OSError as error:
                if error.errno != errno.ENOPROTOOPT or (level == _SOCKET and name in _FILTERS):
                    raise
                return False  # it can only be set
        if nodelay in (0, 1):
            _nodelay[identity.family, nodelay] = read_back
    identity.options[level, name] = read_back
    return _apply(sock, identity, level, name)


def _set_congestion(identity: Identity, value: OptionValue) -> bool:
    """TCP_CONGESTION. The names are those of uTP's controllers, also on a socket that TCP will carry: of these the
    kernel has some (tcp_socket.py).
    """
    name = _controller_name(value)
    identity.settings.congestion = name
    identity.options[_TCP, stdlib.TCP_CONGESTION] = name.encode().ljust(_NAME_BYTES, b"\0")
    return True


def _is_too_late(identity: Identity, name: int) -> bool:
    """Whether TCP Fast Open is asked for once there is a connection, or a listener. Linux do_tcp_setsockopt()"""
    if identity.role is Role.LISTENING:
        return name == _FASTOPEN_CONNECT
    return identity.role is Role.CONNECTING or (identity.role is Role.CONNECTED and not identity.is_over)


def _apply(sock: Socket, identity: Identity, level: int, name: int) -> bool:
    """Put the option into the socket's settings. Returns whether the engine must apply it."""
    settings = identity.settings
    value = identity.options[level, name]
    number = _INT.unpack_from(value)[0] if len(value) >= _INT.size else 0
    if level == _SOCKET and name == stdlib.SO_LINGER:
        is_on, seconds = _LINGER.unpack_from(value)
        # A negative time is none that ends, and reads as the part of it that an int has room for.
        settings.linger_seconds = (seconds if seconds >= 0 else _NO_END_SECONDS) if is_on else None
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


def restore(raw: Socket, identity: Identity) -> None:
    """Set on a new AF_UNIX descriptor the options that were set on the one before and that the kernel carries out."""
    for (level, name), value in identity.options.items():
        if level == _SOCKET and name in _PAIR_OPTIONS:
            Socket.setsockopt(raw, level, name, value)


def apply_send_buffer(sock: Socket, identity: Identity) -> None:
    """Set SO_SNDBUF of the user's descriptor: now, or when the gate opens, since a larger buffer would open it at once
    (docs/sockets.md §1).
    """
    half = pair_buffer_bytes(identity)
    if identity.is_gated:
        identity.send_buffer_bytes = half
    else:
        Socket.setsockopt(sock, _SOCKET, stdlib.SO_SNDBUF, half)


def pair_buffer_bytes(identity: Identity) -> int:
    """What setsockopt(SO_SNDBUF) is given for the user's descriptor."""
    set_bytes = identity.settings.send_buffer_bytes
    return (half_buffer(set_bytes) if set_bytes else 0) or fd_pair.user_buffer_bytes(identity)


def _set_utp(identity: Identity, name: int, value: OptionValue) -> bool:
    """Set an option of the level SOL_UTP. Returns whether the engine must apply it, where there is a connection. Raises
    with the reason where the option would have no effect.
    """
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
        settings.congestion = _controller_name(value)
        return True
    elif name == UTP_TARGET_DELAY:
        number = _number(value)
        if number and not MIN_TARGET_DELAY_US <= number <= MAX_TARGET_DELAY_US:
            reason = f"UTP_TARGET_DELAY is 0 or from {MIN_TARGET_DELAY_US} to {MAX_TARGET_DELAY_US} µs, not {number}"
            raise OSError(errno.EINVAL, reason)
        settings.target_delay_us = number
        return True
    elif name == UTP_SHARE_PORT:
        shares = _number(value) != 0
        if shares != settings.shares_port and (identity.endpoint or identity.role is not Role.UNCONNECTED):
            raise OSError(errno.EINVAL, "UTP_SHARE_PORT is set before bind()")
        settings.shares_port = shares
    elif name == UTP_KEEPALIVE:
        seconds = _number(value)
        if not 0 <= seconds <= _MAX_KEEPALIVE_SECONDS:
            raise OSError(errno.EINVAL, f"UTP_KEEPALIVE is from 0 to {_MAX_KEEPALIVE_SECONDS} seconds, not {seconds}")
        settings.nat_keepalive_seconds = seconds
        return True
    else:
        raise _fail(errno.ENOPROTOOPT)
    return False


def _controller_name(value: OptionValue) -> str:
    """The name of a congestion controller in TCP_CONGESTION's form: at most 15 bytes, up to the first NUL. tcp(7)"""
    data = bytes(_buffer(_INT.pack(value) if isinstance(value, int) else value))
    if not data:
        raise _fail(errno.EINVAL)
    text = data[: _NAME_BYTES - 1].partition(b"\0")[0].decode("ascii", "replace")
    if text not in CONTROLLERS:
        raise OSError(errno.ENOENT, f"no congestion control is named {text!r}; there is {', '.join(CONTROLLERS)}")
    return text


def _congestion(identity: Identity) -> bytes:
    """The name of the congestion controller that the socket has or will have."""
    name = identity.settings.congestion or value_if_any("UTPSOCKET_CONGESTION", DEFAULT_CONTROLLER)
    return name.encode()


def _buffer(value: ReadableBuffer | None) -> memoryview:
    """An option's bytes. Raises TypeError for None."""
    return memoryview(value)  # type: ignore[arg-type]


def _number(value: OptionValue) -> int:
    """An option's int, in either of the forms that setsockopt() takes."""
    if isinstance(value, int):
        return int(value)
    data = _buffer(value)
    if data.nbytes < _INT.size:
        raise _fail(errno.EINVAL)
    return int(_INT.unpack_from(data)[0])


def connect_seconds(sock: Socket) -> float | None:
    """SO_SNDTIMEO in seconds: how long a connect() without a timeout waits. None: without an end."""
    value = Socket.getsockopt(sock, _SOCKET, _SO_SNDTIMEO, _TIMEVAL.size)
    seconds, microseconds = _TIMEVAL.unpack(value)
    return seconds + microseconds / 1_000_000 if seconds or microseconds else None


def get_option(sock: Socket, identity: Identity, level: int, name: int, *buflen: int) -> int | bytes:
    """getsockopt() of a uTP socket: an int, or bytes where `buflen` is given and not 0. Raises what TCP's raises."""
    if level == _SOCKET and name in _PAIR_OPTIONS:
        return Socket.getsockopt(sock, level, name, *buflen)
    length = buflen[0] if buflen else 0
    if (level, name) in _ROUTE_MTU and identity.role is Role.CONNECTED and not identity.is_over:
        with closing(_connected_udp(sock, identity)) as udp:
            return udp.getsockopt(level, name, *buflen)
    with closing(with_room(partial(Socket, identity.family, stdlib.SOCK_STREAM, 0))) as reference_tcp:
        value = _value(sock, identity, level, name)
        if value is None:
            if (level, name) == (_SOCKET, stdlib.SO_BINDTODEVICE):
                _bind_to_scope(reference_tcp, identity)
            return reference_tcp.getsockopt(level, name, *buflen)
    if length:
        return value[:length]
    number: int = _INT.unpack_from(value.ljust(_INT.size, b"\0"))[0]  # CPython's int is 0 before the kernel writes it
    return number


def _connected_udp(sock: Socket, identity: Identity) -> Socket:
    """A UDP socket that is connected to the peer: its route is the connection's."""
    udp = netns.make_in_namespace(sock, identity.namespace or netns.cookie(sock), _UDP[identity.family])
    try:
        assert identity.peer is not None
        udp.connect(identity.peer)
    except BaseException:
        udp.close()
        raise
    return udp


def _bind_to_scope(reference_tcp: Socket, identity: Identity) -> None:
    """A TCP socket with a link-local address at either end is bound to that interface."""
    for address in (identity.peer, identity.local):
        if address is not None and len(address) == 4 and address[3]:
            try:
                reference_tcp.setsockopt(_SOCKET, stdlib.SO_BINDTODEVICE, stdlib.if_indextoname(address[3]).encode())
            except OSError as error:
                reraise_handler_error(error)  # the interface is no longer there
            return


def _tcp_state(sock: Socket, identity: Identity) -> int:
    """The first byte of TCP_INFO: the state that a TCP socket would be in. After shutdown(SHUT_RD) the kernel does not
    show any more whether the peer has sent its FIN.
    """
    if identity.role is not Role.CONNECTED or identity.is_over:
        return _TCP_CLOSED if identity.is_over else _TCP_STATES.get(identity.role, _TCP_CLOSED)
    poller = poll()
    poller.register(sock.fileno(), _POLLRDHUP)
    is_at_end = any(mask & _POLLRDHUP for _, mask in poller.poll(0)) and not identity.shut_halves & 1
    return _TCP_ENDINGS[identity.shut_halves & 2 > 0, is_at_end]


def _value(sock: Socket, identity: Identity, level: int, name: int) -> bytes | None:
    """The value of an option that was set or that is uTP's own; None: a new TCP socket gives the value."""
    if level == SOL_UTP:
        if name == UTP_CONGESTION:
            return _congestion(identity)
        if name == UTP_TARGET_DELAY:
            return _INT.pack(identity.settings.target_delay_us)
        if name == UTP_MAX_MTU:
            return _INT.pack(identity.settings.max_datagram_bytes)
        if name == UTP_SHARE_PORT:
            return _INT.pack(identity.settings.shares_port)
        if name == UTP_KEEPALIVE:
            return _INT.pack(identity.settings.nat_keepalive_seconds)
        raise _fail(errno.ENOPROTOOPT)
    if level == _TCP and name == stdlib.TCP_INFO:
        return bytes([_tcp_state(sock, identity)]) + bytes(231)  # struct tcp_info: only the state has a meaning here
    if level == _TCP and name == stdlib.TCP_CONGESTION and identity.transport == "utp":
        return _congestion(identity).ljust(_NAME_BYTES, b"\0")
    if level == _TCP and name == stdlib.TCP_MAXSEG and identity.role is Role.CONNECTED:
        return _INT.pack(_SEGMENT_BYTES)
    value = identity.options.get((level, name))
    return value if value is None else bytes(value)

"""Statistics of connections, ports and the engine, as frozen snapshots.

A snapshot has plain values and refers to nothing, so that it keeps no connection alive. It is taken on the engine's
thread, so that its figures are of one instant; but not that of a non-blocking socket, which does not wait for the
engine. Any thread may call.
"""

from __future__ import annotations

import errno
from typing import Final, NamedTuple

from utpsocket.engine import commands
from utpsocket.engine.current import running_engine
from utpsocket.engine.interpreter.native import Socket, StdlibSocket
from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import reraise_handler_error
from utpsocket.engine.kernel import fd_names, tcp_info
from utpsocket.engine.loop import Loop
from utpsocket.engine.user_fds.socket_state import Identity, Role
from utpsocket.protocol import Address, ConnectionStats, State
from utpsocket.protocol.build import BUILD
from utpsocket.protocol.report import outcome
from utpsocket.sockets import lifecycle

__all__ = ["ConnectionStats", "EngineStats", "PortStats", "engine_stats", "info", "prometheus_text"]

_TRIES = 100
# The figures of prometheus_text(): what only grows, what goes up and down, and what there is of each port.
_ENGINE_COUNTERS: Final = {
    "connections_initiated": "uTP connections that connect() has begun.",
    "connections_accepted": "uTP connections that peers have begun here.",
    "tcp_initiated": "Connections that have fallen back to TCP.",
    "tcp_accepted": "Connections that a listener of uTP and TCP has accepted over TCP.",
    "sent_bytes": "Bytes of payload sent, each counted once.",
    "received_bytes": "Bytes of payload received and given to the programs' sockets.",
    "sent_packets": "Packets with data, and FINs, that were sent; with those that were sent again.",
    "received_packets": "Packets with data received.",
    "retransmitted_packets": "Packets sent again.",
    "wakeups": "Iterations of the engine's thread.",
    "faults": "Exceptions of the engine that were contained.",
}
_ENGINE_GAUGES: Final = {
    "connections_open": "uTP connections that exist now.",
    "tcp_open": "Connections carried by TCP that exist now.",
    "ports_open": "UDP ports that are open now.",
}
_PORT_COUNTERS: Final = {
    "sent_datagrams": "Datagrams sent.",
    "received_datagrams": "Datagrams received.",
    "dropped_datagrams": "Datagrams received and dropped.",
    "truncated_datagrams": "Datagrams received that were larger than the buffer.",
    "sent_resets": "RESET packets sent in answer to packets that belong to no connection.",
}


class PortStats(NamedTuple):
    """The figures of one UDP port at one instant. Counts begin when the port is opened.

    Source: docs/design.md §6.
    """

    local: Address
    """Its address, as socket.getsockname() writes it."""
    connections: int
    """How many connections it has."""
    is_listening: bool
    """Whether a socket listens at it."""
    sent_datagrams: int
    """Datagrams sent."""
    sent_calls: int
    """System calls that sent them; with GSO one sends many datagrams."""
    received_datagrams: int
    """Datagrams received."""
    received_runs: int
    """Pieces in which they were received; with GRO one has many datagrams."""
    dropped_datagrams: int
    """Datagrams received and dropped: no uTP packets, or of no connection here, or in excess during a flood."""
    truncated_datagrams: int
    """Datagrams received that were larger than the buffer, and were dropped."""
    sent_resets: int
    """RESET packets sent in answer to packets that belong to no connection."""
    receive_buffer_bytes: int
    """The UDP socket's receive buffer, bytes, as the kernel has granted it."""


class EngineStats(NamedTuple):
    """The figures of this process's engine at one instant. Counts begin when the engine starts; bytes are payload.

    Source: docs/design.md §2.
    """

    connections_initiated: int = 0
    """uTP connections that connect() has begun."""
    connections_accepted: int = 0
    """uTP connections that peers have begun here."""
    connections_open: int = 0
    """uTP connections that exist now."""
    ports_open: int = 0
    """UDP ports that are open now."""
    wakeups: int = 0
    """How often the engine's thread has woken up."""
    faults: int = 0
    """Exceptions on the engine's thread, each of which has ended one connection (docs/differences-from-tcp.md §6)."""
    tcp_initiated: int = 0
    """Connections that were begun with the rule fallback="tcp" and are carried by TCP."""
    tcp_accepted: int = 0
    """Connections that a listener of uTP and TCP has accepted over TCP."""
    tcp_open: int = 0
    """Connections carried by TCP that exist now."""
    sent_bytes: int = 0
    """Bytes sent, each counted once."""
    received_bytes: int = 0
    """Bytes received and given to the programs' sockets."""
    sent_packets: int = 0
    """Packets with data, and FINs, that were sent; with those that were sent again."""
    received_packets: int = 0
    """Packets with data received."""
    retransmitted_packets: int = 0
    """Packets sent again."""
    ports: tuple[PortStats, ...] = ()
    """The ports that are open now."""
    connections: tuple[ConnectionStats, ...] = ()
    """The connections that exist now."""
    build: str = BUILD
    """Which build of utpsocket runs here: `compiled` or `pure`."""


def engine_stats() -> EngineStats:
    """Take a snapshot of this process's engine, its ports and its connections.

    A call waits for the engine's thread, or for its process.

    Returns: a frozen EngineStats; all figures are 0 where no engine runs.
    Raises: RuntimeError while the interpreter is ending.
    Source: docs/guide/use.md §5.
    """
    loop = running_engine()
    if loop is None or not loop.is_alive:
        return EngineStats()
    figures, ports, connections = loop.call(commands.snapshot)
    return EngineStats(
        **figures,
        ports=tuple(PortStats(**port) for port in ports),
        connections=tuple(ConnectionStats(*fields) for fields in connections),
    )


def prometheus_text(stats: EngineStats | None = None) -> str:
    """The figures of this process's engine and of its listening ports, for Prometheus to scrape.

    Serve it as `text/plain; version=0.0.4`. Names begin with `utpsocket_`; those of counts end in `_total`. The figures
    of ports that do not listen are left out, since each connect() would make new time series. A call without `stats`
    waits for the engine, as engine_stats() does.

    Parameters:
        stats: figures that were taken before; None takes them now.
    Returns: the text, which ends in a newline.
    Raises: RuntimeError while the interpreter is ending.
    Source: https://prometheus.io/docs/instrumenting/exposition_formats/
    """
    if stats is None:
        stats = engine_stats()
    lines: list[str] = []
    for names, kind, ending in ((_ENGINE_COUNTERS, "counter", "_total"), (_ENGINE_GAUGES, "gauge", "")):
        for name, about in names.items():
            lines += _metric(f"utpsocket_{name}{ending}", kind, about, {"": getattr(stats, name)})
    listening = {fd_names.to_text(port.local): port for port in stats.ports if port.is_listening}
    for name, about in _PORT_COUNTERS.items():
        values = {f'{{local="{local}"}}': getattr(port, name) for local, port in listening.items()}
        lines += _metric(f"utpsocket_port_{name}_total", "counter", about, values)
    return "\n".join(lines) + "\n"


def _metric(name: str, kind: str, about: str, values: dict[str, int]) -> list[str]:
    return [f"# HELP {name} {about}", f"# TYPE {name} {kind}", *(f"{name}{label} {values[label]}" for label in values)]


def connection_stats(cookie: int, *, waits: bool = True) -> ConnectionStats:
    """The figures of the connection with this cookie. Raises ENOTCONN if this process's engine has no such connection.

    waits    wait for the engine, so that all figures are of one instant. Otherwise each is read as it is now; from an
             engine in another process they are those that it has sent last, and new ones are asked for
    """
    loop = running_engine()
    if loop is None or not loop.is_alive:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
    if not waits and not isinstance(loop, Loop):
        return ConnectionStats(*loop.latest_figures(cookie))
    if not waits and isinstance(loop, Loop):
        for _ in range(_TRIES):
            try:
                return ConnectionStats(*commands.connection_figures(loop, cookie))
            except RuntimeError:
                continue  # the engine's thread has changed what was being looked through
    return ConnectionStats(*loop.call(commands.connection_figures, cookie))


def info(sock: StdlibSocket) -> ConnectionStats:
    """The state of a socket, its addresses, and the figures of its connection, at this instant.

    After the connection's end it still answers, until the socket is closed or connects again: `outcome` and `errno` say
    how it ended. Asking does not take the errno away that SO_ERROR or the next call gives. A socket that does not block
    does not wait for the engine: where that runs in a process of its own, the figures are those that it has sent last.
    Any thread may call.

    Parameters:
        sock: a socket of utpsocket, of a patched program, or of the standard library's TCP. asyncio's TransportSocket
            and gevent's socket, which have such a socket inside, are looked through.
    Returns: a frozen ConnectionStats. The figures of a socket that is not connected, or that listens, are 0, and so are
        they in a forked process that did not connect or accept the socket. Of TCP they are what TCP_INFO gives, and
        `outcome` is empty unless a fallback has chosen TCP.
    Raises: OSError: EBADF of a closed socket, EOPNOTSUPP of one that is neither uTP nor TCP. TypeError otherwise.
    Source: tcp(7) TCP_INFO; docs/guide/use.md §5.
    """
    inner = _inner(sock)
    lifecycle.check_open(inner)
    identity: Identity | None = getattr(inner, "_utp", None)
    if identity is None:
        return _of_tcp(inner)
    if identity.transport == "tcp":
        return _stats_over_tcp(identity, waits=inner.gettimeout() != 0)
    if identity.role is Role.LISTENING:
        return ConnectionStats("listening", identity.local)
    if identity.role is not Role.UNCONNECTED:
        found = _stats_from_engine(identity, waits=inner.gettimeout() != 0)
        if found is not None:
            return found
    return _ended(identity)


info.__module__ = "utpsocket"


def _inner(sock: object) -> Socket:
    """The socket itself, or what it has inside."""
    if not isinstance(sock, Socket):
        sock = getattr(sock, "_sock", sock)
        if not isinstance(sock, Socket):
            raise TypeError(f"info() needs a socket, not {type(sock).__name__}")
    return sock


def _stats_from_engine(identity: Identity, *, waits: bool) -> ConnectionStats | None:
    """The figures of a connection from the engine; None if it does not serve that connection any more."""
    loop = lifecycle.own_engine(identity)
    if loop is None or (not waits and not isinstance(loop, Loop) and identity.is_over):
        return None
    try:
        return connection_stats(identity.cookie, waits=waits)
    except OSError as error:
        reraise_handler_error(error)
        return None


def _ended(identity: Identity) -> ConnectionStats:
    """The state and last figures of a connection or an attempt that has ended, or of a socket that never had one."""
    ending = identity.ending
    if ending is not None and identity.transport == "utp":
        stats = ConnectionStats(*ending)
        return stats._replace(state=State.CLOSED.value) if stats.state == State.TIME_WAIT.value else stats
    code = identity.error or identity.reported_errno
    local = identity.local or lifecycle.UNBOUND[identity.family]
    if identity.role is Role.UNCONNECTED and not code:
        return ConnectionStats(local=local)
    if code or identity.is_over or identity.role is Role.FAILED:
        return ConnectionStats(State.CLOSED.value, local, identity.peer, identity.transport, outcome(code), code)
    state = State.SYN_SENT if identity.role is Role.CONNECTING else State.CONNECTED
    return ConnectionStats(state.value, local, identity.peer, identity.transport)


def _stats_over_tcp(identity: Identity, *, waits: bool) -> ConnectionStats:
    """Of a connection that fell back to TCP, whose TCP socket is the engine's."""
    loop = lifecycle.own_engine(identity)
    if loop is not None and not identity.is_over:
        try:
            if waits:
                return ConnectionStats(*loop.call(commands.channel_figures, identity.cookie))
            if isinstance(loop, Loop):
                return ConnectionStats(*commands.channel_figures(loop, identity.cookie))
        except OSError as error:
            reraise_handler_error(error)
    return _ended(identity)


def _of_tcp(sock: Socket) -> ConnectionStats:
    """Of a TCP socket, by TCP_INFO."""
    if (
        Socket.family.__get__(sock) not in (stdlib.AF_INET, stdlib.AF_INET6)
        or Socket.getsockopt(sock, stdlib.SOL_SOCKET, stdlib.SO_TYPE) != stdlib.SOCK_STREAM
        or Socket.getsockopt(sock, stdlib.SOL_SOCKET, stdlib.SO_PROTOCOL) != stdlib.IPPROTO_TCP
    ):
        raise lifecycle.os_error(errno.EOPNOTSUPP)
    try:
        peer = Socket.getpeername(sock)
    except OSError as error:
        reraise_handler_error(error)
        peer = None
    return ConnectionStats(local=Socket.getsockname(sock), peer=peer, transport="tcp", **tcp_info.read(sock))

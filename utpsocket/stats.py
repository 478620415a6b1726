"""Statistics of connections, ports and the engine, as frozen snapshots.

A snapshot has plain values and refers to nothing, so that it keeps no connection alive. Any thread may call. It is
taken on the engine's thread, so that its figures are of one instant.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from utpsocket.engine import commands, running_engine
from utpsocket.engine.helper.client import RemoteLoop
from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.loop import Loop
from utpsocket.protocol import ConnectionStats

__all__ = ["ConnectionStats", "EngineStats", "PortStats", "engine_stats"]

_TRIES = 100


@dataclass(frozen=True, slots=True)
class PortStats:
    """The figures of one UDP port at one instant. Counts begin when the port is opened.

    Source: docs/design.md §6.
    """

    local: object
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


@dataclass(frozen=True, slots=True)
class EngineStats:
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
    """Packets with data sent, each counted once."""
    received_packets: int = 0
    """Packets with data received."""
    retransmitted_packets: int = 0
    """Packets sent again."""
    ports: tuple[PortStats, ...] = ()
    """The ports that are open now."""
    connections: tuple[ConnectionStats, ...] = ()
    """The connections that exist now."""


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
    figures = loop.call(commands.snapshot)
    figures["ports"] = tuple(PortStats(**port) for port in figures["ports"])
    figures["connections"] = tuple(ConnectionStats(*fields) for fields in figures["connections"])
    return EngineStats(**figures)


def connection_stats(cookie: int, *, waits: bool = True) -> ConnectionStats:
    """The figures of the connection with this cookie. Raises ENOTCONN when this process's engine has none such.

    waits    for the engine, so that the figures belong together and are of now; else each is as it happens to be now,
             or all as an engine in another process has last told, which it is asked to do anew
    """
    loop = running_engine()
    if loop is None or not loop.is_alive:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
    if not waits and isinstance(loop, RemoteLoop):
        return ConnectionStats(*loop.latest_figures(cookie))
    if not waits and isinstance(loop, Loop):
        for _ in range(_TRIES):
            try:
                return ConnectionStats(*commands.connection_figures(loop, cookie))
            except RuntimeError:
                continue  # the engine's thread has changed what was being looked through
    return ConnectionStats(*loop.call(commands.connection_figures, cookie))

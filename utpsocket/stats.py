"""Frozen snapshots of connections, ports and the engine.

Separate because whoever watches must not hold what it watches. Any thread may call; a snapshot is taken on the engine's
thread, so its figures belong together.
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
    """One UDP port."""

    local: object
    connections: int
    is_listening: bool
    sent_datagrams: int
    sent_calls: int
    received_datagrams: int
    received_runs: int
    dropped_datagrams: int
    truncated_datagrams: int
    sent_resets: int
    receive_buffer_bytes: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The process's engine; totals since it was born, zeros when there is none."""

    connections_initiated: int = 0
    connections_accepted: int = 0
    connections_open: int = 0
    ports_open: int = 0
    wakeups: int = 0
    faults: int = 0
    tcp_initiated: int = 0
    tcp_accepted: int = 0
    tcp_open: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    sent_packets: int = 0
    received_packets: int = 0
    retransmitted_packets: int = 0
    ports: tuple[PortStats, ...] = ()
    connections: tuple[ConnectionStats, ...] = ()


def engine_stats() -> EngineStats:
    """The engine's figures of this instant."""
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

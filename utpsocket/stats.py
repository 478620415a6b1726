"""Frozen snapshots of connections, ports and the engine.

Separate because whoever watches must not hold what it watches. Any thread may call; a snapshot is taken on the engine's
thread, so its figures belong together.
"""

from __future__ import annotations

from dataclasses import dataclass

from utpsocket.engine import running_engine
from utpsocket.engine.loop import Loop
from utpsocket.protocol import ConnectionStats

__all__ = ["ConnectionStats", "EngineStats", "PortStats", "engine_stats"]


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
    snapshot: EngineStats = loop.call(_snapshot)
    return snapshot


def _snapshot(loop: Loop) -> EngineStats:
    connections = tuple(bridge.connection.stats() for bridge in loop.bridges.values())
    totals = loop.totals.copy()
    for connection in connections:
        totals.add(connection)
    return EngineStats(
        connections_initiated=loop.initiated,
        connections_accepted=loop.accepted,
        connections_open=len(loop.bridges),
        ports_open=len(loop.endpoints),
        wakeups=loop.wakeups,
        faults=loop.faults,
        tcp_initiated=loop.tcp_initiated,
        tcp_accepted=loop.tcp_accepted,
        sent_bytes=totals.sent_bytes,
        received_bytes=totals.delivered_bytes,
        sent_packets=totals.sent_packets,
        received_packets=totals.received_packets,
        retransmitted_packets=totals.retransmitted_packets,
        ports=tuple(
            PortStats(
                local=endpoint.port.local,
                connections=len(endpoint.bridges),
                is_listening=endpoint.listener is not None,
                sent_datagrams=endpoint.port.sent_datagrams,
                sent_calls=endpoint.port.sent_calls,
                received_datagrams=endpoint.port.received_datagrams,
                received_runs=endpoint.port.received_runs,
                dropped_datagrams=endpoint.dropped_datagrams,
                truncated_datagrams=endpoint.port.truncated_datagrams,
                sent_resets=endpoint.sent_resets,
                receive_buffer_bytes=endpoint.port.receive_buffer_bytes,
            )
            for endpoint in loop.endpoints.values()
        ),
        connections=connections,
    )

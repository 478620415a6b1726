"""The engine's figures as plain values: what stats.py asks for through the commands. Only the engine's thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from utpsocket.engine.loop import Loop
    from utpsocket.engine.ports.endpoint import Endpoint
    from utpsocket.protocol import Address
    from utpsocket.protocol.report import Figures


class EngineFigures(TypedDict):
    """The fields of EngineStats, without ports and connections."""

    connections_initiated: int
    connections_accepted: int
    connections_open: int
    ports_open: int
    wakeups: int
    faults: int
    tcp_initiated: int
    tcp_accepted: int
    tcp_open: int
    sent_bytes: int
    received_bytes: int
    sent_packets: int
    received_packets: int
    retransmitted_packets: int


class PortFigures(TypedDict):
    """The fields of PortStats."""

    local: Address
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


def of_engine(loop: Loop) -> tuple[EngineFigures, list[PortFigures], list[Figures]]:
    """Those of the engine, of each port and of each connection, at this instant."""
    totals = loop.totals.copy()
    bridges = [(each, each.connection) for each in loop.channels.values() if each.connection is not None]
    for _, connection in bridges:
        totals.add(connection)
    figures: EngineFigures = {
        "connections_initiated": loop.initiated,
        "connections_accepted": loop.accepted,
        "connections_open": len(bridges),
        "ports_open": len(loop.endpoints),
        "wakeups": loop.wakeups,
        "faults": loop.faults,
        "tcp_initiated": loop.tcp_initiated,
        "tcp_accepted": loop.tcp_accepted,
        "tcp_open": len(loop.channels) - len(bridges),
        "sent_bytes": totals.sent_bytes,
        "received_bytes": totals.delivered_bytes,
        "sent_packets": totals.sent_packets,
        "received_packets": totals.received_packets,
        "retransmitted_packets": totals.retransmitted_packets,
    }
    ports = [_of_port(endpoint) for endpoint in list(loop.endpoints.values())]
    return figures, ports, [bridge.figures() for bridge, _ in bridges]


def _of_port(endpoint: Endpoint) -> PortFigures:
    port = endpoint.port
    return {
        "local": port.local,
        "connections": len(endpoint.bridges),
        "is_listening": endpoint.listener is not None,
        "sent_datagrams": port.sent_datagrams,
        "sent_calls": port.sent_calls,
        "received_datagrams": port.received_datagrams,
        "received_runs": port.received_runs,
        "dropped_datagrams": endpoint.dropped_datagrams,
        "truncated_datagrams": port.truncated_datagrams,
        "sent_resets": endpoint.sent_resets,
        "receive_buffer_bytes": port.receive_buffer_bytes,
    }

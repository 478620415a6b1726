"""The engine's figures as plain values: what stats.py asks for through the commands. Only the engine's thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from utpsocket.engine.loop import Loop


def of_engine(loop: Loop) -> dict[str, Any]:
    """Totals by name, ports by name, connections' fields: plain values, of this instant."""
    totals = loop.totals.copy()
    bridges = [(each, each.connection) for each in loop.channels.values() if each.connection is not None]
    for _, connection in bridges:
        totals.add(connection)
    return {
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
        "ports": [
            {
                "local": endpoint.port.local,
                "connections": len(endpoint.bridges),
                "is_listening": endpoint.listener is not None,
                "sent_datagrams": endpoint.port.sent_datagrams,
                "sent_calls": endpoint.port.sent_calls,
                "received_datagrams": endpoint.port.received_datagrams,
                "received_runs": endpoint.port.received_runs,
                "dropped_datagrams": endpoint.dropped_datagrams,
                "truncated_datagrams": endpoint.port.truncated_datagrams,
                "sent_resets": endpoint.resets.sent,
                "receive_buffer_bytes": endpoint.port.receive_buffer_bytes,
            }
            for endpoint in list(loop.endpoints.values())
        ],
        "connections": [bridge.figures() for bridge, _ in bridges],
    }

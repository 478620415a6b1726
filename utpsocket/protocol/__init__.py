"""uTP without a world: no sockets, no clock, no threads, no randomness.

The contract. A Connection is told what happened (`handle_run`, `handle_timeout`, `handle_icmp`), what the application
wants (`connect`, `free_span`/`commit`, `delivered`, `finish`, `discard`, `abort`) and is asked what to do
(`poll_event`, `poll_delivery`, `poll_transmit`, `timeout_at`). Times are integer microseconds of one monotonic clock,
`now` is keyword-only and never decreases. Nothing blocks. Network input never raises; misuse raises RuntimeError.

The unit of work is a run of packets, not a packet: Run on the way in, Transmit on the way out, Flight in between.
"""

from __future__ import annotations

from utpsocket.protocol.config import Config, Workspace
from utpsocket.protocol.connection import Connection, ConnectionStats, Event, EventKind
from utpsocket.protocol.flights import Flight
from utpsocket.protocol.packet import Packet, PacketType
from utpsocket.protocol.runs import Run, Transmit
from utpsocket.protocol.states import State
from utpsocket.protocol.times import NEVER

__all__ = [
    "NEVER",
    "Config",
    "Connection",
    "ConnectionStats",
    "Event",
    "EventKind",
    "Flight",
    "Packet",
    "PacketType",
    "Run",
    "State",
    "Transmit",
    "Workspace",
]

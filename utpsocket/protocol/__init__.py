"""The uTP protocol without input and output: no sockets, clock, threads or randomness.

connection.py's Connection is given what came from the network (`handle_run`, `handle_icmp`), that time has passed
(`handle_timeout`), and what the application wants (`connect`, `free_span` and `commit`, `finish_delivery`, `finish`,
`discard`, `abort`). It returns what is to be done (`poll_event`, `poll_delivery`, `poll_transmit`, `timeout_at`). Its
module's docstring has the contract.

The unit of work is a run of packets, not a packet: Run on the way in, Transmit on the way out, Flight in between.
"""

from __future__ import annotations

from utpsocket.protocol.config import Config, Workspace
from utpsocket.protocol.connection import Connection, ConnectionStats, Event, EventKind
from utpsocket.protocol.flights import Flight
from utpsocket.protocol.packet import Packet, PacketType
from utpsocket.protocol.runs import Address, Run, Transmit
from utpsocket.protocol.states import State
from utpsocket.protocol.times import NEVER

__all__ = [
    "NEVER",
    "Address",
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

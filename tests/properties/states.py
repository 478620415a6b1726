"""What a connection is, as plain data that can be compared: two connections of equal state behave alike from here on.

Cut where it must not matter: flights are listed packet by packet and bytes whole, in whatever pieces they are kept.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Any

from utpsocket.protocol import Connection
from utpsocket.protocol.flights import Flight
from utpsocket.protocol.packet import Packet
from utpsocket.protocol.sendbuffer import BlockPool, SendBuffer

# Scratch, counters of what was looked at how, what only says how far a burst got within one instant, and where to find
# a flight.
_NOT_STATE = {"_own_pieces", "_pool", "_resent", "_loss_checked_seq", "_lost_seqs", "_starts"}


def state_of(thing: Any) -> Any:
    """`thing` as dicts, lists and plain values."""
    if isinstance(thing, Connection):
        return _slots(thing)
    if isinstance(thing, SendBuffer):
        unacked = thing.end_offset - thing.acked_offset
        views = thing.segments(thing.acked_offset, max(1, unacked), unacked)
        return {"acked": thing.acked_offset, "bytes": b"".join(map(bytes, views)), "capacity": thing.capacity_bytes}
    if isinstance(thing, BlockPool):
        return None
    if isinstance(thing, memoryview):
        return bytes(thing)
    if isinstance(thing, Packet):
        return _slots(thing)
    if isinstance(thing, Enum) or thing is None or isinstance(thing, (int, str, bytes, float)):
        return thing
    if isinstance(thing, (list, tuple, deque)):
        if thing and all(isinstance(item, Flight) for item in thing):
            return [packet for flight in thing for packet in _packets(flight)]
        if thing and all(isinstance(item, memoryview) for item in thing):
            return b"".join(thing)
        return [state_of(item) for item in thing]
    if isinstance(thing, dict):
        return {key: state_of(value) for key, value in thing.items()}
    return _slots(thing) if attribute_names(type(thing)) else repr(type(thing))


def _slots(thing: Any) -> dict[str, Any]:
    found = {name: state_of(getattr(thing, name)) for name in sorted(attribute_names(type(thing)) - _NOT_STATE)}
    assert found, "every class here has slots"
    return found


def attribute_names(kind: type) -> set[str]:
    """The names of its attributes. Compiled classes have no __slots__; mypyc keeps the names for pickle."""
    return {
        name
        for each in kind.__mro__
        for name in vars(each).get("__slots__", ()) or vars(each).get("__mypyc_attrs__", ())
        if name != "__dict__"
    }


def _packets(flight: Flight) -> list[tuple[Any, ...]]:
    sizes = [flight.payload_bytes] * (flight.count - 1) + [flight.last_payload_bytes]
    return [
        (
            flight.seq + index,
            size,
            flight.offset + index * flight.payload_bytes,
            flight.sent_us,
            flight.sends,
            flight.state,
            flight.probe_bytes,
            flight.dont_fragment,
            flight.is_small and index == flight.count - 1,
        )
        for index, size in enumerate(sizes)
    ]

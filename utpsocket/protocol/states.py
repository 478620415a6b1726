"""The states of a connection as data: which trigger leads from which state to which.

They say whether there is a connection. How far each direction of the stream has got, FINs included, belongs to its half
(sendhalf.py, receivehalf.py), so there are fewer states than TCP has. BEP 29's diagram is wrong about the
SYN-ACK's sequence number (docs/protocol.md §2), and does not show most of the rest.
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class State(Enum):
    """The states of a connection.

    IDLE           made, and neither connect() nor a SYN has come
    SYN_SENT       an initiator waits for the answer to its SYN
    SYN_RECEIVED   an acceptor has answered, and the peer's address is not verified
    CONNECTED      data may flow, in one direction or both
    TIME_WAIT      both FINs are acked; repeated ones are acked again
    CLOSED         over; RESETs may still have to leave
    """

    # In C, where Enum's own is not: states and triggers are keys of TRANSITIONS.
    __hash__ = object.__hash__

    IDLE = "idle"
    SYN_SENT = "syn_sent"
    SYN_RECEIVED = "syn_received"
    CONNECTED = "connected"
    TIME_WAIT = "time_wait"
    CLOSED = "closed"


class Trigger(Enum):
    """What can happen to a connection."""

    __hash__ = object.__hash__

    CONNECT = "the application called connect"
    SYN = "a SYN arrived"
    SIMULTANEOUS_OPEN = "the SYNs crossed and the peer's wins: it is handled next"
    PEER_VERIFIED = "the peer acked a number that only it can know"
    BOTH_FINISHED = "both FINs are acked"
    ENDED = "TIME_WAIT is over"
    FAILED = "reset, refused, given up or aborted"


# Module-level names: what is compared for each packet is looked up several times faster than an attribute of an Enum.
IDLE: Final = State.IDLE
SYN_SENT: Final = State.SYN_SENT
SYN_RECEIVED: Final = State.SYN_RECEIVED
CONNECTED: Final = State.CONNECTED
TIME_WAIT: Final = State.TIME_WAIT
CLOSED: Final = State.CLOSED

TRANSITIONS: Final[dict[tuple[State, Trigger], State]] = {
    (State.IDLE, Trigger.CONNECT): State.SYN_SENT,
    (State.IDLE, Trigger.SYN): State.SYN_RECEIVED,
    (State.IDLE, Trigger.FAILED): State.CLOSED,
    (State.SYN_SENT, Trigger.PEER_VERIFIED): State.CONNECTED,
    (State.SYN_SENT, Trigger.SIMULTANEOUS_OPEN): State.IDLE,
    (State.SYN_SENT, Trigger.FAILED): State.CLOSED,
    (State.SYN_RECEIVED, Trigger.PEER_VERIFIED): State.CONNECTED,
    (State.SYN_RECEIVED, Trigger.FAILED): State.CLOSED,
    (State.CONNECTED, Trigger.BOTH_FINISHED): State.TIME_WAIT,
    (State.CONNECTED, Trigger.FAILED): State.CLOSED,
    (State.TIME_WAIT, Trigger.ENDED): State.CLOSED,
    (State.TIME_WAIT, Trigger.FAILED): State.CLOSED,
}

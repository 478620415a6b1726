"""BEP 29's connection states as data: which trigger leads from which state to which.

Few on purpose. How far each direction of the stream has got belongs to the half that carries it (sendhalf.py,
receivehalf.py); here stands only whether there is a connection. BEP 29's own diagram is wrong about the
SYN-ACK's sequence number (docs/protocol.md §2) and silent about most of the rest.
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class State(Enum):
    """Whether there is a connection."""

    __hash__ = object.__hash__  # in C, where Enum's own is not: each is a key below

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
    SIMULTANEOUS_OPEN = "whom we dial dials us, and goes first: its SYN is yet to be taken"
    PEER_VERIFIED = "the peer acked a number only it could know"
    BOTH_FINISHED = "both FINs are acked, and the peer may not know it"
    ENDED = "nothing more can come or go"
    FAILED = "reset, refused, given up or aborted"


IDLE: Final = State.IDLE
SYN_SENT: Final = State.SYN_SENT
SYN_RECEIVED: Final = State.SYN_RECEIVED
CONNECTED: Final = State.CONNECTED
TIME_WAIT: Final = State.TIME_WAIT
CLOSED: Final = State.CLOSED
# Under names of their own: what is asked for each packet is found in a fraction of the time an Enum's attribute takes.

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
    (State.CONNECTED, Trigger.ENDED): State.CLOSED,
    (State.CONNECTED, Trigger.FAILED): State.CLOSED,
    (State.TIME_WAIT, Trigger.ENDED): State.CLOSED,
    (State.TIME_WAIT, Trigger.FAILED): State.CLOSED,
}

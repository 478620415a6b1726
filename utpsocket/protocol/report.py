"""What a connection tells its owner: events, and figures of one instant.

Separate because it is vocabulary that other rooms share, and decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from utpsocket.protocol.receivehalf import ReceiveHalf
from utpsocket.protocol.sendhalf import SendHalf


class EventKind(Enum):
    """What poll_event() can say."""

    CONNECTED = "the handshake is complete: for an acceptor, the initiator has proved its address"
    CLOSED = "the connection is over; errno says why, 0 for an orderly end"


@dataclass(frozen=True, slots=True)
class Event:
    """Something the application's side of the connection must know."""

    kind: EventKind
    errno: int = 0


@dataclass(frozen=True, slots=True)
class ConnectionStats:
    """A connection's figures at one instant. Bytes are payload unless the name says otherwise, times µs."""

    state: str
    peer: object
    rtt_us: int
    min_rtt_us: int
    rto_us: int
    queueing_delay_us: int
    cwnd_bytes: int
    peer_window_bytes: int
    our_window_bytes: int
    in_flight_bytes: int
    packet_bytes: int
    sent_packets: int
    sent_bytes: int
    acked_bytes: int
    unsent_bytes: int
    received_packets: int
    received_bytes: int
    delivered_bytes: int
    retransmitted_packets: int
    lost_packets: int
    tail_probes: int
    timeouts: int
    duplicate_packets: int
    dropped_packets: int
    late_packets: int


def figures(state: str, peer: object, send: SendHalf, receive: ReceiveHalf, dropped: int) -> ConnectionStats:
    """The figures of a connection; `dropped`: packets that were not believed."""
    return ConnectionStats(
        state=state,
        peer=peer,
        rtt_us=send.recovery.srtt_us,
        min_rtt_us=send.recovery.min_rtt_us,
        rto_us=send.recovery.rto_us,
        queueing_delay_us=send.controller.queueing_delay_us,
        cwnd_bytes=send.controller.window_bytes,
        peer_window_bytes=send.peer.window_bytes,
        our_window_bytes=receive.window_bytes,
        in_flight_bytes=send.flights.in_flight_bytes,
        packet_bytes=send.mtu.size,
        sent_packets=send.sent_packets,
        sent_bytes=send.sent_offset,
        acked_bytes=send.buffer.acked_offset,
        unsent_bytes=send.unsent_bytes,
        received_packets=receive.received_packets,
        received_bytes=receive.received_bytes,
        delivered_bytes=receive.reassembly.delivered_bytes,
        retransmitted_packets=send.resent_packets,
        lost_packets=send.lost_packets,
        tail_probes=send.tail_probes,
        timeouts=send.timeouts,
        duplicate_packets=receive.duplicate_packets,
        dropped_packets=dropped + receive.beyond_packets,
        late_packets=receive.paws.refused_packets + send.paws.refused_packets,
    )

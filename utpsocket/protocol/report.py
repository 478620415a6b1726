"""What a connection reports: events, and its figures at one instant."""

from __future__ import annotations

import errno
from enum import Enum
from typing import Final, NamedTuple, TypeAlias

from utpsocket.protocol.build import BUILD
from utpsocket.protocol.receivehalf import ReceiveHalf
from utpsocket.protocol.runs import Address
from utpsocket.protocol.sendhalf import SendHalf
from utpsocket.protocol.states import CLOSED, TIME_WAIT, State


class EventKind(Enum):
    """What has become of a connection."""

    CONNECTED = "the handshake is complete: for an acceptor, the initiator is verified"
    CLOSED = "the connection is over; errno says why, 0 for an orderly end"


class Event(NamedTuple):
    """What poll_event() returns.

    kind    what has happened
    errno   for CLOSED: why; 0 for an orderly end
    """

    kind: EventKind
    errno: int = 0


_OUTCOMES: Final = {
    0: "closed",
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
    errno.ECONNREFUSED: "refused",
    errno.ETIMEDOUT: "timed out",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.ECONNABORTED: "aborted",
}


def outcome(code: int) -> str:
    """ConnectionStats.outcome of a connection that has ended with this errno."""
    return _OUTCOMES.get(code, "failed")


class ConnectionStats(NamedTuple):
    """A socket's state, its addresses, and the figures of its connection, at one instant.

    Bytes are payload of the stream and packets are uTP packets, unless a field says otherwise. Times are microseconds.
    A figure that is not known is 0.

    Source: docs/guide/use.md §5.
    """

    state: str = "unconnected"
    """`unconnected`, `listening`, `idle`, `syn_sent`, `syn_received`, `connected`, `time_wait` or `closed`. A
    connection is `connected` until both sides have ended it, or it is reset.
    """
    local: Address | None = None
    """Our address, as `getsockname()` gives it."""
    peer: Address | None = None
    """The peer's address; None where there is none."""
    transport: str = "utp"
    """What carries the bytes: `utp`, or `tcp` where the rules of a patch or a fallback have chosen it."""
    outcome: str = ""
    """How the connection ended: `closed` (in order, by both sides), `reset` (by the peer), `refused`, `timed out`,
    `unreachable`, `aborted` (given up on this side) or `failed`. Empty while it has not ended.
    """
    errno: int = 0
    """The errno that it ended with; 0 while it has not ended, and for `closed`."""
    rtt_us: int = 0
    """Smoothed round-trip time, µs."""
    min_rtt_us: int = 0
    """Smallest round-trip time that was measured, µs."""
    rto_us: int = 0
    """Retransmission timeout, µs."""
    queueing_delay_us: int = 0
    """Delay that queues on the path to the peer add at present, as LEDBAT estimates it, µs."""
    cwnd_bytes: int = 0
    """Congestion window, bytes."""
    peer_window_bytes: int = 0
    """Receive window that the peer advertises, bytes."""
    our_window_bytes: int = 0
    """Receive window that we advertise, bytes."""
    in_flight_bytes: int = 0
    """Sent and not yet acknowledged, bytes."""
    packet_bytes: int = 0
    """Size of the datagrams that are sent now, bytes of UDP payload."""
    sent_packets: int = 0
    """Packets with data, and FINs, that were sent; with those that were sent again."""
    sent_bytes: int = 0
    """Bytes that were sent, each counted once."""
    acked_bytes: int = 0
    """Bytes that the peer has acknowledged."""
    unsent_bytes: int = 0
    """Bytes that the program has written and that have not been sent yet."""
    received_packets: int = 0
    """Packets with data, and FINs, that were received; without those that had come before."""
    received_bytes: int = 0
    """Bytes in these packets."""
    delivered_bytes: int = 0
    """Bytes given to the program's socket."""
    retransmitted_packets: int = 0
    """Packets sent again."""
    lost_packets: int = 0
    """Packets taken for lost."""
    tail_probes: int = 0
    """Probes sent for a lost end of a flight."""
    timeouts: int = 0
    """Retransmission timeouts; those of a SYN are not counted."""
    duplicate_packets: int = 0
    """Packets received that had come before."""
    dropped_packets: int = 0
    """Packets of the peer that were refused."""
    late_packets: int = 0
    """Packets too old to be of this round of sequence numbers."""
    congestion: str = ""
    """Name of the congestion controller, as `UTP_CONGESTION` and `TCP_CONGESTION` take it. Empty where there is no
    connection.
    """
    build: str = BUILD
    """Which build of utpsocket runs here: `compiled` or `pure`."""


# The values of an Enum are a property in Python.
_STATES: Final = {state: state.value for state in State}
Figures: TypeAlias = tuple[
    str,  # state
    Address | None,  # local
    Address | None,  # peer
    str,  # transport
    str,  # outcome
    int,  # errno
    int,  # rtt_us
    int,  # min_rtt_us
    int,  # rto_us
    int,  # queueing_delay_us
    int,  # cwnd_bytes
    int,  # peer_window_bytes
    int,  # our_window_bytes
    int,  # in_flight_bytes
    int,  # packet_bytes
    int,  # sent_packets
    int,  # sent_bytes
    int,  # acked_bytes
    int,  # unsent_bytes
    int,  # received_packets
    int,  # received_bytes
    int,  # delivered_bytes
    int,  # retransmitted_packets
    int,  # lost_packets
    int,  # tail_probes
    int,  # timeouts
    int,  # duplicate_packets
    int,  # dropped_packets
    int,  # late_packets
    str,  # congestion
]
"""The fields of a ConnectionStats but `build` as plain values, in their order: ConnectionStats(*figures)."""


def figures(
    state: State,
    code: int,
    local: Address | None,
    peer: Address,
    send: SendHalf,
    receive: ReceiveHalf,
    dropped: int,
) -> Figures:
    """The fields of a connection's ConnectionStats, in their order.

    code     the errno that the connection ended with, 0 for none
    dropped  packets that were refused
    """
    recovery, controller = send.recovery, send.controller
    return (
        _STATES[state],
        local,
        peer,
        "utp",
        outcome(code) if state in (CLOSED, TIME_WAIT) else "",
        code,
        recovery.srtt_us,
        recovery.min_rtt_us,
        recovery.rto_us,
        controller.queueing_delay_us,
        controller.window_bytes,
        send.peer.window_bytes,
        receive.window_bytes,
        send.flights.in_flight_bytes,
        send.mtu.datagram_bytes,
        send.sent_packets,
        send.sent_offset,
        send.buffer.acked_offset,
        send.unsent_bytes,
        receive.received_packets,
        receive.received_bytes,
        receive.reassembly.delivered_bytes,
        send.resent_packets,
        send.lost_packets,
        send.tail_probes,
        send.timeouts,
        receive.duplicate_packets,
        dropped + receive.out_of_window_packets,
        receive.paws.refused_packets + send.paws.refused_packets,
        controller.NAME,
    )


def fields(stats: ConnectionStats) -> Figures:
    """Its fields but `build` as plain values, in their order: ConnectionStats(*fields(stats)) is the same again."""
    return stats[:-1]

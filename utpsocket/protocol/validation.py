"""Whether a packet is our peer's, and what a RESET ends: rules against attackers off the path, which can only guess.

Sources: docs/protocol.md §4; RFC 5961 §3 and §5.2, which have the same rules for TCP.
"""

from __future__ import annotations

from typing import Final

from utpsocket.protocol.flights import Flights
from utpsocket.protocol.packet import DATA, FIN, RESET

ACK_SLACK: Final = 3  # libutp's ACK_NR_ALLOWED_WINDOW; docs/protocol.md §4
_UNVERIFIED_SLACK: Final = 1  # for a keepalive, which may be the first packet that libutp's initiator sends


def is_acceptable_ack(type: int, ack_next_seq: int, flights: Flights, *, is_peer_verified: bool) -> bool:
    """Whether a packet's ack is in the range that only our peer can know.

    A STATE that was overtaken is out of date, so little is allowed. DATA and FIN may have been overtaken by as many
    acks as packets were in flight, and carry what must not be lost. A RESET may ack the number of our STATE, which is
    one above our last packet's.
    """
    behind = ACK_SLACK
    if not is_peer_verified:
        behind = _UNVERIFIED_SLACK
    elif type in (DATA, FIN):
        behind += flights.max_outstanding
    ahead = 1 if type == RESET else 0
    return flights.una_seq - behind <= ack_next_seq <= flights.next_seq + ahead


def is_clean_close(ack_next_seq: int, fin_seq: int | None, *, is_all_acked: bool, waits_for_more: bool) -> bool:
    """Whether a RESET is a peer's answer to our FIN, after which no data is missing: it acks the FIN, or all bytes
    before the FIN are acked, and the application does not wait for data of the peer's.
    """
    return fin_seq is not None and (is_all_acked or ack_next_seq > fin_seq) and not waits_for_more

"""Whether a packet is our peer's, and what a RESET ends: rules against those who can only guess.

Separate because it is judgement over numbers alone, and the one place to read when somebody asks what an off-path
attacker can do.

Sources: docs/protocol.md §4; RFC 5961 §3 and §5.2, which say the same of TCP.
"""

from __future__ import annotations

from typing import Final

from utpsocket.protocol.flights import Flights
from utpsocket.protocol.packet import DATA, FIN, RESET

ACK_SLACK: Final = 3  # libutp's ACK_NR_ALLOWED_WINDOW; docs/protocol.md §4
_UNVERIFIED_SLACK: Final = 1  # a first keepalive: libutp's initiator may say nothing else


def is_acceptable_ack(type: int, ack_next_seq: int, flights: Flights, *, is_peer_verified: bool) -> bool:
    """Whether the packet's ack is one that only our peer could know.

    A STATE that was overtaken says nothing new, so it need not be let in from far behind. DATA and FIN may have been
    overtaken by as many acks as there were packets under way, and carry what must not be lost. A RESET may name our
    STATE's number, which is one past our last packet.
    """
    behind = ACK_SLACK
    if not is_peer_verified:
        behind = _UNVERIFIED_SLACK
    elif type in (DATA, FIN):
        behind += flights.max_outstanding
    ahead = 1 if type == RESET else 0
    return flights.una_seq - behind <= ack_next_seq <= flights.next_seq + ahead


def is_clean_close(ack_next_seq: int, fin_seq: int | None, *, is_all_acked: bool, waits_for_more: bool) -> bool:
    """Whether a RESET is the answer of somebody who is done to our FIN, and no loss: it acks the FIN, or everything
    before the FIN was acked, and nobody here still waits for what the peer had to say.
    """
    return fin_seq is not None and (is_all_acked or ack_next_seq > fin_seq) and not waits_for_more

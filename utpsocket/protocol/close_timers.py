"""How long an end may take: the clocks of a connection that somebody has closed.

Separate because it is about time alone. That both directions have ended is the halves' to know, what follows from it
the connection's to do.

Sources: docs/protocol.md §3, §12; tcp(7) tcp_fin_timeout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from utpsocket.protocol.packet import Packet, PacketType, encode
from utpsocket.protocol.receivehalf import NEVER, ReceiveHalf
from utpsocket.protocol.sendhalf import SendHalf

TIME_WAIT_US: Final = 600_000  # three of the shortest timeouts: long enough to re-ack a repeated FIN
MOST_TIME_WAIT_US: Final = 60_000_000  # as Linux: however often the peer repeats itself
_TROUBLED_WAITS: Final = 5  # where packets are known to be lost, the peer's timeout may have been doubled three times
FIN_WAIT_US: Final = 60_000_000  # as Linux tcp_fin_timeout: nobody here reads, and the peer does not finish
ASK_AFTER_US: Final = 5_000_000  # of silence after our FIN was acked, then doubled
_MOST_ASK_US: Final = 160_000_000
_ASK_COUNT: Final = 9  # without an answer, some 15 minutes: as long as Linux repeats a packet (tcp_retries2)
ABORT_FLUSH_US: Final = 1_000_000  # TCP resets at once; our last bytes get this long to arrive before
# a FIN that follows no data, and that perhaps will never be acked, is repeated so long
UNACKED_FIN_US: Final = 31_000_000


@dataclass(frozen=True, slots=True)
class Remains:
    """What is kept of a connection that ended in order, for as long as TIME_WAIT lasts elsewhere: enough to ack again
    what the peer repeats because our last acks were lost. A RESET in answer to its data would look like a loss.
    """

    send_id: int
    seq: int
    ack: int

    def answer(self, packet: Packet, *, now: int) -> bytes | None:
        """The ack of a packet that came before, None for any other."""
        is_old = (self.ack - packet.seq16) & 0xFFFF < 0x8000
        if packet.type not in (PacketType.DATA, PacketType.FIN) or not is_old:
            return None
        return encode(
            PacketType.STATE,
            self.send_id,
            timestamp_us=now,
            difference_us=(now - packet.timestamp_us) & 0xFFFFFFFF if packet.timestamp_us else 0,
            window_bytes=0,
            seq=self.seq,
            ack=self.ack,
        )


class Closing:
    """Times µs.

    since               when the application last said an end of something
    time_wait_at        when late FINs need no answer any more
    ask_at              when a peer that has our FIN and is silent is to be asked whether it is there
    reset_after_flush   a RESET follows what was written, in place of a FIN
    reset_errno         what the application is told then, 0 where there is nobody to tell
    """

    __slots__ = (
        "_asked",
        "_asked_at",
        "_finished_at",
        "_receive",
        "_send",
        "_unanswered",
        "ask_at",
        "reset_after_flush",
        "reset_errno",
        "since",
        "time_wait_at",
    )

    def __init__(self, send: SendHalf, receive: ReceiveHalf) -> None:
        self._send = send
        self._receive = receive
        self.since = NEVER
        self.time_wait_at = NEVER
        self._finished_at = NEVER
        self.ask_at = NEVER
        self._asked = 0
        self._asked_at = 0
        self._unanswered = 0
        self.reset_after_flush = False
        self.reset_errno = 0

    def start_time_wait(self, *, now: int) -> None:
        """Both FINs are acked, and the peer may not know it. Also when it proves that it does not: what it repeats
        after this time is answered by a RESET, which looks like a loss to it.
        """
        if self.time_wait_at == NEVER:
            self._finished_at = now
        wait_us = max(TIME_WAIT_US, 3 * self._send.recovery.rto_us // 2)
        if self._send.resent_packets or self._receive.duplicate_packets:
            # Its timeouts double, so the next repetition comes after as long as all before it together, and once more.
            wait_us = max(wait_us * _TROUBLED_WAITS, 3 * (now - self._finished_at))
        self.time_wait_at = min(now + wait_us, self._finished_at + MOST_TIME_WAIT_US)

    def watch_half_closed(self, *, now: int) -> None:
        """Our FIN may be acked and the peer's be missing, for which somebody waits. Transmission 3.00, ethereum/utp and
        rust-utp forget a connection with the FIN they have acked, and never send theirs: they must be asked.
        """
        if self.ask_at == NEVER and self._is_half_closed:
            self.ask_at = now + ASK_AFTER_US

    @property
    def _is_half_closed(self) -> bool:
        receive = self._receive
        return self._send.is_finished and not receive.reassembly.is_finished and not receive.is_discarding

    def must_ask(self, heard_at: int, *, now: int) -> bool | None:
        """At ask_at: whether to ask the peer now; None: it was asked often enough, and is not there."""
        if not self._is_half_closed:
            self.ask_at = NEVER
            return False
        wait_us = min(ASK_AFTER_US << self._asked, _MOST_ASK_US)
        if heard_at > now - wait_us:
            self.ask_at = heard_at + wait_us
            return False
        if heard_at >= self._asked_at:
            self._unanswered = 0
        if self._unanswered >= _ASK_COUNT:
            return None
        self._asked = min(self._asked + 1, 8)
        self._unanswered += 1
        self._asked_at = now
        self.ask_at = now + min(ASK_AFTER_US << self._asked, _MOST_ASK_US)
        return True

    def give_up_at(self) -> int:
        """When what is left of a connection that nobody reads is aborted; NEVER while somebody does."""
        if not self._receive.is_discarding:
            return NEVER
        if self.reset_after_flush:
            return self.since + ABORT_FLUSH_US
        return self.since + FIN_WAIT_US if self._send.is_finished else NEVER

    def is_fin_ignored(self, *, now: int) -> bool:
        """Whether an initiator's FIN that follows no data, as here, should count as heard: some never say so."""
        send = self._send
        return (
            now >= self.since + UNACKED_FIN_US
            and send.fin_seq is not None
            and not send.is_finished
            and not send.sent_offset
            and self._receive.is_discarding
        )

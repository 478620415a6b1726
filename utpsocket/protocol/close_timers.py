"""How long an end may take: the clocks of a connection that somebody has closed.

Separate because it is about time alone. That both directions have ended is the halves' to know, what follows from it
the connection's to do.

Sources: docs/protocol.md §3, §12; tcp(7) tcp_fin_timeout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from utpsocket.protocol.packet import Packet, PacketType, encode
from utpsocket.protocol.receivehalf import ReceiveHalf
from utpsocket.protocol.sendhalf import SendHalf
from utpsocket.protocol.times import NEVER

TIME_WAIT_US: Final = 600_000  # three of the shortest timeouts: long enough to re-ack a repeated FIN
MAX_TIME_WAIT_US: Final = 60_000_000  # as Linux: however often the peer repeats itself
_LOSSY_TIME_WAIT_FACTOR: Final = (
    5  # where packets are known to be lost, the peer's timeout may have been doubled three times
)
FIN_WAIT_US: Final = 60_000_000  # as Linux tcp_fin_timeout: nobody here reads, and the peer does not finish
HALF_CLOSED_PROBE_US: Final = 5_000_000  # of silence after our FIN was acked, then doubled
_MAX_HALF_CLOSED_PROBE_US: Final = 160_000_000
_HALF_CLOSED_PROBES: Final = 9  # without an answer, some 15 minutes: as long as Linux repeats a packet (tcp_retries2)
ABORT_FLUSH_US: Final = 1_000_000  # TCP resets at once; our last bytes get this long to arrive before
# a FIN that follows no data, and that perhaps will never be acked, is repeated so long
UNACKED_FIN_US: Final = 31_000_000


@dataclass(frozen=True, slots=True)
class TimeWaitRecord:
    """What is kept of a connection that ended in order, for as long as TIME_WAIT lasts elsewhere: enough to ack again
    what the peer repeats because our last acks were lost. A RESET in answer to its data would look like a loss.
    """

    send_id: int
    seq: int
    ack: int

    def ack_repeated(self, packet: Packet, *, now: int) -> bytes | None:
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


class CloseTimers:
    """Times µs.

    closed_at               when the application last said an end of something
    time_wait_at        when late FINs need no answer any more
    half_closed_probe_at              when a peer that has our FIN and is silent is to be asked whether it is there
    reset_after_flush   a RESET follows what was written, in place of a FIN
    reset_errno         what the application is told then, 0 where there is nobody to tell
    """

    __slots__ = (
        "_finished_at",
        "_probe_count",
        "_probed_at",
        "_receive",
        "_send",
        "_unanswered_probes",
        "closed_at",
        "half_closed_probe_at",
        "reset_after_flush",
        "reset_errno",
        "time_wait_at",
    )

    def __init__(self, send: SendHalf, receive: ReceiveHalf) -> None:
        self._send = send
        self._receive = receive
        self.closed_at = NEVER
        self.time_wait_at = NEVER
        self._finished_at = NEVER
        self.half_closed_probe_at = NEVER
        self._probe_count = 0
        self._probed_at = 0
        self._unanswered_probes = 0
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
            wait_us = max(wait_us * _LOSSY_TIME_WAIT_FACTOR, 3 * (now - self._finished_at))
        self.time_wait_at = min(now + wait_us, self._finished_at + MAX_TIME_WAIT_US)

    def watch_half_closed(self, *, now: int) -> None:
        """Our FIN may be acked and the peer's be missing, for which somebody waits. Transmission 3.00, ethereum/utp and
        rust-utp forget a connection with the FIN they have acked, and never send theirs: they must be asked.
        """
        if self.half_closed_probe_at == NEVER and self._is_half_closed:
            self.half_closed_probe_at = now + HALF_CLOSED_PROBE_US

    @property
    def _is_half_closed(self) -> bool:
        receive = self._receive
        return self._send.is_finished and not receive.reassembly.is_finished and not receive.is_discarding

    def poll_half_closed_probe(self, received_at: int, *, now: int) -> bool | None:
        """At half_closed_probe_at: whether to ask the peer now; None: it was asked often enough, and is not there."""
        if not self._is_half_closed:
            self.half_closed_probe_at = NEVER
            return False
        wait_us = min(HALF_CLOSED_PROBE_US << self._probe_count, _MAX_HALF_CLOSED_PROBE_US)
        if received_at > now - wait_us:
            self.half_closed_probe_at = received_at + wait_us
            return False
        if received_at >= self._probed_at:
            self._unanswered_probes = 0
        if self._unanswered_probes >= _HALF_CLOSED_PROBES:
            return None
        self._probe_count = min(self._probe_count + 1, 8)
        self._unanswered_probes += 1
        self._probed_at = now
        self.half_closed_probe_at = now + min(HALF_CLOSED_PROBE_US << self._probe_count, _MAX_HALF_CLOSED_PROBE_US)
        return True

    def abort_at(self) -> int:
        """When what is left of a connection that nobody reads is aborted; NEVER while somebody does."""
        if not self._receive.is_discarding:
            return NEVER
        if self.reset_after_flush:
            return self.closed_at + ABORT_FLUSH_US
        return self.closed_at + FIN_WAIT_US if self._send.is_finished else NEVER

    def is_fin_ignored(self, *, now: int) -> bool:
        """Whether an initiator's FIN that follows no data, as here, should count as heard: some never say so."""
        send = self._send
        return (
            now >= self.closed_at + UNACKED_FIN_US
            and send.fin_seq is not None
            and not send.is_finished
            and not send.sent_offset
            and self._receive.is_discarding
        )

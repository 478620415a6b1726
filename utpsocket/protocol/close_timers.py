"""How long the end of a connection may take: its timers after the application has closed one direction or both.

Sources: docs/protocol.md §3, §12; tcp(7) tcp_fin_timeout.
"""

from __future__ import annotations

from typing import Final

from utpsocket.protocol.packet import Packet, PacketType, encode
from utpsocket.protocol.receivehalf import ReceiveHalf
from utpsocket.protocol.sendhalf import SendHalf
from utpsocket.protocol.times import NEVER

# How long a repeated FIN is acked: three of the least retransmission timeouts.
TIME_WAIT_US: Final = 600_000
MAX_TIME_WAIT_US: Final = 60_000_000  # however often the peer repeats its FIN; Linux's TIME_WAIT
# By how much longer where packets are known to be lost: the peer's timeout may have been doubled three times. By feel.
_LOSSY_TIME_WAIT_FACTOR: Final = 5
# After so much of TIME_WAIT, or four round trips if that is longer, the peer is taken to have our last ack where no
# packet is known to be lost. By feel: less than the least timeout, of 200 ms, after which it would repeat its FIN, so
# that also a thousand connections in a second, of which 256 wait, end without a RESET each.
_LAST_ACK_US: Final = 50_000
# How long a peer that does not finish is waited for when the application has closed its socket: Linux's
# tcp_fin_timeout.
FIN_WAIT_US: Final = 60_000_000
# After so much silence a peer that has our FIN and has not sent its own is probed, then after doubled times up to the
# second. Nine probes without an answer take some 15 minutes, as long as Linux repeats a packet (tcp_retries2).
HALF_CLOSED_PROBE_US: Final = 5_000_000
_MAX_HALF_CLOSED_PROBE_US: Final = 160_000_000
_HALF_CLOSED_PROBES: Final = 9
# How long what was written may take to be acked before the RESET of a close with unread data. TCP resets at once. By
# feel.
ABORT_FLUSH_US: Final = 1_000_000
# How long a FIN that follows no data is repeated: libutp may never ack it. As long as our SYNs are repeated.
UNACKED_FIN_US: Final = 31_000_000


class TimeWaitRecord:
    """What is kept for a minute of a connection that ended in order: enough to ack what the peer repeats because our
    last acks were lost. A RESET in answer would make its application think that data was lost.

    send_id   connection id of what we sent
    seq       our next sequence number, its lower 16 bits
    ack       the last number that we received, its lower 16 bits
    """

    __slots__ = ("ack", "send_id", "seq")

    def __init__(self, send_id: int, seq: int, ack: int) -> None:
        self.send_id = send_id
        self.seq = seq
        self.ack = ack

    def ack_repeated(self, packet: Packet, *, now: int) -> bytes | None:
        """The ack of a DATA or FIN that we had received; None for any other packet."""
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
    """The timers of closing. Times µs; a time `_at` is NEVER while there is none.

    closed_at              when the application last closed a direction
    time_wait_at           when TIME_WAIT ends
    half_closed_probe_at   when a peer that has our FIN and has not sent its own is probed, if it stays silent
    reset_after_flush      a RESET follows what was written, in place of a FIN
    reset_errno            errno of the CLOSED event then; 0 for none

    _send, _receive      the two directions
    _finished_at         when both directions were finished
    _probe_count         how often the time between probes was doubled
    _probed_at           when the last probe was due
    _unanswered_probes   probes since the peer last sent anything
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
        """Both FINs are acked, or the peer repeats what has been acked: begin TIME_WAIT, or prolong it. What the peer
        repeats afterwards would be answered by a RESET, which looks like a loss of data.
        """
        if self.time_wait_at == NEVER:
            self._finished_at = now
        wait_us = max(TIME_WAIT_US, 3 * self._send.recovery.rto_us // 2)
        if self._send.resent_packets or self._receive.duplicate_packets:
            # The peer's timeouts double, so the next repetition comes after as long as all before it together.
            wait_us = max(wait_us * _LOSSY_TIME_WAIT_FACTOR, 3 * (now - self._finished_at))
        self.time_wait_at = min(now + wait_us, self._finished_at + MAX_TIME_WAIT_US)

    def has_peer_last_ack(self, *, now: int) -> bool:
        """Whether the peer very likely has our last ack, so that TIME_WAIT may end without a word to it. If it has not,
        it repeats its FIN, and learns by ICMP that the port is closed.
        """
        if self._send.resent_packets or self._receive.duplicate_packets:
            return False
        return now >= self._finished_at + max(_LAST_ACK_US, 4 * self._send.recovery.srtt_us)

    def watch_half_closed(self, *, now: int) -> None:
        """Begin to probe the peer if our FIN is acked, its own has not come, and the application waits for it.
        Transmission 3.00, ethereum/utp and rust-utp forget a connection with the FIN that they ack, and send none.
        """
        if self.half_closed_probe_at == NEVER and self._is_half_closed:
            self.half_closed_probe_at = now + HALF_CLOSED_PROBE_US

    @property
    def _is_half_closed(self) -> bool:
        receive = self._receive
        return self._send.is_fin_acked and not receive.reassembly.is_fin_reached and not receive.is_discarding

    def poll_half_closed_probe(self, received_at: int, *, now: int) -> bool | None:
        """What to do at half_closed_probe_at. Returns whether a probe must leave now; None: give the peer up, since
        _HALF_CLOSED_PROBES were not answered. Sets the time of the next probe.
        """
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
        """When the connection is aborted because its end takes too long; NEVER while the application may still read."""
        if not self._receive.is_discarding:
            return NEVER
        if self.reset_after_flush:
            return self.closed_at + ABORT_FLUSH_US
        return self.closed_at + FIN_WAIT_US if self._send.is_fin_acked else NEVER

    def is_fin_ignored(self, *, now: int) -> bool:
        """Whether an initiator has repeated a FIN that follows no data for so long that it should count as acked:
        libutp may never ack it. docs/protocol.md §3.
        """
        send = self._send
        return (
            now >= self.closed_at + UNACKED_FIN_US
            and send.fin_seq is not None
            and not send.is_fin_acked
            and not send.sent_offset
            and self._receive.is_discarding
        )

"""One uTP connection without sockets, clock, threads or randomness: who is told what, in which order.

Read this first. Four kinds of method: getters; `handle_*`, by which the world speaks; plain verbs, by which the
application speaks; `poll_*`, which give what is for the world. Times are integer microseconds of one monotonic clock;
`now` never decreases. After any handle_* or verb: poll_event() until None, poll_delivery() then delivered(),
poll_transmit() until None, then timeout_at(). The order matters to nobody but the ack: asked last, it covers all.

Sequence numbers are unbounded integers here; their 16-bit form exists in packet.py only. What each direction is
doing is its half's: receivehalf.py, sendhalf.py. Here: is there a connection, and is this packet a part of it?

Sources: BEP 29; PROTOCOL.md §2 to §4, §12.
"""

from __future__ import annotations

import errno
from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Final

from utpsocket.protocol.config import Config, Workspace
from utpsocket.protocol.flights import Flight
from utpsocket.protocol.packet import (
    HEADER_BYTES,
    MAX_SACK_BYTES,
    Packet,
    PacketType,
    Run,
    Transmit,
    decode,
    encode,
    sack_ranges,
    unwrap,
)
from utpsocket.protocol.receivehalf import NEVER, ReceiveHalf
from utpsocket.protocol.sendhalf import PROVEN_REORDER_PACKETS, SendHalf
from utpsocket.protocol.states import TRANSITIONS, State, Trigger

SYN_RTO_US: Final = 1_000_000  # PROTOCOL.md §9
SYN_TRIES: Final = 5
HALF_OPEN_US: Final = 20_000_000  # an acceptor waits this long for the proof that the initiator exists
KEEPALIVE_US: Final = 29_000_000  # libutp's, and short enough for NATs
TIME_WAIT_US: Final = 600_000  # three of the shortest timeouts: long enough to re-ack a repeated FIN
FIN_WAIT_US: Final = 60_000_000  # as Linux tcp_fin_timeout: nobody here reads, and the peer does not finish
MUTE_FIN_TIMEOUTS: Final = 2  # libutp never acks a FIN that follows no data: PROTOCOL.md §3
_ACK_SLACK: Final = 3  # PROTOCOL.md §4
_STATE_REPEAT_US: Final = 100_000  # a repeated SYN is answered at most this often
_NEW_DRAW_DISTANCE: Final = 1_024
_NO_SAMPLES: Final = (0, 0x7FFFFFFF)  # PROTOCOL.md §6
_CLOCK: Final = 0xFFFFFFFF


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


class Connection:
    """A uTP connection. See the module's docstring for the contract.

    config, workspace   tuning, and the memory shared by the connections of one thread
    addr                the peer's address, returned untouched in every Transmit
    recv_id             connection id of what we receive, 16 bits from a CSPRNG (an acceptor: SYN's id + 1)
    first_seq           our first sequence number, 16 bits from a CSPRNG
    """

    __slots__ = (
        "_closing_since",
        "_config",
        "_delay_us",
        "_dropped",
        "_events",
        "_heard_at",
        "_keepalive_due",
        "_keepalive_us",
        "_next_keepalive_at",
        "_reset_after_flush",
        "_reset_due",
        "_state_repeated_at",
        "_syn_at",
        "_syn_seq",
        "_syn_tries",
        "_time_wait_at",
        "_workspace",
        "addr",
        "errno",
        "is_initiator",
        "receive",
        "recv_id",
        "send",
        "send_id",
        "soft_errno",
        "state",
    )

    def __init__(self, config: Config, workspace: Workspace, addr: object, *, recv_id: int, first_seq: int) -> None:
        self._config = config
        self._workspace = workspace
        self.addr = addr
        self.recv_id = recv_id
        self.send_id = (recv_id - 1) & 0xFFFF
        self.state = State.IDLE
        self.is_initiator = False
        self.errno = 0
        self.soft_errno = 0  # the last ICMP error that proves nothing: said only if the connection then times out
        self.receive = ReceiveHalf(config.receive_buffer_bytes)
        self.send: SendHalf = config.new_send_half(workspace, first_seq)
        self._events: deque[Event] = deque()
        self._syn_seq = first_seq
        self._syn_tries = 0
        self._syn_at = NEVER  # when the SYN leaves (again); an acceptor: when waiting for the proof ends
        self._state_repeated_at = -_STATE_REPEAT_US
        self._reset_due: tuple[int, int] | None = None  # (seq, ack) of a RESET to send
        self._reset_after_flush = False
        self._keepalive_us = 0
        self._keepalive_due = False
        self._next_keepalive_at = NEVER
        self._heard_at = 0
        self._closing_since = NEVER
        self._time_wait_at = NEVER
        self._delay_us = 0
        self._dropped = 0

    # ── getters ──

    @property
    def is_over(self) -> bool:
        """Closed, with nothing left to send: it may be forgotten."""
        return self.state is State.CLOSED and self._reset_due is None

    @property
    def has_eof(self) -> bool:
        """The peer's FIN has come and everything before it has been delivered."""
        return self.receive.reassembly.is_finished and not self.receive.reassembly.ready_bytes

    @property
    def is_flushed(self) -> bool:
        """Everything written, and our FIN if finish() was called, is acked; or there is no connection any more."""
        if self.state in (State.CLOSED, State.TIME_WAIT):
            return True
        return self.send.is_finished if self.send.is_finishing else self.send.is_idle

    def stats(self) -> ConnectionStats:
        """Figures of this instant."""
        send, receive = self.send, self.receive
        return ConnectionStats(
            state=self.state.value,
            peer=self.addr,
            rtt_us=send.recovery.srtt_us,
            min_rtt_us=send.recovery.min_rtt_us,
            rto_us=send.recovery.rto_us,
            queueing_delay_us=send.controller.queueing_delay_us,
            cwnd_bytes=send.controller.window_bytes,
            peer_window_bytes=send.peer_window_bytes,
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
            dropped_packets=self._dropped + receive.beyond_packets,
        )

    # ── the application speaks ──

    def connect(self, *, now: int) -> None:
        """Open towards addr. CONNECTED or CLOSED follows as an event. BEP 29 "connection setup"."""
        self._move(Trigger.CONNECT)
        self.is_initiator = True
        self.send_id = (self.recv_id + 1) & 0xFFFF
        self.send.start(self._syn_seq + 1)  # the SYN consumes a sequence number, a STATE never does
        self._syn_at = now
        self._heard_at = now

    def free_span(self) -> memoryview:
        """Memory for the next bytes to send; empty when the send buffer is full or nothing may be written."""
        if self.send.is_finishing or self.state in (State.CLOSED, State.TIME_WAIT):
            return memoryview(b"")
        return self.send.buffer.free_span()

    def commit(self, count: int, *, more: bool = False) -> None:
        """`count` bytes were written at the front of free_span(). `more`: the application has written further bytes
        that follow at once, so a short packet may wait; end with a commit(0).
        """
        self.send.buffer.commit(count)
        self.send.has_more = more

    def delivered(self, count: int, *, now: int) -> None:
        """The application took the first `count` bytes of what poll_delivery() gave; the rest is kept, copied."""
        self.receive.delivered(count, now=now)

    def finish(self, *, now: int) -> None:
        """Nothing more will be written: our FIN follows the last byte. Idempotent. BEP 29 "ST_FIN"."""
        if not self.send.is_finishing:
            self.send.is_finishing = True
            self.send.has_more = False
            self._closing_since = now
            self._settle(now=now)

    def discard(self, *, now: int) -> None:
        """Nobody will read any more. Bytes that come from now on are answered by a RESET, as TCP does, but only
        after what we wrote has arrived. Follows the application's close().
        """
        if not self.receive.is_discarding:
            if self.receive.reassembly.ready_bytes or self.receive.reassembly.has_held:
                self._reset_after_flush = True
            self.receive.discard()
            self._closing_since = now
            self._settle(now=now)

    def reset_after_flush(self, *, now: int) -> None:
        """End with a RESET instead of a FIN once everything written is acked: the application left bytes unread."""
        self._reset_after_flush = True
        self._settle(now=now)

    def abort(self, error: int = 0) -> None:
        """Forget everything and tell the peer by RESET. `error` is what the application will see."""
        if self.state in (State.CLOSED, State.IDLE):
            self._close(error)
            return
        if self.state is not State.SYN_SENT:
            self._reset_due = (self.send.flights.next_seq, self.receive.ack)
        self._close(error)

    def keepalive(self, interval_us: int, *, now: int) -> None:
        """Send a packet whenever nothing was heard or said for this long; 0 turns it off. PROTOCOL.md §7."""
        self._keepalive_us = interval_us
        self._next_keepalive_at = now + interval_us if interval_us else NEVER

    # ── the world speaks ──

    def handle_run(self, run: Run, *, now: int) -> None:
        """Datagrams of this connection's peer arrived, with our recv_id (or send_id, for a RESET).

        A run of any other shape than a clean one is the sum of its packets; a clean one is too, only faster.
        """
        if self.state is State.CONNECTED and run.is_clean() and self._handle_clean(run, now=now):
            return
        for datagram in run.datagrams():
            packet = decode(datagram)
            if packet is None:
                self._dropped += 1
            else:
                self._handle_packet(packet, now=now)

    def _handle_clean(self, run: Run, *, now: int) -> bool:
        """The run as a whole, where nothing about it is special; False: it must be looked at packet by packet."""
        packet = decode(run.data[: run.stride])
        assert packet is not None
        receive, send = self.receive, self.send
        reassembly = receive.reassembly
        seq = unwrap(packet.seq16, reassembly.next_seq)
        count = run.count
        total_bytes = len(run.data) - HEADER_BYTES * count
        if (
            seq != reassembly.next_seq
            or reassembly.has_held
            or reassembly.fin_seq is not None
            or receive.is_discarding
            or total_bytes > reassembly.window_bytes
            or total_bytes < count
            or packet.connection_id != self.recv_id
        ):
            return False
        ack_next_seq = unwrap(packet.ack16, send.flights.una_seq) + 1
        if not send.flights.una_seq - _ACK_SLACK <= ack_next_seq <= send.flights.next_seq:
            return False
        self._heard(packet, now=now)
        send.on_ack(ack_next_seq, packet.window_bytes, [], self._delay_us, is_state=False, now=now)
        receive.on_run(count, run.payloads(), total_bytes, now=now)
        if send.is_finishing:
            self._settle(now=now)
        return True

    def _handle_packet(self, packet: Packet, *, now: int) -> None:
        state = self.state
        if packet.type == PacketType.SYN:
            self._handle_syn(packet, now=now)
            return
        if state is State.SYN_SENT:
            if not self._handle_answer(packet, now=now):
                return
        elif state in (State.IDLE, State.CLOSED):
            self._dropped += 1
            return
        send, receive = self.send, self.receive
        flights = send.flights
        ack_next_seq = unwrap(packet.ack16, flights.una_seq) + 1
        slack = _ACK_SLACK if send.is_proven else 0
        if not flights.una_seq - slack <= ack_next_seq <= flights.next_seq:
            self._dropped += 1
            return
        if packet.type == PacketType.RESET:
            self._handle_reset(ack_next_seq)
            return
        if packet.connection_id != self.recv_id:
            self._dropped += 1
            return
        self._heard(packet, now=now)
        if not send.is_proven:
            send.is_proven = True
            self._syn_at = NEVER
            self._move(Trigger.PROVEN)
            self._events.append(Event(EventKind.CONNECTED))
        if packet.type == PacketType.STATE and self._is_new_answer(packet):
            receive.start(unwrap(packet.seq16, receive.reassembly.next_seq))
            receive.ack_at = now
        ranges = []
        if packet.sack is not None:
            if len(packet.sack) >= MAX_SACK_BYTES:
                send.peer_reorder_packets = PROVEN_REORDER_PACKETS
            ranges = sack_ranges(packet.sack, ack_next_seq - 1) if ack_next_seq >= flights.una_seq else []
        send.on_ack(
            ack_next_seq,
            packet.window_bytes,
            ranges,
            self._delay_us,
            is_state=packet.type == PacketType.STATE,
            now=now,
        )
        if packet.type in (PacketType.DATA, PacketType.FIN):
            seq = unwrap(packet.seq16, receive.reassembly.next_seq)
            if receive.is_discarding and seq >= receive.reassembly.next_seq and packet.payload:
                self._reset_after_flush = True
            receive.on_packet(seq, packet.payload, is_fin=packet.type == PacketType.FIN, now=now)
            if receive.is_discarding:
                receive.reassembly.delivered(receive.reassembly.ready_bytes)
        if send.is_finishing or receive.is_discarding:
            self._settle(now=now)

    def _heard(self, packet: Packet, *, now: int) -> None:
        """Time's part of an acceptable packet. PROTOCOL.md §6."""
        self._heard_at = now
        self._delay_us = 0 if packet.difference_us in _NO_SAMPLES else packet.difference_us
        if packet.timestamp_us:
            difference_us = (now - packet.timestamp_us) & _CLOCK
            self.receive.difference_us = difference_us
            self.send.controller.on_peer_delay(difference_us, now=now)

    def _handle_syn(self, packet: Packet, *, now: int) -> None:
        """A SYN opens, or repeats itself because our answer was lost: then it is answered identically."""
        if self.state is State.IDLE:
            self.send_id = packet.connection_id
            self.receive.start(packet.seq16 + 1)
            self.send.is_proven = False
            self.send.peer_window_bytes = packet.window_bytes or HEADER_BYTES * 512
            self._move(Trigger.SYN)
            self._syn_at = now + HALF_OPEN_US
            self._heard_at = now
            if packet.timestamp_us:
                self.receive.difference_us = (now - packet.timestamp_us) & _CLOCK
            self.receive.ack_at = now
            self._state_repeated_at = now
        elif (
            not self.is_initiator
            and self.state in (State.SYN_RECEIVED, State.CONNECTED)
            and packet.connection_id == self.send_id
            and now - self._state_repeated_at >= _STATE_REPEAT_US
        ):
            self._state_repeated_at = now
            self.receive.ack_at = now
        else:
            self._dropped += 1

    def _handle_answer(self, packet: Packet, *, now: int) -> bool:
        """The first packet that acks our SYN, of any type (PROTOCOL.md §2); False when it is not that."""
        if packet.ack16 != self._syn_seq & 0xFFFF:
            self._dropped += 1
            return False
        if packet.type == PacketType.RESET:
            self._close(errno.ECONNREFUSED)
            return False
        if packet.connection_id != self.recv_id:
            self._dropped += 1
            return False
        if self._syn_tries == 1:
            self.send.recovery.on_rtt(now - (self._syn_at - SYN_RTO_US))
        self._syn_at = NEVER
        self.receive.start(packet.seq16)
        self.receive.ack_at = now  # proves our address to the acceptor
        self._move(Trigger.PROVEN)
        self._events.append(Event(EventKind.CONNECTED))
        return True

    def _is_new_answer(self, packet: Packet) -> bool:
        """Whether this STATE is a second answer to our repeated SYN, which replaces the first: libtorrent then made
        a second connection and forgot the first (PROTOCOL.md §2). A number near the first one is no new draw, only
        the first answerer's STATE after DATA that is still on its way.
        """
        near = self.receive.reassembly.next_seq
        return (
            self.is_initiator
            and self._syn_tries > 1
            and self.receive.received_packets == 0
            and packet.ack16 == self._syn_seq & 0xFFFF
            and abs(unwrap(packet.seq16, near) - near) > _NEW_DRAW_DISTANCE
        )

    def _handle_reset(self, ack_next_seq: int) -> None:
        send = self.send
        if self.state is State.TIME_WAIT or (send.fin_seq is not None and ack_next_seq > send.fin_seq):
            self._close(0)
        else:
            self._close(errno.ECONNRESET)

    def handle_icmp(self, error: int, *, quoted_seq16: int | None, mtu_bytes: int, datagram_bytes: int, now: int) -> None:
        """A router or the kernel could not deliver a datagram of ours.

        error            errno of the message: ECONNREFUSED, EMSGSIZE, EHOSTUNREACH, …
        quoted_seq16     seq_nr of the datagram it quotes, None when it quotes too little
        mtu_bytes        for EMSGSIZE: the largest datagram (UDP payload) that passes, 0 if not said
        datagram_bytes   how large the datagram was, 0 if not known
        RFC 1122 §4.2.3.9: soft errors do not end a connection.
        """
        if self.state is State.SYN_SENT:
            if error in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EPERM):
                self._close(error)
            return
        if error == errno.EMSGSIZE:
            self.send.on_too_big(datagram_bytes or self.send.mtu.size, mtu_bytes, now=now)
            return
        if error != errno.ECONNREFUSED:
            self.soft_errno = error
            return
        flights = self.send.flights
        if quoted_seq16 is None or self.state in (State.CLOSED, State.IDLE):
            return
        seq = unwrap(quoted_seq16, flights.next_seq)
        if flights.una_seq - 1 <= seq <= flights.next_seq:
            # Nobody is at that port any more: what a TCP peer's kernel would say by RST.
            both_said_all = self.send.fin_seq is not None and self.receive.reassembly.is_finished
            self._close(0 if both_said_all or self.state is State.TIME_WAIT else errno.ECONNRESET)

    def handle_timeout(self, *, now: int) -> None:
        """Time has passed; call at timeout_at() or later."""
        state = self.state
        if state is State.SYN_SENT:
            if now >= self._syn_at and self._syn_tries >= SYN_TRIES:
                self._close(errno.ETIMEDOUT)
            return
        if state is State.SYN_RECEIVED and now >= self._syn_at:
            self._close(errno.ETIMEDOUT)
            return
        if state is State.TIME_WAIT:
            if now >= self._time_wait_at:
                self._move(Trigger.ENDED)
                self._end(0)
            return
        if state not in (State.CONNECTED, State.SYN_RECEIVED):
            return
        send = self.send
        if not send.on_timeout(now=now):
            self.abort(self.soft_errno or errno.ETIMEDOUT)
            return
        if (
            send.recovery.backoff >= MUTE_FIN_TIMEOUTS
            and self.is_initiator
            and send.fin_seq is not None
            and not send.sent_offset
            and self.receive.is_discarding
        ):
            self._close(0)
            return
        if self.receive.is_discarding and send.is_finished and now >= self._closing_since + FIN_WAIT_US:
            self.abort()
            return
        if now >= self._next_keepalive_at:
            quiet_until = self._heard_at + self._keepalive_us
            self._next_keepalive_at = max(quiet_until, now + self._keepalive_us)
            if now >= quiet_until:
                self._keepalive_due = True
                self.receive.ack_at = now

    def timeout_at(self) -> int | None:
        """When handle_timeout() and poll_transmit() want to be called next, or None. Read after poll_transmit()."""
        if self.state is State.SYN_SENT:
            return self._syn_at
        if self.state is State.TIME_WAIT:
            at = min(self._time_wait_at, self.receive.ack_at)
        elif self.state in (State.CONNECTED, State.SYN_RECEIVED):
            at = min(self.send.deadline(), self.receive.ack_at, self._next_keepalive_at, self._syn_at)
            if self.receive.is_discarding and self.send.is_finished:
                at = min(at, self._closing_since + FIN_WAIT_US)
        else:
            return None
        return at if at < NEVER else None

    # ── what is for the world ──

    def poll_event(self) -> Event | None:
        """The next event, or None."""
        return self._events.popleft() if self._events else None

    def poll_delivery(self) -> list[memoryview]:
        """Bytes for the application, in order, maybe none. Views, borrowed: say delivered() before anything else."""
        return self.receive.reassembly.ready()

    def poll_transmit(self, *, now: int, max_segments: int) -> Transmit | None:
        """The next burst to put on the wire, or None when nothing may leave now.

        Lost packets first, then new data, then a bare ack if one is due. Call until None, then read timeout_at():
        a closed window or a pacing gap is a later deadline, not an error.

        now            µs, monotonic, never less than in an earlier call
        max_segments   1..64; 1 turns batching off
        -> Transmit    its buffers alias the send buffer: valid until the next call on this connection
        Never raises. Sources: BEP 29 "packet sizes"; RFC 6817 §2.4.2.
        """
        if self._reset_due is not None:
            return self._transmit_reset(now=now)
        state = self.state
        if state is State.SYN_SENT:
            return self._transmit_syn(now=now)
        if state not in (State.CONNECTED, State.SYN_RECEIVED, State.TIME_WAIT):
            return None
        receive = self.receive
        if receive.ack_at <= now and (receive.reassembly.has_held or state is State.SYN_RECEIVED):
            return self._transmit_state(now=now)  # data cannot carry a selective ack, nor be a SYN's answer
        if state is not State.TIME_WAIT:
            flight = self.send.next_flight(now=now, max_segments=max_segments)
            if flight is not None:
                return self._transmit_flight(flight, now=now)
        if receive.ack_at <= now:
            return self._transmit_state(now=now)
        return None

    def _transmit_flight(self, flight: Flight, *, now: int) -> Transmit:
        send, receive = self.send, self.receive
        is_fin = flight.seq == send.fin_seq
        header = encode(
            PacketType.FIN if is_fin else PacketType.DATA,
            self.send_id,
            timestamp_us=now,
            difference_us=receive.difference_us,
            window_bytes=receive.window_bytes,
            seq=flight.seq,
            ack=receive.ack,
        )
        if not receive.reassembly.has_held:
            receive.on_ack_sent()
        if self._keepalive_us:
            self._next_keepalive_at = now + self._keepalive_us
        if is_fin:
            return Transmit(self.addr, [header])
        headers = self._workspace.headers.fill(header, flight.seq, flight.count)
        size = flight.size if flight.count > 1 else flight.last_size
        buffers = send.buffer.interleave(headers, flight.offset, size, flight.total_bytes)
        return Transmit(
            self.addr,
            buffers,
            segment=size + HEADER_BYTES,
            count=flight.count,
            may_fragment=not flight.is_probe and (size + HEADER_BYTES > send.mtu.size or not send.mtu.is_proven),
            is_probe=flight.is_probe,
        )

    def _transmit_state(self, *, now: int) -> Transmit:
        receive = self.receive
        receive.on_ack_sent()
        ack = receive.ack - self._keepalive_due  # one too low: no ack, only a sign of life (PROTOCOL.md §7)
        self._keepalive_due = False
        sack = receive.sack() if self.state is not State.SYN_RECEIVED else b""
        receive.on_state_sent()
        return Transmit(
            self.addr,
            [
                encode(
                    PacketType.STATE,
                    self.send_id,
                    timestamp_us=now,
                    difference_us=receive.difference_us,
                    window_bytes=receive.window_bytes,
                    seq=self.send.flights.next_seq,
                    ack=ack,
                    sack=sack,
                )
            ],
        )

    def _transmit_syn(self, *, now: int) -> Transmit | None:
        if now < self._syn_at or self._syn_tries >= SYN_TRIES:
            return None
        self._syn_at = now + (SYN_RTO_US << self._syn_tries)
        self._syn_tries += 1
        return Transmit(
            self.addr,
            [
                encode(
                    PacketType.SYN,
                    self.recv_id,
                    timestamp_us=now,
                    difference_us=0,
                    window_bytes=self.receive.window_bytes,
                    seq=self._syn_seq,
                    ack=0,
                )
            ],
        )

    def _transmit_reset(self, *, now: int) -> Transmit:
        assert self._reset_due is not None
        seq, ack = self._reset_due
        self._reset_due = None
        return Transmit(
            self.addr,
            [
                encode(
                    PacketType.RESET, self.send_id, timestamp_us=now, difference_us=0, window_bytes=0, seq=seq, ack=ack
                )
            ],
        )

    # ── endings ──

    def _settle(self, *, now: int) -> None:
        """Both directions may be done, or what was to be flushed before a RESET is."""
        if self.state is not State.CONNECTED:
            return
        send = self.send
        if self._reset_after_flush and send.is_idle:
            self.abort()
            return
        if not (send.is_finished and self.receive.reassembly.is_finished):
            return
        self._move(Trigger.BOTH_FINISHED)
        self._time_wait_at = now + max(TIME_WAIT_US, 3 * send.recovery.rto_us // 2)
        self._events.append(Event(EventKind.CLOSED))

    def _close(self, error: int) -> None:
        """The connection is over for a reason that is not both FINs."""
        if self.state in (State.CLOSED, State.TIME_WAIT):
            if self.state is State.TIME_WAIT:
                self._move(Trigger.FAILED)
                self._end(0)
            return
        self._move(Trigger.FAILED)
        self._events.append(Event(EventKind.CLOSED, error))
        self._end(error)

    def _end(self, error: int) -> None:
        self.errno = error
        self.send.clear()
        self.receive.ack_at = NEVER

    def _move(self, trigger: Trigger) -> None:
        following = TRANSITIONS.get((self.state, trigger))
        if following is None:
            raise RuntimeError(f"{trigger.name} in state {self.state.name}")
        self.state = following

    def _check(self) -> None:
        """Invariants, for tests and the simulator."""
        self.send._check()
        self.receive._check()
        assert self.receive.ack_at >= 0

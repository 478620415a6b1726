"""One uTP connection without sockets, clock, threads or randomness: who is told what, in which order.

Read this first. Four kinds of method: getters; `handle_*`, by which the world speaks; plain verbs, by which the
application speaks; `poll_*`, which give what is for the world. Times are integer microseconds of one monotonic clock;
`now` never decreases. After any handle_* or verb: poll_event() until None, poll_delivery() then delivered(),
poll_transmit() until None, then timeout_at(). The order matters to nobody but the ack: asked last, it covers all.

Sequence numbers are unbounded integers here; their 16-bit form exists in packet.py and runs.py only. What each
direction is doing is its half's: receivehalf.py, sendhalf.py; what comes before is handshake.py's. Here: is there a
connection, and is this packet a part of it?

Sources: BEP 29; docs/protocol.md §2 to §4, §12.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any, Final

from utpsocket.protocol import fastpath
from utpsocket.protocol.close_timers import CloseTimers, TimeWaitRecord
from utpsocket.protocol.composer import Composer
from utpsocket.protocol.config import Config, Workspace
from utpsocket.protocol.fragmentation import PieceAssembly
from utpsocket.protocol.handshake import Handshake
from utpsocket.protocol.keepalive import Keepalive, Probing
from utpsocket.protocol.packet import DATA, FIN, HEADER_BYTES, RESET, STATE, SYN, Packet, decode, unwrap
from utpsocket.protocol.receivehalf import ReceiveHalf
from utpsocket.protocol.report import Address, ConnectionStats, Event, EventKind, figures
from utpsocket.protocol.runs import Run, Transmit
from utpsocket.protocol.sendhalf import EMPTY_PACKET_BYTES, SendHalf
from utpsocket.protocol.states import CLOSED, CONNECTED, IDLE, SYN_RECEIVED, SYN_SENT, TIME_WAIT, TRANSITIONS, Trigger
from utpsocket.protocol.times import NEVER, TIMESTAMP_MASK
from utpsocket.protocol.timestamps import on_timestamps
from utpsocket.protocol.validation import is_acceptable_ack, is_clean_close

__all__ = ["Connection", "ConnectionStats", "Event", "EventKind"]

_ASSUMED_SYN_WINDOW_BYTES: Final = 10_240  # libtorrent's and librqbit's SYNs say 0, and mean nothing by it
AMPLIFICATION_CREDIT_BYTES: Final = 3 * EMPTY_PACKET_BYTES  # that a SYN pays for: RFC 9000 §8.1
_CONNECT_ERRORS: Final = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EPERM)


class Connection:
    """A uTP connection. See the module's docstring for the contract.

    config, workspace   tuning, and the memory shared by the connections of one thread
    addr                the peer's address, returned untouched in every Transmit
    recv_id             connection id of what we receive, 16 bits from a CSPRNG (an acceptor: SYN's id + 1)
    first_seq           our first sequence number, 16 bits from a CSPRNG
    events              what has become of it and poll_event() has not told yet
    spare_ids           an initiator's further recv_ids, should the first SYN's answer be lost (handshake.py). Whoever
                        gives any hands over packets that carry any of `recv_ids`.
    """

    __slots__ = (
        "_piece_assembly",
        "_close_timers",
        "_composer",
        "_dropped_packets",
        "_handshake",
        "_keepalive",
        "addr",
        "errno",
        "events",
        "is_initiator",
        "receive",
        "recv_id",
        "send",
        "send_id",
        "soft_errno",
        "state",
    )

    def __init__(
        self,
        config: Config,
        workspace: Workspace,
        addr: object,
        *,
        recv_id: int,
        first_seq: int,
        spare_ids: Sequence[int] = (),
    ) -> None:
        self.addr = addr
        self.recv_id = recv_id
        self.send_id = (recv_id - 1) & 0xFFFF
        self.state = IDLE
        self.is_initiator = False
        self.errno = 0
        self.soft_errno = 0  # the last ICMP error that proves nothing: said only if the connection then times out
        self.receive = ReceiveHalf(config.receive_buffer_bytes)
        self.send: SendHalf = config.new_send_half(workspace, first_seq)
        self._handshake = Handshake(recv_id, first_seq, spare_ids)
        self._composer = Composer(addr, self.send, self.receive)
        self._keepalive = Keepalive()
        self._piece_assembly: PieceAssembly | None = None
        self._close_timers = CloseTimers(self.send, self.receive)
        self.events: list[Event] = []  # few, and an idle connection must be small: no deques
        self._dropped_packets = 0

    # ── getters ──

    @property
    def is_over(self) -> bool:
        """Closed, with nothing left to send: it may be forgotten."""
        return self.state is CLOSED and not self._handshake.pending_resets

    @property
    def recv_ids(self) -> tuple[int, ...]:
        """Every id that packets for this connection may carry."""
        return self._handshake.recv_ids

    @property
    def has_eof(self) -> bool:
        """The peer's FIN has come and everything before it has been delivered."""
        return self.receive.reassembly.is_finished and not self.receive.reassembly.ready_bytes

    @property
    def is_flushed(self) -> bool:
        """Everything written, and our FIN if finish() was called, is acked; or there is no connection any more."""
        if self.state in (CLOSED, TIME_WAIT):
            return True
        return self.send.is_finished if self.send.is_finishing else self.send.is_idle

    def time_wait_record(self) -> TimeWaitRecord | None:
        """What whoever forgets the connection should remember for a minute, None if it did not end in order."""
        if self.errno or not self.receive.reassembly.is_finished or self._close_timers.time_wait_at == NEVER:
            return None
        return TimeWaitRecord(self.send_id, self.send.flights.next_seq & 0xFFFF, self.receive.ack & 0xFFFF)

    def stats(self) -> ConnectionStats:
        """Figures of this instant."""
        return ConnectionStats(*self.figures())

    def figures(self, local: Address | None = None) -> tuple[Any, ...]:
        """The same as plain values. `local`: our address, which the connection does not know."""
        return figures(self.state, self.errno, local, self.addr, self.send, self.receive, self._dropped_packets)

    # ── the application speaks ──

    def connect(self, *, now: int, user_timeout_us: int = 0) -> None:
        """Open towards addr. CONNECTED or CLOSED follows as an event. BEP 29 "connection setup".

        user_timeout_us   give up with ETIMEDOUT after this long (TCP_USER_TIMEOUT); 0: when every SYN has been tried
        """
        self._transition(Trigger.CONNECT)
        self.is_initiator = True
        self._set_ids(self.recv_id, (self.recv_id + 1) & 0xFFFF)
        self.send.start(self._handshake.syn_seq + 1)  # the SYN consumes a sequence number, a STATE never does
        self._handshake.start(now=now)
        if user_timeout_us:
            self._handshake.give_up_at = now + user_timeout_us
        self.receive.received_at = now

    def free_span(self) -> memoryview:
        """Memory for the next bytes to send; empty when the send buffer is full or nothing may be written."""
        if self.send.is_finishing or self.state in (CLOSED, TIME_WAIT):
            return memoryview(b"")
        return self.send.buffer.free_span()

    def free_spans(self, most_bytes: int) -> list[memoryview]:
        """free_span() and memory that follows it, for a writer who expects to fill it; empty likewise."""
        if self.send.is_finishing or self.state in (CLOSED, TIME_WAIT):
            return []
        return self.send.buffer.free_spans(most_bytes)

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
        """Nothing more will be written: our FIN follows the last byte. Idempotent. BEP 29 "type"."""
        if not self.send.is_finishing:
            self.send.is_finishing = True
            self.send.has_more = False
            self._close_timers.closed_at = now
            self.close_if_finished(now=now)

    def discard(self, *, now: int) -> None:
        """Nobody will read any more. Bytes that come from now on are answered by a RESET, as TCP does, but only
        after what we wrote has arrived. Follows the application's close().
        """
        if not self.receive.is_discarding:
            if self.receive.reassembly.ready_bytes or self.receive.reassembly.has_out_of_order:
                self._close_timers.reset_after_flush = True
            self.receive.discard()
            self.send.orphan(now=now)
            self._close_timers.closed_at = now
            self.close_if_finished(now=now)

    def reset_after_flush(self, error: int = 0, *, now: int) -> None:
        """End with a RESET, not a FIN, once all is acked: the application left bytes unread. `error`: what it sees."""
        self._close_timers.reset_after_flush, self._close_timers.reset_errno = True, error
        self.close_if_finished(now=now)

    def abort(self, error: int = 0) -> None:
        """Forget everything and tell the peer by RESET. `error` is what the application will see."""
        if self.state is SYN_SENT:
            self._handshake.withdraw_syns()
        is_too_dear = self.state is SYN_RECEIVED and self.send.amplification_credit_bytes < EMPTY_PACKET_BYTES
        if self.state not in (CLOSED, IDLE, SYN_SENT) and not is_too_dear:
            self._handshake.pending_resets.append((self.send_id, self.send.flights.next_seq, self.receive.ack))
        self._close(error)

    def close_silently(self) -> None:
        """End a half-open connection without a word: whoever calls keeps what it takes to make it again."""
        self._close(errno.ETIMEDOUT)

    def set_syn_retries(self, times: int) -> None:
        """How often a SYN is repeated before the connection attempt is given up: TCP_SYNCNT."""
        self._handshake.syn_tries = times + 1

    def set_keepalive(self, interval_us: int, probing: Probing | None = None, *, now: int) -> None:
        """Send a packet whenever nothing was said for this long, 0 turns it off; and ask a silent peer whether it
        lives, until ETIMEDOUT. docs/protocol.md §7.
        """
        self._keepalive.configure(interval_us, probing, now=now)

    # ── the world speaks ──

    def handle_run(self, run: Run, *, packet: Packet | None = None, now: int) -> None:
        """Datagrams of this connection's peer arrived, with our recv_id (or send_id, for a RESET).

        A run of any other shape than a clean one is the sum of its packets; a clean one is too, only faster.

        packet   what decode() made of the run, if it is one datagram and the caller had to decode it
        """
        if self.state is CONNECTED:
            if run.is_clean():
                if fastpath.handle(self.send, self.receive, self.recv_id, run, now=now):
                    if self.send.is_finishing:
                        self.close_if_finished(now=now)
                    return
            elif run.is_bare_ack() and fastpath.handle_ack(self.send, self.receive, self.recv_id, run, now=now):
                if self.send.is_finishing or self.receive.is_discarding:
                    self.close_if_finished(now=now)
                return
        if packet is not None:
            self._handle_packet(packet, now=now)
            return
        for datagram in run.datagrams():
            packet = decode(datagram)
            if packet is None:
                self._dropped_packets += 1
            else:
                self._handle_packet(packet, now=now)

    def _handle_packet(self, packet: Packet, *, now: int) -> None:
        """One packet: whether it is a part of this connection, as only the peer could have sent it. What it then means
        is _accept()'s.
        """
        state = self.state
        if packet.type == SYN:
            self._handle_syn(packet, now=now)
            return
        if state is SYN_SENT:
            for answer in self._handle_syn_ack(packet, now=now):
                self._handle_packet(answer, now=now)
            return
        if state in (IDLE, CLOSED):
            self._dropped_packets += 1
            return
        send, receive = self.send, self.receive
        flights = send.flights
        ack_next_seq = unwrap(packet.ack16, flights.una_seq) + 1
        if packet.connection_id != self.recv_id and packet.type != RESET:
            if not self._handle_other_id(packet, ack_next_seq):
                return
        if packet.type == RESET:
            self._handle_reset(packet, ack_next_seq, now=now)
            return
        if not send.is_peer_verified and not send.sent_packets and ack_next_seq == flights.next_seq + 1:
            # In BEP 29's diagram the answer to a SYN has a number of its own, and the first DATA acks it: rust-utp, and
            # the first implementation of all. To such a peer our stream begins with the number that follows.
            send.start(ack_next_seq)
            flights = send.flights
        if not is_acceptable_ack(packet.type, ack_next_seq, flights, is_peer_verified=send.is_peer_verified):
            self._dropped_packets += 1
            return
        paws = send.paws
        if paws.is_armed and ack_next_seq >= flights.una_seq and paws.drop_if_wrapped(packet.timestamp_us, now=now):
            return  # it acks what had that number 65,536 packets ago
        seq = -1
        if packet.type in (DATA, FIN):
            seq = unwrap(packet.seq16, receive.reassembly.next_seq)
            if receive.drop_if_wrapped(seq, packet.timestamp_us, now=now):
                return
        self._accept(packet, ack_next_seq, seq, now=now)

    def _accept(self, packet: Packet, ack_next_seq: int, seq: int, *, now: int) -> None:
        """What a packet of the peer's means: its timestamps, its ack, its payload, its FIN.

        ack_next_seq   all before it is acked
        seq            of a DATA or FIN, -1 for a STATE
        """
        send, receive = self.send, self.receive
        paws, flights = send.paws, send.flights
        delay_us = on_timestamps(send, receive, packet.timestamp_us, packet.difference_us, now=now)
        if not send.is_peer_verified:
            self._on_peer_verified(packet, now=now)
        if packet.type == STATE and self.is_initiator and not receive.received_packets:
            self._handle_repeated_syn_ack(packet, now=now)
        send.on_ack(
            ack_next_seq,
            packet.window_bytes,
            packet.sack,
            delay_us,
            (packet.timestamp_us - delay_us) & TIMESTAMP_MASK if delay_us else -1,
            is_state=packet.type == STATE and packet.pieces is None,
            now=now,
        )
        if paws.is_armed or flights.una_seq >= paws.mark_seq:
            paws.on_acked(flights.una_seq, packet.timestamp_us, now=now)
        if packet.pieces is not None and packet.type == STATE:
            self._handle_pieces(packet.pieces, packet.timestamp_us, now=now)
        if packet.type in (DATA, FIN):
            if receive.is_discarding and seq >= receive.reassembly.next_seq and packet.payload:
                self._close_timers.reset_after_flush = True
            # What nobody will read keeps filling the window: its sender must not get rid of more than that until our
            # RESET, which waits for what we wrote, has told it.
            is_fin = packet.type == FIN
            receive.on_packet(seq, packet.payload, packet.timestamp_us, is_fin=is_fin, now=now)
            if self.state is TIME_WAIT:
                self._close_timers.start_time_wait(now=now)
        if send.is_finishing or receive.is_discarding:
            self.close_if_finished(now=now)

    def _handle_other_id(self, packet: Packet, ack_next_seq: int) -> bool:
        """A packet with another id than the one we receive under. Returns whether it belongs to this connection all the
        same: its initiator took the answer to another SYN of its attempt than the last. If not, it has been dealt with.
        """
        handshake = self._handshake
        if self.send.is_peer_verified or packet.connection_id not in handshake.answered_ids:
            if not handshake.reset_if_abandoned(packet):
                self._dropped_packets += 1
            return False
        if is_acceptable_ack(packet.type, ack_next_seq, self.send.flights, is_peer_verified=False):
            self._set_ids(packet.connection_id, (packet.connection_id - 1) & 0xFFFF)
        return True

    def _on_peer_verified(self, packet: Packet, *, now: int) -> None:
        """The initiator has acked our first sequence number, so it is at the address that its SYN came from."""
        send = self.send
        send.is_peer_verified = True
        rtt_us = self._handshake.on_peer_verified(packet, now=now)
        if rtt_us:
            send.recovery.on_rtt(rtt_us)
        if send.timeouts:
            send.on_late_verification()
        self._transition(Trigger.PEER_VERIFIED)
        self.events.append(Event(EventKind.CONNECTED))

    def _handle_pieces(self, pieces: list[memoryview], timestamp_us: int, *, now: int) -> None:
        """Pieces of packets that were too large for the path: what is complete counts as any packet."""
        receive = self.receive
        reassembly = receive.reassembly
        if self._piece_assembly is None:
            self._piece_assembly = PieceAssembly()
        for piece in pieces:
            joined = self._piece_assembly.add(piece, reassembly.next_seq, reassembly.room_bytes)
            if joined is None or receive.drop_if_wrapped(joined[0], timestamp_us, now=now):
                continue
            if receive.is_discarding and joined[0] >= reassembly.next_seq:
                self._close_timers.reset_after_flush = True
            receive.on_packet(joined[0], memoryview(joined[1]), timestamp_us, is_fin=False, now=now)

    def _handle_syn(self, packet: Packet, *, now: int) -> None:
        """A SYN opens, or repeats itself because our answer was lost: then it is answered identically."""
        if self.state is IDLE:
            self._set_ids(self.recv_id, packet.connection_id)
            self.receive.start(packet.seq16 + 1)
            self.send.is_peer_verified = False
            self.send.peer.on_window(packet.window_bytes or _ASSUMED_SYN_WINDOW_BYTES)
            self._transition(Trigger.SYN)
            self._handshake.on_syn(packet, now=now)
            self.receive.received_at = now
            # The answer tells no time difference, as libutp's tells none: libktorrent takes a true one for the delay
            # of a packet it has sent, and on the first loss waits for as long as our clocks are apart.
            self.send.amplification_credit_bytes = AMPLIFICATION_CREDIT_BYTES
            self.receive.ack_at = now
        elif self.state is SYN_RECEIVED and self._handshake.peer_syn_seq16 == packet.seq16:
            self.send.amplification_credit_bytes += AMPLIFICATION_CREDIT_BYTES
            if self._handshake.note_repeated_syn(packet, now=now):
                self._set_ids((packet.connection_id + 1) & 0xFFFF, packet.connection_id)
                self.receive.ack_at = now
        elif self.state is SYN_SENT and self._handshake.is_own_syn(packet):
            self._close(errno.ECONNREFUSED)  # whoever is there, it is not somebody who listens
        else:
            self._dropped_packets += 1

    def handle_simultaneous_open(self, packet: Packet, *, now: int) -> bool:
        """A SYN of the very peer that we dial, where nobody listens: simultaneous open (handshake.py).
        -> bool    False: it has to do with something else
        """
        handshake = self._handshake
        if self.state is SYN_RECEIVED and packet.seq16 == handshake.peer_syn_seq16:
            self._handle_syn(packet, now=now)
            return True
        # The same number: we dial ourselves. Once in 65,536 it is chance, and both sides are refused.
        if self.state is not SYN_SENT or packet.seq16 == handshake.syn_seq & 0xFFFF:
            return False
        if handshake.loses_simultaneous_open_to(packet):
            self.is_initiator = False
            self.recv_id = (packet.connection_id + 1) & 0xFFFF
            self._transition(Trigger.SIMULTANEOUS_OPEN)
            self._handle_syn(packet, now=now)
        return True

    def _handle_syn_ack(self, packet: Packet, *, now: int) -> list[Packet]:
        """A packet in state SYN_SENT. The first answer connects, whatever its type (docs/protocol.md §2). Returns the
        packets to handle now that there is a connection: this one, and those that had overtaken it; none while there is
        no connection.
        """
        handshake = self._handshake
        if packet.type == RESET:
            if handshake.check_refusal(packet):
                self._close(errno.ECONNREFUSED)
            else:
                self._dropped_packets += 1
            return []
        if not handshake.answers_our_syn(packet):
            self._dropped_packets += 1
            return []
        if not handshake.accept_syn_data(packet, now=now):
            return []
        rtt_us, early = handshake.on_syn_ack(packet, now=now)
        if rtt_us:
            self.send.recovery.on_rtt(rtt_us)
        self.send.must_open_with_data = handshake.answers_like_libutp
        handshake.schedule_handshake_ack(self.send.recovery.rto_us, now=now)
        self._set_ids(packet.connection_id, (packet.connection_id + 1) & 0xFFFF)
        self.receive.start(packet.seq16)
        self.receive.ack_at = now  # proves our address to the acceptor
        self._transition(Trigger.PEER_VERIFIED)
        self.events.append(Event(EventKind.CONNECTED))
        return [packet, *early]

    def _handle_repeated_syn_ack(self, packet: Packet, *, now: int) -> None:
        """A STATE before any DATA came: perhaps the acceptor has not heard from us and repeats its answer."""
        reassembly = self.receive.reassembly
        if self._handshake.is_second_syn_ack(packet, reassembly.next_seq):
            self.receive.start(unwrap(packet.seq16, reassembly.next_seq))
            self.receive.ack_at = now
        elif packet.ack16 == self._handshake.syn_seq & 0xFFFF and not self.send.sent_packets:
            self.receive.ack_at = now

    def _handle_reset(self, packet: Packet, ack_next_seq: int, *, now: int) -> None:
        send, receive = self.send, self.receive
        # An initiator gives up a SYN whose answer it never saw: it cannot know our number, only its own.
        is_withdrawn = self.state is SYN_RECEIVED and packet.seq16 == receive.reassembly.next_seq & 0xFFFF
        if is_withdrawn and (other_id := self._handshake.withdraw_id(packet.connection_id)) is not None:
            self._set_ids(other_id, (other_id - 1) & 0xFFFF)
            return
        is_known = packet.connection_id in (self.recv_id, self.send_id)
        is_believed = is_withdrawn or is_acceptable_ack(
            packet.type, ack_next_seq, send.flights, is_peer_verified=send.is_peer_verified
        )
        if is_known and not is_believed and self.state is CONNECTED:
            is_believed = self._keepalive.check_doubtful_reset(self.receive.received_at, send.recovery.srtt_us, now=now)
        if not is_known or not is_believed:
            self._dropped_packets += 1
            return
        waits_for_more = not receive.is_discarding and not receive.reassembly.is_finished
        is_clean = is_clean_close(ack_next_seq, send.fin_seq, is_all_acked=send.is_idle, waits_for_more=waits_for_more)
        self._close(0 if is_clean else errno.ECONNRESET)

    def handle_icmp(
        self, error: int, *, quoted_seq16: int | None, mtu_bytes: int, datagram_bytes: int, now: int
    ) -> None:
        """A router or the kernel could not deliver a datagram of ours.

        error            errno of the message: ECONNREFUSED, EMSGSIZE, EHOSTUNREACH, …
        quoted_seq16     seq_nr of the datagram it quotes, None when it quotes too little
        mtu_bytes        for EMSGSIZE: the largest datagram (UDP payload) that passes, 0 if not said
        datagram_bytes   how large the datagram was, 0 if not known
        RFC 1122 §4.2.3.9: soft errors do not end a connection.
        """
        if self.state is SYN_SENT:
            if error in _CONNECT_ERRORS and quoted_seq16 in (None, self._handshake.syn_seq & 0xFFFF):
                self._close(error)
            return
        flights = self.send.flights
        is_quoted = False
        if quoted_seq16 is not None:
            is_quoted = flights.una_seq - 1 <= unwrap(quoted_seq16, flights.next_seq) <= flights.next_seq
            if not is_quoted:
                return  # RFC 5927 §4: of a packet that is not under way
        if error == errno.EMSGSIZE:
            self.send.on_too_big(datagram_bytes, mtu_bytes, now=now)
            return
        if error != errno.ECONNREFUSED:
            self.soft_errno = error
            return
        if is_quoted and self.state not in (CLOSED, IDLE):
            # Nobody is at that port any more: what a TCP peer's kernel would say by RST.
            both_said_all = self.send.fin_seq is not None and self.receive.reassembly.is_finished
            self._close(0 if both_said_all or self.state is TIME_WAIT else errno.ECONNRESET)

    def handle_timeout(self, *, now: int) -> None:
        """Time has passed; call at timeout_at() or later."""
        if self.state is not CONNECTED and not self._handle_other_timeout(now=now):
            return
        send = self.send
        if send.has_unfinished_ack:
            send.on_timeout(now=now)
            self.close_if_finished(now=now)
            return
        if not send.on_timeout(now=now):
            self.abort(self.soft_errno or errno.ETIMEDOUT)
            return
        if self.is_initiator and self._close_timers.is_fin_ignored(now=now):
            self._close(0)
            return
        if now >= self._close_timers.abort_at():
            self.abort()
            return
        self.receive.on_time(now=now)
        if now >= self._close_timers.half_closed_probe_at:
            poll_half_closed_probe = self._close_timers.poll_half_closed_probe(self.receive.received_at, now=now)
            if poll_half_closed_probe is None:
                self.abort(self.soft_errno or errno.ETIMEDOUT)
                return
            self._keepalive.is_probe_due |= poll_half_closed_probe
        if now >= self._handshake.handshake_ack_at:
            self._repeat_handshake_ack(now=now)
        if self.state is CONNECTED and now >= self._keepalive.next_at:
            is_idle = send.is_idle and send.is_all_acked
            if self._keepalive.on_time(self.receive.received_at, is_idle=is_idle, now=now):
                self.receive.ack_at = now
            if self._keepalive.is_peer_dead:
                self.abort(self.soft_errno or errno.ETIMEDOUT)

    def _handle_other_timeout(self, *, now: int) -> bool:
        """What is due in any state but CONNECTED. Returns whether what is due in that one may be due as well: a
        connection whose SYN was answered repeats and acks what it may.
        """
        handshake = self._handshake
        if self.state is SYN_SENT:
            if now >= handshake.give_up_at or (now >= handshake.due_at and handshake.is_exhausted):
                self.abort(self.soft_errno or errno.ETIMEDOUT)
        elif self.state is SYN_RECEIVED:
            if now < handshake.due_at:
                return True
            self._close(errno.ETIMEDOUT)
        elif self.state is TIME_WAIT and now >= self._close_timers.time_wait_at:
            self._transition(Trigger.ENDED)
            self._release(0)
        return False

    def _repeat_handshake_ack(self, *, now: int) -> None:
        """Nothing has told yet that the acceptor knows us. What it acks, and a second packet, leave it only then."""
        send, handshake = self.send, self._handshake
        is_known = send.flights.una_seq > handshake.syn_seq + 1 or self.receive.received_packets > 1
        if is_known or send.sent_packets:  # what is under way proves as much, and is repeated
            handshake.handshake_ack_at = NEVER
        elif send.must_open_with_data:
            handshake.handshake_ack_at = NEVER
            send.is_opening_due = True
        else:
            handshake.schedule_handshake_ack(send.recovery.rto_us, now=now)
            self.receive.ack_at = now

    def timeout_at(self) -> int | None:
        """When handle_timeout() and poll_transmit() want to be called next, or None. Read after poll_transmit()."""
        state = self.state
        if state is CONNECTED:
            send, receive = self.send, self.receive
            at = send.deadline()
            handshake_ack_at, alive_at = self._handshake.handshake_ack_at, self._keepalive.next_at
            for other_at in (receive.ack_at, receive.window_update_at, alive_at, handshake_ack_at):
                if other_at < at:
                    at = other_at
            if receive.is_discarding:
                at = min(at, self._close_timers.abort_at())
            elif send.fin_seq is not None:
                at = min(at, self._close_timers.half_closed_probe_at)
        elif state is SYN_SENT:
            at = min(self._handshake.due_at, self._handshake.give_up_at)
        elif state is SYN_RECEIVED:
            at = min(self.send.deadline(), self.receive.ack_at, self._handshake.due_at)
        elif state is TIME_WAIT:
            at = min(self._close_timers.time_wait_at, self.receive.ack_at)
        else:
            return None
        return at if at < NEVER else None

    # ── what is for the world ──

    def poll_event(self) -> Event | None:
        """The next event, or None."""
        return self.events.pop(0) if self.events else None

    def poll_delivery(self) -> list[memoryview]:
        """Bytes for the application, in order, maybe none. Views, borrowed: say delivered() before anything else."""
        return self.receive.reassembly.ready()

    def poll_transmit(self, *, now: int, max_segments: int) -> Transmit | None:
        """The next burst to put on the wire, or None when nothing may leave now.

        Lost packets first, then new data, then a bare ack if one is due. Call until None, then read timeout_at():
        a closed window or a pacing gap is a later deadline, not an error.

        now            µs, monotonic, never less than in an earlier call
        max_segments   1..MAX_RUN_PACKETS; 1 turns batching off
        -> Transmit    with a copy of the payload: it may be kept and sent later
        Never raises. Sources: BEP 29 "packet sizes"; RFC 6817 §2.4.2.
        """
        composer, handshake = self._composer, self._handshake
        if handshake.pending_resets:
            connection_id, seq, ack = handshake.pending_resets.pop(0)
            return composer.reset(connection_id, seq, ack, now=now)
        state, receive = self.state, self.receive
        if state is not CONNECTED:
            if state is SYN_SENT:
                if (recv_id := handshake.next_syn(now=now)) is None:
                    return None
                self._set_ids(recv_id, (recv_id + 1) & 0xFFFF)
                return composer.syn(recv_id, handshake.syn_seq, is_large=handshake.is_syn_large, now=now)
            if state is SYN_RECEIVED:
                return self._poll_unverified(now=now)
            if state is not TIME_WAIT:
                return None
        if receive.ack_at <= now and receive.reassembly.has_out_of_order:
            return self._transmit_state(now=now)  # data cannot carry a selective ack
        if state is CONNECTED:
            if self.send.flight_to_split is not None and (flight := self.send.poll_pieces()) is not None:
                return composer.pieces(flight, now=now)
            flight = self.send.next_flight(now=now, max_segments=max_segments)
            if flight is not None:
                self._keepalive.sent_at = now
                return composer.flight(flight, now=now)
        if self._keepalive.is_probe_due:
            self._keepalive.is_probe_due = False
            if self.send.is_all_acked:  # else the question's number would be that of bytes on their way
                self._keepalive.sent_at = now
                return composer.keepalive_probe(now=now)
        if receive.ack_at <= now:
            return self._transmit_state(now=now)
        return None

    def _poll_unverified(self, *, now: int) -> Transmit | None:
        """The answer to a SYN and a greeting, as far as the SYN's sender has paid for it. docs/protocol.md §3."""
        send, receive = self.send, self.receive
        transmit = None
        if receive.ack_at <= now:
            if send.amplification_credit_bytes >= EMPTY_PACKET_BYTES:
                transmit = self._composer.syn_ack(now=now)
            else:
                receive.ack_at = NEVER
        if transmit is None:
            flight = send.next_flight(now=now, max_segments=1)
            if flight is None:
                return None
            transmit = self._composer.flight(flight, now=now)
        send.amplification_credit_bytes -= EMPTY_PACKET_BYTES - HEADER_BYTES + len(transmit.data)
        return transmit

    def _transmit_state(self, *, now: int) -> Transmit:
        keepalive = self._keepalive
        is_keepalive = keepalive.is_keepalive_due and keepalive.take_keepalive_due(now=now)
        keepalive.sent_at = now
        return self._composer.state(is_keepalive=is_keepalive, now=now)

    def _set_ids(self, recv_id: int, send_id: int) -> None:
        self.recv_id = recv_id
        self.send_id = self._composer.send_id = send_id

    # ── endings ──

    def close_if_finished(self, *, now: int) -> None:
        """Both directions may be done, or what was to be flushed before a RESET is."""
        if self.state is not CONNECTED:
            return
        send = self.send
        if self._close_timers.reset_after_flush and (send.is_idle or send.is_peer_window_limited):
            # A peer that takes nothing may itself be waiting for us to read, which nobody will.
            self.abort(self._close_timers.reset_errno)
            return
        if not (send.is_finished and self.receive.reassembly.is_finished):
            self._close_timers.watch_half_closed(now=now)
            return
        self._transition(Trigger.BOTH_FINISHED)
        self._close_timers.start_time_wait(now=now)
        self.events.append(Event(EventKind.CLOSED))

    def _close(self, error: int) -> None:
        """The connection is over for a reason that is not both FINs."""
        if self.state in (CLOSED, TIME_WAIT):
            if self.state is TIME_WAIT:
                self._transition(Trigger.FAILED)
                self._release(0)
            return
        self._transition(Trigger.FAILED)
        self.events.append(Event(EventKind.CLOSED, error))
        self._release(error)

    def _release(self, error: int) -> None:
        self.errno = error
        self.send.clear()
        self.receive.on_ack_sent(0)  # none will be

    def _transition(self, trigger: Trigger) -> None:
        following = TRANSITIONS.get((self.state, trigger))
        if following is None:
            raise RuntimeError(f"{trigger.name} in state {self.state.name}")
        self.state = following

    def _check(self) -> None:
        """Invariants, for tests and the simulator."""
        self.send._check()
        self.receive._check()
        assert self.receive.ack_at >= 0

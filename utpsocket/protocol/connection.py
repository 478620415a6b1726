"""One uTP connection, without sockets, clock, threads or randomness.

Read this first: Connection is what the rest of the program uses of this package. It has four kinds of method. Getters
return its state. `handle_*` take what came from the network, or that time has passed. connect(), commit(), finish() and
others take what the application has done. `poll_*` and `timeout_at()` return what is to be done. After each call of the
second and third kind, in this order:

    poll_event()       until None
    poll_delivery()    then finish_delivery() with the number of bytes taken, 0 too
    poll_transmit()    until None; last, so that one ack covers everything that has been handled
    timeout_at()       when to call handle_timeout()

Times are integer microseconds of one monotonic clock; `now` never decreases. No input from the network raises; a call
that the state does not allow raises RuntimeError.

Sequence numbers are unbounded integers here; their 16-bit form exists in packet.py and runs.py only. What each
direction is doing belongs to its half (receivehalf.py, sendhalf.py), what comes before to handshake.py, what comes
after to close_timers.py. This module decides whether there is a connection and whether a packet is a part of it.

Sources: BEP 29; docs/protocol.md §2 to §4, §12.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final

from utpsocket.protocol import fastpath
from utpsocket.protocol.close_timers import CloseTimers, TimeWaitRecord
from utpsocket.protocol.composer import Composer
from utpsocket.protocol.config import Config, Workspace
from utpsocket.protocol.fragmentation import PieceAssembly
from utpsocket.protocol.handshake import Handshake
from utpsocket.protocol.keepalive import Keepalive, Probing
from utpsocket.protocol.packet import (
    DATA,
    DATA_BYTE,
    FIN,
    HEADER_BYTES,
    RESET,
    STATE,
    STATE_BYTE,
    SYN,
    Packet,
    decode,
    unwrap,
)
from utpsocket.protocol.receivehalf import ReceiveHalf
from utpsocket.protocol.report import ConnectionStats, Event, EventKind, Figures, figures
from utpsocket.protocol.runs import Address, Run, Transmit
from utpsocket.protocol.sendhalf import EMPTY_PACKET_BYTES, SendHalf
from utpsocket.protocol.states import CLOSED, CONNECTED, IDLE, SYN_RECEIVED, SYN_SENT, TIME_WAIT, TRANSITIONS, Trigger
from utpsocket.protocol.times import NEVER, TIMESTAMP_MASK
from utpsocket.protocol.timestamps import on_timestamps
from utpsocket.protocol.validation import is_acceptable_ack, is_clean_close

__all__ = ["Connection", "ConnectionStats", "Event", "EventKind"]

# The peer's window where its SYN advertises 0, as libtorrent's and librqbit's do although they have room. By feel:
# seven segments, which is more than may leave before the peer's first STATE advertises its real window.
_ASSUMED_SYN_WINDOW_BYTES: Final = 10_240
# How many bytes of IP packets a SYN allows to be sent to an address that is not verified: three times its own size, RFC
# 9000 §8.1.
AMPLIFICATION_CREDIT_BYTES: Final = 3 * EMPTY_PACKET_BYTES
# ICMP errors that end a connection attempt, as they end TCP's on Linux: port, host and network unreachable, and what a
# firewall's rule refuses.
_CONNECT_ERRORS: Final = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EPERM)

# Events do not change, so that all connections have the same.
_IS_CONNECTED: Final = Event(EventKind.CONNECTED)
_IS_CLOSED: Final = Event(EventKind.CLOSED)


class Connection:
    """A uTP connection. The module's docstring says in which order to call its methods.

    Arguments of the constructor:
    config, workspace   tuning, and the memory that the connections of one thread share
    addr                the peer's address, returned as it is in every Transmit
    recv_id             connection id of the packets that we receive: 16 random bits; an acceptor's: the SYN's id + 1
    first_seq           our first sequence number: 16 random bits
    spare_ids           further recv_ids for an initiator, used if its first SYN is not answered (handshake.py). Packets
                        that carry any of `recv_ids` must be handed to this connection

    Attributes that may be read:
    addr          as above
    state         of states.py
    is_initiator  whether we sent the SYN; False for an acceptor, and for the side that lost a simultaneous open
    recv_id       connection id of the packets that we receive now
    send_id       connection id of the packets that we send
    errno         why the connection ended; 0 while it lasts, and if it ended in order
    soft_errno    the last ICMP error that does not end a connection, reported if it then times out; 0 if there was none
    events        those that poll_event() has not returned yet. A tuple, since an empty one takes no memory
    send          the direction from us to the peer
    receive       the direction from the peer to us

    Its parts:
    _handshake         SYNs, their answers, and the ids of both
    _composer          writes the packets
    _keepalive         keepalives and keepalive probes
    _close_timers      how long the end may take; None until the application has closed a direction, or the peer has
                       made us end the connection
    _piece_assembly    pieces of packets that were too large for the path; None until the first one comes
    _dropped_packets   packets that were not acceptable

    Source: BEP 29 "overview"; docs/design.md §3.
    """

    __slots__ = (
        "_close_timers",
        "_composer",
        "_dropped_packets",
        "_handshake",
        "_keepalive",
        "_piece_assembly",
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
        addr: Address,
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
        self.soft_errno = 0
        self.receive = ReceiveHalf(config.receive_buffer_bytes)
        self.send: SendHalf = config.new_send_half(workspace, first_seq)
        self._handshake = Handshake(recv_id, first_seq, spare_ids)
        self._composer = Composer(addr, self.send, self.receive)
        self._keepalive = Keepalive()
        self._piece_assembly: PieceAssembly | None = None
        self._close_timers: CloseTimers | None = None
        self.events: tuple[Event, ...] = ()
        self._dropped_packets = 0

    # ── getters ──

    @property
    def is_over(self) -> bool:
        """Whether the connection is closed and every RESET that it owes has been taken by poll_transmit(), so that the
        caller may forget it.

        Returns: True or False.
        Source: docs/protocol.md §12.
        """
        return self.state is CLOSED and not self._handshake.pending_resets

    @property
    def recv_ids(self) -> tuple[int, ...]:
        """All connection ids under which packets for this connection may come.

        Returns: recv_id, and while connecting those of the other SYNs; there are fewer once the handshake is complete.
        Source: BEP 29 "connection setup"; docs/protocol.md §2.
        """
        return self._handshake.recv_ids

    @property
    def has_eof(self) -> bool:
        """Whether the peer's FIN and all bytes before it have come and been delivered: the application reads EOF.

        Returns: True or False.
        Source: BEP 29 "type".
        """
        return self.receive.reassembly.is_fin_reached and not self.receive.reassembly.ready_bytes

    @property
    def has_arrivals(self) -> bool:
        """Whether there is anything to deliver, be it the end of file, or the connection is not established any more.

        Returns: True or False.
        Source: docs/design.md §3.
        """
        reassembly = self.receive.reassembly
        return reassembly.ready_bytes > 0 or reassembly.is_fin_reached or self.state is not CONNECTED

    @property
    def is_flushed(self) -> bool:
        """Whether all bytes written, and our FIN if finish() was called, are acked; True also when the connection is
        over, in whatever way.

        Returns: True or False.
        Source: docs/protocol.md §12.
        """
        if self.state in (CLOSED, TIME_WAIT):
            return True
        return self.send.is_fin_acked if self.send.is_finishing else self.send.is_idle

    def time_wait_record(self) -> TimeWaitRecord | None:
        """What to keep for a minute after forgetting the connection, to ack what the peer repeats.

        Returns: the record; None unless both FINs were acked.
        Raises: nothing.
        Source: docs/protocol.md §12.
        """
        closing = self._close_timers
        if self.errno or not self.receive.reassembly.is_fin_reached or closing is None:
            return None
        if closing.time_wait_at == NEVER:
            return None
        return TimeWaitRecord(self.send_id, self.send.flights.next_seq & 0xFFFF, self.receive.ack & 0xFFFF)

    def stats(self) -> ConnectionStats:
        """The figures of this instant.

        Returns: a ConnectionStats, frozen.
        Raises: nothing.
        Source: docs/guide/use.md §5.
        """
        return ConnectionStats(*self.figures())

    def figures(self, local: Address | None = None) -> Figures:
        """The figures of this instant as plain values.

        Parameters:
            local: our address, which the connection does not know.
        Returns: the values in the order of ConnectionStats' fields.
        Raises: nothing.
        Source: docs/guide/use.md §5.
        """
        return figures(self.state, self.errno, local, self.addr, self.send, self.receive, self._dropped_packets)

    # ── what the application wants ──

    def connect(self, *, now: int, user_timeout_us: int = 0) -> None:
        """Open a connection to addr: the first SYN is due. An event follows, CONNECTED, or CLOSED with the errno.

        Parameters:
            now: µs.
            user_timeout_us: µs after which to give up with ETIMEDOUT (TCP_USER_TIMEOUT); 0: when every SYN has been
                tried.
        Raises: RuntimeError in any state but IDLE.
        Next: poll_transmit().
        Source: BEP 29 "connection setup"; docs/protocol.md §2.
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
        """Memory to write the next bytes into. Bytes may be written while the connection is still connecting.

        Returns: the memory; empty when the send buffer is full, after finish(), and when the connection is over.
        Raises: nothing.
        Next: commit().
        Source: docs/design.md §3.
        """
        if self.send.is_finishing or self.state in (CLOSED, TIME_WAIT):
            return memoryview(b"")
        return self.send.buffer.free_span()

    def free_spans(self, max_bytes: int) -> list[memoryview]:
        """free_span() and the memory that follows it in the stream, for a write of many bytes at once.

        Parameters:
            max_bytes: as many bytes as will be written at most; the spans hold these or, if the send buffer has less
                room, fewer.
        Returns: memoryviews; none where free_span() is empty, else the first is free_span().
        Raises: nothing.
        Next: commit(), which also gives back what was not written.
        Source: docs/design.md §3.
        """
        if self.send.is_finishing or self.state in (CLOSED, TIME_WAIT):
            return []
        return self.send.buffer.free_spans(max_bytes)

    def commit(self, count: int, *, more: bool = False) -> None:
        """The first `count` bytes of free_span(), or of free_spans(), have been written.

        Parameters:
            count: bytes, no more than the spans hold; 0 gives back unused spans.
            more: more bytes follow at once (as MSG_MORE), so a packet that is not full may wait for them. Ends with the
                next commit() without it, be it commit(0).
        Raises: nothing.
        Next: poll_transmit().
        Source: RFC 896 for what may wait.
        """
        self.send.buffer.commit(count)
        self.send.has_more = more

    def finish_delivery(self, count: int, *, now: int) -> None:
        """The application has taken the first `count` bytes of what poll_delivery() returned.

        Parameters:
            count: bytes; what is left is copied, so that the memory of received datagrams may be used again: call
                finish_delivery(0) even if nothing was taken.
            now: µs.
        Raises: nothing.
        Next: poll_transmit(), since a window update may be due.
        Source: RFC 9293 §3.8.6.2.2.
        """
        self.receive.finish_delivery(count, now=now)

    def finish(self, *, now: int) -> None:
        """The application writes no more (shutdown(SHUT_WR)): our FIN follows the last byte. A second call does
        nothing.

        Parameters:
            now: µs.
        Raises: nothing.
        Next: poll_transmit(). Data can still be received.
        Source: BEP 29 "type" (ST_FIN).
        """
        if not self.send.is_finishing:
            self.send.is_finishing = True
            self.send.has_more = False
            closing = self._close_timers
            if closing is None:
                closing = self._closing()
            closing.closed_at = now
            if closing.reset_after_flush:
                self.close_if_finished(now=now)

    def discard(self, *, now: int) -> None:
        """The application has closed its socket and reads no more. What was written is still sent. If received bytes
        are unread, or more come, the connection ends by a RESET as TCP's does, but only after what we wrote has been
        acked or ABORT_FLUSH_US are over. A second call does nothing.

        It does not end our direction: call finish() or reset_after_flush() as well.

        Parameters:
            now: µs.
        Raises: nothing.
        Source: RFC 2525 §2.17; docs/protocol.md §12.
        """
        if not self.receive.is_discarding:
            closing = self._close_timers
            if closing is None:
                closing = self._closing()
            if self.receive.reassembly.ready_bytes or self.receive.reassembly.has_out_of_order:
                closing.reset_after_flush = True
            self.receive.discard()
            self.send.orphan(now=now)
            closing.closed_at = now
            self.close_if_finished(now=now)

    def reset_after_flush(self, error: int = 0, *, now: int) -> None:
        """Once all that was written is acked, or the peer's window is closed, end by a RESET in place of a FIN: the
        application has closed its socket with bytes unread.

        Parameters:
            error: errno of the CLOSED event that follows.
            now: µs.
        Raises: nothing.
        Next: poll_event(), poll_transmit().
        Source: RFC 2525 §2.17.
        """
        closing = self._closing()
        closing.reset_after_flush, closing.reset_errno = True, error
        self.close_if_finished(now=now)

    def abort(self, error: int = 0) -> None:
        """End the connection at once: drop what was written and not acked, and send a RESET, or more than one to a peer
        that has been sent several SYNs. None is sent where the peer cannot know of the connection, or may not be
        sent so much because its address is not verified.

        Parameters:
            error: errno of the CLOSED event that follows; 0 for close() with SO_LINGER 0.
        Raises: nothing.
        Next: poll_event(), poll_transmit().
        Source: docs/protocol.md §4.
        """
        if self.state is SYN_SENT:
            self._handshake.withdraw_syns()
        exceeds_credit = self.state is SYN_RECEIVED and self.send.amplification_credit_bytes < EMPTY_PACKET_BYTES
        if self.state not in (CLOSED, IDLE, SYN_SENT) and not exceeds_credit:
            self._handshake.add_reset(self.send_id, self.send.flights.next_seq, self.receive.ack)
        self._close(error)

    def close_silently(self) -> None:
        """End the connection at once and send nothing: for a half-open one that can be made again from the SYN cache,
        and for one in TIME_WAIT that the peer does not need any more.

        Raises: nothing.
        Next: poll_event().
        Source: docs/protocol.md §4, §12.
        """
        self._close(errno.ETIMEDOUT)

    def end_time_wait(self, *, now: int) -> None:
        """End TIME_WAIT before its time: with a RESET if the peer may not have our last ack. Does nothing in any other
        state.

        Parameters:
            now: µs.
        Raises: nothing.
        Next: poll_transmit().
        Source: docs/protocol.md §12.
        """
        if self.state is TIME_WAIT:
            if self._closing().has_peer_last_ack(now=now):
                self.close_silently()
            else:
                self.abort()

    def set_syn_retries(self, times: int) -> None:
        """Set how often the SYN is repeated before the connection attempt is given up with ETIMEDOUT.

        Takes effect at once, also during the attempt.

        Parameters:
            times: a number, 1 or more, as TCP_SYNCNT; SYN_TRIES - 1 unless set.
        Raises: nothing.
        Source: tcp(7) TCP_SYNCNT.
        """
        self._handshake.syn_tries = times + 1

    def set_keepalive(self, interval_us: int, probing: Probing | None = None, *, now: int) -> None:
        """Configure what is sent on an idle connection. Each call replaces the one before.

        Parameters:
            interval_us: µs without a packet sent after which a keepalive is sent, which the peer does not answer, for
                the sake of NATs (RFC 4787 REQ-6). 0: none.
            probing: when to send keepalive probes, which the peer must answer, and when to give up with ETIMEDOUT
                (SO_KEEPALIVE); None: never.
            now: µs.
        Raises: nothing.
        Next: timeout_at().
        Source: docs/protocol.md §7.
        """
        self._keepalive.configure(interval_us, probing, now=now)

    # ── what the network and time bring ──

    def handle_run(self, run: Run, *, packet: Packet | None = None, now: int) -> None:
        """Datagrams came from addr with one of recv_ids, or a RESET with send_id.

        They are handled packet by packet, in the order in which they lie in the run; a clean run and a lone ack with
        the same effect at once (fastpath.py). What is not acceptable is dropped and counted.

        Parameters:
            run: may be used until this returns; payload is borrowed from it until finish_delivery().
            packet: what decode() has made of the run, if that is one datagram and the caller had to decode it.
            now: µs.
        Raises: nothing.
        Next: see the module's docstring.
        Source: BEP 29 "header format"; docs/design.md §4.
        """
        if self.state is CONNECTED:
            data = run.data
            data_bytes = len(data)
            if data_bytes > run.stride:
                is_handled = run.is_clean() and fastpath.handle(self.send, self.receive, self.recv_id, run, now=now)
            elif data_bytes < HEADER_BYTES or data[1]:  # nothing of uTP, or with an extension
                is_handled = False
            elif data[0] == DATA_BYTE:
                is_handled = data_bytes > HEADER_BYTES and fastpath.handle_lone(
                    self.send, self.receive, self.recv_id, data, now=now
                )
            else:
                is_handled = (
                    data[0] == STATE_BYTE
                    and data_bytes == HEADER_BYTES
                    and fastpath.handle_ack(
                        self.send, self.receive, self.recv_id, self._handshake.syn_seq, data, now=now
                    )
                )
            if is_handled:
                if self.send.is_finishing or self.receive.is_discarding:
                    self.close_if_finished(now=now)
                return
        if packet is not None:
            self._handle_packet(packet, now=now)
            return
        is_alone = len(run.data) <= run.stride
        for datagram in (run.data,) if is_alone else run.datagrams():
            if not is_alone and self._handle_state(datagram, now=now):
                continue
            packet = decode(datagram)
            if packet is None:
                self._dropped_packets += 1
            else:
                self._handle_packet(packet, now=now)

    def _handle_state(self, datagram: memoryview, *, now: int) -> bool:
        """One of several datagrams, as acks of a receiver without UDP_SEGMENT come: handle it if it is a STATE without
        extensions of an established connection, as handle_run() does a lone one. Returns whether it is.
        """
        if self.state is not CONNECTED or len(datagram) != HEADER_BYTES or datagram[0] != STATE_BYTE or datagram[1]:
            return False
        if not fastpath.handle_ack(self.send, self.receive, self.recv_id, self._handshake.syn_seq, datagram, now=now):
            return False
        if self.send.is_finishing or self.receive.is_discarding:
            self.close_if_finished(now=now)
        return True

    def _handle_packet(self, packet: Packet, *, now: int) -> None:
        """Check whether one packet is of this connection's peer; if so, _accept() handles it. This is the specification
        of what handle_run() does.
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
        una_seq = flights.una_seq
        ack_next_seq = una_seq + ((packet.ack16 - una_seq + 0x8000) & 0xFFFF) - 0x7FFF  # unwrap(), and one more
        if packet.connection_id != self.recv_id and packet.type != RESET:
            if not self._handle_other_id(packet, ack_next_seq):
                return
        if packet.type == RESET:
            self._handle_reset(packet, ack_next_seq, now=now)
            return
        if not send.is_peer_verified and not send.sent_packets and ack_next_seq == flights.next_seq + 1:
            # In BEP 29's diagram the SYN-ACK consumes a sequence number, which the first DATA acks; rust-utp does so,
            # and so did the first implementation. Towards such a peer our stream begins one number later.
            send.start(ack_next_seq)
            flights = send.flights
        if not is_acceptable_ack(packet.type, ack_next_seq, flights, is_peer_verified=send.is_peer_verified):
            self._dropped_packets += 1
            return
        paws = send.paws
        if paws.is_armed and ack_next_seq >= flights.una_seq and paws.drop_if_wrapped(packet.timestamp_us, now=now):
            return  # it acks a packet that had the same 16 bits 65,536 packets ago
        seq = -1
        if packet.type in (DATA, FIN):
            seq = unwrap(packet.seq16, receive.reassembly.next_seq)
            if receive.paws.is_armed and receive.drop_if_wrapped(seq, packet.timestamp_us, now=now):
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
                self._closing().reset_after_flush = True
            # What is discarded still fills the window. So its sender cannot send more than that until our RESET, which
            # waits until what we wrote has been acked, ends the connection.
            is_fin = packet.type == FIN
            is_finishing = send.is_finishing or receive.is_discarding
            receive.on_packet(
                seq, packet.payload, packet.timestamp_us, is_fin=is_fin, is_finishing=is_finishing, now=now
            )
            if self.state is TIME_WAIT:
                self._closing().start_time_wait(now=now)
        if send.is_finishing or receive.is_discarding:
            self.close_if_finished(now=now)

    def _handle_other_id(self, packet: Packet, ack_next_seq: int) -> bool:
        """A packet with another id than recv_id. Returns whether it belongs to this connection all the same: its
        initiator took the answer to another SYN of its attempt than the last. If not, the packet has been dropped, or a
        RESET answers it.
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
        self.events += (_IS_CONNECTED,)

    def _handle_pieces(self, pieces: list[memoryview], timestamp_us: int, *, now: int) -> None:
        """Pieces of packets that were too large for the path (fragmentation.py). A packet that they complete is handled
        like any other.
        """
        receive = self.receive
        reassembly = receive.reassembly
        if self._piece_assembly is None:
            self._piece_assembly = PieceAssembly()
        for piece in pieces:
            joined = self._piece_assembly.add(piece, reassembly.next_seq, reassembly.room_bytes)
            if joined is None or receive.drop_if_wrapped(joined[0], timestamp_us, now=now):
                continue
            if receive.is_discarding and joined[0] >= reassembly.next_seq:
                self._closing().reset_after_flush = True
            receive.on_packet(joined[0], memoryview(joined[1]), timestamp_us, is_fin=False, now=now)

    def _handle_syn(self, packet: Packet, *, now: int) -> None:
        """A SYN: it opens the connection; or repeats the one that did, and is answered again; or it is our own."""
        if self.state is IDLE:
            self._set_ids(self.recv_id, packet.connection_id)
            self.receive.start(packet.seq16 + 1)
            self.send.is_peer_verified = False
            self.send.peer.on_window(packet.window_bytes or _ASSUMED_SYN_WINDOW_BYTES)
            self._transition(Trigger.SYN)
            self._handshake.on_syn(packet, now=now)
            self.receive.received_at = now
            # The SYN-ACK carries no timestamp difference, as libutp's carries none: libktorrent would take it for the
            # round trip time, and on the first loss wait for as long as the two clocks differ.
            self.send.amplification_credit_bytes = AMPLIFICATION_CREDIT_BYTES
            self.receive.ack_at = now
        elif self.state is SYN_RECEIVED and self._handshake.peer_syn_seq16 == packet.seq16:
            self.send.amplification_credit_bytes += AMPLIFICATION_CREDIT_BYTES
            if self._handshake.note_repeated_syn(packet, now=now):
                self._set_ids((packet.connection_id + 1) & 0xFFFF, packet.connection_id)
                self.receive.ack_at = now
        elif self.state is SYN_SENT and self._handshake.is_own_syn(packet):
            self._close(errno.ECONNREFUSED)  # we are connecting to ourselves, and do not listen
        else:
            self._dropped_packets += 1

    def handle_simultaneous_open(self, packet: Packet, *, now: int) -> bool:
        """A SYN came from the address to which we are connecting, at a port on which nothing listens: simultaneous
        open.

        Parameters:
            packet: the SYN.
            now: µs.
        Returns: whether it belongs to this connection; if not, nothing was done.
        Raises: nothing.
        Next: if True, recv_id may be another one; then see the module's docstring.
        Source: RFC 9293 §3.5; docs/protocol.md §14.
        """
        handshake = self._handshake
        if self.state is SYN_RECEIVED and packet.seq16 == handshake.peer_syn_seq16:
            self._handle_syn(packet, now=now)
            return True
        # With the same number it is our own SYN. Once in 65,536 times it is chance, and both sides are refused.
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
        self.receive.ack_at = now  # verifies our address for the acceptor
        self._transition(Trigger.PEER_VERIFIED)
        self.events += (_IS_CONNECTED,)
        return [packet, *early]

    def _handle_repeated_syn_ack(self, packet: Packet, *, now: int) -> None:
        """A STATE before any DATA: perhaps the acceptor repeats its SYN-ACK, because our ack of it was lost."""
        reassembly = self.receive.reassembly
        if self._handshake.is_second_syn_ack(packet, reassembly.next_seq):
            self.receive.start(unwrap(packet.seq16, reassembly.next_seq))
            self.receive.ack_at = now
        elif packet.ack16 == self._handshake.syn_seq & 0xFFFF and not self.send.sent_packets:
            self.receive.ack_at = now

    def _handle_reset(self, packet: Packet, ack_next_seq: int, *, now: int) -> None:
        send, receive = self.send, self.receive
        # An initiator withdraws a SYN without having seen its answer: it knows its own sequence number, but not ours.
        is_withdrawn = self.state is SYN_RECEIVED and packet.seq16 == receive.reassembly.next_seq & 0xFFFF
        if is_withdrawn and (other_id := self._handshake.withdraw_id(packet.connection_id)) is not None:
            self._set_ids(other_id, (other_id - 1) & 0xFFFF)
            return
        has_our_id = packet.connection_id in (self.recv_id, self.send_id)
        is_acceptable = is_withdrawn or is_acceptable_ack(
            packet.type, ack_next_seq, send.flights, is_peer_verified=send.is_peer_verified
        )
        if has_our_id and not is_acceptable and self.state is CONNECTED:
            is_acceptable = self._keepalive.check_doubtful_reset(receive.received_at, send.recovery.srtt_us, now=now)
        if not has_our_id or not is_acceptable:
            self._dropped_packets += 1
            return
        waits_for_more = not receive.is_discarding and not receive.reassembly.is_fin_reached
        is_clean = is_clean_close(ack_next_seq, send.fin_seq, is_all_acked=send.is_idle, waits_for_more=waits_for_more)
        self._close(0 if is_clean else errno.ECONNRESET)

    def handle_icmp(
        self, error: int, *, quoted_seq16: int | None, mtu_bytes: int, datagram_bytes: int, now: int
    ) -> None:
        """An ICMP message, or an error of the kernel's, says that a datagram of ours could not be delivered.

        A message that quotes a packet which is not in flight is ignored. While connecting, the errnos of
        _CONNECT_ERRORS end the attempt. Later ECONNREFUSED ends the connection if it quotes a packet, EMSGSIZE makes
        packets smaller, and others are reported if the connection then times out.

        Parameters:
            error: errno of the message: ECONNREFUSED, EMSGSIZE, EHOSTUNREACH and others.
            quoted_seq16: seq_nr of the datagram that it quotes, a 16-bit number; None if it quotes too little.
            mtu_bytes: for EMSGSIZE: bytes of UDP payload in the largest datagram that passes, 0 if not known.
            datagram_bytes: bytes of UDP payload in the datagram, 0 if not known.
            now: µs.
        Raises: nothing.
        Next: see the module's docstring.
        Source: RFC 1122 §4.2.3.9, RFC 5927 §4, RFC 1191; docs/protocol.md §4.
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
                return  # RFC 5927 §4: it quotes a packet that is not in flight
        if error == errno.EMSGSIZE:
            self.send.on_too_big(datagram_bytes, mtu_bytes, now=now)
            return
        if error != errno.ECONNREFUSED:
            self.soft_errno = error
            return
        if is_quoted and self.state not in (CLOSED, IDLE):
            # The peer's port is closed, where the kernel of a TCP peer would send a RST.
            both_finished = self.send.fin_seq is not None and self.receive.reassembly.is_fin_reached
            self._close(0 if both_finished or self.state is TIME_WAIT else errno.ECONNRESET)

    def handle_timeout(self, *, now: int) -> None:
        """Do what is due: retransmissions, acks, probes; or end the connection with ETIMEDOUT. To be called at
        timeout_at() or later; a call before does nothing.

        Parameters:
            now: µs.
        Raises: nothing.
        Next: see the module's docstring.
        Source: BEP 29 "timeouts"; RFC 6298 §5.
        """
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
        closing = self._close_timers
        if closing is not None and self.is_initiator and closing.is_fin_ignored(now=now):
            self._close(0)
            return
        if closing is not None and now >= closing.abort_at():
            self.abort()
            return
        self.receive.on_time(now=now)
        if closing is not None and now >= closing.half_closed_probe_at:
            is_probe_due = closing.poll_half_closed_probe(self.receive.received_at, now=now)
            if is_probe_due is None:
                self.abort(self.soft_errno or errno.ETIMEDOUT)
                return
            self._keepalive.is_probe_due |= is_probe_due
        if now >= self._handshake.handshake_ack_at:
            self._repeat_handshake_ack(now=now)
        if self.state is CONNECTED and now >= self._keepalive.next_at:
            is_idle = send.is_idle and send.is_all_acked
            if self._keepalive.on_time(self.receive.received_at, is_idle=is_idle, now=now):
                self.receive.ack_at = now
            if self._keepalive.is_peer_dead:
                self.abort(self.soft_errno or errno.ETIMEDOUT)

    def _handle_other_timeout(self, *, now: int) -> bool:
        """What is due in any state but CONNECTED. Returns whether what is due in that one may be due as well: in
        SYN_RECEIVED data is already retransmitted and acked.
        """
        handshake = self._handshake
        if self.state is SYN_SENT:
            if now >= handshake.give_up_at or (now >= handshake.due_at and handshake.is_exhausted):
                self.abort(self.soft_errno or errno.ETIMEDOUT)
        elif self.state is SYN_RECEIVED:
            if now < handshake.due_at:
                return True
            self._close(errno.ETIMEDOUT)
        elif self.state is TIME_WAIT and now >= self._closing().time_wait_at:
            self._transition(Trigger.ENDED)
            self._release(0)
        return False

    def _repeat_handshake_ack(self, *, now: int) -> None:
        """An initiator's ack of the SYN-ACK may have been lost: send it again, unless the acceptor has shown that it
        has come. It has if it acks data, or if a second packet comes from it: before, it may send only one.
        """
        send, handshake = self.send, self._handshake
        is_known = send.flights.una_seq > handshake.syn_seq + 1 or self.receive.received_packets > 1
        if is_known or send.sent_packets:  # data does the same, and is repeated until it is acked
            handshake.handshake_ack_at = NEVER
        elif send.must_open_with_data:
            handshake.handshake_ack_at = NEVER
            send.is_opening_due = True
        else:
            handshake.schedule_handshake_ack(send.recovery.rto_us, now=now)
            self.receive.ack_at = now

    def timeout_at(self) -> int | None:
        """When to call handle_timeout() and then poll_transmit(). Valid after poll_transmit() has returned None, until
        the next call of anything else.

        Returns: µs, perhaps in the past; None while nothing is waited for.
        Raises: nothing.
        Source: docs/design.md §3.
        """
        at = self.next_timeout_at()
        return at if at < NEVER else None

    def next_timeout_at(self) -> int:
        """timeout_at(), with NEVER (times.py) for None: what an engine that asks for it after every batch can compare.

        Returns: µs, perhaps in the past; NEVER while nothing is waited for.
        Raises: nothing.
        Source: docs/design.md §3.
        """
        state = self.state
        if state is CONNECTED:
            send, receive = self.send, self.receive
            if send.flights.queue or send.is_persisting or send.closed_since != NEVER:
                at = send.deadline()
            else:
                at = send.paced_until
            if receive.ack_at < at:
                at = receive.ack_at
            if receive.window_update_at < at:
                at = receive.window_update_at
            other_at = self._keepalive.next_at
            if other_at < at:
                at = other_at
            other_at = self._handshake.handshake_ack_at
            if other_at < at:
                at = other_at
            closing = self._close_timers
            if closing is not None:
                if receive.is_discarding:
                    # Before, CloseTimers.abort_at() is NEVER.
                    if closing.reset_after_flush or (send.fin_seq is not None and send.flights.una_seq > send.fin_seq):
                        at = min(at, closing.abort_at())
                elif send.fin_seq is not None:
                    at = min(at, closing.half_closed_probe_at)
        elif state is SYN_SENT:
            at = min(self._handshake.due_at, self._handshake.give_up_at)
        elif state is SYN_RECEIVED:
            at = min(self.send.deadline(), self.receive.ack_at, self._handshake.due_at)
        elif state is TIME_WAIT and (closing := self._close_timers) is not None:
            at = min(closing.time_wait_at, self.receive.ack_at)
        else:
            return NEVER
        return at if at < NEVER else NEVER

    # ── what is to be done ──

    def poll_event(self) -> Event | None:
        """Take the next event. Each is returned once: CONNECTED, if the handshake completes, then CLOSED.

        Returns: the event; None when there is none.
        Raises: nothing.
        Source: docs/design.md §3.
        """
        if not self.events:
            return None
        first, self.events = self.events[0], self.events[1:]
        return first

    def poll_delivery(self) -> list[memoryview]:
        """The bytes to deliver to the application, in the order of the stream.

        Returns: views of received datagrams' memory, none if there is nothing; valid until finish_delivery().
        Raises: nothing.
        Next: finish_delivery(), before any other call.
        Source: docs/design.md §3.
        """
        return self.receive.reassembly.ready

    def poll_transmit(self, *, now: int, max_segments: int) -> Transmit | None:  # noqa: C901  # its parts would be calls
        """Take the next datagrams to send to addr, with one system call if possible.

        RESETs first, then a selective ack if one is due, lost packets, new data, and last a bare ack. A closed window
        or a pacing gap is a later deadline, not an error.

        Parameters:
            now: µs, monotonic, never less than in an earlier call.
            max_segments: packets, 1 to MAX_RUN_PACKETS; 1 turns batching off.
        Returns: the datagrams, with a copy of the payload, so that they may be kept and sent later; they count as sent
            when they are returned. None when nothing may leave now.
        Raises: nothing.
        Next: the same until None, then timeout_at().
        Source: BEP 29 "packet sizes"; RFC 6817 §2.4.2.
        """
        composer, handshake = self._composer, self._handshake
        if handshake.pending_resets:
            connection_id, seq, ack = handshake.take_reset()
            return composer.reset(connection_id, seq, ack, now=now)
        state, receive = self.state, self.receive
        if state is not CONNECTED:
            if state is SYN_SENT:
                if (recv_id := handshake.next_syn(now=now)) is None:
                    return None
                if recv_id != self.recv_id:
                    self._set_ids(recv_id, (recv_id + 1) & 0xFFFF)
                transmit = composer.syn(recv_id, handshake.syn_seq, is_large=handshake.is_syn_large, now=now)
                transmit.is_last = handshake.due_at > now
                return transmit
            if state is SYN_RECEIVED:
                return self._poll_unverified(now=now)
            if state is not TIME_WAIT:
                return None
        if receive.ack_at <= now and receive.reassembly.sack_bits:
            return self._transmit_state(now=now)  # data cannot carry a selective ack
        is_all_sent = False
        if state is CONNECTED:
            send = self.send
            if send.flight_to_split is not None and (flight := send.poll_pieces()) is not None:
                return composer.pieces(flight, now=now)
            if (  # as not send.has_nothing_to_send, without a call
                send.sent_offset != send.buffer.end_offset
                or send.flights.lost_packets
                or send.tail_probe_due
                or (send.is_finishing and send.fin_seq is None)
                or send.is_opening_due
                or send.paced_until != NEVER
                or send.closed_since != NEVER
            ):
                flight = send.next_flight(now=now, max_segments=max_segments)
                if flight is not None:
                    self._keepalive.sent_at = now
                    transmit = composer.flight(flight, now=now)
                    transmit.is_last = (
                        receive.ack_at > now and not self._keepalive.is_probe_due and send.has_nothing_to_send
                    )
                    return transmit
            else:
                is_all_sent = True
        if self._keepalive.is_probe_due:
            self._keepalive.is_probe_due = False
            if self.send.is_all_acked:  # else the probe would carry the sequence number of data that is in flight
                self._keepalive.sent_at = now
                return composer.keepalive_probe(now=now)
        if receive.ack_at <= now:
            transmit = self._transmit_state(now=now)
            transmit.is_last = is_all_sent or self.send.has_nothing_to_send
            return transmit
        return None

    def _poll_unverified(self, *, now: int) -> Transmit | None:
        """poll_transmit() in state SYN_RECEIVED: the SYN-ACK and one small packet of data, as far as the amplification
        credit goes. docs/protocol.md §3.
        """
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
        # Nothing was written and nothing finished, as nearly always: the next call would find nothing.
        transmit.is_last = (
            send.sent_offset == send.buffer.end_offset and not send.is_finishing and not send.sent_packets
        )
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
        """Go on to TIME_WAIT if both FINs are acked, or to the RESET of reset_after_flush() if all is acked. Does
        nothing otherwise. Called by the methods above after everything that may finish a direction.

        Parameters:
            now: µs.
        Raises: nothing.
        Source: docs/protocol.md §12.
        """
        if self.state is not CONNECTED:
            return
        send, closing = self.send, self._close_timers
        if closing is None:
            closing = self._closing()
        if closing.reset_after_flush and (send.is_idle or send.is_peer_window_limited):
            # Behind a closed window the rest may never be acked: the peer's program may not read before we read, and we
            # will not read again.
            self.abort(closing.reset_errno)
            return
        if send.fin_seq is None or send.flights.una_seq <= send.fin_seq:
            return
        if not self.receive.reassembly.is_fin_reached:
            closing.watch_half_closed(now=now)
            return
        self._transition(Trigger.BOTH_FINISHED)
        closing.start_time_wait(now=now)
        self.events += (_IS_CLOSED,)

    def _closing(self) -> CloseTimers:
        if self._close_timers is None:
            self._close_timers = CloseTimers(self.send, self.receive)
        return self._close_timers

    def _close(self, error: int) -> None:
        """End the connection for another reason than both FINs: with this errno, 0 for none."""
        if self.state in (CLOSED, TIME_WAIT):
            if self.state is TIME_WAIT:
                self._transition(Trigger.FAILED)
                self._release(0)
            return
        self._transition(Trigger.FAILED)
        self.events += (Event(EventKind.CLOSED, error) if error else _IS_CLOSED,)
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

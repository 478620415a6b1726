"""The handshake: an initiator's SYNs and what counts as their answer; an acceptor's SYN-ACK and its repetitions.

It keeps times and ids, and decides about answers. Once the connection is established, only late answers to other SYNs
of the same attempt still concern it.

Facts about the peers (docs/protocol.md §2, §3). A SYN-ACK is a STATE whose seq_nr is the acceptor's next DATA. libutp
does not answer a SYN that it has seen, so a lost SYN-ACK is repaired only by a SYN with another id. libtorrent answers
a repeated SYN with a second connection. We and the JS utp repeat the answer. So a SYN is first repeated as it is, only
padded (packet.py), and if that is not answered, 0.5 s later sent under a fresh id. The first answer is taken; what the
peer made of the other SYNs gets a RESET.

The initiator's ack of the SYN-ACK is a STATE, which is not acked itself, so it may be lost unnoticed. An acceptor whose
application sends first would then wait for it for ever. So it is repeated until something comes that an acceptor sends
only when it has received it. For libutp (answers_like_libutp) the repetition is an empty DATA: its acceptors send
nothing before a first DATA, and they ack it, so that it is repeated no longer than necessary. Others drop an empty
DATA, and would wait for its number for ever (librqbit): they get the STATE again, after doubled times as Linux's
SYN-ACKs.

An acceptor repeats nothing by a timer of its own. To an address that may be forged it sends at most three times what
came from there (RFC 9000 §8.1): that is the answer and one small packet. Each repeated SYN allows as much again. If the
small packet is lost and the initiator, which has its answer, sends nothing, it is repeated only when the initiator's
first packet comes: a libutp's keepalive after 29 s, or our initiators' repeated ack.

A DATA that acks our SYN may have overtaken the STATE, or the STATE is lost; only the STATE has the number at which the
stream begins. So such a DATA is kept, and taken for the beginning only when it comes again: what is retransmitted first
is the oldest.

Our initiators always ack the SYN-ACK, and their SYNs say so by a mark: ack_nr, which means nothing in a SYN, and which
other implementations set to 0 and do not read. An acceptor of ours then waits for that ack before it reports the
connection. So of all connections that one attempt's SYNs have made only the one is reported that the initiator took,
and none of an attempt that was given up. An initiator that gives up says so by a RESET.

Simultaneous open: if both sides connect to each other and neither listens, the two SYNs cross. The one with the higher
sequence number wins, and the sender of the other one answers it as an acceptor does: one connection, and both have
called connect().

BEP 29 "connection_id", "connection setup" (whose diagram is wrong about the SYN-ACK's number: docs/protocol.md §2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from utpsocket.protocol.packet import Packet, PacketType, unwrap
from utpsocket.protocol.times import NEVER

SYN_RTO_US: Final = 1_000_000  # RFC 6298 §2.1; doubled with each SYN
# TCP_SYNCNT + 1. The last SYN leaves after 31 s and the attempt fails after 63 s: half of what Linux's TCP takes by
# default.
SYN_TRIES: Final = 6
_MAX_SYN_RTO_US: Final = 120_000_000  # Linux's TCP_RTO_MAX
# When, after a repeated SYN, one under a fresh id follows. By feel: a lost SYN-ACK of libutp's then costs 1.5 s, and a
# round trip of half a second has passed.
NEW_ID_AFTER_US: Final = 500_000
# How long an acceptor waits to be acked: as Linux with tcp_synack_retries 5. libutp's first packet may come after 29 s.
HALF_OPEN_US: Final = 63_000_000
# How often the ack of the SYN-ACK is repeated. Doubled from 1 s, the last one leaves after a minute, when an acceptor
# of ours has given up, and answers it by a RESET.
HANDSHAKE_ACKS: Final = 7
SYN_ACK_INTERVAL_US: Final = 100_000  # the least time between two answers to one SYN; by feel
# The mark in ack_nr of our SYNs: this initiator always acks the SYN-ACK. Any number but 0; these are "uP" in ASCII.
ACKS_SYN_ACK: Final = 0x7550
# How far a second SYN-ACK's number must be away to be a new random one. By feel: it is nearer by chance once in 32.
_NEW_NUMBER_DISTANCE: Final = 1_024
# How many packets that come before the SYN-ACK are kept. By feel.
_MAX_EARLY_PACKETS: Final = 8
# If a packet comes again later than this, the peer has retransmitted it; sooner, the network has duplicated it. By
# feel: half of our least retransmission timeout.
_RETRANSMITTED_AFTER_US: Final = 100_000
_RESETS_PER_ID: Final = 3  # how many RESETs what was made of an abandoned SYN gets; by feel, each may be lost
_MAX_ANSWERED_IDS: Final = 8  # of one attempt: ours uses four ids; by feel


class Handshake:
    """The time before the peer is verified, on either side. Times µs.

    due_at                when a SYN or handle_timeout() is due, NEVER when the handshake is complete
    give_up_at            when the attempt ends in any case (TCP_USER_TIMEOUT)
    recv_id               the id of our last SYN, or the acceptor's
    syn_seq               our SYN's number, before our first DATA's
    peer_syn_seq16        an acceptor's: the number of the SYN that made it, -1 for an initiator
    syn_tries             how many SYNs leave, those under fresh ids not counted
    is_syn_large          whether the SYN that left last is to be padded: a repetition that a small one under a fresh id
                          follows
    pending_resets        (connection_id, seq, ack) of RESETs that are due
    handshake_ack_at      when an initiator's ack of the SYN-ACK is repeated, unless the acceptor shows that it has come
    answered_ids          an acceptor's recv_ids: of a SYN, and of its repetitions under fresh ids
    answers_like_libutp   the SYN-ACK carried no timestamp difference, as none of libutp's family does

    _spare_ids                fresh ids that are left
    _used_ids                 ids of the SYNs that have left
    _try_count                how many SYNs have left, those under fresh ids not counted
    _syn_count                with them
    _next_try_at              when the next of the first kind leaves
    _is_new_id_next           before it, one under a fresh id
    _early                    (time of arrival, packet) by number: what came before the SYN-ACK; None for nothing
    _syns_at_doubtful_reset   _syn_count when a RESET came that acked something else
    _handshake_acks           how often the SYN-ACK has been acked
    _resets_sent              how many RESETs the connection of an abandoned SYN has got, by its id; None if there is
                              none
    _answers                  how often an acceptor has sent its SYN-ACK
    _answered_at              when it last did
    """

    __slots__ = (
        "_answered_at",
        "_answers",
        "_early",
        "_handshake_acks",
        "_is_new_id_next",
        "_next_try_at",
        "_resets_sent",
        "_spare_ids",
        "_syn_count",
        "_syns_at_doubtful_reset",
        "_try_count",
        "_used_ids",
        "answered_ids",
        "answers_like_libutp",
        "due_at",
        "give_up_at",
        "handshake_ack_at",
        "is_syn_large",
        "peer_syn_seq16",
        "pending_resets",
        "recv_id",
        "syn_seq",
        "syn_tries",
    )

    def __init__(self, recv_id: int, syn_seq: int, spare_ids: Sequence[int]) -> None:
        self.recv_id = recv_id
        self.syn_seq = syn_seq
        self.syn_tries = SYN_TRIES
        self.peer_syn_seq16 = -1
        self.due_at = NEVER
        self.give_up_at = NEVER
        self.handshake_ack_at = NEVER
        self.answered_ids: tuple[int, ...] = ()
        self.answers_like_libutp = False
        self.pending_resets: tuple[tuple[int, int, int], ...] = ()
        self._spare_ids = tuple(spare_ids)
        self._used_ids: tuple[int, ...] = ()
        self._resets_sent: dict[int, int] | None = None
        self._try_count = 0
        self._syn_count = 0
        self._syns_at_doubtful_reset = 0
        self._next_try_at = NEVER
        self._is_new_id_next = False
        self.is_syn_large = False
        self._handshake_acks = 0
        self._answers = 0
        self._answered_at = 0
        self._early: dict[int, tuple[int, Packet]] | None = None

    @property
    def recv_ids(self) -> tuple[int, ...]:
        """All ids under which packets for this connection may come."""
        if self._used_ids == (self.recv_id,) and not self._spare_ids:
            return self._used_ids
        return (self.recv_id, *(used for used in self._used_ids if used != self.recv_id), *self._spare_ids)

    # ── initiator ──

    def start(self, *, now: int) -> None:
        """An initiator's handshake begins: the first SYN is due."""
        self.due_at = now

    @property
    def is_exhausted(self) -> bool:
        """Whether every SYN has left: at due_at the attempt has failed."""
        return self._try_count >= self.syn_tries and not self._is_new_id_next

    def next_syn(self, *, now: int) -> int | None:
        """The id of the SYN that must leave now, or None. See is_syn_large for its size."""
        if now < self.due_at or self.is_exhausted:
            return None
        self.is_syn_large = self._syn_count > 0 and not self._is_new_id_next and bool(self._spare_ids)
        self._syn_count += 1
        if self._is_new_id_next:
            self._is_new_id_next = False
            self.recv_id, self._spare_ids = self._spare_ids[0], self._spare_ids[1:]
            self.due_at = self._next_try_at
        else:
            self._next_try_at = now + min(SYN_RTO_US << self._try_count, _MAX_SYN_RTO_US)
            self._try_count += 1
            self._is_new_id_next = self._try_count > 1 and bool(self._spare_ids)
            self.due_at = now + NEW_ID_AFTER_US if self._is_new_id_next else self._next_try_at
        if self.recv_id not in self._used_ids:
            self._used_ids += (self.recv_id,)
        return self.recv_id

    def answers_our_syn(self, packet: Packet) -> bool:
        """Whether this answers a SYN of ours: it acks the SYN's number, which only its receiver knows."""
        return packet.ack16 == self.syn_seq & 0xFFFF and packet.connection_id in self._used_ids

    def is_own_syn(self, packet: Packet) -> bool:
        """Whether a SYN is our own: we are connecting to ourselves. TCP would take it for a simultaneous open."""
        return packet.seq16 == self.syn_seq & 0xFFFF and packet.connection_id in self._used_ids

    def check_refusal(self, packet: Packet) -> bool:
        """Whether a RESET refuses our SYN: it carries either id of the connection that would have been, and acks the
        SYN. One that acks something else, as ethereum/utp's, counts only if it comes in answer to two SYNs: an attacker
        would have to guess the id twice.
        """
        if not any(packet.connection_id in (used, (used + 1) & 0xFFFF) for used in self._used_ids):
            return False
        if packet.ack16 != self.syn_seq & 0xFFFF and self._syns_at_doubtful_reset != self._syn_count:
            is_second, self._syns_at_doubtful_reset = self._syns_at_doubtful_reset > 0, self._syn_count
            return is_second
        return packet.ack16 == self.syn_seq & 0xFFFF

    def accept_syn_data(self, packet: Packet, *, now: int) -> bool:
        """Whether the peer's stream begins with the number of this packet, for which answers_our_syn() is true. If that
        is not known, the packet is kept.
        """
        if packet.type == PacketType.STATE:
            return True
        seq16 = packet.seq16
        if self._early is None:
            self._early = {}
        early = self._early
        known = early.get(seq16)
        if known is None:
            if len(early) < _MAX_EARLY_PACKETS:
                packet.payload = memoryview(bytes(packet.payload))  # the datagram's memory will be used again
                packet.sack = None
                early[seq16] = now, packet
            return False
        is_oldest = all(unwrap(other, seq16) >= seq16 for other in early)
        return is_oldest and now - known[0] >= _RETRANSMITTED_AFTER_US

    def on_syn_ack(self, packet: Packet, *, now: int) -> tuple[int, list[Packet]]:
        """An initiator's handshake is complete. Returns the round trip that it took in µs, 0 if that is ambiguous
        (Karn's algorithm), and the packets that were kept.
        """
        rtt_us = now - (self._next_try_at - SYN_RTO_US) if self._syn_count == 1 else 0
        self.recv_id = packet.connection_id
        self.due_at = NEVER
        self.answers_like_libutp = packet.type == PacketType.STATE and not packet.difference_us
        self._spare_ids = ()
        for used in self._used_ids:
            if used != self.recv_id:
                if self._resets_sent is None:
                    self._resets_sent = {}
                self._resets_sent[used] = 1
                self.add_reset((used + 1) & 0xFFFF, self.syn_seq + 1, 0)
        if self._early is None:
            return rtt_us, []
        near = packet.seq16
        in_order = sorted(self._early.values(), key=lambda entry: unwrap(entry[1].seq16, near))
        self._early = None
        return rtt_us, [early for _, early in in_order if early.connection_id == self.recv_id]

    def withdraw_syns(self) -> None:
        """The attempt is given up: whatever the peer has made of our SYNs gets a RESET."""
        for used in self._used_ids:
            self.add_reset((used + 1) & 0xFFFF, self.syn_seq + 1, 0)
        self._used_ids = ()

    def add_reset(self, connection_id: int, seq: int, ack: int) -> None:
        """A RESET with these values is due."""
        self.pending_resets += ((connection_id, seq, ack),)

    def take_reset(self) -> tuple[int, int, int]:
        """The first of pending_resets, which leaves now."""
        first, self.pending_resets = self.pending_resets[0], self.pending_resets[1:]
        return first

    def schedule_handshake_ack(self, rto_us: int, *, now: int) -> None:
        """The ack of the SYN-ACK leaves now: set handshake_ack_at for its repetition.

        rto_us   the time before the first repetition; doubled for each further one
        """
        self.handshake_ack_at = (
            now + (rto_us << self._handshake_acks) if self._handshake_acks < HANDSHAKE_ACKS else NEVER
        )
        self._handshake_acks += 1

    def reset_if_abandoned(self, packet: Packet) -> bool:
        """Whether the packet belongs to a connection that the peer has made of another SYN of this attempt. If so, a
        RESET answers it, a few times. docs/protocol.md §4.
        """
        if self._resets_sent is None:
            return False
        sent = self._resets_sent.get(packet.connection_id)
        if sent is None:
            return False
        if packet.type != PacketType.RESET and sent <= _RESETS_PER_ID:
            self._resets_sent[packet.connection_id] = sent + 1
            self.add_reset(packet.connection_id, packet.ack16 + 1, packet.seq16)
        return True

    def is_second_syn_ack(self, packet: Packet, next_seq: int) -> bool:
        """Whether this STATE is a second answer to our SYN, which replaces the first: libtorrent has then made a second
        connection and forgotten the first (docs/protocol.md §2). With a number near the first one it is a STATE of the
        same connection, sent after DATA that is still in flight. The caller knows that no DATA has come.
        """
        return (
            self._syn_count > 1
            and packet.ack16 == self.syn_seq & 0xFFFF
            and abs(unwrap(packet.seq16, next_seq) - next_seq) > _NEW_NUMBER_DISTANCE
        )

    def loses_simultaneous_open_to(self, packet: Packet) -> bool:
        """Whether of two SYNs that have crossed the peer's wins: its sequence number is the higher one. Both sides see
        the same two numbers, whatever is lost; ids would not do, since a SYN may be repeated under another one.
        """
        return packet.seq16 > self.syn_seq & 0xFFFF

    # ── acceptor ──

    def on_syn(self, packet: Packet, *, now: int) -> None:
        """The SYN that makes this connection has come: an acceptor's handshake begins."""
        self.peer_syn_seq16 = packet.seq16
        self.due_at = min(now + HALF_OPEN_US, self.give_up_at)
        self._answered_at = now
        self._answers = 1
        self.answered_ids += ((packet.connection_id + 1) & 0xFFFF,)

    def note_repeated_syn(self, packet: Packet, *, now: int) -> bool:
        """The SYN may have come again, perhaps under a fresh id. Returns whether to answer it: if it is the same, and
        the last answer is old enough.
        """
        if packet.seq16 != self.peer_syn_seq16 or now - self._answered_at < SYN_ACK_INTERVAL_US:
            return False
        recv_id = (packet.connection_id + 1) & 0xFFFF
        if recv_id not in self.answered_ids:
            if len(self.answered_ids) >= _MAX_ANSWERED_IDS:
                return False
            self.answered_ids += (recv_id,)
        self._answered_at = now
        self._answers += 1
        self.due_at = min(now + HALF_OPEN_US, self.give_up_at)
        return True

    def withdraw_id(self, id: int) -> int | None:
        """The initiator has withdrawn the SYN with this id, since it took the answer to another one, or gave up.
        Returns the recv_id of another SYN that was answered, None if there is none.
        """
        self.answered_ids = tuple(
            [recv_id for recv_id in self.answered_ids if id not in (recv_id, (recv_id - 1) & 0xFFFF)]
        )
        return self.answered_ids[-1] if self.answered_ids else None

    def on_peer_verified(self, packet: Packet, *, now: int) -> int:
        """The initiator has acked our number: an acceptor's handshake is complete. Returns the round trip in µs, 0 if
        that is ambiguous.
        """
        self.due_at = NEVER
        elapsed_us = now - self._answered_at
        # Our initiators send a STATE at once. A DATA may have waited for its application, and what comes after a second
        # may be a repetition.
        is_first = self._answers == 1 and packet.type == PacketType.STATE and elapsed_us < SYN_RTO_US
        return elapsed_us if is_first else 0

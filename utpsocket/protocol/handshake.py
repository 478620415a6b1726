"""How a connection comes about: SYNs and what may count as their answer, or the answer and its repetitions.

Separate because nothing of it matters afterwards. It keeps time and ids and judges answers; it holds no stream.

Read this first. Facts about the peers (docs/protocol.md §2, §3): a SYN-ACK is a bare STATE whose seq_nr is the
acceptor's next DATA. libutp does not answer a SYN it has seen, so a lost SYN-ACK is repaired only by a SYN with another
id; libtorrent answers with a second connection; we and the JS utp answer alike. So a SYN is first repeated as it is,
only large (packet.py), and if that stays without answer, soon after under a fresh id. Whichever answer comes first is
taken; what the peer made of the other SYNs is told to go.

The initiator's word that it has the answer is a bare STATE, which nobody acks, so it may be lost unnoticed: an acceptor
that speaks first would wait for it for ever. It is repeated until something comes that only an acceptor sends who has
it. To libutp's family (answers_like_libutp) the repetition is an empty DATA: their acceptors say and end nothing
before a first DATA, and they ack it, so that it is repeated no longer than needed. Others drop an empty DATA, and would
wait for its number for ever (librqbit): they hear the bare STATE again, with doubled waits as Linux's SYN-ACKs.

The acceptor repeats nothing by its own clock. What it may send to an address that may be spoofed is three times what
came from there (RFC 9000 §8.1), and that is the answer and a greeting; each SYN that is repeated pays as much again.
So where the greeting is lost and the initiator, which has its answer, waits in silence, it is repeated only when that
says its first word: a libutp's keepalive comes after 29 s, our initiators' proof at once and again and again.

A DATA that acks our SYN may have overtaken the STATE, or the STATE is lost; only the STATE says where the stream
begins. So such DATA is held, and believed to be the beginning only when it comes again: what is sent again first is
the oldest.

An initiator of ours always proves itself, and its SYN says so by a mark: ack_nr, which means nothing in a SYN and which
everybody else sets to 0 and nobody reads. An acceptor of ours then waits for the proof before anybody is told of the
connection. So of all that one attempt's SYNs made there is never seen more than the one that it took, and nothing of an
attempt that was given up. Who gives up says so by a RESET, to whatever acceptor.

Simultaneous open: where both sides dial and neither listens, the two SYNs cross. The one with the higher number stays,
and who sent the other one answers it as an acceptor does: one connection, and both have called connect().

BEP 29 "connection_id", "connection setup" (whose diagram is wrong about the SYN-ACK's number: docs/protocol.md §2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from utpsocket.protocol.packet import Packet, PacketType, unwrap
from utpsocket.protocol.times import NEVER

SYN_RTO_US: Final = 1_000_000  # docs/protocol.md §2
SYN_TRIES: Final = 6  # each one RTO later than the last, which doubles: the last leaves after 31 s; TCP_SYNCNT + 1
_MAX_SYN_RTO_US: Final = 120_000_000  # as Linux (TCP_RTO_MAX)
NEW_ID_AFTER_US: Final = 500_000  # after a repeated SYN: a lost SYN-ACK then costs 1.5 s, and twice the RTT is over
HALF_OPEN_US: Final = 63_000_000  # as Linux with tcp_synack_retries 5; libutp's first word may take its 29 s
HANDSHAKE_ACKS: Final = 7  # the last one after a minute, to be told by a RESET if the acceptor has given up
SYN_ACK_INTERVAL_US: Final = 100_000  # docs/protocol.md §2: a repeated SYN's answer is rate-limited
ACKS_SYN_ACK: Final = 0x7550  # the mark
_NEW_NUMBER_DISTANCE: Final = 1_024
_MAX_EARLY_PACKETS: Final = 8
_RETRANSMITTED_AFTER_US: Final = 100_000  # sooner it is the network that repeats, not the peer
_RESETS_PER_ID: Final = 3
_MAX_ANSWERED_IDS: Final = 8


class Handshake:
    """The time before the first proof, on either side. Times µs.

    due_at      when handle_timeout() or a SYN is due, NEVER when the handshake is over
    recv_id     the id of our last SYN, or the acceptor's
    pending_resets      (connection_id, seq, ack) of RESETs that are due
    handshake_ack_at    when an initiator's proof must be repeated, unless the acceptor shows that it has it
    syn_tries   how many SYNs leave, those under fresh ids not counted
    is_syn_large   whether the SYN that left last is to be large: a repetition that a small one under a fresh id follows
    answered_ids   an acceptor's recv_ids: of a SYN, and of its repetitions under fresh ids
    answers_like_libutp   the answer told no time difference, as none of libutp's family does
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
        self.answered_ids: list[int] = []
        self.answers_like_libutp = False
        self.pending_resets: list[tuple[int, int, int]] = []
        self._spare_ids = list(spare_ids)
        self._used_ids: list[int] = []
        self._resets_sent: dict[int, int] = {}
        self._try_count = 0
        self._syn_count = 0
        self._syns_at_doubtful_reset = 0
        self._next_try_at = NEVER
        self._is_new_id_next = False
        self.is_syn_large = False
        self._handshake_acks = 0
        self._answers = 0
        self._answered_at = 0
        self._early: dict[int, tuple[int, Packet]] = {}

    @property
    def recv_ids(self) -> tuple[int, ...]:
        """Every id under which packets for this connection may come."""
        return (self.recv_id, *(used for used in self._used_ids if used != self.recv_id), *self._spare_ids)

    # ── initiator ──

    def start(self, *, now: int) -> None:
        """The first SYN is due."""
        self.due_at = now

    @property
    def is_exhausted(self) -> bool:
        """Every try has been made: when `at` comes, nobody is there."""
        return self._try_count >= self.syn_tries and not self._is_new_id_next

    def next_syn(self, *, now: int) -> int | None:
        """The id of a SYN that leaves now, or None."""
        if now < self.due_at or self.is_exhausted:
            return None
        self.is_syn_large = self._syn_count > 0 and not self._is_new_id_next and bool(self._spare_ids)
        self._syn_count += 1
        if self._is_new_id_next:
            self._is_new_id_next = False
            self.recv_id = self._spare_ids.pop(0)
            self.due_at = self._next_try_at
        else:
            self._next_try_at = now + min(SYN_RTO_US << self._try_count, _MAX_SYN_RTO_US)
            self._try_count += 1
            self._is_new_id_next = self._try_count > 1 and bool(self._spare_ids)
            self.due_at = now + NEW_ID_AFTER_US if self._is_new_id_next else self._next_try_at
        if self.recv_id not in self._used_ids:
            self._used_ids.append(self.recv_id)
        return self.recv_id

    def answers_our_syn(self, packet: Packet) -> bool:
        """Whether this answers a SYN of ours: only who saw it knows its seq."""
        return packet.ack16 == self.syn_seq & 0xFFFF and packet.connection_id in self._used_ids

    def is_own_syn(self, packet: Packet) -> bool:
        """Whether a SYN is ours come back: we dial ourselves. TCP would call that a simultaneous open."""
        return packet.seq16 == self.syn_seq & 0xFFFF and packet.connection_id in self._used_ids

    def check_refusal(self, packet: Packet) -> bool:
        """A RESET that answers a SYN of ours, under either id of the connection that would have been. One that acks
        nothing, as ethereum/utp's, must come in answer to two SYNs: whoever guesses an id has to guess it again.
        """
        if not any(packet.connection_id in (used, (used + 1) & 0xFFFF) for used in self._used_ids):
            return False
        if packet.ack16 != self.syn_seq & 0xFFFF and self._syns_at_doubtful_reset != self._syn_count:
            is_second, self._syns_at_doubtful_reset = self._syns_at_doubtful_reset > 0, self._syn_count
            return is_second
        return packet.ack16 == self.syn_seq & 0xFFFF

    def accept_syn_data(self, packet: Packet, *, now: int) -> bool:
        """Whether this packet, which answers_our_syn(), says where the peer's stream begins. If not, it is held."""
        if packet.type == PacketType.STATE:
            return True
        seq16 = packet.seq16
        known = self._early.get(seq16)
        if known is None:
            if len(self._early) < _MAX_EARLY_PACKETS:
                packet.payload = memoryview(bytes(packet.payload))  # the datagram's memory is borrowed
                packet.sack = None
                self._early[seq16] = now, packet
            return False
        is_oldest = all(unwrap(other, seq16) >= seq16 for other in self._early)
        return is_oldest and now - known[0] >= _RETRANSMITTED_AFTER_US

    def on_syn_ack(self, packet: Packet, *, now: int) -> tuple[int, list[Packet]]:
        """The handshake is complete. Returns the round trip it took, 0 where that is ambiguous (Karn), and the
        packets that were held.
        """
        rtt_us = now - (self._next_try_at - SYN_RTO_US) if self._syn_count == 1 else 0
        self.recv_id = packet.connection_id
        self.due_at = NEVER
        self.answers_like_libutp = packet.type == PacketType.STATE and not packet.difference_us
        self._spare_ids.clear()
        for used in self._used_ids:
            if used != self.recv_id:
                self._resets_sent[used] = 1
                self.pending_resets.append(((used + 1) & 0xFFFF, self.syn_seq + 1, 0))
        near = packet.seq16
        held = sorted(self._early.values(), key=lambda entry: unwrap(entry[1].seq16, near))
        self._early = {}
        return rtt_us, [early for _, early in held if early.connection_id == self.recv_id]

    def withdraw_syns(self) -> None:
        """The attempt is given up: whatever the peer made of our SYNs is told to go."""
        for used in self._used_ids:
            self.pending_resets.append(((used + 1) & 0xFFFF, self.syn_seq + 1, 0))
        self._used_ids.clear()

    def schedule_handshake_ack(self, rto_us: int, *, now: int) -> None:
        """The proof leaves now. Arm its next repetition; rto_us: how long until a first one may be missed."""
        self.handshake_ack_at = (
            now + (rto_us << self._handshake_acks) if self._handshake_acks < HANDSHAKE_ACKS else NEVER
        )
        self._handshake_acks += 1

    def reset_if_abandoned(self, packet: Packet) -> bool:
        """Whether the packet is of a connection that one of our other SYNs made: it gets a RESET, a few times.
        docs/protocol.md §4.
        """
        sent = self._resets_sent.get(packet.connection_id)
        if sent is None:
            return False
        if packet.type != PacketType.RESET and sent <= _RESETS_PER_ID:
            self._resets_sent[packet.connection_id] = sent + 1
            self.pending_resets.append((packet.connection_id, packet.ack16 + 1, packet.seq16))
        return True

    def is_second_syn_ack(self, packet: Packet, next_seq: int) -> bool:
        """Whether this STATE is another answer to our repeated SYN, which replaces the first: libtorrent then made
        a second connection and forgot the first (docs/protocol.md §2). A number near the first one is no new draw, only
        the first answerer's STATE after DATA that is still on its way. The caller knows that no DATA has come.
        """
        return (
            self._syn_count > 1
            and packet.ack16 == self.syn_seq & 0xFFFF
            and abs(unwrap(packet.seq16, next_seq) - next_seq) > _NEW_NUMBER_DISTANCE
        )

    def loses_simultaneous_open_to(self, packet: Packet) -> bool:
        """Two SYNs have crossed, and the connection is to be the peer's: it drew the higher number. Both sides see
        the same two numbers, whatever is lost; the ids would not do, since a SYN may be repeated under another one.
        """
        return packet.seq16 > self.syn_seq & 0xFFFF

    # ── acceptor ──

    def on_syn(self, packet: Packet, *, now: int) -> None:
        """The SYN that made this connection: its answer is due now."""
        self.peer_syn_seq16 = packet.seq16
        self.due_at = min(now + HALF_OPEN_US, self.give_up_at)
        self._answered_at = now
        self._answers = 1
        self.answered_ids.append((packet.connection_id + 1) & 0xFFFF)

    def note_repeated_syn(self, packet: Packet, *, now: int) -> bool:
        """Whether the same SYN came again, perhaps under a fresh id, and long enough after its last answer."""
        if packet.seq16 != self.peer_syn_seq16 or now - self._answered_at < SYN_ACK_INTERVAL_US:
            return False
        recv_id = (packet.connection_id + 1) & 0xFFFF
        if recv_id not in self.answered_ids:
            if len(self.answered_ids) >= _MAX_ANSWERED_IDS:
                return False
            self.answered_ids.append(recv_id)
        self._answered_at = now
        self._answers += 1
        self.due_at = min(now + HALF_OPEN_US, self.give_up_at)
        return True

    def withdraw_id(self, id: int) -> int | None:
        """The initiator took the answer to another of its SYNs, or none: the recv_id that is left of those answered."""
        self.answered_ids = [recv_id for recv_id in self.answered_ids if id not in (recv_id, (recv_id - 1) & 0xFFFF)]
        return self.answered_ids[-1] if self.answered_ids else None

    def on_peer_verified(self, packet: Packet, *, now: int) -> int:
        """The initiator knows our number, so it is where it says. Returns the round trip, 0 where not known."""
        self.due_at = NEVER
        elapsed_us = now - self._answered_at
        # A STATE is what initiators of our kind send at once; DATA may have waited for its application, and what comes
        # after a second may be a repetition.
        is_first = self._answers == 1 and packet.type == PacketType.STATE and elapsed_us < SYN_RTO_US
        return elapsed_us if is_first else 0

"""Idle connections: a sign of life for the sake of NATs, and the question whether the peer still lives.

Two clocks, because they ask for different packets. Facts: libutp's own sign of life is a STATE whose ack is one too
low; it means nothing and nobody answers it. What every implementation answers is DATA whose number it has acked
before: the ack of the first copy may have been lost. libutp, libtorrent, ourselves: seen. One byte of it, because
librqbit drops DATA that is empty; the byte is never read, since its place in the stream was filled long ago. It is
TCP's keepalive with its "garbage octet" (RFC 1122 §4.2.3.6).

Sources: libutp; PROTOCOL.md §7; RFC 1122 §4.2.3.6; tcp(7) TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_USER_TIMEOUT.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from utpsocket.protocol.receivehalf import NEVER

DOUBT_US: Final = 500_000  # a RESET that proves nothing is believed if the peer says nothing for so long
SIGN_OF_LIFE_US: Final = 29_000_000  # libutp's, below the 30 s after which the first NATs forget: PROTOCOL.md §7


@dataclass(frozen=True, slots=True)
class Probing:
    """When a silent peer is asked, and when it is given up. Times µs."""

    idle_us: int
    # Of silence before the first question: TCP_KEEPIDLE.
    interval_us: int
    # Between questions: TCP_KEEPINTVL.
    count: int
    # Questions without an answer that end the connection: TCP_KEEPCNT.
    patience_us: int = 0
    # If not 0, it is silence of this length instead, after one question: TCP_USER_TIMEOUT.


class Keepalive:
    """Times µs.

    next_at        when on_time() wants to be called, NEVER while turned off
    is_due         whether the next STATE is to be a sign of life
    is_probe_due   whether a question must leave
    is_peer_dead   nothing came back
    """

    __slots__ = (
        "_ask_again_at",
        "_asked_at",
        "_doubted_at",
        "_interval_us",
        "_probe_at",
        "_probing",
        "_sign_at",
        "_unanswered",
        "is_due",
        "is_peer_dead",
        "is_probe_due",
    )

    def __init__(self) -> None:
        self._interval_us = 0
        self._sign_at = NEVER
        self._probing: Probing | None = None
        self._probe_at = NEVER
        self._asked_at = 0
        self._unanswered = 0
        self._doubted_at = -NEVER
        self._ask_again_at = NEVER
        self.is_due = False
        self.is_probe_due = False
        self.is_peer_dead = False

    @property
    def next_at(self) -> int:
        return min(self._sign_at, self._probe_at, self._ask_again_at)

    def every(self, interval_us: int, probing: Probing | None, *, now: int) -> None:
        """A sign of life whenever nothing was heard or said for this long, 0 for none; and questions, or none."""
        self._interval_us = interval_us
        self._sign_at = now + interval_us if interval_us else NEVER
        self._probing = probing
        self._probe_at = now if probing else NEVER  # then it is seen how long the peer has been silent
        self._unanswered = 0
        self.is_probe_due = False

    def on_data_sent(self, *, now: int) -> None:
        """Something else was said."""
        if self._interval_us:
            self._sign_at = now + self._interval_us

    def on_time(self, heard_at: int, *, is_idle: bool, now: int) -> bool:
        """It may be time; returns whether a STATE must leave now.

        is_idle   nothing is under way or waits to be: otherwise retransmission finds out about the peer
        """
        if now >= self._ask_again_at:
            self._ask_again_at = NEVER
            self.is_probe_due = self.is_probe_due or heard_at < self._doubted_at
        if now >= self._probe_at:
            self._ask(heard_at, is_idle=is_idle, now=now)
        if now < self._sign_at:
            return False
        quiet_until = heard_at + self._interval_us
        self.is_due = now >= quiet_until
        self._sign_at = now + self._interval_us if self.is_due else quiet_until
        return self.is_due

    def is_gone(self, heard_at: int, rtt_us: int, *, now: int) -> bool:
        """A RESET came with an id that is right and an ack that is not: ethereum/utp's ack nothing, but so do those of
        whoever guesses the 16 bits of an id. As RFC 5961 §3.2 does, the peer is asked. If it lives it answers, and
        whoever sent that RESET has said nothing; if it does not, it answers the question by another RESET, and that
        one, when there has been time enough for an answer, is believed.
        """
        wait_us = DOUBT_US + 2 * rtt_us
        if heard_at < self._doubted_at:
            return now - self._doubted_at >= wait_us
        if now - self._doubted_at >= wait_us:
            self._doubted_at = now
            self._ask_again_at = now + wait_us
            self.is_probe_due = True
        return False

    def _ask(self, heard_at: int, *, is_idle: bool, now: int) -> None:
        probing = self._probing
        assert probing is not None
        if heard_at >= self._asked_at:
            self._unanswered = 0
        if not is_idle:
            self._unanswered = 0
            self._probe_at = now + probing.idle_us
        elif not self._unanswered and now < heard_at + probing.idle_us:
            self._probe_at = heard_at + probing.idle_us
        elif self._unanswered and (
            now - heard_at >= probing.patience_us if probing.patience_us else self._unanswered >= probing.count
        ):
            self.is_peer_dead = True
            self._probe_at = NEVER
        else:
            self._unanswered += 1
            self._asked_at = now
            self._probe_at = now + probing.interval_us
            self.is_probe_due = True

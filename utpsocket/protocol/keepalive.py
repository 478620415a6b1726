"""Idle connections: a sign of life for the sake of NATs, and the question whether the peer still lives.

Two clocks, because they ask for different packets. A NAT may keep a mapping open only for what comes from inside (RFC
4787 REQ-6), so a sign of life is due whenever we said nothing for a while, whatever we heard.

Facts: libutp's own sign of life is a STATE whose ack is one too low; it means nothing and nobody answers it. What every
implementation answers is DATA whose number it has acked before: the ack of the first copy may have been lost. libutp,
libtorrent, ourselves: seen. One byte of it, because librqbit drops DATA that is empty; the byte is never read, since
its place in the stream was filled long ago. It is TCP's keepalive with its "garbage octet" (RFC 1122 §4.2.3.6).

Sources: libutp; docs/protocol.md §7; RFC 1122 §4.2.3.6; RFC 4787 §4.3; tcp(7) TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT,
TCP_USER_TIMEOUT.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from utpsocket.protocol.receivehalf import NEVER

DOUBT_US: Final = 500_000  # a RESET that proves nothing is believed if the peer says nothing for so long
SIGN_OF_LIFE_SECONDS: Final = 29  # libutp's, below the 30 s after which the first NATs forget: docs/protocol.md §7
_SILENT_SIGNS: Final = 2  # a peer of libutp's family that says no word for so long may have gone
_UNANSWERED_PROBES: Final = 9  # TCP_KEEPCNT


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

    @property
    def ends_us(self) -> int:
        """Of silence that end the connection."""
        return max(self.idle_us, self.patience_us) if self.patience_us else self.idle_us + self.count * self.interval_us


def by_default(interval_us: int) -> Probing:
    """How a peer is asked that nobody wants asked in particular, while signs of life leave every so often: its own
    would have come meanwhile. A path that is down for a few minutes is outlived.
    """
    return Probing(_SILENT_SIGNS * interval_us, interval_us, _UNANSWERED_PROBES)


class Keepalive:
    """Times µs.

    next_at        when on_time() wants to be called, NEVER while turned off
    is_due         whether the next STATE is to be a sign of life
    is_probe_due   whether a question must leave
    is_peer_dead   nothing came back
    said_at        when something was last sent; whoever sends writes it
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
        "next_at",
        "said_at",
    )

    def __init__(self) -> None:
        self.next_at = NEVER
        self.said_at = 0
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

    def every(self, interval_us: int, probing: Probing | None, *, now: int) -> None:
        """A sign of life whenever nothing was said for this long, 0 for none; and questions, or none."""
        if interval_us == self._interval_us and (probing is self._probing or probing == self._probing):
            return  # nor does it begin anew
        self._interval_us = interval_us
        self._probing = probing
        self._sign_at = self._probe_at = NEVER
        if interval_us:
            self._sign_at = max(now, (self.said_at or now) + interval_us)
        if probing is not None:  # of what has been said before, it is seen then how long the peer has been silent
            self._probe_at = now if self.said_at else now + probing.idle_us
        self._unanswered = 0
        self.is_probe_due = False
        self._set_next()

    def _set_next(self) -> None:
        self.next_at = min(self._sign_at, self._probe_at, self._ask_again_at)

    def on_time(self, heard_at: int, *, is_idle: bool, now: int) -> bool:
        """It may be time; returns whether a STATE must leave now.

        is_idle   nothing is under way or waits to be: otherwise retransmission finds out about the peer
        """
        if now >= self._ask_again_at:
            self._ask_again_at = NEVER
            self.is_probe_due = self.is_probe_due or heard_at < self._doubted_at
        if now >= self._probe_at:
            self._ask(heard_at, is_idle=is_idle, now=now)
        is_due = False
        if now >= self._sign_at:
            self.is_due = is_due = now >= self.said_at + self._interval_us
            self._sign_at = (now if is_due else self.said_at) + self._interval_us
        self._set_next()
        return is_due

    def take_due(self, *, now: int) -> bool:
        """A STATE leaves: whether it is the sign of life that was due, and nothing else has been said since."""
        self.is_due = False
        return now >= self.said_at + self._interval_us

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
            self._set_next()
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

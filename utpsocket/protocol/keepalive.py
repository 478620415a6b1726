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

from utpsocket.protocol.times import NEVER

DOUBTFUL_RESET_US: Final = 500_000  # a RESET that proves nothing is believed if the peer says nothing for so long
NAT_KEEPALIVE_SECONDS: Final = 29  # libutp's, below the 30 s after which the first NATs forget: docs/protocol.md §7
_SILENT_INTERVALS: Final = 2  # a peer of libutp's family that says no word for so long may have gone
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
    user_timeout_us: int = 0
    # If not 0, it is silence of this length instead, after one question: TCP_USER_TIMEOUT.

    @property
    def ends_us(self) -> int:
        """Of silence that end the connection."""
        return (
            max(self.idle_us, self.user_timeout_us)
            if self.user_timeout_us
            else self.idle_us + self.count * self.interval_us
        )


def default_probing(interval_us: int) -> Probing:
    """How a peer is asked that nobody wants asked in particular, while signs of life leave every so often: its own
    would have come meanwhile. A path that is down for a few minutes is outlived.
    """
    return Probing(_SILENT_INTERVALS * interval_us, interval_us, _UNANSWERED_PROBES)


class Keepalive:
    """Times µs.

    next_at        when on_time() wants to be called, NEVER while turned off
    is_keepalive_due   whether the next STATE is to be a sign of life
    is_probe_due   whether a question must leave
    is_peer_dead   nothing came back
    sent_at        when something was last sent; whoever sends writes it
    """

    __slots__ = (
        "_doubtful_reset_at",
        "_interval_us",
        "_keepalive_at",
        "_probe_at",
        "_probed_at",
        "_probing",
        "_reprobe_at",
        "_unanswered_probes",
        "is_keepalive_due",
        "is_peer_dead",
        "is_probe_due",
        "next_at",
        "sent_at",
    )

    def __init__(self) -> None:
        self.next_at = NEVER
        self.sent_at = 0
        self._interval_us = 0
        self._keepalive_at = NEVER
        self._probing: Probing | None = None
        self._probe_at = NEVER
        self._probed_at = 0
        self._unanswered_probes = 0
        self._doubtful_reset_at = -NEVER
        self._reprobe_at = NEVER
        self.is_keepalive_due = False
        self.is_probe_due = False
        self.is_peer_dead = False

    def configure(self, interval_us: int, probing: Probing | None, *, now: int) -> None:
        """A sign of life whenever nothing was said for this long, 0 for none; and questions, or none."""
        if interval_us == self._interval_us and (probing is self._probing or probing == self._probing):
            return  # nor does it begin anew
        self._interval_us = interval_us
        self._probing = probing
        self._keepalive_at = self._probe_at = NEVER
        if interval_us:
            self._keepalive_at = max(now, (self.sent_at or now) + interval_us)
        if probing is not None:  # of what has been said before, it is seen then how long the peer has been silent
            self._probe_at = now if self.sent_at else now + probing.idle_us
        self._unanswered_probes = 0
        self.is_probe_due = False
        self._set_next()

    def _set_next(self) -> None:
        self.next_at = min(self._keepalive_at, self._probe_at, self._reprobe_at)

    def on_time(self, received_at: int, *, is_idle: bool, now: int) -> bool:
        """It may be time; returns whether a STATE must leave now.

        is_idle   nothing is under way or waits to be: otherwise retransmission finds out about the peer
        """
        if now >= self._reprobe_at:
            self._reprobe_at = NEVER
            self.is_probe_due = self.is_probe_due or received_at < self._doubtful_reset_at
        if now >= self._probe_at:
            self._probe(received_at, is_idle=is_idle, now=now)
        is_due = False
        if now >= self._keepalive_at:
            self.is_keepalive_due = is_due = now >= self.sent_at + self._interval_us
            self._keepalive_at = (now if is_due else self.sent_at) + self._interval_us
        self._set_next()
        return is_due

    def take_keepalive_due(self, *, now: int) -> bool:
        """A STATE leaves: whether it is the sign of life that was due, and nothing else has been said since."""
        self.is_keepalive_due = False
        return now >= self.sent_at + self._interval_us

    def check_doubtful_reset(self, received_at: int, rtt_us: int, *, now: int) -> bool:
        """A RESET came with an id that is right and an ack that is not: ethereum/utp's ack nothing, but so do those of
        whoever guesses the 16 bits of an id. As RFC 5961 §3.2 does, the peer is asked. If it lives it answers, and
        whoever sent that RESET has said nothing; if it does not, it answers the question by another RESET, and that
        one, when there has been time enough for an answer, is believed.
        """
        wait_us = DOUBTFUL_RESET_US + 2 * rtt_us
        if received_at < self._doubtful_reset_at:
            return now - self._doubtful_reset_at >= wait_us
        if now - self._doubtful_reset_at >= wait_us:
            self._doubtful_reset_at = now
            self._reprobe_at = now + wait_us
            self._set_next()
            self.is_probe_due = True
        return False

    def _probe(self, received_at: int, *, is_idle: bool, now: int) -> None:
        probing = self._probing
        assert probing is not None
        if received_at >= self._probed_at:
            self._unanswered_probes = 0
        if not is_idle:
            self._unanswered_probes = 0
            self._probe_at = now + probing.idle_us
        elif not self._unanswered_probes and now < received_at + probing.idle_us:
            self._probe_at = received_at + probing.idle_us
        elif self._unanswered_probes and (
            now - received_at >= probing.user_timeout_us
            if probing.user_timeout_us
            else self._unanswered_probes >= probing.count
        ):
            self.is_peer_dead = True
            self._probe_at = NEVER
        else:
            self._unanswered_probes += 1
            self._probed_at = now
            self._probe_at = now + probing.interval_us
            self.is_probe_due = True

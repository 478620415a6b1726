"""Idle connections: keepalives for the sake of NATs, and probes that show whether the peer still exists.

They are two timers, because they send different packets. A NAT may keep a mapping open only for what comes from inside
(RFC 4787 REQ-6), so a keepalive is due whenever we have sent nothing for a while, whatever we have received.

Facts. libutp's keepalive is a STATE whose ack is one too low; it means nothing and is not answered. What every
implementation answers is a DATA whose number it has acked before, because the ack of the first copy may have been lost
(seen with libutp, libtorrent and ourselves). It has one byte, because librqbit drops an empty DATA; the byte is never
read, since its place in the stream was filled before. It is TCP's keepalive with its "garbage octet" (RFC 1122
§4.2.3.6).

Sources: libutp; docs/protocol.md §7; RFC 1122 §4.2.3.6; RFC 4787 §4.3; tcp(7) TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT,
TCP_USER_TIMEOUT.
"""

from __future__ import annotations

from typing import Final

from utpsocket.protocol.times import NEVER

# How long, beside two round trips, a probe after a RESET with a wrong ack waits for an answer. By feel.
DOUBTFUL_RESET_US: Final = 500_000
NAT_KEEPALIVE_SECONDS: Final = 29  # libutp's, below the 30 s after which the first NATs forget: docs/protocol.md §7
# After so many keepalive intervals of silence a peer is probed by default: libutp's own keepalive would have come. By
# feel.
_SILENT_INTERVALS: Final = 2
_UNANSWERED_PROBES: Final = 9  # Linux's default of TCP_KEEPCNT


class Probing:
    """When a silent peer is probed, and when it is given up. Times µs.

    idle_us           how long the peer must be silent before the first probe: TCP_KEEPIDLE
    interval_us       the time between probes: TCP_KEEPINTVL
    count             so many probes without an answer end the connection: TCP_KEEPCNT
    user_timeout_us   if not 0, so much silence ends it instead, after one probe at least: TCP_USER_TIMEOUT
    """

    __slots__ = ("count", "idle_us", "interval_us", "user_timeout_us")

    def __init__(self, idle_us: int, interval_us: int, count: int, user_timeout_us: int = 0) -> None:
        self.idle_us = idle_us
        self.interval_us = interval_us
        self.count = count
        self.user_timeout_us = user_timeout_us

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Probing) and self._times == other._times

    def __hash__(self) -> int:
        return hash(self._times)

    @property
    def _times(self) -> tuple[int, int, int, int]:
        return self.idle_us, self.interval_us, self.count, self.user_timeout_us

    @property
    def max_silence_us(self) -> int:
        """How much silence ends the connection."""
        return (
            max(self.idle_us, self.user_timeout_us)
            if self.user_timeout_us
            else self.idle_us + self.count * self.interval_us
        )


def default_probing(interval_us: int) -> Probing:
    """How a peer is probed if the application has not set SO_KEEPALIVE, for this interval between keepalives. The
    connection survives a path that is down for a few minutes: with an interval of 29 s the first probe leaves after
    58 s of silence, and 261 s later the connection ends.
    """
    return Probing(_SILENT_INTERVALS * interval_us, interval_us, _UNANSWERED_PROBES)


class Keepalive:
    """The timers of an idle connection. Times µs; a time `_at` is NEVER while there is none.

    next_at            when to call on_time()
    sent_at            when a packet was last sent; written by Connection
    is_keepalive_due   the next STATE is to be a keepalive
    is_probe_due       a probe must leave
    is_peer_dead       probes were not answered

    _interval_us         between keepalives, 0 for none
    _keepalive_at        when the next one may be due
    _probing             when to probe, None for never
    _probe_at            when the next probe may be due
    _probed_at           when the last one was
    _unanswered_probes   probes since the peer last sent anything
    _doubtful_reset_at   when a RESET with a wrong ack last made us probe
    _reprobe_at          when that probe is repeated
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
        """Send a keepalive after interval_us without sending, 0 for none; and probes, or none. Same values as before
        change nothing, and do not begin anew.
        """
        if interval_us == self._interval_us and (probing is self._probing or probing == self._probing):
            return
        self._interval_us = interval_us
        self._probing = probing
        self._keepalive_at = self._probe_at = NEVER
        if interval_us:
            self._keepalive_at = max(now, (self.sent_at or now) + interval_us)
        if probing is not None:
            # On a connection that has sent before it is found out at once how long the peer has been silent.
            self._probe_at = now if self.sent_at else now + probing.idle_us
        self._unanswered_probes = 0
        self.is_probe_due = False
        self._set_next()

    def _set_next(self) -> None:
        self.next_at = min(self._keepalive_at, self._probe_at, self._reprobe_at)

    def on_time(self, received_at: int, *, is_idle: bool, now: int) -> bool:
        """Do what is due at next_at; is_probe_due and is_peer_dead may be set afterwards. Returns whether a STATE must
        leave now, as a keepalive.

        received_at   when the peer's last packet came
        is_idle       nothing is in flight or waits to be sent: otherwise retransmission shows whether the peer exists
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
        """A STATE leaves. Returns whether it is the keepalive that was due, that is, nothing was sent in the
        meantime.
        """
        self.is_keepalive_due = False
        return now >= self.sent_at + self._interval_us

    def check_doubtful_reset(self, received_at: int, rtt_us: int, *, now: int) -> bool:
        """A RESET came with a right id and a wrong ack. It may be ethereum/utp's, which acks nothing, or be sent by an
        attacker that has guessed the 16 bits of an id. As in RFC 5961 §3.2 the peer is probed. If the connection is
        there, the peer acks, and the RESET is ignored; if not, the peer answers by another RESET. That one ends the
        connection if it comes when there has been enough time for an ack. Returns whether this RESET ends the
        connection.
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
        """At _probe_at: probe the peer, give it up, or wait until it has been silent for long enough."""
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

"""LEDBAT++: LEDBAT that gives way faster, is fair to other flows of its kind, and gives way where queues are short.

What it changes in LEDBAT (ledbat.py, slow_start.py), as the draft has it:

* The target is 60 ms. Above it the window shrinks in proportion to itself, by up to half per round trip, and not by a
  fixed number of bytes: a TCP that comes gets the path within some round trips, and flows of this kind converge.
* Slowdowns. A flow that begins behind the standing queue of another one takes that queue for a part of the path. It
  adds its own target to it, and the first one, which sees both, starves (the latecomer's advantage). So each flow at
  times lets its packets drain out of the queue: it goes down to two packets for a round trip, in which all flows can
  measure the path without its queue, then doubles the window up to what it was. That happens first two round trips
  after slow start, then after nine times as long as the last slowdown took.

What is added to the draft:

* A slowdown that is not needed is left out: where queues have drained by themselves, the base delay is known. One that
  has found the queue empty, and the base delay as it was, makes the time to the next one four times as long, up to 60
  s: the flow is alone, or the largest, and its base delay is right. A flow that is alone so loses 1 % of the path, not
  6 %. Every one goes down to two packets: to half of what the path holds (as BBRv2) costs less than 0.5 %, but a flow
  that comes later does not see the queue drain (Jain of two flows on a real link, two runs each: 0.81 and 0.85, and
  0.95 and 0.98 so).
* The gain is libutp's, as in ledbat.py, where the queue is short: the draft's, one packet per round trip at most, a
  sixteenth at least, takes a minute to fill a path that a TCP has left. From three quarters of the target on it falls
  with what is left, to 500 bytes: about the draft's of a third of a packet for a round trip of 50 ms. With 3,000 bytes
  there a window of a few packets swings about the target (an uplink of 1 Mbit/s: 120 ms of ping beside us, and 109 so),
  and BBR, which makes no queue of its own, loses a little of its share in each round trip.
* Where the queue was empty at some time of each of the last two round trips, the window does not fill the path, and
  grows by a quarter per round trip, as slow start does once it has seen a queue (RFC 9406), with the acks that have
  seen none. By 3,000 bytes per round trip, a path that a TCP has left takes 3 s, and one whose way back is full, with
  round trips of half a second, a minute: the queue of the way back makes the window too small, and is none of ours. Not
  after a loss without a long queue, as long as the target is less for it (the next item): where buffers are short,
  an empty queue says little.
* Where the buffer is shorter than the target, the delay never reaches it, and losses alone would decide, as between
  TCPs. So after a loss the target is half of the longest queueing delay since the loss before, if that is less. It
  doubles for each 10 s without a loss. TCP-LP and TCP Nice do the same with other fractions (0.15 and 0.2 of the
  longest delay that they have seen).

Example: 20 Mbit/s, a round trip of 50 ms, a buffer of 31 ms. The first loss is at 31 ms, so the target becomes 15 ms. A
CUBIC that shares the buffer keeps it between 7 and 31 ms: above 15 ms for most of the time, in which we shrink.

Sources: draft-irtf-iccrg-ledbat-plus-plus ("Multiplicative decrease", "Initial and periodic slowdown"); RFC 6817;
Kuzmanovic and Knightly, "TCP-LP: A Distributed Algorithm for Low Priority Data Transfer" (2003); Venkataramani, Kokku
and Dahlin, "TCP Nice: A Mechanism for Background Transfers" (2002).
"""

from __future__ import annotations

from typing import ClassVar, Final

from utpsocket.protocol.congestion.controller import MIN_PACKETS
from utpsocket.protocol.congestion.queueing_delay import NO_SAMPLE
from utpsocket.protocol.congestion.slow_start import CSS_GROWTH_DIVISOR, MIN_QUEUE_US, SlowStartController
from utpsocket.protocol.times import NEVER

TARGET_DELAY_US: Final = 60_000  # the draft's
GAIN_BYTES: Final = 3_000  # growth per round trip: libutp MAX_CWND_INCREASE_BYTES_PER_RTT
# Growth at the target. By simulation: with 300 and with 1,000 bytes two flows share less equally.
MIN_GAIN_BYTES: Final = 500
# The gain is that much of GAIN_BYTES times what the delay is below the target, in targets: less from 3/4 of it on.
_GAIN_SLOPE: Final = 4
_GAP_ROUNDS: Final = 2  # one may be the end of another flow's slowdown. By simulation
FIRST_SLOWDOWN_RTTS: Final = 2  # after slow start: the draft's
SLOWDOWN_FACTOR: Final = 9  # the time to the next slowdown, in lengths of the last: the draft's
_NOT_SCHEDULED: Final = 0
# On short paths each would be over in some ms, and nothing is gained by having them more often than routes and flows
# change. By feel.
MIN_SLOWDOWN_INTERVAL_US: Final = 2_000_000
# How much longer each time is than the one before, and up to which. By simulation: with twice and 30 s a lone flow
# loses 2 % of the path, with these 1 %, and flows that come later have no less.
MAX_SLOWDOWN_INTERVAL_US: Final = 60_000_000
_GROWTH: Final = 4
# A window that is so small leaves no queue of its own.
_NO_SLOWDOWN_PACKETS: Final = 4
# Of the longest queueing delay. CUBIC keeps a window of 0.7 to 1 of path and buffer, so a queue of more than half of
# the buffer for most of the time, if the buffer is shorter than the path.
_BUFFER_DIVISOR: Final = 2
TARGET_DOUBLES_US: Final = 10_000_000  # by feel: some times longer than CUBIC takes from one loss to the next
_NO_DELAY: Final = 1 << 40  # more than any delay


class LedbatPlusPlus(SlowStartController):
    """See Controller for its methods. Times µs.

    _limit_us             the target, or less where the buffer is short
    _limit_doubles_at     when it is doubled
    _longest_us           the longest queueing delay since the last loss
    _shortest_us          the shortest since the last slowdown, or in the present one
    _slowdown_at          when the next slowdown is due; _NOT_SCHEDULED before slow start has ended
    _slowdown_interval_us   the time between the last two
    _slowdown_began_at    when the present one began; -1: there is none
    _held_until           until then it keeps the window at two packets
    _resume_bytes         the window that it goes back to
    _base_before_us       the base delay when it began
    _round_low_us         the shortest queueing delay of this round trip
    _round_ends_at        when it is over
    _gap_rounds           of the last round trips, in each of which the queue was empty at some time
    _gain_remainder       rest of the last division of the gain
    """

    __slots__ = (
        "_base_before_us",
        "_gain_remainder",
        "_gap_rounds",
        "_held_until",
        "_limit_doubles_at",
        "_limit_us",
        "_longest_us",
        "_resume_bytes",
        "_round_ends_at",
        "_round_low_us",
        "_shortest_us",
        "_slowdown_at",
        "_slowdown_began_at",
        "_slowdown_interval_us",
    )

    NAME: ClassVar[str] = "ledbat++"

    def __init__(self, segment_bytes: int, target_delay_us: int = 0) -> None:
        super().__init__(segment_bytes, target_delay_us or TARGET_DELAY_US)
        self._css_exit_us = self.target_delay_us // 2
        self._round_low_us = NO_SAMPLE
        self._round_ends_at = 0
        self._gap_rounds = 0
        self._limit_us = self.target_delay_us
        self._limit_doubles_at = NEVER
        self._longest_us = 0
        self._shortest_us = _NO_DELAY
        self._slowdown_at = _NOT_SCHEDULED
        self._slowdown_interval_us = MIN_SLOWDOWN_INTERVAL_US
        self._slowdown_began_at = -1
        self._held_until = 0
        self._resume_bytes = 0
        self._base_before_us = 0
        self._gain_remainder = 0

    def on_ack(  # noqa: C901  # its parts would be calls
        self, acked_bytes: int, *, in_flight_bytes: int, is_limited: bool, rtt_us: int, sent_us: int, now: int
    ) -> None:
        """See Controller.on_ack. The draft's "Multiplicative decrease"."""
        if self.is_slow_start and sent_us < self._conservative_since:
            return  # older packets were sent with the larger window
        queueing_us = self._sample1_us  # as queueing_delay_us
        if self._longest_us < queueing_us < NO_SAMPLE:
            self._longest_us = queueing_us
        if self._sample2_us < queueing_us:
            queueing_us = self._sample2_us
        if self._sample3_us < queueing_us:
            queueing_us = self._sample3_us
        if queueing_us == NO_SAMPLE:
            queueing_us = 0
        if rtt_us and queueing_us > rtt_us:
            queueing_us = rtt_us  # the queueing delay is a part of the round trip
        if self._slowdown_began_at >= 0:
            if sent_us >= self._slowdown_began_at:  # what left before has waited in the queue of before
                self._slow_down(acked_bytes, queueing_us, now=now)
            return
        if self.is_slow_start:
            if is_limited or queueing_us >= MIN_QUEUE_US:
                self._slow_start(acked_bytes, queueing_us, is_limited=is_limited, rtt_us=rtt_us, now=now)
            return
        if queueing_us < self._shortest_us:
            self._shortest_us = queueing_us
        if now >= self._slowdown_at:
            if self._begin_slowdown(rtt_us, now=now):
                return
        elif now >= self._limit_doubles_at:
            self._double_limit(now=now)
        if now >= self._round_ends_at:
            self._end_round(rtt_us, now=now)
        if queueing_us < self._round_low_us:
            self._round_low_us = queueing_us
        window, limit_us = self.window_bytes, self._limit_us
        change_bytes = 0
        if is_limited:
            gain_bytes = _GAIN_SLOPE * GAIN_BYTES * (limit_us - queueing_us) // limit_us
            if gain_bytes > GAIN_BYTES:
                gain_bytes = GAIN_BYTES
            elif gain_bytes < MIN_GAIN_BYTES:
                gain_bytes = MIN_GAIN_BYTES
            # This ack's part of the gain of a round trip. The remainder of the division is kept: otherwise many small
            # acks would round the gain away, or up for one flow and down for another.
            change_bytes, self._gain_remainder = divmod(
                gain_bytes * acked_bytes + self._gain_remainder, max(window, acked_bytes)
            )
            if self._gap_rounds >= _GAP_ROUNDS and queueing_us < MIN_QUEUE_US and limit_us == self.target_delay_us:
                change_bytes += acked_bytes // CSS_GROWTH_DIVISOR
            if change_bytes > acked_bytes:
                change_bytes = acked_bytes
        if queueing_us > limit_us:
            # Of a round trip: window × (delay / target − 1), at most half of the window. This ack's part is the same of
            # what it acks.
            shrinkage_bytes = acked_bytes * (queueing_us - limit_us) // limit_us
            change_bytes -= min(shrinkage_bytes, acked_bytes // 2)
        window += change_bytes
        least_bytes = MIN_PACKETS * self.segment_bytes  # _min_window_bytes(), without a call
        self.window_bytes = window if window > least_bytes else least_bytes

    def _slow_start(self, acked_bytes: int, queueing_us: int, *, is_limited: bool, rtt_us: int, now: int) -> None:
        """See SlowStartController. A window that has doubled is sent in bunches, and each makes a queue for a moment.
        If the queue was empty in between, the window does not exceed the path, and is kept.
        """
        if now >= self._round_ends_at:
            self._end_round(rtt_us, now=now)
        if queueing_us < self._round_low_us:
            self._round_low_us = queueing_us
        window, was_conservative = self.window_bytes, self._is_conservative
        super()._slow_start(acked_bytes, queueing_us, is_limited=is_limited, rtt_us=rtt_us, now=now)
        if was_conservative and not self.is_slow_start and self._gap_rounds:
            self.window_bytes = window

    def _end_round(self, rtt_us: int, *, now: int) -> None:
        """A round trip is over: count those whose shortest queue was none."""
        self._gap_rounds = self._gap_rounds + 1 if self._round_low_us < MIN_QUEUE_US else 0
        self._round_low_us = NO_SAMPLE
        self._round_ends_at = now + rtt_us

    # ── slowdowns ──

    def _begin_slowdown(self, rtt_us: int, *, now: int) -> bool:
        """A slowdown is due, or slow start has ended. Returns whether one has begun: it is left out where nothing would
        drain.
        """
        if self._slowdown_at == _NOT_SCHEDULED:
            self._slowdown_at = now + FIRST_SLOWDOWN_RTTS * rtt_us
            return False
        if self._shortest_us < MIN_QUEUE_US or self.window_bytes <= _NO_SLOWDOWN_PACKETS * self.segment_bytes:
            self._slowdown_at = now + self._slowdown_interval_us
            self._shortest_us = _NO_DELAY
            return False
        self._slowdown_began_at = now
        self._held_until = now + rtt_us
        self._resume_bytes = self.window_bytes
        self._base_before_us = self._base.value_us
        self._shortest_us = _NO_DELAY
        self.window_bytes = self._min_window_bytes()
        return True

    def _slow_down(self, acked_bytes: int, queueing_us: int, *, now: int) -> None:
        """An ack in a slowdown: two packets for a round trip, then doubling up to the window of before, or to a queue
        as long as the target, which others have made meanwhile.
        """
        if queueing_us < self._shortest_us:
            self._shortest_us = queueing_us
        if now < self._held_until:
            return
        self.is_slow_start = True
        self.window_bytes += acked_bytes
        if self.window_bytes < self._resume_bytes and queueing_us < self._limit_us:
            return
        self.window_bytes = min(self.window_bytes, self._resume_bytes)
        self.is_slow_start = False
        least_us = max(SLOWDOWN_FACTOR * (now - self._slowdown_began_at), MIN_SLOWDOWN_INTERVAL_US)
        fallen_us = self._base_before_us - self._base.value_us
        if self._shortest_us < MIN_QUEUE_US and -MIN_QUEUE_US < fallen_us < MIN_QUEUE_US:
            interval_us = min(_GROWTH * self._slowdown_interval_us, MAX_SLOWDOWN_INTERVAL_US)
        else:
            interval_us = 0  # the base delay was wrong, or may be
        self._end_slowdown(max(least_us, interval_us), now=now)

    def _end_slowdown(self, interval_us: int, *, now: int) -> None:
        self._slowdown_began_at = -1
        self._slowdown_interval_us = interval_us
        self._slowdown_at = now + interval_us
        self._shortest_us = _NO_DELAY

    # ── losses ──

    def _double_limit(self, *, now: int) -> None:
        """Nothing was lost for TARGET_DOUBLES_US: perhaps the buffer is longer than it was."""
        self._limit_us = min(2 * self._limit_us, self.target_delay_us)
        self._limit_doubles_at = NEVER if self._limit_us == self.target_delay_us else now + TARGET_DOUBLES_US

    def _limit_to_buffer(self, *, now: int) -> None:
        """Something was lost: if the queue was shorter than twice the target, so is the buffer."""
        longest_us = self._longest_us
        if longest_us < self._sample1_us < NO_SAMPLE:
            longest_us = self._sample1_us
        self._longest_us = 0
        self._limit_us = min(max(longest_us // _BUFFER_DIVISOR, MIN_QUEUE_US), self.target_delay_us)
        self._limit_doubles_at = NEVER if self._limit_us == self.target_delay_us else now + TARGET_DOUBLES_US

    def on_loss(self, *, now: int) -> None:
        """See Controller.on_loss. RFC 6817 §2.4.2, which the draft keeps. What is lost while the window is held left
        before that: the window to go back to is halved.
        """
        self._limit_to_buffer(now=now)
        if self._slowdown_began_at >= 0:
            if now < self._held_until:
                self._resume_bytes = max(self._resume_bytes // 2, self._min_window_bytes())
                self._before_reduction = None
                return
            self._end_slowdown(self._slowdown_interval_us, now=now)
        super().on_loss(now=now)

    def on_timeout(self, *, now: int) -> None:
        """See Controller.on_timeout. In a slowdown it counts from the window of before."""
        if self._slowdown_began_at >= 0:
            self.window_bytes = max(self.window_bytes, self._resume_bytes)
            self._end_slowdown(self._slowdown_interval_us, now=now)
        super().on_timeout(now=now)

    def on_spurious_loss(self, *, now: int) -> None:
        """See Controller.on_spurious_loss."""
        if self._slowdown_began_at >= 0 and self._before_reduction is not None:
            self._end_slowdown(self._slowdown_interval_us, now=now)
        super().on_spurious_loss(now=now)

    def _on_longer_route(self) -> None:
        """See SlowStartController. A slowdown follows the end of that slow start, as of the first."""
        self._slowdown_began_at = -1
        self._slowdown_at = _NOT_SCHEDULED
        self._slowdown_interval_us = MIN_SLOWDOWN_INTERVAL_US
        super()._on_longer_route()

"""A sign of life when nothing else is said: a STATE whose ack is one too low, so that it means nothing else.

Separate because it is a clock of its own. Source: libutp; PROTOCOL.md §7.
"""

from __future__ import annotations

from utpsocket.protocol.receivehalf import NEVER


class Keepalive:
    """Times µs.

    next_at   when on_time() wants to be called, NEVER while turned off
    is_due    whether the next STATE is to be a sign of life
    """

    __slots__ = ("_interval_us", "is_due", "next_at")

    def __init__(self) -> None:
        self._interval_us = 0
        self.next_at = NEVER
        self.is_due = False

    def every(self, interval_us: int, *, now: int) -> None:
        """Whenever nothing was heard or said for this long; 0 turns it off."""
        self._interval_us = interval_us
        self.next_at = now + interval_us if interval_us else NEVER

    def on_data_sent(self, *, now: int) -> None:
        """Something else was said."""
        if self._interval_us:
            self.next_at = now + self._interval_us

    def on_time(self, heard_at: int, *, now: int) -> bool:
        """It may be time; returns whether a STATE must leave now."""
        if now < self.next_at:
            return False
        quiet_until = heard_at + self._interval_us
        self.is_due = now >= quiet_until
        self.next_at = now + self._interval_us if self.is_due else quiet_until
        return self.is_due

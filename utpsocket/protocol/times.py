"""Times: what all modules of this package agree on.

A time is a number of whole microseconds of one monotonic clock, which the caller reads and passes in as `now`. A
deadline is such a time, or NEVER. On the wire times have 32 bits and wrap after 71.6 minutes (BEP 29
"timestamp_microseconds"): their differences are taken modulo TIMESTAMP_MASK + 1, and one from HALF_TIMESTAMP on is
negative.
"""

from __future__ import annotations

from typing import Final

# Later than any time there will be: 73,000 years. Still an integer, so that min() and < need no case for it; and one
# below 2⁶², which the compiled build compares without making an object.
NEVER: Final = 1 << 61
TIMESTAMP_MASK: Final = 0xFFFFFFFF
HALF_TIMESTAMP: Final = 0x80000000
# How long the ack of a lone packet waits for data that can carry it, and so how much longer a tail-loss probe waits for
# an ack. By feel: far below RFC 9293 §3.8.6.3's 500 ms, and long enough for most programs to answer.
ACK_DELAY_US: Final = 10_000

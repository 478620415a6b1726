"""The timestamps of a packet: when the last one arrived, and the one-way delays in both directions.

Sources: BEP 29 "timestamp_microseconds", "timestamp_difference_microseconds"; docs/protocol.md §6. Times µs.
"""

from __future__ import annotations

from array import array
from typing import Final

from utpsocket.protocol.receivehalf import ReceiveHalf
from utpsocket.protocol.sendhalf import SendHalf
from utpsocket.protocol.times import TIMESTAMP_MASK

# A timestamp difference that means "none", as 0 does. docs/protocol.md §6
UNKNOWN_DIFFERENCE_US: Final = 0x7FFFFFFF


def on_timestamps(send: SendHalf, receive: ReceiveHalf, timestamp_us: int, difference_us: int, *, now: int) -> int:
    """Take in the timestamps of an acceptable packet. Returns the delay that the peer measured, 0 for none."""
    receive.received_at = now
    if timestamp_us:
        receive.difference_us = delay_us = (now - timestamp_us) & TIMESTAMP_MASK
        send.controller.on_peer_delay(delay_us)
    receive.peer_difference_us = peer_difference_us = 0 if difference_us == UNKNOWN_DIFFERENCE_US else difference_us
    return peer_difference_us


def on_run_timestamps(send: SendHalf, receive: ReceiveHalf, timestamps: array[int], *, now: int) -> None:
    """Take in the timestamps of the other packets of a run, after on_timestamps() and on_ack() of the first. None of
    them is 0.
    """
    receive.difference_us = delay_us = (now - timestamps[-1]) & TIMESTAMP_MASK
    send.controller.on_peer_delay(delay_us)

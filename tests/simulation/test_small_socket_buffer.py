"""A receiver like libutp with the system's socket buffer: it drops what overflows, acks once for all it finds, and
its selective acks reach 30 packets.

Where the loss of a burst is not distinguished from its delay, or a hole wider than the acks reach is waited for, each
costs a timeout: 16 MiB took 6.8 s over loopback, and up to 69 % left twice.
"""

from __future__ import annotations

import pytest

from tests.links import Arrival, Delay, ShortSacks, SocketBuffer
from tests.simulator import WRAP_SEQ, Application, Pair, Simulator

TOTAL = 8_000_000
BUFFER_DATAGRAMS = 92  # 208 KiB at 2,304 bytes of kernel memory each


@pytest.mark.parametrize("first_seq", [1, WRAP_SEQ])
@pytest.mark.parametrize("every_us", [200, 1_000, 5_000])
def test_little_is_resent_and_no_timeout_waited_for(every_us: int, first_seq: int) -> None:
    simulator = Simulator(7)
    there = SocketBuffer(simulator, Arrival(), BUFFER_DATAGRAMS, every_us=every_us)
    pair = Pair(
        simulator,
        Delay(simulator, 30, then=there),
        ShortSacks(Delay(simulator, 30)),
        a=Application(TOTAL, writes=1, expects=2),
        b=Application(0, writes=2, expects=1),
        first_seq=first_seq,
    )
    pair.finish()
    stats = pair.a.connection.stats()
    assert stats.timeouts == 0
    assert stats.retransmitted_packets <= 0.05 * TOTAL / 1_452
    least_us = TOTAL / (BUFFER_DATAGRAMS * 1_452) * (every_us + 60)
    assert simulator.elapsed_us < 2.5 * least_us, "most of what the buffer takes"

"""What the connections of one port promise to their peers."""

from __future__ import annotations

from tests.requirements import replaces
from utpsocket.engine.channels.receive_buffer import ReceiveBuffer
from utpsocket.engine.ports.receive_shares import BACKLOG_BYTES, BACKLOG_US, MIN_ADVERTISED_BYTES, ReceiveShares
from utpsocket.protocol.config import GRANT_BYTES
from utpsocket.protocol.receivehalf import ReceiveHalf

STOCK_BYTES = 212_992  # what Linux gives unasked
MERGED_BYTES = 44 * 1_472


class FakeBridge:
    """What receive_shares.py looks at of a bridge, with the receiving half of a connection."""

    def __init__(self, cookie: int = 1) -> None:
        self.cookie = cookie
        self.connection = self
        self.receive = ReceiveHalf(0)
        self.receive_buffer = ReceiveBuffer()

    @property
    def share_bytes(self) -> int:
        return self.receive.share_bytes


@replaces("Bridge")
def test_a_connection_with_merged_data_may_fill_the_buffer() -> None:
    shares, bridge = ReceiveShares(STOCK_BYTES), FakeBridge()
    for _ in range(8):
        assert bridge.share_bytes <= STOCK_BYTES // 2
        shares.on_data(bridge, MERGED_BYTES, now=1)  # type: ignore[arg-type]
    assert STOCK_BYTES // 2 < bridge.share_bytes < STOCK_BYTES


@replaces("Bridge")
def test_a_connection_with_unmerged_data_leaves_room_for_the_kernels_bookkeeping() -> None:
    shares, bridge = ReceiveShares(STOCK_BYTES), FakeBridge()
    for _ in range(8):
        shares.on_data(bridge, MERGED_BYTES, now=1)  # type: ignore[arg-type]
    shares.on_data(bridge, 1_472, now=1)  # type: ignore[arg-type]
    assert bridge.share_bytes == STOCK_BYTES // 2


@replaces("Bridge")
def test_over_a_long_path_a_share_is_what_may_come_in_25_ms() -> None:
    shares, bridge = ReceiveShares(STOCK_BYTES), FakeBridge()
    for path_us, part in ((0, 1), (25_000, 1), (50_000, 2), (1_000_000, 40)):
        bridge.receive_buffer.path_us = path_us
        shares.on_data(bridge, 1_472, now=1)  # type: ignore[arg-type]
        assert bridge.share_bytes == part * STOCK_BYTES // 2


@replaces("Bridge")
def test_those_that_move_data_share() -> None:
    buffer_bytes = 8 << 20
    shares, bridges = ReceiveShares(buffer_bytes), [FakeBridge(cookie) for cookie in range(4)]
    for _ in range(20):
        for bridge in bridges:
            shares.on_data(bridge, MERGED_BYTES, now=1)  # type: ignore[arg-type]
    assert [bridge.share_bytes for bridge in bridges] == [buffer_bytes // 8] * 4


@replaces("Bridge")
def test_one_that_has_moved_nothing_for_two_epochs_has_no_part() -> None:
    buffer_bytes = 8 << 20
    shares, bridges = ReceiveShares(buffer_bytes), [FakeBridge(cookie) for cookie in range(4)]
    for bridge in bridges:
        shares.on_data(bridge, 1_472, now=1)  # type: ignore[arg-type]
    shares.on_data(bridges[0], 1_472, now=60_000)  # type: ignore[arg-type]
    assert bridges[0].share_bytes == buffer_bytes // 8, "the others were active in the epoch before"
    shares.on_data(bridges[0], 1_472, now=120_000)  # type: ignore[arg-type]
    assert bridges[0].share_bytes == buffer_bytes // 2


def test_no_share_is_smaller_than_a_grant() -> None:
    shares = ReceiveShares(STOCK_BYTES)
    assert shares.initial_share_bytes(1_000) == 64 << 10
    assert ReceiveShares(8 << 20).initial_share_bytes(1_000) == GRANT_BYTES


class Crowd:
    """Four connections with bulk at one port."""

    buffer_bytes = 8 << 20

    def __init__(self) -> None:
        self.shares = ReceiveShares(self.buffer_bytes)
        self.bridges = [FakeBridge(cookie) for cookie in range(4)]
        self.advertised_bytes(now=0)

    def advertised_bytes(self, *, now: int) -> int:
        """Data comes for each of them: what they advertise in all then."""
        for bridge in self.bridges:
            self.shares.on_data(bridge, MERGED_BYTES, now=now)  # type: ignore[arg-type]
        return sum(bridge.share_bytes for bridge in self.bridges)


@replaces("Bridge")
def test_while_the_engine_limits_the_rate_less_is_advertised_until_the_queue_is_short() -> None:
    crowd = Crowd()
    before = crowd.advertised_bytes(now=0)
    assert before == crowd.buffer_bytes // 2
    advertised = []
    for now in range(BACKLOG_US, 20 * BACKLOG_US, 500):
        queued_bytes = crowd.advertised_bytes(now=now)  # all of it waits here
        if queued_bytes > 3 * MIN_ADVERTISED_BYTES // 2:
            crowd.shares.on_backlog(queued_bytes, now=now)
        advertised.append(queued_bytes)
    assert advertised == sorted(advertised, reverse=True)
    assert MIN_ADVERTISED_BYTES <= advertised[-1] <= 3 * MIN_ADVERTISED_BYTES // 2
    later = [crowd.advertised_bytes(now=now) for now in range(20 * BACKLOG_US, 2_000_000, 10_000)]
    assert later == sorted(later)
    assert later[-1] == before


@replaces("Bridge")
def test_no_backlog_makes_the_windows_too_small() -> None:
    crowd = Crowd()
    for now in range(BACKLOG_US, 100 * BACKLOG_US, 500):
        crowd.advertised_bytes(now=now)
        crowd.shares.on_backlog(crowd.buffer_bytes, now=now)
    assert crowd.advertised_bytes(now=now) == MIN_ADVERTISED_BYTES
    small = ReceiveShares(STOCK_BYTES)
    for now in range(BACKLOG_US, 100 * BACKLOG_US, 500):
        small.on_backlog(BACKLOG_BYTES, now=now)
        small.on_data(crowd.bridges[0], MERGED_BYTES, now=now)  # type: ignore[arg-type]
    assert crowd.bridges[0].share_bytes == STOCK_BYTES // 2


@replaces("Bridge")
def test_a_queue_that_is_emptied_now_and_then_is_no_backlog() -> None:
    """Bursts come that are longer than what is received in an iteration."""
    crowd = Crowd()
    for now in range(1_000, 1_000_000, 1_000):
        crowd.shares.on_backlog(2 * BACKLOG_BYTES, now=now)
        crowd.shares.on_drained(now=now + 500)
        assert crowd.advertised_bytes(now=now + 500) == crowd.buffer_bytes // 2


@replaces("Bridge")
def test_what_comes_while_the_engine_pauses_is_no_backlog() -> None:
    """It pauses every 20 ms, and works off in 3 ms what has come."""
    crowd = Crowd()
    for pause in range(20_000, 1_000_000, 20_000):
        for now in range(pause, pause + 3_000, 500):
            crowd.shares.on_backlog(2 * BACKLOG_BYTES, now=now)
            assert crowd.advertised_bytes(now=now) == crowd.buffer_bytes // 2

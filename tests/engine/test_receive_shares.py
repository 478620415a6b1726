"""What the connections of one port promise to their peers."""

from __future__ import annotations

from tests.requirements import replaces
from utpsocket.engine.ports.receive_shares import ReceiveShares
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

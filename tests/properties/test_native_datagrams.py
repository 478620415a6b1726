"""receive_datagrams() of _native.c does what Inbound does, recvmmsg(2) by ctypes. See test_native.py."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import test_native
from tests.properties.test_native import UDP_SEGMENT, WRONG, datagram_sockets, no_fd, several
from utpsocket.engine.kernel.mmsg import NATIVE_RECORD_BYTES, ROOM_BYTES
from utpsocket.engine.kernel.native_calls import NativeDatagrams
from utpsocket.engine.kernel.syscalls import KeepingDatagrams
from utpsocket.protocol.runs import MAX_RUN_PACKETS

pytestmark = test_native.pytestmark
native = test_native.native
kinds = test_native.kinds

# Of the sender (0, 1), the size, and what UDP_SEGMENT cuts it into (0: not at all).
arrivals = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 0, 1]), st.sampled_from([0, 1, 20, 63, 64, 64, 65, 300]), st.sampled_from([0, 70])
    ),
    max_size=12,
)


@several
@given(
    arriving=arrivals,
    stride=st.sampled_from([1, 24, 64, 1_472]),
    most=st.sampled_from([1, 2, 5, 64, MAX_RUN_PACKETS]),
    ancillary_bytes=st.sampled_from([0, 8, 24, 30, 64, 1_000]),
    is_merging=st.booleans(),
    is_connected=st.booleans(),
)
def test_many_datagrams_are_received_alike(
    kinds: None,
    arriving: list[tuple[int, int, int]],
    stride: int,
    most: int,
    ancillary_bytes: int,
    is_merging: bool,
    is_connected: bool,
) -> None:
    with (
        datagram_sockets(is_merging=is_merging) as (left, right),
        socket.socket(type=socket.SOCK_DGRAM) as other,
    ):
        addr, came_from = right.getsockname(), left.getsockname()
        if is_connected:
            right.connect(came_from)
        results = []
        for kind in (NativeDatagrams, KeepingDatagrams):
            receiver = kind(right, ancillary_bytes, came_from if is_connected else None)
            for index, (sender, size, segment) in enumerate(arriving):
                cut = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", segment))] if 0 < segment < size else []
                (other if sender else left).sendmsg([bytes([index]) * size], cut, 0, addr)
            found: list[object] = []
            while True:
                room = memoryview(bytearray(stride * most))
                groups = receiver.receive_many(room, stride, most)
                found += [groups, bytes(room)]
                if isinstance(groups, int):
                    break
                for first, count, size, last, ancillary, told in groups:
                    found.append((list(ancillary), told))
                    for index in range(first, first + count):
                        whole = last if index == first + count - 1 else size
                        if whole > stride:
                            found.append(bytes(receiver.overflow(index, whole - stride)))
            results.append(found)
        assert results[0] == results[1]
        assert results[0][-2] == -errno.EAGAIN


def test_a_group_of_datagrams_ends_where_they_differ(kinds: None) -> None:
    with datagram_sockets() as (left, right):
        receiver = NativeDatagrams(right, 0, None)
        for size in (30, 30, 20, 20, 0, 0, 40, 40):
            left.sendto(bytes(size), right.getsockname())
        groups = receiver.receive_many(memoryview(bytearray(64 * 9)), 64, 9)
        assert isinstance(groups, list)
        assert [group[:4] for group in groups] == [
            (0, 3, 30, 20), (3, 1, 20, 20), (4, 1, 0, 0), (5, 1, 0, 0), (6, 2, 40, 40)
        ]  # fmt: skip
        assert {group[5] for group in groups} == {left.getsockname()}
        right.close()
        assert receiver.receive_many(memoryview(bytearray(64 * 9)), 64, 9) == -errno.EBADF


def test_what_lies_beyond_its_memory_is_refused(native: Any) -> None:
    fd = no_fd()
    records, overflow = bytearray(2 * NATIVE_RECORD_BYTES), bytearray(2 * ROOM_BYTES)
    room = memoryview(bytearray(20))
    assert native.receive_datagrams(fd, room, 10, 2, True, 64, records, overflow) == -errno.EBADF
    for arguments in (
        (room, 11, 2, True, 64, records, overflow),
        (room, 10, 3, True, 64, records, overflow),
        (room, 10, 0, True, 64, records, overflow),
        (room, 0, 2, True, 64, records, overflow),
        (room, 1, 3, True, 64, records, overflow),
        (room, 2**62, 2**62, True, 64, records, overflow),
        (room, 10, 2, True, -1, records, overflow),
        (room, 10, 2, True, 64, records[1:], overflow),
        (room, 10, 2, True, 64, memoryview(bytearray(2 * NATIVE_RECORD_BYTES + 1))[1:], overflow),
        (room, 10, 2, True, 64, records, overflow[1:]),
        (room, 10, 2, True, 64, bytes(records), overflow),
        (room, 10, 2, True, 64, records, bytes(overflow)),
        (memoryview(bytes(20)), 10, 2, True, 64, records, overflow),
    ):
        with pytest.raises(WRONG):
            native.receive_datagrams(fd, *arguments)
    many = MAX_RUN_PACKETS + 1
    with pytest.raises(WRONG):
        native.receive_datagrams(
            fd, memoryview(bytearray(many)), 1, many, True, 0, bytearray(many * NATIVE_RECORD_BYTES), overflow * many
        )

"""An endpoint with a listener under programs of datagrams and time: nothing raised, everything bounded."""

from __future__ import annotations

import socket
import sys
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.requirements import replaces
from utpsocket.engine.kernel.syscalls import Ancillary
from utpsocket.engine.kernel.udp import IcmpError, Port
from utpsocket.engine.ports.endpoint import Endpoint
from utpsocket.engine.ports.listener import MAX_HALF_OPEN, Listener
from utpsocket.engine.ports.receive_shares import MAX_WINDOW_BYTES
from utpsocket.engine.ports.stateless_resets import PER_SECOND
from utpsocket.engine.turns import Turns
from utpsocket.engine.user_fds.socket_state import Identity
from utpsocket.protocol import Address, PacketType, Run, State, Workspace
from utpsocket.protocol.congestion import DEFAULT_CONTROLLER
from utpsocket.protocol.packet import Packet, decode, encode

UDP_SEGMENT = 103  # linux/udp.h


class NoSocket:
    """What a port asks its socket for as it is made."""

    family = socket.AF_INET

    def fileno(self) -> int:
        return -1

    def setsockopt(self, *_: object) -> None: ...

    def getsockopt(self, *_: object) -> int:
        return 1 << 20


class SilentCalls:
    """The system calls of a port without a kernel: what would have been sent is kept, the datagrams of each call."""

    can_send_many = False

    def __init__(self) -> None:
        self.sent: list[list[bytes]] = []

    def send(self, data: bytes | bytearray, start: int, stop: int, ancillary: Ancillary, addr: Address | None) -> int:
        assert start < stop and addr is not None
        size = stop - start
        for _, kind, value in ancillary:
            assert kind == UDP_SEGMENT, "no source address is said"
            size = int.from_bytes(value, sys.byteorder)
        self.sent.append([bytes(data[at : min(at + size, stop)]) for at in range(start, stop, size)])
        return 0


def silent_port() -> tuple[Port, SilentCalls]:
    port = Port(cast("Any", NoSocket()), offload=False, bound=(("127.0.0.1", 7_000), 1))
    port._prepare()
    calls = SilentCalls()
    port._calls = cast("Any", calls)
    port._has_gso = True
    return port, calls


class SilentLoop:
    """A loop without a thread."""

    max_datagram_bytes = 0
    max_segments = 64
    congestion = DEFAULT_CONTROLLER
    target_delay_us = 0
    max_window_bytes = MAX_WINDOW_BYTES

    def __init__(self) -> None:
        self.workspace = Workspace()
        self.now = 1_000_000
        self.channels: dict[int, Any] = {}
        self.initiated = self.accepted = 0
        self.touched: dict[Any, None] = {}
        self.owner: Any = None
        self.turns: Turns[Any, Any] = Turns(cast("Any", self))

    def mark_dirty(self, bridge: Any) -> None:
        self.touched[bridge] = None

    def wake_listener(self, listener: Listener) -> None:
        assert not listener.is_closed

    def call_at(self, at: int, call: Any) -> None:
        assert at > self.now

    def close_endpoint(self, endpoint: Endpoint) -> None:
        raise AssertionError("a listening endpoint is in use")


addresses = st.sampled_from([("192.0.2.1", 1), ("192.0.2.1", 2), ("192.0.2.2", 1)])
near = st.integers(0, 3) | st.integers(0, 0xFFFF)
packets = st.builds(
    lambda type, id, seq, ack, window, difference, sack, payload: (
        encode(type, id, timestamp_us=1, difference_us=difference, window_bytes=window, seq=seq, ack=ack, sack=sack)
        + payload
    ),
    st.sampled_from(list(PacketType)),
    near,
    near,
    near,
    st.sampled_from([0, 1, 1 << 20, 0xFFFFFFFF]),
    st.sampled_from([0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]),
    st.sampled_from([b"", b"\1\0\0\0", b"\xff" * 252]),
    st.binary(max_size=40),
)
datagrams = packets | st.binary(max_size=60)
arrivals = st.tuples(st.just("run"), addresses, st.lists(datagrams, min_size=1, max_size=4))
icmp = st.tuples(st.just("icmp"), addresses, packets, st.sampled_from([90, 111, 113]), st.integers(0, 70_000))
pauses = st.tuples(st.just("pause"), st.sampled_from([0, 1_000, 100_000, 2_000_000, 60_000_000]))


@settings(max_examples=300)
@given(st.lists(arrivals | icmp | pauses, max_size=40))
def test_any_program_is_survived(program: list[tuple[Any, ...]]) -> None:
    loop, (port, calls) = SilentLoop(), silent_port()
    endpoint = Endpoint(loop, 1, port, is_private=False)  # type: ignore[arg-type]
    endpoint.listener = Listener(endpoint, Identity(socket.AF_INET), b"", 4)
    for step in program:
        if step[0] == "pause":
            loop.now += step[1]
        elif step[0] == "icmp":
            port.errors += (IcmpError(step[3], step[1], step[2], step[4], step[4]),)
            endpoint.handle_errors(now=loop.now)
        else:
            data = memoryview(b"".join(step[2]))
            if data:
                stride = max(1, len(step[2][0]))
                endpoint.handle_run(Run(data, stride, step[1]), now=loop.now)
        for bridge in set(endpoint.bridges.values()):
            at = bridge.connection.timeout_at()
            if at is not None and at <= loop.now:
                bridge.connection.handle_timeout(now=loop.now)
            bridge.connection.finish_delivery(0, now=loop.now)
            endpoint.transmit(bridge, now=loop.now)
            bridge.connection._check()
        assert len(endpoint.bridges) <= 3 * MAX_HALF_OPEN
        assert len(endpoint.bridges) <= loop.accepted
    seconds = (loop.now - 1_000_000) // 1_000_000 + 1
    assert endpoint.resets.sent <= PER_SECOND * seconds
    for datagrams in calls.sent:
        assert sum(map(len, datagrams)) <= 65_507


@replaces("decode()")
def test_a_datagram_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever way it takes: to the listener, to a connection that it finds only when it is decoded, or to none."""
    decoded: list[bytes] = []

    def counted(datagram: memoryview) -> Packet | None:
        decoded.append(bytes(datagram))
        return decode(datagram)

    monkeypatch.setattr("utpsocket.engine.ports.endpoint.decode", counted)
    monkeypatch.setattr("utpsocket.protocol.connection.decode", counted)
    loop, (port, _) = SilentLoop(), silent_port()
    endpoint = Endpoint(loop, 1, port, is_private=False)  # type: ignore[arg-type]
    endpoint.listener = Listener(endpoint, Identity(socket.AF_INET), b"", 4)

    def arrive(*datagrams: bytes) -> None:
        decoded.clear()
        endpoint.handle_run(Run(memoryview(b"".join(datagrams)), len(datagrams[0]), ("192.0.2.1", 1)), now=loop.now)
        assert len(decoded) == len(set(decoded)), decoded

    def packet(type: PacketType, id: int, seq: int, ack: int, **rest: Any) -> bytes:
        return encode(type, id, timestamp_us=1, difference_us=1, window_bytes=1 << 20, seq=seq, ack=ack, **rest)

    arrive(packet(PacketType.SYN, 7, 100, 0))
    (bridge,) = endpoint.bridges.values()
    connection = bridge.connection
    endpoint.transmit(bridge, now=loop.now)
    our_seq = connection.send.flights.next_seq - 1
    arrive(packet(PacketType.STATE, 8, 101, our_seq))
    assert connection.state is State.CONNECTED
    arrive(packet(PacketType.SYN, 7, 100, 0), packet(PacketType.STATE, 8, 101, our_seq))  # two kinds: no clean run
    arrive(packet(PacketType.DATA, 8, 102, our_seq, sack=b"\1\0\0\0") + b"ahead")
    arrive(packet(PacketType.DATA, 9, 1, 1) + b"stray")
    assert connection.receive.received_packets == 1
    arrive(packet(PacketType.RESET, 7, 101, our_seq))  # under our send id: found by no look at the id alone
    assert connection.is_over
    assert connection.stats().dropped_packets == 1  # the second SYN

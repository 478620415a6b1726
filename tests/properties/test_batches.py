"""Batch invariance: how datagrams are cut into runs, and bursts into transmits, is invisible. docs/design.md §4.

One connection receives a script of datagrams as runs as long as they come, others the same in other pieces; after each
instant all must be in equal state and have said the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.properties.states import state_of
from tests.requirements import requires_pure
from utpsocket.protocol import Config, Connection, PacketType, Run, State, Workspace, paws
from utpsocket.protocol.build import IS_COMPILED
from utpsocket.protocol.congestion import DEFAULT_CONTROLLER
from utpsocket.protocol.outstanding import Outstanding
from utpsocket.protocol.packet import decode, encode
from utpsocket.protocol.sendhalf import SendHalf

OUR_SEQ = 65_530
PEER_SEQ = 65_520
RECV_ID = 100
ADDR = ("192.0.2.1", 9)
STAMPS = st.sampled_from([5, 6, 55, 300, 301, 9_000, 0, 0xFFFFFFFF, 0x90000000])


def connected(
    *,
    buffer_bytes: int = 200_000,
    rtt_us: int = 20_000,
    congestion: str = DEFAULT_CONTROLLER,
    answers_wanted: int | None = None,
) -> Connection:
    """An initiator whose SYN was just answered.

    answers_wanted   how many messages must be answered before the ack of one waits; None: as usual
    """
    config = Config(receive_buffer_bytes=buffer_bytes, send_buffer_bytes=1_000_000, congestion=congestion)
    connection = Connection(config, Workspace(), ADDR, recv_id=RECV_ID, first_seq=OUR_SEQ)
    connection.connect(now=1_000)
    assert connection.poll_transmit(now=1_000, max_segments=1) is not None
    answer = packet(PacketType.STATE, seq=PEER_SEQ, ack=OUR_SEQ)
    connection.handle_run(Run(memoryview(answer), len(answer), ADDR), now=1_000 + rtt_us)
    assert connection.state is State.CONNECTED
    connection.poll_event()
    if answers_wanted is not None:
        connection.receive._answers_wanted = answers_wanted
    return connection


def packet(
    kind: PacketType, *, seq: int, ack: int, payload: bytes = b"", window: int = 100_000, sack: bytes = b"", at: int = 5
) -> bytes:
    header = encode(
        kind, RECV_ID, timestamp_us=at, difference_us=7_000, window_bytes=window, seq=seq, ack=ack, sack=sack
    )
    return header + payload


@dataclass
class Instant:
    """What arrives at one time, and what the application does then."""

    after_us: int
    datagrams: list[bytes]
    written: int
    read: float


@st.composite
def instants(draw: st.DrawFn) -> list[Instant]:
    """A plausible peer: runs of DATA, some of it again, ahead of holes or with a FIN, acks of what may be there."""
    size = draw(st.sampled_from([12, 20, 44, 60, 62]))
    seq = PEER_SEQ
    result = []
    for _ in range(draw(st.integers(1, 6))):
        datagrams: list[bytes] = []
        ack = OUR_SEQ + draw(st.integers(-2, 6))
        stamp = draw(st.integers(0, 3)) * 50 + 5
        for _ in range(draw(st.integers(1, 4))):
            kind = draw(
                st.sampled_from(["run", "run", "stamped", "again", "ahead", "short", "fin", "state", "other", "junk"])
            )
            count = draw(st.integers(1, 9))
            if kind in ("run", "short", "stamped"):
                stamps = (
                    draw(st.lists(STAMPS, min_size=count, max_size=count)) if kind == "stamped" else [stamp] * count
                )
                for index in range(count):
                    short = size // 2 if kind == "short" and index == count - 1 else size
                    datagrams.append(
                        packet(PacketType.DATA, seq=seq, ack=ack, payload=bytes([seq & 255]) * short, at=stamps[index])
                    )
                    seq += 1
            elif kind == "again":
                first = max(PEER_SEQ, seq - count)
                datagrams += [
                    packet(PacketType.DATA, seq=again, ack=ack, payload=bytes([again & 255]) * size, at=stamp)
                    for again in range(first, seq)
                ]
            elif kind == "ahead":
                datagrams += [
                    packet(PacketType.DATA, seq=ahead, ack=ack, payload=bytes([ahead & 255]) * size, at=stamp)
                    for ahead in range(seq + 1, seq + 1 + count)
                ]
            elif kind == "fin":
                datagrams.append(packet(PacketType.FIN, seq=seq, ack=ack, at=stamp))
            elif kind == "state":
                sack = draw(st.sampled_from([b"", b"\x01\0\0\0", b"\x0d\0\0\0"]))
                datagrams.append(packet(PacketType.STATE, seq=seq, ack=ack, at=stamp, sack=sack))
            elif kind == "other":
                datagrams.append(packet(PacketType.DATA, seq=seq, ack=ack, payload=b"o" * size, at=stamp, window=50))
                seq += 1
            else:
                datagrams.append(bytes(size + 20))
        result.append(
            Instant(
                draw(st.sampled_from([0, 1_000, 20_000, 400_000])),
                datagrams,
                draw(st.sampled_from([0, 0, 10, 3_000, 40_000])),
                draw(st.sampled_from([0.0, 0.5, 1.0, 1.0])),
            )
        )
    return result


def runs(datagrams: list[bytes], longest: int, gap_bytes: int = 0) -> list[Run]:
    """As a receiver cuts them: equal sizes, the last of a run may be shorter. With GRO they lie back to back, without
    at even distances, so that something else lies between.
    """
    cut: list[Run] = []
    start = 0
    while start < len(datagrams):
        size = len(datagrams[start])
        end = start + 1
        while end < min(len(datagrams), start + longest) and len(datagrams[end]) == size:
            end += 1
        if end < min(len(datagrams), start + longest) and len(datagrams[end]) < size:
            end += 1
        data = bytearray((b"~" * gap_bytes).join(datagrams[start:end]))
        cut.append(Run(memoryview(data), size + gap_bytes, ADDR, None, size))
        start = end
    return cut


def handle_plainly(connection: Connection, run: Run, *, now: int) -> None:
    """Connection.handle_run() without a shortcut: the specification."""
    for datagram in run.datagrams():
        packet = decode(datagram)
        if packet is None:
            connection._dropped_packets += 1
        else:
            connection._handle_packet(packet, now=now)


def live(
    connection: Connection,
    script: list[Instant],
    longest: int,
    max_segments: int,
    gap_bytes: int = 0,
    *,
    is_plain: bool = False,
) -> list[object]:
    """Let a connection live through the script; returns all that it said and was."""
    said: list[object] = []
    now = 30_000
    written = 0
    for instant in script:
        now += instant.after_us
        deadline = connection.timeout_at()
        if deadline is not None and deadline <= now:
            connection.handle_timeout(now=now)
        for run in runs(instant.datagrams, longest, gap_bytes):
            for part in run.parts() if gap_bytes else [run]:
                again = Run(part.data, part.stride, part.addr, part.local, part.datagram_bytes)
                if is_plain:
                    handle_plainly(connection, again, now=now)
                else:
                    connection.handle_run(again, now=now)
                connection._check()
        while (event := connection.poll_event()) is not None:
            said.append(event)
        views = connection.poll_delivery()
        ready = sum(map(len, views))
        read = int(ready * instant.read)
        said.append(b"".join(map(bytes, views))[:read])
        connection.finish_delivery(read, now=now)
        left = instant.written
        while left and (span := connection.free_span()):
            piece = min(left, len(span))
            span[:piece] = bytes((written + index) & 255 for index in range(piece))
            connection.commit(piece)
            written += piece
            left -= piece
        is_last = False
        while (transmit := connection.poll_transmit(now=now, max_segments=max_segments)) is not None:
            assert not is_last
            is_last = transmit.is_last
            assert transmit.count <= max_segments
            said += [(datagram, transmit.may_fragment, transmit.is_mtu_probe) for datagram in transmit.datagrams()]
        connection._check()
        said.append(connection.timeout_at())
        said.append(state_of(connection))
    return said


@settings(max_examples=100)
@given(
    instants(),
    st.integers(1, 7),
    st.sampled_from([2_000, 200_000]),
    st.sampled_from([2, 4, 6, 8, 56]),
    st.sampled_from([10, 16, paws.MARK_PACKETS]),
    st.sampled_from([None, 0, 0, 1]),
)
def test_runs_may_be_cut_anywhere(
    script: list[Instant],
    longest: int,
    buffer_bytes: int,
    gap_bytes: int,
    mark_packets: int,
    answers_wanted: int | None,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if not IS_COMPILED:
            patch.setattr(paws, "MARK_PACKETS", mark_packets)  # no script has tens of thousands of packets
        cut_anywhere(script, longest, gap_bytes, buffer_bytes=buffer_bytes, answers_wanted=answers_wanted)


def cut_anywhere(script: list[Instant], longest: int, gap_bytes: int, **made_with: Any) -> None:
    whole = live(connected(**made_with), script, 64, 64)
    pieces = live(connected(**made_with), script, longest, 64)
    single = live(connected(**made_with), script, 1, 64)
    plain = live(connected(**made_with), script, 1, 64, is_plain=True)
    spaced = live(connected(**made_with), script, 64, 64, gap_bytes)
    if not IS_COMPILED:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SendHalf, "next_flight", SendHalf._next_flight)
            assert whole == live(connected(**made_with), script, 1, 64, is_plain=True)
    assert whole == pieces
    assert whole == spaced
    assert whole == single
    assert whole == plain


@settings(max_examples=100)
@given(instants(), st.integers(1, 9))
def test_transmits_may_be_cut_anywhere(script: list[Instant], max_segments: int) -> None:
    whole = live(connected(), script, 64, 64)
    pieces = live(connected(), script, 64, max_segments)
    assert whole == pieces


@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.sampled_from([1_000, 20_000, 60_000]), st.integers(0, 100)), max_size=12), st.integers(1, 9)
)
def test_a_bulk_sender_sends_the_same_in_any_pieces(steps: list[tuple[int, int]], max_segments: int) -> None:
    def run(most: int) -> list[object]:
        connection = connected()
        script = [Instant(0, [], 150_000, 1.0)]
        sent = 0
        for after_us, percent in steps:
            # The peer acks a part of what one can expect to be under way by then.
            sent += 40 * percent // 100
            script.append(
                Instant(
                    after_us, [packet(PacketType.STATE, seq=PEER_SEQ, ack=OUR_SEQ + sent, window=900_000)], 30_000, 1.0
                )
            )
        return live(connection, script, 64, most)

    assert run(64) == run(max_segments)


@st.composite
def conversations(draw: st.DrawFn) -> list[Instant]:
    """Messages there and back, one or a few at a time: what the shortcuts for a lone packet are for. Now and then
    something is special: an ack of less or of more, a closed window, a repetition, an empty timestamp, a FIN.
    """
    seq, acked, sent = PEER_SEQ, 0, 0
    result = []
    for _ in range(draw(st.integers(2, 12))):
        acked = draw(st.sampled_from([sent, sent, sent, sent, max(0, sent - 1), acked, sent + 1]))
        window = draw(st.sampled_from([100_000] * 6 + [1_000, 0]))
        stamp = draw(STAMPS)
        datagrams = []
        for kind in draw(
            st.lists(st.sampled_from(["data"] * 5 + ["state", "again", "fin", "full"]), min_size=0, max_size=2)
        ):
            size = 1_380 if kind == "full" else draw(st.integers(1, 40))
            payload = bytes([seq & 255]) * size
            if kind in ("data", "full"):
                datagrams.append(
                    packet(PacketType.DATA, seq=seq, ack=OUR_SEQ + acked, payload=payload, window=window, at=stamp)
                )
                seq += 1
            elif kind == "again":
                datagrams.append(
                    packet(PacketType.DATA, seq=seq - 1, ack=OUR_SEQ + acked, payload=payload, window=window, at=stamp)
                )
            else:
                which = PacketType.STATE if kind == "state" else PacketType.FIN
                datagrams.append(packet(which, seq=seq, ack=OUR_SEQ + acked, window=window, at=stamp))
        written = draw(st.sampled_from([0, 1, 1, 1, 100, 1_380, 3_000]))
        after_us = draw(st.sampled_from([50, 50, 2_000, 20_000, 400_000]))
        result.append(Instant(after_us, datagrams, written, draw(st.sampled_from([1.0, 1.0, 0.5]))))
        sent += -(-written // 1_380)
    return result


@requires_pure
@settings(max_examples=200)
@given(conversations(), st.booleans(), st.sampled_from([2, 16, paws.MARK_PACKETS]), st.sampled_from([50, 50, 20_000]))
def test_a_lone_packet_is_handled_and_sent_as_any_other(
    script: list[Instant], nodelay: bool, mark_packets: int, rtt_us: int
) -> None:
    def talk(*, is_plain: bool = False) -> list[object]:
        connection = connected(rtt_us=rtt_us)
        connection.send.nodelay = nodelay
        return live(connection, script, 1, 64, is_plain=is_plain)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paws, "MARK_PACKETS", mark_packets)
        short = talk()
        patch.setattr(SendHalf, "next_flight", SendHalf._next_flight)
        assert short == talk(is_plain=True)


@requires_pure
def test_a_conversation_takes_the_shortcuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the test above would compare the long way with itself."""
    longer: list[str] = []
    connection = connected(rtt_us=50)
    for owner, name in ((SendHalf, "_next_flight"), (Outstanding, "on_ack"), (Connection, "_handle_packet")):
        monkeypatch.setattr(owner, name, lambda *_, name=name, **__: longer.append(name))
    script = [
        Instant(50, [packet(PacketType.DATA, seq=PEER_SEQ + at, ack=OUR_SEQ + at, payload=b"!")], 1, 1.0)
        for at in range(20)
    ]
    script.append(Instant(50, [packet(PacketType.STATE, seq=PEER_SEQ + 20, ack=OUR_SEQ + 20)], 0, 1.0))
    said = live(connection, script, 1, 64)
    assert longer == []
    assert connection.send.is_all_acked and connection.send.sent_packets == 20
    assert connection.receive.received_packets == 20
    assert said

"""What a fuzzer's bytes mean: a program of packets, time steps and an application's calls, and what must stay true.

A program is read from a Tape, which never ends: past its last byte it gives zeros. So any bytes are a program and any
change of a byte is a small change of it, which is what coverage-guided fuzzers want.

Three kinds, chosen by the first byte: a stranger who knows everything talks to an initiator, or to an acceptor; and two
honest connections talk through a network that does what the tape says. Always: nothing is raised, invariants hold,
memory stays within what was advertised. Between honest ends: what is delivered is a prefix of what was sent.
"""

from __future__ import annotations

import errno

from utpsocket.protocol import Config, Connection, Run, State, Workspace
from utpsocket.protocol.keepalive import Probing
from utpsocket.protocol.packet import encode

PEER = ("192.0.2.1", 9)
RECEIVE_BYTES = 20_000
SEND_BYTES = 30_000
_OVERDRAFT_BYTES = 4_096
_STEPS = 400
_TIMES_US = (0, 1, 500, 1_000, 10_000, 30_000, 200_000, 1_000_000, 16_000_000, 70_000_000, 700_000_000)
_NEAR = (0, 0, 0, 1, 1, 2, 3, 5, 17, 40, 300, 2_016, 8_192, 8_193, 30_000, 32_768, 65_535, 65_534, 65_533, 65_500)
_KINDS = (0,) * 20 + (2,) * 24 + (1,) * 2 + (4, 3)  # DATA, STATE, FIN, SYN, RESET
_WINDOWS = (0, 1, 100, 1_452, 5_000, 1_000_000, 0xFFFFFFFF)
_STAMPS = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_SIZES = (0, 1, 1, 20, 100, 1_380, 1_380, 1_452, 9_000)
_ERRORS = (errno.ECONNREFUSED, errno.EMSGSIZE, errno.EHOSTUNREACH, 0)


class Tape:
    """Numbers from bytes."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._position = 0

    @property
    def is_at_end(self) -> bool:
        return self._position >= len(self._content)

    def byte(self) -> int:
        if self._position >= len(self._content):
            return 0
        self._position += 1
        return self._content[self._position - 1]

    def word(self) -> int:
        return self.byte() << 8 | self.byte()

    def of(self, choices: tuple[int, ...]) -> int:
        return choices[self.byte() % len(choices)]

    def raw(self, count: int) -> bytes:
        piece = self._content[self._position : self._position + count]
        self._position += count
        return piece


class Subject:
    """A connection under test, with what must be true of it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.workspace_bytes = 0

    def step(self, tape: Tape, *, now: int) -> list[bytes]:
        """Poll everything there is to poll; returns the datagrams that left."""
        connection = self.connection
        deadline = connection.timeout_at()
        if deadline is not None and deadline <= now:
            connection.handle_timeout(now=now)
        while connection.poll_event() is not None:
            pass
        left: list[bytes] = []
        for _ in range(3_000):
            transmit = connection.poll_transmit(now=now, max_segments=1 + tape.byte() % 64)
            if transmit is None:
                break
            left += transmit.datagrams()
        else:
            raise AssertionError("it never stops talking")
        self.check()
        return left

    def check(self) -> None:
        connection = self.connection
        connection._check()
        reassembly = connection.receive.reassembly
        held = reassembly.ready_bytes + reassembly.out_of_order_bytes
        assert held <= RECEIVE_BYTES + _OVERDRAFT_BYTES
        assert connection.receive.window_bytes <= RECEIVE_BYTES
        assert connection.send.buffer.end_offset - connection.send.buffer.acked_offset <= SEND_BYTES
        assert len(connection.send.flights.queue) <= connection.send.flights.packets
        assert connection.send.controller.window_bytes >= 0

    def read(self, most: int, *, now: int) -> bytes:
        views = self.connection.poll_delivery()
        content = b"".join(map(bytes, views))[:most]
        self.connection.finish_delivery(len(content), now=now)
        return content

    def write(self, content: bytes) -> int:
        span = self.connection.free_span()
        count = min(len(span), len(content))
        if count:
            span[:count] = content[:count]
            self.connection.commit(count)
        return count


def _config() -> Config:
    return Config(receive_buffer_bytes=RECEIVE_BYTES, send_buffer_bytes=SEND_BYTES)


def run_program(content: bytes) -> int:
    """Run it; returns how many packets arrived somewhere."""
    tape = Tape(content)
    kind = tape.byte() % 4
    return _honest(tape) if kind == 3 else _hostile(tape, kind)


def _hostile(tape: Tape, kind: int) -> int:
    connection = Connection(_config(), Workspace(), PEER, recv_id=100, first_seq=65_530, spare_ids=(200, 300))
    subject = Subject(connection)
    now = 1_000_000
    packets = 0
    if kind:
        connection.connect(now=now)
        subject.step(tape, now=now)
        if kind == 2:
            answer = _packet(2, 100, 0, 5, 1_000_000, 65_520, 65_530)
            connection.handle_run(Run(memoryview(answer), len(answer), PEER), now=now)
    for _ in range(_STEPS):
        if tape.is_at_end:
            break
        what = tape.byte() % 16
        if what < 7:
            datagram = _drawn_packet(tape, connection)
            connection.handle_run(Run(memoryview(bytearray(datagram)), len(datagram), PEER), now=now)
            packets += 1
        elif what == 7:
            junk = tape.raw(1 + tape.byte() % 60)
            if junk:
                connection.handle_run(Run(memoryview(bytearray(junk)), len(junk), PEER), now=now)
                packets += 1
        elif what == 8:
            packets += _drawn_run(tape, connection, now=now)
        elif what == 9:
            now += tape.of(_TIMES_US)
        elif what == 10:
            subject.write(bytes(tape.word() % 5_000))
        elif what == 11:
            subject.read(tape.word(), now=now)
        elif what == 12 and tape.byte() % 8 == 0:
            _call(tape, connection, now=now)
        elif what == 13:
            deadline = connection.timeout_at()
            if deadline is not None:
                now = max(now, deadline)
        else:
            subject.step(tape, now=now)
            continue
        subject.check()
    subject.step(tape, now=now)
    return packets


def _call(tape: Tape, connection: Connection, *, now: int) -> None:
    what = tape.byte() % 16
    if what < 3:
        connection.finish(now=now)
    elif what < 5:
        connection.discard(now=now)
    elif what == 5:
        connection.abort()
    elif what == 6:
        probing = (None, Probing(1_000_000, 500_000, 3), Probing(30_000_000, 1, 1, user_timeout_us=1))[tape.byte() % 3]
        connection.set_keepalive(tape.of((0, 1_000_000, 29_000_000)), probing, now=now)
    elif what == 7:
        connection.reset_after_flush(now=now)
    else:
        seq16 = (connection.send.flights.una_seq + tape.of(_NEAR)) & 0xFFFF
        connection.handle_icmp(
            tape.of(_ERRORS),
            quoted_seq16=seq16 if tape.byte() % 4 else None,
            mtu_bytes=tape.word(),
            datagram_bytes=tape.word(),
            now=now,
        )


def _packet(
    kind: int, connection_id: int, stamp: int, difference: int, window: int, seq: int, ack: int, sack: bytes = b""
) -> bytes:
    return encode(
        kind,
        connection_id,
        timestamp_us=stamp,
        difference_us=difference,
        window_bytes=window,
        seq=seq,
        ack=ack,
        sack=sack,
    )


def _drawn_header(tape: Tape, connection: Connection, kind: int, sack: bytes) -> tuple[bytes, int]:
    flights, reassembly = connection.send.flights, connection.receive.reassembly
    ids = (connection.recv_id, connection.recv_id, connection.recv_id, connection.send_id, 200, 99, tape.byte())
    seq = reassembly.next_seq + (tape.of(_NEAR) if tape.byte() % 2 else 0)
    base = (flights.una_seq - 1, flights.una_seq - 1, flights.next_seq - 1, flights.next_seq)[tape.byte() % 4]
    header = _packet(
        kind,
        ids[tape.byte() % len(ids)],
        tape.of(_STAMPS) + tape.byte(),
        tape.of(_STAMPS) + tape.byte(),
        tape.of(_WINDOWS),
        seq,
        base + (tape.of(_NEAR) if tape.byte() % 4 == 0 else 0),
        sack,
    )
    return header, seq


def _drawn_packet(tape: Tape, connection: Connection) -> bytes:
    kind = _KINDS[tape.byte() % len(_KINDS)]
    sack = tape.raw(tape.of((0, 0, 1, 2, 4, 8, 252))) if tape.byte() % 3 == 0 else b""
    header, _ = _drawn_header(tape, connection, kind, sack)
    return header + bytes(tape.of(_SIZES)) if kind < 2 else header


def _drawn_run(tape: Tape, connection: Connection, *, now: int) -> int:
    header, seq = _drawn_header(tape, connection, 0, b"")
    count, size = 1 + tape.byte() % 46, (4, 12, 100, 1_380, 0, 13)[tape.byte() % 6]
    run = b"".join(
        header[:16] + (seq + index & 0xFFFF).to_bytes(2, "big") + header[18:] + bytes(size) for index in range(count)
    )
    if tape.byte() % 3 == 0:
        run = run[: len(run) - tape.byte() % (size + 20)]
    connection.handle_run(Run(memoryview(bytearray(run)), size + 20, PEER), now=now)
    return count


def _honest(tape: Tape) -> int:
    """Two ends, and a network that may drop, double, delay and disturb, but not forge."""
    workspace = Workspace()
    ends = [
        Subject(Connection(_config(), workspace, PEER, recv_id=100, first_seq=65_530)),
        Subject(Connection(_config(), workspace, PEER, recv_id=101, first_seq=3)),
    ]
    now = 1_000_000
    ends[0].connection.connect(now=now)
    under_way: list[list[bytes]] = [[], []]
    written, read = [0, 0], [0, 0]
    packets = 0
    for _ in range(_STEPS):
        if tape.is_at_end:
            break
        what, side = tape.byte() % 16, tape.byte() % 2
        subject, here = ends[side], under_way[side]
        if what < 5 and here:
            # Up to 40 of what is on its way to this side arrive, from anywhere in the queue.
            at, count = tape.byte() % len(here), 1 + tape.byte() % 40
            arriving, here[at : at + count] = here[at : at + count], []
            packets += len(arriving)
            while arriving:
                size = len(arriving[0])
                same = next((index for index, other in enumerate(arriving) if len(other) != size), len(arriving))
                run = bytearray(b"".join(arriving[:same]))
                subject.connection.handle_run(Run(memoryview(run), size, PEER), now=now)
                del arriving[:same]
        elif what == 5 and here:
            del here[tape.byte() % len(here)]
        elif what == 6 and here:
            here.append(here[tape.byte() % len(here)])
        elif what == 7:
            now += tape.of(_TIMES_US[:9])
        elif what == 8:
            content = bytes((written[side] + index) % 251 for index in range(tape.word() % 4_000))
            written[side] += subject.write(content)
        elif what == 9:
            content = subject.read(tape.word(), now=now)
            assert content == bytes((read[side] + index) % 251 for index in range(len(content)))
            read[side] += len(content)
            assert read[side] <= written[1 - side]
        elif what == 10 and tape.byte() % 8 == 0:
            subject.connection.finish(now=now)
        elif what == 11:
            deadline = subject.connection.timeout_at()
            if deadline is not None:
                now = max(now, deadline)
        under_way[1 - side] += subject.step(tape, now=now)
        del under_way[1 - side][2_000:]
        if all(end.connection.state is State.CLOSED for end in ends):
            break
    return packets

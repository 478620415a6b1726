"""A connection and a peer that sends what a test writes: a packet trace that is run.

    wire.receive("DATA seq=1 ack=0 data=hello")      the connection receives this
    assert wire.send() == ["STATE seq=1 ack=1"]      and sends this

Numbers are relative: an initiator's SYN is 0 and its first DATA 1; a SYN-ACK says seq=1, the acceptor's first DATA.
So a trace reads the same wherever the sixteen bits begin, and every trace is run from the middle and across the wrap.

Words of a packet: the type, then any of
    seq= ack= wnd= len= (so many bytes) data= (these bytes) sack= (hex) id= (recv, send, or a number to add to recv_id)
    ts= diff= (raw µs) ext=2:0011 (an extension; may come before sack)
"""

from __future__ import annotations

import re
import struct

from utpsocket.protocol import NEVER, Config, Connection, EventKind, PacketType, Run, State, Transmit, Workspace
from utpsocket.protocol.handshake import ACKS_SYN_ACK
from utpsocket.protocol.packet import decode, unwrap

PEER = ("192.0.2.1", 9)
RECV_ID = 4_000
_DATA = re.compile(r"DATA seq=(?P<first>\d+)(\.\.(?P<last>\d+))? ack=(?P<ack>-?\d+) len=(?P<len>\d+)")
RTT_US = 20_000


class Wire:
    """`connection`, the clock `now` (µs, from 0), and both ends' first numbers."""

    def __init__(
        self, base: int, *, config: Config | None = None, spare_ids: tuple[int, ...] = (), first_now: int = 10_000_000
    ) -> None:
        self.base = base
        self.our_base = base
        self.peer_base = (base + 7) & 0xFFFF
        self.first_now = first_now
        self.now = 0
        self.connection = Connection(
            config or Config(), Workspace(), PEER, recv_id=RECV_ID, first_seq=base, spare_ids=spare_ids
        )
        self.transmits: list[Transmit] = []

    # ── beginnings ──

    @classmethod
    def initiator(cls, base: int, *, is_known: bool = True, **options: object) -> Wire:
        """The SYN was answered after one round trip; is_known: the acceptor has shown that our ack of that arrived."""
        wire = cls(base, **options)  # type: ignore[arg-type]
        wire.connect()
        assert wire.send() == ["SYN seq=0 ack=0"]
        wire.wait(RTT_US)
        wire.receive("STATE seq=1 ack=0")
        assert wire.send() == ["STATE seq=1 ack=0"]
        assert wire.events() == ["CONNECTED"]
        if is_known:
            wire.connection._handshake.handshake_ack_at = NEVER
        return wire

    @classmethod
    def acceptor(cls, base: int, *, is_peer_verified: bool = True, **options: object) -> Wire:
        """A SYN has come and been answered, and the STATE that verifies the initiator has come too."""
        wire = cls(base, **options)  # type: ignore[arg-type]
        wire.our_base = (base - 1) & 0xFFFF
        wire.receive("SYN seq=0")
        assert wire.send() == ["STATE seq=1 ack=0"]
        if is_peer_verified:
            wire.wait(RTT_US)
            wire.receive("STATE seq=1 ack=0")
            assert wire.send() == []
            assert wire.events() == ["CONNECTED"]
        return wire

    def connect(self) -> None:
        self.connection.connect(now=self.at)

    # ── time ──

    @property
    def at(self) -> int:
        """The clock as the connection sees it."""
        return self.first_now + self.now

    def wait(self, microseconds: int) -> list[str]:
        """Let time pass, with every timer on time; returns what was sent meanwhile, each with its time in ms."""
        end = self.now + microseconds
        sent: list[str] = []
        for _ in range(10_000):
            deadline = self.connection.timeout_at()
            if deadline is None or deadline - self.first_now > end:
                break
            self.now = max(self.now, deadline - self.first_now)
            self.connection.handle_timeout(now=self.at)
            sent += [f"{self.now / 1000:g} {line}" for line in self.send()]
        else:
            raise AssertionError("a deadline that does not move")
        self.now = end
        return sent

    # ── the peer ──

    def receive(self, *lines: str) -> None:
        """The peer's packets arrive, each a run of its own."""
        for line in lines:
            self.receive_bytes(self.write(line))

    def receive_bytes(self, datagram: bytes) -> None:
        self.receive_bytes_unchecked(datagram)
        self.connection._check()

    def receive_bytes_unchecked(self, datagram: bytes) -> None:
        """Without a check of the invariants, which takes the longer the more there is to check."""
        self.connection.handle_run(Run(memoryview(bytearray(datagram)), max(1, len(datagram)), PEER), now=self.at)

    def receive_run(self, *lines: str) -> None:
        """The peer's packets arrive in one run: of equal size but the last."""
        datagrams = [self.write(line) for line in lines]
        run = Run(memoryview(bytearray(b"".join(datagrams))), len(datagrams[0]), PEER)
        self.connection.handle_run(run, now=self.at)
        self.connection._check()

    def write(self, line: str) -> bytes:
        """The datagram that a line stands for."""
        kind, *words = line.split()
        values = dict(word.split("=", 1) for word in words)
        known = {"seq", "ack", "wnd", "len", "data", "sack", "id", "ts", "diff", "ext"}
        assert values.keys() <= known, values.keys() - known
        if "id" not in values:
            connection_id = (RECV_ID - 1) if kind == "SYN" else self.connection.recv_id
        elif values["id"] in ("recv", "send"):
            connection_id = self.connection.recv_id if values["id"] == "recv" else self.connection.send_id
        else:
            connection_id = self.connection.recv_id + int(values["id"])
        payload = values["data"].encode() if "data" in values else b"x" * int(values.get("len", 0))
        extensions: list[tuple[int, bytes]] = []
        if "ext" in values:
            number, _, digits = values["ext"].partition(":")
            extensions.append((int(number), bytes.fromhex(digits)))
        if "sack" in values:
            extensions.append((1, bytes.fromhex(values["sack"])))
        chain = b""
        for index, (_, content) in enumerate(extensions):
            following = extensions[index + 1][0] if index + 1 < len(extensions) else 0
            chain += bytes((following, len(content))) + content
        header = struct.pack(
            ">BBHIIIHH",
            PacketType[kind] << 4 | 1,
            extensions[0][0] if extensions else 0,
            connection_id & 0xFFFF,
            int(values.get("ts", (self.at - RTT_US // 2) & 0xFFFFFFFF)),
            int(values.get("diff", RTT_US // 2)),
            int(values.get("wnd", 1_000_000)),
            (self.peer_base + int(values.get("seq", 1))) & 0xFFFF,
            (self.our_base + int(values.get("ack", 0))) & 0xFFFF,
        )
        return header + chain + payload

    # ── the connection ──

    def send(self, max_segments: int = 64) -> list[str]:
        """All that leaves now; DATA that continues DATA is one line, however pacing cut it."""
        sent: list[str] = []
        while (transmit := self.connection.poll_transmit(now=self.at, max_segments=max_segments)) is not None:
            line = self.read(transmit)
            before = _DATA.fullmatch(sent[-1]) if sent else None
            after = _DATA.fullmatch(line)
            if before and after and int(before["last"] or before["first"]) + 1 == int(after["first"]):
                if (before["ack"], before["len"]) == (after["ack"], after["len"]):
                    last = after["last"] or after["first"]
                    line = f"DATA seq={before['first']}..{last} ack={after['ack']} len={after['len']}"
                    sent.pop()
            sent.append(line)
        self.connection._check()
        return sent

    def read(self, transmit: Transmit) -> str:
        """A transmit as a line: seq=1..3 for several packets, len= of all but the last and of the last if shorter."""
        datagrams = transmit.datagrams()
        self.transmits.append(
            Transmit(PEER, b"".join(datagrams), datagram_bytes=transmit.datagram_bytes, count=transmit.count)
        )
        self.transmits[-1].may_fragment, self.transmits[-1].is_mtu_probe = transmit.may_fragment, transmit.is_mtu_probe
        packet = decode(memoryview(datagrams[0]))
        assert packet is not None
        first = unwrap((packet.seq16 - self.our_base) & 0xFFFF, 0)
        ack = unwrap((packet.ack16 - self.peer_base) & 0xFFFF, 0)
        if packet.type == PacketType.SYN:
            assert packet.ack16 == ACKS_SYN_ACK  # which a trace shows as 0
            ack = 0
        kind = PacketType(packet.type).name
        seq = str(first) if transmit.count == 1 else f"{first}..{first + transmit.count - 1}"
        line = f"{kind} seq={seq} ack={ack}"
        if packet.payload:
            sizes = [len(datagram) - 20 for datagram in datagrams]
            line += f" len={sizes[0]}" if len(set(sizes)) == 1 else f" len={sizes[0]}+{sizes[-1]}"
        if packet.sack is not None:
            line += f" sack={bytes(packet.sack).hex()}"
        if packet.connection_id != (self.connection.recv_id if kind == "SYN" else self.connection.send_id):
            line += f" id={unwrap((packet.connection_id - RECV_ID) & 0xFFFF, 0):+d}"
        return line

    @property
    def last(self) -> bytes:
        """The datagram that left last."""
        return self.transmits[-1].datagrams()[-1]

    @property
    def last_window(self) -> int:
        """The window it advertised."""
        return int.from_bytes(self.last[12:16], "big")

    def events(self) -> list[str]:
        names = []
        while (event := self.connection.poll_event()) is not None:
            names.append(event.kind.name if event.kind is EventKind.CONNECTED else f"CLOSED {event.errno}")
        return names

    def write_bytes(self, count: int, *, more: bool = False) -> None:
        """The application writes."""
        while count:
            span = self.connection.free_span()
            assert len(span), "the send buffer is full"
            piece = min(count, len(span))
            span[:piece] = b"w" * piece
            count -= piece
            self.connection.commit(piece, more=more)

    def read_bytes(self, most: int = 1 << 30) -> bytes:
        """The application reads."""
        content = b"".join(map(bytes, self.connection.poll_delivery()))[:most]
        self.connection.finish_delivery(len(content), now=self.at)
        return content

    def finish(self) -> None:
        self.connection.finish(now=self.at)

    @property
    def state(self) -> State:
        return self.connection.state

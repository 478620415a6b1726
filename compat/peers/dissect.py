"""tshark reads a capture of our traffic: nothing malformed, and it reads the same as our own decoder.

The capture is the relay's (a pcap needs no privileges) of two utpsockets that exchange data both ways over a bad
road, so that selective acks are in it. Every datagram is a uTP packet to both readers, and they agree on all fields.
"""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from compat.peers import provision
from compat.peers.capture import read_pcap
from compat.peers.case import LOOPBACK, Case, CaseFailed, Circumstances, Road, header_text, python_module
from compat.peers.children import Child, Children
from compat.peers.impairment import Impairment
from compat.peers.libutp import MB, SEED, start_side

NAME: Final = "tshark"
ROAD: Final = Impairment(loss=0.02, reorder=0.02, delay_us=5_000)
FIELDS: Final = (
    "frame.number",
    "bt-utp.ver",
    "bt-utp.type",
    "bt-utp.connection_id",
    "bt-utp.timestamp_us",
    "bt-utp.timestamp_diff_us",
    "bt-utp.wnd_size",
    "bt-utp.seq_nr",
    "bt-utp.ack_nr",
    "bt-utp.extension_bitmask",
    "bt-utp.len",
    "_ws.malformed",
    "_ws.expert.message",
)
DISSECT_SECONDS: Final = 60
HEADER_BYTES: Final = 20
EXTENSION_BITS: Final = 2
# Padding of path MTU probes, and pieces of packets that no longer fit the path. tshark takes no packet for uTP whose
# chain has a link with a number above 2 (packet-bt-utp.c, EXT_NUM_EXT), while every implementation skips those; and
# none of the two numbers that tshark knows may be padding: libutp drops a link 2 of other than 8 bytes, and 1 is SACK.
PRIVATE_EXTENSIONS: Final = (126, 127)
MAX_PRIVATE_PACKETS: Final = 32  # a few probes on a road where they, too, get lost

Fields = tuple[int, int, int, int, int, int, int, str, int]
"""type, connection id, timestamp, difference, window, seq, ack, SACK's bits in hexadecimal, payload length"""


def version() -> str:
    """Sets tshark up. Raises provision.Unavailable."""
    shown = subprocess.run([provision.tshark(), "--version"], capture_output=True, text=True, check=False, timeout=30)
    words = shown.stdout.split()
    return words[2].rstrip(".") if len(words) > 2 else "unknown"


def cases(*, quick: bool, size_bytes: int | None) -> list[Case]:
    del quick
    return [
        Case(NAME, "dissect, " + str(ROAD), role, size_bytes or MB, run=_dissect, impairment=ROAD, waits=True)
        for role in ("initiator", "acceptor")
    ]


def _dissect(case: Case, circumstances: Circumstances, deadline: float) -> float:
    with tempfile.TemporaryDirectory(prefix="utpsocket-peers-") as name:
        where = dataclasses.replace(circumstances, keep=circumstances.keep or Path(name))
        relay_port = _converse(case, where, deadline)
        assert where.keep is not None
        capture = where.keep / f"{case.slug}.pcap"
        started = time.monotonic()
        compare(capture, relay_port, our_role=case.role)
        return time.monotonic() - started


def _converse(case: Case, circumstances: Circumstances, deadline: float) -> int:
    """Make the traffic. Returns the relay's port, which tells the directions apart."""
    header = header_text({"case": "echo", "bytes": case.bytes, "seed": SEED})
    with Children() as children:
        sides: dict[str, Child] = {}
        for side, arguments in (("acceptor", ["listen"]), ("initiator", ["connect", LOOPBACK, "", header])):
            if side == "initiator":
                server_port = sides["acceptor"].expect("port", deadline=deadline)
                road = Road(children, case, circumstances, server_port, deadline=deadline)
                arguments[2] = str(road.port)
            if circumstances.control:
                sides[side] = start_side(children, case, side, circumstances, arguments, {})
            else:
                sides[side] = children.start(f"utpsocket {side}", python_module("stream", *arguments))
        for name, side_child in sides.items():
            report = side_child.expect("report", deadline=deadline)
            if report["error"]:
                raise CaseFailed(f"no traffic to dissect: {name}: {report['error']}{road.story()}")
        counters = road.counters()
        assert counters is not None
        return road.port


def compare(capture: Path, relay_port: int, *, our_role: str) -> None:
    """Raises CaseFailed where tshark finds fault with, or reads differently, a packet that `our_role` sent."""
    datagrams = list(read_pcap(capture))
    dissected = _dissected(capture, relay_port)
    if len(dissected) != len(datagrams):
        raise CaseFailed(f"tshark reads {len(dissected)} frames, the relay wrote {len(datagrams)}")
    decode = _our_decoder()
    sacks = packets = private = 0
    for number, ((source, _, payload), theirs) in enumerate(zip(datagrams, dissected, strict=True), 1):
        if (source[1] == relay_port) != (our_role == "acceptor"):
            continue
        packets += 1
        if theirs["_ws.malformed"] or theirs["_ws.expert.message"]:
            raise CaseFailed(
                f"frame {number}: {theirs['_ws.malformed']} {theirs['_ws.expert.message']}: {payload[:48].hex()}"
            )
        read = _fields(theirs)
        ours = decode(payload)
        if read is None and ours is not None and _has_private_link(payload):
            private += 1
            continue
        if read is None or ours is None:
            raise CaseFailed(
                f"frame {number} is no uTP packet to {'us' if ours is None else 'tshark'}: {payload[:48].hex()}"
            )
        if read != ours:
            raise CaseFailed(f"frame {number}: tshark reads {read}, we read {ours}")
        sacks += bool(read[7])
    if not packets or not sacks:
        raise CaseFailed(f"the capture shows nothing: {packets} packets, {sacks} selective acks")
    if private > MAX_PRIVATE_PACKETS:
        raise CaseFailed(f"{private} of {packets} packets carry extensions that tshark does not know")


def _has_private_link(payload: bytes) -> bool:
    """Whether the second link of the extension chain is one that only utpsocket sends. BEP 29 "extension"."""
    return len(payload) > HEADER_BYTES and payload[1] == EXTENSION_BITS and payload[HEADER_BYTES] in PRIVATE_EXTENSIONS


def _dissected(capture: Path, relay_port: int) -> list[dict[str, str]]:
    command = [provision.tshark(), "-n", "-r", str(capture), "-d", f"udp.port=={relay_port},bt-utp"]
    # By default tshark takes no packet for uTP whose window is above 3.5 MiB: a guard against false positives that has
    # no place where the port is known.
    command += ["-o", "bt-utp.max_window_size:ffffffff"]
    # The payload is noise that some BitTorrent dissector might take for a message of its own.
    command += ["--disable-protocol", "bittorrent", "-T", "fields"]
    for field in FIELDS:
        command += ["-e", field]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DISSECT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise CaseFailed(f"tshark took more than {DISSECT_SECONDS} s") from None
    if done.returncode:
        raise CaseFailed(f"tshark failed: {done.stderr.strip().splitlines()[-1:]}")
    return [dict(zip(FIELDS, line.split("\t"), strict=True)) for line in done.stdout.splitlines()]


def _fields(frame: dict[str, str]) -> Fields | None:
    """tshark's reading, None where it saw no uTP header."""
    if frame["bt-utp.ver"] != "1":
        return None
    numbers = [int(frame[field]) for field in FIELDS[2:9]]
    kind, conn_id, stamp, difference, window, seq, ack = numbers
    bits = frame["bt-utp.extension_bitmask"].replace(":", "")
    return kind, conn_id, stamp, difference, window, seq, ack, bits, int(frame["bt-utp.len"] or 0)


def _our_decoder() -> Callable[[bytes], Fields | None]:
    packet: Any = importlib.import_module("utpsocket.protocol.packet")

    def decode(payload: bytes) -> Fields | None:
        read = packet.decode(memoryview(payload))
        if read is None:
            return None
        return (
            int(read.type),
            read.connection_id,
            read.timestamp_us,
            read.difference_us,
            read.window_bytes,
            read.seq16,
            read.ack16,
            bytes(read.sack or b"").hex(),
            len(read.payload),
        )

    return decode

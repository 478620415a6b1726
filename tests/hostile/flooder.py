"""The attacker: datagrams of one kind at a given rate, from many addresses of 127.0.0.0/8 or many ports of ::1.

A process of its own, so that its cost is not counted as the victim's. sendmmsg(2) and a store of datagrams made
beforehand: otherwise Python would be the bottleneck. Rate and duration are bounded.

    python3 -m tests.hostile.flooder 127.0.0.1 PORT --kind syn --rate 90000 --seconds 3
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import random
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
KINDS: Final = ("syn", "syn_payload", "same_syn", "data", "state", "reset", "short", "garbage", "version")
MAX_PER_SECOND: Final = 200_000
MAX_SECONDS: Final = 30.0
_STORE: Final = 8_192  # datagrams made beforehand
_BATCH: Final = 32  # per sendmmsg
_UDP_SEGMENT: Final = 103
_IP_PKTINFO: Final = 8
_HEADER: Final = struct.Struct(">BBHIIIHH")
_TYPES: Final = {"syn": 4, "syn_payload": 4, "same_syn": 4, "data": 0, "state": 2, "reset": 3}


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_Iovec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("padding", ctypes.c_int),
        ("sent", ctypes.c_uint64),
    )


def datagram(kind: str, draw: random.Random) -> bytes:
    """One datagram of this kind."""
    if kind == "short":
        return draw.randbytes(draw.randrange(1, 20))
    if kind == "garbage":
        return b"\xff" + draw.randbytes(draw.randrange(20, 400))
    word = draw.getrandbits
    if kind == "same_syn":
        return _HEADER.pack(0x41, 0, 4_711, 1, 0, 1 << 20, 1, 0)
    first = 0x42 if kind == "version" else _TYPES[kind] << 4 | 1
    header = _HEADER.pack(first, 0, word(16), word(32), 0, 1 << 20, word(16), 0 if first == 0x41 else word(16))
    return header + draw.randbytes(100 if kind in ("data", "syn_payload") else 0)


def sockets(address: tuple[str, int], sources: int, draw: random.Random) -> list[socket.socket]:
    """So many sources, connected to the flooded port; what comes back stays in their small buffers."""
    made = []
    is_v6 = ":" in address[0]
    for _ in range(sources):
        udp = socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET, socket.SOCK_DGRAM)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
        if sources > 1:
            host = f"127.{draw.randrange(1, 255)}.{draw.randrange(256)}.{draw.randrange(1, 255)}"
            udp.bind(("::1" if is_v6 else host, 0))
        udp.connect(address)
        made.append(udp)
    return made


def flood(
    address: tuple[str, int], *, kind: str, rate: int, seconds: float, sources: int, seed: int, merged: bool
) -> int:
    """Send; how many datagrams were."""
    draw = random.Random(seed)
    store = [datagram(kind, draw) for _ in range(_STORE)]
    libc = ctypes.CDLL(None, use_errno=True)
    buffers = [ctypes.create_string_buffer(one, len(one)) for one in store]
    iovecs = (_Iovec * _STORE)(*(_Iovec(ctypes.addressof(buffer), len(buffer)) for buffer in buffers))
    messages = (_Message * _STORE)()
    for index in range(_STORE):
        messages[index].iov = ctypes.pointer(iovecs[index])
        messages[index].iovlen = 1
    spoofed = []
    if not sources:  # each datagram from an address of its own, by IP_PKTINFO
        sources = 1
        for index in range(_STORE):
            source = bytes((127, draw.randrange(1, 255), draw.randrange(256), draw.randrange(1, 255)))
            data = struct.pack("@Nii", 28, socket.IPPROTO_IP, _IP_PKTINFO) + struct.pack(
                "=I4s4s4x", 0, source, bytes(4)
            )
            spoofed.append(ctypes.create_string_buffer(data, len(data)))
            messages[index].control = ctypes.addressof(spoofed[-1])
            messages[index].controllen = len(data)
    at = ctypes.addressof(messages)
    merged_data = [b"".join(store[index : index + _BATCH]) for index in range(0, _STORE, _BATCH)]
    segment = [(socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("=H", len(store[0])))]
    udps = sockets(address, sources, draw)
    sent = turn = 0
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        for udp in udps:
            stack.enter_context(udp)
        while (elapsed := time.monotonic() - started) < seconds:
            due = int(elapsed * rate) - sent
            if due < _BATCH:
                time.sleep(min(0.001, (_BATCH - due) / rate))
                continue
            if due > rate // 20:
                sent += due - rate // 20  # what could not be sent in time is not sent later
            udp = udps[turn % sources]
            first = turn * _BATCH % _STORE
            if merged:
                with contextlib.suppress(OSError):
                    udp.sendmsg([merged_data[first // _BATCH]], segment)
            else:
                libc.sendmmsg(udp.fileno(), ctypes.c_void_p(at + first * ctypes.sizeof(_Message)), _BATCH, 0x4040)
            sent += _BATCH
            turn += 1
    return turn * _BATCH


@contextlib.contextmanager
def flooding(
    address: tuple[str, int],
    *,
    kind: str = "syn",
    rate: int,
    seconds: float,
    sources: int = 64,
    seed: int = 1,
    merged: bool = False,
) -> Iterator[subprocess.Popen[bytes]]:
    """A flood by another process, which has begun; it ends with the block, or after `seconds`."""
    command = [sys.executable, "-m", "tests.hostile.flooder", address[0], str(address[1])]
    command += ["--kind", kind, "--rate", str(rate), "--seconds", str(seconds)]
    command += ["--sources", str(sources), "--seed", str(seed), *(["--merged"] if merged else [])]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as attacker:
        assert attacker.stdout is not None
        attacker.stdout.readline()
        try:
            yield attacker
        finally:
            attacker.kill()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.hostile.flooder")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--kind", choices=KINDS, default="syn")
    parser.add_argument("--rate", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--sources", type=int, default=64, help="0: a new address for each datagram, of 8,192")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--merged", action="store_true", help="batches that the kernel hands over as one (UDP_SEGMENT)")
    given = parser.parse_args()
    if not (given.host.startswith("127.") or given.host == "::1"):
        parser.error("only 127.0.0.0/8 and ::1")
    print("flooding", flush=True)
    sent = flood(
        (given.host, given.port),
        kind=given.kind,
        rate=min(given.rate, MAX_PER_SECOND),
        seconds=min(given.seconds, MAX_SECONDS),
        sources=given.sources,
        seed=given.seed,
        merged=given.merged,
    )
    print(sent, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

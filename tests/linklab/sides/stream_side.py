"""Either side of flows of utpsocket or of kernel TCP. What it reads and prints: sides/__init__.py.

    PYTHON stream_side.py sink|source SETTINGS

Further settings: `transport` ("utp" or "tcp"), `congestion` (of TCP), `ppm` (how much too fast the clock of utp runs).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
import threading
import time
from typing import Any, Final

SINK_SECONDS: Final = 0.05
SOURCE_SECONDS: Final = 0.1
CHUNK_BYTES: Final = 1 << 16
RECEIVE_BYTES: Final = 1 << 18
LEAVE_SECONDS: Final = 0.2  # for the resets to leave
# struct tcp_info up to tcpi_min_rtt (linux/tcp.h): eight bytes, 24 words of 32 bits, four of 64, four of 32.
TCP_INFO: Final = struct.Struct("=8B24I4Q4I")


def say(**figures: Any) -> None:
    print(json.dumps(figures), flush=True)


def new_socket(transport: str) -> Any:
    if transport == "tcp":
        return socket.socket()
    import utpsocket

    return utpsocket.socket()


def skew_clock(ppm: float) -> None:
    """What utpsocket takes for the time runs faster; before it is imported."""
    if ppm:
        true, begun = time.monotonic_ns, time.monotonic_ns()
        time.monotonic_ns = lambda: begun + int((true() - begun) * (1 + ppm * 1e-6))


def sink(settings: dict[str, Any]) -> None:
    """Take whatever comes, and print how much it was."""
    listener = new_socket(settings["transport"])
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((settings["host"], settings["port"]))
    listener.listen(128)
    counts: list[int] = []

    def receive(connection: Any, number: int) -> None:
        buffer = bytearray(RECEIVE_BYTES)
        with contextlib.suppress(OSError):
            while count := connection.recv_into(buffer):
                counts[number] += count

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            counts.append(0)
            threading.Thread(target=receive, args=(connection, len(counts) - 1), daemon=True).start()

    say(ready=True)
    threading.Thread(target=accept, daemon=True).start()
    while True:
        time.sleep(SINK_SECONDS)
        say(t=time.monotonic(), bytes=list(counts), cpu_seconds=round(time.process_time(), 3))


def source(settings: dict[str, Any]) -> None:
    """Send as much as goes, until the end."""
    is_tcp = settings["transport"] == "tcp"
    skew_clock(settings["ppm"])
    connections = [new_socket(settings["transport"]) for _ in range(settings["streams"])]
    for connection in connections:
        if is_tcp:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, settings["congestion"].encode())
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    say(ready=True)
    origin = json.loads(sys.stdin.readline())["origin"]
    time.sleep(max(0.0, origin + settings["start"] - time.monotonic()))

    def send(connection: Any, number: int) -> None:
        payload = bytes(CHUNK_BYTES)
        try:
            while True:
                connection.send(payload)
        except OSError as error:
            say(t=time.monotonic(), stream=number, error=str(error))

    def connect() -> None:
        # One after the other, as a program does, so that they begin a round trip apart.
        for number, connection in enumerate(connections):
            try:
                connection.connect((settings["host"], settings["port"]))
            except OSError as error:
                say(t=time.monotonic(), stream=number, error=str(error))
                continue
            threading.Thread(target=send, args=(connection, number), daemon=True).start()

    threading.Thread(target=connect, daemon=True).start()
    figures_of = tcp_figures if is_tcp else utp_figures
    while (left := origin + settings["end"] - time.monotonic()) > 0:
        time.sleep(min(left, SOURCE_SECONDS))
        for number, connection in enumerate(connections):
            with contextlib.suppress(OSError):
                cpu_seconds = round(time.process_time(), 3)
                say(t=time.monotonic(), stream=number, cpu_seconds=cpu_seconds, **figures_of(connection))
    for connection in connections:
        connection.close()
    time.sleep(LEAVE_SECONDS)
    os._exit(0)


def utp_figures(connection: Any) -> dict[str, int]:
    import utpsocket

    figures = connection.getsockopt(utpsocket.SOL_UTP, utpsocket.UTP_INFO)
    return {
        "cwnd_bytes": figures.cwnd_bytes,
        "rtt_us": figures.rtt_us,
        "queueing_delay_us": figures.queueing_delay_us,
        "in_flight_bytes": figures.in_flight_bytes,
        "sent_packets": figures.sent_packets,
        "retransmitted_packets": figures.retransmitted_packets,
        "lost_packets": figures.lost_packets,
        "timeouts": figures.timeouts,
        "packet_bytes": figures.packet_bytes,
    }


def tcp_figures(connection: socket.socket) -> dict[str, int]:
    raw = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO.size)
    fields = TCP_INFO.unpack(raw.ljust(TCP_INFO.size, b"\0"))
    words, min_rtt_us = fields[8:32], fields[39]
    mss_bytes, rtt_us = words[2], words[15]
    return {
        "cwnd_bytes": words[18] * mss_bytes,
        "rtt_us": rtt_us,
        # TCP has no estimate of its own: what the round trip is longer than the shortest one.
        "queueing_delay_us": max(0, rtt_us - min_rtt_us),
        "in_flight_bytes": words[4] * mss_bytes,
        "retransmitted_packets": words[23],
    }


if __name__ == "__main__":
    {"sink": sink, "source": source}[sys.argv[1]](json.loads(sys.argv[2]))

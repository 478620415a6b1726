"""A transfer that gives way to other traffic, and what its sender can see of it while it runs.

uTP slows down as soon as the queue on the path grows, before packets are lost, so a backup or an update may run while
people work. info() is its TCP_INFO.

Run: python3 -m examples.background_transfer
"""

from __future__ import annotations

import hashlib
import random
import threading

import utpsocket as socket
from utpsocket import stats

DATA = random.Random(29).randbytes(16_000_000)
PIECE_BYTES = 2_000_000


def receive(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    digest, count_bytes = hashlib.sha256(), 0
    with connection:
        while data := connection.recv(262_144):
            digest.update(data)
            count_bytes += len(data)
        # The sender has finished its half, and waits for this.
        connection.sendall(f"{count_bytes} {digest.hexdigest()}".encode())


def send(address: tuple[str, int]) -> str:
    """Send everything, saying how it goes; what the receiver says at the end."""
    with socket.create_connection(address) as sock:
        for start in range(0, len(DATA), PIECE_BYTES):
            sock.sendall(DATA[start : start + PIECE_BYTES])
            info = socket.info(sock)
            print(
                f"{info.sent_bytes / len(DATA):4.0%} sent, round trip {info.rtt_us / 1000:.1f} ms, of which "
                f"{info.queueing_delay_us / 1000:.1f} ms in queues; window {info.cwnd_bytes:,} bytes"
            )
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile() as answer:
            return answer.read()


def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        receiver = threading.Thread(target=receive, args=(listener,))
        receiver.start()
        answer = send(listener.getsockname())
        receiver.join()
    intact = answer == f"{len(DATA)} {hashlib.sha256(DATA).hexdigest()}"
    print(f"received {'intact' if intact else 'WRONG: ' + answer}")
    print(f"uTP connections: {stats.engine_stats().connections_initiated}")


if __name__ == "__main__":
    main()

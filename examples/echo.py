"""An echo server and its client: one import replaced, the rest is the code of any socket tutorial.

Run: python3 -m examples.echo
"""

from __future__ import annotations

import threading

import utpsocket as socket
from utpsocket import stats


def serve_one(listener: socket.socket) -> None:
    connection, peer = listener.accept()
    with connection:
        print(f"server: a connection from {peer[0]}")
        while data := connection.recv(65536):
            connection.sendall(data)


def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve_one, args=(listener,))
        server.start()
        with socket.create_connection(listener.getsockname()) as client:
            client.sendall(b"hello over uTP")
            client.shutdown(socket.SHUT_WR)  # half-close: the server sees the end, and can still answer
            with client.makefile("rb") as answer:
                print(f"client: {answer.read().decode()}")
        server.join()
    print(f"uTP connections: {stats.engine_stats().connections_initiated}")


if __name__ == "__main__":
    main()

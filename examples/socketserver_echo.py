"""socketserver over uTP, in threads and in forked processes: only the class of the listening socket is replaced.

Run: python3 -m examples.socketserver_echo
"""

from __future__ import annotations

import os
import socketserver
import threading

import utpsocket
from utpsocket import stats


class OverUtp(socketserver.TCPServer):
    """Mixed into any of socketserver's TCP servers, makes it listen on a uTP socket."""

    def __init__(self, address: tuple[str, int], handler: type[socketserver.BaseRequestHandler]) -> None:
        super().__init__(address, handler, bind_and_activate=False)
        self.socket.close()
        self.socket = utpsocket.socket(self.address_family, self.socket_type)
        self.server_bind()
        self.server_activate()


class ThreadingServer(OverUtp, socketserver.ThreadingTCPServer):
    pass


class ForkingServer(OverUtp, socketserver.ForkingTCPServer):
    pass


class Shout(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        where = "this process" if os.getpid() == SERVER_PID else "a child process"
        for line in self.rfile:
            self.wfile.write(line.upper().rstrip() + f" (said in {where})\n".encode())


SERVER_PID = os.getpid()


def main() -> None:
    for server_class in (ThreadingServer, ForkingServer):
        with server_class(("127.0.0.1", 0), Shout) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            with utpsocket.create_connection(server.socket.getsockname()) as client, client.makefile("rwb") as stream:
                stream.write(b"hello\n")
                stream.flush()
                print(f"{server_class.__name__}: {stream.readline().decode().strip()}")
                # As over TCP: the forked child has a copy of this socket, so close() alone would not end it.
                client.shutdown(utpsocket.SHUT_WR)
            server.shutdown()
            thread.join()
    print(f"uTP connections: {stats.engine_stats().connections_initiated}")


if __name__ == "__main__":
    main()

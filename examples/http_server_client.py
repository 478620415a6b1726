"""http.server and urllib over uTP, with no change to their code: utpsocket.monkey replaces the sockets.

Run: python3 -m examples.http_server_client
"""

from __future__ import annotations

import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from utpsocket import monkey, stats


class Greeting(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"hello from {self.path}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """No access log."""


def serve_and_fetch() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Greeting) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            for path in ("/one", "/two"):
                with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}") as response:
                    print(response.status, response.read().decode().strip())
        finally:
            server.shutdown()
            thread.join()


def main() -> None:
    monkey.patch_socket()
    try:
        serve_and_fetch()
    finally:
        monkey.unpatch()  # from here on the process's sockets are TCP again
    print(f"uTP connections: {stats.engine_stats().connections_initiated}")


if __name__ == "__main__":
    main()

"""TLS over uTP: https with the stdlib's http.server, http.client and ssl.

The certificate is made with the `openssl` program, or is given: a PEM file with a private key and a certificate for
localhost, which the client here trusts since it gets the same file.

Run: python3 -m examples.https [PEM]
"""

from __future__ import annotations

import http.client
import ssl
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import utpsocket
from utpsocket import stats


class Server(ThreadingHTTPServer):
    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], tls: ssl.SSLContext) -> None:
        self.tls = tls
        # The first address of the name is the one that a client tries first; on many machines it is ::1.
        self.address_family, _, _, _, found = utpsocket.getaddrinfo(*address, type=utpsocket.SOCK_STREAM)[0]
        super().__init__((str(found[0]), int(found[1])), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = utpsocket.socket(self.address_family, self.socket_type)
        self.server_bind()
        self.server_activate()

    def get_request(self) -> tuple[ssl.SSLSocket, tuple[str, int]]:
        connection, peer = super().get_request()
        # The handshake happens with the first read, in the handler's thread: a slow client does not hold up others.
        return self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), peer


class Connection(http.client.HTTPSConnection):
    def __init__(self, host: str, port: int, tls: ssl.SSLContext) -> None:
        super().__init__(host, port, context=tls)
        self.tls = tls

    def connect(self) -> None:
        connection = utpsocket.create_connection((self.host, self.port))
        self.sock = self.tls.wrap_socket(connection, server_hostname=self.host)


class Secret(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"whispered over {self.connection.version()}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """No access log."""


def make_certificate(pem: Path) -> None:
    key = pem.with_suffix(".key")
    request = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    subprocess.run([*request.split(), "-keyout", key, "-out", pem], check=True, capture_output=True)
    pem.write_bytes(key.read_bytes() + pem.read_bytes())


def serve_and_fetch(pem: Path) -> None:
    server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_tls.load_cert_chain(pem)
    client_tls = ssl.create_default_context(cafile=str(pem))
    with Server(("localhost", 0), Secret, server_tls) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            client = Connection("localhost", server.server_port, client_tls)
            client.request("GET", "/")
            response = client.getresponse()
            print(response.status, response.read().decode())
            client.close()
        finally:
            server.shutdown()
            thread.join()
    print(f"uTP connections: {stats.engine_stats().connections_initiated}")


def main() -> None:
    if len(sys.argv) > 1:
        serve_and_fetch(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as directory:
        pem = Path(directory, "localhost.pem")
        make_certificate(pem)
        serve_and_fetch(pem)


if __name__ == "__main__":
    main()

"""One small web application, as WSGI and as ASGI, and one client that tries all of a server's features.

A dozen servers are tested with these two: only the server differs between their scenarios.
"""

from __future__ import annotations

import hashlib
import http.client
import random
import socket
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

HOST: Final = "127.0.0.1"
BLOCKS: Final = 40
BLOCK_BYTES: Final = 25_000


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that no buffer holds by accident."""
    return random.Random(seed).randbytes(size)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


STREAMED: Final = [noise(BLOCK_BYTES, seed) for seed in range(BLOCKS)]


def wsgi(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """/hello greets, /digest answers with the hash of what was posted, /stream sends a megabyte bit by bit."""
    path = environ["PATH_INFO"]
    if path == "/stream":
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return iter(STREAMED)
    if path == "/digest":
        body = digest(_posted(environ)).encode()
    elif path == "/hello":
        body = f"hello {environ['QUERY_STRING']} from {environ['REMOTE_ADDR']}".encode()
    else:
        start_response("404 Not Found", [("Content-Length", "0")])
        return []
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def _posted(environ: dict[str, Any]) -> bytes:
    length = environ.get("CONTENT_LENGTH")
    read = environ["wsgi.input"].read
    data: bytes = read(int(length)) if length else read() if "HTTP_TRANSFER_ENCODING" in environ else b""
    return data


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The same for event loops."""
    while scope["type"] == "lifespan":
        event_type = (await receive())["type"]
        await send({"type": f"{event_type}.complete"})
        if event_type == "lifespan.shutdown":
            return
    path = scope["path"]
    posted = b""
    more = True
    while more:
        message = await receive()
        posted += message.get("body", b"")
        more = message.get("more_body", False)
    if path == "/stream":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for block in STREAMED:
            await send({"type": "http.response.body", "body": block, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    greeting = f"hello {scope['query_string'].decode()} from {(scope['client'] or ['?'])[0]}".encode()
    bodies = {"/digest": digest(posted).encode(), "/hello": greeting}
    body = bodies.get(path, b"")
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200 if path in bodies else 404, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def exercise(port: int, *, chunked: bool = True, clients: int = 6) -> None:
    """Requests of every kind over one connection where the server keeps it, then some clients at once."""
    connection = http.client.HTTPConnection(HOST, port, timeout=20)
    assert answer(connection, "GET", "/hello?one") == (200, b"hello one from 127.0.0.1")
    assert answer(connection, "GET", "/nowhere")[0] == 404
    posted = noise(300_000)
    assert answer(connection, "POST", "/digest", posted) == (200, digest(posted).encode())
    if chunked:
        assert answer(connection, "POST", "/digest", iter(STREAMED)) == (200, digest(b"".join(STREAMED)).encode())
    assert answer(connection, "GET", "/stream") == (200, b"".join(STREAMED))
    connection.close()

    def one_of_many(number: int) -> None:
        own = http.client.HTTPConnection(HOST, port, timeout=20)
        body = noise(20_000, number)
        assert answer(own, "POST", "/digest", body) == (200, digest(body).encode())
        assert answer(own, "GET", f"/hello?{number}") == (200, f"hello {number} from 127.0.0.1".encode())
        own.close()

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(one_of_many, range(clients)))


def answer(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | Iterator[bytes] | None = None
) -> tuple[int, bytes]:
    """Status and body of one request; what is iterated goes out chunked."""
    in_chunks = not isinstance(body, bytes | None)
    headers = {"Transfer-Encoding": "chunked"} if in_chunks else {}
    connection.request(method, path, body, headers, encode_chunked=in_chunks)
    response = connection.getresponse()
    return response.status, response.read()


def listener() -> socket.socket:
    """A bound, listening socket, for servers that are handed one."""
    return socket.create_server((HOST, 0))

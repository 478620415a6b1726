"""HTTP clients with pools, streams and TLS: requests, urllib3, httpx, aiohttp, pycurl, and PySocks in between."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator

from compat.programs import certificate
from compat.programs.scenario import Ready, Scenario
from compat.programs.web import HOST, STREAMED, digest, noise, wsgi

WHOLE = b"".join(STREAMED)


def serve_http(ready: Ready) -> None:
    from cheroot.wsgi import Server

    server = Server((HOST, 0), wsgi, numthreads=6)
    server.prepare()
    ready(server.bind_addr[1])
    server.serve()


def serve_https(ready: Ready) -> None:
    from werkzeug.serving import make_server

    server = make_server(HOST, 0, wsgi, threaded=True, ssl_context=certificate.server_context())
    ready(server.server_port)
    server.serve_forever()


def pool_with_requests(port: int) -> None:
    """One connection for many requests, chunked both ways, a streaming upload, several threads on one session."""
    from concurrent.futures import ThreadPoolExecutor

    import requests

    base = f"http://{HOST}:{port}"
    with requests.Session() as session:
        for number in range(20):
            assert session.get(f"{base}/hello?{number}", timeout=20).text == f"hello {number} from {HOST}"
        pools = session.get_adapter(base).poolmanager.pools
        made = [(pools[key].num_connections, pools[key].num_requests) for key in pools.keys()]  # noqa: SIM118 as it asks
        assert made == [(1, 20)], "requests did not reuse its connection"
        assert session.post(f"{base}/digest", data=iter(STREAMED), timeout=20).text == digest(WHOLE)
        with open("upload.bin", "w+b") as file:
            file.write(WHOLE)
            file.seek(0)
            assert session.post(f"{base}/digest", data=file, timeout=20).text == digest(WHOLE)
        with session.get(f"{base}/stream", stream=True, timeout=20) as answer:
            assert answer.headers["Transfer-Encoding"] == "chunked"
            received = hashlib.sha256()
            for block in answer.iter_content(7_000):
                received.update(block)
        assert received.hexdigest() == digest(WHOLE)
        assert session.get(f"{base}/nowhere", timeout=20).status_code == 404
        with ThreadPoolExecutor(5) as threads:
            texts = threads.map(lambda number: session.get(f"{base}/hello?{number}", timeout=20).text, range(25))
            assert list(texts) == [f"hello {number} from {HOST}" for number in range(25)]


def https_with_urllib3(port: int) -> None:
    import urllib3

    with urllib3.PoolManager(ca_certs=certificate.AUTHORITY, maxsize=4, retries=False, timeout=20) as pool:
        for number in range(5):
            answer = pool.request("GET", f"https://{HOST}:{port}/hello?{number}")
            assert (answer.status, answer.data) == (200, f"hello {number} from {HOST}".encode())
        assert pool.request("POST", f"https://{HOST}:{port}/digest", body=WHOLE).data == digest(WHOLE).encode()
        answer = pool.request("GET", f"https://{HOST}:{port}/stream", preload_content=False)
        assert b"".join(answer.stream(10_000)) == WHOLE
        answer.release_conn()
    with urllib3.PoolManager(retries=False, timeout=20) as pool:
        try:
            pool.request("GET", f"https://{HOST}:{port}/hello")
        except urllib3.exceptions.SSLError as error:
            assert "CERTIFICATE_VERIFY_FAILED" in str(error)
        else:
            raise AssertionError("a stranger's certificate was accepted")


def https_with_requests(port: int) -> None:
    import requests

    with requests.Session() as session:
        session.verify = certificate.AUTHORITY
        assert session.get(f"https://{HOST}:{port}/hello?tls", timeout=20).text == f"hello tls from {HOST}"
        assert session.post(f"https://{HOST}:{port}/digest", data=WHOLE, timeout=20).text == digest(WHOLE)
        assert session.get(f"https://{HOST}:{port}/stream", timeout=20).content == WHOLE


def ask_with_httpx(port: int) -> None:
    import httpx

    with httpx.Client(base_url=f"http://{HOST}:{port}", timeout=20) as client:
        for number in range(10):
            assert client.get(f"/hello?{number}").text == f"hello {number} from {HOST}"
        assert client.post("/digest", content=iter(STREAMED)).text == digest(WHOLE)
        with client.stream("GET", "/stream") as answer:
            assert b"".join(answer.iter_bytes(5_000)) == WHOLE
    try:
        httpx.get(f"http://{HOST}:1/", timeout=20)
    except httpx.ConnectError as error:
        assert "refused" in str(error)
    else:
        raise AssertionError("connected to a port where nobody listens")


def ask_with_async_httpx(port: int) -> None:
    import httpx

    async def main() -> None:
        async with httpx.AsyncClient(base_url=f"http://{HOST}:{port}", timeout=20) as client:
            answers = await asyncio.gather(*(client.get(f"/hello?{number}") for number in range(20)))
            assert [answer.text for answer in answers] == [f"hello {number} from {HOST}" for number in range(20)]
            assert (await client.post("/digest", content=WHOLE)).text == digest(WHOLE)
            async with client.stream("GET", "/stream") as answer:
                assert b"".join([block async for block in answer.aiter_bytes()]) == WHOLE

    asyncio.run(main())


def serve_aiohttp(ready: Ready) -> None:
    from aiohttp import web

    async def hello(request: web.Request) -> web.Response:
        return web.Response(text=f"hello {request.query_string} from {request.remote}")

    async def posted(request: web.Request) -> web.Response:
        received = hashlib.sha256()
        async for block in request.content.iter_any():
            received.update(block)
        return web.Response(text=received.hexdigest())

    async def stream(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        answer.enable_chunked_encoding()
        await answer.prepare(request)
        for block in STREAMED:
            await answer.write(block)
        return answer

    async def talk(request: web.Request) -> web.WebSocketResponse:
        channel = web.WebSocketResponse()
        await channel.prepare(request)
        async for message in channel:
            await channel.send_bytes(message.data[::-1])
        return channel

    async def main() -> None:
        app = web.Application()
        app.add_routes([web.get("/hello", hello), web.post("/digest", posted)])
        app.add_routes([web.get("/stream", stream), web.get("/talk", talk)])
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, HOST, 0, ssl_context=certificate.server_context())
        await site.start()
        ready(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(main())


def ask_with_aiohttp(port: int) -> None:
    import aiohttp

    async def main() -> None:
        connector = aiohttp.TCPConnector(ssl=certificate.client_context(), limit=5)
        timeout = aiohttp.ClientTimeout(20)
        async with aiohttp.ClientSession(f"https://{HOST}:{port}", connector=connector, timeout=timeout) as session:

            async def hello(number: int) -> str:
                async with session.get(f"/hello?{number}") as answer:
                    return await answer.text()

            texts = await asyncio.gather(*map(hello, range(20)))
            assert texts == [f"hello {number} from {HOST}" for number in range(20)]

            async def blocks() -> AsyncIterator[bytes]:
                for block in STREAMED:
                    yield block

            async with session.post("/digest", data=blocks()) as answer:
                assert await answer.text() == digest(WHOLE)
            async with session.get("/stream") as answer:
                assert await answer.read() == WHOLE
            async with session.ws_connect("/talk") as channel:
                await channel.send_bytes(noise(100_000))
                assert await channel.receive_bytes() == noise(100_000)[::-1]

    asyncio.run(main())


def ask_with_pycurl(port: int) -> None:
    """libcurl makes its sockets in C; with OPENSOCKETFUNCTION it takes one of ours, connected already."""
    import io
    import socket

    import pycurl

    def open_socket(purpose: int, address: tuple[int, int, int, tuple[str, int]]) -> socket.socket:
        sock = socket.socket(address[0], address[1])
        sock.connect(address[3])
        sock.setblocking(False)
        return sock

    curl = pycurl.Curl()
    curl.setopt(pycurl.OPENSOCKETFUNCTION, open_socket)
    curl.setopt(pycurl.SOCKOPTFUNCTION, lambda fd, purpose: pycurl.SOCKOPT_ALREADY_CONNECTED)
    curl.setopt(pycurl.PROXY, "")
    curl.setopt(pycurl.TIMEOUT, 20)
    for path, wanted in (("/hello?curl", f"hello curl from {HOST}".encode()), ("/stream", WHOLE)):
        body = io.BytesIO()
        curl.setopt(pycurl.URL, f"http://{HOST}:{port}{path}")
        curl.setopt(pycurl.WRITEDATA, body)
        curl.perform()
        assert curl.getinfo(pycurl.RESPONSE_CODE) == 200
        assert body.getvalue() == wanted
    body = io.BytesIO()
    curl.setopt(pycurl.URL, f"http://{HOST}:{port}/digest")
    curl.setopt(pycurl.WRITEDATA, body)
    curl.setopt(pycurl.POSTFIELDS, noise(100_000, 3).hex())
    curl.perform()
    assert body.getvalue().decode() == digest(noise(100_000, 3).hex().encode())
    curl.close()


def serve_http2(ready: Ready) -> None:
    """HTTP/2 by hypercorn, agreed on by ALPN."""
    import hypercorn.asyncio
    from hypercorn.config import Config, Sockets

    from compat.programs.web import asgi

    class Announced(Config):
        def create_sockets(self) -> Sockets:
            sockets = super().create_sockets()
            sockets.secure_sockets[0].listen(100)
            ready(sockets.secure_sockets[0].getsockname()[1])
            return sockets

    certificate.issue()
    config = Announced()
    config.bind = [f"{HOST}:0"]
    config.certfile = config.keyfile = certificate.IDENTITY
    asyncio.run(hypercorn.asyncio.serve(asgi, config, shutdown_trigger=asyncio.Event().wait))


def ask_for_http2(port: int) -> None:
    import httpx

    async def main() -> None:
        context: ssl.SSLContext = certificate.client_context()
        async with httpx.AsyncClient(
            base_url=f"https://{HOST}:{port}", timeout=20, verify=context, http2=True
        ) as client:
            answers = await asyncio.gather(*(client.get(f"/hello?{number}") for number in range(20)))
            assert {answer.http_version for answer in answers} == {"HTTP/2"}
            assert [answer.text for answer in answers] == [f"hello {number} from {HOST}" for number in range(20)]
            assert (await client.post("/digest", content=WHOLE)).text == digest(WHOLE)
            assert (await client.get("/stream")).content == WHOLE

    asyncio.run(main())


SCENARIOS = [
    Scenario("requests", ("requests", "cheroot"), serve_http, pool_with_requests, quick=True),
    Scenario("requests-https", ("requests", "werkzeug", "trustme"), serve_https, https_with_requests, quick=True),
    Scenario("urllib3-https", ("urllib3", "werkzeug", "trustme"), serve_https, https_with_urllib3),
    Scenario("httpx", ("httpx", "cheroot"), serve_http, ask_with_httpx, quick=True),
    Scenario("httpx-async", ("httpx", "cheroot"), serve_http, ask_with_async_httpx),
    Scenario("httpx-http2", ("httpx", "h2", "hypercorn", "trustme"), serve_http2, ask_for_http2),
    Scenario("aiohttp-tls", ("aiohttp", "trustme"), serve_aiohttp, ask_with_aiohttp, connections=5, quick=True),
    Scenario("pycurl", ("pycurl", "cheroot"), serve_http, ask_with_pycurl),
]

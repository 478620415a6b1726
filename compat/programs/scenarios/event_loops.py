"""Event loops older than asyncio, and beside it: Tornado, Twisted, Scrapy on it, trio and anyio."""

from __future__ import annotations

import asyncio
import ssl

from compat.programs import certificate
from compat.programs.scenario import Ready, Scenario
from compat.programs.web import HOST, STREAMED, digest, exercise, noise

WHOLE = b"".join(STREAMED)
PAGES = 30


def serve_tornado(ready: Ready) -> None:
    import tornado.httpserver
    import tornado.netutil
    import tornado.web
    import tornado.websocket

    class Hello(tornado.web.RequestHandler):
        def get(self) -> None:
            self.write(f"hello {self.request.query} from {self.request.remote_ip}")

    class Posted(tornado.web.RequestHandler):
        def post(self) -> None:
            self.write(digest(self.request.body))

    class Stream(tornado.web.RequestHandler):
        async def get(self) -> None:
            for block in STREAMED:
                self.write(block)
                await self.flush()

    class Echo(tornado.websocket.WebSocketHandler):
        async def on_message(self, message: str | bytes) -> None:
            await self.write_message(message[::-1], binary=isinstance(message, bytes))

    async def main() -> None:
        app = tornado.web.Application([("/hello", Hello), ("/digest", Posted), ("/stream", Stream), ("/echo", Echo)])
        sockets = tornado.netutil.bind_sockets(0, HOST)
        tornado.httpserver.HTTPServer(app).add_sockets(sockets)
        ready(sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    asyncio.run(main())


def ask_tornado(port: int) -> None:
    import tornado.httpclient
    import tornado.websocket

    exercise(port)

    async def main() -> None:
        client = tornado.httpclient.AsyncHTTPClient()
        headers = {"Content-Type": "application/octet-stream"}
        answer = await client.fetch(f"http://{HOST}:{port}/digest", method="POST", headers=headers, body=WHOLE)
        assert answer.body.decode() == digest(WHOLE)
        assert (await client.fetch(f"http://{HOST}:{port}/stream", request_timeout=20)).body == WHOLE
        channel = await tornado.websocket.websocket_connect(f"ws://{HOST}:{port}/echo")
        await channel.write_message(noise(200_000), binary=True)
        assert await channel.read_message() == noise(200_000)[::-1]
        channel.close()
        assert await channel.read_message() is None

    asyncio.run(main())


def serve_twisted(ready: Ready) -> None:
    from twisted.internet import reactor
    from twisted.web import resource, server

    class Hello(resource.Resource):
        isLeaf = True

        def render_GET(self, request: server.Request) -> bytes:
            query = request.uri.partition(b"?")[2]
            return b"hello %s from %s" % (query, request.getClientAddress().host.encode())

    class Posted(resource.Resource):
        isLeaf = True

        def render_POST(self, request: server.Request) -> bytes:
            return digest(request.content.read()).encode()

    class Stream(resource.Resource):
        isLeaf = True

        def render_GET(self, request: server.Request) -> int:
            blocks = iter(STREAMED)

            def more() -> None:
                block = next(blocks, None)
                if block is None:
                    request.finish()
                else:
                    request.write(block)
                    reactor.callLater(0, more)

            more()
            return server.NOT_DONE_YET

    root = resource.Resource()
    for name, page in ((b"hello", Hello()), (b"digest", Posted()), (b"stream", Stream())):
        root.putChild(name, page)
    port = reactor.listenTCP(0, server.Site(root), interface=HOST)
    ready(port.getHost().port)
    reactor.run(installSignalHandlers=False)


def ask_with_twisted_agent(port: int) -> None:
    from twisted.internet import defer, reactor, task
    from twisted.internet.error import ConnectionRefusedError
    from twisted.web.client import Agent, FileBodyProducer, HTTPConnectionPool, readBody

    exercise(port, chunked=False)

    @defer.inlineCallbacks
    def main(reactor):  # type: ignore[no-untyped-def]
        import io

        agent = Agent(reactor, pool=HTTPConnectionPool(reactor))
        base = f"http://{HOST}:{port}".encode()
        for number in range(5):
            answer = yield agent.request(b"GET", base + b"/hello?%d" % number)
            assert (yield readBody(answer)) == f"hello {number} from {HOST}".encode()
        answer = yield agent.request(b"POST", base + b"/digest", None, FileBodyProducer(io.BytesIO(WHOLE)))
        assert (yield readBody(answer)).decode() == digest(WHOLE)
        answer = yield agent.request(b"GET", base + b"/stream")
        assert (yield readBody(answer)) == WHOLE
        try:
            yield agent.request(b"GET", f"http://{HOST}:1/".encode())
        except ConnectionRefusedError:
            pass
        else:
            raise AssertionError("connected to a port where nobody listens")

    failures: list[BaseException] = []
    deferred = task.deferLater(reactor, 0, main, reactor)
    deferred.addErrback(lambda failure: failures.append(failure.value))
    deferred.addBoth(lambda _: reactor.stop())
    reactor.run(installSignalHandlers=False)
    if failures:
        raise failures[0]


def serve_twisted_tls(ready: Ready) -> None:
    from twisted.internet import reactor, ssl
    from twisted.internet.protocol import Factory
    from twisted.protocols.basic import LineReceiver

    class Reverse(LineReceiver):
        MAX_LENGTH = 1_000_000

        def lineReceived(self, line: bytes) -> None:
            self.sendLine(line[::-1])

    certificate.issue()
    with open(certificate.IDENTITY, encoding="utf-8") as file:
        identity = ssl.PrivateCertificate.loadPEM(file.read())
    port = reactor.listenSSL(0, Factory.forProtocol(Reverse), identity.options(), interface=HOST)
    ready(port.getHost().port)
    reactor.run(installSignalHandlers=False)


def ask_over_twisted_tls(port: int) -> None:
    """pyOpenSSL below Twisted on one side, Python's own ssl on the other."""
    import socket

    with socket.create_connection((HOST, port), timeout=20) as plain:
        with certificate.client_context().wrap_socket(plain, server_hostname=HOST) as secure:
            assert isinstance(secure, ssl.SSLSocket)
            line = noise(150_000).hex().encode()
            secure.sendall(line + b"\r\n")
            with secure.makefile("rb") as answers:
                assert answers.readline() == line[::-1] + b"\r\n"


def serve_pages(ready: Ready) -> None:
    import http.server

    class Pages(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            number = int(self.path[1:] or 0) if self.path[1:].isdigit() or self.path == "/" else None
            links = [] if number is None else [each for each in (2 * number + 1, 2 * number + 2) if each < PAGES]
            anchors = "".join(f'<a href="/{each}">{each}</a>' for each in links)
            page = f"<html><title>page {number}</title>{anchors}</html>".encode()
            self.send_response(404 if number is None else 200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

    with http.server.ThreadingHTTPServer((HOST, 0), Pages) as server:
        ready(server.server_port)
        server.serve_forever()


def crawl(port: int) -> None:
    import scrapy
    from scrapy.crawler import CrawlerProcess

    titles: list[str] = []

    class Spider(scrapy.Spider):
        name = "pages"
        start_urls = [f"http://{HOST}:{port}/"]

        def parse(self, response):  # type: ignore[no-untyped-def]
            titles.append(response.css("title::text").get())
            yield from response.follow_all(css="a", callback=self.parse)

    process = CrawlerProcess({"LOG_LEVEL": "WARNING", "TELNETCONSOLE_ENABLED": False, "DOWNLOAD_DELAY": 0})
    process.crawl(Spider)
    process.start(install_signal_handlers=False)
    assert sorted(titles) == sorted(f"page {number}" for number in range(PAGES)), titles


def serve_anyio(ready: Ready) -> None:
    import anyio

    async def reverse(stream) -> None:  # type: ignore[no-untyped-def]
        async with stream:
            received = b"".join([block async for block in stream])
            await stream.send(received[::-1])

    async def main() -> None:
        listening = await anyio.create_tcp_listener(local_host=HOST, local_port=0)
        ready(listening.extra(anyio.abc.SocketAttribute.local_port))
        await listening.serve(reverse)

    anyio.run(main, backend="asyncio")


def ask_with_trio(port: int) -> None:
    """Ten at once, each sending all, ending its side and reading the answer to the end."""
    import trio

    async def one(number: int) -> None:
        stream = await trio.open_tcp_stream(HOST, port)
        async with stream:
            data = noise(200_000, number)
            await stream.send_all(data)
            await stream.send_eof()
            received = bytearray()
            while block := await stream.receive_some():
                received += block
            assert bytes(received) == data[::-1]

    async def main() -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for number in range(10):
                    nursery.start_soon(one, number)

    trio.run(main)


SCENARIOS = [
    Scenario("tornado", ("tornado",), serve_tornado, ask_tornado, connections=9, quick=True),
    Scenario("twisted-web", ("twisted",), serve_twisted, ask_with_twisted_agent, connections=8, quick=True),
    Scenario(
        "twisted-tls", ("twisted", "pyOpenSSL", "service_identity", "trustme"), serve_twisted_tls, ask_over_twisted_tls
    ),
    Scenario("scrapy", ("scrapy",), serve_pages, crawl),
    Scenario("anyio-trio", ("anyio", "trio"), serve_anyio, ask_with_trio, connections=10),
]

"""Calls across: RPyC, Pyro5, tinyrpc, thriftpy2, JSON-RPC, gRPC in pure Python, Dask's scheduler and workers."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import Any

from compat.programs.scenario import Ready, Scenario
from compat.programs.web import HOST, noise


def serve_rpyc(ready: Ready, kind: str) -> None:
    import rpyc
    import rpyc.utils.server

    class Shop(rpyc.Service):
        def exposed_reverse(self, data: bytes) -> bytes:
            return data[::-1]

        def exposed_each(self, items: Any, call: Any) -> list[Any]:
            return [call(item) for item in items]

        def exposed_fail(self) -> None:
            raise KeyError("as asked")

    server = getattr(rpyc.utils.server, kind)(Shop, hostname=HOST, port=0)
    server._listen()
    ready(server.port)
    server.start()


def use_rpyc(port: int) -> None:
    import rpyc

    for _ in range(2):
        connection = rpyc.connect(HOST, port, config={"sync_request_timeout": 20})
        assert connection.root.reverse(noise(400_000)) == noise(400_000)[::-1]
        assert list(connection.root.each([1, 2, 3], lambda item: item * 10)) == [10, 20, 30]
        try:
            connection.root.fail()
        except KeyError as error:
            assert "as asked" in str(error)
        else:
            raise AssertionError("no error came through")
        later = rpyc.async_(connection.root.reverse)(b"later")
        later.wait()
        assert later.value == b"retal"
        connection.close()


def serve_pyro(ready: Ready) -> None:
    import Pyro5.api

    @Pyro5.api.expose
    class Shop:
        def reverse(self, text: str) -> str:
            return text[::-1]

        def count(self, up_to: int) -> Any:
            yield from range(up_to)

        def fail(self) -> None:
            raise ValueError("as asked")

    with Pyro5.api.Daemon(host=HOST, port=0) as daemon:
        daemon.register(Shop, "shop")
        ready(daemon.sock.getsockname()[1])
        daemon.requestLoop()


def use_pyro(port: int) -> None:
    import Pyro5.api

    with Pyro5.api.Proxy(f"PYRO:shop@{HOST}:{port}") as shop:
        text = noise(100_000).hex()
        assert shop.reverse(text) == text[::-1]
        assert list(shop.count(100)) == list(range(100))
        batch = Pyro5.api.BatchProxy(shop)
        for number in range(20):
            batch.reverse(f"{number} batched")
        assert list(batch()) == [f"{number} batched"[::-1] for number in range(20)]
        try:
            shop.fail()
        except ValueError as error:
            assert str(error) == "as asked"
        else:
            raise AssertionError("no error came through")


def serve_tinyrpc(ready: Ready) -> None:
    from tinyrpc.dispatch import RPCDispatcher
    from tinyrpc.protocols.jsonrpc import JSONRPCProtocol
    from tinyrpc.server import RPCServer
    from tinyrpc.transports.callback import CallbackServerTransport
    from werkzeug.serving import make_server

    dispatcher = RPCDispatcher()
    dispatcher.add_method(lambda text: text[::-1], "reverse")
    answers: list[bytes] = []

    def app(environ, start_response):  # type: ignore[no-untyped-def]
        asked = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        RPCServer(
            CallbackServerTransport(lambda: asked, answers.append), JSONRPCProtocol(), dispatcher
        ).receive_one_message()
        start_response("200 OK", [("Content-Type", "application/json")])
        return [answers.pop()]

    server = make_server(HOST, 0, app)
    ready(server.server_port)
    server.serve_forever()


def use_tinyrpc(port: int) -> None:
    from tinyrpc import RPCClient
    from tinyrpc.protocols.jsonrpc import JSONRPCProtocol
    from tinyrpc.transports.http import HttpPostClientTransport

    client = RPCClient(JSONRPCProtocol(), HttpPostClientTransport(f"http://{HOST}:{port}/"))
    shop = client.get_proxy()
    for number in range(10):
        text = noise(5_000, number).hex()
        assert shop.reverse(text) == text[::-1]


THRIFT = """
exception Refused { 1: string why }
struct Thing { 1: i32 number, 2: binary noise }
service Shop {
    list<Thing> things(1: i32 count) throws (1: Refused refused)
    binary reverse(1: binary data)
}
"""


def _thrift() -> Any:
    import thriftpy2

    Path("shop.thrift").write_text(THRIFT, encoding="utf-8")
    return thriftpy2.load("shop.thrift", module_name="shop_thrift")


def serve_thrift(ready: Ready) -> None:
    from thriftpy2.server import TThreadedServer
    from thriftpy2.thrift import TProcessor
    from thriftpy2.transport import TServerSocket

    shop = _thrift()

    class Shop:
        def things(self, count: int) -> list[Any]:
            if count < 0:
                raise shop.Refused("fewer than none")
            return [shop.Thing(number, noise(500, number)) for number in range(count)]

        def reverse(self, data: bytes) -> bytes:
            return data[::-1]

    class Announced(TServerSocket):
        def listen(self) -> None:
            super().listen()
            ready(self.sock.getsockname()[1])

    unbound = Announced(HOST, 1, client_timeout=20_000)
    unbound.port = 0  # which its constructor takes for none
    TThreadedServer(TProcessor(shop.Shop, Shop()), unbound, daemon=True).serve()


def use_thrift(port: int) -> None:
    from thriftpy2.rpc import client_context

    shop = _thrift()
    for _ in range(3):
        with client_context(shop.Shop, HOST, port, timeout=20_000) as client:
            assert client.things(200) == [shop.Thing(number, noise(500, number)) for number in range(200)]
            assert client.reverse(noise(300_000)) == noise(300_000)[::-1]
            try:
                client.things(-1)
            except shop.Refused as refused:
                assert refused.why == "fewer than none"
            else:
                raise AssertionError("no error came through")


def serve_jsonrpc(ready: Ready) -> None:
    from jsonrpclib.SimpleJSONRPCServer import PooledJSONRPCServer

    server = PooledJSONRPCServer((HOST, 0), logRequests=False)
    server.register_function(lambda text: text[::-1], "reverse")
    ready(server.server_address[1])
    server.serve_forever()


def use_jsonrpc(port: int) -> None:
    import jsonrpclib

    server = jsonrpclib.ServerProxy(f"http://{HOST}:{port}")
    text = noise(50_000).hex()
    assert server.reverse(text) == text[::-1]
    batch = jsonrpclib.MultiCall(server)
    for number in range(20):
        batch.reverse(str(number))
    assert list(batch()) == [str(number)[::-1] for number in range(20)]
    try:
        server.no_such_method()
    except jsonrpclib.ProtocolError as error:
        assert "no_such_method" in str(error)
    else:
        raise AssertionError("a method that does not exist was called")


class Raw:
    """A codec for grpclib that sends bytes as they are, in place of protocol buffers."""

    __content_subtype__ = "raw"

    def encode(self, message: bytes, message_type: object) -> bytes:
        return message

    def decode(self, data: bytes, message_type: object) -> bytes:
        return data


def serve_grpc(ready: Ready) -> None:
    import grpclib.const
    import grpclib.server

    class Shop:
        async def reverse(self, stream: Any) -> None:
            await stream.send_message((await stream.recv_message())[::-1])

        async def each(self, stream: Any) -> None:
            async for message in stream:
                await stream.send_message(message[::-1])

        def __mapping__(self) -> dict[str, Any]:
            handler, kind = grpclib.const.Handler, grpclib.const.Cardinality
            return {
                "/Shop/Reverse": handler(self.reverse, kind.UNARY_UNARY, bytes, bytes),
                "/Shop/Each": handler(self.each, kind.STREAM_STREAM, bytes, bytes),
            }

    async def main() -> None:
        server = grpclib.server.Server([Shop()], codec=Raw())
        await server.start(HOST, 0)
        ready(server._server.sockets[0].getsockname()[1])
        await server.wait_closed()

    asyncio.run(main())


def use_grpc(port: int) -> None:
    from grpclib.client import Channel, StreamStreamMethod, UnaryUnaryMethod
    from grpclib.exceptions import GRPCError

    async def main() -> None:
        async with Channel(HOST, port, codec=Raw()) as channel:
            reverse: Any = UnaryUnaryMethod(channel, "/Shop/Reverse", bytes, bytes)
            data = [noise(50_000, number) for number in range(8)]
            answers = await asyncio.gather(*(reverse(each, timeout=20) for each in data))
            assert answers == [each[::-1] for each in data]
            each_of: Any = StreamStreamMethod(channel, "/Shop/Each", bytes, bytes)
            async with each_of.open(timeout=20) as stream:
                for number in range(20):
                    await stream.send_message(noise(1000, number), end=number == 19)
                    assert await stream.recv_message() == noise(1000, number)[::-1]
            missing: Any = UnaryUnaryMethod(channel, "/Shop/Missing", bytes, bytes)
            try:
                await missing(b"", timeout=20)
            except GRPCError:
                pass
            else:
                raise AssertionError("a method that does not exist was called")

    asyncio.run(main())


def serve_dask(ready: Ready) -> None:
    from distributed import Scheduler, Worker

    async def main() -> None:
        async with Scheduler(host=HOST, port=0, dashboard=False) as scheduler:
            workers = [Worker(scheduler.address, host=HOST, nthreads=1, dashboard=False) for _ in range(2)]
            async with workers[0], workers[1]:
                ready(scheduler.port)
                await asyncio.Event().wait()

    asyncio.run(main())


def use_dask(port: int) -> None:
    from distributed import Client

    with Client(f"tcp://{HOST}:{port}", timeout=20) as client:
        squares = client.map(pow, range(100), [2] * 100, pure=False)
        assert client.submit(sum, squares).result(timeout=20) == sum(number**2 for number in range(100))
        (scattered,) = client.scatter([noise(2_000_000)])
        assert client.submit(len, scattered).result(timeout=20) == 2_000_000
        assert client.gather(scattered) == noise(2_000_000)


SCENARIOS = [
    Scenario("rpyc", ("rpyc",), functools.partial(serve_rpyc, kind="ThreadedServer"), use_rpyc, 2, quick=True),
    Scenario("rpyc-forking", ("rpyc",), functools.partial(serve_rpyc, kind="ForkingServer"), use_rpyc, 2),
    Scenario("Pyro5", ("Pyro5",), serve_pyro, use_pyro, quick=True),
    Scenario("tinyrpc", ("tinyrpc", "requests", "werkzeug"), serve_tinyrpc, use_tinyrpc),
    Scenario("thriftpy2", ("thriftpy2",), serve_thrift, use_thrift, connections=3),
    Scenario("jsonrpclib", ("jsonrpclib-pelix",), serve_jsonrpc, use_jsonrpc),
    Scenario("grpclib", ("grpclib",), serve_grpc, use_grpc, quick=True),
    Scenario("dask-distributed", ("distributed",), serve_dask, use_dask, connections=4),
]

"""Database clients, against servers in Python that speak their protocols: fakeredis, mysql-mimic, and scripted ones."""

from __future__ import annotations

import asyncio
import socketserver
import struct
from typing import Any

from compat.programs.scenario import Ready, Scenario
from compat.programs.web import HOST, noise


def serve_redis(ready: Ready) -> None:
    from fakeredis import TcpFakeServer

    server = TcpFakeServer((HOST, 0), server_type="redis")
    ready(server.server_address[1])
    server.serve_forever()


def use_redis(port: int) -> None:
    import redis

    with redis.Redis(HOST, port, socket_timeout=20) as client:
        assert client.ping()
        client.set("noise", noise(500_000))
        assert client.get("noise") == noise(500_000)
        with client.pipeline(transaction=False) as pipe:
            for number in range(200):
                pipe.incrby("sum", number)
            assert pipe.execute()[-1] == sum(range(200))
        client.rpush("list", *range(100))
        assert client.lrange("list", 0, -1) == [b"%d" % number for number in range(100)]
        try:
            client.lpush("noise", 1)
        except redis.ResponseError as error:
            assert "WRONGTYPE" in str(error)
        else:
            raise AssertionError("pushed to what is no list")


def use_redis_asyncio(port: int) -> None:
    import redis.asyncio

    async def main() -> None:
        async with redis.asyncio.Redis(host=HOST, port=port, socket_timeout=20) as client:
            await asyncio.gather(*(client.set(f"key{number}", noise(1000, number)) for number in range(20)))
            values = await client.mget([f"key{number}" for number in range(20)])
            assert values == [noise(1000, number) for number in range(20)]

    asyncio.run(main())


def serve_mysql(ready: Ready) -> None:
    from mysql_mimic import MysqlServer, Session

    class Numbers(Session):
        async def query(self, expression: Any, sql: str, attrs: Any) -> Any:
            if "fail" in sql:
                raise ValueError("as asked")
            return [(number, f"row {number}", number / 4) for number in range(3000)], ["number", "text", "ratio"]

    async def main() -> None:
        server = MysqlServer(session_factory=Numbers)
        await server.start_server(host=HOST, port=0)
        ready(server._server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


def use_pymysql(port: int) -> None:
    import pymysql

    with pymysql.connect(host=HOST, port=port, user="user", connect_timeout=20, read_timeout=20) as connection:
        with connection.cursor() as cursor:
            for _ in range(3):
                assert cursor.execute("SELECT number, text, ratio FROM numbers") == 3000
                assert cursor.fetchall() == tuple((number, f"row {number}", number / 4) for number in range(3000))
            try:
                cursor.execute("SELECT fail FROM numbers")
            except pymysql.MySQLError as error:
                assert "as asked" in str(error), error
            else:
                raise AssertionError("no error came through")
        connection.ping(reconnect=False)


def use_aiomysql(port: int) -> None:
    import aiomysql

    async def main() -> None:
        async with aiomysql.create_pool(host=HOST, port=port, user="user", minsize=3, connect_timeout=20) as pool:

            async def ask() -> list[tuple[Any, ...]]:
                async with pool.acquire() as connection, connection.cursor() as cursor:
                    await cursor.execute("SELECT number, text, ratio FROM numbers")
                    return list(await cursor.fetchall())

            for rows in await asyncio.gather(*(ask() for _ in range(6))):
                assert rows == [(number, f"row {number}", number / 4) for number in range(3000)]

    asyncio.run(main())


class Postgres(socketserver.StreamRequestHandler):
    """As much of PostgreSQL's protocol, version 3, as two clients need: every query is answered by the same rows."""

    ROWS = 2000
    TEXT, INTEGER = 25, 23
    wbufsize = 1 << 16

    def handle(self) -> None:
        size, code = struct.unpack("!II", self.rfile.read(8))
        if code == 80877103:  # may we speak TLS?
            self.wfile.write(b"N")
            self.wfile.flush()
            size, code = struct.unpack("!II", self.rfile.read(8))
        self.rfile.read(size - 8)
        self.reply(b"R", struct.pack("!I", 0))
        for name, value in (("server_version", "16.0"), ("client_encoding", "UTF8"), ("integer_datetimes", "on")):
            self.reply(b"S", f"{name}\0{value}\0".encode())
        self.reply(b"K", struct.pack("!II", 1, 2))
        self.reply(b"Z", b"I")
        while kind := self.rfile.read(1):
            body = self.rfile.read(struct.unpack("!I", self.rfile.read(4))[0] - 4)
            if kind == b"X":
                return
            self.answer(kind, body)
            self.wfile.flush()

    def answer(self, kind: bytes, body: bytes) -> None:
        if kind == b"Q" and body.startswith((b"begin", b"commit", b"BEGIN", b"COMMIT")):
            self.reply(b"C", body.split(b"\0")[0].upper() + b"\0")
        elif kind == b"Q" or kind == b"E":
            if kind == b"Q":
                self.describe()
            for number in range(self.ROWS):
                fields = [str(number).encode(), f"row {number}".encode()]
                self.reply(
                    b"D", struct.pack("!H", 2) + b"".join(struct.pack("!I", len(each)) + each for each in fields)
                )
            self.reply(b"C", b"SELECT %d\0" % self.ROWS)
        elif kind == b"P":
            self.reply(b"1", b"")
        elif kind == b"B":
            self.reply(b"2", b"")
        elif kind == b"C":
            self.reply(b"3", b"")
        elif kind == b"D":
            if body[:1] == b"S":
                self.reply(b"t", struct.pack("!H", 0))
            self.describe()
        if kind in b"QS":
            self.reply(b"Z", b"I")

    def describe(self) -> None:
        columns = b"".join(
            name + b"\0" + struct.pack("!IHIhih", 0, 0, kind, size, -1, 0)
            for name, kind, size in ((b"number", self.INTEGER, 4), (b"text", self.TEXT, -1))
        )
        self.reply(b"T", struct.pack("!H", 2) + columns)

    def reply(self, kind: bytes, body: bytes) -> None:
        self.wfile.write(kind + struct.pack("!I", len(body) + 4) + body)
        if kind == b"Z":
            self.wfile.flush()


def serve_scripted(ready: Ready, handler: type[socketserver.BaseRequestHandler]) -> None:
    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server((HOST, 0), handler) as server:
        ready(server.server_address[1])
        server.serve_forever()


def serve_postgres(ready: Ready) -> None:
    serve_scripted(ready, Postgres)


def use_pg8000(port: int) -> None:
    import pg8000.native

    with pg8000.native.Connection("user", host=HOST, port=port, timeout=20) as connection:
        for _ in range(3):
            rows = connection.run("SELECT number, text FROM numbers WHERE text <> :text", text="none")
            assert rows == [[number, f"row {number}"] for number in range(Postgres.ROWS)]
        assert [column["name"] for column in connection.columns] == ["number", "text"]


def use_asyncpg(port: int) -> None:
    import asyncpg

    async def main() -> None:
        connection = await asyncpg.connect(host=HOST, port=port, user="user", password="", timeout=20, ssl=False)
        assert await connection.execute("SELECT number, text FROM numbers") == f"SELECT {Postgres.ROWS}"
        assert connection.get_server_version()[0] == 16
        connection.terminate()

    asyncio.run(main())


class Mongo(socketserver.StreamRequestHandler):
    """A MongoDB that keeps what is inserted in a list and finds all of it."""

    kept: list[Any] = []

    def handle(self) -> None:
        import bson

        while header := self.rfile.read(16):
            size, request, _, kind = struct.unpack("<iiii", header)
            body = self.rfile.read(size - 16)
            if kind == 2004:  # OP_QUERY, for the first hello
                start = body.index(b"\0", 4) + 9
                command = bson.decode(body[start:])
                document = bson.encode(self.answer(command, {}))
                answer = struct.pack("<iqii", 8, 0, 0, 1) + document
                kind = 1
            else:
                command, sequences = self.sections(body)
                answer = struct.pack("<iB", 0, 0) + bson.encode(self.answer(command, sequences))
                kind = 2013
            self.wfile.write(struct.pack("<iiii", len(answer) + 16, 1, request, kind) + answer)

    def sections(self, body: bytes) -> tuple[dict[str, Any], dict[str, list[Any]]]:
        import bson

        command: dict[str, Any] = {}
        sequences: dict[str, list[Any]] = {}
        at = 4
        while at < len(body):
            size = struct.unpack_from("<i", body, at + 1)[0]
            content = body[at + 1 : at + 1 + size]
            if body[at] == 0:
                command = bson.decode(content)
            else:
                name, _, documents = content[4:].partition(b"\0")
                sequences[name.decode()] = bson.decode_all(documents)
            at += 1 + size
        return command, sequences

    def answer(self, command: dict[str, Any], sequences: dict[str, list[Any]]) -> dict[str, Any]:
        verb = next(iter(command))
        if verb == "insert":
            documents = sequences.get("documents", command.get("documents", []))
            self.kept.extend(documents)
            return {"ok": 1, "n": len(documents)}
        if verb == "find":
            return {"ok": 1, "cursor": {"id": 0, "ns": "test.things", "firstBatch": self.kept}}
        facts = {"ok": 1, "isWritablePrimary": True, "helloOk": True, "minWireVersion": 0, "maxWireVersion": 21}
        return facts | {"maxBsonObjectSize": 1 << 24, "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000}


def serve_mongo(ready: Ready) -> None:
    serve_scripted(ready, Mongo)


def use_pymongo(port: int) -> None:
    import pymongo

    with pymongo.MongoClient(HOST, port, serverSelectionTimeoutMS=15_000) as client:
        things = client.test.things
        written = [{"_id": number, "noise": noise(1000, number)} for number in range(300)]
        things.insert_many(written)
        assert list(things.find()) == written


class Memcache(socketserver.StreamRequestHandler):
    """memcached's text protocol: set and get."""

    kept: dict[bytes, bytes] = {}

    def handle(self) -> None:
        while line := self.rfile.readline().split():
            if line[0] == b"set":
                self.kept[line[1]] = self.rfile.read(int(line[4]))
                self.rfile.readline()
                self.wfile.write(b"STORED\r\n")
            elif line[0] in (b"get", b"gets"):
                found = [(key, self.kept[key]) for key in line[1:] if key in self.kept]
                for key, value in found:
                    self.wfile.write(b"VALUE %s 0 %d\r\n%s\r\n" % (key, len(value), value))
                self.wfile.write(b"END\r\n")


def serve_memcache(ready: Ready) -> None:
    serve_scripted(ready, Memcache)


def use_pymemcache(port: int) -> None:
    from pymemcache.client.base import PooledClient

    client = PooledClient((HOST, port), timeout=20, no_delay=True, max_pool_size=4, default_noreply=False)
    for number in range(50):
        assert client.set(f"key{number}", noise(10_000, number))
    many = client.get_many([f"key{number}" for number in range(60)])
    assert many == {f"key{number}": noise(10_000, number) for number in range(50)}
    assert client.get("missing") is None
    client.close()


SCENARIOS = [
    Scenario("redis", ("redis", "fakeredis"), serve_redis, use_redis, quick=True),
    Scenario("redis-asyncio", ("redis", "fakeredis"), serve_redis, use_redis_asyncio),
    Scenario("pymysql", ("pymysql", "mysql-mimic"), serve_mysql, use_pymysql, quick=True),
    Scenario("aiomysql", ("aiomysql", "mysql-mimic"), serve_mysql, use_aiomysql, connections=3),
    Scenario("pg8000", ("pg8000",), serve_postgres, use_pg8000, quick=True),
    Scenario("asyncpg", ("asyncpg",), serve_postgres, use_asyncpg),
    Scenario("pymongo", ("pymongo",), serve_mongo, use_pymongo, connections=2),
    Scenario("pymemcache", ("pymemcache",), serve_memcache, use_pymemcache),
]

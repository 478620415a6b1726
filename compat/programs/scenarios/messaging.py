"""Messages passed on: MQTT by a broker in Python, NATS and STOMP by scripted ones, IRC."""

from __future__ import annotations

import asyncio
import socketserver
import threading
from typing import Any

from compat.programs.scenario import Ready, Scenario
from compat.programs.web import HOST, listener, noise

MESSAGES = 40


def serve_mqtt(ready: Ready) -> None:
    from amqtt.broker import Broker

    async def main() -> None:
        with listener() as probe:
            port = probe.getsockname()[1]
        config = {
            "listeners": {"default": {"type": "tcp", "bind": f"{HOST}:{port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
        broker = Broker(config)
        await broker.start()
        ready(port)
        await asyncio.Event().wait()

    asyncio.run(main())


def publish_with_paho(port: int) -> None:
    """Each quality of service, a retained message, a will."""
    import queue

    from paho.mqtt.client import CallbackAPIVersion, Client, MQTTv311

    received_messages: queue.Queue[tuple[str, bytes]] = queue.Queue()

    def client(name: str) -> Any:
        made = Client(CallbackAPIVersion.VERSION2, name, protocol=MQTTv311)
        connected = threading.Event()
        made.on_connect = lambda *_: connected.set()
        made.will_set(f"left/{name}", b"gone", qos=1)
        made.connect(HOST, port)
        made.loop_start()
        assert connected.wait(15)
        return made

    reader = client("reader")
    subscribed = threading.Event()
    reader.on_subscribe = lambda *_: subscribed.set()
    reader.on_message = lambda _, __, message: received_messages.put((message.topic, message.payload))
    reader.subscribe([("noise/#", 2), ("left/#", 1)])
    assert subscribed.wait(15)
    writer = client("writer")
    for number in range(MESSAGES):
        writer.publish(f"noise/{number}", noise(3_000, number), qos=number % 3).wait_for_publish(15)
    got = dict(received_messages.get(timeout=15) for _ in range(MESSAGES))
    assert got == {f"noise/{number}": noise(3_000, number) for number in range(MESSAGES)}
    writer._sock_close()  # a writer that dies without a word
    assert received_messages.get(timeout=15) == ("left/writer", b"gone")
    writer.loop_stop()
    reader.disconnect()
    reader.loop_stop()


class Nats(socketserver.StreamRequestHandler):
    """NATS: subscriptions by exact subject, shared by all connections."""

    subscriptions: dict[bytes, list[tuple[Nats, bytes]]] = {}
    guard = threading.Lock()

    def handle(self) -> None:
        self.reply(b'INFO {"server_id":"s","version":"2.0.0","max_payload":1048576,"headers":true}\r\n')
        while line := self.rfile.readline().split():
            verb = line[0].upper()
            if verb == b"PING":
                self.reply(b"PONG\r\n")
            elif verb == b"SUB":
                with self.guard:
                    self.subscriptions.setdefault(line[1], []).append((self, line[-1]))
            elif verb == b"PUB":
                payload = self.rfile.read(int(line[-1]) + 2)
                answer_to = b" " + line[2] if len(line) == 4 else b""
                with self.guard:
                    known = [
                        each
                        for subject, those in self.subscriptions.items()
                        if subject == line[1] or (subject.endswith(b"*") and line[1].startswith(subject[:-1]))
                        for each in those
                    ]
                for connection, number in known:
                    head = b"MSG %s %s%s %d\r\n" % (line[1], number, answer_to, len(payload) - 2)
                    connection.reply(head + payload)

    def reply(self, data: bytes) -> None:
        self.wfile.write(data)


def serve_nats(ready: Ready) -> None:
    with socketserver.ThreadingTCPServer((HOST, 0), Nats) as server:
        ready(server.server_address[1])
        server.serve_forever()


def use_nats(port: int) -> None:
    import nats

    async def main() -> None:
        asker = await nats.connect(f"nats://{HOST}:{port}")
        worker = await nats.connect(f"nats://{HOST}:{port}")

        async def work(message: Any) -> None:
            await message.respond(message.data[::-1])

        await worker.subscribe("work", cb=work)
        await worker.flush()
        for number in range(MESSAGES):
            answer = await asker.request("work", noise(2_000, number), timeout=15)
            assert answer.data == noise(2_000, number)[::-1]
        await asker.close()
        await worker.close()

    asyncio.run(main())


class Stomp(socketserver.BaseRequestHandler):
    """STOMP 1.2: what is sent to a destination comes back to its subscribers on this connection."""

    def handle(self) -> None:
        subscriptions: dict[str, str] = {}
        buffered = b""
        count = 0
        while data := self.request.recv(65536):
            buffered += data
            while b"\0" in buffered:
                frame, _, buffered = buffered.partition(b"\0")
                head, _, body = frame.lstrip(b"\r\n").replace(b"\r\n", b"\n").partition(b"\n\n")
                verb, *lines = head.decode().split("\n")
                headers = dict(line.split(":", 1) for line in lines)
                if verb in ("CONNECT", "STOMP"):
                    self.reply("CONNECTED", {"version": "1.2", "heart-beat": "0,0"})
                elif verb == "SUBSCRIBE":
                    subscriptions[headers["destination"]] = headers["id"]
                elif verb == "SEND":
                    count += 1
                    facts = {"subscription": subscriptions[headers["destination"]], "message-id": str(count)}
                    self.reply("MESSAGE", facts | {"destination": headers["destination"]}, body)
                if "receipt" in headers:
                    self.reply("RECEIPT", {"receipt-id": headers["receipt"]})

    def reply(self, verb: str, headers: dict[str, str], body: bytes = b"") -> None:
        lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
        self.request.sendall(f"{verb}\n{lines}\n".encode() + body + b"\0")


def serve_stomp(ready: Ready) -> None:
    with socketserver.ThreadingTCPServer((HOST, 0), Stomp) as server:
        ready(server.server_address[1])
        server.serve_forever()


def use_stomp(port: int) -> None:
    import queue

    import stomp

    received_messages: queue.Queue[Any] = queue.Queue()

    class Listener(stomp.ConnectionListener):
        def on_message(self, frame: Any) -> None:
            received_messages.put(("message", frame.body))

        def on_receipt(self, frame: Any) -> None:
            received_messages.put(("receipt", frame.headers["receipt-id"]))

    connection = stomp.Connection12([(HOST, port)])
    connection.set_listener("", Listener())
    connection.connect(wait=True)
    connection.subscribe("/queue/noise", id="1")
    for number in range(MESSAGES):
        connection.send("/queue/noise", noise(2_000, number).hex())
    received = [received_messages.get(timeout=15) for _ in range(MESSAGES)]
    assert received == [("message", noise(2_000, number).hex()) for number in range(MESSAGES)]
    connection.disconnect(receipt="bye")
    assert received_messages.get(timeout=15) == ("receipt", "bye")


def serve_irc(ready: Ready) -> None:
    import irc.server

    server = irc.server.IRCServer((HOST, 0), irc.server.IRCClient)
    ready(server.server_address[1])
    server.serve_forever()


def chat_on_irc(port: int) -> None:
    """Two people in a channel hear each other."""
    import irc.client

    reactor = irc.client.Reactor()
    received_messages: list[tuple[str, str]] = []
    joined: set[str] = set()
    people = {name: reactor.server().connect(HOST, port, name) for name in ("ann", "bob")}

    def on_welcome(connection: Any, event: Any) -> None:
        connection.join("#utp")

    def on_namreply(connection: Any, event: Any) -> None:
        joined.add(connection.get_nickname())
        if len(joined) == 2 and "ann" in joined:
            for number in range(10):
                people["ann"].privmsg("#utp", f"line {number}")

    def on_pubmsg(connection: Any, event: Any) -> None:
        received_messages.append((event.source.nick, event.arguments[0]))

    reactor.add_global_handler("welcome", on_welcome)
    reactor.add_global_handler("endofnames", on_namreply)
    reactor.add_global_handler("pubmsg", on_pubmsg)
    for _ in range(150):
        reactor.process_once(0.1)
        if len(received_messages) == 10:
            break
    assert received_messages == [("ann", f"line {number}") for number in range(10)], received_messages
    for connection in people.values():
        connection.quit()


SCENARIOS = [
    Scenario("paho-mqtt", ("paho-mqtt", "amqtt"), serve_mqtt, publish_with_paho, connections=2, quick=True),
    Scenario("nats", ("nats-py",), serve_nats, use_nats, connections=2),
    Scenario("stomp.py", ("stomp.py",), serve_stomp, use_stomp),
    Scenario("irc", ("irc",), serve_irc, chat_on_irc, connections=2),
]

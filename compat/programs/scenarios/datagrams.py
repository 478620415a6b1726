"""A UDP socket and a TCP socket at one address, as programs have that know of no uTP: STUN, a DHT, a DNS server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from compat.programs.scenario import Ready, Scenario
from compat.programs.web import HOST, digest, noise

FILE: Final = noise(2_000_000)
PATIENCE_S: Final = 60
QUESTIONS: Final = 50


def both(port: int = 0) -> tuple[socket.socket, socket.socket]:
    """A stream socket and a UDP socket, bound to one address."""
    stream, udp = socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((HOST, port))
    stream.bind(udp.getsockname())
    return stream, udp


def serve_file(listener: socket.socket) -> None:
    """Each connection gets the file."""
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(FILE)


def answer_datagrams(udp: socket.socket, answer: Callable[[bytes, Any], bytes | None]) -> None:
    while True:
        data, address = udp.recvfrom(2_000)
        reply = answer(data, address)
        if reply is not None:
            udp.sendto(reply, address)


def serve_both(ready: Ready, answer: Callable[[bytes, Any], bytes | None]) -> None:
    listener, udp = both()
    listener.listen()
    threading.Thread(target=serve_file, args=(listener,), daemon=True).start()
    ready(udp.getsockname()[1])
    answer_datagrams(udp, answer)


@contextlib.contextmanager
def fetching(sock: socket.socket, port: int) -> Iterator[None]:
    """Fetch the file meanwhile, over this socket."""
    received: list[str] = []

    def fetch() -> None:
        with sock:
            sock.settimeout(PATIENCE_S)
            sock.connect((HOST, port))
            with sock.makefile("rb") as stream:
                received.append(digest(stream.read()))

    thread = threading.Thread(target=fetch)
    thread.start()
    yield
    thread.join(PATIENCE_S)
    assert received == [digest(FILE)]


# ── STUN ──


def serve_stun(ready: Ready) -> None:
    from aioice import stun

    def answer(data: bytes, address: Any) -> bytes | None:
        request = stun.parse_message(data)
        answered = stun.Message(
            message_method=stun.Method.BINDING,
            message_class=stun.Class.RESPONSE,
            transaction_id=request.transaction_id,
        )
        answered.attributes["XOR-MAPPED-ADDRESS"] = address
        return bytes(answered)

    serve_both(ready, answer)


def ask_stun(port: int) -> None:
    """From the port that fetches a file at the same time."""
    from aioice import ice

    stream, udp = both()
    host, number = udp.getsockname()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        udp.setblocking(False)
        transport, protocol = await loop.create_datagram_endpoint(
            lambda: ice.StunProtocol(ice.Connection(ice_controlling=True)), sock=udp
        )
        protocol.local_candidate = ice.Candidate("f", 1, "udp", 1, host, number, "host")
        for _ in range(QUESTIONS):
            candidate, _ = await ice.server_reflexive_candidate(protocol, (HOST, port))
            assert (candidate.type, candidate.host, candidate.port) == ("srflx", host, number)
        transport.close()

    with fetching(stream, port):
        asyncio.run(main())


# ── a DHT ──

INFO_HASH: Final = bytes.fromhex(digest(b"a torrent")[:40])


def serve_dht(ready: Ready) -> None:
    """A node of BEP 5 that knows one peer of a torrent: itself."""
    import libtorrent as lt

    node_id = noise(20, 2)
    own_peer = b""

    def announced(port: int) -> None:
        nonlocal own_peer
        own_peer = socket.inet_aton(HOST) + port.to_bytes(2, "big")
        ready(port)

    def answer(data: bytes, address: Any) -> bytes | None:
        query = lt.bdecode(data)
        if query[b"y"] != b"q":
            return None
        reply: dict[bytes, Any] = {b"id": node_id}
        if query[b"q"] in (b"find_node", b"get_peers"):
            reply[b"nodes"] = b""
        if query[b"q"] == b"get_peers":
            reply[b"token"] = b"token"
            if query[b"a"][b"info_hash"] == INFO_HASH:
                reply[b"values"] = [own_peer]
        return bytes(lt.bencode({b"t": query[b"t"], b"y": b"r", b"r": reply}))

    serve_both(announced, answer)


def ask_dht(port: int) -> None:
    """libtorrent's node asks for peers and gets the address that it has asked at: a connection to it fetches a file."""
    import libtorrent as lt

    session = lt.session(
        {
            "listen_interfaces": f"{HOST}:0",
            "enable_dht": True,
            "enable_lsd": False,
            "enable_upnp": False,
            "enable_natpmp": False,
            "dht_bootstrap_nodes": "",
            # Addresses like 127.0.0.1 are no nodes of the real DHT.
            "dht_restrict_routing_ips": False,
            "dht_restrict_search_ips": False,
            "dht_enforce_node_id": False,
            "dht_ignore_dark_internet": False,
            "alert_mask": lt.alert.category_t.dht_notification | lt.alert.category_t.dht_operation_notification,
        }
    )
    info_hash = lt.sha1_hash(INFO_HASH)
    with fetching(socket.socket(), port):
        deadline = time.monotonic() + PATIENCE_S
        peers: list[Any] = []
        asked_at = 0.0
        while (HOST, port) not in peers:
            assert time.monotonic() < deadline, "no peer was found"
            if time.monotonic() >= asked_at + 1:
                asked_at = time.monotonic()
                session.add_dht_node((HOST, port))
                session.dht_get_peers(info_hash)
            session.wait_for_alert(100)
            for alert in session.pop_alerts():
                if isinstance(alert, lt.dht_get_peers_reply_alert):
                    peers += [tuple(peer) for peer in alert.peers()]
    with fetching(socket.socket(), port):
        pass


# ── DNS over UDP and TCP ──

TEXTS: Final = [noise(100, number).hex() for number in range(100)]  # too long for a datagram of DNS


def serve_names(ready: Ready) -> None:
    from twisted.internet import defer, reactor
    from twisted.names import dns, server

    class Names:
        def query(self, query: dns.Query, timeout: Any = None) -> Any:
            texts = TEXTS if query.name.name.startswith(b"long") else TEXTS[:1]
            payload = dns.Record_TXT(*[text.encode() for text in texts], ttl=60)
            answer = dns.RRHeader(name=query.name.name, type=dns.TXT, payload=payload, auth=True)
            return defer.succeed(([answer], [], []))

    factory = server.DNSServerFactory(clients=[Names()])
    port = reactor.listenTCP(0, factory, interface=HOST)
    reactor.listenUDP(port.getHost().port, dns.DNSDatagramProtocol(factory), interface=HOST)
    ready(port.getHost().port)
    reactor.run(installSignalHandlers=False)


def ask_names(port: int) -> None:
    """By UDP and by TCP, and by TCP alone what is too long for a datagram."""
    import dns.message
    import dns.query
    import dns.rdatatype

    def texts(answer: Any) -> list[str]:
        return [text.decode() for record in answer.answer[0] for text in record.strings]

    for number in range(20):
        short = dns.message.make_query(f"{number}.example", "TXT")
        assert texts(dns.query.udp(short, HOST, timeout=20, port=port)) == TEXTS[:1]
        assert texts(dns.query.tcp(short, HOST, timeout=20, port=port)) == TEXTS[:1]
        long = dns.message.make_query(f"long{number}.example", "TXT")
        assert texts(dns.query.tcp(long, HOST, timeout=20, port=port)) == TEXTS


SCENARIOS = [
    Scenario("aioice-stun", ("aioice",), serve_stun, ask_stun, quick=True),
    Scenario("libtorrent-dht", ("libtorrent",), serve_dht, ask_dht, connections=2, quick=True),
    Scenario("twisted-names", ("twisted", "dnspython"), serve_names, ask_names, connections=40, quick=True),
]

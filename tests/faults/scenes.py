"""The play during which a fault is injected: ten scenes, each of one connection or socket, which may end in an OSError.

What must not happen in them, whatever is injected: that one waits for ever, or reads a false end of file, or what is
no OSError; or that several pay for one fault.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket as stdlib
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import utpsocket
from utpsocket.sockets.rules import Routes

PATIENCE_S = 20.0  # the machine may be busy; a connection that lost its wake-up waits for ever
BULK_BYTES = 300_000
LOCAL = ("127.0.0.1", 0)
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class FallingBack(utpsocket.socket):
    _routes = Routes(fallback="tcp", fallback_seconds=0.02)


class OfBoth(utpsocket.socket):
    _routes = Routes(listen="both")


class Wrong(Exception):
    """Something that must never happen."""


class Lost(Exception):
    """Several connections of one scene, or one of several, with what each call raised."""

    def __init__(self, errors: list[OSError]) -> None:
        super().__init__(*errors)
        self.errors = errors


def made(kind: type[utpsocket.socket] = utpsocket.socket) -> utpsocket.socket:
    sock = kind()
    sock.settimeout(PATIENCE_S)
    return sock


@contextlib.contextmanager
def closing_all() -> Iterator[list[Any]]:
    opened: list[Any] = []
    try:
        yield opened
    finally:
        for sock in opened:
            with contextlib.suppress(OSError):
                sock.close()


def pair(opened: list[Any], client: utpsocket.socket | None = None) -> tuple[Any, Any]:
    listener = made()
    opened.append(listener)
    listener.bind(LOCAL)
    listener.listen(8)
    return accepted(opened, listener, client or made())


def accepted(opened: list[Any], listener: Any, client: Any) -> tuple[Any, Any]:
    opened.append(client)
    client.connect(listener.getsockname())
    server = accept(listener, client)
    opened.append(server)
    return client, server


def only_for_tcp(make: Callable[[], Any], opened: list[Any]) -> Any:
    """What this makes, a TCP socket at a port that the kernel chooses, where uTP is refused by ICMP, whatever other
    programs of this machine do meanwhile: a UDP socket has the port, and receives only from itself.
    """
    while True:
        tcp = make()
        udp = stdlib.socket(type=stdlib.SOCK_DGRAM)
        opened += tcp, udp
        try:
            udp.bind(tcp.getsockname())
        except OSError as problem:
            if problem.errno != errno.EADDRINUSE:
                raise
            continue  # somebody may listen there, whom a client would find
        udp.connect(udp.getsockname())
        return tcp


def nobody(opened: list[Any]) -> Any:
    """An address at which nobody listens, by TCP or by uTP, nor will."""

    def bound() -> Any:
        tcp = stdlib.socket()
        tcp.bind(LOCAL)
        return tcp

    return only_for_tcp(bound, opened).getsockname()


def accept(listener: Any, client: Any) -> Any:
    """The connection of this client; or the client's error, where it was reset before anybody could accept it."""
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    poller.register(client, select.POLLIN)
    deadline = time.monotonic() + PATIENCE_S
    while found := poller.poll(max(0, deadline - time.monotonic()) * 1_000):
        if any(fd == listener.fileno() for fd, _ in found):
            server, _ = listener.accept()
            server.settimeout(PATIENCE_S)
            return server
        if not client.recv(1):
            raise Wrong("a false end of file instead of a connection")
    raise TimeoutError("a connection that stands is never accepted")


def carry(sender: Any, receiver: Any, count: int) -> None:
    """Send so many bytes and end; the receiver must see all of them before an end of file, or an errno."""
    payload = memoryview(os.urandom(1024) * (count // 1024 + 1))[:count]
    got = bytearray()
    error: list[OSError] = []

    def send() -> None:
        try:
            sender.sendall(payload)
            sender.shutdown(stdlib.SHUT_WR)
        except OSError as problem:
            error.append(problem)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        while data := receiver.recv(65_536):
            got += data
    finally:
        thread.join()
    if bytes(got) != payload[: len(got)]:
        raise Wrong("bytes arrived that were never sent, or in another order")
    if len(got) != count and not error:
        raise Wrong(f"a false end of file: {len(got)} of {count} bytes, and the sender knows nothing")
    if len(got) != count:
        raise Wrong(f"a false end of file: {len(got)} of {count} bytes; the sender got {error[0]!r}")
    if error:
        raise error[0]


# ── the play: each scene is one connection, or one socket, and may end in an OSError ──


def scene_bulk(opened: list[Any]) -> None:
    client, server = pair(opened)
    carry(client, server, BULK_BYTES)
    carry(server, client, 20_000)


def scene_bound(opened: list[Any]) -> None:
    client = made()
    client.bind(LOCAL)
    client, server = pair(opened, client)
    client.setsockopt(stdlib.IPPROTO_TCP, stdlib.TCP_NODELAY, 1)
    carry(server, client, 5_000)
    server.close()
    client.getpeername()


def scene_reset(opened: list[Any]) -> None:
    client, server = pair(opened)
    client.sendall(b"x" * 1_000)
    client.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_LINGER, RESET_ON_CLOSE)
    client.close()
    try:
        while server.recv(1_000):
            pass
    except ConnectionResetError:
        return
    raise Wrong("a reset was reported as an end of file")


def scene_unread(opened: list[Any]) -> None:
    """A close that leaves bytes unread resets."""
    client, server = pair(opened)
    server.sendall(b"x" * 10_000)
    client.recv(1)
    client.close()
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        server.recv(1)
        server.send(b"y")


def scene_refused(opened: list[Any]) -> None:
    address = nobody(opened)
    client = made()
    opened.append(client)
    try:
        client.connect(address)
    except ConnectionRefusedError:
        return
    raise Wrong("connected to nobody")


def scene_nonblocking(opened: list[Any]) -> None:
    listener = made()
    opened.append(listener)
    listener.bind(LOCAL)
    listener.listen(8)
    client = utpsocket.socket()
    opened.append(client)
    client.setblocking(False)
    code = client.connect_ex(listener.getsockname())
    if code not in (0, errno.EINPROGRESS):
        raise OSError(code, os.strerror(code))
    poller = select.poll()
    poller.register(client, select.POLLOUT)
    if not poller.poll(PATIENCE_S * 1_000):
        raise TimeoutError("a connect that does not block never ends")
    code = client.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))
    client.settimeout(PATIENCE_S)
    server = accept(listener, client)
    opened.append(server)
    carry(client, server, 10)


def scene_lingering(opened: list[Any]) -> None:
    client, server = pair(opened)
    client.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_LINGER, struct.pack("ii", 1, 5))
    client.sendall(b"x" * 50_000)
    reader = threading.Thread(target=lambda: drained(server))
    reader.start()
    client.close()
    reader.join()


def drained(sock: Any) -> None:
    with contextlib.suppress(OSError):
        while sock.recv(65_536):
            pass


def scene_backlog(opened: list[Any]) -> None:
    """Several at once, one of them never accepted: each of the others that is lost counts."""
    listener = made()
    opened.append(listener)
    listener.bind(LOCAL)
    listener.listen(8)
    lost: list[OSError] = []
    waiting: dict[Any, Any] = {}
    for _ in range(4):
        client = made()
        opened.append(client)
        try:
            client.connect(listener.getsockname())
            client.send(b"hello")
            waiting[client.getsockname()] = client
        except TimeoutError:
            raise
        except OSError as problem:
            lost.append(problem)
    pairs: list[tuple[Any, Any]] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(waiting) > 1:
        poller = select.poll()
        for sock in (listener, *waiting.values()):
            poller.register(sock, select.POLLIN)
        ready = {fd for fd, _ in poller.poll(max(0, deadline - time.monotonic()) * 1_000)}
        if not ready:
            raise TimeoutError("a connection that stands is never accepted")
        if listener.fileno() in ready:
            server, name = listener.accept()
            opened.append(server)
            server.settimeout(PATIENCE_S)
            if name in waiting:  # else its client has seen its end before
                pairs.append((waiting.pop(name), server))
        for name, client in list(waiting.items()):
            if client.fileno() in ready:
                lost += losses(client.recv, 1)
                del waiting[name]
    for client, server in pairs:
        lost += losses(hello, client, server)
    listener.shutdown(stdlib.SHUT_RD)
    if lost:
        raise Lost(lost)


def hello(client: Any, server: Any) -> None:
    """What was sent before the accept arrives, and an answer to it."""
    if (found := server.recv(5)) != b"hello":
        raise Wrong(f"a false end of file: {found!r} for a hello")
    server.send(b"x")
    if client.recv(1) != b"x":
        raise Wrong("a false end of file for an answer")


def losses(call: Callable[..., Any], *arguments: Any) -> list[OSError]:
    """The errno that a connection's call raised, if one did."""
    try:
        if call(*arguments) == b"":
            raise Wrong("a false end of file")
    except TimeoutError:
        raise
    except OSError as problem:
        return [problem]
    return []


def scene_fallback(opened: list[Any]) -> None:
    listener = only_for_tcp(lambda: stdlib.create_server(LOCAL), opened)
    listener.settimeout(PATIENCE_S)
    client = made(FallingBack)
    opened.append(client)
    client.connect(listener.getsockname())
    server = accept(listener, client)
    opened.append(server)
    carry(client, server, BULK_BYTES)
    carry(server, client, 50_000)


def scene_both(opened: list[Any]) -> None:
    listener = made(OfBoth)
    opened.append(listener)
    listener.bind(LOCAL)
    listener.listen(8)
    client = stdlib.socket()
    client.settimeout(PATIENCE_S)
    client, server = accepted(opened, listener, client)
    carry(client, server, 50_000)
    server.send(b"x")
    server.close()
    drained(client)


SCENES: list[Callable[[list[Any]], None]] = [
    scene_bulk,
    scene_bound,
    scene_reset,
    scene_unread,
    scene_refused,
    scene_nonblocking,
    scene_lingering,
    scene_backlog,
    scene_fallback,
    scene_both,
]


class Play:
    """All scenes, one after the other in a thread of its own."""

    def __init__(self) -> None:
        self.victims: list[str] = []
        self.wrong: list[str] = []
        self.scene = ""  # the one that is played
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for scene in SCENES:
            self.scene = scene.__name__
            try:
                with closing_all() as opened:
                    scene(opened)
            except TimeoutError as problem:
                self.wrong.append(f"{scene.__name__} waits for ever: {problem!r}")
            except OSError as problem:
                self.victims.append(f"{scene.__name__}: {problem!r}")
            except Lost as problem:
                self.victims += [f"{scene.__name__}: {error!r}" for error in problem.errors]
            except Wrong as problem:
                self.wrong.append(f"{scene.__name__}: {problem}")
            except BaseException as problem:
                self.wrong.append(f"{scene.__name__} got {problem!r}, which is no OSError")

    def ended(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

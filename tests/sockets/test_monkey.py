"""The patch: what it reaches, that it can be undone, and that nothing of it stays.

What is about import order or traces runs in an interpreter of its own.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from unittest import mock

import pytest

from utpsocket import monkey
from utpsocket.sockets import shim

from .network import PATIENCE_S, REPOSITORY

UTP, TCP = "utp", "tcp"


@pytest.fixture
def patch() -> Iterator[None]:
    with monkey.patched():
        yield


def python(code: str, *flags: str) -> str:
    """What a new interpreter prints that runs `code`."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", *flags, "-c", code],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


ECHO = """
def echo(listener, client):
    server, peer = listener.accept()
    assert peer == client.getsockname(), (peer, client.getsockname())
    client.sendall(b'question')
    assert server.recv(100) == b'question'
    server.sendall(b'answer')
    assert client.recv(100) == b'answer'
    server.close()
    assert client.recv(1) == b''
    client.close()
"""


def test_patch_and_unpatch_leave_no_trace() -> None:
    python(f"""
import gc, socket, ssl, sys
import multiprocessing.reduction
import utpsocket.monkey
{ECHO}
def look():
    gc.collect()
    return [dict(vars(socket.socket)), dict(vars(socket)), dict(vars(ssl.SSLContext)), dict(vars(ssl.SSLSocket)),
            list(sys.meta_path), dict(multiprocessing.reduction.ForkingPickler._extra_reducers)]
original, before = socket.socket, look()
for _ in range(2):
    utpsocket.monkey.patch_all(exclude='a.host.example')
    utpsocket.monkey.patch_all()
    utpsocket.monkey.patch_ssl()
    assert look() != before
    listener = socket.create_server(('127.0.0.1', 0))
    assert utpsocket.monkey.transport(listener) == 'utp'
    echo(listener, socket.create_connection(listener.getsockname()))
    listener.close()
    utpsocket.monkey.unpatch()
    utpsocket.monkey.unpatch()
    assert socket.socket is original
    assert look() == before
listener = socket.create_server(('127.0.0.1', 0))
assert utpsocket.monkey.transport(listener) == 'tcp'
echo(listener, socket.create_connection(listener.getsockname()))
listener.close()
""")


@pytest.mark.parametrize(
    "early", ["", "import ssl", "from socket import socket as early, create_connection", "import asyncio"]
)
def test_what_was_imported_before_comes_along(early: str) -> None:
    python(f"""
import socket
{early or "early = create_connection = None"}
early = globals().get('early') or socket.socket
create_connection = globals().get('create_connection') or socket.create_connection
import utpsocket.monkey
old = socket.socket()
utpsocket.monkey.patch_all()
{ECHO}
with early() as listener:
    listener.bind(('127.0.0.1', 0))
    listener.listen()
    assert utpsocket.monkey.transport(listener) == 'utp'
    assert type(listener) is early is socket.socket
    echo(listener, create_connection(listener.getsockname()))
assert utpsocket.monkey.transport(old) == 'tcp'
old.close()
""")


def test_children_are_patched_when_asked_for() -> None:
    python("""
import multiprocessing, os, subprocess, sys
before = dict(os.environ)
import utpsocket.monkey
ask = "import socket; print('_utp' in vars(socket.socket), socket.socket._routes.exclude.entries[0].name)"
for _ in range(2):
    utpsocket.monkey.patch_all(children=True, exclude=['a.example', '10.0.0.0/8'])
ran = subprocess.run([sys.executable, '-c', ask], capture_output=True, text=True)
assert (ran.stdout, ran.stderr) == ('True a.example\\n', ''), ran
utpsocket.monkey.unpatch()
assert dict(os.environ) == before
""")


def test_other_sockets_stay_what_they_are(patch: None) -> None:
    left, right = socket.socketpair()
    with left, right:
        left.sendall(b"x")
        assert right.recv(1) == b"x"
        assert monkey.transport(left) is None
        with socket.fromfd(left.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as twin:
            assert twin.family == socket.AF_UNIX
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        assert datagrams.type == socket.SOCK_DGRAM
        assert monkey.transport(datagrams) is None


def test_every_attribute_that_a_class_names_can_be_asked_for(patch: None) -> None:
    """As unittest.mock and debuggers do; one that was never set is an AttributeError."""
    kinds = [
        (socket.AF_INET, socket.SOCK_DGRAM),
        (socket.AF_UNIX, socket.SOCK_STREAM),
        (socket.AF_INET, socket.SOCK_STREAM),
    ]
    for family, kind in kinds:
        with socket.socket(family, kind) as sock:
            assert mock.create_autospec(sock).fileno
            for name in dir(sock):
                getattr(sock, name, None)


def test_sockets_go_on_after_unpatch() -> None:
    with monkey.patched():
        listener = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        fresh, waiting = socket.socket(), socket.create_connection(listener.getsockname())
    with listener, client, server, fresh, waiting:
        for sock in (listener, client, server, fresh, waiting):
            assert isinstance(sock, socket.socket)
            assert monkey.transport(sock) == UTP
            assert sock.family == socket.AF_INET
        for one, other in ((client, server), (server, client)):
            one.sendall(b"both ways")
            assert other.recv(100) == b"both ways"
        assert client.getpeername() == listener.getsockname()
        accepted, peer = listener.accept()
        with accepted:
            assert peer == waiting.getsockname()
            accepted.sendall(b"late")
            assert waiting.recv(100) == b"late"
        fresh.connect(listener.getsockname())
        second, _ = listener.accept()
        with second, fresh.dup() as twin:
            twin.sendall(b"through a dup")
            assert second.recv(100) == b"through a dup"
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        server.close()
        assert client.recv(1) == b""


def test_a_subclass_goes_on_after_unpatch() -> None:
    class Counting(socket.socket):
        sent = 0

        def sendall(self, data: bytes, flags: int = 0) -> None:  # type: ignore[override]
            self.sent += len(data)
            super().sendall(data, flags)

    with monkey.patched():
        listener = socket.create_server(("127.0.0.1", 0))
        client = Counting()
        client.connect(listener.getsockname())
        server, _ = listener.accept()
    with listener, client, server:
        client.sendall(b"abc")
        assert (client.sent, server.recv(10)) == (3, b"abc")
        assert client.getpeername() == listener.getsockname()
        assert isinstance(client, Counting)


def test_accept_that_waits_while_unpatched() -> None:
    with monkey.patched():
        listener = socket.create_server(("127.0.0.1", 0))
        accepted: list[socket.socket] = []
        thread = threading.Thread(target=lambda: accepted.append(listener.accept()[0]))
        thread.start()
        client = socket.socket()
    client.connect(listener.getsockname())
    thread.join(PATIENCE_S)
    with listener, client, accepted[0]:
        client.sendall(b"x")
        assert accepted[0].recv(1) == b"x"


def test_patched_inside_patched() -> None:
    assert not monkey.is_patched()
    with monkey.patched():
        with monkey.patched(exclude="127.0.0.1"):
            assert monkey.routes_in_force() is not None
        assert monkey.is_patched()
        assert monkey.is_patched("ssl")
        assert monkey.routes_in_force() is None
    assert not monkey.is_patched()
    assert not monkey.is_patched("ssl")
    with pytest.raises(ValueError):
        monkey.is_patched("select")


def test_the_original_is_tcp_while_patched(patch: None) -> None:
    plain, create_server, create_connection = monkey.get_original(
        "socket", ["socket", "create_server", "create_connection"]
    )
    with create_server(("127.0.0.1", 0)) as listener, plain() as client:
        client.connect(listener.getsockname())
        assert monkey.transport(client) == monkey.transport(listener) == TCP
        assert isinstance(client, socket.socket)
        server, _ = listener.accept()
        with server, create_connection(listener.getsockname()) as second:
            server.sendall(b"x")
            assert client.recv(1) == b"x"
            assert monkey.transport(server) == monkey.transport(second) == TCP


def test_the_original_is_the_class_itself_when_not_patched() -> None:
    assert monkey.get_original("socket", "socket") is socket.socket
    assert monkey.get_original("socket", "create_connection") is socket.create_connection
    assert monkey.get_original("select", "poll") is __import__("select").poll


def module_that(source: str) -> types.ModuleType:
    module = types.ModuleType("wrapped_by_a_test")
    exec(source, vars(module))
    return module


USERS = {
    "module": "import socket\ndef listen(): return socket.create_server(('127.0.0.1', 0))\n"
    "def connect(address): return socket.create_connection(address)\n",
    "alias": "import socket as _s\ndef listen(): return _s.create_server(('127.0.0.1', 0))\n"
    "def connect(address):\n    made = _s.socket(_s.AF_INET)\n    made.connect(address)\n    return made\n",
    "names": "from socket import socket as S, create_server, create_connection as connect\n"
    "def listen():\n    made = S()\n    made.bind(('127.0.0.1', 0))\n    made.listen()\n    return made\n",
}


@pytest.mark.parametrize("user", USERS)
def test_one_module_wrapped(user: str) -> None:
    module = module_that(USERS[user])
    before = dict(vars(module))
    with monkey.wrap_module(module) as wrapped:
        with module.listen() as listener, module.connect(listener.getsockname()) as client:
            server, _ = listener.accept()
            with server:
                assert monkey.transport(listener) == monkey.transport(client) == monkey.transport(server) == UTP
                assert isinstance(client, shim.socket)
        with socket.socket() as elsewhere:
            assert monkey.transport(elsewhere) == TCP
        assert not monkey.is_patched()
    assert dict(vars(module)) == before
    wrapped.undo()
    with module.listen() as listener:
        assert monkey.transport(listener) == TCP


def test_a_module_without_sockets_cannot_be_wrapped() -> None:
    with pytest.raises(ValueError, match="has no name for the socket module"):
        monkey.wrap_module(module_that("import os"))


@pytest.mark.parametrize("order", ["gevent first", "gevent last"])
def test_no_trace_is_left_of_it_in_gevent_either(order: str) -> None:
    pytest.importorskip("gevent")
    python(f"""
import warnings
warnings.simplefilter('ignore')  # gevent's own word about ssl having been imported before it
import gc, socket, ssl, sys
import utpsocket.monkey
import gevent.monkey, gevent.socket
original = socket.socket
def look():
    gc.collect()
    return [dict(vars(original)), dict(vars(ssl.SSLContext)), dict(vars(gevent.socket.socket)), list(sys.meta_path)]
if {order == "gevent first"}:
    gevent.monkey.patch_all()
before = look()
utpsocket.monkey.patch_all()
if {order == "gevent last"}:
    gevent.monkey.patch_all()
listener = socket.create_server(('127.0.0.1', 0))
client = gevent.spawn(socket.create_connection, listener.getsockname()).get(timeout=30)
server, _ = listener.accept()
assert original in [getattr(socket, 'socket'), utpsocket.engine.interpreter.native.StdlibSocket]
utpsocket.monkey.unpatch()
assert '_utp' not in vars(original)
assert look()[0] == before[0] and look()[2:] == before[2:]
client.sendall(b'goes on')
assert server.recv(10) == b'goes on'
for sock in (client, server, listener):
    sock.close()
with socket.create_server(('127.0.0.1', 0)) as listener:
    assert utpsocket.monkey.transport(listener) == 'tcp'
""")


def test_what_cannot_be_hooked_is_warned_of(tmp_path: os.PathLike[str]) -> None:
    """A library past the patch, here a stand-in of its name, is met when it comes, before and after."""
    (tmp_path / "uvloop.py").write_text("", encoding="utf-8")  # type: ignore[operator]
    for order in ("import uvloop; monkey.patch_all()", "monkey.patch_all(); import uvloop"):
        python(f"""
import sys, warnings
sys.path.insert(0, {str(tmp_path)!r})
from utpsocket import monkey
monkey.library_hooks.HOOKS['uvloop'] = ('utpsocket.no_such_module', '', '')
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    {order}
assert [(w.category, str(w.message)) for w in caught] == [
    (RuntimeWarning, 'uvloop makes sockets that utpsocket.monkey cannot reach: they will be plain TCP')
], caught
""")

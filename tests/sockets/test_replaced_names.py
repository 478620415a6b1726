"""A program may replace functions of the stdlib while sockets are in use, as many tests do: none of ours notices.

In a process of its own, since whatever else runs there would meet the stand-ins too.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = r"""
import builtins, enum, fcntl, io, os, random, secrets, select, signal, socket, struct, sys, threading, time
import ctypes, _socket, marshal, platform, resource
import utpsocket, utpsocket.stats, utpsocket.engine

close, poll, exit_now, write = os.close, select.poll, os._exit, os.write
SO, REUSE, LINGER = socket.SOL_SOCKET, socket.SO_REUSEADDR, socket.SO_LINGER
timed_out_seconds = 0.05
REPLACED = {
    os: None, time: None, select: None, random: None, secrets: None, struct: None, fcntl: None, io: None,
    ctypes: ("get_errno", "create_string_buffer", "byref", "addressof", "CDLL", "PyDLL", "string_at"),
    marshal: None, platform: None, resource: None, signal: None, threading: None, socket: None, _socket: None,
    builtins: ("open", "print", "input"),
}
met = []


def stand_in(name):
    def raising(*args, **kwargs):
        frame = sys._getframe(1)
        met.append(f"{name} at {frame.f_code.co_filename}:{frame.f_lineno}")
        raise AssertionError(name)
    return raising


def replace():
    for module, names in REPLACED.items():
        for name in names or dir(module):
            value = getattr(module, name, None)
            is_kept = isinstance(value, type) and issubclass(value, (BaseException, enum.Enum))
            if callable(value) and not name.startswith("_") and not is_kept:
                if module is threading and name in ("current_thread", "main_thread", "_shutdown"):
                    continue
                if module is _socket and name in ("socket", "SocketType"):
                    continue  # the stdlib's own class looks it up
                setattr(module, name, stand_in(f"{module.__name__}.{name}"))


def wait(sock, mask):
    poller = poll()
    poller.register(sock.fileno(), mask)
    assert poller.poll(20_000), "nothing came"


def use():
    server = utpsocket.socket()
    server.setsockopt(SO, REUSE, 1)
    server.bind(("127.0.0.1", 0))
    server.listen(8)
    try:
        utpsocket.socket().bind(server.getsockname())
    except OSError as error:
        assert error.errno == 98, error
    else:
        raise AssertionError("bound twice")
    for blocking in (True, False):
        client = utpsocket.socket()
        client.setblocking(blocking)
        code = client.connect_ex(server.getsockname())
        assert code in (0, 115), code
        wait(client, 4)
        assert client.getsockopt(SO, 4) == 0  # SO_ERROR
        conn, peer = server.accept()
        assert peer == client.getsockname() == conn.getpeername(), peer
        client.setblocking(True)
        client.sendall(bytes(300_000))
        got = 0
        while got < 300_000:
            got += len(conn.recv(65_536))
        conn.setsockopt(SO, 7, 65_536)  # SO_SNDBUF
        assert conn.getsockopt(utpsocket.SOL_UTP, utpsocket.UTP_INFO)
        copy = conn.dup()
        conn.close()
        copy.shutdown(1)
        assert client.recv(1) == b""
        client.settimeout(30)
        client.close()
        assert copy.recv(1) == b""
        copy.detach()
    late = utpsocket.socket()
    late.setsockopt(SO, LINGER, b"\1\0\0\0\0\0\0\0")
    late.bind(("127.0.0.1", 0))
    nobody = late.getsockname()
    late.close()
    client = utpsocket.socket()
    try:
        client.connect(nobody)
    except OSError as error:
        assert error.errno == 111, error
    repr(client), utpsocket.stats.engine_stats()
    client.close()
    server.settimeout(timed_out_seconds)
    try:
        server.accept()
    except TimeoutError:
        pass
    else:
        raise AssertionError("accepted")
    server.close()


use()  # whatever is imported on first use is imported now
if sys.argv[1] == "in use":
    replace()
    try:
        use()
    except BaseException as error:
        frames, at = [], error.__traceback__
        while at:
            frames.append(f"{at.tb_frame.f_code.co_filename}:{at.tb_lineno}")
            at = at.tb_next
        met.append(f"{error!r} {frames}")
else:
    utpsocket.engine.shutdown()
    replace()
    try:
        use()  # a new engine is started
    except BaseException as error:
        frames, at = [], error.__traceback__
        while at:
            frames.append(f"{at.tb_frame.f_code.co_filename}:{at.tb_lineno}")
            at = at.tb_next
        met.append(f"{error!r} {frames}")
write(1, "\n".join(met or ["unnoticed"]).encode())
exit_now(0)
"""


@pytest.mark.parametrize("when", ["in use", "before the engine starts"])
def test_replaced_functions_are_not_called(when: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, when], capture_output=True, text=True, timeout=120, check=False
    )
    assert (ran.stdout, ran.stderr) == ("unnoticed", "")

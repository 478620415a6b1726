"""Calls in an unusual order on listeners, and on what they accept: what is right is seen beside it, over kernel TCP."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from compat.fuzz.compare import compare
from compat.fuzz.machine import run
from tests.test_call_orders import LISTENER

RESET_UNACCEPTED = """
a = socket.socket()
a.listen()
b = socket.socket()
b.connect(a.getsockname())
b.send(b"abc")
b.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
b.close()
"""

REFUSED_BIND = """
c = socket.socket()
c.listen()
a.shutdown(socket.SHUT_RD)
a.bind(c.getsockname())
"""
# What was shut down before it listens, and the connection to it.
SHUT = """
a = socket.socket()
a.shutdown(socket.SHUT_RDWR)
"""
CONNECTED = """
a.listen()
b = socket.socket()
b.connect(a.getsockname())
"""
ANOTHER = """
d = socket.socket()
d.connect(a.getsockname())
c, _ = a.accept()
"""
SCRIPTS = {
    "bind() that is refused leaves no address": LISTENER
    + REFUSED_BIND
    + """
a.getsockname()
a.listen()
a.getsockname()
""",
    "but for that from which the socket is connected then": LISTENER
    + REFUSED_BIND
    + """
patient(a)
a.connect(NOWHERE)
a.getsockname()
a.listen()
a.getsockname()
d = socket.socket()
d.connect(a.getsockname())
e, _ = a.accept()
""",
    "of IPv6, too": """
a = socket.socket(socket.AF_INET6)
a.bind(("::1", 0))
a.listen()
c = socket.socket(socket.AF_INET6)
c.listen()
a.shutdown(socket.SHUT_RDWR)
a.bind(c.getsockname())
a.listen()
a.getsockname()
a.shutdown(socket.SHUT_RDWR)
a.bind(("::1", 0))
a.shutdown(socket.SHUT_RDWR)
a.listen()
a.shutdown(socket.SHUT_RDWR)
a.bind(c.getsockname())
patient(a)
a.connect(("::1", 1))
a.getsockname()
a.listen()
a.getsockname()
""",
    "shutdown() before listen(), and nobody accepts": SHUT
    + CONNECTED
    + ANOTHER
    + """
a.close()
d.recv(5)
d.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
d.send(b"x")
c.recv(5)
b.recv(5)
c.close()
b.recv(5)
b.send(b"x")
b.recv(5)
""",
    "or who has accepted is asked by close() for a reset": SHUT
    + "a.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)"
    + CONNECTED
    + ANOTHER
    + """
a.shutdown(socket.SHUT_RD)
c.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
c.shutdown(socket.SHUT_RDWR)
c.close()
b.recv(5)
b.send(b"x")
d.recv(5)
""",
    "or what is sent to it is answered by a reset": SHUT
    + CONNECTED
    + """
b.send(b"x")
a.close()
b.recv(5)
b.recv(5)
""",
    "shutdown() before listen() of one half, and nobody accepts": "a = socket.socket()\na.shutdown(socket.SHUT_RD)"
    + CONNECTED
    + """
a.close()
b.recv(5)
c = socket.socket()
c.shutdown(socket.SHUT_WR)
c.listen()
d = socket.socket()
d.connect(c.getsockname())
c.close()
d.recv(5)
d.send(b"x")
""",
    "what was reset before accept()": RESET_UNACCEPTED
    + """
d, _ = a.accept()
state(d)
d.getpeername()
d.recv(3)
d.recv(3, socket.MSG_PEEK)
d.recv(3)
d.send(b"x")
d.recv(3)
d.close()
""",
    "by way of a duplicate, and then connected anew": RESET_UNACCEPTED
    + """
d = a.dup()
e, _ = d.accept()
f = e.dup()
e.connect(a.getsockname())
e.connect(a.getsockname())
f.getpeername()
d, _ = a.accept()
""",
    "and another process is told": RESET_UNACCEPTED
    + """
d, _ = a.accept()
h1 = start()
h1.do("d.recv(10)")
h1.do("d.recv(10)")
h1.do("polled(d)")
""",
    "or accepts it": RESET_UNACCEPTED
    + """
h1 = fork()
h1.do("[(polled(d), d.recv(10), d.recv(0), polled(d)) for d in a.accept()[:1]]")
h1.do("a.accept()")
""",
    "after an end of file": RESET_UNACCEPTED.replace("b.close", "b.shutdown(socket.SHUT_WR)\nb.close")
    + """
d, _ = a.accept()
d.recv(10)
d.recv(10)
d.send(b"x")
d.send(b"x")
""",
}

RECEIVES = (
    "a = socket.socket()\na.shutdown(socket.SHUT_RD)"
    + CONNECTED
    + """
b.send(b"xyz")
c, _ = a.accept()
c.recv(2)
c.recv(2)
c.recv(2)
b.send(b"xyz")
c.recv(2)
c.shutdown(socket.SHUT_WR)
b.recv(2)
b.send(b"xyz")
b.recv(2)
"""
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_result_is_tcps(name: str) -> None:
    lines = [line for line in SCRIPTS[name].splitlines() if line]
    found = compare(lines)
    assert found is None, (found, lines[found.line])


@pytest.mark.parametrize("name", [name for name in SCRIPTS if "shutdown()" in name])
def test_nor_where_there_is_no_epoll(name: str) -> None:
    environment = {**os.environ, "UTPSOCKET_POLLER": "poll"}
    command = [sys.executable, "-m", "compat", "fuzz", "--replay", "-"]
    done = subprocess.run(command, input=SCRIPTS[name].encode(), stdout=subprocess.PIPE, env=environment, timeout=120)
    assert done.returncode == 0, done.stdout.decode()


def test_a_listener_that_was_shut_down_accepts_what_receives_all_the_same() -> None:
    """FIONREAD and poll() cannot tell all of it: compat/fuzz/expected.py. A busy machine may let a timeout pass here or
    there, so what differs must do so several times.
    """
    lines = [line for line in RECEIVES.splitlines() if line]
    for _ in range(5):
        tcp, utp = run(lines, "tcp", slowly=0.03), run(lines, "utp", slowly=0.03)
        if utp.results == tcp.results:
            break
    assert list(zip(lines, utp.results, strict=True)) == list(zip(lines, tcp.results, strict=True))

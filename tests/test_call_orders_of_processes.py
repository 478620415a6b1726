"""Calls of several processes that have one socket, in an unusual order: what one of them does to it the others know, as
over TCP. Two kinds of process: a fork, and a program that was started with the fds.
"""

from __future__ import annotations

import pytest

from compat.fuzz.compare import compare
from tests.test_call_orders import LISTENER, PAIR, RESET_C

SCRIPTS = {
    "a child knows that its parent has connected": LISTENER
    + """
b = socket.socket()
h1 = fork()
b.connect(a.getsockname())
c, _ = a.accept()
h1.do("b.getsockname()")
h1.do("b.getpeername()")
h1.do("b.bind(('127.0.0.1', 0))")
h1.do("b.connect(a.getsockname())")
h1.do("b.connect(a.getsockname())")
b.connect(a.getsockname())
h1.do("b.send(b'x')")
c.recv(5)
h1.do("b.shutdown(socket.SHUT_WR)")
c.recv(5)
b.send(b"x")
h1.do("b.listen()")
""",
    "that it listens": """
a = socket.socket()
h1 = fork()
a.listen()
b = socket.socket()
b.connect(a.getsockname())
h1.do("a.getsockname()")
h1.do("a.connect(a.getsockname())")
h1.do("a.listen()")
h1.do("a.accept()")
h1.do("a.shutdown(socket.SHUT_WR)")
""",
    "also after a shutdown()": """
a = socket.socket()
h1 = fork()
a.shutdown(socket.SHUT_RD)
a.listen(-1)
h1.do("a.connect(a.getsockname())")
h1.do("a.connect_ex(a.getsockname())")
b = socket.socket()
b.connect(a.getsockname())
""",
    "that it has connected at the second attempt": LISTENER
    + """
b = socket.socket()
patient(b)
h1 = fork()
b.connect(NOWHERE)
b.connect(a.getsockname())
h1.do("b.connect(a.getsockname())")
c, _ = a.accept()
b.send(b"x")
c.recv(5)
""",
    "that it was refused": LISTENER
    + """
b = socket.socket()
b.settimeout(0)
h1 = fork()
b.connect(NOWHERE)
h1.do("b.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)")
h1.do("b.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)")
b.send(b"x")
b.recv(5)
""",
    "and that the peer has reset it": LISTENER
    + """
b = socket.socket()
h1 = fork()
b.connect(a.getsockname())
c, _ = a.accept()
"""
    + RESET_C
    + """
h1.do("b.send(b'x')")
b.send(b"x")
b.getpeername()
h1.do("b.getpeername()")
h1.do("b.recv(5)")
""",
    "a parent knows that its child has shut down": PAIR
    + """
h1 = fork()
h1.do("b.shutdown(socket.SHUT_RD)")
b.connect(a.getsockname())
b.recv(5)
h2 = fork()
h2.do("b.connect(a.getsockname())")
""",
    "and connected": """
a = socket.socket()
a.listen()
b = socket.socket()
h1 = fork()
h1.do("b.connect(a.getsockname())")
c, _ = a.accept()
b.getsockname()
b.getpeername()
b.send(b"x")
c.recv(5)
b.connect(a.getsockname())
b.connect(a.getsockname())
b.listen()
b.shutdown(socket.SHUT_WR)
c.recv(5)
""",
    "a reset after the peer's end of file, in a child": PAIR
    + """
h1 = fork()
h1.do("c.close()")
c.close()
b.send(b"x")
h1.do("b.recv(5)")
b.recv(5)
h1.do("b.recv(5, socket.MSG_WAITALL)")
h1.do("b.send(b'x')")
""",
    "a backlog that a child holds too is reset": """
a = socket.socket()
a.listen()
h1 = fork()
b = socket.socket()
b.connect(a.getsockname())
c = socket.socket()
c.connect(a.getsockname())
a.shutdown(socket.SHUT_RD)
b.recv(5)
h1.kill()
c.send(b"x")
""",
    "by one that does not block as well": """
a = socket.socket()
a.listen()
a.settimeout(0)
h1 = fork()
b = socket.socket()
b.connect(a.getsockname())
a.shutdown(socket.SHUT_RDWR)
b.recv(5)
""",
    "or a program that was started": """
a = socket.socket()
a.listen()
b = socket.socket()
b.connect(a.getsockname())
c = socket.socket()
c.connect(a.getsockname())
h1 = start()
a.shutdown(socket.SHUT_RD)
b.recv(5)
b.send(b"x")
h1.kill()
c.send(b"x")
""",
    "a child's shutdown() is no close": PAIR
    + """
h1 = fork()
b.shutdown(socket.SHUT_WR)
c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
h1.do("c.shutdown(socket.SHUT_WR)")
b.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
c.close()
b.recv(5)
h1.kill()
b.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
""",
    "nor where the parent has closed": PAIR
    + """
h1 = fork()
c.send(b"hello")
c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
c.close()
b.shutdown(socket.SHUT_WR)
h1.do("c.shutdown(socket.SHUT_WR)")
b.recv(10)
b.recv(10)
b.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
""",
    "nor is a program's, where the parent has closed": LISTENER
    + """
b = socket.socket()
b.connect(a.getsockname())
c, _ = a.accept()
c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
h1 = start()
c.close()
h1.do("c.send(b'x')")
h1.do("c.shutdown(socket.SHUT_RDWR)")
b.recv(5)
b.recv(5)
b.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
""",
    "an option that is set after the fork": """
a = socket.socket()
a.listen()
b = socket.socket()
h1 = fork()
b.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
h1.do("b.connect(a.getsockname())")
c, _ = a.accept()
b.close()
h1.do("b.close()")
c.recv(5)
""",
    "and by whom": PAIR
    + """
h1 = fork()
h2 = fork()
c.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
h1.do("c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)")
h1.do("c.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)")
h2.do("c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)")
c.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
c.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
h2.do("c.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)")
h1.do("c.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)")
h1.do("c.close()")
h2.do("c.close()")
c.close()
b.recv(5)
""",
    "send() of a program takes the error that it tells": PAIR
    + """
c.close()
h1 = start()
h1.do("b.send(b'y')")
h1.do("b.send(b'y')")
""",
    "a reset of what a child has connected, and its parent alone has still": LISTENER
    + """
b = socket.socket()
h1 = fork()
h1.do("b.connect(a.getsockname())")
c, _ = a.accept()
h1.do("b.close()")
c.close()
b.send(b"x")
b.recv(5)
b.send(b"x")
""",
    "or its sibling": LISTENER
    + """
b = socket.socket()
h1 = fork()
h2 = fork()
h1.do("b.connect(a.getsockname())")
c, _ = a.accept()
h1.do("b.close()")
b.close()
c.close()
h2.do("b.send(b'x')")
h2.do("polled(b)")
h2.do("b.send(b'x')")
h2.do("b.recv(5)")
""",
    "a program knows that its connection stands": PAIR
    + """
h1 = start()
h1.do("c.connect(a.getsockname())")
""",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_result_is_tcps(name: str) -> None:
    lines = [line for line in SCRIPTS[name].splitlines() if line]
    found = compare(lines)
    assert found is None, (found, lines[found.line])

"""Calls in an unusual order: short scripts, of which every result, and what poll() says of every socket after each
line, is as over TCP. What is right is not written down here but seen beside it, over kernel TCP.
"""

from __future__ import annotations

import pytest

from compat.fuzz.compare import compare
from compat.fuzz.machine import run

LISTENER = """
a = socket.socket()
a.bind(("127.0.0.1", 0))
a.listen()
"""
PAIR = (
    LISTENER
    + """
b = socket.socket()
b.connect(a.getsockname())
c, _ = a.accept()
"""
)
RESET_C = """
c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
c.close()
"""
CONNECT_TWICE = """
b.connect(a.getsockname())
b.connect(a.getsockname())
"""

SCRIPTS = {
    "connect() says once more that the connection stands, where a timeout was waited for": PAIR + CONNECT_TWICE,
    "after shutdown() it does not": PAIR + "b.shutdown(socket.SHUT_WR)" + CONNECT_TWICE,
    "after both ends": PAIR + "c.shutdown(socket.SHUT_WR)\nb.shutdown(socket.SHUT_RDWR)" + CONNECT_TWICE,
    "after a reset it says so, then connects anew": PAIR + RESET_C + CONNECT_TWICE + "d, _ = a.accept()",
    "after a reset that SO_ERROR has told": PAIR
    + RESET_C
    + "b.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)"
    + CONNECT_TWICE
    + "b.getpeername()",
    "after a reset of what is known to stand": PAIR + "b.connect(a.getsockname())" + RESET_C + CONNECT_TWICE,
    "after a refusal": LISTENER + "b = socket.socket()\nb.connect(NOWHERE)\nb.recv(1)" + CONNECT_TWICE,
    "bind() looks at the address first": PAIR
    + "".join(
        f"\n{name}.bind({address})"
        for name in "abc"
        for address in ('("203.0.113.7", 0)', "None", '("127.0.0.1", 70000)', '("127.0.0.1", 0)')
    ),
    "bind() of what is closed": LISTENER
    + "a.close()"
    + "".join(f"\na.bind({address})" for address in ('("203.0.113.7", 0)', "None", '("127.0.0.1", 0)')),
    "accept() of what is closed": LISTENER + "a.close()\na.accept()\na.settimeout(0)\na.accept()",
    "a listener that is shut down resets its backlog": LISTENER
    + """
b = socket.socket()
b.connect(a.getsockname())
a.shutdown(socket.SHUT_RD)
b.recv(10)
a.accept()
epolled(a)
a.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
""",
    "and listens again": LISTENER
    + """
a.shutdown(socket.SHUT_RDWR)
a.listen()
b = socket.socket()
b.connect(a.getsockname())
a.accept()
meanwhile("a.accept()", "a.shutdown(socket.SHUT_RDWR)")
""",
    "or connects": LISTENER
    + """
a.shutdown(socket.SHUT_RD)
d = socket.socket()
d.listen()
a.connect(d.getsockname())
a.send(b"x")
a.getpeername()
""",
    "shutdown() of what is not connected": """
a = socket.socket()
a.shutdown(socket.SHUT_RD)
epolled(a)
a.shutdown(socket.SHUT_WR)
selected(a)
b = socket.socket()
b.shutdown(socket.SHUT_WR)
b.send(b"x")
c = socket.socket()
c.listen()
b.connect(c.getsockname())
d, _ = c.accept()
d.send(b"x")
b.recv(5)
b.send(b"x")
b.shutdown(socket.SHUT_WR)
d.recv(5)
a.connect(c.getsockname())
e, _ = c.accept()
a.send(b"x")
a.close()
e.recv(5)
""",
    "shutdown() before listen()": """
a = socket.socket()
a.shutdown(socket.SHUT_RDWR)
a.listen()
b = socket.socket()
b.connect(a.getsockname())
c, _ = a.accept()
b.recv(5)
c.send(b"x")
c.close()
""",
    "shutdown() of what has failed": LISTENER
    + """
b = socket.socket()
b.connect(NOWHERE)
b.shutdown(socket.SHUT_RD)
b.connect(a.getsockname())
b.connect_ex(a.getsockname())
b.listen()
b.close()
""",
    "shutdown() of what was reset": PAIR
    + RESET_C
    + """
b.shutdown(socket.SHUT_WR)
b.connect(a.getsockname())
b.connect(a.getsockname())
""",
    "connect() looks at the address first": PAIR
    + "b.close()"
    + "".join(
        f"\n{name}.{call}({address})"
        for name in "abc"
        for call in ("connect", "connect_ex")
        for address in ('("::1", 0)', '"nonsense"', '("127.0.0.1", 70000)', '("127.0.0.1", "x")', "None")
    ),
    "bind() of what is closed, to no address": """
a = socket.socket(socket.AF_INET6)
a.close()
a.bind(("127.0.0.1", -1))
""",
    "nothing is in the error queue": PAIR
    + """
c.send(b"hello")
b.recv(3, socket.MSG_ERRQUEUE)
b.recvmsg(3, 0, socket.MSG_ERRQUEUE)
a.recv(3, socket.MSG_ERRQUEUE)
d = socket.socket()
d.recv_into(bytearray(3), 0, socket.MSG_ERRQUEUE)
d.settimeout(0)
d.recvfrom(3, socket.MSG_ERRQUEUE)
b.settimeout(0)
b.recv(3, socket.MSG_ERRQUEUE)
b.recv(3)
d.close()
d.recv(3, socket.MSG_ERRQUEUE)
""",
    "an end of file is not undone by the reset that follows it": PAIR
    + """
c.send(b"hi")
c.close()
b.send(b"last")
b.recv(1)
b.recv(5)
b.recv(5)
b.recv(-1)
b.recvfrom(-1)
b.recv_into(bytearray(5))
b.recvfrom(5)
b.recvmsg(5)
b.recvmsg_into([bytearray(5)])
b.getpeername()
b.send(b"x")
b.send(b"x")
b.recv(5)
""",
    "which SO_ERROR tells": PAIR
    + """
c.shutdown(socket.SHUT_RDWR)
c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
c.close()
b.recv(5)
b.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
b.recv(5)
b.send(b"x")
""",
    "and a forked process": PAIR
    + """
h1 = fork()
c.close()
h1.do("c.close()")
b.send(b"x")
h1.do("b.send(b'x')")
h1.do("b.recv(5)")
b.recv(5)
""",
    "close() with bytes unread resets, also after shutdown()": PAIR
    + """
b.send(b"x")
c.shutdown(socket.SHUT_WR)
c.close()
b.recv(5)
b.send(b"x")
""",
    "connect() to port 0 is an attempt that is refused": """
a = socket.socket()
a.connect(a.getsockname())
a.getsockname()
a.getpeername()
a.recv(5)
a.send(b"x")
a.bind(("127.0.0.1", 0))
a.getsockname()
a.listen()
a.connect(a.getsockname())
a.getsockname()
c = socket.socket()
c.bind(("127.0.0.1", 0))
c.listen()
a.connect(c.getsockname())
d, _ = c.accept()
a.getsockname()
a.settimeout(0)
b = socket.socket()
b.settimeout(0)
b.connect_ex(("127.0.0.1", 0))
b.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
b.connect_ex(c.getsockname())
b.getsockname()
""",
    "a port that the kernel chose goes when its listener listens no more": """
c = socket.socket()
c.bind(("127.0.0.1", 0))
c.listen()
c.shutdown(socket.SHUT_RD)
c.getsockname()
c.bind(("127.0.0.1", 0))
c.listen()
c.shutdown(socket.SHUT_RD)
c.listen()
c.getsockname()
d = socket.socket()
d.listen()
d.getsockname()
d.shutdown(socket.SHUT_RDWR)
d.getsockname()
d.bind(("127.0.0.1", 0))
d.getsockname()
c.shutdown(socket.SHUT_RD)
c.connect(NOWHERE)
c.getsockname()
""",
    "or when its connection ends": """
c = socket.socket()
c.listen()
b = socket.socket()
b.bind(("127.0.0.1", 0))
b.connect(c.getsockname())
d, _ = c.accept()
d.shutdown(socket.SHUT_RDWR)
b.shutdown(socket.SHUT_RDWR)
b.getsockname()
b.bind(("127.0.0.1", 0))
b.getsockname()
b.listen()
b.connect(c.getsockname())
b.bind(("127.0.0.1", 0))
d.bind(("127.0.0.1", 0))
d.getsockname()
d.recv(5)
d.close()
""",
    "or when its attempt fails": """
c = socket.socket()
c.listen()
f = socket.socket()
f.bind(("127.0.0.1", 0))
f.connect(NOWHERE)
f.getsockname()
f.connect(c.getsockname())
f.getsockname()
f.connect(c.getsockname())
f.getsockname()
f.getpeername()
d, _ = c.accept()
d.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
d.close()
f.bind(("127.0.0.1", 0))
f.recv(5)
f.bind(c.getsockname())
f.listen()
f.getsockname()
f.getpeername()
""",
    "whoever waits for room to send hears of shutdown()": PAIR
    + """
fill(b)
meanwhile("b.send(b'x')", "b.shutdown(socket.SHUT_WR)")
b.send(b"x")
fill(c)
meanwhile("c.sendall(bytes(10000))", "c.shutdown(socket.SHUT_WR)")
drain(c)
""",
    "shutdown(SHUT_RDWR) is no close": PAIR
    + """
c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
d = c.dup()
c.shutdown(socket.SHUT_RDWR)
c.close()
b.recv(5)
d.close()
b.recv(5)
b.close()
""",
    "with bytes unread that resets when it is closed": PAIR
    + """
b.send(b"x")
c.shutdown(socket.SHUT_RDWR)
c.close()
b.recv(5)
b.close()
""",
    "both ends of what close() would reset": LISTENER
    + """
e = socket.socket()
e.connect(a.getsockname())
b, _ = a.accept()
b = e.dup()
e.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
e.close()
b.shutdown(socket.SHUT_WR)
b.getpeername()
b.recv(5)
b.close()
""",
    "in either order": LISTENER
    + """
e = socket.socket()
e.connect(a.getsockname())
b, _ = a.accept()
e.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
b.close()
e.shutdown(socket.SHUT_WR)
e.getpeername()
""",
    "a duplicate is the same socket": """
a = socket.socket()
b = a.dup()
b.connect(b.getsockname())
a.connect(b.getsockname())
b.connect(NOWHERE)
c = socket.socket()
c.listen()
b.connect(c.getsockname())
b.connect(c.getsockname())
a.send(b"x")
d, _ = c.accept()
d.recv(5)
""",
    "what is dropped is closed, whatever it has raised": """
d = socket.socket()
d.listen(-1)
c = socket.socket()
c.connect(d.getsockname())
a, _ = d.accept()
a.connect_ex(a.getsockname())
a = socket.socket()
f = socket.socket()
""",
    "bind() of what is closed leaves its name": """
a = socket.socket()
a.listen()
b = socket.socket()
b.connect(NOWHERE)
b.bind(("127.0.0.1", -1))
b.getsockname()
b.bind(a.getsockname())
b.getsockname()
c = socket.socket()
c.shutdown(socket.SHUT_RD)
c.recv(5)
c.recv(0, socket.MSG_ERRQUEUE)
c.recv_into(bytearray(5))
drain(c)
c.bind(a.getsockname())
c.getsockname()
""",
    "the kernel's own connect() leaves a socket as before it": """
d = socket.socket()
patient(d)
d.connect(d.getsockname())
d.getsockname()
d.connect(NOWHERE)
d.getsockname()
d.recv(5)
d.send(b"x")
d.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
d.shutdown(socket.SHUT_RD)
d.connect(NOWHERE)
d.bind(("127.0.0.1", 0))
d.listen()
e = socket.socket()
patient(e)
e.connect(d.getsockname())
e.connect(d.getsockname())
a, _ = d.accept()
d.accept()
patient(a)
a.recv(5)
a.close()
e.recv(5)
e.connect(d.getsockname())
e.send(b"x")
e.connect(d.getsockname())
""",
    "MSG_WAITALL after a reset": PAIR
    + """
c.send(b"x")
c.close()
b.send(b"y")
b.recv_into(bytearray(10), 0, socket.MSG_WAITALL | socket.MSG_PEEK)
b.recvmsg(10, 0, socket.MSG_WAITALL | socket.MSG_PEEK)
b.recvfrom(10, socket.MSG_WAITALL | socket.MSG_PEEK)
b.recv(10, socket.MSG_WAITALL)
b.recv(10)
b.send(b"z")
""",
    "MSG_WAITALL where a reset has followed what came": PAIR
    + 'c.sendmsg([b"x", b"!"])'
    + RESET_C
    + """
b.recv(10, socket.MSG_WAITALL | socket.MSG_PEEK)
b.recv_into(bytearray(10), 0, socket.MSG_WAITALL | socket.MSG_PEEK)
b.recv_into(bytearray(10), flags=socket.MSG_WAITALL | socket.MSG_PEEK)
b.recvfrom(10, socket.MSG_WAITALL | socket.MSG_PEEK)
b.recvfrom_into(bytearray(10), 0, socket.MSG_WAITALL | socket.MSG_PEEK)
b.recvmsg(10, 0, socket.MSG_WAITALL | socket.MSG_PEEK)
b.recvmsg_into([bytearray(10)], 0, socket.MSG_WAITALL | socket.MSG_PEEK)
b.recv(10, socket.MSG_WAITALL)
polled(b)
b.recv(10, socket.MSG_WAITALL)
b.recv(10, socket.MSG_WAITALL)
b.send(b"z")
""",
    "IPV6_V6ONLY can be set while there is no port": """
a = socket.socket(socket.AF_INET6)
a.connect_ex(a.getsockname())
a.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
a.listen()
a.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
b = socket.socket(socket.AF_INET6)
b.bind(("::1", 0))
b.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
b.connect_ex(("::1", 0))
b.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
c = socket.socket(socket.AF_INET6)
c.connect(("::1", a.getsockname()[1]))
c.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
d, _ = a.accept()
d.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
d.close()
c.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
a.shutdown(socket.SHUT_RD)
a.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
""",
    "accept() of what another thread closes": LISTENER
    + """
patient(a)
meanwhile("a.accept()", "a.close()")
""",
    "IP_TOS sets SO_PRIORITY": """
a = socket.socket()
a.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 8)
a.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY)
a.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 5)
a.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 8)
a.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY)
a.getsockopt(socket.IPPROTO_IP, socket.IP_TOS)
a.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0)
a.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY)
b = socket.socket(socket.AF_INET6)
b.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 16)
b.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY)
""",
    "urgent data that never comes": """
a = socket.socket()
a.recv(5, socket.MSG_OOB)
a.recv(0, socket.MSG_OOB)
a.shutdown(socket.SHUT_RD)
a.recvmsg(5, 0, socket.MSG_OOB)
a.recv_into(bytearray(5), 0, socket.MSG_OOB)
d = socket.socket()
d.listen()
d.recv(5, socket.MSG_OOB)
b = socket.socket()
b.connect(d.getsockname())
b.recv(5, socket.MSG_OOB)
b.recv(0, socket.MSG_OOB)
b.recvfrom(5, socket.MSG_OOB)
c, _ = d.accept()
c.send(b"x")
b.recvfrom_into(bytearray(5), 0, socket.MSG_OOB)
b.recvmsg_into([bytearray(5)], 0, socket.MSG_OOB)
b.recv(5, socket.MSG_OOB | socket.MSG_PEEK)
b.recv_into(bytearray(0), 0, socket.MSG_OOB)
c.close()
b.recv(5, socket.MSG_OOB)
b.close()
b.recv(5, socket.MSG_OOB)
""",
    "nor after the end": PAIR
    + RESET_C
    + """
b.recv(5)
b.recv(5, socket.MSG_OOB)
b.recv_into(bytearray(5), 0, socket.MSG_OOB)
""",
    "a duplicate that blocks in the kernel": """
a = socket.socket()
b = a.dup()
patient(a)
b.connect(NOWHERE)
b.connect(NOWHERE)
a.recv(5)
""",
    "and once more, after shutdown()": """
a = socket.socket()
b = a.dup()
b.shutdown(socket.SHUT_WR)
patient(b)
b.connect(NOWHERE)
os.get_blocking(a.fileno())
a.connect(NOWHERE)
a.recv(5)
""",
    "TCP_INFO says in which state it is, and MSG_TRUNC leaves the buffer": """
a = socket.socket()
state(a)
a.listen()
state(a)
b = socket.socket()
b.connect(a.getsockname())
c, _ = a.accept()
state(b)
state(c)
b.send(b"hello")
thrown_away(c)
b.shutdown(socket.SHUT_WR)
state(b)
state(c)
c.send(b"hello world")
thrown_away(b, socket.MSG_PEEK)
thrown_away(b)
b.recv(20)
c.shutdown(socket.SHUT_WR)
state(b)
state(c)
d = socket.socket()
d.connect(a.getsockname())
e, _ = a.accept()
d.shutdown(socket.SHUT_RD)
state(d)
d.shutdown(socket.SHUT_WR)
state(d)
""",
}


RESULTS = {
    "what comes after shutdown(SHUT_RD) is received all the same": PAIR
    + """
c.shutdown(socket.SHUT_RD)
b.send(b"hello")
c.recv(3, socket.MSG_PEEK)
c.recv(3)
c.recv_into(bytearray(10))
c.recv(3)
b.send(b"hello")
c.close()
b.recv(5)
b.recv(5)
""",
    "and fills the buffers": PAIR
    + """
c.shutdown(socket.SHUT_RD)
fill(b)
b.shutdown(socket.SHUT_WR)
drain(c)
""",
    "after shutdown(SHUT_RDWR) it is answered by a reset": PAIR
    + """
c.shutdown(socket.SHUT_RDWR)
b.send(b"x")
c.recv(5)
c.recv(5)
b.recv(5)
b.close()
c.close()
""",
    "which those who still have the socket see": PAIR
    + """
c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
d = c.dup()
c.shutdown(socket.SHUT_RDWR)
c.close()
b.send(b"x")
d.close()
b.recv(5)
b.close()
""",
    "what came after SHUT_RD is received before the reset that followed": PAIR
    + """
b.shutdown(socket.SHUT_RD)
c.send(b"xyz")
c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
c.close()
b.recv(2, socket.MSG_PEEK)
b.recv(2)
b.recv_into(bytearray(2))
b.recv(2)
b.recv(2)
b.send(b"x")
""",
    "and once, though a child was forked before": PAIR
    + """
b.shutdown(socket.SHUT_RD)
c.send(b"xyz")
b.recv(1)
h1 = fork()
b.recv(5)
h1.do("b.recv(5)")
""",
    "a socket that was shut down and then connected receives": LISTENER
    + """
b = socket.socket()
b.shutdown(socket.SHUT_RDWR)
b.connect(a.getsockname())
c, _ = a.accept()
c.send(b"xyz")
b.recv(2)
b.recv(2)
c.send(b"xyz")
c.close()
b.recv(5)
b.recv(5)
b.send(b"x")
""",
}
"""Which FIONREAD and poll() do not fully report: compat/fuzz/expected.py."""


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_result_is_tcps(name: str) -> None:
    lines = [line for line in SCRIPTS[name].splitlines() if line]
    found = compare(lines)
    assert found is None, (found, lines[found.line])


@pytest.mark.parametrize("name", RESULTS)
def test_every_call_returns_what_tcps_returns(name: str) -> None:
    """A busy machine may let a timeout pass here or there, so what differs must do so several times."""
    lines = [line for line in RESULTS[name].splitlines() if line]
    for _ in range(5):
        tcp, utp = run(lines, "tcp", slowly=0.03), run(lines, "utp", slowly=0.03)
        if utp.results == tcp.results:
            break
    assert list(zip(lines, utp.results, strict=True)) == list(zip(lines, tcp.results, strict=True))

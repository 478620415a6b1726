"""Calls in an unusual order: short scripts, of which every result, and what poll() says of every socket after each
line, is as over TCP. What is right is not written down here but seen beside it, over kernel TCP.
"""

from __future__ import annotations

import pytest

from compat.fuzz.compare import compare

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
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_result_is_tcps(name: str) -> None:
    lines = [line for line in SCRIPTS[name].splitlines() if line]
    found = compare(lines)
    assert found is None, (found, lines[found.line])

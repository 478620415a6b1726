"""Calls in an unusual order on listeners, and on what they accept: what is right is seen beside it, over kernel TCP."""

from __future__ import annotations

import pytest

from compat.fuzz.compare import compare
from tests.test_call_orders import LISTENER

SCRIPTS = {
    "bind() that is refused leaves no address": LISTENER
    + """
c = socket.socket()
c.listen()
a.shutdown(socket.SHUT_RD)
a.bind(c.getsockname())
a.getsockname()
a.listen()
a.getsockname()
""",
    "but for that from which the socket is connected then": LISTENER
    + """
c = socket.socket()
c.listen()
a.shutdown(socket.SHUT_RD)
a.bind(c.getsockname())
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
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_result_is_tcps(name: str) -> None:
    lines = [line for line in SCRIPTS[name].splitlines() if line]
    found = compare(lines)
    assert found is None, (found, lines[found.line])

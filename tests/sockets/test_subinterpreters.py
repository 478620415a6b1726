"""Interpreters within the process, as mod_wsgi has them: each has an engine of its own, which ends with it."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from .network import PATIENCE_S, Net

PREAMBLE = """
import sys, threading

def interpreter(code, **options):
    try:
        import _interpreters as api
    except ImportError:
        import _xxsubinterpreters as api
    made = api.create(**options)
    failed = api.run_string(made, code)
    api.destroy(made)
    if failed is not None:
        raise RuntimeError(failed.formatted)
"""
TALKS = """
import atexit
import {module} as socket

client = socket.create_connection({address})
client.sendall(bytes(20_000))
listener = socket.create_server(("127.0.0.1", 0))
other = socket.create_connection(listener.getsockname())
atexit.register(client.sendall, b"goodbye")
"""
ENDS = """
from _testcapi import run_in_subinterp
listener = socket.create_server(("127.0.0.1", 0))
for _ in range(2):
    assert run_in_subinterp(sys.argv[1].format(module=socket.__name__, address=listener.getsockname())) == 0
    conn, _ = listener.accept()
    with conn:
        received = b"".join(iter(lambda: conn.recv(65536), b""))
        assert (len(received), received[-7:]) == (20_007, b"goodbye"), len(received)
"""
OWN_LOCK = """
listener = socket.create_server(("127.0.0.1", 0))
interpreter(sys.argv[1].format(module=socket.__name__, address=listener.getsockname()))
conn, _ = listener.accept()
with conn:
    received = b"".join(iter(lambda: conn.recv(65536), b""))
    assert (len(received), received[-7:]) == (20_007, b"goodbye"), len(received)
"""
REFUSED = """
try:
    interpreter("import utpsocket; utpsocket.create_server(('127.0.0.1', 0))")
except Exception as error:
    print(error)
"""


def succeeds(net: Net, code: str) -> None:
    assert net.python(PREAMBLE + code, TALKS).wait(PATIENCE_S) == 0


@pytest.mark.skipif(importlib.util.find_spec("_testcapi") is None, reason="this interpreter has no _testcapi")
def test_an_interpreter_that_used_sockets_ends(net: Net) -> None:
    succeeds(net, ENDS)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="needs the ctypes of CPython 3.13")
def test_an_interpreter_with_a_lock_of_its_own_ends(net: Net) -> None:
    succeeds(net, OWN_LOCK)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="this interpreter lets them have sockets")
def test_an_isolated_interpreter_raises_with_the_reason_why_it_has_no_sockets() -> None:
    net = Net("utp")
    try:
        output = net.python(PREAMBLE + REFUSED, stdout=-1).communicate(timeout=PATIENCE_S)[0].decode()
        why = "needs ctypes" if sys.version_info >= (3, 12) else "needs a thread in this interpreter"
        assert f"utpsocket {why}" in output
    finally:
        net.close()

"""Audit hooks (PEP 578): an event comes before the call that it is about, so that a hook can prevent it."""

from __future__ import annotations

import pytest

from tests.requirements import requires_ipv6_sockets

from .network import PATIENCE_S, Net

PREVENTS = """
import sys

def hook(event, arguments):
    if event == wanted:
        raise PermissionError(event)

listener = socket.create_server(("127.0.0.1", 0))
sock = socket.socket()
calls = {"socket.bind": sock.bind, "socket.connect": sock.connect}
sys.addaudithook(hook)
for wanted, call in calls.items():
    try:
        call(("127.0.0.1", 0) if wanted == "socket.bind" else listener.getsockname())
    except PermissionError as error:
        print(error, sock.getsockname())
wanted = None
sock.connect(listener.getsockname())
print(listener.accept()[1] == sock.getsockname())
"""
FAILS = """
import errno
import sys

wanted = []
said = []

def hook(event, arguments):
    if event == wanted[0]:
        said.append(arguments[1])

wanted.append("none")
sys.addaudithook(hook)
for wanted[0], family, address in (
    ("socket.bind", socket.AF_INET, ("192.0.2.1", 9)),  # of TEST-NET-1, RFC 5737
    ("socket.connect", socket.AF_INET6, ("fe80::1", 9)),  # a link-local address without its interface
):
    try:
        sock = socket.socket(family)
        getattr(sock, wanted[0].rpartition(".")[2])(address)
    except OSError as error:
        print(errno.errorcode[error.errno], said == [address])
    said.clear()
"""


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_hook_prevents_a_bind_or_a_connect(net: Net) -> None:
    process = net.python(PREVENTS, stdout=-1)
    said, _ = process.communicate(timeout=PATIENCE_S)
    nowhere = "('0.0.0.0', 0)"
    assert said.decode() == f"socket.bind {nowhere}\nsocket.connect {nowhere}\nTrue\n"


@requires_ipv6_sockets
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_bind_or_a_connect_that_fails_is_one_event(net: Net) -> None:
    process = net.python(FAILS, stdout=-1)
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert said.decode() == "EADDRNOTAVAIL True\nEINVAL True\n"

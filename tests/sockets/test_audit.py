"""Audit hooks (PEP 578): an event comes before the call that it is about, so that a hook can prevent it."""

from __future__ import annotations

import pytest

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


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_hook_prevents_a_bind_or_a_connect(net: Net) -> None:
    process = net.python(PREVENTS, stdout=-1)
    said, _ = process.communicate(timeout=PATIENCE_S)
    nowhere = "('0.0.0.0', 0)"
    assert said.decode() == f"socket.bind {nowhere}\nsocket.connect {nowhere}\nTrue\n"

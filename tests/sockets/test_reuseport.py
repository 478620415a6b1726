"""A port that processes share by SO_REUSEPORT: a connection stays with its process, whichever others come and go."""

from __future__ import annotations

import importlib
import socket as stdlib
import subprocess
import sys

import pytest

from tests.requirements import requires_ipv6
from tests.sockets.network import MODULES, PATIENCE_S, Net
from tests.sockets.reuseport import ROOT, run

CASES = [
    ("tcp", "127.0.0.1", "127.0.0.1"),  # the kernel's own: the program is right
    ("utp", "127.0.0.1", "127.0.0.1"),
    ("utp", "127.0.0.1", "0.0.0.0"),
    pytest.param("utp", "::1", "::1", marks=requires_ipv6),
    pytest.param("utp", "::1", "::", marks=requires_ipv6),
    pytest.param("utp", "127.0.0.1", "::", marks=requires_ipv6),
]


@pytest.mark.parametrize(("name", "host", "bound"), CASES)
def test_only_the_connections_of_a_killed_worker_break(name: str, host: str, bound: str) -> None:
    """Ten times as much by hand: python3 -m tests.sockets.reuseport utpsocket."""
    outcome = run(MODULES[name], host, bound, kills=2, connections=16, workers=2)
    assert outcome.wrong == []
    assert outcome.broken == outcome.expected
    assert len(outcome.spread) == 2, "new connections are spread over the workers"


SECOND = """
import importlib, socket, sys
second = importlib.import_module(sys.argv[1]).socket()
second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
second.bind(("127.0.0.1", int(sys.argv[2])))
print("bound", flush=True)
sys.stdin.readline()
second.listen()
print("listens", flush=True)
sys.stdin.readline()
"""


def test_a_second_process_does_not_disturb_ten_open_connections(net: Net) -> None:
    """Nor does a client that connects while the second is bound and does not listen yet."""
    module = importlib.import_module(MODULES[net.name])
    with module.socket() as listener:
        listener.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen(20)
        listener.settimeout(PATIENCE_S)
        pairs = []
        for _ in range(10):
            client = module.create_connection(listener.getsockname(), timeout=PATIENCE_S)
            pairs.append((client, listener.accept()[0]))
        command = [sys.executable, "-c", SECOND, MODULES[net.name], str(listener.getsockname()[1])]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True) as second:
            assert second.stdin is not None and second.stdout is not None
            for said in ("bound\n", "listens\n"):
                assert second.stdout.readline() == said
                for client, server in pairs:
                    server.settimeout(PATIENCE_S)
                    client.sendall(b"x" * 5_000)
                    received = b""
                    while len(received) < 5_000:
                        received += server.recv(5_000)
                    server.sendall(b"y")
                    assert client.recv(1) == b"y"
                second.stdin.write("go on\n")
                second.stdin.flush()
        for client, server in pairs:
            client.close()
            server.close()

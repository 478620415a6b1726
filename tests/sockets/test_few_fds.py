"""A program that has used up its fds: every call does what TCP's does with as many left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .network import MODULES, REPOSITORY

PROGRAM = """
import errno, os, resource, select, sys
import {module} as module

left, lowered = int(sys.argv[1]), sys.argv[2]
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
if lowered == "before":
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
listener = module.socket()
listener.bind(("127.0.0.1", 0))
listener.listen()
if lowered == "after":
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
filling = []
try:
    while True:
        filling.append(os.dup(0))
except OSError:
    pass
for _ in range(left):
    os.close(filling.pop())

told = []

def tell(name, call):
    try:
        value = call()
    except OSError as error:
        told.append((name, errno.errorcode.get(error.errno, str(error))))
        return None
    told.append((name, value if isinstance(value, (bytes, bool)) else "done"))
    return value

def readable(sock):
    return bool(select.select([sock], [], [], 5)[0])

kept = []

def new(name, call):
    made = tell(name, call)
    if made is not None:
        kept.append(made)
    return made

clients = []
while sock := new("socket", module.socket):
    sock.settimeout(10)
    if len(clients) == 3:  # one of them is a server as well
        tell("bind", lambda: sock.bind(("127.0.0.1", 0)))
        tell("listen", sock.listen)
        clients.append(sock)
        continue
    clients.append(sock)
    tell("setsockopt", lambda: sock.setsockopt(6, 1, 1))
    tell("connect", lambda: sock.connect(listener.getsockname()))
    tell("getpeername", sock.getpeername)
    tell("makefile", lambda: sock.makefile("rb").close())
if clients:
    for _ in range(3):
        tell("readable", lambda: readable(listener))
        tell("accept", listener.accept)
    os.close(filling.pop())
    accepted = new("accept", listener.accept)  # with the one reserved for hanging up politely
    told.append(accepted is not None and accepted[1] == clients[0].getsockname())
    accepted[0].close()
    tell("recv", lambda: clients[0].recv(1))
    new("dup", clients[0].dup)
    new("dup", clients[0].dup)
    clients[0].close()
    if left > 1:
        (server, _), client = listener.accept(), clients[1]
        server.sendall(b"hello")
        tell("recv", lambda: client.recv(5))
        client.settimeout(10)
        server.setsockopt(1, 13, b"\\1\\0\\0\\0\\0\\0\\0\\0")  # SO_LINGER: reset
        server.close()
        tell("recv", lambda: client.recv(5))
while filling:
    os.close(filling.pop())
with module.create_connection(listener.getsockname()) as client:
    tell("connect", client.getpeername)
print(told)
"""


def run(name: str, script: Path, left: int, lowered: str) -> str:
    source = PROGRAM.replace("{module}", MODULES[name])
    script.write_text(f"import sys\nsys.path.insert(0, {str(REPOSITORY)!r})\n{source}")
    done: Any = subprocess.run(
        [sys.executable, script, str(left), lowered],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_NOFILE as Linux has it")
@pytest.mark.parametrize("lowered", ["before", "after"])
@pytest.mark.parametrize("left", range(9))
def test_with_few_fds_left(left: int, lowered: str, tmp_path: Path) -> None:
    """`lowered`: the limit, before or after the first socket is made. Then the engine's are above the limit."""
    script = tmp_path / "few.py"
    assert run("utp", script, left, lowered) == run("tcp", script, left, lowered)

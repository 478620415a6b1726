"""A program that has used up its fds: every call does what TCP's does with as many left."""

from __future__ import annotations

import ast
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.requirements import requires_ipv6

from .network import MODULES, REPOSITORY

# The soft limit of fds, before there is a socket.
LIMITED = """
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
if lowered == "before":
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
"""
# Until as many fds are left as the first argument says; and tell(), by which a call's outcome is noted.
FILLING = """
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

results = []

def tell(name, call):
    try:
        value = call()
    except OSError as error:
        results.append((name, errno.errorcode.get(error.errno, str(error))))
        return None
    results.append((name, value if isinstance(value, (bytes, bool, int, str)) else "done"))
    return value

"""
PROGRAM = (
    """
import errno, os, resource, select, sys
import {module} as module

left, lowered = int(sys.argv[1]), sys.argv[2]
"""
    + LIMITED
    + """
listener = module.socket()
listener.bind(("127.0.0.1", 0))
listener.listen()
"""
    + FILLING
    + """
def readable(sock):
    return bool(select.select([sock], [], [], 90)[0])

kept = []

def new(name, call):
    made = tell(name, call)
    if made is not None:
        kept.append(made)
    return made

clients = []
while sock := new("socket", module.socket):
    sock.settimeout(90)
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
    results.append(accepted is not None and accepted[1] == clients[0].getsockname())
    accepted[0].close()
    tell("recv", lambda: clients[0].recv(1))
    new("dup", clients[0].dup)
    new("dup", clients[0].dup)
    clients[0].close()
    if left > 1:
        (server, _), client = listener.accept(), clients[1]
        server.sendall(b"hello")
        tell("recv", lambda: client.recv(5))
        client.settimeout(90)
        server.setsockopt(1, 13, b"\\1\\0\\0\\0\\0\\0\\0\\0")  # SO_LINGER: reset
        server.close()
        tell("recv", lambda: client.recv(5))
while filling:
    os.close(filling.pop())
with module.create_connection(listener.getsockname()) as client:
    tell("connect", client.getpeername)
print(results)
"""
)

# Two listeners, one of which is not accepted from for a while; IPv6; a child with a table of its own; every way to make
# a socket; and clients that are hung up on, one after the other, with the one fd kept in reserve for that.
TWO_LISTENERS = (
    """
import errno, os, resource, select, socket, sys
import {module} as module

left, lowered, family = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
host = "127.0.0.1" if family == socket.AF_INET else "::1"
"""
    + LIMITED
    + """
listeners = []
for _ in range(2):
    listener = module.socket(family)
    if os.environ.get("SHARES_PORT") and hasattr(module, "UTP_SHARE_PORT"):
        listener.setsockopt(module.SOL_UTP, module.UTP_SHARE_PORT, 1)
    listener.bind((host, 0))
    listener.listen()
    listeners.append(listener)
one, two = listeners
"""
    + FILLING
    + """
def readable(*socks):
    return str([sock in select.select(socks, [], [], 90)[0] for sock in socks])

clients = []
while sock := tell("socket", lambda: module.socket(family)):
    sock.settimeout(90)
    clients.append(sock)
    tell("connect", lambda: sock.connect(listeners[len(clients) % 2].getsockname()))
for name, call in (
    ("socketpair", module.socketpair),
    ("create_server", lambda: module.create_server((host, 0), family=family)),
    ("create_connection", lambda: module.create_connection(one.getsockname()[:2], 20)),
    ("fromfd", lambda: module.fromfd(one.fileno(), family, socket.SOCK_STREAM)),
    ("dup", one.dup),
):
    for made in [tell(name, call) or ()]:
        for sock in made if isinstance(made, tuple) else [made]:
            sock.close()
if clients:
    waited_for = [two, one][: len(clients)]
    for sock in waited_for * 2:
        tell("readable", lambda: readable(sock))
        for timeout in (None, 0.1, 0):
            sock.settimeout(timeout)
            tell("accept", sock.accept)
        sock.settimeout(None)
    tell("readable", lambda: readable(*waited_for))
    for number, client in enumerate(clients):
        os.close(filling.pop())
        listener = listeners[(number + 1) % 2]
        accepted, name = listener.accept()
        results.append(name == client.getsockname())
        accepted.close()
        tell("recv", lambda: client.recv(1))
        filling.append(os.dup(0))
    os.close(filling.pop())
    os.close(filling.pop())
    with module.socket(family) as client:
        client.settimeout(90)
        tell("connect", lambda: client.connect(one.getsockname()))
        child = os.fork()
        if not child:
            os.close(filling.pop())
            accepted, _ = one.accept()
            accepted.sendall(b"child")
            accepted.close()
            os._exit(0)
        tell("recv", lambda: client.recv(10))
        results.append(os.waitpid(child, 0)[1])
        tell("recv", lambda: client.recv(10))
while filling:
    os.close(filling.pop())
with module.create_connection(two.getsockname()[:2]) as client:
    tell("connect", client.getpeername)
print(results)
"""
)

# A server that closes the connections which it cannot serve, under a limit that it may not raise.
POLITE = """
import errno, os, resource, select, subprocess, sys
import {module} as module

clients, limit, lowered = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
program = "import sys\\nsys.path[:] = " + repr(sys.path) + "\\nimport {module} as module" + '''
print(flush=True)
address, results = ("127.0.0.1", int(input())), {}
socks = [module.create_connection(address, 90) for _ in range(int(sys.argv[1]))]
for sock in socks:
    data = sock.recv(10)
    results[data] = results.get(data, 0) + 1
print(results.pop(b"hello"), results.pop(b""), results)
'''
child = subprocess.Popen(
    [sys.executable, "-c", program, str(clients)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
)
if lowered == "after":
    listener = module.create_server(("127.0.0.1", 0), backlog=128)
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
if lowered == "before":
    listener = module.create_server(("127.0.0.1", 0), backlog=128)
reserve = os.open("/dev/null", os.O_RDONLY)
print(listener.getsockname()[1], file=child.stdin, flush=True)
child.stdout.readline()  # it has begun, which takes long on a busy machine
served, refused = [], 0
while len(served) + refused < clients:
    assert select.select([listener], [], [], 90)[0], f"not readable after {len(served)} and {refused}"
    try:
        served.append(listener.accept()[0])
        served[-1].send(b"hello")
    except OSError as error:
        assert error.errno == errno.EMFILE, error
        os.close(reserve)
        listener.accept()[0].close()
        reserve = os.open("/dev/null", os.O_RDONLY)
        refused += 1
print(child.stdout.read().split(), [str(len(served)), str(refused), "{}"])
child.wait()
"""


def run(name: str, script: Path, *arguments: object, program: str = PROGRAM, **environment: str) -> str:
    source = program.replace("{module}", MODULES[name])
    script.write_text(f"import sys\nsys.path.insert(0, {str(REPOSITORY)!r})\n{source}", encoding="utf-8")
    done: Any = subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_NOFILE as Linux has it")
@pytest.mark.timeout(480)
@pytest.mark.parametrize("lowered", ["before", "after"])
@pytest.mark.parametrize("left", range(9))
def test_with_few_fds_left(left: int, lowered: str, tmp_path: Path) -> None:
    """`lowered`: the limit, before or after the first socket is made. Then the engine's are above the limit."""
    script = tmp_path / "few.py"
    assert run("utp", script, left, lowered) == run("tcp", script, left, lowered)


ENVIRONMENTS: dict[str, Any] = {
    "thread": {},
    "process": {"UTPSOCKET_ENGINE": "process"},
    "poll": {"UTPSOCKET_POLLER": "poll"},
    "shared port": {"SHARES_PORT": "1"},
}


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_NOFILE as Linux has it")
@pytest.mark.timeout(480)
@pytest.mark.parametrize("lowered", ["before", "after"])
@pytest.mark.parametrize("family", [socket.AF_INET, pytest.param(socket.AF_INET6, marks=requires_ipv6)])
@pytest.mark.parametrize(
    ("left", "environment"),
    [(0, "thread"), (3, "thread"), (0, "process"), (1, "process"), (3, "poll"), (8, "shared port")],
)
def test_two_listeners_and_few_fds_left(
    left: int, environment: str, family: socket.AddressFamily, lowered: str, tmp_path: Path
) -> None:
    arguments = tmp_path / "few.py", left, lowered, int(family)
    expected = run("tcp", *arguments, program=TWO_LISTENERS)
    assert run("utp", *arguments, program=TWO_LISTENERS, **ENVIRONMENTS[environment]) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_NOFILE as Linux has it")
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("environment", "lowered"),
    # As another user the server may not be able to start the engine's process.
    [("thread", "before"), ("thread", "after"), ("poll", "before"), ("poll", "after"), ("process", "after")],
)
@pytest.mark.parametrize("limit", [32, 64, 256])
def test_a_server_at_its_limit_closes_all_other_connections(
    limit: int, lowered: str, environment: str, tmp_path: Path
) -> None:
    """`lowered`: the limit, which the server may not raise, before or after the first socket is made. There is always
    one connection to be accepted, with the fd that the server closes for that.
    """
    clients = limit + 20
    results, expected = ast.literal_eval(
        run("utp", tmp_path / "polite.py", clients, limit, lowered, program=POLITE, **ENVIRONMENTS[environment])
        .strip()
        .replace("] [", "], [")
    )
    assert results == expected
    served, refused, _ = results
    assert int(served) >= limit // 5  # each costs two fds
    assert int(served) + int(refused) == clients


# Between any two lines of ours that run while no number is left, something takes the one that there is for a moment.
TAKER = """
import ctypes, os, resource, socket, sys
from functools import partial
import {module}
from {module}.engine.interpreter.native import Socket
from {module}.engine.kernel import high_fds

resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
high_fds.prepare()
try:
    while True:
        os.dup(0)
except OSError:
    pass
duplicate, taken, made = ctypes.PyDLL(None).dup, [], []
how = {"is_for_accept": True, "takes_programs": False}

def take(*_):
    taken.append(duplicate(0))

for _ in range(3):
    sys.setprofile(take)
    try:
        made.append(high_fds.with_room(partial(Socket, socket.AF_UNIX, socket.SOCK_STREAM, 0), **how))
    finally:
        sys.setprofile(None)
print(len(made), {*taken})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_NOFILE as Linux has it")
def test_the_program_does_not_get_the_number_that_is_kept_for_a_connection(tmp_path: Path) -> None:
    """Its accept(), called in the same moment, would take it for good, and the next connection would wait for ever."""
    assert run("utp", tmp_path / "taker.py", program=TAKER) == "3 {-1}\n"

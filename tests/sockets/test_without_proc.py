"""Without /proc and /sys, in a root directory with nothing in it, and without root's rights: what TCP does there."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache

import pytest

from .network import MODULES, REPOSITORY, own_loopback

PROGRAM = """
import errno, importlib, os, socket as stdlib, subprocess, sys, time
name, where, _, host = sys.argv[1:]
module = importlib.import_module(name)
RESET = b"\\1\\0\\0\\0\\0\\0\\0\\0"

def listener():
    made = module.socket()
    made.bind((host, 0))
    made.listen()
    made.settimeout(30)
    return made

def dialed(address):
    made = module.socket()
    made.settimeout(30)
    made.connect(address)
    return made

def serves(sock, address):
    client = dialed(address)
    server, _ = sock.accept()
    server.sendall(b"served")
    received = client.recv(10)
    client.close()
    server.settimeout(30)
    received += server.recv(1)  # so that TIME_WAIT is the client's
    server.close()
    return received

def bind(address):
    with module.socket() as another:
        try:
            another.bind(address)
        except OSError as error:
            return errno.errorcode[error.errno]
        return "free"

def freed(address):
    # A connection may be left whose last FIN is not acked yet: over uTP a busy machine takes a while for that.
    deadline = time.monotonic() + 30
    while (found := bind(address)) != "free" and time.monotonic() < deadline:
        time.sleep(0.01)
    return found

def last_copy(copy, address):
    copy.settimeout(30)
    results = [bind(address), serves(copy, address), copy.getsockname() == address]
    copy.close()
    return [*results, freed(address)]

def a_duplicate():
    first = listener()
    address, copy = first.getsockname(), first.dup()
    first.close()
    return last_copy(copy, address)

def a_bare_duplicate():
    first = listener()
    address, fd = first.getsockname(), os.dup(first.fileno())
    first.close()
    return last_copy(module.socket(fileno=fd), address)

def another_number():
    first = listener()
    address, fd = first.getsockname(), os.dup2(first.fileno(), 77)
    first.close()
    return last_copy(module.socket(fileno=fd), address)

def a_duplicate_that_does_not_listen_yet():
    first = module.socket()
    first.bind((host, 0))
    address, copy = first.getsockname(), first.dup()
    first.close()
    taken = bind(address)
    copy.listen()
    return [taken, *last_copy(copy, address)]

def a_duplicate_that_connects():
    with listener() as server:
        first = module.socket()
        first.bind((host, 0))
        address, copy = first.getsockname(), first.dup()
        first.close()
        taken = bind(address)
        with copy:
            copy.connect(server.getsockname())
            return [taken, copy.getsockname() == address]

def on_its_way():
    first = listener()
    address = first.getsockname()
    here, there = stdlib.socketpair()
    stdlib.send_fds(here, [b"fd"], [first.fileno()])
    first.close()
    taken = bind(address)
    fd, = stdlib.recv_fds(there, 2, 1)[1]
    return [taken, *last_copy(module.socket(fileno=fd), address)]

def a_forked_child():
    first = listener()
    address = first.getsockname()
    pid = os.fork()
    if not pid:
        try:
            first.accept()[0].sendall(b"the child")
        finally:
            os._exit(0)
    first.close()
    with dialed(address) as client:
        results = [client.recv(10)]
    os.waitpid(pid, 0)
    return results

def an_executed_child():
    first = listener()
    address = first.getsockname()
    child = f"import sys, {name} as m; l = m.socket(fileno=int(sys.argv[1])); l.accept()[0].sendall(b'the child')"
    with subprocess.Popen([sys.executable, "-c", child, str(first.fileno())], pass_fds=[first.fileno()]):
        first.close()
        with dialed(address) as client:
            return [client.recv(10)]

def a_reset():
    with listener() as server:
        client = dialed(server.getsockname())
        fd = os.dup(client.fileno())
        client.close()
        accepted, _ = server.accept()
        accepted.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_LINGER, RESET)
        accepted.close()
        os.set_blocking(fd, True)
        try:
            return os.read(fd, 1)
        except OSError as error:
            return errno.errorcode[error.errno]
        finally:
            os.close(fd)

tried = [a_duplicate, a_bare_duplicate, another_number, a_duplicate_that_does_not_listen_yet, a_duplicate_that_connects,
         on_its_way, a_forked_child, a_reset]
if where == "chroot":
    os.chroot(sys.argv[3])
    os.chdir("/")
else:
    tried.append(an_executed_child)
if where == "nobody":
    tried.remove(an_executed_child)  # the interpreter need not be nobody's to run
    first = listener()
    address = first.getsockname()
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    copy = first.dup()
    first.close()
    print(repr(("given up", last_copy(copy, address))))
for each in tried:
    try:
        print(repr((each.__name__, each())), flush=True)
    except BaseException as error:
        print(repr((each.__name__, repr(error))), flush=True)
"""
HIDDEN = 'mount -t tmpfs none /proc && mount -t tmpfs none /sys && exec "$@"'


@cache
def results(module: str, where: str) -> dict[str, object]:
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root: mount namespaces and chroot()")
    prefix = ["unshare", "--mount", "sh", "-c", HIDDEN, "sh"] if where == "no /proc" else []
    with tempfile.TemporaryDirectory() as nothing:
        done = subprocess.run(
            [*prefix, sys.executable, "-c", PROGRAM, module, where, nothing, own_loopback()],
            capture_output=True,
            text=True,
            timeout=120,
            # An engine of its own process needs an interpreter, which is not in an empty root directory.
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "UTPSOCKET_ENGINE": "thread"},
            check=False,
        )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return dict(map(ast.literal_eval, done.stdout.splitlines()))


@pytest.mark.parametrize("where", ["here", "no /proc", "chroot", "nobody"])
def test_a_process_with_a_copy_of_a_socket_has_the_socket(where: str) -> None:
    assert results(MODULES["utp"], where) == results(MODULES["tcp"], where)

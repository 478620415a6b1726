"""Threads in another network namespace than the engine's thread, or than the one in which the socket was made."""

from __future__ import annotations

import ast
import os

import pytest

from tests.namespaces import run_in_a_network

from .network import MODULES

PROGRAM = """
import ctypes, errno, importlib, os, subprocess, sys, threading
module = importlib.import_module(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)

def unshare():
    if libc.unshare(0x40000000):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)

def in_a_thread(function, *arguments):
    results = []
    def run():
        try:
            results.append(function(*arguments))
        except BaseException as error:
            results.append(repr(error))
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(100)
    return results[0] if results else "hangs"

def exchange(listener, client):
    client.settimeout(30)
    listener.settimeout(30)
    client.connect(listener.getsockname())
    server, peer = listener.accept()
    server.settimeout(30)
    client.sendall(b"ping")
    server.sendall(server.recv(4))
    results = client.recv(4), peer == client.getsockname()
    client.close()
    server.close()
    return results

def listener(port=0, options=()):
    made = module.socket()
    for option in options:
        made.setsockopt(module.SOL_SOCKET, option, 1)
    made.bind(("127.0.0.1", port))
    made.listen()
    return made

with listener() as first:
    print(repr(("here", exchange(first, module.socket()))))
    port = first.getsockname()[1]

    def elsewhere():
        unshare()
        with listener(port) as second:
            results = [exchange(second, module.socket()), exchange(second, module.socket())]
            again = module.socket()
            try:
                again.bind(("127.0.0.1", port))
            except OSError as error:
                results.append(errno.errorcode[error.errno])
            again.close()
        with listener(options=[module.SO_REUSEPORT]) as shared:
            results.append(exchange(shared, module.socket()))
        return results

    print(repr(("in a thread elsewhere", in_a_thread(elsewhere))))

    made_before = module.socket()
    def moved():
        unshare()
        return exchange(first, made_before)

    print(repr(("connects where it was made", in_a_thread(moved))))

    bound_later = module.socket()
    def moved_and_bound():
        unshare()
        bound_later.bind(("127.0.0.1", 0))
        bound_later.listen()

    in_a_thread(moved_and_bound)
    print(repr(("listens where it was made", exchange(bound_later, module.socket()))))

    refused_before = module.socket()
    def moved_and_refused():
        code = refused_before.connect_ex(("127.0.0.1", 1))
        unshare()
        try:
            refused_before.connect(("127.0.0.1", 1))
        except OSError as error:
            pass
        return code, exchange(first, refused_before)

    print(repr(("connects again where it was made", in_a_thread(moved_and_refused))))

unshare()
with listener() as last:
    print(repr(("the main thread elsewhere", exchange(last, module.socket()))))
"""
REFUSED = """
import ctypes, os, threading, utpsocket
libc = ctypes.CDLL(None, use_errno=True)
utpsocket.create_server(("127.0.0.1", 0)).close()

def elsewhere():
    assert not libc.unshare(0x40000000)
    listener = utpsocket.socket()
    listener.bind(("0.0.0.0", 0))
    libc.syscall(117, -1, 65534, -1)  # setresuid() of this thread alone: its capabilities are gone
    try:
        listener.listen()
    except OSError as error:
        print(error)

thread = threading.Thread(target=elsewhere)
thread.start()
thread.join()
"""


def test_a_socket_belongs_to_the_namespace_in_which_it_was_made() -> None:
    results = {net: run_in_a_network(PROGRAM, module).splitlines() for net, module in MODULES.items()}
    assert list(map(ast.literal_eval, results["utp"])) == list(map(ast.literal_eval, results["tcp"]))


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="needs the number of setresuid()")
def test_where_the_engine_may_not_follow_it_is_said() -> None:
    assert "another network namespace" in run_in_a_network(REFUSED, setup="export UTPSOCKET_ENGINE=thread")

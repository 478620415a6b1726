"""Forked children: they serve inherited connections, accept, dial, and the last copy closed is the end."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .network import (
    MODULES,
    PATIENCE_S,
    REPOSITORY,
    Net,
    fork,
    own_loopback,
    raises_errno,
    receive_all,
    receive_exactly,
    wait_child,
)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")


class Gate:
    """Lets a child wait for a word of its parent, or the reverse, without sockets."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()

    def open(self, count: int = 1) -> None:
        os.write(self.writing, b"." * count)

    def wait(self) -> None:
        assert select.select([self.reading], [], [], PATIENCE_S)[0], "nobody opened the gate"
        os.read(self.reading, 1)

    def close(self) -> None:
        os.close(self.reading)
        os.close(self.writing)


def no_end_of_file(sock: Any, wait_s: float = 0.1) -> bool:
    return not select.select([sock], [], [], wait_s)[0]


def test_child_serves_an_inherited_connection(net: Net) -> None:
    client, server = net.pair()

    def serve() -> None:
        while data := server.recv(100_000):
            server.sendall(data.upper())
        server.close()

    pid = fork(serve)
    server.close()
    client.sendall(b"shout")
    assert receive_exactly(client, 5) == b"SHOUT"
    payload = b"many bytes " * 20_000
    task = net.spawn(receive_exactly, client, len(payload))
    client.sendall(payload)
    assert task.result() == payload.upper()
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    assert wait_child(pid) == 0


def test_child_knows_the_names(net: Net) -> None:
    client, _server = net.pair()
    expected = (client.getsockname(), client.getpeername(), repr(client))

    def check() -> None:
        assert (client.getsockname(), client.getpeername(), repr(client)) == expected
        adopted = net.module.socket(fileno=os.dup(client.fileno()))
        assert (adopted.getsockname(), adopted.getpeername()) == expected[:2]
        assert adopted.family == socket.AF_INET

    assert wait_child(fork(check)) == 0


def test_end_of_file_comes_exactly_when_the_last_copy_closes(net: Net) -> None:
    client, server = net.pair()
    gate, done = net.own(Gate()), net.own(Gate())

    def hold() -> None:
        gate.wait()
        client.sendall(b"from the child")
        done.open()
        gate.wait()
        client.close()
        done.open()
        gate.wait()

    pid = fork(hold)
    client.close()
    assert no_end_of_file(server)
    gate.open()
    done.wait()
    assert receive_exactly(server, 14) == b"from the child"
    assert no_end_of_file(server)
    gate.open()
    done.wait()
    assert server.recv(1) == b""  # the child lives on, but has closed
    gate.open()
    assert wait_child(pid) == 0


def test_end_of_file_comes_when_the_child_that_holds_the_last_copy_exits(net: Net) -> None:
    client, server = net.pair()
    gate = net.own(Gate())
    pid = fork(gate.wait)
    client.close()
    assert no_end_of_file(server)
    gate.open()
    assert wait_child(pid) == 0
    assert server.recv(1) == b""


def test_shutdown_in_the_child_reaches_the_parent(net: Net) -> None:
    client, server = net.pair()
    assert wait_child(fork(lambda: client.shutdown(socket.SHUT_WR))) == 0
    assert server.recv(1) == b""
    with raises_errno(errno.EPIPE):
        client.send(b"x")


def test_exit_of_an_idle_child_disturbs_nothing(net: Net) -> None:
    client, server = net.pair()
    listener = net.listener()
    assert wait_child(fork(lambda: None)) == 0
    client.sendall(b"undisturbed")
    assert receive_exactly(server, 11) == b"undisturbed"
    late = net.fresh()
    late.connect(listener.getsockname())
    assert net.accept(listener).getpeername() == late.getsockname()
    client.close()
    assert server.recv(1) == b""


def test_closing_in_the_child_leaves_the_parent_alone(net: Net) -> None:
    client, server = net.pair()
    listener = net.listener()

    def close_all() -> None:
        for sock in (client, server, listener):
            sock.close()

    assert wait_child(fork(close_all)) == 0
    client.sendall(b"x")
    assert server.recv(1) == b"x"
    net.fresh().connect(listener.getsockname())
    net.accept(listener)


def greeted(net: Net, listener: Any) -> Any:
    """A client whose worker has received its bytes and answered."""
    client = net.fresh(timeout=PATIENCE_S)
    client.connect(listener.getsockname())
    client.sendall(b"hello")
    assert client.recv(1) == b"x"
    return client


def fork_and_close(gate: Gate, *socks: Any) -> int:
    """A child that closes its copies of these sockets and lives until the gate opens."""

    def close_all_and_stay() -> None:
        for sock in socks:
            sock.close()
        gate.wait()

    return fork(close_all_and_stay)


def test_child_that_holds_nothing_does_not_keep_the_peer_open(net: Net) -> None:
    """The engine's own fds must not live on in a child: they would hide the end of file."""
    gate = net.own(Gate())
    client, server = net.pair()
    pid = fork_and_close(gate, client, server)
    client.close()
    assert server.recv(1) == b""
    gate.open()
    assert wait_child(pid) == 0


def test_reset_reaches_the_parent_although_an_idle_child_runs(net: Net) -> None:
    """It is said by a close of the engine's: a copy in a child would put that off until the child ends."""
    gate = net.own(Gate())
    client, server = net.pair()
    pid = fork_and_close(gate, client, server)
    net.reset(server)
    client.settimeout(PATIENCE_S)
    with raises_errno(errno.ECONNRESET):
        client.recv(1)
    gate.open()
    assert wait_child(pid) == 0


def test_port_is_free_although_a_child_runs(net: Net) -> None:
    gate = net.own(Gate())
    listener = net.listener(host=own_loopback())
    address = listener.getsockname()

    def close_and_stay() -> None:
        listener.close()
        gate.open()
        stay.wait()

    stay = net.own(Gate())
    pid = fork(close_and_stay)
    gate.wait()
    listener.close()
    again = net.fresh()
    again.bind(address)
    again.listen()
    stay.open()
    assert wait_child(pid) == 0


# -- listening ------------------------------------------------------------------------------------------------


def serve_one(listener: Any) -> None:
    sock, peer = listener.accept()
    with sock:
        assert sock.getpeername() == peer
        assert sock.getsockname() == listener.getsockname()
        sock.sendall(b"%d" % os.getpid())
        assert sock.recv(100) == b""


def test_prefork_four_workers_accept_from_one_listener(net: Net) -> None:
    listener = net.listener()

    def work() -> None:
        for _ in range(5):
            serve_one(listener)

    workers = [fork(work) for _ in range(4)]
    served = []
    for _ in range(20):
        with net.module.create_connection(listener.getsockname(), timeout=PATIENCE_S) as client:
            served.append(int(client.recv(100)))
    assert set(served) == set(workers)
    assert [wait_child(worker) for worker in workers] == [0] * 4


def test_worker_that_waits_in_select(net: Net) -> None:
    listener = net.listener()
    listener.setblocking(False)

    def work() -> None:
        assert select.select([listener], [], [], PATIENCE_S)[0]
        serve_one(listener)

    pid = fork(work)
    with net.module.create_connection(listener.getsockname(), timeout=PATIENCE_S) as client:
        assert int(client.recv(100)) == pid
    assert wait_child(pid) == 0


def test_parent_closes_the_listener_and_the_child_goes_on_accepting(net: Net) -> None:
    listener = net.listener(host=own_loopback())
    address = listener.getsockname()
    pid = fork(lambda: serve_one(listener))
    listener.close()
    with net.module.create_connection(address, timeout=PATIENCE_S) as client:
        assert int(client.recv(100)) == pid
    assert wait_child(pid) == 0
    assert net.fresh().connect_ex(address) == errno.ECONNREFUSED  # the first attempt already


def test_connection_accepted_in_the_child_ends_with_it(net: Net) -> None:
    listener = net.listener()

    def accept_and_leave() -> None:
        sock, _ = listener.accept()
        sock.sendall(b"bye")
        os._exit(0)

    pid = fork(accept_and_leave)
    client = net.fresh()
    client.connect(listener.getsockname())
    assert receive_all(client) == b"bye"
    assert wait_child(pid) == 0


@pytest.mark.parametrize("asks", ["recv", "SO_ERROR", "send"])
def test_reset_reaches_the_worker_that_has_accepted(net: Net, asks: str) -> None:
    listener = net.listener()
    gate = net.own(Gate())

    def work() -> None:
        sock, _ = listener.accept()
        sock.settimeout(PATIENCE_S)
        assert receive_exactly(sock, 5) == b"hello"
        sock.sendall(b"x")
        if asks == "recv":
            with raises_errno(errno.ECONNRESET):
                sock.recv(100)
        else:
            assert select.select([sock], [], [], PATIENCE_S)[0]
            if asks == "SO_ERROR":
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
            else:
                with raises_errno(errno.ECONNRESET):
                    sock.send(b"y")
        assert [sock.recv(100), sock.recv_into(bytearray(9)), sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)] == [
            b"",
            0,
            0,
        ]
        gate.wait()

    pid = fork(work)
    net.reset(greeted(net, listener))
    gate.open()
    assert wait_child(pid) == 0


def test_reset_reaches_the_child_that_has_inherited_the_connection(net: Net) -> None:
    client, server = net.pair()
    gate, ready = net.own(Gate()), net.own(Gate())

    def work() -> None:
        client.close()
        ready.open()
        gate.wait()
        with raises_errno(errno.ECONNRESET):
            server.recv(100)
        assert server.recv(100) == b""

    pid = fork(work)
    ready.wait()
    server.close()
    net.reset(client)
    gate.open()
    assert wait_child(pid) == 0


READS_ITS_STANDARD_INPUT = """
import os, select
assert os.read(0, 5) == b"hello"
os.write(1, b"x")
poller = select.poll()
poller.register(0, 0)
[(_, mask)] = poller.poll(30_000)
try:
    os.read(0, 1)
    said = 0
except OSError as error:
    said = error.errno
os.write(1, b"%d %d %d" % (said, mask & select.POLLERR, len(os.read(0, 1))))
"""


def test_reset_reaches_a_program_that_was_started_with_the_connection(net: Net) -> None:
    """It has no part of the library: what it knows is what the kernel says."""
    client, server = net.pair()
    program = [sys.executable, "-I", "-S", "-c", READS_ITS_STANDARD_INPUT]
    with subprocess.Popen(program, stdin=server, stdout=subprocess.PIPE) as process:
        server.close()
        client.sendall(b"hello")
        assert process.stdout is not None and process.stdout.read(1) == b"x"
        net.reset(client)
        assert process.stdout.read() == b"%d %d 0" % (errno.ECONNRESET, select.POLLERR)


def test_reset_reaches_the_epoll_of_the_worker_that_has_accepted(net: Net) -> None:
    listener = net.listener()

    def work() -> None:
        sock, _ = listener.accept()
        assert receive_exactly(sock, 5) == b"hello"
        sock.sendall(b"x")
        with select.epoll() as poller:
            poller.register(sock, 0)
            [(_, mask)] = poller.poll(PATIENCE_S)
        assert mask == select.EPOLLERR | select.EPOLLHUP
        with pytest.raises(ConnectionResetError):
            os.read(sock.fileno(), 1)

    pid = fork(work)
    net.reset(greeted(net, listener))
    assert wait_child(pid) == 0


def test_end_of_file_is_none_the_less_one_in_a_worker(net: Net) -> None:
    """Also where another process has sent our FIN, so that the connection is over when the worker sees its end."""
    client, server = net.pair()
    gate, ready = net.own(Gate()), net.own(Gate())

    def work() -> None:
        client.close()
        ready.open()
        gate.wait()
        assert receive_all(server) == b"bye"
        assert server.recv(100) == b""
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0

    pid = fork(work)
    ready.wait()
    server.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    client.sendall(b"bye")
    client.close()
    gate.open()
    assert wait_child(pid) == 0


# -- the child's own sockets ----------------------------------------------------------------------------------


def test_child_opens_its_own_connection(net: Net) -> None:
    listener = net.listener()

    def dial() -> None:
        with net.module.create_connection(listener.getsockname(), timeout=PATIENCE_S) as sock:
            sock.sendall(b"child calling")
            assert receive_all(sock) == b"parent here"
        net.flush()

    pid = fork(dial)
    server = net.accept(listener)
    assert receive_exactly(server, 13) == b"child calling"
    server.sendall(b"parent here")
    server.close()
    assert wait_child(pid) == 0


def test_child_listens_and_the_parent_dials(net: Net) -> None:
    reading, writing = os.pipe()
    try:

        def serve() -> None:
            with net.module.create_server(("127.0.0.1", 0)) as listener:
                os.write(writing, b"%d" % listener.getsockname()[1])
                serve_one(listener)
            net.flush()

        pid = fork(serve)
        with net.module.create_connection(("127.0.0.1", int(os.read(reading, 10))), timeout=PATIENCE_S) as client:
            assert int(client.recv(100)) == pid
        assert wait_child(pid) == 0
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("again", ["listens", "connects"])
def test_child_cannot_connect_a_socket_that_its_parent_uses_again(net: Net, again: str) -> None:
    listener, sock = net.listener(), net.fresh()
    gate = Gate()

    def connect() -> None:
        gate.wait()
        for _ in range(2):
            with raises_errno(errno.EISCONN):
                sock.connect(listener.getsockname())
        assert sock.connect_ex(listener.getsockname()) == errno.EISCONN

    pid = fork(connect)
    if again == "listens":
        with raises_errno(errno.ENOTCONN):
            sock.shutdown(socket.SHUT_RD)
        sock.listen()
    else:
        with raises_errno(errno.ECONNREFUSED):
            sock.connect(net.refused_address())
        sock.connect(listener.getsockname())
    gate.open()
    assert wait_child(pid) == 0
    gate.close()
    listener.settimeout(PATIENCE_S if again == "connects" else 0)
    if again == "connects":
        net.accept(listener)  # of the parent: the child has made none
        listener.settimeout(0)
    with raises_errno(errno.EAGAIN):
        listener.accept()


def test_child_may_connect_where_its_parent_has_failed(net: Net) -> None:
    listener, sock = net.listener(), net.fresh()
    ready, done = Gate(), Gate()

    def connect() -> None:
        ready.wait()
        sock.connect(listener.getsockname())
        ready.open()
        done.wait()
        net.flush()

    pid = fork(connect)
    with raises_errno(errno.ECONNREFUSED):
        sock.connect(net.refused_address())
    ready.open()
    net.accept(listener)
    ready.wait()
    with raises_errno(errno.EISCONN):  # one socket, and the child has connected it
        sock.connect(listener.getsockname())
    with raises_errno(errno.EINVAL):
        sock.listen()
    done.open()
    assert wait_child(pid) == 0
    ready.close()
    done.close()


def test_child_uses_inherited_and_own_sockets_together(net: Net) -> None:
    client, server = net.pair()
    listener = net.listener()

    def relay() -> None:
        with net.module.create_connection(listener.getsockname(), timeout=PATIENCE_S) as onward:
            onward.sendall(receive_exactly(server, 7))
            server.sendall(receive_exactly(onward, 6))
            assert onward.recv(1) == b""
        net.flush()

    pid = fork(relay)
    target = net.accept(listener)
    client.sendall(b"request")
    assert receive_exactly(target, 7) == b"request"
    target.sendall(b"answer")
    assert receive_exactly(client, 6) == b"answer"
    target.close()
    assert wait_child(pid) == 0


def test_grandchild(net: Net) -> None:
    listener = net.listener()

    def child() -> None:
        def grandchild() -> None:
            with net.module.create_connection(listener.getsockname(), timeout=PATIENCE_S) as sock:
                sock.sendall(b"grandchild")
                assert sock.recv(1) == b""
            net.flush()

        with net.module.create_connection(listener.getsockname(), timeout=PATIENCE_S) as sock:
            sock.sendall(b"child")
            assert sock.recv(1) == b""
            assert wait_child(fork(grandchild)) == 0
        net.flush()

    pid = fork(child)
    words = []
    for _ in range(2):
        server = net.accept(listener)
        words.append(server.recv(100))
        server.close()
    assert words == [b"child", b"grandchild"]
    assert wait_child(pid) == 0


def test_child_closes_its_own_connection_and_leaves_at_once(net: Net) -> None:
    """As forking servers' children do, but over a connection of the child's own."""
    listener = net.listener()

    def send_and_leave() -> None:
        sock = net.module.create_connection(listener.getsockname(), timeout=PATIENCE_S)
        sock.sendall(b"x" * 100_000)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""  # the peer has read everything
        sock.close()
        net.flush()

    pid = fork(send_and_leave)
    server = net.accept(listener)
    assert len(receive_all(server)) == 100_000
    server.close()
    assert wait_child(pid) == 0


def test_many_forks_leave_the_parent_working(net: Net) -> None:
    client, server = net.pair()
    for round_number in range(8):
        assert wait_child(fork(lambda: client.sendall(b"c"))) == 0
        assert server.recv(1) == b"c"
        client.sendall(b"%d" % round_number)
        assert server.recv(1) == b"%d" % round_number


def test_fork_while_data_is_flowing(net: Net) -> None:
    client, server = net.pair()
    payload = os.urandom(3 << 20)
    sender = net.spawn(lambda: (client.sendall(payload), client.close()))
    received = bytearray(receive_exactly(server, 100_000))
    pid = fork(lambda: None)
    received += receive_all(server)
    sender.result()
    assert received == payload
    assert wait_child(pid) == 0


HOOK = """
import os, sys, threading
hooks = []
os.register_at_fork(before=lambda: [hook() for hook in hooks])  # registered before ours, and so called after it
sys.path.insert(0, {path!r})
import {module} as module

listener = module.create_server(("127.0.0.1", 0))

def serve():
    while True:
        conn, _ = listener.accept()
        conn.sendall(conn.recv(1))
        conn.close()

def talk():
    with module.create_connection(listener.getsockname(), timeout=20) as sock:
        sock.sendall(b"x")
        os.write(1, repr(sock.recv(1)).encode() + b"\\n")  # in one piece: two threads talk at once

def fork():
    pid = os.fork()
    os.waitpid(pid, 0) if pid else os._exit(0)

threading.Thread(target=serve, daemon=True).start()
talk()
hooks.append(talk)
threads = [threading.Thread(target=fork) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
talk()
os._exit(0)
"""


@pytest.mark.parametrize("engine", ["thread", "process"])
@pytest.mark.parametrize("name", MODULES)
def test_what_the_program_does_just_before_a_fork_may_need_the_network(name: str, engine: str, tmp_path: Path) -> None:
    """os.register_at_fork(before=…), two threads at once."""
    script = tmp_path / "hook.py"
    script.write_text(HOOK.format(path=str(REPOSITORY), module=MODULES[name]), encoding="utf-8")
    done = subprocess.run(
        # Python 3.12 and later warn of a fork beside other threads, over TCP too.
        [sys.executable, "-W", "ignore::DeprecationWarning", script],
        env={**os.environ, "UTPSOCKET_ENGINE": engine},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("b'x'\n" * 4, "")

"""Sockets handed to other programs, and what arrives when a program ends."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from .network import (
    ERR,
    HUP,
    MODULES,
    PATIENCE_S,
    REPOSITORY,
    RESET_ON_CLOSE,
    Net,
    eventually,
    fork,
    poll_mask,
    receive_all,
    receive_exactly,
    wait_child,
)

MEBIBYTE = 1 << 20


def code(text: str) -> str:
    return textwrap.dedent(text)


# -- handed over ----------------------------------------------------------------------------------------------


def test_a_connection_as_stdin_and_stdout_of_any_program(net: Net) -> None:
    client, server = net.pair()
    with subprocess.Popen(["tr", "a-z", "A-Z"], stdin=server, stdout=server) as program:
        server.close()
        client.sendall(b"shout\n")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"SHOUT\n"
    assert program.returncode == 0


def test_an_executed_child_adopts_its_stdin(net: Net) -> None:
    client, server = net.pair()
    script = code("""
        sock = socket.socket(fileno=0)
        assert sock.family == socket.AF_INET and sock.type == socket.SOCK_STREAM, sock
        sock.sendall(repr((sock.getsockname(), sock.getpeername())).encode() + b"\\n")
        assert sock.recv(100) == b"thank you"
        sock.close()
    """)
    expected = repr((server.getsockname(), server.getpeername())).encode() + b"\n"
    process = net.python(script, stdin=server)
    server.close()
    assert receive_exactly(client, len(expected)) == expected
    client.sendall(b"thank you")
    assert client.recv(1) == b""
    assert process.wait(PATIENCE_S) == 0


def test_an_executed_child_adopts_an_inherited_listener(net: Net) -> None:
    """As under systemd or inetd."""
    listener = net.listener()
    script = code("""
        import sys
        listener = socket.socket(fileno=int(sys.argv[1]))
        sock, peer = listener.accept()
        sock.sendall(repr((listener.getsockname(), peer)).encode())
        sock.close()
    """)
    process = net.python(script, listener.fileno(), pass_fds=[listener.fileno()])
    client = net.fresh()
    client.connect(listener.getsockname())
    assert receive_all(client) == repr((listener.getsockname(), client.getsockname())).encode()
    assert process.wait(PATIENCE_S) == 0


def test_an_executed_child_that_shuts_down_both_halves_has_not_closed(net: Net) -> None:
    """Where a close sends a RESET."""
    client, server = net.pair()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    script = code("""
        import sys
        sock = socket.socket(fileno=int(sys.argv[1]))
        sock.sendall(b"goodbye")
        sock.shutdown(socket.SHUT_RDWR)
        sys.stdin.read()
    """)
    process = net.python(script, server.fileno(), pass_fds=[server.fileno()], stdin=subprocess.PIPE)
    server.close()
    assert receive_all(client) == b"goodbye"
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(PATIENCE_S) == 0
    assert eventually(lambda: poll_mask(client) & (ERR | HUP), ERR | HUP) == ERR | HUP


def test_an_executed_child_does_not_inherit_what_it_was_not_given(net: Net) -> None:
    client, server = net.pair()
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    try:
        client.close()
        assert server.recv(1) == b""
    finally:
        process.communicate(b"\n")


def test_fd_passed_to_another_process(net: Net) -> None:
    left, right = (net.own(sock) for sock in socket.socketpair())
    client, server = net.pair()

    def receive_it() -> None:
        left.close()
        client.close()
        server.close()
        _data, fds, _, _ = net.module.recv_fds(right, 10, 1)
        sock = net.module.socket(fileno=fds[0])
        sock.sendall(repr(sock.getpeername()).encode())
        sock.close()

    pid = fork(receive_it)
    net.module.send_fds(left, [b"take"], [client.fileno()])
    expected = repr(client.getpeername()).encode()
    assert wait_child(pid) == 0
    client.close()
    assert receive_all(server) == expected


MULTIPROCESSING = """
import multiprocessing, sys
import {module} as socket

def serve(sock, pipe):
    address, family = sock.getsockname(), sock.family
    sock.sendall(b"from the child: " + sock.recv(100))
    sock.close()
    pipe.send((address, int(family), type(sock) is socket.socket))

def main(method):
    context = multiprocessing.get_context(method)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), timeout=60)
        server, _ = listener.accept()
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(server, theirs))
    process.start()
    name = server.getsockname()
    client.sendall(b"hello")
    seen = ours.recv()
    server.close()
    received = b"".join(iter(lambda: client.recv(100), b""))
    process.join(60)
    assert received == b"from the child: hello", received
    assert seen == (name, int(socket.AF_INET), True), seen
    assert process.exitcode == 0, process.exitcode
    client.close()
    print("good")

if __name__ == "__main__":
    main(sys.argv[1])
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_passes_sockets(net: Net, method: str, tmp_path: Path) -> None:
    script = tmp_path / "passing.py"
    script.write_text(MULTIPROCESSING.replace("{module}", MODULES[net.name]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script, method],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )
    assert (done.stdout, done.returncode) == (b"good\n", 0), done.stderr.decode()


CHILD_SENDS = """
import multiprocessing, sys
import {module} as socket

if sys.argv[2] == "used_at_import":  # by a forkserver's process before it knows that it has a parent
    listener = socket.create_server(("127.0.0.1", 0))

def send(address):
    sock = socket.create_connection(address)
    sock.sendall(b"m" * 300_000)
    if sys.argv[2] == "close":
        sock.close()

if __name__ == "__main__":
    process = multiprocessing.get_context(sys.argv[1]).Process(target=send, args=(("127.0.0.1", int(sys.argv[3])),))
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("method", "how"),
    [
        *[("fork", "leave_open"), ("fork", "used_at_import"), ("fork", "close")],
        *[("spawn", "close"), ("spawn", "used_at_import"), ("forkserver", "close"), ("forkserver", "used_at_import")],
    ],
)
def test_multiprocessing_child_ends_right_after_sending(net: Net, method: str, how: str, tmp_path: Path) -> None:
    """Such children leave through os._exit, after multiprocessing's own finalizers only."""
    listener = net.listener()
    script = tmp_path / "sending.py"
    script.write_text(CHILD_SENDS.replace("{module}", MODULES[net.name]), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, script, method, how, str(listener.getsockname()[1])],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    try:
        listener.settimeout(PATIENCE_S)
        server = net.accept(listener)
        assert len(receive_all(server)) == 300_000
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()


# -- the end of a program -------------------------------------------------------------------------------------


def digest_of(size: int) -> str:
    return hashlib.sha256(bytes(range(256)) * (size // 256)).hexdigest()


SEND = """
import os, sys, threading
size = int(sys.argv[2])
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
payload = bytes(range(256)) * (size // 256)
"""
ENDINGS = {
    "close": "sock.sendall(payload); sock.close()",
    "no_close": "sock.sendall(payload)",
    "sys_exit": "sock.sendall(payload); sys.exit(0)",
    "shutdown": "sock.sendall(payload); sock.shutdown(socket.SHUT_WR); sys.exit(0)",
    "with": "with sock: sock.sendall(payload)",
    "exception": "sock.sendall(payload); sys.stderr.close(); raise SystemExit(0)",
    "thread": "t = threading.Thread(target=sock.sendall, args=(payload,)); t.start()",
    "daemon_thread": "t = threading.Thread(target=sock.sendall, args=(payload,), daemon=True); t.start(); t.join()",
    "detached": "sock.sendall(payload); sock.detach()",
    "os_close": "sock.sendall(payload); os.close(sock.detach())",
    "makefile": "f = sock.makefile('wb'); f.write(payload); f.flush()",
    "atexit": "import atexit; atexit.register(lambda: (sock.sendall(payload), sock.close()))",
    "kept_in_a_module": "sys.keep = sock; sock.sendall(payload)",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_everything_arrives_although_the_program_ends_at_once(net: Net, ending: str) -> None:
    listener = net.listener()
    process = net.python(SEND + ENDINGS[ending], listener.getsockname()[1], MEBIBYTE, env={"PYTHONWARNINGS": "ignore"})
    listener.settimeout(PATIENCE_S)
    received = receive_all(net.accept(listener))
    assert hashlib.sha256(received).hexdigest() == digest_of(MEBIBYTE)
    assert process.wait(PATIENCE_S) == 0


def test_last_words_of_a_callback_registered_before_the_first_socket(net: Net) -> None:
    listener = net.listener()
    script = code("""
        import atexit, sys
        atexit.register(lambda: conn.sendall(b"goodbye"))
        conn = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
        conn.sendall(b"hello, ")
    """)
    process = net.python(script, listener.getsockname()[1])
    assert receive_all(net.accept(listener)) == b"hello, goodbye"
    assert process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("settings", [{}, {"UTPSOCKET_POLLER": "poll"}, {"UTPSOCKET_ENGINE": "process"}], ids=str)
def test_standard_streams_that_come_later_are_the_programs(net: Net, settings: dict[str, str]) -> None:
    """A daemon is started without fds 0 to 2, uses sockets, and then puts its log under those numbers."""
    listener = net.listener()
    script = code("""
        import fcntl, os, sys
        os.closerange(0, 3)
        with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as low:  # itself, it is on 0
            conn = socket.socket(fileno=fcntl.fcntl(low.fileno(), fcntl.F_DUPFD_CLOEXEC, 10))
        log = fcntl.fcntl(os.open(os.devnull, os.O_RDWR), fcntl.F_DUPFD_CLOEXEC, 10)
        for fd in range(3):
            os.dup2(log, fd)
        with conn:
            conn.sendall(conn.recv(100))
        with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as another:
            another.sendall(another.recv(100))
    """)
    process = net.python(script, listener.getsockname()[1], env=settings)
    for _ in range(2):
        conn = net.accept(listener)
        conn.settimeout(PATIENCE_S)
        conn.sendall(b"still there?")
        assert receive_all(conn) == b"still there?"
    assert process.wait(PATIENCE_S) == 0


def test_ten_megabytes_close_exit(net: Net) -> None:
    listener = net.listener()
    process = net.python(SEND + ENDINGS["close"], listener.getsockname()[1], 10 * MEBIBYTE)
    listener.settimeout(PATIENCE_S)
    received = receive_all(net.accept(listener))
    assert len(received) == 10 * MEBIBYTE
    assert hashlib.sha256(received).hexdigest() == digest_of(10 * MEBIBYTE)
    assert process.wait(PATIENCE_S) == 0


def test_several_connections_are_all_flushed(net: Net) -> None:
    listener = net.listener()
    script = SEND + "socks = [sock] + [socket.create_connection(sock.getpeername()) for _ in range(3)]\n"
    process = net.python(script + "for s in socks: s.sendall(payload)", listener.getsockname()[1], 200 * 1024)
    process_ok = net.spawn(process.wait, PATIENCE_S)
    listener.settimeout(PATIENCE_S)
    servers = [net.accept(listener) for _ in range(4)]
    readers = [net.spawn(receive_all, server) for server in servers]
    assert [len(reader.result()) for reader in readers] == [200 * 1024] * 4
    assert process_ok.result() == 0


def test_a_server_that_answers_and_ends(net: Net) -> None:
    script = code("""
        listener = socket.create_server(("127.0.0.1", 0))
        print(listener.getsockname()[1], flush=True)
        sock, _ = listener.accept()
        sock.recv(100)
        sock.sendall(b"answer" * 50_000)
    """)
    process = net.python(script, stdout=subprocess.PIPE, env={"PYTHONWARNINGS": "ignore"})
    assert process.stdout is not None
    port = int(process.stdout.readline())
    client = net.fresh()
    client.connect(("127.0.0.1", port))
    client.sendall(b"question")
    assert receive_all(client) == b"answer" * 50_000
    assert process.wait(PATIENCE_S) == 0


def test_exit_with_a_peer_that_does_not_read_does_not_hang_for_ever(net: Net) -> None:
    listener = net.listener()
    script = SEND + code("""
        sock.setblocking(False)
        try:
            while True:
                sock.send(payload)
        except BlockingIOError:
            print("leaving", flush=True)
    """)
    env = {"UTPSOCKET_EXIT_FLUSH": "1", "PYTHONWARNINGS": "ignore"}
    process = net.python(
        script, listener.getsockname()[1], 65536, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env
    )
    server = net.accept(listener)
    assert process.stdout is not None
    assert process.stdout.readline() == b"leaving\n"
    assert process.wait(PATIENCE_S) == 0
    assert server.recv(1)


def test_exit_with_a_slow_reader_does_not_last_as_long_as_it_reads(net: Net) -> None:
    """Each byte that is acked is progress. The kernel's TCP goes on without the process; ours gives up and says so."""
    listener = net.fresh()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    script = SEND + code("""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        sock.sendall(payload)
        print("leaving", flush=True)
    """)
    env = {"UTPSOCKET_EXIT_TIMEOUT": "2", "PYTHONWARNINGS": "ignore"}
    process = net.python(script, listener.getsockname()[1], 500 * 1024, stdout=subprocess.PIPE, env=env)
    server = net.accept(listener)
    assert process.stdout is not None
    assert process.stdout.readline() == b"leaving\n"
    received = 0
    while process.poll() is None:
        received += len(server.recv(1_024))  # at 10 kB/s, the rest takes the better part of a minute
        time.sleep(0.1)
        assert received < 300 * 1024, "the process is still there"
    assert process.returncode == 0
    if net.module is not socket:
        with pytest.raises(ConnectionResetError):
            while server.recv(1 << 16):
                pass


@pytest.mark.parametrize("total", ["nonsense", "nan", "inf"])
def test_a_strange_limit_of_the_exit_loses_nothing(net: Net, total: str) -> None:
    """It comes late: one that cannot be read is an error of the first call (tests/engine/test_environment.py)."""
    listener = net.listener()
    late = f"os.environ.update(UTPSOCKET_EXIT_TIMEOUT={total!r}, UTPSOCKET_EXIT_FLUSH={total!r}); "
    process = net.python(SEND + late + "sock.sendall(payload)", listener.getsockname()[1], 102_400)
    server = net.accept(listener)
    assert len(receive_all(server)) == 102_400
    assert process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("ending", ["os._exit(0)", "os.kill(os.getpid(), 15)", "os.kill(os.getpid(), 9)", "os.abort()"])
def test_sudden_death_delivers_what_the_kernel_had(net: Net, ending: str) -> None:
    """The reader's buffer is too small for it all, so the rest waits on the sender's side when it dies."""
    listener = net.fresh()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    script = SEND.replace("sock =", "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); sock =")
    script += f"sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20); sock.sendall(payload); {ending}"
    process = net.python(script, listener.getsockname()[1], 150 * 1024)
    server = net.accept(listener)
    process.wait(PATIENCE_S)
    server.settimeout(1)
    received = bytearray()
    try:
        while part := server.recv(1 << 16):
            received += part
    except (ConnectionResetError, TimeoutError):
        pass
    assert len(received) == 150 * 1024


def test_kernel_kills_with_sigpipe_when_the_program_asks_for_it(net: Net) -> None:
    listener = net.listener()
    script = code("""
        import os, signal, sys, time
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
        assert sock.recv(1) == b""
        for _ in range(500):
            os.write(sock.fileno(), b"x")
            time.sleep(0.01)
    """)
    process = net.python(script, listener.getsockname()[1])
    net.accept(listener).close()
    assert process.wait(PATIENCE_S) == -signal.SIGPIPE


def test_the_peer_of_a_killed_process_reads_the_end(net: Net) -> None:
    """TCP: the kernel sends FIN for the dead; uTP: the kernel says that the port is gone, of a datagram to it."""
    listener = net.listener()
    script = SEND + "sock.sendall(b'hi'); sys.stdout.write('.'); sys.stdout.flush(); sys.stdin.read()"
    process = net.python(script, listener.getsockname()[1], 0, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    server = net.accept(listener)
    assert receive_exactly(server, 2) == b"hi"
    assert process.stdout is not None
    assert process.stdout.read(1) == b"."
    process.kill()
    process.wait()
    server.settimeout(PATIENCE_S)
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        server.sendall(b"who is there?")
        assert server.recv(1) == b""


def test_end_of_file_at_exit_of_a_program_that_never_closed(net: Net) -> None:
    listener = net.listener()
    process = net.python(SEND, listener.getsockname()[1], 0, env={"PYTHONWARNINGS": "ignore"})
    server = net.accept(listener)
    assert server.recv(1) == b""
    assert process.wait(PATIENCE_S) == 0


def test_leaving_a_program_is_quick(net: Net) -> None:
    """No open connection, or idle ones: nothing to wait for, though there were time for it."""
    listener = net.listener()
    script = SEND + "import time, atexit; sock.sendall(b'x'); print('.', flush=True); sock.recv(1)"
    env = {"UTPSOCKET_EXIT_FLUSH": "3600", "UTPSOCKET_EXIT_TIMEOUT": "3600", "PYTHONWARNINGS": "ignore"}
    process = net.python(script, listener.getsockname()[1], 0, stdout=subprocess.PIPE, env=env)
    server = net.accept(listener)
    assert process.stdout is not None
    assert process.stdout.readline() == b".\n"
    server.sendall(b"go")
    assert process.wait(PATIENCE_S) == 0


def test_sockets_closed_by_a_finalizer_at_exit(net: Net) -> None:
    script = code("""
        class Holder:
            def __init__(self):
                self.listener = socket.create_server(("127.0.0.1", 0))
                self.client = socket.create_connection(self.listener.getsockname())
            def __del__(self):
                self.client.close()
                self.listener.close()
        holder = Holder()
        holder.me = holder
    """)
    process = net.python(script, stderr=subprocess.PIPE)
    assert process.wait(PATIENCE_S) == 0
    assert process.stderr is not None
    assert process.stderr.read() == b""


def test_a_program_that_closes_every_fd_can_start_anew(net: Net) -> None:
    """As daemons do (os.closerange), without knowing whose fds they are."""
    script = code("""
        import os

        def talk():
            with socket.create_server(("127.0.0.1", 0)) as listener:
                client = socket.create_connection(listener.getsockname(), timeout=60)
                server, _ = listener.accept()
                with client, server:
                    client.sendall(b"x")
                    assert server.recv(1) == b"x"

        for _ in range(20):  # the engine is met asleep, about to sleep, and at work
            talk()
            os.closerange(3, 4096)
        talk()
    """)
    process = net.python(script)
    assert process.wait(PATIENCE_S) == 0


def test_daemonizing_after_listen(net: Net) -> None:
    script = code("""
        import os
        listener = socket.create_server(("127.0.0.1", 0))
        print(listener.getsockname()[1], flush=True)
        if os.fork():
            os._exit(0)
        listener.settimeout(60)
        sock, _ = listener.accept()
        sock.sendall(b"from the daemon")
        sock.close()
    """)
    process = net.python(script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={"PYTHONWARNINGS": "ignore"})
    assert process.stdout is not None
    port = int(process.stdout.readline())
    assert process.wait(PATIENCE_S) == 0  # the process that called listen() is gone
    with net.module.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as client:
        assert receive_all(client) == b"from the daemon"


def test_daemonizing_before_listen(net: Net) -> None:
    script = code("""
        import os
        socket.create_server(("127.0.0.1", 0)).close()
        if os.fork():
            os._exit(0)
        listener = socket.create_server(("127.0.0.1", 0))
        print(listener.getsockname()[1], flush=True)
        listener.settimeout(60)
        sock, _ = listener.accept()
        sock.sendall(b"from the daemon")
        sock.close()
    """)
    process = net.python(script, stdout=subprocess.PIPE, env={"PYTHONWARNINGS": "ignore"})
    assert process.stdout is not None
    port = int(process.stdout.readline())
    with net.module.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as client:
        assert receive_all(client) == b"from the daemon"

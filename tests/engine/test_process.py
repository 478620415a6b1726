"""The engine in a process of its own: the essentials of tests/sockets, and what only such an engine can do wrong.

Each conversation runs in a fresh interpreter, which says at its end which engine it had; no process may be left.
"""

from __future__ import annotations

import errno
import inspect
import os
import re
import socket
import subprocess
import sys
import time
from _thread import get_ident
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from utpsocket.engine import engine, fault_reports, running_engine, shutdown
from utpsocket.engine.helper import messages
from utpsocket.engine.helper import server as engine_server
from utpsocket.engine.helper.client import RemoteIdentity
from utpsocket.engine.helper.messages import Argument
from utpsocket.engine.kernel import syscalls
from utpsocket.engine.loop import Loop
from utpsocket.engine.user_fds import reset
from utpsocket.engine.user_fds.forked_copies import CopiedIdentity
from utpsocket.engine.user_fds.socket_state import WRITTEN_BY_ENGINE, Identity

ROOT = Path(__file__).resolve().parent.parent.parent
WAIT_S = 120
PRELUDE = """
import errno, os, signal, struct, sys, threading, time
import utpsocket
from tests.conversation import errno_of, pair, until
from tests.sockets.network import own_loopback
from utpsocket import stats
from utpsocket.engine import engine, running_engine

def receive_all(sock):
    return b"".join(iter(lambda: sock.recv(1 << 16), b""))

print(engine().pid, flush=True)
assert engine().pid != os.getpid()
"""
PASSED = "as it should be\n"


def talk(script: str, *, code: int = 0, **variables: str) -> str:
    """Run a script whose engine is a process; what it says after its engine's pid. No process may be left."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "UTPSOCKET_ENGINE": "process", **variables}
    environment["PYTHONWARNINGS"] = "ignore::DeprecationWarning"  # 3.12 and later warn of any fork beside a thread
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    pid, _, said = done.stdout.partition("\n")
    assert (done.returncode, done.stderr) == (code, "")
    assert has_ended(int(pid))
    return said


def has_ended(pid: int) -> bool:
    """Whether the process ends within the time limit: gone, or waited for by nobody."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.002)
    return False


CONVERSATIONS = {
    "echo": """
client, server = pair()
payload = bytes(range(256)) * 8_000
def echo():
    while data := server.recv(1 << 16):
        server.sendall(data)
    server.close()
thread = threading.Thread(target=echo)
thread.start()
def send():
    client.sendall(payload)
    client.shutdown(utpsocket.SHUT_WR)
sender = threading.Thread(target=send)
sender.start()
assert receive_all(client) == payload
sender.join()
thread.join()
""",
    "accepted_and_connected": """
with utpsocket.create_server(("127.0.0.1", 0)) as listener:
    for _ in range(100):
        listener.settimeout(60)
        with utpsocket.socket() as client:
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
            server, _ = listener.accept()
            assert client.send(b"at once") == 7
            server.close()
        listener.setblocking(False)
        with utpsocket.socket() as client:
            client.connect(listener.getsockname())
            server, _ = listener.accept()
            server.close()
""",
    "a_default_timeout": """
utpsocket.engine.shutdown()
__import__("socket").setdefaulttimeout(0.001)
with utpsocket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    listener.settimeout(10)
    listener.listen()
    with utpsocket.create_connection(listener.getsockname(), timeout=10) as client, listener.accept()[0] as server:
        time.sleep(0.05)  # in which no notice comes
        server.settimeout(10)
        client.send(b"x")
        assert server.recv(1) == b"x"
        assert client.getsockopt(utpsocket.SOL_UTP, utpsocket.UTP_INFO).state == "connected"
""",
    "listening_without_waiting": """
listener = utpsocket.socket()
listener.setblocking(False)
listener.bind(("127.0.0.1", 0))
listener.listen()
client = utpsocket.create_connection(listener.getsockname(), timeout=60)
listener.settimeout(60)
server, _ = listener.accept()
server.sendall(b"x")
assert client.recv(1) == b"x"
""",
    "half_close": """
client, server = pair()
client.shutdown(utpsocket.SHUT_WR)
assert server.recv(1) == b""
server.sendall(b"still here")
server.close()
assert receive_all(client) == b"still here"
assert errno_of(client.send, b"x") == "EPIPE"
""",
    "names_and_figures": """
client, server = pair()
assert client.getpeername() == server.getsockname()
assert server.getpeername() == client.getsockname()
assert client.getsockopt(utpsocket.SOL_UTP, utpsocket.UTP_INFO).state == "connected"
found = stats.engine_stats()
assert (found.connections_initiated, found.connections_accepted, found.faults) == (1, 1, 0)
assert len(found.connections) == 2 and found.ports
again = utpsocket.socket(fileno=os.dup(server.fileno()))
assert again.getpeername() == client.getsockname()
""",
    "reset": """
client, server = pair()
client.sendall(b"unread")
assert server.recv(1, utpsocket.MSG_PEEK)
server.close()
assert errno_of(client.recv, 1) == "ECONNRESET"
assert errno_of(client.getpeername) == "ENOTCONN"
""",
    "reset_told_to_c_code": """
client, server = pair()
server.setsockopt(utpsocket.SOL_SOCKET, utpsocket.SO_LINGER, struct.pack("ii", 1, 0))
server.close()
client.setblocking(True)
assert errno_of(os.read, client.fileno(), 1) == "ECONNRESET"
""",
    "reset_behind_bytes_not_yet_read": """
client, server = pair()
client.setsockopt(utpsocket.SOL_SOCKET, utpsocket.SO_RCVBUF, 8192)
server.setsockopt(utpsocket.SOL_SOCKET, utpsocket.SO_LINGER, struct.pack("ii", 1, 0))
server.setblocking(False)
until(lambda: errno_of(server.send, bytes(8192)) == "EAGAIN")
server.close()
def read_to_the_end():
    while client.recv(1 << 16):
        pass
until(lambda: errno_of(client.send, b"x") in ("ECONNRESET", "EPIPE"))
""",
    "refused": """
with utpsocket.socket() as free:
    free.bind((own_loopback(), 0))
    address = free.getsockname()
sock = utpsocket.socket()
assert errno_of(sock.connect, address) == "ECONNREFUSED"
sock.setblocking(False)
assert sock.connect_ex(address) == errno.EINPROGRESS
sock.settimeout(60)
until(lambda: sock.getsockopt(utpsocket.SOL_SOCKET, utpsocket.SO_ERROR) == errno.ECONNREFUSED)
""",
    "timeout": """
with utpsocket.socket(type=utpsocket.SOCK_DGRAM) as mute:
    mute.bind(("127.0.0.1", 0))
    sock = utpsocket.socket()
    sock.settimeout(0.05)
    assert errno_of(sock.connect, mute.getsockname()) == "TimeoutError"
    patient = utpsocket.socket()
    patient.setsockopt(utpsocket.IPPROTO_TCP, utpsocket.TCP_USER_TIMEOUT, 100)
    assert errno_of(patient.connect, mute.getsockname()) == "ETIMEDOUT"
""",
    "address_in_use_until_the_last_copy_is_closed": """
listener = utpsocket.create_server((own_loopback(), 0), reuse_port=False)
address = listener.getsockname()
other = utpsocket.socket()
assert errno_of(other.bind, address) == "EADDRINUSE"
listener.close()
other.bind(address)
""",
    "linger": """
client, server = pair()
client.setsockopt(utpsocket.SOL_SOCKET, utpsocket.SO_LINGER, struct.pack("ii", 1, 5))
client.sendall(b"m" * 100_000)
client.close()
assert len(receive_all(server)) == 100_000
""",
    "flushed_twice": """
from utpsocket.engine import flush
client, server = pair()
client.sendall(b"m" * 100_000)
assert flush(60) == 0
assert flush(60) == 0
assert len(receive_all(server)) == 100_000
""",
    "fork": """
client, server = pair()
parents_engine = engine().pid
if not os.fork():
    server.close()
    client.sendall(b"inherited")
    own = pair()
    assert engine().pid not in (os.getpid(), parents_engine)
    own[0].sendall(b"x")
    assert own[1].recv(1) == b"x"
    client.close()
    os._exit(0)
client.close()
assert receive_all(server) == b"inherited"
assert os.wait()[1] == 0
""",
    "accept_in_a_forked_worker": """
listener = utpsocket.create_server(("127.0.0.1", 0))
if not os.fork():
    sock, peer = listener.accept()
    sock.sendall(repr(peer).encode())
    sock.close()
    os._exit(0)
client = utpsocket.create_connection(listener.getsockname(), timeout=60)
assert receive_all(client).decode() == repr(client.getsockname())
assert os.wait()[1] == 0
""",
    "no_child_of_the_programs": """
pair()
assert errno_of(os.wait) == "ECHILD"
""",
    "a_busy_thread": """
client, server = pair()
def burn():
    while True:
        pass
threading.Thread(target=burn, daemon=True).start()
def send():
    client.sendall(b"m" * 1_000_000)
    client.close()
threading.Thread(target=send).start()
assert len(receive_all(server)) == 1_000_000
""",
    "shutdown_and_another_engine": """
from utpsocket.engine import shutdown
client, server = pair()
client.close()
assert server.recv(1) == b""
server.close()
before = running_engine()
shutdown()
assert running_engine() is None and not before.is_alive
pair()
assert running_engine().pid != before.pid
""",
    "the_engine_is_killed": """
client, server = pair()
with utpsocket.socket(type=utpsocket.SOCK_DGRAM) as mute:
    mute.bind(("127.0.0.1", 0))
    connecting = utpsocket.socket()
    connecting.setblocking(False)
    assert connecting.connect_ex(mute.getsockname()) == errno.EINPROGRESS
    before = running_engine()
    os.kill(before.pid, signal.SIGKILL)
    assert errno_of(client.recv, 1) == "ECONNRESET"
    connecting.settimeout(60)
    assert errno_of(connecting.connect, mute.getsockname()) in ("ECONNRESET", "EALREADY", "ECONNABORTED")
until(lambda: not before.is_alive)
client, server = pair()
client.sendall(b"x")
assert server.recv(1) == b"x"
""",
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation(name: str) -> None:
    assert talk(CONVERSATIONS[name] + f"\nprint({PASSED!r}, end='')") == PASSED


ENDINGS = {
    "at_its_end": ("", 0),
    "os._exit": ("os._exit(0)", 0),
    "SIGKILL": ("os.kill(os.getpid(), signal.SIGKILL)", -9),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_was_written_arrives_however_the_program_ends(ending: str) -> None:
    """The reader takes nothing before the writer has gone."""
    import utpsocket

    last, code = ENDINGS[ending]
    with utpsocket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        script = f"""
sock = utpsocket.create_connection(({host!r}, {port}))
sock.sendall(b"m" * 100_000)
"""
        talk(script + last, code=code)
        server, _ = listener.accept()
        with server:
            server.settimeout(WAIT_S)
            assert len(b"".join(iter(lambda: server.recv(1 << 16), b""))) == 100_000


def test_a_kind_of_engine_that_there_is_not() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import utpsocket; utpsocket.create_server(('127.0.0.1', 0))"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "UTPSOCKET_ENGINE": "fibre"},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert "ValueError: UTPSOCKET_ENGINE is 'fibre', not 'thread' or 'process'" in done.stderr


@pytest.mark.parametrize("name", messages.COMMANDS)
def test_the_table_of_commands_agrees_with_their_parameters(name: str) -> None:
    """An fd or an identity must not travel as a plain value."""
    travels = {
        "identity": Argument.IDENTITY,
        "callback": Argument.CALLBACK,
        "claim": Argument.CLAIM,
        **dict.fromkeys(("udp_sock", "engine_sock", "tcp_sock", "reservation"), Argument.SOCK),
    }
    command, arguments, is_dialed = messages.COMMANDS[name]
    parameters = list(inspect.signature(command).parameters.values())[1:]
    by_position = [it.name for it in parameters if it.kind is it.POSITIONAL_OR_KEYWORD]
    assert [travels.get(parameter, Argument.PLAIN) for parameter in by_position] == list(arguments)
    assert not travels.keys() & {it.name for it in parameters if it.kind is it.KEYWORD_ONLY}
    assert is_dialed == ("claim" in by_position)


def test_every_command_of_the_shim_may_be_sent() -> None:
    """But for those that it gives to a loop in its own process alone."""
    asked: set[str] = set()
    package = ROOT / "utpsocket"
    for path in (*package.glob("sockets/*.py"), package / "stats.py", package / "engine" / "exit_flush.py"):
        asked.update(re.findall(r"\bcommands\.(?!py\b)([a-z_]+)", path.read_text(encoding="utf-8")))
    assert asked - messages.COMMANDS.keys() == {"adopt_port", "has_port", "has_nothing_unsent", "apply_nodelay"}


def test_notices_that_wait_are_sent_though_epoll_has_lost_their_fd() -> None:
    """As it does where it has no memory for it."""

    class Epoll:
        now = 0

        def __init__(self) -> None:
            self.watched: dict[int, Any] = {}
            self.due: list[tuple[int, Any]] = []

        def watch(self, fd: int, events: int, watcher: Any) -> None:
            self.watched[fd] = watcher

        def forget_fd(self, fd: int) -> None:
            self.watched.pop(fd, None)

        def call_at(self, at: int, call: Any) -> None:
            self.due.append((at, call))

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        loop = Epoll()
        outbox = engine_server.Outbox(loop, ours)  # type: ignore[arg-type]
        sent = 0
        while not loop.watched:
            outbox.put((sent, "role", "connected"))
            sent += 1
        loop.watched.clear()
        outbox.fail(OSError(errno.ENOMEM, "no memory"))
        [(at, call)] = loop.due
        assert at > 0
        call()
        for _ in range(sent - 1):
            assert theirs.recv(100)
        loop.watched[ours.fileno()].on_event(0)
        assert messages.read(theirs.recv(100)) == (sent - 1, "role", "connected")
        assert not loop.watched
        outbox.fail(OSError(errno.ENOMEM, "no memory"))  # with nothing to send
        loop.due[-1][1]()
        assert not loop.watched


@pytest.mark.parametrize("kind", [RemoteIdentity, engine_server.ServedIdentity, CopiedIdentity])
def test_an_identity_in_two_processes_reads_or_writes_each_attribute_of_the_engines_in_its_own_way(
    kind: type[Identity],
) -> None:
    assert [name for name in WRITTEN_BY_ENGINE if not isinstance(vars(kind).get(name), property)] == []


def test_a_program_with_an_engine_in_a_thread_does_not_load_the_helper() -> None:
    program = (
        "import sys, utpsocket; utpsocket.create_server(('127.0.0.1', 0)).close();"
        "sys.exit(any(name.startswith('utpsocket.engine.helper') for name in sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "UTPSOCKET_ENGINE": "thread"}
    assert subprocess.run([sys.executable, "-c", program], env=environment, timeout=WAIT_S, check=False).returncode == 0


NO_MEMORY = """
import functools
from utpsocket.engine.helper import messages

def failing(name, error, every):
    original, count = getattr(messages, name), 0
    def call(*arguments):
        nonlocal count
        count += 1
        if count % every == 0:
            raise error
        return original(*arguments)
    setattr(messages, name, call)

loop = engine()
failing("read", MemoryError(), 2)  # what the engine answers, in the thread that takes it
failing("receive_raw", OSError(errno.ENOBUFS, "no room"), 3)
for _ in range(20):
    client, server = pair()
    client.sendall(b"hello")
    assert server.recv(5) == b"hello"
    client.setsockopt(1, 13, struct.pack("ii", 1, 0))
    client.close()
    assert errno_of(server.recv, 1) == "ECONNRESET"
    server.close()
client, server = pair()
real = messages.send_data
def send(*arguments, **named):
    raise OSError(errno.ENOBUFS, "no room")
messages.send_data = send
with utpsocket.socket() as sock:
    sock.settimeout(60)
    assert errno_of(sock.connect, server.getsockname()) == "ENOBUFS"
    assert sock.connect_ex(server.getsockname()) == errno.ENOBUFS
    messages.send_data = real
    assert errno_of(sock.connect, server.getsockname()) == "ECONNREFUSED"
client.sendall(b"still there")
assert server.recv(20) == b"still there"
assert running_engine() is loop and loop.is_alive
print("as it should be")
"""


def test_no_memory_at_the_applications_side_costs_no_connection_and_no_answer() -> None:
    assert talk(NO_MEMORY) == PASSED


class Wire(NamedTuple):
    """The application's end, and who is at the other."""

    ours: Any
    service: engine_server.Service


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """A service in this process."""
    monkeypatch.setattr(reset, "delegate", None)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    notices, _ = sockets = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(WAIT_S)
    made: list[engine_server.Service] = []

    def begin(loop: Loop) -> None:
        made.append(engine_server.Service(loop, theirs, notices))
        made[0].begin()

    engine().call(begin)
    yield Wire(ours, made[0])
    ours.close()
    made[0].wait()
    shutdown()
    made[0]._outbox._sock.close()
    for sock in (theirs, *sockets):
        sock.close()


def failing(monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException, times: int) -> None:
    original = getattr(messages, name)
    left = [error] * times

    def call(*arguments: Any) -> Any:
        if left and get_ident() == running_engine()._thread_id:  # type: ignore[union-attr]
            raise left.pop()
        return original(*arguments)

    monkeypatch.setattr(messages, name, call)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("read", MemoryError()),
        ("read", SystemExit(3)),
        ("remote_command", MemoryError()),
        ("receive_raw", OSError(errno.ENOMEM, "")),
        ("send", OSError(errno.ENOBUFS, "")),
        ("send", MemoryError()),
        ("parts", MemoryError()),
    ],
)
@pytest.mark.parametrize("times", [1, 2, 3])
def test_no_memory_in_the_engines_process_costs_no_answer(
    name: str, error: BaseException, times: int, service: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fault_reports, "report", lambda _: None)
    failing(monkeypatch, name, error, times)
    for serial in range(1, 4):
        messages.send(service.ours, (serial, "connection_figures", [7], {}))
        answer = messages.receive(service.ours)
        assert answer is not None
        (found, part, has_more), _ = answer
        assert (found, has_more, messages.join_parts([part])[1]) == (serial, False, errno.ENOTCONN)


def test_where_nothing_can_be_read_the_engine_ends(service: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault_reports, "report", lambda _: None)
    failing(monkeypatch, "read", MemoryError(), 1_000)
    messages.send(service.ours, (1, "has_open_sockets", [], {}))
    made = service.service
    assert not made.wait()  # and nothing is flushed: the application goes on, and gets the error
    made._has_ended.release()


def test_a_reset_reaches_a_worker_that_was_forked_and_has_accepted() -> None:
    script = """
with utpsocket.create_server(("127.0.0.1", 0)) as listener:
    pid = os.fork()
    if not pid:
        server, _ = listener.accept()
        server.settimeout(60)
        server.send(b"x")
        got = errno_of(server.recv, 1), server.recv(1)
        os._exit(0 if got == ("ECONNRESET", b"") else 1)
    client = utpsocket.create_connection(listener.getsockname(), timeout=60)
assert client.recv(1) == b"x"
client.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER
client.close()
assert os.waitpid(pid, 0)[1] == 0
"""
    assert talk(script + "print('as it should be')") == PASSED


def test_what_there_is_room_for_is_sent_without_a_release_of_the_gil() -> None:
    """A thread that waits for the GIL gets it only where the sender releases it: the switch interval is a quarter of an
    hour.
    """
    if not syscalls.keeps_gil():
        pytest.skip("needs 64-bit Linux and a GIL")
    script = """
from utpsocket.protocol.build import IS_COMPILED
client, server = pair()
read_end, write_end = os.pipe()
ran = []
def compute():
    while os.read(read_end, 1):
        ran.append(True)
thread = threading.Thread(target=compute, daemon=True)  # an assertion that fails must end the script
thread.start()
sys.setswitchinterval(900)
def have_it_wait():
    while True:
        ran.clear()
        os.write(write_end, b"x")
        until = time.monotonic() + 0.01
        while time.monotonic() < until:
            pass
        if not ran:
            return
whole = bytes(range(250)) * 400
kinds = [whole, bytearray(whole), memoryview(bytearray(whole))]
kinds += [memoryview(whole + whole)[:len(whole)]] if IS_COMPILED else []
for data in kinds:
    for method, result in ((client.send, len(whole)), (client.sendall, None)):
        for _ in range(5):
            have_it_wait()
            assert method(data) == result
            assert not ran
            received = b""
            while len(received) < len(whole):
                received += server.recv(len(whole) - len(received))
            assert received == whole
sys.setswitchinterval(0.005)
os.close(write_end)
thread.join()
"""
    assert talk(script + "print('as it should be')") == PASSED


def test_what_there_is_no_room_for_waits_as_the_socket_does() -> None:
    script = """
client, server = pair()
whole = bytes(range(250)) * 40_000
client.setblocking(False)
sent = 0
try:
    while True:
        sent += client.send(memoryview(whole)[sent:])
except BlockingIOError:
    pass
assert errno_of(client.sendall, whole) == "EAGAIN"
client.settimeout(0.01)
assert errno_of(client.sendall, bytearray(9_000_000)) == "TimeoutError"
for wrong in ("text", None, 1):
    try:
        client.sendall(wrong)
    except TypeError:
        continue
    raise AssertionError(wrong)
client.settimeout(None)
client, server = pair()
def send():
    client.sendall(memoryview(whole).cast("H"))
    client.sendall(b"")
    client.close()
sender = threading.Thread(target=send)
sender.start()
assert receive_all(server) == whole
sender.join()
server.close()
assert errno_of(client.send, b"x") == "EBADF"
"""
    assert talk(script + "print('as it should be')") == PASSED

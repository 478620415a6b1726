"""utpsocket.info(): what a socket is, and what became of its connection.

Each conversation runs in a fresh interpreter, with the engine in a thread and in a process of its own.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import utpsocket
from utpsocket.engine.kernel import tcp_info
from utpsocket.stats import EngineStats, PortStats, prometheus_text

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 120
PRELUDE = """
import asyncio, errno, os, select, signal, socket, struct, sys, threading, time, weakref
import utpsocket
from tests.conversation import errno_of, pair, until
from utpsocket import info, monkey, stats

L = ("127.0.0.1", 0)

def reset(sock):
    sock.setsockopt(utpsocket.SOL_SOCKET, utpsocket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()

def refused_address(own):
    holder = socket.socket(type=socket.SOCK_DGRAM)
    holder.bind(L)
    holder.connect(holder.getsockname())
    own.append(holder)
    return holder.getsockname()

def end_of(sock):
    found = info(sock)
    return found.state, found.outcome, found.errno

kept = []
NOT_SUPPORTED = errno.errorcode[errno.EOPNOTSUPP]
"""
CONVERSATIONS = {
    "a_connection_has_figures_and_both_addresses": """
client, server = pair()
client.sendall(bytes(1000))
assert len(server.recv(1000, utpsocket.MSG_WAITALL)) == 1000
for one, other in ((client, server), (server, client)):
    found = info(one)
    assert (found.state, found.transport, found.outcome, found.errno) == ("connected", "utp", "", 0), found
    assert found.local == one.getsockname() == other.getpeername()
    assert found.peer == one.getpeername()
    assert found.rtt_us > 0 and found.packet_bytes > 500
assert info(client).sent_bytes == info(server).received_bytes == info(server).delivered_bytes == 1000
option = client.getsockopt(utpsocket.SOL_UTP, utpsocket.UTP_INFO)
assert (option.local, option.peer) == (client.getsockname(), client.getpeername())
""",
    "unconnected_listening_and_closed_sockets": """
sock = utpsocket.socket()
assert info(sock) == utpsocket.ConnectionStats(local=("0.0.0.0", 0))
six = utpsocket.socket(socket.AF_INET6)
assert info(six) == utpsocket.ConnectionStats(local=("::", 0, 0, 0))
sock.bind(L)
assert info(sock) == utpsocket.ConnectionStats(local=sock.getsockname())
sock.listen()
assert info(sock) == utpsocket.ConnectionStats("listening", sock.getsockname())
sock.close()
assert errno_of(info, sock) == "EBADF"
with socket.socket(type=socket.SOCK_DGRAM) as udp, socket.socket(socket.AF_UNIX) as unix:
    assert errno_of(info, udp) == errno_of(info, unix) == NOT_SUPPORTED
    wrapped = utpsocket.socket(fileno=os.dup(udp.fileno()))
    assert errno_of(info, wrapped) == NOT_SUPPORTED
for nothing in (None, 3, object()):
    try:
        info(nothing)
    except TypeError:
        continue
    raise AssertionError(nothing)
""",
    "after_an_orderly_end_it_still_answers": """
client, server = pair()
local, peer = client.getsockname(), client.getpeername()
client.sendall(b"x" * 5000)
client.shutdown(utpsocket.SHUT_WR)
assert len(server.recv(5000, utpsocket.MSG_WAITALL)) == 5000
assert server.recv(1) == b""
server.shutdown(utpsocket.SHUT_WR)
assert client.recv(1) == b""
until(lambda: info(client).outcome == info(server).outcome == "closed")
found = info(client)
assert found.state in ("time_wait", "closed") and not found.errno
assert (found.local, found.peer) == (local, peer)
assert found.sent_bytes == found.acked_bytes == 5000
assert info(server).delivered_bytes == 5000
server.close()
client.close()
assert errno_of(info, client) == "EBADF"
""",
    "after_a_reset_it_says_so_for_as_long_as_the_socket_is_open": """
for is_blocking in (True, False):
    client, server = pair()
    peer = client.getpeername()
    client.sendall(b"x" * 3000)
    until(lambda: info(server).delivered_bytes == 3000)
    client.setblocking(is_blocking)
    reset(server)
    until(lambda: info(client).outcome)
    before = info(client)
    assert end_of(client) == ("closed", "reset", errno.ECONNRESET)
    assert client.getsockopt(utpsocket.SOL_SOCKET, utpsocket.SO_ERROR) == errno.ECONNRESET
    assert errno_of(client.send, b"x") in ("EPIPE", "ECONNRESET")
    until(lambda: not stats.engine_stats().connections_open)
    assert end_of(client) == ("closed", "reset", errno.ECONNRESET), info(client)
    assert info(client) == before
    assert (before.peer, before.sent_bytes) == (peer, 3000)
    client.setblocking(True)
    assert errno_of(client.getsockopt, utpsocket.SOL_UTP, utpsocket.UTP_INFO) == "ENOTCONN"
""",
    "what_is_not_read_yet_is_there_after_a_reset": """
client, server = pair()
server.sendall(b"last words")
until(lambda: info(client).delivered_bytes == 10)
reset(server)
until(lambda: info(client).outcome == "reset")
assert client.recv(10) == b"last words"
assert end_of(client) == ("closed", "reset", errno.ECONNRESET)
""",
    "a_refused_attempt": """
refused = refused_address(kept)
sock = utpsocket.socket()
assert errno_of(sock.connect, refused) == "ECONNREFUSED"
assert end_of(sock) == ("closed", "refused", errno.ECONNREFUSED)
assert info(sock).peer == refused
late = utpsocket.socket()
late.setblocking(False)
assert late.connect_ex(refused) == errno.EINPROGRESS
assert info(late).state in ("syn_sent", "closed") and info(late).peer == refused
until(lambda: info(late).outcome)
assert end_of(late) == ("closed", "refused", errno.ECONNREFUSED)
assert late.getsockopt(utpsocket.SOL_SOCKET, utpsocket.SO_ERROR) == errno.ECONNREFUSED, "info() has not taken it"
assert end_of(late) == ("closed", "refused", errno.ECONNREFUSED)
with utpsocket.create_server(L) as listener:
    for one in (sock, late):
        one.setblocking(True)
        if one is late:  # which connect() has not reported: as TCP's
            assert one.connect_ex(listener.getsockname()) == errno.ECONNABORTED
        one.connect(listener.getsockname())
        assert end_of(one) == ("connected", "", 0), info(one)
        one.close()
""",
    "an_attempt_that_times_out": """
mute = socket.socket(type=socket.SOCK_DGRAM)
mute.bind(L)
sock = utpsocket.socket()
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 300)
sock.setblocking(False)
sock.connect_ex(mute.getsockname())
assert end_of(sock) == ("syn_sent", "", 0)
until(lambda: info(sock).outcome)
assert end_of(sock) == ("closed", "timed out", errno.ETIMEDOUT)
""",
    "nothing_is_kept_of_a_socket_that_is_closed": """
identities = []
for ends_first in range(20):
    client, server = pair()
    if ends_first % 2:
        reset(server)
        until(lambda: info(client).outcome)
        assert client._utp.ending is not None
    identities.append(weakref.ref(client._utp))
    client.close()
    server.close()
del client, server
until(lambda: not stats.engine_stats().connections_open)
if os.environ["UTPSOCKET_ENGINE"] == "thread":  # in a process of its own it keeps the last 1,024 that were reset
    until(lambda: not any(one() for one in identities))
else:
    until(lambda: info(pair()[0]) and not any(one() for one in identities[::2]))
""",
    "a_forked_child_knows_addresses_and_state": """
client, server = pair()
client.sendall(b"x" * 100)
child = os.fork()
if not child:
    found = info(client)
    good = (found.state, found.local, found.peer, found.sent_bytes) == (
        "connected", client.getsockname(), client.getpeername(), 0)
    os._exit(0 if good else 1)
assert os.waitpid(child, 0)[1] == 0
until(lambda: info(client).sent_bytes == 100)
""",
    "tcp_sockets_of_a_patched_program": """
with monkey.patched(exclude=["127.0.0.1"]):
    with socket.create_server(L) as listener:
        assert (info(listener).state, info(listener).transport) == ("listening", "tcp")
        client = socket.create_connection(listener.getsockname(), timeout=60)
        server, _ = listener.accept()
        client.sendall(b"x" * 1000)
        assert len(server.recv(1000, socket.MSG_WAITALL)) == 1000
        found = info(client)
        assert (found.state, found.transport, found.outcome) == ("connected", "tcp", "")
        assert (found.local, found.peer) == (client.getsockname(), client.getpeername())
        assert found.sent_bytes == 1000 and found.cwnd_bytes > 0 and found.rtt_us > 0
        assert info(server).received_bytes == 1000
        client.close()
        server.close()
plain = socket.socket()
assert info(plain).state == "unconnected" and info(plain).transport == "tcp"
""",
    "a_connection_that_fell_back_to_tcp": """
listener = socket.create_server(L)
address = listener.getsockname()
with monkey.patched(fallback="tcp"):
    client = socket.create_connection(address, timeout=60)
server, _ = listener.accept()
server.sendall(b"x" * 1000)
assert len(client.recv(1000, socket.MSG_WAITALL)) == 1000
found = info(client)
assert (found.state, found.transport, found.outcome) == ("connected", "tcp", ""), found
assert (found.local, found.peer) == (client.getsockname(), address)
assert found.received_bytes == 1000
client.setblocking(False)
assert (info(client).state, info(client).transport) == ("connected", "tcp")
reset(server)
until(lambda: info(client).outcome)
assert end_of(client) == ("closed", "reset", errno.ECONNRESET)
assert info(client).transport == "tcp"
""",
    "the_socket_of_an_asyncio_transport": """
async def main():
    async def serve(reader, writer):
        writer.close()
    with monkey.patched():
        server = await asyncio.start_server(serve, *L)
        address = server.sockets[0].getsockname()
        assert info(server.sockets[0]).state == "listening"
        reader, writer = await asyncio.open_connection(*address)
        assert info(writer.get_extra_info("socket")).peer == address
        await reader.read()
        writer.close()
        server.close()
asyncio.run(main())
""",
}


def run(script: str, engine: str) -> None:
    """In a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PRELUDE + script],
        env={**os.environ, "PYTHONPATH": str(ROOT), "UTPSOCKET_ENGINE": engine},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert not done.returncode and not done.stderr, done.stderr


@pytest.mark.parametrize("engine", ["thread", "process"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_info(name: str, engine: str) -> None:
    if "AF_INET6" in CONVERSATIONS[name] and not socket.has_ipv6:
        pytest.skip("this interpreter has no IPv6")
    run(CONVERSATIONS[name], engine)


def test_a_socket_that_does_not_block_does_not_wait_for_the_engine() -> None:
    """The engine's process is stopped meanwhile."""
    script = """
client, server = pair()
lost, other = pair()
reset(other)
until(lambda: info(lost).outcome == "reset")
listener = utpsocket.create_server(L)
for sock in (client, lost, listener):
    sock.setblocking(False)
until(lambda: info(client).rtt_us)
from utpsocket.engine import engine
pid = engine().pid
os.kill(pid, signal.SIGSTOP)
until(lambda: open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "T")
found = []
thread = threading.Thread(target=lambda: found.extend(map(info, (client, lost, listener, utpsocket.socket()))))
thread.start()
thread.join(60)
os.kill(pid, signal.SIGCONT)
assert [each.state for each in found] == ["connected", "closed", "listening", "unconnected"], found
assert found[0].peer == server.getsockname() and found[0].rtt_us
assert found[1].outcome == "reset"
"""
    run(script, "process")


def test_figures_of_a_socket_that_does_not_block_are_not_from_before_it_was_connected() -> None:
    """The figures from an engine in another process are those of the call before; the state is that of now."""
    script = """
listener = utpsocket.create_server(L)
client = utpsocket.socket()
client.setblocking(False)
assert client.connect_ex(listener.getsockname()) == errno.EINPROGRESS
assert info(client).state in ("syn_sent", "connected")
assert select.select([], [client], [], 60)[1]
from utpsocket.engine import engine
figures = engine()._figures
until(lambda: figures)
cookie = client._utp.cookie
figures[cookie] = ("syn_sent", *figures[cookie][1:])  # as if it had been asked for a moment earlier
assert info(client).state == "connected", info(client)
"""
    run(script, "process")


def test_it_is_frozen_and_has_a_sentence_for_each_field() -> None:
    stats = utpsocket.ConnectionStats()
    with pytest.raises(AttributeError):
        stats.state = "connected"  # type: ignore[misc]
    lines = (
        (ROOT / "utpsocket/protocol/report.py").read_text("utf-8").partition("class ConnectionStats")[2].splitlines()
    )
    for name in utpsocket.ConnectionStats._fields:
        index = next(number for number, line in enumerate(lines) if line.startswith(f"    {name}: "))
        text = lines[index + 1]
        assert text.startswith('    """'), name
        if name.endswith("_us"):
            assert "µs." in text
        if name.endswith("_bytes"):
            assert "ytes" in text


def test_figures_for_prometheus() -> None:
    port = PortStats(("::1", 6881, 0, 0), 1, True, 7, 6, 5, 4, 3, 2, 1, 0)
    figures = EngineStats(connections_open=2, sent_bytes=12_345, ports=(port, port._replace(is_listening=False)))
    lines = prometheus_text(figures).splitlines()
    metric = re.compile(r'(utpsocket_[a-z_]+)(\{local="[^"]+"\})? (\d+)')
    seen = {}
    for help_line, kind_line in itertools.pairwise(lines):
        if help_line.startswith("# HELP "):
            name = help_line.split()[2]
            kind = "counter" if name.endswith("_total") else "gauge"
            assert kind_line == f"# TYPE {name} {kind}"
    for line in lines:
        if not line.startswith("#"):
            found = metric.fullmatch(line)
            assert found, line
            seen[found[1], found[2]] = int(found[3])
    assert seen["utpsocket_connections_open", None] == 2
    assert seen["utpsocket_sent_bytes_total", None] == 12_345
    assert seen["utpsocket_port_sent_datagrams_total", '{local="[::1]:6881"}'] == 7
    assert len(seen) == sum(not line.startswith("#") for line in lines)
    names = {name.removeprefix("utpsocket_").removesuffix("_total") for name, label in seen if label is None}
    assert names == {*EngineStats._fields} - {"ports", "connections", "build"}  # each figure is there
    assert prometheus_text().startswith("# HELP utpsocket_connections_initiated_total ")


def test_tcp_info_of_an_older_kernel_is_shorter() -> None:
    """What is beyond its end is 0."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as client:
            info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 255)
    found = tcp_info.parse(info[:104])  # Linux 2.6
    assert found["state"] == "connected" and found["rtt_us"] and found["packet_bytes"]
    assert found["sent_bytes"] == found["min_rtt_us"] == found["peer_window_bytes"] == 0
    for length in range(len(info)):
        utpsocket.ConnectionStats(**tcp_info.parse(info[:length]))

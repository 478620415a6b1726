"""No call on a socket that does not block waits for an engine in a process of its own, which is stopped meanwhile.

As test_calls_that_wait.py has it for the engine's thread. Each conversation runs in a fresh interpreter.
"""

from __future__ import annotations

import pytest

from .test_process import PASSED, talk

CONVERSATIONS = {
    "ports_that_ours_have_or_had": """
L = (own_loopback(), 0)

def fresh(reuse=False, share=False):
    sock = utpsocket.socket()
    sock.setblocking(False)
    sock.setsockopt(utpsocket.SOL_SOCKET, utpsocket.SO_REUSEADDR, reuse)
    sock.setsockopt(utpsocket.SOL_UTP, utpsocket.UTP_SHARE_PORT, share)
    return sock

listener = utpsocket.create_server(L)
used = listener.getsockname()
client = utpsocket.create_connection(used)
server, _ = listener.accept()
lonely = utpsocket.create_server(L)
left = utpsocket.create_server(L)
lasting = utpsocket.create_connection(left.getsockname())
its_peer, _ = left.accept()
udp = __import__("socket").socket(type=utpsocket.SOCK_DGRAM)
udp.bind(L)
for sock in (listener, client, server, lonely, left, its_peer):
    sock.setblocking(False)
dead = __import__("socket").socket(type=utpsocket.SOCK_DGRAM)
dead.bind(L)
unheard = dead.getsockname()
dead.close()
with fresh(reuse=True) as chosen:
    chosen.bind(L)
    its_own = chosen.getsockname()
    again = fresh(reuse=True)
    again.bind(its_own)  # to a port that was asked for, which a socket keeps
again.connect_ex(unheard)
until(lambda: again.getsockopt(utpsocket.SOL_SOCKET, utpsocket.SO_ERROR) == errno.ECONNREFUSED)
pid = engine().pid
os.kill(pid, signal.SIGSTOP)
until(lambda: open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "T")
done = []
kept = []

def calls():
    for sock in (fresh(), fresh(reuse=True)):
        assert errno_of(sock.bind, used) == "EADDRINUSE"
        assert errno_of(sock.bind, udp.getsockname()) == "EADDRINUSE"
        assert errno_of(sock.bind, ("0.0.0.0", used[1])) == "EADDRINUSE"
        sock.bind(L)
    done.append("in use")
    one, two = fresh(reuse=True), fresh(reuse=True)
    one.bind(L)
    two.bind(one.getsockname())
    assert two.getsockname() == one.getsockname()
    assert errno_of(fresh().bind, one.getsockname()) == "EADDRINUSE"
    one.listen()
    assert errno_of(fresh(reuse=True).bind, one.getsockname()) == "EADDRINUSE"
    assert errno_of(two.listen) == "EADDRINUSE"
    one.close()
    two.listen()
    done.append("shared")
    first, second = fresh(share=True), fresh(share=True)
    first.bind(L)
    first.listen()
    second.bind(first.getsockname())
    assert errno_of(second.listen) == "EADDRINUSE"
    assert second.connect_ex(udp.getsockname()) == errno.EINPROGRESS
    done.append("UTP_SHARE_PORT")
    address = lonely.getsockname()
    lonely.close()
    heir = fresh()
    heir.bind(address)
    heir.listen()
    done.append("closed just now")
    address = left.getsockname()
    left.close()
    assert errno_of(fresh().bind, address) == "EADDRINUSE"
    assert errno_of(fresh().bind, ("", address[1])) == "EADDRINUSE"
    its_peer.close()
    late = fresh()
    late.bind(address)
    late.listen()
    done.append("its last connection closed just now")
    assert client.getsockopt(utpsocket.SOL_UTP, utpsocket.UTP_INFO).peer == used
    done.append("UTP_INFO")
    assert errno_of(again.connect, udp.getsockname()) == "ECONNABORTED"
    assert again.connect_ex(udp.getsockname()) == errno.EINPROGRESS
    assert again.getsockname() == its_own
    done.append("all")
    kept.extend((two, first, heir, late, second))

caller = threading.Thread(target=calls)
caller.start()
caller.join(40)
done_without = list(done)
os.kill(pid, signal.SIGCONT)
caller.join(40)
assert done_without[-1:] == ["all"], done_without
for sock in kept[:3]:
    sock.settimeout(60)
    with utpsocket.create_connection(sock.getsockname()) as one:
        with sock.accept()[0] as other:
            one.send(b"x")
            assert other.recv(1) == b"x"
until(lambda: client.getsockopt(utpsocket.SOL_UTP, utpsocket.UTP_INFO).rtt_us)
with utpsocket.socket() as unconnected:
    unconnected.setblocking(False)
    assert errno_of(unconnected.getsockopt, utpsocket.SOL_UTP, utpsocket.UTP_INFO) == "ENOTCONN"
""",
    "a_port_that_another_process_was_faster_to_take": """
from utpsocket.engine.helper.known_ports import KnownPorts

KnownPorts.check_bind = lambda *_, **__: 0  # as if one of ours had it
with __import__("socket").socket(type=utpsocket.SOCK_DGRAM) as udp, utpsocket.socket() as sock:
    udp.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    sock.bind(udp.getsockname())
    until(lambda: sock._utp.role.name == "FAILED")
    assert errno_of(sock.connect, ("127.0.0.1", 9)) == "EADDRINUSE"
    with utpsocket.socket() as sock:
        sock.setblocking(False)
        sock.bind(udp.getsockname())
        if errno_of(sock.listen) != "EINVAL":  # the error has been raised already
            until(lambda: errno_of(sock.accept) == "EADDRINUSE")
""",
    "many_calls_while_it_reads_nothing": """
listener = utpsocket.create_server(("127.0.0.1", 0))
client, server = pair()
client.setblocking(False)
listener.setblocking(False)
pid = engine().pid
os.kill(pid, signal.SIGSTOP)
until(lambda: open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "T")
COUNT = 300
socks = []

def calls():
    for number in range(2 * COUNT):
        client.setsockopt(utpsocket.IPPROTO_TCP, utpsocket.TCP_NODELAY, number % 2)
    for number in range(COUNT):
        sock = utpsocket.socket()
        sock.setblocking(False)
        assert sock.connect_ex(listener.getsockname()) == errno.EINPROGRESS
        socks.append(sock)
        if number % 3 == 0:
            socks.pop().close()

caller = threading.Thread(target=calls)
caller.start()
caller.join(40)
is_stuck = caller.is_alive()
os.kill(pid, signal.SIGCONT)
caller.join(40)
assert not is_stuck, len(socks)
client.setblocking(True)
client.setsockopt(utpsocket.SOL_SOCKET, utpsocket.SO_SNDBUF, 65536)  # which waits for its turn
client.settimeout(60)
client.send(b"x")
assert server.recv(1) == b"x"
names = {sock.getsockname() for sock in socks}
assert len(names) == COUNT * 2 // 3
listener.settimeout(60)
while names:
    accepted, name = listener.accept()
    names.discard(name)
    accepted.close()
threads = [open(f"/proc/self/task/{each}/comm").read().strip() for each in os.listdir("/proc/self/task")]
assert "utpsocket-queue" not in threads
""",
    "a_used_port_is_asked_for_while_it_reads_nothing": """
def fresh():
    sock = utpsocket.socket()
    sock.setblocking(False)
    sock.setsockopt(utpsocket.SOL_SOCKET, utpsocket.SO_REUSEADDR, 1)
    return sock

client, server = pair()
one, two = fresh(), fresh()
one.bind(("127.0.0.1", 0))
loop = engine()
os.kill(loop.pid, signal.SIGSTOP)
until(lambda: open(f"/proc/{loop.pid}/stat").read().rpartition(")")[2].split()[0] == "T")
client.setblocking(False)
while not loop._requests._queue:
    client.setsockopt(utpsocket.IPPROTO_TCP, utpsocket.TCP_NODELAY, 1)
two.bind(one.getsockname())  # its UDP socket waits in the queue
others = [os.open("/dev/null", os.O_RDONLY) for _ in range(9)]
os.kill(loop.pid, signal.SIGCONT)
one.close()
two.listen()
two.settimeout(60)
with utpsocket.create_connection(two.getsockname()) as its_client, two.accept()[0] as accepted:
    its_client.send(b"x")
    assert accepted.recv(1) == b"x"
client.settimeout(60)
client.send(b"x")
assert server.recv(1) == b"x"
assert engine() is loop
""",
    "calls_that_do_not_wait": """
listener = utpsocket.create_server(("127.0.0.1", 0))
client, server = pair()
waiting = utpsocket.create_connection(listener.getsockname())
mute = __import__("socket").socket(type=utpsocket.SOCK_DGRAM)
mute.bind(("127.0.0.1", 0))
for sock in (listener, client, server):
    sock.setblocking(False)
pid = engine().pid
os.kill(pid, signal.SIGSTOP)
until(lambda: open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "T")
done = []

def fresh():
    sock = utpsocket.socket()
    sock.setblocking(False)
    return sock

def calls():
    first, second = fresh(), fresh()
    first.setsockopt(utpsocket.SOL_SOCKET, utpsocket.SO_REUSEADDR, 1)
    first.bind(("127.0.0.1", 0))
    done.append("bind")
    first.listen(5)
    first.listen(7)
    done.append("listen")
    assert errno_of(first.accept) == "EAGAIN"
    first.close()
    second.listen()
    second.shutdown(utpsocket.SHUT_WR)
    second.close()
    done.append("close")
    listener.accept()[0].close()
    done.append("accept")
    assert server.getpeername() == client.getsockname()
    done.append("getpeername")
    client.setsockopt(utpsocket.SOL_SOCKET, utpsocket.SO_SNDBUF, 65536)
    client.setsockopt(utpsocket.IPPROTO_TCP, utpsocket.TCP_NODELAY, 1)
    done.append("setsockopt")
    assert client.send(b"question") == 8
    assert errno_of(server.recv, 1) == "EAGAIN"
    new = fresh()
    assert new.connect_ex(listener.getsockname()) == errno.EINPROGRESS
    assert new.connect_ex(listener.getsockname()) == errno.EALREADY
    new.close()
    done.append("connect")
    given_up = fresh()
    given_up.connect_ex(mute.getsockname())
    given_up.shutdown(utpsocket.SHUT_RDWR)
    assert given_up.getsockopt(utpsocket.SOL_SOCKET, utpsocket.SO_ERROR) == errno.ECONNRESET
    given_up.close()
    done.append("shutdown")
    client.shutdown(utpsocket.SHUT_WR)
    client.close()
    server.close()
    listener.close()
    done.append("all")

caller = threading.Thread(target=calls)
caller.start()
caller.join(40)
done_without = list(done)
os.kill(pid, signal.SIGCONT)
caller.join(40)
assert done_without[-1:] == ["all"], done_without
mute.close()
waiting.close()
again = utpsocket.create_server(("127.0.0.1", 0))
client = utpsocket.create_connection(again.getsockname())
server, _ = again.accept()
client.sendall(b"x")
assert server.recv(1) == b"x"
""",
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation(name: str) -> None:
    assert talk(CONVERSATIONS[name] + f"\nprint({PASSED!r}, end='')") == PASSED

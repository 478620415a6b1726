"""A server at its limit of fds hangs up on whom it cannot serve, whatever it has done before and however slow its
engine is: there is always a connection to be accepted, with the one fd that the server closes for that.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.requirements import requires_ipv6

from .test_few_fds import run

# It accepts, hangs up and closes connections in an order that the seed gives. Its engine is held up at times, so that
# many things have happened when it goes on. Nothing is tried again because time has passed, unless `retries` is set:
# whatever makes a number free has to tell.
HOLDING_UP = """
import errno, json, os, random, resource, select, socket, subprocess, sys, threading
import utpsocket
from utpsocket.engine import running_engine
from utpsocket.engine.ports.retries import Retries

asked = json.loads(sys.argv[1])
limit, count, host = asked["limit"], asked["clients"], asked["host"]
chance = random.Random(asked["seed"])
program = "import sys\\nsys.path[:] = " + repr(sys.path) + '''
import utpsocket
told, socks = {}, []
host, *ports = input().split()
for number in range(int(sys.argv[1])):
    socks.append(utpsocket.create_connection((host, int(ports[number // 8 % len(ports)])), 90))
print(flush=True)
for sock in socks:
    data = sock.recv(5)
    told[data] = told.get(data, 0) + 1
print(told.pop(b"hello"), told.pop(b""), told)
'''
child = subprocess.Popen(
    [sys.executable, "-c", program, str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
)
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
listeners = []
for _ in range(asked.get("listeners", 1)):
    listener = utpsocket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if asked.get("shares_port"):
        listener.setsockopt(utpsocket.SOL_UTP, utpsocket.UTP_SHARE_PORT, 1)
    listener.bind((host, 0))
    listener.listen(count)
    listeners.append(listener)
loop = running_engine()
if not asked.get("retries"):
    next_at, is_due = Retries.next_at, Retries.is_due
    Retries.next_at = lambda retries, *, now: next_at(retries, now=now) + 3_600_000_000
    Retries.is_due = lambda retries, *, now: is_due(retries, now=0)  # only what was told
reserve = os.open("/dev/null", os.O_RDONLY)
print(host, *(listener.getsockname()[1] for listener in listeners), file=child.stdin, flush=True)
served, refused, closed, lock, go_on = [], 0, 0, threading.Lock(), None
waiting = [0] * len(listeners)
for number in range(count):
    waiting[number // 8 % len(listeners)] += 1

def is_readable(listener, seconds):
    return bool(select.select([listener], [], [], seconds)[0])

def accept(number):
    global reserve, refused
    listener = listeners[number]
    waiting[number] -= 1
    try:
        sock = listener.accept()[0]
    except OSError as error:
        assert error.errno == errno.EMFILE, error
    else:
        served.append(sock)
        sock.send(b"hello")
        return
    os.close(reserve)
    sock = listener.accept()[0]
    if asked.get("shuts_down"):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
    reserve = os.dup(0) if asked.get("shuts_down") else os.open("/dev/null", os.O_RDONLY)
    refused += 1

def sync():
    for _ in range(3):
        loop.call(lambda loop: None)

def hold_up():
    global go_on
    if go_on is None:
        go_on, held_up = threading.Event(), threading.Event()
        loop.post(lambda loop, *events: (events[0].set(), events[1].wait()), held_up, go_on)
        held_up.wait()

def release():
    global go_on
    if go_on is not None:
        go_on.set()
        go_on = None
    sync()

def turn():
    global closed
    kind = chance.choices(["accept", "close", "hold up", "release"], [8, asked.get("closes", 1), 2, 2])[0]
    if kind == "close" and served:
        served.pop(chance.randrange(len(served))).close()
        closed += 1
    elif kind == "hold up":
        hold_up()
    elif kind == "release":
        release()
    elif go_on is not None:
        for number, listener in enumerate(listeners):
            if is_readable(listener, 0):
                accept(number)
    else:
        number = chance.choice([number for number in range(len(listeners)) if waiting[number]])
        assert is_readable(listeners[number], 90), f"not readable after {len(served)}, {closed} and {refused}"
        accept(number)

def serve():
    while True:
        with lock:
            if not any(waiting) or wrong:
                return
            try:
                turn()
            except BaseException as error:
                wrong.append(error)
                raise

child.stdout.readline()
sync()
wrong = []
threads = [threading.Thread(target=serve) for _ in range(asked.get("threads", 1))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
release()
if wrong:
    raise wrong[0]
print(child.stdout.read().split(), [str(len(served) + closed), str(refused), "{}"])
child.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_NOFILE as Linux has it")
@pytest.mark.timeout(240)
@pytest.mark.parametrize("closes", [0, 1], ids=["serves", "closes"])
@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"limit": 32},
        {"limit": 256},
        {"retries": True},
        {"poller": "poll"},
        pytest.param({"host": "::1"}, marks=requires_ipv6),
        {"shares_port": True},
        {"listeners": 2},
        {"listeners": 5},
        {"threads": 3},
        {"shuts_down": True},
    ],
    ids=lambda kind: " ".join(f"{name} {value}" for name, value in kind.items()) or "plain",
)
def test_there_is_always_a_connection_to_be_accepted(kind: dict[str, Any], closes: int, tmp_path: Path) -> None:
    limit = kind.get("limit", 64)
    asked = {"limit": limit, "clients": limit + 20, "host": "127.0.0.1", "seed": 1, "closes": closes, **kind}
    environment = {"UTPSOCKET_POLLER": kind.get("poller", "epoll")}
    told = run("utp", tmp_path / "server.py", json.dumps(asked), program=HOLDING_UP, **environment)
    by_clients, by_server = ast.literal_eval(told.strip().replace("] [", "], ["))
    assert by_clients == by_server
    served, refused, _ = by_server
    assert int(served) >= limit // 5  # each costs two fds
    assert int(served) + int(refused) == limit + 20

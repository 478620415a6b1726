"""Path MTU on real paths: don't-fragment, EMSGSIZE and ICMP, in network namespaces made and removed here.

client ── 1,500 ── router ── narrow ── server: only the router knows, and says so by ICMP (or stays silent). Hosts that
have no memory for fragments drop them, as many paths do (RFC 8900 §3).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
IP = shutil.which("ip")
MEGABYTES = 24  # a dozen probes are lost before 1,280 is found, and the loss of each takes a window to be known

SERVER = """
import sys, hashlib, utpsocket
listener = utpsocket.create_server((sys.argv[1], 7000), family=int(sys.argv[2]))
print("ready", flush=True)
conn, _ = listener.accept()
conn.settimeout(40)
digest, count = hashlib.sha256(), 0
while data := conn.recv(1 << 18):
    digest.update(data)
    count += len(data)
    if count > 200_000 and count - len(data) <= 200_000:
        print("going", flush=True)
conn.sendall(digest.digest())
conn.close()
listener.close()
"""
CLIENT = """
import sys, json, hashlib, select, time, utpsocket
payload = bytes(range(256)) * 4096
rest = int(sys.argv[2])
sock = utpsocket.create_connection((sys.argv[1], 7000), timeout=40)
sent, pause = hashlib.sha256(), float(sys.argv[3])
started = time.monotonic()
while rest:
    piece = payload[:rest] if not pause else payload[:min(rest, 20_000)]
    sock.sendall(piece)
    sent.update(piece)
    if not pause or select.select([sys.stdin], [], [], 0)[0]:
        rest -= len(piece)
    time.sleep(pause)
sock.shutdown(utpsocket.SHUT_WR)
digest = b""
while len(digest) < 32:
    digest += sock.recv(100)
seconds = time.monotonic() - started
info = sock.getsockopt(utpsocket.SOL_UTP, utpsocket.UTP_INFO)
sock.close()
print(json.dumps({"same": digest == sent.digest(), "packet_bytes": info.packet_bytes, "seconds": seconds,
                  "timeouts": info.timeouts, "retransmitted": info.retransmitted_packets}))
"""


def ip(*arguments: object) -> None:
    assert IP is not None
    subprocess.run([IP, *map(str, arguments)], check=True, capture_output=True, timeout=20)


Transfer = Callable[..., dict[str, Any]]


@pytest.fixture
def over_a_path() -> Iterator[Transfer]:
    """transfer(narrow MTU, …) -> the client's figures.

    router_speaks      whether its ICMP gets through
    total_bytes        from the client to the server
    is_v6
    drops_fragments    the hosts do
    shrinks_to         so narrow the path becomes once 200 kB have arrived; then the client writes `total_bytes`, slowly
    """
    names = {role: f"utp{os.getpid()}{role}" for role in ("client", "router", "server")}
    if IP is None or os.geteuid() != 0:
        pytest.skip("needs root and iproute2: network namespaces")
    made: list[str] = []

    def remove() -> None:
        while made:
            ip("netns", "del", made.pop())

    def inside(role: str, *command: str) -> list[str]:
        assert IP is not None
        return [IP, "netns", "exec", names[role], *command]

    def sysctl(role: str, *settings: str) -> None:
        subprocess.run(inside(role, "sysctl", "-qw", *settings), check=True, timeout=20)

    def narrow(mtu: int) -> None:
        # The server's own link is as narrow as the router's, so what is too large for it never arrives.
        ip("-n", names["router"], "link", "set", "toserver", "mtu", mtu)
        ip("-n", names["server"], "link", "set", "eth0", "mtu", mtu)

    def transfer(
        narrow_mtu: int,
        *,
        router_speaks: bool,
        total_bytes: int = MEGABYTES << 20,
        is_v6: bool = False,
        drops_fragments: bool = False,
        shrinks_to: int = 0,
    ) -> dict[str, Any]:
        remove()
        for name in names.values():
            ip("netns", "add", name)
            made.append(name)
            ip("-n", name, "link", "set", "lo", "up")
        prefix, bits = ("fd99:{}::{}", 64) if is_v6 else ("10.99.{}.{}", 24)
        for number, role in enumerate(("client", "server")):
            end = names[role]
            ip("-n", names["router"], "link", "add", f"to{role}", "type", "veth", "peer", "name", "eth0", "netns", end)
            links = ((names["router"], f"to{role}", 1), (end, "eth0", 2))
            for namespace, device, host in links:
                ip("-n", namespace, "link", "set", device, "address", f"02:00:00:00:0{number}:0{host}")
                nodad = ["nodad"] if is_v6 else []
                ip("-n", namespace, "addr", "add", f"{prefix.format(number, host)}/{bits}", "dev", device, *nodad)
                ip("-n", namespace, "link", "set", device, "up")
            for namespace, device, host in links:  # a router that may send no ICMPv6 cannot answer for its address
                other, address = prefix.format(number, 3 - host), f"02:00:00:00:0{number}:0{3 - host}"
                ip("-n", namespace, "neigh", "replace", other, "lladdr", address, "dev", device, "nud", "permanent")
            ip("-n", end, "route", "add", "default", "via", prefix.format(number, 1))
            if drops_fragments:
                for family in ("ipv4.ip", "ipv6.ip6"):
                    sysctl(role, f"net.{family}frag_low_thresh=0", f"net.{family}frag_high_thresh=0")
        narrow(narrow_mtu)
        sysctl("router", "net.ipv6.conf.all.forwarding=1" if is_v6 else "net.ipv4.ip_forward=1")
        client_addr, server_addr = prefix.format(0, 2), prefix.format(1, 2)
        if not router_speaks:
            version, protocol = (["-6"], "ipv6-icmp") if is_v6 else ([], "icmp")
            ip("-n", names["router"], *version, "route", "add", "blackhole", client_addr, "table", 99)
            ip("-n", names["router"], *version, "rule", "add", "ipproto", protocol, "to", client_addr, "table", 99)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        server = subprocess.Popen(
            inside("server", sys.executable, "-c", SERVER, server_addr, "10" if is_v6 else "2"),
            stdout=subprocess.PIPE,
            env=environment,
        )
        client = None
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            pause = "0.01" if shrinks_to else "0"
            client = subprocess.Popen(
                inside("client", sys.executable, "-c", CLIENT, server_addr, str(total_bytes), pause),
                stdin=subprocess.PIPE if shrinks_to else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                env=environment,
            )
            if shrinks_to:
                assert server.stdout.readline() == b"going\n"
                narrow(shrinks_to)
            output, _ = client.communicate(timeout=120)  # whose stdin is closed: from now on it counts what it sends
            assert client.returncode == 0
            assert server.wait(60) == 0
        finally:
            for process in (server, client):
                if process is not None:
                    process.kill()
                    process.wait()
                    assert process.stdout is not None
                    process.stdout.close()
        figures: dict[str, Any] = json.loads(output)
        return figures

    yield transfer
    remove()


def without_timeouts(transfer: Transfer, *arguments: Any, **named: Any) -> dict[str, Any]:
    """Of a transfer that need not wait for any packet. It is done again where the machine let one of its ends wait."""
    for _ in range(3):
        figures: dict[str, Any] = transfer(*arguments, **named)
        if figures["timeouts"] == 0:
            break
    assert figures["timeouts"] == 0
    return figures


@pytest.mark.parametrize("router_speaks", [True, False])
@pytest.mark.parametrize("mtu", [1_500, 1_400, 1_280])
def test_the_packets_fit_the_path(over_a_path: Transfer, mtu: int, router_speaks: bool) -> None:
    largest = min(1_472, mtu - 28)
    figures = without_timeouts(over_a_path, mtu, router_speaks=router_speaks)
    assert figures["same"]
    assert largest - 16 <= figures["packet_bytes"] <= largest  # docs/protocol.md §10: done within 16 bytes


@pytest.mark.parametrize("router_speaks", [True, False], ids=["router speaks", "silent router"])
@pytest.mark.parametrize(
    ("is_v6", "mtu"),
    [(False, 1_492), (False, 1_400), (False, 1_000), (False, 576), (True, 1_492), (True, 1_400), (True, 1_280)],
)
def test_a_path_that_drops_fragments(over_a_path: Transfer, is_v6: bool, mtu: int, router_speaks: bool) -> None:
    """TCP takes a tenth of a second for each. Nothing may be stuck for its size."""
    figures = without_timeouts(
        over_a_path, mtu, router_speaks=router_speaks, total_bytes=1_000_000, is_v6=is_v6, drops_fragments=True
    )
    assert figures["same"]
    assert figures["packet_bytes"] <= mtu - (48 if is_v6 else 28)


@pytest.mark.parametrize("router_speaks", [True, False], ids=["router speaks", "silent router"])
@pytest.mark.parametrize(("is_v6", "mtu"), [(False, 1_400), (False, 576), (True, 1_280)])
def test_a_path_that_becomes_narrower(over_a_path: Transfer, is_v6: bool, mtu: int, router_speaks: bool) -> None:
    """What is on its way is then too large for it, and fragments are dropped."""
    figures = over_a_path(
        1_500,
        shrinks_to=mtu,
        router_speaks=router_speaks,
        total_bytes=1_000_000,
        is_v6=is_v6,
        drops_fragments=True,
    )
    assert figures["same"]
    assert figures["packet_bytes"] <= mtu - (48 if is_v6 else 28)

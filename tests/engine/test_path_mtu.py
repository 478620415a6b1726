"""Path MTU on real paths: don't-fragment, EMSGSIZE and ICMP, in network namespaces made and removed here.

client ── 1,500 ── router ── narrow ── server: only the router knows, and says so by ICMP (or stays silent).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IP = shutil.which("ip")
MEGABYTES = 96  # a dozen probes are lost before 1,280 is found, and the loss of each takes a window to be known

SERVER = """
import sys, hashlib, utpsocket
listener = utpsocket.create_server((sys.argv[1], 7000), family=utpsocket.AF_INET)
print("ready", flush=True)
conn, _ = listener.accept()
digest = hashlib.sha256()
while data := conn.recv(1 << 18):
    digest.update(data)
conn.sendall(digest.digest())
conn.close()
listener.close()
"""
CLIENT = """
import sys, json, hashlib, utpsocket
payload = bytes(range(256)) * 4096 * int(sys.argv[2])
sock = utpsocket.create_connection((sys.argv[1], 7000), timeout=40)
sock.sendall(payload)
sock.shutdown(utpsocket.SHUT_WR)
digest = b""
while len(digest) < 32:
    digest += sock.recv(100)
info = sock.getsockopt(utpsocket.SOL_UTP, utpsocket.UTP_INFO)
sock.close()
print(json.dumps({"same": digest == hashlib.sha256(payload).digest(), "packet_bytes": info.packet_bytes,
                  "timeouts": info.timeouts, "retransmitted": info.retransmitted_packets}))
"""


def ip(*arguments: object) -> None:
    assert IP is not None
    subprocess.run([IP, *map(str, arguments)], check=True, capture_output=True, timeout=20)


Transfer = Callable[[int, bool], dict[str, int]]


@pytest.fixture
def over_a_path() -> Iterator[Transfer]:
    """transfer(narrow MTU, whether the router's ICMP gets through) -> the client's figures."""
    names = {role: f"utp{os.getpid()}{role}" for role in ("client", "router", "server")}
    if IP is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    made = []

    def inside(role: str, *command: str) -> list[str]:
        assert IP is not None
        return [IP, "netns", "exec", names[role], *command]

    def transfer(narrow_mtu: int, router_speaks: bool) -> dict[str, int]:
        for name in names.values():
            ip("netns", "add", name)
            made.append(name)
            ip("-n", name, "link", "set", "lo", "up")
        for number, (role, mtu) in enumerate((("client", 1_500), ("server", narrow_mtu))):
            end = names[role]
            ip("-n", names["router"], "link", "add", f"to{role}", "type", "veth", "peer", "name", "eth0", "netns", end)
            for namespace, device, host in ((names["router"], f"to{role}", 1), (end, "eth0", 2)):
                ip("-n", namespace, "addr", "add", f"10.99.{number}.{host}/24", "dev", device)
                ip("-n", namespace, "link", "set", device, "mtu", mtu, "up")
            ip("-n", end, "route", "add", "default", "via", f"10.99.{number}.1")
        # The server's own link is as narrow as the router's, so what is too large for it never arrives.
        settings = ["net.ipv4.ip_forward=1"]
        subprocess.run(inside("router", "sysctl", "-qw", *settings), check=True, timeout=20)
        if not router_speaks:
            ip("-n", names["router"], "route", "add", "blackhole", "10.99.0.2/32", "table", 99)
            ip("-n", names["router"], "rule", "add", "ipproto", "icmp", "to", "10.99.0.2", "table", 99)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        server = subprocess.Popen(
            inside("server", sys.executable, "-c", SERVER, "10.99.1.2"), stdout=subprocess.PIPE, env=environment
        )
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            client = subprocess.run(
                inside("client", sys.executable, "-c", CLIENT, "10.99.1.2", str(MEGABYTES)),
                check=True,
                capture_output=True,
                timeout=60,
                env=environment,
            )
            assert server.wait(20) == 0
        finally:
            server.kill()
            server.wait()
            assert server.stdout is not None
            server.stdout.close()
        figures: dict[str, int] = json.loads(client.stdout)
        return figures

    yield transfer
    for name in made:
        ip("netns", "del", name)


@pytest.mark.timeout(90)
@pytest.mark.parametrize("router_speaks", [True, False])
@pytest.mark.parametrize("mtu", [1_500, 1_400, 1_280])
def test_the_packets_fit_the_path(over_a_path: Transfer, mtu: int, router_speaks: bool) -> None:
    figures = over_a_path(mtu, router_speaks)
    assert figures["same"]
    largest = min(1_472, mtu - 28)
    assert largest - 16 <= figures["packet_bytes"] <= largest  # PROTOCOL.md §10: done within 16 bytes
    assert figures["timeouts"] == 0

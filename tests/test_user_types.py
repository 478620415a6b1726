"""A program over utpsocket is checked by `mypy --strict` as one over the standard library's socket.

A line that ends in `# E: code, …` must have exactly these errors, any other none.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import utpsocket

pytest.importorskip("mypy")

ROOT = Path(__file__).resolve().parent.parent
TYPED = ROOT / "utpsocket" / "py.typed"
WAIT_S = 300

BOTH = """
import MODULE as socket
from MODULE import AF_INET, SOCK_STREAM, create_connection

def serve(listener: socket.socket) -> int:
    conn, address = listener.accept()
    with conn:
        data: bytes = conn.recv(1024)
        conn.sendall(data)
        count: int = conn.recv_into(bytearray(10))
        conn.recv("many")  # E: arg-type
        text: str = conn.recv(1)  # E: assignment
    return count

def connect(host: str, port: int) -> socket.socket:
    sock = socket.socket(AF_INET, SOCK_STREAM)
    sock.settimeout(5)
    sock.settimeout("5")  # E: arg-type
    sock.connect((host, port))
    sock.connect(host, port)  # E: call-arg
    sock.connect(port)  # E: arg-type
    sock.send("text")  # E: arg-type
    sock.sendall(3)  # E: arg-type
    sock.send(b"bytes", "flags")  # E: arg-type
    sock.listen("many")  # E: arg-type
    sock.bind()  # E: call-arg
    sock.bind(("", 0), 1)  # E: call-arg
    sock.shutdown()  # E: call-arg
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, "large")  # E: call-overload
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    level: str = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)  # E: assignment
    sock.conect((host, port))  # E: attr-defined
    socket.creat_server((host, port))  # E: attr-defined
    socket.socket("AF_INET")  # E: arg-type
    name: bytes = sock.family  # E: assignment
    copy: socket.socket = sock.dup()
    copy.makefile("rb").readline().upper()
    copy.makefile("r").readline().decode()  # E: attr-defined
    created: socket.socket = create_connection((host, port), timeout=3)
    create_connection(port)  # E: arg-type
    create_connection((host, port), timeout="soon")  # E: arg-type
    with socket.create_server((host, port), backlog=5) as listener:
        serve(listener)
        serve("listener")  # E: arg-type
    socket.create_server((host, port), backlog="5")  # E: arg-type
    one, other = socket.socketpair()
    one.sendall(b"x")
    one.sendall(None)  # E: arg-type
    return created

class Mine(socket.socket):
    def twice(self, data: bytes) -> None:
        self.sendall(data + data)

Mine().twice("text")  # E: arg-type
"""
OURS = """
import utpsocket
from utpsocket import loops, monkey

def figures(sock: utpsocket.socket) -> utpsocket.ConnectionStats:
    sock.setsockopt(utpsocket.SOL_UTP, utpsocket.UTP_MAX_MTU, 1200)
    sock.setsockopt(utpsocket.SOL_UTP, utpsocket.UTP_MAX_MUT, 1200)  # E: attr-defined
    sock.setsockopt(utpsocket.SOL_UTP, "UTP_MAX_MTU", 1200)  # E: call-overload
    return utpsocket.info(sock)

with utpsocket.create_server(("", 0)) as listener:
    for conn, address in utpsocket.incoming(listener):
        stats = figures(conn)
        rtt_us: int = stats.rtt_us
        rtt: str = stats.rtt_us  # E: assignment
        stats.rtt_us = 3  # E: misc
        stats.rtt_ms  # E: attr-defined
        stats.peer[0]  # E: index
        if stats.peer is not None:
            stats.peer[0].upper()
            stats.peer[1].upper()  # E: attr-defined
        conn.send("text")  # E: arg-type
    for conn in utpsocket.incoming(listener):  # E: assignment
        pass
    utpsocket.incoming("listener")  # E: arg-type
    utpsocket.info()  # E: call-arg
    utpsocket.info(3)  # E: arg-type

def where(family: int, address: tuple[str, int], role: str) -> bool:
    return role == "connect"

monkey.patch_all(where=where, only=["10.0.0.0/8"], fallback="tcp", children=True)
monkey.patch_all(onyl="10.0.0.0/8")  # E: call-arg
monkey.patch_all(only=10)  # E: arg-type
monkey.patch_socket(where=where, fallback_delay=0.5, children=True)
monkey.patch_socket(onyl="10.0.0.0/8")  # E: call-arg
monkey.patch_socket(fallback_delay="soon")  # E: arg-type
with monkey.patched(listen="both", children=False):
    pass
with monkey.patched(listen=3):  # E: arg-type
    pass
monkey.wrap_module("program", exclude="127.0.0.1").undo()
monkey.wrap_module("program", children=True)  # E: call-arg
carried: str = monkey.transport(utpsocket.socket())  # E: assignment
loops.new_event_loop().run_forever()
loops.new_event_loop().run_for_ever()  # E: attr-defined
"""


def checked(folder: Path, programs: dict[str, str]) -> dict[str, set[tuple[int, str]]]:
    """What mypy --strict says of these programs: (line, code of the error) by name."""
    for name, text in programs.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--config-file", "", "."],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert ran.stderr == ""
    found: dict[str, set[tuple[int, str]]] = {name: set() for name in programs}
    for line in ran.stdout.splitlines():
        match = re.match(r"(\w+)\.py:(\d+): error: .*\[([\w-]+)\]$", line)
        if match:
            found[match[1]].add((int(match[2]), match[3]))
        else:
            assert re.search(r": note: ", line), line
    return found


def expected(text: str) -> set[tuple[int, str]]:
    return {
        (number, code)
        for number, line in enumerate(text.splitlines(), 1)
        if "# E: " in line
        for code in line.partition("# E: ")[2].split(", ")
    }


def test_a_program_is_checked_as_over_the_standard_library(tmp_path: Path) -> None:
    programs = {
        "over_socket": BOTH.replace("MODULE", "socket"),
        "over_utpsocket": BOTH.replace("MODULE", "utpsocket"),
        "ours": OURS,
    }
    found = checked(tmp_path, programs)
    assert found["over_socket"] == expected(BOTH)
    assert found["over_utpsocket"] == found["over_socket"]
    assert found["ours"] == expected(OURS)


def test_the_package_says_that_it_has_types() -> None:
    assert TYPED.exists()
    assert utpsocket.socket.__mro__[1].__name__ == "socket", "what a type checker sees is a base of what there is"

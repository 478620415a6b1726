"""What docs/design.md says of modules, of the states and of the way of a byte is what the code does."""

from __future__ import annotations

import ast
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.documents import DOCS, ROOT, documents, rows, without_code
from tests.requirements import requires_pure
from utpsocket.protocol.states import TRANSITIONS, State

PACKAGE = ROOT / "utpsocket"
DESIGN = DOCS / "design.md"
NO_MODULES = {"utils.py", "helpers.py", "socket.py"}  # names that docs/style.md warns of
BEGIN, END = "<!-- states: begin -->\n", "<!-- states: end -->"


def diagram() -> str:
    """The transitions as Mermaid draws them."""
    arrows = [f"    {a.name} --> {b.name} : {trigger.value}" for (a, trigger), b in TRANSITIONS.items()]
    lines = [f"    [*] --> {State.IDLE.name}", *arrows, f"    {State.CLOSED.name} --> [*]"]
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```", ""])


def test_the_states_are_those_of_the_code() -> None:
    text = DESIGN.read_text("utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0] == diagram(), f"let it be:\n{diagram()}"


def named_modules(text: str) -> set[str]:
    """What is written as code and is a path to a module: `engine/loop.py`, `tests/machines.py`."""
    return set(re.findall(r"`([\w/]+\.py)`", text))


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.relative_to(DOCS).as_posix())
def test_every_module_that_is_named_is_there(document: Path) -> None:
    names = named_modules(without_code(document.read_text("utf-8"))) - NO_MODULES
    assert [name for name in sorted(names) if not ((PACKAGE / name).is_file() or (ROOT / name).is_file())] == []


def test_every_module_has_its_place_in_the_map() -> None:
    text = DESIGN.read_text("utf-8").partition("## 13. ")[2]
    modules = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    ours = {name for name in modules if not name.endswith("/__init__.py")}
    assert ours - named_modules(text) == set()


# ── the walks ──

_WALK = re.compile(r"<!-- walk: (?P<name>[a-z]+), (?P<thread>[a-z]+) -->\n(?P<table>(?:\|.*\n)+)")

# Calls that two threads make while one byte is sent, received and acknowledged. If this machine keeps the engine
# waiting for so long that the byte is sent twice, another one is taken.
_RECORD = """
import os, sys, time
import utpsocket
from utpsocket.engine import engine

ROOT = os.path.dirname(utpsocket.__file__)

def of(sock):
    return sock.getsockopt(utpsocket.SOL_UTP, utpsocket.UTP_INFO)

def settle():
    while any(each.unsent_bytes or each.in_flight_bytes for each in map(of, (ours, theirs))):
        time.sleep(0.01)

def record(thread):
    def on_call(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(ROOT):
            calls.append((thread, os.path.relpath(code.co_filename, ROOT), code.co_name))
    return on_call

listener = utpsocket.create_server(("127.0.0.1", 0))
ours = utpsocket.create_connection(listener.getsockname())
theirs, _ = listener.accept()
for sender, receiver in (ours, theirs), (theirs, ours):  # so that nothing belongs to the handshake any more
    sender.sendall(b"hello")
    receiver.recv(5)
settle()
loop = engine()
while True:
    resent, calls = of(ours).retransmitted_packets, []
    loop.call(lambda _: sys.setprofile(record("engine")))
    sys.setprofile(record("caller"))
    ours.send(b"1")
    sys.setprofile(None)
    theirs.recv(1)
    settle()
    loop.call(lambda _: sys.setprofile(None))
    if of(ours).retransmitted_packets == resent:
        break
for call in calls:
    print(*call)
"""


def walks() -> list[tuple[str, str, list[tuple[str, str]]]]:
    found = []
    for match in _WALK.finditer(DESIGN.read_text("utf-8")):
        steps = [(module, function) for module, function, _ in rows(match["table"])]
        found.append((match["name"], match["thread"], steps))
    return found


def definitions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = {node.name for node in tree.body if isinstance(node, functions)}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, functions)}
    return found


def test_every_function_of_a_walk_is_there() -> None:
    steps = [step for _, _, walk in walks() for step in walk]
    assert len(steps) > 50
    assert [step for step in steps if step[1] not in definitions(PACKAGE / step[0])] == []


def has_gro() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        try:
            udp.setsockopt(socket.IPPROTO_UDP, 104, 1)  # linux/udp.h UDP_GRO
        except OSError:
            return False
    return True


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="the engine's thread ends whatever profiles it")
@pytest.mark.skipif(not has_gro(), reason="without GRO datagrams are received in another way")
@requires_pure
def test_the_code_goes_the_way_that_the_walks_say() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _RECORD],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("UTPSOCKET_")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    recorded = [line.split() for line in ran.stdout.splitlines()]
    threads = {"caller": iter(()), "engine": iter(())} | {
        thread: iter([(module, name) for by, module, name in recorded if by == thread]) for thread, _, _ in recorded
    }
    for walk, thread, steps in walks():  # each goes on where the one before it ended
        calls = threads[thread]
        for module, function in steps:
            assert (module, function.rpartition(".")[2]) in calls, f"{walk}: {module} {function}"

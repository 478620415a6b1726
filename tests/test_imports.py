"""What `import utpsocket` loads, and a child interpreter of a patched program. Each runs in a fresh interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Modules of the standard library that `import utpsocket` may load beside those of `import socket`, and what needs them.
ALLOWED = {
    "__future__": "annotations",
    "atexit": "the end of the interpreter (interpreter/ending.py)",
    "binascii": "the key of the descriptors' names (kernel/fd_name_key.py)",
    "ctypes": "without it utpsocket cannot be used, and its import says so",
    "fcntl": "functions that are taken before the program may replace them (interpreter/native.py)",
    "functools": "the same",
    "importlib.machinery": "what is watched for ssl and multiprocessing (integrations/import_hook.py)",
    "marshal": "a copy, in interpreter/originals.py",
    "operator": "interpreter/native.py",
    "resource": "a copy, in interpreter/originals.py",
    "signal": "a copy, in interpreter/originals.py",
    "struct": "a copy, in interpreter/originals.py",
    "termios": "interpreter/native.py",
    "typing": "annotations",
}
# The same of a patched child that imports socket.
ALLOWED_IN_A_CHILD = {
    "contextlib": "patched() (monkey/__init__.py)",
    "importlib.util": "socket is found by it when it is imported (integrations/import_hook.py)",
    "gc": "the table of patched sockets (monkey/in_place.py)",
    "math": "environment variables (engine/environment.py)",
    "re": "the same",
    "warnings": "the same",
    "weakref": "the table of patched sockets (monkey/in_place.py)",
}
OURS = """
    engine engine.interpreter engine.interpreter.ending engine.interpreter.fork_lock engine.interpreter.libc
    engine.interpreter.native engine.interpreter.originals engine.interpreter.signal_errors engine.kernel
    engine.kernel.fd_name_key integrations integrations.import_hook integrations.pickling integrations.tls_hook options
    sockets sockets.before_chroot sockets.datagrams sockets.functions sockets.shim _pure
"""
OURS_IN_A_CHILD = """
    engine.environment monkey monkey.host_names monkey.in_place monkey.library_hooks monkey.single_module sockets.rules
    startup
"""
START = f"import json, socket, sys; sys.path.insert(0, {str(ROOT)!r})"
COUNT = "print(json.dumps(sorted(set(sys.modules) - before)))"
CHILD = {"UTPSOCKET_PATCH": "1", "PYTHONPATH": str(ROOT / "utpsocket" / "startup")}


def output_of(*lines: str, flags: tuple[str, ...] = ("-S",), **variables: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("UTPSOCKET_", "PYTHON"))}
    ran = subprocess.run(
        [sys.executable, *flags, "-W", "error", "-c", "\n".join(lines)],
        env={**inherited, **variables},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def loaded(*lines: str, flags: tuple[str, ...] = ("-S",), **variables: str) -> set[str]:
    """The modules that the last of these lines loads."""
    found: list[str] = json.loads(
        output_of(*lines[:-1], "before = set(sys.modules)", lines[-1], COUNT, flags=flags, **variables)
    )
    return set(found)


def ours(modules: set[str]) -> set[str]:
    return {name for name in modules if name.split(".")[0] == "utpsocket"}


def full_names(text: str) -> set[str]:
    return {"utpsocket", *(f"utpsocket.{name}" for name in text.split())}


def test_importing_it_loads_few_modules() -> None:
    found = loaded(START, f"import {', '.join(ALLOWED)}", "import utpsocket")
    assert found - ours(found) <= {"_blake2"}
    assert ours(found) == full_names(OURS)


def test_each_module_that_is_allowed_is_loaded() -> None:
    modules = json.loads(output_of(START, "import utpsocket", "print(json.dumps(sorted(sys.modules)))"))
    assert set(ALLOWED) - set(modules) == set()


def test_a_child_that_imports_socket_loads_no_engine() -> None:
    """Nor one that has no uTP socket: asyncio makes a pair of AF_UNIX sockets."""
    program = "import asyncio, sys, utpsocket; asyncio.run(asyncio.sleep(0)); import json; before = set(); " + COUNT
    found = set(json.loads(output_of(program, flags=(), **CHILD)))
    tls = {"utpsocket.integrations.tls"}  # asyncio imports ssl
    assert ours(found) - tls == full_names(OURS + OURS_IN_A_CHILD)


def test_a_child_that_imports_socket_loads_few_modules() -> None:
    sockets = ("_socket", "array", "errno", "selectors")
    start = f"import json, sys; import {', '.join([*ALLOWED, *ALLOWED_IN_A_CHILD, *sockets])}"
    found = loaded(start, "import socket", flags=(), **CHILD)
    assert found - ours(found) <= {"_blake2", "socket"}


def test_everything_is_loaded_with_the_first_socket() -> None:
    """And nothing later: the files need not be there any more, as after a chroot()."""
    program = """
import sys, threading
import utpsocket
sock = utpsocket.socket()
sock.close()
before = set(sys.modules)
with utpsocket.create_server(("127.0.0.1", 0)) as listener:
    with utpsocket.create_connection(listener.getsockname()) as client, listener.accept()[0] as server:
        client.setsockopt(utpsocket.SOL_UTP, utpsocket.UTP_KEEPALIVE, 3)
        client.sendall(b"some bytes")
        assert server.recv(99) and utpsocket.info(client).state == "connected"
    try:
        utpsocket.create_connection(("127.0.0.1", 1))
    except OSError:
        pass
print(*sorted(set(sys.modules) - before))
"""
    idna = {
        "encodings.idna",
        "stringprep",
        "unicodedata",
    }  # the standard library's, for the name in create_connection()
    assert set(output_of(f"import sys; sys.path.insert(0, {str(ROOT)!r})", program).split()) - idna == set()


@pytest.mark.parametrize("name", ["chroot", "setuid"])
def test_everything_is_loaded_before_the_files_may_be_out_of_sight(name: str) -> None:
    program = f"""
import os
function = os.{name}
import utpsocket
assert os.{name} is not function and os.{name}.__doc__ == function.__doc__
try:
    os.{name}()
except TypeError:
    print(os.{name} is function, "utpsocket.engine.loop" in sys.modules)
"""
    assert output_of(START, program) == "True True\n"


def test_a_fork_waits_for_a_thread_that_loads() -> None:
    """The thread is held in the middle of it until the fork has begun."""
    program = """
import os, threading
import utpsocket

has_begun, forks = threading.Event(), threading.Event()

class Holding:
    def find_spec(self, name, path=None, target=None):
        if name == "utpsocket.engine.loop":
            has_begun.set()
            forks.wait(60)

sys.meta_path.insert(0, Holding())
os.register_at_fork(before=forks.set)
loading = threading.Thread(target=lambda: utpsocket.socket().close())
loading.start()
assert has_begun.wait(60)
child = os.fork()
if not child:
    with utpsocket.create_server(("127.0.0.1", 0)) as listener:
        os._exit(listener.getsockname()[1] == 0)
loading.join()
print(os.waitpid(child, 0)[1])
"""
    assert output_of(START, program, flags=("-S", "-W", "ignore")) == "0\n"


def test_public_names_that_are_loaded_late_are_names_like_others() -> None:
    program = """
import utpsocket
late = {"ConnectionStats", "info"}
assert late <= {*dir(utpsocket)} and late <= {*utpsocket.__all__}
assert "utpsocket.stats" not in sys.modules
assert utpsocket.stats.engine_stats().connections_open == 0
space = {}
exec("from utpsocket import *", space)
assert late <= {*space} and utpsocket.info is utpsocket.stats.info is space["info"]
import pickle
with utpsocket.socket() as sock:
    stats = utpsocket.info(sock)
assert pickle.loads(pickle.dumps(stats)) == stats
"""
    assert output_of(START, program, flags=("-S", "-W", "ignore")) == ""


@pytest.mark.parametrize("name", ["stats", "engine.interpreter.garbage_collector", "sockets.to_tcp"])
def test_what_was_interrupted_is_loaded_again(name: str) -> None:
    """By what a signal's handler has raised."""
    program = f"""
import utpsocket

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "utpsocket.{name}":
            sys.meta_path.remove(self)
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting())
try:
    utpsocket.socket()
except KeyboardInterrupt:
    print("interrupted")
with utpsocket.create_server(("127.0.0.1", 0)) as listener:
    with utpsocket.create_connection(listener.getsockname()) as client, listener.accept()[0] as server:
        client.sendall(b"some bytes")
        print(len(server.recv(10)))
"""
    assert output_of(START, program) == "interrupted\n10\n"

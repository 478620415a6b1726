"""`python3 -m utpsocket run`: Python's own in everything but the transport, for what it runs and what that starts."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from utpsocket import monkey

ROOT = Path(__file__).resolve().parent.parent
WAIT_S = 150
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("UTPSOCKET_")}
ENVIRONMENT["PYTHONPATH"] = str(ROOT)


def finish(*command: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**ENVIRONMENT, **variables},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )


def run(*arguments: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    return finish("-m", "utpsocket", "run", *arguments, cwd=cwd, **variables)


def script(folder: Path, source: str) -> str:
    path = folder / "script.py"
    path.write_text(source, encoding="utf-8")
    return str(path)


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "utpsocket", "run", *arguments],
        env={**ENVIRONMENT, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


SEEN_BY_A_PROGRAM = """
import sys
print(__name__, __file__ if '__file__' in globals() else None, __package__, __spec__ and __spec__.name)
print(sys.argv, sys.path, sys.flags.optimize, sys.warnoptions, sys.modules['__main__'].__dict__ is globals())
print('sitecustomize' in sys.modules)
"""


@pytest.mark.parametrize("how", ["script", "module", "code", "folder"])
def test_a_program_sees_what_it_sees_without(how: str, tmp_path: Path) -> None:
    path = script(tmp_path, SEEN_BY_A_PROGRAM)
    (tmp_path / "__main__.py").write_text(SEEN_BY_A_PROGRAM, encoding="utf-8")
    program = {
        "script": [path],
        "module": ["-m", "script"],
        "code": ["-c", SEEN_BY_A_PROGRAM],
        "folder": [str(tmp_path)],
    }[how]
    for flags in ([], ["-O", "-W", "default"]):
        plain = finish(*flags, *program, "one", "-m", "--only", "two", cwd=tmp_path)
        ours = finish(*flags, "-m", "utpsocket", "run", *program, "one", "-m", "--only", "two", cwd=tmp_path)
        assert plain.returncode == 0
        assert (ours.returncode, ours.stderr) == (0, "")
        assert ours.stdout.splitlines()[:2] == plain.stdout.splitlines()[:2]


@pytest.mark.parametrize(
    "source",
    ["import sys; sys.exit(7)", "import sys; sys.exit('a last word')", "1 / 0", "import os; os._exit(3)", "x = ", ""],
)
def test_endings_are_pythons(source: str, tmp_path: Path) -> None:
    path = script(tmp_path, f"import socket\n{source}\n")
    plain, ours = finish(path), run(path)
    assert (ours.returncode, ours.stdout, ours.stderr) == (plain.returncode, plain.stdout, plain.stderr)


@pytest.mark.parametrize("missing", [["no_such_file.py"], ["-m", "no_such_module"]])
def test_what_cannot_be_run(missing: list[str]) -> None:
    plain, ours = finish(*missing), run(*missing)
    assert (ours.returncode, ours.stderr) == (plain.returncode, plain.stderr)


def test_a_sitecustomize_of_the_programs_own_is_run(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.theirs = __file__", encoding="utf-8")
    ran = run("-c", "print(theirs)", PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"{tmp_path}/sitecustomize.py\n", "")


TRANSPORT = "import socket; from utpsocket import monkey; s = socket.socket(); print(monkey.transport(s)); s.close()"


def test_the_program_and_what_it_starts_are_patched(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        f"""
import multiprocessing, os, subprocess, sys
def ask():
    {TRANSPORT.replace("print(", "return (").replace("; s.close()", "")}
def tell(queue):
    queue.put(ask())
if __name__ == '__main__':
    print(ask(), flush=True)
    for method in ('spawn', 'forkserver', 'fork'):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        child = context.Process(target=tell, args=(queue,))
        child.start()
        print(method, queue.get(timeout=100), flush=True)
        child.join()
    subprocess.run([sys.executable, '-c', {TRANSPORT!r}], check=True)
    pid = os.fork()
    if not pid:
        print('forked', ask(), flush=True)
        os._exit(0)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
""",
    )
    ran = run(path, PYTHONWARNINGS="ignore")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == ["utp", "spawn utp", "forkserver utp", "fork utp", "utp", "forked utp"]


def test_child_interpreters_are_not_patched_without_run() -> None:
    ran = finish("-c", TRANSPORT)
    assert ran.stdout == "tcp\n"


@pytest.mark.parametrize(
    ("call", "variable", "expected"), [("", "1", "utp"), ("", "0", "tcp"), ("children=True", "0", "utp")]
)
def test_a_program_that_patches_itself_may_have_its_children_do_so(call: str, variable: str, expected: str) -> None:
    program = f"""
import subprocess, sys
from utpsocket import monkey
monkey.patch_all({call})
command = [sys.executable, '-c', {TRANSPORT!r}]
subprocess.run(command, check=True)
monkey.unpatch()
"""
    ran = finish("-c", program, UTPSOCKET_PATCH=variable)
    assert (ran.stdout, ran.stderr) == (f"{expected}\n", "")


def test_an_interpreter_that_needs_no_socket_loads_nothing() -> None:
    ran = run("-c", "import sys; print(sorted(name for name in sys.modules if 'socket' in name))")
    assert (ran.stdout, ran.stderr) == ("[]\n", "")


def test_pip_answers() -> None:
    ran = finish("-m", "pip", "--version")
    if ran.returncode:
        pytest.skip("this interpreter has no pip")
    assert run("-m", "pip", "--version").stdout == ran.stdout


def test_the_stdlibs_web_server_serves_until_interrupted(tmp_path: Path) -> None:
    (tmp_path / "page").write_text("over uTP", encoding="utf-8")
    with started("--stats", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(tmp_path)) as server:
        assert server.stdout is not None
        found = re.match(r"Serving HTTP on 127.0.0.1 port (\d+) ", server.stdout.readline())
        assert found
        with monkey.patched():
            connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=WAIT_S)
            connection.request("GET", "/page")
            assert connection.getresponse().read() == b"over uTP"
            connection.close()
        server.send_signal(signal.SIGINT)
        output, errors = server.communicate(timeout=WAIT_S)
    assert (server.returncode, output) == (0, "\nKeyboard interrupt received, exiting.\n")
    table = errors[errors.index("utpsocket: process") :].splitlines()
    assert table[0] == f"utpsocket: process {server.pid}"
    assert re.match(r"  over uTP     0 opened, 1 accepted, [01] open", table[1])
    assert re.match(r"  sent +\d+ bytes, \d+ packets, \d+ again", table[3])


def test_rules_reach_the_program_and_what_it_starts(tmp_path: Path) -> None:
    """By options or by variables: a server of both transports, asked over each by a client that falls back."""
    (tmp_path / "page").write_text("over either", encoding="utf-8")
    client = (
        "import sys, urllib.request; from utpsocket import monkey, stats\n"
        "print(urllib.request.urlopen(sys.argv[1], timeout=100).read().decode())\n"
        "seen = stats.engine_stats(); print(seen.connections_initiated - seen.tcp_initiated, seen.tcp_initiated)\n"
    )
    with started("--listen", "both", "-m", "http.server", "0", "--bind", "127.0.0.1", "-d", str(tmp_path)) as server:
        assert server.stdout is not None
        port = re.findall(r"port (\d+)", server.stdout.readline())[0]
        url = f"http://127.0.0.1:{port}/page"
        assert finish("-c", client, url).stdout == "over either\n0 0\n"  # plain TCP
        assert run("-c", client, url).stdout == "over either\n1 0\n"
        assert run("--exclude", f"127.0.0.1:{port}", "-c", client, url).stdout == "over either\n0 0\n"
        assert run("-c", client, url, UTPSOCKET_ONLY="10.0.0.0/8").stdout == "over either\n0 0\n"
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "-d", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as plain:
        try:
            assert plain.stdout is not None
            port = re.findall(r"port (\d+)", plain.stdout.readline())[0]
            url = f"http://127.0.0.1:{port}/page"
            assert run("--fallback", "tcp", "-c", client, url).stdout == "over either\n0 1\n"
            ran = run("-c", client, url, UTPSOCKET_FALLBACK="tcp", UTPSOCKET_STATS="1")
            assert ran.stdout == "over either\n0 1\n"
            assert "over TCP     1 opened, 0 accepted" in ran.stderr
        finally:
            plain.kill()


def test_what_was_written_over_a_fallback_arrives_after_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        program = f"""
import socket
client = socket.create_connection(('127.0.0.1', {port}))
client.sendall(bytes(3_000_000))
client.sendall(b'the end')
"""
        with started("--fallback", "tcp", "-c", program) as sender:
            listener.settimeout(WAIT_S)
            server, _ = listener.accept()
            with server:
                received = b"".join(iter(lambda: server.recv(1 << 16), b""))
            assert sender.wait(WAIT_S) == 0
        assert (len(received), received[-7:]) == (3_000_007, b"the end")


def test_an_interrupt_ends_it_as_it_ends_python() -> None:
    with started("-c", "import socket\nprint('ready')\nsocket.create_server(('127.0.0.1', 0)).accept()") as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "ready\n"
        waiting.send_signal(signal.SIGINT)
        _, errors = waiting.communicate(timeout=WAIT_S)
    assert waiting.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize(
    "wrong", [[], ["-m"], ["--only", "10.0.0.0/33", "-c", ""], ["--listen", "tcp", "-c", ""], ["--fallback", "x"]]
)
def test_wrong_usage(wrong: list[str]) -> None:
    ran = run(*wrong)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.splitlines()[-1].startswith("utpsocket: ")


FLAGS = (
    "import socket, sys, utpsocket.monkey; s = socket.socket()\n"
    "print(utpsocket.monkey.transport(s), sys.flags.dev_mode,"
    " sys.flags.no_user_site, sys.flags.safe_path if sys.version_info >= (3, 11) else None, sys.warnoptions,"
    " sys.stdout.write_through, sys.argv[1:]); s.close()"
)


@pytest.mark.parametrize(
    ("flags", "seen"),
    [
        (["-u", "-X", "dev"], "utp True 0 False ['default'] True"),
        (["-uXdev", "-W", "error", "-Wignore"], "utp True 0 False ['default', 'error', 'ignore'] True"),
        (["-u", "-s", "-P"], "utp False 1 True [] True"),
    ],
)
@pytest.mark.skipif(sys.version_info < (3, 11), reason="needs -P, of Python 3.11")
def test_options_of_the_interpreter(flags: list[str], seen: str) -> None:
    ran = run(*flags, "-c", FLAGS, "-u", "one")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == f"{seen} ['-u', 'one']\n"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="needs -P, of Python 3.11")
def test_isolated_a_program_is_patched_and_finds_nothing_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "found.py").write_text("", encoding="utf-8")
    program = f"import importlib.util; print(importlib.util.find_spec('found')); {TRANSPORT}"
    for flags, found in ((["-s"], True), (["-E"], True), (["-I"], False)):
        for path, cwd in ((str(tmp_path), None), ("", tmp_path)):
            ran = run(*flags, "-c", program, cwd=cwd, PYTHONPATH=os.pathsep.join(filter(None, [path, str(ROOT)])))
            assert ran.returncode == 0, ran.stderr
            where, transport = ran.stdout.splitlines()
            assert transport == "utp"
            assert (where != "None") == (found and (flags == ["-s"] or cwd is not None))


@pytest.mark.parametrize("first_lines", ["#!{0}", "#!/bin/sh\n'''exec' \"{0}\" \"$0\" \"$@\"\n' '''"])
def test_a_console_script_on_path(first_lines: str, tmp_path: Path) -> None:
    # A first line with a space in the interpreter's path is none that the kernel understands.
    has_space = " " in sys.executable and "exec" not in first_lines
    interpreter = "/usr/bin/env python3" if has_space else sys.executable
    tool = tmp_path / "some-tool"
    tool.write_text(f"{first_lines.format(interpreter)}\nimport sys; print(sys.argv); {TRANSPORT}", encoding="utf-8")
    tool.chmod(0o755)
    ran = run("some-tool", "--only", "one", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == f"{[str(tool), '--only', 'one']}\nutp\n"


def test_what_is_not_python_is_said(tmp_path: Path) -> None:
    shell = tmp_path / "some-tool"
    shell.write_text("#!/usr/bin/env -S bash -e\necho", encoding="utf-8")
    shell.chmod(0o755)
    for name, what in (("some-tool", "bash runs it"), (str(shell), "bash runs it"), ("sh", "but a binary")):
        ran = run(name, PATH=f"{tmp_path}:{os.environ['PATH']}")
        assert (ran.returncode, ran.stdout) == (2, "")
        assert ran.stderr.startswith("utpsocket: /")
        assert f" is no Python program{':' if 'runs' in what else ''} " in ran.stderr
        assert what in ran.stderr


@pytest.mark.parametrize("handles", [False, True])
def test_the_table_is_printed_after_sigterm_too(handles: bool) -> None:
    handler = "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))" if handles else ""
    program = f"import socket, sys\n{handler}\nprint('ready')\nsocket.create_server(('127.0.0.1', 0)).accept()"
    with started("--stats", "-c", program) as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "ready\n"
        waiting.send_signal(signal.SIGTERM)
        _, errors = waiting.communicate(timeout=WAIT_S)
    assert waiting.returncode == (5 if handles else -signal.SIGTERM)
    assert errors.startswith(f"utpsocket: process {waiting.pid}\n  over uTP     0 opened")
    assert errors.count("over uTP") == 1


def test_isolated_interpreters_are_refused() -> None:
    ran = finish(
        "-E",
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from utpsocket.cli import main; "
        "sys.exit(main(['run', '-c', '']))",
    )
    assert ran.returncode == 2
    assert "cannot be patched from outside" in ran.stderr

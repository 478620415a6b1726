"""`python3 -m utpsocket nc` in processes of its own: what arrives, how it ends, and what it says."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import utpsocket
from utpsocket.cli import nc_tls

ROOT = Path(__file__).resolve().parent.parent
WAIT_S = 150


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "utpsocket", "nc", *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with start(*arguments) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def listening(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A `nc -l -v`, and the port that it listens on."""
    with running("-l", "-v", "-s", "127.0.0.1", "-p", "0", *arguments) as process:
        yield process, port_of(process)


def port_of(process: subprocess.Popen[bytes]) -> str:
    found = re.fullmatch(r"listening on 127.0.0.1 port (\d+)\n", said(process))
    assert found
    return found[1]


def said(process: subprocess.Popen[bytes]) -> str:
    assert process.stderr is not None
    return process.stderr.readline().decode()


def finish(process: subprocess.Popen[bytes], data: bytes = b"") -> tuple[int, bytes, str]:
    """Its exit status, its output and its words, once it has had this input and its end."""
    output, errors = process.communicate(data, timeout=WAIT_S)
    return process.returncode, output, errors.decode()


def nc(*arguments: str, data: bytes = b"") -> tuple[int, bytes, str]:
    with running(*arguments) as process:
        return finish(process, data)


def test_each_side_gets_what_the_other_was_given() -> None:
    there, back = os.urandom(3_000_000), os.urandom(1_000_000)
    with listening() as (server, port):
        with running("127.0.0.1", port) as client:
            assert server.stdin is not None
            server.stdin.write(back[:10])
            server.stdin.flush()
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(there[:10])
            client.stdin.flush()
            assert client.stdout.read(10) == back[:10]  # before any end
            client.stdin.write(there[10:])
            client.stdin.close()
            assert server.stdout is not None
            assert server.stdout.read() == there  # the end of stdin has ended this half, and the other goes on
            server.stdin.write(back[10:])
            server.stdin.close()
            assert client.stdout.read() == back[10:]
            assert (client.wait(WAIT_S), server.wait(WAIT_S)) == (0, 0)
            assert re.fullmatch(r"connection from 127.0.0.1 port \d+\n", said(server))
            assert said(client) == ""


def test_without_shutdown_the_peers_end_is_waited_for() -> None:
    with listening() as (server, port), running("--no-shutdown", "127.0.0.1", port) as client:
        assert client.stdin is not None
        assert server.stdout is not None
        client.stdin.write(b"question")
        client.stdin.close()
        assert server.stdout.read(8) == b"question"
        server.stdout.close()
        assert finish_after_input(server, b"answer") == b""
        assert client.stdout is not None
        assert client.stdout.read() == b"answer"
        assert client.wait(WAIT_S) == 0


def finish_after_input(process: subprocess.Popen[bytes], data: bytes) -> bytes:
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.close()
    return b""


def test_one_after_the_other() -> None:
    with listening("-k") as (server, port):
        for text in (b"first", b"second"):
            assert nc("127.0.0.1", port, data=text) == (0, b"", "")
        assert server.stdout is not None
        assert server.stdout.read(11) == b"firstsecond"
        server.send_signal(signal.SIGTERM)
        assert server.wait(WAIT_S) == 128 + signal.SIGTERM


@pytest.mark.parametrize("option", ["--exec", "--sh-exec"])
def test_a_program_for_each_connection_at_once(option: str) -> None:
    command = f'{sys.executable} -c "import os,sys; sys.stdout.write(sys.stdin.readline().upper())"'
    with listening("-k", option, command) as (_, port), running("127.0.0.1", port) as silent:
        status, output, errors = nc("127.0.0.1", port, data=b"hello\nand more\n")
        assert output == b"HELLO\n", (status, errors)
        assert finish(silent, b"late\n")[1] == b"LATE\n"


def test_a_program_knows_the_addresses_and_its_status_is_reported() -> None:
    command = "echo $NCAT_REMOTE_ADDR $NCAT_LOCAL_PORT; exit 3"
    with listening("-c", command) as (server, port):
        assert nc("127.0.0.1", port)[1] == f"127.0.0.1 {port}\n".encode()
        assert server.wait(WAIT_S) == 1
        assert server.stderr is not None
        assert server.stderr.read().decode().endswith("\nutpsocket: /bin/sh: exit status 3\n")


def test_only_allowed_addresses_are_served() -> None:
    with listening("-k", "--allow", "127.0.0.2,127.0.0.8/29") as (server, port):
        refused = nc("127.0.0.1", port)
        assert refused[1] == b""
        assert re.fullmatch(r"refused 127.0.0.1 port \d+\n", said(server))
        for source in ("127.0.0.2", "127.0.0.9"):
            assert nc("-s", source, "127.0.0.1", port, data=b"in") == (0, b"", "")
            assert said(server).startswith(f"connection from {source} port ")
        assert server.stdout is not None
        assert server.stdout.read(4) == b"inin"


def test_a_refused_connection_is_status_1() -> None:
    with utpsocket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    status, output, errors = nc("127.0.0.1", str(port))
    assert (status, output) == (1, b"")
    assert errors == f"utpsocket: 127.0.0.1 port {port}: [Errno 111] Connection refused\n"


def test_a_silent_peer_is_given_up() -> None:
    with utpsocket.socket(utpsocket.AF_INET, utpsocket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        status, _, errors = nc("-w", "0.2", "127.0.0.1", str(port))
        assert (status, errors) == (1, f"utpsocket: 127.0.0.1 port {port}: timed out\n")
    with utpsocket.create_server(("127.0.0.1", 0)) as listener:
        status, _, errors = nc("-i", "0.2", "127.0.0.1", str(listener.getsockname()[1]))
        assert (status, errors) == (1, "utpsocket: nothing was sent or received for 0.2 s\n")


def test_a_reset_is_status_1() -> None:
    with utpsocket.create_server(("127.0.0.1", 0)) as listener:
        with running("127.0.0.1", str(listener.getsockname()[1])) as client:
            conn, _ = listener.accept()
            conn.setsockopt(utpsocket.SOL_SOCKET, utpsocket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            conn.close()
            status, _, errors = finish(client)
    assert (status, errors) == (1, "utpsocket: [Errno 104] Connection reset by peer\n")


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ["127.0.0.1"],
        ["127.0.0.1", "port"],
        ["-k", "127.0.0.1", "1"],
        ["-l", "--allow", "localhost", "1"],
        ["-l", "--tls", "1"],
        ["-w", "soon", "127.0.0.1", "1"],
        ["-e", "a", "-c", "b", "127.0.0.1", "1"],
    ],
)
def test_wrong_usage_is_status_2(wrong: list[str]) -> None:
    status, output, errors = nc(*wrong)
    assert (status, output) == (2, b"")
    assert errors.splitlines()[-1].startswith("utpsocket: ")


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> str:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("identity")
    subprocess.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
        f" -keyout {folder}/key -out {folder}/certificate",
        shell=True,
        check=True,
        capture_output=True,
    )
    both = folder / "both.pem"
    both.write_bytes((folder / "key").read_bytes() + (folder / "certificate").read_bytes())
    return str(both)


def test_tls_both_ways_with_each_half_ended_by_itself(identity: str) -> None:
    there, back = os.urandom(2_000_000), os.urandom(500_000)
    with listening("--tls", "--tls-cert", identity) as (server, port):
        with running("--tls", "--tls-ca", identity, "-4", "localhost", port) as client:
            assert client.stdin is not None
            assert server.stdin is not None
            assert server.stdout is not None
            assert client.stdout is not None
            client.stdin.write(there)
            client.stdin.close()
            assert server.stdout.read() == there
            server.stdin.write(back)
            server.stdin.close()
            assert client.stdout.read() == back
            assert (client.wait(WAIT_S), server.wait(WAIT_S)) == (0, 0)


def test_tls_with_a_program(identity: str) -> None:
    with listening("-k", "--tls", "--tls-cert", identity, "-e", "cat") as (_, port):
        text = os.urandom(300_000)
        assert nc("--tls", "--tls-no-verify", "127.0.0.1", port, data=text) == (0, text, "")


def test_tls_checks_the_certificate(identity: str) -> None:
    with listening("-k", "--tls", "--tls-cert", identity) as (_, port):
        for options in ([], ["--tls-ca", identity]):
            status, output, errors = nc("--tls", *options, "127.0.0.1", port, data=b"secret")
            assert (status, output) == (1, b"")
            assert errors.startswith("utpsocket: [SSL: CERTIFICATE_VERIFY_FAILED]")


def test_a_plain_stream_has_nothing_in_store() -> None:
    with utpsocket.socket() as sock:
        assert not nc_tls.PlainStream(sock).has_received()

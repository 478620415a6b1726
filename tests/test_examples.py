"""Every example runs as README says, prints what it should, and carries its bytes over uTP and not TCP by accident."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trustme

from compat.peers import bittorrent, provision
from compat.peers.children import Children

ROOT = Path(__file__).resolve().parent.parent

# Python 3.12 and later say so of every fork in a process that has an engine; utpsocket's fork handlers are for that.
FORK_WARNING = "This process:DeprecationWarning"

CHATTERS = {"Ada", "Grace", "Edsger", "Barbara"}

# What each prints, line by line, as regular expressions.
OUTPUT = {
    "echo": [
        r"server: a connection from 127\.0\.0\.1",
        "client: hello over uTP",
        "uTP connections: 1",
    ],
    "http_server_client": [
        "200 hello from /one",
        "200 hello from /two",
        "uTP connections: 2",
    ],
    "socketserver_echo": [
        r"ThreadingServer: HELLO \(said in this process\)",
        r"ForkingServer: HELLO \(said in a child process\)",
        "uTP connections: 2",
    ],
    "asyncio_echo": [
        *(f"hello {number}" for number in range(5)),
        "uTP connections: 5",
    ],
    "https": [
        r"200 whispered over TLSv1\.[23]",
        "uTP connections: 1",
    ],
    "background_transfer": [
        *([r" *\d+% sent, round trip \d+\.\d ms, of which \d+\.\d ms in queues; window [\d,]+ bytes"] * 8),
        "received intact",
        "uTP connections: 1",
    ],
    "gevent_chat": [
        *(
            rf"{name} heard {', '.join(f'{other}: hello from {other}' for other in sorted(CHATTERS - {name}))}"
            for name in ["Ada", "Grace", "Edsger", "Barbara"]
        ),
        "uTP connections: 4",
    ],
    "bittorrent": [
        "12 pieces, intact",
        "uTP connections: 1",
    ],
}


def run_example(name: str, *arguments: str) -> list[str]:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-W", f"ignore:{FORK_WARNING}", "-m", f"examples.{name}", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
    return ran.stdout.splitlines()


def assert_printed(name: str, lines: list[str]) -> None:
    wanted = OUTPUT[name]
    assert len(lines) == len(wanted), lines
    for line, pattern in zip(lines, wanted, strict=True):
        assert re.fullmatch(pattern, line), f"{line!r} is not {pattern!r}"


@pytest.mark.parametrize("name", OUTPUT)
def test_example(name: str) -> None:
    assert_printed(name, run_example(name))


def test_https_with_a_certificate_of_ones_own(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    pem = tmp_path / "localhost.pem"
    # The client trusts what is in the same file, so the authority's certificate goes along.
    pem.write_bytes(issued.private_key_and_cert_chain_pem.bytes() + authority.cert_pem.bytes())
    assert_printed("https", run_example("https", str(pem)))


def test_bittorrent_from_a_real_client(tmp_path: Path) -> None:
    """A libtorrent seed that speaks uTP alone; the torrent's own hashes say that the pieces are right."""
    try:
        python = provision.libtorrent()
    except provision.Unavailable as reason:
        pytest.skip(f"libtorrent cannot be set up: {reason}")
    original = tmp_path / "original.bin"
    original.write_bytes(random.Random(5).randbytes(1_000_000))
    torrent = tmp_path / "original.torrent"
    torrent.write_bytes(bittorrent.Metainfo.of_file(original).torrent())
    session = ROOT / "compat" / "peers" / "libtorrent_session.py"
    with Children() as children:
        seed = children.start("seed", [str(python), str(session), "seed", str(torrent), str(tmp_path), "127.0.0.1"])
        port = seed.expect("port", deadline=time.monotonic() + 600)
        lines = run_example("bittorrent", str(torrent), str(tmp_path / "copy.bin"), "127.0.0.1", str(port))
        peer = seed.expect("peer", deadline=time.monotonic() + 60)
    assert lines[1:] == ["uTP connections: 1"]
    assert re.fullmatch(r"[1-9]\d* pieces", lines[0])
    assert peer["utp"]
    assert (tmp_path / "copy.bin").read_bytes() == original.read_bytes()


def test_no_example_is_left_out() -> None:
    assert sorted(OUTPUT) == sorted(path.stem for path in (ROOT / "examples").glob("*.py"))

"""Every environment variable is read in one place, and what cannot be read is named."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import utpsocket
from utpsocket.engine import environment, shutdown
from utpsocket.sockets import rules

from ..sockets.network import REPOSITORY

SIZE, SECONDS, SWITCH = "a size in bytes such as 4194304, 4M or 4Mi", "a number of seconds", "1 or 0 (or yes, "
MALFORMED = [
    ("UTPSOCKET_ENGINE", "thraed", "'thread' or 'process'"),
    ("UTPSOCKET_EXIT_FLUSH", "soon", SECONDS),
    ("UTPSOCKET_EXIT_TIMEOUT", "nan", SECONDS),
    ("UTPSOCKET_FALLBACK", "udp", "'tcp'"),
    ("UTPSOCKET_FALLBACK_DELAY", "300ms", SECONDS),
    ("UTPSOCKET_KEEP_GIL", "never", SWITCH),
    ("UTPSOCKET_LISTEN", "all", "'utp' or 'both'"),
    ("UTPSOCKET_MAX_MTU", "4 apples", SIZE),
    ("UTPSOCKET_OFFLOAD", "2", SWITCH),
    ("UTPSOCKET_PATCH", "maybe", SWITCH),
    ("UTPSOCKET_POLLER", "select", "'epoll' or 'poll'"),
    ("UTPSOCKET_STATS", "maybe", SWITCH),
    ("UTPSOCKET_UDP_BUFFER", "4T", SIZE),
]


@pytest.mark.parametrize(("name", "text", "meant"), MALFORMED)
def test_what_cannot_be_read_is_an_error_of_the_first_call(
    name: str, text: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutdown()
    monkeypatch.setenv(name, text)
    with utpsocket.socket() as sock, pytest.raises(ValueError, match=re.escape(f"{name} is '{text}', not {meant}")):
        sock.bind(("127.0.0.1", 0))
    monkeypatch.undo()
    with utpsocket.socket() as sock:
        sock.bind(("127.0.0.1", 0))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4194304", 4_194_304),
        ("4M", 4_000_000),
        ("4Mi", 4 << 20),
        ("256k", 256_000),
        ("256KiB", 256 << 10),
        ("1 GB", 10**9),
    ],
)
def test_sizes(text: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UTPSOCKET_UDP_BUFFER", text)
    assert environment.value("UTPSOCKET_UDP_BUFFER", 0) == number


@pytest.mark.parametrize(("text", "meant"), [("1", True), ("yes", True), ("On", True), ("0", False), ("no", False)])
def test_switches(text: str, meant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UTPSOCKET_OFFLOAD", text)
    assert environment.value("UTPSOCKET_OFFLOAD", None) is meant


@pytest.mark.parametrize("name", ["UTPSOCKET_ONLY", "UTPSOCKET_EXCEPT"])
def test_rules_are_named_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "10.0.0.0/40")
    with pytest.raises(ValueError, match=f"{name} is '10.0.0.0/40': "):
        rules.from_environment()


def test_a_name_that_is_none_is_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UTPSOCKET_UDP_BUFER", "4M")
    monkeypatch.setattr(environment, "_warned", set())
    with pytest.warns(RuntimeWarning, match="UTPSOCKET_UDP_BUFER is no variable of utpsocket's"):
        environment.check()
    environment.check()  # warnings are errors here


@pytest.mark.parametrize(
    ("text", "patched", "said"),
    [
        ("yes", "utp", ""),
        ("On", "utp", ""),
        ("no", "tcp", ""),
        ("maybe", "tcp", "UTPSOCKET_PATCH is 'maybe', not 1 or 0"),
    ],
)
def test_a_patch_is_asked_for_in_the_same_words(text: str, patched: str, said: str) -> None:
    program = "import socket; print('utp' if hasattr(socket.socket, '_utp') else 'tcp')"
    folder = Path(REPOSITORY, "utpsocket", "startup")
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(folder), "UTPSOCKET_PATCH": text},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout == f"{patched}\n"
    assert said in ran.stderr
    assert bool(said) is bool(ran.stderr)


def test_the_readme_names_none_that_does_not_exist() -> None:
    """The table of all is docs/guide/tuning.md's, to which README links; tests/docs/test_facts.py compares it."""
    text = Path(REPOSITORY, "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"UTPSOCKET_[A-Z_]+", text))
    assert named and named <= set(environment._READERS)
    assert "utpsocket/docs/guide/tuning.md" in text

"""utpsocket.green: gevent and eventlet over uTP. Each case is a program of programs.py, in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme

ROOT = Path(__file__).resolve().parents[2]
NATIVE = "<built-in function start_new_thread> <built-in function allocate_lock> <class 'select.epoll'>"


def run(program: str, order: str, stdin: str = "") -> dict[str, Any]:
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-X", "faulthandler", "-m", "tests.green.programs", program, order],
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer


def skip_without_eventlet() -> None:
    """Imported in this process, eventlet would warn of every fork that a later test makes."""
    if importlib.util.find_spec("eventlet") is None:
        pytest.skip("no eventlet")


@pytest.mark.parametrize("order", ["ug", "gu", "usg", "sgu", "gsu"])
def test_gevent_in_any_order_of_patching(order: str) -> None:
    fetched = {"whole": 8, "utp": 8, "ticked": True, "engine": NATIVE}
    assert run("web", order) == fetched | {"plain_again": True, "class_is_original": True}


def test_gevent_has_nothing_to_warn_of_when_it_patches_after_us() -> None:
    """It warns of modules that refer to what it replaces; servers' tests look for words of error in their logs."""
    program = "from utpsocket import monkey; monkey.patch_all(); import ssl, gevent.monkey; gevent.monkey.patch_all()"
    subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=ROOT, timeout=150, check=True)


@pytest.mark.parametrize("order", ["ue", "eu", "seu"])
def test_eventlet_in_any_order_of_patching(order: str) -> None:
    skip_without_eventlet()
    answer = run("eventlets", order)
    assert answer == {
        "whole": 8,
        "ticked": True,
        "engine": NATIVE,
        "timeout": True,
        "refused": True,
        "second_attempt": True,
        "utp": 10,
    }


@pytest.mark.parametrize("order", ["g", "-"])
def test_the_cooperative_socket_in_every_blocking_call(order: str) -> None:
    answer = run("cooperative", order)
    assert answer.pop("classes") == [True, True, True]
    assert answer.pop("utp") == 3
    assert set(answer.values()) == {True}, answer
    assert len(answer) == 13


@pytest.mark.parametrize("order", ["g", "-"])
def test_lingering_does_not_block_the_hub(order: str) -> None:
    assert run("lingering", order) == {"waited": True, "ticked_meanwhile": True, "utp": 1}


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key, its certificate for localhost, and who signed it."""
    authority = trustme.CA()
    path = tmp_path_factory.mktemp("certificate") / "localhost.pem"
    issued = authority.issue_cert("localhost")
    path.write_bytes(issued.private_key_and_cert_chain_pem.bytes() + authority.cert_pem.bytes())
    return path


@pytest.mark.parametrize("order", ["ue", "eu", "sue", "use", "e"])
def test_tls_under_eventlet(order: str, pem: Path) -> None:
    skip_without_eventlet()
    is_patched = "u" in order
    assert run("eventlets_secure", order, f"{pem}\n") == {
        "heard": True,
        "peer": True,
        "transport": "utp" if is_patched else "tcp",
        "ticked": True,
        "seen": [True],
        "timeout": True,
        "utp": 2 if is_patched else 0,
    }


@pytest.mark.parametrize("order", ["g", "-", "s"])
def test_tls(order: str, pem: Path) -> None:
    assert run("secure", order, f"{pem}\n") == {"heard": True, "addresses": True, "utp": 1}


@pytest.mark.parametrize("order", ["ug", "gu"])
def test_rules_of_the_patch_hold_for_gevent(order: str) -> None:
    assert run("ruled", order) == {"transports": ["utp", "tcp"], "utp": 1}


def test_a_burst_of_fetches_arrives_whole_while_a_greenlet_ticks() -> None:
    """The thousand of them, and how late the tick may be, are `python3 -m compat gevent fetches`."""
    ran = subprocess.run(
        [sys.executable, "-m", "compat.gevent.fetches", "--count", "60"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        check=True,
    )
    figures = json.loads(ran.stdout)
    assert (figures["whole"], figures["utp_connections"]) == (60, 60)
    assert figures["client"]["ticks"] > 0 and figures["server"]["ticks"] > 0


def test_patching_while_gevent_is_being_imported() -> None:
    """gevent imports socket when its own socket is half made; what patches then must still reach it."""
    program = """
import importlib.util  # as a child's sitecustomize does
spec = importlib.util.spec_from_file_location("afterimport", "utpsocket/integrations/import_hook.py")
afterimport = importlib.util.module_from_spec(spec)
spec.loader.exec_module(afterimport)
def patch():
    from utpsocket import monkey
    monkey.patch_all()
watch = afterimport.AfterImport({"socket": patch})
watch.install()
import gevent.socket
print(type(gevent.socket.socket()._sock).__name__)
"""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert (ran.stdout, ran.stderr) == ("GeventInside\n", "")


@pytest.mark.parametrize("order", ["ug", "gu", "ue", "eu"])
def test_a_udp_socket_at_the_address_of_a_listener(order: str) -> None:
    if "e" in order:
        skip_without_eventlet()
    assert run("datagrams", order) == {"greeting": "hello", "echoed": [True, True], "utp": 1}

"""Threads of ours: no signal of the program's ends in one."""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Callable

import pytest

from utpsocket.engine.interpreter import libc, native
from utpsocket.engine.interpreter.native import start_thread


def started(run: Callable[[], object]) -> None:
    """Have a thread of ours call `run`, and wait until it has."""
    has_run = threading.Event()

    def run_and_tell() -> None:
        run()
        has_run.set()

    start_thread(run_and_tell, b"utpsocket-test")
    assert has_run.wait(30)


def blocked() -> set[int]:
    return {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())}


def test_every_signal_is_blocked_in_a_thread_of_ours() -> None:
    masks: list[set[int]] = []
    started(lambda: masks.append(blocked()))
    assert masks[0] == signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}


def test_it_is_so_before_the_thread_does_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its first call is the one that names it, and it needs the GIL for that.
    masks: list[set[int]] = []
    monkeypatch.setattr(libc, "prctl", lambda *_: masks.append(blocked()))
    started(lambda: None)
    assert signal.SIGINT in masks[0]


@pytest.mark.parametrize("mask", [(), (signal.SIGUSR1,)])
def test_who_starts_one_has_its_own_mask_afterwards(mask: tuple[int, ...]) -> None:
    before = signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        started(lambda: None)
        assert blocked() == set(mask)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_also_where_there_can_be_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    before = blocked()
    for name in ("start_new_thread", "_start_joinable"):
        if getattr(native, name) is not None:
            monkeypatch.setattr(native, name, refused)
    with pytest.raises(RuntimeError):
        start_thread(lambda: None, b"utpsocket-test")
    assert blocked() == before


def test_a_signal_that_comes_meanwhile_is_the_starting_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    if _thread.get_ident() != threading.main_thread().ident:
        pytest.skip("the tests do not run in the main thread")
    received: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: received.append(_thread.get_ident()))
    name = "start_new_thread" if native._start_joinable is None else "_start_joinable"
    start = getattr(native, name)

    def start_and_signal(*arguments: object, **options: object) -> object:
        signal.raise_signal(signal.SIGUSR1)
        assert not received
        return start(*arguments, **options)

    monkeypatch.setattr(native, name, start_and_signal)
    try:
        started(lambda: None)
        assert received == [_thread.get_ident()]
    finally:
        signal.signal(signal.SIGUSR1, before)

"""How long an exit waits, in a time of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from utpsocket.engine import commands, exit_flush


class Exit:
    """An engine whose one connection has not been flushed, and the time that an exit takes."""

    def __init__(self) -> None:
        self.now = 100.0
        self.acked_bytes = 0
        self.is_unread = False
        self.is_aborted = False
        self.is_flushed_at = float("inf")

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def call(self, command: Callable[..., Any]) -> Any:
        if command is commands.abort_unflushed:
            self.is_aborted = True
        if command is not commands.unflushed:
            return None
        is_waiting = self.now < self.is_flushed_at
        return int(is_waiting), 1_000 * is_waiting, self.acked_bytes, int(self.is_unread)

    def last(self) -> float:
        """How many seconds the exit took."""
        began = self.now
        exit_flush.flush(self)
        return self.now - began


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> Exit:
    for name in ("UTPSOCKET_EXIT_FLUSH", "UTPSOCKET_EXIT_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    made = Exit()
    monkeypatch.setattr(exit_flush, "time", made)
    monkeypatch.setattr(exit_flush, "sleep", made.sleep)
    return made


def test_a_silent_peer_is_given_up_soon(ending: Exit) -> None:
    assert 5 <= ending.last() < 5.1
    assert ending.is_aborted


def test_a_peer_that_answers_is_waited_for_until_its_program_reads(ending: Exit) -> None:
    """TCP's kernel would go on, and the program may only be busy."""
    ending.is_unread = True
    ending.is_flushed_at = ending.now + 20
    assert 20 <= ending.last() < 20.1
    assert not ending.is_aborted


def test_a_peer_that_never_reads_is_given_up_in_the_end(ending: Exit) -> None:
    ending.is_unread = True
    assert 30 <= ending.last() < 30.1
    assert ending.is_aborted


def test_the_wait_without_progress_can_be_set(ending: Exit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UTPSOCKET_EXIT_FLUSH", "1")
    ending.is_unread = True
    assert 1 <= ending.last() < 1.1

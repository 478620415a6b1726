"""A listener and those who dial it, each a process of its own: started, set off together, and their reports."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, Final

from compat.bench import subjects
from compat.peers.children import Child, Children

START_SECONDS: Final = 30.0  # for a process to be ready; an interpreter and its imports take a fraction of one


class Pair:
    """One listener and its dialers, all ready. Reports are asked for once."""

    def __init__(self, listener: Child, dialers: list[Child], seconds: float) -> None:
        self.listener = listener
        self.dialers = dialers
        self._deadline = time.monotonic() + START_SECONDS + 10 * seconds

    def tell(self, word: str, *children: Child) -> None:
        for child in children or (self.listener, *self.dialers):
            assert child.process.stdin is not None
            child.process.stdin.write(f"{word}\n".encode())
            child.process.stdin.flush()

    def expect(self, child: Child, key: str) -> Any:
        return child.expect(key, deadline=self._deadline)

    def measure(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Set both off; the reports of the listener and of the one dialer."""
        self.tell("go")
        dialer = self.dialers[0]
        return self.expect(self.listener, "report"), self.expect(dialer, "report")

    def measure_until_dialed(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The same for a listener that has to be told when its dialer is done."""
        self.tell("go")
        dialed = self.expect(self.dialers[0], "report")
        self.tell("stop", self.listener)
        return self.expect(self.listener, "report"), dialed

    def measure_until_received(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The same for a dialer that has to be told when the listener has everything."""
        self.tell("go")
        received = self.expect(self.listener, "report")
        self.tell("stop", self.dialers[0])
        return received, self.expect(self.dialers[0], "report")


@contextlib.contextmanager
def pair(
    listener: str,
    dialer: str,
    settings: dict[str, Any],
    *,
    listener_settings: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
    dialers: int = 1,
) -> Iterator[Pair]:
    """Start a pair of these subjects; it is ready when this is entered and has ended when it is left.

    Raises compat.peers.children.Failed where a side does not do as agreed.
    """
    with Children() as children:
        ours = {**settings, "dialers": dialers, **(listener_settings or {})}
        listening = subjects.start(children, listener, "listen", ours, environment)
        deadline = time.monotonic() + START_SECONDS
        theirs = {**settings, "port": listening.expect("port", deadline=deadline)}
        dialing = [subjects.start(children, dialer, "connect", theirs, environment) for _ in range(dialers)]
        for child in (*dialing, listening):
            child.expect("ready", deadline=deadline)
        yield Pair(listening, dialing, settings.get("seconds", 1.0))

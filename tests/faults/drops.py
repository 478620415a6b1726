"""Sockets that are not closed: the end of the last object closes them; what its finalizers raise reaches no caller.

Separate from cases.py because nothing is called in them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from tests.faults.cases import LOCALHOST, PATIENCE_S, Case, Pair, address_is_free, outcome, until


class Drop(Case):
    """Nobody closes a listening socket: the end of its last object does."""

    def prepare(self) -> None:
        self.sock: Any = self.module.socket()
        self.sock.bind(LOCALHOST)
        self.sock.listen()
        self.address = self.sock.getsockname()
        self.fd = self.sock.fileno()
        self.inode = os.fstat(self.fd).st_ino

    def call(self) -> None:
        self.sock = None

    def _is_open(self) -> bool:
        with contextlib.suppress(OSError):
            return os.fstat(self.fd).st_ino == self.inode
        return False

    def check(self) -> None:
        """What is raised in a finalizer reaches no caller."""
        assert not self._is_open()
        until(lambda: outcome(lambda: address_is_free(self.module, self.address)) is None)

    def close(self) -> None:
        if self._is_open():
            os.close(self.fd)


class DropConnected(Pair):
    def call(self) -> None:
        self.client = None
        self.owned.remove(self.owned[1])

    def check(self) -> None:
        self.server.settimeout(PATIENCE_S)
        assert self.server.recv(1) == b""


DROPS: dict[str, Callable[[Any], Case]] = {"drop": Drop, "drop_connected": DropConnected}

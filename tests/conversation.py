"""What programs that a test runs in a fresh interpreter have in common: they import it."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any

import utpsocket

WAIT_S = 60


def pair() -> tuple[Any, Any]:
    """Both ends of a connection, the client's first; their calls have a time limit."""
    with utpsocket.create_server(("127.0.0.1", 0)) as listener:
        client = utpsocket.create_connection(listener.getsockname(), timeout=WAIT_S)
        server, _ = listener.accept()
    client.settimeout(WAIT_S)
    server.settimeout(WAIT_S)
    return client, server


def errno_of(call: Callable[..., object], *arguments: object) -> str | None:
    """The name of the errno, or of the class without one, of the OSError that the call raises; None if it does not."""
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    return None


def until(condition: Callable[[], object]) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)

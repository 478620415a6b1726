"""What follows the close of a uTP socket's fd: the engine hears of what the kernel cannot tell it.

Separate from lifecycle.py because it is done when there is no fd any more, and must be done whatever came between: by
close(), and where nobody calls that by the end of the socket object. Any thread may call. Sources: socket(7) SO_LINGER.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

from utpsocket.engine import commands, running_engine
from utpsocket.engine.helper.client import RemoteLoop
from utpsocket.engine.interpreter.native import allocate_lock
from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.interpreter.signal_errors import let_pass
from utpsocket.engine.loop import Loop
from utpsocket.engine.user_fds.socket_state import Identity, Role

_UNDELIVERED: Final = ()  # what _deliver() returns where it was in vain: false


def block(lock: Any, seconds: float) -> None:
    """Wait for a lock to be released, for at most so many seconds."""
    lock.acquire(True, seconds)


def after_close(
    identity: Identity, acquire: Callable[[Any, float], object] | None = block, *, is_blocking: bool = True
) -> None:
    """The engine hears of a close that the kernel cannot tell it: of a bound or listening socket, or with linger.

    acquire        waits for a lock, for at most so many seconds (SO_LINGER's); None: wait for nothing
    is_blocking    the socket may wait for the engine: SO_LINGER holds for any
    """
    if identity.bound_tcp is not None:
        identity.bound_tcp.close()
        identity.bound_tcp = None
    loop = running_engine()
    if loop is None or loop.caller_pid != os.getpid() or not loop.is_alive or sys.is_finalizing():
        return
    is_elsewhere = loop.pid != identity.owner_pid  # another process has connected it
    # A bind() or listen() that has failed later than it returned leaves a socket that is bound all the same.
    is_bound_only = identity.is_over or is_elsewhere or identity.role is Role.FAILED
    if identity.role in (Role.UNCONNECTED, Role.LISTENING) or (identity.endpoint and is_bound_only):
        if identity.endpoint:
            # The port must be free when close() returns: the next bind may want it.
            # Where connections that nobody has accepted must be reset first, that is the engine's.
            if isinstance(loop, RemoteLoop) and not (acquire and is_blocking):
                _deliver(loop.post, commands.release, identity.endpoint, identity.inode)
                return
            is_closed = _deliver(loop.perform, commands.release, identity.endpoint, identity.inode)
            if is_closed and acquire and is_blocking and isinstance(loop, Loop):
                endpoint = loop.endpoints.get(identity.endpoint)
                has_more = identity.routes is not None or (endpoint is not None and endpoint.peers is not None)
                if endpoint is not None and (has_more or not endpoint.is_hushed) and not endpoint.holders:
                    _deliver(loop.call, commands.settled)
        return
    seconds = identity.settings.linger_seconds
    if seconds is None:
        if identity.is_shut_down or (identity.shut_halves == 3 and isinstance(loop, Loop)):  # since its birth, say
            loop.post(commands.sync_user_side, identity.cookie)
        return
    if not seconds:
        # a reset: TCP's close() does not wait for anything either
        _deliver(loop.post, commands.sync_user_side, identity.cookie)
        return
    if acquire is None:
        return
    _deliver(loop.call, commands.sync_user_side, identity.cookie)
    flushed = allocate_lock()
    flushed.acquire()
    if _deliver(loop.post, commands.when_flushed, identity.cookie, flushed.release) is not _UNDELIVERED:
        acquire(flushed, seconds)


class AtEnd:
    """What a socket object holds that is gone after it: where nobody has closed it, the C class's finalizer has just
    closed its fd.

    identity   None where close() or detach() has been called
    """

    __slots__ = ("identity",)

    def __init__(self, identity: Identity) -> None:
        self.identity: Identity | None = identity

    def __del__(self) -> None:
        identity = getattr(self, "identity", None)  # __init__() may have been interrupted
        if identity is None or sys.is_finalizing():
            return
        try:
            after_close(identity, None)
        except BaseException:
            after_close(identity, None)  # interrupted; said twice it does no harm
            raise


def _deliver(tell: Callable[..., Any], command: Callable[..., object], *arguments: Any) -> Any:
    """Say it, and once more where there was no memory for it. close() itself cannot fail: the fd is closed."""
    for _ in range(2):
        try:
            return tell(command, *arguments)
        except OSError as error:
            let_pass(error)
    return _UNDELIVERED

"""What follows the close of a uTP socket's descriptor: the engine gets a command where the kernel shows it nothing.

It is done when the descriptor is closed already, by close(), or by the end of the socket object where close() was not
called; also if it is interrupted. Any thread may call. Sources: socket(7) SO_LINGER.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final, ParamSpec, Protocol, TypeVar

from utpsocket.engine import commands
from utpsocket.engine.current import running_engine
from utpsocket.engine.interpreter.native import allocate_lock
from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.interpreter.signal_errors import reraise_handler_error
from utpsocket.engine.loop import Loop
from utpsocket.engine.user_fds.socket_state import Identity, Role

# What _deliver() returns where it failed; false.
_UNDELIVERED: Final = ()

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Lock(Protocol):
    """A lock of the interpreter's own."""

    def acquire(self, blocking: bool = True, timeout: float = -1, /) -> bool:
        """Take it, or wait for it; whether it was taken."""


def block(lock: Lock, seconds: float) -> None:
    """Wait until the lock is released, for `seconds` at most."""
    lock.acquire(True, seconds)


def after_close(
    identity: Identity, acquire: Callable[[Lock, float], object] | None = block, *, is_blocking: bool = True
) -> None:
    """Report a close to the engine that the kernel does not show it: of a bound or listening socket, or with SO_LINGER.

    acquire        waits for a lock, for at most SO_LINGER's seconds; None: wait for nothing
    is_blocking    whether the socket may wait for the engine; SO_LINGER waits in any case
    """
    if identity.bound_tcp is not None:
        identity.bound_tcp.close()
        identity.bound_tcp = None
    loop = running_engine()
    if loop is None or loop.caller_pid != os.getpid() or not loop.is_alive or sys.is_finalizing():
        return
    is_elsewhere = loop.pid != identity.owner_pid  # another process has connected it
    # A bind() or listen() that failed after it had returned leaves a socket that is bound all the same.
    is_bound_only = identity.is_over or is_elsewhere or identity.role is Role.FAILED
    if identity.role in (Role.UNCONNECTED, Role.LISTENING) or (identity.endpoint and is_bound_only):
        if identity.endpoint:
            # The port must be free when close() returns: the next bind() may ask for it. Connections that were not
            # accepted are reset first, by the engine.
            if not isinstance(loop, Loop) and not (acquire and is_blocking):
                _deliver(loop.post, commands.release, identity.endpoint, identity.inode)
                return
            is_closed = _deliver(loop.perform, commands.release, identity.endpoint, identity.inode)
            if is_closed and acquire and is_blocking and isinstance(loop, Loop):
                endpoint = loop.endpoints.get(identity.endpoint)
                has_more = identity.routes is not None or (
                    endpoint is not None and endpoint.reuseport_sockets is not None
                )
                if endpoint is not None and (has_more or not endpoint.is_address_freed) and not endpoint.holders:
                    _deliver(loop.call, commands.barrier)
        return
    seconds = identity.settings.linger_seconds
    if seconds is None:
        # Both halves may have been shut down before it was connected.
        if identity.is_shut_down or (identity.shut_halves == 3 and isinstance(loop, Loop)):
            loop.post(commands.sync_user_side, identity.cookie)
        return
    if not seconds:
        # A reset: TCP's close() waits for nothing either.
        _deliver(loop.post, commands.sync_user_side, identity.cookie)
        return
    if acquire is None:
        return
    _deliver(loop.call, commands.sync_user_side, identity.cookie)
    flushed = allocate_lock()
    flushed.acquire()
    if _deliver(loop.post, commands.when_flushed, identity.cookie, flushed.release) is not _UNDELIVERED:
        acquire(flushed, seconds)


def after_detach(identity: Identity) -> None:
    """Report to the engine that a listening socket's descriptor may be closed from now on without close()."""
    loop = running_engine()
    if identity.role is Role.LISTENING and isinstance(loop, Loop) and loop.caller_pid == os.getpid() and loop.is_alive:
        _deliver(loop.perform_or_post, commands.release, identity.endpoint, identity.inode)


class AtEnd:
    """An attribute of a socket object, which is finalized after it: where close() was not called, the C class's
    finalizer has closed the descriptor by then.

    identity   None after close() or detach()
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
            after_close(identity, None)  # it was interrupted; a second time does no harm
            raise


def _deliver(send: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T | tuple[()]:
    """Give the engine a command, and once more where it failed, for lack of memory say. close() itself cannot fail: the
    descriptor is closed.
    """
    for _ in range(2):
        try:
            return send(*args, **kwargs)
        except OSError as error:
            reraise_handler_error(error)
    return _UNDELIVERED

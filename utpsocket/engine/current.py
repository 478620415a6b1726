"""engine(): the process's engine. It is made on first use, dropped in a forked child, and flushed at exit.

The engine is one thread that owns every UDP port and the engine's end of every user's socket pair. It is a thread of
this process, or with UTPSOCKET_ENGINE=process of a process of its own (helper/client.py). Any thread may call.
"""

from __future__ import annotations

import errno
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from utpsocket.engine import environment, exit_flush, fault_reports
from utpsocket.engine.interpreter import ending, native
from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.kernel import high_fds
from utpsocket.engine.loop import Loop
from utpsocket.engine.user_fds import shared_errnos

if TYPE_CHECKING:
    from utpsocket.engine.helper.client import RemoteLoop

_loop: Loop | RemoteLoop | None = None
# The first engine, under the key "", as Loop.successor has the one that follows.
_first: dict[str, Loop | RemoteLoop] = {}
_is_hooked = False
_is_known_to_multiprocessing = False
_is_over = ending.has_begun and not native.is_main_interpreter()
# Engines whose fds the program closed: their objects must not close those numbers again.
_lost_engines: list[Loop | RemoteLoop] = []


def engine() -> Loop | RemoteLoop:
    """The engine of this process, started if need be. Raises ENOMEM where there can be no thread."""
    if _is_over:
        raise RuntimeError("the interpreter is ending, and the engine with it")
    loop = _loop
    if loop is None or not (loop.is_alive and loop.check_fds()):
        loop = _succeed(loop)
    if not loop.is_begun:
        _start(loop)
    if not _is_known_to_multiprocessing and "multiprocessing.util" in sys.modules:
        _register_with_multiprocessing()
    return loop


def _start(loop: Loop | RemoteLoop) -> None:
    try:
        loop.start()
    except RuntimeError as error:
        if not native.is_main_interpreter():
            raise OSError(errno.ENOTSUP, f"utpsocket needs a thread in this interpreter: {error}") from error
        # There can be no thread: the errno for a kernel that is short of something.
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error


def _succeed(gone: Loop | RemoteLoop | None) -> Loop | RemoteLoop:
    """Make an engine in the place of one that has ended. If several threads do so at once, the first one's is used.

    There is no lock, which a signal handler that raises could leave locked. The other engines have no thread yet, and
    their fds are closed here.
    """
    global _loop
    _hook()
    environment.check()
    place = _first if gone is None else gone.successor
    high_fds.prepare()
    kind: Callable[[], Loop | RemoteLoop] = _loop_class()
    made = high_fds.with_room(kind)
    loop = place.setdefault("", made)
    if loop is not made:
        made.discard()
    if gone is not None:
        _lost_engines.append(gone)
    _loop = loop
    return loop


def _loop_class() -> type[Loop | RemoteLoop]:
    if environment.value("UTPSOCKET_ENGINE", "thread") == "thread":
        return Loop
    # Imported here, since most programs never need it.
    from utpsocket.engine.helper.client import RemoteLoop

    return RemoteLoop


def running_engine() -> Loop | RemoteLoop | None:
    """The engine if there is one that was started, never a new one."""
    return _loop if _loop is not None and (_loop.is_begun or _loop.has_started) else None


def serving_pid() -> int:
    """The id of the process that this process's engine runs in, or would run in."""
    return os.getpid() if _loop is None else _loop.pid


def _hook() -> None:
    global _is_hooked
    if not _is_hooked:
        os.register_at_fork(
            before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
        )
        _is_hooked = True  # last: hooks that are registered twice do no harm


def _before_fork() -> None:
    if _loop is not None:
        _loop.fd_lock.acquire()


def _after_fork_in_parent() -> None:
    if _loop is not None:  # a hook of the program may have made it meanwhile: release() checks the owner
        _loop.fd_lock.release()


def _after_fork_in_child() -> None:
    """Close the child's copies of the engine's fds: else there is no end of file and no hang-up. docs/sockets.md §4"""
    global _loop, _first, _is_known_to_multiprocessing
    loop, _loop, _first = _loop, None, {}
    _is_known_to_multiprocessing = False
    fault_reports.forget()
    native.forget_threads()
    high_fds.forget_in_child()
    shared_errnos.forget_in_child()
    if loop is not None:
        loop.abandon_in_child()


_finalizer_pid = 0


def _register_with_multiprocessing() -> None:
    """Register flush() with multiprocessing in its children. These end by os._exit(), without atexit, but call the
    finalizers that were registered in the child. Once in each process.
    """
    global _is_known_to_multiprocessing
    util = sys.modules.get("multiprocessing.util")
    process = sys.modules.get("multiprocessing.process")
    if util is None or process is None:
        return
    _is_known_to_multiprocessing = True
    if process.parent_process() is not None:
        _register_finalizer()
        return
    # A forkserver's process has no parent_process() until its main module is imported, and calls this then.
    util.register_after_fork(_register_finalizer, lambda register: register())


def _register_finalizer() -> None:
    global _finalizer_pid
    pid = os.getpid()
    if _finalizer_pid != pid:
        _finalizer_pid = pid
        sys.modules["multiprocessing.util"].Finalize(None, flush, exitpriority=-1000)


def flush(seconds: float | None = None) -> int:
    """Deliver what was written and end every connection with a FIN, as the kernel does after the end of a process.

    Waits while peers ack, and at most `seconds` without that (exit_flush.py). A ResourceWarning reports what was lost.
    Returns the bytes lost.
    """
    loop = running_engine()
    if loop is None or loop.caller_pid != os.getpid() or not loop.is_alive or not loop.check_fds():
        return 0
    waiting, lost_bytes = exit_flush.flush(loop, seconds)
    fault_reports.finish()  # faults just before the exit are reported, too
    if lost_bytes:
        warnings.warn(
            f"utpsocket: {lost_bytes} bytes on {waiting} connections did not reach their peers before exit",
            ResourceWarning,
            stacklevel=2,
        )
    return lost_bytes


def _at_exit() -> None:
    """The end of the interpreter. A subinterpreter must have no thread left, or CPython aborts the process."""
    global _is_over
    flush()
    if not native.is_main_interpreter():
        _is_over = True
        shutdown()
        native.join_threads()


ending.calls.append(_at_exit)


def shutdown() -> None:
    """End this process's engine: flush, join its thread, close every fd. The next use starts a new one."""
    global _loop, _first
    loop = _loop
    if loop is None:
        high_fds.release()  # a socket has called prepare(), without an engine
        return
    if loop.has_started:
        flush()
        loop.stop()
    else:
        loop.discard()
    _loop, _first = None, {}
    high_fds.release()

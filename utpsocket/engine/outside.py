"""Answers to another process that asks for this engine's figures: `python3 -m utpsocket stat`.

While no process asks, nothing is open, registered or waited for. The asking process (cli/engines.py) listens at an
abstract AF_UNIX name with a random number in it. By pidfd_getfd(2) it takes a duplicate of the eventfd that wakes the
engine, and adds the number to the upper half of the eventfd's counter. A wake-up of ours adds 1. So the engine wakes
up, finds the number in the word that it reads in any case, connects to the name, sends a memfd with the figures, and
has closed both when this returns.

The kernel gives the duplicate only to a process that may trace this one: of the same user, unless this process was
started set-user-ID or has changed its user since; or root. Where Yama restricts that to parents and root
(kernel.yama.ptrace_scope), UTPSOCKET_STAT=1 lifts the restriction for this process. And the figures are sent only to
a process of this process's effective user, or root.

The eventfd can be told from others by O_APPEND, which has no effect on it.

Only the engine's thread, but allow(). Sources: pidfd_getfd(2), ptrace(2) "Ptrace access mode checking", eventfd(2),
memfd_create(2), prctl(2) PR_SET_PTRACER; unix(7) SO_PEERCRED, SCM_RIGHTS.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import repeat
from typing import Final, TypeAlias

from utpsocket.engine.interpreter import libc
from utpsocket.engine.interpreter.native import SOCK_CLOEXEC, SOCK_NONBLOCK, Socket, connecting
from utpsocket.engine.interpreter.originals import ctypes, io, os, socket, struct
from utpsocket.engine.interpreter.signal_errors import reraise_handler_error
from utpsocket.engine.kernel.fd_names import peer_credentials
from utpsocket.engine.kernel.high_fds import give_back, with_room
from utpsocket.protocol import ConnectionStats
from utpsocket.protocol.build import BUILD

Figures: TypeAlias = tuple[object, object, object]
"""What statistics.of_engine() returns."""

_PR_SET_PTRACER: Final = 0x5961_6D61  # linux/prctl.h; "Yama"
_PR_SET_PTRACER_ANY: Final = -1
_new_socket: Final = partial(Socket, socket.AF_UNIX, socket.SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC)
_FD: Final = struct.Struct("=i")


def name(number: int) -> bytes:
    """The abstract name at which the process that asks with this number listens."""
    return b"\0utpsocket-stat:%08x" % number


def allow() -> None:
    """Let any process of this user ask, also where Yama would let only parents and root trace this process."""
    libc.prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY, 0, 0, 0)  # fails where there is no Yama, and nothing to lift


def answer(number: int, figures: Callable[[], Figures]) -> None:
    """Send the figures of this instant to the process that has asked with this number.

    Where that fails nothing is sent, and the process asks again. No fork may copy what is open meanwhile.
    """
    try:
        with closing(with_room(_new_socket)) as sock:
            if connecting(sock.fileno(), name(number))() < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            if peer_credentials(sock)[1] in (0, os.geteuid()):
                _send(sock, repr(_as_literals(*figures())).encode())
    except OSError as error:
        reraise_handler_error(error)


def _as_literals(engine: object, ports: object, connections: object) -> dict[str, object]:
    """What any version of Python reads."""
    return {
        "build": BUILD,
        "engine": engine,
        "ports": ports,
        "fields": ConnectionStats._fields[:-1],  # build, which is above
        "connections": connections,
    }


def _send(sock: Socket, text: bytes) -> None:
    """In a file, since a socket's buffer may be too small, and the engine does not wait for its reader."""
    made = iter(partial(os.memfd_create, "utpsocket-stat", os.MFD_CLOEXEC), -1)
    try:
        with with_room(lambda: next(map(io.FileIO, made, repeat("r+")))) as file:
            file.write(text)
            sock.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _FD.pack(file.fileno()))])
    finally:
        give_back()

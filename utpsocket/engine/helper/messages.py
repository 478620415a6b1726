"""What crosses between an application and an engine in a process of its own: plain values and fds.

Separate because both sides must agree on it. A request is one message (serial, command, arguments, named arguments),
with the function of commands.py by its name; an answer carries the serial back; a notice says what the engine has
written into an identity. What an argument is, the command's own parameter names say: an `identity` travels as what the
shim has written into it, a `…_sock` as an fd beside the message, a `callback` as the serial of the answer that calls
it, a `claim` not at all: it is the engine's once the message is sent. Everything else is a plain value, as are the
answers.

marshal, and never pickle: a message can name a command and no other code. The socket pairs are private and inherited,
and both ends run this same file.

Any thread may call. Sources: unix(7) SCM_RIGHTS, SOCK_SEQPACKET; CPython's Doc/library/marshal.rst.
"""

from __future__ import annotations

import array
import errno
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType
from typing import Any, Final

from utpsocket.engine import commands
from utpsocket.engine.helper import port_commands
from utpsocket.engine.interpreter.native import in_one_step
from utpsocket.engine.interpreter.originals import marshal
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.user_fds.socket_state import Identity, settings_form, settings_of

TYPE: Final = getattr(stdlib, "SOCK_SEQPACKET", 0)  # whole messages, so that senders need no lock and readers no state
MAX_MESSAGE_BYTES: Final = 64 << 10  # of a request; an answer that is longer comes in parts
UPDATE: Final = "update"  # beside the commands: the identity has changed
WATCHED: Final = "watched"  # beside the commands: which epoll has a socket, which the application has registered there
STOP: Final = "stop"  # beside the commands: end without a flush
ACCEPTED: Final = "accepted"  # a notice: a listener's connection is about to be accepted
BOUND: Final = "bound"  # a notice: the engine has the port of this key,
FREE: Final = "free"  # and has it no more
RELEASED: Final = "released"  # a notice: there will be no more of this cookie
FORCE_RESET: Final = 0  # the serial of no answer, but of a wish: write a byte as the user (user_fds/reset.py)

ENDS: Final = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF, errno.ENOTSOCK)  # of the other process

_MAX_FDS: Final = 4
_ANCILLARY_BYTES: Final = stdlib.CMSG_SPACE(4 * _MAX_FDS)
_CLOEXEC: Final = getattr(stdlib, "MSG_CMSG_CLOEXEC", 0x40000000)

COMMANDS: Final[dict[str, Callable[..., Any]]] = {
    name: command
    for module in (commands, port_commands)
    for name, command in vars(module).items()
    if isinstance(command, FunctionType) and command.__module__ == module.__name__ and not name.startswith("_")
}


def parameters(command: Callable[..., Any]) -> tuple[str, ...]:
    """The names of what a command takes by position, without the loop."""
    code = command.__code__
    names: tuple[str, ...] = code.co_varnames[1 : code.co_argcount]
    return names


_SHIMS: Final = ("family", "cookie", "inode", "endpoint", "filler_bytes", "local", "peer")


def identity_form(identity: Identity) -> tuple[Any, ...]:
    """What the shim has written, as far as an engine reads it."""
    plain = {name: getattr(identity, name) for name in _SHIMS}
    return plain, settings_form(identity.settings), dict(identity.options)


def fill(identity: Identity, form: tuple[Any, ...]) -> None:
    """Write what identity_form() has read into another one."""
    plain, settings, options = form
    for name, value in plain.items():
        setattr(identity, name, value)
    identity.settings = settings_of(settings)
    identity.options = options


def send(sock: Any, message: Any, fds: list[int] | tuple[int, ...] = (), sent: Callable[[], Any] | None = None) -> None:
    """One message, with duplicates of these fds. Raises BlockingIOError where a non-blocking socket is full.

    sent   a partial() of a function in C, called in one step with the sending
    """
    send_data(sock, marshal.dumps(message), fds, sent)


def send_data(
    sock: Any,
    data: bytes,
    fds: list[int] | tuple[int, ...] = (),
    sent: Callable[[], Any] | None = None,
    *,
    flags: int = 0,
) -> None:
    """The same of a message that has been made bytes of."""
    ancillary = [(stdlib.SOL_SOCKET, stdlib.SCM_RIGHTS, array.array("i", fds))] if fds else []
    send_it = partial(sock.sendmsg, [data], ancillary, stdlib.MSG_NOSIGNAL | flags)
    if sent is None:
        send_it()
    else:
        in_one_step(send_it, sent)


def receive(sock: Any) -> tuple[Any, list[int]] | None:
    """The next message and its fds, which are the caller's now; None at the end."""
    data, fds = receive_raw(sock)
    return (marshal.loads(data), fds) if data else None


def receive_raw(sock: Any) -> tuple[bytes, list[int]]:
    """The same before anything is made of it, for read(): whoever fails to read it has it still. Empty at the end."""
    data, ancillary, _, _ = sock.recvmsg(MAX_MESSAGE_BYTES, _ANCILLARY_BYTES, _CLOEXEC)
    try:
        return data, _fds(ancillary)
    except BaseException:  # no memory, say: the message and its fds are nowhere else
        return data, _fds(ancillary)


def _fds(ancillary: Any) -> list[int]:
    fds = array.array("i")
    for level, kind, rights in ancillary:
        if (level, kind) == (stdlib.SOL_SOCKET, stdlib.SCM_RIGHTS):
            fds.frombytes(rights[: len(rights) - len(rights) % fds.itemsize])
    return list(fds)


def read(data: bytes) -> Any:
    """The message that receive_raw() has received."""
    return marshal.loads(data)


def parts(message: Any) -> Iterator[tuple[bytes, bool]]:
    """An answer of any length as (bytes, whether more follow)."""
    data = marshal.dumps(message)
    step = MAX_MESSAGE_BYTES // 2
    for start in range(0, len(data), step):
        yield data[start : start + step], start + step < len(data)


def whole(received: list[bytes]) -> Any:
    """The answer whose parts these are."""
    return marshal.loads(b"".join(received))

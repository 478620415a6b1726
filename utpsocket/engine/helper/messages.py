"""The messages between an application and an engine in a process of its own: plain values and fds.

A request is one message (serial, command, arguments, named arguments), with the function of commands.py by its name.
COMMANDS is the table of those that may be sent, and of how each argument is sent. An answer has the serial of its
request; a notice has what the engine has written into an identity. Answers and named arguments are plain values.

marshal, and never pickle: a message can name a command and no other code. The socket pairs are private and inherited,
and both ends run this same file.

Any thread may call. Sources: unix(7) SCM_RIGHTS, SOCK_SEQPACKET; CPython's Doc/library/marshal.rst.
"""

from __future__ import annotations

import array
import errno
from collections.abc import Callable, Iterator
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, TypedDict

from utpsocket.engine import commands
from utpsocket.engine.helper import port_commands
from utpsocket.engine.interpreter.native import Socket, call_uninterrupted
from utpsocket.engine.interpreter.originals import marshal
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.user_fds.socket_state import Identity, Options, SettingsForm, settings_form, settings_of
from utpsocket.protocol import Address

if TYPE_CHECKING:
    from utpsocket.engine.kernel.syscalls import ReceivedAncillary

# Keeps message boundaries, so that several threads may send without a lock, and a reader needs no buffer.
TYPE: Final = getattr(stdlib, "SOCK_SEQPACKET", 0)
# Of a request, by feel; a longer answer is sent in parts.
MAX_MESSAGE_BYTES: Final = 64 << 10

# Requests beside the commands: the shim has changed an identity; a socket is registered in this epoll (open_fds.py);
# end without a flush.
UPDATE: Final = "update"
WATCHED: Final = "watched"
STOP: Final = "stop"

# Notices beside the attributes of identities: a listener's connection is about to be accepted; the engine has opened,
# or closed, the port of this key; the engine has released the identity of this cookie, and sends no more of it.
ACCEPTED: Final = "accepted"
BOUND: Final = "bound"
FREE: Final = "free"
RELEASED: Final = "released"

# In the place of an answer's serial: a request to the application, to write a byte as the user (user_fds/reset.py).
FORCE_RESET: Final = 0

# Errnos of a socket whose other process has ended, or whose fd the program has closed.
ENDED_ERRNOS: Final = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF, errno.ENOTSOCK)

_MAX_FDS: Final = 4
_ANCILLARY_BYTES: Final = stdlib.CMSG_SPACE(4 * _MAX_FDS)
_CLOEXEC: Final = getattr(stdlib, "MSG_CMSG_CLOEXEC", 0x40000000)


class Argument(Enum):
    """How an argument of a command is sent."""

    PLAIN = "as it is"
    IDENTITY = "as identity_form() of it"
    SOCK = "as an fd beside the message, and True in its place; or None"
    CALLBACK = "as the serial of an answer; where that comes, it is called"
    CLAIM = "as None: the engine has the claim from the moment the message is sent"


class RemoteCommand(NamedTuple):
    """A command that may be sent to an engine in another process."""

    command: Callable[..., object]
    # Those passed by position, without the loop. The last ones may be left out where the command has defaults.
    arguments: tuple[Argument, ...] = ()
    # Its identity's connection is served from now on, until the notice RELEASED.
    is_dialed: bool = False


_PLAIN: Final = Argument.PLAIN
_IDENTITY: Final = Argument.IDENTITY
_SOCK: Final = Argument.SOCK

COMMANDS: Final[dict[str, RemoteCommand]] = {
    row.command.__name__: row
    for row in (
        # Ports of sockets that are bound
        RemoteCommand(commands.adopt_port_as, (_PLAIN, _SOCK, _IDENTITY, _PLAIN, _PLAIN, _SOCK)),
        RemoteCommand(commands.share_port, (_PLAIN, _IDENTITY)),
        RemoteCommand(commands.allow_overlap, (_PLAIN,)),
        RemoteCommand(commands.end_overlap, (_PLAIN, _PLAIN)),
        RemoteCommand(commands.admit_datagrams, (_PLAIN,) * 5),
        RemoteCommand(commands.join_datagrams, (_PLAIN, _PLAIN, _PLAIN)),
        RemoteCommand(commands.dismiss_datagrams, (_PLAIN, _PLAIN)),
        RemoteCommand(commands.replace_holder, (_PLAIN, _PLAIN, _IDENTITY)),
        RemoteCommand(commands.drop_holders_of, (_PLAIN,)),
        RemoteCommand(commands.leave_port, (_PLAIN, _PLAIN)),
        RemoteCommand(commands.release, (_PLAIN, _PLAIN)),
        RemoteCommand(port_commands.take_port, (_PLAIN, _SOCK, _PLAIN, _IDENTITY, _PLAIN, _PLAIN, _PLAIN)),
        RemoteCommand(port_commands.keep_port, (_PLAIN, _SOCK, _PLAIN, _PLAIN, _IDENTITY, *(_PLAIN,) * 3, _SOCK)),
        # Listeners
        RemoteCommand(commands.listen, (_PLAIN, _IDENTITY, _PLAIN, _PLAIN, _SOCK)),
        RemoteCommand(commands.listen_soon, (_PLAIN, _IDENTITY, _PLAIN, _PLAIN, _SOCK)),
        RemoteCommand(commands.on_accept, (_PLAIN,)),
        RemoteCommand(commands.stop_listening, (_PLAIN, _PLAIN)),
        # Connections, by cookie but for the first two
        RemoteCommand(commands.dial_private, (_SOCK, _IDENTITY, _SOCK, _PLAIN, Argument.CLAIM), is_dialed=True),
        RemoteCommand(commands.dial_from, (_PLAIN, _PLAIN, _IDENTITY, _SOCK, _PLAIN, Argument.CLAIM), is_dialed=True),
        RemoteCommand(commands.abort_connect, (_PLAIN,)),
        RemoteCommand(commands.abort_connect_late, (_PLAIN,)),
        RemoteCommand(commands.sync_user_side, (_PLAIN,)),
        RemoteCommand(commands.sync_network_side, (_PLAIN,)),
        RemoteCommand(commands.on_received_after_shutdown, (_PLAIN,)),
        RemoteCommand(commands.when_flushed, (_PLAIN, Argument.CALLBACK)),
        RemoteCommand(commands.apply, (_PLAIN,)),
        RemoteCommand(commands.connection_figures, (_PLAIN,)),
        RemoteCommand(commands.channel_figures, (_PLAIN,)),
        # The engine as a whole
        RemoteCommand(commands.barrier),
        RemoteCommand(commands.finish_all),
        RemoteCommand(commands.unflushed),
        RemoteCommand(commands.abort_unflushed),
        RemoteCommand(commands.repeat_last_acks),
        RemoteCommand(commands.snapshot),
    )
}


def remote_command(name: str) -> RemoteCommand:
    """The command of this name. Raises KeyError where it is none that may be sent."""
    return COMMANDS[name]


class PlainIdentity(TypedDict):
    """The attributes of an identity that the shim writes and the engine reads."""

    family: int
    cookie: int
    inode: int
    endpoint: int
    filler_bytes: int
    local: Address | None
    peer: Address | None


IdentityForm: TypeAlias = tuple[PlainIdentity, SettingsForm, Options]
Request: TypeAlias = tuple[int, str, list[Any], dict[str, Any]]
"""Serial, name of the command, arguments and named arguments, which are of the types of that command."""
AnswerForm: TypeAlias = tuple[object, int, str]
"""What the command returned; where it raised, the errno and the text."""


def identity_form(identity: Identity) -> IdentityForm:
    """The attributes that the shim writes and the engine reads, as plain values."""
    plain: PlainIdentity = {
        "family": identity.family,
        "cookie": identity.cookie,
        "inode": identity.inode,
        "endpoint": identity.endpoint,
        "filler_bytes": identity.filler_bytes,
        "local": identity.local,
        "peer": identity.peer,
    }
    return plain, settings_form(identity.settings), dict(identity.options)


def fill(identity: Identity, form: IdentityForm) -> None:
    """Write the values that identity_form() has returned into another identity."""
    plain, settings, options = form
    for name, value in plain.items():
        setattr(identity, name, value)
    identity.settings = settings_of(settings)
    identity.options = options


def send(
    sock: Socket, message: object, fds: list[int] | tuple[int, ...] = (), sent: partial[object] | None = None
) -> None:
    """Send one message, with duplicates of these fds. Raises OSError; BlockingIOError where a non-blocking socket is
    full.

    sent   a partial() of a function in C, called once the message is sent, with no line of Python in between
    """
    data = marshal.dumps(message)  # type: ignore[arg-type]  # the senders see to it that these are plain values
    send_data(sock, data, fds, sent)


def send_data(
    sock: Socket,
    data: bytes,
    fds: list[int] | tuple[int, ...] = (),
    sent: partial[object] | None = None,
    *,
    flags: int = 0,
) -> None:
    """As send(), of a message that is bytes already."""
    ancillary = [(stdlib.SOL_SOCKET, stdlib.SCM_RIGHTS, array.array("i", fds))] if fds else []
    send_it = partial(sock.sendmsg, [data], ancillary, stdlib.MSG_NOSIGNAL | flags)
    if sent is None:
        send_it()
    else:
        call_uninterrupted(send_it, sent)


def receive(sock: Socket) -> tuple[Any, list[int]] | None:
    """The next message and its fds, which are the caller's now; None at the end."""
    data, fds = receive_raw(sock)
    return (marshal.loads(data), fds) if data else None


def receive_raw(sock: Socket) -> tuple[bytes, list[int]]:
    """The bytes of the next message, for read(), and its fds; b"" at the end. The caller keeps the bytes until it has
    handled the message, so that it can begin again after a fault.
    """
    data, ancillary, _, _ = sock.recvmsg(MAX_MESSAGE_BYTES, _ANCILLARY_BYTES, _CLOEXEC)
    try:
        return data, _fds(ancillary)
    except BaseException:  # no memory, say: tried once more, since the message would be lost
        return data, _fds(ancillary)


def _fds(ancillary: ReceivedAncillary) -> list[int]:
    fds = array.array("i")
    for level, kind, rights in ancillary:
        if (level, kind) == (stdlib.SOL_SOCKET, stdlib.SCM_RIGHTS):
            fds.frombytes(rights[: len(rights) - len(rights) % fds.itemsize])
    return list(fds)


def read(data: bytes) -> Any:
    """The message of these bytes: a request, a part of an answer, or a notice."""
    return marshal.loads(data)


def parts(message: object) -> Iterator[tuple[bytes, bool]]:
    """An answer of any length, in parts: (bytes, whether more follow)."""
    data = marshal.dumps(message)  # type: ignore[arg-type]  # as in send()
    step = MAX_MESSAGE_BYTES // 2
    for start in range(0, len(data), step):
        yield data[start : start + step], start + step < len(data)


def join_parts(received: list[bytes]) -> AnswerForm:
    """The answer of these parts."""
    answer: AnswerForm = marshal.loads(b"".join(received))
    return answer

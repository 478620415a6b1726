"""TCP's errors where AF_UNIX gives others: errnos of the calls that move data, and arguments that TCP refuses.

Any thread may call. Sources: docs/sockets.md §2, §9; tcp(7), unix(7).
"""

from __future__ import annotations

import errno
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from utpsocket.engine.interpreter.native import Socket, StdlibSocket, allocate_lock
from utpsocket.engine.interpreter.originals import signal
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import reraise_handler_error
from utpsocket.engine.kernel.high_fds import with_room
from utpsocket.engine.user_fds import reset
from utpsocket.engine.user_fds.socket_state import Identity, Role
from utpsocket.sockets import fd_pair, lifecycle

if TYPE_CHECKING:
    from utpsocket.engine.interpreter.arguments import Ancillary, GivenAddress, Named, Positional
    from utpsocket.sockets.closing import Lock

    class _CanWait(Protocol):
        """What is needed of the class in shim.py to wait as it does."""

        def fileno(self) -> int: ...

        def gettimeout(self) -> float | None: ...

        def _acquire(self, lock: Lock, seconds: float) -> None: ...


# No datagram is that large: the kernel checks the address, then refuses with EMSGSIZE.
TOO_LARGE: Final = bytes(65_536)

# The & of an IntFlag costs more than the rest of a send().
_has: Final = int.__and__
_MSG_OOB: Final = int(stdlib.MSG_OOB)
_MSG_NOSIGNAL: Final = int(stdlib.MSG_NOSIGNAL)
_MSG_TRUNC: Final = int(stdlib.MSG_TRUNC)
_MSG_WAITALL: Final = int(stdlib.MSG_WAITALL)
_MSG_ERRQUEUE: Final = int(getattr(stdlib, "MSG_ERRQUEUE", 0))
_UNSUPPORTED_FLAGS: Final = _MSG_OOB | _MSG_ERRQUEUE
# By feel: a program uses few addresses with sendto() on a stream.
_REMEMBERED_CALLS: Final = 64
# What TCP accepts and ignores: SCM_RIGHTS, SCM_CREDENTIALS, SO_MARK, SO_TIMESTAMPING (old), SO_TXTIME and
# SO_TIMESTAMPING (new).
_ANCILLARY: Final = (1, 2, 36, 37, 61, 65)
# Calls whose address the C class has accepted.
_well_formed: set[str] = set()


def is_at_end(sock: StdlibSocket, identity: Identity) -> bool:
    """Whether a connection that broke after the peer's end of file has nothing more to receive. recv() of the kernel
    would give ECONNRESET there, and clear the error that poll() and send() must still report.
    """
    return bool(identity.error) and sock.fileno() >= 0 and not reset.unread_bytes(sock.fileno())


def discarding(args: Positional, kwargs: Named) -> Positional:
    """The arguments of recv_into() or recvfrom_into() with another buffer where MSG_TRUNC is given: TCP discards the
    bytes and leaves the caller's buffer as it was (tcp(7)), AF_UNIX fills it.
    """
    flags = args[2] if len(args) > 2 else kwargs.get("flags")
    if not (isinstance(flags, int) and _has(flags, _MSG_TRUNC)):
        return args
    buffer = args[0] if args else kwargs.pop("buffer")
    with memoryview(buffer) as view:
        return (buffer if view.readonly else bytearray(view.nbytes), *args[1:])


def is_end_of_file(identity: Identity, error: OSError) -> bool:
    """Whether recv() of TCP gives what at_end() does where that of AF_UNIX gives this error."""
    if error.errno == errno.ECONNRESET:
        return identity.has_ended_after_eof or bool(identity.received_after_shutdown)
    return (
        error.errno in (errno.EINVAL, errno.ENOTCONN)
        and identity.role is Role.UNCONNECTED
        and identity.shut_halves & 1 > 0
    )


def receive_error(identity: Identity, error: OSError) -> OSError:
    """The error that recv() of TCP gives where that of AF_UNIX gives this one, and it is no end of file."""
    if error.errno in (errno.EINVAL, errno.ENOTCONN) and identity.role in (Role.UNCONNECTED, Role.LISTENING):
        return lifecycle.os_error(errno.ENOTCONN)
    if error.errno == errno.ECONNRESET:
        return lifecycle.os_error(identity.take_error() or errno.ECONNRESET)
    return error


def at_end(identity: Identity, count: int, flags: int) -> bytes:
    """What is received at the end of the stream. Raises where the connection ended with an errno that the kernel could
    not be made to give, or where connect() failed and has reported it.
    """
    if identity.received_after_shutdown:
        return lifecycle.receive_after_shutdown(identity, count, flags)
    code = 0 if identity.has_ended_after_eof else identity.take_error()
    if not code and identity.role is Role.FAILED and identity.is_connect_reported:
        code = errno.ENOTCONN
    if code:
        raise lifecycle.os_error(code)
    return b""


def with_checked_flags(
    sock: _CanWait, identity: Identity, args: Positional, index: int, kwargs: Named | None = None
) -> Positional:
    """The arguments of a receiving call, whose flags are at this index or given by name. Raises for flags that ask for
    what uTP does not have. MSG_WAITALL is removed where the connection has ended: nothing more comes, and the kernel
    would clear the error that is still to be reported.
    """
    flags = args[index] if len(args) > index else (kwargs or {}).get("flags")
    if not flags or not isinstance(flags, int):
        return args
    _refuse_unsupported(sock, identity, flags)
    if _has(flags, _MSG_WAITALL) and (identity.is_over or identity.is_after_eof):
        if kwargs and "flags" in kwargs:
            kwargs["flags"] = flags & ~_MSG_WAITALL
        else:
            args = (*args[:index], flags & ~_MSG_WAITALL, *args[index + 1 :])
    return args


def _refuse_unsupported(sock: _CanWait, identity: Identity, flags: int) -> None:
    """Raise for MSG_OOB and MSG_ERRQUEUE. uTP has no urgent data, for which the kernel itself gives EINVAL while there
    is a connection. uTP has no error queue: it is empty, for which TCP gives EAGAIN at once on any socket, and with a
    timeout CPython tries again until that has passed. AF_UNIX would return data of the stream.
    """
    if not _has(flags, _UNSUPPORTED_FLAGS) or sock.fileno() < 0:
        return
    if _has(flags, _MSG_ERRQUEUE):
        seconds = sock.gettimeout()
        if not seconds:
            raise lifecycle.os_error(errno.EAGAIN)
        never_released = allocate_lock()
        never_released.acquire()
        sock._acquire(never_released, seconds)
        raise TimeoutError("timed out")
    if identity.role is Role.UNCONNECTED or identity.is_over:
        raise lifecycle.os_error(errno.EINVAL)


def before_send(sock: StdlibSocket, identity: Identity, flags: int) -> int:
    """Open the gate that a connect() has left closed (fd_pair.py). Refuse MSG_OOB: uTP has no urgent data.

    Returns the flags to send with, MSG_NOSIGNAL among them: AF_UNIX gives EPIPE, with SIGPIPE, also where TCP gives
    another error. send_error() raises the signal where TCP does.

    Once the errno of the connection's end has been read nothing is taken any more, though the engine may be about to
    close its end of the pair.
    """
    if identity.is_gated and identity.role is Role.CONNECTED:
        fd_pair.open_gate(sock, identity)
    if identity.reported_errno and sock.fileno() >= 0:  # on a closed one the kernel's send() gives EBADF
        raise _broken_pipe(flags)
    if not flags:
        return _MSG_NOSIGNAL
    if isinstance(flags, int) and _has(flags, _MSG_OOB):
        raise lifecycle.os_error(errno.EOPNOTSUPP)
    return int.__or__(flags, _MSG_NOSIGNAL) if isinstance(flags, int) else flags


def _broken_pipe(flags: int) -> OSError:
    """EPIPE, after SIGPIPE unless it is not wanted. send(2)"""
    if not (isinstance(flags, int) and _has(flags, _MSG_NOSIGNAL)):
        signal.raise_signal(signal.SIGPIPE)
    return lifecycle.os_error(errno.EPIPE)


def send_error(sock: StdlibSocket, identity: Identity, error: OSError, flags: int) -> OSError:
    """The error that send() of TCP gives where that of AF_UNIX gives this one. `flags`: the program's."""
    if error.errno == errno.ENOTCONN:
        return _broken_pipe(flags)
    if error.errno in (errno.EPIPE, errno.ECONNRESET):
        is_after_eof = identity.has_ended_after_eof
        code = identity.take_error()
        Socket.getsockopt(sock, stdlib.SOL_SOCKET, stdlib.SO_ERROR)  # cleared, since it is reported now
        if code:
            code = errno.ECONNRESET if code == errno.EPIPE and not is_after_eof else code
            return _broken_pipe(flags) if code == errno.EPIPE else lifecycle.os_error(code)
    return _broken_pipe(flags) if error.errno == errno.EPIPE else error


def check_address(family: int, method: str, *args: object) -> None:
    """Raise what this method raises for a malformed address. The C class decides, by a UDP socket and a datagram that
    is too large to be sent; once for each address, since programs that use sendto() on a stream repeat it.
    """
    call = repr((family, method, args[1:]))
    if call in _well_formed:
        return
    with closing(with_room(partial(Socket, family, stdlib.SOCK_DGRAM))) as reference_udp:
        try:
            getattr(reference_udp, method)(*args)
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            if len(_well_formed) >= _REMEMBERED_CALLS:
                _well_formed.clear()
            _well_formed.add(call)


def check_bind(family: int, address: GivenAddress, *, is_open: bool) -> None:
    """Raise what bind() finds wrong with an address, for a socket that cannot be bound. A UDP socket that is bound
    already decides, in the same order: it cannot be bound again either.
    """
    with closing(Socket(family, stdlib.SOCK_DGRAM)) as reference_udp:
        reference_udp.bind(("", 0))
        try:
            reference_udp.bind(address)
        except stdlib.gaierror:
            raise
        except OSError as error:
            if is_open or error.errno is None:
                raise


def check_connect(family: int, method: str, address: GivenAddress) -> None:
    """Raise what connect() or connect_ex() finds wrong with an address or a host name, for a socket that does not begin
    to connect.
    """
    with closing(with_room(partial(Socket, family, stdlib.SOCK_DGRAM))) as reference_udp:
        try:
            getattr(reference_udp, method)(address)
        except stdlib.gaierror:
            raise
        except OSError as error:
            reraise_handler_error(error)  # an error of connecting says nothing about the address


def check_ancillary(identity: Identity, ancdata: Ancillary) -> None:
    """Raise what sendmsg() raises for malformed ancillary data. The C class decides, by an unconnected socket."""
    with closing(with_room(partial(Socket, stdlib.AF_UNIX, stdlib.SOCK_DGRAM))) as reference_udp:
        try:
            reference_udp.sendmsg([], ancdata)
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.EDESTADDRREQ, errno.EINVAL):
                raise
    is_unknown = any(level == stdlib.SOL_SOCKET and kind not in _ANCILLARY for level, kind, _ in ancdata)
    if is_unknown and identity.role is Role.CONNECTED:
        raise lifecycle.os_error(errno.EINVAL)

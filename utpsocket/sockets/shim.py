"""The class socket: a subclass of the standard library's, whose descriptor is one end of an AF_UNIX stream pair and
whose bytes travel over uTP.

For anything but a stream of AF_INET or AF_INET6, `_utp` is None and every method passes through to the standard
library's. For a uTP socket recv(), send(), poll(), dup(), fork() and others are the kernel's own on a real descriptor
(docs/design.md §5). What is done here: the addresses of both ends, bind(), listen(), connect(), accept() and close(),
and the errnos and addresses that TCP gives and AF_UNIX does not (docs/sockets.md §1, §2).

Every method calls the C class by name and never super(), so that utpsocket.monkey can put the same functions in place
of the standard library class's own. Any thread may call. Sources: CPython's Lib/socket.py and Doc/library/socket.rst,
tcp(7).
"""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING, Any, Final

from utpsocket import options
from utpsocket.engine.interpreter.fork_lock import ForkLock
from utpsocket.engine.interpreter.native import Socket, StdlibSocket, accept_fd, duplicated, poll
from utpsocket.engine.interpreter.originals import os, time
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import or_none
from utpsocket.engine.kernel import fd_name_key
from utpsocket.sockets import before_chroot, datagrams
from utpsocket.sockets.datagrams import halves

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Self

    # These are loaded by load().
    from utpsocket import stats
    from utpsocket.engine import inline_io
    from utpsocket.engine.current import running_engine
    from utpsocket.engine.interpreter.arguments import (
        Ancillary,
        GivenAddress,
        Named,
        OptionValue,
        Positional,
        ReadableBuffer,
    )
    from utpsocket.engine.kernel import fd_names, high_fds
    from utpsocket.engine.user_fds.socket_state import Identity, Role
    from utpsocket.protocol import Address
    from utpsocket.sockets import (
        accepting,
        closing,
        datagram_pairing,
        errors,
        lifecycle,
        option_calls,
        registry,
        sending,
        to_tcp,
    )
    from utpsocket.sockets.rules import Routes

_STREAM_FAMILIES: Final = (stdlib.AF_INET, stdlib.AF_INET6)
_TYPE_FLAGS: Final = getattr(stdlib, "SOCK_NONBLOCK", 0) | getattr(stdlib, "SOCK_CLOEXEC", 0)
_INT_MAX: Final = 2**31 - 1
_INLINE_TYPES: Final = (bytes, bytearray)  # what inline_io.send() takes
_INLINE_ROOMS: Final = (bytearray, memoryview)  # what is received into: of others the length need not be in bytes
_POLLOUT: Final = 0x004
_TIMED_OUT: Final = ("timed out",)
_UNCONNECTED: Role  # a copy of Role.UNCONNECTED, set by load()
_works_inline = False  # inline_io.IS_ON, set by load()
_RECEIVE_TIMEOUT: Final = stdlib.SOL_SOCKET, int(getattr(stdlib, "SO_RCVTIMEO", 20))


def _is_stream(family: object, type: int, proto: object) -> bool:
    return (
        isinstance(family, int)
        and isinstance(proto, int)
        and family in _STREAM_FAMILIES
        and (type & ~_TYPE_FLAGS) == stdlib.SOCK_STREAM
        and proto in (0, stdlib.IPPROTO_TCP)
    )


class socket(StdlibSocket):
    """socket(family=AF_INET, type=SOCK_STREAM, proto=0, fileno=None) -> socket object

    A subclass of the standard library's socket.socket, with the same methods, exceptions and errnos.

    Over uTP: a stream of AF_INET or AF_INET6 is a uTP (BEP 29) socket: bind() takes a UDP port, and connect() and
    accept() make uTP connections. A socket of any other family, type or protocol is the standard library's. fileno() is
    a descriptor of the kernel, one end of an AF_UNIX stream pair, so select(), poll(), epoll, os.read() and
    subprocess take it as they take a TCP socket's. Any thread may call.

    Parameters:
        family: an AF_ constant; AF_INET where it is left out.
        type: a SOCK_ constant; SOCK_STREAM where it is left out. SOCK_NONBLOCK and SOCK_CLOEXEC may be added.
        proto: an IPPROTO_ constant; 0 or IPPROTO_TCP for uTP.
        fileno: a descriptor that exists; the object owns it from then on. That of a uTP socket, of this process or of
            one that passed it on, becomes a uTP socket again, and family, type and proto may be left out.
    Raises: OSError, as socket(2); EBADF for a fileno that is not open; TypeError for arguments of other types.
    Next: connect(); or bind() and listen(). close() in the end, or a with statement.
    Source: Python's socket.socket; BEP 29; docs/sockets.md §1, §2.
    """

    __slots__ = ("_at_end", "_utp")
    __module__ = "utpsocket"  # where programs find it: repr(), pickle and help() say so

    _utp: Identity | None
    _at_end: closing.AtEnd
    # The rules of a patch, in classes that stand for the patched one.
    _routes: Routes | None = None
    # Whether UDP sockets need not say UTP_SHARE_PORT, in such classes.
    _pairs_datagrams = False

    def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:
        self._utp = None
        if fileno is not None:
            _adopt(self, family, type, proto, fileno)
            return
        wanted = stdlib.AF_INET if family == -1 else family
        kind = stdlib.SOCK_STREAM if type == -1 else type
        number = 0 if proto == -1 else proto
        if not isinstance(kind, int) or not _is_stream(wanted, kind, number):
            _plain_init(self, family, type, proto, None)
            return
        if not _is_loaded:
            load()
        _plain_init(self, stdlib.AF_UNIX, kind, 0, None)
        if number:
            _plain_init(self, stdlib.AF_UNIX, kind, number, self.fileno())  # socket(2) would refuse the number
        if not high_fds.is_prepared():
            high_fds.prepare()
        identity = Identity(int(wanted))
        identity.routes = self._routes
        _attach_identity(self, identity)
        registry.register(self, identity)

    # ── identity ──

    @property
    def family(self) -> stdlib.AddressFamily:
        """The address family that the socket was made with.

        Over uTP: AF_INET or AF_INET6, though the descriptor is an AF_UNIX socket's, which C code sees.

        Returns: a member of socket.AddressFamily, or an int where there is none for it.
        Source: Python's socket.socket.family.
        """
        identity = self._utp
        number = Socket.family.__get__(self) if identity is None else identity.family
        family: stdlib.AddressFamily = _converted(number, stdlib.AddressFamily)
        return family

    def getsockname(self) -> Address | Any:  # Any: of a socket of another family
        """The address of this end.

        Over uTP: the address of the UDP port. Before bind(), listen() or connect() it is the one of all addresses with
        port 0.

        Returns: (host, port) for AF_INET; (host, port, flowinfo, scope_id) for AF_INET6.
        Raises: OSError: EBADF of a closed socket.
        Source: getsockname(2); Python's socket.getsockname().
        """
        identity = self._utp
        if identity is None:
            return Socket.getsockname(self)
        lifecycle.check_open(self)
        return identity.local or lifecycle.UNBOUND[identity.family]

    def getpeername(self) -> Address | Any:  # likewise
        """The address of the other end.

        Over uTP: the UDP address of the peer. A blocking socket may wait for the engine's thread, so that a reset that
        has arrived is known.

        Returns: (host, port) for AF_INET; (host, port, flowinfo, scope_id) for AF_INET6.
        Raises: OSError: ENOTCONN where there is no connection, or no more; EBADF of a closed socket.
        Source: getpeername(2); Python's socket.getpeername().
        """
        identity = self._utp
        if identity is None:
            return Socket.getpeername(self)
        lifecycle.check_open(self)
        if identity.role is Role.CONNECTING:
            lifecycle.poll_connect(self, identity)
        elif identity.role is Role.CONNECTED and not identity.is_over:
            lifecycle.sync_network_side(self, identity)
        if identity.role is not Role.CONNECTED or identity.is_over:
            raise lifecycle.os_error(errno.ENOTCONN)
        return identity.peer

    def getsockopt(self, level: int, optname: int, /, *buflen: int) -> Any:  # typeshed's overloads know int and bytes
        """Read a socket option.

        Over uTP: the answer is a TCP socket's of the same settings; utpsocket.options.EFFECTS says what each option
        does. SO_ERROR is the errno with which a connect() or the connection failed, once, then 0. The level SOL_UTP has
        the options of uTP; its UTP_INFO is a ConnectionStats.

        Parameters:
            level: a SOL_ or IPPROTO_ constant, or utpsocket.SOL_UTP.
            optname: a constant of that level, SO_, TCP_, IP_, IPV6_ or UTP_.
            buflen: bytes, 0 to 1,024: the most that is returned; an int is returned where it is left out or 0.
        Returns: int; bytes where buflen is given and not 0; a ConnectionStats for UTP_INFO.
        Raises: OSError: ENOPROTOOPT for an unknown option, ENOTCONN for UTP_INFO without a connection, EBADF of a
            closed socket.
        Source: getsockopt(2), socket(7), tcp(7), ip(7), ipv6(7); Python's socket.getsockopt().
        """
        identity = self._utp
        if identity is None:
            if level == options.SOL_UTP and datagrams.is_datagram(self):
                return datagrams.get_option(self, optname)
            return Socket.getsockopt(self, level, optname, *buflen)
        if buflen and not 0 <= buflen[0] <= option_calls.MAX_OPTION_BYTES:
            return Socket.getsockopt(self, level, optname, *buflen)  # raises with CPython's wording
        lifecycle.check_open(self)
        if (level, optname) == (stdlib.SOL_SOCKET, stdlib.SO_ERROR):
            error = lifecycle.take_error(self, identity)
            return error.to_bytes(4, sys.byteorder)[: buflen[0]] if buflen and buflen[0] else error
        if (level, optname) == (options.SOL_UTP, options.UTP_INFO):
            return stats.connection_stats(identity.cookie, waits=self.gettimeout() != 0)
        return option_calls.get_option(self, identity, level, optname, *buflen)

    def setsockopt(self, level: int, optname: int, value: OptionValue, /, *optlen: int) -> None:
        """Set a socket option.

        Over uTP: a TCP socket of the kernel decides whether the option and its value are accepted, with its errors.
        utpsocket.options.EFFECTS says what each option does then; on a connection it does so from then on. The level
        SOL_UTP has the options of uTP.

        Parameters:
            level: a SOL_ or IPPROTO_ constant, or utpsocket.SOL_UTP.
            optname: a constant of that level, SO_, TCP_, IP_, IPV6_ or UTP_.
            value: int, or bytes; None where optlen is given.
            optlen: bytes: the length that is passed with value None.
        Raises: OSError: ENOPROTOOPT for an unknown option, EINVAL, EDOM and others for its value, as TCP; EISCONN or
            EINVAL with a sentence for an option of SOL_UTP that comes too late; EBADF of a closed socket.
        Source: setsockopt(2), socket(7), tcp(7), ip(7), ipv6(7); Python's socket.setsockopt().
        """
        identity = self._utp
        if identity is None:
            if level == options.SOL_UTP and datagrams.is_datagram(self):
                datagrams.set_option(self, optname, value)
            else:
                Socket.setsockopt(self, level, optname, value, *optlen)
            return
        lifecycle.check_open(self)
        must_notify_engine = option_calls.set_option(self, identity, level, optname, value, *optlen)
        identity.share_options()
        if identity.cookie:
            # A buffer's new size holds for the next send() already; other options may take effect a moment later.
            at_once = (
                self.gettimeout() != 0
                and level == stdlib.SOL_SOCKET
                and optname in (stdlib.SO_SNDBUF, stdlib.SO_RCVBUF)
            )
            lifecycle.apply_options(
                identity,
                at_once=at_once,
                to_connection=must_notify_engine or identity.transport == "tcp",
                is_nodelay=level == stdlib.IPPROTO_TCP and optname == stdlib.TCP_NODELAY,
            )

    # ── lifecycle ──

    def bind(self, address: GivenAddress, /) -> None:
        """Bind the socket to an address of this machine.

        Over uTP: the port is a UDP port. SO_REUSEADDR does what it does for TCP, though both are UDP sockets; sockets
        of this process that all set UTP_SHARE_PORT before share a port. A UDP socket that sets it may be bound to the
        address of a uTP socket of this process, before or after that one.

        Parameters:
            address: (host, port) for AF_INET, also (host, port, flowinfo, scope_id) for AF_INET6; port 0 for a free
                one, "" as the host for all addresses. A host name is looked up, which may block.
        Raises: OSError: EADDRINUSE, EADDRNOTAVAIL, EACCES, EINVAL for a socket that is bound already, EBADF of a closed
            one; socket.gaierror for an unknown host. With UTPSOCKET_ENGINE=process a non-blocking socket may learn of
            EADDRINUSE from the call after this one.
        Next: listen() or connect().
        Source: bind(2), ip(7), udp(7); Python's socket.bind(); docs/differences-from-tcp.md §2.
        """
        identity = self._utp
        if identity is None:
            bind_beside = datagram_pairing.bind_beside if _is_loaded else None
            datagrams.bind(self, address, is_patched=self._pairs_datagrams, bind_beside=bind_beside)
            return
        if identity.role is Role.FAILED or (identity.role is Role.CONNECTED and identity.is_over):
            lifecycle.release_chosen_port(identity)
            is_unbound = not identity.is_bound  # to TCP it is closed: it may be bound
        else:
            is_unbound = identity.role is Role.UNCONNECTED and not identity.is_bound and identity.bound_tcp is None
        if self.fileno() < 0 or not is_unbound:
            errors.check_bind(identity.family, address, is_open=self.fileno() >= 0)
            lifecycle.check_open(self)
            raise lifecycle.os_error(errno.EINVAL)
        (to_tcp if identity.routes is not None and identity.role is Role.UNCONNECTED else lifecycle).bind(
            self, identity, address
        )

    def listen(self, backlog: int = 128, /) -> None:
        """Have the socket take incoming connections.

        Over uTP: at the bound UDP port, or at a free one of all addresses where bind() was not called. Called again, it
        changes the backlog of the descriptor.

        Parameters:
            backlog: connections that may wait for accept(), a number; less than 1 counts as 1.
        Raises: OSError: EADDRINUSE where another socket listens at the port, EINVAL for a socket that is connecting or
            connected, EBADF of a closed one; EOPNOTSUPP for a network namespace that the engine may not enter;
            OverflowError or TypeError for a backlog that is no C int.
        Next: accept(), or utpsocket.incoming().
        Source: listen(2); Python's socket.listen(); docs/sockets.md §1.
        """
        identity = self._utp
        if identity is None:
            Socket.listen(self, backlog)
            return
        if not isinstance(backlog, int) or not -_INT_MAX <= backlog <= _INT_MAX:
            Socket.listen(self, backlog)  # raises with CPython's wording
        lifecycle.check_open(self)
        if identity.role is Role.LISTENING:
            Socket.listen(self, backlog)
        elif identity.role is not Role.UNCONNECTED or identity.is_used_elsewhere:
            raise lifecycle.os_error(errno.EINVAL)
        else:
            if not identity.endpoint and identity.bound_tcp is None:
                if identity.is_bound:
                    raise lifecycle.os_error(errno.EADDRINUSE)  # the port is that of another process's engine
                socket.bind(self, identity.bound or ("", 0))
            if identity.bound_tcp is not None and to_tcp.listens_over_tcp(self, identity):
                Socket.listen(self, backlog)
                return
            lifecycle.listen(self, identity, int(backlog))

    def _accept(self) -> tuple[int, object]:
        """_accept() -> (integer fd, address info): the next incoming connection's bare fd."""
        identity = self._utp
        if identity is None:
            return accept_fd(self)
        raw = Socket.__new__(Socket)
        try:
            found = fd_names.decode(accepting.accept(self, identity, raw)[0])
            assert found is not None
        except BaseException:
            Socket.close(raw)  # closed now, since the exception may be kept, and with it this frame
            raise
        return raw.detach(), found[3]

    def accept(self) -> tuple[StdlibSocket, object]:
        """accept() -> (socket object, address info)

        Wait for an incoming connection and take it.

        Over uTP: connections have completed uTP's handshake before they can be taken. Options that were set on the
        listener are inherited. The new socket blocks, or has the default timeout, as over TCP.

        Returns: the connection's socket, of this class, and the peer's address.
        Raises: TimeoutError after the socket's timeout; BlockingIOError (EAGAIN) where nothing waits and the socket
            does not block; OSError: EINVAL for a socket that does not listen or was shut down, EMFILE, EBADF of a
            closed one.
        Next: recv() and send() on the new socket; accept() again.
        Source: accept(2); Python's socket.accept(); docs/protocol.md §3.
        """
        identity = self._utp
        if identity is None:
            return _stdlib_accept(self)
        is_patched = hasattr(StdlibSocket, "_utp")
        made = StdlibSocket if is_patched and not isinstance(self, socket) else socket
        sock = made.__new__(made)  # owns the fd from its first moment
        try:
            if made is socket:
                sock._utp = None
            name, cookie, inode = accepting.accept(self, identity, sock)
            if self.proto:
                _plain_init(sock, stdlib.AF_UNIX, stdlib.SOCK_STREAM, self.proto, sock.fileno())
            else:  # what else StdlibSocket.__init__() does; the C class's part, a system call, is done
                sock._io_refs, sock._closed = 0, False  # type: ignore[attr-defined]
            accepted = registry.identify_accepted(sock, name, cookie, identity.owner_pid, inode)
            if made is socket or hasattr(made, "_utp"):  # else the patch was undone while this waited
                _attach_identity(sock, accepted)
            if stdlib.getdefaulttimeout() is None and self.gettimeout():
                sock.setblocking(True)
            return sock, accepted.peer
        except BaseException:
            Socket.close(sock)  # closed now, since the exception may be kept, and with it this frame
            raise

    def connect(self, address: GivenAddress, /) -> None:
        """Connect to a peer, and wait until the connection is established unless the socket has a timeout of 0.

        Over uTP: the peer must speak uTP at that UDP port. A connect() without an answer is given up after 63 s;
        settimeout(), SO_SNDTIMEO and TCP_SYNCNT change that. A socket whose connect() has failed may try again.

        Parameters:
            address: (host, port) for AF_INET, also (host, port, flowinfo, scope_id) for AF_INET6. A host name is looked
                up, which may block.
        Raises: ConnectionRefusedError where nothing listens; TimeoutError after the socket's timeout, or with ETIMEDOUT
            where no answer comes; BlockingIOError (EINPROGRESS) where the attempt has begun on a socket that does not
            block; other OSErrors: EALREADY, EISCONN, ENETUNREACH, EHOSTUNREACH, EACCES, EBADF; socket.gaierror for an
            unknown host.
        Next: send() and recv(). After EINPROGRESS wait until the socket can be written to, then read SO_ERROR.
        Source: connect(2); Python's socket.connect(); docs/protocol.md §3.
        """
        identity = self._utp
        if identity is None:
            datagrams.check_connect(self)
            Socket.connect(self, address)
            return
        if identity.routes is not None and to_tcp.connects_over_tcp(self, identity, address):
            Socket.connect(self, address)
            return
        if self.fileno() < 0 or identity.role is not _UNCONNECTED:
            self._check_connect(identity, "connect", address)
        code = lifecycle.connect(self, identity, address, quietly=False)
        if code in lifecycle.IN_PROGRESS:
            if not self._waits(code):
                raise lifecycle.os_error(code)
            code = self._wait_connected(identity, code)
        if code:
            raise lifecycle.os_error(code)

    def connect_ex(self, address: GivenAddress, /) -> int:
        """Connect as connect() does, and return an errno where that raises an OSError of the connection.

        Over uTP: as connect().

        Parameters:
            address: as for connect().
        Returns: 0, or the errno; EAGAIN after the socket's timeout.
        Raises: socket.gaierror for an unknown host; TypeError for an address of another form.
        Next: as after connect().
        Source: connect(2); Python's socket.connect_ex().
        """
        identity = self._utp
        if identity is None:
            return errno.EOPNOTSUPP if id(self) in halves else Socket.connect_ex(self, address)
        if identity.routes is not None and to_tcp.connects_over_tcp(self, identity, address):
            return Socket.connect_ex(self, address)
        if self.fileno() < 0 or identity.role is not _UNCONNECTED:
            self._check_connect(identity, "connect_ex", address)
            if self.fileno() < 0:
                return errno.EBADF
        try:
            code = lifecycle.connect(self, identity, address, quietly=True)
        except OSError as error:
            if isinstance(error, stdlib.gaierror) or error.errno is None:
                raise
            return error.errno
        if code in lifecycle.IN_PROGRESS and self._waits(code):
            try:
                code = self._wait_connected(identity, code)
            except TimeoutError as error:
                if error.args != _TIMED_OUT:
                    raise  # of a signal's handler
                return errno.EAGAIN
        return code

    def _check_connect(self, identity: Identity, method: str, address: GivenAddress) -> None:
        """Raise what is wrong with the address, which is checked first even where the socket cannot connect. The
        address of the attempt under way, which event loops pass again, is not checked again.
        """
        if identity.peer is None or address != identity.peer:
            errors.check_connect(identity.family, method, address)

    def _waits(self, code: int) -> bool:
        """Whether connect() waits for the end of the attempt. For one that was under way only without a timeout."""
        timeout = self.gettimeout()
        return timeout is None or (timeout > 0 and code != errno.EALREADY)

    def _wait_connected(self, identity: Identity, begun: int) -> int:
        """Wait until the attempt ends or the timeout runs out. Returns the errno that it ended with; where SO_SNDTIMEO
        runs out the one that it began with, as connect(2) has it.
        """
        timeout = self.gettimeout()
        # A duplicate may have made the fd a blocking one, whatever this object's timeout is.
        is_kernels = timeout is None or os.get_blocking(self.fileno())
        if is_kernels:
            timeout = option_calls.connect_seconds(self)
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if self._wait_writable(None if deadline is None else deadline - time.monotonic()):
                code = lifecycle.poll_connect(self, identity)
                if code not in lifecycle.IN_PROGRESS:
                    # Without a timeout connect(2) itself has waited and reports the end. With one CPython waits and
                    # reads SO_ERROR, so that the next connect(2) still reports it.
                    identity.is_connect_reported = is_kernels
                    if not code:
                        lifecycle.wait_for_acceptor(identity)
                    elif is_kernels:
                        lifecycle.disconnect(self, identity)
                    return code
            if deadline is not None and time.monotonic() >= deadline:
                lifecycle.check_open(self)  # poll() returns at the deadline where another thread has closed it
                if is_kernels:
                    return begun
                raise TimeoutError(*_TIMED_OUT)

    def _wait_writable(self, timeout: float | None) -> bool:
        """Wait until the descriptor is writable or in error. Returns False after `timeout` seconds. A subclass for
        green threads may wait in another way.
        """
        lifecycle.check_open(self)
        poller = poll()
        poller.register(self.fileno(), _POLLOUT)
        return bool(poller.poll(None if timeout is None else max(0, timeout) * 1_000))

    def shutdown(self, how: int, /) -> None:
        """Shut down one half of the connection or both.

        Over uTP: SHUT_WR sends a FIN after everything that was written, and the peer receives an end of file. SHUT_RD
        sends nothing. On a listening socket SHUT_RD and SHUT_RDWR end the listening and wake accept() with EINVAL.
        While connecting any of them gives the attempt up.

        Parameters:
            how: SHUT_RD, SHUT_WR or SHUT_RDWR.
        Raises: OSError: ENOTCONN where there is no connection, EINVAL for another value of how, EBADF of a closed
            socket.
        Next: after SHUT_WR recv() until it returns nothing, then close().
        Source: shutdown(2); Python's socket.shutdown(); docs/protocol.md §12.
        """
        identity = self._utp
        if identity is None:
            Socket.shutdown(self, how)
            return
        if how not in (stdlib.SHUT_RD, stdlib.SHUT_WR, stdlib.SHUT_RDWR):
            Socket.shutdown(self, how)  # raises with CPython's and the kernel's wording
        lifecycle.check_open(self)
        if identity.role is Role.UNCONNECTED or identity.role is Role.FAILED or identity.is_over:
            lifecycle.shut_down_unconnected(self, identity, int(how))
            raise lifecycle.os_error(errno.ENOTCONN)
        if identity.role is Role.CONNECTING and lifecycle.abort_connecting(self, identity):
            identity.is_connect_reported = True  # to TCP it is unconnected now: the next connect() is a new one
            return
        if identity.role is Role.CONNECTED:
            lifecycle.before_shutdown(self, identity, int(how))
        Socket.shutdown(self, how)
        if identity.role is Role.CONNECTED:
            identity.is_connect_reported = True  # as after shutdown() of TCP, the next connect() gives EISCONN
        if identity.role is Role.LISTENING and how != stdlib.SHUT_WR:
            accepting.stop_listening(self, identity)

    def _acquire(self, lock: closing.Lock, seconds: float) -> None:
        """Wait until the lock is released, for `seconds` at most. A subclass for green threads waits in its way."""
        closing.block(lock, seconds)

    def _real_close(self, _ss: object = Socket) -> None:
        identity = self._utp
        if identity is None:
            Socket.close(self)
            return
        try:
            Socket.close(self)
            closing.after_close(identity, self._acquire, is_blocking=self.gettimeout() != 0)
        except BaseException:
            closing.after_close(identity, None)  # it was interrupted; a second time does no harm
            raise
        self._at_end.identity = None

    def dup(self) -> Self:
        """dup() -> socket object

        Make a second socket object with a duplicate of the descriptor, which is not inheritable.

        Over uTP: both stand for the same connection or listener, which ends when the last of them is closed.

        Returns: a socket of the same class with the same timeout.
        Raises: OSError: EMFILE, EBADF of a closed socket.
        Source: dup(2), fcntl(2) F_DUPFD_CLOEXEC; Python's socket.dup().
        """
        if self._utp is None:
            copied = _stdlib_dup(self)
            datagrams.copy(self, copied)
            return copied
        self._utp.has_duplicates = True
        made = type(self)
        sock = made.__new__(made)  # owns the fd from its first moment
        duplicated(self.fileno(), sock)
        made.__init__(sock, self.family, self.type, self.proto, fileno=sock.fileno())
        sock.settimeout(self.gettimeout())
        return sock

    def detach(self) -> int:
        """Put the socket object in the closed state without closing the descriptor.

        Over uTP: the connection goes on for as long as the descriptor is open anywhere; socket(fileno=…) makes a uTP
        socket of it again.

        Returns: the descriptor; -1 of a closed socket.
        Raises: nothing.
        Next: socket(fileno=…), or os.close().
        Source: Python's socket.detach().
        """
        identity = self._utp
        self._closed = True
        if identity is not None and self.fileno() >= 0:
            registry.pin(identity)
            self._at_end.identity = None
            closing.after_detach(identity)
        return Socket.detach(self)

    # No __del__: it would run before the C class's finalizer, and if a signal's handler raised at its first instruction
    # the descriptor would stay open. _at_end does what is to be done, since it ends after the object.

    # ── data ──

    # The six methods that receive have the same shape, and it is written out in each: one function around the C class's
    # method would be one more call in Python for each recv(), and where the class is patched for each recvfrom() of a
    # UDP socket. What they share beside that is in errors.py. Arguments go to the C class as they were written, which
    # checks them; where they are of several types they are Any.

    def recv(self, *args: int, **kwargs: object) -> bytes:
        """Receive bytes of the stream.

        Over uTP: as over TCP. An end of file comes after all that the peer sent before its FIN, and only then.

        Parameters:
            bufsize: bytes, the most to receive.
            flags: MSG_ constants: MSG_PEEK, MSG_WAITALL, MSG_DONTWAIT, MSG_TRUNC. MSG_OOB is refused with EINVAL.
        Returns: the bytes; b"" at the end of the stream.
        Raises: BlockingIOError (EAGAIN) where the socket does not block and nothing has come; TimeoutError after the
            socket's timeout, or with ETIMEDOUT where the peer was given up; ConnectionResetError; other OSErrors:
            ENOTCONN, EBADF.
        Source: recv(2); Python's socket.recv(); docs/sockets.md §2.
        """
        identity = self._utp
        if identity is None:
            half = halves and halves.get(id(self))
            return datagrams.recvfrom(self, half, args, kwargs)[0] if half else Socket.recv(self, *args, **kwargs)
        if len(args) > 1 and args[0]:
            args = errors.with_checked_flags(self, identity, args, 1)
        if identity.is_after_eof and args and args[0] >= 0 and errors.is_at_end(self, identity):
            return b""
        if _works_inline and len(args) == 1 and type(args[0]) is int and args[0] > 0 and not kwargs:
            _wait_inline(self, identity)
        try:
            data = Socket.recv(self, *args, **kwargs)
        except OSError as error:
            if not errors.is_end_of_file(identity, error):
                raise errors.receive_error(identity, error) from None
            data = b""
        if not data and args[0]:
            return errors.at_end(identity, args[0], args[1] if len(args) > 1 else 0)
        return data

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        """Receive bytes of the stream into a buffer.

        Over uTP: as recv().

        Parameters:
            buffer: a writable buffer.
            nbytes: bytes, the most to receive; 0, or left out: as many as the buffer has room for.
            flags: as for recv().
        Returns: how many bytes were written to the buffer; 0 at the end of the stream.
        Raises: as recv().
        Source: recv(2); Python's socket.recv_into(); docs/sockets.md §2.
        """
        identity = self._utp
        if halves and id(self) in halves:
            return datagrams.recvfrom_into(self, halves[id(self)], args, kwargs)[0]
        if identity is not None and (kwargs or len(args) > 2):
            if _has_buffer_room(args, kwargs):
                args = errors.with_checked_flags(self, identity, args, 2, kwargs)
            args = errors.discarding(args, kwargs)
        if identity is not None and identity.is_after_eof and errors.is_at_end(self, identity):
            return 0
        if _works_inline and identity is not None and len(args) == 1 and not kwargs:
            if type(args[0]) in _INLINE_ROOMS and len(args[0]):
                _wait_inline(self, identity)
        try:
            count = Socket.recv_into(self, *args, **kwargs)
        except OSError as error:
            if identity is None:
                raise
            if not errors.is_end_of_file(identity, error):
                raise errors.receive_error(identity, error) from None
            count = 0
        if not count and identity is not None and _has_buffer_room(args, kwargs):
            return _copied_at_end(identity, args, kwargs)
        return count

    def recvfrom(self, *args: int, **kwargs: object) -> tuple[bytes, Address | None]:
        """Receive bytes, and the address that they came from.

        Over uTP: as recv(); the address is None, as for any stream.

        Parameters:
            bufsize: bytes, the most to receive.
            flags: as for recv().
        Returns: the bytes, b"" at the end of the stream, and None.
        Raises: as recv().
        Source: recvfrom(2); Python's socket.recvfrom().
        """
        identity = self._utp
        if halves and id(self) in halves:
            return datagrams.recvfrom(self, halves[id(self)], args, kwargs)
        if identity is not None and len(args) > 1:
            args = errors.with_checked_flags(self, identity, args, 1)
        if identity is not None and identity.is_after_eof and args and args[0] >= 0:
            if errors.is_at_end(self, identity):
                return b"", None
        try:
            data, address = Socket.recvfrom(self, *args, **kwargs)
        except OSError as error:
            if identity is None:
                raise
            if not errors.is_end_of_file(identity, error):
                raise errors.receive_error(identity, error) from None
            data, address = b"", None
        if identity is None:
            return data, address
        if not data and args[0]:
            data = errors.at_end(identity, args[0], args[1] if len(args) > 1 else 0)
        return data, None

    def recvfrom_into(self, *args: Any, **kwargs: Any) -> tuple[int, Address | None]:
        """Receive bytes into a buffer, and the address that they came from.

        Over uTP: as recv_into(); the address is None, as for any stream.

        Parameters:
            buffer: a writable buffer.
            nbytes: bytes, the most to receive; 0, or left out: as many as the buffer has room for.
            flags: as for recv().
        Returns: how many bytes were written to the buffer, 0 at the end of the stream, and None.
        Raises: as recv().
        Source: recvfrom(2); Python's socket.recvfrom_into().
        """
        identity = self._utp
        if halves and id(self) in halves:
            return datagrams.recvfrom_into(self, halves[id(self)], args, kwargs)
        if identity is not None and (kwargs or len(args) > 2):
            args = errors.with_checked_flags(self, identity, args, 2, kwargs)
            args = errors.discarding(args, kwargs)
        if identity is not None and identity.is_after_eof and errors.is_at_end(self, identity):
            return 0, None
        try:
            count, address = Socket.recvfrom_into(self, *args, **kwargs)
        except OSError as error:
            if identity is None:
                raise
            if not errors.is_end_of_file(identity, error):
                raise errors.receive_error(identity, error) from None
            count, address = 0, None
        if identity is None:
            return count, address
        if not count and _has_buffer_room(args, kwargs):
            count = _copied_at_end(identity, args, kwargs)
        return count, None

    def recvmsg(self, *args: int, **kwargs: object) -> tuple[bytes, list[tuple[int, int, bytes]], int, Address | None]:
        """Receive bytes and ancillary data.

        Over uTP: as recv(). There is never ancillary data, and the address is None, as for any stream.

        Parameters:
            bufsize: bytes, the most to receive.
            ancbufsize: bytes, room for ancillary data; it stays empty.
            flags: as for recv().
        Returns: the bytes, b"" at the end of the stream; an empty list; the flags of the message; None.
        Raises: as recv().
        Source: recvmsg(2); Python's socket.recvmsg().
        """
        identity = self._utp
        if halves and id(self) in halves:
            return datagrams.recvmsg(self, halves[id(self)], args, kwargs)
        if identity is not None and len(args) > 2:
            args = errors.with_checked_flags(self, identity, args, 2)
        if identity is not None and identity.is_after_eof and args and args[0] >= 0:
            if errors.is_at_end(self, identity):
                return b"", [], 0, None
        try:
            data, ancillary, flags, address = Socket.recvmsg(self, *args, **kwargs)
        except OSError as error:
            if identity is None:
                raise
            if not errors.is_end_of_file(identity, error):
                raise errors.receive_error(identity, error) from None
            data, flags = b"", 0
        if identity is None:
            return data, ancillary, flags, address
        if not data and args[0]:
            data = errors.at_end(identity, args[0], args[2] if len(args) > 2 else 0)
        return data, [], flags, None

    def recvmsg_into(self, *args: Any, **kwargs: Any) -> tuple[int, list[tuple[int, int, bytes]], int, Address | None]:
        """Receive bytes into several buffers, and ancillary data.

        Over uTP: as recv(). There is never ancillary data, and the address is None, as for any stream.

        Parameters:
            buffers: writable buffers, filled one after the other.
            ancbufsize: bytes, room for ancillary data; it stays empty.
            flags: as for recv().
        Returns: how many bytes were received, 0 at the end of the stream; an empty list; the flags of the message;
            None.
        Raises: as recv().
        Source: recvmsg(2); Python's socket.recvmsg_into().
        """
        identity = self._utp
        if halves and id(self) in halves:
            return datagrams.recvmsg_into(self, halves[id(self)], args, kwargs)
        if identity is not None and len(args) > 2:
            args = errors.with_checked_flags(self, identity, args, 2)
        if identity is not None and identity.is_after_eof and errors.is_at_end(self, identity):
            return 0, [], 0, None
        try:
            count, ancillary, flags, address = Socket.recvmsg_into(self, *args, **kwargs)
        except OSError as error:
            if identity is None:
                raise
            if not errors.is_end_of_file(identity, error):
                raise errors.receive_error(identity, error) from None
            count, flags = 0, 0
        if identity is None:
            return count, ancillary, flags, address
        if not count and any(map(len, args[0])):
            views = [memoryview(buffer).cast("B") for buffer in args[0]]
            data = errors.at_end(identity, sum(map(len, views)), args[2] if len(args) > 2 else 0)
            for view in views:
                part = min(len(view), len(data) - count)
                view[:part] = data[count : count + part]
                count += part
        return count, [], flags, None

    def send(self, data: ReadableBuffer, flags: int = 0, /) -> int:
        """Send bytes, or the first of them.

        Over uTP: what was taken waits in the buffers until it is acknowledged, as over TCP; it is delivered also after
        close() and at the end of the process (docs/guide/forking.md §4 has the limits).

        Parameters:
            data: bytes or another object with a buffer.
            flags: MSG_ constants; MSG_OOB is refused with EOPNOTSUPP.
        Returns: how many bytes were taken.
        Raises: BlockingIOError (EAGAIN) where the socket does not block and the buffers are full; TimeoutError after
            the socket's timeout, or with ETIMEDOUT where the peer was given up; BrokenPipeError (EPIPE) where the
            connection has ended or never was; ConnectionResetError; other OSErrors: EOPNOTSUPP, EBADF.
        Next: the same for what was not taken.
        Source: send(2); Python's socket.send(); docs/sockets.md §2.
        """
        identity = self._utp
        if identity is None:
            return Socket.send(self, data, flags)
        sent_with = errors.before_send(self, identity, flags)
        if _works_inline and not flags and type(data) in _INLINE_TYPES and self.fileno() >= 0:
            count = inline_io.send(running_engine(), identity.cookie, self, data)  # type: ignore[arg-type]
            if count:
                return count
        try:
            if identity.owner_pid != os.getpid() and (count := sending.sent_at_once(self, data, flags)):
                return count
            return Socket.send(self, data, sent_with)
        except OSError as error:
            raise errors.send_error(self, identity, error, flags) from None

    def sendall(self, data: ReadableBuffer, flags: int = 0, /) -> None:
        """Send all bytes.

        Over uTP: as send(), again until all is taken. It returns when the buffers have all of it, not when it has
        arrived. After an error it is not known how much was sent.

        Parameters:
            data: bytes or another object with a buffer.
            flags: as for send().
        Raises: as send(); TimeoutError where the whole takes longer than the socket's timeout.
        Source: send(2); Python's socket.sendall().
        """
        identity = self._utp
        if identity is None:
            Socket.sendall(self, data, flags)
            return
        sent_with = errors.before_send(self, identity, flags)
        if _works_inline and not flags and type(data) in _INLINE_TYPES and self.fileno() >= 0:
            if inline_io.send(running_engine(), identity.cookie, self, data):  # type: ignore[arg-type]
                return
        try:
            if identity.owner_pid != os.getpid() and (count := sending.sent_at_once(self, data, flags)):
                data = memoryview(data).cast("B")[count:]
                if not data:
                    return
            Socket.sendall(self, data, sent_with)
        except OSError as error:
            raise errors.send_error(self, identity, error, flags) from None

    def sendto(self, data: ReadableBuffer, *args: Any) -> int:
        """sendto(data[, flags], address) -> count

        Send bytes, or the first of them, to an address.

        Over uTP: as send(). The form of the address is checked; then it is ignored, as by TCP.

        Parameters:
            data: bytes or another object with a buffer.
            flags: as for send(); may be left out.
            address: as for connect().
        Returns: how many bytes were taken.
        Raises: as send(); TypeError, OverflowError or socket.gaierror for a malformed address.
        Source: sendto(2); Python's socket.sendto().
        """
        if self._utp is None:
            return Socket.sendto(self, data, *args)
        errors.check_address(self.family, "sendto", errors.TOO_LARGE if 1 <= len(args) <= 2 else data, *args)
        flags = args[0] if len(args) == 2 else 0
        return socket.send(self, data, flags)

    def sendmsg(
        self,
        buffers: Iterable[ReadableBuffer],
        ancdata: Ancillary = (),
        flags: int = 0,
        address: GivenAddress | None = None,
        /,
    ) -> int:
        """Send the bytes of several buffers, or the first of them, with ancillary data.

        Over uTP: as send(). Ancillary data is checked and dropped, since uTP carries none; the form of the address is
        checked and the address ignored, as by TCP.

        Parameters:
            buffers: objects with a buffer, sent one after the other.
            ancdata: (level, type, data) for each item.
            flags: as for send().
            address: as for connect(); None for none.
        Returns: how many bytes were taken.
        Raises: as send(); OSError: EINVAL for ancillary data of SOL_SOCKET that TCP does not know.
        Source: sendmsg(2); Python's socket.sendmsg().
        """
        identity = self._utp
        if identity is None:
            return Socket.sendmsg(self, buffers, ancdata, flags, *(() if address is None else (address,)))
        if ancdata != () and ancdata != []:
            ancdata = list(ancdata) if hasattr(ancdata, "__iter__") else ancdata
            errors.check_ancillary(identity, ancdata)
        if address is not None:
            errors.check_address(self.family, "sendmsg", [errors.TOO_LARGE], (), 0, address)
        sent_with = errors.before_send(self, identity, flags)
        try:
            return Socket.sendmsg(self, buffers, (), sent_with)
        except OSError as error:
            raise errors.send_error(self, identity, error, flags) from None


# ── what is loaded with the first uTP socket ──

# A fork waits until it is loaded: the child would have no thread that goes on, and each import would wait for it. The
# seconds are by feel: loading takes 0.03, and 1 where Python must compile the files.
_loading: Final = ForkLock(10)
_is_loaded = False


def load() -> None:
    """Import what only uTP sockets need: the rest of this folder and the engine. A second call does nothing.

    Called by patch_all(), or when the first uTP socket is made, by the thread that makes it. So nothing is imported
    later, on the engine's thread or after a chroot().
    """
    global accepting, closing, datagram_pairing, errors, fd_names, high_fds, lifecycle, option_calls, registry, sending
    global stats, to_tcp
    global Identity, Role, _UNCONNECTED, _is_loaded, inline_io, running_engine, _works_inline
    with _loading:
        from utpsocket import stats
        from utpsocket.engine import inline_io
        from utpsocket.engine.current import running_engine
        from utpsocket.engine.kernel import fd_names, high_fds
        from utpsocket.engine.user_fds.socket_state import Identity, Role
        from utpsocket.sockets import (
            accepting,
            closing,
            datagram_pairing,
            errors,
            lifecycle,
            option_calls,
            registry,
            sending,
            to_tcp,
        )

        _UNCONNECTED = Role.UNCONNECTED
        _works_inline = inline_io.IS_ON
        _is_loaded = True
        before_chroot.restore()


def _before_fork() -> None:
    _loading.acquire()
    if _is_loaded:
        registry.before_fork()


def _after_fork_in_child() -> None:
    _loading.release()
    if _is_loaded:
        registry.after_fork_in_child()


# At import, so that hooks which the program registers later are called before ours, as before they were.
os.register_at_fork(before=_before_fork, after_in_parent=_loading.release, after_in_child=_after_fork_in_child)
before_chroot.replace(load)


def _has_name_of_ours(sock: Socket) -> bool:
    """Whether an AF_UNIX socket may be uTP's, by the kernel's names of its two ends."""
    names = or_none(Socket.getsockname, sock), or_none(Socket.getpeername, sock)
    return any(isinstance(name, bytes) and name.startswith(fd_name_key.NAME_HEAD) for name in names)


# ── what the methods share: functions, which serve the standard library's class too where it is patched in place ──

_converted: Final = stdlib._intenum_converter  # type: ignore[attr-defined]  # as the standard library's property
_plain_init: Final = StdlibSocket.__init__
_stdlib_accept: Final = StdlibSocket.accept
_stdlib_dup: Final = StdlibSocket.dup


def _wait_inline(sock: socket, identity: Identity) -> None:
    """Before a recv(): see inline_io.wait()."""
    seconds = sock.gettimeout()
    if seconds != 0 and _RECEIVE_TIMEOUT not in identity.options:
        until = 0
        while until := inline_io.wait(running_engine(), identity.cookie, sock, seconds, until):
            pass  # a signal's handlers run here


def _has_buffer_room(args: Positional, kwargs: Named) -> bool:
    """Whether recv_into()'s or recvfrom_into()'s buffer has room, so that 0 means the end of the stream."""
    return bool(len(args[0] if args else kwargs["buffer"]))


def _copied_at_end(identity: Identity, args: Positional, kwargs: Named) -> int:
    """recv_into() or recvfrom_into() at the end of the stream, where bytes that came after SHUT_RD may wait."""
    view = memoryview(args[0] if args else kwargs["buffer"]).cast("B")
    count = (args[1] if len(args) > 1 else kwargs.get("nbytes", 0)) or len(view)
    data = errors.at_end(identity, count, args[2] if len(args) > 2 else kwargs.get("flags", 0))
    view[: len(data)] = data
    return len(data)


def _attach_identity(sock: socket, identity: Identity) -> None:
    """Make the socket object one of this uTP socket."""
    sock._at_end = closing.AtEnd(identity)
    sock._utp = identity


def _adopt(sock: socket, family: int, type: int, proto: int, fileno: int) -> None:
    """Initialize a socket object over an existing descriptor: uTP's, if the registry or the kernel's names say so."""
    if family in (-1, stdlib.AF_UNIX, *_STREAM_FAMILIES):
        # The C class must be given AF_UNIX where the descriptor is such: with another family it would read addresses
        # past their end. Only the kernel knows what the descriptor is, so it is asked first.
        _plain_init(sock, -1, -1, -1, fileno)
        if Socket.family.__get__(sock) == stdlib.AF_UNIX and (_is_loaded or _has_name_of_ours(sock)):
            if not _is_loaded:
                load()
            identity = registry.identity_of_fd(sock)
            if identity is not None:
                _attach_identity(sock, identity)
                identity.has_duplicates |= identity.user_fd not in (-1, sock.fileno())
                identity.user_fd = sock.fileno()
                registry.unpin(identity)
                number = stdlib.IPPROTO_TCP if proto == -1 else proto
                if number:
                    _plain_init(sock, stdlib.AF_UNIX, stdlib.SOCK_STREAM, number, fileno)
                return
        if (family, type, proto) == (-1, -1, -1):
            return
    _plain_init(sock, family, type, proto, fileno)

"""class socket: a stdlib socket whose fd is one end of an AF_UNIX stream pair, and whose bytes travel over uTP.

Read this first. For anything but an AF_INET or AF_INET6 stream this class *is* the stdlib's: `_utp` is None and every
method passes through. For a uTP socket recv, send, poll, dup, fork and friends are the kernel's own on a real fd
(DESIGN.md §5); what stands here is identity (who is at both ends), lifecycle (bind, listen, connect, accept, close) and
the errnos and addresses that TCP would give and AF_UNIX does not (SOCKETS.md §1, §2).

Every method calls the C class by name and never super(), so that utpsocket.monkey can put the same functions in place
of the stdlib class's own. Any thread may call. Sources: CPython's Lib/socket.py and Doc/library/socket.rst, tcp(7).
"""

from __future__ import annotations

import errno
import os
import secrets
import socket as stdlib
import sys
import time
from contextlib import closing
from typing import Any, Final
from weakref import WeakValueDictionary

from utpsocket import options, pairing
from utpsocket.engine import engine, names, running_engine, verbs
from utpsocket.engine.identity import Identity, Role
from utpsocket.engine.names import Address
from utpsocket.engine.native import Socket, allocate_lock, poll

_STREAM_FAMILIES: Final = (stdlib.AF_INET, stdlib.AF_INET6)
_TYPE_FLAGS: Final = getattr(stdlib, "SOCK_NONBLOCK", 0) | getattr(stdlib, "SOCK_CLOEXEC", 0)
_POLLOUT: Final = 0x004
_POLLERR_OR_HUP: Final = 0x018
_UNBOUND: Final = {stdlib.AF_INET: ("0.0.0.0", 0), stdlib.AF_INET6: ("::", 0, 0, 0)}
_IN_PROGRESS: Final = (errno.EINPROGRESS, errno.EALREADY)

_by_inode: WeakValueDictionary[int, Identity] = WeakValueDictionary()
_kept: dict[int, Identity] = {}  # of fds that were detached: no Python object stands for them any more


def _fail(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def _is_stream(family: Any, type: Any, proto: Any) -> bool:
    return (
        family in _STREAM_FAMILIES
        and (type & ~_TYPE_FLAGS) == stdlib.SOCK_STREAM
        and proto in (0, stdlib.IPPROTO_TCP)
    )


def _register(sock: Any, identity: Identity) -> None:
    fd = sock.fileno()
    identity.user_fd = fd
    identity.inode = os.fstat(fd).st_ino
    _by_inode[identity.inode] = identity


def identity_of_fd(sock: Any) -> Identity | None:
    """The uTP identity behind a Python socket over an AF_UNIX fd, None for a genuine AF_UNIX socket.

    First by inode, which survives dup and detach; then by the names in the kernel, which survive fork, exec and
    SCM_RIGHTS.
    """
    try:
        inode = os.fstat(sock.fileno()).st_ino
    except OSError:
        return None
    identity = _by_inode.get(inode)
    if identity is not None:
        return identity
    identity = _identity_from_names(sock)
    if identity is not None:
        _register(sock, identity)
    return identity


def _identity_from_names(sock: Any) -> Identity | None:
    try:
        found = names.decode(Socket.getpeername(sock))
    except OSError:
        found = None
    if found is not None:
        cookie, pid, local, peer = found
        loop = running_engine()
        if loop is not None and loop.pid == pid and cookie in loop.bridges:
            return loop.bridges[cookie].identity
        identity = Identity(_family_of(local))
        identity.cookie, identity.owner_pid = cookie, pid
        identity.local, identity.peer = local, peer
        identity.role = Role.CONNECTED
        return identity
    listening = names.decode_listener(Socket.getsockname(sock))
    if listening is not None:
        cookie, pid, local = listening
        identity = Identity(_family_of(local))
        identity.cookie, identity.owner_pid, identity.local = cookie, pid, local
        identity.role = Role.LISTENING
        return identity
    return None


def _family_of(address: Address) -> int:
    return int(stdlib.AF_INET6 if len(address) == 4 else stdlib.AF_INET)


class socket(stdlib.socket):
    """socket(family=AF_INET, type=SOCK_STREAM, proto=0, fileno=None) -> socket object

    The stdlib's socket.socket, except that AF_INET and AF_INET6 streams speak uTP (BEP 29) instead of TCP.
    """

    __slots__ = ("_utp",)

    _utp: Identity | None

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
        _plain_init(self, stdlib.AF_UNIX, kind, 0, None)
        if number:
            _plain_init(self, stdlib.AF_UNIX, kind, number, self.fileno())  # remembered; socket(2) would refuse it
        identity = Identity(int(wanted))
        self._utp = identity
        _register(self, identity)

    # ── identity ──

    @property
    def family(self) -> stdlib.AddressFamily:
        """Address family: AF_INET or AF_INET6 for a uTP socket."""
        identity = self._utp
        return _converted(Socket.family.__get__(self) if identity is None else identity.family, stdlib.AddressFamily)

    def getsockname(self) -> Any:
        """Our address: where the UDP port is bound."""
        identity = self._utp
        if identity is None:
            return Socket.getsockname(self)
        _check_open(self)
        return identity.local or _UNBOUND[stdlib.AddressFamily(identity.family)]

    def getpeername(self) -> Any:
        """The peer's address. Raises ENOTCONN where there is no connection (any more)."""
        identity = self._utp
        if identity is None:
            return Socket.getpeername(self)
        _check_open(self)
        if identity.role is Role.CONNECTING:
            _notice(self, identity)
        if identity.role is not Role.CONNECTED or identity.is_over:
            raise _fail(errno.ENOTCONN)
        return identity.peer

    def getsockopt(self, level: int, optname: int, /, *buflen: int) -> Any:
        """As socket.getsockopt(); see utpsocket.options for what each option means here."""
        identity = self._utp
        if identity is None:
            return Socket.getsockopt(self, level, optname, *buflen)
        _check_open(self)
        if (level, optname) == (stdlib.SOL_SOCKET, stdlib.SO_ERROR) and (not buflen or 0 <= buflen[0] <= 1_024):
            error = _take_error(self, identity)
            return error.to_bytes(4, sys.byteorder)[: buflen[0]] if buflen and buflen[0] else error
        if (level, optname) == (options.SOL_UTP, options.UTP_INFO):
            return connection_stats(identity)
        return options.get_option(self, identity, level, optname, *buflen)

    def setsockopt(self, level: int, optname: int, value: Any, /, *optlen: Any) -> None:
        """As socket.setsockopt(); see utpsocket.options for what each option means here."""
        identity = self._utp
        if identity is None:
            Socket.setsockopt(self, level, optname, value, *optlen)
            return
        _check_open(self)
        if options.set_option(self, identity, level, optname, value, *optlen) and identity.cookie:
            loop = running_engine()
            if loop is not None:
                loop.post(lambda: verbs.apply(loop, identity.cookie))

    # ── lifecycle ──

    def bind(self, address: Any, /) -> None:
        """Bind to a UDP port. Raises what TCP's bind would; EADDRINUSE unless both sides said SO_REUSEADDR."""
        identity = self._utp
        if identity is None:
            Socket.bind(self, address)
            return
        _check_open(self)
        if identity.endpoint or identity.role is not Role.FRESH:
            raise _fail(errno.EINVAL)
        _bind(self, identity, address)

    def listen(self, backlog: int = 128, /) -> None:
        """Accept uTP connections at the bound port, or at a port of the kernel's choice."""
        identity = self._utp
        if identity is None:
            Socket.listen(self, backlog)
            return
        _check_open(self)
        if identity.role is Role.LISTENING:
            Socket.listen(self, backlog)
        elif identity.role is not Role.FRESH:
            raise _fail(errno.EINVAL)
        else:
            if not identity.endpoint:
                _bind(self, identity, ("", 0))
            assert identity.local is not None
            name = names.encode_listener(identity.cookie, identity.local)
            Socket.bind(self, name)
            Socket.listen(self, backlog)
            loop = engine()
            loop.call(lambda: verbs.listen(loop, identity.endpoint, identity, name, max(1, backlog)))
            identity.role = Role.LISTENING

    def _accept(self) -> tuple[int, Any]:
        """_accept() -> (integer fd, address info): the next incoming connection's bare fd."""
        identity = self._utp
        while True:
            fd, name = Socket._accept(self)
            if identity is None:
                return int(fd), name
            raw = Socket(fileno=fd)
            try:
                found = names.decode(name)
                if found is not None and pairing.comes_from(raw, identity.owner_pid):
                    return int(raw.detach()), found[3]
            finally:
                raw.close()  # a stranger who found the listening name: anyone on this machine can connect to it

    def accept(self) -> tuple[Any, Any]:
        """accept() -> (socket object, address info): the next incoming connection."""
        identity = self._utp
        if identity is None:
            return _stdlib_accept(self)
        fd, peer = socket._accept(self)
        made = socket if isinstance(self, socket) else stdlib.socket
        sock = made(self.family, self.type, self.proto, fileno=fd)
        if identity.settings.send_buffer_bytes and sock._utp is not None:
            options.apply_send_buffer(sock, sock._utp)
        if stdlib.getdefaulttimeout() is None and self.gettimeout():
            sock.setblocking(True)
        return sock, peer

    def connect(self, address: Any, /) -> None:
        """Connect to a uTP peer. Raises what TCP's connect would: ConnectionRefusedError, TimeoutError, …"""
        identity = self._utp
        if identity is None:
            Socket.connect(self, address)
            return
        code = _connect(self, identity, address)
        if code in _IN_PROGRESS:
            if self.gettimeout() == 0:
                raise _fail(code)
            code = self._wait_connected(identity)
        if code:
            raise _fail(code)

    def connect_ex(self, address: Any, /) -> int:
        """connect(), with errors of the connection returned as an errno instead of raised."""
        identity = self._utp
        if identity is None:
            return int(Socket.connect_ex(self, address))
        try:
            code = _connect(self, identity, address)
        except stdlib.gaierror:
            raise
        except OSError as error:
            if error.errno is None:
                raise
            return error.errno
        if code in _IN_PROGRESS and self.gettimeout() != 0:
            try:
                code = self._wait_connected(identity)
            except TimeoutError:
                return errno.EAGAIN
        return code

    def _wait_connected(self, identity: Identity) -> int:
        """Block until the connection attempt ends or the timeout runs out; the errno it ended with."""
        timeout = self.gettimeout()
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if self._wait_writable(None if deadline is None else deadline - time.monotonic()):
                code = _notice(self, identity)
                if code not in _IN_PROGRESS:
                    identity.is_told = True
                    return code
            elif deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError("timed out")

    def _wait_writable(self, timeout: float | None) -> bool:
        """Block until the fd is writable or in error; False when `timeout` seconds pass. A flavour of this class for
        green threads waits in its own way.
        """
        poller = poll()
        poller.register(self.fileno(), _POLLOUT)
        return bool(poller.poll(None if timeout is None else max(0, timeout) * 1_000))

    def shutdown(self, how: int, /) -> None:
        """Shut down one or both halves: SHUT_WR sends our FIN after everything written."""
        identity = self._utp
        if identity is None:
            Socket.shutdown(self, how)
            return
        _check_open(self)
        if how not in (stdlib.SHUT_RD, stdlib.SHUT_WR, stdlib.SHUT_RDWR):
            raise _fail(errno.EINVAL)
        if identity.role is Role.FRESH or identity.role is Role.FAILED or identity.is_over:
            raise _fail(errno.ENOTCONN)
        Socket.shutdown(self, how)
        if identity.role is Role.LISTENING and how != stdlib.SHUT_WR:
            loop = running_engine()
            if loop is not None and loop.pid == identity.owner_pid:
                loop.call(lambda: verbs.stop_listening(loop, identity.endpoint, identity.inode))

    def _real_close(self, _ss: Any = Socket) -> None:
        identity = self._utp
        if identity is None:
            Socket.close(self)
            return
        try:
            Socket.close(self)
        finally:
            _after_close(identity)

    def detach(self) -> int:
        """Close the socket object without closing the fd, which is returned."""
        identity = self._utp
        self._closed = True
        if identity is not None and self.fileno() >= 0:
            _kept[identity.inode] = identity
        return int(Socket.detach(self))

    def __del__(self) -> None:
        identity = self._utp if hasattr(self, "_utp") else None
        was_open = identity is not None and self.fileno() >= 0
        Socket.__del__(self)
        if identity is not None and was_open and self.fileno() < 0 and not sys.is_finalizing():
            _after_close(identity, wait=False)

    # ── data ──

    def recv(self, *args: Any, **kwargs: Any) -> bytes:
        """As socket.recv()."""
        identity = self._utp
        if identity is None:
            return bytes(Socket.recv(self, *args, **kwargs))
        try:
            data: bytes = Socket.recv(self, *args, **kwargs)
        except OSError as error:
            raise _receive_error(identity, error) from None
        if not data and identity.error and args[0]:
            _raise_at_end(identity)
        return data

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        """As socket.recv_into()."""
        identity = self._utp
        try:
            count: int = Socket.recv_into(self, *args, **kwargs)
        except OSError as error:
            if identity is None:
                raise
            raise _receive_error(identity, error) from None
        if not count and identity is not None and identity.error and len(args[0]):
            _raise_at_end(identity)
        return count

    def recvfrom(self, *args: Any, **kwargs: Any) -> tuple[bytes, Any]:
        """As socket.recvfrom(): for a stream the address is None."""
        if self._utp is None:
            result: tuple[bytes, Any] = Socket.recvfrom(self, *args, **kwargs)
            return result
        return socket.recv(self, *args, **kwargs), None

    def recvfrom_into(self, *args: Any, **kwargs: Any) -> tuple[int, Any]:
        """As socket.recvfrom_into(): for a stream the address is None."""
        if self._utp is None:
            result: tuple[int, Any] = Socket.recvfrom_into(self, *args, **kwargs)
            return result
        return socket.recv_into(self, *args, **kwargs), None

    def recvmsg(self, *args: Any, **kwargs: Any) -> tuple[bytes, list[Any], int, Any]:
        """As socket.recvmsg(): for a stream the address is None, and uTP has no ancillary data."""
        identity = self._utp
        try:
            data, ancillary, flags, address = Socket.recvmsg(self, *args, **kwargs)
        except OSError as error:
            if identity is None:
                raise
            raise _receive_error(identity, error) from None
        if identity is None:
            return data, ancillary, flags, address
        if not data and identity.error and args[0]:
            _raise_at_end(identity)
        return data, [], flags, None

    def recvmsg_into(self, *args: Any, **kwargs: Any) -> tuple[int, list[Any], int, Any]:
        """As socket.recvmsg_into(): for a stream the address is None, and uTP has no ancillary data."""
        identity = self._utp
        try:
            count, ancillary, flags, address = Socket.recvmsg_into(self, *args, **kwargs)
        except OSError as error:
            if identity is None:
                raise
            raise _receive_error(identity, error) from None
        if identity is None:
            return count, ancillary, flags, address
        return count, [], flags, None

    def send(self, data: Any, flags: int = 0, /) -> int:
        """As socket.send()."""
        identity = self._utp
        if identity is None:
            return int(Socket.send(self, data, flags))
        _before_send(self, identity, flags)
        try:
            return int(Socket.send(self, data, flags))
        except OSError as error:
            raise _send_error(self, identity, error) from None

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """As socket.sendall()."""
        identity = self._utp
        if identity is None:
            Socket.sendall(self, data, flags)
            return
        _before_send(self, identity, flags)
        try:
            Socket.sendall(self, data, flags)
        except OSError as error:
            raise _send_error(self, identity, error) from None

    def sendto(self, data: Any, *args: Any) -> int:
        """As socket.sendto(): a stream checks the address and ignores it, as TCP does."""
        if self._utp is None:
            return int(Socket.sendto(self, data, *args))
        if not 1 <= len(args) <= 2:
            with closing(Socket(stdlib.AF_INET, stdlib.SOCK_DGRAM)) as udp:
                return int(udp.sendto(data, *args))  # raises with the stdlib's wording
        flags = args[0] if len(args) == 2 else 0
        return socket.send(self, data, flags)

    def sendmsg(self, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None, /) -> int:
        """As socket.sendmsg(): ancillary data is checked and dropped, uTP carries none."""
        identity = self._utp
        if identity is None:
            return int(Socket.sendmsg(self, buffers, ancdata, flags, *(() if address is None else (address,))))
        if ancdata != () and ancdata != []:
            ancdata = list(ancdata) if hasattr(ancdata, "__iter__") else ancdata
            _check_ancillary(ancdata)
        _before_send(self, identity, flags)
        try:
            return int(Socket.sendmsg(self, buffers, (), flags))
        except OSError as error:
            raise _send_error(self, identity, error) from None


# ── what the methods share: functions, so that they serve the stdlib class patched in place as well ──

_converted: Final = stdlib._intenum_converter  # type: ignore[attr-defined]  # what the stdlib's property uses
_plain_init: Final = stdlib.socket.__init__
_stdlib_accept: Final = stdlib.socket.accept


def _adopt(sock: Any, family: int, type: int, proto: int, fileno: int) -> None:
    """A socket object over an existing fd: uTP's if the kernel or our registry says so."""
    if family in (-1, stdlib.AF_UNIX, *_STREAM_FAMILIES):
        # The C class must believe in AF_UNIX where the fd is: with another family it would read addresses past their
        # end. Only the kernel knows what the fd is, so it is asked first.
        _plain_init(sock, -1, -1, -1, fileno)
        if Socket.family.__get__(sock) == stdlib.AF_UNIX:
            identity = identity_of_fd(sock)
            if identity is not None:
                sock._utp = identity
                identity.user_fd = sock.fileno()
                _kept.pop(identity.inode, None)
                number = stdlib.IPPROTO_TCP if proto == -1 else proto
                if number:
                    _plain_init(sock, stdlib.AF_UNIX, stdlib.SOCK_STREAM, number, fileno)
                return
        if (family, type, proto) == (-1, -1, -1):
            return
    _plain_init(sock, family, type, proto, fileno)


def _check_open(sock: Any) -> None:
    if sock.fileno() < 0:
        raise _fail(errno.EBADF)


def _bind(sock: Any, identity: Identity, address: Any) -> None:
    """The kernel judges the address on a UDP socket, which then becomes the engine's port."""
    loop = engine()
    reuse = bool(identity.options.get((stdlib.SOL_SOCKET, stdlib.SO_REUSEADDR)))
    for _ in range(3):
        udp = options.udp_socket(identity)
        try:
            try:
                udp.bind(address)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                local = _resolved(identity, address)
                try:
                    key = loop.call(lambda: verbs.share_port(loop, local, identity, reuse=reuse))
                except BlockingIOError:
                    continue
                identity.local = local
            else:
                identity.local = udp.getsockname()
                fd = udp.detach()
                key = loop.call(lambda: verbs.adopt_port(loop, fd, identity, reuse=reuse))
        finally:
            udp.close()
        loop.holders_watch.watch(sock.fileno())
        identity.endpoint = key
        identity.cookie = secrets.randbits(63)
        identity.owner_pid = loop.pid
        return
    raise _fail(errno.EADDRINUSE)


def _resolved(identity: Identity, address: Any) -> Address:
    """The numeric form of an address that bind() has understood."""
    host, port = address[0], address[1]
    if not host:
        return _UNBOUND[stdlib.AddressFamily(identity.family)][:1] + (port, *address[2:])  # type: ignore[return-value]
    found: Any = stdlib.getaddrinfo(host, port, identity.family, stdlib.SOCK_DGRAM)[0][4]
    return found  # type: ignore[no-any-return]


def _connect(sock: Any, identity: Identity, address: Any) -> int:
    """Begin to connect, or say how the attempt under way stands: EINPROGRESS, EALREADY, an errno, or 0."""
    _check_open(sock)
    role = identity.role
    if role is Role.CONNECTING:
        code = _notice(sock, identity)
        if code == errno.EINPROGRESS:
            return errno.EALREADY
        identity.is_told = True
        return code
    if role is Role.CONNECTED and not identity.is_told and not identity.is_over:
        identity.is_told = True
        return _notice(sock, identity)
    if role is Role.CONNECTED or role is Role.LISTENING:
        raise _fail(errno.EISCONN)
    if role is Role.FAILED:
        error = identity.take_error()
        _renew(sock, identity)
        if error:
            return error
    loop = engine()
    with closing(options.udp_socket(identity)) as udp:
        udp.connect(address)
        peer, local = udp.getpeername(), udp.getsockname()
        if not peer[1]:
            return errno.ECONNREFUSED
        if identity.endpoint:
            bound = identity.local
            assert bound is not None
            identity.local = (local[0], *bound[1:]) if bound[0] in ("0.0.0.0", "::") else bound
        else:
            identity.local = local
        identity.peer = peer
        identity.cookie = secrets.randbits(63)
        identity.owner_pid = loop.pid
        end_fd = pairing.pair(sock, identity)
        identity.role = Role.CONNECTING
        if identity.endpoint:
            loop.post(lambda: verbs.dial_from(loop, identity.endpoint, peer, identity, end_fd))
        else:
            udp_fd = udp.detach()
            loop.post(lambda: verbs.dial_private(loop, udp_fd, identity, end_fd))
    return errno.EINPROGRESS


def _renew(sock: Any, identity: Identity) -> None:
    """After a failed attempt: a fresh fd under the same number."""
    _by_inode.pop(identity.inode, None)
    pairing.renew(sock)
    identity.role = Role.FRESH
    identity.is_over = identity.is_reset = identity.is_gated = identity.is_told = False
    if not identity.endpoint:
        identity.local = None
    identity.peer = None
    _register(sock, identity)


def _notice(sock: Any, identity: Identity) -> int:
    """What has become of a connection attempt: EINPROGRESS, 0, or its errno, which is then told once."""
    if identity.owner_pid != os.getpid():
        # Forked while connecting: the parent's engine tells the kernel, not us.
        poller = poll()
        poller.register(sock.fileno(), _POLLOUT)
        for _, mask in poller.poll(0):
            if mask & _POLLERR_OR_HUP:
                identity.role, identity.error = Role.FAILED, errno.ECONNREFUSED
            else:
                identity.role = Role.CONNECTED
    if identity.role is Role.CONNECTED:
        if identity.is_gated:
            pairing.open_gate(sock, identity)
        return 0
    if identity.role is Role.FAILED:
        error = identity.take_error()
        if error:
            Socket.getsockopt(sock, stdlib.SOL_SOCKET, stdlib.SO_ERROR)
        return error or errno.ECONNABORTED
    return errno.EINPROGRESS


def _take_error(sock: Any, identity: Identity) -> int:
    """SO_ERROR: the errno of what went wrong, once."""
    if identity.role is Role.CONNECTING:
        code = _notice(sock, identity)
        return 0 if code == errno.EINPROGRESS else code
    if identity.is_gated:
        pairing.open_gate(sock, identity)
    kernels = int(Socket.getsockopt(sock, stdlib.SOL_SOCKET, stdlib.SO_ERROR))
    return identity.take_error() or kernels


def _after_close(identity: Identity, *, wait: bool = True) -> None:
    """The engine hears of a close that the kernel cannot tell it: of a bound or listening socket, or with linger."""
    loop = running_engine()
    if loop is None or loop.pid != os.getpid() or not loop.is_alive:
        return
    if identity.role in (Role.FRESH, Role.LISTENING):
        if identity.endpoint:
            _tell(loop, lambda: verbs.release(loop, identity.endpoint, identity.inode), wait=wait)
        return
    seconds = identity.settings.linger_seconds
    if seconds is None or not wait:
        return
    loop.call(lambda: verbs.look(loop, identity.cookie))
    if seconds:
        flushed = allocate_lock()
        flushed.acquire()
        loop.post(lambda: verbs.when_flushed(loop, identity.cookie, flushed.release))
        flushed.acquire(True, seconds)


def _tell(loop: Any, command: Any, *, wait: bool) -> None:
    if wait:
        loop.call(command)  # the port must be free when close() returns: the next bind may want it
    else:
        loop.post(command)


def _receive_error(identity: Identity, error: OSError) -> OSError:
    """What TCP's recv would say where AF_UNIX's says this."""
    if error.errno in (errno.EINVAL, errno.ENOTCONN) and identity.role in (Role.FRESH, Role.LISTENING):
        return _fail(errno.ENOTCONN)
    if error.errno == errno.ECONNRESET:
        return _fail(identity.take_error() or errno.ECONNRESET)
    return error


def _raise_at_end(identity: Identity) -> None:
    """The stream ended for a reason that the kernel could not tell."""
    code = identity.take_error()
    if code:
        raise _fail(code)


def _before_send(sock: Any, identity: Identity, flags: int) -> None:
    if identity.is_gated and identity.role is Role.CONNECTED:
        pairing.open_gate(sock, identity)
    if flags & stdlib.MSG_OOB:
        raise _fail(errno.EOPNOTSUPP)


def _send_error(sock: Any, identity: Identity, error: OSError) -> OSError:
    """What TCP's send would say where AF_UNIX's says this."""
    if error.errno == errno.ENOTCONN:
        return _fail(errno.EPIPE)
    if error.errno in (errno.EPIPE, errno.ECONNRESET):
        code = identity.take_error()
        if code:
            Socket.getsockopt(sock, stdlib.SOL_SOCKET, stdlib.SO_ERROR)
            return _fail(errno.ECONNRESET if code == errno.EPIPE else code)
    return error


def _check_ancillary(ancdata: Any) -> None:
    """Raise what sendmsg() raises for malformed ancillary data: the C class judges, on a socket that goes nowhere."""
    with closing(Socket(stdlib.AF_UNIX, stdlib.SOCK_DGRAM)) as judge:
        try:
            judge.sendmsg([], ancdata)
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.EDESTADDRREQ, errno.EINVAL):
                raise


def connection_stats(identity: Identity) -> Any:
    """ConnectionStats of the connection behind a socket; raises ENOTCONN when there is none in this process."""
    loop = running_engine()
    bridge = None if loop is None else loop.bridges.get(identity.cookie)
    if loop is None or bridge is None:
        raise _fail(errno.ENOTCONN)
    return loop.call(bridge.connection.stats)

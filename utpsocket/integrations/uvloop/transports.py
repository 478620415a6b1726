"""uTP sockets used by uvloop: what libuv gets, and what the program gets.

libuv gets a `UnixStreamAdapter`, which looks like an AF_UNIX stream. The program's protocol gets a `Transport` whose
addresses and socket are uTP's. An `InitialProtocol` is the first protocol of a transport; it puts the program's own in
its place.

A transport is used on its loop's thread only. Sources: uvloop 0.23, handles/ and pseudosock.pyx; docs/sockets.md §5.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, cast
from weakref import WeakValueDictionary

from utpsocket.engine.interpreter.native import Socket, StdlibSocket
from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.kernel import fd_names
from utpsocket.engine.user_fds.socket_state import Identity, Role
from utpsocket.sockets import closing, lifecycle, option_calls, registry

if TYPE_CHECKING:
    from _typeshed import HasFileno, ReadableBuffer

    from utpsocket.protocol import Address
    from utpsocket.sockets import shim

    # Ours, or the standard library's while that is patched, with the same methods.
    UtpSocket = shim.socket


class UnixStreamAdapter:
    """A uTP socket as the AF_UNIX stream that it is to the kernel, with the methods that uvloop calls."""

    family = stdlib.AF_UNIX
    type = stdlib.SOCK_STREAM

    def __init__(self, sock: UtpSocket) -> None:
        self.sock = sock
        self._is_taken = False

    def fileno(self) -> int:
        """The descriptor, which libuv uses from now on. A close() of the socket waits until libuv has closed it."""
        if not self._is_taken:
            self._is_taken = True
            self.sock._io_refs += 1  # type: ignore[attr-defined]  # of socket.socket, of which type checkers do not know
        return self.sock.fileno()

    def setblocking(self, flag: bool) -> None:
        """As socket.setblocking()."""
        self.sock.setblocking(flag)

    def getsockname(self) -> bytes:
        """The abstract name; for a socket that does not listen yet the first byte of one.

        On Python 3.13 and later asyncio unlinks the paths of sockets, and uvloop recognizes an abstract name by this
        byte.
        """
        name: bytes = Socket.getsockname(self.sock)
        return name or b"\0"

    def close(self) -> None:
        """Note that libuv has closed the descriptor."""
        identity = self.sock._utp
        if identity is not None and self.sock.fileno() >= 0:
            self.sock.detach()
            registry.unpin(identity)
            closing.after_close(identity, self.sock._acquire)

    detach = close


class View:
    """get_extra_info("socket"): the uTP socket behind a transport, without methods that would take it from the loop."""

    def __init__(self, uvloop_sock: HasFileno, identity: Identity, made: type[StdlibSocket]) -> None:
        # uvloop's own view, which knows whether the descriptor is open.
        self._uvloop_sock = uvloop_sock
        self._identity = identity
        self._made = made

    @property
    def family(self) -> stdlib.AddressFamily:
        """AF_INET or AF_INET6."""
        return stdlib.AddressFamily(self._identity.family)

    @property
    def type(self) -> stdlib.SocketKind:
        """SOCK_STREAM."""
        return stdlib.SOCK_STREAM

    @property
    def proto(self) -> int:
        """The protocol number of a stream socket that was made without one."""
        return 0

    def fileno(self) -> int:
        """The fd, -1 once the transport is closed."""
        return self._uvloop_sock.fileno()

    def getsockname(self) -> Address:
        """The address of this end."""
        return self._identity.local or lifecycle.UNBOUND[self._identity.family]

    def getpeername(self) -> Address:
        """The peer's address, also after the end; raises ENOTCONN for a listener."""
        if self._identity.peer is None:
            raise lifecycle.os_error(errno.ENOTCONN)
        return self._identity.peer

    def getsockopt(self, level: int, optname: int, /, *buflen: int) -> Any:
        """As socket.getsockopt()."""
        with self._borrowed() as sock:
            return sock.getsockopt(level, optname, *buflen)

    def setsockopt(self, level: int, optname: int, value: int | ReadableBuffer | None, /, *optlen: int) -> None:
        """As socket.setsockopt()."""
        with self._borrowed() as sock:
            sock.setsockopt(level, optname, value, *optlen)

    def dup(self) -> StdlibSocket:
        """A socket for the program, with a duplicate of the descriptor."""
        with self._borrowed() as sock:
            copy = sock.dup()
            copy.setblocking(False)
            return copy

    def get_inheritable(self) -> bool:
        """As socket.get_inheritable()."""
        return os.get_inheritable(self.fileno())

    def set_inheritable(self, inheritable: bool) -> None:
        """As socket.set_inheritable()."""
        os.set_inheritable(self.fileno(), inheritable)

    def gettimeout(self) -> int:
        """0: transports do not block."""
        return 0

    def settimeout(self, value: float | None) -> None:
        """Only 0."""
        if value != 0:
            raise ValueError("settimeout(): only 0 timeout is allowed on transport sockets")

    def setblocking(self, flag: bool) -> None:
        """Only False."""
        if flag:
            raise ValueError("setblocking(): transport sockets cannot be blocking")

    def __repr__(self) -> str:
        words = [f"fd={self.fileno()}, family={self.family.name}, type={self.type.name}, proto={self.proto}"]
        if self.fileno() >= 0:
            words.append(f"laddr={self.getsockname()}")
            words += [f"raddr={self._identity.peer}"] if self._identity.peer else []
        return f"<utpsocket transport socket {', '.join(words)}>"

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if not callable(getattr(stdlib.socket, name, None)):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

        def refuse(*args: object, **named: object) -> NoReturn:
            raise TypeError(f"transport sockets do not support {name}() method")

        return refuse

    @contextmanager
    def _borrowed(self) -> Iterator[StdlibSocket]:
        """A socket object over libuv's descriptor, for one call."""
        fd = self.fileno()
        if fd < 0:
            raise lifecycle.os_error(errno.EBADF)
        sock = self._made(fileno=fd)
        try:
            yield sock
        finally:
            sock.detach()
            registry.unpin(self._identity)


Data = bytes | bytearray | memoryview


class Transport(asyncio.Transport):
    """uvloop's transport with the addresses of a uTP socket, and with TCP's name in repr() and in messages."""

    __slots__ = (
        "__weakref__",
        "_has_returned_socket",
        "inner",
        "is_closing",
        "pause_reading",
        "resume_reading",
        "view",
    )

    def __init__(self, inner: asyncio.Transport, view: View) -> None:
        super().__init__()
        self.inner = inner
        self.view = view
        self._has_returned_socket = False
        _transports[id(inner)] = self
        for name in ("is_closing", "pause_reading", "resume_reading"):
            setattr(self, name, getattr(inner, name))

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As of an asyncio transport over TCP."""
        if name == "socket":
            if not self._has_returned_socket and self.view.fileno() < 0:
                return None  # as uvloop's, which makes its view at the first call
            self._has_returned_socket = True
            return self.view
        if name == "sockname":
            return self.view.getsockname()
        if name == "peername":
            return self.view.getpeername()
        return self.inner.get_extra_info(name, default)

    def close(self) -> None:
        """As asyncio's."""
        self.inner.close()

    def abort(self) -> None:
        """As asyncio's."""
        self.inner.abort()

    # On a closed transport uvloop's own raise with the name of its transport; these put this class's name there.

    def write(self, data: Data) -> None:
        """As asyncio's."""
        try:
            self.inner.write(data)
        except RuntimeError as error:
            put_tcp_name(error)
            raise

    def writelines(self, list_of_data: Iterable[Data]) -> None:
        """As asyncio's."""
        try:
            self.inner.writelines(list_of_data)
        except RuntimeError as error:
            put_tcp_name(error)
            raise

    def write_eof(self) -> None:
        """As asyncio's."""
        try:
            self.inner.write_eof()
        except RuntimeError as error:
            put_tcp_name(error)
            raise

    def can_write_eof(self) -> bool:
        """As asyncio's."""
        return self.inner.can_write_eof()

    def is_reading(self) -> bool:
        """As asyncio's."""
        return self.inner.is_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """As asyncio's."""
        self.inner.set_protocol(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """As asyncio's."""
        return self.inner.get_protocol()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """As asyncio's."""
        try:
            self.inner.set_write_buffer_limits(high, low)
        except RuntimeError as error:
            put_tcp_name(error)
            raise

    def get_write_buffer_size(self) -> int:
        """As asyncio's."""
        return self.inner.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """As asyncio's."""
        return self.inner.get_write_buffer_limits()

    def __getattr__(self, name: str) -> Any:
        # What uvloop's transport has beside asyncio's interface.
        return getattr(self.inner, name)

    def __repr__(self) -> str:
        return with_tcp_name(repr(self.inner))


# By the id of uvloop's own transport, which each of them refers to.
_transports: WeakValueDictionary[int, Transport] = WeakValueDictionary()


def with_tcp_name(text: str) -> str:
    """A message of uvloop's about one of its transports, in the form that it has for TCP's."""
    return text.replace("UnixTransport", "TCPTransport")


def put_tcp_name(error: RuntimeError) -> None:
    """The same for an exception of uvloop's, with its traceback."""
    error.args = tuple(with_tcp_name(word) if isinstance(word, str) else word for word in error.args)


def with_our_transport(context: dict[str, object]) -> dict[str, object]:
    """The context for a loop's exception handler, with the program's transport in the place of uvloop's."""
    found = _transports.get(id(context.get("transport")))
    if found is None:
        return context
    return context | {"transport": found, "message": with_tcp_name(str(context.get("message")))}


class SSLTransport(Transport):
    """The same over TLS: programs look for "SSL" in the name of the class, as in that of uvloop's."""

    __slots__ = ()


class InitialProtocol(asyncio.Protocol):
    """The first protocol of a transport: wraps it, then puts the program's own protocol in its place.

    owner_pid   of the engine that serves the listening socket, for a connection that C code has accepted
    """

    def __init__(
        self,
        protocol: asyncio.BaseProtocol,
        made: type[StdlibSocket],
        *,
        identity: Identity | None = None,
        owner_pid: int = 0,
    ) -> None:
        self.protocol = protocol
        self.transport: Transport | None = None
        self._made = made
        self._identity = identity
        self._owner_pid = owner_pid

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Once per connection, and after a TLS handshake if there is one."""
        inner = cast("asyncio.Transport", transport)
        uvloop_sock: HasFileno = inner.get_extra_info("socket")
        identity = self._identity or self._accepted(uvloop_sock.fileno())
        if identity is None:
            inner.abort()  # another process of this machine has connected to the listening name
            return
        kind = Transport if inner.get_extra_info("sslcontext") is None else SSLTransport
        self.transport = kind(inner, View(uvloop_sock, identity, self._made))
        # As uvloop over TCP. This option asks nothing of the descriptor.
        option_calls.set_option(None, identity, stdlib.IPPROTO_TCP, stdlib.TCP_NODELAY, 1)  # type: ignore[arg-type]
        lifecycle.apply_options(identity, at_once=False, to_connection=True, is_nodelay=True)
        inner.set_protocol(self.protocol)
        self.protocol.connection_made(self.transport)

    def _accepted(self, fd: int) -> Identity | None:
        sock = self._made(fileno=fd)
        try:
            identity: Identity | None = getattr(sock, "_utp", None)
            if identity is None or fd_names.peer_credentials(sock)[0] != self._owner_pid:
                return None
            option_calls.apply_send_buffer(sock, identity)
            return identity
        finally:
            sock.detach()
            if identity is not None:
                registry.unpin(identity)


def _kept(loop: asyncio.AbstractEventLoop) -> set[Server]:
    """The servers of the loop that serve: it refers to them, as uvloop's loop does, where the program does not."""
    kept: set[Server] = vars(loop).setdefault("_utp_servers", set())
    return kept


def keep(server: Server) -> None:
    """Have the loop refer to the server until it is closed."""
    _kept(server.get_loop()).add(server)


class Server(asyncio.AbstractServer):
    """What create_server() returns: uvloop's servers, one for each listening socket, as one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, backlog: int, made: type[StdlibSocket]) -> None:
        self._loop = loop
        self._backlog = backlog
        self._made = made
        # uvloop's server, and the uTP socket at which it listens; None for TCP.
        self._parts: list[tuple[asyncio.Server, UtpSocket | None]] = []
        self._is_closed = False
        self._serving_future: asyncio.Future[None] | None = None

    def add(self, server: asyncio.Server, sock: UtpSocket | None) -> None:
        """Add a listening socket."""
        self._parts.append((server, sock))

    @property
    def sockets(self) -> tuple[StdlibSocket | View, ...]:
        """The listening sockets; none after close()."""
        views: list[StdlibSocket | View] = []
        for server, sock in self._parts:
            identity = None if sock is None else sock._utp
            views += [one if identity is None else View(one, identity, self._made) for one in server.sockets]
        return tuple(views)

    def __repr__(self) -> str:
        return f"<Server sockets={list(self.sockets)!r}>"

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """As asyncio's."""
        return self._loop

    def is_serving(self) -> bool:
        """As asyncio's."""
        return not self._is_closed and any(server.is_serving() for server, _ in self._parts)

    async def start_serving(self) -> None:
        """Begin to listen, unless that was done."""
        if self._is_closed:
            raise RuntimeError(f"server {self!r} is closed")
        for server, sock in self._parts:
            if sock is not None and sock._utp is not None and sock._utp.role is Role.UNCONNECTED:
                sock.listen(self._backlog)
            await server.start_serving()

    async def serve_forever(self) -> None:
        """Serve until this coroutine is cancelled; the server is then closed."""
        if self._serving_future is not None:
            raise RuntimeError(f"server {self!r} is already being awaited on serve_forever()")
        await self.start_serving()
        self._serving_future = self._loop.create_future()
        try:
            await self._serving_future
        except asyncio.CancelledError:
            self.close()
            await self.wait_closed()
            raise
        finally:
            self._serving_future = None

    def close(self) -> None:
        """End listening. Connections go on."""
        self._is_closed = True
        _kept(self._loop).discard(self)
        for server, _ in self._parts:
            server.close()
        if self._serving_future is not None and not self._serving_future.done():
            self._serving_future.cancel()

    async def wait_closed(self) -> None:
        """As uvloop's: wait until the last connection has ended."""
        for server, _ in self._parts:
            await server.wait_closed()

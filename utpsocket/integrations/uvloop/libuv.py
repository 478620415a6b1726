"""The methods of a uvloop loop that make transports, for sockets that may be uTP's.

Apart from utpsocket/loops.py, since this needs asyncio, which a patched program may never import. connect() and bind()
are done by the Python class, which decides whether a socket is uTP's. Then the raw descriptor is given to uvloop's
create_unix_connection() or create_unix_server(), and the program gets a transport whose addresses are uTP's. Other
sockets are given to uvloop as before.

A loop's methods are called on its thread only. Sources: uvloop 0.23, loop.pyx; docs/sockets.md §5.
"""

from __future__ import annotations

import os
import socket as stdlib
import sys
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from utpsocket.integrations.uvloop.transports import (
    InitialProtocol,
    Server,
    SSLTransport,
    Transport,
    UnixStreamAdapter,
    keep,
    put_tcp_name,
    with_our_transport,
)
from utpsocket.sockets import to_tcp

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, AbstractServer, BaseProtocol
    from asyncio import Transport as AnyTransport
    from collections.abc import Sequence
    from ssl import SSLContext
    from typing import TypeGuard

    from _typeshed import FileDescriptorLike, WriteableBuffer

    from utpsocket.engine.interpreter.native import StdlibSocket
    from utpsocket.engine.user_fds.socket_state import Identity
    from utpsocket.integrations.uvloop.transports import UtpSocket

    Factory = Callable[[], BaseProtocol]
    Host = str | Sequence[str] | None
    Connected = tuple[AnyTransport | None, BaseProtocol]
    Info = tuple[int, int, int, str, tuple[object, ...]]
else:
    AbstractEventLoop = object

_TLS_TIMES: Final = ("ssl_handshake_timeout", "ssl_shutdown_timeout")
_ABOUT_ADDRESSES: Final = ("family", "proto", "flags", "local_addr")


class Methods(AbstractEventLoop):
    """The methods that differ from uvloop's. Every one calls uvloop's class by name and never super(), so that the
    same functions serve uvloop.Loop changed in place. What they do not look at is given to uvloop as it came; asyncio's
    declarations list all of it.
    """

    # The class of the sockets of create_connection(host) and create_server(host), for uvloop.Loop changed in place.
    _utp_class: type[StdlibSocket] = stdlib.socket

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Factory, host: str | None = None, port: int | str | None = None, **named: Any
    ) -> Connected:
        """As asyncio's create_connection()."""
        base, made = _base(), self._utp_class
        sock = named.pop("sock", None)
        has_address = host is not None or port is not None
        is_ours = sock is None
        if sock is None and has_address and hasattr(made, "_utp"):
            _check_tls_times(named)
            if named.get("ssl") and named.get("server_hostname") is None:
                if not host:
                    raise ValueError("You must set server_hostname when using ssl without a host")
                named["server_hostname"] = host
            sock = await _connect(self, made, host, port, named)
            host = port = None
        elif has_address or not _is_utp(sock):
            result: Connected = await base.create_connection(self, protocol_factory, host, port, sock=sock, **named)
            return result
        for name in _ABOUT_ADDRESSES:
            named.pop(name, None)
        try:
            if not _is_utp(sock):  # the patch's rules send this address to TCP
                result = await base.create_connection(self, protocol_factory, sock=sock, **named)
                return result
            initial = InitialProtocol(protocol_factory(), made, identity=sock._utp)
            await base.create_unix_connection(self, lambda: initial, sock=UnixStreamAdapter(sock), **named)
        except BaseException:
            if is_ours and sock.fileno() >= 0:
                sock.close()
            raise
        return initial.transport, initial.protocol

    async def connect_accepted_socket(  # type: ignore[override]
        self, protocol_factory: Factory, sock: StdlibSocket, **named: Any
    ) -> Connected:
        """As asyncio's connect_accepted_socket()."""
        base = _base()
        if not _is_utp(sock):
            result: Connected = await base.connect_accepted_socket(self, protocol_factory, sock, **named)
            return result
        initial = InitialProtocol(protocol_factory(), self._utp_class, identity=sock._utp)
        await base.connect_accepted_socket(self, lambda: initial, UnixStreamAdapter(sock), **named)
        return initial.transport, initial.protocol

    async def create_server(  # type: ignore[override]
        self,
        protocol_factory: Factory,
        host: Host = None,
        port: int | str | None = None,
        *,
        family: int = stdlib.AF_UNSPEC,
        flags: int = stdlib.AI_PASSIVE,
        sock: StdlibSocket | None = None,
        backlog: int = 100,
        reuse_address: bool | None = None,
        reuse_port: bool | None = None,
        start_serving: bool = True,
        **named: Any,
    ) -> AbstractServer:
        """As asyncio's create_server()."""
        base, made = _base(), self._utp_class
        is_by_address = sock is None and (host is not None or port is not None) and hasattr(made, "_utp")
        if not is_by_address and (not _is_utp(sock) or host is not None or port is not None):
            named |= {"family": family, "flags": flags, "sock": sock, "backlog": backlog, "reuse_port": reuse_port}
            named |= {"reuse_address": reuse_address, "start_serving": start_serving}
            served: AbstractServer = await base.create_server(self, protocol_factory, host, port, **named)
            return served
        _check_tls_times(named)
        if is_by_address:
            socks = await _bind(self, made, host, port, family, flags, reuse_address is not False, bool(reuse_port))
        else:
            assert sock is not None
            socks = [sock]
        server = Server(self, backlog, made)
        try:
            while socks:
                one = socks.pop(0)
                identity: Identity | None = getattr(one, "_utp", None)
                if not _is_utp(one) or identity is None or to_tcp.listens_over_tcp(one, identity):
                    part = base.create_server(
                        self, protocol_factory, sock=one, backlog=backlog, start_serving=False, **named
                    )
                    server.add(await part, None)
                    continue
                factory = _initial_protocol_factory(protocol_factory, made, identity.owner_pid)
                named_part = {"sock": UnixStreamAdapter(one), "backlog": backlog, "start_serving": False} | named
                server.add(await base.create_unix_server(self, factory, **named_part), one)
            if start_serving:
                await server.start_serving()
            keep(server)
        except BaseException:
            server.close()
            for one in socks:
                one.close()
            raise
        return server

    def call_exception_handler(self, context: dict[str, object]) -> None:
        """As asyncio's call_exception_handler()."""
        _base().call_exception_handler(self, with_our_transport(context))

    # uvloop's own refuse a descriptor that a transport uses; these seven put the transport's name into the message.

    async def sock_recv(self, sock: StdlibSocket, n: int) -> bytes:
        """As asyncio's sock_recv()."""
        with _errors_with_tcp_name():
            return bytes(await _base().sock_recv(self, sock, n))

    async def sock_recv_into(self, sock: StdlibSocket, buf: WriteableBuffer) -> int:
        """As asyncio's sock_recv_into()."""
        with _errors_with_tcp_name():
            return int(await _base().sock_recv_into(self, sock, buf))

    async def sock_accept(self, sock: StdlibSocket) -> tuple[StdlibSocket, object]:
        """As asyncio's sock_accept()."""
        with _errors_with_tcp_name():
            conn, address = await _base().sock_accept(self, sock)
        return conn, address

    def add_reader(self, fileobj: FileDescriptorLike, callback: Callable[..., object], *args: object) -> None:
        """As asyncio's add_reader()."""
        with _errors_with_tcp_name():
            _base().add_reader(self, fileobj, callback, *args)

    def add_writer(self, fileobj: FileDescriptorLike, callback: Callable[..., object], *args: object) -> None:
        """As asyncio's add_writer()."""
        with _errors_with_tcp_name():
            _base().add_writer(self, fileobj, callback, *args)

    def remove_reader(self, fileobj: FileDescriptorLike) -> bool:
        """As asyncio's remove_reader()."""
        with _errors_with_tcp_name():
            return bool(_base().remove_reader(self, fileobj))

    def remove_writer(self, fileobj: FileDescriptorLike) -> bool:
        """As asyncio's remove_writer()."""
        with _errors_with_tcp_name():
            return bool(_base().remove_writer(self, fileobj))

    async def start_tls(  # type: ignore[override]
        self, transport: AnyTransport, protocol: BaseProtocol, sslcontext: SSLContext, **named: Any
    ) -> AnyTransport:
        """As asyncio's start_tls()."""
        base = _base()
        if not isinstance(transport, Transport):
            made: AnyTransport = await base.start_tls(self, transport, protocol, sslcontext, **named)
            return made
        inner = await base.start_tls(self, transport.inner, protocol, sslcontext, **named)
        return SSLTransport(inner, transport.view)


class _errors_with_tcp_name:  # a context manager, named as contextlib's
    """Put TCP's name of the transport into the text of a RuntimeError that uvloop raises inside."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, RuntimeError):
            put_tcp_name(error)


def _check_tls_times(named: Mapping[str, object]) -> None:
    wanted = [name for name in _TLS_TIMES if named.get(name) is not None]
    if wanted and not named.get("ssl"):
        raise ValueError(f"{wanted[0]} is only meaningful with ssl")


def _base() -> Any:
    """uvloop's loop in C. It takes what asyncio's declarations do not allow, such as a UnixStreamAdapter."""
    return sys.modules["uvloop.loop"].Loop


def _is_utp(sock: object) -> TypeGuard[UtpSocket]:
    return getattr(sock, "_utp", None) is not None


def _initial_protocol_factory(
    protocol_factory: Factory, made: type[StdlibSocket], owner_pid: int
) -> Callable[[], InitialProtocol]:
    return lambda: InitialProtocol(protocol_factory(), made, owner_pid=owner_pid)


async def _connect(
    loop: AbstractEventLoop, made: type[StdlibSocket], host: str | None, port: int | str | None, named: dict[str, Any]
) -> StdlibSocket:
    """A socket connected to the first of the host's addresses that accepts; `named`: as for create_connection()."""
    kind = {name: named.get(name, 0) for name in ("family", "proto", "flags")} | {"type": stdlib.SOCK_STREAM}
    local_addr = named.get("local_addr")
    found = await loop.getaddrinfo(host, port, **kind)
    ours = [None] if local_addr is None else await loop.getaddrinfo(*local_addr, **kind)
    errors: list[tuple[int, str]] = []
    for family, type_, proto, _, address in found:
        for local in ours:
            if local is not None and local[0] != family:
                continue
            sock = made(family, type_, proto)
            try:
                sock.setblocking(False)
                if local is not None:
                    sock.bind(local[4])
                await loop.sock_connect(sock, address)
                return sock
            except OSError as error:
                sock.close()
                # Not the exception itself, which refers to this frame. And uvloop's message has no address.
                code = error.errno or 0
                errors.append((code, os.strerror(code) if code else str(error)))
            except BaseException:
                sock.close()
                raise
    if not errors:
        raise OSError(f"no matching local address with family among {found!r} found")
    if len(set(errors)) == 1:
        raise OSError(*errors[0])
    raise OSError("Multiple exceptions: {}".format(", ".join(f"[Errno {code}] {text}" for code, text in errors)))


async def _bind(
    loop: AbstractEventLoop,
    made: type[StdlibSocket],
    host: Host,
    port: int | str | None,
    family: int,
    flags: int,
    reuse_address: bool,
    reuse_port: bool,
) -> list[StdlibSocket]:
    """A bound socket for each address of the hosts."""
    hosts = [None] if host == "" else [host] if isinstance(host, str) or not isinstance(host, Iterable) else list(host)
    infos: dict[Info, None] = {}
    for one in hosts:
        infos |= dict.fromkeys(await loop.getaddrinfo(one, port, family=family, type=stdlib.SOCK_STREAM, flags=flags))
    socks: list[StdlibSocket] = []
    try:
        for kind, type_, proto, _, address in infos:
            try:
                sock = made(kind, type_, proto)
            except OSError:
                continue  # this machine does not have the family
            socks.append(sock)
            sock.setblocking(False)
            if reuse_address:
                sock.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_REUSEADDR, 1)
            if reuse_port:
                sock.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_REUSEPORT, 1)
            if kind == stdlib.AF_INET6:
                sock.setsockopt(stdlib.IPPROTO_IPV6, stdlib.IPV6_V6ONLY, 1)
            try:
                sock.bind(address)
            except OSError as error:
                text = str(error.strerror).lower()
                raise OSError(error.errno, f"error while attempting to bind on address {address!r}: {text}") from None
    except BaseException:
        for sock in socks:
            sock.close()
        raise
    return socks

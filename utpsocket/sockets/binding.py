"""How a socket gets its port: a UDP socket is bound to the address, with the kernel's errors, and given to the engine.

The inner part of bind() in lifecycle.py. Any thread may call.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from utpsocket.engine import commands
from utpsocket.engine.interpreter.native import Socket
from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import reraise_handler_error
from utpsocket.engine.kernel import fd_names, netns
from utpsocket.engine.kernel.high_fds import HighSocket, UdpSocket, move_to_high_fd
from utpsocket.engine.loop import Loop
from utpsocket.engine.ports import overlapping_ports, reuseport
from utpsocket.engine.user_fds.socket_state import Identity
from utpsocket.protocol import Address
from utpsocket.protocol.build import IS_COMPILED
from utpsocket.sockets import datagram_pairing, option_calls
from utpsocket.sockets.local_addresses import resolved

if TYPE_CHECKING or IS_COMPILED:
    from utpsocket import _native
if TYPE_CHECKING:
    from utpsocket.engine.helper.client import RemoteLoop
    from utpsocket.engine.interpreter.arguments import GivenAddress

# For an address that a port which the engine is about to close still has; by feel.
_BIND_TRIES: Final = 100
_REUSEADDR: Final = (stdlib.SOL_SOCKET, stdlib.SO_REUSEADDR)
_REUSEPORT: Final = (stdlib.SOL_SOCKET, stdlib.SO_REUSEPORT)


def take_port(sock: Socket, loop: Loop | RemoteLoop, identity: Identity, address: GivenAddress) -> tuple[int, Address]:
    """Bind to the UDP port at this address, a new one or one that is shared. Returns the key of the engine's endpoint,
    and the address as the kernel gives it.
    """
    reuse_address, shares = _sharing(identity) if identity.options else (False, identity.settings.shares_port)
    is_last = False
    for _ in range(_BIND_TRIES):
        try:
            return _adopt_port(sock, loop, identity, address, reuse_address=reuse_address, shares=shares)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        local, namespace = resolved(identity.family, address), identity.namespace
        if not isinstance(loop, Loop):
            try:
                found = _take_at_helper(sock, loop, identity, address, local, reuse_address, shares)
            except OSError as error:
                if is_last or error.errno != errno.EADDRINUSE:
                    raise
                is_last = True
                continue
            if found is not None:
                return found
        try:
            key = loop.perform(
                commands.share_port, local, identity, reuse_address=reuse_address, shares=shares, namespace=namespace
            )
            if key:
                if not isinstance(loop, Loop):
                    loop.known_ports.add(key, local, identity, reuse_address=reuse_address, shares=shares)
                return key, local
            overlapped = loop.perform(commands.allow_overlap, local, namespace=namespace) if reuse_address else []
            if overlapped:
                return _bind_over(sock, loop, identity, address, overlapped)
            found = _bind_beside(sock, loop, identity, address, local)
            if found is not None:
                return found
        except BlockingIOError:  # it is free after the engine's next iteration
            if isinstance(loop, Loop) and (sock.gettimeout() != 0 or not loop.frees_ports_at_once):
                loop.call(commands.barrier)
            continue
        if is_last:
            break
        is_last = True  # another program has it; or it was ours, and has been closed since the kernel's EADDRINUSE
    raise _error(errno.EADDRINUSE)


def _take_at_helper(
    sock: Socket,
    loop: RemoteLoop,
    identity: Identity,
    address: GivenAddress,
    local: Address,
    reuse_address: bool,
    shares: bool,
) -> tuple[int, Address] | None:
    """The part of take_port() in which an engine in another process need not be waited for: what it knows of its ports
    is known here as well. Returns None if it is to be asked. Raises EADDRINUSE.
    """
    try:
        if sock.gettimeout() == 0:
            key = _take_known_port(sock, loop, identity, local, reuse_address=reuse_address, shares=shares)
            return key, local
        loop.check_bind(local, identity, reuse_address=reuse_address, shares=shares)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or loop.known_ports.has_port_at(local, identity.namespace):
            raise
        found = _bind_beside(sock, loop, identity, address, local)
        if found is None:
            raise
        return found
    return None


def _take_known_port(
    sock: Socket, loop: RemoteLoop, identity: Identity, local: Address, *, reuse_address: bool, shares: bool
) -> int:
    """Have an engine in another process bind the socket to a port that it has at this address, as this process knows.
    Returns the port's key. Does not wait.
    """
    udp = new_udp_socket(sock, identity)
    try:
        # By the cookie the engine reports a failure.
        identity.cookie = identity.cookie or fd_names.new_cookie()
        return loop.take_port(udp, local, identity, reuse_address=reuse_address, shares=shares)
    finally:
        udp.close()


def keep_port(sock: Socket, loop: RemoteLoop, identity: Identity, inode: int) -> None:
    """Keep the port of a bound non-blocking socket whose descriptor, until now `inode`, was replaced; take it again
    where the connection that has ended released it.
    """
    udp = new_udp_socket(sock, identity)
    reservation = None
    try:
        assert identity.bound is not None
        try:
            reservation = _reserve(sock, identity, identity.bound)
        except OSError as error:
            reraise_handler_error(error)  # the engine decides whether the socket is bound
        reuse_address, shares = _sharing(identity)
        loop.keep_port(udp, inode, identity, reuse_address=reuse_address, shares=shares, reservation=reservation)
    finally:
        udp.close()
        if reservation is not None:
            reservation.close()


def _reserve(sock: Socket, identity: Identity, address: GivenAddress) -> Socket | None:
    """What keeps the address for a socket with SO_REUSEPORT until that listens or dials (reuseport.py). Raises OSError
    as bind().
    """
    if not any(identity.options.get(_REUSEPORT, b"")):
        return None
    return reuseport.reserve(partial(new_udp_socket, sock, identity), address)


def _sharing(identity: Identity) -> tuple[bool, bool]:
    """The socket's options about sharing a port: SO_REUSEADDR, UTP_SHARE_PORT."""
    return any(identity.options.get(_REUSEADDR, b"")), identity.settings.shares_port


def _bind_over(
    sock: Socket, loop: Loop | RemoteLoop, identity: Identity, address: GivenAddress, overlapped: list[int]
) -> tuple[int, Address]:
    """As _adopt_port(), over closed ports of ours that overlap (engine/ports/overlapping_ports.py)."""
    key = 0
    try:
        shares = identity.settings.shares_port
        bind_udp = overlapping_ports.bind_over
        key, local = _adopt_port(sock, loop, identity, address, reuse_address=True, shares=shares, bind_udp=bind_udp)
    finally:
        loop.perform(commands.end_overlap, overlapped, key)
    return key, local


def _bind_beside(
    sock: Socket, loop: Loop | RemoteLoop, identity: Identity, address: GivenAddress, local: Address
) -> tuple[int, Address] | None:
    """As _adopt_port(), beside a UDP socket of the program's (datagram_pairing.py). None if there is none."""
    half = None
    if not any(identity.options.get(_REUSEPORT, b"")):
        half = datagram_pairing.half_at(local, identity.namespace)
    if half is None:
        return None
    bind_udp = partial(datagram_pairing.join, half[0])
    try:
        reuse, shares = _sharing(identity)
        key, local = _adopt_port(sock, loop, identity, address, reuse_address=reuse, shares=shares, bind_udp=bind_udp)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    try:
        datagram_pairing.pair(loop, *half, key)
    except BaseException:
        loop.perform_or_post(commands.drop_holders_of, identity.inode)
        raise
    return key, local


def _adopt_port(
    sock: Socket,
    loop: Loop | RemoteLoop,
    identity: Identity,
    address: GivenAddress,
    *,
    reuse_address: bool,
    shares: bool,
    bind_udp: Callable[[Socket, GivenAddress], None] | None = None,
) -> tuple[int, Address]:
    """Bind a UDP socket to the address and give it to the engine.

    bind_udp   binds it where the kernel would refuse; None: as any other
    """
    reservation = None if bind_udp or not identity.options else _reserve(sock, identity, address)
    try:
        if IS_COMPILED and isinstance(loop, Loop) and bind_udp is None and reservation is None:
            udp = udp_socket_to_bind(sock, identity, loop)
        else:
            udp = new_udp_socket(sock, identity)
    except BaseException:
        if reservation is not None:
            reservation.close()
        raise
    try:
        bound: Address | None = None
        if bind_udp is not None:
            bind_udp(udp, address)
        elif reservation is None:
            found = _native.bind_datagram(udp, identity.family, address) if IS_COMPILED else None
            if found is None:
                udp.bind(address)
            elif isinstance(found, tuple):
                bound = found
            elif found:
                raise _error(found)
        local: Address = bound or (reservation or udp).getsockname()
        if identity.family == stdlib.AF_INET6 and local[0].startswith("ff"):
            raise _error(errno.EINVAL)  # TCP refuses a multicast address of IPv6, and not of IPv4
        if not isinstance(loop, Loop):
            key = loop.adopt_port(
                udp, local, identity, reuse_address=reuse_address, shares=shares, reservation=reservation
            )
            return key, local
        key = commands.adopt_port(
            loop,
            udp,
            identity,
            reuse_address=reuse_address,
            shares=shares,
            bound=(local, identity.namespace),
            reservation=reservation,
        )
        return key, local
    except BaseException as error:
        if reservation is not None:
            reservation.close()
        # Closed now, since the exception may be kept, and with it this frame. The engine closes what it has taken.
        if loop.is_alive and not is_errno(error):
            loop.perform_or_post(commands.drop_holders_of, identity.inode)
        if not loop.is_alive or not isinstance(loop, Loop) or not loop.perform(commands.has_port, udp):
            udp.close()
        raise


def new_udp_socket(sock: Socket, identity: Identity, kind: type[HighSocket] = HighSocket) -> Socket:
    """A new UDP socket with this socket's options, in its network namespace."""
    if not identity.namespace:
        identity.namespace = netns.cookie(sock)
    made = netns.make_in_namespace(sock, identity.namespace, partial(option_calls.udp_socket, identity))
    return move_to_high_fd(made, kind)


def udp_socket_to_connect(sock: Socket, identity: Identity, loop: Loop | RemoteLoop) -> Socket:
    """The same for connect(): one that another connection has had, if there is one that is as a new one would be."""
    if identity.bound is not None:
        return new_udp_socket(sock, identity)
    return _unbound_udp_socket(sock, identity, loop, to_bind=False)


def udp_socket_to_bind(sock: Socket, identity: Identity, loop: Loop) -> Socket:
    """The same for bind(). The engine's thread makes another one in its place.

    In the compiled build: a pure engine takes longer to make one, and gives the GIL to and fro with a program that goes
    on meanwhile.
    """
    udp = _unbound_udp_socket(sock, identity, loop, to_bind=True)
    if isinstance(udp, UdpSocket):
        loop.idle_sockets.replace(identity.family)
    return udp


def _unbound_udp_socket(sock: Socket, identity: Identity, loop: Loop | RemoteLoop, *, to_bind: bool) -> Socket:
    if not isinstance(loop, Loop) or (identity.options and option_calls.has_options_of_port(identity)):
        return new_udp_socket(sock, identity)
    if not identity.namespace:
        identity.namespace = netns.cookie(sock)
    kept = loop.idle_sockets.take(identity.family, identity.namespace, to_bind=to_bind)
    if kept is not None:
        return kept
    udp = new_udp_socket(sock, identity, UdpSocket)
    if isinstance(udp, UdpSocket):
        udp.owner = udp.prepared = None
    return udp


def is_errno(error: BaseException) -> bool:
    """Whether this is an error of the kernel or the engine. A TimeoutError of a signal's handler has no errno."""
    return isinstance(error, OSError) and error.errno is not None


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))

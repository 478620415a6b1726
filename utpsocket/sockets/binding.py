"""How a socket comes by its port: the kernel judges the address on a UDP socket, which becomes the engine's.

Separate from lifecycle.py, whose bind() this is the inner part of. Any thread.
"""

from __future__ import annotations

import errno
from functools import partial
from typing import Any, Final

from utpsocket import options
from utpsocket.engine import commands
from utpsocket.engine.helper.client import RemoteLoop
from utpsocket.engine.interpreter.originals import _socket, os
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.kernel import fd_names, netns
from utpsocket.engine.kernel.fd_names import Address
from utpsocket.engine.kernel.high_fds import raise_fd
from utpsocket.engine.loop import Loop
from utpsocket.engine.ports import overlapping_ports
from utpsocket.engine.user_fds.socket_state import Identity

UNBOUND: Final[dict[int, Address]] = {stdlib.AF_INET: ("0.0.0.0", 0), stdlib.AF_INET6: ("::", 0, 0, 0)}
_BIND_TRIES: Final = 100  # of an address that a port of ours, which the engine is about to close, still has


def take_port(sock: Any, loop: Loop | RemoteLoop, identity: Identity, address: Any) -> tuple[int, Address]:
    """The key of the engine's endpoint at this address, and the address as the kernel gives it."""
    named = _sharing(identity)
    is_last = False
    for _ in range(_BIND_TRIES):
        try:
            return _adopt_port(sock, loop, identity, address, **named)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        local, namespace = resolved(identity, address), identity.namespace
        if isinstance(loop, RemoteLoop):
            try:
                if sock.gettimeout() == 0:
                    return _take_known_port(sock, loop, identity, local, **named), local
                loop.judge(local, identity, **named)  # who is refused does not wait, either
            except OSError as error:
                if is_last or error.errno != errno.EADDRINUSE:
                    raise
                is_last = True
                continue
        try:
            key = loop.perform(commands.share_port, local, identity, **named, namespace=namespace)
            if key:
                if isinstance(loop, RemoteLoop):
                    loop.ledger.add(key, local, identity, **named)
                return key, local
            way = loop.perform(commands.make_way, local, namespace=namespace) if named["reuse"] else []
            if way:
                return _bind_over(sock, loop, identity, address, way)
        except BlockingIOError:  # it is free in a moment, in which the engine has its turn
            if isinstance(loop, Loop) and (sock.gettimeout() != 0 or not loop.frees_ports_at_once):
                loop.call(commands.settled)
            continue
        if is_last:
            break
        is_last = True  # somebody else has it; or it was ours, and has been closed since the kernel said so
    raise _error(errno.EADDRINUSE)


def _take_known_port(
    sock: Any, loop: RemoteLoop, identity: Identity, local: Address, *, reuse: bool, shares: bool
) -> int:
    """The key of a port that one of ours may have at this address, by what is known here; the engine may be slow."""
    udp = udp_beside(sock, identity)
    try:
        identity.cookie = identity.cookie or fd_names.new_cookie()  # of whom the engine speaks, should it fail
        return loop.take_port(udp, local, identity, reuse=reuse, shares=shares)
    finally:
        udp.close()


def keep_port(sock: Any, loop: RemoteLoop, identity: Identity, inode: int) -> None:
    """The fd of a bound socket that does not block, until now `inode`, is another one: its port goes on being its own,
    or is so again where a connection that ended has given it up.
    """
    udp = udp_beside(sock, identity)
    try:
        loop.keep_port(udp, inode, identity, **_sharing(identity))
    finally:
        udp.close()


def _sharing(identity: Identity) -> dict[str, bool]:
    """Of what sharing a port asks."""
    reuse = any(identity.options.get((stdlib.SOL_SOCKET, stdlib.SO_REUSEADDR), b""))
    return {"reuse": reuse, "shares": identity.settings.shares_port}


def _bind_over(
    sock: Any, loop: Loop | RemoteLoop, identity: Identity, address: Any, way: list[int]
) -> tuple[int, Address]:
    """The same, over ports of ours that have made way (overlapping_ports.py)."""
    key = 0
    try:
        shares = identity.settings.shares_port
        key, local = _adopt_port(sock, loop, identity, address, reuse=True, shares=shares, is_over=True)
    finally:
        loop.perform(commands.close_way, way, key)
    return key, local


def _adopt_port(
    sock: Any,
    loop: Loop | RemoteLoop,
    identity: Identity,
    address: Any,
    *,
    reuse: bool,
    shares: bool,
    is_over: bool = False,
) -> tuple[int, Address]:
    """A port of a UDP socket that the kernel binds there."""
    udp = udp_beside(sock, identity)
    try:
        if is_over:
            overlapping_ports.bind_over(udp, address)
        else:
            udp.bind(address)
        local: Address = udp.getsockname()
        if identity.family == stdlib.AF_INET6 and local[0].startswith("ff"):
            raise _error(errno.EINVAL)  # as TCP's, though not for IPv4
        if isinstance(loop, RemoteLoop):
            return loop.adopt_port(udp, local, identity, reuse=reuse, shares=shares), local
        bound = local, identity.namespace
        return loop.perform(commands.adopt_port, udp, identity, reuse=reuse, shares=shares, bound=bound), local
    except BaseException as error:
        if loop.is_alive and not is_errno(error):
            loop.tell(commands.unhold, identity.inode)
        if not loop.is_alive or isinstance(loop, RemoteLoop) or not loop.perform(commands.has_port, udp):
            udp.close()  # now: whoever catches this may keep it, and this frame with it
        raise


def udp_beside(sock: Any, identity: Identity) -> Any:
    """A UDP socket with this one's options, in its network namespace."""
    if not identity.namespace:
        identity.namespace = netns.cookie(sock)
    return raise_fd(netns.made_beside(sock, identity.namespace, partial(options.udp_socket, identity)))


def resolved(identity: Identity, address: Any) -> Address:
    """The numeric form of an address that bind() has understood."""
    host, port = address[0], int(address[1])
    if not host:
        unbound = UNBOUND[identity.family]
        return (unbound[0], port) if len(unbound) == 2 else (unbound[0], port, 0, 0)
    if isinstance(host, str) and host.isascii():
        host = host.encode()  # of a str getaddrinfo() makes IDNA, even of digits: modules that bind() does not need
    found: Any = _socket.getaddrinfo(host, port, identity.family, stdlib.SOCK_DGRAM)[0][4]
    return found  # type: ignore[no-any-return]


def is_errno(error: BaseException) -> bool:
    """Whether this is the kernel's or the engine's word, and not raised by a signal's handler, as a TimeoutError is."""
    return isinstance(error, OSError) and error.errno is not None


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))

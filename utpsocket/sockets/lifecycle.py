"""What bind(), connect(), listen() and shutdown() of a uTP socket do: the calls to the engine, and the socket's state.

The class in shim.py has the interface of a socket and calls these. Each function takes the Python socket and its
Identity. Any thread may call. Sources: docs/sockets.md §1, §3; connect(2), socket(7) SO_LINGER.
"""

from __future__ import annotations

import errno
import sys
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Final

from utpsocket.engine import commands
from utpsocket.engine.current import engine, running_engine, serving_pid
from utpsocket.engine.interpreter.native import Socket, StdlibSocket, poll
from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import reraise_handler_error, suppress_errnos
from utpsocket.engine.kernel import fd_names
from utpsocket.engine.kernel.caller_calls import listen_at
from utpsocket.engine.kernel.high_fds import with_room
from utpsocket.engine.loop import Loop
from utpsocket.engine.ports.connect_gate import may_be_reset
from utpsocket.engine.user_fds import reset
from utpsocket.engine.user_fds.socket_state import Identity, Role
from utpsocket.protocol import Address
from utpsocket.protocol.build import IS_COMPILED
from utpsocket.sockets import binding, fd_pair, fd_swap, option_calls, registry
from utpsocket.sockets.local_addresses import UNBOUND as UNBOUND
from utpsocket.sockets.local_addresses import resolved

if TYPE_CHECKING or IS_COMPILED:
    from utpsocket import _native
if TYPE_CHECKING:
    from utpsocket.engine.helper.client import RemoteLoop
    from utpsocket.engine.interpreter.arguments import GivenAddress

_UNCONNECTED: Final = Role.UNCONNECTED
_CONNECTING: Final = Role.CONNECTING
_POLLOUT: Final = 0x004
_POLLERR_OR_HUP: Final = 0x018
_BOTH_HALVES: Final = 3
_BY: Final = commands.CLAIMED_BY_ENGINE[0]
# A port for connect() of a UDP socket, to which nothing is sent.
_ANY_PORT: Final = 9
# Of multicast addresses as getpeername() writes them, and of a few others.
_STARTS_OF_MULTICAST: Final = ("22", "23", "ff", "::ffff:2")
_MAPPED: Final = bytes(10) + b"\xff\xff"
IN_PROGRESS: Final = (errno.EINPROGRESS, errno.EALREADY)


def os_error(code: int) -> OSError:
    """The exception of an errno, of the subclass of OSError and with the text that the kernel's errors have."""
    return OSError(code, os.strerror(code))


def check_open(sock: Socket) -> None:
    """Raise EBADF for a closed socket."""
    if sock.fileno() < 0:
        raise os_error(errno.EBADF)


def bind(sock: StdlibSocket, identity: Identity, address: GivenAddress) -> None:
    """bind(): a UDP socket is bound, with the kernel's errors, and becomes the engine's port."""
    if identity.claim is not None:
        finish_interrupted(sock, identity)
    before = identity.local, identity.bound
    loop = engine()
    key = 0
    try:
        key, local = binding.take_port(sock, loop, identity, address)
        assert isinstance(address, tuple)
        loop.holders_watch.watch(sock.fileno(), identity.inode)
        identity.local = identity.bound = local
        identity.is_port_chosen = not int(address[1])
        identity.is_port_new = identity.role is not _UNCONNECTED
        if not identity.is_port_new:
            identity.cookie = identity.cookie or fd_names.new_cookie()
        identity.owner_pid = loop.pid
        # Last: from here on the socket is bound.
        identity.endpoint = key
    except BaseException as error:
        if key or not binding.is_errno(error):
            identity.endpoint = 0
            identity.local, identity.bound = before
            if loop.is_alive:
                loop.perform_or_post(commands.drop_holders_of, identity.inode)
        elif isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            # Nothing was bound. Linux forgets the address of a closed TCP socket before it finds the new one in use,
            # and keeps the old port for getsockname().
            identity.local = _local_after_end(identity.local, None)
            identity.bound = identity.bound and UNBOUND[identity.family]
        raise


def connect(sock: StdlibSocket, identity: Identity, address: GivenAddress, *, quietly: bool) -> int:
    """Begin to connect, or return the state of the attempt under way: EINPROGRESS, EALREADY, an errno, or 0.

    `quietly`: errors of a malformed address have the text of connect_ex().
    """
    if sock.fileno() >= 0 and (
        identity.is_unusable or identity.role is not _UNCONNECTED or identity.replaced is not None
    ):
        code = _connect_again(sock, identity)
        if code is not None:
            return code
    if identity.claim is not None:
        finish_interrupted(sock, identity)
    loop = engine()
    udp = binding.udp_socket_to_connect(sock, identity, loop)
    try:
        is_from_group = identity.bound is not None and _is_multicast_or_broadcast(identity.family, identity.bound[0])
        if identity.bound is not None and not is_from_group:
            _bind_source(udp, identity.bound)
        code, peer, local = _connect_udp(udp, identity, address, quietly=quietly)
        if not code and is_from_group:
            udp, local = _udp_of_route(udp, identity), None
        if sock.fileno() < 0:
            raise os_error(errno.EBADF)
    except BaseException:
        udp.close()
        raise
    if code == errno.ECONNREFUSED:
        _dial_port_0(sock, identity, loop, udp)
        return errno.EINPROGRESS
    if code:
        udp.close()
        return code
    assert peer is not None
    if local is None:
        local = udp.getsockname()
    _dial(sock, identity, loop, udp, peer, local, is_apart=is_from_group or not identity.endpoint)
    return errno.EINPROGRESS


def _connect_again(sock: StdlibSocket, identity: Identity) -> int | None:
    """What connect() returns for a socket that is, or was, connecting, connected or listening; None if it may begin."""
    if identity.is_unusable:
        return errno.EINVAL
    role = identity.role
    if role is Role.CONNECTING:
        code = poll_connect(sock, identity)
        if code == errno.EINPROGRESS:
            return errno.EALREADY
        identity.is_connect_reported = True
        return code
    if role is Role.CONNECTED and not identity.is_connect_reported and not identity.is_over:
        identity.is_connect_reported = True
        return poll_connect(sock, identity)
    if role is Role.CONNECTED and not identity.is_connect_reported and identity.is_reset:
        # No connect() has returned that the connection was established: this one returns how it ended. The next one may
        # begin anew.
        error = identity.take_error() or errno.ECONNABORTED
        release_chosen_port(identity)
        _renew(sock, identity)
        return error
    if role is Role.CONNECTED or role is Role.LISTENING:
        return errno.EISCONN
    if identity.is_used_elsewhere:
        return errno.EISCONN
    if role is Role.FAILED:
        # A claim is left by a _renew() that was interrupted.
        is_connect_reported = identity.is_connect_reported or identity.claim is not None
        error = identity.take_error() or (0 if is_connect_reported else errno.ECONNABORTED)
        release_chosen_port(identity)
        _renew(sock, identity)
        if error:
            return error
    return None


def _connect_udp(
    udp: Socket, identity: Identity, address: GivenAddress, *, quietly: bool
) -> tuple[int, Address | None, Address | None]:
    """Connect the UDP socket to the peer: 0, the peer's address and the socket's own, if that is known; or the errno
    for which TCP's connect() fails at once.
    """
    found = _native.connect_datagram(udp, identity.family, address) if IS_COMPILED else None
    if isinstance(found, tuple):
        peer, local = found
        if peer[0].startswith(_STARTS_OF_MULTICAST) and _is_multicast(identity.family, peer[0]):
            return errno.ENETUNREACH, peer, local
        return 0, peer, local
    if found is not None:
        code = found
    else:
        try:
            code = int((udp.connect_ex if quietly else udp.connect)(address) or 0)
        except OSError as error:
            if isinstance(error, stdlib.gaierror) or error.errno is None:
                raise
            code = error.errno
    if code == errno.EACCES:
        # A broadcast address, for which UDP needs SO_BROADCAST and TCP gives ENETUNREACH; or the system forbids it.
        udp.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_BROADCAST, 1)
        return errno.ENETUNREACH if udp.connect_ex(address) != errno.EACCES else errno.EACCES, None, None
    if code in (errno.EINVAL, errno.EAFNOSUPPORT) and identity.family == stdlib.AF_INET6:
        # TCP checks first whether it is a multicast address; UDP checks the scope and the own address first.
        host = resolved(identity.family, address)[0]
        return errno.ENETUNREACH if _is_multicast(identity.family, host) else code, None, None
    if code:
        return code, None, None
    try:
        peer = udp.getpeername()
    except OSError as error:  # port 0, to which a UDP socket can be connected
        reraise_handler_error(error)
        return errno.ECONNREFUSED, None, None
    return errno.ENETUNREACH if _is_multicast(identity.family, peer[0]) else 0, peer, None


def _bind_source(udp: Socket, bound: Address) -> None:
    """Bind the UDP socket to the host of a bound socket: the kernel checks whether the two addresses of a connection go
    together, and completes the one by the other.
    """
    if bound[0] not in ("0.0.0.0", "::"):
        with suppress_errnos():  # the address may have been taken from this machine
            udp.bind((bound[0], 0, *bound[2:]))


def _is_multicast_or_broadcast(family: int, host: str) -> bool:
    """Whether this address, to which a socket is bound, is an IPv4 multicast or broadcast address."""
    if family != stdlib.AF_INET or host == "0.0.0.0":
        return False
    if _is_multicast(family, host) or host == "255.255.255.255":
        return True
    with closing(with_room(partial(Socket, family, stdlib.SOCK_DGRAM, 0))) as reference_udp:
        if reference_udp.connect_ex((host, _ANY_PORT)) != errno.EACCES:
            return False
        reference_udp.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_BROADCAST, 1)
        return int(reference_udp.connect_ex((host, _ANY_PORT))) != errno.EACCES


def _udp_of_route(udp: Socket, identity: Identity) -> Socket:
    """The UDP socket for a connect() of a socket that is bound to a multicast or broadcast address. TCP connects from
    the address that the route chooses, with the same port. `udp` is connected, so its address is that one; it is
    closed. Where the port is in use there, which TCP would share, the kernel chooses one.
    """
    assert identity.bound is not None
    own = binding.new_udp_socket(udp, identity)
    try:
        host = udp.getsockname()[0]
        try:
            own.bind((host, identity.bound[1]))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            own.bind((host, 0))
        own.connect(udp.getpeername())
    except BaseException:
        own.close()
        raise
    udp.close()
    return own


def _dial(
    sock: StdlibSocket,
    identity: Identity,
    loop: Loop | RemoteLoop,
    udp: Socket,
    peer: Address,
    local: Address,
    *,
    is_apart: bool,
) -> None:
    """Pair the user's descriptor with the engine and have the engine connect. `udp`, whose address is `local`, is
    connected to `peer` and given to the engine, or closed. `is_apart`: the connection uses it; else it uses the bound
    port, and `udp` has only served to find the addresses.

    A signal's handler may raise between any two lines. If the engine has not begun then, the socket is unconnected
    again; else it is connecting, as TCP's would be. The claim, which the caller or the engine sets first, decides.
    """
    claim: dict[str, str] = {}
    try:
        identity.claim = claim
        identity.ending, identity.reported_errno = None, 0
        bound = identity.bound
        if bound is not None:
            local = local if is_apart else (local[0], bound[1], *local[2:])
        identity.local, identity.peer, identity.owner_pid = local, peer, loop.pid
        engine_sock = fd_pair.pair(sock, identity)
        fallback_us = -1
        if identity.routes is not None and identity.routes.fallback:
            fallback_us = int(identity.routes.fallback_seconds * 1_000_000)
        identity.role = _CONNECTING
        if identity.replaced is not None:
            identity.on_used()
        if not is_apart:
            udp.close()
            loop.post(commands.dial_from, identity.endpoint, peer, identity, engine_sock, fallback_us, claim)
        else:
            if identity.endpoint:
                loop.post(commands.drop_holders_of, identity.inode)
            loop.post(commands.dial_private, udp, identity, engine_sock, fallback_us, claim)
        identity.claim = None
    except BaseException:
        finish_interrupted(sock, identity)
        raise


def _dial_port_0(sock: StdlibSocket, identity: Identity, loop: Loop | RemoteLoop, udp: Socket) -> None:
    """connect() to port 0, to which UDP can send nothing: the attempt begins and is refused, as TCP's."""
    try:
        identity.claim = {_BY: "caller"}
        identity.ending, identity.reported_errno = None, 0
        local = udp.getsockname()
        udp.close()
        bound = identity.bound
        if bound is not None and identity.endpoint:
            local = (local[0], bound[1], *local[2:])
        identity.local, identity.peer, identity.owner_pid = local, UNBOUND[identity.family], loop.pid
        engine_sock = fd_pair.pair(sock, identity)
        identity.role = Role.CONNECTING
        if identity.replaced is not None:
            identity.on_used()
        reset.close_engine_sock(engine_sock, identity, errno.ECONNREFUSED)
        identity.claim = None
    except BaseException:
        udp.close()
        finish_interrupted(sock, identity)
        raise


def release_chosen_port(identity: Identity) -> None:
    """Release the port of a socket whose connection or listening has ended, if the kernel chose the number. As over TCP
    the socket keeps the address that bind() was given, and the port only where bind() was given one.
    """
    if not identity.is_port_chosen or identity.is_port_new or not identity.endpoint:
        return
    loop = own_engine(identity)
    if loop is not None:
        loop.perform_or_post(commands.leave_port, identity.endpoint, identity.inode)
    assert identity.bound is not None
    host = identity.bound[0]
    is_any = host == UNBOUND[identity.family][0]
    identity.endpoint, identity.is_port_chosen = 0, False
    identity.bound = None if is_any else (host, 0, *identity.bound[2:])


def listen(sock: StdlibSocket, identity: Identity, backlog: int) -> None:
    """Listen at the bound port: the user's descriptor in the kernel, the engine for uTP, and for TCP if bound."""
    if identity.claim is not None:
        finish_interrupted(sock, identity)
    halves = identity.shut_halves
    if halves:
        _renew(sock, identity)  # the kernel refuses connections to an AF_UNIX socket that was shut down
        identity.shut_halves = halves
    assert identity.local is not None
    loop = engine()
    try:
        identity.claim = {_BY: "caller"}
        identity.ending, identity.reported_errno = None, 0
        name = fd_names.encode_listener(identity.cookie, identity.local, identity.owner_pid)
        if IS_COMPILED:
            listen_at(sock, name, backlog)
        else:
            Socket.bind(sock, name)
            Socket.listen(sock, backlog)
        if not isinstance(loop, Loop) and sock.gettimeout() == 0:
            loop.known_ports.check_listen(identity.endpoint, identity.inode)
            identity.role = Role.LISTENING  # before the engine may report that it failed
            try:
                loop.post(commands.listen_soon, identity.endpoint, identity, name, max(1, backlog), identity.bound_tcp)
            except BaseException:
                identity.role = _UNCONNECTED
                raise
        else:
            tcp_sock = identity.bound_tcp
            if isinstance(loop, Loop):
                commands.listen(loop, identity.endpoint, identity, name, max(1, backlog), tcp_sock)
            else:
                loop.perform(commands.listen, identity.endpoint, identity, name, max(1, backlog), tcp_sock)
            identity.role = Role.LISTENING
        if identity.replaced is not None:
            identity.on_used()
        identity.bound_tcp = None
        identity.claim = None
        if not isinstance(loop, Loop):
            loop.listened.add(identity.local[1])
    except BaseException:
        if identity.role is not Role.LISTENING:
            finish_interrupted(sock, identity)
        identity.claim = None
        raise


def finish_interrupted(sock: StdlibSocket, identity: Identity) -> None:
    """Bring an interrupted connect() or listen() to an end: it goes on if the engine has begun, else it is undone.

    The call that was interrupted does this, and so does the next one, since the first may be interrupted here too.
    """
    claim = identity.claim
    if claim is None:
        return
    if claim.setdefault(_BY, "caller") == "caller":
        _renew(sock, identity)
    identity.claim = None


def before_shutdown(sock: StdlibSocket, identity: Identity, how: int) -> None:
    """Note that the user's descriptor is about to be shut down, which may look to the engine like a close."""
    identity.shut_halves |= how + 1
    is_reset_by_close = identity.settings.linger_seconds == 0 and identity.shut_halves & 2
    loop = own_engine(identity)
    if (identity.shut_halves == _BOTH_HALVES or is_reset_by_close) and isinstance(loop, Loop):
        loop.holders_watch.watch(sock.fileno(), identity.inode)
        identity.is_shut_down = True
    elif identity.record is not None and identity.shut_halves & 2:
        # Another process's engine reads this, and knows SO_LINGER.
        identity.is_shut_down = True


def receive_after_shutdown(identity: Identity, count: int, flags: int) -> bytes:
    """Take up to `count` of the bytes that came after shutdown(SHUT_RD), which the kernel does not keep."""
    kept = identity.received_after_shutdown
    if not kept or not count:
        return b""
    if flags & stdlib.MSG_PEEK:
        return b"".join(list(kept))[:count]
    taken: list[bytes] = []
    while count:
        try:
            piece = kept.popleft()
        except IndexError:
            break
        taken.append(piece[:count])
        if len(piece) > count:
            kept.appendleft(piece[count:])
        count -= len(taken[-1])
    loop = own_engine(identity)
    if loop is not None:
        loop.post(commands.on_received_after_shutdown, identity.cookie)
    return b"".join(taken)


def shut_down_unconnected(sock: StdlibSocket, identity: Identity, how: int) -> None:
    """shutdown() of a socket that is not connected, which fails and has effect all the same, as over TCP: poll() and
    send() behave as shut down, also when the socket is connected later, and so do the sockets that it accepts. Between
    the end of a connection and the connect() that would report it, it leaves a socket that cannot be used any more.
    """
    try:
        Socket.shutdown(sock, how)
    except OSError as error:
        reraise_handler_error(error)
    if identity.role is Role.UNCONNECTED:
        identity.shut_halves |= how + 1  # bits as the kernel's RCV_SHUTDOWN and SEND_SHUTDOWN
    elif not identity.is_connect_reported:
        identity.is_unusable = True


def _is_multicast(family: int, host: str) -> bool:
    if family == stdlib.AF_INET:
        return 224 <= int(host.partition(".")[0]) < 240
    packed = stdlib.inet_pton(family, host.partition("%")[0])
    return packed[-4] >> 4 == 0xE if packed.startswith(_MAPPED) else packed[0] == 0xFF


def _renew(sock: StdlibSocket, identity: Identity) -> None:
    """Put a new AF_UNIX socket under the descriptor, unconnected: after a failed attempt, and after an undone one.

    If this is interrupted the socket has a claim, or has failed, and the next call does it again.
    """
    if identity.claim is None:
        identity.claim = {_BY: "caller"}
    identity.is_port_new = False
    inode = identity.inode
    fd = sock.fileno()
    duplicates = _duplicates(identity, fd)
    identity.unshare()
    registry.forget(identity)
    fd_pair.renew(sock)
    option_calls.restore(sock, identity)
    registry.register(sock, identity)
    _replace(duplicates, fd)
    identity.transport = "utp"
    identity.is_over = identity.is_reset = identity.is_gated = identity.is_connect_reported = False
    identity.is_after_eof = False
    identity.is_shut_down = False
    identity.shut_halves = 0
    identity.received_after_shutdown = None
    identity.error = 0
    if identity.peer is not None and identity.local is not None and identity.bound == UNBOUND[identity.family]:
        # A bind() has succeeded and a later one failed: the address of the attempt is kept.
        identity.bound = (identity.local[0], 0, *identity.local[2:])
    identity.local = _local_after_end(identity.local, identity.bound)
    identity.peer = None
    # A new one, since reports of the engine about the old one may still come.
    identity.cookie = fd_names.new_cookie() if identity.endpoint else 0
    if identity.endpoint:
        _keep_port(sock, identity, inode)
    identity.role = Role.UNCONNECTED
    identity.claim = None


def _duplicates(identity: Identity, fd: int) -> list[int]:
    """The other descriptors of this socket in this process, which a new socket under one number leaves behind."""
    return [other for other in reset.fds_of(identity.inode) if other != fd] if identity.has_duplicates else []


def _replace(duplicates: list[int], fd: int) -> None:
    """Make these descriptors duplicates of `fd`."""
    for other in duplicates:
        try:
            os.dup2(fd, other, inheritable=os.get_inheritable(other))
        except OSError as error:
            reraise_handler_error(error)
            continue  # another thread has closed it


def _local_after_end(local: Address | None, bound: Address | None) -> Address | None:
    """What getsockname() returns after a connection's end: as over TCP the port too, though it may be released."""
    if local is None or (bound is not None and bound[1]):
        return bound
    host = bound[0] if bound is not None else UNBOUND[stdlib.AF_INET6 if len(local) == 4 else stdlib.AF_INET][0]
    return (host, local[1]) if len(local) == 2 else (host, local[1], 0, 0)


def disconnect(sock: StdlibSocket, identity: Identity) -> None:
    """Make a socket unconnected whose connect() has waited and failed, as connect(2) does."""
    try:
        release_chosen_port(identity)
        _renew(sock, identity)
    except OSError as error:
        reraise_handler_error(error)
        identity.claim = None  # no descriptor is left, for example: the next connect() does it


def become_unconnected(sock: StdlibSocket, identity: Identity) -> None:
    """Make a listener that was shut down able to listen or connect again, as TCP's; an AF_UNIX socket that has listened
    cannot. The queue of accept() ends with the old socket. Duplicates in other processes still refer to that one: their
    accept() gives EINVAL.
    """
    if identity.routes is None:
        release_chosen_port(identity)
        _renew(sock, identity)


def _keep_port(sock: StdlibSocket, identity: Identity, inode: int) -> None:
    """Keep the port of a bound socket, or bind it again: the connection that has ended may have released it."""
    loop = engine()
    loop.holders_watch.watch(sock.fileno(), identity.inode)
    if loop.pid == identity.owner_pid and not isinstance(loop, Loop) and sock.gettimeout() == 0:
        binding.keep_port(sock, loop, identity, inode)
    elif loop.pid != identity.owner_pid or not loop.perform(
        commands.replace_holder, identity.endpoint, inode, identity
    ):
        bound, identity.endpoint = identity.bound, 0
        assert bound is not None
        identity.claim = None
        bind(sock, identity, bound)


def poll_connect(sock: StdlibSocket, identity: Identity) -> int:
    """The state of a connection attempt: EINPROGRESS, 0, or its errno, which is returned once."""
    if identity.owner_pid != serving_pid() and identity.role is Role.CONNECTING:
        # Another process's engine makes the connection: poll(2) shows how it ended.
        poller = poll()
        poller.register(sock.fileno(), _POLLOUT)
        for _, mask in poller.poll(0):
            if identity.role is not Role.CONNECTING:
                break
            if mask & _POLLERR_OR_HUP:
                identity.role, identity.error = Role.FAILED, errno.ECONNREFUSED
            else:
                identity.role = Role.CONNECTED
    elif identity.role is Role.CONNECTING and _is_hung_up(sock, identity) and identity.role is Role.CONNECTING:
        # The engine notes the errno before it closes its socket. It has not: the engine has ended, or the program has
        # closed all descriptors.
        identity.role, identity.error = Role.FAILED, errno.ECONNABORTED
    if identity.role is Role.CONNECTED:
        if identity.is_gated:
            fd_pair.open_gate(sock, identity)
        return 0
    if identity.role is Role.FAILED:
        error = identity.take_error()
        if error:
            Socket.getsockopt(sock, stdlib.SOL_SOCKET, stdlib.SO_ERROR)
        return error or errno.ECONNABORTED
    return errno.EINPROGRESS


def wait_for_acceptor(identity: Identity) -> None:
    """After connect() has waited, make sure that accept() in this process finds the connection. An engine in a thread
    makes both known in one step (connect_gate.py), one in another process one right after the other.
    """
    loop = own_engine(identity)
    if (
        loop is not None
        and not isinstance(loop, Loop)
        and identity.peer is not None
        and identity.peer[1] in loop.listened
    ):
        loop.call(commands.barrier)


def _is_hung_up(sock: StdlibSocket, identity: Identity) -> bool:
    fd = sock.fileno()
    if fd < 0 or identity.shut_halves == _BOTH_HALVES:
        return False  # another thread has closed it, or it was shut down before it was connecting
    poller = poll()
    poller.register(fd, 0)
    return bool(poller.poll(0))


def sync_network_side(sock: StdlibSocket, identity: Identity) -> None:
    """Have the engine handle what has arrived, if that may be a reset, so that the caller's next call reports it. For a
    non-blocking socket nothing is done, since that would wait for the engine.
    """
    loop = own_engine(identity)
    if loop is None or sock.gettimeout() == 0:
        return
    if not isinstance(loop, Loop) or may_be_reset(loop, identity.cookie):
        loop.call(commands.sync_network_side, identity.cookie)


def abort_connecting(sock: StdlibSocket, identity: Identity) -> bool:
    """End the connection attempt, as shutdown() of either half does over TCP. False if it has ended already."""
    loop = own_engine(identity)
    if loop is not None and sock.gettimeout() == 0:
        _abort_at_once(sock, identity, loop)
        return True
    return loop is not None and bool(loop.call(commands.abort_connect, identity.cookie))


def _abort_at_once(sock: StdlibSocket, identity: Identity, loop: Loop | RemoteLoop) -> None:
    """The same without waiting for the engine: the user's descriptor is replaced by one that was reset."""
    loop.post(commands.abort_connect_late, identity.cookie)
    if not isinstance(loop, Loop):
        identity.cookie = fd_names.new_cookie()  # reports of the engine about the attempt are ignored from now on
    identity.is_gated = False
    identity.is_over = identity.is_reset = True
    identity.error = errno.ECONNRESET
    identity.role = Role.FAILED
    try:
        fresh = fd_pair.reset_socket()
    except OSError as error:
        reraise_handler_error(error)
        return  # no descriptor is left: the reset happens when the engine carries out the command
    duplicates = _duplicates(identity, sock.fileno())
    registry.forget(identity)
    fd_swap.replace(fresh, sock)
    registry.register(sock, identity)
    _replace(duplicates, sock.fileno())


def apply_options(identity: Identity, *, at_once: bool, to_connection: bool, is_nodelay: bool) -> None:
    """Give the engine changed options and apply them to the connection, before this returns or soon after."""
    loop = own_engine(identity)
    if loop is not None:
        if not isinstance(loop, Loop):
            loop.send_update(identity)
        if to_connection:
            follow(loop, identity.cookie, at_once=at_once, is_nodelay=is_nodelay)


def follow(loop: Loop | RemoteLoop, cookie: int, *, at_once: bool, is_nodelay: bool) -> None:
    """Apply its options to a connection, before this returns or soon after; TCP_NODELAY in time for the next write,
    which wakes the engine up.
    """
    if at_once:
        loop.call(commands.apply, cookie)
    elif is_nodelay and isinstance(loop, Loop) and commands.has_nothing_unsent(loop, cookie):
        loop.post_without_waking(commands.apply_nodelay, cookie)
    else:
        loop.post(commands.apply, cookie)


def own_engine(identity: Identity) -> Loop | RemoteLoop | None:
    """The engine that serves this socket, if it is this process's and can answer."""
    loop = running_engine()
    if loop is None or not loop.is_alive or loop.caller_pid != os.getpid() or sys.is_finalizing():
        return None
    return loop if loop.pid == identity.owner_pid else None


def take_error(sock: StdlibSocket, identity: Identity) -> int:
    """SO_ERROR: the errno of the failed attempt or connection, once, then 0."""
    if identity.role is Role.CONNECTING:
        code = poll_connect(sock, identity)
        return 0 if code == errno.EINPROGRESS else code
    if identity.is_gated:
        fd_pair.open_gate(sock, identity)
    kernels = int(Socket.getsockopt(sock, stdlib.SOL_SOCKET, stdlib.SO_ERROR))
    return identity.take_error() or kernels

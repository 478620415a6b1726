"""What bind(), connect() and close() do to a uTP socket: the conversation with the engine.

Separate from shim.py because the class only says which interface a socket has. Each function takes the Python socket
and its identity. Any thread may call. Sources: docs/sockets.md §1, §3; connect(2), socket(7) SO_LINGER.
"""

from __future__ import annotations

import errno
import sys
from contextlib import closing
from functools import partial
from typing import Any, Final

from utpsocket import options
from utpsocket.engine import commands, engine, running_engine, serving_pid
from utpsocket.engine.helper.client import RemoteLoop
from utpsocket.engine.interpreter.native import Socket, poll
from utpsocket.engine.interpreter.originals import _socket, os
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import let_pass, suppress_errnos
from utpsocket.engine.kernel import fd_names
from utpsocket.engine.kernel.fd_names import Address
from utpsocket.engine.kernel.high_fds import with_room
from utpsocket.engine.loop import Loop
from utpsocket.engine.ports.connect_gate import may_be_reset
from utpsocket.engine.user_fds import reset
from utpsocket.engine.user_fds.socket_state import Identity, Role
from utpsocket.sockets import binding, fd_pair, fd_swap, registry

_UNCONNECTED: Final = Role.UNCONNECTED
_CONNECTING: Final = Role.CONNECTING
_POLLOUT: Final = 0x004
_POLLERR_OR_HUP: Final = 0x018
_BOTH_HALVES: Final = 3
_BY: Final = commands.CLAIM[0]
_ANY_PORT: Final = 9  # nothing is sent
_MAPPED: Final = bytes(10) + b"\xff\xff"
UNBOUND: Final = binding.UNBOUND
IN_PROGRESS: Final = (errno.EINPROGRESS, errno.EALREADY)


def os_error(code: int) -> OSError:
    """The OSError subclass of an errno, worded as the kernel's."""
    return OSError(code, os.strerror(code))


def check_open(sock: Any) -> None:
    """Raise EBADF for a closed socket."""
    if sock.fileno() < 0:
        raise os_error(errno.EBADF)


def bind(sock: Any, identity: Identity, address: Any) -> None:
    """The kernel judges the address on a UDP socket, which then becomes the engine's port."""
    finish_interrupted(sock, identity)
    before = identity.local, identity.bound
    loop = engine()
    key = 0
    try:
        key, local = binding.take_port(sock, loop, identity, address)
        loop.holders_watch.watch(sock.fileno(), identity.inode)
        identity.local = identity.bound = local
        identity.is_port_chosen = not int(address[1])
        identity.is_port_new = identity.role is not _UNCONNECTED
        if not identity.is_port_new:
            identity.cookie = identity.cookie or fd_names.new_cookie()
        identity.owner_pid = loop.pid
        identity.endpoint = key  # last: from here on the socket is bound
    except BaseException as error:
        if key or not binding.is_errno(error):
            identity.endpoint = 0
            identity.local, identity.bound = before
            if loop.is_alive:
                loop.tell(commands.unhold, identity.inode)
        elif isinstance(error, OSError) and error.errno == errno.EADDRINUSE:  # and nothing was bound
            identity.local = _left_of(identity.local, None)  # of what is closed; Linux forgets the address before
            identity.bound = identity.bound and UNBOUND[identity.family]  # though not that there was one
        raise


def connect(sock: Any, identity: Identity, address: Any, *, quietly: bool) -> int:
    """Begin to connect, or say how the attempt under way stands: EINPROGRESS, EALREADY, an errno, or 0.

    `quietly` words bad addresses as connect_ex() does.
    """
    if sock.fileno() >= 0 and (identity.is_unusable or identity.role is not _UNCONNECTED):
        code = _connect_again(sock, identity)
        if code is not None:
            return code
    if identity.claim is not None:
        finish_interrupted(sock, identity)
    loop = engine()
    udp = binding.udp_beside(sock, identity)
    try:
        is_from_group = identity.bound is not None and _is_multicast_or_broadcast(identity.family, identity.bound[0])
        if identity.bound is not None and not is_from_group:
            _bind_source(udp, identity.bound)
        code, peer = _connect_udp(udp, identity, address, quietly=quietly)
        if not code and is_from_group:
            udp = _udp_of_route(udp, identity)
        check_open(sock)
    except BaseException:
        udp.close()
        raise
    if code == errno.ECONNREFUSED:
        _dial_port_0(sock, identity, loop, udp)
        return errno.EINPROGRESS
    if code:
        udp.close()
        return code
    _dial(sock, identity, loop, udp, peer, is_apart=is_from_group or not identity.endpoint)
    return errno.EINPROGRESS


def _connect_again(sock: Any, identity: Identity) -> int | None:
    """What connect() says of a socket that is, or was, connecting, connected or listening; None where it may begin."""
    if identity.is_unusable:
        return errno.EINVAL
    role = identity.role
    if role is Role.CONNECTING:
        code = poll_connect(sock, identity)
        if code == errno.EINPROGRESS:
            return errno.EALREADY
        identity.is_told = True
        return code
    if role is Role.CONNECTED and not identity.is_told and not identity.is_over:
        identity.is_told = True
        return poll_connect(sock, identity)
    if role is Role.CONNECTED and not identity.is_told and identity.is_reset:
        # connect() has never said that the connection stood: now it says how it ended, and may be called anew.
        error = identity.take_error() or errno.ECONNABORTED
        release_chosen_port(identity)
        _renew(sock, identity)
        return error
    if role is Role.CONNECTED or role is Role.LISTENING:
        return errno.EISCONN
    if role is Role.FAILED:
        is_told = identity.is_told or identity.claim is not None  # of a renewal that was interrupted
        error = identity.take_error() or (0 if is_told else errno.ECONNABORTED)
        release_chosen_port(identity)
        _renew(sock, identity)
        if error:
            return error
    return None


def _connect_udp(udp: Any, identity: Identity, address: Any, *, quietly: bool) -> tuple[int, Any]:
    """Connect the UDP socket to the peer: 0 and the peer's address, or the errno for which TCP's connect() fails at
    once.
    """
    try:
        code = int((udp.connect_ex if quietly else udp.connect)(address) or 0)
    except OSError as error:
        if isinstance(error, stdlib.gaierror) or error.errno is None:
            raise
        code = error.errno
    if code == errno.EACCES:
        # A broadcast address, for which UDP wants SO_BROADCAST and TCP has no way; or the system forbids it.
        udp.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_BROADCAST, 1)
        return errno.ENETUNREACH if udp.connect_ex(address) != errno.EACCES else errno.EACCES, None
    if code in (errno.EINVAL, errno.EAFNOSUPPORT) and identity.family == stdlib.AF_INET6:
        # Of a multicast address without a scope, or from an IPv4 address, too, which TCP knows for one first.
        host = binding.resolved(identity, address)[0]
        return errno.ENETUNREACH if _is_multicast(identity.family, host) else code, None
    if code:
        return code, None
    try:
        peer = udp.getpeername()
    except OSError as error:  # port 0, to which UDP can "connect"
        let_pass(error)
        return errno.ECONNREFUSED, None
    return errno.ENETUNREACH if _is_multicast(identity.family, peer[0]) else 0, peer


def _bind_source(udp: Any, bound: Address) -> None:
    """Give the UDP socket the source of a bound socket's connection: the kernel judges the two addresses together, and
    tells what follows of the one for the other.
    """
    if bound[0] not in ("0.0.0.0", "::"):
        with suppress_errnos():  # the address is this machine's no more
            udp.bind((bound[0], 0, *bound[2:]))


def _is_multicast_or_broadcast(family: int, host: str) -> bool:
    """Whether this IPv4 address, to which a socket is bound, is a multicast or a broadcast one."""
    if family != stdlib.AF_INET or host == "0.0.0.0":
        return False
    if _is_multicast(family, host) or host == "255.255.255.255":
        return True
    with closing(with_room(partial(Socket, family, stdlib.SOCK_DGRAM, 0))) as reference_udp:
        if reference_udp.connect_ex((host, _ANY_PORT)) != errno.EACCES:
            return False
        reference_udp.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_BROADCAST, 1)
        return int(reference_udp.connect_ex((host, _ANY_PORT))) != errno.EACCES


def _udp_of_route(udp: Any, identity: Identity) -> Any:
    """Of a socket bound to a multicast or broadcast address: TCP connects from the address that the route says, and the
    same port. A UDP socket there, in the place of this one, which knows the route; at another port where that one is
    taken, which TCP would share.
    """
    assert identity.bound is not None
    own = binding.udp_beside(udp, identity)
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


def _dial(sock: Any, identity: Identity, loop: Loop | RemoteLoop, udp: Any, peer: Address, *, is_apart: bool) -> None:
    """Pair the user's fd with the engine and have it dial; `udp`, connected to `peer`, is the engine's from now on.
    `is_apart`: it is what the connection gets, and not only what knows the addresses of one from the bound port.

    A signal's handler may raise between any two lines. Before the engine has begun, the socket is then fresh again;
    afterwards it is connecting, as TCP's is. The claim decides which of the two it is.
    """
    claim: dict[str, str] = {}
    try:
        identity.claim = claim
        identity.ending, identity.told_errno = None, 0
        local = udp.getsockname()
        bound = identity.bound
        if bound is not None:
            local = local if is_apart else (local[0], bound[1], *local[2:])
        identity.local, identity.peer, identity.owner_pid = local, peer, loop.pid
        engine_sock = fd_pair.pair(sock, identity)
        fallback_us = -1
        if identity.routes is not None and identity.routes.fallback:
            fallback_us = int(identity.routes.fallback_seconds * 1_000_000)
        identity.role = _CONNECTING
        if not is_apart:
            udp.close()
            loop.post(commands.dial_from, identity.endpoint, peer, identity, engine_sock, fallback_us, claim)
        else:
            if identity.endpoint:
                loop.post(commands.unhold, identity.inode)
            loop.post(commands.dial_private, udp, identity, engine_sock, fallback_us, claim)
        identity.claim = None
    except BaseException:
        finish_interrupted(sock, identity)
        raise


def _dial_port_0(sock: Any, identity: Identity, loop: Loop | RemoteLoop, udp: Any) -> None:
    """An attempt that nobody can answer, and that UDP cannot even make: it begins, and is refused."""
    try:
        identity.claim = {_BY: "caller"}
        identity.ending, identity.told_errno = None, 0
        local = udp.getsockname()
        udp.close()
        bound = identity.bound
        if bound is not None and identity.endpoint:
            local = (local[0], bound[1], *local[2:])
        identity.local, identity.peer, identity.owner_pid = local, UNBOUND[identity.family], loop.pid
        engine_sock = fd_pair.pair(sock, identity)
        identity.role = Role.CONNECTING
        reset.close_engine_sock(engine_sock, identity, errno.ECONNREFUSED)
        identity.claim = None
    except BaseException:
        udp.close()
        finish_interrupted(sock, identity)
        raise


def release_chosen_port(identity: Identity) -> None:
    """A TCP socket that is closed, or listens no more, keeps the address that bind() was given, and the port only where
    bind() was given one.
    """
    if not identity.is_port_chosen or identity.is_port_new or not identity.endpoint:
        return
    loop = own_engine(identity)
    if loop is not None:
        loop.tell(commands.give_up_port, identity.endpoint, identity.inode)
    assert identity.bound is not None
    host = identity.bound[0]
    is_any = host == UNBOUND[identity.family][0]
    identity.endpoint, identity.is_port_chosen = 0, False
    identity.bound = None if is_any else (host, 0, *identity.bound[2:])


def listen(sock: Any, identity: Identity, backlog: int) -> None:
    """Listen at the bound port: the user's fd in the kernel, the engine for uTP, and for TCP where one is bound."""
    finish_interrupted(sock, identity)
    halves = identity.shut_halves
    if halves:
        _renew(sock, identity)  # connect() to an AF_UNIX socket that was shut down is refused
        identity.shut_halves = halves
    assert identity.local is not None
    loop = engine()
    try:
        identity.claim = {_BY: "caller"}
        name = fd_names.encode_listener(identity.cookie, identity.local, identity.owner_pid)
        Socket.bind(sock, name)
        Socket.listen(sock, backlog)
        if isinstance(loop, RemoteLoop) and sock.gettimeout() == 0:
            loop.ledger.check_listen(identity.endpoint, identity.inode)
            identity.role = Role.LISTENING  # before the engine may say what has come of it
            try:
                loop.post(commands.listen_soon, identity.endpoint, identity, name, max(1, backlog), identity.bound_tcp)
            except BaseException:
                identity.role = _UNCONNECTED
                raise
        else:
            loop.perform(commands.listen, identity.endpoint, identity, name, max(1, backlog), identity.bound_tcp)
            identity.role = Role.LISTENING
        identity.bound_tcp = None
        identity.claim = None
        if isinstance(loop, RemoteLoop):
            loop.listened.add(identity.local[1])
    except BaseException:
        if identity.role is not Role.LISTENING:
            finish_interrupted(sock, identity)
        identity.claim = None
        raise


def finish_interrupted(sock: Any, identity: Identity) -> None:
    """If the last connect() or listen() was interrupted: it is under way if the engine has begun, or never was.

    Called by who was interrupted, and at the next call too, since that may be interrupted as well.
    """
    claim = identity.claim
    if claim is None:
        return
    if claim.setdefault(_BY, "caller") == "caller":
        _renew(sock, identity)
    identity.claim = None


def before_shutdown(sock: Any, identity: Identity, how: int) -> None:
    """The user's end of a connection is about to be shut down, which may look like a close to the engine."""
    identity.shut_halves |= how + 1
    is_reset_by_close = identity.settings.linger_seconds == 0 and identity.shut_halves & 2
    loop = own_engine(identity)
    if (identity.shut_halves == _BOTH_HALVES or is_reset_by_close) and isinstance(loop, Loop):
        loop.holders_watch.watch(sock.fileno(), identity.inode)
        identity.is_shut_down = True
    elif identity.record is not None and identity.shut_halves & 2:
        identity.is_shut_down = True  # read by another process's engine, which may have been told of SO_LINGER


def receive_after_shutdown(identity: Identity, count: int, flags: int) -> bytes:
    """What has come after shutdown(SHUT_RD), for which the kernel has no place: up to so many bytes."""
    held = identity.held
    if not held or not count:
        return b""
    if flags & stdlib.MSG_PEEK:
        return b"".join(list(held))[:count]
    taken: list[bytes] = []
    while count:
        try:
            piece = held.popleft()
        except IndexError:
            break
        taken.append(piece[:count])
        if len(piece) > count:
            held.appendleft(piece[count:])
        count -= len(taken[-1])
    loop = own_engine(identity)
    if loop is not None:
        loop.post(commands.hold_more, identity.cookie)
    return b"".join(taken)


def shut_down_unconnected(sock: Any, identity: Identity, how: int) -> None:
    """shutdown() of what is not connected does what it says all the same: poll() and send() tell at once and go on so
    when the socket is connected, and whatever it accepts is shut down as well. And between a connection's end and the
    connect() that would tell it, a shutdown() leaves a socket that can do nothing more.
    """
    try:
        Socket.shutdown(sock, how)
    except OSError as error:
        let_pass(error)
    if identity.role is Role.UNCONNECTED:
        identity.shut_halves |= how + 1  # as the kernel counts them
    elif not identity.is_told:
        identity.is_unusable = True


def _is_multicast(family: int, host: str) -> bool:
    if family == stdlib.AF_INET:
        return 224 <= int(host.partition(".")[0]) < 240
    packed = stdlib.inet_pton(family, host.partition("%")[0])
    return packed[-4] >> 4 == 0xE if packed.startswith(_MAPPED) else packed[0] == 0xFF


def _renew(sock: Any, identity: Identity) -> None:
    """A fresh fd under the same number: after a failed attempt, and after one that was taken back.

    Whoever interrupts this leaves a socket with a claim, or one that has failed: the next call does it again.
    """
    if identity.claim is None:
        identity.claim = {_BY: "caller"}
    identity.is_port_new = False
    inode = identity.inode
    fd = sock.fileno()
    duplicates = _duplicates(identity, fd)
    identity.part()
    registry.forget(identity)
    fd_pair.renew(sock)
    options.restore(sock, identity)
    registry.register(sock, identity)
    _replace(duplicates, fd)
    identity.transport = "utp"
    identity.is_over = identity.is_reset = identity.is_gated = identity.is_told = False
    identity.is_after_eof = False
    identity.is_shut_down = False
    identity.shut_halves = 0
    identity.held = None
    identity.error = 0
    if identity.peer is not None and identity.local is not None and identity.bound == UNBOUND[identity.family]:
        # bind() has given it an address, and a later bind() that failed took it away: that of the attempt is its own.
        identity.bound = (identity.local[0], 0, *identity.local[2:])
    identity.local = _left_of(identity.local, identity.bound)
    identity.peer = None
    identity.cookie = fd_names.new_cookie() if identity.endpoint else 0  # the engine may still speak of the old one
    if identity.endpoint:
        _hold_again(sock, identity, inode)
    identity.role = Role.UNCONNECTED
    identity.claim = None


def _duplicates(identity: Identity, fd: int) -> list[int]:
    """The other fds of this socket in this process, which mean something else once they are told apart."""
    return [other for other in reset.fds_of(identity.inode) if other != fd] if identity.has_duplicates else []


def _replace(duplicates: list[int], fd: int) -> None:
    """Have them mean what `fd` means now."""
    for other in duplicates:
        try:
            os.dup2(fd, other, inheritable=os.get_inheritable(other))
        except OSError as error:
            let_pass(error)
            continue  # closed by another thread


def _left_of(local: Address | None, bound: Address | None) -> Address | None:
    """What getsockname() says of a socket that was closed, in TCP's sense: a port that it has no more is still told."""
    if local is None or (bound is not None and bound[1]):
        return bound
    host = bound[0] if bound is not None else UNBOUND[stdlib.AF_INET6 if len(local) == 4 else stdlib.AF_INET][0]
    return (host, local[1]) if len(local) == 2 else (host, local[1], 0, 0)


def disconnect(sock: Any, identity: Identity) -> None:
    """The kernel's own connect(), where it has waited for an attempt that failed, leaves a socket as before it."""
    try:
        release_chosen_port(identity)
        _renew(sock, identity)
    except OSError as error:
        let_pass(error)
        identity.claim = None  # no fd left, say: the next connect() does it


def become_unconnected(sock: Any, identity: Identity) -> None:
    """A listener that was shut down can listen or connect again, as TCP's; an AF_UNIX socket that has listened cannot.
    What waits for accept() goes with the old fd. Duplicates in other processes stay behind: their accept() says EINVAL.
    """
    if identity.routes is None:
        release_chosen_port(identity)
        _renew(sock, identity)


def _hold_again(sock: Any, identity: Identity, inode: int) -> None:
    """The port of a bound socket goes on being its own: a connection that ended may have given it up."""
    loop = engine()
    loop.holders_watch.watch(sock.fileno(), identity.inode)
    if loop.pid == identity.owner_pid and isinstance(loop, RemoteLoop) and sock.gettimeout() == 0:
        binding.keep_port(sock, loop, identity, inode)
    elif loop.pid != identity.owner_pid or not loop.perform(commands.hold_again, identity.endpoint, inode, identity):
        bound, identity.endpoint = identity.bound, 0
        identity.claim = None
        bind(sock, identity, bound)


def poll_connect(sock: Any, identity: Identity) -> int:
    """What has become of a connection attempt: EINPROGRESS, 0, or its errno, which is then told once."""
    if identity.owner_pid != serving_pid() and identity.role is Role.CONNECTING:
        # Of another process's engine, which tells the kernel, and perhaps not us.
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
        # Whoever ends an attempt writes down how before it closes its end. This one had no time to: the engine has
        # ended, or the program has closed all the fds that it found.
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
    """After connect() has waited: an acceptor of this process has the connection, too. An engine in a thread says both
    in one step (connect_gate.py); one in another process can but say the one right after the other.
    """
    loop = own_engine(identity)
    if isinstance(loop, RemoteLoop) and identity.peer is not None and identity.peer[1] in loop.listened:
        loop.call(commands.settled)


def _is_hung_up(sock: Any, identity: Identity) -> bool:
    fd = sock.fileno()
    if fd < 0 or identity.shut_halves == _BOTH_HALVES:
        return False  # closed by another thread, or hung up since before it was connecting
    poller = poll()
    poller.register(fd, 0)
    return bool(poller.poll(0))


def sync_network_side(sock: Any, identity: Identity) -> None:
    """Have the engine take in what has arrived, if that may be a peer's reset: it must be known to who asks now. A
    socket that does not block is told what is known already, since nothing else can be had without waiting.
    """
    loop = own_engine(identity)
    if loop is None or sock.gettimeout() == 0:
        return
    if isinstance(loop, RemoteLoop) or may_be_reset(loop, identity.cookie):
        loop.call(commands.sync_network_side, identity.cookie)


def abort_connecting(sock: Any, identity: Identity) -> bool:
    """End the connection attempt, as shutdown() of whatever half does to TCP's. False: it has ended by itself."""
    loop = own_engine(identity)
    if loop is not None and sock.gettimeout() == 0:
        _abort_at_once(sock, identity, loop)
        return True
    return loop is not None and bool(loop.call(commands.abort_connect, identity.cookie))


def _abort_at_once(sock: Any, identity: Identity, loop: Loop | RemoteLoop) -> None:
    """As the engine would end it, by who cannot wait for the engine: the user's fd becomes one that was reset."""
    loop.post(commands.abort_connect_late, identity.cookie)
    if isinstance(loop, RemoteLoop):
        identity.cookie = fd_names.new_cookie()  # what the engine writes of the attempt is of no interest any more
    identity.is_gated = False
    identity.is_over = identity.is_reset = True
    identity.error = errno.ECONNRESET
    identity.role = Role.FAILED
    try:
        fresh, engine_sock = _socket.socketpair(stdlib.AF_UNIX, stdlib.SOCK_STREAM, 0)
    except OSError as error:
        let_pass(error)
        return  # no fd left: then when the engine comes to it
    fresh.send(b"!")
    engine_sock.close()  # over an unread byte: ECONNRESET. unix(7)
    duplicates = _duplicates(identity, sock.fileno())
    registry.forget(identity)
    fd_swap.put(fresh, sock)
    registry.register(sock, identity)
    _replace(duplicates, sock.fileno())


def apply_options(identity: Identity, *, at_once: bool, to_living: bool, is_nodelay: bool) -> None:
    """Tell the engine of changed options; have a living connection follow them, before this returns or soon."""
    loop = own_engine(identity)
    if loop is not None:
        if isinstance(loop, RemoteLoop):
            loop.learn(identity)
        if to_living:
            follow(loop, identity.cookie, at_once=at_once, is_nodelay=is_nodelay)


def follow(loop: Loop | RemoteLoop, cookie: int, *, at_once: bool, is_nodelay: bool) -> None:
    """Have a connection follow its options, before this returns or soon; one that says only how what is written leaves,
    in time for what is written next, which wakes the engine up.
    """
    if at_once:
        loop.call(commands.apply, cookie)
    elif is_nodelay and isinstance(loop, Loop) and commands.holds_nothing(loop, cookie):
        loop.put_aside(commands.follow_nodelay, cookie)
    else:
        loop.post(commands.apply, cookie)


def own_engine(identity: Identity) -> Loop | RemoteLoop | None:
    """The engine that serves this socket, if it is this process's and can answer."""
    loop = running_engine()
    if loop is None or not loop.is_alive or loop.caller_pid != os.getpid() or sys.is_finalizing():
        return None
    return loop if loop.pid == identity.owner_pid else None


def take_error(sock: Any, identity: Identity) -> int:
    """SO_ERROR: the errno of what went wrong, once."""
    if identity.role is Role.CONNECTING:
        code = poll_connect(sock, identity)
        return 0 if code == errno.EINPROGRESS else code
    if identity.is_gated:
        fd_pair.open_gate(sock, identity)
    kernels = int(Socket.getsockopt(sock, stdlib.SOL_SOCKET, stdlib.SO_ERROR))
    return identity.take_error() or kernels

"""Commands: what the class socket asks of the engine. Small messages with addresses and fds, answered by a value or an
OSError.

The functions here run on the engine's thread, by Loop.call() or Loop.post(); sockets among their arguments belong to
the engine from then on. Those of ports that sockets are bound to say "any thread": they run on the caller's by
Loop.perform(), so that bind(), listen() and close() wait for no other thread. These read and write by single operations
of dicts, and leave the rest to the engine's thread (Loop.run_or_post()). There is no lock, which a signal's handler
that raises could leave locked.

The arguments of a command are plain values, identities, callbacks, claims and sockets, so that it can also be sent to
an engine in another process: helper/messages.py has the table of those that are, and of how each argument is sent. The
tables at the end of this file say what undoes a command that failed half way.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from functools import partial
from typing import Final, TypeAlias

from utpsocket.engine import command_queue, outside, statistics
from utpsocket.engine.channels.race import Attempt
from utpsocket.engine.channels.utp import Bridge
from utpsocket.engine.interpreter.native import Socket, poll
from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import reraise_handler_error, suppress_errnos
from utpsocket.engine.kernel import netns, port_selector
from utpsocket.engine.kernel.high_fds import UdpSocket, move_to_high_fd
from utpsocket.engine.kernel.poller import EPOLLHUP
from utpsocket.engine.loop import Loop
from utpsocket.engine.ports import overlapping_ports
from utpsocket.engine.ports.datagram_half import DatagramHalf
from utpsocket.engine.ports.endpoint import CLAIM_KEY, Endpoint
from utpsocket.engine.ports.listener import Listener
from utpsocket.engine.ports.reuseport import ReuseportSockets, is_shared
from utpsocket.engine.ports.tcp_listener import TcpListener
from utpsocket.engine.statistics import EngineFigures, PortFigures
from utpsocket.engine.user_fds import reset
from utpsocket.engine.user_fds.socket_state import Identity, Role
from utpsocket.protocol import Address, State
from utpsocket.protocol.report import Figures

_REPEATED_LAST_ACKS: Final = 2  # with the first one that is three; by feel
# Whether a socket at a wildcard address gets what is sent to groups that other sockets have joined. ip(7), ipv6(7)
_MULTICAST_ALL: Final = ((stdlib.IPPROTO_IP, 49), (stdlib.IPPROTO_IPV6, 29))
_YES: Final = (1).to_bytes(4, sys.byteorder)


_unix_socket: Final = partial(Socket, stdlib.AF_UNIX, stdlib.SOCK_STREAM, 0)


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def adopt_port(
    loop: Loop,
    udp_sock: Socket,
    identity: Identity,
    *,
    reuse_address: bool,
    shares: bool,
    key: int = 0,
    bound: tuple[Address, int] | None = None,
    reservation: Socket | None = None,
) -> int:
    """A user's socket is bound: its UDP socket becomes a port. Any thread. Returns the endpoint's key. Raises OSError.

    udp_sock        bound, unless there is a reservation
    reuse_address   SO_REUSEADDR is set
    shares          UTP_SHARE_PORT is set
    key             to be known by; 0: a new one
    bound           the socket's address and network namespace, if the caller knows them
    reservation     keeps the address for it (reuseport.py)
    """
    try:
        if reservation is not None and bound is None:
            bound = reservation.getsockname(), netns.cookie(reservation)
        endpoint = loop.new_endpoint(udp_sock, is_private=False, key=key, bound=bound)
    except BaseException:
        if reservation is not None:
            reservation.close()
        raise
    try:
        sock = endpoint.port.sock
        if not isinstance(sock, UdpSocket) and is_shared(sock):  # an UdpSocket has no options of the program's
            endpoint.reuseport_sockets = ReuseportSockets(endpoint, reservation)
        endpoint.holders[identity.inode] = identity
        endpoint.reuse_address, endpoint.shares_port = reuse_address, shares
        loop.publish(endpoint)
        loop.watch_port(endpoint)
    except BaseException:
        if endpoint.key in loop.endpoints:
            _drop_holder(loop, endpoint, identity.inode)
        else:
            endpoint.port.close()
            if reservation is not None:
                reservation.close()
        raise
    return endpoint.key


def adopt_port_as(
    loop: Loop,
    key: int,
    udp_sock: Socket,
    identity: Identity,
    reuse_address: bool,
    shares: bool,
    reservation: Socket | None = None,
) -> None:
    """As adopt_port(), of a caller that has chosen the key and does not wait."""
    adopt_port(loop, udp_sock, identity, reuse_address=reuse_address, shares=shares, key=key, reservation=reservation)


def share_port(
    loop: Loop, local: Address, identity: Identity, *, reuse_address: bool, shares: bool, namespace: int = 0
) -> int:
    """A user's socket is to be bound to an address that the kernel says is in use: share the port, if it is ours and
    may be shared. Any thread.

    SO_REUSEADDR is emulated: it is not set on the UDP socket, where it would let other programs take our datagrams. As
    over TCP it does not help beside a listener; UTP_SHARE_PORT does. Returns the endpoint's key, or 0 if no port of
    ours has the address. Raises EADDRINUSE; EAGAIN where the port is just being closed, and free in a moment.
    """
    for endpoint in list(loop.bound.get(local[1], ())):
        if endpoint.port.local[:2] != local[:2] or endpoint.port.namespace != namespace:
            continue
        for holder in list(endpoint.holders):
            if not loop.holders_watch.is_open(holder):
                _drop_holder(loop, endpoint, holder)
        if endpoint.closing_claim:
            raise _error(errno.EAGAIN)  # it is being closed: free now, or in a moment
        is_used = bool(endpoint.holders) or any(map(_is_open, list(endpoint.bridges.values())))
        is_shared = shares and endpoint.shares_port
        for other in endpoint.overlapping:
            is_held = other.holders and not (reuse_address and other.reuse_address)
            if is_held or overlapping_ports.listens(other):
                raise _error(errno.EADDRINUSE)
        is_listening = overlapping_ports.listens(endpoint)
        if not is_shared and (is_listening or (is_used and not (reuse_address and endpoint.reuse_address))):
            raise _error(errno.EADDRINUSE)
        if not _add_holder(endpoint, identity):
            raise _error(errno.EAGAIN)
        endpoint.reuse_address, endpoint.shares_port = reuse_address, shares
        return endpoint.key
    if any(map(overlapping_ports.is_unneeded, overlapping_ports.at(loop.bound, local, namespace))):
        raise _error(errno.EAGAIN)  # free in a moment, as above
    return 0


def allow_overlap(loop: Loop, local: Address, *, namespace: int = 0) -> list[int]:
    """A user's socket with SO_REUSEADDR is to be bound to an address that overlaps others (overlapping_ports.py). If
    those are ports of ours that may be overlapped, let the kernel bind it, until end_overlap(). Any thread.

    Returns their keys; none if it may not be. Raises EAGAIN as share_port() does.
    """
    found = overlapping_ports.at(loop.bound, local, namespace)
    for endpoint in found:
        for holder in list(endpoint.holders):
            if not loop.holders_watch.is_open(holder):
                _drop_holder(loop, endpoint, holder)
        if endpoint.closing_claim:
            raise _error(errno.EAGAIN)  # it is being closed: free now, or in a moment
    if not all(map(overlapping_ports.may_be_overlapped, found)):
        return []
    try:
        for endpoint in found:
            overlapping_ports.allow_overlap(endpoint, True)
        return [endpoint.key for endpoint in found]
    except BaseException:
        for endpoint in found:
            overlapping_ports.allow_overlap(endpoint, False)
        raise


def end_overlap(loop: Loop, keys: list[int], key: int) -> None:
    """The end of allow_overlap(), after the bind(). Any thread.

    keys   what that returned
    key    of the port that was bound; 0: it was not
    """
    for one in keys:
        endpoint = loop.endpoints.get(one)
        if endpoint is not None:
            overlapping_ports.allow_overlap(endpoint, False)
    joined = loop.endpoints.get(key)
    if joined is not None:
        overlapping_ports.join(loop.bound, joined)


def admit_datagrams(
    loop: Loop, local: Address, inode: int, token: bytes, traits: port_selector.Traits, namespace: int
) -> int:
    """A UDP socket of the program's is to be bound to the address of a port of ours: let the kernel do that, and offer
    it what only looks like uTP. Any thread.

    inode       of the program's socket, which holders_watch watches
    token       begins what it is offered (ports/datagram_half.py)
    traits      of the program's socket
    namespace   the cookie of its network namespace

    Returns the endpoint's key; 0 if no port of ours has the address. Raises EADDRINUSE where the port has such a socket
    already, or is shared with other processes; EAGAIN where it is just being closed.
    """
    for endpoint in list(loop.bound.get(local[1], ())):
        port = endpoint.port
        if port.local[:2] != local[:2] or port.namespace != namespace:
            continue
        for holder in list(endpoint.holders):
            if not loop.holders_watch.is_open(holder):
                _drop_holder(loop, endpoint, holder)
        if endpoint.closing_claim or overlapping_ports.is_unneeded(endpoint):
            raise _error(errno.EAGAIN)  # free in a moment
        half = endpoint.datagram_half
        has_other = half is not None and half.inode != inode and loop.holders_watch.is_open(half.inode)
        if has_other or endpoint.reuseport_sockets is not None or port_selector.traits(port.sock, local[0]) != traits:
            raise _error(errno.EADDRINUSE)
        join_datagrams(loop, endpoint.key, inode, token)
        return endpoint.key
    return 0


def join_datagrams(loop: Loop, key: int, inode: int, token: bytes) -> None:
    """A port of ours was bound beside a UDP socket of the program's. As admit_datagrams(). Any thread."""
    endpoint = loop.endpoints.get(key)
    if endpoint is not None:
        endpoint.port.set_option(stdlib.SOL_SOCKET, port_selector.REUSEPORT, _YES)
        for level, name in _MULTICAST_ALL:
            with suppress_errnos():  # of the other family, or this kernel does not know it
                endpoint.port.set_option(level, name, bytes(len(_YES)))
        endpoint.datagram_half = DatagramHalf(endpoint.port.local, inode, token)


def dismiss_datagrams(loop: Loop, key: int, inode: int) -> None:
    """The bind() after admit_datagrams() has failed. Any thread."""
    endpoint = loop.endpoints.get(key)
    if endpoint is not None and endpoint.datagram_half is not None and endpoint.datagram_half.inode == inode:
        endpoint.datagram_half = None
        with suppress_errnos():
            port_selector.let_join(endpoint.port.sock, False)


def _is_open(bridge: Bridge) -> bool:
    """Whether the user's fd of this connection is open, by poll(2): the engine may not have handled its close yet."""
    engine_sock = bridge.engine_sock
    if engine_sock is None:
        return False
    poller = poll()
    try:
        poller.register(engine_sock.fileno(), 0)
        return not any(mask & EPOLLHUP for _, mask in poller.poll(0))
    except ValueError:
        return False  # closed by now
    except OSError as error:
        reraise_handler_error(error)
        return False  # likewise


def _add_holder(endpoint: Endpoint, identity: Identity) -> bool:
    """Have a socket hold the port. Returns False if it is being closed: see Endpoint.claim_closing()."""
    endpoint.holders[identity.inode] = identity
    if endpoint.closing_claim:
        endpoint.holders.pop(identity.inode, None)
        return False
    return True


def replace_holder(loop: Loop, key: int, inode: int, identity: Identity) -> bool:
    """A bound socket has another fd now, with another inode than `inode`; it does not listen. Any thread. Returns False
    if the port is gone.
    """
    endpoint = loop.endpoints.get(key)
    if endpoint is None or not _add_holder(endpoint, identity):
        return False
    _stop_listener(loop, endpoint, inode)
    for holder in list(endpoint.holders):
        if holder != identity.inode and (holder == inode or not loop.holders_watch.is_open(holder)):
            _drop_holder(loop, endpoint, holder)
    return True


def drop_holders_of(loop: Loop, inode: int) -> None:
    """A bind() was interrupted: the socket holds no port. Any thread."""
    for endpoint in list(loop.endpoints.values()):
        if inode in endpoint.holders:
            _drop_holder(loop, endpoint, inode)


def has_port(loop: Loop, udp_sock: Socket) -> bool:
    """Whether this UDP socket has been published as a port's. Then only the engine's thread may close it: a new socket
    may get its fd number at once, which that thread has yet to forget. Any thread.
    """
    return any(endpoint.port.sock is udp_sock for endpoint in list(loop.endpoints.values()))


def leave_port(loop: Loop, key: int, inode: int) -> None:
    """A socket that is still open holds the port no more. Any thread."""
    endpoint = loop.endpoints.get(key)
    if endpoint is None:
        return
    if inode not in endpoint.holders and endpoint.closing_claim:
        loop.run_or_post(close_port, key, endpoint.closing_claim.get(CLAIM_KEY))  # it was interrupted
    else:
        _drop_holder(loop, endpoint, inode)


def listen(loop: Loop, key: int, identity: Identity, name: bytes, backlog: int, tcp_sock: Socket | None = None) -> None:
    """A user's socket listens. Any thread. Raises EADDRINUSE if another one listens at the port, or one it overlaps.

    key        of its port
    name       the abstract AF_UNIX name that the user's fd listens at
    tcp_sock   a bound TCP socket, to accept TCP as well
    """
    try:
        _listen(loop, _endpoint(loop, key), identity, name, backlog, tcp_sock)
    except BaseException:
        if tcp_sock is not None:
            tcp_sock.close()
        raise


def listen_soon(
    loop: Loop, key: int, identity: Identity, name: bytes, backlog: int, tcp_sock: Socket | None = None
) -> None:
    """As listen(), of a caller that does not wait and has the port for itself."""
    listen(loop, key, identity, name, backlog, tcp_sock)


def _listen(loop: Loop, endpoint: Endpoint, identity: Identity, name: bytes, backlog: int, tcp: Socket | None) -> None:
    listener = endpoint.listener
    if endpoint.is_in_other_namespace:
        netns.make_in_namespace_of(endpoint.port.sock, _unix_socket).close()  # or raise now that it will not work
    if listener is not None and not listener.has_stopped:
        if listener.inode == identity.inode:
            listener.backlog = backlog
            return
        if loop.holders_watch.is_open(listener.inode):
            raise _error(errno.EADDRINUSE)
        endpoint.holders.pop(listener.inode, None)
        _stop_listener(loop, endpoint, listener.inode)
    for other in endpoint.overlapping:
        if other.listener is not None and overlapping_ports.listens(other):
            if loop.holders_watch.is_open(other.listener.inode):
                raise _error(errno.EADDRINUSE)
    # At once: should the rest fail, what ends a listener finds it.
    listener = endpoint.listener = Listener(endpoint, identity, name, backlog)
    if endpoint.reuseport_sockets is not None:
        try:
            endpoint.reuseport_sockets.join_group()
        except OSError:
            endpoint.listener = None
            raise
    if tcp is not None:
        listener.tcp_listener = TcpListener(loop, listener)
        listener.tcp_listener.listen(tcp)


# Of a connect() that is posted, since a signal's handler may raise at any time: the engine enters its name before it
# dials, the caller its own to cancel the connect(). dict.setdefault() keeps the first entry. None: nothing cancels it.
Claim: TypeAlias = "dict[str, str] | None"
CLAIMED_BY_ENGINE: Final = ("by", "engine")


def dial_private(
    loop: Loop, udp_sock: Socket, identity: Identity, engine_sock: Socket, fallback_us: int = -1, claim: Claim = None
) -> None:
    """connect() of a socket that is not bound: from a UDP socket of its own. Raises OSError.

    udp_sock      bound by the kernel and connected to the peer, non-blocking
    engine_sock   the engine's end of the pair, whose gate is closed
    fallback_us   try TCP as well after so long without an answer; negative: never
    """
    if not _claim_for_engine(claim):
        udp_sock.close()
        engine_sock.close()
        return
    with loop.fd_lock:
        known = None
        if identity.local is not None and identity.peer is not None and identity.namespace:
            known = identity.local, identity.peer, identity.namespace
        endpoint = loop.open_endpoint(udp_sock, is_private=True, connected=known)
        peer = endpoint.port.peer
        assert peer is not None
        _dial(loop, endpoint, peer, identity, engine_sock, fallback_us)


def dial_from(
    loop: Loop,
    key: int,
    peer: Address,
    identity: Identity,
    engine_sock: Socket,
    fallback_us: int = -1,
    claim: Claim = None,
) -> None:
    """connect() of a socket that is bound: from its port `key`. Otherwise as dial_private()."""
    if not _claim_for_engine(claim):
        engine_sock.close()
        return
    endpoint = _endpoint(loop, key)
    with loop.fd_lock:
        _dial(loop, endpoint, peer, identity, engine_sock, fallback_us)
    endpoint.holders.pop(identity.inode, None)


def _claim_for_engine(claim: Claim) -> bool:
    """Claim the connect() for the engine. Returns False if its caller has cancelled it."""
    return claim is None or claim.setdefault(*CLAIMED_BY_ENGINE) == CLAIMED_BY_ENGINE[1]


def _dial(
    loop: Loop, endpoint: Endpoint, peer: Address, identity: Identity, engine_sock: Socket, fallback_us: int
) -> None:
    if engine_sock.gettimeout() != 0:
        engine_sock.setblocking(False)
    bridge = endpoint.dial(peer, identity)
    bridge.is_handed_over = bridge.is_gated = True
    bridge.engine_sock = move_to_high_fd(engine_sock)  # at once: from here on only the bridge closes it
    bridge.attach(bridge.engine_sock)
    loop.watch_bridge(bridge)
    if fallback_us >= 0:
        Attempt(loop, bridge, fallback_us)


def _undo_dial_private(
    loop: Loop, code: int, udp_sock: Socket, identity: Identity, engine_sock: Socket, *_: object
) -> None:
    """The connect() fails with this errno before its SYN has left."""
    _undo_dial(loop, code, identity, engine_sock)
    loop.close_opened()


def _undo_dial_from(
    loop: Loop, code: int, key: int, peer: Address, identity: Identity, engine_sock: Socket, *_: object
) -> None:
    """As _undo_dial_private(), of a socket that is bound to the port `key`."""
    _undo_dial(loop, code, identity, engine_sock)
    endpoint = loop.endpoints.get(key)
    if endpoint is not None and identity.inode in endpoint.holders:
        _drop_holder(loop, endpoint, identity.inode)
    loop.close_opened()


def _undo_dial(loop: Loop, code: int, identity: Identity, engine_sock: Socket) -> None:
    bridge = _bridge(loop, identity.cookie)
    if bridge is not None:
        if bridge.tcp_attempt is not None:
            bridge.tcp_attempt.withdraw()
        bridge.terminate(code)
    reset.record(identity, code, was_connecting=True)
    if engine_sock.fileno() >= 0:
        reset.close_engine_sock(engine_sock, identity, code)


def _undo_bind(loop: Loop, code: int, *arguments: object) -> None:
    """The user's socket is not bound: the port that was made for it is closed."""
    identity = next(argument for argument in arguments if isinstance(argument, Identity))
    drop_holders_of(loop, identity.inode)


def _undo_share(loop: Loop, code: int, local: Address, identity: Identity) -> None:
    """As _undo_bind(), where no port was made."""
    for endpoint in list(loop.bound.get(local[1], ())):
        if identity.inode in endpoint.holders:
            _drop_holder(loop, endpoint, identity.inode)


def _undo_listen(loop: Loop, code: int, key: int, identity: Identity, *_: object) -> None:
    """The user's socket does not listen: it is bound, as before."""
    endpoint = loop.endpoints.get(key)
    if endpoint is not None and identity.role is not Role.LISTENING:
        _stop_listener(loop, endpoint, identity.inode)


def _undo_listen_soon(loop: Loop, code: int, key: int, identity: Identity, *_: object) -> None:
    """The user's socket does not listen, and accept() fails with this errno."""
    endpoint = loop.endpoints.get(key)
    if endpoint is not None:
        _stop_listener(loop, endpoint, identity.inode)
    identity.error = code
    identity.role = Role.FAILED


def _terminate_connection(loop: Loop, code: int, cookie: int, *_: object) -> None:
    """A command about a connection has failed half way: the connection ends, since its state is not known."""
    channel = loop.channels.get(cookie)
    if channel is not None:
        channel.terminate(errno.ECONNABORTED)


def _undo_when_flushed(loop: Loop, code: int, cookie: int, callback: Callable[[], None]) -> None:
    """As _terminate_connection(), and the callback is called, since a thread waits for it."""
    _terminate_connection(loop, code, cookie)
    try:
        callback()
    except RuntimeError:
        pass  # it has been called


def _bridge(loop: Loop, cookie: int) -> Bridge | None:
    """The channel of this cookie, if it is over uTP. Any thread."""
    channel = loop.channels.get(cookie)
    return channel if isinstance(channel, Bridge) else None


def _endpoint(loop: Loop, key: int) -> Endpoint:
    endpoint = loop.endpoints.get(key)
    if endpoint is None:
        # Another process has got the address, and the bind() did not wait (helper/port_commands.py).
        raise _error(errno.EADDRINUSE)
    return endpoint


def release(loop: Loop, key: int, inode: int) -> bool:
    """A Python object over a bound or listening socket was closed, or gave up its fd. If no process has the socket open
    any more, it holds the port no more, which is closed once it is unused. Any thread.

    Returns False if a process has it open; it is then checked from time to time (watch_holder()).
    """
    endpoint = loop.endpoints.get(key)
    if endpoint is None:
        return True
    if inode not in endpoint.holders and endpoint.closing_claim:
        loop.run_or_post(close_port, key, endpoint.closing_claim.get(CLAIM_KEY))  # it was interrupted
        return True
    if loop.holders_watch.is_open(inode):
        if endpoint.listener is not None and endpoint.listener.inode == inode:
            endpoint.listener.may_be_closed = True
        loop.run_or_post(watch_holder, key, inode)
        return False
    _drop_holder(loop, endpoint, inode)
    return True


def watch_holder(loop: Loop, key: int, inode: int) -> None:
    """Check from time to time whether this socket, which was closed here, is still open in any process."""
    loop.recheck_holders = recheck_holders
    loop.rechecks.add(key, inode, now=loop.now)


def recheck_holders(loop: Loop) -> None:
    """Check the sockets of watch_holder() for which it is time."""
    for key, inode in loop.rechecks.due(loop.now):
        if release(loop, key, inode):
            loop.rechecks.forget(key, inode)


def on_accept(loop: Loop, key: int) -> None:
    """The program has accepted a connection while others waited for room in the accept queue (Identity.is_full)."""
    endpoint = loop.endpoints.get(key)
    if endpoint is not None and endpoint.listener is not None:
        endpoint.listener.on_room()


def stop_listening(loop: Loop, key: int, inode: int) -> None:
    """shutdown() of a listening socket: it keeps the port, and connections are refused."""
    endpoint = loop.endpoints.get(key)
    if endpoint is not None:
        _stop_listener(loop, endpoint, inode)
        if endpoint.reuseport_sockets is not None:
            endpoint.reuseport_sockets.leave_group(will_rejoin=True)


def _drop_holder(loop: Loop, endpoint: Endpoint, inode: int) -> None:
    """A socket holds the port no more. If it is unused now, its address is free at once, and its fd is closed soon."""
    claim = object()
    try:
        _stop_listener(loop, endpoint, inode)
        endpoint.holders.pop(inode, None)
        if not endpoint.bridges and endpoint.claim_closing(claim) and not loop.free_address(endpoint):
            endpoint.closing_claim.clear()
        if endpoint.reuseport_sockets is not None and endpoint.bridges and not endpoint.holders:
            endpoint.reuseport_sockets.leave_group()
    finally:
        loop.run_or_post(close_port, endpoint.key, claim)


def close_port(loop: Loop, key: int, claim: object) -> None:
    """Close a port that is unused. claim: of the caller that has claimed that already, or None."""
    endpoint = loop.endpoints.get(key)
    if endpoint is None:
        return
    if claim is not None and endpoint.closing_claim.get(CLAIM_KEY) is claim:
        for bridge in list(endpoint.bridges.values()):  # a SYN that arrived after the claim
            bridge.reset_unaccepted()
            loop.mark_dirty(bridge)
            loop.flush_now(bridge)
        loop.close_claimed(endpoint)
    elif endpoint.is_unused:
        loop.close_endpoint(endpoint)


def _stop_listener(loop: Loop, endpoint: Endpoint, inode: int) -> None:
    """If this socket listens, it stops: SYNs are refused from now on, connections that wait for accept() reset soon."""
    listener = endpoint.listener
    if listener is not None and listener.inode == inode:
        listener.has_stopped = True
        loop.run_or_post(end_listener, listener)


def end_listener(loop: Loop, listener: Listener) -> None:
    """Reset every connection of a listener that was not accepted. Idempotent."""
    left = listener.close()
    if listener.endpoint.listener is listener:
        listener.endpoint.listener = None
    loop.forget_listener(listener)
    for bridge in left:
        loop.mark_dirty(bridge)
        loop.flush_now(bridge)
    for bridge in list(listener.endpoint.bridges.values()):
        if bridge.engine_sock is not None and bridge.identity.user_fd < 0:  # in the kernel's queue, which is gone
            bridge.poll_engine_sock()
            loop.flush_now(bridge)


def barrier(loop: Loop) -> None:
    """Does nothing: once it is answered, all commands that were posted before are carried out."""


def abort_connect_late(loop: Loop, cookie: int) -> None:
    """As abort_connect(), of a caller that does not wait: a connection that has been established meanwhile is reset."""
    bridge = _bridge(loop, cookie)
    if not abort_connect(loop, cookie) and bridge is not None and bridge.tcp_attempt is None and not bridge.is_gone:
        bridge.connection.abort(errno.ECONNRESET)
        loop.flush_now(bridge)


def abort_connect(loop: Loop, cookie: int) -> bool:
    """shutdown() of a connecting socket: the connect() fails, as if reset. Returns False if it does not connect any
    more.
    """
    bridge = _bridge(loop, cookie)
    if bridge is None or bridge.tcp_attempt is not None or bridge.connection.state is not State.SYN_SENT:
        return False
    bridge.connection.abort(errno.ECONNRESET)
    loop.flush_now(bridge)
    return True


def sync_user_side(loop: Loop, cookie: int) -> None:
    """Take in what the program has done to this connection's fd by now, without waiting for epoll."""
    channel = loop.channels.get(cookie)
    if channel is not None:
        channel.sync_user_side()


def on_received_after_shutdown(loop: Loop, cookie: int) -> None:
    """The program has received bytes that were kept for it after shutdown(SHUT_RD): there is room for more."""
    bridge = _bridge(loop, cookie)
    if bridge is not None:
        loop.flush_now(bridge)


def sync_network_side(loop: Loop, cookie: int) -> None:
    """Receive what the network has brought for this connection by now, as kernel TCP would have done by itself."""
    channel = loop.channels.get(cookie)
    if channel is not None:
        channel.sync_network_side()


def when_flushed(loop: Loop, cookie: int, callback: Callable[[], None]) -> None:
    """Call back, on the engine's thread, once everything that the program wrote is acked or never will be."""
    channel = loop.channels.get(cookie)
    if channel is None:
        callback()
    else:
        channel.when_flushed(callback)


def apply(loop: Loop, cookie: int) -> None:
    """The program has set socket options of an established connection."""
    channel = loop.channels.get(cookie)
    if channel is not None:
        channel.apply_options()


def has_nothing_unsent(loop: Loop, cookie: int) -> bool:
    """Whether this is a connection over uTP with nothing unsent. Any thread."""
    bridge = _bridge(loop, cookie)
    return bridge is not None and not bridge.connection.send.unsent_bytes


def apply_nodelay(loop: Loop, cookie: int) -> None:
    """The program has set TCP_NODELAY while nothing was unsent: cheaper than apply()."""
    bridge = _bridge(loop, cookie)
    if bridge is None:
        return
    send = bridge.connection.send
    send.nodelay = bridge.identity.settings.nodelay
    if send.unsent_bytes:
        loop.mark_dirty(bridge)


def finish_all(loop: Loop) -> None:
    """The process ends: on every connection, read what the program wrote and send a FIN after it."""
    for channel in list(loop.channels.values()):
        channel.finish()


def unflushed(loop: Loop) -> tuple[int, int, int, int]:
    """How far the end of the process has come: (connections not flushed, bytes not acked on them, bytes acked so far,
    connections not flushed as their peer is alive and does not read).
    """
    waiting = lost_bytes = acked_bytes = unread = 0
    for channel in loop.channels.values():
        is_waiting, unacked_bytes, channel_acked_bytes, is_unread = channel.flush_progress()
        waiting += is_waiting
        lost_bytes += unacked_bytes
        acked_bytes += channel_acked_bytes
        unread += is_unread
    return waiting, lost_bytes, acked_bytes, unread


def abort_unflushed(loop: Loop) -> None:
    """The process ends and waits no longer: connections with bytes that are not acked are reset."""
    for channel in list(loop.channels.values()):
        if not channel.is_flushed:
            channel.abort()


def repeat_last_acks(loop: Loop) -> None:
    """The process ends, and TIME_WAIT with it. If our last ack was lost, the FIN that the peer repeats will get no
    answer, so that ack is sent twice more.
    """
    for bridge in list(loop.channels.values()):
        if isinstance(bridge, Bridge) and bridge.connection.state is State.TIME_WAIT and not bridge.is_gone:
            for _ in range(_REPEATED_LAST_ACKS):
                bridge.connection.receive.ack_at = loop.now
                bridge.endpoint.transmit(bridge, now=loop.now)


def has_open_sockets(loop: Loop) -> bool:
    """Whether any process has a socket open that this engine serves."""
    if any(channel.is_user_fd_open for channel in loop.channels.values()):
        return True
    holders = [inode for endpoint in list(loop.endpoints.values()) for inode in list(endpoint.holders)]
    return any(loop.holders_watch.is_open(inode) for inode in holders)


def connection_figures(loop: Loop, cookie: int) -> Figures:
    """The fields of this connection's ConnectionStats. Raises ENOTCONN."""
    channel = loop.channels.get(cookie)
    if channel is None or channel.connection is None:
        raise _error(errno.ENOTCONN)
    return channel.figures()


def channel_figures(loop: Loop, cookie: int) -> Figures:
    """The same, also where TCP carries the bytes."""
    channel = loop.channels.get(cookie)
    if channel is None:
        raise _error(errno.ENOTCONN)
    return channel.figures()


def snapshot(loop: Loop) -> tuple[EngineFigures, list[PortFigures], list[Figures]]:
    """The engine's figures of this instant, as plain values."""
    return statistics.of_engine(loop)


def answer_outside(loop: Loop, number: int) -> None:
    """Send the same to the process that has asked with this number (outside.py)."""
    with loop.fd_lock:
        outside.answer(number, partial(statistics.of_engine, loop))


command_queue.FROM_OUTSIDE.append(answer_outside)

command_queue.UNDO.update(
    {
        adopt_port: _undo_bind,
        adopt_port_as: _undo_bind,
        share_port: _undo_share,
        listen: _undo_listen,
        listen_soon: _undo_listen_soon,
        dial_private: _undo_dial_private,
        dial_from: _undo_dial_from,
        abort_connect: _terminate_connection,
        abort_connect_late: _terminate_connection,
        sync_user_side: _terminate_connection,
        sync_network_side: _terminate_connection,
        when_flushed: _undo_when_flushed,
        apply: _terminate_connection,
    }
)
command_queue.REPEATABLE.update(
    {
        release,
        on_accept,
        replace_holder,
        stop_listening,
        leave_port,
        end_overlap,
        admit_datagrams,
        join_datagrams,
        dismiss_datagrams,
        drop_holders_of,
        close_port,
        end_listener,
        watch_holder,
        barrier,
        apply_nodelay,
        finish_all,
        unflushed,
        repeat_last_acks,
        abort_unflushed,
        on_received_after_shutdown,
        has_open_sockets,
        connection_figures,
        channel_figures,
        snapshot,
    }
)

"""What send() and recv() of the class socket do of the engine's work themselves, on the thread that calls them.

For a message of one byte the work is small, and waking the engine's thread and the program's costs more than all else.
So where the engine's thread sleeps (steps.py has the rule)

    send()    of at most MAX_BYTES puts the bytes into the connection's send buffer and sends the packet. The socket
              pair is empty then, and stays it;
    recv()    of a socket that may block waits for the pair and for the connection's UDP socket, which epoll does not
              report meanwhile. It handles the datagram and delivers what is in it to the pair, for the recv(2) that
              follows.

All else is left to the engine's thread: what is not a lone packet of an established connection, ports with more than
one connection, connections that have more to send than one message. A connection for which that was so is served by
the engine's thread alone for PAUSE_US. Where there are more than MAX_CONNECTIONS, that thread works for all of them,
many messages in one iteration: one by one they would cost more, here and at the peer, which would receive them one by
one.

Called by threads of the program: not in the pure build, without UTPSOCKET_INLINE=1, or where calls must not keep the
GIL. Sources: docs/design.md §2; epoll_ctl(2), poll(2); PEP 475.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from utpsocket.engine import environment
from utpsocket.engine.channels.utp import Bridge
from utpsocket.engine.interpreter.native import Socket
from utpsocket.engine.interpreter.originals import os, time
from utpsocket.engine.kernel.native_calls import NativeStream
from utpsocket.engine.kernel.poller import PORT_EVENTS
from utpsocket.engine.kernel.syscalls import keeps_gil
from utpsocket.engine.loop import Loop
from utpsocket.engine.ports.endpoint import Endpoint
from utpsocket.protocol import Run
from utpsocket.protocol.build import IS_COMPILED
from utpsocket.protocol.packet import HEADER_BYTES
from utpsocket.protocol.times import NEVER

if IS_COMPILED:
    from utpsocket import _native

if TYPE_CHECKING:
    from utpsocket.protocol import Address

IS_POSSIBLE: Final = IS_COMPILED and keeps_gil()
"""Whether send() and wait() can do anything here."""
IS_ON: Final = IS_POSSIBLE and bool(environment.value_if_any("UTPSOCKET_INLINE", False))
"""Whether the class socket calls them."""
# In one send(). By feel: a request or an answer; more is bulk, which is sent best in large bursts.
MAX_BYTES: Final = 16 << 10
# So many unacknowledged packets, and what follows is collected by the engine's thread, as a stream of messages. By
# feel: a head and a body in two calls, and one more.
_MAX_IN_FLIGHT: Final = 3
# Of the engine. Measured, CPU time of both ends with steps to that without: one connection 0.70, two 0.77, four 1.05 to
# 1.15. Two may be both ends of one.
MAX_CONNECTIONS: Final = 2
# How long a connection is left to the engine's thread alone then; by feel: short for a person, long for a program.
PAUSE_US: Final = 100_000
_DATA: Final = 0x01  # type and version: BEP 29 "type", "version"
_STATE: Final = 0x21
_TIMED_OUT: Final = "timed out"
_MAX_TIMEOUT_MS: Final = 0x7FFFFFFF
# What wait_readable() of _native.c returns.
_PAIR: Final = 1
_PORT: Final = 2
_INTERRUPTED: Final = -errno.EINTR
_EPOLL_CTL_MOD: Final = 3
_NOT_HERE: Final = -1_000  # no errno
_FOR_EVER: Final = -1

_monotonic_ns: Final = time.monotonic_ns
_pid: Final = os.getpid
_fileno: Final = Socket.fileno


def send(engine: object, cookie: int, sock: Socket, data: bytes | bytearray) -> int:
    """Send bytes that a program writes, if the engine's thread need not be woken for that.

    engine    the process's, if there is one that runs
    cookie    the connection's, of Identity
    sock      the program's end of the pair
    data      nothing else was written on this connection by the same thread and not taken yet

    Returns how many bytes were taken, all or 0: then send() of the pair must be called.
    """
    if not isinstance(engine, Loop):
        return 0
    loop, count = engine, len(data)
    if len(loop.channels) > MAX_CONNECTIONS or not loop.sleeps_until or not 0 < count <= MAX_BYTES:
        return 0
    bridge = loop.channels.get(cookie)
    fd = _fileno(sock)  # another thread may have closed it
    if not isinstance(bridge, Bridge) or not bridge.may_step or fd < 0:
        return 0
    connection = bridge.connection
    half, stream, endpoint = connection.send, bridge.stream, bridge.endpoint
    if (
        connection.events
        or half.is_finishing
        or half.sent_offset != half.buffer.end_offset
        or half.flights.next_seq - half.flights.una_seq > _MAX_IN_FLIGHT
        or half.awaits_grant
        or endpoint.port.pending
        or not isinstance(stream, NativeStream)
        or loop.caller_pid != _pid()
        or not loop.begin_step()
    ):
        return 0
    taken = 0
    try:
        span = connection.free_span()
        if len(span) >= count:
            # What another thread has written comes first; and the program's end must not be shut down.
            found = stream.receive([span])
            if found == -errno.EAGAIN:
                if not _native.send(fd, []):
                    span[:count] = data
                    connection.commit(count)
                    taken = count
                    loop.serve(bridge)
            else:
                if found > 0:
                    connection.commit(found)
                loop.wake_bridge(bridge)  # which finds whatever else there is
                bridge.is_readable = True
        if not taken:
            connection.commit(0)
    except BaseException as error:
        _end_with(loop, bridge, error)
        return taken
    loop.end_step()
    return taken


def wait(engine: object, cookie: int, sock: Socket, seconds: float | None, until: int) -> int:
    """Wait for what recv() of this socket is to return, receiving the connection's datagrams meanwhile. It returns at
    once where the engine's thread must do that; and it may return too early, if there is no timeout.

    engine, cookie, sock   see send()
    seconds                of the socket's timeout, not 0; None: it blocks
    until                  0; then what this has returned

    Returns 0: then call recv() of the pair. Else call this again: a signal's handlers, which may do anything, run
    before, as the caller is interpreted. Raises TimeoutError after the timeout.
    """
    now = _monotonic_ns() // 1_000
    is_again = until != 0
    if not is_again:
        until = _FOR_EVER if seconds is None else now + int(seconds * 1_000_000)
    fd = _fileno(sock)
    if isinstance(engine, Loop) and len(engine.channels) <= MAX_CONNECTIONS and engine.sleeps_until and fd >= 0:
        bridge = engine.channels.get(cookie)
        if isinstance(bridge, Bridge) and bridge.may_step:
            endpoint = bridge.endpoint
            if (
                isinstance(endpoint, Endpoint)
                and endpoint.may_receive_at <= now
                and _has_one_connection(endpoint)
                and engine.caller_pid == _pid()
            ):
                found = _receive_until_readable(engine, bridge, endpoint, sock, fd, until)
                if found != _NOT_HERE:
                    return until if found == _INTERRUPTED else 0
                is_again = True
    if not is_again or seconds is None or fd < 0:
        return 0
    # What is left of the timeout; recv() would begin it anew.
    found = _native.wait_readable(fd, -1, _left_ms(until))
    if not found:
        raise TimeoutError(_TIMED_OUT)
    return until if found == _INTERRUPTED else 0


def _has_one_connection(endpoint: Endpoint) -> bool:
    """Whether all that its UDP socket receives is for one connection, but for strangers, and comes one by one."""
    return (
        len(endpoint.bridges) == 1
        and not endpoint.is_closed
        and endpoint.reuseport_sockets is None
        and not endpoint.overlapping
        and not endpoint.port.uses_recvmmsg
    )


def _left_ms(until: int) -> int:
    """Of a timeout, for poll(2); -1: for ever."""
    if until == _FOR_EVER:
        return -1
    left_us = until - _monotonic_ns() // 1_000
    return 0 if left_us <= 0 else min(-(-left_us // 1_000), _MAX_TIMEOUT_MS)


def _receive_until_readable(loop: Loop, bridge: Bridge, endpoint: Endpoint, sock: Socket, fd: int, until: int) -> int:
    """Receive the port's datagrams until the pair is readable: then it returns _PAIR. _INTERRUPTED: a signal has come,
    whose handlers have not run yet. _NOT_HERE: the rest is left to the engine's thread.

    Where the port is registered with epoll as usual all is well in any case, so that is what every way out makes.
    """
    port_fd = endpoint.port.fd
    if _native.epoll_ctl(loop.epoll_fd, _EPOLL_CTL_MOD, port_fd, 0):
        return _NOT_HERE
    endpoint.may_receive_at = NEVER
    may_receive_at = 0
    try:
        while True:
            found = _native.wait_readable(fd, port_fd, _left_ms(until))
            if not found:
                raise TimeoutError(_TIMED_OUT)
            if found == _INTERRUPTED:
                return _INTERRUPTED
            if found != _PORT:
                return _PAIR if found & _PAIR else _NOT_HERE
            if _fileno(sock) != fd or endpoint.is_closed or not bridge.may_step or not loop.begin_step():
                return _NOT_HERE
            before = bridge.connection.receive.reassembly.delivered_bytes
            if not _receive(loop, bridge, endpoint):
                may_receive_at = loop.now + PAUSE_US
                return _NOT_HERE
            if bridge.connection.receive.reassembly.delivered_bytes != before:
                return _PAIR
    finally:
        endpoint.may_receive_at = may_receive_at
        if not endpoint.is_closed and not endpoint.port.pending:
            _native.epoll_ctl(loop.epoll_fd, _EPOLL_CTL_MOD, port_fd, PORT_EVENTS)


def _receive(loop: Loop, bridge: Bridge, endpoint: Endpoint) -> bool:
    """A step, which has begun: receive one datagram, and do what follows from it. Returns False if more is to be left
    to the engine's thread.
    """
    arena, port = loop.arena, endpoint.port
    left: bytes | None = None
    try:
        run = port.receive(arena.room())
        if run is not None:
            data = run.data
            size = len(data)
            if (
                HEADER_BYTES <= size == run.stride
                and (data[0] == _DATA or data[0] == _STATE)
                and not data[1]
                and endpoint.bridges.get((run.addr, data[2] << 8 | data[3])) is bridge
            ):
                arena.used += size
                endpoint.handle_run(run, now=loop.now)
                loop.serve(bridge)
            else:
                left = bytes(data)
    except BaseException as error:
        _end_with(loop, bridge, error)
        return False
    loop.end_step()
    if run is None or left is None:
        return bridge.connection.send.sent_offset == bridge.connection.send.buffer.end_offset
    if left:
        loop.post(_handle_left_run, endpoint, left, run.stride, run.addr, run.local)
    else:
        loop.post(_read_port_again, endpoint)
    return False


def _end_with(loop: Loop, bridge: Bridge, error: BaseException) -> None:
    """An exception came out of a step: its connection ends, as by one of the engine's thread (faults.py). What a
    handler has raised goes on to the program.
    """
    loop.end_step()
    loop.post(_raise_fault, bridge, error)
    if not isinstance(error, Exception):
        raise error


def _raise_fault(loop: Loop, bridge: Bridge, error: BaseException) -> None:
    loop.owner = bridge
    if isinstance(error, OSError):
        raise RuntimeError("a step on a thread of the program has failed") from error  # an OSError would be an answer
    raise error


def _handle_left_run(
    loop: Loop, endpoint: Endpoint, data: bytes, stride: int, addr: Address, local: str | None
) -> None:
    """What a recv() has received and must not handle."""
    if not endpoint.is_closed:
        endpoint.handle_run(Run(memoryview(data), stride, addr, local), now=loop.now)


def _read_port_again(loop: Loop, endpoint: Endpoint) -> None:
    """A recv() has found an error at the port."""
    if not endpoint.is_closed:
        endpoint.receive(now=loop.now)

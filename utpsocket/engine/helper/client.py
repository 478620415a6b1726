"""The application's side of an engine in a process of its own: UTPSOCKET_ENGINE=process.

Read engine/current.py and loop.py first. An engine on a thread of the application's process shares the GIL with it: a
thread that computes can delay the engine by a switch interval (5 ms) each time it wakes up (docs/performance.md §9). In
a process of its own the application's threads cannot delay it. The socket pairs and their names are the same. Between
the two processes there are two connections (messages.py):

    requests    on the first: commands with plain arguments, and fds
    answers     on the first, in the other direction; read by a thread here, which sleeps otherwise, and given to the
                thread that made the request
    resets      likewise: a byte left unread makes the kernel return ECONNRESET, and only this process can write it
                (user_fds/reset.py). The same thread writes it, and closes the duplicate of the engine's end that came
                with the message
    notices     on the second: what the engine writes into an identity, sent before the user's fd shows anything. No
                thread waits for them. They are handled when the shim reads the identity, so that a thread that is woken
                by the fd sees them

Free-threaded CPython has no GIL. There this module only moves the engine's work out of the application's process. It
does not rely on the GIL: threads share deques and dicts, on which they do single operations, and a lock.

Any thread may call what is here. Sources: docs/sockets.md §1, §4; posix_spawn(3), setsid(2), unix(7).
"""

from __future__ import annotations

import errno
import itertools
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from utpsocket.engine import commands
from utpsocket.engine.command_queue import Answer
from utpsocket.engine.faults import NO_ROOM_ERRNOS
from utpsocket.engine.helper import messages, port_commands
from utpsocket.engine.helper.known_ports import KnownPorts
from utpsocket.engine.helper.messages import Argument
from utpsocket.engine.helper.request_queue import Requests
from utpsocket.engine.interpreter import garbage_collector
from utpsocket.engine.interpreter.fork_lock import ForkLock
from utpsocket.engine.interpreter.native import (
    Socket,
    allocate_lock,
    get_ident,
    new_reentrant_lock,
    sleep,
    start_thread,
)
from utpsocket.engine.interpreter.originals import _socket, fcntl, marshal, os, posix, signal
from utpsocket.engine.interpreter.signal_errors import or_none, reraise_handler_error
from utpsocket.engine.kernel import fd_name_key
from utpsocket.engine.kernel.poller import sleep_until_ready
from utpsocket.engine.user_fds import forked_copies, reset, shared_errnos
from utpsocket.engine.user_fds.forked_copies import after_notices
from utpsocket.engine.user_fds.open_fds import HoldersWatch
from utpsocket.engine.user_fds.socket_state import Identity, Role
from utpsocket.engine.user_fds.unaccepted import ResetUnaccepted
from utpsocket.protocol import Address, ConnectionStats, State
from utpsocket.protocol.report import Figures, fields

if TYPE_CHECKING:
    from typing import Concatenate

    from utpsocket.engine.command_queue import Receiver
    from utpsocket.engine.loop import Loop

_P = ParamSpec("_P")
_T = TypeVar("_T")
_POLLIN: Final = 0x001
# The engine's own keys count up from less than 2⁴⁹. Keys that are chosen here have this bit set, and are random below
# it.
_KEY_BITS: Final = 60
# For the lock of a thread that handles notices: it may itself wait for an answer that will not come. By feel.
_END_SECONDS: Final = 1.0
# Faults in a row after which the connection is given up, and the pause after each; by feel.
_MAX_TRIES: Final = 10
_TRY_AGAIN_SECONDS: Final = 0.001
# FD_SETSIZE: above the numbers that select() can watch.
_HIGH_FD: Final = 1_024
# The number of the control socket in the new process.
_CONTROL_FD: Final = 3
# More than the longest notice, by feel.
_NOTICE_BYTES: Final = 32 << 10
_BOOT_SCRIPT: Final = f"""
import os, sys
if os.fork():
    os._exit(0)
os.setsid()
try:
    os.write({_CONTROL_FD}, b"%d" % os.getpid())
except OSError:
    os._exit(0)
sys.modules["utpsocket"] = package = type(os)("utpsocket")
package.__path__ = [sys.argv[1]]
import utpsocket._pure
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
shared = PathFinder.find_spec("utpsocket__mypyc", [os.path.dirname(sys.argv[1])])
if shared is not None:
    sys.modules[shared.name] = module_from_spec(shared)
    shared.loader.exec_module(sys.modules[shared.name])
from utpsocket.engine.helper.server import main
main({_CONTROL_FD})
"""
"""The engine's process is started by a process that ends at once, so that it is no child of the program and wait() does
not return it. It has a session of its own, so that it gets no signals from the terminal. utpsocket/__init__.py is not
run there, since it imports the class socket. The library that compiled modules share lies beside the package, in a
folder that is not on sys.path there."""

# The engine of this process, if its thread runs.
_remote: RemoteLoop | None = None


class RemoteIdentity(Identity):
    """An identity of which an engine in another process writes some attributes: reading one handles notices first."""

    __slots__ = ()

    # WRITTEN_BY_ENGINE
    role = after_notices("role")
    error = after_notices("error")
    is_over = after_notices("is_over")
    is_reset = after_notices("is_reset")
    is_after_eof = after_notices("is_after_eof")
    transport = after_notices("transport")
    local = after_notices("local")
    is_full = after_notices("is_full")
    ending = after_notices("ending")


class _Callback:
    """In the place of an Answer: calls a function when the answer comes."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call

    def give(self, value: object, error: BaseException | None) -> None:
        self._call()


class _Figures:
    """In the place of an Answer: for the figures that latest_figures() has asked for."""

    __slots__ = ("_cookie", "_loop")

    def __init__(self, loop: RemoteLoop, cookie: int) -> None:
        self._loop = loop
        self._cookie = cookie

    def give(self, value: Any, error: BaseException | None) -> None:  # what connection_figures() returns
        self._loop.on_figures(self._cookie, None if error is not None else value)


def _no_figures(identity: Identity) -> Figures:
    """The figures of a connection for which the engine has not sent any yet."""
    state = State.SYN_SENT if identity.role is Role.CONNECTING else State.CONNECTED
    return fields(ConnectionStats(state=state.value, local=identity.local, peer=identity.peer))


def _new_key() -> int:
    """A key for a port, different from all that the engine chooses."""
    return int.from_bytes(os.urandom(8), "big") >> 64 - _KEY_BITS | 1 << _KEY_BITS


class RemoteLoop:
    """The methods of Loop that the application's side uses, carried out by an engine in another process.

    Raises, when made: OSError where no process can be started.

    caller_pid       the application's process
    pid              the engine's process
    fd_lock          held during a fork, and while fds are opened or closed here
    holders_watch    the bound and listening sockets (open_fds.py); the engine's process looks at the same epolls
    is_alive         the engine's process answers, as far as is known
    is_begun         start() has returned
    listened         port numbers that this process has listened at
    successor        the engine that has taken this one's place, under the key ""
    known_ports      the ports that the engine has for this process (known_ports.py)
    """

    def __init__(self) -> None:
        self.caller_pid = os.getpid()
        self.fd_lock = ForkLock()
        self.holders_watch = HoldersWatch(announce=self._announce)
        self.is_alive = True
        self.listened: set[int] = set()
        self.successor: dict[str, Any] = {}  # a RemoteLoop, or a Loop
        self._serials = itertools.count(1)  # of requests that are answered; 0: of those that are not
        self._answers: dict[int, Receiver] = {}  # that have not come yet, by serial
        self._served: dict[int, Identity] = {}  # connections by cookie, until the notice RELEASED
        self.known_ports = KnownPorts(self.holders_watch, lambda: list(self._served.values()))
        self._figures: dict[int, Figures] = {}  # the latest that the engine has sent, by cookie
        self._requested_figures: set[int] = set()  # cookies of connections
        self._known: WeakValueDictionary[int, Identity] = WeakValueDictionary()  # all that were sent, by cookie
        self._reset_unaccepted = ResetUnaccepted()
        self._pending: deque[bytes] = deque()  # notices that were received and not handled yet
        self._taking = new_reentrant_lock()  # held while notices are handled
        self._reset_requests: deque[tuple[list[Socket], int, bool]] = (
            deque()
        )  # engine's ends, cookie, whether sends fail
        self._message = b""  # of the engine's, as received
        self._message_fds: list[int] = []  # that came with it, and are not owned by an object yet
        self._message_ends: list[Socket] = []  # the objects that own the others
        self._tries = 0  # faults in a row while the message was handled
        self._received: dict[int, list[bytes]] = {}  # parts of answers, by serial
        self._helper_id = 0  # identifier of the thread that reads the answers
        self._is_stopping = False  # stop() was called: connections that are left were not reset
        self._has_ended = allocate_lock()  # released when that thread ends
        self._has_ended.acquire()
        self._collector_pause = garbage_collector.CollectorPause()  # of that thread
        self._control, control = _socket_pair()  # requests, answers, resets
        self._notices, notices = _socket_pair()
        try:
            self.pid = _spawn(self._control, control)
            with shared_errnos.new_file() as outcomes:
                shared_errnos.begin(self.pid, outcomes.fileno())
                messages.send(self._control, None, [notices.fileno(), outcomes.fileno(), *self._holders_fds()])
        except BaseException:
            self._close()
            raise
        finally:
            control.close()
            notices.close()
        self._control_file = os.fstat(self._control.fileno())
        self._requests = Requests(self._control, self._on_end)
        self._next_notice = partial(self._notices.recv, _NOTICE_BYTES, _socket.MSG_DONTWAIT)
        self._starting = allocate_lock()  # taken by the first thread that _run() is called on
        self.is_begun = False

    def start(self) -> None:
        """Start the thread that reads answers, if there is none yet. Any thread; may be repeated after an exception.

        Raises: RuntimeError where there can be no thread.
        """
        global _remote
        if not self.has_started:
            _remote = self
            forked_copies.take_notices = self.take_notices
            try:
                self._collector_pause.begin()
                start_thread(self._run, b"utpsocket")
                self.is_begun = True
            except BaseException:
                self._collector_pause.end()
                raise

    @property
    def has_started(self) -> bool:
        """Whether there is, or was, a thread that reads answers. Any thread."""
        return self.is_begun or self._starting.locked()

    def discard(self) -> None:
        """Close an engine that was never started. Its process ends when the control socket is closed."""
        self._close()

    def _holders_fds(self) -> list[int]:
        return self.holders_watch.fds

    # ── commands of other threads ──

    def post(self, command: Callable[..., object], *arguments: object) -> None:
        """Have the engine carry out a command, without waiting for it.

        Parameters:
            command: one of messages.COMMANDS.
            arguments: its arguments, without the loop. Sockets among them are closed once they are sent.
        Raises: OSError where the kernel has no memory for the message. An error of the command is not raised.
        """
        self._request(0, command, arguments, {})

    def call(self, command: Callable[Concatenate[Loop, _P], _T], *arguments: _P.args, **named: _P.kwargs) -> _T:
        """Have the engine carry out a command, and wait for it.

        Parameters:
            command, arguments: as in post().
            named: keyword arguments, plain values.
        Returns: what the command returns, a plain value; None on the thread that reads answers, which does not wait.
        Raises: OSError of the command (faults.to_os_error()); ECONNABORTED if the engine's process ends first;
            RuntimeError while the interpreter is ending.
        """
        if sys.is_finalizing():
            raise RuntimeError("the interpreter is ending, and the thread that would take the answer with it")
        if get_ident() == self._helper_id:
            # An audit hook of the program's may run on this thread, which would wait for itself.
            self.post(command, *arguments)
            return None  # type: ignore[return-value]
        answer: Answer[_T] = Answer()
        serial = next(self._serials)
        self._answers[serial] = answer
        try:
            self._request(serial, command, arguments, named)
        except BaseException:
            self._answers.pop(serial, None)
            raise
        return answer.wait()

    def perform(self, command: Callable[Concatenate[Loop, _P], _T], *arguments: _P.args, **named: _P.kwargs) -> _T:
        """As call(). Loop.perform() carries the command out on the calling thread, which is not possible here."""
        return self.call(command, *arguments, **named)

    def perform_or_post(self, command: Callable[..., object], *arguments: object) -> None:
        """As post(). Loop.perform_or_post() carries the command out at once."""
        self.post(command, *arguments)

    def adopt_port(
        self,
        udp_sock: Socket,
        local: Address,
        identity: Identity,
        *,
        reuse_address: bool,
        shares: bool,
        reservation: Socket | None = None,
    ) -> int:
        """A user's socket is bound: its UDP socket becomes a port of the engine's. Does not wait for the engine.

        Parameters:
            udp_sock: bound, unless there is a reservation; the engine's from now on.
            local: its address.
            identity: the user's socket.
            reuse_address: SO_REUSEADDR is set.
            shares: UTP_SHARE_PORT is set.
            reservation: a socket that keeps the address for it (reuseport.py); the engine's as well.
        Returns: the port's key, which is chosen here.
        Raises: OSError as post(). Should the engine fail, the socket has failed, and its next call reports it.
        """
        key = _new_key()
        self.known_ports.add(key, local, identity, reuse_address=reuse_address, shares=shares)
        self.post(commands.adopt_port_as, key, udp_sock, identity, reuse_address, shares, reservation)
        return key

    def take_port(
        self, udp_sock: Socket, local: Address, identity: Identity, *, reuse_address: bool, shares: bool
    ) -> int:
        """Have the engine bind a user's socket to an address at which the kernel returned EADDRINUSE for a port of
        ours. Does not wait for the engine.

        Parameters: as adopt_port(), with a UDP socket that is not bound, in case the port is closed meanwhile.
        Returns: the port's key.
        Raises: EADDRINUSE where the address may not be shared; OSError as post().
        """
        key = self.check_bind(local, identity, reuse_address=reuse_address, shares=shares) or _new_key()
        self.known_ports.add(key, local, identity, reuse_address=reuse_address, shares=shares)
        self.post(port_commands.take_port, key, udp_sock, local, identity, reuse_address, shares, identity.namespace)
        return key

    def check_bind(self, local: Address, identity: Identity, *, reuse_address: bool, shares: bool) -> int:
        """KnownPorts.check_bind(), after the notices that have arrived."""
        self.take_notices()
        return self.known_ports.check_bind(local, identity.namespace, reuse_address=reuse_address, shares=shares)

    def keep_port(
        self,
        udp_sock: Socket,
        inode: int,
        identity: Identity,
        *,
        reuse_address: bool,
        shares: bool,
        reservation: Socket | None,
    ) -> None:
        """As commands.replace_holder(), without waiting; where the port is gone the socket gets it anew."""
        key, local, namespace = identity.endpoint, identity.bound, identity.namespace
        self.known_ports.replace_holder(key, inode, identity)
        self.post(
            port_commands.keep_port,
            key,
            udp_sock,
            inode,
            local,
            identity,
            reuse_address,
            shares,
            namespace,
            reservation,
        )

    def latest_figures(self, cookie: int) -> Figures:
        """The latest figures of a connection that the engine has sent. Newer ones are requested, and not waited for.

        Returns: the fields of ConnectionStats.
        Raises: ENOTCONN if the engine serves no uTP connection of this cookie.
        """
        self.take_notices()
        identity = self._served.get(cookie)
        if identity is None or identity.transport != "utp":
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        if cookie not in self._requested_figures:
            self._requested_figures.add(cookie)
            serial = next(self._serials)
            self._answers[serial] = _Figures(self, cookie)
            self._request(serial, commands.connection_figures, (cookie,), {})
        found = self._figures.get(cookie)
        if found is None or (found[0] == State.SYN_SENT.value and identity.role is Role.CONNECTED):
            return _no_figures(identity)  # a notice has overtaken the figures
        return found

    def on_figures(self, cookie: int, fields: Figures | None) -> None:
        """The answer to latest_figures(); None: the engine has no such connection."""
        if fields is not None and cookie in self._served:
            self._figures[cookie] = fields
        self._requested_figures.discard(cookie)

    def send_update(self, identity: Identity) -> None:
        """Send the engine an identity that the shim has changed. Raises OSError as post()."""
        self._requests.put((0, messages.UPDATE, [messages.identity_form(identity)], {}), [], [])

    def _announce(self, inode: int, index: int, gone: list[int], fds: list[int]) -> None:
        """Send the engine's process the number of the epoll in which a socket is registered (open_fds.py)."""
        self._requests.put((0, messages.WATCHED, [inode, index, gone], {}), fds, [])

    def _request(
        self, serial: int, command: Callable[..., object], arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        self.known_ports.note(command, arguments)
        plain: list[object] = []
        socks: list[Socket] = []
        sent = None
        remote_command = messages.remote_command(command.__name__)
        for argument, value in zip(remote_command.arguments, arguments, strict=False):
            if argument is Argument.PLAIN:
                plain.append(value)
            elif argument is Argument.IDENTITY:
                plain.append(messages.identity_form(self._registered(value, is_dialed=remote_command.is_dialed)))
            elif argument is Argument.CALLBACK:
                called_at = next(self._serials)
                plain.append(called_at)
                self._answers[called_at] = _Callback(value)
            elif argument is Argument.CLAIM:
                plain.append(None)
                sent = partial(value.setdefault, *commands.CLAIMED_BY_ENGINE)
            elif value is None:  # no socket
                plain.append(None)
            else:
                plain.append(True)
                socks.append(value)
        fds = [sock.fileno() for sock in socks]
        self._requests.put((serial, command.__name__, plain, named), fds, socks, sent)

    def _registered(self, identity: Identity, *, is_dialed: bool) -> Identity:
        if identity.record is None:
            identity.change_class(RemoteIdentity)
        if identity.cookie:
            self._known[identity.cookie] = identity
        if is_dialed:
            self._served[identity.cookie] = identity
        return identity

    # ── messages of the engine ──

    def take_notices(self) -> None:
        """Handle the notices that have arrived: write them into their identities. Any thread. Raises nothing."""
        may_be_more = garbage_collector.call_locked(self._taking, self._take_all)
        if not may_be_more:
            self._on_end()

    def _take_all(self) -> bool:
        """Whether there may be more to come. The caller has the lock."""
        has_ended = False
        try:
            # One call in C for all of them: an exception of a signal handler must not lose any.
            self._pending.extend(iter(self._next_notice, b""))
            has_ended = True
        except OSError as error:
            reraise_handler_error(error)  # no more of them now
        pending = self._pending
        while pending:
            first = pending[0]
            self._take(*marshal.loads(first))  # may call this method again, which handles `first` once more
            if pending and pending[0] is first:
                pending.popleft()  # last: after an exception of a signal handler it is handled again
        return not has_ended

    def _take(self, cookie: int, name: str, value: Any) -> None:  # the value's type depends on the name
        if name == messages.ACCEPTED:
            transport, form = value
            identity: Identity = RemoteIdentity(form[0]["family"])
            messages.fill(identity, form)
            identity.role = Role.CONNECTED
            identity.transport = transport
            identity.is_connect_reported = True
            identity.owner_pid = self.pid
            self._served[cookie] = self._known[cookie] = identity
        elif name == messages.BOUND:
            self.known_ports.on_bound(value)
        elif name == messages.FREE:
            self.known_ports.on_free(value)
        elif name == messages.RELEASED:
            gone = self._served.pop(cookie, None)
            self._figures.pop(cookie, None)
            if gone is not None:
                self._reset_unaccepted.remember(cookie, gone)
        else:
            known = self._known.get(cookie)
            if known is not None and known.cookie == cookie:
                setattr(known, name, Role(value) if name == "role" else value)

    def identity_of(self, cookie: int) -> Identity | None:
        """The identity of this cookie, if the engine serves it, or it was reset before it was accepted. Any thread."""
        self.take_notices()
        return self._served.get(cookie) or self._reset_unaccepted.pop(cookie, None)

    def _run(self) -> None:
        """The thread that reads answers and requests for resets."""
        if not self._starting.acquire(False):
            return  # another call of start() has done it
        self._helper_id = get_ident()
        self._collector_pause.enter()
        try:
            while self._tries < _MAX_TRIES:
                try:
                    self._listen()
                except BaseException:  # no memory, say: the received message is handled again
                    self._tries += 1
                    sleep(_TRY_AGAIN_SECONDS)
                    self._force_resets_in_thread()
                else:
                    break
        finally:
            self._on_end()
            if self.check_fds():
                self._close()
            self._collector_pause.end()
            self._has_ended.release()

    def _listen(self) -> None:
        """Read and handle messages until the engine's process ends."""
        while True:
            if not self._message:
                sleep_until_ready(self._collector_pause, [(self._control.fileno(), _POLLIN)], -1.0)
                try:
                    self._message, self._message_fds = messages.receive_raw(self._control)
                except OSError as error:
                    reraise_handler_error(error)
                    if error.errno in NO_ROOM_ERRNOS:
                        sleep(_TRY_AGAIN_SECONDS)
                        continue
                if not self._message:
                    return
            serial, *rest = messages.read(self._message)
            if serial == messages.FORCE_RESET:
                while self._message_fds:
                    self._message_ends.append(Socket(fileno=self._message_fds[0]))
                    del self._message_fds[0]
                self._reset_requests.append((self._message_ends, *rest))
                self._message, self._message_ends = b"", []
                if not self._force_resets(wait=False):
                    self._force_resets_in_thread()
                self._tries = 0
                continue
            part, has_more = rest
            received = [*self._received.get(serial, ()), part]
            if has_more:
                self._received[serial] = received
                self._message = b""
            else:
                self._deliver_answer(serial, *messages.join_parts(received))
                self._message = b""  # last: if that fails, all of it is repeated
                self._received.pop(serial, None)
            self._tries = 0

    def _deliver_answer(self, serial: int, value: object, code: int, text: str) -> None:
        answer = self._answers.pop(serial, None)
        if answer is not None:
            answer.give(value, (OSError(code, text) if code else RuntimeError(text)) if text else None)

    def _force_resets_in_thread(self) -> None:
        """_force_resets() on another thread: the thread that has the lock may be waiting for an answer that this thread
        has to read.
        """
        try:
            start_thread(self._force_resets, b"utpsocket-resets")
        except Exception:
            pass  # there can be no thread now: they are done with the next message

    def _force_resets(self, *, wait: bool = True) -> bool:
        """Do what FORCE_RESET messages have asked for. The duplicates of the engine's ends are the last ones, so that
        their close, over an unread byte, resets the connections. False: another thread has a lock, and wait is False.
        """
        force_all = self._force_all_resets  # before the lock is acquired: what is made with it might begin a collection
        if not self.fd_lock.acquire(wait=wait) and not wait:
            return False
        try:
            if not self._taking.acquire(wait):
                return False
            try:
                garbage_collector.call_locked(self._taking, force_all)
            finally:
                self._taking.release()
        finally:
            self.fd_lock.release()
        return True

    def _force_all_resets(self) -> None:
        self.take_notices()
        while self._reset_requests:
            self._force_reset(*self._reset_requests[0])
            self._reset_requests.popleft()  # last: if that fails, it is repeated

    def _force_reset(self, ends: list[Socket], cookie: int, refuses: bool) -> None:
        identity = self._known.get(cookie)
        for end in ends:
            if end.fileno() >= 0:
                if refuses:
                    reset.refuse_as_user(identity, end)
                else:
                    reset.write_as_user(identity, end.fileno())
            end.close()

    # ── endings ──

    def check_fds(self) -> bool:
        """Whether the control socket is still open. A daemon may have closed every fd (os.closerange); then False, and
        is_alive is False from now on. Raises nothing.
        """
        found = or_none(os.fstat, self._control.fileno())
        if found is not None and os.path.samestat(found, self._control_file):
            return True
        self.is_alive = False
        for sock in (self._control, self._notices):
            sock.detach()
        return False

    def stop(self) -> None:
        """End the engine's process without a flush, and wait until its end of the control socket is closed."""
        self._is_stopping = True
        self._requests.put((0, messages.STOP, [], {}), [], [])
        self._has_ended.acquire()
        self._has_ended.release()
        self._close()

    def abandon_in_child(self) -> None:
        """After a fork, in the child: close our copies of the parent's fds and touch nothing else."""
        garbage_collector.end_in_child()
        self._close()

    def _on_end(self) -> None:
        """The engine's process has ended, and its connections. Threads that wait for answers get ECONNABORTED."""
        self.is_alive = False
        take_all = self._take_all  # before the lock is acquired, as in _force_resets()
        if self._taking.acquire(True, _END_SECONDS):
            try:
                garbage_collector.call_locked(self._taking, take_all)
            finally:
                self._taking.release()
        if forked_copies.take_notices == self.take_notices:
            forked_copies.take_notices = None  # or a thread that has the lock, and waits, would be waited for below
        served, self._served = self._served, {}
        for identity in list(served.values()):
            if identity.role is Role.CONNECTING or not (identity.is_over or self._is_stopping):
                identity.error = errno.ECONNRESET
                identity.is_over = identity.is_reset = True
            if identity.role is Role.CONNECTING:
                identity.role = Role.FAILED
        for serial in list(self._answers):
            self._deliver_answer(serial, None, errno.ECONNABORTED, "the engine's process has ended")

    def _close(self) -> None:
        global _remote
        if _remote is self:
            _remote = forked_copies.take_notices = None
        for sock in (self._control, self._notices):
            sock.close()
        self.holders_watch.close()


def _socket_pair() -> tuple[Socket, Socket]:
    ours, theirs = map(_at_high_fd, _socket.socketpair(_socket.AF_UNIX, messages.TYPE))
    for end in (ours, theirs):
        end.setblocking(True)  # also where the program has called setdefaulttimeout()
    return ours, theirs


def _at_high_fd(sock: Socket) -> Socket:
    duplicated = iter(partial(fcntl.fcntl, sock.fileno(), fcntl.F_DUPFD_CLOEXEC, _HIGH_FD), -1)
    try:
        moved = next(map(partial(Socket, -1, -1, -1), duplicated))  # one expression of C: no fd is without an owner
    except OSError as error:
        reraise_handler_error(error)
        return sock
    sock.close()
    return moved


def _spawn(ours: Socket, theirs: Socket) -> int:
    """Start the engine's process with one end of the control pair; returns its pid."""
    if not sys.executable:
        raise OSError(errno.ENOENT, "UTPSOCKET_ENGINE=process needs sys.executable, and there is none")
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    command = [sys.executable, "-I", "-S", "-B", "-c", _BOOT_SCRIPT, package, f"utpsocket engine of {os.getpid()}"]
    starter = posix.posix_spawn(  # not os or subprocess, which gevent patches
        sys.executable,
        command,
        {**os.environ, fd_name_key.VARIABLE: fd_name_key.text()},
        file_actions=[
            (posix.POSIX_SPAWN_DUP2, theirs.fileno(), _CONTROL_FD),
            (posix.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (posix.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        ],
        setsigmask=[],
        setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
    )
    theirs.close()
    try:
        posix.waitpid(starter, 0)
    except ChildProcessError:
        pass  # another thread has waited for it, or SIGCHLD is ignored
    hello = ours.recv(64)
    if not hello:
        raise OSError(errno.ECHILD, "the engine's process did not start")
    return int(hello)

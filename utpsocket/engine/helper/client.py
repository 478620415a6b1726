"""An engine in a process of its own, as the application sees it: UTPSOCKET_ENGINE=process.

Read engine/__init__.py and loop.py first. In the thread of an application's process the engine shares the GIL with it:
every system call gives the GIL away, and a thread that computes keeps it for a switch interval (5 ms) before the engine
has it back (docs/performance.md §9). In a process of its own nothing of the application's can hold the engine up. The
pairs, their gates and names are the same; what differs is how the two speak, and who hears what:

    requests    commands with plain arguments, and fds, over a socket pair (messages.py)
    answers     read by a thread here that sleeps otherwise, and given to whoever asked
    farewells   a byte left unread makes the kernel say ECONNRESET, and only this process can write it
                (user_fds/reset.py): that thread does, and closes the copy of the engine's end that came with the wish
    notices     what the engine writes into an identity, before it tells the user's fd. Nobody waits for them: they are
                taken in when the shim reads the identity, so whoever was woken by its fd finds them there

Free-threaded CPython has no GIL that a computing thread could hold: there the thread starves only where the machine has
fewer cores than busy threads, which is the kernel's to share out, and this module is of use only to keep the engine's
work off the application's process. It relies on no GIL: shared are deques, dicts of whole operations, and a lock.

Any thread may call what is here. Sources: docs/sockets.md §1, §4; posix_spawn(3), setsid(2), unix(7).
"""

from __future__ import annotations

import errno
import itertools
import sys
from collections import deque
from collections.abc import Callable
from fcntl import F_DUPFD_CLOEXEC, fcntl
from functools import partial
from typing import Any, Final
from weakref import WeakValueDictionary

from utpsocket.engine import commands
from utpsocket.engine.command_queue import Answer
from utpsocket.engine.faults import NO_ROOM
from utpsocket.engine.helper import messages, port_commands
from utpsocket.engine.helper.known_ports import Ledger
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
from utpsocket.engine.interpreter.originals import _socket, marshal, os, posix, random, signal
from utpsocket.engine.interpreter.signal_errors import let_pass, or_none
from utpsocket.engine.kernel import fd_name_key
from utpsocket.engine.kernel.fd_names import Address
from utpsocket.engine.kernel.poller import sleep_until_ready
from utpsocket.engine.user_fds import forked_copies, reset, shared_errnos
from utpsocket.engine.user_fds.forked_copies import noticed
from utpsocket.engine.user_fds.open_fds import HoldersWatch
from utpsocket.engine.user_fds.socket_state import Identity, Role
from utpsocket.engine.user_fds.unaccepted import ResetUnaccepted
from utpsocket.protocol import ConnectionStats, State
from utpsocket.protocol.report import fields

_POLLIN: Final = 0x001
_KEY_BITS: Final = 60
_END_SECONDS: Final = 1.0  # for a thread that takes notices: it may itself wait for an answer that will not come
_MOST_TRIES: Final = 10
_TRY_AGAIN_SECONDS: Final = 0.001
_HIGH_FD: Final = 1_024  # out of the numbers that select() can watch
_CONTROL_FD: Final = 3  # of the new process
_system_random: Final = random.SystemRandom()
_NOTICE_BYTES: Final = 32 << 10
_BOOT: Final = f"""
import os, sys
if os.fork():
    os._exit(0)
os.setsid()
os.write({_CONTROL_FD}, b"%d" % os.getpid())
sys.modules["utpsocket"] = package = type(os)("utpsocket")
package.__path__ = [sys.argv[1]]
from utpsocket.engine.helper.server import main
main({_CONTROL_FD})
"""
"""The engine is nobody's child, so that a program that waits for its children never meets it, and of a session of its
own, so that no terminal's signal does. The package's own __init__ would import what users touch."""

_remote: RemoteLoop | None = None  # this process's, whose notices the identities below are waiting for


class RemoteIdentity(Identity):
    """An identity that an engine in another process writes into: reading it takes in the notices that have come."""

    __slots__ = ()

    # WRITTEN_BY_ENGINE
    role = noticed("role")
    error = noticed("error")
    is_over = noticed("is_over")
    is_reset = noticed("is_reset")
    is_after_eof = noticed("is_after_eof")
    transport = noticed("transport")
    local = noticed("local")
    is_full = noticed("is_full")
    ending = noticed("ending")


class _Callback:
    """In the place of an Answer: something to be called."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call

    def give(self, value: Any, error: BaseException | None) -> None:
        self._call()


class _Figures:
    """In the place of an Answer: what latest_figures() has asked for."""

    __slots__ = ("_cookie", "_loop")

    def __init__(self, loop: RemoteLoop, cookie: int) -> None:
        self._loop = loop
        self._cookie = cookie

    def give(self, value: Any, error: BaseException | None) -> None:
        self._loop.on_figures(self._cookie, None if error is not None else value)


def _no_figures(identity: Identity) -> tuple[Any, ...]:
    """What is known here of a connection of which the engine has told nothing yet."""
    state = State.SYN_SENT if identity.role is Role.CONNECTING else State.CONNECTED
    return fields(ConnectionStats(state=state.value, local=identity.local, peer=identity.peer))


def _new_key() -> int:
    """Of a port, and none of the engine's own."""
    return _system_random.getrandbits(_KEY_BITS) | 1 << _KEY_BITS


class RemoteLoop:
    """What of Loop the application's side uses, spoken over the wire. Raises OSError where no process can be had."""

    def __init__(self) -> None:
        self.caller_pid = os.getpid()
        self.fd_lock = ForkLock()
        self.holders_watch = HoldersWatch(announce=self._announce)
        self.is_alive = True
        self.listened: set[int] = set()  # at these port numbers this process has listened
        self.successor: dict[str, Any] = {}  # the engine that took this one's place, once it was gone
        self._serials = itertools.count(1)
        self._answers: dict[int, Answer | _Callback | _Figures] = {}
        self._served: dict[int, Identity] = {}  # by cookie: the engine will say when it is done with it
        self.ledger = Ledger(self.holders_watch, lambda: list(self._served.values()))
        self._figures: dict[int, tuple[Any, ...]] = {}  # by cookie, as last told
        self._asked: set[int] = set()  # whose figures the engine has been asked for
        self._known: WeakValueDictionary[int, Identity] = WeakValueDictionary()  # whatever it ever spoke of
        self._reset_unaccepted = ResetUnaccepted()
        self._pending: deque[bytes] = deque()
        self._taking = new_reentrant_lock()
        self._reset_requests: deque[tuple[list[Any], int, bool]] = deque()
        self._message = b""  # of the engine's, as received
        self._message_fds: list[int] = []  # that came with it,
        self._message_ends: list[Any] = []  # and become these
        self._tries = 0
        self._received: dict[int, list[bytes]] = {}  # parts of answers, by serial
        self._helper_id = 0
        self._is_stopping = False
        self._has_ended = allocate_lock()
        self._has_ended.acquire()
        self._hold = garbage_collector.Hold()
        self._control, control = _socket_pair()
        self._notices, notices = _socket_pair()
        try:
            self.pid = _spawn(self._control, control)
            outcomes_fd = shared_errnos.new_file()
            try:
                shared_errnos.begin(self.pid, outcomes_fd)
                messages.send(self._control, None, [notices.fileno(), outcomes_fd, *self._holders_fds()])
            finally:
                os.close(outcomes_fd)
        except BaseException:
            self._close()
            raise
        finally:
            control.close()
            notices.close()
        self._control_file = os.fstat(self._control.fileno())
        self._requests = Requests(self._control, self._on_end)
        self._next_notice = partial(self._notices.recv, _NOTICE_BYTES, _socket.MSG_DONTWAIT)
        self._starting = allocate_lock()
        self.is_begun = False  # start() has returned

    def start(self) -> None:
        """Start the thread that listens to the engine, once. Any thread, and again after an exception."""
        global _remote
        if not self.has_started:
            _remote = self
            forked_copies.take_notices = self.take_notices
            try:
                self._hold.begin()
                start_thread(self._run, b"utpsocket")
                self.is_begun = True
            except BaseException:
                self._hold.end()
                raise

    @property
    def has_started(self) -> bool:
        """Whether there is, or was, a thread that takes the answers. Any thread."""
        return self.is_begun or self._starting.locked()

    def discard(self) -> None:
        """Never started, and not wanted: the process ends with its control socket."""
        self._close()

    def _holders_fds(self) -> list[int]:
        return self.holders_watch.fds

    # ── commands of other threads ──

    def post(self, command: Callable[..., object], *arguments: Any) -> None:
        """Have the engine carry out a command soon."""
        self._request(0, command, arguments, {})

    def call(self, command: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Have the engine carry out a command; wait for what it returns or raises."""
        if sys.is_finalizing():
            raise RuntimeError("the interpreter is ending, and the thread that would take the answer with it")
        if get_ident() == self._helper_id:
            # An audit hook, the one thing of the program's that runs on this thread: it cannot wait for itself.
            self.post(command, *arguments)
            return None
        answer, serial = Answer(), next(self._serials)
        self._answers[serial] = answer
        try:
            self._request(serial, command, arguments, named)
        except BaseException:
            self._answers.pop(serial, None)
            raise
        return answer.wait()

    def perform(self, command: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """As call(): what a thread of this process could do by itself, the engine's process must do."""
        return self.call(command, *arguments, **named)

    def tell(self, command: Callable[..., object], *arguments: Any) -> None:
        """As Loop.tell(), which does it at once."""
        self.post(command, *arguments)

    def adopt_port(self, udp_sock: Any, local: Address, identity: Identity, *, reuse: bool, shares: bool) -> int:
        """As the command, without waiting for the engine: the key is made up here."""
        key = _new_key()
        self.ledger.add(key, local, identity, reuse=reuse, shares=shares)
        self.post(commands.adopt_port_as, key, udp_sock, identity, reuse, shares)
        return key

    def take_port(self, udp_sock: Any, local: Address, identity: Identity, *, reuse: bool, shares: bool) -> int:
        """Have the engine bind a socket to an address that the kernel says is taken, by a port of ours, without waiting
        for it. Returns the port's key; raises EADDRINUSE where it may not.
        """
        key = self.judge(local, identity, reuse=reuse, shares=shares) or _new_key()
        self.ledger.add(key, local, identity, reuse=reuse, shares=shares)
        self.post(port_commands.take_port, key, udp_sock, local, identity, reuse, shares, identity.namespace)
        return key

    def judge(self, local: Address, identity: Identity, *, reuse: bool, shares: bool) -> int:
        """See Ledger.judge(), by all that the engine has told by now."""
        self.take_notices()
        return self.ledger.judge(local, identity.namespace, reuse=reuse, shares=shares)

    def keep_port(self, udp_sock: Any, inode: int, identity: Identity, *, reuse: bool, shares: bool) -> None:
        """As commands.replace_holder(), without waiting; where the port is gone the socket gets it anew."""
        key, local = identity.endpoint, identity.bound
        self.ledger.replace_holder(key, inode, identity)
        self.post(port_commands.keep_port, key, udp_sock, inode, local, identity, reuse, shares, identity.namespace)

    def latest_figures(self, cookie: int) -> tuple[Any, ...]:
        """The fields of this connection's ConnectionStats as the engine has last told, without waiting for it to tell
        newer ones; it is asked for those. Raises ENOTCONN.
        """
        self.take_notices()
        identity = self._served.get(cookie)
        if identity is None or identity.transport != "utp":
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        if cookie not in self._asked:
            self._asked.add(cookie)
            serial = next(self._serials)
            self._answers[serial] = _Figures(self, cookie)
            self._request(serial, commands.connection_figures, (cookie,), {})
        return self._figures.get(cookie) or _no_figures(identity)

    def on_figures(self, cookie: int, fields: tuple[Any, ...] | None) -> None:
        """The engine has told them, or has no such connection."""
        if fields is not None and cookie in self._served:
            self._figures[cookie] = fields
        self._asked.discard(cookie)

    def learn(self, identity: Identity) -> None:
        """The application has changed what the engine knows of a socket."""
        self._requests.put((0, messages.UPDATE, [messages.identity_form(identity)], {}), [], [])

    def _announce(self, inode: int, index: int, gone: list[int], fds: list[int]) -> None:
        """Have the engine look for this socket among those of one epoll (open_fds.py)."""
        self._requests.put((0, messages.WATCHED, [inode, index, gone], {}), fds, [])

    def _request(
        self, serial: int, command: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        self.ledger.note(command, arguments)
        plain: list[Any] = []
        socks: list[Any] = []
        sent = None
        crossing = messages.crossing(command.__name__)
        for argument, value in zip(crossing.arguments, arguments, strict=False):
            if argument is Argument.PLAIN:
                plain.append(value)
            elif argument is Argument.IDENTITY:
                plain.append(messages.identity_form(self._introduced(value, is_dialed=crossing.is_dialed)))
            elif argument is Argument.CALLBACK:
                plain.append(next(self._serials))
                self._answers[plain[-1]] = _Callback(value)
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

    def _introduced(self, identity: Identity, *, is_dialed: bool) -> Identity:
        if identity.record is None:
            identity.become(RemoteIdentity)
        if identity.cookie:
            self._known[identity.cookie] = identity
        if is_dialed:
            self._served[identity.cookie] = identity
        return identity

    # ── what the engine says ──

    def take_notices(self) -> None:
        """Write into identities what the engine has told of them by now, be it with its last breath."""
        if not self._take_all():
            self._on_end()

    def _take_all(self, seconds: float = -1.0) -> bool:
        """Whether there may be more to come."""
        if not self._taking.acquire(True, seconds):
            return True
        try:
            has_ended = False
            try:
                # One call in C for all of them: a signal's handler that raises must not lose any.
                self._pending.extend(iter(self._next_notice, b""))
                has_ended = True
            except OSError as error:
                let_pass(error)  # no more of them now
            pending = self._pending
            while pending:
                first = pending[0]
                self._take(*marshal.loads(first))  # which may come here again, and take it once more
                if pending and pending[0] is first:
                    pending.popleft()  # last: a signal's handler may raise anywhere, and it is then taken again
            return not has_ended
        finally:
            self._taking.release()

    def _take(self, cookie: int, name: str, value: Any) -> None:
        if name == messages.ACCEPTED:
            transport, form = value
            identity: Identity = RemoteIdentity(form[0]["family"])
            messages.fill(identity, form)
            identity.role = Role.CONNECTED
            identity.transport = transport
            identity.is_told = True
            identity.owner_pid = self.pid
            self._served[cookie] = self._known[cookie] = identity
        elif name == messages.BOUND:
            self.ledger.on_bound(value)
        elif name == messages.FREE:
            self.ledger.on_free(value)
        elif name == messages.RELEASED:
            gone = self._served.pop(cookie, None)
            self._figures.pop(cookie, None)
            if gone is not None:
                gone.ending = gone.ending or value
                self._reset_unaccepted.remember(cookie, gone)
        else:
            known = self._known.get(cookie)
            if known is not None and known.cookie == cookie:
                setattr(known, name, Role(value) if name == "role" else value)

    def identity_of(self, cookie: int) -> Identity | None:
        """Who has this cookie, if this engine serves it, or was reset before it was accepted."""
        self.take_notices()
        return self._served.get(cookie) or self._reset_unaccepted.pop(cookie, None)

    def _run(self) -> None:
        """Answers and farewells, in a thread of their own."""
        if not self._starting.acquire(False):
            return  # another call of start() has done it
        self._helper_id = get_ident()
        self._hold.enter()
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            while self._tries < _MOST_TRIES:
                try:
                    self._listen()
                except BaseException:  # no memory, say: what has been received is read again
                    self._tries += 1
                    sleep(_TRY_AGAIN_SECONDS)
                    self._force_resets_aside()
                else:
                    break
        finally:
            self._on_end()
            if self.check_fds():
                self._close()
            self._hold.end()
            self._has_ended.release()

    def _listen(self) -> None:
        """Until the engine ends."""
        while True:
            if not self._message:
                sleep_until_ready(self._hold, [(self._control.fileno(), _POLLIN)], -1.0)
                try:
                    self._message, self._message_fds = messages.receive_raw(self._control)
                except OSError as error:
                    let_pass(error)
                    if error.errno in NO_ROOM:
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
                    self._force_resets_aside()
                self._tries = 0
                continue
            part, has_more = rest
            received = [*self._received.get(serial, ()), part]
            if has_more:
                self._received[serial] = received
                self._message = b""
            else:
                self._give(serial, *messages.whole(received))
                self._message = b""  # last: should that fail, it is all done again
                self._received.pop(serial, None)
            self._tries = 0

    def _give(self, serial: int, value: Any, code: int, text: str) -> None:
        answer = self._answers.pop(serial, None)
        if answer is not None:
            answer.give(value, (OSError(code, text) if code else RuntimeError(text)) if text else None)

    def _force_resets_aside(self) -> None:
        """Whoever has the lock may be waiting for the very answer that comes next."""
        try:
            start_thread(self._force_resets, b"utpsocket-resets")
        except Exception:
            pass  # no thread to be had: with the next farewell

    def _force_resets(self, *, wait: bool = True) -> bool:
        """Connections broke. The copy of the engine's end is the last: closed over an unread byte it says so. False:
        somebody has a lock that is needed, and need not be waited for.
        """
        if not self.fd_lock.acquire(wait=wait) and not wait:
            return False
        try:
            if not self._taking.acquire(wait):
                return False
            try:
                self.take_notices()
                while self._reset_requests:
                    self._force_reset(*self._reset_requests[0])
                    self._reset_requests.popleft()  # last: should that fail, it is all done again
            finally:
                self._taking.release()
        finally:
            self.fd_lock.release()
        return True

    def _force_reset(self, ends: list[Any], cookie: int, refuses: bool) -> None:
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
        """False when the program has closed every fd it did not know (os.closerange, as daemons do)."""
        found = or_none(os.fstat, self._control.fileno())
        if found is not None and os.path.samestat(found, self._control_file):
            return True
        self.is_alive = False
        for sock in (self._control, self._notices):
            sock.detach()
        return False

    def stop(self) -> None:
        """End the engine's process, once it has closed everything it owns."""
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
        """The engine's process is gone, and with it every connection: whoever waits must hear of it."""
        self.is_alive = False
        self._take_all(_END_SECONDS)
        served, self._served = self._served, {}
        for identity in list(served.values()):
            if identity.role is Role.CONNECTING or not (identity.is_over or self._is_stopping):
                identity.error = errno.ECONNRESET
                identity.is_over = identity.is_reset = True
            if identity.role is Role.CONNECTING:
                identity.role = Role.FAILED
        for serial in list(self._answers):
            self._give(serial, None, errno.ECONNABORTED, "the engine's process has ended")

    def _close(self) -> None:
        global _remote
        if _remote is self:
            _remote = forked_copies.take_notices = None
        for sock in (self._control, self._notices):
            sock.close()
        self.holders_watch.close()


def _socket_pair() -> tuple[Any, Any]:
    ours, theirs = map(_raised, _socket.socketpair(_socket.AF_UNIX, messages.TYPE))
    for end in (ours, theirs):
        end.setblocking(True)  # whatever the program has said by setdefaulttimeout()
    return ours, theirs


def _raised(sock: Any) -> Any:
    try:
        high = fcntl(sock.fileno(), F_DUPFD_CLOEXEC, _HIGH_FD)
    except OSError as error:
        let_pass(error)
        return sock
    sock.close()
    return Socket(fileno=high)


def _spawn(ours: Any, theirs: Any) -> int:
    """Start the engine's process with one end of the control pair; returns its pid."""
    if not sys.executable:
        raise OSError(errno.ENOENT, "UTPSOCKET_ENGINE=process needs sys.executable, and there is none")
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    command = [sys.executable, "-I", "-S", "-B", "-c", _BOOT, package, f"utpsocket engine of {os.getpid()}"]
    starter = posix.posix_spawn(  # below os and subprocess, where gevent puts its own
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
        pass  # the program has waited for it, or wants none of its children waited for
    hello = ours.recv(64)
    if not hello:
        raise OSError(errno.ECHILD, "the engine's process did not start")
    return int(hello)

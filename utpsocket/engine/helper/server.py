"""The engine's side of an engine in a process of its own: the same Loop, and the application's requests.

Read client.py and messages.py first. When the application has ended, this process goes on while another process has one
of the sockets open, as the kernel would with TCP. Then it delivers what was written, as at any exit, and ends. It makes
no difference whether the application ends by os._exit() or SIGKILL.

The requests are read on the engine's thread, like any other event. main() waits on the process's first thread.
Sources: docs/design.md §2; unix(7).
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Final
from weakref import WeakValueDictionary

from utpsocket.engine import commands
from utpsocket.engine.command_queue import Command
from utpsocket.engine.exit_flush import flush
from utpsocket.engine.faults import NO_ROOM_ERRNOS, RETRY_US
from utpsocket.engine.helper import messages
from utpsocket.engine.helper.messages import Argument, RemoteCommand
from utpsocket.engine.interpreter.native import Socket, allocate_lock, sleep
from utpsocket.engine.interpreter.originals import fcntl, os, resource
from utpsocket.engine.kernel import capture
from utpsocket.engine.kernel.poller import EPOLLIN, EPOLLOUT
from utpsocket.engine.loop import Loop
from utpsocket.engine.ports.bound_ports import BoundPorts
from utpsocket.engine.ports.endpoint import Endpoint
from utpsocket.engine.user_fds import reset, shared_errnos
from utpsocket.engine.user_fds.open_fds import HoldersWatch
from utpsocket.engine.user_fds.socket_state import Identity, Role, Settings

# By feel.
_REQUESTS_PER_ITERATION: Final = 64
# The application has ended: first and longest pause between looks whether another process has one of its sockets open;
# by feel.
_ORPHANS_SECONDS: Final = 0.05
_MAX_ORPHANS_SECONDS: Final = 2.0
# The kernel's table of fds is as long as the highest number; by feel.
_MAX_FD: Final = 16_384
# Faults while one request is handled; by feel.
_MAX_TRIES: Final = 3
# Notices that the application has not read. It reads them when it uses a socket; more, and the oldest are dropped. By
# feel.
_MAX_BACKLOG: Final = 65_536


def main(control_fd: int) -> None:
    """Serve the application at the other end of this fd, and end the process."""
    _close_others(control_fd)
    _, max_fds = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max_fds, max_fds))
    capture.begin()  # its file's name is relative to this folder
    os.chdir("/")
    control = Socket(fileno=control_fd)
    begin = messages.receive(control)
    if begin is not None:
        notices_fd, outcomes_fd, *holders_fds = begin[1]
        shared_errnos.begin(os.getpid(), outcomes_fd)
        os.close(outcomes_fd)
        notices = _with_highest_number(notices_fd)
        loop = Loop()
        if holders_fds:
            loop.holders_watch.close()
            loop.holders_watch = HoldersWatch(holders_fds[0])
        loop.start()
        service = Service(loop, control, notices)
        loop.call(lambda _: service.begin())
        if service.wait():
            _close_stderr()
            seconds = _ORPHANS_SECONDS
            while loop.call(commands.has_open_sockets):
                sleep(seconds)
                seconds = min(1.25 * seconds, _MAX_ORPHANS_SECONDS)
            flush(loop)
        loop.stop()
    os._exit(0)


def _close_stderr() -> None:
    """Close stderr: a process that reads the program's must see end of file when the program ends, not this one."""
    null_fd = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null_fd, 2)
    os.close(null_fd)


def _with_highest_number(fd: int) -> Socket:
    """The same socket under a higher number than any other. If the engine is killed, the kernel closes the highest
    number first, so that the application can see that before its connections show an end of file.
    """
    max_fds, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        high_fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, min(max_fds, _MAX_FD) - 1)
    except OSError:
        return Socket(fileno=fd)
    os.close(fd)
    return Socket(fileno=high_fd)


def _close_others(kept_fd: int) -> None:
    """Close the fds that were inherited from the application, but for the standard streams."""
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else map(str, range(_max_fds())):
        if int(name) > 2 and int(name) != kept_fd:
            try:
                os.close(int(name))
            except OSError:
                pass


def _max_fds() -> int:
    return min(65_536, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


class Outbox:
    """Messages to the application. Where it is slow to read them they are queued, so that the engine does not wait."""

    __slots__ = ("_backlog", "_loop", "_sock")

    def __init__(self, loop: Loop, sock: Socket) -> None:
        self._loop = loop
        self._sock = sock
        self._backlog: deque[object] = deque(maxlen=_MAX_BACKLOG)
        sock.setblocking(False)

    def put(self, message: object) -> None:
        """Send now, or as soon as there is room. The engine's thread."""
        if self._backlog:
            self._backlog.append(message)
        elif not self.send_now(message):
            self._loop.watch(self._sock.fileno(), EPOLLOUT, self)
            self._backlog.append(message)

    def send_now(self, message: object, fds: tuple[int, ...] = ()) -> bool:
        """Send now; False where there is no room."""
        return not self._backlog and self._is_sent(message, fds)

    def _is_sent(self, message: object, fds: tuple[int, ...] = ()) -> bool:
        try:
            messages.send(self._sock, message, fds)
        except OSError as error:
            return error.errno not in NO_ROOM_ERRNOS  # with any other error the application is gone
        return True

    def on_event(self, mask: int) -> None:
        """There is room again."""
        backlog = self._backlog
        while backlog and self._is_sent(backlog[0]):
            backlog.popleft()
        if not backlog:
            self._loop.forget_fd(self._sock.fileno())

    def fail(self, error: BaseException) -> None:
        """See faults.py: where epoll has no memory for the fd, or sending has failed, it is tried again in a moment."""
        self._loop.call_at(self._loop.now + RETRY_US, self._watch_again)

    def _watch_again(self) -> None:
        if self._backlog:
            self._loop.forget_fd(self._sock.fileno())
            self._loop.watch(self._sock.fileno(), EPOLLOUT, self)


def _sent_when_written(name: str) -> Any:
    slot = getattr(Identity, name)

    def write(self: ServedIdentity, value: object) -> None:
        slot.__set__(self, value)
        self.on_written(name, value)

    return property(slot.__get__, write)


class ServedIdentity(Identity):
    """An identity of a socket in the application's process; each value that the engine writes is sent there.

    sends_notices   the application has this identity; not so for a listener's connection until it is to be accepted
    notices         the connection for notices
    """

    __slots__ = ("sends_notices",)

    # WRITTEN_BY_ENGINE
    role = _sent_when_written("role")
    error = _sent_when_written("error")
    is_over = _sent_when_written("is_over")
    is_reset = _sent_when_written("is_reset")
    is_after_eof = _sent_when_written("is_after_eof")
    transport = _sent_when_written("transport")
    local = _sent_when_written("local")
    is_full = _sent_when_written("is_full")
    ending = _sent_when_written("ending")

    notices: ClassVar[Outbox]

    def __init__(self, family: int, settings: Settings | None = None) -> None:
        self.sends_notices = False
        super().__init__(family, settings)

    def on_written(self, name: str, value: object) -> None:
        """Send the application a value that was written, before its fd shows anything of it."""
        if self.sends_notices:
            self.notices.put((self.cookie, name, value.value if isinstance(value, Role) else value))
        elif value is Role.CONNECTED:
            self.sends_notices = True
            self.notices.put((self.cookie, messages.ACCEPTED, (self.transport, messages.identity_form(self))))

    def __del__(self) -> None:
        if self.sends_notices:
            self.notices.put((self.cookie, messages.RELEASED, None))


class _Reply:
    """In the place of an Answer: sends it to the application."""

    __slots__ = ("_serial", "_service")

    def __init__(self, service: Service, serial: int) -> None:
        self._service = service
        self._serial = serial

    def give(self, value: object, error: BaseException | None) -> None:
        if self._serial:
            code = error.errno or 0 if isinstance(error, OSError) else 0
            text = (getattr(error, "strerror", None) or repr(error)) if error is not None else ""
            self._service.answer(self._serial, (value, code, text))
            self._serial = 0  # last: if sending fails, it is repeated


class AnnouncedPorts(BoundPorts):
    """The engine's ports by number; the application is sent a notice of each that is opened or closed."""

    def __init__(self, notices: Outbox) -> None:
        super().__init__()
        self._notices = notices

    def add(self, endpoint: Endpoint) -> None:
        """See BoundPorts.add()."""
        super().add(endpoint)
        self._notices.put((0, messages.BOUND, endpoint.key))

    def on_refused(self, key: int) -> None:
        """See BoundPorts.on_refused()."""
        self._notices.put((0, messages.FREE, key))

    def discard(self, endpoint: Endpoint) -> None:
        """See BoundPorts.discard()."""
        was_bound = endpoint in self.get(endpoint.port.local[1], {})
        super().discard(endpoint)
        if was_bound:
            self._notices.put((0, messages.FREE, endpoint.key))


class Service:
    """Carries out the application's requests. All but wait() is called on the engine's thread."""

    __slots__ = (
        "_by_inode",
        "_control",
        "_fds",
        "_has_ended",
        "_loop",
        "_must_flush",
        "_outbox",
        "_request",
        "_socks",
        "_tries",
    )

    def __init__(self, loop: Loop, control: Socket, notices: Socket) -> None:
        self._loop = loop
        self._control = control
        self._outbox = Outbox(loop, Socket(fileno=os.dup(control.fileno())))  # its own number, for epoll
        self._by_inode: WeakValueDictionary[int, ServedIdentity] = WeakValueDictionary()
        self._must_flush = True
        self._request = b""  # as received, until it is a command: after a fault it is read again
        self._fds: list[int] = []  # that came with it, and are not owned by an object yet
        self._socks: list[Socket] = []  # the objects that own the others
        self._tries = 0  # faults while this request was read
        self._has_ended = allocate_lock()
        self._has_ended.acquire()
        control.setblocking(False)
        ServedIdentity.notices = Outbox(loop, notices)
        loop.bound = AnnouncedPorts(ServedIdentity.notices)  # before there is any
        reset.delegate = self._delegate

    def begin(self) -> None:
        """Begin to read requests."""
        self._loop.watch(self._control.fileno(), EPOLLIN, self)

    def wait(self) -> bool:
        """Wait until the application has ended or has sent STOP. Returns whether data is left to be delivered."""
        self._has_ended.acquire()
        return self._must_flush

    def on_event(self, mask: int) -> None:
        """The control socket is readable: requests, or the end of file."""
        for _ in range(_REQUESTS_PER_ITERATION):
            if not self._request:
                try:
                    self._request, self._fds = messages.receive_raw(self._control)
                except OSError as error:
                    if error.errno in NO_ROOM_ERRNOS:
                        return
                    if error.errno != errno.ECONNRESET:
                        raise  # the application may be alive: fail() tries again, or ends the engine
                if not self._request:
                    self._end()
                    return
            self._serve()

    def _serve(self) -> None:
        serial, name, arguments, named = messages.read(self._request)
        if name == messages.WATCHED:
            inode, index, gone = arguments
            self._loop.holders_watch.on_announced(inode, index, gone, self._fds)
            self._request = b""
            return
        while self._fds:
            sock = Socket(fileno=self._fds[0])
            try:
                self._socks.append(sock)
            except BaseException:
                sock.detach()  # the request is read again, and its fds with it
                raise
            del self._fds[0]
        if name == messages.UPDATE:
            self._identity(arguments[0])
            self._request = b""
        elif name == messages.STOP:
            self._must_flush = False
            self._end()
            self._request = b""
        else:
            answer = _Reply(self, serial) if serial else None
            command = Command(self._loop, *self._plain(messages.remote_command(name), arguments), named, answer)
            left: list[Socket] = []
            self._loop.command = command  # first: from here on the request is answered whatever fails
            self._request, self._socks, self._tries = b"", left, 0
            self._loop.carry_out()
            self._loop.owner = self

    def fail(self, error: BaseException) -> None:
        """See faults.py: the request is read again. If that fails, too, the application would wait for an answer
        without end; so the engine ends, and all waiting threads get an error.
        """
        self._tries += 1
        if self._tries > _MAX_TRIES:
            self._must_flush = False
            self._end()
        else:
            self._loop.call_at(self._loop.now, self._serve_again)

    def _serve_again(self) -> None:
        self.on_event(0)

    def _plain(
        self, remote_command: RemoteCommand, arguments: list[Any]
    ) -> tuple[Callable[..., object], tuple[object, ...]]:
        """The command, and its arguments as they were before they were sent."""
        left = iter(self._socks)
        real: list[object] = []
        for argument, value in zip(remote_command.arguments, arguments, strict=False):
            if argument is Argument.IDENTITY:
                real.append(self._identity(value))
            elif argument is Argument.CALLBACK:
                real.append(partial(self.answer, value, (None, 0, "")))
            elif argument is Argument.SOCK and value is not None:
                real.append(next(left))
            else:
                real.append(value)
        return remote_command.command, tuple(real)

    def _identity(self, form: messages.IdentityForm) -> ServedIdentity:
        """The identity here of a socket in the application, with the values that the shim has sent."""
        plain = form[0]
        identity = self._loop.identity_of(plain["cookie"]) or self._by_inode.get(plain["inode"])
        if not isinstance(identity, ServedIdentity):
            identity = ServedIdentity(plain["family"])
            self._by_inode[plain["inode"]] = identity
        identity.sends_notices = False  # no notices of the values that the shim has sent itself
        messages.fill(identity, form)
        identity.owner_pid = self._loop.pid
        identity.sends_notices = True
        return identity

    def answer(self, serial: int, answer: messages.AnswerForm) -> None:
        for part, has_more in list(messages.parts(answer)):
            self._outbox.put((serial, part, has_more))

    def _delegate(self, engine_fd: int, identity: Identity, refuses: bool) -> bool:
        """See user_fds/reset.py, `delegate`."""
        return self._has_ended.locked() and self._outbox.send_now(
            (messages.FORCE_RESET, identity.cookie, refuses), (engine_fd,)
        )

    def _end(self) -> None:
        self._loop.forget_fd(self._control.fileno())
        if self._has_ended.locked():
            self._has_ended.release()

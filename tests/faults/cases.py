"""The calls in which callers.py raises: each prepares sockets, makes the call, and says what must be true then."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import socket as stdlib
import struct
import tempfile
import time
from collections.abc import Callable
from typing import Any

import utpsocket
from tests.faults.scenes import OfBoth, nobody
from utpsocket import engine

PATIENCE_S = 20.0  # only what fails waits for so long
LOCALHOST = ("127.0.0.1", 0)


def outcome(call: Callable[[], object]) -> int | str | None:
    """None, or the errno or the name of what was raised."""
    try:
        call()
    except OSError as error:
        return error.errno or type(error).__name__
    return None


def until(is_so: Callable[[], object]) -> None:
    """Wait for something that other threads bring about."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, "not so after a while"
        time.sleep(0.002)


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


class Case:
    """One call on sockets of its own. `prepare` comes before the injection, `call` is what is interrupted."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.owned: list[Any] = []
        self.before: Any = None

    def own(self, sock: Any) -> Any:
        self.owned.append(sock)
        return sock

    def listener(self) -> Any:
        listener = self.own(self.module.socket())
        listener.bind(LOCALHOST)
        listener.listen()
        return listener

    def prepare(self) -> None:
        raise NotImplementedError

    def call(self) -> None:
        raise NotImplementedError

    def check(self) -> None:
        """Raise AssertionError, or whatever a program would meet."""
        raise NotImplementedError

    def close(self) -> None:
        for sock in self.owned:
            sock.close()


def address_is_free(module: Any, address: Any) -> None:
    with module.socket() as sock:
        sock.bind(address)


def talk(client: Any, server: Any) -> None:
    client.settimeout(PATIENCE_S)
    server.settimeout(PATIENCE_S)
    client.sendall(b"question")
    assert server.recv(100) == b"question"
    server.sendall(b"answer")
    assert client.recv(100) == b"answer"


class Bind(Case):
    def prepare(self) -> None:
        self.sock = self.own(self.module.socket())
        with self.module.socket() as other:
            other.bind(LOCALHOST)
            self.address = other.getsockname()

    def call(self) -> None:
        self.sock.bind(self.address)

    def check(self) -> None:
        name = self.sock.getsockname()
        if name[1]:
            assert name == self.address
            try:
                self.sock.bind(self.address)
            except OSError as error:
                assert error.errno == errno.EINVAL, error
            else:
                raise AssertionError("bound twice")
        else:
            self.sock.bind(self.address)
        self.sock.listen()
        self.sock.settimeout(PATIENCE_S)
        client = self.own(self.module.socket())
        client.settimeout(PATIENCE_S)
        client.connect(self.address)
        talk(client, self.own(self.sock.accept()[0]))

    def close(self) -> None:
        super().close()
        if self.module is utpsocket:  # TCP has TIME_WAIT
            until(lambda: outcome(lambda: address_is_free(self.module, self.address)) is None)


class Listen(Case):
    is_bound = True

    def prepare(self) -> None:
        self.sock = self.own(self.module.socket())
        if self.is_bound:
            self.sock.bind(LOCALHOST)
        self.name = self.sock.getsockname()

    def call(self) -> None:
        self.sock.listen(7)

    def check(self) -> None:
        self.sock.settimeout(PATIENCE_S)
        if self.is_bound:
            assert self.sock.getsockname() == self.name
        if not self.sock.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_ACCEPTCONN):
            assert outcome(self.sock.accept) == errno.EINVAL
            if self.is_bound:
                client = self.own(self.module.socket())
                client.settimeout(PATIENCE_S)
                assert outcome(lambda: client.connect(self.name)) == errno.ECONNREFUSED
        self.sock.listen(7)
        client = self.own(self.module.socket())
        client.settimeout(PATIENCE_S)
        client.connect(self.sock.getsockname())
        talk(client, self.own(self.sock.accept()[0]))


class ListenUnbound(Listen):
    is_bound = False


class Connect(Case):
    is_bound = False
    timeout: float | None = PATIENCE_S

    def prepare(self) -> None:
        self.target = self.listener()
        self.target.settimeout(PATIENCE_S)
        self.sock = self.own(self.module.socket())
        self.sock.settimeout(self.timeout)
        if self.is_bound:
            self.sock.bind(LOCALHOST)
        self.name = self.sock.getsockname()

    def call(self) -> None:
        self.sock.connect(self.target.getsockname())

    def check(self) -> None:
        if self.is_bound:
            assert self.sock.getsockname()[1] == self.name[1]
        assert self.sock.gettimeout() == self.timeout
        self.sock.settimeout(PATIENCE_S)
        address = self.target.getsockname()
        code = self.sock.connect_ex(address)
        until(lambda: self.sock.connect_ex(address) == errno.EISCONN)
        assert code in (0, errno.EISCONN, errno.EALREADY), errno.errorcode.get(code, code)
        assert self.sock.getpeername() == address
        while True:  # an attempt that was given up may have come as far as this
            server = self.own(self.target.accept()[0])
            if outcome(server.getpeername) is None and server.getpeername() == self.sock.getsockname():
                break
        talk(self.sock, server)


class ConnectBound(Connect):
    is_bound = True


class ConnectAtOnce(Connect):
    timeout = 0.0

    def call(self) -> None:
        code = self.sock.connect_ex(self.target.getsockname())
        assert code == errno.EINPROGRESS, code


class ConnectAgain(Connect):
    """After an attempt that was refused."""

    def prepare(self) -> None:
        super().prepare()
        self.sock.settimeout(None)  # then this connect() ends the attempt; with a timeout it is for the next to say so
        assert self.sock.connect_ex(nobody(self.owned)) == errno.ECONNREFUSED
        self.sock.settimeout(PATIENCE_S)


class ConnectRefused(Case):
    def prepare(self) -> None:
        self.sock = self.own(self.module.socket())
        self.sock.settimeout(PATIENCE_S)
        self.address = nobody(self.owned)

    def call(self) -> None:
        assert self.sock.connect_ex(self.address) == errno.ECONNREFUSED

    def check(self) -> None:
        codes: list[int] = []

        def has_ended() -> bool:
            codes.append(self.sock.connect_ex(self.address))
            return codes[-1] != errno.EALREADY

        until(has_ended)
        codes.append(self.sock.connect_ex(self.address))
        assert errno.ECONNREFUSED in codes, codes
        assert set(codes) <= {errno.ECONNREFUSED, errno.ECONNABORTED, errno.EALREADY}, codes


class Accept(Case):
    def prepare(self) -> None:
        self.target = self.listener()
        self.target.settimeout(PATIENCE_S)
        self.client = self.own(self.module.socket())
        self.client.settimeout(PATIENCE_S)
        self.client.connect(self.target.getsockname())

    def call(self) -> None:
        self.own(self.target.accept()[0])

    def check(self) -> None:
        """The connection is still to be accepted, or it was lost, and is then closed."""
        gc.collect()
        self.target.settimeout(PATIENCE_S)
        if len(self.owned) == 2 and self.target in select.select([self.target, self.client], [], [], PATIENCE_S)[0]:
            self.own(self.target.accept()[0])
        elif len(self.owned) == 2:
            assert self.client.recv(1) == b""
            self.client.close()
            self.client = self.own(self.module.socket())
            self.client.settimeout(PATIENCE_S)
            self.client.connect(self.target.getsockname())
            self.own(self.target.accept()[0])
        talk(self.client, self.owned[-1])


class Pair(Case):
    def prepare(self) -> None:
        self.target = self.listener()
        self.client = self.own(self.module.socket())
        self.client.settimeout(PATIENCE_S)
        self.client.connect(self.target.getsockname())
        self.server = self.own(self.target.accept()[0])


class Close(Pair):
    def call(self) -> None:
        self.client.close()

    def check(self) -> None:
        self.client.close()
        assert self.client.fileno() == -1
        self.server.settimeout(PATIENCE_S)
        assert self.server.recv(1) == b""


class CloseListener(Case):
    def prepare(self) -> None:
        self.target = self.listener()
        self.address = self.target.getsockname()

    def call(self) -> None:
        self.target.close()

    def check(self) -> None:
        self.target.close()
        assert self.target.fileno() == -1
        sock = self.own(self.module.socket())
        sock.settimeout(PATIENCE_S)
        assert outcome(lambda: sock.connect(self.address)) == errno.ECONNREFUSED
        sock.close()
        address_is_free(self.module, self.address)


class Shutdown(Pair):
    def call(self) -> None:
        self.client.shutdown(stdlib.SHUT_WR)

    def check(self) -> None:
        self.client.shutdown(stdlib.SHUT_WR)
        self.server.settimeout(PATIENCE_S)
        assert self.server.recv(1) == b""
        self.server.sendall(b"answer")
        assert self.client.recv(100) == b"answer"


class ShutdownListener(Case):
    def prepare(self) -> None:
        self.target = self.listener()
        self.target.settimeout(PATIENCE_S)

    def call(self) -> None:
        self.target.shutdown(stdlib.SHUT_RDWR)

    def check(self) -> None:
        outcome(lambda: self.target.shutdown(stdlib.SHUT_RDWR))
        assert outcome(self.target.accept) == errno.EINVAL


class SetOption(Pair):
    def call(self) -> None:
        self.client.setsockopt(stdlib.IPPROTO_TCP, stdlib.TCP_NODELAY, 1)

    def check(self) -> None:
        self.client.setsockopt(stdlib.IPPROTO_TCP, stdlib.TCP_NODELAY, 1)
        assert self.client.getsockopt(stdlib.IPPROTO_TCP, stdlib.TCP_NODELAY)
        talk(self.client, self.server)


class SetBuffer(Pair):
    def call(self) -> None:
        self.client.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, 65_536)

    def check(self) -> None:
        self.client.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, 65_536)
        talk(self.client, self.server)


class Names(Pair):
    def call(self) -> None:
        self.client.getpeername()
        self.client.getsockname()
        self.client.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_ERROR)

    def check(self) -> None:
        assert self.client.getpeername() == self.target.getsockname()
        talk(self.client, self.server)


class Duplicate(Pair):
    def call(self) -> None:
        self.own(self.client.dup())

    def check(self) -> None:
        talk(self.client, self.server)
        talk(self.own(self.client.dup()), self.server)


class MakeFile(Pair):
    def call(self) -> None:
        self.own(self.client.makefile("rwb"))

    def check(self) -> None:
        talk(self.client, self.server)


class Detach(Pair):
    def prepare(self) -> None:
        super().prepare()
        self.number = self.client.fileno()

    def call(self) -> None:
        self.client.detach()

    def check(self) -> None:
        talk(self.own(self.module.socket(fileno=self.number)), self.server)
        self.client.detach()


class Talk(Pair):
    def call(self) -> None:
        self.client.send(b"x")
        self.server.recv(1)

    def check(self) -> None:
        """Bytes that a call took are lost with what it would have returned, as TCP's are."""
        self.client.shutdown(stdlib.SHUT_WR)
        self.server.settimeout(PATIENCE_S)
        assert self.server.recv(10) in (b"", b"x")
        self.server.sendall(b"answer")
        assert self.client.recv(100) == b"answer"


class Data(Pair):
    """A call that sends or receives: bytes that it took are lost with what it would have returned, as TCP's are."""

    def __init__(self, module: Any, name: str, call: Callable[[Any, Any], object]) -> None:
        super().__init__(module)
        self.name = name
        self._call = call

    def prepare(self) -> None:
        super().prepare()
        for sock in (self.client, self.server):
            sock.settimeout(PATIENCE_S)
        self.client.sendall(b"before")
        until(lambda: self.server.recv(100, stdlib.MSG_PEEK) == b"before")

    def call(self) -> None:
        self._call(self.client, self.server)

    def check(self) -> None:
        self.client.shutdown(stdlib.SHUT_WR)
        assert b"".join(iter(lambda: self.server.recv(100_000), b"")).strip(b"x") in (b"", b"before")
        self.server.sendall(b"answer")
        assert self.client.recv(100) == b"answer"


def data(name: str, call: Callable[[Any, Any], object]) -> Callable[[Any], Case]:
    return lambda module: Data(module, name, call)


def _sendfile(client: Any, _: Any) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 3_000)
        client.sendfile(file)


class Timeouts(Pair):
    def call(self) -> None:
        self.client.settimeout(1)
        self.client.setblocking(False)
        self.client.gettimeout()
        self.client.setblocking(True)
        self.client.set_inheritable(False)

    def check(self) -> None:
        talk(self.client, self.server)


class Options(Pair):
    """Of a connection: what the engine receives, and what the kernel answers for the pair."""

    OPTIONS = (
        (stdlib.SOL_SOCKET, stdlib.SO_KEEPALIVE, 1),
        (stdlib.SOL_SOCKET, stdlib.SO_RCVBUF, 65_536),
        (stdlib.SOL_SOCKET, stdlib.SO_LINGER, struct.pack("=ii", 0, 0)),
        (stdlib.IPPROTO_TCP, stdlib.TCP_USER_TIMEOUT, 10_000),
        (stdlib.IPPROTO_IP, stdlib.IP_TOS, 16),
    )

    def call(self) -> None:
        for level, name, value in self.OPTIONS:
            self.client.setsockopt(level, name, value)
            self.client.getsockopt(level, name)

    def check(self) -> None:
        self.call()
        talk(self.client, self.server)


class CloseLingering(Close):
    """Reset, or waited for."""

    seconds = 0

    def prepare(self) -> None:
        super().prepare()
        self.client.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_LINGER, struct.pack("=ii", 1, self.seconds))

    def check(self) -> None:
        self.client.close()
        assert self.client.fileno() == -1
        self.server.settimeout(PATIENCE_S)
        assert outcome(lambda: self.server.recv(1)) in ((None, errno.ECONNRESET) if not self.seconds else (None,))


class CloseWaiting(CloseLingering):
    seconds = 3


class Made(Case):
    """A socket object: of nothing, and over an fd. Not by fromfd() or socketpair(), which are the stdlib's, and where
    the class does not come to its work leave open what they have made, over TCP as well.
    """

    given = -1

    def prepare(self) -> None:
        self.target = self.listener()

    def call(self) -> None:
        self.own(self.module.socket())
        self.given = os.dup(self.target.fileno())  # what detach() returns is lost where it is interrupted, over TCP too
        self.own(self.module.socket(fileno=self.given))
        self.given = -1

    def check(self) -> None:
        client = self.own(self.module.socket())
        client.settimeout(PATIENCE_S)
        client.connect(self.target.getsockname())
        self.target.settimeout(PATIENCE_S)
        talk(client, self.own(self.target.accept()[0]))

    def close(self) -> None:
        """An fd of which no socket has come is still the caller's."""
        if self.given >= 0:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(self.given), os.fstat(self.target.fileno())):
                    os.close(self.given)
        super().close()


class AcceptAtOnce(Accept):
    """By a listener that does not block, of which nothing is to be had the second time."""

    def prepare(self) -> None:
        super().prepare()
        until(lambda: select.select([self.target], [], [], 0)[0])
        self.target.setblocking(False)

    def call(self) -> None:
        super().call()
        try:
            self.target.accept()
        except BlockingIOError:  # and no other: what a handler raises may be an OSError
            return
        raise AssertionError("accepted what is not there")


class Incoming(Accept):
    def call(self) -> None:
        connections = iter(getattr(self.module, "incoming", lambda listener: iter(listener.accept, None))(self.target))
        self.own(next(connections)[0])
        if hasattr(connections, "close"):  # what a generator raises as it is dropped reaches no caller
            connections.close()


class ShutdownReading(Pair):
    def call(self) -> None:
        self.client.shutdown(stdlib.SHUT_RD)

    def check(self) -> None:
        self.client.shutdown(stdlib.SHUT_RD)
        self.client.sendall(b"question")
        self.server.settimeout(PATIENCE_S)
        assert self.server.recv(100) == b"question"


class CreateBoth(Case):
    """A server of both families, whose address may be reused."""

    def prepare(self) -> None:
        self.address = ("", 0)
        self.has_both = self.module.has_dualstack_ipv6()

    def call(self) -> None:
        if self.has_both:
            self.own(
                self.module.create_server(self.address, family=stdlib.AF_INET6, dualstack_ipv6=True, reuse_port=True)
            )
        else:
            self.own(self.module.create_server(self.address, reuse_port=True))

    def check(self) -> None:
        if not self.owned:
            gc.collect()
            self.call()
        client = self.own(self.module.create_connection(("127.0.0.1", self.owned[0].getsockname()[1]), PATIENCE_S))
        talk(client, self.own(self.owned[0].accept()[0]))


class CreateConnection(Case):
    def prepare(self) -> None:
        self.target = self.listener()
        self.target.settimeout(PATIENCE_S)

    def call(self) -> None:
        self.own(self.module.create_connection(self.target.getsockname(), PATIENCE_S))

    def check(self) -> None:
        client = self.own(self.module.create_connection(self.target.getsockname(), PATIENCE_S))
        while True:
            server = self.own(self.target.accept()[0])
            if outcome(server.getpeername) is None and server.getpeername() == client.getsockname():
                break
        talk(client, server)


class CreateServer(Case):
    def prepare(self) -> None:
        with self.module.socket() as other:
            other.bind(LOCALHOST)
            self.address = other.getsockname()

    def call(self) -> None:
        self.own(self.module.create_server(self.address))

    def check(self) -> None:
        if not self.owned:
            gc.collect()
            until(lambda: outcome(lambda: self.own(self.module.create_server(self.address))) is None)
        client = self.own(self.module.create_connection(self.address, PATIENCE_S))
        talk(client, self.own(self.owned[0].accept()[0]))


class BindBoth(Case):
    """A socket that is to listen over uTP and TCP, at one port number."""

    def prepare(self) -> None:
        self.sock = self.own((OfBoth if self.module is utpsocket else self.module.socket)())

    def call(self) -> None:
        self.sock.bind(LOCALHOST)

    def check(self) -> None:
        if not self.sock.getsockname()[1]:
            self.sock.bind(LOCALHOST)
        self.sock.listen(7)
        self.sock.settimeout(PATIENCE_S)
        for module in (self.module, stdlib):
            client = self.own(module.socket())
            client.settimeout(PATIENCE_S)
            client.connect(self.sock.getsockname())
            talk(client, self.own(self.sock.accept()[0]))


class ListenBoth(BindBoth):
    def prepare(self) -> None:
        super().prepare()
        self.sock.bind(LOCALHOST)
        self.name = self.sock.getsockname()

    def call(self) -> None:
        self.sock.listen(7)

    def check(self) -> None:
        assert self.sock.getsockname() == self.name
        super().check()


class Start(Bind):
    """The first use of a socket makes the engine."""

    def prepare(self) -> None:
        super().prepare()
        engine.shutdown()
        self.threads = threads()

    def check(self) -> None:
        super().check()
        until(lambda: threads() <= self.threads + 1)  # or there is more than one engine's, beside one that just ends


CASES: dict[str, Callable[[Any], Case]] = {
    "start": Start,
    "bind": Bind,
    "listen": Listen,
    "listen_unbound": ListenUnbound,
    "bind_both": BindBoth,
    "listen_both": ListenBoth,
    "connect": Connect,
    "connect_bound": ConnectBound,
    "connect_at_once": ConnectAtOnce,
    "connect_again": ConnectAgain,
    "connect_refused": ConnectRefused,
    "accept": Accept,
    "close": Close,
    "close_listener": CloseListener,
    "shutdown": Shutdown,
    "shutdown_listener": ShutdownListener,
    "setsockopt": SetOption,
    "setsockopt_buffer": SetBuffer,
    "names": Names,
    "dup": Duplicate,
    "makefile": MakeFile,
    "detach": Detach,
    "talk": Talk,
    "send": data("send", lambda client, _: client.send(b"xx")),
    "sendall": data("sendall", lambda client, _: client.sendall(b"x" * 200_000)),
    "sendto": data("sendto", lambda client, _: client.sendto(b"xx", ("127.0.0.1", 9))),
    "sendmsg": data("sendmsg", lambda client, _: client.sendmsg([b"x", b"x"], [], 0)),
    "sendfile": data("sendfile", _sendfile),
    "recv": data("recv", lambda _, server: server.recv(100)),
    "recv_into": data("recv_into", lambda _, server: server.recv_into(bytearray(100))),
    "recvfrom": data("recvfrom", lambda _, server: server.recvfrom(100)),
    "recvfrom_into": data("recvfrom_into", lambda _, server: server.recvfrom_into(bytearray(100))),
    "recvmsg": data("recvmsg", lambda _, server: server.recvmsg(100, 100)),
    "recvmsg_into": data("recvmsg_into", lambda _, server: server.recvmsg_into([bytearray(100)], 100)),
    "options": Options,
    "timeouts": Timeouts,
    "close_resetting": CloseLingering,
    "close_waiting": CloseWaiting,
    "made": Made,
    "accept_at_once": AcceptAtOnce,
    "incoming": Incoming,
    "shutdown_reading": ShutdownReading,
    "create_both": CreateBoth,
    "create_connection": CreateConnection,
    "create_server": CreateServer,
}

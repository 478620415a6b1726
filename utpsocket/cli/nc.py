"""`nc`: stdin to a peer over uTP and back, like Ncat.

    nc HOST PORT             connect
    nc -l [HOST] PORT        wait for one connection; with -k for one after the other

The end of stdin ends our half of the connection (-N, the default), and the peer's half is read to its end. The command
ends when both have ended. Where stdin is a terminal, or with -k, the end of the peer's half is enough.

With --exec a program has the connection as its stdin and stdout, with -k one for each connection at once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import threading
from typing import Final, NoReturn

import utpsocket
from utpsocket.cli.messages import WRONG_USAGE, complain, note
from utpsocket.cli.nc_relay import Idle, Relay
from utpsocket.cli.nc_tls import PlainStream, Stream, TlsStream
from utpsocket.engine.current import flush
from utpsocket.protocol import Address
from utpsocket.sockets.host_lists import Hosts

EXAMPLES: Final = (
    "nc -l 4000 > file                    # on one machine",
    "nc -N 192.0.2.7 4000 < file          # on another",
    "nc -l -k --allow 192.0.2.0/24 --exec 'tail -n 20 /var/log/syslog' 4000",
)
_Family = socket.AddressFamily


def configure(parser: argparse.ArgumentParser) -> None:
    """Add nc's arguments to `parser`."""
    parser.usage = f"{parser.prog} [options] HOST PORT\n       {parser.prog} -l [options] [HOST] PORT"
    parser.add_argument("address", metavar="HOST PORT", nargs="*", help="where to connect to, or to listen")
    parser.add_argument("-l", "--listen", action="store_true", help="wait for a connection")
    parser.add_argument("-k", "--keep-open", action="store_true", help="with -l: go on with the next connection")
    ending = parser.add_mutually_exclusive_group()
    ending.add_argument(
        "-N", dest="shuts_down", action="store_true", default=True, help="stdin's end is sent (default)"
    )
    ending.add_argument(
        "--no-shutdown", dest="shuts_down", action="store_false", help="it is not: the peer's end is waited for"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="say who has connected, on stderr")
    parser.add_argument("-w", "--wait", type=_seconds, metavar="S", help="give up a connect after S seconds")
    parser.add_argument("-i", "--idle-timeout", type=_seconds, metavar="S", help="give up after S seconds of silence")
    parser.add_argument("-p", "--port", type=_port, metavar="PORT", help="our port; with -l the one to listen on")
    parser.add_argument("-s", "--source", metavar="HOST", help="our address")
    versions = parser.add_mutually_exclusive_group()
    versions.add_argument("-4", dest="family", action="store_const", const=socket.AF_INET, help="IPv4 alone")
    versions.add_argument("-6", dest="family", action="store_const", const=socket.AF_INET6, help="IPv6 alone")
    parser.add_argument("-e", "--exec", metavar="COMMAND", help="a program that has the connection; no shell is run")
    parser.add_argument("-c", "--sh-exec", metavar="COMMAND", help="the same, run by /bin/sh")
    parser.add_argument(
        "--allow", metavar="HOSTS", action="append", help="with -l: accept these addresses and networks alone"
    )
    tls = parser.add_argument_group("TLS")
    tls.add_argument("--tls", action="store_true", help="encrypt, and check the server's certificate")
    tls.add_argument("--tls-cert", metavar="FILE", help="our certificate (PEM); -l needs one")
    tls.add_argument("--tls-key", metavar="FILE", help="its key, if it is not in the same file")
    tls.add_argument("--tls-ca", metavar="FILE", help="certificates to trust; with -l: ask for the client's")
    tls.add_argument("--tls-name", metavar="NAME", help="the server's name in its certificate (default: HOST)")
    tls.add_argument("--tls-no-verify", action="store_true", help="accept any certificate")


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise ValueError
    return seconds


_seconds.__name__ = "number of seconds"  # for argparse's message


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number < 65_536:
        raise ValueError
    return number


_port.__name__ = "port"


class _WrongUsage(Exception):
    """Arguments that do not fit together."""


def run(arguments: argparse.Namespace) -> int:
    """Connect or listen; the exit status."""
    try:
        netcat = Netcat(arguments)
    except (_WrongUsage, ValueError) as wrong:
        complain(str(wrong))
        return WRONG_USAGE
    except (OSError, ssl.SSLError) as error:
        complain(f"TLS: {error}")
        return 1
    signal.signal(signal.SIGTERM, _end)
    try:
        status = netcat.listen() if arguments.listen else netcat.connect()
    finally:
        netcat.end_programs()
    lost_bytes = flush()
    if lost_bytes:
        complain(f"{lost_bytes:,} bytes did not reach the peer")
        return 1
    return status


def _end(*signal_and_frame: object) -> NoReturn:
    """SIGTERM: what was written is still delivered, at the interpreter's exit."""
    sys.exit(128 + signal.SIGTERM)


class Netcat:
    """What the arguments ask for. Made of them; raises ValueError where they do not fit, OSError for TLS's files."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._host, self._port = self._address()
        self._allowed = self._allow_list()
        self._command = self._program()
        self._tls = self._tls_context() if arguments.tls else None
        self._programs: set[subprocess.Popen[bytes]] = set()
        if arguments.keep_open and not arguments.listen:
            raise _WrongUsage("-k needs -l")

    def _address(self) -> tuple[str, int]:
        arguments = self._arguments
        words: list[str] = arguments.address
        if arguments.listen and (arguments.port is not None or len(words) == 1):
            if len(words) > 1 or (words and arguments.port is None and not words[0].isdecimal()):
                raise _WrongUsage("-l needs one port")
            host = arguments.source or ("" if not words or arguments.port is None else words[0])
            return host, self._number(words[0]) if arguments.port is None else arguments.port
        if len(words) != 2:
            raise _WrongUsage("HOST and PORT are needed, or -l and PORT")
        return words[0], self._number(words[1])

    @staticmethod
    def _number(text: str) -> int:
        try:
            return _port(text)
        except ValueError:
            raise _WrongUsage(f"{text!r} is not a port") from None

    def _allow_list(self) -> Hosts | None:
        if not self._arguments.allow:
            return None
        if not self._arguments.listen:
            raise _WrongUsage("--allow needs -l")
        hosts = Hosts(self._arguments.allow)
        if hosts.has_names:
            raise _WrongUsage("--allow takes addresses and networks, no names")
        return hosts

    def _program(self) -> list[str] | None:
        arguments = self._arguments
        if arguments.exec is not None and arguments.sh_exec is not None:
            raise _WrongUsage("--exec or --sh-exec, not both")
        if arguments.sh_exec is not None:
            return ["/bin/sh", "-c", arguments.sh_exec]
        if arguments.exec is None:
            return None
        words = shlex.split(arguments.exec)
        if not words:
            raise _WrongUsage("--exec needs a command")
        return words

    def _tls_context(self) -> ssl.SSLContext:
        arguments = self._arguments
        if arguments.listen:
            if arguments.tls_cert is None:
                raise _WrongUsage("--tls -l needs --tls-cert")
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=arguments.tls_ca)
            if arguments.tls_ca is not None:
                context.verify_mode = ssl.CERT_REQUIRED
        else:
            context = ssl.create_default_context(cafile=arguments.tls_ca)
            if arguments.tls_no_verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
        if arguments.tls_cert is not None:
            context.load_cert_chain(arguments.tls_cert, arguments.tls_key)
        return context

    # ── connections ──

    def connect(self) -> int:
        """Connect, relay, and return the exit status."""
        arguments = self._arguments
        where = f"{self._host} port {self._port}"
        try:
            sock = self._connected()
        except OSError as error:
            complain(f"{where}: {error}")
            return 1
        if arguments.verbose:
            note(f"connected to {_shown(sock.getpeername())}")
        return self._serve(sock)

    def _connected(self) -> socket.socket:
        """A socket that is connected to one of the host's addresses. Raises the last one's OSError."""
        arguments = self._arguments
        family: int = arguments.family or (0 if arguments.source is None else _family_of(arguments.source))
        failure: OSError | None = None
        for found, kind, protocol, _, address in socket.getaddrinfo(self._host, self._port, family, socket.SOCK_STREAM):
            sock = utpsocket.socket(found, kind, protocol)
            try:
                if arguments.source is not None or arguments.port is not None:
                    sock.bind((arguments.source or "", arguments.port or 0))
                sock.settimeout(arguments.wait)
                sock.connect(address)
                sock.settimeout(None)
            except OSError as error:
                sock.close()
                failure = error
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        assert failure is not None
        raise failure

    def listen(self) -> int:
        """Accept one connection and return its exit status; with -k all that come, until a signal."""
        arguments = self._arguments
        family: int = arguments.family or (_family_of(self._host) if self._host else socket.AF_INET)
        try:
            listener = utpsocket.create_server((self._host, self._port), family=_Family(family))
        except OSError as error:
            complain(f"cannot listen on {self._host or 'any address'} port {self._port}: {error}")
            return 1
        with listener:
            if arguments.verbose:
                note(f"listening on {_shown(listener.getsockname())}")
            while True:
                conn, address = listener.accept()
                if not self._allows(address):
                    if arguments.verbose:
                        note(f"refused {_shown(address)}")
                    conn.close()
                    continue
                if arguments.verbose:
                    note(f"connection from {_shown(address)}")
                if not arguments.keep_open:
                    listener.close()
                    return self._serve(conn)
                if self._command is None:
                    self._serve(conn)
                else:
                    threading.Thread(target=self._serve, args=(conn,), daemon=True).start()

    def _allows(self, address: Address) -> bool:
        if self._allowed is None:
            return True
        host, port = address[0].partition("%")[0], address[1]
        return self._allowed.matches((host.removeprefix("::ffff:") if "." in host else host, port))

    def _serve(self, sock: socket.socket) -> int:
        """What one connection is for; the exit status. Closes it."""
        arguments = self._arguments
        try:
            with sock:
                stream = self._stream(sock)
                if self._command is not None:
                    return self._run_program(sock, stream)
                self._relay(stream, 0, 1, ends_with_peer=arguments.keep_open or sys.stdin.isatty()).run()
                return _status_of(sock)
        except (OSError, Idle) as error:
            complain(str(error) or type(error).__name__)
            return 1

    def _relay(
        self,
        stream: Stream,
        source_fd: int,
        sink_fd: int,
        *,
        ends_with_peer: bool = False,
        ends_with_source: bool = False,
    ) -> Relay:
        arguments = self._arguments
        return Relay(
            stream,
            source_fd,
            sink_fd,
            shuts_down=arguments.shuts_down,
            ends_with_peer=ends_with_peer,
            ends_with_source=ends_with_source,
            idle_seconds=arguments.idle_timeout,
        )

    def _stream(self, sock: socket.socket) -> Stream:
        if self._tls is None:
            return PlainStream(sock)
        arguments = self._arguments
        name = None if arguments.listen else arguments.tls_name or self._host
        sock.settimeout(arguments.wait)
        stream = TlsStream(sock, self._tls, server_name=name)
        sock.settimeout(None)
        if arguments.verbose:
            note(f"{stream.version}, {stream.cipher}")
        return stream

    # ── programs ──

    def _run_program(self, sock: socket.socket, stream: Stream) -> int:
        """Run the command with the connection as its stdin and stdout; 1 if it fails."""
        assert self._command is not None
        environment = _with_addresses(sock)
        if isinstance(stream, PlainStream):
            program = subprocess.Popen(self._command, stdin=sock.fileno(), stdout=sock.fileno(), env=environment)
            self._programs.add(program)
            sock.close()  # so that the connection ends when the program closes it
        else:
            ours, its = socket.socketpair()
            with ours:
                with its:
                    program = subprocess.Popen(self._command, stdin=its.fileno(), stdout=its.fileno(), env=environment)
                self._programs.add(program)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has ended, and need not read all
                    self._relay(stream, ours.fileno(), ours.fileno(), ends_with_source=True).run()
        status = program.wait()
        self._programs.discard(program)
        if status:
            complain(f"{self._command[0]}: exit status {status}")
        return 1 if status else 0

    def end_programs(self) -> None:
        """Ask those that still run to end: their connections end with this process."""
        for program in list(self._programs):
            program.terminate()


def _status_of(sock: socket.socket) -> int:
    """1 if the peer was gone before it had all that was sent to it. What is still on its way is flushed at the end."""
    figures = utpsocket.info(sock)
    lost_bytes = figures.unsent_bytes + figures.sent_bytes - figures.acked_bytes
    if not figures.errno or not lost_bytes:
        return 0
    complain(f"{lost_bytes:,} bytes did not reach the peer: {os.strerror(figures.errno)}")
    return 1


def _with_addresses(sock: socket.socket) -> dict[str, str]:
    """The environment of a program, with the variables that Ncat's have. ncat(1)"""
    local, peer = sock.getsockname(), sock.getpeername()
    return {
        **os.environ,
        "NCAT_LOCAL_ADDR": local[0],
        "NCAT_LOCAL_PORT": str(local[1]),
        "NCAT_REMOTE_ADDR": peer[0],
        "NCAT_REMOTE_PORT": str(peer[1]),
    }


def _family_of(host: str) -> int:
    return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]


def _shown(address: Address) -> str:
    return f"{address[0]} port {address[1]}"

"""The state of a user's uTP socket, shared by all fds, duplicates and Python objects of it.

The class socket writes what the application has asked for, the engine how the connection goes and ends. The attributes
are plain values, so that an engine in another process can send them in messages.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from utpsocket.engine.user_fds import shared_errnos
from utpsocket.protocol import Address
from utpsocket.protocol.keepalive import NAT_KEEPALIVE_SECONDS
from utpsocket.protocol.report import Figures

if TYPE_CHECKING:
    from utpsocket.engine.interpreter.native import Socket

    class Routes(Protocol):
        """Rules of a patched program (sockets/rules.py)."""

        @property
        def fallback(self) -> str | None: ...

        @property
        def fallback_seconds(self) -> float: ...

        @property
        def listen(self) -> str: ...

        def chooses_utp(self, family: int, address: object, role: str) -> bool:
            """Whether uTP carries a connection to, or a listener at, this address."""

    class ReplacedSocket(Protocol):
        """A socket that several processes had, and that was replaced in one of them (forked_copies.py)."""

        def on_used(self, inode: int) -> None:
            """The socket with this inode listens or connects."""

        def on_unused(self, inode: int) -> None:
            """It does so no more."""

        def is_used_by_another(self, inode: int) -> bool:
            """Whether a socket with another inode does."""

    class SharedOptions(Protocol):
        """The options of a socket that several processes have (forked_copies.py)."""

        def write(self, options: tuple[SettingsForm, Options]) -> None:
            """Write them for the other processes."""

        def read(self) -> tuple[SettingsForm, Options] | None:
            """The options, if another process has changed them."""


SettingsForm: TypeAlias = tuple[int | str | None, ...]
"""The values of Settings.__slots__, in that order."""
Options: TypeAlias = dict[tuple[int, int], bytes]
"""Values of socket options, by level and name, as getsockopt() returns them."""

# Subtracted from uTP's part of a small buffer: the socket pair takes a whole piece of the program's data, however small
# its own buffer is.
_PIECE_BYTES: Final = 1_600
WRITTEN_BY_ENGINE: Final = (
    "role",
    "error",
    "is_over",
    "is_reset",
    "is_after_eof",
    "transport",
    "local",
    "is_full",
    "ending",
)


class Role(Enum):
    """What the application has done with its socket."""

    UNCONNECTED = "unconnected"
    LISTENING = "listening"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    FAILED = "failed"


class Settings:
    """Socket options that a connection has from its beginning, and that it inherits from its listener."""

    __slots__ = (
        "congestion",
        "keepalive",
        "keepalive_count",
        "keepalive_idle_seconds",
        "keepalive_interval_seconds",
        "linger_seconds",
        "max_datagram_bytes",
        "nodelay",
        "receive_buffer_bytes",
        "send_buffer_bytes",
        "shares_port",
        "nat_keepalive_seconds",
        "syn_retries",
        "target_delay_us",
        "user_timeout_ms",
    )

    def __init__(self) -> None:
        self.receive_buffer_bytes = 0  # 0: the default
        self.send_buffer_bytes = 0
        self.max_datagram_bytes = 0
        self.shares_port = False
        self.nodelay = False
        self.keepalive = False
        self.keepalive_idle_seconds = 7_200  # tcp(7): tcp_keepalive_time, _intvl, _probes
        self.keepalive_interval_seconds = 75
        self.keepalive_count = 9
        self.nat_keepalive_seconds = NAT_KEEPALIVE_SECONDS  # UTP_KEEPALIVE; 0: none
        self.syn_retries = 0  # 0: the default
        self.linger_seconds: int | None = None  # None: off; close() then returns at once
        self.user_timeout_ms = 0
        self.congestion = ""  # a name of CONTROLLERS; empty: the default
        self.target_delay_us = 0  # 0: the default

    def copy(self) -> Settings:
        """The same settings for another connection."""
        other = Settings.__new__(Settings)
        other.receive_buffer_bytes = self.receive_buffer_bytes
        other.send_buffer_bytes = self.send_buffer_bytes
        other.max_datagram_bytes = self.max_datagram_bytes
        other.shares_port = self.shares_port
        other.nodelay = self.nodelay
        other.keepalive = self.keepalive
        other.keepalive_idle_seconds = self.keepalive_idle_seconds
        other.keepalive_interval_seconds = self.keepalive_interval_seconds
        other.keepalive_count = self.keepalive_count
        other.nat_keepalive_seconds = self.nat_keepalive_seconds
        other.syn_retries = self.syn_retries
        other.linger_seconds = self.linger_seconds
        other.user_timeout_ms = self.user_timeout_ms
        other.congestion = self.congestion
        other.target_delay_us = self.target_delay_us
        return other


def settings_form(settings: Settings) -> SettingsForm:
    """Settings as plain values."""
    return tuple(getattr(settings, name) for name in Settings.__slots__)


def settings_of(form: SettingsForm) -> Settings:
    """The settings of which settings_form() has returned the values."""
    settings = Settings()
    for name, value in zip(Settings.__slots__, form, strict=True):
        setattr(settings, name, value)
    return settings


def half_buffer(option_bytes: int) -> int:
    """What to give setsockopt() for the pair's buffer where getsockopt() is to return `option_bytes`. A socket has two
    buffers in each direction, the pair's and uTP's, each of half of option_bytes; the kernel doubles what it is given.
    """
    return option_bytes // 4


def window_bytes(option_bytes: int) -> int:
    """The size of uTP's of these two buffers; 0 for the default. It is more than half of option_bytes, since the kernel
    counts its bookkeeping in the pair's: both together are at most half as large again as TCP's. Of the smallest sizes
    it is less, since a pair takes a whole piece of the program's data, however small its buffer is.
    """
    return option_bytes * 3 // 4 - _PIECE_BYTES if option_bytes else 0


class Identity:
    """One uTP socket.

    While the engine serves a connection it writes WRITTEN_BY_ENGINE and `received_after_shutdown`, and `peer` of what a
    listener accepts. The shim writes the rest; of WRITTEN_BY_ENGINE it writes what bind(), connect() and listen() begin
    with, clears the error when it is read, and all of it when the socket becomes unconnected again.
    """

    __slots__ = (
        "__weakref__",
        "bound",
        "bound_tcp",
        "claim",
        "cookie",
        "ending",
        "endpoint",
        "error",
        "family",
        "filler_bytes",
        "replaced",
        "has_duplicates",
        "received_after_shutdown",
        "inode",
        "is_after_eof",
        "is_full",
        "is_gated",
        "is_over",
        "is_port_chosen",
        "is_port_new",
        "is_reset",
        "is_shut_down",
        "is_connect_reported",
        "is_unusable",
        "local",
        "namespace",
        "options",
        "owner_pid",
        "peer",
        "errno_slot",
        "record",
        "role",
        "routes",
        "send_buffer_bytes",
        "settings",
        "shared_options",
        "shut_halves",
        "reported_errno",
        "transport",
        "user_fd",
    )

    def __init__(self, family: int, settings: Settings | None = None) -> None:
        # Which socket it is.
        self.family = family  # AF_INET or AF_INET6, though the fd is AF_UNIX
        self.cookie = 0  # the number in the names of its pair, or of its listening socket; 0: it has none yet
        self.inode = 0  # of the user's fd
        self.user_fd = -1  # its number, as far as is known
        self.has_duplicates = False  # other fds may mean the same socket
        self.namespace = 0  # cookie of its network namespace, once bind() or connect() has asked
        self.owner_pid = 0  # the process that its engine runs in

        # What the application has done with it.
        self.role = Role.UNCONNECTED
        self.settings = settings or Settings()
        self.options: Options = {}  # set by setsockopt(), by level and name
        self.routes: Routes | None = None  # which connections are uTP's; None: all
        # A TCP socket bound to the same address, until it is known which of the two is used.
        self.bound_tcp: Socket | None = None
        # Of a connect() or listen() that has not returned: whether the caller or the engine decides (commands.Claim).
        self.claim: dict[str, str] | None = None
        self.shut_halves = 0  # by shutdown(): 1 it receives no more, 2 it sends no more
        self.is_shut_down = False  # both, and whether it is closed is watched
        self.is_unusable = False  # Linux lets such a socket neither connect nor listen again
        self.is_connect_reported = False  # connect() has returned success, which Linux's does once
        self.is_gated = False  # the fd's send buffer is still shrunk; the shim restores it
        self.filler_bytes = 0  # written into the pair, so that the fd is not writable before it is connected
        self.send_buffer_bytes = 0  # what it is restored to

        # Addresses.
        self.local: Address | None = None
        self.peer: Address | None = None
        self.bound: Address | None = None  # `local` as bind() left it; with port 0 once a chosen port is given up
        self.is_port_chosen = False  # by the kernel: such a port is released when the connection ends
        self.is_port_new = False  # bind() was called after that end
        self.endpoint = 0  # key of the engine's endpoint that it is bound to; 0: none

        # How the connection goes, and how it ended.
        self.transport = "utp"  # what carries the connection: "tcp" after a fallback
        self.is_full = False  # of a listener: connections wait for room in the kernel's queue, which accept() makes
        # What was received after shutdown(SHUT_RD), which the user may read as over TCP.
        self.received_after_shutdown: deque[bytes] | None = None
        self.is_over = False
        self.is_reset = False  # it ended by an error
        self.error = 0  # the errno it ended with, until the application has read it
        self.reported_errno = 0  # the same, once the application has read it
        self.is_after_eof = False  # it ended by an error, after the peer's end of file was delivered
        self.ending: Figures | None = None  # its last figures, the fields of ConnectionStats, for info()

        # Where other processes have it, too.
        self.record: memoryview | None = None  # shared memory, after a fork (forked_copies.py)
        self.replaced: ReplacedSocket | None = None  # the socket that this one has replaced in this process only
        self.shared_options: SharedOptions | None = None  # the options there
        self.errno_slot: memoryview | None = None  # where another process's engine writes the errno (shared_errnos.py)

    @property
    def kind(self) -> type[Identity]:
        """The class for the identities of connections that it accepts."""
        return type(self) if self.record is None else Identity

    @property
    def is_bound(self) -> bool:
        """Whether it has a port, of this process's engine or of another's."""
        return self.endpoint != 0 or (self.bound is not None and self.bound[1] != 0)

    @property
    def has_port(self) -> bool:
        """The same, or of a connection: one that has ended has none where the kernel chose it."""
        if self.bound_tcp is not None or self.role in (Role.CONNECTING, Role.LISTENING):
            return True
        if self.role is Role.CONNECTED and not self.is_over:
            return True
        is_given_up = self.role is not Role.UNCONNECTED and self.is_port_chosen and not self.is_port_new
        return self.is_bound and not is_given_up

    def share_options(self) -> None:
        """An option has been set: write all options for other processes that share the socket. Nothing to do here."""

    def change_class(self, kind: type[Identity]) -> None:
        """Have the attributes read and written as this subclass does it, from now on.

        All subclasses that this is called with have the same slots. The shim and the engine go on to refer to the same
        object, and where the socket is not shared an attribute costs no indirection.
        """
        self.__class__ = kind

    def unshare(self) -> None:
        """Another socket is about to take this one's place in this process: stop sharing its state with others."""
        if self.replaced is not None:
            self.replaced.on_unused(self.inode)

    def on_used(self) -> None:
        """It listens now, or connects: noted for the processes that still have the socket it replaced."""
        if self.replaced is not None:
            self.replaced.on_used(self.inode)

    @property
    def is_used_elsewhere(self) -> bool:
        """Whether another process listens or is connected with another socket in this one's place. Over TCP this one
        would be in use.
        """
        return self.replaced is not None and self.replaced.is_used_by_another(self.inode)

    @property
    def has_ended_after_eof(self) -> bool:
        """is_after_eof, of this object or in the table that the engine's process shares (shared_errnos.py)."""
        return self.is_after_eof or shared_errnos.is_after_eof(self.owner_pid, self.cookie)

    def take_error(self) -> int:
        """The errno that the connection ended with. The first process that asks takes it, as with SO_ERROR."""
        error, self.error = self.error, 0
        error = shared_errnos.take(self.owner_pid, self.cookie) or error
        self.reported_errno = error or self.reported_errno
        return error

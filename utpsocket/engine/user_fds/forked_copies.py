"""The state of a socket that several processes have after a fork, in memory that they share.

Parent and child share the fd, and over TCP the kernel keeps the whole state of the socket there. Over uTP the state
that AF_UNIX does not have is in the Identity, of which the child has a copy. Without more, that copy would go out of
date when the parent connects, listens, shuts down or reads the connection's error, and the reverse. So before a fork
every identity that the shim uses moves into shared memory, and is read and written there from then on. Where a program
does not fork, this costs nothing.

Options are written there when a process sets one, and read when the count of changes has changed.

What a single process can use is not shared: the engine's port, the fds. When a process puts another socket in the place
of its fd, it leaves the shared state (unshare()): the others still have the old fd, which counts as closed. What
remains shared is whether one of them has begun to listen or to connect with another socket (ReplacedSocket).

Any thread may call. Sources: mmap(2) MAP_SHARED; fork(2).
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable
from types import MemberDescriptorType
from typing import TYPE_CHECKING, Any, Final

from utpsocket.engine.interpreter.originals import marshal, struct
from utpsocket.engine.kernel import fd_names
from utpsocket.engine.user_fds import shared_errnos
from utpsocket.engine.user_fds.shared_errnos import AFTER_EOF
from utpsocket.engine.user_fds.socket_state import (
    WRITTEN_BY_ENGINE,
    Identity,
    Options,
    Role,
    Settings,
    SettingsForm,
    settings_form,
)
from utpsocket.protocol import Address

if TYPE_CHECKING:
    from utpsocket.engine.user_fds.socket_state import SharedOptions


_NUMBERS: Final = {"cookie": "Q", "owner_pid": "q", "error": "i", "shut_halves": "B", "send_buffer_bytes": "i"}
_FLAGS: Final = (
    "is_after_eof",
    "is_gated",
    "is_over",
    "is_port_chosen",
    "is_port_new",
    "is_reset",
    "is_shut_down",
    "is_connect_reported",
    "is_unusable",
)
_ADDRESSES: Final = ("local", "peer", "bound")
_USED_INODE: Final = "used_inode"  # see ReplacedSocket; no attribute of an identity
# More than the longest address of fd_names.to_text(): 45 characters of IPv6, port, scope and flowinfo.
_ADDRESS_BYTES: Final = 80
# To read an address, or options, that another process may be writing; by feel.
_TRIES: Final = 100
# For the options of one socket, by feel. The kernel gives no memory before an option is set after the fork.
_OPTIONS_BYTES: Final = 2_048
# Twice the number of changes, odd during a change; the bytes that follow.
_OPTIONS_HEAD: Final = struct.Struct("=II")
_SETTINGS: Final[MemberDescriptorType] = vars(Identity)["settings"]
_OPTIONS: Final[MemberDescriptorType] = vars(Identity)["options"]
_ROLES: Final = tuple(Role)

take_notices: Callable[[], None] | None = None
"""Set where the engine is another process: handles the notices that have arrived, before an identity is read."""


class _SharedOptions:
    """The options of one socket in shared memory, and the count of changes that this process has read."""

    __slots__ = ("_count", "_memory")

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._count = 0

    def write(self, options: tuple[SettingsForm, Options]) -> None:
        """Write them for the other processes. If they take more than _OPTIONS_BYTES, nothing is written."""
        data = marshal.dumps(options)
        if len(data) > _OPTIONS_BYTES - _OPTIONS_HEAD.size:
            return
        being_written = _OPTIONS_HEAD.unpack_from(self._memory)[0] | 1
        _OPTIONS_HEAD.pack_into(self._memory, 0, being_written, 0)
        self._memory[_OPTIONS_HEAD.size : _OPTIONS_HEAD.size + len(data)] = data
        self._count = being_written + 1
        _OPTIONS_HEAD.pack_into(self._memory, 0, self._count, len(data))

    def read(self) -> tuple[SettingsForm, Options] | None:
        """The options, if another process has changed them since this one has read or written them; else None."""
        for _ in range(_TRIES):
            head = count, size = _OPTIONS_HEAD.unpack_from(self._memory)
            if count == self._count:
                return None
            data = bytes(self._memory[_OPTIONS_HEAD.size : _OPTIONS_HEAD.size + size])
            if count & 1 or _OPTIONS_HEAD.unpack_from(self._memory) != head:
                continue
            self._count = count
            found: tuple[SettingsForm, Options] = marshal.loads(data)
            return found
        return None


def _read_number(record: memoryview, name: str) -> Any:  # an int, a bool or bytes, as _FORMATS says
    struct, offset = _places[name]
    return struct.unpack_from(record, offset)[0]


def _write_number(record: memoryview, name: str, value: object) -> None:
    struct, offset = _places[name]
    struct.pack_into(record, offset, value)


def _read_role(record: memoryview, name: str) -> Role:
    number: int = _read_number(record, name)
    return _ROLES[number]


def _write_role(record: memoryview, name: str, value: Role) -> None:
    _write_number(record, name, _ROLES.index(value))


def _read_address(record: memoryview, name: str) -> Address | None:
    for _ in range(_TRIES):
        text = _read_number(record, name).rstrip(b"\0").decode()
        if not text:
            return None
        try:
            return fd_names.from_text(text)
        except ValueError:
            continue
    return None


def _write_address(record: memoryview, name: str, value: Address | None) -> None:
    _write_number(record, name, b"" if value is None else fd_names.to_text(value).encode())


_FORMATS: Final = {
    _USED_INODE: "Q",
    **_NUMBERS,
    **dict.fromkeys(_FLAGS, "?"),
    "role": "B",
    **dict.fromkeys(_ADDRESSES, f"{_ADDRESS_BYTES}s"),
}
# Of each attribute: its slot, and what reads and writes it in a record. Each has a type of its own.
_FIELDS: Final[
    dict[str, tuple[MemberDescriptorType, Callable[[memoryview, str], Any], Callable[[memoryview, str, Any], None]]]
] = {}
_places: Final[dict[str, tuple[struct.Struct, int]]] = {}
_size = 0
for _name, _format in _FORMATS.items():
    _places[_name] = (struct.Struct(f"={_format}"), _size)
    _size += _places[_name][0].size
    if _name == "role":
        _FIELDS[_name] = getattr(Identity, _name), _read_role, _write_role
    elif _name in _ADDRESSES:
        _FIELDS[_name] = getattr(Identity, _name), _read_address, _write_address
    elif _name != _USED_INODE:
        _FIELDS[_name] = getattr(Identity, _name), _read_number, _write_number


# What follows returns properties, which stand in the place of attributes: type checkers are to see those.


def _shared(name: str) -> Any:
    _, read, write = _FIELDS[name]
    is_engines = name in WRITTEN_BY_ENGINE

    def get(self: CopiedIdentity) -> object:
        if is_engines and take_notices is not None:
            take_notices()
        return read(self.record, name)

    def write_shared(self: CopiedIdentity, value: object) -> None:
        write(self.record, name, value)

    return property(get, write_shared)


def _shared_flag(name: str) -> Any:
    """The same for a flag, and faster, since every recv() and send() reads some."""
    offset = _places[name][1]

    def get(self: CopiedIdentity) -> bool:
        return bool(self.record[offset])

    def read_latest(self: CopiedIdentity) -> bool:
        if take_notices is not None:
            take_notices()
        return bool(self.record[offset])

    def write_flag(self: CopiedIdentity, value: bool) -> None:
        self.record[offset] = value

    return property(read_latest if name in WRITTEN_BY_ENGINE else get, write_flag)


def after_notices(name: str) -> Any:
    """An attribute of an identity that an engine in another process writes: read after its notices."""
    slot: MemberDescriptorType = getattr(Identity, name)

    def get(self: Identity) -> object:
        if take_notices is not None:
            take_notices()
        found: object = slot.__get__(self)
        return found

    return property(get, slot.__set__)


class ReplacedSocket:
    """A socket that several processes had, once one of them has put another one in its place. Over TCP it is one socket
    all the time: when a process listens or connects with its own, no other one can connect.
    """

    __slots__ = ("_record",)

    def __init__(self, record: memoryview) -> None:
        self._record = record

    def on_used(self, inode: int) -> None:
        """The socket with this inode, which has replaced this one in some process, listens or connects."""
        _write_number(self._record, _USED_INODE, inode)

    def on_unused(self, inode: int) -> None:
        """It no longer listens or connects."""
        if _read_number(self._record, _USED_INODE) == inode:
            _write_number(self._record, _USED_INODE, 0)

    def is_used_by_another(self, inode: int) -> bool:
        """Whether a socket that has replaced this one, other than that with this inode, listens or connects."""
        used_inode: int = _read_number(self._record, _USED_INODE)
        return used_inode not in (0, inode)


class CopiedIdentity(Identity):
    """An identity of a socket that more than one process may have, in memory that they share."""

    __slots__ = ()
    record: memoryview
    shared_options: SharedOptions

    cookie = _shared("cookie")
    owner_pid = _shared("owner_pid")
    error = _shared("error")
    shut_halves = _shared("shut_halves")
    send_buffer_bytes = _shared("send_buffer_bytes")
    is_after_eof = _shared_flag("is_after_eof")
    is_gated = _shared_flag("is_gated")
    is_over = _shared_flag("is_over")
    is_port_chosen = _shared_flag("is_port_chosen")
    is_port_new = _shared_flag("is_port_new")
    is_reset = _shared_flag("is_reset")
    is_shut_down = _shared_flag("is_shut_down")
    is_connect_reported = _shared_flag("is_connect_reported")
    is_unusable = _shared_flag("is_unusable")
    role = _shared("role")
    local = _shared("local")
    peer = _shared("peer")
    bound = _shared("bound")
    # These are not shared: they are right in the process that the engine serves.
    transport = after_notices("transport")
    is_full = after_notices("is_full")
    ending = after_notices("ending")

    def unshare(self) -> None:
        """Another socket is about to take this one's place, in this process."""
        super().unshare()
        record = self.record
        for name, (slot, read, _) in _FIELDS.items():
            slot.__set__(self, read(record, name))
        self._catch_up()
        self.role = Role.FAILED
        self.error = 0
        self.is_connect_reported = self.is_over = True
        self.replaced = ReplacedSocket(record)
        self.change_class(Identity)
        alone: Identity = self
        alone.record = alone.shared_options = None

    @property
    def is_used_elsewhere(self) -> bool:
        """Also if another process has left the shared state, and this one has not."""
        return ReplacedSocket(self.record).is_used_by_another(self.inode) or super().is_used_elsewhere

    def share_options(self) -> None:
        """Write the options for the other processes, since this one has set one."""
        self.shared_options.write((settings_form(_SETTINGS.__get__(self)), _OPTIONS.__get__(self)))

    def _catch_up(self) -> None:
        """Take over the options that another process has set."""
        found = self.shared_options.read()
        if found is not None:
            form, options = found
            settings = _SETTINGS.__get__(self)
            for name, value in zip(Settings.__slots__, form, strict=True):
                setattr(settings, name, value)
            _OPTIONS.__set__(self, options)

    def _latest_settings(self) -> Settings:
        self._catch_up()
        found: Settings = _SETTINGS.__get__(self)
        return found

    def _latest_options(self) -> Options:
        self._catch_up()
        found: Options = _OPTIONS.__get__(self)
        return found

    settings = property(_latest_settings)
    options = property(_latest_options, _OPTIONS.__set__)


class IdentityFromName(Identity):
    """An identity of a connection that another process's engine serves, made from the name of the fd's peer alone. How
    it ended is read from that engine's table (shared_errnos.py).
    """

    __slots__ = ()

    def _is_after_eof(self) -> bool:
        slot = self.errno_slot  # checked first, and fast, since every recv() asks
        return slot is not None and slot[AFTER_EOF] != 0 and shared_errnos.is_after_eof(self.owner_pid, self.cookie)

    def _error(self) -> int:
        return shared_errnos.peek(self.owner_pid, self.cookie)

    def _ignore(self, value: object) -> None:
        """Nothing is written: the table is that engine's."""

    is_after_eof = property(_is_after_eof, _ignore)
    error = property(_error, _ignore)

    def unshare(self) -> None:
        """Another socket is about to take this one's place."""
        self.change_class(Identity)
        self.is_after_eof, self.error = False, 0


def share(identities: Iterable[Identity]) -> None:
    """Move these identities into shared memory. To be called before a fork. Raises OSError."""
    alone = [it for it in identities if it.record is None and not isinstance(it, IdentityFromName)]
    if not alone:
        return
    memory = memoryview(mmap.mmap(-1, len(alone) * _size))
    options = memoryview(mmap.mmap(-1, len(alone) * _OPTIONS_BYTES))
    for index, identity in enumerate(alone):
        record = memory[index * _size : (index + 1) * _size]
        identity.shared_options = _SharedOptions(options[index * _OPTIONS_BYTES : (index + 1) * _OPTIONS_BYTES])
        written = {}
        for name, (_, _, write) in _FIELDS.items():
            written[name] = getattr(identity, name)
            write(record, name, written[name])
        identity.record = record
        identity.change_class(CopiedIdentity)
        for name, (slot, _, write) in _FIELDS.items():
            value = slot.__get__(identity)
            if value is not written[name]:  # by the engine's thread, meanwhile
                write(record, name, value)

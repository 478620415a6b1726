"""Which uTP socket a descriptor is: by its inode in this process, by the kernel's names in any.

Python objects for one descriptor come and go (dup(), detach(), fork(), SCM_RIGHTS); the Identity stays. Any thread may
call. Sources: docs/sockets.md §1 "Names".
"""

from __future__ import annotations

from typing import Final
from weakref import ref

from utpsocket.engine.current import running_engine
from utpsocket.engine.interpreter.native import Socket
from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import reraise_handler_error
from utpsocket.engine.kernel import fd_names
from utpsocket.engine.user_fds import forked_copies, shared_errnos
from utpsocket.engine.user_fds.socket_state import Identity, Role
from utpsocket.protocol import Address

# Dead references are left until there are as many as live ones, and _MIN_ENTRIES: a WeakValueDictionary costs each
# socket four calls of Python's, one of them on whatever thread drops the identity.
_by_inode: dict[int, ref[Identity]] = {}
_MIN_ENTRIES: Final = 256  # by feel: some 30 KB
_max_entries = _MIN_ENTRIES
# Of detached descriptors, for which there is no Python object: by inode.
_pinned: dict[int, Identity] = {}


def register(sock: Socket, identity: Identity, inode: int = 0) -> None:
    """Note that this descriptor, with this inode, if the caller knows it, is that socket."""
    fd = sock.fileno()
    identity.user_fd = fd
    identity.inode = inode or os.fstat(fd).st_ino
    _by_inode[identity.inode] = ref(identity)
    if len(_by_inode) > _max_entries:
        _drop_dead()


def _drop_dead() -> None:
    """Take dead references out, by single operations of the dict, as any thread may use it meanwhile."""
    global _max_entries
    for inode, entry in list(_by_inode.items()):
        if entry() is None:
            taken = _by_inode.pop(inode, None)
            if taken is not None and taken() is not None:
                _by_inode.setdefault(inode, taken)  # of a new socket with the same inode
    _max_entries = 2 * len(_by_inode) + _MIN_ENTRIES


def _registered() -> list[Identity]:
    found = [entry() for entry in list(_by_inode.values())]
    return [identity for identity in found if identity is not None]


def identify_accepted(sock: Socket, name: bytes, cookie: int, pid: int, inode: int = 0) -> Identity:
    """The Identity of a descriptor that was accepted and whose far end has this name of ours.

    cookie   the cookie in the name
    pid      the process id of the engine
    inode    of the descriptor; 0: not known
    """
    loop = running_engine()
    identity = loop.identity_of(cookie) if loop is not None and loop.pid == pid else None
    if identity is None:
        found = fd_names.decode(name)
        assert found is not None
        identity = _identity(*found)
    register(sock, identity, inode)
    if _pinned:
        unpin(identity)
    return identity


def identity_of_fd(sock: Socket) -> Identity | None:
    """The Identity of a Python socket over an AF_UNIX descriptor; None for an AF_UNIX socket that is not uTP's.

    First by the inode, which stays the same over dup() and detach(); then by the kernel's names, which stay the same
    over fork(), exec and SCM_RIGHTS.
    """
    try:
        inode = os.fstat(sock.fileno()).st_ino
    except OSError as error:
        reraise_handler_error(error)
        return None
    entry = _by_inode.get(inode)
    identity = None if entry is None else entry()
    if identity is not None:
        return identity
    identity = _identity_from_names(sock)
    if identity is not None:
        register(sock, identity)
    return identity


def _identity_from_names(sock: Socket) -> Identity | None:
    try:
        name = Socket.getpeername(sock)
    except OSError as error:
        reraise_handler_error(error)
        name = None
    found = fd_names.decode(name)
    if found is not None and fd_names.is_ours(name, fd_names.peer_credentials(sock)[1]):
        return _identity(*found)
    name = Socket.getsockname(sock)
    listening = fd_names.decode_listener(name)
    if listening is not None and fd_names.is_ours(name, fd_names.peer_credentials(sock)[1]):
        cookie, pid, local = listening
        identity = Identity(_family_of(local))
        identity.cookie, identity.owner_pid, identity.local = cookie, pid, local
        identity.role = Role.LISTENING
        return identity
    return None


def _identity(cookie: int, pid: int, local: Address, peer: Address) -> Identity:
    """The engine's Identity with this cookie; in other processes than the engine's a new one, made of the name."""
    loop = running_engine()
    served = loop.identity_of(cookie) if loop is not None and loop.pid == pid else None
    if served is not None:
        return served
    identity = forked_copies.IdentityFromName(_family_of(local))
    identity.cookie, identity.owner_pid = cookie, pid
    identity.errno_slot = shared_errnos.slot_of(pid, cookie)
    identity.local, identity.peer = local, peer
    identity.role = Role.CONNECTED
    identity.is_connect_reported = True  # connect() has most likely returned before the descriptor was passed on
    return identity


def _family_of(address: Address) -> int:
    return int(stdlib.AF_INET6 if len(address) == 4 else stdlib.AF_INET)


def before_fork() -> None:
    """A fork begins (shim.py has registered it)."""
    try:
        forked_copies.share(_registered())
    except OSError as error:  # no memory: neither process will see what the other does to the sockets they share
        reraise_handler_error(error)


def after_fork_in_child() -> None:
    """This process has just been forked."""
    fd_names.forget_cookies()
    for identity in _registered():
        identity.endpoint = 0  # it is the parent's engine that has it
        identity.claim = None
        identity.received_after_shutdown = None  # it is the parent's: received here as well, it would be received twice


def forget(identity: Identity) -> None:
    """Note that the descriptor of this Identity is about to be replaced."""
    _by_inode.pop(identity.inode, None)


def pin(identity: Identity) -> None:
    """Keep the Identity of a descriptor that stays open without a Python object."""
    _pinned[identity.inode] = identity


def unpin(identity: Identity) -> None:
    """Undo pin(): there is a Python object for the descriptor again."""
    _pinned.pop(identity.inode, None)

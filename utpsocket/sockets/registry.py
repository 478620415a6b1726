"""Which uTP socket an fd is: by inode in this process, by the names in the kernel in any.

Separate because Python objects come and go over one fd (dup, detach, fork, SCM_RIGHTS) and the identity stays. Any
thread may call. Sources: docs/sockets.md §1 "Names".
"""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

from utpsocket.engine import running_engine
from utpsocket.engine.interpreter.native import Socket
from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import let_pass
from utpsocket.engine.kernel import fd_names
from utpsocket.engine.kernel.fd_names import Address
from utpsocket.engine.user_fds import forked_copies, shared_errnos
from utpsocket.engine.user_fds.socket_state import Identity, Role

_by_inode: WeakValueDictionary[int, Identity] = WeakValueDictionary()
_pinned: dict[int, Identity] = {}  # of fds that were detached: no Python object stands for them any more


def register(sock: Any, identity: Identity) -> None:
    """This fd is that socket from now on."""
    fd = sock.fileno()
    identity.user_fd = fd
    identity.inode = os.fstat(fd).st_ino
    _by_inode[identity.inode] = identity


def identify_accepted(sock: Any, name: bytes, cookie: int, pid: int) -> Identity:
    """Who this fd is, which has been accepted, and whose far end has this name, which is ours.

    cookie   of that name
    pid      of the engine's process
    """
    loop = running_engine()
    identity = loop.identity_of(cookie) if loop is not None and loop.pid == pid else None
    if identity is None:
        found = fd_names.decode(name)
        assert found is not None
        identity = _identity(*found)
    register(sock, identity)
    unpin(identity)
    return identity


def identity_of_fd(sock: Any) -> Identity | None:
    """The uTP identity behind a Python socket over an AF_UNIX fd, None for a genuine AF_UNIX socket.

    First by inode, which survives dup and detach; then by the names in the kernel, which survive fork, exec and
    SCM_RIGHTS.
    """
    try:
        inode = os.fstat(sock.fileno()).st_ino
    except OSError as error:
        let_pass(error)
        return None
    identity = _by_inode.get(inode)
    if identity is not None:
        return identity
    identity = _identity_from_names(sock)
    if identity is not None:
        register(sock, identity)
    return identity


def _identity_from_names(sock: Any) -> Identity | None:
    try:
        name = Socket.getpeername(sock)
    except OSError as error:
        let_pass(error)
        name = None
    found = fd_names.decode(name)
    if found is not None and fd_names.is_ours(name, fd_names.maker(sock)[1]):
        return _identity(*found)
    name = Socket.getsockname(sock)
    listening = fd_names.decode_listener(name)
    if listening is not None and fd_names.is_ours(name, fd_names.maker(sock)[1]):
        cookie, pid, local = listening
        identity = Identity(_family_of(local))
        identity.cookie, identity.owner_pid, identity.local = cookie, pid, local
        identity.role = Role.LISTENING
        return identity
    return None


def _identity(cookie: int, pid: int, local: Address, peer: Address) -> Identity:
    """What the engine calls by this cookie, or in another process the little that its name says."""
    loop = running_engine()
    served = loop.identity_of(cookie) if loop is not None and loop.pid == pid else None
    if served is not None:
        return served
    identity = forked_copies.DistantIdentity(_family_of(local))
    identity.cookie, identity.owner_pid = cookie, pid
    identity.place = shared_errnos.place_of(pid, cookie)
    identity.local, identity.peer = local, peer
    identity.role = Role.CONNECTED
    identity.is_told = True  # most likely
    return identity


def _family_of(address: Address) -> int:
    return int(stdlib.AF_INET6 if len(address) == 4 else stdlib.AF_INET)


def _before_fork() -> None:
    try:
        forked_copies.share(list(_by_inode.values()))
    except OSError as error:  # no memory: each process will know of its sockets what it knew before the fork
        let_pass(error)


def _after_fork_in_child() -> None:
    for identity in list(_by_inode.values()):
        identity.endpoint = 0  # of the parent's engine
        identity.claim = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)


def forget(identity: Identity) -> None:
    """The fd behind this identity is about to become another."""
    _by_inode.pop(identity.inode, None)


def pin(identity: Identity) -> None:
    """Its last Python object lets go of the fd, which lives on."""
    _pinned[identity.inode] = identity


def unpin(identity: Identity) -> None:
    """A Python object stands for its fd again."""
    _pinned.pop(identity.inode, None)

"""The ports that an engine in another process has for this process, as far as they are known here.

A call on a non-blocking socket must not wait for the engine. So each port that a socket of this process was bound to is
listed here with its holders, until the engine has closed it. Whether another socket may share the address, or listen at
it, is decided here by the rules of commands.share_port(), and the engine is only sent the request. It decides again. If
it refuses, as it may where another process was first, the socket has failed, and its next call raises the error.

Any thread may call: two threads at once do only single operations of dicts. Sources: commands.py, overlapping_ports.py.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import Any, Final

from utpsocket.engine import commands
from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.ports.overlapping_ports import WILDCARDS
from utpsocket.engine.user_fds.open_fds import HoldersWatch, socket_exists
from utpsocket.engine.user_fds.socket_state import Identity, Role
from utpsocket.protocol import Address

# Holders of one port that were closed here; more, and it is looked up which are open elsewhere. By feel.
_MAX_CLOSED: Final = 32


class KnownPort:
    """A port of the engine's that sockets of this process were bound to.

    key             the engine's for it
    local           its address
    namespace       the cookie of its network namespace
    reuse_address   all holders have set SO_REUSEADDR
    shares          all holders have set UTP_SHARE_PORT
    is_free         the engine has closed it
    holders         identities of the bound sockets by inode; None for one that was closed here, and may be open
                    elsewhere
    """

    __slots__ = ("holders", "is_free", "key", "local", "namespace", "reuse_address", "shares")

    def __init__(self, key: int, local: Address, namespace: int) -> None:
        self.key = key
        self.local = local
        self.namespace = namespace
        self.reuse_address = self.shares = False
        self.is_free = False
        self.holders: dict[int, Identity | None] = {}


class KnownPorts:
    """The known ports of one engine.

    watch    finds out which sockets are open
    served   returns the identities of the connections that the engine serves
    """

    __slots__ = ("_by_key", "_served", "_watch")

    def __init__(self, watch: HoldersWatch, served: Callable[[], Iterable[Identity]]) -> None:
        self._watch = watch
        self._served = served
        self._by_key: dict[int, KnownPort] = {}

    # ── requests to the engine ──

    def add(self, key: int, local: Address, identity: Identity, *, reuse_address: bool, shares: bool) -> None:
        """The socket is bound to the port of this key, alone or with others."""
        port = self._by_key.setdefault(key, KnownPort(key, local, identity.namespace))
        port.reuse_address, port.shares = reuse_address, shares
        port.holders[identity.inode] = identity
        closed = [inode for inode, holder in list(port.holders.items()) if holder is None]
        if len(closed) > _MAX_CLOSED:
            self._open_holders(port)

    def note(self, command: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        """Note what a request that is about to be sent changes in the ports. The arguments are the command's."""
        if command is commands.release:
            key, inode = arguments
            port = self._by_key.get(key)
            if port is not None and inode in port.holders:
                port.holders[inode] = None
                self._forget_if_free(port)
        elif command is commands.leave_port:
            self._drop(arguments[0], arguments[1])
        elif command is commands.dial_from:
            self._drop(arguments[0], arguments[2].inode)
        elif command is commands.drop_holders_of:
            for key in list(self._by_key):
                self._drop(key, arguments[0])
        elif command is commands.replace_holder:
            self.replace_holder(*arguments)

    def replace_holder(self, key: int, inode: int, identity: Identity) -> None:
        """The fd of a bound socket, until now `inode`, is another one."""
        port = self._by_key.get(key)
        if port is not None:
            port.holders.pop(inode, None)
            port.holders[identity.inode] = identity

    def _drop(self, key: int, inode: int) -> None:
        port = self._by_key.get(key)
        if port is not None:
            port.holders.pop(inode, None)
            self._forget_if_free(port)

    # ── notices of the engine ──

    def on_bound(self, key: int) -> None:
        """The engine has the port."""
        port = self._by_key.get(key)
        if port is not None:
            port.is_free = False

    def on_free(self, key: int) -> None:
        """The engine has closed the port. It is kept here if it has holders: the engine may have been asked for it
        again.
        """
        port = self._by_key.get(key)
        if port is not None:
            port.is_free = True
            self._forget_if_free(port)

    def _forget_if_free(self, port: KnownPort) -> None:
        if port.is_free and not any(holder is not None for holder in list(port.holders.values())):
            self._by_key.pop(port.key, None)

    # ── decisions ──

    def check_bind(self, local: Address, namespace: int, *, reuse_address: bool, shares: bool) -> int:
        """Whether a socket may be bound to an address at which the kernel returned EADDRINUSE.

        Parameters:
            local: the address.
            namespace: the cookie of the socket's network namespace.
            reuse_address: SO_REUSEADDR is set.
            shares: UTP_SHARE_PORT is set.
        Returns: the key of the port that it shares; 0: a new port, which overlaps others at which none listens, or
            which are about to be closed.
        Raises: EADDRINUSE.
        """
        exact, others = self._at(local, namespace)
        if exact is None and not others:
            raise _in_use()
        for other in others:
            holders = self._open_holders(other)
            if _listens(holders) or (holders and not (reuse_address and other.reuse_address)):
                raise _in_use()
        if exact is None:
            if any(self._is_used(other) and not (reuse_address and other.reuse_address) for other in others):
                raise _in_use()
            return 0
        holders = self._open_holders(exact)
        if not (shares and exact.shares):
            if _listens(holders) or ((holders or self._is_used(exact)) and not (reuse_address and exact.reuse_address)):
                raise _in_use()
        return exact.key

    def has_port_at(self, local: Address, namespace: int) -> bool:
        """Whether the engine has, or may have, a port at this very address."""
        return self._at(local, namespace)[0] is not None

    def _at(self, local: Address, namespace: int) -> tuple[KnownPort | None, list[KnownPort]]:
        """The port at this address, and those that a socket there overlaps."""
        exact: KnownPort | None = None
        others: list[KnownPort] = []
        for port in list(self._by_key.values()):
            if port.is_free or port.local[1] != local[1] or port.namespace != namespace:
                continue
            if port.local[:2] == local[:2]:
                exact = port
            elif len(port.local) == len(local) and (port.local[0] in WILDCARDS or local[0] in WILDCARDS):
                others.append(port)
        return exact, others

    def check_listen(self, key: int, inode: int) -> None:
        """Raise EADDRINUSE if another socket is listening at the port, or at one that it overlaps."""
        port = self._by_key.get(key)
        if port is not None and any(map(_listens, map(self._open_holders, self._at(port.local, port.namespace)[1]))):
            raise _in_use()
        if port is not None and len(port.holders) > 1:
            others = [other for other, holder in list(port.holders.items()) if holder is not None and other != inode]
            for other in others:
                holder = port.holders.get(other)
                if holder is not None and holder.role is Role.LISTENING and self._watch.is_open(other):
                    raise _in_use()

    def _open_holders(self, port: KnownPort) -> list[Identity | None]:
        """The port's holders that are open anywhere; the others are forgotten."""
        for inode in list(port.holders):
            if not self._watch.is_open(inode):
                port.holders.pop(inode, None)
        return list(port.holders.values())

    def _is_used(self, port: KnownPort) -> bool:
        """Whether a connection over the port is open in any process."""
        return any(
            not identity.is_over
            and (identity.endpoint == port.key or _is_at(identity, port))
            and socket_exists(identity.inode)
            for identity in self._served()
        )


def _is_at(identity: Identity, port: KnownPort) -> bool:
    """Whether this connection may have been accepted there."""
    local = identity.local
    return (
        not identity.endpoint
        and local is not None
        and local[1] == port.local[1]
        and (local[0] == port.local[0] or port.local[0] in WILDCARDS)
    )


def _listens(holders: list[Identity | None]) -> bool:
    return any(holder is not None and holder.role is Role.LISTENING for holder in holders)


def _in_use() -> OSError:
    return OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

"""Connections that were reset before accept() returned them.

Their sockets are still in the queue of the listening AF_UNIX socket. When accept() returns one, only the errno that is
kept here shows that the connection was reset and not closed. Any thread may call.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from utpsocket.engine.user_fds.socket_state import Identity

# By feel.
_MAX_REMEMBERED: Final = 1_024


class ResetUnaccepted(OrderedDict[int, "Identity"]):
    """Identities by cookie, the oldest first. If there are more than _MAX_REMEMBERED, the oldest is dropped."""

    def remember(self, cookie: int, identity: Identity) -> None:
        """Keep the identity of a connection that is over, if it was reset and has not been accepted."""
        if identity.error and identity.user_fd < 0:
            self[cookie] = identity
            if len(self) > _MAX_REMEMBERED:
                self.popitem(last=False)

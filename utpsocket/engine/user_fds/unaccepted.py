"""Connections that were reset before accept() took them.

Their sockets are still in the kernel's queue of accepts: there only the recorded errno can say that this is no end of
file. Any thread.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from utpsocket.engine.user_fds.socket_state import Identity

_MOST: Final = 1_024


class ResetUnaccepted(OrderedDict[int, "Identity"]):
    """By cookie, the oldest first; the oldest go when there are too many."""

    def remember(self, cookie: int, identity: Identity) -> None:
        """It is over; if it was reset and nobody has accepted it yet, this is known until then."""
        if identity.error and identity.user_fd < 0:
            self[cookie] = identity
            if len(self) > _MOST:
                self.popitem(last=False)

"""The ports that users have bound, by number.

Any thread may call: bind() and close() are carried out on the thread that calls them. There is no lock; each step is a
single operation of a dict.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from utpsocket.engine.kernel.high_fds import replace_with_idle

if TYPE_CHECKING:
    from utpsocket.engine.ports.endpoint import Endpoint


class BoundPorts(dict[int, "dict[Endpoint, None]"]):
    """By port number: endpoints at different addresses, and those that processes share. A dict of dicts as sets."""

    def add(self, endpoint: Endpoint) -> None:
        """Enter a port, so that it is found by its number. Idempotent."""
        number = endpoint.port.local[1]
        while True:
            at_number = self.setdefault(number, {})
            at_number[endpoint] = None
            if self.get(number) is at_number:
                break  # else another thread has just removed the empty dict

    def on_refused(self, key: int) -> None:
        """A port with this key could not be made. Nothing here; helper/server.py sends a notice to the application."""

    def free_address(self, endpoint: Endpoint) -> bool:
        """Free the address of an unused port whose closing the caller has claimed, so that bind() can use it at once.

        The fd number stays, with an idle socket under it, since the engine's thread may be about to use the number; the
        port is closed later. Returns False if only the engine's thread can free it.
        """
        if not endpoint.is_all_answered or not replace_with_idle(endpoint.port.sock):
            return False
        if endpoint.reuseport_sockets is not None:
            endpoint.reuseport_sockets.close_reservation()
        endpoint.is_address_freed = True
        self.discard(endpoint)
        return True

    def discard(self, endpoint: Endpoint) -> None:
        """Take a port out: its address is free. Idempotent."""
        number = endpoint.port.local[1]
        for other in endpoint.overlapping:
            other.overlapping = tuple(one for one in other.overlapping if one is not endpoint)
        endpoint.overlapping = ()
        at_number = self.get(number, {})
        at_number.pop(endpoint, None)
        if not at_number:
            self.pop(number, None)

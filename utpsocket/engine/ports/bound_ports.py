"""The ports that a user has bound, by number.

Separate because any thread may call: bind() and close() are carried out by whoever calls them. No lock: each step is a
single operation of a dict.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from utpsocket.engine.ports.endpoint import Endpoint


class BoundPorts(dict[int, "dict[Endpoint, None]"]):
    """By number, those at different addresses and those that processes share."""

    def add(self, endpoint: Endpoint) -> None:
        """It can be found from now on."""
        number = endpoint.port.local[1]
        while True:
            at_number = self.setdefault(number, {})
            at_number[endpoint] = None
            if self.get(number) is at_number:
                break  # else it was empty, and another thread has thrown it away

    def on_refused(self, key: int) -> None:
        """There will be no port of this key, which an application in another process has chosen (process.py)."""

    def discard(self, endpoint: Endpoint) -> None:
        """Its address is free. Idempotent."""
        number = endpoint.port.local[1]
        for other in endpoint.overlapping:
            other.overlapping = tuple(one for one in other.overlapping if one is not endpoint)
        endpoint.overlapping = ()
        at_number = self.get(number, {})
        at_number.pop(endpoint, None)
        if not at_number:
            self.pop(number, None)

"""What has fds that an engine closes at its end, or when a fork has copied them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Protocol

    from utpsocket.engine.channels.channel import Channel
    from utpsocket.engine.ports.endpoint import Endpoint
    from utpsocket.engine.ports.listener import Listener

    class FdOwner(Protocol):
        """One of them."""

        def close_fds(self) -> None:
            """Close them."""

        def detach_fds(self) -> None:
            """Forget them without closing them: they are closed, or another's by now."""


def listeners(endpoints: Mapping[int, Endpoint]) -> list[Listener]:
    """Those of all ports."""
    found = [endpoint.listener for endpoint in list(endpoints.values())]
    return [listener for listener in found if listener is not None]


def fd_owners(channels: Mapping[int, Channel], endpoints: Mapping[int, Endpoint]) -> list[FdOwner]:
    """Channels, listeners and ports, and the UDP sockets that a port has for each of its peers."""
    ports: list[FdOwner] = [endpoint.port for endpoint in list(endpoints.values())]
    for endpoint in list(endpoints.values()):
        sockets = endpoint.reuseport_sockets
        if sockets is not None:
            ports += [sockets, *(peer.port for peer in list(sockets.by_addr.values()))]
    return [*list(channels.values()), *listeners(endpoints), *ports]

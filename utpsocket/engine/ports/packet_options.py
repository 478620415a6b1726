"""Socket options of IP that the program has set, such as TOS, on a connection's datagrams.

Only the engine's thread calls. Source: ip(7); ipv6(7).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from utpsocket.engine.kernel.udp import PACKET_OPTIONS

if TYPE_CHECKING:
    from utpsocket.engine.channels.utp import Bridge

_PACKET_KINDS: Final = tuple(PACKET_OPTIONS.values())


def apply_packet_options(bridge: Bridge) -> None:
    """Socket options of IP, such as TOS: set on a private port's socket, otherwise sent along with each datagram."""
    options = bridge.identity.options
    if options.keys().isdisjoint(PACKET_OPTIONS):
        return
    endpoint = bridge.endpoint
    ancillary = []
    for (level, name), kind in PACKET_OPTIONS.items():
        value = options.get((level, name))
        if value is None or endpoint.port.option(level, name) == value:
            continue
        if endpoint.is_private:
            endpoint.port.set_option(level, name, value)
        elif kind is not None:
            ancillary.append((level, kind, bytes(value)))
    bridge.source = [each for each in bridge.source if each[1] not in _PACKET_KINDS] + ancillary

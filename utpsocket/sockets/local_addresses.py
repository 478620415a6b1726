"""The addresses that bind() is given, in numbers. Any thread may call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from utpsocket.engine.interpreter.originals import _socket
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.protocol import Address

if TYPE_CHECKING:
    from utpsocket.engine.interpreter.arguments import GivenAddress

UNBOUND: Final[dict[int, Address]] = {stdlib.AF_INET: ("0.0.0.0", 0), stdlib.AF_INET6: ("::", 0, 0, 0)}


def resolved(family: int, address: GivenAddress) -> Address:
    """The numeric form of an address that bind() has understood."""
    assert isinstance(address, tuple)
    host, port = address[0], int(address[1])
    if not host:
        unbound = UNBOUND[family]
        return (unbound[0], port) if len(unbound) == 2 else (unbound[0], port, 0, 0)
    if isinstance(host, str) and host.isascii():
        # getaddrinfo() would load the IDNA codec for a str, even for digits.
        host = host.encode()
    found = _socket.getaddrinfo(host, port, family, stdlib.SOCK_DGRAM)[0][4]
    return found  # type: ignore[return-value]  # (int, bytes) where Python has no IPv6

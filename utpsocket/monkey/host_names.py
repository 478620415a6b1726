"""Host names remembered by address, for rules that contain names.

Programs look a name up and then connect to an address. So while a rule contains a host name, socket.getaddrinfo() and
socket.gethostbyname() are wrapped, and what they answer is remembered. A function that was imported earlier by its name
(`from socket import getaddrinfo`) is not wrapped.
"""

from __future__ import annotations

import socket as stdlib
from collections.abc import Callable, Sequence
from typing import Any

_originals: dict[str, Callable[..., object]] = {}
_ours: dict[str, Callable[..., object]] = {}


def apply() -> None:
    """Remember what socket.getaddrinfo() and socket.gethostbyname() answer. Idempotent."""
    if _originals:
        return
    from utpsocket.sockets.host_lists import remember  # loaded by the rule with the name, and by no other patch

    look_up, look_up_ipv4 = stdlib.getaddrinfo, stdlib.gethostbyname

    # The arguments are passed on as they were written: a library may have put another function there.
    def getaddrinfo(host: bytes | str | None, *args: Any, **kwargs: Any) -> Sequence[object]:
        found = look_up(host, *args, **kwargs)
        if isinstance(host, str) and host:
            for answer in found:
                remember(host, str(answer[4][0]))
        return found

    def gethostbyname(hostname: str, /) -> str:
        address = look_up_ipv4(hostname)
        if isinstance(hostname, str) and hostname:
            remember(hostname, address)
        return address

    for name, function in (("getaddrinfo", getaddrinfo), ("gethostbyname", gethostbyname)):
        _originals[name], _ours[name] = getattr(stdlib, name), function
        function.__doc__ = _originals[name].__doc__
        setattr(stdlib, name, function)


def restore() -> None:
    """Put the functions back, unless others have been put in their place since."""
    for name, original in _originals.items():
        if getattr(stdlib, name) is _ours[name]:
            setattr(stdlib, name, original)
    _originals.clear()


def original(name: str) -> Callable[..., object] | None:
    """The function of the socket module that is wrapped now, or None."""
    return _originals.get(name)

"""Lists of hosts and networks, as rules have them.

The grammar is NO_PROXY's, as curl, urllib and requests read it: entries with commas or blanks between them, each

    example.com  .example.com  *.example.com    this host and every host below it
    192.0.2.7  ::1  [::1]                       this address
    192.0.2.0/24  2001:db8::/32                 every address in this network
    *                                           everything

and each but a network may end in `:port`; `*:6881` is any host at that port. An address is compared as the program
gave it to connect() or bind(), and by the host names it was looked up under (utpsocket.monkey.host_names), since most
programs resolve before they connect.

Any thread may call. Sources: curl(1) --noproxy; CPython's urllib.request.proxy_bypass_environment; requests' CIDR.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

# By feel.
_NAMES_REMEMBERED: Final = 4_096
_looked_up: OrderedDict[str, set[str]] = OrderedDict()


def remember(name: str, address: str) -> None:
    """Note that this host name was looked up and this address was an answer."""
    names = _looked_up.setdefault(address, set())
    _looked_up.move_to_end(address)
    names.add(name.rstrip(".").lower())
    if len(_looked_up) > _NAMES_REMEMBERED:
        _looked_up.popitem(last=False)


class _Entry:
    """One entry of a list. What is None matches anything."""

    __slots__ = ("name", "network", "port")

    def __init__(self, name: str | None = None, network: IPNetwork | None = None, port: int | None = None) -> None:
        self.name = name
        self.network = network
        self.port = port

    def matches(self, names: set[str], numeric: IPAddress | None, port: int) -> bool:
        if self.port is not None and self.port != port:
            return False
        if self.network is not None:
            return numeric is not None and numeric.version == self.network.version and numeric in self.network
        if self.name is None:
            return True
        suffix = f".{self.name}"
        return any(name == self.name or name.endswith(suffix) for name in names)


def _parse(text: str) -> _Entry:
    host, port = text.strip().lower(), None
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    network = _network(bare)
    if network is not None:
        return _Entry(network=network)
    if ":" in host:
        host, _, digits = host.rpartition(":")
        if not digits.isdecimal() or not 0 < int(digits) < 65_536:
            raise ValueError(f"neither host, network nor host:port: {text!r}")
        port = int(digits)
        network = _network(host.strip("[]"))
        if network is not None:
            return _Entry(network=network, port=port)
    if "/" in host or host.startswith("["):
        raise ValueError(f"not a network: {text!r}")
    if host in ("*", ""):
        return _Entry(port=port)
    return _Entry(name=host.removeprefix("*").lstrip(".").rstrip("."), port=port)


def _network(text: str) -> IPNetwork | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


class Hosts:
    """A list in NO_PROXY's grammar. Raises ValueError for an entry that cannot be read."""

    __slots__ = ("entries",)

    def __init__(self, patterns: str | Iterable[str]) -> None:
        given = [patterns] if isinstance(patterns, str) else list(patterns)
        self.entries = [_parse(entry) for text in given for entry in text.replace(",", " ").split()]

    @property
    def has_names(self) -> bool:
        """Whether host names must be remembered for it."""
        return any(entry.name is not None for entry in self.entries)

    def matches(self, address: tuple[Any, ...]) -> bool:
        """Whether an address, written as by the socket module, is on the list."""
        host, port = str(address[0]), address[1]
        names = {host.rstrip(".").lower(), *_looked_up.get(host, ())}
        try:
            numeric: IPAddress | None = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            numeric = None
        mapped: IPAddress | None = getattr(numeric, "ipv4_mapped", None)
        return any(entry.matches(names, mapped or numeric, port) for entry in self.entries)

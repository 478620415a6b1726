"""Which connections of a patched program go over uTP and which stay on TCP.

The rules are about addresses and need no sockets. The grammar is NO_PROXY's, as curl, urllib and requests read it:
entries with commas or blanks between them, each

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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, cast
from weakref import ref

from utpsocket.engine import environment

if TYPE_CHECKING:
    from typing_extensions import Unpack

# where(family, address, role) -> whether uTP carries it; role is "connect" or "listen". The address is the program's
# object, as it was given to connect() or bind().
Where = Callable[[int, Any, str], object]
Patterns = str | Iterable[str]
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

# RFC 8305 §5 has 250 ms between two attempts; the SYN-ACK of a lossy path may take a little longer.
DEFAULT_FALLBACK_SECONDS: Final = 0.3
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


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of a list. A field that is None matches anything."""

    name: str | None = None
    network: IPNetwork | None = None
    port: int | None = None

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

    def __init__(self, patterns: Patterns) -> None:
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


@dataclass(frozen=True)
class Routes:
    """The rules of a patch.

    where             a function that is called for each connect and bind, beside the lists
    only              uTP carries these and nothing else
    exclude           uTP does not carry these
    fallback          "tcp": a connect that finds no uTP listener goes on over TCP
    fallback_seconds  how long uTP is tried alone before TCP is tried beside it
    listen            "both": listeners accept uTP and TCP at one port number
    """

    where: Where | None = None
    only: Hosts | None = None
    exclude: Hosts | None = None
    fallback: Literal["tcp"] | None = None
    fallback_seconds: float = DEFAULT_FALLBACK_SECONDS
    listen: Literal["utp", "both"] = "utp"

    def chooses_utp(self, family: int, address: object, role: str) -> bool:
        """Whether uTP carries a connection to, or a listener at, this address. True for what is no address, for which
        the kernel gives its error.
        """
        if not isinstance(address, tuple) or len(address) < 2 or not isinstance(address[1], int):
            return True
        host = address[0]
        if not isinstance(host, str):
            return True
        if not host or host == "0":
            address = ("::" if family == _AF_INET6 else "0.0.0.0", *address[1:])
        if self.exclude is not None and self.exclude.matches(address):
            return False
        if self.only is not None and not self.only.matches(address):
            return False
        return self.where is None or bool(self.where(family, address, role))

    @property
    def has_names(self) -> bool:
        """Whether these rules contain host names."""
        return any(hosts is not None and hosts.has_names for hosts in (self.only, self.exclude))


class Rules(TypedDict, total=False):
    """The rules of a patch as programs and the environment write them; one that is None is not given."""

    where: Where | None
    only: Patterns | None
    exclude: Patterns | None
    fallback: str | None
    fallback_delay: float | None
    listen: str | None


VARIABLES: Final = {
    "only": "UTPSOCKET_ONLY",
    "exclude": "UTPSOCKET_EXCEPT",
    "fallback": "UTPSOCKET_FALLBACK",
    "fallback_delay": "UTPSOCKET_FALLBACK_DELAY",
    "listen": "UTPSOCKET_LISTEN",
}
"""The rules that have an environment variable, and which. A function (`where`) has none."""

_AF_INET6: Final = 10
_wheres: list[tuple[ref[Routes], Where]] = []


def check_names(rules: Mapping[str, object]) -> None:
    """Raise TypeError for a keyword argument that is no rule."""
    for name in rules:
        if name not in Rules.__optional_keys__:
            raise TypeError(f"{name!r} is no rule: {', '.join(sorted(Rules.__optional_keys__))}")


def make_routes(**rules: Unpack[Rules]) -> Routes | None:
    """The Routes of these rules; None where no rule is given, so that everything is uTP's. Raises ValueError."""
    check_names(rules)
    where, only, exclude = rules.get("where"), rules.get("only"), rules.get("exclude")
    fallback, fallback_delay, listen = rules.get("fallback"), rules.get("fallback_delay"), rules.get("listen")
    if fallback not in (None, "tcp"):
        raise ValueError(f"fallback must be 'tcp' or None, not {fallback!r}")
    if listen not in (None, "utp", "both"):
        raise ValueError(f"listen must be 'utp' or 'both', not {listen!r}")
    if where is None and not only and not exclude and fallback is None and listen in (None, "utp"):
        return None
    routes = Routes(
        where=where,
        only=Hosts(only) if only else None,
        exclude=Hosts(exclude) if exclude else None,
        fallback="tcp" if fallback else None,
        fallback_seconds=DEFAULT_FALLBACK_SECONDS if fallback_delay is None else max(0.0, fallback_delay),
        listen="both" if listen == "both" else "utp",
    )
    if where is not None:
        # The engine's thread may release the last socket of a patch that was undone, and the program's object `where`
        # must not be finalized there: it is kept, and released here when the next one is made.
        _wheres[:] = [kept for kept in _wheres if kept[0]() is not None]
        _wheres.append((ref(routes), where))
    return routes


def from_environment() -> Rules:
    """The rules in the environment. Raises ValueError with the name of the variable."""
    rules = cast("Rules", {rule: environment.value(variable, None) for rule, variable in VARIABLES.items()})
    for patterns, variable in ((rules["only"], VARIABLES["only"]), (rules["exclude"], VARIABLES["exclude"])):
        try:
            Hosts(patterns or "")
        except ValueError as error:
            raise ValueError(f"{variable} is {patterns!r}: {error}") from None
    return rules

"""Which connections of a patched program go over uTP and which stay on TCP.

The rules are about addresses and need no sockets. host_lists.py has the grammar of lists of hosts.

Any thread may call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, cast
from weakref import ref

from utpsocket.engine import environment

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from utpsocket.sockets.host_lists import Hosts

# where(family, address, role) -> whether uTP carries it; role is "connect" or "listen". The address is the program's
# object, as it was given to connect() or bind().
Where = Callable[[int, Any, str], object]
Patterns = str | Iterable[str]

# RFC 8305 §5 has 250 ms between two attempts; the SYN-ACK of a lossy path may take a little longer.
DEFAULT_FALLBACK_SECONDS: Final = 0.3


class Routes:
    """The rules of a patch.

    where             a function that is called for each connect and bind, beside the lists
    only              uTP carries these and nothing else
    exclude           uTP does not carry these
    fallback          "tcp": a connect that finds no uTP listener goes on over TCP
    fallback_seconds  how long uTP is tried alone before TCP is tried beside it
    listen            "both": listeners accept uTP and TCP at one port number
    """

    def __init__(
        self,
        where: Where | None = None,
        only: Hosts | None = None,
        exclude: Hosts | None = None,
        fallback: Literal["tcp"] | None = None,
        fallback_seconds: float = DEFAULT_FALLBACK_SECONDS,
        listen: Literal["utp", "both"] = "utp",
    ) -> None:
        self.where = where
        self.only = only
        self.exclude = exclude
        self.fallback = fallback
        self.fallback_seconds = fallback_seconds
        self.listen = listen

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
        only=_hosts(only),
        exclude=_hosts(exclude),
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


def _hosts(patterns: Patterns | None) -> Hosts | None:
    if not patterns:
        return None
    from utpsocket.sockets.host_lists import Hosts  # with ipaddress, which a patch without a list does not need

    return Hosts(patterns)


def from_environment() -> Rules:
    """The rules in the environment. Raises ValueError with the name of the variable."""
    rules = cast("Rules", {rule: environment.value(variable, None) for rule, variable in VARIABLES.items()})
    for patterns, variable in ((rules["only"], VARIABLES["only"]), (rules["exclude"], VARIABLES["exclude"])):
        try:
            _hosts(patterns)
        except ValueError as error:
            raise ValueError(f"{variable} is {patterns!r}: {error}") from None
    return rules

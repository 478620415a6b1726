"""Put utpsocket in place of `socket`, for programs that never heard of it.

    import utpsocket.monkey
    utpsocket.monkey.patch_all()

Every AF_INET and AF_INET6 stream socket that the process makes from then on speaks uTP. The class socket.socket is
changed in place and keeps its identity, so the order of imports does not matter: modules imported earlier, names
imported by `from socket import socket`, subclasses, socket.create_connection() and ssl's sockets all come along, and
`socket.socket is` what it was. Sockets that exist already go on as they are. Call it early all the same: what was
connected before stays on TCP.

    patch_all()               patch_socket() and patch_ssl()
    patch_socket()            the class
    patch_ssl()               SSLContext.wrap_socket() for uTP sockets
    unpatch()                 everything as it was; uTP sockets that live go on, listeners accept. A module that was
                              wrapped stays so until its undo()
    with patched(): …         patched inside, as before outside
    wrap_module(module)       one module's names for socket and its class, nobody else's; .undo()
    is_patched()              whether it is
    get_original("socket", "socket")
                              a class whose sockets are TCP's while the process is patched
    transport(sock)           "utp" or "tcp": what carries this connection

All may be called again, in any order, from any thread.

Which connections
-----------------
patch_all(), patch_socket(), patched() and wrap_module() take rules; a later call with rules replaces them, one without
keeps them. What is not given is read from the environment.

    only="10.0.0.0/8 .peers.example"      UTPSOCKET_ONLY       uTP carries these and nothing else
    exclude="db.internal:5432 127.0.0.1"  UTPSOCKET_EXCEPT     uTP does not carry these
    where=function                        where(family, address, role) says whether uTP carries it; role is "connect"
                                          or "listen", the address as the program gave it
    fallback="tcp"                        UTPSOCKET_FALLBACK   a connect that finds no uTP listener goes on over TCP:
                                          at once when it is refused, after fallback_delay (0.3 s,
                                          UTPSOCKET_FALLBACK_DELAY) when nobody answers; whoever answers first then
                                          has it, as in Happy Eyeballs (RFC 8305). A destination that was silent to
                                          uTP is tried over both at once for the next minute
    listen="both"                         UTPSOCKET_LISTEN     listeners accept uTP and TCP at the same port number

The lists are in NO_PROXY's grammar (utpsocket.sockets.rules) and hold for listeners too, compared with the address they
bind: 0.0.0.0 or :: for all. A host name on a list is compared with the names that the program looked up through
socket.getaddrinfo() or gethostbyname(), which are wrapped for that while such a rule is in force.

A socket that the rules send to TCP becomes one in connect() or listen(): a kernel TCP socket takes the place of the
user's fd, under the same number, with the options, the timeout and the flags it had, registered with the epolls it was
registered with; it is a plain stdlib socket from then on. What cannot come along: duplicates made before.

A connection that fell back to TCP, or that a listener of both accepted over TCP, is carried by the engine behind the
same kind of fd as uTP's: epoll registrations, dup() and fork() are as over uTP. Its UTP_INFO is ENOTCONN.

gevent, eventlet and uvloop make sockets past socket.socket; they are hooked when they are there or when they come, and
a RuntimeWarning says so when they cannot be.

Out of reach
------------
* Programs that connect in C: libpq, mysqlclient, gRPC, libcurl's own connect.
* Processes of other programs.
* Sockets that connected before the patch.

Child processes
---------------
A forked child is patched as its parent is. Child interpreters (multiprocessing's spawn and forkserver, subprocess
running sys.executable) patch themselves when they find UTPSOCKET_PATCH=1 and the rules in the variables above. Where
utpsocket is installed, that is all: `UTPSOCKET_PATCH=1 python3 script.py`. Where it is only on the path, PYTHONPATH
must have this package's folder `startup` too: `python3 -m utpsocket run` starts a program in such an environment,
and patch_all(children=True), or UTPSOCKET_PATCH=1 when it is called, makes this process's own one, for what it starts
from then on. A `where` cannot be inherited.

Sources: docs/sockets.md §5, §8; gevent.monkey, whose names are kept where they mean the same.
"""

from __future__ import annotations

import importlib
import socket as stdlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from utpsocket import startup
from utpsocket.engine import engine, environment
from utpsocket.engine.interpreter.native import Socket, original
from utpsocket.engine.interpreter.signal_errors import let_pass
from utpsocket.integrations import tls_hook
from utpsocket.monkey import host_names, in_place, library_hooks, single_module
from utpsocket.monkey.single_module import Wrapped
from utpsocket.sockets import functions
from utpsocket.sockets.rules import Patterns, Routes, Where, from_environment, make_routes

__all__ = [
    "Wrapped",
    "get_original",
    "is_patched",
    "patch_all",
    "patch_from_environment",
    "patch_socket",
    "patch_ssl",
    "patched",
    "routes_in_force",
    "transport",
    "unpatch",
    "wrap_module",
]

_routes: Routes | None = None
_had_ssl: bool | None = None  # whether contexts made our SSLSocket before patch_ssl(); None: not called


def patch_all(
    *,
    where: Where | None = None,
    only: Patterns | None = None,
    exclude: Patterns | None = None,
    fallback: str | None = None,
    fallback_delay: float | None = None,
    listen: str | None = None,
    children: bool | None = None,
) -> None:
    """Patch all there is to patch: socket and ssl."""
    patch_socket(
        where=where,
        only=only,
        exclude=exclude,
        fallback=fallback,
        fallback_delay=fallback_delay,
        listen=listen,
        children=children,
    )
    patch_ssl()


def patch_socket(
    *,
    where: Where | None = None,
    only: Patterns | None = None,
    exclude: Patterns | None = None,
    fallback: str | None = None,
    fallback_delay: float | None = None,
    listen: str | None = None,
    children: bool | None = None,
) -> None:
    """Change the class socket.socket in place: its AF_INET and AF_INET6 streams speak uTP from now on. Idempotent.

    Starts the engine, since no thread can be started while the interpreter ends. Raises ValueError for a rule that
    cannot be read, and changes nothing then.

    children   whether child interpreters patch themselves too; None: as UTPSOCKET_PATCH says
    """
    rules = {
        "where": where,
        "only": only,
        "exclude": exclude,
        "fallback": fallback,
        "fallback_delay": fallback_delay,
        "listen": listen,
    }
    _patch(rules)
    if environment.value("UTPSOCKET_PATCH", False) if children is None else children:
        startup.export_environment(rules)
    engine()


def patch_from_environment() -> None:
    """What a child interpreter of a patched program does: patch_all() without starting the engine, which many
    children never need.
    """
    _patch({})
    patch_ssl()


def _patch(rules: dict[str, Any]) -> None:
    given = {name: rule for name, rule in rules.items() if rule is not None}
    if given or not in_place.is_applied():
        _follow(make_routes(**{**from_environment(), **given}))
    in_place.apply()
    in_place.route(_routes)
    library_hooks.apply()


def _follow(routes: Routes | None) -> None:
    global _routes
    _routes = routes
    if routes is not None and routes.has_names:
        host_names.apply()
    else:
        host_names.restore()


def routes_in_force() -> Routes | None:
    """The rules that sockets of the patched class follow; None: every stream is uTP's."""
    return _routes


def patch_ssl() -> None:
    """Have SSLContext.wrap_socket() know uTP sockets. Idempotent; `import utpsocket` does so already."""
    global _had_ssl
    if _had_ssl is None:
        _had_ssl = tls_hook.is_installed()
        tls_hook.install()


def unpatch() -> None:
    """Restore everything. uTP sockets made meanwhile keep working, under a class of their own."""
    global _had_ssl
    library_hooks.restore()
    in_place.restore()
    startup.restore_environment()
    _follow(None)
    if _had_ssl is False:
        tls_hook.uninstall()
    _had_ssl = None


def is_patched(name: str = "socket") -> bool:
    """Whether "socket" (the class socket.socket speaks uTP) or "ssl" is patched now."""
    if name == "socket":
        return in_place.is_applied()
    if name == "ssl":
        return _had_ssl is not None
    raise ValueError(f"'socket' or 'ssl', not {name!r}")


def get_original(module: str, name: str | Iterable[str]) -> Any:
    """What this name of a module means without the patch; a list of them for several names, as gevent's.

    For "socket", "socket" while patched: a subclass of socket.socket whose sockets are TCP's.
    """
    if not isinstance(name, str):
        return [get_original(module, one) for one in name]
    if module == "socket":
        if name == "socket":
            return in_place.original_class()
        if in_place.is_applied() and name in functions.REBOUND:
            return functions.rebound(in_place.original_class())[name]
        return host_names.original(name) or original(module, name)
    return getattr(importlib.import_module(module), name)


@contextmanager
def patched(**rules: Any) -> Iterator[None]:
    """`with patched(): …`: patched inside, as before outside. Takes patch_all()'s rules."""
    global _had_ssl
    was_patched, had_ssl, routes = in_place.is_applied(), _had_ssl, _routes
    patch_all(**rules)
    try:
        yield
    finally:
        if not was_patched:
            unpatch()
            _had_ssl = had_ssl
        else:
            _follow(routes)
            in_place.route(routes)


def wrap_module(module: ModuleType | str, **rules: Any) -> Wrapped:
    """Have one module, given itself or by its name, use uTP; everybody else stays as it is.

    Its global names for the module socket, the class and the functions that make sockets are bound to ours. Takes
    patch_all()'s rules. Raises ValueError where the module has no such name. -> Wrapped, whose undo() ends it.
    """
    if isinstance(module, str):
        module = importlib.import_module(module)
    return single_module.wrap(module, make_routes(**rules) if rules else None)


def transport(sock: Any) -> str | None:
    """What carries this socket's connection: "utp", "tcp", or None for a socket of another kind."""
    held = (
        sock,
        getattr(sock, "_sock", None),
        getattr(sock, "fd", None),
    )  # gevent's, asyncio's, eventlet's hold another
    inner = next((each for each in held if isinstance(each, Socket)), sock)
    identity = getattr(inner, "_utp", None)
    if identity is not None:
        carried: str = identity.transport
        return carried
    try:
        protocol = Socket.getsockopt(inner, stdlib.SOL_SOCKET, stdlib.SO_PROTOCOL)
    except TypeError:
        return None
    except OSError as error:
        let_pass(error)
        return None
    return "tcp" if protocol == stdlib.IPPROTO_TCP else None

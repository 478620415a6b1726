"""utpsocket in place of `socket`, for programs that were not written for it.

    import utpsocket.monkey
    utpsocket.monkey.patch_all()

Every AF_INET and AF_INET6 stream socket that the process makes from then on speaks uTP. The class socket.socket is
changed in place and stays the same object, so the order of imports does not matter: modules imported earlier, names
imported by `from socket import socket`, subclasses, socket.create_connection() and ssl's sockets are included. Sockets
that exist already go on as they are. Call it early all the same: what was connected before stays on TCP.

    patch_all()               patch_socket() and patch_ssl()
    patch_socket()            the class
    patch_ssl()               SSLContext.wrap_socket() for uTP sockets
    unpatch()                 everything as it was; uTP sockets that exist go on, listeners accept. A module that was
                              wrapped stays so until its undo()
    with patched(): …         patched inside, as before outside
    wrap_module(module)       one module's names for socket and its class, and no other's; .undo()
    is_patched()              whether the class is patched now
    get_original("socket", "socket")
                              a class whose sockets are TCP's while the process is patched
    transport(sock)           "utp" or "tcp": what carries this connection

All may be called again, in any order, from any thread.

Which connections
-----------------
patch_all(), patch_socket(), patched() and wrap_module() take rules. A later call with rules replaces them, one without
keeps them. A rule that is not given is read from its environment variable.

    only="10.0.0.0/8 .peers.example"      UTPSOCKET_ONLY       uTP carries these and nothing else
    exclude="db.internal:5432 127.0.0.1"  UTPSOCKET_EXCEPT     uTP does not carry these
    where=function                        where(family, address, role) returns whether uTP carries it; role is "connect"
                                          or "listen", the address is as the program gave it
    fallback="tcp"                        UTPSOCKET_FALLBACK   a connect that finds no uTP listener goes on over TCP: at
                                          once where uTP is refused; after fallback_delay (0.3 s,
                                          UTPSOCKET_FALLBACK_DELAY) without an answer TCP is tried beside uTP, and the
                                          first to answer has the connection, as in Happy Eyeballs (RFC 8305). A
                                          destination where TCP answered while uTP was silent is tried over both at once
                                          for the next minute
    listen="both"                         UTPSOCKET_LISTEN     listeners accept uTP and TCP at the same port number

The lists are in NO_PROXY's grammar (docs/guide/patching.md §3). They hold for listeners too, compared with the address
that they bind: 0.0.0.0 or :: for all addresses. A host name on a list is compared with the names that the program
looked up through socket.getaddrinfo() or gethostbyname(), which are wrapped while such a rule is in force.

A socket that the rules send to TCP becomes a TCP socket in connect() or listen(): a kernel TCP socket gets the number
of its descriptor, with the options, the timeout, the flags and the epoll registrations that it had. It is a socket of
the standard library from then on. Duplicates that were made before do not follow.

A connection that fell back to TCP, or that a listener of both accepted over TCP, is carried by the engine behind the
same kind of descriptor as a uTP connection: epoll registrations, dup() and fork() are as over uTP. Its UTP_INFO is
ENOTCONN.

gevent, eventlet and uvloop make sockets without socket.socket. They are hooked when they have been imported, before or
after. Where a hook cannot be set a RuntimeWarning says so.

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
must have this package's folder `startup` too. `python3 -m utpsocket run` starts a program in such an environment;
patch_all(children=True), or patch_all() in a process that has UTPSOCKET_PATCH=1, prepares this process's own one for
what it starts from then on. A function `where` cannot be inherited.

Sources: docs/sockets.md §5, §8; gevent.monkey, whose names are used where they mean the same.
"""

from __future__ import annotations

import importlib
import socket as stdlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from utpsocket import startup
from utpsocket.engine import environment
from utpsocket.engine.interpreter.native import Socket, original
from utpsocket.engine.interpreter.signal_errors import reraise_handler_error
from utpsocket.integrations import tls_hook
from utpsocket.monkey import host_names, in_place, library_hooks, single_module
from utpsocket.monkey.single_module import Wrapped
from utpsocket.sockets import functions, shim
from utpsocket.sockets.rules import Patterns, Routes, Rules, Where, check_names, from_environment, make_routes

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from utpsocket.engine.user_fds.socket_state import Identity

    class PatchOptions(Rules, total=False):
        """The arguments of patch_all(), where they are documented, for the functions that take the same."""

        children: bool | None


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
# Whether SSL contexts made our SSLSocket before patch_ssl(); None: it was not called.
_had_ssl: bool | None = None


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
    """Have the process use uTP: patch_socket() and patch_ssl(), with rules for which connections.

    A call without rules keeps those that are in force. A rule that is None is read from its environment variable when
    the process is patched for the first time, or with other rules.

    Parameters:
        where: a function (family, address, role) that returns whether uTP carries a connection; role is "connect" or
            "listen". The thread that calls connect(), bind() or listen() calls it.
        only: hosts and networks that uTP carries, and nothing else: a text or texts in NO_PROXY's grammar.
        exclude: hosts and networks that uTP does not carry, written likewise.
        fallback: "tcp": a connect() that finds no uTP listener goes on over TCP.
        fallback_delay: seconds that uTP is tried alone where no answer comes; 0.3 where nothing says otherwise.
        listen: "both": listeners accept uTP and TCP at one port number; "utp": uTP alone.
        children: whether child interpreters patch themselves too; None: as UTPSOCKET_PATCH says.
    Raises: ValueError for a rule that cannot be read; nothing is changed then.
    Next: unpatch(), to undo it; transport() to see what carries a connection.
    Source: docs/guide/patching.md §2, §3.
    """
    patch_socket(**locals())  # the arguments, by their names
    patch_ssl()


def patch_socket(**rules: Unpack[PatchOptions]) -> None:
    """Change the class socket.socket in place: its AF_INET and AF_INET6 streams speak uTP from now on.

    It starts the engine's thread, since a thread cannot be started while the interpreter ends. A second call without
    rules changes nothing.

    Parameters:
        rules: as for patch_all().
    Raises: ValueError for a rule that cannot be read; nothing is changed then.
    Next: unpatch(), to undo it.
    Source: docs/guide/patching.md §2, §3; docs/sockets.md §5.
    """
    children = rules.pop("children", None)
    check_names(rules)
    _patch(rules)
    if environment.value("UTPSOCKET_PATCH", False) if children is None else children:
        startup.export_environment(rules)
    shim.load()
    from utpsocket.engine.current import engine  # which patch_from_environment() does not need

    engine()


def patch_from_environment() -> None:
    """Patch as patch_all() does, with the rules of the environment, but do not start the engine's thread.

    A child interpreter of a patched program calls this at its start; many children never need the engine, and the
    first socket starts it.

    Raises: ValueError for a variable that cannot be read.
    Source: docs/guide/patching.md §6.
    """
    _patch({})
    patch_ssl()


def _patch(rules: Rules) -> None:
    given = cast("Rules", {name: rule for name, rule in rules.items() if rule is not None})
    if given or not in_place.is_applied():
        merged = from_environment()
        merged.update(given)
        _follow(make_routes(**merged))
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
    """Get the rules that sockets of the patched class follow.

    Returns: the rules, which are not to be changed; None where every stream is uTP's, or nothing is patched.
    Raises: nothing.
    Source: docs/guide/patching.md §3.
    """
    return _routes


def patch_ssl() -> None:
    """Have SSLContext.wrap_socket() accept uTP sockets. `import utpsocket` has done so already.

    Raises: nothing.
    Source: docs/guide/tls.md; docs/sockets.md §5.
    """
    global _had_ssl
    if _had_ssl is None:
        _had_ssl = tls_hook.is_installed()
        tls_hook.install()


def unpatch() -> None:
    """Undo patch_all(), patch_socket() and patch_ssl(), hooks and environment included.

    uTP sockets that exist go on, under a class of their own, and their listeners accept. Where nothing is patched it
    does nothing.

    Raises: nothing.
    Source: docs/guide/patching.md §2.
    """
    global _had_ssl
    library_hooks.restore()
    in_place.restore()
    startup.restore_environment()
    _follow(None)
    if _had_ssl is False:
        tls_hook.uninstall()
    _had_ssl = None


def is_patched(name: str = "socket") -> bool:
    """Whether something is patched now.

    Parameters:
        name: "socket" for the class socket.socket, "ssl" for patch_ssl().
    Returns: True or False.
    Raises: ValueError for another name.
    Source: gevent.monkey.is_module_patched(), which asks the same.
    """
    if name == "socket":
        return in_place.is_applied()
    if name == "ssl":
        return _had_ssl is not None
    raise ValueError(f"'socket' or 'ssl', not {name!r}")


def get_original(module: str, name: str | Iterable[str]) -> Any:
    """Get what a name of a module means without the patch.

    Parameters:
        module: the module's name, "socket" for example.
        name: a name in it, or several.
    Returns: the object; a list of objects for several names. For "socket" in "socket", while the process is patched:
        a subclass of socket.socket whose sockets are TCP's; and functions such as create_connection() that use it.
    Raises: AttributeError where the module has no such name; ImportError where there is no such module.
    Source: gevent.monkey.get_original(), which means the same.
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
def patched(**rules: Unpack[PatchOptions]) -> Iterator[None]:
    """`with patched(): …`: the process is patched inside, and as before outside.

    Parameters:
        rules: as for patch_all().
    Returns: a context manager.
    Raises: ValueError for a rule that cannot be read.
    Source: docs/guide/patching.md §2.
    """
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


def wrap_module(module: ModuleType | str, **rules: Unpack[Rules]) -> Wrapped:
    """Have one module use uTP, and no other: its global names for the module socket, the class and the functions that
    make sockets are bound to those of utpsocket.

    Parameters:
        module: the module, or its name, which is imported.
        rules: as for patch_all(), without children; without any every stream that it makes is uTP's.
    Returns: a Wrapped, whose undo() ends it, and which is a context manager.
    Raises: ValueError where the module has no such name, or for a rule that cannot be read; ImportError where there is
        no such module.
    Next: Wrapped.undo().
    Source: docs/guide/patching.md §2.
    """
    if isinstance(module, str):
        module = importlib.import_module(module)
    return single_module.wrap(module, make_routes(**rules) if rules else None)


def transport(sock: object) -> str | None:
    """Which protocol carries a socket's connection.

    Parameters:
        sock: a socket; also gevent's, eventlet's, and what asyncio's get_extra_info("socket") returns.
    Returns: "utp"; "tcp", also where a fallback or a listener of both has led to TCP; None for a socket of another
        kind, or what is no socket.
    Raises: nothing.
    Source: docs/guide/patching.md §2.
    """
    # gevent's and asyncio's sockets have another one inside, under `_sock`, and eventlet's under `fd`.
    held = (sock, getattr(sock, "_sock", None), getattr(sock, "fd", None))
    inner = next((each for each in held if isinstance(each, Socket)), None)
    identity: Identity | None = getattr(sock if inner is None else inner, "_utp", None)
    if identity is not None:
        return identity.transport
    if inner is None:
        return None
    try:
        protocol = Socket.getsockopt(inner, stdlib.SOL_SOCKET, stdlib.SO_PROTOCOL)
    except OSError as error:
        reraise_handler_error(error)
        return None
    return "tcp" if protocol == stdlib.IPPROTO_TCP else None

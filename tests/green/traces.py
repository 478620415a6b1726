"""What a process looks like before a patch and after its undoing: python -m tests.green.traces ORDER.

ORDER says what was there first, letter by letter: s ssl, a asyncio, g gevent.monkey's patch, n gevent unpatched,
v uvloop, e eventlet's patch. Prints, as JSON, the names whose values are not what they were.
"""

from __future__ import annotations

import json
import os
import sys
from types import ModuleType
from typing import Any, Final

WATCHED: Final = (
    *("socket", "_socket", "ssl", "select", "selectors", "threading", "subprocess", "os", "signal", "asyncio"),
    *("asyncio.base_events", "asyncio.selector_events", "gevent.socket", "gevent._socket3", "gevent.ssl"),
    *("gevent.server", "gevent.monkey", "uvloop", "uvloop.loop", "eventlet.greenio.base", "eventlet.green.socket"),
    *("eventlet.green.ssl",),
)
_OF_NO_ACCOUNT: Final = {"__annotations__", "__annotations_cache__", "__annotate__", "__annotate_func__"}


def prepare(order: str) -> None:
    for letter in order:
        if letter == "s":
            import ssl  # noqa: F401
        elif letter == "a":
            import asyncio  # noqa: F401
        elif letter == "g":
            import gevent.monkey

            gevent.monkey.patch_all()
        elif letter == "n":
            import gevent.server
            import gevent.ssl
        elif letter == "v":
            import uvloop  # noqa: F401
        elif letter == "e":
            import eventlet
            import eventlet.green.ssl

            eventlet.monkey_patch()


def snapshot() -> dict[str, Any]:
    """Every name of the modules watched, and of the classes that they define, with its value."""
    seen: dict[str, Any] = {}
    for module in [name for name in WATCHED if name in sys.modules]:
        for name, value in vars(sys.modules[module]).items():
            if isinstance(value, ModuleType):
                continue  # a submodule that somebody imported meanwhile
            seen[f"{module}.{name}"] = value
            if isinstance(value, type) and value.__module__ == module:
                members = {key: member for key, member in vars(value).items() if key not in _OF_NO_ACCOUNT}
                seen |= {f"{module}.{name}.{key}": member for key, member in members.items()}
    return seen


def settings() -> dict[str, Any]:
    """What is the process's, by value."""
    return {
        "environment": dict(os.environ),
        "path": list(sys.path),
        "finders": [repr(finder) for finder in sys.meta_path],
        "switch interval": sys.getswitchinterval(),
        "unraisable hook": repr(sys.unraisablehook),
    }


def patch_and_use(**rules: Any) -> None:
    import socket

    from utpsocket import monkey

    monkey.patch_all(**rules)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        connection, _ = listener.accept()
        with connection:
            client.sendall(b"x")
            assert connection.recv(1) == b"x"
            assert monkey.transport(client) == monkey.transport(connection) == "utp"
    monkey.unpatch()


def main(order: str) -> list[str]:
    import socket

    original = socket.socket
    prepare(order)
    from utpsocket import monkey  # noqa: F401  # importing it is not patching: ssl has learned of uTP sockets by it
    from utpsocket.sockets import shim

    shim.load()  # until then os.chroot() is not the standard library's
    before, settings_before = snapshot(), settings()
    patch_and_use()
    patch_and_use(exclude="db.internal", fallback="tcp", listen="both", children=True)
    after, settings_after = snapshot(), settings()
    changed = [name for name in before.keys() | after.keys() if before.get(name) is not after.get(name)]
    changed += [name for name, value in settings_before.items() if settings_after[name] != value]
    if not set(order) & {"g", "e"} and socket.socket is not original:
        changed.append("socket.socket itself")
    return sorted(changed)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])), flush=True)

"""Which of gevent's test modules are run, and what has to be left out of them.

A name is the module's, without the leading `gevent.tests.`, or a glob.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Final

PACKAGE: Final = "gevent.tests"

MODULES: Final = (
    "test__socket",
    "test__socket_close",
    "test__socket_errors",
    "test__socket_ex",
    "test__socket_send_memoryview",
    "test__socket_ssl",
    "test__socket_timeout",
    "test__socketpair",
    "test__ssl",
    "test__server",
    "test__server_pywsgi",
    "test__pywsgi",
    "test__backdoor",
    "test__select",
    "test__selectors",
    "test__monkey_select",
    "test__monkey_selectors",
    "test__makefile_ref",
    "test__refcount",
    "test__refcount_core",
    "test__greenness",
    "test__greenio",
    "test__api",
    "test__all__",
    "test__close_backend_fd",
    "test__core_fork",
    "test__fileobject",
    "test__hub",
    "test__issue230",
    "test__issue467",
    "test__issue1686",
    "test__monkey",
    "test__os",
    "test__subprocess",
    "test__threadpool",
    "test__timeout",
)

# Where sockets are exercised hardest for the seconds that it takes.
QUICK: Final = (
    "test__socket",
    "test__socket_close",
    "test__socket_errors",
    "test__socket_ex",
    "test__socket_timeout",
    "test__ssl",
    "test__server",
    "test__pywsgi",
    "test__backdoor",
    "test__select",
    "test__makefile_ref",
)

# Not run on either side.
EXCLUDED: Final[dict[str, str]] = {}


def select(patterns: tuple[str, ...], available: list[str]) -> list[str]:
    """The modules of `available` that `patterns` name, in the patterns' order, each once."""
    chosen: dict[str, None] = {}
    for pattern in patterns:
        name = pattern.removeprefix(f"{PACKAGE}.").removesuffix(".py")
        chosen |= dict.fromkeys(module for module in available if fnmatchcase(module, name))
    return list(chosen)

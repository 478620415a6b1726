"""tls.py installed when the program imports ssl, and not before.

tls.py needs ssl, which a program may never import. gevent warns if it patches an ssl that has been imported already.
Any thread may call.
"""

from __future__ import annotations

import sys

from utpsocket.integrations.import_hook import AfterImport, is_being_imported

_watch: AfterImport | None = None


def install() -> None:
    """Have SSLContext.wrap_socket() make our SSLSocket: now, or when ssl is imported. A second call does nothing."""
    global _watch
    if "ssl" in sys.modules and not is_being_imported("ssl"):
        _install_now()
    elif _watch is None:
        _watch = AfterImport({"ssl": _install_now})
        _watch.install()


def _install_now() -> None:
    global _watch
    from utpsocket.integrations import tls

    _watch = None
    tls.install()


def is_installed() -> bool:
    """Whether install() has been called, and not undone."""
    if _watch is not None:
        return True
    tls = sys.modules.get("utpsocket.integrations.tls")
    return tls is not None and bool(tls.is_installed())


def uninstall() -> None:
    """Have SSLContext.wrap_socket() make the standard library's SSLSocket again."""
    global _watch
    if _watch is not None:
        _watch.remove()
        _watch = None
    tls = sys.modules.get("utpsocket.integrations.tls")
    if tls is not None:
        tls.uninstall()

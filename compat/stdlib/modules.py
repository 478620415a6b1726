"""Which of the interpreter's test modules are run, and what has to be left out of them.

A name is the module's, without the leading `test.`, or a glob; a package's name takes its submodules. What the
interpreter does not have is passed over: the list spans several versions.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Final

MODULES: Final = (
    "test_socket",
    "test_socketserver",
    "test_timeout",
    "test_select",
    "test_selectors",
    "test_poll",
    "test_epoll",
    "test_ssl",
    "test_asyncio",
    "test_asyncore",
    "test_asynchat",
    "test_httplib",
    "test_httpservers",
    "test_urllib",
    "test_urllib2",
    "test_urllib2_localnet",
    "test_urllib_response",
    "test_robotparser",
    "test_xmlrpc",
    "test_docxmlrpc",
    "test_ftplib",
    "test_smtplib",
    "test_smtpd",
    "test_poplib",
    "test_imaplib",
    "test_nntplib",
    "test_telnetlib",
    "test_wsgiref",
    "test_logging",
    "test_support",
    "test_os",
    "test_stat",
    "test_largefile",
    "test_signal",
    "test_subprocess",
    "test_concurrent_futures",
    "test_multiprocessing_fork",
    "test_multiprocessing_forkserver",
    "test_multiprocessing_spawn",
)

# Every module that makes internet stream sockets and takes less than a minute, and the short ones about what a socket
# is used with. The longest first, so that two at a time end together: about five minutes on two cores, both sides.
QUICK: Final = (
    "test_socket",
    "test_imaplib",
    "test_largefile",
    "test_ssl",
    "test_xmlrpc",
    "test_logging",
    "test_asyncio.test_events",
    "test_asyncio.test_ssl",
    "test_asyncio.test_sock_lowlevel",
    "test_ftplib",
    "test_poplib",
    "test_asyncio.test_sslproto",
    "test_os",
    "test_asyncio.test_sendfile",
    "test_support",
    "test_docxmlrpc",
    "test_asyncio.test_base_events",
    "test_asyncio.test_buffered_proto",
    "test_asyncio.test_server",
    "test_asyncio.test_streams",
    "test_asyncio.test_unix_events",
    "test_asyncio.test_selector_events",
    "test_asyncio.test_transports",
    "test_asyncore",
    "test_asynchat",
    "test_socketserver",
    "test_timeout",
    "test_select",
    "test_epoll",
    "test_httplib",
    "test_httpservers",
    "test_urllib",
    "test_urllib2",
    "test_urllib2_localnet",
    "test_urllib_response",
    "test_robotparser",
    "test_smtplib",
    "test_smtpd",
    "test_nntplib",
    "test_telnetlib",
    "test_wsgiref",
    "test_stat",
)

# Not run on either side, each because it does not end over TCP either.
EXCLUDED: Final = {
    "test_socket.ThreadedVSOCK*": "hangs over TCP too where the machine has no AF_VSOCK loopback",
    "*WithThreadsTestPool.test_terminate": "a race in ThreadPool's shutdown hangs it now and then over TCP too",
}

# Tests of the Internet are enabled only inside a private network, where they fail at once instead of calling anybody;
# test_socketserver asks for the same resource although it never leaves the loopback interface.
RESOURCES: Final = ("cpu", "walltime")
RESOURCES_IN_PRIVATE_NETWORK: Final = (*RESOURCES, "network")
NETWORK_MEANS_LOOPBACK: Final = frozenset({"test_socketserver"})

# Some builds ship test._test_multiprocessing without the three modules that instantiate it.
START_METHODS: Final = {
    "test_multiprocessing_fork": "fork",
    "test_multiprocessing_forkserver": "forkserver",
    "test_multiprocessing_spawn": "spawn",
}
START_METHOD_MODULE: Final = """\
import test._test_multiprocessing
test._test_multiprocessing.install_tests_in_module_dict(globals(), {method!r})
"""


def select(patterns: tuple[str, ...], available: list[str]) -> list[str]:
    """The modules of `available` that `patterns` name, in the patterns' order, each once.

    patterns    names or globs, with or without `test.`; `asyncio.test_x` is `test_asyncio.test_x`
    """
    chosen: dict[str, None] = {}
    for pattern in patterns:
        name = pattern.removeprefix("test.")
        if name.startswith("asyncio."):
            name = f"test_{name}"
        chosen |= dict.fromkeys(
            module for module in available if fnmatchcase(module, name) or fnmatchcase(module, f"{name}.*")
        )
    return list(chosen)

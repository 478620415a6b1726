"""What a test may require of the machine it runs on. Where that is missing the test is skipped with the reason.

The reasons begin as tests/machines.py expects them: there every other reason for a skip is a fault.
"""

from __future__ import annotations

import resource
import socket

import pytest

from tests.machines import NO_IPV6
from utpsocket.protocol.build import IS_COMPILED


def has_ipv6(address: str = "::1") -> bool:
    """Whether a socket can be bound to `address`. socket.has_ipv6 only says that the interpreter was built for IPv6."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def has_ipv6_sockets() -> bool:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError:
        return False
    return True


requires_ipv6 = pytest.mark.skipif(not has_ipv6(), reason=f"{NO_IPV6}: the address ::1 is not there")
requires_ipv6_sockets = pytest.mark.skipif(not has_ipv6_sockets(), reason=f"{NO_IPV6}: no sockets of that family")
IPV6 = pytest.param(socket.AF_INET6, marks=requires_ipv6)  # in a list of address families


def requires_fds(count: int) -> pytest.MarkDecorator:
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return pytest.mark.skipif(allowed < count, reason=f"needs {count} file descriptors, {allowed} are allowed")


# What looks into functions by a profile hook, or puts another object in the place of one whose type compiled code
# checks.
requires_pure = pytest.mark.skipif(IS_COMPILED, reason="needs the pure build")
requires_compiled = pytest.mark.skipif(not IS_COMPILED, reason="needs the compiled build")


def replaces(what: str) -> pytest.MarkDecorator:
    """A test that puts something in the place of what compiled code calls: it calls the function that it was compiled
    with, whatever the class or module has under that name. What is called by interpreted code, such as
    engine/commands.py, can be replaced in both builds.
    """
    return pytest.mark.skipif(IS_COMPILED, reason=f"needs the pure build: it replaces {what}")


def localhost_families() -> list[int]:
    """The family of each address of the name localhost, in the order in which they are tried."""
    return [found[0] for found in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)]

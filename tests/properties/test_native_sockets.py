"""_native.c's calls of bind(), listen() and accept() do what the socket module's do. See test_native.py."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import test_native
from tests.properties.test_native import WRONG, no_fd
from utpsocket.engine.kernel import caller_calls, fd_names, netns

pytestmark = test_native.pytestmark
native = test_native.native

PLAIN: dict[int, list[Any]] = {
    socket.AF_INET: [
        ("127.0.0.1", 0), ("127.0.0.2", 7_777), ("0.0.0.0", 0), ("224.0.0.1", 9), ("192.0.2.300", 1), ("127.1", 0),
        ("", 0), ("localhost", 0), ("127.0.0.1\0", 0), ("127.0.0.1", -1), ("127.0.0.1", 65_536), ("127.0.0.1", 2**70),
        ("255.255.255.255", 9), ("127.0.0.1", True), (b"127.0.0.1", 0), ("127.0.0.1",), ("127.0.0.1", 0, 0, 0),
        ["::", 0], None, ("\u0661", 1), ("\udc80", 1),
    ],
    socket.AF_INET6: [
        ("::1", 0), ("::1", 7_777), ("::", 0), ("::ffff:127.0.0.1", 9), ("0:0:0:0:0:0:0:1", 0), ("ff02::1", 9),
        ("fe80::1", 9), ("fe80::1%lo", 9), ("::1", 0, 0, 0), ("::1", 0, 1, 0), ("::1", 0, 0, 1), ("::1", 0, 0),
        ("127.0.0.1", 0), ("::1", 2**70, 0, 0), ("::1", 0, 0, 2**70),
    ],
}  # fmt: skip
NAMES = pytest.mark.parametrize(
    ("family", "address"), [(family, address) for family, addresses in PLAIN.items() for address in addresses]
)
# What the socket module takes and C does not: the caller asks the socket module then.
LEFT = ("", "localhost", "127.1", "fe80::1%lo", b"127.0.0.1")


def as_the_socket_module(family: int, call: str, address: Any) -> Any:
    """What it has done with the address: the names of both ends afterwards, the errno, 0 where there is no such name,
    or None for what is no address.
    """
    with socket.socket(family, socket.SOCK_DGRAM) as udp:
        try:
            getattr(udp, call)(address)
        except OSError as error:
            return None if isinstance(error, socket.gaierror) else error.errno
        except (TypeError, OverflowError, ValueError):
            return None
        try:
            return udp.getsockname() if call == "bind" else (udp.getpeername(), udp.getsockname())
        except OSError:
            return 0


def without_port(name: Any) -> Any:
    return name and (name[0], *name[2:])


@NAMES
@pytest.mark.parametrize("call", ["bind", "connect"])
def test_udp_sockets_are_bound_and_connected_as_by_the_socket_module(
    native: Any, call: str, family: int, address: Any
) -> None:
    expected = as_the_socket_module(family, call, address)
    with socket.socket(family, socket.SOCK_DGRAM) as udp:
        found = getattr(native, f"{call}_datagram")(udp, family, address)
        if found is None:
            is_left = isinstance(address, tuple) and (
                address[0] in LEFT or any(address[2:]) or True in address[1:] or len(address) == 3
            )
            assert expected is None or is_left
            return
        if isinstance(found, int):
            assert found == expected
            return
        assert found == (udp.getsockname() if call == "bind" else (udp.getpeername(), udp.getsockname()))
        if call == "bind":
            assert without_port(found) == without_port(expected)
            assert not address[1] or found[1] == address[1]
        else:
            assert found[0] == expected[0]
            assert without_port(found[1]) == without_port(expected[1])


@pytest.mark.parametrize("call", ["bind", "connect"])
def test_udp_sockets_that_cannot_be_bound_or_connected_have_the_kernels_errno(native: Any, call: str) -> None:
    function = getattr(native, f"{call}_datagram")
    assert function(no_fd(), socket.AF_INET, ("127.0.0.1", 9)) == errno.EBADF
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as on,
    ):
        on.bind(("127.0.0.1", 0))
        if call == "bind":
            assert function(udp, socket.AF_INET, on.getsockname()) == errno.EADDRINUSE
        else:
            assert function(udp, socket.AF_INET, ("127.0.0.1", 0)) == 0
            assert udp.getsockname()[0] == "127.0.0.1"
            assert function(udp, socket.AF_INET, ("255.255.255.255", 9)) == errno.EACCES
        with pytest.raises(WRONG):
            function(udp, socket.AF_UNIX, on.getsockname())


@pytest.mark.parametrize("has_name", [True, False])
def test_connections_are_accepted_alike(native: Any, has_name: bool) -> None:
    name, far_name = (b"\0utp-test:" + os.urandom(8) for _ in range(2))
    found: dict[bool, Any] = {}
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        assert native.listen_at(listener.fileno(), name, 4) == 0
        assert listener.getsockname() == name
        assert native.accept_pair(listener.fileno(), 4_096, []) == -1  # it may block
        assert caller_calls.accept_pair(listener, socket.socket.__new__(socket.socket), 4_096) is None
        assert (
            caller_calls.accept_pair_in_python(listener.fileno(), socket.socket.__new__(socket.socket), 4_096) is None
        )
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            native.accept_pair(listener.fileno(), 4_096, [])
        for is_native in (True, False):
            far = stack.enter_context(socket.socket(socket.AF_UNIX))
            if has_name:
                far.bind(far_name + bytes([is_native]))
            far.connect(name)
            if is_native:
                told: list[Any] = []
                near = socket.socket(fileno=native.accept_pair(listener.fileno(), 4_096, told))
                ((told_name, inode, maker_pid),) = told
            else:
                made = socket.socket.__new__(socket.socket)
                accepted = caller_calls.accept_pair_in_python(listener.fileno(), made, 4_096)
                assert accepted is not None
                told_name, inode, maker_pid = accepted
                near = socket.socket(fileno=made.detach())
            stack.enter_context(near)
            assert told_name == (far_name + bytes([is_native]) if has_name else b"")
            assert inode == os.fstat(near.fileno()).st_ino
            assert maker_pid == os.getpid()
            assert os.get_blocking(near.fileno())
            assert not os.get_inheritable(near.fileno())
            found[is_native] = near.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), near.getsockname()
            far.send(b"!")
            assert near.recv(9) == b"!"
        assert found[True] == found[False] == (8_192, name)
        with socket.socket(socket.AF_UNIX) as other:
            assert native.listen_at(other.fileno(), name, 4) == errno.EADDRINUSE
    assert native.listen_at(no_fd(), name, 4) == errno.EBADF
    with pytest.raises(OSError, match="Bad file descriptor"):
        native.accept_pair(no_fd(), 4_096, [])


def test_the_network_namespace_is_found_alike(native: Any) -> None:
    with socket.socket() as sock:
        assert native.netns_cookie(sock) == netns.cookie_in_python(sock)
    assert native.netns_cookie(sock) == netns.cookie_in_python(sock) == 0
    assert native.netns_cookie(no_fd()) == 0
    with pytest.raises(TypeError):
        native.netns_cookie("3")


@given(name=st.binary(max_size=108), key=st.binary(min_size=1, max_size=32), uid=st.integers(0, 2**32 - 1))
def test_names_are_tagged_alike(native: Any, name: bytes, key: bytes, uid: int) -> None:
    assert native.tagged(key, name, uid) == fd_names.tagged_in_python(key, name, uid)


@pytest.mark.parametrize(
    "arguments",
    [
        (b"", b"name", 0),
        (bytes(33), b"name", 0),
        (b"key", bytes(109), 0),
        (b"key", b"name", -1),
        (b"key", b"name", 2**32),
        ("key", b"name", 0),
        (b"key", "name", 0),
        (b"key", b"name", None),
    ],
)
def test_what_is_no_key_name_or_user_is_refused(native: Any, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(WRONG):
        native.tagged(*arguments)


def test_bytes_are_written(native: Any) -> None:
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        assert native.write(writer, b"12345678") == os.write(writer, b"12345678") == 8
        assert os.read(reader, 99) == 2 * b"12345678"
        with pytest.raises(BlockingIOError):
            for _ in range(10_000):
                native.write(writer, bytes(4_096))
    finally:
        os.close(reader)
        os.close(writer)
    with pytest.raises(OSError, match="Bad file descriptor"):
        native.write(no_fd(), b"12345678")

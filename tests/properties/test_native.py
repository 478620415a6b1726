"""_native.c does what its twins in Python do, on random input, and takes no wrong argument.

Where the compiled build is not installed the file is compiled here. test_the_address_sanitizer_finds_nothing() runs all
the rest once more on a module that is compiled with gcc's AddressSanitizer and UndefinedBehaviorSanitizer.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib.machinery
import importlib.util
import itertools
import os
import random
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import open_descriptors
from utpsocket.engine.interpreter import libc
from utpsocket.engine.kernel import high_fds, native_calls, syscalls
from utpsocket.engine.kernel.epoll_sleep import EVENT
from utpsocket.engine.kernel.mmsg import NATIVE_RECORD_BYTES
from utpsocket.engine.kernel.native_calls import NativeDatagrams, NativeStream
from utpsocket.engine.kernel.poller import epoll_ctl_in_python, polled_in_python
from utpsocket.engine.kernel.syscalls import KeepingDatagrams, KeepingStream
from utpsocket.protocol.build import IS_COMPILED
from utpsocket.protocol.packet import (
    HEADER_BYTES,
    PacketType,
    compose_lone_in_python,
    decode,
    encode,
    read_fields_in_python,
)
from utpsocket.protocol.reassembly import join_views_in_python
from utpsocket.protocol.runs import MAX_RUN_PACKETS, Transmit, check_run_in_python
from utpsocket.sockets import fd_pair

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "utpsocket" / "_native.c"
GIVEN = "UTPSOCKET_TEST_NATIVE"  # a module that is compiled already
COMPILER = shutil.which("cc") or shutil.which("gcc")
WAIT_S = 200
UDP_SEGMENT, UDP_GRO, IP_PKTINFO = 103, 104, 8
WRONG = (TypeError, ValueError, OverflowError, BufferError)

pytestmark = [
    pytest.mark.skipif(not syscalls.keeps_gil(), reason="needs 64-bit Linux and a GIL"),
    pytest.mark.skipif(not IS_COMPILED and COMPILER is None, reason="needs the program cc"),
    pytest.mark.skipif(
        not IS_COMPILED and not Path(sysconfig.get_path("include"), "Python.h").exists(),
        reason="needs the file Python.h",
    ),
]
several = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def compiled(folder: Path, *flags: str) -> Path:
    assert COMPILER is not None
    made = folder / f"_native{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    include = f"-I{sysconfig.get_path('include')}"
    command = [COMPILER, "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]
    command += ["-Wno-missing-field-initializers", *flags, include, str(SOURCE), "-o", str(made)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert ran.returncode == 0, ran.stderr
    return made


def loaded(path: Path) -> Any:
    loader = importlib.machinery.ExtensionFileLoader("utpsocket._native", str(path))
    spec = importlib.util.spec_from_file_location("utpsocket._native", path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if GIVEN in os.environ:
        return loaded(Path(os.environ[GIVEN]))
    if IS_COMPILED:
        from utpsocket import _native

        return _native
    return loaded(compiled(tmp_path_factory.mktemp("native"), "-O2"))


@pytest.fixture
def kinds(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """NativeStream and NativeDatagrams use that module."""
    monkeypatch.setattr(native_calls, "_native", native, raising=False)
    if not IS_COMPILED:
        monkeypatch.setattr(native_calls, "_records", bytearray(MAX_RUN_PACKETS * NATIVE_RECORD_BYTES))


# ── headers ──


@st.composite
def runs(draw: st.DrawFn) -> tuple[bytes, int]:
    """Datagrams that are nearly a clean run, and their stride."""
    chance = random.Random(draw(st.integers(0, 2**32)))
    stride = draw(st.sampled_from([20, 24, 32, 40, 48, 72, 104, 21, 28, 36]))
    count = draw(st.one_of(st.integers(2, 12), st.sampled_from([64, 255, 256, 257, 300])))
    seq = draw(st.sampled_from([0, 1, 0xFFFE, 0xFFFF, 1000, 0x7FFF]))
    times = draw(st.sampled_from([(7, 7), (1, 9), (0, 0), (0, 1)]))
    datagrams = bytearray()
    for index in range(count):
        header = encode(
            PacketType.DATA,
            9,
            timestamp_us=chance.choice(times),
            difference_us=2,
            window_bytes=3,
            seq=seq + index,
            ack=5,
        )
        datagrams += header + chance.randbytes(stride - HEADER_BYTES)
    datagrams = datagrams[: len(datagrams) - draw(st.integers(0, stride - 1))]
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, count - 1)) * stride + draw(st.integers(0, HEADER_BYTES))
        if at < len(datagrams):
            datagrams[at] ^= draw(st.sampled_from([0, 1, 16, 255]))
    return bytes(datagrams), stride


@several
@given(run=runs())
def test_headers_are_found_to_have_the_same_in_common(native: Any, run: tuple[bytes, int]) -> None:
    data, stride = run
    found = native.check_run(memoryview(data), stride)
    assert found == check_run_in_python(memoryview(data), stride)
    assert found == native.check_run(memoryview(bytearray(data)), stride)


@several
@given(data=st.binary(min_size=1, max_size=400), stride=st.integers(1, 80))
def test_headers_of_no_uniform_run_are_found_to_have_the_same_in_common(native: Any, data: bytes, stride: int) -> None:
    if len(data) > stride:
        assert native.check_run(memoryview(data), stride) == check_run_in_python(memoryview(data), stride)


def test_headers_of_every_length_of_a_run_are_found_to_have_the_same_in_common(native: Any) -> None:
    whole = b"".join(
        encode(PacketType.DATA, 9, timestamp_us=1, difference_us=2, window_bytes=3, seq=0xFFF0 + index, ack=5) + b"1234"
        for index in range(MAX_RUN_PACKETS + 2)
    )
    for length in [*range(25, 200), *range(24 * MAX_RUN_PACKETS - 30, len(whole) + 1)]:
        data = memoryview(whole)[:length]
        assert native.check_run(data, 24) == check_run_in_python(data, 24), length


@several
@given(datagram=st.binary(min_size=HEADER_BYTES, max_size=60), is_writable=st.booleans())
def test_a_header_is_read_alike(native: Any, datagram: bytes, is_writable: bool) -> None:
    data = memoryview(bytearray(datagram) if is_writable else datagram)
    found = native.read_fields(data)
    assert found == read_fields_in_python(data)
    packet = decode(memoryview(b"\1\0" + datagram[2:]))
    assert packet is not None
    fields = packet.connection_id, packet.timestamp_us, packet.difference_us, packet.window_bytes
    assert found == (*fields, packet.seq16, packet.ack16)


@several
@given(has_sent=st.booleans(), is_closed=st.booleans(), events=st.sampled_from([0, 1, 4, 5, 0x2001, 0x2005]))
def test_an_fd_is_polled_alike(native: Any, has_sent: bool, is_closed: bool, events: int) -> None:
    one, other = socket.socketpair()
    with one, other:
        if has_sent:
            other.send(b"x")
        if is_closed:
            other.close()
        for fd in (one.fileno(), no_fd()):
            assert native.poll_one(fd, events) == polled_in_python(fd, events)


registrations = st.lists(
    st.tuples(st.sampled_from([1, 2, 3, 9]), st.integers(0, 2), st.sampled_from([0, 1, 4, 5, 0x2019, 1 << 31 | 5])),
    max_size=20,
)


@several
@given(steps=registrations)
def test_what_an_epoll_watches_is_changed_alike(native: Any, steps: list[tuple[int, int, int]]) -> None:
    with contextlib.ExitStack() as stack:
        ours, twins = stack.enter_context(select.epoll()), stack.enter_context(select.epoll())
        pairs = [[stack.enter_context(end) for end in socket.socketpair()] for _ in range(2)]
        pairs[0][1].send(b"x")
        fds = [pairs[0][0].fileno(), pairs[1][0].fileno(), no_fd()]
        for operation, index, events in steps:
            done = native.epoll_ctl(ours.fileno(), operation, fds[index], events)
            assert done == epoll_ctl_in_python(twins.fileno(), operation, fds[index], events)
            assert sorted(ours.poll(0)) == sorted(twins.poll(0))


unbounded = st.one_of(st.integers(0, 2**62), st.sampled_from([0, 1, 0xFFFF, 0x10000, 2**32 - 1, 2**32, 2**63, 2**64]))


@several
@given(
    connection_id=st.integers(0, 0xFFFF),
    numbers=st.tuples(unbounded, unbounded, unbounded, unbounded, st.one_of(unbounded, st.just(-1))),
    memory=st.binary(max_size=1_500),
    edges=st.tuples(st.integers(0, 1_500), st.integers(0, 1_500)),
    is_writable=st.booleans(),
)
def test_a_lone_packet_is_composed_alike(
    native: Any,
    connection_id: int,
    numbers: tuple[int, int, int, int, int],
    memory: bytes,
    edges: tuple[int, int],
    is_writable: bool,
) -> None:
    timestamp_us, difference_us, window_bytes, seq, ack = numbers
    window_bytes &= (1 << 63) - 1
    start, stop = sorted(min(edge, len(memory)) for edge in edges)
    arguments = connection_id, timestamp_us, difference_us, window_bytes, seq, ack
    view = memoryview(bytearray(memory) if is_writable else memory)
    datagram = native.compose_lone(*arguments, view, start, stop)
    assert type(datagram) is bytes
    assert datagram == compose_lone_in_python(*arguments, view, start, stop)
    header = encode(
        PacketType.DATA,
        connection_id,
        timestamp_us=timestamp_us,
        difference_us=difference_us,
        window_bytes=window_bytes,
        seq=seq,
        ack=ack,
    )
    assert datagram == header + memory[start:stop]


@several
@given(pieces=st.lists(st.binary(max_size=90), max_size=9), is_writable=st.booleans(), cut=st.integers(0, 90))
def test_views_are_joined_alike(native: Any, pieces: list[bytes], is_writable: bool, cut: int) -> None:
    views = [memoryview(bytearray(piece) if is_writable else piece)[cut:] for piece in pieces]
    joined = native.join_views(views)
    assert type(joined) is bytes
    assert joined == join_views_in_python(views)
    for wrong in ([*views, b"bytes"], [*views, memoryview(b"1234")[::2]], tuple(views), memoryview(b"1")):
        with pytest.raises(WRONG):
            native.join_views(wrong)


# ── streams ──


@contextlib.contextmanager
def streams() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    for each in (ours, theirs):
        each.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@several
@given(
    written=st.lists(st.binary(min_size=1, max_size=300), max_size=5),
    sizes=st.lists(st.lists(st.integers(1, 200), min_size=1, max_size=6), min_size=1, max_size=5),
    is_closed=st.booleans(),
)
def test_streams_are_read_alike(kinds: None, written: list[bytes], sizes: list[list[int]], is_closed: bool) -> None:
    with streams() as (ours, theirs), streams() as (twins, twins_theirs):
        for piece in written:
            theirs.send(piece)
            twins_theirs.send(piece)
        if is_closed:
            theirs.shutdown(socket.SHUT_WR)
            twins_theirs.shutdown(socket.SHUT_WR)
        stream, twin = NativeStream(ours), KeepingStream(twins)
        read, twins_read = bytearray(), bytearray()
        for each in [*sizes, [4_000]]:
            buffers = [bytearray(size) for size in each]
            twins_buffers = [bytearray(size) for size in each]
            count = stream.receive([memoryview(buffer) for buffer in buffers])
            twins_count = twin.receive([memoryview(buffer) for buffer in twins_buffers])
            # The twin makes a call for each span, and so may be told an error or the end in the next call only.
            assert count == twins_count
            if count > 0:
                read += b"".join(buffers)[:count]
                twins_read += b"".join(twins_buffers)[:count]
        assert read == twins_read


@several
@given(
    pieces=st.lists(st.binary(min_size=1, max_size=90), min_size=1, max_size=8),
    repeated=st.sampled_from([1, 1, 1, 40, 300]),
    cut=st.integers(0, 89),
    is_writable=st.booleans(),
)
def test_streams_are_written_alike(
    kinds: None, pieces: list[bytes], repeated: int, cut: int, is_writable: bool
) -> None:
    views = [memoryview(bytearray(piece) if is_writable else piece) for piece in pieces * repeated]
    views[0] = views[0][min(cut, len(views[0]) - 1) :]
    whole = b"".join(views)
    with streams() as (ours, theirs), streams() as (twins, twins_theirs):
        count = NativeStream(ours).send(views)
        twins_count = KeepingStream(twins).send(views)
        assert 0 < count <= len(whole)
        assert 0 < twins_count <= len(whole)
        assert theirs.recv(1 << 20) == whole[:count]
        assert twins_theirs.recv(1 << 20) == whole[:twins_count]
        assert (count == len(whole)) == (len(views) <= 1_024)


def test_streams_fail_alike(kinds: None) -> None:
    codes = []
    for kind in (NativeStream, KeepingStream):
        with streams() as (ours, theirs):
            stream = kind(ours)
            found = [stream.receive([memoryview(bytearray(9))])]
            while stream.send([memoryview(bytes(50_000))] * 2) > 0:
                pass
            found.append(stream.send([memoryview(b"more")]))
            theirs.close()
            found += [stream.receive([memoryview(bytearray(9))]), stream.send([memoryview(b"more")])]
            found += [stream.receive([memoryview(bytearray(9))])]
        found += [stream.send([memoryview(b"more")]), stream.receive([memoryview(bytearray(9))])]
        codes.append(found)
    assert codes[0] == codes[1]
    assert -errno.EBADF in codes[0]


# ── datagrams ──


@contextlib.contextmanager
def datagram_sockets(*, is_merging: bool = False) -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.socket(type=socket.SOCK_DGRAM) as left, socket.socket(type=socket.SOCK_DGRAM) as right:
        for sock in (left, right):
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        if is_merging:
            right.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
            right.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        yield left, right


@several
@given(
    payload=st.binary(max_size=600),
    edges=st.tuples(st.integers(0, 600), st.integers(0, 600)),
    room=st.integers(1, 700),
    ancillary_bytes=st.sampled_from([0, 8, 24, 30, 100, 1_000]),
    is_connected=st.booleans(),
    is_writable=st.booleans(),
)
def test_datagrams_go_and_come_alike(
    kinds: None,
    payload: bytes,
    edges: tuple[int, int],
    room: int,
    ancillary_bytes: int,
    is_connected: bool,
    is_writable: bool,
) -> None:
    start, stop = sorted(min(edge, len(payload)) for edge in edges)
    data = bytearray(payload) if is_writable else payload
    with datagram_sockets(is_merging=True) as (left, right):
        addr, came_from = right.getsockname(), left.getsockname()
        if is_connected:
            left.connect(addr)
            right.connect(came_from)
        results = []
        for kind in (NativeDatagrams, KeepingDatagrams):
            sender = kind(left, 0, addr if is_connected else None)
            receiver = kind(right, ancillary_bytes, came_from if is_connected else None)
            buffer = memoryview(bytearray(room))
            found: list[object] = [receiver.receive(buffer)[0]]
            segment = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", 100))] if stop - start > 100 else []
            found.append(sender.send(data, start, stop, segment, None if is_connected else addr))
            size, ancillary, flags, told = receiver.receive(buffer)
            found += [size, list(ancillary), flags, told, bytes(buffer)]
            results.append(found)
        assert results[0] == results[1]


@st.composite
def flights(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.integers(1, 40))
    size = draw(st.integers(1, 120))
    last = draw(st.integers(1, size))
    total = (count - 1) * size + last
    whole = random.Random(draw(st.integers(0, 99))).randbytes(total)
    cuts = sorted(draw(st.lists(st.integers(0, total), max_size=5)))
    edges = [0, *cuts, total]
    return {
        "count": count,
        "size": size,
        "last": last,
        "whole": whole,
        "spans": [memoryview(whole)[a:b] for a, b in itertools.pairwise(edges)],
        "first": draw(st.integers(0, count - 1)),
        "seq": draw(st.sampled_from([0, 5, 0xFFFF, 0x1FFFE, 1 << 40])),
    }


@several
@given(flight=flights(), has_gso=st.booleans(), is_connected=st.booleans())
def test_a_run_leaves_as_it_is_composed(kinds: None, flight: dict[str, Any], has_gso: bool, is_connected: bool) -> None:
    header = encode(PacketType.DATA, 9, timestamp_us=1, difference_us=2, window_bytes=3, seq=flight["seq"], ack=5)
    with datagram_sockets() as (left, right):
        addr = None if is_connected else right.getsockname()
        if is_connected:
            left.connect(right.getsockname())
        datagram_bytes = HEADER_BYTES + flight["size"]
        transmit = Transmit(right.getsockname(), b"", datagram_bytes=datagram_bytes, count=flight["count"])
        transmit.lend(header, flight["seq"], flight["spans"], HEADER_BYTES + flight["last"])
        ancillary = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", datagram_bytes))] if has_gso else []
        first, count = flight["first"], flight["count"]
        calls = NativeDatagrams(left, 0, right.getsockname() if is_connected else None)
        assert calls.send_spans(transmit, flight["spans"], first, count - first, ancillary, addr) == count - first
        received = [right.recv(70_000) for _ in range(count - first)]
        assert not transmit.data
        assert received == transmit.datagrams()[first:]
        # The twin sends the same copied together.
        twin = KeepingDatagrams(left, 0, right.getsockname() if is_connected else None)
        assert twin.send_many(transmit.data, first * datagram_bytes, datagram_bytes, [], addr) == count - first
        assert received == [right.recv(70_000) for _ in range(count - first)]


def test_a_run_that_the_kernel_refuses_says_why(kinds: None) -> None:
    with datagram_sockets() as (left, right):
        header = encode(PacketType.DATA, 9, timestamp_us=1, difference_us=2, window_bytes=3, seq=1, ack=5)
        transmit = Transmit(right.getsockname(), b"", datagram_bytes=HEADER_BYTES + 60_000, count=2)
        spans = [memoryview(bytes(120_000))]
        transmit.lend(header, 1, spans, HEADER_BYTES + 60_000)
        calls = NativeDatagrams(left, 0, None)
        segment = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", 60_020))]
        assert calls.send_spans(transmit, spans, 0, 2, segment, right.getsockname()) == -errno.EMSGSIZE
        left.close()
    assert calls.send_spans(transmit, spans, 0, 2, segment, ("127.0.0.1", 9)) == -errno.EBADF


# ── sleeping ──


@several
@given(ready=st.lists(st.booleans(), max_size=6), most=st.integers(1, 8))
def test_events_are_waited_for_alike(native: Any, ready: list[bool], most: int) -> None:
    with contextlib.ExitStack() as stack:
        poller = stack.enter_context(select.epoll())
        for is_ready in ready:
            left, right = socket.socketpair()
            stack.enter_context(left)
            stack.enter_context(right)
            if is_ready:
                right.send(b"x")
            poller.register(left, select.EPOLLIN)
        size = EVENT.size * most
        buffer, twins = bytearray(size), bytearray(size)
        count = native.epoll_wait(poller.fileno(), buffer, most, 0)
        address = ctypes.byref(ctypes.c_char.from_buffer(twins))
        assert count == libc.epoll_wait(poller.fileno(), address, most, 0) == min(sum(ready), most)
        if sum(ready) <= most:  # else each call reports others
            assert set(EVENT.iter_unpack(buffer)) == set(EVENT.iter_unpack(twins))
    assert native.epoll_wait(no_fd(), bytearray(16), 1, 0) == -1


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("is_other", [True, False])
def test_descriptors_are_waited_for_alike(native: Any, is_first: bool, is_other: bool) -> None:
    with contextlib.ExitStack() as stack:
        pairs = [[stack.enter_context(end) for end in socket.socketpair()] for _ in range(2)]
        poller = select.poll()
        for (left, right), is_ready in zip(pairs, (is_first, is_other), strict=True):
            poller.register(left, select.POLLIN)
            if is_ready:
                right.send(b"x")
        fds = [left.fileno() for left, _ in pairs]
        found = dict(poller.poll(0))
        wanted = [bit for fd, bit in zip(fds, (1, 2), strict=True) if found.get(fd)]
        assert native.wait_readable(*fds, 0) == sum(wanted)
        assert native.wait_readable(fds[0], -1, 0) == is_first
        pairs[1][1].close()  # not POLLIN alone
        assert native.wait_readable(*fds, 0) == is_first + 4
    assert native.wait_readable(no_fd(), -1, -1) == 1  # POLLNVAL


def test_a_signal_ends_the_wait_for_descriptors(native: Any) -> None:
    left, right = socket.socketpair()
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        with left, right:
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            assert native.wait_readable(left.fileno(), -1, -1) == -errno.EINTR
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ── wrong arguments ──


# ── pairs ──


def in_c(native: Any, user: socket.socket, name: bytes) -> tuple[Any, int]:
    found: list[int] = []
    made = socket.socket(fileno=native.connect_pair(user.fileno(), name, os.getpid(), high_fds.HIGH_FD, found))
    (filler_bytes,) = found
    return made, filler_bytes


def in_python(native: Any, user: socket.socket, name: bytes) -> tuple[Any, int]:
    with contextlib.closing(fd_pair._unix_listener()) as listening:
        user.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 0)
        made = fd_pair._pair_at(listening, user.fileno(), name)
        assert made is not None
        return made, fd_pair._fill_send_buffer(user)


WAYS = pytest.mark.parametrize("connect", [in_c, in_python])


@WAYS
@pytest.mark.parametrize("is_blocking", [True, False])
def test_pairs_are_made_alike(native: Any, connect: Any, is_blocking: bool) -> None:
    high_fds.prepare()
    name = b"\0utp-test:" + os.urandom(8)
    before = open_descriptors()
    with socket.socket(socket.AF_UNIX) as user:
        user.setblocking(is_blocking)
        made, filler_bytes = connect(native, user, name)
        with contextlib.closing(made) as engine_sock:
            assert set(open_descriptors()) - set(before) == {user.fileno(), engine_sock.fileno()}
            assert engine_sock.fileno() >= high_fds.HIGH_FD
            assert not os.get_inheritable(engine_sock.fileno())
            assert not os.get_blocking(engine_sock.fileno())
            assert os.get_blocking(user.fileno()) is is_blocking
            assert user.getpeername() == engine_sock.getsockname() == name
            assert user.getsockname() == engine_sock.getpeername() == ""
            with pytest.raises(BlockingIOError):
                user.send(b"!", socket.MSG_DONTWAIT)
            assert engine_sock.recv(10_000) == bytes(filler_bytes) != b""
            user.sendall(b"there")
            assert engine_sock.recv(9) == b"there"
            engine_sock.send(b"back")
            assert user.recv(9) == b"back"
        assert user.recv(9) == b""


@WAYS
def test_pairs_that_cannot_be_made_fail_alike(native: Any, connect: Any) -> None:
    before = open_descriptors()
    name = b"\0utp-test:" + os.urandom(8)
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as user:
        other.bind(name)
        with pytest.raises(OSError) as caught:
            connect(native, user, name)
        assert caught.value.errno == errno.EADDRINUSE
    with socket.socket() as tcp:
        with pytest.raises(OSError) as caught:
            connect(native, tcp, name)
        assert caught.value.errno in (errno.EAFNOSUPPORT, errno.EINVAL)
    assert open_descriptors() == before


def test_a_pair_is_not_made_with_a_stranger(native: Any) -> None:
    """What another process has connected to the name is closed: here one is made out to be another's by its pid."""
    before = open_descriptors()
    with socket.socket(socket.AF_UNIX) as user:
        with pytest.raises(BlockingIOError):  # no connection of that process
            native.connect_pair(user.fileno(), b"\0utp-test:" + os.urandom(8), os.getpid() + 1, high_fds.HIGH_FD, [])
    assert open_descriptors() == before


@WAYS
def test_a_pair_of_a_socket_that_sends_no_more_has_no_filler(native: Any, connect: Any) -> None:
    with socket.socket(socket.AF_UNIX) as user:
        with contextlib.suppress(OSError):
            user.shutdown(socket.SHUT_WR)
        made, filler_bytes = connect(native, user, b"\0utp-test:" + os.urandom(8))
        with contextlib.closing(made):
            assert filler_bytes == 0
            with pytest.raises(BlockingIOError):
                made.recv(9)


def test_a_pair_needs_an_abstract_name(native: Any) -> None:
    for name in (b"", b"\0", b"path", b"\0" + bytes(108), None, "\0name"):
        with pytest.raises(WRONG):
            native.connect_pair(no_fd(), name, os.getpid(), high_fds.HIGH_FD, [])
        with pytest.raises(WRONG):
            native.listen_at(no_fd(), name, 1)


def view(data: bytes) -> memoryview:
    return memoryview(data)


numbers = st.sampled_from([-(2**70), -(2**40), -1, 0, 1, 7, 20, 2**31 - 1, 2**31, 2**40, 2**62, 2**63, 2**64, 2**70])
objects: st.SearchStrategy[Any] = st.one_of(
    numbers,
    st.none(),
    st.booleans(),
    st.just("text"),
    st.just(3.5),
    st.binary(max_size=40),
    st.binary(max_size=40).map(bytearray),
    st.binary(max_size=40).map(view),
    st.binary(min_size=4, max_size=40).map(lambda data: memoryview(data)[::2]),
    st.lists(st.binary(max_size=40).map(view), max_size=70),
    st.lists(st.one_of(st.none(), numbers, st.binary(max_size=9)), min_size=1, max_size=3),
    st.tuples(st.binary(max_size=9)),
)


ARGUMENTS = {
    "receive": 2,
    "send": 2,
    "receive_datagram": 4,
    "receive_datagrams": 8,
    "send_datagram": 6,
    "send_run": 11,
    "check_run": 2,
    "connect_pair": 5,
    "listen_at": 3,
    "accept_pair": 3,
    "netns_cookie": 1,
    "tagged": 3,
    "connect_datagram": 3,
    "bind_datagram": 3,
    "write": 2,
    "read_fields": 1,
    "compose_lone": 9,
    "join_views": 1,
    "epoll_wait": 4,
    "epoll_ctl": 4,
    "poll_one": 2,
    "wait_readable": 3,
}


def no_fd() -> int:
    """A number that is no descriptor, so that a call which is not refused changes nothing."""
    return 1 << 30


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    name=st.sampled_from(list(ARGUMENTS)),
    data=st.data(),
)
def test_no_argument_makes_it_do_anything_but_raise_or_return(native: Any, name: str, data: st.DataObject) -> None:
    function = getattr(native, name)
    wanted = ARGUMENTS[name]
    given_count = data.draw(st.sampled_from([wanted, wanted, wanted, wanted, 0, wanted - 1, wanted + 1]))
    arguments: list[Any] = [data.draw(objects) for _ in range(given_count)]
    is_for_no_socket = data.draw(st.sampled_from([True, True, True, False]))
    is_system_call = name not in ("check_run", "compose_lone", "join_views", "read_fields", "tagged")
    if is_system_call and arguments and is_for_no_socket:
        arguments[0] = no_fd()
    elif is_system_call and arguments and isinstance(arguments[0], int):
        arguments[0] = -1
    try:
        function(*arguments)
    except WRONG:
        pass
    except OSError:
        assert name in ("connect_pair", "accept_pair", "write")


def test_what_lies_beyond_a_buffer_is_refused(native: Any) -> None:
    header = bytes(HEADER_BYTES)
    spans = [memoryview(bytes(10)), memoryview(bytes(10))]
    fd = no_fd()
    assert native.send_run(fd, header, 1, spans, 0, 10, 2, 10, None, None, True) == -errno.EBADF
    for arguments in (
        (fd, header, 1, spans, 1, 10, 2, 10, None, None, True),
        (fd, header, 1, spans, 0, 10, 2, 11, None, None, True),
        (fd, header, 1, spans, 0, 10, 3, 1, None, None, True),
        (fd, header, 1, spans, 0, 10, 65, 1, None, None, True),
        (fd, header, 1, spans, 0, 10, 0, 1, None, None, True),
        (fd, header, 1, spans, 2**62, 2**62, 2, 2**62, None, None, True),
        (fd, header[1:], 1, spans, 0, 10, 2, 10, None, None, True),
        (fd, header, 1, [*spans, None], 0, 10, 2, 10, None, None, True),
    ):
        with pytest.raises(WRONG):
            native.send_run(*arguments)
    assert native.send_datagram(fd, bytes(5), 0, 5, None, None) == errno.EBADF
    for start, stop in ((0, 6), (6, 6), (4, 3), (-1, 2), (2**63, 2**63)):
        with pytest.raises(WRONG):
            native.send_datagram(fd, bytes(5), start, stop, None, None)
    for wrong in (memoryview(bytes(5)), bytes(5), None):  # not writable
        with pytest.raises(WRONG):
            native.receive(fd, [wrong])
        with pytest.raises(WRONG):
            native.receive_datagram(fd, wrong, 0, None)
    assert len(native.compose_lone(1, 2, 3, 4, 5, 6, memoryview(bytes(5)), 0, 5)) == HEADER_BYTES + 5
    for start, stop in ((0, 6), (6, 6), (4, 3), (-1, 2), (2**63, 2**63)):
        with pytest.raises(WRONG):
            native.compose_lone(1, 2, 3, 4, 5, 6, memoryview(bytes(5)), start, stop)
    with pytest.raises(WRONG):
        native.compose_lone(1 << 16, 2, 3, 4, 5, 6, memoryview(bytes(5)), 0, 5)
    for wrong_arguments in ((bytearray(16), 2, 0), (bytearray(11), 1, 0), (bytearray(16), 0, 0), (bytes(16), 1, 0)):
        with pytest.raises(WRONG):
            native.epoll_wait(fd, *wrong_arguments)
    for timeout_ms in (-2, 2**31, 2**70):
        with pytest.raises(WRONG):
            native.epoll_wait(fd, bytearray(16), 1, timeout_ms)
    for wrong_numbers in ((-2, 0), (2**31, 0), (-1, -2), (-1, 2**31)):
        with pytest.raises(WRONG):
            native.wait_readable(fd, *wrong_numbers)
    for short in (bytes(HEADER_BYTES - 1), b""):
        with pytest.raises(WRONG):
            native.read_fields(memoryview(short))
    released = memoryview(bytearray(9))
    released.release()
    with pytest.raises(ValueError):
        native.receive(fd, [released])
    with pytest.raises(ValueError):
        native.send(fd, [released])


# ── sanitizers ──


def test_the_address_sanitizer_finds_nothing(tmp_path: Path) -> None:
    if GIVEN in os.environ:
        pytest.skip("needs the module without it")
    if COMPILER is None:
        pytest.skip("needs the program cc")
    asked = subprocess.run([COMPILER, "-print-file-name=libasan.so"], capture_output=True, text=True, check=False)
    library = asked.stdout.strip()
    if asked.returncode or not os.path.isabs(library):
        pytest.skip("needs the library libasan.so")
    made = compiled(tmp_path, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += [
        str(Path(__file__).with_name(name).resolve()) for name in ("test_native.py", "test_native_datagrams.py")
    ]
    environment = {
        **os.environ,
        GIVEN: str(made),
        "LD_PRELOAD": library,
        # The interpreter itself leaves memory behind at its end; and its own allocator would hide what goes beyond.
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",
    }
    ran = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    assert "1 skipped" in ran.stdout, "all the rest has run"

"""The tool that compares random sequences of calls: what it finds, shrinks, expects and prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compat import __main__ as compat
from compat.fuzz import compare as comparing
from compat.fuzz.compare import Difference, Kind, compare, examine, shorten
from compat.fuzz.expected import EXPECTED, without_expected
from compat.fuzz.machine import Trace, run
from compat.fuzz.sequences import sequence

PAIR = [
    "a = socket.socket()",
    'a.bind(("127.0.0.1", 0))',
    "a.listen()",
    "b = socket.socket()",
    "b.connect(a.getsockname())",
    "c, _ = a.accept()",
]


def test_a_sequence_is_known_by_its_seed_and_number() -> None:
    assert sequence(3, 7) == sequence(3, 7)
    assert len({tuple(sequence(seed, number)) for seed in range(3) for number in range(3)}) == 9


def test_what_does_not_differ() -> None:
    assert (
        compare([*PAIR, 'b.send(b"x")', "c.recv(5)", "c.getpeername()", "b.close()", "c.recv(5)", "polled(c)"]) is None
    )


def test_what_differs_is_shortened_and_explained() -> None:
    noise = ["d = socket.socket()", 'c.send(b"hello")', "b.recv(100)", "e = c.dup()"]
    lines = [*PAIR, *noise, 'b.send(b"x", socket.MSG_OOB)', "d.close()"]
    found = compare(lines)
    assert found is not None
    for _ in range(3):  # on a busy machine a piece that could go may seem to be needed
        lines, found = shorten(lines, found)
    assert lines == [PAIR[0], *PAIR[2:5], 'b.send(b"x", socket.MSG_OOB)']
    assert found.kind == Kind("send", "1", "raises OSError ENOTSUP")  # the same number as EOPNOTSUPP
    fewer = without_expected(lines, found)
    assert fewer is not None and "urgent" in fewer.reason
    assert fewer.lines == lines[:-1]
    assert without_expected(PAIR, Difference(found.kind, 5)) is None


def test_what_must_differ_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    urgent = [*PAIR, 'b.send(b"x", socket.MSG_OOB)', 'c.send(b"x")', "b.recv(5)"]
    monkeypatch.setattr(comparing, "sequence", lambda seed, number: urgent)
    finding = examine(1, 1)
    assert finding.difference is None
    assert finding.lines == [*PAIR, *urgent[-2:]]
    assert len(finding.reasons) == 1


def test_every_expectation_has_a_reason() -> None:
    assert all(entry.reason and entry.words for entry in EXPECTED)


@pytest.mark.parametrize("holder", ["fork", "start"])
@pytest.mark.parametrize("network", ["tcp", "utp"])
def test_threads_and_other_holders(network: str, holder: str) -> None:
    lines = [
        *PAIR,
        "c.settimeout(None)",
        'meanwhile("c.recv(5)", "b.send(b\'hello\')")',
        f"h1 = {holder}()",
        "h1.do(\"b.send(b'from the child')\")",
        "c.recv(100)",
        "b.close()",
        "polled(c)",
        "h1.kill()",
        "c.recv(100)",
        "h1.do(\"b.send(b'x')\")",
    ]
    results = run(lines, network, slowly=0.03).results
    assert results[7] == ("thread", b"hello", "here", 5)
    assert results[8:15] == ["holder", 14, b"from the child", None, "OUT", "killed", b""]
    assert results[15].startswith("raises OSError EBADF")


def test_the_command_prints_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert compat.main(["fuzz", "--runs", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"sequences": 0, "differ": 0, "expected": 0, "kinds": []}


def test_a_script_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script"
    script.write_text("\n".join([*PAIR, 'b.send(b"x", socket.MSG_OOB)']), encoding="utf-8")
    assert compat.main(["fuzz", "--replay", str(script)]) == 1
    assert capsys.readouterr().out.rstrip().endswith("^ differ")


LOOK = "poll after "
FULL = [*PAIR, "fill(b)"]
LATE = [*FULL, "b.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)", "b.close()"]
CHILD = [*PAIR, "h1 = fork()", 'h1.do("a.shutdown(socket.SHUT_RD)")']
PROGRAM = ["a = socket.socket()", "h1 = start()", 'h1.do("a.shutdown(socket.SHUT_RD)")']
ITSELF = ["a = socket.socket()", 'a.bind(("127.0.0.1", 0))', "a.connect(a.getsockname())"]
CORKED = [*PAIR, 'b.send(b"x", socket.MSG_MORE)']
DEAF = [*PAIR, "c.shutdown(socket.SHUT_RD)", 'b.send(b"x")']
QUIET = [*PAIR, "b.shutdown(socket.SHUT_WR)", "c.close()"]
CROWD = [PAIR[0], "a.listen(0)", *PAIR[3:5], "d = socket.socket()", "d.connect(a.getsockname())"]
NARROW = {
    # the reason's first words: the lines, the socket, what must differ, what must not (call, TCP's, uTP's)
    "uTP has no urgent": (
        [*PAIR, 'b.send(b"x", socket.MSG_OOB)'],
        "b",
        [("send", "1", "raises OSError ENOTSUP")],
        [("send", "1", "raises OSError EINVAL"), ("send", "1", "0"), (LOOK + "send", "OUT, 0 unread", "0, 0 unread")],
    ),
    "the kernel corks": (
        CORKED,
        "c",
        [(LOOK + "send", "OUT, 0 unread", "IN|OUT, 1 unread")],
        [
            (LOOK + "send", "IN|OUT, 1 unread", "OUT, 0 unread"),
            (LOOK + "send", "OUT, 0 unread", "IN|OUT|HUP, 1 unread"),
            (LOOK + "send", "OUT, 0 unread", "OUT|ERR, 0 unread"),
            ("send", "1", "raises BrokenPipeError EPIPE"),
        ],
    ),
    "a TCP socket may be": (
        ITSELF,
        "a",
        [
            ("connect", "None", "raises ConnectionRefusedError ECONNREFUSED"),
            ("connect", "raises ConnectionAbortedError ECONNABORTED", "raises ConnectionRefusedError ECONNREFUSED"),
            ("getsockopt(SO_ERROR)", "0", "111"),
            (LOOK + "connect", "OUT, 0 unread", "IN|OUT|ERR|HUP|RDHUP, 0 unread"),
        ],
        [
            ("connect", "None", "raises TimeoutError"),
            ("connect", "raises OSError EINVAL", "None"),
            ("getsockopt(SO_ERROR)", "111", "0"),
        ],
    ),
    "an AF_UNIX socket that has": (
        CHILD,
        "a",
        [(LOOK + "in a child: shutdown", "OUT|HUP, 0 unread", "IN|RDHUP, Invalid argument unread")],
        [
            ("in a child: shutdown", "None", "raises OSError ENOTCONN"),
            (LOOK + "in a child: shutdown", "OUT|HUP, 0 unread", "OUT|ERR|HUP, 0 unread"),
        ],
    ),
    "a socket that is neither": (
        PROGRAM,
        "a",
        [
            ("in a child: shutdown", "raises OSError ENOTCONN", "None"),
            ("in a child: recv", "b''", "raises OSError EINVAL"),
        ],
        [
            ("in a child: recv", "b'x'", "raises OSError EINVAL"),
            ("in a child: shutdown", "None", "raises OSError ENOTCONN"),
            ("in a child: shutdown", "raises OSError ENOTCONN", "raises OSError EBADF"),
            ("in a child: shutdown", "raises OSError ENOTCONN", "raises TypeError: a bytes-like object is required"),
        ],
    ),
    "a program that was started": (
        [*PAIR, "h1 = start()", 'h1.do("c.recv(5)")'],
        "c",
        [
            ("in a child: recv", "b''", "raises ConnectionResetError ECONNRESET"),
            (
                "in a child: recv",
                "raises ConnectionRefusedError ECONNREFUSED",
                "raises ConnectionResetError ECONNRESET",
            ),
            ("in a child: send", "raises ConnectionResetError ECONNRESET", "raises BrokenPipeError EPIPE"),
            ("in a child: sendall", "raises ConnectionRefusedError ECONNREFUSED", "raises BrokenPipeError EPIPE"),
            ("in a child: connect", "raises OSError EINVAL", "raises OSError EISCONN"),
            ("in a child: shutdown", "raises OSError ENOTCONN", "None"),
        ],
        [
            ("in a child: connect", "raises OSError EINVAL", "None"),
            ("in a child: send", "raises BrokenPipeError EPIPE", "raises ConnectionResetError ECONNRESET"),
            ("in a child: recv", "b'x'", "raises ConnectionResetError ECONNRESET"),
            ("in a child: recv", "b''", "raises TimeoutError"),
            (LOOK + "in a child: recv", "IN|OUT, 0 unread", "OUT, 0 unread"),
        ],
    ),
    "a program that was started takes": (
        [*PAIR, "h1 = start()", 'h1.do("c.recv(5)")', "c.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)"],
        "c",
        [
            ("getsockopt(SO_ERROR)", "0", "104"),
            ("getsockopt(SO_ERROR)", "0", "32"),
            ("recvfrom", "(b'', None)", "raises ConnectionRefusedError ECONNREFUSED"),
            (
                "connect",
                "raises ConnectionAbortedError ECONNABORTED",
                "raises ConnectionRefusedError ECONNREFUSED",
            ),
            ("recv", "b''", "raises ConnectionResetError ECONNRESET"),
            ("connect", "raises OSError EISCONN", "None"),
        ],
        [
            ("getsockopt(SO_ERROR)", "104", "0"),
            ("getsockopt(SO_ERROR)", "0", "103"),
            ("recv", "b''", "raises BrokenPipeError EPIPE"),
            ("send", "1", "raises ConnectionResetError ECONNRESET"),
            ("connect", "None", "raises OSError EISCONN"),
            ("in a child: recv", "b''", "raises BrokenPipeError EPIPE"),
            ("recv", "b'x'", "raises ConnectionResetError ECONNRESET"),
        ],
    ),
    "an AF_UNIX socket that has listened, or": (
        [PAIR[0], "a.listen()", "h1 = start()", "a.shutdown(2)", "a.connect(NOWHERE)", 'h1.do("a.recv(5)")'],
        "a",
        [
            ("in a child: recv", "b''", "raises OSError ENOTCONN"),
            (LOOK + "in a child: shutdown", "IN|OUT|HUP|RDHUP, 0 unread", "OUT|HUP, 0 unread"),
            ("in a child: recv", "raises OSError ENOTCONN", "b''"),
            ("in a child: recv", "raises TimeoutError", "raises ConnectionResetError ECONNRESET"),
            ("in a child: send", "raises BrokenPipeError EPIPE", "raises TimeoutError"),
            ("in a child: shutdown", "raises OSError ENOTCONN", "None"),
        ],
        [
            ("in a child: recv", "b''", "b'x'"),
            ("in a child: shutdown", "None", "raises OSError ENOTSUP"),
            ("recv", "b''", "raises OSError ENOTCONN"),
            (LOOK + "in a child: recv", "OUT|HUP, 0 unread", "IN|OUT|HUP|RDHUP, 0 unread"),
        ],
    ),
    "what a child connects": (
        [
            *[*PAIR, "c.close()", "h1 = fork()", "b.connect(NOWHERE)", "b.shutdown(socket.SHUT_RDWR)"],
            *['h1.do("b.connect(a.getsockname())")', "b.getpeername()"],
        ],
        "b",
        [
            ("getpeername", "('127.0.0.1', 'port')", "raises OSError ENOTCONN"),
            ("getsockname", "('127.0.0.1', 'port')", "('0.0.0.0', 'port')"),
        ],
        [
            ("getpeername", "('127.0.0.1', 'port')", "raises OSError EBADF"),
            ("getsockname", "('127.0.0.1', 'port')", "raises OSError EBADF"),
            ("send", "1", "raises BrokenPipeError EPIPE"),
        ],
    ),
    "a port is of": (
        ["a = socket.socket()", "h1 = fork()", "a.bind(('127.0.0.1', 0))", 'h1.do("a.listen()")'],
        "a",
        [("in a child: listen", "None", "raises OSError EADDRINUSE")],
        [
            ("in a child: listen", "None", "raises OSError EINVAL"),
            ("in a child: listen", "raises OSError EADDRINUSE", "None"),
        ],
    ),
    "a connection is served": (
        [PAIR[0], "a.listen()", PAIR[3], "h1 = fork()", 'h1.do("b.connect(a.getsockname())")', PAIR[5], "h1.kill()"],
        "b",
        [(LOOK + "kill", "OUT, 0 unread", "IN|OUT|HUP|RDHUP, 0 unread")],
        [
            (LOOK + "kill", "OUT, 0 unread", "IN|OUT|RDHUP, 0 unread"),
            (LOOK + "kill", "IN|OUT|HUP|RDHUP, 0 unread", "OUT, 0 unread"),
            ("kill", "killed", "raises OSError ESRCH"),
        ],
    ),
    "whoever ends": (
        [*PAIR, "a.close()", "c.shutdown(socket.SHUT_WR)", "b.shutdown(socket.SHUT_RDWR)", "b.bind(c.getsockname())"],
        "b",
        [("bind", "raises OSError EADDRINUSE", "None")],
        [
            ("bind", "None", "raises OSError EADDRINUSE"),
            ("bind", "raises OSError EADDRINUSE", "raises OSError EINVAL"),
            ("bind", "raises OSError EINVAL", "None"),
        ],
    ),
    "who has shut down both": (
        [*FULL, "c.shutdown(socket.SHUT_RDWR)", "h1 = start()"],
        "b",
        [
            (LOOK + "start", "IN|OUT|ERR|HUP|RDHUP, 5 unread", "IN|OUT|HUP|RDHUP, 5 unread"),
            (LOOK + "start", "IN|RDHUP, 0 unread", "IN|OUT|ERR|HUP|RDHUP, 0 unread"),
        ],
        [
            (LOOK + "start", "RDHUP, 0 unread", "IN|OUT|ERR|HUP|RDHUP, 0 unread"),
            (LOOK + "start", "IN|OUT|HUP|RDHUP, 5 unread", "IN|OUT|RDHUP, 5 unread"),
            (LOOK + "start", "IN|OUT|ERR|HUP|RDHUP, 5 unread", "IN|OUT|HUP|RDHUP, 4 unread"),
        ],
    ),
    "a buffer that the program": (
        [*PAIR, "c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20000)", "b.sendall(bytes(20000))"],
        "c",
        [(LOOK + "sendall", "IN|OUT, many unread", "IN|OUT, 19936 unread")],
        [
            (LOOK + "sendall", "IN|OUT, many unread", "OUT, 0 unread"),
            (LOOK + "sendall", "IN|OUT, 5 unread", "IN|OUT, 6 unread"),
            ("sendall", "None", "raises TimeoutError"),
        ],
    ),
    "a TCP sender": (
        [*PAIR, "fill(b)", "c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20000)", "b.close()", "drain(c)"],
        "c",
        [("drain", "empty", "end of file")],
        [
            ("drain", "end of file", "empty"),
            ("drain", "empty", "raises ConnectionResetError ECONNRESET"),
            ("recv", "raises TimeoutError", "b''"),
        ],
    ),
    "TIOCOUTQ": (
        [*PAIR, "unsent(a)"],
        "a",
        [("unsent", "raises OSError EINVAL", "0"), ("unsent", "3", "0")],
        [("unsent", "raises OSError EBADF", "0"), ("unsent", "0", "raises OSError EINVAL")],
    ),
    "how much fits": (
        FULL,
        "b",
        [(LOOK + "fill", "0, 0 unread", "OUT, 0 unread"), ("send", "raises TimeoutError", "5")],
        [
            (LOOK + "fill", "0, 0 unread", "IN|OUT, 0 unread"),
            (LOOK + "fill", "0, 0 unread", "OUT, 1 unread"),
            ("send", "raises TimeoutError", "raises BlockingIOError EAGAIN"),
            ("recv", "raises TimeoutError", "b'x'"),
        ],
    ),
    "a reset is told": (
        LATE,
        "c",
        [(LOOK + "close", "IN|OUT|ERR|HUP|RDHUP, many unread", "IN|OUT, many unread")],
        [
            (LOOK + "close", "IN|OUT|ERR|HUP|RDHUP, many unread", "OUT, 0 unread"),
            (LOOK + "close", "IN|OUT, many unread", "IN|OUT|ERR|HUP|RDHUP, many unread"),
        ],
    ),
    "connect() to an AF_UNIX socket that was": (
        [PAIR[0], "a.shutdown(socket.SHUT_RDWR)", "h1 = fork()", *PAIR[2:5], "a.close()"],
        "b",
        [
            (LOOK + "close", "IN|OUT|RDHUP, 0 unread", "IN|OUT|ERR|HUP|RDHUP, 0 unread"),
            (LOOK + "close", "OUT, 0 unread", "IN|OUT|ERR|HUP|RDHUP, 0 unread"),
        ],
        [
            (LOOK + "close", "IN|OUT|ERR|HUP|RDHUP, 0 unread", "IN|OUT|RDHUP, 0 unread"),
            (LOOK + "close", "OUT, 0 unread", "IN|OUT|RDHUP, 0 unread"),
            ("close", "None", "raises OSError EBADF"),
        ],
    ),
    "an AF_UNIX socket that was": (
        DEAF,
        "c",
        [(LOOK + "send", "IN|OUT|RDHUP, 1 unread", "IN|OUT|RDHUP, 0 unread")],
        [
            (LOOK + "send", "IN|OUT|RDHUP, 0 unread", "IN|OUT|RDHUP, 1 unread"),
            (LOOK + "send", "IN|OUT|RDHUP, 1 unread", "OUT, 0 unread"),
        ],
    ),
    "the kernel says ERR": (
        QUIET,
        "b",
        [(LOOK + "close", "IN|OUT|ERR|HUP|RDHUP, 0 unread", "IN|OUT|HUP|RDHUP, 0 unread")],
        [
            (LOOK + "close", "IN|OUT|HUP|RDHUP, 0 unread", "IN|OUT|ERR|HUP|RDHUP, 0 unread"),
            (LOOK + "close", "IN|OUT|ERR|HUP|RDHUP, 0 unread", "OUT, 0 unread"),
            (LOOK + "close", "IN|OUT|ERR|HUP|RDHUP, 0 unread", "IN|OUT|HUP|RDHUP, 1 unread"),
        ],
    ),
    "TCP enlarges": (
        [*PAIR, "b.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)"],
        "b",
        [("getsockopt(SO_SNDBUF)", "2626560", "16384")],
        [("getsockopt(SO_SNDBUF)", "16384", "2626560"), ("getsockopt(SO_SNDBUF)", "16384", "0")],
    ),
    "after shutdown(SHUT_RD)": (
        [*PAIR, "b.shutdown(socket.SHUT_RD)", "c.close()", "state(b)"],
        "b",
        [("state", "peer ended", "established")],
        [("state", "established", "peer ended"), ("state", "peer ended", "closed")],
    ),
    "listen()'s number": (
        CROWD,
        "d",
        [("connect", "raises TimeoutError", "None"), (LOOK + "connect", "0, 0 unread", "OUT, 0 unread")],
        [("connect", "None", "raises TimeoutError"), ("connect", "raises TimeoutError", "raises OSError EINVAL")],
    ),
}


def test_a_listener_that_was_shut_down_has_no_name_for_a_program() -> None:
    lines = [
        PAIR[0],
        "a.listen()",
        "d = a.dup()",
        "d.shutdown(socket.SHUT_RD)",
        "h1 = start()",
        "h1.do(\"a.send(b'x')\")",
    ]
    kind = Kind("in a child: send", "raises BrokenPipeError EPIPE", "raises OSError ENOTCONN")
    for fewer, is_expected in (
        (lines, True),
        (lines[:3] + lines[4:], False),
        ([*lines[:3], *lines[4:], lines[3]], False),
    ):
        assert (without_expected(fewer, Difference(kind, len(fewer) - 1, "a")) is not None) == is_expected, fewer


PROGRAMS_SEND = Kind("in a child: send", "raises BrokenPipeError EPIPE", "raises OSError ENOTCONN")
CORKS = Kind(LOOK + "sendmsg", "OUT, 0 unread", "IN|OUT, 1 unread")
CORKING = "b.sendmsg([b'x'], [], socket.MSG_MORE)"
SENDS = "h1.do(\"c.send(b'x')\")"
REUSED = {
    # lines, the socket at which what differs, and whether it must
    "a name that a program finds means another socket now": (
        [*PAIR, "c = socket.socket()", "h1 = start()", SENDS],
        "c",
        PROGRAMS_SEND,
        True,
    ),
    "or did only later": ([*PAIR, "h1 = start()", "c = socket.socket()", SENDS], "c", PROGRAMS_SEND, False),
    "or of its duplicate": (
        [*PAIR, "d = c.dup()", "c = socket.socket()", "h1 = start()", SENDS.replace("c.send", "d.send")],
        "d",
        PROGRAMS_SEND,
        False,
    ),
    "a name has been a duplicate of both ends": (
        [*PAIR, "d = c.dup()", "f = b.dup()", "f = d.dup()", CORKING],
        "c",
        CORKS,
        True,
    ),
    "what is corked is not seen at its own end": (
        [*PAIR, "f = c.dup()", "f = b.dup()", CORKING],
        "f",
        CORKS,
        False,
    ),
    "a detached one is the same socket": (
        [*PAIR, "f = b.dup()", "f = socket.socket(fileno=f.detach())", CORKING],
        "f",
        CORKS,
        False,
    ),
}


@pytest.mark.parametrize("name", REUSED)
def test_the_table_knows_which_socket_a_name_means(name: str) -> None:
    lines, socket, kind, is_expected = REUSED[name]
    found = Difference(kind, len(lines) - 1, socket)
    assert (without_expected(lines, found) is not None) == is_expected


def test_a_child_connects_from_another_port_where_its_parent_has_bound() -> None:
    lines = [*PAIR[:2], "a.listen()", PAIR[3], 'b.bind(("127.0.0.1", 0))', "h1 = fork()"]
    lines += ['h1.do("b.connect(a.getsockname())")', "c, _ = a.accept()"]
    address = "('socket(2, 1, 0, timeout=0.06)', ('127.0.0.1', 'port'))"
    for fewer, utp, is_expected in (
        (lines, address, True),
        (lines[:4] + lines[5:], address, False),  # which is not bound
        (lines[:5] + lines[7:], address, False),  # by whom it was bound
        (lines, "raises TimeoutError", False),
    ):
        found = Difference(Kind("accept", address, utp), len(fewer) - 1, "a")
        assert (without_expected(fewer, found) is not None) == is_expected, fewer


def test_a_child_that_has_the_listener_keeps_it() -> None:
    lines, _, must, _ = NARROW["connect() to an AF_UNIX socket that was"]
    for fewer, name in (
        ([lines[0], *lines[2:]], "b"),  # which was not shut down
        ([*lines[:2], lines[3], lines[2], *lines[4:]], "b"),  # which listened before
        (lines, "a"),  # who is no peer
        (["d = socket.socket()", *lines], "d"),
    ):
        found = Difference(Kind(*must[0]), len(fewer) - 1, name)
        assert without_expected(fewer, found) is None, fewer


def test_what_a_listener_accepts_that_can_send_nothing_leaves_no_byte() -> None:
    lines = [PAIR[0], "a.shutdown(socket.SHUT_RDWR)", *PAIR[2:], 'b.send(b"x")']
    must = NARROW["the kernel says ERR"][2][0]
    for socket, is_expected in (("c", True), ("b", False)):
        found = Difference(Kind(*must), len(lines) - 1, socket)
        assert (without_expected(lines, found) is not None) == is_expected


def test_what_a_listener_after_shut_rd_accepts_receives_nothing() -> None:
    lines = [PAIR[0], "a.shutdown(socket.SHUT_RD)", *PAIR[2:5], 'b.send(b"x")', PAIR[5], "c.recv(5)"]
    must = NARROW["an AF_UNIX socket that was"][2][0]
    for socket, is_expected in (("c", True), ("b", False)):
        found = Difference(Kind(LOOK + "recv", *must[1:]), len(lines) - 1, socket)
        assert (without_expected(lines, found) is not None) == is_expected


HAS = ("None", "raises ConnectionRefusedError ECONNREFUSED")
SHUT_DOWN = [*ITSELF[:2], "a.shutdown(socket.SHUT_RDWR)", "a.settimeout(0)", ITSELF[2]]
DEAD = [*PAIR, "a.close()", "c.close()", "d = socket.socket()"]
OWN_PEERS = {
    # lines, the socket, what TCP and uTP say, and whether it must differ
    "bound to the address that another socket had": (
        [*DEAD, "d.bind(b.getsockname())", "d.connect(b.getsockname())"],
        "d",
        HAS,
        True,
    ),
    "or a socket that was accepted had": (
        [*DEAD, "d.bind(a.getsockname())", "d.connect(c.getsockname())"],
        "d",
        HAS,
        True,
    ),
    "bound elsewhere": ([*DEAD, 'd.bind(("127.0.0.1", 0))', "d.connect(b.getsockname())"], "d", HAS, False),
    "bound to nothing": (
        ["b = socket.socket()", DEAD[-1], "d.bind(b.getsockname())", "d.connect(b.getsockname())"],
        "d",
        HAS,
        False,
    ),
    "accepted there": ([*PAIR, "c.connect(a.getsockname())"], "c", HAS, False),
    "send() tells of it": ([*SHUT_DOWN, "fill(a)"], "a", ("raises BrokenPipeError EPIPE", HAS[1]), True),
    "recv() does": ([*SHUT_DOWN, "a.recvfrom(5)"], "a", ("(b'', None)", HAS[1]), True),
    "in a second thread": (
        [*SHUT_DOWN, 'meanwhile("a.recv(5)", "a.send(b\'x\')")'],
        "a",
        ("b''", HAS[1]),
        True,
    ),
    "not of another socket": ([*SHUT_DOWN, "b.recv(5)"], "b", ("b''", HAS[1]), False),
    "nor of a later attempt": ([*SHUT_DOWN, "a.connect(NOWHERE)", "a.recv(5)"], "a", ("b''", HAS[1]), False),
    "nor another error": ([*SHUT_DOWN, "a.recv(5)"], "a", ("b''", "raises ConnectionResetError ECONNRESET"), False),
}


@pytest.mark.parametrize("name", OWN_PEERS)
def test_a_socket_that_is_connected_to_itself(name: str) -> None:
    lines, socket, (tcp, utp), is_expected = OWN_PEERS[name]
    found = Difference(Kind(comparing.call_of(lines[-1]), tcp, utp), len(lines) - 1, socket)
    assert (without_expected(lines, found) is not None) == is_expected


def test_of_two_calls_at_a_time_it_is_one_that_differs() -> None:
    lines = [*PAIR, 'meanwhile("b.send(b\'x\')", "c.shutdown(socket.SHUT_WR)")']
    looks: list[dict[str, str]] = [{} for _ in lines]
    tcp = Trace([*[None] * 6, ("thread", 1, "here", None)], looks)
    for utp, told in (
        (("thread", 0, "here", None), (Kind("send", "1", "0"), "b")),
        (("thread", 1, "here", 5), (Kind("shutdown", "None", "5"), "c")),
        (("thread", 0, "here", 5), (Kind("shutdown", "None", "5"), "c")),
        ("hangs", (Kind("meanwhile(send, shutdown)", "('thread', 1, 'here', None)", "hangs"), "")),
    ):
        found = comparing.first_difference(lines, tcp, Trace([*[None] * 6, utp], looks))
        assert found is not None and (found.kind, found.socket) == told
    results = run(lines, "utp", slowly=0.03).results
    assert results[-1] == ("thread", 1, "here", None)  # a number of bytes, and no port


def test_a_reset_that_is_told_late_is_so_to_a_second_call_too() -> None:
    both = 'meanwhile("c.sendall(bytes(10000))", "{}.shutdown(socket.SHUT_WR)")'
    for socket, tcp, utp, is_expected in (
        ("c", "raises OSError ENOTCONN", "None", True),
        ("c", "None", "raises OSError ENOTCONN", False),
        ("b", "raises OSError ENOTCONN", "None", False),
    ):
        lines = [*FULL, "b.shutdown(socket.SHUT_RDWR)", both.format(socket)]
        found = Difference(Kind("shutdown", tcp, utp), len(lines) - 1, socket)
        assert (without_expected(lines, found) is not None) == is_expected
    alone = [*FULL, "b.shutdown(socket.SHUT_RDWR)", "c.shutdown(socket.SHUT_WR)"]
    found = Difference(Kind("shutdown", "raises OSError ENOTCONN", "None"), len(alone) - 1, "c")
    assert without_expected(alone, found) is None


def test_a_child_does_not_keep_what_was_connected_anew() -> None:
    lines = [*PAIR[:3], "d = socket.socket()", "b = socket.socket()", "b.connect(NOWHERE)", "h1 = fork()"]
    lines += ["b.connect(a.getsockname())", PAIR[5], "b.close()"]
    kind = (LOOK + "close", "OUT, 0 unread", "IN|OUT|RDHUP, 0 unread")
    for fewer, socket, is_expected in (
        (lines, "c", True),
        ([*lines[:5], "b.listen()", lines[6], "b.shutdown(socket.SHUT_RD)", *lines[7:]], "c", True),
        (lines, "d", False),
        ([line for line in lines if "NOWHERE" not in line], "c", False),  # of which the child has the same
        ([*lines[:6], *lines[7:9], "h1 = fork()", lines[9]], "c", False),
    ):
        found = Difference(Kind(*kind), len(fewer) - 1, socket)
        assert (without_expected(fewer, found) is not None) == is_expected, fewer
    assert without_expected(lines, Difference(Kind(kind[0], kind[2], kind[1]), len(lines) - 1, "c")) is None


def test_a_socket_that_was_shut_down_does_not_see_it_first() -> None:
    lines, _, must, _ = NARROW["who has shut down both"]
    for socket, is_expected in (("b", True), ("c", False)):
        found = Difference(Kind(*must[1]), len(lines) - 1, socket)
        assert (without_expected(lines, found) is not None) == is_expected


def test_only_the_address_of_a_connection_that_has_ended_is_kept() -> None:
    lines, socket, must, _ = NARROW["whoever ends"]
    for missing, is_expected in (("b.shutdown(socket.SHUT_RDWR)", True), ("c.shutdown(socket.SHUT_WR)", False)):
        fewer = [line for line in lines if line != missing]
        found = Difference(Kind(*must[0]), len(fewer) - 1, socket)
        assert (without_expected(fewer, found) is not None) == is_expected


def test_what_was_shut_down_both_ways_receives_if_it_is_connected_afterwards() -> None:
    shut = "b.shutdown(socket.SHUT_RDWR)"
    for lines, is_expected in (([*PAIR[:4], shut, *PAIR[4:]], True), ([*PAIR, shut], False)):
        kind = Kind(LOOK + "send", "IN|OUT|HUP|RDHUP, 1 unread", "IN|OUT|HUP|RDHUP, 0 unread")
        found = Difference(kind, len(lines), "b")
        assert (without_expected([*lines, 'c.send(b"x")'], found) is not None) == is_expected


def test_a_buffer_grows_unless_the_program_has_set_it() -> None:
    asked = "c.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)"
    for name, is_expected in (("b", True), ("c", False), ("a", True)):
        lines = [*PAIR, f"{name}.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20000)", asked]
        found = Difference(Kind("getsockopt(SO_SNDBUF)", "2626560", "16384"), len(lines) - 1, "c")
        assert (without_expected(lines, found) is not None) == is_expected, name
    lines = [*PAIR[:3], "a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20000)", *PAIR[3:], asked]
    assert without_expected(lines, Difference(found.kind, len(lines) - 1, "c")) is None  # of its listener before


def test_the_table_is_no_wider_than_its_reasons() -> None:
    for reason, (lines, socket, must, must_not) in NARROW.items():
        for kind in must:
            fewer = without_expected(lines, Difference(Kind(*kind), len(lines) - 1, socket))
            assert fewer is not None and fewer.reason.startswith(reason), kind
        for kind in must_not:
            assert without_expected(lines, Difference(Kind(*kind), len(lines) - 1, socket)) is None, kind
    assert len(NARROW) == len(EXPECTED)


@pytest.mark.parametrize("reason", ["how much fits", "an AF_UNIX socket that was", "the kernel says ERR"])
def test_the_table_is_about_one_socket(reason: str) -> None:
    lines, socket, must, _ = NARROW[reason]
    other = {"b": "c", "c": "b"}[socket]
    found = Difference(Kind(*must[0]), len(lines) - 1, other)
    assert without_expected(lines, found) is None
    assert without_expected([*lines, f"d = {socket}.dup()"], Difference(found.kind, len(lines), "d")) is not None

"""What must differ between TCP and uTP, and why: the one table.

An entry names lines. Where a sequence differs and has such lines, they are taken out, and the rest is run again: so an
entry explains what those lines cause, and hides nothing beside them. It says as well what the difference looks like and
at which socket it shows, no wider than its reason. What is merely not done yet does not belong here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from compat.fuzz.compare import Difference, Kind

_NAME: Final = re.compile(r"\b[a-f]\b(?![\"'])")  # of a socket; the b of b"x" is none
_FIRST_LETTER: Final = 0x0410  # which no line has: Cyrillic


class Case:
    """A difference, and the lines up to it.

    lines    with one letter for each socket: a duplicate has that of its original, and a name that is given to another
             socket has another one from then on, but not in a child that was there before
    socket   at which the difference shows
    """

    def __init__(self, lines: list[str], found: Difference) -> None:
        self.kind: Kind = found.kind
        self.lines: list[str] = []
        self._count = 0
        self._letters: dict[str, str] = {}
        children: dict[str, dict[str, str]] = {}
        for text in lines[: found.line + 1]:
            child = re.match(r"(h\d)( = )?", text)
            if child is not None and child[2]:
                children[child[1]] = dict(self._letters)
            known = children.get(child[1], self._letters) if child is not None else self._letters
            self.socket = self._letter(known, found.socket)
            self.lines.append(self._with_letters(text, known))
        self.line = self.lines[-1]
        if _is_look(self.kind):
            self.socket = self._letter(self._letters, found.socket)

    def _letter(self, known: dict[str, str], name: str) -> str:
        if name not in known:
            known[name] = chr(_FIRST_LETTER + self._count)
            self._count += 1
        return known[name]

    def _with_letters(self, text: str, known: dict[str, str]) -> str:
        def lettered(part: str) -> str:
            return _NAME.sub(lambda name: self._letter(known, name[0]), part)

        made = re.match(r"([a-f])((?:, _)? = )(.*)", text)
        if made is None:
            return lettered(text)
        name, between, expression = made.groups()
        same = re.match(r"(?:socket\.socket\(fileno=)?([a-f])\.(?:dup|detach)\(", expression)
        called = lettered(expression)
        if same is not None:
            known[name] = known[same[1]]
        else:
            known.pop(name, None)
        return self._letter(known, name) + between + called

    def is_of(self, name: str) -> bool:
        """Whether it is this socket that differs."""
        return self.socket == name

    def was_accepted_from(self, name: str) -> bool:
        """Whether the socket that differs was accepted by this one."""
        return any(re.match(rf"{self.socket}, _ = {name}\.accept\(", line) for line in self.lines)

    def has_set(self, name: str, option: str) -> bool:
        """Whether the program has set an option of this socket, or of its listener before it was accepted."""
        for index, line in enumerate(self.lines):
            setting = re.match(rf"(\w)\.setsockopt\(.*{option}", line)
            if setting is None:
                continue
            if setting[1] == name:
                return True
            if any(re.match(rf"{name}, _ = {setting[1]}\.accept\(", later) for later in self.lines[index:]):
                return True
        return False

    def have_one_address(self, name: str, other: str) -> bool:
        """Whether these are one socket, or one was bound to the address that the other had, or where that was accepted.
        What is accepted has a listener's address, but no port of its own.
        """
        pairs = []
        has_address: set[str] = set()
        for line in self.lines:
            made = re.search(r"(\w), _ = (\w)\.accept\(|(\w)\.bind\((\w)\.getsockname", line)
            if made is not None and name not in made.groups()[:2] and (made[2] or made[4]) in has_address:
                pairs.append({made[1] or made[3], made[2] or made[4]})
            has_address |= set(re.findall(r"(\w)(?:\.(?:bind|connect|connect_ex|listen)\(|, _ = )", line))
        same = {name}
        for _ in pairs:
            same = same.union(*(pair for pair in pairs if pair & same))
        return other in same

    def last_connects_to(self, name: str, target: str) -> bool:
        """Whether the last connect() of this socket, before the line that differs, was to the other one's address."""
        all_of_it = [line for line in self.lines[:-1] if re.search(rf"\b{name}\.connect(?:_ex)?\(", line)]
        return bool(all_of_it) and f"({target}.getsockname" in all_of_it[-1]

    def has_shut_both(self, name: str) -> bool:
        """Whether both halves of this socket were shut down."""
        halves = {how for line in self.lines for how in re.findall(rf"\b{name}\.shutdown\(socket\.SHUT_(\w+)", line)}
        return "RDWR" in halves or halves == {"RD", "WR"}

    def was_replaced(self, name: str, lines: slice) -> bool:
        """Whether some process has put another socket in the place of this one, at these lines: of a listener that it
        has shut down, where one listens that was shut down, and for another attempt to connect.
        """
        past: set[str] = set()
        numbers = range(len(self.lines))[lines]
        for index, line in enumerate(self.lines):
            for call in re.findall(rf"\b{name}(\.listen|\.shutdown|\.connect|, _ = )", line):
                causes = {".shutdown": {".listen"}, ".listen": {".shutdown"}, ".connect": {".connect", ", _ = "}}
                if index in numbers and causes.get(call, set()) & past:
                    return True
                past.add(call)
        return False

    def is_listener(self, name: str) -> bool:
        """Whether this socket has listened."""
        return any(re.search(rf"\b{name}\.listen\(", line) for line in self.lines)


@dataclass(frozen=True)
class Expected:
    """Lines with these words may make a sequence differ, at that line or later.

    words           a regular expression, searched in each line
    is_it           whether a difference is what the reason speaks of; also given the groups of `words`
    is_at_once      only at that line
    """

    words: str
    reason: str
    is_it: Callable[..., bool]
    is_at_once: bool = False

    def causes(self, case: Case) -> list[int]:
        """The numbers of the lines that this speaks of."""
        found = []
        for index, line in enumerate(case.lines):
            match = re.search(self.words, line)
            if match is None or (self.is_at_once and index < len(case.lines) - 1):
                continue
            if self.is_it(case, *match.groups()):
                found.append(index)
        return found


@dataclass(frozen=True)
class Fewer:
    """A sequence without the lines that must make it differ."""

    lines: list[str]
    reason: str


_NOTHING_THERE: Final = ("raises BlockingIOError EAGAIN", "raises TimeoutError")
_NOT_CONNECTED: Final = ("raises OSError ENOTCONN", "raises BrokenPipeError EPIPE", "raises OSError EINVAL")
_CONNECTED: Final = ("None", "0", "raises BlockingIOError EINPROGRESS", "115", "raises OSError EISCONN", "106")
_REFUSED: Final = ("raises ConnectionRefusedError ECONNREFUSED", "111", "raises ConnectionAbortedError ECONNABORTED")
_ABORTED: Final = ("raises ConnectionAbortedError ECONNABORTED", "103")  # after shutdown()
_NO_BYTES: Final = ("b''", "(b''", "0", "(0,")
_SMALL_BACKLOG: Final = r"\.listen\((?:0|1|-1|5)\)"


def _flags(look: str) -> set[str]:
    """What poll() says, in a look at a socket or by itself."""
    return set(look.partition(",")[0].split("|")) - {"0"}


def _unread(look: str) -> int:
    """FIONREAD, in a look at a socket; -1 where it says something else."""
    count = look.partition(", ")[2].removesuffix(" unread")
    return 1 << 30 if count == "many" else int(count) if count.isdecimal() else -1


def _is_look(kind: Kind) -> bool:
    return kind.call.startswith("poll after ")


def _is_poll(kind: Kind) -> bool:
    return _is_look(kind) or kind.call in ("polled", "epolled")


def _is_refused_at_once(case: Case) -> bool:
    """Of urgent data."""
    return case.kind.utp == "raises OSError ENOTSUP"  # the same number as EOPNOTSUPP


def _is_corked(case: Case, name: str) -> bool:
    """Whether uTP has brought what TCP still holds back, or a peer that is gone has answered it by a reset."""
    tcp, utp = case.kind.tcp, case.kind.utp
    if _is_look(case.kind) and case.is_of(name):
        return (
            _flags(tcp) < _flags(utp) and _flags(utp) - _flags(tcp) <= {"ERR", "HUP"} and _unread(tcp) == _unread(utp)
        )
    if _is_look(case.kind):
        return _flags(utp) - _flags(tcp) <= {"IN"} and _flags(tcp) <= _flags(utp) and _unread(tcp) < _unread(utp)
    return "recv" in case.kind.call and utp.startswith("b'") and (tcp in _NOTHING_THERE or utp.startswith(tcp[:-1]))


def _is_own_peer(case: Case, name: str, target: str) -> bool:
    """Whether TCP has connected a socket to itself, and uTP has been refused; one that does not block hears of it by
    SO_ERROR, or by the next call.
    """
    if not case.have_one_address(name, target):
        return False
    tcp, utp = case.kind.tcp, case.kind.utp
    if re.search(rf"\b{name}\.connect(?:_ex)?\({target}\.getsockname", case.line) is None:
        return case.is_of(name) and case.last_connects_to(name, target) and _is_told_of_refusal(tcp, utp)
    if _is_look(case.kind):
        return case.is_of(name) and "HUP" not in _flags(tcp) and "HUP" in _flags(utp)
    return tcp in (*_CONNECTED, *_ABORTED) and utp in _REFUSED


def _is_told_of_refusal(tcp: str, utp: str) -> bool:
    """Whether only uTP says that an attempt was refused, of a call that came after it."""
    return (tcp, utp) == ("0", "111") or (utp == _REFUSED[0] and tcp not in _REFUSED)


def _is_shut_elsewhere(case: Case, name: str) -> bool:
    """Whether a listener that a child has shut down looks to the parent like an AF_UNIX one, or its backlog does."""
    if not case.is_listener(name) or not case.kind.call.startswith("poll after in a child: shutdown"):
        return False
    if case.is_of(name):
        return _flags(case.kind.tcp) == {"OUT", "HUP"} and _flags(case.kind.utp) <= {"IN", "HUP", "RDHUP"}
    return {"ERR", "HUP"} <= _flags(case.kind.tcp) and not {"ERR", "HUP"} & _flags(case.kind.utp)


def _is_unknown(case: Case, holder: str, name: str) -> bool:
    """Whether a program was started with a socket that was neither connected nor listening, and finds an AF_UNIX one.

    TCP says that it is not connected, or the program has connected it: the class of AF_UNIX takes no such address.
    """
    begun = next((index for index, line in enumerate(case.lines) if line.startswith(f"{holder} = start(")), None)
    if begun is None or not case.is_of(name):
        return False
    its = rf"\b{name}"
    has_name = False
    for line in case.lines[:begun]:
        if re.search(rf"{its}(\.listen\(|, _ = )", line):
            has_name = True
        elif re.search(rf"{its}\.shutdown\(", line) and any(re.search(rf"{its}\.listen", each) for each in case.lines):
            has_name = False  # no longer a listener: another socket is in its place
    if has_name:
        return False
    if case.kind.utp.startswith("raises TypeError") or "connect" in case.kind.call:
        # Its class takes no such address, and knows of itself none but "".
        return case.kind.call.endswith("connect") and case.kind.utp.startswith(("raises TypeError", _NOT_CONNECTED[2]))
    if case.kind.tcp == "b''" and any(re.search(rf"{its}\.shutdown\(", line) for line in case.lines):
        return "recv" in case.kind.call and case.kind.utp in _NOT_CONNECTED  # TCP's own is at its end
    return case.kind.tcp in _NOT_CONNECTED and case.kind.utp in (*_NOT_CONNECTED, "None", "b''")


def _is_untold(case: Case, holder: str, name: str) -> bool:
    """Whether a program that was started does not know what has happened to a connection, or been said of it."""
    if not any(line.startswith(f"{holder} = start(") for line in case.lines) or not case.is_of(name):
        return False
    call, tcp, utp = case.kind.call, case.kind.tcp, case.kind.utp
    if call == "in a child: recv":
        return tcp in ("b''", _REFUSED[0]) and utp == "raises ConnectionResetError ECONNRESET"
    if call == "poll after in a child: recv":
        return _flags(tcp) - _flags(utp) == {"ERR"} and _flags(utp) < _flags(tcp)
    if call.startswith("in a child: send"):
        return tcp in ("raises ConnectionResetError ECONNRESET", _REFUSED[0]) and utp == "raises BrokenPipeError EPIPE"
    others = ("None", "raises OSError EINVAL", "raises BlockingIOError EINPROGRESS", *_REFUSED)
    if call == "in a child: shutdown":
        return not case.is_listener(name) and (tcp, utp) == ("raises OSError ENOTCONN", "None")
    return call == "in a child: connect" and tcp in others and utp == "raises OSError EISCONN"


def _is_taken(case: Case, holder: str, name: str) -> bool:
    """Whether the error that a program has been told of is told here once more; or that the connection stands, which
    after a program's shutdown() is told no more.
    """
    if not any(line.startswith(f"{holder} = start(") for line in case.lines) or not case.is_of(name):
        return False
    call, tcp, utp = case.kind.call, case.kind.tcp, case.kind.utp
    if call.startswith("in a child: "):
        return False
    errors = ("raises ConnectionResetError ECONNRESET", _REFUSED[0])
    if call == "getsockopt(SO_ERROR)":
        return tcp == "0" and utp in ("104", "111", "32")
    if call.startswith("send"):
        return tcp == "raises BrokenPipeError EPIPE" and utp in errors
    if call.startswith("recv"):
        return tcp.startswith(_NO_BYTES) and utp in errors
    once = ("raises OSError EISCONN", "None"), ("106", "0"), (_ABORTED[0], _REFUSED[0]), (_ABORTED[1], _REFUSED[1])
    return (tcp, utp) in once


def _is_replaced(case: Case, holder: str, name: str) -> bool:
    """Whether one process has put another socket in the place of its fd, of a listener that it has shut down or for
    another attempt to connect, and a second process shows that it has the old one.
    """
    begun = next((index for index, line in enumerate(case.lines) if line.startswith(f"{holder} = ")), None)
    if begun is None or not case.is_of(name):
        return False
    call, tcp, utp = case.kind.call, case.kind.tcp, case.kind.utp
    if _is_look(case.kind):
        cause = re.fullmatch(r"poll after in a child: (connect(?:_ex)?|listen|shutdown)", call)
        if cause is None or "HUP" not in _flags(utp) or _unread(utp):
            return False
        return case.was_replaced(name, slice(begun, -1 if cause[1] == "shutdown" else None))
    if not call.startswith("in a child: ") or not case.was_replaced(name, slice(begun, -1)):
        return False
    if utp in (*_NOT_CONNECTED, "raises TimeoutError", "raises OSError EISCONN"):
        return True
    if call == "in a child: recv" and utp in ("b''", "raises ConnectionResetError ECONNRESET"):
        return tcp in (*_NOT_CONNECTED, *_NOTHING_THERE, "b''")  # that of the first attempt has ended
    return (call, tcp, utp) in (
        ("in a child: getsockopt", "0", "1"),
        ("in a child: shutdown", "raises OSError ENOTCONN", "None"),
    )


def _is_connected_elsewhere(case: Case, holder: str, name: str) -> bool:
    """Whether the name of a socket, or its peer's, is not that of what a child has connected: the child had the one in
    whose place this is. poll() may show no difference where both halves were shut down before.
    """
    call = rf"{holder}\.do\(\"{name}\.connect"
    at = next(index for index, line in enumerate(case.lines) if re.match(call, line))
    begun = next(index for index, line in enumerate(case.lines) if line.startswith(f"{holder} = "))
    if not (case.is_of(name) and case.has_shut_both(name) and case.was_replaced(name, slice(begun, at))):
        return False
    return case.kind.call in ("getsockname", "getpeername") and (
        case.kind.utp == _NOT_CONNECTED[0] or case.kind.utp.startswith("('0.0.0.0', ")
    )


def _is_not_kept(case: Case, holder: str) -> bool:
    """Whether the peer of a socket that is closed hears of the end, where over TCP a child has kept it: but the child
    has the one in whose place listen() has put another after shutdown(), or connect() after an attempt.
    """
    closed = re.match(r"(\w)\.close\(", case.line)
    if closed is None or not _is_look(case.kind):
        return False
    name = closed[1]
    begun = next(index for index, line in enumerate(case.lines) if line.startswith(f"{holder} = "))
    tcp, utp = _flags(case.kind.tcp), _flags(case.kind.utp)
    if not (tcp < utp and utp - tcp <= {"IN", "ERR", "HUP", "RDHUP"}):
        return False
    listens = [index for index, line in enumerate(case.lines) if line.startswith(f"{name}.listen(")]
    connects = [index for index, line in enumerate(case.lines) if re.match(rf"{name}\.connect(_ex)?\(", line)]
    is_replaced = any(
        index > begun and any(line.startswith(f"{name}.shutdown(") for line in case.lines[:index]) for index in listens
    )
    is_peer = any(re.match(rf"{case.socket}\.connect(_ex)?\({name}\.", line) for line in case.lines)
    if is_replaced and is_peer and {"ERR", "HUP"} <= utp - tcp:
        return True
    return case.was_replaced(name, slice(begun, None)) and any(
        re.match(rf"{name}\.connect(_ex)?\((\w)\.", case.lines[index])
        and case.was_accepted_from(case.lines[index].partition("(")[2][0])
        for index in connects
        if index > begun
    )


def _is_port_elsewhere(case: Case, holder: str, name: str) -> bool:
    """Whether listen() is refused to one process, of a socket that another one has bound; or what it connects there
    comes from another port.
    """
    call, tcp, utp = case.kind.call.removeprefix("in a child: "), case.kind.tcp, case.kind.utp
    if tcp == utp:  # but for the number
        is_bound = any(re.search(rf"\b{name}\.bind\(", line) for line in case.lines)
        return is_bound and call in ("accept", "getpeername", "getsockname") and "'port'" in tcp
    return case.is_of(name) and (call, tcp, utp) == ("listen", "None", "raises OSError EADDRINUSE")


def _is_dead_engines(case: Case, holder: str) -> bool:
    """Whether a connection is broken that the killed process has made, or its peer has not heard of the end."""
    made = [match[1] for line in case.lines if (match := re.match(rf"{holder}\.do\(\"(\w)\.connect", line))]
    if not made or not _is_look(case.kind):
        return False
    tcp, utp = case.kind.tcp, case.kind.utp
    if any(map(case.is_of, made)):
        return "HUP" in _flags(utp) - _flags(tcp)
    missing = _flags(tcp) - _flags(utp)
    return _flags(utp) < _flags(tcp) and missing <= {"IN", "ERR", "HUP", "RDHUP"} and _unread(tcp) == _unread(utp)


def _is_waiting(case: Case, name: str) -> bool:
    """Whether bind() is refused over TCP alone, at the address of a socket that has said that nothing more follows, or
    of the listener of one.
    """
    if (case.kind.call, case.kind.tcp, case.kind.utp) != ("bind", "raises OSError EADDRINUSE", "None"):
        return False
    names = [name, *(match[1] for line in case.lines if (match := re.match(rf"(\w), _ = {name}\.accept\(", line)))]
    ends = rf"\b[{''.join(names)}]\.(shutdown\(socket\.SHUT_(WR|RDWR)\)|close\(\))"
    return any(re.search(ends, line) for line in case.lines)


def _is_divided(case: Case, name: str) -> bool:
    """Whether FIONREAD counts fewer bytes over uTP, of a socket with a buffer that the program has set."""
    tcp, utp = case.kind.tcp, case.kind.utp
    if not case.is_of(name) and not case.was_accepted_from(name):
        return False
    if case.kind.call == "unread":
        return utp.isdecimal() and (tcp == "many" or (tcp.isdecimal() and 0 < int(utp) < int(tcp)))
    return _is_look(case.kind) and _flags(tcp) == _flags(utp) and 0 < _unread(utp) < _unread(tcp)


def _is_still_coming(case: Case, name: str) -> bool:
    """Whether uTP has brought all, and TCP not yet, to a socket with a small buffer whose peer had filled it."""
    if not any("fill(" in line for line in case.lines):
        return False
    is_its = case.is_of(name) or case.was_accepted_from(name)
    return is_its and (case.kind.call, case.kind.tcp, case.kind.utp) == ("drain", "empty", "end of file")


def _is_unprobed(case: Case, name: str) -> bool:
    """Whether the one says that the connection broke, and the other not yet, where full buffers would take no more: of
    the peer of the socket that was shut down uTP may be the first to say so, since it tells of room at once.
    """
    tcp, utp = _flags(case.kind.tcp), _flags(case.kind.utp)
    is_full = any("fill(" in line for line in case.lines)
    if not (is_full and case.has_shut_both(name)):
        return False
    if not (_is_look(case.kind) and _unread(case.kind.tcp) == _unread(case.kind.utp)):
        return False
    is_known = utp < tcp or (tcp < utp and not case.is_of(name))
    return is_known and "ERR" in tcp ^ utp and tcp ^ utp <= {"OUT", "ERR", "HUP", "RDHUP"}


def _is_queue(case: Case) -> bool:
    """Whether both count bytes, or of a listener TCP counts none."""
    if case.kind.tcp.isdecimal():
        return case.kind.utp.isdecimal()
    return case.kind.tcp == "raises OSError EINVAL" and case.kind.utp == "0"


def _is_room(case: Case, name: str) -> bool:
    """Whether the one has room at the filled socket, and the other has not."""
    tcp, utp = case.kind.tcp, case.kind.utp
    if not case.is_of(name):
        return False
    if _is_poll(case.kind):
        return _flags(tcp) ^ _flags(utp) == {"OUT"} and tcp.partition(",")[2] == utp.partition(",")[2]
    if case.kind.call == "selected":
        return tcp.replace("w", "") == utp.replace("w", "")
    return "send" in case.kind.call and (tcp in _NOTHING_THERE) != (utp in _NOTHING_THERE)


def _is_late_reset(case: Case, name: str) -> bool:
    """Whether TCP says that the connection broke, and uTP so far only that there is much to receive. What poll() says
    is seen after each line; a second call of the same line may see it first, of a peer.
    """
    tcp, utp = case.kind.tcp, case.kind.utp
    if case.line.startswith("meanwhile") and case.kind.call == "shutdown":
        return (tcp, utp) == ("raises OSError ENOTCONN", "None") and not case.is_of(name)
    if not (_is_look(case.kind) and tcp.endswith("many unread") and utp.endswith("many unread")):
        return False
    return _flags(utp) < _flags(tcp) and _flags(tcp) - _flags(utp) <= {"OUT", "ERR", "HUP", "RDHUP"}


def _is_held(case: Case, name: str, how: str) -> bool:
    """Whether only FIONREAD of the socket that was shut down differs, or of what it has accepted, and uTP's is less.
    One that was shut down both ways receives where it was connected afterwards; else it answers by a reset.
    """
    tcp, utp = case.kind.tcp, case.kind.utp
    if how == "RDWR":
        order = rf"\b{name}\.shutdown\(socket\.SHUT_RDWR\).*\b{name}\.connect"
        if not case.is_of(name) or not re.search(order, "\n".join(case.lines), re.DOTALL):
            return False
    elif not (case.is_of(name) or case.was_accepted_from(name)):
        return False
    if case.kind.call == "unread":
        return utp.isdecimal() and (tcp == "many" or (tcp.isdecimal() and int(utp) < int(tcp)))
    return _is_look(case.kind) and _flags(tcp) == _flags(utp) and 0 <= _unread(utp) < _unread(tcp)


def _is_error_flag(case: Case, name: str) -> bool:
    """Whether poll() says ERR over TCP of the socket that was shut down, or of what it has accepted, and all else over
    uTP.
    """
    tcp, utp = case.kind.tcp, case.kind.utp
    if not (_is_poll(case.kind) and (case.is_of(name) or case.was_accepted_from(name))):
        return False
    return (
        _flags(tcp) - _flags(utp) == {"ERR"} and _flags(utp) < _flags(tcp) and tcp.split(",")[1:] == utp.split(",")[1:]
    )


def _is_beyond_backlog(case: Case) -> bool:
    """Whether TCP's queue is full and uTP's not yet."""
    if not any(re.search(_SMALL_BACKLOG, line) for line in case.lines):
        return False
    if _is_look(case.kind):
        return case.kind.tcp == "0, 0 unread" and case.kind.utp == "OUT, 0 unread"
    return (case.kind.tcp, case.kind.utp) in (("raises TimeoutError", "None"), ("11", "0"))


def _is_grown_buffer(case: Case, name: str, which: str) -> bool:
    """Whether TCP says more than at birth, of a buffer that the program has not set."""
    tcp, utp = case.kind.tcp, case.kind.utp
    if case.has_set(name, f"SO_{which}BUF"):
        return False
    return tcp.isdecimal() and utp.isdecimal() and int(tcp) > int(utp) > 0


def _is_unknown_end(case: Case, name: str) -> bool:
    """Whether TCP knows of the peer's end, and uTP does not."""
    ends = ("peer ended", "established"), ("closed", "we ended")
    return case.is_of(name) and case.kind.call == "state" and (case.kind.tcp, case.kind.utp) in ends


EXPECTED: Final = (
    Expected(r"MSG_OOB", "uTP has no urgent data: EOPNOTSUPP", _is_refused_at_once, is_at_once=True),
    Expected(
        r"(\w)\.send\w*\(.*MSG_MORE",
        "the kernel corks TCP's bytes by itself; an AF_UNIX pair passes them on at once",
        _is_corked,
    ),
    Expected(
        r"(\w)\.connect(?:_ex)?\((\w)\.getsockname",
        "a TCP socket may be connected to itself: both SYNs are the one. uTP's two directions have different ids",
        _is_own_peer,
    ),
    Expected(
        r"h\d\.do\(\"(\w)\.shutdown",
        "an AF_UNIX socket that has listened can do nothing else; whoever shuts it down has another one put in its "
        "place, which cannot be done in other processes",
        _is_shut_elsewhere,
        is_at_once=True,
    ),
    Expected(
        r"(h\d)\.do\(\"(\w)\.",
        "a socket that is neither connected nor listening has no name in the kernel, so a program that was started "
        "finds an AF_UNIX socket",
        _is_unknown,
        is_at_once=True,
    ),
    Expected(
        r"(h\d)\.do\(\"(\w)\.(?:recv|connect|send|shutdown)",
        "a program that was started has but the kernel's word on a connection: after the peer's end of file that of a "
        "reset, and of connect() none, which over TCP says once more that the connection stands, or how it ended, as "
        "does shutdown(); and of a reset send() says EPIPE, as over TCP after an end of file",
        _is_untold,
        is_at_once=True,
    ),
    Expected(
        r"(h\d)\.do\(\"(\w)\.(?:recv|send|getsockopt|shutdown)",
        "a program that was started takes the error of a connection from the kernel, or shuts it down, and nobody "
        "tells the process that it was made in",
        _is_taken,
    ),
    Expected(
        r"(h\d)\.do\(\"(\w)\.",
        "an AF_UNIX socket that has listened, or was connected, can do nothing else, so another one is put in its "
        "place, which cannot be done in other processes",
        _is_replaced,
        is_at_once=True,
    ),
    Expected(
        r"(h\d)\.do\(\"(\w)\.connect",
        "what a child connects is the socket that it has, and another one was put in the place of that before",
        _is_connected_elsewhere,
    ),
    Expected(
        r"^(h\d) = (?:fork|start)\(",
        "connect() to an AF_UNIX socket that was shut down is refused, so listen() puts another one in its place, as "
        "connect() does after an attempt, and a child that was there before does not have that: it keeps it not alive",
        _is_not_kept,
    ),
    Expected(
        r"(h\d)\.do\(\"(\w)\.(?:listen|bind|connect)\(",
        "a port is of the engine of that process which has bound it, and another process's engine cannot listen there, "
        "nor connect from there",
        _is_port_elsewhere,
    ),
    Expected(
        r"(h\d)\.kill\(",
        "a connection is served by the engine of the process that has made it, and ends with it, whoever else has the "
        "fd; and nobody is left to tell its peer",
        _is_dead_engines,
    ),
    Expected(
        r"\.bind\((\w)\.getsockname",
        "whoever ends a TCP connection first keeps its address for a minute, TIME_WAIT; uTP's ids tell an old packet "
        "from a new one",
        _is_waiting,
        is_at_once=True,
    ),
    Expected(
        r"^unsent\(",
        "TIOCOUTQ is the kernel's word on the user's fd, an AF_UNIX socket: bytes that the engine has not read yet, "
        "also of a listener",
        _is_queue,
        is_at_once=True,
    ),
    Expected(
        r"fill\((\w)\)",
        "how much fits into buffers that are full is no promise: TCP's take more after a while",
        _is_room,
    ),
    Expected(
        r"fill\((\w)\)",
        "a reset is told when what came before it has been given to the kernel for the user, and what is more than the "
        "pair holds cannot be given yet",
        _is_late_reset,
    ),
    Expected(
        r"(\w)\.shutdown\(",
        "who has shut down both halves answers what still comes by a reset: TCP where its closed window is probed, uTP "
        "where there is room, and of a pair that is full the kernel says so when somebody has received",
        _is_unprobed,
    ),
    Expected(
        r"(\w)\.setsockopt\(socket\.SOL_SOCKET, socket\.SO_RCVBUF",
        "a buffer that the program sets is the pair's and the engine's together, and FIONREAD is the kernel's word on "
        "the pair",
        _is_divided,
    ),
    Expected(
        r"(\w)\.setsockopt\(socket\.SOL_SOCKET, socket\.SO_RCVBUF",
        "a TCP sender whose segments are larger than the window probes it a few times a second, and drain() does not "
        "wait for that",
        _is_still_coming,
    ),
    Expected(
        r"(\w)\.shutdown\(socket\.SHUT_(RD|RDWR)\)",
        "an AF_UNIX socket that was shut down for receiving takes nothing more: what comes then is held for recv(), "
        "and FIONREAD does not count it",
        _is_held,
    ),
    Expected(
        r"(\w)\.shutdown\(socket\.SHUT_(?:WR|RDWR)\)",
        "the kernel says ERR of an AF_UNIX socket whose other end was closed over a byte that it sent and nobody read: "
        "none can be left by one that sends no more (SO_ERROR, recv() and send() say what TCP's do)",
        _is_error_flag,
    ),
    Expected(
        r"\.connect(?:_ex)?\(",
        "listen()'s number is a hint: TCP's queue has one place more, and uTP's has as many again, since a connection "
        "stands before the engine knows whether the kernel's queue for accept() is full",
        _is_beyond_backlog,
        is_at_once=True,
    ),
    Expected(
        r"(\w)\.getsockopt\(socket\.SOL_SOCKET, socket\.SO_(SND|RCV)BUF",
        "TCP enlarges a connection's buffers as it goes, and says so; uTP's grow too, but the number is that of birth",
        _is_grown_buffer,
        is_at_once=True,
    ),
    Expected(
        r"(\w)\.shutdown\(socket\.SHUT_(?:RD|RDWR)\)",
        "after shutdown(SHUT_RD) the kernel tells no more of an AF_UNIX socket whether its peer has come to its end, "
        "nor does TCP_INFO",
        _is_unknown_end,
    ),
)


def without_expected(lines: list[str], found: Difference) -> Fewer | None:
    """The sequence without the lines that an entry says may have led to the difference; None: nothing says so."""
    case = Case(lines, found)
    for entry in EXPECTED:
        causes = entry.causes(case)
        if causes:
            return Fewer([text for index, text in enumerate(lines) if index not in causes], entry.reason)
    return None

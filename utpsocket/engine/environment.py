"""The environment variables: their allowed values, and what they are set to.

A value that is not allowed raises an error in the program's first call, with the variable's name and value, and never
on the engine's thread or at the exit. So all modules read variables here. check() reads all of them, and warns of
unknown ones. Only startup/sitecustomize.py reads one by itself, since it runs before `socket` is loaded.

Any thread may call.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from typing import Final, Literal, TypeAlias, TypeVar, overload

from utpsocket.engine.interpreter.originals import os

_PREFIX: Final = "UTPSOCKET_"
# Of the tools beside the package, which are not checked.
_TOOLS: Final = ("UTPSOCKET_COMPAT_", "UTPSOCKET_COMPILE", "UTPSOCKET_TEST_")
_BOOLEANS: Final[dict[str, bool]] = {
    **dict.fromkeys(("1", "yes", "true", "on"), True),
    **dict.fromkeys(("0", "no", "false", "off"), False),
}
_MULTIPLES: Final[dict[str, int]] = {
    "": 1,
    **{letter: 1000**power for power, letter in enumerate("kmg", start=1)},
    **{letter + "i": 1024**power for power, letter in enumerate("kmg", start=1)},
}


class _Malformed(ValueError):
    """A value that is not allowed; the message says which ones are."""


def _switch(text: str) -> bool:
    try:
        return _BOOLEANS[text.lower()]
    except KeyError:
        raise _Malformed("1 or 0 (or yes, no, true, false, on, off)") from None


def _switch_or_pid(text: str) -> bool:
    return text != "0" if text.isdecimal() else _switch(text)


def _size(text: str) -> int:
    found = re.fullmatch(r"([0-9]+) ?([kmg]i?|)b?", text.lower())
    if found is None:
        raise _Malformed("a size in bytes such as 4194304, 4M or 4Mi")
    return int(found[1]) * _MULTIPLES[found[2]]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if math.isnan(seconds):
        raise _Malformed("a number of seconds")
    return seconds


def _target_delay(text: str) -> float:
    seconds = _seconds(text)
    if not MIN_TARGET_DELAY_US <= seconds * 1_000_000 <= MAX_TARGET_DELAY_US:
        raise _Malformed("a number of seconds from 0.001 to 0.1")
    return seconds


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise _Malformed(" or ".join(map(repr, words)))
        return text

    return read


Value: TypeAlias = str | bool | int | float
_T = TypeVar("_T", str, bool, int, float)
_TextName: TypeAlias = Literal["UTPSOCKET_EXCEPT", "UTPSOCKET_FALLBACK", "UTPSOCKET_LISTEN", "UTPSOCKET_ONLY"]
_SecondsName: TypeAlias = Literal["UTPSOCKET_EXIT_FLUSH", "UTPSOCKET_FALLBACK_DELAY"]
# As utpsocket.protocol.congestion has them, which is not loaded where only this module is.
_CONTROLLERS: Final = ("ledbat", "ledbat++", "cubic", "reno")
MIN_TARGET_DELAY_US: Final = 1_000  # by feel: clocks and timers are not much better
MAX_TARGET_DELAY_US: Final = 100_000  # RFC 6817 §2.5: no more than 100 ms

_READERS: Final[dict[str, Callable[[str], Value]]] = {
    "UTPSOCKET_CONGESTION": _one_of(*_CONTROLLERS),
    "UTPSOCKET_ENGINE": _one_of("thread", "process"),
    "UTPSOCKET_EXCEPT": str,
    "UTPSOCKET_EXIT_FLUSH": _seconds,
    "UTPSOCKET_EXIT_TIMEOUT": _seconds,
    "UTPSOCKET_FALLBACK": _one_of("tcp"),
    "UTPSOCKET_FALLBACK_DELAY": _seconds,
    "UTPSOCKET_INLINE": _switch,
    "UTPSOCKET_KEEP_GIL": _switch,
    "UTPSOCKET_LISTEN": _one_of("utp", "both"),
    "UTPSOCKET_MAX_MTU": _size,
    "UTPSOCKET_MAX_WINDOW": _size,
    "UTPSOCKET_OFFLOAD": _switch,
    "UTPSOCKET_ONLY": str,
    "UTPSOCKET_PATCH": _switch,
    "UTPSOCKET_PCAP": str,
    "UTPSOCKET_POLLER": _one_of("epoll", "poll"),
    "UTPSOCKET_PURE": _switch,
    "UTPSOCKET_SECRET": str,
    "UTPSOCKET_STAT": _switch,
    "UTPSOCKET_STATS": _switch_or_pid,
    "UTPSOCKET_TARGET_DELAY": _target_delay,
    "UTPSOCKET_UDP_BUFFER": _size,
}


@overload
def value(name: _TextName, default: None) -> str | None: ...
@overload
def value(name: _SecondsName, default: None) -> float | None: ...
@overload
def value(name: str, default: None) -> Value | None: ...
@overload
def value(name: str, default: _T) -> _T: ...
def value(name: str, default: Value | None) -> Value | None:
    """The variable's value; `default` where it is not set, or empty. Raises ValueError with the name and the value."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    try:
        return _READERS[name](text)
    except _Malformed as error:
        raise ValueError(f"{name} is {text!r}, not {error}") from None


@overload
def value_if_any(name: str, default: None) -> Value | None: ...
@overload
def value_if_any(name: str, default: _T) -> _T: ...
def value_if_any(name: str, default: Value | None) -> Value | None:
    """As value(), where it is too early or too late to raise: a value that is not allowed counts as the default.
    check() raises the error.
    """
    try:
        return value(name, default)
    except ValueError:
        return default


_warned: set[str] = set()


def check() -> None:
    """Read all variables, before an engine is made. Raises ValueError; warns once of each unknown name."""
    for name in _READERS:
        value(name, None)
    for name in os.environ:
        if name.startswith(_PREFIX) and name not in _READERS and not name.startswith(_TOOLS) and name not in _warned:
            _warned.add(name)
            warnings.warn(f"{name} is no variable of utpsocket's", RuntimeWarning, stacklevel=2)

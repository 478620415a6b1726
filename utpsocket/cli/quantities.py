"""Sizes, rates and times as they are typed and shown.

Sizes are bytes with K, M, G, T (powers of 1,000) or Ki, Mi, Gi, Ti (powers of 1,024); rates are bits per second with
the same letters; times are us, ms or s. The readers are made to be an argparse argument's `type`.
"""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from decimal import Decimal
from typing import Final

MULTIPLES: Final = {
    "": 1,
    **{letter: 1000**power for power, letter in enumerate("KMGT", start=1)},
    **{letter + "i": 1024**power for power, letter in enumerate("KMGT", start=1)},
}
TIMES_US: Final = {"us": 1, "µs": 1, "ms": 1_000, "s": 1_000_000}


def read_size(text: str) -> int:
    """Bytes: "256M" is 256,000,000 and "256Mi" is 268,435,456; a trailing B changes nothing."""
    return _read(text, MULTIPLES, "B", "a size such as 1500, 64Ki or 256M")


def read_rate(text: str) -> int:
    """Bits per second: "10M" is 10,000,000; a trailing bit/s or bps changes nothing."""
    return _read(text, MULTIPLES, "bit/s|bps", "a rate in bits per second such as 500K or 10M")


def read_time(text: str) -> int:
    """Microseconds: "20ms" is 20,000. The unit must be given."""
    return _read(text, TIMES_US, "", "a time with its unit such as 500us, 20ms or 1.5s")


def _read(text: str, multiples: dict[str, int], suffix: str, wanted: str) -> int:
    units = "|".join(sorted(multiples, key=len, reverse=True))
    match = re.fullmatch(rf"([0-9]+(?:\.[0-9]+)?)\s*({units})(?:{suffix})?", text.strip())
    if match is None:
        raise ArgumentTypeError(f"{text!r} is not {wanted}")
    return int(Decimal(match[1]) * multiples[match[2]])


def show_size(size_bytes: float) -> str:
    """Three digits that count and a unit: 268435456 is "268 MB"."""
    return _show(size_bytes, "B")


def show_rate(bytes_per_second: float) -> str:
    """Bytes per second, as download tools show them: "12.3 MB/s"."""
    return _show(bytes_per_second, "B/s")


def show_time(time_us: float) -> str:
    """Microseconds in the largest unit that leaves a whole part: 20480 is "20.5 ms"."""
    for unit in ("s", "ms"):
        if time_us >= TIMES_US[unit]:
            return f"{_three_digits(time_us / TIMES_US[unit])} {unit}"
    return f"{time_us:.0f} µs"


def printable(text: str, encoding: str | None) -> str:
    """The same where `encoding` has every character of it; elsewhere "us" for "µs"."""
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return text.replace("µs", "us")
    return text


def show_clock(seconds: float) -> str:
    """Seconds as 0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _show(amount: float, unit: str) -> str:
    for letter in "TGMK":
        # 999,500 B would round to "1000 KB"
        if amount >= 0.9995 * MULTIPLES[letter]:
            return f"{_three_digits(amount / MULTIPLES[letter])} {letter}{unit}"
    return f"{amount:.0f} {unit}"


def _three_digits(number: float) -> str:
    decimals = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{decimals}f}"

"""message_cost and run_cost: CPU time and calls per message and per run, part by part, and the figures to compare with.

Three pairs of processes for each sample, one for each kind of meter (meter.py): counting and timing parts would spoil
the time of the whole.
"""

from __future__ import annotations

from typing import Any, Final

from compat.bench.pair import pair
from compat.bench.sample import Sample

# A run: what one sendmsg(2) with UDP_SEGMENT carried when its cost was first measured, 41 packets of 1,452 bytes.
RUN_BYTES: Final = 41 * 1_452
# µs per 63.5 KB, of the prototype of docs/performance.md, each stage alone and with a warm cache; `bookkeeping` is all
# that belongs to the protocol.
PROTOTYPE: Final = {
    "sender_pair_read_us": 7.6,
    "sender_compose_us": 2.1,
    "sender_send_us": 6.9,
    "sender_bookkeeping_us": 2.8,
    "receiver_receive_us": 3.8,
    "receiver_check_us": 1.1,
    "receiver_pair_write_us": 7.8,
    "receiver_send_us": 4.2,
    "receiver_bookkeeping_us": 1.0,
}
PROTOTYPE_US: Final = sum(PROTOTYPE.values())
PART_NAMES: Final = frozenset(
    f"{part}_us" for part in ("pair_read", "compose", "send", "receive", "check", "pair_write", "bookkeeping")
)
_SENDERS: Final = ("pair_read", "compose", "send", "receive")
_RECEIVERS: Final = ("receive", "check", "pair_write", "send")
_MESSAGE_PARTS: Final = ("pair_read", "compose", "send", "receive", "check", "pair_write")


def message_cost(subject: str, seconds: float) -> Sample:
    """µs of CPU of the costlier engine per round trip of 1 byte; of TCP the costlier caller's."""
    more: dict[str, float] = {}
    for meter in ("time", "parts", "calls") if subject != "tcp" else ("time",):
        accepted, dialed = _measured(subject, seconds, kind="message", meter=meter)
        for name, report in (("dialer", dialed), ("listener", accepted)):
            _add(more, name, report["costs"], report["count"], meter, _MESSAGE_PARTS)
    what = "caller" if subject == "tcp" else "work"
    return Sample(max(more[f"dialer_{what}_us"], more[f"listener_{what}_us"]), None, more)


def run_cost(subject: str, seconds: float) -> Sample:
    """µs of CPU of both engines per run of RUN_BYTES; of TCP of both callers."""
    more: dict[str, float] = {}
    for meter in ("time", "parts", "calls") if subject != "tcp" else ("time",):
        accepted, dialed = _measured(subject, seconds, kind="run", meter=meter)
        for name, report, parts in (("sender", dialed, _SENDERS), ("receiver", accepted, _RECEIVERS)):
            _add(more, name, report["costs"], report["bytes"] / RUN_BYTES, meter, parts)
    what = "caller" if subject == "tcp" else "work"
    return Sample(more[f"sender_{what}_us"] + more[f"receiver_{what}_us"], None, more)


def _measured(subject: str, seconds: float, *, kind: str, meter: str) -> tuple[dict[str, Any], dict[str, Any]]:
    settings = {"side": "cost_side", "kind": kind, "meter": meter, "seconds": seconds}
    with pair(subject, subject, settings) as both:
        return both.measure()


def _add(
    more: dict[str, float], name: str, costs: dict[str, float], count: float, meter: str, parts: tuple[str, ...]
) -> None:
    """One side's figures per message or run."""
    each = {key: value / count for key, value in costs.items()}
    if meter == "time":
        more[f"{name}_caller_us"] = each["caller_us"]
        if "work_us" in each:
            more.update({f"{name}_{key}": each[key] for key in ("work_us", "wait_us", "iterations")})
    elif meter == "parts":
        for part in parts:
            more[f"{name}_{part}_us"] = each[f"{part}_us"]
        more[f"{name}_bookkeeping_us"] = more[f"{name}_work_us"] - sum(each[f"{part}_us"] for part in parts)
    else:
        more.update({f"{name}_{key}": each[key] for key in ("python_calls", "c_calls")})


def remarks(more: dict[str, float | None]) -> list[str]:
    """The parts at a glance, for the table."""
    told = []
    for name in ("sender", "receiver", "dialer", "listener"):
        figures = [
            f"{key.removeprefix(name + '_').removesuffix('_us').replace('_', ' ')} {value:.3g}"
            for key, value in more.items()
            if key.startswith(name + "_") and value is not None
        ]
        if figures:
            told.append(f"{name}: {', '.join(figures)}")
    return told

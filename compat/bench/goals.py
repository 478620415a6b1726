"""What the project wants to reach, and whether a run's figures do.

The goals are those of the compiled build. Where one is measured, the pure build's figures stand beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from compat.bench.sample import Row, Sample, ratio
from compat.bench.subjects import EARLIER, IN_A_PROCESS, PURE, UTPSOCKET

Rows = dict[tuple[str, str], Row]
Figure = Callable[[Rows, str], float | None]


@dataclass(frozen=True)
class Goal:
    """One line of the goals.

    figure   of these rows, with this subject as ours; None where the run has not measured it
    build    "pure" or "compiled" where the goal is for one of the two
    """

    text: str
    least: float | None
    most: float | None
    figure: Figure
    build: str = ""

    def is_met(self, figure: float) -> bool:
        return (self.least is None or figure >= self.least) and (self.most is None or figure <= self.most)

    @property
    def bound(self) -> str:
        return " and ".join(
            f"{sign} {bound:g}" for sign, bound in (("≥", self.least), ("≤", self.most)) if bound is not None
        )


def _against(case: str, other: str, *, of: str = "") -> Figure:
    """Our median in `case` over the median of row (`of` or the same case, `other`)."""
    return lambda rows, ours: ratio(rows.get((case, ours)), rows.get((of or case, other)))


def _against_itself(case: str, of: str) -> Figure:
    return lambda rows, ours: ratio(rows.get((case, ours)), rows.get((of, ours)))


def _median(case: str) -> Figure:
    def figure(rows: Rows, ours: str) -> float | None:
        row = rows.get((case, ours))
        return row.median if row else None

    return figure


def _more(case: str, name: str) -> Figure:
    def figure(rows: Rows, ours: str) -> float | None:
        row = rows.get((case, ours))
        return row.more(name) if row else None

    return figure


def _cpu_against_tcp(rows: Rows, ours: str) -> float | None:
    row, tcps = rows.get(("bulk", ours)), rows.get(("bulk", "tcp"))
    return row.cpu_ratio(tcps) if row else None


def _share_beside_busy(rows: Rows, ours: str) -> float | None:
    """What is left to us of bulk on a busy machine, over what is left to TCP."""
    left = ratio(rows.get(("bulk_busy", ours)), rows.get(("bulk", ours)))
    tcps = ratio(rows.get(("bulk_busy", "tcp")), rows.get(("bulk", "tcp")))
    return left / tcps if left is not None and tcps else None


def _in_a_process(rows: Rows, ours: str) -> float | None:
    return ratio(rows.get(("hog", IN_A_PROCESS)), rows.get(("hog", "tcp"))) if ours == UTPSOCKET else None


def _keepalive(connections: int, answer: str = "") -> Goal:
    text = f"keep-alive requests over {connections:,}, answers of {'20 kB' if answer else '100 B'}, vs TCP"
    return Goal(text, 0.4, None, _against(f"keepalive_{connections}{answer}", "tcp"))


def _against_earlier(text: str, case: str, least: float = 1.0) -> Goal:
    return Goal(f"{text} vs the earlier tree", least, None, _against(case, EARLIER), "pure")


_RUN: Final = "CPU µs of both engines for a run of 41 packets"
_MESSAGE: Final = "CPU µs of the costlier engine for a round trip of 1 B"

ALL: Final = (
    Goal(_RUN, None, 50, _median("run_cost"), "compiled"),
    Goal(_RUN, None, 100, _median("run_cost"), "pure"),
    Goal(_MESSAGE, None, 30, _median("message_cost"), "compiled"),
    Goal(_MESSAGE, None, 120, _median("message_cost"), "pure"),
    Goal("bulk, CPU per GB vs TCP", None, 3, _cpu_against_tcp),
    Goal("bulk vs kernel TCP", 0.40, None, _against("bulk", "tcp")),
    Goal("bulk vs libtorrent", 7, None, _against("bulk", "libtorrent")),
    Goal("bulk vs utp-native", 10, None, _against("bulk", "utp-native")),
    Goal("bulk vs aioquic", 40, None, _against("bulk", "aioquic")),
    Goal("bulk to a libutp receiver vs libutp to itself", 2, None, _against("to_libutp", "utp-native")),
    Goal("bulk without GSO/GRO vs utp-native", 2, None, _against("no_offload", "utp-native", of="bulk")),
    Goal("bulk without GSO/GRO vs TCP", 0.07, None, _against("no_offload", "tcp")),
    Goal("stock UDP buffer vs 4 MB", 0.5, None, _against_itself("stock_buffer", "bulk")),
    Goal("stock UDP buffer, timeouts", None, 0, _more("stock_buffer", "timeouts")),
    Goal("ping-pong 1 B vs utp-native", 1, None, _against("pingpong_1", "utp-native")),
    Goal("ping-pong 1 B vs TCP", 0.5, None, _against("pingpong_1", "tcp")),
    Goal("ping-pong 1 KB vs TCP", 0.4, None, _against("pingpong_1k", "tcp")),
    Goal("connect + echo + close vs TCP", 0.3, None, _against("setup", "tcp")),
    *(_keepalive(connections) for connections in (1, 20, 200, 1000)),
    *(_keepalive(connections, "_20k") for connections in (20, 200)),
    Goal("1 B every 2 ms, alone, p50 in ms", None, 0.3, _median("paused_alone")),
    Goal("1 B every 2 ms, beside 4 bulk connections, p50 in ms", None, 1.5, _median("paused_beside_bulk")),
    Goal("import utpsocket vs import asyncio", None, 0.6, _against("import", "tcp")),
    Goal("what a patched program's child pays vs import asyncio", None, 0.6, _against("patched_child", "tcp")),
    Goal("1,000 connections together vs one", 0.7, None, _against_itself("parallel_1000", "parallel_1")),
    Goal("1,000 connections, Jain index", 0.9, None, _more("parallel_1000", "jain")),
    Goal("idle connection's end, bytes", None, 9_000, _median("idle")),
    Goal("idle connection's end, fds of the listener", None, 2, _more("idle", "fds_listener")),
    Goal("idle connection's end, fds of the dialer", None, 2, _more("idle", "fds_dialer")),
    Goal("what a busy machine leaves of bulk vs what it leaves of TCP", 1, None, _share_beside_busy),
    Goal(
        "CPU hog in the sender's process vs TCP with one, the engine in a process of its own", 0.9, None, _in_a_process
    ),
    _against_earlier("bulk", "bulk", 1.3),
    _against_earlier("ping-pong 1 B", "pingpong_1"),
    _against_earlier("connect + echo + close", "setup"),
    _against_earlier("keep-alive requests over 20", "keepalive_20"),
    _against_earlier("bulk on 1,000 connections", "parallel_1000"),
    _against_earlier("bulk without GSO/GRO", "no_offload"),
    Goal("idle connection's end, bytes vs the earlier tree", None, 1, _against("idle", EARLIER), "pure"),
    Goal("import utpsocket vs the earlier tree", None, 1, _against("import", EARLIER), "pure"),
)


def keys(build: str, *, is_beside_earlier: bool) -> set[tuple[str, str]]:
    """The rows, as case and subject, that the goals compare where this build is measured; some of the pure build that
    no case has.
    """

    class Asked(Rows):
        def get(self, key: tuple[str, str], default: object = None) -> Row:
            asked.add(key)
            return Row(*key, "", [Sample(1, 1)])

    asked: set[tuple[str, str]] = set()
    for goal in ALL:
        for ours in (_subject(goal, build), *_beside(build)):
            if ours:
                goal.figure(Asked(), ours)
    return {key for key in asked if is_beside_earlier or key[1] != EARLIER}


def table(rows: list[Row], build: str) -> str:
    """All goals with what this run obtained, in Markdown."""
    by_key = {(row.case, row.subject): row for row in rows}
    lines = ["| | goal | obtained | | pure build |", "|---|---|---|---|---|"]
    for goal in ALL:
        ours = _subject(goal, build)
        figure = goal.figure(by_key, ours) if ours else None
        obtained, verdict = ("not measured", "") if figure is None else (f"{figure:.3g}", _verdict(goal, figure))
        beside = [goal.figure(by_key, subject) for subject in _beside(build) if not goal.build]
        pure = "".join(f"{figure:.3g}" for figure in beside if figure is not None)
        text = f"{goal.text}, {goal.build}" if goal.build else goal.text
        lines.append(f"| {text} | {goal.bound} | {obtained} | {verdict} | {pure} |")
    return "\n".join(lines)


def _subject(goal: Goal, build: str) -> str | None:
    """Whose figures decide on it, where this build is measured; None for nobody's."""
    if goal.build == "pure" and build == "compiled":
        return PURE
    return UTPSOCKET if goal.build in ("", build) else None


def _beside(build: str) -> tuple[str, ...]:
    return (PURE,) if build == "compiled" else ()


def _verdict(goal: Goal, figure: float) -> str:
    return "met" if goal.is_met(figure) else "**not met**"

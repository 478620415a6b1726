"""What the project wants to reach, and whether a run's figures do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from compat.bench.sample import Row, ratio
from compat.bench.subjects import IN_A_PROCESS

Rows = dict[tuple[str, str], Row]


@dataclass(frozen=True)
class Goal:
    """One line of the goals; `figure` gives None where the run has not measured it."""

    text: str
    least: float | None
    most: float | None
    figure: Callable[[Rows], float | None]

    def is_met(self, figure: float) -> bool:
        return (self.least is None or figure >= self.least) and (self.most is None or figure <= self.most)

    @property
    def bound(self) -> str:
        return " and ".join(
            f"{sign} {bound:g}" for sign, bound in (("≥", self.least), ("≤", self.most)) if bound is not None
        )


def _against(case: str, other: str, *, of: str = "", subject: str = "utpsocket") -> Callable[[Rows], float | None]:
    """Our median in `case` over the median of row (`of` or the same case, `other`)."""
    return lambda rows: ratio(rows.get((case, subject)), rows.get((of or case, other)))


def _share_beside_busy(rows: Rows) -> float | None:
    """What is left to us of bulk on a busy machine, over what is left to TCP."""
    ours = ratio(rows.get(("bulk_busy", "utpsocket")), rows.get(("bulk", "utpsocket")))
    tcps = ratio(rows.get(("bulk_busy", "tcp")), rows.get(("bulk", "tcp")))
    return ours / tcps if ours is not None and tcps else None


def _more(case: str, name: str) -> Callable[[Rows], float | None]:
    def figure(rows: Rows) -> float | None:
        row = rows.get((case, "utpsocket"))
        return row.more(name) if row else None

    return figure


def _cpu(rows: Rows) -> float | None:
    row = rows.get(("bulk", "utpsocket"))
    return row.cpu_seconds_per_gb if row else None


def _median(case: str) -> Callable[[Rows], float | None]:
    def figure(rows: Rows) -> float | None:
        row = rows.get((case, "utpsocket"))
        return row.median if row else None

    return figure


ALL: Final = (
    Goal("bulk vs kernel TCP", 0.40, None, _against("bulk", "tcp")),
    Goal("bulk, CPU s/GB, both sides together", None, 1.6, _cpu),
    Goal("bulk vs aioquic", 40, None, _against("bulk", "aioquic")),
    Goal("bulk vs libtorrent", 5, None, _against("bulk", "libtorrent")),
    Goal("bulk vs utp-native", 4, None, _against("bulk", "utp-native")),
    Goal("bulk to a libutp receiver vs libutp to itself", 2, None, _against("to_libutp", "utp-native")),
    Goal("bulk without GSO/GRO vs TCP", 0.07, None, _against("no_offload", "tcp")),
    Goal("stock UDP buffer vs 4 MB", 0.5, None, _against("stock_buffer", "utpsocket", of="bulk")),
    Goal("stock UDP buffer, timeouts", None, 0, _more("stock_buffer", "timeouts")),
    Goal("ping-pong 1 B vs TCP", 0.4, None, _against("pingpong_1", "tcp")),
    Goal("ping-pong 1 KB vs TCP", 0.4, None, _against("pingpong_1k", "tcp")),
    Goal("1 B every 2 ms, alone, p50 in ms", None, 0.3, _median("paused_alone")),
    Goal("1 B every 2 ms, beside 4 bulk connections, p50 in ms", None, 1.5, _median("paused_beside_bulk")),
    Goal("connect + echo + close vs TCP", 0.4, None, _against("setup", "tcp")),
    Goal("what a busy machine leaves of bulk vs what it leaves of TCP", 1, None, _share_beside_busy),
    Goal("1,000 connections together vs one", 0.6, None, _against("parallel_1000", "utpsocket", of="parallel_1")),
    Goal("1,000 connections, Jain index", 0.9, None, _more("parallel_1000", "jain")),
    Goal("idle connection's end, bytes", None, 9_000, _median("idle")),
    Goal("idle connection's end, fds of the listener", None, 2, _more("idle", "fds_listener")),
    Goal("idle connection's end, fds of the dialer", None, 2, _more("idle", "fds_dialer")),
    Goal(
        "CPU hog in the sender's process vs TCP with one, the engine in a process of its own",
        0.9,
        None,
        _against("hog", "tcp", subject=IN_A_PROCESS),
    ),
)


def table(rows: list[Row]) -> str:
    """All goals with what this run obtained, in Markdown."""
    by_key = {(row.case, row.subject): row for row in rows}
    lines = ["| | goal | obtained | |", "|---|---|---|---|"]
    for goal in ALL:
        figure = goal.figure(by_key)
        obtained, verdict = ("not measured", "") if figure is None else (f"{figure:.3g}", _verdict(goal, figure))
        lines.append(f"| {goal.text} | {goal.bound} | {obtained} | {verdict} |")
    return "\n".join(lines)


def _verdict(goal: Goal, figure: float) -> str:
    return "met" if goal.is_met(figure) else "**not met**"

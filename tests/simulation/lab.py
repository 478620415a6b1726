"""The cases of congestion control in virtual time: goal and figure, met or not.

    python3 -m tests.simulation.lab [CASE…] [--controller NAME] [--json FILE] [--write]

Each case is a Scene (scene.py) and the figures that are read off it. They are those of the table that was measured over
an emulated link (python3 -m tests.linklab); `measured` is what this table's lab saw there of LEDBAT as of 6be1bf3, and
says how far the simulation is to be trusted. --write renews lab.txt, which tests/simulation/test_lab.py compares.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.simulation.links import Way
from tests.simulation.scene import UTP_SHARE, Change, Flow, Scene, jain

SNAPSHOT = Path(__file__).with_name("lab.txt")
FULL = 20 * UTP_SHARE  # most goodput of 20 Mbit/s
DEEP = Way(20, 25, 500)
SHALLOW = Way(20, 25, 31)


@dataclass
class Figure:
    """One number of a case. goal: ">= 15", "<= 1", or "" where there is none; measured: over the emulated link."""

    name: str
    value: float | None
    unit: str
    goal: str = ""
    measured: str = ""

    @property
    def is_met(self) -> bool | None:
        """None without a goal."""
        if not self.goal:
            return None
        sign, bound = self.goal.split()
        if self.value is None:
            return False
        return self.value >= float(bound) if sign == ">=" else self.value <= float(bound)

    @property
    def text(self) -> str:
        """The number, as the table has it."""
        if self.value is None:
            return "never"
        return f"{self.value:.2f}" if self.unit in ("Mbit/s", "Jain", "s") else f"{self.value:.0f}"


def alone(controller: str | None) -> Iterator[Figure]:
    """One flow, a deep buffer."""
    scene = Scene(DEEP, None, [Flow("utp")], seconds=60, controller=controller).run()
    mean, p95, _ = scene.delay(5, 60)
    yield Figure("utilisation", 100 * scene.utilisation(5, 60), "%", ">= 99", "100")
    yield Figure("delay, mean", mean, "ms", "<= 65", "97")
    yield Figure("delay, p95", p95, "ms", "<= 80", "100")
    yield Figure("full rate after", scene.reaches(0, 0.95 * FULL, 0), "s", "<= 2", "1.3")
    yield Figure("start-up peak", scene.delay(0, 5)[2], "ms", "<= 80", "109")


def alone_200(controller: str | None) -> Iterator[Figure]:
    """One flow, round trip 200 ms."""
    scene = Scene(Way(20, 100, 500), None, [Flow("utp")], seconds=40, controller=controller).run()
    yield Figure("90 % after", scene.reaches(0, 0.9 * FULL, 0), "s", "<= 5", "2.9")
    yield Figure("start-up peak", scene.delay(0, 10)[2], "ms", "<= 80", "147")


def cubic_joins(controller: str | None) -> Iterator[Figure]:
    """CUBIC for 40 s beside a flow that was there, a deep buffer."""
    scene = Scene(DEEP, None, [Flow("utp"), Flow("cubic", 30, 70)], seconds=110, controller=controller).run()
    yield Figure("TCP gets", scene.goodput(1, 30, 70), "Mbit/s", ">= 17.5", "15.2")
    yield Figure("we keep", scene.goodput(0, 35, 70), "Mbit/s", "<= 1", "2.8")
    yield Figure("back at 90 % after", scene.reaches(0, 0.9 * FULL, 70), "s", "<= 3", "2 to 4.5")


def cubic_first(controller: str | None) -> Iterator[Figure]:
    """We begin when CUBIC's queue stands."""
    scene = Scene(DEEP, None, [Flow("cubic"), Flow("utp", 20, 80)], seconds=80, controller=controller).run()
    yield Figure("TCP keeps", scene.goodput(0, 20, 80), "Mbit/s", ">= 18.3", "17.1")
    yield Figure("we take", scene.goodput(1, 20, 80), "Mbit/s", "", "2.2")
    yield Figure("our estimate is wrong by", scene.estimate_error(1, 40, 80), "ms", "", "-330")


def shallow(controller: str | None) -> Iterator[Figure]:
    """A buffer of 31 ms, below the target: CUBIC joins."""
    scene = Scene(SHALLOW, None, [Flow("utp"), Flow("cubic", 20, 80)], seconds=100, controller=controller).run()
    yield Figure("TCP gets", scene.goodput(1, 20, 80), "Mbit/s", ">= 15", "5.7")
    yield Figure("we take", scene.goodput(0, 20, 80), "Mbit/s", "", "13.3")
    yield Figure("we got before", scene.goodput(0, 5, 20), "Mbit/s")


def latecomer(controller: str | None) -> Iterator[Figure]:
    """A second flow 30 s later."""
    scene = Scene(DEEP, None, [Flow("utp"), Flow("utp", 30)], seconds=150, controller=controller).run()
    for start, measured in ((30, ("2.8", "16.5")), (120, ("0.09", "19.26"))):
        rates = [scene.goodput(flow, start, 150) for flow in (0, 1)]
        yield Figure(f"the first from {start} s", rates[0], "Mbit/s", "", measured[0])
        yield Figure(f"the second from {start} s", rates[1], "Mbit/s", "", measured[1])
        yield Figure(f"Jain from {start} s", jain(rates), "Jain", ">= 0.95")
    yield Figure("delay at the end", scene.delay(120, 150)[0], "ms", "<= 110", "198")


def eight(controller: str | None) -> Iterator[Figure]:
    """Eight flows, 0.1 s apart."""
    flows = [Flow("utp", 0.1 * number) for number in range(8)]
    scene = Scene(DEEP, None, flows, seconds=90, controller=controller).run()
    rates = [scene.goodput(flow, 10, 90) for flow in range(8)]
    yield Figure("Jain", jain(rates), "Jain", ">= 0.95", "0.26 to 0.33")
    yield Figure("least", min(rates), "Mbit/s", "", "0.11")
    yield Figure("delay, mean", scene.delay(10, 90)[0], "ms")


def eight_at_once(controller: str | None) -> Iterator[Figure]:
    """Eight flows at the same moment."""
    scene = Scene(DEEP, None, [Flow("utp") for _ in range(8)], seconds=90, controller=controller).run()
    yield Figure("Jain", jain([scene.goodput(flow, 10, 90) for flow in range(8)]), "Jain", ">= 0.98", "0.97")


def longer_route(controller: str | None) -> Iterator[Figure]:
    """The path becomes 130 ms longer each way, and later shorter again."""
    changes = [Change(30, "delay_ms", 150), Change(80, "delay_ms", 20)]
    scene = Scene(Way(20, 20, 500), None, [Flow("utp")], seconds=120, changes=changes, controller=controller).run()
    yield Figure("90 % after", scene.reaches(0, 0.9 * FULL, 31, 80), "s", "<= 15", "never")
    yield Figure("we get, from 5 s on", scene.goodput(0, 35, 80), "Mbit/s", "", "6 to 7")
    yield Figure("after it is shorter, 90 % after", scene.reaches(0, 0.9 * FULL, 80), "s")


def back_drains(controller: str | None) -> Iterator[Figure]:
    """The way back is full as we begin at 15 s, and empties at 40 s."""
    flows = [Flow("utp", 15), Flow("cubic", 0, 40, is_back=True)]
    scene = Scene(DEEP, None, flows, seconds=100, controller=controller).run()
    yield Figure("beside it we get", scene.goodput(0, 20, 40), "Mbit/s", "", "13.7")
    mean, p95, _ = scene.delay(55, 100)
    yield Figure("delay 15 s later, mean", mean, "ms", "<= 110", "190")
    yield Figure("delay 15 s later, p95", p95, "ms", "<= 120", "280")
    yield Figure("we get then", scene.goodput(0, 55, 100), "Mbit/s", ">= 18")


CASES: dict[str, Callable[[str | None], Iterator[Figure]]] = {
    case.__name__.replace("_", "-"): case
    for case in (
        alone,
        alone_200,
        cubic_joins,
        cubic_first,
        shallow,
        latecomer,
        eight,
        eight_at_once,
        longer_route,
        back_drains,
    )
}
HEADING = (
    "case              figure                              value  unit    goal      goal is  measured over a link\n"
)


def row(case: str, figure: Figure) -> str:
    """A line of the table."""
    met = {None: "", True: "met", False: "NOT met"}[figure.is_met]
    return (
        f"{case:16}  {figure.name:32}  {figure.text:>7}  {figure.unit:6}  {figure.goal:8}  {met:7}  {figure.measured}"
    ).rstrip()


def run(case: str, controller: str | None = None) -> list[Figure]:
    """All figures of a case."""
    return list(CASES[case](controller))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--controller", help="a name of CONTROLLERS for all uTP flows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--write", action="store_true", help="renew lab.txt")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    cases = arguments.cases or list(CASES)
    lines = []
    figures: dict[str, list[Figure]] = {}
    print(HEADING, end="", flush=True)
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for case, found in zip(cases, pool.map(run, cases, [arguments.controller] * len(cases)), strict=True):
            figures[case] = found
            for figure in found:
                lines.append(row(case, figure))
                print(lines[-1], flush=True)
    if arguments.json:
        data = {case: [vars(figure) | {"met": figure.is_met} for figure in found] for case, found in figures.items()}
        arguments.json.write_text(json.dumps(data, indent=1), encoding="utf-8")
    if arguments.write:
        assert not arguments.cases and arguments.controller is None, "the table is of all cases and the default"
        SNAPSHOT.write_text(HEADING + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

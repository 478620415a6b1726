"""The cases of congestion control in virtual time: goal and figure, met or not.

    python3 -m tests.simulation.lab [CASE…] [--controller NAME] [--light] [--json FILE] [--write] [--plot FOLDER]

Each case is a Scene (scene.py) and the figures that are read off it. The last column is what `ledbat` with libutp's
constants had over an emulated link of namespaces with Linux's own TCP: how far it agrees with lab-ledbat.txt says how
far the simulation can be trusted.

--write renews lab-NAME.txt, the controller's table, or lab-NAME-light.txt: of the cases given, or of all.
tests/simulation/test_lab.py compares a part.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.simulation import drawing
from tests.simulation.links import Way
from tests.simulation.scene import UTP_SHARE, WHEN_RUN, Change, Flow, Scene, jain
from utpsocket.protocol.congestion import DEFAULT_CONTROLLER


def snapshot(controller: str | None, is_light: bool = False) -> Path:
    """Where the table of that controller is; None: of the default."""
    return Path(__file__).with_name(f"lab-{controller or DEFAULT_CONTROLLER}{'-light' * is_light}.txt")


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


def bbr_joins(controller: str | None) -> Iterator[Figure]:
    """BBR for 40 s beside a flow that was there, a deep buffer."""
    scene = Scene(DEEP, None, [Flow("utp"), Flow("bbr", 30, 70)], seconds=110, controller=controller).run()
    yield Figure("TCP gets", scene.goodput(1, 30, 70), "Mbit/s", ">= 15", "9.35")
    yield Figure("we keep", scene.goodput(0, 30, 70), "Mbit/s", "", "10.05")
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


def page(controller: str | None) -> Iterator[Figure]:
    """TCP connections of 3 s beside us: how long 200 kB and 1 MB take."""
    begins = (20, 30, 40, 50)
    pages = [Flow("cubic", begin, begin + 3) for begin in begins]
    beside = Scene(DEEP, None, [*pages, Flow("utp")], seconds=60, controller=controller).run()
    without = Scene(DEEP, None, pages, seconds=60).run()
    for name, total, goal, measured in (
        ("200 kB", 200_000, 0.6, ("0.85", "0.30")),
        ("1 MB", 1_000_000, 1.1, ("1.95", "0.65")),
    ):
        times = [beside.takes(flow, total) or 3.0 for flow in range(len(begins))]
        yield Figure(f"{name}, mean", sum(times) / len(times), "s", f"<= {goal}", measured[0])
        yield Figure(f"{name}, longest", max(times), "s")
        yield Figure(f"{name} without us", without.takes(0, total), "s", "", measured[1])
    yield Figure("we get", beside.goodput(len(begins), 20, 60), "Mbit/s")


def uplink(controller: str | None) -> Iterator[Figure]:
    """1 Mbit/s up, a buffer of 1 s: the round trip of others."""
    scene = Scene(Way(1, 20, 1000), Way(8, 20, 200), [Flow("utp", 5, 65)], seconds=70, controller=controller).run()
    mean, p95 = scene.ping(15, 65)
    yield Figure("ping, mean", mean, "ms", "<= 115", "153")
    yield Figure("ping, p95", p95, "ms", "", "168")
    yield Figure("we get", scene.goodput(0, 15, 65), "Mbit/s", ">= 0.9")


def random_loss(controller: str | None) -> Iterator[Figure]:
    """1 % of all packets are lost; nobody else is there."""
    there, back = Way(20, 25, 500, 0.01), Way(20, 25, 500)
    scene = Scene(there, back, [Flow("utp")], seconds=60, controller=controller).run()
    yield Figure("we get", scene.goodput(0, 5, 60), "Mbit/s", ">= 4", "4.0 to 4.8")
    tcp = Scene(there, back, [Flow("cubic")], seconds=60).run()
    yield Figure("CUBIC would get", tcp.goodput(0, 5, 60), "Mbit/s", "", "2.2")


def full_way_back(controller: str | None) -> Iterator[Figure]:
    """A CUBIC download fills the path of our acks; it comes later, or was there first."""
    later = [Flow("utp"), Flow("cubic", 20, 60, is_back=True)]
    scene = Scene(DEEP, None, later, seconds=80, controller=controller).run()
    yield Figure("it comes: we get", scene.goodput(0, 22, 60), "Mbit/s", ">= 15", "8.2")
    yield Figure("it comes: it gets", scene.goodput(1, 22, 60), "Mbit/s")
    first = [Flow("utp", 15), Flow("cubic", 0, 60, is_back=True)]
    scene = Scene(DEEP, None, first, seconds=60, controller=controller).run()
    yield Figure("it was there: we get", scene.goodput(0, 20, 60), "Mbit/s", ">= 15", "13.7")


def clocks(controller: str | None) -> Iterator[Figure]:
    """The two clocks run apart by 500 ppm, either way, for five minutes."""
    for ppm in (500, -500):
        scene = Scene(Way(5, 25, 1000), None, [Flow("utp", ppm=ppm)], seconds=300, controller=controller).run()
        yield Figure(f"{ppm:+d} ppm: we get", scene.goodput(0, 10, 300), "Mbit/s", ">= 4.7")
        yield Figure(f"{ppm:+d} ppm: delay, last minute", scene.delay(240, 300)[0], "ms", "<= 110")


def no_timestamps(controller: str | None) -> Iterator[Figure]:
    """The peer measures no delays."""
    flows = [Flow("utp", reports_delay=False)]
    scene = Scene(DEEP, None, flows, seconds=60, controller=controller).run()
    yield Figure("we get", scene.goodput(0, 5, 60), "Mbit/s", ">= 18")
    yield Figure("delay, mean", scene.delay(5, 60)[0], "ms", "<= 110")


def grid(controller: str | None) -> Iterator[Figure]:
    """Alone on paths of all kinds, with a buffer of 300 ms; after 20 round trips, for 20 more or 3 s."""
    for rate_mbit in (0.1, 1, 10, 100, 1000):
        for rtt_ms in (5, 50, 500):
            if rate_mbit * rtt_ms > 10_000:
                continue  # more packets than there is time for
            begin = max(3.0, 0.02 * rtt_ms)
            end = begin + max(0.02 * rtt_ms, 30 / max(1, rate_mbit))
            way = Way(rate_mbit, rtt_ms / 2, 300)
            scene = Scene(way, None, [Flow("light")], seconds=end, controller=controller, buffer_bytes=16 << 20).run()
            name = f"{rate_mbit:g} Mbit/s, {rtt_ms} ms"
            yield Figure(f"{name}: used", 100 * scene.utilisation(begin, end), "%")
            yield Figure(f"{name}: delay", scene.delay(begin, end)[0], "ms")


def many(controller: str | None) -> Iterator[Figure]:
    """So many flows, 0.1 s apart, at 20 Mbit/s."""
    for count in (2, 16, 64):
        flows = [Flow("light", 0.1 * number) for number in range(count)]
        scene = Scene(DEEP, None, flows, seconds=60, controller=controller).run()
        yield Figure(f"{count} flows: Jain", jain([scene.goodput(flow, 20, 60) for flow in range(count)]), "Jain")
        yield Figure(f"{count} flows: delay", scene.delay(20, 60)[0], "ms")


def queues(controller: str | None) -> Iterator[Figure]:
    """Queues that are managed, and straws: alone, then CUBIC joins."""
    kinds = {
        "CoDel": Way(20, 25, 500, aqm="codel"),
        "policer of 20 ms": Way(20, 25, 20, aqm="policer"),
        "straw of 50 ms": Way(1, 25, 50),
    }
    for name, way in kinds.items():
        scene = Scene(way, None, [Flow("light"), Flow("cubic", 20)], seconds=50, controller=controller).run()
        yield Figure(f"{name}: alone, used", 100 * scene.utilisation(5, 20), "%")
        yield Figure(f"{name}: CUBIC gets", scene.goodput(1, 25, 50), "Mbit/s")
        yield Figure(f"{name}: beside it", scene.goodput(0, 25, 50), "Mbit/s")


def on_and_off(controller: str | None) -> Iterator[Figure]:
    """CUBIC for 4 s of each 8."""
    flows = [Flow("light"), *(Flow("cubic", begin, begin + 4) for begin in range(10, 50, 8))]
    scene = Scene(DEEP, None, flows, seconds=50, controller=controller).run()
    on = [scene.goodput(number + 1, begin, begin + 4) for number, begin in enumerate(range(10, 50, 8))]
    yield Figure("TCP gets while on", sum(on) / len(on), "Mbit/s")
    off = [scene.goodput(0, begin + 4, begin + 8) for begin in range(10, 42, 8)]
    yield Figure("we get while it is off", sum(off) / len(off), "Mbit/s")


def long_fat(controller: str | None) -> Iterator[Figure]:
    """Alone on long fat paths, with the windows and send buffers that the engine would have."""
    for rate_mbit, rtt_ms, seconds in ((500, 100, 8), (100, 600, 20)):
        way = Way(rate_mbit, rtt_ms / 2, 300)
        scene = Scene(way, None, [Flow("utp")], seconds=seconds, controller=controller, buffer_bytes=None).run()
        part = 100 * scene.goodput(0, seconds / 2, seconds) / (rate_mbit * UTP_SHARE)
        yield Figure(f"{rate_mbit} Mbit/s, {rtt_ms} ms: we get", part, "%", ">= 90")


def hours(controller: str | None) -> Iterator[Figure]:
    """Alone for two hours at 0.3 Mbit/s, clocks 100 ppm apart: queues by the half hour."""
    flows = [Flow("utp", ppm=100)]
    scene = Scene(Way(0.3, 25, 2000), None, flows, seconds=7200, controller=controller).run()
    for number in range(4):
        start = 1800 * number
        yield Figure(f"delay, half hour {number + 1}", scene.delay(start + 10, start + 1800)[0], "ms", "<= 130")
    yield Figure("used", 100 * scene.utilisation(10, 7200), "%", ">= 95")


CASES: dict[str, Callable[[str | None], Iterator[Figure]]] = {
    case.__name__.replace("_", "-"): case
    for case in (
        alone,
        alone_200,
        cubic_joins,
        bbr_joins,
        cubic_first,
        shallow,
        latecomer,
        eight,
        eight_at_once,
        longer_route,
        back_drains,
        page,
        uplink,
        random_loss,
        full_way_back,
        clocks,
        no_timestamps,
        grid,
        many,
        queues,
        on_and_off,
        long_fat,
        hours,
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


def run(case: str, controller: str | None = None, plots: Path | None = None) -> list[Figure]:
    """All figures of a case; its scenes are drawn into the folder `plots`."""
    if plots is None:
        return list(CASES[case](controller))
    drawn: list[str] = []

    def look(scene: Scene) -> None:
        number = f" {len(drawn) + 1}" if drawn else ""
        drawn.append(drawing.draw(scene, title=f"{case.replace('_', ' ')}{number}"))
        (plots / f"{case}{number.replace(' ', '-')}.svg").write_text(drawn[-1], encoding="utf-8")

    WHEN_RUN.append(look)
    try:
        return list(CASES[case](controller))
    finally:
        WHEN_RUN.remove(look)


def read(file: Path) -> dict[str, list[str]]:
    """The rows of each case of a table."""
    rows: dict[str, list[str]] = {}
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines()[1:]:
            rows.setdefault(line.split()[0], []).append(line)
    return rows


def _begin(is_light: bool) -> None:
    Scene.is_light = is_light


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--controller", help="a name of CONTROLLERS for all uTP flows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--write", action="store_true", help="renew the controller's table")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="draw each scene, CASE.svg there")
    parser.add_argument("--light", action="store_true", help="a model for our connection: five times as fast")
    arguments = parser.parse_args()
    if arguments.plot:
        arguments.plot.mkdir(exist_ok=True)
    cases = arguments.cases or list(CASES)
    figures: dict[str, list[Figure]] = {}
    print(HEADING, end="", flush=True)
    with ProcessPoolExecutor(arguments.jobs, initializer=_begin, initargs=(arguments.light,)) as pool:
        same = [[value] * len(cases) for value in (arguments.controller, arguments.plot)]
        for case, found in zip(cases, pool.map(run, cases, *same), strict=True):
            figures[case] = found
            print("\n".join(row(case, figure) for figure in found), flush=True)
    if arguments.json:
        data = {case: [vars(figure) | {"met": figure.is_met} for figure in found] for case, found in figures.items()}
        arguments.json.write_text(json.dumps(data, indent=1), encoding="utf-8")
    if arguments.write:
        file = snapshot(arguments.controller, arguments.light)
        rows = read(file)
        rows |= {case: [row(case, figure) for figure in found] for case, found in figures.items()}
        lines = [line for case in CASES for line in rows.get(case, ())]
        file.write_text(HEADING + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

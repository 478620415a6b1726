"""`python3 -m tests.linklab`: flows that share one emulated bottleneck, in real time. Needs root, cc and /dev/net/tun.

    --flows utp,tcp@30-70 --seconds 100       a uTP flow; a TCP flow comes and goes
    --flows utp,libutp@30 --plot out.svg      libutp joins; drawn
    --flows 'utp,cubic<@10-50' --rate 20M/1M  a TCP flow the other way, whose direction has 1 Mbit/s
    --flows utp --set 30:delay=80ms           the path becomes longer
    --case alone shallow --subjects utp,libutp  cases with goals, for several kinds of flows in turn
    --cases                                   all of them, half an hour for each subject
    --quick                                   two minutes, judged: for CI

Only the standard library is needed, unless libutp or libtorrent are asked for. Exit status 0: done, and every goal that
was asked about is met; or skipped, with the reason on standard error and as "skipped" in the JSON. 1: failed, or a goal
missed. 2: wrong usage.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from tests.linklab import drawing, flows, report, rounds
from tests.linklab.cases import CASES, EVERY, QUICK, Case
from tests.linklab.flows import ROOT
from tests.linklab.lab import Lab, LabFailed, available_tcp, reason_to_skip, remaining_processes
from tests.linklab.link import READERS, Way, read_both, read_change

DEFAULTS = {"rate": "20M", "delay": "25ms", "queue": "500ms", "loss": "0", "jitter": "0us"}
DEFAULT_SECONDS = 60.0
SHOWN_RESULTS = rounds.RESULTS.relative_to(ROOT)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.linklab",
        description=f"{__doc__}\n\nThe flows:\n\n{(flows.__doc__ or '').partition(chr(10))[2].strip(chr(10))}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--flows", type=flows.read_flows, metavar="FLOW,…", help="what runs over the link")
    for name, default in DEFAULTS.items():
        parser.add_argument(
            f"--{name}", type=read_both(name), default=default, metavar="VALUE[/BACK]", help=_help(name)
        )
    parser.add_argument(
        "--set",
        type=read_change,
        action="append",
        default=[],
        metavar="T:[<>]NAME=VALUE",
        help=f"change {', '.join(READERS)} at second T, of one direction or both; may be repeated",
    )
    parser.add_argument("--seconds", type=_seconds, help="how long (default: until the last flow ends, or 60)")
    parser.add_argument("--ppm", type=float, default=0.0, help="by how much the clocks of utp's senders run too fast")
    parser.add_argument(
        "--utpsocket", type=_tree, metavar="TREE", help="the package of another checkout (default: this)"
    )
    parser.add_argument("--seed", type=int, help="of losses and jitter")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw rate, window, queueing delay and losses over time (SVG)"
    )
    parser.add_argument("--title", default="", help="of the plot (default: the flows)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    judged = parser.add_argument_group("cases with goals")
    judged.add_argument("--case", nargs="+", choices=[*EVERY], default=[], metavar="NAME", help=", ".join(EVERY))
    judged.add_argument("--cases", action="store_true", help="all of the table")
    judged.add_argument("--quick", action="store_true", help="the lab itself, utp alone, and TCP that joins it")
    judged.add_argument("--subjects", type=_subjects, default=["utp"], metavar="KIND,…", help="kinds of flows (utp)")
    judged.add_argument("--rounds", type=int, default=1, metavar="N", help="so often (1)")
    judged.add_argument("--rows", type=Path, metavar="FILE", help="append each run's row to this file at once")
    judged.add_argument("--from", type=Path, nargs="+", metavar="FILE", dest="files", help="read rows, run nothing")
    judged.add_argument(
        "--table", type=Path, nargs="?", const=rounds.RESULTS, metavar="FILE", help=f"write a table ({SHOWN_RESULTS})"
    )
    given = parser.parse_args(arguments)
    cases = [EVERY[name] for name in given.case] + [*CASES.values()] * given.cases + [*QUICK] * given.quick
    if sum(map(bool, (given.flows, cases, given.files))) != 1:
        parser.error("one of --flows, --case, --cases, --quick and --from is needed")
    if given.plot and not given.flows:
        parser.error("--plot needs --flows")
    if given.files:
        return _show_rows(rounds.read_rows(given.files), given)
    signal.signal(signal.SIGTERM, _end)
    reason = reason_to_skip()
    if reason:
        return _skip(reason, given.json)
    if cases:
        return _run_cases(cases, given)
    try:
        return _run(given)
    except LabFailed as failure:
        _note(str(failure))
        return 1


def _run_cases(cases: Sequence[Case], given: argparse.Namespace) -> int:
    from compat.peers.provision import Unavailable  # what is installed for libutp and libtorrent

    rows = []
    try:
        for row in rounds.run_rows(cases, given.subjects, given.rounds, given.utpsocket or str(ROOT), _note):
            rows.append(row)
            if given.rows:
                with given.rows.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    except Unavailable as problem:
        return _skip(str(problem), given.json)
    remaining = remaining_processes()
    if remaining:
        _note(f"processes remain: {remaining}")
    return _show_rows(rows, given) or bool(remaining)


def _show_rows(rows: list[rounds.Row], given: argparse.Namespace) -> int:
    if given.table:
        given.table.write_text(rounds.as_table(rows), "utf-8")
    if given.json:
        print(json.dumps({"cases": rows}))
    elif given.files and not given.table:
        print("\n".join(map(rounds.as_text, rows)))
    statuses = [row["status"] for row in rows]
    missed, failed = statuses.count("missed"), statuses.count("failed")
    _note(f"{statuses.count('met')} runs met their goals, {missed} missed one, {failed} failed")
    return 1 if missed or failed else 0


def _run(given: argparse.Namespace) -> int:
    from compat.peers.provision import Unavailable  # what is installed for libutp and libtorrent

    for flow in given.flows:
        if flow.transport == "tcp" and flow.congestion not in available_tcp():
            return _skip(f"this kernel's TCP has no {flow.congestion}", given.json)
    wanted = [replace(flow, ppm=given.ppm, tree=given.utpsocket or flow.tree) for flow in given.flows]
    ends = [flow.end for flow in wanted]
    seconds = given.seconds or (DEFAULT_SECONDS if None in ends else max(end for end in ends if end is not None))
    values = [getattr(given, name) for name in DEFAULTS]
    forward, back = (Way(**{key: value for both in values for key, value in both[side].items()}) for side in (0, 1))
    try:
        with Lab(forward, back, seed=given.seed) as lab:
            measured = lab.run(wanted, seconds=seconds, changes=given.set, progress=_progress(seconds))
    except Unavailable as problem:
        return _skip(str(problem), given.json)
    if given.plot:
        given.plot.write_text(drawing.draw(measured, title=given.title), "utf-8")
    if given.json:
        print(json.dumps(report.as_json(measured)))
    else:
        print(report.as_text(measured))
    return 0


def _progress(seconds: float) -> Callable[[float], None]:
    """Says that it has begun, and where standard error is a terminal how far it is."""
    has_begun = False

    def show(second: float) -> None:
        nonlocal has_begun
        if not has_begun:
            _note(f"it runs for {seconds:g} s")
        elif sys.stderr.isatty():
            print(f"\r{second:.0f} s ", end="", file=sys.stderr, flush=True)
        has_begun = True

    return show


def _help(name: str) -> str:
    meanings = {
        "rate": "bits of IP per second",
        "delay": "propagation, each way",
        "queue": "room of the queue: a time at that rate, or bytes",
        "loss": "share of packets dropped by chance",
        "jitter": "longest further delay, at random",
    }
    return f"{meanings[name]} (default: {DEFAULTS[name]})"


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= 86_400:
        raise ValueError
    return seconds


def _subjects(text: str) -> list[str]:
    kinds = [flow.kind for flow in flows.read_flows(text)]
    if text.split(",") != kinds:
        raise argparse.ArgumentTypeError(f"{text!r} are not kinds of flows such as utp,utp:ledbat++,libutp")
    return kinds


def _tree(text: str) -> str:
    folder = Path(text).resolve()
    if not (folder / "utpsocket" / "__init__.py").exists():
        raise argparse.ArgumentTypeError(f"{text} has no package utpsocket")
    return str(folder)


def _skip(reason: str, is_json: bool) -> int:
    _note(f"skipped: {reason}")
    if is_json:
        print(json.dumps({"skipped": reason}))
    return 0


def _note(text: Any) -> None:
    print(f"linklab: {text}", file=sys.stderr, flush=True)


def _end(number: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)

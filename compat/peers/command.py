"""The command: which cases, in which order, the table while they run and the JSON at the end."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from types import FrameType, ModuleType
from typing import Final, NoReturn

from compat.peers import children, dissect, libutp, provision, swarm
from compat.peers.case import Case, Circumstances, Row, run_case

PEERS: Final[dict[str, ModuleType]] = {peer.NAME: peer for peer in (libutp, swarm, dissect)}
WAITING_CASES: Final = 14  # run at once: they sleep most of the time
SUFFIXES: Final = {"K": 1000, "M": 1000**2, "G": 1000**3, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    unknown = [name for name in options.names if name not in PEERS]
    if unknown:
        print(f"no such peer: {', '.join(unknown)} (there are {', '.join(PEERS)})", file=sys.stderr)
        return 2
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    circumstances = Circumstances(control=options.control, keep=options.keep, seed=options.seed)
    chosen = {
        name: [
            case
            for case in PEERS[name].cases(quick=options.quick, size_bytes=options.size)
            if options.only in f"{case.title} {case.role}" and (case.has_control or not options.control)
        ]
        for name in dict.fromkeys(options.names or PEERS)
    }
    if options.list:
        _list(chosen)
        return 0
    rows, cases = _set_up(chosen)
    for row in rows:
        _show(row)
    try:
        rows += _run(cases, circumstances)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1
    _summary(rows)
    if options.json:
        print(json.dumps({"peers": [row.json() for row in rows]}))
    return 0 if all(row.status == "pass" for row in rows) else 1


def _list(chosen: dict[str, list[Case]]) -> None:
    for name, cases in chosen.items():
        for case in cases:
            print(f"{name:12}{case.role:12}{case.title}", file=sys.stderr)
        for what, why in getattr(PEERS[name], "UNSAID", {}).items():
            print(f"{name:12}{'no case':12}{what}: {why}", file=sys.stderr)


def _set_up(chosen: dict[str, list[Case]]) -> tuple[list[Row], list[tuple[Case, str]]]:
    """Every peer that has cases, side by side: rows of those that cannot be, and what is to be run."""
    names = [name for name, cases in chosen.items() if cases]
    rows: list[Row] = []
    cases: list[tuple[Case, str]] = []
    with ThreadPoolExecutor(len(PEERS)) as pool:
        versions = {name: pool.submit(PEERS[name].version) for name in names}
    for name in names:
        try:
            version = versions[name].result()
        except provision.Unavailable as error:
            status = "fail" if isinstance(error, provision.InstallFailed) else "skip"
            rows += [
                Row(name, "", case.title, case.role, status, 0, 0.0, f"cannot be set up: {error}")
                for case in chosen[name]
            ]
            continue
        cases += [(case, version) for case in chosen[name]]
    return rows, cases


def _run(cases: list[tuple[Case, str]], circumstances: Circumstances) -> list[Row]:
    """All rows, in the cases' order. Cases that wait share the time, those that may take longest first; the others,
    which would disturb each other, run one after another beside them.
    """
    previous = signal.getsignal(signal.SIGTERM)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:
        signal.signal(signal.SIGTERM, _interrupt)
    waiting, busy = ThreadPoolExecutor(WAITING_CASES), ThreadPoolExecutor(1)
    rows: dict[Future[Row], Row] = {}
    try:
        started: dict[int, Future[Row]] = {}
        for index, (case, version) in sorted(enumerate(cases), key=lambda item: -item[1][0].seconds_allowed):
            started[index] = (waiting if case.waits else busy).submit(run_case, case, version, circumstances)
        futures = [started[index] for index in range(len(cases))]
        for future in as_completed(futures):
            rows[future] = future.result()
            _show(rows[future])
        return [rows[future] for future in futures]
    except BaseException:
        for pool in (waiting, busy):
            pool.shutdown(wait=False, cancel_futures=True)
        children.end_all()
        raise
    finally:
        waiting.shutdown()
        busy.shutdown()
        if in_main_thread:
            signal.signal(signal.SIGTERM, previous)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _show(row: Row) -> None:
    rate = ""
    if row.status == "pass" and row.bytes and row.seconds:
        rate = f"{row.bytes / row.seconds / 1e6:7.2f} MB/s"
    print(
        f"{row.status:5}{row.name:11}{row.role:10}{row.case:76}{row.seconds:7.2f} s {rate}"
        + (f"\n     {row.cause}" if row.cause else ""),
        file=sys.stderr,
        flush=True,
    )


def _summary(rows: list[Row]) -> None:
    counts = {status: sum(row.status == status for row in rows) for status in ("pass", "fail", "skip")}
    print(f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped", file=sys.stderr)


def parse_size(text: str) -> int:
    """Bytes: 10M is 10 million, 10Mi is 10 × 2²⁰."""
    upper = text.upper().removesuffix("B")
    number = upper.rstrip("KMGI")
    try:
        size = int(float(number) * SUFFIXES.get(upper[len(number) :], 0 if upper[len(number) :] else 1))
    except ValueError:
        size = 0
    if size <= 0:
        raise argparse.ArgumentTypeError(f"not a size: {text!r}")
    return size


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m compat peers",
        description="Bytes exchanged with other uTP implementations, in both roles, on good roads and bad ones.",
        epilog="Exit status 0: everything passed. A peer that nothing here could install is a skip with its cause, "
        "and no pass; one whose installation fails has failed.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PEERS)}; all unless said")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument("--quick", action="store_true", help="fewer cases, in about a minute")
    parser.add_argument("--size", type=parse_size, metavar="10M", help="of each transfer, instead of 1, 10 and 50 MB")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose title and role contain this")
    parser.add_argument("--list", action="store_true", help="name the cases and run none")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write a pcap and a packet trace of every case")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the roads' faults")
    parser.add_argument("--control", action="store_true", help="the peer plays both sides: a test of the test")
    return parser

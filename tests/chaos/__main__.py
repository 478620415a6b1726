"""`python3 -m tests.chaos [--runs N] [--seed S] [--seconds T] [--jobs J] [--verbose] [--json]`

Runs seeds S, S + 1, … until N are done or T seconds have passed. A failure is replayed by its seed:
`python3 -m tests.chaos --runs 1 --seed S --verbose` shows the plan, the relay's trace, and where both processes stood.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tests.chaos.run import Parties, Result, run_seed


@dataclass
class Tally:
    """What came of all runs."""

    runs: int = 0
    bytes: int = 0
    phantoms: int = 0
    failures: list[Result] = field(default_factory=list)


def play_all(seeds: Iterator[int], *, jobs: int, until: float, verbose: bool, quiet: bool = False) -> Tally:
    """Play the seeds, `jobs` at a time, each job with processes of its own; none is begun after `until`."""
    tally, lock = Tally(), threading.Lock()

    def work() -> None:
        parties = Parties()
        try:
            while True:
                with lock:
                    seed = next(seeds, None) if time.monotonic() < until else None
                if seed is None:
                    return
                result = run_seed(seed, parties, verbose=verbose)
                with lock:
                    note(result)
        except BaseException as error:
            with lock:
                note(Result(-1, causes=["conductor: " + "".join(traceback.format_exception(error))]))
        finally:
            parties.close()

    def note(result: Result) -> None:
        tally.runs += 1
        tally.bytes += result.bytes
        tally.phantoms += result.phantoms
        if result.causes:
            tally.failures.append(result)
        if quiet:
            return
        if result.details:
            print("\n".join(result.details), file=sys.stderr)
        for cause in result.causes:
            print(f"seed {result.seed}: {cause}", file=sys.stderr, flush=True)
        if tally.runs % 50 == 0:
            print(f"{tally.runs} runs, {len(tally.failures)} failed", file=sys.stderr, flush=True)

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.chaos", description=__doc__.splitlines()[2])
    parser.add_argument("--runs", type=int, default=0, help="how many (100, or as many as --seconds allows)")
    parser.add_argument("--seed", type=int, default=1, help="the first run's seed (1)")
    parser.add_argument("--seconds", type=float, default=0, help="begin no run after so long")
    parser.add_argument("--jobs", type=int, default=12, help="runs at a time (12): they mostly wait")
    parser.add_argument("--verbose", action="store_true", help="plan, relay's trace and outcomes on stderr")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(arguments)
    runs = options.runs or (10**9 if options.seconds else 100)
    began = time.monotonic()
    until = began + options.seconds if options.seconds else float("inf")
    seeds = iter(range(options.seed, options.seed + runs))
    tally = play_all(seeds, jobs=max(1, min(options.jobs, runs)), until=until, verbose=options.verbose)
    failures = sorted(tally.failures, key=lambda result: result.seed)
    if options.json:
        listed = [{"seed": result.seed, "cause": "; ".join(result.causes)} for result in failures]
        print(json.dumps({"runs": tally.runs, "bytes": tally.bytes, "failures": listed}))
    else:
        seconds = time.monotonic() - began
        print(f"{tally.runs} runs in {seconds:.0f} s, {tally.bytes} bytes, {len(failures)} failed")
        print(f"{tally.phantoms} connections stood when their connect() had just been given up")
        if failures:
            print("failed:", *(result.seed for result in failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

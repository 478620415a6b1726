"""Run programs until a budget of packets is used up, or let atheris choose them.

    python -m tests.fuzz --packets 10000000 [--seed 1]
    python -m tests.fuzz --atheris [libFuzzer's own arguments]      where `pip install atheris` works

A failing program is printed as hexadecimal; `--program HEX` runs it again.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

from tests.fuzz.programs import run_program


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packets", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--program", type=bytes.fromhex)
    parser.add_argument("--atheris", action="store_true")
    arguments, others = parser.parse_known_args()
    if arguments.program is not None:
        print(run_program(arguments.program), "packets")
        return 0
    if arguments.atheris:
        return with_atheris(others)
    started, packets = time.monotonic(), 0
    for seed in range(arguments.seed, 1 << 60):
        packets += run_seed(seed)
        if packets >= arguments.packets:
            break
    print(f"{packets} packets in {time.monotonic() - started:.0f} s, seeds {arguments.seed} to {seed}")
    return 0


def run_seed(seed: int) -> int:
    """A program of chance; printed when it fails."""
    chance = random.Random(seed)
    program = chance.randbytes(chance.choice((40, 400, 4_000)))
    try:
        return run_program(program)
    except BaseException:
        print(f"seed {seed}, program {program.hex()}", file=sys.stderr)
        raise


def with_atheris(arguments: list[str]) -> int:
    """Coverage chooses the programs. Never returns unless atheris is missing."""
    try:
        import atheris
    except ImportError:
        print("atheris is not installed: pip install atheris", file=sys.stderr)
        return 2
    atheris.instrument_all()
    atheris.Setup([sys.argv[0], *arguments], run_program)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())

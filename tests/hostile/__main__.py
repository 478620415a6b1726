"""`python3 -m tests.hostile [CASE…] [--json]`: run the cases, all of them where none is named.

Only the standard library is needed. Exit status 0: every budget is kept; 1: one is not; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import json
import math
import sys

from tests.hostile import acks, floods
from tests.hostile.registry import CASES


def main() -> int:
    floods.register()
    acks.register()
    parser = argparse.ArgumentParser(prog="python3 -m tests.hostile", epilog="Cases: " + ", ".join(CASES))
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    given = parser.parse_args()
    unknown = [name for name in given.cases if name not in CASES]
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)}")
    rows = []
    for name in given.cases or CASES:
        one = CASES[name]
        measured = one.measure()
        status = "pass" if one.is_kept(measured.value) else "fail"
        value = round(measured.value, 4) if math.isfinite(measured.value) else None
        rows.append({"name": name, "budget": one.budget, "measured": value, "unit": one.unit, "status": status})
        word = "at least" if one.at_least else "at most"
        print(
            f"{status} {name}: {value} {one.unit}, {word} {one.budget} ({measured.note})", file=sys.stderr, flush=True
        )
    if given.json:
        print(json.dumps({"cases": rows}))
    return 1 if any(row["status"] == "fail" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Who gets how much of a shared bottleneck, and what it costs the others in delay: the table in fairness.txt.

    python -m tests.simulation.fairness [--write]

`reno` is a flow with TCP's controller, which stands for the traffic that LEDBAT is to yield to.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.simulator import Application, Bottleneck, Delay, Pair, Simulator
from utpsocket.protocol import Config

SNAPSHOT = Path(__file__).with_name("fairness.txt")
HEADING = (
    "flows (start s)          Mbit/s   rtt ms  queue ms  share of each            jain  mean delay  p95 delay  used\n"
)
SECONDS = 60
CONTROLLER_OF = {"utp": "ledbat", "reno": "reno"}


# (kind, start in seconds) of each flow; rate; RTT; queue
SCENES = [
    ([("utp", 0)], 4_000_000, 40_000, 400_000),
    ([("utp", 0), ("utp", 0)], 4_000_000, 40_000, 400_000),
    ([("utp", 0), ("utp", 20)], 4_000_000, 40_000, 400_000),
    ([("utp", 0)] * 4, 4_000_000, 40_000, 400_000),
    ([("utp", 0), ("utp", 0)], 4_000_000, 40_000, 50_000),
    ([("reno", 0), ("utp", 0)], 4_000_000, 40_000, 400_000),
    ([("reno", 0), ("utp", 20)], 4_000_000, 40_000, 400_000),
    ([("utp", 0), ("reno", 20)], 4_000_000, 40_000, 400_000),
    ([("reno", 0), ("reno", 0)], 4_000_000, 40_000, 400_000),
    ([("utp", 0)], 1_000_000, 40_000, 400_000),
]


def row(flows: list[tuple[str, int]], rate_bits: int, rtt_us: int, queue_us: int) -> str:
    """The last half of a minute of these flows."""
    simulator = Simulator(1, checks=False)
    bottleneck = Bottleneck(
        simulator, Delay(simulator, rtt_us // 2), rate_bits, queue_bytes=rate_bits * queue_us // 8_000_000
    )
    back = Delay(simulator, rtt_us // 2)
    pairs = []
    for kind, _ in flows:
        pair = Pair(
            simulator,
            bottleneck,
            back,
            a=Application(1 << 40, writes=1, expects=2),
            b=Application(0, writes=2, expects=1),
            config=Config(receive_buffer_bytes=4 << 20, congestion=CONTROLLER_OF[kind]),
            timer_us=1_000,
        )
        pairs.append(pair)
    waiting = sorted(zip([start for _, start in flows], range(len(flows)), strict=True))
    for start, index in waiting:
        simulator.run_for(max(0, start * 1_000_000 - simulator.elapsed_us))
        pairs[index].connect()
    simulator.run_for(SECONDS * 500_000 - simulator.elapsed_us)
    before = [pair.b.application.received for pair in pairs]
    bottleneck.delays.clear()
    simulator.run_for(SECONDS * 500_000)
    gained = [pair.b.application.received - was for pair, was in zip(pairs, before, strict=True)]
    total = sum(gained)
    shares = " ".join(f"{100 * share / total:5.1f}" for share in gained)
    jain = total**2 / (len(gained) * sum(share**2 for share in gained))
    delays = sorted(delay for _, delay in bottleneck.delays)
    names = ", ".join(f"{kind} ({start})" for kind, start in flows)
    return (
        f"{names:35}  {rate_bits / 1e6:4g}  {rtt_us / 1000:6g}  {queue_us / 1000:8g}  {shares:23}  {jain:4.2f}  "
        f"{sum(delays) / len(delays) / 1000:7.0f} ms  {delays[len(delays) * 95 // 100] / 1000:6.0f} ms  "
        f"{100 * total * 8 / (SECONDS / 2) / rate_bits:3.0f} %"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    print(HEADING, end="")
    rows = []
    for scene in SCENES:
        rows.append(row(*scene))
        print(rows[-1], flush=True)
    if arguments.write:
        SNAPSHOT.write_text(HEADING + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

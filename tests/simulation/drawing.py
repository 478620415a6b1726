"""A scene as a plot, in the form of the link lab's."""

from __future__ import annotations

from tests.simulation.scene import SAMPLE_US, Flow, Scene
from utpsocket.cli import plot

SAMPLE_SECONDS = SAMPLE_US / 1e6
RATE_SAMPLES = 5  # a rate is that of half a second


def draw(scene: Scene, *, title: str) -> str:
    """The plot of a scene that has run, as a text."""
    way = scene.links[0]
    return plot.draw(
        [_trace(scene, number, flow) for number, flow in enumerate(scene.flows)],
        title=title,
        note=f"Simulated: {way.rate_mbit:g} Mbit/s, {way.delay_us / 1e3:g} ms each way at the end",
        seconds=scene.seconds,
        link_delay=[(tick * SAMPLE_SECONDS, queue_us) for tick, queue_us in enumerate(scene.queues_us[0])],
    )


def _trace(scene: Scene, number: int, flow: Flow) -> plot.Trace:
    kind = scene.config.congestion if flow.kind == "utp" else flow.kind
    name = f"{'utpsocket' if flow.kind == 'utp' else 'TCP'}, {kind} ({number + 1})"
    received, figures = scene.received[number], scene.figures[number]
    first = max(1, round(flow.start / SAMPLE_SECONDS))
    last = min(len(figures) - 1, round(min(flow.end, scene.seconds) / SAMPLE_SECONDS))
    ticks = range(first, last + 1)
    losses = [(tick * SAMPLE_SECONDS, figures[tick][2] - figures[tick - 1][2]) for tick in ticks]
    return plot.Trace(
        f"{name}, the other way" if flow.is_back else name,
        [
            (
                (tick + RATE_SAMPLES / 2) * SAMPLE_SECONDS,
                (received[tick + RATE_SAMPLES] - received[tick]) * 8 / (RATE_SAMPLES * SAMPLE_SECONDS),
            )
            for tick in range(first - 1, last + 1 - RATE_SAMPLES, RATE_SAMPLES)
        ],
        [(tick * SAMPLE_SECONDS, figures[tick][0]) for tick in ticks],
        # A TCP has no estimate of its own.
        [(tick * SAMPLE_SECONDS, figures[tick][1]) for tick in ticks] if flow.kind == "utp" else (),
        losses,
    )

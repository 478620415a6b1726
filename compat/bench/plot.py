"""Draws the chart: reads {"bars": [{"group", "label", "value", "least", "most", "text"}], "title"} on standard input.

    PYTHON plot.py FILE.svg

Runs in the virtual environment that has matplotlib; nothing of this project is imported. One panel per group, each
with an axis of its own: groups have different units.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

OURS, OTHERS = "#d1495b", "#8d99ae"


def main(path: str) -> None:
    what = json.load(sys.stdin)
    groups: dict[str, list[dict[str, Any]]] = {}
    for bar in what["bars"]:
        groups.setdefault(bar["group"], []).append(bar)
    # The same figures give the same file, and text stays text.
    mpl.rcParams.update({"svg.hashsalt": "utpsocket", "svg.fonttype": "none", "font.size": 9})
    heights = [len(bars) + 0.8 for bars in groups.values()]
    figure, panels = plt.subplots(
        len(groups), 1, figsize=(7.5, 0.34 * sum(heights) + 0.6), height_ratios=heights, squeeze=False
    )
    for panel, (group, bars) in zip(panels[:, 0], groups.items(), strict=True):
        places = range(len(bars))
        values = [bar["value"] for bar in bars]
        spans = [[bar["value"] - bar["least"] for bar in bars], [bar["most"] - bar["value"] for bar in bars]]
        colors = [OURS if bar["label"] == "utpsocket" else OTHERS for bar in bars]
        panel.barh(places, values, xerr=spans, color=colors, ecolor="#33415c", error_kw={"linewidth": 0.8}, height=0.7)
        for place, bar in zip(places, bars, strict=True):
            panel.text(bar["most"], place, f"  {bar['text']}", va="center")
        panel.set_yticks(places, [bar["label"] for bar in bars])
        panel.invert_yaxis()
        panel.set_xlim(0, 1.22 * max(bar["most"] for bar in bars))
        panel.set_title(group, loc="left", fontsize=9, fontweight="bold")
        panel.spines[["top", "right", "bottom"]].set_visible(False)
        panel.tick_params(bottom=False, labelbottom=False, left=False)
    figure.suptitle(what["title"], x=0.01, ha="left", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main(sys.argv[1])

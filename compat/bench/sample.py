"""One measurement's result, and what many of them come to."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One figure of one case and subject.

    more    further figures by name: fairness, latency, fds, whatever the case has
    """

    value: float
    cpu_seconds_per_gb: float | None = None
    more: dict[str, float] = field(default_factory=dict)


@dataclass
class Row:
    """A case and a subject, with the samples of all rounds."""

    case: str
    subject: str
    unit: str
    samples: list[Sample] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)
    """why a round has no sample"""

    @property
    def median(self) -> float | None:
        return statistics.median(sample.value for sample in self.samples) if self.samples else None

    @property
    def cpu_seconds_per_gb(self) -> float | None:
        known = [sample.cpu_seconds_per_gb for sample in self.samples if sample.cpu_seconds_per_gb is not None]
        return statistics.median(known) if known else None

    def cpu_ratio(self, tcps: Row | None) -> float | None:
        """CPU time per GB over that of TCP."""
        if tcps is None or self.cpu_seconds_per_gb is None or not tcps.cpu_seconds_per_gb:
            return None
        return self.cpu_seconds_per_gb / tcps.cpu_seconds_per_gb

    def more(self, name: str) -> float | None:
        """The median of one of the further figures; for `timeouts` the sum, since one is one too many."""
        known = [sample.more[name] for sample in self.samples if name in sample.more]
        if not known:
            return None
        return sum(known) if name == "timeouts" else statistics.median(known)

    def json(self, tcps: Row | None) -> dict[str, Any]:
        """With the keys docs/commands.md has, and some more."""
        values = [sample.value for sample in self.samples]
        names = sorted({name for sample in self.samples for name in sample.more})
        return {
            "case": self.case,
            "subject": self.subject,
            "median": rounded(self.median),
            "min": rounded(min(values, default=None)),
            "max": rounded(max(values, default=None)),
            "unit": self.unit,
            "ratio_to_tcp": rounded(ratio(self, tcps)),
            "cpu_seconds_per_gb": rounded(self.cpu_seconds_per_gb),
            "cpu_ratio_to_tcp": rounded(self.cpu_ratio(tcps)),
            "rounds": len(values),
            "causes": self.causes,
            **{name: rounded(self.more(name)) for name in names},
        }


def rounded(value: float | None) -> float | None:
    """Four digits that count."""
    return None if value is None else float(f"{value:.4g}")


def ratio(above: Row | None, below: Row | None) -> float | None:
    """Of two medians, where both exist."""
    if above is None or below is None or above.median is None or not below.median:
        return None
    return above.median / below.median

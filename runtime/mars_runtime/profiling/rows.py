"""What was measured of one subset, as the numbers that are reported.

Axes: n decisions; S stages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mars_edge.manifest import Manifest
from mars_runtime.profiling.statistics import Distribution, Resampling, Times, distribution
from mars_runtime.profiling.subject import Timed

# What the engine itself takes; all else of a decision is ours.
_BEFORE_ENGINE = ("capture_wait", "preprocess")
TOTAL, LOOP, OUTSIDE, AGE = "total", "loop", "outside_engine", "age"
_BINS = 60
_SHOWN_SHARE, _SHOWN_MEDIANS = 0.995, 4.0


class Record:
    """The times of one subset, decision by decision."""

    def __init__(self) -> None:
        self._timed: list[Timed] = []
        self._at_s: list[float] = []

    def add(self, timed: Timed, at_s: float) -> None:
        """One decision that began `at_s` seconds after the first round."""
        self._timed.append(timed)
        self._at_s.append(at_s)

    def __len__(self) -> int:
        return len(self._timed)

    @property
    def at_s(self) -> Times:
        """When each decision began, (n,)."""
        return np.array(self._at_s)

    @property
    def total_ms(self) -> Times:
        """(n,)"""
        return np.array([timed.total_ms for timed in self._timed])

    def stages_ms(self) -> dict[str, Times]:
        """Each stage (n,), then what is derived from them.

        `loop` is the decision loop's own part, `outside_engine` all but the engine's.
        """
        names = [name for name in self._timed[0].stages_ms if name != "capture_wait"]
        stages = {name: np.array([timed.stages_ms[name] for timed in self._timed]) for name in names}
        engine = sum((stages[name] for name in names if name not in _BEFORE_ENGINE), np.zeros(len(self)))
        total = self.total_ms
        return {
            "capture_wait": np.array([timed.stages_ms["capture_wait"] for timed in self._timed]),
            **stages,
            LOOP: total - engine - stages["preprocess"],
            TOTAL: total,
            OUTSIDE: total - engine,
            AGE: np.array([timed.age_ms for timed in self._timed]),
        }


def row_of(subset: str, record: Record, manifest: Manifest, deadline_ms: float) -> dict[str, Any]:
    """The JSON object of one subset; times in ms.

    Args:
        deadline_ms: a decision that took longer counts as missed.
    """
    stages, resampling = record.stages_ms(), Resampling(len(record))
    point = manifest.operating_points.get(subset)
    costs = manifest.subset_costs.get(subset)
    return {
        "subset": subset,
        "certified": None if point is None else point.certified,
        "quality": None
        if point is None
        else {"metric": point.metric, "value": point.value, "low": point.low, "high": point.high, "n": point.n},
        "macs": None if costs is None else costs.macs,
        "deadline_ms": deadline_ms,
        "misses": int(np.count_nonzero(record.total_ms > deadline_ms)),
        "stages": {name: numbers(distribution(times, resampling)) for name, times in stages.items()},
        "histogram": histogram(record.total_ms),
    }


def numbers(found: Distribution) -> dict[str, Any]:
    """Every number of a distribution, in ms; the interval of a quantile is null on a side that cannot be bounded."""
    points = {name: getattr(found, name) for name in ("mean", "std", "min", "p50", "p90", "p95", "p99", "max")}
    return {
        "n": found.n,
        **{f"{name}_ms": round(value, 6) for name, value in points.items()},
        **{f"{name}_interval_ms": _bounds((i.low, i.high)) for name, i in found.intervals.items()},
    }


def _bounds(ends: Sequence[float | None]) -> list[float | None]:
    return [None if end is None else round(end, 6) for end in ends]


def histogram(times_ms: Times) -> dict[str, Any]:
    """Counts between equal edges up to the 99.5 % time, at most four medians; the last bin holds what is longer."""
    farthest = min(float(np.quantile(times_ms, _SHOWN_SHARE)), _SHOWN_MEDIANS * float(np.median(times_ms)))
    most = max(farthest, float(times_ms.min()) + 1e-6)
    edges = np.linspace(float(times_ms.min()), most, _BINS + 1)
    counts, _ = np.histogram(np.minimum(times_ms, most), edges)
    return {"edges_ms": [round(float(edge), 6) for edge in edges], "counts": [int(count) for count in counts]}


def curve_of(record: Record, window_s: float) -> list[dict[str, float]]:
    """p50 and p90 of the total in windows of `window_s`; an unfinished last window is left out."""
    at_s, total = record.at_s, record.total_ms
    curve = []
    for index in range(int(at_s[-1] // window_s)):
        inside = total[(at_s >= index * window_s) & (at_s < (index + 1) * window_s)]
        if inside.size:
            p50, p90 = np.quantile(inside, (0.5, 0.9), method="inverted_cdf")
            curve.append({"t_s": (index + 0.5) * window_s, "p50_ms": float(p50), "p90_ms": float(p90)})
    return curve


def share_of_engine(row: Mapping[str, Any]) -> float:
    """How much of the median decision the engine takes, 0..1."""
    total = row["stages"][TOTAL]["p50_ms"]
    return 1.0 - row["stages"][OUTSIDE]["p50_ms"] / total if total else 0.0

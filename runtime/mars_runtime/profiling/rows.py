"""What was measured of one subset, as the numbers that are reported.

Axes: n decisions of one process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mars_edge.manifest import Manifest
from mars_runtime.profiling.statistics import Distribution, Times, distribution, quantile
from mars_runtime.profiling.subject import Timed

# What the engine itself takes; all else of a decision is ours.
_BEFORE_ENGINE = ("capture_wait", "preprocess")
TOTAL, LOOP, OUTSIDE = "total", "loop", "outside_engine"
_BINS = 60
_SHOWN_SHARE, _SHOWN_MEDIANS = 0.995, 4.0
_WINDOW_S, _MINUTE_S = 5.0, 60.0


@dataclass(frozen=True, kw_only=True)
class Series:
    """One process's decisions on one subset.

    Attributes:
        at_s: when each began, (n,), on a clock that all processes share.
        stages_ms: (n,) each; stages as in the decision line, then what is derived from them: `loop` is the decision
            loop's own part, `outside_engine` all but the engine's.
    """

    at_s: Times
    stages_ms: Mapping[str, Times]

    @property
    def total_ms(self) -> Times:
        """(n,)"""
        return self.stages_ms[TOTAL]


def series_of(timed: Sequence[Timed], at_s: Sequence[float]) -> Series:
    """The decisions of one process, at least one, with when each began."""
    names = [name for name in timed[0].stages_ms if name != "capture_wait"]
    stages = {name: np.array([one.stages_ms[name] for one in timed]) for name in names}
    engine = sum((stages[name] for name in names if name not in _BEFORE_ENGINE), np.zeros(len(timed)))
    total = np.array([one.total_ms for one in timed])
    return Series(
        at_s=np.array(at_s),
        stages_ms={
            "capture_wait": np.array([one.stages_ms["capture_wait"] for one in timed]),
            **stages,
            LOOP: total - engine - stages["preprocess"],
            TOTAL: total,
            OUTSIDE: total - engine,
        },
    )


def row_of(subset: str, processes: Sequence[Series], manifest: Manifest, deadline_ms: float) -> dict[str, Any]:
    """The JSON object of one subset; times in ms.

    Args:
        processes: what each of them measured.
        deadline_ms: a decision that took longer counts as missed.
    """
    total_ms = together(processes)
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
        "misses": int(np.count_nonzero(total_ms > deadline_ms)),
        "stages": {
            stage: numbers(distribution([series.stages_ms[stage] for series in processes]))
            for stage in processes[0].stages_ms
        },
        "histogram": histogram(total_ms),
    }


def together(processes: Sequence[Series]) -> Times:
    """The totals of all processes, one after the other."""
    return np.concatenate([series.total_ms for series in processes])


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


def sustained(processes: Sequence[Series]) -> dict[str, Any]:
    """The first minute against the last one, and what lies between in windows of about 5 s."""
    total_ms = together(processes)
    at_s = np.concatenate([series.at_s for series in processes])
    at_s = at_s - at_s[0]
    return {
        "curve": curve_of(at_s, total_ms, _WINDOW_S),
        "first_minute_p50_ms": quantile(total_ms[at_s < _MINUTE_S], 0.5),
        "last_minute_p50_ms": quantile(total_ms[at_s >= at_s[-1] - _MINUTE_S], 0.5),
    }


def curve_of(at_s: Times, total_ms: Times, window_s: float) -> list[dict[str, float]]:
    """p50 and p90 of the total (n,) in equal windows of about `window_s`, from `at_s` 0 to the last decision."""
    count = max(1, round(float(at_s[-1]) / window_s))
    width_s = max(float(at_s[-1]) / count, 1e-9)
    place = np.minimum(at_s // width_s, count - 1)
    curve = []
    for index in range(count):
        inside = total_ms[place == index]
        if inside.size:
            p50, p90 = np.quantile(inside, (0.5, 0.9), method="inverted_cdf")
            curve.append({"t_s": (index + 0.5) * width_s, "p50_ms": float(p50), "p90_ms": float(p90)})
    return curve


def share_of_engine(row: Mapping[str, Any]) -> float:
    """How much of the median decision the engine takes, 0..1."""
    total = row["stages"][TOTAL]["p50_ms"]
    return 1.0 - row["stages"][OUTSIDE]["p50_ms"] / total if total else 0.0

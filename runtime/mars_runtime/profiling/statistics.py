"""What times of several processes say: quantiles, and where those of another process lie.

Axes: n times of one process; P processes.
A quantile q is the smallest time that at least a share q of all times does not exceed. Processes that do the same
differ (where memory lies, which core, what the machine does meanwhile) by more than the noise within any of them, and
no number of rounds in one shows it. An interval is therefore made from the quantiles of the single processes, as the
prediction interval of Student's t for one more of them; on logarithms, because times are skewed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
BOUNDED = ("p50", "p90", "p99")
# Two processes have a spread, but nobody would believe an interval of twelve of them.
LEAST_PROCESSES = 3
_CONFIDENCE = 0.95
# From one minute to the next a machine differs by more than the processes of one run show: the medians of 20 runs in a
# row lay within 6 % (benchmarks/profile_repeats.py, docs/log.md). Half of that, either way.
_DRIFT = 0.03


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Where the quantile of one more process lies, 19 times of 20; None where the processes measured do not tell."""

    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """What the times of all processes say together, in their own unit.

    Attributes:
        std: of the sample, with n - 1 in the denominator; 0 for a single time.
        intervals: of the quantiles in `BOUNDED`.
    """

    n: int
    mean: float
    std: float
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    intervals: Mapping[str, Interval]


def quantile(times: Times, share: float) -> float:
    """The smallest time that at least `share` of all times does not exceed."""
    return float(np.quantile(times, share, method="inverted_cdf"))


def midmean(times: Sequence[float]) -> float:
    """The mean of the middle half: as steady as a median on a busy machine, and finer than the timer's step."""
    ordered = sorted(times)
    cut = len(ordered) // 4
    return float(np.mean(ordered[cut : len(ordered) - cut]))


def distribution(processes: Sequence[Times]) -> Distribution:
    """Everything that is reported of the times of each process, (n,) each, n >= 1."""
    times = np.concatenate(processes)
    points = {name: quantile(times, share) for name, share in QUANTILES.items()}
    return Distribution(
        n=len(times),
        mean=float(np.mean(times)),
        std=float(np.std(times, ddof=1)) if len(times) > 1 else 0.0,
        min=float(np.min(times)),
        max=float(np.max(times)),
        intervals=_in_order({name: _interval(processes, QUANTILES[name], points[name]) for name in BOUNDED}),
        **points,
    )


def _interval(processes: Sequence[Times], share: float, point: float) -> Interval:
    """Around the mean of the processes' own quantiles; wide enough for drift, and for `point`, that of all together.

    None where there are fewer than `LEAST_PROCESSES`, or one of them has too few times for such a quantile: of
    ten times the 99th percentile is only the longest.
    """
    found = [quantile(times, share) for times in processes]
    fewest = min(len(times) for times in processes)
    if len(found) < LEAST_PROCESSES or fewest * (1.0 - share) < 1.0 - 1e-9 or min(found) <= 0.0:
        return Interval(low=None, high=None)
    logs = np.log(found)
    width = math.hypot(student(len(found)) * float(np.std(logs, ddof=1)) * math.sqrt(1.0 + 1.0 / len(found)), _DRIFT)
    middle = float(np.mean(logs))
    return Interval(low=min(math.exp(middle - width), point), high=max(math.exp(middle + width), point))


def _in_order(intervals: Mapping[str, Interval]) -> dict[str, Interval]:
    """No process has a p99 below its p90: a low end below that of a lower quantile is raised to it."""
    found, least = {}, 0.0
    for name, interval in intervals.items():
        least = max(least, interval.low or 0.0)
        found[name] = interval if interval.low is None else Interval(low=least, high=interval.high)
    return found


@cache
def student(processes: int, confidence: float = _CONFIDENCE) -> float:
    """How many standard errors either side of a mean of so many values hold it with this confidence.

    Student's t with n degrees of freedom is sqrt(n) tan(a), the density of the angle a being cos(a) ** (n - 1) but for
    a factor: its integral over a fine grid is inverted.
    """
    freedom = processes - 1
    angles = np.linspace(0.0, math.pi / 2.0, 200_001)
    reached = np.cumsum(np.cos(angles) ** (freedom - 1))
    angle = float(np.interp(confidence, reached / reached[-1], angles))
    return math.sqrt(freedom) * math.tan(angle)


@dataclass(frozen=True, kw_only=True)
class PairedRatio:
    """Median time of one thing over that of another, measured in turn, with an interval of the mean over processes.

    Attributes:
        low, high: None after so few processes that they say nothing.
    """

    ratio: float
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """ "faster", "slower", "no difference", or "not known": what the interval allows to say of the first."""
        return verdict(self.low, self.high)


def paired_ratio(processes: Sequence[Times], base: Sequence[Times], *, beside: int = 0) -> PairedRatio:
    """p50 over p50, both (n,) of the same process; geometric mean over processes.

    A process that is slow for both, or a machine that is, leaves their ratio alone.

    Args:
        beside: how many other ratios are looked at with it. The interval is so wide that all of them together hold
            95 times of 100 (Bonferroni): of two equal files none of seven subsets may be called faster.
    """
    logs = np.log([quantile(own, 0.5) / quantile(other, 0.5) for own, other in zip(processes, base, strict=True)])
    middle = float(np.mean(logs))
    if len(logs) < LEAST_PROCESSES:
        return PairedRatio(ratio=math.exp(middle), low=None, high=None)
    confidence = 1.0 - (1.0 - _CONFIDENCE) / (1 + beside)
    width = student(len(logs), confidence) * float(np.std(logs, ddof=1)) / math.sqrt(len(logs))
    return PairedRatio(ratio=math.exp(middle), low=math.exp(middle - width), high=math.exp(middle + width))


def verdict(low: float | None, high: float | None) -> str:
    """What a ratio between `low` and `high` says about the time in its numerator."""
    if low is None or high is None:
        return "not known"
    if high < 1.0:
        return "faster"
    return "slower" if low > 1.0 else "no difference"

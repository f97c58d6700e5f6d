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

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
BOUNDED = ("p50", "p90", "p99")
# Two processes have a spread, but nobody would believe an interval of twelve of them.
LEAST_PROCESSES = 3
# Upper 2.5 % points of Student's t for 2, 3, ... degrees of freedom; the last one serves all above.
_STUDENT = (4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120)


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
        intervals={name: _interval(processes, QUANTILES[name], points[name]) for name in BOUNDED},
        **points,
    )


def _interval(processes: Sequence[Times], share: float, point: float) -> Interval:
    """Around the mean of the processes' own quantiles; wide enough for `point`, that of all times together.

    None where there are fewer than `LEAST_PROCESSES`, or one of them has too few times for such a quantile: of
    ten times the 99th percentile is only the longest.
    """
    found = [quantile(times, share) for times in processes]
    fewest = min(len(times) for times in processes)
    if len(found) < LEAST_PROCESSES or fewest * (1.0 - share) < 1.0 - 1e-9 or min(found) <= 0.0:
        return Interval(low=None, high=None)
    logs = np.log(found)
    width = _student(len(found)) * float(np.std(logs, ddof=1)) * math.sqrt(1.0 + 1.0 / len(found))
    middle = float(np.mean(logs))
    return Interval(low=min(math.exp(middle - width), point), high=max(math.exp(middle + width), point))


def _student(processes: int) -> float:
    return _STUDENT[min(processes - LEAST_PROCESSES, len(_STUDENT) - 1)]


@dataclass(frozen=True, kw_only=True)
class PairedRatio:
    """Median time of one thing over that of another, measured in turn, with the 95 % interval of the mean of processes.

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


def paired_ratio(processes: Sequence[Times], base: Sequence[Times]) -> PairedRatio:
    """p50 over p50, both (n,) of the same process; geometric mean over processes.

    A process that is slow for both, or a machine that is, leaves their ratio alone.
    """
    logs = np.log([quantile(own, 0.5) / quantile(other, 0.5) for own, other in zip(processes, base, strict=True)])
    middle = float(np.mean(logs))
    if len(logs) < LEAST_PROCESSES:
        return PairedRatio(ratio=math.exp(middle), low=None, high=None)
    width = _student(len(logs)) * float(np.std(logs, ddof=1)) / math.sqrt(len(logs))
    return PairedRatio(ratio=math.exp(middle), low=math.exp(middle - width), high=math.exp(middle + width))


def verdict(low: float | None, high: float | None) -> str:
    """What a ratio between `low` and `high` says about the time in its numerator."""
    if low is None or high is None:
        return "not known"
    if high < 1.0:
        return "faster"
    return "slower" if low > 1.0 else "no difference"

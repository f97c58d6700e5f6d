"""What a comparison over seeds and folds may claim: spreads, paired tests, and their adjustment for many tests.

A run is known by its (seed, fold). Runs of two methods with the same key saw the same samples in the same order
of seeds, so they are compared pair by pair.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

Key = tuple[int, int]
"""(seed, fold)."""

_LEVEL = 0.05
_WILCOXON_PAIRS = 6
"""With fewer pairs the smallest two-sided p the signed-rank test can reach is above 0.05."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean over all runs, and the sample standard deviation over seeds of each seed's mean over folds.

    Attributes:
        deviation: None with fewer than two seeds that have every fold.
        by_fold: the mean over seeds of each fold.
        n: runs.
    """

    mean: float
    deviation: float | None
    by_fold: dict[int, float]
    n: int


@dataclass(frozen=True, kw_only=True)
class Paired:
    """The mean difference of two methods over shared (seed, fold) pairs.

    Attributes:
        low, high: the 95 % interval of the paired t-test.
        p: two-sided, of the paired t-test; `p_holm` adjusted for all comparisons of the table.
        wilcoxon: two-sided p of the signed-rank test; None below 6 pairs.
    """

    n: int
    mean: float
    low: float
    high: float
    p: float
    p_holm: float
    wilcoxon: float | None

    @property
    def verdict(self) -> str:
        """In words what the adjusted test lets one say about the first method."""
        if self.low <= 0.0 <= self.high:
            return "no difference shown"
        if self.p_holm > _LEVEL:
            return "no difference shown after adjustment"
        return "lower error" if self.mean < 0 else "higher error"


def spread(values: Mapping[Key, float]) -> Spread:
    """The spread of one number over runs; `values` must not be empty."""
    folds = sorted({fold for _, fold in values})
    seeds = sorted({seed for seed, _ in values})
    whole = [s for s in seeds if all((s, f) in values for f in folds)]
    by_seed = [statistics.fmean(values[s, f] for f in folds) for s in whole]
    return Spread(
        mean=statistics.fmean(values.values()),
        deviation=statistics.stdev(by_seed) if len(by_seed) > 1 else None,
        by_fold={f: statistics.fmean(v for (_, fold), v in values.items() if fold == f) for f in folds},
        n=len(values),
    )


def paired_test(first: Mapping[Key, float], other: Mapping[Key, float]) -> Paired | None:
    """first - other over the keys both have, not yet adjusted for other tests; None below two pairs."""
    differences = [first[key] - other[key] for key in sorted(first.keys() & other.keys())]
    n = len(differences)
    if n < 2:
        return None
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    half = float(stats.t.ppf(1 - _LEVEL / 2, n - 1)) * deviation / math.sqrt(n)
    p = _t_test_p(mean, deviation, n)
    return Paired(n=n, mean=mean, low=mean - half, high=mean + half, p=p, p_holm=p, wilcoxon=_wilcoxon_p(differences))


def _t_test_p(mean: float, deviation: float, n: int) -> float:
    if deviation == 0.0:
        return 1.0 if mean == 0.0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / (deviation / math.sqrt(n)), n - 1))


def _wilcoxon_p(differences: Sequence[float]) -> float | None:
    if len(differences) < _WILCOXON_PAIRS:
        return None
    # Pratt's ranks keep pairs without a difference; all of them without one cannot be ranked at all.
    if not any(differences):
        return 1.0
    return float(stats.wilcoxon(np.array(differences), zero_method="pratt").pvalue)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given; the family-wise error rate stays below the level.

    Source: Holm 1979, Scandinavian Journal of Statistics 6(2), 65-70.
    """
    adjusted = [0.0] * len(ps)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted

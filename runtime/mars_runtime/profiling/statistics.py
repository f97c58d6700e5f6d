"""What a set of times says: quantiles with intervals that hold although a machine's noise comes in bursts.

Axes: n times in the order they were measured; R resamples.
A quantile q is the smallest time that at least a share q of all times does not exceed. Times close to each other
resemble each other (another process ran, the clock rate fell), so whole stretches of about sqrt(n) times are resampled,
not single ones: the circular block bootstrap of Politis and Romano (1992).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
BOUNDED = ("p50", "p90", "p99")
# Either end of an interval is exceeded with this probability.
_TAIL = 0.025
_RESAMPLES = 1000
# Of very long runs fewer resamples are drawn: their intervals are narrow, and the time grows with n.
_LONG, _RESAMPLES_LONG = 8192, 400
_CHUNK = 50


@dataclass(frozen=True, kw_only=True)
class Interval:
    """95 % bootstrap interval of a quantile; None on a side that n times cannot bound."""

    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """What n times say, in their own unit.

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


class Resampling:
    """How often each of n times is drawn in each resample; the same for all stages of a row, so that they stay paired.

    The same n and seed give the same resamples.
    """

    def __init__(self, n: int, *, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.n = n
        self.resamples = _RESAMPLES if n <= _LONG else _RESAMPLES_LONG
        self._block = max(1, round(math.sqrt(n)))
        self._starts = generator.integers(n, size=(self.resamples, math.ceil(n / self._block)))

    def quantiles(self, times: Times, shares: tuple[float, ...]) -> Times:
        """The quantiles (R, shares) of every resample of `times` (n,)."""
        order = np.argsort(times, kind="stable")
        ordered = times[order]
        found = np.empty((self.resamples, len(shares)))
        for begin in range(0, self.resamples, _CHUNK):
            counts = self._counts(slice(begin, begin + _CHUNK))
            reached = np.cumsum(counts[:, order], axis=1)
            total = reached[:, -1]
            for column, share in enumerate(shares):
                wanted = np.ceil(share * total - 1e-9)
                found[begin : begin + _CHUNK, column] = ordered[np.argmax(reached >= wanted[:, np.newaxis], axis=1)]
        return found

    def _counts(self, chosen: slice) -> NDArray[np.int32]:
        """(resamples, n): each block adds one from its start on and takes it away after its end, around the circle."""
        starts = self._starts[chosen]
        steps = np.zeros((len(starts), 2 * self.n + 1), np.int32)
        rows = np.broadcast_to(np.arange(len(starts))[:, np.newaxis], starts.shape)
        np.add.at(steps, (rows, starts), 1)
        np.add.at(steps, (rows, starts + self._block), -1)
        drawn = np.cumsum(steps, axis=1)
        counts: NDArray[np.int32] = (drawn[:, : self.n] + drawn[:, self.n : 2 * self.n]).astype(np.int32)
        return counts


def quantile(times: Times, share: float) -> float:
    """The smallest time that at least `share` of all times does not exceed."""
    return float(np.quantile(times, share, method="inverted_cdf"))


def distribution(times: Times, resampling: Resampling | None = None) -> Distribution:
    """Everything that is reported of `times` (n,), n >= 1."""
    drawn = (resampling or Resampling(len(times))).quantiles(times, tuple(QUANTILES[name] for name in BOUNDED))
    points = {name: quantile(times, share) for name, share in QUANTILES.items()}
    return Distribution(
        n=len(times),
        mean=float(np.mean(times)),
        std=float(np.std(times, ddof=1)) if len(times) > 1 else 0.0,
        min=float(np.min(times)),
        max=float(np.max(times)),
        intervals={
            name: _interval(drawn[:, column], points[name], QUANTILES[name], len(times))
            for column, name in enumerate(BOUNDED)
        },
        **points,
    )


def _interval(drawn: Times, point: float, share: float, n: int) -> Interval:
    """The middle 95 % of `drawn`, widened to hold `point`.

    The largest of n times lies below the true quantile with probability share ** n: where that is above 2.5 %, no
    resample can reach far enough, and the end is None.
    """
    low, high = np.quantile(drawn, (_TAIL, 1.0 - _TAIL))
    return Interval(
        low=min(float(low), point) if (1.0 - share) ** n <= _TAIL else None,
        high=max(float(high), point) if share**n <= _TAIL else None,
    )


@dataclass(frozen=True, kw_only=True)
class PairedRatio:
    """Median time of one thing over that of another, measured in the same rounds, with its 95 % interval."""

    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """ "faster", "slower" or "no difference": what the interval allows to say of the first."""
        return verdict(self.low, self.high)


def paired_ratio(times: Times, base: Times) -> PairedRatio:
    """p50 of `times` (n,) over p50 of `base` (n,); whole rounds are resampled, so that a drift stays paired."""
    resampling = Resampling(len(times))
    drawn = resampling.quantiles(times, (0.5,)) / resampling.quantiles(base, (0.5,))
    ratio = quantile(times, 0.5) / quantile(base, 0.5)
    low, high = np.quantile(drawn, (_TAIL, 1.0 - _TAIL))
    return PairedRatio(ratio=ratio, low=min(float(low), ratio), high=max(float(high), ratio))


def verdict(low: float, high: float) -> str:
    """What a ratio between `low` and `high` says about the time in its numerator."""
    if high < 1.0:
        return "faster"
    return "slower" if low > 1.0 else "no difference"

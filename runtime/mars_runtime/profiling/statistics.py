"""What a set of times says: quantiles with intervals that hold although a machine's noise comes in bursts.

Axes: n times in the order they were measured; R resamples.
A quantile q is the smallest time that at least a share q of all times does not exceed. Times close to each other
resemble each other (another process ran, the clock rate fell), so whole stretches of about sqrt(n) times are resampled,
not single ones: the circular block bootstrap of Politis and Romano (1992). Its intervals are widened where too few
independent times stand behind them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
# Fewer rounds of a pair are resampled into intervals that are wrong every other time.
LEAST_ROUNDS = 30
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


def midmean(times: Sequence[float]) -> float:
    """The mean of the middle half: as steady as a median on a busy machine, and finer than the timer's step."""
    ordered = sorted(times)
    cut = len(ordered) // 4
    return float(np.mean(ordered[cut : len(ordered) - cut]))


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
            name: _interval(times, drawn[:, column], points[name], QUANTILES[name])
            for column, name in enumerate(BOUNDED)
        },
        **points,
    )


def _interval(times: Times, drawn: Times, point: float, share: float) -> Interval:
    """The middle 95 % of the resampled quantiles, widened to what order statistics say; None on a side nothing bounds.

    Resamples of a tail are too much alike where a few bursts make it. The exact interval of a quantile between two
    order statistics (Hahn and Meeker, 1991) does not depend on them; of the times as many count as are independent.
    """
    low, high = np.quantile(drawn, (_TAIL, 1.0 - _TAIL))
    shares = _order_shares(independent(times > point), share)
    ends = [None if end is None else quantile(times, end) for end in shares]
    return Interval(
        low=None if ends[0] is None else min(float(low), ends[0], point),
        high=None if ends[1] is None else max(float(high), ends[1], point),
    )


def independent(above: NDArray[np.bool_]) -> int:
    """How many of these n marks count: n over their integrated autocorrelation time, the sum over lags until it falls.

    Never fewer than sqrt(n), the number of stretches that are resampled: where the machine changed for good half-way,
    the marks of each half are all alike, and no number would be left.

    Source: Geyer, Practical Markov Chain Monte Carlo, 1992 (initial positive sequence).
    """
    n = len(above)
    centred = above.astype(np.float64) - above.mean()
    power = float(centred @ centred)
    if power == 0.0:
        return n
    spectrum = np.fft.rfft(centred, 2 * n)
    correlation = np.fft.irfft(spectrum * np.conj(spectrum))[: n // 2] / power
    pairs = correlation[0 : n // 4 * 2 : 2] + correlation[1 : n // 4 * 2 : 2]
    end = int(np.argmax(pairs <= 0.0)) if (pairs <= 0.0).any() else len(pairs)
    time = max(1.0, 2.0 * float(pairs[:end].sum()) - 1.0)
    return max(round(math.sqrt(n)), round(n / time))


def _order_shares(n: int, share: float) -> tuple[float | None, float | None]:
    """Between which shares of n independent times the quantile lies, each end missed with at most 2.5 %."""
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))
    k = np.arange(n + 1)
    log_choose = log_factorial[n] - log_factorial[k] - log_factorial[n - k]
    below = np.cumsum(np.exp(log_choose + k * math.log(share) + (n - k) * math.log1p(-share)))
    # Of n times k lie at or below the quantile: below[k - 1] is how often it lies under the k-th smallest.
    low = int(np.searchsorted(below, _TAIL, side="right"))
    high = int(np.searchsorted(below, 1.0 - _TAIL, side="left")) + 1
    return (low / n if low >= 1 else None), (high / n if high <= n else None)


@dataclass(frozen=True, kw_only=True)
class PairedRatio:
    """Median time of one thing over that of another, measured in the same rounds, with its 95 % interval.

    Attributes:
        low, high: None after so few rounds that resampling them says nothing.
    """

    ratio: float
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """ "faster", "slower", "no difference", or "not known": what the interval allows to say of the first."""
        return verdict(self.low, self.high)


def paired_ratio(times: Times, base: Times) -> PairedRatio:
    """p50 of `times` (n,) over p50 of `base` (n,); whole rounds are resampled, so that a drift stays paired."""
    resampling = Resampling(len(times))
    drawn = resampling.quantiles(times, (0.5,)) / resampling.quantiles(base, (0.5,))
    ratio = quantile(times, 0.5) / quantile(base, 0.5)
    if len(times) < LEAST_ROUNDS:
        return PairedRatio(ratio=ratio, low=None, high=None)
    low, high = np.quantile(drawn, (_TAIL, 1.0 - _TAIL))
    return PairedRatio(ratio=ratio, low=min(float(low), ratio), high=max(float(high), ratio))


def verdict(low: float | None, high: float | None) -> str:
    """What a ratio between `low` and `high` says about the time in its numerator."""
    if low is None or high is None:
        return "not known"
    if high < 1.0:
        return "faster"
    return "slower" if low > 1.0 else "no difference"

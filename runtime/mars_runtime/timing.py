"""Two things timed side by side, so that whatever else the machine does meets both.

Axes: R rounds; S = 2 sides, A and B; C = 2 calls of a side in a round.
A round is A B B A, the next one B A A B: a drift of the clock rate or of the load adds the same to both sides, and
neither is always the one whose data the other has just put out of the cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ORDERS = ((0, 1, 1, 0), (1, 0, 0, 1))
_WARM_UP = 3
_RESAMPLES = 1000

Call = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How long B takes for each unit of time that A takes.

    Attributes:
        a_ms, b_ms: medians over all calls of a side.
        ratio: b_ms / a_ms, with its 95 % bootstrap interval `low`..`high` over rounds.
        rounds: R.
    """

    a_ms: float
    b_ms: float
    ratio: float
    low: float
    high: float
    rounds: int


def interleaved(
    pairs: Mapping[str, tuple[Call, Call]], rounds: int, *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, NDArray[np.float64]]:
    """Seconds (R, S, C) per pair, after a few calls of each that are not timed; every round visits every pair."""
    for pair in pairs.values():
        for call in pair * _WARM_UP:
            call()
    times = {name: np.zeros((rounds, 2, 2)) for name in pairs}
    for index in range(rounds):
        for name, pair in pairs.items():
            calls = [0, 0]
            for side in _ORDERS[index % 2]:
                start = clock()
                pair[side]()
                times[name][index, side, calls[side]] = clock() - start
                calls[side] += 1
    return times


def ratio_of(times: NDArray[np.float64], *, seed: int = 0) -> Ratio:
    """Medians and their ratio from seconds (R, S, C); whole rounds are resampled, so that a drift stays paired.

    The same seed gives the same interval. A single round gives no interval but its own ratio.
    """
    rounds = len(times)
    a, b = np.median(times, axis=(0, 2))
    chosen = np.random.default_rng(seed).integers(rounds, size=(_RESAMPLES, rounds))
    medians = np.median(times[chosen], axis=(1, 3))
    resampled = medians[:, 1] / medians[:, 0]
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Ratio(
        a_ms=float(a) * 1e3,
        b_ms=float(b) * 1e3,
        ratio=float(b / a),
        low=min(float(low), float(b / a)),
        high=max(float(high), float(b / a)),
        rounds=rounds,
    )

"""Metrics every stage reports, with exact binomial intervals; NumPy only.

Axes: n samples (or pixels), C classes.
ISO/IEC 30107-3 names: APCER is the share of attack presentations of one species accepted as bona fide
(the worst species counts); BPCER is the share of bona fide presentations rejected. ACER in the face
anti-spoofing benchmarks is the mean of the pooled attack error and the bona fide error.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_edge.errors import UsageError

CALIBRATION_BINS = 15
# Of the range of the scores: how far a threshold keeps off the score it must accept.
_CLEARANCE = 1e-6
_RESAMPLES = 1000
# Resampled confusion matrices held at once; 101 classes take 82 kB each.
_RESAMPLES_AT_ONCE = 100


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share of `n` trials with its 95 % Clopper-Pearson interval; all values in 0..1."""

    value: float
    low: float
    high: float
    errors: int
    n: int


@dataclass(frozen=True, kw_only=True)
class SpoofErrors:
    """Error rates of a live/spoof decision at one threshold.

    Attributes:
        acer: mean of `apcer_pooled` and `bpcer`, in 0..1.
        apcer_pooled: accepted share of all attacks.
        apcer: accepted share per attack species.
        bpcer: rejected share of bona fide presentations.
    """

    acer: float
    acer_low: float
    acer_high: float
    apcer_pooled: Rate
    apcer: Mapping[str, Rate]
    bpcer: Rate

    @property
    def worst_species(self) -> str:
        """The species accepted most often."""
        return max(self.apcer, key=lambda name: self.apcer[name].value)


def class_probabilities(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float64]:
    """Softmax over the last axis of logits / `temperature`: what thresholds are compared with."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return shares


@lru_cache(maxsize=4096)
def clopper_pearson(errors: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval of a binomial share, from the binomial tails (Clopper, Pearson 1934).

    Raises:
        UsageError: not 0 <= errors <= n with n >= 1, or confidence outside (0, 1).
    """
    if not 0 <= errors <= n or n < 1:
        raise UsageError(f"{errors} of {n}: an interval needs 0 <= errors <= n and n >= 1")
    if not 0.0 < confidence < 1.0:
        raise UsageError(f"confidence {confidence!r} must lie between 0 and 1")
    tail = (1.0 - confidence) / 2.0
    low = 0.0 if errors == 0 else _solve(lambda p: _upper_tail(errors, n, p) - tail)
    high = 1.0 if errors == n else _solve(lambda p: tail - _upper_tail_complement(errors, n, p))
    return low, high


def rate(errors: int, n: int) -> Rate:
    """`errors / n` with its 95 % Clopper-Pearson interval."""
    low, high = clopper_pearson(errors, n)
    return Rate(value=errors / n, low=low, high=high, errors=errors, n=n)


def accuracy(predicted: NDArray[np.int64], expected: NDArray[np.int64]) -> Rate:
    """The share of equal entries; `errors` counts the *hits*, so value = hits / n.

    Raises:
        UsageError: shapes differ or are empty.
    """
    if predicted.shape != expected.shape or predicted.size == 0:
        raise UsageError(f"accuracy needs equal non-empty shapes, got {predicted.shape} and {expected.shape}")
    return rate(int(np.count_nonzero(predicted == expected)), int(predicted.size))


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """How sure a model was and how often it was right, per bin of confidence; two of them add up.

    Bin b of `CALIBRATION_BINS` holds confidences in (b / bins, (b + 1) / bins]: bins of equal width, because
    those of equal mass are known only once all answers are in, and the pixels of a test set do not fit in memory.

    Attributes:
        counts: answers per bin, (bins,).
        confidence: sum of the confidences per bin, (bins,).
        hits: answers that were right per bin, (bins,).
    """

    counts: NDArray[np.float64]
    confidence: NDArray[np.float64]
    hits: NDArray[np.float64]

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(
            counts=self.counts + other.counts,
            confidence=self.confidence + other.confidence,
            hits=self.hits + other.hits,
        )

    @property
    def error(self) -> float:
        """Expected calibration error in 0..1: the mean of |share right - mean confidence|, bins weighted by count.

        Source: arXiv 1706.04599, equation 3.

        Raises:
            UsageError: there is no answer at all.
        """
        total = self.counts.sum()
        if total == 0:
            raise UsageError("0 answers have no calibration error; at least 1 is needed")
        return float(np.abs(self.hits - self.confidence).sum() / total)


def reliability(confidence: NDArray[np.floating], hit: NDArray[np.bool_]) -> Reliability:
    """The bins of n answers: `confidence` (n,) in 0..1 of the chosen class, and whether it was the right one (n,).

    Raises:
        UsageError: shapes differ, or a confidence is not in 0..1.
    """
    if confidence.ndim != 1 or confidence.shape != hit.shape:
        raise UsageError(f"confidence has shape {confidence.shape} and hit {hit.shape}; both must be (n,)")
    wrong = int(np.count_nonzero(~((confidence >= 0.0) & (confidence <= 1.0))))
    if wrong:
        raise UsageError(f"{wrong} of {confidence.size} confidences are not in 0..1")
    bins = np.clip(np.ceil(confidence.astype(np.float64) * CALIBRATION_BINS) - 1, 0, None).astype(np.int64)

    def per_bin(weights: NDArray[Any] | None) -> NDArray[np.float64]:
        return np.bincount(bins, weights, CALIBRATION_BINS).astype(np.float64)

    return Reliability(counts=per_bin(None), confidence=per_bin(confidence), hits=per_bin(hit))


@dataclass(frozen=True, kw_only=True)
class MeanIou:
    """Intersection over union, the mean over the classes that occur, in 0..1.

    Attributes:
        value: of all images together, with its 95 % bootstrap interval `low` to `high` over images.
        per_class: (C,) float64, NaN for a class that neither labels nor answers ever name.
        n: images.
    """

    value: float
    low: float
    high: float
    per_class: NDArray[np.float64]
    n: int


def confusion_matrix(expected: NDArray[np.integer], predicted: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """Counts (C, C): entry [i, j] is how often class i was answered as j; labels outside 0..C-1 are left out.

    Raises:
        UsageError: shapes differ, or an answer is no class.
    """
    if expected.shape != predicted.shape:
        raise UsageError(f"labels have shape {expected.shape} and answers {predicted.shape}; they must be equal")
    known = (expected >= 0) & (expected < classes)
    rows, columns = expected[known].astype(np.int64), predicted[known].astype(np.int64)
    if columns.size and (columns.min() < 0 or columns.max() >= classes):
        raise UsageError(f"answers run from {columns.min()} to {columns.max()}; allowed: 0 to {classes - 1}")
    return np.bincount(rows * classes + columns, minlength=classes * classes).reshape(classes, classes)


def class_ious(confusion: NDArray[np.number]) -> NDArray[np.float64]:
    """Intersection over union per class (..., C) of confusion matrices (..., C, C); NaN where the union is empty."""
    counts = confusion.astype(np.float64)
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    union = counts.sum(axis=-1) + counts.sum(axis=-2) - hits
    ious: NDArray[np.float64] = np.divide(hits, union, out=np.full(hits.shape, np.nan), where=union > 0)
    return ious


def mean_iou(confusions: NDArray[np.integer], *, seed: int = 0) -> MeanIou:
    """mIoU of the summed confusion matrices (n, C, C) of n images, with a percentile bootstrap over images.

    Pixels of one image err together, so whole images are resampled, 1000 times; the same seed gives the same
    interval. The interval of a single image is its own value.

    Raises:
        UsageError: no image, or no pixel that counts.
    """
    if confusions.ndim != 3 or not confusions.sum():
        raise UsageError(f"confusion matrices of shape {confusions.shape} hold no labelled pixel; mIoU needs one")
    per_class = class_ious(confusions.sum(axis=0))
    low, high = np.nanquantile(_resampled_ious(confusions, seed), (0.025, 0.975))
    value = float(np.nanmean(per_class))
    return MeanIou(
        value=value,
        # Few images: draws that miss a class can leave all of the value on one side.
        low=min(float(low), value),
        high=max(float(high), value),
        per_class=per_class,
        n=len(confusions),
    )


def _resampled_ious(confusions: NDArray[np.integer], seed: int) -> NDArray[np.float64]:
    """mIoU (resamples,) of as many images drawn with replacement; a draw without a labelled pixel is left out."""
    n, classes = confusions.shape[0], confusions.shape[1]
    flat = confusions.reshape(n, -1).astype(np.float64)
    generator = np.random.default_rng(seed)
    found: list[NDArray[np.float64]] = []
    for _ in range(_RESAMPLES // _RESAMPLES_AT_ONCE):
        times = generator.multinomial(n, np.full(n, 1.0 / n), _RESAMPLES_AT_ONCE)
        ious = class_ious((times @ flat).reshape(-1, classes, classes))
        ious = ious[~np.isnan(ious).all(axis=1)]
        found.append(np.nanmean(ious, axis=1))
    return np.concatenate(found)


def spoof_errors(
    scores: NDArray[np.floating], live: NDArray[np.bool_], species: NDArray[np.str_], threshold: float
) -> SpoofErrors:
    """APCER per species, BPCER and ACER when scores >= `threshold` are accepted as live.

    Args:
        scores: (B,) liveness score, higher is more live.
        live: (B,) True for bona fide.
        species: (B,) name of the attack species; ignored where `live`.
        threshold: operating point on `scores`.

    The ACER interval is conservative: the mean of the two Clopper-Pearson bounds.

    Raises:
        UsageError: a score is not finite, shapes differ, or there is no bona fide or no attack sample.
    """
    _need_scores(scores, live)
    _need_both_classes(live)
    _need_species(species, live)
    accepted = scores >= threshold
    attacks = ~live
    per_species = {
        str(name): rate(int(accepted[attacks & (species == name)].sum()), int((attacks & (species == name)).sum()))
        for name in np.unique(species[attacks])
    }
    pooled = rate(int(accepted[attacks].sum()), int(attacks.sum()))
    bpcer = rate(int((~accepted[live]).sum()), int(live.sum()))
    return SpoofErrors(
        acer=(pooled.value + bpcer.value) / 2.0,
        acer_low=(pooled.low + bpcer.low) / 2.0,
        acer_high=(pooled.high + bpcer.high) / 2.0,
        apcer_pooled=pooled,
        apcer=per_species,
        bpcer=bpcer,
    )


def equal_error_threshold(scores: NDArray[np.floating], live: NDArray[np.bool_]) -> float:
    """The threshold at which pooled attack error and bona fide error are closest, midway between scores.

    Raises:
        UsageError: a score is not finite, shapes differ, or there is no bona fide or no attack sample.
    """
    _need_scores(scores, live)
    _need_both_classes(live)
    candidates = _midpoints(scores)
    bona_fide, attack = np.sort(scores[live]), np.sort(scores[~live])
    bpcer = np.searchsorted(bona_fide, candidates, side="left") / bona_fide.size
    apcer = 1.0 - np.searchsorted(attack, candidates, side="left") / attack.size
    # Ties are settled by the lowest sum of both errors.
    cost = np.abs(bpcer - apcer) + 1e-6 * (bpcer + apcer)
    return float(candidates[np.argmin(cost)])


def bpcer_threshold(scores: NDArray[np.floating], live: NDArray[np.bool_], target: float) -> float:
    """The highest threshold that rejects at most `target` of the bona fide samples, but for one part in a million.

    That part of the scores' range keeps it off the sample's own score, which another machine's exponential function
    may round down: the scores of a quantized model tie, and all that share one would be rejected at once.

    Raises:
        UsageError: a score is not finite, shapes differ, no bona fide sample, or target outside [0, 1).
    """
    _need_scores(scores, live)
    if not live.any() or not 0.0 <= target < 1.0:
        raise UsageError(
            f"BPCER target {target!r} must lie in [0, 1) and needs bona fide samples, got {int(live.sum())}"
        )
    bona_fide = np.sort(scores[live].astype(np.float64))
    lowest_accepted = bona_fide[_allowed(bona_fide.size, target)]
    values = np.unique(scores.astype(np.float64))
    below = values[values < lowest_accepted]
    room = _CLEARANCE * (values[-1] - values[0])
    return float(lowest_accepted - (min(room, (lowest_accepted - below[-1]) / 2.0) if below.size else room))


def apcer_threshold(
    scores: NDArray[np.floating],
    live: NDArray[np.bool_],
    species: NDArray[np.str_],
    target: float,
    *,
    bounded: bool = False,
) -> float:
    """The lowest threshold, midway between scores, that accepts at most `target` of every attack species.

    Args:
        scores: (B,) liveness score, higher is more live.
        live: (B,) True for bona fide.
        species: (B,) name of the attack species; ignored where `live`.
        target: share of the worst species that may be accepted.
        bounded: `target` holds for `worst_apcer_bound` instead of the share that was counted.

    Above every score, so that nothing is accepted, where no other threshold will do.

    Raises:
        UsageError: a score is not finite, shapes differ, no attack sample, or target outside [0, 1).
    """
    _need_scores(scores, live)
    attacks = ~live
    if not attacks.any() or not 0.0 <= target < 1.0:
        raise UsageError(f"APCER target {target!r} must lie in [0, 1) and needs attacks, got {int(attacks.sum())}")
    _need_species(species, live)
    values = np.unique(scores.astype(np.float64))
    names = np.unique(species[attacks])
    rejected = -math.inf
    for name in names:
        own = -np.sort(-scores[attacks & (species == name)].astype(np.float64))
        most = _allowed_bound(own.size, target, names.size) if bounded else _allowed(own.size, target)
        rejected = max(rejected, float(values[-1] if most is None else own[most]))
    above = values[values > rejected]
    return float((rejected + above[0]) / 2.0) if above.size else math.nextafter(rejected, math.inf)


def worst_apcer_bound(apcer: Mapping[str, Rate]) -> float:
    """A bound in 0..1 that, with 95 % confidence, the true APCER of no species exceeds.

    The largest of the upper Clopper-Pearson bounds at 1 - 0.05 / species: which species is the worst one is chosen
    by looking, so all must hold at once (Bonferroni).

    Raises:
        UsageError: there is no species.
    """
    if not apcer:
        raise UsageError("0 attack species bound nothing; at least 1 is needed")
    return max(clopper_pearson(r.errors, r.n, _each_of(len(apcer)))[1] for r in apcer.values())


def _each_of(species: int) -> float:
    """The confidence of one interval, of as many as there are species, that hold at once with 95 %."""
    return 1.0 - 0.05 / species


def _allowed(n: int, target: float) -> int:
    """The most of n samples whose share is at most `target`, which is below 1."""
    # Not floor(target * n): 0.29 * 100 is 28.999999999999996 in binary.
    return int(np.flatnonzero(np.arange(n) / n <= target)[-1])


def _allowed_bound(n: int, target: float, species: int) -> int | None:
    """The most of n samples whose upper bound is at most `target`; None where even 0 of n bounds less."""
    met = bisect.bisect_left(range(n), True, key=lambda k: clopper_pearson(k, n, _each_of(species))[1] > target)
    return met - 1 if met else None


def _need_scores(scores: NDArray[np.floating], live: NDArray[np.bool_]) -> None:
    if scores.ndim != 1 or scores.shape != live.shape:
        raise UsageError(f"scores have shape {scores.shape} and live {live.shape}; both must be (B,)")
    # With 0/1 integers `~live` would be -1/-2 and pick the wrong samples in silence.
    if live.dtype != np.bool_:
        raise UsageError(f"live is {live.dtype}, expected bool")
    if not np.all(np.isfinite(scores)):
        raise UsageError(f"{np.count_nonzero(~np.isfinite(scores))} of {scores.size} scores are not finite")


def _need_species(species: NDArray[np.str_], live: NDArray[np.bool_]) -> None:
    if species.shape != live.shape:
        raise UsageError(f"species has shape {species.shape}, expected one per score {live.shape}")


def _need_both_classes(live: NDArray[np.bool_]) -> None:
    if not live.any() or live.all():
        raise UsageError(f"{int(live.sum())} bona fide of {live.size} samples: both classes are needed")


def _midpoints(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    values = np.unique(scores.astype(np.float64))
    if values.size == 1:
        return values
    return (values[1:] + values[:-1]) / 2.0


@lru_cache(maxsize=8)
def _log_choose(n: int) -> NDArray[np.float64]:
    return math.lgamma(n + 1) - np.array([math.lgamma(k + 1) + math.lgamma(n - k + 1) for k in range(n + 1)])


def _log_pmf(n: int, p: float) -> NDArray[np.float64]:
    k = np.arange(n + 1)
    return np.asarray(_log_choose(n) + k * math.log(p) + (n - k) * math.log1p(-p))


def _upper_tail(errors: int, n: int, p: float) -> float:
    """P(X >= errors) for X ~ Binomial(n, p)."""
    return 0.0 if p <= 0.0 else 1.0 if p >= 1.0 else float(np.exp(_log_pmf(n, p)[errors:]).sum())


def _upper_tail_complement(errors: int, n: int, p: float) -> float:
    """P(X <= errors) for X ~ Binomial(n, p)."""
    return 1.0 if p <= 0.0 else 0.0 if p >= 1.0 else float(np.exp(_log_pmf(n, p)[: errors + 1]).sum())


def _solve(increasing: Callable[[float], float]) -> float:
    """The root in 0..1 of a function that rises with p, by bisection to the last double."""
    low, high = 0.0, 1.0
    for _ in range(64):
        middle = (low + high) / 2.0
        if increasing(middle) > 0.0:
            high = middle
        else:
            low = middle
    return (low + high) / 2.0

"""Operating points: where each modality subset decides, and how well that was measured.

Temperature and threshold are chosen on validation, errors are measured on test, both from the artifact itself in
its engine, so that quantization is inside what is measured. The two splits are disjoint and nothing is chosen by
looking at test. A certified subset therefore has a true error above its bound in at most 5 % of all test sets. That is
of each subset by itself, not of all at once; of independent samples, which the frames of one video are not; and of
the species of attack that test holds, no other.

Axes: B samples, P pixels, C classes, H height, W width.
Source: ISO/IEC 30107-3 for APCER and BPCER; Clopper and Pearson 1934 for the intervals; Guo et al. 2017
(arXiv 1706.04599, section 4.2) for the temperature.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mars_edge import metrics
from mars_edge.errors import UsageError
from mars_edge.manifest import OperatingPoint
from mars_training.data.split import IGNORED, Source, Split
from mars_training.recipe import ExportRecipe

# Two classes: the largest logit is the positive one when its probability is above one half.
_ARGMAX_THRESHOLD = 0.5
_LEAST_TEMPERATURE, _MOST_TEMPERATURE = 0.05, 20.0
_LEAST_SAMPLES = 50
_MOST_PIXELS = 50_000
_HALVINGS = 50


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """What divides the logits of one subset.

    Attributes:
        value: in 0.05..20.
        note: why it is not the minimum of the loss; None where it is.
    """

    value: float
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Sureness:
    """How well probabilities fit what happened.

    Attributes:
        ece: expected calibration error of the largest probability, in 0..1.
        nll: mean negative log-likelihood of the right class, in nats.
    """

    ece: float
    nll: float


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """An operating point and how it came about.

    Attributes:
        before: on test, without the temperature.
        after: on test, with it.
        shortfalls: why the point is not certified, one reason each; empty where it is.
    """

    point: OperatingPoint
    temperature: Temperature
    before: Sureness
    after: Sureness
    shortfalls: tuple[str, ...]


class Measured(Protocol):
    """A metric over `n` samples that is better when higher, in 0..1, with its 95 % interval."""

    @property
    def value(self) -> float:
        """The metric."""

    @property
    def low(self) -> float:
        """Lower end of its interval."""

    @property
    def high(self) -> float:
        """Upper end of its interval."""

    @property
    def n(self) -> int:
        """Samples, or images."""


def positive_scores(logits: NDArray[np.floating], positive: int, temperature: float = 1.0) -> NDArray[np.float64]:
    """Softmax probability (B,) of class `positive` from logits (B, C), as the runtime computes it."""
    return metrics.class_probabilities(logits, temperature)[:, positive]


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> Temperature:
    """The temperature in 0.05..20 with the lowest mean negative log-likelihood of logits (B, C) and labels (B,).

    It stays 1, with a note, where the data does not say: fewer than 50 samples, one class, or a loss that still falls
    at 0.05, as it does without end where no answer is wrong. A loss that still falls at 20 gives 20, with a note.

    Raises:
        UsageError: a logit is not finite, or shapes do not match.
    """
    _need_logits(logits, labels)
    if len(labels) < _LEAST_SAMPLES:
        return Temperature(value=1.0, note=f"{len(labels)} samples, {_LEAST_SAMPLES} are needed")
    if len(np.unique(labels)) == 1:
        return Temperature(value=1.0, note="all samples are of one class")
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    right = values[np.arange(len(labels)), labels]
    # In 1 / temperature the loss is convex: its slope rises.
    cold, hot = 1.0 / _LEAST_TEMPERATURE, 1.0 / _MOST_TEMPERATURE
    if _slope(values, right, cold) <= 0.0:
        return Temperature(value=1.0, note=f"the loss still falls at {_LEAST_TEMPERATURE:g}: hardly an answer is wrong")
    if _slope(values, right, hot) >= 0.0:
        return Temperature(value=_MOST_TEMPERATURE, note="the loss still falls: the answers know little of the classes")
    for _ in range(_HALVINGS):
        middle = float(np.sqrt(hot * cold))
        hot, cold = (hot, middle) if _slope(values, right, middle) > 0.0 else (middle, cold)
    return Temperature(value=float(1.0 / np.sqrt(hot * cold)))


def sureness(logits: NDArray[np.floating], labels: NDArray[np.integer], temperature: float) -> Sureness:
    """Calibration error and likelihood of logits (B, C) / `temperature` against labels (B,).

    Raises:
        UsageError: a logit is not finite, shapes do not match, or there is no sample.
    """
    _need_logits(logits, labels)
    shares = metrics.class_probabilities(logits, temperature)
    bins = metrics.reliability(np.minimum(shares.max(axis=1), 1.0), shares.argmax(axis=1) == labels)
    values = logits.astype(np.float64) / temperature
    values -= values.max(axis=1, keepdims=True)
    nll = np.log(np.exp(values).sum(axis=1)) - values[np.arange(len(labels)), labels]
    return Sureness(ece=bins.error, nll=float(nll.mean()))


class PixelSample:
    """Labelled pixels of a stream of label maps, at most `most`, each as likely to be kept as any other.

    Which ones depends on `seed` and the order of the images alone. All pixels of a test set do not fit in memory.
    """

    def __init__(self, *, most: int = _MOST_PIXELS, seed: int = 0) -> None:
        self._most = most
        self._random = np.random.default_rng(seed)
        self._parts: list[tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.int64]]] = []
        # Every pixel draws a number; the lowest `most` stay, so the next must be below the highest of them.
        self._limit = 1.0

    def add(self, logits: NDArray[np.floating], labels: NDArray[np.integer]) -> None:
        """Offer one image: logits (C, H, W) and labels (H, W); `IGNORED` pixels are never kept."""
        drawn = self._random.random(labels.size)
        flat = labels.reshape(-1)
        kept = np.flatnonzero((flat != IGNORED) & (drawn < self._limit))
        chosen = logits.reshape(len(logits), -1)[:, kept].T.astype(np.float32)
        self._parts.append((drawn[kept], chosen, flat[kept].astype(np.int64)))
        if sum(len(part[0]) for part in self._parts) > 2 * self._most:
            self._trim()

    @property
    def logits(self) -> NDArray[np.float32]:
        """Of the pixels that were kept, (P, C)."""
        return self._trim()[1]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Of the pixels that were kept, (P,)."""
        return self._trim()[2]

    def _trim(self) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.int64]]:
        if not self._parts:
            raise UsageError("no label map was offered: there is no pixel to calibrate on")
        drawn, logits, labels = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        order = np.argsort(drawn)[: self._most]
        whole = (drawn[order], logits[order], labels[order])
        self._parts = [whole]
        if len(order) == self._most:
            self._limit = float(whole[0][-1])
        return whole


def pick_threshold(
    scores: NDArray[np.float64], live: NDArray[np.bool_], species: NDArray[np.str_], recipe: ExportRecipe
) -> float:
    """The lowest accepted score by the recipe's rule, from validation scores (B,).

    Raises:
        UsageError: a class is missing among the samples.
    """
    if recipe.threshold == "equal_error":
        return metrics.equal_error_threshold(scores, live)
    if recipe.threshold == "bpcer":
        return metrics.bpcer_threshold(scores, live, recipe.bpcer_target)
    if recipe.threshold == "apcer":
        return metrics.apcer_threshold(scores, live, species, recipe.apcer_target, bounded=recipe.apcer_bounded)
    return _ARGMAX_THRESHOLD


def unmeasurable(validation: Split, test: Split, source: Source) -> str | None:
    """Why a subset with these rows of both splits can have no operating point, or None if it can have one."""
    for name, split in (("validation", validation), ("test", test)):
        if not len(split):
            return f"no {name} row has it"
        if source.positive_label is None:
            continue
        live = split.class_labels == source.labels.index(source.positive_label)
        if bool(live.all()) or not bool(live.any()):
            return f"its {name} rows are all of one class"
    return None


def operating_point(
    validation: tuple[NDArray[np.float32], Split],
    test: tuple[NDArray[np.float32], Split],
    source: Source,
    recipe: ExportRecipe,
) -> OperatingPoint:
    """The point of `calibrated`, which see."""
    return calibrated(validation, test, source, recipe).point


def calibrated(
    validation: tuple[NDArray[np.float32], Split],
    test: tuple[NDArray[np.float32], Split],
    source: Source,
    recipe: ExportRecipe,
) -> Calibrated:
    """One subset's point from (logits (B, C), samples) of both splits.

    Raises:
        UsageError: a live/spoof split lacks a class, or a logit is not finite.
    """
    logits, labels = test[0], test[1].class_labels.numpy()
    temperature = Temperature(value=1.0, note="the recipe wants none")
    if recipe.temperature:
        temperature = fit_temperature(validation[0], validation[1].class_labels.numpy())
    if source.positive_label is None:
        hits = metrics.accuracy(logits.argmax(axis=1).astype(np.int64), labels)
        point, reasons = _higher_is_better("accuracy", hits, recipe, temperature.value)
    else:
        positive = source.labels.index(source.positive_label)
        point, reasons = _spoof_point(validation, test, positive, recipe, temperature.value)
    return Calibrated(
        point=point,
        temperature=temperature,
        before=sureness(logits, labels, 1.0),
        after=sureness(logits, labels, temperature.value),
        shortfalls=reasons,
    )


def map_shortfalls(score: Measured, recipe: ExportRecipe) -> tuple[str, ...]:
    """Why `map_point` of the same arguments is not certified, one reason each; empty where it is."""
    return _higher_is_better("miou", score, recipe, 1.0)[1]


def map_point(score: Measured, recipe: ExportRecipe, *, temperature: float = 1.0) -> OperatingPoint:
    """A segmentation's point from the mIoU of one subset's test images; certified by its lower bound."""
    return _higher_is_better("miou", score, recipe, temperature)[0]


def _higher_is_better(
    metric: str, score: Measured, recipe: ExportRecipe, temperature: float
) -> tuple[OperatingPoint, tuple[str, ...]]:
    reasons = _reasons(
        _too_few("test samples", score.n, recipe.certify_min_samples),
        _too_high(f"1 - {metric}", 1.0 - score.low, recipe.certify_max_error),
    )
    point = OperatingPoint(
        threshold=0.0,
        metric=metric,
        value=score.value,
        low=score.low,
        high=score.high,
        n=score.n,
        certified=not reasons,
        target=1.0 - recipe.certify_max_error if recipe.certify_max_error < 1.0 else None,
        temperature=temperature,
    )
    return point, reasons


def _spoof_point(
    validation: tuple[NDArray[np.float32], Split],
    test: tuple[NDArray[np.float32], Split],
    positive: int,
    recipe: ExportRecipe,
    temperature: float,
) -> tuple[OperatingPoint, tuple[str, ...]]:
    (seen_scores, seen_live), (scores, live) = (
        (positive_scores(logits, positive, temperature), split.class_labels.numpy() == positive)
        for logits, split in (validation, test)
    )
    threshold = pick_threshold(seen_scores, seen_live, validation[1].group_labels, recipe)
    errors = metrics.spoof_errors(scores, live, test[1].group_labels, threshold)
    known = np.unique(validation[1].group_labels[~seen_live]).tolist()
    accepts = bool((seen_scores >= threshold).any())
    reasons = _reasons(
        None if accepts else "only a threshold above every validation score meets the target",
        *shortfalls(errors, known, recipe),
    )
    point = OperatingPoint(
        threshold=threshold,
        metric="acer",
        value=errors.acer,
        low=errors.acer_low,
        high=errors.acer_high,
        n=len(live),
        certified=not reasons,
        target=recipe.certify_max_error if recipe.certify_max_error < 1.0 else None,
        temperature=temperature,
        bpcer=errors.bpcer,
        apcer=dict(errors.apcer),
    )
    return point, reasons


def shortfalls(errors: metrics.SpoofErrors, known: Iterable[str], recipe: ExportRecipe) -> tuple[str, ...]:
    """Why test errors do not certify a live/spoof subset, one reason each; empty where they do.

    `known` are the attack species of validation: where the recipe bounds species, one of them that test lacks is not
    bounded. A point that rejects everybody has no APCER and is of no use: it is never certified. NaN never is.
    """
    smaller = min(errors.bpcer.n, errors.apcer_pooled.n)
    rejects_all = errors.bpcer.errors == errors.bpcer.n
    return _reasons(
        _too_few("test samples of the smaller class", smaller, recipe.certify_min_samples),
        _too_high("ACER", errors.acer_high, recipe.certify_max_error),
        _too_high("APCER of the worst species", metrics.worst_apcer_bound(errors.apcer), recipe.certify_max_apcer),
        _too_high("BPCER", errors.bpcer.high, recipe.certify_max_bpcer),
        *(_too_few(f"test samples of {s}", r.n, recipe.certify_min_per_species) for s, r in errors.apcer.items()),
        *_unmeasured(set(known) - set(errors.apcer), recipe),
        "every bona fide test sample is rejected" if rejects_all else None,
    )


def _unmeasured(species: set[str], recipe: ExportRecipe) -> Iterable[str]:
    asked = recipe.certify_max_apcer < 1.0 or recipe.certify_min_per_species > 1
    return [f"0 test samples of {name}, which validation has" for name in sorted(species)] if asked else []


def _too_few(what: str, n: int, least: int) -> str | None:
    return None if n >= least else f"{n} {what}, {least} are needed"


def _too_high(what: str, bound: float, most: float) -> str | None:
    # A comparison with NaN is false: it must be the one that certifies.
    return None if bound <= most else f"{what} may be {100.0 * bound:.2f} %, at most {100.0 * most:.2f} % is allowed"


def _reasons(*found: str | None) -> tuple[str, ...]:
    return tuple(reason for reason in found if reason is not None)


def _slope(values: NDArray[np.float64], right: NDArray[np.float64], inverse: float) -> float:
    """Slope of the mean loss in the inverse temperature: the expected logit less that of the right class."""
    powers = np.exp(values * inverse)
    expected = (powers * values).sum(axis=1) / powers.sum(axis=1)
    return float((expected - right).mean())


def _need_logits(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise UsageError(f"logits have shape {logits.shape} and labels {labels.shape}; they must be (B, C) and (B,)")
    wrong = int(np.count_nonzero(~np.isfinite(logits)))
    if wrong:
        raise UsageError(f"{wrong} of {logits.size} logits are not finite")

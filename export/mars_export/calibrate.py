"""Operating points: where each modality subset decides, and how well that was measured.

Axes: B samples. Thresholds are picked on validation scores and measured on test scores, both from the
artifact itself in its engine, so that quantization is inside what is measured.
Source: ISO/IEC 30107-3 for APCER and BPCER; Clopper and Pearson 1934 for the intervals.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mars_edge import metrics
from mars_edge.manifest import OperatingPoint
from mars_training.data.split import Source, Split
from mars_training.recipe import ExportRecipe

# Two classes: the largest logit is the positive one when its probability is above one half.
_ARGMAX_THRESHOLD = 0.5


def positive_scores(logits: NDArray[np.floating], positive: int, temperature: float = 1.0) -> NDArray[np.float64]:
    """Softmax probability (B,) of class `positive` from logits (B, classes), as the runtime computes it."""
    return metrics.class_probabilities(logits, temperature)[:, positive]


def pick_threshold(scores: NDArray[np.float64], live: NDArray[np.bool_], recipe: ExportRecipe) -> float:
    """The lowest accepted score by the recipe's rule, from validation scores (B,).

    Raises:
        UsageError: a class is missing among the samples.
    """
    if recipe.threshold == "equal_error":
        return metrics.equal_error_threshold(scores, live)
    if recipe.threshold == "bpcer":
        return metrics.bpcer_threshold(scores, live, recipe.bpcer_target)
    return _ARGMAX_THRESHOLD


def operating_point(
    validation: tuple[NDArray[np.float32], Split],
    test: tuple[NDArray[np.float32], Split],
    source: Source,
    recipe: ExportRecipe,
) -> OperatingPoint:
    """One subset's point from (logits (B, classes), samples) of both splits.

    Raises:
        UsageError: a live/spoof split lacks a class, or a score is not finite.
    """
    if source.positive_label is None:
        return _accuracy_point(*test, recipe)
    positive = source.labels.index(source.positive_label)
    threshold = pick_threshold(
        positive_scores(validation[0], positive), validation[1].class_labels.numpy() == positive, recipe
    )
    logits, split = test
    live = split.class_labels.numpy() == positive
    errors = metrics.spoof_errors(positive_scores(logits, positive), live, split.group_labels, threshold)
    smaller_class = int(min(live.sum(), (~live).sum()))
    return OperatingPoint(
        threshold=threshold,
        metric="acer",
        value=errors.acer,
        low=errors.acer_low,
        high=errors.acer_high,
        n=len(split),
        certified=certified(errors.acer_high, smaller_class, recipe),
        target=recipe.certify_max_error if recipe.certify_max_error < 1.0 else None,
    )


def certified(upper_error: float, samples: int, recipe: ExportRecipe) -> bool:
    """Whether an error's 95 % upper bound meets the recipe's, on enough samples; never true for NaN."""
    return samples >= recipe.certify_min_samples and upper_error <= recipe.certify_max_error


def _accuracy_point(logits: NDArray[np.float32], split: Split, recipe: ExportRecipe) -> OperatingPoint:
    hits = metrics.accuracy(logits.argmax(axis=1).astype(np.int64), split.class_labels.numpy())
    return OperatingPoint(
        threshold=0.0,
        metric="accuracy",
        value=hits.value,
        low=hits.low,
        high=hits.high,
        n=hits.n,
        certified=certified(1.0 - hits.low, hits.n, recipe),
        target=1.0 - recipe.certify_max_error if recipe.certify_max_error < 1.0 else None,
    )

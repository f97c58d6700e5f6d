"""Operating points are picked on validation, measured on test, and certified only by their bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from mars_edge import metrics
from mars_edge.errors import UsageError
from mars_edge.manifest import Manifest, Policy
from mars_export import calibrate
from mars_runtime.policy import decide
from mars_training.data.split import Source, Split
from mars_training.recipe import ExportRecipe
from tests.helpers.tiny_mars import MODALITIES, SOURCE, split


def separable(samples: Split, seed: int, noise: float) -> NDArray[np.float32]:
    generator = np.random.default_rng(seed)
    sign = samples.labels.numpy() * 2.0 - 1.0
    margin = sign + generator.normal(scale=noise, size=len(samples))
    return np.stack([-margin, margin], axis=1).astype(np.float32)


def manifest_with(point: object) -> Manifest:
    fields: dict[str, object] = {
        "name": "m",
        "task": "classification",
        "labels": SOURCE.labels,
        "positive_label": "live",
        "modalities": MODALITIES,
        "experts": 1,
        "active_experts": 1,
        "feature_shapes": {m.name: (1, 1, 1) for m in MODALITIES},
        "z_shape": (1, 1, 1),
        "precision": "fp32",
        "methods": (*(f"encode_{m.name}" for m in MODALITIES), "route", "expert_0", "head"),
        "operating_points": {"rgb": point},
        "provenance": {},
    }
    return Manifest(**fields)  # type: ignore[arg-type]


def test_scores_are_the_softmax_probability_of_the_positive_class() -> None:
    logits = np.random.default_rng(0).normal(size=(40, 3), scale=9.0).astype(np.float32)
    expected = softmax(logits.astype(np.float64) / 1.7, axis=1)[:, 2]
    np.testing.assert_allclose(calibrate.positive_scores(logits, 2, 1.7), expected, rtol=1e-12)


def test_the_runtime_decides_at_the_operating_point_as_it_was_measured() -> None:
    validation, test = split(200, 0), split(300, 1)
    logits = separable(test, 3, 0.8)
    point = calibrate.operating_point(
        (separable(validation, 2, 0.8), validation), (logits, test), SOURCE, ExportRecipe()
    )
    manifest = manifest_with(point)
    accepted = np.array([decide(manifest, Policy(), ["rgb"], row).verdict == "accept" for row in logits])
    live = test.labels.numpy() == 1
    acer = (accepted[~live].mean() + (~accepted[live]).mean()) / 2
    assert point.value == pytest.approx(acer)
    assert point.low <= point.value <= point.high


def test_the_threshold_comes_from_validation_alone() -> None:
    validation, test = split(200, 0), split(200, 1)
    scores = separable(validation, 2, 0.5)
    points = [
        calibrate.operating_point((scores, validation), (separable(test, seed, 2.0), test), SOURCE, ExportRecipe())
        for seed in (5, 6)
    ]
    assert points[0].threshold == points[1].threshold
    assert points[0].value != points[1].value


def test_the_bpcer_rule_rejects_at_most_its_target_on_validation() -> None:
    validation = split(400, 0)
    scores = calibrate.positive_scores(separable(validation, 2, 1.0), 1)
    live = validation.labels.numpy() == 1
    threshold = calibrate.pick_threshold(scores, live, ExportRecipe(threshold="bpcer", bpcer_target=0.05))
    assert np.mean(scores[live] < threshold) <= 0.05
    assert np.mean(scores[live] <= threshold) > 0.04


@pytest.mark.parametrize(
    ("upper", "samples", "verdict"),
    [(0.05, 100, True), (0.0500001, 100, False), (0.01, 99, False), (math.nan, 100, False)],
)
def test_a_subset_is_certified_only_by_its_upper_bound_on_enough_samples(
    upper: float, samples: int, verdict: bool
) -> None:
    recipe = ExportRecipe(certify_max_error=0.05, certify_min_samples=100)
    assert calibrate.certified(upper, samples, recipe) is verdict


def test_no_error_on_few_samples_certifies_nothing() -> None:
    samples = split(20, 0)
    logits = separable(samples, 1, 0.01)
    recipe = ExportRecipe(certify_max_error=0.05, certify_min_samples=1)
    point = calibrate.operating_point((logits, samples), (logits, samples), SOURCE, recipe)
    assert (point.value, point.certified, point.target) == (0.0, False, 0.05)


def test_plain_classification_measures_accuracy_and_has_no_threshold() -> None:
    samples = split(150, 0)
    logits = separable(samples, 1, 1.0)
    plain = Source(modalities=MODALITIES, labels=SOURCE.labels, positive_label=None, note="")
    recipe = ExportRecipe(certify_max_error=0.3)
    point = calibrate.operating_point((logits, samples), (logits, samples), plain, recipe)
    expected = metrics.accuracy(logits.argmax(axis=1), samples.labels.numpy())
    assert (point.metric, point.threshold, point.value) == ("accuracy", 0.0, expected.value)
    assert point.certified is (1.0 - expected.low <= 0.3)
    assert point.target == pytest.approx(0.7)


def test_a_split_without_attacks_cannot_be_calibrated() -> None:
    samples = split(40, 0)
    live_only = samples.take(torch.nonzero(samples.labels == 1).flatten())
    logits = separable(live_only, 1, 1.0)
    with pytest.raises(UsageError) as caught:
        calibrate.operating_point((logits, live_only), (logits, live_only), SOURCE, ExportRecipe())
    assert str(caught.value) == "20 bona fide of 20 samples: both classes are needed"

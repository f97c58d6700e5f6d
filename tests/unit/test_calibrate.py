"""Operating points are picked on validation, measured on test, and certified only by their bounds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import binom, binomtest

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


@pytest.mark.parametrize("rule", ["equal_error", "bpcer", "apcer", "argmax"])
def test_the_runtime_decides_at_the_operating_point_as_it_was_measured(rule: str) -> None:
    validation, test = split(200, 0), split(300, 1)
    logits = separable(test, 3, 0.8)
    recipe = ExportRecipe(threshold=rule, apcer_target=0.2, bpcer_target=0.1)  # type: ignore[arg-type]
    point = calibrate.operating_point((separable(validation, 2, 0.8), validation), (logits, test), SOURCE, recipe)
    assert point.temperature != 1.0
    manifest = manifest_with(point)
    accepted = np.array([decide(manifest, Policy(), ["rgb"], row).verdict == "accept" for row in logits])
    live = test.labels.numpy() == 1
    acer = (accepted[~live].mean() + (~accepted[live]).mean()) / 2
    assert point.value == pytest.approx(acer)
    assert point.low <= point.value <= point.high
    assert point.bpcer is not None and point.bpcer.value == pytest.approx((~accepted[live]).mean())
    for species in ("print", "mask"):
        assert point.apcer[species].value == pytest.approx(accepted[test.group_labels == species].mean())
    assert set(point.apcer) == {"print", "mask"}


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
    recipe = ExportRecipe(threshold="bpcer", bpcer_target=0.05)
    threshold = calibrate.pick_threshold(scores, live, validation.group_labels, recipe)
    assert np.mean(scores[live] < threshold) <= 0.05
    assert np.mean(scores[live] <= threshold) > 0.04


def spoof_errors(bpcer: tuple[int, int], **apcer: tuple[int, int]) -> metrics.SpoofErrors:
    """Error rates of so many wrong of so many samples, for bona fide and per attack species."""
    pooled = metrics.rate(sum(k for k, _ in apcer.values()), sum(n for _, n in apcer.values()))
    rejected = metrics.rate(*bpcer)
    return metrics.SpoofErrors(
        acer=(pooled.value + rejected.value) / 2,
        acer_low=(pooled.low + rejected.low) / 2,
        acer_high=(pooled.high + rejected.high) / 2,
        apcer_pooled=pooled,
        apcer={name: metrics.rate(*counts) for name, counts in apcer.items()},
        bpcer=rejected,
    )


ERRORS = spoof_errors((2, 300), mask=(1, 150), screen=(0, 150))


@pytest.mark.parametrize(
    ("wanted", "reasons"),
    [
        ({}, ()),
        ({"certify_max_error": 0.022}, ()),
        ({"certify_max_error": 0.02}, ("ACER may be 2.12 %, at most 2.00 % is allowed",)),
        ({"certify_min_samples": 301}, ("300 test samples of the smaller class, 301 are needed",)),
        ({"certify_max_apcer": 0.042}, ()),
        ({"certify_max_apcer": 0.04}, ("APCER of the worst species may be 4.18 %, at most 4.00 % is allowed",)),
        ({"certify_max_bpcer": 0.02}, ("BPCER may be 2.39 %, at most 2.00 % is allowed",)),
        (
            {"certify_min_per_species": 151},
            ("150 test samples of mask, 151 are needed", "150 test samples of screen, 151 are needed"),
        ),
        (
            {"certify_max_error": 0.0, "certify_max_bpcer": 0.0},
            ("ACER may be 2.12 %, at most 0.00 % is allowed", "BPCER may be 2.39 %, at most 0.00 % is allowed"),
        ),
    ],
)
def test_a_subset_is_certified_only_if_every_bound_that_is_wanted_is_met(
    wanted: dict[str, float], reasons: tuple[str, ...]
) -> None:
    assert calibrate.shortfalls(ERRORS, ["mask", "screen"], ExportRecipe(**wanted)) == reasons  # type: ignore[arg-type]


def test_the_bound_on_species_is_scipys_with_its_share_of_the_risk() -> None:
    bound = binomtest(1, 150).proportion_ci(0.975, method="exact").high
    for most, certified in ((bound + 1e-9, True), (bound - 1e-9, False)):
        assert (not calibrate.shortfalls(ERRORS, [], ExportRecipe(certify_max_apcer=most))) is certified


def test_a_species_that_test_lacks_is_bounded_by_nothing() -> None:
    assert calibrate.shortfalls(ERRORS, ["mask", "video"], ExportRecipe()) == ()
    for wanted in ({"certify_max_apcer": 0.9}, {"certify_min_per_species": 2}):
        found = calibrate.shortfalls(ERRORS, ["mask", "video"], ExportRecipe(**wanted))  # type: ignore[arg-type]
        assert found == ("0 test samples of video, which validation has",)


def test_what_is_not_a_number_never_certifies() -> None:
    broken = replace(ERRORS, acer_high=math.nan)
    assert calibrate.shortfalls(broken, [], ExportRecipe()) == ("ACER may be nan %, at most 100.00 % is allowed",)


def test_a_point_that_rejects_everybody_is_not_certified() -> None:
    found = calibrate.shortfalls(spoof_errors((300, 300), mask=(0, 300)), [], ExportRecipe())
    assert found == ("every bona fide test sample is rejected",)


def test_a_target_that_validation_is_too_small_for_certifies_nothing() -> None:
    samples = split(400, 0)
    given = separable(samples, 1, 0.5), samples
    recipe = ExportRecipe(threshold="apcer", apcer_target=0.02, apcer_bounded=True)
    found = calibrate.calibrated(given, (separable(samples, 2, 0.9), samples), SOURCE, recipe)
    assert found.shortfalls == ("only a threshold above every validation score meets the target",)
    assert not found.point.certified


@pytest.mark.parametrize("others", [0, 2])
def test_a_species_worse_than_the_bound_is_certified_by_at_most_one_test_set_in_forty(others: int) -> None:
    recipe = ExportRecipe(certify_max_apcer=0.05)
    harmless = {f"harmless{i}": (0, 200) for i in range(others)}
    certifying = [
        k for k in range(12) if not calibrate.shortfalls(spoof_errors((0, 200), bad=(k, 200), **harmless), [], recipe)
    ]
    assert certifying == list(range(len(certifying))) and certifying
    assert binom.cdf(certifying[-1], 200, 0.05) <= 0.025


def test_no_error_on_few_samples_certifies_nothing() -> None:
    samples = split(20, 0)
    logits = separable(samples, 1, 0.01)
    recipe = ExportRecipe(certify_max_error=0.05, certify_min_samples=1)
    point = calibrate.operating_point((logits, samples), (logits, samples), SOURCE, recipe)
    assert (point.value, point.certified, point.target) == (0.0, False, 0.05)


@pytest.mark.parametrize("bounded", [False, True])
def test_the_apcer_rule_accepts_at_most_its_target_of_the_worst_species_on_validation(bounded: bool) -> None:
    validation = split(400, 0)
    scores = calibrate.positive_scores(separable(validation, 2, 1.0), 1)
    live, species = validation.labels.numpy() == 1, validation.group_labels
    recipe = ExportRecipe(threshold="apcer", apcer_target=0.1, apcer_bounded=bounded)
    errors = metrics.spoof_errors(scores, live, species, calibrate.pick_threshold(scores, live, species, recipe))
    worst = errors.apcer[errors.worst_species].value
    assert worst <= 0.1
    assert (metrics.worst_apcer_bound(errors.apcer) <= 0.1) is bounded


def sampled_logits(
    n: int, classes: int, temperature: float, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits, and labels drawn from the softmax of logits / temperature: what calibration should find."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(n, classes), scale=3.0).astype(np.float32)
    shares = softmax(logits / temperature, axis=1)
    labels = (shares.cumsum(axis=1) > generator.random((n, 1))).argmax(axis=1)
    return logits, labels.astype(np.int64)


def loss(logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float) -> float:
    shares = log_softmax(logits.astype(np.float64) / temperature, axis=1)
    return float(-shares[np.arange(len(labels)), labels].mean())


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("truth", [0.4, 1.0, 3.0])
def test_the_temperature_is_scipys_minimum_of_the_loss_and_near_the_truth(classes: int, truth: float) -> None:
    logits, labels = sampled_logits(3000, classes, truth, 0)
    found = calibrate.fit_temperature(logits, labels)
    reference = minimize_scalar(lambda t: loss(logits, labels, t), bounds=(0.05, 20), method="bounded")
    assert found.value == pytest.approx(reference.x, rel=1e-3)
    assert found.value == pytest.approx(truth, rel=0.15)
    assert found.note is None


def test_the_temperature_makes_unseen_answers_as_sure_as_they_are_right() -> None:
    found = calibrate.fit_temperature(*sampled_logits(2000, 4, 3.0, 0))
    logits, labels = sampled_logits(4000, 4, 3.0, 1)
    before, after = (calibrate.sureness(logits, labels, t) for t in (1.0, found.value))
    assert after.ece < 0.03 < 0.2 < before.ece
    assert after.nll < before.nll
    assert after.nll == pytest.approx(loss(logits, labels, found.value))


def test_scaled_logits_have_the_scaled_temperature() -> None:
    logits, labels = sampled_logits(500, 3, 1.0, 0)
    once, thrice = (calibrate.fit_temperature(logits * f, labels).value for f in (1.0, 3.0))
    assert thrice == pytest.approx(3.0 * once, rel=1e-6)


SURE = "the loss still falls at 0.05: hardly an answer is wrong"


@pytest.mark.parametrize(
    ("logits", "labels", "value", "note"),
    [
        (np.eye(2)[np.arange(60) % 2], np.arange(60) % 2, 1.0, SURE),
        (np.eye(2)[np.arange(60) % 2] * 1e4, np.arange(60) % 2, 1.0, SURE),
        (np.zeros((60, 2)), np.arange(60) % 2, 1.0, SURE),
        (np.eye(2)[np.arange(49) % 2], np.arange(49) % 2, 1.0, "49 samples, 50 are needed"),
        (np.eye(2)[np.arange(60) % 2], np.zeros(60, dtype=int), 1.0, "all samples are of one class"),
        (
            np.eye(2)[np.arange(60) % 2] * 9.0,
            1 - np.arange(60) % 2,
            20.0,
            "the loss still falls: the answers know little of the classes",
        ),
    ],
)
def test_where_the_data_has_no_best_temperature_it_says_so(
    logits: NDArray[np.float64], labels: NDArray[np.int64], value: float, note: str
) -> None:
    assert calibrate.fit_temperature(logits, labels) == calibrate.Temperature(value=value, note=note)


def test_logits_that_are_not_finite_or_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError) as caught:
        calibrate.fit_temperature(np.array([[0.0, np.nan], [np.inf, 1.0]]), np.array([0, 1]))
    assert str(caught.value) == "2 of 4 logits are not finite"
    with pytest.raises(UsageError) as caught:
        calibrate.sureness(np.zeros((3, 2)), np.zeros(2, dtype=int), 1.0)
    assert str(caught.value) == "logits have shape (3, 2) and labels (2,); they must be (B, C) and (B,)"


@pytest.mark.parametrize("positive", ["live", None])
def test_the_recipe_turns_the_temperature_off_and_two_class_decisions_stay(positive: str | None) -> None:
    validation, test = split(200, 0), split(300, 1)
    given = (separable(validation, 2, 0.8) * 9.0, validation), (separable(test, 3, 0.8) * 9.0, test)
    source = replace(SOURCE, positive_label=positive)
    with_it, without = (
        calibrate.calibrated(*given, source, ExportRecipe(temperature=wanted, threshold="bpcer", bpcer_target=0.1))
        for wanted in (True, False)
    )
    assert without.temperature == calibrate.Temperature(value=1.0, note="the recipe wants none")
    assert without.before == without.after == with_it.before
    assert with_it.after.nll < with_it.before.nll
    assert with_it.point.value == without.point.value
    assert (with_it.point.temperature, without.point.temperature) == (with_it.temperature.value, 1.0)


def label_maps(n: int) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Images whose first logit numbers the pixel, whose labels are that number modulo 3, one fifth ignored."""
    generator = np.random.default_rng(0)
    images = []
    for i in range(n):
        numbers = np.arange(i * 30, (i + 1) * 30).reshape(5, 6)
        labels = np.where(generator.random((5, 6)) < 0.2, 255, numbers % 3)
        images.append((np.stack([numbers, -numbers, 0 * numbers]).astype(np.float32), labels))
    return images


def test_a_pixel_sample_keeps_each_labelled_pixel_as_often_as_any_other() -> None:
    images, times = label_maps(12), np.zeros(360)
    for seed in range(300):
        sample = calibrate.PixelSample(most=40, seed=seed)
        for logits, labels in images:
            sample.add(logits, labels)
        numbers = sample.logits[:, 0].astype(int)
        assert len(set(numbers.tolist())) == 40
        np.testing.assert_array_equal(sample.labels, numbers % 3)
        times[numbers] += 1
    known = np.concatenate([labels.reshape(-1) != 255 for _, labels in images])
    assert not times[~known].any()
    expected = 300 * 40 / known.sum()
    assert np.abs(times[known] - expected).max() < 5 * np.sqrt(expected)
    thirds = times.reshape(3, -1).sum(axis=1) / times.sum()
    np.testing.assert_allclose(thirds, known.reshape(3, -1).mean(axis=1) / known.mean() / 3, atol=0.02)


def test_a_pixel_sample_is_the_same_each_time_and_all_of_a_short_stream() -> None:
    def taken(most: int, seed: int) -> NDArray[np.float32]:
        sample = calibrate.PixelSample(most=most, seed=seed)
        for logits, labels in label_maps(4):
            sample.add(logits, labels)
        return sample.logits

    np.testing.assert_array_equal(taken(10, 1), taken(10, 1))
    assert not np.array_equal(taken(10, 1), taken(10, 2))
    every = sorted(n for logits, labels in label_maps(4) for n in logits[0][labels != 255])
    assert sorted(taken(1000, 0)[:, 0]) == every
    with pytest.raises(UsageError) as caught:
        _ = calibrate.PixelSample().logits
    assert str(caught.value) == "no label map was offered: there is no pixel to calibrate on"


@pytest.mark.parametrize(
    ("most", "least", "certified"), [(0.5, 100, True), (0.45, 100, False), (0.5, 103, False), (1.0, 1, True)]
)
def test_a_segmentation_is_certified_by_the_lower_bound_of_its_miou(most: float, least: int, certified: bool) -> None:
    score = metrics.MeanIou(value=0.6, low=0.52, high=0.66, per_class=np.zeros(3), n=102)
    recipe = ExportRecipe(certify_max_error=most, certify_min_samples=least)
    point = calibrate.map_point(score, recipe, temperature=1.5)
    assert (point.metric, point.value, point.low, point.high, point.n) == ("miou", 0.6, 0.52, 0.66, 102)
    assert (point.certified, point.temperature, point.threshold) == (certified, 1.5, 0.0)
    assert point.target == (None if most == 1.0 else pytest.approx(1.0 - most))


def test_rows_that_no_point_can_be_measured_on_are_told_before() -> None:
    both = split(40, 0)
    live = both.take(torch.nonzero(both.labels == 1).flatten())
    assert calibrate.unmeasurable(both, both, SOURCE) is None
    assert calibrate.unmeasurable(live, both, SOURCE) == "its validation rows are all of one class"
    assert calibrate.unmeasurable(both, live, SOURCE) == "its test rows are all of one class"
    assert calibrate.unmeasurable(live, live, replace(SOURCE, positive_label=None)) is None


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

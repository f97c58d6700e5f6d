"""Metrics against scipy, scikit-learn and plain loops."""

from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, roc_curve

from mars_edge import metrics
from mars_edge.errors import UsageError

SPECIES = np.array(["flat_print", "screen", "mask"])


def spoof_data(seed: int, n: int = 300) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.str_]]:
    """Overlapping scores with ties, as a quantized model gives them."""
    rng = np.random.default_rng(seed)
    live = rng.random(n) < 0.4
    scores = np.round(rng.normal(np.where(live, 0.6, 0.35), 0.2), 2)
    return scores, live, np.where(live, "", SPECIES[rng.integers(0, 3, n)])


@pytest.mark.parametrize("n", [1, 2, 7, 50, 500, 3000])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_intervals_equal_scipys_exact_ones(n: int, confidence: float) -> None:
    for errors in sorted({0, 1, n // 7, n // 2, n - 1, n}):
        reference = binomtest(errors, n).proportion_ci(confidence, method="exact")
        low, high = metrics.clopper_pearson(errors, n, confidence)
        assert low == pytest.approx(reference.low, rel=1e-7, abs=1e-12)
        assert high == pytest.approx(reference.high, rel=1e-7, abs=1e-12)


def test_an_interval_holds_its_share_and_touches_the_border_only_at_none_or_all() -> None:
    for errors in range(31):
        rate = metrics.rate(errors, 30)
        assert 0.0 <= rate.low <= rate.value <= rate.high <= 1.0
        assert (rate.low == 0.0) == (errors == 0)
        assert (rate.high == 1.0) == (errors == 30)
        assert (rate.errors, rate.n) == (errors, 30)


def test_an_interval_of_a_large_test_set_takes_no_noticeable_time() -> None:
    metrics.clopper_pearson(1, 20_000)
    start = time.process_time()
    for errors in (3, 400, 19_000):
        metrics.clopper_pearson(errors, 20_000)
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize(("errors", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_an_impossible_count_is_refused(errors: int, n: int) -> None:
    with pytest.raises(UsageError) as caught:
        metrics.clopper_pearson(errors, n)
    assert str(caught.value) == f"{errors} of {n}: an interval needs 0 <= errors <= n and n >= 1"


@pytest.mark.parametrize("confidence", [0.0, 1.0, float("nan")])
def test_an_impossible_confidence_is_refused(confidence: float) -> None:
    with pytest.raises(UsageError) as caught:
        metrics.clopper_pearson(1, 2, confidence)
    assert str(caught.value) == f"confidence {confidence!r} must lie between 0 and 1"


def test_accuracy_is_the_trace_of_the_confusion_matrix() -> None:
    rng = np.random.default_rng(0)
    expected, predicted = rng.integers(0, 5, 400), rng.integers(0, 5, 400)
    matrix = confusion_matrix(expected, predicted)
    found = metrics.accuracy(predicted, expected)
    assert found.value == np.trace(matrix) / matrix.sum()
    assert (found.errors, found.n) == (np.trace(matrix), 400)


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((0,), (0,)), ((2, 1), (2,))])
def test_accuracy_refuses_shapes_it_would_broadcast(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(UsageError) as caught:
        metrics.accuracy(np.zeros(shapes[0], dtype=np.int64), np.zeros(shapes[1], dtype=np.int64))
    assert str(caught.value) == f"accuracy needs equal non-empty shapes, got {shapes[0]} and {shapes[1]}"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [-1.0, 0.41, 0.5, 2.0])
def test_spoof_errors_equal_the_confusion_matrix_and_a_plain_loop(seed: int, threshold: float) -> None:
    scores, live, species = spoof_data(seed)
    found = metrics.spoof_errors(scores, live, species, threshold)
    (true_negative, false_accept), (false_reject, true_positive) = confusion_matrix(
        live, scores >= threshold, labels=[False, True]
    )
    apcer = false_accept / (false_accept + true_negative)
    bpcer = false_reject / (false_reject + true_positive)
    assert found.apcer_pooled.value == apcer
    assert found.bpcer.value == bpcer
    assert found.acer == (apcer + bpcer) / 2
    assert found.acer_low <= found.acer <= found.acer_high
    for name in SPECIES:
        accepted = [s >= threshold for s, is_live, kind in zip(scores, live, species, strict=True) if kind == name]
        assert found.apcer[name].value == sum(accepted) / len(accepted)
        assert found.apcer[name].n == len(accepted)
    assert set(found.apcer) == set(SPECIES)
    worst = found.apcer[found.worst_species].value
    assert worst == max(rate.value for rate in found.apcer.values()) >= found.apcer_pooled.value


def test_a_score_at_the_threshold_is_accepted() -> None:
    found = metrics.spoof_errors(np.array([0.5, 0.5]), np.array([True, False]), np.array(["", "mask"]), threshold=0.5)
    assert (found.bpcer.value, found.apcer["mask"].value) == (0.0, 1.0)


@pytest.mark.parametrize("n", [12, 25, 300])
@pytest.mark.parametrize("seed", range(20))
def test_the_equal_error_threshold_is_no_worse_than_any_on_the_roc_curve(seed: int, n: int) -> None:
    scores, live, _ = spoof_data(seed, n)

    def gap(threshold: float) -> float:
        return abs(float(np.mean(scores[live] < threshold)) - float(np.mean(scores[~live] >= threshold)))

    accepted_attacks, accepted_live, _ = roc_curve(live, scores, drop_intermediate=False)
    reference = np.abs((1 - accepted_live) - accepted_attacks).min()
    assert gap(metrics.equal_error_threshold(scores, live)) == pytest.approx(reference, abs=1e-5)


def test_separable_classes_are_separated_with_equal_distance() -> None:
    scores = np.array([0.1, 0.2, 0.8, 0.9], dtype=np.float32)
    live = np.array([False, False, True, True])
    assert metrics.equal_error_threshold(scores, live) == pytest.approx(0.5)


def test_one_score_for_everything_still_gives_a_threshold() -> None:
    assert metrics.equal_error_threshold(np.array([0.3, 0.3]), np.array([True, False])) == 0.3


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("target", [0.0, 0.01, 0.05, 0.29, 0.5, 0.999])
def test_the_bpcer_threshold_is_the_highest_that_keeps_the_target(seed: int, target: float) -> None:
    scores, live, _ = spoof_data(seed)
    threshold = metrics.bpcer_threshold(scores, live, target)
    assert np.mean(scores[live] < threshold) <= target
    assert np.mean(scores[live] < np.nextafter(threshold, np.inf)) > target


def test_the_bpcer_threshold_is_not_lowered_by_binary_fractions() -> None:
    scores = np.arange(100.0)
    assert metrics.bpcer_threshold(scores, np.ones(100, dtype=bool), 0.29) == 29.0


@pytest.mark.parametrize("target", [-0.1, 1.0, float("nan")])
def test_an_impossible_bpcer_target_is_refused(target: float) -> None:
    with pytest.raises(UsageError) as caught:
        metrics.bpcer_threshold(np.array([1.0]), np.array([True]), target)
    assert str(caught.value) == f"BPCER target {target!r} must lie in [0, 1) and needs bona fide samples, got 1"


def errors_at_half(scores: NDArray[np.float64], live: NDArray[np.bool_]) -> object:
    return metrics.spoof_errors(scores, live, np.full(live.shape, "mask"), 0.5)


def bpcer_of_none(scores: NDArray[np.float64], live: NDArray[np.bool_]) -> object:
    return metrics.bpcer_threshold(scores, live, 0.0)


USES = [errors_at_half, metrics.equal_error_threshold, bpcer_of_none]


@pytest.mark.parametrize("use", USES)
def test_scores_that_are_not_finite_are_refused(use) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError) as caught:
        use(np.array([0.1, np.nan, np.inf]), np.array([True, False, True]))
    assert str(caught.value) == "2 of 3 scores are not finite"


@pytest.mark.parametrize("use", USES)
def test_integer_labels_are_refused_because_their_complement_is_not_an_attack(use) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError) as caught:
        use(np.array([0.1, 0.2]), np.array([1, 0]))
    assert str(caught.value) == "live is int64, expected bool"


@pytest.mark.parametrize("use", USES)
def test_scores_and_labels_of_different_shape_are_refused(use) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError) as caught:
        use(np.zeros((3, 1)), np.array([True, False, True]))
    assert str(caught.value) == "scores have shape (3, 1) and live (3,); both must be (B,)"


@pytest.mark.parametrize("use", USES[:2])
@pytest.mark.parametrize("live", [True, False])
def test_one_class_alone_is_refused(use, live: bool) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError) as caught:
        use(np.zeros(4), np.full(4, live))
    assert str(caught.value) == f"{4 if live else 0} bona fide of 4 samples: both classes are needed"


def test_one_species_per_score_is_needed() -> None:
    with pytest.raises(UsageError) as caught:
        metrics.spoof_errors(np.zeros(2), np.array([True, False]), np.array(["mask"]), 0.5)
    assert str(caught.value) == "species has shape (1,), expected one per score (2,)"

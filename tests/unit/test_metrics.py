"""Metrics against scipy, scikit-learn and plain loops."""

from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, jaccard_score, roc_curve

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
    assert np.mean(scores[live] < threshold + 1e-5) > target


@pytest.mark.parametrize("scores", [[0.2, 0.7, 0.7, 0.9], [0.7, 0.7, 0.9], [0.7 - 1e-9, 0.7, 0.9]])
def test_the_bpcer_threshold_accepts_its_score_as_another_machine_rounds_it(scores: list[float]) -> None:
    values = np.array(scores)
    live = np.arange(len(scores)) > len(scores) - 4
    threshold = metrics.bpcer_threshold(values, live, 0.0)
    lowest = values[live].min()
    assert np.nextafter(lowest, 0.0) > threshold
    assert np.count_nonzero((values > threshold) & (values < lowest)) == 0


def test_the_bpcer_threshold_is_not_lowered_by_binary_fractions() -> None:
    scores = np.arange(100.0)
    assert metrics.bpcer_threshold(scores, np.ones(100, dtype=bool), 0.29) == pytest.approx(29.0, abs=1e-3)


def worst_apcer(scores: NDArray[np.float64], live: NDArray[np.bool_], species: NDArray[np.str_], t: float) -> float:
    return max(float(np.mean(scores[~live & (species == name)] >= t)) for name in np.unique(species[~live]))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("target", [0.0, 0.01, 0.05, 0.29, 0.9])
def test_the_apcer_threshold_is_the_lowest_that_keeps_the_target_for_every_species(seed: int, target: float) -> None:
    scores, live, species = spoof_data(seed)
    threshold = metrics.apcer_threshold(scores, live, species, target)
    assert worst_apcer(scores, live, species, threshold) <= target
    lower = [s for s in np.unique(scores) if s < threshold]
    assert all(worst_apcer(scores, live, species, s) > target for s in lower[-3:])
    assert threshold not in scores


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("target", [0.12, 0.3])
def test_the_bounded_apcer_threshold_keeps_the_bound_and_no_lower_one_does(seed: int, target: float) -> None:
    scores, live, species = spoof_data(seed)
    threshold = metrics.apcer_threshold(scores, live, species, target, bounded=True)
    below = max(s for s in np.unique(scores) if s < threshold)
    bounds = [
        metrics.worst_apcer_bound(metrics.spoof_errors(scores, live, species, t).apcer) for t in (threshold, below)
    ]
    assert bounds[0] <= target < bounds[1]
    assert threshold > metrics.apcer_threshold(scores, live, species, target)


def test_where_no_attack_may_be_accepted_but_all_score_highest_nothing_is_accepted() -> None:
    scores, live = np.array([1.0, 1.0, 0.2]), np.array([True, False, False])
    threshold = metrics.apcer_threshold(scores, live, np.array(["", "mask", "mask"]), 0.1)
    assert not (scores >= threshold).any()


def test_too_few_attacks_bound_nothing_so_that_nothing_is_accepted() -> None:
    scores, live = np.array([0.9] + [0.1] * 20), np.array([True] + [False] * 20)
    species = np.where(live, "", "mask")
    assert metrics.apcer_threshold(scores, live, species, 0.05) == pytest.approx(0.5)
    assert metrics.apcer_threshold(scores, live, species, 0.05, bounded=True) > 0.9


def test_the_bound_on_the_worst_species_holds_for_all_of_them_at_once() -> None:
    apcer = {name: metrics.rate(errors, n) for name, errors, n in (("a", 0, 20), ("b", 3, 300), ("c", 9, 300))}
    each = [binomtest(r.errors, r.n).proportion_ci(1 - 0.05 / 3, method="exact").high for r in apcer.values()]
    assert metrics.worst_apcer_bound(apcer) == pytest.approx(max(each)) == pytest.approx(each[0])
    assert metrics.worst_apcer_bound({"b": apcer["b"]}) == pytest.approx(apcer["b"].high)
    with pytest.raises(UsageError) as caught:
        metrics.worst_apcer_bound({})
    assert str(caught.value) == "0 attack species bound nothing; at least 1 is needed"


@pytest.mark.parametrize("target", [-0.1, 1.0, float("nan")])
def test_an_impossible_apcer_target_is_refused(target: float) -> None:
    with pytest.raises(UsageError) as caught:
        metrics.apcer_threshold(np.array([1.0]), np.array([False]), np.array(["mask"]), target)
    assert str(caught.value) == f"APCER target {target!r} must lie in [0, 1) and needs attacks, got 1"


@pytest.mark.parametrize("target", [-0.1, 1.0, float("nan")])
def test_an_impossible_bpcer_target_is_refused(target: float) -> None:
    with pytest.raises(UsageError) as caught:
        metrics.bpcer_threshold(np.array([1.0]), np.array([True]), target)
    assert str(caught.value) == f"BPCER target {target!r} must lie in [0, 1) and needs bona fide samples, got 1"


def errors_at_half(scores: NDArray[np.float64], live: NDArray[np.bool_]) -> object:
    return metrics.spoof_errors(scores, live, np.full(live.shape, "mask"), 0.5)


def bpcer_of_none(scores: NDArray[np.float64], live: NDArray[np.bool_]) -> object:
    return metrics.bpcer_threshold(scores, live, 0.0)


def apcer_of_none(scores, live):  # type: ignore[no-untyped-def]
    return metrics.apcer_threshold(scores, live, np.full(live.shape, "mask"), 0.0)


USES = [errors_at_half, metrics.equal_error_threshold, bpcer_of_none, apcer_of_none]


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


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_is_the_plain_loop_over_bins(seed: int) -> None:
    rng = np.random.default_rng(seed)
    confidence = np.concatenate([rng.random(300), np.arange(16) / 15, [1e-9]])
    hit = rng.random(confidence.size) < confidence
    total = 0.0
    for b in range(metrics.CALIBRATION_BINS):
        low, high = b / metrics.CALIBRATION_BINS, (b + 1) / metrics.CALIBRATION_BINS
        inside = [(c, h) for c, h in zip(confidence, hit, strict=True) if low < c <= high or (b == 0 and c == 0.0)]
        if inside:
            gap = sum(h for _, h in inside) / len(inside) - sum(c for c, _ in inside) / len(inside)
            total += len(inside) * abs(gap)
    assert metrics.reliability(confidence, hit).error == pytest.approx(total / confidence.size)


def test_the_bins_of_two_halves_add_up_to_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    confidence, hit = rng.random(100), rng.random(100) < 0.5
    both = metrics.reliability(confidence[:30], hit[:30]) + metrics.reliability(confidence[30:], hit[30:])
    assert both.error == pytest.approx(metrics.reliability(confidence, hit).error)
    assert both.counts.sum() == 100


def test_a_model_as_sure_as_it_is_right_has_no_calibration_error() -> None:
    confidence = np.repeat([0.2, 0.5, 0.8], 10)
    hit = np.concatenate([np.arange(10) < share for share in (2, 5, 8)])
    assert metrics.reliability(confidence, hit).error == pytest.approx(0.0)
    assert metrics.reliability(np.ones(4), np.zeros(4, dtype=bool)).error == 1.0


@pytest.mark.parametrize("bad", [[1.5, 0.5], [-0.1, 0.5], [np.nan, 0.5]])
def test_a_confidence_that_is_no_share_is_refused(bad: list[float]) -> None:
    with pytest.raises(UsageError) as caught:
        metrics.reliability(np.array(bad), np.array([True, False]))
    assert str(caught.value) == "1 of 2 confidences are not in 0..1"


def test_calibration_needs_an_answer_and_equal_shapes() -> None:
    with pytest.raises(UsageError) as caught:
        _ = metrics.reliability(np.zeros(0), np.zeros(0, dtype=bool)).error
    assert str(caught.value) == "0 answers have no calibration error; at least 1 is needed"
    with pytest.raises(UsageError) as caught:
        metrics.reliability(np.zeros(2), np.zeros(3, dtype=bool))
    assert str(caught.value) == "confidence has shape (2,) and hit (3,); both must be (n,)"


def label_maps(rng: np.random.Generator, n: int, classes: int = 4) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels with ignored pixels (255) and answers that are right on about half of them."""
    expected = rng.integers(0, classes, (n, 6, 7))
    predicted = np.where(rng.random(expected.shape) < 0.5, expected, rng.integers(0, classes, expected.shape))
    return np.where(rng.random(expected.shape) < 0.2, 255, expected), predicted


@pytest.mark.parametrize("seed", range(3))
def test_a_confusion_matrix_leaves_ignored_pixels_out(seed: int) -> None:
    expected, predicted = label_maps(np.random.default_rng(seed), 2)
    known = expected != 255
    found = metrics.confusion_matrix(expected, predicted, 4)
    np.testing.assert_array_equal(found, confusion_matrix(expected[known], predicted[known], labels=range(4)))


@pytest.mark.parametrize("seed", range(3))
def test_iou_is_scikit_learns_and_a_class_that_never_occurs_has_none(seed: int) -> None:
    expected, predicted = label_maps(np.random.default_rng(seed), 3)
    known = expected != 255
    matrices = np.stack([metrics.confusion_matrix(e, p, 6) for e, p in zip(expected, predicted, strict=True)])
    found = metrics.mean_iou(matrices)
    reference = jaccard_score(expected[known], predicted[known], average=None)
    np.testing.assert_allclose(found.per_class[:4], reference)
    assert np.isnan(found.per_class[4:]).all()
    assert found.value == pytest.approx(reference.mean())
    assert found.low <= found.value <= found.high and found.n == 3


def test_a_class_answered_but_never_there_counts_as_zero() -> None:
    matrix = metrics.confusion_matrix(np.array([0, 0, 1]), np.array([0, 2, 1]), 3)
    assert metrics.class_ious(matrix).tolist() == [0.5, 1.0, 0.0]


def test_the_bootstrap_interval_of_miou_holds_the_truth_about_as_often_as_it_says() -> None:
    """Images differ in difficulty; the truth is what ten thousand of them give."""

    def draw(rng: np.random.Generator, n: int) -> NDArray[np.int64]:
        skill = rng.uniform(0.2, 0.9, (n, 1))
        expected = rng.integers(0, 2, (n, 40))
        predicted = np.where(rng.random(expected.shape) < skill, expected, 1 - expected)
        return np.stack([metrics.confusion_matrix(e, p, 2) for e, p in zip(expected, predicted, strict=True)])

    truth = metrics.mean_iou(draw(np.random.default_rng(99), 5000)).value
    found = [metrics.mean_iou(draw(np.random.default_rng(seed), 30)) for seed in range(60)]
    held = sum(f.low <= truth <= f.high for f in found)
    assert 50 <= held <= 60
    assert max(f.high - f.low for f in found) < 0.25


def test_the_same_images_give_the_same_interval_and_one_image_gives_none() -> None:
    expected, predicted = label_maps(np.random.default_rng(5), 8)
    matrices = np.stack([metrics.confusion_matrix(e, p, 4) for e, p in zip(expected, predicted, strict=True)])
    assert metrics.mean_iou(matrices).low == metrics.mean_iou(matrices).low
    assert metrics.mean_iou(matrices, seed=1).low != metrics.mean_iou(matrices).low
    alone = metrics.mean_iou(matrices[:1])
    assert alone.low == pytest.approx(alone.value) and alone.high == pytest.approx(alone.value)


def test_images_without_a_label_beside_others_do_not_spoil_the_interval() -> None:
    matrices = np.zeros((3, 2, 2), dtype=np.int64)
    matrices[0] = [[3, 1], [1, 3]]
    found = metrics.mean_iou(matrices)
    assert (found.low, found.high) == pytest.approx((0.6, 0.6))


def test_miou_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        metrics.mean_iou(np.zeros((2, 3, 3), dtype=np.int64))
    assert str(caught.value) == "confusion matrices of shape (2, 3, 3) hold no labelled pixel; mIoU needs one"


def test_an_answer_that_is_no_class_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        metrics.confusion_matrix(np.array([0, 1]), np.array([0, 3]), 3)
    assert str(caught.value) == "answers run from 0 to 3; allowed: 0 to 2"
    with pytest.raises(UsageError) as caught:
        metrics.confusion_matrix(np.zeros(2, dtype=np.int64), np.zeros(3, dtype=np.int64), 3)
    assert str(caught.value) == "labels have shape (2,) and answers (3,); they must be equal"

"""Spreads and paired tests against scipy and plain loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from mars_training.statistics import Key, Paired, holm, paired_test, spread

KEYS = [(seed, fold) for seed in range(3) for fold in range(3)]


def drawn(seed: int, keys: list[Key] = KEYS) -> dict[Key, float]:
    generator = np.random.default_rng(seed)
    return {key: float(x) for key, x in zip(keys, generator.normal(20, 3, len(keys)), strict=True)}


def test_the_deviation_is_over_seeds_of_their_means_over_folds() -> None:
    values = drawn(0)
    by_seed = []
    for seed in range(3):
        total = 0.0
        for fold in range(3):
            total += values[seed, fold]
        by_seed.append(total / 3)
    mean = sum(by_seed) / 3
    found = spread(values)
    assert found.n == 9
    assert found.mean == pytest.approx(mean)
    assert found.deviation == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in by_seed) / 2))
    assert found.by_fold == pytest.approx({f: (values[0, f] + values[1, f] + values[2, f]) / 3 for f in range(3)})


def test_a_seed_that_lacks_a_fold_counts_in_the_mean_and_not_in_the_deviation() -> None:
    values = {(0, 0): 1.0, (0, 1): 9.0, (1, 0): 2.0, (1, 1): 8.0, (2, 0): 3.0}
    found = spread(values)
    assert (found.mean, found.deviation, found.n) == (pytest.approx(23 / 5), 0.0, 5)


def test_one_seed_has_no_deviation() -> None:
    assert spread({(0, 0): 1.0, (0, 1): 3.0}).deviation is None


@pytest.mark.parametrize("keys", [KEYS, [(0, 0), (1, 0), (2, 0)]])
def test_the_paired_t_test_equals_scipys(keys: list[Key]) -> None:
    a, b = drawn(1, keys), drawn(2, keys)
    theirs = stats.ttest_rel([a[k] for k in keys], [b[k] for k in keys])
    low, high = theirs.confidence_interval(0.95)
    ours = paired_test(a, b)
    assert ours is not None
    assert (ours.p, ours.low, ours.high) == pytest.approx((theirs.pvalue, low, high))
    assert ours.mean == pytest.approx(sum(a[k] - b[k] for k in keys) / len(keys))


def test_the_signed_rank_test_equals_counting_every_assignment_of_signs() -> None:
    a, b = drawn(3), drawn(4)
    differences = [a[key] - b[key] for key in KEYS]
    ranks = stats.rankdata([abs(d) for d in differences])
    observed = sum(rank for rank, d in zip(ranks, differences, strict=True) if d > 0)
    centre = sum(ranks) / 2
    extreme = 0
    for signs in itertools.product((0, 1), repeat=len(ranks)):
        extreme += abs(sum(rank for rank, on in zip(ranks, signs, strict=True) if on) - centre) >= abs(
            observed - centre
        )
    found = paired_test(a, b)
    assert found is not None and found.wilcoxon == pytest.approx(extreme / 2 ** len(ranks))


def test_too_few_pairs_have_no_signed_rank_test_and_a_single_one_no_test() -> None:
    few = {(seed, 0): float(seed) for seed in range(5)}
    found = paired_test(few, dict.fromkeys(few, 0.5))
    assert found is not None and found.wilcoxon is None
    assert paired_test({(0, 0): 1.0}, {(0, 0): 2.0, (1, 0): 2.0}) is None


def test_only_runs_that_both_have_are_paired() -> None:
    a, b = drawn(5), drawn(6)
    del a[1, 2], b[0, 0]
    both = [key for key in KEYS if key in a and key in b]
    found = paired_test(a, b)
    assert found is not None and found.n == 7
    assert found.p == pytest.approx(stats.ttest_rel([a[k] for k in both], [b[k] for k in both]).pvalue)


def test_equal_runs_show_no_difference_and_a_constant_one_is_certain() -> None:
    a = drawn(7)
    same, shifted = paired_test(a, a), paired_test(dict.fromkeys(a, 1.0), dict.fromkeys(a, 0.0))
    assert same is not None and (same.p, same.wilcoxon, same.verdict) == (1.0, 1.0, "no difference shown")
    assert shifted is not None and (shifted.p, shifted.verdict) == (0.0, "higher error")


def test_holm_equals_its_definition() -> None:
    ps = [0.01, 0.04, 0.03, 0.005, 0.9]
    for i, p in enumerate(ps):
        # Rejected at level a exactly when every p up to this one is at most a / (m - rank): the least such a.
        smaller = sorted(ps)[: sorted(ps).index(p) + 1]
        assert holm(ps)[i] == pytest.approx(min(1.0, max((5 - rank) * q for rank, q in enumerate(smaller))))
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@pytest.mark.parametrize(
    ("low", "high", "p_holm", "verdict"),
    [
        (-1.0, 0.2, 0.01, "no difference shown"),
        (-1.0, -0.2, 0.2, "no difference shown after adjustment"),
        (-1.0, -0.2, 0.04, "lower error"),
        (0.2, 1.0, 0.04, "higher error"),
    ],
)
def test_the_verdict_never_says_more_than_the_adjusted_test(
    low: float, high: float, p_holm: float, verdict: str
) -> None:
    test = Paired(n=3, mean=(low + high) / 2, low=low, high=high, p=0.01, p_holm=p_holm, wilcoxon=None)
    assert test.verdict == verdict

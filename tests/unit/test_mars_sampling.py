"""The mask sampler against a planted pattern of router agreement."""

from __future__ import annotations

import math

import pytest
import torch

from mars_training.sampling import MaskSampler, guided_probabilities, incomplete_combinations

NAMES = ("rgb", "depth", "ir")


def test_the_full_set_and_the_empty_set_are_never_a_partial() -> None:
    rows = incomplete_combinations(NAMES).tolist()
    assert len(rows) == 6 and len({tuple(row) for row in rows}) == 6
    assert [True] * 3 not in rows and [False] * 3 not in rows


def test_statistics_belong_to_the_combination_drawn_wherever_it_stands_in_the_batch() -> None:
    """Each combination has its own agreement; batches come shuffled and of uneven make-up."""
    planted = torch.tensor([0.0, 0.1, 0.35, 0.5, 0.9, 1.0], dtype=torch.float64)
    sampler = MaskSampler(NAMES, start=1, tau=0.5)
    generator = torch.Generator().manual_seed(0)
    for size in (5, 17, 64, 3):
        drawn = torch.randint(0, 6, (size,), generator=generator)
        sampler.record(drawn, planted[drawn])
    assert sampler.discrepancy().tolist() == pytest.approx((1.0 - planted).tolist())


def test_a_row_without_a_residual_says_nothing_about_its_combination() -> None:
    sampler = MaskSampler(NAMES, start=1, tau=0.5)
    sampler.record(torch.tensor([0, 0, 1, 2]), torch.tensor([math.nan, 0.25, math.nan, 0.5]))
    assert sampler.discrepancy().tolist() == [0.75, 0.0, 0.5, 0.0, 0.0, 0.0]
    assert sampler.drawn.tolist() == [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]


def test_drawn_masks_are_the_combinations_the_statistics_are_kept_for() -> None:
    sampler = MaskSampler(NAMES, start=1, tau=0.5)
    drawn = torch.tensor([4, 0, 0, 5])
    assert sampler.masks(drawn).tolist() == [sampler.combinations[i].tolist() for i in (4, 0, 0, 5)]


def test_sampling_is_uniform_until_start_epochs_have_ended_and_guided_after() -> None:
    sampler = MaskSampler(NAMES, start=2, tau=0.5)
    agreement = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    for epoch, is_uniform in ((0, True), (1, False)):
        sampler.record(torch.arange(6), agreement)
        sampler.end_epoch(epoch)
        assert (sampler.probabilities.unique().numel() == 1) is is_uniform
    assert int(sampler.probabilities.argmax()) == 5


def test_an_epoch_forgets_the_one_before() -> None:
    sampler = MaskSampler(NAMES, start=1, tau=0.5)
    sampler.record(torch.arange(6), torch.zeros(6))
    sampler.end_epoch(0)
    sampler.record(torch.arange(6), torch.ones(6))
    assert sampler.end_epoch(1).tolist() == [0.0] * 6


def test_guided_probabilities_are_a_floored_softmax_that_sums_to_one() -> None:
    discrepancy, tau, floor = [0.9, 0.1, 0.5], 0.06, 0.03
    total = sum(math.exp(d / tau) for d in discrepancy)
    raised = [max(math.exp(d / tau) / total, floor) for d in discrepancy]
    found = guided_probabilities(torch.tensor(discrepancy, dtype=torch.float64), tau=tau, floor=floor)
    assert found.tolist() == pytest.approx([p / sum(raised) for p in raised])
    assert float(found.sum()) == pytest.approx(1.0)


def test_draws_follow_the_probabilities() -> None:
    sampler = MaskSampler(NAMES, start=1, tau=0.5)
    sampler.probabilities = torch.tensor([0.5, 0.3, 0.1, 0.1, 0.0, 0.0], dtype=torch.float64)
    torch.manual_seed(0)
    share = torch.bincount(sampler.draw(20_000), minlength=6) / 20_000
    assert share.tolist() == pytest.approx(sampler.probabilities.tolist(), abs=0.015)


def test_what_is_always_present_is_never_hidden() -> None:
    sampler = MaskSampler(("rgb", "aolp", "nir"), start=1, tau=1.0, always_present=("rgb",))
    assert sampler.combinations.tolist() == [[True, False, False], [True, True, False], [True, False, True]]
    assert bool(sampler.masks(sampler.draw(200))[:, 0].all())

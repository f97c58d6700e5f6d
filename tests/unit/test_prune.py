"""Fewer experts: what is dropped was not used or is masked, what is merged is a mean, and the rest trains on.

Axes: B samples, N experts, K active experts, C channels.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mars_edge import subsets
from mars_edge.errors import UsageError
from mars_export import merging, pieces, prune
from mars_training.methods import mars
from mars_training.model.build import build_training_mars
from mars_training.model.experts import expert
from mars_training.model.mars import DeployedMars, TrainingMars
from mars_training.recipe import ExpertKind, ModelRecipe
from tests.helpers.tiny_mars import LABELS, MODALITIES, NAMES, SOURCE, model, recipe, split

ROWS = split(40, 5)
EVERY = subsets.all_subsets(NAMES)


def logits(deployed: DeployedMars, subset: subsets.Subset = NAMES) -> Tensor:
    """Computed densely: rows are then in one batch whatever N is, and answers can be compared exactly."""
    deployed.eval()
    deployed.always_dense = True
    present = torch.from_numpy(subsets.mask(subset, NAMES)).expand(len(ROWS), -1)
    with torch.no_grad():
        answers: Tensor = deployed(ROWS.batch(torch.arange(len(ROWS))), present)
    return answers


def with_options(**options: object) -> TrainingMars:
    torch.manual_seed(3)
    changed = dataclasses.replace(recipe().model, **options)  # type: ignore[arg-type]
    made = build_training_mars(changed, MODALITIES, len(LABELS))
    made.eval()
    return made


def router_bias(made: TrainingMars) -> Tensor:
    bias = made.deployed.route_stage.router.out.bias  # type: ignore[union-attr]
    assert isinstance(bias, Tensor)
    return bias.data


def test_the_usage_of_a_subset_sums_to_k_per_row_and_shares_to_one() -> None:
    made = model()
    used = prune.usage(made, ROWS)
    assert used.subsets == tuple(subsets.label(subset, NAMES) for subset in EVERY)
    assert (used.counts.sum(axis=1) == made.deployed.active_experts * used.rows).all()
    assert used.shares.sum() == pytest.approx(1.0)
    assert (used.rows == len(ROWS)).all()


def test_usage_counts_only_rows_that_have_the_subset() -> None:
    present = torch.ones(len(ROWS), len(NAMES), dtype=torch.bool)
    present[:10, 0] = False
    used = prune.usage(model(), dataclasses.replace(ROWS, present=present), always_present=("rgb",))
    assert used.subsets == ("rgb", "rgb+depth", "rgb+ir", "rgb+depth+ir")
    assert (used.rows == len(ROWS) - 10).all()


def test_dropping_an_expert_that_is_never_chosen_changes_no_answer() -> None:
    made = model()
    router_bias(made)[1] = -1000.0
    smaller = prune.drop(made, [0, 2, 3])
    assert len(smaller.deployed.experts) == 3
    for subset in EVERY:
        assert torch.equal(logits(smaller.deployed, subset), logits(made.deployed, subset))


@pytest.mark.parametrize("keep", [[0, 2, 3], [3, 1], [1, 2]])
def test_a_smaller_model_answers_as_the_whole_one_that_may_not_choose_the_others(keep: list[int]) -> None:
    made = model()
    smaller = prune.drop(made, keep)
    gone = [i for i in range(4) if i not in keep]
    router_bias(made)[gone] = -1000.0
    for subset in EVERY:
        torch.testing.assert_close(logits(smaller.deployed, subset), logits(made.deployed, subset))


def test_dropping_leaves_the_model_as_it_was() -> None:
    made = model()
    before = copy.deepcopy(made.state_dict())
    prune.drop(made, [0, 1])
    assert all(torch.equal(before[name], tensor) for name, tensor in made.state_dict().items())
    assert len(made.deployed.experts) == 4


def test_both_routers_keep_the_same_rows_in_every_layer() -> None:
    made = with_options(combination_router=True, router_noise=True)
    nn.init.normal_(made.deployed.route_stage.combination.bias.weight)  # type: ignore[union-attr, arg-type]
    keep = [3, 0, 2]
    before, after = made.state_dict(), prune.drop(made, keep).state_dict()
    route = "deployed.route_stage"
    tables = [f"{route}.router.out.weight", f"{route}.router.out.bias", f"{route}.combination.bias.weight"]
    tables += ["residual_router.logits.weight", "residual_router.noise.weight"]
    for name in tables:
        assert torch.equal(after[name], before[name][keep]), name


def test_the_state_of_a_smaller_model_is_that_of_its_recipe() -> None:
    smaller = prune.drop(with_options(shared_expert=True, combination_router=True), [0, 1, 3])
    wanted = with_options(shared_expert=True, combination_router=True, experts=3)
    shapes = {name: tensor.shape for name, tensor in smaller.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in wanted.state_dict().items()}
    assert repr(smaller) == repr(wanted)


@pytest.mark.parametrize("how", ["drop", "merge"])
@pytest.mark.parametrize("residual_routing", [True, False])
def test_a_smaller_model_takes_a_step_and_every_parameter_learns(how: prune.How, residual_routing: bool) -> None:
    made = with_options(residual_routing=residual_routing)
    smaller, changed, _ = prune.pruned(made, recipe(), ROWS, SOURCE, experts=3, how=how)
    smaller.train()
    partial = torch.tensor([[True, False, True], [False, True, False]]).repeat(20, 1)
    step = mars.step(smaller, ROWS.training_batch(torch.arange(40)), partial, changed.loss, 0)
    step.terms["loss"].backward()  # type: ignore[no-untyped-call]
    silent = [name for name, p in smaller.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert silent == []


def experts_of(kind: ExpertKind, count: int, *, channels: Sequence[int] = (6, 5, 8)) -> list[nn.Module]:
    """Experts with batch norms that have seen samples and whose gains have both signs."""
    shared = {"shared_expert": kind == "low_rank"}
    made = ModelRecipe(width=8, expert_kind=kind, expert_rank=4, expert_stride=1, **shared)
    found = []
    for seed in range(count):
        torch.manual_seed(seed)
        one = expert(kind, made, channels)
        for norm in (m for m in one.modules() if isinstance(m, nn.BatchNorm2d)):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
        one.train()
        for _ in range(50):
            one(torch.randn(32, 8, 4, 4))
        found.append(one.eval())
    return found


KINDS: list[ExpertKind] = ["conv", "mlp", "resnet_stage", "low_rank"]


@pytest.mark.parametrize("kind", KINDS)
def test_merging_equal_experts_gives_that_expert(kind: ExpertKind) -> None:
    (one,) = experts_of(kind, 1)
    z = torch.randn(8, 8, 4, 4)
    both = merging.merged([one, copy.deepcopy(one)], [0.3, 0.1])
    torch.testing.assert_close(both(z), one(z), rtol=1e-4, atol=1e-4)


def test_merging_finds_the_channels_of_an_expert_whose_inner_channels_are_shuffled() -> None:
    (one,) = experts_of("mlp", 1)
    assert isinstance(one, nn.Sequential)
    other = copy.deepcopy(one)
    for i, order in ((0, torch.tensor([4, 2, 0, 5, 1, 3])), (1, torch.tensor([3, 1, 4, 0, 2]))):
        layer, reader = other[i][0], other[i + 1][0]  # type: ignore[index]
        layer.weight.data, layer.bias.data = layer.weight.data[order], layer.bias.data[order]
        reader.weight.data = reader.weight.data[:, order]
    z = torch.randn(8, 8, 4, 4)
    torch.testing.assert_close(other(z), one(z))
    torch.testing.assert_close(merging.merged([one, other], [0.5, 0.5])(z), one(z))
    assert merging.alike([*experts_of("mlp", 3)[1:], one, other], [0.25] * 4, to=3) == [(0,), (1,), (2, 3)]


def test_no_swap_of_two_channels_makes_a_matched_expert_more_like_the_other() -> None:
    first, other = ([*merging._folded(e)[0]] for e in experts_of("conv", 2))
    matched = merging._matched_chain(first, other)
    best = likeness(first, matched)
    assert best > likeness(first, other)
    for i in (0, 1):
        for swap in itertools.combinations(range(len(matched[i].bias)), 2):
            order = np.arange(len(matched[i].bias))
            order[list(swap)] = order[list(reversed(swap))]
            changed = list(matched)
            changed[i] = matched[i].ordered(order, np.arange(matched[i].weight.shape[1]))
            changed[i + 1] = matched[i + 1].ordered(np.arange(len(matched[i + 1].bias)), order)
            assert likeness(first, changed) <= best + 1e-9


def likeness(first: merging.Chain, other: merging.Chain) -> float:
    return sum(float((a.weight * b.weight).sum() + a.bias @ b.bias) for a, b in zip(first, other, strict=True))


def test_one_layer_experts_merge_into_the_mean_of_their_folded_weights() -> None:
    first, other = experts_of("conv", 2, channels=(8,))
    z = torch.randn(8, 8, 4, 4)
    plain = 0.75 * first[0][:2](z) + 0.25 * other[0][:2](z)  # type: ignore[index, operator]
    torch.testing.assert_close(merging.merged([first, other], [0.6, 0.2])(z), plain.relu(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unused_expert_leaves_the_one_it_is_merged_with_as_it_is(kind: ExpertKind) -> None:
    first, other = experts_of(kind, 2)
    z = torch.randn(8, 8, 4, 4)
    torch.testing.assert_close(merging.merged([first, other], [0.5, 0.0])(z), first(z), rtol=1e-4, atol=1e-4)


def test_a_merged_batch_norm_in_training_gives_the_mean_of_the_moments() -> None:
    first, other = experts_of("conv", 2, channels=(8,))
    both = merging.merged([first, other], [0.5, 0.5])
    gains = [e[0][1].weight.data.square() for e in (first, other)]  # type: ignore[index, union-attr, operator]
    given = both.train()[0][:2](torch.randn(4096, 8, 4, 4))  # type: ignore[index, operator]
    offsets = torch.stack([e[0][1].bias.data for e in (first, other)])  # type: ignore[index, union-attr, arg-type]
    torch.testing.assert_close(given.mean((0, 2, 3)), offsets.mean(dim=0), rtol=0.01, atol=0.01)
    torch.testing.assert_close(given.var((0, 2, 3)), torch.stack(gains).mean(dim=0), rtol=0.05, atol=0.01)


def test_merging_two_equal_experts_of_a_model_changes_no_answer_but_of_a_tie() -> None:
    # With the same logits up to a constant the two rank next to each other; K = 1 never runs both.
    made = model()
    made.deployed.active_experts = 1
    made.deployed.experts[2].load_state_dict(made.deployed.experts[0].state_dict())
    layer = made.deployed.route_stage.router.out  # type: ignore[union-attr]
    layer.weight.data[2] = layer.weight.data[0]  # type: ignore[union-attr, index]
    router_bias(made)[2] = router_bias(made)[0] - 1e-3
    smaller = prune.merge(made, [(0, 2), (1,), (3,)], [0.4, 0.3, 0.1, 0.2])
    for subset in EVERY:
        torch.testing.assert_close(
            logits(smaller.deployed, subset), logits(made.deployed, subset), rtol=1e-4, atol=1e-4
        )


def test_routers_of_merged_experts_take_the_most_used_row_or_the_mean() -> None:
    made = with_options(combination_router=True)
    groups, shares = [(2, 0), (1,), (3,)], [0.1, 0.3, 0.3, 0.3]
    before = made.state_dict()
    leading = prune.merge(made, groups, shares).state_dict()
    mean = prune.merge(made, groups, shares, rows="mean").state_dict()
    for name in ("deployed.route_stage.router.out.weight", "deployed.route_stage.router.out.bias",
                 "residual_router.logits.weight", "residual_router.noise.weight"):  # fmt: skip
        assert torch.equal(leading[name], before[name][[2, 1, 3]]), name
        torch.testing.assert_close(mean[name][0], 0.25 * before[name][0] + 0.75 * before[name][2])
        assert torch.equal(mean[name][1:], before[name][[1, 3]]), name


def test_the_price_list_goes_from_all_experts_down_to_k_and_drops_the_least_used() -> None:
    made = model()
    bench = prune.Bench(validation=ROWS, source=SOURCE)
    found = list(prune.prices(made, bench))
    assert [(p.experts, p.how) for p in found] == [(4, None), (3, "drop"), (3, "merge"), (2, "drop"), (2, "merge")]
    shares = prune.usage(made, ROWS).shares
    assert found[1].groups == tuple((i,) for i in range(4) if i != shares.argmin())
    assert found[1].parameters < found[0].parameters
    errors, mean = bench.errors(prune.drop(made, [group[0] for group in found[1].groups]))
    assert (found[1].errors, found[1].mean_error) == (errors, mean)
    table = prune.price_table(found)
    assert len(table.splitlines()) == 1 + len(found)
    assert "  +0.00  " in table.splitlines()[1]


def test_merging_keeps_the_router_rows_of_the_lower_validation_error() -> None:
    made, bench = model(), prune.Bench(validation=ROWS, source=SOURCE)
    used = prune.usage(made, ROWS)
    _, price = prune.fewer(made, used, bench, experts=3, how="merge")
    shares = used.shares.tolist()
    each = {rows: bench.errors(prune.merge(made, price.groups, shares, rows=rows))[1] for rows in ("most used", "mean")}
    assert price.mean_error == min(each.values())
    assert price.rows is not None and each[price.rows] == price.mean_error


def test_a_pruned_model_comes_with_its_recipe_and_a_report_in_json() -> None:
    made = model()
    smaller, changed, report = prune.pruned(made, recipe(), ROWS, SOURCE, experts=3, how="merge")
    assert len(smaller.deployed.experts) == changed.model.experts == 3
    assert dataclasses.replace(changed, model=recipe().model) == recipe()
    assert json.loads(json.dumps(report)) == report
    assert sorted(i for group in report["after"]["groups"] for i in group) == [0, 1, 2, 3]
    assert report["before"]["errors"].keys() == report["after"]["errors"].keys()
    text = prune.report_text(report)
    assert text.splitlines()[0] == "4 experts, 3 after merge; validation error in percent"
    assert len(text.splitlines()) == 2 + len(EVERY) + 1


@pytest.mark.parametrize("experts", [-1, 0, 2, 4, 5])
def test_a_number_of_experts_out_of_range_is_one_line(experts: int) -> None:
    with pytest.raises(UsageError) as caught:
        prune.pruned(model(), recipe(), ROWS, SOURCE, experts=experts, how="drop")
    assert str(caught.value) == (f"experts is {experts}; this run has 4 experts of which 2 run: allowed are 3 to 3")


def test_a_model_that_routes_among_k_and_one_more_cannot_shrink() -> None:
    small = with_options(experts=3)
    with pytest.raises(UsageError) as caught:
        prune.pruned(small, recipe(), ROWS, SOURCE, experts=2, how="drop")
    assert str(caught.value) == "none of 3 experts can go: 2 of them run, and one more is needed to route"


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([0], "1 experts would be left; at least 2 are needed"),
        ([0, 0, 1], "experts [0, 0, 1] are not each one of 0 to 3, once"),
        ([0, 4], "experts [0, 4] are not each one of 0 to 3, once"),
        ([-1, 2], "experts [-1, 2] are not each one of 0 to 3, once"),
    ],
)
def test_experts_that_cannot_be_kept_are_one_line(keep: list[int], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        prune.drop(model(), keep)
    assert str(caught.value) == message


def test_groups_that_leave_an_expert_out_are_refused() -> None:
    with pytest.raises(UsageError) as caught:
        prune.merge(model(), [(0, 1), (2,)], [0.25] * 4)
    assert str(caught.value) == "3 experts would be left; at least 4 are needed"


def test_experts_of_another_form_cannot_be_merged() -> None:
    odd = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Sigmoid())
    with pytest.raises(UsageError) as caught:
        merging.merged([odd, odd], [0.5, 0.5])
    assert str(caught.value) == "experts with a Sigmoid cannot be merged; they can be dropped"


def test_a_quantized_model_is_refused() -> None:
    made = model()
    pieces.replace_piece(made.deployed, "route", pieces.Piece(made.deployed.route_stage))
    with pytest.raises(UsageError) as caught:
        prune.drop(made, [0, 1, 2])
    assert str(caught.value) == "this model is quantized: experts are dropped or merged before that"

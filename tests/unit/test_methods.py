"""Every method in the same harness: its losses, its parameters, what it may read, and that it learns.

Axes: B batch, M modalities, N experts, K active ones, C classes.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mars_training
from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_training.data.split import Batch, Data, Source, Split
from mars_training.evaluate import score_subsets
from mars_training.losses import row_losses
from mars_training.methods import METHODS, deployed_of, dmrnet, flex_moe, hemis, mars, shaspec, simmlm
from mars_training.methods.oracle import Oracle, oracle_of
from mars_training.methods.peer import keep, matched_width
from mars_training.methods.step import Step
from mars_training.model.build import build_deployed, build_training_mars, parameter_count
from mars_training.model.mars import DeployedMars, TrainingMars
from mars_training.model.mixture import dense_mixture, sparse_mixture
from mars_training.model.routers import NoisyRouting, ResidualRouter, clean_routing, top_k_gates
from mars_training.model.rows import on_rows
from mars_training.optimiser import optimiser_groups
from mars_training.recipe import (
    DataRecipe,
    EncoderRecipe,
    LossRecipe,
    ModelRecipe,
    Recipe,
    SamplingRecipe,
    ScheduleRecipe,
)
from mars_training.sampling import incomplete_combinations
from mars_training.train import train

NAMES = ("rgb", "depth", "ir")
MODALITIES = tuple(
    Modality(name=n, kind="image", channels=c, size=(16, 16), dtype="uint8", range=(0, 255))
    for n, c in zip(NAMES, (3, 1, 1), strict=True)
)
ENCODERS = {n: EncoderRecipe(channels=(4, w), strides=(2, 2)) for n, w in zip(NAMES, (6, 8, 6), strict=True)}
# Depth's features have other channels than the rest.
RECIPE = ModelRecipe(encoders=ENCODERS, experts=4, active_experts=2, width=8, expert_channels=(10,))
LATE = 99
"""An epoch in which every loss and every stage has begun."""
ALL = sorted(METHODS)
SEGMENTING = [name for name in ALL if name != "flex_moe"]


def inputs(size: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {m.name: torch.rand(size, *m.shape, generator=generator) for m in MODALITIES}


def complete(size: int) -> Batch:
    present = torch.ones(size, len(NAMES), dtype=torch.bool)
    return Batch(inputs=inputs(size), labels=torch.arange(size) % 3, present=present)


def incomplete(size: int) -> Batch:
    """Every incomplete combination, and some complete rows."""
    rows = torch.cat([incomplete_combinations(NAMES), torch.ones(2, 3, dtype=torch.bool)])
    present = rows.repeat(size, 1)[:size]
    x = {n: v * present[:, m].view(-1, 1, 1, 1) for m, (n, v) in enumerate(inputs(size).items())}
    return Batch(inputs=x, labels=torch.arange(size) % 3, present=present)


def partial(size: int) -> Tensor:
    return incomplete_combinations(NAMES).repeat(size, 1)[:size]


def built(method: str, recipe: ModelRecipe = RECIPE) -> nn.Module:
    torch.manual_seed(0)
    return METHODS[method].build(recipe, MODALITIES, 3, "classification")


def stepped(model: nn.Module, method: str, batch: Batch, loss: LossRecipe | None = None, epoch: int = LATE) -> Step:
    torch.manual_seed(1)
    return METHODS[method].step(model.train(), batch, partial(len(batch)), loss or LossRecipe(), epoch)


def value(x: Tensor) -> float:
    """The number in a scalar, on a graph or not."""
    return float(x.detach())


def silent(model: nn.Module) -> list[str]:
    """Parameters without a gradient."""
    return [n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]


# All methods ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [complete, incomplete])
@pytest.mark.parametrize("method", ALL)
def test_one_step_gives_finite_losses_that_add_up(method: str, make: type) -> None:
    loss = LossRecipe(task=2.0, distill=0.5)
    terms = stepped(built(method), method, make(32), loss).terms
    assert all(bool(torch.isfinite(v)) and v.dim() == 0 for v in terms.values())
    expected = sum(getattr(loss, name) * value(v) for name, v in terms.items() if name != "loss")
    assert value(terms["loss"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", ALL)
def test_every_parameter_is_in_one_optimiser_group_and_gets_a_gradient(method: str) -> None:
    model = built(method)
    grouped = [id(p) for group in optimiser_groups(model, 0.01) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    stepped(model, method, complete(64)).terms["loss"].backward()  # type: ignore[no-untyped-call]
    assert silent(model) == []


@pytest.mark.parametrize("absurd", [1e6, math.nan])
@pytest.mark.parametrize("method", ALL)
def test_what_is_absent_cannot_change_the_decision(method: str, absurd: float) -> None:
    deployed = deployed_of(built(method))
    deployed.eval()
    for row in incomplete_combinations(NAMES):
        present = row.expand(5, -1)
        other = {n: v if on else torch.full_like(v, absurd) for (n, v), on in zip(inputs(5).items(), row, strict=True)}
        with torch.no_grad():
            one, two = (deployed.classify(deployed.encode_all(x), present) for x in (inputs(5), other))
        assert torch.equal(one, two)
        assert bool(torch.isfinite(one).all())


def one_and_none(size: int) -> Batch:
    """Depth is on a single row, ir on none."""
    present = torch.zeros(size, 3, dtype=torch.bool)
    present[:, 0] = True
    present[3, 1] = True
    return dataclasses.replace(complete(size), present=present)


def one_between_many(size: int) -> Batch:
    """Depth is on a single row, the others are on all."""
    batch = one_and_none(size)
    return dataclasses.replace(batch, present=batch.present | torch.tensor([True, False, True]))


def filled(batch: Batch, value: float) -> Batch:
    """`batch` with `value` in the place of all that is absent."""
    columns = zip(batch.inputs.items(), batch.present.unbind(dim=1), strict=True)
    return dataclasses.replace(
        batch, inputs={n: torch.where(there.view(-1, 1, 1, 1), x, value) for (n, x), there in columns}
    )


@pytest.mark.parametrize("epoch", [0, LATE])
@pytest.mark.parametrize("make", [incomplete, one_and_none, one_between_many])
@pytest.mark.parametrize("method", ALL)
def test_what_is_absent_changes_no_loss_gradient_or_statistic_of_a_training_step(
    method: str, make: Callable[[int], Batch], epoch: int
) -> None:
    found = []
    for value in (0.0, 5.0, math.nan):
        model = built(method)
        step = stepped(model, method, filled(make(24), value), LossRecipe(distill=1.0, first_stage=2), epoch)
        step.terms["loss"].backward()  # type: ignore[no-untyped-call]
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append({**{f"term.{n}": v.detach() for n, v in step.terms.items()}, **gradients, **model.state_dict()})
    assert all(bool(torch.isfinite(v).all()) for v in found[0].values())
    for other in found[1:]:
        assert found[0].keys() == other.keys()
        assert [n for n, v in found[0].items() if not torch.equal(v, other[n])] == []


@pytest.mark.parametrize("method", ALL)
def test_an_encoder_learns_the_statistics_of_the_rows_that_have_its_modality(method: str) -> None:
    model, batch = built(method), incomplete(24)
    expected = copy.deepcopy(deployed_of(model).encoders).train()
    for (name, encoder), there in zip(expected.items(), batch.present.unbind(dim=1), strict=True):
        encoder(batch.inputs[name][there])
    stepped(model, method, batch)
    found = dict(deployed_of(model).encoders.named_buffers())
    assert all(torch.equal(b, found[n]) for n, b in expected.named_buffers())


@pytest.mark.parametrize("method", ALL)
def test_an_encoder_learns_no_statistics_from_a_single_row_or_none(method: str) -> None:
    model = built(method)
    before = copy.deepcopy(deployed_of(model).encoders)
    stepped(model, method, one_and_none(8)).terms["loss"].backward()  # type: ignore[no-untyped-call]
    assert all(module.training for module in model.modules())
    found = dict(deployed_of(model).encoders.named_buffers())
    for name, buffer in before.named_buffers():
        assert torch.equal(buffer, found[name]) is not (name.startswith("rgb"))
    depth = [p.grad for p in deployed_of(model).encoders["depth"].parameters()]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in depth)


@pytest.mark.parametrize("method", ["hemis", "shaspec", "simmlm"])
def test_a_peers_module_of_one_modality_learns_no_statistics_from_rows_without_it(method: str) -> None:
    model = built(method)
    core = deployed_of(model).core  # type: ignore[attr-defined]
    own = core.experts if method == "simmlm" else core.project
    before = [[b.clone() for b in module.buffers()] for module in own]
    stepped(model, method, one_and_none(8))
    same = [all(map(torch.equal, b, module.buffers())) for b, module in zip(before, own, strict=True)]
    assert same == [False, True, True]


def test_rows_run_on_and_rows_left_out_are_those_of_a_loop() -> None:
    modules = [nn.Linear(4, 5), nn.Linear(3, 2), nn.Linear(2, 2)]
    xs, there = [torch.randn(6, 4), torch.randn(6, 3), torch.randn(6, 2)], incomplete(6).present
    for module, x, kept, answer in zip(modules, xs, there.t().tolist(), on_rows(modules, xs, there), strict=True):
        for b, on in enumerate(kept):
            expected = module(x[b]) if on else torch.zeros(module.out_features)
            assert torch.allclose(answer[b], expected, atol=1e-6)


@pytest.mark.parametrize("recipe", [ModelRecipe(), ModelRecipe(shared_expert=True, expert_channels=(64, 84))])
@pytest.mark.parametrize("method", ALL)
def test_the_deployed_model_has_the_parameters_of_mars_within_2_percent(method: str, recipe: ModelRecipe) -> None:
    face = tuple(dataclasses.replace(m, size=(112, 112)) for m in MODALITIES)
    target = parameter_count(build_deployed(recipe, face, 2))
    found = parameter_count(deployed_of(METHODS[method].build(recipe, face, 2, "classification")))
    assert abs(found - target) <= 0.02 * target


@pytest.mark.parametrize("method", SEGMENTING)
def test_a_method_that_segments_gives_a_class_per_pixel(method: str) -> None:
    torch.manual_seed(0)
    model = METHODS[method].build(RECIPE, MODALITIES, 3, "segmentation").train()
    labels = torch.randint(0, 3, (6, 16, 16))
    labels[:, :4] = 255
    batch = dataclasses.replace(complete(6), labels=labels)
    terms = METHODS[method].step(model, batch, partial(6), LossRecipe(distill=1.0), LATE).terms
    assert bool(torch.isfinite(terms["loss"]))
    deployed = deployed_of(model)
    assert deployed.classify(deployed.encode_all(batch.inputs), batch.present).shape == (6, 3, 16, 16)


def test_a_task_that_a_method_does_not_treat_is_refused_by_name() -> None:
    with pytest.raises(UsageError) as error:
        METHODS["flex_moe"].build(RECIPE, MODALITIES, 3, "segmentation")
    message = (
        "method is 'flex_moe' and the task segmentation; allowed for it: classification, which is all its paper treats"
    )
    assert str(error.value) == message


TOY = tuple(Modality(name=n, kind="image", size=(8, 8), dtype="uint8", range=(0, 255)) for n in ("rgb", "depth"))


def toy_split(n: int, seed: int) -> Split:
    """Live samples are brighter at the top of rgb and at the bottom of depth."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    rgb, depth = torch.rand(2, n, 1, 8, 8, generator=generator)
    rgb[:, :, :4] += 0.3 * labels[:, None, None, None]
    depth[:, :, 4:] += 0.3 * labels[:, None, None, None]
    return Split(inputs={"rgb": rgb, "depth": depth}, labels=labels, groups=1 - labels, group_names=("real", "print"))


@pytest.mark.parametrize("method", ALL)
def test_three_epochs_lower_the_validation_error_below_chance(method: str, tmp_path: Path) -> None:
    source = Source(modalities=TOY, labels=("spoof", "live"), positive_label="live", note="toy")
    data = Data(source=source, train=toy_split(256, 1), validation=toy_split(64, 2))
    small = EncoderRecipe(channels=(4,), strides=(2,))
    recipe = Recipe(
        name="toy",
        method=method,  # type: ignore[arg-type]
        data=DataRecipe(reader="rig"),
        model=ModelRecipe(
            encoders={"rgb": small, "depth": small}, experts=4, active_experts=2, width=8, expert_channels=(8,)
        ),
        loss=LossRecipe(first_stage=1),
        sampling=SamplingRecipe(start=1),
        schedule=ScheduleRecipe(epochs=3, batch_size=16, rate=1e-2),
    )
    assert train(recipe, data, tmp_path, seed=0).selected.validation_error < 0.35


def test_distillation_lowers_nothing_but_what_it_names() -> None:
    batch = complete(16)
    for method in ALL:
        plain = stepped(built(method), method, batch).terms
        distilled = stepped(built(method), method, batch, LossRecipe(distill=0.7)).terms
        assert "distill" not in plain
        assert value(distilled["loss"] - plain["loss"]) == pytest.approx(0.7 * value(distilled["distill"]), rel=1e-3)


# The ladder and its top --------------------------------------------------------------------------------------------


def test_a_plain_mixture_is_mars_without_its_residual_router() -> None:
    plain = built("mars", dataclasses.replace(RECIPE, residual_routing=False))
    moe = built("moe")
    assert isinstance(moe, TrainingMars) and isinstance(moe.deployed, DeployedMars)
    assert not any(isinstance(m, ResidualRouter) for m in moe.modules())
    assert [n for n, _ in moe.named_parameters()] == [n for n, _ in plain.named_parameters()]
    one, other = (stepped(m, "moe", complete(16)) for m in (moe, plain))
    assert value(one.terms["loss"]) == value(other.terms["loss"])
    assert one.agreement is None and set(one.terms) == {"loss", "task", "balance"}


def test_the_passes_of_a_plain_mixture_are_those_of_the_deployed_model() -> None:
    model = built("moe").eval()
    assert isinstance(model, TrainingMars)
    x, mask = inputs(6), partial(6)
    passes = model(x, mask)
    assert torch.allclose(passes.full, model.deployed(x, torch.ones_like(mask)), atol=1e-5)
    assert torch.allclose(passes.partial, model.deployed(x, mask), atol=1e-5)


def test_a_plain_mixture_balances_both_passes_by_clean_gates_and_a_constant_scale() -> None:
    model = built("moe").eval()
    assert isinstance(model, TrainingMars)
    passes = model(inputs(6), partial(6))
    routed = torch.cat([passes.feature, passes.student]).double()
    importance = top_k_gates(routed, 2).sum(dim=0)
    load = torch.zeros(4, dtype=torch.float64)
    for row in routed.tolist():
        for j in range(4):
            bar = sorted((v for i, v in enumerate(row) if i != j), reverse=True)[1]
            load[j] += 0.5 * (1.0 + math.erf((row[j] - bar) / 0.25 / math.sqrt(2.0)))
    expected = sum(value(v.var() / v.mean() ** 2) for v in (importance, load))
    found = mars.mixture_losses(passes, torch.arange(6) % 3, LossRecipe(), 2)["balance"]
    assert value(found) == pytest.approx(expected, rel=1e-4)


def test_a_residual_router_without_noise_has_neither_scale_nor_loss() -> None:
    model = built("mars", dataclasses.replace(RECIPE, router_noise=False))
    assert isinstance(model, TrainingMars) and model.residual_router is not None
    assert [n for n, _ in model.residual_router.named_parameters()] == ["logits.weight"]
    routing: NoisyRouting = model.residual_router.train()(torch.randn(5, 8))
    assert torch.equal(routing.noisy, routing.clean) and not routing.drawn
    step = stepped(model, "mars", complete(64))
    assert value(step.terms["noise"]) == 0.0 and value(step.terms["balance"]) > 0.0
    step.terms["loss"].backward()  # type: ignore[no-untyped-call]
    assert silent(model) == []


def test_in_the_routers_warm_up_the_feature_router_routes_and_teaches() -> None:
    model = built("mars", dataclasses.replace(RECIPE, router_warmup=2))
    assert isinstance(model, TrainingMars) and model.residual_router is not None
    assert [model.routes_by_features(e) for e in (0, 1, 2)] == [True, True, False]
    passes = model.eval()(inputs(6), partial(6), by_features=True)
    assert torch.allclose(passes.partial, model.deployed(inputs(6), partial(6)), atol=1e-5)
    terms = mars.warmup_losses(passes, torch.arange(6) % 3, LossRecipe(), 2, complete=torch.ones(6, dtype=torch.bool))
    students = [p for n, p in model.named_parameters() if "route_stage.router" in n]
    grads = torch.autograd.grad(terms["imitate"], students, allow_unused=True, retain_graph=True)
    assert all(g is None for g in grads)
    (taught,) = torch.autograd.grad(terms["imitate"], [model.residual_router.logits.weight])
    assert bool(taught.abs().sum() > 0)
    assert set(stepped(model, "mars", complete(16), epoch=0).terms) == {"loss", "task", "balance", "imitate"}
    assert "noise" in stepped(model, "mars", complete(16), epoch=2).terms


def test_the_oracle_routes_incomplete_rows_by_the_residual_router() -> None:
    model = built("mars").eval()
    assert isinstance(model, TrainingMars) and model.residual_router is not None
    oracle = oracle_of(model)
    x, mask = inputs(8), torch.cat([partial(6), torch.ones(2, 3, dtype=torch.bool)])
    found = oracle.classify(oracle.encode_all(x), mask)
    passes = model(x, mask)
    assert torch.allclose(found[:6], passes.partial[:6], atol=1e-5)
    assert torch.allclose(found[6:], passes.full[6:], atol=1e-5)


def test_the_oracle_is_privileged_and_the_deployed_model_is_not() -> None:
    model = built("mars").eval()
    assert isinstance(model, TrainingMars)
    present = torch.tensor([[True, False, True]]).expand(8, -1)
    for scorer, equal in ((model.deployed, True), (oracle_of(model), False)):
        answers = []
        for seed in (0, 5):
            x = inputs(8) | {"depth": 50.0 * inputs(8, seed)["depth"]}
            answers.append(scorer.classify(scorer.encode_all(x), present))
        assert torch.equal(*answers) is equal


def test_an_oracle_scores_every_subset_as_a_deployed_model_does() -> None:
    split = Split(inputs=inputs(12), labels=torch.arange(12) % 3, groups=torch.zeros(12).long(), group_names=("all",))
    source = Source(modalities=MODALITIES, labels=("a", "b", "c"), positive_label=None, note="")
    model = built("mars")
    ours, theirs = (score_subsets(m, split, source) for m in (oracle_of(model), deployed_of(model)))
    assert [s.subset for s in ours] == [s.subset for s in theirs]
    assert ours[-1].value == theirs[-1].value  # complete: no privilege


def test_only_a_model_with_a_residual_router_has_an_oracle() -> None:
    for method, name in (("moe", "TrainingMars"), ("hemis", "Peer")):
        with pytest.raises(UsageError) as error:
            oracle_of(built(method))
        assert str(error.value) == f'an oracle needs a residual router, which {name} lacks; train method "mars"'


def test_only_the_comparison_may_import_the_oracle() -> None:
    root = Path(mars_training.__file__).parents[2]
    folders = [root / "mars_edge", root / "training", root / "export", root / "runtime"]
    importers = {
        path.name
        for folder in folders
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").endswith("methods.oracle")
    }
    assert importers <= {"compare.py"}
    assert not any(isinstance(m, Oracle) for m in built("mars").modules())


def test_rows_that_lack_a_modality_take_no_part_in_the_routing_losses_nor_in_what_the_sampler_learns() -> None:
    """In evaluation mode rows do not meet in batch norm, so that the complete rows alone are the reference."""
    model, batch = built("mars").eval(), incomplete(16)
    rows = batch.present.all(dim=1)
    assert 0 < int(rows.sum()) < 16
    whole = Batch(
        inputs={n: x[rows] for n, x in batch.inputs.items()}, labels=batch.labels[rows], present=batch.present[rows]
    )
    found = METHODS["mars"].step(model, batch, partial(16), LossRecipe(), LATE)
    alone = METHODS["mars"].step(model, whole, partial(16)[rows], LossRecipe(), LATE)
    for name in ("balance", "imitate", "noise"):
        assert value(found.terms[name]) == pytest.approx(value(alone.terms[name]), rel=1e-4)
    assert found.agreement is not None and alone.agreement is not None
    assert torch.equal(found.agreement.isnan(), ~rows)
    assert torch.equal(found.agreement[rows], alone.agreement)


def test_imitation_weighs_nothing_before_its_first_epoch() -> None:
    loss = LossRecipe(imitate=10.0, imitate_start=3)
    early, late = (stepped(built("mars"), "mars", complete(16), loss, epoch).terms for epoch in (2, 3))
    assert value(early["imitate"]) == pytest.approx(value(late["imitate"])) and value(late["imitate"]) > 0.0
    assert value(late["loss"] - early["loss"]) == pytest.approx(10.0 * value(late["imitate"]), rel=1e-3)


# Options -------------------------------------------------------------------------------------------------------------


def test_the_combination_bias_adds_one_learned_row_per_modality_that_is_there() -> None:
    model = build_training_mars(dataclasses.replace(RECIPE, combination_router=True), MODALITIES, 3).deployed.eval()
    plain = build_deployed(RECIPE, MODALITIES, 3).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "combination" not in k})
    weight = torch.randn(4, 3)
    dict(model.named_parameters())["route_stage.combination.bias.weight"].data.copy_(weight)
    features, present = model.encode_all(inputs(6)), partial(6)
    _, found = model.route(features, present)
    _, base = plain.route(features, present)
    assert torch.allclose(found - base, present.float() @ weight.t(), atol=1e-5)


def test_the_combination_bias_exports_behind_the_same_inputs() -> None:
    model = build_training_mars(dataclasses.replace(RECIPE, combination_router=True), MODALITIES, 3).deployed.eval()
    features = tuple(f.detach() for f in keep(model.encode_all(inputs(2)), partial(2)))
    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        model.route_stage, features, dynamic_shapes={"features": tuple({0: batch} for _ in features)}
    )
    more = keep(model.encode_all(inputs(5)), partial(5))
    assert torch.allclose(exported.module()(*more)[1], model.route_stage(*more)[1], atol=1e-5)


@pytest.mark.parametrize("channels", [(10,), (6, 10)])
def test_sparse_dispatch_equals_dense_in_answers_and_gradients(channels: tuple[int, ...]) -> None:
    recipe = dataclasses.replace(RECIPE, expert_channels=channels)
    torch.manual_seed(0)
    experts = build_deployed(recipe, MODALITIES, 3).experts.eval()
    gates = top_k_gates(torch.randn(9, 4), 2)
    gates[3] = 0.0  # a row that no expert takes
    gates[:, 2] = 0.0  # an expert without rows
    found: list[list[Tensor]] = []
    for form in (dense_mixture, sparse_mixture):
        z, weights = torch.randn(9, 8, 4, 4, generator=torch.Generator().manual_seed(2)), gates.clone()
        z.requires_grad_()
        weights.requires_grad_()
        experts.zero_grad(set_to_none=False)
        y = form(experts, z, weights)
        (y.square().sum() + y.sum()).backward()  # type: ignore[no-untyped-call]
        assert z.grad is not None and weights.grad is not None
        routed = weights.grad * (gates != 0)
        found.append(
            [y, z.grad, routed, *(torch.zeros(1) if p.grad is None else p.grad.clone() for p in experts.parameters())]
        )
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_the_deployed_model_answers_alike_dense_and_sparse() -> None:
    deployed = build_deployed(RECIPE, MODALITIES, 3).eval()
    assert deployed.sparse
    sparse = deployed(inputs(12), partial(12))
    deployed.always_dense = True
    assert not deployed.sparse
    assert torch.allclose(sparse, deployed(inputs(12), partial(12)), atol=1e-5)


def test_an_expert_with_one_row_of_one_pixel_trains_on_running_statistics() -> None:
    recipe = dataclasses.replace(RECIPE, expert_kernel=1, expert_stride=1, dispatch="sparse")
    torch.manual_seed(0)
    experts = build_deployed(recipe, MODALITIES, 3).experts.train()
    gates = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0]])
    means = [b for n, b in experts.named_buffers() if n.endswith("running_mean")]
    before = [m.clone() for m in means]
    y = sparse_mixture(experts, torch.randn(2, 8, 1, 1), gates)
    assert bool(torch.isfinite(y).all()) and all(m.training for m in experts.modules())
    assert [torch.equal(a, b) for a, b in zip(before, means, strict=True)] == [False, True, True, True]


@pytest.mark.parametrize("method", ["mars", "moe", "flex_moe"])
def test_a_method_with_experts_trains_with_sparse_dispatch(method: str) -> None:
    model = built(method, dataclasses.replace(RECIPE, dispatch="sparse"))
    stepped(model, method, complete(64)).terms["loss"].backward()  # type: ignore[no-untyped-call]
    assert silent(model) == []


# The peers' own parts ----------------------------------------------------------------------------------------------


def test_hemis_moments_are_those_of_a_loop_over_what_is_there() -> None:
    features = [torch.randn(6, 2, 3, 3) for _ in range(3)]
    mean, variance = hemis.moments(features, partial(6))
    for b, row in enumerate(partial(6).tolist()):
        there = torch.stack([f[b] for f, on in zip(features, row, strict=True) if on])
        assert torch.allclose(mean[b], there.mean(dim=0), atol=1e-6)
        expected = there.var(dim=0) if len(there) > 1 else torch.zeros(2, 3, 3)
        assert torch.allclose(variance[b], expected, atol=1e-6)


def test_shaspec_replaces_a_missing_modality_by_the_mean_of_the_shared_features() -> None:
    model = built("shaspec").eval()
    assert isinstance(model, shaspec.TrainingShaSpec)
    core = model.deployed.core
    assert isinstance(core, shaspec.SharedSpecific)
    shared, specific = core.split(model.deployed.encode_all(inputs(1)))
    mixed = [core.mix(torch.cat([r, s], dim=1)) + r for r, s in zip(shared, specific, strict=True)]
    fused = [mixed[0], 0.5 * (shared[0] + shared[2]), mixed[2]]
    expected = core.head(core.stage(core.fusion(fused)))
    found = core.fuse(shared, specific, torch.tensor([[True, False, True]]))
    assert torch.allclose(found, expected, atol=1e-5)


def test_shaspec_losses_are_those_of_a_loop_over_rows_that_have_the_modalities() -> None:
    shared, present = [torch.randn(6, 2, 2, 2) for _ in range(3)], incomplete(8).present[2:]
    expected = 0.0
    for i, j in itertools.combinations(range(3), 2):
        rows = [b for b in range(6) if present[b, i] and present[b, j]]
        expected += sum(value((shared[i][b] - shared[j][b]).abs().mean()) for b in rows) / max(len(rows), 1)
    assert value(shaspec.alignment_loss(shared, present)) == pytest.approx(expected, rel=1e-5)
    told = torch.randn(6, 3, 3)
    each = [-value(told[b, m].log_softmax(0)[m]) for b in range(6) for m in range(3) if present[b, m]]
    assert value(shaspec.domain_loss(told, present)) == pytest.approx(sum(each) / len(each), rel=1e-5)


def test_shaspec_and_dmrnet_leave_what_only_trains_out_of_the_deployed_model() -> None:
    for method, name in (("shaspec", "domain"), ("dmrnet", "log_variance")):
        model = built(method)
        owned = {id(p) for p in deployed_of(model).parameters()}
        assert not any(id(p) in owned for p in getattr(model, name).parameters())


def test_dmrnet_calls_hard_the_combinations_of_more_than_average_variance() -> None:
    masks = torch.tensor([[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).bool()
    variance = torch.tensor([1.0, 2.0, 3.0, 4.0, 0.5])
    log_variance = variance.log().view(5, 1, 1, 1).expand(5, 2, 2, 2)
    # Means by combination 2, 4 and 0.5; their mean is 2.17.
    assert dmrnet.hard_rows(log_variance, masks).tolist() == [False, False, False, True, False]


def test_dmrnet_adds_the_hard_rows_only_after_its_first_stage() -> None:
    model, loss = built("dmrnet"), LossRecipe(hard=10.0, first_stage=3)
    early, late = (stepped(model, "dmrnet", complete(16), loss, epoch).terms for epoch in (2, 3))
    assert value(early["hard"]) == pytest.approx(value(late["hard"]))
    assert value(late["loss"] - early["loss"]) == pytest.approx(10.0 * value(late["hard"]), rel=1e-3)


def test_dmrnet_learns_the_task_from_samples_of_its_distribution() -> None:
    model, batch = built("dmrnet").eval(), complete(6)
    assert isinstance(model, dmrnet.TrainingDmrnet)
    core = model.deployed.core
    assert isinstance(core, dmrnet.MeanEmbedding)
    features = model.deployed.encode_all(batch.inputs)
    torch.manual_seed(1)
    shape = core.mean(core.embed(features, batch.present)).shape
    drawn = torch.randn(6, 2, *shape[1:])
    expected = 0.0
    for number, mask in enumerate((batch.present, partial(6))):
        e = core.embed(features, mask)
        sampled = core.mean(e) + drawn[:, number] * (0.5 * model.log_variance(e)).exp()
        expected += value(torch.nn.functional.cross_entropy(core.head(sampled), batch.labels))
    torch.manual_seed(1)
    found = METHODS["dmrnet"].step(model, batch, partial(6), LossRecipe(), LATE).terms["task"]
    assert value(found) == pytest.approx(expected, rel=1e-5)


def test_dmrnet_answers_with_the_mean_of_its_distribution() -> None:
    model = built("dmrnet").eval()
    deployed = deployed_of(model)
    x, mask = inputs(4), partial(4)
    one, other = (deployed.classify(deployed.encode_all(x), mask) for _ in range(2))
    assert torch.equal(one, other)


def test_simmlm_weighs_the_experts_of_what_is_there_and_ranks_more_above_fewer() -> None:
    model = built("simmlm").eval()
    core = model.core
    assert isinstance(core, simmlm.ModalityMixture)
    features, mask = deployed_of(model).encode_all(inputs(6)), partial(6)
    weights = core.gates(features, mask)
    assert torch.equal(weights > 0, mask) and torch.allclose(weights.sum(dim=1), torch.ones(6))
    expected = sum(w[:, None] * expert(f) for w, expert, f in zip(weights.t(), core.experts, features, strict=True))
    assert torch.allclose(core(features, mask), expected, atol=1e-6)
    assert set(stepped(model, "simmlm", complete(8)).terms) == {"loss", "task", "rank"}


def test_simmlm_first_trains_every_expert_alone_on_the_rows_that_have_it() -> None:
    answers, batch = [torch.randn(8, 3) for _ in range(3)], incomplete(8)
    expected = 0.0
    for m, logits in enumerate(answers):
        rows = [b for b in range(8) if batch.present[b, m]]
        expected += value(row_losses(logits[rows], batch.labels[rows], LossRecipe()).mean())
    assert value(simmlm.alone_terms(answers, batch, LossRecipe())["task"]) == pytest.approx(expected, rel=1e-5)
    model = built("simmlm")
    stepped(model, "simmlm", complete(8), epoch=0).terms["loss"].backward()  # type: ignore[no-untyped-call]
    assert {n.split(".")[1] for n in silent(model)} == {"gates"}


def test_flex_moe_fills_a_missing_feature_by_its_modality_and_the_combination_there() -> None:
    bank = flex_moe.MissingBank([2, 4])
    for vectors in bank.vectors:
        vectors.data.normal_()
    features = [torch.randn(3, 2, 2, 2), torch.randn(3, 4, 2, 2)]
    mask = torch.tensor([[True, True], [True, False], [False, True]])
    rgb, depth = bank(features, mask)
    assert torch.equal(rgb[:2], features[0][:2]) and torch.equal(depth[[0, 2]], features[1][[0, 2]])
    assert torch.equal(rgb[2], bank.vectors[0][2].view(2, 1, 1).expand(2, 2, 2))
    assert torch.equal(depth[1], bank.vectors[1][1].view(4, 1, 1).expand(4, 2, 2))


def test_flex_moe_draws_each_incomplete_combination_to_an_expert_of_its_own() -> None:
    routed, mask = torch.randn(6, 7), partial(6)
    owners = [sum(2**m for m, on in enumerate(row) if on) - 1 for row in mask.tolist()]
    assert len(set(owners)) == 6
    expected = -sum(value(routed[b].log_softmax(0)[j]) for b, j in enumerate(owners)) / 6
    assert value(flex_moe.specialisation_loss(routed, mask)) == pytest.approx(expected, rel=1e-5)


def test_flex_moe_starts_with_complete_rows_alone() -> None:
    model, batch = built("flex_moe"), incomplete(32)
    early = stepped(model, "flex_moe", batch, epoch=0).terms
    assert set(early) == {"loss", "task", "balance"}
    early["loss"].backward()  # type: ignore[no-untyped-call]
    assert all(n.startswith("core.bank") for n in silent(model)) and len(silent(model)) == 3


@pytest.mark.parametrize("whole", [0, 1, 2])
def test_flex_moe_takes_all_rows_from_the_start_where_fewer_than_two_are_complete(whole: int) -> None:
    present = torch.ones(8, 3, dtype=torch.bool)
    present[whole:, 2] = False
    terms = stepped(built("flex_moe"), "flex_moe", dataclasses.replace(complete(8), present=present), epoch=0).terms
    assert ("specialise" in terms) is (whole < 2) and bool(torch.isfinite(terms["loss"]))


def test_a_matched_width_is_the_closest_there_is() -> None:
    def parts(width: int) -> list[nn.Module]:
        return [nn.Linear(width, width)]

    sizes = {w: w * w + w for w in range(1, 40)}
    for target in (1, 7, 100, 777, 1200):
        assert matched_width(target, parts) == min(sizes, key=lambda w: abs(sizes[w] - target))


def test_a_clean_routing_has_the_gates_of_its_logits_and_one_scale() -> None:
    logits = torch.randn(3, 4)
    routing = clean_routing(logits, 2)
    assert torch.equal(routing.gates, top_k_gates(logits, 2)) and set(routing.scale.flatten().tolist()) == {0.25}


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        LossRecipe(distill_temperature=0.0)
    assert str(error.value) == "loss.imitate_temperature is 1.0 and distill_temperature 0.0; they must be above 0"

"""The two-pass forward, the deployed path, and what may not reach what."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from mars_edge.errors import UsageError
from mars_edge.modality import Modality
from mars_training.data.split import Batch
from mars_training.methods import METHODS
from mars_training.methods.modality_dropout import build_dropout_fusion
from mars_training.methods.step import own_partial
from mars_training.model.build import (
    build_deployed,
    build_training_mars,
    parameter_count,
)
from mars_training.model.encoders.projection import ProjectionEncoder
from mars_training.model.mars import TrainingMars, mask_features, mean_by_combination
from mars_training.model.routers import ResidualRouter
from mars_training.optimiser import optimiser_groups
from mars_training.recipe import DataRecipe, EncoderRecipe, LossRecipe, ModelRecipe, Recipe
from mars_training.sampling import MaskSampler
from mars_training.train import update_for

MODALITIES = (
    Modality(name="rgb", kind="image", channels=3, size=(16, 16), dtype="uint8", range=(0, 255)),
    Modality(name="depth", kind="image", size=(16, 16), dtype="uint16", range=(300, 800)),
    Modality(name="ir", kind="image", size=(16, 16), dtype="uint8", range=(0, 255)),
)
SMALL = EncoderRecipe(channels=(4, 6), strides=(2, 2))
RECIPE = ModelRecipe(
    encoders={m.name: SMALL for m in MODALITIES}, experts=4, active_experts=2, width=8, expert_channels=(10,)
)
FACE = tuple(dataclasses.replace(m, size=(112, 112)) for m in MODALITIES)


def inputs(batch: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {m.name: torch.rand(batch, *m.shape, generator=generator) for m in MODALITIES}


def batch(size: int) -> Batch:
    present = torch.ones(size, 3, dtype=torch.bool)
    return Batch(inputs=inputs(size), labels=torch.arange(size) % 3, present=present)


def masks(batch: int) -> Tensor:
    return MaskSampler([m.name for m in MODALITIES], start=1, tau=1.0).combinations.repeat(batch, 1)[:batch]


@pytest.fixture
def model() -> TrainingMars:
    torch.manual_seed(0)
    return build_training_mars(RECIPE, MODALITIES, classes=3)


def test_the_residual_router_cannot_be_reached_from_the_deployed_model(model: TrainingMars) -> None:
    assert not any(isinstance(module, ResidualRouter) for module in model.deployed.modules())
    owned = {id(p) for p in model.deployed.parameters()}
    assert not any(id(p) in owned for p in model.residual_router.parameters())
    assert not any("residual" in name for name in vars(model.deployed))


def test_a_missing_modality_cannot_change_the_decision(model: TrainingMars) -> None:
    model.eval()
    present = torch.tensor([[True, False, True]]).expand(5, -1)
    one, other = inputs(5), inputs(5) | {"depth": torch.full((5, 1, 16, 16), 1e6)}
    assert torch.equal(model.deployed(one, present), model.deployed(other, present))


def test_masked_features_are_exact_zeros_and_present_ones_untouched() -> None:
    features = [torch.randn(2, 3, 4, 4), torch.randn(2, 5, 1, 1)]
    masked = mask_features(features, torch.tensor([[True, False], [False, True]]))
    assert torch.equal(masked[0][0], features[0][0]) and not masked[0][1].any()
    assert not masked[1][0].any() and torch.equal(masked[1][1], features[1][1])
    spoilt = [f.masked_fill(masked[i] == 0, torch.nan) for i, f in enumerate(features)]
    again = mask_features(spoilt, torch.tensor([[True, False], [False, True]]))
    assert all(map(torch.equal, again, masked))


def test_the_deployed_decision_equals_a_loop_over_the_chosen_experts(model: TrainingMars) -> None:
    deployed = model.deployed.eval()
    x, present = inputs(6), masks(6)
    found = deployed(x, present)
    for b in range(6):
        features = [
            deployed.encoders[m.name](x[m.name][b : b + 1]) if on else None
            for m, on in zip(MODALITIES, present[b].tolist(), strict=True)
        ]
        filled = [torch.zeros(1, 6, 4, 4) if f is None else f for f in features]
        z, logits = deployed.route_stage(*filled)
        best = sorted(range(4), key=lambda j: -logits[0].tolist()[j])[:2]
        weights = torch.softmax(logits[0, best], dim=0)
        combined = sum(w * deployed.experts[j](z) for w, j in zip(weights, best, strict=True))
        assert torch.allclose(found[b], deployed.head(combined)[0], atol=1e-5)


def test_the_two_passes_equal_separate_ones_when_batch_norm_is_frozen(model: TrainingMars) -> None:
    """In evaluation mode noise is off and statistics are fixed, so stacking must not matter."""
    model.eval()
    x, partial = inputs(6), masks(6)
    passes = model(x, partial)
    full = torch.ones_like(partial)
    features = model.deployed.encode_all(x)
    z_full, _ = model.deployed.route(features, full)
    z_partial, student = model.deployed.route(features, partial)
    routing = model.residual_router(z_full.mean((2, 3)) - z_partial.mean((2, 3)))
    assert torch.allclose(passes.full, model.deployed(x, full), atol=1e-5)
    assert torch.allclose(passes.student, student, atol=1e-5)
    assert torch.allclose(passes.residual.clean, routing.clean, atol=1e-5)
    assert torch.allclose(passes.partial, model.deployed.decide(z_partial, routing.gates), atol=1e-5)


@pytest.mark.parametrize("method", ["mars", "moe", "modality_dropout"])
def test_several_masks_per_row_give_the_mean_of_steps_with_one(method: str) -> None:
    """In evaluation mode no batch statistics tie the rows together, so each pass must be what it is on its own."""
    torch.manual_seed(0)
    network = METHODS[method].build(RECIPE, MODALITIES, 3, "classification").eval()
    rows, one, other = batch(6), masks(6), masks(6).flip(0)
    loss = LossRecipe(balance=0.0, noise=0.0, imitate=0.5, distill=0.7, incomplete=2.0)
    both = torch.stack([one, other], dim=1).flatten(0, 1)
    together, first, second = (METHODS[method].step(network, rows, m, loss, 0) for m in (both, one, other))
    for name in ("loss", "task", "distill", *(["imitate"] if method == "mars" else [])):
        mean = (first.terms[name] + second.terms[name]) / 2
        assert torch.allclose(together.terms[name], mean, atol=1e-5), name
    if first.agreement is not None and second.agreement is not None:
        expected = torch.stack([first.agreement, second.agreement], dim=1).flatten()
        assert together.agreement is not None and torch.equal(together.agreement, expected)


def test_the_incomplete_pass_weighs_what_the_recipe_says(model: TrainingMars) -> None:
    model.eval()
    terms = [
        METHODS["mars"].step(model, batch(6), masks(6), LossRecipe(incomplete=w), 0).terms for w in (0.0, 1.0, 3.0)
    ]
    assert torch.allclose(terms[2]["task"] - terms[0]["task"], 3.0 * (terms[1]["task"] - terms[0]["task"]), atol=1e-5)


def test_a_row_that_lost_a_modality_has_all_its_masks_inside_what_it_has() -> None:
    present = torch.tensor([[True, True, False], [True, True, True]])
    partial = torch.tensor([[True, False, True], [False, False, True], [False, True, True], [True, False, False]])
    expected = [[True, False, False], [True, True, False], [False, True, True], [True, False, False]]
    assert own_partial(partial, present).tolist() == expected


def test_router_noise_is_drawn_in_training_only(model: TrainingMars) -> None:
    residual = torch.randn(5, 8)
    assert not torch.equal(model.residual_router.train()(residual).noisy, model.residual_router(residual).clean)
    assert torch.equal(model.residual_router.eval()(residual).noisy, model.residual_router(residual).clean)


def test_router_noise_is_normal_with_a_scale_of_softplus_above_a_floor_of_a_hundredth(model: TrainingMars) -> None:
    router = model.residual_router.train()
    residual = torch.randn(5, 8)
    torch.manual_seed(2)
    routing = router(residual)
    torch.manual_seed(2)
    noise = torch.randn(5, 4)
    for b, j in itertools.product(range(5), range(4)):
        raw = float((router.noise.weight[j] @ residual[b]).detach())
        scale = math.log1p(math.exp(raw)) + 0.01
        assert float(routing.scale[b, j].detach()) == pytest.approx(scale, rel=1e-4)
        assert float((routing.noisy - routing.clean)[b, j].detach()) == pytest.approx(
            float(noise[b, j]) * scale, abs=1e-5
        )


def test_the_residual_teaches_what_made_both_of_its_sides(model: TrainingMars) -> None:
    model.eval()
    x, partial, deployed = inputs(6), masks(6), model.deployed
    parameters = [p for n, p in model.named_parameters() if "encoders" in n or "fusion" in n or "residual" in n]

    def gradients(clean: Tensor) -> list[Tensor | None]:
        return list(torch.autograd.grad(clean.square().sum(), parameters, allow_unused=True))

    features = deployed.encode_all(x)
    z_full, z_partial = (deployed.route(features, mask)[0].mean((2, 3)) for mask in (torch.ones_like(partial), partial))
    found, expected = (
        gradients(model(x, partial).residual.clean),
        gradients(model.residual_router.logits(z_full - z_partial)),
    )
    for one, other in zip(found, expected, strict=True):
        assert (one is None) is (other is None)
        assert one is None or other is None or torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_every_parameter_is_in_exactly_one_optimiser_group_and_gets_a_gradient(model: TrainingMars) -> None:
    groups = optimiser_groups(model, 0.01)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    sampler = MaskSampler([m.name for m in MODALITIES], start=1, tau=1.0)
    update = update_for(model.train(), Recipe(name="tiny", data=DataRecipe(reader="rig"), model=RECIPE))
    update(batch(64), sampler, 0)["loss"].backward()  # type: ignore[no-untyped-call]
    silent = [n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert silent == []


def test_every_parameter_of_the_baseline_gets_a_gradient() -> None:
    baseline = build_dropout_fusion(RECIPE, MODALITIES, classes=3)
    full, partial = baseline.two_passes(inputs(16), torch.ones(16, 3, dtype=torch.bool), masks(16))
    (full.square().mean() + partial.square().mean()).backward()
    assert [n for n, p in baseline.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)] == []


@pytest.mark.parametrize(("recipe", "modalities"), [(RECIPE, MODALITIES), (ModelRecipe(), FACE)])
def test_the_baseline_has_the_same_parameters_within_2_percent(
    recipe: ModelRecipe, modalities: tuple[Modality, ...]
) -> None:
    mars = parameter_count(build_deployed(recipe, modalities, 2))
    baseline = parameter_count(build_dropout_fusion(recipe, modalities, 2))
    assert abs(baseline - mars) <= 0.02 * mars


def test_the_papers_own_baseline_has_a_stage_of_one_expert() -> None:
    small = build_dropout_fusion(dataclasses.replace(RECIPE, baseline_size="expert"), MODALITIES, 2)
    assert parameter_count(small.expert) == parameter_count(build_deployed(RECIPE, MODALITIES, 2).experts[0])


def test_the_edge_model_has_about_one_million_parameters() -> None:
    assert 0.9e6 < parameter_count(build_deployed(ModelRecipe(), FACE, 2)) < 1.1e6


def test_every_piece_exports_with_a_dynamic_batch(model: TrainingMars) -> None:
    deployed = model.deployed.eval()
    x = inputs(3)
    features = tuple(f.detach() for f in deployed.encode_all(x))
    z = deployed.route_stage(*features)[0].detach()
    pieces: list[tuple[nn.Module, tuple[Tensor, ...]]] = [
        (deployed.encoders["rgb"], (x["rgb"],)),
        (deployed.route_stage, features),
        (deployed.experts[0], (z,)),
        (deployed.head, (deployed.experts[0](z).detach(),)),
    ]
    batch = torch.export.Dim("batch", min=1, max=512)
    for piece, example in pieces:
        shapes = (tuple({0: batch} for _ in example),) if piece is deployed.route_stage else ({0: batch},)
        program = torch.export.export(piece, example, dynamic_shapes=shapes)
        again = tuple(torch.cat([e, e]) for e in example)
        expected, found = piece(*again), program.module()(*again)
        pairs = zip(expected, found, strict=True) if isinstance(expected, tuple) else [(expected, found)]
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


def test_a_shared_expert_adds_to_whatever_the_gates_choose() -> None:
    torch.manual_seed(0)
    deployed = build_deployed(dataclasses.replace(RECIPE, shared_expert=True), MODALITIES, 3).eval()
    z, gates = torch.rand(4, 8, 2, 2), deployed.gates(torch.randn(4, 4))
    assert deployed.expert_shared is not None
    routed = sum(gates[:, j, None, None, None] * expert(z) for j, expert in enumerate(deployed.experts))
    expected = deployed.head(routed + deployed.expert_shared(z))
    assert torch.allclose(deployed.decide(z, gates), expected, atol=1e-6)


def test_detach_residual_keeps_the_privileged_gradient_out_of_fusion(model: TrainingMars) -> None:
    for detached in (False, True):
        model.detach_residual = detached
        model.zero_grad(set_to_none=True)
        model.train()(inputs(8), masks(8)).residual.clean.square().sum().backward()
        stem = model.deployed.route_stage.fusion.block[0].weight.grad  # type: ignore[union-attr, index]
        assert (stem is None) is detached


def test_the_combination_residual_is_the_mean_over_equal_masks() -> None:
    drawn = masks(11)
    shift = torch.randn(11, 5, generator=torch.Generator().manual_seed(0))
    for row, mask, own in zip(mean_by_combination(shift, drawn), drawn, shift, strict=True):
        peers = [s for s, m in zip(shift, drawn, strict=True) if torch.equal(m, mask)]
        torch.testing.assert_close(row, torch.stack(peers).mean(dim=0))
        assert len(peers) == 1 or not torch.allclose(row, own)


def test_samples_of_one_combination_share_their_residual_only_in_combination_scope(model: TrainingMars) -> None:
    drawn = masks(1).repeat(6, 1)
    model.eval()
    own = model(inputs(6), drawn).residual.clean
    model.residual_scope = "combination"
    shared = model(inputs(6), drawn).residual.clean
    assert not torch.allclose(own[0], own[1])
    torch.testing.assert_close(shared, own.mean(dim=0).expand_as(own))


def test_student_rate_one_routes_the_partial_pass_as_deployed(model: TrainingMars) -> None:
    model.student_rate = 1.0
    model.train()
    residual = ResidualRouter(8, 4, 2)(torch.randn(5, 8))
    student = torch.randn(5, 4)
    assert torch.equal(model._partial_gates(residual, student), model.deployed.gates(student))


def test_expert_dropout_keeps_gates_summing_to_one_and_never_empties_a_sample(model: TrainingMars) -> None:
    model.train()
    model.expert_dropout = 0.9
    gates = model.deployed.gates(torch.randn(200, 4))
    dropped = model._drop_experts(gates, len(gates) // 2)
    assert torch.allclose(dropped.sum(dim=1), torch.ones(200))
    assert bool(((dropped > 0).sum(dim=1) == 1).any())


def test_the_projection_is_the_leading_principal_components_at_unit_variance() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(200, 1, 8, 8, generator=generator)
    encoder = ProjectionEncoder((1, 8, 8), EncoderRecipe(kind="projection", channels=(4,), strides=(1,)))
    encoder.fit(images)
    rows = images.flatten(1) - images.flatten(1).mean(0)
    _, _, directions = torch.pca_lowrank(rows, q=8, center=False, niter=20)
    scores = rows @ directions[:, :2]
    found = nn.functional.conv2d(images, encoder.weight, encoder.bias).flatten(1)
    for column in range(2):
        correlation = torch.corrcoef(torch.stack([found[:, column], scores[:, column]]))[0, 1]
        assert abs(float(correlation)) == pytest.approx(1.0, abs=1e-3)
    assert found.var(0).tolist() == pytest.approx([1.0, 1.0], rel=1e-4)
    assert found.mean(0).tolist() == pytest.approx([0.0, 0.0], abs=1e-4)
    assert not any(p is encoder.weight for p in encoder.parameters())


def test_an_encoder_for_an_unknown_modality_is_refused() -> None:
    recipe = dataclasses.replace(RECIPE, encoders={"lidar": SMALL})
    with pytest.raises(UsageError) as error:
        build_deployed(recipe, MODALITIES, 2)
    assert str(error.value) == "recipe has an encoder for 'lidar'; the data has: rgb, depth, ir"
